"""Series silence: one metric of one host stops, the others go on; an exporter that broke."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.simulate.attacks.base import Attack, Campaign, Plan, Silence
from features.simulate.population import METRICS
from features.simulate.world import Rows, World

__all__ = ["ATTACK"]

_SAMPLES = (8, 14)
"""Samples that do not come at strength 1. Chosen: as for a host."""


def _lasts_s(world: World) -> float:
    """As many samples as may be missed."""
    return _SAMPLES[1] * world.infrastructure.interval_us / 1e6


def _plan(world: World, campaign: Campaign) -> Plan:
    """Hush one series, for as long as the campaign is strong."""
    rng, s = campaign.rng(), campaign.strength
    park = world.infrastructure
    host, which = int(rng.integers(park.hosts)), int(rng.integers(len(METRICS)))
    missed = s * float(rng.uniform(*_SAMPLES))

    def hush(world: World, rows: Rows, at: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = (rows["host"][at] == host) & (rows["metric"][at] == which)
        return found

    silent = (("series", f"{park.host_names[host]}|{METRICS[which]}"),)
    end_us = campaign.start_us + round(missed * park.interval_us)
    return Plan(silences=(Silence(campaign.start_us, end_us, {"metric": hush}, silent),))


ATTACK = Attack(
    name="series_silence",
    doc="One metric of a host that stops while the others go on.",
    event_type="absence",
    events=(0, 0),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
