"""The steps of the detect flow: thin Bytewax operators over the pure layers.

A step is a barrier on the round where it needs the parts of others, and a function of them after
that. What a step remembers is in a shard's deltas; Bytewax's own snapshot of it is only a pointer
(a round).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy.typing as npt
from bytewax.operators import StatefulBatchLogic

from dataflows.admission import Admission
from dataflows.context import Context
from dataflows.control.records import Control
from dataflows.corrections import Corrected, RecentRows
from dataflows.digests import RoundDigest
from dataflows.restore import restore, restore_door, restore_group
from dataflows.sources.base import DeadLetter, Gap
from dataflows.sources.rounds import Part
from dataflows.state.bases import held_rounds
from dataflows.state.deltas import Arrays
from dataflows.state.manifest import oldest_round, read_manifest
from features.absences import Names, Peers
from features.batch import EventBatch, FeatureMatrix
from features.emptied import Emptied
from features.engine import GroupEngine, GroupFeatures, GroupRows, assemble, merge, split
from features.labels import Label, label_of
from features.snapshots import join

__all__ = [
    "Admit",
    "Barrier",
    "Durable",
    "Featured",
    "Group",
    "Home",
    "ToGroup",
    "ToHome",
    "heard_of",
    "restore_all",
]

X = TypeVar("X")

COPY_ROUNDS = 16
"""Rounds over which a group's state is copied; chosen: 300,000 entities take 20 ms of each, and a
snapshot is on the disk long before the next is due. Fewer rounds between two: copied at once."""


class Barrier(Generic[X]):
    """Holds the items of each round until every lane has given its own or has ended.

    Parameters
    ----------
    lanes : how many lanes there are
    after_round : the round before the first one
    """

    def __init__(self, lanes: int, after_round: int) -> None:
        self._lanes = lanes
        self._next = after_round + 1
        self._items: dict[int, dict[int, X]] = {}
        self._ended: dict[int, int] = {}

    def add(self, lane: int, round_: int, item: X, final: bool) -> None:
        """Take in one lane's item; `final` ends the lane with this round."""
        if round_ >= self._next:
            self._items.setdefault(round_, {})[lane] = item
        if final:
            self._ended[lane] = round_

    def skip(self, round_: int) -> None:
        """Wait for the rounds after this one alone: what came before has gone another way."""
        self._next = max(self._next, round_ + 1)

    def ready(self) -> Iterator[tuple[int, dict[int, X], bool]]:
        """(round, lane -> item in lane order, whether it is the last), as rounds become whole."""
        while True:
            items = self._items.get(self._next, {})
            ended = {lane for lane, last in self._ended.items() if last < self._next}
            if not items or len(set(items) | ended) < self._lanes:
                return
            round_ = self._next
            self._items.pop(round_)
            self._next += 1
            last = len(self._ended) == self._lanes and max(self._ended.values()) == round_
            yield round_, {lane: items[lane] for lane in sorted(items)}, last


@dataclass(frozen=True, slots=True)
class ToGroup:
    """One lane's rows for one group in one round."""

    lane: int
    round: int
    group: int
    cut_time_us: int
    rows: GroupRows
    control: tuple[dict[str, Any], ...]
    final: bool


@dataclass(frozen=True, slots=True)
class ToHome:
    """What a lane keeps of its own round while the groups compute, or what a group sends back.

    `batches`, `clock_us` and `labels` are set by the lane itself, `features` by a group.
    """

    lane: int
    round: int
    group: int
    cut_time_us: int
    control: tuple[dict[str, Any], ...] = ()
    batches: dict[str, EventBatch] | None = None
    features: GroupFeatures | None = None
    received: int = 0
    duplicates: int = 0
    rejects: tuple[DeadLetter, ...] = ()
    final: bool = False
    replayed: bool = False
    clock_us: int = 0
    unpriced: int = 0
    old_rate: int = 0
    gaps: tuple[Gap, ...] = ()
    waiting: int = 0
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True, slots=True)
class Durable:
    """A shard's state after a round is on disk."""

    shard: str
    round: int
    last: bool
    bytes: int = 0
    pause_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Featured:
    """A lane's round with all features, ready to be scored.

    `corrected` are rows of earlier rounds that its late events have changed; `corrected_unchecked`
    is how many of them are no longer kept. `emptied` are views whose windows have run empty, for
    the store. `labels` became known before the round's events, `heard` those of all lanes with
    them. `unpriced` and `old_rate` are events
    of a currency or a day that the table of exchange rates does not know.
    """

    lane: int
    round: int
    cut_time_us: int
    batches: dict[str, EventBatch]
    features: dict[str, FeatureMatrix]
    control: Control
    received: int
    duplicates: int
    rejects: tuple[DeadLetter, ...]
    final: bool
    replayed: bool
    corrected: tuple[Corrected, ...] = ()
    corrected_unchecked: int = 0
    emptied: tuple[Emptied, ...] = ()
    unpriced: int = 0
    old_rate: int = 0
    gaps: tuple[Gap, ...] = ()
    waiting: int = 0
    digest: RoundDigest | None = None
    labels: tuple[Label, ...] = ()
    heard: tuple[Label, ...] = ()


