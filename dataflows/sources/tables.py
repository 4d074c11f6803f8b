"""Files as rows: Parquet, CSV and JSONL read in stretches, each row with its number and raw form.

A row that is not even a row (a line of CSV with too many cells, a line that is not UTF-8) keeps its
number, so that it can be refused by name and moves no other row.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from features.batch import Int64
from features.errors import SourceError

__all__ = [
    "LineTable",
    "PatternTable",
    "Stretch",
    "Table",
    "columns_of_lines",
    "open_table",
]

CHUNK_ROWS = 65_536
"""Rows read at once; chosen: 10 MB of payments."""

CELL_BYTES_MAX = 16_000_000
"""Longest cell of CSV; chosen: a 1 MB string must be refused as an event, not stop the file."""

LINE_BYTES_MAX = 16_000_000
"""Longest line of JSONL kept; what is beyond is a line of its own, and no JSON. Chosen as above."""

HEADER_SHOWN_MAX = 40
"""Characters of a header that is none which are shown; chosen: enough to know the file by."""

_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
"""What stands in no name of a column: control characters, bytes that are not UTF-8."""

KEY_LINES = 1_000
"""Lines of JSONL looked at for the names a mapping speaks of; chosen: optional ones show up too."""


@dataclass(slots=True)
class Stretch:
    """Some rows of a file.

    Parameters
    ----------
    numbers : int64 (n,), row numbers in the file, from 0, header not counted
    frame : (n,) columns as the file has them; None where rows are lines
    lines : n lines of JSON as they stand in the file; None where rows are columns
    bad : row number -> reason, detail and raw bytes, of rows that could not be read as such
    """

    numbers: Int64
    frame: pl.DataFrame | None = None
    lines: list[bytes] | None = None
    bad: dict[int, tuple[str, str, bytes]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: Int64) -> Stretch:
        """The given rows."""
        return Stretch(
            self.numbers[rows],
            None if self.frame is None else self.frame[rows],
            None if self.lines is None else [self.lines[i] for i in rows.tolist()],
            self.bad,
        )

    def part(self, begin: int, end: int) -> Stretch:
        """Rows from `begin` to `end`; nothing but a list of lines is copied."""
        return Stretch(
            self.numbers[begin:end],
            None if self.frame is None else self.frame[begin:end],
            None if self.lines is None else self.lines[begin:end],
            self.bad,
        )

    def raw(self, row: int) -> bytes:
        """A row as it stands in the file, or as JSON where it stands in columns."""
        number = int(self.numbers[row])
        if number in self.bad:
            return self.bad[number][2]
        if self.lines is not None:
            return self.lines[row]
        if self.frame is None:
            return b""
        return json.dumps(self.frame.row(row, named=True), default=str).encode()


class Table(Protocol):
    """A file of rows."""

    columns: dict[str, pl.DataType]
    """Name -> type; empty where only the rows know (JSONL)."""

    def stretches(self, start: int = 0) -> Iterator[Stretch]:
        """Rows from number `start` on, in the order of the file."""
        ...

    def times(self, column: str) -> Iterator[pl.Series]:
        """One column of all rows, stretch by stretch: the first look at the file's order."""
        ...


