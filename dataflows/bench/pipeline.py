"""`waxwing bench pipeline`: the whole flow in one process at a stated rate, open loop.

Simulated events of all types, every detector, journal, snapshots, alert log and online store. An
event's latency counts from when it should have been sent to the acknowledgement by the sinks, so
that a flow that falls behind cannot hide it. The models are trained on traffic of the same rate
first, in a process of their own: peak memory and CPU are those of the flow.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflows.settings import Settings

__all__ = ["add_arguments", "add_parser", "prepare", "run", "settings_of"]

FOLDER = Path(".waxwing/bench")
"""Where models and state of the bench lie."""

CARDS_PER_EVENT_S = 4
"""Cards of the population per event/s. Chosen: 200,000 at 50,000 events/s, a card pays about every
nine seconds of the bench, so that windows fill and no kernel works on an empty world."""

HISTORY_EVENTS = 3_000_000
"""Events of history to train on, about. Chosen: what fourteen days are in the demo."""

LAG_MS_HELD = 1_000.0
"""The rate was held where the last events were through so long after they were due. Chosen: the
promise of a page within a second."""


def add_parser(subparsers: Any) -> None:
    """Declare the bench."""
    parser = subparsers.add_parser("pipeline", help="events/s, latency, CPU", description=__doc__)
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every bench of the whole flow takes."""
    from dataflows.cli.run import settings_arguments

    settings_arguments(parser)
    add = parser.add_argument
    add("--rate", type=float, default=50_000.0, metavar="R", help="events/s (50000)")
    add("--seconds", type=float, default=60.0, metavar="S", help="length (60)")
    add("--cards", type=int, metavar="N", help=f"cards of the population ({CARDS_PER_EVENT_S} R)")
    add("--train", action="store_true", help="train anew, whatever is there")
    add(
        "--history", type=float, default=HISTORY_EVENTS, metavar="N",
        help=f"events to train on ({HISTORY_EVENTS})",
    )  # fmt: skip
    add("--json", metavar="P", help="write the figures; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.observe.telemetry import Telemetry
    from dataflows.runner import run_flow, usage, write_json
    from dataflows.state.own import clear_own_state

    settings = settings_of(args)
    clear_own_state(settings.state_dir)
    prepare(settings, args)
    telemetry = Telemetry()
    before, before_redis_s = usage()["cpu_s"], _children_s()
    begun = time.monotonic()
    run_flow(settings, telemetry)
    report = _report(settings, telemetry, args.rate)
    report["seconds"] = round(time.monotonic() - begun, 3)
    report["rss_mb_max"] = usage()["rss_mb_max"]
    report["cpu_s"] = round(usage()["cpu_s"] - before, 3)
    report["cpu_redis_s"] = round(_children_s() - before_redis_s, 3)
    if args.json != "-":
        _print(report)
    write_json(args.json, report)
    return 0


def settings_of(args: argparse.Namespace) -> Settings:
    """Settings of the bench.

    Raises
    ------
    ConfigError : every fault at once
    """
    from dataflows.cli.run import overrides_of
    from dataflows.settings import load
    from features.errors import ConfigError

    if not (0 < args.rate < float("inf") and 0 < args.seconds < float("inf")):
        raise ConfigError(
            f"bench: --rate and --seconds must be above 0, got {args.rate:g} and {args.seconds:g}"
        )
    cards = args.cards or max(1_000, int(CARDS_PER_EVENT_S * args.rate))
    folder = FOLDER / f"{args.rate:.0f}-{cards}"
    given: dict[str, Any] = {
        "source": "simulator",
        "sim_events_per_s": args.rate,
        "sim_speed": 1.0,
        "sim_seconds": args.seconds,
        "sim_cards": cards,
        "state_dir": folder / "state",
        "bundle": folder / "bundle",
        "warm_state": folder / "warm",
        "alerts": ["jsonl"],
    }
    return load(args.config, **(given | overrides_of(args)))


def prepare(settings: Settings, args: argparse.Namespace) -> None:
    """Train in a process of its own where there are no models of this rate yet."""
    from dataflows.cli.run import passed_on
    from dataflows.training import is_trained
    from features.errors import ConfigError

    if not args.train and is_trained(settings) is None:
        return
    names = ("sim_events_per_s", "sim_cards", "bundle", "warm_state")
    command = [sys.executable, "-m", "dataflows.cli.main", "train"]
    command += ["--days", repr(args.history / args.rate / 86_400.0)]
    command += passed_on(args, [*(f"{n}={getattr(settings, n)}" for n in names), *args.set])
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode != 0:
        raise ConfigError("bench: training failed; see above")


def _report(settings: Settings, telemetry: Any, rate: float) -> dict[str, Any]:
    """The figures, in the keys of docs/json.md."""
    full = telemetry.report()
    counts = ("in", "scored", "dead_lettered", "duplicates", "pending", "alerts", "rounds")
    report: dict[str, Any] = {"rate": rate} | {name: full[name] for name in counts}
    asked = rate * settings.sim_seconds
    report["held"] = bool(full["in"] >= 0.98 * asked and telemetry.lag_ms_last <= LAG_MS_HELD)
    report["lag_ms_last"] = round(telemetry.lag_ms_last, 3)
    report["latency_ms"] = full["latency_ms"]
    report["event_latency_ms"] = full["event_latency_ms"]
    events = max(full["in"], 1)
    report["us_per_event"] = {
        stage: round(seconds / events * 1e6, 3)
        for stage, seconds in sorted(telemetry.stage_s.items())
    }
    report["snapshots"] = telemetry.snapshots
    report["snapshot_mb"] = round(telemetry.snapshot_bytes / 1e6, 3)
    report["snapshot_pause_ms_max"] = round(telemetry.snapshot_pause_ms_max, 3)
    return report


def _children_s() -> float:
    """CPU seconds of processes of ours that have ended: the embedded Redis, and training before."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _print(report: dict[str, Any]) -> None:
    """The figures for a person."""
    latency, events = report["latency_ms"], report["event_latency_ms"]
    held = "held" if report["held"] else "NOT held"
    print(
        f"{report['rate']:,.0f} events/s {held} for {report['seconds']:.0f} s:"
        f" {report['in']:,} events in, {report['scored']:,} scored, {report['alerts']:,} alerts"
    )
    for name, got in (("alert", latency), ("event", events)):
        print(
            f"  {name} latency  p50 {got['p50']:.0f} ms, p99 {got['p99']:.0f} ms,"
            f" p99.9 {got['p999']:.0f} ms"
        )
    print(
        f"  {report['cpu_s']:.1f} CPU s and {report['cpu_redis_s']:.1f} of the Redis,"
        f" {report['rss_mb_max']:,.0f} MB at the most"
    )
    print(
        f"  {report['snapshots']:,} snapshots of shards, {report['snapshot_mb']:,.0f} MB, longest"
        f" pause {report['snapshot_pause_ms_max']:.0f} ms"
    )
    stages = ", ".join(f"{k} {v:.2f}" for k, v in report["us_per_event"].items())
    print(f"  us an event by stage: {stages}")
