"""`waxwing bench replay`: how fast a live run is replayed, and how long an alert takes to explain.

The whole flow runs live at a stated rate first, open loop, as in `waxwing bench pipeline`. Then all
of it is replayed from its first base state and certified, and once more for its features alone, and
alerts spread over the run are explained one after the other, each from the base state before it.
A run of a minute has no alert as far from its base as one after hours: what an explanation takes at
the end of the time between two bases is reckoned from what a round more has cost here.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from dataflows.bench.pipeline import add_arguments, prepare, settings_of

if TYPE_CHECKING:
    from dataflows.settings import Settings

__all__ = ["add_parser", "far_off", "run"]

ALERTS = 20
"""Alerts explained where nothing else is asked for. Chosen: the 95th percentile of 20 is one."""


def add_parser(subparsers: Any) -> None:
    """Declare the bench."""
    parser = subparsers.add_parser("replay", help="replay against live", description=__doc__)
    add_arguments(parser)
    parser.set_defaults(rate=10_000.0)
    parser.add_argument(
        "--alerts", type=int, default=ALERTS, metavar="N", help=f"alerts to explain ({ALERTS})"
    )


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.observe.telemetry import Telemetry
    from dataflows.runner import run_flow, write_json
    from dataflows.state.own import clear_own_state
    from features.errors import ConfigError

    if args.alerts < 1:
        raise ConfigError(f"bench replay: --alerts {args.alerts}: expected 1 or more")
    settings = settings_of(args)
    clear_own_state(settings.state_dir)
    prepare(settings, args)
    begun = time.monotonic()
    run_flow(settings, Telemetry())
    report = _replayed(settings, args.rate, time.monotonic() - begun)
    report["features"] = _features(settings, args.rate)
    report["explain"] = _explained(settings, args.alerts, report["rounds_per_s"])
    if args.json != "-":
        _print(report)
    write_json(args.json, report)
    return 0


def _replayed(settings: Settings, rate: float, live_s: float) -> dict[str, Any]:
    """Replay the whole run and hold it against what was live."""
    from dataflows.certify import certify
    from dataflows.runner import usage

    before = usage()["cpu_s"]
    found = certify(settings.state_dir, None, {})
    cpu_s = usage()["cpu_s"] - before
    clock_s = max(found.until_us - found.from_us, 1) / 1e6
    return {
        "rate": rate,
        "events": found.events,
        "rounds_per_s": round(max(found.rounds - 1, 1) / clock_s, 3),
        "identical": found.identical,
        "live_seconds": round(live_s, 3),
        "replay_seconds": found.seconds,
        "replay_cpu_s": round(cpu_s, 3),
        "events_per_s": round(found.events / found.seconds, 1),
        "us_per_event": found.us_per_event,
        "ratio": {
            "live": round(found.events / found.seconds / rate, 3),
            "core": round(found.events / cpu_s / rate, 3),
        },
    }


def _features(settings: Settings, rate: float) -> dict[str, Any]:
    """Replay the whole run for a training set."""
    from dataflows.refill import refill
    from dataflows.runner import usage

    before = usage()["cpu_s"]
    found = refill(settings.state_dir, None, {}, "bench", features_only=True)
    cpu_s = usage()["cpu_s"] - before
    return {
        "seconds": found["seconds"],
        "cpu_s": round(cpu_s, 3),
        "ratio": round(found["events"] / cpu_s / rate, 3),
    }


def far_off(rounds: list[int], seconds: list[float], between: float) -> dict[str, float]:
    """What an explanation takes whose alert is far from its base, by those that were measured.

    Parameters
    ----------
    rounds, seconds : of each explanation
    between : rounds between two bases; alerts come anywhere among them

    Returns
    -------
    ms_per_round, start_s : of the straight line with the smallest squares through the measured;
        where they are too alike for one, as if there were no start
    seconds_p95_far : what that line says at 95 % of the rounds between two bases

    Examples
    --------
    >>> far_off([100, 300], [3.0, 4.0], 1_000.0)
    {'ms_per_round': 5.0, 'start_s': 2.5, 'seconds_p95_far': 7.25}
    """
    slope, start = float(np.mean(seconds) / np.mean(rounds)), 0.0
    if max(rounds) >= 2 * min(rounds):
        fitted, begun = np.polyfit(rounds, seconds, 1).tolist()
        if fitted > 0 and begun >= 0:
            slope, start = fitted, begun
    return {
        "ms_per_round": round(1_000.0 * slope, 3),
        "start_s": round(start, 3),
        "seconds_p95_far": round(start + slope * 0.95 * between, 3),
    }


def _explained(settings: Settings, alerts: int, rounds_per_s: float) -> dict[str, Any]:
    """Explain alerts spread over the run; how long they took."""
    from dataflows.alerts.jsonl import FILE_NAME
    from dataflows.explain import explain
    from features.errors import ConfigError

    path = settings.state_dir / FILE_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if not lines:
        raise ConfigError("bench replay: the run had no alert to explain; make it longer")
    from dataflows.alerts.base import Alert

    chosen = np.linspace(0, len(lines) - 1, min(alerts, len(lines))).astype(int).tolist()
    seconds, rounds, same = [], [], True
    for i in chosen:
        begun = time.monotonic()
        found = explain(settings.state_dir, None, {}, Alert.from_json(lines[i]).id)
        seconds.append(time.monotonic() - begun)
        rounds.append(found["replayed"]["rounds"])
        same = same and found["same"]
    return {
        "alerts": len(chosen),
        "same": same,
        "seconds_p50": round(float(np.quantile(seconds, 0.5)), 3),
        "seconds_p95": round(float(np.quantile(seconds, 0.95, method="higher")), 3),
        "seconds_max": round(max(seconds), 3),
        "rounds_max": max(rounds),
        "rounds_between_bases": round(rounds_per_s * settings.replay_base_s),
        **far_off(rounds, seconds, rounds_per_s * settings.replay_base_s),
    }


def _print(report: dict[str, Any]) -> None:
    """The figures for a person."""
    ratio, explained = report["ratio"], report["explain"]
    print(
        f"{report['events']:,} events that were live in {report['live_seconds']:.1f} s replayed in"
        f" {report['replay_seconds']:.1f} s: {ratio['live']:.1f} times {report['rate']:,.0f}"
        f" events/s, {ratio['core']:.1f} times a core's second;"
        f" {'bit-identical' if report['identical'] else 'NOT identical'}"
    )
    stages = ", ".join(f"{k} {v:.2f}" for k, v in report["us_per_event"].items())
    print(f"us an event by stage: {stages}")
    print(f"features alone: {report['features']['ratio']:.1f} times a core's second")
    print(
        f"{explained['alerts']} alerts explained in {explained['seconds_p50']:.1f} s (median),"
        f" {explained['seconds_p95']:.1f} s (p95), at most {explained['rounds_max']:,} rounds"
    )
    print(
        f"a round more takes {explained['ms_per_round']:.1f} ms:"
        f" {explained['seconds_p95_far']:.1f} s (p95, reckoned) with"
        f" {explained['rounds_between_bases']:,} rounds between two bases"
    )
