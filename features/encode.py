"""Events to bytes: what a producer does, for the simulator and for tests of the decoder.

The counterpart of `features.decode`. Avro bodies are written column by column by compiled kernels
from the writer's schema (payments 0.5 us an event, fastavro 4.8); JSON by polars. A Kafka
producer puts Confluent's five bytes before each Avro body (`confluent_header`).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.errors import ContractError, DeclarationError
from features.jit import njit

__all__ = ["avro_bodies", "confluent_header", "json_bodies"]

Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

_LONG_BYTES_MAX = 10
"""Longest variable-length zigzag long (Avro 1.11, section Binary encoding)."""


@njit
def _put_long(value: np.int64, out: UInt8, at: int) -> int:
    """Write a zigzag varint at `at`; returns the place after it."""
    rest = np.uint64((value << np.int64(1)) ^ (value >> np.int64(63)))
    while rest >= np.uint64(0x80):
        out[at] = np.uint8((rest & np.uint64(0x7F)) | np.uint64(0x80))
        rest >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(rest)
    return at + 1


@njit
def _write_longs(
    values: Int64, valid: Bool, branch: int, null: int, out: UInt8, cursor: Int64
) -> None:
    """Append a long (or an enum's index) of each row; `branch` < 0 where the field is no union."""
    for i in range(len(cursor)):
        at = cursor[i]
        if branch >= 0:
            at = _put_long(np.int64(branch if valid[i] else null), out, at)
        if valid[i]:
            at = _put_long(values[i], out, at)
        cursor[i] = at


@njit
def _write_fixed(
    data: UInt8, width: int, valid: Bool, branch: int, null: int, out: UInt8, cursor: Int64
) -> None:
    """Append `width` bytes of each row: a double, or a boolean."""
    for i in range(len(cursor)):
        at = cursor[i]
        if branch >= 0:
            at = _put_long(np.int64(branch if valid[i] else null), out, at)
        if valid[i]:
            for j in range(width):
                out[at + j] = data[i * width + j]
            at += width
        cursor[i] = at


@njit
def _write_strings(
    data: UInt8, offsets: Int64, valid: Bool, branch: int, null: int, out: UInt8, cursor: Int64
) -> None:
    """Append length and bytes of each row's string."""
    for i in range(len(cursor)):
        at = cursor[i]
        if branch >= 0:
            at = _put_long(np.int64(branch if valid[i] else null), out, at)
        if valid[i]:
            at = _put_long(np.int64(offsets[i + 1] - offsets[i]), out, at)
            for j in range(offsets[i], offsets[i + 1]):
                out[at] = data[j]
                at += 1
        cursor[i] = at


def confluent_header(schema_id: int) -> bytes:
    """The five bytes before an Avro body on Kafka: a zero and the schema's id.

    Examples
    --------
    >>> confluent_header(7)
    b'\\x00\\x00\\x00\\x00\\x07'

    Source: Confluent Schema Registry, wire format.
    """
    return struct.pack(">bI", 0, schema_id)


def _string_buffers(column: pl.Series) -> tuple[UInt8, Int64]:
    """Bytes and offsets (n + 1,) of a string column."""
    # A column of nulls alone has no type of its own yet.
    array = column.cast(pl.String).rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets_buffer, data_buffer = array.buffers()
    n = len(column)
    if offsets_buffer is None or n == 0:
        return np.zeros(0, np.uint8), np.zeros(n + 1, np.int64)
    offsets = np.frombuffer(offsets_buffer, np.int64, n + 1 + array.offset)[array.offset :]
    data = np.zeros(0, np.uint8) if data_buffer is None else np.frombuffer(data_buffer, np.uint8)
    return data, offsets


def _branches(kind: Any) -> tuple[Any, int, int]:
    """Type of a field without its union, index of that type and of null in it; -1, -1 without."""
    if not isinstance(kind, list):
        return kind, -1, -1
    if len(kind) != 2 or "null" not in kind:
        raise DeclarationError(f"Avro union {kind}: only a union of null and one type is written")
    null = kind.index("null")
    return kind[1 - null], 1 - null, null


def _place_of(kind: Any) -> str:
    """Name of the Avro type that stands in the bytes, logical types taken off."""
    return str(kind["type"]) if isinstance(kind, dict) else str(kind)


class _Column:
    """One field of the record, ready to be appended to every row."""

    def __init__(self, name: str, kind: Any, column: pl.Series) -> None:
        inner, self.branch, self.null = _branches(kind)
        self.kind = _place_of(inner)
        self.valid: Bool = column.is_not_null().to_numpy()
        if self.branch < 0 and not self.valid.all():
            raise ContractError(f"field {name!r} is null in some rows, its Avro type is {kind}")
        if self.kind == "enum":
            place = {symbol: i for i, symbol in enumerate(inner["symbols"])}
            column = column.replace_strict(place, return_dtype=pl.Int64)
        n = len(column)
        self.data: npt.NDArray[Any]
        self.offsets = np.zeros(0, np.int64)
        tag = 0 if self.branch < 0 else 1
        if self.kind == "string":
            self.data, self.offsets = _string_buffers(column)
            self.bytes_max = np.diff(self.offsets) + (tag + 5)
        elif self.kind in ("long", "int", "enum"):
            self.data = column.cast(pl.Int64).fill_null(0).to_numpy()
            self.bytes_max = np.full(n, tag + _LONG_BYTES_MAX, np.int64)
        elif self.kind in ("double", "boolean"):
            dtype: Any = "<f8" if self.kind == "double" else np.uint8
            filled = column.fill_null(0.0 if self.kind == "double" else False)
            self.data = np.ascontiguousarray(filled.to_numpy().astype(dtype)).view(np.uint8)
            self.width = 8 if self.kind == "double" else 1
            self.bytes_max = np.full(n, tag + self.width, np.int64)
        else:
            raise DeclarationError(f"field {name!r}: Avro type {kind} is not written")

    def write(self, out: UInt8, cursor: Int64) -> None:
        """Append to every row."""
        if self.kind == "string":
            _write_strings(self.data, self.offsets, self.valid, self.branch, self.null, out, cursor)
        elif self.kind in ("double", "boolean"):
            _write_fixed(self.data, self.width, self.valid, self.branch, self.null, out, cursor)
        else:
            _write_longs(self.data, self.valid, self.branch, self.null, out, cursor)


def avro_bodies(schema: dict[str, Any], frame: pl.DataFrame, header: bytes = b"") -> list[bytes]:
    """Each row as an Avro record.

    Parameters
    ----------
    schema : the writer's Avro record schema, parsed; its fields are columns of the frame
    frame : (n,) rows
    header : put before each body, see `confluent_header`

    Returns
    -------
    n byte strings

    Raises
    ------
    DeclarationError : a type that is not written here (only strings, doubles, longs, ints,
        booleans, enums, and unions of one of them with null)
    ContractError : null in a field that must not be null, or a word that its enum lacks

    Source: Apache Avro 1.11 specification, Binary encoding.
    """
    n = frame.height
    if n == 0:
        return []
    try:
        columns = [_Column(f["name"], f["type"], frame[f["name"]]) for f in schema["fields"]]
    except pl.exceptions.InvalidOperationError as error:
        raise ContractError(f"record {schema['name']!r}: {error}") from None
    room = np.full(n, len(header), np.int64)
    for column in columns:
        room += column.bytes_max
    start = np.cumsum(room) - room
    out = np.empty(int(room.sum()), np.uint8)
    cursor = start.copy()
    for i, byte in enumerate(header):
        out[start + i] = byte
    cursor += len(header)
    for column in columns:
        column.write(out, cursor)
    message = out.tobytes()
    return [message[a:b] for a, b in zip(start.tolist(), cursor.tolist(), strict=True)]


def json_bodies(frame: pl.DataFrame) -> list[bytes]:
    """Each row as one JSON object without a line's end; null fields stand as null.

    Examples
    --------
    >>> json_bodies(pl.DataFrame({"a": [1, None]}))
    [b'{"a":1}', b'{"a":null}']
    """
    if frame.height == 0:
        return []
    return frame.write_ndjson().encode().rstrip(b"\n").split(b"\n")
