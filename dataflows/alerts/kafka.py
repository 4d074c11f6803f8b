"""Alerts on a Kafka topic: key is the alert's id, value its JSON, acknowledged by all replicas.

After a crash the same alerts may come again under the same keys; a compacted topic keeps one of
each.
"""

from __future__ import annotations

import time
from typing import ClassVar

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient

from dataflows.alerts.base import Alert
from dataflows.settings import Settings
from dataflows.sources.brokers import Troubles, client_options, ensure_topic, make_client
from features.errors import ConfigError, SinkError, SourceError

__all__ = ["Sink"]

WAIT_S = 60.0
"""Longest wait for acknowledgements; chosen: twice the time a broker needs after a restart."""

QUEUE_MAX = 10_000
"""Alerts handed to the client before it must have acknowledged them; chosen: 2 kB each, 20 MB."""

_OWN: dict[str, str | int] = {
    "linger.ms": 0,  # a round waits for it, and has few alerts
    "compression.type": "zstd",
    "message.timeout.ms": int(WAIT_S * 1000),
    "queue.buffering.max.messages": QUEUE_MAX,
}


class Sink:
    """Sends to `alerts_topic`, which is made where it does not exist."""

    name: ClassVar[str] = "kafka"

    def __init__(self, settings: Settings) -> None:
        self._brokers, self._topic = settings.kafka_brokers, settings.alerts_topic
        self._troubles = Troubles(settings.kafka_brokers)
        self._failed: KafkaError | None = None
        fixed = {
            "acks": "all",
            "enable.idempotence": True,
            "on_delivery": self._on_delivery,
        }
        admin = make_client(AdminClient, client_options(settings, self._troubles, {}, {}))
        try:
            ensure_topic(admin, self._topic, settings, self._troubles)
        except (SourceError, ConfigError) as error:
            raise ConfigError(
                [f"sink 'kafka': {fault}" for fault in getattr(error, "faults", [str(error)])]
            ) from None
        self._producer = make_client(
            Producer, client_options(settings, self._troubles, _OWN, fixed)
        )
        self._troubles.aloud = True

    def write(self, alerts: list[Alert]) -> None:
        """Send alerts in order; all brokers in sync have them when this comes back.

        Raises
        ------
        SinkError : not acknowledged within WAIT_S, or refused
        """
        for begin in range(0, len(alerts), QUEUE_MAX):
            self._send(alerts[begin : begin + QUEUE_MAX])

    def close(self) -> None:
        """Nothing is held back: `write` has waited for everything."""
        self._producer.flush(1.0)

    def _send(self, alerts: list[Alert]) -> None:
        """Send what fits the queue and wait for it."""
        self._failed = None
        try:
            for alert in alerts:
                self._producer.produce(
                    self._topic, key=alert.id.encode(), value=alert.to_json().encode()
                )
        except (BufferError, KafkaException) as error:
            raise SinkError(self._fault(len(alerts), str(error))) from None
        give_up = time.monotonic() + WAIT_S
        while self._failed is None and (left := len(self._producer)):
            self._producer.poll(0.1)
            if time.monotonic() > give_up:
                raise SinkError(self._fault(left, self._troubles.last or "no answer"))
        if self._failed is not None:
            raise SinkError(self._fault(len(alerts), self._failed.str()))
        self._troubles.answered()

    def _on_delivery(self, error: KafkaError | None, _message: Message) -> None:
        """Note what the brokers refused."""
        if error is not None:
            self._failed = error

    def _fault(self, count: int, said: str) -> str:
        """What failed, and the cure."""
        return (
            f"sink 'kafka': {count} alerts for topic {self._topic!r} on {self._brokers} were not"
            f" acknowledged ({said}); bring the broker back and start again, the same alerts"
            " are sent once more under the same keys"
        )
