"""The table of exchange rates: read, checked, and remembered as it was in force.

`currency_rates` grows by a row a currency a day while the flow runs. Each cut of the journal names
the version of the table it was made with, and `rates.csv` in the state folder holds what each
version brought: a round that is cut again after a crash, or a month later, has the rates it had.
"""

from __future__ import annotations

import csv
import fcntl
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from dataflows.alerts.base import printable
from dataflows.settings import Settings
from dataflows.state.journal import make_folder, replace_text
from features.codes import CODES
from features.currency import RATES_SCHEMA, Rates
from features.errors import ConfigError, StateError

__all__ = [
    "RateBook",
    "base_of",
    "priced_lines",
    "rate_faults",
    "rates_log",
    "rates_of",
    "read_rates",
    "write_rates",
]

ROWS_MAX = 1_000_000
"""Most rows of a table; chosen: all currencies there are over fifteen years."""

FAULTS_MAX = 50
"""Faults of a table that are told one by one; chosen: a file of another kind has one a row."""

LOOK_S = 5.0
"""The file is looked at this often by a running flow; chosen: it changes once a day, and a look
costs microseconds."""

CHANGES_SHOWN_MAX = 5
"""Changed rates named in a sentence; chosen: a sentence."""

TABLES_MAX = 4
"""Versions kept ready; a restart meets one or two. Chosen."""

_COLUMNS = tuple(RATES_SCHEMA)


def base_of(settings: Settings) -> str:
    """The currency all amounts are in; empty where nothing is converted."""
    return "" if settings.currency_rates is None else settings.currency_base


def rates_of(settings: Settings) -> Rates | None:
    """The table of the settings, None where there is none; for history, which is run in one go.

    Raises
    ------
    ConfigError : with all faults of the table
    """
    if settings.currency_rates is None:
        return None
    return read_rates(settings.currency_rates, settings.currency_base)


def rate_faults(settings: Settings) -> list[str]:
    """Everything wrong with the table of the settings."""
    try:
        rates_of(settings)
    except ConfigError as error:
        return list(error.faults)
    return []


def read_rates(path: Path, base: str) -> Rates:
    """A table of rates, CSV or Parquet with columns day, currency, rate.

    Parameters
    ----------
    path : one row a day and currency; rate is what one unit is worth in the base currency
    base : its code

    Raises
    ------
    ConfigError : with all faults, each with file and line (of Parquet the row)
    """
    faults: list[str] = []
    seen: dict[tuple[date, str], str] = {}
    rows: list[tuple[date, str, float]] = []
    for place, cells in _rows(path):
        found = _checked(cells, base)
        if isinstance(found, str):
            faults.append(f"{place}: {found}")
        elif found[:2] in seen:
            faults.append(
                f"{place}: {found[1]} on {found[0]} is said twice, first at {seen[found[:2]]};"
                " keep one"
            )
        else:
            seen[found[0], found[1]] = place
            rows.append(found)
    if not rows and not faults:
        faults.append(f"{path}: the table of rates has no rows; expected {', '.join(_COLUMNS)}")
    if faults:
        more = len(faults) - FAULTS_MAX
        raise ConfigError(
            [f"currency_rates: {fault}" for fault in faults[:FAULTS_MAX]]
            + ([f"currency_rates: {path}: and {more} more faults"] if more > 0 else [])
        )
    return Rates(base, pl.DataFrame(rows, schema=RATES_SCHEMA, orient="row"))


def priced_lines(unpriced: Mapping[str, int], old: Mapping[str, int]) -> list[str]:
    """Sentences on events that have no rate, or not one of their day; none where all have."""
    lines = []
    if unpriced:
        lines.append(
            f"{sum(unpriced.values()):,} events of a currency that currency_rates does not know"
            f" ({_counted(unpriced)}): scored without features of their amount; add its rates"
        )
    if old:
        lines.append(
            f"{sum(old.values()):,} events before the first or after the last day of their currency"
            f" in currency_rates ({_counted(old)}): that day's rate was taken; add the days"
        )
    return lines


