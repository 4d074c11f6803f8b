"""Rows with features for tests of the models: made up, with some plainly odd ones among them."""

from __future__ import annotations

import numpy as np

from features.batch import FeatureMatrix
from features.catalog import catalog
from features.sequence import STEPS, WIDTH
from models.base import TrainingSet

__all__ = ["training_set"]

START_US = 1_772_409_600_000_000


def training_set(
    rng: np.random.Generator,
    event_type: str = "payment",
    rows: int = 2_000,
    odd: int = 100,
    entities: int = 500,
    labelled: bool = True,
) -> TrainingSet:
    """Rows in time order whose last `odd` in a shuffle are odd in the first dozen features.

    Parameters
    ----------
    odd : rows that are anomalous, plain and less plain ones
    entities : of the primary type
    labelled : whether the rows say which are odd
    """
    names = catalog().names(event_type)
    values = rng.exponential(size=(rows, len(names)))
    values[rng.random(values.shape) < 0.05] = np.nan
    is_odd = np.zeros(rows, np.bool_)
    is_odd[rng.permutation(rows)[:odd]] = True
    values[is_odd, :12] += rng.uniform(2.0, 12.0, (odd, 1))
    features = FeatureMatrix(
        event_type,
        names,
        values,
        rng.uniform(-1, 1, (rows, STEPS, WIDTH)).astype(np.float32),
        catalog().version,
    )
    keys = rng.integers(1, 2**63, entities).astype(np.uint64)
    return TrainingSet(
        features,
        START_US + np.arange(rows) * 60_000_000,
        is_odd.astype(np.int8) if labelled else np.full(rows, -1, np.int8),
        keys[rng.integers(0, entities, rows)],
        is_odd.astype(np.int16),
    )