class _Shard:
    """Snapshot and restore of one shard, shared by the steps that own state.

    The flow pauses only while the state is copied; a thread of the process writes the copy, shard
    after shard. A shard has one copy waiting at the most: where the disk cannot follow, the next
    snapshot waits for it. A group copies its state over some rounds, what is about to change first.
    """

    def __init__(self, context: Context, name: str) -> None:
        self.name = name
        self.context = context
        self.store = context.shard(name)
        self.log = context.log(name)
        if context.replaying is None:
            self.store.forget_after(context.manifest.round)
            self.log.forget_after(context.manifest.round)
        self._writing: tuple[int, bool, float, Future[int]] | None = None
        self._copying: tuple[int, bool, bool, float] | None = None

    def due(self, round_: int, last: bool) -> bool:
        """Whether the state after this round is to be made durable."""
        return self.context.replaying is None and self.context.is_due(round_, last)

    def begin(self, round_: int, last: bool, engine: GroupEngine) -> list[Durable]:
        """Begin to copy a group's state; what was written before is told.

        Raises
        ------
        StateError : what was given to the thread before could not be written
        """
        begun = time.perf_counter()
        self._take(engine)
        told = self.written(wait=True)
        base = self._wants_base()
        engine.begin(base)
        self._copying = (round_, last, base, (time.perf_counter() - begun) * 1e3)
        return told

    def proceed(self, engine: GroupEngine, last: bool) -> None:
        """Copy the next part of the group's state, and have it written once all is copied."""
        if self._copying is None:
            return
        begun = time.perf_counter()
        few = self.context.settings.snapshot_rounds < 2 * COPY_ROUNDS
        done = engine.proceed(1 if last or few else COPY_ROUNDS)
        round_, last, base, pause_ms = self._copying
        pause_ms = max(pause_ms, (time.perf_counter() - begun) * 1e3)
        self._copying = (round_, last, base, pause_ms)
        if done:
            self._take(engine)

    def _take(self, engine: GroupEngine) -> None:
        """Have the copy under way written, if there is one."""
        if self._copying is not None:
            round_, last, base, pause_ms = self._copying
            self._copying = None
            self._submit(round_, last, base, engine.take(), pause_ms)

    def _wants_base(self) -> bool:
        """Whether the whole state is to be copied."""
        manifest = read_manifest(self.context.settings.state_dir)
        return self.store.wants_base(0 if manifest is None else manifest.round)

    def _submit(
        self, round_: int, last: bool, base: bool, parts: list[Arrays], pause_ms: float
    ) -> None:
        """Give a copy to the thread; the one before it is on the disk or waits there too."""
        future = self.context.writing.submit(self._save, round_, last, base, parts)
        self._writing = (round_, last, pause_ms, future)

    def append(
        self,
        round_: int,
        last: bool,
        arrays: Callable[[], dict[str, npt.NDArray[Any]]],
        us: int,
        since_us: int,
    ) -> list[Durable]:
        """As `begin`, of a shard that is a log; see `dataflows.state.logs.LogStore.write`."""
        begun = time.perf_counter()
        told = self.written(wait=True)
        future = self.context.writing.submit(self._save_log, round_, last, arrays(), us, since_us)
        self._writing = (round_, last, (time.perf_counter() - begun) * 1e3, future)
        return told

    def _save_log(
        self,
        round_: int,
        last: bool,
        arrays: dict[str, npt.NDArray[Any]],
        us: int,
        since_us: int,
    ) -> int:
        """Write a log's next file and drop those no restart can need; the thread's part."""
        self.context.fence()
        size = self.log.write(round_, arrays, us, since_us, last)
        folder = self.context.settings.state_dir
        self.log.forget_before(oldest_round(folder), held_rounds(folder))
        return size

    def _save(self, round_: int, last: bool, base: bool, parts: list[Arrays]) -> int:
        """Write a base or a delta and drop what no restart can need any more; the thread's part."""
        arrays = join(parts)
        self.context.fence()
        size = self.store.write(round_, "base" if base else "delta", arrays, {"last": last})
        if base:
            folder = self.context.settings.state_dir
            self.store.forget_before(oldest_round(folder), held_rounds(folder))
        return size

    def written(self, wait: bool = False) -> list[Durable]:
        """That the snapshot under way is on the disk, once it is."""
        if self._writing is None:
            return []
        round_, last, pause_ms, future = self._writing
        if not wait and not future.done():
            return []
        self._writing = None
        return [Durable(self.name, round_, last, future.result(), pause_ms)]


