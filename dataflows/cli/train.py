"""`waxwing train`: models from simulated or recorded history, with or without labels."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from dataflows.training import Trained

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "train",
        help="models from history",
        description=__doc__,
        epilog="Without --data it learns from simulated history. The bundle goes to the setting"
        " `bundle`, warm state for the live flow to `warm_state`, or to `warm` beside the bundle.",
    )
    settings_arguments(parser)
    add = parser.add_argument
    add("--data", metavar="HISTORY", action="append", default=[],
        help="folder of files named after event types, or [EVENT_TYPE=]file")  # fmt: skip
    add("--mapping", metavar="M", help="mapping of foreign columns: shipped name or file")
    add("--labels", metavar="F", help="file with the event_id of known anomalies")
    add("--from", dest="learn_from", metavar="T",
        help="learn from this event time on, ISO 8601; what is before only warms up")  # fmt: skip
    add(
        "--days",
        type=float,
        default=14.0,
        metavar="N",
        help="days of simulated history (default 14)",
    )
    add("--html", metavar="R", help="write the curves that thresholds were chosen from")
    add("--json", metavar="P", help="write the figures on held-out rows; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.cli.run import overrides_of, with_data
    from dataflows.report import check_json, write_json
    from dataflows.settings import load
    from dataflows.training import train_files, train_simulated
    from dataflows.voting_report import voting_lines, write_voting
    from features.errors import ConfigError

    check_json(args.html, "--html")
    settings = load(args.config, **(with_data(args) | overrides_of(args)))
    out = sys.stderr if args.json == "-" else sys.stdout

    def say(text: str) -> None:
        print(f"waxwing: {text}", file=out, flush=True)

    if settings.source == "file":
        trained = train_files(settings, say, _labels(args), args.learn_from)
    else:
        if args.labels or args.learn_from:
            raise ConfigError("--labels and --from go with --data; simulated history has its own")
        if not 0 < args.days <= 3_660:
            raise ConfigError(f"--days {args.days:g}: expected more than 0 and at most ten years")
        trained = train_simulated(settings, say, days=args.days)
    _show(trained, out)
    told = trained.bundle.metrics["voting"]
    for line in voting_lines(told):
        say(line)
    if args.html is not None:
        write_voting(Path(args.html), told, f"bundle {trained.bundle.id}, rows held out")
        say(f"report in {args.html}")
    write_json(args.json, _report(trained))
    return 0


def _labels(args: argparse.Namespace) -> pl.Series | None:
    """Event ids of known anomalies: of --labels, or of `labels.*` in a folder given by --data."""
    from dataflows.training import read_labels

    if args.labels:
        return read_labels(Path(args.labels))
    for item in args.data:
        for suffix in ("parquet", "csv", "jsonl"):
            path = Path(item) / f"labels.{suffix}"
            if path.is_file():
                return read_labels(path)
    return None


def _show(trained: Trained, out: Any) -> None:
    """The figures on held-out rows, as a table."""
    from dataflows.observe.live import judgement_table

    if trained.bundle.metrics.get("detectors"):
        print("\nOn rows held out of training:", file=out)
        judgement_table(trained.bundle.metrics, out)


def _report(trained: Trained) -> dict[str, Any]:
    """What `--json` writes."""
    return {
        "in": trained.events,
        "bundle": trained.bundle.id,
        "history_s": round(trained.history_s, 3),
        "training_s": round(trained.training_s, 3),
        "rows": {name: about["rows"] for name, about in trained.bundle.training["sets"].items()},
        **trained.bundle.metrics,
    }
