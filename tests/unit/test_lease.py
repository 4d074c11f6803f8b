"""The lease of a state folder: one flow writes its manifest, and a late waker cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from dataflows import context as context_module
from dataflows import quarantine, runner
from dataflows.guard import StepFault
from dataflows.observe.telemetry import Telemetry
from dataflows.poison import POISON_FILE
from dataflows.settings import Settings, load
from dataflows.state import lease as lease_module
from dataflows.state.bases import held_rounds, keep_base
from dataflows.state.journal import Cut, LaneJournal, read_cuts
from dataflows.state.lease import (
    BEAT_S,
    CHECK_S,
    LEASE_S,
    Lease,
    give_back_of,
    locked,
    read_lease,
    take_lease,
)
from dataflows.state.manifest import (
    Manifest,
    go_back,
    read_manifest,
    whole_manifests,
    write_manifest,
)
from features.catalog import Catalog, catalog
from features.errors import StateError
from tests.flow.harness import Bench

ROOT = Path(__file__).resolve().parents[2]

HOLDER = """
import os, pathlib, signal, sys
from dataflows.state.lease import take_lease
take_lease(pathlib.Path(sys.argv[1]))
print("held", flush=True)
if sys.argv[2] == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


def never(_seconds: float) -> None:
    """A wait that nobody should need."""
    raise AssertionError("it waited")


