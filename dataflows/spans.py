"""The steps of a replay that takes rounds in a row together: the same results for fewer calls.

As `dataflows.steps`, with a span of rounds in the place of one: a lane cuts the rounds of a span as
they were journaled, each group computes them in one go (`features.spans`), and at home they are
apart again, each with its own clock, control records, absences and hashes. Spans are the same in
all lanes, so that a barrier is one on spans.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import bytewax.operators as op
import numpy as np
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import KeyedStream, StatefulBatchLogic

from dataflows.admission import Admission, Admitted
from dataflows.commit import COMMIT_KEY
from dataflows.context import Context, lanes_of
from dataflows.control.records import Control
from dataflows.digests import RoundDigest
from dataflows.guard import Guard
from dataflows.restore import restore_door, restore_group
from dataflows.score import RoundOut, pass_round, score_rounds
from dataflows.sources.rounds import Lane, Part, journal_folder, lane_name
from dataflows.state.journal import read_cuts
from dataflows.steps import Barrier, Featured
from features.absences import Absences, Names, Peers
from features.batch import EventBatch, FeatureMatrix, Int64, concat_batches
from features.engine import Correction, GroupEngine, GroupFeatures, assemble
from features.events import event_code
from features.labels import Label, label_of
from features.narrowed import Narrowed
from features.spans import SpanRows, merge_spans, split_span

__all__ = [
    "ROUNDS_MAX",
    "Back",
    "InForce",
    "Own",
    "Span",
    "SpanSource",
    "ToGroup",
    "admitted",
    "computed",
    "span_ends",
    "spanned_rounds",
    "whole",
]

ROWS_MAX = 16_384
"""Events of a span, of all lanes. Measured: more gains little, and a span's features take 1 kB a
row."""

ROUNDS_MAX = 64
"""Rounds of a span; chosen: quiet rounds end too, and a replay that is asked to stop does soon."""


@dataclass(frozen=True, slots=True)
class Span:
    """Rounds in a row as one lane cut them; `number` runs from 1, `final` ends the lane."""

    lane: int
    number: int
    parts: list[Part]
    final: bool


@dataclass(frozen=True, slots=True)
class ToGroup:
    """One lane's rows for one group in one span, and what each round has of clock and control."""

    lane: int
    number: int
    group: int
    rows: SpanRows
    cut_time_us: tuple[int, ...]
    control: tuple[tuple[dict[str, Any], ...], ...]
    final: bool
    first: int


@dataclass(frozen=True, slots=True)
class Own:
    """What a lane keeps of its span while the groups compute.

    Parameters
    ----------
    parts, done : its rounds as cut, and as they came to at the door
    batches : event type -> admitted events of all rounds
    bounds : event type -> int64 (R + 1,), where each round begins and ends in it
    labels : by round, verdicts that became known before its events
    """

    lane: int
    number: int
    parts: list[Part]
    done: list[Admitted]
    batches: dict[str, EventBatch]
    bounds: dict[str, Int64]
    labels: tuple[tuple[Label, ...], ...]


@dataclass(frozen=True, slots=True)
class Back:
    """What a group sends back to a lane; clock and control of each round are those of all lanes.

    Parameters
    ----------
    absences, corrections : by round
    """

    lane: int
    number: int
    group: int
    features: GroupFeatures
    absences: list[list[Absences]]
    cut_time_us: tuple[int, ...]
    control: tuple[tuple[dict[str, Any], ...], ...]
    corrections: list[list[Correction]]


@dataclass(frozen=True, slots=True)
class FeaturedSpan:
    """A lane's rounds with all features; those of the events also in one piece."""

    items: list[Featured]
    features: dict[str, FeatureMatrix] = field(default_factory=dict)
    bounds: dict[str, Int64] = field(default_factory=dict)


def span_ends(context: Context, first: int, last: int) -> list[int]:
    """The last round of each span from the base state to round `last`.

    Parameters
    ----------
    first : the first wanted round; a span is wanted whole or not at all
    """
    received: dict[int, int] = dict.fromkeys(range(context.manifest.round + 1, last + 1), 0)
    begins = {first}
    for lane in range(lanes_of(context.settings)):
        rates = 0
        for cut in read_cuts(journal_folder(context.settings.state_dir, lane), min(received) - 1):
            if cut.round > last:
                break
            received[cut.round] += cut.received
            if cut.control or cut.rates != rates:  # in force from this round on
                begins.add(cut.round)
            rates = cut.rates
    found: list[int] = []
    rows = rounds = 0
    for round_, more in received.items():
        if rounds and (round_ in begins or rounds == ROUNDS_MAX or rows + more > ROWS_MAX):
            found.append(round_ - 1)
            rows = rounds = 0
        rows, rounds = rows + more, rounds + 1
    return [*found, last]


