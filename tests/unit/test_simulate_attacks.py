"""Each attack leaves its own mark, plain at strength 1 and hardly any at 0.1."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.batch import EventBatch
from features.simulate import ATTACKS, IN_MIX, Simulator
from features.simulate.attacks import attacks
from features.simulate.attacks.base import Campaign

MONDAY_US = 1_772_409_600_000_000
DAY_US = 86_400_000_000
SETTINGS = {"seed": 21, "cards": 5_000, "repeat_share": 0.0, "anomaly_share": 0.003}

Mark = Callable[[pl.DataFrame], pl.Series]


@cache
def struck(attack: str, strength: float) -> dict[str, EventBatch]:
    """Two days in which only this attack happens."""
    simulator = Simulator(**SETTINGS, attacks=[attack], strength=(strength, strength))
    return simulator.span(MONDAY_US, MONDAY_US + 2 * DAY_US)


def frame(attack: str, strength: float) -> pl.DataFrame:
    """Events of the attack's own type with their truth."""
    batch = struck(attack, strength)[attacks()[attack].event_type]
    return batch.frame.with_columns(truth=pl.Series(batch.truth) != 0)


def share_of(column: str, window_s: float, what: pl.Expr) -> Mark:
    """`what` over the events of the same entity in the same stretch of time."""

    def mark(events: pl.DataFrame) -> pl.Series:
        stretch = pl.col("time_us") // int(window_s * 1e6)
        value = pl.when(pl.col(column).is_not_null()).then(what.over(column, stretch))
        return events.select(value.alias("x"))["x"]

    return mark


def against(column: str, *by: str) -> Mark:
    """How many deviations of the group the logarithm lies from the group's median."""

    def mark(events: pl.DataFrame) -> pl.Series:
        log = (pl.col(column) + 0.01).log()
        return events.select(
            ((log - log.median().over(*by)).abs() / log.std().over(*by)).alias("x")
        )["x"]

    return mark


def abroad(entity: str) -> Mark:
    """Whether the event is outside the entity's usual country."""

    def mark(events: pl.DataFrame) -> pl.Series:
        usual = pl.col("country").mode().first().over(entity)
        return events.select((pl.col("country") != usual).cast(pl.Float64).alias("x"))["x"]

    return mark


def rare(*columns: str) -> Mark:
    """How seldom a combination of values is."""
    return lambda events: events.select((1.0 / pl.len().over(*columns)).alias("x"))["x"]


FAILED = (~pl.col("success")).sum()
BAD = pl.col("level").is_in(["error", "fatal"]).sum()

MARKS: dict[str, Mark] = {
    "card_testing": share_of("device_id", 3_600, pl.col("card_id").n_unique()),
    "account_takeover": abroad("card_id"),
    "slow_bleed": share_of("card_id", 7_200, pl.col("amount").mean()),
    "merchant_compromise": abroad("card_id"),
    "credential_stuffing": share_of("ip", 600, FAILED),
    "password_spraying": share_of("ip", 3_600, FAILED),
    "session_hijack": abroad("user_id"),
    "level_shift": against("value", "host", "metric"),
    "slow_leak": against("value", "host", "metric"),
    "flat_line": against("value", "host", "metric"),
    "correlated_outage": against("value", "host", "metric"),
    "error_burst": share_of("service", 300, BAD),
    "new_template": rare("template"),
    "slow_down": against("duration_ms", "service", "template"),
}
"""One simple statistic that an attack moves; none is a feature of the product."""


def contrast(attack: str, strength: float) -> float:
    """Chance that the mark of an attack event is above that of a genuine one (area under ROC)."""
    events = frame(attack, strength).with_columns(x=MARKS[attack](frame(attack, strength)))
    events = events.filter(pl.col("x").is_not_null())
    ranks = events["x"].rank("average").to_numpy()
    truth = events["truth"].to_numpy()
    n, m = int(truth.sum()), int((~truth).sum())
    return float((ranks[truth].sum() - n * (n + 1) / 2) / (n * m))


def test_every_attack_has_a_mark() -> None:
    assert set(MARKS) == set(IN_MIX)


@pytest.mark.parametrize("attack", IN_MIX)
def test_a_plain_attack_moves_its_mark(attack: str) -> None:
    assert contrast(attack, 1.0) > 0.85


