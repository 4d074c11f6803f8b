"""From a lane's batches to the shard groups: each row once to the group of each of its entities.

What the features of an event type need of its columns is laid out once a batch, as one table each
of numbers, flags and keys; then one pass an entity type writes each row where it belongs: beside
the rows of its group, in the global order. Nothing is sorted that stands in order already, nothing
is copied twice.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from features.absences import Names
from features.batch import EventBatch, Int64
from features.catalog import Catalog
from features.columns import Columns, flag_names, has_key, has_real
from features.events import event_code
from features.keys import group_of
from features.plan import HEAD, EntityPlan, plan_of
from features.rows import GroupRows
from features.speed import kernel

__all__ = ["split"]


@dataclass(frozen=True, slots=True)
class _Places:
    """Where one entity type finds its columns in an event type's tables; -1 where it has none."""

    key: int
    others: Int64
    flags: Int64
    reals: Int64


@dataclass(frozen=True, slots=True)
class _Layout:
    """The columns of an event type that any entity's features need, and where each finds its."""

    reals: tuple[str, ...]
    flags: tuple[str, ...]
    keys: tuple[str, ...]
    of: dict[str, _Places]


@lru_cache(maxsize=32)
def _layouts(catalog: Catalog) -> dict[str, _Layout]:
    """Layout of each event type that has rows to send."""
    plans = plan_of(catalog).entities
    found: dict[str, _Layout] = {}
    for event in dict.fromkeys(name for plan in plans.values() for name in plan.events):
        mine = [plan for plan in plans.values() if event in plan.events]
        flags_known = flag_names(event)
        reals = _needed(n for p in mine for n in p.reals if has_real(event, n))
        flags = _needed(n for p in mine for n in p.flags if n in flags_known)
        keys = _needed(
            n for p in mine for n in (p.entity, *p.others) if n == p.entity or has_key(event, n)
        )
        found[event] = _Layout(
            reals, flags, keys, {p.entity: _places(p, reals, flags, keys) for p in mine}
        )
    return found


def _needed(names) -> tuple[str, ...]:
    """Names, each once, in the order met."""
    return tuple(dict.fromkeys(names))


def _places(
    plan: EntityPlan, reals: tuple[str, ...], flags: tuple[str, ...], keys: tuple[str, ...]
) -> _Places:
    """Where the columns of one entity type stand."""

    def at(wanted: list[str], names: tuple[str, ...]) -> Int64:
        return np.array([names.index(n) if n in names else -1 for n in wanted], np.int64)

    return _Places(
        keys.index(plan.entity), at(plan.others, keys), at(plan.flags, flags), at(plan.reals, reals)
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """The columns of one batch, row by row in the order of the batch."""

    layout: _Layout
    code: int
    time_us: Int64
    partition: npt.NDArray[np.int32]
    offset: Int64
    reals: npt.NDArray[np.float64]
    flags: npt.NDArray[np.bool_]
    keys: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, layout: _Layout, batch: EventBatch) -> _Table:
        """Lay a batch out."""
        columns, n = Columns(batch), len(batch)
        reals = np.empty((n, len(layout.reals)))
        for i, name in enumerate(layout.reals):
            reals[:, i] = columns.real(name)
        flags = np.empty((n, len(layout.flags)), np.bool_)
        for i, name in enumerate(layout.flags):
            flags[:, i] = columns.flag(name)
        keys = np.empty((n, len(layout.keys)), np.uint64)
        for i, name in enumerate(layout.keys):
            keys[:, i] = columns.key(name)
        return cls(
            layout, event_code(batch.event_type), batch.time_us, batch.partition, batch.offset,
            reals, flags, keys,
        )  # fmt: skip


