"""A level raised by a little each day: the plain baseline is trained by it, the anchor is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from features.anchors import ANCHOR_FLOATS, run_anchors
from features.batch import FeatureMatrix
from features.catalog import Catalog, catalog
from features.engine import OfflineEngine
from tests.naive_baselines import Plain
from tests.streams import START_US, make_batch
from tests.units import series_catalog

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
NUMBER = np.zeros(1, np.bool_)
PLAN = np.array([[op, 0, 0, op] for op in range(3)])


def anchored(
    days: Floats, values: Floats, state: Floats | None = None, flag: bool = False
) -> Floats:
    """Anchor, anchor_z and creep (columns) of one entity's values."""
    n = len(values)
    out = np.full((n, 3), np.nan)
    taken_us = (START_US + days * DAY_US).astype(np.int64)
    rows = values.reshape(-1, 1)
    state = np.zeros((1, ANCHOR_FLOATS)) if state is None else state
    tables: Any = (ONES, ZEROS, ONES[0] & False, ZEROS[0], PLAN, np.array([0, 3]))
    slots, head = np.zeros(n, np.int64), np.zeros((n, 8), np.int64)
    flags = NUMBER | flag
    run_anchors(slots, taken_us, head, rows, *tables, flags, state, np.ones((n, 1)), out)
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


@pytest.mark.parametrize("wild", [50.0, 1_000.0])
@pytest.mark.parametrize("number", [1, 2, 6, 15, 16])
def test_one_wild_value_at_the_beginning_blinds_no_anchor(
    wild: float, number: int, seed: int
) -> None:
    for kind, per_day, days in (("payments", 0.2, 35), ("samples", 0.3, 21), ("seasons", 0.5, 12)):
        at, values = traffic(kind, np.random.default_rng(seed), 120.0)
        values[number - 1] += wild
        usual = np.abs(anchored(at, values)[:, 2])
        assert usual[at > 30.0].max() < CALM
        ramp = per_day * np.clip(at - 60.0, 0.0, None)
        creep = anchored(at, values + ramp)[:, 2]
        seen = at[(np.abs(creep) > ALARM) & (at > 30.0)]
        assert 60.0 < seen[0] <= 60.0 + days
        assert (creep[at > 60.0 + days] > ALARM).all()


def test_a_declined_payment_of_a_million_among_the_first_five_hides_no_ramp(seed: int) -> None:
    at, found = card_of(0.3, seed, wild=4)
    creep = found.column("card_amount_creep")
    assert np.nanmax(np.abs(creep[(at > 30.0) & (at < 60.0)])) < CALM
    assert 60.0 < at[(creep > ALARM) & (at > 30.0)][0] <= 81.0
    assert (creep[at > 81.0] > ALARM).all()


@pytest.mark.parametrize("number", [6, 15])
def test_a_wild_value_is_held_in_a_fast_mean_that_is_young(number: int, seed: int) -> None:
    at, values = traffic("payments", np.random.default_rng(seed), 40.0)
    usual = fast(at, values).column("z")
    values[number - 1] += 1_000.0
    z = fast(at, values).column("z")
    assert np.abs(z[100:] - usual[100:]).max() < 1.0
    assert z[number - 1] > 3.0, "it is told"


MEANS = series_catalog(("z", "drift", "usual_std", "season_z", "week_z", "trend"))
"""What one wild value could spoil for long."""


@pytest.mark.parametrize("wild", [50.0, 1_000.0])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16])
def test_one_wild_value_at_the_beginning_blinds_no_baseline(
    wild: float, number: int, seed: int
) -> None:
    """A sample a minute, one hour a day: what is ten deviations off at the end of the first hour is
    told, and so is the half hour that rises by ten on the second day; as it is told without."""
    values = 20.0 + np.random.default_rng(seed).normal(size=120)
    values[59] += 10.0
    values[90:] += np.arange(1, 31) / 3.0
    at = 60 / 1_440 + np.repeat([0.0, 1.0], 60) + np.tile(np.arange(60), 2) / 1_440
    spoilt = values.copy()
    spoilt[number - 1] += wild
    usual, found = (fast(at, v, MEANS) for v in (values, spoilt))
    for op in ("z", "season_z", "week_z"):
        column = found.column(op)
        assert column[59] > 2.5, op
        assert column[119] > 2.5, op
        assert np.abs(column[30:59]).max() < 6.0, op
    assert found.column("drift")[119] > 2.5
    assert found.column("usual_std")[59] < 2.5 * usual.column("usual_std")[59]
    assert found.column("trend")[119] > 0.4 * usual.column("trend")[119] > 1.0


def test_a_value_beyond_all_bounds_leaves_no_mean_without_a_number(seed: int) -> None:
    at, values = traffic("payments", np.random.default_rng(seed), 40.0)
    for number in (2, 11, 200):
        spoilt = values.copy()
        spoilt[number] = 1e200
        found = fast(at, spoilt)
        for op in ("z", "drift", "season_z"):
            assert not np.isinf(found.column(op)).any()
        assert number < 5 or np.abs(found.column("z")[number + 1 :]).max() > 0.5


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


