"""Kafka as a source and a sink, against a real broker and a real Schema Registry."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from confluent_kafka import Producer
from polars.testing import assert_frame_equal

from dataflows.alerts.base import Alert, Reason, Vote
from dataflows.alerts.kafka import Sink
from dataflows.settings import Settings, load
from dataflows.sources import kafka as kafka_module
from dataflows.sources import registry as registry_module
from dataflows.sources.base import Gap, Taken
from dataflows.sources.kafka import KafkaReader
from dataflows.sources.producer import EventProducer
from dataflows.sources.rounds import Lane, Part
from dataflows.state.journal import LaneJournal
from features.batch import EventBatch
from features.encode import avro_bodies, confluent_header
from features.errors import ConfigError, SinkError, SourceError
from features.events import event_types
from features.events.avro import avro_schema
from features.simulate import Simulator
from features.simulate.malformed import break_some
from tests.service.servers import Kafka, Registry, free_port

WAIT_S = 300.0
"""Longest wait for records that are there; chosen for two very busy cores."""

OWN_S = 45.0
"""What is told in seconds takes less, however busy the machine; who leaves it to the client waits a
minute."""

SECOND_US = 1_000_000


@pytest.fixture
def settings(kafka: Kafka, registry: Registry, topic_prefix: str, tmp_path: Path) -> Settings:
    """Settings of a flow that reads topics of this test's own."""
    return load(
        None,
        {},
        source="kafka",
        kafka_brokers=kafka.brokers,
        kafka_registry_url=registry.url,
        kafka_topic_prefix=topic_prefix,
        kafka_group=topic_prefix + "group",
        event_types=["payment"],
        lanes=1,
        state_dir=tmp_path / "state",
    )


def with_(settings: Settings, **changes: Any) -> Settings:
    """The settings with some of them changed."""
    return settings.model_copy(update=changes)


@contextmanager
def reader_of(
    settings: Settings, lane: int = 0, from_us: int | None = None, **more: Any
) -> Iterator[KafkaReader]:
    """A reader that is closed at the end."""
    reader = KafkaReader(settings, lane, from_us, **more)
    try:
        yield reader
    finally:
        reader.close()


def simulated(seed: int, names: list[str] | None = None) -> list[EventBatch]:
    """Events of ten minutes that have just passed, by type."""
    seconds = 600.0
    now_us = time.time_ns() // 1000
    start_us = now_us - round((seconds + 60.0) * SECOND_US)
    simulator = Simulator(seed=seed, cards=2_000, events_per_s=20.0, event_types=names)
    batches = simulator.span(start_us, start_us + round(seconds * SECOND_US))
    return [batch for batch in batches.values() if len(batch)]


@contextmanager
def producer_of(settings: Settings) -> Iterator[EventProducer]:
    """A producer with topics and schemas in place; everything is acknowledged at the end."""
    producer = EventProducer(
        settings.kafka_brokers,
        encoding=settings.kafka_format,
        registry_url=settings.kafka_registry_url,
        topic_prefix=settings.kafka_topic_prefix,
    )
    try:
        producer.open(settings.event_types)
        yield producer
    finally:
        producer.close()


def read(reader: KafkaReader, count: int, rows_max: int = 20_000) -> list[Taken]:
    """Takes until `count` records have come, the empty ones among them."""
    found: list[Taken] = []
    give_up = time.monotonic() + WAIT_S
    while sum(t.received for t in found) < count:
        assert time.monotonic() < give_up, f"{sum(t.received for t in found)} of {count} records"
        found.append(reader.take(rows_max))
        if not found[-1].received:
            time.sleep(0.01)
    return found


def frames(takes: list[Taken], name: str) -> pl.DataFrame:
    """Events of a type with partition and offset, in an order of their own."""
    parts = [
        batch.frame.with_columns(
            pl.Series("partition", batch.partition), pl.Series("offset", batch.offset)
        )
        for t in takes
        if (batch := t.batches.get(name)) is not None
    ]
    return pl.concat(parts).sort("partition", "offset")


def ids(takes: list[Taken], name: str = "payment") -> list[str]:
    """Event ids in an order of their own."""
    return sorted(str(i) for t in takes for b in t.batches.values() if b.event_type == name
                  for i in b.frame["event_id"])  # fmt: skip


