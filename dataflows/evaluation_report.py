"""The report of `waxwing evaluate` for people: curves, intervals, and what each part adds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich import box
from rich.table import Table

from dataflows.charts import (
    Bar,
    Line,
    Plot,
    bars,
    cards,
    grid,
    page,
    section,
    share_text,
    table,
)
from dataflows.observe.live import console_for, shown_text
from dataflows.report import write_text
from dataflows.voting_report import voting_sections
from models.analysis import FPR_SHOWN, Analysis
from models.decisions.reasons import number_text
from models.evaluate import Curve
from models.voting import ENSEMBLE

__all__ = ["evaluation_html", "print_analysis", "write_report"]

_PLAIN_COLUMNS = 100
"""Width where the output is no terminal. Chosen: as lines of the project."""

_FPR_LEAST = 1e-5
"""Left end of the axis of false positives. Chosen: a hundredth of what is asked for."""

_CURVE_POINTS_MAX = 600
"""Points of a curve that are drawn. Chosen: as many as the drawing is wide."""


def print_analysis(report: Mapping[str, Any], out: IO[str]) -> None:
    """Rankings with their intervals, what each detector adds, and what it costs."""
    console = console_for(out, _PLAIN_COLUMNS)
    for line in _coverage_lines(report.get("coverage", {})):
        console.print(line)
    if not report.get("ranking"):
        return
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    shown.add_column("ranking by")
    for title in ("average precision", "area under ROC", "recall at 0.3 % false positives"):
        shown.add_column(title, justify="right")
    for name, row in report["ranking"].items():
        at = row["recall_at"][1]
        shown.add_row(
            shown_text(_words(name)), _interval(row["average_precision"], row),
            f"{row['auc_roc']:.3f}", _interval(at["recall"], at),
        )  # fmt: skip
    console.print()
    console.print(shown)
    lost = ", ".join(f"{_words(o['without'])} {_signed(o)}" for o in report["ablation"])
    console.print(shown_text(
        f"In brackets 95 % of {report['draws']} draws of entities and days. Average precision lost"
        f" without a detector: {lost}"
    ))  # fmt: skip
    if report["adds_nothing"]:
        nothing = ", ".join(map(_words, report["adds_nothing"]))
        console.print(shown_text(f"Adds nothing that chance does not explain: {nothing}"))


def _coverage_lines(found: Mapping[str, Any]) -> list[str]:
    """What share of the genuine events was asked for, and what share was got."""
    if not found:
        return []
    lines = [f"the vote's scores: {_asked(found['scores'][ENSEMBLE][1])}"]
    if "rule" in found:
        lines.insert(0, f"false alarms by the rules: {_asked(found['rule'])}")
    return ["", *lines]


def _asked(row: Mapping[str, Any]) -> str:
    """Asked and got in words."""
    kept = "as asked" if row["holds"] else "NOT as asked"
    return (
        f"asked {100 * row['asked']:.3g} %, got {100 * row['got']:.3f} %"
        f" [{100 * row['low']:.3f}, {100 * row['high']:.3f}], {kept}"
    )


def _words(name: str) -> str:
    """A name for people."""
    return name.replace("_", " ")


def _interval(value: float, row: Mapping[str, Any]) -> str:
    """A figure with its interval."""
    return f"{share_text(value)} [{share_text(row['low'])}, {share_text(row['high'])}]"


def _signed(row: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    value, low, high = (share_text(row[k], True) for k in ("average_precision", "low", "high"))
    return f"{value} [{low}, {high}]"


def write_report(path: Path, report: Mapping[str, Any], analysis: Analysis) -> None:
    """Write the report as one HTML file.

    Raises
    ------
    ConfigError : the disk refuses it
    """
    write_text(path, evaluation_html(report, analysis), "--html", errors="backslashreplace")


def evaluation_html(report: Mapping[str, Any], analysis: Analysis) -> str:
    """The report as a page."""
    whole = report["detectors"][ENSEMBLE]
    events = report.get("scored", 0)
    about = f"bundle {report['bundle']}, {events:,} events"
    if "seed" in report:
        about += f" of {report['hours']:g} simulated hours, seed {report['seed']}"
    numbers = [
        (_per_cent(whole["recall"], 1), "of anomalous events found"),
        (_per_cent(whole["fpr"], 3), "false positives"),
        (_per_cent(whole["precision"], 1), "of the alerts are right"),
    ]
    if not analysis.curves:
        note = "Neither curves nor intervals: there are no anomalous events, or no genuine ones."
        parts = [cards(numbers), section("Curves", note, ""), *_coverage_section(report)]
        return page("How well it finds", about, parts)
    ranking = report["ranking"]
    numbers.append((f"{ranking[ENSEMBLE]['average_precision']:.3f}", "average precision"))
    best = max((n for n in ranking if n != ENSEMBLE), default="",
               key=lambda n: ranking[n]["average_precision"])  # fmt: skip
    if best:
        gain = report["against"][best]["average_precision"]
        numbers.append((share_text(gain, True), f"over {_words(best)}, the best alone"))
    return page(
        "How well it finds",
        about,
        [
            cards(numbers),
            _curves_section(analysis.curves, whole),
            _rankings_section(report),
            *_coverage_section(report),
            _attacks_section(report),
            _adds_section(report),
            _delay_section(report),
            _cost_section(report, analysis.worth or analysis.curves[ENSEMBLE]),
            *voting_sections(report.get("voting", {})),
        ],
    )


def _per_cent(share: float | None, places: int) -> str:
    """A share as per cent."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.{places}f} %"


