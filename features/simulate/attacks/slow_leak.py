"""Slow leak: the memory of one host climbs for hours, a little with each sample."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.simulate.attacks.base import Attack, Campaign, Change, Plan
from features.simulate.traffic import metric
from features.simulate.world import Rows, World

__all__ = ["ATTACK"]

_SAMPLES_MAX = 40

FULL = 35.0
"""Points of per cent that have leaked at the end, at strength 1."""

HIDDEN = 3.0 * metric.NOISE[metric.MEMORY]
"""Up to here the leak is within the noise: those samples are as ever and carry no label."""


def _lasts_s(world: World) -> float:
    """As many samples as a campaign may have."""
    return (_SAMPLES_MAX + 1) * world.infrastructure.interval_us / 1e6


def _plan(world: World, campaign: Campaign) -> Plan:
    """Add a ramp to one host's memory."""
    rng, s = campaign.rng(), campaign.strength
    park = world.infrastructure
    host = int(rng.integers(park.hosts))
    full = max(FULL * s**1.2, 1.5 * HIDDEN)
    samples = min(_SAMPLES_MAX, round(campaign.size / (1.0 - HIDDEN / full)))
    length_us = samples * park.interval_us

    def apply(world: World, rows: Rows, at: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        at = at[(rows["host"][at] == host) & (rows["metric"][at] == metric.MEMORY)]
        leaked = full * (rows["time_us"][at] - campaign.start_us) / length_us
        rows["value"][at] = np.round(np.minimum(rows["value"][at] + leaked, 100.0), 4)
        past: npt.NDArray[np.intp] = at[leaked > HIDDEN]
        return past

    end_us = campaign.start_us + length_us
    return Plan(changes=(Change("metric", campaign.start_us, end_us, apply),))


ATTACK = Attack(
    name="slow_leak",
    doc="Memory of one host that climbs a little with each sample.",
    event_type="metric",
    events=(10, 16),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
