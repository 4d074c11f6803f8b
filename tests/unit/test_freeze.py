"""Frozen entities: scored as ever, and what is usual for them stands still."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from features.batch import FeatureMatrix
from features.catalog import Catalog, catalog
from features.engine import GroupEngine, assemble, split
from features.keys import hash_strings
from features.spec import Feature
from features.state import EntityState
from tests.streams import START_US, make_batch
from tests.units import fitting

HOUR_US = 3_600_000_000


@pytest.fixture(scope="module")
def cat() -> Catalog:
    return catalog(("payment",))


def payments(rng: np.random.Generator, n: int, start_h: float, scale: float = 1.0) -> Any:
    """Payments of cards c0 and c1 in turns, 20 minutes apart."""
    rows = [
        {
            "event_id": f"e{start_h}.{i}",
            "card_id": f"c{i % 2}",
            "user_id": f"u{i % 2}",
            "merchant_id": f"m{i % 2}",
            "amount": float(np.round(scale * rng.gamma(4.0, 10.0), 2)),
            "latitude": 50.0 if scale == 1.0 else -30.0,
            "longitude": 10.0,
            "time_us": START_US + int(start_h * HOUR_US) + i * HOUR_US // 3,
        }
        for i in range(n)
    ]
    return {"payment": make_batch("payment", rows)}


def samples(rng: np.random.Generator, n: int, start_h: float, level: float = 50.0) -> Any:
    """Samples of one metric of hosts h0 and h1 in turns, each every 20 minutes."""
    rows = [
        {
            "event_id": f"s{start_h}.{i}",
            "host": f"h{i % 2}",
            "service": "web",
            "metric": "cpu",
            "value": float(level + rng.normal(0.0, 2.0)),
            "time_us": START_US + int(start_h * HOUR_US) + i * HOUR_US // 6,
        }
        for i in range(n)
    ]
    return {"metric": make_batch("metric", rows)}


def through(engine: GroupEngine, batches: Any) -> FeatureMatrix:
    """Features of a stretch."""
    found = engine.process(split(engine.catalog, batches, 1)[0])
    (event,) = batches
    return assemble(engine.catalog, batches, [found[0]])[event]


def card_state(engine: GroupEngine) -> EntityState:
    return engine._states["card"]


def frozen(engine: GroupEngine, cards: list[str], until_h: float) -> int:
    keys = hash_strings(pl.Series(cards))
    return card_state(engine).freeze(keys, START_US + int(until_h * HOUR_US))


def test_what_a_frozen_entity_does_does_not_become_usual(cat: Catalog, seed: int) -> None:
    rng = np.random.default_rng(seed)
    past, fraud, after = (
        payments(rng, 60, 0.0),
        payments(rng, 60, 24.0, 50.0),
        payments(rng, 2, 48.0),
    )
    plain, guarded, spared = (GroupEngine(cat, 0) for _ in range(3))
    for engine in (plain, guarded, spared):
        through(engine, past)
    assert frozen(guarded, ["c0", "nobody"], 47.9) == 1
    through(plain, fraud), through(guarded, fraud)
    found, learned, never = (through(engine, after) for engine in (guarded, plain, spared))
    for name in (
        *("card_amount_z", "card_amount_mad_z", "card_amount_quantile", "card_home_km"),
        "card_amount_anchor_z",
    ):
        assert found.column(name)[0] == never.column(name)[0] != learned.column(name)[0]
        assert found.column(name)[1] == learned.column(name)[1]
    assert found.column("card_ever")[0] == learned.column("card_ever")[0]
    assert found.column("card_since_s")[0] == learned.column("card_since_s")[0]


SLOW = {
    "series_anchor": "anchor",
    "series_anchor_z": "anchor_z",
    "series_creep": "creep",
    "series_week_usual": "week_usual",
    "series_week_z": "week_z",
    "series_season_usual": "season_usual",
    "series_season_z": "season_z",
    "series_usual": "usual",
}
"""Features of a metric's series, and their operations."""


