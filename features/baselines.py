"""What is usual for an entity: running means, the last 32 values in order, the hour of the day.

A row is always compared with what came before it and only then enters the baseline. The mean and
deviation take in an outlier at no more than three deviations, so that one wild value does not
make the next one look usual. The row of a frozen entity (`features.freeze`) changes only what is of
late: the mean of the last eight values, the last value and its run.

Before so much is known that an outlier can be told, the wildest value waits (`_begin`): of the
first five of a mean, and of those of an hour, it comes in after the other four, at six of their
deviations at most. What is read before holds it whole: of four values none says which is wild.

Each baseline stands beside a slower one of the same column, its slow twin: a mean beside an anchor
of weeks, an hour of the day beside the same hour of working days or weekends (`features.anchors`).
A value weighs by its own robust z against the slow one (Huber's weight, `weight_of`): whole within
two deviations, then two over z, never less than `WEIGHT_MIN`; its distance from the mean is taken
times that into both mean and deviation. Who raises a level by a little
each day is within three deviations of a mean that has learned it all the way, but not of the twin:
the mean then learns at a fraction of its pace and falls behind. The mean of the last eight values
is what is compared with the usual one, and takes values as they come; so do the last 32 in order,
which SQL can count too: below these, `creep` sees a level that is moved. Of a flag no value is an
outlier; its values weigh by how far its share of late is from that of weeks.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.freeze import learns
from features.speed import AHEAD, borrowed, inlined, kernel, prefetch

__all__ = [
    "BASE_FLOATS",
    "EARLY_CLIP",
    "EARLY_FROM",
    "HISTORY",
    "SEASON_FLOATS",
    "WEIGHT_SIGMA",
    "as_sigma",
    "deviation_of_share",
    "near_two",
    "run_baselines",
    "run_seasons",
    "value_of",
    "weight_of",
]

BASE_FLOATS = 8
"""Per instance: n, slow mean, variance, fast mean, last value, run length, slow and fast step. Of
up to four values both steps are the same, and the wildest value stands in the latter's place."""

HISTORY = 32
"""Values kept for quantiles; chosen: 256 bytes and 32 for their order, and quartiles of 32 values
are good to a third of a standard deviation."""

SLOW_EVENTS = 200.0
FAST_EVENTS = 8.0
STEP_EVENTS = 4.0
"""Memory of the means, in events; chosen: a campaign of some ten events moves the fast ones and
hardly the slow ones."""

CLIP_SIGMA = 3.0
CLIP_FROM = 16.0
"""An outlier enters the slow mean at this many deviations, once so many values are known (Huber's
weight with k = 3)."""

EARLY_FROM, EARLY_CLIP = 5.0, 6.0
"""So many values are waited for, the wildest of which comes in last, at so many deviations of the
others at most. Chosen: the deviation of five values is good to a third, and a wild value is far
beyond."""

EARLY_STEP = 2.5
"""The mean step between five values is at most this many of their deviations: 2 n / (n - 1). It is
held there, for the steps to a wild value and back are as wild."""

KNOWN_FROM = 3.0
"""Values needed before anything is called unusual."""

FLOOR_SHARE = 1e-3
FLOOR = 1e-9
"""Least deviation: a thousandth of the mean's size, so that z of a still series is finite."""

FREEDOM_MAX = 200.0
"""Degrees of freedom of a deviation are the values it was measured on, at most this: the memory of
the slow mean."""

WEIGHT_SIGMA = 2.0
"""A value weighs less beyond so many deviations from the slow twin; chosen: with 3, ramps of half a
deviation a day were seen weeks later (`tests/unit/test_ramp.py`), and below 2 the deviation of
usual traffic would be measured as too small by more than 4 %."""

WEIGHT_MIN = 0.1
"""Least weight of a value; chosen: a change that lasts is learned within ten times the memory, and
a twin that was still for long does not lock its baseline."""

MAD_SIGMA = 1.4826
"""A normal law's deviation is this many median absolute deviations: 1 / 0.6745."""

SIZE_MAX = 1e150
"""What is squared is held at this: its square is still a number."""

SHARE_EVENTS = 128.0
"""The deviation of a flag is that of its share, as if one more yes and one more no were known among
the values, of which so many count at most: one that never was yes is not known to be never yes."""

SEASON_FLOATS = 24 * 4
"""Per instance: n, mean, variance, wildest of the first values of each hour of the day (UTC)."""

SEASON_EVENTS = 128.0
SEASON_FROM = 8.0


@kernel
def _floor(level):
    """Least deviation about a level."""
    return FLOOR_SHARE * abs(level) + FLOOR


