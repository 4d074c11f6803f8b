"""History through the code of the stream: training rows and warm state from one pass.

A detector without history is blind. The events of the past go through the same kernels in the same
order as live ones; what is left in the groups is the state the live flow starts from, and the
features they had on the way are what the models learn from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from dataflows.admission import Admission, Admitted
from dataflows.arrivals import Arrivals, Stretch
from dataflows.currencies import base_of, rates_of, write_rates
from dataflows.known import Met
from dataflows.settings import Settings
from dataflows.sources.base import DeadLetter, LaneReader
from dataflows.state.declared import write_declared
from dataflows.state.deltas import ShardStore
from dataflows.state.logs import LogStore
from dataflows.state.manifest import Manifest, write_manifest
from features.batch import EventBatch, FeatureMatrix
from features.catalog import Catalog
from features.currency import Rates
from features.engine import OfflineEngine
from features.events import event_code, event_type
from features.keys import UInt64, hash_columns, hash_strings
from models.base import TrainingSet
from models.train import select_rows

__all__ = ["Collector", "Pass", "Taker", "after_rows", "run_history", "save_warm"]

CHUNK_ROWS = 50_000
"""Events computed at once; chosen: large enough that overhead is nothing, small enough for 200
MB."""

GENUINE_ROWS_MAX = 250_000
"""Most genuine rows an event type keeps for training; chosen: calibration to 1e-5, 400 MB at the
most."""


@dataclass(slots=True)
class _Kept:
    """Rows kept of one event type."""

    values: list[npt.NDArray[np.float64]] = field(default_factory=list)
    sequence: list[npt.NDArray[np.float32]] = field(default_factory=list)
    time_us: list[npt.NDArray[np.int64]] = field(default_factory=list)
    entity: list[UInt64] = field(default_factory=list)
    attack: list[npt.NDArray[np.int16]] = field(default_factory=list)
    label: list[npt.NDArray[np.int8]] = field(default_factory=list)


class Collector:
    """Keeps training rows: every labelled anomaly, and an even sample of the rest.

    The sample is drawn by the hash of the event id, so that it is the same on every machine, in
    every cut of the stream.

    Parameters
    ----------
    catalog : what the columns mean
    from_us : rows before it only warm the state up
    share : share of genuine rows to keep, of all event types or by event type
    labels : known anomalies (`dataflows.known`), where the events do not carry their truth

    Attributes
    ----------
    known : whether anything said which rows are anomalies
    met : which of the labels are of events that came; None without labels
    """

    def __init__(
        self,
        catalog: Catalog,
        from_us: int,
        share: float | Mapping[str, float],
        labels: pl.DataFrame | None = None,
    ) -> None:
        self._catalog = catalog
        self._from_us = from_us
        self._share = share
        self.met = None if labels is None else Met(labels)
        self._kept: dict[str, _Kept] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self.known = False

    def add(self, batch: EventBatch, features: FeatureMatrix) -> None:
        """Take in one batch and its features."""
        n = len(batch)
        labelled = (
            None if self.met is None else self.met.see(batch.event_type, batch.frame["event_id"])
        )
        if batch.truth is not None:
            attack, known = batch.truth, True
        elif labelled is not None:
            attack, known = labelled.to_numpy().astype(np.int16), True
        else:
            attack, known = np.zeros(n, np.int16), False
        self.known |= known
        ids = hash_strings(batch.frame["event_id"])
        share = self._share if isinstance(self._share, float) else 1.0
        if isinstance(self._share, Mapping):
            share = self._share.get(batch.event_type, 1.0)  # of absences there are few: all
        sampled = (ids % np.uint64(1_000_000)) < np.uint64(round(share * 1e6))
        taken = batch.time_us >= self._from_us
        odd = int(np.count_nonzero(taken & (attack > 0)))
        genuine, before = self._seen.get(batch.event_type, (0, 0))
        genuine += int(np.count_nonzero(taken)) - odd
        self._seen[batch.event_type] = genuine, before + odd
        rows = np.flatnonzero((sampled | (attack > 0)) & taken)
        if not len(rows):
            return
        kept = self._kept.setdefault(batch.event_type, _Kept())
        kept.values.append(features.values[rows])
        if features.sequence is not None:
            kept.sequence.append(features.sequence[rows])
        kept.time_us.append(batch.time_us[rows])
        primary = event_type(batch.event_type).entities[event_type(batch.event_type).primary]
        kept.entity.append(hash_columns(batch.frame[rows], primary))
        kept.attack.append(attack[rows])
        kept.label.append(
            (attack[rows] > 0).astype(np.int8) if known else np.full(len(rows), -1, np.int8)
        )

    def odd_per_genuine(self) -> dict[str, float]:
        """Known anomalies on each other event of the stream, by event type."""
        return {name: odd / max(genuine, 1) for name, (genuine, odd) in self._seen.items()}

    def sets(self) -> dict[str, TrainingSet]:
        """Training rows by event type, in time order."""
        found: dict[str, TrainingSet] = {}
        for name in sorted(self._kept, key=event_code):
            kept = self._kept[name]
            features = FeatureMatrix(
                name,
                self._catalog.names(name),
                np.concatenate(kept.values),
                np.concatenate(kept.sequence) if kept.sequence else None,
                self._catalog.version,
            )
            rows = TrainingSet(
                features,
                np.concatenate(kept.time_us),
                np.concatenate(kept.label),
                np.concatenate(kept.entity),
                np.concatenate(kept.attack),
            )
            # An absence stands at the time it was due, which may be before events of its round.
            found[name] = select_rows(rows, np.argsort(rows.time_us, kind="stable"))
        return found


class Taker(Protocol):
    """Takes in what a pass over history computes."""

    def add(self, batch: EventBatch, features: FeatureMatrix) -> None:
        """Take in one batch and its features, in the order of the stream."""
        ...


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass over history leaves.

    Parameters
    ----------
    engine : the groups, warm
    door : the filter of repeats and the event-time clock, warm
    until_us : event time before which all is history; the live flow takes over here
    events, rejected, duplicates : counts
    reasons : reason -> how many were rejected for it
    arrivals : labels on their way; None where history has none
    rates : table of exchange rates it was run with; None where nothing was converted
    unpriced, old_rate : currency -> events of a currency, or a day, that the table of exchange
        rates does not know
    odd_per_genuine : event type -> known anomalies on each other event, where that was counted
    """

    engine: OfflineEngine
    door: Admission
    until_us: int
    events: int
    rejected: int
    duplicates: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    arrivals: Arrivals | None = None
    rates: Rates | None = None
    unpriced: Mapping[str, int] = field(default_factory=dict)
    old_rate: Mapping[str, int] = field(default_factory=dict)
    odd_per_genuine: Mapping[str, float] = field(default_factory=dict)


