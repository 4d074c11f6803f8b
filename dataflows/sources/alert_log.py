"""The alert log as the notify flow reads it: the file that sink jsonl writes, or the Kafka topic.

A reader gives alerts with their places and can say later where to go on. The file may have been cut
by a detect flow that resumed and wrote the cut rounds again: places are therefore kept with the id
of the alert that stood there, and reading goes on behind the last place that still holds.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from dataflows.alerts.base import Alert
from dataflows.settings import Settings
from dataflows.sources.brokers import (
    Troubles,
    client_options,
    ensure_topic,
    make_client,
    partitions_of,
)
from features.errors import ContractError, SourceError

__all__ = ["AlertReader", "FileTail", "Lines", "Logged", "Place", "TopicTail"]

READ_BYTES_MAX = 1_048_576
"""Most bytes of a file in one go; a longer line is no alert. Chosen: some 500 alerts."""

PLACES_KEPT_MAX = 512
PLACE_EVERY = 16
"""Places of the file that are kept, and every how many lines: they reach 8,192 alerts back. Chosen:
a resumed detect flow cuts off what was written since its last snapshot, ten seconds by default."""

MESSAGES_MAX = 1_000
"""Most messages of a topic in one go. Chosen: as many alerts as a file gives."""

KAFKA_TIMEOUT_S = 10.0
"""Longest wait for the offsets of a partition. Chosen."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Logged:
    """An alert and where it begins: byte of the file (partition 0), offset of a partition."""

    alert: Alert
    partition: int
    start: int


@dataclass(frozen=True, slots=True)
class Place:
    """A line of the file: where it begins and ends, and the id of its alert."""

    start: int
    end: int
    id: str


@dataclass(slots=True)
class Lines:
    """What a reader found.

    Parameters
    ----------
    alerts : in the order of the log
    ends : partition -> how far the reader has come
    head, places : of a file, the id of its first alert and the places that are known to hold
    cut_to : the log was cut, and reading goes on from here
    final : nothing will follow
    """

    alerts: list[Logged]
    ends: dict[int, int]
    head: str = ""
    places: tuple[Place, ...] = ()
    cut_to: int | None = None
    final: bool = False


class AlertReader(Protocol):
    """Reads the alert log, never waiting long."""

    def take(self) -> Lines:
        """What was written since the last call, up to a maximum."""
        ...

    def end(self) -> Mapping[int, int]:
        """Partition -> where the log ends now."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def _alert(line: bytes, where: str) -> Alert | None:
    """The alert of a line; one that is none is told and passed over."""
    try:
        return Alert.from_json(line)
    except ContractError as error:
        _log.warning("alert log, %s: passed over: %s", where, error)
        return None


@dataclass(slots=True)
class FileTail:
    """Reads whole lines of a file that another process appends to.

    Parameters
    ----------
    path : of the file; it may not be there yet
    head : id of its first alert as it was met earlier; empty where it is not known
    places : known places, the oldest first
    until : alerts before this offset are done with
    """

    path: Path
    head: str = ""
    places: deque[Place] = field(default_factory=deque)
    until: int | None = None
    _offset: int = 0
    _last: Place | None = None
    _since_place: int = PLACE_EVERY - 1

    def __post_init__(self) -> None:
        if self.until is not None:
            while self.places and self.places[-1].end > self.until:
                self.places.pop()
        self._last = self.places[-1] if self.places else None
        self._offset = (self.until or 0) if self._last is None else self._last.end

    def take(self) -> Lines:
        """Whole lines that follow; first a look whether what was read is still there."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                cut_to = None
                if not self._holds(file, size, self._last):
                    cut_to = self._offset = self._go_back(file, size)
                file.seek(self._offset)
                data = file.read(READ_BYTES_MAX)
        except FileNotFoundError:
            size, data, cut_to = 0, b"", None
            if self._offset:
                self._forget()
                cut_to = 0
        except OSError as error:
            raise SourceError(
                f"alert log {self.path} could not be read: {error.strerror}; mend the rights or set"
                " state_dir to the folder the detect flow writes to"
            ) from error
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) == READ_BYTES_MAX:
            _log.warning("alert log, byte %d: no line end, passed over", self._offset)
            self._offset += len(data)
        alerts = self._split(data[:whole])
        return Lines(alerts, {0: self._offset}, self.head, self._told(), cut_to)

    def end(self) -> Mapping[int, int]:
        """Behind the last whole line; of half a line nobody knows when it is whole."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                begin = max(0, size - READ_BYTES_MAX)
                file.seek(begin)
                return {0: begin + file.read().rfind(b"\n") + 1}
        except OSError:
            return {0: 0}

    def close(self) -> None:
        """Nothing is held open: the file may be replaced at any time."""

    def _split(self, data: bytes) -> list[Logged]:
        """The alerts of whole lines; the reader then stands behind them."""
        found: list[Logged] = []
        for line in data.split(b"\n")[:-1]:
            start, self._offset = self._offset, self._offset + len(line) + 1
            alert = _alert(line, f"byte {start}")
            if alert is None:
                continue
            found.append(Logged(alert, 0, start))
            self.head = self.head or alert.id
            self._last = Place(start, self._offset, alert.id)
            self._since_place += 1
            if self._since_place >= PLACE_EVERY:
                self._since_place = 0
                self.places.append(self._last)
                if len(self.places) > PLACES_KEPT_MAX:
                    self.places.popleft()
        return found

    def _told(self) -> tuple[Place, ...]:
        """All known places, the last line's too."""
        if self._last is None or (self.places and self.places[-1] == self._last):
            return tuple(self.places)
        return (*self.places, self._last)

    def _holds(self, file: Any, size: int, place: Place | None) -> bool:
        """Whether a place still holds the alert it held."""
        if place is None:
            known = not self._offset or not self.head or self._id_at(file, 0) == self.head
            return size >= self._offset and known
        return size >= max(place.end, self._offset) and self._id_at(file, place.start) == place.id

    def _id_at(self, file: Any, start: int) -> str | None:
        """Id of the alert that begins here."""
        file.seek(start)
        try:
            return Alert.from_json(file.readline(READ_BYTES_MAX)).id
        except ContractError:
            return None

    def _go_back(self, file: Any, size: int) -> int:
        """Where to go on in a log that was cut or replaced."""
        oldest = self.places[0].start if self.places else None
        while self.places:
            place = self.places[-1]
            if place.end <= size and self._id_at(file, place.start) == place.id:
                self._last = place
                self._since_place = 0
                return place.end
            self.places.pop()
        head = self.head
        self._forget()
        if head and oldest is not None and self._id_at(file, 0) == head:
            # Cut further back than places reach: what was written before them was sent long ago.
            self.head = head
            return min(oldest, self.end()[0])
        return 0

    def _forget(self) -> None:
        """Stand at the beginning of an unknown log."""
        self.places.clear()
        self.head, self._last, self._offset = "", None, 0
        self._since_place = PLACE_EVERY - 1


