"""Base states: kept at their distance, with all they are made of, and let go after their time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataflows.state.bases import base_states, drop_bases_after, held_rounds, keep_base
from dataflows.state.deltas import ShardStore
from dataflows.state.logs import LogStore
from dataflows.state.manifest import Manifest

MINUTE_US = 60_000_000


def keep(folder: Path, round_: int, minute: int, retention_h: float = 1.0) -> None:
    keep_base(folder, Manifest(round_, 2, 1, "c"), minute * MINUTE_US, 900.0, retention_h)


def test_one_is_kept_each_quarter_of_an_hour(tmp_path: Path) -> None:
    for minute in range(0, 50, 5):
        keep(tmp_path, minute * 10, minute)
    assert held_rounds(tmp_path) == [0, 150, 300, 450]
    assert [base.manifest().round for base in base_states(tmp_path)] == [0, 150, 300, 450]


def test_the_whole_of_the_retention_can_be_replayed_and_no_more(tmp_path: Path) -> None:
    for minute in range(0, 200, 5):
        keep(tmp_path, minute * 10, minute)
    assert [base.cut_time_us // MINUTE_US for base in base_states(tmp_path)] == [
        135, 150, 165, 180, 195,
    ]  # fmt: skip


def test_none_is_kept_where_none_is_wanted(tmp_path: Path) -> None:
    keep(tmp_path, 1, 1)
    keep(tmp_path, 2, 2, retention_h=0.0)
    assert base_states(tmp_path) == []


def test_those_of_rounds_that_are_computed_anew_are_dropped(tmp_path: Path) -> None:
    for minute in (0, 15, 30):
        keep(tmp_path, minute, minute)
    drop_bases_after(tmp_path, 15)
    assert held_rounds(tmp_path) == [0, 15]


def test_state_of_a_held_round_stays_and_what_lies_between_goes(tmp_path: Path) -> None:
    store = ShardStore(tmp_path / "g000", 2)
    for round_ in range(1, 13):
        kind = "base" if round_ % 3 == 1 else "delta"
        store.write(round_, kind, {"x": np.array([round_])}, {})
    store.forget_before(11, [2, 6])
    assert sorted(int(p.stem) for p in store.folder.iterdir()) == [1, 2, 4, 5, 6, 10, 11, 12]
    for round_ in (2, 6, 11, 12):
        base, deltas, _ = store.load(round_)
        assert base is not None
        assert (deltas[-1]["x"] if deltas else base["x"]).tolist() == [round_]
    store.forget_before(12, [6])
    assert sorted(int(p.stem) for p in store.folder.iterdir()) == [4, 5, 6, 10, 11, 12]


def test_what_a_filter_had_seen_at_a_held_round_stays(tmp_path: Path) -> None:
    store = LogStore(tmp_path)
    for round_ in range(10, 210, 10):
        store.write(round_, {"id": np.array([round_])}, round_, round_ - 20)
    store.forget_before(200, [50, 120])
    assert sorted(int(p.stem) for p in tmp_path.iterdir()) == [
        30, 40, 50, 100, 110, 120, 180, 190, 200,
    ]  # fmt: skip
    again = LogStore(tmp_path)
    assert [int(a["id"][0]) for a in again.load(50)] == [30, 40, 50]
    assert [int(a["id"][0]) for a in again.load(200)] == [180, 190, 200]
    again.write(210, {"id": np.array([210])}, 210, 190)
    again.forget_before(210, [120])
    assert sorted(int(p.stem) for p in tmp_path.iterdir()) == [100, 110, 120, 190, 200, 210]
