"""`waxwing evaluate`: how well a bundle tells attacks from genuine events, and what each part adds.

Without --data on simulated traffic of another seed than the bundle was trained on, from the warm
state beside the bundle, as the live flow starts; with --data on labelled files. No flow is started:
features, scores and votes alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from dataflows.evaluation import Deep
    from dataflows.settings import Settings
    from models.costs import Costs

__all__ = ["add_parser", "run"]

_COST_MAX = 1e12
"""Highest cost of one event. Chosen: beyond any sum of money an event has."""

_COST_MISS, _COST_ALARM = 100.0, 1.0
"""What mistakes cost where nobody says it. Chosen: a hundred looks for one fraud."""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "evaluate", help="how well a bundle finds attacks", description=__doc__
    )
    settings_arguments(parser)
    add = parser.add_argument
    add("--bundle", metavar="B", help="models to judge (default: the setting `bundle`)")
    add("--data", metavar="D", action="append", default=[],
        help="folder of files named after event types, or [EVENT_TYPE=]file")  # fmt: skip
    add("--mapping", metavar="M", help="mapping of foreign columns: shipped name or file")
    add("--labels", metavar="F",
        help="file with event_id, and perhaps attack, of anomalies, or of verdicts")  # fmt: skip
    add("--hours", type=float, metavar="N", help="of simulated traffic (default 24)")
    add("--seed", type=int, metavar="N", help="seed of the traffic (default: sim_seed)")
    add("--cold", action="store_true", help="start without warm state")
    add("--cost-miss", type=float, metavar="C",
        help="what a missed anomaly costs (default: cost_miss, or 100)")  # fmt: skip
    add("--cost-alarm", type=float, metavar="C",
        help="what a false alarm costs (default: cost_alarm, or 1)")  # fmt: skip
    add("--cost-by-amount", action="store_true",
        help="a missed payment costs --cost-miss times its amount")  # fmt: skip
    add("--fit-voting", metavar="F",
        help="write voting rules with thresholds that cost least on these events")  # fmt: skip
    add("--false-alarms", type=float, metavar="S",
        help="with --fit-voting: thresholds at this share of false alarms instead")  # fmt: skip
    add("--html", metavar="R", help="write a report to look at")
    add("--json", metavar="P", help="write the figures as JSON; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.evaluation import Deep, evaluate_files, evaluate_simulated
    from dataflows.evaluation_report import print_analysis, write_report
    from dataflows.observe.live import judgement_table
    from dataflows.report import write_json

    settings = _settings(args)
    out = sys.stderr if args.json == "-" else sys.stdout

    def say(text: str) -> None:
        print(f"waxwing: {text}", file=out, flush=True)

    costs = _costs(args, settings)
    deep = Deep(costs)
    if args.data:
        labels = _labels(args)
        report = evaluate_files(settings, labels, say, cold=args.cold, deep=deep)
    else:
        report = evaluate_simulated(settings, args.hours or 24.0, say, cold=args.cold, deep=deep)
    say("curves, intervals and what each part adds")
    analysis = deep.analysis()
    report |= analysis.report
    if args.fit_voting is not None:
        report["voting"] = _fit_voting(args, deep, costs, say)
    judgement_table(report, out)
    print_analysis(report, out)
    if args.html is not None:
        write_report(Path(args.html), report, analysis)
        say(f"report in {args.html}")
    write_json(args.json, report)
    return 0


def _costs(args: argparse.Namespace, settings: Settings) -> Costs:
    """What mistakes cost: by the options, else by the settings."""
    from dataflows.training import costs_of
    from models.costs import Costs

    known = costs_of(settings) or Costs(_COST_MISS, _COST_ALARM, settings.cost_by_amount)
    miss = known.miss if args.cost_miss is None else args.cost_miss
    alarm = known.alarm if args.cost_alarm is None else args.cost_alarm
    return Costs(miss, alarm, args.cost_by_amount or known.by_amount)


def _fit_voting(
    args: argparse.Namespace, deep: Deep, costs: Costs, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write rules with thresholds of these events; what is reported of them."""
    from dataflows.report import write_text

    share = args.false_alarms
    if share is None:
        voting, told = deep.voting(1.0, costs)
    else:
        voting, told = deep.voting(share, None)
    write_text(Path(args.fit_voting), voting.text(), "--fit-voting")
    say(f"rules in {args.fit_voting}; `--set voting={args.fit_voting}` takes them")
    return told


def _settings(args: argparse.Namespace) -> Settings:
    """The settings of the command line; every fault of the options at once."""
    from dataflows.cli.run import check_outputs, overrides_of, with_data
    from dataflows.report import check_json
    from dataflows.settings import load
    from features.errors import ConfigError

    faults = []
    if args.hours is not None and not 0 < args.hours <= 24 * 366:
        faults.append(f"--hours {args.hours}: expected more than 0 and at most a year")
    if args.seed is not None and args.seed < 0:
        faults.append(f"--seed {args.seed}: expected a number from 0 on")
    for option, cost in (("--cost-miss", args.cost_miss), ("--cost-alarm", args.cost_alarm)):
        if cost is not None and not 0 <= cost <= _COST_MAX:
            faults.append(f"{option} {cost:g}: expected a cost from 0 to {_COST_MAX:g}")
    if args.false_alarms is not None and args.fit_voting is None:
        faults.append("--false-alarms goes with --fit-voting; `evaluate` judges rules as they are")
    if args.false_alarms is not None and not 0 < args.false_alarms <= 0.5:
        faults.append(f"--false-alarms {args.false_alarms:g}: expected a share up to 0.5")
    simulated = [o for o, v in (("--hours", args.hours), ("--seed", args.seed)) if v is not None]
    if args.data and simulated:
        faults.append(f"{' and '.join(simulated)}: of simulated traffic, and --data names files")
    if args.labels and not args.data:
        faults.append("--labels goes with --data; simulated traffic knows its attacks")
    for option, place in (("--html", args.html), ("--fit-voting", args.fit_voting)):
        try:
            check_json(place, option)
        except ConfigError as error:
            faults += error.faults
    bundle = {} if args.bundle is None else {"bundle": args.bundle}
    try:
        settings = load(args.config, **(with_data(args) | overrides_of(args) | bundle))
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    try:
        check_outputs(args, settings, "--html", "--json", "--fit-voting")
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(faults)
    return settings if args.seed is None else settings.model_copy(update={"sim_seed": args.seed})


def _labels(args: argparse.Namespace) -> pl.DataFrame | None:
    """Known anomalies: of --labels, or of `labels.*` in a folder given by --data."""
    from dataflows.known import read_attacks

    if args.labels:
        return read_attacks(Path(args.labels))
    for item in args.data:
        for suffix in ("parquet", "csv", "jsonl"):
            path = Path(item) / f"labels.{suffix}"
            if path.is_file():
                return read_attacks(path)
    return None
