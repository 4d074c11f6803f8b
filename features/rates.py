"""How often an entity usually acts, and how long ago it last did: one decayed count per entity.

The usual count of a window is what the entity's own rate of the last week or so leads one to
expect in it; the current event is never part of what it is compared with. While an entity is
frozen (`features.freeze`) its clock stands still: its events count and are dated, and the usual
count neither grows by them nor fades.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.freeze import learns
from features.speed import AHEAD, borrowed, inlined, kernel, prefetch

__all__ = ["RATE_FLOATS", "RATE_TAU_S", "read_rates", "run_rates"]

RATE_TAU_S = 7 * 86_400.0
"""Memory of a usual rate; chosen: a week, so that weekends weigh as they should."""

YOUNG_S = 86_400.0
"""An entity younger than this is taken as this old: its first burst is not yet its usual rate.
Chosen: one day's rhythm."""

RATE_FLOATS = 4
"""Per instance: decayed count, time of the last event, of the first, number of events. Microseconds
stay exact in a double until the year 2255."""


@inlined
def _usual(row, at, now, window_us):
    """Events one expects in a window, by an instance of a slot's row."""
    tau_us = RATE_TAU_S * 1e6
    found = 0.0
    if row[at + 3] > 0.0:
        age_us = max(now - row[at + 2], YOUNG_S * 1e6)
        decayed = row[at] * np.exp((row[at + 1] - now) / tau_us)
        seen_us = tau_us * (1.0 - np.exp(-age_us / tau_us))
        found = decayed / seen_us * window_us
    return found


@kernel
def run_rates(slots, taken_us, head, reals_in, feeds, flag_bit, plan, plan_at, state, out):
    """Rates of rows in order.

    Parameters
    ----------
    reals_in : not used; all families are called alike
    feeds : bool (instances, event types)
    flag_bit : int64 (instances,), condition an event must meet to enter, -1 for none
    plan : int64 (features, 4): operation, instance, window in us, where to
    plan_at : int64 (event types + 1,)
    state : float64 (slots, instances * 4)
    """
    head, state = borrowed(head, state)
    tau_us = RATE_TAU_S * 1e6
    for i in range(len(slots)):
        if i + AHEAD < len(slots):
            prefetch(state, slots[i + AHEAD])
        code, now = head[i, 2], float(taken_us[i])
        row = state[slots[i]]
        for k in range(plan_at[code], plan_at[code + 1]):
            op, at, to = plan[k, 0], plan[k, 1] * RATE_FLOATS, plan[k, 3]
            n = row[at + 3]
            if op == 3:
                out[i, to] = n
            elif op == 0:
                out[i, to] = _usual(row, at, now, plan[k, 2])
            elif n > 0.0:
                out[i, to] = (now - row[at + op]) / 1e6
            elif op == 2:
                out[i, to] = 0.0
        for q in range(len(flag_bit)):
            if not feeds[q, code]:
                continue
            if flag_bit[q] >= 0 and not (head[i, 7] >> flag_bit[q]) & 1:
                continue
            at = q * RATE_FLOATS
            if row[at + 3] == 0.0:
                row[at + 2] = now
                row[at] = 1.0
            elif learns(head, i):
                row[at] = row[at] * np.exp((row[at + 1] - now) / tau_us) + 1.0
            row[at + 1] = now
            row[at + 3] += 1.0


@kernel
def read_rates(slots, at_us, code, plan, plan_at, state, out):
    """How many events are usual as of times no earlier than the newest; changes no state.

    Parameters
    ----------
    slots, at_us : int64 (n,)
    code : event type whose features are read
    plan, plan_at, state, out : see `run_rates`; its other operations are of an event
    """
    for i in range(len(slots)):
        row = state[slots[i]]
        for k in range(plan_at[code], plan_at[code + 1]):
            if plan[k, 0] == 0:
                at = plan[k, 1] * RATE_FLOATS
                out[i, plan[k, 3]] = _usual(row, at, float(at_us[i]), plan[k, 2])
