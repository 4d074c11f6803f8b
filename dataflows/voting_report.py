"""Where a rule's thresholds were set: its precision-recall curve with the chosen point, for people.

Of rows held out of training (`waxwing train --html`), or of the events that `waxwing evaluate
--fit-voting` fitted them on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dataflows.charts import Line, Plot, grid, page, section, table
from dataflows.report import write_text

__all__ = ["voting_lines", "voting_sections", "write_voting"]


def write_voting(path: Path, told: Mapping[str, Any], about: str) -> None:
    """Write the curves of all rules as one page.

    Parameters
    ----------
    told : event type -> its choice, in the keys of docs/json.md
    about : stands under the title

    Raises
    ------
    ConfigError : the disk refuses it
    """
    text = page("Where the thresholds are", about, voting_sections(told))
    write_text(path, text, "--html", errors="backslashreplace")


def voting_lines(told: Mapping[str, Any]) -> list[str]:
    """One sentence for each event type whose share was chosen by what mistakes cost."""
    return [
        f"{name}: thresholds at {100 * one['chosen']['share']:.3g} % of false alarms cost least"
        f" (recall {_share(one['chosen']['recall'])}, precision"
        f" {_share(one['chosen']['precision'])})"
        for name, one in told.items()
        if "costs" in one and one["curve"]
    ]


def voting_sections(told: Mapping[str, Any]) -> list[str]:
    """The curve of each rule with the chosen point, and the points in numbers."""
    return [_section(name, one) for name, one in told.items() if one["curve"]]


def _share(value: float) -> str:
    """A share as per cent."""
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _section(name: str, one: Mapping[str, Any]) -> str:
    """One rule's curve."""
    chosen, curve = one["chosen"], one["curve"]
    told = [point for point in curve if not math.isnan(point["precision"])]
    recall = np.array([point["recall"] for point in told])
    precision = np.array([point["precision"] for point in told])
    mark = np.array([[chosen["recall"], chosen["precision"]]])
    mark = mark[~np.isnan(mark).any(axis=1)]
    line = Line(recall, precision, marks=mark, told=("chosen",) * len(mark))
    drawn = Plot(
        name.replace("_", " "), [line], "the dot is chosen", x_range=(0.0, 1.0),
        y_range=(0.0, 1.02), x_label="recall", y_label="precision", height=300.0,
    ).svg()  # fmt: skip
    rows = [
        [
            f"{100 * point['share']:.3g} %", _share(point["recall"]), _share(point["precision"]),
            f"{100 * point['fpr']:.3f} %", f"{1e3 * point['cost']:.4g}",
            "chosen" if point["share"] == chosen["share"] else "",
        ]
        for point in _with(curve, chosen)
    ]  # fmt: skip
    header = ("asked", "recall", "precision", "false alarms", "cost of 1,000 events", "")
    if costs := one.get("costs"):
        worth = " times its amount" if costs["by_amount"] else ""
        note = (
            f"A miss costs {costs['miss']:g}{worth}, a false alarm {costs['alarm']:g}; chosen is"
            " the share of false alarms that costs least."
        )
    else:
        note = "Chosen is the share of false alarms that was asked for; costs count each mistake 1."
    note += (
        " Each point is the rule with all its thresholds at one share; they stand in voting.toml,"
        " to be edited."
    )
    return section(f"The vote on {name.replace('_', ' ')}", note, grid([drawn]) +
                   table(header, rows, (0, 1, 2, 3, 4)))  # fmt: skip


def _with(curve: list[dict[str, float]], chosen: dict[str, float]) -> list[dict[str, float]]:
    """The points with the chosen one among them, by share."""
    others = [point for point in curve if point["share"] != chosen["share"]]
    return sorted([*others, chosen], key=lambda point: point["share"])
