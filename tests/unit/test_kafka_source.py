"""The Kafka source without a Java: librdkafka's own broker speaks the protocol and keeps little.

Nothing here is a proof about loss; that is what tests/service is for.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from confluent_kafka import Producer

from dataflows.alerts.kafka import Sink
from dataflows.settings import Settings, load
from dataflows.sources import catch_up, kafka
from dataflows.sources.base import Taken
from dataflows.sources.kafka import KafkaReader
from dataflows.sources.registry import ASKED_MAX, SchemaBodies
from features.encode import json_bodies
from features.errors import ConfigError, SourceError
from features.events import event_type, event_types
from features.simulate import Simulator

WAIT_S = 120.0
PARTITIONS = 4
"""Of a topic of librdkafka's broker."""


@pytest.fixture
def producer() -> Iterator[Producer]:
    """librdkafka's own broker in this process, and a producer that writes to it."""
    holder = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
    for name in event_types():  # it makes topics on first sight
        holder.list_topics(event_type(name).topic, timeout=60)
    yield holder
    holder.close()


@pytest.fixture
def settings(producer: Producer, tmp_path: Path) -> Settings:
    """Settings of a flow that reads payments as JSON from it."""
    found = producer.list_topics(timeout=60).brokers.values()
    return load(
        None,
        {},
        source="kafka",
        kafka_brokers=",".join(f"{b.host}:{b.port}" for b in found),
        kafka_format="json",
        event_types=["payment"],
        lanes=1,
        state_dir=tmp_path / "state",
    )


def with_(settings: Settings, **changes: Any) -> Settings:
    """The settings with some of them changed."""
    return settings.model_copy(update=changes)


def payments(count: int) -> list[bytes]:
    """Payments of the last minutes, as JSON."""
    start_us = time.time_ns() // 1000 - 3_600_000_000
    simulator = Simulator(seed=3, cards=500, events_per_s=50.0, event_types=["payment"])
    return json_bodies(simulator.span(start_us, start_us + 300_000_000)["payment"].frame[:count])


def send(producer: Producer, values: list[bytes | None], topic: str = "payments") -> None:
    """Send values to the partitions in turn and wait until they are there."""
    for i, value in enumerate(values):
        producer.produce(topic, value, partition=i % PARTITIONS)
    assert producer.flush(WAIT_S) == 0


def read(reader: KafkaReader, count: int, rows_max: int = 1000) -> list[Taken]:
    """Takes until `count` records have come."""
    takes: list[Taken] = []
    give_up = time.monotonic() + WAIT_S
    while sum(t.received for t in takes) < count:
        assert time.monotonic() < give_up
        takes.append(reader.take(rows_max))
    return takes


def event_ids(takes: list[Taken]) -> list[str]:
    """Event ids, sorted."""
    return sorted(str(i) for t in takes for b in t.batches.values() for i in b.frame["event_id"])


def test_events_and_dead_letters_are_told_apart(producer: Producer, settings: Settings) -> None:
    good = payments(40)
    values: list[bytes | None] = [*good, None, b"\xff\x00", b'{"event_id": 7}']
    send(producer, values)
    reader = KafkaReader(with_(settings, kafka_until_end=True), 0)
    takes = read(reader, len(values))
    reader.close()
    assert takes[-1].eof
    assert event_ids(takes) == sorted(json.loads(v)["event_id"] for v in good)
    rejects = [r for t in takes for r in t.rejects]
    assert {(r.partition, r.offset, r.raw) for r in rejects} == {
        (0, 10, b""), (1, 10, b"\xff\x00"), (2, 10, b'{"event_id": 7}'),
    }  # fmt: skip
    assert {(r.topic, r.event_type) for r in rejects} == {("payments", "payment")}
    assert takes[-1].positions["payments"] == {"0": 11, "1": 11, "2": 11, "3": 10}


