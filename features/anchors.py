"""Levels that cannot be moved slowly: a baseline with weeks of memory beside one of a day.

Whoever raises a level by a little each day trains any baseline that forgets within days. An anchor
learns as slowly as the slower of 128 events and four weeks, takes in a value at no more than 1.5 of
its deviations (Huber's weight by the row's own z against the anchor), and measures its deviation in
the same way over three times as long. Once it is as old as its memories, it moves by at most 1.5
deviations in four weeks whatever comes, and its deviation grows by at most two fifths; a younger
one of age T by as much in T. A burst weighs as much as the time it takes. `creep` is how far the
level of the last day (at least of 8 events) is from the anchor: while a ramp goes on, it grows by
what the ramp gains on the anchor. `tests/unit/test_ramp.py` shows it pass 2.5 deviations for ramps
of 0.2 deviations a day and more, while usual traffic stays below 1.2.

Of the first 16 values of an anchor the one that is furthest off is left out until the others say
how far: one wild value at the beginning (a payment of a million that was declined) would be
remembered for months, and a ramp below it not seen. From the sixth on they weigh for the faster
baselines by what is known by then, six deviations at most.

A change that lasts is accepted. Up to some 3 deviations the anchor follows by itself within three
to six weeks (eight for values with heavy tails). Beyond, a rival is noted where the level of the
day stands; when that level has stayed within 1.5 deviations of its rival for 28 days (an event
counts for the time since the one before, at most a day) it becomes the anchor, which then learns as
one that is a week old: in all 31 to 38 days after the change. A ramp of more than 1.5 deviations in
28 days does not stand still, so it is not accepted. A label does it at once: `EntityState.accept`
where a rival stands and a verdict is genuine. The anchor of a frozen entity stands still
(`features.freeze`), while the level of the day goes on.

The hours of the week are learned in the same way, 48 cells: 24 hours of working days, 24 of
Saturdays and Sundays, by UTC. 168 cells would take 2 kB an instance and need two months to be known
for a series with two samples an hour; working days differ less among themselves than from weekends.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.baselines import (
    EARLY_CLIP,
    EARLY_FROM,
    FLOOR,
    FLOOR_SHARE,
    WEIGHT_SIGMA,
    as_sigma,
    deviation_of_share,
    near_two,
    value_of,
    weight_of,
)
from features.freeze import learns
from features.speed import AHEAD, borrowed, inlined, kernel, prefetch

__all__ = ["ANCHOR_FLOATS", "WEEK_FLOATS", "accept", "run_anchors", "run_weeks"]

ANCHOR_FLOATS = 8
"""Per instance: n, level, deviation, level of the day, time of the last value, of the first, the
rival's level, how long the rival has stood (both in us). One line of the cache."""

DAY_US = 86_400_000_000.0

ANCHOR_EVENTS, ANCHOR_US = 128.0, 28.0 * DAY_US
"""Memory of the level, the slower of both; chosen: four weeks hold four of each day of the week,
and a mean of 128 values is good to a tenth of a deviation."""

FLAG_SIGMA = 0.5
"""A flag, of which no value is an outlier, is learned by Huber's weight of the level of the day, at
most so many deviations off; chosen: the mean of eight flags strays by 0.35."""

SPREAD_TIMES = 3.0
"""Memory of the deviation in those of the level; chosen: while a ramp of 12 weeks goes on, the
deviation does not triple."""

RECENT_EVENTS, RECENT_US = 8.0, DAY_US
"""Memory of the level of the day, the slower of both: a day, so that hours do not matter."""

RECENT_CLIP = 3.0
"""A value enters the level of the day at so many deviations at most, once the anchor is known."""

HUBER = 1.5
"""A value enters the anchor at so many deviations at most (Huber 1964: 1.5 costs 4 % efficiency on
a normal law)."""

HUBER_MEAN = 0.7392709732776561
"""Mean of min(|z|, 1.5) of a normal law: makes the deviation that of a normal law."""

ABS_MEAN = 0.7978845608028654
"""Mean of |z| of a normal law."""

ANCHOR_FROM = 16.0
"""Values from which an anchor is known; of those before all but the wildest are taken as they come.
Chosen as `CLIP_FROM`."""

RIVAL_FROM, RIVAL_BAND = 2.0, 1.5
"""A level of the day so many deviations off has a rival; one that strays so far from its rival
begins another."""

