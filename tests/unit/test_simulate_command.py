"""`waxwing simulate`: files one can read back, right counts, faults in one sentence each."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fastavro
import polars as pl
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from polars.testing import assert_frame_equal

from dataflows.cli.main import main
from dataflows.sources.producer import EventProducer
from features.errors import SourceError
from features.events import event_type, event_types
from features.simulate import Simulator

START_US = 1_772_409_600_000_000
HOUR_US = 3_600_000_000


def simulated(**settings: object) -> dict[str, pl.DataFrame]:
    """What the command is to write for six hours of seed 4."""
    simulator = Simulator(seed=4, cards=1_000, **settings)  # type: ignore[arg-type]
    return {n: b.frame for n, b in simulator.span(START_US, START_US + 6 * HOUR_US).items()}


def simulate(*options: str, report: Path | None = None) -> dict[str, object]:
    """Run the command for six hours and return its report."""
    path = report or Path("report.json")
    options = ("--hours", "6", "--seed", "4", "--cards", "1000", *options, "--json", str(path))
    assert main(["simulate", *options]) == 0
    found: dict[str, object] = json.loads(path.read_text())
    return found


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def brokers() -> Iterator[str]:
    """librdkafka's own broker in this process: speaks the protocol, keeps little."""
    holder = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
    found = holder.list_topics(timeout=60).brokers.values()
    for name in event_types():  # it cannot create topics on request, only on first sight
        holder.list_topics(event_type(name).topic, timeout=60)
    yield ",".join(f"{b.host}:{b.port}" for b in found)
    holder.close()


def test_parquet_holds_the_events_and_labels_of_the_simulator() -> None:
    report = simulate("--to", "parquet", "--out", "made", "--anomaly-share", "0.01")
    frames = simulated(anomaly_share=0.01)
    for name, frame in frames.items():
        assert_frame_equal(pl.read_parquet(f"made/{name}.parquet"), frame)
    assert report["in"] == sum(map(len, frames.values()))
    assert report["by_event_type"] == {name: len(frame) for name, frame in frames.items()}
    labels = pl.read_parquet("made/labels.parquet")
    assert report["attack_events"] == len(labels) > 200
    assert report["by_attack"] == dict(labels.group_by("attack").len().sort("attack").iter_rows())
    ids = pl.concat([frame["event_id"] for frame in frames.values()])
    assert report["repeats"] == len(ids) - ids.n_unique() > 0
    assert set(labels["event_id"]) <= set(ids)


def test_jsonl_holds_one_event_a_line_and_the_broken_ones_among_them() -> None:
    report = simulate("--to", "jsonl", "--out", "made", "--malformed", "0.01", "--labels", "l.csv")
    frames = simulated()
    lines = {n: Path(f"made/{n}.jsonl").read_bytes().splitlines() for n in frames}
    assert sum(map(len, lines.values())) == report["in"]
    broken = sum(map(len, lines.values())) - sum(map(len, frames.values()))
    by_fault: dict[str, int] = dict(report["by_fault"])  # type: ignore[call-overload]
    assert report["malformed"] == broken == sum(by_fault.values()) > 100
    for name, frame in frames.items():
        good = [json.loads(x) for x in lines[name] if b"-broken" not in x and x[:1] == b"{"
                and x[-1:] == b"}"]  # fmt: skip
        assert good == frame.to_dicts()
    assert len(pl.read_csv("l.csv")) == report["attack_events"]


def test_the_same_command_writes_the_same_bytes() -> None:
    for folder in ("one", "two"):
        simulate("--to", "jsonl", "--out", folder, "--malformed", "0.01")
    for name in event_types():
        one, two = (Path(f"{folder}/{name}.jsonl").read_bytes() for folder in ("one", "two"))
        assert one == two


def test_attacks_strength_and_types_can_be_chosen() -> None:
    simulate("--out", "made", "--attacks", "card_testing", "--strength", "0.3,0.4",
             "--event-types", "payment", "--anomaly-share", "0.01")  # fmt: skip
    labels = pl.read_parquet("made/labels.parquet")
    assert labels["attack"].unique().to_list() == ["card_testing"]
    assert labels["strength"].is_between(0.3, 0.4).all()
    assert sorted(p.name for p in Path("made").iterdir()) == ["labels.parquet", "payment.parquet"]


def test_kafka_gets_every_event_in_its_partition(brokers: str) -> None:
    report = simulate(
        "--to", "kafka", "--set", f"kafka_brokers={brokers}", "--set", "kafka_format=json",
        "--malformed", "0.01", "--event-types", "login", "--timestamps", "event",
    )  # fmt: skip
    got, keys = drain(brokers, "logins")
    assert len(got) == report["in"]
    good = [json.loads(v) for v in got if b"-broken" not in v and v[:1] == b"{" and v[-1:] == b"}"]
    expected = simulated(event_types=["login"])["login"]
    assert sorted(good, key=order) == sorted(expected.to_dicts(), key=order)
    homes: dict[str, set[int]] = {}
    for value, partition in zip(got, keys, strict=True):
        if b"-broken" not in value and value[:1] == b"{" and value[-1:] == b"}":
            homes.setdefault(json.loads(value)["user_id"], set()).add(partition)
    assert len(homes) > 500
    assert max(map(len, homes.values())) == 1