def test_what_a_frozen_series_does_moves_no_level_of_weeks(seed: int) -> None:
    metrics = Catalog(
        Feature(
            name,
            "metric",
            "series",
            op,
            "{value}",
            fitting(op, "metric", "log_value"),
            "baseline",
            column="log_value",
        )
        for name, op in SLOW.items()
    )
    rng = np.random.default_rng(seed)
    # Two weeks, three raised working days, and hours of a fourth.
    past, attack = samples(rng, 2_016, 0.0), samples(rng, 432, 336.0, 80.0)
    after = samples(rng, 12, 408.0)
    plain, guarded, spared = (GroupEngine(metrics, 0) for _ in range(3))
    for engine in (plain, guarded, spared):
        through(engine, past)
    state = guarded._states["series"]
    head = split(metrics, after, 1)[0].heads["series"]
    first, until_us = int(head[0, 0]), START_US + 480 * HOUR_US
    assert state.freeze(np.array([first]), until_us) == 1
    through(plain, attack), through(guarded, attack)
    found, learned, never = (through(engine, after) for engine in (guarded, plain, spared))
    mine = head[:, 0] == first
    assert 0 < mine.sum() < len(mine)
    early = np.flatnonzero(mine)[0]
    for name, op in SLOW.items():
        x, y, z = (m.column(name) for m in (found, learned, never))
        assert np.isfinite(x).all() and np.isfinite(y).all(), name
        if op == "creep":  # Against an anchor that stands still, of a day that goes on.
            assert abs(x[early]) > abs(y[early]) > 1.0
            continue
        assert x[early] != y[early], name
        np.testing.assert_array_equal(x[~mine], y[~mine], name)
        if op in ("anchor", "usual", "week_usual", "season_usual"):
            assert x[early] == z[early], name


def test_the_usual_rate_of_a_frozen_entity_neither_grows_nor_fades(cat: Catalog, seed: int) -> None:
    rng = np.random.default_rng(seed)
    engine = GroupEngine(cat, 0)
    through(engine, payments(rng, 400, 0.0))
    before = through(engine, payments(rng, 2, 134.0)).column("card_usual_1h")[0]
    frozen(engine, ["c0"], 300.0)
    matrix = through(engine, payments(rng, 400, 134.4))
    usual = matrix.column("card_usual_1h")[matrix.column("card_ever") > 205][::2]
    np.testing.assert_allclose(usual, before, rtol=0.6)
    assert (np.diff(matrix.column("card_ever")[::2]) == 1.0).all()


def test_a_frozen_entity_learns_again_when_its_time_is_over(cat: Catalog, seed: int) -> None:
    rng = np.random.default_rng(seed)
    engine = GroupEngine(cat, 0)
    through(engine, payments(rng, 60, 0.0))
    frozen(engine, ["c0"], 24.0)
    frozen(engine, ["c0"], 22.0)
    bases = card_state(engine)._fixed["bases"]
    before = bases[:2].copy()
    through(engine, payments(rng, 2, 23.9))
    # Fast mean, last value and run go on; nothing else of the frozen one does.
    np.testing.assert_array_equal(bases[0, [0, 1, 2, 6, 7]], before[0, [0, 1, 2, 6, 7]])
    assert bases[0, 3] != before[0, 3] and bases[0, 4] != before[0, 4]
    assert bases[1, 0] == before[1, 0] + 1.0
    through(engine, payments(rng, 2, 24.0))
    assert bases[0, 0] == before[0, 0] + 1.0


def test_a_freeze_survives_snapshot_and_restore(cat: Catalog, seed: int) -> None:
    rng = np.random.default_rng(seed)
    past, fraud = payments(rng, 60, 0.0), payments(rng, 60, 24.0, 50.0)
    engine = GroupEngine(cat, 0)
    through(engine, past)
    base = engine.full()
    frozen(engine, ["c0"], 40.0)
    restored = GroupEngine.restore(cat, 0, base, [engine.delta()])
    np.testing.assert_array_equal(through(restored, fraud).values, through(engine, fraud).values)
    unfrozen = GroupEngine.restore(cat, 0, base, [])
    differs = through(unfrozen, fraud).values != through(engine, fraud).values
    assert differs.any()


def test_rows_are_not_looked_at_where_nothing_is_frozen(cat: Catalog, seed: int) -> None:
    engine = GroupEngine(cat, 0)
    rows = split(cat, payments(np.random.default_rng(seed), 20, 0.0), 1)[0]
    head = rows.heads["card"]
    engine.process(rows)
    state = card_state(engine)
    slots, _, _ = state.table.intern(head)
    assert state.marked(slots, head[:, 1], head) is head
    frozen(engine, ["c0"], 3.0)
    marked = state.marked(slots, head[:, 1], head)
    early = (head[:, 1] < START_US + 3 * HOUR_US) & (slots == 0)
    np.testing.assert_array_equal(marked[:, 7] < 0, early)
    assert (head[:, 7] >= 0).all()
