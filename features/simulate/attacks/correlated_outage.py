"""Correlated outage: hosts of one service fail together, in three of their metrics at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.simulate.attacks.base import Attack, Campaign, Change, Plan
from features.simulate.traffic import metric
from features.simulate.world import Rows, World

__all__ = ["ATTACK"]

_SIGNS: tuple[tuple[int, float], ...] = (
    (metric.LATENCY, 1.4),
    (metric.REQUESTS, -1.9),
    (metric.ERRORS, 2.1),
)
"""Change of the logarithm at strength 1."""


def _lasts_s(world: World) -> float:
    """One sample of each host."""
    return world.infrastructure.interval_us / 1e6


def _plan(world: World, campaign: Campaign) -> Plan:
    """Change latency, requests and errors of several hosts of a service for one sample each."""
    rng, s = campaign.rng(), campaign.strength
    park = world.infrastructure
    service = int(rng.integers(park.services))
    first, size = int(park.service_start[service]), int(park.service_size[service])
    struck = first + rng.permutation(size)[: max(2, round(campaign.size / len(_SIGNS)))]
    factor = np.ones(6)
    for which, full in _SIGNS:
        factor[which] = np.exp(s * full)

    def apply(world: World, rows: Rows, at: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        change = factor[rows["metric"][at]]
        mine = np.isin(rows["host"][at], struck) & (change != 1.0)
        at = at[mine]
        rows["value"][at] = np.round(rows["value"][at] * change[mine], 4)
        return at

    end_us = campaign.start_us + park.interval_us
    return Plan(changes=(Change("metric", campaign.start_us, end_us, apply),))


ATTACK = Attack(
    name="correlated_outage",
    doc="Hosts of one service slow, failing and unvisited at the same time.",
    event_type="metric",
    events=(9, 15),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
