"""`waxwing run --workers N` from outside: processes that die, stop, are left alone, and rescale."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dataflows.state.journal import read_cuts
from dataflows.state.lease import read_lease
from dataflows.state.manifest import read_manifest
from dataflows.supervisor import Supervisor
from features.errors import StateError
from tests.flow.harness import TIMEOUT_S, Bench, Run, call, running, wait_for, without_clock
from tests.ports import free_port

DAY = {
    "sim_seconds": 6,
    "sim_speed": 7200.0,
    "round_rows_max": 2000,
    "snapshot_rounds": 5,
    "store": "embedded",
}
"""Half a day of event time in 43 rounds."""

SLOWLY = {"sim_paced": "true", "sim_speed": 900.0, "sim_seconds": 48}
"""The same in 48 seconds: who stops it in its middle has time for it."""


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An undisturbed run of the day in one process."""
    run = Run(bench, tmp_path_factory.mktemp("whole") / "state", DAY)
    run.to_end()
    assert len(run.alerts()) > 100
    return run


def in_processes(bench: Bench, state: Path, workers: int, **more: object) -> Run:
    """The same day in several processes."""
    return Run(bench, state, DAY | more, ("--workers", str(workers)))


def manifest_round(state: Path) -> int:
    """Round of the manifest, 0 before the first."""
    found = read_manifest(state) if state.exists() else None
    return 0 if found is None else found.round


def journal_round(state: Path) -> int:
    """Newest round of the journal, 0 before the first."""
    folder = state / "journal" / "lane-00"
    return max((cut.round for cut in read_cuts(folder)), default=0) if folder.exists() else 0


def is_left(state: Path) -> bool:
    """Whether a run that was stopped has more of its day before it."""
    *_, last = read_cuts(state / "journal" / "lane-00")
    return bool(last.positions["t_us"] < last.positions["end_us"])


def workers_of(supervisor: int) -> dict[int, psutil.Process]:
    """Number -> process of the flow that a supervisor has started."""
    found = {}
    for child in psutil.Process(supervisor).children():
        line = child.cmdline()
        if "dataflows.worker" in line:
            found[int(line[line.index("-i") + 1])] = child
    return found


def test_a_process_killed_by_kill_9_is_said_and_changes_nothing(
    bench: Bench, whole: Run, tmp_path: Path
) -> None:
    run = in_processes(bench, tmp_path / "state", 2)
    report, go_on = tmp_path / "report.json", tmp_path / "go-on"
    held = run.command(f"source_holds=30@{go_on}")
    with running(*held, "--json", str(report), cwd=bench.folder) as process:
        wait_for(lambda: manifest_round(run.state_dir) >= 5, "a manifest", process)
        first = workers_of(process.pid)
        assert set(first) == {0, 1}
        for worker in first.values():
            line = worker.cmdline()
            peers = line[line.index("-a") + 1].split(";")
            assert len(peers) == 2 and all(peer.startswith("127.0.0.1:") for peer in peers), (
                "what they say to each other is unpickled: nobody else may"
            )
        # Who watches hears of both ends at once: that of the peer, too, which ends for its loss.
        process.send_signal(signal.SIGSTOP)
        first[1].kill()
        wait_for(lambda: first[0].status() == psutil.STATUS_ZOMBIE, "its peer's end", process)
        process.send_signal(signal.SIGCONT)
        go_on.touch()
        out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, out
    killed = f"process 1 (id {first[1].pid}) was killed by SIGKILL (by hand, or memory ran out)"
    assert f"waxwing: {killed}; all start again in 0.5 s\n" in out
    assert "panicked" not in out, "what the others say when they lose it is not shown"
    assert not any(worker.is_running() for worker in first.values())
    assert without_clock(run.alerts()) == without_clock(whole.alerts())
    one, two = read_manifest(whole.state_dir), read_manifest(run.state_dir)
    assert one is not None and two is not None and one.totals == two.totals


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_processes_cleanly(
    bench: Bench, whole: Run, tmp_path: Path, how: int
) -> None:
    run = in_processes(bench, tmp_path / "state", 2, snapshot_rounds=1000)
    assert run.until(lambda: journal_round(run.state_dir) >= 12, how, hold=36) == 0
    stopped = journal_round(run.state_dir)
    assert manifest_round(run.state_dir) == stopped < 43, "nothing is left to replay"
    report = run.to_end()
    assert without_clock(run.alerts()) == without_clock(whole.alerts())
    assert report["in"] == report["scored"] + report["duplicates"] > 80_000
    assert report["detectors"]["ensemble"]["recall"] > 0.5 and report["silence"]["absences"] > 0


