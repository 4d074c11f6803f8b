"""The table of pairs: for each value of another column met with an entity, when it was last met.

One open-addressing table a ring, of 24 bytes a place, two thirds to four fifths full: it grows by a
fourth, so its size is no power of two. A key's home is where its upper bits lie in the table, so
that a table that grows is copied from front to back and waits for little memory.

What no later row can ask for is let go when the table is full: that is said by the time of the
pair's own entity alone, so that when the table was full never shows in a feature. A snapshot takes
what has changed since the one before: each entry carries the number of the snapshot that it waits
for.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.speed import inlined, kernel

__all__ = [
    "BOUND",
    "COLUMNS",
    "CROWDED",
    "ESTIMATED",
    "FILLED",
    "KEY",
    "LEVELED",
    "ONE_IN",
    "ROOM",
    "LONG_AGO",
    "WHOSE",
    "SEQ_BITS",
    "STAMP",
    "WHEN",
    "PairTable",
    "find_pair",
    "insert_pairs",
    "keep_pairs",
    "met_at",
    "move_pairs",
    "whose",
    "owners",
    "pair_home",
    "pair_key",
    "pair_value",
    "stamped",
    "warm_up",
]

Int64 = npt.NDArray[np.int64]

# Places in an entry: hash of slot, column and value, 0 where the place is free; slot and column
# above the lower bits of the record's number; time in us above the stamp.
KEY, WHOSE, WHEN = 0, 1, 2
COLUMNS = 3

SEQ_BITS = 34
"""Bits of a record's number that an entry keeps; the rest is the slot's HEAD's. Chosen: an entity
with 4,000 events/s comes round after 45 days, when its pairs are forgotten."""

_SEQ = (1 << SEQ_BITS) - 1

STAMP_BITS = 2

_STAMPS = (1 << STAMP_BITS) - 1

LONG_AGO = -(1 << 61)
"""Time of a pair that was never met; no event is so old, and differences stay within int64."""

# Places in `PairTable.numbers`: entries, entries there may be, stamp of what changes now; different
# others of an entity in its longest window above which pairs are thinned (`features.sampling`), 0
# for none, rows whose counts were estimates, of how many pairs one was kept at the least, and 1
# where some entity may have more others than the bound, or a level: nobody is asked before.
FILLED, ROOM, STAMP, BOUND, ESTIMATED, ONE_IN, LEVELED = 0, 1, 2, 3, 4, 5, 6

CROWDED = 2
"""Stands at LEVELED where a row waits for its entity's pairs to be thinned."""

COPIED = 3
"""Stamp of an entry that the snapshot under way has and whose place it has not yet come by; 0: it
is in a snapshot; 1 and 2, in turn: it waits for the next, or for the one under way."""

PAIRS_MIN = 1 << 10
"""Places a table starts with, and those that are copied at once however few a part is; chosen: some
tens of kilobytes a group."""

FULL = 13 / 16
"""Share of places that may be taken; chosen: a pair that is not there is then looked for in 14
places side by side on average (Knuth, vol. 3, 6.4, linear probing), six lines of memory; in a table
that has just grown in 5."""

_UNDO_FIRST = pow(0xFF51AFD7ED558CCD, -1, 1 << 64)
_UNDO_SECOND = pow(0xC4CEB9FE1A85EC53, -1, 1 << 64)
"""Inverses of the odd factors of `pair_key`."""

GROWTH = 1.25
"""A full table becomes so many times as large as what lives in it needs."""


@kernel
def pair_key(slot, column, value):
    """Key of (slot, pair column, value), never 0."""
    h = np.uint64(value) ^ (np.uint64(slot * 16 + column + 1) * np.uint64(0x9E3779B97F4A7C15))
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return np.int64(h) if h != np.uint64(0) else np.int64(1)


@kernel
def pair_value(key, slot, column):
    """The value of which `pair_key` made a key: its steps, undone."""
    h = np.uint64(key)
    h ^= h >> np.uint64(33)
    h *= np.uint64(_UNDO_SECOND)
    h ^= h >> np.uint64(33)
    h *= np.uint64(_UNDO_FIRST)
    h ^= h >> np.uint64(33)
    return np.int64(h ^ (np.uint64(slot * 16 + column + 1) * np.uint64(0x9E3779B97F4A7C15)))


