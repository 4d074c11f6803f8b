"""When an entity should have spoken: its rhythm, and a bounded timer wheel of who is overdue.

Nothing arrives, yet time passes. Each entity of the types whose silence means something (declared
as `EventType.silence`) has a rhythm: how long its gaps usually are, and the largest it had at this
hour of the day. From them follows when it is due. At the end of a round the wheel gives those that
the event-time clock has passed, and an entity that speaks again tells what it was due for before
that; either way an absence stands at its due time and says what was known then. So the absences
are a function of the events alone: cut into rounds or in one piece, they are the same.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from features.slots import SlotTable
from features.speed import AHEAD, inlined, kernel, prefetch

__all__ = [
    "ABSENCE_FLOATS",
    "ABSENCE_INTS",
    "DUE",
    "DUE_MAX",
    "KNOWN_FROM",
    "LAST",
    "LIMIT",
    "NOTICE",
    "PEER_INTS",
    "RUN_MAX",
    "SILENCE_FLOATS",
    "SILENCE_INTS",
    "SILENCE_TOPS",
    "TOLD",
    "Overdue",
    "Wheel",
    "peers_now",
    "run_silence",
    "warm_up",
]

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

# Places in a slot's integers; times in microseconds, 0 where there is none.
LAST, DUE, TOLD, FIRST, SPELLS, LIMIT, PEERS = range(7)
SILENCE_INTS = PEERS + 2
"""Last heard of, next due, absences told of in this silence, first heard of, silences so far, gap
allowed, key of the holder, key of the pool. The two keys are those it came with first."""

# Places in a slot's floats.
GAPS, MEAN, VARIANCE, HOURS = range(4)
SILENCE_FLOATS = HOURS + 24
"""Gaps seen; mean and variance of their logarithm (of seconds); mean of those begun at each hour of
the day (UTC), 0 where none was."""

SILENCE_TOPS = 24 * 4
"""Float32: for each hour of the day the two largest gaps begun in it, each with its end in days."""

GAP_S_MIN = 1.0
"""Gaps below it are no gaps: silence is told of in whole seconds. Chosen: the six metrics of one
scrape, or the lines of one request, are one utterance."""

KNOWN_FROM = 8.0
"""Gaps an entity must have had to have a rhythm. Chosen: as for baselines of members."""

RHYTHM_GAPS = 200.0
HOUR_GAPS = 16.0
"""Memory of the mean gap, and of that of an hour. Chosen: as the slow baselines; some days of a job
that runs at that hour."""

CLIP_SIGMA = 3.0
CLIP_FROM = 16.0
"""A gap enters the rhythm at no more than so many deviations, once so many gaps are known."""

TOP_DAYS = 28.0
"""A large gap is remembered so long. Chosen: four of every weekday."""

SLACK = 1.25
"""How far beyond the second largest gap of its hour (and of the hours beside it) an entity may be
silent. Chosen: one outage teaches nothing, a second at the same hour does; of 3,000 random gaps of
one mean the second largest is 7.4 means, and 9 means come once in 10,000 gaps."""

SPREAD_SIGMA = 2.0
"""It may be silent so many deviations of the logarithm above its usual gap, however few it had."""

LIMIT_S_MIN = 60.0
"""Nobody is overdue sooner. Chosen: as late as an event may come."""

RUN_MAX = 6
"""Absences told of in one silence, each at twice the time of the one before; then the entity is
given up until it speaks. Chosen: 32 times the gap allowed, of a scrape of 3 min 2.4 h."""

DUE_MAX = 64
"""Absences the wheel gives of an entity type in a group and round; the rest comes in the next.
Chosen: of 16 groups 1,000 in 100 ms, a tenth of what is scored in that time at 50,000 events/s."""

TICK_US = 1_000_000
TICKS = 4_096
"""Length and number of the wheel's buckets. Chosen: most are due within its 68 minutes."""

_READY = TICKS
"""Bucket of entries that are due already and have not been given yet."""

NOTICE = 11
"""Numbers of a notice, what the kernel writes of a row: kind, slot, last, until, limit, mean,
deviation, mean of the hour, told, silences, first."""

