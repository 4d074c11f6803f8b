"""Password spraying: one common password on many users, slowly, from addresses that change."""

from __future__ import annotations

import numpy as np

from features.simulate.attacks.base import (
    Attack,
    Campaign,
    Plan,
    attacker_address,
    far_city,
    moments,
    move,
    shows,
)
from features.simulate.traffic import login
from features.simulate.world import World

__all__ = ["ATTACK"]

_LASTS_S = 7_200.0
_ADDRESSES = 3


def _lasts_s(world: World) -> float:
    """At most two hours at the natural pace."""
    return _LASTS_S * world.pace


def _plan(world: World, campaign: Campaign) -> Plan:
    """One try for each user, a minute apart, from three addresses in turn, without a device."""
    rng, s, n = campaign.rng(), campaign.strength, campaign.size
    people = world.population
    wait = world.pace / s
    time_us = moments(rng, campaign.start_us, n, (20.0 * wait, 90.0 * wait), _lasts_s(world))
    user = rng.integers(0, people.users, n)
    rows = login.dress(world, rng, time_us, user)
    turn = np.arange(n) % _ADDRESSES
    rows["method"][shows(rng, s, n)] = login.PASSWORD
    rows["success"][shows(rng, s, n) & (rng.random(n) < 0.97)] = False
    rows["device"][shows(rng, s, n)] = -1
    moved = shows(rng, s, n)
    addresses = np.array([attacker_address(world, campaign, i) for i in range(_ADDRESSES)])
    rows["address"][moved] = addresses[turn[moved]]
    country = int(people.user_country[user[0]])
    cities = np.array([far_city(rng, country) for _ in range(_ADDRESSES)])
    move(rng, rows, shows(rng, s, n), cities[turn])
    return Plan({"login": rows})


ATTACK = Attack(
    name="password_spraying",
    doc="One common password on many users, slowly, from changing addresses.",
    event_type="login",
    events=(10, 16),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
