"""Rows that late events have changed: what they were, what they would have been, what is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from dataflows import corrections as module
from dataflows.control.records import Control
from dataflows.corrections import Corrected, RecentRows
from features.batch import EventBatch, FeatureMatrix
from features.catalog import Catalog, catalog
from features.engine import Correction, GroupEngine, GroupFeatures, assemble, split
from features.events import event_type
from tests.streams import START_US, cut, stream

HOUR = 3_600_000_000
CONTROL = Control({}, {}, {})


@pytest.fixture(scope="module")
def cat() -> Catalog:
    return catalog()


class World:
    """One stretch of a stream, its features without a past (as given) and with one (as right)."""

    def __init__(self, cat: Catalog, seed: int = 5, rows: int = 100) -> None:
        self.cat = cat
        past, self.batches = cut(stream(seed, rows), [START_US + HOUR])
        fresh, known = GroupEngine(cat, 0), GroupEngine(cat, 0)
        known.process(split(cat, past, 1)[0])
        part = split(cat, self.batches, 1)[0]
        self.given, self.right = fresh.process(part)[0], known.process(part)[0]
        self.before = assemble(cat, self.batches, [self.given])
        self.after = assemble(cat, self.batches, [self.right])

    def corrections(self, round_: int, only: Iterable[int] | None = None) -> list[Correction]:
        """From what was given to what is right, all rows or some."""
        found = []
        for (event, entity), (rows, values) in self.right.parts.items():
            at = np.arange(len(rows)) if only is None else np.flatnonzero(np.isin(rows, list(only)))
            sequences = None
            if event in self.right.sequences and event_type(event).primary == entity:
                places, vectors = self.right.sequences[event]
                sequences = vectors[np.searchsorted(places, rows[at])]
            rounds = np.full(len(at), round_)
            found.append(Correction(event, entity, rounds, rows[at], values[at], sequences))
        return found

    def keep(
        self, recent: RecentRows, round_: int, clock_us: int, control: Control = CONTROL
    ) -> None:
        recent.keep(round_, clock_us, self.batches, self.before, [self.given], control)

    @property
    def rows(self) -> int:
        return sum(len(b) for b in self.batches.values())


@pytest.fixture(scope="module")
def world(cat: Catalog) -> World:
    return World(cat)


def differing(one: FeatureMatrix, other: FeatureMatrix) -> list[int]:
    """Rows that have not the very same features, the slow way."""
    found = []
    for row in range(len(one)):
        same = one.values[row].tobytes() == other.values[row].tobytes()
        if one.sequence is not None and other.sequence is not None:
            same &= one.sequence[row].tobytes() == other.sequence[row].tobytes()
        if not same:
            found.append(row)
    return found


def by_name(found: Iterable[Corrected]) -> dict[str, Corrected]:
    return {one.event_type: one for one in found}


def test_corrected_rows_are_those_that_changed_as_they_were_and_as_they_are(world: World) -> None:
    recent = RecentRows(world.cat, HOUR, 10_000)
    world.keep(recent, 3, START_US)
    world.keep(recent, 4, START_US)
    found, unchecked = recent.check(world.corrections(3))
    assert unchecked == 0 and {one.event_type for one in found} == set(world.before)
    for one in found:
        rows = differing(world.before[one.event_type], world.after[one.event_type])
        batch: EventBatch = world.batches[one.event_type]
        assert one.frame.equals(batch.frame[rows])
        assert one.rounds.tolist() == [3] * len(rows) and one.control is CONTROL
        for got, wanted in (
            (one.before, world.before[one.event_type]), (one.after, world.after[one.event_type]),
        ):  # fmt: skip
            assert_array_equal(got.values, wanted.values[rows])
            assert_array_equal(
                got.sequence, None if wanted.sequence is None else wanted.sequence[rows]
            )


def test_a_row_changed_again_is_held_against_what_it_was_after_the_first_change(
    world: World,
) -> None:
    recent = kept(world)
    first = by_name(recent.check(world.corrections(3, only=range(5)))[0])
    assert recent.check(world.corrections(3, only=range(5))) == ((), 0), "nothing new in it"
    rest = by_name(recent.check(world.corrections(3))[0])
    for name, matrix in world.before.items():
        ids = world.batches[name].frame["event_id"].to_list()
        changed = [ids[row] for row in differing(matrix, world.after[name])]
        told = [part[name].frame["event_id"].to_list() for part in (first, rest) if name in part]
        assert [i for part in told for i in part] == changed
    back = [
        replace(change, values=world.given.parts[change.event_type, change.entity][1])
        for change in world.corrections(3)
    ]
    for name, one in by_name(recent.check(back)[0]).items():
        ids = world.batches[name].frame["event_id"].to_list()
        rows = [ids.index(i) for i in one.frame["event_id"]]
        assert_array_equal(one.before.values, world.after[name].values[rows])
        assert_array_equal(one.after.values, world.before[name].values[rows])


def kept(world: World) -> RecentRows:
    """A lane that has the world's rows in round 3."""
    recent = RecentRows(world.cat, HOUR, 10_000)
    world.keep(recent, 3, START_US)
    return recent


