"""Features that give the label away: a training set that is too good is usually a wrong one.

A column that was written after the verdict (a status, a refund, the label itself) tells anomalies
from all else without a mistake, in training and in held-out rows alike, and says nothing of events
to come. Training names such features; it does not leave them out, since one may be honest.
"""

from __future__ import annotations

import numpy as np

from features.batch import Float64
from models.base import TrainingSet

__all__ = ["CATEGORIES_MAX", "KNOWN_MIN", "separating"]

KNOWN_MIN = 30
"""Fewest rows of either kind. Chosen: a feature of noise parts thirty from as many by chance once
in 1e17 times, two from two once in six."""

CATEGORIES_MAX = 100
"""Most values of a feature that is taken for one of categories; those of anomalies are at most a
third of KNOWN_MIN. Chosen: an amount or a time has more among as many rows."""


def separating(rows: TrainingSet) -> tuple[str, ...]:
    """Names of the features that part known anomalies from all other rows without a mistake.

    By a bound; by a range that holds all of the one kind and none of the other; or, where a feature
    has few values, by those values.

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
    found = []
    for name, column in zip(rows.features.names, rows.features.values.T, strict=True):
        values = np.where(np.isnan(column), -np.inf, column)
        mine, others = values[odd], values[~odd]
        if _beside(mine, others) or _beside(others, mine) or _disjoint(mine, others):
            found.append(name)
    return tuple(found)


def _beside(some: Float64, others: Float64) -> bool:
    """Whether no value of the others lies in the range of some."""
    return not ((others >= some.min()) & (others <= some.max())).any()


def _disjoint(mine: Float64, others: Float64) -> bool:
    """Whether both have few values, and none in common."""
    theirs = np.unique(others[: CATEGORIES_MAX + 1])
    if len(theirs) > CATEGORIES_MAX or np.isin(mine, theirs).any():
        return False  # most columns end here
    own, theirs = np.unique(mine), np.unique(others)
    few = len(own) <= KNOWN_MIN // 3 and len(theirs) <= CATEGORIES_MAX
    return few and not np.isin(own, theirs).any()
