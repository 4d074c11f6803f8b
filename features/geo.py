"""Where an entity is at home and where it last was, as unit vectors: distance and speed.

Unit vectors make means of places work across the date line and the poles; a distance is the great
circle's.

The home is a mean of some 64 places beside a slow one of some 256. A place weighs by how far it is
from the slow home, in usual distances from it (Huber's weight, as in `features.baselines`): whole
within two, at least a fourth. Who moves on by a little each day leaves the home behind; who moves
house is at home there after some 256 places.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.baselines import weight_of
from features.freeze import learns
from features.speed import AHEAD, borrowed, inlined, kernel, prefetch

__all__ = ["GEO_FLOATS", "run_geo"]

EARTH_KM = 6371.0088
"""Mean radius of the earth (IUGG)."""

HOME_EVENTS = 64.0
"""Memory of the home, in places; chosen: a journey of some days does not move it far."""

SLOW_HOME_EVENTS, DISTANCE_EVENTS = 256.0, 768.0
"""Memory of the slow home and of the usual distance from it; chosen: four times the home's, and
three times that, as that of an anchor's deviation."""

DISTANT, DISTANT_FROM = 1.5, 16.0
"""The usual distance takes a place in at so many of itself at most, once so many places are known,
from which on places are weighed. Chosen as `features.anchors.HUBER`, `ANCHOR_FROM`."""

PLACE_WEIGHT_MIN = 0.25
"""Least weight of a place; chosen: a home that has moved for good is learned within some four weeks
of ten events a day."""

NEAR_KM = 1.0
"""Added to the usual distance; chosen: who never leaves the house has a way to the shops."""

HOME_FROM = 3.0
"""Places needed before there is a home."""

GAP_S_MIN = 60.0
"""Two places are taken to be at least this long apart; chosen: clocks of terminals differ."""

GEO_FLOATS = 12
"""Per instance: home x, y, z, places so far, last x, y, z, time of the last place, slow home x, y,
z, usual distance from it in km."""


@kernel
def _distance_km(ax, ay, az, bx, by, bz):
    """Great circle between two unit vectors, exact for near places too."""
    chord = np.sqrt((ax - bx) ** 2 + (ay - by) ** 2 + (az - bz) ** 2)
    return 2.0 * EARTH_KM * np.arcsin(min(0.5 * chord, 1.0))


@kernel
def _from_home_km(row, at, x, y, z):
    """Distance of a place from a home, which is a mean and thus not of length 1; NaN for none."""
    length = np.sqrt(row[at] ** 2 + row[at + 1] ** 2 + row[at + 2] ** 2)
    if length == 0.0:
        return np.nan
    return _distance_km(row[at] / length, row[at + 1] / length, row[at + 2] / length, x, y, z)


@inlined
def _move(row, at, share, x, y, z):
    """Take a place into a home."""
    row[at] += share * (x - row[at])
    row[at + 1] += share * (y - row[at + 1])
    row[at + 2] += share * (z - row[at + 2])


@inlined
def _learn(row, at, x, y, z):
    """Take a place into both homes of an instance."""
    n, weight = row[at + 3], 1.0
    slow = max(1.0 / (n + 1.0), 1.0 / SLOW_HOME_EVENTS)
    km = _from_home_km(row, at + 8, x, y, z)
    if km == km:
        usual = row[at + 11] + NEAR_KM
        if n >= DISTANT_FROM:
            weight = max(weight_of(km, usual), PLACE_WEIGHT_MIN)
            km = min(km, DISTANT * usual)
        share = max(1.0 / (n + 1.0), 1.0 / DISTANCE_EVENTS)
        row[at + 11] += share * (km - row[at + 11])
    _move(row, at, weight * max(1.0 / (n + 1.0), 1.0 / HOME_EVENTS), x, y, z)
    _move(row, at + 8, weight * slow, x, y, z)
    row[at + 3] = n + 1.0


@kernel
def run_geo(slots, taken_us, head, reals_in, places, feeds, plan, plan_at, state, out):
    """Places of rows in order.

    Parameters
    ----------
    places : int64 (3,), columns of `reals_in` with the place
    feeds : bool (instances, event types)
    plan : int64 (features, 4): operation, instance, -, where to
    plan_at : int64 (event types + 1,)
    state : float64 (slots, instances * 12)
    """
    state = borrowed(state)
    for i in range(len(slots)):
        if i + AHEAD < len(slots):
            prefetch(state, slots[i + AHEAD])
        x, y, z = reals_in[i, places[0]], reals_in[i, places[1]], reals_in[i, places[2]]
        if x != x or y != y or z != z:
            continue
        code, now = head[i, 2], float(taken_us[i])
        row = state[slots[i]]
        for k in range(plan_at[code], plan_at[code + 1]):
            op, at, to = plan[k, 0], plan[k, 1] * GEO_FLOATS, plan[k, 3]
            n = row[at + 3]
            if op == 0:
                if n >= HOME_FROM:
                    out[i, to] = _from_home_km(row, at, x, y, z)
            elif n > 0.0:
                gap_s = (now - row[at + 7]) / 1e6
                if op == 3:
                    out[i, to] = gap_s
                else:
                    km = _distance_km(row[at + 4], row[at + 5], row[at + 6], x, y, z)
                    out[i, to] = km if op == 1 else km * 3600.0 / max(gap_s, GAP_S_MIN)
        for g in range(len(feeds)):
            if not feeds[g, code]:
                continue
            at = g * GEO_FLOATS
            if learns(head, i):
                _learn(row, at, x, y, z)
            row[at + 4], row[at + 5], row[at + 6], row[at + 7] = x, y, z, now
