"""Where thresholds are set: at a share of false alarms, or where mistakes cost least."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from features.batch import FeatureMatrix
from models.calibration import score_of
from models.costs import Costs, Held, amounts, choose, curve_report
from models.voting import AnomalyType, Voting

RULE = AnomalyType("payment_fraud", "payment", "critical")


def held(rng: np.random.Generator, rows: int = 20_000, frauds: int = 400) -> Held:
    """Two detectors that see frauds, the first better, and their sum as the vote."""
    surprise = rng.exponential(1.0 / np.log(10.0), (rows, 2))
    odd = np.zeros(rows, np.bool_)
    odd[:frauds] = True
    surprise[odd] += np.column_stack((rng.normal(2.5, 1.0, frauds), rng.normal(1.0, 1.0, frauds)))
    surprise = np.maximum(surprise, 0.0)
    total = surprise.sum(axis=1)
    amount = np.where(np.arange(rows) % 2 == 0, 10.0, 1_000.0)
    names = ("good", "poor")
    return Held(names, score_of(surprise), score_of(total / 2), odd, amount, frauds / rows)


def flagged(rule: AnomalyType, rows: Held) -> np.ndarray:
    """bool (n,), written out plainly: the vote as docs/models.md has it."""
    votes = np.zeros(len(rows.odd), int)
    for i, name in enumerate(rows.detectors):
        votes += rows.scores[:, i] >= rule.thresholds[name]
    found: np.ndarray = (votes >= rule.votes_needed) & (rows.score >= rule.ensemble)
    return found


def cost(rule: AnomalyType, rows: Held, costs: Costs) -> float:
    """What a rule costs on these rows, an event."""
    hit = flagged(rule, rows)
    worth = rows.amount if costs.by_amount else np.ones(len(hit))
    missed = costs.miss * worth[rows.odd & ~hit].sum() / rows.odd.sum() * rows.odd_per_genuine
    false = costs.alarm * (hit & ~rows.odd).sum() / (~rows.odd).sum()
    return float(missed + false) / (1.0 + rows.odd_per_genuine)


def test_thresholds_follow_from_a_share_of_false_alarms(rng: np.random.Generator) -> None:
    rows = held(rng)
    for share in (0.001, 0.003, 0.03):
        choice = choose(RULE, rows, share, None)
        hit = flagged(choice.rule, rows)
        assert hit[~rows.odd].mean() == pytest.approx(share, abs=1.5 / (~rows.odd).sum())
        assert choice.point.recall == hit[rows.odd].mean() and choice.point.share == share
        assert choice.point.precision > 0.0


def test_what_is_chosen_by_costs_costs_least_of_all_that_was_tried(
    rng: np.random.Generator,
) -> None:
    rows = held(rng)
    for costs in (Costs(5.0, 1.0), Costs(100.0, 1.0), Costs(1.0, 1.0, by_amount=True)):
        choice = choose(RULE, rows, 0.0018, costs)
        assert choice.point.cost == pytest.approx(cost(choice.rule, rows, costs))
        others = [choose(RULE, rows, point.share, None).rule for point in choice.curve]
        assert choice.point.cost <= min(cost(rule, rows, costs) for rule in others) * (1 + 1e-9)


def test_dear_misses_take_more_false_alarms_and_rare_frauds_fewer(
    rng: np.random.Generator,
) -> None:
    rows = held(rng)
    cheap, dear = (choose(RULE, rows, 0.0018, Costs(c, 1.0)).point for c in (3.0, 300.0))
    assert dear.share > 2.0 * cheap.share and dear.recall > cheap.recall
    rare = choose(RULE, replace(rows, odd_per_genuine=1e-4), 0.0018, Costs(300.0, 1.0)).point
    assert rare.share < dear.share


def test_a_miss_may_cost_what_the_event_is_worth(rng: np.random.Generator) -> None:
    rows = held(rng)
    small = replace(rows, amount=np.where(rows.odd, 1.0, 1_000.0))
    large = replace(rows, amount=np.where(rows.odd, 1_000.0, 1.0))
    costs = Costs(1.0, 10.0, by_amount=True)
    few, many = (choose(RULE, one, 0.0018, costs).point for one in (small, large))
    assert many.share > few.share
    unknown = replace(rows, amount=np.full(len(rows.odd), np.nan))
    plain = choose(RULE, rows, 0.0018, Costs(1.0, 10.0)).point
    assert choose(RULE, unknown, 0.0018, costs).point == plain


def test_without_anomalies_the_share_is_taken_and_nothing_said_of_recall(
    rng: np.random.Generator,
) -> None:
    rows = held(rng)
    genuine = replace(rows, odd=np.zeros(len(rows.odd), np.bool_), odd_per_genuine=0.0)
    choice = choose(RULE, genuine, 0.0018, Costs(100.0, 1.0))
    assert choice.point.share == 0.0018 and choice.curve == ()
    assert math.isnan(choice.point.recall) and curve_report(choice, None)["curve"] == []


def test_a_detector_without_a_line_keeps_none_and_votes_needed_is_kept(
    rng: np.random.Generator,
) -> None:
    rows = held(rng)
    alone = choose(replace(RULE, thresholds={"good": 0.9}), rows, 0.003, None).rule
    assert alone.thresholds.keys() == {"good"}
    both = choose(replace(RULE, votes_needed=2), rows, 0.003, None)
    assert both.rule.votes_needed == 2 and flagged(both.rule, rows).sum() > 0
    assert both.point.fpr <= 0.003
    text = Voting({RULE.name: both.rule}).text()
    assert "votes_needed = 2" in text and "[payment_fraud.thresholds]" in text


def test_amounts_are_those_that_features_hold_as_logarithms() -> None:
    values = np.log1p(np.array([[0.0], [99.5]]))
    payment = FeatureMatrix("payment", ("log_amount",), values, None, "v")
    assert amounts(payment) == pytest.approx([0.0, 99.5])
    assert np.isnan(amounts(FeatureMatrix("login", ("failed",), values, None, "v"))).all()
