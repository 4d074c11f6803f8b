"""What trees learn of labels: how many are grown by time, and what an anomaly counts for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from models.base import TrainingSet
from models.detectors.gradient_boosting import ODD_MIN, ROUNDS_MIN, Model
from tests.rows import training_set

ROWS = 3_000
ROUNDS = 160


def labelled(turns_at: float, seed: int = 5) -> TrainingSet:
    """Payments, seven in a hundred anomalies by a law of several features and chance, that turns
    into its opposite after this share of the time."""
    rng = np.random.default_rng(seed)
    rows = training_set(rng, rows=ROWS, odd=200)
    values = rng.normal(size=rows.features.values.shape)
    law = values[:, :12] @ rng.normal(size=12) + 2.0 * values[:, 0] * values[:, 1]
    law = np.where(np.arange(ROWS) >= turns_at * ROWS, -law, law) + rng.normal(0.0, 1.5, ROWS)
    label = (law > np.quantile(law, 0.93)).astype(np.int8)
    time_us = 1_000_000 * np.arange(ROWS, dtype=np.int64)
    features = replace(rows.features, values=values)
    return replace(rows, features=features, label=label, time_us=time_us)


def mixed(rows: TrainingSet) -> TrainingSet:
    """The same rows and labels, at each other's times."""
    deal = np.random.default_rng(6).permutation(len(rows))
    features = replace(rows.features, values=rows.features.values[deal])
    return replace(rows, features=features, label=rows.label[deal])


def trees(rows: TrainingSet, **options: float) -> int:
    """How many were grown."""
    model: Any = Model.fit(rows, 1, {"rounds": ROUNDS, **options}).save()[0]["model"]
    return int(model.tobytes().count(b"\nTree="))


def test_growing_stops_where_the_end_of_the_time_is_told_no_better() -> None:
    turning = labelled(turns_at=0.8)
    assert trees(turning) == ROUNDS_MIN, "what was learned before is wrong there from the first on"
    assert trees(mixed(turning)) > ROUNDS_MIN, "it is the time that matters, not which rows"


def test_without_anomalies_at_the_end_nothing_stops_it() -> None:
    rows = labelled(turns_at=0.8)
    late = np.flatnonzero((rows.label == 1) & (np.arange(ROWS) > 0.8 * (ROWS - 1)))
    label = rows.label.copy()
    label[late[ODD_MIN - 1 :]] = 0
    assert trees(replace(rows, label=label)) == ROUNDS
    assert trees(rows, rounds=ROUNDS_MIN - 20) == ROUNDS_MIN - 20, "nor are more grown than asked"


def test_an_anomaly_counts_for_as_many_genuine_rows_as_the_weight_says() -> None:
    rows = labelled(turns_at=2.0)

    def told(weight: float) -> float:
        """Mean probability of an anomaly, as the trees say it."""
        raw = Model.fit(rows, 1, {"rounds": 20, "weight": weight}).raw(rows.features)
        return float((1.0 / (1.0 + np.exp(-raw))).mean())

    share = float(rows.label.mean())
    assert abs(told(0.0) - share) < 0.02, "as often as there are any"
    half, whole = told(0.5), told(1.0)
    assert share + 0.02 < half < whole - 0.02
