"""Partitions that are behind are read together, in the order of event time.

After a break one partition may be hours behind another. Read as they come, the rows of the one
would change entities that the other has brought hours further: too late for their place. So while a
lane is behind, what it has read ahead is kept, and the row that is oldest goes first.

It is behind from the start, and from a round that was full, until it has come to where its
partitions ended then; what had to wait meanwhile, and came in longer, counts as behind as well.
Who has nothing to give holds nobody up: a partition whose end is reached, one that has given
nothing for `WAIT_S`, one whose schema is waited for. Nor does a wrong clock: a row's place is its
time, or the median of its and the next ones' (`MEDIAN_OF`) where that is earlier, so one event from
another year moves nothing; a partition whose every event is from another year goes first or last,
and the others go on.

What a lane takes is in its journal, so none of this decides anything twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from features.batch import Int64

__all__ = ["FAR_US", "MEDIAN_OF", "SLACK_MIN_US", "WAIT_S", "CatchUp", "Pace", "Place", "slack_of"]

Place = tuple[str, int]
"""Topic and partition."""

WAIT_S = 10.0
"""A partition that is behind and gives nothing is waited for so long. Chosen: a broker answers a
fetch within tens of milliseconds, a busy one within seconds, and by then has a new leader."""

MEDIAN_OF = 5
"""Event times whose median bounds a row's place. Chosen: two wrong ones of five are outvoted."""

SLACK_MIN_US = 10_000_000
"""Least event time that lanes may lie apart. Chosen: lanes that wait for each other catch up a
hundred times as fast as time passes, at ten rounds a second."""

FAR_US = 1 << 62
"""Later than any event."""


class Held(Protocol):
    """A record that was read and is kept."""

    def offset(self) -> int | None:
        """Its place in the partition."""
        ...