def open_table(path: Path, pattern: str | None = None) -> Table:
    """A file as rows, by its suffix; as raw lines, whatever its suffix, where there is a pattern.

    Raises
    ------
    SourceError : missing, unreadable, or of no known kind
    """
    kinds: dict[str, type[ParquetTable | CsvTable | LineTable]] = {
        ".parquet": ParquetTable, ".pq": ParquetTable, ".csv": CsvTable, ".jsonl": LineTable,
        ".ndjson": LineTable,
    }  # fmt: skip
    kind = kinds.get(path.suffix.lower())
    if kind is None and pattern is None:
        raise SourceError(
            f"{path}: expected a name that ends in {', '.join(kinds)}; raw lines need a mapping"
            " with a pattern"
        )
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file (looked from {Path.cwd()})")
    try:
        return PatternTable(path, pattern) if kind is None or pattern else kind(path)
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read: {error.strerror or error}; is it a whole {path.suffix} file?"
        ) from error
    except (pa.ArrowException, pl.exceptions.PolarsError, csv.Error, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise SourceError(f"{path}: is no {path.suffix} file: {said}") from error


class ParquetTable:
    """Parquet, read row group by row group."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self.columns: dict[str, pl.DataType] = dict(pl.read_parquet_schema(path))
        self._ends = np.cumsum(np.array(groups, np.int64))

    def stretches(self, start: int = 0) -> Iterator[Stretch]:
        """Rows from `start` on; row groups before it are not read."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        at = int(self._ends[first - 1]) if first else 0
        for frame in self._frames(first, None):
            here = frame[max(0, start - at) :]
            begin = at + frame.height - here.height
            at += frame.height
            if here.height:
                yield Stretch(np.arange(begin, at), here)

    def times(self, column: str) -> Iterator[pl.Series]:
        """Only the one column is read."""
        for frame in self._frames(0, [column]):
            yield frame[column]

    def _frames(self, first_group: int, columns: list[str] | None) -> Iterator[pl.DataFrame]:
        """Frames of at most CHUNK_ROWS rows."""
        with pq.ParquetFile(self._path) as file:
            groups = list(range(first_group, file.num_row_groups))
            try:
                for batch in file.iter_batches(CHUNK_ROWS, groups, columns, use_threads=False):
                    yield pl.DataFrame(pl.from_arrow(batch))
            except (OSError, pa.ArrowException) as error:
                said = " ".join(str(error).split())[:200]
                raise SourceError(
                    f"{self._path}: a part of it cannot be read: {said}; write the file anew"
                ) from error


class CsvTable:
    """CSV with a header line, every cell as text: what is a number the event type decides."""

    def __init__(self, path: Path) -> None:
        self._path = path
        csv.field_size_limit(CELL_BYTES_MAX)
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            header = next(csv.reader(file), None)
        if not header:
            raise ValueError("expected a header line with the names of the columns")
        line = ",".join(header)
        if _NO_TEXT.search(line):
            raise ValueError(
                "expected a header line with the names of the columns in UTF-8, got"
                f" {_bytes(line[:HEADER_SHOWN_MAX])!a}"
            )
        self._header = [name.strip().lstrip("\ufeff") for name in header]
        if len(set(self._header)) < len(header):
            raise ValueError("two columns have the same name")
        self.columns: dict[str, pl.DataType] = dict.fromkeys(self._header, pl.String())

    def stretches(self, start: int = 0) -> Iterator[Stretch]:
        """Rows from `start` on; those before are read and thrown away."""
        width = len(self._header)
        rows: list[list[str | None]] = []
        bad: dict[int, tuple[str, str, bytes]] = {}
        number = -1
        for number, cells in enumerate(self._rows()):
            if number < start:
                continue
            if isinstance(cells, str):
                bad[number] = ("not_a_row", cells, b"")
                rows.append([None] * width)
            elif len(cells) != width:
                said = f"expected {width} cells as in the header, got {len(cells)}"
                bad[number] = ("not_a_row", said, _bytes(",".join(cells)))
                rows.append([None] * width)
            else:
                rows.append([cell or None for cell in cells])
            if len(rows) == CHUNK_ROWS:
                yield self._stretch(number + 1, rows, bad)
                rows, bad = [], {}
        if rows:
            yield self._stretch(number + 1, rows, bad)

    def times(self, column: str) -> Iterator[pl.Series]:
        """The column of every stretch."""
        for stretch in self.stretches():
            if stretch.frame is not None:
                yield stretch.frame[column]

    def _rows(self) -> Iterator[list[str] | str]:
        """Cells of each row, or what is wrong with it."""
        with self._path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            next(reader, None)
            while True:
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield str(error)
                    continue
                if cells:
                    yield cells

    def _stretch(
        self, end: int, rows: list[list[str | None]], bad: dict[int, tuple[str, str, bytes]]
    ) -> Stretch:
        """Rows that end before number `end` as columns."""
        begin = end - len(rows)
        try:
            frame = self._frame(rows)
        except UnicodeEncodeError:
            for i, row in enumerate(rows):
                text = ",".join(cell or "" for cell in row)
                try:
                    text.encode()
                except UnicodeEncodeError:
                    bad[begin + i] = ("not_utf8", "the row is not UTF-8", _bytes(text))
                    rows[i] = [None] * len(row)
            frame = self._frame(rows)
        return Stretch(np.arange(begin, end), frame, None, bad)

    def _frame(self, rows: list[list[str | None]]) -> pl.DataFrame:
        """Columns of text."""
        columns = zip(*rows, strict=True)
        return pl.DataFrame(
            [
                pl.Series(name, column, dtype=pl.String)
                for name, column in zip(self._header, columns, strict=True)
            ]
        )


def _bytes(text: str) -> bytes:
    """The bytes that were read as this text."""
    return text.encode("utf-8", "surrogateescape")


class LineTable:
    """JSONL: one JSON object a line; empty lines are no rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.columns: dict[str, pl.DataType] = {}  # only the rows know
        with path.open("rb"):
            pass

    def stretches(self, start: int = 0) -> Iterator[Stretch]:
        """Lines from `start` on; those before are read and thrown away."""
        at = 0
        for lines in self._lines():
            here = lines[max(0, start - at) :]
            begin = at + len(lines) - len(here)
            at += len(lines)
            if here:
                yield Stretch(np.arange(begin, at), None, here)

    def times(self, column: str) -> Iterator[pl.Series]:
        """The key's value of every line as text, found without parsing the line."""
        key = re.escape(json.dumps(column).encode())
        value = re.compile(rb"%s\s*:\s*(?:\"([^\"\\]*)\"|([-+.\w]+))" % key)
        for lines in self._lines():
            found = map(value.search, lines)
            yield pl.Series(
                column,
                [m and (m[1] or m[2] or b"").decode("utf-8", "replace") for m in found],
                dtype=pl.String,
            )

    def keys(self) -> list[str]:
        """Names that stand in the first lines, in the order they come."""
        first = next(self._lines(), [])[:KEY_LINES]
        found: dict[str, None] = {}
        for line in first:
            try:
                record = from_json(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                found |= dict.fromkeys(record)
        return list(found)

    def _lines(self) -> Iterator[list[bytes]]:
        """Lines that are not empty, CHUNK_ROWS at once."""
        lines: list[bytes] = []
        with self._path.open("rb") as file:
            while line := file.readline(LINE_BYTES_MAX):
                if line.strip():
                    lines.append(line.rstrip(b"\r\n"))
                if len(lines) == CHUNK_ROWS:
                    yield lines
                    lines = []
        if lines:
            yield lines


class PatternTable:
    """Raw lines, such as a log's, cut into columns of text by the named groups of a pattern.

    Empty lines are no rows; a line that the pattern does not fit keeps its number.
    """

    def __init__(self, path: Path, pattern: str | None) -> None:
        self._path = path
        self._pattern = re.compile(pattern or "(?P<line>.*)")
        self._header = list(self._pattern.groupindex)
        self.columns: dict[str, pl.DataType] = dict.fromkeys(self._header, pl.String())
        self._lines = LineTable(path)

    def stretches(self, start: int = 0) -> Iterator[Stretch]:
        """Lines from `start` on; those before are read and thrown away."""
        for stretch in self._lines.stretches(start):
            yield self._cut(stretch)

    def times(self, column: str) -> Iterator[pl.Series]:
        """The column of every stretch."""
        for stretch in self.stretches():
            if stretch.frame is not None:
                yield stretch.frame[column]

    def _cut(self, stretch: Stretch) -> Stretch:
        """Lines as columns."""
        rows: list[tuple[str | None, ...]] = []
        bad: dict[int, tuple[str, str, bytes]] = {}
        nothing = (None,) * len(self._header)
        for number, line in zip(stretch.numbers.tolist(), stretch.lines or [], strict=True):
            try:
                found = self._pattern.match(line.decode())
            except UnicodeDecodeError:
                bad[number] = ("not_utf8", "the line is not UTF-8", line)
                rows.append(nothing)
                continue
            if found is None:
                bad[number] = ("not_a_row", "the mapping's pattern does not fit the line", line)
            rows.append(nothing if found is None else tuple(found[name] for name in self._header))
        columns = zip(*rows, strict=True) if rows else [()] * len(self._header)
        named = zip(self._header, columns, strict=True)
        frame = pl.DataFrame([pl.Series(n, column, dtype=pl.String) for n, column in named])
        return Stretch(stretch.numbers, frame, None, bad)


def columns_of_lines(lines: list[bytes], wanted: list[str]) -> tuple[pl.DataFrame, dict[int, str]]:
    """Lines of JSON with foreign names as columns of text, as CSV gives them.

    Returns
    -------
    frame : (n,) the wanted keys; null where a line lacks one
    bad : row -> why its line is no JSON object
    """
    rows: list[list[str | None]] = []
    bad: dict[int, str] = {}
    for i, line in enumerate(lines):
        record: Any = None
        try:
            record = from_json(line)
        except ValueError as error:
            bad[i] = str(error)
        if not isinstance(record, dict):
            bad.setdefault(i, "expected a JSON object")
            record = {}
        rows.append([_text(record.get(name)) for name in wanted])
    columns = zip(*rows, strict=True) if rows else [()] * len(wanted)
    named = zip(wanted, columns, strict=True)
    return pl.DataFrame([pl.Series(n, column, dtype=pl.String) for n, column in named]), bad


def _text(value: Any) -> str | None:
    """A JSON value as the text a cell of CSV would have."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)
