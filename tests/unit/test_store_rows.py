"""What leaves a round for the store: the newest row of each entity, whatever the lanes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dataflows.settings import Settings
from dataflows.store import store_url
from dataflows.store.reader import StoreReader
from dataflows.store.rows import EntityRows, newest_rows, split_rows
from dataflows.store.writer import StoreWriter
from features.batch import EventBatch
from features.catalog import catalog
from features.events import event_type
from features.keys import group_of, hash_strings
from features.simulate.simulator import Simulator

CARD = ("payment", "card")
WIDTH = len(catalog().views()[CARD])
START_US = 1_772_409_600_000_000

WAIT_S = 120.0
"""Longest wait for what takes milliseconds on a quiet machine."""


def naive_newest(ids: list[int], flagged: list[bool]) -> dict[int, tuple[int, bool]]:
    """Id -> (last row, any flag), one row after another."""
    found: dict[int, tuple[int, bool]] = {}
    for row, (key, flag) in enumerate(zip(ids, flagged, strict=True)):
        if key:
            found[key] = (row, flag or found.get(key, (0, False))[1])
    return found


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("entities", [1, 30, 5_000])
def test_the_last_row_of_each_entity_is_kept_in_its_shard(
    rng: np.random.Generator, shards: int, entities: int
) -> None:
    pool = rng.integers(1, 2**63, entities).astype(np.uint64)
    for n in (0, 1, 33, 2_000):
        ids = pool[rng.integers(0, entities, n)] * (rng.random(n) > 0.1)
        flagged = rng.random(n) < 0.05
        rows, urgent, starts = newest_rows(ids, flagged, shards)
        kept = {int(ids[r]): (int(r), bool(u)) for r, u in zip(rows, urgent, strict=True)}
        assert kept == naive_newest(ids.tolist(), flagged.tolist())
        assert len(kept) == len(rows) == starts[-1] and starts[0] == 0
        shard = np.repeat(np.arange(shards), np.diff(starts))
        np.testing.assert_array_equal(shard, group_of(ids[rows], shards))


@pytest.mark.parametrize("name", ["payment", "login", "metric", "app_log"])
def test_rows_split_from_a_batch_are_those_of_its_last_event_of_each_entity(
    rng: np.random.Generator, name: str
) -> None:
    batch = _simulated()[name]
    values = rng.normal(size=(len(batch), len(catalog().names(name))))
    flagged = rng.random(len(batch)) < 0.02
    views = {entity: np.array([3, 0]) for entity in event_type(name).entities}
    parts = split_rows(batch, values, views, flagged, 4)
    for entity, columns in event_type(name).entities.items():
        events = list(batch.frame.select(columns).iter_rows())
        names = ["|".join(e) if all(e) else "" for e in events]
        keys = {one: i + 1 for i, one in enumerate(dict.fromkeys(n for n in names if n))}
        last = naive_newest([keys.get(n, 0) for n in names], flagged.tolist())
        found = [part[entity] for part in parts if entity in part]
        assert sum(map(len, found)) == len(last) > 0
        for rows in found:
            at = [last[keys[key]] for key in rows.keys]
            where = np.array([row for row, _ in at])
            np.testing.assert_array_equal(rows.values, values[where][:, [3, 0]])
            np.testing.assert_array_equal(rows.time_us, batch.time_us[where])
            np.testing.assert_array_equal(rows.place[:, 0], batch.partition[where])
            np.testing.assert_array_equal(rows.place[:, 1], batch.offset[where])
            assert rows.urgent.tolist() == [flag for _, flag in at]


def _simulated() -> dict[str, EventBatch]:
    """Half a minute of all event types."""
    world = Simulator(seed=5, start_us=START_US, events_per_s=100.0, cards=500)
    return world.span(START_US, START_US + 30_000_000)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[StoreWriter]:
    """A writer that flushes when it is asked to."""
    opened = StoreWriter(Settings(state_dir=tmp_path, store_flush_ms=60_000), catalog())
    yield opened
    opened.close()


def lane(names: list[str], values: list[float], time_us: list[int], place: list[tuple[int, int]]
) -> dict[tuple[str, str], EntityRows]:  # fmt: skip
    """One lane's rows of cards, all features of a row having its value."""
    keys = pl.Series(names, dtype=pl.String)
    rows = EntityRows(
        keys,
        hash_strings(keys).view(np.int64),
        np.repeat(np.array(values)[:, None], WIDTH, axis=1),
        np.array(time_us),
        np.array(place),
        np.zeros(len(names), np.bool_),
    )
    return {CARD: rows}


def first_features(writer: StoreWriter, tmp_path: Path, names: list[str]) -> list[float]:
    """First feature of each card in the store."""
    assert writer.flush(WAIT_S)
    reader = StoreReader(store_url(Settings(state_dir=tmp_path)), catalog())
    found = reader.read(CARD, names)
    reader.close()
    return [float(value) for value in found.values[:, 0]]


@pytest.mark.parametrize("turned", [False, True])
def test_which_lane_comes_first_does_not_decide_who_is_newest(
    writer: StoreWriter, tmp_path: Path, turned: bool
) -> None:
    names = ["later", "partition", "offset"]
    one = lane(names, [1.0, 1.0, 1.0], [20, 10, 10], [(0, 9), (2, 1), (1, 7)])
    two = lane(names, [2.0, 2.0, 2.0], [10, 10, 10], [(5, 9), (1, 9), (1, 8)])
    writer.put_round(1, [two, one] if turned else [one, two])
    assert first_features(writer, tmp_path, names) == [1.0, 1.0, 2.0]


def test_among_rows_of_the_same_time_the_later_round_is_newest(
    writer: StoreWriter, tmp_path: Path
) -> None:
    writer.put_round(1, [lane(["a", "b"], [1.0, 1.0], [10, 11], [(3, 9), (0, 0)])])
    writer.put_round(2, [lane(["a", "b"], [2.0, 2.0], [10, 10], [(0, 0), (3, 9)])])
    assert first_features(writer, tmp_path, ["a", "b"]) == [2.0, 1.0]
