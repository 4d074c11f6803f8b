"""The feature engine against its naive twin, and against itself cut, sharded and restored."""

from __future__ import annotations

import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import pairs, state
from features.batch import EventBatch, FeatureMatrix
from features.catalog import Catalog, catalog
from features.engine import GroupEngine, OfflineEngine, assemble, merge, split
from features.errors import StateError
from features.sequence import STEPS, WIDTH
from features.spec import Feature
from tests.naive import NaiveEngine, in_global_order
from tests.streams import START_US, cut, make_batch, stream

ROOT = Path(__file__).resolve().parents[2]

Matrices = dict[str, FeatureMatrix]

EDGES = st.lists(st.integers(0, 360), max_size=6).map(
    lambda halves: [START_US + 30_000_000 * h for h in halves]
)
"""Where a stream of three hours may be cut: on half minutes, as its events."""


@pytest.fixture(scope="module")
def cat() -> Catalog:
    return catalog()


@cache
def whole(number: int = 5) -> tuple[dict[str, EventBatch], Matrices]:
    """A stream and its features; no fixture, since hypothesis prints those when a test fails."""
    batches = stream(number, 220)
    return batches, OfflineEngine(catalog(), 4).process(batches)


def joined(parts: list[Matrices], name: str) -> tuple[Any, Any]:
    """Values and sequences of several stretches, one after another."""
    found = [part[name] for part in parts if name in part]
    return (
        np.concatenate([m.values for m in found]),
        np.concatenate([m.sequence for m in found if m.sequence is not None]),
    )


def assert_same(found: list[Matrices], expected: Matrices) -> None:
    """Bit for bit, sequences too."""
    for name, matrix in expected.items():
        values, sequence = joined(found, name)
        np.testing.assert_array_equal(values, matrix.values)
        np.testing.assert_array_equal(sequence, matrix.sequence)


def assert_like_naive(cat: Catalog, parts: list[dict[str, EventBatch]]) -> None:
    """Counts exactly, numbers to 1e-9, every feature of every row."""
    engine, naive = OfflineEngine(cat, 3), NaiveEngine(cat)
    differing = []
    for part in parts:
        found = engine.process(part)
        events = in_global_order(part)
        for event, expected in zip(events, naive.process(events), strict=True):
            matrix = found.get(event["_type"])
            if matrix is None:  # an event type that only feeds others
                assert expected == {}
                continue
            got = dict(zip(matrix.names, matrix.values[event["_row"]].tolist(), strict=True))
            assert got.keys() == expected.keys()
            differing += [
                (event["_type"], name, got[name], value)
                for name, value in expected.items()
                if got[name] != pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True)
            ]
    assert differing == []


@pytest.mark.parametrize("number", range(3))
def test_every_feature_equals_its_naive_twin(cat: Catalog, seed: int, number: int) -> None:
    assert_like_naive(cat, [stream(seed + number, 130)])


def test_operations_without_a_feature_of_their_own_equal_their_naive_twin(seed: int) -> None:
    def one(name: str, event: str, entity: str, op: str, **more: Any) -> Feature:
        unit = "s" if op.startswith("since") else "1"
        return Feature(name, event, entity, op, "{value}", unit, "baseline", **more)

    bases = ("usual", "usual_std", "recent", "median", "iqr", "season_usual")
    assert_like_naive(
        Catalog(
            [
                *(one(op, "metric", "series", op, column="value") for op in bases),
                one(
                    "peer_mean",
                    "metric",
                    "pool",
                    "peer_mean",
                    column="value",
                    other="host",
                    window_s=300,
                ),
                one("since_place", "payment", "user", "since_place", feeds=("login", "payment")),
                one("since_pair", "payment", "card", "since_pair", other="merchant"),
                one("share", "payment", "ip", "distinct_share", other="card", window_s=300),
                one("count", "payment", "ip", "count", window_s=3600, where="declined"),
                one("ratio", "payment", "ip", "ratio", column="share", other="count"),
            ]
        ),
        [stream(seed, 200)],
    )


