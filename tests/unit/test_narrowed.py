"""Features of one event from the rows of its entities alone, against those of the whole stream."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.absences import Absences, Names
from features.catalog import catalog
from features.columns import Columns
from features.events import event_type
from features.narrowed import Narrowed
from features.plan import plan_of
from features.spans import SpanFeatures, merge_spans, split_span
from tests.flows import Flow
from tests.unit.test_properties import ARRIVAL, BRIEF, EVERYONE, FEW, LATE_S, SIZES
from tests.unit.test_spans import TOGETHER, Sent, assert_same_told, joined, sent, spans_of


def passed(
    flow: Flow, rounds: list[Sent], together: list[int], narrowed: Narrowed | None
) -> tuple[list[SpanFeatures], list[list[Absences]], int]:
    """What each group gives of the last round, who it says is silent, and rows that passed."""
    names, rows = Names(), 0
    told: list[list[Absences]] = [[] for _ in flow.engines]
    for span in [*spans_of(rounds[:-1], together), rounds[-1:]]:
        batches, bounds = joined(span, 0)
        if narrowed is not None and span[-1] is not rounds[-1]:
            batches, bounds = narrowed.cut(batches, bounds)
            assert all(of[-1] == len(batches[name]) for name, of in bounds.items())
        clocks = tuple(round_.lanes[0][1] for round_ in span)
        labels = tuple(round_.labels for round_ in span)
        parts = split_span(flow.cat, batches, bounds, flow.groups, 0, clocks, clocks, names, labels)
        rows += sum(map(len, batches.values()))
        here = [(0,)] * len(span)
        found = [
            engine.process_span(merge_spans([part]), here, flow.due_max)
            for engine, part in zip(flow.engines, parts, strict=True)
        ]
        for mine, one in zip(told, found, strict=True):
            mine += [absence for by_lane in one.absences for absence in by_lane[0]]
    return found, told, rows


def features_of(
    found: list[SpanFeatures], name: str, row: int, narrowed: Narrowed
) -> dict[str, list[Any]]:
    """Entity type -> features of a row of the last round; its sequence beside them."""
    told: dict[str, list[Any]] = {}
    for one in found:
        for (event, entity), (rows, values) in one.lanes[0].parts.items():
            if event == name and entity in narrowed.keys and row in rows:
                told[entity] = [v.hex() for v in values[rows == row][0].tolist()]
        rows, vectors = one.lanes[0].sequences.get(name, (np.zeros(0), np.zeros(0)))
        if row in rows:
            told["sequence"] = vectors[rows == row][0].tolist()
    return told


@BRIEF
@given(
    number=ARRIVAL["number"],
    seed=ARRIVAL["seed"],
    sizes=SIZES,
    groups=st.sampled_from([1, 3]),
    late_s=st.sampled_from([0.0, 120.0, LATE_S]),
    due_max=st.sampled_from([2, EVERYONE]),
    together=TOGETHER,
    at=st.floats(0.2, 1.0),
    which=st.integers(0, 1 << 16),
)
def test_an_events_features_follow_from_the_rows_of_its_entities(
    number: int, seed: int, sizes: list[int], groups: int, late_s: float, due_max: int,
    together: list[int], at: float, which: int,
) -> None:  # fmt: skip
    rounds = sent(number, seed, sizes, late_s, 1, 1 << 40)
    rounds = rounds[: max(2, round(at * len(rounds)))]
    one, other = (Flow(catalog(), groups, 1, late_s, None, due_max, FEW) for _ in range(2))
    last = {name: batch for name, batch in rounds[-1].lanes[0][0].items() if len(batch)}
    if not last:
        return
    name = sorted(last)[which % len(last)]
    row = which % len(last[name])
    columns = Columns(last[name])
    keys = {e: int(columns.key(e)[row]) for e in event_type(name).entities}
    narrowed = Narrowed(catalog(), groups, {e: key for e, key in keys.items() if key})
    for group, engine in enumerate(other.engines):
        engine.keep_only(narrowed.entities_in(group))
    expected, _, all_rows = passed(one, rounds, together, None)
    found, _, some_rows = passed(other, rounds, together, narrowed)
    assert some_rows <= all_rows
    wanted = features_of(expected, name, row, narrowed)
    assert wanted and features_of(found, name, row, narrowed) == wanted


@BRIEF
@given(
    number=ARRIVAL["number"],
    seed=ARRIVAL["seed"],
    sizes=SIZES,
    due_max=st.sampled_from([2, EVERYONE]),
    together=TOGETHER,
)
def test_who_is_silent_follows_from_the_rows_of_all_who_are_watched(
    number: int, seed: int, sizes: list[int], due_max: int, together: list[int]
) -> None:
    rounds = sent(number, seed, sizes, 0.0, 1, 1 << 40)
    one, other = (Flow(catalog(), 2, 1, 0.0, None, due_max, FEW) for _ in range(2))
    watched = [n for n, plan in plan_of(catalog()).entities.items() if plan.silence is not None]
    narrowed = Narrowed(catalog(), 2, dict.fromkeys(watched))
    for group, engine in enumerate(other.engines):
        assert narrowed.entities_in(group) == set(watched)
        engine.keep_only(narrowed.entities_in(group))
    _, expected, all_rows = passed(one, rounds, together, None)
    _, found, some_rows = passed(other, rounds, together, narrowed)
    assert 0 < some_rows < all_rows and any(expected)
    for mine, whole in zip(found, expected, strict=True):
        assert_same_told(mine, whole)
