"""A level raised by a little each day: the plain baseline is trained by it, the anchor is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from features.anchors import ANCHOR_FLOATS, run_anchors
from features.batch import FeatureMatrix
from features.catalog import catalog
from features.engine import OfflineEngine
from tests.naive_baselines import Plain
from tests.streams import START_US, make_batch

Floats = npt.NDArray[np.float64]

DAY_US = 86_400_000_000.0

ALARM, CALM = 2.5, 1.6
"""Creep from which these tests would alarm, and below which all is usual. Measured: the largest of
60 series of 180 days was 0.9 for payments, 0.4 for samples, 0.5 for seasons, 1.2 for heavy tails
(in their robust deviation, which is smaller)."""

TAKEN_OVER = {
    "payments": (40, 40),
    "heavy tails": (50, 63),
    "samples": (32, 24),
    "seasons": (36, 24),
}
"""Days after which a change by 8 and by 3 deviations is usual. The 28 days start when the level of
the day stands, and start again where noise moves it; measured on 60 series: the slowest took 38,
43, 31 and 34 days, and 35, 57, 22 and 22."""

PLAIN_ALARM = 6.0
"""z of a plain baseline from which these tests would alarm; heavy tails pass 4 each day."""

ONES = np.ones((1, 1), np.bool_)
ZEROS = np.zeros((1, 1), np.int64)
PLAN = np.array([[op, 0, 0, op] for op in range(3)])


def anchored(days: Floats, values: Floats, state: Floats | None = None) -> Floats:
    """Anchor, anchor_z and creep (columns) of one entity's values."""
    n = len(values)
    out = np.full((n, 3), np.nan)
    taken_us = (START_US + days * DAY_US).astype(np.int64)
    rows = values.reshape(-1, 1)
    state = np.zeros((1, ANCHOR_FLOATS)) if state is None else state
    tables: Any = (ONES, ZEROS, ONES[0] & False, ZEROS[0], PLAN, np.array([0, 3]))
    slots, head = np.zeros(n, np.int64), np.zeros((n, 8), np.int64)
    run_anchors(slots, taken_us, head, rows, *tables, state, out)
    return out


def traffic(kind: str, rng: np.random.Generator, days: float) -> tuple[Floats, Floats]:
    """Times in days, and values of deviation 1 about 20."""
    if kind in ("payments", "heavy tails"):
        at = np.cumsum(rng.exponential(1 / 10, int(10 * days)))
        noise = rng.normal(size=len(at))
        return at, 20.0 + (rng.standard_t(3, len(at)) / 1.7 if kind == "heavy tails" else noise)
    at = np.arange(0.0, days, 1 / 96)
    noise = rng.normal(size=len(at))
    if kind == "samples":
        return at, 20.0 + noise
    weekend = (np.floor(at) + 2) % 7 >= 5
    values = 2.0 * np.sin(2 * np.pi * at) + 1.0 * weekend + 0.5 * noise
    return at, 20.0 + values / values.std()


def plain_alarms(values: Floats, since: int) -> int:
    """Alarms of the plain baseline from value `since` on."""
    plain, found = Plain(), 0
    for i, x in enumerate(values.tolist()):
        found += i >= since and abs(plain.z(x)) > PLAIN_ALARM
        plain.learn(x)
    return found


