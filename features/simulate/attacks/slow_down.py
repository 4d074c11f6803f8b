"""Slow-down: what a service reports takes many times as long; nothing fails."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.simulate.attacks.base import Attack, Campaign, Change, Plan
from features.simulate.world import Rows, World

__all__ = ["ATTACK"]

_EVENTS_MAX = 14

FULL = 14.0
"""Factor on durations that strength 1 adds."""


def _seconds(world: World, service: int, events: int) -> float:
    """How long the service needs for so many lines with a duration."""
    park = world.infrastructure
    per_s = float(world.per_s["app_log"] * park.service_log_share[service]) * park.timed_share
    return events / per_s


def _lasts_s(world: World) -> float:
    """As long as the quietest service needs for the largest campaign."""
    return _seconds(world, world.infrastructure.services - 1, _EVENTS_MAX)


def _plan(world: World, campaign: Campaign) -> Plan:
    """Stretch the durations of one service."""
    rng, s = campaign.rng(), campaign.strength
    park = world.infrastructure
    service = int(park.service_table[rng.integers(len(park.service_table))])
    factor = 1.0 + FULL * s**1.5

    def apply(world: World, rows: Rows, at: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        mine = (park.host_service[rows["host"][at]] == service) & ~np.isnan(rows["duration"][at])
        at = at[mine]
        rows["duration"][at] = np.minimum(np.round(rows["duration"][at] * factor, 2), 1e8)
        return at

    end_us = campaign.start_us + int(1e6 * _seconds(world, service, campaign.size))
    return Plan(changes=(Change("app_log", campaign.start_us, end_us, apply),))


ATTACK = Attack(
    name="slow_down",
    doc="Everything a service reports takes many times as long.",
    event_type="app_log",
    events=(8, _EVENTS_MAX),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
