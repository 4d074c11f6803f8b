"""Two series of one host that usually move together: what they do now beside what is usual.

Requests rise and the processor with them; where one rises alone, something else is at work. Every
new value of a series makes a pair with the newest value of each other series of its host, if that
is nearer to it than to its own series' previous value: what was sampled together is paired, not
with what came a minute before. Of each two series the correlation is kept twice, over about the
last 32 pairs and over about the last 512; a row is told of the partner whose usual correlation is
the strongest.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.freeze import learns
from features.speed import inlined, kernel

__all__ = ["PAIR_FLOATS", "PARTNERS", "PARTNERS_MAX", "PARTNER_FLOATS", "run_correlations"]

PARTNERS_MAX = 8
"""Series remembered per host, those met first (one silent for an hour gives its place to a new
one); chosen: a host's leading ones, 28 pairs in 2.7 kB."""

SILENT_US = 3_600_000_000.0

PARTNERS = PARTNERS_MAX * (PARTNERS_MAX - 1) // 2
PARTNER_FLOATS = 2
"""Per series: time of the newest value in us (0 for none), value."""

PAIR_FLOATS = 12
"""Per pair, for now and for usual: n, means, variances and covariance."""

NOW_PAIRS = 32.0
USUAL_PAIRS = 512.0
KNOWN_FROM = 64.0
"""Memories in pairs, and pairs from which a correlation is known as usual; chosen: at a sample a
minute of each, half an hour beside eight hours, known after an hour."""

USUAL_MIN = 0.5
"""Series whose usual correlation is weaker are no partners; chosen: it explains a quarter of the
variance, less is not worth a word."""

SURE = np.sqrt(NOW_PAIRS - 3.0)
"""Fisher (1921): atanh of the correlation of n pairs has about the deviation 1 / sqrt(n - 3)."""

CORRELATION_MAX = 0.999
"""Beyond it atanh runs away; chosen: 3.8 in place of infinity."""

FLOOR_SHARE = 1e-3
FLOOR = 1e-9
"""Deviations of a series below this share of its mean are none; as in `features.baselines`."""


@inlined
def _pair_at(a, b):
    """Place of the pair of two different series."""
    low, high = min(a, b), max(a, b)
    return low * (2 * PARTNERS_MAX - low - 1) // 2 + high - low - 1


@kernel
def _place(names, series, pairs, name, now):
    """Place of a series, -1 where it has none and can get none; a new one knows no pairs."""
    free = -1
    for m in range(PARTNERS_MAX):
        time_us = series[m * PARTNER_FLOATS]
        if time_us > 0.0 and names[m] == name:
            return m
        if free < 0 and (time_us == 0.0 or now - time_us > SILENT_US):
            free = m
    if free >= 0:
        names[free] = name
        for m in range(PARTNERS_MAX):
            if m != free:
                at = _pair_at(free, m) * PAIR_FLOATS
                pairs[at : at + PAIR_FLOATS] = 0.0
    return free


@kernel
def _correlation(row, at):
    """Correlation of one memory of a pair; 0 where a series does not move."""
    floor_x = FLOOR_SHARE * abs(row[at + 1]) + FLOOR
    floor_y = FLOOR_SHARE * abs(row[at + 2]) + FLOOR
    spread = np.sqrt((row[at + 3] + floor_x**2) * (row[at + 4] + floor_y**2))
    return min(max(row[at + 5] / spread, -CORRELATION_MAX), CORRELATION_MAX)


@kernel
def _learn(row, at, x, y, memory):
    """Take a pair into one memory."""
    n = row[at]
    share = max(1.0 / (n + 1.0), 1.0 / memory)
    dx, dy = x - row[at + 1], y - row[at + 2]
    row[at] = n + 1.0
    row[at + 1] += share * dx
    row[at + 2] += share * dy
    row[at + 3] = (1.0 - share) * (row[at + 3] + share * dx * dx)
    row[at + 4] = (1.0 - share) * (row[at + 4] + share * dy * dy)
    row[at + 5] = (1.0 - share) * (row[at + 5] + share * dx * dy)


@kernel
def run_correlations(
    slots, taken_us, head, reals_in, feeds, others, columns, windows_us, plan, plan_at, names,
    series, pairs, out
):  # fmt: skip
    """Correlations of rows in order.

    Parameters
    ----------
    feeds : bool (instances, event types)
    others, columns : int64 (instances,), where a row's series (as a key) and value stand
    windows_us : int64 (instances,), how fresh a partner's newest value must be
    plan : int64 (features, 4): operation, instance, -, where to
    plan_at : int64 (event types * instances + 1,), by event type, then instance
    names : int64 (slots, instances * 8)
    series : float64 (slots, instances * 8 * 2)
    pairs : float64 (slots, instances * 28 * 12)
    """
    instances = len(others)
    for i in range(len(slots)):
        code, now = head[i, 2], float(taken_us[i])
        for b in range(instances):
            e0, e1 = plan_at[code * instances + b], plan_at[code * instances + b + 1]
            name, x = head[i, others[b]], reals_in[i, columns[b]]
            if not feeds[b, code] or name == 0 or x != x:
                continue
            each = series[slots[i], b * PARTNERS_MAX * PARTNER_FLOATS :]
            row = pairs[slots[i], b * PARTNERS * PAIR_FLOATS : (b + 1) * PARTNERS * PAIR_FLOATS]
            known = names[slots[i], b * PARTNERS_MAX : (b + 1) * PARTNERS_MAX]
            own = _place(known, each, row, name, now)
            if own < 0:
                continue
            best, usual, before_us = -1, 0.0, each[own * PARTNER_FLOATS]
            for m in range(PARTNERS_MAX):
                heard_us = each[m * PARTNER_FLOATS]
                if m == own or heard_us == 0.0 or now - heard_us >= windows_us[b]:
                    continue
                at = _pair_at(own, m) * PAIR_FLOATS
                if row[at + 6] >= KNOWN_FROM:
                    r = _correlation(row, at + 6)
                    if abs(r) >= USUAL_MIN and abs(r) > abs(usual):
                        best, usual = at, r
                if 2.0 * (now - heard_us) > now - before_us:
                    continue
                y = each[m * PARTNER_FLOATS + 1]
                low, high = (x, y) if own < m else (y, x)
                _learn(row, at, low, high, NOW_PAIRS)
                if learns(head, i) or row[at + 6] == 0.0:
                    _learn(row, at + 6, low, high, USUAL_PAIRS)
            if best >= 0:
                r = _correlation(row, best)
                for k in range(e0, e1):
                    op = plan[k, 0]
                    gap = (np.arctanh(r) - np.arctanh(usual)) * SURE
                    out[i, plan[k, 3]] = r if op == 0 else (usual if op == 1 else gap)
            each[own * PARTNER_FLOATS] = now
            each[own * PARTNER_FLOATS + 1] = x
