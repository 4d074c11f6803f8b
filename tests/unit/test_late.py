"""Rows that come late are put in their place, and the rows after them are corrected."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import late, pairs, shelf, state
from features.batch import EventBatch, FeatureMatrix
from features.catalog import Catalog, catalog
from features.clock import APART_US, LaneClock
from features.engine import (
    Correction,
    GroupEngine,
    OfflineEngine,
    amend,
    assemble,
    merge,
    split,
)
from features.events import event_code as event_type_code
from features.events import event_type
from features.labels import Label
from features.notes import UNSEEN
from features.snapshots import join
from features.windows import NOTED
from tests.flows import Flow, Round
from tests.streams import START_US, cut, make_batch, stream

Int64 = npt.NDArray[np.int64]
Batches = dict[str, EventBatch]
Matrices = dict[str, FeatureMatrix]

LATE_S = 1_800.0
"""Bound of most tests: the streams have an event each half minute or so."""


def rounds_of(batches: Batches, seed: int, late_s: float, size: int) -> list[Batches]:
    """The stream's events as they come, each at most `late_s` late, in rounds of about `size`."""
    rng = np.random.default_rng(seed)
    rows = [(name, int(t), i) for name, b in batches.items() for i, t in enumerate(b.time_us)]
    late_us = rng.random(len(rows)) * rng.choice([0.0, 0.1, 1.0], len(rows)) * (1e6 * late_s - 1.0)
    order = np.argsort(np.array([t for _, t, _ in rows]) + late_us.astype(np.int64), kind="stable")
    parts, done = [], 0
    while done < len(order):
        many = 1 + int(rng.poisson(size))
        taken: dict[str, list[int]] = {}
        for at in order[done : done + many]:
            taken.setdefault(rows[at][0], []).append(rows[at][2])
        done += many
        # Rows stay in the order of the stream, as a lane sorts its round.
        parts.append(
            {n: batches[n].take(np.array(sorted(taken[n]))) for n in batches if n in taken}
        )
    return parts


class Stream:
    """Engines of all groups, fed round by round; keeps what each round gave and amends it."""

    def __init__(self, cat: Catalog, groups: int, late_s: float = LATE_S) -> None:
        self.cat, self.late_s, self.clock_us = cat, late_s, 0
        self.engines = [GroupEngine(cat, group, late_s) for group in range(groups)]
        self.batches: list[Batches] = []
        self.given: list[Matrices] = []
        self.corrected = 0

    def feed(self, batches: Batches, labels: tuple[Label, ...] = ()) -> Matrices:
        """Features of a round as it gives them; those of earlier rounds are amended."""
        self.clock_us = max(self.clock_us, *(int(b.time_us[-1]) for b in batches.values()))
        parts = split(
            self.cat, batches, len(self.engines), round_=len(self.given), clock_us=self.clock_us
        )
        parts = [replace(part, labels=labels) for part in parts]
        found = [e.process(part)[0] for e, part in zip(self.engines, parts, strict=True)]
        given = assemble(self.cat, batches, found)
        corrections = [c for f in found for c in f.corrections]
        for round_ in sorted({int(r) for c in corrections for r in c.rounds}):
            self.given[round_] = {
                n: amend(self.cat, m, round_, corrections) for n, m in self.given[round_].items()
            }
        self.corrected += sum(len(c.rows) for c in corrections)
        self.batches.append(batches)
        self.given.append(given)
        return given

    def rows(self) -> dict[tuple[str, int], tuple[Any, Any]]:
        """(event type, offset) -> values and sequence, as amended."""
        return {
            (name, int(offset)): (matrix.values[i], matrix.sequence[i])
            for batches, given in zip(self.batches, self.given, strict=True)
            for name, matrix in given.items()
            for i, offset in enumerate(batches[name].offset)
            if matrix.sequence is not None
        }


def assert_same_rows(found: Stream, expected: Stream) -> None:
    """Bit for bit, every row, sequences too."""
    a, b = found.rows(), expected.rows()
    assert a.keys() == b.keys()
    for key, (values, sequence) in b.items():
        np.testing.assert_array_equal(a[key][0], values, err_msg=str(key))
        np.testing.assert_array_equal(a[key][1], sequence, err_msg=str(key))


