"""Session hijack: a stolen session token is used from another device and country; none fails."""

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

_LASTS_S = 10_800.0


def _lasts_s(world: World) -> float:
    """At most three hours at the natural pace."""
    return _LASTS_S * world.pace


def _plan(world: World, campaign: Campaign) -> Plan:
    """Uses of one user's token, a minute or two apart, all of them let in."""
    rng, s, n = campaign.rng(), campaign.strength, campaign.size
    people = world.population
    wait = world.pace / s
    time_us = moments(rng, campaign.start_us, n, (40.0 * wait, 150.0 * wait), _lasts_s(world))
    card = people.active_cards(rng, 1, campaign.start_us)
    user = people.card_user[card]
    rows = login.dress(world, rng, time_us, np.repeat(user, n))
    rows["method"][shows(rng, s, n)] = login.TOKEN
    rows["success"][:] = True
    rows["device"][shows(rng, s, n)] = attacker_device(world, campaign)
    rows["address"][shows(rng, s, n)] = attacker_address(world, campaign)
    city = far_city(rng, int(people.user_country[user[0]]))
    move(rng, rows, shows(rng, s, n), np.full(n, city))
    return Plan({"login": rows})


ATTACK = Attack(
    name="session_hijack",
    doc="A stolen session token used from another device and country.",
    event_type="login",
    events=(6, 10),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