def _thin(curve: Curve) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Places of a curve that are drawn: evenly by recall, and its ends."""
    if len(curve.recall) <= _CURVE_POINTS_MAX:
        return np.arange(len(curve.recall))
    wanted = np.linspace(curve.recall[0], curve.recall[-1], _CURVE_POINTS_MAX)
    return np.unique(np.append(np.searchsorted(curve.recall, wanted), [0]))


def _ordered(curves: Mapping[str, Curve]) -> list[str]:
    """The ensemble first, so that it has the first colour, drawn last in each."""
    return [ENSEMBLE, *(name for name in curves if name != ENSEMBLE)]


def _curves_section(curves: Mapping[str, Curve], whole: Mapping[str, Any]) -> str:
    """Precision over recall, and recall over false positives."""
    precision, found = [], []
    for name in _ordered(curves):
        curve = curves[name]
        at = _thin(curve)
        precision.append(Line(curve.recall[at], curve.precision[at], _words(name)))
        fpr = np.log10(np.maximum(curve.fpr, _FPR_LEAST))
        at = np.flatnonzero(np.append(np.diff(fpr) > 0.0, True))
        found.append(Line(fpr[at], curve.recall[at], _words(name), steps=True))
    point = np.array([[whole["recall"], whole["precision"]]])
    first = precision[0]
    precision[0] = Line(first.x, first.y, first.label, marks=point, told=("as the rules are set",))
    place = np.array([[math.log10(max(whole["fpr"] or 0.0, _FPR_LEAST)), whole["recall"]]])
    second = found[0]
    found[0] = Line(second.x, second.y, second.label, steps=True, marks=place,
                    told=("as the rules are set",))  # fmt: skip
    goal = math.log10(FPR_SHOWN[1])
    drawn = [
        Plot(
            "Precision and recall", precision, x_range=(0.0, 1.0), y_range=(0.0, 1.02),
            x_label="recall", y_label="precision", height=330.0,
        ).svg(),
        Plot(
            "Recall at few false positives", found, "the line is at 0.3 %",
            bands=((goal - 0.004, goal + 0.004, "bad"),),
            x_range=(math.log10(_FPR_LEAST), 0.0), y_range=(0.0, 1.02),
            x_label="false positives", y_label="recall", height=330.0, x_log=True,
        ).svg(),
    ]  # fmt: skip
    note = "Each line is a ranking of the same events; the red dot is where the rules are set."
    return section("Curves", note, grid(drawn))


def _rankings_section(report: Mapping[str, Any]) -> str:
    """Figures with intervals."""
    ranking = report["ranking"]
    names = _ordered(ranking)
    precision = [
        Bar(_words(n), row["average_precision"], row["low"], row["high"], n == ENSEMBLE)
        for n in names
        for row in [ranking[n]]
    ]
    drawn = [bars("Average precision", "", precision, 1.0)]
    for i, fpr in enumerate(FPR_SHOWN):
        items = [
            Bar(_words(n), at["recall"], at["low"], at["high"], n == ENSEMBLE)
            for n in names
            for at in [ranking[n]["recall_at"][i]]
        ]
        drawn.append(bars(f"Recall at {100 * fpr:g} % false positives", "", items, 1.0))
    rows = [
        [_words(name), *(share_text(row[k], True) for k in ("average_precision", "low", "high"))]
        for name, row in report["against"].items()
    ]
    header = ("the ensemble over", "average precision", "from", "to")
    note = f"Dark lines hold 95 % of {report['draws']} draws of entities and days."
    return section("With their intervals", note, grid(drawn) +
                   table(header, rows, (1, 2, 3)))  # fmt: skip


def _coverage_section(report: Mapping[str, Any]) -> list[str]:
    """Shares of genuine events that were asked for, beside those that were got."""
    found = report.get("coverage", {})
    if not found:
        return []
    rows = []
    for title, part in {"all": found, **found["by_event_type"]}.items():
        lines = [("rules", part["rule"])] if "rule" in part else []
        lines += [("score of the vote", line) for line in part["scores"][ENSEMBLE]]
        if part is found:
            named = {n: lines for n, lines in part["scores"].items() if n != ENSEMBLE}
            lines += [(f"score of {_words(n)}", line) for n, some in named.items() for line in some]
        rows += [
            [
                _words(title), what, f"{100 * line['asked']:.3g} %", _per_cent(line["got"], 3),
                f"{_per_cent(line['low'], 3)} to {_per_cent(line['high'], 3)}",
                "yes" if line["holds"] else "no",
            ]
            for what, line in lines
        ]  # fmt: skip
    header = ("events", "what", "asked", "got", "95 % of the draws", "as asked")
    note = (
        f"Of the genuine events, {found['entities']:,} entities on {found['days']:,}"
        f" day{'s'[: found['days'] != 1]}: the"
        " share that a threshold or a score was to be reached by, and the share that reached it."
        " The interval is of other entities and days, and of other rows to fit on."
    )
    return [section("Asked and got", note, table(header, rows, (2, 3, 4)))]


def _attacks_section(report: Mapping[str, Any]) -> str:
    """Recall of each attack by each detector, all at the same false positives."""
    found = report["recall_by_attack"]
    names = _ordered(report["ranking"])
    rows = [
        [_words(one["attack"]), f"{one['events']:,}", *(f"{100 * one[n]:.0f} %" for n in names)]
        for one in found
    ]
    note = "Each detector at the threshold at which it has 0.3 % of false positives."
    header = ["attack", "events", *map(_words, names)]
    return section("By attack", note, table(header, rows, range(1, len(header))))


def _adds_section(report: Mapping[str, Any]) -> str:
    """What is lost without a detector, or without a group of features."""
    drawn = []
    if report["ablation"]:
        most = max(0.01, *(one["high"] for one in report["ablation"]))
        items = [
            Bar(f"without {_words(one['without'])}", one["average_precision"],
                max(one["low"], 0.0), max(one["high"], 0.0))
            for one in report["ablation"]
        ]  # fmt: skip
        drawn.append(bars("Detectors", "average precision lost", items, most))
    groups: Sequence[Mapping[str, Any]] = report.get("feature_groups", [])
    if groups:
        items = [
            Bar(f"{_words(one['group'])} ({one['features']})", one["average_precision"])
            for one in groups
        ]
        most = max(0.01, *(bar.value for bar in items))
        drawn.append(bars("Groups of features", "average precision lost", items, most))
    nothing = report["adds_nothing"]
    note = (
        "A vote without a detector is weighed anew, on other entities than it is judged by; the"
        " values of a group are dealt anew among the events. "
    )
    if nothing:
        note += (
            f"Adds nothing here that chance does not explain: {', '.join(map(_words, nothing))}."
        )
    else:
        note += "Each detector adds something."
    return section("What each part adds", note, grid(drawn))


def _delay_section(report: Mapping[str, Any]) -> str:
    """How long after its first event a campaign is told of."""
    rows = []
    for name, one in report["delay"].items():
        told = [
            "-" if math.isnan(one[k]) else number_text(one[k], "s")
            for k in ("delay_s_p50", "delay_s_p90")
        ]
        before = one["events_before_p50"]
        share = one["found"] / one["campaigns"] if one["campaigns"] else math.nan
        events = "-" if math.isnan(before) else f"{before:.0f}"
        rows.append([_words(name), f"{one['campaigns']:,}", _per_cent(share, 0), *told, events])
    note = (
        "From the first event of a campaign to its first alert, in event time. A campaign is what"
        " one entity has of an attack without a pause of an hour."
    )
    header = ("attack", "campaigns", "told of", "half within", "nine tenths within",
              "events before")  # fmt: skip
    return section("How late", note, table(header, rows, (1, 2, 3, 4, 5)))


def _cost_section(report: Mapping[str, Any], curve: Curve) -> str:
    """What misses and false alarms cost, by how many false alarms are taken."""
    cost = report["cost"]
    missed = cost["without_alerts"] * (1.0 - curve.recall)
    total = missed + cost["of_a_false_alarm"] * cost["genuine_events"] * curve.fpr
    fpr = np.log10(np.maximum(curve.fpr, _FPR_LEAST))
    at = np.flatnonzero(np.append(np.diff(fpr) > 0.0, True))
    best = np.array([[math.log10(max(cost["best_fpr"], _FPR_LEAST)), cost["at_best"]]])
    line = Line(fpr[at], total[at], marks=best, told=("cheapest",))
    high = max(cost["without_alerts"], cost["at_best"], 1.0) * 1.5
    drawn = Plot(
        "Cost", [line], "the dot is the cheapest threshold", x_range=(math.log10(_FPR_LEAST), 0.0),
        y_range=(0.0, high), x_label="false positives", height=260.0, x_log=True,
    ).svg()  # fmt: skip
    rows = [
        ["as the rules are set", f"{cost['as_set']:,.0f}"],
        ["at the cheapest threshold of the vote", f"{cost['at_best']:,.0f}"],
        ["without any alert", f"{cost['without_alerts']:,.0f}"],
    ]
    note = (
        f"A missed event costs {cost['of_a_miss']:g}"
        + (" times its amount" if cost["by_amount"] else "")
        + f", a false alarm {cost['of_a_false_alarm']:g} (--cost-miss, --cost-alarm)."
    )
    return section("What it costs", note, grid([drawn, table(("", "cost"), rows, (1,))]))