def assert_same_features(found: Matrices, expected: Matrices) -> None:
    """Bit for bit, sequences too."""
    assert found.keys() == expected.keys()
    for name, matrix in expected.items():
        np.testing.assert_array_equal(found[name].values, matrix.values)
        np.testing.assert_array_equal(found[name].sequence, matrix.sequence)


@cache
def streams(number: int) -> tuple[Batches, Batches]:
    """A stream of three hours, and what comes a bound after it."""
    before, after = cut(stream(number, 90), [START_US + 7_200_000_000])
    return before, after


@pytest.fixture(scope="module")
def cat() -> Catalog:
    return catalog()


def test_amended_rows_have_the_corrected_views_and_what_is_derived_of_them(
    cat: Catalog, seed: int
) -> None:
    before, batches = cut(stream(seed, 100), [START_US + 3_600_000_000])
    fresh, known = GroupEngine(cat, 0), GroupEngine(cat, 0)
    known.process(split(cat, before, 1)[0])
    rows = split(cat, batches, 1)[0]
    given, right = fresh.process(rows)[0], known.process(rows)[0]
    corrections = [
        Correction(
            event,
            entity,
            np.full(len(at), 7),
            at,
            values,
            right.sequences[event][1] if entity == event_type(event).primary else None,
        )
        for (event, entity), (at, values) in right.parts.items()
    ]
    expected = assemble(cat, batches, [right])
    for name, matrix in assemble(cat, batches, [given]).items():
        assert not np.array_equal(matrix.values, expected[name].values, equal_nan=True)
        same = amend(cat, matrix, 8, corrections)
        np.testing.assert_array_equal(same.values, matrix.values)
        found = amend(cat, matrix, 7, corrections)
        np.testing.assert_array_equal(found.values, expected[name].values)
        np.testing.assert_array_equal(found.sequence, expected[name].sequence)


@settings(max_examples=8)
@given(
    number=st.integers(0, 3),
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1, 3, 10, 40]),
    groups=st.sampled_from([1, 3]),
    late_s=st.sampled_from([120.0, LATE_S]),
    every=st.sampled_from([2, 5, late.EVERY]),
)
def test_a_stream_shuffled_within_the_bound_is_the_sorted_stream(
    cat: Catalog, number: int, seed: int, size: int, groups: int, late_s: float, every: int
) -> None:
    before, after = streams(number)
    found, expected = Stream(cat, groups, late_s), Stream(cat, 1, late_s)
    for part in (before, after):
        expected.feed(part)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(late, "EVERY", every)
        for part in rounds_of(before, seed, late_s, size):
            found.feed(part)
        assert_same_features(found.feed(after), expected.given[1])
    assert found.corrected > 0
    assert sum(engine.late_beyond for engine in found.engines) == 0
    assert_same_rows(found, expected)


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    number=st.integers(0, 3),
    seed=st.integers(0, 10_000),
    plan=st.lists(st.sampled_from(["", "", "", "delta", "full", "restart"]), min_size=4),
)
def test_a_restart_between_a_row_and_a_late_one_before_it_changes_nothing(
    cat: Catalog, monkeypatch: pytest.MonkeyPatch, number: int, seed: int, plan: list[str]
) -> None:
    monkeypatch.setattr(state, "SLICE_MIN", 1)
    monkeypatch.setattr(shelf, "SLICE_MIN", 3)
    before, after = streams(number)
    whole, cut_off = Stream(cat, 2), Stream(cat, 2)
    saved: list[list[Any]] = [[engine.full()] for engine in cut_off.engines]
    for i, part in enumerate([*rounds_of(before, seed, LATE_S, 8), after]):
        step = plan[i % len(plan)]
        for group, engine in enumerate(cut_off.engines):
            if step == "restart":
                saved[group].append(engine.delta())
                base, *deltas = pickle.loads(pickle.dumps(saved[group]))
                cut_off.engines[group] = GroupEngine.restore(cat, group, base, deltas, LATE_S)
            elif step:
                engine.begin(everything=step == "full")
                engine.proceed(5)
        assert_same_features(cut_off.feed(part), whole.feed(part))
        for group, engine in enumerate(cut_off.engines):
            if step in ("full", "delta"):
                parts = join(engine.take())
                saved[group] = [parts] if step == "full" else [*saved[group], parts]
    assert whole.corrected == cut_off.corrected > 0
    assert_same_rows(cut_off, whole)


