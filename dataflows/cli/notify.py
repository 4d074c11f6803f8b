"""`waxwing notify`: follow the alert log and tell the sinks of setting `notify`: PagerDuty."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

__all__ = ["add_parser", "run"]

EXIT_LEFT = 1
"""Some alerts could not be sent; the next start tries again."""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser("notify", help="tell people of alerts", description=__doc__)
    settings_arguments(parser)
    parser.add_argument(
        "--once", action="store_true", help="end once everything in the log is told"
    )
    parser.add_argument("--parent", type=int, help="end when this process, which started it, ends")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    import signal

    # A signal that comes while modules load waits until there is somebody to end cleanly.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    import os
    from datetime import timedelta

    from bytewax.run import cli_main

    from dataflows.cli.run import overrides_of
    from dataflows.context import StopSwitch, stop_on_signals
    from dataflows.guard import Guard
    from dataflows.notify import DRAIN_S_MAX, build_flow, make_notifier
    from dataflows.settings import load

    settings = load(args.config, **overrides_of(args))
    stop = StopSwitch()
    reader, notifier = make_notifier(settings, math.inf if args.once else DRAIN_S_MAX)
    if args.once:
        stop.set()
    stop_on_signals(stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)

    def ending() -> bool:
        return stop() or (args.parent is not None and os.getppid() != args.parent)

    guard = Guard()
    flow = build_flow(reader, notifier, ending, guard)
    cli_main(flow, epoch_interval=timedelta(0))  # type: ignore[no-untyped-call]
    if guard.fault is not None:
        raise guard.fault
    left = f", {notifier.waiting} left for the next start" if notifier.waiting else ""
    print(
        f"waxwing: notify: {notifier.read} alerts read, {notifier.repeated} met again{left}",
        file=sys.stderr,
    )
    return EXIT_LEFT if notifier.waiting else 0
