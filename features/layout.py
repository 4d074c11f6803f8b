"""What a state is made of, by name, and how one of an older catalogue goes over into a newer one.

A snapshot carries a description of its own layout: for each family of an entity type the instances
by what they read, for each ring its windows, conditions, columns, maxima and pairs. Where the
catalogue has grown, what both have is carried over bit for bit, what is new starts empty, and what
was dropped is left out. A window that is new begins with what the ring still has of the time it
spans; a running mean that is to weigh its values begins with one that took them as they came; a
rhythm that more event types now feed goes on; all else that is new begins with nothing.

The snapshots of the old layout are first put back by the very code that wrote them, into a state
without kernels; what is mapped is one whole snapshot of that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from features.catalog import Catalog
from features.columns import meaning_of
from features.errors import StateError
from features.events import event_code, event_type, event_types
from features.operations import HISTORY_FROM, OPERATIONS, SEMANTICS, UNWEIGHED
from features.pairs import COLUMNS, KEY, SEQ_BITS, WHOSE, owners
from features.plan import EntityPlan, Plan, Ring, plan_of, silence_of, twins_of
from features.risk import COUNTED_FROM
from features.sampling import WORDS
from features.sequence import TOKENS
from features.snapshots import join
from features.spec import Feature, inputs_of
from features.state import EntityState
from features.windows import SHARED, levels_at, slot_layout

__all__ = ["LAYOUT", "carry_over", "layout_array", "layout_of"]

Arrays = dict[str, npt.NDArray[Any]]
Layout = dict[str, Any]
Int64 = npt.NDArray[np.int64]

LAYOUT = "layout"
"""Name of the array of a snapshot that holds the description: JSON as uint8."""

_FAMILIES: Mapping[str, str] = {
    "frozen_until_us": "entity",
    "fed_us": "fed",
    "rates": "rate",
    "geo": "geo",
    "member_names": "members",
    "members": "members",
    "bases": "baseline",
    "history": "history",
    "order": "history",
    "seasons": "season",
    "anchors": "anchor",
    "weeks": "week",
    "week_us": "week",
    "trends": "trend",
    "risk": "risk",
    "risk_frauds": "risk",
    "risk_events": "counted",
    **dict.fromkeys(("partner_names", "partners", "bonds"), "correlations"),
    "categories": "categories",
    "entropies": "categories",
    "vectors": "sequence",
    "places": "sequence",
    **dict.fromkeys(("silence_ints", "silence_floats", "silence_tops", "silence_names"), "silence"),
}
"""Array by slot -> family whose instances stand in it side by side. One that is not named here is
carried over whole, where its family's features are the same ones."""


def layout_of(plan: Plan) -> Layout:
    """The description of a plan's state; plain values, the same for the same declarations."""
    entities = {}
    for name, one in plan.entities.items():
        arrays = EntityState(one).arrays
        entities[name] = {
            "made_of": {
                event: list(event_type(event).entities.get(name, ())) for event in one.events
            },
            "codes": {event: event_code(event) for event in one.events},
            "features": {
                event: {f.name: _reads(one, f) for f in features}
                for event, features in one.features.items()
            },
            "arrays": {k: [a.dtype.str, a.shape[1], _instances(one, k)] for k, a in arrays.items()},
            "rings": [_ring(one, ring) for ring in one.rings],
            _WEIGHED: list(dict.fromkeys(_key(one, f) for f in twins_of(one, "anchor"))),
        }
    return {"semantics": SEMANTICS, "entities": entities}


@lru_cache(maxsize=8)
def layout_array(catalog: Catalog) -> npt.NDArray[np.uint8]:
    """The description of a catalogue's state as it stands in a snapshot."""
    text = json.dumps(layout_of(plan_of(catalog)), sort_keys=True, separators=(",", ":"))
    return np.frombuffer(text.encode(), np.uint8)


