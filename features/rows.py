"""Rows on their way: from the batches of a lane to the shard groups, and their features back home.

`features.split` sends each row to the groups of its entities; here `merge` puts the parts of
several lanes into the one global order, and `assemble` puts what the groups computed back beside
the lane's events.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from features.absences import Absences, Named
from features.batch import EventBatch, FeatureMatrix, Float64, Int64
from features.catalog import Catalog
from features.columns import Columns, flag_names
from features.derivation import in_order
from features.emptied import Emptied, timed_names
from features.events import event_type, event_types
from features.labels import Label
from features.operations import OPERATIONS, PRIOR_AGE_S, PRIOR_EVENTS
from features.plan import Plan, plan_of
from features.sequence import STEPS, WIDTH, widen
from features.speed import kernel

DERIVE = ("difference", "ratio", "surprise", "shrunk_z", "shrunk_count")
"""Operations on features of one row, in the order of their numbers in `_derive`."""

__all__ = [
    "Correction",
    "GroupFeatures",
    "GroupRows",
    "amend",
    "assemble",
    "emptied_rows",
    "merge",
]


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
    due_us : who has not spoken is held against this clock, and so is what late rows need; of all
        senders the smallest, leaving out those whose clock is not known. It may go back. -1:
        against `clock_us`
    labels : verdicts that become known in this round, before its rows pass
    names : entity type -> keys and names of entities that are named for the first time
    """

    lane: int
    heads: dict[str, Int64] = field(default_factory=dict)
    reals: dict[str, Float64] = field(default_factory=dict)
    round: int = -1
    clock_us: int = 0
    labels: tuple[Label, ...] = ()
    names: dict[str, Named] = field(default_factory=dict)
    due_us: int = -1

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
    values : float64 (n, features of the view or more), all of them, changed or not
    sequences : int16 (n, 16, 12), or None where the view has none
    differs : bool, as `values`: those that the late row has changed. The others stay as they were
        given: a label that has come since may speak of them, and the row was scored without it.
        None: all are taken
    """

    event_type: str
    entity: str
    rounds: Int64
    rows: Int64
    values: Float64
    sequences: npt.NDArray[np.int16] | None = None
    differs: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class GroupFeatures:
    """What one group computed for the rows of one lane; numpy arrays only.

    Parameters
    ----------
    lane : whose rows
    parts : (event type, entity) -> (rows int64 (n,), values float64 (n, features of the view or
        more; those of the view stand first))
    sequences : event type -> (rows int64 (n,), int16 (n, 16, 12))
    corrections : rows of this lane given in earlier rounds that late ones have changed; `amend`
        puts them in
    absences : what the group tells of silence: the lowest lane of the round gets the absences, all
        lanes what has changed among peers
    emptied : views whose windows have run empty, for the store: the lowest lane gets them
    """

    lane: int
    parts: dict[tuple[str, str], tuple[Int64, Float64]] = field(default_factory=dict)
    sequences: dict[str, tuple[Int64, npt.NDArray[np.int16]]] = field(default_factory=dict)
    corrections: tuple[Correction, ...] = ()
    absences: list[Absences] = field(default_factory=list)
    emptied: list[Emptied] = field(default_factory=list)


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
    GroupRows, its clock the largest of the parts', and what is due by the smallest
    """
    if len(rows) == 1:
        return rows[0]
    clock_us = max((part.clock_us for part in rows), default=0)
    labels = tuple(label for part in rows for label in part.labels)
    round_ = max((part.round for part in rows), default=-1)
    known = [part.due_us for part in rows if part.due_us > 0]
    due_us = min(known, default=max((part.due_us for part in rows), default=-1))
    merged = GroupRows(-1, round=round_, clock_us=clock_us, labels=labels, due_us=due_us)
    for entity in dict.fromkeys(e for part in rows for e in part.heads):
        heads = [part.heads[entity] for part in rows if entity in part.heads]
        reals = [part.reals[entity] for part in rows if entity in part.heads]
        head, real = np.concatenate(heads), np.concatenate(reals)
        merged.heads[entity], merged.reals[entity] = _in_order(head, real)
    for entity in dict.fromkeys(e for part in rows for e in part.names):
        named = [part.names[entity] for part in rows if entity in part.names]
        keys, texts = (np.concatenate(columns) for columns in zip(*named, strict=True))
        merged.names[entity] = keys, texts
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
                width = len(plan.entities[entity].features[event])
                _place(*result.parts[event, entity], width, first, values)
    columns = Columns(batch)
    for i, feature in enumerate(catalog.features(name)):
        family = OPERATIONS[feature.op].family
        if family == "stateless":
            column = str(feature.column)
            flags = flag_names(name)
            values[:, i] = columns.flag(column) if column in flags else columns.real(column)
    _derive(_derivations(catalog, name), values)
    return FeatureMatrix(name, names, values, _sequence(plan, name, n, results), catalog.version)


