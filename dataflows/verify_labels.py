"""Verdicts for `waxwing features verify`: what the data say of their events, heard of late.

They go to the kernels as labels of history do (`dataflows.arrivals`), and beside them into a table
of the oracle. Of what is not anomalous some events are called genuine, earlier than frauds are told
of. No verdict makes an entity stand still here: SQL has no word for it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from dataflows.arrivals import LABEL_STEP_US, Arrivals
from features.batch import EventBatch, Int64
from features.catalog import Catalog
from features.labels import Label

__all__ = ["GENUINE_ONE_IN", "Verdicts", "spoken", "verdict_table"]

GENUINE_ONE_IN = 20
"""Of so many seconds the events of one are called genuine. Chosen: the newest verdict of an entity
is now a fraud, now none."""

GENUINE_SOONER = 2
"""By so much shorter is their delay: no two verdicts of another kind on events of one time come at
one time, which is in no order in SQL."""


def spoken(batch: EventBatch) -> tuple[Int64, Int64]:
    """Rows on which there is a verdict, and 1 for those that are frauds; int64 (m,) each."""
    if batch.truth is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    fraud = batch.truth > 0
    genuine = (batch.truth == 0) & (batch.time_us // 1_000_000 % GENUINE_ONE_IN == 0)
    rows = np.flatnonzero(fraud | genuine)
    return rows, fraud[rows].astype(np.int64)


def verdict_table(delay_us: int) -> str:
    """The statement that makes the table `verdicts` of `said` (`event`, `i`, `fraud`) and `events`.

    Parameters
    ----------
    delay_us : from an event to the word that it is a fraud
    """
    after = f"CASE WHEN fraud THEN {delay_us} ELSE {delay_us // GENUINE_SOONER} END"
    heard = f"ceil((time_us + {after}) / {LABEL_STEP_US})::BIGINT * {LABEL_STEP_US}"
    return (
        f"CREATE TABLE verdicts AS SELECT events.*, fraud, {heard} AS heard_us FROM events"
        " JOIN (SELECT event, i, fraud > 0 AS fraud FROM said) USING (event, i)"
    )


class Verdicts(Arrivals):
    """Labels of the rows that `spoken` names, on their way.

    Parameters
    ----------
    catalog : says which event types have features that read labels
    delay_us : from an event to the word that it is a fraud
    """

    def __init__(self, catalog: Catalog, delay_us: int) -> None:
        super().__init__(catalog, delay_us)
        self._fraud = True

    def _take(self, batch: EventBatch) -> None:
        """Take in the rows on which there is a verdict."""
        rows, fraud = spoken(batch)
        if len(rows):
            frame = batch.frame[rows].with_columns(fraud=pl.Series(fraud))
            self._fresh.setdefault(batch.event_type, []).append(frame)
            self._fresh_us = min(self._fresh_us, int(batch.time_us[rows].min()))

    def _make(self, name: str, frame: pl.DataFrame) -> None:
        """Put them on their way, each kind after its own delay."""
        delay_us = self._delay_us
        for fraud in (True, False):
            self._fraud = fraud
            self._delay_us = delay_us if fraud else delay_us // GENUINE_SOONER
            super()._make(name, frame.filter(pl.col("fraud") == int(fraud)))
        self._delay_us = delay_us

    def _put(self, due: int, label: Label) -> None:
        """As of arrivals, but of nobody's behaviour."""
        super()._put(due, replace(label, fraud=self._fraud, primary=""))
