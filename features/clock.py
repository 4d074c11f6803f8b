"""The event-time clock of a lane: how far its events have come, whoever sends what.

One event from next year must not move it, a producer whose clock is wrong must not either, an idle
partition must not hold it, and silence must not stop it. It is a function of the rounds alone
(their events and `cut_time_us`, both in the journal), so that a replay tells the same time.

**What events say.** Events come from places: the partitions of a topic each advance at their own
pace (after a break one may be hours behind another), so each has its own clock; a file and the
simulator are one place. A place keeps 64 event times: those of its last events, or as many spread
evenly over a round that has more. Its clock is the newest event time that most of them make
credible: not beyond `m + 4 (m - q) + 1 s`, where `m` is their median and `q` their lower quartile,
nor beyond the round's `cut_time_us`. Where events come steadily, `m + 2 (m - q)` is the newest of
them, so the clock keeps up with the stream to the event; after a pause it follows once half of the
64 are newer, and it never is behind their median. It never goes back, and is not known before the
16th event of the place: until the round after that nothing is refused.

**What is late.** An event more than `late_s` before the clock of its own place, as it stood before
the round. Events of one round never make each other late: they are put in order together.

**What is early.** An event more than `early_s` beyond the clock of its place and beyond the round's
`cut_time_us`: for Kafka the wall clock, for the simulator its own time, for a file the newest
credible time so far (a file is held against the rows around each row when it is opened).

**What is due.** Who has not spoken is held against the place furthest behind, of those heard of in
the last ten seconds: where one partition is hours behind another after a break, those whose events
still wait in it are not silent.

**Silence.** The clock of the lane is the newest of its places'. In a round that does not move it,
it goes on by the time that has passed, `cut_time_us` against that of the round before, and stays
there until events overtake it; never beyond `cut_time_us`. Of two steps in a row the smaller is
taken for passed: a break of the process itself, which nobody listened through, is one long step and
no silence. What is late is not held against this clock: after a break of the brokers, what they
kept is old by it, and not late.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from features.batch import EventBatch, Int64
from features.events import built_in_types

__all__ = ["APART_US", "IN_TIME", "REFUSALS", "TOO_EARLY", "TOO_LATE", "LaneClock"]

IN_TIME, TOO_LATE, TOO_EARLY = 0, 1, 2

REFUSALS = {
    "too_late": "more than `late_s` before the event-time clock of its partition or file",
    "too_early": "more than `early_s` beyond that clock and beyond the clock of its round",
}
"""Why an event that is one is refused all the same: reason -> meaning."""

APART_US = 900_000_000
"""So far a place may be behind the newest one, or an event ahead of the clock (or by the bound of
late ones, where that is more), and others that come in time are still put in their place
(`features.late`). Chosen: clocks set by hand are minutes wrong; at 1,000 payments/s it takes half a
gigabyte of log; and with the longest bound, a day, it is within the hour more than a day for which
the state of those who fell silent is kept (`features.expiry`)."""

_KEPT = 64
"""Event times a place keeps. Chosen: 31 wrong ones are outvoted, and 512 bytes a partition."""

_SURE = 16
"""Events before which a place has no clock. Chosen: a quartile of fewer is a guess."""

_SLACK_US = 1_000_000
"""Times cut to a whole second stand on one spot, the next ones a second on. Chosen: the coarsest
common resolution."""

_AHEAD = 4
"""How many times (median - lower quartile) the newest may be beyond the median. A steady stream
needs 2; twice that, since 16 gaps between events vary, and more so where events come shuffled."""

_GOLDEN = 2_654_435_769
"""2^32 over the golden ratio. Event times of a round are kept in the order of its multiples, so
that those still there when the next round has pushed some out stand for all of the round; in their
own order only the newest would be left, among them all that are wrong."""

_TURNS = [np.argsort(np.arange(n) * _GOLDEN % 2**32) for n in range(_KEPT + 1)]
"""That order for any number of event times."""

ACTIVE_US = 10_000_000
"""A place is heard of for so long after a round with its events. Chosen: a partition of a busy
topic has some in far less, and an idle one holds up what is found silent by no more."""

_Key = tuple[str, int]
"""Of a place: event type and partition. The name, not the code, which is another where a user
declares an event type that stands before it."""

_ONE_PLACE: _Key = ("", -1)
"""Key of the place of a source that is one place."""


@dataclass(slots=True)
class _Place:
    """What is known of one place: its last event times (by round), how many came, its clock, and
    the round's clock when it was last heard of."""

    times: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    seen: int = 0
    clock_us: int = 0
    heard_us: int = 0

    def add(self, times: Int64, cut_time_us: int) -> None:
        """Take in the admitted event times of a round, int64 (n,) > 0, in order."""
        n, self.heard_us = len(times), cut_time_us
        spread = times if n <= _KEPT else times[np.arange(_KEPT) * (n - 1) // (_KEPT - 1)]
        spread = spread[_TURNS[len(spread)]]
        kept = spread if n >= _KEPT else np.concatenate([self.times, spread])[-_KEPT:]
        self.times = kept
        self.seen += n
        if self.seen < _SURE:
            return
        kept = np.sort(kept)
        middle, quarter = int(kept[(len(kept) - 1) // 2]), int(kept[(len(kept) - 1) // 4])
        bound_us = min(middle + _AHEAD * (middle - quarter) + _SLACK_US, cut_time_us)
        for known in (kept, times):
            at = int(np.searchsorted(known, bound_us, side="right"))
            if at:
                self.clock_us = max(self.clock_us, int(known[at - 1]))


class LaneClock:
    """See the module.

    Parameters
    ----------
    late_us : an event further before the clock of its place is too late; 0 refuses none
    early_us : an event further beyond that clock and the round's is too early; 0 refuses none
    by_partition : each partition of each event type is a place of its own (Kafka); otherwise the
        source is one place

    Examples
    --------
    >>> clock = LaneClock(late_us=60_000_000, early_us=60_000_000)
    >>> clock.advance({}, cut_time_us=1_000_000)
    0
    """

    def __init__(self, late_us: int, early_us: int, by_partition: bool = False) -> None:
        self._late_us, self._early_us = late_us, early_us
        self._by_partition = by_partition
        self._places: dict[_Key, _Place] = {}
        self.clock_us = 0
        self._cut_us = self._step_us = 0

    def judge(self, batch: EventBatch, cut_time_us: int) -> npt.NDArray[np.int8]:
        """Which events of a round come in time; call it for all batches before `advance`.

        Parameters
        ----------
        batch : events of one type
        cut_time_us : the round's clock

        Returns
        -------
        int8 (n,), IN_TIME, TOO_LATE or TOO_EARLY
        """
        time_us = batch.time_us
        clock_us = self._clocks(batch)
        known = clock_us > 0
        verdict = np.zeros(len(batch), np.int8)
        if self._late_us:
            verdict[known & (time_us < clock_us - self._late_us)] = TOO_LATE
        if self._early_us:
            newest_us = np.maximum(clock_us, cut_time_us)
            verdict[known & (time_us > newest_us + self._early_us)] = TOO_EARLY
        return verdict

    def late_by_us(self, batch: EventBatch) -> Int64:
        """int64 (n,), how far each event is before the clock of its place; negative ahead of it."""
        return np.asarray(self._clocks(batch) - batch.time_us)

    def _clocks(self, batch: EventBatch) -> Int64:
        """int64 (n,), the clock of each event's place, 0 where it is not known."""
        if not self._by_partition:
            place = self._places.get(_ONE_PLACE)
            return np.full(len(batch), 0 if place is None else place.clock_us)
        partitions, which = np.unique(batch.partition, return_inverse=True)
        keys = [(batch.event_type, p) for p in partitions.tolist()]
        found = [self._places[k].clock_us if k in self._places else 0 for k in keys]
        return np.array(found, np.int64)[which]

    def advance(self, batches: Mapping[str, EventBatch], cut_time_us: int) -> int:
        """Take in a round.

        Parameters
        ----------
        batches : event type -> events that were admitted, each batch in order
        cut_time_us : the round's clock

        Returns
        -------
        the lane's clock after it, microseconds UTC, 0 where it is not known
        """
        for key, times in self._by_place(batches):
            self._places.setdefault(key, _Place()).add(times, cut_time_us)
        told_us = max((place.clock_us for place in self._places.values()), default=0)
        step_us = max(0, cut_time_us - self._cut_us) if self._cut_us else 0
        if told_us > self.clock_us:
            self.clock_us = told_us
        elif self.clock_us:
            passed_us = self.clock_us + min(step_us, self._step_us)
            self.clock_us = max(self.clock_us, min(passed_us, cut_time_us))
        self._step_us = step_us
        self._cut_us = max(self._cut_us, cut_time_us)
        return self.clock_us

    @property
    def due_us(self) -> int:
        """What is due by now: the clock of the place that is furthest behind of those heard of.

        While nobody is heard of it is the lane's clock. It may go back, when one is heard of again.
        """
        since_us = self._cut_us - ACTIVE_US
        heard = [p.clock_us for p in self._places.values() if p.clock_us and p.heard_us >= since_us]
        return min((*heard, self.clock_us))

    def _by_place(self, batches: Mapping[str, EventBatch]) -> list[tuple[_Key, Int64]]:
        """Event times of a round by place, in order."""
        if not self._by_partition:
            times = [batch.time_us for batch in batches.values() if len(batch)]
            return [(_ONE_PLACE, np.sort(np.concatenate(times)))] if times else []
        found = []
        for name, batch in batches.items():
            order = np.argsort(batch.partition, kind="stable")
            partitions, begins = np.unique(batch.partition[order], return_index=True)
            parts = np.split(batch.time_us[order], begins[1:])
            found += [((name, p), part) for p, part in zip(partitions.tolist(), parts, strict=True)]
        return found

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        """The clock as arrays by name: `load` takes them in."""
        places = list(self._places.values())
        times = np.zeros((len(places), _KEPT), np.int64)
        for row, place in zip(times, places, strict=True):
            row[: len(place.times)] = place.times
        names = list(dict.fromkeys(name for name, _ in self._places))
        heads = [
            [names.index(name), partition, p.seen, p.clock_us, p.heard_us, len(p.times)]
            for (name, partition), p in self._places.items()
        ]
        return {
            "clock": np.array([self.clock_us, self._cut_us, self._step_us], np.int64),
            "clock_names": np.frombuffer(json.dumps(names).encode(), np.uint8),
            "clock_places": np.array(heads, np.int64).reshape(-1, 6),
            "clock_times": times,
        }

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Stand where a dumped clock stood; arrays without one leave it as it is.

        An older dump has codes in place of names. Those of shipped event types are what they were;
        a place of any other is not taken over, and has no clock until its 16th event.
        """
        if "clock" not in arrays:
            return
        self.clock_us, self._cut_us, self._step_us = arrays["clock"].tolist()
        heads = arrays["clock_places"]
        if "clock_names" in arrays:
            names = json.loads(arrays["clock_names"].tobytes())
        else:
            names = list(built_in_types())
            heads = np.column_stack((heads[:, 0] >> 32, heads[:, 0] & 0xFFFFFFFF, heads[:, 1:]))
            heads[heads[:, 0] < 0, 1] = -1
        self._places = {}
        for head, times in zip(heads.tolist(), arrays["clock_times"], strict=True):
            at, partition, seen, clock_us, heard_us, kept = head
            if at < len(names):
                key = (names[at], partition) if at >= 0 else _ONE_PLACE
                place = _Place(times[:kept].astype(np.int64), seen, clock_us, heard_us)
                self._places[key] = place
