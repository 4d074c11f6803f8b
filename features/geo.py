"""Where an entity is at home and where it last was, as unit vectors: distance and speed.

Unit vectors make means of places work across the date line and the poles; a distance is the great
circle's.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.freeze import learns
from features.speed import AHEAD, borrowed, kernel, prefetch

__all__ = ["GEO_FLOATS", "run_geo"]

EARTH_KM = 6371.0088
"""Mean radius of the earth (IUGG)."""

HOME_EVENTS = 64.0
"""Memory of the home, in places; chosen: a journey of some days does not move it far."""

HOME_FROM = 3.0
"""Places needed before there is a home."""

GAP_S_MIN = 60.0
"""Two places are taken to be at least this long apart; chosen: clocks of terminals differ."""

GEO_FLOATS = 8
"""Per instance: home x, y, z, places so far, last x, y, z, time of the last place."""


@kernel
def _distance_km(ax, ay, az, bx, by, bz):
    """Great circle between two unit vectors, exact for near places too."""
    chord = np.sqrt((ax - bx) ** 2 + (ay - by) ** 2 + (az - bz) ** 2)
    return 2.0 * EARTH_KM * np.arcsin(min(0.5 * chord, 1.0))


@kernel
def run_geo(slots, taken_us, head, reals_in, places, feeds, plan, plan_at, state, out):
    """Places of rows in order.

    Parameters
    ----------
    places : int64 (3,), columns of `reals_in` with the place
    feeds : bool (instances, event types)
    plan : int64 (features, 4): operation, instance, -, where to
    plan_at : int64 (event types + 1,)
    state : float64 (slots, instances * 8)
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
                length = np.sqrt(row[at] ** 2 + row[at + 1] ** 2 + row[at + 2] ** 2)
                if n >= HOME_FROM and length > 0.0:
                    out[i, to] = _distance_km(
                        row[at] / length, row[at + 1] / length, row[at + 2] / length, x, y, z
                    )
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
            a = max(1.0 / (row[at + 3] + 1.0), 1.0 / HOME_EVENTS)
            if learns(head, i):
                row[at] += a * (x - row[at])
                row[at + 1] += a * (y - row[at + 1])
                row[at + 2] += a * (z - row[at + 2])
                row[at + 3] += 1.0
            row[at + 4], row[at + 5], row[at + 6], row[at + 7] = x, y, z, now