@pytest.mark.parametrize("attack", IN_MIX)
def test_the_mark_grows_with_strength(attack: str) -> None:
    weak, middle, plain = (contrast(attack, s) for s in (0.1, 0.5, 1.0))
    assert weak - 0.03 <= middle <= plain + 0.03
    assert plain - weak > 0.1


@pytest.mark.parametrize("attack", IN_MIX)
def test_only_its_own_events_differ_from_the_traffic_without_it(attack: str) -> None:
    quiet = Simulator(**SETTINGS | {"anomaly_share": 0.0}).span(MONDAY_US, MONDAY_US + 2 * DAY_US)
    for name, batch in struck(attack, 1.0).items():
        genuine = batch.frame.filter(pl.Series(batch.truth) == 0).drop("event_id")
        added = len(batch) - len(quiet[name])
        missing = quiet[name].frame.drop("event_id").join(
            genuine, on=genuine.columns, how="anti", nulls_equal=True
        )  # fmt: skip
        touched = int((batch.truth != 0).sum()) - added
        # The leak's samples below the noise are changed and yet carry no label.
        hidden = 0.15 * touched + 5 if attack == "slow_leak" else 0
        assert touched <= len(missing) <= touched + hidden


@pytest.mark.parametrize("attack", IN_MIX)
def test_campaigns_have_their_size_and_end_in_time(attack: str) -> None:
    simulator = Simulator(**SETTINGS, attacks=[attack])
    labels = simulator.labels(MONDAY_US, MONDAY_US + 2 * DAY_US)
    inside = labels.group_by("campaign").agg(pl.len(), pl.col("time_us").max())
    low, high = attacks()[attack].events
    assert inside.height > 10
    assert 0.6 * low <= inside["len"].mean() <= 1.4 * high
    lasts_us = attacks()[attack].lasts_s_max(simulator.world) * 1e6
    for name, last_us in inside.select("campaign", "time_us").rows():
        campaign = simulator.timetable.campaign(attack, int(name.rsplit("-", 1)[1]))
        assert campaign.name == name
        assert campaign.start_us <= last_us <= campaign.start_us + lasts_us


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_no_plan_outlasts_what_its_attack_declares(attack: str, strength: float) -> None:
    for rate in (2.0, 50_000.0):
        world = Simulator(seed=1, events_per_s=rate, cards=1_000).world
        declared = attacks()[attack]
        for number in range(20):
            campaign = Campaign(attack, number, MONDAY_US, strength, declared.events[1], 1)
            plan = declared.plan(world, campaign)
            ends = [int(rows["time_us"].max()) for rows in plan.rows.values()]
            ends += [change.end_us for change in plan.changes]
            starts = [int(rows["time_us"].min()) for rows in plan.rows.values()]
            assert min([*starts, *(c.start_us for c in plan.changes)]) >= MONDAY_US
            assert max(ends) <= MONDAY_US + declared.lasts_s_max(world) * 1e6 + 1


def test_a_takeover_begins_with_failed_logins_of_the_same_user() -> None:
    labels = Simulator(**SETTINGS, attacks=["account_takeover"], strength=(1.0, 1.0)).labels(
        MONDAY_US, MONDAY_US + 2 * DAY_US
    )
    batches = struck("account_takeover", 1.0)
    for (_campaign,), rows in labels.group_by("campaign"):
        ids = rows["event_id"].implode()
        logins = batches["login"].frame.filter(pl.col("event_id").is_in(ids))
        payments = batches["payment"].frame.filter(pl.col("event_id").is_in(ids))
        if not len(logins) or not len(payments):  # cut by the edge of the span
            continue
        assert logins["user_id"].unique().to_list() == payments["user_id"].unique().to_list()
        assert logins["success"].to_list() == [False, False, False, True][-len(logins) :]
        assert logins["time_us"].max() < payments["time_us"].min()


def test_an_outage_strikes_several_peers_in_three_metrics() -> None:
    events = frame("correlated_outage", 1.0).filter(pl.col("truth"))
    assert set(events["metric"]) == {"latency_ms", "requests_per_s", "errors_per_s"}
    hour = pl.col("time_us") // (3_600 * 1_000_000)
    assert events.group_by("service", hour).agg(pl.col("host").n_unique())["host"].max() >= 3