RIVAL_US, RIVAL_STEP_US = 28.0 * DAY_US, DAY_US
"""How long a rival must stand; an event counts for the time since the one before, a day at most."""

ACCEPTED_EVENTS, ACCEPTED_US = 32.0, 7.0 * DAY_US
"""How old an accepted anchor is taken to be."""

WEEK_FLOATS = 48 * 4
"""Per instance: n, level, deviation, wildest of the first values of each hour of working days, then
of weekends."""

WEEK_EVENTS = 128.0
WEEK_US, WEEKEND_US = 20 * 3_600_000_000.0, 8 * 3_600_000_000.0
"""Memory of a cell: the slower of 128 events and four weeks, in which it has 20 or 8 hours."""

WEEK_FROM = 8.0
"""Values of a cell from which it is known; as `SEASON_FROM`."""


@kernel
def _spread(deviation, level):
    """A deviation that is not 0."""
    return deviation + FLOOR_SHARE * abs(level) + FLOOR


@kernel
def _share(n, events, since_us, memory_us):
    """What part of a mean of n values the next one makes: the slower of both memories."""
    share = 1.0 / min(n + 1.0, events)
    return min(share, since_us / memory_us) if memory_us > 0.0 else share


@kernel
def _held(d, limit):
    """d, at most `limit` either way."""
    return min(max(d, -limit), limit)


@inlined
def _recent(row, x, now, flag):
    """Level of the day, x taken in."""
    n, spread = row[0], _spread(row[2], row[1])
    d = x - row[3]
    if n < ANCHOR_FROM:
        return row[3] + d / min(n + 1.0, RECENT_EVENTS)
    memory_us = min(now - row[5], RECENT_US)
    share = _share(n, RECENT_EVENTS, now - row[4], memory_us)
    return row[3] + share * (d if flag else _held(d, RECENT_CLIP * spread))


@inlined
def _weight(row, x, recent, flag):
    """What a value weighs for faster baselines, by an anchor that is known."""
    spread = _spread(row[2], row[1])
    if flag:
        return weight_of(recent - row[1], spread * FLAG_SIGMA / WEIGHT_SIGMA)
    return weight_of(x - row[1], spread)


@inlined
def _early(d, spread):
    """What a value weighs for faster baselines while the anchor is not known: held, never less."""
    return min(1.0, EARLY_CLIP * spread / abs(d)) if d != 0.0 else 1.0


@inlined
def _begin(row, x):
    """Take x into an anchor that is not known yet, and the level of the day: all values but the one
    furthest off, which waits in the rival's place (its time is 1), and comes in at last at three
    deviations at most."""
    n = row[0]
    if n == 1.0:
        row[6], row[7] = x, 1.0
    elif n == 2.0:
        middle, near, row[6] = near_two(row[1], row[6], x)
        row[1] = middle + (near - middle) / 2.0
        row[2] = abs(near - middle) / ABS_MEAN
        row[3] = row[1]
    else:
        y = x
        if abs(x - row[1]) > abs(row[6] - row[1]):
            y, row[6] = row[6], x
        d = y - row[1]
        row[2] += (abs(d) / ABS_MEAN - row[2]) / (n - 1.0)
        row[1] += d / n
        row[3] += (y - row[3]) / min(n, RECENT_EVENTS)
    row[0] = n + 1.0
    if row[0] == ANCHOR_FROM:
        d = _held(row[6] - row[1], RECENT_CLIP * _spread(row[2], row[1]))
        row[2] += (abs(d) / ABS_MEAN - row[2]) / (ANCHOR_FROM - 1.0)
        row[1] += d / ANCHOR_FROM
        row[6] = row[7] = 0.0


@inlined
def _learn(row, x, now, flag, weight):
    """Take x into the anchor of one instance; its level of the day already holds x. The deviation
    of a flag is that of its share."""
    n, age_us, since_us = row[0], now - row[5], now - row[4]
    d = x - row[1]
    if n < ANCHOR_FROM:  # of a flag
        row[1] += d / (n + 1.0)
    else:
        share = _share(n, ANCHOR_EVENTS, since_us, min(age_us, ANCHOR_US))
        if flag:
            row[1] += share * weight * d
            row[2] = deviation_of_share(row[1], n + 1.0)
        else:
            limit, slow = HUBER * _spread(row[2], row[1]), SPREAD_TIMES
            spread_share = _share(n, slow * ANCHOR_EVENTS, since_us, min(age_us, slow * ANCHOR_US))
            row[2] += spread_share * (min(abs(d), limit) / HUBER_MEAN - row[2])
            row[1] += share * _held(d, limit)
        _rival(row, now, since_us)
    row[0] += 1.0
    if flag:
        row[2] = deviation_of_share(row[1], row[0])


