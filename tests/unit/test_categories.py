"""Entropy over the last events: against Shannon's formula, and what absent values do."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalog import Catalog
from features.categories import CATEGORIES
from features.engine import OfflineEngine
from features.spec import Feature
from tests.naive_categories import entropy
from tests.streams import START_US, make_batch


@cache
def small() -> Catalog:
    """Entropy of the device of a card's payments, and of a user's over payments and logins."""
    both = ("payment", "login")
    return Catalog(
        [
            Feature("of_card", "payment", "card", "entropy", "{value}", "bit", "geo",
                    other="device"),
            Feature("of_user", "payment", "user", "entropy", "{value}", "bit", "geo", both,
                    other="device"),
            Feature("seen", "payment", "user", "entropy", "{value}", "bit", "geo", ("login",),
                    other="device"),
        ]
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=120),
    st.integers(0, 119),
)
def test_entropy_is_shannon_s_of_the_last_events(
    drawn: list[tuple[bool, int]], cut_at: int
) -> None:
    rows = [
        {"event_id": f"e{i}", "time_us": START_US + i * 1_000_000, "card_id": "c", "user_id": "u",
         "device_id": f"d{d}" if d else None}
        for i, (_, d) in enumerate(drawn)
    ]  # fmt: skip
    engine, found = OfflineEngine(small(), 2), []
    for part in (range(min(cut_at, len(rows))), range(min(cut_at, len(rows)), len(rows))):
        batches = {
            name: make_batch(name, [rows[i] for i in part if drawn[i][0] == paid])
            for name, paid in (("payment", True), ("login", False))
            if any(drawn[i][0] == paid for i in part)
        }
        if "payment" in (matrices := engine.process(batches)):
            found += matrices["payment"].values.tolist()
    expected = []
    for i, (paid, device) in enumerate(drawn):
        if not paid:
            continue
        past = [(p, d) for p, d in drawn[: i + 1] if d]
        values = [
            [d for p, d in past if p][-CATEGORIES:],
            [d for _, d in past][-CATEGORIES:],
            [d for p, d in past if not p][-CATEGORIES:],
        ]
        expected.append([entropy(v) if device else np.nan for v in values])
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-9, atol=1e-9)


def test_many_values_have_five_bits_and_one_has_none() -> None:
    rows = [
        {"event_id": f"e{i}", "time_us": START_US + i, "card_id": "c",
         "device_id": f"d{min(i, 99)}"}
        for i in range(200)
    ]  # fmt: skip
    found = OfflineEngine(small(), 1).process({"payment": make_batch("payment", rows)})
    values = found["payment"].column("of_card")
    assert values[99] == 5.0
    assert values[-1] == 0.0
    rows = [row | {"device_id": "d"} for row in rows]
    found = OfflineEngine(small(), 1).process({"payment": make_batch("payment", rows)})
    assert not found["payment"].column("of_card").any(), "none to the last bit"
