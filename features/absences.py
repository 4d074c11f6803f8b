"""Absences on their way: names to the groups, what is overdue back to a lane, as an event batch.

A group knows entities by 64-bit keys only; a lane sends the name of an entity once, with its first
row, and again after it has been away (a group may have forgotten it by then). The groups' absences
of a round meet in the lowest lane that takes part in it, which knows of all peers how many are
silent, makes the events and scores them beside its own.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from features.batch import EventBatch, Int64
from features.events import event_type, event_types
from features.plan import ABSENCE
from features.silence import Overdue
from features.slots import find_key
from features.speed import kernel
from features.state import NAME_BYTES

__all__ = ["Absences", "Named", "Names", "Peers", "absence_id"]

UInt8 = npt.NDArray[np.uint8]
Named = tuple[Int64, UInt8]
"""Keys int64 (n,) and names uint8 (n, 128) of entities of one type."""

NAMES_MAX = 1 << 20
"""Entities of a type a lane remembers to have named; beyond it all are named anew.
Chosen: 32 MB."""

NAMES_MIN = 1 << 10

AWAY_US = 3_600_000_000
"""An entity that was away so long is named again. Chosen: shorter than any entity is kept for."""


@dataclass(frozen=True, slots=True)
class Absences:
    """What one group tells of silence in one round, of one entity type.

    Parameters
    ----------
    entity : entity type
    told : absences, and changes among their peers
    keys : int64 (n,), of the absent
    names : uint8 (n, 128), of the absent, padded with 0
    """

    entity: str
    told: Overdue
    keys: Int64
    names: UInt8


@kernel
def _unnamed(head, names_key, names_us, used, fresh):
    """Rows whose entity is new here or was away for long; returns (places in use, how many)."""
    n = 0
    for i in range(len(head)):
        key, time_us = head[i, 0], head[i, 1]
        at = find_key(key, names_key, names_us)
        if names_us[at] < 0:
            names_key[at] = key
            used += 1
        elif time_us - names_us[at] <= AWAY_US:
            names_us[at] = max(names_us[at], time_us)
            continue
        names_us[at] = max(names_us[at], time_us)
        fresh[n] = i
        n += 1
    return used, n


class _Known:
    """Keys of one entity type that have been named, with the newest time of each."""

    def __init__(self) -> None:
        self._used = 0
        self._clear(NAMES_MIN)

    def _clear(self, size: int) -> None:
        self._key = np.zeros(size, np.int64)
        self._newest_us = np.full(size, -1, np.int64)
        self._used = 0

    def fresh(self, head: Int64) -> Int64:
        """Rows of `head` whose names are to be sent."""
        if self._used + len(head) > NAMES_MAX:
            self._clear(NAMES_MIN)
        if 2 * (self._used + len(head)) > len(self._key):
            key, newest_us = self._key, self._newest_us
            size = len(key)
            while size < 2 * (self._used + len(head)):
                size *= 2
            self._clear(size)
            live = np.flatnonzero(newest_us >= 0)
            old = np.column_stack((key[live], newest_us[live]))
            self._used, _ = _unnamed(
                old, self._key, self._newest_us, 0, np.empty(len(live), np.int64)
            )
        found = np.empty(len(head), np.int64)
        self._used, n = _unnamed(head, self._key, self._newest_us, self._used, found)
        return found[:n]


class Names:
    """What one lane has named to the groups; a cache, lost with the process and made anew."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def of(self, entity: str, head: Int64, batches: Mapping[str, EventBatch]) -> Named | None:
        """Keys and names of the entities of `head` that are to be named; None where there are none.

        Parameters
        ----------
        head : int64 (n, >= 5), rows of one entity type: key, time, event code, lane, row
        batches : event type -> the batch whose rows they are
        """
        rows = self._known.setdefault(entity, _Known()).fresh(head)
        if not len(rows):
            return None
        keys: list[Int64] = []
        texts: list[str] = []
        kinds = list(event_types())
        for code in np.unique(head[rows, 2]).tolist():
            mine = rows[head[rows, 2] == code]
            frame = batches[kinds[code]].frame[head[mine, 4]]
            parts = event_type(kinds[code]).entities[entity]
            keys.append(head[mine, 0])
            texts += frame.select(pl.concat_str(parts, separator="|")).to_series().to_list()
        packed = np.array([text.encode()[:NAME_BYTES] for text in texts], f"S{NAME_BYTES}")
        return np.concatenate(keys), packed.view(np.uint8).reshape(-1, NAME_BYTES)


