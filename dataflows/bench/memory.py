"""`waxwing bench memory`: bytes of the engine's state after hours of event time, fast-forwarded.

Payments of a population pass the feature engine at a steady rate of event time, as fast as they go.
What is asked of the whole (1 million cards with their users, merchants, devices and addresses at
50,000 payments/s for 70 minutes) may be asked of a share of it: entities and rate are both a share
then, each entity does what it does in the whole, and memory is the same share.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from features.operations import DISTINCT_MAX

__all__ = ["add_parser", "measure", "run"]

CARDS, RATE, MINUTES = 1_000_000, 50_000.0, 70.0
"""The whole: cards, payments per second, minutes of event time; the longest window, full, and ten
minutes in which it turns over."""

SHARE = 0.1
"""Share of the whole that is run where none is given; chosen: 21 million payments, minutes."""

PARTS = ("records", "idle", "panes", "pairs", "slots", "late")
"""What state holds, see `features.state.EntityState.memory_parts`."""

ROWS, ROWS_MIN = 20_000, 200
"""Rows of a round of the whole, the most a lane takes (see the setting `round_rows_max`): 0.4 s of
event time. Of a share as many of them: the log for late rows is as long as that of the whole and a
round. But at least so many, which take no longer than what each round asks for anyway."""


def add_parser(subparsers: Any) -> None:
    """Declare the bench."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser("memory", help="bytes of state", description=__doc__)
    settings_arguments(parser)
    add = parser.add_argument
    add("--share", type=float, default=SHARE, metavar="S", help=f"share of the whole ({SHARE})")
    add("--minutes", type=float, default=MINUTES, metavar="M", help=f"event time ({MINUTES:g})")
    add("--groups", type=int, default=16, metavar="N", help="shard groups (16)")
    add(
        "--exact", type=int, default=0, metavar="N",
        help="events of an entity in an hour kept one by one, the older ones in panes; 0: all (0)"
    )  # fmt: skip
    add(
        "--distinct", type=int, default=DISTINCT_MAX, metavar="N",
        help="different others of an entity in an hour above which its pairs are a sample; 0: never"
        f" ({DISTINCT_MAX})",
    )  # fmt: skip
    add("--json", metavar="P", help="write the figures; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.cli.run import overrides_of
    from dataflows.report import check_json, write_json
    from dataflows.settings import load
    from features.errors import ConfigError

    faults = [
        f"bench memory: --{name} {given:g}: expected {wanted}"
        for name, given, good, wanted in (
            ("share", args.share, 0.0001 <= args.share <= 1.0, "0.0001 to 1"),
            ("minutes", args.minutes, args.minutes > 0.0, "more than 0"),
            ("groups", args.groups, args.groups >= 1, "at least 1"),
            ("exact", args.exact, args.exact >= 0, "at least 0"),
            ("distinct", args.distinct, args.distinct >= 0, "at least 0"),
        )
        if not good
    ]
    if faults:
        raise ConfigError(faults)
    check_json(args.json)
    load(args.config, **overrides_of(args))  # Which features there are; nothing else matters here.
    out = sys.stderr if args.json == "-" else sys.stdout

    def say(text: str) -> None:
        print(f"waxwing: {text}", file=out, flush=True)

    report = measure(args.share, args.minutes, args.groups, say, args.exact, args.distinct)
    if args.json != "-":
        _print(report)
    write_json(args.json, report)
    return 0


def measure(
    share: float, minutes: float, groups: int, say: Callable[[str], None], exact_max: int = 0,
    distinct_max: int = DISTINCT_MAX,
) -> dict[str, Any]:  # fmt: skip
    """The figures, in the keys of docs/json.md.

    Parameters
    ----------
    share : of the whole's cards and rate
    minutes : of event time
    groups : shard groups
    say : told how far it is
    exact_max, distinct_max : see the settings `exact_events_max`, `distinct_exact_max`
    """
    from dataflows.bench.features import EVENT, Bench
    from features.catalog import catalog
    from features.engine import warm_up
    from features.simulate import Simulator
    from features.simulate.mix import TYPE_SHARES

    cat = catalog()
    warm_up(cat)
    cards, rate = max(100, round(CARDS * share)), RATE * share
    bench = Bench(cat, cards, groups, exact_max, distinct_max)
    source = Simulator(
        seed=1, events_per_s=rate / TYPE_SHARES[EVENT], cards=cards, event_types=[EVENT]
    )
    rows = max(ROWS_MIN, ROWS * share)
    step_us, end_us = round(1e6 * rows / rate), round(minutes * 6e7)
    events, at_us, said = 0, 0, 0
    while at_us < end_us:
        batch = source.span(at_us, min(at_us + step_us, end_us))[EVENT]
        at_us = bench.now_us = min(at_us + step_us, end_us)
        bench.pass_round(batch)
        events += len(batch)
        if at_us * 10 // end_us > said:
            said = at_us * 10 // end_us
            mb = sum(bench.memory.values()) / 1e6
            say(f"{at_us / 6e7:.0f} of {minutes:g} min, {events:,} payments, {mb:,.0f} MB")
        # What a delta holds is not kept in memory between two snapshots of a live flow.
        if bench.round % 100 == 0:
            for engine in bench.engines:
                engine.delta()
    entities, memory = bench.entities, bench.memory
    parts = dict.fromkeys(PARTS, 0)
    for engine in bench.engines:
        for name in memory:
            for part, size in engine.memory_parts[name].items():
                parts[part] += size
    return {
        "share": share,
        "minutes": minutes,
        "payments": events,
        "payments_per_s": rate,
        "features": len(cat.names(EVENT)),
        "entities": entities,
        "state_bytes": memory,
        "parts_bytes": parts,
        "exact_events_max": exact_max,
        "approximated": sum(engine.approximated for engine in bench.engines),
        "approximated_excess_max": max(engine.excess_max for engine in bench.engines),
        "distinct_exact_max": distinct_max,
        "estimated": sum(engine.estimated for engine in bench.engines),
        "estimated_one_in_max": max(engine.one_in_max for engine in bench.engines),
        "state_gib": round(sum(memory.values()) / 2**30, 3),
        "whole_gib": round(sum(memory.values()) / share / 2**30, 2),
        "process_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "cpu_us_per_payment": round(sum(bench.spent.values()) / max(1, events) * 1e6, 2),
        "seconds": round(time.process_time(), 1),
    }


def _print(report: dict[str, Any]) -> None:
    """The figures for a person."""
    print(
        f"{report['payments']:,} payments in {report['minutes']:g} min of event time at"
        f" {report['payments_per_s']:,.0f}/s: state {report['state_gib']:.2f} GiB, the process at"
        f" most {report['process_gib']:.2f} GiB"
    )
    for name, n in report["entities"].items():
        size = report["state_bytes"][name]
        print(f"  {n:>11,} {name:<9} {size / 2**20:>9,.0f} MiB, {size / n:>7,.0f} bytes each")
    parts = ", ".join(f"{part} {size / 2**20:,.0f}" for part, size in report["parts_bytes"].items())
    print(f"  of it, MiB: {parts}")
    print(f"  the whole ({1 / report['share']:g} times as much): {report['whole_gib']:.1f} GiB")
