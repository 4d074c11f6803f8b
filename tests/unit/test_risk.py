"""Delayed labels: against the naive twin, repeated, taken back, cut, sharded, restored."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import labels as labels_module
from features.catalog import Catalog, catalog
from features.engine import GroupEngine, OfflineEngine, split
from features.errors import DeclarationError
from features.labels import Label, LabelBook, label_of
from features.risk import RISK_DAYS
from features.snapshots import join
from features.spec import Feature
from tests.naive import NaiveEngine, in_global_order
from tests.streams import START_US, make_batch
from tests.units import fitting

DAY_US = 86_400_000_000
MIDNIGHT_US = START_US // DAY_US * DAY_US
OPS = (
    ("risk_count", 1), ("risk_count", 7), ("risk_count", 31), ("risk_rate", 1), ("risk_rate", 7),
    ("risk_rate", 30), ("risk_count_ever", 0), ("last_label", 0), ("since_fraud", 0),
    ("genuine_since_fraud", 0), ("fraud_run", 0),
)  # fmt: skip
BOTH = ("payment", "login")


def _feature(event: str, entity: str, op: str, days: int, feeds: tuple[str, ...] = ()) -> Feature:
    window = days * 86_400 or None
    return Feature(
        f"{entity}_{op}_{days}",
        event,
        entity,
        op,
        "{value}",
        fitting(op),
        "risk",
        feeds,
        window_s=window,
    )


@cache
def small() -> Catalog:
    """Every operation, of payments alone and of payments and logins."""
    return Catalog(
        [_feature("payment", "card", op, days) for op, days in OPS]
        + [_feature(event, "user", op, days, BOTH) for event in BOTH for op, days in OPS]
    )


def payment(number: int, day: float, card: str = "c0", user: str = "u0") -> dict[str, Any]:
    return {"event_id": f"p{number}", "time_us": MIDNIGHT_US + round(day * DAY_US), "card_id": card,
            "user_id": user, "_type": "payment"}  # fmt: skip


def said(event: dict[str, Any], fraud: bool) -> dict[str, Any]:
    """The control record of a verdict."""
    named = {"card": event["card_id"], "user": event["user_id"]}
    entities = named if event["_type"] == "payment" else {"user": event["user_id"]}
    return {"kind": "label", "event_type": event["_type"], "event_id": event["event_id"],
            "verdict": "fraud" if fraud else "genuine", "event_time_us": event["time_us"],
            "entities": entities}  # fmt: skip


Step = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Labels of a round, then its events."""


def rounds(rng: np.random.Generator, n: int, days: float) -> list[Step]:
    """Events in bursts, verdicts on some later: repeated, taken back, of strangers."""
    day, past, found = 0.0, [], []
    for number in range(n):
        day += float(rng.choice([0.0, 0.01, 0.4, days]))
        events = [payment(number, day, f"c{rng.integers(3)}", f"u{rng.integers(2)}")]
        if rng.random() < 0.3:
            events.append({**events[0], "_type": "login", "event_id": f"l{number}"})
        picked = [past[int(i)] for i in rng.integers(0, len(past), rng.integers(0, 4))] if past \
            else []  # fmt: skip
        if rng.random() < 0.1:
            picked.append(payment(-number, day + 3.0, "c0" if rng.random() < 0.5 else "nobody"))
        found.append(([said(e, bool(rng.random() < 0.6)) for e in picked], events))
        past += events
    return found


def batches_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: make_batch(name, [e for e in events if e["_type"] == name])
        for name in BOTH
        if any(e["_type"] == name for e in events)
    }


def run(steps: list[Step], groups: int = 3, cat: Catalog | None = None) -> dict[str, np.ndarray]:
    """Values of all rows by event type."""
    engine = OfflineEngine(cat or small(), groups)
    found: dict[str, list[np.ndarray]] = {}
    for records, events in steps:
        labels = tuple(label_of(record) for record in records)
        for name, matrix in engine.process(batches_of(events), labels=labels).items():
            found.setdefault(name, []).append(matrix.values)
    return {name: np.concatenate(parts) for name, parts in found.items()}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 5.0, 12.0, 45.0]))
