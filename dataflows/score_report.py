"""The report of `waxwing score`: what happened when, the series with their alerts, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dataflows.charts import (
    Line,
    Plot,
    cards,
    grid,
    page,
    section,
    table,
    time_text,
)
from dataflows.report import write_text
from dataflows.score_summary import PAUSE_S
from dataflows.scored_table import REFUSED, SHOWN, ScoredTable
from features.batch import Float64, Int64
from models.decisions.reasons import number_text

__all__ = ["report_html", "write_report"]

SERIES_MAX = 16
"""Series that are drawn, those with the strangest alerts. Chosen: a page one still scrolls
through."""

INCIDENTS_MAX = 60
"""Incidents in the table. Chosen: the file of scores has all of them."""

REFUSED_MAX = 20
"""Refused rows in the table. Chosen."""

BUCKETS = 160
"""Stretches of time of the overview. Chosen: four units of width each."""

LINE_POINTS_MIN = 60
"""Fewest events of an entity that are joined to a line; fewer are dots. Chosen."""

GAP_STEPS = 30.0
"""Usual steps between events of a series beyond which its line is broken. Chosen."""

ODD_BANDS_MAX = 200
"""Labelled stretches that are shaded. Chosen."""


def write_report(
    path: Path, scored: ScoredTable, summary: Mapping[str, Any], found: pl.DataFrame, data: str
) -> None:
    """Write the report as one HTML file.

    Raises
    ------
    ConfigError : the disk refuses it
    """
    text = report_html(scored, summary, found, data)
    write_text(path, text, "--html", errors="backslashreplace")


def report_html(
    scored: ScoredTable, summary: Mapping[str, Any], found: pl.DataFrame, data: str
) -> str:
    """The report.

    Parameters
    ----------
    scored : with its series kept
    summary : of `summary_of` and `judge`
    found : of `incidents`
    data : name of the file
    """
    name = Path(data).name
    span = scored.series["time_us"]
    when = f"{time_text(_edge(span, 0))} to {time_text(_edge(span, -1))} UTC" if len(span) else ""
    fitted = "" if scored.fit_us is None else f"; fitted up to {time_text(scored.fit_us)}"
    return page(
        f"Anomalies in {name}",
        f"{scored.event_type} events, {when}{fitted}; models {scored.bundle}",
        [
            cards(
                [
                    (f"{summary['rows']:,}", "rows"),
                    (f"{summary['scored']:,}", "scored"),
                    (f"{summary['refused']:,}", "refused"),
                    (f"{summary['alerts']:,}", "rows are alerts"),
                    (f"{summary['incidents']:,}", "incidents"),
                    *_judged(summary),
                ],
                bad=("incidents",),
            ),
            _overview(scored),
            _series_section(scored, found),
            _incidents_section(found),
            _detectors_section(scored, summary),
            _silent_section(scored),
            _refused_section(scored.rows),
        ],
    )


def _edge(times: pl.Series, at: int) -> float:
    """First or last of some times."""
    values = times.to_numpy()
    return float(values.min() if at == 0 else values.max())


def _judged(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Cards on how well, where the labels say so."""
    found = summary.get("judgement")
    if not found:
        return []
    return [
        (f"{100 * found['recall']:.1f} %", "of labelled rows found"),
        (f"{100 * found['fpr']:.2f} %", "false positives"),
        (f"{found['average_precision']:.3f}", "average precision"),
    ]


def _overview(scored: ScoredTable) -> str:
    """Events and alerts over time."""
    times = scored.series["time_us"].to_numpy().astype(np.float64)
    if len(times) < 2 or times.min() == times.max():
        return ""
    edges = np.linspace(times.min(), times.max(), BUCKETS + 1)
    alerts = times[scored.series["alert"].to_numpy()]
    bands = _fit_bands(scored, edges[0], edges[-1])
    drawn = []
    for title, values in (("Events", times), ("Alerts", alerts)):
        counts, _ = np.histogram(values, edges)
        line = Line(edges, np.append(counts, counts[-1]).astype(np.float64), steps=True)
        drawn.append(
            Plot(
                title, [line], f"{len(values):,} in all, per {_length(edges)}", True, bands,
                y_range=(0.0, max(1.0, counts.max() * 1.08)), height=150.0,
            ).svg()
        )  # fmt: skip
    note = "The shaded stretch is what the models were fitted on." if bands else ""
    if scored.warm_us is not None:
        note += " In the darker one all was new; its alerts are not counted below."
    return section("Over time", note, grid(drawn))


