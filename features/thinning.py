"""Where the level of an entity's pairs rises: some are kept no longer, the others count for more.

It happens between two rows, and a row that comes late may want it undone: what went stands in a log
for as long as there is a checkpoint of before (`features.late`), and is put back with it.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.pairs import (
    BOUND,
    COLUMNS,
    FILLED,
    KEY,
    LONG_AGO,
    SEQ_BITS,
    STAMP,
    WHEN,
    WHOSE,
    find_pair,
    met_at,
    pair_value,
    stamped,
    whose,
)
from features.panes import first_number, forget_pairs, recount
from features.sampling import crowded, level_of, raised, sampled, weight_of
from features.speed import kernel
from features.windows import BASE, BORN, CAPACITY, HEAD, KEPT, SAVED, SHARED

__all__ = ["ThinLog", "Thinned", "count_again", "put_back", "thin"]

Arrays = dict[str, npt.NDArray[Any]]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Thinned:
    """What went when a level rose.

    Parameters
    ----------
    slot, column : whose, and of which pairs
    head : number of the slot's record that was to come
    checkpoint : number of the next checkpoint then
    entries : int64 (n, 3), of the table of pairs
    """

    slot: int
    column: int
    head: int
    checkpoint: int
    entries: Int64


class ThinLog:
    """What went since the oldest checkpoint there is, in order.

    Bounded by the log of late rows: a pair goes once for each row that it came with, or was kept
    before; the latter are as many as the bound asks for and what is remembered beyond the window.

    Attributes
    ----------
    checkpoint : number of the next checkpoint
    """

    def __init__(self) -> None:
        self.checkpoint = 0
        self._items: list[Thinned] = []

    def __len__(self) -> int:
        return len(self._items)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all entries."""
        return sum(one.entries.nbytes for one in self._items)

    def add(self, slot: int, column: int, head: int, entries: Int64) -> None:
        """Note what has just gone."""
        self._items.append(Thinned(slot, column, head, self.checkpoint, entries))

    def take(self, slots: Int64, heads: Int64) -> list[Thinned]:
        """What went of slots since they had records up to `heads`; it is in the log no longer.

        Parameters
        ----------
        slots, heads : int64 (n,)
        """
        if not self._items:
            return []
        since = dict(zip(slots.tolist(), heads.tolist(), strict=True))
        found = [one for one in self._items if one.head >= since.get(one.slot, one.head + 1)]
        gone = {id(one) for one in found}
        self._items = [one for one in self._items if id(one) not in gone]
        return found

    def forget(self, checkpoint: int) -> None:
        """Let go what no checkpoint from this number on is older than."""
        self._items = [one for one in self._items if one.checkpoint > checkpoint]

    def clear(self) -> None:
        """Let go all."""
        self._items = []

    def dump(self) -> Arrays:
        """Two arrays: int64 (n, 5), what each was of and its entries; int64 (m, 3), these."""
        rows = [(o.slot, o.column, o.head, o.checkpoint, len(o.entries)) for o in self._items]
        none = np.zeros((0, COLUMNS), np.int64)
        return {
            "thinned": np.array(rows, np.int64).reshape(-1, 5),
            "thinned_pairs": np.concatenate([none, *(one.entries for one in self._items)]),
        }

    def load(self, arrays: Arrays) -> None:
        """Be as dumped; empty where a snapshot of before has none."""
        self._items, done = [], 0
        for slot, column, head, checkpoint, many in arrays.get(
            "thinned", np.zeros((0, 5))
        ).tolist():
            entries = arrays["thinned_pairs"][done : done + many]
            self._items.append(Thinned(slot, column, head, checkpoint, entries))
            done += many


