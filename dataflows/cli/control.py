"""`waxwing control`: write a control record; it is in force everywhere from the same round on.

It goes to `control_topic` where that is set, else to the control file, and is there for good when
the command says so. docs/control.md tells what each record does.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflows.control.records import Names
    from dataflows.settings import Settings

__all__ = ["add_parser", "names_of", "run"]

LIFTED_US = 0
"""A mute until then has ended, whatever time it is in the events."""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "control", help="change thresholds, stages, mutes, say what was fraud", description=__doc__
    )
    settings_arguments(parser)
    kinds = parser.add_subparsers(dest="kind", required=True)
    threshold = kinds.add_parser("threshold", help="score at which a detector votes")
    threshold.add_argument("anomaly_type")
    threshold.add_argument("detector", help="name of a detector, or ensemble")
    threshold.add_argument("value", type=float, help="in [0, 1]")
    mute = kinds.add_parser("mute", help="no alerts about an entity until a time")
    unmute = kinds.add_parser("unmute", help="lift a mute: alerts about an entity again")
    for kind in (mute, unmute):
        kind.add_argument("entity_type", help="card, customer, host, ...")
        kind.add_argument("entity")
    mute.add_argument("until", help="event time, ISO 8601 with its offset; now lifts the mute")
    stage = kinds.add_parser("stage", help="off, shadow, canary or live")
    stage.add_argument("detector")
    stage.add_argument("stage", help="off, shadow, canary or live")
    stage.add_argument(
        "--percent", type=float, help="of the entities, for which a canary votes (default 100)"
    )
    label = kinds.add_parser("label", help="verdict on an event: fraud or genuine")
    label.add_argument("event_type")
    label.add_argument("event_id")
    label.add_argument("verdict", help="fraud or genuine")
    label.add_argument("event_time", help="when the event was, ISO 8601 with its offset")
    label.add_argument(
        "entities", nargs="+", metavar="entity=name", help="those it touched: card=c1 merchant=m9"
    )
    label.add_argument("--source", help="who says so: chargeback, analyst, ...")
    follow = kinds.add_parser("recalibrate", help="let a rule follow live traffic, slowly")
    follow.add_argument("anomaly_type")
    follow.add_argument(
        "percent_a_day", help="most by which it moves in a day; off: as training fitted it"
    )
    follow.add_argument("--share", type=float, help="of the events that are to alert")
    follow.add_argument(
        "--freeze-ratio", type=float, help="stand still while so many times the share alert (3)"
    )
    follow.add_argument("--block-s", type=float, help="s that an estimate is made of (3600)")
    freeze = kinds.add_parser("freeze", help="a rule is not to follow for now")
    unfreeze = kinds.add_parser("unfreeze", help="it may follow again")
    for kind in (freeze, unfreeze):
        kind.add_argument("anomaly_type")
    for kind in (threshold, mute, unmute, stage, label, follow, freeze, unfreeze):
        kind.add_argument("--why", default="", help="kept in the journal")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.cli.run import overrides_of
    from dataflows.control.records import parse_record
    from dataflows.control.writing import write_record
    from dataflows.settings import load

    settings = load(args.config, **overrides_of(args))
    record = _record(args)
    line = json.dumps(record)
    parse_record(line, names_of(settings))
    where = write_record(settings, record)
    print(f"written to {where}: {line}")
    _note_no_flow(settings)
    return 0


def _note_no_flow(settings: Settings) -> None:
    """Say so where a record went into a folder that no flow has used: its name may be mistaken."""
    if settings.control_topic is not None or settings.control_file is not None:
        return
    if not (settings.state_dir / "journal").is_dir():
        print(
            f"waxwing: note: no flow has run with state_dir {settings.state_dir} yet; the record"
            " waits there for one, check the name if yours runs",
            file=sys.stderr,
        )


def _record(args: argparse.Namespace) -> dict[str, Any]:
    """The record that the arguments ask for.

    Raises
    ------
    ConfigError : a percent without a canary, a time that is none, an entity without a name
    """
    from features.errors import ConfigError

    kind = args.kind.removeprefix("un")
    record: dict[str, Any] = {"kind": kind, "id": uuid.uuid4().hex, "why": args.why}
    if kind == "threshold":
        named = ["anomaly_type", "detector", "value"]
    elif kind == "stage":
        named = ["detector", "stage"]
        if args.percent is not None:
            if args.stage != "canary":
                raise ConfigError(
                    f"--percent is the share of a canary, got stage {args.stage!r}; say canary or"
                    " leave it out"
                )
            record["percent"] = args.percent
    elif kind == "label":
        named = ["event_type", "event_id", "verdict"]
        record["event_time_us"] = _moment_us("event_time", args.event_time)
        record["entities"] = _entities(args.entities)
        if args.source is not None:
            record["source"] = args.source
    elif kind == "recalibrate":
        named = ["anomaly_type"]
        record["percent_a_day"] = _percent(args.percent_a_day)
        told = {name: getattr(args, name) for name in ("share", "freeze_ratio", "block_s")}
        record |= {name: value for name, value in told.items() if value is not None}
    elif kind == "freeze":
        named = ["anomaly_type"]
        record["state"] = "on" if args.kind == kind else "off"
    else:
        named = ["entity_type", "entity"]
        record["until_us"] = LIFTED_US if args.kind == "unmute" else _until_us(args.until)
    return record | {name: getattr(args, name) for name in named}


def _percent(text: str) -> float:
    """A number of per cent, 0 for off; ConfigError where it is neither."""
    from features.errors import ConfigError

    try:
        return 0.0 if text == "off" else float(text)
    except ValueError:
        raise ConfigError(f"percent_a_day: expected a number or off, got {text!r}") from None


def _until_us(text: str) -> int:
    """When a mute ends; ConfigError as of `_moment_us`."""
    return LIFTED_US if text == "now" else _moment_us("until", text, ", or now")


def _moment_us(what: str, text: str, other: str = "") -> int:
    """Microseconds of an ISO 8601 text.

    Raises
    ------
    ConfigError : no time, or one without its offset
    """
    from datetime import datetime

    from dataflows.sources.simulator import time_us_of
    from features.errors import ConfigError

    try:
        if datetime.fromisoformat(text).tzinfo is not None:
            return time_us_of(text)
    except ValueError:
        pass
    raise ConfigError(
        f"{what}: expected an ISO 8601 time with its offset, such as 2026-03-02T00:00:00Z{other};"
        f" got {text!r}"
    )


def _entities(items: list[str]) -> dict[str, str]:
    """`card=c1` of each; ConfigError where one is not."""
    from features.errors import ConfigError

    faults = [item for item in items if not all(item.partition("=")[::2])]
    if faults:
        raise ConfigError([f"entity {item!r}: expected entity=name, as card=c1" for item in faults])
    return {item.partition("=")[0]: item.partition("=")[2] for item in items}


def names_of(settings: Settings) -> Names:
    """What the flow of these settings knows; where its rules are not at hand, all that anyone may.

    The flow itself has the last word: what it does not know becomes a dead letter.
    """
    from dataflows.control.records import Names
    from models.bundle import read_head
    from models.detectors import detector_names
    from models.voting import Voting

    path = settings.voting or settings.bundle / "voting.toml"
    if not path.exists():
        return Names.of(None, sorted({*settings.detectors, *detector_names()}))
    voting, detectors = Voting.load(path), settings.detectors
    if settings.detectors_asked is None and (settings.bundle / "bundle.json").is_file():
        named = read_head(settings.bundle)["detectors"].values()
        detectors = list(dict.fromkeys(name for names in named for name in names))
    return Names.of(voting, detectors)
