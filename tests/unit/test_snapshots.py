"""Incremental snapshots of rings: any chain of deltas gives back what the whole state holds."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import pairs, state
from features.batch import EventBatch
from features.catalog import Catalog
from features.engine import GroupEngine, split
from features.errors import StateError
from features.snapshots import join
from features.spec import Feature
from tests.streams import START_US, make_batch
from tests.units import fitting

Arrays = dict[str, Any]

ROWS = 1_500


def feature(name: str, op: str, window_s: int | None = None, **more: Any) -> Feature:
    return Feature(
        name,
        "payment",
        "card",
        op,
        "{value}",
        fitting(op, column=more.get("column")),
        "velocity",
        window_s=window_s,
        **more,
    )


CATALOG = Catalog(
    [
        *(
            f
            for w in (60, 300)
            for f in (
                feature(f"count_{w}", "count", w),
                feature(f"std_{w}", "std", w, column="amount"),
                feature(f"max_{w}", "max", w, column="amount"),
                feature(f"min_{w}", "min", w, column="latitude"),
                feature(f"distinct_{w}", "distinct", w, other="merchant"),
                feature(f"share_{w}", "distinct_share", w, other="device"),
            )
        ),
        feature("ever", "distinct_ever", other="device"),
        feature("first", "first_time", other="merchant"),
    ]
)


@cache
def rows() -> EventBatch:
    """Three cards, bursts and pauses: rings double, empty and are released; values come again."""
    rng = np.random.default_rng(11)
    gaps = rng.choice([0, 200_000, 3_000_000, 400_000_000], ROWS, p=[0.1, 0.6, 0.28, 0.02])
    times = START_US + np.cumsum(gaps)
    return make_batch(
        "payment",
        [
            {
                "event_id": str(i),
                "card_id": f"c{rng.choice(3, p=[0.8, 0.15, 0.05])}",
                "user_id": "u",
                "merchant_id": f"m{rng.integers(12)}",
                "device_id": f"d{rng.integers(40)}",
                "amount": float(rng.choice([1.5, 7.0, 7.0, 1e5])),
                "latitude": None if rng.random() < 0.4 else float(rng.integers(0, 9)),
                "time_us": int(times[i]),
            }
            for i in range(ROWS)
        ],
        partitions=1,
    )


def passed(engine: GroupEngine, first: int, end: int) -> Any:
    """Features of the rows first..end."""
    batch = rows().take(np.arange(first, end))
    return engine.process(split(CATALOG, {"payment": batch}, 1)[0])[0].parts["payment", "card"][1]


def in_order(dump: Arrays) -> Arrays:
    """A dump without what is no part of the state: a table's order."""
    out = dict(dump)
    for name, array in dump.items():
        if name.endswith(".pairs"):
            out[name] = array[np.lexsort(array.T)]
    return out


def same(left: Arrays, right: Arrays) -> None:
    left, right = in_order(left), in_order(right)
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name], err_msg=name)


@settings(max_examples=40)
@given(
    steps=st.lists(
        st.tuples(
            st.integers(1, ROWS // 12),
            st.sampled_from(["delta", "delta", "delta", "base", "none"]),
            st.booleans(),
        ),
        min_size=2,
        max_size=12,
    )
)
def test_any_chain_of_deltas_and_restores_gives_back_the_whole_state(
    steps: list[tuple[int, str, bool]],
) -> None:
    engine, whole = GroupEngine(CATALOG, 0), GroupEngine(CATALOG, 0)
    chain = [engine.full()]
    at = 0
    for count, kind, restore in steps:
        end = at + count
        np.testing.assert_array_equal(passed(engine, at, end), passed(whole, at, end))
        at = end
        if kind == "base":
            chain = [engine.full()]
        elif kind == "delta":
            chain.append(engine.delta())
        if restore and kind != "none":
            engine = GroupEngine.restore(CATALOG, 0, chain[0], chain[1:])
    if steps[-1][1] != "none":
        same(GroupEngine.restore(CATALOG, 0, chain[0], chain[1:]).full(), whole.full())


@settings(max_examples=40)
@given(
    snapshots=st.lists(
        st.tuples(
            st.integers(1, 60),
            st.booleans(),
            st.lists(st.tuples(st.integers(1, 25), st.integers(0, 4)), max_size=6),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_snapshot_is_of_the_moment_at_which_it_began_whatever_passes_meanwhile(
    snapshots: list[tuple[int, bool, list[tuple[int, int]]]],
) -> None:
    engine, whole = GroupEngine(CATALOG, 0), GroupEngine(CATALOG, 0)
    chain: list[Arrays] = []
    at = 0
    for before, everything, meanwhile in snapshots:
        passed(engine, at, at + before)
        passed(whole, at, at + before)
        at += before
        expected = whole.full()
        everything = everything or not chain
        engine.begin(everything)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(state, "SLICE_MIN", 1)
            patch.setattr(pairs, "PAIRS_MIN", 16)
            for count, parts in meanwhile:
                found = passed(engine, at, at + count)
                np.testing.assert_array_equal(found, passed(whole, at, at + count))
                at += count
                if parts:
                    engine.proceed(parts)
        chain = ([] if everything else chain) + [join(engine.take())]
        same(GroupEngine.restore(CATALOG, 0, chain[0], chain[1:]).full(), expected)


def test_a_snapshot_in_parts_is_done_after_as_many_and_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state, "SLICE_MIN", 1)
    engine = GroupEngine(CATALOG, 0)
    passed(engine, 0, 200)
    engine.begin(everything=False)
    assert [engine.proceed(3) for _ in range(3)] == [False, False, True]
    with pytest.raises(StateError, match="take it before the next begins"):
        engine.full()
    assert len(join(engine.take())["card.copied"]) == 3
    assert len(engine.delta()["card.copied"]) == 0


def test_a_delta_holds_the_new_records_of_a_ring_and_no_others() -> None:
    engine = GroupEngine(CATALOG, 0)
    passed(engine, 0, 100)
    assert len(engine.full()["card.ring0.live_ints"]) > 50
    passed(engine, 100, 103)
    delta = engine.delta()
    assert len(delta["card.ring0.live_ints"]) == len(delta["card.ring0.live_reals"]) == 3
    assert 0 < len(delta["card.ring0.marked"]) <= 6
    assert len(engine.delta()["card.ring0.live_ints"]) == 0


def test_a_state_that_is_never_saved_keeps_no_log_of_marks() -> None:
    engine = GroupEngine(CATALOG, 0)
    passed(engine, 0, ROWS)
    assert len(engine.delta()["card.ring0.marked"]) == 0


def test_a_chain_with_a_hole_is_refused() -> None:
    engine = GroupEngine(CATALOG, 0)
    base = engine.full()
    passed(engine, 0, 60)
    engine.delta()
    passed(engine, 60, 61)
    with pytest.raises(StateError, match="does not continue the snapshot before"):
        GroupEngine.restore(CATALOG, 0, base, [engine.delta()])