@kernel
def thin(slot, config, ints, arena_ints, table, numbers, gone):
    """Raise the level of a slot's first column with too many pairs; let go what is kept no longer.

    Its counts are found again by `count_again`.

    Parameters
    ----------
    config : int64 (5,), windows, flags, reals, maxima, pairs
    ints, arena_ints : of the ring
    table, numbers : of `features.pairs.PairTable`; no snapshot waits for any of its entries
    gone : int64 (entries, 3), filled with those that go

    Returns
    -------
    (the column, -1 where there is none; how many go)
    """
    windows, flags, reals, maxima, pairs = config
    row, found = ints[slot], 0
    levels = SHARED + pairs + maxima + windows * (2 + flags + reals + maxima + pairs)
    p = crowded(row, levels - pairs, levels, pairs, numbers)
    if p < 0:
        return p, found
    word = raised(row[levels + p], row[levels - pairs + p], numbers[BOUND])
    row[levels + p] = word
    owner = slot * 16 + p
    for at in range(len(table)):
        entry = table[at]
        if entry[KEY] == 0 or entry[WHOSE] >> SEQ_BITS != owner:
            continue
        seq, _ = met_at(entry, row[HEAD])
        if seq < row[BORN] or sampled(pair_value(entry[KEY], slot, p), level_of(word, seq)):
            continue
        for k in range(COLUMNS):
            gone[found, k] = entry[k]
        found += 1
        if seq >= row[KEPT] and row[CAPACITY] > 0:
            arena_ints[row[BASE] + seq, 1] &= ~(np.int64(2) << (2 * p))
            row[SAVED] = min(row[SAVED], seq)
        entry[WHOSE] = whose(slot, p, np.int64(-1))
        entry[WHEN] = stamped(np.int64(LONG_AGO), numbers[STAMP])
    return p, found


@kernel
def count_again(slot, p, config, ints, table, paned, panes, windows_too):
    """Count the pairs of a slot's column anew: in panes of its longest window, in windows where
    asked."""
    windows, flags, reals, maxima, pairs = config
    row, shape = ints[slot], (flags, reals, maxima, pairs)
    stride = 2 + flags + reals + maxima + pairs
    first = SHARED + pairs + maxima
    levels = first + windows * stride
    since, word, owner = row[levels - stride], row[levels + p], slot * 16 + p
    if paned:
        since = first_number(row, levels - stride, shape, panes)
        forget_pairs(row, p, shape, panes)
    if windows_too:
        for w in range(windows):
            row[first + (w + 1) * stride - pairs + p] = 0
    for at in range(len(table)):
        entry = table[at]
        if entry[KEY] == 0 or entry[WHOSE] >> SEQ_BITS != owner:
            continue
        seq, _ = met_at(entry, row[HEAD])
        if seq < row[BORN]:
            continue
        weight = weight_of(word, seq)
        if paned and seq >= since:
            recount(row, seq, p, weight, shape, panes)
        if windows_too:
            for w in range(windows):
                w_int = first + w * stride
                if seq >= (since if w == windows - 1 else row[w_int]):
                    row[w_int + stride - pairs + p] += weight


@kernel
def put_back(slot, p, entries, head, everything, ints, arena_ints, table, numbers):
    """Put entries back that went, as they were when the slot's next record had the number `head`.

    Called once before the rows since are undone, for these to find them, and once after: a pair
    that went and was met again has a row that says that it had never been met. The table has room
    for all, and no snapshot waits for any entry.

    Parameters
    ----------
    entries : int64 (n, 3), as of `thin`
    everything : whether those met since are put back, too
    """
    row = ints[slot]
    for i in range(len(entries)):
        seq, time_us = met_at(entries[i], row[HEAD])
        if seq >= head and not everything:
            continue
        at = find_pair(entries[i, KEY], table)
        if table[at, KEY] == 0:
            numbers[FILLED] += 1
        for k in range(COLUMNS):
            table[at, k] = entries[i, k]
        table[at, WHEN] = stamped(time_us, numbers[STAMP])
        if row[KEPT] <= seq < head and row[CAPACITY] > 0:
            arena_ints[row[BASE] + seq, 1] |= np.int64(2) << (2 * p)
            row[SAVED] = min(row[SAVED], seq)
