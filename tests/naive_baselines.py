"""Slow and obvious twins of the baselines: each from its formula, value by value, no arrays."""

from __future__ import annotations

import datetime
import math
import statistics

import numpy as np

__all__ = [
    "Anchor",
    "Plain",
    "Trend",
    "Week",
    "as_sigma",
    "mad_z",
    "share_deviation",
    "shrunk",
    "twin",
    "weight",
]

NAN = math.nan
DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000

PHI = statistics.NormalDist()
ABS_MEAN = 2 * PHI.pdf(0.0)
HELD_MEAN = 2 * (PHI.pdf(0.0) - PHI.pdf(1.5)) + 2 * 1.5 * (1 - PHI.cdf(1.5))
"""Means of |z| and of min(|z|, 1.5) of a normal law."""


def as_sigma(t: float, n: float) -> float:
    """Wallace's normal deviate of Student's t on n values."""
    f = min(max(n - 1.0, 1.0), 200.0)
    t = max(-1e150, min(1e150, t))
    size = (8 * f + 1) / (8 * f + 3) * math.sqrt(f * math.log1p(t * t / f))
    return math.copysign(size, t)


def mad_z(kept: list[float], x: float) -> float:
    """x against the median of the values, in median absolute deviations of a normal law."""
    median = statistics.median(kept)
    mad = statistics.median(abs(v - median) for v in kept)
    return as_sigma((x - median) / (1.4826 * mad + 1e-3 * abs(median) + 1e-9), len(kept))


def shrunk(own: float, peers: float, count: float, prior: float = 8.0) -> float:
    """The mean of an entity's own deviation, `count` times, and that of its peers, 8 times."""
    weighed = [] if math.isnan(own) or math.isnan(count) else [(count, own)]
    weighed += [] if math.isnan(peers) else [(prior, peers)]
    total = sum(weight for weight, _ in weighed)
    return sum(weight * z for weight, z in weighed) / total if total > 0.0 else NAN


def spread_of(deviation: float, level: float) -> float:
    """A deviation that is not 0."""
    return deviation + 1e-3 * abs(level) + 1e-9


def held(d: float, limit: float) -> float:
    """d within +- limit."""
    return max(-limit, min(limit, d))


def slower(n: int, events: float, since_us: int, age_us: int, memory_us: float) -> float:
    """Share of a new value: by events and by time, whichever is less."""
    by_events = max(1 / (n + 1), 1 / events)
    remembered_us = min(age_us, memory_us)
    by_time = since_us / remembered_us if remembered_us > 0 else math.inf
    return min(by_events, by_time)


def weight(d: float, spread: float) -> float:
    """Huber's weight of a value d from its slow twin, at least a tenth."""
    z = abs(d) / spread
    return 1.0 if z <= 2 else max(2 / z, 0.1)


def share_deviation(share: float, n: int) -> float:
    """Deviation of a flag, one yes and one no added to at most 128 values."""
    known = min(n, 128)
    p = (share * known + 1) / (known + 2)
    return math.sqrt(p * (1 - p))


def first_of(values: list[float], until: int) -> tuple[list[float], float]:
    """Of the first values all but the one that waits, as they come in, and that one: the furthest
    from the mean of the others waits, of the first three the furthest from the middle."""
    taken, wild = values[:1], values[1] if len(values) > 1 else NAN
    if len(values) > 2:
        low, middle, high = sorted(values[:3])
        near, wild = (low, high) if high - middle > middle - low else (high, low)
        taken = [middle, near]
    for x in values[3:until]:
        level = statistics.fmean(taken)
        if abs(x - level) > abs(wild - level):
            x, wild = wild, x
        taken.append(x)
    return taken, wild


