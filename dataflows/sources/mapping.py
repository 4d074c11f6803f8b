r"""Foreign column names to our fields: a small TOML table, shipped or one's own.

    event = "payment"                              # which event type the rows are

    [fields]                                       # field = where its value comes from
    amount = "total"                               # a column
    time_us = { column = "ts", unit = "s" }        # a number of s, ms, us, ns; or ISO 8601 text
    event_id = { template = "order-{order_no}" }   # columns put into a text; or { row = "order-" }
    currency = { constant = "EUR" }                # the same for all rows
    channel = { column = "kind", names = { W = "online" } }   # words of ours for theirs
    level = { column = "text", patterns = { "fail|denied" = "warning" } }   # by what is found in it

    [wide]                                         # optional: each of these columns is a series,
    columns = ["Pressure", "Voltage"]              # and each of its cells an event

    [lines]                                        # optional: a file of raw lines, not of columns
    pattern = '(?P<when>\S+) (?P<message>.*)'     # named groups are its columns

    [truth]                                        # optional: labels; evaluation only
    column = "fraud"                               # 0 or false is genuine, else the code
    names = { 1 = "stolen_card" }                  # what the codes mean
    words = { ok = 0, chargeback = 1 }             # codes of words that are not `LABEL_WORDS`

Shipped ones lie in `dataflows/mappings`. What a table leaves out takes the default of its field.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from dataflows.sources.templates import TEMPLATES_MAX, Templates
from features.errors import ConfigError
from features.events import EventType, Field, event_type, event_types

__all__ = [
    "LABEL_CODE_MAX",
    "LABEL_WORDS",
    "ROW",
    "UNITS",
    "Column",
    "TableMapping",
    "Wide",
    "load_mapping",
    "masked",
    "own_mapping",
]

LABEL_WORDS = {
    "true": 1, "yes": 1, "y": 1, "t": 1, "fraud": 1, "fraudulent": 1, "anomaly": 1, "anomalous": 1,
    "abnormal": 1, "attack": 1, "outlier": 1, "false": 0, "no": 0, "n": 0, "f": 0, "genuine": 0,
    "legit": 0, "legitimate": 0, "normal": 0, "nominal": 0,
}  # fmt: skip
"""Words in small letters of a column of labels, and their codes; 0 is genuine. Chosen: those that
public tables have, and no word that means one thing here and another there."""

LABEL_CODE_MAX = 9999
"""Largest code of a label; chosen: nobody names more kinds of attacks, and a larger number is an
amount or an id."""

LABEL_WORDS_MAX = 1_000
"""Words that a mapping may explain; chosen: a column with more of them is none of labels."""

FOLDER = Path(__file__).resolve().parent.parent / "mappings"

COLUMNS_SHOWN_MAX = 40
"""Columns of a file that a fault lists; chosen: more are no help."""

NAME_SHOWN_MAX = 64
"""Characters of a column's name that a fault shows; chosen: longer ones are no names."""

UNITS = {"s": 1_000_000.0, "ms": 1_000.0, "us": 1.0, "ns": 0.001}
"""Unit of a time that is a number -> microseconds."""

ROW = "number of the row"
"""Column that a frame of a file's rows has besides its own: int64, from 0. No file has one of that
name but by intent."""

TEMPLATED_MAX = 16
"""Lists of templates kept ready to look up; chosen: a run reads few fields by templates."""

SERIES_MAX = 2_000
"""Most columns of a wide table; chosen: each of them is an entity, and a row so many events."""

SERIES_BYTES_MAX = 64
"""Longest name of such a column; chosen: with the row's own id it makes the event's."""

_KEYS = ("column", "template", "constant", "row", "unit", "format", "year", "step_s", "mask",
         "templates", "patterns", "names")  # fmt: skip
"""What may stand in the table of a field."""

