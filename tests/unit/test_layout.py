"""A state of an older catalogue in a newer one: old features go on, new ones start empty."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from features import events
from features.batch import EventBatch, FeatureMatrix
from features.catalog import Catalog, catalog
from features.engine import GroupEngine, assemble, split
from features.errors import StateError
from features.events import event_type, event_types
from features.layout import _FAMILIES, LAYOUT, layout_array, layout_of
from features.plan import plan_of
from features.spec import Feature
from features.state import EntityState
from tests.naive import clipped_mean
from tests.streams import START_US, cut, make_batch, stream
from tests.units import fitting

Arrays = dict[str, Any]
Found = dict[str, FeatureMatrix]


def card(name: str, op: str, window_s: int | None = None, **more: Any) -> Feature:
    unit = fitting(op, "payment", more.get("column"))
    return Feature(
        name, "payment", "card", op, "{value}", unit, "amount", window_s=window_s, **more
    )


def sample(name: str, op: str, entity: str = "series", **more: Any) -> Feature:
    unit = fitting(op, "metric", more.get("column"))
    return Feature(name, "metric", entity, op, "{value}", unit, "baseline", **more)


OLD = (
    card("n_60", "count", 60),
    card("declined_300", "count", 300, where="declined"),
    card("sum_300", "sum", 300, column="amount"),
    card("max_300", "max", 300, column="amount"),
    card("std_60", "std", 60, column="amount"),
    card("merchants_300", "distinct", 300, other="merchant"),
    card("merchant_first", "first_time", other="merchant"),
    card("usual_300", "usual_count", 300),
    card("z", "z", column="log_amount"),
    card("median", "median", column="log_amount"),
    card("home_km", "home_km"),
    card("ever", "distinct_ever", other="merchant"),
    card("entropy", "entropy", other="merchant"),
    sample("season", "season_usual", column="value"),
    sample("anchor", "anchor", column="value"),
    sample("week", "week_usual", column="value"),
    sample("trend", "trend", column="value"),
    sample("bond_usual", "correlation_usual", "host", column="value", other="metric", window_s=600),
    sample("peers", "peer_mean", "pool", column="value", other="host", window_s=600),
)

EMPTY = (
    card("small_300", "count", 300, where="small"),
    card("place_300", "sum", 300, column="latitude"),
    card("place_max_60", "max", 60, column="latitude"),
    card("amount_min_300", "min", 300, column="amount"),
    card("devices_300", "distinct", 300, other="device"),
    card("device_since", "since_pair", other="device"),
    card("devices_entropy", "entropy", other="device"),
    card("declined_usual", "usual_count", 300, where="declined"),
    card("place_z", "z", column="latitude"),
    card("place_median", "median", column="latitude"),
    sample("log_season", "season_usual", column="log_value"),
    sample("log_anchor", "anchor", column="log_value"),
    sample("log_week", "week_usual", column="log_value"),
    sample("log_trend", "trend", column="log_value"),
    sample("log_peers", "peer_mean", "pool", column="log_value", other="host", window_s=600),
    sample("host_n", "count", "host", window_s=300),
    sample("bond", "correlation", "host", column="log_value", other="metric", window_s=600),
)
"""New, over state that nothing old has."""

AT_ONCE = (
    card("n_300", "count", 300),
    card("mean_300", "mean", 300, column="amount"),
    card("usual_amount", "usual", column="log_amount"),
    card("both_km", "home_km", feeds=("payment",)),
)
"""New, over state that an old feature has: known from the first row on."""

NARROW = card("n_120", "count", 120)
WIDE = card("n_3600", "count", 3600)

NEW = (*dict.fromkeys((WIDE, NARROW, *EMPTY, *AT_ONCE, *OLD)),)


def run(engine: GroupEngine, parts: list[dict[str, EventBatch]]) -> list[Found]:
    """Features of parts of a stream, one after another."""
    found = []
    for part in parts:
        features = engine.process(split(engine.catalog, part, 1)[0])
        found.append(assemble(engine.catalog, part, [features[0]] if features else []))
    return found


@pytest.fixture
def halves(seed: int) -> list[dict[str, EventBatch]]:
    return cut(stream(seed, 260), [START_US + 3_600_000_000, START_US + 5_400_000_000])


def same(name: str, one: list[Found], other: list[Found]) -> bool:
    """Whether a feature is the same in every bit."""
    pairs = [
        (a[event].column(name), b[event].column(name))
        for a, b in zip(one, other, strict=True)
        for event in a
        if name in a[event].names
    ]
    assert pairs and sum(len(a) for a, _ in pairs) > 50
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def test_a_catalogue_that_grew_goes_on_with_the_old_state(
    halves: list[dict[str, EventBatch]],
) -> None:
    first, *rest = halves
    old, new = Catalog(OLD), Catalog(NEW)
    engine = GroupEngine(old, 0)
    run(engine, [first])
    grown = GroupEngine.restore(new, 0, engine.full(), [])
    empty = {f"{f.event}.{f.name}" for f in EMPTY}
    assert set(grown.empty) == empty and set(grown.partial) == {"payment.n_120", "payment.n_3600"}
    found = run(grown, rest)
    never_stopped = run(GroupEngine(new, 0), halves)[1:]
    fresh = run(GroupEngine(new, 0), rest)
    for feature in (*OLD, *AT_ONCE, NARROW):
        assert same(feature.name, found, never_stopped), feature.name
    for name in empty:
        assert same(name.partition(".")[2], found, fresh), name
    wide = [m["payment"].column("n_3600") for m in (*found, *never_stopped, *fresh)]
    n = len(rest)
    assert all((a <= b).all() for a, b in zip(wide[:n], wide[n : 2 * n], strict=True))
    assert all((a >= b).all() for a, b in zip(wide[:n], wide[2 * n :], strict=True))


def test_a_catalogue_that_shrank_leaves_out_what_was_dropped(
    halves: list[dict[str, EventBatch]],
) -> None:
    first, *rest = halves
    engine = GroupEngine(Catalog(NEW), 0)
    run(engine, [first])
    shrunk = GroupEngine.restore(Catalog(OLD), 0, engine.full(), [])
    assert (shrunk.empty, shrunk.partial) == ((), ())
    found, never_stopped = run(shrunk, rest), run(GroupEngine(Catalog(OLD), 0), halves)[1:]
    assert all(same(feature.name, found, never_stopped) for feature in OLD)


AS_THEY_COME = (card("median", "median", column="log_amount"),)
WEIGHED = (
    card("usual", "usual", column="log_amount"),
    card("creep", "creep", column="log_amount"),
)


def test_a_level_that_took_values_as_they_came_is_told_where_it_is_to_weigh_them(
    halves: list[dict[str, EventBatch]], seed: int
) -> None:
    first, *rest = halves
    whole, part = Catalog((*AS_THEY_COME, *WEIGHED)), Catalog(AS_THEY_COME)
    engine = GroupEngine(whole, 0)
    run(engine, [first])
    cut_down = GroupEngine.restore(part, 0, engine.full(), [])
    assert cut_down.empty == cut_down.partial == (), "nothing of the median is weighed"
    kept = GroupEngine(part, 0)
    run(kept, [first])
    for state in (cut_down, kept):
        again = GroupEngine.restore(whole, 0, state.full(), [])
        assert again.partial == ("payment.usual",), "its values weigh by an anchor that is new"
        assert again.empty == ("payment.creep",)
    found = run(again, rest)
    never_stopped, fresh = run(GroupEngine(whole, 0), halves)[1:], run(GroupEngine(whole, 0), rest)
    assert same("median", found, never_stopped)
    assert same("creep", found, fresh), "what starts empty is as in an engine that just began"
    batch, amounts = first["payment"], defaultdict(list)
    for of, amount in zip(*batch.frame.select("card_id", "amount"), strict=True):
        amounts[of].append(math.log1p(amount))
    seen = 0
    for i, of in enumerate(rest[0]["payment"].frame["card_id"]):
        if values := amounts.pop(of, None):
            usual = found[0]["payment"].column("usual")[i]
            assert usual == pytest.approx(clipped_mean(values, 200, 3, 16)[0], rel=1e-12), seed
            seen += 1
    assert seen > 1


def test_snapshots_of_two_catalogues_follow_each_other(
    halves: list[dict[str, EventBatch]],
) -> None:
    first, second, third = halves
    old, new = Catalog(OLD), Catalog(NEW)
    engine = GroupEngine(old, 0)
    run(engine, [first])
    base = engine.full()
    run(engine, [second])
    delta = engine.delta()
    grown = GroupEngine.restore(new, 0, base, [delta])
    assert grown.empty
    early, late = cut(third, [START_US + 6_300_000_000])
    run(grown, [early])
    again = GroupEngine.restore(new, 0, base, [delta, grown.delta()])
    assert again.empty == ()
    found, expected = run(again, [late]), run(grown, [late])
    assert all(same(feature.name, found, expected) for feature in NEW)


@pytest.mark.parametrize("name", [f.name for f in (*EMPTY, NARROW, WIDE)])
def test_growth_by_one_feature_changes_no_other(
    name: str, halves: list[dict[str, EventBatch]]
) -> None:
    first, *rest = halves
    (one,) = (f for f in (*EMPTY, NARROW, WIDE) if f.name == name)
    engine = GroupEngine(Catalog(OLD), 0)
    run(engine, [first])
    grown = GroupEngine.restore(Catalog((one, *OLD)), 0, engine.full(), [])
    found, expected = run(grown, rest), run(engine, rest)
    for feature in OLD:
        mine = [m[feature.event].column(feature.name) for m in found]
        theirs = [m[feature.event].column(feature.name) for m in expected]
        assert all(map(np.array_equal, mine, theirs, [True] * len(mine))), feature.name


def without(arrays: Arrays, change: Callable[[dict[str, Any]], None]) -> Arrays:
    """A snapshot whose layout says something else."""
    layout = json.loads(arrays[LAYOUT].tobytes())
    change(layout)
    return arrays | {LAYOUT: np.frombuffer(json.dumps(layout).encode(), np.uint8)}


def test_a_state_that_cannot_go_over_is_refused_with_the_differences() -> None:
    old, new = Catalog(OLD), Catalog(NEW)
    arrays = GroupEngine(old, 0).full()

    def other_meaning(layout: dict[str, Any]) -> None:
        layout["semantics"] -= 1

    def other_cards(layout: dict[str, Any]) -> None:
        layout["entities"]["card"]["made_of"]["payment"] = ["card_id", "user_id"]

    with pytest.raises(StateError, match=r"come to mean something else.*waxwing backfill"):
        GroupEngine.restore(new, 0, without(arrays, other_meaning), [])
    with pytest.raises(StateError, match="card: made of card_id, user_id of payment in the state"):
        GroupEngine.restore(new, 0, without(arrays, other_cards), [])
    del arrays[LAYOUT]
    with pytest.raises(StateError, match="does not say what it is made of"):
        GroupEngine.restore(new, 0, arrays, [])


def test_every_array_of_the_shipped_features_is_described_by_its_instances() -> None:
    layout = layout_of(plan_of(catalog()))
    for entity, plan in plan_of(catalog()).entities.items():
        state = EntityState(plan)
        described = layout["entities"][entity]
        arrays = state.arrays
        assert set(described["arrays"]) == set(arrays) <= set(_FAMILIES)
        for name, array in arrays.items():
            instances = described["arrays"][name][2]
            assert len(set(instances)) == len(instances)
            assert array.shape[1] % max(len(instances), 1) == 0, (entity, name)
        assert len(described["rings"]) == len(state.rings)
    assert layout_array(catalog()).tobytes() == layout_array(Catalog(catalog_features())).tobytes()


def catalog_features() -> list[Feature]:
    """The shipped features, in their order."""
    return [f for event in catalog().event_types for f in catalog().features(event)]


TIMES = [START_US + k * 10_000_000 for k in range(60)]


def scrapes() -> EventBatch:
    """Samples of one host, every 10 s."""
    return make_batch(
        "metric",
        [
            {"event_id": f"s{i}", "host": "h", "metric": "cpu", "service": "web", "time_us": t}
            for i, t in enumerate(TIMES)
        ],
    )


def a_line(k: int) -> EventBatch:
    """A line that the host wrote later on."""
    row = {"event_id": f"l{k}", "host": "h", "service": "web", "template": "t"}
    return make_batch("app_log", [row | {"time_us": TIMES[-1] + k * 10_000_000}])


def watched(*names: str) -> tuple[Feature, ...]:
    """Features of hosts, fed by these event types, and one of absences."""
    counts = (
        Feature(f"n_{e}", e, "host", "count", "{value}", "1", "velocity", window_s=60)
        for e in names
    )
    gap = Feature("gap_s", "absence", "", "value", "{value}", "s", "silence", column="gap_s")
    return (*counts, gap)


def rhythm(engine: GroupEngine) -> tuple[int, int, float]:
    """Last heard of, next due, and gaps known of the one host."""
    arrays = engine._states["host"].arrays
    last_us, due_us = arrays["silence_ints"][0, :2].tolist()
    return last_us, due_us, float(arrays["silence_floats"][0, 0])


def test_rhythms_go_on_where_more_event_types_come_to_feed_their_entity() -> None:
    alone, both = Catalog(watched("metric")), Catalog(watched("metric", "app_log"))
    engine = GroupEngine(alone, 0)
    engine.process(split(alone, {"metric": scrapes()}, 1)[0])
    before = rhythm(engine)
    assert before[0] == TIMES[-1] < before[1]
    grown = GroupEngine.restore(both, 0, engine.full(), [])
    assert rhythm(grown) == before
    assert grown.empty == ("app_log.n_app_log",)
    grown.process(split(both, {"app_log": a_line(1)}, 1)[0])
    assert rhythm(grown)[0] == TIMES[-1] + 10_000_000, "it has heard of the line"
    shrunk = GroupEngine.restore(alone, 0, grown.full(), [])
    assert rhythm(shrunk) == (0, 0, 0.0)
    assert shrunk.empty == ("the rhythm of each host",), "by samples alone it would be overdue"


def test_an_event_type_that_does_not_watch_an_entity_leaves_its_rhythm_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deaf = replace(event_type("app_log"), silence={})
    types = event_types() | {"app_log": deaf}
    alone = Catalog(watched("metric"))
    engine = GroupEngine(alone, 0)
    engine.process(split(alone, {"metric": scrapes()}, 1)[0])
    with monkeypatch.context() as patch:
        patch.setattr(events, "event_types", lambda: types)
        both = Catalog(watched("metric", "app_log"))
        grown = GroupEngine.restore(both, 0, engine.full(), [])
        assert rhythm(grown) == rhythm(engine)
        assert grown.empty == ("app_log.n_app_log",)
        grown.process(split(both, {"app_log": a_line(1)}, 1)[0])
        assert rhythm(grown) == rhythm(engine), "a line is no utterance here"