class Plain:
    """The baseline that anyone would write first: an exponentially weighted mean and deviation."""

    def __init__(self, events: float = 200.0) -> None:
        self.n, self.mean, self.var, self.events = 0, 0.0, 0.0, events

    def z(self, x: float) -> float:
        """x in deviations from the mean."""
        return (x - self.mean) / math.sqrt(self.var) if self.var > 0.0 else 0.0

    def learn(self, x: float) -> None:
        """Take x in."""
        share = max(1 / (self.n + 1), 1 / self.events)
        d = x - self.mean
        self.mean += share * d
        self.var = (1 - share) * (self.var + share * d * d)
        self.n += 1


class Anchor:
    """Level that cannot be moved slowly, and the level of the day; `weight` is what the last value
    weighs for a faster baseline."""

    def __init__(self, flag: bool = False) -> None:
        self.flag = flag
        self.weight = 1.0
        self.times: list[int] = []
        self.n = 0
        self.level = self.deviation = self.recent = self.rival = 0.0
        self.first_us = 0
        self.stood_us = 0
        self.early: list[float] = []

    def step(self, now: int, x: float) -> dict[str, float]:
        """What the operations give for x, which then is taken in."""
        if not self.times:
            self.times, self.n, self.level, self.recent, self.first_us = [now], 1, x, x, now
            self.early = [x]
            self.deviation = share_deviation(x, 1) if self.flag else 0.0
            return {"anchor": NAN, "anchor_z": NAN, "creep": NAN}
        known = self.n >= 16
        age_us, since_us = now - self.first_us, now - self.times[-1]
        spread = spread_of(self.deviation, self.level)
        if known:
            share = slower(self.n, 8, since_us, age_us, DAY_US)
            d = x - self.recent
            recent = self.recent + share * (d if self.flag else held(d, 3 * spread))
        else:
            recent = self.recent + max(1 / (self.n + 1), 1 / 8) * (x - self.recent)
        off, usual = (recent - self.level, spread / 4) if self.flag else (x - self.level, spread)
        self.weight = weight(off, usual) if known else 1.0
        if not known and self.n >= 5 and not self.flag and off != 0:
            self.weight = min(1.0, 6 * spread / abs(off))
        found = {
            "anchor": self.level,
            "anchor_z": as_sigma((x - self.level) / spread, self.n) if known else NAN,
            "creep": (recent - self.level) / spread if known else NAN,
        }
        if not known and not self.flag:
            self._begin(x)
            self.n += 1
            self.times.append(now)
            return found
        self.recent = recent
        self._learn(x, known, age_us, since_us, spread)
        if self.flag:
            self.deviation = share_deviation(self.level, self.n + 1)
        if self.n >= 16 and known:
            self._rival(now, since_us)
        self.n += 1
        if self.flag:
            self.deviation = share_deviation(self.level, self.n)
        self.times.append(now)
        return found

    def _begin(self, x: float) -> None:
        """The first 16 values, all but the wildest: `early` holds those taken in, `rival` that."""
        if self.n == 1:
            self.rival = x
            return
        if self.n == 2:
            low, middle, high = sorted([self.level, self.rival, x])
            near, self.rival = (low, high) if high - middle > middle - low else (high, low)
            self.early = [middle, near]
        elif abs(x - self.level) > abs(self.rival - self.level):
            self.early.append(self.rival)
            self.rival = x
        else:
            self.early.append(x)
        self.level, sizes, self.recent = self.early[0], [], self.early[0]
        for i, y in enumerate(self.early[1:], 1):
            sizes.append(abs(y - self.level) / ABS_MEAN)
            self.level += (y - self.level) / (i + 1)
            self.recent += (y - self.recent) / min(i + 1, 8)
        self.deviation = statistics.fmean(sizes)
        if self.n == 15:
            d = held(self.rival - self.level, 3 * spread_of(self.deviation, self.level))
            self.deviation += (abs(d) / ABS_MEAN - self.deviation) / 15
            self.level += d / 16

    def _learn(self, x: float, known: bool, age_us: int, since_us: int, spread: float) -> None:
        """Level and deviation take x in."""
        d = x - self.level
        if not known:
            self.level += d / (self.n + 1)
            return
        share = slower(self.n, 128, since_us, age_us, 28 * DAY_US)
        if self.flag:
            self.level += share * self.weight * d
            return
        self.level += share * held(d, 1.5 * spread)
        share = slower(self.n, 3 * 128, since_us, age_us, 84 * DAY_US)
        size = abs(held(d, 1.5 * spread)) / HELD_MEAN
        self.deviation += share * (size - self.deviation)

    def _rival(self, now: int, since_us: int) -> None:
        """A level that has stood for 28 days is accepted."""
        spread = spread_of(self.deviation, self.level)
        if abs(self.recent - self.level) <= 2 * spread:
            self.stood_us = 0
            return
        if self.stood_us == 0 or abs(self.recent - self.rival) > 1.5 * spread:
            self.rival, self.stood_us = self.recent, 0
        self.stood_us += min(since_us, DAY_US)
        if self.stood_us >= 28 * DAY_US:
            self.level, self.stood_us = self.recent, 0
            self.n = min(self.n, 32)
            self.first_us = max(self.first_us, now - 7 * DAY_US)


