"""Standard deviations from the mean: the plainest detector, and the yardstick for all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np

from features.batch import FeatureMatrix, Float64
from models.base import Arrays, TrainingSet
from models.detectors._deviation import Deviation, fit_deviation

__all__ = ["Model"]


class Model:
    """The sum of a row's largest z-scores, each on the side the catalogue calls odd.

    Options: `kept` (how many of the largest are added, 0 all), `log` (of the logarithms), `squash`
    (a soft sum); what is not given is chosen by the labels of training, and without labels is the
    soft sum of the five largest of the plain values.

    Parameters
    ----------
    deviation : mean and standard deviation of each feature, and the way of adding up
    """

    name: ClassVar[str] = "zscore"
    expensive: ClassVar[bool] = False

    def __init__(self, deviation: Deviation) -> None:
        self._deviation = deviation

    @classmethod
    def fit(cls, train: TrainingSet, seed: int, options: Mapping[str, float]) -> Self:
        """Take mean and standard deviation of the rows that are not known to be anomalous."""
        return cls(fit_deviation(cls.name, train, seed, options, _bounds))

    def raw(self, features: FeatureMatrix) -> Float64:
        """float64 (n,), sum of the largest z-scores; an unknown value counts as usual."""
        return self._deviation.raw(features)

    def save(self) -> tuple[Arrays, dict[str, object]]:
        """Ranges and scales; the way of adding up in the header."""
        return self._deviation.save()

    @classmethod
    def load(cls, arrays: Arrays, header: Mapping[str, object]) -> Self:
        """The model that `save` wrote."""
        return cls(Deviation.load(arrays, header))


def _bounds(values: Float64) -> tuple[Float64, Float64, list[Float64]]:
    """Mean, mean and standard deviation of each column that has values.

    Not median and MAD: measured, the mean of the recalls falls from 0.72 to 0.57, since most counts
    are 1 and most flags 0, and a MAD of nearly nothing makes every second value infinitely strange.
    """
    mean = np.nanmean(values, axis=0)
    spread = np.nanstd(values, axis=0)
    spread[spread <= 1e-12 * np.maximum(1.0, np.abs(mean))] = 0.0
    return mean, mean, [spread]
