"""`waxwing demo`: a simulated day with attacks in a minute, live in the terminal, then judged.

The first start trains the models on fourteen simulated days before that day (and says so); what it
learns, and the state those days leave, stay in `.waxwing/demo` for the next start. Of a settings
file it takes what is simulated and how it is judged, never where a real flow keeps or sends things.
"""

from __future__ import annotations

import argparse
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
"""Where the demo keeps its models and state, unless `--set` says otherwise."""

OWN: dict[str, Any] = {
    "source": "simulator",
    "state_dir": FOLDER / "state",
    "bundle": FOLDER / "bundle",
    "alerts": ["jsonl"],
    "notify": [],
    "store": "embedded",
}
"""Settings that only `--set` changes; no console sink, the live view shows the alerts."""

OWN_UNSET = ("dead_letters_topic", "control_topic", "control_file", "labels_topic", "labels_file")
"""Settings that are unset unless `--set` gives them."""

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
    from dataflows.state.own import clear_own_state

    settings = _settings(args)
    out = sys.stderr if args.json == "-" else sys.stdout

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    # Each demo starts from the same warm state, so that a seed always gives the same figures. The
    # folder is claimed before the training: a second demo leaves the models of the first alone.
    clear_own_state(settings.state_dir)
    _prepare(settings, args.train, say)
    report = _run_live(settings, out)
    from dataflows.observe.live import final_table
    from dataflows.report import write_json

    final_table(report, out)
    write_json(args.json, report)
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    """Settings of the demo: what it shows may be changed everywhere, where it writes only by --set.

    A settings file and variables are those of a real flow: its state, models, topics, store and
    people are none of the demo's business.

    Raises
    ------
    ConfigError : every fault at once
    """
    from dataflows.cli.run import overrides_of
    from dataflows.settings import load
    from dataflows.warm import warm_folder
    from features.errors import ConfigError

    given: dict[str, Any] = {"sim_seed": args.seed, "sim_seconds": args.seconds}
    given = {k: v for k, v in given.items() if v is not None} | overrides_of(args)
    settings = load(args.config, **(OWN | given))
    # `load` takes None for not given, which would leave what the file says.
    unset = {name: None for name in (*OWN_UNSET, "warm_state") if name not in given}
    settings = settings.model_copy(update=unset)
    settings = settings.model_copy(update={"warm_state": warm_folder(settings)})
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
    """Models and warm state: trained where there are none that fit the settings.

    Raises
    ------
    ConfigError : they would be written over what is not the demo's
    """
    from dataflows.state.own import mark_own, refuse_foreign
    from dataflows.training import is_trained, train_simulated
    from dataflows.warm import warm_folder

    why = is_trained(settings)
    if why is None and not again:
        return
    folders = {"bundle": settings.bundle, "warm_state": warm_folder(settings)}
    for name, folder in folders.items():
        refuse_foreign(folder, name)
    if not again:
        say(f"waxwing demo: {why}; training first takes about a minute")
    # Before, so that a start that is cut short can be repeated; and after, since a bundle is
    # written as a folder that takes the place of the one before.
    for folder in folders.values():
        mark_own(folder)
    train_simulated(settings, say)
    mark_own(settings.bundle)


def _run_live(settings: Settings, out: Any) -> dict[str, Any]:
    """Run the flow under the live view; returns the report."""
    import psutil

    from dataflows.observe.live import LiveView, stats_of
    from dataflows.observe.telemetry import Telemetry
    from dataflows.runner import run_flow, usage

    begun_process = time.monotonic() - (time.time() - psutil.Process().create_time())
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
        before_s = telemetry.begun - begun_process
        report["first_alert_s"] = round(telemetry.first_alert_s + before_s, 3)
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
