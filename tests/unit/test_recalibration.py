"""Rules that follow live traffic: drifted streams keep their share, attackers do not lift it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from dataflows.control.records import Control, parse_record
from features.batch import Float64
from models.recalibration import (
    BLOCKS,
    ENTITIES_MAX,
    SHIFT_MAX,
    Follower,
    Recalibration,
    margins_of,
    shifted,
    spread_of,
)

HOUR_US = 3_600_000_000
SHARE = 0.002
ROWS = 20_000
"""Events of an hour."""

LIVE = Recalibration(SHARE, percent_a_day=10.0)
NAIVE = Recalibration(SHARE, percent_a_day=1e6, freeze_ratio=1e6)
"""What a recalibration without bounds is: wherever the last day's events are, it goes."""


def genuine(rng: np.random.Generator, drift: float) -> Float64:
    """Margins of an hour's genuine events; `drift` in log10 of the tail probability."""
    return -np.log10(rng.random(ROWS)) + np.log10(SHARE) + drift


def lived(
    options: Recalibration | None,
    rng: np.random.Generator,
    days: int,
    drift: Callable[[int], float] = lambda _hour: 0.0,
    attack: Callable[[int], int] = lambda _hour: 0,
    frozen: Callable[[int], bool] = lambda _hour: False,
    merchants: int = 0,
) -> tuple[list[float], list[float]]:
    """Shift after, and share of genuine events flagged in, each hour; attacks are plain ones."""
    follower = None if options is None else Follower(options)
    shift, shifts, shares = 0.0, [], []
    for hour in range(24 * days):
        usual = genuine(rng, drift(hour))
        shares.append(float((usual >= shift).mean()))
        margins = np.concatenate((usual, np.full(attack(hour), 2.0)))
        if follower is not None:
            draw = np.random.default_rng(hour)
            whose = np.where(draw.random(ROWS) < 0.1, 0, draw.integers(0, 200, ROWS))
            theirs = 1_000 + np.arange(attack(hour)) % (merchants or 10_000)
            touched = np.concatenate((whose, theirs))[margins >= shift]
            entities = Counter(f"merchant m{m}" for m in touched)
            spread = spread_of("payment_fraud", "b", margins, margins >= shift, entities)
            found = follower.take(hour * HOUR_US, spread, shift, frozen(hour))
            shift = shift if found is None else found
        shifts.append(shift)
    return shifts, shares


def test_a_drifted_stream_keeps_its_false_alarms_and_loses_them_without(
    rng: np.random.Generator,
) -> None:
    def slowly(hour: int) -> float:
        return min(hour / 24 / 14, 1.0) * np.log10(2.0)  # twice as many within two weeks

    _, held = lived(LIVE, rng, 21, slowly)
    _, left = lived(None, rng, 21, slowly)
    last = slice(-72, None)
    assert np.mean(left[last]) == pytest.approx(2.0 * SHARE, rel=0.1)
    assert np.mean(held[last]) == pytest.approx(SHARE, rel=0.15)


def test_a_stream_that_grows_calm_is_listened_to_more_closely(rng: np.random.Generator) -> None:
    shifts, held = lived(LIVE, rng, 14, lambda _hour: -0.3)
    assert shifts[-1] == pytest.approx(-0.3, abs=0.06) and np.mean(held[:24]) < 0.6 * SHARE
    assert np.mean(held[-72:]) == pytest.approx(SHARE, rel=0.15)


def test_an_attacker_lifts_a_naive_recalibration_and_not_this_one(
    rng: np.random.Generator,
) -> None:
    def flood(hour: int) -> int:
        return 20 * round(SHARE * ROWS) if 48 <= hour < 96 else 0  # two days of it

    naive, _ = lived(NAIVE, rng, 4, attack=flood)
    ours, _ = lived(LIVE, rng, 4, attack=flood)
    assert max(naive) >= 1.0, "the naive one goes where the attacker wants it"
    assert max(np.abs(ours)) < 0.05
    assert ours[95] == ours[49], "while more alerts come than may be, nothing moves"


def test_an_attacker_of_some_hours_a_day_who_stays_below_the_limit_lifts_nothing(
    rng: np.random.Generator,
) -> None:
    def bursts(hour: int) -> int:
        return round(1.8 * SHARE * ROWS) if hour % 24 < 10 else 0

    fast = Recalibration(SHARE, percent_a_day=1_000.0)
    ours, _ = lived(fast, rng, 7, attack=bursts)
    assert max(ours) < 0.12, "the median of a day's hours hears the other fourteen"


