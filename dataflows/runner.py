"""Running a flow in this process: the one of `python -m bytewax.run`, with someone watching."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from bytewax.dataflow import Dataflow
from bytewax.run import cli_main

from dataflows.context import Context, ended_before, let_go, stop_on_signals, stop_switch
from dataflows.detect import build_flow
from dataflows.entry import end_with
from dataflows.guard import Guard, StepFault
from dataflows.observe.telemetry import Telemetry
from dataflows.quarantine import quarantine, settled_context, suspect
from dataflows.report import write_json
from dataflows.settings import Settings
from dataflows.steps import restore_all
from features.errors import WaxwingError

__all__ = ["Peers", "run_flow", "usage", "write_json"]


@dataclass(frozen=True, slots=True)
class Peers:
    """The cluster this process is one of.

    Parameters
    ----------
    process : its number
    addresses : host:port of each process, in their order
    ready : called once this one is about to meet the others
    fault : called with the fault of a step; does not come back
    """

    process: int
    addresses: list[str]
    ready: Callable[[], None]
    fault: Callable[[WaxwingError], None]


def run_flow(
    settings: Settings,
    telemetry: Telemetry,
    watch: Callable[[Context], None] | None = None,
    watch_every_s: float = 0.5,
    peers: Peers | None = None,
) -> Context:
    """Run the detect flow until its source ends or a signal stops it.

    Parameters
    ----------
    watch : called from a thread of its own every `watch_every_s`, and once more at the end
    peers : the cluster this process is one of; None for a flow of this process alone

    Returns
    -------
    the context, closed

    Raises
    ------
    WaxwingError : the fault that ended the flow
    """
    stop = stop_switch(settings)
    stop_on_signals(stop)
    while True:
        context = settled_context(settings, telemetry)
        context.stop = stop
        if stop.asked_here:
            let_go(context)
            telemetry.stood(context.manifest.round, context.manifest.totals)
            telemetry.say(ended_before(settings.state_dir))
            return context
        if peers is not None and len(peers.addresses) == 1:
            restore_all(context)
        fault = _run_once(context, watch, watch_every_s, peers)
        if isinstance(fault, StepFault):
            quarantine(context, fault)
            continue
        if fault is not None:
            raise fault
        if watch is not None:
            watch(context)
        return context


def _run_once(
    context: Context,
    watch: Callable[[Context], None] | None,
    watch_every_s: float,
    peers: Peers | None,
) -> WaxwingError | None:
    """Run a flow to its end; the fault that ended it."""
    guard = Guard() if peers is None else Guard(tell=lambda fault: _end(context, peers, fault))
    ended = threading.Event()
    watcher: threading.Thread | None = None
    if watch is not None:

        def look() -> None:
            while not ended.wait(watch_every_s):
                watch(context)

        watcher = threading.Thread(target=look, name="waxwing-watch", daemon=True)
        watcher.start()
    try:
        flow = build_flow(context, guard)
        if context.lease is not None:
            context.lease.keep(end_with if peers is None else peers.fault)
        _run(flow, peers)
    finally:
        try:
            ended.set()
            if watcher is not None:
                watcher.join(timeout=5)
        finally:
            let_go(context)
    return guard.fault


def _end(context: Context, peers: Peers, fault: WaxwingError) -> None:
    """End one process of several with the fault of a step, and with it all."""
    if isinstance(fault, StepFault):
        suspect(context.settings, fault)
    peers.fault(fault)


def _run(flow: Dataflow, peers: Peers | None) -> None:
    """Give the flow to Bytewax."""
    cluster: dict[str, Any] = {}
    if peers is not None:
        peers.ready()
        if len(peers.addresses) > 1:
            cluster = {"process_id": peers.process, "addresses": peers.addresses}
    cli_main(flow, epoch_interval=timedelta(0), **cluster)  # type: ignore[no-untyped-call]


def usage() -> dict[str, float]:
    """CPU seconds and peak memory of this process."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_s": round(own.ru_utime + own.ru_stime, 3),
        "rss_mb_max": round(own.ru_maxrss / 1024, 1),
    }
