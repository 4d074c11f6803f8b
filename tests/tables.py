"""Files as people have them who know nothing of waxwing: foreign names, no ids, raw lines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

__all__ = ["BEGIN", "ODD", "write_log", "write_payments", "write_sensors", "write_series"]

BEGIN = datetime(2026, 3, 2, tzinfo=UTC)
"""When the files begin."""

ODD = slice(2_600, 2_640)
"""Rows of machine b whose vibration is ten times the usual."""

_STEP_S = 10


def write_sensors(path: Path, rng: np.random.Generator, rows: int = 3_000) -> pl.DataFrame:
    """A wide table of two machines with three sensors; one of them shakes in `ODD`."""
    parts = []
    for machine in ("a", "b"):
        vibration = 1.0 + rng.normal(0.0, 0.05, rows)
        if machine == "b":
            vibration[ODD] *= 10.0
        parts.append(
            pl.DataFrame(
                {
                    "time": [BEGIN + timedelta(seconds=_STEP_S * i) for i in range(rows)],
                    "machine": machine,
                    "temperature": 60.0 + rng.normal(0.0, 0.4, rows).round(3),
                    "pressure": 2.0 + rng.normal(0.0, 0.02, rows).round(4),
                    "vibration": vibration.round(4),
                }
            )
        )
    frame = pl.concat(parts).sort("time", maintain_order=True)
    frame.with_columns(pl.col("time").dt.strftime("%Y-%m-%d %H:%M:%S")).write_csv(path)
    return frame


def write_series(path: Path, rng: np.random.Generator, rows: int = 1_500) -> None:
    """A long table of two sensors."""
    seconds = np.repeat(int(BEGIN.timestamp()) + _STEP_S * np.arange(rows), 2)
    value = rng.normal(5.0, 0.1, 2 * rows)
    value[-100] = 50.0
    pl.DataFrame({"ts": seconds, "sensor": ["inlet", "outlet"] * rows, "value": value}).write_csv(
        path
    )


def write_payments(path: Path, rng: np.random.Generator, rows: int = 4_000) -> None:
    """Transactions of 80 cards with foreign names; the last 40 of card-7 are large and labelled."""
    card = rng.integers(0, 80, rows)
    total = np.exp(rng.normal(3.0, 0.4, rows)).round(2)
    fraud = np.zeros(rows, np.int64)
    last = np.arange(rows - 400, rows, 10)
    card[last], total[last], fraud[last] = 7, 900.0, 1
    when = [BEGIN + timedelta(seconds=60 * i) for i in range(rows)]
    pl.DataFrame(
        {
            "order_no": np.arange(rows) + 1_000,
            "when": [f"{moment:%d.%m.%Y %H:%M:%S}" for moment in when],
            "card": [f"card-{c}" for c in card],
            "customer": [f"customer-{c}" for c in card],
            "shop": [f"shop-{s}" for s in rng.integers(0, 30, rows)],
            "total": total,
            "how": np.where(rng.random(rows) < 0.3, "web", "till"),
            "fraud": fraud,
        }
    ).write_csv(path)


def write_log(path: Path, rng: np.random.Generator, rows: int = 2_500) -> None:
    """A syslog of one host; near its end somebody tries passwords."""
    lines = []
    for i in range(rows):
        moment = BEGIN + timedelta(seconds=30 * i)
        number = int(rng.integers(1_000, 60_000))
        said = f"sshd[{number}]: Accepted publickey for deploy from 10.0.0.{number % 250} port 22"
        if i % 3 == 0:
            said = f"CRON[{number}]: (root) CMD (run-parts /etc/cron.hourly)"
        if 2_200 <= i < 2_280:
            said = f"sshd[{number}]: Failed password for invalid user guest from 203.0.113.9"
        lines.append(f"{moment:%b} {moment.day:2d} {moment:%H:%M:%S} web-1 {said}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
