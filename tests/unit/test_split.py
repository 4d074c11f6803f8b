"""Rows on their way to the groups: each of them once, whole, in the global order."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.batch import EventBatch
from features.catalog import Catalog, catalog
from features.columns import Columns, flag_names, has_key, has_real
from features.engine import split
from features.events import event_code
from features.keys import group_of
from features.plan import plan_of
from features.rows import GroupRows
from tests.streams import make_batch, stream


def slowly(cat: Catalog, batches: dict[str, EventBatch], groups: int, lane: int) -> Any:
    """(entity, group) -> rows as (head, reals), by Python's own sort."""
    found: dict[tuple[str, int], list[tuple[list[int], list[float]]]] = {}
    for entity, plan in plan_of(cat).entities.items():
        for name in plan.events:
            if name not in batches or not len(batches[name]):
                continue
            batch = batches[name]
            columns = Columns(batch)
            keys = columns.key(entity)
            for i in np.flatnonzero(keys).tolist():
                bits = sum(
                    int(columns.flag(f)[i]) << b
                    for b, f in enumerate(plan.flags)
                    if f in flag_names(name)
                )
                others = [
                    int(columns.key(o)[i].view(np.int64)) if has_key(name, o) else 0
                    for o in plan.others
                ]
                head = [int(keys[i].view(np.int64)), int(batch.time_us[i]), event_code(name), lane]
                head += [i, int(batch.partition[i]), int(batch.offset[i]), bits, *others]
                reals = [
                    float(columns.real(r)[i]) if has_real(name, r) else np.nan for r in plan.reals
                ]
                group = int(group_of(keys[i : i + 1], groups)[0])
                found.setdefault((entity, group), []).append((head, reals))
    for rows in found.values():
        rows.sort(key=lambda row: (row[0][1], row[0][2], row[0][5], row[0][6]))
    return found


def assert_like_slow(parts: list[GroupRows], expected: Any) -> None:
    """The same rows for the same groups, to the bit."""
    found = {(entity, g): part for g, part in enumerate(parts) for entity in part.heads}
    assert found.keys() == expected.keys()
    for (entity, group), rows in expected.items():
        part = parts[group]
        np.testing.assert_array_equal(part.heads[entity], [head for head, _ in rows])
        reals = np.array([reals for _, reals in rows]).reshape(len(rows), -1)
        np.testing.assert_array_equal(part.reals[entity], reals)


@pytest.mark.parametrize("groups", [1, 5])
def test_each_row_goes_once_to_the_group_of_each_of_its_entities(seed: int, groups: int) -> None:
    batches = stream(seed, 120)
    assert_like_slow(split(catalog(), batches, groups, 3), slowly(catalog(), batches, groups, 3))


def test_rows_that_come_in_no_order_leave_in_the_global_one(
    seed: int, rng: np.random.Generator
) -> None:
    batches = {
        name: batch.take(rng.permutation(len(batch))) for name, batch in stream(seed, 60).items()
    }
    assert_like_slow(split(catalog(), batches, 3), slowly(catalog(), batches, 3, 0))


def test_an_entity_that_no_row_names_sends_nothing() -> None:
    batch = make_batch("payment", [{"event_id": "a", "card_id": "c", "user_id": "u"}])
    (part,) = split(catalog(), {"payment": batch}, 1)
    assert {"card", "user"} <= part.heads.keys() and "device" not in part.heads
    assert split(catalog(), {"payment": make_batch("payment", [])}, 1)[0].heads == {}


def test_what_is_made_of_a_batch_is_made_once_and_stays_behind_when_it_leaves() -> None:
    batch = make_batch("payment", [{"event_id": "a", "card_id": "c", "amount": 7.0}])
    amounts = Columns(batch).real("log_amount")
    assert Columns(batch).real("log_amount") is amounts
    sent = pickle.loads(pickle.dumps(batch))
    assert sent.made == {} and sent.frame.equals(batch.frame)
    later = batch.take(np.array([0]))
    assert later.made == {}, "other rows have other columns"
    assert isinstance(later.frame, pl.DataFrame)
