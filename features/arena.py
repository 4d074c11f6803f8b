"""Blocks of records in one array, of any size, and joined with their neighbours when they are free.

A ring moves to a larger or smaller block as its entity's rate changes. What it leaves behind is
joined with the free blocks on both sides, so that the blocks of entities that grow together are
there for others that grow as far.

A free block says so in the bits of its first and its last record, which no record ever has; its
size stands in the times of both. The times of its second and third record are the next and the one
before in the list of free blocks of its size class, plus 1; 0 for none.

Source: Knuth, The Art of Computer Programming 1, 2.5, boundary tags; Masmano et al. (2004), TLSF: a
new dynamic memory allocator for real-time systems, for classes of a quarter of a power of two.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.speed import inlined, kernel, word_bytes

__all__ = ["CLASSES", "FREE", "SMALLEST", "TOP", "USED", "allocate", "bits_max", "release"]

SMALLEST = 4
"""Records of the smallest block: what a free one says of itself takes as many."""

CLASSES = 160
"""Size classes of free blocks, four to a power of two; no arena holds 2^42 records."""

TRIED = 4
"""Free blocks of the very class of what is asked that are looked at, as not all of them are large
enough; chosen: any block of the next class is."""

TOP, USED, FREE = 0, 1, 2
# Places in `book`: the end of all blocks, records in blocks that are not free, and the first free
# block of each class.


def bits_max(narrow: bool) -> int:
    """Bits a record may use: one says that a block is free.

    Parameters
    ----------
    narrow : whether records are made of 32-bit words
    """
    return 31 if narrow else 62


@inlined
def _mark(arena):
    """The bit of a free block's first and last record."""
    return np.int64(1) << (31 if word_bytes(arena) == 4 else 62)


@kernel
def _class_of(size):
    """Class of a block: twice log2 of its size, and the two bits below the first."""
    power = 2
    while size >> (power + 1):
        power += 1
    return min(4 * (power - 2) + ((size >> (power - 2)) & 3), CLASSES - 1)


@kernel
def _link(start, size, book, arena):
    """Put a block into the list of free ones of its class."""
    place = FREE + _class_of(size)
    following = book[place]
    last = start + size - 1
    arena[start, 0], arena[start, 1] = size, _mark(arena)
    arena[last, 0], arena[last, 1] = size, _mark(arena)
    arena[start + 1, 0], arena[start + 2, 0] = following + 1, 0
    if following >= 0:
        arena[following + 2, 0] = start + 1
    book[place] = start


@kernel
def _unlink(start, size, book, arena):
    """Take a block out of the list of free ones of its class."""
    following, before = np.int64(arena[start + 1, 0]) - 1, np.int64(arena[start + 2, 0]) - 1
    if before >= 0:
        arena[before + 1, 0] = following + 1
    else:
        book[FREE + _class_of(size)] = following
    if following >= 0:
        arena[following + 2, 0] = before + 1


@kernel
def _find(size, book, arena):
    """A free block of at least so many records, -1 for none."""
    size_class = _class_of(size)
    start = book[FREE + size_class]
    for _ in range(TRIED):
        if start < 0:
            break
        if arena[start, 0] >= size:
            return start
        start = np.int64(arena[start + 1, 0]) - 1
    for larger in range(size_class + 1, CLASSES):
        if book[FREE + larger] >= 0:
            return book[FREE + larger]
    return np.int64(-1)


@kernel
def allocate(size, book, arena):
    """A block of at least so many records, at least `SMALLEST`.

    Parameters
    ----------
    book : int64, the arena's numbers from TOP on
    arena : uint32 or int64 (records, 2 or more), the first two columns of each record its time and
        its bits

    Returns
    -------
    (start, records in it), start -1 where none fits
    """
    start = _find(size, book, arena)
    if start < 0:
        start = book[TOP]
        if start + size > len(arena):
            return np.int64(-1), np.int64(0)
        book[TOP] = start + size
    else:
        found = np.int64(arena[start, 0])
        _unlink(start, found, book, arena)
        if found - size >= SMALLEST:
            _link(start + size, found - size, book, arena)
        else:
            size = found
    # What records left here may look like the end of a free block to a neighbour.
    arena[start, 1] = arena[start + size - 1, 1] = 0
    book[USED] += size
    return start, np.int64(size)


@kernel
def release(start, size, book, arena):
    """Give a block back; `size` is what `allocate` said."""
    book[USED] -= size
    end = start + size
    if start > 0 and np.int64(arena[start - 1, 1]) & _mark(arena):
        before = np.int64(arena[start - 1, 0])
        start -= before
        _unlink(start, before, book, arena)
    if end < book[TOP] and np.int64(arena[end, 1]) & _mark(arena):
        after = np.int64(arena[end, 0])
        _unlink(end, after, book, arena)
        end += after
    if end == book[TOP]:
        book[TOP] = start
    else:
        _link(start, end - start, book, arena)
