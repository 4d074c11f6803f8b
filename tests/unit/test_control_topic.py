"""The control topic without a Java, on librdkafka's own broker: in order, bounded, no waiting."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from dataflows.control import topic as module
from dataflows.control.labels import open_labels
from dataflows.control.records import LINE_BYTES_MAX, Fault, Names
from dataflows.control.topic import ControlTopic, send_record
from dataflows.settings import Settings, load
from dataflows.sources.base import ALL_COME
from dataflows.sources.simulator import time_us_of
from features.errors import ConfigError, SourceError

WAIT_S = 120.0
TOPIC = "control"

STAGE: dict[str, Any] = {"kind": "stage", "detector": "zscore", "stage": "shadow"}
MUTE: dict[str, Any] = {"kind": "mute", "entity_type": "card", "entity": "c1", "until_us": 50}


@pytest.fixture
def producer() -> Iterator[Producer]:
    """librdkafka's own broker in this process (4 partitions a topic), and a client of it."""
    holder = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
    holder.list_topics(TOPIC, timeout=60)  # it makes topics on first sight
    yield holder
    holder.close()


@pytest.fixture
def settings(producer: Producer, tmp_path: Path) -> Settings:
    """Settings of a flow with a control topic."""
    found = producer.list_topics(timeout=60).brokers.values()
    brokers = ",".join(f"{b.host}:{b.port}" for b in found)
    return load(None, {}, kafka_brokers=brokers, control_topic=TOPIC, state_dir=tmp_path)


@pytest.fixture
def opened(settings: Settings) -> Iterator[Callable[..., ControlTopic]]:
    """Opens readers and closes them at the end."""
    readers: list[ControlTopic] = []

    def open_topic(position: Any = None, names: Names | None = None) -> ControlTopic:
        reader = ControlTopic(settings, names)
        reader.seek(position)
        readers.append(reader)
        return reader

    yield open_topic
    for reader in readers:
        reader.close()


def say(producer: Producer, *values: dict[str, Any] | bytes | None, partition: int = 0) -> None:
    """Write records and other things, and wait until they are there."""
    for value in values:
        body = json.dumps(value).encode() if isinstance(value, dict) else value
        producer.produce(TOPIC, body, partition=partition)
    assert producer.flush(WAIT_S) == 0


def take(reader: ControlTopic, count: int) -> tuple[list[dict[str, Any]], list[Fault]]:
    """Takes until so many records and faults have come."""
    records: list[dict[str, Any]] = []
    faults: list[Fault] = []
    give_up = time.monotonic() + WAIT_S
    while len(records) + len(faults) < count:
        assert time.monotonic() < give_up, (records, faults)
        more, bad = reader.take()
        records += more
        faults += bad
    return records, faults


def numbered(count: int, begin: int = 0) -> list[dict[str, Any]]:
    """Mutes that can be told apart."""
    return [{**MUTE, "until_us": i} for i in range(begin, begin + count)]


def test_what_was_said_before_the_flow_is_there_at_the_first_take(
    producer: Producer, opened: Callable[..., ControlTopic]
) -> None:
    say(producer, *numbered(300))
    assert opened().take() == (numbered(300), [])


def test_several_partitions_are_taken_in_their_order(
    producer: Producer, opened: Callable[..., ControlTopic]
) -> None:
    for p in (2, 0, 1):
        say(producer, *numbered(3, 10 * p), partition=p)
    reader = opened()
    assert reader.take()[0] == [m for p in range(3) for m in numbered(3, 10 * p)]
    assert reader.position == {"topic": TOPIC, "at": {"0": 3, "1": 3, "2": 3, "3": 0}}


def test_a_reader_goes_on_at_a_journaled_position(
    producer: Producer, opened: Callable[..., ControlTopic]
) -> None:
    say(producer, *numbered(5))
    first = opened()
    assert take(first, 5)[0] == numbered(5)
    say(producer, *numbered(2, 5))
    position = json.loads(json.dumps(first.position))
    assert take(opened(position), 2)[0] == numbered(2, 5)
    for other in (None, 17, {"topic": "another", "at": {"0": 5}}):
        assert take(opened(other), 7)[0] == numbered(7), "the position of something else"