def test_lanes_share_the_partitions(producer: Producer, settings: Settings) -> None:
    values = payments(200)
    send(producer, list(values))
    found = []
    for lane in range(3):
        reader = KafkaReader(with_(settings, lanes=3), lane)
        reader.seek({})
        mine = [p for p in range(PARTITIONS) if p % 3 == lane]
        takes = read(reader, 50 * len(mine))
        reader.close()
        assert {str(p) for p in mine} == set(takes[-1].positions["payments"])
        found += event_ids(takes)
    assert sorted(found) == sorted(json.loads(v)["event_id"] for v in values)


def test_partitions_that_fill_what_is_kept_do_not_keep_out_the_one_all_wait_for(
    producer: Producer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "AHEAD_MAX", 100)
    monkeypatch.setattr(kafka, "AHEAD_MIN", 10)
    monkeypatch.setattr(catch_up, "WAIT_S", 1e6)
    values = payments(800)
    for i, value in enumerate(values):
        producer.produce("payments", value, partition=i % (PARTITIONS - 1) if i % 20 else 3)
    assert producer.flush(WAIT_S) == 0
    reader = KafkaReader(settings, 0)
    takes = read(reader, len(values))
    reader.close()
    assert event_ids(takes) == sorted(json.loads(v)["event_id"] for v in values)


