"""New template: a service says something nobody has ever seen, again and again."""

from __future__ import annotations

import numpy as np

from features.simulate.attacks.base import Attack, Campaign, Plan, moments, shows
from features.simulate.mix import STRENGTH_MIN
from features.simulate.population import ATTACK_TEMPLATES
from features.simulate.traffic import app_log
from features.simulate.world import World

__all__ = ["ATTACK"]

_LASTS_S = 3_600.0
_EVENTS_MAX = 12


def _lasts_s(world: World) -> float:
    """As long as the quietest service needs for the weakest and largest campaign, and no more."""
    quietest = world.infrastructure.services - 1
    return min(_LASTS_S, _EVENTS_MAX * 1.7 * _wait_s(world, quietest) / STRENGTH_MIN)


def _wait_s(world: World, service: int) -> float:
    """Mean wait between two lines at strength 1: twice the service's own, at most 20 s."""
    usual_s = 1.0 / (world.per_s["app_log"] * world.infrastructure.service_log_share[service])
    return float(min(20.0, 2.0 * usual_s))


def _plan(world: World, campaign: Campaign) -> Plan:
    """Lines of one unseen template, most of them warnings or errors, from one host."""
    rng, s, n = campaign.rng(), campaign.strength, campaign.size
    park = world.infrastructure
    service = int(park.service_table[rng.integers(len(park.service_table))])
    wait = _wait_s(world, service) / s
    time_us = moments(rng, campaign.start_us, n, (0.3 * wait, 1.7 * wait), _lasts_s(world))
    rows = app_log.dress(world, rng, time_us, np.full(n, service))
    rows["host"][shows(rng, s, n)] = park.service_start[service] + rng.integers(
        park.service_size[service]
    )
    unseen = shows(rng, s, n)
    rows["template"][unseen] = park.first_attack_template + int(rng.integers(ATTACK_TEMPLATES))
    rows["duration"][unseen] = np.nan
    rows["status"][unseen] = 0
    bad = shows(rng, s, n)
    rows["level"][bad] = np.where(rng.random(n) < 0.6, app_log.ERROR, app_log.WARNING)[bad]
    return Plan({"app_log": rows})


ATTACK = Attack(
    name="new_template",
    doc="A message no service has said before, repeated.",
    event_type="app_log",
    events=(6, _EVENTS_MAX),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
