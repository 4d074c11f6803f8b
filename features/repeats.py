"""Which events have been seen before: exact within a horizon, in one table of 64-bit ids.

Sits before everything else in the flow: a repeat touches neither features nor votes. An id that was
admitted and comes again within the horizon is always found; one that comes more than a 240th of
the horizon after it is always new. Exact but for two ids of one 64-bit key: with n events in the
horizon, a new one is taken for a repeat once in 2^64 / n events.

An entry is one word in a bucket of eight, a line of the processor's cache: the place of the bucket
is a part of the key (quotienting), so that the word has room for the time too. At a fill of three
eighths to three quarters that is 11 to 22 bytes an event of the horizon, and up to 33 while the
next table is made ready and filled: 50,000 events/s over an hour are 2 to 4 GB, for a while 6.

Source: Knuth, The Art of Computer Programming 3, 6.4 (exercise 13), for quotienting; Lehman and
others (1980) for buckets with linear probing.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import numpy.typing as npt

from features.events import built_in_types, event_code
from features.keys import UInt64
from features.speed import AHEAD, inlined, kernel, prefetch

__all__ = ["TICKS_MAX", "RepeatFilter", "event_keys", "warm_up"]

_BUCKET = 8
"""Words of a bucket: 64 bytes, a line of the cache."""

_BITS_MIN = 14
"""log2 of the fewest buckets: 8 bits of time and 6 of displacement leave 50 for the key, and the
bucket's place must give the other 14. 1 MB."""

_DISPLACED_MAX = 63
"""Buckets an entry can lie behind its own; six bits. At three quarters full it is two or three."""

TICKS_MAX = 240
"""Parts of the horizon that are told apart; 255 times stand in 8 bits, and what is past the horizon
is swept out before its time comes round again."""

_SWEEP_TICKS = 7
"""Ticks in which the whole table is swept; chosen: half of what is left of 255."""

_FILL_MAX = 0.75
"""Share of words in use above which a table twice as large is begun."""

_PREPARE_FROM = 0.6
"""Share of words in use from which on the next table's memory is made ready."""

_PREPARED_PER_ROW = 2
"""Buckets of it for each row that comes: all of them before the share has become `_FILL_MAX`."""

_MOVED_PER_ROW = 1
"""Buckets of an old table moved for each row that comes; the new table has room for more rows than
the old one has buckets, so that the move is done before it is full."""

_MOVED_MIN = 1 << 11
"""Buckets of an old table moved with a round at least; chosen: 128 kB, some microseconds."""


def event_keys(event_type: str, ids: UInt64) -> UInt64:
    """Keys of events from keys of ids: two types may use one id for different things.

    Returns
    -------
    uint64 (n,)
    """
    return ids ^ np.uint64(_salt(event_type))