_MASKS = (
    (r"\b[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5,}\b", "<*>"),
    (r"\b[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b", "<*>"),
    (r"\b[0-9a-fA-F]*:[0-9a-fA-F]*:[0-9a-fA-F:.]*", "<*>"),
    (r"\b0x[0-9a-fA-F]+\b", "<*>"),
    (r"-?\b\d+([.,:]\d+)*\b", "<*>"),
    (r"\b[0-9a-f]*\d[0-9a-f]*[a-f][0-9a-f]{6,}\b", "<*>"),
)
"""What varies in a message and is taken out of its template: hardware addresses, UUIDs, IPv6,
hexadecimal, numbers (dates, times and IPv4 among them), long digests. Chosen: what can be told
from a word without knowing the program."""

_CONSTANTS: dict[str, tuple[type, ...]] = {
    "string": (str,), "enum": (str,), "float64": (float, int), "int64": (int,), "bool": (bool,),
    "time_us": (),
}  # fmt: skip
"""Types of TOML that a constant of each kind of field may have."""

_TRUE, _FALSE = ("true", "t", "yes", "y", "1", "1.0"), ("false", "f", "no", "n", "0", "0.0")
_PLACE = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class Column:
    """Where the value of a field comes from; exactly one of the first four is set.

    Parameters
    ----------
    column : a column of the file
    template : a text with columns in braces
    constant : the same value for every row
    row : a text that the number of the row is put behind; of a time, that of the first row
    unit : of a time that is a number
    format, year : of a time that is text of another form than ISO 8601, as strptime has it; the
        year where the text has none
    step_s : from one row to the next, of a time made from the row
    mask : whether what varies in a text is taken out, so that a template is left
    templates : of a masked text, those that were mined; a text of none of them stays
    patterns : regular expression -> our word for a text it is found in, the first that is; a text
        with none of them takes the field's default
    names : their word -> ours; others stay
    """

    column: str | None = None
    template: str | None = None
    constant: Any = None
    row: str | None = None
    unit: str | None = None
    format: str | None = None
    year: int | None = None
    step_s: float = 1.0
    mask: bool = False
    templates: tuple[str, ...] = ()
    patterns: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[str, ...]:
        """Columns of the file that are read."""
        if self.column is not None:
            return (self.column,)
        return tuple(_PLACE.findall(self.template or ""))


@dataclass(frozen=True, slots=True)
class Wide:
    """Columns that are a series each: every cell with a number becomes an event.

    Parameters
    ----------
    columns : of the file, in the order in which their events stand
    name : field that takes the column's name
    value : field that takes the cell
    """

    columns: tuple[str, ...]
    name: str = "metric"
    value: str = "value"


