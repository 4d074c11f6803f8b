"""What a round computed, as hashes: taken while live, and again by a replay to compare with.

The lane's home hashes features, the scoring step adds scores, votes and alerts; the commit step
adds the lanes up and writes the record (`dataflows.state.certificate`). Features are hashed twice:
as the groups gave them, a sum a group, and as the models read them, a sum a column.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt

from dataflows.control.records import Control
from dataflows.settings import recorded
from dataflows.state.certificate import Certificate, Record, digests_folder
from features.batch import FeatureMatrix, Int64
from features.catalog import Catalog
from features.digest import UInt32, add_columns, row_hashes, totals_of, words_of
from features.engine import GroupFeatures
from features.events import event_code
from features.keys import UInt64
from features.plan import plan_of
from models.base import Decisions, ScoreMatrix

if TYPE_CHECKING:
    from dataflows.context import Context
    from dataflows.score import RoundOut
    from dataflows.shelf import Seat

__all__ = [
    "SEQUENCE",
    "Digest",
    "RoundDigest",
    "alert_sum",
    "column_names",
    "header_of",
    "open_certificate",
    "record_of",
]

SEQUENCE = "sequence"
"""Name of the column that stands for all numbers of a row's sequence."""

COMPUTING = ("waxwing", "numpy", "numba", "llvmlite", "lightgbm", "torch", "scikit-learn", "polars")
"""Packages whose versions a certificate names. Chosen: those whose code makes numbers."""

_WORD = 2**64


def column_names(catalog: Catalog, lineup: Sequence[Seat], event: str) -> tuple[str, ...]:
    """Names of what is hashed of the rows of an event type, in the order of `Digest.columns`.

    Returns
    -------
    features as they are called, `sequence`, `score:DETECTOR`, `ensemble:ANOMALY_TYPE` and
    `flagged:ANOMALY_TYPE`; those of a bundle beside the live one with `@` and its id
    """
    found = [*catalog.names(event), SEQUENCE]
    for place, seat in enumerate(lineup):
        scorer, whose = seat.scorer, f"@{seat.bundle}" if place else ""
        rules = scorer.voting.of(event) if event in scorer.bundle.models else ()
        found += [f"score:{name}{whose}" for name in scorer.columns(event)]
        found += [f"ensemble:{rule.name}{whose}" for rule in rules]
        found += [f"flagged:{rule.name}{whose}" for rule in rules]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Digest:
    """Hashes of one lane's part of a round.

    Parameters
    ----------
    groups : uint64 (groups,), a sum over what each shard group gave
    columns : event type -> uint64 (columns,), see `column_names`
    rows : event type -> uint32 (n,), a hash of each row, in the batch's order
    alerts : sum over the hashes of the alerts' ids, below 2**64
    """

    groups: UInt64
    columns: dict[str, UInt64]
    rows: dict[str, UInt32]
    alerts: int = 0


@dataclass(slots=True)
class RoundDigest:
    """The digest of one lane's part of a round while it is made: features, then scores, then whole.

    Parameters
    ----------
    lane : whose
    groups : uint64 (groups,), added to
    columns, rows : event type -> sums so far
    """

    lane: int
    groups: UInt64
    columns: dict[str, list[UInt64]] = field(default_factory=dict)
    rows: dict[str, UInt64] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        catalog: Catalog,
        groups: int,
        lane: int,
        features: Mapping[str, FeatureMatrix],
        parts: Iterable[tuple[int, GroupFeatures]],
    ) -> RoundDigest:
        """Hash a lane's features.

        Parameters
        ----------
        features : as assembled
        parts : (group, what it gave for this lane), any order
        """
        bounds = {name: np.array([0, len(matrix)]) for name, matrix in features.items()}
        return cls.of_span(catalog, groups, lane, features, parts, bounds, 1)[0]

    @classmethod
    def of_span(
        cls,
        catalog: Catalog,
        groups: int,
        lane: int,
        features: Mapping[str, FeatureMatrix],
        parts: Iterable[tuple[int, GroupFeatures]],
        bounds: Mapping[str, Int64],
        rounds: int,
    ) -> list[RoundDigest]:
        """Hash a lane's features of some rounds in a row, each as if it were alone.

        Parameters
        ----------
        features, parts : see `of`, the rows of all rounds one after the other
        bounds : event type -> int64 (rounds + 1,), where each begins and ends
        """
        found = [cls(lane, np.zeros(groups, np.uint64)) for _ in range(rounds)]
        whole = {name: np.zeros(len(matrix), np.uint64) for name, matrix in features.items()}
        sequences = {name: np.zeros(rounds, np.uint64) for name in features}
        by_group = np.zeros((groups, rounds), np.uint64)
        for group, part in parts:
            _add_group(catalog, lane, part, bounds, whole, sequences, by_group[group])
        for r, digest in enumerate(found):
            digest.groups[:] = by_group[:, r]
            for name, matrix in features.items():
                begin, end = bounds[name][r : r + 2].tolist()
                if begin == end and rounds > 1:
                    continue  # of a round alone it would not be there either
                digest.rows[name], digest.columns[name] = whole[name][begin:end], []
                digest._table(name, matrix.values[begin:end])
                digest.columns[name].append(sequences[name][r : r + 1])
        return found

    def add(self, name: str, features: FeatureMatrix) -> None:
        """Hash rows that no group computes: absences."""
        self.rows[name], self.columns[name] = np.zeros(len(features), np.uint64), []
        self._table(name, features.values)
        self.columns[name].append(np.zeros(1, np.uint64))

    def _table(self, name: str, values: npt.NDArray[np.float64]) -> None:
        """Add columns of an event type behind those there are."""
        first = sum(len(columns) for columns in self.columns[name])
        columns = np.zeros(values.shape[1], np.uint64)
        add_columns(values, first, _seed(self.lane, name), columns, self.rows[name])
        self.columns[name].append(columns)

    def score(self, scores: ScoreMatrix, decisions: Decisions) -> None:
        """Add what was made of the rows of one event type."""
        for table in (scores.surprise, decisions.score, decisions.flagged.astype(np.float64)):
            self._table(scores.event_type, table)

    def whole(self, alert_ids: Iterable[str]) -> Digest:
        """The digest, once all event types are scored."""
        return Digest(
            self.groups,
            {name: np.concatenate(columns) for name, columns in self.columns.items()},
            {name: row_hashes(rows) for name, rows in self.rows.items()},
            alert_sum(alert_ids),
        )


