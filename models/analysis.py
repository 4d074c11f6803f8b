"""What a bundle's figures are worth: curves, intervals, what each detector adds, how late it tells.

A recall without its interval, and an ensemble without what it gains on its best detector, say
little. Entities repeat themselves and days differ, so intervals come from drawing both anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from features.batch import Float64, Int64
from features.catalog import Catalog
from features.keys import UInt64
from models.base import TrainingSet
from models.calibration import Calibration
from models.costs import Costs
from models.coverage import DRAWS, block_weights
from models.evaluate import Curve, curve_of
from models.scoring import Scorer
from models.voting import ATTACKS_MIN, ENSEMBLE, Ensemble, weighted_sum

__all__ = ["DRAWS", "FPR_SHOWN", "Analysis", "Judged", "analyse", "group_losses"]

FPR_SHOWN = (0.001, 0.003, 0.01)
"""Shares of false positives at which recall is told; the middle one is the project's goal."""

COVERED = (0.025, 0.975)
"""Ends of the intervals."""

PAUSE_US = 3_600_000_000
"""Anomalous events of one entity and kind with no longer pause are one campaign. Chosen: longer
than the pauses inside the simulator's attacks, shorter than those between."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Scored events whose truth is known; genuine ones may be a sample.

    Parameters
    ----------
    event_type : int16 (n,), a number for each event type
    truth : int16 (n,), code of the attack, 0 genuine
    surprise : float64 (n, D), of each detector; NaN where it did not look
    score : float64 (n,), of the vote
    flagged : bool (n,)
    entity : uint64 (n,), key of the primary entity
    time_us : int64 (n,)
    weight : float64 (n,), how many events each stands for
    amount : float64 (n,), what each is worth, NaN where nothing says it; None where nobody asks
    """

    event_type: npt.NDArray[np.int16]
    truth: npt.NDArray[np.int16]
    surprise: Float64
    score: Float64
    flagged: npt.NDArray[np.bool_]
    entity: UInt64
    time_us: Int64
    weight: Float64
    amount: Float64 | None = None

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, at: npt.NDArray[np.intp], weight: Float64) -> Judged:
        """The given rows with other weights."""
        return Judged(
            self.event_type[at],
            self.truth[at],
            self.surprise[at],
            self.score[at],
            self.flagged[at],
            self.entity[at],
            self.time_us[at],
            weight,
            None if self.amount is None else self.amount[at],
        )

    @classmethod
    def join(cls, parts: Sequence[Judged]) -> Judged:
        """All rows of some, at least one."""
        worth = [part.amount for part in parts if part.amount is not None]
        return cls(
            np.concatenate([part.event_type for part in parts]),
            np.concatenate([part.truth for part in parts]),
            np.concatenate([part.surprise for part in parts]),
            np.concatenate([part.score for part in parts]),
            np.concatenate([part.flagged for part in parts]),
            np.concatenate([part.entity for part in parts]),
            np.concatenate([part.time_us for part in parts]),
            np.concatenate([part.weight for part in parts]),
            np.concatenate(worth) if len(worth) == len(parts) else None,
        )


@dataclass(frozen=True, slots=True)
class Analysis:
    """What `analyse` finds.

    Parameters
    ----------
    report : in the keys of docs/json.md
    curves : detector, or the ensemble -> its curve
    worth : the vote's curve, in which an anomaly counts as much as it costs to miss it
    """

    report: dict[str, Any]
    curves: dict[str, Curve]
    worth: Curve | None = None


