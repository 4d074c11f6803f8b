"""Where thresholds are set: at a share of false alarms, or where mistakes cost least.

One number moves a whole rule: the share of genuine rows that each detector, and the vote, may flag.
For each share the thresholds follow, and with them recall, precision and cost: that is the rule's
own precision-recall curve, on which a point is chosen. What is chosen is written to `voting.toml`,
where a person may move it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from features.batch import FeatureMatrix, Float64
from models.evaluate import threshold_of_sorted
from models.voting import AnomalyType

__all__ = ["SHARES_TRIED", "Costs", "Held", "Point", "amounts", "choose", "curve_report"]

SHARES_TRIED = tuple(float(x) for x in np.round(np.logspace(-4.5, -1.0, 36), 7))
"""Shares of false alarms at which a rule is tried. Chosen: from three in 100,000, which 25,000 rows
hardly resolve, to a tenth of all events, by a quarter more each time."""

AMOUNT = "log_amount"
"""The feature that holds the logarithm of 1 + the amount of an event."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What mistakes cost.

    Parameters
    ----------
    miss : of a missed anomaly; with `by_amount`, of each unit of its amount
    alarm : of a false alarm
    by_amount : whether a miss costs what the event is worth; events without an amount cost `miss`
    """

    miss: float
    alarm: float
    by_amount: bool = False

    def of_misses(self, amount: Float64) -> Float64:
        """float64 (n,), cost of missing each event, given its amount (NaN: it has none)."""
        if not self.by_amount:
            return np.full(len(amount), self.miss)
        return self.miss * np.where(np.isnan(amount), 1.0, amount)


def amounts(features: FeatureMatrix) -> Float64:
    """float64 (n,), the amounts of events, in the currency of the features; NaN without any."""
    if AMOUNT not in features.names:
        return np.full(len(features), np.nan)
    found: Float64 = np.expm1(features.values[:, features.names.index(AMOUNT)])
    return found


@dataclass(frozen=True, slots=True)
class Held:
    """Scored rows of one event type to set thresholds on.

    Parameters
    ----------
    detectors : (D,), names
    scores : float64 (n, D), of each; NaN where it did not look
    score : float64 (n,), of the vote
    odd : bool (n,), known anomalies; all others count as genuine
    amount : float64 (n,), NaN where there is none
    odd_per_genuine : anomalies on each genuine event in the stream, where rows are no even sample
    """

    detectors: tuple[str, ...]
    scores: Float64
    score: Float64
    odd: npt.NDArray[np.bool_]
    amount: Float64
    odd_per_genuine: float


@dataclass(frozen=True, slots=True)
class Point:
    """A rule's place on its curve.

    Parameters
    ----------
    share : of genuine rows that its thresholds were fitted to
    fpr, recall, precision : what it does; NaN without anomalies
    cost : of its mistakes, on each event of the stream
    """

    share: float
    fpr: float
    recall: float
    precision: float
    cost: float


@dataclass(frozen=True, slots=True)
class Choice:
    """A rule with thresholds, its place, and the curve it was chosen from, by rising share."""

    rule: AnomalyType
    point: Point
    curve: tuple[Point, ...]


def choose(rule: AnomalyType, rows: Held, share: float, costs: Costs | None) -> Choice:
    """The rule with thresholds at a share of false alarms, or at the share that costs least.

    Parameters
    ----------
    rule : its detectors are those of the rows where it names none
    share : of genuine rows; taken where there are no costs, or no anomalies to weigh them on
    costs : of mistakes; None takes `share`

    Returns
    -------
    the thresholds as fitted; with costs, the lowest share of those that cost the same
    """
    ladder = _Ladder(rule, rows)
    told = costs or Costs(1.0, 1.0)
    resolved = 1.0 / max(int(np.count_nonzero(~rows.odd)), 1)
    tried = [s for s in SHARES_TRIED if s >= resolved]
    points: tuple[Point, ...] = ()
    if rows.odd.any():
        points = tuple(ladder.point(s, told) for s in tried)
    if costs is not None and points:
        share = min(points, key=lambda one: one.cost).share
    return Choice(ladder.rule(share), ladder.point(share, told), points)


class _Ladder:
    """A rule's thresholds at any share; the rows are sorted once."""

    def __init__(self, rule: AnomalyType, rows: Held) -> None:
        self._rule, self._rows = rule, rows
        self._names = [n for n in rows.detectors if not rule.thresholds or n in rule.thresholds]
        self._at = [rows.detectors.index(name) for name in self._names]
        known = np.where(np.isnan(rows.scores), -np.inf, rows.scores)
        self._scores = known[:, self._at]
        self._sorted = [np.sort(column[~rows.odd])[::-1] for column in self._scores.T]

    def rule(self, share: float) -> AnomalyType:
        """The rule whose detectors, and whose vote, a share of the genuine rows reaches.

        The detectors' own thresholds may be reached by as many rows as the vote; the vote is
        flagged only where one of them is too, so its threshold is set among those rows.
        """
        limits = [_clipped(threshold_of_sorted(column, share)) for column in self._sorted]
        voted = np.where(self._voted(limits), self._rows.score, -np.inf)
        genuine = np.sort(voted[~self._rows.odd])[::-1]
        return replace(
            self._rule,
            thresholds=dict(zip(self._names, limits, strict=True)),
            ensemble=_clipped(threshold_of_sorted(genuine, share)),
        )

    def _voted(self, limits: Sequence[float]) -> npt.NDArray[np.bool_]:
        """bool (n,), rows that enough detectors vote for."""
        votes = np.count_nonzero(self._scores >= np.asarray(limits), axis=1)
        enough: npt.NDArray[np.bool_] = votes >= max(self._rule.votes_needed, 1)
        return enough

    def point(self, share: float, costs: Costs) -> Point:
        """What the rule at a share does."""
        rows, rule = self._rows, self.rule(share)
        flagged = self._voted(list(rule.thresholds.values())) & (rows.score >= rule.ensemble)
        fpr = float(flagged[~rows.odd].mean()) if not rows.odd.all() else 0.0
        if not rows.odd.any():
            return Point(share, fpr, float("nan"), float("nan"), float("nan"))
        recall = float(flagged[rows.odd].mean())
        often = rows.odd_per_genuine
        missed = costs.of_misses(rows.amount[rows.odd])[~flagged[rows.odd]].sum()
        lost = often * float(missed) / int(np.count_nonzero(rows.odd))
        right, wrong = often * recall, fpr
        precision = right / (right + wrong) if right + wrong else float("nan")
        return Point(share, fpr, recall, precision, (lost + costs.alarm * fpr) / (1.0 + often))


def _clipped(threshold: float) -> float:
    """A threshold as a score in [0, 1]."""
    return min(max(threshold, 0.0), 1.0)


def curve_report(choice: Choice, costs: Costs | None) -> dict[str, Any]:
    """A choice in the keys of docs/json.md."""
    found: dict[str, Any] = {"chosen": asdict(choice.point)}
    if costs is not None:
        found["costs"] = asdict(costs)
    return found | {"curve": [asdict(point) for point in choice.curve]}