def carry_over(
    dumps: Sequence[Arrays], catalog: Catalog
) -> tuple[list[Arrays], tuple[str, ...], tuple[str, ...]]:
    """Snapshots of a state as ones of a catalogue's own layout.

    Parameters
    ----------
    dumps : a base and the deltas after it, each with its own layout
    catalog : that the state is for

    Returns
    -------
    the snapshots (those given, where they fit); features that start empty; features over a new
    window that begin with what the ring still has, and those over a level that took values as they
    came, for nothing of it was weighed before

    Raises
    ------
    StateError : the layouts cannot be mapped; with the differences and what to do
    """
    wanted = layout_array(catalog).tobytes()
    texts = [dump[LAYOUT].tobytes() if LAYOUT in dump else b"{}" for dump in dumps]
    if all(text == wanted for text in texts):
        return list(dumps), (), ()
    for its in dict.fromkeys(texts):
        _check(json.loads(its), json.loads(wanted))
    part: list[Arrays] = []
    text = texts[0]
    for dump, its in zip(dumps, texts, strict=True):
        if its != text:
            part, text = [_mapped(_folded(json.loads(text), part), text, its)], its
        part.append(dump)
    if text == wanted:
        return part, (), ()
    empty, partial = _new_features(json.loads(text), json.loads(wanted))
    return [_mapped(_folded(json.loads(text), part), text, wanted)], empty, partial


def _check(old: Layout, new: Layout) -> None:
    """StateError where a state of one layout cannot become one of another, with what to do."""
    faults = _differences(old, new)
    if faults:
        raise StateError(
            f"state of another feature catalogue: {'; '.join(faults)}; make it anew with `waxwing"
            " backfill`, or start with an empty state_dir"
        )


def _differences(old: Layout, new: Layout) -> list[str]:
    """Why a state of one layout cannot become one of another; empty where it can."""
    if not old:
        return ["the state does not say what it is made of"]
    if old["semantics"] != new["semantics"]:
        return [
            f"operations have come to mean something else (meaning {old['semantics']} in the"
            f" state, {new['semantics']} here)"
        ]
    faults = []
    for name in sorted(set(old["entities"]) & set(new["entities"])):
        was, now = old["entities"][name]["made_of"], new["entities"][name]["made_of"]
        faults += [
            f"{name}: made of {', '.join(was[e]) or 'nothing'} of {e} in the state, of"
            f" {', '.join(now[e]) or 'nothing'} here"
            for e in sorted(set(was) & set(now))
            if was[e] != now[e]
        ]
    return faults


def _features(layout: Layout) -> dict[str, tuple[str, list[list[Any]]]]:
    """Feature by full name -> its entity and where its state lies."""
    return {
        f"{event}.{name}": (entity, reads)
        for entity, one in layout["entities"].items()
        for event, features in one["features"].items()
        for name, reads in features.items()
    }


