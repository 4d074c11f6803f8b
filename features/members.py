"""An entity's members side by side: hosts of a pool, metrics of a host, templates of a service.

The entity remembers for each member its latest value and what is usual for it, so that a row can be
compared with its peers, and so that "the others deviate too" is a feature. The row's own member is
never part of what it is compared with.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.baselines import as_sigma
from features.freeze import learns
from features.speed import inlined, kernel

__all__ = ["MEMBERS_MAX", "MEMBER_FLOATS", "run_members"]

MEMBERS_MAX = 32
"""Members remembered per entity, those met first (one silent for an hour gives its place to a new
one); chosen: 2.5 kB an entity, and the mean of 32 peers is good to a fifth of a deviation."""

SILENT_S = 3_600.0

MEMBER_FLOATS = 9
"""Per member: n, time of the latest value, value, usual mean, variance, latest z, and of its gap
to the peers mean, variance and n (the first values had none)."""

USUAL_EVENTS = 100.0
KNOWN_FROM = 8.0
DEVIATES_SIGMA = 3.0
CLIP_SIGMA = 4.0
FLOOR_SHARE = 1e-3
FLOOR = 1e-9
"""As in `features.baselines`."""


@kernel
def _place(names, row, name, now):
    """Place of a member, -1 where it has none and can get none; a new one's n is set to 0."""
    free = -1
    for m in range(MEMBERS_MAX):
        at = m * MEMBER_FLOATS
        if row[at] > 0.0 and names[m] == name:
            return m
        if free < 0 and (row[at] == 0.0 or now - row[at + 1] > SILENT_S * 1e6):
            free = m
    if free >= 0:
        names[free] = name
        row[free * MEMBER_FLOATS : (free + 1) * MEMBER_FLOATS] = 0.0
    return free


@kernel
def _others(row, own, now, window_us, found):
    """Fill `found`: count, mean, deviation of values; count, mean z, mean |z|, share deviating."""
    found[:] = 0.0
    for m in range(MEMBERS_MAX):
        at = m * MEMBER_FLOATS
        if m == own or row[at] == 0.0 or now - row[at + 1] >= window_us:
            continue
        found[0] += 1.0
        found[1] += row[at + 2]
        if row[at] > KNOWN_FROM:
            found[3] += 1.0
            found[4] += row[at + 5]
            found[5] += abs(row[at + 5])
            found[6] += abs(row[at + 5]) > DEVIATES_SIGMA
    if found[0] > 0.0:
        found[1] /= found[0]
        for m in range(MEMBERS_MAX):
            at = m * MEMBER_FLOATS
            if m == own or row[at] == 0.0 or now - row[at + 1] >= window_us:
                continue
            found[2] += (row[at + 2] - found[1]) ** 2
        found[2] = np.sqrt(found[2] / found[0])
    if found[3] > 0.0:
        for k in range(4, 7):
            found[k] /= found[3]


@kernel
def _learn(row, at, n, x, mean, variance):
    """Take x into a member's mean and variance of n values, at places `mean` and `variance`."""
    if n == 0.0:
        row[at + mean] = x
        return
    d = x - row[at + mean]
    if n >= KNOWN_FROM:
        limit = CLIP_SIGMA * (
            np.sqrt(row[at + variance]) + FLOOR_SHARE * abs(row[at + mean]) + FLOOR
        )
        d = min(max(d, -limit), limit)
    a = max(1.0 / (n + 1.0), 1.0 / USUAL_EVENTS)
    row[at + mean] += a * d
    row[at + variance] = (1.0 - a) * (row[at + variance] + a * d * d)


@kernel
def _z(row, at, n, x, mean, variance):
    """Deviation of x from what is usual by n values; NaN while too little is known."""
    if n < KNOWN_FROM:
        return np.nan
    floor = FLOOR_SHARE * abs(row[at + mean]) + FLOOR
    return as_sigma((x - row[at + mean]) / (np.sqrt(row[at + variance]) + floor), n)


@inlined
def _statistic(op, found, x, z, gap_z):
    """What an operation makes of a member and what was found of its peers; NaN where unknown."""
    if op == 5:
        return z
    if op == 2:
        return gap_z
    if op == 0:
        return found[1] if found[0] > 0.0 else np.nan
    if op == 1:
        spread = found[2] + FLOOR_SHARE * abs(found[1]) + FLOOR
        return (x - found[1]) / spread if found[0] > 1.0 else np.nan
    if found[3] == 0.0:
        return np.nan
    if op == 3:
        return found[4]
    if op == 4:
        return found[6]
    return z - found[4] if op == 6 else found[5]


@kernel
def run_members(
    slots, taken_us, head, reals_in, feeds, others, columns, windows_us, plan, plan_at, names,
    state, out
):  # fmt: skip
    """Members of rows in order.

    Parameters
    ----------
    feeds : bool (instances, event types)
    others, columns : int64 (instances,), where a row's member and value stand
    windows_us : int64 (instances,), how fresh a peer's latest value must be
    windows_us : int64 (instances,), how fresh a peer's latest value must be
    plan : int64 (features, 4): operation, instance, -, where to
    plan_at : int64 (event types * instances + 1,), by event type, then instance
    names : int64 (slots, instances * 32)
    state : float64 (slots, instances * 32 * 9)
    """
    instances = len(others)
    found = np.empty(7)
    for i in range(len(slots)):
        code, now = head[i, 2], float(taken_us[i])
        for b in range(instances):
            e0, e1 = plan_at[code * instances + b], plan_at[code * instances + b + 1]
            name, x = head[i, others[b]], reals_in[i, columns[b]]
            if (e0 == e1 and not feeds[b, code]) or name == 0 or x != x:
                continue
            size = MEMBERS_MAX * MEMBER_FLOATS
            row = state[slots[i], b * size : (b + 1) * size]
            own = _place(names[slots[i], b * MEMBERS_MAX : (b + 1) * MEMBERS_MAX], row, name, now)
            _others(row, own, now, windows_us[b], found)
            at = own * MEMBER_FLOATS
            z = _z(row, at, row[at], x, 3, 4) if own >= 0 else np.nan
            peers, gap = found[0] > 0.0, x - found[1]
            gap_z = _z(row, at, row[at + 8], gap, 6, 7) if own >= 0 and peers else np.nan
            for k in range(e0, e1):
                out[i, plan[k, 3]] = _statistic(plan[k, 0], found, x, z, gap_z)
            if own >= 0 and feeds[b, code]:
                if learns(head, i) or row[at] == 0.0:
                    _learn(row, at, row[at], x, 3, 4)
                    if peers:
                        _learn(row, at, row[at + 8], gap, 6, 7)
                        row[at + 8] += 1.0
                    row[at] += 1.0
                row[at + 1], row[at + 2] = now, x
                row[at + 5] = 0.0 if z != z else z
