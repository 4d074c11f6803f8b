"""Level shift: one metric of one host jumps to another level and stays there for a while."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.simulate.attacks.base import Attack, Campaign, Change, Plan
from features.simulate.traffic import metric
from features.simulate.world import Rows, World

__all__ = ["ATTACK"]

_SAMPLES_MAX = 15

_SHIFTS: tuple[tuple[int, float], ...] = (
    (metric.CPU, 35.0),
    (metric.MEMORY, 18.0),
    (metric.LATENCY, 0.9),
    (metric.REQUESTS, -0.9),
    (metric.ERRORS, 1.8),
)
"""Shift at strength 1: points of per cent, or of the logarithm. Chosen at about the day's own
range, so that the weaker half stays within what the host reaches at other hours."""


def _lasts_s(world: World) -> float:
    """As many samples as a campaign may have."""
    return _SAMPLES_MAX * world.infrastructure.interval_us / 1e6


def _plan(world: World, campaign: Campaign) -> Plan:
    """Change the samples of one series."""
    rng, s = campaign.rng(), campaign.strength
    park = world.infrastructure
    host = int(rng.integers(park.hosts))
    which, full = _SHIFTS[int(rng.integers(len(_SHIFTS)))]

    def apply(world: World, rows: Rows, at: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        at = at[(rows["host"][at] == host) & (rows["metric"][at] == which)]
        value = rows["value"][at]
        if which in (metric.CPU, metric.MEMORY):
            value = np.clip(value + s * full, 0.0, 100.0)
        else:
            value = value * np.exp(s * full)
        rows["value"][at] = np.round(value, 4)
        return at

    end_us = campaign.start_us + campaign.size * park.interval_us
    return Plan(changes=(Change("metric", campaign.start_us, end_us, apply),))


ATTACK = Attack(
    name="level_shift",
    doc="One metric of one host at another level for a while.",
    event_type="metric",
    events=(10, 14),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
