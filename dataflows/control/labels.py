"""Labels from where verdicts are kept: a file or a topic of event id, verdict, source and time.

They come by the control lane: each becomes a control record of kind `label`, is journaled with the
round it is heard in, and is in force from that round on. What is no label becomes a dead letter
(`bad_label`). A label waits until the stream has come as far as its time, so that no event before
it knows of it and the entities it names are there. Over Kafka that is so while a backlog is read;
a flow that has come to the end of its partitions hears a label when it comes.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from dataflows.control.records import (
    LINE_BYTES_MAX,
    SHOWN_MAX,
    ControlFile,
    ControlReader,
    Fault,
    parse_record,
    shown_line,
)
from dataflows.settings import Settings, is_time
from dataflows.sources.simulator import time_us_of
from features.errors import ConfigError, StateError

__all__ = [
    "BEHIND_MAX",
    "LABELS",
    "LabelFile",
    "LabelReader",
    "WithLabels",
    "label_record",
    "open_labels",
    "read_label",
    "shown_time",
    "too_late",
    "told_late",
]

LABELS = "label"
"""Of a fault: that it stood among the labels."""

_FIELDS = ("event_id", "verdict", "time", "source", "event_type", "event_time", "entities")
_NEEDED = ("event_id", "verdict", "time")

YEAR_US = 366 * 86_400_000_000
"""A label so long after the stream, with one behind it that is so much earlier, has a wrong time.
Chosen: disputes take months, files of labels a year at the most."""

BEHIND_MAX = 100
"""Lines behind a label that waits which are looked at. Chosen: one is enough unless it is wrong."""

_log = logging.getLogger(__name__)

_TIME = "ISO 8601 with its offset, or microseconds since 1970"


def label_record(fields: Mapping[str, Any], types: Sequence[str]) -> dict[str, Any]:
    """The control record that a label stands for.

    Parameters
    ----------
    fields : `event_id`, `verdict`, `time`; `source` where wanted; `event_type` where the flow has
        several; `event_time` and `entities` (entity type -> name) where entities are to know of it
    types : event types of the flow

    Raises
    ------
    ConfigError : all that is wrong with it

    Examples
    --------
    >>> said = {"event_id": "p1", "verdict": "fraud", "time": "2026-03-02T00:00:00Z"}
    >>> label_record(said, ["payment"])["time_us"]
    1772409600000000
    """
    faults = [f"expected `{name}`" for name in _NEEDED if not fields.get(name)]
    faults += [f"unknown field {str(n)[:SHOWN_MAX]!r}" for n in fields if n not in _FIELDS]
    name = fields.get("event_type") or (types[0] if len(types) == 1 else None)
    if name is None:
        faults.append(f"expected `event_type`, one of {', '.join(types)}")
    record: dict[str, Any] = {
        "kind": "label",
        "event_type": name,
        "event_id": fields.get("event_id"),
        "verdict": fields.get("verdict"),
    }
    for given, mine in (("time", "time_us"), ("event_time", "event_time_us")):
        if fields.get(given):
            try:
                record[mine] = _moment_us(fields[given])
            except ValueError:
                shown = repr(fields[given])[:SHOWN_MAX]
                faults.append(f"expected `{given}` as {_TIME}, got {shown}")
    record |= {name: fields[name] for name in ("source", "entities") if fields.get(name)}
    if not faults:
        try:
            return parse_record(json.dumps(record))
        except ConfigError as error:
            faults += [fault.removeprefix("control record label: ") for fault in error.faults]
    raise ConfigError([f"label: {fault}" for fault in faults])


def _moment_us(value: Any) -> int:
    """Microseconds of a time; ValueError where it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError
    return int(value) if value.isdecimal() else time_us_of(is_time(value))


