"""Avro bodies to columns: compiled walks over many bodies at once, each judged by itself.

The reading half of what `features.encode` writes. A walk follows the writer's schema through each
body and notes where every value lies; a body that ends early, holds a bad branch, word or length,
or is not consumed to its last byte is marked, and its neighbours are never touched by it. Strings
are gathered and checked column by column afterwards. `features.decode` is the one to call.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from features.jit import njit

__all__ = ["FAULTS", "Program", "column_of", "program_of", "walk"]

Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

FAULTS = (
    "",
    "the record ends within it",
    "bytes are left over after it",
    "it names a branch of the union that there is not",
    "its boolean is neither 0 nor 1",
    "it names a word of the enum that there is not",
    "its length is negative or longer than the record",
    "its number is longer than ten bytes",
)
"""What a walk may find wrong with a field, by status; 0 is fine."""

_ENDS, _LEFT, _BRANCH, _BOOL, _ENUM, _LENGTH, _LONG = range(1, 8)
_KIND = {
    "null": 0, "boolean": 1, "int": 2, "long": 2, "float": 3, "double": 4, "string": 5, "bytes": 5,
    "enum": 6, "fixed": 7,
}  # fmt: skip
_SKIPPED = -1

_MILLIS_MAX = 2**52
"""Milliseconds beyond it are clipped before they become microseconds; chosen: 140,000 years, far
out of every contract, and the product still fits 64 bits."""


@dataclass(frozen=True, slots=True)
class Program:
    """A flat writer's schema as numbers for the walk: F fields in the order of the body.

    Parameters
    ----------
    names : field names
    types : field types, unions and logical types taken off
    kind : int64 (F,), see `_KIND`
    size : int64 (F,), words of an enum or bytes of a fixed
    branch, null : int64 (F,), index of the type and of null in the union; -1 where there is none
    slot : int64 (F,), column that takes the value; -1 where nobody reads it
    """

    names: tuple[str, ...]
    types: tuple[Any, ...]
    kind: Int64
    size: Int64
    branch: Int64
    null: Int64
    slot: Int64

    def type_of(self, name: str) -> Any:
        """The writer's type of a field, None where it has no such field."""
        return self.types[self.names.index(name)] if name in self.names else None


def program_of(schema: dict[str, Any], wanted: dict[str, int]) -> Program | None:
    """The program of a record schema, None where it is not flat (lists, records, wide unions).

    Parameters
    ----------
    schema : the writer's, parsed
    wanted : field name -> column that takes its values
    """
    rows = []
    types = []
    for field in schema["fields"]:
        kind, branch, null = field["type"], -1, -1
        if isinstance(kind, list):
            if len(kind) != 2 or kind.count("null") != 1:
                return None
            null = kind.index("null")
            branch = 1 - null
            kind = kind[branch]
        name = kind["type"] if isinstance(kind, dict) else kind
        if not isinstance(name, str) or name not in _KIND:
            return None
        size = len(kind["symbols"]) if name == "enum" else kind["size"] if name == "fixed" else 0
        slot = wanted.get(field["name"], _SKIPPED)
        rows.append((_KIND[name], size, branch, null, slot))
        types.append(kind)
    names = tuple(f["name"] for f in schema["fields"])
    columns = np.array(rows, np.int64).reshape(len(rows), 5).T.copy()  # (5, F)
    return Program(names, tuple(types), *columns)


@njit
def _long(data, at, end):
    """A zigzag varint: its value, the place after it, and the fault (0: fine)."""
    value = np.uint64(0)
    shift = np.uint64(0)
    while at < end:
        byte = np.uint64(data[at])
        at += 1
        value |= (byte & np.uint64(0x7F)) << shift
        if byte < np.uint64(0x80):
            # The tenth byte has room for one bit of the 64.
            fault = 7 if shift == np.uint64(63) and byte > np.uint64(1) else 0
            half = np.int64(value >> np.uint64(1))
            return half ^ -np.int64(value & np.uint64(1)), at, fault
        shift += np.uint64(7)
        if shift > np.uint64(63):
            return np.int64(0), at, 7
    return np.int64(0), at, 1


@njit
def _fixed(data, at, width):
    """`width` bytes, least first, as the bits of an integer."""
    bits = np.uint64(0)
    for j in range(width):
        bits |= np.uint64(data[at + j]) << np.uint64(8 * j)
    return np.int64(bits)


@njit
def _value(data, at, end, kind, size):
    """One value: its bits (a string's place), its length, the place after it, the fault."""
    if kind == 1:
        if at >= end:
            return np.int64(0), np.int64(0), at, 1
        value = np.int64(data[at])
        return value, np.int64(0), at + 1, (4 if value > 1 else 0)
    if kind == 2 or kind == 6:
        value, at, fault = _long(data, at, end)
        if fault == 0 and kind == 6 and (value < 0 or value >= size):
            fault = 5
        return value, np.int64(0), at, fault
    if kind == 3 or kind == 4:
        width = 4 if kind == 3 else 8
        if end - at < width:
            return np.int64(0), np.int64(0), at, 1
        return _fixed(data, at, width), np.int64(0), at + width, 0
    if kind == 5:
        length, at, fault = _long(data, at, end)
        if fault != 0:
            return np.int64(0), np.int64(0), at, fault
        if length < 0 or length > end - at:
            return np.int64(0), np.int64(0), at, 6
        return np.int64(at), length, at + length, 0
    if kind == 7:
        if end - at < size:
            return np.int64(0), np.int64(0), at, 1
        return np.int64(at), size, at + size, 0
    return np.int64(0), np.int64(0), at, 0


