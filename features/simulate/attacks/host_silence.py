"""Host silence: a host stops, metrics and logs alike; one time in five all hosts of its service."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.simulate.attacks.base import Attack, Campaign, Plan, Silence
from features.simulate.population import METRICS
from features.simulate.world import Rows, World

__all__ = ["ATTACK"]

_SAMPLES = (8, 14)
"""Samples of a series that do not come at strength 1. Chosen: an outage that somebody ends."""

_RACK_SHARE = 0.2


def _lasts_s(world: World) -> float:
    """As many samples as may be missed."""
    return _SAMPLES[1] * world.infrastructure.interval_us / 1e6


def _plan(world: World, campaign: Campaign) -> Plan:
    """Hush everything that names the hosts, for as long as the campaign is strong."""
    rng, s = campaign.rng(), campaign.strength
    park = world.infrastructure
    host = int(rng.integers(park.hosts))
    hosts = np.array([host])
    if rng.random() < _RACK_SHARE:
        hosts = np.flatnonzero(park.host_service[: park.hosts] == park.host_service[host])
    missed = s * float(rng.uniform(*_SAMPLES))

    def hush(world: World, rows: Rows, at: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        return np.isin(rows["host"][at], hosts)

    names = park.host_names[hosts.tolist()].to_list()
    silent = [("host", name) for name in names]
    silent += [("series", f"{name}|{metric}") for name in names for metric in METRICS]
    if len(hosts) > 1:
        silent.append(("service", str(park.service_names[int(park.host_service[host])])))
    end_us = campaign.start_us + round(missed * park.interval_us)
    hushes = {"metric": hush, "app_log": hush}
    return Plan(silences=(Silence(campaign.start_us, end_us, hushes, tuple(silent)),))


ATTACK = Attack(
    name="host_silence",
    doc="A host (or all hosts of a service) that sends neither metrics nor logs.",
    event_type="absence",
    events=(0, 0),
    lasts_s_max=_lasts_s,
    plan=_plan,
)
