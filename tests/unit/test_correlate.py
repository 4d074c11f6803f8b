"""Correlations of the series of a host: against the twin, and a bond that breaks."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.batch import FeatureMatrix
from features.catalog import Catalog
from features.correlate import PARTNERS_MAX, SILENT_US
from features.engine import OfflineEngine
from features.spec import Feature
from tests.naive_correlate import Host
from tests.streams import START_US, make_batch

OPS = ("correlation", "correlation_usual", "correlation_z")


@cache
def small() -> Catalog:
    """The three operations, of the values as they are."""
    units = {"correlation_z": "sigma"}
    return Catalog(
        Feature(op, "metric", "host", op, "{value}", units.get(op, "1"), "baseline",
                column="value", other="metric", window_s=600)
        for op in OPS
    )  # fmt: skip


Sample = tuple[float, str, float]
"""Seconds, metric, value."""


def run(samples: list[Sample], parts: int = 1) -> Any:
    """float64 (n, 3), the operations of each sample."""
    rows = [
        {"event_id": str(i), "time_us": START_US + round(t * 1e6), "host": "h", "metric": metric,
         "service": "web", "value": value}
        for i, (t, metric, value) in enumerate(samples)
    ]  # fmt: skip
    engine, found = OfflineEngine(small(), 2), []
    for part in np.array_split(np.arange(len(rows)), parts):
        if len(part):
            batch = make_batch("metric", [rows[i] for i in part], partitions=1)
            matrix: FeatureMatrix = engine.process({"metric": batch})["metric"]
            found.append(matrix.values)
    return np.concatenate(found)


def together(rng: np.random.Generator, n: int, broken_from: int, names: str = "ab") -> list[Sample]:
    """Series that follow one load, until the last one goes its own way."""
    samples = []
    for i in range(n):
        load = rng.normal(50.0, 10.0)
        for k, name in enumerate(names):
            own = rng.normal(50.0, 10.0)
            follows = i < broken_from or k < len(names) - 1
            value = (load if follows else own) * (k + 1) + rng.normal(0.0, 2.0)
            samples.append((60.0 * i + k, name, value))
    return samples


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_correlations_equal_their_naive_twin(number: int, parts: int) -> None:
    rng = np.random.default_rng(number)
    samples = together(rng, 90, int(rng.integers(40, 90)), "abc")
    kept = [s for s in samples if rng.random() < 0.97]
    host = Host()
    whole = [host.take(name, value, START_US + round(t * 1e6), 600) for t, name, value in kept]
    found = run(kept, parts)
    expected = np.array([[row[op] for op in OPS] for row in whole])
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    assert not np.isnan(found).all()


def test_a_broken_bond_is_many_sigma_from_the_usual() -> None:
    rng = np.random.default_rng(3)
    found = run(together(rng, 400, 350))
    calm, broken = found[200:700], found[740:]
    assert calm[:, 1].min() > 0.9
    assert np.quantile(np.abs(calm[:, 2]), 0.95) < 3.0
    assert (broken[:, 2] < -3.0).mean() > 0.9


def test_a_series_that_does_not_move_has_no_partner() -> None:
    samples = [(60.0 * i + k, name, 5.0 if name == "flat" else float(i % 7))
               for i in range(100) for k, name in enumerate(("flat", "busy"))]  # fmt: skip
    assert np.isnan(run(samples)).all()


def test_a_silent_series_gives_its_place_and_its_bonds_to_a_new_one() -> None:
    rng = np.random.default_rng(4)
    names = "".join(chr(ord("a") + k) for k in range(PARTNERS_MAX))
    samples = together(rng, 80, 80, names)
    assert not np.isnan(run(samples)[-1]).any()
    begin = 80 * 60.0 + SILENT_US / 1e6 + 60.0
    later = [(begin + t, {"a": "new", "b": "other"}[m], v) for t, m, v in together(rng, 80, 80)]
    found = run([*samples, (samples[-1][0] + 1.0, "ninth", 1.0), *later])
    assert np.isnan(found[len(samples)]).all(), "no place for a ninth"
    assert np.isnan(found[len(samples) + 1 : -10]).any() and not np.isnan(found[-1]).any()
