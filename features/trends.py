"""Where a series is heading: the slope of a line through its values of the last hour or so.

The line is fitted by least squares, a value weighing exp(-age / 1 h), and held against what the
values usually differ from it. A value enters at no more than three of those deviations from where
the line led one to expect it, so that one outlier is no trend. Before the line is known, of eight
values, the one furthest off waits (`_begin`), and comes in last, in its place in time.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.baselines import FLOOR, FLOOR_SHARE, near_two, value_of
from features.freeze import learns
from features.speed import kernel

__all__ = ["TREND_FLOATS", "run_trends"]

TREND_FLOATS = 10
"""Per instance: n, time of the last value, sum of weights, mean time (in h, from the last value),
mean value, weighted squares of times, products, mean square of what the line did not foresee; time
and value of what waits."""

TREND_TAU_H = 1.0
"""Memory; chosen: long enough that an hour's leak shows, short enough that it shows soon."""

TREND_FROM = 8.0
"""Values from which there is a trend; two points are a line, and eight are a direction."""

TREND_EVENTS = 128.0
"""Memory of the deviations from the line, in events; chosen as `FREEDOM_MAX`, a power of two."""

TREND_CLIP = 3.0

AHEAD_H_MAX, GAP_H_MAX = 2.0, 12.0
"""The line is not drawn further than this beyond the middle of its values, and begins anew after
such a silence; chosen: twice the memory, and a time after which nothing of it would be left."""


@kernel
def _take(row, points, at_h, x, limit):
    """Take a value of another time into the line of so many points, at most so many deviations from
    where the line leads."""
    slope = row[6] / row[5] if row[5] > 0.0 else 0.0
    after_h = at_h - row[3]
    foreseen = row[4] + slope * min(after_h, AHEAD_H_MAX)
    missed = x - foreseen
    if row[7] > 0.0:
        most = limit * (np.sqrt(row[7]) + FLOOR_SHARE * abs(row[4]) + FLOOR)
        missed = min(max(missed, -most), most)
    d, own = foreseen + missed - row[4], np.exp(at_h / TREND_TAU_H)
    share = own / (row[2] + own)
    row[5] += row[2] * share * after_h * after_h
    row[6] += row[2] * share * after_h * d
    row[2] += own
    row[3] += share * after_h
    row[4] += share * d
    row[7] += (missed * missed - row[7]) / points


@kernel
def _start(row, at_h, x):
    """A line of one value."""
    row[2], row[3], row[4] = np.exp(at_h / TREND_TAU_H), at_h, x
    row[5] = row[6] = row[7] = 0.0


@kernel
def _begin(row, now, x):
    """Take one of the first eight values into a line: all but the one furthest from the mean of the
    others, which comes in with the eighth. After a silence all begins anew."""
    n = row[0]
    gap_h = (now - row[1]) / 3.6e9 if n > 0.0 else 0.0
    if gap_h >= GAP_H_MAX:
        n = 0.0
    fade = np.exp(-gap_h / TREND_TAU_H)
    row[2] *= fade
    row[3] -= gap_h
    row[5] *= fade
    row[6] *= fade
    row[0], row[1] = n + 1.0, now
    wild_h, wild = (row[8] - now) / 3.6e9, row[9]
    if n == 0.0:
        _start(row, 0.0, x)
    elif n == 1.0:
        row[8], row[9] = now, x
    else:
        _, _, far = near_two(row[4], wild, x)
        if x == far if n == 2.0 else abs(x - row[4]) > abs(wild - row[4]):
            row[8], row[9] = now, x
            _take(row, n - 1.0, wild_h, wild, np.inf)
        elif n == 2.0 and row[4] == far and wild != far:
            row[8], row[9] = now + row[3] * 3.6e9, row[4]
            _start(row, wild_h, wild)
            _take(row, 1.0, 0.0, x, np.inf)
        else:
            _take(row, n - 1.0, 0.0, x, np.inf)
    if row[0] == TREND_FROM:
        _take(row, n, (row[8] - now) / 3.6e9, row[9], TREND_CLIP)


@kernel
def run_trends(
    slots, taken_us, head, reals_in, feeds, sources, logs, histories, plan, plan_at, state, out
):  # fmt: skip
    """Trends of rows in order; parameters as in `features.anchors.run_anchors`.

    Parameters
    ----------
    state : float64 (slots, instances * 10)
    """
    instances = len(logs)
    for i in range(len(slots)):
        code = head[i, 2]
        for b in range(instances):
            e0, e1 = plan_at[code * instances + b], plan_at[code * instances + b + 1]
            if e0 == e1 and not feeds[b, code]:
                continue
            x = value_of(sources[b, code], logs[b], i, reals_in, out)
            if x != x:
                continue
            row = state[slots[i], b * TREND_FLOATS : (b + 1) * TREND_FLOATS]
            n = row[0]
            if n < TREND_FROM:
                if feeds[b, code] and learns(head, i):
                    _begin(row, float(taken_us[i]), x)
                continue
            gap_h = (taken_us[i] - row[1]) / 3.6e9
            fade = np.exp(-gap_h / TREND_TAU_H) if gap_h < GAP_H_MAX else 0.0
            weight, t, mean = row[2] * fade, row[3] - gap_h, row[4]
            tt, tx = row[5] * fade, row[6] * fade
            slope = tx / tt if tt > 0.0 else 0.0
            spread = np.sqrt(row[7]) + FLOOR_SHARE * abs(mean) + FLOOR
            foreseen = mean + slope * min(-t, AHEAD_H_MAX)
            limit = TREND_CLIP * spread
            missed = min(max(x - foreseen, -limit), limit)
            d = foreseen + missed - mean
            part = weight / (weight + 1.0)
            tt += part * t * t
            tx -= part * t * d
            mean += d / (weight + 1.0)
            if tt > 0.0:
                for k in range(e0, e1):
                    out[i, plan[k, 3]] = tx / tt / spread
            if feeds[b, code]:
                row[0], row[1], row[2] = n + 1.0, taken_us[i], weight + 1.0
                row[3], row[4], row[5], row[6] = t - t / (weight + 1.0), mean, tt, tx
                if learns(head, i):
                    share = max(1.0 / n, 1.0 / TREND_EVENTS)
                    row[7] += share * (missed * missed - row[7])