@pytest.mark.parametrize(("workers", "how"), [(None, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_signal_while_it_starts_is_a_clean_end(
    bench: Bench, tmp_path: Path, workers: int | None, how: int
) -> None:
    state = tmp_path / "state"
    run = Run(bench, state, DAY) if workers is None else in_processes(bench, state, workers)
    report = tmp_path / "report.json"
    options = (*run.options(), "--json", str(report))
    with running("run", *options, cwd=bench.folder) as process:
        wait_for(lambda: read_lease(state) is not None, "the lease", process)
        process.send_signal(how)
        out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, out
    lease = read_lease(state)
    assert lease is not None and not lease.held, "whoever comes next does not wait"
    if not journal_round(state):  # else this test was held up for all of the start
        assert "waxwing: stopped before the first round" in out
        assert not report.exists() or json.loads(report.read_text(encoding="utf-8"))["in"] == 0


def test_faults_end_it_at_once_and_are_said_once(bench: Bench, tmp_path: Path) -> None:
    done = call(
        "run", "--workers", "3", *bench.sets(
            bundle=tmp_path / "gone", state_dir=tmp_path / "s", currency_rates=tmp_path / "no.csv",
        ), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    said = done.stderr.splitlines()
    assert len(said) == 2 and all(line.startswith("waxwing: ") for line in said), said
    assert "gone" in done.stderr and "no.csv" in done.stderr
    assert not (tmp_path / "s").exists(), "nothing was begun"
    done = call("run", "--workers", "0", *bench.sets(), cwd=tmp_path)
    assert done.returncode == 2 and "--workers 0: expected 1 to" in done.stderr


def test_processes_end_with_the_one_that_watches_them(
    bench: Bench, whole: Run, tmp_path: Path
) -> None:
    slow = {"sim_paced": "true", "sim_speed": 180.0, "sim_seconds": 240}
    run = in_processes(bench, tmp_path / "state", 2, **slow)
    with running("run", *run.options(), cwd=bench.folder) as process:
        wait_for(lambda: manifest_round(run.state_dir) >= 5, "a manifest", process)
        left = workers_of(process.pid)
        second = call("run", *run.options(), cwd=bench.folder)
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1 and "is in use by another process" in second.stderr
        process.kill()
        process.wait()
    gone, alive = psutil.wait_procs(left.values(), timeout=TIMEOUT_S)
    assert len(gone) == 2 and not alive
    in_processes(bench, run.state_dir, 2).to_end()
    assert without_clock(run.alerts()) == without_clock(whole.alerts())


def test_another_number_of_processes_goes_on_where_the_last_stopped(
    bench: Bench, whole: Run, tmp_path: Path
) -> None:
    state, at = tmp_path / "state", 0
    for workers in (1, 2, 4):
        run = in_processes(bench, state, workers)
        reached = lambda n=at: journal_round(state) >= n + 7  # noqa: E731
        assert run.until(reached, signal.SIGTERM, hold=at + 10) == 0
        assert manifest_round(state) == journal_round(state) > at
        at = journal_round(state)
    assert at < 43, "there was something left to do"
    report = Run(bench, state, DAY).to_end()
    assert without_clock(run.alerts()) == without_clock(whole.alerts())
    one, two = read_manifest(whole.state_dir), read_manifest(state)
    assert one is not None and two is not None
    # So many windows that ran empty are told a round, and each start has rounds more at its end.
    assert {**one.totals, "emptied": 0} == {**two.totals, "emptied": 0}
    assert report["in"] == one.totals["in"]


def test_it_gives_up_on_processes_that_die_again_and_again(bench: Bench, tmp_path: Path) -> None:
    deadly = tmp_path / "deadly.py"
    deadly.write_text(
        "import os, sys\n"
        "if '-i' in sys.argv:\n"
        "    os.write(2, b'no room for this\\n')\n"
        "    os.abort()\n",
        encoding="utf-8",
    )
    said: list[str] = []
    options = bench.sets(feature_paths=deadly, state_dir=tmp_path / "s")
    with pytest.raises(StateError) as given_up:
        Supervisor(options, 1, tmp_path / "s", said.append, pause_s=0.0).run()
    died = r"process 0 \(id \d+\) was killed by SIGABRT; its last words: no room for this"
    assert len(said) == 5
    assert all(re.fullmatch(rf"{died}; it starts again in 0 s", text) for text in said), said
    assert re.match(rf"run: {died}; given up, since 6 starts in a row", str(given_up.value))


def by_bytewax(
    bench: Bench, folder: Path, more: dict[str, object], *options: str
) -> subprocess.Popen[str]:
    """The day as Bytewax's own command runs it."""
    settings = bench.settings | DAY | {"alerts": ["jsonl"]} | more
    plain = {"sim_cards", "sim_events_per_s", "sim_anomaly_share", "sim_paced"}
    lines = [f"{k} = {v if k in plain else json.dumps(v)}" for k, v in settings.items()]
    (folder / "waxwing.toml").write_text("\n".join(lines), encoding="utf-8")
    flow = "dataflows.detect:build('waxwing.toml')"
    return subprocess.Popen(
        [sys.executable, "-m", "bytewax.run", "-s", "0", *options, flow],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("WAXWING_")}
        | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_fault_under_bytewax_own_command_is_a_sentence_and_no_panic(
    bench: Bench, whole: Run, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    shutil.copytree(whole.state_dir / "journal", state / "journal")
    other = {"state_dir": str(state), "sim_seed": 8}
    with by_bytewax(bench, tmp_path, other, "-w", "2") as process:
        out, _ = process.communicate(timeout=TIMEOUT_S)
    said = out.splitlines()
    assert process.returncode == 2, out
    assert "round 1 of the journal had" in said[-1]
    assert all(line.startswith("waxwing: ") for line in said), "no panic"


def test_a_stop_of_one_process_stops_the_whole_cluster(
    bench: Bench, whole: Run, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    addresses = ";".join(f"127.0.0.1:{free_port()}" for _ in range(2))
    table: dict[str, object] = {"state_dir": str(state), "snapshot_rounds": 1000, **SLOWLY}
    with (
        by_bytewax(bench, tmp_path, table, "-i", "0", "-a", addresses) as first,
        by_bytewax(bench, tmp_path, table, "-i", "1", "-a", addresses) as second,
    ):
        wait_for(lambda: journal_round(state) >= 30, "the moment to stop it", first)
        (second if lane_of(state, first) else first).send_signal(signal.SIGTERM)
        outs = [process.communicate(timeout=TIMEOUT_S)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outs
    assert manifest_round(state) == journal_round(state)
    assert is_left(state), "there was something left to do"
    in_processes(bench, state, 2).to_end()
    run = Run(bench, state, DAY)
    assert without_clock(run.alerts()) == without_clock(whole.alerts())


def test_another_number_of_threads_goes_on_where_the_last_stopped(
    bench: Bench, whole: Run, tmp_path: Path
) -> None:
    state, at = tmp_path / "state", 0
    for workers in (1, 2, 4):
        table: dict[str, object] = {"state_dir": str(state), **SLOWLY}
        with by_bytewax(bench, tmp_path, table, "-w", str(workers)) as process:
            wait_for(lambda n=at: journal_round(state) >= n + 20, "its rounds", process)
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, out
        assert manifest_round(state) == journal_round(state) > at
        at = journal_round(state)
    assert is_left(state), "there was something left to do"
    run = Run(bench, state, DAY)
    run.to_end()
    assert without_clock(run.alerts()) == without_clock(whole.alerts())


def lane_of(state: Path, process: subprocess.Popen[str]) -> bool:
    """Whether a process is the one that writes the journal."""
    files = {file.path for file in psutil.Process(process.pid).open_files()}
    return any(str(path) in files for path in (state / "journal" / "lane-00").iterdir())
