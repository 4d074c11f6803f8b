"""Largest values of windows: which records of a ring can still become one, told by bits of theirs.

Of each column that is asked for its largest value, a record says how far before it the nearest one
with a larger value is, and whether none that came after it is as large: whether it is a candidate.
The largest of a window is its oldest candidate. Where a record comes in, the candidates that are no
larger stand one link behind the other before it, and are none any more; where the largest leaves,
the next candidate is looked for among those behind it, each once. So both cost the same however
long a window is, and there is no queue beside the records: it took 4 bytes of each.

Links have few bits: a long one is rounded down, to a record between the two, which has a link of
its own.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.arena import bits_max
from features.speed import inlined, word_bytes

__all__ = ["is_candidate", "link_newest", "link_words", "links_at"]

_POWER_BITS = 5
"""Bits of a link that say how far it is rounded down; what is left are its first bits."""

_LINK_MIN, _LINK_MAX = 8, 14
"""Bits of a link that stands beside conditions and marks. Chosen: up to 16 records links of the
shortest kind are exact, and no link leaves out more than an eighth of the way."""

_OWN_BITS = 20
"""Bits of a link that has a word of its own."""


def _bits(narrow: bool, flags: int, maxima: int, pairs: int) -> int:
    """Bits there are for a link beside conditions and marks."""
    return min((bits_max(narrow) - flags - 2 * pairs) // max(maxima, 1) - 1, _LINK_MAX)


def link_words(narrow: bool, flags: int, maxima: int, pairs: int) -> int:
    """Words of a record for links: none where they find room beside its conditions and marks.

    Parameters
    ----------
    narrow : whether words have 32 bits, else 64
    flags, maxima, pairs : conditions, columns asked for their largest value, columns of pairs
    """
    return 0 if _bits(narrow, flags, maxima, pairs) >= _LINK_MIN else maxima


@inlined
def links_at(flags, reals, maxima, pairs, arena):
    """(column of the first link, columns to the next, its lowest bit, bits to the next, bits)."""
    narrow = word_bytes(arena) == 4
    words = arena.shape[1] - reals * (2 if narrow else 1)
    if words >= 2 + maxima and maxima > 0:
        return np.int64(2), np.int64(1), np.int64(0), np.int64(0), np.int64(_OWN_BITS)
    room = (31 if narrow else 62) - flags - 2 * pairs
    bits = np.int64(min(room // max(maxima, 1) - 1, _LINK_MAX))
    return np.int64(1), np.int64(0), np.int64(flags + 2 * pairs), bits + 1, bits


@inlined
def _packed(length, bits):
    """A link of a length: itself where it is short, else power and first bits below the first."""
    few = bits - _POWER_BITS
    if length < np.int64(1) << few:
        return length
    power = np.int64(1)
    while length >> (power - 1) >= np.int64(2) << few:
        power += 1
    return (power << few) | ((length >> (power - 1)) & ((np.int64(1) << few) - 1))


@inlined
def _length(link, bits):
    """Length of a link, rounded down."""
    few = bits - _POWER_BITS
    if link < np.int64(1) << few:
        return link
    first = (link & ((np.int64(1) << few) - 1)) | (np.int64(1) << few)
    return first << ((link >> few) - 1)


@inlined
def is_candidate(place, m, links, arena):
    """Whether the record at a place can still become the largest of column m."""
    bit = links[2] + m * links[3] + links[4]
    return (np.int64(arena[place, links[0] + m * links[1]]) >> bit) & 1 != 0


@inlined
def link_newest(base, seq, oldest, m, column, sign, links, arena, arena_reals):
    """Link record `seq` to the nearest larger one from `oldest` on; returns that, -1 for none.

    Parameters
    ----------
    base : place of record 0 of the ring in the arena
    m, column, sign : of the maxima, its column of `arena_reals`, -1 for the smallest
    links : see `links_at`
    """
    word_at, shift, bits = links[0] + m * links[1], links[2] + m * links[3], links[4]
    mask, bit = ((np.int64(1) << bits) - 1) << shift, np.int64(1) << (shift + bits)
    x = sign * arena_reals[base + seq, column]
    there = x == x
    at, found = seq - 1, np.int64(-1)
    while at >= oldest:
        y = sign * arena_reals[base + at, column]
        # One without a value passes no number by: whoever takes its link has to meet that one.
        if y > x or (not there and y == y):
            found = at
            break
        word = np.int64(arena[base + at, word_at])
        if there and word & bit:
            arena[base + at, word_at] = word & ~bit
        length = _length((word & mask) >> shift, bits)
        if length == 0:
            break
        at -= length
    word = np.int64(arena[base + seq, word_at]) & ~(mask | bit)
    if found >= 0:
        word |= _packed(seq - found, bits) << shift
    if there:
        word |= bit
    arena[base + seq, word_at] = word
    return found
