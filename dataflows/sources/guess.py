"""A mapping proposed for a file nobody has described: by names, types and values of its columns.

A guess is only as good as it says: each line of the mapping carries how sure it is and why, and the
whole is tried on the file's first rows before it is shown.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from dataflows.sources.mapping import (
    LABEL_WORDS,
    ROW,
    SERIES_BYTES_MAX,
    SERIES_MAX,
    UNITS,
    Column,
    masked,
    read_time,
    time_us,
)
from dataflows.sources.tables import LineTable, PatternTable, columns_of_lines, open_table
from dataflows.sources.templates import mine
from features.errors import ConfigError, SourceError

__all__ = ["Guess", "Line", "guess_mapping"]

SAMPLE_ROWS = 20_000
"""Rows that are looked at. Chosen: rare values of a column of words show, and it takes a second."""

TRIED_ROWS = 2_000
"""Rows that the proposed mapping is tried on. Chosen."""

SURE, LIKELY, GUESS = "sure", "likely", "a guess"
"""How much a line is worth: name and values agree; one of them does; something had to stand
there."""

READ_MIN = 0.99
"""Share of a column's values that must be readable as what it is taken for. Chosen."""

LINES_MIN = 0.9
"""Share of raw lines that a pattern must fit. Chosen: a trace of a program has lines of its own."""

WORDS_SHARE_MAX = 0.1
"""Most different values, as a share of the rows, that a column that names entities has. Chosen:
ten rows an entity, or there is nothing to know it by."""

_YEARS_US = (946_684_800_000_000, 4_102_444_800_000_000)
"""2000 and 2100: the times a column of numbers may hold."""

_TIMES = ("time_us", "event_time", "timestamp", "datetime", "date_time", "time", "ts", "when",
          "created_at", "date", "epoch", "step_time")  # fmt: skip
_FORMATS = ("%Y/%m/%d %H:%M:%S", "%d.%m.%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S",
            "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M", "%d/%b/%Y:%H:%M:%S %z", "%d-%b-%Y %H:%M:%S",
            "%Y%m%d%H%M%S")  # fmt: skip
_LABELS = ("scenario", "attack", "anomaly", "is_anomaly", "label", "is_fraud", "isfraud", "fraud",
           "class", "target", "outlier", "is_outlier", "changepoint", "ground_truth")  # fmt: skip
_HOSTS = ("host", "hostname", "machine", "server", "node", "pod", "device", "unit", "engine",
          "instance", "station", "file", "source", "asset", "location", "site")  # fmt: skip
_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "payment": {
        "event_id": ("event_id", "transaction_id", "payment_id", "order_id", "tx_id", "trans_num",
                     "id"),
        "card_id": ("card_id", "card", "cc_num", "card_number", "pan", "account_id", "account",
                    "customer_id", "customer", "nameorig", "client_id", "payer"),
        "user_id": ("user_id", "user", "customer_id", "customer", "client_id", "holder",
                    "account_id", "account", "nameorig", "payer"),
        "merchant_id": ("merchant_id", "merchant", "terminal_id", "terminal", "shop", "store",
                        "seller", "payee", "namedest", "recipient", "beneficiary"),
        "device_id": ("device_id", "device", "terminal_id", "terminal"),
        "ip": ("ip", "ip_address", "client_ip"),
        "amount": ("amount", "amt", "transaction_amount", "tx_amount", "total", "price", "sum"),
        "currency": ("currency", "ccy"),
        "category": ("category", "mcc", "merchant_category"),
        "country": ("country", "country_code"),
        "latitude": ("latitude", "lat"),
        "longitude": ("longitude", "lon", "long", "lng"),
        "declined": ("declined", "is_declined", "rejected"),
    },
    "login": {
        "event_id": ("event_id", "login_id", "attempt_id", "session_id", "id"),
        "user_id": ("user_id", "user", "username", "account", "login", "email"),
        "device_id": ("device_id", "device", "user_agent"),
        "ip": ("ip", "ip_address", "client_ip", "source_ip", "src_ip", "remote_addr"),
        "country": ("country", "country_code"),
        "latitude": ("latitude", "lat"),
        "longitude": ("longitude", "lon", "long", "lng"),
        "success": ("success", "login_successful", "successful", "succeeded", "ok", "is_success"),
    },
    "metric": {
        "event_id": ("event_id", "sample_id", "id"),
        "metric": ("metric", "metric_name", "sensor", "sensor_id", "series", "variable", "tag",
                   "signal", "channel", "name", "kpi", "kpi_id"),
        "value": ("value", "reading", "measurement", "val", "sample"),
    },
    "app_log": {
        "event_id": ("event_id", "log_id", "id"),
        "service": ("service", "app", "application", "program", "process", "logger", "component"),
        "host": ("host", "hostname", "server", "node", "pod"),
        "template": ("template", "message", "msg", "text", "log", "content", "body"),
        "duration_ms": ("duration_ms", "elapsed_ms", "took_ms", "latency_ms"),
        "status": ("status", "status_code", "http_status"),
    },
}  # fmt: skip
"""Event type -> field -> names that columns for it commonly have, the likeliest first."""