def slack_of(late_s: float) -> int:
    """us of event time that a lane may be further than another; FAR_US where late events have no
    bound to be within, so that no lane waits.

    Parameters
    ----------
    late_s : the bound of late events, 0 for none
    """
    return max(round(late_s * 1e6) // 2, SLACK_MIN_US) if late_s > 0 else FAR_US


class Pace:
    """How far those lanes of a process have come that are behind, in event time.

    A lane may be so much further than the one that is furthest behind: half the bound of late
    events, so that what it gives is no later than these are.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[int, tuple[int, float]] = {}

    def tell(self, lane: int, reach_us: int | None, now_s: float) -> None:
        """Say how far a lane is; None: it is not behind. It holds for `WAIT_S`."""
        with self._lock:
            if reach_us is None:
                self._told.pop(lane, None)
            else:
                self._told[lane] = reach_us, now_s

    def others_us(self, lane: int, now_s: float) -> int:
        """The other lane that is furthest behind, FAR_US where none is."""
        with self._lock:
            found = [
                at
                for other, (at, told_s) in self._told.items()
                if other != lane and now_s - told_s <= WAIT_S
            ]
        return min(found, default=FAR_US)


@dataclass(slots=True)
class _Read:
    """What of a partition has been read and not yet taken: offsets, event times, these or the
    median where that is earlier, and places: the latest of them so far."""

    offsets: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    times: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    lows: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    keys: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    reach_us: int = -FAR_US
    heard_s: float = 0.0

    def add(self, offsets: Int64, times: Int64, now_s: float) -> None:
        """Take in records in their order, with their event times."""
        if not len(offsets):
            return
        self.heard_s = now_s
        # Those after the last are taken to be as late as can be: they will be looked at again. What
        # has as many behind it as are looked at stays as it is.
        sure = max(0, len(self.times) - MEDIAN_OF + 1)
        self.offsets = np.concatenate([self.offsets, offsets])
        self.times = np.concatenate([self.times, times])
        padded = np.concatenate([self.times[sure:], np.full(MEDIAN_OF - 1, FAR_US)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, MEDIAN_OF)
        middle = np.partition(windows, MEDIAN_OF // 2, axis=1)[:, MEDIAN_OF // 2]
        self.lows = np.concatenate([self.lows[:sure], np.minimum(self.times[sure:], middle)])
        self.keys = np.maximum.accumulate(self.lows)

    def forget(self, at: int) -> None:
        """Let go of what is before an offset."""
        gone = int(np.searchsorted(self.offsets, at))
        if gone:
            self.reach_us = int(self.keys[gone - 1])
            self.offsets, self.times = self.offsets[gone:], self.times[gone:]
            self.lows, self.keys = self.lows[gone:], self.keys[gone:]

    @property
    def sure_us(self) -> int:
        """Up to where its places are sure, with more to come."""
        many = len(self.keys)
        return int(self.keys[max(0, many - MEDIAN_OF)]) if many else self.reach_us


class CatchUp:
    """What a lane reads while it is behind.

    Parameters
    ----------
    lane : its number
    pace : how far the lanes of the process are
    slack_us : how much further than the other lanes it may be
    """

    def __init__(self, lane: int, pace: Pace, slack_us: int) -> None:
        self._lane, self._pace, self._slack_us = lane, pace, slack_us
        self._targets: dict[Place, int] = {}
        self._read: dict[Place, _Read] = {}
        self._before_us = self._given_us = -FAR_US

    @property
    def behind(self) -> bool:
        """Whether some partition has not come to where it is to come to."""
        return bool(self._targets)

    def waits_for(self, places: Collection[Place]) -> bool:
        """Whether one of some partitions is behind."""
        return not self._targets.keys().isdisjoint(places)

    def active(self, now_s: float) -> bool:
        """Whether it is behind, or another lane of the process is."""
        return self.behind or self._pace.others_us(self._lane, now_s) < FAR_US

    def come_us(self, now_s: float) -> int:
        """Event time that was reached before what `choose` has chosen last, by this lane and those
        of the process that are behind; FAR_US where none is."""
        mine = self._before_us if self.behind else FAR_US
        return min(mine, self._pace.others_us(self._lane, now_s))

    def begin(self, now_s: float) -> None:
        """Tell the other lanes that it is not known yet how far behind this one is."""
        self._pace.tell(self._lane, -FAR_US, now_s)

    def aim(self, ends: Mapping[Place, int], now_s: float) -> None:
        """Be behind until these offsets are reached."""
        for place, end in ends.items():
            if end > self._targets.get(place, 0):
                self._targets[place] = end
                self._read.setdefault(place, _Read()).heard_s = now_s

    def clear(self) -> None:
        """Forget what was read: it will be read again."""
        self._read = {place: _Read(heard_s=read.heard_s) for place, read in self._read.items()}

    def stop(self) -> None:
        """Not to be behind any more."""
        self._targets.clear()
        self._read.clear()
        self._pace.tell(self._lane, None, 0.0)

    def unknown(self, place: Place, held: Sequence[Held]) -> int:
        """How many of the records held of a partition, the last ones, have no event time yet."""
        read = self._read.setdefault(place, _Read())
        last = int(read.offsets[-1]) if len(read.offsets) else -1
        many = 0
        while many < len(held) and (held[-1 - many].offset() or 0) > last:
            many += 1
        return many

    def learn(self, place: Place, offsets: Int64, times: Int64, now_s: float) -> None:
        """Take in event times of records, int64 (n,) each, in the order of the partition."""
        self._read.setdefault(place, _Read()).add(offsets, times, now_s)

    def choose(
        self,
        held: Mapping[Place, int],
        at: Callable[[Place], int],
        waiting: set[Place],
        rows_max: int,
        now_s: float,
    ) -> dict[Place, int]:
        """How many of each partition's records to take now: those that are oldest.

        Parameters
        ----------
        held : records held of each partition
        at : the next offset to take of a partition
        waiting : partitions whose records cannot be taken yet
        rows_max : the most of all
        now_s : a clock that does not go back
        """
        for place, read in self._read.items():
            read.forget(at(place))
            if len(read.offsets):
                read.heard_s = now_s
        self._arrive(at, now_s)
        limit_us = self._limit_us(waiting, now_s)
        places = [p for p, n in held.items() if n and p not in waiting]
        keys = [self._read[p].keys[: min(held[p], rows_max)] for p in places]
        keys = [k[: np.searchsorted(k, limit_us, side="right")] for k in keys]
        which = np.repeat(np.arange(len(keys)), [len(k) for k in keys])
        order = np.argsort(np.concatenate([np.zeros(0, np.int64), *keys]), kind="stable")
        counts = np.bincount(which[order[:rows_max]], minlength=len(places)).tolist()
        chosen = {p: n for p, n in zip(places, counts, strict=True) if n}
        self._pass(
            [int(k[0]) for k, n in zip(keys, counts, strict=True) if n],
            [int(k[n - 1]) for k, n in zip(keys, counts, strict=True) if n],
        )
        self._tell(chosen, waiting, now_s)
        return chosen

    def _pass(self, firsts: Sequence[int], lasts: Sequence[int]) -> None:
        """Note the first and last places of what is given now, of each partition."""
        self._before_us = max(self._given_us, min(firsts, default=-FAR_US))
        self._given_us = max(self._given_us, max(lasts, default=-FAR_US))

    def _arrive(self, at: Callable[[Place], int], now_s: float) -> None:
        """Partitions are not behind that have come to where they were to come, or give nothing."""
        self._targets = {
            place: end
            for place, end in self._targets.items()
            if at(place) < end
            and (len(self._read[place].offsets) or now_s - self._read[place].heard_s <= WAIT_S)
        }

    def _holds(self, place: Place, waiting: set[Place], now_s: float) -> bool:
        """Whether a partition has more to come than what is held, and will give it soon."""
        read = self._read[place]
        if place in waiting:
            return False
        if len(read.offsets):
            return int(read.offsets[-1]) + 1 < self._targets[place]
        return now_s - read.heard_s <= WAIT_S

    def _limit_us(self, waiting: set[Place], now_s: float) -> int:
        """Up to what event time nothing can come any more that is older."""
        limit_us = FAR_US
        if self._slack_us < FAR_US:
            limit_us = min(self._pace.others_us(self._lane, now_s) + self._slack_us, FAR_US)
        for place in self._targets:
            if self._holds(place, waiting, now_s):
                limit_us = min(limit_us, self._read[place].sure_us)
        return limit_us

    def _tell(self, chosen: Mapping[Place, int], waiting: set[Place], now_s: float) -> None:
        """Tell the other lanes how far this one is with what it gives now."""
        reach = []
        for place in self._targets:
            read = self._read[place]
            left = read.keys[chosen.get(place, 0) :]
            if place not in waiting and len(left):
                reach.append(int(left[0]))
            elif self._holds(place, waiting, now_s):
                reach.append(read.reach_us)
        self._pace.tell(self._lane, min(reach, default=None), now_s)
