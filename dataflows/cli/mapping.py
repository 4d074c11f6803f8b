"""`waxwing mapping`: propose how the columns of a file become events.

`waxwing mapping guess F` looks at names, types and values of the columns, says how sure it is of
each, and tries the proposal on the first rows. What it prints is a mapping as it stands.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "mapping", help="propose a mapping for a file of one's own", description=__doc__
    )
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    guess = what.add_parser("guess", help="propose a mapping", description=__doc__)
    guess.add_argument("file", metavar="F", help="CSV, JSONL, Parquet or raw lines of a log")
    guess.add_argument("--out", metavar="M", help="write it to this file; default: print it")
    guess.add_argument("--json", metavar="P", help="write the findings as JSON; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataclasses import asdict

    from dataflows.report import check_apart, write_json, write_text
    from dataflows.sources.guess import guess_mapping

    check_apart({"--out": args.out, "--json": args.json}, {"the table itself": args.file})
    found = guess_mapping(Path(args.file))
    out = sys.stderr if args.json == "-" else sys.stdout
    if args.out is None:
        print(found.toml(), file=out, end="")
    else:
        write_text(args.out, found.toml(), "--out")
        print(
            f"waxwing: {found.event_type} ({found.sure}), {len(found.lines)} fields in {args.out};"
            f" of the first rows {found.events:,} events, {found.refused:,} refused",
            file=out,
        )
    write_json(args.json, asdict(found))
    return 0
