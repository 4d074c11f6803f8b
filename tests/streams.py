"""Small dense streams for tests: few entities, nulls, times that collide and fall on edges."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from features.batch import EventBatch
from features.events import event_type

__all__ = ["START_US", "cut", "make_batch", "stream"]

START_US = 1_700_000_000_000_000 // 3_600_000_000 * 3_600_000_000
"""A full hour, so that steps of 30 s fall on the edges of all windows."""


def make_batch(name: str, rows: list[dict[str, Any]], partitions: int = 3) -> EventBatch:
    """A batch of the given rows (missing fields null or empty), in order."""
    declared = event_type(name)
    columns = {}
    for f in declared.fields:
        empty = {
            "string": "x",
            "enum": f.default,
            "bool": False,
            "float64": 0.0,
            "int64": 0,
            "time_us": START_US,
        }[f.kind]
        columns[f.name] = [r.get(f.name, None if f.nullable else empty) for r in rows]
    frame = pl.DataFrame(columns, schema=declared.schema)
    n = len(rows)
    return EventBatch(
        name,
        frame,
        (np.arange(n) % partitions).astype(np.int32),
        np.arange(n),
        np.zeros(n, np.int64),
    ).in_order()


def _pick(rng: np.random.Generator, values: list[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def _payment(rng: np.random.Generator) -> dict[str, Any]:
    at = int(rng.integers(4))
    return {
        "card_id": f"c{at}",
        "user_id": f"u{at // 2}",
        "merchant_id": f"m{rng.integers(3)}",
        "device_id": _pick(rng, ["d0", "d1", "", None]),
        "ip": _pick(rng, ["i0", "i1", None]),
        "amount": float(_pick(rng, [0.0, 0.5, 2.99, 3.0, 50.0, 1e6 + 0.1, rng.gamma(2.0, 20.0)])),
        "channel": _pick(rng, ["online", "pos", "atm", "transfer"]),
        "country": _pick(rng, ["DE", "FR", None]),
        "declined": bool(rng.random() < 0.3),
        **_place(rng),
    }


def _place(rng: np.random.Generator) -> dict[str, Any]:
    return _pick(
        rng,
        [
            {"latitude": 52.5, "longitude": 13.4},
            {"latitude": 48.8, "longitude": 2.3},
            {"latitude": -36.8, "longitude": 179.9},
            {"latitude": None, "longitude": None},
        ],
    )


def _login(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "user_id": f"u{rng.integers(2)}",
        "device_id": _pick(rng, ["d0", "d1", None]),
        "ip": f"i{rng.integers(3)}",
        "country": _pick(rng, ["DE", "FR", None]),
        "method": _pick(rng, ["password", "mfa", "token"]),
        "success": bool(rng.random() < 0.6),
        **_place(rng),
    }


def _metric(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "host": f"h{rng.integers(3)}",
        "metric": _pick(rng, ["cpu", "memory"]),
        "service": "web",
        "value": float(_pick(rng, [5.0, 5.0, -3.0, rng.normal(50.0, 9.0), rng.normal(50.0, 9.0)])),
    }


def _app_log(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "service": _pick(rng, ["web", "api"]),
        "host": f"h{rng.integers(2)}",
        "level": _pick(rng, ["debug", "info", "warning", "error", "fatal"]),
        "template": f"t{rng.integers(4)}",
        "duration_ms": _pick(rng, [None, 0.0, float(rng.gamma(2.0, 30.0))]),
        "status": _pick(rng, [None, 200, 500]),
    }


_MAKERS = {"payment": _payment, "login": _login, "metric": _metric, "app_log": _app_log}


def stream(
    seed: int, n: int, hours: float = 3.0, types: tuple[str, ...] = tuple(_MAKERS)
) -> dict[str, EventBatch]:
    """About n events of each type within some hours, many in bursts, all on half minutes."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in types:
        step = rng.choice([0, 0, 1, 2, 10, 120], n, p=[0.2, 0.2, 0.2, 0.2, 0.15, 0.05])
        when = np.cumsum(step) % int(hours * 120)
        rows = []
        for i in range(n):
            time_us = START_US + int(when[i]) * 30_000_000
            rows.append({**_MAKERS[name](rng), "event_id": f"{name}{i}", "time_us": time_us})
        found[name] = make_batch(name, rows)
    return found


def cut(batches: dict[str, EventBatch], edges_us: list[int]) -> list[dict[str, EventBatch]]:
    """The same events in several stretches of event time; an edge belongs to the later one."""
    edges = [-(1 << 62), *sorted(edges_us), 1 << 62]
    parts = []
    for low, high in pairwise(edges):
        part = {}
        for name, batch in batches.items():
            rows = np.flatnonzero((batch.time_us >= low) & (batch.time_us < high))
            if len(rows):
                part[name] = batch.take(rows)
        parts.append(part)
    return parts
