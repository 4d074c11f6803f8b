"""One fit and one test: rows of a stretch are learned from, those of a later one are scored.

The rows come from one pass over the features of the flow. Where the test begins, `models.train`
makes a bundle of what was collected, and every row from then on is scored by it, as it comes by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dataflows.history import Collector
from dataflows.together import Together
from dataflows.training import TRAINING_SEED
from features.batch import EventBatch, FeatureMatrix, Float64, Int64
from features.catalog import Catalog
from features.errors import ConfigError
from features.events import made_types
from models.calibration import surprises_of
from models.scoring import Scorer, take_rows
from models.train import train
from models.voting import ENSEMBLE

__all__ = ["DETECTORS", "All", "Fold", "Found"]

DETECTORS = ("zscore", "iqr", "isolation_forest", "gradient_boosting", "level")
"""Detectors where the setting names no others, of all data sets. Chosen: all that take seconds to
fit; the transformer takes minutes, and behind its gate says nothing of nine rows in ten."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was said of rows of a file; of a wide table's row, what was said of its strangest cell.

    Parameters
    ----------
    score : float64 (n,), the ensemble's; NaN where a row was not scored
    flagged : bool (n,), whether it is an alert
    each : detector -> float64 (n,), its surprise; 0 where it did not look
    together : `ensemble` or detector -> float64 (n,), of the cells of a row together
        (`dataflows.together`); NaN where it did not look
    """

    score: Float64
    flagged: npt.NDArray[np.bool_]
    each: dict[str, Float64]
    together: dict[str, Float64]


@dataclass(slots=True)
class Fold:
    """Collects, fits where the test begins, then scores.

    Parameters
    ----------
    catalog : what the columns mean
    name : what it is called when it is told of
    fit_us, test_us : stretches of event time, from and until
    rows : of the file
    detectors : names
    say : told what is being done, one sentence at a time
    share : of genuine rows to learn from
    labelled : whether the fit sees labels
    """

    catalog: Catalog
    name: str
    fit_us: tuple[int, int]
    test_us: tuple[int, int]
    rows: int
    detectors: Sequence[str]
    say: Callable[[str], None]
    share: float = 1.0
    labelled: bool = True
    _scorer: Scorer | None = None
    _collector: Collector = field(init=False)
    _score: Float64 = field(init=False)
    _flagged: npt.NDArray[np.bool_] = field(init=False)
    _each: Float64 = field(init=False)
    _together: dict[str, Together] = field(init=False)

    def __post_init__(self) -> None:
        self._collector = Collector(self.catalog, 0, self.share)
        self._score = np.full(self.rows, np.nan)
        self._flagged = np.zeros(self.rows, np.bool_)
        self._each = np.zeros((self.rows, len(self.detectors)))
        self._together = {name: Together(self.rows) for name in (ENSEMBLE, *self.detectors)}

    def add(self, batch: EventBatch, features: FeatureMatrix) -> None:
        """Take in one batch."""
        if batch.event_type in made_types():
            return
        fit, test = (_within(batch.time_us, *span) for span in (self.fit_us, self.test_us))
        if len(fit):
            part = batch.take(fit)
            if not self.labelled:
                part = EventBatch(
                    part.event_type, part.frame, part.partition, part.offset, part.due_ns
                )
            self._collector.add(part, take_rows(features, fit))
        if len(test):
            self._judge(batch.take(test), take_rows(features, test))

    def _judge(self, batch: EventBatch, features: FeatureMatrix) -> None:
        """Score rows of the test."""
        if self._scorer is None:
            self.say(f"{self.name}: fitting{'' if self.labelled else ' without labels'}")
            sets = self._collector.sets()
            self._collector = Collector(self.catalog, 0, self.share)
            bundle = train(sets, self.catalog, self.detectors, TRAINING_SEED, say=self.say)
            self._scorer = Scorer(bundle, self.detectors)
        scores = self._scorer.score(features, {})
        made = self._scorer.decide(scores, {})
        rows = batch.offset
        self._score[rows] = np.fmax(self._score[rows], 0.0)
        score = made.score.max(axis=1)
        np.maximum.at(self._score, rows, score)
        self._together[ENSEMBLE].add(rows, surprises_of(score))
        np.logical_or.at(self._flagged, rows, made.flagged.any(axis=1))
        for i, name in enumerate(self.detectors):
            if name in scores.detectors:
                said = np.nan_to_num(scores.surprise[:, scores.detectors.index(name)])
                np.maximum.at(self._each[:, i], rows, said)
                self._together[name].add(rows, said)

    def found(self) -> Found:
        """What was said of the rows.

        Raises
        ------
        ConfigError : the data end before the test begins
        """
        if self._scorer is None:
            raise ConfigError(f"--data: ends before the test of {self.name} begins")
        heard = {
            name for models in self._scorer.bundle.models.values() for name in models.detectors
        }
        each = {name: self._each[:, i] for i, name in enumerate(self.detectors) if name in heard}
        together = {name: self._together[name].surprise() for name in (ENSEMBLE, *each)}
        return Found(self._score, self._flagged, each, together)


class All:
    """Gives every batch to each fold."""

    def __init__(self, folds: Sequence[Fold]) -> None:
        self._folds = folds

    def add(self, batch: EventBatch, features: FeatureMatrix) -> None:
        """Take in one batch."""
        for fold in self._folds:
            fold.add(batch, features)


def _within(time_us: Int64, from_us: int, until_us: int) -> Int64:
    """Rows of [from, until)."""
    return np.flatnonzero((time_us >= from_us) & (time_us < until_us))