def restore_all(context: Context) -> None:
    """Restore every shard now, before the first round: for a flow of one process, which has all.

    A process of a cluster does not know which shards will be its own; there each is restored when
    its first round comes.
    """
    settings, catalog, manifest = context.settings, context.catalog, context.manifest
    emptied_max = 0 if context.store is None else settings.store_emptied_max
    context.restored = restore(settings, catalog, manifest, context.groups, emptied_max)
    context.told_of_growth()


class Admit(StatefulBatchLogic[Part, "ToGroup | ToHome | Durable", int]):
    """Per lane: take out repeats and what comes too late, then send each row to the groups of its
    entities."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._door: Admission | None = None
        self._shard: _Shard | None = None
        self._names = Names()
        self._round = context.manifest.round

    def _opened(self, lane: int) -> tuple[Admission, _Shard]:
        """The lane's door, restored once its number is known, where it is not yet."""
        if self._door is None or self._shard is None:
            context = self._context
            found = context.restored.pop(("in", lane), None)
            door = found or restore_door(context.settings, context.catalog, context.manifest, lane)
            self._door, self._shard = door, _Shard(context, f"in{lane:02d}")
        return self._door, self._shard

    def on_batch(self, values: list[Part]) -> tuple[list[ToGroup | ToHome | Durable], bool]:
        out: list[ToGroup | ToHome | Durable] = []
        for part in values:
            out.extend(self._one(part, *self._opened(part.lane)))
            self._round = part.round
        return out, False

    def _one(self, part: Part, door: Admission, shard: _Shard) -> list[ToGroup | ToHome | Durable]:
        """The items one part becomes."""
        begun = time.perf_counter()
        rates = self._context.rates.of(part.rates)
        done = door.admit(part.batches, part.ids, part.cut_time_us, part.round, rates)
        self._context.telemetry.priced(done.unpriced, done.old_rate)
        groups = self._context.settings.groups
        rows = split(
            self._context.catalog,
            done.batches,
            groups,
            part.lane,
            part.round,
            done.clock_us,
            self._names,
            done.due_us,
        )
        said = tuple(label_of(said) for said in part.control if said["kind"] == "label")
        labels = done.labels + said
        if door.arrivals is not None:
            self._context.telemetry.unheard(door.arrivals.passed_over)
        if labels:
            rows = [replace(row, labels=labels) for row in rows]
        out: list[ToGroup | ToHome | Durable] = [
            ToGroup(part.lane, part.round, g, part.cut_time_us, rows[g], part.control, part.final)
            for g in self._context.groups
        ]
        out.append(
            ToHome(
                part.lane,
                part.round,
                -1,
                part.cut_time_us,
                part.control,
                done.batches,
                None,
                part.received,
                done.duplicates,
                part.rejects + done.refused,
                part.final,
                part.replayed,
                done.clock_us,
                sum(done.unpriced.values()),
                sum(done.old_rate.values()),
                part.gaps,
                part.waiting,
                labels,
            )
        )
        self._context.telemetry.stage("admit", time.perf_counter() - begun)
        return out + self._durable(part, door, shard)

    def _durable(self, part: Part, door: Admission, shard: _Shard) -> list[Durable]:
        """Have the door's state after a round written where it is due; what has been written."""
        told = shard.written()
        if shard.due(part.round, part.final):
            told += shard.append(
                part.round, part.final, door.delta, part.cut_time_us, door.needed_since_us
            )
        return told

    def on_eof(self) -> tuple[list[ToGroup | ToHome | Durable], bool]:
        out: list[ToGroup | ToHome | Durable] = []
        if self._shard is not None:
            out.extend(self._shard.written(wait=True))
        return out, False

    def snapshot(self) -> int:
        return self._round


