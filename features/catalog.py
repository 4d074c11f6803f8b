"""The catalogue: all declared features, checked, in a fixed order, with a version.

Gathers every module of `features/definitions/` and the files of the user's own. The engine, the
models, the online store and the reference page all take feature names and their order from here;
the version, a hash of all declarations, stands in bundles and in state so that none is used with
another catalogue.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from difflib import get_close_matches
from functools import cache, cached_property
from typing import Any

from features import definitions
from features.choice import SEQUENCE, Choice, choose
from features.columns import PLACE, derived_columns, flag_names, key_names, real_names
from features.derivation import circles
from features.errors import DeclarationError
from features.events import event_type, event_types, made_types
from features.events.base import NAME
from features.operations import OPERATIONS, SEMANTICS, Operation
from features.registry import chosen_patterns, own
from features.sequence import TOKENS
from features.spec import Feature, inputs_of, place_of
from features.units import unit_fault

__all__ = ["Catalog", "catalog", "chosen", "declared_features", "differences_text", "inputs_of"]

GROUPS = (
    "velocity", "amount", "geo", "cross_entity", "baseline", "risk", "silence", "context",
)  # fmt: skip

WINDOW_S_MAX = 86_400 * 31
"""Longest window; chosen: a month."""


class Catalog:
    """Checked declarations of the features of some event types.

    Parameters
    ----------
    features : declarations, in the order of their modules
    without_sequence : event types whose rows get no sequence (`features.sequence`)

    Raises
    ------
    DeclarationError : any declaration does not hold together; all faults at once
    """

    def __init__(
        self, features: Iterable[Feature], without_sequence: frozenset[str] = frozenset()
    ) -> None:
        declared = tuple(features)
        self.without_sequence = without_sequence
        faults = _faults(declared)
        if faults:
            raise DeclarationError(faults)
        names = (*event_types(), *made_types())
        self._features = {name: _ordered(name, declared) for name in names}
        self._features = {name: found for name, found in self._features.items() if found}
        everything = [[_declaration(f) for f in fs] for fs in self._features.values()]
        # An event type that no feature knows changes no feature: models stay as good as they were.
        used = set(self._features) | {feed for feature in declared for feed in feature.feeds}
        known = [t for t in event_types().values() if t.name in used]
        types: list[list[object]] = [
            [t.name, dict(t.entities), t.primary, dict(t.silence)] for t in known
        ]
        # What is the user's own has no number that is raised when it comes to mean another thing.
        types += [
            ["own", t.name, [[f.name, f.kind, f.values] for f in t.fields]]
            for t in known
            if t in own().events
        ]
        types += [
            ["own", d.event, d.name, d.kind, d.meaning]
            for d in derived_columns()
            if d.meaning and d.event in used
        ]
        tokens = [
            [entity, event, [asdict(t) for t in numbers]]
            for entity, events in TOKENS.items()
            for event, numbers in events.items()
        ]
        meant: list[object] = [SEMANTICS, everything, types, tokens]
        if left := sorted(without_sequence & set(self._features)):
            meant.append(["without_sequence", left])
        text = json.dumps(meant, sort_keys=True, default=list)
        self.version = hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def event_types(self) -> tuple[str, ...]:
        """Event types that have features, in the fixed order."""
        return tuple(self._features)

    def features(self, event_type: str) -> tuple[Feature, ...]:
        """Features of an event type, in catalogue order: by entity, then as declared."""
        return self._features.get(event_type, ())

    def names(self, event_type: str) -> tuple[str, ...]:
        """Names of the features of an event type, in catalogue order."""
        return self._names.get(event_type, ())

    @cached_property
    def _names(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(f.name for f in fs) for name, fs in self._features.items()}

    def feature(self, event_type: str, name: str) -> Feature:
        """The feature called `name`; DeclarationError with near names where there is none."""
        for feature in self.features(event_type):
            if feature.name == name:
                return feature
        near = get_close_matches(name, self.names(event_type)) or self.names(event_type)
        raise DeclarationError(
            f"{event_type!r} has no feature {name!r}; did you mean {', '.join(near)}?"
        )

    def views(self) -> dict[tuple[str, str], tuple[Feature, ...]]:
        """(event type, entity) -> its features: what the online store keeps of an entity.

        Features of the event alone (entity empty) are in no view: they say nothing of the entity.
        """
        found: dict[tuple[str, str], list[Feature]] = {}
        for name, features in self._features.items():
            for feature in features:
                if feature.entity:
                    found.setdefault((name, feature.entity), []).append(feature)
        return {key: tuple(features) for key, features in found.items()}

    def declarations(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Event type -> feature -> what is declared of it, as plain JSON; without what is empty."""
        return {
            event: {
                f.name: {
                    name: list(value) if isinstance(value, tuple) else value
                    for name, value in _declaration(f).items()
                    if name not in ("name", "event") and value not in (None, "", ())
                }
                for f in found
            }
            for event, found in self._features.items()
        }

    def differences(
        self,
        names: Mapping[str, Sequence[str]],
        declared: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    ) -> list[str]:
        """What a list of names by event type has that this catalogue has not, and the reverse.

        Parameters
        ----------
        declared : what `declarations` of the other catalogue gave, where it is known: of features
            that both have, what is declared in another way is told too
        """
        lines = []
        for event in sorted(set(names) | set(self._features)):
            theirs, ours = list(names.get(event, ())), list(self.names(event))
            lines += [f"{event}: `{n}` is missing here" for n in theirs if n not in ours]
            lines += [f"{event}: `{n}` is new here" for n in ours if n not in theirs]
            if sorted(theirs) == sorted(ours) and theirs != ours:
                lines.append(f"{event}: the order of the features differs")
        ours_declared = self.declarations()
        for event, features in (declared or {}).items():
            for name, theirs_ in features.items():
                ours_ = ours_declared.get(event, {}).get(name)
                if ours_ is not None and ours_ != theirs_:
                    lines.append(f"{event}: `{name}`: {_changes(theirs_, ours_)}")
        return lines