def analyse(
    rows: Judged,
    detectors: Sequence[str],
    names: Mapping[int, str],
    costs: Costs,
    seed: int,
    alone: Collection[str] = (),
) -> Analysis:
    """Curves, intervals, ablation, delay and cost; empty without anomalies or without genuine rows.

    Parameters
    ----------
    detectors : (D,), in the order of the surprises
    names : code in the truth -> name of the attack
    costs : of mistakes
    seed : of the draws
    alone : the detectors that need no labels, which a vote adds up a second time
    """
    odd = np.asarray(rows.truth > 0)
    if not odd.any() or odd.all():
        return Analysis({}, {})
    said = [i for i in range(len(detectors)) if not np.isnan(rows.surprise[:, i]).all()]
    scores = {detectors[i]: rows.surprise[:, i] for i in said} | {ENSEMBLE: rows.score}
    curves = {name: curve_of(score, odd, rows.weight) for name, score in scores.items()}
    unaided = np.array([name in alone for name in detectors])
    whole = _crossed(rows, said, unaided)
    without = {
        detectors[i]: _crossed(rows, [j for j in said if j != i], unaided)
        for i in said
        if len(said) > 1
    }
    drawn = _draws(rows, {**scores, "": whole, **{f"-{n}": s for n, s in without.items()}}, seed)
    ap = {name: values[:, 0] for name, values in drawn.items()}
    report: dict[str, Any] = {
        "draws": DRAWS,
        "ranking": {name: _ranking(curve, drawn[name]) for name, curve in curves.items()},
        "against": {
            name: _difference(
                curves[ENSEMBLE].average_precision - curves[name].average_precision,
                ap[ENSEMBLE] - ap[name],
            )
            for name in scores
            if name != ENSEMBLE
        },
    }
    full = curve_of(whole, odd, rows.weight).average_precision
    ablation: list[tuple[str, dict[str, float]]] = []
    for name, score in without.items():
        left = curve_of(score, odd, rows.weight).average_precision
        lost = _difference(full - left, ap[""] - ap[f"-{name}"])
        ablation.append((name, lost))
    report["ablation"] = [{"without": name, **lost} for name, lost in ablation]
    report["adds_nothing"] = [name for name, lost in ablation if lost["low"] <= 0.0]
    report["delay"] = _delays(rows, names)
    report["cost"], worth = _cost(rows, costs)
    report["recall_by_attack"] = _by_attack(rows, scores, curves, names)
    return Analysis(report, curves, worth)


def _ranking(curve: Curve, drawn: Float64) -> dict[str, Any]:
    """Figures of one curve with their intervals."""
    low, high = np.nanquantile(drawn, COVERED, axis=0)
    return {
        "average_precision": curve.average_precision,
        "low": float(low[0]),
        "high": float(high[0]),
        "auc_roc": curve.roc_auc,
        "recall_at": [
            {
                "fpr": fpr,
                "recall": curve.recall_at(fpr),
                "low": float(low[1 + i]),
                "high": float(high[1 + i]),
            }
            for i, fpr in enumerate(FPR_SHOWN)
        ],
    }


def _difference(value: float, drawn: Float64) -> dict[str, float]:
    """A difference of average precisions with its interval."""
    low, high = np.nanquantile(drawn, COVERED)
    return {"average_precision": value, "low": float(low), "high": float(high)}


def _draws(rows: Judged, scores: Mapping[str, Float64], seed: int) -> dict[str, Float64]:
    """float64 (DRAWS, 1 + len(FPR_SHOWN)) for each score: average precision, and recall at each
    share.

    The draws are the same for all scores, so that their differences are those of pairs.
    """
    rng = np.random.default_rng(seed)
    odd = np.asarray(rows.truth > 0)
    order = {name: np.argsort(-_known(score), kind="stable") for name, score in scores.items()}
    ends = {}
    for name, score in scores.items():
        values = _known(score)[order[name]]
        ends[name] = np.flatnonzero(np.append(values[1:] != values[:-1], True))
    found = {name: np.full((DRAWS, 1 + len(FPR_SHOWN)), np.nan) for name in scores}
    for draw, counts in enumerate(block_weights(rows.entity, rows.time_us, rng)):
        weight = rows.weight * counts
        hit, miss = weight * odd, weight * ~odd
        n_hit, n_miss = float(hit.sum()), float(miss.sum())
        if not n_hit or not n_miss:
            continue
        for name in scores:
            seen = np.cumsum(hit[order[name]])[ends[name]]
            wrong = np.cumsum(miss[order[name]])[ends[name]]
            gained = np.diff(seen, prepend=0.0) / n_hit
            both = seen + wrong
            precision = np.divide(seen, both, out=np.zeros_like(seen), where=both > 0.0)
            found[name][draw, 0] = float(gained @ precision)
            for i, fpr in enumerate(FPR_SHOWN):
                within = int(np.searchsorted(wrong, fpr * n_miss, side="right"))
                found[name][draw, 1 + i] = seen[within - 1] / n_hit if within else 0.0
    return found


