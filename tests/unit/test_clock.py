"""The event-time clock of a lane: kept up by the stream, moved by no one event or producer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import events as events_module
from features.batch import EventBatch, concat_batches
from features.clock import IN_TIME, TOO_EARLY, TOO_LATE, LaneClock
from features.events import built_in_types, event_code, event_type, event_types
from tests.naive_clock import NaiveClock
from tests.streams import START_US, make_batch

SECOND = 1_000_000
MINUTE = 60 * SECOND
YEAR = 365 * 86_400 * SECOND
WORDS = {"ok": IN_TIME, "late": TOO_LATE, "early": TOO_EARLY}


def events(times: Any, name: str = "payment", partition: int = 0) -> EventBatch:
    """Events of one type and partition at the given times."""
    rows = [{"event_id": str(i), "time_us": int(t)} for i, t in enumerate(times)]
    batch = make_batch(name, rows)
    where = np.full(len(batch), partition, np.int32)
    return EventBatch(name, batch.frame, where, batch.offset, batch.due_ns)


def clock(by_partition: bool = False) -> LaneClock:
    return LaneClock(MINUTE, MINUTE, by_partition)


def fed(times: Any, size: int = 5, cut_us: int | None = None) -> LaneClock:
    """A clock that has taken in events in this order, `size` a round."""
    made, newest = clock(), 0
    for i in range(0, len(times), size):
        part = times[i : i + size]
        newest = max(newest, int(max(part)))
        made.advance({"payment": events(part)}, newest if cut_us is None else cut_us)
    return made


def batches_of(timed: list[tuple[int, int]]) -> dict[str, EventBatch]:
    """Places 0 and 1 are partitions of payments, 2 is partition 0 of logins."""
    found = {}
    for name, places in (("payment", (0, 1)), ("login", (2,))):
        parts = [events([t for p, t in timed if p == at], name, at % 2) for at in places]
        if any(len(part) for part in parts):
            found[name] = concat_batches([part for part in parts if len(part)])
    return found


TIMES = st.one_of(st.integers(0, 300), st.integers(0, 5), st.just(100_000))
ROUNDS = st.lists(
    st.tuples(
        st.integers(-3, 200),
        st.lists(st.tuples(st.integers(0, 2), TIMES), max_size=90),
    ),
    max_size=14,
)  # fmt: skip


@given(rounds=ROUNDS, stop=st.integers(0, 14), by_partition=st.booleans())
def test_the_clock_is_what_its_docstring_says_resumed_or_not(
    rounds: list[tuple[int, list[tuple[int, int]]]], stop: int, by_partition: bool
) -> None:
    ours, naive = clock(by_partition), NaiveClock(MINUTE, MINUTE)
    cut_us = START_US
    for i, (step_s, sent) in enumerate(rounds):
        if i == stop:
            saved, ours = ours.dump(), clock(by_partition)
            ours.load(saved)
        cut_us += step_s * SECOND
        # A round's events lie around its cut, some far ahead; two types, partition 0 or 1.
        timed = [(p, cut_us + (t - 250) * SECOND) for p, t in sent]
        admitted: dict[str, EventBatch] = {}
        told: list[tuple[int, int]] = []
        for name, batch in batches_of(timed).items():
            verdict = ours.judge(batch, cut_us)
            places = batch.partition + 10 * (name == "login") if by_partition else 0 * batch.offset
            expected = [
                WORDS[naive.judge(int(p), int(t), cut_us)]
                for p, t in zip(places, batch.time_us, strict=True)
            ]
            assert verdict.tolist() == expected
            keep = np.flatnonzero(verdict == IN_TIME)
            if len(keep):
                admitted[name] = batch.take(keep)
                told += list(zip(places[keep].tolist(), batch.time_us[keep].tolist(), strict=True))
        assert ours.advance(admitted, cut_us) == naive.advance(told, cut_us)


def test_a_steady_stream_moves_the_clock_to_its_newest_event() -> None:
    times = START_US + np.arange(400) * SECOND // 3
    assert fed(times).clock_us == times[-1]
    assert fed(times, size=400).clock_us == times[-1]


def test_a_stream_shuffled_within_a_minute_moves_it_to_the_newest_event_of_each_round(
    rng: np.random.Generator,
) -> None:
    times = START_US + np.arange(2000) * SECOND // 2
    shuffled = times[np.argsort(times + rng.uniform(0, MINUTE, len(times)), kind="stable")]
    ours = clock()
    behind = []
    for i in range(0, len(shuffled), 10):
        part = shuffled[i : i + 10]
        assert not ours.judge(events(part), int(shuffled[: i + 10].max())).any()
        ours.advance({"payment": events(part)}, int(shuffled[: i + 10].max()))
        behind.append(int(shuffled[: i + 10].max()) - ours.clock_us)
    assert np.mean(np.array(behind[10:]) == 0) > 0.9
    assert max(behind[10:]) <= 20 * SECOND


@pytest.mark.parametrize("ahead_us", [30 * SECOND, 86_400 * SECOND, YEAR])
def test_one_event_ahead_of_all_others_does_not_move_it(ahead_us: int) -> None:
    times = START_US + np.arange(200) * SECOND // 2
    right, wrong = fed(times[:100]), fed(times[:100])
    wrong.advance({"payment": events([times[99] + ahead_us])}, int(times[99] + ahead_us))
    assert abs(wrong.clock_us - right.clock_us) <= 17 * SECOND
    for i in range(100, 200, 5):
        part = events(times[i : i + 5])
        assert not wrong.judge(part, int(times[i + 4])).any(), "the others are in time"
        wrong.advance({"payment": part}, int(max(times[99] + ahead_us, times[i + 4])))
    assert wrong.clock_us == times[-1]


@pytest.mark.parametrize("off_us", [-3600 * SECOND, -40 * SECOND, 40 * SECOND, YEAR])
def test_a_producer_with_a_wrong_clock_makes_nobody_else_late(
    rng: np.random.Generator, off_us: int
) -> None:
    times = START_US + np.arange(3000) * SECOND // 10
    wrong = rng.random(3000) < 0.2
    ours = clock()
    for i in range(0, 3000, 50):
        part, off = times[i : i + 50], wrong[i : i + 50]
        batch = events(part + off * off_us)
        late = ours.judge(batch, int(part.max() + max(off_us, 0))) == TOO_LATE
        assert not np.isin(batch.time_us[late], times[i : i + 50][~off]).any()
        kept = batch.take(np.flatnonzero(~late))
        ours.advance({"payment": kept}, int(part.max() + max(off_us, 0)))
        if i >= 100:
            assert -7 * SECOND <= ours.clock_us - part.max() <= 40 * SECOND


def test_an_idle_partition_neither_holds_the_clock_nor_makes_its_next_event_late() -> None:
    ours = clock(by_partition=True)
    first = [START_US + i * SECOND for i in range(20)]
    for partition in (0, 1):
        ours.advance({"payment": events(first, partition=partition)}, first[-1])
    hour_us = START_US + 3600 * SECOND
    ours.advance({"payment": events([hour_us + i * SECOND for i in range(60)])}, hour_us + MINUTE)
    assert ours.clock_us == hour_us + 59 * SECOND
    behind = events([START_US + 30 * SECOND], partition=1)
    assert ours.judge(behind, hour_us + MINUTE).tolist() == [IN_TIME]
    assert ours.judge(events([START_US + 30 * SECOND]), hour_us + MINUTE).tolist() == [TOO_LATE]


def test_silence_passes_time_and_a_break_of_the_process_does_not() -> None:
    times = START_US + np.arange(100) * SECOND
    ours, step_us = clock(), 100_000
    for i in range(0, 100, 10):
        ours.advance({"payment": events(times[i : i + 10])}, int(times[i + 9] + 2 * SECOND))
    newest = int(times[-1])
    cut_us = newest + 2 * SECOND
    for passed in range(1, 51):
        cut_us += step_us
        expected = newest + passed * step_us
        assert ours.advance({}, cut_us) == expected <= cut_us
    cut_us += 3600 * SECOND
    assert ours.advance({}, cut_us) == expected + step_us, "an hour in which nobody listened"
    assert ours.advance({}, cut_us + step_us) == expected + 2 * step_us
    late = events([newest - 59 * SECOND, newest - 61 * SECOND])
    assert sorted(ours.judge(late, cut_us).tolist()) == [IN_TIME, TOO_LATE]


def test_nothing_is_refused_and_no_time_told_before_sixteen_events() -> None:
    ours, cut_us = clock(), START_US + 3600 * SECOND
    for i in range(15):
        assert not ours.judge(events([START_US, cut_us + YEAR]), cut_us).any()
        assert ours.advance({"payment": events([START_US + i * SECOND])}, cut_us) == 0
    assert ours.advance({"payment": events([START_US + 15 * SECOND])}, cut_us) == (
        START_US + 15 * SECOND
    )
    assert ours.judge(events([cut_us + YEAR]), cut_us).tolist() == [TOO_EARLY]


def test_the_bound_is_kept_to_the_microsecond() -> None:
    times = START_US + np.arange(100) * SECOND
    ours, newest = fed(times), int(times[-1])
    at = events([newest - MINUTE - 1, newest - MINUTE, newest + MINUTE, newest + MINUTE + 1])
    assert ours.judge(at, newest).tolist() == [TOO_LATE, IN_TIME, IN_TIME, TOO_EARLY]
    assert ours.late_by_us(at).tolist() == [MINUTE + 1, MINUTE, -MINUTE, -MINUTE - 1]
    assert not ours.judge(at, newest + 1)[1:].any(), "nothing is early that its round has reached"
    off = LaneClock(0, 0)
    off.load(ours.dump())
    assert not off.judge(at, newest).any()


def test_events_of_one_round_do_not_make_each_other_late() -> None:
    times = START_US + np.arange(100) * MINUTE
    ours = clock()
    assert not ours.judge(events(times), int(times[-1])).any()
    ours.advance({"payment": events(times)}, int(times[-1]))
    assert ours.judge(events([times[-3]]), int(times[-1])).tolist() == [TOO_LATE]


def test_the_clock_never_goes_back() -> None:
    times = START_US + np.arange(100) * SECOND
    ours = fed(times)
    newest = ours.clock_us
    for _ in range(20):
        old = times[:5] - 40 * SECOND
        assert ours.advance({"payment": events(old)}, newest) == newest


def two_places() -> LaneClock:
    """Clocks of partition 0 of payments and of partition 1 of logins, an hour apart."""
    times = START_US + np.arange(20) * SECOND
    ours = clock(by_partition=True)
    ours.advance({"payment": events(times)}, int(times[-1]) + 3600 * SECOND)
    ours.advance(
        {"login": events(times + 3600 * SECOND, "login", 1)}, int(times[-1]) + 3600 * SECOND
    )
    return ours


def late_now(ours: LaneClock) -> list[int]:
    """Verdicts on old events of five partitions: only the two places have a clock."""
    places = [("payment", 0), ("payment", 1), ("login", 0), ("login", 1), ("metric", 0)]
    old, cut_us = START_US - 3 * MINUTE, START_US + 7200 * SECOND
    return [ours.judge(events([old], *place), cut_us).tolist()[0] for place in places]


@pytest.fixture
def codes_anew() -> Iterator[None]:
    """Codes of event types are found out anew within the test, and after it."""
    event_code.cache_clear()
    yield
    event_code.cache_clear()


def test_an_event_type_that_comes_to_stand_before_others_takes_over_no_clock(
    codes_anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = two_places().dump()
    event_code.cache_clear()
    types = {"log": event_type("app_log"), **event_types()}
    monkeypatch.setattr(events_module, "event_types", lambda: types)
    assert event_code("payment") == 1
    again = clock(by_partition=True)
    again.load(saved)
    assert late_now(again) == late_now(two_places()) == [TOO_LATE, 0, 0, TOO_LATE, 0]
    assert (again.clock_us, again.due_us) == (two_places().clock_us, two_places().due_us)


def test_clocks_that_were_saved_by_code_are_those_of_the_shipped_event_types() -> None:
    saved = two_places().dump()
    heads = saved.pop("clock_places")
    saved.pop("clock_names")
    keys = np.array([event_code("payment") << 32, event_code("login") << 32 | 1])
    old = clock(by_partition=True)
    old.load(saved | {"clock_places": np.column_stack((keys, heads[:, 2:]))})
    assert late_now(old) == late_now(two_places())
    keys[1] = len(built_in_types()) << 32
    old.load(saved | {"clock_places": np.column_stack((keys, heads[:, 2:]))})
    assert late_now(old) == [TOO_LATE, 0, 0, 0, 0], "whose it was is not known"
    whole = fed(START_US + np.arange(20) * SECOND)
    saved = whole.dump()
    heads = saved.pop("clock_places")
    saved.pop("clock_names")
    alone = clock()
    alone.load(saved | {"clock_places": np.column_stack((np.array([-1]), heads[:, 2:]))})
    assert late_now(alone) == late_now(whole) == [TOO_LATE] * 5
