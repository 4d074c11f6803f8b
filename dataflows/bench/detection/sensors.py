"""Tables of sensors, without labels: one event a cell, judged by row; simple peers in the same run.

Hosts begin together and are learned from together, each on the first part of its own rows. Rows are
ordered by how strange their cells are together (`dataflows.together`). No label decides what counts
as flagged: a cell with a score of `ASKED`, or for the peers, whose numbers have no scale, a limit
from the rows they were fitted on. Nothing is adjusted by points.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from dataflows.bench.detection.fold import DETECTORS, Fold, Found
from dataflows.bench.detection.measures import (
    auc_roc,
    average_precision,
    delays,
    point_rates,
    range_average_precision,
)
from dataflows.history import run_history
from dataflows.settings import Settings
from dataflows.sources.files import FileReader
from dataflows.training import ROWS_WANTED
from features.batch import Float64, Int64
from features.catalog import catalog
from features.engine import warm_up
from features.errors import ConfigError
from models.calibration import score_of
from models.voting import ENSEMBLE

__all__ = ["Sensors", "measure_sensors", "show_sensors"]

ASKED = 0.99
"""Score from which a row is flagged for `f1`, `far` and `mar`: one usual cell in a hundred. Chosen,
the same for all data sets, never tried at another value."""

PEER_SHARE = 0.05
"""Share of the rows they were fitted on that the peers flag. Chosen: a row has 8 to 38 cells, of
which one in a hundred makes a row in twelve or more; so they are not asked for less."""

WARM_SHARE = 1 / 3
"""Share of the rows to fit on that only warm the features up, as in `waxwing train --data`."""

ORDERED = ("average_precision", "range_average_precision", "auc_roc")
"""Figures of the order of rows, whatever is flagged."""

EPOCH_US = 1_767_225_600_000_000
"""2026-01-01, where the first row of every host is put; the sources' own times have gaps, or none
at all."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sensors:
    """A table of sensors.

    Parameters
    ----------
    values : float64 (n, S), rows of a host one after another, host by host
    names : (S,), of the sensors
    host : int64 (n,), ascending
    hosts : names of the hosts
    fit : bool (n,), rows to fit on; they come before the others of their host
    odd : bool (n,), labels, read for the figures alone
    step_s : seconds from row to row
    """

    values: Float64
    names: tuple[str, ...]
    host: Int64
    hosts: tuple[str, ...]
    fit: npt.NDArray[np.bool_]
    odd: npt.NDArray[np.bool_]
    step_s: int


def measure_sensors(table: Sensors, settings: Settings, say: Say) -> dict[str, Any]:
    """Everything about one table.

    Parameters
    ----------
    table : the rows
    settings : `detectors`; those of the file are set here
    say : told what is being done, one sentence at a time

    Returns
    -------
    the figures, in the keys of docs/json.md
    """
    asked = "detectors" in settings.model_fields_set
    detectors = list(settings.detectors) if asked else list(DETECTORS)
    found = _scored(table, settings, detectors, say)
    test = ~table.fit
    odd, host = table.odd[test], table.host[test]
    together = {name: np.nan_to_num(said[test]) for name, said in found.together.items()}
    against = {
        name: _figures(odd, together[name], score_of(said[test]) >= ASKED, host)
        for name, said in found.each.items()
    }
    for name, peer in (("isolation_forest_raw", _forest), ("ecod", _ecod)):
        say(f"peer {name} on raw values, host by host")
        said, limit = _by_host(table, peer)
        against[name] = _figures(odd, said[test], (said > limit)[test], host)
    score = np.nan_to_num(found.score)[test]
    flagged = score >= ASKED
    alone = _figures(odd, score, flagged, host)
    return {
        **_figures(odd, together[ENSEMBLE], flagged, host),
        "strangest_cell": {name: alone[name] for name in ORDERED},
        "alerts": point_rates(odd, found.flagged[test]),
        "rows": {"fit": int(table.fit.sum()), "test": int(test.sum()), "odd": int(odd.sum())},
        "against": against,
        "detectors": detectors,
        "asked": ASKED,
    }


def _figures(
    odd: npt.NDArray[np.bool_], score: Float64, flagged: npt.NDArray[np.bool_], host: Int64
) -> dict[str, Any]:
    """Point-wise and by stretches."""
    late, count = delays(odd, flagged, host)
    found = {
        "auc_roc": auc_roc(odd, score),
        "average_precision": average_precision(odd, score),
        "range_average_precision": range_average_precision(odd, score, host),
        **point_rates(odd, flagged),
    }
    return {name: round(value, 4) for name, value in found.items()} | {
        "stretches": count,
        "stretches_met": len(late),
        "delay_rows_p50": float(np.median(late)) if len(late) else None,
    }