@inlined
def pair_home(key, size):
    """Place where a search for the key begins, in a table of so many (below 2^32)."""
    return np.int64(((np.uint64(key) >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32))


@kernel
def find_pair(key, table):
    """Place of the pair's key in the table, or the free place where it would go."""
    at = pair_home(key, len(table))
    while table[at, KEY] != 0 and table[at, KEY] != key:
        at += 1
        if at == len(table):
            at = 0
    return at


@inlined
def whose(slot, column, seq):
    """What an entry says of whose it is, and of which record."""
    return ((slot * 16 + column) << SEQ_BITS) | (seq & _SEQ)


@inlined
def met_at(entry, head):
    """Number of the record the pair was last met in and its time; the entity's next one is `head`.

    -1 and LONG_AGO where it was never met.
    """
    last_us = entry[WHEN] >> STAMP_BITS
    if last_us == LONG_AGO:
        return np.int64(-1), last_us
    return head - ((head - entry[WHOSE]) & _SEQ), last_us


@inlined
def stamped(time_us, stamp):
    """What an entry says of when, and of the snapshot it waits for."""
    return (time_us << STAMP_BITS) | stamp


def owners(entries: Int64) -> Int64:
    """16 times the slot plus the pair column of each entry."""
    found: Int64 = entries[:, WHOSE] >> SEQ_BITS
    return found


@inlined
def _gone(entry, latest_us, newest_us, ttl_us, born, heads, saved):
    """Whether no row can ask for an entry; see `move_pairs`."""
    column = (entry[WHOSE] >> SEQ_BITS) & 15
    slot = entry[WHOSE] >> (SEQ_BITS + 4)
    seq, last_us = met_at(entry, np.int64(0))
    if saved and last_us == LONG_AGO and entry[WHEN] & _STAMPS != 0:
        return False
    # Asked first without the slot, which is another line of memory.
    if latest_us - last_us > ttl_us[column] and newest_us[slot] - last_us > ttl_us[column]:
        return True
    if len(born) == 0:
        return False
    seq, last_us = met_at(entry, heads[slot])
    return seq < born[slot]


@kernel
def _count_pairs(table, latest_us, newest_us, ttl_us, born, heads, saved):
    """Entries that `move_pairs` takes along."""
    found = 0
    for at in range(len(table)):
        if table[at, KEY] != 0 and not _gone(
            table[at], latest_us, newest_us, ttl_us, born, heads, saved
        ):
            found += 1
    return found


@kernel
def move_pairs(table, latest_us, newest_us, ttl_us, born, heads, saved, to):
    """Put the entries that may be asked for into an empty table with room.

    Parameters
    ----------
    newest_us : int64 by slot, time of the oldest row that may come of the slot's entity
    latest_us : the largest of them, LONG_AGO where they are not known
    ttl_us : int64 by pair column, how long after it was met an entry may be asked for
    born, heads : int64 by slot, first record of the slot's entity and number of its next; empty
        where no slot has gone from one entity to another
    saved : whether there are snapshots: one may have an entry that has been let go since, which
        then stays until the next has it, too
    """
    for at in range(len(table)):
        if table[at, KEY] != 0 and not _gone(
            table[at], latest_us, newest_us, ttl_us, born, heads, saved
        ):
            place = find_pair(table[at, KEY], to)
            for k in range(COLUMNS):
                to[place, k] = table[at, k]


@kernel
def insert_pairs(entries, first, table, numbers):
    """Put saved entries `first`.. into a table; returns the one that found no room, or how many."""
    for i in range(first, len(entries)):
        at = find_pair(entries[i, KEY], table)
        if table[at, KEY] == 0:
            if numbers[FILLED] >= numbers[ROOM]:
                return i
            numbers[FILLED] += 1
        for k in range(COLUMNS):
            table[at, k] = entries[i, k]
    return len(entries)


@inlined
def _copy_entry(entry, stamp, to):
    """Copy an entry for a snapshot, where no stamp is; `stamp` is its own from now on."""
    entry[WHEN] &= ~np.int64(_STAMPS)
    for k in range(COLUMNS):
        to[k] = entry[k]
    entry[WHEN] |= stamp


@kernel
def _scan_pairs(table, first, end, now, everything, copied):
    """Copy what a snapshot wants of places first..end; returns how many.

    Parameters
    ----------
    now : stamp of what has changed since the snapshot began
    everything : whether it wants those of earlier snapshots, too
    """
    found = 0
    for at in range(first, end):
        stamp = table[at, WHEN] & _STAMPS
        if table[at, KEY] == 0 or stamp == now:
            continue
        if stamp == COPIED:
            table[at, WHEN] &= ~np.int64(_STAMPS)
        elif stamp != 0 or everything:
            _copy_entry(table[at], 0, copied[found])
            found += 1
    return found


@kernel
def keep_pairs(slots, head, others, table, first, now, everything, copied):
    """Copy what a snapshot wants of the pairs of rows about to pass; returns how many.

    `first` is the place up to which the snapshot has come; for others see `_scan_pairs`.
    """
    found = 0
    for i in range(len(slots)):
        for p in range(len(others)):
            value = head[i, others[p]]
            if value == 0:
                continue
            at = find_pair(pair_key(slots[i], p, value), table)
            stamp = table[at, WHEN] & _STAMPS
            if table[at, KEY] == 0 or at < first or stamp in (now, COPIED):
                continue
            if stamp != 0 or everything:
                _copy_entry(table[at], COPIED, copied[found])
                found += 1
    return found


class PairTable:
    """The pairs of one ring.

    Parameters
    ----------
    ttl_us : int64 by pair column, how long after it was met a pair may be asked for
    bound : different others in the longest window above which pairs are thinned, 0 for none

    Attributes
    ----------
    table : int64 (places, 3)
    numbers : int64 (7,), for kernels: see FILLED and those after it
    """

    def __init__(self, ttl_us: Int64, bound: int = 0) -> None:
        self._ttl_us = ttl_us
        self.numbers = np.array([0, 0, 1, bound, 0, 0, 0], np.int64)
        self._new_table(PAIRS_MIN if len(ttl_us) else 1)
        self._scanned = len(self.table)
        self._everything = self._saved = False
        self._copied: list[Int64] = []

    def _new_table(self, size: int) -> None:
        self.table = np.zeros((size, COLUMNS), np.int64)
        self.numbers[ROOM] = int(size * FULL)

    def __len__(self) -> int:
        return int(self.numbers[FILLED])

    @property
    def memory_bytes(self) -> int:
        """Bytes of the table."""
        return self.table.nbytes

    def grow(self, incoming: int, newest_us: Int64, born: Int64, heads: Int64) -> None:
        """Make room for new pairs, and let go those that no row can ask for.

        Parameters
        ----------
        newest_us, born, heads : see `move_pairs`; none where they are not known
        """
        self._scan(len(self.table))
        latest_us = int(newest_us.max(initial=LONG_AGO))
        gone = (latest_us, newest_us, self._ttl_us, born, heads, self._saved)
        live = _count_pairs(self.table, *gone)
        before = self.table
        self._new_table(max(PAIRS_MIN, int((live + incoming) * GROWTH / FULL) + 1))
        move_pairs(before, *gone, self.table)
        self.numbers[FILLED] = live
        self._scanned = len(self.table)

    def begin(self, everything: bool) -> None:
        """Begin a snapshot of this moment."""
        self.numbers[STAMP] = 3 - self.numbers[STAMP]
        self._everything, self._saved = everything, True
        self._scanned = 0

    @property
    def scanned(self) -> bool:
        """Whether nothing is left to copy."""
        return self._scanned == len(self.table)

    def settle(self) -> None:
        """Copy what is to be copied of all that is left, before any entry may change."""
        self._scan(len(self.table))

    def _scan(self, places: int) -> None:
        """Copy what is to be copied of the next so many places."""
        if self.scanned:
            return
        end = min(self._scanned + places, len(self.table))
        copied = np.empty((end - self._scanned, COLUMNS), np.int64)
        now = self.numbers[STAMP]
        found = _scan_pairs(self.table, self._scanned, end, now, self._everything, copied)
        self._scanned = end
        self._copied.append(copied[:found].copy())

    def keep(self, slots: Int64, head: Int64, others: Int64) -> None:
        """Copy pairs that are to be copied of rows about to pass; `others` are their columns."""
        if self.scanned:
            return
        kept = np.empty((len(slots) * len(others), COLUMNS), np.int64)
        first, now = self._scanned, self.numbers[STAMP]
        found = keep_pairs(slots, head, others, self.table, first, now, self._everything, kept)
        self._copied.append(kept[:found].copy())

    def copy(self, parts: int) -> Int64:
        """int64 (n, 3), what has been copied since, and one of `parts` parts of the rest."""
        if parts:
            self._scan(max(-(-len(self.table) // parts), PAIRS_MIN))
        copied, self._copied = self._copied, []
        return np.concatenate([np.zeros((0, COLUMNS), np.int64), *copied])

    def load(self, entries: Int64) -> None:
        """Put saved pairs back."""
        self._saved = True
        nobody = np.zeros(0, np.int64)
        done = insert_pairs(entries, 0, self.table, self.numbers)
        while done < len(entries):
            # Once for all that is left: step by step it was half of a restart's work on state.
            self.grow(len(entries) - done, nobody, nobody, nobody)
            done = insert_pairs(entries, done, self.table, self.numbers)


def warm_up() -> None:
    """Compile (or load from the cache) what only runs once a table is full."""
    pairs = PairTable(np.ones(1, np.int64))
    nobody = np.zeros(0, np.int64)
    pairs.grow(1, nobody, nobody, nobody)
