"""Server Machine Dataset: 38 metrics a machine, one row a minute, without labels.

Fitted on the train part, judged on the test part that follows it. Four machines are not the 28 of
the papers, and nothing here is adjusted by points, so no published figure stands beside ours.

Source: Su et al., OmniAnomaly, KDD 2019.
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

__all__ = ["measure", "show"]


def measure(path: Path, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything about the machines in a folder.

    Parameters
    ----------
    path : folder of `MACHINE_train.parquet` and `MACHINE_test.parquet`, the latter with `label`

    Raises
    ------
    ConfigError : no such files
    """
    machines = sorted(p.name.removesuffix("_test.parquet") for p in path.glob("*_test.parquet"))
    if not machines:
        raise ConfigError(f"--data {path}: has no MACHINE_test.parquet")
    try:
        pairs = [
            [pl.read_parquet(path / f"{name}_{part}.parquet") for part in ("train", "test")]
            for name in machines
        ]
        names = tuple(c for c in pairs[0][0].columns if c != "label")
        fits = [np.repeat([True, False], [len(train), len(test)]) for train, test in pairs]
        table = Sensors(
            pl.concat([part.select(names) for pair in pairs for part in pair])
            .to_numpy()
            .astype(np.float64),
            names,
            np.repeat(np.arange(len(fits)), [len(fit) for fit in fits]),
            tuple(machines),
            np.concatenate(fits),
            np.concatenate(
                [np.append(np.zeros(len(a), bool), b["label"].to_numpy() > 0) for a, b in pairs]
            ),
            60,
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"--data {path}: {str(error).splitlines()[0]}") from None
    return measure_sensors(table, settings, say) | {"machines": machines}


def show(report: Mapping[str, Any], out: IO[str]) -> None:
    """The figures for a person."""
    show_sensors(report, out)
