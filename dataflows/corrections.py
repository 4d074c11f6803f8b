"""Rows that a late event has changed after they were scored: what they would have been.

A late event is put in its place, and with it the features of rows that were scored before it came
are others than they were scored with. Nobody waited for it: the scores stand, alerts are neither
sent nor taken back. But it is counted, and where a vote would have come out the other way, told.

The lane keeps its last rows as they were scored, `late_s` of them by its clock and at most
`corrected_rows_max`, in full precision: features rounded to half their bits would flip votes by
themselves. A row changed twice is compared with what it was after the first change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from dataflows.control.records import Control
from features.batch import EventBatch, FeatureMatrix, Float64, Int64
from features.catalog import Catalog
from features.engine import Correction, GroupFeatures, amend
from features.events import event_code
from features.sequence import STEPS, WIDTH, widen

__all__ = ["CHECKED_ROUND_MAX", "Corrected", "RecentRows"]

CHECKED_ROUND_MAX = 2_000
"""Most rows of a round that are scored again; chosen: a tenth of a round, so that a flood of late
events slows the flow by a tenth at the most. The newest are taken, the rest are counted."""

_ROW_BITS = 32
"""A row is one number: its round above these bits, its place in the batch below."""

Int16 = npt.NDArray[np.int16]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Corrected:
    """Rows of one event type that a late event has changed.

    Parameters
    ----------
    event_type : name of the event type
    frame : (n,) their events
    rounds : int64 (n,), rounds in which they were scored
    before, after : their features as they were, and as they are now
    control : what was in force when they were scored
    """

    event_type: str
    frame: pl.DataFrame
    rounds: Int64
    before: FeatureMatrix
    after: FeatureMatrix
    control: Control


@dataclass(slots=True)
class _Round:
    """What is kept of one round."""

    clock_us: int
    rows: int
    batches: Mapping[str, EventBatch]
    features: Mapping[str, FeatureMatrix]
    sequences: dict[str, list[tuple[Int64, Int16]]]
    control: Control
    changed: dict[tuple[str, int], tuple[Float64, Float32 | None]] = field(default_factory=dict)


class RecentRows:
    """The last rows of a lane as they were scored.

    Parameters
    ----------
    catalog : what the columns are
    late_us : rows are kept as long as the lane's clock is no further on; 0 keeps none
    rows_max : most rows kept, whole rounds; the newest round is always kept
    """

    def __init__(self, catalog: Catalog, late_us: int, rows_max: int) -> None:
        self._catalog = catalog
        self._late_us, self._rows_max = late_us, rows_max
        self._rounds: dict[int, _Round] = {}
        self._sequenced: set[str] = set()

    def __len__(self) -> int:
        return sum(kept.rows for kept in self._rounds.values())

    def keep(
        self,
        round_: int,
        clock_us: int,
        batches: Mapping[str, EventBatch],
        features: Mapping[str, FeatureMatrix],
        results: Iterable[GroupFeatures],
        control: Control,
    ) -> None:
        """Keep a round, and let go of those no late event can change any more.

        Parameters
        ----------
        clock_us : the lane's clock with this round in it
        batches, features : of the round; not copied, so not to be changed by anyone
        results : what they were assembled from
        control : in force
        """
        if not self._late_us or not self._rows_max:
            return
        rows = sum(len(matrix) for matrix in features.values())
        if rows:
            sequences: dict[str, list[tuple[Int64, Int16]]] = {}
            for result in results:
                for name, part in result.sequences.items():
                    sequences.setdefault(name, []).append(part)
            # Sequences are kept as the groups gave them: half as large, and the same numbers.
            self._sequenced |= {n for n, m in features.items() if m.sequence is not None}
            slim = {name: replace(matrix, sequence=None) for name, matrix in features.items()}
            self._rounds[round_] = _Round(clock_us, rows, batches, slim, sequences, control)
        kept = len(self)
        for old in sorted(self._rounds):
            past = self._rounds[old].clock_us < clock_us - self._late_us
            if old == round_ or not (past or kept > self._rows_max):
                break
            kept -= self._rounds.pop(old).rows

    def check(self, corrections: Iterable[Correction]) -> tuple[tuple[Corrected, ...], int]:
        """What the rows of corrections were and are, and how many of them are no longer kept.

        Parameters
        ----------
        corrections : of earlier rounds of this lane; at most one about a row and view
        """
        by_type: dict[str, list[Correction]] = {}
        for correction in corrections:
            if len(correction.rows):
                by_type.setdefault(correction.event_type, []).append(correction)
        found: list[Corrected] = []
        unchecked, left = 0, CHECKED_ROUND_MAX
        for name in sorted(by_type, key=event_code):
            keys = np.unique(np.concatenate([_keys(c) for c in by_type[name]]))
            rounds = keys >> _ROW_BITS
            here = [r for r, kept in self._rounds.items() if name in kept.features]
            known = keys[np.isin(rounds, np.array(here, np.int64))]
            taken = known[max(0, len(known) - left) :]
            unchecked += len(keys) - len(taken)
            left -= len(taken)
            if len(taken):
                found += self._compared(name, taken, by_type[name])
        return tuple(found), unchecked

    def _compared(self, name: str, keys: Int64, corrections: list[Correction]) -> list[Corrected]:
        """Rows of one event type before and after, those that have changed."""
        before = self._rows(name, keys)
        after = amend(self._catalog, before, 0, [_at(c, keys) for c in corrections])
        changed = ~_same(before, after)
        for row in np.flatnonzero(changed).tolist():
            kept = self._rounds[int(keys[row]) >> _ROW_BITS]
            sequence = None if after.sequence is None else after.sequence[row]
            kept.changed[name, int(keys[row]) & (2**_ROW_BITS - 1)] = after.values[row], sequence
        rows, found = np.flatnonzero(changed), []
        rounds = keys >> _ROW_BITS
        controls = {id(self._rounds[r].control): r for r in rounds[rows].tolist()}
        for control in [self._rounds[r].control for r in sorted(controls.values())]:
            mine = rows[[self._rounds[r].control is control for r in rounds[rows].tolist()]]
            frames = [
                self._rounds[r]
                .batches[name]
                .frame[(keys[mine[rounds[mine] == r]] & (2**_ROW_BITS - 1))]
                for r in np.unique(rounds[mine]).tolist()
            ]
            found.append(
                Corrected(
                    name, pl.concat(frames), rounds[mine], _take(before, mine),
                    _take(after, mine), control,
                )
            )  # fmt: skip
        return found

    def _rows(self, name: str, keys: Int64) -> FeatureMatrix:
        """Features of kept rows as they were last known, in the order of their keys."""
        rounds, rows = keys >> _ROW_BITS, keys & (2**_ROW_BITS - 1)
        first = self._rounds[int(rounds[0])].features[name]
        values = np.empty((len(keys), len(first.names)))
        sequence = None
        if name in self._sequenced:
            sequence = np.zeros((len(keys), STEPS, WIDTH), np.float32)
        for r in np.unique(rounds).tolist():
            kept, at = self._rounds[r], np.flatnonzero(rounds == r)
            values[at] = kept.features[name].values[rows[at]]
            for places, vectors in kept.sequences.get(name, ()):
                _, theirs, ours = np.intersect1d(places, rows[at], return_indices=True)
                if sequence is not None and len(ours):
                    widen(at[ours], vectors[theirs], sequence)  # type: ignore[no-untyped-call]
            for i in at.tolist() if kept.changed else ():
                known = kept.changed.get((name, int(rows[i])))
                if known is not None:
                    values[i] = known[0]
                    if sequence is not None and known[1] is not None:
                        sequence[i] = known[1]
        return FeatureMatrix(name, first.names, values, sequence, first.catalog_version)


def _keys(correction: Correction) -> Int64:
    """int64 (n,), round and row of each corrected row as one number."""
    return np.asarray((correction.rounds.astype(np.int64) << _ROW_BITS) | correction.rows)


def _at(correction: Correction, keys: Int64) -> Correction:
    """The part of a correction that is about `keys`, in round 0, rows counted by place there."""
    mine = _keys(correction)
    at = np.flatnonzero(np.isin(mine, keys))
    sequences, differs = correction.sequences, correction.differs
    return replace(
        correction,
        rounds=np.zeros(len(at), np.int64),
        rows=np.searchsorted(keys, mine[at]),
        values=correction.values[at],
        sequences=None if sequences is None else sequences[at],
        differs=None if differs is None else differs[at],
    )


def _same(before: FeatureMatrix, after: FeatureMatrix) -> npt.NDArray[np.bool_]:
    """bool (n,), whether rows have the very same features."""
    equal = (before.values == after.values) | (np.isnan(before.values) & np.isnan(after.values))
    same: npt.NDArray[Any] = equal.all(axis=1)
    if before.sequence is not None and after.sequence is not None:
        same &= (before.sequence == after.sequence).all(axis=(1, 2))
    return same


def _take(matrix: FeatureMatrix, rows: Int64) -> FeatureMatrix:
    """Some rows of a matrix."""
    return FeatureMatrix(
        matrix.event_type,
        matrix.names,
        matrix.values[rows],
        None if matrix.sequence is None else matrix.sequence[rows],
        matrix.catalog_version,
    )
