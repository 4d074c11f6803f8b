"""Slow and obvious twins of the feature kernels: every feature straight from its definition.

Keeps every event of every entity for ever and looks through all of them for each feature. No
running sums, no rings, no tables; written from the formulas on the reference page.
"""

from __future__ import annotations

import itertools
import math
import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np

from features.batch import EventBatch
from features.catalog import Catalog
from features.events import event_type, event_types
from features.expiry import DAYS, DAYS_OTHER
from features.operations import OPERATIONS
from features.sequence import TOKENS
from features.spec import Feature
from tests import naive_categories, naive_correlate, naive_risk
from tests.naive_baselines import (
    as_sigma,
    first_of,
    mad_z,
    share_deviation,
    shrunk,
    twin,
    weight,
)

__all__ = [
    "NaiveEngine",
    "SampledPairs",
    "derived_column",
    "entity_key",
    "in_global_order",
    "window",
]

NAN = math.nan
DAY_S = 86_400.0
PAIR_TTL_US = 45 * 86_400 * 1_000_000

Event = dict[str, Any]


def in_global_order(batches: dict[str, EventBatch]) -> list[Event]:
    """All events as dicts, by (time, event type, partition, offset)."""
    events: list[Event] = []
    for name, batch in batches.items():
        for row, values in enumerate(batch.frame.iter_rows(named=True)):
            order = (
                values["time_us"],
                list(event_types()).index(name),
                int(batch.partition[row]),
                int(batch.offset[row]),
            )
            events.append({**values, "_type": name, "_row": row, "_order": order})
    return sorted(events, key=lambda e: e["_order"])


def entity_key(event: Event, entity: str) -> tuple[str, ...] | None:
    """The entity of an event, None where it is absent."""
    parts = event_type(event["_type"]).entities.get(entity, (entity,))
    found = tuple(event.get(p) for p in parts)
    return None if any(p is None or p == "" for p in found) else found


def derived_column(event: Event, name: str) -> Any:
    """A column of one event: the field, or what is made from it."""
    if name in event:
        return event[name]
    at = event["time_us"]
    made = {
        "log_amount": lambda: math.log1p(event["amount"]),
        "small": lambda: event["amount"] < 3.0,
        "round": lambda: event["amount"] >= 50.0 and event["amount"] % 10.0 == 0.0,
        "online": lambda: event["channel"] == "online",
        "remote": lambda: event["channel"] in ("online", "transfer"),
        "cash": lambda: event["channel"] == "atm",
        "failed": lambda: not event["success"],
        "password": lambda: event["method"] == "password",
        "token": lambda: event["method"] == "token",
        "device_unknown": lambda: event["device_id"] is None,
        "log_value": lambda: math.copysign(math.log1p(abs(event["value"])), event["value"]),
        "log_duration": lambda: (
            None if event["duration_ms"] is None else math.log1p(event["duration_ms"])
        ),
        "error": lambda: event["level"] in ("error", "fatal"),
        "warning": lambda: event["level"] in ("warning", "error", "fatal"),
        "server_error": lambda: event["status"] is not None and event["status"] >= 500,
        "untimed": lambda: event["duration_ms"] is None,
        "hour": lambda: at % 86_400_000_000 / 3.6e9,
    }
    return made[name]()


def number(value: Any) -> float:
    """A value as a float, NaN where there is none."""
    return NAN if value is None else float(value)


def window(records: list[tuple[int, Event]], now_us: int, window_s: int) -> list[Event]:
    """Events of (now - window, now]."""
    return [e for t, e in records if now_us - window_s * 1_000_000 < t <= now_us]