def as_before(engine: GroupEngine, dump: dict[str, Any]) -> dict[str, Any]:
    """A snapshot as it was before 2026-11-30: words of 64 bits for flags, links and notes."""
    found = dict(dump)
    for entity, one in engine._states.items():
        row = f"{entity}.late.row."
        meta, notes = dump[f"{row}meta"].astype(np.int64), found.pop(f"{row}notes").astype(np.int64)
        code, lane, flags = meta[:, 1] & 255, meta[:, 1] >> 8, meta[:, 6]
        more = meta[:, 7] << 31 if meta.shape[1] > 7 else 0
        flags = (flags & (1 << 31) - 1) | more | np.where(flags < 0, -(1 << 63), 0)
        before = np.where(meta[:, 5] == 0, 0, dump[f"{row}number"] - meta[:, 5])
        wide = [*dump[f"{row}wide"].T, flags, before]
        found[f"{row}wide"] = np.stack(wide, axis=1)
        kept = (meta[:, 0], code, lane, meta[:, 2], meta[:, 3], meta[:, 4])
        found[f"{row}meta"] = np.stack(kept, axis=1).astype(np.int32)
        for i, ring in enumerate(one.rings):
            first, many = int(ring.book[NOTED]), len(ring.ring.others)
            low, middle, last = notes[:, first : first + 3 * many].reshape(len(notes), many, 3).T
            level, never = middle >> 2 & 63, (middle >> 2 & 63) == 63
            seq = np.where(never, np.where(low == 1, UNSEEN, -1), low << 6 | level)
            last = np.where(never, -(1 << 61), (middle >> 8 << 32 | last) << 8 >> 8)
            pairs = np.stack([seq, last]).T.reshape(len(notes), 2 * many)
            # What was not written by a row is what was left there.
            pairs[~ring.ring.feeds[code]] = 77
            found[f"{row}pairs{i}"] = pairs
    return found


def test_a_log_of_an_older_release_goes_on_bit_for_bit(cat: Catalog) -> None:
    before, after = streams(1)
    parts = [*rounds_of(before, 3, LATE_S, 8), after]
    whole, restored = Stream(cat, 2), Stream(cat, 2)
    for i, part in enumerate(parts):
        if i == len(parts) // 2:
            for group, engine in enumerate(restored.engines):
                old = as_before(engine, engine.full())
                assert "card.late.row.notes" not in old
                restored.engines[group] = GroupEngine.restore(cat, group, old, [], LATE_S)
        assert_same_features(restored.feed(part), whole.feed(part))
    assert whole.corrected == restored.corrected > 0
    assert_same_rows(restored, whole)


def test_rows_later_than_the_bound_go_behind_the_oldest_checkpoint_and_are_counted(
    cat: Catalog, seed: int
) -> None:
    before, after = streams(0)
    found = Stream(cat, 1, late_s=60.0)
    for part in (after, before):
        found.feed(part)
    (engine,) = found.engines
    assert 0 < engine.late_beyond <= engine.late


def few() -> Catalog:
    """Few features of cards, quickly computed; they show any row that is out of its place."""
    ops = ("count", "ever", "since", "usual_count", "first_time")
    all_of = catalog().features("payment")
    return Catalog(tuple(f for f in all_of if f.entity == "card" and f.op in ops))


LAG_S = 900.0
"""By how much the events below are behind the wall clock when they come."""


def backlog(
    n: int, off_s: float, share: float, places: int, rng: np.random.Generator
) -> tuple[EventBatch, Int64, Int64]:
    """Payments of 20 cards, two a second, and of each the moment at which it comes.

    Of a `share` the time is off by so much, ahead or behind; they are a partition of their own
    where there are two. The rows are sorted by their times; the third is their order of coming.
    """
    true_us = np.sort(rng.integers(0, n * 500_000, n))
    off = rng.random(n) < share
    off[:100] = False
    times = START_US + true_us + np.where(off, round(off_s * 1e6), 0)
    rows = [
        {"event_id": f"e{i}", "time_us": int(times[i]), "card_id": f"c{rng.integers(20)}",
         "merchant_id": f"m{rng.integers(3)}", "amount": 1.0}
        for i in range(n)
    ]  # fmt: skip
    batch = make_batch("payment", rows, partitions=1)
    number = np.array([int(name[1:]) for name in batch.frame["event_id"]])
    partition = (off[number] & (places > 1)).astype(np.int32)
    batch = replace(batch, partition=partition)
    return batch, START_US + true_us[number] + round(LAG_S * 1e6), np.argsort(number)