def test_an_attacker_who_never_rests_lifts_it_by_no_more_than_its_day_allows(
    rng: np.random.Generator,
) -> None:
    days = 6
    ours, _ = lived(LIVE, rng, days, attack=lambda _hour: round(1.8 * SHARE * ROWS))
    moved = np.array([ours[24 * (d + 1) - 1] for d in range(days)])
    most = np.log10(1.1)
    assert 0.0 < moved[-1] <= days * most
    assert np.diff(moved).max() <= most * (1.0 + 1e-9)


def test_an_attacker_who_grows_slowly_over_days_lifts_it_by_no_more_than_its_days_allow(
    rng: np.random.Generator,
) -> None:
    def slowly(hour: int) -> int:
        return round(min(hour / 24 / 10, 1.0) * 1.9 * SHARE * ROWS)  # below the limit on all days

    days = 12
    naive, _ = lived(NAIVE, rng, days, attack=slowly)
    ours, _ = lived(LIVE, rng, days, attack=slowly)
    moved = np.array([0.0, *(ours[24 * (d + 1) - 1] for d in range(days))])
    assert max(naive) >= SHIFT_MAX, "the naive one goes where the attacker wants it"
    assert np.diff(moved).max() <= np.log10(1.1) * (1.0 + 1e-9)


def test_a_campaign_of_one_merchant_lifts_nothing_though_it_never_rests_and_stays_below_the_limit(
    rng: np.random.Generator,
) -> None:
    def steady(_hour: int) -> int:
        return round(1.8 * SHARE * ROWS)

    many, _ = lived(LIVE, rng, 14, attack=steady)
    one, _ = lived(LIVE, rng, 14, attack=steady, merchants=1)
    assert many[-1] > 0.4 and max(one) < 0.07
    _, shares = lived(LIVE, rng, 21, attack=lambda hour: steady(hour) if hour % 3 else 0,
                      merchants=1)  # fmt: skip
    assert np.mean(shares[-72:]) == pytest.approx(SHARE, rel=0.15), "nor does it press it down"


def test_who_holds_the_thresholds_down_is_named_until_a_block_is_as_asked() -> None:
    follower = Follower(Recalibration(0.01, 10.0))

    def hour(number: int, of_one: int, flagged: int) -> str:
        margins = np.concatenate((np.full(2_000 - flagged, -1.0), np.ones(flagged)))
        entities = {"merchant m7": of_one} | {f"card c{k}": 1 for k in range(flagged)}
        spread = spread_of("t", "b", margins, margins > 0, entities)
        follower.take(number * HOUR_US, spread, 0.0, False)
        return follower.campaign

    assert hour(0, 0, 0) == "", "an hour is not over before it has passed"
    assert hour(1, 20, 44) == "merchant m7 has 20 of 44 alerts, where 40 are asked for"
    assert follower.blocks == [0.0], "without it there would be no more than are asked for"
    assert hour(2, 20, 19) == "", "there are no more than are asked for"
    assert hour(3, 4, 40) == "", "there would be more without it"
    assert follower.blocks[-1] > 0.9


def test_of_many_entities_those_with_the_most_alerts_are_counted(rng: np.random.Generator) -> None:
    follower = Follower(LIVE)
    true: Counter[str] = Counter()
    for _ in range(30):
        names = np.where(rng.random(2_000) < 0.05, 0, rng.integers(1, 20_000, 2_000))
        entities = Counter(f"card c{k}" for k in names)
        true += entities
        margins = np.ones(2_000)
        follower.take(0, spread_of("t", "b", margins, margins > 0, entities), 0.0, False)
        assert len(follower.entities) <= ENTITIES_MAX
    counted, there = follower.entities["card c0"], true["card c0"]
    assert there - true.total() / ENTITIES_MAX <= counted <= there
    assert max(follower.entities, key=follower.entities.__getitem__) == "card c0"


def test_a_frozen_rule_neither_moves_nor_learns(rng: np.random.Generator) -> None:
    def drift(hour: int) -> float:
        return 0.3 if hour >= 48 else 0.0

    stood, _ = lived(LIVE, rng, 6, drift, frozen=lambda hour: hour >= 48)
    went, _ = lived(LIVE, rng, 6, drift)
    assert stood[-1] == stood[48] and went[-1] > 0.1
    after, _ = lived(LIVE, rng, 6, drift, frozen=lambda hour: 48 <= hour < 96)
    assert after[95] == after[48] < after[-1]