def test_what_is_no_record_is_told_with_its_place(
    producer: Producer, opened: Callable[..., ControlTopic]
) -> None:
    long = b"x" * (LINE_BYTES_MAX + 1)
    say(producer, b"oops", STAGE, None, b" \n", long, b"\xff\xfe", partition=3)
    names = Names(None, ("iqr", "transformer"), ("card",))
    records, faults = take(opened(None, names), 4)
    assert records == []
    assert [(f.partition, f.offset) for f in faults] == [(3, 0), (3, 1), (3, 4), (3, 5)]
    assert [f.raw for f in faults] == [b"oops", json.dumps(STAGE).encode(), long[:-1], b"\xff\xfe"]
    assert "unknown detector 'zscore'; there are iqr, transformer" in faults[1].reason
    assert f"at most {LINE_BYTES_MAX} bytes, got {LINE_BYTES_MAX + 1}" in faults[2].reason


def test_labels_of_a_topic_of_their_own_become_records(
    producer: Producer, settings: Settings
) -> None:
    said = {"event_id": "p1", "verdict": "fraud", "time": "2026-03-09T08:00:00Z"}
    say(producer, said | {"event_type": "payment"}, said, b"oops", partition=2)
    other = settings.model_copy(update={"control_topic": None, "labels_topic": TOPIC})
    reader = open_labels(other)
    assert reader is not None and reader.origin == TOPIC
    reader.hear(ALL_COME)
    records, faults = reader.take()
    reader.close()
    assert [(r["kind"], r["event_id"], r["verdict"]) for r in records] == [("label", "p1", "fraud")]
    assert [(f.partition, f.offset, f.of) for f in faults] == [(2, 1, "label"), (2, 2, "label")]
    assert "expected `event_type`" in faults[0].reason and "not JSON" in faults[1].reason
    assert reader.position["at"]["2"] == 3


T_US = time_us_of("2026-03-09T08:00:00Z")
HOUR_US = 3_600_000_000


def verdicts(*names_and_hours: tuple[str, int]) -> list[dict[str, Any]]:
    """Verdicts on events by their names, said so many hours after T_US."""
    said = {"event_type": "payment", "verdict": "fraud"}
    return [said | {"event_id": name, "time": T_US + h * HOUR_US} for name, h in names_and_hours]