def holder(folder: Path, how: str) -> subprocess.Popen[str]:
    """Another process that takes the lease and lives on, or dies of kill -9."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), how],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def elsewhere(folder: Path, **changed: Any) -> None:
    """Make the lease that of another machine, and what else."""
    path = folder / "lease.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"place": "there", "host": "pod-0", "pid": 1} | changed))


def manifest(round_: int, lease: Lease) -> Manifest:
    """A manifest as the holder of a lease writes it."""
    return Manifest(round_, 16, 2, "abc", token=lease.token)


def test_the_lease_of_a_dead_process_is_given_back_by_whoever_started_it(tmp_path: Path) -> None:
    with holder(tmp_path, "lives") as living:
        give_back_of(tmp_path, [living.pid])
        lease = read_lease(tmp_path)
        assert lease is not None and lease.held, "it lives"
        living.kill()
        living.wait()
        give_back_of(tmp_path, [living.pid + 1])
        assert read_lease(tmp_path) == lease, "it is another's"
        give_back_of(tmp_path, [living.pid])
        lease = read_lease(tmp_path)
        assert lease is not None and not lease.held
    give_back_of(tmp_path / "none", [1])
    assert not (tmp_path / "none").exists()


def test_a_second_start_is_refused_and_the_first_is_unhurt(tmp_path: Path) -> None:
    with holder(tmp_path, "lives") as first:
        before = read_lease(tmp_path)
        with pytest.raises(StateError, match=rf"in use by another process \(id {first.pid} on "):
            take_lease(tmp_path, rest=never)
        assert read_lease(tmp_path) == before
        first.communicate("")
    assert take_lease(tmp_path, rest=never).token == 2, "it has ended without giving it back"


def test_the_lease_of_a_process_killed_here_is_taken_at_once(tmp_path: Path) -> None:
    with holder(tmp_path, "dies") as first:
        assert first.wait() == -signal.SIGKILL
    assert take_lease(tmp_path, rest=never).token == 2


def test_a_killed_holder_that_nobody_has_waited_for_is_dead(tmp_path: Path) -> None:
    with holder(tmp_path, "dies") as first:
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        assert psutil.Process(first.pid).status() == psutil.STATUS_ZOMBIE
        assert take_lease(tmp_path, rest=never).token == 2


def test_a_process_id_given_out_again_is_no_holder(tmp_path: Path) -> None:
    take_lease(tmp_path)
    path = tmp_path / "lease.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": 1, "begun_s": 5.0}))
    assert take_lease(tmp_path, rest=never).token == 2


def test_another_machine_is_watched_and_taken_over_only_without_a_beat(tmp_path: Path) -> None:
    take_lease(tmp_path)
    elsewhere(tmp_path)
    said: list[str] = []
    waited: list[float] = []

    def beats(seconds: float) -> None:
        waited.append(seconds)
        elsewhere(tmp_path, beat=7)

    with pytest.raises(StateError, match=r"in use by another process \(id 1 on pod-0\)"):
        take_lease(tmp_path, rest=beats, say=said.append)
    assert waited == [LEASE_S] and "pod-0" in said[0]
    assert take_lease(tmp_path, rest=waited.append).token == 2, "no beat while it was watched"
    assert len(waited) == 2


def test_a_lease_given_back_is_taken_without_a_wait(tmp_path: Path) -> None:
    take_lease(tmp_path).give_back()
    elsewhere(tmp_path)
    assert take_lease(tmp_path, rest=never).token == 2


def test_a_manifest_of_an_older_lease_is_refused(tmp_path: Path) -> None:
    first = take_lease(tmp_path)
    write_manifest(tmp_path, manifest(100, first))
    elsewhere(tmp_path)
    second = take_lease(tmp_path, rest=lambda _: None)
    with pytest.raises(StateError, match=r"has been taken over .*lease 2, ours was 1"):
        write_manifest(tmp_path, manifest(200, first))
    write_manifest(tmp_path, manifest(150, second))
    with pytest.raises(StateError, match="taken over"):
        write_manifest(tmp_path, manifest(300, first))
    assert read_manifest(tmp_path) == manifest(150, second)


def test_a_flow_that_was_taken_over_neither_goes_back_nor_keeps_a_base(tmp_path: Path) -> None:
    first = take_lease(tmp_path)
    write_manifest(tmp_path, manifest(100, first))
    keep_base(tmp_path, manifest(100, first), 0, 900.0, 1.0)
    elsewhere(tmp_path)
    second = take_lease(tmp_path, rest=lambda _: None)
    for round_ in (200, 300):
        write_manifest(tmp_path, manifest(round_, second))
    with pytest.raises(StateError, match=r"taken over .*lease 2, ours was 1"):
        go_back(tmp_path, manifest(100, first))
    assert [m.round for m in whole_manifests(tmp_path)] == [300, 200]
    with pytest.raises(StateError, match=r"taken over .*lease 2, ours was 1"):
        keep_base(tmp_path, manifest(400, first), 900_000_000, 900.0, 1.0)
    with pytest.raises(StateError, match="taken over"):
        keep_base(tmp_path, manifest(400, first), 900_000_000, 900.0, 0.0)
    assert held_rounds(tmp_path) == [100], "neither one more nor one less"
    keep_base(tmp_path, manifest(300, second), 900_000_000, 900.0, 1.0)
    assert held_rounds(tmp_path) == [100, 300]
    go_back(tmp_path, manifest(200, second))
    assert [m.round for m in whole_manifests(tmp_path)] == [200]


def test_the_manifest_knows_the_token_where_the_lease_is_lost(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest(100, Lease(tmp_path, 41)))
    (tmp_path / "lease.json").write_text("torn", encoding="utf-8")
    assert take_lease(tmp_path, 41).token == 42


def test_who_has_lost_the_lease_hears_of_it_with_the_next_beat(tmp_path: Path) -> None:
    first = take_lease(tmp_path)
    assert first.beat()
    beaten = read_lease(tmp_path)
    assert beaten is not None and beaten.beat == 1
    elsewhere(tmp_path)
    second = take_lease(tmp_path, rest=lambda _: None)
    heard: list[StateError] = []
    lost = threading.Event()

    def hear(fault: StateError) -> None:
        heard.append(fault)
        lost.set()

    first.keep(hear, every_s=0.001)
    assert lost.wait(120)
    assert "lease 2, ours was 1" in str(heard[0]) and f"process {os.getpid()}" in str(heard[0])
    first.give_back()
    kept = read_lease(tmp_path)
    assert kept is not None and kept.held, "the other's is not ours to give back"
    assert second.beat()


def test_who_has_not_beaten_for_a_while_beats_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(lease_module, "_now_s", lambda: now_s[0])
    first = take_lease(tmp_path)
    heard: list[StateError] = []
    first.keep(heard.append, every_s=1e6)
    now_s[0] = CHECK_S
    first.check()
    quiet = read_lease(tmp_path)
    assert quiet is not None and quiet.beat == 0, "a fresh beat says enough"
    now_s[0] += 1.0
    first.check()
    beaten = read_lease(tmp_path)
    assert beaten is not None and beaten.beat == 1
    first.give_back()


def test_a_flow_that_was_taken_over_writes_no_more_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(lease_module, "_now_s", lambda: now_s[0])
    first = take_lease(tmp_path)
    peer = Lease(tmp_path, first.token, held=False)
    journal = LaneJournal(tmp_path / "lane-00", 1 << 20, fence=first.check)
    journal.append(Cut(1, 10, {}, 0))
    now_s[0] = LEASE_S
    peer.check()
    looked = read_lease(tmp_path)
    assert looked is not None and looked.beat == 0, "a process that is no holder only looks"
    elsewhere(tmp_path)
    second = take_lease(tmp_path, rest=lambda _: None)
    heard: list[StateError] = []
    first.keep(heard.append, every_s=1e6)
    now_s[0] += LEASE_S
    with pytest.raises(StateError, match=r"taken over .*lease 2, ours was 1"):
        journal.append(Cut(2, 20, {}, 0))
    with pytest.raises(StateError, match="taken over"):
        peer.check()
    assert len(heard) == 1 and [cut.round for cut in read_cuts(journal.folder)] == [1]
    second.check()
    journal.close()


def test_a_flow_that_gave_the_lease_back_writes_only_while_nobody_has_taken_it(
    tmp_path: Path,
) -> None:
    first = take_lease(tmp_path)
    first.give_back()
    first.check()
    given = read_lease(tmp_path)
    assert given is not None and not given.held, "asking does not take it again"
    take_lease(tmp_path, rest=never)
    with pytest.raises(StateError, match=r"taken over .*lease 2, ours was 1"):
        first.check()


def test_a_process_that_is_no_holder_hears_soon_of_a_takeover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(lease_module, "_now_s", lambda: now_s[0])
    peer = Lease(tmp_path, take_lease(tmp_path).token, held=False)
    peer.check()
    elsewhere(tmp_path)
    take_lease(tmp_path, rest=lambda _: None)
    now_s[0] += BEAT_S / 2
    with pytest.raises(StateError, match=r"taken over .*lease 2, ours was 1"):
        peer.check()


@pytest.mark.parametrize("name", ["lock-lease", "lease.json"])
def test_a_disk_that_does_not_give_the_lease_is_a_sentence(tmp_path: Path, name: str) -> None:
    first = take_lease(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    first.give_back()
    with pytest.raises(StateError, match="could not be read: Is a directory; mend the disk"):
        first.check()


def test_a_flow_gives_the_lease_back_after_its_last_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []

    def close() -> None:
        found = read_lease(tmp_path)
        held.append(found is not None and found.held)
        raise StateError("the last write failed")

    def fails(*_: object) -> None:
        raise StateError("a step failed")

    context: Any = SimpleNamespace(lease=take_lease(tmp_path), store=None, close=close)
    monkeypatch.setattr(runner, "build_flow", fails)
    with pytest.raises(StateError, match="the last write failed"):
        runner._run_once(context, None, 1.0, None)
    found = read_lease(tmp_path)
    assert held == [True] and found is not None and not found.held


def test_a_flow_beats_while_it_restores_its_state_and_gives_back_what_it_could_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beaten, slowly = threading.Semaphore(0), list[int]()
    beat, state_of = Lease.beat, context_module._state_of

    def counted(lease: Lease) -> bool:
        good = beat(lease)
        beaten.release()
        return good

    def slow(settings: Settings, cat: Catalog, begins: Manifest) -> Any:
        def beat_number() -> int:
            record = read_lease(tmp_path)
            assert record is not None
            return record.beat

        def watch(_seconds: float) -> None:
            before = beat_number()
            while beat_number() == before:
                assert beaten.acquire(timeout=120), "no beat while the state is restored"

        with locked(tmp_path):
            elsewhere(tmp_path, pid=os.getpid())
        with pytest.raises(StateError, match="is in use by another process"):
            take_lease(tmp_path, rest=watch)
        slowly.append(beat_number())
        return state_of(settings, cat, begins)

    monkeypatch.setattr(lease_module, "BEAT_S", 0.001)
    monkeypatch.setattr(Lease, "beat", counted)
    monkeypatch.setattr(context_module, "_state_of", slow)
    settings = Settings(state_dir=tmp_path, groups=1, lanes=1)
    begin = (settings, catalog(), lambda: None, lambda _: None)
    found, lease, _ = context_module._load_manifest(*begin)
    assert found.token == lease.token == 1 and slowly
    lease.give_back()

    def fails(*_: object) -> None:
        raise StateError("the disk is gone")

    monkeypatch.setattr(context_module, "_state_of", fails)
    with pytest.raises(StateError, match="the disk is gone"):
        context_module._load_manifest(*begin)
    given = read_lease(tmp_path)
    assert given is not None and given.token == 2 and not given.held


def test_a_flow_whose_models_cannot_be_warmed_up_gives_the_lease_back(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    take = context_module.take_lease

    def taken(*given: Any, **more: Any) -> Lease:
        found = take(*given, **more)
        held.set()
        return found

    def fails(*_: object) -> None:
        assert held.wait(60)
        raise ArithmeticError("no such instruction")

    monkeypatch.setattr(context_module, "take_lease", taken)
    monkeypatch.setattr(context_module, "_warm_up", fails)
    given = {"warm_state": "cold", "alerts": ["jsonl"], "state_dir": tmp_path}
    settings = load(None, {}, **bench.settings | given)
    with pytest.raises(ArithmeticError, match="no such instruction"):
        context_module.make_context(settings, Telemetry())
    kept = read_lease(tmp_path)
    assert kept is not None and not kept.held


def test_whoever_asks_late_hears_of_a_takeover_too(tmp_path: Path) -> None:
    first = take_lease(tmp_path)
    elsewhere(tmp_path)
    take_lease(tmp_path, rest=lambda _: None)
    first.keep(every_s=0.001)
    assert first._beating is not None
    first._beating.join(120)
    heard = threading.Event()
    first.keep(lambda _: heard.set(), every_s=0.001)
    assert heard.wait(120)


def test_a_flow_that_was_taken_over_notes_no_event_that_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class Ended:
        """What is looked at of the context of a flow that has ended."""

        settings: Settings
        lease: Lease
        begins: Manifest | None = None
        telemetry: Any = None
        store: Any = None
        restored: Any = None
        lanes: Any = None
        manifest: Any = None
        fence = context_module.Context.fence

    note = {"round": 3, "event_type": "payment", "partition": 0, "offset": 5, "detail": "x: y"}
    journal = SimpleNamespace(folder=tmp_path / "journal")
    journal.folder.mkdir()
    trial = SimpleNamespace(
        run=lambda: {0: [note]}, close=lambda: None, lanes=[SimpleNamespace(journal=journal)]
    )
    monkeypatch.setattr(quarantine, "_Trial", lambda *_: trial)
    ended: Any = Ended(Settings(state_dir=tmp_path), take_lease(tmp_path), telemetry=Telemetry())
    fault = StepFault("score", 3, ValueError("y"))
    assert quarantine._noted(ended, fault)
    notes = (journal.folder / POISON_FILE).read_bytes()
    assert b'"offset"' in notes
    ended.lease.give_back()
    take_lease(tmp_path, rest=never)
    with pytest.raises(StateError, match=r"taken over .*lease 2, ours was 1"):
        quarantine._noted(ended, fault)
    assert (journal.folder / POISON_FILE).read_bytes() == notes