def _fit_bands(scored: ScoredTable, begin: float, end: float) -> list[tuple[float, float, str]]:
    """What was fitted on, and what only warmed up, within a stretch."""
    found = []
    if scored.fit_us is not None and begin < scored.fit_us:
        found.append((begin, min(float(scored.fit_us), end), "fit"))
    if scored.warm_us is not None and begin < scored.warm_us:
        found.append((begin, min(float(scored.warm_us), end), "fit"))
    return found


def _length(edges: Float64) -> str:
    """A stretch between two edges in words."""
    return number_text(float(edges[1] - edges[0]) / 1e6, "s")


def _series_section(scored: ScoredTable, found: pl.DataFrame) -> str:
    """The series with the strangest alerts, or the strangest without any."""
    if scored.event_type not in SHOWN or not scored.series.height:
        return ""
    names = found["entity"].unique(maintain_order=True).to_list()[:SERIES_MAX]
    if not names:
        strangest = scored.series.group_by("entity").agg(pl.col("score").max())
        names = strangest.sort("score", "entity", descending=[True, False])["entity"].to_list()
        names = names[:4]
    kept = scored.series.filter(pl.col("entity").is_in(names) & pl.col("value").is_not_null())
    told = dict(scored.rows.filter("alert").select(
        pl.concat_str("entity", pl.col("time").dt.timestamp("us"), separator=" "), "top_reason"
    ).iter_rows())  # fmt: skip
    parts = {key[0]: part for key, part in kept.group_by("entity", maintain_order=True)}
    drawn = [_series_plot(name, parts[name], scored, told) for name in names if name in parts]
    what = SHOWN[scored.event_type].replace("_", " ")
    note = (
        f"The {what} of each event of the {len(drawn)} with the strangest alerts; red dots are"
        " alerts, point at one for its reason."
    )
    if kept["odd"].any():
        note += " Red stretches are labelled as anomalies."
    return section("Where it is strange", note, grid(drawn))


def _series_plot(
    name: str, part: pl.DataFrame, scored: ScoredTable, told: Mapping[str, str | None]
) -> str:
    """One entity's events."""
    part = part.sort("time_us")
    x = part["time_us"].to_numpy().astype(np.float64)
    y = part["value"].to_numpy().astype(np.float64)
    alert = part["alert"].to_numpy()
    marks = np.stack((x[alert], y[alert]), axis=1)
    texts = []
    for time_us in part["time_us"].to_numpy()[alert].tolist():
        why = told.get(f"{name} {time_us}") or "unusual combination"
        texts.append(f"{time_text(time_us)}: {why}")
    bands = [*_fit_bands(scored, x[0], x[-1]), *_runs(x, part["odd"].to_numpy())]
    dots = len(x) < LINE_POINTS_MIN
    if not dots:
        x, y = _broken(x, y)
    line = Line(x, y, dots=dots, marks=marks, told=texts)
    count = int(alert.sum())
    events = f"{part.height:,} event{'' if part.height == 1 else 's'}"
    note = f"{count:,} alert{'' if count == 1 else 's'} of {events}"
    return Plot(name.replace("|", " · "), [line], note, True, bands).svg()