@lru_cache(maxsize=64)
def _derivations(catalog: Catalog, name: str, quiet: bool = False) -> Int64:
    """What `_derive` is told, int64 (features, 5): operation, left, right, where to, count; where
    nothing comes (`quiet`), an expected count has no peers and is the entity's own."""
    at = {n: i for i, n in enumerate(catalog.names(name))}
    rows = [
        (
            DERIVE.index(f.op),
            at[str(f.column)],
            at[str(f.other)],
            at[f.name],
            at[f.count] if f.count and not (quiet and f.op == "shrunk_count") else -1,
        )
        for f in in_order(catalog.features(name))
    ]
    return np.array(rows, np.int64).reshape(-1, 5)


@kernel
def _derive(told, values):
    """Fill the columns that are made of others of the same row, in the order of `told`.

    A surprise is that of Freeman and Tukey (1950): sqrt(c) + sqrt(c + 1) - sqrt(4 u + 1) has about
    unit variance.

    A shrunk deviation is the entity's own by so many values, a shrunk count its own by the time
    since its first event (of many events in its first minutes none says what is usual in an hour),
    drawn to that of its peers: what the event itself brings along, the merchant of a card's
    payment, the user of an address, the other hosts of a series' pool. The peers' state lies in
    other groups and is never asked for; all come home with the row, so that the number of groups
    changes nothing. An entity without a past is judged by its peers alone: its first usual event is
    no alarm, and one far from theirs is. Peers whose usual count is 0 are new themselves and say
    nothing.
    """
    for i in range(len(values)):
        for k in range(len(told)):
            left, right = values[i, told[k, 1]], values[i, told[k, 2]]
            if told[k, 0] == 0:
                found = left - right
            elif told[k, 0] == 1:
                found = left / right if right != 0.0 else np.nan
            elif told[k, 0] >= 3 and told[k, 4] < 0:
                found = left
            elif told[k, 0] >= 3:
                if told[k, 0] == 4 and right == 0.0:
                    right = np.nan  # A peer without a past expects nothing of anyone.
                n, found = values[i, told[k, 4]], right
                prior = PRIOR_EVENTS if told[k, 0] == 3 else PRIOR_AGE_S
                if left == left and n > 0.0:
                    found = left if right != right else (n * left + prior * right) / (n + prior)
                elif told[k, 0] == 4 and n != n:  # no such entity
                    found = np.nan
            else:
                found = np.sqrt(left) + np.sqrt(left + 1.0) - np.sqrt(4.0 * right + 1.0)
            values[i, told[k, 3]] = found


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
        width = len(plan.entities[correction.entity].features[name])
        part = correction.values[at, :width]
        if correction.differs is not None:
            given = values[rows, first : first + width]
            part = np.where(correction.differs[at, :width], part, given)
        _place(rows, part, width, first, values)
        if sequence is not None and correction.sequences is not None:
            widen(rows, correction.sequences[at], sequence)
    _derive(_derivations(catalog, name), values)
    return FeatureMatrix(name, matrix.names, values, sequence, matrix.catalog_version)


def emptied_rows(
    catalog: Catalog, told: Iterable[Emptied]
) -> dict[tuple[str, str], tuple[Int64, Int64, Float64]]:
    """What the groups tell of windows that have run empty, with what is made of it.

    Returns
    -------
    (event type, entity) -> keys int64 (n,), as of when int64 (n,), float64 (n, columns of
    `features.emptied.timed_names`)
    """
    found: dict[tuple[str, str], list[Emptied]] = {}
    for one in told:
        found.setdefault((one.event_type, one.entity), []).append(one)
    made = {}
    for (event, entity), parts in found.items():
        keys = np.concatenate([part.keys for part in parts])
        values = np.full((len(keys), len(catalog.names(event))), np.nan)
        first = plan_of(catalog).columns[event, entity]
        values[:, first : first + parts[0].values.shape[1]] = np.concatenate(
            [part.values for part in parts]
        )
        _derive(_derivations(catalog, event, quiet=True), values)
        columns = [catalog.names(event).index(n) for n in timed_names(catalog, event, entity)]
        times = np.concatenate([part.time_us for part in parts])
        made[event, entity] = keys, times, np.ascontiguousarray(values[:, columns])
    return made


@kernel
def _place(rows, part, width, first, values):
    """Put row i of `part`, `width` columns, into row rows[i] of `values`, from `first` on."""
    for i in range(len(rows)):
        for k in range(width):
            values[rows[i], first + k] = part[i, k]


def _sequence(
    plan: Plan, name: str, n: int, results: list[GroupFeatures]
) -> npt.NDArray[np.float32] | None:
    """float32 (n, 16, 12), or None where the event type has none."""
    primary = plan.entities.get(event_type(name).primary)
    if primary is None or primary.sequence is None:
        return None
    if list(event_types()).index(name) != primary.sequence.own:
        return None
    found = [result.sequences[name] for result in results if name in result.sequences]
    whole = sum(len(rows) for rows, _ in found) == n
    sequence = (np.empty if whole else np.zeros)((n, STEPS, WIDTH), np.float32)
    for rows, vectors in found:
        widen(rows, vectors, sequence)
    return sequence
