"""Foreign column names to our fields: a small TOML table, shipped or one's own.

    event = "payment"                              # which event type the rows are

    [fields]                                       # field = where its value comes from
    amount = "total"                               # a column
    time_us = { column = "ts", unit = "s" }        # a number of s, ms, us, ns; or ISO 8601 text
    event_id = { template = "order-{order_no}" }   # columns put into a text
    currency = { constant = "EUR" }                # the same for all rows

    [truth]                                        # optional: labels; evaluation only
    column = "fraud"                               # 0 or false is genuine, else the code
    names = { 1 = "stolen_card" }                  # what the codes mean

Shipped ones lie in `dataflows/mappings`. What a table leaves out takes the default of its field.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from features.errors import ConfigError
from features.events import EventType, Field, event_type, event_types

__all__ = ["UNITS", "Column", "TableMapping", "load_mapping", "own_mapping"]

FOLDER = Path(__file__).resolve().parent.parent / "mappings"

COLUMNS_SHOWN_MAX = 40
"""Columns of a file that a fault lists; chosen: more are no help."""

NAME_SHOWN_MAX = 64
"""Characters of a column's name that a fault shows; chosen: longer ones are no names."""

UNITS = {"s": 1_000_000.0, "ms": 1_000.0, "us": 1.0, "ns": 0.001}
"""Unit of a time that is a number -> microseconds."""

_CONSTANTS: dict[str, tuple[type, ...]] = {
    "string": (str,), "enum": (str,), "float64": (float, int), "int64": (int,), "bool": (bool,),
    "time_us": (),
}  # fmt: skip
"""Types of TOML that a constant of each kind of field may have."""

_TRUE, _FALSE = ("true", "t", "yes", "y", "1", "1.0"), ("false", "f", "no", "n", "0", "0.0")
_PLACE = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class Column:
    """Where the value of a field comes from; exactly one of the first three is set.

    Parameters
    ----------
    column : a column of the file
    template : a text with columns in braces
    constant : the same value for every row
    unit : of a time that is a number
    """

    column: str | None = None
    template: str | None = None
    constant: Any = None
    unit: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Columns of the file that are read."""
        if self.column is not None:
            return (self.column,)
        return tuple(_PLACE.findall(self.template or ""))


@dataclass(frozen=True, slots=True)
class TableMapping:
    """How rows of a table become events.

    Parameters
    ----------
    event : name of the event type
    fields : field -> where its value comes from; fields left out take their default
    truth : column of labels, None where there is none
    truth_names : code -> what it means
    """

    event: str
    fields: Mapping[str, Column]
    truth: str | None = None
    truth_names: Mapping[int, str] = field(default_factory=dict)

    @property
    def time(self) -> Column:
        """Where the event time comes from."""
        return self.fields["time_us"]

    def missing(self, columns: Iterable[str], where: str) -> list[str]:
        """A fault for each column that is read and that the file does not have."""
        there = list(columns)
        wanted = {c: name for name, source in self.fields.items() for c in source.sources}
        if self.truth is not None:
            wanted[self.truth] = "truth"
        faults = []
        for column, name in wanted.items():
            if column not in there:
                near = difflib.get_close_matches(column, there, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                faults.append(f"{where}: no column {column!r}, from which {name} is read{hint}")
        if faults:
            more = len(there) - COLUMNS_SHOWN_MAX
            shown = [name[:NAME_SHOWN_MAX] for name in there[:COLUMNS_SHOWN_MAX]]
            shown += [f"and {more} more"] if more > 0 else []
            faults[-1] += f" (columns: {', '.join(shown)})"
        return faults

    def events(self, schema: Mapping[str, pl.DataType]) -> list[pl.Expr]:
        """An expression for each declared field over a frame of the file's columns.

        A value that cannot be read as its field's type becomes null.
        """
        return [self._one(f, schema).alias(f.name) for f in event_type(self.event).fields]

    def _one(self, declared: Field, schema: Mapping[str, pl.DataType]) -> pl.Expr:
        """The expression of one field."""
        source = self.fields.get(declared.name)
        if source is None:
            return pl.lit(declared.default, declared.dtype)
        if source.template is not None:
            parts = _PLACE.sub("{}", source.template)
            return pl.format(parts, *(pl.col(c).cast(pl.String) for c in source.sources))
        if source.column is None:
            return pl.lit(source.constant, declared.dtype)
        column = pl.col(source.column)
        if declared.kind == "time_us":
            value = time_us(column, schema[source.column], source.unit)
        else:
            value = _cast(column, schema[source.column], declared)
        if declared.default is not None:
            value = pl.when(column.is_null()).then(pl.lit(declared.default)).otherwise(value)
        return value


def _cast(column: pl.Expr, dtype: pl.DataType, declared: Field) -> pl.Expr:
    """A column as a field's type; null where it cannot be."""
    if declared.kind == "bool":
        if dtype == pl.Boolean:
            return column
        word = column.cast(pl.String, strict=False).str.to_lowercase().str.strip_chars()
        yes, no = word.is_in(list(_TRUE)), word.is_in(list(_FALSE))
        return pl.when(yes).then(True).when(no).then(False).otherwise(None)
    if dtype == pl.String and declared.kind in ("int64", "float64"):
        column = column.str.strip_chars()
    if dtype.is_nested() or (dtype == pl.Binary and declared.dtype == pl.String):
        return pl.lit(None, declared.dtype)
    return column.cast(declared.dtype, strict=False)


