"""The filter of repeats against a dictionary that does the same, slowly."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.events import event_types
from features.keys import group_of, hash_columns, hash_strings
from features.repeats import RepeatFilter, event_keys

HORIZON_US = 100


class Naive:
    """First sight of each id; a dictionary."""

    def __init__(self, horizon_us: int) -> None:
        self.horizon_us = horizon_us
        self.seen: dict[int, int] = {}

    def admit(self, ids: list[int], cut_time_us: int) -> list[bool]:
        fresh = []
        for key in ids:
            last = self.seen.get(key)
            new = last is None or cut_time_us - last > self.horizon_us
            fresh.append(new)
            if new:
                self.seen[key] = cut_time_us
        return fresh


def keys(values: list[int]) -> Any:
    return np.array(values, np.uint64)


ROUNDS = st.lists(
    st.tuples(st.integers(0, 60), st.lists(st.integers(1, 40), max_size=30)), max_size=20
)


@given(rounds=ROUNDS, stop=st.integers(0, 20), base=st.booleans())
def test_rounds_are_filtered_as_a_dictionary_would_resumed_or_not(
    rounds: list[tuple[int, list[int]]], stop: int, base: bool
) -> None:
    naive, filter_ = Naive(HORIZON_US), RepeatFilter(HORIZON_US)
    saved = []
    now_us = 1_000
    for i, (step_us, ids) in enumerate(rounds):
        if i == stop:
            restored = RepeatFilter(HORIZON_US)
            for arrays in saved:
                restored.load(arrays)
            filter_ = restored
        now_us += step_us
        assert filter_.admit(keys(ids), now_us).tolist() == naive.admit(ids, now_us)
        if i % 3 == 0 and base:
            saved = [filter_.full()]
        else:
            saved.append(filter_.delta())


def test_many_ids_over_many_horizons_stay_exact_and_small(rng: np.random.Generator) -> None:
    naive, filter_ = Naive(HORIZON_US), RepeatFilter(HORIZON_US)
    biggest = 0
    for round_ in range(120):
        ids = rng.integers(1, 60_000, 3_000, dtype=np.uint64)
        got = filter_.admit(ids, round_ * 20)
        assert got.tolist() == naive.admit(ids.tolist(), round_ * 20)
        biggest = max(biggest, filter_.memory_bytes)
    live = len({k for k, t in naive.seen.items() if 119 * 20 - t <= HORIZON_US})
    assert biggest <= 128 * 3_000 * 12
    assert len(filter_.full()["id"]) == live


@pytest.mark.parametrize("horizon_us", [2_000, 1_000_000])
def test_ids_are_found_while_a_table_is_being_moved(
    rng: np.random.Generator, horizon_us: int
) -> None:
    naive, filter_ = Naive(horizon_us), RepeatFilter(horizon_us)
    moving = 0
    for round_ in range(400):
        ids = rng.integers(1, 150_000, 500, dtype=np.uint64)
        got = filter_.admit(ids, round_ * 20)
        assert got.tolist() == naive.admit(ids.tolist(), round_ * 20), round_
        moving += filter_.memory_bytes > 16 * len(filter_._id)
    assert moving > 5, "no table was ever asked while it was moved"
    dumped = filter_.full()
    wanted = {k: t for k, t in naive.seen.items() if 399 * 20 - t <= horizon_us}
    assert dict(zip(dumped["id"].tolist(), dumped["us"].tolist(), strict=True)) == wanted


def test_a_repeat_within_one_round_is_found_too() -> None:
    filter_ = RepeatFilter(HORIZON_US)
    assert filter_.admit(keys([5, 6, 5, 5]), 10).tolist() == [True, True, False, False]


def test_the_horizon_counts_from_first_sight_to_the_microsecond() -> None:
    filter_ = RepeatFilter(HORIZON_US)
    assert filter_.admit(keys([5]), 1_000).tolist() == [True]
    assert filter_.admit(keys([5]), 1_060).tolist() == [False]
    assert filter_.admit(keys([5]), 1_100).tolist() == [False]
    assert filter_.admit(keys([5]), 1_101).tolist() == [True]


def test_a_horizon_of_nothing_lets_all_pass_and_keeps_nothing() -> None:
    filter_ = RepeatFilter(0)
    assert filter_.admit(keys([5, 5]), 1_000).all()
    assert len(filter_.full()["id"]) == len(filter_.delta()["id"]) == 0


def test_ids_that_share_their_low_bits_are_told_apart() -> None:
    filter_ = RepeatFilter(HORIZON_US)
    ids = np.arange(1, 200, dtype=np.uint64) << np.uint64(32)
    assert filter_.admit(ids, 1_000).all()
    assert not filter_.admit(ids, 1_000).any()


def test_a_pass_that_takes_no_deltas_does_not_keep_every_id() -> None:
    filter_ = RepeatFilter(HORIZON_US)
    for round_ in range(60):
        ids = np.arange(round_ * 2_000 + 1, round_ * 2_000 + 2_001, dtype=np.uint64)
        assert filter_.admit(ids, 1_000 + round_ * 50).all()
    assert len(filter_.delta()["id"]) < 20_000


def test_one_id_in_two_event_types_is_two_events() -> None:
    ids = hash_strings(pl.Series(["a", "b", "c"]))
    salted = [event_keys(name, ids) for name in event_types()]
    assert len(np.unique(np.concatenate(salted))) == 3 * len(event_types())
    unlucky = event_keys("payment", event_keys("payment", np.zeros(1, np.uint64)))
    assert unlucky.all(), "0 marks a free slot"


def fnv_mix(text: str) -> int:
    """FNV-1a and MurmurHash3's finaliser, by the book."""
    if not text:
        return 0
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 % (1 << 64)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h = (h ^ h >> 33) * factor % (1 << 64)
    return h ^ h >> 33 or 1


@given(texts=st.lists(st.none() | st.text(max_size=12)), low=st.integers(0, 5))
def test_keys_of_strings_are_those_of_the_book_in_any_slice(
    texts: list[str | None], low: int
) -> None:
    column = pl.Series("id", texts, pl.String)
    wanted = [0 if t is None else fnv_mix(t) for t in texts]
    assert hash_strings(column).tolist() == wanted
    assert hash_strings(column[low:]).tolist() == wanted[low:]
    assert hash_strings(column[:low].append(column[low:])).tolist() == wanted


def test_keys_never_change_between_versions() -> None:
    frozen = [0x82A2A958A9BECE5B, 0xE3B169A97C0A6869, 0x9958ACD16716F91C]
    assert hash_strings(pl.Series(["a", "card_000001", "z\u00fcrich"])).tolist() == frozen


def test_an_entity_of_two_parts_needs_both_in_their_order() -> None:
    frame = pl.DataFrame({"a": ["x", "y", "x", None], "b": ["y", "x", "", "y"]})
    got = hash_columns(frame, ("a", "b"))
    assert got[2] == got[3] == 0
    assert got[0] != got[1]
    assert 0 not in got[:2]


@pytest.mark.parametrize("groups", [1, 16, 64])
def test_keys_spread_evenly_over_groups(groups: int) -> None:
    many = hash_strings(pl.Series([f"card_{i:06d}" for i in range(64_000)]))
    counts = np.bincount(group_of(many, groups), minlength=groups)
    assert len(counts) == groups
    assert counts.max() < 1.2 * counts.mean()