def split(
    catalog: Catalog,
    batches: dict[str, EventBatch],
    groups: int,
    lane: int = 0,
    round_: int = -1,
    clock_us: int = 0,
    names: Names | None = None,
    due_us: int = -1,
    rounds: Mapping[str, Int64] | None = None,
    only: frozenset[int] | None = None,
) -> list[GroupRows]:
    """The rows each group gets of one lane's batches.

    Parameters
    ----------
    batches : event type -> events of one round
    groups : number of shard groups
    lane : number of the lane, carried with each row
    round_ : number of the round, carried with each part
    clock_us : the lane's event-time clock after this round, carried with each part
    names : what the lane has named before; None names nobody, and absences go by their keys
    due_us : as of `GroupRows`
    rounds : event type -> int64 (n,), the round of each row where the batches hold several, one
        after the other: each group's rows stand round after round then
    only : groups that get rows; None: all

    Returns
    -------
    list of `groups` GroupRows; index is the group
    """
    parts = [GroupRows(lane, round=round_, clock_us=clock_us, due_us=due_us) for _ in range(groups)]
    layouts = _layouts(catalog)
    tables = {
        name: _Table.of(layouts[name], batch)
        for name, batch in batches.items()
        if len(batch) and name in layouts
    }
    ranks: dict[tuple[str, ...], list[Int64]] = {}
    for plan in plan_of(catalog).entities.values():
        events = tuple(name for name in plan.events if name in tables)
        if not events:
            continue
        if events not in ranks:
            of = None if rounds is None else [rounds[name] for name in events]
            ranks[events] = _ranks([tables[name] for name in events], of)
        _send(plan, [tables[name] for name in events], ranks[events], lane, parts, only)
        if names is not None and plan.silence is not None:
            _name(parts, plan.entity, names, batches)
    return parts


def _name(
    parts: list[GroupRows], entity: str, names: Names, batches: dict[str, EventBatch]
) -> None:
    """Give each group the names of those of its entities that it may not know."""
    heads = [part.heads[entity] for part in parts if entity in part.heads]
    named = names.of(entity, np.concatenate(heads), batches) if heads else None
    if named is None:
        return
    keys, texts = named
    group = group_of(keys.view(np.uint64), len(parts))
    for g in np.unique(group).tolist():
        parts[g].names[entity] = (keys[group == g], texts[group == g])


def _ranks(tables: list[_Table], rounds: list[Int64] | None = None) -> list[Int64]:
    """Place of each row among the rows of all tables in the global order.

    That order is (time, event code, partition, offset); the tables stand by event code. `rounds`
    are those of the rows where there are several: they come first, each table is in order in each.
    """
    total = sum(len(t.time_us) for t in tables)
    if rounds is not None and len(tables) == 1:
        return [np.arange(total)]
    ordered = rounds is not None or all(
        _is_ordered(t.time_us, t.partition, t.offset) for t in tables
    )
    if len(tables) == 1 and ordered:
        return [np.arange(total)]
    time_us = np.concatenate([t.time_us for t in tables])
    if ordered:
        # Each part is in order and the parts stand by event code: time alone decides the rest.
        order = np.argsort(time_us, kind="stable")
        if rounds is not None:
            order = order[np.argsort(np.concatenate(rounds)[order], kind="stable")]
    else:
        code = np.concatenate([np.full(len(t.time_us), t.code) for t in tables])
        partition = np.concatenate([t.partition for t in tables])
        offset = np.concatenate([t.offset for t in tables])
        order = np.lexsort((offset, partition, code, time_us))
    rank = np.empty(total, np.int64)
    rank[order] = np.arange(total)
    ends = np.cumsum([len(t.time_us) for t in tables])
    return np.split(rank, ends[:-1])


@kernel
def _is_ordered(time_us, partition, offset):
    """Whether rows of one event type already stand in the global order."""
    for i in range(1, len(time_us)):
        if time_us[i] != time_us[i - 1]:
            if time_us[i] < time_us[i - 1]:
                return False
        elif partition[i] != partition[i - 1]:
            if partition[i] < partition[i - 1]:
                return False
        elif offset[i] < offset[i - 1]:
            return False
    return True


