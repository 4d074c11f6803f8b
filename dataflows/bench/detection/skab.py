"""Skoltech Anomaly Benchmark: eight sensors of a water loop in 34 experiments, without labels.

The first 400 rows of each experiment are there to fit on, the rest is the test, all together. Each
experiment is a host; rows are put one second apart, as they are but for some gaps.

Source: Katser and Kozitsin, Skoltech Anomaly Benchmark (2020); published figures from its table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from dataflows.bench.detection.sensors import Sensors, measure_sensors, show_sensors
from dataflows.settings import Settings
from features.errors import ConfigError

__all__ = ["PUBLISHED", "measure", "show"]

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "Conv-AE": {"f1": 0.78, "far": 0.1355, "mar": 0.2802},
    "MSET": {"f1": 0.78, "far": 0.3973, "mar": 0.1413},
    "T-squared + Q (PCA)": {"f1": 0.76, "far": 0.2662, "mar": 0.2492},
    "LSTM-AE": {"f1": 0.74, "far": 0.2996, "mar": 0.2592},
    "T-squared": {"f1": 0.66, "far": 0.1921, "mar": 0.4260},
    "LSTM-VAE": {"f1": 0.56, "far": 0.0913, "mar": 0.5503},
    "Isolation Forest": {"f1": 0.29, "far": 0.0256, "mar": 0.8289},
}

FIT_ROWS = 400
WITHOUT = "anomaly-free/anomaly-free"
"""The experiment without anomalies; not used."""

LABELS = {"anomaly", "changepoint"}


def measure(path: Path, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything about SKAB.

    Parameters
    ----------
    path : Parquet with `file`, `datetime`, `anomaly`, `changepoint` and the sensors, or the folder
        with `skab.parquet`

    Raises
    ------
    ConfigError : not such a file
    """
    if path.is_dir():
        path = path / "skab.parquet"
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"--data {path}: {str(error).splitlines()[0]}") from None
    if missing := {"file", "datetime", *LABELS} - set(frame.columns):
        raise ConfigError(f"--data {path}: has no {', '.join(sorted(missing))}")
    frame = frame.filter(pl.col("file") != WITHOUT).sort("file", "datetime", maintain_order=True)
    files, host = np.unique(frame["file"].to_numpy(), return_inverse=True)
    place = np.arange(len(host)) - np.searchsorted(host, host)
    names = tuple(c for c in frame.columns if c not in {"file", "datetime", *LABELS})
    table = Sensors(
        frame.select(names).to_numpy().astype(np.float64),
        names,
        host.astype(np.int64),
        tuple(files.tolist()),
        place < FIT_ROWS,
        frame["anomaly"].to_numpy() > 0,
        1,
    )
    return measure_sensors(table, settings, say) | {"published": PUBLISHED}


def show(report: Mapping[str, Any], out: IO[str]) -> None:
    """The figures for a person, the published ones below."""
    show_sensors(report, out)
    for name, of in PUBLISHED.items():
        print(f"published {name:24} f1 {of['f1']:.2f} far {of['far']:.4f} mar {of['mar']:.4f}",
              file=out)  # fmt: skip