# -- what arrives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["avro", "json"])
def test_every_record_becomes_the_event_that_was_sent_or_a_dead_letter(
    encoding: str, settings: Settings, kafka: Kafka, seed: int
) -> None:
    names = list(event_types())
    settings = with_(settings, kafka_format=encoding, event_types=names, kafka_until_end=True)
    rng = np.random.default_rng(seed)
    batches = simulated(seed)
    broken: dict[str, list[bytes]] = {}
    with producer_of(settings) as producer:
        for batch in batches:
            name = batch.event_type
            producer.send(batch)

            def encode(frame: pl.DataFrame, name: str = name) -> list[bytes]:
                return producer.encode(name, frame)

            made = break_some(rng, batch, 0.01, encode, encoding == "avro")
            broken[name] = [message for _, _, message in made]
            producer.send_raw(name, broken[name], [int(batch.partition[row]) for _, row, _ in made])
    topics = {b.event_type: settings.kafka_topic_prefix + event_types()[b.event_type].topic
              for b in batches}  # fmt: skip
    total = kafka.total(topics.values())
    assert total == sum(map(len, batches)) + sum(map(len, broken.values()))
    with reader_of(settings) as reader:
        takes = read(reader, total)
        assert takes[-1].eof or reader.take(1).eof
    rejects = [r for t in takes for r in t.rejects]
    assert sum(t.received for t in takes) == total
    assert len(rejects) == sum(map(len, broken.values())) > 50
    for batch in batches:
        name = batch.event_type
        got = frames(takes, name)
        sent = batch.frame.with_columns(pl.Series("partition", batch.partition))
        order = ["partition", "event_id"]
        assert_frame_equal(got.drop("offset").sort(order), sent.sort(order))
        assert not got.select("partition", "offset").is_duplicated().any()
        assert sorted(r.raw for r in rejects if r.event_type == name) == sorted(broken[name])
        assert {r.topic for r in rejects if r.event_type == name} == {topics[name]}
    if encoding == "avro":
        assert {r.schema_id for r in rejects if r.reason == "unknown_schema"} == {2_000_000_000}


def test_two_lanes_share_the_partitions_and_latency_counts_from_the_producer(
    settings: Settings, seed: int
) -> None:
    settings = with_(settings, lanes=2)
    (batch,) = simulated(seed, names=["payment"])
    before_ns = time.time_ns()
    with producer_of(settings) as producer:
        producer.send(batch)
    after_ns = time.time_ns()
    with reader_of(settings, 0) as even, reader_of(settings, 1) as odd:
        n = int((batch.partition % 2 == 0).sum())
        first, second = read(even, n), read(odd, len(batch) - n)
        assert sum(even.take(10).received for _ in range(5)) == 0
    for takes, rest in ((first, 0), (second, 1)):
        for taken in takes:
            if not taken.received:
                continue
            part = taken.batches["payment"]
            assert set(part.partition % 2) == {rest}
            assert int(part.due_ns.min()) >= before_ns - 1_000_000
            assert int(part.due_ns.max()) <= after_ns
            assert taken.cut_time_us * 1000 >= after_ns
    assert sorted(ids(first) + ids(second)) == sorted(batch.frame["event_id"])


def test_a_take_is_bounded_and_says_that_more_is_waiting(settings: Settings, seed: int) -> None:
    (batch,) = simulated(seed, names=["payment"])
    with producer_of(settings) as producer:
        producer.send(batch)
    with reader_of(settings) as reader:
        takes = read(reader, len(batch), rows_max=100)
        assert max(t.received for t in takes) <= 100
        assert sum(t.received == 100 for t in takes) > len(batch) / 200
        reader.take(100)
        assert reader.unpaced is False


