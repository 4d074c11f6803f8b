"""Verdicts that stand in a topic before the start reach the features of the backlog they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from confluent_kafka import Producer

from dataflows.from_journal import journal_rows
from dataflows.sources.simulator import time_us_of
from features.encode import json_bodies
from tests.flow.harness import Bench, Run
from tests.service.servers import Kafka
from tests.service.test_pipeline import PAST_S
from tests.streams import make_batch

START_US = time_us_of("2026-03-05T00:00:00Z")

HOUR_US = 3_600_000_000

PAYMENTS = 200

SAID_AFTER_H = 48.5
"""A verdict comes so long after its payment."""


def payments() -> list[dict[str, Any]]:
    """A payment an hour, of three cards at two merchants."""
    return [
        {"event_id": f"p{i}", "time_us": START_US + i * HOUR_US, "card_id": f"c{i % 3}",
         "user_id": f"u{i % 3}", "merchant_id": f"m{i % 2}", "amount": 10.0 + i % 7,
         "currency": "EUR", "category": "food", "channel": "pos"}
        for i in range(PAYMENTS)
    ]  # fmt: skip


def verdicts() -> list[dict[str, Any]]:
    """A verdict on every fourth payment, a fraud or not, in the order in which they are said."""
    return [
        {"event_type": "payment", "event_id": one["event_id"], "event_time": one["time_us"],
         "verdict": "fraud" if i % 8 else "genuine",
         "time": one["time_us"] + round(SAID_AFTER_H * HOUR_US),
         "entities": {"card": one["card_id"], "merchant": one["merchant_id"]}}
        for i, one in enumerate(payments())
        if i % 4 == 0
    ]  # fmt: skip


def write_labels(path: Path) -> None:
    """The verdicts as a file."""
    path.write_text("".join(json.dumps(one) + "\n" for one in verdicts()))


def cold(bench: Bench) -> Bench:
    """The same models, without a past."""
    return Bench(bench.folder, {k: v for k, v in bench.settings.items() if k != "warm_state"})


def risks(run: Run) -> tuple[dict[str, npt.NDArray[Any]], int]:
    """The risk features of the payments that learning from the journal has, by event id; and how
    many entities that verdicts named were not there."""
    report = run.to_end()
    assert report["scored"] == PAYMENTS, report
    found = journal_rows(run.state_dir, None, {}, from_us=START_US, settled_s=0.0).sets["payment"]
    names = found.features.names
    mine = [
        i for i, name in enumerate(names) if "fraud" in name or "risk" in name or "last_" in name
    ]
    assert len(mine) >= 10, names
    ids = (found.time_us - START_US) // HOUR_US
    rows = dict(zip(map(str, ids.tolist()), found.features.values[:, mine], strict=True))
    return rows, int(report["labels_unknown"])


@pytest.fixture(scope="module")
def from_files(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a flow over files makes of them."""
    folder = tmp_path_factory.mktemp("files")
    make_batch("payment", payments()).frame.write_ndjson(folder / "payments.jsonl")
    write_labels(folder / "labels.jsonl")
    more = {
        "file_round_s": 3_600, "labels_file": folder / "labels.jsonl", "event_types": "payment",
        "retention_h": 8_784, "time_past_s_max": PAST_S,
    }  # fmt: skip
    data = ("--data", f"payment={folder / 'payments.jsonl'}")
    return risks(Run(cold(bench), folder / "state", more, data))


@pytest.mark.parametrize("where", ["labels_topic", "labels_file"])
def test_verdicts_of_before_the_start_give_the_features_that_files_give(
    where: str,
    bench: Bench,
    kafka: Kafka,
    topic_prefix: str,
    tmp_path: Path,
    from_files: tuple[dict[str, npt.NDArray[Any]], int],
) -> None:
    producer = Producer({"bootstrap.servers": kafka.brokers})
    labels: str | Path = kafka.create_topic(f"{topic_prefix}labels", 1)
    topic = kafka.create_topic(f"{topic_prefix}payments", 1)
    bodies = json_bodies(make_batch("payment", payments()).frame)
    for name, values in ((topic, bodies), (str(labels), map(json.dumps, verdicts()))):
        for value in values:
            producer.produce(name, value, partition=0)
    assert producer.flush(60) == 0
    if where == "labels_file":
        labels = tmp_path / "labels.jsonl"
        write_labels(labels)
    more = {
        "source": "kafka", "kafka_brokers": kafka.brokers, "kafka_format": "json",
        "kafka_topic_prefix": topic_prefix, "kafka_until_end": True, "event_types": "payment",
        "time_past_s_max": PAST_S, "round_rows_max": 1, "retention_h": 8_784,
        where: labels,
    }  # fmt: skip
    rows, unknown = risks(Run(cold(bench), tmp_path / "state", more))
    expected, _ = from_files
    assert unknown == 0
    assert rows.keys() == expected.keys() and len(rows) == PAYMENTS
    for name, values in rows.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    known = np.array([expected[str(i)] for i in range(PAYMENTS)])
    assert np.nanmax(known) > 5 and np.nanmax(known[:48]) < 0.01, "nothing before it is said"
