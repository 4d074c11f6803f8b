"""One event in twenty is sent again, later or after a crash: nothing that comes out changes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflows.settings import load
from dataflows.sources.producer import EventProducer
from dataflows.sources.simulator import make_simulator, time_us_of
from dataflows.state.manifest import read_manifest
from features.batch import EventBatch
from features.events import event_type
from tests.flow.harness import (
    TIMEOUT_S,
    Bench,
    alerts_of,
    counts_of,
    running,
    wait_for,
    without_clock,
)
from tests.service.servers import Kafka, Registry
from tests.service.test_pipeline import PAST_S

HOURS = 8

SHARE = 0.05
"""Events sent again."""

PIECES = 40
"""Stretches the stream is sent in; what is sent again comes behind its own or a later one."""


def payments(bench: Bench) -> EventBatch:
    """The payments of some hours, each once."""
    settings = load(None, {}, **{k: v for k, v in bench.settings.items() if k.startswith("sim_")})
    begin = time_us_of(settings.sim_start)
    batch = make_simulator(settings).span(begin, begin + HOURS * 3_600_000_000)["payment"]
    _, first = np.unique(batch.frame["event_id"].to_numpy(), return_index=True)
    return batch.take(np.sort(first))


def run(
    bench: Bench, kafka: Kafka, registry: Registry, folder: Path, again: np.ndarray[Any, Any] | None
) -> tuple[list[dict[str, Any]], dict[str, int], int]:
    """Alerts, counts and records sent of a run over one partition, so that the order is one.

    `again` says behind which piece each event is sent once more (-1 never); the flow is then killed
    in the middle, with what came before the crash sent again after it.
    """
    prefix, state, report = f"{folder.name}-", folder / "state", folder / "report.json"
    kafka.create_topic(prefix + event_type("payment").topic, 1)
    batch, sent = payments(bench), 0
    more = {
        "source": "kafka", "kafka_brokers": kafka.brokers, "kafka_registry_url": registry.url,
        "kafka_topic_prefix": prefix, "event_types": "payment", "time_past_s_max": PAST_S,
        "snapshot_rounds": 10, "state_dir": state,
    }  # fmt: skip
    command = ["run", *bench.sets(**more), "--json", str(report)]
    producer = EventProducer(kafka.brokers, registry_url=registry.url, topic_prefix=prefix)
    producer.open(("payment",))
    edges = np.linspace(0, len(batch), PIECES + 1).astype(int)

    def send(pieces: range) -> int:
        count = 0
        for piece in pieces:
            count += producer.send(batch.take(np.arange(edges[piece], edges[piece + 1])))
            if again is not None:
                count += producer.send(batch.take(np.flatnonzero(again == piece)))
        return count

    with running(*command, cwd=folder) as flow:
        sent += send(range(PIECES // 2))
        wait_for(lambda: _done(state) > 0.4 * sent, "the middle", flow)
        if again is not None:
            flow.send_signal(signal.SIGKILL)
            flow.wait()
        else:
            flow.send_signal(signal.SIGTERM)
            assert flow.wait(TIMEOUT_S) == 0
    with running(*command, cwd=folder) as flow:
        sent += send(range(PIECES // 2, PIECES))
        wait_for(lambda: _done(state) >= sent, "all is through", flow)
        flow.send_signal(signal.SIGTERM)
        out, _ = flow.communicate(timeout=TIMEOUT_S)
        assert flow.returncode == 0, out
    producer.close()
    return alerts_of(state), counts_of(json.loads(report.read_text())), sent


def _done(state: Path) -> int:
    """Events the manifest knows of."""
    found = read_manifest(state) if state.exists() else None
    return 0 if found is None else found.totals.get("in", 0)


def test_repeats_across_rounds_and_a_crash_change_no_alert(
    bench: Bench,
    kafka: Kafka,
    registry: Registry,
    tmp_path_factory: pytest.TempPathFactory,
    rng: np.random.Generator,
) -> None:
    n = len(payments(bench))
    own = np.arange(n) * PIECES // n
    again = np.minimum(own + rng.integers(0, PIECES // 2, n), PIECES - 1)
    again[rng.random(n) >= SHARE] = -1
    assert np.count_nonzero((own < PIECES // 2) & (again >= PIECES // 2)) > 50, "over the crash"
    once, counts, sent = run(bench, kafka, registry, tmp_path_factory.mktemp("once"), None)
    twice, more, sent_more = run(bench, kafka, registry, tmp_path_factory.mktemp("twice"), again)
    repeats = int(np.count_nonzero(again >= 0))
    assert repeats > 0.04 * n and sent_more == sent + repeats == n + repeats
    assert counts == {"in": n, "scored": n, "duplicates": 0, "dead_lettered": 0, "pending": 0}
    assert more == counts | {"in": n + repeats, "duplicates": repeats}
    assert len(once) > 50
    assert without_clock(twice) == without_clock(once)