class _SpanPartition(StatefulSourcePartition[Span, int]):
    """A lane as Bytewax polls it: a span a poll."""

    def __init__(self, lane: Lane, ends: list[int]) -> None:
        self._lane, self._ends = lane, ends
        self._number = 0
        self._ended = False

    def next_batch(self) -> list[Span]:
        if self._ended:
            raise StopIteration
        begun, end = time.perf_counter(), self._ends[self._number]
        self._number += 1
        parts: list[Part] = []
        while not self._ended and self._lane.round < end:
            parts.append(self._lane.cut())
            self._ended = parts[-1].final
        self._lane.stage("source", time.perf_counter() - begun)
        return [Span(self._lane.lane, self._number, parts, self._ended)]

    def snapshot(self) -> int:
        return self._lane.round

    def close(self) -> None:
        self._lane.close()


class SpanSource(FixedPartitionedSource[Span, int]):
    """The lanes of a replay as Bytewax's input.

    Parameters
    ----------
    lanes : how many
    make_lane : opens one lane over its journal
    ends : see `span_ends`
    """

    def __init__(self, lanes: int, make_lane: Callable[[int], Lane], ends: list[int]) -> None:
        self._lanes, self._make_lane, self._ends = lanes, make_lane, ends

    def list_parts(self) -> list[str]:
        return [lane_name(i) for i in range(self._lanes)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _SpanPartition:
        return _SpanPartition(self._make_lane(int(for_part.removeprefix("lane-"))), self._ends)


class Admit(StatefulBatchLogic[Span, "ToGroup | Own", int]):
    """Per lane: see `dataflows.steps.Admit`; each round comes to the door by itself."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._door: Admission | None = None
        self._names = Names()
        self._round = context.manifest.round

    def on_batch(self, values: list[Span]) -> tuple[list[ToGroup | Own], bool]:
        out: list[ToGroup | Own] = []
        for span in values:
            if self._door is None:
                context = self._context
                found = context.restored.pop(("in", span.lane), None)
                self._door = found or restore_door(
                    context.settings, context.catalog, context.manifest, span.lane
                )
            out += admitted(self._context, span, self._door, self._names)
            self._round = span.parts[-1].round
        return out, False

    def snapshot(self) -> int:
        return self._round


def admitted(
    context: Context, span: Span, door: Admission, names: Names
) -> Iterator[ToGroup | Own]:
    """The items one span becomes; each round comes to the door by itself."""
    begun = time.perf_counter()
    done = [
        door.admit(p.batches, p.ids, p.cut_time_us, p.round, context.rates.of(p.rates))
        for p in span.parts
    ]
    batches: dict[str, EventBatch] = {}
    bounds: dict[str, Int64] = {}
    types = dict.fromkeys(name for one in done for name in one.batches)
    for name in sorted(types, key=event_code):
        sizes = [len(one.batches[name]) if name in one.batches else 0 for one in done]
        bounds[name] = np.concatenate(([0], np.cumsum(sizes)))
        found = [one.batches[name] for one in done if name in one.batches]
        batches[name] = concat_batches(found, sort=False)
    narrowed = _narrowed(context, span)
    if narrowed is not None:
        batches, bounds = narrowed.cut(batches, bounds)
        done = [replace(one, batches=_rows_of(batches, bounds, r)) for r, one in enumerate(done)]
    control = tuple(part.control for part in span.parts)
    labels = tuple(
        one.labels + tuple(label_of(said) for said in records if said["kind"] == "label")
        for one, records in zip(done, control, strict=True)
    )
    wanted = frozenset(context.groups)
    rows = split_span(
        context.catalog,
        batches,
        bounds,
        context.settings.groups,
        span.lane,
        tuple(one.clock_us for one in done),
        tuple(one.due_us for one in done),
        names,
        labels,
        None if len(wanted) == context.settings.groups else wanted,
    )
    cut_time_us = tuple(part.cut_time_us for part in span.parts)
    first = span.parts[0].round
    for g in context.groups:
        yield ToGroup(span.lane, span.number, g, rows[g], cut_time_us, control, span.final, first)
    yield Own(span.lane, span.number, span.parts, done, batches, bounds, labels)
    context.telemetry.stage("admit", time.perf_counter() - begun)


def _narrowed(context: Context, span: Span) -> Narrowed | None:
    """Which of the span's rows pass, where not all need to."""
    replaying = context.replaying
    if replaying is None or span.parts[0].round >= replaying.first:
        return None
    return replaying.entities


class Group(StatefulBatchLogic[ToGroup, Back, int]):
    """Per shard group: see `dataflows.steps.Group`."""

    def __init__(self, context: Context, lanes: int) -> None:
        self._context = context
        self._barrier: Barrier[ToGroup] = Barrier(lanes, 0)
        self._engine: GroupEngine | None = None
        self._number = 0

    def on_batch(self, values: list[ToGroup]) -> tuple[list[Back], bool]:
        if self._engine is None:
            context, group = self._context, values[0].group
            self._engine = context.restored.pop(("g", group), None) or restore_group(
                context.settings, context.catalog, context.manifest, group, 0
            )
            if context.replaying is not None and context.replaying.entities is not None:
                self._engine.keep_only(context.replaying.entities.entities_in(group))
        out: list[Back] = []
        for item in values:
            self._barrier.add(item.lane, item.number, item, item.final)
        for number, items, _ in self._barrier.ready():
            out += computed(self._context, items, self._engine, told=False)
            self._number = number
        return out, False

    def snapshot(self) -> int:
        return self._number


def computed(
    context: Context, items: dict[int, ToGroup], engine: GroupEngine, told: bool
) -> Iterator[Back]:
    """What one whole span gives each lane.

    Parameters
    ----------
    told : whether a flow goes on after it, see `GroupEngine.process_span`
    """
    begun, one = time.perf_counter(), next(iter(items.values()))
    rows = merge_spans([item.rows for item in items.values()])
    rounds = range(len(rows.clock_us))
    here = [[one for one in items.values() if len(one.cut_time_us) > r] for r in rounds]
    found = engine.process_span(
        rows,
        [tuple(one.lane for one in ones) for ones in here],
        numbers=range(one.first, one.first + len(rounds)) if told else None,
    )
    context.telemetry.stage("features", time.perf_counter() - begun)
    cut_time_us = tuple(max(one.cut_time_us[r] for one in here[r]) for r in rounds)
    control = tuple(tuple(record for one in here[r] for record in one.control[r]) for r in rounds)
    for lane, item in items.items():
        mine = len(item.cut_time_us)
        yield Back(
            lane,
            item.number,
            item.group,
            found.lanes[lane],
            [told[lane] for told in found.absences[:mine]],
            cut_time_us[:mine],
            control[:mine],
            [[fix for whose, fix in told if whose == lane] for told in found.corrections[:mine]],
        )


@dataclass(slots=True)
class _Waiting:
    """A span of a lane on its way home."""

    own: Own | None = None
    back: list[Back] = field(default_factory=list)


class Home(StatefulBatchLogic["Own | Back", FeaturedSpan, int]):
    """Per lane: see `dataflows.steps.Home`; nobody is told of corrections in a replay."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._waiting: dict[int, _Waiting] = {}
        self._in_force = InForce(Control.of(context.manifest.control), Peers())
        self._number = 0

    def on_batch(self, values: list[Own | Back]) -> tuple[list[FeaturedSpan], bool]:
        out: list[FeaturedSpan] = []
        for item in values:
            waiting = self._waiting.setdefault(item.number, _Waiting())
            if isinstance(item, Own):
                waiting.own = item
            else:
                waiting.back.append(item)
        for number in sorted(self._waiting):
            waiting = self._waiting[number]
            if waiting.own is None or len(waiting.back) < len(self._context.groups):
                break
            out.append(whole(self._context, waiting.own, waiting.back, self._in_force))
            del self._waiting[number]
            self._number = number
        return out, False

    def snapshot(self) -> int:
        return self._number


@dataclass(slots=True)
class InForce:
    """What a lane remembers of rounds to put the next ones together."""

    control: Control
    peers: Peers

    def apply(self, back: Back, r: int) -> Control:
        """What is in force in a round."""
        for record in back.control[r]:
            self.control = self.control.apply(record, back.cut_time_us[r])
        self.control = self.control.expire(back.cut_time_us[r])
        return self.control


def whole(context: Context, own: Own, back: list[Back], in_force: InForce) -> FeaturedSpan:
    """A lane's rounds, whole again."""
    rounds, begun = len(own.parts), time.perf_counter()
    replaying = context.replaying
    passes = replaying is not None and own.parts[0].round < replaying.first
    features: dict[str, FeatureMatrix] = {}
    digests: list[RoundDigest] | None = None
    if not passes:
        results = [one.features for one in back]
        features = assemble(context.catalog, own.batches, results)
        hashed = replaying is None or replaying.scored or replaying.hashed
        if context.digests and hashed:
            parts = [(one.group, one.features) for one in back]
            digests = RoundDigest.of_span(
                context.catalog, context.settings.groups, own.lane, features, parts,
                own.bounds, rounds,
            )  # fmt: skip
    items = []
    for r in range(rounds):
        control = in_force.apply(back[0], r)
        told = (absence for one in back for absence in one.absences[r])
        absent = in_force.peers.take(told, back[0].cut_time_us[r] * 1_000)
        batches, mine = dict(own.done[r].batches), _slices(features, own.bounds, r)
        digest = None if digests is None else digests[r]
        if absent is not None and not passes:
            name = absent.event_type
            batches[name] = context.judged(absent)
            mine |= assemble(context.catalog, {name: batches[name]}, [])
            if digest is not None:
                digest.add(name, mine[name])
        items.append(_featured(own, r, back[0].cut_time_us[r], batches, mine, control, digest))
    context.telemetry.stage("assemble", time.perf_counter() - begun)
    return FeaturedSpan(items, features, own.bounds)


def _rows_of(
    batches: dict[str, EventBatch], bounds: dict[str, Int64], r: int
) -> dict[str, EventBatch]:
    """The events of one round; of event types with events in it."""
    found = {}
    for name, batch in batches.items():
        begin, end = bounds[name][r : r + 2].tolist()
        if end > begin:
            found[name] = batch.rows(begin, end)
    return found


def _slices(
    features: dict[str, FeatureMatrix], bounds: dict[str, Int64], r: int
) -> dict[str, FeatureMatrix]:
    """The features of one round; of event types with events in it."""
    found = {}
    for name, matrix in features.items():
        begin, end = bounds[name][r : r + 2].tolist()
        if end > begin:
            found[name] = matrix.rows(begin, end)
    return found


def _featured(
    own: Own,
    r: int,
    cut_time_us: int,
    batches: dict[str, EventBatch],
    features: dict[str, FeatureMatrix],
    control: Control,
    digest: RoundDigest | None,
) -> Featured:
    """One round of a span as the step after it knows rounds."""
    part, done = own.parts[r], own.done[r]
    return Featured(
        own.lane,
        part.round,
        cut_time_us,
        batches,
        features,
        control,
        part.received,
        done.duplicates,
        part.rejects + done.refused,
        part.final,
        part.replayed,
        unpriced=sum(done.unpriced.values()),
        old_rate=sum(done.old_rate.values()),
        gaps=part.gaps,
        waiting=part.waiting,
        digest=digest,
        labels=own.labels[r],
    )


def spanned_rounds(
    flow: Dataflow, context: Context, guard: Guard, source: SpanSource
) -> KeyedStream[RoundOut]:
    """The steps from cut rounds to decisions: what each lane's rounds leave, in their order."""
    lanes = lanes_of(context.settings)
    spans = op.input("rounds", flow, guard.source(source))
    admitted = op.stateful_batch(
        "admit", op.map("by_lane", spans, _by_lane), guard.logic(lambda: Admit(context), "admit")
    )
    routed = op.map("route", admitted, _route)
    for_groups = op.filter("for_groups", routed, lambda kv: isinstance(kv[1], ToGroup))
    own = op.filter("own", routed, lambda kv: isinstance(kv[1], Own))
    computed = op.stateful_batch(
        "groups", for_groups, guard.logic(lambda: Group(context, lanes), "groups")
    )
    back = op.merge("meet", own, op.map("route_back", computed, _route))
    whole = op.stateful_batch("home", back, guard.logic(lambda: Home(context), "home"))
    return op.flat_map("score", whole, guard.flat(lambda kv: _score(context, kv[1])))


def _score(context: Context, span: FeaturedSpan) -> Iterator[tuple[str, RoundOut]]:
    """A lane's rounds scored."""
    replaying = context.replaying
    passes = replaying is not None and (
        span.items[0].round < replaying.first or not replaying.scored
    )
    found = (
        map(pass_round, span.items)
        if passes
        else score_rounds(context, span.items, span.features, span.bounds)
    )
    for out in found:
        yield COMMIT_KEY, out


def _by_lane(span: Span) -> tuple[str, Span]:
    """A span under its lane's key."""
    return lane_name(span.lane), span


def _route(keyed: tuple[str, Any]) -> tuple[str, Any]:
    """An item under the key of the step that waits for it."""
    item = keyed[1]
    return (f"g{item.group:03d}" if isinstance(item, ToGroup) else lane_name(item.lane)), item