def test_late_events_are_taken_at_the_newest_time_of_their_entity(cat: Catalog, seed: int) -> None:
    parts = cut(stream(seed, 100), [START_US + 3_600_000_000])
    assert_like_naive(cat, parts[::-1])
    engine = GroupEngine(cat, 0)
    for part in parts[::-1]:
        engine.process(split(cat, part, 1)[0])
    assert engine.late > 0


def test_long_histories_equal_their_naive_twin(cat: Catalog, rng: np.random.Generator) -> None:
    """Past the 32 values of a history, the memory of the means, and members that fall silent."""
    rows = [
        {
            "event_id": f"e{i}",
            "time_us": START_US + i * 90_000_000 + (i > 200) * 5_000_000_000,
            "host": f"h{i % 2 if i < 200 else i % 3}",
            "metric": "cpu",
            "service": "web",
            "value": float(np.round(rng.normal(40.0, 5.0), int(rng.integers(0, 3)))),
        }
        for i in range(700)
    ]
    assert_like_naive(cat, [{"metric": make_batch("metric", rows)}])


@settings(max_examples=15)
@given(edges=EDGES, number=st.integers(0, 3))
def test_a_stream_cut_anywhere_gives_the_same_features(
    cat: Catalog, edges: list[int], number: int
) -> None:
    batches, expected = whole(number)
    engine = OfflineEngine(cat, 4)
    assert_same([engine.process(part) for part in cut(batches, edges)], expected)


def test_one_event_at_a_time_gives_the_same_features(cat: Catalog, seed: int) -> None:
    batches = stream(seed, 25)
    expected = OfflineEngine(cat, 2).process(batches)
    engine = OfflineEngine(cat, 2)
    parts = [
        engine.process({e["_type"]: batches[e["_type"]].take(np.array([e["_row"]]))})
        for e in in_global_order(batches)
    ]
    assert_same(parts, expected)


@pytest.mark.parametrize("groups", [1, 2, 7, 64])
def test_any_number_of_groups_gives_the_same_features(cat: Catalog, groups: int) -> None:
    batches, expected = whole()
    assert_same([OfflineEngine(cat, groups).process(batches)], expected)


@settings(max_examples=10)
@given(lanes=st.integers(1, 5), salt=st.integers(0, 1000), edges=EDGES)
def test_any_number_of_lanes_gives_the_same_features(
    cat: Catalog, lanes: int, salt: int, edges: list[int]
) -> None:
    batches, expected = whole()
    engines = [GroupEngine(cat, group) for group in range(3)]
    found = {name: np.full_like(m.values, -1.0) for name, m in expected.items()}
    sequences = {name: np.full((len(m), STEPS, WIDTH), -9.0) for name, m in expected.items()}
    done = dict.fromkeys(batches, 0)
    for part in cut(batches, edges):
        owner = {n: np.random.default_rng(salt).integers(0, lanes, len(b)) for n, b in part.items()}
        rows = {n: [np.flatnonzero(owner[n] == lane) for lane in range(lanes)] for n in part}
        mine = [{n: b.take(rows[n][lane]) for n, b in part.items()} for lane in range(lanes)]
        sent = [split(cat, mine[lane], 3, lane) for lane in range(lanes)]
        results = [
            engine.process(merge([sent[lane][g] for lane in range(lanes)][::-1]))
            for g, engine in enumerate(engines)
        ]
        for lane in range(lanes):
            home = assemble(cat, mine[lane], [r[lane] for r in results if lane in r])
            for name, matrix in home.items():
                at = done[name] + rows[name][lane]
                found[name][at] = matrix.values
                sequences[name][at] = matrix.sequence
        for name, batch in part.items():
            done[name] += len(batch)
    for name, matrix in expected.items():
        np.testing.assert_array_equal(found[name], matrix.values)
        np.testing.assert_array_equal(sequences[name], matrix.sequence)