def _moments(table: Sensors) -> Int64:
    """int64 (n,), event times at which the tests of all hosts begin together."""
    first = np.append(True, table.host[1:] != table.host[:-1])
    place = np.arange(len(first)) - np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    fitted = np.bincount(table.host, table.fit, len(table.hosts)).astype(np.int64)
    lag = fitted.max() - fitted
    moments: Int64 = EPOCH_US + (place + lag[table.host]) * table.step_s * 1_000_000
    return moments


def _scored(table: Sensors, settings: Settings, detectors: Sequence[str], say: Say) -> Found:
    """What the flow said of the rows of the test, in the order of the table."""
    time_us = _moments(table)
    order = np.argsort(time_us, kind="stable")
    with tempfile.TemporaryDirectory(prefix="waxwing-bench-") as name:
        data, mapping = Path(name) / "sensors.parquet", Path(name) / "sensors.toml"
        hosts = pl.Series("host", table.hosts)[table.host[order]]
        columns = {f"s{i}": table.values[order, i] for i in range(len(table.names))}
        pl.DataFrame({"at": time_us[order], "host": hosts} | columns).write_parquet(data)
        cells = ", ".join(f'"{column}"' for column in columns)
        mapping.write_text(
            'event = "metric"\n[fields]\nevent_id = { row = "row-" }\ntime_us = "at"\n'
            'host = "host"\nservice = { constant = "bench" }\n'
            f"[wide]\ncolumns = [{cells}]\n",
            encoding="utf-8",
        )
        changed = {
            "source": "file",
            "file_paths": {"metric": data},
            "file_mapping": str(mapping),
            "event_types": ["metric"],
        }
        settings = settings.model_copy(update=changed)
        begins_us = int(time_us[~table.fit].min())
        warm_us = EPOCH_US + round((begins_us - EPOCH_US) * WARM_SHARE)
        cells_to_fit = int(table.fit.sum()) * len(table.names)
        cat = catalog()
        warm_up(cat)
        fold = Fold(
            cat,
            f"{len(table.hosts)} hosts",
            (warm_us, begins_us),
            (begins_us, int(time_us.max()) + 1),
            len(order),
            detectors,
            say,
            share=min(1.0, ROWS_WANTED / max(cells_to_fit * (1.0 - WARM_SHARE), 1.0)),
            labelled=False,
        )
        reader = FileReader(settings)
        try:
            done = run_history(settings, cat, reader, fold)
        finally:
            reader.close()
    if done.rejected:
        raise ConfigError(f"--data: {done.rejected} cells were refused: {dict(done.reasons)}")
    found = fold.found()
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return Found(
        found.score[back],
        found.flagged[back],
        {name: said[back] for name, said in found.each.items()},
        {name: said[back] for name, said in found.together.items()},
    )


Peer = Callable[[Float64, Float64], Float64]
"""Rows to fit on (n, S) and rows to score (m, S) -> float64 (m,), higher is stranger."""


def _by_host(table: Sensors, peer: Peer) -> tuple[Float64, Float64]:
    """A peer's scores of all rows, fitted host by host, and the limit for each row."""
    score, limit = np.zeros(len(table.host)), np.zeros(len(table.host))
    for one in range(len(table.hosts)):
        rows = table.host == one
        said = peer(table.values[rows & table.fit], table.values[rows])
        score[rows] = said
        limit[rows] = np.quantile(said[table.fit[rows]], 1.0 - PEER_SHARE)
    return score, limit


def _forest(fit: Float64, rows: Float64) -> Float64:
    """scikit-learn's isolation forest with its own settings."""
    from sklearn.ensemble import IsolationForest

    said = IsolationForest(n_estimators=100, random_state=1).fit(fit).score_samples(rows)
    return np.asarray(-said, np.float64)


def _ecod(fit: Float64, rows: Float64) -> Float64:
    """Empirical tail probabilities, column by column, summed as surprises.

    Source: Li et al., ECOD (2022), equations 6 to 9; deviates from PyOD, which counts the rows to
    score among those that the tails are made of, in taking the tails of the rows to fit on alone.
    """
    n = len(fit)
    low, high = np.zeros(len(rows)), np.zeros(len(rows))
    skewed = np.zeros(len(rows))
    for column in range(fit.shape[1]):
        known = np.sort(fit[:, column])
        x = rows[:, column]
        left = -np.log((np.searchsorted(known, x, "right") + 1) / (n + 1))
        right = -np.log((n - np.searchsorted(known, x, "left") + 1) / (n + 1))
        away = known - known.mean()
        low += left
        high += right
        skewed += left if (away**3).mean() < 0.0 else right
    found: Float64 = np.maximum(np.maximum(low, high), skewed)
    return found


def show_sensors(report: Mapping[str, Any], out: IO[str]) -> None:
    """The figures for a person: ours, then the peers."""
    names = ("average_precision", "range_average_precision", "auc_roc", "f1", "far", "mar")
    print(f"{'':22}" + "".join(f"{name:>25}" for name in names), file=out)
    for title, row in {"ensemble": report, **report["against"]}.items():
        print(f"{title:22}" + "".join(f"{row[name]:>25.3f}" for name in names), file=out)
