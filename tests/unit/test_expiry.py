"""Entities idle beyond their time to live start anew, however the stream is cut and swept."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import expiry, windows
from features.batch import EventBatch
from features.catalog import Catalog, catalog
from features.engine import GroupEngine, OfflineEngine, split
from features.expiry import time_to_live_us
from features.plan import plan_of
from tests.naive import NaiveEngine, in_global_order
from tests.streams import START_US, cut, make_batch, stream

HOUR_US = 3_600_000_000

ENTITIES = tuple(plan_of(catalog()).entities)
AN_HOUR = dict.fromkeys(ENTITIES, 1.0)
NEVER = dict.fromkeys(ENTITIES, 0.0)


@pytest.fixture(scope="module")
def cat() -> Catalog:
    return catalog()


def spread(number: int, events: int = 260) -> dict[str, EventBatch]:
    """A stream of three hours drawn out to nine, with pauses of an hour and more."""
    found = {}
    for name, batch in stream(number, events).items():
        frame = batch.frame.with_columns(time_us=START_US + (batch.frame["time_us"] - START_US) * 3)
        found[name] = dataclasses.replace(batch, frame=frame)
    return found


def test_an_idle_entity_starts_anew_like_its_naive_twin(cat: Catalog, seed: int) -> None:
    batches = spread(seed)
    engine = OfflineEngine(cat, 2, ttl_h=AN_HOUR)
    naive = NaiveEngine(cat, dict.fromkeys(ENTITIES, 3600))
    events = in_global_order(batches)
    found = engine.process(batches)
    for event, expected in zip(events, naive.process(events), strict=True):
        matrix = found.get(event["_type"])
        if matrix is not None:
            got = dict(zip(matrix.names, matrix.values[event["_row"]].tolist(), strict=True))
            assert got == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)
    assert sum(e.expired for e in engine.engines) > 20


@settings(max_examples=12)
@given(
    edges=st.lists(st.integers(0, 1080), max_size=8),
    groups=st.integers(1, 3),
    number=st.integers(0, 2),
    swept=st.sampled_from([1, 3, 256]),
    restore=st.integers(0, 8),
)
def test_when_slots_are_swept_and_restored_never_shows(
    cat: Catalog, edges: list[int], groups: int, number: int, swept: int, restore: int
) -> None:
    batches = spread(number)
    expected = OfflineEngine(cat, 1, ttl_h=AN_HOUR).process(batches)
    engine = OfflineEngine(cat, groups, ttl_h=AN_HOUR)
    chains = [[e.full()] for e in engine.engines]
    found: dict[str, list[Any]] = {name: [] for name in expected}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("features.state.SWEPT", swept)
        patch.setattr("features.state.SLACK_US", 0)
        for k, part in enumerate(cut(batches, [START_US + 30_000_000 * e for e in edges])):
            clock_us = max(int(b.time_us.max()) for b in part.values() if len(b)) if part else 0
            for name, matrix in engine.process(part, clock_us).items():
                found[name].append(matrix.values)
            for chain, one in zip(chains, engine.engines, strict=True):
                chain.append(one.delta())
            if k == restore:
                engine.engines = [
                    GroupEngine.restore(cat, g, c[0], c[1:], ttl_h=AN_HOUR)
                    for g, c in enumerate(chains)
                ]
    for name, matrix in expected.items():
        np.testing.assert_array_equal(np.concatenate(found[name]), matrix.values)


def pay(card: str, us: int, **more: Any) -> dict[str, Any]:
    return {
        "event_id": f"{card}{us}",
        "card_id": card,
        "user_id": "u",
        "merchant_id": "m",
        "time_us": START_US + us,
        **more,
    }


def passed(engine: GroupEngine, rows: list[dict[str, Any]], clock_us: int = 0) -> None:
    batches = {"payment": make_batch("payment", rows, partitions=1)}
    engine.process(split(engine.catalog, batches, 1, clock_us=clock_us)[0])


def test_a_cleared_slot_holds_nothing_of_the_entity_before(cat: Catalog) -> None:
    engine = GroupEngine(cat, 0, ttl_h={"card": 1.0})
    passed(engine, [pay("a", i * 1_000_000, amount=9.0, device_id=f"d{i}") for i in range(50)])
    end_us = START_US + 30 * HOUR_US
    passed(engine, [pay("b", 29 * HOUR_US)], end_us)
    assert engine.entities["card"] == 1 and engine.expired == 1
    state = engine.full()
    assert state["card.keys"][0] == 0
    ints = state["card.ring0.ints"][0]
    assert ints[windows.CAPACITY] == 0 and ints[windows.HEAD] == ints[windows.BORN] == 50
    for name, array in state.items():
        if name.startswith("card.") and name.split(".")[1] in ("bases", "history", "vectors"):
            assert not array[0].any(), name
    assert not state["card.ring0.floats"][0].any()
    passed(engine, [pay("c", 29 * HOUR_US)], end_us)
    assert len(engine.full()["card.keys"]) == 2


def test_a_round_looks_at_a_bounded_number_of_slots(cat: Catalog) -> None:
    engine = GroupEngine(cat, 0, ttl_h={"card": 1.0})
    many = 3 * expiry.SWEPT
    passed(engine, [pay(f"c{i}", i) for i in range(many)])
    gone = []
    for _ in range(4):
        passed(engine, [pay("x", 30 * HOUR_US)], START_US + 30 * HOUR_US)
        gone.append(many + 1 - engine.entities["card"])
    assert gone == [expiry.SWEPT, 2 * expiry.SWEPT, many, many]


def test_without_a_clock_or_with_a_time_of_zero_none_is_found_silent(cat: Catalog) -> None:
    for ttl_h, clock_us in (({"card": 1.0}, 0), (NEVER, START_US + 99 * HOUR_US)):
        engine = GroupEngine(cat, 0, ttl_h=ttl_h)
        passed(engine, [pay("a", 0)], clock_us)
        passed(engine, [pay("b", 99 * HOUR_US)], clock_us)
        assert engine.entities["card"] == 2 and engine.expired == 0


def test_no_window_is_longer_than_an_entity_is_known(cat: Catalog) -> None:
    plans = plan_of(cat).entities
    assert time_to_live_us(plans["card"], {"card": 0.1}) == HOUR_US
    assert time_to_live_us(plans["card"], {}) == 45 * 24 * HOUR_US
    assert time_to_live_us(plans["host"], {}) == 14 * 24 * HOUR_US
    assert time_to_live_us(plans["ip"], {"ip": 0}) == 0