def test_a_plain_flat_line_sticks_at_zero() -> None:
    assert frame("flat_line", 1.0).filter(pl.col("truth"))["value"].unique().to_list() == [0.0]


def test_a_slow_ramp_happens_where_it_is_asked_for_and_grows_for_weeks() -> None:
    assert "slow_ramp" not in IN_MIX
    small = {"seed": 4, "cards": 200, "events_per_s": 0.2, "repeat_share": 0.0}
    span = (MONDAY_US, MONDAY_US + 6 * DAY_US)
    asked = Simulator(**small, attacks=["slow_ramp"], strength=(1.0, 1.0), anomaly_share=0.01)
    labels = asked.labels(*span)
    assert set(labels["attack"]) == {"slow_ramp"}
    whole = labels.group_by("campaign").agg(
        pl.col("event_id"), pl.col("time_us").max() - pl.col("time_us").min()
    ).filter(pl.col("event_id").list.len() >= 60)  # fmt: skip
    assert whole.height >= 3
    payments = asked.span(*span)["payment"].frame
    week_us = 7 * DAY_US * asked.world.pace
    grown = []
    for ids, lasts_us in whole.select("event_id", "time_us").rows():
        rows = payments.filter(pl.col("event_id").is_in(ids))
        assert rows["card_id"].n_unique() == 1 and 2 * week_us < lasts_us <= 3 * week_us
        third, log = rows.height // 3, rows["amount"].log()
        grown.append(log[-third:].mean() - log[:third].mean())
        part = rows.group_by(pl.col("time_us") // int(week_us / 7)).len()
        assert part["len"].max() <= 12, "as a card pays, no burst"
    assert np.mean(grown) == pytest.approx(2.0 * 2 / 3, abs=0.5)


def test_weak_campaigns_come_round_to_all_attacks() -> None:
    simulator = Simulator(seed=2)
    weak = {
        name
        for name in IN_MIX
        for number in range(100, 123)
        if simulator.timetable.campaign(name, number).strength <= 0.4
    }
    assert weak == set(IN_MIX)


def test_attackers_of_another_seed_have_other_devices_and_addresses() -> None:
    seen = []
    for seed in (1, 2):
        simulator = Simulator(seed=seed, cards=1_000, attacks=["card_testing"], strength=(1.0, 1.0))
        batch = simulator.span(MONDAY_US, MONDAY_US + DAY_US)["payment"]
        rows = batch.frame.filter(pl.Series(batch.truth) != 0)
        seen.append(set(rows["device_id"]) | set(rows["ip"]))
    assert seen[0] and seen[0].isdisjoint(seen[1])


def test_a_campaign_plans_the_same_each_time(
    rng: np.random.Generator,
) -> None:
    world = Simulator(seed=1, cards=1_000).world
    for name, declared in attacks().items():
        campaign = Campaign(name, int(rng.integers(1_000)), MONDAY_US, 0.7, 10, 1)
        first, again = (declared.plan(world, campaign) for _ in range(2))
        for event_type, rows in first.rows.items():
            for column, values in rows.items():
                np.testing.assert_array_equal(values, again.rows[event_type][column])


def test_the_page_lists_every_attack() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "simulator.md"
    listed = re.findall(
        r"^\| `([a-z_]+)` \| (?:payment|login|metric|app_log)", page.read_text(), re.M
    )
    assert listed == list(ATTACKS)


def test_a_seed_means_the_same_campaigns_for_good() -> None:
    """The frozen mix: a change makes published recalls incomparable; `mix` says what to do."""
    labels = Simulator(seed=7).labels(MONDAY_US, MONDAY_US + DAY_US)
    assert dict(labels.group_by("attack").len().iter_rows()) == {
        "card_testing": 14, "account_takeover": 21, "slow_bleed": 23, "merchant_compromise": 15,
        "credential_stuffing": 16, "password_spraying": 11, "session_hijack": 17,
        "level_shift": 10, "slow_leak": 12, "flat_line": 14, "correlated_outage": 9,
        "error_burst": 11, "new_template": 20, "slow_down": 8,
    }  # fmt: skip
    campaign = Simulator(seed=7).timetable.campaign("slow_leak", 20_970)
    assert (campaign.start_us, campaign.size) == (1_772_100_551_060_092, 11)
    assert campaign.strength == pytest.approx(0.189459, abs=1e-6)
