"""The ring of records: edges of windows, hot entities, maxima, pairs; against plain lists."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

import numpy as np
import pytest

from features.arena import TOP
from features.catalog import Catalog
from features.engine import OfflineEngine
from features.plan import PAIR_TTL_S, plan_of
from features.spec import Feature
from features.state import EntityState
from features.windows import CAPACITY_MIN
from tests.naive import NaiveEngine, in_global_order
from tests.streams import START_US, make_batch
from tests.units import fitting

WINDOWS_S = (60, 300, 3600)


def feature(name: str, op: str, **more: Any) -> Feature:
    unit = fitting(op, column=more.get("column"))
    return Feature(name, "payment", "card", op, "{value}", unit, "velocity", **more)


CATALOG = Catalog(
    f
    for w in WINDOWS_S
    for f in (
        feature(f"count_{w}", "count", window_s=w),
        feature(f"declined_{w}", "count", where="declined", window_s=w),
        feature(f"share_{w}", "share", where="declined", window_s=w),
        feature(f"sum_{w}", "sum", column="amount", window_s=w),
        feature(f"sum_declined_{w}", "sum", column="amount", where="declined", window_s=w),
        feature(f"mean_declined_{w}", "mean", column="amount", where="declined", window_s=w),
        feature(f"mean_{w}", "mean", column="amount", window_s=w),
        feature(f"std_{w}", "std", column="amount", window_s=w),
        feature(f"max_{w}", "max", column="amount", window_s=w),
        feature(f"min_{w}", "min", column="amount", window_s=w),
        feature(f"max_place_{w}", "max", column="latitude", window_s=w),
        feature(f"distinct_{w}", "distinct", other="merchant", window_s=w),
        feature(f"distinct_share_{w}", "distinct_share", other="device", window_s=w),
    )
)

PAIRS = Catalog(
    [
        feature("first", "first_time", other="merchant"),
        feature("ever", "distinct_ever", other="merchant"),
        feature("since", "since_pair", other="merchant"),
    ]
)


def pay(i: int, time_us: int, **more: Any) -> dict[str, Any]:
    return {
        "event_id": str(i),
        "card_id": "c",
        "user_id": "u",
        "merchant_id": "m",
        "time_us": START_US + time_us,
        **more,
    }


def run(rows: list[dict[str, Any]]) -> Any:
    batch = make_batch("payment", rows, partitions=1)
    return OfflineEngine(CATALOG, 1).process({"payment": batch})["payment"]


@pytest.mark.parametrize("window_s", WINDOWS_S)
@pytest.mark.parametrize(("off_us", "counted"), [(-1, 2), (0, 1), (1, 1)])
def test_an_event_exactly_a_window_old_is_out(window_s: int, off_us: int, counted: int) -> None:
    """(t - w, t]: a kernel with >= for > fails here."""
    rows = [
        pay(0, 0, amount=5.0, declined=True, latitude=1.0, merchant_id="a"),
        pay(1, window_s * 1_000_000 + off_us, amount=3.0, merchant_id="b"),
    ]
    found = run(rows)

    def last(name: str) -> float:
        return float(found.column(f"{name}_{window_s}")[1])

    inside = counted == 2
    assert last("count") == counted
    assert last("declined") == (1.0 if inside else 0.0)
    assert last("share") == (0.5 if inside else 0.0)
    assert last("sum") == (8.0 if inside else 3.0)
    assert last("sum_declined") == (5.0 if inside else 0.0)
    assert last("max") == (5.0 if inside else 3.0)
    assert last("distinct") == counted
    assert math.isnan(last("std")) != inside
    assert math.isnan(last("mean_declined")) != inside
    assert math.isnan(last("max_place")) != inside


def test_the_row_itself_and_rows_of_the_same_time_before_it_are_in() -> None:
    found = run([pay(i, 0, amount=1.0 + i) for i in range(3)])
    assert found.column("count_60").tolist() == [1.0, 2.0, 3.0]
    assert found.column("sum_60").tolist() == [1.0, 3.0, 6.0]


def test_a_hot_entity_equals_plain_lists_at_every_row(rng: np.random.Generator) -> None:
    """Thousands of events an hour, amounts that cancel, ties in maxima, values that come again."""
    n = 6_000
    times = np.cumsum(rng.choice([0, 50_000, 900_000, 45_000_000], n, p=[0.3, 0.5, 0.18, 0.02]))
    amounts = rng.choice([0.01, 1e7, 3.0, 7.77, 7.77, 1e-3], n) + rng.integers(0, 3, n)
    rows = [
        pay(
            i,
            int(times[i]),
            amount=float(min(amounts[i], 1e7)),
            declined=bool(rng.random() < 0.3),
            merchant_id=f"m{rng.integers(40)}",
            device_id=f"d{rng.integers(5)}",
            latitude=None if rng.random() < 0.5 else float(rng.integers(-9, 9)),
        )
        for i in range(n)
    ]
    found = run(rows)
    for window_s in WINDOWS_S:
        inside: deque[dict[str, Any]] = deque()
        for i, row in enumerate(rows):
            inside.append(row)
            while inside[0]["time_us"] <= row["time_us"] - window_s * 1_000_000:
                inside.popleft()
            if i % 7 == 0:
                check(found, i, window_s, list(inside))


def check(found: Any, i: int, window_s: int, inside: list[dict[str, Any]]) -> None:
    """Every statistic of one window at one row."""

    def got(name: str) -> float:
        return float(found.values[i, found.names.index(f"{name}_{window_s}")])

    amounts = [r["amount"] for r in inside]
    declined = [r["amount"] for r in inside if r["declined"]]
    places = [r["latitude"] for r in inside if r["latitude"] is not None]
    assert got("count") == len(inside)
    assert got("declined") == len(declined)
    assert got("share") == len(declined) / len(inside)
    assert got("sum") == math.fsum(amounts)
    assert got("sum_declined") == math.fsum(declined)
    assert got("mean") == pytest.approx(math.fsum(amounts) / len(amounts), rel=1e-15)
    assert got("max") == max(amounts) and got("min") == min(amounts)
    assert got("distinct") == len({r["merchant_id"] for r in inside})
    assert got("distinct_share") == len({r["device_id"] for r in inside}) / len(inside)
    if places:
        assert got("max_place") == max(places)
    if len(amounts) > 1 and i % 49 == 0:
        assert got("std") == pytest.approx(statistics.stdev(amounts), rel=1e-12, abs=1e-12)


GAPS_US = (0, 1, 20_000_000, 59_999_999, 60_000_000, 300_000_000, 3_599_999_999, 3_600_000_000)
LONG_US = tuple(
    gap + off for gap in (1 << 32, 7_200_000_000, 1 << 33, 86_400_000_000) for off in (-1, 0, 1)
)


def read_by_logins(op: str, window_s: int, **more: Any) -> Feature:
    """A feature of a user's payments that its logins read: windows move on without a record."""
    name = "_".join(map(str, (op, window_s, *more.values())))
    unit = fitting(op, column=more.get("column"))
    more |= {"feeds": ("payment",), "window_s": window_s}
    return Feature(name, "login", "user", op, "{value}", unit, "velocity", **more)


