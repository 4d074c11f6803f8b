"""Above so many others of an entity its pairs are sampled, and its counts are estimates, told."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import pytest

from dataflows.settings import Settings
from features import plan
from features.batch import EventBatch
from features.catalog import Catalog
from features.engine import GroupEngine, OfflineEngine, split
from features.errors import StateError
from features.events import event_code
from features.keys import hash_strings
from features.notes import notes_of
from features.pairs import KEY, LONG_AGO, WHEN
from features.panes import PANE_HEAD, PANE_TAIL, first_number
from features.snapshots import join
from features.spec import Feature
from features.windows import levels_at
from tests.naive import SampledPairs
from tests.streams import START_US, make_batch

BOUND = 40
WINDOWS_S = (60, 600, 3600)
OTHERS = ("merchant", "device")
KNOWN_S = 3 * 3600
"""How long pairs are remembered here, in place of 45 days."""


def _feature(op: str, other: str, window_s: int | None = None) -> Feature:
    name = f"{op}_{other}" + (f"_{window_s}" if window_s else "")
    unit = "flag" if op == "first_time" else "1"
    return Feature(
        name, "payment", "card", op, "{value}", unit, "velocity", window_s=window_s, other=other
    )


CATALOG = Catalog(
    [
        *(_feature(op, o, w) for w in WINDOWS_S for o in OTHERS for op in ("distinct",)),
        _feature("distinct_share", "merchant", 600),
        _feature("first_time", "merchant"),
        _feature("distinct_ever", "merchant"),
        Feature(
            "largest", "payment", "card", "max", "{value}", "currency", "velocity",
            column="amount", window_s=3600,
        ),
    ]
)  # fmt: skip
NAMES = CATALOG.names("payment")


@pytest.fixture(autouse=True)
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pairs be forgotten within the streams of these tests."""
    monkeypatch.setattr(plan, "PAIR_TTL_S", KNOWN_S)


def payments(rng: np.random.Generator, n: int, card: str = "c") -> list[dict[str, Any]]:
    """A card that meets few others, then very many, then few again, and is silent at times."""
    time_us, rows = START_US, []
    pace_s, others = 1.0, 60
    for i in range(n):
        if rng.random() < 0.004:
            pace_s = float(rng.choice([0.3, 3.0, 30.0]))
            others = int(rng.choice([10, 60, 400, 5_000]))
        if rng.random() < 0.0015:
            time_us += int(rng.choice([3_599, 3_600, 5_000, 12_000])) * 1_000_000
        time_us += int(rng.exponential(pace_s) * 1e6) if rng.random() < 0.9 else 0
        rows.append(
            {
                "event_id": f"{card}{i}",
                "card_id": card,
                "user_id": "u",
                "time_us": time_us,
                "amount": 1.0,
                "merchant_id": f"m{rng.integers(others)}",
                "device_id": f"d{rng.integers(others)}" if rng.random() < 0.7 else None,
            }
        )
    return rows


def cut(batch: EventBatch, rng: np.random.Generator) -> list[EventBatch]:
    """A batch in stretches of up to 200 rows."""
    edges = np.cumsum(rng.integers(1, 200, len(batch)))
    edges = [0, *edges[edges < len(batch)].tolist(), len(batch)]
    return [batch.take(np.arange(a, b)) for a, b in itertools.pairwise(edges)]


def values_of(engine: GroupEngine, batch: EventBatch) -> np.ndarray:
    part = split(CATALOG, {"payment": batch}, 1)[0]
    return engine.process(part)[0].parts["payment", "card"][1]


def keys_of(names: list[str | None]) -> list[int]:
    """What stands for others in the kernels, 0 for none."""
    keys = hash_strings(pl.Series(names, dtype=pl.String))
    return [0 if n is None else int(k) for n, k in zip(names, keys, strict=True)]


def column(values: np.ndarray, name: str) -> np.ndarray:
    return values[:, NAMES.index(name)]