def test_a_producer_may_move_to_another_schema_while_we_read(
    settings: Settings, registry: Registry, seed: int
) -> None:
    (batch,) = simulated(seed, names=["payment"])
    declared = avro_schema("payment")
    newer = declared | {
        "fields": [{"name": "loyalty", "type": ["null", "double"], "default": None},
                   *declared["fields"]]
    }  # fmt: skip
    nullable = [f["name"] for f in declared["fields"] if isinstance(f["type"], list)]
    older = declared | {"fields": [f for f in declared["fields"] if f["name"] != nullable[0]]}
    with producer_of(settings) as producer, reader_of(settings) as reader:
        producer.send(batch)
        takes = read(reader, len(batch))
        assert sum(len(t.schemas) for t in takes) == 1
        known = producer.use_schema("payment", newer)
        producer.send(batch)
        added = read(reader, len(batch))
        assert [json.loads(b) for t in added for b in t.schemas.values()] == [newer]
        assert {k for t in added for k in t.schemas} == {str(known)}
        header = confluent_header(registry.register(settings.kafka_topic_prefix + "old", older))
        bodies = avro_bodies(older, batch.frame, header)
        producer.send_raw("payment", bodies, batch.partition.tolist())
        left = read(reader, len(batch))
    order = ["event_id"]
    sent = batch.frame.sort(order)
    drop = ["partition", "offset"]
    assert_frame_equal(frames(takes, "payment").drop(drop).sort(order), sent)
    assert_frame_equal(frames(added, "payment").drop(drop).sort(order), sent)
    bare = sent.with_columns(pl.lit(None, sent.schema[nullable[0]]).alias(nullable[0]))
    assert_frame_equal(frames(left, "payment").drop(drop).sort(order), bare)


# -- again ----------------------------------------------------------------------------------------


def test_a_restart_takes_the_same_rounds_without_asking_the_registry(
    settings: Settings, seed: int
) -> None:
    (batch,) = simulated(seed, names=["payment"])
    half = len(batch) // 2
    rng = np.random.default_rng(seed)
    with producer_of(settings) as producer, reader_of(settings) as reader:
        rounds = [reader.take(500)]
        assert rounds[0].received == 0
        made = break_some(rng, batch, 0.02, lambda f: producer.encode("payment", f), True)
        producer.send(batch.take(np.arange(half)))
        producer.send_raw("payment", [m for _, _, m in made], [row for _, row, _ in made])
        rounds += read(reader, half + len(made), rows_max=333)
        producer.send(batch.take(np.arange(half, len(batch))))
    journal = json.loads(
        json.dumps([[t.positions, t.cut_time_us, dict(t.schemas)] for t in rounds])
    )
    offline = with_(settings, kafka_registry_url=f"http://127.0.0.1:{free_port()}")
    for start in (1, 4):  # from the first round on, and from a manifest in the middle
        with reader_of(offline) as again:
            before = journal[start - 1][0]
            again.seek(before)
            for taken, cut in zip(rounds[start:], journal[start:], strict=True):
                after, cut_us, schemas = cut
                got = again.retake(before, after, cut_us, schemas)
                assert got.received == taken.received
                assert got.positions == after
                assert ids([got]) == ids([taken])
                if ids([got]):
                    assert_frame_equal(frames([got], "payment"), frames([taken], "payment"))
                assert key(got) == key(taken)
                before = after
            rest = read(again, len(batch) - half)
        assert ids(rest) == sorted(batch.frame["event_id"][half:])


def key(taken: Taken) -> list[tuple[int, int, str]]:
    """What identifies rejects."""
    return sorted((r.partition, r.offset, r.reason) for r in taken.rejects)


def test_a_lane_that_is_started_again_cuts_its_journal_and_goes_on(
    settings: Settings, tmp_path: Path, seed: int
) -> None:
    (batch,) = simulated(seed, names=["payment"])
    half = len(batch) // 2

    def open_lane(url: str) -> Lane:
        return Lane(
            lane=0,
            reader=KafkaReader(with_(settings, kafka_registry_url=url), 0),
            journal=LaneJournal(tmp_path / "journal", 1_000_000),
            round_ms=100,
            rows_max=97,
            stop=lambda: False,
        )

    def cut(lane: Lane, count: int) -> list[Part]:
        parts: list[Part] = []
        give_up = time.monotonic() + WAIT_S
        while sum(p.received for p in parts) < count:
            assert time.monotonic() < give_up
            parts.append(lane.cut())
        return parts

    with producer_of(settings) as producer:
        producer.send(batch.take(np.arange(half)))
        lane = open_lane(settings.kafka_registry_url)
        lane.start(0)
        parts = cut(lane, half)
        lane.reader.close()
        lane.journal.close()
        producer.send(batch.take(np.arange(half, len(batch))))
    again = open_lane(f"http://127.0.0.1:{free_port()}")
    manifest = next(p.round for p in parts if p.received)
    again.start(manifest)
    left = parts[manifest:]
    for part, got in zip(left, cut(again, sum(p.received for p in left)), strict=False):
        assert got.replayed
        assert (got.round, got.cut_time_us) == (part.round, part.cut_time_us)
        assert got.batches.keys() == part.batches.keys()
        for name, events in got.batches.items():
            assert_frame_equal(events.frame, part.batches[name].frame)
    rest = cut(again, len(batch) - half)
    again.reader.close()
    again.journal.close()
    assert not any(p.rejects for p in rest)
    found = [str(i) for p in rest for b in p.batches.values() for i in b.frame["event_id"]]
    assert sorted(found) == sorted(batch.frame["event_id"][half:])


