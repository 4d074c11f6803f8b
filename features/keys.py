"""64-bit keys of strings: the same on every machine and in every version, unlike a library's hash.

A key decides the shard group of an entity and its slot in state, so it must never change. FNV-1a
over the UTF-8 bytes, finished with the mixer of MurmurHash3 (FNV's low bits alone are weak).
At one million entities of a type the chance that any two share a key is about 3e-8.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from features.jit import njit

__all__ = ["UInt64", "group_of", "hash_columns", "hash_strings"]

UInt64 = npt.NDArray[np.uint64]

_NULL_KEY = np.uint64(0)
"""The key of an absent entity; no string hashes to it (a hash of 0 is turned into 1)."""


@njit
def _mix(h: np.uint64) -> np.uint64:
    """Finaliser of MurmurHash3 (Appleby, public domain): every input bit over the output."""
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return h


@njit
def _hash_bytes(
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    valid: npt.NDArray[np.bool_],
    out: UInt64,
) -> None:
    """Hash string i = data[offsets[i]:offsets[i+1]] into out[i]; 0 where it is null."""
    for i in range(len(out)):
        if not valid[i]:
            out[i] = np.uint64(0)
            continue
        h = np.uint64(0xCBF29CE484222325)
        for j in range(offsets[i], offsets[i + 1]):
            h = (h ^ np.uint64(data[j])) * np.uint64(0x100000001B3)
        h = _mix(h)
        out[i] = h if h != np.uint64(0) else np.uint64(1)


@njit
def _combine(left: UInt64, right: UInt64, out: UInt64) -> None:
    """Order-sensitive combination of two key columns; 0 where either is absent."""
    for i in range(len(out)):
        if left[i] == np.uint64(0) or right[i] == np.uint64(0):
            out[i] = np.uint64(0)
        else:
            h = _mix(left[i] * np.uint64(0x9E3779B97F4A7C15) + right[i])
            out[i] = h if h != np.uint64(0) else np.uint64(1)


def hash_strings(column: pl.Series) -> UInt64:
    """Stable 64-bit key of each string.

    Parameters
    ----------
    column : polars String (n,)

    Returns
    -------
    uint64 (n,); 0 where the string is null or empty (the entity is absent)
    """
    n = len(column)
    out = np.zeros(n, np.uint64)
    if n == 0:
        return out
    array = column.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64, n + 1 + array.offset)[array.offset :]
    data = np.zeros(0, np.uint8) if data_buffer is None else np.frombuffer(data_buffer, np.uint8)
    valid = np.diff(offsets) > 0
    if column.null_count():
        valid &= column.is_not_null().to_numpy()
    _hash_bytes(data, offsets, valid, out)
    return out


def hash_columns(frame: pl.DataFrame, columns: tuple[str, ...]) -> UInt64:
    """Key of the entity named by one or several string columns.

    Returns
    -------
    uint64 (n,); 0 where any part is absent
    """
    key = hash_strings(frame[columns[0]])
    for name in columns[1:]:
        out = np.zeros(len(key), np.uint64)
        _combine(key, hash_strings(frame[name]), out)
        key = out
    return key


def group_of(keys: UInt64, groups: int) -> npt.NDArray[np.int32]:
    """Shard group of each key: its high bits, so that slots (low bits) stay spread within a group.

    Returns
    -------
    int32 (n,), in [0, groups)
    """
    return ((keys >> np.uint64(40)) % np.uint64(groups)).astype(np.int32)
