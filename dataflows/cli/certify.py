"""`waxwing certify`: replay a stretch of the journal and say whether it is bit for bit the same.

It needs the state folder, the models and the source of then, and reads nothing else; a flow that
is live on the folder is not disturbed.
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
        epilog="Ends with status 0 where it is, 1 where something differs, 2 where it cannot be"
        " replayed. Settings are those the flow ran with, as it recorded them; --set wins.",
    )
    settings_arguments(parser)
    add = parser.add_argument
    add("--from", dest="since", metavar="T", help="cut time of the first round, ISO 8601")
    add("--to", dest="until", metavar="T", help="cut time before which the last round was cut")
    add("--workers", type=int, default=1, metavar="N", help="Bytewax workers (default 1)")
    add("--json", metavar="P", help="write the result; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.certify import certify
    from dataflows.report import write_json

    given, state_dir, since, until = asked(args)
    found = certify(state_dir, args.config, given, since, until, args.workers)
    print(told(found), file=sys.stderr if args.json == "-" else sys.stdout)
    write_json(args.json, found.report())
    return 0 if found.identical else 1


WORKERS_MAX = 16
"""Most workers of a replay; chosen: they share one interpreter, more gain nothing."""


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
    from dataflows.certify import moment

    where = (
        f"rounds {found.first_round} to {found.last_round}, cut from {moment(found.from_us)} to"
        f" {moment(found.until_us)}; replayed from round {found.base_round} in"
        f" {found.seconds:.1f} s"
    )
    other = "".join(
        f"\n{name} was {then} then and is {now} now"
        for name, (then, now) in found.other_versions.items()
    )
    if found.identical:
        return f"bit-identical, {found.events:,} events ({where}){other}"
    d = found.difference
    group = "" if d.group is None else f", group {d.group}"
    return (
        f"differs in round {d.round} (cut at {moment(d.cut_time_us)}){group}: {d.text}\n"
        f"the {found.rounds:,} rounds before are bit-identical, {found.events:,} events"
        f" ({where}){other}"
    )