_PATTERNS: tuple[tuple[str, str, str], ...] = (
    (
        "syslog",
        r"(?P<when>[A-Z][a-z]{2} +\d+ \d\d:\d\d:\d\d) (?P<host>\S+)"
        r" (?P<service>[^\s\[:]+)(\[\d+\])?: ?(?P<message>.*)",
        "%b %d %H:%M:%S",
    ),
    (
        "access log",
        r'(?P<host>\S+) \S+ \S+ \[(?P<when>[^\]]+)\] "(?P<message>[^"]*)" (?P<status>\d{3}) .*',
        "%d/%b/%Y:%H:%M:%S %z",
    ),
    (
        "log with ISO times",
        r"(?P<when>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?)"
        r"[ ,]+(?P<message>.*)",
        "",
    ),
)
"""Name, pattern and form of the time of raw lines that are known. Chosen: the commonest."""


@dataclass(frozen=True, slots=True)
class Line:
    """One field of a proposed mapping.

    Parameters
    ----------
    field : of the event type; `truth` for labels, `wide` for the columns that are series
    source : what stands behind it, as TOML
    sure : one of SURE, LIKELY, GUESS
    why : in a few words
    """

    field: str
    source: str
    sure: str
    why: str


@dataclass(slots=True)
class Guess:
    """A proposed mapping.

    Parameters
    ----------
    event_type : what the rows seem to be
    sure, why : of that
    lines : its fields
    columns : name of each column -> what is in it, in words
    unused : columns that nothing is made of
    pattern : of raw lines, None where the file has columns
    events, refused : what became of the first rows; -1 before they were tried
    notes : what a person should know
    """

    event_type: str
    sure: str
    why: str
    lines: list[Line]
    columns: dict[str, str]
    unused: list[str]
    pattern: str | None = None
    events: int = -1
    refused: int = -1
    notes: list[str] = field(default_factory=list)

    def toml(self) -> str:
        """The mapping as TOML, with how sure each line is."""
        fields = [line for line in self.lines if line.field not in ("wide", "truth")]
        text = ["# Proposed by `waxwing mapping guess`; look through it before you trust it."]
        text += [f"# {_said(note)}" for note in self.notes]
        if self.events >= 0:
            text.append(
                f"# Tried on the first rows: {self.events:,} events, {self.refused:,} refused."
            )
        told = (_said(f"{name}: {what}") for name, what in self.columns.items())
        text += ["#", *(f"# {one}" for one in told), ""]
        text.append(f"event = {_quoted(self.event_type)}  # {self.sure}: {_said(self.why)}")
        if self.pattern is not None:
            text += ["", "[lines]", f"pattern = '''{self.pattern}'''"]
        text += ["", "[fields]"]
        text += [f"{one.field} = {one.source}  # {one.sure}: {_said(one.why)}" for one in fields]
        for name, key in (("wide", "columns"), ("truth", "column")):
            for line in self.lines:
                if line.field == name:
                    text += ["", f"[{name}]  # {line.sure}: {_said(line.why)}"]
                    text.append(f"{key} = {line.source}")
        if self.unused:
            text += ["", f"# Not used: {_said(', '.join(self.unused))}"]
        return "\n".join(text) + "\n"


