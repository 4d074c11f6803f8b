"""`waxwing bench promote`: what it costs the latency to try, promote and roll back a bundle.

The whole flow at a stated rate, as `waxwing bench pipeline` has it. A copy of its bundle with an id
of its own is made a shadow, promoted and rolled back while events flow; each change is held against
the seconds before it.
"""

from __future__ import annotations

import argparse
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflows.observe.changes import ChangesWatched
    from dataflows.settings import Settings

__all__ = ["add_parser", "run"]

WINDOW_S = 3.0
"""Before a change is asked for, and after it is in force, so long is compared. Chosen: thirty
rounds; a change that takes hold slowly is still seen."""

STEPS = (("shadow", 0.25), ("live", 0.5), ("rollback", 0.75))
"""What is asked for, and after which share of the run."""


def add_parser(subparsers: Any) -> None:
    """Declare the bench."""
    from dataflows.bench.pipeline import add_arguments

    parser = subparsers.add_parser(
        "promote", help="latency while models change", description=__doc__
    )
    add_arguments(parser)
    parser.set_defaults(rate=20_000.0)


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.bench.pipeline import prepare, settings_of
    from dataflows.observe.changes import ChangesWatched
    from dataflows.report import write_json
    from dataflows.runner import run_flow, usage
    from dataflows.state.own import clear_own_state

    settings = settings_of(args)
    clear_own_state(settings.state_dir)
    prepare(settings, args)
    folder, bundle = _candidate(settings)
    watch = ChangesWatched()
    stop = threading.Event()
    asking = threading.Thread(target=_ask, args=(settings, watch, folder, bundle, stop))
    asking.start()
    begun_s = usage()["cpu_s"]
    try:
        run_flow(settings, watch)
    finally:
        stop.set()
        asking.join()
    report = _report(watch, args.rate)
    report["cpu_s"] = round(usage()["cpu_s"] - begun_s, 3)
    if args.json != "-":
        _print(report)
    write_json(args.json, report)
    return 0


def _candidate(settings: Settings) -> tuple[Path, str]:
    """The same models as the live ones under another id, and where they lie."""
    from features.catalog import catalog
    from models.bundle import Bundle

    folder = settings.bundle.with_name("candidate")
    first = Bundle.load(settings.bundle, catalog())
    made = replace(first, training={**first.training, "note": "bench promote"}).write(folder)
    return folder.resolve(), made.id


def _ask(
    settings: Settings, watch: ChangesWatched, folder: Path, bundle: str, stop: threading.Event
) -> None:
    """Ask for the changes, each in its time."""
    from dataflows.control.writing import write_record

    while not watch.rounds:
        if stop.wait(0.1):
            return
    begun_s = watch.rounds[0][0]
    for what, share in STEPS:
        if stop.wait(max(0.0, begun_s + share * settings.sim_seconds - time.monotonic())):
            return
        record: dict[str, Any] = {"kind": "rollback"}
        if what != "rollback":
            record = {"kind": "bundle", "bundle": bundle, "path": str(folder), "stage": what}
        record["id"] = uuid.uuid4().hex
        watch.asked(what, record)
        write_record(settings, record)


def _report(watch: ChangesWatched, rate: float) -> dict[str, Any]:
    """The figures, in the keys of docs/json.md."""
    full = watch.report()
    counts = ("in", "scored", "dead_lettered", "duplicates", "pending", "alerts", "rounds")
    changes = []
    for change in watch.changes:
        before = watch.p99_ms(change.asked_s - WINDOW_S, change.asked_s)
        after = None
        if change.in_force_s is not None:
            after = watch.p99_ms(change.asked_s, change.in_force_s + WINDOW_S)
        jump = None if before is None or after is None else round(after - before, 3)
        waited = None if change.in_force_s is None else change.in_force_s - change.asked_s
        changes.append(
            {
                "change": change.what,
                "seconds": None if waited is None else round(waited, 3),
                "p99_ms_before": None if before is None else round(before, 3),
                "p99_ms_after": None if after is None else round(after, 3),
                "jump_ms": jump,
            }
        )
    jumps = [c["jump_ms"] for c in changes if c["jump_ms"] is not None]
    return {
        "rate": rate,
        **{name: full[name] for name in counts},
        "event_latency_ms": full["event_latency_ms"],
        "changes": changes,
        "jump_ms_max": max(jumps) if len(jumps) == len(STEPS) else None,
    }


def _print(report: dict[str, Any]) -> None:
    """The figures for a person."""
    print(
        f"{report['rate']:,.0f} events/s: {report['in']:,} events in, {report['scored']:,} scored,"
        f" {report['pending']:,} pending; event latency p99"
        f" {report['event_latency_ms']['p99']:.0f} ms"
    )
    for change in report["changes"]:
        if change["jump_ms"] is None:
            print(f"  {change['change']:<9} was not in force in time")
            continue
        print(
            f"  {change['change']:<9} in force after {change['seconds']:.2f} s; event latency p99"
            f" {change['p99_ms_before']:.0f} ms before, {change['p99_ms_after']:.0f} ms after"
        )
