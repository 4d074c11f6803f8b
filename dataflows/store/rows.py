"""Which rows of a round go to the online store: the newest of each entity, shared out to shards.

A store keeps one row an entity, so of a round's rows all but the last of each entity are left out
here, by key alone, before a string is made or a feature copied: on the flow's own thread this is
what the store costs. Between `dataflows.score`, which makes rows, and `writer`, which takes them.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from features.batch import EventBatch, Float64, Int64
from features.columns import Columns
from features.events import event_type
from features.jit import njit
from features.keys import UInt64, group_of

__all__ = [
    "SHARDS",
    "WINDOWS",
    "EntityRows",
    "View",
    "Views",
    "newest_rows",
    "split_emptied",
    "split_rows",
    "warm_up",
]

Bool = npt.NDArray[np.bool_]
View = tuple[str, ...]
"""Event type and entity; and `WINDOWS`, where only what changes by itself is told of it."""

SHARDS = 4
"""Ordered writers of the store; chosen: as many processes as one Redis keeps busy (it takes
57-140k rows/s a core)."""

WINDOWS = "windows"
"""Third part of a view of which only the features of `features.emptied.timed_names` are told."""

TABLE_MIN = 1 << 6
"""Smallest table of keys; chosen: a cache line or two. It is twice the rows or more."""


@dataclass(frozen=True, slots=True)
class EntityRows:
    """Rows of one view of the online store; of one lane's round, each entity once.

    Parameters
    ----------
    keys : String (n,), names of the entities; null where only the store knows them
    ids : int64 (n,), keys of the names, none 0
    values : float64 (n, F)
    time_us : int64 (n,), event time
    place : int64 (n, 2), partition and offset: the order of rows of the same time
    urgent : bool (n,), entities of flagged events
    """

    keys: pl.Series
    ids: Int64
    values: Float64
    time_us: Int64
    place: Int64
    urgent: Bool

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, begin: int, end: int) -> EntityRows:
        """Rows `begin` to `end`; nothing is copied."""
        return EntityRows(
            self.keys.slice(begin, end - begin), self.ids[begin:end], self.values[begin:end],
            self.time_us[begin:end], self.place[begin:end], self.urgent[begin:end],
        )  # fmt: skip


Views = dict[View, EntityRows]


@njit
def _last(ids, flagged, shard, table, last, urgent, rows, marks, starts):
    """Last row and any flag of each id, put in `rows` and `marks` shard by shard.

    `table` is full of -1 and a power of two long; `starts` (S + 1) becomes where each shard begins.
    """
    mask = np.uint64(len(table) - 1)
    used = 0
    for i in range(len(ids)):
        if ids[i] == np.uint64(0):
            continue
        at = ids[i] & mask
        while table[at] >= 0 and ids[last[table[at]]] != ids[i]:
            at = (at + np.uint64(1)) & mask
        if table[at] < 0:
            table[at] = used
            urgent[used] = False
            starts[shard[i] + 1] += 1
            used += 1
        slot = table[at]
        last[slot] = i
        urgent[slot] |= flagged[i]
    for s in range(1, len(starts)):
        starts[s] += starts[s - 1]
    free = starts.copy()
    for slot in range(used):
        s = shard[last[slot]]
        rows[free[s]] = last[slot]
        marks[free[s]] = urgent[slot]
        free[s] += 1
    return used


@njit
def _gather(values, rows, columns, out):
    """Some columns of some rows."""
    for i in range(len(rows)):
        row = rows[i]
        for j in range(len(columns)):
            out[i, j] = values[row, columns[j]]


def newest_rows(ids: UInt64, flagged: Bool, shards: int) -> tuple[Int64, Bool, Int64]:
    """The last row of each entity, by shard.

    Parameters
    ----------
    ids : uint64 (n,), key of each row's entity; 0 where it is absent
    flagged : bool (n,)
    shards : how many there are

    Returns
    -------
    int64 (k,) rows, bool (k,) whether any row of the entity is flagged, int64 (shards + 1,) where
    each shard begins

    Examples
    --------
    >>> ids = np.array([5, 0, 5], np.uint64)
    >>> rows, urgent, starts = newest_rows(ids, np.array([True, True, False]), 1)
    >>> rows.tolist(), urgent.tolist(), starts.tolist()
    ([2], [True], [0, 1])
    """
    n = len(ids)
    size = TABLE_MIN
    while size < 2 * n:
        size *= 2
    rows, marks = np.empty(n, np.int64), np.empty(n, np.bool_)
    starts = np.zeros(shards + 1, np.int64)
    used = _last(
        ids, flagged, group_of(ids, shards), np.full(size, -1, np.int32), np.empty(n, np.int64),
        np.empty(n, np.bool_), rows, marks, starts,
    )  # fmt: skip
    return rows[:used], marks[:used], starts


def _names(frame: pl.DataFrame, parts: tuple[str, ...], rows: Int64) -> pl.Series:
    """The entity of some rows as the store names it; none of its parts is absent there."""
    # `Series.gather` takes the way of the lazy engine, 30 us a call; indexing does not.
    at = pl.Series(rows.astype(np.uint32))
    names = frame[parts[0]][at]
    for part in parts[1:]:
        names = names + "|" + frame[part][at]
    return names


def split_rows(
    batch: EventBatch,
    values: Float64,
    views: Mapping[str, npt.NDArray[np.intp]],
    flagged: Bool,
    shards: int,
) -> list[dict[str, EntityRows]]:
    """The newest row of each entity of a batch, whose rows are in order.

    Parameters
    ----------
    batch : events of one type
    values : float64 (n, F), their features
    views : entity -> columns of `values` that its view holds
    flagged : bool (n,), whether each event is flagged
    shards : how many there are

    Returns
    -------
    for each shard, entity -> rows
    """
    out: list[dict[str, EntityRows]] = [{} for _ in range(shards)]
    entities = event_type(batch.event_type).entities
    made = Columns(batch)
    time_us = batch.time_us
    place = np.column_stack((batch.partition, batch.offset)).astype(np.int64, copy=False)
    for entity, columns in views.items():
        ids = made.key(entity)
        rows, urgent, starts = newest_rows(ids, flagged, shards)
        if not len(rows):
            continue
        kept = np.empty((len(rows), len(columns)))
        _gather(values, rows, columns, kept)
        whole = EntityRows(
            _names(batch.frame, entities[entity], rows), ids.view(np.int64).take(rows), kept,
            time_us.take(rows), place.take(rows, axis=0), urgent,
        )  # fmt: skip
        for s in range(shards):
            if starts[s] < starts[s + 1]:
                out[s][entity] = whole.part(int(starts[s]), int(starts[s + 1]))
    return out


def split_emptied(keys: Int64, time_us: Int64, values: Float64, shards: int) -> list[EntityRows]:
    """Rows of windows that have run empty, by shard; a group knows entities by key alone.

    Parameters
    ----------
    keys, time_us, values : as of `features.rows.emptied_rows`
    shards : how many there are
    """
    shard = group_of(keys.view(np.uint64), shards)
    out = []
    for s in range(shards):
        at = np.flatnonzero(shard == s)
        # Behind every event of the same time: their rows were there when this was found.
        last = np.full((len(at), 2), np.iinfo(np.int64).max)
        names = pl.repeat(None, len(at), dtype=pl.String, eager=True)
        none = np.zeros(len(at), np.bool_)
        out.append(EntityRows(names, keys[at], values[at], time_us[at], last, none))
    return out


def warm_up() -> None:
    """Compile the kernels, so that the first round does not wait for it."""
    rows, _, _ = newest_rows(np.ones(2, np.uint64), np.zeros(2, np.bool_), 1)
    _gather(np.zeros((2, 1)), rows, np.zeros(1, np.intp), np.empty((1, 1)))