def test_the_first_round_is_found_again_where_the_flow_began_at_the_end(
    settings: Settings, seed: int
) -> None:
    settings = with_(settings, kafka_from="latest", kafka_format="json")
    (batch,) = simulated(seed, names=["payment"])
    with producer_of(settings) as producer:
        producer.send(batch)
    with producer_of(settings) as producer:
        with reader_of(settings) as reader:
            reader.seek({})
            producer.send(batch.take(np.arange(100)))
            first = read(reader, 100)
        producer.send(batch.take(np.arange(100)))
    with reader_of(settings) as again:
        again.seek({})
        got = [again.retake({}, first[0].positions, first[0].cut_time_us, {})]
        got += [again.retake(a.positions, b.positions, b.cut_time_us, {})
                for a, b in pairwise(first)]  # fmt: skip
        assert_frame_equal(frames(got, "payment"), frames(first, "payment"))
        assert len(ids(read(again, 100))) == 100


# -- offsets that are gone ------------------------------------------------------------------------


def test_deleted_records_are_named_counted_and_gone_past(
    settings: Settings, kafka: Kafka, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = with_(settings, kafka_format="json")
    (batch,) = simulated(seed, names=["payment"])
    topic = settings.kafka_topic_prefix + "payments"
    with producer_of(settings) as producer:
        producer.send(batch)
    with reader_of(settings) as reader:
        start = reader.take(0)
    ends = kafka.end_offsets([topic])[topic]
    p = max(ends, key=lambda p: ends[p])
    kafka.delete_records(topic, {p: ends[p] - 2})
    lost = ends[p] - 2
    with reader_of(settings) as reader, caplog.at_level(logging.WARNING):
        reader.seek(start.positions)
        takes = read(reader, len(batch) - lost)
    gap = Gap(topic, p, 0, lost - 1)
    assert [gap for taken in takes for gap in taken.gaps] == [gap] and len(gap) == lost > 0
    said = [r.getMessage() for r in caplog.records if "were deleted" in r.getMessage()]
    assert len(said) == 1
    assert f"{topic!r} partition {p}: offsets 0 to {lost - 1} ({lost} records)" in said[0]
    # The rounds with the gap are found again, the gap included; those before it are not.
    with reader_of(settings) as again:
        before = start.positions
        again.seek(before)
        for taken in takes:
            got = again.retake(before, taken.positions, taken.cut_time_us, {})
            assert (got.received, got.gaps) == (taken.received, taken.gaps)
            before = taken.positions
    with reader_of(settings) as again:
        again.seek(start.positions)
        after = json.loads(json.dumps(takes[-1].positions))
        after.pop("@from", None)
        with pytest.raises(SourceError, match=rf"partition {p}.*journal needs offsets 0 to"):
            again.retake(start.positions, after, takes[-1].cut_time_us, {})


def read_with_ids(reader: KafkaReader, count: int) -> list[Taken]:
    """`read`, and on until the positions hold the ids of the topics."""
    takes = read(reader, count)
    give_up = time.monotonic() + WAIT_S
    while "@ids" not in takes[-1].positions:
        assert time.monotonic() < give_up
        takes.append(reader.take(1))
    return takes


def test_a_topic_made_anew_is_not_taken_for_the_old_one(
    settings: Settings, kafka: Kafka, seed: int
) -> None:
    settings = with_(settings, kafka_format="json")
    (batch,) = simulated(seed, names=["payment"])
    topic = settings.kafka_topic_prefix + "payments"
    with producer_of(settings) as producer:
        producer.send(batch)
    with reader_of(settings) as reader:
        takes = read_with_ids(reader, len(batch))
    kafka.delete_topic(topic)
    kafka.create_topic(topic)
    with reader_of(settings) as reader, pytest.raises(SourceError, match="made anew"):
        reader.seek(takes[-1].positions)


@pytest.mark.parametrize("seen", [False, True], ids=["at_once", "seen_gone"])
def test_a_topic_made_anew_while_it_is_read_stops_the_reader_however_full_it_is(
    settings: Settings, kafka: Kafka, seed: int, seen: bool
) -> None:
    settings = with_(settings, kafka_format="json")
    (batch,) = simulated(seed, names=["payment"])
    topic = settings.kafka_topic_prefix + "payments"
    with producer_of(settings) as producer:
        producer.send(batch)
    with reader_of(settings) as reader:
        takes = read_with_ids(reader, len(batch))
        give_up = time.monotonic() + WAIT_S
        kafka.delete_topic(topic)
        while seen and not reader._topics[topic].in_doubt:
            assert time.monotonic() < give_up
            assert reader.take(1000).received == 0
            time.sleep(0.05)
        kafka.create_topic(topic)
        with producer_of(settings) as producer:
            producer.send(batch)
            producer.send(batch)  # the offsets that were read are there again, and more
        told = r"deleted and made anew .*its id was .*empty state_dir, or"
        give_up = time.monotonic() + WAIT_S
        with pytest.raises(SourceError, match=told):
            while time.monotonic() < give_up:
                taken = reader.take(1000)
                assert not seen or taken.received == 0, "nothing of another topic"
                time.sleep(0.05)
    with reader_of(settings) as again, pytest.raises(SourceError, match="made anew"):
        again.seek(takes[-1].positions)


def test_an_end_below_what_the_journal_has_read_is_refused_with_the_cures(
    settings: Settings, kafka: Kafka, seed: int
) -> None:
    """Where the topic's id was not learnt, as of a flow that ended within its first rounds."""
    settings = with_(settings, kafka_format="json")
    (batch,) = simulated(seed, names=["payment"])
    topic = settings.kafka_topic_prefix + "payments"
    with producer_of(settings) as producer:
        producer.send(batch)
    with reader_of(settings) as reader:
        takes = read(reader, len(batch))
    before = {k: v for k, v in takes[-1].positions.items() if k != "@ids"}
    kafka.delete_topic(topic)
    kafka.create_topic(topic)
    told = rf"{topic}' partition \d+ ends at 0, the journal has read to \d+: .*empty state_dir, or"
    with reader_of(settings) as again:
        again.seek(before)
        give_up = time.monotonic() + WAIT_S
        with pytest.raises(SourceError, match=told):
            while time.monotonic() < give_up:
                again.take(100)


def test_added_partitions_are_read_from_their_beginning(
    settings: Settings, kafka: Kafka, seed: int
) -> None:
    settings = with_(settings, kafka_format="json", kafka_from="latest")
    topic = kafka.create_topic(settings.kafka_topic_prefix + "payments", partitions=2)
    (batch,) = simulated(seed, names=["payment"])
    with reader_of(settings) as reader:
        start = reader.take(1)
    kafka.add_partitions(topic, 3)
    with producer_of(settings) as producer:
        producer.send(batch)
    with reader_of(settings) as reader:
        reader.seek(start.positions)
        takes = read(reader, len(batch))
    assert ids(takes) == sorted(batch.frame["event_id"])
    assert {int(p) for p in frames(takes, "payment")["partition"]} == {0, 1, 2}


def test_partitions_added_while_we_read_are_read_too(
    settings: Settings, kafka: Kafka, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataflows.sources.kafka.PARTITIONS_S", 0.2)
    settings = with_(settings, kafka_format="json", kafka_from="latest")
    topic = kafka.create_topic(settings.kafka_topic_prefix + "payments", partitions=2)
    (batch,) = simulated(seed, names=["payment"])
    with reader_of(settings) as reader:
        takes = [reader.take(1)]
        kafka.add_partitions(topic, 3)
        with producer_of(settings) as producer:
            producer.send(batch)
        takes += read(reader, len(batch))
    assert ids(takes) == sorted(batch.frame["event_id"])
    assert {int(p) for p in frames(takes, "payment")["partition"]} == {0, 1, 2}
    with reader_of(settings) as again:
        again.seek(takes[0].positions)
        for before, after in pairwise(takes):
            got = again.retake(before.positions, after.positions, after.cut_time_us, {})
            assert ids([got]) == ids([after])


# -- where to begin and to end --------------------------------------------------------------------


def test_reading_begins_at_a_time_or_at_the_end_of_a_backfill(
    settings: Settings, seed: int
) -> None:
    settings = with_(settings, kafka_format="json")
    (batch,) = simulated(seed, names=["payment"])
    producer = EventProducer(settings.kafka_brokers, encoding="json", timestamps="event",
                             topic_prefix=settings.kafka_topic_prefix)  # fmt: skip
    try:
        producer.open(["payment"])
        producer.send(batch)
    finally:
        producer.close()
    at_us = int(batch.time_us[len(batch) // 2])
    expected = sorted(batch.frame.filter(pl.col("time_us") // 1000 >= at_us // 1000)["event_id"])
    with reader_of(settings, from_us=at_us) as reader:
        assert ids(read(reader, len(expected))) == expected
    text = f"{np.datetime64(at_us, 'us')}Z"
    with reader_of(with_(settings, kafka_from=text)) as reader:
        assert ids(read(reader, len(expected))) == expected
        assert reader.take(10).received == 0


def test_a_bounded_run_ends_at_the_end_even_behind_transactions(
    settings: Settings, seed: int
) -> None:
    settings = with_(settings, kafka_format="json", kafka_until_end=True)
    (batch,) = simulated(seed, names=["payment"])
    with producer_of(settings) as producer:
        values = producer.encode("payment", batch.frame)
    writer = Producer({"bootstrap.servers": settings.kafka_brokers, "log_level": 0,
                       "transactional.id": settings.kafka_topic_prefix})  # fmt: skip
    writer.init_transactions(WAIT_S)
    topic = settings.kafka_topic_prefix + "payments"
    for commits, rows in ((True, range(200)), (False, range(200, 300))):
        writer.begin_transaction()
        for i in rows:
            writer.produce(topic, values[i], partition=i % 32)
        if commits:
            writer.commit_transaction(WAIT_S)
        else:
            writer.flush(WAIT_S)
            writer.abort_transaction(WAIT_S)
    with reader_of(settings) as reader:
        takes = read(reader, 200)
        give_up = time.monotonic() + WAIT_S
        while not (last := reader.take(100)).eof:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        assert last.received == 0
    assert ids(takes) == sorted(batch.frame["event_id"][:200])
    with reader_of(settings) as again:
        again.seek({})
        got = again.retake({}, last.positions | {"@from": takes[0].positions["@from"]},
                           last.cut_time_us, {})  # fmt: skip
        assert ids([got]) == ids(takes)


def test_offsets_are_committed_for_lag_tools(settings: Settings, kafka: Kafka, seed: int) -> None:
    settings = with_(settings, kafka_format="json")
    (batch,) = simulated(seed, names=["payment"])
    topic = settings.kafka_topic_prefix + "payments"
    with producer_of(settings) as producer:
        producer.send(batch)
    with reader_of(settings) as reader:
        read(reader, len(batch))
    assert kafka.committed(settings.kafka_group, topic) == kafka.end_offsets([topic])[topic]


# -- what is away ---------------------------------------------------------------------------------


def test_a_missing_topic_is_named_with_the_cure(settings: Settings) -> None:
    settings = with_(settings, event_types=["payment", "login"])
    begun = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        KafkaReader(settings, 0)
    assert len(caught.value.faults) == 2
    for fault, name in zip(caught.value.faults, ("payments", "logins"), strict=True):
        assert f"{settings.kafka_topic_prefix}{name}" in fault
        assert "waxwing simulate --to kafka" in fault
    assert time.monotonic() - begun < OWN_S


def test_wrong_security_settings_are_one_sentence_in_good_time(settings: Settings) -> None:
    options = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN",
               "sasl.username": "me", "sasl.password": "hunter2"}  # fmt: skip
    begun = time.monotonic()
    with pytest.raises(SourceError, match=r"security\.protocol") as caught:
        KafkaReader(with_(settings, kafka_options=options), 0)
    assert time.monotonic() - begun < OWN_S
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_registry_address_stops_the_start(settings: Settings, registry: Registry) -> None:
    with producer_of(settings):
        pass
    for url in (f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{registry.port}"):
        with (
            reader_of(with_(settings, kafka_registry_url=url)) as reader,
            pytest.raises(SourceError, match="kafka_registry_url"),
        ):
            reader.seek({})


def test_while_the_registry_hangs_known_schemas_go_on_and_new_ones_wait(
    settings: Settings, registry: Registry, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (batch,) = simulated(seed, names=["payment"])
    declared = avro_schema("payment")
    new = declared | {
        "fields": [*declared["fields"], {"name": "mood", "type": "long", "default": 1}]
    }
    with producer_of(settings) as producer, reader_of(settings) as reader:
        producer.send(batch)
        read(reader, len(batch))
        schema_id = registry.register(settings.kafka_topic_prefix + "mood", new)
        bodies = avro_bodies(
            new, batch.frame.with_columns(mood=pl.lit(5)), confluent_header(schema_id)
        )
        registry.freeze()
        try:
            # New ones in the even partitions, then known ones in all of them.
            producer.send_raw("payment", bodies, (batch.partition // 2 * 2).tolist())
            producer.send(batch)
            odd = int((batch.partition % 2 == 1).sum())
            known = read(reader, odd)
            assert {int(p) % 2 for p in frames(known, "payment")["partition"]} == {1}
            monkeypatch.setattr(registry_module, "ANSWER_S", OWN_S)
            begun = time.monotonic()
            last = reader.take(1_000)
            assert time.monotonic() - begun < OWN_S, "only the first round waits for an answer"
            assert last.received == 0
            assert 0 < last.waiting <= 2 * len(batch) - odd, "what has come and is not decoded"
        finally:
            registry.thaw()
        rest = read(reader, 2 * len(batch) - odd)
    assert rest[-1].waiting == 0
    assert not [r for t in known + rest for r in t.rejects]
    got = frames(known + rest, "payment")
    assert len(got) == 2 * len(batch)
    assert not got.select("partition", "offset").is_duplicated().any()


@pytest.mark.parametrize(("late_s", "full"), [(0, 200), (300, 100)])
def test_what_waits_for_a_schema_is_bounded_and_refused_when_patience_is_at_its_end(
    settings: Settings,
    registry: Registry,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    late_s: int,
    full: int,
) -> None:
    """Sixteen partitions full of a schema that nobody tells; then a restart without patience.

    As records arrive, and by event time, where records are read ahead.
    """
    settings = with_(settings, late_s=late_s)
    monkeypatch.setattr(kafka_module, "AHEAD_MAX", 100)
    monkeypatch.setattr(kafka_module, "AHEAD_MIN", 1)
    (batch,) = simulated(seed, names=["payment"])
    batch = batch.take(np.arange(1_600))
    declared = avro_schema("payment")
    new = declared | {
        "fields": [*declared["fields"], {"name": "mood", "type": "long", "default": 1}]
    }
    even = (np.arange(1_600) % 16 * 2).tolist()
    odd = int((batch.partition % 2 == 1).sum())
    held_max, known = 200, list[Taken]()
    with producer_of(settings) as producer:
        producer.send(batch)
    with reader_of(settings, held_max=held_max, patience_s=3_600.0) as reader:
        first = read(reader, len(batch))
        schema_id = registry.register(settings.kafka_topic_prefix + "mood", new)
        bodies = avro_bodies(
            new, batch.frame.with_columns(mood=pl.lit(5)), confluent_header(schema_id)
        )
        with producer_of(settings) as producer:
            producer.send_raw("payment", bodies, even)
        with producer_of(settings) as producer:
            registry.freeze()
            try:
                give_up = time.monotonic() + WAIT_S
                while not known or known[-1].waiting < full:
                    assert time.monotonic() < give_up, known[-1].waiting
                    known.append(reader.take(20_000))
                producer.send(batch)
                known += read(reader, odd)
            finally:
                registry.thaw()
    waiting = [t.waiting for t in known]
    # Beside it, of each other partition what one take reads: a bite, or a share of AHEAD_MAX.
    assert full <= max(waiting) <= held_max + 16 * 4, "and no more"
    assert {int(p) % 2 for p in frames(known, "payment")["partition"]} == {1}
    assert not [r for t in first + known for r in t.rejects]

    registry.freeze()
    try:
        with reader_of(settings, held_max=held_max, patience_s=0.0) as reader:
            reader.seek(known[-1].positions)
            rest = read(reader, 2 * len(batch) - odd)
    finally:
        registry.thaw()
    refused = [r for t in rest for r in t.rejects]
    assert {r.reason for r in refused} == {"unknown_schema"}
    assert sorted(r.partition for r in refused) == sorted(even)
    assert len({(r.partition, r.offset) for r in refused}) == len(batch)
    assert rest[-1].waiting == 0
    assert ids(known + rest) == sorted(batch.frame["event_id"]), "known schemas went on, once each"


def test_reading_goes_on_when_the_broker_is_back(
    settings: Settings, kafka: Kafka, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = with_(settings, kafka_format="json")
    (batch,) = simulated(seed, names=["payment"])
    with producer_of(settings) as producer:
        producer.send(batch)
    with reader_of(settings) as reader, caplog.at_level(logging.WARNING):
        first = read(reader, len(batch))
        kafka.stop(signal.SIGTERM)
        give_up = time.monotonic() + WAIT_S
        while not any("no broker answers" in r.getMessage() for r in caplog.records):
            assert time.monotonic() < give_up
            assert reader.take(100).received == 0
            time.sleep(0.05)
        kafka.start()
        with producer_of(settings) as producer:
            producer.send(batch)
        second = read(reader, len(batch))
    said = [r.getMessage() for r in caplog.records if r.name.startswith("dataflows")]
    assert sum("no broker answers" in line for line in said) == 1
    assert sum("answers again" in line for line in said) == 1
    assert ids(first) == ids(second) == sorted(batch.frame["event_id"])


# -- the alert sink -------------------------------------------------------------------------------


def alert(number: int) -> Alert:
    """An alert like another."""
    return Alert(
        id=f"{number:032x}", anomaly_type="payment_fraud", severity="high", event_type="payment",
        event_id=f"p-{number}", entity_type="card", entity="card_1", time_us=number,
        cut_time_us=number, round=1, score=0.999, votes=(Vote("zscore", 0.999, 0.99, True),),
        reasons=(Reason("count_1m", "7 payments in 1 min", 7.0, 0.2, "1"),), bundle_id="b",
        summary="card card_1: 7 payments in 1 min",
    )  # fmt: skip


def test_alerts_are_on_the_topic_when_write_comes_back(
    settings: Settings, kafka: Kafka, topic_prefix: str
) -> None:
    settings = with_(settings, alerts_topic=topic_prefix + "alerts")
    sink = Sink(settings)
    sink.write([alert(i) for i in range(50)])
    found = kafka.read(settings.alerts_topic)
    assert len(found) == 50
    sink.write([])
    sink.write([alert(50)])
    sink.close()
    found = kafka.read(settings.alerts_topic)
    assert {k.decode(): Alert.from_json(v) for k, v in found if k and v} == {
        alert(i).id: alert(i) for i in range(51)
    }


def test_a_sink_that_gets_no_acknowledgement_raises_with_the_cure(
    settings: Settings, kafka: Kafka, topic_prefix: str
) -> None:
    options = {"message.timeout.ms": "2000"}
    sink = Sink(with_(settings, alerts_topic=topic_prefix + "alerts", kafka_options=options))
    kafka.freeze()
    try:
        with pytest.raises(SinkError, match=r"sink 'kafka': 1 alerts.*were not acknowledged"):
            sink.write([alert(1)])
    finally:
        kafka.thaw()
    sink.write([alert(1)])
    sink.close()
    assert alert(1).id in {(k or b"").decode() for k, _ in kafka.read(topic_prefix + "alerts")}


def test_a_partition_that_fills_while_the_reader_asks_for_a_time_is_read_from_its_start(
    settings: Settings, kafka: Kafka
) -> None:
    settings = with_(settings, kafka_format="json")
    (batch,) = simulated(9, ["payment"])
    with producer_of(settings) as producer:
        late = producer.encode("payment", batch.frame[:3])
        with reader_of(settings, from_us=int(batch.time_us[0])) as reader:
            ask = reader._consumer.offsets_for_times

            class Racing:
                """The consumer, with a producer that is quicker than the next question."""

                def __getattr__(self, name: str) -> Any:
                    return getattr(inner, name)

                def offsets_for_times(self, *args: Any, **kwargs: Any) -> Any:
                    found = ask(*args, **kwargs)
                    producer.send_raw("payment", late, [0, 1, 2])
                    assert producer._producer.flush(WAIT_S) == 0
                    return found

            inner = reader._consumer
            reader._consumer = Racing()  # type: ignore[assignment]
            assert sum(t.received for t in read(reader, 3)) == 3
            reader._consumer = inner