@inlined
def _rival(row, now, since_us):
    """Note where a level stands that is far from the anchor; it becomes the anchor in time."""
    spread = _spread(row[2], row[1])
    if abs(row[3] - row[1]) <= RIVAL_FROM * spread:
        row[7] = 0.0
    else:
        if row[7] == 0.0 or abs(row[3] - row[6]) > RIVAL_BAND * spread:
            row[6], row[7] = row[3], 0.0
        row[7] += min(since_us, RIVAL_STEP_US)
        if row[7] >= RIVAL_US:
            row[0] = min(row[0], ACCEPTED_EVENTS)
            row[1], row[7] = row[3], 0.0
            row[5] = max(row[5], now - ACCEPTED_US)


def accept(state: npt.NDArray[np.float64]) -> None:
    """Make the level of the day the anchor, as after 28 days: a label said that it is genuine.

    Only where that level is far from the anchor (a rival stands): a verdict on usual business is no
    news, and many of them must not make an anchor that forgets.

    Parameters
    ----------
    state : float64 (n, instances * 8), rows of `run_anchors`, changed
    """
    rows = state.reshape(-1, ANCHOR_FLOATS)
    known = (rows[:, 7] > 0.0) & (rows[:, 0] >= ANCHOR_FROM)
    rows[known, 0] = np.minimum(rows[known, 0], ACCEPTED_EVENTS)
    rows[known, 1] = rows[known, 3]
    rows[known, 5] = np.maximum(rows[known, 5], rows[known, 4] - ACCEPTED_US)
    rows[known, 7] = 0.0


@kernel
def run_anchors(
    slots, taken_us, head, reals_in, feeds, sources, logs, histories, plan, plan_at, flags,
    state, weights, out
):  # fmt: skip
    """Anchors of rows in order.

    Parameters
    ----------
    feeds : bool (instances, event types)
    sources : int64 (instances, event types), where an event type's value comes from
    logs : bool (instances,), whether the logarithm of the value is taken
    histories : not used; baselines of all kinds are called alike
    plan : int64 (features, 4): operation, instance, -, where to
    plan_at : int64 (event types * instances + 1,), by event type, then instance
    flags : bool (instances,), whether values are 0 and 1
    state : float64 (slots, instances * 8)
    weights : float64 (n, instances), filled in: what a row's value weighs for faster baselines of
        the same column, 1 where the anchor is not known yet; not touched where there is no value
    """
    reals_in, head, state, weights, out = borrowed(reals_in, head, state, weights, out)
    instances = len(logs)
    for i in range(len(slots)):
        if i + AHEAD < len(slots):
            prefetch(state, slots[i + AHEAD])
        code, now = head[i, 2], float(taken_us[i])
        for b in range(instances):
            e0, e1 = plan_at[code * instances + b], plan_at[code * instances + b + 1]
            if e0 == e1 and not feeds[b, code]:
                continue
            x = value_of(sources[b, code], logs[b], i, reals_in, out)
            if x != x:
                continue
            row = state[slots[i], b * ANCHOR_FLOATS : (b + 1) * ANCHOR_FLOATS]
            n = row[0]
            weights[i, b] = 1.0
            if n == 0.0:
                if feeds[b, code] and learns(head, i):
                    row[0], row[1], row[3], row[4], row[5] = 1.0, x, x, now, now
                    if flags[b]:
                        row[2] = deviation_of_share(x, 1.0)
                continue
            recent = _recent(row, x, now, flags[b])
            if n >= ANCHOR_FROM:
                weights[i, b] = _weight(row, x, recent, flags[b])
            elif n >= EARLY_FROM and not flags[b]:
                weights[i, b] = _early(x - row[1], _spread(row[2], row[1]))
            for k in range(e0, e1):
                op, to = plan[k, 0], plan[k, 3]
                if op == 0:
                    out[i, to] = row[1]
                elif n >= ANCHOR_FROM:
                    spread = _spread(row[2], row[1])
                    if op == 1:
                        out[i, to] = as_sigma((x - row[1]) / spread, n)
                    else:
                        out[i, to] = (recent - row[1]) / spread
            if feeds[b, code]:
                if n < ANCHOR_FROM and not flags[b]:
                    if learns(head, i):
                        _begin(row, x)
                else:
                    row[3] = recent
                    if learns(head, i):
                        _learn(row, x, now, flags[b], weights[i, b])
                row[4] = now