@kernel
def as_sigma(t, n):
    """A deviation measured on n values, as one of a known spread: tails of few values are heavy.

    Wallace (1959), Bounds on normal approximations to Student's distribution: t with f degrees of
    freedom is about a normal deviate of (8 f + 1) / (8 f + 3) sqrt(f log(1 + t^2 / f)).
    """
    f = min(max(n - 1.0, 1.0), FREEDOM_MAX)
    t = min(max(t, -SIZE_MAX), SIZE_MAX)
    size = (8.0 * f + 1.0) / (8.0 * f + 3.0) * np.sqrt(f * np.log1p(t * t / f))
    return np.copysign(size, t)


@kernel
def deviation_of_share(share, n):
    """Deviation of a flag that was yes in a share of n values."""
    m = min(n, SHARE_EVENTS)
    p = (share * m + 1.0) / (m + 2.0)
    return np.sqrt(p * (1.0 - p))


@kernel
def weight_of(d, spread):
    """Huber's weight of a value that is d from its slow twin of that deviation."""
    return max(min(1.0, WEIGHT_SIGMA * spread / abs(d)), WEIGHT_MIN) if d != 0.0 else 1.0


@kernel
def _quantile(ring, order, n, q):
    """Quantile of ring[order[:n]], which ascends, linear between neighbours (numpy's default)."""
    at = q * (n - 1)
    low = int(at)
    if low >= n - 1:
        return ring[order[n - 1]]
    return ring[order[low]] + (at - low) * (ring[order[low + 1]] - ring[order[low]])