def test_offsets_gone_behind_what_is_kept_are_named_once_and_the_round_is_taken_again(
    producer: Producer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(kafka, "ANSWER_S", 1.0)  # librdkafka's broker has no ids
    values = payments(300)
    for begin in range(0, 260, 10):  # a fetch brings so many of them, and all 40 of the later ones
        for value in values[begin : begin + 10]:
            producer.produce("payments", value, partition=1)
        assert producer.flush(WAIT_S) == 0
    for value in values[260:]:
        producer.produce("payments", value, partition=0)
    assert producer.flush(WAIT_S) == 0
    reader = KafkaReader(settings, 0)
    takes = [reader.take(50)]
    give_up = time.monotonic() + WAIT_S
    while len(reader._back.get(("payments", 0), ())) < 40:  # kept: the others are older
        assert time.monotonic() < give_up
        takes.append(reader.take(50))
    # Not fetched until the next take, while so much is added that the broker lets go of some.
    reader._pause([("payments", 0)])
    for _ in range(12):
        producer.produce("payments", b"x" * 900_000, partition=0)
        assert producer.flush(WAIT_S) == 0
    low, high = reader._watermarks(("payments", 0))
    assert 40 < low < high == 52
    with caplog.at_level("WARNING"):
        while sum(t.received for t in takes) < 300 + high - low:
            assert time.monotonic() < give_up
            takes.append(reader.take(2))
    reader.close()
    said = [r.getMessage() for r in caplog.records if "were deleted" in r.getMessage()]
    assert len(said) == 1 and f"offsets 40 to {low - 1}" in said[0], said
    assert [(g.partition, g.first, g.last) for t in takes for g in t.gaps] == [(0, 40, low - 1)]
    assert event_ids(takes) == sorted(json.loads(v)["event_id"] for v in values)
    begins = [i for i, t in enumerate(takes) if t.gaps]
    before, after = takes[begins[0] - 1].positions, takes[begins[0]].positions
    assert before["payments"]["0"] == 40 and after["@from"]["payments"] == {"0": low}


def test_a_lane_without_partitions_is_quiet(settings: Settings) -> None:
    reader = KafkaReader(with_(settings, lanes=32), 20)
    taken = reader.take(100)
    reader.close()
    assert taken.received == 0 and taken.positions["payments"] == {}


def test_any_cut_is_taken_again_as_it_was(
    producer: Producer, settings: Settings, rng: np.random.Generator
) -> None:
    send(producer, [*payments(300), *[b"broken"] * 20])
    reader = KafkaReader(settings, 0)
    rounds: list[Taken] = []
    while sum(t.received for t in rounds) < 320:
        rounds += read(reader, 1, rows_max=int(rng.integers(1, 60)))
    reader.close()
    again = KafkaReader(settings, 0)
    again.seek({})
    before: dict[str, Any] = {}
    for taken in rounds:
        got = again.retake(before, taken.positions, taken.cut_time_us, {})
        assert event_ids([got]) == event_ids([taken])
        # A round puts them in order: partitions arrive in another one every time.
        assert sorted((r.partition, r.offset) for r in got.rejects) == sorted(
            (r.partition, r.offset) for r in taken.rejects
        )
        before = taken.positions
    send(producer, [b"more"])
    assert [t.received for t in read(again, 1) if t.received] == [1]
    again.close()


def test_a_flow_may_begin_at_the_end(producer: Producer, settings: Settings) -> None:
    send(producer, list(payments(40)))
    reader = KafkaReader(with_(settings, kafka_from="latest"), 0)
    first = reader.take(100)
    assert first.received == 0
    assert first.positions["payments"] == dict.fromkeys("0123", 10)
    assert first.positions["@from"] == {"payments": dict.fromkeys("0123", 10)}
    send(producer, [b"new"])
    takes = read(reader, 1)
    reader.close()
    assert [r.raw for t in takes for r in t.rejects] == [b"new"]
    assert "@from" not in takes[-1].positions


def test_the_clock_does_not_run_back_over_a_restart(settings: Settings) -> None:
    later_us = time.time_ns() // 1000 + 3_600_000_000
    reader = KafkaReader(settings, 0)
    positions = reader.take(1).positions | {"@clock": later_us}
    reader.seek(positions)
    assert reader.take(1).cut_time_us == later_us
    reader.close()


def test_every_missing_topic_is_named(settings: Settings) -> None:
    with pytest.raises(ConfigError) as caught:
        KafkaReader(with_(settings, kafka_topic_prefix="no-", event_types=["payment", "login"]), 0)
    assert len(caught.value.faults) == 2
    assert "'no-payments' does not exist" in caught.value.faults[0]
    assert "waxwing simulate --to kafka" in caught.value.faults[0]


def test_an_unreachable_broker_is_one_sentence(settings: Settings) -> None:
    begun = time.monotonic()
    with pytest.raises(SourceError, match=r"localhost:1: no answer .*refused.*check kafka_brokers"):
        KafkaReader(with_(settings, kafka_brokers="localhost:1"), 0)
    assert time.monotonic() - begun < 45.0, "who leaves it to the client waits a minute"


@pytest.mark.parametrize(
    ("name", "value"), [("no.such.property", "1"), ("fetch.min.bytes", "many")]
)
def test_a_property_that_is_none_is_a_fault_of_the_configuration(
    settings: Settings, name: str, value: str
) -> None:
    with pytest.raises(ConfigError, match=rf"kafka_options: .*{name}"):
        KafkaReader(with_(settings, kafka_options={name: value}), 0)


def test_a_registry_address_that_is_none_is_a_fault(settings: Settings) -> None:
    for url in ("here:8081", "me:hunter2@here:8081"):
        with pytest.raises(ConfigError, match=r"kafka_registry_url: .*expected http://") as caught:
            KafkaReader(with_(settings, kafka_format="avro", kafka_registry_url=url), 0)
        assert "hunter2" not in str(caught.value) and "here:8081" in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"ssl.ca.location": "/not/there"}, {"basic.auth.user.inf": "me:hunter2"}]
)
def test_options_that_the_registry_does_not_take_are_a_fault(
    settings: Settings, options: dict[str, str]
) -> None:
    secured = {"kafka_format": "avro", "kafka_registry_options": options}
    with pytest.raises(ConfigError, match=r"^kafka_registry_options: ") as caught:
        KafkaReader(with_(settings, **secured), 0)
    assert "hunter2" not in str(caught.value)


def test_the_alert_sink_says_that_it_is_the_one_without_a_broker(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"sink 'kafka': Kafka localhost:1: no answer"):
        Sink(with_(settings, kafka_brokers="localhost:1"))


# -- schema bodies ---------------------------------------------------------------------------------