@dataclass(frozen=True, slots=True)
class TableMapping:
    """How rows of a table become events.

    Parameters
    ----------
    event : name of the event type
    fields : field -> where its value comes from; fields left out take their default
    truth : column of labels, None where there is none
    truth_names : code -> what it means
    truth_words : word in small letters -> code, beside `LABEL_WORDS`
    wide : columns that are a series each; None where a row is one event
    pattern : named groups that a raw line is cut into; None where the file has columns
    """

    event: str
    fields: Mapping[str, Column]
    truth: str | None = None
    truth_names: Mapping[int, str] = field(default_factory=dict)
    truth_words: Mapping[str, int] = field(default_factory=dict)
    wide: Wide | None = None
    pattern: str | None = None

    @property
    def width(self) -> int:
        """Most events of one row."""
        return 1 if self.wide is None else len(self.wide.columns)

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
        if self.wide is not None:
            wanted |= dict.fromkeys(self.wide.columns, "a series")
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

        The frame has the column `ROW` besides. A value that cannot be read as its field's type
        becomes null, and so do the fields that the series of a wide table fill.
        """
        return [self._one(f, schema).alias(f.name) for f in event_type(self.event).fields]

    @property
    def columns(self) -> list[str]:
        """Columns of the file that are read, sorted."""
        found = {c for source in self.fields.values() for c in source.sources}
        found |= set(() if self.wide is None else self.wide.columns)
        return sorted(found | ({self.truth} if self.truth is not None else set()))

    def _one(self, declared: Field, schema: Mapping[str, pl.DataType]) -> pl.Expr:
        """The expression of one field."""
        if self.wide is not None and declared.name in (self.wide.name, self.wide.value):
            return pl.lit(None, declared.dtype)
        source = self.fields.get(declared.name)
        if source is None:
            return pl.lit(declared.default, declared.dtype)
        if source.row is not None:
            number = pl.col(ROW)
            if declared.kind == "time_us":
                return times_of_rows(number, source)
            return pl.format("{}{}", pl.lit(source.row), number)
        if source.template is not None:
            parts = _PLACE.sub("{}", source.template)
            return pl.format(parts, *(pl.col(c).cast(pl.String) for c in source.sources))
        if source.column is None:
            return pl.lit(source.constant, declared.dtype)
        column = pl.col(source.column)
        if declared.kind == "time_us":
            value = read_time(column, schema[source.column], source)
        else:
            value = _cast(_named(column, source), _named_type(schema, source), declared)
        if declared.default is not None and source.patterns:
            value = value.fill_null(pl.lit(declared.default))
        elif declared.default is not None:
            value = pl.when(column.is_null()).then(pl.lit(declared.default)).otherwise(value)
        return value


def _named(column: pl.Expr, source: Column) -> pl.Expr:
    """A column with our words for theirs, and without what varies where a template is asked for."""
    if source.names:
        column = column.cast(pl.String, strict=False).replace(dict(source.names))
    if source.patterns:
        text, column = column.cast(pl.String, strict=False), pl.lit(None, pl.String)
        for pattern, word in reversed(list(source.patterns.items())):
            column = pl.when(text.str.contains(pattern)).then(pl.lit(word)).otherwise(column)
    if source.mask:
        column = masked(column.cast(pl.String, strict=False))
    if source.templates:
        known = _templates(tuple(source.templates))
        column = column.map_batches(lambda texts: _looked_up(texts, known), pl.String)
    return column


def masked(column: pl.Expr) -> pl.Expr:
    """A text without what varies in it, with single spaces."""
    column = column.str.replace_all(r"\s+", " ")
    for pattern, word in _MASKS:
        column = column.str.replace_all(pattern, word)
    return column


@lru_cache(maxsize=TEMPLATED_MAX)
def _templates(texts: tuple[str, ...]) -> Templates:
    """Templates as they are looked up; a file is read in many parts."""
    return Templates(texts)


def _looked_up(texts: pl.Series, known: Templates) -> pl.Series:
    """Each text's template; a text is looked up once."""
    once = texts.drop_nulls().unique()
    found = pl.Series([known.of(text) for text in once], dtype=pl.String)
    return texts.replace_strict(once, found, default=None, return_dtype=pl.String)


def _named_type(schema: Mapping[str, pl.DataType], source: Column) -> pl.DataType:
    """The type of what `_named` gives."""
    texts = source.names or source.mask or source.patterns
    return pl.String() if texts else schema[str(source.column)]


def times_of_rows(number: pl.Expr, source: Column) -> pl.Expr:
    """Times of rows that stand at even steps, from their numbers."""
    start_us = round(datetime.fromisoformat(str(source.row)).timestamp() * 1e6)
    return start_us + (number * (source.step_s * 1e6)).round().cast(pl.Int64)


def read_time(column: pl.Expr, dtype: pl.DataType, source: Column) -> pl.Expr:
    """A column as int64 microseconds UTC in the unit or form its mapping says; null where not."""
    if source.format is None:
        return time_us(column, dtype, source.unit)
    if dtype != pl.String:
        return pl.lit(None, pl.Int64)
    text, form = column.str.strip_chars().str.replace_all(r"\s+", " "), source.format
    if source.year is not None:
        text, form = pl.format("{} {}", pl.lit(str(source.year)), text), f"%Y {form}"
    zone = "UTC" if "%z" in form or "%:z" in form else None
    moment = text.str.to_datetime(form, time_unit="us", strict=False, time_zone=zone)
    return moment.dt.epoch("us")


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
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
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
    return _parse(table, where, _places(text, where))


