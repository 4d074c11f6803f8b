"""Labels of history: each at its time, whatever the chunks history is read in."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflows import arrivals as module
from dataflows import history
from dataflows.arrivals import LABEL_STEP_US, Arrivals
from dataflows.history import run_history
from dataflows.settings import Settings
from dataflows.sources.simulator import time_us_of
from dataflows.training import simulated
from features.batch import EventBatch, FeatureMatrix
from features.catalog import catalog
from features.labels import Label
from features.risk import DAY_US
from tests.streams import cut, stream

HOUR_US = 3_600_000_000


def labelled(number: int) -> dict[str, EventBatch]:
    """A stream of some hours, a tenth of it frauds."""
    rng = np.random.default_rng(number)
    found = {}
    for name, b in stream(number, 80, types=("payment", "login", "metric")).items():
        truth = (rng.random(len(b)) < 0.1).astype(np.int16)
        found[name] = EventBatch(name, b.frame, b.partition, b.offset, b.due_ns, truth)
    return found


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1_000),
    st.sampled_from([0, HOUR_US // 2, HOUR_US, 2 * HOUR_US]),
    st.lists(st.integers(0, 360), max_size=5),
)
def test_every_label_arrives_between_the_rows_before_and_after_its_moment(
    number: int, delay_us: int, halves: list[int]
) -> None:
    batches = labelled(number)
    start = min(int(b.time_us[0]) for b in batches.values())
    arrivals = Arrivals(catalog(), delay_us)
    heard: list[Label] = []
    passed: dict[str, list[str]] = {name: [] for name in batches}
    for part in cut(batches, [start + 30_000_000 * h for h in halves]):
        for labels, some in arrivals.stretches(part):
            heard += labels
            for name, batch in some.items():
                passed[name] += batch.frame["event_id"].to_list()
                for time_us in batch.time_us.tolist():
                    due = {
                        t
                        for b in (batches["payment"], batches["login"])
                        for t in b.time_us[np.asarray(b.truth) > 0].tolist()
                        if -(-(t + delay_us) // LABEL_STEP_US) * LABEL_STEP_US <= time_us
                    }
                    assert {label.time_us for label in heard} == due
    assert passed == {name: b.frame["event_id"].to_list() for name, b in batches.items()}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1_000), st.sampled_from([0, HOUR_US]), st.integers(1, 5))
def test_rounds_up_to_full_hours_hear_the_same_also_after_restarts(
    number: int, delay_us: int, every: int
) -> None:
    batches = labelled(number)
    start = min(int(b.time_us[0]) for b in batches.values())
    first = -(-start // LABEL_STEP_US) * LABEL_STEP_US
    edges = sorted({first + i * LABEL_STEP_US for i in range(4)} | {start + 500_000_000})
    live, history = Arrivals(catalog(), delay_us), Arrivals(catalog(), delay_us)
    clock_us, heard, told = 0, list[Label](), list[Label]()
    for i, part in enumerate(p for p in cut(batches, edges) if p):
        if i % every == 0:
            dump = live.dump()
            live = Arrivals(catalog(), delay_us)
            live.load(dump)
        heard += live.heard(part, clock_us)
        clock_us = max(int(b.time_us[-1]) for b in part.values())
        stretches = list(history.stretches(part))
        assert sum(bool(some) for _, some in stretches) == 1, "no label arrives within a round"
        told += [label for labels, _ in stretches for label in labels]
        assert heard == told
    assert len(live) == len(history)
    on = Arrivals(catalog(), delay_us)
    on.follow(live)
    assert len(on) == len(live)


def test_no_more_labels_are_under_way_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = {"payment": labelled(1)["payment"]}
    monkeypatch.setattr(module, "WAITING_MAX", 3)
    arrivals = Arrivals(catalog(), DAY_US)
    assert arrivals.heard(batches, 0) == ()
    frauds = int(np.count_nonzero(np.asarray(batches["payment"].truth)))
    assert len(arrivals) == 3 and arrivals.passed_over == frauds - 3


def test_ids_of_known_anomalies_serve_where_events_do_not_say() -> None:
    batch = stream(1, 30, types=("payment",))["payment"]
    known = batch.frame[3:6].select("event_id")
    known = known.with_columns(event_type=pl.Series(["payment", None, "login"]))
    arrivals = Arrivals(catalog(), 0, known)
    heard = [label for labels, _ in arrivals.stretches({"payment": batch}) for label in labels]
    assert len(heard) + len(arrivals) == 2
    assert {entity for label in heard for entity, _ in label.entities} >= {"card", "merchant"}


class Kept:
    """Risk features of payments, by event id."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}

    def add(self, batch: EventBatch, features: FeatureMatrix) -> None:
        """Take in one batch."""
        if batch.event_type != "payment":
            return
        values = features.column("card_frauds_30d"), features.column("merchant_fraud_rate_7d")
        ids = batch.frame["event_id"].to_list()
        self.rows |= dict(zip(ids, np.stack(values, axis=1).tolist(), strict=True))


def test_chunks_of_history_change_no_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"sim_events_per_s": 0.05, "sim_cards": 300, "label_delay_s": 20_000.0}
    config = Settings(**given)
    start_us = time_us_of(config.sim_start)
    found = []
    for rows in (50_000, 700):
        monkeypatch.setattr(history, "CHUNK_ROWS", rows)
        kept = Kept()
        reader = simulated(config, 1, start_us, start_us + 2 * DAY_US, 0.05)
        arrivals = Arrivals(catalog(), round(config.label_delay_s * 1e6))
        done = run_history(config, catalog(), reader, kept, arrivals=arrivals)
        found.append(kept.rows)
        assert done.arrivals is arrivals and sum(e.labels for e in done.engine.engines) > 50
    assert found[0].keys() == found[1].keys()
    ours, theirs = (np.array([one[k] for k in found[0]]) for one in found)
    np.testing.assert_array_equal(ours, theirs)
    assert ours[:, 0].max() > 0.0
