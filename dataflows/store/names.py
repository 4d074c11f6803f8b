"""What entities are called in the store: rows of windows that have run empty come by key alone.

Groups know entities by 64-bit keys. The writer learns a name with the first row it writes of an
entity, and after a restart from the keys in Redis: an entity the store does not have needs no row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from dataflows.store.layout import entities_in
from dataflows.store.wire import Wire
from features.batch import Int64
from features.events import event_types
from features.keys import hash_columns
from features.slots import SlotTable

__all__ = ["NAMES_MAX", "EntityNames", "scan_names"]

NAMES_MAX = 2_000_000
"""Names of an entity type that are kept; beyond it all are forgotten, and learned anew as rows
come. Chosen: as many as there are cards in a large bank's hour, 100 MB at 16 bytes a name."""

SCAN_COUNT = 1_000
"""Keys Redis is asked for at once. Chosen: a fraction of a millisecond of it."""

CHUNKS_MAX = 64
"""Pieces of names before they are put together; chosen: a copy every some seconds."""


class EntityNames:
    """Names of entities of one type, by key."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._table = SlotTable()
        self._names = pl.Series([], dtype=pl.String)

    def __len__(self) -> int:
        return self._table.used

    def add(self, ids: Int64, names: pl.Series) -> None:
        """Learn names; those known already are passed over.

        Parameters
        ----------
        ids : int64 (n,), none 0
        names : String (n,), none null
        """
        if len(self) + len(ids) > NAMES_MAX:
            self._clear()
        used = self._table.used
        slots, _, _ = self._table.intern(np.column_stack((ids, np.zeros_like(ids))))
        new, at = np.unique(slots, return_index=True)
        at = at[new >= used]  # in the order of their slots
        if len(at):
            self._names = self._names.append(names[at])
            if self._names.n_chunks() > CHUNKS_MAX:
                self._names = self._names.rechunk()

    def of(self, ids: Int64) -> pl.Series:
        """String (n,), null where the name is not known."""
        slots = pl.Series(self._table.find(ids.view(np.uint64)))
        return self._names[slots.set(slots < 0, None).cast(pl.UInt32)]


def scan_names(wire: Wire) -> Iterator[tuple[str, Int64, pl.Series]]:
    """Entity type, keys and names of what a store holds, some at a time.

    Raises
    ------
    redis.RedisError, OSError : Redis went away meanwhile
    """
    parts = {
        entity: len(columns)
        for declared in event_types().values()
        for entity, columns in declared.entities.items()
    }
    cursor: Any = 0
    while True:
        answer = wire.ask("SCAN", cursor, "COUNT", SCAN_COUNT)
        if isinstance(answer, Exception):
            raise answer
        cursor, keys = answer
        for entity, names in entities_in(keys).items():
            if entity not in parts:
                continue
            # Names of joint entities are told apart by their bars; one with more is no one's.
            split = pl.Series(names, dtype=pl.String).str.split("|" if parts[entity] > 1 else "\n")
            whole = split.list.len() == parts[entity]
            columns = [str(i) for i in range(parts[entity])]
            frame = pl.DataFrame(
                [split.list.get(i, null_on_oob=True).alias(columns[i]) for i in range(len(columns))]
            ).filter(whole)
            ids = hash_columns(frame, tuple(columns)).view(np.int64)
            yield entity, ids, pl.Series(names, dtype=pl.String).filter(whole)
        if int(cursor) == 0:
            return