class _Registry(BaseHTTPRequestHandler):
    """Has schemas 1 to 3; counts what it is asked."""

    asked: ClassVar[list[int]] = []
    broken: ClassVar[bool] = False

    def do_GET(self) -> None:
        schema_id = int(self.path.split("?")[0].rsplit("/", 1)[1])
        self.asked.append(schema_id)
        status, body = 200, json.dumps({"schema": f'"s{schema_id}"', "schemaType": "AVRO"})
        if self.broken:
            status, body = 500, json.dumps({"error_code": 50001, "message": "tired"})
        elif schema_id > 3:
            status, body = 404, json.dumps({"error_code": 40403, "message": "no such schema"})
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def registry() -> Iterator[str]:
    """A registry with three schemas."""
    _Registry.asked.clear()
    _Registry.broken = False
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Registry)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def looked_up(bodies: SchemaBodies, ids: list[int]) -> tuple[Any, dict[str, str]]:
    """Answers and fresh bodies once nothing is waiting any more."""
    fresh: dict[str, str] = {}
    give_up = time.monotonic() + WAIT_S
    while True:
        answers, new, waiting = bodies.look_up(ids)
        fresh |= new
        if not waiting:
            return answers, fresh
        assert time.monotonic() < give_up


def test_an_id_is_asked_for_once_whether_it_exists_or_not(registry: str, tmp_path: Path) -> None:
    bodies = SchemaBodies(registry, tmp_path)
    answers, fresh = looked_up(bodies, [1, 2, 9])
    assert answers == {1: '"s1"', 2: '"s2"', 9: None}
    assert fresh == {"1": '"s1"', "2": '"s2"'}
    assert looked_up(bodies, [1, 9]) == ({1: '"s1"', 9: None}, {})
    assert sorted(_Registry.asked) == [1, 2, 9]
    assert bodies.ids == [1, 2]
    bodies.close()


def test_known_bodies_outlive_a_restart_and_nobody_is_asked(registry: str, tmp_path: Path) -> None:
    bodies = SchemaBodies(registry, tmp_path)
    looked_up(bodies, [1, 2])
    bodies.close()
    again = SchemaBodies("http://localhost:1", tmp_path)
    again.restore([1])
    again.learn({"3": '"s3"'})
    # The journal did not know of 2 then, so neither does a replay.
    assert again.known([1, 2, 3]) == {1: '"s1"', 2: None, 3: '"s3"'}
    with pytest.raises(SourceError, match=r"schema 7 of the journal .*localhost:1"):
        again.restore([7])
    again.close()


def test_a_flood_of_ids_that_do_not_exist_is_bounded(registry: str, tmp_path: Path) -> None:
    bodies = SchemaBodies(registry, tmp_path)
    ids = list(range(100, 100 + 10 * ASKED_MAX))
    answers, _ = looked_up(bodies, ids)
    assert answers == dict.fromkeys(ids)
    assert len(_Registry.asked) <= 2 * ASKED_MAX
    bodies.close()


def test_a_registry_that_is_away_is_waited_for_and_not_forever(
    registry: str, tmp_path: Path
) -> None:
    _Registry.broken = True
    bodies = SchemaBodies(registry, tmp_path, patience_s=0.3)
    _, _, waiting = bodies.look_up([1])
    assert waiting == {1}
    assert looked_up(bodies, [1]) == ({1: None}, {})  # patience has ended
    assert bodies.ids == []
    _Registry.broken = False
    give_up = time.monotonic() + WAIT_S
    while not bodies.look_up([1])[1]:
        assert time.monotonic() < give_up
    assert looked_up(bodies, [1]) == ({1: '"s1"'}, {})
    bodies.close()


def test_a_wrong_address_is_told_at_once(registry: str, tmp_path: Path) -> None:
    _Registry.broken = True
    bodies = SchemaBodies(registry, tmp_path)
    with pytest.raises(SourceError, match=r"answers 500 \(tired\); check kafka_registry_url"):
        bodies.check()
    bodies.close()
