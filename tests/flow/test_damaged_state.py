"""State files that lie, from outside: refused by checksum, the one before serves, said aloud."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dataflows.state.manifest import read_manifest
from tests.flow.harness import Bench, Run, call, counts_of

DAY = {
    "sim_seconds": 6,
    "sim_speed": 7200.0,
    "round_rows_max": 2000,
    "snapshot_rounds": 3,
    "deltas_max": 2,
}
"""43 rounds, a snapshot every third, every third snapshot a base."""


@pytest.fixture(scope="module")
def stopped(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State of a run that was killed after several bases."""
    state = tmp_path_factory.mktemp("stopped") / "state"

    def far_enough() -> bool:
        found = read_manifest(state) if state.exists() else None
        return found is not None and found.round >= 24

    assert Run(bench, state, DAY).until(far_enough, hold=36) == -signal.SIGKILL
    return state


@pytest.fixture(scope="module")
def whole(bench: Bench, stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, gone on with unhurt."""
    state = tmp_path_factory.mktemp("whole") / "state"
    shutil.copytree(stopped, state)
    run = Run(bench, state, DAY)
    run.to_end()
    return run


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def _newest(state: Path, shard: str, kind: str) -> Path:
    """The newest file of a kind up to the manifest's round."""
    manifest = read_manifest(state)
    assert manifest is not None
    files = sorted((state / "deltas" / shard).glob(f"*.{kind}"))
    return [path for path in files if int(path.stem) <= manifest.round][-1]


@pytest.mark.parametrize(
    ("shard", "kind", "damage"),
    [
        ("g003", "delta", _flip_a_bit),
        ("g005", "base", _cut_short),
        ("in00", "log", _flip_a_bit),
        ("g000", "base", Path.unlink),
    ],
)
def test_a_damaged_state_file_gives_way_to_the_one_before_it(
    bench: Bench,
    stopped: Path,
    whole: Run,
    tmp_path: Path,
    shard: str,
    kind: str,
    damage: Callable[[Path], None],
) -> None:
    state = tmp_path / "state"
    shutil.copytree(stopped, state)
    manifest = read_manifest(state)
    damaged = _newest(state, shard, kind)
    damage(damaged)
    run = Run(bench, state, DAY)
    done = call("run", *run.options(), cwd=bench.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert manifest is not None and shard in said
    assert "going on from round" in said and "cut again from the journal" in said
    begun_at = int(said.partition("going on from round ")[2].split()[0])
    assert 0 < begun_at < manifest.round
    assert run.alerts() == whole.alerts(), "line by line, as if nothing had been damaged"
    again = Run(bench, state, DAY).to_end()
    assert counts_of(again) == counts_of(Run(bench, whole.state_dir, DAY).to_end())


def test_where_the_state_of_no_manifest_is_whole_it_stops_with_one_sentence(
    bench: Bench, stopped: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    shutil.copytree(stopped, state)
    for path in (state / "deltas" / "g002").glob("*.base"):
        _flip_a_bit(path)
    before = {path: path.stat().st_mtime_ns for path in (state / "deltas").rglob("*.*")}
    done = call("run", *Run(bench, state, DAY).options(), cwd=bench.folder)
    assert done.returncode == 2
    assert "g002" in done.stderr and "damaged (checksum)" in done.stderr
    assert "Traceback" not in done.stderr
    assert {p: p.stat().st_mtime_ns for p in (state / "deltas").rglob("*.*")} == before
