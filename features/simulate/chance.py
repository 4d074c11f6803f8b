"""Chance that can be asked twice: draws that depend on names and numbers, not on earlier draws.

The simulator must give the same events however time is cut, so nothing may walk from block to
block. A block of time has its own generator; what outlasts a block (a journey, a new phone, a
deployment) is a hash of who and when. Everything in `features.simulate` draws from here.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

__all__ = ["generator", "key_of", "mix64", "pick", "unit", "weighted_table"]

UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TO_UNIT = 2.0**-53


def key_of(name: str) -> int:
    """A number for a name, the same in every process (Python's own hash is not)."""
    return zlib.crc32(name.encode())


def generator(*key: int) -> np.random.Generator:
    """A generator of its own for a tuple of numbers (seed, purpose, block, ...)."""
    # Numbers of blocks and campaigns before 1970 are negative, which a seed must not be.
    words = [number & 0xFFFFFFFFFFFFFFFF for number in key]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))


def mix64(x: UInt64) -> UInt64:
    """Spread every input bit over the output, uint64 (n,).

    Source: finaliser of splitmix64 (Vigna, public domain).
    """
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def unit(salt: int, *keys: npt.NDArray[np.integer]) -> Float64:
    """A number in [0, 1) for each row of keys: the same keys, the same number.

    Parameters
    ----------
    salt : seed and purpose as one number
    keys : integer arrays that broadcast together

    Returns
    -------
    float64, of the broadcast shape

    Examples
    --------
    >>> bool((unit(1, np.arange(3)) == unit(1, np.arange(3))).all())
    True
    """
    state = np.array([salt & 0xFFFFFFFFFFFFFFFF], np.uint64)
    for key in keys:
        state = mix64((state + _GOLDEN) ^ np.atleast_1d(key).astype(np.uint64))
    mixed = mix64(state + _GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) * _TO_UNIT


def weighted_table(
    members: npt.NDArray[np.integer], weights: npt.NDArray[np.floating], entries_mean: float
) -> npt.NDArray[np.int32]:
    """Members repeated in proportion to their weight, at least once: a lookup is a weighted draw.

    Ten times faster than a search in cumulated weights; weights are kept to about 1 / entries_mean.

    Returns
    -------
    int32 (about n * entries_mean,)
    """
    counts = np.maximum(1, np.rint(weights * (entries_mean / weights.mean()))).astype(np.int64)
    return np.repeat(members.astype(np.int32), counts)


def pick(
    rng: np.random.Generator,
    table: npt.NDArray[np.int32],
    start: npt.NDArray[np.int64] | int,
    size: npt.NDArray[np.int64] | int,
    n: int,
) -> npt.NDArray[np.int32]:
    """One draw from `table[start:start + size]` for each of `n` rows, int32 (n,)."""
    at = start + (rng.random(n) * size).astype(np.int64)
    return table[at]
