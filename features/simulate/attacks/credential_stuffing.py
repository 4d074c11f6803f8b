"""Credential stuffing: a list of leaked passwords tried user by user from one address."""

from __future__ import annotations

import numpy as np

from features.simulate.attacks.base import (
    Attack,
    Campaign,
    Plan,
    attacker_address,
    attacker_device,
    far_city,
    moments,
    move,
    shows,
)
from features.simulate.traffic import login
from features.simulate.world import World

__all__ = ["ATTACK"]

_LASTS_S = 1_200.0


def _lasts_s(world: World) -> float:
    """At most twenty minutes at the natural pace."""
    return _LASTS_S * world.pace


def _plan(world: World, campaign: Campaign) -> Plan:
    """One try for each user, seconds apart; nearly all fail."""
    rng, s, n = campaign.rng(), campaign.strength, campaign.size
    people = world.population
    wait = world.pace / s
    time_us = moments(rng, campaign.start_us, n, (1.0 * wait, 5.0 * wait), _lasts_s(world))
    user = rng.integers(0, people.users, n)
    rows = login.dress(world, rng, time_us, user)
    rows["method"][shows(rng, s, n)] = login.PASSWORD
    rows["success"][shows(rng, s, n) & (rng.random(n) < 0.95)] = False
    rows["device"][shows(rng, s, n)] = attacker_device(world, campaign)
    rows["address"][shows(rng, s, n)] = attacker_address(world, campaign)
    city = far_city(rng, int(people.user_country[user[0]]))
    move(rng, rows, shows(rng, s, n), np.full(n, city))
    return Plan({"login": rows})


ATTACK = Attack(
    name="credential_stuffing",
    doc="Leaked passwords tried on many users within minutes from one address.",
    event_type="login",
    events=(10, 20),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