def _known(score: Float64) -> Float64:
    """Scores with those that are not known below all others."""
    return np.where(np.isnan(score), -np.inf, score)


def _crossed(rows: Judged, used: Sequence[int], unaided: npt.NDArray[np.bool_]) -> Float64:
    """float64 (n,), the surprise of a vote of some detectors, weighed anew.

    Weights for one half of the entities are fitted on the other, by event type, so that a vote
    with a detector less is as well fitted as the whole one, and none on the rows it is judged by.
    """
    found, summed = np.zeros(len(rows)), np.zeros(len(rows))
    surprise = rows.surprise[:, used]
    names = tuple(str(i) for i in used)
    half = ((rows.entity * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(63)).astype(np.int8)
    label = (rows.truth > 0).astype(np.int8)
    for kind in np.unique(rows.event_type):
        here = rows.event_type == kind
        for side in (0, 1):
            learn, apply = here & (half != side), here & (half == side)
            summed[apply] = weighted_sum(surprise[apply], np.ones(len(used)))
            if np.count_nonzero(label[learn]) >= ATTACKS_MIN and not label[learn].all():
                vote = Ensemble.fit(
                    names, surprise[learn], label[learn], unaided=unaided[list(used)]
                )
                summed[apply] = vote.number(surprise[apply])
        genuine = here & (label == 0)
        if genuine.any():
            # One scale for all event types, as the vote's own calibration has it.
            found[here] = Calibration.fit(summed[genuine]).surprise(summed[here])
    return found


def _delays(rows: Judged, names: Mapping[int, str]) -> dict[str, Any]:
    """By attack: campaigns, how many were told of, and how long after their first event."""
    at = np.flatnonzero(rows.truth > 0)
    at = at[np.lexsort((rows.time_us[at], rows.entity[at], rows.truth[at]))]
    truth, entity, time_us = rows.truth[at], rows.entity[at], rows.time_us[at]
    new = np.ones(len(at), np.bool_)
    new[1:] = (truth[1:] != truth[:-1]) | (entity[1:] != entity[:-1])
    new[1:] |= np.diff(time_us) > PAUSE_US
    first = np.flatnonzero(new)
    number = np.cumsum(new) - 1
    told = np.flatnonzero(rows.flagged[at])
    told = told[np.append(True, number[told][1:] != number[told][:-1])[: len(told)]]
    found: dict[str, Any] = {}
    for code in np.unique(truth).tolist():
        mine = told[truth[told] == code]
        begun = first[number[mine]]
        wait_s = (time_us[mine] - time_us[begun]) / 1e6
        found[names.get(code, f"attack {code}")] = {
            "campaigns": int(np.count_nonzero(truth[first] == code)),
            "found": len(mine),
            "delay_s_p50": _quantile(wait_s, 0.5),
            "delay_s_p90": _quantile(wait_s, 0.9),
            "events_before_p50": _quantile((mine - begun).astype(np.float64), 0.5),
        }
    return found


def _quantile(values: Float64, share: float) -> float:
    """A quantile, NaN of nothing."""
    return float(np.quantile(values, share)) if len(values) else float("nan")


def _cost(rows: Judged, costs: Costs) -> tuple[dict[str, Any], Curve]:
    """What misses and false alarms cost: as the rules are set, at the best threshold of the vote,
    and without any alert; and the vote's curve by what is missed."""
    odd = np.asarray(rows.truth > 0)
    amount = np.full(len(rows), np.nan) if rows.amount is None else rows.amount
    of_miss = rows.weight * costs.of_misses(amount)
    n_genuine, total = float(rows.weight[~odd].sum()), float(of_miss[odd].sum())
    missed = float(of_miss[odd & ~rows.flagged].sum())
    false = float(rows.weight[~odd & rows.flagged].sum())
    # Where a miss costs nothing, all weigh the same.
    weight = np.where(odd & (total > 0.0), of_miss, rows.weight)
    curve = curve_of(rows.score, odd, weight)
    at = total * (1.0 - curve.recall) + costs.alarm * n_genuine * curve.fpr
    best = int(np.argmin(at))
    return {
        "of_a_miss": costs.miss,
        "of_a_false_alarm": costs.alarm,
        "by_amount": costs.by_amount,
        "as_set": missed + costs.alarm * false,
        "at_best": float(at[best]),
        "best_fpr": float(curve.fpr[best]),
        "best_recall": float(curve.recall[best]),
        "without_alerts": total,
        "anomalous_events": float(rows.weight[odd].sum()),
        "genuine_events": n_genuine,
    }, curve


def _by_attack(
    rows: Judged,
    scores: Mapping[str, Float64],
    curves: Mapping[str, Curve],
    names: Mapping[int, str],
) -> list[dict[str, Any]]:
    """Recall of each attack by each detector where all have 0.3 % of false positives."""
    limits = {}
    for name, curve in curves.items():
        within = np.flatnonzero(curve.fpr <= FPR_SHOWN[1])
        limits[name] = curve.threshold[within[-1]] if len(within) else np.inf
    return [
        {
            "attack": names.get(code, f"attack {code}"),
            "events": int(np.count_nonzero(rows.truth == code)),
            **{
                name: float(np.mean(_known(score[rows.truth == code]) >= limits[name]))
                for name, score in scores.items()
            },
        }
        for code in np.unique(rows.truth[rows.truth > 0]).tolist()
    ]


def group_losses(
    catalog: Catalog, scorer: Scorer, samples: Mapping[str, TrainingSet], seed: int
) -> list[dict[str, Any]]:
    """What each group of features is worth: average precision that is lost without it.

    The values of a group are dealt anew among the rows of their event type, so that they say
    nothing of their own row any more; everything else, models and thresholds, stays.

    Parameters
    ----------
    samples : event type -> rows with features and labels

    Returns
    -------
    a dict for each group, the most worth first: `group`, `features` (how many), `average_precision`
    lost

    Source: permutation importance, Breiman, Machine Learning 45 (2001), section 10; by group, since
    features of one group stand in for each other.
    """
    groups: dict[str, int] = {}
    for name in samples:
        for feature in catalog.features(name):
            groups[feature.group] = groups.get(feature.group, 0) + 1
    odd = np.concatenate([rows.label == 1 for rows in samples.values()])
    whole = curve_of(_voted(scorer, samples), odd).average_precision
    found = []
    for group, count in groups.items():
        rng = np.random.default_rng(seed)
        dealt = {}
        for name, rows in samples.items():
            columns = [i for i, f in enumerate(catalog.features(name)) if f.group == group]
            values = rows.features.values.copy()
            values[:, columns] = values[rng.permutation(len(rows))][:, columns]
            dealt[name] = replace(rows, features=replace(rows.features, values=values))
        left = curve_of(_voted(scorer, dealt), odd).average_precision
        found.append({"group": group, "features": count, "average_precision": whole - left})
    return sorted(found, key=lambda one: -float(str(one["average_precision"])))


def _voted(scorer: Scorer, samples: Mapping[str, TrainingSet]) -> Float64:
    """float64 (n,), the vote's scores of all rows."""
    parts = []
    for rows in samples.values():
        decisions = scorer.decide(scorer.score(rows.features, {}), {})
        parts.append(decisions.score.max(axis=1, initial=0.0))
    return np.concatenate(parts)
