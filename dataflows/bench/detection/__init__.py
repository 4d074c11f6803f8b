"""`waxwing bench detection`: how well anomalies are found in data that others made.

Each data set has a file beside this one, with the protocol and the figures that others published.
Models are fitted by our own training on the part that the protocol gives for it; the rest goes
through the features, models and votes of the flow in the order of its times.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from typing import Any

__all__ = ["DATASETS", "add_parser", "run"]

DATASETS = ("auth-log", "fraud-handbook", "server-machine", "simulator", "skab")
"""Names of the data sets; the module has the name with an underscore."""

MADE = "simulator"
"""The one that reads no data."""


def add_parser(subparsers: Any) -> None:
    """Declare the bench."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "detection", help="what is found in data that others made", description=__doc__
    )
    settings_arguments(parser)
    add = parser.add_argument
    add("--dataset", choices=DATASETS, help="which protocol")
    add("--data", metavar="F", help="the data set's file or folder; none is shipped")
    add("--days", type=float, metavar="N", help="simulator: of history to train on (14)")
    add("--hours", type=float, metavar="N", help="simulator: judged of each seed (48)")
    add("--attacks", metavar="A,B",
        help="simulator: those that are left out one by one (all)")  # fmt: skip
    add("--json", metavar="P", help="write the figures; - is stdout")
    add("--render", metavar="P", nargs="+",
        help="write docs/detection.md from these files of --json, and measure nothing")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from pathlib import Path

    from dataflows.cli.run import overrides_of
    from dataflows.report import write_json
    from dataflows.settings import load

    if args.render:
        from dataflows.bench.detection.page import PAGE, page_of

        PAGE.write_text(page_of([Path(path) for path in args.render]), encoding="utf-8")
        print(f"waxwing: {PAGE}")
        return 0
    more = _options(args)
    settings = load(args.config, **overrides_of(args))
    out = sys.stderr if args.json == "-" else sys.stdout

    def say(text: str) -> None:
        print(f"waxwing: {text}", file=out, flush=True)

    begun, cpu = time.perf_counter(), time.process_time()
    module = importlib.import_module(f"{__name__}.{args.dataset.replace('-', '_')}")
    report = {"dataset": args.dataset} | module.measure(
        None if args.data is None else Path(args.data), settings, say, **more
    )
    report["seconds"] = round(time.perf_counter() - begun, 1)
    report["cpu_s"] = round(time.process_time() - cpu, 1)
    module.show(report, out)
    write_json(args.json, report)
    return 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What the simulator is told besides; every fault of the options at once."""
    from pathlib import Path

    from features.errors import ConfigError
    from features.simulate import ATTACKS

    if args.dataset is None or (args.data is None and args.dataset != MADE):
        raise ConfigError("bench detection: give --dataset and --data, or --render with files")
    given = {"days": args.days, "hours": args.hours, "attacks": args.attacks}
    given = {name: value for name, value in given.items() if value is not None}
    faults = []
    if args.data is not None and args.dataset == MADE:
        faults.append(f"--data {args.data}: the simulator makes its own")
    elif args.data is not None and not Path(args.data).exists():
        faults.append(f"--data {args.data}: there is no such file; get it from its authors")
    if args.dataset != MADE:
        faults += [f"--{name}: of --dataset {MADE} alone" for name in given]
    faults += [
        f"--{name} {given[name]:g}: expected more than 0 and at most {most}"
        for name, most in (("days", 366), ("hours", 24 * 366))
        if name in given and not 0 < given[name] <= most
    ]
    if args.attacks is not None:
        given["attacks"] = names = args.attacks.split(",")
        faults += [
            f"--attacks: no attack {name!r}; there are {', '.join(ATTACKS)}"
            for name in names
            if name not in ATTACKS
        ]
    if faults:
        raise ConfigError(faults)
    return given
