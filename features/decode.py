"""Bytes to events: Avro in Confluent framing or JSON, each record judged by itself.

What arrives is columns of events whose contract holds, and a reject with reason for every other
record: in = events + rejects, whatever the bytes are. Nothing here raises on data. Avro bodies are
walked by compiled kernels (`features.wire`) that must consume each body exactly, so that a broken
one cannot shift its neighbours; JSON is parsed by pydantic-core, strictly typed, one record at a
time, so that the verdict on a record never depends on what came with it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, Literal

import fastavro
import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic_core import SchemaValidator, ValidationError, core_schema

from features.batch import EventBatch, Int32, Int64
from features.events import Field, event_type
from features.events.avro import avro_schema
from features.wire import FAULTS, Program, column_of, program_of, walk

__all__ = ["REASONS", "Decoded", "Reject", "check_contract", "decode", "schema_ids", "warm_up"]

REASONS: dict[str, str] = {
    "empty": "no bytes at all (on Kafka: a tombstone)",
    "not_avro": "no Confluent framing, or the body is not one record of its schema",
    "unknown_schema": "the registry has no schema of this id",
    "schema_mismatch": "records of this schema cannot be read as the event type",
    "not_utf8": "text that is not UTF-8",
    "not_json": "not one JSON object",
    "missing_field": "a field without default is absent or null",
    "wrong_type": "a value of another type than declared",
    "not_finite": "NaN or an infinite number",
    "out_of_range": "a number outside the declared bounds",
    "too_long": "a string longer than declared",
    "not_a_word": "a word that the enum does not have",
    "empty_id": "an event without an id",
    "time_past": "older than `time_past_s_max` against the clock of its round",
    "time_future": "further ahead of the clock of its round than `time_future_s_max`",
}
"""Why a record is refused: reason -> meaning."""

DETAIL_CHARS_MAX = 240
"""Longest detail; chosen: a line of a log. The record itself lies beside it in the dead letter."""

SHOWN_CHARS_MAX = 40
"""Longest piece of a value in a detail. Chosen."""

SCHEMAS_KEPT_MAX = 256
"""Writer's schemas kept resolved; chosen: far more than a topic sees in a day."""

HEADER_BYTES = 5
"""Confluent's zero and schema id before each body."""

_INT64 = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that is no event.

    Parameters
    ----------
    row : index into the input
    reason : one of REASONS
    detail : a sentence: field, expected, got
    schema_id : of Confluent's framing, None where there is none
    """

    row: int
    reason: str
    detail: str
    schema_id: int | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of a number of records.

    Parameters
    ----------
    batch : the events, in the order of the input
    rows : intp (n,), their indices into the input
    rejects : all others, in the order of the input
    """

    batch: EventBatch
    rows: npt.NDArray[np.intp]
    rejects: list[Reject]


@dataclass(slots=True)
class _Read:
    """Records read, contract not yet checked: rows of the frame are `rows` of the input."""

    frame: pl.DataFrame
    rows: npt.NDArray[np.intp]
    rejects: list[Reject]
    ids: Int64 | None = None


def decode(
    event_type_name: str,
    encoding: Literal["avro", "json"],
    values: Sequence[bytes | None],
    partition: Int32,
    offset: Int64,
    due_ns: Int64,
    schemas: Mapping[int, str | None],
    *,
    cut_time_us: int,
    past_us_max: int,
    future_us_max: int,
) -> Decoded:
    """Events of one type from bytes.

    Parameters
    ----------
    event_type_name : what the records should be
    encoding : `avro` in Confluent framing, or `json`
    values : n records as they came; None is a tombstone
    partition, offset, due_ns : int32, int64, int64 (n,), go with each record
    schemas : schema id -> writer's schema (JSON text), None where the registry says that there is
        no such id; must hold all `schema_ids(values)`
    cut_time_us : clock of the round; times are held against it
    past_us_max, future_us_max : how far a time may lie before and after it

    Raises
    ------
    KeyError : a schema id that `schemas` does not speak of (the caller's fault, not the data's)
    """
    read = (
        _read_avro(event_type_name, values, schemas)
        if encoding == "avro"
        else _read_json(event_type_name, values)
    )
    hold, faults = check_contract(
        event_type_name,
        read.frame,
        cut_time_us=cut_time_us,
        past_us_max=past_us_max,
        future_us_max=future_us_max,
    )
    rows, frame = read.rows, read.frame
    rejects = read.rejects
    for at, reason, detail in faults:
        row = int(rows[at])
        schema_id = None if read.ids is None else int(read.ids[row])
        rejects.append(Reject(row, reason, detail, schema_id))
    if faults:
        rows, frame = rows[hold], frame.filter(pl.Series(hold))
    rejects.sort(key=lambda reject: reject.row)
    batch = EventBatch(event_type_name, frame, partition[rows], offset[rows], due_ns[rows])
    return Decoded(batch, rows, rejects)


