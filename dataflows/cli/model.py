"""`waxwing model`: which models have a say in a flow, and changing it while it runs.

A model is a bundle (its folder, archive or URL, or the 16 hex digits of its id) or a detector. What
is changed is a control record: it is in force on all workers from the same round on, no event is
lost, and `waxwing model rollback` takes it back. docs/models.md tells what each stage does.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflows.settings import Settings
    from dataflows.stages import Standing

__all__ = ["add_parser", "run"]

WAIT_S = 10.0
"""How long a change is waited for. Chosen: a bundle is copied and loaded in a second or two."""

FLAGS_EVERY_S = 2.0
"""How often flags are looked at. Chosen: what a person who has switched one waits for."""

DAY_S = 86_400.0

DAYS_MAX = 366.0
"""Longest comparison. Chosen: longer than any retention in use."""

EXAMPLES_MAX = 1_000
"""Most examples of a kind. Chosen: a page that a browser still shows."""

EXIT_NOT_HEARD = 1
"""The record is written, and no flow has heard it in time."""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "model",
        help="promote, roll back, try models beside the live ones",
        description=__doc__,
        epilog="Ends with status 0, 1 where no flow has heard of a change within --wait, 2 where"
        " it was refused.",
    )
    settings_arguments(parser)
    acts = parser.add_subparsers(dest="act", required=True)
    told = [
        acts.add_parser("list", help="what is in force, and what stands by"),
        acts.add_parser("history", help="who changed what, when and why"),
    ]
    for act in told:
        act.add_argument("--json", metavar="P", help="write it as JSON; - is stdout")
    stage = acts.add_parser("stage", help="off, shadow, canary or live")
    stage.add_argument("model", help="folder, archive, URL, id of a bundle; a detector")
    stage.add_argument("stage", choices=("off", "shadow", "canary", "live"))
    stage.add_argument("--percent", type=float, help="of the entities, for a canary (default 100)")
    promote = acts.add_parser("promote", help="live: it decides from now on")
    promote.add_argument(
        "model", nargs="?", help="as above; without it the one bundle beside the live one"
    )
    rollback = acts.add_parser("rollback", help="as it was before the last change of a stage")
    rollback.add_argument("model", nargs="?", help="a bundle: only where it has a say")
    _compare_arguments(acts.add_parser("compare", help="a bundle beside the live one, before"))
    follow = acts.add_parser(
        "follow", help="do what the flags of an OpenFeature provider say",
        description="Flags waxwing.bundle, waxwing.candidate and waxwing.detector.NAME become"
        " control records when their text changes (docs/models.md).",
    )  # fmt: skip
    follow.add_argument(
        "--provider", metavar="P", required=True,
        help="MODULE:NAME or FILE.py:NAME; NAME, called without arguments, gives the provider",
    )  # fmt: skip
    follow.add_argument(
        "--every", type=float, default=FLAGS_EVERY_S, metavar="S",
        help=f"seconds between looks at the flags ({FLAGS_EVERY_S:g})",
    )  # fmt: skip
    follow.add_argument("--once", action="store_true", help="look once, and wait as others do")
    for act in (stage, promote, rollback):
        act.add_argument("--why", default="", help="kept in the journal")
        act.add_argument("--by", help="who says so (default: the user)")
    for act in (stage, promote, rollback, follow):
        act.add_argument(
            "--wait", type=float, default=WAIT_S, metavar="S",
            help=f"how long to wait until the flow has heard it ({WAIT_S:g}); 0 does not",
        )  # fmt: skip
    for act in acts.choices.values():
        # Also behind the act, where they do not take the place of those before it.
        act.add_argument("--config", dest="config_behind", metavar="F", help="settings file (TOML)")
        act.add_argument(
            "--set", dest="set_behind", metavar="NAME=VALUE", action="append", default=[],
            help="one setting; may be repeated",
        )  # fmt: skip


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    """What `waxwing model compare` takes."""
    parser.description = (
        "What a bundle would have said beside the live one: rows that a flow has kept are scored,"
        " its journal is replayed with both, or files are run through the engine. Nothing is sent;"
        " a live flow is not disturbed."
    )
    add = parser.add_argument
    add("candidate", metavar="CANDIDATE", help="folder, archive, URL, id of a bundle")
    add("--days", type=float, metavar="N", help="the last N days (cut time) that are kept")
    add("--exact", action="store_true",
        help="replay the journal: every event, in place of a sample of the entities")  # fmt: skip
    add("--from", dest="since", metavar="T", help="cut time of the first round, ISO 8601")
    add("--to", dest="until", metavar="T", help="cut time before which the last round was cut")
    add("--data", metavar="F", action="append", default=[],
        help="files in place of a journal: [EVENT_TYPE=]file, or a folder of them")  # fmt: skip
    add("--mapping", metavar="M", help="mapping of foreign columns: shipped name or file")
    add("--labels", metavar="F",
        help="with --data: file with the event_id of known frauds, or of verdicts")  # fmt: skip
    add("--examples", type=int, default=5, metavar="N",
        help="examples of each anomaly type and direction (default 5)")  # fmt: skip
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="with --exact: Bytewax workers (default 1)",
    )
    add("--json", metavar="P", help="write it as JSON; - is stdout")
    add("--html", metavar="P", help="write it as one page that needs no other file")


def _compare(args: argparse.Namespace) -> int:
    """Run `waxwing model compare`."""
    from dataflows.cli.certify import asked
    from dataflows.compare import compare_files, compare_journal
    from dataflows.compare_report import comparison_lines, write_comparison
    from dataflows.compare_rows import compare_rows
    from dataflows.placed import placed
    from dataflows.report import check_json, write_json

    check_json(args.html, "--html")
    _check_compare(args)
    out = sys.stderr if args.json == "-" else sys.stdout
    if args.data:
        from dataflows.cli.run import check_outputs, settings_of
        from dataflows.known import read_attacks

        settings = settings_of(args)
        check_outputs(args, settings, "--html", "--json")
        frauds = read_attacks(Path(args.labels)) if args.labels else None

        def say(text: str) -> None:
            print(f"waxwing: {text}", file=out, flush=True)

        candidate = placed(args.candidate, settings.state_dir)
        found = compare_files(settings, candidate, frauds, say, args.examples)
    else:
        given, state_dir, since, until = asked(args)
        candidate = placed(args.candidate, state_dir)
        of = (state_dir, args.config, given, candidate, args.days, since, until)
        if args.exact:
            found = compare_journal(*of, args.workers, args.examples)
        else:
            found = compare_rows(*of, args.examples)
    for line in comparison_lines(found):
        print(line, file=out)
    if args.html is not None:
        write_comparison(args.html, found)
    write_json(args.json, found)
    return 0


def _check_compare(args: argparse.Namespace) -> None:
    """ConfigError with everything wrong with the options of a comparison."""
    from features.errors import ConfigError

    faults = []
    if args.days is not None and not 0.0 < args.days <= DAYS_MAX:
        faults.append(f"--days {args.days:g}: expected more than 0 and at most {DAYS_MAX:g}")
    if args.days is not None and (args.since or args.until):
        faults.append("--days: of the last days, and --from or --to name others; leave one out")
    if args.data and (args.days is not None or args.since or args.until):
        faults.append("--data: files are compared whole; --days, --from and --to are of a journal")
    if args.data and args.exact:
        faults.append("--exact: of a journal; files are compared whole anyway")
    if args.workers != 1 and not args.exact:
        faults.append("--workers: goes with --exact")
    if not args.data and (args.labels or args.mapping):
        faults.append("--labels and --mapping go with --data; a journal has its labels in it")
    if not 0 <= args.examples <= EXAMPLES_MAX:
        faults.append(f"--examples {args.examples}: expected 0 to {EXAMPLES_MAX}")
    if faults:
        raise ConfigError(faults)


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows import stages
    from dataflows.cli.run import overrides_of
    from dataflows.report import write_json
    from dataflows.settings import load

    args.set, args.config = [*args.set, *args.set_behind], args.config_behind or args.config
    if args.act == "compare":
        return _compare(args)
    settings = load(args.config, **overrides_of(args))
    if args.act == "follow":
        return _follow(args, settings)
    if args.act not in ("list", "history"):
        return _change(args, settings)
    out = sys.stderr if args.json == "-" else sys.stdout
    if args.act == "list":
        standing = stages.standing(settings)
        lines = _standing_lines(standing)
        write_json(args.json, standing)
    else:
        changes = stages.history(settings)
        lines = [_change_line(change) for change in changes] or ["nothing was changed"]
        write_json(args.json, {"changes": changes})
    for line in lines:
        print(line, file=out)
    return 0


def _change(args: argparse.Namespace, settings: Settings) -> int:
    """Write a record and wait until it is in force."""
    import getpass

    from dataflows import stages
    from dataflows.cli.control import names_of
    from dataflows.control.records import parse_record
    from dataflows.control.writing import write_record

    record = _record(args, settings)
    record |= {"id": uuid.uuid4().hex, "by": args.by or getpass.getuser(), "why": args.why}
    names = names_of(settings) if record["kind"] == "stage" else None
    parse_record(json.dumps(record), names)
    before = stages.in_force(settings)
    return _waited(args, settings, record, before, write_record(settings, record))


def _waited(
    args: argparse.Namespace,
    settings: Settings,
    record: dict[str, Any],
    before: Standing,
    where: str,
) -> int:
    """Wait until a record that was written to `where` is in force, and say so."""
    from dataflows import stages
    from features.errors import ConfigError

    cutting = stages.is_cutting(settings)
    if not cutting or args.wait <= 0.0:
        when = "" if cutting else "; no flow cuts rounds there now, one that starts will hear it"
        print(f"written to {where}{when}")
        return 0
    found = stages.heard(settings, record["id"], before, args.wait)
    if found is None:
        print(
            f"waxwing: written to {where}; no flow has heard it within {args.wait:g} s"
            " (`waxwing model history` says when one does)",
            file=sys.stderr,
        )
        return EXIT_NOT_HEARD
    if found.refused is not None:
        raise ConfigError(f"refused in round {found.round}: {found.refused}")
    if record["kind"] == "rollback" and not found.changed:
        what = (
            f"bundle {record['bundle']} has no say"
            if "bundle" in record
            else "there is none to undo"
        )
        print(f"heard in round {found.round}: nothing changed, {what}")
        return 0
    print(f"in force from round {found.round} on: {stages.said(record)}")
    return 0


def _follow(args: argparse.Namespace, settings: Settings) -> int:
    """Write a record whenever a flag changes, until it is stopped."""
    from dataflows import stages
    from dataflows.cli.control import names_of
    from dataflows.context import StopSwitch, stop_on_signals
    from dataflows.flags import FlagFollower, flag_client
    from features.errors import ConfigError

    if not 0.0 < args.every <= DAY_S:
        raise ConfigError(f"--every {args.every:g}: expected more than 0 and at most {DAY_S:g} s")

    def say(text: str) -> None:
        print(f"waxwing: {text}", file=sys.stderr, flush=True)

    follower = FlagFollower(settings, flag_client(args.provider), names_of(settings), say)
    if args.once:
        before = stages.in_force(settings)
        written = follower.look()
        ends = [_waited(args, settings, record, before, "control") for record in written]
        if not written:
            print("nothing changed")
        return max(ends, default=0)
    stop = StopSwitch()
    stop_on_signals(stop)
    while not stop():
        follower.look()
        stop.wait(args.every)
    return 0


def _record(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """The record that the arguments ask for.

    Raises
    ------
    ConfigError, BundleError : a model that nobody knows, a percent without a canary
    """
    from dataflows.stages import target_of
    from features.errors import ConfigError

    if args.act == "rollback":
        target = {} if args.model is None else target_of(args.model)
        if "detector" in target:
            raise ConfigError(
                "rollback: expected a bundle or nothing; a detector goes back with `waxwing model"
                f" stage {args.model} live`, or with the rollback of the last change"
            )
        target = {name: target[name] for name in target if name not in ("path", "rules")}
        return {"kind": "rollback"} | target
    stage = "live" if args.act == "promote" else args.stage
    target = target_of(args.model) if args.model is not None else _only_one(settings)
    record = {"kind": "stage" if "detector" in target else "bundle"} | target | {"stage": stage}
    if getattr(args, "percent", None) is not None:
        if stage != "canary":
            raise ConfigError(
                f"--percent is the share of a canary, got stage {stage!r}; say canary or leave it"
                " out"
            )
        record["percent"] = args.percent
    return record


def _only_one(settings: Settings) -> dict[str, Any]:
    """The one bundle beside the live one.

    Raises
    ------
    ConfigError : there is none, or several
    """
    from dataflows.stages import in_force
    from features.errors import ConfigError

    bundles = in_force(settings).control.bundles
    beside = [name for name, (stage, _) in bundles.items() if stage != "live"]
    if len(beside) != 1:
        there = f"there are {', '.join(beside)}" if beside else "there is none"
        raise ConfigError(
            f"promote: expected one bundle beside the live one in {settings.state_dir}, {there};"
            " say which (its folder or id)"
        )
    return {"bundle": beside[0]}


def _standing_lines(found: dict[str, Any]) -> list[str]:
    """What is in force, for a terminal."""
    lines = [f"{'bundle':<17} {'stage':<12} {'where':<40} detectors"]
    for one in found["bundles"]:
        stage = one["stage"] + (f" {one['percent']:g} %" if one["stage"] == "canary" else "")
        where = one["folder"] or "gone"
        lines.append(f"{one['bundle']:<17} {stage:<12} {where:<40} {', '.join(one['detectors'])}")
        counts = one["counts"]
        if counts and one["stage"] in ("shadow", "canary"):
            lines.append(
                f"{'':<17} of {counts['rows']:,} events it would flag {counts['flagged']:,}:"
                f" {counts['new']:,} that the live one does not; it misses {counts['gone']:,}"
            )
    for one in found["detectors"]:
        share = f" {one['percent']:g} %" if one["stage"] == "canary" else ""
        lines.append(f"detector {one['detector']}: {one['stage']}{share}")
    lines.append(
        f"in force in round {found['round']}; {found['rollbacks']} changes can be rolled back"
    )
    return lines


def _change_line(change: dict[str, Any]) -> str:
    """A line of the history."""
    from dataflows import stages
    from dataflows.alerts.base import printable
    from dataflows.certify import moment

    record = change["record"]
    said = "refused" if change["refused"] else ""
    text = f"{moment(change['cut_time_us'])} round {change['round']:>8}  "
    try:
        text += stages.said(record)
    except (KeyError, TypeError, ValueError):  # a refused one may lack anything
        text += json.dumps(record)
    notes = [said and f"refused: {change['refused']}"]
    notes += [f"{k}: {record[k]}" for k in ("by", "why") if record.get(k)]
    return printable(text + "".join(f"; {note}" for note in notes if note))