_Place = Callable[[str, str], str]
"""Table and key of a mapping -> where it stands: the file, with the line where it can be told."""


def _places(text: str, where: str) -> _Place:
    """Finds the lines of keys in a TOML text; of one that is written unusually only the file."""
    lines: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        head = re.match(r"\s*\[\s*([\w.]+)\s*\]", line)
        key = re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", line)
        if head:
            table = head[1]
            lines.setdefault(("", table), number)
        elif key:
            lines.setdefault((table, key[1]), number)

    def place(table: str, key: str) -> str:
        number = lines.get((table, key))
        return where if number is None else f"{where}, line {number}"

    return place


def _parse(table: dict[str, Any], where: str, at: _Place) -> TableMapping:
    """The mapping a table describes."""
    tables = ("event", "fields", "wide", "lines", "truth", "doc")
    faults = _unknown(table, tables, where, lambda key: at("", key))
    fields = _table(table, "fields", where, faults)
    truth, names, words = _labels(_table(table, "truth", where, faults), where, at, faults)
    pattern = _pattern(_table(table, "lines", where, faults), where, at, faults)
    name = table.get("event")
    if not isinstance(name, str) or name not in event_types():
        known = ", ".join(event_types())
        raise ConfigError(
            [f"{where}: event = {name!r} is no event type; there are {known}", *faults]
        )
    event = event_type(name)
    wide = _wide(_table(table, "wide", where, faults), event, where, at, faults)
    columns = {}
    if fields is not None:
        valid = [f.name for f in event.fields]
        faults += _unknown(
            fields, valid, f"{where}, fields", lambda key: f"{at('fields', key)}, fields"
        )
        for key, value in fields.items():
            if key in event.schema:
                said = f"{at('fields', key)}, fields.{key}"
                column = _column(value, event.field(key), said, faults)
                if column is not None:
                    columns[key] = column
                if wide is not None and key in (wide.name, wide.value):
                    faults.append(f"{said}: the columns of [wide] fill it; take it out")
        filled = () if wide is None else (wide.name, wide.value)
        faults += _lacking(event, (*fields, *filled), where)
    if faults:
        raise ConfigError(faults)
    return TableMapping(event.name, columns, truth, names, words, wide, pattern)


def _wide(
    table: dict[str, Any] | None, event: EventType, where: str, at: _Place, faults: list[str]
) -> Wide | None:
    """The series of a wide table, None where it is none; faults go to the list."""
    if not table:
        return None
    before = len(faults)
    said = f"{where}, wide"
    faults += _unknown(
        table, ("columns", "name", "value"), said, lambda k: f"{at('wide', k)}, wide"
    )
    columns = table.get("columns")
    if not isinstance(columns, list) or not columns or len(set(map(str, columns))) < len(columns):
        faults.append(f"{said}.columns: expected a list of different columns, got {columns!r}")
    else:
        faults += [
            f"{at('wide', 'columns')}, wide.columns: expected names of at most {SERIES_BYTES_MAX}"
            f" bytes, got {str(c)[:NAME_SHOWN_MAX]!r}; rename the column"
            for c in columns
            if not isinstance(c, str) or not 0 < len(c.encode()) <= SERIES_BYTES_MAX
        ]
        if len(columns) > SERIES_MAX:
            faults.append(f"{said}.columns: {len(columns)} columns, the most are {SERIES_MAX}")
    for key, default, kind in (("name", "metric", "string"), ("value", "value", "float64")):
        field_name = table.get(key, default)
        if field_name not in event.schema or event.field(field_name).kind != kind:
            fits = ", ".join(f.name for f in event.fields if f.kind == kind)
            faults.append(
                f"{at('wide', key)}, wide.{key}: {field_name!r} is no {kind} field of"
                f" {event.name} (there are {fits or 'none'})"
            )
    if len(faults) > before:
        return None
    return Wide(tuple(columns or ()), table.get("name", "metric"), table.get("value", "value"))


