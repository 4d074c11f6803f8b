"""What every source gives: events as columns, the ones it had to refuse, and where it stands.

A lane reader takes what has arrived and says how to find it again. It decides no order and keeps no
journal: `dataflows.sources.rounds` does both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from features.batch import EventBatch

__all__ = ["ALL_COME", "Blind", "DeadLetter", "Gap", "LaneReader", "Taken"]

ALL_COME = 1 << 62
"""Later than any time: a stream without a backlog has come as far as there is."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that did not decode or broke the contract of its event type.

    Parameters
    ----------
    reason : one word: `not_avro`, `unknown_schema`, `out_of_range`, `time_future`, ...
    detail : a sentence: field, expected, got
    event_type : what its topic or file should hold
    schema_id : of Confluent's framing, None where there is none
    topic : Kafka topic, path of a file
    partition, offset : place in it; a file has partition 0 and counts rows
    raw : the bytes as they came
    round : the round it was read in; set by the lane
    """

    reason: str
    detail: str
    event_type: str
    schema_id: int | None
    topic: str
    partition: int
    offset: int
    raw: bytes
    round: int = 0


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that the source no longer had when they were to be read.

    Parameters
    ----------
    topic, partition : where
    first, last : their first and last offset
    """

    topic: str
    partition: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1


@dataclass(slots=True)
class Taken:
    """What a reader took in one go.

    Parameters
    ----------
    batches : event type -> events whose contract holds; their order is not yet fixed
    rejects : records that are no events
    positions : where the reader stands now, JSON-able; `seek` and `retake` understand it
    received : records read: events and rejects together
    eof : nothing will ever come after it
    schemas : schema id -> Avro schema (JSON text) met for the first time: the world's answer, so it
        is journaled before it is used again
    gaps : records that were to be read and are gone
    waiting : records that have come and wait for the world to answer (a schema's body)
    cut_time_us : event clock of the reader: how far the stream has come (event time of a simulator
        or a file, the wall clock of Kafka), int64 microseconds UTC
    come_us : event time the stream had come to before these events, where `cut_time_us` does not
        say so; ALL_COME where nothing is behind. What was said later than that is not yet heard
    """

    batches: dict[str, EventBatch]
    rejects: list[DeadLetter]
    positions: dict[str, Any]
    received: int
    eof: bool = False
    schemas: Mapping[str, str] = field(default_factory=dict)
    cut_time_us: int = 0
    gaps: tuple[Gap, ...] = ()
    waiting: int = 0
    come_us: int | None = None


class LaneReader(Protocol):
    """One lane of a source: a fixed set of partitions, a file, the simulator."""

    unpaced: bool
    """Whether the next round may be cut at once: a file is read as fast as the flow takes it."""

    def seek(self, positions: dict[str, Any]) -> None:
        """Stand at journaled positions; empty ones leave the start where the settings put it."""
        ...

    def take(self, rows_max: int) -> Taken:
        """What has arrived since the last call, at most about `rows_max` records; no long wait."""
        ...

    def retake(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        cut_time_us: int,
        schemas: dict[str, str],
    ) -> Taken:
        """Exactly what was taken between two journaled positions, and stand after it.

        Raises
        ------
        SourceError : the source no longer has it
        """
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


class Blind:
    """A reader whose events do not carry their labels, for those who learn without them."""

    unpaced = True

    def __init__(self, reader: LaneReader) -> None:
        self._reader = reader

    def seek(self, positions: dict[str, Any]) -> None:
        """As the reader."""
        self._reader.seek(positions)

    def take(self, rows_max: int) -> Taken:
        """As the reader, without labels."""
        return self._without(self._reader.take(rows_max))

    def retake(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        cut_time_us: int,
        schemas: dict[str, str],
    ) -> Taken:
        """As the reader, without labels."""
        return self._without(self._reader.retake(before, after, cut_time_us, schemas))

    def close(self) -> None:
        """As the reader."""
        self._reader.close()

    @staticmethod
    def _without(taken: Taken) -> Taken:
        """What was taken, without labels."""
        bare = {name: replace(batch, truth=None) for name, batch in taken.batches.items()}
        return replace(taken, batches=bare)