def warm_up(event_type_names: Sequence[str]) -> None:
    """Compile the kernels (or load them) and resolve our own schemas, before the first record."""
    for name in event_type_names:
        text = json.dumps(avro_schema(name))
        message = bytes(HEADER_BYTES + 1)
        none = np.zeros(1, np.int64)
        decode(
            name, "avro", [message], np.zeros(1, np.int32), none, none, {0: text},
            cut_time_us=0, past_us_max=0, future_us_max=0,
        )  # fmt: skip


def schema_ids(values: Sequence[bytes | None]) -> list[int]:
    """Distinct schema ids of Confluent's framing, sorted: to be looked up before `decode`.

    Examples
    --------
    >>> schema_ids([b"\\x00\\x00\\x00\\x00\\x07body", b"\\xff", None])
    [7]
    """
    heads = {value[:HEADER_BYTES] for value in values if value}
    return sorted(
        int.from_bytes(head[1:], "big")
        for head in heads
        if len(head) == HEADER_BYTES and head[0] == 0
    )


# -- contract -------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _broken(event_type_name: str) -> tuple[pl.Expr, ...]:
    """An expression for each field: True where its value breaks the declaration."""
    found = []
    for field in event_type(event_type_name).fields:
        column = pl.col(field.name)
        tests: list[pl.Expr] = [] if field.nullable else [column.is_null()]
        if field.kind == "string":
            tests.append(column.str.len_bytes() > field.length_max)
        elif field.kind == "enum":
            tests.append(~column.is_in(list(field.values)))
        elif field.kind == "float64":
            tests += [~column.is_finite(), ~column.is_between(*field.bounds)]
        elif field.kind == "int64":
            if field.minimum is not None:
                tests.append(column < field.minimum)
            if field.maximum is not None:
                tests.append(column > field.maximum)
        if field.name == "event_id":
            tests.append(column.str.len_bytes() == 0)
        found += tests
    return tuple(found)


def check_contract(
    event_type_name: str,
    frame: pl.DataFrame,
    *,
    cut_time_us: int,
    past_us_max: int,
    future_us_max: int,
) -> tuple[npt.NDArray[np.bool_], list[tuple[int, str, str]]]:
    """Which rows hold what the declaration promises.

    Parameters
    ----------
    frame : (n,) the declared fields, in declared order and type
    cut_time_us : clock of the round; times are held against it
    past_us_max, future_us_max : how far a time may lie before and after it

    Returns
    -------
    hold : bool (n,)
    faults : (row, reason, detail) of every row that does not, in order
    """
    low = max(cut_time_us - past_us_max, _INT64[0])
    high = min(cut_time_us + future_us_max, _INT64[1])
    outside = ~pl.col("time_us").is_between(low, high)
    broken = frame.select(
        pl.any_horizontal(*_broken(event_type_name), outside).fill_null(False).alias("broken")
    )["broken"]
    hold: npt.NDArray[np.bool_] = ~broken.to_numpy()
    rows = np.flatnonzero(~hold)
    faults: list[tuple[int, str, str]] = []
    if len(rows):
        fields = event_type(event_type_name).fields
        columns = [(f, frame[f.name].gather(rows)) for f in fields]
        for at, row in enumerate(rows.tolist()):
            reason, detail = _first_fault(((f, c[at]) for f, c in columns), low, high)
            faults.append((row, reason, detail[:DETAIL_CHARS_MAX]))
    return hold, faults


