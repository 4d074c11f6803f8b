"""Genuine log lines: few templates say most, durations are log-normal, releases say new things."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.simulate.population import RELEASE_TEMPLATES, TEMPLATES
from features.simulate.strings import gather
from features.simulate.traffic import metric
from features.simulate.world import Block, Rows, World, take_rows, times_in

__all__ = ["columns", "dress", "keys", "make"]

DEBUG, INFO, WARNING, ERROR, FATAL = range(5)

FAILED_SHARE = 0.004
"""Share of successful requests' lines that report a failure (status 500, level error) instead."""

RELEASE_SHARE = 0.12
"""Share of a service's lines that speak of the release while it is rolled out."""

_RELEASE_EVERY_US = 4 * 3_600_000_000


def make(world: World, block: Block) -> Rows:
    """The genuine log lines of a block."""
    rng = world.rng(block, "app_log")
    n = world.count("app_log", block)
    table = world.infrastructure.service_table
    service = table[(rng.random(n) * len(table)).astype(np.int64)]
    rows = dress(world, rng, times_in(rng, block, n), service)
    _release(world, rng, rows)
    park = world.infrastructure
    rows = take_rows(rows, ~park.restarting(world.seed, rows["host"], rows["time_us"]))
    rows["host"] = park.at_night(world.seed, rows["host"], rows["time_us"])
    return rows


def dress(
    world: World,
    rng: np.random.Generator,
    time_us: npt.NDArray[np.int64],
    service: npt.NDArray[np.integer],
) -> Rows:
    """Genuine-looking lines of the given services at the given times."""
    park, n = world.infrastructure, len(time_us)
    host = park.service_start[service] + (rng.random(n) * park.service_size[service]).astype(
        np.int64
    )
    said = park.template_table[(rng.random(n) * len(park.template_table)).astype(np.int64)]
    busy = metric.load(world, host, time_us)
    duration = np.exp(
        park.template_duration[service, said] + 0.45 * rng.standard_normal(n) + 0.5 * busy
    )
    level, status = park.template_level[said], park.template_status[said]
    failed = (status == 200) & (rng.random(n) < FAILED_SHARE)
    return {
        "time_us": time_us,
        "host": host.astype(np.int32),
        "template": (service.astype(np.int64) * TEMPLATES + said).astype(np.int32),
        "level": np.where(failed, ERROR, level).astype(np.int32),
        "duration": np.minimum(np.round(duration, 2), 1e6),
        "status": np.where(failed, 500, status).astype(np.int64),
    }


def _release(world: World, rng: np.random.Generator, rows: Rows) -> None:
    """Let services that are being released say so, in templates never seen before, in place."""
    park = world.infrastructure
    service = park.host_service[rows["host"]]
    speaks = rng.random(len(service)) < RELEASE_SHARE
    at = np.flatnonzero(park.deploying(world.seed, service, rows["time_us"]) & speaks)
    number = rows["time_us"][at] // _RELEASE_EVERY_US * 3 + rng.integers(0, 3, len(at))
    rows["template"][at] = (
        park.first_release_template
        + service[at].astype(np.int64) * RELEASE_TEMPLATES
        + number % RELEASE_TEMPLATES
    )
    rows["level"][at] = np.where(rng.random(len(at)) < 0.15, WARNING, INFO)
    rows["duration"][at] = np.nan
    rows["status"][at] = 0


def keys(world: World, rows: Rows) -> npt.NDArray[np.int32]:
    """Partition of each row: that of its host (services are too few to fill the partitions)."""
    partition: npt.NDArray[np.int32] = world.infrastructure.host_partition[rows["host"]]
    return partition


def columns(world: World, rows: Rows) -> dict[str, Any]:
    """The declared fields, id and time excepted."""
    park = world.infrastructure
    status = pl.Series(rows["status"])
    return {
        "service": gather(park.service_names, park.host_service[rows["host"]]),
        "host": gather(park.host_names, rows["host"]),
        "level": gather(park.level_names, rows["level"]),
        "template": gather(park.template_names, rows["template"]),
        "duration_ms": pl.Series(rows["duration"], nan_to_null=True),
        "status": status.set(status == 0, None),
    }
