"""The door of a lane: what goes on, what is counted, what is refused; nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.admission import Admission, Admitted, origin_of
from dataflows.settings import load
from features.batch import EventBatch, concat_batches
from features.decode import decode
from features.events import event_types
from features.keys import hash_strings
from tests.streams import START_US, make_batch, stream

SECOND = 1_000_000


def door(**changed: Any) -> Admission:
    settings = load(None, {}, **changed)
    return Admission(settings, by_partition=settings.source == "kafka")


def through(door_: Admission, batches: dict[str, EventBatch], cut_us: int, round_: int = 0) -> Any:
    ids = {name: hash_strings(batch.frame["event_id"]) for name, batch in batches.items()}
    return door_.admit(batches, ids, cut_us, round_)


def payments(times: Any, first: int = 0) -> dict[str, EventBatch]:
    rows = [
        {"event_id": f"e{first + i}", "time_us": int(t), "card_id": "c", "amount": 1.5}
        for i, t in enumerate(times)
    ]
    return {"payment": make_batch("payment", rows, partitions=1)}


STEADY = START_US + np.arange(100) * SECOND
NEWEST = int(STEADY[-1])


def test_what_comes_too_late_becomes_a_letter_that_says_where_it_stood_and_what_it_was() -> None:
    gate = door(source="kafka", kafka_topic_prefix="test-", event_types=["payment"])
    assert not through(gate, payments(STEADY), NEWEST).refused
    late = payments([NEWEST - 61 * SECOND, NEWEST - 60 * SECOND], first=100)
    done = through(gate, late, NEWEST + 100_000, 2)
    (letter,) = done.refused
    assert (letter.reason, letter.topic, letter.partition, letter.offset, letter.round) == (
        "too_late", "test-payments", 0, 0, 2,
    )  # fmt: skip
    assert letter.detail == (
        "time_us: 61.000 s before the event-time clock 2023-11-14T22:01:39.000Z, late_s is 60"
    )
    assert done.batches["payment"].frame["event_id"].to_list() == ["e101"]
    again = decode(
        "payment", "json", [letter.raw], np.zeros(1, np.int32), np.zeros(1, np.int64),
        np.zeros(1, np.int64), {}, cut_time_us=NEWEST, past_us_max=10**12, future_us_max=10**12,
    )  # fmt: skip
    assert again.batch.frame.equals(late["payment"].frame[:1]), "the letter holds the whole event"


def test_what_comes_too_early_becomes_a_letter_of_its_own_reason() -> None:
    gate = door(early_s=30)
    through(gate, payments(STEADY), NEWEST)
    done = through(gate, payments([NEWEST + 31 * SECOND, NEWEST + 86_400 * SECOND], 100), NEWEST)
    assert [letter.reason for letter in done.refused] == ["too_early"] * 2
    assert done.refused[0].detail == (
        "time_us: 31.000 s beyond the event-time clock 2023-11-14T22:01:39.000Z, early_s is 30"
    )
    assert done.refused[0].topic == "simulator" and not done.batches
    assert done.clock_us == NEWEST
    ahead = through(gate, payments([NEWEST + 131 * SECOND], 200), NEWEST + 100 * SECOND)
    assert ahead.refused[0].detail.startswith("time_us: 31.000 s beyond the event-time clock 2023")


def test_a_repeat_is_a_duplicate_however_late_it_comes() -> None:
    gate = door()
    through(gate, payments(STEADY), NEWEST)
    done = through(gate, payments(STEADY[:10]), NEWEST)
    assert (done.duplicates, done.refused, done.batches) == (10, (), {})
    mixed = payments([NEWEST - 3600 * SECOND, NEWEST], first=50)
    assert (through(gate, mixed, NEWEST).duplicates, mixed["payment"].truth) == (2, None)


def test_an_event_that_was_refused_may_be_sent_again() -> None:
    gate = door(early_s=60)
    through(gate, payments(STEADY), NEWEST)
    late, early = payments([NEWEST - 3600 * SECOND], 100), payments([NEWEST + 70 * SECOND], 101)
    for _ in range(2):
        assert [one.reason for one in through(gate, late, NEWEST).refused] == ["too_late"]
        assert [one.reason for one in through(gate, early, NEWEST).refused] == ["too_early"]
    restored = door(early_s=60)
    restored.load(gate.full())
    for one in (gate, restored):
        through(one, payments(NEWEST + np.arange(1, 70) * SECOND, 200), NEWEST + 69 * SECOND)
        corrected = payments([NEWEST + 69 * SECOND], 100)
        for batches in (corrected, early):
            done = through(one, batches, NEWEST + 70 * SECOND)
            assert (done.duplicates, done.refused) == (0, ())
            assert done.batches["payment"].frame.equals(batches["payment"].frame)
            assert through(one, batches, NEWEST + 70 * SECOND).duplicates == 1, "now it is known"


def test_of_two_of_one_id_in_a_round_the_one_in_time_goes_on() -> None:
    gate = door()
    through(gate, payments(STEADY), NEWEST)
    late, right = payments([NEWEST - 3600 * SECOND], 100), payments([NEWEST], 100)
    both = {"payment": concat_batches([late["payment"], right["payment"]])}
    done = through(gate, both, NEWEST)
    assert (done.duplicates, done.refused) == (1, ())
    assert done.batches["payment"].time_us.tolist() == [NEWEST]


def test_without_bounds_nothing_is_refused() -> None:
    gate = door(late_s=0, early_s=0)
    through(gate, payments(STEADY), NEWEST)
    done = through(gate, payments([START_US - 10**12, NEWEST + 10**12], 100), NEWEST)
    assert not done.refused and len(done.batches["payment"]) == 2


@given(seed=st.integers(0, 10**6), stop=st.integers(0, 12), bound_s=st.sampled_from([1, 60, 900]))
def test_every_event_goes_on_or_is_counted_or_refused_resumed_or_not(
    seed: int, stop: int, bound_s: int
) -> None:
    rng = np.random.default_rng(seed)
    batches = stream(seed, 50)
    order = rng.permutation(12)
    gate, straight = door(late_s=bound_s), door(late_s=bound_s)
    saved = [gate.full()]
    sent = went = 0
    for number, which in enumerate(order.tolist()):
        if number == stop:
            gate = door(late_s=bound_s)
            for arrays in saved:
                gate.load(arrays)
        part = {
            name: batch.take(rng.permutation(np.arange(which, len(batch), 12))).in_order()
            for name, batch in batches.items()
            if len(batch) > which
        }
        cut_us = START_US + 4 * 3600 * SECOND + number
        done, same = through(gate, part, cut_us), through(straight, part, cut_us)
        saved.append(gate.delta())
        assert told(done) == told(same)
        sent += sum(map(len, part.values()))
        went += sum(map(len, done.batches.values())) + done.duplicates + len(done.refused)
    assert went == sent


def told(done: Admitted) -> Any:
    """All that a round came to."""
    ids = {name: batch.frame["event_id"].to_list() for name, batch in done.batches.items()}
    return ids, done.duplicates, done.refused, done.clock_us


def test_the_origin_of_every_source_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    named = load(None, {}, source="file", file_paths={"payment": path})
    assert origin_of(named, "payment") == str(path)
    assert origin_of(load(None, {}), "payment") == "simulator"
    topics = {
        origin_of(load(None, {}, source="kafka", kafka_topic_prefix="x."), name)
        for name in event_types()
    }
    assert topics == {f"x.{declared.topic}" for declared in event_types().values()}


@pytest.mark.parametrize("name", list(event_types()))
def test_a_refused_event_of_every_type_stands_in_its_letter_as_json(name: str) -> None:
    batch = stream(3, 20)[name]
    gate = door(late_s=1)
    through(gate, {name: batch}, int(batch.time_us.max()))
    fresh = batch.frame.with_columns(event_id=pl.col("event_id") + "-late").head(1)
    zero = np.zeros(1, np.int64)
    old = EventBatch(name, fresh, zero.astype(np.int32), zero, zero)
    (letter,) = through(gate, {name: old}, int(batch.time_us.max())).refused
    assert json.loads(letter.raw) == fresh.row(0, named=True)


@pytest.mark.parametrize("resumed", [False, True])
def test_repeats_in_other_partitions_of_a_lane_change_nothing_of_what_goes_on(
    resumed: bool, rng: np.random.Generator
) -> None:
    n, rounds = 4_000, 40
    rows = [
        {"event_id": f"e{i}", "time_us": START_US + i * SECOND // 2, "card_id": f"c{i % 7}",
         "amount": 1.5}
        for i in range(n)
    ]  # fmt: skip
    sent = make_batch("payment", rows, partitions=4)
    # One event in twenty comes again: in its round, a later one, or the last; anywhere.
    own = np.arange(n) * rounds // n
    again = np.flatnonzero(rng.random(n) < 0.05)
    when = np.minimum(own[again] + rng.integers(0, 12, len(again)), rounds - 1)
    elsewhere = (sent.partition[again] + rng.integers(1, 4, len(again))) % 4
    place = sent.offset[again] + n
    repeats = EventBatch("payment", sent.frame[again], elsewhere, place, sent.due_ns[again])
    assert np.count_nonzero((own[again] < rounds // 2) & (when >= rounds // 2)) > 10

    def went(with_repeats: bool) -> tuple[list[Any], int]:
        gate, duplicates, out = door(source="kafka", event_types=["payment"]), 0, []
        saved = [gate.full()]
        for number in range(rounds):
            if resumed and number == rounds // 2:
                gate = door(source="kafka", event_types=["payment"])
                for arrays in saved:
                    gate.load(arrays)
            part = sent.take(np.flatnonzero(own == number))
            if with_repeats:
                part = concat_batches([part, repeats.take(np.flatnonzero(when == number))])
            cut_us = int(sent.time_us[own == number].max())
            done = through(gate, {"payment": part.in_order()}, cut_us, number)
            saved.append(gate.delta())
            duplicates += done.duplicates
            assert not done.refused
            out.append(sorted(done.batches["payment"].frame["event_id"].to_list()))
        return out, duplicates

    once, none = went(False)
    twice, found = went(True)
    assert (none, found) == (0, len(again)) and twice == once