DIFFERENCES_SHOWN_MAX = 10
"""Most differing features named in one message. Chosen: a message a person still reads."""


def differences_text(lines: Sequence[str]) -> str:
    """What `Catalog.differences` found, as a part of a sentence."""
    shown = list(lines[:DIFFERENCES_SHOWN_MAX])
    if len(lines) > len(shown):
        shown.append(f"and {len(lines) - len(shown)} more")
    return "; ".join(shown) or "the same names, but computed in another way"


def _declaration(feature: Feature) -> dict[str, object]:
    """What a feature is, without where that stands."""
    said = asdict(feature)
    del said["declared_at"]
    return said


def _changes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What is declared in another way: `window_s 3600 -> 1800`."""
    changed = [k for k in dict.fromkeys([*theirs, *ours]) if theirs.get(k) != ours.get(k)]
    return ", ".join(f"{k} {theirs.get(k, '-')} -> {ours.get(k, '-')}" for k in changed)


def _ordered(event: str, declared: tuple[Feature, ...]) -> tuple[Feature, ...]:
    """Features of an event by entity (in the event's order, none last), state before derived."""
    entities = [*event_type(event).entities, ""]
    mine = [f for f in declared if f.event == event]
    return tuple(
        sorted(
            mine,
            key=lambda f: (entities.index(f.entity), OPERATIONS[f.op].family == "derived"),
        )
    )


def _faults(declared: tuple[Feature, ...]) -> list[str]:
    """Everything wrong with the declarations."""
    faults: list[str] = []
    sound: list[Feature] = []
    for feature in declared:
        wrong = _type_faults(feature)
        at = place_of(feature.declared_at)
        faults += [f"{at}: feature {feature.name!r}: {said}" for said in wrong.values()]
        sound.append(_mended(feature, wrong) if wrong else feature)
    known = {(f.event, f.name): f for f in sound}
    seen: dict[tuple[str, str], str] = {}
    for feature in sound:
        at = place_of(feature.declared_at)
        place = f"{at}: " if at else ""
        known_types = (*event_types(), *made_types())
        if feature.event == _UNSAID:
            continue
        if feature.event not in known_types:
            faults.append(
                f"{place}feature {feature.name!r}: unknown event type {feature.event!r}; event"
                f" types are {', '.join(known_types)}"
            )
            continue
        if feature.name != _UNSAID and (feature.event, feature.name) in seen:
            first = seen[feature.event, feature.name]
            faults.append(
                f"{place}{feature.event}.{feature.name}: declared twice, first at {first}"
            )
        seen.setdefault((feature.event, feature.name), at)
        found = [*_name_faults(feature), *_feature_faults(feature, known)]
        told = [fault for fault in found if repr(_UNSAID) not in fault]
        faults += [f"{place}{feature.event}.{feature.name}: {fault}" for fault in told]
    for event in dict.fromkeys(feature.event for feature in sound):
        for circle in circles(f for f in sound if f.event == event):
            faults.append(_circle_fault(circle))
    return faults


_TEXTS = ("name", "event", "entity", "op", "why", "unit", "group")
_TEXTS_OR_NONE = ("column", "where", "other", "baseline", "count")


_UNSAID = "\0"
"""Stands in for a text that is none, so that all else of the declaration is looked at; what is said
of it itself is left out."""


def _mended(feature: Feature, wrong: Iterable[str]) -> Feature:
    """The declaration with other values in place of those whose type is wrong."""
    op = OPERATIONS.get(feature.op) if isinstance(feature.op, str) else None
    fitting: dict[str, Any] = {
        "feeds": (),
        "window_s": 86_400 if op is not None and op.window else None,
        "high_is_odd": None,
        "why": "{value}" if feature.baseline is None else "{value} {baseline}",
        "baseline": _UNSAID if "{baseline}" in str(feature.why) else None,
        "column": _UNSAID if op is not None and op.column else None,
        "where": _UNSAID if op is not None and op.where_needed else None,
        "other": _UNSAID if op is not None and op.other else None,
        "count": _UNSAID if op is not None and op.count else None,
        "group": GROUPS[0],
    }
    return replace(feature, **{name: fitting.get(name, _UNSAID) for name in wrong})


def _type_faults(feature: Feature) -> dict[str, str]:
    """Values of a declaration that are of no type that they may be of: what is wrong, by name."""
    wanted = dict.fromkeys(_TEXTS, "a text")
    wanted |= dict.fromkeys(_TEXTS_OR_NONE, "a text or None")
    wrong = [
        name
        for name in wanted
        if not isinstance(getattr(feature, name), str)
        and not (name in _TEXTS_OR_NONE and getattr(feature, name) is None)
    ]
    feeds, window_s, high = feature.feeds, feature.window_s, feature.high_is_odd
    if not isinstance(feeds, tuple) or not all(isinstance(name, str) for name in feeds):
        wrong.append("feeds")
    if window_s is not None and (isinstance(window_s, bool) or not isinstance(window_s, int)):
        wrong.append("window_s")
    if high is not None and not isinstance(high, bool):
        wrong.append("high_is_odd")
    wanted |= {
        "feeds": "a tuple of texts",
        "window_s": "a whole number of seconds or None",
        "high_is_odd": "True, False or None",
    }
    return {n: f"{n}: expected {wanted[n]}, got {getattr(feature, n)!r}" for n in wrong}


def _name_faults(feature: Feature) -> list[str]:
    """What is wrong with the name of a feature whose event type exists."""
    if feature.name == _UNSAID:
        return []
    if not NAME.fullmatch(feature.name):
        return [
            "the name may hold small letters, digits and underscores, at most 63, and begins with a"
            " letter"
        ]
    if feature.name == SEQUENCE:
        return [f"the name {SEQUENCE!r} is that of the last events in the setting `features`"]
    event = event_type(feature.event)
    itself = feature.op == "value" and feature.column == feature.name
    if feature.name in (*event.schema, *event.entities) and not itself:
        return ["the name is that of a field or an entity of the event type"]
    return []


def _circle_fault(circle: Sequence[Feature]) -> str:
    """The sentence for features that read each other in a circle."""
    first, *others = circle
    at = place_of(first.declared_at)
    way = [f"{f.name!r} ({place_of(f.declared_at)})" if f.declared_at else repr(f.name)
           for f in others]  # fmt: skip
    read = " reads ".join([repr(first.name), *way, repr(first.name)])
    return (
        f"{at}: {first.event}.{first.name}: is made of itself: {read}; none of them can be"
        " computed, let one of them read something else"
    )


def _feature_faults(feature: Feature, known: dict[tuple[str, str], Feature]) -> list[str]:
    """Everything wrong with one declaration whose event type exists."""
    faults: list[str] = []
    op = OPERATIONS.get(feature.op)
    if op is None:
        faults.append(f"unknown operation {feature.op!r}; operations are {', '.join(OPERATIONS)}")
        faults += _faults_of_any(feature, known)
    if feature.group not in GROUPS:
        faults.append(f"unknown group {feature.group!r}; groups are {', '.join(GROUPS)}")
    if not feature.unit:
        faults.append(
            "has no unit; `1` is that of a plain number, `flag` that of yes (1) or no (0)"
        )
    feeds = feature.feeds or (feature.event,)
    unknown = [name for name in feature.feeds if name not in event_types()]
    faults += [
        f"fed by unknown event type {n!r}; event types are {', '.join(event_types())}"
        for n in unknown
    ]
    feeds = tuple(name for name in feeds if name not in unknown)
    stateful = op is not None and op.family not in ("stateless", "derived")
    if stateful and feature.event in made_types():
        faults.append(
            f"operation {feature.op!r} keeps state of entities, which no {feature.event!r} enters;"
            " it may have `value`, `ratio`, `difference` and `surprise`"
        )
    for name in dict.fromkeys((feature.event, *feeds)):
        entities = event_type(name).entities
        if (feature.entity or stateful) and feature.entity not in entities:
            faults.append(
                f"{name!r} has no entity {feature.entity!r}; entities are {', '.join(entities)}"
            )
    faults += _why_faults(feature, known)
    if op is not None:
        faults += _operand_faults(feature, op, feeds, known)
        unit = unit_fault(feature, known) if feature.unit and not unknown else None
        faults += [] if unit is None else [unit]
    return faults


def _why_faults(feature: Feature, known: dict[tuple[str, str], Feature]) -> list[str]:
    """What is wrong with the sentence and its baseline."""
    faults = []
    if feature.baseline is not None and (feature.event, feature.baseline) not in known:
        faults.append(f"baseline {feature.baseline!r} names no feature of {feature.event!r}")
    try:
        feature.why.format(value="1", baseline="1")
    except (KeyError, IndexError, ValueError):
        faults.append(
            f"why {feature.why!r} may hold {{value}} and {{baseline}} and no other braces"
        )
    if "{value}" not in feature.why and feature.unit != "flag":
        faults.append(f"why {feature.why!r} does not name {{value}}")
    if ("{baseline}" in feature.why) != (feature.baseline is not None):
        faults.append("why names {baseline} if, and only if, `baseline` is set")
    return faults


def _faults_of_any(feature: Feature, known: dict[tuple[str, str], Feature]) -> list[str]:
    """What no operation could read or be over, where it is not known which one is meant."""
    faults = []
    if feature.window_s is not None and not 0 < feature.window_s <= WINDOW_S_MAX:
        faults.append(_no_window(feature.window_s))
    event, features = feature.event, [name for of, name in known if of == feature.event]
    read = feature.feeds or (event,)
    numbers = [n for name in read if name in event_types() for n in real_names(name)]
    conditions = [n for name in read if name in event_types() for n in flag_names(name)]
    keys = [n for name in (event, *read) if name in event_types() for n in key_names(name)]
    column = inputs_of(feature.column or "")[0]
    if feature.column is not None and column not in (*numbers, *conditions, *features):
        faults.append(_no_column(event, column, tuple(dict.fromkeys(numbers))))
    if feature.where is not None and feature.where not in conditions:
        valid = ", ".join(dict.fromkeys(conditions))
        faults.append(f"{event!r} has no condition {feature.where!r}; conditions are {valid}")
    if feature.other is not None and feature.other not in (*keys, *features, *numbers):
        valid = ", ".join(dict.fromkeys(keys))
        faults.append(
            f"{event!r} has no entity, string column or feature {feature.other!r}; entities and"
            f" columns are {valid}"
        )
    if feature.count is not None and feature.count not in features:
        faults.append(f"count {feature.count!r} names no feature of {event!r}")
    return faults


def _no_window(window_s: int) -> str:
    """The sentence for a window that is none, or too long."""
    return f"window_s is {window_s}; it must be in 1..{WINDOW_S_MAX}"


_OF_THE_ROW = frozenset(
    ("baseline", "season", "anchor", "week", "trend", "geo", "members", "correlations",
     "categories")
)  # fmt: skip
"""Families that judge a value of the row itself: without it they say nothing."""

_PAIRS_OF_THE_ROW = ("first_time", "since_pair")
"""Operations that judge the row's own pair; counts of pairs need none."""


def _readers(feature: Feature, op: Operation, feeds: tuple[str, ...]) -> tuple[str, ...]:
    """Event types that must have what the operation reads: those that feed it, and the one that
    carries it where a value of its own row is judged."""
    if op.family in _OF_THE_ROW or op.name in _PAIRS_OF_THE_ROW:
        return tuple(dict.fromkeys((feature.event, *feeds)))
    return feeds


def _operand_faults(
    feature: Feature, op: Operation, feeds: tuple[str, ...], known: dict[tuple[str, str], Feature]
) -> list[str]:
    """What is wrong with column, condition, window and other."""
    faults = []
    readers = _readers(feature, op, feeds)
    if op.window and feature.window_s is None:
        faults.append(f"operation {op.name!r} needs `window_s`")
    elif not op.window and feature.window_s is not None:
        faults.append(f"operation {op.name!r} takes no `window_s`")
    if feature.window_s is not None and not 0 < feature.window_s <= WINDOW_S_MAX:
        faults.append(_no_window(feature.window_s))
    if op.family == "risk" and (feature.window_s or 0) % 86_400:
        faults.append(
            f"window_s is {feature.window_s}; operation {op.name!r} goes by days of 86400"
        )
    if feature.where is not None and not op.where:
        faults.append(f"operation {op.name!r} takes no `where`")
    if feature.where is None and op.where_needed:
        faults.append(f"operation {op.name!r} needs `where`")
    if feature.where is not None:
        faults += [
            f"{name!r} has no condition {feature.where!r}; conditions are"
            f" {', '.join(flag_names(name))}"
            for name in feeds
            if feature.where not in flag_names(name)
        ]
    if bool(op.column) != (feature.column is not None):
        faults.append(f"operation {op.name!r} {'needs' if op.column else 'takes no'} `column`")
    elif feature.column is not None:
        faults += _column_faults(feature, op, feeds, known)
    if op.count != (feature.count is not None):
        faults.append(f"operation {op.name!r} {'needs' if op.count else 'takes no'} `count`")
    elif op.count and (feature.event, str(feature.count)) not in known:
        faults.append(f"count {feature.count!r} names no feature of {feature.event!r}")
    if bool(op.other) != (feature.other is not None):
        faults.append(f"operation {op.name!r} {'needs' if op.other else 'takes no'} `other`")
    elif op.other == "feature" and (feature.event, feature.other) not in known:
        faults.append(f"other {feature.other!r} names no feature of {feature.event!r}")
    elif op.other == "key":
        faults += [
            f"{name!r} has no entity or string column {feature.other!r}; there are"
            f" {', '.join(key_names(name))}"
            for name in readers
            if feature.other not in key_names(name)
        ]
    if op.family == "geo":
        faults += [
            f"{name!r} has no place: operation {op.name!r} reads the numbers {', '.join(PLACE)}"
            for name in readers
            if not set(PLACE) <= set(real_names(name))
        ]
    if op.family == "correlations" and feature.event not in feeds:
        faults.append(
            f"operation {op.name!r} is about values that feed it; {feature.event!r} is not among"
            " `feeds`"
        )
    return faults


def _column_faults(
    feature: Feature, op: Operation, feeds: tuple[str, ...], known: dict[tuple[str, str], Feature]
) -> list[str]:
    """What is wrong with the column."""
    column = feature.column or ""
    if op.column == "feature":
        if (feature.event, column) in known:
            return []
        return [f"column {column!r} names no feature of {feature.event!r}"]
    if op.column == "value":
        names = (*real_names(feature.event), *flag_names(feature.event))
        return [] if column in names else [_no_column(feature.event, column, names)]
    if op.column == "input":
        source = known.get((feature.event, inputs_of(column)[0]))
        if source is not None and column not in real_names(feature.event):
            return _source_faults(feature, source, feeds)
    return [
        _no_column(name, column, real_names(name))
        for name in _readers(feature, op, feeds)
        if column not in real_names(name)
    ]


def _source_faults(feature: Feature, source: Feature, feeds: tuple[str, ...]) -> list[str]:
    """What is wrong with a baseline over another feature."""
    faults = []
    if source.entity != feature.entity:
        faults.append(
            f"column {source.name!r} belongs to entity {source.entity!r}, not to"
            f" {feature.entity!r}; a baseline reads its own entity"
        )
    family = OPERATIONS[source.op].family if source.op in OPERATIONS else ""
    # Levels of weeks are computed before running means, which may follow how far values are off.
    mine = OPERATIONS[feature.op].family
    if family not in ("ring", "rate", "geo", *(("anchor",) if mine == "baseline" else ())):
        faults.append(
            f"column {source.name!r} is of operation {source.op!r}; a baseline reads a"
            " column of the event or a feature of a window, a rate or a place (a running mean also"
            " one of a level of weeks)"
        )
    if feeds != (feature.event,):
        faults.append("a baseline over a feature is fed by its own event type alone")
    return faults


def _no_column(event: str, column: str, names: Sequence[str]) -> str:
    """The sentence for a column that is not there."""
    return f"{event!r} has no number {column!r}; there are {', '.join(names)}"


@cache
def declared_features() -> tuple[Feature, ...]:
    """The declarations of all modules of `features/definitions/`, by name of module, and of the
    user's own files, in the order in which they were named."""
    found: list[Feature] = []
    for module in sorted(m.name for m in pkgutil.iter_modules(definitions.__path__)):
        loaded = importlib.import_module(f"features.definitions.{module}")
        found.extend(getattr(loaded, "FEATURES", ()))
    return (*found, *own().features)


@cache
def catalog(event_types: tuple[str, ...] | None = None) -> Catalog:
    """The catalogue of the definitions, shipped and own, that the setting `features` chooses (all
    where it says nothing), checked once per process.

    Parameters
    ----------
    event_types : only the features of these event types; None for all

    Raises
    ------
    DeclarationError : any declaration does not hold together; all faults at once
    """
    found = declared_features()
    if event_types is not None:
        for name in event_types:
            event_type(name)
        found = tuple(f for f in found if f.event in event_types)
    if not (patterns := chosen_patterns()):
        return Catalog(found)
    taken = choose(found, patterns)
    return Catalog(taken.features, taken.without_sequence)


def chosen() -> Choice | None:
    """What the setting `features` chooses of all declarations; None where it leaves out nothing."""
    patterns = chosen_patterns()
    return choose(declared_features(), patterns) if patterns else None