_JOINS, _SPEAKS = 0.0, 1.0

ABSENCE_INTS = 8
"""Of an absence: slot, due, last heard of, number in the run, first heard of, silences before, keys
of holder and pool."""

ABSENCE_FLOATS = 4
"""Of an absence: gap allowed in s, mean and deviation of log gaps, mean of its hour's."""

PEER_INTS = 5
"""Of a change among peers: time, 0 for a holder's and 1 for a pool's, key, change of the number of
members with a rhythm, change of those that are silent."""


@inlined
def _hour(time_us):
    """Hour of the day, UTC."""
    return (time_us // 3_600_000_000) % 24


@kernel
def _allowed_s(gaps, tops, hour, days):
    """The gap an entity may have that begins at an hour, s."""
    first, second = 0.0, 0.0
    for near in range(-1, 2):
        at = 4 * ((hour + near) % 24)
        for k in range(at, at + 4, 2):
            gap = float(tops[k])
            if days - tops[k + 1] > TOP_DAYS or gap <= second:
                continue
            if gap > first:
                first, second = gap, first
            else:
                second = gap
    usual = np.exp(gaps[MEAN] + SPREAD_SIGMA * np.sqrt(gaps[VARIANCE]))
    return max(LIMIT_S_MIN, SLACK * second, usual)


@kernel
def _learn(gaps, tops, gap_s, hour, days):
    """Take a gap that began at an hour and ended on a day into the rhythm."""
    x, n = np.log(gap_s), gaps[GAPS]
    if n == 0.0:
        gaps[MEAN] = x
    else:
        d = x - gaps[MEAN]
        if n >= CLIP_FROM:
            limit = CLIP_SIGMA * np.sqrt(gaps[VARIANCE]) + 0.1
            d = min(max(d, -limit), limit)
        a = max(1.0 / (n + 1.0), 1.0 / RHYTHM_GAPS)
        gaps[MEAN] += a * d
        gaps[VARIANCE] = (1.0 - a) * (gaps[VARIANCE] + a * d * d)
    gaps[GAPS] = n + 1.0
    here = HOURS + hour
    usual = gaps[here]
    gaps[here] = max(x if usual == 0.0 else usual + (x - usual) / HOUR_GAPS, 1e-9)
    at = 4 * hour
    if days - tops[at + 3] > TOP_DAYS:
        tops[at + 2] = tops[at + 3] = 0.0
    if days - tops[at + 1] > TOP_DAYS:
        tops[at], tops[at + 1] = tops[at + 2], tops[at + 3]
        tops[at + 2] = tops[at + 3] = 0.0
    if gap_s > tops[at]:
        tops[at + 2], tops[at + 3] = tops[at], tops[at + 1]
        tops[at], tops[at + 1] = gap_s, days
    elif gap_s > tops[at + 2]:
        tops[at + 2], tops[at + 3] = gap_s, days


@inlined
def _notice(notices, kind, slot, until_us, row, gaps):
    """Write down that an entity has got a rhythm, or speaks again after having been due."""
    n = int(notices[0, 0]) + 1
    notices[0, 0] = n
    said = notices[n]
    said[0], said[1], said[2], said[3] = kind, slot, row[LAST], until_us
    said[4], said[5], said[6] = row[LIMIT], gaps[MEAN], np.sqrt(gaps[VARIANCE])
    said[7] = gaps[HOURS + _hour(row[LAST])]
    said[8], said[9], said[10] = row[TOLD], row[SPELLS], row[FIRST]


@kernel
def run_silence(slots, head, feeds, peers, ints, floats, tops, notices):
    """Rhythms of rows in order; what no row of the past has told is written to `notices`.

    Parameters
    ----------
    slots : int64 (n,)
    head : int64 (n, >= 8); a row that is older than the newest of its entity says nothing
    feeds : bool (event types,), whose rows are utterances of the entity
    peers : int64 (2,), columns of `head` with the keys of holder and pool, -1 for none
    ints : int64 (slots, 8)
    floats : float64 (slots, 27)
    tops : float32 (slots, 96)
    notices : float64 (m, 13); [0, 0] counts those written, room for two a row
    """
    for i in range(len(slots)):
        if i + AHEAD < len(slots):
            prefetch(ints, slots[i + AHEAD])
            prefetch(floats, slots[i + AHEAD])
        if not feeds[head[i, 2]]:
            continue
        slot, now = slots[i], head[i, 1]
        row, gaps = ints[slot], floats[slot]
        if row[LAST] == 0:
            row[FIRST] = row[LAST] = now
            for k in range(2):
                if peers[k] >= 0:
                    row[PEERS + k] = head[i, peers[k]]
            continue
        if now <= row[LAST]:
            continue
        overdue = row[LIMIT] > 0 and row[LAST] + row[LIMIT] < now
        if row[TOLD] > 0 or overdue:
            # Told and yet in time is who speaks late: that was no silence.
            _notice(notices, _SPEAKS, slot, now, row, gaps)
            row[SPELLS] += overdue
            row[TOLD] = 0
            row[DUE] = 0 if overdue else row[LAST] + row[LIMIT]
        gap_s = (now - row[LAST]) / 1e6
        if gap_s < GAP_S_MIN and row[DUE] > 0:
            row[LAST] = now
            row[DUE] = now + row[LIMIT]
            continue
        hour, days = _hour(row[LAST]), now / 86_400_000_000.0
        row[LAST] = now
        if gap_s >= GAP_S_MIN:
            _learn(gaps, tops[slot], gap_s, hour, days)
            if gaps[GAPS] == KNOWN_FROM:
                _notice(notices, _JOINS, slot, now, row, gaps)
        if gaps[GAPS] >= KNOWN_FROM:
            row[LIMIT] = int(_allowed_s(gaps, tops[slot], _hour(now), days) * 1e3) * 1_000
            row[DUE] = now + row[LIMIT]


@kernel
def _change(changes, n, time_us, holder, pool, members, silent):
    """Write a change among the peers of an entity; returns how many there are now."""
    for k in range(2):
        key = holder if k == 0 else pool
        if key == 0:
            continue
        row = changes[n]
        row[0], row[1], row[2], row[3], row[4] = time_us, k, key, members, silent
        n += 1
    return n


@kernel
def _unfold(notices, ints, found, known, changes):
    """Absences and changes among peers that notices tell of; returns how many of each.

    Parameters
    ----------
    ints : int64 (slots, 8)
    found : int64 (6 m, 8), known : float64 (6 m, 4), changes : int64 (6 m, 5) for m notices
    """
    n = many = 0
    for i in range(1, int(notices[0, 0]) + 1):
        said = notices[i]
        slot = int(said[1])
        holder, pool = ints[slot, PEERS], ints[slot, PEERS + 1]
        last_us, until_us, limit_us = int(said[2]), int(said[3]), int(said[4])
        if said[0] == _JOINS:
            many = _change(changes, many, until_us, holder, pool, 1, 0)
            continue
        k = told = int(said[8])
        while k < RUN_MAX and last_us + (limit_us << k) < until_us:
            row = found[n]
            row[0], row[1], row[2] = slot, last_us + (limit_us << k), last_us
            row[3], row[4], row[5] = k, int(said[10]), int(said[9])
            row[6], row[7] = holder, pool
            known[n, 0], known[n, 1] = limit_us / 1e6, said[5]
            known[n, 2], known[n, 3] = said[6], said[7]
            n += 1
            k += 1
        if told == 0:
            many = _change(changes, many, last_us + limit_us, holder, pool, 0, 1)
        if k == RUN_MAX:
            if told < RUN_MAX:
                given_up_us = last_us + (limit_us << (RUN_MAX - 1)) + 1
                many = _change(changes, many, given_up_us, holder, pool, -1, -1)
            many = _change(changes, many, until_us, holder, pool, 1, 0)
        else:
            many = _change(changes, many, until_us, holder, pool, 0, -1)
    return n, many


@kernel
def _give(slots, ints, floats, found, known, changes, n, many):
    """The next absence of each slot, which moves on to its next due time; as in `_unfold`."""
    for slot in slots:
        row, gaps = ints[slot], floats[slot]
        k, due_us = row[TOLD], row[DUE]
        said = found[n]
        said[0], said[1], said[2] = slot, due_us, row[LAST]
        said[3], said[4], said[5] = k, row[FIRST], row[SPELLS]
        said[6], said[7] = row[PEERS], row[PEERS + 1]
        known[n, 0], known[n, 1] = row[LIMIT] / 1e6, gaps[MEAN]
        known[n, 2], known[n, 3] = np.sqrt(gaps[VARIANCE]), gaps[HOURS + _hour(row[LAST])]
        n += 1
        holder, pool = row[PEERS], row[PEERS + 1]
        if k == 0:
            many = _change(changes, many, due_us, holder, pool, 0, 1)
        row[TOLD] = k + 1
        if k + 1 == RUN_MAX:
            many = _change(changes, many, due_us + 1, holder, pool, -1, -1)
            row[DUE] = 0
        else:
            row[DUE] = row[LAST] + (row[LIMIT] << (k + 1))
    return n, many


@kernel
def peers_now(ints, floats, used):
    """Members with a rhythm, and silent ones, that each entity is: what a restart tells anew.

    Returns
    -------
    int64 (m, 5), changes at time 0
    """
    changes = np.zeros((2 * used, PEER_INTS), np.int64)
    many = 0
    for slot in range(used):
        row = ints[slot]
        if floats[slot, GAPS] >= KNOWN_FROM and row[TOLD] < RUN_MAX:
            many = _change(changes, many, 0, row[PEERS], row[PEERS + 1], 1, int(row[TOLD] > 0))
    return changes[:many]


@inlined
def _unlink(slot, heads, links):
    """Take a slot out of its bucket."""
    after, before, bucket = links[slot, 0], links[slot, 1], links[slot, 2]
    if before >= 0:
        links[before, 0] = after
    else:
        heads[bucket] = after
    if after >= 0:
        links[after, 1] = before
    links[slot, 2] = -1


@inlined
def _link(slot, tick, now_tick, heads, links):
    """Put a slot into the bucket of a tick."""
    bucket = _READY if tick <= now_tick else tick % TICKS
    first = heads[bucket]
    links[slot, 0], links[slot, 1], links[slot, 2], links[slot, 3] = first, -1, bucket, tick
    if first >= 0:
        links[first, 1] = slot
    heads[bucket] = slot


@kernel
def _file(slots, ints, now_tick, heads, links):
    """Let the wheel know of slots' due times; one that is due later than it is filed stays there
    until its bucket comes, so that an entity that speaks costs nothing."""
    for slot in slots:
        if ints[slot, DUE] == 0:
            continue
        tick = ints[slot, DUE] // TICK_US
        if links[slot, 2] >= 0:
            if links[slot, 3] <= tick:
                continue
            _unlink(slot, heads, links)
        _link(slot, tick, now_tick, heads, links)


@kernel
def _turn(ints, clock_us, from_tick, heads, links, found):
    """Slots that are due before the clock, taken out of the wheel, in no order; how many."""
    n = 0
    now_tick = clock_us // TICK_US
    first = max(from_tick, now_tick - TICKS + 1)
    for tick in range(first - 1, now_tick + 1):
        # The first turn is for those that are ready.
        bucket = _READY if tick == first - 1 else tick % TICKS
        slot = heads[bucket]
        heads[bucket] = -1
        while slot >= 0:
            after = links[slot, 0]
            links[slot, 2] = -1
            due_us = ints[slot, DUE]
            if due_us > 0 and due_us < clock_us:
                found[n] = slot
                n += 1
            elif due_us > 0:
                due_tick = due_us // TICK_US
                # What is due within the tick of the clock waits in its bucket for the next turn.
                _link(slot, due_tick, now_tick - 1, heads, links)
            slot = after
    return n


@dataclass(slots=True)
class Overdue:
    """What the groups tell of silence in one round, of one entity type.

    Parameters
    ----------
    found : int64 (n, 8), see `ABSENCE_INTS`, by due time, then key
    known : float64 (n, 4), see `ABSENCE_FLOATS`
    changes : int64 (m, 5), see `PEER_INTS`
    """

    found: Int64
    known: Float64
    changes: Int64


_NONE = np.zeros(0, np.int64)
_NOTHING = Overdue(
    np.zeros((0, ABSENCE_INTS), np.int64),
    np.zeros((0, ABSENCE_FLOATS)),
    np.zeros((0, PEER_INTS), np.int64),
)
"""What most rounds tell: that nobody is overdue."""


@dataclass(slots=True)
class Wheel:
    """Who is due when, for one entity type in one group: derived from the slots' state alone.

    Nothing of it is saved: after a restart all slots are filed anew, and what it gives in a round
    follows from who is due (the earliest first, ties by key), however they are filed.
    """

    notices: Float64 = field(default_factory=lambda: np.zeros((64, NOTICE)))
    _heads: Int64 = field(default_factory=lambda: np.full(TICKS + 1, -1, np.int64))
    _links: Int64 = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    _tick: int = 0
    told: bool = False
    waiting: int = 0
    _left: list[Int64] = field(default_factory=list)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all arrays."""
        return self.notices.nbytes + self._heads.nbytes + self._links.nbytes

    @property
    def behind(self) -> bool:
        """Whether changes among peers are still to be told, whoever speaks."""
        return bool(self._left)

    @property
    def left(self) -> Int64:
        """int64 (n, PEER_INTS), changes among peers that the next round tells: for a snapshot."""
        return np.concatenate([np.zeros((0, PEER_INTS), np.int64), *self._left])

    @left.setter
    def left(self, changes: Int64) -> None:
        self._left = [changes] if len(changes) else []

    def grow(self, capacity: int) -> None:
        """Make room for so many slots."""
        more = np.full((capacity - len(self._links), 4), -1, np.int64)
        self._links = np.concatenate((self._links, more))

    def reserve(self, rows: int) -> None:
        """Make room for what the kernel may write of so many rows."""
        if len(self.notices) < 2 * rows + 1:
            self.notices.resize((2 * rows + 1, NOTICE), refcheck=False)

    def file(self, slots: Int64, ints: Int64) -> None:
        """Let it know that the due times of slots may have changed."""
        _file(slots, ints, self._tick - 1, self._heads, self._links)

    def forget(self, clock_us: int, ints: Int64, floats: Float64) -> None:
        """Hear of entities that are forgotten: in the next round they are no members any more.

        Parameters
        ----------
        ints, floats : of their slots
        """
        gone = peers_now(ints, floats, len(ints))
        gone[:, 0], gone[:, 3:] = clock_us, -gone[:, 3:]
        self._left.append(gone)

    def correct(
        self, clock_us: int, before: tuple[Int64, Float64], after: tuple[Int64, Float64]
    ) -> None:
        """Hear of entities whose rhythm is another one now: what they are among peers.

        Parameters
        ----------
        before, after : integers and floats of their slots
        """
        was, now = (_standing(*state) for state in (before, after))
        changed = np.flatnonzero((was != now).any(axis=1))
        if len(changed):
            self.forget(clock_us, before[0][changed], before[1][changed])
            come = peers_now(after[0][changed], after[1][changed], len(changed))
            come[:, 0] = clock_us
            self._left.append(come)

    def speak(
        self,
        clock_us: int,
        table: SlotTable,
        state: tuple[Any, Any],
        most: int,
        keep: Callable[[Int64], None],
    ) -> tuple[Overdue, Int64]:
        """What is to be told at the end of a round; notices are used up.

        Parameters
        ----------
        clock_us : event-time clock, 0 where it is not known: nothing is due
        table : whose the slots are; an entity that is forgotten is not overdue any more, what was
            due before is told of it
        state : integers and floats of the slots
        most : absences the wheel may give
        keep : called with slots whose state is about to change

        Returns
        -------
        What is to be told, and the slots whose state has changed by it
        """
        ints, floats = state
        due = self._alive(self._due(ints, clock_us, table.used), ints, table)
        if self.told and not (len(due) or self._left or self.notices[0, 0]):
            self.waiting = 0
            return _NOTHING, _NONE
        most = min(most, RUN_MAX * len(due))
        room = RUN_MAX * int(self.notices[0, 0])
        found = np.empty((room + most, ABSENCE_INTS), np.int64)
        known = np.empty((room + most, ABSENCE_FLOATS))
        changes = np.empty((2 * room + 4 * most, PEER_INTS), np.int64)
        n, many = _unfold(self.notices, ints, found, known, changes)
        self.notices[0, 0] = 0
        begun = n
        while len(due) and n - begun < most:
            order = np.lexsort((table.whose(due), ints[due, DUE]))
            now, due = due[order[: most - (n - begun)]], due[order[most - (n - begun) :]]
            keep(now)
            n, many = _give(now, ints, floats, found, known, changes, n, many)
            again = (ints[now, DUE] > 0) & (ints[now, DUE] < clock_us)
            self.file(now[~again], ints)
            due = np.concatenate((due, self._alive(now[again], ints, table)))
        self.file(due, ints)
        self.waiting = len(due)
        changed = np.unique(found[begun:n, 0])
        order = np.lexsort((table.whose(found[:n, 0]), found[:n, 1]))
        told = np.concatenate((*self._left, changes[:many]))
        self._left.clear()
        if not self.told:
            self.told = True
            told = np.concatenate((peers_before(told, ints, floats, table.used), told))
        return Overdue(found[order], known[order], told), changed

    @staticmethod
    def _alive(slots: Int64, ints: Int64, table: SlotTable) -> Int64:
        """Those of some slots whose entity was not forgotten before it was due."""
        if not len(slots):
            return slots
        alive: Int64 = slots[~table.over(slots, ints[slots, DUE])]
        return alive

    @staticmethod
    def waits(slots: Int64, ints: Int64, table: SlotTable) -> npt.NDArray[np.bool_]:
        """Which slots have an absence that is still to be told."""
        due_us = ints[slots, DUE]
        return np.asarray((due_us > 0) & ~table.over(slots, due_us), np.bool_)

    def _due(self, ints: Int64, clock_us: int, used: int) -> Int64:
        """Slots due before the clock, out of the wheel."""
        if clock_us <= 0:
            return np.zeros(0, np.int64)
        found = np.empty(used, np.int64)
        n = _turn(ints, clock_us, self._tick, self._heads, self._links, found)
        self._tick = clock_us // TICK_US
        return found[:n]


def _standing(ints: Int64, floats: Float64) -> Int64:
    """int64 (n, 4): whether each is a member with a rhythm, whether silent, holder, pool."""
    member = (floats[:, GAPS] >= KNOWN_FROM) & (ints[:, TOLD] < RUN_MAX)
    silent = member & (ints[:, TOLD] > 0)
    return np.column_stack((member, silent, ints[:, PEERS] * member, ints[:, PEERS + 1] * member))


def peers_before(changes: Int64, ints: Int64, floats: Float64, used: int) -> Int64:
    """Members and silent ones before the given changes, summed up, at time 0."""
    now = peers_now(ints, floats, used)
    undone = changes.copy()
    undone[:, 0], undone[:, 3:] = 0, -undone[:, 3:]
    both = np.concatenate((now, undone))
    if not len(both):
        return both
    names, at = np.unique(both[:, :3], axis=0, return_inverse=True)
    summed = np.zeros((len(names), PEER_INTS), np.int64)
    summed[:, :3] = names
    np.add.at(summed[:, 3:], at.ravel(), both[:, 3:])
    left: Int64 = summed[(summed[:, 3:] != 0).any(axis=1)]
    return left


def warm_up() -> None:
    """Compile (or load from the cache) what only runs once somebody is overdue."""
    ints, floats = np.zeros((2, SILENCE_INTS), np.int64), np.zeros((2, SILENCE_FLOATS))
    ints[:, :2], ints[:, LIMIT], ints[:, PEERS] = (1, 2 * TICK_US), TICK_US, 1
    slots = np.arange(2, dtype=np.int64)
    wheel = Wheel()
    wheel.grow(2)
    wheel.file(slots, ints)
    table = SlotTable()
    table.intern(np.array([[1, 1], [2, 1]]))
    wheel.speak(3 * TICK_US, table, (ints, floats), 1, lambda _: None)
