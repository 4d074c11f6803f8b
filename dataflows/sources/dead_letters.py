"""Where records go that are no events, raw bytes included: a log beside the state, or a topic.

The commit step writes a round's dead letters before the round is done. The log can be cut back to
the manifest's position, so that a replay after a crash writes each letter once; a topic cannot, so
there each letter carries a key by which its reader knows a second copy.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from dataflows.settings import Settings
from dataflows.sources.base import DeadLetter
from dataflows.state.journal import fsync_folder
from features.errors import SourceError, StateError

__all__ = ["DeadLetterLog", "DeadLetterTopic", "DeadLetterWriter", "open_dead_letters"]

CONNECT_S = 5.0
"""Longest wait for the brokers to tell their topics; chosen: a person waits for the answer."""

WAIT_S = 60.0
"""Longest wait for acknowledgements; chosen: twice the time a broker needs after a restart."""

RAW_BYTES_MAX = 1_040_000
"""Longest raw value on a topic: a broker takes 1,048,588 bytes by default, the rest is for headers.
A longer one is cut; its header `raw_bytes` tells the whole length."""

QUEUE_MAX = 10_000
"""Letters handed to the client before it must have acknowledged them; chosen: 1 KB each, 10 MB."""


class DeadLetterWriter(Protocol):
    """A place for dead letters. Those of a round are written together, in order."""

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Write letters; they survive the death of this process once it has come back."""
        ...

    def truncate(self, position: int) -> None:
        """Forget what was written after `position`: the replay writes it again."""
        ...

    def position(self) -> int:
        """Where the next letter goes; the manifest keeps it."""
        ...

    def sync(self) -> None:
        """Come back when everything written so far survives the loss of power."""
        ...

    def close(self) -> None:
        """Let go of file and connection."""
        ...


def open_dead_letters(settings: Settings) -> DeadLetterWriter:
    """The writer the settings ask for: `dead_letters_topic`, or dead_letters.jsonl in state_dir.

    Raises
    ------
    StateError : the log cannot be opened
    SourceError : the broker cannot be reached, or the topic neither exists nor can be made
    """
    if settings.dead_letters_topic is None:
        return DeadLetterLog(settings.state_dir / "dead_letters.jsonl")
    return DeadLetterTopic(
        settings.kafka_brokers, settings.dead_letters_topic, settings.kafka_options
    )


def _line(letter: DeadLetter) -> bytes:
    """A letter as a line of JSON; control characters stand escaped, raw bytes in base64."""
    return (
        json.dumps(
            {
                "reason": letter.reason,
                "detail": letter.detail,
                "event_type": letter.event_type,
                "schema_id": letter.schema_id,
                "topic": letter.topic,
                "partition": letter.partition,
                "offset": letter.offset,
                "round": letter.round,
                "raw": base64.b64encode(letter.raw).decode("ascii"),
            }
        ).encode("ascii")
        + b"\n"
    )


