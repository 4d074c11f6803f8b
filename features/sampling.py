"""Levels: an entity that meets very many others keeps a sample of its pairs, and says so.

Up to a bound in its longest window every pair is kept and every count of different others is exact.
Above it only pairs are kept whose value's hash begins with `level` bits of 0, one in 2^level, and
each counts for so many. The level rises where the window's count is above the bound times 2^level,
and falls, for records to come, where it is a quarter of that or less: those before keep the level
they were met at until they have left the window, and then it may fall again. All of that follows
from the entity's own rows in their order, and which pairs are kept from their values alone: not
from the cut of the stream, nor from the number of groups.

The count of n different others at a level has a standard error of sqrt(n x (2^level - 1)). The
longest window of a steady entity holds between a half and all of the bound, its error is 1.0 to
1.4 % of n at a bound of 10,000; where fewer and fewer are met, a quarter, 2 %. A shorter window has
fewer in it: the formula is the same.

What is known of a pair beyond the window, when it was last met, is thinned along. Whether a pair is
new is unknown then of one that is not kept, and afterwards, for as long as pairs are remembered, of
one that would not have been kept; how many were ever met is estimated from the others.

Source: Flajolet, On Adaptive Sampling, Computing 43 (1990), after Wegman; deviates by levels that
fall again, and by windows.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.pairs import BOUND, ESTIMATED, ONE_IN
from features.speed import inlined, kernel

__all__ = [
    "WORDS",
    "ceiling",
    "crowded",
    "level_of",
    "now_of",
    "raised",
    "sampled",
    "settle_levels",
    "weight_of",
]

WORDS = 2
"""Words a column of pairs has in a slot's row, behind the windows: its levels, and its ceiling."""

# The word of levels: number of the first record at the level of now, the level of those before,
# that of now. The word of the ceiling: when a level was last in force, the highest since then or in
# as long as pairs are remembered before.
_BITS = 6
_LEVEL = (1 << _BITS) - 1
_FROM = 2 * _BITS

LEVEL_MAX = 40
"""No level is higher: one pair in 10^12."""

_SPREAD = 0x9E3779B97F4A7C15
"""Odd factor that spreads a value's bits before the upper ones are asked; 2^64 / golden ratio."""


@inlined
def now_of(word):
    """Level of the records to come."""
    return word & _LEVEL


@inlined
def level_of(word, number):
    """Level at which a record was met."""
    return word & _LEVEL if number >= word >> _FROM else (word >> _BITS) & _LEVEL


@inlined
def weight_of(word, number):
    """How many different others a record's pair counts for."""
    return np.int64(1) << level_of(word, number)


@inlined
def sampled(value, level):
    """Whether a pair with the value is kept at a level."""
    if level == 0:
        return True
    return (np.uint64(value) * np.uint64(_SPREAD)) >> np.uint64(64 - level) == np.uint64(0)


@inlined
def ceiling(high):
    """Level at which a pair must be kept for its being new to be known."""
    return high & _LEVEL


@inlined
def crowded(row, counts, levels, pairs, book):
    """First column of pairs whose count in the longest window is above the bound, -1 for none.

    Parameters
    ----------
    row : of the slot
    counts, levels : places in it of the longest window's counts of different others, and of levels
    book : of `features.pairs.PairTable`
    """
    found = -1
    if book[BOUND] > 0:
        for p in range(pairs):
            level = row[levels + p] & _LEVEL
            if row[counts + p] > book[BOUND] << level and level < LEVEL_MAX:
                found = p
                break
    return found


@kernel
def raised(word, count, bound):
    """The word of levels once the level has risen as far as the count asks for.

    Where records of an older, higher level are still in the window, that stays theirs.
    """
    now, before = word & _LEVEL, (word >> _BITS) & _LEVEL
    while count > bound << now and now < LEVEL_MAX:
        now += 1
    return (word >> _FROM) << _FROM | max(now, before) << _BITS | now


@kernel
def settle_levels(row, counts, levels, pairs, since, number, time_us, ttl_us, feeds, book):
    """Let levels fall where they may, before a row is looked at; count the row as estimated.

    Parameters
    ----------
    row, counts, levels, book : see `crowded`
    since, number : of the oldest record that the longest window counts, and of the one to come
    time_us, feeds : of the row, and whether it enters the ring; only then a level changes
    ttl_us : int64 by column, how long a pair is remembered
    """
    highest, bound = np.int64(0), book[BOUND]
    for p in range(pairs):
        word, high = row[levels + p], row[levels + pairs + p]
        if word == 0 and high == 0:
            continue
        if feeds:
            now, before, first = word & _LEVEL, (word >> _BITS) & _LEVEL, word >> _FROM
            if first <= since:
                before = now
            if before == now:
                while now > 0 and (bound == 0 or 4 * row[counts + p] <= bound << now):
                    now -= 1
                if now < before:
                    first = number
            if before > 0:
                row[levels + pairs + p] = time_us << _BITS | max(high & _LEVEL, before)
            elif time_us - (high >> _BITS) > ttl_us[p]:
                row[levels + pairs + p] = 0
            if since == number:
                before = now
            word = first << _FROM | before << _BITS | now if before > 0 else np.int64(0)
            row[levels + p] = word
        highest = max(highest, word & _LEVEL, (word >> _BITS) & _LEVEL)
    if highest > 0:
        book[ESTIMATED] += 1
        book[ONE_IN] = max(book[ONE_IN], np.int64(1) << highest)
