"""The detect flow: events in, alerts out. One round at a time, a barrier wherever parts must meet.

    python -m bytewax.run -s 0 "dataflows.detect:build('waxwing.toml')"

An epoch is a round: Bytewax then never holds one back for its snapshot timer. `-s 0` says so, and
is what `build` sees to where no interval is given.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.operators import KeyedStream

from dataflows.commit import COMMIT_KEY, CommitSink, Store
from dataflows.context import (
    Context,
    ended_before,
    lanes_of,
    let_go,
    open_lane,
    stop_on_signals,
    stop_switch,
)
from dataflows.entry import end_with, epoch_a_round, started_by_bytewax, told_as_sentences
from dataflows.guard import Guard, StepFault
from dataflows.observe.telemetry import Telemetry
from dataflows.quarantine import settled_context, suspect
from dataflows.restart import FOR_GROUPS, FOR_HOME, Admit, Group, Home, RestartSource
from dataflows.score import RoundOut, StoreRows, pass_round, score_round
from dataflows.settings import load
from dataflows.sources.rounds import Part, RoundSource, lane_name
from dataflows.spans import Span
from dataflows.steps import Durable, Featured
from features.errors import WaxwingError

__all__ = ["build", "build_flow", "scored_rounds"]


def build(config: str | Path | None = None) -> Dataflow:
    """The detect flow of a settings file, with SIGTERM and SIGINT stopping it cleanly.

    Raises
    ------
    ConfigError, BundleError, StateError : before the first event, all faults at once; where
        Bytewax's command is the program, a sentence each and status 2
    """
    with told_as_sentences():
        settings = load(config)
        stop = stop_switch(settings)
        stop_on_signals(stop)
        context = settled_context(settings, Telemetry())
        context.stop = stop
        if stop.asked_here:
            let_go(context)
            context.telemetry.say(ended_before(settings.state_dir))
            raise SystemExit(0)
        epoch_a_round()
        if context.lease is not None:
            context.lease.keep(end_with)
            atexit.register(context.lease.give_back)
        by_bytewax = started_by_bytewax(sys.modules.get("__main__"))
        return build_flow(context, Guard(on=by_bytewax, tell=lambda fault: _end(context, fault)))


def _end(context: Context, fault: WaxwingError) -> None:
    """End the process with a step's fault; the next start looks for the event that was met."""
    if isinstance(fault, StepFault):
        suspect(context.settings, fault)
    end_with(fault)


def build_flow(context: Context, guard: Guard) -> Dataflow:
    """The flow over an opened context; `guard` keeps its first fault for whoever runs it."""
    lanes = lanes_of(context.settings)
    flow = Dataflow("detect")
    source = RestartSource(context, lambda lane: open_lane(context, lane))
    durable, out = scored_rounds(flow, context, guard, source)
    done = op.filter("decided", out, lambda kv: isinstance(kv[1], RoundOut))
    streams = [durable, done]
    if context.store is not None:
        rows = op.filter("store_rows", out, lambda kv: isinstance(kv[1], StoreRows))
        acked = op.stateful_batch("store", rows, guard.logic(lambda: Store(context, lanes)))
        streams.append(op.map("store_acks", acked, lambda kv: (COMMIT_KEY, kv[1])))
    op.output("commit", op.merge("to_commit", *streams), guard.sink(CommitSink(context, lanes)))
    return flow


def scored_rounds(
    flow: Dataflow, context: Context, guard: Guard, source: RoundSource
) -> tuple[KeyedStream[Any], KeyedStream[Any]]:
    """The steps from cut rounds to decisions: what is durable, and what each lane's round leaves.

    A replay has them in common with the live flow, and only them.
    """
    lanes = lanes_of(context.settings)
    parts = op.input("rounds", flow, guard.source(source))
    admitted = op.stateful_batch(
        "admit", op.map("by_lane", parts, _by_lane), guard.logic(lambda: Admit(context), "admit")
    )
    routed = op.map("route", admitted, _route)
    for_groups = op.filter("for_groups", routed, lambda kv: isinstance(kv[1], FOR_GROUPS))
    others = op.filter("not_for_groups", routed, lambda kv: not isinstance(kv[1], FOR_GROUPS))
    computed = op.map(
        "route_back",
        op.stateful_batch(
            "groups", for_groups, guard.logic(lambda: Group(context, lanes), "groups")
        ),
        _route,
    )
    back = op.merge("meet", others, computed)
    for_home = op.filter("for_home", back, lambda kv: isinstance(kv[1], FOR_HOME))
    durable = op.filter("durable", back, lambda kv: isinstance(kv[1], Durable))
    whole = op.stateful_batch("home", for_home, guard.logic(lambda: Home(context), "home"))
    return durable, op.flat_map("score", whole, guard.flat(lambda kv: _score(context, kv)))


def _score(context: Context, keyed: tuple[str, Featured]) -> Iterator[tuple[str, Any]]:
    """A lane's round scored: what leaves it, each item under its key."""
    item, replaying = keyed[1], context.replaying
    passes = replaying is not None and (item.round < replaying.first or not replaying.scored)
    return map(_route_out, iter([pass_round(item)]) if passes else score_round(context, item))


def _by_lane(item: Part | Span) -> tuple[str, Any]:
    """A part, or a span of them, under its lane's key."""
    return lane_name(item.lane), item


def _route(keyed: tuple[str, Any]) -> tuple[str, Any]:
    """An item under the key of the step that waits for it."""
    item = keyed[1]
    if isinstance(item, FOR_GROUPS):
        return f"g{item.group:03d}", item
    if isinstance(item, FOR_HOME):
        return lane_name(item.lane), item
    return COMMIT_KEY, item


def _route_out(item: RoundOut | StoreRows) -> tuple[str, Any]:
    """An item under the key of the step that waits for it."""
    if isinstance(item, StoreRows):
        return f"store-{item.shard}", item
    return COMMIT_KEY, item