def _first_fault(cells: Any, low_us: int, high_us: int) -> tuple[str, str]:
    """Reason and detail of the first field of a row that breaks its declaration."""
    for field, value in cells:
        fault = _fault(field, value, low_us, high_us)
        if fault is not None:
            return fault
    return "wrong_type", "the record breaks the declaration of its event type"


def _fault(field: Field, value: Any, low_us: int, high_us: int) -> tuple[str, str] | None:
    """What is wrong with one value, None where it holds."""
    name = field.name
    if value is None:
        return None if field.nullable else ("missing_field", f"{name}: expected a value, got null")
    if field.kind == "string":
        size = len(value.encode())
        if size > field.length_max:
            got = f"{size} bytes, beginning {_shown(value)}"
            return "too_long", f"{name}: expected at most {field.length_max} bytes, got {got}"
        if name == "event_id" and not value:
            return "empty_id", f"{name}: expected an id, got an empty string"
    elif field.kind == "enum" and value not in field.values:
        words = ", ".join(field.values)
        return "not_a_word", f"{name}: expected one of {words}; got {_shown(value)}"
    elif field.kind == "time_us" and not low_us <= value <= high_us:
        early = value < low_us
        limit = f"at least {low_us}" if early else f"at most {high_us}"
        return "time_past" if early else "time_future", f"{name}: expected {limit}, got {value}"
    elif field.kind in ("float64", "int64"):
        if not np.isfinite(value):
            return "not_finite", f"{name}: expected a finite number, got {value}"
        low, high = field.bounds
        if value < low:
            return "out_of_range", f"{name}: expected at least {low:g}, got {value:g}"
        if value > high:
            return "out_of_range", f"{name}: expected at most {high:g}, got {value:g}"
    return None


def _shown(value: str) -> str:
    """The beginning of a text, escaped."""
    piece = repr(value[:SHOWN_CHARS_MAX])
    return piece if len(value) <= SHOWN_CHARS_MAX else f"{piece}..."


# -- Avro -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Writer:
    """A writer's schema, resolved against an event type.

    Parameters
    ----------
    program : for the compiled walk; None where the schema is not flat
    parsed : for fastavro, logical types taken off; None where there is a program
    millis : fields whose times are milliseconds
    fault : why no record of it can be read; empty where they can
    """

    program: Program | None = None
    parsed: Any = None
    millis: tuple[str, ...] = ()
    fault: str = ""


@lru_cache(maxsize=SCHEMAS_KEPT_MAX)
def _writer(event_type_name: str, text: str) -> _Writer:
    """Resolve a writer's schema; what is wrong with it becomes its `fault`."""
    try:
        return _resolve(event_type_name, json.loads(text))
    except Exception as error:  # whatever a foreign schema makes json, fastavro or us raise
        return _Writer(fault=f"not an Avro schema: {str(error)[:SHOWN_CHARS_MAX]}")


def _resolve(event_type_name: str, schema: Any) -> _Writer:
    """A writer's schema against an event type."""
    event = event_type(event_type_name)
    if not isinstance(schema, dict) or schema.get("type") != "record":
        return _Writer(fault=f"expected a record, got {_shown(json.dumps(schema))}")
    bare = _without_logical_types(schema)
    parsed = fastavro.parse_schema(bare)
    endless = _unbounded(bare, {})
    if endless:
        return _Writer(fault=endless)
    names = {f["name"] for f in schema["fields"]}
    lacking = [
        f.name for f in event.fields if f.name not in names and not f.nullable and f.default is None
    ]
    if lacking:
        return _Writer(fault=f"it lacks {', '.join(lacking)}, and there is no default")
    program = program_of(schema, {f.name: i for i, f in enumerate(event.fields)})
    if program is None:
        return _Writer(parsed=parsed, millis=_millis(schema))
    no_data, no_rows, no_flags = np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.bool_)
    for f in event.fields:
        kind = program.type_of(f.name)
        if kind is None:
            continue
        if column_of(no_data, kind, f.dtype, no_rows, no_rows, no_flags)[0] is None:
            return _Writer(fault=f"its field {f.name} is {_shown(str(kind))}, expected {f.kind}")
    return _Writer(program)


