"""Card testing: a thief tries a list of stolen cards with tiny amounts at one shop online."""

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
from features.simulate.traffic import payment
from features.simulate.world import World

__all__ = ["ATTACK"]

_LASTS_S = 1_800.0


def _lasts_s(world: World) -> float:
    """At most half an hour at the natural pace."""
    return _LASTS_S * world.pace


def _plan(world: World, campaign: Campaign) -> Plan:
    """One payment of each card, seconds apart, from one device and address abroad."""
    rng, s, n = campaign.rng(), campaign.strength, campaign.size
    people = world.population
    slow = world.pace / s
    time_us = moments(rng, campaign.start_us, n, (3.0 * slow, 15.0 * slow), _lasts_s(world))
    card = people.active_cards(rng, n, campaign.start_us)
    rows = payment.dress(world, rng, time_us, card, online=True)
    shop = pick(rng, people.shop_table, 0, len(people.shop_table), 1)[0]
    rows["merchant"][shows(rng, s, n)] = shop
    tiny = shows(rng, s, n)
    rows["amount"][tiny] = np.round(rng.uniform(0.5, 2.0, int(tiny.sum())), 2)
    rows["device"][shows(rng, s, n)] = attacker_device(world, campaign)
    rows["address"][shows(rng, s, n)] = attacker_address(world, campaign)
    country = int(people.user_country[people.card_user[card[0]]])
    move(rng, rows, shows(rng, s, n), np.full(n, far_city(rng, country)))
    rows["declined"] |= shows(rng, s, n) & (rng.random(n) < 0.4)
    return Plan({"payment": rows})


ATTACK = Attack(
    name="card_testing",
    doc="Many stolen cards tried with tiny amounts at one shop from one device.",
    event_type="payment",
    events=(10, 18),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