def time_us(column: pl.Expr, dtype: pl.DataType, unit: str | None) -> pl.Expr:
    """A column as int64 microseconds UTC; null where it is no time. Times without zone are UTC."""
    if dtype in (pl.Datetime, pl.Date):
        return column.cast(pl.Datetime("us")).dt.epoch("us")
    factor = UNITS[unit or "us"]
    if dtype.is_integer():
        whole = column.cast(pl.Int64, strict=False)
        return whole // 1000 if unit == "ns" else _times(whole, int(factor))
    if dtype.is_float():
        return (column.cast(pl.Float64) * factor).round().cast(pl.Int64, strict=False)
    if dtype != pl.String:
        return pl.lit(None, pl.Int64)
    text = column.str.strip_chars()
    number = text.cast(pl.Int64, strict=False)
    number = number // 1000 if unit == "ns" else _times(number, int(factor))
    fraction = (text.cast(pl.Float64, strict=False) * factor).round().cast(pl.Int64, strict=False)
    read = pl.coalesce(number, fraction)
    if unit is not None:
        return read
    # One form for all: a T between day and time, and a zone at the end.
    iso = text.str.replace(" ", "T", literal=True).str.replace(r"(?i)Z$", "+00:00")
    iso = iso.str.replace(r"^(\d{4}-\d\d-\d\d)$", "${1}T00:00")
    iso = pl.when(iso.str.contains(r"T.*[+-]\d\d:?\d\d$")).then(iso).otherwise(iso + "+00:00")
    parsed = [
        iso.str.to_datetime(form, time_unit="us", strict=False, time_zone="UTC")
        for form in ("%Y-%m-%dT%H:%M:%S%.f%:z", "%Y-%m-%dT%H:%M%:z")
    ]
    return pl.coalesce(read, *(moment.dt.epoch("us") for moment in parsed))


def _times(number: pl.Expr, factor: int) -> pl.Expr:
    """The product, null where 64 bits do not hold it."""
    most = (2**63 - 1) // factor
    return pl.when(number.is_between(-most, most)).then(number * factor)


def own_mapping(name: str, columns: Iterable[str]) -> TableMapping:
    """The mapping of a file that has our own column names; absent ones take their defaults."""
    there = set(columns)
    wanted = [
        f
        for f in event_type(name).fields
        if f.name in there or not (f.nullable or f.default is not None)
    ]
    return TableMapping(name, {f.name: Column(column=f.name) for f in wanted})


