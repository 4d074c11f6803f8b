"""`waxwing features list|show|verify`: what features there are, what each means, that it is right.

`verify` computes the features of all rows of a file and asks DuckDB for the same in SQL.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from features.catalog import Catalog
    from features.spec import Feature

__all__ = ["about", "add_parser", "run"]

NEAR_MAX = 5
"""Names suggested for an unknown one; chosen: what one takes in at a glance."""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser("features", help="list, show, verify", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    one = actions.add_parser("list", help="the features that are computed, one a line")
    settings_arguments(one)
    one.add_argument("--event-type", metavar="T", help="only those of this event type")
    how = one.add_mutually_exclusive_group()
    how.add_argument("--json", metavar="P", help="write them as JSON; - is stdout")
    how.add_argument(
        "--markdown", action="store_true", help="print the reference page, your own among them"
    )
    one = actions.add_parser("show", help="everything about one feature")
    settings_arguments(one)
    one.add_argument("name", metavar="NAME", help="a feature, or EVENT_TYPE.FEATURE")
    one.add_argument("--json", metavar="P", help="write it as JSON; - is stdout")
    one = actions.add_parser(
        "verify",
        help="compare every feature with what DuckDB finds in SQL",
        epilog="Ends with status 1 where a value differs, or no entity of the variant hot is hot.",
    )
    settings_arguments(one)
    one.add_argument(
        "--data",
        metavar="F",
        action="append",
        required=True,
        help="[EVENT_TYPE=]file, or a folder of files named after event types",
    )
    one.add_argument(
        "--mapping",
        metavar="M",
        help="mapping of foreign columns: shipped name or file (default: the shipped one whose"
        " columns the file has)",
    )
    one.add_argument(
        "--variant",
        metavar="V",
        action="append",
        help="as_is, dense (time divided by 1,440), long (windows of 1, 7, 30 days) or hot (5"
        " million simulated payments, up to 1,000 an hour of one entity); may be repeated"
        " (default: all)",
    )
    one.add_argument(
        "--hot-rows",
        type=int,
        metavar="N",
        help="payments of the variant hot (default: 5,000,000)",
    )
    one.add_argument("--json", metavar="P", help="write the comparison; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    if args.action == "verify":
        return _verify(args)
    from dataflows.cli.run import overrides_of
    from dataflows.report import write_json
    from dataflows.settings import load
    from features.catalog import catalog
    from features.reference import reference

    load(args.config, **overrides_of(args))
    cat = catalog()
    if args.action == "list" and args.markdown:
        _of_type(cat, args.event_type)
        wanted = None if args.event_type is None else (args.event_type,)
        sys.stdout.write(reference(catalog(wanted)))
        return 0
    report: dict[str, Any] = {"catalog": cat.version}
    if args.action == "list":
        found = _of_type(cat, args.event_type)
        if args.json != "-":
            _print_table(found)
            _print_chosen()
        report |= {"features": [about(f, cat) for f in found]} | _chosen_json()
    else:
        found = _named(cat, args.name)
        if args.json != "-":
            print("\n\n".join(_page(f, cat) for f in found))
        report |= {"features": [about(f, cat) for f in found]}
    write_json(args.json, report)
    return 0


def about(feature: Feature, catalog: Catalog) -> dict[str, Any]:
    """Everything about a feature, as plain values; what does not apply is left out."""
    from features.oracle import why_not
    from features.reference import formula

    readers = [
        f"{e}.{f.name}"
        for e in catalog.event_types
        for f in catalog.features(e)
        # One of the event alone may have the name of its column.
        if f is not feature
        and e == feature.event
        and feature.name in (_input(f.column), f.other, f.count)
    ]
    found = {
        "name": feature.name,
        "event_type": feature.event,
        "entity": feature.entity,
        "op": feature.op,
        "window_s": feature.window_s,
        "unit": feature.unit,
        "group": feature.group,
        "formula": formula(feature),
        "why": feature.why,
        "feeds": list(feature.feeds or (feature.event,)),
        "column": feature.column,
        "where": feature.where,
        "other": feature.other,
        "count": feature.count,
        "baseline": feature.baseline,
        "odd": {True: "high", False: "low", None: "both"}[feature.high_is_odd],
        "read_by": readers,
        "not_compared": why_not(feature),
    }
    return {key: value for key, value in found.items() if value not in (None, "", [])}


def _input(column: str | None) -> str:
    """The feature or column that a column names."""
    from features.catalog import inputs_of

    return inputs_of(column or "")[0]


def _print_chosen() -> None:
    """How many features the setting `features` chooses, and which it does not name itself."""
    from features.catalog import chosen

    taken = chosen()
    if taken is None:
        return
    print(f"\nchosen by the setting `features`: {taken.counts()}")
    for name, readers in taken.needed.items():
        print(f"  {name}: not named, read by {', '.join(readers)}")


def _chosen_json() -> dict[str, Any]:
    """The same as data; nothing where nothing is left out."""
    from features.catalog import chosen

    taken = chosen()
    if taken is None:
        return {}
    return {
        "left_out": list(taken.left_out),
        "needed": {name: list(readers) for name, readers in taken.needed.items()},
        "without_sequence": sorted(taken.without_sequence),
    }


def _of_type(cat: Catalog, event_type: str | None) -> list[Feature]:
    """The features of an event type, of all where none is named."""
    from features.errors import ConfigError

    if event_type is not None and event_type not in cat.event_types:
        raise ConfigError(
            f"--event-type {event_type!r}: {_near(event_type, cat.event_types)}event types with"
            f" features are {', '.join(cat.event_types)}"
        )
    return [f for e in cat.event_types if event_type in (None, e) for f in cat.features(e)]


def _named(cat: Catalog, name: str) -> list[Feature]:
    """The features of a name, one for each event type that has it."""
    from features.catalog import chosen
    from features.errors import ConfigError

    event, dot, bare = name.rpartition(".")
    everything = _of_type(cat, None)
    found = [f for f in everything if f.name == bare and (not dot or f.event == event)]
    out = [] if found or (taken := chosen()) is None else taken.left_out
    if left := [full for full in out if name in (full, full.partition(".")[2])]:
        raise ConfigError(
            f"features show: {' and '.join(left)}: left out by the setting `features`; add a"
            " pattern that names it"
        )
    if not found:
        raise ConfigError(
            f"features show: no feature {name!r}; {_near(bare, (f.name for f in everything))}"
            "`waxwing features list` names all"
        )
    return found


def _near(name: str, names: Iterable[str]) -> str:
    """The names that `name` may have meant."""
    near = difflib.get_close_matches(name, sorted(set(names)), n=NEAR_MAX, cutoff=0.5)
    return f"did you mean {' or '.join(near)}? " if near else ""


def _print_table(features: list[Feature]) -> None:
    """One line a feature."""
    from features.reference import spoken

    heads = ("name", "event type", "entity", "operation", "window", "unit", "group")
    rows = [
        (
            f.name,
            f.event,
            f.entity or "-",
            f.op,
            "-" if f.window_s is None else spoken(f.window_s),
            f.unit,
            f.group,
        )
        for f in features
    ]
    widths = [max(len(row[k]) for row in (heads, *rows)) for k in range(len(heads))]
    for row in (heads, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _page(feature: Feature, cat: Catalog) -> str:
    """A feature as a page of text."""
    from features.columns import derived_columns

    told = about(feature, cat)
    docs = {d.name: d.doc for d in derived_columns() if d.event in told["feeds"]}
    lines = [
        ("what it is", told["formula"]),
        ("in an alert", told["why"]),
        ("entity", told.get("entity", "none: of the event alone")),
        ("fed by", ", ".join(told["feeds"])),
        ("column", _with_doc(feature.column, docs)),
        ("condition", _with_doc(feature.where, docs)),
        ("other", feature.other),
        ("count", feature.count),
        ("operation", feature.op),
        ("window", None if feature.window_s is None else f"{feature.window_s} s"),
        ("unit", feature.unit),
        ("group", feature.group),
        ("usual value", feature.baseline),
        ("strange when", {"both": "high or low"}.get(told["odd"], told["odd"])),
        ("read by", ", ".join(told.get("read_by", ())) or None),
        ("verified", f"not: {told['not_compared']}" if "not_compared" in told else "by SQL"),
    ]
    shown = [f"  {label:<13} {text}" for label, text in lines if text]
    return "\n".join([f"{feature.event}.{feature.name}", *shown])


def _with_doc(name: str | None, docs: dict[str, str]) -> str | None:
    """A column with what it means, where it is made from fields."""
    doc = docs.get(_input(name))
    return f"{name} ({doc})" if doc else name


def _verify(args: argparse.Namespace) -> int:
    """Compare with DuckDB."""
    from dataclasses import replace

    from dataflows.cli.run import overrides_of, with_data
    from dataflows.report import check_json, write_json
    from dataflows.settings import declaration_faults, load
    from dataflows.sources.files import FileReader
    from dataflows.verify import VARIANTS, verify
    from features.catalog import catalog
    from features.errors import ConfigError

    names = list(dict.fromkeys(args.variant or VARIANTS))
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ConfigError(
            [f"--variant {name!r}: variants are {', '.join(VARIANTS)}" for name in unknown]
        )
    if args.hot_rows is not None and args.hot_rows < 1:
        raise ConfigError(f"--hot-rows {args.hot_rows}: expected at least 1")
    check_json(args.json)
    if not (args.mapping or declaration_faults(args.config, **overrides_of(args))):
        args.mapping = _fitting_mapping(args.data)
    settings = load(args.config, **(with_data(args) | overrides_of(args)))
    out = sys.stderr if args.json == "-" else sys.stdout

    def say(text: str) -> None:
        print(f"waxwing: {text}", file=out, flush=True)

    def progress(text: str) -> None:
        print(f"waxwing: {text}", file=sys.stderr, flush=True)

    variants = {name: VARIANTS[name] for name in names}
    if "hot" in variants and args.hot_rows is not None:
        variants["hot"] = replace(variants["hot"], simulated=args.hot_rows)

    def keep(report: dict[str, Any]) -> None:
        if args.json != "-":
            write_json(args.json, report)

    with _leaving_nothing():
        report = verify(
            settings, catalog(), lambda: FileReader(settings), variants, say, progress, keep
        )
    say(f"{len(report['not_compared'])} features are not compared:")
    for reason in dict.fromkeys(report["not_compared"].values()):
        mine = [name for name, why in report["not_compared"].items() if why == reason]
        say(f"  {', '.join(mine)}: {reason}")
    write_json(args.json, report)
    return 1 if report["mismatches"] or report["failed"] else 0


@contextlib.contextmanager
def _leaving_nothing() -> Iterator[None]:
    """Let a SIGTERM unwind like Ctrl-C: gigabytes lie in a temporary folder meanwhile."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fitting_mapping(items: list[str]) -> str | None:
    """The shipped mapping whose columns a bare file has; None where no file is bare, or none fits.

    A file with our own names is said as EVENT_TYPE=FILE.
    """
    from pathlib import Path

    from dataflows.sources.mapping import FOLDER, load_mapping
    from dataflows.sources.tables import open_table
    from features.events import event_types

    for item in items:
        if item.partition("=")[0] in event_types() or not Path(item).is_file():
            continue
        columns = open_table(Path(item)).columns
        for path in sorted(FOLDER.glob("*.toml")):
            if not load_mapping(path.stem).missing(columns, item):
                return path.stem
    return None
