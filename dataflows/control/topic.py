"""Control records of a Kafka topic: those who run many flows say a thing once, from anywhere.

One partition is the order in which people spoke. Where there are several, `send_record` keeps what
is said of one thing in one partition (its key), and a round takes them by (partition, offset). No
round waits for a broker: one that is away leaves in force what is. A replay never comes here, the
journal has the records.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from dataflows.control.records import READ_BYTES_MAX, Fault, Names, read_line
from dataflows.settings import Settings
from dataflows.sources.brokers import (
    CONNECT_S,
    Troubles,
    client_options,
    make_client,
    partitions_of,
)
from features.errors import ConfigError, SinkError, SourceError

__all__ = ["ControlTopic", "send_record"]

RECORDS_MAX = 1_000
"""Most messages taken in one round; chosen: far more than people and scripts say in 100 ms."""

FIRST_S = 10.0
"""Longest wait, before the first round alone, for what the topic holds already. Chosen: twice what
a broker may take for an answer, since what is not there then is in force a round later."""

ANSWER_S = 2.0
"""Longest wait for partitions where a journal knows some already, and for offsets that are left
where wanted ones are gone. Chosen: it holds up one round, not the flow."""

ACKED_S = 15.0
"""Longest wait for the acknowledgement of a record; a person waits for it. Chosen."""

CLOSE_S = 5.0
"""Longest wait for the client to end; a broker that hangs must not hang the end of a process."""

_OWN: dict[str, str | int | bool] = {
    # A record is answered at once (1 byte is enough); without any, one question in half a second.
    "fetch.wait.max.ms": 500,
    "fetch.min.bytes": 1,
    # What is held beside a round; records are small and few.
    "queued.max.messages.kbytes": 2_048,
    "fetch.message.max.bytes": READ_BYTES_MAX,
    "isolation.level": "read_committed",
    "allow.auto.create.topics": False,
}

_FIXED: dict[str, str | bool] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    # A wanted offset that is gone must be noticed, not silently replaced.
    "auto.offset.reset": "error",
}

_log = logging.getLogger(__name__)


class ControlTopic:
    """Reads `control_topic` from its beginning, or from where the journal stands.

    Parameters
    ----------
    settings : `control_topic`, and the `kafka_*` settings of the connection
    names : what a record may speak of; None lets every name pass
    """

    setting = "control_topic"
    """What names the topic, for messages."""

    def __init__(self, settings: Settings, names: Names | None = None) -> None:
        if settings.control_topic is None:
            raise ConfigError(f"{self.setting} is not set; name the topic")
        self.origin = settings.control_topic
        self._settings = settings
        self._names = names
        self._troubles = Troubles(settings.kafka_brokers)
        self._at: dict[int, int] = {}
        self._consumer: Consumer | None = None
        self._back: deque[Message] = deque()
        self._behind: set[int] = set()
        self._said: set[int] = set()

    @property
    def position(self) -> dict[str, Any]:
        """The next offset to take of each partition."""
        return {"topic": self.origin, "at": {str(p): offset for p, offset in self._at.items()}}

    def seek(self, position: Any) -> None:
        """Stand at a position; that of a file, or of another topic, is the beginning."""
        same = isinstance(position, dict) and position.get("topic") == self.origin
        self._at = {int(p): int(o) for p, o in position["at"].items()} if same else {}

    def open(self) -> None:
        """Find the partitions and begin to fetch; a flow that has read before needs no answer.

        Raises
        ------
        ConfigError : the topic does not exist
        SourceError : no broker answers, and no journal knows the topic's partitions
        """
        if self._consumer is not None:
            return
        fixed = {**_FIXED, "group.id": self._settings.kafka_group}
        consumer = make_client(
            Consumer, client_options(self._settings, self._troubles, _OWN, fixed)
        )
        try:
            wait_s = ANSWER_S if self._at else CONNECT_S
            told = (self._settings, self._troubles, wait_s, self.setting)
            for p in range(_partitions(consumer, *told)):
                self._at.setdefault(p, 0)
        except SourceError as error:
            if not self._at:
                consumer.close()
                raise
            _log.warning(
                "%s %r: %s; going on without it until then", self.setting, self.origin, error
            )
            self._troubles.down = True
        except BaseException:
            consumer.close()
            raise
        self._consumer = consumer
        self._behind = set() if self._troubles.down else set(self._at)
        self._assign(consumer)
        self._troubles.aloud = True

    def take(self) -> tuple[list[dict[str, Any]], list[Fault]]:
        """New records by (partition, offset), and messages that are none; does not wait.

        The first call alone waits, FIRST_S at most, until it has what the topic held when it began:
        what was said before the flow is in force from its first round on.
        """
        if self._consumer is None:
            self.open()
        if self._consumer is None:  # `open` has set it or raised
            return [], []
        messages = self._arrived(self._consumer, 0.0)
        give_up = time.monotonic() + FIRST_S
        while self._behind and not self._troubles.down and time.monotonic() < give_up:
            if _size(messages) >= READ_BYTES_MAX or len(messages) >= RECORDS_MAX:
                break
            messages += self._arrived(self._consumer, 0.05)
        else:
            self._behind = set()
        messages.sort(key=lambda m: (m.partition() or 0, m.offset() or 0))
        return self._read(messages)

    def close(self) -> None:
        """Let go of the connection."""
        if self._consumer is not None:
            closing = threading.Thread(target=self._consumer.close, daemon=True)
            closing.start()
            closing.join(CLOSE_S)
            self._consumer = None

    def _assign(self, consumer: Consumer) -> None:
        """Fetch from where we stand."""
        consumer.assign([TopicPartition(self.origin, p, at) for p, at in self._at.items()])

    def _arrived(self, consumer: Consumer, timeout_s: float) -> list[Message]:
        """Messages kept from the round before, or new ones; errors are dealt with."""
        if self._back:
            kept, self._back = list(self._back), deque()
            return kept
        got = consumer.consume(RECORDS_MAX, timeout=timeout_s)
        messages = [m for m in got if m.error() is None]
        for message in got:
            if message.error() is not None:
                self._mend(consumer, message)
        if messages:
            self._troubles.answered()
        return messages

    def _read(self, messages: list[Message]) -> tuple[list[dict[str, Any]], list[Fault]]:
        """Records and faults of messages in order; what is beyond a round's maximum is kept."""
        records: list[dict[str, Any]] = []
        faults: list[Fault] = []
        taken = 0
        for i, message in enumerate(messages):
            p, offset = message.partition() or 0, message.offset() or 0
            if offset < self._at[p]:
                continue
            raw = message.value() or b""
            taken += len(raw)
            if i and (taken > READ_BYTES_MAX or i >= RECORDS_MAX):
                self._back.extend(messages[i:])
                break
            found = self._read_message(raw, offset, p)
            if isinstance(found, Fault):
                faults.append(found)
            elif found is not None:
                records.append(found)
            self._at[p] = offset + 1
        return records, faults

    def _read_message(self, raw: bytes, at: int, partition: int) -> dict[str, Any] | Fault | None:
        """As of `read_line`."""
        return read_line(raw, at, partition, self._names)

    def _mend(self, consumer: Consumer, message: Message) -> None:
        """Deal with an error of a partition: an end, a gap, a topic that is gone."""
        error, p = message.error(), message.partition()
        if error is None or p is None:
            return
        if error.code() == KafkaError._PARTITION_EOF:
            self._behind.discard(p)
            self._troubles.answered()
        elif error.code() == KafkaError._AUTO_OFFSET_RESET and p in self._at:
            self._skip(consumer, p)
        else:
            self._troubles.last = str(error.str())
            if error.code() not in self._said:
                self._said.add(error.code())
                _log.warning(
                    "%s %r partition %d: %s; what is in force stays in force",
                    self.setting, self.origin, p, error.str(),
                )  # fmt: skip

    def _skip(self, consumer: Consumer, p: int) -> None:
        """Go on where offsets are gone: at the first that is left, or at the beginning of a topic
        that was made anew, as with a file that has become shorter."""
        at = self._at[p]
        try:
            low, high = consumer.get_watermark_offsets(
                TopicPartition(self.origin, p), timeout=ANSWER_S, cached=False
            )
        except KafkaException as error:
            self._troubles.last = str(error.args[0].str())
            low, high = at, at  # tried again from where we stand
        if at > high:
            _log.warning(
                "%s %r partition %d ends at %d, %d were read: it was made anew, and is read from"
                " its beginning",
                self.setting, self.origin, p, high, at,
            )  # fmt: skip
            self._at[p] = low
        elif at < low:
            if at:
                _log.warning(
                    "%s %r partition %d: offsets %d to %d were deleted before they were read;"
                    " going on at %d; lengthen retention.ms",
                    self.setting, self.origin, p, at, low - 1, low,
                )  # fmt: skip
            self._at[p] = low
        self._assign(consumer)


