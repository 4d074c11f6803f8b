"""Rings in snapshots: what came since the last one is copied out, and put back behind the rest.

A snapshot holds of each slot its row of counts and sums, and of its ring only the records from
SAVED on. Marks set since on older records stand in a log. Which records can become a maximum is in
none: it is found again from the records once all snapshots are back.

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
from features.maxima import is_candidate, link_newest, links_at
from features.speed import AHEAD, kernel, prefetch
from features.windows import (
    BASE,
    CAPACITY,
    HEAD,
    LIMIT,
    NEWEST,
    SAVED,
    SHARED,
    age_of,
    room_for,
)

__all__ = [
    "copy_rings",
    "count_records",
    "join",
    "mark_records",
    "place_rings",
    "restore_links",
    "restore_maxima",
    "room_of_rings",
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
def copy_rings(slots, ints, places, kept, arena_ints, arena_reals, rows, live_ints, live_reals):
    """Copy rows and the records from SAVED on, one slot after another; they are saved then.

    Of conditions and marks the lower `kept` bits are copied: links of maxima stand above them. In
    the copied rows SAVED stays the number of the first record that is copied. Where records lie
    is no part of a snapshot: `places`, see `features.windows.places_at`, are 0.
    """
    taken, reals, mask = 0, live_reals.shape[1], (np.int64(1) << kept) - 1
    first = arena_reals.shape[1] - reals
    for i in range(len(slots)):
        if i + AHEAD < len(slots):
            near = ints[slots[i + AHEAD]]
            if near[CAPACITY] > 0:
                prefetch(arena_ints, near[BASE] + near[SAVED])
        row = ints[slots[i]]
        for k in range(ints.shape[1]):
            rows[i, k] = row[k]
        for k in range(len(places)):
            rows[i, places[k]] = 0
        for place in range(row[BASE] + row[SAVED], row[BASE] + row[HEAD]):
            live_ints[taken, 0] = row[NEWEST] - age_of(row[NEWEST], place, arena_ints)
            live_ints[taken, 1] = np.int64(arena_ints[place, 1]) & mask
            for v in range(reals):
                live_reals[taken, v] = arena_reals[place, first + v]
            taken += 1
        row[SAVED] = row[HEAD]


@kernel
def place_rings(slots, rows, live_ints, live_reals, ints, longest, book, arena_ints, arena_reals):
    """Put saved rows back, and their records behind those of earlier snapshots.

    The arena has room for all of `rows` anew (`room_of_rings`). Links of maxima are left to
    `restore_maxima`.

    Returns
    -------
    place in `slots` of the first that does not continue what is there, -1 where all do
    """
    taken, words = 0, arena_reals.shape[1]
    reals = words - live_reals.shape[1]
    for i in range(len(slots)):
        row, new = ints[slots[i]], rows[i]
        first, oldest = new[SAVED], new[longest]
        if oldest < first and (row[longest] > oldest or row[HEAD] < first):
            return i
        offset, capacity, limit = row[BASE], row[CAPACITY], row[LIMIT]
        if new[HEAD] > limit or oldest < limit - capacity:
            capacity = np.int64(0)
            if new[HEAD] > oldest:
                start, capacity = allocate(room_for(new[HEAD] - oldest), book, arena_ints)
                offset, limit = start - oldest, oldest + capacity
            for seq in range(oldest, first):
                for v in range(words):
                    arena_reals[offset + seq, v] = arena_reals[row[BASE] + seq, v]
            if row[CAPACITY] > 0:
                start = row[BASE] + row[LIMIT] - row[CAPACITY]
                release(start, row[CAPACITY], book, arena_ints)
            if capacity == 0:
                offset = limit = 0
        for k in range(ints.shape[1]):
            row[k] = new[k]
        row[BASE], row[CAPACITY], row[LIMIT] = offset, capacity, limit
        row[SAVED] = row[HEAD]
        for place in range(offset + first, offset + row[HEAD]):
            arena_ints[place, 0] = live_ints[taken, 0]
            arena_ints[place, 1] = live_ints[taken, 1]
            for v in range(words - reals):
                arena_reals[place, reals + v] = live_reals[taken, v]
            taken += 1
    return -1


@kernel
def room_of_rings(rows, longest):
    """Records that `place_rings` may ask of the arena."""
    found = np.int64(0)
    for i in range(len(rows)):
        records = rows[i, HEAD] - rows[i, longest]
        if records > 0:
            found += room_for(records)
    return found


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
            arena_ints[row[BASE] + seq, 1] |= np.int64(1) << (2 * p)


@kernel
def restore_links(row, shape, m, max_columns, signs, arena_ints, arena_reals):
    """Find links of maxima again from the records; `shape` as of `restore_maxima`."""
    windows, flags, reals, maxima, pairs = shape
    stride, newest = 2 + flags + reals + maxima + pairs, SHARED + pairs + maxima
    column, sign = arena_reals.shape[1] - reals + max_columns[m], signs[m]
    links = links_at(flags, reals, maxima, pairs, arena_ints)
    oldest, end = row[newest + (windows - 1) * stride], 0
    for seq in range(oldest, row[HEAD]):
        link_newest(row[BASE], seq, oldest, m, column, sign, links, arena_ints, arena_reals)
        if arena_reals[row[BASE] + seq, column] == arena_reals[row[BASE] + seq, column]:
            end = seq + 1
    row[SHARED + pairs + m] = end
    for w in range(windows):
        w_int, at = newest + w * stride, 0
        if row[w_int] < end:
            at = row[w_int]
            while not is_candidate(row[BASE] + at, m, links, arena_ints):
                at += 1
        row[w_int + 2 + flags + reals + m] = at


@kernel
def restore_maxima(used, ints, shape, max_columns, signs, arena_ints, arena_reals):
    """Find the links of maxima of slots 0..used again.

    `shape` is (windows, flags, reals, maxima, pairs).
    """
    for slot in range(used):
        for m in range(shape[3]):
            restore_links(ints[slot], shape, m, max_columns, signs, arena_ints, arena_reals)