class DeadLetterLog:
    """Dead letters as lines of JSON in a file of their own.

    Parameters
    ----------
    path : made where it is missing, with its folder
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            fsync_folder(path.parent)
            self._size = self._file.tell()
        except OSError as error:
            raise StateError(
                f"dead letters {path}: cannot be opened: {error.strerror}; make state_dir writable"
            ) from error

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Append letters; the operating system has them when this comes back.

        Raises
        ------
        StateError : the disk refused them (full, gone); none of them is left in the file
        """
        rest = memoryview(b"".join(map(_line, letters)))
        total = len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # a disk that is gone cannot be cut back either
                self._file.truncate(self._size)
            raise StateError(
                f"dead letters {self._path}: cannot be written: {error.strerror}; free space or"
                " mend the disk and start again, nothing is lost"
            ) from error
        self._size += total

    def truncate(self, position: int) -> None:
        """Cut the log back to `position` bytes.

        A log that is shorter was taken away by a person: what is left of it is kept, up to its last
        whole line.
        """
        if position > self._size:
            position = self._path.read_bytes().rfind(b"\n") + 1
        self._file.truncate(position)
        self._size = position

    def position(self) -> int:
        """Bytes written."""
        return self._size

    def sync(self) -> None:
        """Wait until the disk has it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class DeadLetterTopic:
    """Dead letters as messages: the raw bytes as value, everything else as headers.

    The key is `topic/partition/offset` of the record, so that a second copy after a crash is known.

    Parameters
    ----------
    brokers : bootstrap servers, comma separated
    topic : made where it does not exist
    options : further librdkafka properties; they win over ours
    """

    def __init__(self, brokers: str, topic: str, options: dict[str, str]) -> None:
        from confluent_kafka import Producer

        self._brokers, self._topic = brokers, topic
        self._error = ""
        common: dict[str, Any] = {
            "bootstrap.servers": brokers, "log_level": 2, "error_cb": self._on_error, **options,
        }  # fmt: skip
        _make_topic(brokers, topic, common)
        self._producer = Producer(
            {
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 5,  # a round waits for it
                "message.max.bytes": 1_048_588,
                "message.timeout.ms": int(WAIT_S * 1000),
                "queue.buffering.max.messages": QUEUE_MAX,
                "on_delivery": self._on_delivery,
                **common,
            }
        )

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Send letters; all brokers in sync have them when this comes back.

        Raises
        ------
        SourceError : not acknowledged in time, or refused
        """
        self._error = ""
        for start in range(0, len(letters), QUEUE_MAX):
            for letter in letters[start : start + QUEUE_MAX]:
                self._producer.produce(
                    self._topic,
                    value=letter.raw[:RAW_BYTES_MAX],
                    key=f"{letter.topic}/{letter.partition}/{letter.offset}",
                    headers=_headers(letter),
                )
            left = self._producer.flush(WAIT_S)
            if left or self._error:
                raise SourceError(
                    f"Kafka {self._brokers}: dead letters were not acknowledged by topic"
                    f" {self._topic!r} within {WAIT_S:.0f} s ({self._error or 'no answer'}); is the"
                    " broker up? without dead_letters_topic they go to a file in state_dir"
                )

    def truncate(self, position: int) -> None:
        """What a topic has, it keeps."""

    def position(self) -> int:
        """Nothing to cut back to."""
        return 0

    def sync(self) -> None:
        """`write` has waited for the brokers already."""

    def close(self) -> None:
        """Let the client go; nothing is waiting in it."""
        self._producer.flush(CONNECT_S)

    def _on_delivery(self, error: Any, _message: Any) -> None:
        """Remember what the brokers refused."""
        if error is not None:
            self._error = error.str()

    def _on_error(self, error: Any) -> None:
        """Librdkafka mends connections by itself and says so; what matters comes per letter."""


def _headers(letter: DeadLetter) -> list[tuple[str, str | bytes | None]]:
    """All of a letter but its raw bytes."""
    return [
        ("reason", letter.reason.encode()),
        ("detail", letter.detail.encode("utf-8", "backslashreplace")),
        ("event_type", letter.event_type.encode()),
        ("schema_id", None if letter.schema_id is None else str(letter.schema_id).encode()),
        ("topic", letter.topic.encode()),
        ("partition", str(letter.partition).encode()),
        ("offset", str(letter.offset).encode()),
        ("round", str(letter.round).encode()),
        ("raw_bytes", str(len(letter.raw)).encode()),
    ]


def _make_topic(brokers: str, topic: str, common: dict[str, Any]) -> None:
    """See that the topic is there."""
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    try:
        admin = AdminClient(common)
        if topic in admin.list_topics(timeout=CONNECT_S).topics:
            return
        (made,) = admin.create_topics([NewTopic(topic, 1, -1)], request_timeout=20.0).values()
        made.result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return
        raise SourceError(
            f"Kafka {brokers}: topic {topic!r} for dead letters cannot be had:"
            f" {error.args[0].str()}; check kafka_brokers, create the topic, or leave"
            " dead_letters_topic out: they then go to a file in state_dir"
        ) from error
