"""Curves, intervals, ablation, delay and cost of made-up scores whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.analysis import DRAWS, Judged, analyse
from models.calibration import score_of
from models.costs import Costs

NAMES = {1: "plain", 2: "late"}
HOUR_US = 3_600_000_000
DETECTORS = ("good", "noise", "silent")


def judged(rng: np.random.Generator, entities: int = 300, each: int = 20) -> Judged:
    """Events of two days; `good` sees both attacks, `noise` nothing, `silent` never looks."""
    n = entities * each
    entity = np.repeat(np.arange(1, entities + 1), each).astype(np.uint64)
    time_us = np.tile(np.linspace(0, 47 * HOUR_US, each).astype(np.int64), entities)
    truth = np.zeros(n, np.int16)
    truth[rng.choice(n, n // 50, replace=False)] = 1
    surprise = rng.exponential(0.5, (n, 3))
    surprise[truth == 1, 0] += 2.5
    surprise[:, 2] = np.nan
    score = score_of(surprise[:, 0])
    return Judged(
        np.zeros(n, np.int16), truth, surprise, score, score > 0.99, entity, time_us, np.ones(n)
    )


def test_a_detector_that_says_nothing_is_named_and_the_good_one_is_not(
    rng: np.random.Generator,
) -> None:
    found = analyse(judged(rng), DETECTORS, NAMES, Costs(100.0, 1.0), 3).report
    assert "noise" in found["adds_nothing"] and "good" not in found["adds_nothing"]
    lost = {one["without"]: one for one in found["ablation"]}
    assert lost["good"]["low"] > 0.3 and abs(lost["noise"]["average_precision"]) < 0.05
    assert "silent" not in found["ranking"] and "silent" not in lost, "it never looked"


def test_intervals_hold_their_figures_and_narrow_with_more_entities(
    rng: np.random.Generator,
) -> None:
    def width(entities: int) -> float:
        found = analyse(judged(rng, entities), DETECTORS, NAMES, Costs(1.0, 1.0), 3).report
        row = found["ranking"]["good"]
        assert row["low"] < row["average_precision"] < row["high"]
        for at in row["recall_at"]:
            assert at["low"] <= at["recall"] <= at["high"]
        return float(row["high"] - row["low"])

    assert width(1_200) < width(60)


def test_the_ensemble_is_compared_with_each_detector_on_the_same_draws(
    rng: np.random.Generator,
) -> None:
    found = analyse(judged(rng), DETECTORS, NAMES, Costs(1.0, 1.0), 3).report
    assert found["draws"] == DRAWS
    same = found["against"]["good"]
    assert same["average_precision"] == pytest.approx(0.0)
    assert same["low"] == pytest.approx(0.0) and same["high"] == pytest.approx(0.0)
    assert found["against"]["noise"]["low"] > 0.3


def test_a_sample_with_weights_stands_for_all(rng: np.random.Generator) -> None:
    rows = judged(rng)
    odd = rows.truth > 0
    kept = np.flatnonzero(odd | (rng.random(len(rows)) < 0.5))
    sample = rows.take(kept, np.where(odd[kept], 1.0, 2.0))
    whole, part = (analyse(r, DETECTORS, NAMES, Costs(10.0, 1.0), 3).report for r in (rows, sample))
    for key in ("average_precision", "auc_roc"):
        assert part["ranking"]["good"][key] == pytest.approx(whole["ranking"]["good"][key], abs=0.1)
    assert part["cost"]["as_set"] == pytest.approx(whole["cost"]["as_set"], rel=0.15)


def test_delay_runs_from_the_first_event_of_a_campaign_to_its_first_alert() -> None:
    minute = 60_000_000
    time_us = np.array([0, 5, 9, 200, 300, 0, 7], np.int64) * minute
    truth = np.array([2, 2, 2, 2, 0, 1, 1], np.int16)
    flagged = np.array([False, True, True, False, True, True, False])
    n = len(truth)
    rows = Judged(
        np.zeros(n, np.int16), truth, np.where(flagged, 3.0, 0.1)[:, None],
        np.where(flagged, 0.999, 0.1), flagged, np.array([1, 1, 1, 1, 1, 2, 2], np.uint64),
        time_us, np.ones(n),
    )  # fmt: skip
    delay = analyse(rows, ("one",), NAMES, Costs(1.0, 1.0), 3).report["delay"]
    late, plain = delay["late"], delay["plain"]
    assert (late["campaigns"], late["found"]) == (2, 1), "a pause of three hours parts them"
    assert late["delay_s_p50"] == 300.0 and late["events_before_p50"] == 1.0
    assert (plain["campaigns"], plain["found"], plain["delay_s_p50"]) == (1, 1, 0.0)


def test_costs_are_those_counted_by_hand(rng: np.random.Generator) -> None:
    rows = judged(rng)
    cost = analyse(rows, DETECTORS, NAMES, Costs(50.0, 2.0), 3).report["cost"]
    odd = rows.truth > 0
    missed = int(np.count_nonzero(odd & ~rows.flagged))
    false = int(np.count_nonzero(~odd & rows.flagged))
    assert cost["as_set"] == 50.0 * missed + 2.0 * false
    assert cost["without_alerts"] == 50.0 * 120
    assert cost["at_best"] <= min(cost["as_set"], cost["without_alerts"])


def test_without_anomalies_nothing_is_said(rng: np.random.Generator) -> None:
    rows = judged(rng)
    none = replace(rows, truth=np.zeros(len(rows), np.int16))
    assert analyse(none, DETECTORS, NAMES, Costs(1.0, 1.0), 3).report == {}
