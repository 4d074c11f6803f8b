"""Slow ramp: a card's payments grow a little from one to the next, over three weeks.

Against baselines that can be boiled: each payment is close to those before it. It is left out of
the default mix (its campaigns last for weeks where a run is a day or two); ask for it by name.
"""

from __future__ import annotations

import numpy as np

from features.simulate.attacks.base import Attack, Campaign, Plan, moments
from features.simulate.traffic import payment
from features.simulate.world import World

__all__ = ["ATTACK"]

_LASTS_S = 21 * 86_400.0

FULL = 2.0
"""How much larger the last payment's logarithm is at strength 1: seven times what the card pays."""


def _lasts_s(world: World) -> float:
    """Three weeks at the natural pace."""
    return _LASTS_S * world.pace


def _plan(world: World, campaign: Campaign) -> Plan:
    """Payments as the card makes them, spread over the weeks, each a little larger."""
    rng, s, n = campaign.rng(), campaign.strength, campaign.size
    lasts_s = _lasts_s(world)
    wait_s = (0.5 * lasts_s / n, 1.4 * lasts_s / n)
    time_us = moments(rng, campaign.start_us, n, wait_s, lasts_s)
    card = world.population.active_cards(rng, 1, campaign.start_us)
    rows = payment.dress(world, rng, time_us, np.repeat(card, n))
    climbed = (time_us - campaign.start_us) / (lasts_s * 1e6)
    rows["amount"] = np.round(rows["amount"] * np.exp(s * FULL * climbed), 2)
    return Plan({"payment": rows})


ATTACK = Attack(
    name="slow_ramp",
    doc="Payments of one card that grow a little from one to the next, for three weeks.",
    event_type="payment",
    events=(60, 90),
    lasts_s_max=_lasts_s,
    plan=_plan,
    by_default=False,
)