def _counted(counts: Mapping[str, int]) -> str:
    """Currencies with their counts, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{printable(name)} {n:,}" for name, n in ordered)


def _checked(cells: list[str], base: str) -> tuple[date, str, float] | str:
    """A row as it is meant, or what is wrong with it."""
    if len(cells) != len(_COLUMNS):
        return f"expected {len(_COLUMNS)} cells ({', '.join(_COLUMNS)}), got {len(cells)}"
    wrong = []
    day, currency, rate = (cell.strip() for cell in cells)
    try:
        on = date.fromisoformat(day)
    except ValueError:
        wrong.append(f"day {day!r}: expected a date such as 2026-03-02")
    if currency not in CODES:
        wrong.append(f"currency {currency!r}: no code of ISO 4217, such as USD")
    try:
        worth = float(rate)
    except ValueError:
        worth = float("nan")
    if not 0.0 < worth < float("inf"):
        wrong.append(f"rate {rate!r}: expected a number above 0, the worth of one unit in {base}")
    elif currency == base and worth != 1.0:
        wrong.append(f"rate {rate!r} of {base}: the base currency is worth 1 of itself")
    return "; ".join(wrong) if wrong else (on, currency, worth)


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(file and line, cells as text) of each row.

    Raises
    ------
    ConfigError : the file cannot be read, has other columns or too many rows
    """
    if not path.is_file():
        raise ConfigError(
            f"currency_rates: file {str(path)!r} does not exist (looked in {Path.cwd()})"
        )
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"currency_rates: {path}: expected a name that ends in .csv or .parquet")
    for n, row in enumerate(_csv_rows(path) if path.suffix == ".csv" else _parquet_rows(path)):
        if n >= ROWS_MAX:
            raise ConfigError(
                f"currency_rates: {path}: more than {ROWS_MAX:,} rows; leave out days that no"
                " event is of"
            )
        yield row


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Rows of a CSV file by its header, in any order of columns; empty lines are none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [cell.strip() for cell in next(reader, [])]
            if missing := [name for name in _COLUMNS if name not in header]:
                raise ConfigError(_no_columns(f"{path}:1", missing, header))
            at = [header.index(name) for name in _COLUMNS]
            for cells in reader:
                if cells:
                    whole = len(cells) == len(header)
                    yield f"{path}:{reader.line_num}", [cells[i] for i in at] if whole else cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"currency_rates: {path}: cannot be read: {error}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Rows of a Parquet file."""
    try:
        frame = pl.read_parquet(path)
        if missing := [name for name in _COLUMNS if name not in frame.columns]:
            raise ConfigError(_no_columns(str(path), missing, frame.columns))
        if isinstance(frame.schema["day"], pl.Datetime):
            frame = frame.with_columns(pl.col("day").dt.date())
        frame = frame.select(pl.col(name).cast(pl.String) for name in _COLUMNS)
    except (OSError, pl.exceptions.PolarsError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"currency_rates: {path}: cannot be read: {first}") from None
    for row, cells in enumerate(frame.iter_rows()):
        yield f"{path}, row {row}", ["" if cell is None else cell for cell in cells]


def _no_columns(place: str, missing: list[str], there: list[str]) -> str:
    """The fault of a table without a column it needs."""
    return (
        f"currency_rates: {place}: has no column {', '.join(missing)}; expected"
        f" {', '.join(_COLUMNS)}, got {', '.join(there)}"
    )


def rates_log(state_dir: Path) -> Path:
    """Where the versions of the table lie."""
    return state_dir / "rates.csv"


def write_rates(state_dir: Path, rates: Rates | None) -> None:
    """Begin the versions of a state folder anew, with one table or with none."""
    log = rates_log(state_dir)
    log.unlink(missing_ok=True)
    if rates is not None:
        _append(log, rates.base, 1, rates.rows)