def _without_logical_types(schema: Any) -> Any:
    """The schema with plain types only: times stay integers."""
    if isinstance(schema, list):
        return [_without_logical_types(s) for s in schema]
    if isinstance(schema, dict):
        return {k: _without_logical_types(v) for k, v in schema.items() if k != "logicalType"}
    return schema


def _millis(schema: dict[str, Any]) -> tuple[str, ...]:
    """Fields of the record that are timestamps in milliseconds."""
    found = []
    for field in schema["fields"]:
        kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
        if any(isinstance(k, dict) and k.get("logicalType") == "timestamp-millis" for k in kinds):
            found.append(field["name"])
    return tuple(found)


def _unbounded(kind: Any, above: Mapping[str, Any]) -> str:
    """Why a few bytes could stand for endless work, empty where they cannot.

    A record within itself nests as deep as its writer likes, and a list of things without bytes is
    as long as its count says.
    """
    if isinstance(kind, list):
        return next((why for k in kind if (why := _unbounded(k, above))), "")
    if not isinstance(kind, dict):
        return f"its record {kind} holds itself" if kind in above else ""
    if kind.get("type") == "record":
        name = kind["name"]
        full = f"{kind.get('namespace', '')}.{name}"
        inside = {**above, name: kind, full: kind}
        return next((why for f in kind["fields"] if (why := _unbounded(f["type"], inside))), "")
    if kind.get("type") == "array":
        if kind["items"] == "null" or (
            isinstance(kind["items"], dict)
            and (not kind["items"].get("fields", True) or kind["items"].get("size") == 0)
        ):
            return "it has a list whose items take no bytes"
        return _unbounded(kind["items"], above)
    if kind.get("type") == "map":
        return _unbounded(kind["values"], above)
    return _unbounded(kind["type"], above) if isinstance(kind.get("type"), dict | list) else ""


def _read_avro(
    name: str, values: Sequence[bytes | None], schemas: Mapping[int, str | None]
) -> _Read:
    """Take the framing off, read the bodies of each schema together, put them in order again."""
    whole = [value or b"" for value in values]
    lengths = np.fromiter(map(len, whole), np.int64, len(whole))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    data = np.frombuffer(b"".join(whole), np.uint8)
    ids = np.full(len(whole), -1, np.int64)
    rejects: list[Reject] = []
    long = np.flatnonzero(lengths >= HEADER_BYTES)
    framed = long[data[starts[long]] == 0]
    word = data[starts[framed, None] + np.arange(1, HEADER_BYTES)].astype(np.int64)  # (m, 4)
    ids[framed] = word @ np.array([1 << 24, 1 << 16, 1 << 8, 1], np.int64)
    for row in np.flatnonzero(ids < 0).tolist():
        rejects.append(_unframed(row, whole[row]))
    order = framed[np.argsort(ids[framed], kind="stable")]
    frames: list[pl.DataFrame] = []
    places: list[npt.NDArray[np.intp]] = []
    cuts = np.flatnonzero(np.diff(ids[order])) + 1
    for rows in np.split(order, cuts) if len(order) else ():
        schema_id = int(ids[rows[0]])
        text = schemas[schema_id]
        writer = None if text is None else _writer(name, text)
        if writer is None or writer.fault:
            reason = "unknown_schema" if writer is None else "schema_mismatch"
            detail = "the registry has no such schema" if writer is None else writer.fault
            detail = f"schema {schema_id}: {detail}"[:DETAIL_CHARS_MAX]
            rejects += [Reject(row, reason, detail, schema_id) for row in rows.tolist()]
            continue
        if writer.program is None:
            read = _one_by_one(name, writer, [whole[row] for row in rows.tolist()], rows, schema_id)
        else:
            bounds = (starts[rows] + HEADER_BYTES, ends[rows])
            read = _at_once(name, writer.program, data, bounds, rows, schema_id)
        frames.append(read.frame)
        places.append(read.rows)
        rejects += read.rejects
    if not frames:
        return _Read(_no_rows(name), np.zeros(0, np.intp), rejects, ids)
    frame, rows = frames[0], places[0]
    if len(frames) > 1:
        rows = np.concatenate(places)
        back = np.argsort(rows)
        frame, rows = pl.concat(frames)[back], rows[back]
    return _Read(frame, rows, rejects, ids)