def _pattern(table: dict[str, Any] | None, where: str, at: _Place, faults: list[str]) -> str | None:
    """The pattern of raw lines, None where there is none; faults go to the list."""
    if not table:
        return None
    faults += _unknown(table, ("pattern",), f"{where}, lines", lambda k: f"{at('lines', k)}, lines")
    pattern = table.get("pattern")
    said = f"{at('lines', 'pattern')}, lines.pattern"
    try:
        groups = re.compile(pattern).groupindex if isinstance(pattern, str) else {}
    except re.error as error:
        faults.append(f"{said}: {pattern!r} is no regular expression: {error}")
        return None
    if not groups:
        faults.append(f"{said}: expected a regular expression with named groups, got {pattern!r}")
        return None
    return pattern


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
    truth: dict[str, Any] | None, place: str, at: _Place, faults: list[str]
) -> tuple[str | None, dict[int, str], dict[str, int]]:
    """Column of the labels, what its codes mean and codes of its words; faults go to the list."""
    if truth is None:
        return None, {}, {}
    where = f"{place}, truth"
    faults += _unknown(
        truth, ("column", "names", "words"), where, lambda k: f"{at('truth', k)}, truth"
    )
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
    words: dict[str, int] = {}
    listed = _table(truth, "words", where, faults) or {}
    if len(listed) > LABEL_WORDS_MAX:
        faults.append(f"{where}.words: {len(listed)} words, the most are {LABEL_WORDS_MAX}")
    for word, code in listed.items():
        if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code <= LABEL_CODE_MAX:
            faults.append(
                f"{where}.words.{word}: expected 0 (genuine) or a code up to {LABEL_CODE_MAX},"
                f" got {code!r}"
            )
        else:
            words[word.strip().lower()] = code
    return column, names, words


def _unknown(
    table: Any, valid: Iterable[str], where: str, at: Callable[[str], str] | None = None
) -> list[str]:
    """A fault for each key that means nothing; `at` says where a key stands."""
    if not isinstance(table, dict):
        return [f"{where}: expected a table, got {table!r}"]
    names = list(valid)
    faults = []
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            said = where if at is None else at(key)
            faults.append(f"{said}: unknown name {key!r}{hint} (there are {', '.join(names)})")
    return faults


def _column(value: Any, declared: Field, where: str, faults: list[str]) -> Column | None:
    """Where a field comes from; faults go to the list."""
    if isinstance(value, str):
        return Column(column=value)
    unknown = _unknown(value, _KEYS, where)
    if unknown:
        faults += unknown
        return None
    ways = ("column", "template", "constant", "row")
    given = [key for key in ways if key in value]
    texts = ("column", "template", "row", "unit", "format")
    wrong = [
        f"{where}.{key}: expected a text, got {value[key]!r}"
        for key in texts
        if not isinstance(value.get(key, ""), str)
    ]
    if not wrong and len(given) != 1:
        wrong.append(f"{where}: expected one of {', '.join(ways)}; got {given or 'none'}")
    elif not wrong:
        wrong = _misfits(value, given[0], declared, where)
    faults += wrong
    if wrong:
        return None
    return Column(**(value | {"templates": tuple(value.get("templates", ()))}))


