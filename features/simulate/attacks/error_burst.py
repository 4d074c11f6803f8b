"""Error burst: one service logs failures within minutes, some of them fatal."""

from __future__ import annotations

import numpy as np

from features.simulate.attacks.base import Attack, Campaign, Plan, moments, shows
from features.simulate.mix import STRENGTH_MIN
from features.simulate.population import TEMPLATES
from features.simulate.traffic import app_log
from features.simulate.world import World

__all__ = ["ATTACK"]

_LASTS_S = 1_800.0
_EVENTS_MAX = 16


def _lasts_s(world: World) -> float:
    """As long as the quietest service needs for the weakest and largest campaign, and no more."""
    quietest = world.infrastructure.services - 1
    return min(_LASTS_S, _EVENTS_MAX * 1.7 * _wait_s(world, quietest) / STRENGTH_MIN)


def _wait_s(world: World, service: int) -> float:
    """Mean wait between two lines at strength 1: shorter than the service's own, at most 5 s."""
    usual_s = 1.0 / (world.per_s["app_log"] * world.infrastructure.service_log_share[service])
    return float(min(5.0, 0.7 * usual_s))


def _plan(world: World, campaign: Campaign) -> Plan:
    """Lines at error level, faster than the service logs at all, from one host."""
    rng, s, n = campaign.rng(), campaign.strength, campaign.size
    park = world.infrastructure
    service = int(park.service_table[rng.integers(len(park.service_table))])
    wait = _wait_s(world, service) / s
    time_us = moments(rng, campaign.start_us, n, (0.3 * wait, 1.7 * wait), _lasts_s(world))
    rows = app_log.dress(world, rng, time_us, np.full(n, service))
    rows["host"][shows(rng, s, n)] = park.service_start[service] + rng.integers(
        park.service_size[service]
    )
    failing = np.flatnonzero(park.template_level == app_log.ERROR)
    said = failing[rng.integers(len(failing))]
    wrong = shows(rng, s, n)
    rows["template"][wrong] = service * TEMPLATES + said
    rows["level"][wrong] = np.where(rng.random(n) < 0.5, app_log.FATAL, app_log.ERROR)[wrong]
    rows["status"][wrong] = park.template_status[said]
    level = park.template_duration[service, said]
    rows["duration"][wrong] = np.round(np.exp(level + rng.normal(0.3, 0.4, n)), 2)[wrong]
    return Plan({"app_log": rows})


ATTACK = Attack(
    name="error_burst",
    doc="One service logging failures faster than it logs at all.",
    event_type="app_log",
    events=(8, _EVENTS_MAX),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
