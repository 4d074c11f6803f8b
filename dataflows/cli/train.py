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
        " `bundle`, warm state for the live flow to `warm_state`, or to `warm` beside the bundle."
        " With --from-journal it learns from what a flow has seen and was told since: its rounds"
        " are replayed from `state_dir`, and the flow, live or not, is not touched.",
    )
    settings_arguments(parser)
    add = parser.add_argument
    add("--data", metavar="HISTORY", action="append", default=[],
        help="folder of files named after event types, or [EVENT_TYPE=]file")  # fmt: skip
    add("--mapping", metavar="M", help="mapping of foreign columns: shipped name or file")
    add("--labels", metavar="F", help="file with the event_id of known anomalies, or of verdicts")
    add("--from", dest="learn_from", metavar="T",
        help="learn from this event time on, ISO 8601; what is before only warms up")  # fmt: skip
    add("--days", type=float, metavar="N", help="days of simulated history (default 14)")
    add("--from-journal", action="store_true",
        help="learn from the journal of the flow in state_dir and its labels")  # fmt: skip
    add("--as-of", metavar="T",
        help="with --from-journal: as it was then (cut time), rounds and labels alike")  # fmt: skip
    add("--settled", type=float, metavar="DAYS",
        help="with --from-journal: after so long an event that nobody calls a fraud is taken for"
        " genuine (default: label_delay_s)")  # fmt: skip
    add("--workers", type=int, default=1, metavar="N",
        help="with --from-journal: Bytewax workers (default 1)")  # fmt: skip
    add("--html", metavar="R", help="write the curves that thresholds were chosen from")
    add("--json", metavar="P", help="write the figures on held-out rows; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.report import check_json, write_json
    from dataflows.voting_report import voting_lines, write_voting

    check_json(args.html, "--html")
    out = sys.stderr if args.json == "-" else sys.stdout

    def say(text: str) -> None:
        print(f"waxwing: {text}", file=out, flush=True)

    _check_place(args)
    trained = _of_journal(args, say) if args.from_journal else _of_history(args, say)
    _show(trained, out)
    told = trained.bundle.metrics["voting"]
    for line in voting_lines(told):
        say(line)
    if args.html is not None:
        write_voting(Path(args.html), told, f"bundle {trained.bundle.id}, rows held out")
        say(f"report in {args.html}")
    write_json(args.json, _report(trained))
    return 0


def _check_place(args: argparse.Namespace) -> None:
    """ConfigError where the bundle that is to be written is one that was brought from elsewhere."""
    from dataflows.cli.run import overrides_of
    from dataflows.placed import is_placed
    from dataflows.settings import named_bundle
    from features.errors import ConfigError

    place = named_bundle(args.config, **overrides_of(args))
    if place is not None and not is_placed(place):
        raise ConfigError(
            f"bundle: {place!r} is an archive, an address or an id, and training writes a folder of"
            " this machine; name one, and bring it there afterwards"
        )


def _of_history(args: argparse.Namespace, say: Any) -> Trained:
    """Learn from files, or from simulated history."""
    from dataflows.cli.run import check_outputs, overrides_of, with_data
    from dataflows.settings import load
    from dataflows.training import train_files, train_simulated
    from features.errors import ConfigError

    if args.as_of or args.settled is not None:
        raise ConfigError("--as-of and --settled go with --from-journal")
    settings = load(args.config, **(with_data(args) | overrides_of(args)))
    check_outputs(args, settings, "--html", "--json")
    if settings.source == "file":
        return train_files(settings, say, _labels(args), args.learn_from)
    if args.labels or args.learn_from:
        raise ConfigError("--labels and --from go with --data; simulated history has its own")
    days = 14.0 if args.days is None else args.days
    if not 0 < days <= 3_660:
        raise ConfigError(f"--days {days:g}: expected more than 0 and at most ten years")
    return train_simulated(settings, say, days=days)


def _of_journal(args: argparse.Namespace, say: Any) -> Trained:
    """Learn from the journal of a flow."""
    from dataflows.cli.certify import asked, time_of
    from dataflows.from_journal import train_journal
    from features.errors import ConfigError

    others = (("--data", args.data), ("--labels", args.labels), ("--mapping", args.mapping),
              ("--days", args.days))  # fmt: skip
    faults = [f"{name} does not go with --from-journal" for name, value in others if value]
    if args.settled is not None and not 0 <= args.settled <= 3_660:
        faults.append(f"--settled {args.settled:g}: expected 0 to 3660 days")
    if faults:
        raise ConfigError(faults)
    times = argparse.Namespace(**vars(args), since=args.learn_from, until=None)
    given, state_dir, from_us, _ = asked(times)
    return train_journal(
        state_dir,
        args.config,
        given,
        say,
        from_us=from_us,
        as_of_us=time_of("--as-of", args.as_of),
        settled_s=None if args.settled is None else args.settled * 86_400.0,
        workers=args.workers,
    )


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


def _show(trained: Trained, out: Any) -> None:
    """The figures on held-out rows, as a table."""
    from dataflows.observe.live import judgement_table

    if trained.bundle.metrics.get("detectors"):
        print("\nOn rows held out of training:", file=out)
        judgement_table(trained.bundle.metrics, out)


def _report(trained: Trained) -> dict[str, Any]:
    """What `--json` writes."""
    training = trained.bundle.training
    return {
        "in": trained.events,
        "bundle": trained.bundle.id,
        "history_s": round(trained.history_s, 3),
        "training_s": round(trained.training_s, 3),
        "rows": {name: about["rows"] for name, about in training["sets"].items()},
        **({"journal": training["journal"]} if "journal" in training else {}),
        **trained.bundle.metrics,
    }
