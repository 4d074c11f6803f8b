"""Scales of their own for parts of the traffic: what is strange for an old card is usual for a new.

A segment is a stretch of one feature (an entity seen fewer than thirty times, a country by its
code). Where a segment has rows enough its detectors, and the vote, are calibrated on its own
genuine rows: a score then says how strange the event is among its like. Where it has not, it has
the scale of the whole.

Source: Mondrian conformal prediction, Vovk, Gammerman and Shafer, Algorithmic Learning in a Random
World (2005), section 4.5: a calibration for each category.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.batch import FeatureMatrix, Float64
from features.errors import ConfigError
from models.calibration import Calibration

__all__ = ["SEGMENT_ROWS_MIN", "Cut", "Segments", "parse_cut"]

SEGMENT_ROWS_MIN = 2_000
"""Fewest genuine rows of a segment to have a scale of its own. Chosen: they resolve 0.05 %, a
quarter of the share of false alarms that thresholds are set at."""

SEGMENTS_MAX = 16
"""Most segments of an event type. Chosen: a quarter of 100,000 rows is 1,600 for each."""

Codes = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the rows of an event type are cut into segments.

    Parameters
    ----------
    column : name of a feature
    edges : ascending; a row belongs to the segment after the last edge that its value reaches, and
        to the first one where it has none
    """

    column: str
    edges: tuple[float, ...]

    def of(self, features: FeatureMatrix) -> Codes:
        """int8 (n,), the segment of each row."""
        value = features.values[:, features.names.index(self.column)]
        found = np.searchsorted(np.asarray(self.edges), value, side="right")
        segment: Codes = np.where(np.isnan(value), 0, found).astype(np.int8)
        return segment

    def named(self, segment: int) -> str:
        """A segment in words."""
        low = [f"from {self.edges[segment - 1]:g}"] if segment else []
        high = [f"below {self.edges[segment]:g}"] if segment < len(self.edges) else []
        return f"{self.column} {' and '.join(low + high)}"


def parse_cut(text: str) -> Cut:
    """`FEATURE:EDGE,EDGE` as a cut.

    Raises
    ------
    ConfigError : it is none

    >>> parse_cut("card_ever:30")
    Cut(column='card_ever', edges=(30.0,))
    """
    column, _, tail = text.partition(":")
    try:
        edges = tuple(float(x) for x in tail.split(","))
    except ValueError:
        edges = ()
    good = len(edges) < SEGMENTS_MAX and np.isfinite(edges).all()
    if not (column and edges and good and list(edges) == sorted(set(edges))):
        raise ConfigError(
            f"segments {text!r}: expected FEATURE:EDGE or FEATURE:EDGE,EDGE,... with rising edges,"
            f" at most {SEGMENTS_MAX - 1}, such as card_ever:30"
        )
    return Cut(column, edges)


@dataclass(frozen=True, slots=True)
class Segments:
    """Scales by segment.

    Parameters
    ----------
    cut : where they are
    scales : of each segment, detector or ensemble -> calibration; those that are not there have
        that of the whole
    rows : genuine rows of each segment that there were to calibrate on
    """

    cut: Cut
    scales: tuple[Mapping[str, Calibration], ...]
    rows: tuple[int, ...]

    def surprise(
        self, name: str, whole: Calibration, raw: Float64, segment: Codes | None
    ) -> Float64:
        """float64 (n,), surprise of raw numbers, each on the scale of its segment.

        Parameters
        ----------
        name : detector, or the ensemble
        whole : the scale of rows whose segment has none
        raw : float64 (n,)
        segment : int8 (n,); None: all are of the whole
        """
        found = whole.surprise(raw)
        for code, scales in enumerate(self.scales):
            if segment is not None and name in scales:
                at = np.flatnonzero(segment == code)
                found[at] = scales[name].surprise(raw[at])
        return found