def run_history(
    settings: Settings,
    catalog: Catalog,
    reader: LaneReader,
    collector: Taker | None = None,
    progress: Callable[[int, int], None] | None = None,
    begin: Pass | None = None,
    arrivals: Arrivals | None = None,
    refused: Callable[[Sequence[DeadLetter]], None] | None = None,
) -> Pass:
    """Run everything a reader has through the engine.

    Parameters
    ----------
    reader : gives events in time order and ends
    collector : takes in events with their features, such as a `Collector` of training rows
    progress : called after each chunk with (events so far, event time in us)
    begin : an earlier pass to go on from; its engine is used up
    arrivals : turns what the data say of events into labels, each in its time, beside those under
        way in `begin`; None has only these
    refused : told what is no event, or came too late or too early, after each chunk
    """
    if begin is None:
        bounds = settings.exact_events_max, settings.distinct_exact_max
        options = (settings.late_s, settings.entity_ttl_h, *bounds)
        engine = OfflineEngine(catalog, settings.groups, *options)
        door = Admission(settings)
        until_us = events = duplicates = 0
        reasons: Counter[str] = Counter()
    else:
        engine, door, until_us = begin.engine, begin.door, begin.until_us
        events, duplicates = begin.events, begin.duplicates
        reasons = Counter(begin.reasons)
        if arrivals is not None and begin.arrivals is not None:
            arrivals.follow(begin.arrivals)
        arrivals = begin.arrivals if arrivals is None else arrivals
    unpriced = Counter({} if begin is None else begin.unpriced)
    old_rate = Counter({} if begin is None else begin.old_rate)
    rates = rates_of(settings)
    # The simulator alone knows whom it has silenced.
    judged: Callable[[EventBatch], EventBatch] = getattr(reader, "judged", lambda absent: absent)
    while True:
        taken = reader.take(CHUNK_ROWS)
        until_us = max(until_us, taken.cut_time_us)
        named = sorted(taken.batches, key=event_code)
        batches = {name: taken.batches[name].in_order() for name in named}
        ids = {name: hash_strings(batch.frame["event_id"]) for name, batch in batches.items()}
        done = door.admit(batches, ids, until_us, rates=rates)
        unpriced.update(done.unpriced)
        old_rate.update(done.old_rate)
        letters = (*taken.rejects, *done.refused)
        reasons.update(letter.reason for letter in letters)
        if refused is not None and letters:
            refused(letters)
        duplicates += done.duplicates
        if done.batches:
            _compute(engine, done, arrivals, collector)
            for absent, matrix in engine.take_absences():
                if collector is not None:
                    collector.add(judged(absent), matrix)
            events += sum(len(b) for b in done.batches.values())
        if progress is not None:
            progress(events, until_us)
        if taken.eof:
            rejected = sum(reasons.values())
            return Pass(
                engine, door, until_us, events, rejected, duplicates, dict(reasons), arrivals,
                rates, unpriced, old_rate,
            )  # fmt: skip


