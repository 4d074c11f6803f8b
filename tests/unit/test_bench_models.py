"""`waxwing bench models`: a figure of every detector, and every key explained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataflows.bench.models import BATCHES, against_torch, gate_cost, measure
from features.catalog import catalog
from features.events import event_types
from models.detectors import detector_names
from models.train import train
from tests.rows import training_set

PAGE = Path(__file__).resolve().parents[2] / "docs" / "json.md"

DETECTORS = ("zscore", "isolation_forest", "transformer")


def test_every_detector_has_figures_by_event_type_and_batch(rng: np.random.Generator) -> None:
    options = {"transformer": {"epochs": 1.0}, "isolation_forest": {"trees": 5.0}}
    rows = {name: training_set(rng, name, rows=1_500, odd=60) for name in ("payment", "login")}
    bundle = train(rows, catalog(), DETECTORS, 1, options=options)
    report = measure(bundle, rows)
    sizes = {f"batch_{size}" for size in BATCHES}
    for name, one in rows.items():
        assert 0.0 < report["gate_opened"][name] < 0.5
        stages = report["us_per_row"][name]
        assert stages.keys() == {*DETECTORS, "score"}
        for by_size in stages.values():
            assert by_size.keys() == sizes
            assert all(0.0 < x["best"] <= x["median"] for x in by_size.values())
        assert len(one) < max(BATCHES), "fewer rows than a batch are one batch"
    parts = report["us_per_event"]
    assert parts.keys() == {*DETECTORS, "score"}
    gated = max(report["us_per_row"][n]["transformer"]["batch_1000"]["median"] for n in rows)
    assert parts["transformer"]["batch_1000"] <= 0.5 * gated, "only rows that pass the gate count"


def test_a_gate_that_is_shut_costs_what_the_transformer_alone_finds(
    rng: np.random.Generator,
) -> None:
    rows = {"payment": training_set(rng, rows=3_000, odd=120)}
    options = {"transformer": {"epochs": 2.0}}
    bundle = train(rows, catalog(), ("zscore", "transformer"), 1, options=options)
    heard = {
        name: replace(one, ensemble=replace(one.ensemble, weights=np.array([0.1, 1.0])))
        for name, one in bundle.models.items()
    }
    bundle = replace(bundle, models=heard)
    cost = gate_cost(bundle, rows, rows)
    assert cost["attack_events"] == 120 and cost["recall_open"] > 0.0
    assert cost["lost"] == pytest.approx(cost["recall_open"] - cost["recall"])
    shut = {name: replace(one, gate=np.inf) for name, one in bundle.models.items()}
    closed = gate_cost(replace(bundle, models=shut), rows, rows)
    assert closed["recall_open"] == cost["recall_open"]
    assert closed["recall"] != cost["recall"], (closed, cost)


def test_the_kernel_says_what_torch_says(rng: np.random.Generator) -> None:
    rows = {"payment": training_set(rng, rows=2_100, odd=60)}
    options = {"transformer": {"epochs": 1.0}}
    bundle = train(rows, catalog(), ("zscore", "transformer"), 1, options=options)
    told = against_torch(bundle, rows)
    assert 0.0 < told["difference_max"] <= 1e-5
    assert told["kernel_us"] > 0.0 and told["torch_us"] > 0.0
    assert against_torch(train(rows, catalog(), ("zscore",), 1), rows) == {}


def test_the_keys_stand_on_the_page(rng: np.random.Generator) -> None:
    rows = {"payment": training_set(rng, rows=1_500, odd=60)}
    bundle = train(rows, catalog(), ("zscore",), 1)
    report = measure(bundle, rows) | {"gate": gate_cost(bundle, rows, rows)}
    named = {*detector_names(), *event_types()}

    def keys(found: object) -> set[str]:
        if not isinstance(found, dict):
            return set()
        return {k for k in found if k not in named}.union(*map(keys, found.values()))

    page = PAGE.read_text(encoding="utf-8").partition("## `waxwing bench models`")[2]
    told = {w for code in re.findall(r"`([^`\n]+)`", page) for w in re.split(r"[.\s]", code)}
    assert keys(report) - told == set()