def load_mapping(name_or_path: str) -> TableMapping:
    """A shipped mapping by its name, or one's own by the path of its file.

    Raises
    ------
    ConfigError : no such mapping, or a table that does not hold together; all faults at once
    """
    shipped = sorted(path.stem for path in FOLDER.glob("*.toml"))
    path = FOLDER / f"{name_or_path}.toml" if name_or_path in shipped else Path(name_or_path)
    where = f"mapping {name_or_path!r}"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        near = difflib.get_close_matches(name_or_path, shipped, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        said = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(
            f"{where}: {hint}cannot be read as a file ({said}); shipped mappings are"
            f" {', '.join(shipped)}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}") from None
    return _parse(table, where)


def _parse(table: dict[str, Any], where: str) -> TableMapping:
    """The mapping a table describes."""
    faults = _unknown(table, ("event", "fields", "truth", "doc"), where)
    fields = _table(table, "fields", where, faults)
    truth, names = _labels(_table(table, "truth", where, faults), f"{where}, truth", faults)
    name = table.get("event")
    if not isinstance(name, str) or name not in event_types():
        known = ", ".join(event_types())
        raise ConfigError(
            [f"{where}: event = {name!r} is no event type; there are {known}", *faults]
        )
    event = event_type(name)
    columns = {}
    if fields is not None:
        faults += _unknown(fields, [f.name for f in event.fields], f"{where}, fields")
        for key, value in fields.items():
            if key in event.schema:
                column = _column(value, event.field(key), f"{where}, fields.{key}", faults)
                if column is not None:
                    columns[key] = column
        faults += _lacking(event, fields, where)
    if faults:
        raise ConfigError(faults)
    return TableMapping(event.name, columns, truth, names)


def _table(
    table: Mapping[str, Any], name: str, where: str, faults: list[str]
) -> dict[str, Any] | None:
    """A table inside a table, empty where it is left out; None and a fault where it is none."""
    value = table.get(name, {})
    if isinstance(value, dict):
        return value
    faults.append(f"{where}, {name}: expected a table, got {value!r}")
    return None


def _labels(
    truth: dict[str, Any] | None, where: str, faults: list[str]
) -> tuple[str | None, dict[int, str]]:
    """Column of the labels and what its codes mean; faults go to the list."""
    if truth is None:
        return None, {}
    faults += _unknown(truth, ("column", "names"), where)
    column = truth.get("column")
    if column is not None and not isinstance(column, str):
        faults.append(f"{where}.column: expected the name of a column, got {column!r}")
    names: dict[int, str] = {}
    for code, meaning in (_table(truth, "names", where, faults) or {}).items():
        if not re.fullmatch(r"[1-9]\d{0,3}", code):
            faults.append(f"{where}.names: code {code!r}: expected a number from 1 to 9999")
        elif not isinstance(meaning, str):
            faults.append(f"{where}.names.{code}: expected a text, got {meaning!r}")
        else:
            names[int(code)] = meaning
    return column, names


def _unknown(table: Any, valid: Iterable[str], where: str) -> list[str]:
    """A fault for each key that means nothing."""
    if not isinstance(table, dict):
        return [f"{where}: expected a table, got {table!r}"]
    names = list(valid)
    faults = []
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            faults.append(f"{where}: unknown name {key!r}{hint} (there are {', '.join(names)})")
    return faults


def _column(value: Any, declared: Field, where: str, faults: list[str]) -> Column | None:
    """Where a field comes from; faults go to the list."""
    if isinstance(value, str):
        return Column(column=value)
    unknown = _unknown(value, ("column", "template", "constant", "unit"), where)
    if unknown:
        faults += unknown
        return None
    given = [key for key in ("column", "template", "constant") if key in value]
    texts = [k for k in ("column", "template", "unit") if not isinstance(value.get(k, ""), str)]
    if texts:
        faults += [f"{where}.{key}: expected a text, got {value[key]!r}" for key in texts]
    elif len(given) != 1:
        faults.append(f"{where}: expected one of column, template, constant; got {given or 'none'}")
    elif declared.kind == "time_us" and given != ["column"]:
        faults.append(f"{where}: a time must come from a column")
    elif given == ["template"] and declared.kind not in ("string", "enum"):
        faults.append(f"{where}: a template gives text, {declared.name} is {declared.kind}")
    elif given == ["constant"] and type(value["constant"]) not in _CONSTANTS[declared.kind]:
        faults.append(f"{where}.constant: expected {declared.kind}, got {value['constant']!r}")
    elif value.get("unit") is not None and value["unit"] not in UNITS:
        faults.append(f"{where}: unit {value['unit']!r}: expected one of {', '.join(UNITS)}")
    else:
        return Column(**value)
    return None


def _lacking(event: EventType, fields: Mapping[str, Any], where: str) -> list[str]:
    """A fault for each field without default that the table leaves out."""
    return [
        f"{where}: field {f.name!r} of {event.name} is missing and has no default; give it a"
        " column, a template or a constant"
        for f in event.fields
        if f.name not in fields and not f.nullable and f.default is None
    ]
