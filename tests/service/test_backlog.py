"""Partitions with very uneven backlogs give what one partition in order gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer

from dataflows.settings import load
from dataflows.sources.simulator import make_simulator, time_us_of
from features.batch import EventBatch
from features.encode import json_bodies
from features.events import event_type
from tests.flow.harness import Bench, Run, counts_of, without_clock
from tests.service.servers import Kafka
from tests.service.test_pipeline import PAST_S

HOURS = 8

PARTITIONS = 4

FLUSH_S = 60.0


def payments(bench: Bench) -> EventBatch:
    """The payments of some hours, each once, no two at one time: partitions break ties."""
    settings = load(None, {}, **{k: v for k, v in bench.settings.items() if k.startswith("sim_")})
    begin = time_us_of(settings.sim_start)
    batch = make_simulator(settings).span(begin, begin + HOURS * 3_600_000_000)["payment"]
    _, first = np.unique(batch.frame["event_id"].to_numpy(), return_index=True)
    batch = batch.take(np.sort(first))
    _, first = np.unique(batch.time_us, return_index=True)
    return batch.take(first)


def uneven(batch: EventBatch, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Partitions: the first alone holds the first six hours, all hold the last two; of these the
    last one has but a tenth of the others."""
    at = batch.time_us - int(batch.time_us[0])
    share = np.array([0.3, 0.3, 0.37, 0.03])
    return np.where(
        at < (HOURS - 2) * 3_600_000_000, 0, rng.choice(PARTITIONS, len(batch), p=share)
    )


def run(
    bench: Bench, kafka: Kafka, folder: Path, batch: EventBatch, partition: Any, many: int,
    lanes: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """Report and alerts of a run over these payments, all of them there when it starts."""
    prefix = f"{folder.name}-"
    topic = prefix + event_type("payment").topic
    kafka.create_topic(topic, many)
    producer = Producer({"bootstrap.servers": kafka.brokers, "linger.ms": 20})
    for body, to in zip(json_bodies(batch.frame), partition.tolist(), strict=True):
        producer.produce(topic, body, partition=to)
        producer.poll(0)
    assert producer.flush(FLUSH_S) == 0
    more = {
        "source": "kafka", "kafka_brokers": kafka.brokers, "kafka_format": "json",
        "kafka_topic_prefix": prefix, "kafka_until_end": True, "event_types": "payment",
        "time_past_s_max": PAST_S, "lanes": lanes, "round_rows_max": 200,
    }  # fmt: skip
    flow = Run(bench, folder / "state", more)
    return flow.to_end(), flow.alerts()


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_backlog_is_read_by_event_time_however_uneven_its_partitions_are(
    bench: Bench, kafka: Kafka, tmp_path_factory: pytest.TempPathFactory,
    rng: np.random.Generator, lanes: int,
) -> None:  # fmt: skip
    batch = payments(bench)
    alone = np.zeros(len(batch), np.int64)
    folder = tmp_path_factory.mktemp
    report, expected = run(bench, kafka, folder("alone"), batch, alone, 1, 1)
    apart = uneven(batch, rng)
    assert min(np.bincount(apart)) > 5
    found_report, found = run(bench, kafka, folder("apart"), batch, apart, PARTITIONS, lanes)
    assert counts_of(found_report) == counts_of(report)
    assert counts_of(report)["scored"] == len(batch)
    assert found_report["late_beyond"] == 0
    assert len(expected) > 50
    if lanes == 1:
        # Read in order, all but what a median cannot tell: nothing is late, so nothing differs.
        assert without_clock(found) == without_clock(expected)
