"""Rows on their way: from the batches of a lane to the shard groups, and their features back home.

`split` computes the columns features need and sends each row once to the group of each of its
entities; `merge` puts the parts of several lanes into the one global order; `assemble` puts what
the groups computed back beside the lane's events.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from features.batch import EventBatch, FeatureMatrix, Float64, Int64
from features.catalog import Catalog
from features.columns import Columns, flag_names
from features.events import event_code, event_type, event_types
from features.keys import group_of
from features.labels import Label
from features.operations import OPERATIONS
from features.plan import HEAD, EntityPlan, Plan, plan_of
from features.sequence import STEPS, WIDTH, widen
from features.speed import kernel

__all__ = ["Correction", "GroupFeatures", "GroupRows", "amend", "assemble", "merge", "split"]


@dataclass(frozen=True, slots=True)
class GroupRows:
    """What one lane sends to one shard group in one round; numpy arrays only.

    Parameters
    ----------
    lane : the sender
    heads : entity type -> int64 (n, 8 + keys): key, time in us, event code, lane, row in the lane's
        batch, partition, offset, flags as bits, keys of other entities; in the global order
    reals : entity type -> float64 (n, columns)
    round : number of the round, -1 where there is none
    clock_us : event-time clock of the sender with this round's events in it; of all senders once
        merged (the largest). It never goes back; rows are held against that of the round before.
        0: not known, so that nothing is late, due or too old
    labels : verdicts that become known in this round, before its rows pass
    """

    lane: int
    heads: dict[str, Int64] = field(default_factory=dict)
    reals: dict[str, Float64] = field(default_factory=dict)
    round: int = -1
    clock_us: int = 0
    labels: tuple[Label, ...] = ()

    def __len__(self) -> int:
        return sum(len(head) for head in self.heads.values())


@dataclass(frozen=True, slots=True)
class Correction:
    """Features of rows given before, as a late row has changed them; numpy arrays only.

    Parameters
    ----------
    event_type, entity : whose view changed; a row's other views stay as they are
    rounds : int64 (n,), round in which the row came
    rows : int64 (n,), its row in its lane's batch of that round
    values : float64 (n, features of the view), all of them, changed or not
    sequences : int16 (n, 16, 12), or None where the view has none
    """

    event_type: str
    entity: str
    rounds: Int64
    rows: Int64
    values: Float64
    sequences: npt.NDArray[np.int16] | None = None


@dataclass(frozen=True, slots=True)
class GroupFeatures:
    """What one group computed for the rows of one lane; numpy arrays only.

    Parameters
    ----------
    lane : whose rows
    parts : (event type, entity) -> (rows int64 (n,), values float64 (n, features of the view))
    sequences : event type -> (rows int64 (n,), int16 (n, 16, 12))
    corrections : rows of this lane given in earlier rounds that late ones have changed; `amend`
        puts them in
    """

    lane: int
    parts: dict[tuple[str, str], tuple[Int64, Float64]] = field(default_factory=dict)
    sequences: dict[str, tuple[Int64, npt.NDArray[np.int16]]] = field(default_factory=dict)
    corrections: tuple[Correction, ...] = ()


def split(
    catalog: Catalog,
    batches: dict[str, EventBatch],
    groups: int,
    lane: int = 0,
    round_: int = -1,
    clock_us: int = 0,
) -> list[GroupRows]:
    """The rows each group gets of one lane's batches.

    Parameters
    ----------
    batches : event type -> events of one round
    groups : number of shard groups
    lane : number of the lane, carried with each row
    round_ : number of the round, carried with each part
    clock_us : the lane's event-time clock after this round, carried with each part

    Returns
    -------
    list of `groups` GroupRows; index is the group
    """
    parts = [GroupRows(lane, round=round_, clock_us=clock_us) for _ in range(groups)]
    columns = {name: Columns(batch) for name, batch in batches.items() if len(batch)}
    for entity, plan in plan_of(catalog).entities.items():
        found = [
            _entity_rows(plan, batches[name], columns[name], lane)
            for name in plan.events
            if name in columns
        ]
        heads = [head for head, _ in found if len(head)]
        if not heads:
            continue
        if len(found) == 1:
            head, reals = found[0]
        else:
            head = np.concatenate([h for h, _ in found])
            reals = np.concatenate([r for _, r in found])
            # Each part is in order and the parts stand by event code: time alone decides the rest.
            order = np.argsort(head[:, 1], kind="stable")
            head, reals = head[order], reals[order]
        group = group_of(head[:, 0].view(np.uint64), groups)
        # A stable sort keeps the global order within each group.
        order = np.argsort(group.astype(np.int16), kind="stable")
        ends = np.cumsum(np.bincount(group, minlength=groups))
        head, reals = head[order], reals[order]
        start = 0
        for part, end in zip(parts, ends, strict=True):
            if end > start:
                part.heads[entity] = head[start:end]
                part.reals[entity] = reals[start:end]
            start = end
    return parts


def _entity_rows(
    plan: EntityPlan, batch: EventBatch, columns: Columns, lane: int
) -> tuple[Int64, Float64]:
    """Head and reals of the rows of one batch that touch the entity."""
    keys = columns.key(plan.entity)
    n = len(keys)
    head = np.empty((n, HEAD + len(plan.others)), np.int64)
    head[:, 0] = keys.view(np.int64)
    head[:, 1] = batch.time_us
    head[:, 2] = event_code(batch.event_type)
    head[:, 3] = lane
    head[:, 4] = np.arange(n)
    head[:, 5] = batch.partition
    head[:, 6] = batch.offset
    head[:, 7] = 0
    own_flags = flag_names(batch.event_type)
    for bit, name in enumerate(plan.flags):
        if name in own_flags:
            head[:, 7] |= columns.flag(name).astype(np.int64) << bit
    reals = np.empty((n, len(plan.reals)))
    for i, name in enumerate(plan.reals):
        reals[:, i] = columns.real(name) if columns.has_real(name) else np.nan
    for i, name in enumerate(plan.others):
        head[:, HEAD + i] = columns.key(name).view(np.int64) if columns.has_key(name) else 0
    present = keys != 0
    if not present.all():
        head, reals = head[present], reals[present]
    return _in_order(head, reals)


@kernel
def _is_ordered(head):
    """Whether rows already stand in the global order."""
    for i in range(1, len(head)):
        for k in (1, 2, 5, 6, 3):
            if head[i, k] != head[i - 1, k]:
                if head[i, k] < head[i - 1, k]:
                    return False
                break
    return True


def _in_order(head: Int64, reals: Float64) -> tuple[Int64, Float64]:
    """Rows by (time, event code, partition, offset, lane), where they are not already."""
    if _is_ordered(head):
        return head, reals
    order = np.lexsort((head[:, 3], head[:, 6], head[:, 5], head[:, 2], head[:, 1]))
    return head[order], reals[order]


def merge(rows: list[GroupRows]) -> GroupRows:
    """The parts of several lanes as one, in the global order.

    Parameters
    ----------
    rows : parts of one group and one round, any order of lanes

    Returns
    -------
    GroupRows, its clock the largest of the parts'
    """
    if len(rows) == 1:
        return rows[0]
    clock_us = max((part.clock_us for part in rows), default=0)
    labels = tuple(label for part in rows for label in part.labels)
    round_ = max((part.round for part in rows), default=-1)
    merged = GroupRows(-1, round=round_, clock_us=clock_us, labels=labels)
    for entity in dict.fromkeys(e for part in rows for e in part.heads):
        heads = [part.heads[entity] for part in rows if entity in part.heads]
        reals = [part.reals[entity] for part in rows if entity in part.heads]
        head, real = np.concatenate(heads), np.concatenate(reals)
        merged.heads[entity], merged.reals[entity] = _in_order(head, real)
    return merged


def assemble(
    catalog: Catalog, batches: dict[str, EventBatch], results: list[GroupFeatures]
) -> dict[str, FeatureMatrix]:
    """Features of a lane's batches, rows in the batches' order.

    Parameters
    ----------
    batches : those that were split
    results : what the groups sent back for this lane, any order

    Returns
    -------
    event type -> FeatureMatrix, for the event types that have features
    """
    plan = plan_of(catalog)
    return {
        name: _assemble_one(catalog, plan, batch, results)
        for name, batch in batches.items()
        if name in catalog.event_types
    }


def _assemble_one(
    catalog: Catalog, plan: Plan, batch: EventBatch, results: list[GroupFeatures]
) -> FeatureMatrix:
    """Features of one batch."""
    name, n = batch.event_type, len(batch)
    names = catalog.names(name)
    values = np.full((n, len(names)), np.nan)
    for (event, entity), first in plan.columns.items():
        if event != name:
            continue
        for result in results:
            if (event, entity) in result.parts:
                _place(*result.parts[event, entity], first, values)
    columns = Columns(batch)
    for i, feature in enumerate(catalog.features(name)):
        family = OPERATIONS[feature.op].family
        if family == "stateless":
            column = str(feature.column)
            flags = flag_names(name)
            values[:, i] = columns.flag(column) if column in flags else columns.real(column)
    _derive_all(catalog, name, values)
    return FeatureMatrix(name, names, values, _sequence(plan, name, n, results), catalog.version)


def _derive_all(catalog: Catalog, name: str, values: Float64) -> None:
    """Fill the columns that are made of two others."""
    names = catalog.names(name)
    for i, feature in enumerate(catalog.features(name)):
        if OPERATIONS[feature.op].family == "derived":
            left = values[:, names.index(str(feature.column))]
            right = values[:, names.index(str(feature.other))]
            values[:, i] = derive(feature.op, left, right)


def amend(
    catalog: Catalog, matrix: FeatureMatrix, round_: int, corrections: Iterable[Correction]
) -> FeatureMatrix:
    """The features a round would have had, had the late rows come in time.

    Parameters
    ----------
    matrix : features of one event type as `assemble` (or `amend`) gave them for the round
    round_ : number of that round
    corrections : of the lane, oldest first: the last one about a row holds
    """
    name, plan = matrix.event_type, plan_of(catalog)
    values = matrix.values.copy()
    sequence = None if matrix.sequence is None else matrix.sequence.copy()
    for correction in corrections:
        at = np.flatnonzero(correction.rounds == round_)
        if correction.event_type != name or not len(at):
            continue
        rows, first = correction.rows[at], plan.columns[name, correction.entity]
        _place(rows, correction.values[at], first, values)
        if sequence is not None and correction.sequences is not None:
            widen(rows, correction.sequences[at], sequence)
    _derive_all(catalog, name, values)
    return FeatureMatrix(name, matrix.names, values, sequence, matrix.catalog_version)


@kernel
def _place(rows, part, first, values):
    """Put row i of `part` into row rows[i] of `values`, from column `first` on."""
    for i in range(len(rows)):
        for k in range(part.shape[1]):
            values[rows[i], first + k] = part[i, k]


def derive(op: str, left: Float64, right: Float64) -> Float64:
    """A feature of two others of the same row, float64 (n,)."""
    if op == "difference":
        return left - right
    if op == "ratio":
        out = np.full(len(left), np.nan)
        np.divide(left, right, out=out, where=right != 0.0)
        return out
    # Freeman and Tukey (1950): sqrt(c) + sqrt(c + 1) - sqrt(4 u + 1) has about unit variance.
    return np.asarray(np.sqrt(left) + np.sqrt(left + 1.0) - np.sqrt(4.0 * right + 1.0))


def _sequence(
    plan: Plan, name: str, n: int, results: list[GroupFeatures]
) -> npt.NDArray[np.float32] | None:
    """float32 (n, 16, 12), or None where the event type has none."""
    primary = plan.entities.get(event_type(name).primary)
    if primary is None or primary.sequence is None:
        return None
    if list(event_types()).index(name) != primary.sequence.own:
        return None
    sequence = np.zeros((n, STEPS, WIDTH), np.float32)
    for result in results:
        if name in result.sequences:
            widen(*result.sequences[name], sequence)
    return sequence
