"""`waxwing evaluate`: recall, precision and false positives of a bundle on simulated traffic.

The traffic is of another seed than the bundle was trained on, and starts from the warm state beside
the bundle, as the live flow does. No flow is started: features, scores and votes alone.
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
        "evaluate", help="how well a bundle finds simulated attacks", description=__doc__
    )
    settings_arguments(parser)
    add = parser.add_argument
    add("--hours", type=float, default=24.0, metavar="N", help="of simulated traffic (default 24)")
    add("--seed", type=int, metavar="N", help="seed of the traffic (default: sim_seed)")
    add("--cold", action="store_true", help="start without warm state")
    add("--json", metavar="P", help="write the figures as JSON; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.cli.run import overrides_of
    from dataflows.evaluation import evaluate_simulated
    from dataflows.observe.live import judgement_table
    from dataflows.report import write_json
    from dataflows.settings import load
    from features.errors import ConfigError

    if not 0 < args.hours <= 24 * 366:
        raise ConfigError(f"--hours {args.hours}: expected more than 0 and at most a year")
    if args.seed is not None and args.seed < 0:
        raise ConfigError(f"--seed {args.seed}: expected a number from 0 on")
    settings = load(args.config, **overrides_of(args))
    if args.seed is not None:
        settings = settings.model_copy(update={"sim_seed": args.seed})
    out = sys.stderr if args.json == "-" else sys.stdout

    def say(text: str) -> None:
        print(f"waxwing: {text}", file=out, flush=True)

    report = evaluate_simulated(settings, args.hours, say, cold=args.cold)
    judgement_table(report, out)
    write_json(args.json, report)
    return 0