def live(batch: EventBatch, moments: Int64, come: Int64) -> Flow:
    """Those events as a lane of Kafka lets them through, 50 a round: the clock refuses nothing."""
    clock = LaneClock(60_000_000, 60_000_000, by_partition=True)
    flow = Flow(few(), late_s=60.0, lane_clock=clock)
    for first in range(0, len(come), 50):
        rows = np.sort(come[first : first + 50])
        flow.feed({"payment": batch.take(rows)}, cut_us=int(moments[rows].max()))
    return flow


@pytest.mark.parametrize(
    ("off_s", "places"), [(50.0, 1), (300.0, 1), (890.0, 1), (-50.0, 2), (-150.0, 2), (-300.0, 2)]
)
def test_who_is_ahead_of_the_clock_or_in_a_partition_behind_it_makes_nobody_wrong(
    rng: np.random.Generator, off_s: float, places: int
) -> None:
    batch, moments, come = backlog(2_000, off_s, 0.1, places, rng)
    found = live(batch, moments, come)
    whole = Flow(found.cat)
    whole.feed({"payment": batch})
    assert found.corrected > 100
    assert sum(engine.late_beyond for engine in found.engines) == 0
    for key, values in whole.values.items():
        np.testing.assert_array_equal(found.values[key], values, err_msg=str(key))


def test_a_row_from_the_day_after_keeps_the_log_no_longer_than_is_waited_for(
    rng: np.random.Generator,
) -> None:
    batch, moments, come = backlog(6_000, 0.0, 0.0, 1, rng)
    times = batch.frame["time_us"].to_numpy().copy()
    times[500] += 86_400_000_000
    batch = replace(batch, frame=batch.frame.with_columns(time_us=times))
    flow = Flow(few(), late_s=60.0)
    kept = []
    for first in range(0, len(come), 50):
        rows = come[first : first + 50]
        rows = rows[np.argsort(times[rows], kind="stable")]
        clock_us = int(moments[rows].max()) - round(LAG_S * 1e6)
        flow.rounds.append(Round({"payment": batch.take(rows)}, (), clock_us, clock_us))
        flow._pass(len(flow.rounds) - 1)
        (engine,) = flow.engines
        log = engine._states["card"].late
        kept.append(log.top - log._rows.first)
    waited_s = APART_US / 1e6 + 4 * 60
    assert 1_000 < max(kept) < 2 * waited_s, "two rows a second"
    assert sum(engine.late_beyond for engine in flow.engines) > 0, (
        "its card has not got what it had"
    )


@pytest.mark.parametrize("restart", [False, True])
def test_a_late_row_that_would_have_kept_its_entity_known_is_counted(restart: bool) -> None:
    minutes = [0, 1, 40, 61.5, 63]  # the third is late: without it there is more than an hour
    rows = [
        {"event_id": f"e{i}", "time_us": START_US + round(m * 6e7), "card_id": "c0",
         "merchant_id": f"m{i % 2}", "amount": 10.0}
        for i, m in enumerate(minutes)
    ]  # fmt: skip
    batch = make_batch("payment", rows, partitions=1)
    in_time, late_ones = ([0, 1, 2, 3, 4], [0, 1, 3, 2, 4])
    counted = []
    for come in (in_time, late_ones):
        flow = Flow(few(), late_s=1_800.0, ttl_h={"card": 1.0})
        for row in come:
            if restart:
                flow.begin(everything=False)
                flow.take()
                flow.restart()
            flow.feed({"payment": batch.take(np.array([row]))})
        (engine,) = flow.engines
        counted.append((engine.late, engine.late_forgotten))
    assert counted == [(0, 0), (1, 1)]


