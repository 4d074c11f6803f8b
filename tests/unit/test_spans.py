"""Rounds that are computed in one go, against the same rounds one after the other, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from itertools import cycle
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from dataflows.context import Context
from dataflows.sources.rounds import journal_folder
from dataflows.spans import span_ends
from dataflows.state.journal import Cut, LaneJournal
from features.absences import Absences, Names
from features.batch import concat_batches
from features.catalog import catalog
from features.engine import Correction, GroupFeatures, merge, split
from features.events import event_code
from features.labels import Label
from features.spans import SpanRows, merge_spans, split_span
from tests.flows import Batches, Flow, assert_same_states
from tests.unit.test_properties import (
    AN_HOUR,
    ARRIVAL,
    BRIEF,
    EVERYONE,
    FEW,
    LATE_S,
    NEVER,
    SIZES,
    parts_of,
)

TOGETHER = st.lists(st.sampled_from([1, 2, 7, 40]), min_size=1, max_size=4)
"""Rounds of a span, in turn."""


@dataclass
class Sent:
    """A round as lanes have it: events and clock of each lane that takes part, and verdicts."""

    labels: tuple[Label, ...]
    lanes: dict[int, tuple[Batches, int]] = field(default_factory=dict)


def sent(
    number: int, seed: int, sizes: list[int], late_s: float, lanes: int, ends_after: int
) -> list[Sent]:
    """Rounds of a late stream; the last lane ends early where there are several."""
    clocks, found = dict.fromkeys(range(lanes), 0), []
    for n, (batches, labels, _) in enumerate(parts_of(number, seed, sizes, late_s, 0.0)):
        round_ = Sent(labels)
        for lane in range(lanes if n < ends_after else max(lanes - 1, 1)):
            mine = {
                name: batch.take(np.flatnonzero(batch.partition % lanes == lane))
                for name, batch in batches.items()
            }
            mine = {name: batch for name, batch in mine.items() if len(batch)}
            newest = (int(batch.time_us[-1]) for batch in mine.values())
            clocks[lane] = max(clocks[lane], *newest, 0)
            round_.lanes[lane] = mine, clocks[lane]
        found.append(round_)
    return found


def one_by_one(
    flow: Flow, rounds: list[Sent], lag_us: int
) -> Iterator[list[dict[int, GroupFeatures]]]:
    """What each group gives each lane, by round."""
    names = [Names() for _ in range(flow.lanes)]
    for number, round_ in enumerate(rounds):
        parts = []
        for lane, (batches, clock_us) in round_.lanes.items():
            due_us = max(clock_us - lag_us, 0)
            rows = split(
                flow.cat, batches, flow.groups, lane, number, clock_us, names[lane], due_us
            )
            parts.append([replace(row, labels=() if lane else round_.labels) for row in rows])
        yield [
            engine.process(merge([part[g] for part in parts]), tuple(round_.lanes), flow.due_max)
            for g, engine in enumerate(flow.engines)
        ]


def spans_of(rounds: list[Sent], sizes: list[int]) -> Iterator[list[Sent]]:
    """Rounds in spans."""
    found: list[Sent] = []
    turn = cycle(sizes)
    size = next(turn)
    for round_ in rounds:
        if len(found) >= size:
            yield found
            found, size = [], next(turn)
        found.append(round_)
    yield found


def joined(span: list[Sent], lane: int) -> tuple[Batches, dict[str, Any]]:
    """A lane's events of a span, and where each round begins and ends in them."""
    mine = [round_.lanes[lane][0] for round_ in span if lane in round_.lanes]
    names = sorted({name for batches in mine for name in batches}, key=event_code)
    whole = {n: concat_batches([b[n] for b in mine if n in b], sort=False) for n in names}
    sizes = {n: [len(b[n]) if n in b else 0 for b in mine] for n in names}
    return whole, {n: np.concatenate(([0], np.cumsum(sizes[n]))) for n in names}


def rows_of(span: list[Sent], flow: Flow, names: list[Names], lag_us: int) -> list[list[SpanRows]]:
    """What each lane sends to each group."""
    found = []
    for lane in sorted({lane for round_ in span for lane in round_.lanes}):
        clocks = tuple(round_.lanes[lane][1] for round_ in span if lane in round_.lanes)
        dues = tuple(max(clock - lag_us, 0) for clock in clocks)
        labels = () if lane else tuple(round_.labels for round_ in span)
        found.append(
            split_span(
                flow.cat, *joined(span, lane), flow.groups, lane, clocks, dues, names[lane],
                labels,
            )
        )  # fmt: skip
    return found


def assert_same_told(found: list[Absences], expected: list[Absences]) -> None:
    """The same absences and changes among peers, in the same order."""
    assert [one.entity for one in found] == [one.entity for one in expected]
    for mine, other in zip(found, expected, strict=True):
        for a, b in (
            (mine.keys, other.keys),
            (mine.names, other.names),
            (mine.told.found[:, 1:], other.told.found[:, 1:]),  # without slots
            (mine.told.known, other.told.known),
        ):
            np.testing.assert_array_equal(a, b)
        assert sorted(mine.told.changes.tolist()) == sorted(other.told.changes.tolist())


