"""Verdicts of history on their way: known with the data, heard of only when they would have come.

A model that is trained on features of labels must not see one before its time. So what the data say
of an event becomes a label `label_delay_s` after it (with the next full hour, as reports of
chargebacks come in batches), and history is cut there: no row before that moment knows of it, every
row from it on does.

A live flow over data that say so hears of them in the same way, a round at a time (the rounds of a
file do not go beyond a full hour then), and goes on with those that history left under way.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from dataflows.known import labels_of
from features.batch import EventBatch
from features.catalog import Catalog
from features.events import event_code, event_type, event_types
from features.keys import hash_columns, hash_strings
from features.labels import Label
from features.operations import OPERATIONS

__all__ = ["LABEL_STEP_US", "WAITING_MAX", "Arrivals", "Stretch", "due_us"]

LABEL_STEP_US = 3_600_000_000
"""Labels of history arrive at full hours. Chosen: each cut of history costs some milliseconds, and
an hour is little beside the days that a verdict takes."""

WAITING_MAX = 200_000
"""Most labels under way; what comes beyond is passed over and counted. Chosen: frauds of a week at
150 events/s of which two in a thousand are some, and 100 MB."""

_NEVER = 1 << 62
"""A time that does not come."""

_FIELDS = ("due_us", "event", "time_us")

Stretch = tuple[tuple[Label, ...], dict[str, EventBatch]]


class Arrivals:
    """Labels that history knows and that have not arrived yet.

    Only of event types with features that read labels: those of others would tell nobody anything.

    Parameters
    ----------
    catalog : says which event types these are
    delay_us : from an event to its label
    known : known anomalies (`dataflows.known`), where the events do not carry their truth
    takes : whether what the data say is taken in; else only what is under way already arrives

    Attributes
    ----------
    passed_over : labels that found WAITING_MAX others under way
    """

    def __init__(
        self,
        catalog: Catalog,
        delay_us: int,
        known: pl.DataFrame | None = None,
        takes: bool = True,
    ) -> None:
        self._delay_us = delay_us
        self._takes = takes
        self._known = known
        self._events = {
            name
            for name in catalog.event_types
            if any(OPERATIONS[f.op].family == "risk" for f in catalog.features(name))
        }
        self._waiting: list[tuple[int, int, int, int, Label]] = []
        self._count = self.passed_over = 0
        self._fresh: dict[str, list[pl.DataFrame]] = {}
        self._fresh_us = _NEVER

    def __len__(self) -> int:
        self._settle()
        return len(self._waiting)

    def copy(self) -> Arrivals:
        """One that goes on by itself from here."""
        self._settle()
        other = copy(self)
        other._fresh = {}
        other._waiting = list(self._waiting)
        return other

    def follow(self, before: Arrivals) -> None:
        """Go on with what was under way at the end of an earlier stretch of the stream."""
        before._settle()
        for due, *_, label in sorted(before._waiting):
            self._put(due, label)

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        """What is under way, as arrays by name; by event type and entity, not by their codes."""
        self._settle()
        found: dict[str, npt.NDArray[Any]] = {}
        names = list(event_types())
        by_type: dict[str, list[tuple[int, Label]]] = {}
        for due, *_, label in sorted(self._waiting):
            by_type.setdefault(names[label.code], []).append((due, label))
        for name, mine in by_type.items():
            rows = [(due, label.event, label.time_us) for due, label in mine]
            found[f"arrivals.{name}"] = np.array(rows, np.int64).reshape(-1, len(_FIELDS))
            for entity in event_type(name).entities:
                keys = [dict(label.entities).get(entity, 0) for _, label in mine]
                found[f"arrivals.{name}.{entity}"] = np.array(keys, np.int64)
        return found

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take a dump in place of what is under way; those of event types that are no more are of
        nobody."""
        self._waiting, self._count = [], 0
        self._fresh, self._fresh_us = {}, _NEVER
        for name in self._events:
            rows = arrays.get(f"arrivals.{name}")
            if rows is None:
                continue
            declared, code = event_type(name), event_code(name)
            none = np.zeros(len(rows), np.int64)
            keys = {e: arrays.get(f"arrivals.{name}.{e}", none) for e in declared.entities}
            for i, (due, event, time_us) in enumerate(rows.tolist()):
                touched = tuple((e, int(column[i])) for e, column in keys.items() if column[i])
                label = Label(code, event, time_us, True, touched, declared.primary)
                self._put(due, label)

    def _put(self, due: int, label: Label) -> None:
        """Put a label on its way."""
        if len(self._waiting) >= WAITING_MAX:
            self.passed_over += 1
            return
        # By event, so that the order is the same however the stream is cut.
        heapq.heappush(self._waiting, (due, label.time_us, label.event, self._count, label))
        self._count += 1

    def heard(self, batches: Mapping[str, EventBatch], clock_us: int) -> tuple[Label, ...]:
        """Labels that arrive before a round, which is not cut; what the round says is taken in.

        Parameters
        ----------
        batches : event type -> events in order; nothing is heard of without any, as in history
        clock_us : event-time clock before the round
        """
        for name in sorted(batches, key=event_code):
            if name in self._events:
                self._take(batches[name])
        if not batches:
            return ()
        first = min(int(batch.time_us[0]) for batch in batches.values())
        return self._arrived(max(first, clock_us))

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
        self._settle()
        labels = self._arrived(first)
        while self._waiting and self._waiting[0][0] <= last:
            arrival = self._waiting[0][0]
            yield labels, _between(batches, first, arrival)
            labels, first = self._arrived(arrival), arrival
        yield labels, _between(batches, first, last + 1)

    def _take(self, batch: EventBatch) -> None:
        """Take in the anomalies of a batch."""
        if not self._takes:
            return
        ids = batch.frame["event_id"]
        if batch.truth is not None:
            rows = np.flatnonzero(batch.truth > 0)
        elif self._known is not None:
            mine = labels_of(self._known, batch.event_type)["event_id"]
            rows = np.flatnonzero(ids.is_in(mine.implode()).to_numpy())
        else:
            return
        if not len(rows):
            return
        self._fresh.setdefault(batch.event_type, []).append(batch.frame[rows])
        self._fresh_us = min(self._fresh_us, int(batch.time_us[rows].min()))

    def _settle(self) -> None:
        """Make labels of the anomalies taken in; together, since each call costs a millisecond."""
        fresh, self._fresh, self._fresh_us = self._fresh, {}, _NEVER
        for name in sorted(fresh, key=event_code):
            self._make(name, pl.concat(fresh[name]))

    def _make(self, name: str, frame: pl.DataFrame) -> None:
        """Put the anomalies of an event type on their way."""
        declared = event_type(name)
        texts = frame.select(pl.format(f"{declared.name} {{}}", "event_id")).to_series()
        events = hash_strings(texts).view(np.int64).tolist()
        keys = {
            entity: hash_columns(frame, columns).view(np.int64).tolist()
            for entity, columns in declared.entities.items()
        }
        code = event_code(declared.name)
        for i, time_us in enumerate(frame["time_us"].to_list()):
            touched = tuple((entity, found[i]) for entity, found in keys.items() if found[i])
            label = Label(code, events[i], time_us, True, touched, declared.primary)
            self._put(due_us(time_us, self._delay_us), label)

    def _arrived(self, until_us: int) -> tuple[Label, ...]:
        """Labels that arrive up to a moment, in the order in which they do."""
        if self._fresh and due_us(self._fresh_us, self._delay_us) <= until_us:
            self._settle()
        found = []
        while self._waiting and self._waiting[0][0] <= until_us:
            found.append(heapq.heappop(self._waiting)[-1])
        return tuple(found)


def due_us(time_us: int, delay_us: int) -> int:
    """When what is known of an event is heard of.

    Examples
    --------
    >>> due_us(5, LABEL_STEP_US) == 2 * LABEL_STEP_US
    True
    """
    return -(-(time_us + delay_us) // LABEL_STEP_US) * LABEL_STEP_US


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
