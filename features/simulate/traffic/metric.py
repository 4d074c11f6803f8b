"""Genuine metrics: every host sampled at a steady interval, with a day's rhythm its peers share.

A sample is a function of host and time plus noise; nothing is walked, so any block stands alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from features.simulate.chance import key_of, unit
from features.simulate.population import DAY_US, HOUR_US, METRICS
from features.simulate.strings import gather
from features.simulate.world import Block, Rows, World

__all__ = ["NOISE", "columns", "expected", "keys", "load", "make"]

CPU, MEMORY, LATENCY, REQUESTS, ERRORS, DISK = range(6)

NOISE = (2.5, 0.7, 0.07, 0.05, 0.30, 0.12)
"""Standard deviation of a sample's noise: points of per cent (cpu, memory, disk), of the logarithm
(latency, requests, errors)."""

SPIKE_SHARE = 0.003
"""Share of (host, two samples) with a brief genuine cpu spike: a cron job, a garbage collection."""

LOST_SHARE = 0.002
"""Share of scrapes that time out and are lost: of a host sampled every 3 min one a day."""

_MINUTE_US = 60_000_000


def load(
    world: World, host: npt.NDArray[np.integer], time_us: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """How busy the host's service is, about 0.1 to 1, float64 (n,): day, week, and slow swings."""
    park = world.infrastructure
    service = park.host_service[host]
    hour = (time_us % DAY_US) / HOUR_US
    day = time_us / DAY_US
    phase = park.service_phase[service]  # (n, 3)
    minutes = time_us / _MINUTE_US
    turn = 2.0 * np.pi
    value = 0.52 + 0.30 * np.sin(turn * (hour - 8.0 - park.service_phase_h[service]) / 24.0)
    value += 0.05 * np.sin(turn * day / 7.0 + phase[:, 0])
    value += 0.04 * np.sin(turn * minutes / 163.0 + phase[:, 1])
    value += 0.03 * np.sin(turn * minutes / 37.0 + phase[:, 2])
    value += 0.02 * np.sin(turn * minutes / 53.0 + park.host_phase[host])
    return np.asarray(np.maximum(value, 0.05))


def expected(
    world: World, host: npt.NDArray[np.integer], time_us: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Values without noise, float64 (n, 6), in the order of METRICS."""
    park = world.infrastructure
    busy = load(world, host, time_us)
    values = np.empty((len(busy), len(METRICS)))
    values[:, CPU] = park.cpu_idle[host] + park.cpu_slope[host] * busy
    values[:, MEMORY] = park.memory_base[host] + 9.0 * busy
    values[:, LATENCY] = park.latency_base[host] * (1.0 + 0.6 * busy * busy)
    values[:, REQUESTS] = park.requests_peak[host] * busy
    values[:, ERRORS] = values[:, REQUESTS] * park.error_share[host]
    fill = (time_us / (park.disk_days[host] * DAY_US) + park.disk_phase[host]) % 1.0
    values[:, DISK] = 30.0 + 45.0 * fill
    return values


def make(world: World, block: Block) -> Rows:
    """The genuine samples of a block."""
    park = world.infrastructure
    rng = world.rng(block, "metric")
    first, last = (-(-edge // park.cell_us) for edge in (block.start_us, block.end_us))
    scrape = np.arange(first, last, dtype=np.int64)
    host = park.scrape_order[scrape % park.hosts]
    late = unit(world.seed ^ key_of("scrape"), scrape) * (0.2 * park.cell_us)
    moment = np.minimum(scrape * park.cell_us + late.astype(np.int64), block.end_us - 1)
    values = expected(world, host, moment)
    _trouble(world, host, scrape // park.hosts, moment, values)
    noise = rng.standard_normal(values.shape) * np.array(NOISE)
    for i in (CPU, MEMORY, DISK):
        values[:, i] = np.clip(values[:, i] + noise[:, i], 0.0, 100.0)
    for i in (LATENCY, REQUESTS, ERRORS):
        values[:, i] *= np.exp(noise[:, i])
    lost = unit(world.seed ^ key_of("lost scrape"), scrape) < LOST_SHARE
    came = ~(lost | park.restarting(world.seed, host, moment))
    host, moment, values = host[came], moment[came], values[came]
    n = len(host)
    return {
        "time_us": np.repeat(moment, len(METRICS)),
        "host": np.repeat(host, len(METRICS)),
        "metric": np.tile(np.arange(len(METRICS), dtype=np.int32), n),
        "value": np.round(values.ravel(), 4),
    }


def _trouble(
    world: World,
    host: npt.NDArray[np.int32],
    tick: npt.NDArray[np.int64],
    moment: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
) -> None:
    """Genuine oddities, in place: brief cpu spikes and the roll-out of a release."""
    park = world.infrastructure
    drawn = unit(world.seed ^ key_of("spike"), host, tick // 2)
    spike = drawn < SPIKE_SHARE
    height = drawn[spike] / SPIKE_SHARE
    values[spike, CPU] += 15.0 + 30.0 * height
    values[spike, LATENCY] *= 1.2 + 0.6 * height
    rolling = park.deploying(world.seed, park.host_service[host], moment)
    values[rolling, CPU] += 8.0
    values[rolling, LATENCY] *= 1.35
    values[rolling, REQUESTS] *= 0.75
    values[rolling, ERRORS] *= 2.2


def keys(world: World, rows: Rows) -> npt.NDArray[np.int32]:
    """Partition of each row: that of its series."""
    partition: npt.NDArray[np.int32] = world.infrastructure.series_partition[
        rows["host"].astype(np.int64) * len(METRICS) + rows["metric"]
    ]
    return partition


def columns(world: World, rows: Rows) -> dict[str, Any]:
    """The declared fields, id and time excepted."""
    park = world.infrastructure
    return {
        "host": gather(park.host_names, rows["host"]),
        "metric": gather(park.metric_names, rows["metric"]),
        "service": gather(park.service_names, park.host_service[rows["host"]]),
        "value": rows["value"],
    }
