"""Sends events to Kafka as a real producer does: Avro in Confluent's framing, or JSON.

Used by `waxwing simulate --to kafka`, by the service tests and the benchmarks. What counts as sent
is what the brokers have acknowledged; `close` waits for that and tells.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from dataflows.settings import shown
from dataflows.sources.registry import registry_client
from features.batch import EventBatch
from features.encode import avro_bodies, confluent_header, json_bodies
from features.errors import SourceError
from features.events import event_type

__all__ = ["EventProducer", "Sent"]

PARTITIONS = 32
"""Partitions of a topic that does not exist yet."""

WAIT_S = 60.0
"""Longest wait for room in the queue or for the last acknowledgements; chosen: twice the time a
broker needs to come back after a restart."""

CONNECT_S = 5.0
"""Longest wait for the brokers to tell their topics; chosen: a person waits for the answer."""

_OPTIONS: dict[str, str | int | bool] = {
    "acks": "all",
    "enable.idempotence": True,  # a retry must not become a duplicate that nobody meant
    "linger.ms": 20,  # measured in DESIGN: 118-byte events at 100k/s
    "compression.type": "none",  # the encoder is the bottleneck, not the local network
    "queue.buffering.max.messages": 500_000,
    "queue.buffering.max.kbytes": 262_144,
    "message.max.bytes": 1_048_000,  # a 1 MB string must reach the dead letters, not stop here
    "message.timeout.ms": 60_000,
    "delivery.report.only.error": True,
}


@dataclass(slots=True)
class Sent:
    """What a producer has sent, by topic and in all."""

    by_topic: dict[str, int] = field(default_factory=dict)
    failed: int = 0

    @property
    def total(self) -> int:
        """Messages that were acknowledged, once everything is flushed."""
        return sum(self.by_topic.values()) - self.failed


@dataclass(slots=True)
class _Topic:
    """Where events of a type go and how they are written."""

    name: str
    partitions: int
    header: bytes = b""
    schema: dict[str, Any] | None = None


class EventProducer:
    """A Kafka producer of events.

    Parameters
    ----------
    brokers : bootstrap servers, comma separated
    encoding : `avro` (needs a registry) or `json`
    registry_url : Schema Registry with Confluent's API
    registry_options : further properties of its client: basic.auth.user.info, ssl.*
    topic_prefix : put before the topic names of the event types
    options : further librdkafka properties; they win over ours
    timestamps : `wall` leaves the message's timestamp to the client; `event` sets the event's time,
        so that a consumer can seek to an event time (mind the retention of old timestamps)

    Raises
    ------
    SourceError : broker or registry out of reach, messages that could not be delivered
    ConfigError : an address or options that the registry's client does not take
    """

    def __init__(
        self,
        brokers: str,
        *,
        encoding: Literal["avro", "json"] = "avro",
        registry_url: str = "",
        registry_options: Mapping[str, str] | None = None,
        topic_prefix: str = "",
        options: Mapping[str, str] | None = None,
        timestamps: Literal["wall", "event"] = "wall",
    ) -> None:
        self._brokers, self._encoding, self._prefix = brokers, encoding, topic_prefix
        self._timestamps = timestamps
        # librdkafka writes to stderr by itself; what matters is raised or told by `close`.
        self._common: dict[str, Any] = {
            "bootstrap.servers": brokers,
            "log_level": 2,
            "error_cb": self._on_error,
            **(options or {}),
        }
        self._sent = Sent()
        self._last_error = ""
        self._producer = Producer({**_OPTIONS, **self._common, "on_delivery": self._on_delivery})
        self._registry_url, self._registry_options = registry_url, dict(registry_options or {})
        self._registry: SchemaRegistryClient | None = None
        self._topics: dict[str, _Topic] = {}

    def open(self, event_types: Iterable[str]) -> None:
        """Create the topics that do not exist and register the schemas."""
        names = {name: self._prefix + event_type(name).topic for name in event_types}
        found = self._partitions(list(names.values()))
        for name, topic in names.items():
            self._topics[name] = _Topic(topic, found[topic])
            if self._encoding == "avro":
                from features.events.avro import avro_schema

                self.use_schema(name, avro_schema(name))

    def use_schema(self, name: str, schema: dict[str, Any]) -> int:
        """Write events of a type with this schema from now on; returns its id.

        Fields that events do not have are written with the schema's default.
        """
        topic = self._topics[name]
        if self._registry is None:
            self._registry = registry_client(self._registry_url, self._registry_options)
        try:
            schema_id = int(
                self._registry.register_schema(
                    f"{topic.name}-value", Schema(json.dumps(schema), schema_type="AVRO")
                )
            )
        except (
            Exception
        ) as error:  # the client raises its own, the transport's and requests' errors
            raise SourceError(
                f"schema registry {shown('registry_url', self._registry_url)}: cannot register the"
                f" schema of {topic.name!r}: {error}; check kafka_registry_url, or use"
                " kafka_format = 'json'"
            ) from error
        topic.schema, topic.header = schema, confluent_header(schema_id)
        return schema_id

    def encode(self, name: str, frame: pl.DataFrame) -> list[bytes]:
        """Messages of the rows, as `send` sends them."""
        topic = self._topics[name]
        if topic.schema is None:
            return json_bodies(frame)
        missing = [f for f in topic.schema["fields"] if f["name"] not in frame.columns]
        if missing:
            frame = frame.with_columns(pl.lit(f.get("default")).alias(f["name"]) for f in missing)
        return avro_bodies(topic.schema, frame, topic.header)

    def send(self, batch: EventBatch) -> int:
        """Queue the events of a batch, each to its partition; returns how many."""
        times = (batch.time_us // 1000).tolist() if self._timestamps == "event" else None
        messages = self.encode(batch.event_type, batch.frame)
        return self.send_raw(batch.event_type, messages, batch.partition.tolist(), times)

    def send_raw(
        self,
        name: str,
        messages: Sequence[bytes],
        partitions: Sequence[int],
        times_ms: Sequence[int] | None = None,
    ) -> int:
        """Queue messages as they are; waits where the queue is full."""
        topic = self._topics[name]
        produce, count = self._producer.produce, topic.partitions
        for i, message in enumerate(messages):
            keywords: dict[str, Any] = {"value": message, "partition": partitions[i] % count}
            if times_ms is not None:
                keywords["timestamp"] = times_ms[i]
            try:
                produce(topic.name, **keywords)
            except BufferError:
                self._produce_later(topic.name, keywords)
        self._producer.poll(0)
        self._sent.by_topic[topic.name] = self._sent.by_topic.get(topic.name, 0) + len(messages)
        return len(messages)

    def close(self) -> Sent:
        """Wait until everything is acknowledged and tell what was sent.

        Raises
        ------
        SourceError : messages that were not acknowledged, with the last reason
        """
        if self._registry is not None:
            self._registry.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._registry = None
        left = self._producer.flush(WAIT_S)
        self._sent.failed += left
        if self._sent.failed:
            raise SourceError(
                f"Kafka {self._brokers}: {self._sent.failed} of"
                f" {sum(self._sent.by_topic.values())} messages were not acknowledged within"
                f" {WAIT_S:.0f} s ({self._last_error or 'no answer'}); is the broker up?"
            )
        return self._sent

    def _on_delivery(self, error: KafkaError | None, _message: Message) -> None:
        """Count what the brokers refused."""
        if error is not None:
            self._sent.failed += 1
            self._last_error = str(error)

    def _on_error(self, error: KafkaError) -> None:
        """Remember what the client complains about."""
        self._last_error = str(error)

    def _produce_later(self, topic: str, keywords: dict[str, Any]) -> None:
        """Wait for room in the queue, bounded."""
        give_up = time.monotonic() + WAIT_S
        while time.monotonic() < give_up:
            self._producer.poll(0.05)
            try:
                self._producer.produce(topic, **keywords)
            except BufferError:
                continue
            return
        raise SourceError(
            f"Kafka {self._brokers}: the send queue stayed full for {WAIT_S:.0f} s"
            f" ({self._last_error or 'no answer'}); is the broker up?"
        )

    def _partitions(self, topics: list[str]) -> dict[str, int]:
        """Partitions of each topic, created first where it does not exist."""
        admin = AdminClient(self._common)
        try:
            known = admin.list_topics(timeout=CONNECT_S).topics
            new = [NewTopic(t, PARTITIONS, -1) for t in topics if t not in known]
            if new:
                for created in admin.create_topics(new, request_timeout=20.0).values():
                    try:
                        created.result()
                    except KafkaException as error:
                        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                            raise
                known = admin.list_topics(timeout=CONNECT_S).topics
        except KafkaException as error:
            raise SourceError(
                f"Kafka {self._brokers}: {error.args[0].str()}; check kafka_brokers, or write"
                " files: waxwing simulate --to parquet"
            ) from error
        return {t: len(known[t].partitions) if t in known else PARTITIONS for t in topics}
