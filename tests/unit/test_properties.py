"""Features, absences and state are functions of the events alone: nothing else ever shows.

Not how the stream is cut, nor the number of groups and lanes, nor where it was stopped and begun
again, nor that rows came late within the bound or twice. Small worlds, so that entities, times and
values collide often, with few pairs kept of an entity, and its events in panes or not; several
things at once, as they come in life.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import chain, cycle, repeat
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from features import late, pairs, shelf, state
from features.catalog import catalog
from features.clock import LaneClock
from features.labels import Label
from features.plan import plan_of
from tests.flows import (
    HOUR_US,
    Batches,
    Flow,
    arrivals,
    assert_same_absences,
    assert_same_rows,
    assert_same_states,
    labels_of,
    rounds,
    segments,
)
from tests.streams import START_US, cut, stream
from tests.unit.test_snapshots import same

LATE_S = 1_800.0
"""Bound of the late streams: they have an event each half minute or so."""

END_US = START_US + 4 * HOUR_US
"""When the streams are over, a bound after their last event."""

MARKS_US = tuple(START_US + m * 60_000_000 for m in (40, 75, 110))
"""When verdicts come."""

NEVER: dict[str, float] = {}
AN_HOUR = dict.fromkeys(plan_of(catalog()).entities, 1.0)

EVERYONE = 1 << 40

FEW = 1
"""Different others above which pairs are sampled: some entities of each world meet more."""

SETTLED_US = START_US + 9_000_000_000 + round(LATE_S * 1e6)
"""From here on no row is late any more: what is told of silence is what is told of the whole."""

BRIEF = settings(max_examples=7, phases=[Phase.explicit, Phase.reuse, Phase.generate])
"""Few examples, each of some hundred rounds; a failing one is not made smaller, which takes
minutes: its arguments are printed, and they are few."""

STEPS = st.lists(
    st.sampled_from(["", "", "", "delta", "delta", "full", "take", "restart"]),
    min_size=5,
    max_size=12,
)
"""What happens before each round, in turn."""

SIZES = st.lists(st.sampled_from([1, 5, 20, 80]), min_size=1, max_size=6)
"""Events of a round, in turn."""

PANES = st.sampled_from([0, 2])
"""Events of an entity in an hour that are kept one by one, where the older ones go into panes."""

EMPTIED = st.sampled_from([0, 3])
"""Entities that a round tells the store of whose windows have run empty."""

ARRIVAL: dict[str, Any] = {
    "number": st.integers(0, 2), "seed": st.integers(0, 10_000), "exact_max": PANES,
}  # fmt: skip
"""A world, how its events come late and twice, and whether there are panes."""

SHARDING: dict[str, Any] = {
    "sizes": SIZES, "groups": st.sampled_from([1, 3]), "lanes": st.integers(1, 2),
}  # fmt: skip


@cache
def world(number: int) -> tuple[Batches, tuple[tuple[Label, ...], ...], Batches]:
    """Two and a half hours of events, verdicts at each mark, and events to compare with after."""
    before, after = cut(stream(number, 90), [START_US + 9_000_000_000])
    rng = np.random.default_rng(number)
    parts = segments(before, MARKS_US)
    labels = tuple(labels_of(part, rng, 5) for part in parts[:-1])
    # Some verdicts are known before the event they are of has come.
    sooner = tuple(labels_of(part, rng, 2) for part in parts[1:])
    labels = tuple(map(add, labels, sooner))
    shifted = {n: _moved(b, END_US - START_US - 9_000_000_000) for n, b in after.items()}
    return before, labels, shifted


def _moved(batch: Any, by_us: int) -> Any:
    frame = batch.frame.with_columns(time_us=batch.frame["time_us"] + by_us)
    return type(batch)(
        batch.event_type, frame, batch.partition, batch.offset, batch.due_ns, batch.truth
    )


def finish(flow: Flow, after: Batches) -> None:
    """Let who has fallen silent be told of, then let more events pass."""
    flow.finish(END_US - HOUR_US)
    flow.feed(after)
    flow.finish(END_US + 4 * HOUR_US)


@cache
def whole(number: int, mortal: bool, late_s: float, exact_max: int) -> Flow:
    """The stream in one piece but for the verdicts, in one group, never stopped."""
    before, labels, after = world(number)
    ttl_h = AN_HOUR if mortal else NEVER
    kept = {"distinct_max": FEW, "exact_max": exact_max}
    flow = Flow(catalog(), late_s=late_s, ttl_h=ttl_h, **kept)
    for part, said in zip(segments(before, MARKS_US), ((), *labels), strict=True):
        flow.feed(part, said)
    finish(flow, after)
    assert sum(engine.estimated for engine in flow.engines) > 100
    (engine,) = flow.engines
    rings = [ring for one in engine._states.values() for ring in one.rings]
    assert any(ring.paned and len(ring._panes) > 0 for ring in rings) == (exact_max > 0)
    return flow


def clock_of(late_s: float, early_s: float) -> LaneClock | None:
    """What tells the time of a stream some of whose events are ahead of it; None where none is."""
    return LaneClock(round(1e6 * late_s), round(1e6 * early_s)) if early_s else None


def small_slices(patch: pytest.MonkeyPatch) -> None:
    """Let snapshots be copied in the smallest parts."""
    patch.setattr(state, "SLICE_MIN", 1)
    patch.setattr(shelf, "SLICE_MIN", 3)
    patch.setattr(pairs, "PAIRS_MIN", 64)


def compare(found: Flow, expected: Flow, mortal: bool, since_us: int = 0) -> None:
    """Rows, states and absences, also of those who were forgotten in the midst of a silence.

    Of a late stream those due from `since_us` on: what was told before a row came stays told.
    """
    assert_same_rows(found, expected)
    assert_same_states(found, expected)
    told = sum(due_us >= since_us for due_us in expected.due_us.values())
    assert told > ((1 if since_us else 5) if mortal else 20)
    assert_same_absences(found, expected, since_us)


def parts_of(
    number: int, seed: int, sizes: list[int], late_s: float, repeats: float, early_s: float = 0.0
) -> Iterator[tuple[Batches, tuple[Label, ...], int]]:
    """Rounds of a stream as it comes, the verdicts that come before each, and when it is cut."""
    before, labels, _ = world(number)
    rng, turn = np.random.default_rng(seed), cycle(sizes)
    for part, said in zip(segments(before, MARKS_US), ((), *labels), strict=True):
        come = arrivals(part, rng, late_s, repeats, early_s)
        parts = zip(rounds(part, come, turn), chain([said], repeat(())), strict=False)
        yield from ((batches, labels, cut_us) for (batches, cut_us), labels in parts)


@BRIEF
@given(
    number=st.integers(0, 2),
    sizes=SIZES,
    groups=st.sampled_from([1, 2, 5]),
    lanes=st.integers(1, 3),
    mortal=st.booleans(),
    due_max=st.sampled_from([1, 3, EVERYONE]),
    exact_max=PANES,
)
def test_a_stream_cut_and_sharded_anyhow_gives_the_same(
    number: int, sizes: list[int], groups: int, lanes: int, mortal: bool, due_max: int,
    exact_max: int,
) -> None:  # fmt: skip
    ttl_h = AN_HOUR if mortal else NEVER
    kept = {"distinct_max": FEW, "exact_max": exact_max}
    flow = Flow(catalog(), groups, lanes, ttl_h=ttl_h, due_max=due_max, **kept)
    for batches, labels, _ in parts_of(number, 0, sizes, 0.0, 0.0):
        flow.feed(batches, labels)
    finish(flow, world(number)[2])
    compare(flow, whole(number, mortal, 0.0, exact_max), mortal)


@BRIEF
@given(
    **ARRIVAL,
    **SHARDING,
    late_s=st.sampled_from([120.0, LATE_S]),
    early_s=st.sampled_from([0.0, 60.0, 880.0]),
    every=st.sampled_from([2, 5, late.EVERY]),
    mortal=st.booleans(),
    emptied_max=EMPTIED,
)
def test_a_stream_that_comes_late_or_early_within_the_bounds_gives_the_same_in_the_end(
    number: int, seed: int, sizes: list[int], groups: int, lanes: int, late_s: float,
    early_s: float, every: int, exact_max: int, mortal: bool, emptied_max: int,
) -> None:  # fmt: skip
    ttl_h = AN_HOUR if mortal else NEVER
    kept: dict[str, Any] = {"distinct_max": FEW, "exact_max": exact_max}
    kept |= {"lane_clock": clock_of(late_s, early_s), "emptied_max": emptied_max}
    flow = Flow(catalog(), groups, lanes, late_s, ttl_h, **kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(late, "EVERY", every)
        for batches, labels, cut_us in parts_of(number, seed, sizes, late_s, 0.05, early_s):
            flow.feed(batches, labels, cut_us=cut_us)
        finish(flow, world(number)[2])
    assert flow.duplicates > 0
    assume(flow.corrected > 0)  # in one large part nobody is late
    assert sum(engine.late_beyond for engine in flow.engines) == 0
    forgotten = sum(engine.late_forgotten for engine in flow.engines)
    assert mortal or forgotten == 0
    assume(forgotten == 0)  # what came too late to keep its entity known changes it for good
    compare(flow, whole(number, mortal, late_s, exact_max), mortal, SETTLED_US)


@BRIEF
@given(
    **ARRIVAL,
    late_s=st.sampled_from([0.0, LATE_S]),
    mortal=st.booleans(),
    steps=STEPS,
)
def test_a_snapshot_is_of_the_moment_it_began_whatever_comes_while_it_is_copied(
    number: int, seed: int, late_s: float, mortal: bool, steps: list[str], exact_max: int
) -> None:
    """State for state: verdicts, late rows, names, absences and expiry come in between."""
    ttl_h, kept = AN_HOUR if mortal else NEVER, {"distinct_max": FEW, "exact_max": exact_max}
    flow, twin = (Flow(catalog(), 1, late_s=late_s, ttl_h=ttl_h, **kept) for _ in range(2))
    turn = cycle(steps)
    expected: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        small_slices(patch)
        for batches, labels, _ in parts_of(number, seed, [8], late_s, 0.0):
            step = next(turn)
            if flow.copying and step in ("take", "restart"):
                flow.take()
                (restored,) = flow.saved()
                same(restored.full(), expected)
            elif flow.copying:
                flow.proceed(5)
            elif step in ("delta", "full"):
                expected = twin.engines[0].full()
                flow.begin(everything=step == "full")
            for one in (flow, twin):
                one.feed(batches, labels)
    assert_same_rows(flow, twin)
    if flow.copying:
        flow.take()
    same(flow.engines[0].full(), twin.engines[0].full())


@BRIEF
@given(
    **ARRIVAL,
    **SHARDING,
    bounds_s=st.sampled_from([(0.0, 0.0), (LATE_S, 0.0), (120.0, 600.0)]),
    due_max=st.sampled_from([2, EVERYONE]),
    steps=STEPS,
)
def test_all_at_once_late_twice_cut_sharded_killed_and_begun_again_gives_the_same(
    number: int, seed: int, sizes: list[int], groups: int, lanes: int,
    bounds_s: tuple[float, float], due_max: int, steps: list[str], exact_max: int,
) -> None:  # fmt: skip
    late_s, early_s = bounds_s
    kept: dict[str, Any] = {"distinct_max": FEW, "exact_max": exact_max}
    kept["lane_clock"] = clock_of(late_s, early_s)
    flow = Flow(catalog(), groups, lanes, late_s, due_max=due_max, **kept)
    turn = cycle([*steps, "restart"])
    with pytest.MonkeyPatch.context() as patch:
        small_slices(patch)
        for batches, labels, cut_us in parts_of(number, seed, [8, *sizes], late_s, 0.05, early_s):
            step = next(turn)
            if step == "restart":
                flow.restart()
            elif flow.copying:
                flow.take() if step == "take" else flow.proceed(3)
            elif step in ("delta", "full"):
                flow.begin(everything=step == "full")
            flow.feed(batches, labels, cut_us=cut_us)
        flow.restart()
        finish(flow, world(number)[2])
    assert flow.duplicates > 0
    since_us = SETTLED_US if late_s else 0
    compare(flow, whole(number, False, late_s, exact_max), False, since_us)