@kernel
def _begin_cell(cell, x):
    """Take one of the first five values of an hour into its cell: all but the wildest, which comes
    in last, at six deviations of the others at most (whole where they are all equal). In single
    precision, as they wait."""
    n, level = np.float64(cell[0]), np.float64(cell[1])
    deviation, wild = np.float64(cell[2]), np.float64(cell[3])
    x = np.float64(np.float32(x))
    if n == 0.0:
        level = x
    elif n == 1.0:
        wild = x
    elif n == 2.0:
        middle, near, wild = near_two(level, wild, x)
        level = middle + (near - middle) / 2.0
        deviation = abs(near - middle) / ABS_MEAN
    else:
        y = x
        if abs(x - level) > abs(wild - level):
            y, wild = wild, x
        deviation += (abs(y - level) / ABS_MEAN - deviation) / (n - 1.0)
        level += (y - level) / n
    if n + 1.0 == EARLY_FROM:
        limit = EARLY_CLIP * _spread(deviation, level) if deviation > 0.0 else np.inf
        d = _held(wild - level, limit)
        deviation += (abs(d) / ABS_MEAN - deviation) / n
        level += d / (n + 1.0)
    cell[0], cell[1], cell[2], cell[3] = n + 1.0, level, deviation, wild


@kernel
def run_weeks(
    slots, taken_us, head, reals_in, feeds, sources, logs, histories, plan, plan_at, state,
    last_us, weights, out
):  # fmt: skip
    """Usual values by hour of the week; parameters as in `run_anchors`.

    Parameters
    ----------
    state : float32 (slots, instances * 192)
    last_us : int64 (slots, instances), time of the last value
    """
    reals_in, head, state, last_us, weights, out = borrowed(
        reals_in, head, state, last_us, weights, out
    )
    instances = len(logs)
    for i in range(len(slots)):
        code, hours = head[i, 2], taken_us[i] // 3_600_000_000
        # 1970-01-01 was a Thursday.
        weekend = (hours // 24 + 3) % 7 >= 5
        at = (24 * weekend + hours % 24) * 4
        for b in range(instances):
            e0, e1 = plan_at[code * instances + b], plan_at[code * instances + b + 1]
            if e0 == e1 and not feeds[b, code]:
                continue
            x = value_of(sources[b, code], logs[b], i, reals_in, out)
            if x != x:
                continue
            first = b * WEEK_FLOATS + at
            cell = state[slots[i], first : first + 4]
            n, level, deviation = float(cell[0]), float(cell[1]), float(cell[2])
            d, spread = x - level, _spread(deviation, level)
            weights[i, b] = 1.0
            if n >= ANCHOR_FROM:
                weights[i, b] = weight_of(d, spread)
            elif n >= EARLY_FROM:
                weights[i, b] = _early(d, spread)
            if n >= WEEK_FROM:
                for k in range(e0, e1):
                    out[i, plan[k, 3]] = level if plan[k, 0] == 0 else as_sigma(d / spread, n)
            if not feeds[b, code]:
                continue
            if learns(head, i):
                if n < EARLY_FROM:
                    _begin_cell(cell, x)
                else:
                    memory_us = WEEKEND_US if weekend else WEEK_US
                    passed_us = min(float(taken_us[i] - last_us[slots[i], b]), 3_600_000_000.0)
                    slow = min(1.0 / WEEK_EVENTS, passed_us / memory_us)
                    share = max(1.0 / (n + 1.0), slow)
                    limit = (HUBER if n >= ANCHOR_FROM else EARLY_CLIP) * spread
                    mean = HUBER_MEAN if n >= ANCHOR_FROM else ABS_MEAN
                    cell[1] = level + share * _held(d, limit)
                    share = max(1.0 / n, slow / SPREAD_TIMES)
                    cell[2] = deviation + share * (min(abs(d), limit) / mean - deviation)
                    cell[0] = n + 1.0
            last_us[slots[i], b] = taken_us[i]
