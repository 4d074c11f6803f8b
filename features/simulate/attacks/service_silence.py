"""Service silence: a service logs nothing any more while its hosts still send their metrics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.simulate.attacks.base import Attack, Campaign, Plan, Silence
from features.simulate.world import Rows, World

__all__ = ["ATTACK"]

_SAMPLES = (3, 6)
"""How long at strength 1, in intervals of its hosts' samples. Chosen: a service is many hosts, and
its silence is seen sooner."""


def _lasts_s(world: World) -> float:
    """As long as it may last."""
    return _SAMPLES[1] * world.infrastructure.interval_us / 1e6


def _plan(world: World, campaign: Campaign) -> Plan:
    """Hush the log of a service, for as long as the campaign is strong."""
    rng, s = campaign.rng(), campaign.strength
    park = world.infrastructure
    service = int(rng.integers(park.services))
    missed = s * float(rng.uniform(*_SAMPLES))

    def hush(world: World, rows: Rows, at: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = park.host_service[rows["host"][at]] == service
        return found

    silent = (("service", str(park.service_names[service])),)
    end_us = campaign.start_us + round(missed * park.interval_us)
    return Plan(silences=(Silence(campaign.start_us, end_us, {"app_log": hush}, silent),))


ATTACK = Attack(
    name="service_silence",
    doc="A service that logs nothing while its hosts go on.",
    event_type="absence",
    events=(0, 0),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