class PanedWindow:
    """One entity's longest window where the older of too many events are merged into panes."""

    def __init__(self, window_s: int, exact_s: int, exact_max: int) -> None:
        self.window_us, self.exact_us = window_s * 1_000_000, exact_s * 1_000_000
        self.exact_max = exact_max
        self.panes: list[list[tuple[int, Any]]] = []
        self.exact: list[tuple[int, Any]] = []

    def move(self, now_us: int) -> None:
        """Let it end at a time: panes leave with their newest event."""
        since_us = now_us - self.window_us
        self.panes = [pane for pane in self.panes if pane[-1][0] > since_us]
        while len(self.exact) > self.exact_max:
            time_us = self.exact[0][0]
            if not since_us < time_us <= now_us - self.exact_us:
                break
            if not self.panes or self.panes[-1][-1][0] // 10_000_000 != time_us // 10_000_000:
                self.panes.append([])
            self.panes[-1].append(self.exact.pop(0))
        self.exact = [one for one in self.exact if one[0] > since_us]

    def events(self) -> list[Any]:
        """All that it counts."""
        return [event for pane in [*self.panes, self.exact] for _, event in pane]

    def excess(self, now_us: int) -> tuple[int, int]:
        """Events that are too old, and how many there can be by what a pane says of itself."""
        since_us = now_us - self.window_us
        old = sum(t <= since_us for pane in self.panes for t, _ in pane)
        first = self.panes[0] if self.panes else []
        may = first and first[-1][0] // 10_000_000 * 10_000_000 <= since_us
        return old, len(first) - 1 if may else 0


class SampledPairs:
    """One entity's pairs of one column where at most so many are kept in its longest window."""

    def __init__(self, windows_s: list[int], known_s: int, bound: int) -> None:
        self.windows_us = [1_000_000 * w for w in windows_s]
        self.known_us, self.bound = 1_000_000 * known_s, bound
        self.records: list[list[int]] = []  # time, value (0 for none), level
        self.now = self.high = self.high_us = self.ever = 0
        self.now_us = 0
        self.seen: dict[int, tuple[int, int]] = {}  # value -> time, record's number

    @staticmethod
    def kept(value: int, level: int) -> bool:
        """Whether a value's hash begins with so many bits of 0."""
        return ((value * 0x9E3779B97F4A7C15) % 2**64) >> (64 - level) == 0

    def count(self, window_us: int) -> int:
        """Different others of a window, each as many as its newest record stands for."""
        newest = {v: level for _, v, level in self.inside(window_us) if v}
        return sum(2**level for value, level in newest.items() if self.kept(value, level))

    def inside(self, window_us: int) -> list[list[int]]:
        first = bisect_right(self.records, self.now_us - window_us, key=itemgetter(0))
        return self.records[first:]

    def _rise(self) -> None:
        longest_us = self.windows_us[-1]
        if self.count(longest_us) <= self.bound << self.now:
            return
        count = self.count(longest_us)
        while count > self.bound << self.now:
            self.now += 1
        for one in self.records:
            one[2] = max(one[2], self.now)
        self.seen = {v: e for v, e in self.seen.items() if self.kept(v, self.records[e[1]][2])}
        self._rise()

    def _fall(self) -> None:
        levels = {level for _, _, level in self.inside(self.windows_us[-1])}
        if levels <= {self.now}:
            count = self.count(self.windows_us[-1])
            while self.now and 4 * count <= self.bound << self.now:
                self.now -= 1

    def meet(self, now_us: int, value: int) -> tuple[list[int], float, int]:
        """Counts of each window with the event, whether its pair is new, others ever."""
        self.now_us = now_us
        self._rise()
        highest = max([self.now, *(level for _, _, level in self.inside(self.windows_us[-1]))])
        self._fall()
        if highest:
            self.high, self.high_us = max(self.high, highest), now_us
        elif now_us - self.high_us > self.known_us:
            self.high = 0
        new = NAN
        if value and self.kept(value, self.now):
            before_us, _ = self.seen.get(value, (-(2**62), 0))
            if now_us - before_us <= self.known_us:
                new = 0.0
            elif self.kept(value, self.high):
                new = 1.0
                self.ever += 2**self.high
            self.seen[value] = now_us, len(self.records)
        self.records.append([now_us, value, self.now])
        counts = [self.count(w) for w in self.windows_us]
        return counts, new if len(self.records) > 1 or new == 0.0 else NAN, self.ever


