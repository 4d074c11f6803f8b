"""`waxwing control`: write a control record; it is in force everywhere from the same round on."""

from __future__ import annotations

import argparse
import json
import uuid
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "control", help="change thresholds, stages, mutes while it runs", description=__doc__
    )
    settings_arguments(parser)
    kinds = parser.add_subparsers(dest="kind", required=True)
    threshold = kinds.add_parser("threshold", help="score at which a detector votes")
    threshold.add_argument("anomaly_type")
    threshold.add_argument("detector", help="name of a detector, or ensemble")
    threshold.add_argument("value", type=float, help="in [0, 1]")
    mute = kinds.add_parser("mute", help="no alerts about an entity until a time")
    mute.add_argument("entity_type")
    mute.add_argument("entity")
    mute.add_argument("until", help="event time, ISO 8601")
    stage = kinds.add_parser("stage", help="off, shadow, canary or live")
    stage.add_argument("detector")
    stage.add_argument("stage")
    for kind in (threshold, mute, stage):
        kind.add_argument("--why", default="", help="kept in the journal")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.cli.run import overrides_of
    from dataflows.control.records import parse_record
    from dataflows.settings import load
    from dataflows.sources.simulator import time_us_of
    from features.errors import ConfigError
    from features.events import event_types
    from models.detectors import detector_names

    settings = load(args.config, **overrides_of(args))
    record: dict[str, Any] = {"kind": args.kind, "id": uuid.uuid4().hex, "why": args.why}
    faults = []
    if args.kind == "threshold":
        record |= {
            "anomaly_type": args.anomaly_type,
            "detector": args.detector,
            "value": args.value,
        }
    elif args.kind == "stage":
        record |= {"detector": args.detector, "stage": args.stage}
    else:
        record |= {
            "entity_type": args.entity_type,
            "entity": args.entity,
            "until_us": time_us_of(args.until),
        }
        known = sorted({e for t in event_types().values() for e in t.entities})
        if args.entity_type not in known:
            faults.append(f"unknown entity type {args.entity_type!r}; they are {', '.join(known)}")
    if args.kind != "mute" and args.detector not in (*detector_names(), "ensemble"):
        faults.append(f"unknown detector {args.detector!r}; they are {', '.join(detector_names())}")
    if faults:
        raise ConfigError(faults)
    line = json.dumps(record)
    parse_record(line)
    path = Path(settings.control_file or settings.state_dir / "control.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(f"written to {path}: {line}")
    return 0
