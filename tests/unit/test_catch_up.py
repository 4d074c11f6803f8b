"""Partitions that are behind are read together, in the order of event time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest

from dataflows.sources.catch_up import FAR_US, WAIT_S, CatchUp, Pace, Place, slack_of

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
YEAR_US = 8766 * HOUR_US


@dataclass(frozen=True)
class Record:
    """A record that is kept."""

    at: int
    time_us: int

    def offset(self) -> int:
        """Its place in the partition."""
        return self.at


class Reader:
    """Partitions on a broker, a lane that reads them, and what it has taken."""

    def __init__(self, logs: dict[Place, list[int]], lane: int = 0, pace: Pace | None = None,
                 slack_us: int = MINUTE_US // 2):  # fmt: skip
        self.logs, self.now_s = logs, 0.0
        self.at = dict.fromkeys(logs, 0)
        self.fetched = dict.fromkeys(logs, 0)
        self.held: dict[Place, deque[Record]] = {place: deque() for place in logs}
        self.taken: list[list[tuple[Place, int]]] = []
        self.come_us: list[int] = []
        self.waiting: set[Place] = set()
        self.catch_up = CatchUp(lane, pace or Pace(), slack_us)
        self.catch_up.aim({place: len(log) for place, log in logs.items()}, self.now_s)

    def fetch(self, place: Place, many: int) -> None:
        """Let some records of a partition come."""
        log, first = self.logs[place], self.fetched[place]
        new = [Record(i, log[i]) for i in range(first, min(first + many, len(log)))]
        self.fetched[place] += len(new)
        self.held[place].extend(new)
        assert self.catch_up.unknown(place, self.held[place]) == len(new)
        times = np.array([r.time_us for r in new], np.int64)
        offsets = np.array([r.at for r in new], np.int64)
        self.catch_up.learn(place, offsets, times, self.now_s)

    def take(self, rows_max: int = 1_000) -> list[tuple[Place, int]]:
        """What a round takes."""
        held = {place: len(rows) for place, rows in self.held.items()}
        chosen = self.catch_up.choose(held, self.at.__getitem__, self.waiting, rows_max, self.now_s)
        found = []
        for place, many in chosen.items():
            for _ in range(many):
                record = self.held[place].popleft()
                self.at[place] = record.at + 1
                found.append((place, record.time_us))
        self.taken.append(found)
        self.come_us.append(self.catch_up.come_us(self.now_s))
        return found

    def run(self, rng: np.random.Generator, rows_max: int, most: int) -> None:
        """Fetch at random and take until all is read."""
        rounds = 0
        while self.catch_up.behind:
            assert (rounds := rounds + 1) < 10_000
            place = list(self.logs)[int(rng.integers(len(self.logs)))]
            self.fetch(place, int(rng.integers(1, most)))
            self.take(rows_max)

    @property
    def spread_us(self) -> int:
        """How much older a row was than one of a round before, at most."""
        newest, worst = -(1 << 62), 0
        for found in self.taken:
            times = [t for _, t in found]
            worst = max([worst, *(newest - t for t in times)])
            newest = max([newest, *times])
        return worst


A, B, C = ("payments", 0), ("payments", 1), ("logins", 0)


def steady(begin_us: int, end_us: int, many: int) -> list[int]:
    return np.linspace(begin_us, end_us, many).astype(int).tolist()


def test_uneven_partitions_are_taken_in_the_order_of_event_time(rng: np.random.Generator) -> None:
    logs = {A: steady(0, 3 * HOUR_US, 900), B: steady(2 * HOUR_US, 3 * HOUR_US, 300),
            C: steady(HOUR_US, 3 * HOUR_US, 50)}  # fmt: skip
    reader = Reader(logs)
    reader.run(rng, rows_max=40, most=80)
    assert reader.at == {place: len(log) for place, log in logs.items()}
    assert reader.spread_us == 0


def test_a_partition_that_gives_nothing_holds_up_for_a_while_only() -> None:
    reader = Reader({A: steady(0, HOUR_US, 100), B: steady(0, HOUR_US, 100)})
    reader.fetch(A, 100)
    assert reader.take() == []
    reader.now_s = WAIT_S + 0.1
    assert len(reader.take()) == 100
    reader.take()
    assert not reader.catch_up.behind


def test_a_partition_at_its_end_holds_nobody_up() -> None:
    reader = Reader({A: steady(0, HOUR_US, 100), B: steady(0, MINUTE_US, 5)})
    reader.fetch(A, 60)
    assert reader.take() == []  # the other may still have what is older
    reader.fetch(B, 5)
    assert len(reader.take()) == 61  # of A not the last four: what comes may be older
    reader.fetch(A, 40)
    assert len(reader.take()) == 44
    reader.take()
    assert not reader.catch_up.behind


@pytest.mark.parametrize("off_us", [0, -YEAR_US, YEAR_US])
def test_how_far_the_stream_has_come_is_told_before_the_rows_of_then(
    rng: np.random.Generator, off_us: int
) -> None:
    logs = {A: steady(0, HOUR_US, 200), B: steady(HOUR_US // 2, HOUR_US, 100)}
    logs[A][50] += off_us
    reader = Reader(logs)
    reader.run(rng, rows_max=30, most=40)
    assert reader.come_us[-1] == FAR_US, "who is not behind waits for nothing"
    newest = -FAR_US
    for come_us, rows in zip(reader.come_us[:-1], reader.taken, strict=False):
        times = [t for _, t in rows if -HOUR_US <= t <= 2 * HOUR_US]
        if times:
            assert newest <= come_us <= max(newest, *times), "no row of before, none of then"
            newest = max(newest, *times)
        assert come_us <= HOUR_US
    assert len({*reader.come_us}) > 5


def test_a_lane_that_is_not_behind_has_come_as_far_as_the_one_that_is() -> None:
    pace = Pace()
    here, other = Reader({A: []}, 0, pace), Reader({B: steady(0, HOUR_US, 100)}, 1, pace)
    other.fetch(B, 100)
    here.take(), other.take(rows_max=50)
    here.take()
    assert here.come_us == [FAR_US, other.logs[B][50]]
    other.take(), other.take(), here.take()
    assert here.come_us[-1] == other.come_us[-1] == FAR_US


@pytest.mark.parametrize("off_us", [-YEAR_US, YEAR_US])
def test_one_event_of_another_year_moves_nothing(rng: np.random.Generator, off_us: int) -> None:
    logs = {A: steady(0, HOUR_US, 200), B: steady(0, HOUR_US, 200)}
    logs[A][50] += off_us
    reader = Reader(logs)
    reader.run(rng, rows_max=30, most=40)
    times = {place: [t for rows in reader.taken for p, t in rows if p == place] for place in logs}
    assert times == logs
    for rows in reader.taken:
        rows[:] = [(p, t) for p, t in rows if -HOUR_US <= t <= 2 * HOUR_US]
    assert reader.spread_us == 0


@pytest.mark.parametrize("off_us", [-YEAR_US, YEAR_US])
def test_a_wrong_clock_stalls_nobody_for_good(rng: np.random.Generator, off_us: int) -> None:
    right = steady(0, HOUR_US, 200)
    logs = {A: [t + off_us for t in right], B: right, C: right}
    reader = Reader(logs)
    reader.run(rng, rows_max=30, most=40)
    assert reader.at == dict.fromkeys(logs, 200)
    for rows in reader.taken:
        rows[:] = [(p, t) for p, t in rows if p != A]
    assert reader.spread_us == 0


def test_a_partition_whose_schema_is_waited_for_holds_nobody_up() -> None:
    reader = Reader({A: steady(0, HOUR_US, 100), B: steady(0, HOUR_US, 100)})
    for place in reader.logs:
        reader.fetch(place, 100)
    reader.waiting = {A}
    assert {place for place, _ in reader.take()} == {B}
    reader.waiting = set()
    assert len(reader.take()) == 100


def test_lanes_of_a_process_go_together(rng: np.random.Generator) -> None:
    pace = Pace()
    lanes = [
        Reader({A: steady(0, 2 * HOUR_US, 2_000)}, 0, pace),
        Reader({B: steady(HOUR_US, 2 * HOUR_US, 1_000)}, 1, pace),
    ]
    together = Reader({})
    while any(lane.catch_up.behind for lane in lanes):
        found = []
        for lane in lanes:
            for place in lane.logs:
                lane.fetch(place, int(rng.integers(1, 100)))
            found += lane.take(60)
        together.taken.append(found)
        assert len(together.taken) < 10_000
    assert sum(map(len, together.taken)) == 3_000
    assert together.spread_us <= MINUTE_US
    assert pace.others_us(0, 0.0) == pace.others_us(1, 0.0) == 1 << 62


def test_a_lane_waits_for_one_that_has_just_begun_and_not_for_one_that_is_gone() -> None:
    pace = Pace()
    CatchUp(1, pace, slack_us=0).begin(0.0)
    lane = Reader({A: steady(0, HOUR_US, 100)}, 0, pace)
    lane.fetch(A, 100)
    assert lane.take() == []
    lane.now_s = WAIT_S + 0.1
    assert len(lane.take()) == 100


@pytest.mark.parametrize(("late_s", "rounds_max"), [(0.0, 2), (2.0, 400)])
def test_lanes_do_not_wait_for_each_other_event_by_event(late_s: float, rounds_max: int) -> None:
    pace, slack_us = Pace(), slack_of(late_s)
    lanes = [
        Reader({place: steady(at, HOUR_US, 2_000)}, lane, pace, slack_us)
        for lane, (place, at) in enumerate(((A, 0), (B, 1_000)))
    ]
    for lane in lanes:
        for place in lane.logs:
            lane.fetch(place, 2_000)
    rounds = 0
    while any(lane.catch_up.behind for lane in lanes):
        assert (rounds := rounds + 1) <= rounds_max
        for lane in lanes:
            lane.take(10_000)
    assert sum(len(found) for lane in lanes for found in lane.taken) == 4_000


@pytest.mark.parametrize("wrong_us", [0, YEAR_US, -YEAR_US])
def test_what_comes_in_pieces_is_taken_in_the_order_of_what_comes_at_once(
    wrong_us: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logs = {}
    for p in range(3):
        times = np.sort(rng.integers(0, HOUR_US, 300)) + rng.integers(0, MINUTE_US, 300)
        times[rng.integers(0, 300, 20)] += wrong_us
        logs["payments", p] = times.tolist()
    whole, pieces = Reader(logs), Reader(logs)
    for place, log in logs.items():
        whole.fetch(place, len(log))
        while pieces.fetched[place] < len(log):
            pieces.fetch(place, int(rng.integers(1, 9)))
    for _ in range(90):
        assert pieces.take(10) == whole.take(10)