def _unframed(row: int, value: bytes) -> Reject:
    """The reject of a record without Confluent's framing."""
    if not value:
        return Reject(row, "empty", "expected a record, got no bytes")
    got = value[:HEADER_BYTES].hex(" ")
    return Reject(
        row, "not_avro", f"expected a zero, a schema id of four bytes and a body, got {got}"
    )


def _no_rows(name: str) -> pl.DataFrame:
    """A frame of the event type without rows."""
    return pl.DataFrame(schema=event_type(name).schema)


def _at_once(
    name: str,
    program: Program,
    data: npt.NDArray[np.uint8],
    bounds: tuple[Int64, Int64],
    rows: npt.NDArray[np.intp],
    schema_id: int,
) -> _Read:
    """All bodies of one flat schema by the compiled walk."""
    fields = event_type(name).fields
    cells, lengths, valid, status, culprit = walk(program, data, *bounds, len(fields))
    rejects: list[Reject] = []
    bad = np.flatnonzero(status)
    for at in bad.tolist():
        field = program.names[culprit[at]] if program.names else "the record"
        detail = f"{field}: {FAULTS[status[at]]}"
        rejects.append(Reject(int(rows[at]), "not_avro", detail, schema_id))
    if len(bad):
        fine = np.flatnonzero(status == 0)
        cells, lengths, valid, rows = cells[:, fine], lengths[:, fine], valid[:, fine], rows[fine]
    columns: list[pl.Series] = []
    readable = np.ones(len(rows), np.bool_)
    for i, field in enumerate(fields):
        kind = program.type_of(field.name)
        if kind is None:
            constant = pl.Series(field.name, [field.default], dtype=field.dtype)
            columns.append(constant.new_from_index(0, len(rows)))
            continue
        column, good = column_of(data, kind, field.dtype, cells[i], lengths[i], valid[i])
        if column is None:  # `_writer` has refused such a schema
            column = pl.Series([None], dtype=field.dtype).new_from_index(0, len(rows))
        for at in np.flatnonzero(readable & ~good).tolist():
            detail = f"{field.name}: its bytes are not UTF-8"
            rejects.append(Reject(int(rows[at]), "not_utf8", detail, schema_id))
        readable &= good
        columns.append(column.alias(field.name))
    frame = pl.DataFrame(columns)
    if not readable.all():
        frame, rows = frame.filter(pl.Series(readable)), rows[readable]
    return _Read(frame, rows, rejects)


def _one_by_one(
    name: str, writer: _Writer, values: list[bytes], rows: npt.NDArray[np.intp], schema_id: int
) -> _Read:
    """Bodies of a schema that is not flat, by fastavro."""

    def parse(value: bytes) -> dict[str, Any]:
        body = io.BytesIO(value)
        body.seek(HEADER_BYTES)
        record: Any = fastavro.schemaless_reader(body, writer.parsed, None)
        if body.tell() != len(value):
            raise ValueError(f"{len(value) - body.tell()} bytes are left over")
        for field in writer.millis:
            if isinstance(record.get(field), int):
                record[field] *= 1000
        record = {k: v.decode() if isinstance(v, bytes) else v for k, v in record.items()}
        read: dict[str, Any] = _validator(name).validate_python(record)
        return read

    def refuse(_value: bytes, error: Exception) -> tuple[str, str]:
        if isinstance(error, UnicodeDecodeError):
            return "not_utf8", "its text is not UTF-8"
        return "not_avro", f"{type(error).__name__}: {error}"

    return _collect(name, values, rows, parse, refuse, schema_id)


