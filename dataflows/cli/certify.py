"""`waxwing certify`: replay a stretch of the journal and say whether it is bit for bit the same.

It needs the state folder, the models and the source of then, and reads nothing else; a flow that
is live on the folder is not disturbed. With `--upgrade` the models, rules and features are those of
now, and it says which alerts would have been others.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "certify",
        help="replay what was live, and say whether it is bit-identical",
        description=__doc__,
        epilog="Ends with status 0 where it is (with --upgrade: where no alert changes), 1 where"
        " something differs, 2 where it cannot be replayed. Settings are those the flow ran with,"
        " as it recorded them; --set wins.",
    )
    settings_arguments(parser)
    add = parser.add_argument
    add("--from", dest="since", metavar="T", help="cut time of the first round, ISO 8601")
    add("--to", dest="until", metavar="T", help="cut time before which the last round was cut")
    add("--workers", type=int, default=1, metavar="N", help="Bytewax workers (default 1)")
    add(
        "--upgrade", action="store_true",
        help="with the models, rules and features that settings name now: which alerts change",
    )  # fmt: skip
    add("--json", metavar="P", help="write the result; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.certify import certify
    from dataflows.report import write_json
    from dataflows.upgrade import upgrade

    given, state_dir, since, until = asked(args)
    out = sys.stderr if args.json == "-" else sys.stdout
    if args.upgrade:
        other = upgrade(state_dir, args.config, given, since, until, args.workers)
        print(upgrade_told(other), file=out)
        write_json(args.json, other.report())
        return 1 if other.changes else 0
    found = certify(state_dir, args.config, given, since, until, args.workers)
    print(told(found), file=out)
    write_json(args.json, found.report())
    return 0 if found.identical else 1


WORKERS_MAX = 16
"""Most workers of a replay; chosen: they share one interpreter, more gain nothing."""

CHANGES_SHOWN = 20
"""Alerts told one by one to a person; chosen: a screen. JSON has all."""


def asked(args: argparse.Namespace) -> tuple[dict[str, Any], Path, int | None, int | None]:
    """What a replay is of: settings that were given, state folder, begin and end in us UTC.

    Raises
    ------
    ConfigError : no workers, or too many; a setting or a time that is none
    """
    from dataflows.cli.run import overrides_of
    from dataflows.settings import load
    from features.errors import ConfigError

    if not 1 <= args.workers <= WORKERS_MAX:
        raise ConfigError(f"--workers: expected 1 to {WORKERS_MAX}, got {args.workers}")
    given = overrides_of(args)
    state_dir = load(args.config, **given).state_dir
    return given, state_dir, time_of("--from", args.since), time_of("--to", args.until)


def time_of(name: str, text: str | None) -> int | None:
    """Microseconds UTC of an option, None where it is not given.

    Raises
    ------
    ConfigError : it is no time with an offset
    """
    from dataflows.settings import is_time
    from dataflows.sources.simulator import time_us_of
    from features.errors import ConfigError

    if text is None:
        return None
    try:
        return time_us_of(is_time(text))
    except ValueError as error:
        raise ConfigError(f"{name}: {error}; got {text}") from None


def told(found: Any) -> str:
    """The result for people."""
    from dataflows.alerts.base import printable
    from dataflows.certify import moment

    where, other = _where(found), _other_versions(found)
    if found.identical:
        return f"bit-identical, {found.events:,} events ({where}){other}"
    d = found.difference
    group = "" if d.group is None else f", group {d.group}"
    return (
        f"differs in round {d.round} (cut at {moment(d.cut_time_us)}){group}:"
        f" {printable(d.text)}\n"
        f"the {found.rounds:,} rounds before are bit-identical, {found.events:,} events"
        f" ({where}){other}"
    )


def upgrade_told(found: Any) -> str:
    """What an upgrade would have changed, for people."""
    from dataflows.alerts.base import printable

    counts = found.alerts
    named = (("bundle", found.bundle), ("features", found.catalog))
    lines = [
        f"{counts['then']:,} alerts then, {counts['now']:,} now: {counts['same']:,} the same,"
        f" {counts['gone']:,} gone, {counts['new']:,} new, {counts['changed']:,} changed;"
        f" {found.events:,} events ({_where(found)})",
        *(f"{what}: {then} then, {now} now" for what, (then, now) in named if then != now),
    ]
    for change in found.changes[:CHANGES_SHOWN]:
        scores = " -> ".join(
            "none" if score is None else f"{score:.6f} {severity}"
            for score, severity in (
                (change.score_then, change.severity_then),
                (change.score_now, change.severity_now),
            )
        )
        lines.append(
            f"  {change.what:8}{change.id_then or change.id_now}  round {change.round}"
            f"  {change.anomaly_type}  {change.entity_type} {printable(change.entity)}"
            f"  event {printable(change.event_id)}  {scores}"
        )
    left = len(found.changes) - CHANGES_SHOWN
    if left > 0:
        lines.append(f"  and {left:,} more; --json has all")
    return "\n".join(lines) + _other_versions(found)


def _where(found: Any) -> str:
    """Which rounds were replayed."""
    from dataflows.certify import moment

    return (
        f"rounds {found.first_round} to {found.last_round}, cut from {moment(found.from_us)} to"
        f" {moment(found.until_us)}; replayed from round {found.base_round} in"
        f" {found.seconds:.1f} s"
    )


def _other_versions(found: Any) -> str:
    """Lines on packages that are others than then."""
    return "".join(
        f"\n{name} was {then} then and is {now} now"
        for name, (then, now) in found.other_versions.items()
    )
