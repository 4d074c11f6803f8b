"""Where a series is heading: the slope of a line through its values of the last hour or so.

The line is fitted by least squares, a value weighing exp(-age / 1 h), and held against what the
values usually differ from it. A value enters at no more than three of those deviations from where
the line led one to expect it, so that one outlier is no trend.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.baselines import FLOOR, FLOOR_SHARE, value_of
from features.freeze import learns
from features.speed import kernel

__all__ = ["TREND_FLOATS", "run_trends"]

TREND_FLOATS = 8
"""Per instance: n, time of the last value, sum of weights, mean time (in h, from the last value),
mean value, weighted squares of times, products, mean square of what the line did not foresee."""

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
def run_trends(
    slots, taken_us, head, reals_in, feeds, sources, logs, histories, plan, plan_at, state, out
):  # fmt: skip
    """Trends of rows in order; parameters as in `features.anchors.run_anchors`.

    Parameters
    ----------
    state : float64 (slots, instances * 8)
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
            gap_h = (taken_us[i] - row[1]) / 3.6e9 if n > 0.0 else 0.0
            fade = np.exp(-gap_h / TREND_TAU_H) if gap_h < GAP_H_MAX else 0.0
            weight, t, mean = row[2] * fade, row[3] - gap_h, row[4]
            tt, tx = row[5] * fade, row[6] * fade
            slope = tx / tt if tt > 0.0 else 0.0
            spread = np.sqrt(row[7]) + FLOOR_SHARE * abs(mean) + FLOOR
            foreseen = mean + slope * min(-t, AHEAD_H_MAX)
            missed = x - foreseen
            if n >= TREND_FROM:
                limit = TREND_CLIP * spread
                missed = min(max(missed, -limit), limit)
            d = foreseen + missed - mean if n > 0.0 else 0.0
            if n == 0.0:
                mean = x
            part = weight / (weight + 1.0)
            tt += part * t * t
            tx -= part * t * d
            mean += d / (weight + 1.0)
            if n >= TREND_FROM and tt > 0.0:
                for k in range(e0, e1):
                    out[i, plan[k, 3]] = tx / tt / spread
            if feeds[b, code]:
                row[0], row[1], row[2] = n + 1.0, taken_us[i], weight + 1.0
                row[3], row[4], row[5], row[6] = t - t / (weight + 1.0), mean, tt, tx
                if n > 0.0 and learns(head, i):
                    share = max(1.0 / n, 1.0 / TREND_EVENTS)
                    row[7] += share * (missed * missed - row[7])
