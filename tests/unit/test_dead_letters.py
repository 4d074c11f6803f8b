"""Dead letters are kept whole, once, and can be read by whoever comes to mend things."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from dataflows.settings import load
from dataflows.sources.base import DeadLetter
from dataflows.sources.dead_letters import (
    RAW_BYTES_MAX,
    DeadLetterLog,
    DeadLetterTopic,
    open_dead_letters,
)
from features.errors import SourceError, StateError


def letter(offset: int, raw: bytes = b"\x00\xff\x1b[31m", schema_id: int | None = 7) -> DeadLetter:
    """A letter like those of the decoder."""
    return DeadLetter(
        "not_avro", "amount: it ends\x1b[2J early é", "payment", schema_id, "payments", 3, offset,
        raw, 12,
    )  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    """The letters in a log."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[DeadLetterLog]:
    opened = DeadLetterLog(tmp_path / "state" / "dead_letters.jsonl")
    yield opened
    opened.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "dead_letters.jsonl"


def test_a_letter_stands_in_the_log_whole(log: DeadLetterLog, path: Path) -> None:
    log.write([letter(5), letter(6, b"", None)])
    first, second = lines(path)
    assert base64.b64decode(first.pop("raw")) == b"\x00\xff\x1b[31m"
    assert first == {
        "reason": "not_avro", "detail": "amount: it ends\x1b[2J early é", "event_type": "payment",
        "schema_id": 7, "topic": "payments", "partition": 3, "offset": 5, "round": 12,
    }  # fmt: skip
    assert second["schema_id"] is None and second["raw"] == ""
    assert b"\x1b" not in path.read_bytes(), "a terminal that shows the log must not obey it"


def test_a_resumed_run_writes_each_letter_once(tmp_path: Path) -> None:
    settings = load(None, state_dir=str(tmp_path))
    before = open_dead_letters(settings)
    before.truncate(0)
    before.write([letter(1), letter(2)])
    position = before.position()
    before.sync()
    before.write([letter(3)])  # after the manifest
    before.close()
    after = open_dead_letters(settings)
    after.truncate(position)
    after.write([letter(3), letter(4)])
    after.close()
    path = tmp_path / "dead_letters.jsonl"
    assert [found["offset"] for found in lines(path)] == [1, 2, 3, 4]
    assert path.stat().st_size == after.position()


def test_a_torn_letter_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "dead_letters.jsonl"
    log = DeadLetterLog(path)
    log.write([letter(1)])
    position = log.position()
    log.close()
    with path.open("ab") as file:
        file.write(b'{"reason": "not_')
    log = DeadLetterLog(path)
    log.truncate(position)
    log.write([letter(2)])
    log.close()
    assert [found["offset"] for found in lines(path)] == [1, 2]


def test_a_log_that_was_taken_away_begins_anew(log: DeadLetterLog, path: Path) -> None:
    log.write([letter(1)])
    with path.open("ab") as file:
        file.write(b'{"half')
    log.truncate(1_000_000)
    log.write([letter(2)])
    assert [found["offset"] for found in lines(path)] == [1, 2]
    os.truncate(path, 0)
    again = DeadLetterLog(path)
    again.truncate(1_000_000)
    assert again.position() == 0
    again.close()


def test_a_full_disk_is_said_with_the_cure() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full; run on Linux")
    log = DeadLetterLog(full)
    with pytest.raises(StateError, match="free space"):
        log.write([letter(1)])
    assert log.position() == 0
    log.close()


def test_a_log_that_cannot_be_opened_is_said_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder")
    with pytest.raises(StateError, match="make state_dir writable"):
        DeadLetterLog(tmp_path / "state" / "dead_letters.jsonl")


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    """Librdkafka's own mock broker; it lives as long as the client that holds it."""
    holder = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
    found = holder.list_topics(timeout=60).brokers.values()
    holder.list_topics("dead", timeout=60)  # it cannot create topics on request, only on sight
    yield ",".join(f"{b.host}:{b.port}" for b in found)
    holder.close()


def drain(brokers: str, topic: str, count: int) -> list[Message]:
    """`count` messages of a topic."""
    consumer = Consumer(
        {"bootstrap.servers": brokers, "group.id": "t", "enable.auto.commit": False, "log_level": 0}
    )
    partitions = list(consumer.list_topics(topic, timeout=60).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    found: list[Message] = []
    for _ in range(100):
        found += consumer.consume(count, timeout=0.1)
        if len(found) >= count:
            break
    consumer.close()
    return found


def test_a_letter_on_a_topic_is_its_raw_bytes_with_headers(brokers: str, tmp_path: Path) -> None:
    settings = load(None, state_dir=str(tmp_path), dead_letters_topic="dead", kafka_brokers=brokers)
    topic = open_dead_letters(settings)
    topic.truncate(topic.position())
    topic.write([letter(5), letter(6, b"", None), letter(7, b"x" * 1_100_000)])
    topic.sync()
    topic.close()
    found = {message.key(): message for message in drain(brokers, "dead", 3)}
    assert sorted(found) == [b"payments/3/5", b"payments/3/6", b"payments/3/7"]
    assert found[b"payments/3/5"].value() == b"\x00\xff\x1b[31m"
    headers = dict(found[b"payments/3/5"].headers() or [])
    assert headers == {
        "reason": b"not_avro", "detail": "amount: it ends\x1b[2J early é".encode(),
        "event_type": b"payment", "schema_id": b"7", "topic": b"payments", "partition": b"3",
        "offset": b"5", "round": b"12", "raw_bytes": b"7",
    }  # fmt: skip
    assert dict(found[b"payments/3/6"].headers() or [])["schema_id"] is None
    long = found[b"payments/3/7"]
    assert len(long.value() or b"") == RAW_BYTES_MAX
    assert dict(long.headers() or [])["raw_bytes"] == b"1100000"


def test_a_broker_that_is_away_is_said_with_the_cure() -> None:
    with pytest.raises(SourceError, match="check kafka_brokers"):
        DeadLetterTopic("localhost:1", "dead", {})
