"""Verdicts of history on their way: known with the data, heard of only when they would have come.

A model that is trained on features of labels must not see one before its time. So what the data say
of an event becomes a label `label_delay_s` after it (with the next full hour, as reports of
chargebacks come in batches), and history is cut there: no row before that moment knows of it, every
row from it on does.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from copy import copy

import numpy as np
import polars as pl

from features.batch import EventBatch
from features.catalog import Catalog
from features.events import event_code, event_type
from features.keys import hash_columns, hash_strings
from features.labels import Label
from features.operations import OPERATIONS

__all__ = ["LABEL_STEP_US", "Arrivals", "Stretch"]

LABEL_STEP_US = 3_600_000_000
"""Labels of history arrive at full hours. Chosen: each cut of history costs some milliseconds, and
an hour is little beside the days that a verdict takes."""

Stretch = tuple[tuple[Label, ...], dict[str, EventBatch]]


class Arrivals:
    """Labels that history knows and that have not arrived yet.

    Only of event types with features that read labels: those of others would tell nobody anything.

    Parameters
    ----------
    catalog : says which event types these are
    delay_us : from an event to its label
    known : event ids of known anomalies, where the events do not carry their truth
    """

    def __init__(self, catalog: Catalog, delay_us: int, known: pl.Series | None = None) -> None:
        self._delay_us = delay_us
        self._known = known
        self._events = {
            name
            for name in catalog.event_types
            if any(OPERATIONS[f.op].family == "risk" for f in catalog.features(name))
        }
        self._waiting: list[tuple[int, int, Label]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def copy(self) -> Arrivals:
        """One that goes on by itself from here."""
        other = copy(self)
        other._waiting = list(self._waiting)
        return other

    def stretches(self, batches: Mapping[str, EventBatch]) -> Iterator[Stretch]:
        """A stretch of history, cut where labels arrive.

        Parameters
        ----------
        batches : event type -> events in order; what they say of themselves is taken in

        Yields
        ------
        labels that arrive, and the events from then until the next arrive
        """
        for name in sorted(batches, key=event_code):
            if name in self._events:
                self._take(batches[name])
        if not batches:
            return
        first = min(int(batch.time_us[0]) for batch in batches.values())
        last = max(int(batch.time_us[-1]) for batch in batches.values())
        labels = self._arrived(first)
        while self._waiting and self._waiting[0][0] <= last:
            arrival = self._waiting[0][0]
            yield labels, _between(batches, first, arrival)
            labels, first = self._arrived(arrival), arrival
        yield labels, _between(batches, first, last + 1)

    def _take(self, batch: EventBatch) -> None:
        """Put the anomalies of a batch on their way."""
        ids = batch.frame["event_id"]
        if batch.truth is not None:
            rows = np.flatnonzero(batch.truth > 0)
        elif self._known is not None:
            rows = np.flatnonzero(ids.is_in(self._known.implode()).to_numpy())
        else:
            return
        if not len(rows):
            return
        declared, frame = event_type(batch.event_type), batch.frame[rows]
        texts = frame.select(pl.format(f"{declared.name} {{}}", "event_id")).to_series()
        events = hash_strings(texts).view(np.int64).tolist()
        keys = {
            entity: hash_columns(frame, columns).view(np.int64).tolist()
            for entity, columns in declared.entities.items()
        }
        code = event_code(declared.name)
        for i, time_us in enumerate(batch.time_us[rows].tolist()):
            touched = tuple((entity, found[i]) for entity, found in keys.items() if found[i])
            label = Label(code, events[i], time_us, True, touched, declared.primary)
            due_us = -(-(time_us + self._delay_us) // LABEL_STEP_US) * LABEL_STEP_US
            heapq.heappush(self._waiting, (due_us, self._count, label))
            self._count += 1

    def _arrived(self, until_us: int) -> tuple[Label, ...]:
        """Labels that arrive up to a moment, in the order in which they do."""
        found = []
        while self._waiting and self._waiting[0][0] <= until_us:
            found.append(heapq.heappop(self._waiting)[2])
        return tuple(found)


def _between(batches: Mapping[str, EventBatch], from_us: int, to_us: int) -> dict[str, EventBatch]:
    """The events of [from, to), types without left out."""
    found = {}
    for name, batch in batches.items():
        begin, end = np.searchsorted(batch.time_us, (from_us, to_us))
        if end - begin == len(batch):
            found[name] = batch
        elif end > begin:
            found[name] = batch.take(np.arange(begin, end))
    return found