def send_record(settings: Settings, record: Mapping[str, Any]) -> str:
    """Write a record to `control_topic`; all replicas have it when this comes back.

    Its key names what it speaks of: what is said of one thing stays in order whatever the number of
    partitions, and a compacted topic keeps the last word on each.

    Returns
    -------
    where it stands: topic, partition, offset

    Raises
    ------
    ConfigError : the topic does not exist
    SourceError : no broker answers
    SinkError : the brokers have not acknowledged it
    """
    topic = settings.control_topic or ""
    troubles = Troubles(settings.kafka_brokers)
    own = {"message.timeout.ms": int(ACKED_S * 1000), "linger.ms": 0}
    fixed = {"acks": "all", "enable.idempotence": True}
    producer = make_client(Producer, client_options(settings, troubles, own, fixed))
    try:
        _partitions(producer, settings, troubles, CONNECT_S)
        told: list[tuple[KafkaError | None, Message]] = []
        try:
            producer.produce(
                topic,
                key=_key(record).encode("utf-8", "replace"),
                value=json.dumps(record).encode(),
                on_delivery=lambda error, message: told.append((error, message)),
            )
            producer.flush(ACKED_S + 1.0)
        except (BufferError, KafkaException) as error:
            raise SinkError(_not_acked(settings, str(error))) from None
        if not told:
            raise SinkError(_not_acked(settings, troubles.last or "no answer"))
        refused, message = told[0]
        if refused is not None:
            raise SinkError(_not_acked(settings, refused.str()))
        return f"topic {topic} partition {message.partition()} offset {message.offset()}"
    finally:
        producer.purge()