def order(event: dict[str, object]) -> tuple[object, ...]:
    """Something to sort events by."""
    return event["time_us"], event["event_id"]


def drain(brokers: str, topic: str) -> tuple[list[bytes], list[int]]:
    """All messages of a topic with their partitions, to the end offsets."""
    consumer = Consumer(
        {"bootstrap.servers": brokers, "group.id": "t", "enable.auto.commit": False, "log_level": 0}
    )
    partitions = list(consumer.list_topics(topic, timeout=60).topics[topic].partitions)
    ends = [
        consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=60)[1] for p in partitions
    ]
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    values, places = [], []
    while len(values) < sum(ends):
        for message in consumer.consume(1_000, timeout=0.2):
            assert message.error() is None, message.error()
            values.append(message.value() or b"")
            places.append(message.partition() or 0)
    consumer.close()
    return values, places


def test_a_producer_tells_what_was_acknowledged(brokers: str) -> None:
    producer = EventProducer(brokers, encoding="json")
    producer.open(["metric"])
    batch = Simulator(seed=4, cards=500).span(START_US, START_US + HOUR_US)["metric"]
    assert producer.send(batch) == len(batch)
    sent = producer.close()
    assert sent.by_topic == {"metrics": len(batch)}
    assert sent.total == len(batch) and sent.failed == 0


class Registry(BaseHTTPRequestHandler):
    """Answers the one question a producer asks: under which id is this schema registered?"""

    schemas: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.schemas.append(json.loads(body["schema"]))
        answer = json.dumps({"id": 100 + len(self.schemas)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def registry() -> Iterator[str]:
    """A registry that gives each schema the next id from 101."""
    Registry.schemas.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_avro_is_framed_and_a_producer_can_move_to_a_new_schema(
    brokers: str, registry: str
) -> None:
    producer = EventProducer(brokers, encoding="avro", registry_url=registry)
    producer.open(["metric"])
    batch = Simulator(seed=4, cards=500).span(START_US, START_US + HOUR_US)["metric"]
    producer.send(batch)
    old = Registry.schemas[-1]
    new = old | {"fields": [*old["fields"], {"name": "zone", "type": "string", "default": "eu"}]}
    assert producer.use_schema("metric", new) == 102
    producer.send(batch)
    assert producer.close().total == 2 * len(batch)
    got, _ = drain(brokers, "metrics")
    read = {101: [], 102: []}  # type: dict[int, list[Any]]
    for value in got:
        schema_id = int.from_bytes(value[1:5], "big")
        parsed = fastavro.parse_schema(Registry.schemas[schema_id - 101])
        read[schema_id].append(fastavro.schemaless_reader(io.BytesIO(value[5:]), parsed, None))
    assert len(read[101]) == len(read[102]) == len(batch)
    assert {event.pop("zone") for event in read[102]} == {"eu"}
    assert sorted(read[101], key=order) == sorted(read[102], key=order)
    assert {event["event_id"] for event in read[101]} == set(batch.frame["event_id"])


def test_an_unreachable_broker_is_one_sentence_with_the_cure() -> None:
    producer = EventProducer("localhost:1", encoding="json")
    with pytest.raises(SourceError, match=r"localhost:1: .*check kafka_brokers"):
        producer.open(["metric"])


def test_an_unreachable_registry_is_one_sentence_with_the_cure(brokers: str) -> None:
    producer = EventProducer(brokers, encoding="avro", registry_url="http://localhost:1")
    with pytest.raises(SourceError, match="kafka_registry_url"):
        producer.open(["metric"])


@pytest.mark.parametrize(
    ("options", "faults"),
    [
        (
            ["--to", "jsonl", "--malformed", "2", "--speed", "3"],
            ["--out", "--malformed", "--speed"],
        ),
        (["--out", "x", "--attacks", "fishing", "--cards", "1"], ["sim_cards"]),
        (["--out", "x", "--attacks", "fishing"], ["card_testing"]),
        (["--out", "x", "--strength", "strong"], ["--strength"]),
        (["--out", "x", "--start", "soon"], ["ISO 8601"]),
        (["--out", "x", "--hours", "-1"], ["length"]),
        (["--out", "x", "--labels", "l.xls"], ["--labels"]),
        (["--out", "/proc/no/such"], ["/proc/no/such"]),
        (["--out", "x", "--event-types", "payments"], ["payment"]),
    ],
)
def test_bad_options_are_told_with_the_cure(
    options: list[str], faults: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *options]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for fault in faults:
        assert fault in said