class TopicTail:
    """Reads all partitions of the topic that sink kafka writes; makes it where it does not exist.

    Parameters
    ----------
    offsets : partition -> where to go on; others begin at their first message

    Raises
    ------
    SourceError, ConfigError : the brokers do not answer or refuse
    """

    def __init__(self, settings: Settings, offsets: Mapping[int, int]) -> None:
        self._topic = settings.alerts_topic
        self._troubles = Troubles(settings.kafka_brokers)
        fixed = {
            "group.id": f"{settings.kafka_group}-notify",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
        admin = make_client(AdminClient, client_options(settings, self._troubles, {}, {}))
        ensure_topic(admin, self._topic, settings, self._troubles)
        self._consumer = make_client(Consumer, client_options(settings, self._troubles, {}, fixed))
        partitions = partitions_of(self._consumer, [self._topic], settings, self._troubles)
        self._ends: dict[int, int] = {}
        for partition in range(partitions[self._topic]):
            first, _ = self._watermarks(partition)
            self._ends[partition] = max(first, offsets.get(partition, first))
        self._consumer.assign(
            [TopicPartition(self._topic, p, offset) for p, offset in self._ends.items()]
        )

    def take(self) -> Lines:
        """Messages that have arrived."""
        alerts: list[Logged] = []
        for message in self._consumer.consume(MESSAGES_MAX, timeout=0.05):
            fault = message.error()
            if fault is not None:
                # librdkafka mends what can be mended by itself; the rest shows at the next start.
                _log.warning("alerts topic %s: %s", self._topic, fault.str())
                continue
            partition, offset = int(message.partition() or 0), int(message.offset() or 0)
            self._ends[partition] = offset + 1
            alert = _alert(message.value() or b"", f"partition {partition}, offset {offset}")
            if alert is not None:
                alerts.append(Logged(alert, partition, offset))
        return Lines(alerts, dict(self._ends))

    def end(self) -> Mapping[int, int]:
        """Offset after the last message of each partition."""
        return {partition: self._watermarks(partition)[1] for partition in self._ends}

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def _watermarks(self, partition: int) -> tuple[int, int]:
        """First and next offset of a partition."""
        found = self._consumer.get_watermark_offsets(
            TopicPartition(self._topic, partition), timeout=KAFKA_TIMEOUT_S
        )
        if found is None:
            raise SourceError(f"alerts topic {self._topic!r}: partition {partition} did not answer")
        return int(found[0]), int(found[1])
