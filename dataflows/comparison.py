"""Two bundles' votes held against each other, row by row: counts, estimates, examples.

Rows may be a sample. A row of weight w then stands for w rows, and what is counted of such rows is
an estimate with an interval: the entities were sampled, so their sums are what varies.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from dataflows.row_choice import entity_names, event_keys
from features.batch import EventBatch, FeatureMatrix, Float64, Int64
from features.catalog import Catalog
from features.events import event_type
from features.keys import UInt64
from models.base import Decisions
from models.bundle import Bundle
from models.decisions.reasons import reasons

__all__ = ["EXAMPLES_MAX", "Compared", "Comparison", "Verdicts", "interval", "verdicts_of"]

EXAMPLES_MAX = 5
"""Examples of an anomaly type and direction where nothing is said. Chosen: what a person reads."""

CONFIDENCE = 0.95
"""Of intervals. Chosen: the usual one."""

TOLD_APART = 0.997
"""Confidence with which the rows of a sample must make up all rows. Chosen: of samples that are as
they should be three in a thousand are taken for others."""

ENTITIES_MIN = 30
"""Fewest entities of a sample of which an interval is said. Chosen by simulation
(`tests/unit/test_comparison.py`): intervals then hold what is true in 95 % of the samples of
entities with one row or a thousand; with 20 there were samples of which three in four did."""

Sums = Mapping[tuple[int, float], int]
"""(entity, weight) -> rows."""

Flags = npt.NDArray[np.bool_]
Verdicts = Mapping[int, bool]
"""Key of an event (`features.labels.Label.event`) -> whether somebody said that it is a fraud."""


def verdicts_of(name: str, said: Mapping[str, bool]) -> dict[int, bool]:
    """Verdicts on events of one type by their ids."""
    keys = event_keys(name, pl.Series(list(said), dtype=pl.String)).view(np.int64).tolist()
    return dict(zip(keys, said.values(), strict=True))


@dataclass(frozen=True, slots=True)
class Compared:
    """Events of one type to be counted, n of them.

    Parameters
    ----------
    event_type : of all of them
    event_id, entity : (n,) texts; of the primary entity
    time_us : int64 (n,), event time
    truth : int16 (n,), code of the attack, 0 genuine, -1 not known
    weight : float64 (n,), how many rows each stands for; None: each for itself
    key : uint64 (n,), of the entity by which it was sampled; None where none was
    weight_max : what a row of the sample stands for; 1 where nothing is left out
    """

    event_type: str
    event_id: list[str]
    entity: list[str]
    time_us: Int64
    truth: npt.NDArray[np.int16]
    weight: Float64 | None = None
    key: UInt64 | None = None
    weight_max: float = 1.0

    @classmethod
    def of(cls, batch: EventBatch) -> Self:
        """All events of a batch."""
        unknown = np.full(len(batch), -1, np.int16)
        return cls(
            batch.event_type,
            [str(one) for one in batch.frame["event_id"].to_list()],
            entity_names(batch),
            batch.time_us,
            unknown if batch.truth is None else batch.truth,
        )


@dataclass(slots=True)
class _Counts:
    """Events of one anomaly type."""

    live: float = 0
    candidate: float = 0
    both: float = 0
    new: float = 0
    gone: float = 0
    frauds: float = 0
    won: float = 0
    lost: float = 0
    missed: float = 0
    new_genuine: float = 0
    gone_genuine: float = 0


_FRAUDS = ("frauds", "won", "lost", "missed")
"""Counts of known frauds: in all by event, whichever rules flag it."""

_TOTAL = ""
"""Stands for all anomaly types together."""

_UNFLAGGED = ("candidate", "new", "new_genuine", "frauds", "won", "missed")
"""Counts that have rows which the live bundle does not flag: those alone are sampled."""


@dataclass(slots=True)
class _Sampled:
    """What is counted in rows that stand for others.

    Parameters
    ----------
    sums : (entity, weight) -> rows counted of it
    """

    sums: dict[tuple[int, float], int] = field(default_factory=dict)

    def add(self, rows: Flags, weight: Float64, key: UInt64) -> None:
        """Count some rows."""
        those = rows & (weight > 1.0)
        for one in np.unique(weight[those]).tolist():
            keys, counts = np.unique(key[those & (weight == one)], return_counts=True)
            for entity, count in zip(keys.tolist(), counts.tolist(), strict=True):
                self.sums[entity, one] = self.sums.get((entity, one), 0) + count


def interval(
    counted: Sums, seen: Sums, events: float, weight_max: float
) -> tuple[float, float] | None:
    """Between which numbers the rows lie that a sample of entities stands for.

    Parameters
    ----------
    counted : (entity, weight) -> rows counted in the sample
    seen : the same of all rows of the sample, counted or not
    events : rows that the sample stands for
    weight_max : the largest weight there may be, above 1

    Returns
    -------
    lowest and highest of a `CONFIDENCE` interval; what was counted is the least there can be, and
    `events` the most. None where the sample says nothing: it has fewer than ENTITIES_MIN entities,
    or lacks those with the most rows, since it does not make up `events`.

    Notes
    -----
    An entity that was missed is taken to have as many rows as one of the sample has on average, or
    as were counted of any. Where all that is to be counted lies in a few entities with many times
    more, the highest is too low.

    Source: Fay and Feuer (1997), Confidence intervals for directly standardized rates: a method
    based on the gamma distribution, which holds for a handful of counts too; the sum of an entity
    takes the place of a count, and the variance is that of sampling without the entities seen,
    sum of (1 - 1/w) (w y)**2.
    """
    entities = len({entity for entity, _ in seen})
    if entities < ENTITIES_MIN:
        return None
    one = sum(weight * rows for (_, weight), rows in seen.items()) / entities
    low, high = _between(seen, one, weight_max, TOLD_APART)
    if not low <= events <= high:
        return None
    low, high = _between(counted, one, weight_max, CONFIDENCE)
    return max(low, float(sum(counted.values()))), min(high, events)


def _between(sums: Sums, one: float, weight_max: float, confidence: float) -> tuple[float, float]:
    """Lowest and highest of the rows that some of a sample stand for; `one` is what an entity of
    the sample stands for."""
    from scipy.special import gammaincinv

    tail = (1.0 - confidence) / 2.0
    made = [(weight, count) for (_, weight), count in sums.items()]
    total = sum(weight * count for weight, count in made)
    variance = sum((1.0 - 1.0 / weight) * (weight * count) ** 2 for weight, count in made)
    # One more entity may have been missed.
    most = max([weight_max, one, *(weight * count for weight, count in made)])
    low = 0.0
    if variance:
        low = variance / total * float(gammaincinv(total**2 / variance, tail))
    more, spread = total + most, variance + (1.0 - 1.0 / weight_max) * most**2
    return low, spread / more * float(gammaincinv(more**2 / spread, 1.0 - tail))


@dataclass(slots=True)
class Comparison:
    """See the module.

    Parameters
    ----------
    catalog : what the features are
    verdicts : what labels say of events
    examples_max : of each anomaly type and direction
    """

    catalog: Catalog
    verdicts: Verdicts
    examples_max: int = EXAMPLES_MAX
    events: int = 0
    kinds: dict[str, _Counts] = field(default_factory=dict)
    met: set[int] = field(default_factory=set)
    """Keys of events with a verdict that were among the rows."""
    _frauds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_FRAUDS, 0))
    _examples: dict[tuple[str, str], list[tuple[float, str, int, dict[str, Any]]]] = field(
        default_factory=dict
    )
    _taken: Iterator[int] = field(default_factory=itertools.count)
    _sampled: dict[tuple[str, str], _Sampled] = field(default_factory=dict)
    _seen: dict[str, _Sampled] = field(default_factory=dict)
    """Anomaly type -> the rows of the sample that it reads."""
    _left: dict[str, int] = field(default_factory=dict)
    """Anomaly type -> rows that the sample stands for."""
    _weight_max: dict[str, float] = field(default_factory=dict)
    _known: bool = False

    def add(
        self,
        rows: Compared,
        features: FeatureMatrix,
        live: tuple[Bundle, Decisions],
        candidate: tuple[Bundle, Decisions],
        events: int | None = None,
    ) -> None:
        """Take in what both make of some rows.

        Parameters
        ----------
        events : that they stand for, where the rows are a sample; None: as many
        """
        events = len(rows.event_id) if events is None else events
        self.events += events
        fraud, known = self._truth(rows)
        self._known |= bool(known.any())
        kinds = dict.fromkeys((*live[1].anomaly_types, *candidate[1].anomaly_types))
        self._look(rows, kinds, events)
        was, is_now = (np.asarray(made.flagged.any(axis=1)) for _, made in (live, candidate))
        for name, those in zip(_FRAUDS, _frauds(fraud, was, is_now), strict=True):
            self._frauds[name] += self._count(rows, _TOTAL, name, those)
        for kind in kinds:
            then, now = (_column(made, kind, made.flagged) for _, made in (live, candidate))
            counts = self.kinds.setdefault(kind, _Counts())
            new, gone = now & ~then, then & ~now
            for name, those in (
                ("live", then), ("candidate", now), ("both", then & now), ("new", new),
                ("gone", gone), ("new_genuine", new & known & ~fraud),
                ("gone_genuine", gone & known & ~fraud),
                *zip(_FRAUDS, _frauds(fraud, then, now), strict=True),
            ):  # fmt: skip
                setattr(counts, name, getattr(counts, name) + self._count(rows, kind, name, those))
            for way, those, (bundle, made) in (("new", new, candidate), ("gone", gone, live)):
                score = _column(made, kind, made.score)
                for row in np.flatnonzero(those).tolist():
                    said = "fraud" if fraud[row] else "genuine" if known[row] else "unknown"
                    told = {"change": way, "anomaly_type": kind, "verdict": said}
                    self._example(told, float(score[row]), rows, features, row, bundle)

    def _count(self, rows: Compared, kind: str, name: str, those: Flags) -> float:
        """How many rows some stand for."""
        if rows.weight is None or rows.key is None:
            return int(np.count_nonzero(those))
        if name in _UNFLAGGED:
            for whole in (kind,) if kind == _TOTAL or name in _FRAUDS else (kind, _TOTAL):
                found = self._sampled.setdefault((whole, name), _Sampled())
                found.add(those, rows.weight, rows.key)
        return float(rows.weight[those].sum())

    def _look(self, rows: Compared, kinds: Iterable[str], events: int) -> None:
        """Take in what a sample is of."""
        if rows.weight is None or rows.key is None:
            return
        left = events - int(np.count_nonzero(rows.weight <= 1.0))
        for kind in kinds:
            self._weigh(kind, rows.weight_max, left)
            for whole in (kind, _TOTAL):
                seen = self._seen.setdefault(whole, _Sampled())
                seen.add(np.ones(len(rows.weight), np.bool_), rows.weight, rows.key)

    def none_kept(self, kinds: Iterable[str], events: int, weight_max: float) -> None:
        """Take in events of which no row is in the sample.

        Parameters
        ----------
        kinds : anomaly types that read them
        weight_max : see `Compared`
        """
        self.events += events
        for kind in kinds:
            self.kinds.setdefault(kind, _Counts())
            if events:
                self._weigh(kind, weight_max, events)

    def _weigh(self, kind: str, weight_max: float, left: int) -> None:
        """Remember what a row that was left out may stand for, and how many rows a sample does."""
        for whole in (kind, _TOTAL):
            self._weight_max[whole] = max(self._weight_max.get(whole, 1.0), weight_max)
            self._left[whole] = self._left.get(whole, 0) + left

    def _truth(self, rows: Compared) -> tuple[Flags, Flags]:
        """bool (n,) each: known to be a fraud, and known at all."""
        fraud, known = rows.truth > 0, rows.truth >= 0
        if self.verdicts:
            ids = pl.Series(rows.event_id, dtype=pl.String)
            keys = event_keys(rows.event_type, ids).view(np.int64).tolist()
            for row, key in enumerate(keys):
                said = self.verdicts.get(key)
                if said is not None:
                    fraud[row], known[row] = said, True
                    self.met.add(key)
        return fraud, known

    def _example(
        self,
        told: dict[str, Any],
        score: float,
        rows: Compared,
        features: FeatureMatrix,
        row: int,
        bundle: Bundle,
    ) -> None:
        """Keep a row where it is among the most certain ones; reasons are made for those alone."""
        kept = self._examples.setdefault((told["change"], told["anomaly_type"]), [])
        rank = (score, rows.event_id[row])
        if len(kept) >= self.examples_max and (not kept or rank <= kept[0][:2]):
            return
        told |= {
            "event_type": rows.event_type,
            "event_id": rows.event_id[row],
            "time_us": int(rows.time_us[row]),
            "entity_type": event_type(rows.event_type).primary,
            "entity": rows.entity[row],
            "score": score,
            "reasons": [one[1] for one in reasons(self.catalog, bundle, features, row)],
        }
        # An event may be sent again: then only the running number tells one from the other.
        heapq.heappush(kept, (*rank, next(self._taken), told))
        if len(kept) > self.examples_max:
            heapq.heappop(kept)

    def report(self) -> dict[str, Any]:
        """Counts by anomaly type and in all, and examples, the most certain first."""
        total = _Counts()
        for one in self.kinds.values():
            for name, count in asdict(one).items():
                setattr(total, name, getattr(total, name) + count)
        for name, count in self._frauds.items():
            setattr(total, name, count)
        ways = sorted(self._examples, key=lambda way: (way[0] != "new", way[1]))
        ranked = [sorted(self._examples[way], reverse=True) for way in ways]
        return {
            "events": self.events,
            "total": self._told(_TOTAL, total),
            "anomaly_types": {n: self._told(n, one) for n, one in sorted(self.kinds.items())},
            "examples": [told for kept in ranked for *_, told in kept],
        }

    def _told(self, kind: str, counts: _Counts) -> dict[str, Any]:
        """Counts as whole numbers, with an interval each where they are estimates; None, and the
        least there can be, where the sample says nothing of them."""
        told: dict[str, Any] = {name: round(count) for name, count in asdict(counts).items()}
        told["intervals"] = {}
        if self._weight_max.get(kind, 1.0) <= 1.0 or not self._left[kind]:
            return told
        # Of the whole nothing is known where of a part nothing is.
        parts = [one for one in self._left if one] if kind == _TOTAL else [kind]
        known = all(self._interval(one, {}) is not None for one in parts if self._left[one])
        for name in _UNFLAGGED:
            if not self._known and name in ("new_genuine", *_FRAUDS):
                continue
            sums = self._sampled.get((kind, name), _Sampled()).sums
            weighed = sum(weight * count for (_, weight), count in sums.items())
            certain = getattr(counts, name) - weighed
            found = self._interval(kind, sums) if known else None
            if found is None:
                told[name] = None
                told["intervals"][name] = [round(certain + sum(sums.values())), None]
            else:
                told["intervals"][name] = [round(certain + at) for at in found]
        return told

    def _interval(self, kind: str, counted: Sums) -> tuple[float, float] | None:
        """See `interval`."""
        seen = self._seen.get(kind, _Sampled()).sums
        return interval(counted, seen, self._left[kind], self._weight_max[kind])


def _frauds(fraud: Flags, then: Flags, now: Flags) -> tuple[Flags, Flags, Flags, Flags]:
    """bool (n,) each, as in _FRAUDS."""
    return fraud, fraud & now & ~then, fraud & then & ~now, fraud & ~then & ~now


def _column(made: Decisions, kind: str, table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One anomaly type's column of votes or scores; zeros where a bundle has no such rule."""
    if kind not in made.anomaly_types:
        return np.zeros(len(table), table.dtype)
    return np.asarray(table[:, made.anomaly_types.index(kind)])