@dataclass(slots=True)
class _Seen:
    """What is known of one column from a sample of its values.

    Parameters
    ----------
    name, plain : as in the file, and in small letters with underscores
    values : as the file has them, nulls included
    numbers : as float64, null where a value is none
    """

    name: str
    plain: str
    values: pl.Series
    numbers: pl.Series
    distinct: int
    filled: int

    @property
    def is_number(self) -> bool:
        """Whether nearly all values are numbers."""
        there = len(self.numbers) - self.numbers.null_count()
        return self.filled > 0 and there >= READ_MIN * self.filled

    @property
    def is_whole(self) -> bool:
        """Whether they are whole numbers."""
        known = self.numbers.drop_nulls()
        return self.is_number and bool((known == known.round()).all())

    def told(self, rows: int) -> str:
        """In words."""
        empty = rows - self.filled
        kind = str(self.values.dtype).split("(")[0].lower()
        if self.values.dtype == pl.String and self.is_number:
            kind = "numbers as text"
        words = [kind, f"{self.distinct:,} different"]
        known = self.numbers.drop_nulls()
        if self.is_number and len(known):
            words.append("{:.6g} to {:.6g}".format(*np.quantile(known.to_numpy(), (0.0, 1.0))))
        elif self.filled:
            words.append("such as " + " ".join(f"{self.values.drop_nulls()[0]}".split())[:40])
        if empty:
            words.append(f"{empty:,} empty")
        return ", ".join(words)


def guess_mapping(path: Path) -> Guess:
    """Propose a mapping for a file, and try it on the first rows.

    Raises
    ------
    ConfigError : the file cannot be read, has no rows, or holds nothing that is an event
    """
    frame, pattern, form = _sample(path)
    if not frame.height:
        raise ConfigError(f"{path}: has no rows to guess from")
    seen = [_look(frame[name]) for name in frame.columns]
    stem = re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-")[:24] or "row"
    year = datetime.fromtimestamp(path.stat().st_mtime, UTC).year
    found = _Finder(seen, frame.height, stem, form, year).guess(pattern)
    _try(found, path)
    return found


def _sample(path: Path) -> tuple[pl.DataFrame, str | None, str]:
    """First rows of a file as columns; pattern and form of the time of raw lines."""
    try:
        if path.suffix.lower() in (".parquet", ".pq", ".csv", ".jsonl", ".ndjson"):
            table = open_table(path)
            stretch = next(table.stretches(), None)
            if stretch is None:
                return pl.DataFrame(), None, ""
            if isinstance(table, LineTable):
                some = (stretch.lines or [])[:SAMPLE_ROWS]
                return columns_of_lines(some, table.keys())[0], None, ""
            frame = pl.DataFrame() if stretch.frame is None else stretch.frame
            return frame.head(SAMPLE_ROWS), None, ""
        lines = next(iter(open_table(path, "(?P<line>.*)").stretches()), None)
    except SourceError as error:
        raise ConfigError(str(error)) from None
    if lines is None or lines.frame is None:
        return pl.DataFrame(), None, ""
    text = lines.frame["line"].head(1_000)
    for _, pattern, form in _PATTERNS:
        if int(text.str.contains(f"^(?:{pattern})$").sum()) >= LINES_MIN * len(text):
            stretch = next(PatternTable(path, pattern).stretches())
            if stretch.frame is not None:
                return stretch.frame.head(SAMPLE_ROWS), pattern, form
    raise ConfigError(
        f"{path}: its lines are of no form that is known (syslog, access log, lines that begin with"
        " an ISO time); write a mapping with a [lines] pattern"
    )