@cache
def _salt(event_type: str) -> int:
    """What sets apart the ids of an event type; of a user's own by name, since its code moves
    where another is declared that stands before it."""
    if event_type in built_in_types():
        return (event_code(event_type) + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
    return int.from_bytes(hashlib.sha256(event_type.encode()).digest()[:8], "little")


@inlined
def _age(word, tick):
    """Ticks since the entry was seen, modulo 255."""
    return (np.int64(tick) - (np.int64(word & np.uint64(255)) - 1)) % 255


@inlined
def _find(key, bits, table, reach):
    """(bucket, place) of the key's entry, or (-1, 0)."""
    mask = np.int64(len(table) - 1)
    home = np.int64(key & np.uint64(mask))
    rest = (key >> np.uint64(bits)) << np.uint64(6)
    bucket, place = np.int64(-1), 0
    for d in range(reach[home] + 1):
        at = (home + d) & mask
        wanted = rest | np.uint64(d)
        for j in range(_BUCKET):
            word = table[at, j]
            if word != np.uint64(0) and word >> np.uint64(8) == wanted:
                bucket, place = at, j
        if bucket >= 0:
            break
    return bucket, place


@inlined
def _put(key, stamp, tick, limit, bits, table, reach):
    """Write an entry that is not there; 1 where a free word was filled, 0 where an old one was
    taken, -1 where there was no room near."""
    mask = np.int64(len(table) - 1)
    home = np.int64(key & np.uint64(mask))
    rest = (key >> np.uint64(bits)) << np.uint64(6)
    filled = np.int64(-1)
    for d in range(_DISPLACED_MAX + 1):
        at = (home + d) & mask
        for j in range(_BUCKET):
            word = table[at, j]
            if word == np.uint64(0) or _age(word, tick) > limit:
                filled = np.int64(word == np.uint64(0))
                table[at, j] = (rest | np.uint64(d)) << np.uint64(8) | np.uint64(stamp)
                break
        if filled >= 0:
            reach[home] = max(reach[home], d)
            break
    return filled


@kernel
def _admit(first, ids, tick, limit, bits, table, reach, old_bits, old_table, old_reach, fresh):
    """Mark rows from `first` on whose id is in neither table within the limit.

    Returns (row that found no room or n, words filled).
    """
    filled = 0
    stamp = tick % 255 + 1
    for i in range(first, len(ids)):
        if i + AHEAD < len(ids):
            mask = np.uint64(len(table) - 1)
            prefetch(table, np.int64(ids[i + AHEAD] & mask))
        key = ids[i]
        bucket, place = _find(key, bits, table, reach)
        if bucket >= 0:
            word = table[bucket, place]
            fresh[i] = _age(word, tick) > limit
            if fresh[i]:
                table[bucket, place] = word & ~np.uint64(255) | np.uint64(stamp)
            continue
        fresh[i] = True
        if len(old_table) > 1:
            bucket, place = _find(key, old_bits, old_table, old_reach)
            fresh[i] = bucket < 0 or _age(old_table[bucket, place], tick) > limit
        if fresh[i]:
            put = _put(key, stamp, tick, limit, bits, table, reach)
            if put < 0:
                return i, filled
            filled += put
    return len(ids), filled


@kernel
def _known(ids, tick, limit, bits, table, reach, old_bits, old_table, old_reach, found):
    """Mark rows whose id is in one of the tables within the limit; nothing is written."""
    for i in range(len(ids)):
        bucket, place = _find(ids[i], bits, table, reach)
        found[i] = bucket >= 0 and _age(table[bucket, place], tick) <= limit
        if not found[i] and len(old_table) > 1:
            bucket, place = _find(ids[i], old_bits, old_table, old_reach)
            found[i] = bucket >= 0 and _age(old_table[bucket, place], tick) <= limit


@kernel
def _load(first, ids, ticks, tick, limit, bits, table, reach):
    """Put known entries into a table; a later time of an id wins.

    Returns (row that found no room or n, words filled).
    """
    filled = 0
    for i in range(first, len(ids)):
        if tick - ticks[i] > limit:
            continue
        stamp = np.uint64(ticks[i] % 255 + 1)
        bucket, place = _find(ids[i], bits, table, reach)
        if bucket >= 0:
            word = table[bucket, place]
            if _age(word, tick) > tick - ticks[i]:
                table[bucket, place] = word & ~np.uint64(255) | stamp
            continue
        put = _put(ids[i], stamp, tick, limit, bits, table, reach)
        if put < 0:
            return i, filled
        filled += put
    return len(ids), filled


@kernel
def _sweep(first, last, tick, limit, table):
    """Clear what is past the limit in buckets first..last; returns how many words."""
    cleared = 0
    for at in range(first, last):
        for j in range(_BUCKET):
            word = table[at, j]
            if word != np.uint64(0) and _age(word, tick) > limit:
                table[at, j] = np.uint64(0)
                cleared += 1
    return cleared


@kernel
def _collect(first, last, tick, limit, bits, table, ids, ticks):
    """Copy keys and ticks of the entries of buckets first..last within the limit; how many."""
    mask = np.int64(len(table) - 1)
    n = 0
    for at in range(first, last):
        for j in range(_BUCKET):
            word = table[at, j]
            if word == np.uint64(0) or _age(word, tick) > limit:
                continue
            home = (at - np.int64(word >> np.uint64(8) & np.uint64(_DISPLACED_MAX))) & mask
            ids[n] = (word >> np.uint64(14)) << np.uint64(bits) | np.uint64(home)
            ticks[n] = tick - _age(word, tick)
            n += 1
    return n


def warm_up() -> None:
    """Compile (or load from the cache) the kernels: the first round is not to wait for it."""
    filter_ = RepeatFilter(1)
    filter_.admit(np.arange(1, 1 << 17, dtype=np.uint64), 1)
    filter_.known(np.arange(1, 3, dtype=np.uint64), 1)
    filter_.load(filter_.full())


class _Table:
    """Buckets, and how far behind its own bucket an entry of each lies at most."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        words = _BUCKET << bits if bits else _BUCKET
        room = np.zeros(words + _BUCKET, np.uint64)
        # The start of a line, so that a bucket is one.
        start = -(room.ctypes.data // 8) % _BUCKET
        self.words: UInt64 = room[start : start + words].reshape(-1, _BUCKET)
        self.reach = np.zeros(len(self.words), np.uint8)
        self.filled = 0

    @property
    def bytes(self) -> int:
        """Bytes of memory."""
        return self.words.nbytes + self.reach.nbytes


class RepeatFilter:
    """Exact memory of event ids over a horizon of `cut_time`.

    Parameters
    ----------
    horizon_us : an id seen again within this many microseconds of cut time is a repeat; 0 turns
        it off
    """

    def __init__(self, horizon_us: int) -> None:
        self.horizon_us = horizon_us
        self._step_us = max(1, -(-horizon_us // TICKS_MAX))
        self._limit = -(-horizon_us // self._step_us)
        self._newest_us = 0
        self._new: list[tuple[UInt64, int]] = []
        self._table = _Table(_BITS_MIN)
        self._old = _Table(0)
        self._next: _Table | None = None
        self._moved = self._swept = self._prepared = 0
        self._prune_at = TICKS_MAX

    def __len__(self) -> int:
        return self._table.filled + self._old.filled

    @property
    def memory_bytes(self) -> int:
        """Bytes of the table, of the one it takes over from, and of the one being made ready."""
        ready = 0 if self._next is None else min(self._prepared * 64, self._next.bytes)
        return self._table.bytes + (self._old.bytes if self._old.bits else 0) + ready

    @property
    def needed_since_us(self) -> int:
        """Entries seen before this cut time are needed no more."""
        return self._newest_us - self.horizon_us - self._step_us

    @property
    def _tick(self) -> int:
        return self._newest_us // self._step_us

    def _go_to(self, cut_time_us: int) -> None:
        """Let time pass: sweep as much of the table as of it has passed, and move on a move."""
        elapsed_us = cut_time_us - self._newest_us
        if elapsed_us <= 0:
            return
        if elapsed_us >= _SWEEP_TICKS * self._step_us:
            self._leap(cut_time_us // self._step_us - self._tick)
            self._newest_us = cut_time_us
            return
        self._newest_us = cut_time_us
        share = elapsed_us / (_SWEEP_TICKS * self._step_us)
        self._move(int(share * len(self._old.words)) + 1)
        buckets = len(self._table.words)
        left = min(buckets, int(share * buckets) + 1)
        while left > 0:
            last = min(buckets, self._swept + left)
            cleared = _sweep(self._swept, last, self._tick, self._limit, self._table.words)
            self._table.filled -= cleared
            left -= last - self._swept
            self._swept = last % buckets

    def _leap(self, ticks: int) -> None:
        """Clear at once all that is past the limit so many ticks from now.

        Left to the sweep, it would be taken for young again when its time comes round.
        """
        if ticks > self._limit:
            self._table, self._old, self._moved = _Table(_BITS_MIN), _Table(0), 0
            self._next = None
        for table in (self._table, self._old):
            words = table.words
            table.filled -= _sweep(0, len(words), self._tick, self._limit - ticks, words)
        self._swept = 0

    def _make_room(self, incoming: int) -> None:
        """Begin a table of another size before this one is too full.

        The old one is moved bit by bit, and asked until then: millions of ids at once would hold a
        round up. So would the memory of the new one, were it met for the first time by ids that
        touch all of it at once: it is written to, bit by bit, before it is used.
        """
        if self._old.bits:
            self._move(max(_MOVED_MIN, _MOVED_PER_ROW * incoming))
        size = self._table.words.size
        if len(self) + incoming <= _PREPARE_FROM * size:
            self._next = None
            return
        if self._next is None:
            self._next, self._prepared = _Table(self._table.bits + 1), 0
        lines = max(_MOVED_MIN, _PREPARED_PER_ROW * incoming)
        self._next.words[self._prepared : self._prepared + lines] = 0
        self._prepared += lines
        if len(self) + incoming > _FILL_MAX * size:
            self._move(len(self._old.words))
            bits = self._table.bits + 1
            while len(self) + incoming > _PREPARE_FROM * (_BUCKET << bits):
                bits += 1
            self._begin(bits)

    def _begin(self, bits: int) -> None:
        """Begin a new table; the one there is becomes the old one."""
        table, self._next = self._next, None
        if table is None or table.bits != bits:
            table = _Table(bits)
        self._old, self._table = self._table, table
        self._moved = self._swept = 0

    def _move(self, buckets: int) -> None:
        """Take so many more buckets of the old table over."""
        old = self._old
        if not old.bits:
            return
        last = min(len(old.words), self._moved + buckets)
        room = (last - self._moved) * _BUCKET
        ids, ticks = np.empty(room, np.uint64), np.empty(room, np.int64)
        n = _collect(self._moved, last, self._tick, self._limit, old.bits, old.words, ids, ticks)
        self._moved = last
        old.filled = max(0, old.filled - n)
        done = last == len(old.words)
        if done:
            self._old = _Table(0)
        self._insert(ids[:n], ticks[:n])

    def _insert(self, ids: UInt64, ticks: npt.NDArray[np.int64]) -> None:
        """Put entries into the table; where one finds no room near, into one twice as large."""
        at = 0
        while at < len(ids):
            table = self._table
            at, filled = _load(
                at, ids, ticks, self._tick, self._limit, table.bits, table.words, table.reach
            )
            table.filled += filled
            if at < len(ids):
                self._widen()

    def _widen(self) -> None:
        """A table twice as large at once: an entry found no room near its place. Never seen."""
        self._move(len(self._old.words))
        self._begin(self._table.bits + 1)
        self._move(len(self._old.words))

    def admit(self, ids: UInt64, cut_time_us: int) -> npt.NDArray[np.bool_]:
        """Which rows are seen for the first time within the horizon.

        Parameters
        ----------
        ids : uint64 (n,), keys of the event ids, in the order of the round
        cut_time_us : the round's clock

        Returns
        -------
        bool (n,), True where the row goes on
        """
        fresh = np.ones(len(ids), np.bool_)
        if self.horizon_us == 0 or not len(ids):
            return fresh
        self._go_to(cut_time_us)
        self._make_room(len(ids))
        at = 0
        while at < len(ids):
            table, old = self._table, self._old
            at, filled = _admit(
                at, ids, self._tick, self._limit, table.bits, table.words, table.reach, old.bits,
                old.words, old.reach, fresh,
            )  # fmt: skip
            table.filled += filled
            if at < len(ids):
                self._widen()
        self._new.append((ids[fresh], self._newest_us))
        if len(self._new) > self._prune_at:
            # A long backfill takes no deltas; without this it would keep every id it ever saw.
            since_us = self.needed_since_us
            self._new = [(new, seen_us) for new, seen_us in self._new if seen_us >= since_us]
            self._prune_at = 2 * len(self._new) + TICKS_MAX
        return fresh

    def known(self, ids: UInt64, cut_time_us: int) -> npt.NDArray[np.bool_]:
        """Which rows have been admitted within the horizon; asking leaves no trace.

        Parameters
        ----------
        ids, cut_time_us : as of `admit`

        Returns
        -------
        bool (n,)
        """
        found = np.zeros(len(ids), np.bool_)
        if self.horizon_us == 0 or not len(ids):
            return found
        self._go_to(cut_time_us)
        table, old = self._table, self._old
        _known(
            ids, self._tick, self._limit, table.bits, table.words, table.reach, old.bits,
            old.words, old.reach, found,
        )  # fmt: skip
        return found

    def delta(self) -> dict[str, npt.NDArray[np.generic]]:
        """Entries since the last `delta` or `full`: ids in runs, times and lengths of the runs."""
        new, self._new = self._new, []
        ids = [i for i, _ in new]
        return {
            "id": np.concatenate(ids) if ids else np.zeros(0, np.uint64),
            "us": np.array([us for _, us in new], np.int64),
            "n": np.array([len(i) for i in ids], np.int64),
        }

    def full(self) -> dict[str, npt.NDArray[np.generic]]:
        """All entries within the horizon, in the form of `delta`."""
        self._new = []
        self._move(len(self._old.words))
        table = self._table
        ids, ticks = np.empty(table.filled, np.uint64), np.empty(table.filled, np.int64)
        n = _collect(
            0, len(table.words), self._tick, self._limit, table.bits, table.words, ids, ticks
        )
        order = np.argsort(ticks[:n], kind="stable")
        runs, lengths = np.unique(ticks[:n], return_counts=True)
        return {"id": ids[:n][order], "us": runs * self._step_us, "n": lengths.astype(np.int64)}

    def load(self, arrays: dict[str, npt.NDArray[np.generic]]) -> None:
        """Take in what `full` or `delta` gave, oldest first."""
        ids = arrays["id"].astype(np.uint64)
        times, lengths = arrays["us"].astype(np.int64), arrays["n"].astype(np.int64)
        if self.horizon_us == 0 or not len(times):
            return
        self._go_to(int(times.max()))
        self._make_room(len(ids))
        self._insert(ids, np.repeat(times // self._step_us, lengths))