def test_the_round_and_the_largest_clock_of_the_lanes_reach_a_group(cat: Catalog) -> None:
    batches, _ = whole()
    sent = [
        split(cat, batches, 2, lane, round_=7, clock_us=clock) for lane, clock in ((0, 5), (1, 9))
    ]
    for group in range(2):
        parts = [rows[group] for rows in sent]
        assert [(p.lane, p.round, p.clock_us) for p in parts] == [(0, 7, 5), (1, 7, 9)]
        merged = merge(parts)
        assert (merged.round, merged.clock_us) == (7, 9)
        assert (merge(parts[:1]).round, merge(parts[:1]).clock_us) == (7, 5)
    nothing = split(cat, {}, 3, 1, round_=8, clock_us=11)
    assert [(p.round, p.clock_us, len(p)) for p in nothing] == [(8, 11, 0)] * 3


@settings(max_examples=15)
@given(edges=EDGES, base=st.integers(0, 3), forget=st.booleans())
def test_snapshot_and_restore_anywhere_gives_the_same_features(
    cat: Catalog, edges: list[int], base: int, forget: bool
) -> None:
    batches, expected = whole()
    engine = OfflineEngine(cat, 2)
    kept: list[list[dict[str, Any]]] = [[engine.full()] for engine in engine.engines]
    found = []
    for number, part in enumerate(cut(batches, edges)):
        found.append(engine.process(part))
        for group, chain in zip(engine.engines, kept, strict=True):
            if number == base:
                chain[:] = [group.full()]
            else:
                chain.append(group.delta())
        if forget:
            engine.engines = [
                GroupEngine.restore(cat, g, pickle.loads(pickle.dumps(chain[0])), chain[1:])
                for g, chain in enumerate(kept)
            ]
    assert_same(found, expected)
    restored = [GroupEngine.restore(cat, g, c[0], c[1:]) for g, c in enumerate(kept)]
    again = stream(6, 60)
    expected_after = engine.process(again)
    engine.engines = restored
    assert_same([engine.process(again)], expected_after)


def test_a_restored_group_dumps_what_it_was_restored_from(cat: Catalog, seed: int) -> None:
    engine = GroupEngine(cat, 0)
    engine.process(split(cat, stream(seed, 80), 1)[0])
    before = engine.full()
    after = GroupEngine.restore(cat, 0, before, []).full()
    assert before.keys() == after.keys()
    for name, array in before.items():
        if name.endswith(".pairs"):  # a table's order is not part of the state
            array, after[name] = (a[np.lexsort(a.T)] for a in (array, after[name]))
        np.testing.assert_array_equal(array, after[name])


def test_a_long_chain_of_deltas_takes_no_more_memory_than_the_group_it_came_from(
    cat: Catalog, seed: int
) -> None:
    engine = GroupEngine(cat, 0)
    base, deltas = engine.full(), []
    edges = [START_US + 60_000_000 * 6 * k for k in range(30)]
    for part in cut(stream(seed, 400), edges):
        engine.process(split(cat, part, 1)[0])
        deltas.append(engine.delta())
    restored = GroupEngine.restore(cat, 0, base, deltas)
    assert restored.memory_bytes <= 2 * engine.memory_bytes
    assert restored.entities == engine.entities


def test_a_delta_holds_only_what_was_touched(cat: Catalog, seed: int) -> None:
    engine = GroupEngine(cat, 0)
    batches = stream(seed, 80, types=("payment",))
    engine.process(split(cat, batches, 1)[0])
    engine.full()
    assert all(not len(a) for n, a in engine.delta().items() if n.endswith("slots"))
    one = {"payment": batches["payment"].take(np.array([79]))}
    engine.process(split(cat, one, 1)[0])
    delta = engine.delta()
    assert len(delta["card.slots"]) == 1 and len(delta["card.ring0.pairs"]) <= 4
    assert len(delta["series.slots"]) == 0