class Group(StatefulBatchLogic[ToGroup, "ToHome | Durable", int]):
    """Per shard group: wait for all lanes, run the kernels, send each lane its rows' features."""

    def __init__(self, context: Context, lanes: int) -> None:
        self._context = context
        self._barrier: Barrier[ToGroup] = Barrier(lanes, context.manifest.round)
        self._engine: GroupEngine | None = None
        self._shard: _Shard | None = None
        self._round = context.manifest.round

    def _opened(self, group: int) -> tuple[GroupEngine, _Shard]:
        """The group, restored once its number is known, where it is not yet."""
        if self._engine is None or self._shard is None:
            context = self._context
            found = context.restored.pop(("g", group), None)
            if found is None:
                settings, catalog, manifest = context.settings, context.catalog, context.manifest
                emptied_max = 0 if context.store is None else settings.store_emptied_max
                found = restore_group(settings, catalog, manifest, group, emptied_max)
                context.telemetry.grown(found.empty, found.partial)
            self._engine, self._shard = found, _Shard(context, f"g{group:03d}")
        return self._engine, self._shard

    def on_batch(self, values: list[ToGroup]) -> tuple[list[ToHome | Durable], bool]:
        out: list[ToHome | Durable] = []
        for item in values:
            self._barrier.add(item.lane, item.round, item, item.final)
        for round_, items, last in self._barrier.ready():
            group = next(iter(items.values())).group
            out.extend(self._one(round_, items, last, *self._opened(group)))
            self._round = round_
        return out, False

    def _one(
        self, round_: int, items: dict[int, ToGroup], last: bool, engine: GroupEngine, shard: _Shard
    ) -> list[ToHome | Durable]:
        """The items one whole round becomes."""
        begun = time.perf_counter()
        cut_time_us = max(item.cut_time_us for item in items.values())
        control = tuple(record for item in items.values() for record in item.control)
        with self._counted(engine):
            rows = merge([item.rows for item in items.values()])
            features = engine.process(rows, tuple(items))
            self._context.telemetry.stage("features", time.perf_counter() - begun)
        out: list[ToHome | Durable] = [
            ToHome(lane, round_, item.group, cut_time_us, control, None, features.get(lane))
            for lane, item in items.items()
        ]
        return out + self._durable(round_, last, engine, shard)

    @contextlib.contextmanager
    def _counted(self, engine: GroupEngine) -> Iterator[None]:
        """Tell what the group counts of the rows that it computes meanwhile."""
        telemetry, settings = self._context.telemetry, self._context.settings
        expired, unknown = engine.expired, engine.labels_unknown
        beyond, gone = engine.late_beyond, engine.late_forgotten
        # Sums over all rings, which are 0 where every window is exact.
        paned = settings.exact_events_max > 0
        approximated = engine.approximated if paned else 0
        sampled = settings.distinct_exact_max > 0
        estimated = engine.estimated if sampled else 0
        yield
        telemetry.forgot(engine.expired - expired)
        telemetry.nobody(engine.labels_unknown - unknown)
        telemetry.out_of_place(engine.late_beyond - beyond, engine.late_forgotten - gone)
        merged = engine.approximated - approximated if paned else 0
        if merged:
            telemetry.merged(merged, engine.excess_max)
        if sampled and engine.estimated > estimated:
            telemetry.sampled(engine.estimated - estimated, engine.one_in_max)

    def _durable(
        self, round_: int, last: bool, engine: GroupEngine, shard: _Shard
    ) -> list[Durable]:
        """Begin or go on to copy the state after a round where it is due; what has been written."""
        told = shard.written()
        if shard.due(round_, last):
            told += shard.begin(round_, last, engine)
        shard.proceed(engine, last)
        return told

    def on_eof(self) -> tuple[list[ToHome | Durable], bool]:
        out: list[ToHome | Durable] = []
        if self._shard is not None:
            out.extend(self._shard.written(wait=True))
        return out, False

    def snapshot(self) -> int:
        return self._round


@dataclass(slots=True)
class _Waiting:
    """A round of a lane on its way home."""

    own: ToHome | None = None
    features: list[GroupFeatures] = field(default_factory=list)
    senders: list[int] = field(default_factory=list)
    groups: int = 0
    cut_time_us: int = 0
    control: tuple[dict[str, Any], ...] = ()


