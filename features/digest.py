"""Hashes of what was computed: 64 bits a column and a group, 32 bits a row, sums of mixed words.

A sum does not depend on the order in which its parts come, so that lanes and groups add theirs as
they are ready, and any number of workers gives the same. A changed bit always changes the sum of
its column: a cell is mixed one to one and multiplied by an odd number that its row alone decides.
All NaN are one value: which of their bits are set is up to the instructions that made them.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.batch import Float64
from features.keys import UInt64
from features.speed import inlined, kernel

__all__ = [
    "UInt32",
    "add_columns",
    "row_hashes",
    "total_of",
    "totals_of",
    "warm_up",
    "words_of",
]

UInt32 = npt.NDArray[np.uint32]

CELLS_MAX = 4_096
"""Most columns of a table; chosen: ten times the widest event type."""

_NAN = np.uint64(0x7FF8000000000000)
_EXPONENT = np.uint64(0x7FF0000000000000)
_NO_SIGN = np.uint64(0x7FFFFFFFFFFFFFFF)


@inlined
def _mix(h):
    """Finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit over the output."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def _weights() -> UInt64:
    """uint64 (CELLS_MAX,), an odd number a column: `_mix` of a counter.

    Without a kernel, which would be loaded or compiled by whoever imports this.
    """
    count = np.arange(1, CELLS_MAX + 1, dtype=np.uint64)
    h = count * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((h ^ (h >> np.uint64(31))) | np.uint64(1), np.uint64)


_WEIGHTS = _weights()


@kernel
def _add_columns(words, first, seed, weights, columns, rows):
    """See `add_columns`; words uint64 (n, F), C order, of floats."""
    n, width = words.shape
    for i in range(n):
        odd = _mix(seed + np.uint64(i)) | np.uint64(1)
        total = np.uint64(0)
        for f in range(width):
            word = words[i, f]
            word = _NAN if (word & _NO_SIGN) > _EXPONENT else word
            word = word ^ (word >> np.uint64(32))
            columns[f] += word * odd
            total += word * weights[first + f]
        rows[i] += total


@kernel
def _totals(words, width, floats, places, starts, seed, weights, rows, totals):
    """See `totals_of`; `rows` is added to where it is not empty."""
    round_ = 0
    for i in range(len(words)):
        total = np.uint64(0)
        for f in range(width):
            word = words[i, f]
            if floats and (word & _NO_SIGN) > _EXPONENT:
                word = _NAN
            word = word ^ (word >> np.uint64(32))
            total += word * weights[f]
        at = places[i]
        while at >= starts[round_ + 1]:
            round_ += 1
        mixed = _mix(total + seed)
        place = _mix(seed + np.uint64(at - starts[round_])) | np.uint64(1)
        totals[round_] += (mixed | np.uint64(1)) * place
        if len(rows):
            rows[at] += mixed


def words_of(values: Float64) -> UInt64:
    """The bits of floats, a word each; no copy where they lie in C order."""
    return np.ascontiguousarray(values).view(np.uint64)


def add_columns(values: Float64, first: int, seed: int, columns: UInt64, rows: UInt64) -> None:
    """Add the cells of a table to the sums of its columns and of its rows.

    Parameters
    ----------
    values : float64 (n, F)
    first : place of the first column among all columns of the row
    seed : says whose rows these are (lane and event type), so that no two are alike
    columns : uint64 (F,), added to
    rows : uint64 (n,), added to
    """
    if len(values) and values.shape[1]:
        _add_columns(words_of(values), first, np.uint64(seed), _WEIGHTS, columns, rows)


def total_of(
    words: UInt64,
    width: int,
    floats: bool,
    places: npt.NDArray[np.int64],
    seed: int,
    rows: UInt64 | None = None,
) -> int:
    """One sum over the rows of a table, wherever they stand in their batch.

    Parameters
    ----------
    words : uint64 (n, W), C order
    width : words of a row that count; those behind them may hold anything
    floats : whether the words are floats, so that all NaN are one
    places : int64 (n,), each row's place in its batch
    seed : says what these rows are, so that no two tables are alike
    rows : uint64 (rows of the batch,), added to at the places; None adds nowhere

    Returns
    -------
    below 2**64
    """
    bounds = np.array([0, np.iinfo(np.int64).max])
    return int(totals_of(words, width, floats, places, bounds, seed, rows)[0])


def totals_of(
    words: UInt64,
    width: int,
    floats: bool,
    places: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    seed: int,
    rows: UInt64 | None = None,
) -> UInt64:
    """`total_of` of each of some rounds whose rows stand one after the other.

    Parameters
    ----------
    starts : int64 (R + 1,), where the rows of each round begin and end in the batch

    Returns
    -------
    uint64 (R,)
    """
    totals = np.zeros(len(starts) - 1, np.uint64)
    if len(words):
        to = np.empty(0, np.uint64) if rows is None else rows
        _totals(words, width, floats, places, starts, np.uint64(seed), _WEIGHTS, to, totals)
    return totals


def row_hashes(rows: UInt64) -> UInt32:
    """uint32 (n,), the upper half of each row's sum, mixed.

    Two different rows have the same one in 2 ** 32.
    """
    mixed = (rows ^ (rows >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.asarray(mixed >> np.uint64(32), np.uint32)


def warm_up() -> None:
    """Compile the kernels, so that the first round does not pay for it."""
    one, place = np.zeros((1, 1)), np.zeros(1, np.int64)
    columns, rows = np.zeros(1, np.uint64), np.zeros(1, np.uint64)
    add_columns(one, 0, 1, columns, rows)
    total_of(words_of(one), 1, True, place, 1, rows)