def test_going_back_forgets_no_verdict(cat: Catalog, seed: int) -> None:
    before, after = streams(1)
    rounds = rounds_of(before, seed, LATE_S, 8)
    rows = split(cat, before, 1)[0]
    labels = tuple(
        Label(int(row[2]), i, int(row[1]), bool(i % 3), ((entity, int(row[0])),))
        for entity in ("merchant", "device", "ip")
        for i, row in enumerate(rows.heads[entity][:12])
    )
    found, expected = Stream(cat, 2), Stream(cat, 1)
    expected.feed(before)
    for i, part in enumerate(rounds):
        found.feed(part, labels if i == len(rounds) // 2 else ())
    assert_same_features(found.feed(after), expected.feed(after, labels))
    assert found.corrected > 0


@settings(max_examples=5)
@given(edges=st.lists(st.integers(0, 7_200), max_size=6), number=st.integers(0, 3))
def test_a_stream_in_order_cut_anywhere_corrects_nothing(
    cat: Catalog, edges: list[int], number: int
) -> None:
    before, _ = streams(number)
    whole, parts = OfflineEngine(cat, 1).process(before), Stream(cat, 3, late_s=60.0)
    for part in cut(before, [START_US + 1_000_000 * s for s in edges]):
        if part:
            parts.feed(part)
    assert parts.corrected == sum(engine.late for engine in parts.engines) == 0
    for name, matrix in whole.items():
        found = np.concatenate([given[name].values for given in parts.given if name in given])
        np.testing.assert_array_equal(found, matrix.values)


def test_lanes_hear_of_corrections_of_their_own_rows(cat: Catalog, seed: int) -> None:
    """An entity with hundreds of rows in two lanes; the late ones come by the second."""
    rows = [
        {
            "event_id": f"e{i}",
            "time_us": START_US + 100_000 * i,
            "card_id": "c0",
            "merchant_id": f"m{i % 3}",
            "amount": float(i % 17),
        }
        for i in range(600)
    ]
    batch = make_batch("payment", rows, partitions=1)
    late_rows = np.arange(250, 260)
    early_rows = np.setdiff1d(np.arange(600), late_rows)
    engine, clock_us = GroupEngine(cat, 0), int(batch.time_us[-1])
    lanes = {0: batch.take(early_rows[::2]), 1: batch.take(early_rows[1::2])}
    parts = [
        split(cat, {"payment": b}, 1, lane, 0, clock_us)[0] for lane, b in sorted(lanes.items())
    ]
    given = engine.process(merge(parts))
    late_batch = batch.take(late_rows)
    result = engine.process(split(cat, {"payment": late_batch}, 1, 1, 1, clock_us)[0])
    whole = OfflineEngine(cat, 1).process({"payment": batch})["payment"].values
    for lane, early in lanes.items():
        matrix = assemble(cat, {"payment": early}, [given[lane]])["payment"]
        amended = amend(cat, matrix, 0, result[lane].corrections)
        np.testing.assert_array_equal(amended.values, whole[early.offset])
        first = min(int(c.rows.min()) for c in result[lane].corrections)
        assert early.time_us[first] > late_batch.time_us[0]
    new = assemble(cat, {"payment": late_batch}, [result[1]])["payment"]
    np.testing.assert_array_equal(new.values, whole[late_rows])
    assert engine.late_beyond == 0


def test_a_copy_goes_on_by_itself(cat: Catalog, seed: int) -> None:
    batches = stream(seed, 300)
    rows = rounds_of(batches, seed, LATE_S, 30)
    half = len(rows) // 2
    whole, copied = Stream(cat, 1), Stream(cat, 1)
    for part in rows[:half]:
        whole.feed(part)
        copied.feed(part)
    before = copy.deepcopy(copied)
    for part in rows[half:]:
        before.feed(part)  # the copy: nothing of it shows in the one it was taken of
    for part in rows[half:]:
        whole.feed(part)
        copied.feed(part)
    assert whole.corrected == copied.corrected == before.corrected > 0
    assert_same_rows(copied, whole)
    assert_same_rows(before, whole)


def test_a_pair_is_kept_for_rows_as_late_as_are_accepted(cat: Catalog) -> None:
    """The table of pairs grows hours before the late row comes that meets an old pair again."""
    late_s, hour_us = 21_600.0, 3_600_000_000
    distinct = Catalog(
        tuple(f for f in cat.features("payment") if f.entity == "card" and f.op == "distinct")
    )
    rows = [
        {"event_id": f"e{i}", "time_us": START_US + at_us, "card_id": card, "merchant_id": merchant}
        for i, (at_us, card, merchant) in enumerate(
            [
                (0, "c", "m0"),
                (60_000_000, "c", "m1"),
                (600_000_000, "c", "m0"),
                *((5 * hour_us + 1_000_000 * i, f"c{i}", f"m{i}") for i in range(1_500)),
            ]
        )
    ]
    batch = make_batch("payment", rows, partitions=1)
    found, expected = Stream(distinct, 1, late_s), Stream(distinct, 1, late_s)
    expected.feed({"payment": batch})
    for part in (np.arange(2), np.arange(3, len(rows)), np.array([2])):
        found.feed({"payment": batch.take(part)})
    last, whole = found.given[-1]["payment"].values, expected.given[0]["payment"].values
    np.testing.assert_array_equal(last, whole[2:3])


def test_when_the_table_of_pairs_was_full_shows_in_no_row_however_late(
    cat: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is too late, partitions are read hours apart; a restart makes other tables."""
    hour_us = 3_600_000_000
    distinct = Catalog(tuple(f for f in cat.features("payment") if f.op == "distinct"))
    ahead = [(5 * hour_us + 1_000_000 * i, f"c{i}", f"m{i}") for i in range(1_500)]
    behind = [(60_000_000 * i, "c", f"m{i % 3}") for i in range(100)]
    rows = [
        {"event_id": f"e{i}", "time_us": START_US + at_us, "card_id": card, "merchant_id": merchant}
        for i, (at_us, card, merchant) in enumerate([*behind, *ahead])
    ]
    batch = make_batch("payment", rows, partitions=1)
    order = np.r_[np.arange(50), np.arange(100, len(rows)), np.arange(50, 100)]
    found = []
    for places in (1 << 10, 1 << 20):
        monkeypatch.setattr(pairs, "PAIRS_MIN", places)
        flow = Stream(distinct, 1, 0.0)
        for part in np.array_split(order, 40):
            flow.feed({"payment": batch.take(part)})
        found.append(flow)
        grown = [len(r.pairs.table) > places for r in flow.engines[0]._states["card"].rings]
        assert any(grown) == (places == 1 << 10)
    values = [np.concatenate([m["payment"].values for m in flow.given]) for flow in found]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("behind_min", [14, 30, 200])
def test_when_the_table_of_pairs_was_full_shows_in_no_row_put_in_its_place(
    cat: Catalog, monkeypatch: pytest.MonkeyPatch, behind_min: int
) -> None:
    """A partition is far behind another: late rows of its entity meet pairs of an hour before."""
    minute_us = 60_000_000
    distinct = Catalog(tuple(f for f in cat.features("payment") if f.op == "distinct"))
    ahead_us = (60 + behind_min) * minute_us
    before = [(i * minute_us, "c", f"m{i}") for i in range(60)]
    ahead = [(ahead_us + 1_000 * i, f"c{i}" if i else "c", f"q{i}") for i in range(1_500)]
    late = [(60 * minute_us + 1_000_000 * i, "c", f"m{i}") for i in range(34, 42)]
    found = []
    for places in (1 << 10, 1 << 20):
        monkeypatch.setattr(pairs, "PAIRS_MIN", places)
        engine = GroupEngine(distinct, 0, 60.0)
        for number, part in enumerate([*np.array_split(before, 12), *np.array_split(ahead, 15),
                                       np.array(late)]):  # fmt: skip
            rows = [
                {"event_id": f"e{number}-{i}", "time_us": START_US + int(at_us), "card_id": card,
                 "merchant_id": merchant}
                for i, (at_us, card, merchant) in enumerate(part.tolist())
            ]  # fmt: skip
            batches = {"payment": make_batch("payment", rows, partitions=1)}
            clock_us = START_US + max(int(part[-1][0]), ahead_us * (number >= 12))
            due_us = START_US + min(int(part[-1][0]), 60 * minute_us)
            sent = split(distinct, batches, 1, 0, number, clock_us, None, due_us)[0]
            given = assemble(distinct, batches, [engine.process(sent)[0]])["payment"]
        found.append(given.values)
        assert engine._states["card"].late.placed == len(late)
    np.testing.assert_array_equal(*found)


def in_time_and_late(
    cat: Catalog, batch: EventBatch, late_row: int, cuts: tuple[int, int], label: Label
) -> tuple[Stream, Stream]:
    """A stream in order, and one whose late row comes after a label; three rounds each, the label
    in the second."""
    name, n, (first, second) = batch.event_type, len(batch), cuts
    found, expected = Stream(cat, 2, 3 * 86_400.0), Stream(cat, 1, 3 * 86_400.0)
    rounds = [np.arange(first), np.arange(first, second), np.arange(second, n)]
    for i, rows in enumerate(rounds):
        expected.feed({name: batch.take(rows)}, (label,) if i == 1 else ())
    rounds[0] = np.delete(rounds[0], late_row)
    rounds[2] = np.insert(rounds[2], 0, late_row)
    for i, rows in enumerate(rounds):
        found.feed({name: batch.take(rows)}, (label,) if i == 1 else ())
    assert found.corrected > 0
    return found, expected


def test_a_corrected_row_does_not_hear_of_frauds_told_after_its_round(cat: Catalog) -> None:
    rows = [
        {"event_id": f"p{i}", "time_us": START_US + 10_000_000 * i, "card_id": "c1",
         "merchant_id": "m1", "amount": float(1 + i % 7)}
        for i in range(40)
    ]  # fmt: skip
    batch = make_batch("payment", rows)
    heads = split(cat, {"payment": batch}, 1)[0].heads
    label = Label(
        event_type_code("payment"), 1, int(batch.time_us[3]), True,
        tuple((entity, int(heads[entity][0, 0])) for entity in ("card", "merchant")),
    )  # fmt: skip
    found, expected = in_time_and_late(cat, batch, 10, (20, 30), label)
    known = cat.names("payment").index("merchant_frauds_30d")
    a, b = found.rows(), expected.rows()
    assert [b["payment", i][0][known] for i in (19, 20)] == [0.0, 1.0], "the label is heard of"
    late_row = a.pop(("payment", 10))
    assert late_row[0][known] == 1.0, "what came late was scored after the label"
    for key, (values, sequence) in a.items():
        np.testing.assert_array_equal(values, b[key][0], err_msg=str(key))
        np.testing.assert_array_equal(sequence, b[key][1], err_msg=str(key))


@pytest.mark.parametrize("restart", [False, True])
def test_what_a_verdict_made_usual_is_not_so_before_it(
    cat: Catalog, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    n = 340
    values = np.where(np.arange(n) < 300, 10.0, 16.0) + rng.normal(size=n)
    rows = [
        {"event_id": f"s{i}", "time_us": START_US + 7_200_000_000 * i, "host": "h1",
         "service": "web", "metric": "cpu", "value": float(values[i])}
        for i in range(n)
    ]  # fmt: skip
    batch = make_batch("metric", rows)
    key = int(split(cat, {"metric": batch}, 1)[0].heads["series"][0, 0])
    label = Label(
        event_type_code("metric"), 1, int(batch.time_us[325]), False, (("series", key),), "series"
    )
    if restart:
        monkeypatch.setattr(Stream, "feed", feed_after_restart(Stream.feed))
    monkeypatch.setattr(late, "EVERY", 7)
    found, expected = in_time_and_late(cat, batch, 320, (330, 335), label)
    creep = cat.names("metric").index("series_creep")
    told = [expected.rows()["metric", i][0][creep] for i in (329, 330)]
    assert told[0] > 2.0 > abs(told[1]), "the verdict is heard of"
    assert_same_rows(found, expected)


def feed_after_restart(feed: Any) -> Any:
    """`Stream.feed` of engines that have just been restored."""

    def restarted(stream: Stream, *given: Any) -> Matrices:
        for group, engine in enumerate(stream.engines):
            base = pickle.loads(pickle.dumps(engine.full()))
            stream.engines[group] = GroupEngine.restore(stream.cat, group, base, [], stream.late_s)
        return feed(stream, *given)

    return restarted