@lru_cache(maxsize=1 << 16)
def _clipped_mean(
    values: tuple[float, ...],
    memory: float,
    clip: float,
    clip_from: int,
    weights: tuple[float, ...],
    flag: bool,
    early: float,
    waits: bool,
) -> tuple[float, float]:
    """Exponentially weighted mean and variance in which an outlier counts at `clip` deviations;
    the wildest of the first five comes last of them, at six deviations of the others."""
    given, weighed = list(values), list(weights or [1.0] * len(values))
    waits = waits and len(given) >= 5 and not flag
    if waits:
        taken, wild = first_of(given, 5)
        given[:5], weighed[:5] = [*taken, wild], [1.0] * 5
    mean, var = given[0], 0.0
    for n, x in enumerate(given[1:], start=1):
        d = max(-1e150, min(1e150, (x - mean) * weighed[n]))
        if n >= clip_from:
            clips = clip
        elif var == 0 or n < 4:
            clips = math.inf
        else:
            clips = early if n > 4 else 6.0 if waits else math.inf
        if clips < math.inf and not flag:
            limit = clips * (math.sqrt(var) + 1e-3 * abs(mean) + 1e-9)
            d = max(-limit, min(limit, d))
        a = max(1.0 / (n + 1), 1.0 / memory)
        mean += a * d
        var = (1 - a) * (var + a * d * d)
    return mean, share_deviation(mean, len(given)) ** 2 if flag and len(given) > 1 else var


def clipped_mean(
    values: list[float],
    memory: float,
    clip: float,
    clip_from: int,
    weights: Sequence[float] = (),
    flag: bool = False,
    early: float = math.inf,
    waits: bool = True,
) -> tuple[float, float]:
    """As above; remembered, since several features ask for the same. From the sixth value on one
    counts at `early` deviations, until it counts at `clip`; without `waits` the first are taken as
    they come."""
    return _clipped_mean(tuple(values), memory, clip, clip_from, tuple(weights), flag, early, waits)


def plain_mean(values: list[float], memory: float, weights: Sequence[float] = ()) -> float:
    """Exponentially weighted mean that starts as the plain mean."""
    mean = 0.0
    for n, x in enumerate(values):
        share = max(1.0 / (n + 1), 1.0 / memory) * (weights[n] if weights else 1.0)
        mean += share * (x - mean)
    return mean


def baseline(
    op: str, values: list[float], weights: list[float], x: float, flag: bool = False
) -> float:
    """A statistic of x against the earlier values, oldest first, and what each weighs."""
    n = len(values)
    run = 1
    while run <= n and values[-run] == x:
        run += 1
    if op == "run_length":
        return float(run)
    if n == 0:
        return NAN
    mean, var = clipped_mean(values, 200, 3.0, 16, weights, flag)
    if op == "usual":
        return mean
    if op == "recent":
        return plain_mean(values, 8)
    if op == "last":
        return values[-1]
    if n < 3:
        return NAN
    spread = math.sqrt(var) + 1e-3 * abs(mean) + 1e-9
    steps = [abs(b - a) for a, b in zip([*values, x], [*values, x][1:], strict=False)]
    if op == "usual_std":
        return math.sqrt(var)
    if op == "z":
        return as_sigma((x - mean) / spread, n)
    if op == "drift":
        return as_sigma((plain_mean([*values, x], 8) - mean) / spread, n)
    floor = 1e-3 * abs(mean) + 1e-9
    if op in ("flatness", "step"):
        usual = usual_step(values, weights, flag) + floor
        return plain_mean(steps, 4) / usual if op == "flatness" else (x - values[-1]) / usual
    return ranked(op, values[-32:], x)


def usual_step(values: list[float], weights: list[float], flag: bool) -> float:
    """Mean of the steps between values, the first four together at 2.5 deviations at most."""
    steps = [abs(b - a) for a, b in itertools.pairwise(values)]
    if flag:
        return plain_mean(steps, 200, weights[1:])
    first = statistics.fmean(steps[:4])
    if len(steps) < 4:
        return first
    mean, var = clipped_mean(values[:5], 200, 3.0, 16)
    first = min(first, 2.5 * (math.sqrt(var) + 1e-3 * abs(mean) + 1e-9))
    return plain_mean([first] * 4 + steps[4:], 200, [1.0] * 4 + weights[5:])


def ranked(op: str, kept: list[float], x: float) -> float:
    """A statistic of x against the last values by rank."""
    low, median, high = (float(q) for q in np.quantile(kept, [0.25, 0.5, 0.75]))
    spread = high - low + 1e-3 * abs(median) + 1e-9
    return {
        "median": median,
        "median_size": math.copysign(math.expm1(abs(median)), median),
        "iqr": high - low,
        "robust_z": as_sigma((x - median) / (spread / 1.349), len(kept)),
        "iqr_distance": max(low - x, x - high, 0.0) / spread,
        "mad_z": mad_z(kept, x),
        "quantile": (sum(v < x for v in kept) + 0.5 * sum(v == x for v in kept)) / len(kept),
    }[op]