def _runs(x: Float64, odd: Int64) -> list[tuple[float, float, str]]:
    """Stretches in which every event is labelled."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], odd.astype(np.int8), [0]))))
    pairs = edges.reshape(-1, 2)[:ODD_BANDS_MAX].tolist()
    return [(float(x[begin]), float(x[end - 1]), "odd") for begin, end in pairs]


def _broken(x: Float64, y: Float64) -> tuple[Float64, Float64]:
    """A line with a NaN wherever nothing came for long."""
    steps = np.diff(x)
    usual = float(np.median(steps[steps > 0])) if np.any(steps > 0) else 0.0
    gaps = np.flatnonzero(steps > max(GAP_STEPS * usual, 1.0)) + 1
    return np.insert(x, gaps, x[gaps]), np.insert(y, gaps, np.nan)


def _incidents_section(found: pl.DataFrame) -> str:
    """What was found, the strangest first."""
    if not found.height:
        return section("Incidents", "", "<p>Nothing was flagged.</p>")
    rows = [
        [
            f"{one['begin']:%Y-%m-%d %H:%M:%S}",
            number_text((one["end"] - one["begin"]).total_seconds(), "s"),
            str(one["entity"]).replace("|", " · "),
            f"{one['rows']:,}",
            f"{one['row']:,}",
            str(one["votes"]),
            (one["top_reason"] or "unusual combination")
            + (" (fitted on)" if one["fitted"] else ""),
        ]
        for one in found.head(INCIDENTS_MAX).iter_rows(named=True)
    ]
    note = f"Alerts of one entity no more than {number_text(PAUSE_S, 's')} apart are one incident."
    if found.height > INCIDENTS_MAX:
        note += f" The strangest {INCIDENTS_MAX} of {found.height:,}; the file of scores has all."
    header = ("begins (UTC)", "lasts", "entity", "rows", "strangest row", "votes", "why")
    return section("Incidents", note, table(header, rows, (3, 4, 5)))


def _detectors_section(scored: ScoredTable, summary: Mapping[str, Any]) -> str:
    """What each detector said, and how well where that is known."""
    judged = summary.get("judgement", {}).get("detectors", {})
    header = ["detector", "rows it voted for", "rows it looked at"]
    header += ["average precision", "area under ROC"] if judged else []
    rows = []
    for name in dict.fromkeys((*scored.detectors, *scored.stayed_out)):
        if name in scored.stayed_out:
            rows.append([name.replace("_", " "), "stayed out", "nothing to learn from here"])
            rows[-1] += ["-", "-"] if judged else []
            continue
        seen = int(scored.rows[f"{name}_score"].is_not_null().sum())
        rows.append([name.replace("_", " "), f"{scored.votes[name]:,}", f"{seen:,}"])
        if judged:
            rows[-1] += [f"{judged[name][k]:.3f}" for k in ("average_precision", "auc_roc")]
    if judged:
        whole = summary["judgement"]
        flagged = f"{summary['alerts']:,}"
        rows.append(
            ["ensemble", flagged, f"{summary['scored']:,}"]
            + [f"{whole[k]:.3f}" for k in ("average_precision", "auc_roc")]
        )
    note = "An expensive detector looks at what the cheap ones let through."
    return section("Detectors", note, table(header, rows, (1, 2, 3, 4)))


def _silent_section(scored: ScoredTable) -> str:
    """Alerts on entities that fell silent."""
    if not scored.silent.height:
        return ""
    rows = [
        [f"{one['time']:%Y-%m-%d %H:%M:%S}", one["entity"], one["top_reason"]]
        for one in scored.silent.head(INCIDENTS_MAX).iter_rows(named=True)
    ]
    note = f"{scored.absences:,} times somebody was overdue; these are alerts."
    return section("Fell silent", note, table(("due (UTC)", "entity", "why"), rows))


def _refused_section(rows: pl.DataFrame) -> str:
    """Rows that are no events."""
    refused = rows.filter(pl.col("status") == REFUSED)
    if not refused.height:
        return ""
    shown = refused.head(REFUSED_MAX).select("row", "reason").iter_rows()
    note = f"{refused.height:,} rows are no events; the first {min(refused.height, REFUSED_MAX)}:"
    return section("Refused", note, table(("row", "why"), [[f"{r:,}", w] for r, w in shown], (0,)))