def test_it_never_goes_further_than_ten_times(rng: np.random.Generator) -> None:
    loose = Recalibration(SHARE, percent_a_day=1e6, freeze_ratio=1e6)
    shifts, _ = lived(loose, rng, 3, lambda _hour: 1.4)
    assert shifts[-1] == SHIFT_MAX


def test_few_events_make_a_long_block_and_few_blocks_no_move(rng: np.random.Generator) -> None:
    follower = Follower(LIVE)
    spread = spread_of("t", "b", np.full(10, 1.0), np.ones(10, np.bool_))
    for hour in range(100):
        assert follower.take(hour * HOUR_US, spread, 0.0, False) is None
    assert follower.blocks == [], "a thousand events are asked for two alerts"
    shifts, _ = lived(LIVE, rng, 2, lambda _hour: 0.3)
    first = next(hour for hour, shift in enumerate(shifts) if shift)
    assert first == BLOCKS


def test_what_a_snapshot_holds_goes_on_as_if_nothing_had_been(rng: np.random.Generator) -> None:
    one, other = Follower(LIVE), Follower(LIVE)
    shift = 0.0
    for hour in range(3 * BLOCKS):
        margins = genuine(rng, 0.2)
        for part in np.array_split(margins, 3):  # rounds of an hour
            touched = Counter(f"card c{k}" for k in rng.integers(0, 50, (part >= shift).sum()))
            spread = spread_of("t", "b", part, part >= shift, touched)
            found = one.take(hour * HOUR_US, spread, shift, False)
            other = Follower.of(LIVE, json.loads(json.dumps(other.kept())))
            assert other.take(hour * HOUR_US, spread, shift, False) == found
            shift = shift if found is None else found
    assert shift > 0.05 and other.kept() == one.kept()


def test_margins_say_up_to_which_shift_an_event_is_flagged(rng: np.random.Generator) -> None:
    n = 2_000
    scores = 1.0 - 10.0 ** -rng.exponential(1.0, (n, 3))
    scores[rng.random((n, 3)) < 0.2] = np.nan
    voted = 1.0 - 10.0 ** -rng.exponential(1.0, n)
    limits, limit = np.array([0.9, 0.8, 0.95]), 0.85
    for needed in (1, 2, 3):
        margins = margins_of(scores, limits, voted, limit, needed)
        for shift in (-0.5, 0.0, 0.7):
            lines = np.array([shifted(x, shift) for x in limits])
            votes = np.count_nonzero(scores >= lines, axis=1)
            flagged = (votes >= needed) & (voted >= shifted(limit, shift))
            sure = np.abs(margins - shift) > 1e-9
            assert np.array_equal(flagged[sure], (margins >= shift)[sure])
    assert (margins_of(scores, limits, voted, limit, 4) == -np.inf).all()


def test_records_are_in_force_for_their_bundle_alone_and_can_be_put_in_force_again() -> None:
    told = [
        {
            "kind": "recalibrate",
            "anomaly_type": "payment_fraud",
            "percent_a_day": 5,
            "share": 0.002,
        },
        {"kind": "shift", "anomaly_type": "payment_fraud", "bundle": "a" * 16, "value": 0.25},
        {"kind": "freeze", "anomaly_type": "payment_fraud", "state": "on"},
    ]
    control = Control.of([parse_record(json.dumps(record)) for record in told])
    assert control.followed["payment_fraud"] == Recalibration(0.002, 5.0)
    assert control.shift("payment_fraud", "a" * 16) == 0.25
    assert control.shift("payment_fraud", "b" * 16) == 0.0, "another bundle has its own scale"
    assert control.frozen == {"payment_fraud"}
    again = Control.of(json.loads(json.dumps(control.kept())))
    assert again == control
    for record in control.records():
        parse_record(json.dumps(record))
    free = control.apply(told[2] | {"state": "off"})
    assert free.frozen == frozenset()
    off = control.apply(
        {"kind": "recalibrate", "anomaly_type": "payment_fraud", "percent_a_day": 0}
    )
    assert off.followed == {} and off.shift("payment_fraud", "a" * 16) == 0.0
