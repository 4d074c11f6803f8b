"""Account takeover: failed logins from abroad, a good one, then the card is emptied quickly."""

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
from features.simulate.chance import pick
from features.simulate.traffic import login, payment
from features.simulate.world import World

__all__ = ["ATTACK"]

_LASTS_S = 14_400.0
_LOGINS = 4


def _lasts_s(world: World) -> float:
    """At most four hours at the natural pace."""
    return _LASTS_S * world.pace


def _plan(world: World, campaign: Campaign) -> Plan:
    """Three failed logins and one good one, then payments at places out of the holder's reach."""
    rng, s = campaign.rng(), campaign.strength
    people, pace = world.population, world.pace
    card = people.active_cards(rng, 1, campaign.start_us)
    user = people.card_user[card]
    city = far_city(rng, int(people.user_country[user[0]]))
    device, address = attacker_device(world, campaign), attacker_address(world, campaign)
    last_s = _lasts_s(world)

    time_us = moments(rng, campaign.start_us, _LOGINS, (5.0 * pace, 25.0 * pace), 0.03 * last_s)
    logins = login.dress(world, rng, time_us, np.repeat(user, _LOGINS))
    failed = shows(rng, s, _LOGINS)
    failed[-1] = False
    logins["success"][failed] = False
    logins["success"][-1] = True
    logins["method"][failed] = login.PASSWORD
    logins["device"][shows(rng, s, _LOGINS)] = device
    logins["address"][shows(rng, s, _LOGINS)] = address
    move(rng, logins, shows(rng, s, _LOGINS), np.full(_LOGINS, city))

    n = max(2, campaign.size - _LOGINS)
    wait = pace / s
    time_us = moments(rng, int(time_us[-1]), n, (40.0 * wait, 240.0 * wait), 0.95 * last_s)
    payments = payment.dress(world, rng, time_us, np.repeat(card, n), online=True)
    payments["merchant"] = pick(rng, people.shop_table, 0, len(people.shop_table), n)
    high = payments["amount"] * np.exp(s * rng.uniform(1.0, 2.2, n))
    payments["amount"] = np.round(high, 2)
    payments["device"][shows(rng, s, n)] = device
    payments["address"][shows(rng, s, n)] = address
    move(rng, payments, shows(rng, s, n), np.full(n, city))
    payments["declined"] |= shows(rng, s, n) & (rng.random(n) < 0.15)
    return Plan({"login": logins, "payment": payments})


ATTACK = Attack(
    name="account_takeover",
    doc="Failed logins from abroad, a good one, then large payments from places out of reach.",
    event_type="payment",
    events=(10, 14),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