@pytest.mark.parametrize("windows_s", [(60, 300, 3600), (60, 4294), (60, 3600, 4295), (60, 90_000)])
def test_gaps_of_any_length_leave_windows_exact(
    rng: np.random.Generator, windows_s: tuple[int, ...]
) -> None:
    """Records of windows up to 71.6 minutes have 32 bits of their times; longer ones all 64."""
    operations: tuple[tuple[str, dict[str, str]], ...] = (
        ("count", {}),
        ("count", {"where": "declined"}),
        ("sum", {"column": "amount"}),
        ("max", {"column": "amount"}),
        ("min", {"column": "amount"}),
        ("distinct", {"other": "merchant"}),
    )
    cat = Catalog([read_by_logins(op, w, **more) for w in windows_s for op, more in operations])
    (ring,) = plan_of(cat).entities["user"].rings
    assert ring.narrow == (max(windows_s) * 1_000_000 < 1 << 32)
    gaps = rng.choice([*GAPS_US * 4, *LONG_US], 400)
    times = (START_US + np.cumsum(gaps)).tolist()
    kinds = rng.choice(["payment", "login"], 400, p=[0.7, 0.3])
    rows = [
        {
            "event_id": str(i),
            "user_id": "u",
            "card_id": "c",
            "time_us": time_us,
            "merchant_id": f"m{rng.integers(4)}",
            "amount": float(rng.integers(1, 9)),
            "declined": bool(rng.random() < 0.4),
        }
        for i, time_us in enumerate(times)
    ]
    of = {
        kind: [row for row, its in zip(rows, kinds, strict=True) if its == kind]
        for kind in ("payment", "login")
    }
    of["login"] = [{k: r[k] for k in ("event_id", "user_id", "time_us")} for r in of["login"]]
    batches = {kind: make_batch(kind, one, partitions=1) for kind, one in of.items()}
    # A user idle for so long would be forgotten; windows alone are looked at.
    engine = OfflineEngine(cat, 1, ttl_h={"user": 0.0})
    naive = NaiveEngine(cat, ttl_s={"user": 10**9})
    matrix = engine.process(batches)["login"]
    expected = [e for e in naive.process(in_global_order(batches)) if e]
    for name in matrix.names:
        assert matrix.column(name).tolist() == pytest.approx(
            [one[name] for one in expected], rel=1e-12, nan_ok=True
        ), name
    assert np.unique(matrix.values[~np.isnan(matrix.values)]).size > 10


