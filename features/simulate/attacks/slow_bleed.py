"""Slow bleed: a stolen card is used for hours, each payment some times larger than usual."""

from __future__ import annotations

import numpy as np

from features.simulate.attacks.base import (
    Attack,
    Campaign,
    Plan,
    attacker_address,
    attacker_device,
    moments,
    shows,
)
from features.simulate.chance import pick
from features.simulate.traffic import payment
from features.simulate.world import World

__all__ = ["ATTACK"]

_LASTS_S = 10_800.0


def _lasts_s(world: World) -> float:
    """At most three hours at the natural pace."""
    return _LASTS_S * world.pace


def _plan(world: World, campaign: Campaign) -> Plan:
    """Payments minutes apart at unused shops, from one unknown device, no place odd."""
    rng, s, n = campaign.rng(), campaign.strength, campaign.size
    people = world.population
    wait = world.pace / np.sqrt(s)
    time_us = moments(rng, campaign.start_us, n, (120.0 * wait, 360.0 * wait), _lasts_s(world))
    card = people.active_cards(rng, 1, campaign.start_us)
    rows = payment.dress(world, rng, time_us, np.repeat(card, n), online=True)
    unknown = shows(rng, s, n)
    shops = pick(rng, people.shop_table, 0, len(people.shop_table), n)
    rows["merchant"][unknown] = shops[unknown]
    rows["amount"] = np.round(rows["amount"] * np.exp(s * rng.uniform(1.0, 1.8, n)), 2)
    rows["device"][shows(rng, s, n)] = attacker_device(world, campaign)
    rows["address"][shows(rng, s, n)] = attacker_address(world, campaign)
    return Plan({"payment": rows})


ATTACK = Attack(
    name="slow_bleed",
    doc="A card drained for hours by payments some times larger than its usual ones.",
    event_type="payment",
    events=(10, 14),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
