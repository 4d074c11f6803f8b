"""What is known of events by a moment, and how frequent frauds are by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dataflows.from_journal import Targets
from features.batch import EventBatch
from tests.streams import make_batch

DAY_US = 86_400_000_000
DAYS = 20
LABELLED = 5


def payments(truth: bool = False) -> EventBatch:
    """One a day, from day 0 on."""
    rows = [
        {"event_id": f"p{i}", "time_us": i * DAY_US, "card_id": "c-1", "user_id": "u-1",
         "merchant_id": "m-1", "amount": 10.0, "currency": "EUR", "category": "food",
         "channel": "pos"}
        for i in range(DAYS)
    ]  # fmt: skip
    batch = make_batch("payment", rows)
    odd = np.isin(np.arange(DAYS), (2, 6)).astype(np.int16)
    return replace(batch, truth=odd if truth else None)


def targets(verdicts: dict[str, bool], from_us: int = 0) -> Targets:
    """As of day 19; what nobody has called a fraud for ten days is genuine."""
    said = {"payment": verdicts} if verdicts else {}
    return Targets(said, 19 * DAY_US, DAY_US, 10 * DAY_US, LABELLED, from_us)


def test_frauds_are_as_frequent_as_over_the_time_that_is_settled() -> None:
    verdicts = {"p2": True, "p6": True, "p15": True, "p16": True, "p17": False}
    found = targets(verdicts)
    batch, rows = found.of(payments())
    assert rows.tolist() == [*range(10), 15, 16, 17]
    assert batch.truth is not None and np.count_nonzero(batch.truth == LABELLED) == 4
    assert found.odd_per_genuine() == {"payment": 2 / 8}, "two frauds in days 0 to 9"
    later = targets(verdicts, from_us=5 * DAY_US)
    later.of(payments())
    assert later.odd_per_genuine() == {"payment": 1 / 4}
    told = targets({})
    told.of(payments(truth=True))
    assert told.odd_per_genuine() == {"payment": 2 / 8}


def test_nothing_is_said_of_types_of_which_nothing_is_settled() -> None:
    found = targets({"p15": True}, from_us=12 * DAY_US)
    found.of(payments())
    silent = targets({})
    assert silent.of(payments())[1].tolist() == list(range(DAYS))
    assert found.odd_per_genuine() == silent.odd_per_genuine() == {}