def absence_id(entity: str, key: int, due_us: int) -> str:
    """The id of an absence: a function of who was due and when.

    >>> absence_id("host", 1, 5)
    'absence-host-0000000000000001-5'
    """
    return f"{ABSENCE}-{entity}-{key & 0xFFFFFFFFFFFFFFFF:016x}-{due_us}"


class Peers:
    """How many members each holder and pool has, and how many of them are silent.

    Every lane hears of all changes, so that any of them can take over. It starts empty with the
    process: the groups tell all they know with their first round.
    """

    def __init__(self) -> None:
        self._count: dict[tuple[str, int, int], list[int]] = {}

    def take(self, absences: Iterable[Absences], due_ns: int = 0) -> EventBatch | None:
        """Take in what the groups tell in a round; its absences as events, None where there are
        none.

        Shares of silent peers are those of the moment an absence was due, as far as the groups have
        told of it by this round.

        Parameters
        ----------
        absences : of all groups, any order
        due_ns : wall clock at which they are taken to have been due, for measuring
        """
        changes: list[tuple[int, int, int, str, int, int, int]] = []
        rows: list[tuple[int, str, int, Absences, int]] = []
        for one in absences:
            changes += [
                (time_us, kind, key, one.entity, 0, members, silent)
                for time_us, kind, key, members, silent in one.told.changes.tolist()
            ]
            rows += [
                (due_us, one.entity, key, one, i)
                for i, (due_us, key) in enumerate(
                    zip(one.told.found[:, 1].tolist(), one.keys.tolist(), strict=True)
                )
            ]
        changes.sort()
        rows.sort(key=lambda row: row[:3])
        at = 0
        made = []
        for due_us, entity, key, one, i in rows:
            while at < len(changes) and changes[at][0] <= due_us:
                self._change(changes[at])
                at += 1
            made.append(self._event(due_us, entity, key, one, i))
        for change in changes[at:]:
            self._change(change)
        return _batch(made, due_ns) if made else None

    def _change(self, change: tuple[int, int, int, str, int, int, int]) -> None:
        """Count one change."""
        _, kind, key, entity, _, members, silent = change
        count = self._count.setdefault((entity, kind, key), [0, 0])
        count[0] += members
        count[1] += silent
        if not any(count):
            del self._count[entity, kind, key]

    def _event(
        self, due_us: int, entity: str, key: int, one: Absences, i: int
    ) -> tuple[object, ...]:
        """The fields of an absence."""
        _, _, last_us, run, first_us, spells, holder, pool = one.told.found[i].tolist()
        allowed_s, mean, deviation, hour = one.told.known[i].tolist()
        name = bytes(one.names[i]).rstrip(b"\0").decode(errors="ignore")
        return (
            absence_id(entity, key, due_us),
            due_us,
            entity,
            name or f"#{key & 0xFFFFFFFFFFFFFFFF:016x}",
            last_us,
            (due_us - last_us) / 1e6,
            float(np.exp(mean)),
            float(np.exp(hour)) if hour else None,
            allowed_s,
            deviation,
            run + 1,
            (last_us - first_us) / 1e6,
            spells,
            self._share(entity, 0, holder),
            self._share(entity, 1, pool),
        )

    def _share(self, entity: str, kind: int, key: int) -> float | None:
        """Share of the others that are silent, None where there are no others."""
        members, silent = self._count.get((entity, kind, key), (0, 0))
        return max(silent - 1, 0) / (members - 1) if members > 1 else None


def _batch(rows: list[tuple[object, ...]], due_ns: int) -> EventBatch:
    """Absences as a batch of events."""
    n = len(rows)
    frame = pl.DataFrame(rows, schema=event_type(ABSENCE).schema, orient="row")
    return EventBatch(
        ABSENCE,
        frame,
        np.zeros(n, np.int32),
        np.arange(n, dtype=np.int64),
        np.full(n, due_ns, np.int64),
    )