def _send(
    plan: EntityPlan,
    tables: list[_Table],
    ranks: list[Int64],
    lane: int,
    parts: list[GroupRows],
    only: frozenset[int] | None,
) -> None:
    """Give the groups their rows of one entity type."""
    groups = len(parts)
    total = sum(len(rank) for rank in ranks)
    group = np.empty(total, np.int16)
    for table, rank in zip(tables, ranks, strict=True):
        keys = np.ascontiguousarray(table.keys[:, table.layout.of[plan.entity].key])
        of = group_of(keys, groups)
        if only is not None:
            keys = np.where(np.isin(of, list(only)), keys, np.uint64(0))
        _note_groups(keys, of, rank, group)
    ends = np.empty(groups, np.int64)
    place = np.empty(total, np.int64)
    _count_out(group, ends, place)
    if ends[-1] == 0:
        return
    head = np.empty((ends[-1], HEAD + len(plan.others)), np.int64)
    reals = np.empty((ends[-1], len(plan.reals)))
    for table, rank in zip(tables, ranks, strict=True):
        at = table.layout.of[plan.entity]
        _lay(
            place, rank, table.code, lane, table.time_us, table.partition, table.offset,
            table.reals, table.flags, table.keys, at.key, at.others, at.flags, at.reals, head,
            reals,
        )  # fmt: skip
    start = 0
    for part, end in zip(parts, ends.tolist(), strict=True):
        if end > start:
            part.heads[plan.entity] = head[start:end]
            part.reals[plan.entity] = reals[start:end]
        start = end


@kernel
def _note_groups(keys, of, rank, group):
    """Put the group of each row at its place in the global order; -1 where the entity is absent."""
    for i in range(len(keys)):
        group[rank[i]] = of[i] if keys[i] != np.uint64(0) else -1


@kernel
def _count_out(group, ends, place):
    """Places of rows such that each group's stand together, in order; `ends` says where they end.

    group : int16 (n,), -1 for rows that go nowhere, whose `place` becomes -1
    ends : int64 (groups,), filled here
    """
    ends[:] = 0
    for i in range(len(group)):
        if group[i] >= 0:
            ends[group[i]] += 1
    begin = 0
    for g in range(len(ends)):
        ends[g], begin = begin, begin + ends[g]
    for i in range(len(group)):
        place[i] = -1
        if group[i] >= 0:
            place[i] = ends[group[i]]
            ends[group[i]] += 1


@kernel
def _lay(
    place, rank, code, lane, time_us, partition, offset, reals_in, flags_in, keys_in, key, others,
    flags, columns, head, reals
):  # fmt: skip
    """Write the rows of one table where `place` of their rank says: `GroupRows.heads`, `.reals`.

    Parameters
    ----------
    place, rank : int64, see `_count_out` and `_ranks`
    reals_in, flags_in, keys_in : (n, columns), the tables
    key : column of the entity's key
    others, flags, columns : int64, columns of the tables, -1 where the event type has none
    """
    for i in range(len(rank)):
        to = place[rank[i]]
        if to < 0:
            continue
        bits = np.int64(0)
        for b in range(len(flags)):
            if flags[b] >= 0:
                bits |= np.int64(flags_in[i, flags[b]]) << b
        head[to, 0] = np.int64(keys_in[i, key])
        head[to, 1] = time_us[i]
        head[to, 2] = code
        head[to, 3] = lane
        head[to, 4] = i
        head[to, 5] = partition[i]
        head[to, 6] = offset[i]
        head[to, 7] = bits
        for k in range(len(others)):
            head[to, HEAD + k] = np.int64(keys_in[i, others[k]]) if others[k] >= 0 else 0
        for k in range(len(columns)):
            reals[to, k] = reals_in[i, columns[k]] if columns[k] >= 0 else np.nan
