"""Rounds that a restart plays again, many at a time: live sooner, with the very same results.

What the journal holds beyond the manifest's round has been cut before, so that nothing needs to be
waited for: a lane cuts a span of rounds as they were journaled, each group computes them in one go
(`features.spans`), and at home they are apart again, each scored, delivered and hashed by itself.
Rounds after them go the way of `dataflows.steps`, whose steps these are with that added.
While they are played again nothing else takes the processor: the state is made durable once, after
the last of them, and the store, which has most of their rows, is written to from then on.

A lane must know what all lanes have in their journals, so in a flow of several processes each round
is played again by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from dataflows import steps
from dataflows.context import Context, lanes_of
from dataflows.sources.rounds import Lane, LanePartition, RoundSource
from dataflows.spans import Back, InForce, Own, Span, ToGroup, admitted, computed, span_ends, whole
from dataflows.state.journal import last_cut
from dataflows.state.lock import in_cluster
from dataflows.steps import Barrier, Durable, Featured, ToHome, heard_of
from features.engine import GroupFeatures

__all__ = ["FOR_GROUPS", "FOR_HOME", "Admit", "Group", "Home", "RestartSource"]

FOR_GROUPS = steps.ToGroup, ToGroup
FOR_HOME = ToHome, Own, Back
"""What goes to groups and to lanes, a round or a span of rounds."""

_NEWEST = 1 << 62
"""Later than any round."""


class _Partition(LanePartition):
    """A lane as Bytewax polls it: a span a poll while rounds are played again, then a round."""

    def __init__(self, lane: Lane, ends: list[int]) -> None:
        super().__init__(lane)
        self._ends = ends
        self._number = 0

    def next_batch(self) -> list[Any]:
        if self._number == len(self._ends):
            return list(super().next_batch())
        lane, end = self._lane, self._ends[self._number]
        self._number += 1
        begun = time.perf_counter()
        parts = [lane.cut() for _ in range(end - lane.round)]
        lane.stage("source", time.perf_counter() - begun)
        return [Span(lane.lane, self._number, parts, False)]


class RestartSource(RoundSource):
    """The lanes of a live flow as Bytewax's input.

    Parameters
    ----------
    context : which is told up to where rounds are played again
    open_lane : opens one lane, standing where its journal and the manifest say
    """

    def __init__(self, context: Context, open_lane: Callable[[int], Lane]) -> None:
        super().__init__(lanes_of(context.settings), open_lane)
        self._context = context
        self._lock = threading.Lock()
        self._opened: list[Lane] = []
        self._ends: list[int] = []

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> LanePartition:
        if in_cluster():
            return super().build_part(step_id, for_part, resume_state)
        with self._lock:
            if not self._opened:
                # A lane's journal is whole once it is open (`journal_topic`), so all are first.
                self._opened = [self._make_lane(lane) for lane in range(self._lanes)]
                self._ends = self._planned()
        return _Partition(self._opened[int(for_part.removeprefix("lane-"))], self._ends)

    def _planned(self) -> list[int]:
        """The last round of each span; none where nothing is to be played again."""
        context, after = self._context, self._context.manifest.round
        cuts = [last_cut(lane.journal.folder, _NEWEST) for lane in self._opened]
        last = min(0 if cut is None else cut.round for cut in cuts)
        if last <= after:
            return []
        context.again_until = last
        if context.store is not None:
            context.store.hold()
        return span_ends(context, after + 1, last)


class Admit(steps.Admit):
    """Per lane: see `dataflows.steps.Admit`."""

    def on_batch(self, values: list[Any]) -> tuple[list[Any], bool]:
        out: list[Any] = []
        for item in values:
            out += self._again(item) if isinstance(item, Span) else super().on_batch([item])[0]
        return out, False

    def _again(self, span: Span) -> list[ToGroup | Own | Durable]:
        """The items one span becomes."""
        door, shard = self._opened(span.lane)
        telemetry = self._context.telemetry
        items: list[ToGroup | Own | Durable] = []
        for item in admitted(self._context, span, door, self._names):
            items.append(item)
            for one in item.done if isinstance(item, Own) else ():
                telemetry.priced(one.unpriced, one.old_rate)
        if door.arrivals is not None:
            telemetry.unheard(door.arrivals.passed_over)
        self._round = span.parts[-1].round
        return items + self._durable(span.parts[-1], door, shard)


class Group(steps.Group):
    """Per shard group: see `dataflows.steps.Group`."""

    def __init__(self, context: Context, lanes: int) -> None:
        super().__init__(context, lanes)
        self._spans: Barrier[ToGroup] = Barrier(lanes, 0)

    def on_batch(self, values: list[Any]) -> tuple[list[Any], bool]:
        out: list[Any] = []
        for item in values:
            if isinstance(item, ToGroup):
                self._spans.add(item.lane, item.number, item, item.final)
        for _, items, _ in self._spans.ready():
            out += self._again(items)
        rounds = [item for item in values if not isinstance(item, ToGroup)]
        return out + super().on_batch(rounds)[0], False

    def _again(self, items: dict[int, ToGroup]) -> list[Back | Durable]:
        """What one whole span gives each lane."""
        one = next(iter(items.values()))
        engine, shard = self._opened(one.group)
        with self._counted(engine):
            out: list[Back | Durable] = list(computed(self._context, items, engine, told=True))
        self._round = one.first + len(one.cut_time_us) - 1
        self._barrier.skip(self._round)
        return out + self._durable(self._round, False, engine, shard)


class Home(steps.Home):
    """Per lane: see `dataflows.steps.Home`."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._own: dict[int, Own] = {}
        self._back: dict[int, list[Back]] = {}

    def on_batch(self, values: list[Any]) -> tuple[list[Featured], bool]:
        out: list[Featured] = []
        for item in values:
            if isinstance(item, Own):
                self._own[item.number] = item
            elif isinstance(item, Back):
                self._back.setdefault(item.number, []).append(item)
        groups = len(self._context.groups)
        for number in sorted(self._own):
            if len(self._back.get(number, ())) < groups:
                break
            out += self._again(self._own.pop(number), self._back.pop(number))
        rounds = [item for item in values if isinstance(item, ToHome)]
        return out + super().on_batch(rounds)[0], False

    def _again(self, own: Own, back: list[Back]) -> list[Featured]:
        """The lane's rounds of a span, whole again, and what late events have changed in each."""
        in_force = InForce(self._control, self._peers)
        found = whole(self._context, own, back, in_force)
        self._control = in_force.control
        items = []
        for r, item in enumerate(found.items):
            fixes = (fix for one in back for fix in one.corrections[r])
            corrected, unchecked = self._recent.check(fixes)
            events = own.done[r].batches
            results = [GroupFeatures(own.lane, sequences=_sequences(one, own, r)) for one in back]
            clock_us = own.done[r].clock_us
            self._recent.keep(item.round, clock_us, events, item.features, results, item.control)
            heard = heard_of(own.labels[r], back[0].control[r])
            items.append(
                replace(item, corrected=corrected, corrected_unchecked=unchecked, heard=heard)
            )
        # Of windows that have run empty the groups tell once, after the last round.
        emptied = tuple(one for group in back for one in group.features.emptied)
        items[-1] = replace(items[-1], emptied=emptied)
        self._round = own.parts[-1].round
        return items


def _sequences(back: Back, own: Own, r: int) -> dict[str, tuple[Any, Any]]:
    """A group's sequences of one round, by place in it."""
    found = {}
    for name, (places, vectors) in back.features.sequences.items():
        if name not in own.bounds:
            continue  # of no row of this lane
        begin, end = own.bounds[name][r : r + 2].tolist()
        at = np.flatnonzero((places >= begin) & (places < end))
        if len(at):
            found[name] = places[at] - begin, vectors[at]
    return found