class Week:
    """Usual value at each hour of working days and of weekends, in single precision; `weight` as
    of `Anchor`."""

    def __init__(self) -> None:
        self.weight = 1.0
        self.cells: dict[tuple[bool, int], tuple[int, np.float32, np.float32]] = {}
        self.early: dict[tuple[bool, int], list[float]] = {}
        self.last_us = 0

    def step(self, now: int, x: float) -> dict[str, float]:
        """As of `Anchor`."""
        at = datetime.datetime.fromtimestamp(now // 1_000_000, datetime.UTC)
        weekend = at.weekday() >= 5
        cell = weekend, at.hour
        n, level32, deviation32 = self.cells.get(cell, (0, np.float32(0), np.float32(0)))
        level, deviation = float(level32), float(deviation32)
        d, spread = x - level, spread_of(deviation, level)
        self.weight = weight(d, spread) if n >= 16 else 1.0
        if 5 <= n < 16 and d != 0:
            self.weight = min(1.0, 6 * spread / abs(d))
        found = {"week_usual": NAN, "week_z": NAN}
        if n >= 8:
            found = {"week_usual": level, "week_z": as_sigma(d / spread, n)}
        limit = 1.5 * spread if n >= 16 else 6 * spread
        mean = HELD_MEAN if n >= 16 else ABS_MEAN
        slow = min(1 / 128, min(now - self.last_us, HOUR_US) / ((8 if weekend else 20) * HOUR_US))
        if n < 5:
            level, deviation = self._begin(cell, x)
        else:
            level += max(1 / (n + 1), slow) * held(d, limit)
            size = min(abs(d), limit) / mean
            deviation += max(1 / n, slow / 3) * (size - deviation)
        self.cells[cell] = n + 1, np.float32(level), np.float32(deviation)
        self.last_us = now
        return found

    def _begin(self, cell: tuple[bool, int], x: float) -> tuple[float, float]:
        """Level and deviation of the first five values of an hour, the last in without the wildest,
        which then comes in."""
        values = self.early.setdefault(cell, [])
        values.append(float(np.float32(x)))
        level, deviation = values[0], 0.0
        for n in range(3, len(values) + 1):
            taken, wild = first_of(values, n)
            if n == 3:
                level, deviation = statistics.fmean(taken), abs(taken[1] - taken[0]) / ABS_MEAN
            else:
                size = abs(taken[-1] - level) / ABS_MEAN
                deviation += (size - deviation) / (n - 2)
                level += (taken[-1] - level) / (n - 1)
            if n == 5:
                limit = 6 * spread_of(deviation, level) if deviation > 0 else math.inf
                d = held(wild - level, limit)
                return level + d / 5, deviation + (abs(d) / ABS_MEAN - deviation) / 4
            level, deviation = float(np.float32(level)), float(np.float32(deviation))
        return level, deviation


class Trend:
    """A line through the last hours, fitted anew each time to all values as they entered."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self.n = 0
        self.square = 0.0
        self.last_us = 0
        self.waits = (0, NAN)

    def line(self, now: int) -> tuple[float, float, float]:
        """Mean time before now in hours, mean value and slope per hour, weights exp(-age / 1 h)."""
        hours = [(t - now) / HOUR_US for t, _ in self.points]
        weights = [math.exp(h) for h in hours]
        total = math.fsum(weights)
        middle = math.fsum(w * h for w, h in zip(weights, hours, strict=True)) / total
        mean = math.fsum(w * x for w, (_, x) in zip(weights, self.points, strict=True)) / total
        tt = math.fsum(w * (h - middle) ** 2 for w, h in zip(weights, hours, strict=True))
        tx = math.fsum(
            w * (h - middle) * (x - mean)
            for w, h, (_, x) in zip(weights, hours, self.points, strict=True)
        )
        return -middle, mean, tx / tt if tt > 0.0 else 0.0

    def _enter(self, at: int, x: float, clip: float = math.inf) -> None:
        """A value of then becomes a point of the line that is not known yet."""
        after_h, mean, slope = self.line(at)
        foreseen = mean + slope * min(after_h, 2.0)
        missed = x - foreseen
        if self.square > 0:
            missed = held(missed, clip * spread_of(math.sqrt(self.square), mean))
        self.square += (missed * missed - self.square) / len(self.points)
        self.points.append((at, foreseen + missed))

    def _begin(self, now: int, x: float) -> None:
        """The first eight values: all but the one furthest from the mean, at last that one too."""
        if now - self.last_us >= 12 * HOUR_US:
            self.points = []
        self.last_us = now
        if not self.points:
            self.points, self.n, self.square = [(now, x)], 1, 0.0
            return
        self.n += 1
        if self.n == 2:
            self.waits = (now, x)
            return
        if self.n == 3:
            three = [(now, x), self.waits, self.points[0]]
            low, middle, high = sorted(y for _, y in three)
            far = high if high - middle > middle - low else low
            self.waits = next(p for p in three if p[1] == far)
            first, second = (p for p in reversed(three) if p is not self.waits)
            self.points = [first]
            self._enter(*second)
        else:
            mean = self.line(now)[1]
            if abs(x - mean) > abs(self.waits[1] - mean):
                (now, x), self.waits = self.waits, (now, x)
            self._enter(now, x)
        if self.n == 8:
            self._enter(*self.waits, clip=3.0)

    def step(self, now: int, x: float) -> dict[str, float]:
        """As of `Anchor`."""
        if self.n < 8:
            self._begin(now, x)
            return {"trend": NAN}
        last_us, self.last_us = self.last_us, now
        silent = now - last_us >= 12 * HOUR_US
        before_h, mean, slope = self.line(last_us)
        before_h += (now - last_us) / HOUR_US
        if silent:
            slope, before_h = 0.0, 0.0
        spread = spread_of(math.sqrt(self.square), mean)
        foreseen = mean + slope * min(before_h, 2.0)
        missed = held(x - foreseen, 3 * spread)
        self.points = [] if silent else self.points
        self.points.append((now, foreseen + missed))
        moves = len({t for t, _ in self.points}) > 1
        found = self.line(now)[2] / spread if moves else NAN
        self.square += max(1 / self.n, 1 / 128) * (missed * missed - self.square)
        self.n += 1
        return {"trend": found}


def twin(family: str, flag: bool = False) -> Anchor | Week | Trend:
    """A fresh twin of an instance of the family, of flags or of numbers."""
    if family == "anchor":
        return Anchor(flag)
    return Week() if family == "week" else Trend()
