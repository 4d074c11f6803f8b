"""The replay flow: rounds of the journal computed again from a base state, for someone to look at.

It has the steps from cut rounds to decisions in common with the live flow, and nothing else: no
sink, no lock, no snapshot, so that it disturbs nobody and can page nobody; a store only where one
is to be filled. It reads what the journal names, asks nobody for anything else, and ends with the
last round that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.operators import KeyedStream
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.run import cli_main

from dataflows.commit import COMMIT_KEY, Store
from dataflows.context import Context, Replaying, lanes_of, open_reader, withheld_of
from dataflows.currencies import RateBook
from dataflows.detect import scored_rounds
from dataflows.elsewhere import Remotes
from dataflows.guard import Guard
from dataflows.observe.telemetry import Telemetry
from dataflows.recorded import load_recorded
from dataflows.score import RoundOut, StoreRows
from dataflows.settings import Settings
from dataflows.sources.rounds import Lane, Part, RoundSource, journal_folder
from dataflows.spans import SpanSource, span_ends, spanned_rounds
from dataflows.state.bases import BaseState, base_states
from dataflows.state.certificate import Segment, digests_folder, segments_of
from dataflows.state.journal import JournalView, read_cuts
from dataflows.steps import Barrier, restore_all
from features.batch import EventBatch, concat_batches
from features.catalog import Catalog, catalog
from features.digest import warm_up as warm_up_digest
from features.engine import warm_up
from features.errors import BundleError, ConfigError, StateError, WaxwingError
from features.repeats import warm_up as warm_up_repeats
from models.bundle import Bundle
from models.scoring import Scorer
from models.voting import AnomalyType, Voting

__all__ = [
    "Rounds",
    "base_before",
    "events_of",
    "as_run",
    "replay",
    "replay_context",
    "segments_in",
]

Rounds = Callable[[int, list[RoundOut]], bool]
"""Is given each wanted round and what its lanes left; False ends the replay."""


def segments_in(state_dir: Path) -> list[Segment]:
    """The segments of a state folder's certificate.

    Raises
    ------
    StateError : the folder does not exist, or nothing is kept for replays
    """
    if not state_dir.is_dir():
        raise StateError(
            f"state_dir {state_dir} does not exist; name the folder of a flow that ran"
            " (`--set state_dir=FOLDER`)"
        )
    segments = segments_of(digests_folder(state_dir))
    if not segments:
        raise StateError(
            f"state_dir {state_dir} has no certificate: it was never written to, or by a flow with"
            " retention_h = 0; nothing can be replayed"
        )
    return segments


def as_run(
    segment: Segment, state_dir: Path, config: str | None, given: dict[str, Any]
) -> Settings:
    """The settings a flow ran with, as its certificate recorded them.

    Parameters
    ----------
    config : settings file, for what is not recorded: secrets and broker options
    given : settings of the command line, which win over all

    Raises
    ------
    ConfigError : they do not hold any more, all faults at once
    """
    settings = load_recorded(segment.header["settings"], state_dir, config, given)
    return settings.model_copy(
        update={"store": "off", "alerts": [], "notify": [], "currency_rates": None}
    )


def base_before(state_dir: Path, round_: int, lanes: int) -> BaseState:
    """The newest base state from which a round can be replayed.

    Raises
    ------
    StateError : there is none, or the journal no longer reaches back to it
    """
    bases = [base for base in base_states(state_dir) if base.round < round_]
    if not bases:
        raise StateError(
            f"state_dir {state_dir}: there is no base state before round {round_}: it is older than"
            " retention_h keeps; choose a later time"
        )
    base = bases[-1]
    for lane in range(lanes):
        first = next(read_cuts(journal_folder(state_dir, lane)), None)
        if first is None or first.round > base.round + 1:
            reaches = "is empty" if first is None else f"begins with round {first.round}"
            raise StateError(
                f"state_dir {state_dir}: the journal of lane {lane} {reaches}, and the replay"
                f" of round {round_} begins after {base.round}; raise journal_bytes_max, or choose"
                " a later time"
            )
    return base


def replay_context(
    settings: Settings,
    base: BaseState,
    wanted: Replaying,
    header: Mapping[str, Any],
    other_models: bool = False,
) -> Context:
    """All that a replay needs, read from disk.

    Parameters
    ----------
    header : what the certificate says of the flow: its models and rules
    other_models : take the models and rules that the settings name, whichever they are

    Raises
    ------
    ConfigError, BundleError, StateError : with the cure
    """
    cat = catalog()
    # Who wants features alone needs no models: nothing of a scorer is touched then.
    scorer = _scorer(settings, cat, header, other_models) if wanted.scored else cast(Scorer, None)
    manifest = replace(base.manifest(), catalog_version=cat.version)
    if (manifest.groups, manifest.lanes) != (settings.groups, lanes_of(settings)):
        raise ConfigError(
            f"state_dir {settings.state_dir} was written with groups = {manifest.groups} and"
            f" {manifest.lanes} lanes; leave groups, lanes and source as they were"
        )
    warm_up(cat)
    warm_up_repeats()
    warm_up_digest()
    if wanted.scored:
        scorer.warm_up()
    return Context(
        settings, cat, scorer, manifest, Telemetry(), None, RateBook(settings), replaying=wanted
    )


def _scorer(
    settings: Settings, cat: Catalog, header: Mapping[str, Any], other_models: bool
) -> Scorer:
    """The models and rules of then; see `replay_context`."""
    try:
        # Nobody is asked in a replay; who was asked then must not be computed here.
        bundle = Remotes(settings).placed(Bundle.load(settings.bundle, cat))
    except BundleError as error:
        raise BundleError(
            f"{error}; a replay scores with the models of then: --set bundle=FOLDER names a copy"
        ) from None
    if bundle.id != header["bundle"] and not other_models:
        raise BundleError(
            f"bundle {settings.bundle} is {bundle.id}, the rounds were scored with"
            f" {header['bundle']}; --set bundle=FOLDER names where that one is"
        )
    voting = None if settings.voting is None else Voting.load(settings.voting)
    if not other_models:
        # A person may have edited them since.
        voting = Voting({rule["name"]: AnomalyType(**rule) for rule in header["voting"]})
    return Scorer(bundle, settings.detectors, voting)


class _ReplayLane(Lane):
    """A lane that cuts rounds of its journal up to the last one wanted, and no others."""

    last: int = 0

    def cut(self) -> Part:
        """The next journaled round; the last one wanted, or of the lane, ends it."""
        self.round += 1
        if self.stop():
            return Part(self.lane, self.round, self.cut_time_us, {}, {}, final=True, replayed=True)
        if self.pending is None:
            raise StateError(
                f"{self.journal.folder}: ends before round {self.round}, which the certificate"
                " names; restore it from a copy, or replay fewer rounds"
            )
        part = self._cut_again(self.pending)
        if self.pending is not None and self.pending.round > self.last:
            self.pending = None
        # A lane that had ended and was started again later goes on here without an end.
        return replace(part, final=self.pending is None)


def _open_lane(context: Context, lane: int, last: int, after: int | None = None) -> Lane:
    """A lane over its journal, standing at the base state, or after another round."""
    settings = context.settings
    opened = _ReplayLane(
        lane=lane,
        reader=open_reader(context, lane),
        journal=JournalView(journal_folder(settings.state_dir, lane)),
        round_ms=settings.round_ms,
        rows_max=settings.round_rows_max,
        stop=context.stop,
        stage=context.telemetry.stage,
        withheld=withheld_of(settings, lane, context.manifest.round),
    )
    opened.last = last
    opened.start(context.manifest.round if after is None else after)
    return opened


class _Looker(StatefulSinkPartition[Any, int]):
    """Gives whole rounds, in order, to whoever looks."""

    def __init__(self, context: Context, wanted: Replaying, look: Rounds) -> None:
        self._barrier: Barrier[RoundOut] = Barrier(
            lanes_of(context.settings), context.manifest.round
        )
        self._context, self._wanted, self._look = context, wanted, look
        self._round = context.manifest.round

    def write_batch(self, items: list[Any]) -> None:
        for item in items:
            if isinstance(item, RoundOut):  # what the store has taken decides nothing here
                self._barrier.add(item.lane, item.round, item, item.final)
        for round_, outs, _ in self._barrier.ready():
            self._round = round_
            first = self._wanted.told_from or self._wanted.first
            wanted = first <= round_ <= self._wanted.last
            if wanted and not self._context.stop() and not self._look(round_, list(outs.values())):
                self._context.stop.set()

    def snapshot(self) -> int:
        return self._round


class _Look(FixedPartitionedSink[Any, int]):
    """The one partition of `_Looker`."""

    def __init__(self, context: Context, wanted: Replaying, look: Rounds) -> None:
        self._made = (context, wanted, look)

    def list_parts(self) -> list[str]:
        return [COMMIT_KEY]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Looker:
        return _Looker(*self._made)


def events_of(context: Context, round_: int) -> dict[str, EventBatch]:
    """Events of a round as the source gave them, by event type; of all lanes.

    Raises
    ------
    WaxwingError : the journal or the source no longer has them
    """
    found: dict[str, list[EventBatch]] = {}
    for number in range(lanes_of(context.settings)):
        lane = _open_lane(context, number, round_, after=round_ - 1)
        try:
            if lane.pending is not None and lane.pending.round == round_:
                for name, batch in lane.cut().batches.items():
                    found.setdefault(name, []).append(batch)
        finally:
            lane.reader.close()
    return {name: concat_batches(batches) for name, batches in found.items()}


def replay(context: Context, look: Rounds, workers: int = 1, together: bool = True) -> None:
    """Replay rounds from the base state and give those wanted to `look`, whole and in order.

    Parameters
    ----------
    context : of `replay_context`
    workers : Bytewax workers in this process; the result does not depend on it
    together : whether rounds in a row may be computed in one go (`dataflows.spans`): the same, and
        faster; False takes the very steps of the live flow, as filling a store does

    Raises
    ------
    WaxwingError : what keeps the rounds from being computed again, with the cure
    """
    wanted = _wanted(context)
    lanes = lanes_of(context.settings)
    restore_all(context)
    guard = Guard()
    flow = Dataflow("replay")
    open_lane = partial(_open_lane, context, last=wanted.last)
    if together and context.store is None:
        ends = span_ends(context, wanted.first, wanted.last)
        streams = [spanned_rounds(flow, context, guard, SpanSource(lanes, open_lane, ends))]
    else:
        streams = _round_by_round(flow, context, guard, RoundSource(lanes, open_lane))
    op.output("look", op.merge("to_look", *streams), guard.sink(_Look(context, wanted, look)))
    try:
        cli_main(  # type: ignore[no-untyped-call]
            flow, workers_per_process=workers, epoch_interval=timedelta(0)
        )
    finally:
        context.close()
    fault: WaxwingError | None = guard.fault
    if fault is not None:
        raise fault


def _round_by_round(
    flow: Dataflow, context: Context, guard: Guard, source: RoundSource
) -> list[KeyedStream[Any]]:
    """The steps of the live flow, with the store where one is filled."""
    durable, out = scored_rounds(flow, context, guard, source)
    streams = [durable, op.filter("decided", out, lambda kv: isinstance(kv[1], RoundOut))]
    if context.store is not None:
        lanes = lanes_of(context.settings)
        rows = op.filter("store_rows", out, lambda kv: isinstance(kv[1], StoreRows))
        acked = op.stateful_batch("store", rows, guard.logic(lambda: Store(context, lanes)))
        streams.append(op.map("store_acks", acked, lambda kv: (COMMIT_KEY, kv[1])))
    return streams


def _wanted(context: Context) -> Replaying:
    """What the replay looks at."""
    if context.replaying is None:
        raise StateError("replay: the context is that of a live flow; this is a bug")
    return context.replaying
