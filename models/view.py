"""What detectors see of the features: nothing that only tells how long the flow has been running.

How old an entity is and how often it was ever seen grows without end: a model fitted on two weeks
would take the third for something new. Such a number is held at what half of the genuine training
rows have, beyond which an entity is simply known. What is usual of an entity is left out: it is
there to be compared with (and is, by the features beside it), not to know the entity by. And a
history shorter than a day says nothing of the hours it has not seen, nor one shorter than a week
of the days.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from features.batch import FeatureMatrix, Float64
from features.catalog import Catalog
from models.base import Arrays

__all__ = ["View"]

GROWING = ("age", "ever")
"""Operations whose value grows as long as the entity lives."""

CONTEXT = ("usual_count", "distinct_ever")
"""Operations whose value is only there to compare another with. Measured: with them, iqr took 23 %
of the genuine log lines of another week for strange, and the trees 2 %."""


WEEKLY = ("week_usual", "week_z", "creep")
"""Operations that compare with other days of the week, or the day with a level of weeks. In a
shorter history they say that all is as usual, always: what is learned from that would be an alarm a
week later. `anchor_z` is none of them: a level that is younger than its memory is that of all
values so far, the only one that an anomaly of an hour does not move within the hour. Measured
(SKAB, 400 s of history, 2026-11-29): without it the score of a sensor that stays off its level is
that of the first minute alone, and what comes back to it looks stranger than what is off."""

WEEK_SEEN_US = 7 * 86_400_000_000
"""Shortest span of training that has seen a week."""

DAILY = ("season_usual", "season_z")
"""Operations that compare with the same hour of other days; the column `hour` is left out with
them. Measured on five minutes of history before midnight and the minute after it: with them the
gate of the transformer let all rows through instead of a fifth, since zscore and iqr had learned
that it is always 23:57."""

DAY_SEEN_US = 23 * 3_600_000_000
"""Shortest span of training that has seen a day. Chosen: rows of all 24 hours span more than 22."""


@dataclass(frozen=True, slots=True)
class View:
    """Which columns of an event type's features detectors see, and the most each may be.

    Parameters
    ----------
    columns : intp (K,), places among the catalogue's features
    names : (K,), their names
    most : float64 (K,), inf where a feature is not held
    """

    columns: npt.NDArray[np.intp]
    names: tuple[str, ...]
    most: Float64

    @classmethod
    def fit(cls, catalog: Catalog, event_type: str, genuine: Float64, span_us: int) -> Self:
        """The view that declarations and genuine training rows ask for.

        Parameters
        ----------
        genuine : float64 (n, F)
        span_us : event time from the first row of training to the last
        """
        features = catalog.features(event_type)
        hidden = {
            *CONTEXT,
            *(DAILY if span_us < DAY_SEEN_US else ()),
            *(WEEKLY if span_us < WEEK_SEEN_US else ()),
        }
        kept = [
            i
            for i, f in enumerate(features)
            if f.op not in hidden and (span_us >= DAY_SEEN_US or f.column != "hour")
        ]
        most = np.full(len(kept), np.inf)
        for k, i in enumerate(kept):
            known = genuine[:, i][~np.isnan(genuine[:, i])]
            if features[i].op in GROWING and len(known):
                most[k] = np.median(known)
        return cls(np.array(kept, np.intp), tuple(features[i].name for i in kept), most)

    def apply(self, features: FeatureMatrix) -> FeatureMatrix:
        """The features as detectors see them; unknown values stay unknown."""
        values = np.take(features.values, self.columns, axis=1)
        np.minimum(values, self.most, out=values)
        return FeatureMatrix(
            features.event_type, self.names, values, features.sequence, features.catalog_version
        )

    def save(self) -> Arrays:
        """Plain arrays, for the bundle."""
        return {"columns": self.columns.astype(np.int64), "most": self.most}

    @classmethod
    def load(cls, arrays: Arrays, names: tuple[str, ...]) -> Self:
        """The view that `save` wrote, of features in the order `names`."""
        columns = np.asarray(arrays["columns"]).astype(np.intp)
        most = np.asarray(arrays["most"], np.float64)
        return cls(columns, tuple(names[i] for i in columns.tolist()), most)
