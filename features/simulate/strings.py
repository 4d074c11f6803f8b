"""Strings by the thousand: fixed-width names made from numbers, and pools to gather rows from.

Making strings is the dearest part of an event. Names of entities are made once for the population
and gathered by index; only event ids are made per block, as one array of bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

__all__ = ["gather", "hex_names", "ip_names", "numbered"]

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_ODD = 0x9E3779B1
"""Multiplier of a bijection of 32 bits (Knuth's golden ratio): names look unordered and stay
unique."""


def _series(codes: npt.NDArray[np.uint8]) -> pl.Series:
    """Rows of bytes (n, width) as a string column."""
    n, width = codes.shape
    if n == 0:
        return pl.Series([], dtype=pl.String)
    offsets = np.arange(0, (n + 1) * width, width, dtype=np.int64)
    array = pa.LargeStringArray.from_buffers(
        n, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(codes))
    )
    return pl.Series(pl.from_arrow(array))


def hex_names(prefix: str, numbers: npt.NDArray[np.int64]) -> pl.Series:
    """`prefix` and eight hex digits for each number below 2**32; names differ where numbers do.

    Examples
    --------
    >>> hex_names("c-", np.array([0, 1])).to_list()
    ['c-00000000', 'c-9e3779b1']
    """
    mixed = (numbers.astype(np.uint64) * np.uint64(_ODD)) & np.uint64(0xFFFFFFFF)
    head = np.frombuffer(prefix.encode(), np.uint8)
    codes = np.empty((len(numbers), len(head) + 8), np.uint8)
    codes[:, : len(head)] = head
    for digit in range(8):
        shift = np.uint64(28 - 4 * digit)
        codes[:, len(head) + digit] = _HEX[((mixed >> shift) & np.uint64(15)).astype(np.intp)]
    return _series(codes)


def ip_names(first: int, numbers: npt.NDArray[np.int64]) -> pl.Series:
    """IPv4 addresses `first.b.c.d`, one for each number below 2**24; they differ where numbers do.

    Examples
    --------
    >>> ip_names(81, np.array([1])).to_list()
    ['81.55.121.177']
    """
    mixed = (numbers.astype(np.uint64) * np.uint64(_ODD)) & np.uint64(0xFFFFFF)
    return pl.DataFrame(
        {
            "b": (mixed >> np.uint64(16)).astype(np.int64),
            "c": ((mixed >> np.uint64(8)) & np.uint64(255)).astype(np.int64),
            "d": (mixed & np.uint64(255)).astype(np.int64),
        }
    ).select(pl.format(f"{first}.{{}}.{{}}.{{}}", "b", "c", "d").alias("ip"))["ip"]


def numbered(prefix: str, count: int) -> pl.Series:
    """`prefix` followed by 0 .. count - 1, six digits wide: the event ids of a block.

    Examples
    --------
    >>> numbered("p-7-12-", 2).to_list()
    ['p-7-12-000000', 'p-7-12-000001']
    """
    head = np.frombuffer(prefix.encode(), np.uint8)
    codes = np.empty((count, len(head) + 6), np.uint8)
    codes[:, : len(head)] = head
    left = np.arange(count, dtype=np.uint32)
    for digit in range(5, -1, -1):
        codes[:, len(head) + digit] = (left % 10).astype(np.uint8) + 48
        left //= 10
    return _series(codes)


def gather(pool: pl.Series, index: npt.NDArray[np.integer]) -> pl.Series:
    """The pool's string for each index; -1 gives the pool's last entry, by convention null."""
    return pool[index.astype(np.int64)]  # half the time of `gather`, which asks a query engine
