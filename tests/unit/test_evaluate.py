"""The tally of votes where the truth is known, and thresholds at a share."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from features.simulate import ATTACKS
from models.base import Decisions, ScoreMatrix
from models.evaluate import Tally, curve_of, threshold_at

A, B = ATTACKS["card_testing"], ATTACKS["slow_bleed"]


def batch(
    truth: list[int], votes: list[list[int]], flagged: list[int]
) -> tuple[np.ndarray, ScoreMatrix, Decisions]:  # type: ignore[type-arg]
    """Truth, scores and decisions of one batch; a vote of -1 is a row that was not scored."""
    table = np.array(votes)
    n, d = table.shape
    names = ("zscore", "iqr")[:d]
    scores = np.where(table < 0, np.nan, 0.5 + 0.5 * table)
    decisions = Decisions(
        "payment",
        ("payment_fraud",),
        names,
        np.zeros((n, 1)),
        np.array(flagged, np.bool_)[:, None],
        (table == 1)[:, None, :],
        np.ones((1, d)),
    )
    return np.array(truth, np.int16), ScoreMatrix("payment", names, scores, scores), decisions


def test_recall_precision_and_false_positives_are_those_counted_by_hand() -> None:
    tally = Tally()
    tally.add("payment", *batch([A, A, B, 0, 0], [[1, 1], [0, 1], [0, -1], [1, 0], [0, 0]],
                                [1, 1, 0, 1, 0]))  # fmt: skip
    tally.add("payment", *batch([0, B], [[0, 0], [1, -1]], [0, 1]))
    report = tally.report()
    assert report["detectors"]["zscore"] == {
        "recall": 2 / 4, "precision": 2 / 3, "fpr": 1 / 3, "scored": 1.0
    }  # fmt: skip
    assert report["detectors"]["iqr"] == {
        "recall": 2 / 4, "precision": 1.0, "fpr": 0.0, "scored": 5 / 7
    }  # fmt: skip
    assert report["detectors"]["ensemble"] == {"recall": 3 / 4, "precision": 3 / 4, "fpr": 1 / 3}
    assert report["by_attack"] == {
        "card_testing": {
            "events": 2,
            "zscore": {"recall": 0.5},
            "iqr": {"recall": 1.0},
            "ensemble": {"recall": 1.0},
        },
        "slow_bleed": {
            "events": 2,
            "zscore": {"recall": 0.5},
            "iqr": {"recall": 0.0},
            "ensemble": {"recall": 0.5},
        },
    }
    assert report["by_event_type"]["payment"]["attack_events"] == 4
    assert list(report["detectors"]) == ["zscore", "iqr", "ensemble"]


def test_a_tally_of_nothing_reports_nothing() -> None:
    assert Tally().report() == {}


def test_without_attacks_recall_is_unknown() -> None:
    tally = Tally()
    tally.add("payment", *batch([0, 0], [[0, 0], [0, 0]], [0, 0]))
    detectors = tally.report()["detectors"]
    assert np.isnan(detectors["ensemble"]["recall"]) and detectors["ensemble"]["fpr"] == 0.0
    assert np.isnan(detectors["zscore"]["precision"])


def test_codes_nobody_named_are_reported_by_number() -> None:
    tally = Tally({1: "fraud"})
    tally.add("payment", *batch([1, 9], [[1, 1], [1, 1]], [1, 1]))
    assert set(tally.report()["by_attack"]) == {"fraud", "attack 9"}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1])
def test_no_more_than_the_share_reaches_the_threshold(
    rng: np.random.Generator, share: float
) -> None:
    for values in (rng.normal(size=1_000), rng.integers(0, 5, 1_000).astype(float)):
        threshold = threshold_at(values, share)
        assert np.mean(values >= threshold) <= share
        lower = values[values < threshold].max()
        assert np.mean(values >= lower) > share


def test_rows_without_a_score_count_and_reach_no_threshold() -> None:
    values = np.concatenate((np.full(90, np.nan), np.arange(10.0)))
    assert threshold_at(values, 0.05) == 5.0


def test_the_curve_is_that_of_scikit_learn(rng: np.random.Generator) -> None:
    score = rng.normal(size=500).round(1)  # with ties
    odd = rng.random(500) < 0.2
    curve = curve_of(score, odd)
    assert curve.average_precision == pytest.approx(average_precision_score(odd, score))
    assert curve.roc_auc == pytest.approx(roc_auc_score(odd, score))
    weight = rng.integers(0, 3, 500).astype(np.float64)
    drawn = curve_of(score, odd, weight)
    assert drawn.average_precision == pytest.approx(
        average_precision_score(odd, score, sample_weight=weight)
    )
    assert drawn.roc_auc == pytest.approx(roc_auc_score(odd, score, sample_weight=weight))


def test_recall_at_a_share_of_false_positives_is_the_most_that_has_no_more() -> None:
    score = np.array([0.9, 0.8, 0.7, 0.6, np.nan])
    odd = np.array([True, False, True, False, True])
    curve = curve_of(score, odd)
    assert curve.recall_at(0.0) == pytest.approx(1 / 3)
    assert curve.recall_at(0.5) == pytest.approx(2 / 3)
    assert curve.recall_at(1.0) == 1.0, "a row without a score is found last"
    assert np.isnan(curve_of(score, np.zeros(5, np.bool_)).average_precision)