@njit
def _walk(
    data, starts, ends, kind, size, branch, null, slot, cells, lengths, valid, status, culprit
):
    """Follow the schema through each body; see `walk`."""
    fields = len(kind)
    for i in range(len(starts)):
        at, end, fault = starts[i], ends[i], 0
        for f in range(fields):
            if branch[f] >= 0:
                which, at, fault = _long(data, at, end)
                if fault == 0 and which != branch[f]:
                    if which == null[f]:
                        continue
                    fault = 3
            if fault == 0:
                value, length, at, fault = _value(data, at, end, kind[f], size[f])
            if fault != 0:
                status[i], culprit[i] = fault, f
                break
            if slot[f] >= 0 and kind[f] != 0:
                cells[slot[f], i], lengths[slot[f], i] = value, length
                valid[slot[f], i] = True
        if fault == 0 and at != end:
            status[i], culprit[i] = 2, fields - 1


def walk(
    program: Program, data: UInt8, starts: Int64, ends: Int64, columns: int
) -> tuple[Int64, Int64, Bool, Int64, Int64]:
    """Where the values of each body lie.

    Parameters
    ----------
    program : of the schema all bodies were written with
    data : uint8, all messages one after the other
    starts, ends : int64 (n,), bounds of each body in `data`
    columns : how many columns take values (C)

    Returns
    -------
    cells : int64 (C, n), a number's bits, a word's index, a string's place in `data`
    lengths : int64 (C, n), bytes of a string
    valid : bool (C, n), False where it is null
    status : int64 (n,), see FAULTS; the row's cells mean nothing where it is not 0
    culprit : int64 (n,), the field at which it was found
    """
    n = len(starts)
    cells = np.zeros((columns, n), np.int64)
    lengths = np.zeros((columns, n), np.int64)
    valid = np.zeros((columns, n), np.bool_)
    status, culprit = np.zeros(n, np.int64), np.zeros(n, np.int64)
    _walk(
        data, starts, ends, program.kind, program.size, program.branch, program.null, program.slot,
        cells, lengths, valid, status, culprit,
    )  # fmt: skip
    return cells, lengths, valid, status, culprit


@njit
def _gather(data, places, lengths, offsets, out):
    """Copy the strings one behind the other."""
    for i in range(len(places)):
        to, place = offsets[i], places[i]
        for j in range(lengths[i]):
            out[to + j] = data[place + j]


def column_of(
    data: UInt8, kind: Any, dtype: pl.DataType, cells: Int64, lengths: Int64, valid: Bool
) -> tuple[pl.Series | None, Bool]:
    """A column of the reader's type from what the walk noted of one field.

    Parameters
    ----------
    kind : the writer's type, union taken off
    dtype : the reader's type
    cells, lengths, valid : (n,), the walk's notes on the rows that hold

    Returns
    -------
    The column, None where the writer's type cannot be read as the reader's; and bool (n,), which
    rows are readable (a string may not be UTF-8; its cell is then null)
    """
    name = kind["type"] if isinstance(kind, dict) else kind
    everything = np.ones(len(cells), np.bool_)
    column: pl.Series | None = None
    if name in ("string", "bytes") and dtype == pl.String:
        return _strings(data, cells, lengths, valid)
    if name == "enum" and dtype == pl.String:
        words = pl.Series(kind["symbols"], dtype=pl.String)
        column = words.gather(cells)
    elif name in ("int", "long") and dtype in (pl.Int64, pl.Float64):
        millis = isinstance(kind, dict) and kind.get("logicalType") == "timestamp-millis"
        if millis and dtype == pl.Int64:
            cells = np.clip(cells, -_MILLIS_MAX, _MILLIS_MAX) * 1000
        column = pl.Series(cells).cast(dtype)
    elif name == "double" and dtype == pl.Float64:
        column = pl.Series(cells.view(np.float64))
    elif name == "float" and dtype == pl.Float64:
        column = pl.Series(cells.astype(np.uint32).view(np.float32).astype(np.float64))
    elif name == "boolean" and dtype == pl.Boolean:
        column = pl.Series(cells.astype(np.bool_))
    elif name == "null":
        column = pl.Series([None], dtype=dtype).new_from_index(0, len(cells))
    if column is not None and not valid.all():
        column = column.set(pl.Series(~valid), None)
    return column, everything


def _strings(data: UInt8, places: Int64, lengths: Int64, valid: Bool) -> tuple[pl.Series, Bool]:
    """A string column, and which rows are UTF-8."""
    offsets = np.zeros(len(places) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    out = np.empty(int(offsets[-1]), np.uint8)
    _gather(data, places, lengths, offsets, out)
    mask = None
    if not valid.all():
        mask = pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    array = pa.LargeStringArray.from_buffers(
        len(places), pa.py_buffer(offsets), pa.py_buffer(out), mask
    )
    readable = np.ones(len(places), np.bool_)
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        whole = out.tobytes()
        texts: list[str | None] = []
        for i, (a, b) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            try:
                texts.append(whole[a:b].decode() if valid[i] else None)
            except UnicodeDecodeError:
                texts.append(None)
                readable[i] = False
        return pl.Series(texts, dtype=pl.String), readable
    return pl.Series(pl.from_arrow(array)), readable
