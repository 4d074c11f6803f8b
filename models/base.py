"""What a detector is, and the table of scores that detectors fill.

A detector learns what is usual from a `TrainingSet` and gives each row a raw number, higher is
stranger. It knows nothing of thresholds: `models.calibration` turns raw numbers into tail
probabilities, `models.voting` turns those into decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from features.batch import FeatureMatrix, Float64, Int64
from features.errors import ShapeError

__all__ = ["Arrays", "Decisions", "Detector", "ScoreMatrix", "TrainingSet", "unaided"]

Arrays = dict[str, npt.NDArray[np.generic]]
"""What a detector saves: plain numpy arrays by name, never a pickle."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Rows of one event type to learn from, in time order.

    Parameters
    ----------
    features : (n, F), computed by the same engine as in the stream
    time_us : int64 (n,)
    label : int8 (n,), 1 anomalous, 0 genuine, -1 unknown
    entity : uint64 (n,), key of the primary entity: splits must not cut through an entity
    attack : int16 (n,), code of the attack, 0 genuine; for reports, never for fitting
    """

    features: FeatureMatrix
    time_us: npt.NDArray[np.int64]
    label: npt.NDArray[np.int8]
    entity: npt.NDArray[np.uint64]
    attack: npt.NDArray[np.int16]

    def __post_init__(self) -> None:
        n = len(self.features)
        for name in ("time_us", "label", "entity", "attack"):
            if len(getattr(self, name)) != n:
                raise ShapeError(
                    f"training set: `{name}` has {len(getattr(self, name))} rows, features {n}"
                )

    def __len__(self) -> int:
        return len(self.features)


@runtime_checkable
class Detector(Protocol):
    """One way to tell the strange from the usual, for one event type.

    The file name is the name: `models/detectors/zscore.py` holds a class `Model` with this
    protocol. Raw scores: float64, finite or NaN (could not score), higher is stranger, row i
    depends on row i of the input alone (a batch of one equals a batch of many, bit by bit).
    """

    name: ClassVar[str]
    expensive: ClassVar[bool]
    """An expensive detector sees only the rows that the cheap ones let through its gate."""

    @classmethod
    def fit(cls, train: TrainingSet, seed: int, options: Mapping[str, float]) -> Self:
        """Learn from `train`; the same input and seed give the same model."""
        ...

    def raw(self, features: FeatureMatrix) -> Float64:
        """float64 (n,), higher is stranger."""
        ...

    def save(self) -> tuple[Arrays, dict[str, object]]:
        """Arrays and a JSON-able header."""
        ...

    @classmethod
    def load(cls, arrays: Arrays, header: Mapping[str, object]) -> Self:
        """The model that `save` wrote."""
        ...


def unaided(one: Detector) -> bool:
    """Whether a detector looks at every row and is what it is without any label.

    One that says nothing where no label is known declares it: `learns_labels = True`.
    """
    return not (one.expensive or getattr(one, "learns_labels", False))


@dataclass(frozen=True, slots=True)
class ScoreMatrix:
    """Scores of the rows of one event type.

    Parameters
    ----------
    event_type : name of the event type
    detectors : (D,), detector names
    scores : float64 (n, D), calibrated, in [0, 1], higher is stranger: 0.999 means one genuine
        event in a thousand looks this strange; NaN where the detector did not score the row
    surprise : float64 (n, D), -log10 of the tail probability (the same scale, not squeezed against
        1)
    segment : int8 (n,), the part of the traffic each row belongs to, where the vote has scales by
        part (`models.segments`); None elsewhere
    """

    event_type: str
    detectors: tuple[str, ...]
    scores: Float64
    surprise: Float64
    segment: npt.NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        if self.scores.shape != self.surprise.shape or self.scores.shape[1:] != (
            len(self.detectors),
        ):
            raise ShapeError(
                f"scores of {self.event_type!r}: {len(self.detectors)} detectors,"
                f" scores {self.scores.shape}, surprise {self.surprise.shape}"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: npt.NDArray[np.intp] | Int64 | slice) -> ScoreMatrix:
        """The given rows."""
        segment = None if self.segment is None else self.segment[rows]
        scores, surprise = self.scores[rows], self.surprise[rows]
        return ScoreMatrix(self.event_type, self.detectors, scores, surprise, segment)


@dataclass(frozen=True, slots=True)
class Decisions:
    """What the vote made of the scores of one batch.

    Parameters
    ----------
    event_type : name of the event type
    anomaly_types : (A,), the anomaly types that read this event type
    score : float64 (n, A), the ensemble's calibrated score
    flagged : bool (n, A), whether the event becomes an alert
    votes : bool (n, A, D), each detector's own vote
    thresholds : float64 (A, D), the detectors' thresholds then in force
    """

    event_type: str
    anomaly_types: tuple[str, ...]
    detectors: tuple[str, ...]
    score: Float64
    flagged: npt.NDArray[np.bool_]
    votes: npt.NDArray[np.bool_]
    thresholds: Float64
