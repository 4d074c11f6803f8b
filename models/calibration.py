"""From a detector's raw number to a tail probability on genuine traffic, one scale for all.

A raw number says little: is an isolation depth of 0.61 much? Its conformal tail probability says
it: the share of held-out genuine rows that look at least as strange. n rows resolve 1/(n+1); beyond
the strangest of them a fitted Pareto tail goes on, and what it says is marked as extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from features.batch import Float64
from features.errors import ShapeError
from models.base import Arrays

__all__ = ["SURPRISE_MAX", "Calibration", "score_of", "surprise_of", "surprises_of"]

SURPRISE_MAX = 12.0
"""Largest surprise given, 1e-12; chosen: more than that no tail fitted on 1e5 rows can tell apart,
and 1 - 1e-12 still differs from 1 in double precision."""

KNOTS_TOP = 2_000
"""Strangest genuine rows kept one by one. Chosen: of 100,000 rows the last 2 %, where thresholds
lie, at full resolution."""

KNOTS_BODY = 1_000
"""Quantiles kept of the rest. Chosen: a tenth of a per cent is finer than any use of the body."""

TAIL_ROWS_MIN = 50
"""Fewest exceedances to fit a tail to; with fewer there is none. Chosen: the shape's error is about
1.5 / sqrt(n) (Hosking and Wallis 1987, Table 1), 0.2 at fifty."""

TAIL_SHARE = 0.01
"""Share of genuine rows that the tail is fitted to. Chosen: far out, yet 250 of 25,000."""

SHAPE_MAX = 1.0
"""Heaviest tail taken; chosen: beyond it the mean of the exceedances does not exist and the fit by
moments means nothing."""


def score_of(surprise: Float64) -> Float64:
    """Score in [0, 1] of a surprise: 1 minus the tail probability; NaN stays NaN."""
    score: Float64 = 1.0 - np.power(10.0, -surprise)
    return score


def surprise_of(score: float) -> float:
    """Surprise of a score in [0, 1]; that of 1 is SURPRISE_MAX.

    >>> round(surprise_of(0.999), 6)
    3.0
    """
    return float(surprises_of(np.asarray(score, np.float64)))


def surprises_of(score: Float64) -> Float64:
    """`surprise_of` of each score, in [0, SURPRISE_MAX]; NaN stays NaN."""
    found: Float64 = -np.log10(np.maximum(1.0 - score, 10.0**-SURPRISE_MAX))
    return found


@dataclass(frozen=True, slots=True)
class Calibration:
    """Tail probabilities of one number, from its values on held-out genuine rows.

    Parameters
    ----------
    knots : float64 (k,), ascending distinct values among the genuine rows
    surprise_at : float64 (k,), -log10 of the conformal probability (1 + rows >= knot) / (rows + 1)
    rows : genuine rows it was made from
    tail_from, tail_share, tail_scale, tail_shape : Pareto tail of the values above `tail_from`,
        which a share `tail_share` of the genuine rows has; a scale of 0 says that there is none
    """

    knots: Float64
    surprise_at: Float64
    rows: int
    tail_from: float = 0.0
    tail_share: float = 0.0
    tail_scale: float = 0.0
    tail_shape: float = 0.0

    @classmethod
    def fit(cls, genuine: Float64) -> Self:
        """From the values on genuine rows; -inf stands for a row that was not looked at.

        Raises
        ------
        ShapeError : no row has a value
        """
        rows = len(genuine)
        values = np.sort(genuine[~np.isnan(genuine)])
        values = values[values > -np.inf]
        if not len(values):
            raise ShapeError("calibration: expected genuine rows with a value, got none")
        distinct, first = np.unique(values, return_index=True)
        at_least = len(values) - first
        # All of the top, and of the body evenly many by rank: a knot left out makes the rows
        # between # look a little more usual than they are, never stranger.
        body = np.searchsorted(first, np.linspace(0, len(values) - 1, KNOTS_BODY).astype(np.int64))
        top = np.flatnonzero(at_least <= KNOTS_TOP)
        kept = np.unique(np.concatenate((body[body < len(distinct)], top, [0])))
        surprise = -np.log10((1.0 + at_least[kept]) / (rows + 1.0))
        return cls(distinct[kept], surprise, rows, *_tail(values, rows))

    def surprise(self, raw: Float64) -> Float64:
        """-log10 of the tail probability of each value, in [0, SURPRISE_MAX]; NaN stays NaN.

        Parameters
        ----------
        raw : float64 (n,)

        Returns
        -------
        float64 (n,)
        """
        at = np.searchsorted(self.knots, raw, side="right") - 1
        found = np.where(at < 0, 0.0, self.surprise_at[np.maximum(at, 0)])
        if self.tail_scale > 0.0:
            beyond = np.flatnonzero(raw > self.knots[-1])
            if len(beyond):
                found[beyond] = np.maximum(found[beyond], self._tail_surprise(raw[beyond]))
        found[np.isnan(raw)] = np.nan
        return np.minimum(found, SURPRISE_MAX)

    def value_at(self, surprise: float) -> float:
        """The smallest value that is at least this strange; the tail's beyond every genuine row,
        and the largest of these where there is no tail.

        Parameters
        ----------
        surprise : -log10 of a tail probability
        """
        at = int(np.searchsorted(self.surprise_at, surprise))
        if at < len(self.knots):
            return float(self.knots[at])
        if self.tail_scale <= 0.0:
            return float(self.knots[-1])
        decay = (surprise + np.log10(self.tail_share)) * np.log(10.0)
        if self.tail_shape > 0.0:
            decay = np.expm1(decay * self.tail_shape) / self.tail_shape
        return max(float(self.knots[-1]), self.tail_from + self.tail_scale * float(decay))

    def extrapolated(self, raw: Float64) -> npt.NDArray[np.bool_]:
        """Which values lie beyond every genuine row: their probability is the tail's word alone."""
        beyond: npt.NDArray[np.bool_] = raw > self.knots[-1]
        return beyond

    def _tail_surprise(self, raw: Float64) -> Float64:
        """Surprise by the Pareto tail, for values above `tail_from`."""
        above = (raw - self.tail_from) / self.tail_scale
        if self.tail_shape > 0.0:
            decay = np.log1p(self.tail_shape * above) / self.tail_shape
        else:
            decay = above
        surprise: Float64 = decay / np.log(10.0) - np.log10(self.tail_share)
        return surprise

    def save(self) -> Arrays:
        """Plain arrays, for the bundle."""
        tail = [self.tail_from, self.tail_share, self.tail_scale, self.tail_shape]
        return {
            "knots": self.knots,
            "surprise_at": self.surprise_at,
            "rows": np.array([self.rows]),
            "tail": np.array(tail),
        }

    @classmethod
    def load(cls, arrays: Arrays) -> Self:
        """The calibration that `save` wrote."""
        tail = [float(x) for x in arrays["tail"]]
        knots = np.asarray(arrays["knots"], np.float64)
        return cls(
            knots, np.asarray(arrays["surprise_at"], np.float64), int(arrays["rows"][0]), *tail
        )