# -- JSON -----------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _validator(event_type_name: str) -> SchemaValidator:
    """A strict reader of one record, JSON or a dict, to a dict of exactly the declared fields."""
    return SchemaValidator(
        core_schema.typed_dict_schema(
            {f.name: _typed(f) for f in event_type(event_type_name).fields},
            extra_behavior="ignore",
        )
    )


def _typed(field: Field) -> core_schema.TypedDictField:
    """The type of one field; bounds and words are the contract's to check."""
    schema: core_schema.CoreSchema
    if field.kind in ("string", "enum"):
        schema = core_schema.str_schema(strict=True)
    elif field.kind == "bool":
        schema = core_schema.bool_schema(strict=True)
    elif field.kind == "float64":
        schema = core_schema.float_schema(strict=True, allow_inf_nan=False)
    else:
        schema = core_schema.int_schema(strict=True, ge=_INT64[0], le=_INT64[1])
    if field.nullable:
        schema = core_schema.nullable_schema(schema)
    if field.nullable or field.default is not None:
        schema = core_schema.with_default_schema(schema, default=field.default)
    return core_schema.typed_dict_field(schema)


def _read_json(name: str, values: Sequence[bytes | None]) -> _Read:
    """Each record by the strict reader."""
    validator = _validator(name)
    rows = np.arange(len(values))
    return _collect(name, values, rows, validator.validate_json, _not_json, None)


def _not_json(value: bytes, _error: Exception) -> tuple[str, str]:
    """Why a record that is no JSON is none."""
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        return "not_utf8", f"byte {error.start} of the record is not UTF-8"
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return "not_json", str(error)
    return "not_json", f"expected one object, got {_shown(text)}"


_WRONG = {
    "missing": "missing_field",
    "finite_number": "not_finite",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "int_parsing_size": "out_of_range",
}
"""pydantic-core's error type -> our reason; every other is a wrong type."""


def _collect(
    name: str,
    values: Sequence[bytes | None],
    rows: npt.NDArray[np.intp],
    parse: Callable[[bytes], dict[str, Any]],
    refuse: Callable[[bytes, Exception], tuple[str, str]],
    schema_id: int | None,
) -> _Read:
    """Parse records one by one; the dicts that hold become columns, the others rejects."""
    fields = event_type(name).fields
    # Taken out at once, while the dict is in the cache: 2 us an event less than column by column.
    pick = itemgetter(*(f.name for f in fields))
    found: list[tuple[Any, ...]] = []
    good: list[int] = []
    rejects: list[Reject] = []
    for row, value in zip(rows.tolist(), values, strict=True):
        if not value:
            rejects.append(Reject(row, "empty", "expected a record, got no bytes", schema_id))
            continue
        try:
            found.append(pick(parse(value)))
            good.append(row)
        except Exception as error:  # whatever bytes make a foreign parser raise is a reject
            reason, detail = _why(value, error, refuse)
            rejects.append(Reject(row, reason, detail[:DETAIL_CHARS_MAX], schema_id))
    cells = zip(*found, strict=True) if found else [()] * len(fields)
    columns = [
        pl.Series(f.name, column, dtype=f.dtype) for f, column in zip(fields, cells, strict=True)
    ]
    return _Read(pl.DataFrame(columns), np.array(good, np.intp), rejects)


def _why(
    value: bytes, error: Exception, refuse: Callable[[bytes, Exception], tuple[str, str]]
) -> tuple[str, str]:
    """Reason and detail: of the field where it is a field's fault, else what `refuse` finds."""
    if not isinstance(error, ValidationError):
        return refuse(value, error)
    first = error.errors(include_url=False, include_context=False)[0]
    if not first["loc"]:
        return refuse(value, error)
    field = str(first["loc"][0])
    if first["type"] == "missing":
        return "missing_field", f"{field}: expected a value, it is absent"
    if first["input"] is None:
        return "missing_field", f"{field}: expected a value, got null"
    got = _shown(str(first["input"])[: SHOWN_CHARS_MAX + 1])
    reason = _WRONG.get(first["type"], "wrong_type")
    return reason, f"{field}: {first['msg']}, got {got}"
