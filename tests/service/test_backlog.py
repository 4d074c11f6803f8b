"""Partitions with very uneven backlogs give what the stream in order gives."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer

from dataflows.settings import Settings, load
from dataflows.sources import catch_up
from dataflows.sources.kafka import KafkaReader
from features.batch import EventBatch, concat_batches
from features.catalog import catalog
from features.encode import json_bodies
from features.simulate import Simulator
from tests.flows import HOUR_US, Flow, assert_same_rows, assert_same_states
from tests.service.servers import Kafka

HOURS = 8

PARTITIONS = 4

ROWS_MAX = 200
"""Records of a lane and round, so that there are many rounds."""

WAIT_S = 300.0


def payments(seed: int) -> EventBatch:
    """Payments of the hours that have just passed, no two at one time: partitions break ties.

    Partition and offset of each are 0 and its number.
    """
    begin_us = time.time_ns() // 1000 - (HOURS + 1) * HOUR_US
    simulator = Simulator(seed=seed, cards=300, events_per_s=0.3, event_types=["payment"])
    batch = simulator.span(begin_us, begin_us + HOURS * HOUR_US)["payment"]
    _, first = np.unique(batch.frame["event_id"].to_numpy(), return_index=True)
    batch = batch.take(np.sort(first))
    _, first = np.unique(batch.time_us, return_index=True)
    return placed(batch.take(first), np.zeros(len(first), np.int32), np.arange(len(first)))


def placed(batch: EventBatch, partition: Any, offset: Any) -> EventBatch:
    """The batch with other places."""
    return EventBatch(batch.event_type, batch.frame, partition, offset, batch.due_ns, batch.truth)


def uneven(batch: EventBatch, rng: np.random.Generator) -> Any:
    """Partitions: the first alone holds the first six hours, all hold the last two; of these the
    last one has but a tenth of the others."""
    early = batch.time_us - int(batch.time_us[0]) < (HOURS - 2) * HOUR_US
    drawn = rng.choice(PARTITIONS, len(batch), p=[0.3, 0.3, 0.37, 0.03])
    return np.where(early, 0, drawn).astype(np.int32)


def read(settings: Settings, flow: Flow, batch: EventBatch, stop_at: int) -> int:
    """Feed a flow with rounds of all lanes until so many events have come; how many have."""
    number = {event_id: i for i, event_id in enumerate(batch.frame["event_id"].to_list())}
    pace = catch_up.Pace()
    readers = [KafkaReader(settings, lane, pace=pace) for lane in range(settings.lanes)]
    done, give_up = 0, time.monotonic() + WAIT_S
    while done < stop_at:
        assert time.monotonic() < give_up, f"{done} of {stop_at} events"
        taken = [reader.take(ROWS_MAX).batches for reader in readers]
        parts = [batches["payment"] for batches in taken if batches]
        if not parts:
            time.sleep(0.01)
            continue
        one = concat_batches(parts)
        known = np.array([number[e] for e in one.frame["event_id"].to_list()], np.int64)
        flow.feed({"payment": placed(one, one.partition, known).in_order()})
        done += len(one)
    for reader in readers:
        reader.close()
    return done


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_backlog_is_read_by_event_time_however_uneven_its_partitions_are(
    kafka: Kafka,
    topic_prefix: str,
    tmp_path: Path,
    rng: np.random.Generator,
    seed: int,
    lanes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A busy machine's broker is to be waited for, however long it takes.
    monkeypatch.setattr(catch_up, "WAIT_S", WAIT_S)
    batch = payments(seed)
    partition = uneven(batch, rng)
    assert min(np.bincount(partition)) > 5
    kafka.create_topic(f"{topic_prefix}payments", PARTITIONS)
    # A batch that is sent again may not come after later ones: time goes on in each partition.
    options = {"bootstrap.servers": kafka.brokers, "linger.ms": 20, "enable.idempotence": True}
    producer = Producer(options)
    for body, to in zip(json_bodies(batch.frame), partition.tolist(), strict=True):
        producer.produce(f"{topic_prefix}payments", body, partition=to)
    assert producer.flush(WAIT_S) == 0
    settings = load(
        None, {}, source="kafka", kafka_brokers=kafka.brokers, kafka_format="json",
        kafka_topic_prefix=topic_prefix, kafka_group=f"{topic_prefix}group",
        event_types=["payment"], lanes=lanes, state_dir=tmp_path / "state",
    )  # fmt: skip
    found, expected = (Flow(catalog(), groups=2, late_s=settings.late_s) for _ in range(2))
    assert read(settings, found, batch, len(batch)) == len(batch)
    expected.feed({"payment": batch})
    assert sum(engine.late_beyond for engine in found.engines) == 0
    assert len(found.rounds) > 10
    assert_same_rows(found, expected)
    assert_same_states(found, expected)