def _tail(values: Float64, rows: int) -> tuple[float, float, float, float]:
    """Generalised Pareto tail of ascending values: from, share of all rows, scale, shape.

    Source: probability-weighted moments, Hosking and Wallis, Technometrics 29 (1987), eq. 6; their
    k is minus our shape. Deviates by holding the shape in [0, SHAPE_MAX]: a negative one has an
    end, beyond which a probability would be zero. A shape held keeps the mean or the median.
    """
    n = max(TAIL_ROWS_MIN, round(TAIL_SHARE * rows))
    if len(values) <= n:
        return 0.0, 0.0, 0.0, 0.0
    start = float(values[-n - 1])
    above = values[values > start] - start
    count = len(above)
    if count < TAIL_ROWS_MIN:
        return 0.0, 0.0, 0.0, 0.0
    rank = (np.arange(1, count + 1) - 0.35) / count
    mean, weighted = float(above.mean()), float(((1.0 - rank) * above).mean())
    shape = 2.0 - mean / max(mean - 2.0 * weighted, 1e-12 * mean)
    scale = 2.0 * mean * weighted / max(mean - 2.0 * weighted, 1e-12 * mean)
    if shape <= 0.0:
        shape, scale = 0.0, mean
    elif shape > SHAPE_MAX:
        shape = SHAPE_MAX
        scale = shape * float(np.median(above)) / (2.0**shape - 1.0)
    return start, (count + 1.0) / (rows + 1.0), scale, shape
