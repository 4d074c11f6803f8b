"""Clients of Kafka as waxwing makes them: quiet, bounded in time, and plain about what is wrong.

librdkafka retries for ever and writes to stderr; a person who mistyped an address waits and learns
nothing. Here the first contact is bounded and its failure one sentence; later troubles are said
once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from dataflows.settings import Settings
from features.errors import ConfigError, SourceError

__all__ = [
    "CONNECT_S",
    "Troubles",
    "client_options",
    "ensure_topic",
    "make_client",
    "partitions_of",
]

CONNECT_S = 8.0
"""Longest wait for the first answer of a broker; chosen: a person waits for it, and a TLS handshake
over a slow line takes 2."""

TOPICS_SHOWN_MAX = 8
"""Names of existing topics in the message about a missing one. Chosen."""

C = TypeVar("C", Consumer, Producer, AdminClient)

_log = logging.getLogger(__name__)

_COMMON: dict[str, Any] = {
    "client.id": "waxwing",
    # Whatever matters comes through error_cb.
    "log_level": 0,
    "socket.keepalive.enable": True,
    # A broker that is back is found within a second; the default waits up to ten.
    "reconnect.backoff.max.ms": 1000,
}


class Troubles:
    """What a client complains about: the last word is kept, an outage is said once and its end too.

    Nothing is said before `aloud` is set: at the start a fault is raised, not logged.

    Parameters
    ----------
    brokers : for the messages
    """

    def __init__(self, brokers: str) -> None:
        self._brokers = brokers
        self.last = ""
        self.down = False
        self.aloud = False

    def __call__(self, error: KafkaError) -> None:
        """librdkafka's error callback; runs within a poll of the client."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self.last = str(error.str())
        elif self.aloud and not self.down:
            self.down = True
            _log.warning("Kafka %s: no broker answers (%s); waiting", self._brokers, self.last)

    def answered(self) -> None:
        """The brokers gave something: an outage is over."""
        if self.down:
            self.down = False
            _log.warning("Kafka %s: answers again", self._brokers)


def client_options(
    settings: Settings, troubles: Troubles, own: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """Configuration of a client: ours, then the user's kafka_options, then what must not change."""
    return {
        "bootstrap.servers": settings.kafka_brokers,
        **_COMMON,
        **own,
        **settings.kafka_options,
        "error_cb": troubles,
        **fixed,
    }


def make_client(kind: type[C], options: dict[str, Any]) -> C:
    """A client, without contact to a broker yet.

    Raises
    ------
    ConfigError : a property that librdkafka does not know or whose value it does not take
    """
    try:
        return kind(options)
    except (KafkaException, ValueError, TypeError) as error:
        said = error.args[0] if error.args else error
        text = said.str() if isinstance(said, KafkaError) else str(said)
        raise ConfigError(
            f"kafka_options: {text}; the properties are those of librdkafka's CONFIGURATION.md"
        ) from None


def partitions_of(
    client: Consumer | Producer | AdminClient,
    topics: Iterable[str],
    settings: Settings,
    troubles: Troubles,
    wait_s: float = CONNECT_S,
) -> dict[str, int]:
    """Partitions of each topic.

    Raises
    ------
    SourceError : no broker answers within `wait_s`, with what was heard and the cure
    ConfigError : every topic that does not exist
    """
    try:
        known = client.list_topics(timeout=wait_s).topics
    except KafkaException as error:
        client.poll(0)  # serves the error callback
        heard = troubles.last or error.args[0].str()
        raise SourceError(
            f"Kafka {settings.kafka_brokers}: no answer within {wait_s:.0f} s ({heard}); check"
            " kafka_brokers, and in kafka_options security.protocol, sasl.* and ssl.*"
        ) from None
    found = {t: len(known[t].partitions) for t in topics if t in known and not known[t].error}
    missing = [t for t in topics if t not in found]
    if missing:
        names = sorted(t for t in known if not t.startswith("_"))
        some = ", ".join(names[:TOPICS_SHOWN_MAX]) or "none"
        more = " and others" if len(names) > TOPICS_SHOWN_MAX else ""
        raise ConfigError(
            [
                f"Kafka {settings.kafka_brokers}: topic {t!r} does not exist or may not be read;"
                f" make it with `kafka-topics.sh --bootstrap-server {settings.kafka_brokers}"
                f" --create --topic {t} --partitions 32`, fill it with `waxwing simulate --to"
                f" kafka`, or set kafka_topic_prefix (there are: {some}{more})"
                for t in missing
            ]
        )
    return found


def ensure_topic(
    client: AdminClient,
    topic: str,
    settings: Settings,
    troubles: Troubles,
    partitions: int = -1,
    config: Mapping[str, str] | None = None,
) -> None:
    """Make a topic where it does not exist.

    Parameters
    ----------
    partitions, config : of one that is made; the broker's own defaults where they are not given

    Raises
    ------
    SourceError : no broker answers
    ConfigError : it neither exists nor can be made
    """
    with contextlib.suppress(ConfigError):
        partitions_of(client, [topic], settings, troubles)
        return
    new = NewTopic(topic, partitions, -1, config=dict(config or {}))
    try:
        client.create_topics([new], request_timeout=CONNECT_S)[topic].result(CONNECT_S + 1.0)
    except (KafkaException, TimeoutError) as error:
        reason = error.args[0] if error.args else error
        if isinstance(reason, KafkaError) and reason.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return
        said = reason.str() if isinstance(reason, KafkaError) else "no answer in time"
        raise ConfigError(
            f"Kafka {settings.kafka_brokers}: topic {topic!r} does not exist and cannot be made"
            f" ({said}); make it with `kafka-topics.sh --bootstrap-server {settings.kafka_brokers}"
            f" --create --topic {topic}{f' --partitions {partitions}' if partitions > 0 else ''}`"
        ) from None