@pytest.mark.parametrize("exact_max", [0, 150])
def test_samples_equal_their_naive_twin(rng: np.random.Generator, exact_max: int) -> None:
    """Without panes at every row; with them the counts of many events come to the same."""
    rows = payments(rng, 5_000)
    batch = make_batch("payment", rows, partitions=1)
    engine = GroupEngine(CATALOG, 0, distinct_max=BOUND, exact_max=exact_max)
    values = np.concatenate([values_of(engine, part) for part in cut(batch, rng)])
    if exact_max:
        plain = GroupEngine(CATALOG, 0, distinct_max=0, exact_max=exact_max)
        exact = np.concatenate([values_of(plain, part) for part in cut(batch, rng)])
        names = [name for name in NAMES if name.startswith("distinct_") and name[-1] == "0"]
        for name in names:
            assert np.mean(column(values, name)) == pytest.approx(
                np.mean(column(exact, name)), rel=0.15
            )
        return
    told, one_in = 0, 0
    twins = {
        "merchant": SampledPairs(list(WINDOWS_S), KNOWN_S, BOUND),
        "device": SampledPairs(list(WINDOWS_S), 3600, BOUND),
    }
    keys = {o: keys_of([row[f"{o}_id"] for row in rows]) for o in OTHERS}
    for i, row in enumerate(rows):
        highest = 0
        for other, twin in twins.items():
            counts, new, ever = twin.meet(row["time_us"], keys[other][i])
            found = [values[i, NAMES.index(f"distinct_{other}_{w}")] for w in WINDOWS_S]
            assert found == counts, (i, other)
            highest = max(highest, *(level for *_, level in twin.inside(3_600_000_000)))
            if other == "merchant":
                share = counts[1] / len(twin.inside(600_000_000))
                assert values[i, NAMES.index("distinct_share_merchant_600")] == min(share, 1.0), i
                first = values[i, NAMES.index("first_time_merchant")]
                assert first == new or (math.isnan(first) and math.isnan(new)), i
                assert values[i, NAMES.index("distinct_ever_merchant")] == ever, i
        told += highest > 0
        one_in = max(one_in, 2**highest)
    assert told == engine.estimated > 1_000
    assert one_in == engine.one_in_max >= 16
    firsts = column(values, "first_time_merchant")
    assert min(np.sum(firsts == 0), np.sum(firsts == 1), np.sum(np.isnan(firsts))) > 100


def test_an_entity_with_fewer_others_is_exact_and_nothing_is_told(rng: np.random.Generator) -> None:
    batch = {"payment": make_batch("payment", payments(rng, 2_000), partitions=1)}
    exact = OfflineEngine(CATALOG, 1, distinct_max=0)
    engine = OfflineEngine(CATALOG, 1, distinct_max=1_500)
    wanted = exact.process(batch)["payment"].values
    np.testing.assert_array_equal(engine.process(batch)["payment"].values, wanted)
    assert engine.engines[0].estimated == engine.engines[0].one_in_max == 0


def test_the_error_is_what_is_stated(rng: np.random.Generator) -> None:
    """Of 400 cards with 1,000 others each, in units of the stated standard error."""
    many, others = 400, 1_000
    rows = [
        {
            "event_id": f"{c}-{i}", "card_id": f"c{c}", "time_us": START_US + i * 1_000_000,
            "merchant_id": f"m{c}-{i}", "device_id": f"d{i % 30}",
        }
        for i in range(others)
        for c in range(many)
    ]  # fmt: skip
    engine = OfflineEngine(CATALOG, 3, late_s=0.0, distinct_max=BOUND)
    found = engine.process({"payment": make_batch("payment", rows, partitions=1)})["payment"]
    last = found.column("distinct_merchant_3600")[-many:]
    level = math.log2(max(one.one_in_max for one in engine.engines))
    assert level in (5, 6)
    assert np.mean(last) == pytest.approx(others, rel=0.03)
    error = np.std(last) / math.sqrt(others * (2**5 - 1))
    assert 0.8 < error < 1.5
    few = found.column("distinct_device_3600")[-many:]
    assert np.all(few == 30.0)