FLAG_CALM = 0.8
"""Creep of a flag below which all is usual, at a hundred values a day. Measured: the largest of
30 series of 30 days was 0.53."""


@pytest.mark.parametrize(
    ("usual", "share", "odd", "days"),
    [(0.0, 1.0, 5.0, 40), (0.0, 0.3, 1.2, 50), (0.05, 0.3, 0.4, 35), (0.05, 0.6, 1.2, 65),
     (0.5, 0.95, 0.5, 30)],
)  # fmt: skip
def test_a_share_that_lasts_is_taken_over_whether_a_rival_stands_or_the_anchor_follows(
    usual: float, share: float, odd: float, days: int, seed: int
) -> None:
    """Measured on twelve series: the slowest took 30, 35, 19, 47 and 18 days."""
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1 / 100, 16_000))
    values = (rng.random(len(at)) < np.where(at < 60.0, usual, share)).astype(np.float64)
    found = anchored(at, values, flag=True)
    creep = np.abs(found[:, 2])
    assert creep[(at > 30.0) & (at < 60.0)].max() < FLAG_CALM, "usual days"
    assert np.median(creep[(at > 62.0) & (at < 68.0)]) > odd, "it is seen first"
    assert creep[at > 60.0 + days].max() < FLAG_CALM
    assert found[-1, 0] == pytest.approx(share, abs=0.1)


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


