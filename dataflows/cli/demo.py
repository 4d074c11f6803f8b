"""`waxwing demo`: a simulated day with attacks in a minute, live in the terminal, then judged.

The first start trains the models on fourteen simulated days before that day (and says so); what it
learns, and the state those days leave, stay beside the settings' bundle for the next start.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflows.context import Context
    from dataflows.settings import Settings

__all__ = ["add_parser", "run"]

FOLDER = Path(".waxwing/demo")
"""Where the demo keeps its models and state, unless the settings say otherwise."""

RATE_OVER_S = 2.0
"""Events/s are shown over so many seconds. Chosen: steady to the eye, still quick to fall."""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "demo", help="a minute of simulated traffic with attacks in it", description=__doc__
    )
    settings_arguments(parser)
    add = parser.add_argument
    add("--seed", type=int, metavar="N", help="seed of traffic and attacks (sim_seed)")
    add("--seconds", type=float, metavar="S", help="wall seconds (sim_seconds)")
    add("--train", action="store_true", help="train anew, whatever is there")
    add("--json", metavar="P", help="write the figures at the end; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    settings = _settings(args)
    out = sys.stderr if args.json == "-" else sys.stdout

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    _prepare(settings, args.train, say)
    # Each demo starts from the same warm state, so that a seed always gives the same figures.
    shutil.rmtree(settings.state_dir, ignore_errors=True)
    report = _run_live(settings, out)
    from dataflows.observe.live import final_table
    from dataflows.report import write_json

    final_table(report, out)
    write_json(args.json, report)
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    """Settings of the demo: the simulator, its own folder, no console sink under the live view.

    Raises
    ------
    ConfigError : every fault at once
    """
    from dataflows.cli.run import overrides_of
    from dataflows.settings import load, sources_of
    from features.errors import ConfigError

    given: dict[str, Any] = {"sim_seed": args.seed, "sim_seconds": args.seconds}
    given = {k: v for k, v in given.items() if v is not None} | overrides_of(args)
    named = {k for k, source in sources_of(args.config, **given).items() if source != "default"}
    own: dict[str, Any] = {
        "source": "simulator",
        "state_dir": FOLDER / "state",
        "bundle": FOLDER / "bundle",
        "warm_state": FOLDER / "warm",
        "alerts": ["jsonl"],
    }
    settings = load(args.config, **({k: v for k, v in own.items() if k not in named} | given))
    faults = []
    if settings.source != "simulator":
        faults.append(
            f"source: the demo shows the simulator, got {settings.source!r}; for your own events"
            " run `waxwing run`"
        )
    if settings.sim_seconds <= 0:
        faults.append("sim_seconds: a demo ends, so it must be above 0")
    if faults:
        raise ConfigError(faults)
    return settings


def _prepare(settings: Settings, again: bool, say: Any) -> None:
    """Models and warm state: trained where there are none that fit the settings."""
    from dataflows.training import is_trained, train_simulated

    if not again:
        why = is_trained(settings)
        if why is None:
            return
        say(f"waxwing demo: {why}; training first takes about a minute")
    train_simulated(settings, say)


def _run_live(settings: Settings, out: Any) -> dict[str, Any]:
    """Run the flow under the live view; returns the report."""
    from dataflows.observe.live import LiveView, stats_of
    from dataflows.observe.telemetry import Telemetry
    from dataflows.runner import run_flow, usage

    view = LiveView(settings.sim_seconds, out)
    telemetry = Telemetry(on_alert=view.alert)
    pace = _Pace()

    def watch(context: Context) -> None:
        report = context.telemetry.report()
        elapsed_s, rate = pace.take(report["in"])
        report["event_time_us"] = context.telemetry.cut_time_us
        view.update(stats_of(report, elapsed_s, rate))

    begun = time.monotonic()
    with view:
        run_flow(settings, telemetry, watch)
    report = telemetry.report() | usage()
    report["seconds"] = round(time.monotonic() - begun, 3)
    report["seed"] = settings.sim_seed
    if telemetry.first_alert_s is not None:
        report["first_alert_s"] = round(telemetry.first_alert_s, 3)
    return report


class _Pace:
    """Wall time since the first event, and events per second over the last moments."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._seen: deque[tuple[float, int]] = deque()

    def take(self, events: int) -> tuple[float, float]:
        """(seconds since the first event, events/s), given the count so far."""
        now = time.monotonic()
        if self._begun is None:
            if not events:
                return 0.0, 0.0
            self._begun = now
        self._seen.append((now, events))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_OVER_S:
            self._seen.popleft()
        then, before = self._seen[0]
        rate = (events - before) / (now - then) if now > then else 0.0
        return now - self._begun, rate