def heard_of(own: tuple[Label, ...], control: tuple[dict[str, Any], ...]) -> tuple[Label, ...]:
    """Labels of a lane and of the control records of all of them, each once."""
    others = (label_of(said) for said in control if said["kind"] == "label")
    return tuple(dict.fromkeys((*own, *others)))


class Home(StatefulBatchLogic[ToHome, Featured, int]):
    """Per lane: wait for all groups, put the rows back in order, add what control is in force."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._waiting: dict[int, _Waiting] = {}
        self._control = Control.of(context.manifest.control)
        self._peers = Peers()
        late_us = round(context.settings.late_s * 1e6)
        self._recent = RecentRows(context.catalog, late_us, context.settings.corrected_rows_max)
        self._round = context.manifest.round

    def on_batch(self, values: list[ToHome]) -> tuple[list[Featured], bool]:
        out: list[Featured] = []
        groups = len(self._context.groups)
        for item in values:
            waiting = self._waiting.setdefault(item.round, _Waiting())
            if item.batches is not None:
                waiting.own = item
                continue
            waiting.groups += 1
            waiting.cut_time_us = item.cut_time_us
            waiting.control = item.control
            if item.features is not None:
                waiting.features.append(item.features)
                waiting.senders.append(item.group)
        for round_ in sorted(self._waiting):
            waiting = self._waiting[round_]
            if waiting.own is None or waiting.groups < groups:
                break
            out.append(self._one(waiting.own, waiting))
            del self._waiting[round_]
            self._round = round_
        return out, False

    def _one(self, own: ToHome, waiting: _Waiting) -> Featured:
        """The lane's round, whole again."""
        begun = time.perf_counter()
        for record in waiting.control:
            self._control = self._control.apply(record, waiting.cut_time_us)
        self._control = self._control.expire(waiting.cut_time_us)
        batches = dict(own.batches or {})
        told = (one for group in waiting.features for one in group.absences)
        absent = self._peers.take(told, waiting.cut_time_us * 1_000)
        replaying = self._context.replaying
        if replaying is not None and own.round < replaying.first:
            self._context.telemetry.stage("assemble", time.perf_counter() - begun)
            return self._passing(own, waiting, batches)
        if absent is not None:
            batches[absent.event_type] = self._context.judged(absent)
        features = assemble(self._context.catalog, batches, waiting.features) if batches else {}
        digest = self._digest(own, waiting, features)
        corrected, unchecked = self._recent.check(
            correction for result in waiting.features for correction in result.corrections
        )
        self._recent.keep(
            own.round, own.clock_us, own.batches or {}, features, waiting.features, self._control
        )
        self._context.telemetry.stage("assemble", time.perf_counter() - begun)
        return Featured(
            own.lane,
            own.round,
            waiting.cut_time_us,
            batches,
            features,
            self._control,
            own.received,
            own.duplicates,
            own.rejects,
            own.final,
            own.replayed,
            corrected,
            unchecked,
            tuple(one for group in waiting.features for one in group.emptied),
            own.unpriced,
            own.old_rate,
            own.gaps,
            own.waiting,
            digest,
            own.labels,
            heard_of(own.labels, waiting.control),
        )

    def _passing(self, own: ToHome, waiting: _Waiting, batches: dict[str, EventBatch]) -> Featured:
        """A round that only brings a replay's state to where it is wanted: events without features.

        Nothing is kept of it either, for late events to be held against: whoever replays is told of
        no correction.
        """
        return Featured(
            own.lane,
            own.round,
            waiting.cut_time_us,
            batches,
            {},
            self._control,
            own.received,
            own.duplicates,
            own.rejects,
            own.final,
            own.replayed,
            gaps=own.gaps,
            waiting=own.waiting,
            labels=own.labels,
        )

    def _digest(
        self, own: ToHome, waiting: _Waiting, features: dict[str, FeatureMatrix]
    ) -> RoundDigest | None:
        """Hashes of the lane's features; None where nobody wants them."""
        context = self._context
        replaying = context.replaying
        if not context.digests:
            return None
        if replaying is not None and not (replaying.scored or replaying.hashed):
            return None
        begun = time.perf_counter()
        parts = zip(waiting.senders, waiting.features, strict=True)
        groups = context.settings.groups
        found = RoundDigest.of(context.catalog, groups, own.lane, features, parts)
        context.telemetry.stage("digest", time.perf_counter() - begun)
        return found

    def snapshot(self) -> int:
        return self._round
