"""`waxwing replay`: rounds of a flow computed again into Parquet parts, or a store of their own.

Training sets, a rebuilt online store, features of your own tried on history (`--set
feature_paths=...`): whatever it is for, the flow is not disturbed and nobody is paged.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "replay",
        help="rounds computed again into Parquet or a store",
        description=__doc__,
        epilog="Settings are those the flow ran with, as it recorded them; --set wins. With other"
        " features than the flow's, features are computed and nothing is scored.",
    )
    settings_arguments(parser)
    add = parser.add_argument
    add("--into", metavar="NAME", required=True, help="folder below replays of state_dir")
    add("--from", dest="since", metavar="T", help="cut time of the first round, ISO 8601")
    add("--to", dest="until", metavar="T", help="cut time before which the last round was cut")
    add(
        "--store", action="store_true",
        help="fill an online store too: one in the folder, or that of --set redis_url=...",
    )  # fmt: skip
    add("--features-only", action="store_true", help="score nothing: for training sets, faster")
    add("--workers", type=int, default=1, metavar="N", help="Bytewax workers (default 1)")
    add("--json", metavar="P", help="write the figures; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.cli.certify import asked
    from dataflows.refill import refill
    from dataflows.report import write_json

    given, state_dir, since, until = asked(args)
    found = refill(
        state_dir, args.config, given, args.into, since, until, args.store, args.workers,
        args.features_only,
    )  # fmt: skip
    why = "as asked for" if args.features_only else "they are others than the flow's"
    what = "" if found["scored"] else f", features alone: {why}"
    print(
        f"{found['events']:,} events in {found['rounds']:,} rounds, {sum(found['rows'].values()):,}"
        f" rows in {found['files']} parts in {found['folder']}, {found['alerts']:,} alerts that"
        f" nobody is told of; {found['seconds']:.1f} s, {found['events_per_s']:,.0f} events/s"
        + what,
        file=sys.stderr if args.json == "-" else sys.stdout,
    )
    write_json(args.json, found)
    return 0
