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
from features.repeats import TICKS_MAX, RepeatFilter, event_keys

HORIZON_US = 100


class Naive:
    """First sight of each id; a dictionary. Times are told apart to a 240th of the horizon."""

    def __init__(self, horizon_us: int) -> None:
        self.step_us = max(1, -(-horizon_us // TICKS_MAX))
        self.ticks = -(-horizon_us // self.step_us)
        self.seen: dict[int, int] = {}

    def admit(self, ids: list[int], cut_time_us: int) -> list[bool]:
        fresh, now = [], cut_time_us // self.step_us
        for key in ids:
            last = self.seen.get(key)
            new = last is None or now - last > self.ticks
            fresh.append(new)
            if new:
                self.seen[key] = now
        return fresh

    def known(self, ids: list[int], cut_time_us: int) -> list[bool]:
        now = cut_time_us // self.step_us
        return [k in self.seen and now - self.seen[k] <= self.ticks for k in ids]

    def live(self, cut_time_us: int) -> dict[int, int]:
        now = cut_time_us // self.step_us
        return {k: t * self.step_us for k, t in self.seen.items() if now - t <= self.ticks}


def dumped(arrays: dict[str, Any]) -> dict[int, int]:
    """Ids and the times they were seen at."""
    times = np.repeat(arrays["us"], arrays["n"]).tolist()
    return dict(zip(arrays["id"].tolist(), times, strict=True))


def keys(values: list[int]) -> Any:
    return np.array(values, np.uint64)


ROUNDS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 20, 60, 99, 100, 101, 1_000]) | st.integers(0, 300),
        st.lists(st.integers(1, 40), max_size=30),
    ),
    max_size=20,
)


@given(
    rounds=ROUNDS,
    stop=st.integers(0, 20),
    base=st.booleans(),
    horizon_us=st.sampled_from([7, HORIZON_US, 240, 241, 3_000]),
)
def test_rounds_are_filtered_as_a_dictionary_would_resumed_or_not(
    rounds: list[tuple[int, list[int]]], stop: int, base: bool, horizon_us: int
) -> None:
    naive, filter_ = Naive(horizon_us), RepeatFilter(horizon_us)
    saved: list[Any] = []
    now_us = 1_000
    for i, (step_us, ids) in enumerate(rounds):
        if i == stop:
            restored = RepeatFilter(horizon_us)
            for arrays in saved:
                restored.load(arrays)
            filter_ = restored
        now_us += step_us
        asked = [key + number % 2 for number, key in enumerate(ids)]
        for _ in range(2):
            assert filter_.known(keys(asked), now_us).tolist() == naive.known(asked, now_us)
        assert filter_.admit(keys(ids), now_us).tolist() == naive.admit(ids, now_us)
        assert filter_.known(keys(asked), now_us).tolist() == naive.known(asked, now_us)
        if i % 3 == 0 and base:
            saved = [filter_.full()]
        else:
            saved.append(filter_.delta())


def test_many_ids_over_many_horizons_stay_exact_and_small(rng: np.random.Generator) -> None:
    horizon_us = 100_000
    naive, filter_ = Naive(horizon_us), RepeatFilter(horizon_us)
    biggest = most = 0
    for round_ in range(300):
        ids = rng.integers(1, 2_000_000, 5_000, dtype=np.uint64)
        now_us = round_ * 1_000
        got = filter_.admit(ids, now_us)
        assert got.tolist() == naive.admit(ids.tolist(), now_us)
        biggest, most = max(biggest, filter_.memory_bytes), max(most, len(filter_))
    live = naive.live(299_000)
    assert len(live) > 350_000
    assert most < 1.2 * len(live), "what has passed is swept out"
    assert biggest <= 34 * most, "a table of 22 bytes an event, and one of half of it being moved"
    assert filter_.memory_bytes <= 23 * len(live)
    assert dumped(filter_.full()) == live


@pytest.mark.parametrize("horizon_us", [2_000, 1_000_000])
def test_ids_are_found_while_a_table_is_being_moved(
    rng: np.random.Generator, horizon_us: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.repeats._MOVED_MIN", 64)
    naive, filter_ = Naive(horizon_us), RepeatFilter(horizon_us)
    moving = 0
    for round_ in range(500):
        ids = rng.integers(1, 900_000, 1_500, dtype=np.uint64)
        asked = np.append(ids[::9], rng.integers(1, 900_000, 150, dtype=np.uint64))
        there = filter_.known(asked, round_ * 20)
        assert there.tolist() == naive.known(asked.tolist(), round_ * 20), round_
        got = filter_.admit(ids, round_ * 20)
        assert got.tolist() == naive.admit(ids.tolist(), round_ * 20), round_
        moving += filter_.memory_bytes > filter_._table.bytes
    assert moving > 2, "no table was ever asked while it was moved"
    assert dumped(filter_.full()) == naive.live(499 * 20)


def test_entries_that_find_no_room_near_their_place_get_a_larger_table() -> None:
    """More ids of one bucket than a bucket and all it may spill into hold."""
    filter_, naive = RepeatFilter(HORIZON_US), Naive(HORIZON_US)
    ids = (np.arange(1, 2_000, dtype=np.uint64) << np.uint64(14)) | np.uint64(77)
    for now_us in (1_000, 1_050, 1_101):
        assert filter_.admit(ids, now_us).tolist() == naive.admit(ids.tolist(), now_us)
    assert dumped(filter_.full()) == naive.live(1_101)


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
    for round_ in range(600):
        ids = np.arange(round_ * 200 + 1, round_ * 200 + 201, dtype=np.uint64)
        assert filter_.admit(ids, 1_000 + round_ * 50).all()
    assert len(filter_.delta()["id"]) < 600 * 200 // 2


def test_an_id_far_past_the_horizon_is_new_whatever_its_time_modulo_255() -> None:
    for leap in range(101, 800):
        filter_ = RepeatFilter(HORIZON_US)
        assert filter_.admit(keys([5]), 1_000).all()
        assert not filter_.admit(keys([6, 5]), 1_100)[1]
        assert filter_.admit(keys([5]), 1_000 + leap).all(), leap


def test_one_id_in_two_event_types_is_two_events() -> None:
    ids = hash_strings(pl.Series(["a", "b", "c"]))
    salted = [event_keys(name, ids) for name in event_types()]
    assert len(np.unique(np.concatenate(salted))) == 3 * len(event_types())


def test_a_key_of_0_is_a_key_like_any_other() -> None:
    filter_ = RepeatFilter(HORIZON_US)
    assert filter_.admit(keys([0, 1, 0]), 10).tolist() == [True, True, False]


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