def assert_same_parts(
    found: GroupFeatures, expected: list[GroupFeatures], bounds: dict[str, Any]
) -> None:
    """The same rows of a lane, those of the rounds one after the other."""
    keys = {key for one in expected for key in one.parts}
    assert found.parts.keys() == keys
    for name, entity in keys:
        places, values = found.parts[name, entity]
        rounds = [(r, one.parts[name, entity]) for r, one in enumerate(expected)
                  if (name, entity) in one.parts]  # fmt: skip
        at = np.concatenate([bounds[name][r] + rows for r, (rows, _) in rounds])
        np.testing.assert_array_equal(places, at)
        np.testing.assert_array_equal(values, np.concatenate([v for _, (_, v) in rounds]))
    for name in {name for one in expected for name in one.sequences}:
        places, vectors = found.sequences[name]
        rounds = [(r, one.sequences[name]) for r, one in enumerate(expected)
                  if name in one.sequences]  # fmt: skip
        here = [bounds[name][r] + rows for r, (rows, _) in rounds if len(rows)]
        at = np.concatenate([np.zeros(0, np.int64), *here])
        np.testing.assert_array_equal(places, at)
        np.testing.assert_array_equal(vectors, np.concatenate([v for _, (_, v) in rounds]))


def assert_same_corrections(
    found: list[tuple[int, Correction]], expected: dict[int, GroupFeatures]
) -> None:
    """The same rows of earlier rounds, by their number and place there, with the same values."""
    wanted = [(lane, fix) for lane, result in expected.items() for fix in result.corrections]
    key = itemgetter(0)
    found, wanted = sorted(found, key=key), sorted(wanted, key=key)
    assert [lane for lane, _ in found] == [lane for lane, _ in wanted]
    for (_, mine), (_, other) in zip(found, wanted, strict=True):
        for name in (one.name for one in fields(Correction)):
            np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))


def test_a_span_begins_where_control_or_the_rates_in_force_change(tmp_path: Path) -> None:
    settings = SimpleNamespace(state_dir=tmp_path, source="file", lanes=1)
    context = SimpleNamespace(settings=settings, manifest=SimpleNamespace(round=2))
    with closing(LaneJournal(journal_folder(tmp_path, 0), 1 << 20)) as journal:
        for r in range(1, 13):
            said = [{"kind": "mute"}] if r == 10 else []
            journal.append(Cut(r, r * 1_000, {}, 5, control=said, rates=0 if r < 6 else r // 6))
    assert span_ends(cast(Context, context), 4, 12) == [3, 5, 9, 11, 12]


@BRIEF
@given(
    number=ARRIVAL["number"],
    seed=ARRIVAL["seed"],
    sizes=SIZES,
    groups=st.sampled_from([1, 3]),
    lanes=st.integers(1, 2),
    late_s=st.sampled_from([0.0, 120.0, LATE_S]),
    mortal=st.booleans(),
    due_max=st.sampled_from([2, EVERYONE]),
    together=TOGETHER,
    ends_after=st.sampled_from([10, 1 << 40]),
    lag_us=st.sampled_from([0, 5_000_000, 600_000_000]),
    told=st.booleans(),
)
@example(  # rows are ten minutes newer than the clock silence is told by
    number=2, seed=7847, sizes=[5], groups=1, lanes=2, late_s=0.0, mortal=False,
    due_max=EVERYONE, together=[7], ends_after=1 << 40, lag_us=600_000_000, told=True,
)  # fmt: skip
@example(  # one that is forgotten comes again
    number=2, seed=3803, sizes=[20, 5, 20, 5], groups=1, lanes=2, late_s=0.0, mortal=True,
    due_max=2, together=[2, 7], ends_after=10, lag_us=5_000_000, told=False,
)  # fmt: skip
@example(  # the log begins among the rows of the first round
    number=0, seed=9624, sizes=[1, 20, 20, 1], groups=3, lanes=1, late_s=120.0, mortal=True,
    due_max=EVERYONE, together=[2, 7], ends_after=10, lag_us=5_000_000, told=False,
)  # fmt: skip
def test_rounds_computed_together_give_what_they_give_one_by_one(
    number: int, seed: int, sizes: list[int], groups: int, lanes: int, late_s: float,
    mortal: bool, due_max: int, together: list[int], ends_after: int, lag_us: int,
    told: bool,
) -> None:  # fmt: skip
    ttl_h = AN_HOUR if mortal else NEVER
    one, other = (
        Flow(catalog(), groups, lanes, late_s, ttl_h, due_max, distinct_max=FEW) for _ in range(2)
    )
    rounds = sent(number, seed, sizes, late_s, lanes, ends_after)
    expected = one_by_one(one, rounds, lag_us)
    names = [Names() for _ in range(lanes)]
    first = 0
    for span in spans_of(rounds, together):
        numbers = range(first, first + len(span))
        first = numbers.stop
        sent_rows = rows_of(span, other, names, lag_us)
        wanted = [next(expected) for _ in span]
        here = [tuple(round_.lanes) for round_ in span]
        for g, engine in enumerate(other.engines):
            merged = merge_spans([rows[g] for rows in sent_rows])
            found = engine.process_span(merged, here, due_max, numbers if told else None)
            for lane in found.lanes:
                _, bounds = joined(span, lane)
                mine = [by_group[g][lane] for by_group in wanted if lane in by_group[g]]
                assert_same_parts(found.lanes[lane], mine, bounds)
                for absent, alone in zip(found.absences, wanted, strict=True):
                    if lane in absent:
                        assert_same_told(absent[lane], alone[g][lane].absences)
            for fixes, alone in zip(found.corrections, wanted, strict=True):
                if told:
                    assert_same_corrections(fixes, alone[g])
    one.clock_us = other.clock_us = max(clock for _, clock in rounds[-1].lanes.values())
    assert_same_states(other, one)
