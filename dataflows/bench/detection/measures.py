"""How well scores find anomalies: measures of payments by card and day, of series by stretches.

Pure functions of labels and scores. Nothing is adjusted: a point counts as found only where its own
score says so.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.batch import Float64, Int64

__all__ = [
    "average_precision",
    "auc_roc",
    "card_precision",
    "delays",
    "point_rates",
    "range_average_precision",
    "stretches",
]

Bool = npt.NDArray[np.bool_]

LEVELS = 200
"""Thresholds that stretches are looked at for. Chosen: beyond some hundred the area moves in the
fourth digit."""

EXISTENCE = 0.5
"""What being met at all counts of a stretch's recall, beside the share of it that is flagged.
Chosen: half, as Tatbul et al. have it in their examples."""


def auc_roc(odd: Bool, score: Float64) -> float:
    """Area under the receiver operating characteristic.

    Parameters
    ----------
    odd : bool (n,)
    score : float64 (n,), higher is stranger

    Returns
    -------
    float in [0, 1]; NaN where there is only one class
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(odd, score)) if odd.any() and not odd.all() else float("nan")


def average_precision(odd: Bool, score: Float64) -> float:
    """Area under precision over recall, as the step sum and not the trapezoid.

    Parameters
    ----------
    odd : bool (n,)
    score : float64 (n,), higher is stranger

    Returns
    -------
    float in [0, 1]; NaN where nothing is odd
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(odd, score)) if odd.any() else float("nan")


def card_precision(day: Int64, card: Int64, odd: Bool, score: Float64, top: int = 100) -> float:
    """Share of defrauded cards among the `top` cards of a day, mean over the days in order.

    A card has the highest score and the highest label of its day. One that was found on a day is
    gone from the next day on; a false alarm stays, and may be inspected again.

    Parameters
    ----------
    day, card : int64 (n,)
    odd : bool (n,)
    score : float64 (n,), higher is stranger
    top : cards that can be inspected a day; the divisor even where there are fewer

    Returns
    -------
    float in [0, 1]; NaN without rows

    Source: Le Borgne et al., Fraud Detection Handbook (2022), chapter 4, card precision top-k.
    """
    found: list[Int64] = []
    shares = []
    for one in np.unique(day):
        rows = np.flatnonzero((day == one) & ~np.isin(card, np.concatenate(found or [card[:0]])))
        cards, place = np.unique(card[rows], return_inverse=True)
        highest, label = np.full(len(cards), -np.inf), np.zeros(len(cards), np.bool_)
        np.maximum.at(highest, place, score[rows])
        np.logical_or.at(label, place, odd[rows])
        best = np.argsort(-highest, kind="stable")[:top]
        shares.append(np.count_nonzero(label[best]) / top)
        found.append(cards[best][label[best]])
    return float(np.mean(shares)) if shares else float("nan")


def stretches(odd: Bool, series: Int64) -> tuple[Int64, Int64]:
    """First rows, and rows after the last, of the stretches where `odd` holds.

    Parameters
    ----------
    odd : bool (n,)
    series : int64 (n,), ascending; no stretch goes from one series into the next

    Returns
    -------
    two int64 (k,)

    Examples
    --------
    >>> first, end = stretches(np.array([0, 1, 1, 0, 1], bool), np.zeros(5, np.int64))
    >>> first.tolist(), end.tolist()
    ([1, 4], [3, 5])
    """
    if not len(odd):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    new = np.append(True, series[1:] != series[:-1])
    before = np.append(False, odd[:-1]) & ~new
    after = np.append(odd[1:] & ~new[1:], False)
    return np.flatnonzero(odd & ~before), np.flatnonzero(odd & ~after) + 1


def range_average_precision(odd: Bool, score: Float64, series: Int64) -> float:
    """Average precision by stretches: of anomalies, and of what is flagged, whatever their length.

    Precision is the mean, over flagged stretches, of the share of each that is anomalous; recall
    the mean, over anomalous ones, of half for being met and half for the share that is flagged.

    Parameters
    ----------
    odd : bool (n,)
    score : float64 (n,), higher is stranger
    series : int64 (n,), ascending

    Returns
    -------
    float in [0, 1]; NaN where nothing is odd

    Source: Tatbul et al., Precision and Recall for Time Series (2018), flat bias, no penalty for
    pieces; summed over thresholds at even quantiles of the scores.
    """
    first, end = stretches(odd, series)
    if not len(first):
        return float("nan")
    levels = np.unique(np.quantile(score, 1.0 - np.linspace(0.0, 1.0, LEVELS + 1) ** 2))
    area = recall_before = 0.0
    inside = np.append(0, np.cumsum(odd))
    for level in levels[::-1]:
        flagged = score >= level
        at, to = stretches(flagged, series)
        covered = np.append(0, np.cumsum(flagged))
        share = (covered[end] - covered[first]) / (end - first)
        recall = float(np.mean(EXISTENCE * (share > 0.0) + (1.0 - EXISTENCE) * share))
        precision = float(np.mean((inside[to] - inside[at]) / (to - at)))
        area += (recall - recall_before) * precision
        recall_before = recall
    return area


def point_rates(odd: Bool, flagged: Bool) -> dict[str, float]:
    """`f1`, `far` (share of usual points flagged) and `mar` (share of odd points missed).

    Parameters
    ----------
    odd, flagged : bool (n,)

    Returns
    -------
    each in [0, 1]; NaN where there is nothing to divide by
    """
    hits = int(np.count_nonzero(odd & flagged))
    false, missed = int(np.count_nonzero(flagged & ~odd)), int(np.count_nonzero(odd & ~flagged))
    usual = int(np.count_nonzero(~odd))
    return {
        "f1": 2 * hits / (2 * hits + false + missed) if hits + false + missed else float("nan"),
        "far": false / usual if usual else float("nan"),
        "mar": missed / (hits + missed) if hits + missed else float("nan"),
    }


def delays(odd: Bool, flagged: Bool, series: Int64) -> tuple[Int64, int]:
    """Rows from the first of an anomalous stretch to the first of it that is flagged.

    Parameters
    ----------
    odd, flagged : bool (n,)
    series : int64 (n,), ascending

    Returns
    -------
    int64 (k,) of the stretches that are met, and how many stretches there are
    """
    first, end = stretches(odd, series)
    at = np.flatnonzero(flagged)
    place = np.searchsorted(at, first)
    met = place < len(at)
    met[met] = at[place[met]] < end[met]
    return at[place[met]] - first[met], len(first)