def _seed(lane: int, name: str, view: int = 0) -> int:
    """Says whose rows they are: lane, event type, view; the place of a row goes below."""
    return ((lane + 1) << 48) | ((event_code(name) + 1) << 40) | (view << 32)


def _add_group(
    catalog: Catalog,
    lane: int,
    part: GroupFeatures,
    bounds: Mapping[str, Int64],
    rows: Mapping[str, UInt64],
    sequences: Mapping[str, UInt64],
    totals: UInt64,
) -> None:
    """Add what one group gave to its sums by round; its sequences to those of the lane too."""
    plan = plan_of(catalog)
    entities = list(plan.entities)
    for (name, entity), (places, values) in part.parts.items():
        if name not in bounds:
            continue  # of no row of this lane
        width = len(plan.entities[entity].features[name])
        seed = _seed(lane, name, entities.index(entity) + 1)
        totals += totals_of(words_of(values), width, True, places, bounds[name], seed)
    for name, (places, vectors) in part.sequences.items():
        if name not in bounds:
            continue
        width = int(np.prod(vectors.shape[1:]))  # there may be no row
        words = np.ascontiguousarray(vectors).reshape(len(vectors), width).view(np.uint64)
        seed = _seed(lane, name, 255)
        one = totals_of(words, words.shape[1], False, places, bounds[name], seed, rows[name])
        totals += one
        sequences[name][:] += one


def alert_sum(ids: Iterable[str]) -> int:
    """Sum over the hashes of alerts' ids, below 2**64; their order does not matter."""
    total = 0
    for name in ids:
        total += int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return total % _WORD


def record_of(
    round_: int, outs: Iterable[RoundOut]
) -> tuple[Record, dict[tuple[str, int], UInt32]]:
    """The record of a round, the sum over its lanes, and the row hashes by event type and lane."""
    groups: UInt64 = np.zeros(0, np.uint64)
    columns: dict[str, UInt64] = {}
    counts: dict[str, int] = {}
    rows: dict[tuple[str, int], UInt32] = {}
    ids_sum = alerts = received = cut_time_us = 0
    for out in outs:
        cut_time_us = max(cut_time_us, out.cut_time_us)
        received += out.received
        alerts += len(out.alerts)
        digest = out.digest
        if digest is None:
            continue
        groups = groups + digest.groups if len(groups) else digest.groups
        for name, sums in digest.columns.items():
            columns[name] = columns[name] + sums if name in columns else sums
            counts[name] = counts.get(name, 0) + len(digest.rows[name])
            rows[name, out.lane] = digest.rows[name]
        ids_sum = (ids_sum + digest.alerts) % _WORD
    record = Record(round_, cut_time_us, received, alerts, ids_sum, groups, columns, counts)
    return record, rows


def header_of(context: Context, control: Control) -> dict[str, Any]:
    """What a segment says of all its records, while `control` is in force."""
    catalog, settings = context.catalog, context.settings
    lineup = context.shelf.lineup(control)
    return {
        "catalog": catalog.version,
        "bundle": context.scorer.bundle.id,
        "voting": [
            # Weights only where there are some: rounds of before there were any are of one flow
            # with those after.
            {k: v for k, v in asdict(rule).items() if k != "weights" or v}
            for rule in context.scorer.voting.anomaly_types.values()
        ],
        "groups": settings.groups,
        "lanes": context.manifest.lanes,
        "columns": {name: column_names(catalog, lineup, name) for name in catalog.event_types},
        "bundles": [[seat.bundle, seat.stage] for seat in lineup],
        "settings": recorded(settings),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what numbers depend on: this program, the libraries that compute, the processor."""
    found = {name: _version(name) for name in COMPUTING}
    return found | {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
    }


@functools.cache
def processor() -> str:
    """What numba compiles for: the processor's name as LLVM has it, and a hash of its instructions.

    NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say otherwise, as they do to numba.

    Returns
    -------
    as `skylake-avx512 0f3a99c1`
    """
    named = getattr(numba.config, "CPU_NAME", None)
    told = getattr(numba.config, "CPU_FEATURES", None)
    name = named or llvmlite.binding.get_host_cpu_name()
    if told is None:
        told = "" if named else llvmlite.binding.get_host_cpu_features().flatten()
    kept = ",".join(sorted(told.split(",")))
    return f"{name} {hashlib.blake2b(kept.encode(), digest_size=4).hexdigest()}"


def _version(name: str) -> str:
    """An installed package's version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def open_certificate(context: Context) -> Certificate:
    """The certificate of a flow, standing after its manifest's round.

    Raises
    ------
    StateError : the disk refuses it
    """
    settings = context.settings
    return Certificate(
        digests_folder(settings.state_dir),
        header_of(context, Control.of(context.manifest.control)),
        context.manifest.round,
        round(settings.retention_h * 3.6e9),
        round(min(settings.row_hashes_h, settings.retention_h) * 3.6e9),
    )
