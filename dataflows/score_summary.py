"""What `waxwing score` says at its end: rows, what was found, how well where that is known.

The counts are of rows of the file, not of events: a row of a wide table is many events and one row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

from dataflows.alerts.base import printable
from dataflows.charts import WHOLE_MAX
from dataflows.observe.live import console_for, shown_text
from dataflows.scored_table import DUPLICATE, REFUSED, SCORED, ScoredTable
from dataflows.settings import Settings
from models.decisions.reasons import number_text
from models.evaluate import curve_of

__all__ = ["incidents", "judge", "print_summary", "summary_of"]

TOP_MAX = 10
"""Incidents that the terminal shows. Chosen: half a screen."""

PAUSE_S = 600.0
"""Alerts of one entity with no longer pause between them are one incident. Chosen: what one looks
at once."""

ENTITIES_MAX = 10
"""Entities with most alerts that are named. Chosen."""

_PLAIN_COLUMNS = 100
"""Width where the output is no terminal. Chosen: as lines of the project."""


def summary_of(table: ScoredTable, found: pl.DataFrame) -> dict[str, Any]:
    """Counts of a scored table, in the keys of docs/json.md.

    Parameters
    ----------
    found : of `incidents`
    """
    rows = table.rows
    status = dict(rows.group_by("status").len().iter_rows())
    reasons = Counter(
        text.split(":")[0] for text in rows.filter(pl.col("status") == REFUSED)["reason"]
    )
    alerts = rows.filter(pl.col("alert") & ~pl.col("warming"))
    named = alerts.group_by("entity").len().sort("len", "entity", descending=[True, False])
    after = rows.filter((pl.col("status") == SCORED) & ~pl.col("fitted"))
    return {
        "rows": rows.height,
        "scored": status.get(SCORED, 0),
        "refused": status.get(REFUSED, 0),
        "reasons": dict(reasons),
        "duplicates": status.get(DUPLICATE, 0),
        "events": table.events,
        "event_type": table.event_type,
        "bundle": table.bundle,
        "fitted": int(rows["fitted"].sum()),
        "alerts": alerts.height,
        "alerts_warming": rows.filter(pl.col("alert") & pl.col("warming")).height,
        "incidents": found.height,
        "alert_share": _share(int(after["alert"].sum()), after.height),
        "absences": table.absences,
        "absence_alerts": table.silent.height,
        "votes": table.votes,
        "stayed_out": list(table.stayed_out),
        "top_entities": dict(named.head(ENTITIES_MAX).iter_rows()),
    }


def _share(part: int, whole: int) -> float:
    """A share, NaN of nothing."""
    return part / whole if whole else float("nan")


def incidents(rows: pl.DataFrame) -> pl.DataFrame:
    """Alerts of one entity that follow each other, as one row, the strangest first.

    Those of rows that only warmed the features up are left out: all was new then.

    Parameters
    ----------
    rows : of a `ScoredTable`

    Returns
    -------
    `entity`, `begin`, `end`, `rows` that are alerts, `row` of the strangest, its `score` and
    `top_reason`, whether all of it was `fitted` on
    """
    alerts = rows.filter(pl.col("alert") & ~pl.col("warming")).sort("entity", "time", "row")
    pause = pl.col("time").diff().dt.total_microseconds() > PAUSE_S * 1e6
    new = (pl.col("entity") != pl.col("entity").shift()) | pause
    numbered = alerts.with_columns(new.fill_null(True).cum_sum().alias("number"))
    strangest = pl.col("score").arg_max()
    found = numbered.group_by("number", maintain_order=True).agg(
        pl.col("entity").first(),
        pl.col("time").min().alias("begin"),
        pl.col("time").max().alias("end"),
        pl.len().alias("rows"),
        pl.col("row").get(strangest),
        pl.col("score").max(),
        pl.col("top_reason").get(strangest),
        pl.col("votes").max(),
        pl.col("fitted").all(),
    )
    return found.sort("score", "row", descending=[True, False]).drop("number")


def judge(table: ScoredTable, settings: Settings) -> dict[str, Any]:
    """How well the rows that nothing was fitted on were told apart; empty without labels.

    Parameters
    ----------
    settings : `file_mapping`, whose labels have names
    """
    if "label" not in table.rows.columns:
        return {}
    rows = table.rows.filter((pl.col("status") == SCORED) & ~pl.col("fitted"))
    odd = rows["label"].to_numpy() > 0
    flagged = rows["alert"].to_numpy()
    score = rows["score"].to_numpy()
    names = {d: f"{d}_score" for d in table.detectors if d not in table.stayed_out}
    curve = curve_of(score, odd)
    hits = int(np.count_nonzero(flagged & odd))
    found: dict[str, Any] = {
        "judged": rows.height,
        "anomalous": int(odd.sum()),
        "recall": _share(hits, int(odd.sum())),
        "precision": _share(hits, int(flagged.sum())),
        "fpr": _share(int(np.count_nonzero(flagged & ~odd)), int((~odd).sum())),
        "average_precision": curve.average_precision,
        "auc_roc": curve.roc_auc,
        "detectors": {
            d: {"average_precision": c.average_precision, "auc_roc": c.roc_auc}
            for d, column in names.items()
            for c in [curve_of(rows[column].to_numpy(), odd)]
        },
    }
    return {"judgement": found | _by_label(rows, settings)}


def _by_label(rows: pl.DataFrame, settings: Settings) -> dict[str, Any]:
    """Recall by what the labels mean, where they have names."""
    from dataflows.sources.files import truth_names

    names = truth_names(settings.file_mapping) if settings.file_mapping else {}
    if not names:
        return {}
    found = rows.filter(pl.col("label") > 0).group_by("label").agg(pl.len(), pl.col("alert").sum())
    counts = {code: (n, hits) for code, n, hits in found.sort("label").iter_rows()}
    by = {
        names.get(code, f"attack {code}"): {"events": n, "recall": _share(hits, n)}
        for code, (n, hits) in counts.items()
    }
    return {"by_attack": by}


def print_summary(summary: Mapping[str, Any], found: pl.DataFrame, out: IO[str]) -> None:
    """The summary for people.

    Parameters
    ----------
    found : of `incidents`
    """
    console = console_for(out, _PLAIN_COLUMNS)
    console.print(
        f"\n{summary['rows']:,} rows: {summary['scored']:,} scored, {summary['refused']:,}"
        f" refused, {summary['duplicates']:,} repeated; {summary['alerts']:,} rows are alerts"
    )
    for reason, count in sorted(summary["reasons"].items(), key=lambda item: -item[1]):
        console.print(shown_text(f"  refused, {reason}: {count:,}"))
    if summary["fitted"]:
        console.print(
            f"Fitted on {summary['fitted']:,} of them; of the rows after those"
            f" {100 * summary['alert_share']:.2f} % are alerts"
        )
    if summary["alerts_warming"]:
        console.print(
            f"{summary['alerts_warming']:,} alerts of the first stretch are left out below: all was"
            " new then, and nothing was learned from it"
        )
    if summary["stayed_out"]:
        names = ", ".join(summary["stayed_out"])
        console.print(shown_text(f"Stayed out, with nothing to say here: {names}"))
    if summary["absences"]:
        console.print(
            f"{summary['absences']:,} absences of entities that were overdue,"
            f" {summary['absence_alerts']:,} of them alerts"
        )
    if found.height:
        console.print(f"\n{found.height:,} incidents, the strangest first:\n")
        console.print(_incidents_table(found.head(TOP_MAX)))
    if "judgement" in summary:
        console.print()
        _print_judgement(summary["judgement"], console)


def _incidents_table(found: pl.DataFrame) -> Table:
    """Incidents for the terminal."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("from", "entity"):
        # A name that is broken at a hyphen cannot be searched for.
        longest = max((len(printable(name)) for name in found["entity"]), default=0)
        shown.add_column(title, no_wrap=title == "from" or longest <= WHOLE_MAX)
    for title in ("rows", "lasts"):
        shown.add_column(title, justify="right")
    shown.add_column("strangest")
    for one in found.iter_rows(named=True):
        shown.add_row(
            f"{one['begin']:%Y-%m-%d %H:%M:%S}", shown_text(one["entity"]), f"{one['rows']:,}",
            number_text((one["end"] - one["begin"]).total_seconds(), "s"),
            shown_text(one["top_reason"] or "unusual combination"),
        )  # fmt: skip
    return shown


def _print_judgement(found: Mapping[str, Any], console: Console) -> None:
    """How well, where the labels say so."""
    console.print(
        f"Of {found['judged']:,} rows that nothing was fitted on {found['anomalous']:,} are"
        f" labelled: recall {_text(found['recall'])}, precision {_text(found['precision'])},"
        f" false positives {_text(found['fpr'], 3)}"
    )
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    shown.add_column("ranking by")
    shown.add_column("average precision", justify="right")
    shown.add_column("area under ROC", justify="right")
    for name, row in (*found["detectors"].items(), ("ensemble", found)):
        ap, auc = row["average_precision"], row["auc_roc"]
        shown.add_row(shown_text(name.replace("_", " ")), f"{ap:.3f}", f"{auc:.3f}")
    console.print(shown)


def _text(share: float, places: int = 1) -> str:
    """A share as per cent."""
    return "-" if np.isnan(share) else f"{100 * share:.{places}f} %"
