"""State that is appended to: what is needed comes back, no more is kept, holes are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataflows.state.logs import LogStore
from features.errors import StateError


def fill(store: LogStore, rounds: range, horizon: int = 30) -> None:
    """A file every round, of one number; the round is its time."""
    for round_ in rounds:
        store.write(round_, {"id": np.array([round_])}, round_, round_ - horizon)


def held(store: LogStore, round_: int) -> list[int]:
    return [int(arrays["id"][0]) for arrays in store.load(round_)]


def test_what_is_needed_comes_back_oldest_first_and_no_more(tmp_path: Path) -> None:
    store = LogStore(tmp_path / "in00")
    assert store.load(0) == []
    fill(store, range(10, 200, 10))
    assert held(LogStore(tmp_path / "in00"), 190) == [160, 170, 180, 190]
    assert held(store, 100) == [70, 80, 90, 100]
    assert held(store, 10) == [10]


def test_files_no_restart_can_need_are_removed_and_no_others(tmp_path: Path) -> None:
    store = LogStore(tmp_path)
    fill(store, range(10, 200, 10))
    store.forget_before(155)
    assert held(store, 150) == [120, 130, 140, 150]
    assert min(int(path.stem) for path in tmp_path.iterdir()) == 120
    again = LogStore(tmp_path)
    again.write(200, {"id": np.array([200])}, 200, 170)
    assert held(again, 200) == [170, 180, 190, 200]


def test_what_a_crash_left_behind_is_removed(tmp_path: Path) -> None:
    store = LogStore(tmp_path)
    fill(store, range(10, 60, 10))
    (tmp_path / "000000000060.log.tmp").write_bytes(b"half")
    store.forget_after(30)
    assert sorted(int(p.stem) for p in tmp_path.iterdir()) == [10, 20, 30]
    assert held(store, 30) == [10, 20, 30]


@pytest.mark.parametrize("lost", [160, 170, 180, 190])
@pytest.mark.parametrize("how", ["gone", "cut", "bit"])
def test_a_lost_or_damaged_file_that_is_needed_is_found(
    tmp_path: Path, lost: int, how: str
) -> None:
    fill(LogStore(tmp_path), range(10, 200, 10))
    path = tmp_path / f"{lost:012d}.log"
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-1])
    else:
        data[-1] ^= 1
        path.write_bytes(data)
    with pytest.raises(StateError, match=r"missing|damaged|newest file is of round 180"):
        LogStore(tmp_path).load(190)
    assert held(LogStore(tmp_path), 150) == [120, 130, 140, 150]


def test_a_run_that_has_ended_serves_any_later_round(tmp_path: Path) -> None:
    store = LogStore(tmp_path)
    store.write(10, {"id": np.array([10])}, 10, 0, last=True)
    assert held(store, 50) == [10]
    with pytest.raises(StateError, match="nothing up to it"):
        LogStore(tmp_path / "empty").load(10)
