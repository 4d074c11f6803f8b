"""What the kernels of one entity type are told: the catalogue as tables of numbers.

Built once from a catalogue. For each entity type: which columns of which event types it needs, and
for each family of operations the instances (one ring, one baseline, ...) that its features share,
and for each event type which statistic goes to which column of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from features.arena import bits_max
from features.catalog import Catalog, inputs_of
from features.columns import PLACE
from features.events import event_code, event_type, event_types
from features.maxima import link_words
from features.operations import HISTORY_FROM, OPERATIONS, SLOW_TWINS, UNWEIGHED
from features.risk import COUNTED_FROM
from features.sequence import COMMON, TOKENS, WIDTH
from features.spec import Feature
from features.windows import FLAGS_MAX, NARROW_US, PAIRS_MAX

__all__ = [
    "ABSENCE",
    "HEAD",
    "Bases",
    "Categories",
    "EntityPlan",
    "Family",
    "Members",
    "Plan",
    "Ring",
    "Risk",
    "Sequence",
    "Silence",
    "plan_of",
    "silence_of",
    "twins_of",
]

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

HEAD = 8
"""Columns of a row's `head` before the keys of other entities: key, time, event code, lane, row,
partition, offset, flags."""

ABSENCE = "absence"
"""The event type that tells of silence; rhythms are kept where the catalogue has features of it."""

PAIR_TTL_S = 45 * 86_400
"""A pair not seen for so long counts as new; chosen: a monthly habit is still known."""


@dataclass(slots=True)
class Family:
    """Instances and features of one family of one entity type.

    `plan` rows are (operation, instance or window, column or parameter, where to); `plan_at` says
    where the rows of an event type (and instance) begin.
    """

    feeds: Bool
    plan: Int64
    plan_at: Int64

    @property
    def tables(self) -> tuple[Any, ...]:
        """What the kernel is given, in the order of its arguments."""
        return self.feeds, self.plan, self.plan_at


@dataclass(slots=True)
class Ring:
    """One ring of records: the features fed by the same event types.

    `names` says what the flags, columns, maxima and others are, each in its order.
    """

    feeds: Bool
    windows_us: Int64
    flag_bits: Int64
    columns: Int64
    max_columns: Int64
    signs: npt.NDArray[np.float64]
    others: Int64
    ttl_us: Int64
    plan: Int64
    plan_at: Int64
    names: Mapping[str, list[str]]

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Windows, flags, reals, maxima, pairs."""
        return (
            len(self.windows_us),
            len(self.flag_bits),
            len(self.columns),
            len(self.max_columns),
            len(self.others),
        )

    @property
    def config(self) -> Int64:
        """What `run_ring` needs to know, as one array: calls with few arguments are cheap."""
        parts = (
            np.array(self.shape),
            self.windows_us,
            self.flag_bits,
            self.columns,
            self.max_columns,
            self.signs,
            self.others,
            self.ttl_us,
            self.feeds,
        )
        return np.concatenate([np.asarray(part, np.int64) for part in parts])

    @property
    def narrow(self) -> bool:
        """Whether the words of its records have 32 bits (see `features.windows`), else 64."""
        bits = len(self.flag_bits) + 2 * len(self.others)
        return int(self.windows_us.max()) <= NARROW_US and bits <= bits_max(narrow=True)

    @property
    def record_words(self) -> int:
        """8-byte words of a record: time, conditions and marks, links of maxima, reals."""
        _, flags, reals, maxima, pairs = self.shape
        words = 2 + link_words(self.narrow, flags, maxima, pairs)
        return reals + (-(-words // 2) if self.narrow else words)


@dataclass(slots=True)
class Rates(Family):
    """Decayed counts; `flag_bits` -1 for no condition."""

    flag_bits: Int64

    @property
    def tables(self) -> tuple[Any, ...]:
        """As of `Family`."""
        return self.feeds, self.flag_bits, self.plan, self.plan_at


@dataclass(slots=True)
class Bases(Family):
    """Baselines or seasons; `histories` is the place of an instance's last values, -1 for none,
    `slow` that of its slow twin; `flags`, whether its values are 0 and 1."""

    sources: Int64
    logs: Bool
    histories: Int64
    slow: Int64
    flags: Bool

    @property
    def tables(self) -> tuple[Any, ...]:
        """As of `Family`."""
        return (self.feeds, self.sources, self.logs, self.histories, self.plan, self.plan_at)


@dataclass(slots=True)
class Members(Family):
    """Members side by side."""

    others: Int64
    columns: Int64
    windows_us: Int64

    @property
    def tables(self) -> tuple[Any, ...]:
        """As of `Family`."""
        return (self.feeds, self.others, self.columns, self.windows_us, self.plan, self.plan_at)


@dataclass(slots=True)
class Risk(Family):
    """Known frauds by day; `counted` is the place of an instance's events by day, -1 for none."""

    counted: Int64

    @property
    def tables(self) -> tuple[Any, ...]:
        """As of `Family`."""
        return self.feeds, self.counted, self.plan, self.plan_at


@dataclass(slots=True)
class Categories(Family):
    """Entropies; `others` is where the value stands in a row."""

    others: Int64

    @property
    def tables(self) -> tuple[Any, ...]:
        """As of `Family`."""
        return self.feeds, self.others, self.plan, self.plan_at


@dataclass(slots=True)
class Sequence:
    """Vectors of the last events; `own` is the event code that gets them."""

    kinds: Int64
    sources: Int64
    scales: npt.NDArray[np.float64]
    own: int

    @property
    def tables(self) -> tuple[Any, ...]:
        """As of `Family`."""
        return self.kinds, self.sources, self.scales, self.own


@dataclass(slots=True)
class Silence:
    """Whose rows are utterances of the entity, and where the keys of holder and pool stand."""

    feeds: Bool
    peers: Int64

    @property
    def tables(self) -> tuple[Any, ...]:
        """As of `Family`."""
        return self.feeds, self.peers


@dataclass(slots=True)
class EntityPlan:
    """All that one entity type's state needs to know.

    `reals`, `flags` and `others` name the columns a row carries, in order; `features` says by event
    type which features are computed here, in the order of the result's columns.
    """

    entity: str
    events: tuple[str, ...] = ()
    reals: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    features: dict[str, tuple[Feature, ...]] = field(default_factory=dict)
    width: int = 0
    rings: list[Ring] = field(default_factory=list)
    rates: Rates | None = None
    bases: Bases | None = None
    seasons: Bases | None = None
    anchors: Bases | None = None
    weeks: Bases | None = None
    trends: Bases | None = None
    geo: Family | None = None
    places: Int64 = field(default_factory=lambda: np.zeros(3, np.int64))
    members: Members | None = None
    risk: Risk | None = None
    categories: Categories | None = None
    correlations: Members | None = None
    sequence: Sequence | None = None
    silence: Silence | None = None

    def real(self, name: str) -> int:
        """Column of a row that carries the real, taken in where it is new."""
        return _index(self.reals, name)

    def flag(self, name: str) -> int:
        """Bit of a row's flags, taken in where it is new."""
        return _index(self.flags, name)

    def other(self, name: str) -> int:
        """Column of `head` that carries the key, taken in where it is new."""
        return HEAD + _index(self.others, name)


@dataclass(frozen=True, slots=True)
class Plan:
    """Plans of all entity types, in a fixed order, and where results go.

    `columns` : (event type, entity) -> first column in the event's matrix (a view's state features
    stand together).
    """

    entities: dict[str, EntityPlan]
    columns: dict[tuple[str, str], int]


def _index(names: list[str], name: str) -> int:
    """Place of `name`, appended where it is new."""
    if name not in names:
        names.append(name)
    return names.index(name)


def _feeds(feature: Feature) -> tuple[str, ...]:
    """Event types that feed a feature, in the fixed order."""
    names = feature.feeds or (feature.event,)
    return tuple(name for name in event_types() if name in names)


def _mask(feeds: tuple[str, ...]) -> Bool:
    """bool (event types,)."""
    return np.array([name in feeds for name in event_types()])


Row = tuple[str, int, int, int, int]
"""Event type, operation, instance or window, column or parameter, where to."""


def _table(rows: list[Row], instances: int | None) -> tuple[Int64, Int64]:
    """Rows of a plan by event type (and by instance, where the kernel goes by instance)."""
    per = 1 if instances is None else instances
    keyed = [(event_code(r[0]) * per + (0 if instances is None else r[2]), r[1:]) for r in rows]
    keyed.sort(key=lambda k: k[0])
    starts = np.zeros(len(event_types()) * per + 1, np.int64)
    for key, _ in keyed:
        starts[key + 1] += 1
    table = np.array([r for _, r in keyed], np.int64).reshape(-1, 4)
    return table, np.cumsum(starts)


@lru_cache(maxsize=8)
def plan_of(catalog: Catalog) -> Plan:
    """The plans of a catalogue, built once."""
    entities: dict[str, EntityPlan] = {}
    columns: dict[tuple[str, str], int] = {}
    names = dict.fromkeys(e for t in event_types().values() for e in t.entities)
    for entity in names:
        plan = EntityPlan(entity)
        for event in catalog.event_types:
            mine = tuple(
                f
                for f in catalog.features(event)
                if f.entity == entity and OPERATIONS[f.op].family not in ("derived", "stateless")
            )
            if mine:
                plan.features[event] = mine
                columns[event, entity] = catalog.names(event).index(mine[0].name)
        if plan.features:
            _build(plan, catalog.without_sequence)
            if catalog.features(ABSENCE):
                _build_silence(plan)
            entities[entity] = plan
    return Plan(entities, columns)


def _build(plan: EntityPlan, without_sequence: frozenset[str]) -> None:
    """Fill a plan from its features."""
    plan.width = max(len(fs) for fs in plan.features.values())
    by_family: dict[str, list[tuple[Feature, int]]] = {}
    for features in plan.features.values():
        for to, feature in enumerate(features):
            by_family.setdefault(OPERATIONS[feature.op].family, []).append((feature, to))
    events = {e for fs in plan.features.values() for f in fs for e in (f.event, *_feeds(f))}
    builders: dict[str, Callable[[EntityPlan, list[tuple[Feature, int]]], None]] = {
        "ring": _build_rings,
        "rate": _build_rates,
        "baseline": _build_bases,
        "season": _build_seasons,
        "anchor": _build_anchors,
        "week": _build_weeks,
        "trend": _build_trends,
        "geo": _build_geo,
        "members": _build_members,
        "risk": _build_risk,
        "categories": _build_categories,
        "correlations": _build_correlations,
    }
    for family, slow in SLOW_TWINS.items():
        if family in by_family:
            by_family.setdefault(slow, [])
    for family in sorted(by_family, key=lambda name: name not in SLOW_TWINS.values()):
        builders[family](plan, by_family[family])
    _build_sequence(plan, without_sequence)
    events |= {e for e in TOKENS.get(plan.entity, {}) if plan.sequence is not None}
    plan.events = tuple(e for e in event_types() if e in events)


def _masked(feature: Feature) -> str:
    """Name of the column with its condition."""
    return f"{feature.column}|{feature.where}" if feature.where else str(feature.column)


def _build_rings(plan: EntityPlan, found: list[tuple[Feature, int]]) -> None:
    """One ring for the features fed by the same event types."""
    for feeds in dict.fromkeys(_feeds(f) for f, _ in found):
        mine = [(f, to) for f, to in found if _feeds(f) == feeds]
        windows = sorted({f.window_s for f, _ in mine if f.window_s is not None} or {60})
        flags: list[str] = []
        columns: list[str] = []
        maxima: list[str] = []
        others: list[str] = []
        kept: dict[str, int] = {}
        rows: list[Row] = []
        for feature, to in mine:
            op = OPERATIONS[feature.op]
            window = windows.index(feature.window_s) if feature.window_s is not None else 0
            where = -1
            if op.name in ("count", "share"):
                where = -1 if feature.where is None else _index(flags, feature.where)
            elif op.name in ("max", "min"):
                _index(columns, _masked(feature))
                where = _index(maxima, f"{op.name} {_masked(feature)}")
            elif op.column:
                where = _index(columns, _masked(feature))
            elif op.other:
                other = str(feature.other)
                where = _index(others, other)
                ttl_s = PAIR_TTL_S if feature.window_s is None else windows[-1]
                kept[other] = max(kept.get(other, 0), ttl_s, windows[-1])
            rows.append((feature.event, op.code, window, where, to))
        table, at = _table(rows, None)
        ring = Ring(
            feeds=_mask(feeds),
            windows_us=np.array(windows, np.int64) * 1_000_000,
            flag_bits=np.array([plan.flag(name) for name in flags], np.int64),
            columns=np.array([plan.real(name) for name in columns], np.int64),
            max_columns=np.array([columns.index(m[4:]) for m in maxima], np.int64),
            signs=np.array([1.0 if m.startswith("max") else -1.0 for m in maxima]),
            others=np.array([plan.other(name) for name in others], np.int64),
            ttl_us=np.array([kept[name] for name in others], np.int64) * 1_000_000,
            plan=table,
            plan_at=at,
            names={"flags": flags, "columns": columns, "maxima": maxima, "others": others},
        )
        if len(flags) > FLAGS_MAX or len(others) > PAIRS_MAX:
            raise ValueError(
                f"ring of {plan.entity!r}: more than {FLAGS_MAX} conditions or {PAIRS_MAX} pairs"
            )
        plan.rings.append(ring)


def _build_rates(plan: EntityPlan, found: list[tuple[Feature, int]]) -> None:
    """One decayed count for the features with the same feeds and condition."""
    keys = list(dict.fromkeys((_feeds(f), f.where) for f, _ in found))
    rows = [
        (
            f.event,
            OPERATIONS[f.op].code,
            keys.index((_feeds(f), f.where)),
            (f.window_s or 0) * 1_000_000,
            to,
        )
        for f, to in found
    ]
    table, at = _table(rows, None)
    bits = [-1 if where is None else plan.flag(where) for _, where in keys]
    feeds = np.stack([_mask(feeds) for feeds, _ in keys])
    plan.rates = Rates(feeds, table, at, np.array(bits, np.int64))


Key = tuple[tuple[str, ...], str]
"""Event types that feed an instance of a baseline, and its column."""


def _key(feature: Feature) -> Key:
    return _feeds(feature), str(feature.column)


def twins_of(plan: EntityPlan, slow: str) -> list[Feature]:
    """Features whose usual level is learned beside an instance of the slow family, in order."""
    everything = (f for features in plan.features.values() for f in features)
    fast = [name for name, its in SLOW_TWINS.items() if its == slow]
    return [f for f in everything if OPERATIONS[f.op].family in fast and f.op not in UNWEIGHED]


def _build_base(
    plan: EntityPlan, found: list[tuple[Feature, int]], twins: Iterable[Feature] = ()
) -> Bases:
    """One instance for the features with the same feeds and column, and for each twin's."""
    keys = list(dict.fromkeys(_key(f) for f in (*(f for f, _ in found), *twins)))
    rows: list[Row] = []
    remembered: set[int] = set()
    for feature, to in found:
        instance = keys.index(_key(feature))
        code = OPERATIONS[feature.op].code
        if OPERATIONS[feature.op].family == "baseline" and code >= HISTORY_FROM:
            remembered.add(instance)
        rows.append((feature.event, code, instance, 0, to))
    table, at = _table(rows, len(keys))
    sources = np.zeros((len(keys), len(event_types())), np.int64)
    logs = np.zeros(len(keys), np.bool_)
    readers = {(keys.index(_key(f)), f.event) for f, _ in found}
    for b, (feeds, column) in enumerate(keys):
        name, logs[b] = inputs_of(column)
        for event in {*feeds, *(e for i, e in readers if i == b)}:
            names = [f.name for f in plan.features.get(event, ())]
            if name in names:
                sources[b, event_code(event)] = -1 - names.index(name)
            else:
                sources[b, event_code(event)] = plan.real(name)
    histories = np.full(len(keys), -1, np.int64)
    histories[sorted(remembered)] = np.arange(len(remembered))
    feeds_by = np.stack([_mask(feeds) for feeds, _ in keys])
    slow = np.full(len(keys), -1, np.int64)
    everything = (f for features in plan.features.values() for f in features)
    marks = {f.name for f in everything if f.unit == "flag"}
    flags = np.array([column in marks for _, column in keys])
    return Bases(feeds_by, table, at, sources, logs, histories, slow, flags)


def _slow_keys(plan: EntityPlan, slow: str) -> list[Key]:
    """Instances of a slow family in their order: those of its own features, then those of twins."""
    everything = (f for features in plan.features.values() for f in features)
    own = (f for f in everything if OPERATIONS[f.op].family == slow)
    return list(dict.fromkeys(_key(f) for f in (*own, *twins_of(plan, slow))))


def _build_fast(plan: EntityPlan, found: list[tuple[Feature, int]], slow: str) -> Bases:
    """As `_build_base`, with the place of each instance's slow twin."""
    made = _build_base(plan, found)
    twins = _slow_keys(plan, slow)
    mine = {_key(f) for f in twins_of(plan, slow)}
    for b, key in enumerate(dict.fromkeys(_key(f) for f, _ in found)):
        made.slow[b] = twins.index(key) if key in mine else -1
    return made


def _build_bases(plan: EntityPlan, found: list[tuple[Feature, int]]) -> None:
    plan.bases = _build_fast(plan, found, "anchor")


def _build_seasons(plan: EntityPlan, found: list[tuple[Feature, int]]) -> None:
    plan.seasons = _build_fast(plan, found, "week")


def _build_anchors(plan: EntityPlan, found: list[tuple[Feature, int]]) -> None:
    twins = twins_of(plan, "anchor")
    plan.anchors = _build_base(plan, found, twins) if found or twins else None


def _build_weeks(plan: EntityPlan, found: list[tuple[Feature, int]]) -> None:
    twins = twins_of(plan, "week")
    plan.weeks = _build_base(plan, found, twins) if found or twins else None


def _build_trends(plan: EntityPlan, found: list[tuple[Feature, int]]) -> None:
    plan.trends = _build_base(plan, found)


def _build_geo(plan: EntityPlan, found: list[tuple[Feature, int]]) -> None:
    """One home for the features with the same feeds."""
    keys = list(dict.fromkeys(_feeds(f) for f, _ in found))
    rows = [(f.event, OPERATIONS[f.op].code, keys.index(_feeds(f)), 0, to) for f, to in found]
    table, at = _table(rows, None)
    plan.geo = Family(np.stack([_mask(feeds) for feeds in keys]), table, at)
    plan.places = np.array([plan.real(name) for name in PLACE], np.int64)


def _members(plan: EntityPlan, found: list[tuple[Feature, int]]) -> Members:
    """One set of members for the features with the same feeds, member, column and window."""

    def key(f: Feature) -> tuple[tuple[str, ...], str, str, int]:
        return _feeds(f), str(f.other), str(f.column), int(f.window_s or 0)

    keys = list(dict.fromkeys(key(f) for f, _ in found))
    rows = [(f.event, OPERATIONS[f.op].code, keys.index(key(f)), 0, to) for f, to in found]
    table, at = _table(rows, len(keys))
    return Members(
        np.stack([_mask(feeds) for feeds, *_ in keys]),
        table,
        at,
        np.array([plan.other(other) for _, other, _, _ in keys], np.int64),
        np.array([plan.real(column) for _, _, column, _ in keys], np.int64),
        np.array([window_s for *_, window_s in keys], np.int64) * 1_000_000,
    )


def _build_members(plan: EntityPlan, found: list[tuple[Feature, int]]) -> None:
    plan.members = _members(plan, found)


def _build_correlations(plan: EntityPlan, found: list[tuple[Feature, int]]) -> None:
    plan.correlations = _members(plan, found)


def silence_of(plan: EntityPlan) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Event types of the plan that say that the entity's silence means something, and its peers."""
    said = [event_type(name).silence for name in plan.events]
    watched = [name for name in plan.events if plan.entity in event_type(name).silence]
    peers = max((one[plan.entity] for one in said if plan.entity in one), key=len, default=())
    return tuple(watched), peers


def _build_silence(plan: EntityPlan) -> None:
    """Rhythm, where some event type of the plan says that the entity's silence means something."""
    watched, peers = silence_of(plan)
    if not watched:
        return
    places = [plan.other(name) for name in peers] + [-1, -1]
    plan.silence = Silence(_mask(tuple(watched)), np.array(places[:2], np.int64))


def _build_risk(plan: EntityPlan, found: list[tuple[Feature, int]]) -> None:
    """One set of counters for the features with the same feeds."""
    keys = list(dict.fromkeys(_feeds(f) for f, _ in found))
    rows: list[Row] = []
    counting: dict[int, int] = {}
    for feature, to in found:
        instance, code = keys.index(_feeds(feature)), OPERATIONS[feature.op].code
        rows.append((feature.event, code, instance, (feature.window_s or 0) // 86_400, to))
        if code >= COUNTED_FROM:
            counting.setdefault(instance, len(counting))
    table, at = _table(rows, None)
    counted = np.array([counting.get(b, -1) for b in range(len(keys))], np.int64)
    plan.risk = Risk(np.stack([_mask(feeds) for feeds in keys]), table, at, counted)


def _build_categories(plan: EntityPlan, found: list[tuple[Feature, int]]) -> None:
    """The last values of a string for the features with the same feeds and string."""
    keys = list(dict.fromkeys((_feeds(f), str(f.other)) for f, _ in found))
    rows = [
        (f.event, OPERATIONS[f.op].code, keys.index((_feeds(f), str(f.other))), 0, to)
        for f, to in found
    ]
    table, at = _table(rows, len(keys))
    others = np.array([plan.other(other) for _, other in keys], np.int64)
    plan.categories = Categories(np.stack([_mask(feeds) for feeds, _ in keys]), table, at, others)


def _build_sequence(plan: EntityPlan, without_sequence: frozenset[str]) -> None:
    """Vectors, where the entity is some event type's primary one and has tokens."""
    tokens = TOKENS.get(plan.entity, {})
    own = [e for e in tokens if event_type(e).primary == plan.entity and e in plan.features]
    if not own or own[0] in without_sequence:
        return
    size = (len(event_types()), WIDTH - COMMON)
    kinds = np.zeros(size, np.int64)
    kinds[:, 0] = -1
    sources, scales = np.zeros(size, np.int64), np.ones(size)
    for event, numbers in tokens.items():
        code = event_code(event)
        kinds[code, 0] = 0
        names = [f.name for f in plan.features.get(event, ())]
        for k, token in enumerate(numbers):
            scales[code, k] = token.scale
            if token.kind == "real":
                kinds[code, k], sources[code, k] = 1, plan.real(token.name)
            elif token.kind == "flag":
                kinds[code, k], sources[code, k] = 2, plan.flag(token.name)
            elif token.name in names:
                kinds[code, k], sources[code, k] = 3, names.index(token.name)
    plan.sequence = Sequence(kinds, sources, scales, event_code(own[0]))
