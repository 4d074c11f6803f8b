"""`waxwing backfill`: run history through the features and leave warm state for the live flow.

The live flow takes over at --until: with Kafka, at the first offset of that time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "backfill", help="run history, leave warm state", description=__doc__
    )
    settings_arguments(parser)
    parser.add_argument(
        "--data",
        metavar="HISTORY",
        action="append",
        default=[],
        required=True,
        help="folder of files named after event types, or [EVENT_TYPE=]file",
    )
    parser.add_argument(
        "--mapping", metavar="M", help="mapping of foreign columns: shipped name or file"
    )
    parser.add_argument("--until", metavar="T", help="stop before this event time, ISO 8601")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="state folder to write (default: warm_state, or warm beside the bundle)",
    )
    parser.add_argument("--json", metavar="P", help="write counts at the end; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.arrivals import Arrivals
    from dataflows.cli.run import overrides_of, with_data
    from dataflows.history import after_rows, run_history, save_warm
    from dataflows.runner import usage, write_json
    from dataflows.settings import load
    from dataflows.sources.files import FileReader
    from dataflows.warm import warm_folder
    from features.catalog import catalog
    from features.engine import warm_up

    until = {"file_until": args.until} if args.until else {}
    settings = load(args.config, **(with_data(args) | until | overrides_of(args)))
    cat = catalog()
    warm_up(cat)
    reader = FileReader(settings)
    arrivals = Arrivals(cat, round(settings.label_delay_s * 1e6))
    done = after_rows(run_history(settings, cat, reader, arrivals=arrivals))
    reader.close()
    if args.until:
        # The live flow starts at the asked time even where history ends a little before it.
        from dataclasses import replace

        from dataflows.sources.simulator import time_us_of

        done = replace(done, until_us=time_us_of(args.until))
    out = Path(args.out) if args.out else warm_folder(settings)
    save_warm(out, settings, cat, done)
    print(
        f"waxwing: {done.events:,} events of history, {done.rejected:,} rejected,"
        f" {done.duplicates:,} repeats;"
        f" warm state in {out}: run with `--set warm_state={out}`"
    )
    write_json(
        args.json,
        {
            "in": done.events + done.rejected + done.duplicates,
            "events": done.events,
            "rejected": done.rejected,
            "duplicates": done.duplicates,
            "reasons": dict(done.reasons),
            "until_us": done.until_us,
            "entities": _entities(done.engine.engines),
        }
        | usage(),
    )
    return 0


def _entities(engines: list[Any]) -> dict[str, int]:
    """Live entities by type over all groups."""
    found: dict[str, int] = {}
    for engine in engines:
        for name, count in engine.entities.items():
            found[name] = found.get(name, 0) + count
    return found
