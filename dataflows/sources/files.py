"""Files as a source: Parquet, CSV and JSONL of all event types, merged in the order of event time.

A file is looked through once for its times; one whose rows stand in order is then read stretch by
stretch, any other is held in memory and sorted. The stream's clock is event time: what was recorded
years ago is not late, but a row whose time lies far from that of its neighbours is refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from dataflows.settings import Settings
from dataflows.sources.base import DeadLetter, Taken
from dataflows.sources.mapping import (
    ROW,
    UNITS,
    Column,
    TableMapping,
    Wide,
    load_mapping,
    own_mapping,
    read_time,
    times_of_rows,
)
from dataflows.sources.simulator import time_us_of
from dataflows.sources.tables import LineTable, Stretch, Table, columns_of_lines, open_table
from dataflows.sources.truth import check_labels, codes_of, unknown_label
from features.batch import EventBatch, Int64, concat_batches
from features.decode import check_contract, decode
from features.errors import ConfigError, SourceError
from features.events import event_code, event_type

__all__ = ["FileReader", "mapping_event_type", "truth_names"]

NEIGHBOURS = 5
"""Rows on either side whose median a time is held against; chosen: five wrong ones of eleven are
outvoted, and a file that pauses for weeks is not a fault."""

OFF_SHARE_MAX = 0.2
"""Share of rows far from their neighbours above which the file is simply not in order. Chosen."""

AHEAD_US = 3_600_000_000
"""How far a row may be ahead of its neighbours and still move the clock of a file whose rounds a
column names. Chosen: more than rows of a round are apart, less than a wrong day or time zone."""

_WINDOW_ROWS = 200_000
"""Rows whose neighbours are looked at in one go; chosen: 20 MB."""

MEDIAN_US = (946_684_800_000_000, 4_102_444_800_000_000)
"""2000-01-01 and 2100-01-01: where the median time of a file lies outside, its unit is another than
what it was read in. Chosen: seconds taken for microseconds are in 1970, the reverse beyond 2100."""

_YEAR_US = 31_556_952_000_000
"""A year of the calendar, for what is said to people."""

_ANY_US = 2**62
"""Time bounds that hold for every time: the file has its own."""


def mapping_event_type(name_or_path: str) -> str:
    """Event type of a mapping's rows; ConfigError where there is no such mapping."""
    return load_mapping(name_or_path).event


def truth_names(name_or_path: str) -> dict[int, str]:
    """What the codes of a mapping's labels mean."""
    return dict(load_mapping(name_or_path).truth_names)