def _of_json(raw: bytes) -> Mapping[str, Any]:
    """The fields of a JSON object; ConfigError where it is none."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"label: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError("label: expected a JSON object")
    return found


def read_label(
    raw: bytes, at: int, partition: int, types: Sequence[str], header: Sequence[str] | None = None
) -> dict[str, Any] | Fault | None:
    """The record of a line or message, what is wrong with it, or None where it is blank.

    Parameters
    ----------
    header : columns of a CSV file; None of JSON
    """
    try:
        if len(raw) > LINE_BYTES_MAX:
            raise ConfigError(f"label: expected at most {LINE_BYTES_MAX} bytes, got {len(raw)}")
        if not raw.strip():
            return None
        fields = _of_json(raw) if header is None else _of_cells(_cells(raw), header)
        return label_record(fields, types)
    except ConfigError as error:
        return Fault(at, shown_line(raw), "; ".join(error.faults), partition, LABELS)


def _cells(raw: bytes) -> list[str]:
    """The cells of a line of CSV; ConfigError where it is none."""
    try:
        return next(csv.reader([raw.decode("utf-8-sig").rstrip("\r")], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"label: not a line of CSV ({error})") from None


def _of_cells(cells: Sequence[str], header: Sequence[str]) -> Mapping[str, Any]:
    """The fields of a row: a column that is none of them names an entity; empty cells are left
    out."""
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        raise ConfigError(f"label: the file has no column {', '.join(missing)}")
    if len(cells) != len(header):
        raise ConfigError(f"label: expected {len(header)} cells, got {len(cells)}")
    given = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
    fields: dict[str, Any] = {n: v for n, v in given.items() if n in _FIELDS and n != "entities"}
    entities = {name: value for name, value in given.items() if name not in fields}
    return fields | ({"entities": entities} if entities else {})


class LabelFile(ControlFile):
    """Tail of a file of labels: CSV where its name says so, else lines of JSON.

    A label waits for the stream to come as far as its time; those behind it wait too, so the file
    stands in the order of time.

    Parameters
    ----------
    path : the file; it may appear later
    types : event types of the flow
    """

    def __init__(self, path: Path, types: Sequence[str]) -> None:
        super().__init__(path)
        self._types = types
        self._csv = path.suffix.lower() == ".csv"
        self._header: list[str] | None = None
        self._clock_us = 0
        self._next_us = 0
        self._size = -1

    def seek(self, position: Any) -> None:
        """As of a control file."""
        super().seek(position)
        self._header, self._next_us = None, 0

    def hear(self, clock_us: int) -> None:
        """Say how far the stream has come."""
        self._clock_us = clock_us

    def take(self) -> tuple[list[dict[str, Any]], list[Fault]]:
        """New labels whose time has come, and lines that are none."""
        size, self._size = self._size, self._size_now()
        if self._next_us > self._clock_us and size == self._size:
            return [], []
        return super().take()

    def close(self) -> None:
        """Say what was not heard of."""
        if self._next_us > self._clock_us:
            _log.warning(
                "labels %s: from byte %d on they wait for %s, the stream has come to %s",
                self._path, self._at, shown_time(self._next_us), shown_time(self._clock_us),
            )  # fmt: skip
        super().close()

    def _size_now(self) -> int:
        """Bytes of the file; -1 where there is none."""
        try:
            return self._path.stat().st_size
        except OSError:
            return -1

    def _read_line(self, line: bytes, at: int) -> dict[str, Any] | Fault | None:
        """As of a control file."""
        if self._csv and (at == 0 or self._header is None):
            try:
                self._header = _cells(line if at == 0 else self._first_line())
                if at == 0:
                    return None
            except ConfigError as error:
                return Fault(at, shown_line(line), "; ".join(error.faults), 0, LABELS)
        return read_label(line, at, 0, self._types, self._header)

    def _first_line(self) -> bytes:
        """The header, where the file is read on from its middle."""
        try:
            with self._path.open("rb") as file:
                return file.readline(LINE_BYTES_MAX).rstrip(b"\n")
        except OSError as error:
            raise StateError(f"labels {self._path} cannot be read: {error.strerror}") from error

    def _holds(
        self, record: dict[str, Any], at: int, lines: Sequence[bytes], i: int
    ) -> bool | Fault:
        """Whether a label's time has not come; a fault where it is a wrong one, by those behind."""
        self._next_us = int(record["time_us"])
        if self._next_us <= self._clock_us:
            return False
        behind = (
            read_label(line, at, 0, self._types, self._header)
            for line in lines[i + 1 : i + 1 + BEHIND_MAX]
        )
        if too_late(self._next_us, self._clock_us, behind):
            fault = Fault(at, shown_line(lines[i]), told_late(self._next_us), 0, LABELS)
            self._next_us = 0
            return fault
        return True


