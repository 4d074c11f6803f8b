"""Panes: above so many events of an entity the tail of its longest window is merged, and told."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import numpy as np
import pytest

from features.batch import EventBatch
from features.catalog import Catalog
from features.engine import GroupEngine, OfflineEngine, split
from features.events import event_code
from features.plan import plan_of
from features.snapshots import join
from features.spec import Feature
from features.state import EntityState
from tests.naive import PanedWindow
from tests.streams import START_US, make_batch
from tests.units import fitting

EXACT_MAX = 150
WINDOWS_S = (60, 600, 3600)
OPERATIONS: tuple[tuple[str, dict[str, str]], ...] = (
    ("count", {}),
    ("count", {"where": "declined"}),
    ("share", {"where": "declined"}),
    ("sum", {"column": "amount"}),
    ("mean", {"column": "latitude"}),
    ("std", {"column": "amount"}),
    ("max", {"column": "amount"}),
    ("min", {"column": "latitude"}),
    ("distinct", {"other": "merchant"}),
    ("distinct_share", {"other": "device"}),
)


def name_of(op: str, more: dict[str, str], window_s: int) -> str:
    return "_".join([op, *more.values(), str(window_s)])


CATALOG = Catalog(
    Feature(
        name_of(op, more, window_s), "payment", "card", op, "{value}",
        fitting(op, column=more.get("column")), "velocity", window_s=window_s, **more,
    )
    for window_s in WINDOWS_S
    for op, more in OPERATIONS
)  # fmt: skip


def payments(rng: np.random.Generator, n: int, card: str = "c") -> list[dict[str, Any]]:
    """A hot card: bursts, pauses, and now and then a silence longer than a pane or the window."""
    gaps = rng.choice(
        [0, 300_000, 2_000_000, 9_000_000, 40_000_000], n, p=[0.3, 0.3, 0.3, 0.09, 0.01]
    )
    gaps[rng.random(n) < 0.0004] = 3_590_000_000
    return [
        {
            "event_id": f"{card}{i}",
            "card_id": card,
            "user_id": "u",
            "time_us": START_US + int(time_us),
            "amount": float(rng.choice([0.01, 7.77, 1e6, rng.integers(1, 900)])),
            "declined": bool(rng.random() < 0.3),
            "merchant_id": f"m{rng.integers(60)}",
            "device_id": f"d{rng.integers(400)}" if rng.random() < 0.8 else None,
            "latitude": float(rng.integers(-90, 90)) if rng.random() < 0.5 else None,
            "longitude": 1.0,
        }
        for i, time_us in enumerate(np.cumsum(gaps))
    ]


def expected_of(op: str, more: dict[str, str], inside: list[dict[str, Any]]) -> float:
    """One statistic of the events of a window."""
    if "other" in more:
        found = {one[f"{more['other']}_id"] for one in inside} - {None}
        return len(found) / (len(inside) if op == "distinct_share" else 1)
    hits = [one for one in inside if "where" not in more or one["declined"]]
    if op in ("count", "share"):
        return len(hits) / (len(inside) if op == "share" else 1)
    numbers = [one[more["column"]] for one in hits if one[more["column"]] is not None]
    if op == "sum":
        return math.fsum(numbers)
    if len(numbers) < (2 if op == "std" else 1):
        return math.nan
    of = {"mean": statistics.fmean, "std": statistics.stdev, "max": max, "min": min}
    return float(of[op](numbers))


def cut(batch: EventBatch, rng: np.random.Generator) -> list[EventBatch]:
    """A batch in stretches of up to 200 rows."""
    edges = np.cumsum(rng.integers(1, 200, len(batch)))
    edges = [0, *edges[edges < len(batch)].tolist(), len(batch)]
    return [batch.take(np.arange(a, b)) for a, b in itertools.pairwise(edges)]


def values_of(engine: GroupEngine, batch: EventBatch) -> np.ndarray:
    part = split(CATALOG, {"payment": batch}, 1)[0]
    return engine.process(part)[0].parts["payment", "card"][1]


def test_a_paned_window_equals_its_naive_twin_and_all_others_stay_exact(
    rng: np.random.Generator,
) -> None:
    rows = payments(rng, 5_000)
    engine = GroupEngine(CATALOG, 0, exact_max=EXACT_MAX)
    batch = make_batch("payment", rows, partitions=1)
    values = np.concatenate([values_of(engine, part) for part in cut(batch, rng)])
    names = CATALOG.names("payment")
    twins = {w: PanedWindow(w, w if w < 3600 else 600, EXACT_MAX) for w in WINDOWS_S}
    told = bound = 0
    for i, row in enumerate(rows):
        now_us = row["time_us"]
        for window_s, twin in twins.items():
            twin.move(now_us)
            assert window_s == 3600 or not twin.panes
            old, most = twin.excess(now_us)
            assert old <= most
            told, bound = told + (most > 0), max(bound, most)
            twin.exact.append((now_us, row))
            if i % 5:
                continue
            inside = twin.events()
            for op, more in OPERATIONS:
                found = values[i, names.index(name_of(op, more, window_s))]
                wanted = expected_of(op, more, inside)
                assert found == pytest.approx(wanted, rel=1e-12, abs=1e-9, nan_ok=True), (i, op)
    assert engine.approximated == told > 100
    assert engine.excess_max == bound > 3


def test_what_is_told_bounds_the_error(rng: np.random.Generator) -> None:
    batch = {"payment": make_batch("payment", payments(rng, 4_000), partitions=1)}
    exact = OfflineEngine(CATALOG, 1).process(batch)["payment"].column("count_3600")
    engine = OfflineEngine(CATALOG, 1, exact_max=EXACT_MAX)
    paned = engine.process(batch)["payment"].column("count_3600")
    over = paned - exact
    assert over.min() == 0.0 < over.max() <= engine.engines[0].excess_max
    assert np.count_nonzero(over) <= engine.engines[0].approximated


def test_an_entity_with_fewer_events_is_exact_and_nothing_is_told(
    rng: np.random.Generator,
) -> None:
    batch = {"payment": make_batch("payment", payments(rng, 3_000), partitions=1)}
    exact = OfflineEngine(CATALOG, 1).process(batch)["payment"]
    engine = OfflineEngine(CATALOG, 1, exact_max=3_000)
    np.testing.assert_array_equal(engine.process(batch)["payment"].values, exact.values)
    assert engine.engines[0].approximated == engine.engines[0].excess_max == 0


def test_a_hot_entity_takes_the_memory_of_its_panes() -> None:
    """20 events a second for three hours: 72,000 records an hour, or 150, 10 minutes and panes."""
    rows = [
        {"event_id": str(i), "card_id": "c", "time_us": START_US + i * 50_000, "merchant_id": "m"}
        for i in range(100_000)
    ]
    batch = make_batch("payment", rows, partitions=1)
    taken = {}
    for exact_max in (0, EXACT_MAX):
        engine = GroupEngine(CATALOG, 0, late_s=0.0, exact_max=exact_max)
        for start in range(0, len(rows), 20_000):
            values_of(engine, batch.take(np.arange(start, start + 20_000)))
        parts = engine.memory_parts["card"]
        taken[exact_max] = sum(parts[name] for name in ("records", "idle", "panes"))
    assert taken[EXACT_MAX] < 0.3 * taken[0]


def test_reading_a_window_while_nothing_comes_lets_panes_leave_and_changes_nothing(
    rng: np.random.Generator,
) -> None:
    rows = payments(rng, 3_000)
    state = EntityState(plan_of(CATALOG).entities["card"], exact_max=EXACT_MAX)
    twin = PanedWindow(3600, 600, EXACT_MAX)
    part = split(CATALOG, {"payment": make_batch("payment", rows, partitions=1)}, 1)[0]
    state.process(part.heads["card"], part.reals["card"])
    for row in rows:
        twin.move(row["time_us"])
        twin.exact.append((row["time_us"], row))
    (ring,) = state.rings
    before = ring.ints.copy(), ring.floats.copy(), ring.panes_book.copy()
    names = CATALOG.names("payment")
    for wait_s in (0, 700, 2_000, 3_300, 4_000):
        at_us = rows[-1]["time_us"] + wait_s * 1_000_000
        out = np.full((1, len(names)), np.nan)
        ring.read(np.array([0]), np.array([at_us]), event_code("payment"), out)
        since_us = at_us - 3_600_000_000
        panes = [pane for pane in twin.panes if pane[-1][0] > since_us]
        inside = [e for pane in panes for _, e in pane]
        inside += [e for t, e in twin.exact if t > since_us]
        for op, more in OPERATIONS:
            if not inside and op in ("share", "distinct_share"):
                continue
            wanted = expected_of(op, more, inside)
            found = out[0, names.index(name_of(op, more, 3600))]
            assert found == pytest.approx(wanted, rel=1e-12, abs=1e-9, nan_ok=True), (wait_s, op)
    for was, now in zip(before, (ring.ints, ring.floats, ring.panes_book), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize("chain", [False, True])
def test_a_restored_state_goes_on_bit_for_bit(rng: np.random.Generator, chain: bool) -> None:
    parts = cut(make_batch("payment", payments(rng, 4_000), partitions=1), rng)
    engine = GroupEngine(CATALOG, 0, exact_max=EXACT_MAX)
    dumps = [engine.full()]
    expected = []
    for i, part in enumerate(parts):
        expected.append(values_of(engine, part))
        if i == len(parts) // 2:
            # Copied while rows go on, as the flow does.
            engine.begin(everything=not chain)
        if i == len(parts) // 2 + 3:
            dumps.append(join(engine.take()))
        elif chain and i < len(parts) // 2 and i % 3 == 0:
            dumps.append(engine.delta())
    after = parts[len(parts) // 2 + 1 :]
    base, deltas = (dumps[0], dumps[1:]) if chain else (dumps[-1], [])
    found = GroupEngine.restore(CATALOG, 0, base, deltas, exact_max=EXACT_MAX)
    for part, wanted in zip(after, expected[-len(after) :], strict=True):
        np.testing.assert_array_equal(values_of(found, part), wanted)


def test_late_events_leave_the_state_of_the_stream_in_order(rng: np.random.Generator) -> None:
    rows = payments(rng, 4_000)
    batch = make_batch("payment", rows, partitions=1)
    late_us = rng.random(len(rows)) * rng.choice([0.0, 59e6], len(rows))
    order = np.argsort(batch.time_us + late_us.astype(np.int64), kind="stable")
    ordered, shuffled = (GroupEngine(CATALOG, 0, exact_max=EXACT_MAX) for _ in range(2))
    for engine, at in ((ordered, np.arange(len(rows))), (shuffled, order)):
        clock_us = 0
        for start in range(0, len(rows), 37):
            part = batch.take(np.sort(at[start : start + 37]))
            clock_us = max(clock_us, int(part.time_us.max()))
            engine.process(split(CATALOG, {"payment": part}, 1, clock_us=clock_us)[0])
    assert shuffled.late > 500 and shuffled.late_beyond == 0
    last_us = rows[-1]["time_us"] - START_US
    more = payments(rng, 2_000)
    for row in more:
        row["time_us"] += last_us + 61_000_000
        row["event_id"] = f"x{row['event_id']}"
    after = make_batch("payment", more, partitions=1)
    np.testing.assert_array_equal(values_of(shuffled, after), values_of(ordered, after))


def test_the_setting_may_change_between_two_starts(rng: np.random.Generator) -> None:
    """Panes begin where there were none; without them a window goes on with the events it has."""
    parts = cut(make_batch("payment", payments(rng, 3_000), partitions=1), rng)
    exact, paned = GroupEngine(CATALOG, 0), GroupEngine(CATALOG, 0, exact_max=EXACT_MAX)
    for part in parts:
        values_of(exact, part)
        values_of(paned, part)
    last_us = int(parts[-1].time_us[-1])
    more = payments(rng, 2_000)
    for row in more:
        row["time_us"] += last_us - START_US
    after = make_batch("payment", more, partitions=1)
    restored = GroupEngine.restore(CATALOG, 0, exact.full(), [], exact_max=EXACT_MAX)
    less = GroupEngine.restore(CATALOG, 0, paned.full(), [])
    wanted = values_of(exact, after)
    found = values_of(less, after)
    at = CATALOG.names("payment").index("count_3600")
    gone = wanted[:, at] - found[:, at]
    assert gone[0] > 100 and np.all(np.diff(gone) <= 0) and gone[-1] == 0
    np.testing.assert_array_equal(found[gone == 0], wanted[gone == 0])
    values_of(restored, after)
    assert restored.approximated > 100