def _new_features(old: Layout, new: Layout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Features of the new layout whose state is nowhere in the old, and those that lack only their
    window there, or what their values weigh by."""
    empty, partial = [], []
    for feature, (entity, reads) in _features(new).items():
        before = old["entities"].get(entity)
        found = {"whole"} if before is None else {_held(before, one) for one in reads}
        if before is None or "not" in found or not reads:
            empty.append(feature)
        elif found & {"window", "level"}:
            partial.append(feature)
    for entity, one in new["entities"].items():
        before = old["entities"].get(entity)
        if _SILENCE in one["arrays"] and before is not None:
            (key,) = one["arrays"][_SILENCE][2]
            if _instance(_SILENCE, key, before["arrays"].get(_SILENCE, ["", 0, []])[2]) is None:
                empty.append(f"the rhythm of each {entity}")
    return tuple(empty), tuple(partial)


_SILENCE = "silence_ints"
_WEIGHED = "weighed"
"""Where it stands which running means take values by their weight, not as they come."""


def _instance(array: str, key: str, before: list[str]) -> int | None:
    """Place of an instance in an array of the old layout, None where that does not have it."""
    if key in before:
        return before.index(key)
    if _FAMILIES.get(array) == "silence" and before:
        # What feeds a rhythm may become more: who is heard more often is not overdue by that.
        was, now = json.loads(before[0]), json.loads(key)
        same = was["peers"] == now["peers"]
        return 0 if same and set(was["events"]) <= set(now["events"]) else None
    return None


def _held(entity: Layout, reads: list[Any]) -> str:
    """Whether a place is in the layout: `whole`, all but the `window`, a `level` that took values
    as they came, or `not`."""
    if reads[0] == _WEIGHED:
        # A state that does not say so kept an anchor beside each level that weighs its values.
        kept = entity["arrays"].get("anchors", ["", 0, []])[2]
        return "whole" if reads[1] in entity.get(_WEIGHED, kept) else "level"
    if reads[0] != "ring":
        array, key = reads
        return "whole" if key in entity["arrays"].get(array, ["", 0, []])[2] else "not"
    _, feeds, kind, name, window_us = reads
    for ring in entity["rings"]:
        if ring["feeds"] == feeds and (not kind or name in ring[kind]):
            return "whole" if window_us in (0, *ring["windows_us"]) else "window"
    return "not"


def _part(arrays: Arrays, prefix: str) -> Arrays:
    """Arrays whose names begin with the prefix, without it."""
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}


def _folded(layout: Layout, dumps: Sequence[Arrays]) -> Arrays:
    """Snapshots of one layout as one whole snapshot, without the log of rows for late ones."""
    found = {k: v for k, v in dumps[-1].items() if "." not in k and k != LAYOUT}
    for entity, one in layout.get("entities", {}).items():
        state = _shell(entity, one)
        for dump in dumps:
            mine = _part(dump, f"{entity}.")
            state.load({k: v for k, v in mine.items() if not k.startswith("late.")})
        state.settle()
        state.begin(everything=True)
        found |= {f"{entity}.{k}": v for k, v in join(state.take()).items()}
    return found


def _mapped(whole: Arrays, before: bytes, after: bytes) -> Arrays:
    """A whole snapshot of one layout as one of another."""
    old, new = json.loads(before), json.loads(after)
    found = {k: v for k, v in whole.items() if "." not in k}
    for entity, one in new["entities"].items():
        if entity in old["entities"]:
            mine = _map_entity(_part(whole, f"{entity}."), old["entities"][entity], one)
        else:
            state = _shell(entity, one)
            state.begin(everything=True)
            mine = join(state.take())
        found |= {f"{entity}.{k}": v for k, v in mine.items() if not k.startswith("late.")}
    return found


def _map_entity(arrays: Arrays, old: Layout, new: Layout) -> Arrays:
    """A whole snapshot of one entity type."""
    found = {
        k: v
        for k, v in arrays.items()
        if k not in old["arrays"] and not k.startswith(("ring", "late."))
    }
    rows = len(arrays["copied"])
    for name, (dtype, width, instances) in new["arrays"].items():
        values = np.zeros((rows, width), np.dtype(dtype))
        was = old["arrays"].get(name)
        if was is not None and was[0] == dtype:
            before = arrays[name]
            for i, key in enumerate(instances):
                at = _instance(name, key, was[2])
                if at is not None and before.shape[1] * len(instances) == width * len(was[2]):
                    size = width // len(instances)
                    part = before[:, at * size : (at + 1) * size]
                    values[:, i * size : (i + 1) * size] = part
        found[name] = values
    feeds = [ring["feeds"] for ring in old["rings"]]
    for i, ring in enumerate(new["rings"]):
        if ring["feeds"] in feeds:
            at = feeds.index(ring["feeds"])
            mapped = _map_ring(_part(arrays, f"ring{at}."), old["rings"][at], ring)
        else:
            mapped = _empty_ring(rows, ring)
        found |= {f"ring{i}.{k}": v for k, v in mapped.items()}
    return found


def _shape(ring: Layout) -> tuple[int, int, int, int, int]:
    """Windows, flags, reals, maxima, pairs."""
    windows, flags, columns = len(ring["windows_us"]), len(ring["flags"]), len(ring["columns"])
    return windows, flags, columns, len(ring["maxima"]), len(ring["others"])


def _empty_ring(rows: int, ring: Layout) -> Arrays:
    """A ring that nothing has entered yet."""
    ints, floats = slot_layout(*_shape(ring))
    return {
        "ints": np.zeros((rows, ints), np.int64),
        "floats": np.zeros((rows, floats)),
        "live_ints": np.zeros((0, 2), np.int64),
        "live_reals": np.zeros((0, len(ring["columns"]))),
        "pairs": np.zeros((0, COLUMNS), np.int64),
        "marked": np.zeros((0, 2), np.int64),
    }


def _columns_of(ring: Layout) -> dict[tuple[Any, ...], int]:
    """Place in a slot's row of counts, by name."""
    _, flags, reals, maxima, pairs = _shape(ring)
    places: dict[tuple[Any, ...], int] = {("shared", k): k for k in range(SHARED)}
    places |= {("ever", name): SHARED + p for p, name in enumerate(ring["others"])}
    places |= {("end", name): SHARED + pairs + m for m, name in enumerate(ring["maxima"])}
    stride = 2 + flags + reals + maxima + pairs
    for w, window_us in enumerate(ring["windows_us"]):
        at = SHARED + pairs + maxima + w * stride
        places |= {("window", window_us, k): at + k for k in range(2)}
        at += 2
        for kind in ("flags", "columns", "maxima", "others"):
            places |= {(kind, window_us, name): at + i for i, name in enumerate(ring[kind])}
            at += len(ring[kind])
    levels = levels_at(*_shape(ring))
    for k in range(WORDS):
        at = levels + k * pairs
        places |= {("level", k, name): at + p for p, name in enumerate(ring["others"])}
    return places


def _window_for(window_us: int, ring: Layout) -> int:
    """The old window a new one goes on from: itself, the next longer one, or the longest.

    What is too old for it leaves it with the next row, as it would have anyway.
    """
    longer = [w for w in ring["windows_us"] if w >= window_us]
    return int(longer[0] if longer else ring["windows_us"][-1])


def _map_ring(arrays: Arrays, old: Layout, new: Layout) -> Arrays:
    """A whole snapshot of one ring."""
    found = _empty_ring(len(arrays["ints"]), new)
    sources = _columns_of(old)
    for name, at in _columns_of(new).items():
        if name[0] in ("window", "flags", "columns", "maxima", "others"):
            name = (name[0], _window_for(name[1], old), *name[2:])
        if name in sources:
            found["ints"][:, at] = arrays["ints"][:, sources[name]]
    for w, window_us in enumerate(new["windows_us"]):
        before = old["windows_us"].index(_window_for(window_us, old))
        for v, name in enumerate(new["columns"]):
            if name in old["columns"]:
                a = 4 * (w * len(new["columns"]) + v)
                b = 4 * (before * len(old["columns"]) + old["columns"].index(name))
                found["floats"][:, a : a + 4] = arrays["floats"][:, b : b + 4]
    records = arrays["live_ints"].copy()
    records[:, 1] = _map_bits(arrays["live_ints"][:, 1], old, new)
    reals = np.full((len(records), len(new["columns"])), np.nan)
    for v, name in enumerate(new["columns"]):
        if name in old["columns"]:
            reals[:, v] = arrays["live_reals"][:, old["columns"].index(name)]
    pairs = _map_pairs(arrays["pairs"], old, new)
    return found | {"live_ints": records, "live_reals": reals, "pairs": pairs}


def _map_bits(bits: Int64, old: Layout, new: Layout) -> Int64:
    """Conditions and marks of records in their new places; what is new was not met."""
    found = np.zeros_like(bits)
    for f, name in enumerate(new["flags"]):
        if name in old["flags"]:
            at = 2 * len(old["others"]) + old["flags"].index(name)
            found |= ((bits >> at) & 1) << (2 * len(new["others"]) + f)
    for p, name in enumerate(new["others"]):
        if name in old["others"]:
            found |= ((bits >> 2 * old["others"].index(name)) & 3) << 2 * p
    return found


_FIRST, _SECOND = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53
"""Factors of `features.pairs.pair_key`, which can be undone: they are odd."""


def _scrambled(h: npt.NDArray[np.uint64], first: int, second: int) -> npt.NDArray[np.uint64]:
    """The last steps of `pair_key`; with the inverse factors in reverse order, their inverse."""
    h = h ^ (h >> np.uint64(33))
    h = h * np.uint64(first)
    h = h ^ (h >> np.uint64(33))
    h = h * np.uint64(second)
    found: npt.NDArray[np.uint64] = h ^ (h >> np.uint64(33))
    return found


def _map_pairs(entries: Int64, old: Layout, new: Layout) -> Int64:
    """Pairs under the keys of their new columns; those of columns that are gone are left out."""
    if old["others"] == new["others"]:
        return entries
    column = owners(entries) & 15
    moved = np.array(
        [new["others"].index(n) if n in new["others"] else -1 for n in old["others"]] or [-1]
    )[column]
    kept: Int64 = entries[moved >= 0].copy()
    column = moved[moved >= 0]
    salt = np.uint64(0x9E3779B97F4A7C15)
    of = owners(kept)
    was = (of + 1).astype(np.uint64) * salt
    kept[:, WHOSE] += (column - (of & 15)) << SEQ_BITS
    now = (owners(kept) + 1).astype(np.uint64) * salt
    inverse = pow(_SECOND, -1, 1 << 64), pow(_FIRST, -1, 1 << 64)
    value = _scrambled(kept[:, KEY].astype(np.uint64), *inverse) ^ was
    key = _scrambled(value ^ now, _FIRST, _SECOND).astype(np.int64)
    kept[:, KEY] = np.where(key == 0, 1, key)
    return kept


def _feeds(feature: Feature) -> list[str]:
    """Event types that feed a feature, in the fixed order."""
    return [name for name in event_types() if name in (feature.feeds or (feature.event,))]


def _column(plan: EntityPlan, event: str, column: str | None) -> Any:
    """What a column is: its name, the code of a user's, the declaration of a feature."""
    if column is None:
        return None
    name, _ = inputs_of(column)
    for feature in plan.features.get(event, ()):
        if feature.name == name:
            return [column, _signature(plan, feature)]
    meaning = meaning_of(name)
    return [column, meaning] if meaning else column


def _signature(plan: EntityPlan, feature: Feature) -> list[Any]:
    """All that decides what a feature's state holds."""
    return [
        feature.op,
        _feeds(feature),
        _column(plan, feature.event, feature.column),
        None if feature.where is None else [feature.where, meaning_of(feature.where)],
        feature.window_s,
        feature.other,
    ]


def _of_family(plan: EntityPlan, family: str) -> list[Feature]:
    """Features of a family in the order in which the plan numbers its instances."""
    everything = (f for features in plan.features.values() for f in features)
    return [f for f in everything if OPERATIONS[f.op].family == family]


def _key(plan: EntityPlan, feature: Feature) -> str:
    """The instance that a feature of a family reads, as text."""
    family = OPERATIONS[feature.op].family
    _, feeds, column, where, window_s, other = _signature(plan, feature)
    parts = {
        "rate": [feeds, where],
        "geo": [feeds],
        "risk": [feeds],
        "categories": [feeds, other],
        "members": [feeds, other, column, window_s],
        "correlations": [feeds, other, column, window_s],
    }.get(family, [feeds, column])
    return json.dumps(parts)


def _instances(plan: EntityPlan, array: str) -> list[str]:
    """Instances of an array by slot, in the order in which they stand in it."""
    family = _FAMILIES.get(array, array)
    if family == "entity":
        return ["entity"]
    if family == "fed":
        return [
            json.dumps([name for name, fed in zip(event_types(), ring.feeds, strict=True) if fed])
            for ring in plan.rings
        ]
    if family == "silence":
        watched, peers = silence_of(plan)
        return [json.dumps({"events": watched, "peers": peers})]
    if family == "sequence":
        tokens = TOKENS.get(plan.entity, {})
        return [
            json.dumps([[e, [[t.kind, t.name, t.scale] for t in ts]] for e, ts in tokens.items()])
        ]
    if family == "history":
        instances = list(dict.fromkeys(_key(plan, f) for f in _of_family(plan, "baseline")))
        kept = {
            _key(plan, f)
            for f in _of_family(plan, "baseline")
            if OPERATIONS[f.op].code >= HISTORY_FROM
        }
        return [key for key in instances if key in kept]
    if family == "counted":
        found = (f for f in _of_family(plan, "risk") if OPERATIONS[f.op].code >= COUNTED_FROM)
        return list(dict.fromkeys(_key(plan, f) for f in found))
    if array in _FAMILIES:
        its = (*_of_family(plan, family), *twins_of(plan, family))
        return list(dict.fromkeys(_key(plan, f) for f in its))
    everything = [f for features in plan.features.values() for f in features]
    return [json.dumps([[f.event, f.name, _signature(plan, f)] for f in everything])]


def _named(name: str) -> str:
    """A ring's column, condition or maximum, with what stands for the code of a user's column."""
    parts = name.rpartition(" ")[2].split("|")
    return " ".join([name, *filter(None, map(meaning_of, parts))])


def _reads(plan: EntityPlan, feature: Feature) -> list[list[Any]]:
    """Where a feature's state lies: (array, instance), or a place in a ring."""
    op = OPERATIONS[feature.op]
    if op.family == "ring":
        kind, name = "", ""
        masked = f"{feature.column}|{feature.where}" if feature.where else str(feature.column)
        if op.name in ("max", "min"):
            kind, name = "maxima", _named(f"{op.name} {masked}")
        elif op.column:
            kind, name = "columns", _named(masked)
        elif op.other:
            kind, name = "others", str(feature.other)
        elif feature.where is not None:
            kind, name = "flags", _named(feature.where)
        return [["ring", _feeds(feature), kind, name, (feature.window_s or 0) * 1_000_000]]
    key = _key(plan, feature)
    found = [[array, key] for array, family in _FAMILIES.items() if family == op.family]
    if op.family == "baseline" and op.code >= HISTORY_FROM:
        found.append(["history", key])
    if op.family == "risk" and op.code >= COUNTED_FROM:
        found.append(["risk_events", key])
    if op.family == "baseline" and op.name not in UNWEIGHED:
        found.append([_WEIGHED, key])
    return found


def _ring(plan: EntityPlan, ring: Ring) -> dict[str, Any]:
    """A ring by name."""
    return {
        "feeds": [name for name, fed in zip(event_types(), ring.feeds, strict=True) if fed],
        "windows_us": ring.windows_us.tolist(),
        "flags": [_named(name) for name in ring.names["flags"]],
        "columns": [_named(name) for name in ring.names["columns"]],
        "maxima": [_named(name) for name in ring.names["maxima"]],
        "max_columns": ring.max_columns.tolist(),
        "others": list(ring.names["others"]),
        "ttl_us": ring.ttl_us.tolist(),
    }


def _shell(entity: str, layout: Layout) -> EntityState:
    """A state of the layout that holds and gives snapshots, and computes nothing."""
    nothing = np.zeros((0, 4), np.int64)
    plan = EntityPlan(entity)
    for ring in layout["rings"]:
        flags, columns, others = (len(ring[k]) for k in ("flags", "columns", "others"))
        plan.rings.append(
            Ring(
                feeds=np.zeros(0, np.bool_),
                windows_us=np.array(ring["windows_us"], np.int64),
                flag_bits=np.zeros(flags, np.int64),
                columns=np.zeros(columns, np.int64),
                max_columns=np.array(ring["max_columns"], np.int64),
                signs=np.array([1.0 if m.startswith("max") else -1.0 for m in ring["maxima"]]),
                others=np.zeros(others, np.int64),
                ttl_us=np.array(ring["ttl_us"], np.int64),
                plan=nothing,
                plan_at=np.zeros(1, np.int64),
                names={},
            )
        )
    arrays = {k: (np.dtype(dtype), width) for k, (dtype, width, _) in layout["arrays"].items()}
    return EntityState.of_arrays(plan, arrays)