def kilometres(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Great circle by the haversine formula; places are (latitude, longitude) in degrees."""
    (la, oa), (lb, ob) = (tuple(map(math.radians, p)) for p in (a, b))
    h = math.sin((lb - la) / 2) ** 2 + math.cos(la) * math.cos(lb) * math.sin((ob - oa) / 2) ** 2
    return 2 * 6371.0088 * math.asin(min(1.0, math.sqrt(h)))


def vector(place: tuple[float, float]) -> np.ndarray:
    """Unit vector of a place."""
    la, lo = map(math.radians, place)
    return np.array([math.cos(la) * math.cos(lo), math.cos(la) * math.sin(lo), math.sin(la)])


def place_of(event: Event) -> tuple[float, float] | None:
    """Latitude and longitude, None where unknown."""
    if event["latitude"] is None or event["longitude"] is None:
        return None
    return event["latitude"], event["longitude"]


class NaiveEngine:
    """Every event of every entity, and every feature by looking through them."""

    def __init__(self, catalog: Catalog, ttl_s: dict[str, int] | None = None) -> None:
        self.catalog = catalog
        self.ttl_s = ttl_s or {}
        self.records: dict[tuple[str, Any], list[tuple[int, Event]]] = defaultdict(list)
        self.values: dict[tuple[str, Any, str], list[Any]] = defaultdict(list)
        self.twins: dict[tuple[str, Any, str], Any] = {}
        self.members: dict[Any, dict[Any, Member]] = defaultdict(dict)
        self.hosts: dict[Any, naive_correlate.Host] = defaultdict(naive_correlate.Host)
        self.risks: dict[tuple[str, Any, tuple[str, ...]], naive_risk.Known] = defaultdict(
            naive_risk.Known
        )
        self.touching = {e: self._touching(e) for t in event_types().values() for e in t.entities}

    def _touching(self, entity: str) -> set[str]:
        """Event types that feed or read any feature of the entity, or are in its sequence."""
        mine = [
            f
            for name in self.catalog.event_types
            for f in self.catalog.features(name)
            if f.entity == entity and OPERATIONS[f.op].family not in ("derived", "stateless")
        ]
        found = {e for f in mine for e in (f.event, *f.feeds)}
        return found | (set(TOKENS.get(entity, {})) if found else set())

    def process(self, events: list[Event]) -> list[dict[str, float]]:
        """Features by name of each event, in the given (global) order."""
        return [self._one(event) for event in events]

    def _one(self, event: Event) -> dict[str, float]:
        name = event["_type"]
        keys: dict[str, tuple[str, ...]] = {}
        times: dict[str, int] = {}
        before: dict[str, list[tuple[int, Event]]] = {}
        for entity in event_type(name).entities:
            key = entity_key(event, entity)
            if key is None or name not in self.touching[entity]:
                continue
            records = self.records[entity, key]
            ttl_us = self.ttl_s.get(entity, DAYS.get(entity, DAYS_OTHER) * DAY_S) * 1_000_000
            if records and event["time_us"] - records[-1][0] > ttl_us:
                self._forget(entity, key, records)
            keys[entity] = key
            times[entity] = max([event["time_us"], *(t for t, _ in records[-1:])])
            before[entity] = list(records)
            records.append((times[entity], event))
        out: dict[str, float] = {}
        late: list[Feature] = []
        for feature in self.catalog.features(name):
            family = OPERATIONS[feature.op].family
            if family == "stateless":
                out[feature.name] = number(derived_column(event, str(feature.column)))
            elif family == "derived" or family in ("baseline", "season", "anchor", "week", "trend"):
                late.append(feature)
            elif feature.entity not in keys:
                out[feature.name] = NAN
            else:
                out[feature.name] = getattr(self, f"_{family}")(
                    feature, event, before[feature.entity], times[feature.entity]
                )
        waiting = sorted(late, key=lambda f: OPERATIONS[f.op].family == "derived")
        while waiting:
            feature = waiting.pop(0)
            if {feature.column, feature.other, feature.count} & {f.name for f in waiting}:
                waiting.append(feature)
            else:
                out[feature.name] = self._later(feature, event, keys, times, before, out)
        return out

    def _forget(self, entity: str, key: tuple[str, ...], records: list[tuple[int, Event]]) -> None:
        """All that is known of one entity."""
        records.clear()
        for known in (self.values, self.twins, self.risks):
            for at in [k for k in known if k[:2] == (entity, key)]:
                del known[at]
        names = {f.name for e in self.catalog.event_types for f in self.catalog.features(e)
                 if f.entity == entity}  # fmt: skip
        for state in [s for k, s in self.members.items() if k[0] in names and k[2] == key]:
            state.clear()

    def _fed(self, feature: Feature, records: list[tuple[int, Event]]) -> list[tuple[int, Event]]:
        """Records of the event types that feed the feature."""
        feeds = feature.feeds or (feature.event,)
        return [(t, e) for t, e in records if e["_type"] in feeds]

    def _ring(self, f: Feature, event: Event, before: list, now: int) -> float:
        fed = self._fed(f, before)
        own = event["_type"] in (f.feeds or (f.event,))
        if f.op in ("first_time", "since_pair", "distinct_ever"):
            return self._pair(f, event, fed, now, own)
        inside = window([*fed, (now, event)] if own else fed, now, int(f.window_s or 0))
        if f.op == "share":
            hits = sum(bool(derived_column(e, str(f.where))) for e in inside)
            return hits / len(inside) if inside else NAN
        if f.op in ("distinct", "distinct_share"):
            others = {entity_key(e, str(f.other)) for e in inside} - {None}
            if f.op == "distinct":
                return float(len(others))
            return len(others) / len(inside) if inside else NAN
        if f.where is not None:
            inside = [e for e in inside if derived_column(e, f.where)]
        if f.op == "count":
            return float(len(inside))
        numbers = [number(derived_column(e, str(f.column))) for e in inside]
        numbers = [x for x in numbers if x == x]
        if f.op == "sum":
            return math.fsum(numbers)
        if not numbers:
            return NAN
        if f.op == "std":
            return statistics.stdev(numbers) if len(numbers) > 1 else NAN
        return {"mean": statistics.fmean, "max": max, "min": min}[f.op](numbers)

    def _pair(self, f: Feature, event: Event, fed: list, now: int, own: bool) -> float:
        met: dict[Any, int] = {}
        ever = 0
        for t, e in [*fed, (now, event)] if own and f.op == "distinct_ever" else fed:
            other = entity_key(e, str(f.other))
            if other is not None:
                ever += other not in met or t - met[other] > PAIR_TTL_US
                met[other] = t
        if f.op == "distinct_ever":
            return float(ever)
        mine = entity_key(event, str(f.other))
        if mine is None:
            return NAN
        known = mine in met and now - met[mine] <= PAIR_TTL_US
        if f.op == "since_pair":
            return (now - met[mine]) / 1e6 if known else NAN
        return 0.0 if known else (1.0 if fed else NAN)

    def _rate(self, f: Feature, event: Event, before: list, now: int) -> float:
        fed = [t for t, e in self._fed(f, before) if f.where is None or derived_column(e, f.where)]
        if f.op == "ever":
            return float(len(fed))
        if f.op == "age":
            return (now - fed[0]) / 1e6 if fed else 0.0
        if f.op == "since":
            return (now - fed[-1]) / 1e6 if fed else NAN
        if not fed:
            return 0.0
        tau_s = 7 * DAY_S
        decayed = math.fsum(math.exp(-(now - t) / 1e6 / tau_s) for t in fed)
        age_s = max((now - fed[0]) / 1e6, DAY_S)
        return decayed / (tau_s * (1 - math.exp(-age_s / tau_s))) * float(f.window_s or 0)

    def _geo(self, f: Feature, event: Event, before: list, now: int) -> float:
        here = place_of(event)
        places = [(t, place_of(e)) for t, e in self._fed(f, before) if place_of(e) is not None]
        if here is None or not places:
            return NAN
        if f.op == "home_km":
            if len(places) < 3:
                return NAN
            return home_km([vector(place) for _, place in places], vector(here))
        last_us, last = places[-1]
        gap_s = (now - last_us) / 1e6
        if f.op == "since_place":
            return gap_s
        km = kilometres(last, here)
        return km if f.op == "moved_km" else km / max(gap_s, 60.0) * 3600.0

    def label(self, name: str, event_id: str, time_us: int, fraud: bool, entities: dict) -> None:
        """A verdict becomes known of entities that were seen before."""
        for entity, key in entities.items():
            records = self.records.get((entity, (key,)))
            if not records:
                continue
            feeds = {
                f.feeds or (f.event,)
                for t in self.catalog.event_types
                for f in self.catalog.features(t)
                if f.entity == entity and OPERATIONS[f.op].family == "risk"
            }
            for fed in feeds:
                if name in fed:
                    known = self.risks[entity, (key,), tuple(sorted(fed))]
                    known.take(
                        (name, event_id), min(time_us, records[-1][0]), fraud, records[-1][0]
                    )

    def _risk(self, f: Feature, event: Event, before: list, now: int) -> float:
        feeds = tuple(sorted(f.feeds or (f.event,)))
        known = self.risks[f.entity, entity_key(event, f.entity), feeds]
        return known.value(f.op, f.window_s, [t for t, _ in self._fed(f, before)], now)

    def _correlations(self, f: Feature, event: Event, before: list, now: int) -> float:
        x, mine = number(derived_column(event, str(f.column))), entity_key(event, str(f.other))
        if x != x or mine is None:
            return NAN
        host = self.hosts[f.name, entity_key(event, f.entity)]
        return host.take(mine, x, now, int(f.window_s or 0))[f.op]

    def _categories(self, f: Feature, event: Event, before: list, now: int) -> float:
        feeds = f.feeds or (f.event,)
        events = [e for _, e in before if e["_type"] in feeds]
        events += [event] if event["_type"] in feeds else []
        keys = [entity_key(e, str(f.other)) for e in events]
        if entity_key(event, str(f.other)) is None:
            return NAN
        return naive_categories.entropy([key for key in keys if key is not None][-32:])

    def _members(self, f: Feature, event: Event, before: list, now: int) -> float:
        x = number(derived_column(event, str(f.column)))
        mine = entity_key(event, str(f.other))
        if x != x or mine is None:
            return NAN
        # One feature's members; those of each feature are learnt apart, each in the same way.
        state = self.members[f.name, event["_type"], entity_key(event, f.entity)]
        peers = fresh(state, mine, now, int(f.window_s or 0))
        own = state.get(mine, Member())
        values = [p.value for p in peers]
        zs = [p.z for p in peers if len(p.values) > 8]
        own_z = own.deviation(own.values, x)
        found = self._member_value(f, x, own, own_z, values, zs)
        state.setdefault(mine, own).learn(now, x, own_z, peers)
        return found

    def _member_value(
        self, f: Feature, x: float, own: Member, own_z: float, values: list[float], zs: list[float]
    ) -> float:
        """What an operation makes of a member and its peers."""
        gap = x - statistics.fmean(values) if values else NAN
        return {
            "peer_mean": lambda: statistics.fmean(values) if values else NAN,
            "peer_z": lambda: (
                gap / (statistics.pstdev(values) + 1e-3 * abs(statistics.fmean(values)) + 1e-9)
                if len(values) > 1
                else NAN
            ),
            "peer_gap_z": lambda: own.deviation(own.gaps, gap) if values else NAN,
            "peers_level_z": lambda: statistics.fmean(zs) if zs else NAN,
            "peers_abs_z": lambda: statistics.fmean(map(abs, zs)) if zs else NAN,
            "peers_deviating": lambda: sum(abs(z) > 3 for z in zs) / len(zs) if zs else NAN,
            "member_z": lambda: own_z,
            "member_rel_z": lambda: own_z - statistics.fmean(zs) if zs else NAN,
        }[f.op]()

    def _later(
        self, f: Feature, event: Event, keys: dict, times: dict, before: dict, out: dict[str, float]
    ) -> float:
        """Baselines (which may read other features) and features of features."""
        if OPERATIONS[f.op].family == "derived":
            a, b = out[str(f.column)], out[str(f.other)]
            if f.op in ("shrunk_z", "shrunk_count"):
                known = out[str(f.count)]
                if f.op == "shrunk_z":
                    return shrunk(a, b, known)
                return NAN if known != known else shrunk(a, b if b != 0 else NAN, known, DAY_S)
            if f.op == "difference":
                return a - b
            if f.op == "ratio":
                return a / b if b != 0.0 else NAN
            return math.sqrt(a) + math.sqrt(a + 1) - math.sqrt(4 * b + 1) if a == a else NAN
        if f.entity not in keys:
            return NAN
        x = self._input(f, event, out)
        if OPERATIONS[f.op].family in ("anchor", "week", "trend"):
            if x != x:
                return NAN
            at = f.entity, keys[f.entity], f"{f.name} {event['_type']}"
            if at not in self.twins:
                self.twins[at] = twin(OPERATIONS[f.op].family, self._is_flag(f))
            return self.twins[at].step(times[f.entity], x)[f.op]
        if x != x:
            return NAN
        at = f.entity, keys[f.entity], f"{f.name} {event['_type']}"
        seen, season = self.values[at], OPERATIONS[f.op].family == "season"
        hour = times[f.entity] // 3_600_000_000 % 24
        known = [(v, w) for h, v, w in seen if h == hour or not season]
        earlier, weights = [v for v, _ in known], [w for _, w in known]
        flag = self._is_flag(f)
        slow = self.twins.setdefault(at, twin("week" if season else "anchor", flag))
        slow.step(times[f.entity], x)
        seen.append((hour, x, slow.weight))
        if not season:
            return baseline(f.op, earlier, weights, x, flag)
        if len(earlier) < 8:
            return NAN
        mean, var = clipped_mean(earlier, 128, 3.0, 16, weights, early=6.0)
        if f.op == "season_usual":
            return mean
        return as_sigma((x - mean) / (math.sqrt(var) + 1e-3 * abs(mean) + 1e-9), len(earlier))

    def _is_flag(self, f: Feature) -> bool:
        """Whether a baseline is of a feature that is 0 or 1."""
        return any(g.name == f.column and g.unit == "flag" for g in self.catalog.features(f.event))

    def _input(self, f: Feature, event: Event, out: dict[str, float]) -> float:
        """What a baseline is of: a column, another feature, or the logarithm of one."""
        column = str(f.column)
        log = column.startswith("log(")
        name = column[4:-1] if log else column
        try:
            x = number(derived_column(event, name))
        except KeyError:
            x = out[name]
        return math.copysign(math.log1p(abs(x)), x) if log else x


def apart_km(a: np.ndarray, b: np.ndarray) -> float:
    """Great circle from a mean of unit vectors to a unit vector."""
    chord = float(np.linalg.norm(a / np.linalg.norm(a) - b))
    return 2 * 6371.0088 * math.asin(min(1.0, chord / 2))


def home_km(places: list[np.ndarray], here: np.ndarray) -> float:
    """Distance from the home, whose places weigh by their distance from a slow one."""
    home = slow = places[0]
    usual = 0.0
    for n, place in enumerate(places[1:], start=1):
        km, weighs = apart_km(slow, place), 1.0
        if n >= 16:
            weighs = max(weight(km, usual + 1.0), 0.25)
            km = min(km, 1.5 * (usual + 1.0))
        usual = usual + max(1.0 / (n + 1), 1.0 / 768.0) * (km - usual)
        share = max(1.0 / (n + 1), 1.0 / 256.0)
        home = home + weighs * max(1.0 / (n + 1), 1.0 / 64.0) * (place - home)
        slow = slow + weighs * share * (place - slow)
    return apart_km(home, here)


class Member:
    """One member of an entity: all its values."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.gaps: list[float] = []
        self.time_us, self.value, self.z = 0, NAN, 0.0

    def deviation(self, values: list[float], x: float) -> float:
        """x against the earlier values, in sigma; unknown while there are fewer than eight."""
        if len(values) < 8:
            return NAN
        mean, var = clipped_mean(values, 100, 4.0, 8, waits=False)
        t = (x - mean) / (math.sqrt(var) + 1e-3 * abs(mean) + 1e-9)
        return as_sigma(t, len(values))

    def learn(self, time_us: int, value: float, z: float, peers: list[Member]) -> None:
        """Take a value in."""
        self.z = 0.0 if z != z else z
        if peers:
            self.gaps.append(value - statistics.fmean(p.value for p in peers))
        self.values.append(value)
        self.time_us, self.value = time_us, value


def fresh(state: dict[Any, Member], own: Any, now: int, window_s: int) -> list[Member]:
    """The other members heard of within the window."""
    return [m for k, m in state.items() if k != own and now - m.time_us < window_s * 1_000_000]