def test_blocks_of_rings_that_empty_are_used_again() -> None:
    """Bursts of many entities, each coming back once: the arena holds what lives at once."""
    state = EntityState(plan_of(CATALOG).entities["card"])
    for turn in range(60):
        start_us = turn * 7_200_000_000
        feed(state, [pay(i, start_us + i, card_id=f"c{turn}") for i in range(200)])
        feed(state, [pay(0, start_us + 3_700_000_000, card_id=f"c{turn}")])
    assert state.table.used == 60
    assert state.rings[0].book[TOP] <= 2 * 256 + 60 * CAPACITY_MIN


def feed(state: EntityState, rows: list[dict[str, Any]]) -> None:
    """Let rows pass one entity's state."""
    from features.split import split

    part = split(CATALOG, {"payment": make_batch("payment", rows)}, 1)[0]
    state.process(part.heads["card"], part.reals["card"])


def test_pairs_are_forgotten_once_they_cannot_matter() -> None:
    state = EntityState(plan_of(CATALOG).entities["card"])
    sizes = []
    for hour in range(40):
        rows = [
            pay(i, hour * 3_600_000_000 + i * 1_000_000, merchant_id=f"m{hour}-{i}")
            for i in range(1_500)
        ]
        feed(state, rows)
        sizes.append(len(state.rings[0].pairs.table))
    assert max(sizes) < 5 * 1_500, "an hour of window, an hour of slack, and what lies idle"


@pytest.mark.parametrize(("off_us", "first"), [(0, 0.0), (1, 1.0)])
def test_a_pair_not_met_for_longer_than_45_days_counts_as_new(off_us: int, first: float) -> None:
    again = PAIR_TTL_S * 1_000_000 + off_us
    rows = [pay(0, 0, merchant_id="a"), pay(1, 1, merchant_id="b"), pay(2, again, merchant_id="a")]
    found = OfflineEngine(PAIRS, 1).process({"payment": make_batch("payment", rows)})["payment"]
    assert found.column("first")[1:].tolist() == [1.0, first]
    assert found.column("ever").tolist() == [1.0, 2.0, 2.0 + first]
    known = found.column("since")[2]
    assert np.isnan(known) if first else known == PAIR_TTL_S


def test_a_pair_lives_on_in_the_distinct_count_of_its_window_alone() -> None:
    """The marks of one entity's values do not touch another entity with the same values."""
    rows = [pay(i, i * 20_000_000, card_id=f"c{i % 2}", merchant_id="m") for i in range(8)]
    found = run(rows)
    assert found.column("distinct_60").tolist() == [1.0] * 8
    assert found.column("count_60").tolist() == [1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_the_deviation_of_equal_amounts_is_zero_whatever_passed_before(
    rng: np.random.Generator,
) -> None:
    rows = []
    for day in range(300):
        # A minute of all kinds of amounts, an hour of silence but for the last of them, two equal.
        equal = round(float(rng.integers(1, 10_000)) / 100, 2)
        amounts = [*np.round(rng.lognormal(3.0, 2.0, 6), 2).tolist(), equal, equal, equal]
        at_s = day * 86_400
        times_s = [*(at_s + np.arange(6)).tolist(), at_s + 3_000, at_s + 3_640, at_s + 3_650]
        rows += [
            {"time_us": START_US + int(t * 1e6), "amount": a}
            for t, a in zip(times_s, amounts, strict=True)
        ]
    batch = make_batch("payment", rows)
    found = OfflineEngine(CATALOG, 2).process({"payment": batch})["payment"]
    std = found.values[:, CATALOG.names("payment").index("std_3600")].reshape(300, 9)
    assert np.all(std[:, 7:] == 0.0), "of two and of three equal amounts"
    assert np.all(std[:, 6] > 0.0)