def _compute(
    engine: OfflineEngine, done: Admitted, arrivals: Arrivals | None, collector: Taker | None
) -> None:
    """Features of what the door let through, cut where labels arrive."""
    stretches: Iterable[Stretch] = [((), done.batches)]
    if arrivals is not None:
        stretches = arrivals.stretches(done.batches)
    left = sum(map(len, done.batches.values()))
    clock_us = engine.engines[0].clock_us
    for labels, batches in stretches:
        left -= sum(map(len, batches.values()))
        newest_us = max((int(batch.time_us[-1]) for batch in batches.values()), default=0)
        # A stretch that is not the last has not seen what moves the clock after it.
        clock_us = max(clock_us, min(newest_us, done.clock_us) if left else done.clock_us)
        features = engine.process(batches, clock_us, labels)
        if collector is not None:
            for name, matrix in features.items():
                collector.add(batches[name], matrix)


def after_rows(done: Pass) -> Pass:
    """A pass over recorded rows, whose live flow takes over right after the last of them.

    The clock of rows stands at the last one, which history has; the simulator's stands behind all
    that it gave.
    """
    return replace(done, until_us=done.until_us + 1) if done.until_us else done


def save_warm(folder: Path, settings: Settings, catalog: Catalog, done: Pass) -> None:
    """Write the warm state of a pass as a state folder that a live run can start from."""
    for group, engine in enumerate(done.engine.engines):
        ShardStore(folder / "deltas" / f"g{group:03d}", 1).write(0, "base", engine.full(), {})
    door, arrivals = done.door, done.arrivals
    arrays = door.full() | ({} if arrivals is None else arrivals.dump())
    LogStore(folder / "deltas" / "in00").write(0, arrays, done.until_us, door.needed_since_us)
    write_rates(folder, done.rates)
    write_declared(folder, catalog)
    base = base_of(settings)
    write_manifest(
        folder,
        Manifest(0, settings.groups, 1, catalog.version, until_us=done.until_us, currency=base),
    )
