"""Flat line: a sensor sticks at one value; a plain one at zero, like a dead exporter."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.simulate.attacks.base import Attack, Campaign, Change, Plan
from features.simulate.traffic import metric
from features.simulate.world import Rows, World

__all__ = ["ATTACK"]

_SAMPLES_MAX = 15
_METRICS = (metric.CPU, metric.MEMORY, metric.LATENCY, metric.REQUESTS)


def _lasts_s(world: World) -> float:
    """As many samples as a campaign may have."""
    return _SAMPLES_MAX * world.infrastructure.interval_us / 1e6


def _plan(world: World, campaign: Campaign) -> Plan:
    """Draw one series to a constant: (1 - s^2) of what it was, with (1 - s) of its movement."""
    rng, s = campaign.rng(), campaign.strength
    park = world.infrastructure
    host = int(rng.integers(park.hosts))
    which = _METRICS[int(rng.integers(len(_METRICS)))]
    usual = metric.expected(world, np.array([host]), np.array([campaign.start_us]))[0, which]
    stuck = usual * (1.0 - s * s)

    def apply(world: World, rows: Rows, at: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        at = at[(rows["host"][at] == host) & (rows["metric"][at] == which)]
        rows["value"][at] = np.round(stuck + (1.0 - s) * (rows["value"][at] - usual), 4).clip(0.0)
        return at

    end_us = campaign.start_us + campaign.size * park.interval_us
    return Plan(changes=(Change("metric", campaign.start_us, end_us, apply),))


ATTACK = Attack(
    name="flat_line",
    doc="A sensor stuck at one value.",
    event_type="metric",
    events=(10, 14),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