def _not_acked(settings: Settings, said: str) -> str:
    """What failed, and the cure."""
    return (
        f"control topic {settings.control_topic!r} on {settings.kafka_brokers}: the record was not"
        f" acknowledged ({said}); bring the broker back and say it again, twice does no harm"
    )


def _key(record: Mapping[str, Any]) -> str:
    """What a record speaks of; bundles and rollbacks share one, since their order counts."""
    if record["kind"] in ("bundle", "rollback"):
        return "bundle"
    names = ("kind", "anomaly_type", "detector", "entity_type", "entity", "event_type", "event_id")
    return " ".join(str(record[name]) for name in names if name in record)


def _partitions(
    client: Consumer | Producer,
    settings: Settings,
    troubles: Troubles,
    wait_s: float,
    setting: str = ControlTopic.setting,
) -> int:
    """Partitions of the control topic, or of another that a setting names.

    Raises
    ------
    ConfigError : it does not exist
    SourceError : no broker answers within `wait_s`
    """
    topic = settings.control_topic or ""
    # Of control records the last word on each thing is enough; every label counts.
    policy = "compact" if setting == ControlTopic.setting else "delete"
    try:
        return partitions_of(client, [topic], settings, troubles, wait_s)[topic]
    except ConfigError:
        raise ConfigError(
            f"Kafka {settings.kafka_brokers}: {setting} {topic!r} does not exist or may not be"
            f" read; make it with `kafka-topics.sh --bootstrap-server {settings.kafka_brokers}"
            f" --create --topic {topic} --partitions 1"
            f" --config cleanup.policy={policy}`, or leave the setting out to use"
            f" {setting.replace('topic', 'file')}"
        ) from None


def _size(messages: list[Message]) -> int:
    """Bytes of the messages' values."""
    return sum(len(m.value() or b"") for m in messages)