def test_every_operation_equals_its_naive_twin(number: int, days: float) -> None:
    steps = rounds(np.random.default_rng(number), 40, days)
    found, naive = run(steps), NaiveEngine(small())
    expected: dict[str, list[list[float]]] = {}
    for records, events in steps:
        for r in records:
            fraud = r["verdict"] == "fraud"
            naive.label(r["event_type"], r["event_id"], r["event_time_us"], fraud, r["entities"])
        ordered = in_global_order(batches_of(events))
        for event, values in zip(ordered, naive.process(ordered), strict=True):
            row = [values[name] for name in small().names(event["_type"])]
            expected.setdefault(event["_type"], []).append(row)
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_allclose(found[name], np.array(rows), rtol=1e-12)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 39), st.sampled_from([1, 7]))
def test_restored_or_sharded_anywhere_gives_the_same(number: int, at: int, groups: int) -> None:
    steps = rounds(np.random.default_rng(number), 40, 5.0)
    expected = run(steps, 1)["payment"]
    np.testing.assert_array_equal(run(steps, groups)["payment"], expected)
    engine, found = GroupEngine(small(), 0), []
    base = engine.full()
    for i, (records, events) in enumerate(steps):
        if i == at // 2:
            base = engine.full()
        if i == at:
            engine = GroupEngine.restore(small(), 0, base, [engine.delta()])
        rows = split(small(), batches_of(events), 1)[0]
        result = engine.process(replace(rows, labels=tuple(map(label_of, records))))
        found.append(result[0].parts["payment", "card"][1][:, : len(OPS)])
    np.testing.assert_array_equal(np.concatenate(found), expected[:, : len(OPS)])


def test_a_label_that_comes_while_a_snapshot_is_copied_is_not_in_it() -> None:
    first, later = payment(1, 0.0), payment(2, 8.0)
    engine = GroupEngine(small(), 0)
    engine.process(split(small(), batches_of([first]), 1)[0])
    engine.begin(everything=True)
    labelled = replace(split(small(), {}, 1)[0], labels=(label_of(said(first, True)),))
    engine.process(labelled)
    base = join(engine.take())
    for deltas, expected in (([], 0.0), ([engine.delta()], 1.0)):
        again = GroupEngine.restore(small(), 0, base, deltas)
        assert again.process(labelled) is not None  # a repeat where the label was in it
        rows = again.process(split(small(), batches_of([later]), 1)[0])[0]
        assert rows.parts["payment", "card"][1][0, 0] == 1.0
        plain = GroupEngine.restore(small(), 0, base, deltas)
        rows = plain.process(split(small(), batches_of([later]), 1)[0])[0]
        assert rows.parts["payment", "card"][1][0, 0] == expected


def test_a_label_shows_from_its_round_on_before_the_rows_of_the_round() -> None:
    first, second, third = payment(1, 0.0), payment(2, 8.0), payment(3, 8.0)
    found = run([([], [first]), ([], [second]), ([said(first, True)], [third])])["payment"]
    names = small().names("payment")
    count = found[:, names.index("card_risk_count_1")]
    np.testing.assert_array_equal(count, [0.0, 0.0, 1.0])
    since = found[:, names.index("card_since_fraud_0")]
    np.testing.assert_array_equal(since, [np.nan, np.nan, 8 * 86_400.0])


def test_the_share_is_of_the_days_that_end_a_week_ago() -> None:
    events = [payment(i, 0.01 * i) for i in range(4)]
    labels = [said(events[0], True)]
    for day, expected in ((6.0, 1.01 / 11), (8.0, 1.01 / 14), (9.0, 0.01 / 10)):
        rows = run([([], events), (labels, [payment(9, day)])])["payment"]
        assert rows[-1, small().names("payment").index("card_risk_rate_1")] == expected


def test_a_label_of_an_entity_never_seen_makes_no_state() -> None:
    engine = OfflineEngine(small(), 1)
    stranger = label_of(said(payment(1, 0.0, "nobody", "nobody"), True))
    engine.process({}, labels=(stranger,) * 3)
    assert engine.engines[0].entities == {"card": 0, "user": 0}
    assert engine.engines[0].labels == 0
    assert engine.engines[0].labels_unknown == 6, "a card and a user, three times"
    assert all(len(state.labels) == 0 for state in engine.engines[0]._states.values())


def test_a_fraud_freezes_what_is_usual_of_the_card_and_of_nobody_else() -> None:
    cat = catalog(("payment",))
    engine = GroupEngine(cat, 0)
    past = [payment(i, 0.1 * i) | {"merchant_id": "m1", "amount": 10.0 + i % 3} for i in range(40)]
    named = said(past[0], True)
    named["entities"] |= {"merchant": "m1"}
    rows = split(cat, batches_of(past), 1)[0]
    engine.process(rows)
    engine.process(replace(split(cat, {}, 1)[0], labels=(label_of(named),)))
    frozen = {name: state._fixed["frozen_until_us"].max() for name, state in engine._states.items()}
    until_us = past[-1]["time_us"] + labels_module.FREEZE_S * 1_000_000
    assert frozen == {"card": until_us, "user": 0, "merchant": 0, "device": 0, "ip": 0}


def frozen_h(engine: GroupEngine) -> float:
    """Hours after the first event until which the one card stands still."""
    until_us = int(engine._states["card"]._fixed["frozen_until_us"][0, 0])
    return (until_us - MIDNIGHT_US) / 3_600e6 if until_us else 0.0