def test_labels_of_a_topic_wait_for_the_stream_and_a_restart_goes_on_behind_the_last(
    producer: Producer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECORDS_MAX", 4)
    say(producer, *verdicts(("a0", 0), ("a9", 9), ("a2", 2)))
    say(producer, *verdicts(*((f"b{h}", h) for h in range(12))), partition=1)
    other = settings.model_copy(update={"control_topic": None, "labels_topic": TOPIC})
    position: Any = None
    heard: list[tuple[int, list[str]]] = []
    # Each time it is read anew: what waited is not lost, what was heard is not heard again.
    for clock_us in (0, T_US - 1, T_US, T_US + 3 * HOUR_US, T_US + 3 * HOUR_US, ALL_COME):
        reader = open_labels(other)
        assert reader is not None
        reader.seek(position)
        reader.hear(clock_us)
        records, faults = reader.take()
        assert faults == []
        heard.append((clock_us, [r["event_id"] for r in records]))
        position = json.loads(json.dumps(reader.position))
        if clock_us == ALL_COME:
            for _ in range(3):
                heard.append((clock_us, [r["event_id"] for r in reader.take()[0]]))
        reader.close()
    assert [names for _, names in heard] == [
        [], [], ["a0", "b0"], ["b1", "b2", "b3"], [],
        ["b4", "b5", "b6", "b7"], ["b8", "a9", "a2", "b9"], ["b10", "b11"], [],
    ]  # fmt: skip
    assert position["at"] == {"0": 1, "1": 8, "2": 0, "3": 0}


def test_a_label_of_a_topic_with_a_wrong_year_does_not_stop_those_behind_it(
    producer: Producer, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    say(producer, *verdicts(("p0", 0), ("p1", 24 * 366 * 30), ("p2", 1), ("p3", 5)))
    other = settings.model_copy(update={"control_topic": None, "labels_topic": TOPIC})
    reader = open_labels(other)
    assert reader is not None
    reader.hear(T_US + HOUR_US)
    records, faults = reader.take()
    assert [r["event_id"] for r in records] == ["p0", "p2"]
    assert [f.offset for f in faults] == [1] and "more than a year after the" in faults[0].reason
    reader.close()
    assert "labels from offsets {0: 3} on wait for 2026-03-09T13:00:00Z, the" in caplog.text


@pytest.mark.parametrize("setting", ["control_topic", "labels_topic"])
def test_what_is_said_of_a_topic_names_its_setting(
    setting: str,
    producer: Producer,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    say(producer, b"oops", b"oops")
    names = dict.fromkeys(("control_topic", "labels_topic")) | {setting: TOPIC}
    given = settings.model_copy(update=names)
    reader = ControlTopic(given) if setting == "control_topic" else open_labels(given)
    assert reader is not None
    reader.seek({"topic": TOPIC, "at": {"0": 9}})
    reader.open()
    give_up = time.monotonic() + WAIT_S
    while "made anew" not in caplog.text and time.monotonic() < give_up:
        reader.take()
    reader.close()
    assert f"{setting} 'control' partition 0 ends at 2, 9 were read" in caplog.text


def test_a_flood_is_taken_a_piece_a_round(
    producer: Producer, opened: Callable[..., ControlTopic], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_BYTES_MAX", 2_000)
    monkeypatch.setattr(module, "RECORDS_MAX", 20)
    say(producer, *numbered(100))
    reader, got, most = opened(), [], 0
    give_up = time.monotonic() + WAIT_S
    while len(got) < 100 and time.monotonic() < give_up:
        at = reader.position["at"].get("0", 0)
        records, _ = reader.take()
        assert reader.position["at"]["0"] == at + len(records), "what waits is not yet taken"
        got += records
        most = max(most, len(records))
    assert got == numbered(100)
    assert most <= 20


def test_a_replay_asks_no_broker(settings: Settings) -> None:
    reader = ControlTopic(settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"}))
    position = {"topic": TOPIC, "at": {"0": 9}}
    reader.seek(position)
    assert reader.position == position
    reader.close()


def test_a_first_start_without_a_broker_is_a_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 0.5)
    reader = ControlTopic(settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"}))
    with pytest.raises(SourceError, match=r"no answer within .* check kafka_brokers"):
        reader.open()


def test_a_later_start_without_a_broker_goes_on_with_what_is_in_force(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.5)
    reader = ControlTopic(settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"}))
    position = {"topic": TOPIC, "at": {"0": 9}}
    reader.seek(position)
    reader.open()
    monkeypatch.setattr(module, "ANSWER_S", 30.0)
    begun = time.monotonic()
    assert [reader.take() for _ in range(5)] == [([], [])] * 5
    assert time.monotonic() - begun < module.ANSWER_S, "no round waits"
    assert reader.position == position
    assert "going on without it" in caplog.text
    reader.close()


def test_a_record_is_written_under_the_key_of_what_it_speaks_of(
    producer: Producer, settings: Settings, opened: Callable[..., ControlTopic]
) -> None:
    said = [{**STAGE, "stage": stage} for stage in ("off", "shadow", "live")]
    places = [send_record(settings, record) for record in said]
    assert len({place.rsplit(" ", 1)[0] for place in places}) == 1, "one partition, so one order"
    assert take(opened(), 3)[0] == said


def test_a_record_that_no_broker_takes_is_a_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 0.5)
    with pytest.raises(SourceError, match="no answer within"):
        send_record(settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"}), STAGE)


def test_a_file_and_a_topic_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="either control_topic or control_file"):
        load(None, {}, control_topic="a", control_file="b.jsonl")
    with pytest.raises(ConfigError, match="expected the name of a topic"):
        load(None, {}, control_topic="")
