"""Anchors, hours of the week, trends and median deviations against their slow twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.anchors import ANCHOR_FLOATS, run_anchors
from features.columns import Columns
from features.engine import GroupEngine, OfflineEngine, assemble, split
from tests.naive_baselines import Anchor, Trend, Week, mad_z
from tests.streams import START_US, make_batch
from tests.units import series_catalog

OPS = ("anchor", "anchor_z", "creep", "week_usual", "week_z", "trend", "mad_z")

CATALOG = series_catalog(OPS)

DAY_S = 86_400.0

GAPS_S = st.sampled_from([0.0, 1.0, 30.0, 600.0, 5_000.0, 40_000.0, 43_200.0, DAY_S, 9 * DAY_S])

VALUES = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 1e6]), st.floats(-50.0, 50.0), st.floats(9.0, 10.0)
)


def samples(times_s: Any, values: Any) -> dict[str, Any]:
    """A batch of one series."""
    rows = [
        {"event_id": str(i), "time_us": START_US + int(t * 1e6), "host": "h", "metric": "cpu",
         "service": "web", "value": float(x)}
        for i, (t, x) in enumerate(zip(times_s, values, strict=True))
    ]  # fmt: skip
    return {"metric": make_batch("metric", rows, partitions=1)}


def assert_like_twins(times_s: Any, values: Any) -> None:
    matrix = OfflineEngine(CATALOG, 1).process(samples(times_s, values))["metric"]
    twins = Anchor(), Week(), Trend()
    earlier: list[float] = []
    for row, (t, x) in enumerate(zip(times_s, values, strict=True)):
        expected: dict[str, float] = {"mad_z": np.nan if row < 3 else mad_z(earlier[-32:], x)}
        for one in twins:
            expected |= one.step(START_US + int(t * 1e6), float(x))
        earlier.append(float(x))
        for op in OPS:
            assert matrix.column(op)[row] == pytest.approx(
                expected[op], rel=1e-9, abs=1e-9, nan_ok=True
            ), (op, row)


@settings(max_examples=60)
@given(steps=st.lists(st.tuples(GAPS_S, VALUES), min_size=1, max_size=60))
def test_they_equal_their_twins_whatever_comes(steps: list[tuple[float, float]]) -> None:
    assert_like_twins(np.cumsum([g for g, _ in steps]), [x for _, x in steps])


def test_they_equal_their_twins_over_months(rng: np.random.Generator) -> None:
    """So long that every memory is full; a rival is accepted; five days of silence."""
    n = 1_200
    times_s = np.cumsum(rng.exponential(8_000.0, n))
    times_s[700:] += 5 * DAY_S
    values = 10.0 + rng.standard_t(3, n) + 12.0 * (times_s > 30 * DAY_S)
    assert_like_twins(np.round(times_s), values)


def test_a_label_makes_a_new_level_the_anchor_at_once(rng: np.random.Generator) -> None:
    times_s = np.arange(300) * 7_200.0
    values = 10.0 + rng.normal(size=300) + 6.0 * (times_s > 20 * DAY_S)
    engines = [GroupEngine(CATALOG, 0) for _ in range(2)]
    batches = samples(times_s, values)
    after = samples([301 * 7_200.0, 302 * 7_200.0], [16.0, 16.0])
    found = []
    for number, engine in enumerate(engines):
        engine.process(split(CATALOG, batches, 1)[0])
        if number:
            keys = Columns(batches["metric"]).key("series")
            stranger = np.array([77], np.uint64)
            assert engine._states["series"].accept(np.append(keys[:2], stranger)) == 1
        parts = engine.process(split(CATALOG, after, 1)[0])
        found.append(assemble(CATALOG, after, [parts[0]])["metric"])
    assert found[0].column("creep")[-1] > 3.0
    assert abs(found[1].column("creep")[-1]) < 0.3
    assert found[1].column("anchor")[0] == pytest.approx(16.0, abs=0.5)


def test_verdicts_on_usual_business_change_nothing(rng: np.random.Generator) -> None:
    engine = GroupEngine(CATALOG, 0)
    batches = samples(np.arange(300) * 7_200.0, 10.0 + rng.normal(size=300))
    engine.process(split(CATALOG, batches, 1)[0])
    series = engine._states["series"]
    before = series._fixed["anchors"].copy()
    assert series.accept(Columns(batches["metric"]).key("series")[:1]) == 1
    np.testing.assert_array_equal(series._fixed["anchors"], before)


def test_a_rival_of_a_flag_stands_where_the_share_of_the_day_is_far_in_its_own_deviations(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    shares = np.repeat([0.05, 0.9, 0.4], 400)
    values = (rng.random(1_200) < shares).astype(np.float64)
    taken_us = (START_US + np.arange(1_200) * 7_200e6).astype(np.int64)
    state, out = np.zeros((1, ANCHOR_FLOATS)), np.full((1_200, 3), np.nan)
    plan = np.array([[op, 0, 0, op] for op in range(3)])
    one, zero = np.ones((1, 1), np.bool_), np.zeros((1, 1), np.int64)
    told: Any = (one, zero, np.zeros(1, np.bool_), zero[0], plan, np.array([0, 3]), one[0])
    twin, stood = Anchor(flag=True), 0
    for i, x in enumerate(values):
        at = slice(i, i + 1)
        before = state[0, 0]
        run_anchors(zero[0], taken_us[at], np.zeros((1, 8), np.int64), values[at].reshape(1, 1),
                    *told, state, np.ones((1, 1)), out[at])  # fmt: skip
        expected = list(twin.step(int(taken_us[i]), float(x)).values())
        if i:  # The first value has no anchor yet.
            np.testing.assert_allclose(out[i], expected, rtol=1e-9, atol=1e-9)
        n, level, deviation, recent = state[0, :4]
        if before >= 16 and n > before:
            spread = deviation + 1e-3 * level + 1e-9
            assert (state[0, 7] > 0.0) == (abs(recent - level) > 2.0 * spread), i
            stood += state[0, 7] > 0.0
    assert stood > 50