class FileReader:
    """All files of the settings as one stream.

    Parameters
    ----------
    settings : `file_*`, `event_types`, `time_past_s_max`
    from_us : rows before it are skipped (a backfill has them)
    step_us : where a file says which rows are anomalies, or there is a `labels_file`, no round
        goes beyond a multiple of it, at which labels arrive (`dataflows.arrivals`); 0 leaves rounds
        as they are

    Raises
    ------
    ConfigError : files or columns that are missing or cannot be read, all at once
    """

    unpaced = True

    def __init__(self, settings: Settings, from_us: int | None = None, step_us: int = 0) -> None:
        self._files = _open_files(settings, from_us)
        labelled = settings.labels_file or any(file.labelled for file in self._files)
        borders = (round(settings.file_round_s * 1e6), step_us if labelled else 0)
        self._borders_us = [us for us in borders if us]
        self._by_round = settings.file_round_column is not None

    def seek(self, positions: dict[str, Any]) -> None:
        """Stand at journaled positions; empty ones leave the start where the settings put it."""
        for file in self._files:
            if file.name in positions:
                file.at = int(positions[file.name])

    @property
    def finished(self) -> str:
        """Why nothing is left to take; empty where something is, or nothing was there at all."""
        if any(f.at < f.end for f in self._files) or not any(f.at > f.start for f in self._files):
            return ""
        return "every row of the files was read in an earlier run"

    @property
    def in_history(self) -> dict[str, int]:
        """Event type -> rows that `from_us` leaves out; none of those that the settings leave out.

        History is known by its time alone: a row is left out whether history has it or not.
        """
        return {f.name: f.in_history for f in self._files if f.in_history}

    @property
    def rows(self) -> dict[str, int]:
        """Event type -> rows of its file, whatever the settings leave out."""
        return {f.name: len(f.keys) for f in self._files}

    @property
    def span(self) -> str:
        """First and last event time of all rows, for people."""
        keys = [k for f in self._files if len(f.keys) for k in (f.keys[0], f.keys[-1])]
        if not keys:
            return "none"
        first, last = (datetime.fromtimestamp(k / 1e6, UTC) for k in (min(keys), max(keys)))
        return f"{first:%Y-%m-%dT%H:%M:%SZ} to {last:%Y-%m-%dT%H:%M:%SZ}"

    @property
    def starts_us(self) -> int | None:
        """Event time of the first row that will be taken, None where there is none."""
        return min((int(f.keys[f.start]) for f in self._files if f.start < f.end), default=None)

    @property
    def events_max(self) -> dict[str, int]:
        """Event type -> most events that the rows between start and end make."""
        return {f.name: (f.end - f.start) * f.width for f in self._files}

    def take(self, rows_max: int) -> Taken:
        """The next rows of all files in the order of time, `rows_max` or a round's time of them.

        Where a column names the rounds: the rows of the next one, however many.
        """
        if self._by_round:
            ahead = [int(f.keys[f.at]) for f in self._files if f.at < f.end]
            return self._read([f.after(min(ahead)) if ahead else f.at for f in self._files])
        rows_max = max(1, rows_max // max(file.width for file in self._files))
        waiting = [file.keys[file.at : min(file.at + rows_max, file.end)] for file in self._files]
        keys = np.concatenate(waiting)
        which = np.repeat(np.arange(len(waiting)), [len(w) for w in waiting])
        order = np.lexsort((which, keys))[:rows_max]  # stable: a file's own order stays
        if self._borders_us and len(order):
            first = int(keys[order[0]])
            border = min((first // us + 1) * us for us in self._borders_us)
            order = order[keys[order] < border]
        counts = np.bincount(which[order], minlength=len(self._files))
        return self._read([f.at + int(n) for f, n in zip(self._files, counts, strict=True)])

    def retake(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        cut_time_us: int,
        schemas: dict[str, str],
    ) -> Taken:
        """The rows between two journaled positions.

        Raises
        ------
        SourceError : a file is now shorter than it was
        """
        self.seek(before)
        ends = [int(after.get(file.name, file.at)) for file in self._files]
        for file, end in zip(self._files, ends, strict=True):
            if end > len(file.keys):
                raise SourceError(
                    f"{file.path}: the journal speaks of {end} rows, the file has"
                    f" {len(file.keys)}; put the file back, or start with an empty state_dir"
                )
        return self._read(ends)

    def _read(self, ends: list[int]) -> Taken:
        """Rows up to the given place of each file, and stand there."""
        due_ns = time.time_ns()
        batches: dict[str, EventBatch] = {}
        rejects: list[DeadLetter] = []
        received, cut_time_us = 0, 0
        for file, end in zip(self._files, ends, strict=True):
            begin = file.at
            batch, refused = file.read(end, due_ns)
            if batch is not None:
                batches[file.name] = batch
            # A row of a wide table is as many events as it has cells.
            whole = 0 if batch is None else len(batch)
            received += end - begin if file.width == 1 else whole + len(refused)
            rejects += refused
            if end > file.start:
                cut_time_us = max(cut_time_us, int(file.clock[end - 1]))
        positions = {file.name: file.at for file in self._files}
        eof = all(file.at >= file.end for file in self._files)
        return Taken(batches, rejects, positions, received, eof, {}, cut_time_us)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            file.close()


def _open_files(settings: Settings, history_us: int | None) -> list[_File]:
    """Every file of the settings, or every fault."""
    faults: list[str] = []
    mapping: TableMapping | None = None
    if settings.file_mapping is not None:
        try:
            mapping = load_mapping(settings.file_mapping)
        except ConfigError as error:
            faults += error.faults
    paths = {n: p for n, p in settings.file_paths.items() if n in settings.event_types}
    if not paths:
        faults.append(
            f"file_paths: none of event_types ({', '.join(settings.event_types)}) has a file"
        )
    if mapping is not None and mapping.event not in paths:
        faults.append(
            f"file_mapping {settings.file_mapping!r} is for {mapping.event} events, and file_paths"
            f" has none; it has {', '.join(paths) or 'nothing'}"
        )
    opened = []
    for name in sorted(paths, key=event_code):
        mine = mapping if mapping is not None and mapping.event == name else None
        try:
            table = open_table(paths[name], None if mine is None else mine.pattern)
        except SourceError as error:
            faults.append(f"file_paths.{name}: {error}")
            continue
        where = f"file_paths.{name}: {paths[name]}"
        if isinstance(table, LineTable):
            keys = table.keys() if mine is not None else []
            if mine is not None and keys:
                faults += mine.missing(keys, where)
        else:
            used = mine or own_mapping(name, table.columns)
            missing = used.missing(table.columns, where)
            if missing and mine is None:
                missing[-1] += "; a file with other names needs file_mapping"
            faults += missing
            mine = used
        opened.append((name, paths[name], table, mine))
    if faults:
        raise ConfigError(faults)
    past_us = settings.time_past_s_max * 1_000_000
    files = []
    for parts in opened:
        try:
            files.append(_File(*parts, past_us, settings.file_round_column))
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)
    from_us, until_us = (
        None if text is None else time_us_of(text)
        for text in (settings.file_from, settings.file_until)
    )
    for file in files:
        file.bound(from_us, until_us, history_us)
    return files


class _File:
    """One file as a sequence of rows in the order of their times.

    Parameters
    ----------
    name : event type
    path, table : where the rows are
    mapping : how columns become fields; None for lines of JSON with our own names
    past_us : how far a time may lie from those of its neighbours
    round_column : column that numbers the rounds of a former run, None to order by time alone

    Raises
    ------
    ConfigError : no such column, one that is not made of whole numbers, labels that mean nothing
    """

    def __init__(
        self,
        name: str,
        path: Path,
        table: Table,
        mapping: TableMapping | None,
        past_us: int,
        round_column: str | None = None,
    ) -> None:
        self.name, self.path = name, path
        self._table, self._mapping = table, mapping
        self.labelled = mapping is not None and mapping.truth is not None
        times, unread = self._times()
        self._check_unit(times[~unread])
        if mapping is not None:
            check_labels(table, mapping, path)
        self.width = 1 if mapping is None else mapping.width
        self._off = _off(times, unread, past_us)
        self.keys = _keys(times, unread | (self._off != 0))
        self.clock = self.keys
        if round_column is not None:
            # Rows stand as they came, so one from tomorrow would move the clock for all after it.
            ahead = _off(times, unread | (self._off != 0), AHEAD_US) > 0
            self.clock = _keys(times, unread | (self._off != 0) | ahead)
            self.keys = self._rounds(round_column)
        self._whole: list[Stretch] | None = None
        self._order: Int64 | None = None
        if np.any(self.keys[1:] < self.keys[:-1]):
            self._order = np.argsort(self.keys, kind="stable")
            self.keys, self.clock = self.keys[self._order], self.clock[self._order]
        self.clock = np.maximum.accumulate(self.clock)
        self.start = self.at = self.in_history = 0
        self.end = len(self.keys)
        self._stream: Iterator[Stretch] | None = None
        self._stream_at = 0
        self._rest: Stretch | None = None
        self._rest_at = 0

    def bound(self, from_us: int | None, until_us: int | None, history_us: int | None) -> None:
        """Leave out rows before `from_us`, from `until_us` on, and before `history_us`, which are
        counted."""
        first = 0 if from_us is None else int(np.searchsorted(self.clock, from_us))
        if until_us is not None:
            self.end = max(first, int(np.searchsorted(self.clock, until_us)))
        known = 0 if not history_us else int(np.searchsorted(self.clock, history_us))
        self.start = self.at = min(max(first, known), self.end)
        self.in_history = self.start - first

    def after(self, key: int) -> int:
        """The place after the last row of a key."""
        return min(self.end, int(np.searchsorted(self.keys, key, side="right")))

    def _rounds(self, column: str) -> Int64:
        """int64 (n,), the round of every row."""
        where = f"file_round_column {column!r}: {self.path}"
        if self._table.columns and column not in self._table.columns:
            raise ConfigError(
                f"{where} has no such column; it has {', '.join(self._table.columns)}"
            )
        pieces = [p.cast(pl.Int64, strict=False) for p in self._table.times(column)]
        rounds = pl.concat(pieces) if pieces else pl.Series(column, [], dtype=pl.Int64)
        if rounds.null_count():
            row = int(rounds.is_null().arg_max() or 0)
            raise ConfigError(f"{where}: expected a whole number in every row, row {row} has none")
        return rounds.to_numpy()

    def _times(self) -> tuple[Int64, npt.NDArray[np.bool_]]:
        """Time of every row in the order of the file, and which rows have none."""
        source = Column("time_us", unit="us") if self._mapping is None else self._mapping.time
        if source.row is not None:
            first = next(iter(self._table.columns), "")
            rows = sum(len(column) for column in self._table.times(first))
            numbers = pl.DataFrame({ROW: np.arange(rows)})
            even = numbers.select(times_of_rows(pl.col(ROW), source)).to_series()
            return even.to_numpy(), np.zeros(rows, np.bool_)
        name = str(source.column)
        pieces = [
            column.to_frame(name).select(read_time(pl.col(name), column.dtype, source)).to_series()
            for column in self._table.times(name)
        ]
        times = pl.concat(pieces) if pieces else pl.Series(name, [], dtype=pl.Int64)
        return times.fill_null(0).to_numpy(), times.is_null().to_numpy()

    def _check_unit(self, times: Int64) -> None:
        """Refuse a file whose times are read in the wrong unit: all of it would be of 1970."""
        median_us = int(np.median(times)) if len(times) else MEDIAN_US[0]
        if MEDIAN_US[0] <= median_us <= MEDIAN_US[1]:
            return
        source = Column("time_us") if self._mapping is None else self._mapping.time
        read_as = source.unit or "us"
        if source.format is not None:
            raise ConfigError(
                f"{self.path}: column {source.column!r} read as {source.format!r} has its median in"
                f" the year {1970 + round(median_us / _YEAR_US)}, expected 2000 to 2100; give the"
                " mapping's time_us a `year` where the text has none"
            )
        number = median_us / UNITS[read_as]
        fits = [u for u, us in UNITS.items() if MEDIAN_US[0] <= number * us <= MEDIAN_US[1]]
        units = "|".join(f'"{unit}"' for unit in fits or UNITS)
        raise ConfigError(
            f"{self.path}: column {source.column!r} read in {read_as} has its median in the year"
            f" {1970 + round(median_us / _YEAR_US)}, expected 2000 to 2100; name its unit in a"
            f' mapping: time_us = {{ column = "{source.column}", unit = {units} }}'
        )

    def read(self, end: int, due_ns: int) -> tuple[EventBatch | None, list[DeadLetter]]:
        """Events and rejects of the rows up to place `end`, and stand there."""
        batches: list[EventBatch] = []
        rejects: list[DeadLetter] = []
        for stretch in self._stretches(self.at, end):
            batch, refused = self._events(stretch, due_ns)
            rejects += refused
            if len(batch):
                batches.append(batch)
        self.at = end
        return (concat_batches(batches) if batches else None), rejects

    def _stretches(self, begin: int, end: int) -> Iterator[Stretch]:
        """Rows from place `begin` to `end`: from the memory, or from where the stream stands."""
        if self._order is not None:
            yield from self._sorted(self._order[begin:end])
            return
        if self._stream is None or begin != self._stream_at:
            self._stream, self._rest = self._table.stretches(begin), None
            self._stream_at = begin
        while self._stream_at < end:
            if self._rest is None or self._rest_at == len(self._rest):
                self._rest, self._rest_at = next(self._stream, None), 0
            if self._rest is None:
                raise SourceError(
                    f"{self.path}: it now ends after {self._stream_at} rows, a moment ago it had"
                    f" {len(self.keys)}; let the writer finish first, then start again"
                )
            here = min(len(self._rest) - self._rest_at, end - self._stream_at)
            stretch = self._rest.part(self._rest_at, self._rest_at + here)
            self._rest_at += here
            self._stream_at += here
            yield stretch

    def _sorted(self, numbers: Int64) -> Iterator[Stretch]:
        """Rows of a file that is not in order, by their numbers."""
        if self._whole is None:
            self._whole = list(self._table.stretches())
        ends = np.cumsum([len(s) for s in self._whole])
        home = np.searchsorted(ends, numbers, side="right")
        for i in np.unique(home).tolist():
            begin = int(ends[i]) - len(self._whole[i])
            yield self._whole[i].take(numbers[home == i] - begin)

    def _events(self, stretch: Stretch, due_ns: int) -> tuple[EventBatch, list[DeadLetter]]:
        """What of a stretch are events, and why the rest is not."""
        faults: dict[int, tuple[str, str]] = {}
        for row in np.flatnonzero(self._off[stretch.numbers]).tolist():
            early = self._off[stretch.numbers[row]] < 0
            said = "far before" if early else "far after"
            reason = "time_past" if early else "time_future"
            faults[row] = (reason, f"time_us: {said} the rows around it")
        if stretch.bad:
            for row in np.flatnonzero(np.isin(stretch.numbers, list(stretch.bad))).tolist():
                faults[row] = stretch.bad[int(stretch.numbers[row])][:2]
        if self._mapping is None:
            batch = self._from_lines(stretch, due_ns, faults)
        else:
            batch = self._from_columns(stretch, self._mapping, due_ns, faults)
        letters = [
            DeadLetter(
                reason, detail, self.name, None, str(self.path), 0, int(stretch.numbers[row]),
                stretch.raw(row),
            )
            for row, (reason, detail) in sorted(faults.items())
        ]  # fmt: skip
        return batch, letters

    def _from_lines(
        self, stretch: Stretch, due_ns: int, faults: dict[int, tuple[str, str]]
    ) -> EventBatch:
        """Events of lines with our own names; more faults go to `faults`."""
        n = len(stretch)
        done = decode(
            self.name, "json", stretch.lines or [], np.zeros(n, np.int32), stretch.numbers,
            np.full(n, due_ns), {}, cut_time_us=0, past_us_max=_ANY_US, future_us_max=_ANY_US,
        )  # fmt: skip
        for reject in done.rejects:
            faults.setdefault(reject.row, (reject.reason, reject.detail))
        return done.batch.take(np.flatnonzero(~np.isin(done.rows, list(faults))))

    def _from_columns(
        self,
        stretch: Stretch,
        mapping: TableMapping,
        due_ns: int,
        faults: dict[int, tuple[str, str]],
    ) -> EventBatch:
        """Events of columns through the mapping; more faults go to `faults`."""
        frame = stretch.frame
        if frame is None:
            frame, bad = columns_of_lines(stretch.lines or [], mapping.columns)
            for row, detail in bad.items():
                faults.setdefault(row, ("not_json", detail))
        numbered = frame.with_columns(pl.Series(ROW, stretch.numbers, dtype=pl.Int64))
        events = numbered.select(mapping.events(frame.schema))
        for field in event_type(self.name).fields:
            column = mapping.fields[field.name].column if field.name in mapping.fields else None
            if column is not None:
                lost = (events[field.name].is_null() & frame[column].is_not_null()).to_numpy()
                for row in np.flatnonzero(lost).tolist():
                    got = repr(frame[column][row])[:60]
                    said = f"{field.name}: expected {field.kind}, got {got} in column {column}"
                    faults.setdefault(row, ("wrong_type", said))
        truth = None
        if mapping.truth is not None:
            truth, unknown = codes_of(frame[mapping.truth], mapping)
            for row in np.flatnonzero(unknown).tolist():  # of a file that has grown since
                said = unknown_label(frame[mapping.truth][row], mapping)
                faults.setdefault(row, ("wrong_type", f"column {mapping.truth}: {said}"))
        if mapping.wide is not None:
            return self._series(events, frame, mapping.wide, stretch.numbers, due_ns, faults, truth)
        _, broken = check_contract(
            self.name, events, cut_time_us=0, past_us_max=_ANY_US, future_us_max=_ANY_US
        )
        for row, reason, detail in broken:
            faults.setdefault(row, (reason, detail))
        rows = np.setdiff1d(np.arange(len(stretch)), np.array(list(faults), np.int64))
        n = len(rows)
        return EventBatch(
            self.name, events[rows], np.zeros(n, np.int32), stretch.numbers[rows],
            np.full(n, due_ns), None if truth is None else truth[rows],
        )  # fmt: skip

    def _series(
        self,
        rows: pl.DataFrame,
        cells: pl.DataFrame,
        wide: Wide,
        numbers: Int64,
        due_ns: int,
        faults: dict[int, tuple[str, str]],
        truth: npt.NDArray[np.int16] | None,
    ) -> EventBatch:
        """An event of each cell that has a number; rows with a cell that has none go to `faults`.

        The number of the column stands where a topic's partition would, so that place and order of
        an event are its own. An empty cell is no event; a row of nothing else is a fault.
        """
        whole = np.ones(len(rows), np.bool_)
        whole[list(faults)] = False
        frames, places, series = [], [], []
        filled = np.zeros(len(rows), np.bool_)
        for k, column in enumerate(wide.columns):
            cell = cells[column]
            value = cell.str.strip_chars() if cell.dtype == pl.String else cell
            value = value.cast(pl.Float64, strict=False)
            unread = (value.is_null() & cell.is_not_null()).to_numpy() & whole
            for row in np.flatnonzero(unread).tolist():
                said = f"{wide.value}: expected float64, got {cell[row]!r:.60} in column {column}"
                faults.setdefault(row, ("wrong_type", said))
            value = value.fill_nan(None)  # what pandas writes where there is nothing
            at = np.flatnonzero(value.is_not_null().to_numpy() & whole)
            filled[at] = True
            one = rows[at].with_columns(
                pl.format("{}|{}", "event_id", pl.lit(column)).alias("event_id"),
                pl.lit(column).alias(wide.name),
                value[at].alias(wide.value),
            )
            _, broken = check_contract(
                self.name, one, cut_time_us=0, past_us_max=_ANY_US, future_us_max=_ANY_US
            )
            for i, reason, detail in broken:
                faults.setdefault(int(at[i]), (reason, f"{detail} in column {column}"))
            kept = np.setdiff1d(np.arange(len(at)), np.array([b[0] for b in broken], np.int64))
            frames.append(one[kept])
            places.append(at[kept])
            series.append(np.full(len(kept), k, np.int32))
        for row in np.flatnonzero(whole & ~filled).tolist():
            faults.setdefault(row, ("no_value", f"{wide.value}: every column of [wide] is empty"))
        place = np.concatenate(places)
        return EventBatch(
            self.name, pl.concat(frames), np.concatenate(series), numbers[place],
            np.full(len(place), due_ns), None if truth is None else truth[place],
        ).in_order()  # fmt: skip

    def close(self) -> None:
        """Let go of the file and of what was read."""
        self._stream = self._rest = self._whole = None


def _off(times: Int64, unread: npt.NDArray[np.bool_], past_us: int) -> npt.NDArray[np.int8]:
    """int8 (n,): -1 far before the rows around it, 1 far after, 0 where it fits.

    A row is held against the median of its neighbours in the file, so that a wrong clock is found
    whatever the file's age, and neither a pause nor its end is taken for one. A file whose rows are
    in no order, or as far apart as that, has no neighbours: nothing is off in it.
    """
    off = np.zeros(len(times), np.int8)
    rows = np.flatnonzero(~unread)
    known = times[rows].astype(np.float64)
    steps = np.abs(np.diff(known))
    if len(known) <= 2 * NEIGHBOURS or not np.any(steps > past_us) or np.median(steps) > past_us:
        return off
    # Turned round at the ends, so that the last of a growing row is its own median.
    padded = np.pad(known, NEIGHBOURS, mode="reflect", reflect_type="odd")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * NEIGHBOURS + 1)
    away = np.empty(len(known))
    for at in range(0, len(known), _WINDOW_ROWS):
        here = slice(at, at + _WINDOW_ROWS)
        away[here] = known[here] - np.median(windows[here], axis=1)
    inner = np.flatnonzero(np.abs(away[1:-1]) <= past_us) + 1
    if len(inner):  # the first and the last have neighbours on one side only
        away[0], away[-1] = known[0] - known[inner[0]], known[-1] - known[inner[-1]]
    far = np.abs(away) > past_us
    if far.mean() <= OFF_SHARE_MAX:
        off[rows[far]] = np.sign(away[far]).astype(np.int8)
    return off


def _keys(times: Int64, unknown: npt.NDArray[np.bool_]) -> Int64:
    """int64 (n,), times to order by: a row without one stands with the row before it."""
    if not unknown.any():
        return times
    known = np.flatnonzero(~unknown)
    if not len(known):
        return np.zeros(len(times), np.int64)
    before = np.maximum.accumulate(np.where(unknown, -1, np.arange(len(times))))
    keys: Int64 = times[np.where(before < 0, known[0], before)]
    return keys