def test_an_entity_that_meets_very_many_takes_the_memory_of_its_sample() -> None:
    rows = [
        {"event_id": str(i), "card_id": "c", "time_us": START_US + i * 10_000, "device_id": f"d{i}"}
        for i in range(100_000)
    ]
    batch = make_batch("payment", rows, partitions=1)
    taken, counted = {}, {}
    for bound in (0, 1_000):
        engine = GroupEngine(CATALOG, 0, late_s=0.0, distinct_max=bound)
        for start in range(0, len(rows), 20_000):
            values = values_of(engine, batch.take(np.arange(start, start + 20_000)))
        taken[bound] = engine.memory_parts["card"]["pairs"]
        counted[bound] = column(values, "distinct_device_3600")[-1]
    assert taken[0] > 100_000 * 24 and taken[1_000] < 200_000
    assert counted[0] == 100_000 == pytest.approx(counted[1_000], rel=0.15)


@pytest.mark.parametrize("exact_max", [0, 150])
@pytest.mark.parametrize("chain", [False, True])
def test_a_restored_state_goes_on_bit_for_bit(
    rng: np.random.Generator, chain: bool, exact_max: int
) -> None:
    parts = cut(make_batch("payment", payments(rng, 4_000), partitions=1), rng)
    options = {"distinct_max": BOUND, "exact_max": exact_max}
    engine = GroupEngine(CATALOG, 0, **options)
    dumps = [engine.full()]
    expected = []
    for i, part in enumerate(parts):
        expected.append(values_of(engine, part))
        if i == len(parts) // 2:
            # Copied while rows go on, as the flow does.
            engine.begin(everything=not chain)
        if i == len(parts) // 2 + 3:
            dumps.append(join(engine.take()))
        elif chain and i < len(parts) // 2 and i % 3 == 0:
            dumps.append(engine.delta())
    after = parts[len(parts) // 2 + 1 :]
    base, deltas = (dumps[0], dumps[1:]) if chain else (dumps[-1], [])
    found = GroupEngine.restore(CATALOG, 0, base, deltas, **options)
    for part, wanted in zip(after, expected[-len(after) :], strict=True):
        np.testing.assert_array_equal(values_of(found, part), wanted)
    assert engine.estimated > found.estimated > 300


@pytest.mark.parametrize("exact_max", [0, 150])
@pytest.mark.parametrize("restart", [False, True])
def test_late_events_leave_the_state_of_the_stream_in_order(
    rng: np.random.Generator, exact_max: int, restart: bool
) -> None:
    """Also those that come from before a level rose, or fell, and after a restart since."""
    rows = payments(rng, 4_000)
    batch = make_batch("payment", rows, partitions=1)
    late_us = rng.random(len(rows)) * rng.choice([0.0, 590e6], len(rows))
    order = np.argsort(batch.time_us + late_us.astype(np.int64), kind="stable")
    options = {"late_s": 600.0, "distinct_max": BOUND, "exact_max": exact_max}
    engines = [GroupEngine(CATALOG, 0, **options) for _ in range(2)]
    undone = []
    for e, at in enumerate((np.arange(len(rows)), order)):
        clock_us = 0
        for number, start in enumerate(range(0, len(rows), 37)):
            part = batch.take(np.sort(at[start : start + 37]))
            clock_us = max(clock_us, int(part.time_us.max()))
            (ring,) = engines[e]._states["card"].rings
            before = len(ring.thinned)
            engines[e].process(split(CATALOG, {"payment": part}, 1, clock_us=clock_us)[0])
            undone.append(before - len(ring.thinned))
            if restart and e and number % 9 == 8:
                engines[e] = GroupEngine.restore(CATALOG, 0, engines[e].full(), [], **options)
    ordered, shuffled = engines
    assert shuffled.late > 500 and shuffled.late_beyond == 0
    assert min(undone) < 0 < max(undone)
    last_us = rows[-1]["time_us"] - START_US
    more = payments(rng, 2_000)
    for row in more:
        row["time_us"] += last_us + 601_000_000
        row["event_id"] = f"x{row['event_id']}"
    after = make_batch("payment", more, partitions=1)
    wanted = values_of(ordered, after)
    np.testing.assert_array_equal(values_of(shuffled, after), wanted)
    assert np.isnan(column(wanted, "first_time_merchant")).any()


def test_the_bound_may_change_between_two_starts(rng: np.random.Generator) -> None:
    """Without one, what is counted becomes exact as the window turns over; a lower one thins."""
    rows = payments(rng, 3_000)
    parts = cut(make_batch("payment", rows, partitions=1), rng)
    exact, engine = (GroupEngine(CATALOG, 0, distinct_max=bound) for bound in (0, BOUND))
    for part in parts:
        values_of(exact, part)
        values_of(engine, part)
    more = payments(rng, 3_000)
    for row in more:
        row["time_us"] += rows[-1]["time_us"] - START_US
    after = make_batch("payment", more, partitions=1)
    wanted = column(values_of(exact, after), "distinct_device_3600")
    freed = GroupEngine.restore(CATALOG, 0, engine.full(), [], distinct_max=0)
    found = column(values_of(freed, after), "distinct_device_3600")
    since = after.time_us > int(after.time_us[0]) + 3_600_000_000
    assert since.sum() > 500
    np.testing.assert_array_equal(found[since], wanted[since])
    lower = GroupEngine.restore(CATALOG, 0, exact.full(), [], distinct_max=10)
    values_of(lower, after)
    assert lower.one_in_max >= 16


def test_a_state_from_before_there_were_levels_is_refused() -> None:
    old = GroupEngine(CATALOG, 0).full()
    old["format"] = np.array([5])
    with pytest.raises(StateError, match=r"state of format 5, expected .*; start from empty"):
        GroupEngine.restore(CATALOG, 0, old, [])


def test_nobody_is_sampled_unless_a_bound_is_set() -> None:
    assert Settings.model_fields["distinct_exact_max"].default == 0
    rows = [
        {"event_id": str(i), "card_id": "c", "time_us": START_US + i * 1_000, "device_id": f"d{i}"}
        for i in range(12_000)
    ]
    engine = GroupEngine(CATALOG, 0)
    values = values_of(engine, make_batch("payment", rows, partitions=1))
    assert column(values, "distinct_device_60")[-1] == 12_000
    assert engine.estimated == 0


@pytest.mark.parametrize("options", [{}, {"distinct_max": BOUND}, {"exact_max": 150}])
def test_a_deep_copy_goes_on_as_the_engine_does(
    rng: np.random.Generator, options: dict[str, Any]
) -> None:
    """Also once the arena of either has grown."""
    rows = [row for c in range(12) for row in payments(rng, 400, f"c{c}")]
    rows.sort(key=lambda row: row["time_us"])
    first, *rest = cut(make_batch("payment", rows, partitions=1), rng)
    engine = GroupEngine(CATALOG, 0, late_s=0.0, **options)
    values_of(engine, first)
    copied = copy.deepcopy(engine, {id(CATALOG): CATALOG})
    (ring,) = copied._states["card"].rings
    before = len(ring._arena)
    for part in rest:
        np.testing.assert_array_equal(values_of(copied, part), values_of(engine, part))
        assert np.shares_memory(ring.arena_ints, ring._arena)
        assert np.shares_memory(ring.arena_reals, ring._arena)
    assert len(ring._arena) > before


def test_levels_go_over_into_a_catalogue_with_one_feature_more(rng: np.random.Generator) -> None:
    parts = cut(make_batch("payment", payments(rng, 3_000), partitions=1), rng)
    engine = GroupEngine(CATALOG, 0, distinct_max=BOUND)
    (ring,) = engine._states["card"].rings
    at = levels_at(*ring.ring.shape)
    while not (ring.ints[0, at : at + 2] & 63).all():
        values_of(engine, parts.pop(0))
    larger = Catalog([_feature("distinct", "user", 3600), *CATALOG.features("payment")])
    grown = GroupEngine.restore(larger, 0, engine.full(), [], distinct_max=BOUND)
    assert grown.empty == ("payment.distinct_user_3600",)
    names = larger.names("payment")
    places = [names.index(name) for name in NAMES]
    for part in parts:
        rows = split(larger, {"payment": part}, 1)[0]
        found = grown.process(rows)[0].parts["payment", "card"][1]
        np.testing.assert_array_equal(found[:, places], values_of(engine, part))


def _met(merchants: Iterable[int], time_us: int, card: str = "c") -> EventBatch:
    rows = [
        {
            "event_id": f"{card}{time_us}-{m}", "card_id": card, "time_us": time_us,
            "merchant_id": f"m{m}",
        }
        for m in merchants
    ]  # fmt: skip
    return make_batch("payment", rows, partitions=1)


def _live(engine: GroupEngine) -> set[int]:
    """Keys of the pairs that some row may ask for."""
    (ring,) = engine._states["card"].rings
    table = ring.pairs.table
    return set(table[(table[:, KEY] != 0) & (table[:, WHEN] >> 2 != LONG_AGO), KEY].tolist())


def test_pairs_that_were_let_go_do_not_come_back_with_a_restart() -> None:
    """Also where the table has grown since, and no delta has had them yet."""
    engine = GroupEngine(CATALOG, 0, late_s=0.0, distinct_max=BOUND)
    values_of(engine, _met(range(BOUND), START_US))
    base = engine.full()
    values_of(engine, _met(range(BOUND, 2 * BOUND), START_US + 1_000_000))
    (ring,) = engine._states["card"].rings
    places = len(ring.pairs.table)
    for card in range(30):
        values_of(engine, _met(range(BOUND), START_US + 2_000_000, f"d{card}"))
    assert len(ring.pairs.table) > places
    found = GroupEngine.restore(CATALOG, 0, base, [engine.delta()], late_s=0.0, distinct_max=BOUND)
    assert engine.estimated > 0 and _live(found) == _live(engine)


def test_who_has_been_silent_since_is_not_thinned() -> None:
    """What was too many has left the window when the next row comes."""
    engine = GroupEngine(CATALOG, 0, late_s=0.0, distinct_max=BOUND)
    values_of(engine, _met(range(BOUND + 1), START_US))
    values = values_of(engine, _met(range(BOUND), START_US + 7_200_000_000))
    assert np.all(column(values, "first_time_merchant") == 0.0)
    assert engine.estimated == engine.one_in_max == 0


def test_a_pane_gets_back_what_was_taken_off_it_whatever_the_level_is_by_then() -> None:
    """A row takes a pair off a pane by the level of that moment; the checkpoint's is another."""
    engine = GroupEngine(CATALOG, 0, late_s=600.0, distinct_max=BOUND, exact_max=20)
    for second in range(0, 1_210, 10):
        met = range(second, second + 10) if second < 1_200 else range(1_200)
        batch, clock_us = _met(met, START_US + 1_000_000 * second), START_US + 1_000_000 * second
        engine.process(split(CATALOG, {"payment": batch}, 1, clock_us=clock_us)[0])
    state_of = engine._states["card"]
    (ring,) = state_of.rings
    rows = state_of.late._rows
    levels = rows.take(np.arange(rows.first, rows.top))["notes"][:, 1] >> 2 & 63
    assert np.max(levels[levels < 63]) > 1
    row = ring.ints[0]
    assert row[PANE_TAIL] < row[PANE_HEAD]
    head = np.ones((1, 8 + len(state_of.plan.others)), np.int64)
    head[0, 2] = event_code("payment")
    before = np.full((1, 2 * len(OTHERS)), -1, np.int64)
    before[0, 0] = first_number(row, ring.longest, ring._shape, ring._panes) << 6 | 3
    counted = ring._panes.sum()
    ring.undo_panes(np.zeros(1, np.int64), head, notes_of(before))
    assert ring._panes.sum() - counted == 2**3
