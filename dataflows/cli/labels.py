"""`waxwing labels`: what labels have said so far of a flow's alerts: live precision and recall.

It reads what the flow keeps with each snapshot; one that is live is not disturbed.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "labels", help="live precision and recall, by labels", description=__doc__
    )
    settings_arguments(parser)
    parser.add_argument("--json", metavar="P", help="write the counts; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.cli.run import overrides_of
    from dataflows.outcomes import Outcomes
    from dataflows.report import write_json
    from dataflows.settings import load
    from features.errors import StateError

    folder = load(args.config, **overrides_of(args)).state_dir
    if not folder.is_dir():
        raise StateError(f"state_dir {folder} does not exist; name the folder of a flow that ran")
    found = Outcomes(folder / "outcomes", None)
    report = {"round": found.round, **found.report()}
    print(_told(report), file=sys.stderr if args.json == "-" else sys.stdout)
    write_json(args.json, report)
    return 0


def at_most(found: dict[str, Any]) -> str:
    """What a recall is, where frauds may be among events of which the flow does not know."""
    return "at most " if found["unknown"] else ""


def _told(found: dict[str, Any]) -> str:
    """The counts for people."""
    lines = [
        f"alerts: {found['confirmed']:,} confirmed, {found['refuted']:,} refuted,"
        f" {found['open']:,} without a label; precision {_share(found['precision'])}",
        f"frauds: {found['confirmed']:,} with an alert, {found['missed']:,} without;"
        f" recall {at_most(found) if found['recall'] else ''}{_share(found['recall'])}",
    ]
    for one in found["anomaly_types"]:
        lines.append(
            f"  {one['anomaly_type']}: {one['confirmed']:,} confirmed, {one['refuted']:,} refuted;"
            f" precision {_share(one['precision'])}"
        )
    if found["unknown"]:
        lines.append(f"{found['unknown']:,} labels speak of events the flow may not have seen")
    if found["without_entities"]:
        lines.append(
            f"{found['without_entities']:,} labels name no entities: no risk feature knows of them"
            " (give `event_time` and `entities`)"
        )
    delay_s = found["delay_s"]["p50"]
    if delay_s is not None:
        lines.append(f"labels came {delay_s / 3_600:,.1f} h after their event (median)")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    """A share for people."""
    return "not known" if value is None else f"{value:.1%}"
