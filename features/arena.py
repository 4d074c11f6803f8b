"""Blocks of records in one array: split in halves, and joined again when both are free.

Rings grow by moving to a block twice as large. What they leave behind is joined with its
neighbour, so that the blocks of entities that grow together are there for others that grow as far;
without it half of an arena lay idle.

A block of 2^k records begins at a multiple of 2^k. A free one says so in the bits of its first
record, which no record ever has: -1 - k. Its first two records' times are the next and the one
before in the list of free blocks of its size.

Source: Knuth, The Art of Computer Programming 1, 2.5, the buddy system; without its limit on the
whole: beyond TOP nothing is free, and there blocks are cut as they are asked for.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.speed import kernel

__all__ = ["CLASSES", "FREE", "SMALLEST", "TOP", "allocate", "release", "room"]

SMALLEST = 4
"""Records of the smallest block: two are needed while it is free."""

CLASSES = 48
"""Sizes of blocks, by their power of two; no arena holds 2^48 records."""

TOP, FREE = 0, 1
# Places in `book`: the end of all blocks, and the first free block of each size.


@kernel
def _link(start, size_class, book, arena_ints):
    """Put a block into the list of free ones of its size."""
    following = book[FREE + size_class]
    arena_ints[start, 0], arena_ints[start, 1] = following, -1 - size_class
    arena_ints[start + 1, 0] = -1
    if following >= 0:
        arena_ints[following + 1, 0] = start
    book[FREE + size_class] = start


@kernel
def _unlink(start, size_class, book, arena_ints):
    """Take a block out of the list of free ones of its size."""
    following, before = arena_ints[start, 0], arena_ints[start + 1, 0]
    if before >= 0:
        arena_ints[before, 0] = following
    else:
        book[FREE + size_class] = following
    if following >= 0:
        arena_ints[following + 1, 0] = before
    arena_ints[start, 1] = 0


@kernel
def _class_of(capacity):
    """log2 of a block's size."""
    size_class = 0
    while (np.int64(1) << size_class) < capacity:
        size_class += 1
    return size_class


@kernel
def allocate(capacity, book, arena_ints):
    """Start of a block of so many records (a power of two from `SMALLEST`), -1 where none fits."""
    size_class = _class_of(capacity)
    found = size_class
    while found < CLASSES and book[FREE + found] < 0:
        found += 1
    if found < CLASSES:
        start = book[FREE + found]
        _unlink(start, found, book, arena_ints)
        while found > size_class:
            found -= 1
            _link(start + (np.int64(1) << found), found, book, arena_ints)
        return start
    top = book[TOP]
    start = (top + capacity - 1) & -capacity
    if start + capacity > len(arena_ints):
        return np.int64(-1)
    while top < start:
        size = top & -top
        _link(top, _class_of(size), book, arena_ints)
        top += size
    book[TOP] = start + capacity
    return start


@kernel
def release(start, capacity, book, arena_ints):
    """Give a block back."""
    size_class = _class_of(capacity)
    while size_class < CLASSES - 1:
        size = np.int64(1) << size_class
        other = start ^ size
        if other + size > book[TOP] or arena_ints[other, 1] != -1 - size_class:
            break
        _unlink(other, size_class, book, arena_ints)
        start = min(start, other)
        size_class += 1
    if start + (np.int64(1) << size_class) < book[TOP]:
        _link(start, size_class, book, arena_ints)
        return
    book[TOP] = start
    size_class = 0
    while size_class < CLASSES and (np.int64(1) << size_class) <= (book[TOP] & -book[TOP]):
        start = book[TOP] - (np.int64(1) << size_class)
        if arena_ints[start, 1] == -1 - size_class:
            _unlink(start, size_class, book, arena_ints)
            book[TOP] = start
            size_class = 0
        else:
            size_class += 1


def room(records: int, largest: int) -> int:
    """Records above TOP in which blocks of so many in all surely fit, the largest as given.

    What is passed over so that a block begins at a multiple of its size is free for smaller ones:
    there is one such gap of each size at the most.
    """
    return records + 2 * largest
