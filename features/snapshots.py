"""Rings in snapshots: what came since the last one is copied out, and put back behind the rest.

A snapshot holds of each slot its row of counts and sums, and of its ring only the records from
SAVED on. Marks set since on older records stand in a log. The queues of maxima are in none: they
are found again from the records once all snapshots are back.

A snapshot is of one moment, and copied bit by bit while the stream goes on: what is about to change
is copied first.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from features.arena import allocate, release
from features.speed import AHEAD, kernel, prefetch
from features.windows import (
    CAPACITY,
    FLAG_BITS,
    HEAD,
    SAVED,
    SHARED,
    START,
)

__all__ = [
    "copy_rings",
    "count_records",
    "join",
    "mark_records",
    "place_rings",
    "restore_queue",
    "restore_queues",
    "take_pending",
]

Arrays = dict[str, npt.NDArray[Any]]


def join(parts: list[Arrays]) -> Arrays:
    """A snapshot in one piece, from its parts in the order in which they were copied.

    Examples
    --------
    >>> join([{"a": np.array([1, 2])}, {"a": np.array([3]), "b": np.array([4])}])
    {'a': array([1, 2, 3]), 'b': array([4])}
    """
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: np.concatenate([p[name] for p in parts if name in p]) for name in names}


@kernel
def take_pending(slots, pending, taken):
    """Those of `slots` that are still to be copied, each once, into `taken`; returns how many."""
    found = 0
    for i in range(len(slots)):
        if pending[slots[i]]:
            pending[slots[i]] = 0
            taken[found] = slots[i]
            found += 1
    return found


@kernel
def count_records(slots, ints, longest, everything):
    """Records `copy_rings` will copy; sets SAVED of the slots to the first of each.

    Parameters
    ----------
    longest : column of a slot's row with its oldest record's number
    everything : whether records of earlier snapshots count too
    """
    found = 0
    for i in range(len(slots)):
        if i + AHEAD < len(slots):
            prefetch(ints, slots[i + AHEAD])
        row = ints[slots[i]]
        if everything or row[SAVED] < row[longest]:
            row[SAVED] = row[longest]
        found += row[HEAD] - row[SAVED]
    return found


@kernel
def copy_rings(slots, ints, arena_ints, arena_reals, rows, live_ints, live_reals):
    """Copy rows and the records from SAVED on, one slot after another; they are saved then.

    In the copied rows SAVED stays the number of the first record that is copied.
    """
    taken = 0
    for i in range(len(slots)):
        if i + AHEAD < len(slots):
            near = ints[slots[i + AHEAD]]
            if near[CAPACITY] > 0:
                place = near[START] + (near[SAVED] & (near[CAPACITY] - 1))
                prefetch(arena_ints, place)
                prefetch(arena_reals, place)
        row = ints[slots[i]]
        for k in range(ints.shape[1]):
            rows[i, k] = row[k]
        for seq in range(row[SAVED], row[HEAD]):
            place = row[START] + (seq & (row[CAPACITY] - 1))
            live_ints[taken, 0] = arena_ints[place, 0]
            live_ints[taken, 1] = arena_ints[place, 1]
            for v in range(arena_reals.shape[1]):
                live_reals[taken, v] = arena_reals[place, v]
            taken += 1
        row[SAVED] = row[HEAD]


@kernel
def place_rings(slots, rows, live_ints, live_reals, ints, longest, book, arena_ints, arena_reals):
    """Put saved rows back, and their records behind those of earlier snapshots.

    The arena has room for all of `rows` anew. Queues of maxima are left to `restore_queues`.

    Returns
    -------
    place in `slots` of the first that does not continue what is there, -1 where all do
    """
    taken = 0
    for i in range(len(slots)):
        row, new = ints[slots[i]], rows[i]
        first = new[SAVED]
        if new[longest] < first and (row[longest] > new[longest] or row[HEAD] < first):
            return i
        start, capacity = row[START], new[CAPACITY]
        if capacity != row[CAPACITY]:
            if capacity > 0:
                start = allocate(capacity, book, arena_ints)
            for seq in range(new[longest], first):
                a = row[START] + (seq & (row[CAPACITY] - 1))
                b = start + (seq & (capacity - 1))
                arena_ints[b, 0] = arena_ints[a, 0]
                arena_ints[b, 1] = arena_ints[a, 1]
                for v in range(arena_reals.shape[1]):
                    arena_reals[b, v] = arena_reals[a, v]
            if row[CAPACITY] > 0:
                release(row[START], row[CAPACITY], book, arena_ints)
        for k in range(ints.shape[1]):
            row[k] = new[k]
        row[START] = start
        row[SAVED] = row[HEAD]
        for seq in range(first, row[HEAD]):
            place = start + (seq & (capacity - 1))
            arena_ints[place, 0] = live_ints[taken, 0]
            arena_ints[place, 1] = live_ints[taken, 1]
            for v in range(arena_reals.shape[1]):
                arena_reals[place, v] = live_reals[taken, v]
            taken += 1
    return -1


@kernel
def mark_records(marked, first, ints, longest, arena_ints):
    """Set the logged marks on records that an earlier snapshot brought and that still count.

    Parameters
    ----------
    marked : int64 (n, 2), slot and 16 times the record's number plus the pair column
    first : int64 by slot, the first record that came with this very snapshot
    """
    for i in range(len(marked)):
        slot, seq, p = marked[i, 0], marked[i, 1] >> 4, marked[i, 1] & 15
        row = ints[slot]
        # A record that came with this snapshot has all the marks it had by then.
        if row[longest] <= seq < first[slot]:
            place = row[START] + (seq & (row[CAPACITY] - 1))
            arena_ints[place, 1] |= np.int64(1) << (FLAG_BITS + 2 * p)


@kernel
def restore_queue(row, longest, m, column, sign, at, shared, arena_ints, arena_reals):
    """Find the queue of maxima again from the records; `at` is the longest window's pointer."""
    mask = row[CAPACITY] - 1
    place = row[shared + m]
    best = -np.inf
    for seq in range(row[HEAD] - 1, row[longest] - 1, -1):
        x = sign * arena_reals[row[START] + (seq & mask), column]
        if x > best and place > at:
            best = x
            place -= 1
            arena_ints[row[START] + (place & mask), 2 + m] = seq


@kernel
def restore_queues(used, ints, shape, max_columns, signs, arena_ints, arena_reals):
    """Find the queues of maxima of slots 0..used again.

    `shape` is (windows, flags, reals, maxima, pairs).
    """
    windows, flags, reals, maxima, pairs = shape
    stride = 2 + flags + reals + maxima + pairs
    longest = SHARED + pairs + maxima + (windows - 1) * stride
    for slot in range(used):
        row = ints[slot]
        if row[CAPACITY] == 0:
            continue
        for m in range(maxima):
            at = row[longest + 2 + flags + reals + m]
            restore_queue(row, longest, m, max_columns[m], signs[m], at, SHARED + pairs,
                           arena_ints, arena_reals)  # fmt: skip
