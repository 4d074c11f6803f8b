"""`waxwing explain`: everything an alert was made of, computed again from the journal.

It needs the state folder, the models and the source of then, and reads nothing else; a flow that
is live on the folder is not disturbed.
"""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_parser", "run"]

FEATURES_SHOWN_MAX = 15
"""Oddest features shown in the terminal; JSON and HTML have all. Chosen: a screen."""

EVENTS_SHOWN_MAX = 8
"""Last events of the entity shown in the terminal. Chosen: a screen."""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "explain",
        help="why an alert was sent, computed again",
        description=__doc__,
        epilog="Ends with status 0, or 2 where the alert is not known or its round cannot be"
        " replayed. Settings are those the flow ran with, as it recorded them; --set wins.",
    )
    settings_arguments(parser)
    add = parser.add_argument
    add("id", metavar="ALERT_ID", help="id of an alert, as in alerts.jsonl")
    add("--json", metavar="P", help="write all of it as JSON; - is stdout")
    add("--html", metavar="P", help="write it as one page that needs no other file")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    import sys

    from dataflows.cli.run import overrides_of
    from dataflows.explain import explain
    from dataflows.page import write_page
    from dataflows.report import check_json, write_json
    from dataflows.settings import load

    check_json(args.html, "--html")
    given = overrides_of(args)
    state_dir = load(args.config, **given).state_dir
    found = explain(state_dir, args.config, given, args.id)
    out = sys.stderr if args.json == "-" else sys.stdout
    for line in lines_of(found):
        print(line, file=out)
    write_json(args.json, found)
    if args.html is not None:
        write_page(args.html, found)
    return 0


def lines_of(found: dict[str, Any]) -> list[str]:
    """The explanation for a terminal, nothing in it that one could obey."""
    from dataflows.alerts.base import printable
    from dataflows.certify import moment

    alert, vote, replayed = found["alert"], found["vote"], found["replayed"]
    lines = [
        alert["summary"],
        f"{alert['anomaly_type']}, {alert['severity']}, event {alert['event_id']} at"
        f" {moment(alert['time_us'])}, round {alert['round']}"
        f" (cut at {moment(alert['cut_time_us'])})",
        f"the alert as replayed is {'the same' if found['same'] else 'NOT the same'}, bit for bit",
        "",
        f"vote {number(vote['score'], 6)}, needs {number(vote['threshold'], 6)} and"
        f" {vote['votes_needed']} of the detectors",
        *(
            f"  {d['name']:<20} {number(d['score'], 6):>10}  threshold"
            f" {number(d['threshold'], 6):>10}  {'votes' if d['vote'] else '-':<6}"
            f" share {number(d['share'], 2):>5}"
            + ("" if d["stage"] == "live" else f"  {d['stage']}")
            for d in found["detectors"]
        ),
        "",
        "features, the oddest first",
        *(
            f"  {f['name']:<34} {number(f['value'], 4):>14}  {f['text']}"
            for f in found["features"][:FEATURES_SHOWN_MAX]
        ),
    ]
    if found["control"]:
        lines += ["", "control records in force", *(f"  {record}" for record in found["control"])]
    lines += ["", f"last events of {alert['entity_type']} {alert['entity']}"]
    for event in found["last_events"][-EVENTS_SHOWN_MAX:]:
        kept = {k: v for k, v in event.items() if k not in ("event_type", "time_us")}
        said = " ".join(f"{k}={v}" for k, v in kept.items() if v is not None)
        lines.append(f"  {moment(event['time_us'])} {event['event_type']} {said}")
    lines += [
        "",
        f"bundle {found['bundle']['id']}, catalogue {found['catalog']}; replayed"
        f" {replayed['rounds']} rounds in {len(replayed['groups'])} groups,"
        f" {replayed['seconds']:.1f} s",
    ]
    lines += [f"{n} was {then} then and is {now} now" for n, (then, now) in
              found["other_versions"].items()]  # fmt: skip
    return [printable(line) for line in lines]


def number(value: float | None, digits: int) -> str:
    """A number for a column; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"
