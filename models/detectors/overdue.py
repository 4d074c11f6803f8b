"""How long somebody is overdue, and nothing else: for absences too few to learn from.

Silences are rare: a few days of history have some hundreds of absences, in which no trained model
parts the plain silences from the strangest genuine ones. What an entity is allowed comes from its
own rhythm already (`features.silence`), so how many times over it has been silent says enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np

from features.batch import FeatureMatrix, Float64
from features.errors import ShapeError
from models.base import Arrays, TrainingSet
from models.calibration import Calibration
from models.detectors._options import read_options

__all__ = ["TIMES", "Model", "usual_law"]

TIMES = 4.0
"""Times the allowed gap from which it votes. Measured on the simulator (20,000 cards, 2 events/s,
6 days of seed 7, 2026-11-29), entities known for two days: of 464 genuine silences 12 reached twice
the allowed gap and none four times; of 13 silences by attacks all did."""

DAYS = 2.0
"""Days an entity must have been known: a rhythm of one day has not seen the hours twice. Measured
there: with one day three genuine silences of hosts reached four times, and more."""

READS = ("gap_s", "allowed_s", "known_days")
"""Features it reads."""

_SEEN = ((1.0, 464), (2.0, 12), (TIMES, 0))
"""Genuine silences that reached so many times the allowed gap, see `TIMES`."""


def usual_law() -> Calibration:
    """How many genuine silences are so long: the conformal shares of what was measured."""
    rows = sum(count for _, count in _SEEN)
    beyond = [sum(n for at, n in _SEEN if at >= times) for times, _ in _SEEN]
    surprise = [-np.log10((1.0 + count) / (rows + 1.0)) for count in beyond]
    return Calibration(np.array([times for times, _ in _SEEN]), np.array(surprise), rows)


class Model:
    """Silence over the gap allowed, of those known long enough; 1 of all others.

    Options: `days` an entity must have been known.

    Parameters
    ----------
    days : see the option
    """

    name: ClassVar[str] = "overdue"
    expensive: ClassVar[bool] = False
    reads: ClassVar[str] = "absence"
    fallback: ClassVar[bool] = True

    def __init__(self, days: float) -> None:
        self._days = days

    @classmethod
    def fit(cls, train: TrainingSet, seed: int, options: Mapping[str, float]) -> Self:
        """Nothing is learned: rows may be none."""
        return cls(read_options(cls.name, options, {"days": (DAYS, 0.0, 365.0)})["days"])

    def raw(self, features: FeatureMatrix) -> Float64:
        """float64 (n,), times the allowed gap; 1 where one of its features is not known.

        Raises
        ------
        ShapeError : rows without them
        """
        missing = [name for name in READS if name not in features.names]
        if missing:
            raise ShapeError(
                f"detector 'overdue': expected features {', '.join(READS)}, got none called"
                f" {', '.join(missing)}; train again with `waxwing train`"
            )
        gap, allowed, known = (features.values[:, features.names.index(name)] for name in READS)
        with np.errstate(divide="ignore", invalid="ignore"):
            times = gap / allowed
        judged = (known >= self._days) & np.isfinite(times)
        found: Float64 = np.where(judged, np.maximum(times, 1.0), 1.0)
        return found

    def save(self) -> tuple[Arrays, dict[str, object]]:
        """No array, one number."""
        return {}, {"days": self._days}

    @classmethod
    def load(cls, arrays: Arrays, header: Mapping[str, object]) -> Self:
        """The model that `save` wrote."""
        return cls(float(str(header["days"])))