@pytest.mark.parametrize("restored", [False, True])
def test_a_genuine_verdict_lifts_the_freeze_of_the_fraud_it_overturns(restored: bool) -> None:
    cat = catalog(("payment",))
    engine = GroupEngine(cat, 0)
    events = [payment(i, 2.0 * i / 24) for i in range(20)]
    week = 24.0 * 7

    def step(*labels: tuple[int, bool], new: int | None = None) -> float:
        """Tell verdicts; then an event comes, by which the next freeze lasts longer."""
        nonlocal engine
        rows = [] if new is None else [events[new]]
        told = tuple(label_of(said(events[i], fraud)) for i, fraud in labels)
        engine.process(replace(split(cat, batches_of(rows), 1)[0], labels=told))
        if restored:
            engine = GroupEngine.restore(cat, 0, engine.full(), [])
        return frozen_h(engine)

    engine.process(split(cat, batches_of(events[:10]), 1)[0])
    assert step((3, True), new=10) == 18 + week
    assert step((3, False)) == 0.0
    assert step((3, True), (4, False)) == 20 + week, "a verdict on another event lifts nothing"
    assert step(new=11) == 20 + week
    assert step((5, True)) == 22 + week
    assert step((5, True), (5, False)) == 20 + week, "the other fraud stands"
    assert step((3, False), (3, True), (3, True)) == 22 + week
    assert step((3, False), (6, False)) == 0.0


def test_a_freeze_that_no_label_made_is_lifted_by_none() -> None:
    cat = catalog(("payment",))
    engine = GroupEngine(cat, 0)
    events = [payment(i, 2.0 * i / 24) for i in range(4)]
    engine.process(split(cat, batches_of(events), 1)[0])
    state = engine._states["card"]
    state.label([label_of(said(events[0], True))])
    later_us = MIDNIGHT_US + 400 * 3_600_000_000
    state.freeze(state.table.keys[:1].view(np.uint64), later_us)
    state.label([label_of(said(events[0], False))])
    assert frozen_h(engine) == 400


def test_remembered_verdicts_are_bounded_and_the_oldest_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(labels_module, "KNOWN_MAX", 3)
    book = LabelBook()
    assert [book.take(key, 10 + key, 2)[0] for key in (1, 2, 3, 1, 4, 1, 2)] == [
        0, 0, 0, 2, 0, 2, 0,
    ]  # fmt: skip
    dumped = book.dump(everything=False)
    assert dumped[:, :3].tolist() == [[4, 2, 14], [1, 2, 11], [2, 2, 12]]
    assert book.dump(everything=False).tolist() == []
    again = LabelBook()
    again.load(book.dump(everything=True))
    assert again.take(1, 99, 1) == (2, 11)


def test_days_beyond_those_kept_are_counted_as_ever_alone() -> None:
    first = payment(1, 0.0)
    steps = [([], [first]), ([], [payment(2, RISK_DAYS + 1.0)])]
    rows = run([*steps, ([said(first, True)], [payment(3, RISK_DAYS + 1.0)])])["payment"]
    values = dict(zip(small().names("payment"), rows[-1].tolist(), strict=True))
    assert values["card_risk_count_31"] == 0.0
    assert values["card_risk_count_ever_0"] == 1.0
    assert values["card_since_fraud_0"] == (RISK_DAYS + 1) * 86_400


def test_a_window_of_part_of_a_day_is_refused() -> None:
    with pytest.raises(DeclarationError, match="goes by days of 86400"):
        Catalog([replace(_feature("payment", "card", "risk_rate", 1), window_s=3_600)])


def test_the_shipped_risk_features_know_a_compromised_merchant() -> None:
    cat = catalog(("payment",))
    past = [payment(i, 0.2 * i) | {"merchant_id": "m1"} for i in range(20)]
    frauds = [said(e, True) | {"entities": {"merchant": "m1"}} for e in past[:10]]
    rows = run([([], past), (frauds, [payment(99, 10.0) | {"merchant_id": "m1"}])], 2, cat)
    values = dict(zip(cat.names("payment"), rows["payment"][-1].tolist(), strict=True))
    assert values["merchant_frauds_30d"] == 10.0
    assert values["merchant_fraud_rate_30d"] == pytest.approx(10.01 / 25)
    assert values["merchant_fraud_rate_7d"] == pytest.approx(10.01 / 25)
    assert values["merchant_last_label"] == 1.0
    assert values["card_frauds_30d"] == 0.0


def test_a_label_may_name_an_entity_of_several_columns() -> None:
    record = {"event_type": "metric", "event_id": "x", "verdict": "genuine", "event_time_us": 1,
              "entities": {"series": "web-1|cpu"}}  # fmt: skip
    found = label_of(record)
    batch = make_batch("metric", [{"host": "web-1", "metric": "cpu", "event_id": "x"}])
    head = split(catalog(("metric",)), {"metric": batch}, 1)[0].heads["series"]
    assert isinstance(found, Label)
    assert found.entities == (("series", int(head[0, 0])),)
