"""Feast's Redis layout: names of views and the bytes of keys, fields, values and times.

The writer, the reader and `feature_repo/` take every name from here, so that what is written is
what Feast looks for. The bytes are those of Feast's own `RedisOnlineStore` with entity keys of
version 3; `tests/unit/test_store_layout.py` compares them with Feast's functions. A hash is an
entity, shared by the views of all event types that know it; a field is a feature, or the time of a
view.
"""

# mypy: disable-error-code="no-untyped-call"
# The kernel takes arrays of types numba finds out.

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import mmh3
import numpy as np
import numpy.typing as npt
import polars as pl

from dataflows.store.resp import write_asks, write_rows
from features.batch import Float64, Int64
from features.catalog import Catalog
from features.emptied import timed_names
from features.errors import ConfigError, ShapeError

__all__ = [
    "PROJECT",
    "ViewLayout",
    "entities_in",
    "entity_key",
    "layouts",
    "service_name",
    "time_from_bytes",
    "view_name",
    "windows_layouts",
]

UInt8 = npt.NDArray[np.uint8]

PROJECT = "waxwing"
"""Feast project; it closes every key. Chosen: the name of the package."""

VIEW_VERSION = 1
"""Raised where a view of the same name would mean something else; versioned names are Feast's
practice."""

_STRING = 2
"""`ValueType.STRING` of Feast, type of all our join keys."""

_DOUBLE = b"$9\r\n\x29"
"""Length of a value and its tag: field 5 of Feast's `Value` (double_val), 8 bytes little-endian."""

_TIME_BYTES_MAX = 17
"""A `Timestamp`: two tags, seconds of at most 10 bytes, nanoseconds of at most 5."""

_KEY_DIGITS_MAX = 10
"""Digits of a key's length; Redis ends at 512 MB."""


def view_name(event_type: str, entity: str) -> str:
    """Name of the feature view of an entity as seen by an event type.

    >>> view_name("payment", "card")
    'payment_card_v1'
    """
    return f"{event_type}_{entity}_v{VIEW_VERSION}"


def service_name(event_type: str) -> str:
    """Name of the feature service with all views of an event type."""
    return f"{event_type}_v{VIEW_VERSION}"


def _key_head(entity: str) -> bytes:
    """What stands before the length of the entity's name in a key."""
    name = entity.encode()
    return struct.pack("<III", 1, _STRING, len(name)) + name + struct.pack("<I", _STRING)


def entity_key(entity: str, value: str) -> bytes:
    """Redis key of one entity."""
    text = value.encode()
    return _key_head(entity) + struct.pack("<I", len(text)) + text + PROJECT.encode()


def entities_in(keys: Iterable[bytes]) -> dict[str, list[str]]:
    """Entity type -> names, of those Redis keys that are of our layout.

    >>> entities_in([entity_key("card", "c1"), b"something else"])
    {'card': ['c1']}
    """
    tail = PROJECT.encode()
    found: dict[str, list[str]] = {}
    for key in keys:
        if len(key) < 20 + len(tail) or key[:8] != struct.pack("<II", 1, _STRING):
            continue
        begin = 20 + int.from_bytes(key[8:12], "little")
        size = int.from_bytes(key[begin - 4 : begin], "little")
        if key[begin + size :] == tail and size:
            try:
                entity, name = key[12 : begin - 8].decode(), key[begin : begin + size].decode()
            except UnicodeDecodeError:
                continue  # somebody else's key in our shape
            found.setdefault(entity, []).append(name)
    return found


def _field(view: str, feature: str) -> bytes:
    """Hash field of one feature: 4 bytes."""
    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


def _bulk(part: bytes) -> bytes:
    """A bulk string of RESP, the protocol of Redis."""
    return b"$%d\r\n%s\r\n" % (len(part), part)


def time_from_bytes(data: bytes | None) -> int | None:
    """Microseconds of a stored `Timestamp`; None where there is none.

    >>> time_from_bytes(bytes.fromhex("08808d8acd0610c0843d"))
    1772409600001000
    """
    if data is None:
        return None
    number = [0, 0, 0]
    at = 0
    while at < len(data):
        field = data[at] >> 3
        at += 1
        shift = value = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        number[field] = value
    seconds = number[1] - (1 << 64) if number[1] >= 1 << 63 else number[1]
    return seconds * 1_000_000 + number[2] // 1_000


def _text(keys: pl.Series) -> tuple[UInt8, Int64]:
    """Bytes of all strings in a row and where each begins (n + 1)."""
    n = len(keys)
    array = keys.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64, n + 1 + array.offset)[array.offset :]
    data = np.zeros(0, np.uint8) if data_buffer is None else np.frombuffer(data_buffer, np.uint8)
    return data, offsets