def test_state_grows_past_its_first_size_without_a_trace(
    cat: Catalog, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = stream(seed, 200)
    expected = OfflineEngine(cat, 1).process(batches)
    monkeypatch.setattr(state, "ARENA_MIN", 8)
    monkeypatch.setattr(pairs, "PAIRS_MIN", 2)
    engine = OfflineEngine(cat, 1)
    parts = cut(batches, [START_US + 60_000_000 * m for m in (10, 40, 41, 100)])
    assert_same([engine.process(part) for part in parts], expected)


def test_an_absent_entity_has_no_features(cat: Catalog) -> None:
    rows = [
        {
            "event_id": str(i),
            "card_id": "c",
            "user_id": "u",
            "merchant_id": "m",
            "device_id": None if i else "",
            "ip": "1",
            "time_us": START_US + i,
        }
        for i in range(2)
    ]
    matrix = OfflineEngine(cat, 1).process({"payment": make_batch("payment", rows)})["payment"]
    for feature in cat.features("payment"):
        if feature.entity == "device":
            assert np.isnan(matrix.column(feature.name)).all()
    assert matrix.column("ip_count_1h").tolist() == [1.0, 2.0]


def test_a_user_s_failed_logins_count_in_the_scoring_of_the_next_payment(cat: Catalog) -> None:
    times = [0, 60, 3_599, 3_600, 3_601]
    logins = [
        {
            "event_id": f"l{i}",
            "user_id": "u",
            "ip": "1",
            "success": i == 4,
            "time_us": START_US + t * 1_000_000,
        }
        for i, t in enumerate(times)
    ]
    payment = {
        "event_id": "p",
        "card_id": "c",
        "user_id": "u",
        "merchant_id": "m",
        "time_us": START_US + 3_600_000_000,
    }
    batches = {"login": make_batch("login", logins), "payment": make_batch("payment", [payment])}
    matrix = OfflineEngine(cat, 2).process(batches)["payment"]
    # The one exactly an hour old is out; the one of the same microsecond comes after the payment.
    assert matrix.column("user_failed_logins_1h")[0] == 2.0


def test_a_sequence_ends_with_its_own_row_and_starts_with_zeros(cat: Catalog) -> None:
    rows = [
        {
            "event_id": str(i),
            "card_id": "c",
            "user_id": "u",
            "merchant_id": "m",
            "amount": float(i),
            "time_us": START_US + i * 1_000_000,
        }
        for i in range(20)
    ]
    matrix = OfflineEngine(cat, 1).process({"payment": make_batch("payment", rows)})["payment"]
    sequence = matrix.sequence
    assert sequence is not None and sequence.shape == (20, STEPS, WIDTH)
    assert sequence.dtype == np.float32 and np.abs(sequence).max() <= 1.0
    assert (sequence[2, : STEPS - 3] == 0.0).all()
    amounts = np.log1p(np.arange(20)) / 10.0
    np.testing.assert_allclose(sequence[:, -1, 5], amounts, atol=2e-5)
    np.testing.assert_allclose(sequence[19, :, 5], amounts[4:], atol=2e-5)
    np.testing.assert_array_equal(sequence[19, :-1], sequence[18, 1:])


def test_logins_see_the_user_s_payments_in_their_sequence(cat: Catalog) -> None:
    payment = {
        "event_id": "p",
        "card_id": "c",
        "user_id": "u",
        "merchant_id": "m",
        "time_us": START_US,
    }
    login = {"event_id": "l", "user_id": "u", "ip": "1", "time_us": START_US + 1}
    batches = {"login": make_batch("login", [login]), "payment": make_batch("payment", [payment])}
    sequence = OfflineEngine(cat, 1).process(batches)["login"].sequence
    assert sequence is not None
    assert sequence[0, -2:, 0].tolist() == [1.0, 1.0]
    assert sequence[0, -2:, 1].tolist() == [-1.0, 1.0]


def test_parts_survive_the_way_to_another_process(cat: Catalog, seed: int) -> None:
    batches = stream(seed, 40)
    expected = OfflineEngine(cat, 2).process(batches)
    engines = [GroupEngine(cat, g) for g in range(2)]
    sent = pickle.loads(pickle.dumps(split(cat, batches, 2)))
    results = [e.process(merge([rows]))[0] for e, rows in zip(engines, sent, strict=True)]
    assert_same([assemble(cat, batches, pickle.loads(pickle.dumps(results)))], expected)


def test_a_round_without_events_changes_nothing(cat: Catalog) -> None:
    engine = OfflineEngine(cat, 2)
    assert engine.process({}) == {}
    empty = make_batch("payment", [])
    matrix = engine.process({"payment": empty})["payment"]
    assert matrix.values.shape == (0, len(cat.names("payment")))
    assert sum(engine.engines[0].entities.values()) == 0


def test_state_of_another_layout_is_refused_with_the_cure(cat: Catalog, seed: int) -> None:
    engine = GroupEngine(cat, 3)
    engine.process(split(cat, stream(seed, 10), 1)[0])
    saved = engine.full()
    with pytest.raises(StateError, match=r"group 3: state of format 99.*backfill"):
        GroupEngine.restore(cat, 3, saved | {"format": np.array([99])}, [])
    with pytest.raises(StateError, match="state of 'card' does not fit the catalogue"):
        GroupEngine.restore(cat, 3, saved | {"card.bases": np.zeros((1, 3))}, [])
    del saved["card.keys"]
    with pytest.raises(StateError, match="'keys'"):
        GroupEngine.restore(cat, 3, saved, [])


def test_entities_and_memory_are_counted(cat: Catalog) -> None:
    engine = GroupEngine(cat, 0)
    empty = engine.memory_bytes
    rows = [
        {
            "event_id": str(i),
            "card_id": f"c{i}",
            "user_id": "u",
            "merchant_id": "m",
            "time_us": START_US + i,
        }
        for i in range(5_000)
    ]
    engine.process(split(cat, {"payment": make_batch("payment", rows)}, 1)[0])
    assert engine.entities["card"] == 5_000 and engine.entities["user"] == 1
    assert engine.entities["series"] == 0
    assert engine.memory_bytes > empty + 5_000 * 500


UNMET = """
import sys
from dataclasses import replace
from numba.core.dispatcher import Dispatcher
from features.catalog import catalog
from features.engine import GroupEngine, merge, split, warm_up
from features.labels import Label
from features.rows import GroupRows
from tests.streams import stream

def compiled():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("features."):
            kernels = {k: v for k, v in vars(module).items() if isinstance(v, Dispatcher)}
            found |= {f"{name}.{k}": len(v.signatures) for k, v in kernels.items()}
    return found

exact_max, cat = int(sys.argv[1]), catalog()
warm_up(cat, exact_max)
before = compiled()
group = GroupEngine(cat, 0, emptied_max=10, exact_max=exact_max)
batches = stream(5, 60)
end_us = max(int(b.time_us.max()) for b in batches.values())
rows = merge(split(cat, batches, 1, 0, 0, end_us))
keys = tuple((name, int(head[0, 0])) for name, head in rows.heads.items())
group.process(rows)
label = Label(0, 1, end_us, True, keys)
late = split(cat, {name: b.take([0]) for name, b in batches.items()}, 1, 0, 1, end_us)[0]
group.process(replace(late, labels=(label,)))
GroupEngine.restore(cat, 0, group.full(), [group.delta()], exact_max=exact_max)
for clock_us in (end_us + 7_200_000_000, end_us + 10**14):
    group.process(GroupRows(0, round=2, clock_us=clock_us))
after = compiled()
print({k: n for k, n in after.items() if n != before.get(k, 0)})
"""


@pytest.mark.parametrize("exact_max", [0, 50])
def test_nothing_is_compiled_after_the_warm_up(exact_max: int) -> None:
    command = [sys.executable, "-c", UNMET, str(exact_max)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{}", "kernels that the first rounds of a flow would wait for"
