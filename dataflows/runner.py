"""Running a flow in this process: the one of `python -m bytewax.run`, with someone watching."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable
from datetime import timedelta

from bytewax.run import cli_main

from dataflows.context import Context, StopSwitch, lanes_of, make_context, stop_on_signals
from dataflows.detect import build_flow
from dataflows.guard import Guard, StepFault
from dataflows.observe.telemetry import Telemetry
from dataflows.quarantine import quarantine
from dataflows.report import write_json
from dataflows.settings import Settings
from dataflows.steps import restore_all
from features.errors import WaxwingError

__all__ = ["run_flow", "usage", "write_json"]


def run_flow(
    settings: Settings,
    telemetry: Telemetry,
    watch: Callable[[Context], None] | None = None,
    watch_every_s: float = 0.5,
) -> Context:
    """Run the detect flow until its source ends or a signal stops it.

    Parameters
    ----------
    watch : called from a thread of its own every `watch_every_s`, and once more at the end

    Returns
    -------
    the context, closed

    Raises
    ------
    WaxwingError : the fault that ended the flow
    """
    stop: StopSwitch | None = None
    while True:
        context = make_context(settings, telemetry)
        context.stop = stop or context.stop
        restore_all(context, lanes_of(settings))
        if stop is None:
            stop = context.stop
            stop_on_signals(stop)
        fault = _run_once(context, watch, watch_every_s)
        if isinstance(fault, StepFault):
            quarantine(context, fault)
            continue
        if fault is not None:
            raise fault
        if watch is not None:
            watch(context)
        return context


def _run_once(
    context: Context, watch: Callable[[Context], None] | None, watch_every_s: float
) -> WaxwingError | None:
    """Run a flow to its end; the fault that ended it."""
    guard = Guard()
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
        cli_main(flow, epoch_interval=timedelta(0))  # type: ignore[no-untyped-call]
    finally:
        ended.set()
        if watcher is not None:
            watcher.join(timeout=5)
        if context.store is not None:
            context.store.close()
        context.close()
    return guard.fault


def usage() -> dict[str, float]:
    """CPU seconds and peak memory of this process."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_s": round(own.ru_utime + own.ru_stime, 3),
        "rss_mb_max": round(own.ru_maxrss / 1024, 1),
    }