class RateBook:
    """The table by version: the one in force now, and those that older rounds were cut with.

    Where nothing is converted there is version 0 alone, and no table.

    A version is all that the versions before it said, with what the file said anew: a day that the
    file no longer has keeps its rate. Several threads, and processes, may share one state folder.

    Parameters
    ----------
    settings : `currency_rates`, `currency_base`, `state_dir`
    say : told what is new, and what is wrong with a file that has changed

    Raises
    ------
    ConfigError : the table does not hold
    StateError : the versions in the state folder are damaged, or of another base
    """

    def __init__(self, settings: Settings, say: Callable[[str], None] = lambda _: None) -> None:
        self._path, self._base = settings.currency_rates, settings.currency_base
        self._log, self._say = rates_log(settings.state_dir), say
        self._lock = threading.Lock()
        self._news: dict[int, pl.DataFrame] = {}
        self._tables: dict[int, Rates] = {}
        self._current = 0
        self._looked = time.monotonic()
        self._stat = self._stats()
        if self._path is not None:
            self._take(read_rates(self._path, self._base))

    def current(self) -> int:
        """The version in force from now on, on the disk already; 0 where there is no table."""
        if self._path is None or time.monotonic() - self._looked < LOOK_S:
            return self._current
        with self._lock:
            self._looked = time.monotonic()
            stat = self._stats()
            if stat == self._stat:
                return self._current
            self._stat = stat
            try:
                self._take(read_rates(self._path, self._base))
            except ConfigError as error:
                more = f" (and {len(error.faults) - 1} more)" if len(error.faults) > 1 else ""
                self._say(f"{error.faults[0]}{more}; the rates stay as they were")
        return self._current

    def of(self, version: int) -> Rates | None:
        """The table of a version, None of version 0.

        Raises
        ------
        StateError : the state folder does not know it
        """
        if version == 0:
            return None
        with self._lock:
            if version not in self._news:
                self._news = _load(self._log, self._base)
            if version not in self._news:
                raise StateError(
                    f"{self._log}: has no version {version} of the rates, which the journal names;"
                    " restore it from a copy, or start with an empty state_dir"
                )
            return self._table(version)

    def _table(self, version: int) -> Rates:
        """The table of a version that is known."""
        if version not in self._tables:
            while len(self._tables) >= TABLES_MAX:
                del self._tables[next(iter(self._tables))]
            rows = pl.DataFrame(schema=RATES_SCHEMA)
            for n in range(1, version + 1):
                rows = _union(rows, self._news[n])
            self._tables[version] = Rates(self._base, rows)
        return self._tables[version]

    def _stats(self) -> tuple[int, int, int] | None:
        """What changes when the file is written anew."""
        try:
            found = (self._path or Path()).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _take(self, table: Rates) -> None:
        """Make what is new in a table the next version; its own process may not be the only one."""
        make_folder(self._log.parent)
        path = self._log.with_suffix(".lock")
        try:
            file = path.open("a")
        except OSError as error:
            raise StateError(
                f"{path} could not be written: {error.strerror}; free space or mend the disk and"
                " start again"
            ) from error
        with file as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._news = _load(self._log, self._base)
            self._current = max(self._news, default=0)
            known = self._table(self._current).rows if self._current else table.rows.clear()
            new = table.rows.join(known, on=list(_COLUMNS), how="anti")
            if self._current and not new.height:
                return
            self._current += 1
            changed = new.join(known, on=["day", "currency"], suffix="_was")
            self._tell(self._current, changed)
            _append(self._log, self._base, self._current, new)
            self._news[self._current] = new

    def _tell(self, version: int, changed: pl.DataFrame) -> None:
        """Say which rates of the past are others now."""
        if not changed.height:
            return
        shown = ", ".join(
            f"{row['currency']} on {row['day']} {row['rate_was']:g} -> {row['rate']:g}"
            for row in changed.sort("day", "currency").head(CHANGES_SHOWN_MAX).to_dicts()
        )
        more = changed.height - CHANGES_SHOWN_MAX
        rest = f" and {more} more" if more > 0 else ""
        self._say(
            f"currency_rates: rates of days known before have changed: {shown}{rest}; rounds cut"
            f" before keep theirs, new ones have these (version {version} in {self._log})"
        )


def _union(known: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """All rates known, the newer where a day has two."""
    return pl.concat([known.join(new, on=["day", "currency"], how="anti"), new])


def _append(path: Path, base: str, version: int, new: pl.DataFrame) -> None:
    """Write the versions with one more, atomically and durably."""
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    body = old.rpartition("# crc32 ")[0] or f"# base {base}\nversion,day,currency,rate\n"
    body += "".join(f"{version},{day},{code},{rate!r}\n" for day, code, rate in new.iter_rows())
    try:
        replace_text(path, f"{body}# crc32 {zlib.crc32(body.encode()):08x}\n")
    except OSError as error:
        raise StateError(
            f"{path} could not be written: {error.strerror}; free space or mend the disk and start"
            " again"
        ) from error


def _load(path: Path, base: str) -> dict[int, pl.DataFrame]:
    """Version -> what it said anew, of all versions in a state folder.

    Raises
    ------
    StateError : the file is damaged, or of another base
    """
    if not path.is_file():
        return {}
    body, _, tail = path.read_text(encoding="utf-8", errors="replace").rpartition("# crc32 ")
    if tail.strip() != f"{zlib.crc32(body.encode()):08x}":
        raise StateError(
            f"{path}: damaged; restore it from a copy, or start with an empty state_dir"
        )
    first, _, *lines = body.splitlines()
    if first != f"# base {base}":
        raise StateError(
            f"{path}: holds rates to {first.removeprefix('# base ')}, currency_base is {base};"
            " set it back, or start with an empty state_dir"
        )
    rows: dict[int, list[Any]] = {}
    for line in lines:
        version, day, code, rate = line.split(",")
        rows.setdefault(int(version), []).append((date.fromisoformat(day), code, float(rate)))
    return {
        version: pl.DataFrame(said, schema=RATES_SCHEMA, orient="row")
        for version, said in rows.items()
    }