def _misfits(value: Mapping[str, Any], way: str, declared: Field, where: str) -> list[str]:
    """What in the table of a field does not suit the field, or the way it is filled."""
    is_time, is_text = declared.kind == "time_us", declared.kind in ("string", "enum")
    if is_time and way not in ("column", "row"):
        return [f"{where}: a time must come from a column, or from the number of the row"]
    if way == "template" and not is_text:
        return [f"{where}: a template gives text, {declared.name} is {declared.kind}"]
    if way == "row" and not (is_time or declared.kind == "string"):
        return [f"{where}: the number of the row makes a text or a time, not {declared.kind}"]
    if way == "constant" and type(value["constant"]) not in _CONSTANTS[declared.kind]:
        return [f"{where}.constant: expected {declared.kind}, got {value['constant']!r}"]
    faults = []
    if value.get("unit") is not None and value["unit"] not in UNITS:
        faults.append(f"{where}: unit {value['unit']!r}: expected one of {', '.join(UNITS)}")
    if way == "row" and is_time and not _is_moment(value["row"]):
        faults.append(
            f"{where}.row: expected the time of the first row, such as 2026-03-02T00:00:00Z, got"
            f" {value['row']!r}"
        )
    step_s = value.get("step_s", 1.0)
    if isinstance(step_s, bool) or not isinstance(step_s, int | float) or not 0 < step_s <= 1e7:
        faults.append(f"{where}.step_s: expected seconds above 0, got {step_s!r}")
    year = value.get("year", 2000)
    if isinstance(year, bool) or not isinstance(year, int) or not 1970 <= year <= 2100:
        faults.append(f"{where}.year: expected a year from 1970 to 2100, got {year!r}")
    if not isinstance(value.get("mask", False), bool):
        faults.append(f"{where}.mask: expected true or false, got {value['mask']!r}")
    faults += _text_faults(value, declared, where)
    names = value.get("names", {})
    if not isinstance(names, dict) or any(not isinstance(word, str) for word in names.values()):
        faults.append(f"{where}.names: expected a table of words, got {names!r}")
    fits = {
        "unit": is_time and way == "column", "format": is_time and way == "column",
        "year": "format" in value, "step_s": is_time and way == "row",
        "mask": is_text and way == "column", "names": not is_time and way == "column",
        "templates": bool(value.get("mask")), "patterns": is_text and way == "column",
    }  # fmt: skip
    faults += [
        f"{where}: {key} means nothing here; take it out"
        for key, fit in fits.items()
        if key in value and not fit
    ]
    return faults


def _text_faults(value: Mapping[str, Any], declared: Field, where: str) -> list[str]:
    """What is wrong with the templates and patterns of a field."""
    faults = []
    texts = value.get("templates", [])
    if not isinstance(texts, list) or any(not isinstance(text, str) for text in texts):
        faults.append(f"{where}.templates: expected a list of texts, got {texts!r}")
    elif len(texts) > TEMPLATES_MAX:
        faults.append(f"{where}.templates: {len(texts)}, the most are {TEMPLATES_MAX}")
    patterns = value.get("patterns", {})
    if not isinstance(patterns, dict) or any(not isinstance(w, str) for w in patterns.values()):
        return [*faults, f"{where}.patterns: expected a table of words, got {patterns!r}"]
    for pattern, word in patterns.items():
        try:
            pl.Series([""]).str.contains(pattern)
        except pl.exceptions.ComputeError as error:
            said = str(error).splitlines()[0]
            faults.append(f"{where}.patterns: {pattern!r} is no regular expression: {said}")
        if declared.values and word not in declared.values:
            faults.append(
                f"{where}.patterns: {word!r} is no {declared.name} (there are"
                f" {', '.join(declared.values)})"
            )
    return faults


def _is_moment(text: str) -> bool:
    """Whether a text is an ISO 8601 time with its offset."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return False
    return moment.tzinfo is not None and 1970 <= moment.astimezone(UTC).year <= 2100


def _lacking(event: EventType, fields: Iterable[str], where: str) -> list[str]:
    """A fault for each field without default that the table leaves out."""
    given = set(fields)
    return [
        f"{where}: field {f.name!r} of {event.name} is missing and has no default; give it a"
        " column, a template or a constant"
        for f in event.fields
        if f.name not in given and not f.nullable and f.default is None
    ]
