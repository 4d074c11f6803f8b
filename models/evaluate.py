"""How well detectors and their vote do where the truth is known: recall, precision, false
positives.

`Tally` adds up batch by batch, so that the live view, the closing table of the demo and `waxwing
evaluate` are readings of the same counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.batch import Float64
from features.simulate import ATTACKS, SILENCES
from models.base import Decisions, ScoreMatrix
from models.voting import ENSEMBLE

__all__ = ["Curve", "Tally", "curve_of", "threshold_at", "threshold_of_sorted"]


def threshold_at(genuine: Float64, share: float) -> float:
    """Lowest threshold that at most a share of genuine scores reaches; inf where none does.

    Parameters
    ----------
    genuine : float64 (n,), scores of genuine rows; NaN reaches nothing
    share : of all n rows, in [0, 1]

    Examples
    --------
    >>> threshold_at(np.arange(10.0), 0.2)
    8.0
    """
    return threshold_of_sorted(np.sort(np.where(np.isnan(genuine), -np.inf, genuine))[::-1], share)


def threshold_of_sorted(values: Float64, share: float) -> float:
    """`threshold_at` of falling scores without NaN: for those who ask more than once."""
    allowed = int(share * len(values))
    if allowed >= len(values):
        return float(values[-1]) if len(values) else float("inf")
    # The value that is one too many, and all equal to it, stay below the threshold.
    above = values[:allowed][values[:allowed] > values[allowed]]
    return float(above[-1]) if len(above) else float(np.nextafter(values[allowed], np.inf))


class Tally:
    """Counts of votes over events whose truth is known.

    Parameters
    ----------
    names : code in the truth -> name of the attack; the simulator's by default
    """

    def __init__(self, names: Mapping[int, str] | None = None) -> None:
        self._names = (
            {v: k for k, v in (ATTACKS | SILENCES).items()} if names is None else dict(names)
        )
        self._order: tuple[str, ...] = ()
        self._genuine: dict[str, int] = {}
        self._found: dict[int, dict[str, int]] = {}
        self._sent: dict[int, int] = {}
        self._rows = 0
        self._rows_genuine = 0
        self._scored: dict[str, int] = {}
        self._types: dict[str, list[int]] = {}

    def add(
        self,
        event_type: str,
        truth: npt.NDArray[np.int16],
        scores: ScoreMatrix,
        decisions: Decisions,
    ) -> None:
        """Take in one batch.

        Parameters
        ----------
        truth : int16 (n,), code of the attack, 0 genuine
        """
        votes = np.asarray(decisions.votes.any(axis=1))
        columns: dict[str, npt.NDArray[np.bool_]] = {
            name: votes[:, i] for i, name in enumerate(scores.detectors)
        }
        columns[ENSEMBLE] = np.asarray(decisions.flagged.any(axis=1))
        self._order = tuple(dict.fromkeys((*self._order, *scores.detectors)))
        odd: npt.NDArray[np.bool_] = truth > 0
        n, n_odd = len(truth), int(np.count_nonzero(odd))
        self._rows += n
        self._rows_genuine += n - n_odd
        flagged = columns[ENSEMBLE]
        found = int(np.count_nonzero(flagged & odd))
        counts = self._types.setdefault(event_type, [0, 0, 0, 0])
        for at, count in enumerate((n_odd, found, n - n_odd, int(flagged.sum()) - found)):
            counts[at] += count
        for i, name in enumerate(scores.detectors):
            seen = int(np.count_nonzero(~np.isnan(scores.scores[:, i])))
            self._scored[name] = self._scored.get(name, 0) + seen
        for name, column in columns.items():
            wrong = int(np.count_nonzero(column & ~odd))
            self._genuine[name] = self._genuine.get(name, 0) + wrong
        for code in np.unique(truth[truth > 0]).tolist():
            here = truth == code
            self._sent[code] = self._sent.get(code, 0) + int(here.sum())
            hits = self._found.setdefault(code, {})
            for name, column in columns.items():
                hits[name] = hits.get(name, 0) + int(np.count_nonzero(column & here))

    def report(self) -> dict[str, Any]:
        """`detectors` and `by_attack` as every `--json` has them; both empty before any event."""
        if not self._rows:
            return {}
        sent = sum(self._sent.values())
        detectors: dict[str, Any] = {}
        for name in (*self._order, ENSEMBLE):
            found = sum(hits.get(name, 0) for hits in self._found.values())
            wrong = self._genuine.get(name, 0)
            detectors[name] = {
                "recall": _share(found, sent),
                "precision": _share(found, found + wrong),
                "fpr": _share(wrong, self._rows_genuine),
            }
            if name != ENSEMBLE:
                detectors[name]["scored"] = _share(self._scored.get(name, 0), self._rows)
        return {
            "detectors": detectors,
            "by_attack": {
                self._names.get(code, f"attack {code}"): {
                    "events": self._sent[code],
                    **{n: {"recall": _share(h, self._sent[code])} for n, h in hits.items()},
                }
                for code, hits in sorted(self._found.items())
            },
            "by_event_type": {
                name: {
                    "attack_events": odd,
                    "recall": _share(found, odd),
                    "genuine_events": genuine,
                    "fpr": _share(wrong, genuine),
                }
                for name, (odd, found, genuine, wrong) in self._types.items()
            },
        }


def _share(part: int, whole: int) -> float:
    """A share, NaN of nothing."""
    return part / whole if whole else float("nan")


@dataclass(frozen=True, slots=True)
class Curve:
    """Every threshold of a score and what it would find, from the highest on.

    Parameters
    ----------
    threshold : float64 (k,), distinct scores, falling
    recall, precision, fpr : float64 (k,), of the rows that reach the threshold
    average_precision : area under precision over recall, in steps
    roc_auc : chance that an anomalous row scores above a genuine one; ties count half
    """

    threshold: Float64
    recall: Float64
    precision: Float64
    fpr: Float64
    average_precision: float
    roc_auc: float

    def recall_at(self, fpr: float) -> float:
        """Most recall at no more than a share of false positives; 0 where every threshold has
        more."""
        within = self.recall[self.fpr <= fpr]
        return float(within[-1]) if len(within) else 0.0


def curve_of(score: Float64, odd: npt.NDArray[np.bool_], weight: Float64 | None = None) -> Curve:
    """The curve of a score; NaN where there are no anomalous, or no genuine, rows.

    Parameters
    ----------
    score : float64 (n,), higher is stranger; NaN is below every number
    odd : bool (n,), which rows are anomalous
    weight : float64 (n,), how often each row counts (a bootstrap's draw); once each by default

    Examples
    --------
    >>> curve = curve_of(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    >>> round(curve.average_precision, 4), curve.roc_auc
    (0.8333, 0.75)

    Source: average precision and area as scikit-learn's `average_precision_score` and
    `roc_auc_score` have them.
    """
    times = np.ones(len(score)) if weight is None else weight
    values = np.where(np.isnan(score), -np.inf, score)
    order = np.argsort(-values, kind="stable")
    values, times, hit = values[order], times[order], odd[order]
    found, wrong = np.cumsum(times * hit), np.cumsum(times * ~hit)
    last = np.flatnonzero(np.append(values[1:] != values[:-1], True))[: len(values)]
    found, wrong, at = found[last], wrong[last], values[last]
    n_odd = float(found[-1]) if len(found) else 0.0
    n_genuine = float(wrong[-1]) if len(wrong) else 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, fpr = found / n_odd, wrong / n_genuine
        precision = found / (found + wrong)
    gained = np.diff(recall, prepend=0.0)
    area = float("nan")
    if n_odd and n_genuine:
        edge, height = np.append(0.0, fpr), np.append(0.0, recall)
        area = float(np.sum(np.diff(edge) * (height[1:] + height[:-1]) / 2.0))
    mean = float(np.sum(gained * np.nan_to_num(precision))) if n_odd else float("nan")
    return Curve(at, recall, precision, fpr, mean, area)