def _look(values: pl.Series) -> _Seen:
    """What is in a column."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", values.name)
    plain = re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")
    if values.dtype == pl.String:
        values = values.str.strip_chars().replace("", None)
    elif values.dtype == pl.Categorical or values.dtype == pl.Enum:
        values = values.cast(pl.String)
    if values.dtype.is_nested() or values.dtype.is_temporal() or values.dtype == pl.Binary:
        numbers = pl.Series(values.name, [None] * len(values), dtype=pl.Float64)
        distinct = 0 if values.dtype.is_nested() else values.n_unique()
    else:
        numbers = values.cast(pl.Float64, strict=False).fill_nan(None)
        distinct = values.drop_nulls().n_unique()
    return _Seen(values.name, plain, values, numbers, distinct, len(values) - values.null_count())


class _Finder:
    """Finds for each field the column that fills it; a column is used once, but for ids."""

    def __init__(self, seen: Sequence[_Seen], rows: int, stem: str, form: str, year: int) -> None:
        self._seen, self._rows, self._stem = seen, rows, stem
        self._form, self._year = form, year
        self._lines: list[Line] = []
        self._used: set[str] = set()
        self._notes: list[str] = []

    def guess(self, pattern: str | None) -> Guess:
        """Everything, in the order in which one finding helps the next."""
        self._find_time()
        self._find_labels()
        event, sure, why = self._kind(pattern)
        getattr(self, f"_find_{event}")()
        self._find_id(event)
        order = ["event_id", "time_us"]
        lines = sorted(self._lines, key=lambda o: order.index(o.field) if o.field in order else 9)
        columns = {s.name: s.told(self._rows) for s in self._seen}
        unused = [s.name for s in self._seen if s.name not in self._used]
        return Guess(event, sure, why, lines, columns, unused, pattern, notes=self._notes)

    def _put(self, name: str, seen: _Seen, sure: str, why: str, source: str | None = None) -> None:
        """A field is filled by a column."""
        self._used.add(seen.name)
        self._lines.append(Line(name, source or _quoted(seen.name), sure, why))

    def _make(self, name: str, source: str, why: str, sure: str = GUESS) -> None:
        """A field is filled by what no column has."""
        self._lines.append(Line(name, source, sure, why))

    def _named(self, names: Sequence[str], again: bool = False) -> Iterator[tuple[_Seen, bool]]:
        """Columns that have one of the names, the likeliest first; whether it is the whole name."""
        free = [s for s in self._seen if again or s.name not in self._used]
        for name in names:
            yield from ((s, True) for s in free if s.plain == name)
        for name in names:
            if len(name) > 2:
                parts = [s for s in free if name in s.plain.split("_") and s.plain != name]
                yield from ((s, False) for s in parts)

    def _find_time(self) -> None:
        """The column of event times, or the number of the row."""
        best: tuple[float, _Seen, str, str] | None = None
        named = [s for s, _ in self._named(_TIMES)]
        for seen in self._seen:
            read = self._as_time(seen)
            if read is None:
                continue
            worth = (2.0 if seen in named else 0.0) + (seen.distinct / self._rows)
            worth += 1.0 if seen.values.dtype.is_temporal() else 0.0
            if seen.is_number and seen not in named:
                continue  # a number that could be a time but is not called one is a number
            if best is None or worth > best[0]:
                best = (worth, seen, *read)
        if best is None:
            self._make(
                "time_us", '{ row = "2026-01-01T00:00:00Z", step_s = 60 }',
                "no column holds times; rows are taken to be a minute apart",
            )  # fmt: skip
            return
        _, seen, source, what = best
        sure = SURE if seen in named else LIKELY
        self._put("time_us", seen, sure, what, source)
        self._note_zones(seen)

    def _as_time(self, seen: _Seen) -> tuple[str, str] | None:
        """How a column is read as times: TOML, and in words; None where it holds none."""
        values, dtype = seen.values, seen.values.dtype
        name = _quoted(seen.name)

        def fits(read: pl.Series) -> bool:
            known = read.drop_nulls()
            if seen.filled == 0 or len(known) < READ_MIN * seen.filled:
                return False
            return _YEARS_US[0] <= float(np.median(known.to_numpy())) <= _YEARS_US[1]

        def as_read(expression: pl.Expr) -> pl.Series:
            return values.to_frame("v").select(expression.alias("v"))["v"]

        if dtype in (pl.Datetime, pl.Date):
            return name, "a column of times"
        if seen.is_number:
            for unit in UNITS:
                numbers = values if dtype.is_numeric() else values.cast(pl.String)
                read = numbers.to_frame("v").select(time_us(pl.col("v"), numbers.dtype, unit))
                if fits(read.to_series()):
                    return f'{{ column = {name}, unit = "{unit}" }}', f"numbers of {unit}"
            return None
        if dtype != pl.String:
            return None
        if fits(as_read(time_us(pl.col("v"), dtype, None))):
            return name, "ISO 8601"
        for form in dict.fromkeys([self._form, *_FORMATS]):
            if not form:
                continue
            year = None if "%Y" in form else self._year
            source = Column(seen.name, format=form, year=year)
            if fits(as_read(read_time(pl.col("v"), dtype, source))):
                said = f", year = {year}" if year else ""
                if year:
                    self._notes.append(
                        f"The times say no year; the file was last written in {year}: put it right."
                    )
                return f"{{ column = {name}, format = {_quoted(form)}{said} }}", f"as {form}"
        return None

    def _note_zones(self, seen: _Seen) -> None:
        """Say so where some times have a zone and others none."""
        if seen.values.dtype != pl.String or seen.is_number:
            return
        zoned = seen.values.drop_nulls().str.contains(r"(?:[Zz]|[+-]\d\d:?\d\d)$")
        if 0 < zoned.sum() < len(zoned):
            self._notes.append(
                f"{seen.name}: {zoned.sum():,} of {len(zoned):,} times name a zone; the others are"
                " read as UTC."
            )

    def _find_labels(self) -> None:
        """The column of labels, and those that say the same and are no series."""
        found = []
        for seen, whole in self._named(_LABELS):
            known = seen.numbers.drop_nulls()
            texts = seen.values.dtype == pl.String and not seen.is_number
            said = seen.values.drop_nulls().str.to_lowercase() if texts else pl.Series()
            words = seen.values.dtype == pl.Boolean or (
                len(said) > 0 and bool(said.is_in(list(LABEL_WORDS)).all())
            )
            if whole and texts and not words and seen.distinct == 2:
                one, other = sorted(seen.values.drop_nulls().unique())
                self._notes.append(
                    f"{seen.name}: labels, by its name? Not taken, since {one!r} and {other!r} do"
                    " not say which is genuine: write 0 for genuine and 1 for the other."
                )
            if seen not in found and (words or (seen.is_whole and _all_codes(known))):
                found.append(seen)
        if found:
            self._put("truth", found[0], SURE, "by its name and its few codes")
            self._used |= {seen.name for seen in found}
            if len(found) > 1:
                names = ", ".join(seen.name for seen in found[1:])
                self._notes.append(f"Taken for labels too, and left out: {names}.")

    def _kind(self, pattern: str | None) -> tuple[str, str, str]:
        """What the rows are."""
        if pattern is not None:
            return "app_log", SURE, "raw lines of a log"
        amount = self._first(_NAMES["payment"]["amount"], number=True)
        payer = self._first((*_NAMES["payment"]["card_id"], *_NAMES["payment"]["user_id"]))
        if amount is not None and payer is not None:
            return "payment", SURE, f"{amount.name} of {payer.name}"
        login = _NAMES["login"]
        if self._first(login["user_id"]) and self._first(login["success"]):
            return "login", SURE, "who tried, and whether it went well"
        text = self._first(_NAMES["app_log"]["template"], number=False)
        numbers = [s for s in self._seen if s.name not in self._used and s.is_number]
        if text is not None and text.values.dtype == pl.String and not self._first(("value",)):
            return "app_log", LIKELY, f"messages in {text.name}"
        if not numbers:
            raise ConfigError(
                "nothing here is an event: no amount with a payer, no log-in, no message and no"
                " column of numbers; columns are " + ", ".join(s.name for s in self._seen)
            )
        return "metric", SURE if len(numbers) > 2 else LIKELY, "columns of numbers over time"

    def _first(self, names: Sequence[str], number: bool | None = None) -> _Seen | None:
        """The likeliest filled column of these names, of numbers or of none if that is asked."""
        for seen, _ in self._named(names):
            if seen.filled and (number is None or seen.is_number == number):
                return seen
        return None

    def _find_payment(self) -> None:
        """The fields of payments."""
        names = _NAMES["payment"]
        numbers = ("amount", "latitude", "longitude")
        for name in ("amount", "latitude", "longitude", "merchant_id", "ip"):
            self._fill(name, names[name], number=True if name in numbers else None)
        self._fill("card_id", names["card_id"])
        self._fill("user_id", names["user_id"], again=True)
        self._fill("device_id", names["device_id"])
        self._fill("category", names["category"])
        for name, longest in (("currency", 3), ("country", 2)):
            seen = self._first(names[name], number=False)
            if seen is not None and _longest(seen) <= longest:
                self._put(name, seen, SURE, "by its name and its short codes")
        self._fill("declined", names["declined"])
        there = {line.field for line in self._lines}
        for name, other in (("card_id", "user_id"), ("user_id", "card_id")):
            if name not in there:
                source = next(line.source for line in self._lines if line.field == other)
                self._make(name, source, f"no column of its own; as {other}")
        if "merchant_id" not in there:
            self._make("merchant_id", '{ constant = "unknown" }', "no column says who is paid")

    def _find_login(self) -> None:
        """The fields of log-ins."""
        for name, names in _NAMES["login"].items():
            if name != "event_id":
                self._fill(name, names)
        if not any(line.field == "ip" for line in self._lines):
            self._make("ip", '{ constant = "unknown" }', "no column says from where")

    def _find_app_log(self) -> None:
        """The fields of log lines."""
        names = _NAMES["app_log"]
        for name in ("service", "host"):
            if not self._fill(name, names[name]):
                self._make(name, f"{{ constant = {_quoted(self._stem)} }}", "the file's name")
        for name in ("duration_ms", "status"):
            self._fill(name, names[name], number=True)
        seen = self._first(names["template"], number=False)
        if seen is not None:
            texts = seen.values.drop_nulls().cast(pl.String)
            found = mine(pl.select(masked(pl.lit(texts))).to_series())
            listed = "".join(f"\n  {_quoted(text)}," for text in found)
            more = f", templates = [{listed}\n]" if found else ""
            source = f"{{ column = {_quoted(seen.name)}, mask = true{more} }}"
            why = f"the message without what varies in it; {len(found)} templates mined"
            self._put("template", seen, SURE, why, source)

    def _find_metric(self) -> None:
        """The fields of metrics: a long table where a column names the series, else a wide one."""
        names = _NAMES["metric"]
        kinds = self._first(names["metric"])
        value = self._first(names["value"], number=True)
        if value is not None:
            self._put("value", value, SURE, "by its name; numbers")
            if kinds is not None and kinds.distinct <= WORDS_SHARE_MAX * self._rows:
                self._put("metric", kinds, SURE, f"names {kinds.distinct:,} series")
            else:
                self._make("metric", '{ constant = "value" }', "one series", LIKELY)
        self._find_host()
        if value is not None:
            return
        numbers = [
            s for s in self._seen
            if s.name not in self._used and s.is_number and not self._is_number_of_row(s)
            and 0 < len(s.name.encode()) <= SERIES_BYTES_MAX
        ][:SERIES_MAX]  # fmt: skip
        if not numbers:
            raise ConfigError("no column of numbers is left to be a series")
        listed = ",\n  ".join(_quoted(s.name) for s in numbers)
        self._used |= {s.name for s in numbers}
        what = "columns of numbers" if len(numbers) > 1 else "the column of numbers"
        self._lines.append(Line("wide", f"[\n  {listed},\n]", SURE, f"{len(numbers)} {what}"))

    def _find_host(self) -> None:
        """What the series belong to: a column of few words or ids, else the file."""
        most = max(1, int(WORDS_SHARE_MAX * self._rows))
        for seen, whole in self._named(_HOSTS):
            if seen.distinct <= most and (not seen.is_number or seen.is_whole):
                sure = SURE if whole else LIKELY
                self._put("host", seen, sure, f"by its name; {seen.distinct:,} of them")
                return
        words = [
            s for s in self._seen
            if s.name not in self._used and s.values.dtype == pl.String and not s.is_number
            and 0 < s.distinct <= most
        ]  # fmt: skip
        if words:
            seen = min(words, key=lambda s: s.distinct)
            self._put("host", seen, LIKELY, f"a column of {seen.distinct:,} words")
        else:
            self._make("host", f"{{ constant = {_quoted(self._stem)} }}", "the file's name")

    def _find_id(self, event: str) -> None:
        """A column that is different in every row, else the number of the row."""
        for seen, whole in self._named(_NAMES[event]["event_id"]):
            if seen.distinct == self._rows == seen.filled and _longest(seen) <= 48:
                self._put("event_id", seen, SURE if whole else LIKELY, "different in every row")
                return
        self._make("event_id", f'{{ row = "{self._stem}-" }}', "the number of the row", SURE)
        self._used |= {s.name for s in self._seen if self._is_number_of_row(s)}

    def _is_number_of_row(self, seen: _Seen) -> bool:
        """Whether a column only counts the rows."""
        if seen.name in ("", ROW) or not seen.is_whole or seen.filled < self._rows:
            return False
        steps = np.diff(seen.numbers.to_numpy())
        return len(steps) > 1 and bool(np.all(steps == 1.0))

    def _fill(
        self, name: str, names: Sequence[str], number: bool | None = None, again: bool = False
    ) -> bool:
        """Fill a field by the likeliest column of these names; whether there was one."""
        for seen, whole in self._named(names, again):
            if seen.filled and (number is None or seen.is_number == number):
                if again and any(o.field == "truth" and o.source == _quoted(seen.name)
                                 for o in self._lines):  # fmt: skip
                    continue
                sure = SURE if whole else LIKELY
                self._put(name, seen, sure, f"by its name; {seen.distinct:,} different")
                return True
        return False


def _all_codes(known: pl.Series) -> bool:
    """Whether these are few small codes, as labels have them."""
    values = known.to_numpy()
    few = 0 < known.n_unique() <= 50
    return few and bool(np.all((values >= 0.0) & (values <= 9_999.0)))


def _longest(seen: _Seen) -> int:
    """Bytes of the longest value as text."""
    lengths = seen.values.cast(pl.String, strict=False).str.len_bytes().drop_nulls()
    return int(lengths.to_numpy().max(initial=0))


def _quoted(text: str) -> str:
    """A TOML basic string."""
    made = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\u{ord(m[0]):04x}", made) + '"'


def _said(text: str) -> str:
    """What may stand behind a `#` of TOML, on one line."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text)


def _try(found: Guess, path: Path) -> None:
    """Read the first rows through the mapping."""
    from dataflows.settings import load
    from dataflows.sources.files import FileReader

    with tempfile.TemporaryDirectory(prefix="waxwing-guess-") as folder:
        mapping = Path(folder) / "mapping.toml"
        mapping.write_text(found.toml(), encoding="utf-8")
        name = found.event_type
        settings = load(
            None, {}, source="file", file_paths={name: str(path)}, event_types=[name],
            file_mapping=str(mapping),
        )  # fmt: skip
        reader = FileReader(settings)
        try:
            taken = reader.take(TRIED_ROWS)
            found.notes.append(f"Times are {reader.span}.")
        finally:
            reader.close()
    found.events = sum(len(batch) for batch in taken.batches.values())
    found.refused = len(taken.rejects)
    if taken.rejects:
        letter = taken.rejects[0]
        found.notes.append(f"Refused, row {letter.offset:,}: {letter.reason}: {letter.detail}")