def card_of(per_day: float, seed: int, wild: int = -1) -> tuple[Floats, FeatureMatrix]:
    """Payments of a card, ten a day for 120 days, raised by so many deviations a day from the 60th
    on, number `wild` a declined one of a million: days, and all features that are shipped."""
    rng = np.random.default_rng(seed)
    at, values = traffic("payments", rng, 120.0)
    ramp = per_day * np.clip(at - 60.0, 0.0, None)
    rows = [
        {
            "event_id": f"p{i}",
            "time_us": int(START_US + day * DAY_US),
            "amount": 1e6 if i == wild else float(np.exp(3.0 + SPREAD * (x - 20.0))),
            "declined": i == wild,
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


FAST = series_catalog(("z", "drift", "season_z"))
"""Fast baselines alone: their slow twins are kept though no feature reads them."""

FAST_ALARM, FAST_CALM = 4.0, 3.2
"""Drift from which these tests would alarm, and below which all is usual. Measured: the largest of
usual traffic was 0.9 for payments, 2.5 for heavy tails, 1.0 for samples, 1.6 for seasons; with
weights left out it was 2.4, 2.7, 1.4 and 2.0 while a ramp of half a deviation a day went on for 60
days."""


def fast(at: Floats, values: Floats, features: Catalog = FAST) -> FeatureMatrix:
    """Features of means for one series."""
    rows = [
        {"event_id": f"m{i}", "time_us": int(START_US + day * DAY_US), "host": "h",
         "metric": "cpu", "service": "web", "value": value}
        for i, (day, value) in enumerate(zip(at.tolist(), values.tolist(), strict=True))
    ]  # fmt: skip
    batch = make_batch("metric", rows, partitions=1)
    return OfflineEngine(features, 1).process({"metric": batch})["metric"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_day", [0.5, 1.0])
def test_a_fast_baseline_beside_a_slow_one_falls_behind_a_ramp_and_tells(
    kind: str, per_day: float, seed: int
) -> None:
    at, values = traffic(kind, np.random.default_rng(seed), 125.0)
    raised = values + per_day * np.clip(at - 60.0, 0.0, None)
    found, usual = fast(at, raised), fast(at, values)
    assert np.nanmax(np.abs(usual.column("drift")[at > 10.0])) < FAST_CALM
    drift = found.column("drift")
    seen = at[drift > FAST_ALARM]
    assert 60.0 < seen[0] <= 100.0
    # It goes on being seen, by each value on its own too.
    assert (drift[at > 110.0] > 0.6 * FAST_ALARM).all()
    assert np.nanmedian(found.column("z")[at > 110.0]) > FAST_ALARM
    since = int(np.searchsorted(at, 60.0))
    plain = Plain()
    z = []
    for x in raised.tolist():
        z.append(plain.z(x))
        plain.learn(x)
    assert np.median(z[since:]) < 1.5, "the plain baseline is trained"


def test_an_hour_of_the_day_beside_that_of_the_week_falls_behind_a_ramp(seed: int) -> None:
    at, values = traffic("seasons", np.random.default_rng(seed), 120.0)
    raised = values + 0.5 * np.clip(at - 60.0, 0.0, None)
    z, z_usual = (np.abs(fast(at, v).column("season_z")) for v in (raised, values))
    plain = [Plain(128.0) for _ in range(24)]
    z_plain = np.zeros(len(at))
    for i, (day, x) in enumerate(zip(at.tolist(), raised.tolist(), strict=True)):
        hour = plain[int(day * 24 + 1e-9) % 24]
        z_plain[i] = hour.z(x)
        hour.learn(x)
    assert np.nanmax(z_usual) < 5.0
    assert np.abs(z_plain[at > 80.0]).max() < 4.0, "the plain baseline is trained"
    assert 60.0 < at[z > 6.0][0] <= 80.0
    assert np.median(z[at > 100.0]) > 6.0


def homes(step_km: float, seed: int) -> tuple[Floats, Floats]:
    """Distance from home of a card that from its 400th payment on moves east by so much a payment,
    and from a plain mean of 64 places."""
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1 / 10, 1_000))
    km = rng.normal(0.0, 5.0, (len(at), 2))
    km[:, 0] += step_km * np.clip(np.arange(len(at)) - 400, 0, None)
    rows = [
        {
            "event_id": f"p{i}",
            "time_us": int(START_US + day * DAY_US),
            "latitude": north / 111.2,
            "longitude": east / 111.2,
        }
        for i, (day, (east, north)) in enumerate(zip(at.tolist(), km.tolist(), strict=True))
    ]
    batch = {"payment": make_batch("payment", rows, partitions=1)}
    matrix = OfflineEngine(catalog(("payment",)), 1).process(batch)["payment"]
    home, plain = km[0], []
    for n, place in enumerate(km):
        plain.append(float(np.hypot(*(place - home))))
        home = home + max(1.0 / (n + 1), 1.0 / 64.0) * (place - home)
    return matrix.column("card_home_km"), np.array(plain)


def test_a_home_beside_a_slow_one_is_not_taken_along(seed: int) -> None:
    usual, usual_plain = homes(0.0, seed)
    assert np.nanmax(np.abs(usual - usual_plain)[3:]) < 2.0
    found, plain = homes(1.0, seed)
    assert plain.max() < 90.0
    assert (found[600:] > 120.0).all() and found[-50:].mean() > 190.0


def test_a_rate_that_trains_the_usual_count_is_seen_by_its_level_of_weeks(seed: int) -> None:
    """Logins at an address: ten a day at first, from the 60th day on 7 % more each day."""
    rng = np.random.default_rng(seed)

    def logins(growth: float) -> tuple[Floats, FeatureMatrix]:
        day, at = 0.0, []
        while day < 100.0:
            day += rng.exponential(1 / (10.0 * (1.0 + growth) ** max(day - 60.0, 0.0)))
            at.append(day)
        rows = [
            {"event_id": f"l{i}", "time_us": int(START_US + day * DAY_US)}
            for i, day in enumerate(at)
        ]
        batch = {"login": make_batch("login", rows, partitions=1)}
        return np.array(at), OfflineEngine(catalog(("login",)), 1).process(batch)["login"]

    (at, found), (at_usual, usual) = logins(0.07), logins(0.0)
    late = at > 95.0
    # What is usual grows along: counts stay close above it.
    assert np.median(found.column("ip_surprise_1h")[late]) < 1.6
    assert np.nanmax(np.abs(usual.column("ip_rate_creep")[at_usual > 30.0])) < CALM
    assert np.median(found.column("ip_rate_creep")[late]) > ALARM


def test_strangers_that_come_a_little_more_often_each_day_are_seen(seed: int) -> None:
    """Of flags: from the 60th day on ten strangers a day more each day, five of a hundred before.

    Measured: usual days stray from the share of weeks by at most 0.3 deviations of a flag.
    """
    rng = np.random.default_rng(seed)

    def shop(more: float) -> tuple[Floats, FeatureMatrix]:
        day, told = 0.0, []
        while day < 110.0:
            strangers = 5.0 + more * max(day - 60.0, 0.0)
            day += rng.exponential(1 / (95.0 + strangers))
            new = rng.random() < strangers / (95.0 + strangers)
            told.append((day, f"new{len(told)}" if new else f"c{rng.integers(20)}"))
        rows = [
            {"event_id": f"s{i}", "time_us": int(START_US + day * DAY_US), "card_id": card,
             "merchant_id": "shop"}
            for i, (day, card) in enumerate(told)
        ]  # fmt: skip
        batch = {"payment": make_batch("payment", rows, partitions=1)}
        matrix = OfflineEngine(catalog(("payment",)), 1).process(batch)["payment"]
        return np.array([day for day, _ in told]), matrix

    (at, found), (at_usual, usual) = shop(10.0), shop(0.0)
    late = (at > 75.0) & (at < 95.0)
    trained = np.abs(found.column("merchant_strangers"))
    assert trained[at > 65.0].max() < 2.0, "as on usual days"
    assert np.nanmax(np.abs(usual.column("merchant_strangers_creep")[at_usual > 30.0])) < 0.6
    assert (found.column("merchant_strangers_creep")[late] > 0.8).all()
