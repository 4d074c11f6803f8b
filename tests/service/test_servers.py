"""The servers of the service tests are what they claim to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis
from confluent_kafka import Producer
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError

if TYPE_CHECKING:
    from tests.service.servers import Kafka, Redis, Registry


def test_the_broker_keeps_what_it_acknowledged(kafka: Kafka, topic_prefix: str) -> None:
    topic = kafka.create_topic(topic_prefix + "kept")
    producer = Producer({"bootstrap.servers": kafka.brokers, "acks": "all"})
    for i in range(320):
        producer.produce(topic, value=str(i).encode(), partition=i % 32)
    assert producer.flush(120) == 0
    ends = kafka.end_offsets([topic])[topic]
    assert ends == dict.fromkeys(range(32), 10)
    assert kafka.total([topic]) == 320
    assert sorted(int(value or b"") for _, value in kafka.read(topic)) == list(range(320))
    kafka.delete_records(topic, {3: 4})
    assert kafka.start_offsets([topic])[topic][3] == 4
    assert kafka.total([topic]) == 316


def test_the_registry_speaks_confluents_api_and_keeps_compatibility(
    registry: Registry, topic_prefix: str
) -> None:
    text = '{"type": "record", "name": "A", "fields": [{"name": "a", "type": "string"}]}'
    with SchemaRegistryClient({"url": registry.url}) as client:
        schema_id = client.register_schema(topic_prefix + "a-value", Schema(text, "AVRO"))
        assert '"a"' in str(client.get_schema(schema_id).schema_str)
        assert topic_prefix + "a-value" in client.get_subjects()
        client.set_compatibility(topic_prefix + "a-value", "BACKWARD")
        with pytest.raises(SchemaRegistryError):
            client.register_schema(
                topic_prefix + "a-value", Schema(text.replace('"string"', '"long"'), "AVRO")
            )


def test_redis_keeps_a_hash(redis_server: Redis) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.ping()
        client.hset("h", mapping={"a": "1"})
        assert client.hgetall("h") == {b"a": b"1"}
        client.delete("h")