def test_rows_that_are_no_longer_kept_are_counted(world: World) -> None:
    recent = RecentRows(world.cat, HOUR, 10_000)
    world.keep(recent, 3, START_US)
    distinct = sum(len(matrix) for matrix in world.before.values())
    assert recent.check(world.corrections(2)) == ((), distinct)
    found, unchecked = recent.check([*world.corrections(2), *world.corrections(3)])
    assert unchecked == distinct and found
    off = RecentRows(world.cat, 0, 10_000)
    none = RecentRows(world.cat, HOUR, 0)
    for one in (off, none):
        world.keep(one, 3, START_US)
        assert len(one) == 0 and one.check(world.corrections(3)) == ((), distinct)


def test_rounds_are_let_go_by_the_clock_and_by_their_rows(world: World) -> None:
    recent = RecentRows(world.cat, HOUR, 10_000)
    for round_ in range(1, 6):
        world.keep(recent, round_, START_US + round_ * HOUR // 2)
    assert len(recent) == 3 * world.rows
    recent.keep(6, START_US + 10 * HOUR, {}, {}, [], CONTROL)
    assert len(recent) == 0
    small = RecentRows(world.cat, HOUR, 2 * world.rows + 1)
    for round_ in range(1, 6):
        world.keep(small, round_, START_US)
        assert len(small) == min(round_, 2) * world.rows
    tiny = RecentRows(world.cat, HOUR, 1)
    world.keep(tiny, 1, START_US)
    assert len(tiny) == world.rows, "the newest round is kept whatever its size"


def test_a_flood_of_corrections_is_cut_at_the_newest_rows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKED_ROUND_MAX", 7)
    recent = RecentRows(world.cat, HOUR, 10_000)
    for round_ in (3, 4):
        world.keep(recent, round_, START_US)
    found, unchecked = recent.check(world.corrections(3) + world.corrections(4))
    distinct = sum(len(matrix) for matrix in world.before.values())
    assert unchecked == 2 * distinct - 7
    assert {r for one in found for r in one.rounds.tolist()} == {4}


def test_rows_are_told_apart_by_what_was_in_force_when_they_were_scored(world: World) -> None:
    recent = RecentRows(world.cat, HOUR, 10_000)
    later = Control({("card_fraud", "ensemble"): 0.5}, {}, {})
    world.keep(recent, 3, START_US)
    world.keep(recent, 4, START_US, later)
    world.keep(recent, 5, START_US, CONTROL)
    all_of = [c for round_ in (5, 3, 4) for c in world.corrections(round_)]
    found, unchecked = recent.check(all_of)
    told = {(one.event_type, tuple(sorted(set(one.rounds.tolist())))): one for one in found}
    assert unchecked == 0
    for (_, rounds), one in told.items():
        assert rounds in ((3, 5), (4,))
        assert one.control is (later if rounds == (4,) else CONTROL)
        assert len(one.before) == len(one.after) == one.frame.height == len(one.rounds)


def test_nothing_to_correct_is_nothing(world: World) -> None:
    recent = kept(world)
    assert recent.check([]) == ((), 0)
    assert recent.check(GroupFeatures(0).corrections) == ((), 0)
    assert recent.check(world.corrections(3, only=())) == ((), 0)
