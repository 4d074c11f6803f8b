"""The kernels that write HSET and HGET commands as Redis reads them from the wire.

RESP, the protocol of Redis, is lengths and bytes; a row of thirty features is some six hundred of
them, so they are put down by compiled code that holds no lock: 1 us a row of ten features.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.jit import njit

__all__ = ["write_asks", "write_rows"]


@njit
def _varint(value, out, at):
    """Write a uint64 as a varint at `at`; returns the place after it."""
    while value >= np.uint64(128):
        out[at] = np.uint8((value & np.uint64(127)) | np.uint64(128))
        value >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(value)
    return at + 1


@njit
def _varint_size(value):
    """Bytes of a uint64 as a varint."""
    size = 1
    while value >= np.uint64(128):
        value >>= np.uint64(7)
        size += 1
    return size


@njit
def _digits(number, out, at):
    """Write a number in decimal and the end of its line; returns the place after them."""
    size = 1
    while 10**size <= number:
        size += 1
    for i in range(size):
        out[at + size - 1 - i] = 48 + number % 10
        number //= 10
    out[at + size] = 13
    out[at + size + 1] = 10
    return at + size + 2


@njit
def _copy(part, out, at):
    """Write bytes; returns the place after them."""
    for i in range(len(part)):
        out[at + i] = part[i]
    return at + len(part)


@njit
def _key(head, data, tail, out, at):
    """Write the key of an entity as a bulk string without its `$`; returns the place after it."""
    size = len(data)
    at = _digits(len(head) + 4 + size + len(tail), out, at)
    at = _copy(head, out, at)
    for shift in range(4):
        out[at + shift] = (size >> (8 * shift)) & 255
    at = _copy(data, out, at + 4)
    at = _copy(tail, out, at)
    out[at] = 13
    out[at + 1] = 10
    return at + 2


@njit
def write_asks(command, key_head, key_tail, field, data, offsets, out):
    """Write the HGET command of one field of each entity into `out`; returns the bytes written."""
    at = 0
    for i in range(len(offsets) - 1):
        at = _copy(command, out, at)
        at = _key(key_head, data[offsets[i] : offsets[i + 1]], key_tail, out, at)
        at = _copy(field, out, at)
    return at


@njit
def write_rows(
    command, key_head, key_tail, fields, time_field, double, data, offsets, rows, bits, time_us, out
):
    """Write the HSET command of each row into `out`; returns the bytes written.

    `fields` is (F, 10), the bulk string of each field's name; `bits` is (n, F, 8), the bytes of
    `rows`. Fields without a value get an empty one, Feast's null.
    """
    at = 0
    for i in range(len(offsets) - 1):
        at = _copy(command, out, at)
        at = _key(key_head, data[offsets[i] : offsets[i + 1]], key_tail, out, at)
        for j in range(fields.shape[0]):
            at = _copy(fields[j], out, at)
            if np.isnan(rows[i, j]):
                out[at] = 36
                at = _digits(0, out, at + 1)
            else:
                at = _copy(double, out, at)
                at = _copy(bits[i, j], out, at)
            out[at] = 13
            out[at + 1] = 10
            at += 2
        at = _copy(time_field, out, at)
        whole = time_us[i] // 1_000_000
        seconds, nanos = np.uint64(whole), np.uint64((time_us[i] - whole * 1_000_000) * 1_000)
        size = (1 + _varint_size(seconds) if seconds else 0) + (
            1 + _varint_size(nanos) if nanos else 0
        )
        out[at] = 36
        at = _digits(size, out, at + 1)
        if seconds:
            out[at] = 8
            at = _varint(seconds, out, at + 1)
        if nanos:
            out[at] = 16
            at = _varint(nanos, out, at + 1)
        out[at] = 13
        out[at + 1] = 10
        at += 2
    return at
