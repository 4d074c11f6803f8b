"""Features that give the label away: a training set that is too good is usually a wrong one.

A column that was written after the verdict (a status, a refund, the label itself) tells anomalies
from all else without a mistake, in training and in held-out rows alike, and says nothing of events
to come. Training names such features; it does not leave them out, since one may be honest.
"""

from __future__ import annotations

import numpy as np

from models.base import TrainingSet

__all__ = ["KNOWN_MIN", "separating"]

KNOWN_MIN = 30
"""Fewest rows of either kind. Chosen: a feature of noise parts thirty from as many by chance once
in 1e17 times, two from two once in six."""


def separating(rows: TrainingSet) -> tuple[str, ...]:
    """Names of the features of which one bound parts known anomalies from all other rows.

    Parameters
    ----------
    rows : features float64 (n, F), NaN where there is no value, which counts as a value below all;
        label (n,), 1 for an anomaly

    Returns
    -------
    in the order of the features; none with fewer than KNOWN_MIN rows of either kind

    Examples
    --------
    >>> KNOWN_MIN
    30
    """
    odd = rows.label == 1
    if min(np.count_nonzero(odd), np.count_nonzero(~odd)) < KNOWN_MIN:
        return ()
    values = np.where(np.isnan(rows.features.values), -np.inf, rows.features.values)
    mine, others = values[odd], values[~odd]
    apart = (mine.min(axis=0) > others.max(axis=0)) | (mine.max(axis=0) < others.min(axis=0))
    return tuple(rows.features.names[i] for i in np.flatnonzero(apart))
