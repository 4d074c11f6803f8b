"""`waxwing score`: a file of events comes back with scores, votes and reasons, row by row.

The rows go through the features, models and votes of the live flow in the order of their times.
With --fit-until the models are fitted on the rows before that time, labelled or not, and all rows
are scored with them; with --bundle by models that are there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflows.settings import Settings

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "score", help="scores for every row of a file", description=__doc__
    )
    settings_arguments(parser)
    add = parser.add_argument
    add("--data", metavar="F", required=True, help="[EVENT_TYPE=]file: CSV, JSONL, Parquet, or raw"
        " lines with a mapping")  # fmt: skip
    add("--mapping", metavar="M",
        help="mapping of foreign columns: shipped name or file; `waxwing mapping guess F` proposes"
        " one")  # fmt: skip
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--bundle", metavar="B", help="models to score with")
    how.add_argument("--fit-until", metavar="T",
                     help="fit models on the rows before this time, ISO 8601")  # fmt: skip
    add("--out", metavar="S", required=True, help="file to write: .parquet, .csv or .jsonl")
    add("--html", metavar="R", help="write a report to look at")
    add("--json", metavar="P", help="write the summary as JSON; - is stdout")
    add("--keep", metavar="B", help="keep what --fit-until fits as this bundle, for `waxwing run`")
    add("--unlabelled", action="store_true", help="fit without the labels that the mapping names")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.report import write_json
    from dataflows.score_summary import incidents, judge, print_summary, summary_of
    from dataflows.scored_table import write_table

    settings = _settings(args)
    out = sys.stderr if args.json == "-" else sys.stdout

    def say(text: str) -> None:
        print(f"waxwing: {text}", file=out, flush=True)

    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="waxwing-score-") as folder:
        if args.fit_until is not None:
            kept = Path(folder) / "bundle" if args.keep is None else Path(args.keep)
            settings = settings.model_copy(
                update={"bundle": kept, "warm_state": kept.parent / f"{kept.name}-warm"}
            )
        table = _scored(args, settings, say)
    write_table(table.rows, Path(args.out))
    found = incidents(table.rows)
    summary = summary_of(table, found) | judge(table, settings)
    summary["seconds"] = round(time.perf_counter() - begun, 3)
    if args.html is not None:
        from dataflows.score_report import write_report

        write_report(Path(args.html), table, summary, found, str(args.data))
    print_summary(summary, found, out)
    said = f"scores in {args.out}" + (f", report in {args.html}" if args.html else "")
    if args.fit_until is not None and args.keep is not None:
        said += f", models in {args.keep}: run with `--set bundle={args.keep}`"
    say(said)
    write_json(args.json, summary)
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    """The settings of the command line; every fault before any work."""
    from dataflows.cli.run import check_outputs, overrides_of, with_data
    from dataflows.report import check_json
    from dataflows.settings import load
    from features.errors import BundleError, ConfigError

    faults: list[str] = []
    for option, path in (("--out", args.out), ("--html", args.html)):
        try:
            check_json(path, option)
        except ConfigError as error:
            faults += error.faults
    if Path(args.out).suffix.lower() not in (".parquet", ".csv", ".jsonl"):
        faults.append(f"--out {args.out}: expected a name that ends in .parquet, .csv, .jsonl")
    if args.keep is not None and args.fit_until is None:
        faults.append("--keep goes with --fit-until")
    if args.unlabelled and args.fit_until is None:
        faults.append("--unlabelled goes with --fit-until")
    if args.keep is not None:
        from models.bundle import check_place

        try:
            check_place(Path(args.keep))
        except BundleError as error:
            faults.append(f"--keep: {error}")
    if args.fit_until is not None:
        from dataflows.training import moment_us

        try:
            moment_us(args.fit_until)
        except ConfigError as error:
            faults += [f"--fit-until {fault}" for fault in error.faults]
    args.data = [args.data]
    bundle = {} if args.bundle is None else {"bundle": args.bundle}
    try:
        settings = load(args.config, **(with_data(args) | overrides_of(args) | bundle))
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    try:
        check_outputs(args, settings, "--out", "--html", "--json")
    except ConfigError as error:
        faults += error.faults
    (args.data,) = settings.file_paths.values()
    if faults:
        raise ConfigError(faults)
    return settings


def _scored(args: argparse.Namespace, settings: Settings, say: Callable[[str], None]) -> Any:
    """Fit where that is asked for, then score."""
    from dataflows.scored_table import score_table

    keep = args.html is not None
    if args.fit_until is None:
        with _bar(_events(settings), "scoring") as progress:
            return score_table(settings, say, progress, keep_series=keep)
    from dataflows.training import moment_us, train_files

    fit_us = moment_us(args.fit_until)
    before = settings.model_copy(update={"file_until": args.fit_until})
    with _bar(_check_fit(before, args.fit_until), "fitting") as progress:
        trained = train_files(before, say, blind=args.unlabelled, progress=progress)
    known = any(about["labelled"] for about in trained.bundle.training["sets"].values())
    with _bar(_events(settings), "scoring") as progress:
        return score_table(settings, say, progress, fit_us=fit_us, labelled=known, keep_series=keep)


def _check_fit(before: Settings, until: str) -> int:
    """Most events there are before the time up to which models are to be fitted.

    Raises
    ------
    ConfigError : there are none
    """
    from dataflows.sources.files import FileReader
    from features.errors import ConfigError

    reader = FileReader(before)
    try:
        events = sum(reader.events_max.values())
        if not events:
            ((name, path),) = before.file_paths.items()
            raise ConfigError(
                f"--fit-until {until}: {path} has no row of {name} before it; its times are"
                f" {reader.span}"
            )
        return events
    finally:
        reader.close()


def _events(settings: Settings) -> int:
    """Most events of the file, for a progress bar; 0, and it stays unread, where none is shown."""
    from rich.console import Console

    from dataflows.sources.files import FileReader

    if not Console(stderr=True).is_terminal:
        return 0
    reader = FileReader(settings)
    try:
        return sum(reader.events_max.values())
    finally:
        reader.close()


@contextmanager
def _bar(total: int, what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr while the block lasts; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} events"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda events, _time_us: bar.update(task, completed=events)
