"""What each bundle in the line-up makes of the rows of a round, and whose word counts.

The live bundle decides; on the entities of a canary that one does, a shadow never. What a bundle
beside the live one would have said is counted, so that one knows before it is promoted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dataflows.ballots import Missed
from dataflows.context import Context
from dataflows.control.records import Control
from dataflows.corrections import Corrected
from dataflows.shelf import Seat, owners
from features.batch import EventBatch, FeatureMatrix, Float64, Int64
from features.events import event_type
from features.keys import UInt64, hash_columns
from models.base import Decisions, ScoreMatrix

__all__ = [
    "Beside",
    "Opinion",
    "ScoredBy",
    "besides",
    "has_canary",
    "opinions",
    "opinions_again",
    "owned",
    "shifts_of",
]

_NONE: Float64 = np.zeros(0)

ScoredBy = tuple[Seat, ScoreMatrix, Mapping[str, Missed], Decisions | None]
"""A bundle of the line-up, its scores of the rows of a round, its missing votes, and its votes
where they are known."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one bundle makes of some rows of one event type.

    Parameters
    ----------
    seat : the bundle and its stage
    scores, decisions : of n rows
    missed : detector -> votes that are missing, by rows of the whole round
    decides : bool (n,), rows on which its word counts
    margins : anomaly type -> float64 (n,), see `models.recalibration`; of rules that follow live
        traffic, by the live bundle
    """

    seat: Seat
    scores: ScoreMatrix
    decisions: Decisions
    missed: Mapping[str, Missed]
    decides: npt.NDArray[np.bool_]
    margins: Mapping[str, Float64] = field(default_factory=dict)

    @property
    def flagged(self) -> npt.NDArray[np.bool_]:
        """bool (n, A), what becomes an alert of this bundle."""
        return np.asarray(self.decisions.flagged & self.decides[:, None])


@dataclass(frozen=True, slots=True)
class Beside:
    """What a bundle of the line-up made of a lane's round, in counts.

    Parameters
    ----------
    bundle, stage : which
    rows : scored
    flagged : events it would alert about, were it live
    new : of these, those that the live bundle does not flag
    gone : events that the live bundle flags and this one does not
    alerts : about events on which its word counted
    missed : votes that were missing
    score_ms : its scores took, all event types together; of lanes beside each other, the longest
    """

    bundle: str
    stage: str
    rows: int = 0
    flagged: int = 0
    new: int = 0
    gone: int = 0
    alerts: int = 0
    missed: int = 0
    score_ms: float = 0.0

    def counts(self) -> dict[str, int]:
        """The counts by name."""
        told = ("bundle", "stage", "score_ms")
        return {k: v for k, v in asdict(self).items() if k not in told}

    def __add__(self, other: Beside) -> Beside:
        theirs = other.counts()
        summed: dict[str, Any] = {name: n + theirs[name] for name, n in self.counts().items()}
        return replace(self, **summed, score_ms=max(self.score_ms, other.score_ms))


def opinions(
    control: Control,
    batch: EventBatch,
    scored: tuple[ScoredBy, ...],
    rows: Int64,
) -> tuple[Opinion, ...]:
    """Votes of every bundle of the line-up on some rows, the live one's first.

    Parameters
    ----------
    batch : the events of the rows
    scored : of each bundle in the line-up, scores of all rows of the round
    rows : int64 (n,), which of them
    """
    lineup = tuple(seat for seat, *_ in scored)
    entity = _entities(batch, control, lineup)
    owner = _owner(batch, lineup, entity)
    found = []
    for place, (seat, scores, missed, decisions) in enumerate(scored):
        if len(rows) < len(scores):
            scores, decisions = scores.take(rows), None
        margins: dict[str, Float64] = {}
        if decisions is None:
            # Those of rules on other event types stay empty.
            margins = dict.fromkeys(control.followed, _NONE) if not place else {}
            shifts = shifts_of(control, seat)
            decisions = seat.scorer.decide(
                scores, control.thresholds, control.stages, entity, shifts, margins
            )
            names = decisions.anomaly_types
            margins = {name: margins[name] for name in names if name in margins}
        found.append(Opinion(seat, scores, decisions, missed, owner == place, margins))
    return tuple(found)


def has_canary(control: Control, lineup: Sequence[Seat]) -> bool:
    """Whether votes depend on whose the rows are."""
    canaries = any(stage == "canary" for stage, _ in control.stages.values())
    return canaries or any(seat.stage == "canary" for seat in lineup)


def opinions_again(
    context: Context, corrected: Corrected, features: FeatureMatrix
) -> list[Opinion]:
    """Votes on rows of an earlier round by the bundles whose word counted then."""
    control = corrected.control
    lineup = context.shelf.lineup(control)
    entity = _keys(corrected)
    owner = owners(lineup, entity)
    found = []
    for place, seat in enumerate(lineup):
        if seat.stage == "shadow":
            continue
        scores = context.ballots.plainly(seat.scorer, features, control.stages, seat.name)
        made = seat.scorer.decide(
            scores, control.thresholds, control.stages, entity, shifts_of(control, seat)
        )
        decides = np.ones(len(features), np.bool_) if owner is None else owner == place
        found.append(Opinion(seat, scores, made, {}, decides))
    return found


def owned(found: tuple[Opinion, ...]) -> npt.NDArray[np.bool_]:
    """bool (n,), rows that become an alert."""
    flagged = np.zeros(len(found[0].scores), np.bool_)
    for opinion in found:
        flagged |= opinion.flagged.any(axis=1)
    return flagged


def besides(found: tuple[Opinion, ...]) -> tuple[Beside, ...]:
    """The counts of each bundle of a line-up, the live one first."""
    live = np.asarray(found[0].decisions.flagged.any(axis=1))
    told = []
    for opinion in found:
        mine = np.asarray(opinion.decisions.flagged.any(axis=1))
        rows = len(mine)
        told.append(
            Beside(
                opinion.seat.bundle,
                opinion.seat.stage,
                rows,
                int(np.count_nonzero(mine)),
                int(np.count_nonzero(mine & ~live)),
                int(np.count_nonzero(live & ~mine)),
                int(np.count_nonzero(opinion.flagged)),
                sum(rows if m.rows is None else len(m.rows) for m in opinion.missed.values()),
            )
        )
    return tuple(told)


def shifts_of(control: Control, seat: Seat) -> dict[str, float]:
    """By how much the thresholds of a bundle have risen, of its anomaly types that are shifted."""
    return {name: control.shift(name, seat.bundle) for name in control.shifts}


def _entities(batch: EventBatch, control: Control, lineup: tuple[Seat, ...]) -> UInt64 | None:
    """uint64 (n,), keys of the primary entities, where a canary asks for them."""
    if not has_canary(control, lineup):
        return None
    declared = event_type(batch.event_type)
    return hash_columns(batch.frame, declared.entities[declared.primary])


def _owner(
    batch: EventBatch, lineup: tuple[Seat, ...], entity: UInt64 | None
) -> npt.NDArray[np.int8]:
    """int8 (n,), see `dataflows.shelf.owners`."""
    found = owners(lineup, entity)
    return np.zeros(len(batch), np.int8) if found is None else found


def _keys(corrected: Corrected) -> UInt64:
    """uint64 (n,), keys of the primary entities of corrected rows."""
    declared = event_type(corrected.event_type)
    return hash_columns(corrected.frame, declared.entities[declared.primary])
