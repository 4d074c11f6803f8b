"""Merchant compromise: copies of cards from all over the world are used at one till."""

from __future__ import annotations

import numpy as np

from features.simulate.attacks.base import Attack, Campaign, Plan, moments, shows
from features.simulate.chance import pick
from features.simulate.traffic import payment
from features.simulate.world import World

__all__ = ["ATTACK"]

_LASTS_S = 14_400.0


def _lasts_s(world: World) -> float:
    """At most four hours at the natural pace."""
    return _LASTS_S * world.pace


def _plan(world: World, campaign: Campaign) -> Plan:
    """Payments of many cards at one till, most far from home, large and round, many declined."""
    rng, s, n = campaign.rng(), campaign.strength, campaign.size
    people = world.population
    wait = world.pace / s
    time_us = moments(rng, campaign.start_us, n, (30.0 * wait, 150.0 * wait), _lasts_s(world))
    merchant = int(pick(rng, people.till_table, 0, len(people.till_table), 1)[0])
    card = people.active_cards(rng, n, campaign.start_us)
    near = np.flatnonzero(people.user_city[people.card_user] == people.merchant_city[merchant])
    local = ~shows(rng, s, n)
    if len(near):
        card[local] = near[rng.integers(0, len(near), int(local.sum()))]
    rows = payment.dress(world, rng, time_us, card, online=False)
    rows["merchant"][:] = merchant
    rows["latitude"][:] = people.merchant_latitude[merchant]
    rows["longitude"][:] = people.merchant_longitude[merchant]
    rows["country"][:] = people.merchant_country[merchant]
    rows["currency"][:] = world.currency_of(people.merchant_country[merchant])
    round_sum = 10.0 * np.round(rng.uniform(15.0, 45.0, n))
    rows["amount"] = np.round(rows["amount"] ** (1.0 - s) * round_sum**s, 2)
    rows["declined"] |= shows(rng, s, n) & (rng.random(n) < 0.3)
    return Plan({"payment": rows})


ATTACK = Attack(
    name="merchant_compromise",
    doc="Copied cards from everywhere used at one till for large round amounts.",
    event_type="payment",
    events=(10, 18),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