def _array(part: bytes) -> UInt8:
    """Bytes as the kernel reads them."""
    return np.frombuffer(part, np.uint8)


@dataclass(frozen=True, slots=True)
class ViewLayout:
    """How the rows of one view lie in Redis.

    Parameters
    ----------
    name : name of the Feast view
    entity : entity type, which is also the join key
    features : names, in the order of the catalogue
    """

    name: str
    entity: str
    features: tuple[str, ...]

    @property
    def fields(self) -> tuple[bytes, ...]:
        """Hash field of each feature."""
        return tuple(_field(self.name, feature) for feature in self.features)

    @property
    def time_field(self) -> bytes:
        """Hash field of the time of the view's newest row."""
        return f"_ts:{self.name}".encode()

    def encode(self, keys: pl.Series, rows: Float64, time_us: Int64) -> UInt8:
        """The commands that write rows, in their order, as Redis reads them from the wire.

        Parameters
        ----------
        keys : String (n,), entities, none null or empty
        rows : float64 (n, F); NaN becomes Feast's null
        time_us : int64 (n,), event times

        Returns
        -------
        uint8 (bytes,); Redis answers each row with one reply

        Raises
        ------
        ShapeError : the columns do not fit each other or the view
        """
        n, width = len(keys), len(self.features)
        if rows.shape != (n, width) or len(time_us) != n:
            raise ShapeError(
                f"view {self.name!r}: expected rows ({n}, {width}) and {n} times, got"
                f" {rows.shape} and {len(time_us)}; train and run with one catalogue"
            )
        data, offsets = _text(keys)
        rows = np.ascontiguousarray(rows, np.float64)
        command = b"*%d\r\n$4\r\nHSET\r\n$" % (2 * width + 4)
        head, tail = _key_head(self.entity), PROJECT.encode()
        time_field = _bulk(self.time_field)
        names = np.frombuffer(b"".join(map(_bulk, self.fields)), np.uint8).reshape(width, -1)
        each = len(command) + _KEY_DIGITS_MAX + 2 + len(head) + 4 + len(tail) + 2
        each += width * (names.shape[1] + len(_DOUBLE) + 8 + 2) + len(time_field)
        each += 5 + _TIME_BYTES_MAX + 2
        out = np.empty(n * each + int(offsets[-1] - offsets[0]), np.uint8)
        size = write_rows(
            _array(command), _array(head), _array(tail), names, _array(time_field),
            _array(_DOUBLE), data, offsets, rows, rows.view(np.uint8).reshape(n, width, 8),
            np.ascontiguousarray(time_us, np.int64), out,
        )  # fmt: skip
        return out[:size]

    def ask_times(self, keys: pl.Series) -> UInt8:
        """The commands that ask for the times of entities' newest rows, as Redis reads them.

        Parameters
        ----------
        keys : String (n,), entities, none null or empty

        Returns
        -------
        uint8 (bytes,); Redis answers each with what `time_from_bytes` takes
        """
        data, offsets = _text(keys)
        command = b"*3\r\n$4\r\nHGET\r\n$"
        head, tail, field = _key_head(self.entity), PROJECT.encode(), _bulk(self.time_field)
        each = len(command) + _KEY_DIGITS_MAX + 2 + len(head) + 4 + len(tail) + 2 + len(field)
        out = np.empty(len(keys) * each + int(offsets[-1] - offsets[0]), np.uint8)
        size = write_asks(
            _array(command), _array(head), _array(tail), _array(field), data, offsets, out
        )
        return out[:size]


def windows_layouts(catalog: Catalog) -> dict[tuple[str, str], ViewLayout]:
    """(event type, entity) -> layout of the part of its view that changes while nothing comes.

    Its fields are those of the view itself; a view without such features is left out.
    """
    named = {view: timed_names(catalog, *view) for view in catalog.views()}
    return {
        (event, entity): ViewLayout(view_name(event, entity), entity, names)
        for (event, entity), names in named.items()
        if names
    }


def layouts(catalog: Catalog) -> dict[tuple[str, str], ViewLayout]:
    """(event type, entity) -> layout of its view.

    Raises
    ------
    ConfigError : two features of an entity share a field (a hash of 32 bits); one must be renamed
    """
    found = {
        (event, entity): ViewLayout(view_name(event, entity), entity, tuple(f.name for f in fs))
        for (event, entity), fs in catalog.views().items()
    }
    seen: dict[tuple[str, bytes], str] = {}
    faults = []
    for layout in found.values():
        for feature, field in zip(layout.features, layout.fields, strict=True):
            name = f"{layout.name}:{feature}"
            other = seen.setdefault((layout.entity, field), name)
            if other != name:
                faults.append(f"features {other!r} and {name!r} share a field of Redis; rename one")
    if faults:
        raise ConfigError(faults)
    return found