def too_late(time_us: int, clock_us: int, behind: Iterable[dict[str, Any] | Fault | None]) -> bool:
    """Whether the time of a label is wrong: a year after the stream, and after one behind it.

    Parameters
    ----------
    clock_us : how far the stream has come, int64 microseconds UTC; 0 and less where it has not
        begun
    behind : labels, and what is none, that stand behind it
    """
    if not 0 < clock_us < time_us - YEAR_US:
        return False
    return any(isinstance(one, dict) and one["time_us"] < time_us - YEAR_US for one in behind)


def told_late(time_us: int) -> str:
    """What is said of a label with such a time."""
    return (
        f"label: its `time`, {shown_time(time_us)}, is more than a year after the stream and after"
        f" labels behind it; expected `time` as {_TIME}, in order"
    )


def shown_time(time_us: int) -> str:
    """A time for people; one beyond the calendar as it stands."""
    if time_us <= 0:
        return "no event yet"
    try:
        return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (OverflowError, ValueError, OSError):
        return f"{time_us} us"


class LabelReader(ControlReader, Protocol):
    """A control reader whose records wait for the stream."""

    def hear(self, clock_us: int) -> None:
        """Say how far the stream has come, event time in int64 microseconds UTC."""
        ...


def open_labels(settings: Settings) -> LabelReader | None:
    """Where the settings say that labels are; None where they name neither file nor topic."""
    if settings.labels_topic is not None:
        from dataflows.control.labels_topic import LabelTopic

        return LabelTopic(settings)
    if settings.labels_file is not None:
        return LabelFile(settings.labels_file, settings.event_types)
    return None


class WithLabels:
    """A control reader that reads labels too, from a file or a topic of their own.

    Parameters
    ----------
    reader : gives the control records
    labels : gives the labels; None where there are none
    """

    def __init__(self, reader: ControlReader, labels: LabelReader | None) -> None:
        self.origin = reader.origin
        self.labels_origin = "" if labels is None else labels.origin
        self._of = ""
        if labels is not None:
            is_file = isinstance(labels, LabelFile)
            self._of = str(Path(labels.origin).resolve()) if is_file else labels.origin
        self._reader, self._labels = reader, labels

    @property
    def position(self) -> Any:
        """That of both, and of which labels it speaks."""
        at = self._reader.position
        if self._labels is None:
            return at
        return {"records": at, "labels": self._labels.position, "of": self._of}

    def seek(self, position: Any) -> None:
        """Stand at a journaled position, with labels or without; none is the beginning, and so is
        that of other labels. Where it does not say of which, it was of these."""
        labels = None
        if isinstance(position, dict) and "records" in position:
            same = position.get("of", self._of) == self._of
            position, labels = position["records"], position["labels"] if same else None
        self._reader.seek(position)
        if self._labels is not None:
            self._labels.seek(labels)

    def open(self) -> None:
        """Open both."""
        self._reader.open()
        if self._labels is not None:
            self._labels.open()

    def hear(self, clock_us: int) -> None:
        """Say how far the stream has come before the round that is cut."""
        if self._labels is not None:
            self._labels.hear(clock_us)

    def take(self) -> tuple[list[dict[str, Any]], list[Fault]]:
        """New records and labels, and what is none."""
        records, faults = self._reader.take()
        if self._labels is not None:
            more, bad = self._labels.take()
            records, faults = records + more, faults + bad
        return records, faults

    def close(self) -> None:
        """Close both."""
        self._reader.close()
        if self._labels is not None:
            self._labels.close()