@kernel
def _position(ring, order, n, x):
    """First place in ring[order[:n]], which ascends, that is not below x."""
    low, high = 0, n
    while low < high:
        middle = (low + high) >> 1
        if ring[order[middle]] < x:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _median_deviation(ring, order, n, median):
    """Median of |value - median| of ring[order[:n]], which ascends: a merge from the middle out."""
    left, right = n // 2 - 1, n // 2
    before, last = 0.0, 0.0
    for _ in range(n // 2 + 1):
        low = median - ring[order[left]] if left >= 0 else np.inf
        high = ring[order[right]] - median if right < n else np.inf
        before = last
        if low < high:
            last = low
            left -= 1
        else:
            last = high
            right += 1
    return last if n % 2 else 0.5 * (before + last)


@inlined
def _remember(ring, order, n, x):
    """Put x into the ring and its place into the order; n values came before."""
    kept, place = min(n, HISTORY), n % HISTORY
    if n >= HISTORY:
        at = _position(ring, order, kept, ring[place])
        while order[at] != place:  # of equal values any may stand first
            at += 1
        kept -= 1
        for k in range(at, kept):
            order[k] = order[k + 1]
    at = _position(ring, order, kept, x)
    ring[place] = x
    for k in range(kept, at, -1):
        order[k] = order[k - 1]
    order[at] = place


@kernel
def near_two(a, b, c):
    """Of three values the middle one, the one nearer to it, the one further off."""
    low, high = min(a, b), max(a, b)
    middle = max(low, min(high, c))
    low, high = min(low, c), max(high, c)
    return (middle, low, high) if high - middle > middle - low else (middle, high, low)


@kernel
def _begin(row, at, x):
    """Take one of the first five values into n (not raised), mean and variance, which lead `row`:
    all but the wildest, which waits at row[at]. Where the other four are all equal nothing says
    what is wild."""
    n = row[0]
    if n == 0.0:
        row[1] = x
    elif n == 1.0:
        row[at] = x
    elif n == 2.0:
        middle, near, row[at] = near_two(row[1], row[at], x)
        half = min(abs(near - middle) / 2.0, SIZE_MAX)
        row[1] = middle + (near - middle) / 2.0
        row[2] = half * half
    else:
        y = x
        if abs(x - row[1]) > abs(row[at] - row[1]):
            y, row[at] = row[at], x
        _take(row, y, 1.0 / n, SIZE_MAX)
    if n + 1.0 == EARLY_FROM:
        limit = EARLY_CLIP * (np.sqrt(row[2]) + _floor(row[1])) if row[2] > 0.0 else SIZE_MAX
        _take(row, row[at], 1.0 / EARLY_FROM, limit)


@kernel
def _take(row, x, share, limit):
    """Take x, so far off at most, into mean and variance."""
    d = min(max(x - row[1], -limit), limit)
    row[1] += share * d
    row[2] = (1.0 - share) * (row[2] + share * d * d)


@inlined
def _learn_step(row, step, early, weight):
    """Take a step into the slow mean of steps and into that of late."""
    n = row[0]
    if early:
        row[6] += (step - row[6]) / n
        if n + 1.0 == EARLY_FROM:
            row[7] = row[6]
            row[6] = min(row[6], EARLY_STEP * (np.sqrt(row[2]) + _floor(row[1])))
    else:
        row[6] += weight * max(1.0 / n, 1.0 / SLOW_EVENTS) * (step - row[6])
        row[7] += max(1.0 / n, 1.0 / STEP_EVENTS) * (step - row[7])


@inlined
def _update(row, x, flag, weight):
    """Take x into the running means of one instance; what is of late takes it as it comes."""
    n = row[0]
    early = n < EARLY_FROM and not flag
    if n == 0.0:
        row[3] = x
    if early:
        _begin(row, 7, x)
    elif n == 0.0:
        row[1] = x
    else:
        d = min(max(weight * (x - row[1]), -SIZE_MAX), SIZE_MAX)
        if n >= CLIP_FROM and not flag:
            limit = CLIP_SIGMA * (np.sqrt(row[2]) + _floor(row[1]))
            d = min(max(d, -limit), limit)
        a = max(1.0 / (n + 1.0), 1.0 / SLOW_EVENTS)
        row[1] += a * d
        row[2] = (1.0 - a) * (row[2] + a * d * d)
        if flag:
            row[2] = deviation_of_share(row[1], n + 1.0) ** 2
    if n > 0.0:
        row[3] += max(1.0 / (n + 1.0), 1.0 / FAST_EVENTS) * (x - row[3])
        _learn_step(row, abs(x - row[4]), early, weight)
    row[5] = row[5] + 1.0 if n > 0.0 and x == row[4] else 1.0
    row[4] = x
    row[0] = n + 1.0


@inlined
def _pass_by(row, x):
    """Take x into what is of late, and not into what is usual."""
    if row[0] > 0.0:
        row[3] += max(1.0 / (row[0] + 1.0), 1.0 / FAST_EVENTS) * (x - row[3])
        row[5] = row[5] + 1.0 if x == row[4] else 1.0
        row[4] = x


@inlined
def _running(op, row, x, flag):
    """A statistic of the running means; NaN where not enough is known."""
    n, mean, variance, fast_step = row[0], row[1], row[2], row[7]
    if n < EARLY_FROM and not flag:
        fast_step = row[6]
        if n >= 2.0:
            d = min(max(row[7] - mean, -SIZE_MAX), SIZE_MAX)
            mean += d / n
            variance = (1.0 - 1.0 / n) * (variance + d * d / n)
    if op == 5:
        return row[5] + 1.0 if n > 0.0 and x == row[4] else 1.0
    if n == 0.0:
        return np.nan
    if op == 0:
        return mean
    if op == 3:
        return row[3]
    if op == 8:
        return row[4]
    if n < KNOWN_FROM:
        return np.nan
    deviation = np.sqrt(variance)
    if op == 1:
        return deviation
    if op == 2:
        return as_sigma((x - mean) / (deviation + _floor(mean)), n)
    if op == 4:
        fast = row[3] + max(1.0 / (n + 1.0), 1.0 / FAST_EVENTS) * (x - row[3])
        return as_sigma((fast - mean) / (deviation + _floor(mean)), n)
    step = abs(x - row[4])
    if op == 6:
        fast_step += max(1.0 / n, 1.0 / STEP_EVENTS) * (step - fast_step)
        return fast_step / (row[6] + _floor(mean))
    return (x - row[4]) / (row[6] + _floor(mean))


@inlined
def _ranked(op, ring, order, kept, x):
    """A statistic of the last values; NaN where not enough is known."""
    if kept < KNOWN_FROM:
        return np.nan
    median = _quantile(ring, order, kept, 0.5)
    if op == 9:
        return median
    if op == 14:
        return np.copysign(np.expm1(abs(median)), median)
    if op == 13:
        below = _position(ring, order, kept, x)
        equal = 0
        while below + equal < kept and ring[order[below + equal]] == x:
            equal += 1
        return (below + 0.5 * equal) / kept
    if op == 15:
        spread = MAD_SIGMA * _median_deviation(ring, order, kept, median) + _floor(median)
        return as_sigma((x - median) / spread, float(kept))
    low = _quantile(ring, order, kept, 0.25)
    high = _quantile(ring, order, kept, 0.75)
    if op == 10:
        return high - low
    spread = high - low + _floor(median)
    if op == 11:
        return as_sigma((x - median) / (spread / 1.349), float(kept))
    return max(low - x, x - high, 0.0) / spread


@inlined
def value_of(source, log, i, reals_in, out):
    """Row i's value: column `source` of the rows, or feature -1 - source of `out`."""
    x = reals_in[i, source] if source >= 0 else out[i, -1 - source]
    if log:
        return np.copysign(np.log1p(abs(x)), x)
    return x


@kernel
def run_baselines(
    slots, taken_us, head, reals_in, feeds, sources, logs, histories, plan, plan_at, flags, slow,
    state, history, order, weights, out
):  # fmt: skip
    """Baselines of rows in order.

    Parameters
    ----------
    feeds : bool (instances, event types)
    sources : int64 (instances, event types), where an event type's value comes from
    logs : bool (instances,), whether the logarithm of the value is taken
    histories : int64 (instances,), place of its history, -1 for none
    plan : int64 (features, 4): operation, instance, -, where to
    plan_at : int64 (event types * instances + 1,), by event type, then instance
    flags : bool (instances,), whether values are 0 and 1: none is an outlier
    slow : int64 (instances,), column of `weights` with those of its slow twin, -1 for none
    state : float64 (slots, instances * 8)
    history : float64 (slots, histories * 32), the last values, the oldest overwritten
    order : uint8 (slots, histories * 32), their places in ascending order of the values
    weights : float64 (n, twins), see `features.anchors.run_anchors`
    """
    reals_in, head, state, history, order, weights, out = borrowed(
        reals_in, head, state, history, order, weights, out
    )
    instances = len(logs)
    for i in range(len(slots)):
        if i + AHEAD < len(slots):
            prefetch(state, slots[i + AHEAD])
            prefetch(history, slots[i + AHEAD])
            prefetch(order, slots[i + AHEAD])
        code, slot = head[i, 2], slots[i]
        for b in range(instances):
            e0, e1 = plan_at[code * instances + b], plan_at[code * instances + b + 1]
            if e0 == e1 and not feeds[b, code]:
                continue
            x = value_of(sources[b, code], logs[b], i, reals_in, out)
            if x != x:
                continue
            row = state[slot, b * BASE_FLOATS : (b + 1) * BASE_FLOATS]
            h = max(histories[b], 0) * HISTORY
            kept, ranks = history[slot, h : h + HISTORY], order[slot, h : h + HISTORY]
            n = int(row[0])
            for k in range(e0, e1):
                op, to = plan[k, 0], plan[k, 3]
                if op < 9:
                    out[i, to] = _running(op, row, x, flags[b])
                else:
                    out[i, to] = _ranked(op, kept, ranks, min(n, HISTORY), x)
            if not feeds[b, code]:
                continue
            if learns(head, i):
                if histories[b] >= 0:
                    _remember(kept, ranks, n, x)
                _update(row, x, flags[b], weights[i, slow[b]] if slow[b] >= 0 else 1.0)
            else:
                _pass_by(row, x)


@kernel
def run_seasons(
    slots, taken_us, head, reals_in, feeds, sources, logs, histories, plan, plan_at, slow, state,
    weights, out
):  # fmt: skip
    """Usual values by hour of the day; parameters as in `run_baselines`, state (slots, n * 96)."""
    reals_in, head, state, weights, out = borrowed(reals_in, head, state, weights, out)
    instances = len(logs)
    for i in range(len(slots)):
        code = head[i, 2]
        hour = (taken_us[i] // 3_600_000_000) % 24
        for b in range(instances):
            e0, e1 = plan_at[code * instances + b], plan_at[code * instances + b + 1]
            if e0 == e1 and not feeds[b, code]:
                continue
            x = value_of(sources[b, code], logs[b], i, reals_in, out)
            if x != x:
                continue
            at = b * SEASON_FLOATS + hour * 4
            row = state[slots[i], at : at + 4]
            if row[0] >= SEASON_FROM:
                for k in range(e0, e1):
                    usual = row[1]
                    if plan[k, 0] == 1:
                        usual = (x - row[1]) / (np.sqrt(row[2]) + _floor(row[1]))
                        usual = as_sigma(usual, row[0])
                    out[i, plan[k, 3]] = usual
            if feeds[b, code] and learns(head, i):
                if row[0] < EARLY_FROM:
                    _begin(row, 3, x)
                else:
                    d = min(max(x - row[1], -SIZE_MAX), SIZE_MAX)
                    if slow[b] >= 0:
                        d *= weights[i, slow[b]]
                    if row[0] >= CLIP_FROM or row[2] > 0.0:
                        held = CLIP_SIGMA if row[0] >= CLIP_FROM else EARLY_CLIP
                        limit = held * (np.sqrt(row[2]) + _floor(row[1]))
                        d = min(max(d, -limit), limit)
                    a = max(1.0 / (row[0] + 1.0), 1.0 / SEASON_EVENTS)
                    row[1] += a * d
                    row[2] = (1.0 - a) * (row[2] + a * d * d)
                row[0] += 1.0