KINDS = ("payments", "heavy tails", "samples", "seasons")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("per_day", "days"), [(0.2, 35), (0.3, 21), (0.5, 12), (1.0, 7)])
def test_a_slow_ramp_that_trains_the_plain_baseline_is_seen(
    kind: str, per_day: float, days: int, seed: int
) -> None:
    for number in range(3):
        rng = np.random.default_rng([seed, number])
        at, values = traffic(kind, rng, 120.0)
        ramp = per_day * np.clip(at - 60.0, 0.0, None)
        creep = anchored(at, values + ramp)[:, 2]
        seen = at[np.abs(creep) > ALARM]
        assert 60.0 < seen[0] <= 60.0 + days
        # And it goes on being seen: the anchor is not trained in the eight weeks that follow.
        assert (creep[at > 60.0 + days] > ALARM).all()
        # Falling is seen like rising.
        falling = anchored(at, values - ramp)[:, 2]
        assert at[np.abs(falling) > ALARM][0] <= 60.0 + days
        since = int(np.searchsorted(at, 60.0))
        usual = plain_alarms(values, since)
        assert plain_alarms((values + ramp)[: since + len(at) // 4], since) <= usual + 1


@pytest.mark.parametrize("kind", KINDS)
def test_usual_traffic_does_not_alarm(kind: str, seed: int) -> None:
    for number in range(10):
        at, values = traffic(kind, np.random.default_rng([seed, number]), 180.0)
        creep = anchored(at, values)[:, 2]
        assert np.nanmax(np.abs(creep)) < CALM


def test_a_burst_weighs_as_much_as_the_time_it_takes(rng: np.random.Generator) -> None:
    at, values = traffic("payments", rng, 60.0)
    burst = at[-1] + np.arange(1, 1_001) / 1_440
    found = anchored(np.append(at, burst), np.append(values, np.full(1_000, 40.0)))
    # Within a day at most a day's share of the way an anchor may go in four weeks.
    assert abs(found[-1, 0] - found[len(at), 0]) < 1.5 * 1.1 / 28
    assert found[-1, 1] > 5.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [8.0, -8.0])
def test_a_change_that_lasts_is_accepted_after_four_weeks(
    kind: str, step: float, seed: int
) -> None:
    at, values = traffic(kind, np.random.default_rng(seed), 140.0)
    found = anchored(at, values + step * (at >= 60.0))
    creep = np.abs(found[:, 2])
    rest = abs(step) / 3.0 + 4.0  # days until the level of the day stands
    assert (creep[(at > 60.0 + rest) & (at < 60.0 + 27.0)] > 2.0).all()
    assert (creep[at > 60.0 + TAKEN_OVER[kind][0]] < CALM).all()
    assert found[-1, 0] == pytest.approx(20.0 + step, abs=0.6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_moderate_change_is_followed_within_weeks(kind: str, seed: int) -> None:
    at, values = traffic(kind, np.random.default_rng(seed), 140.0)
    creep = np.abs(anchored(at, values + 3.0 * (at >= 60.0))[:, 2])
    assert creep[(at > 64.0) & (at < 70.0)].min() > 1.5
    assert creep[at > 60.0 + TAKEN_OVER[kind][1]].max() < CALM


def test_a_small_change_is_followed_half_the_way_in_three_weeks(seed: int) -> None:
    at, values = traffic("samples", np.random.default_rng(seed), 120.0)
    anchor = anchored(at, values + 1.2 * (at >= 60.0))[:, 0]
    half = at[(anchor > 20.6) & (at > 60.0)][0] - 60.0
    assert 15.0 < half < 28.0
    assert anchor[-1] == pytest.approx(21.2, abs=0.35)


def test_the_deviation_does_not_grow_with_the_ramp_it_is_to_see(seed: int) -> None:
    at, values = traffic("samples", np.random.default_rng(seed), 112.0)
    before, after = np.zeros((1, ANCHOR_FLOATS)), np.zeros((1, ANCHOR_FLOATS))
    known = at < 84.0
    anchored(at[known], values[known], before)
    anchored(at, values + np.clip(at - 84.0, 0.0, None), after)
    assert before[0, 2] == pytest.approx(1.0, abs=0.1)
    assert after[0, 2] < 1.45 * before[0, 2]
    assert after[0, 1] - before[0, 1] < 1.5 * 1.45 * before[0, 2]


SPREAD = 0.4
"""Deviation of the logarithm of an amount."""


def card_of(per_day: float, seed: int) -> tuple[Floats, FeatureMatrix]:
    """Payments of a card, ten a day for 120 days, raised by so many deviations a day from the 60th
    on: days, and all features that are shipped."""
    rng = np.random.default_rng(seed)
    at, values = traffic("payments", rng, 120.0)
    ramp = per_day * np.clip(at - 60.0, 0.0, None)
    rows = [
        {
            "event_id": f"p{i}",
            "time_us": int(START_US + day * DAY_US),
            "amount": float(np.exp(3.0 + SPREAD * (x - 20.0))),
        }
        for i, (day, x) in enumerate(zip(at.tolist(), (values + ramp).tolist(), strict=True))
    ]
    batch = make_batch("payment", rows)
    return at, OfflineEngine(catalog(), 1).process({"payment": batch})["payment"]


def test_the_features_that_are_shipped_see_a_ramp_that_their_own_deviation_does_not(
    seed: int,
) -> None:
    at, found = card_of(0.3, seed)
    _, usual = card_of(0.0, seed)
    ramped = at > 60.0
    z, z_usual = (np.abs(m.column("card_amount_z"))[ramped] for m in (found, usual))
    assert z.max() < PLAIN_ALARM and z_usual.max() < PLAIN_ALARM, "it is trained on the way"
    for name in ("card_amount_creep", "merchant_amount_creep", "user_amount_creep"):
        creep, creep_usual = found.column(name), usual.column(name)
        assert np.nanmax(np.abs(creep_usual)) < CALM
        assert 60.0 < at[creep > ALARM][0] <= 81.0
        assert (creep[at > 81.0] > ALARM).all()
