"""From features to what leaves the flow: scores, votes, alerts with reasons, rows for the store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from dataflows.admission import origin_of
from dataflows.alerts.base import Alert, Reason, Vote, alert_id
from dataflows.ballots import Missed
from dataflows.context import Context
from dataflows.control.records import Control
from dataflows.corrections import Corrected
from dataflows.digests import Digest
from dataflows.opinions import (
    Beside,
    Opinion,
    ScoredBy,
    besides,
    has_canary,
    opinions,
    opinions_again,
    owned,
    shifts_of,
)
from dataflows.poison import culprits, letters, told
from dataflows.row_choice import KeptRound
from dataflows.shelf import Seat
from dataflows.sources.base import DeadLetter, Gap
from dataflows.steps import Featured
from dataflows.store.rows import SHARDS, WINDOWS, Views, split_emptied, split_rows
from features.batch import EventBatch, FeatureMatrix, Int64, stack
from features.errors import WaxwingError
from features.events import EventType, event_type, made_types
from features.labels import Label
from features.rows import emptied_rows
from models.base import Decisions, ScoreMatrix
from models.bundle import Bundle
from models.decisions.reasons import REASONS_MAX, number_text, reasons
from models.recalibration import Spread, spread_of
from models.scoring import take_rows

__all__ = [
    "Flip",
    "RoundOut",
    "Scored",
    "Seen",
    "StoreRows",
    "pass_round",
    "score_round",
    "score_rounds",
    "touched",
]

QUOTED_MAX = 100
"""Most characters of an event's own words in a summary. Chosen: a line is known by them."""

ALERTS_ROUND_MAX = 2_000
"""Most alerts a lane writes in one round; a flood beyond it is counted, not paged. Chosen: a
tenth of a round."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores and votes of one event type in a round, kept where the truth is known.

    `absences` is set where these are no events of a source but absences.
    """

    event_type: str
    truth: npt.NDArray[np.int16]
    scores: ScoreMatrix
    decisions: Decisions
    absences: pl.DataFrame | None = None


FLIPS_ROUND_MAX = 20
"""Most flipped votes a lane names in one round; all are counted. Chosen: a screen."""


@dataclass(frozen=True, slots=True)
class Flip:
    """A vote that would have come out the other way, had a late event come in time.

    Parameters
    ----------
    event_type, event_id : whose
    anomaly_type : which vote
    round : in which it was scored
    was, would_be : whether the event was flagged, and would have been
    score_was, score_would_be : the ensemble's scores
    """

    event_type: str
    event_id: str
    anomaly_type: str
    round: int
    was: bool
    would_be: bool
    score_was: float
    score_would_be: float


@dataclass(frozen=True, slots=True)
class Seen:
    """All that was known of the rows of one event type in a round; kept in a replay alone.

    `scores` and `decisions` are of the live bundle, `opinions` of all that scored, it first.
    """

    batch: EventBatch
    features: FeatureMatrix
    scores: ScoreMatrix
    decisions: Decisions
    opinions: tuple[Opinion, ...] = ()


@dataclass(frozen=True, slots=True)
class RoundOut:
    """What one lane's round leaves behind; the commit step writes it once all lanes have theirs."""

    lane: int
    round: int
    cut_time_us: int
    received: int
    duplicates: int
    rejects: tuple[DeadLetter, ...]
    scored: dict[str, int]
    alerts: tuple[Alert, ...]
    muted: int
    suppressed: int
    due_ns: Int64
    known: tuple[Scored, ...]
    control: Control
    final: bool
    replayed: bool
    absences: int = 0
    emptied: int = 0
    corrected: int = 0
    corrected_unchecked: int = 0
    flipped: int = 0
    flips: tuple[Flip, ...] = ()
    unpriced: int = 0
    old_rate: int = 0
    gaps: tuple[Gap, ...] = ()
    waiting: int = 0
    digest: Digest | None = None
    seen: tuple[Seen, ...] = ()
    batches: dict[str, EventBatch] | None = None
    features: dict[str, FeatureMatrix] | None = None
    beside: tuple[Beside, ...] = ()
    labels: tuple[Label, ...] = ()
    first_us: int | None = None
    """Event time of the first event, None where there was none."""
    spreads: tuple[Spread, ...] = ()
    kept: KeptRound | None = None
    """Rows for later comparisons, None where none are kept."""


@dataclass(frozen=True, slots=True)
class StoreRows:
    """One lane's newest rows for one shard of the online store in one round."""

    lane: int
    round: int
    shard: int
    views: Views
    final: bool


_Said = tuple[ScoreMatrix, Mapping[str, Missed], Decisions | None]

Asked = Mapping[Seat, Mapping[str, _Said]]
"""What the bundles of a line-up make of a round: event type -> scores, missing votes, and votes
where they are known."""


def score_rounds(
    context: Context,
    items: Sequence[Featured],
    features: Mapping[str, FeatureMatrix],
    bounds: Mapping[str, Int64],
) -> Iterator[RoundOut]:
    """As `score_round` for a lane's rounds in a row, whose detectors are asked once for all.

    Parameters
    ----------
    items : the rounds
    features : of the events of all of them
    bounds : event type -> int64 (R + 1,), where each round begins and ends there
    """
    noted = context.ballots.noted(items[0].lane)
    first = 0
    while first < len(items):
        end = first + 1
        while end < len(items) and _alike(context, items[first], items[end], noted):
            end += 1
        run = items[first:end]
        begun = time.perf_counter()
        asked = None if len(run) == 1 else _asked(context, run, features, bounds, first)
        context.telemetry.stage("ask", time.perf_counter() - begun)
        for r, item in enumerate(run):
            for out in score_round(context, item, None if asked is None else asked[r]):
                if isinstance(out, RoundOut):
                    yield out
        first = end


def _alike(context: Context, one: Featured, other: Featured, noted: frozenset[int]) -> bool:
    """Whether two rounds are scored by the same detectors, with no missing vote noted."""
    lineups = [context.shelf.lineup(item.control) for item in (one, other)]
    return (
        lineups[0] == lineups[1]
        and one.control.stages == other.control.stages
        and one.control.thresholds == other.control.thresholds
        and one.control.shifts == other.control.shifts
        and not noted & {one.round, other.round}
    )


def _asked(
    context: Context,
    run: Sequence[Featured],
    features: Mapping[str, FeatureMatrix],
    bounds: Mapping[str, Int64],
    first: int,
) -> list[Asked] | None:
    """What each of some rounds' scores are, asked for in one go; None where that cannot be, or a
    vote is missing.

    Parameters
    ----------
    first : place of the first of them in `bounds`
    """
    control = run[0].control
    lineup = context.shelf.lineup(control)
    names = list(dict.fromkeys(name for item in run for name in item.features))
    if any(seat.scorer.far(name) for seat in lineup for name in names):
        return None  # what was answered elsewhere is kept by round
    whole: dict[str, FeatureMatrix] = {}
    for name in names:
        if name in features:
            begin, end = int(bounds[name][first]), int(bounds[name][first + len(run)])
            whole[name] = features[name].rows(begin, end)
        else:
            whole[name] = stack([item.features[name] for item in run if name in item.features])
    # Where votes depend on entities, or margins are to be told, each round is decided by itself.
    alone = has_canary(control, lineup) or bool(control.followed)
    asked: list[dict[Seat, dict[str, _Said]]] = [{} for _ in run]
    for seat in lineup:
        made = context.ballots.scored(
            seat.scorer, run[0].lane, run[0].round, whole, control.stages, seat.name
        )
        if any(missed for _, missed in made.values()):
            return None
        votes = {} if alone else _decided(control, seat, made)
        at = dict.fromkeys(whole, 0)
        for item, found in zip(run, asked, strict=True):
            found[seat] = {}
            for name, matrix in item.features.items():
                rows = slice(at[name], at[name] + len(matrix))
                at[name] = rows.stop
                scores, votes_now = made[name][0], votes.get(name)
                mine = scores.take(rows)
                if votes_now is not None:
                    votes_now = _some(votes_now, rows)
                found[seat][name] = mine, {}, votes_now
    return list(asked)


def _decided(
    control: Control, seat: Seat, made: Mapping[str, tuple[ScoreMatrix, Mapping[str, Missed]]]
) -> dict[str, Decisions]:
    """Votes on all rows; none where a row makes them raise, which its round finds (`culprits`)."""
    shifts = shifts_of(control, seat)
    try:
        return {
            name: seat.scorer.decide(scores, control.thresholds, control.stages, shifts=shifts)
            for name, (scores, _) in made.items()
        }
    except WaxwingError:
        raise
    except Exception:
        return {}


def _some(decisions: Decisions, rows: slice) -> Decisions:
    """Votes on some rows."""
    return replace(
        decisions,
        score=decisions.score[rows],
        flagged=decisions.flagged[rows],
        votes=decisions.votes[rows],
    )


def score_round(
    context: Context, item: Featured, asked: Asked | None = None
) -> Iterator[RoundOut | StoreRows]:
    """Score a lane's round, decide, and say what follows from it.

    A function of the round alone: no clock is read but for measuring how long it took.

    Parameters
    ----------
    asked : what the detectors say, where they have been asked before
    """
    begun = time.perf_counter()
    item, judged, taken_s = _judged(context, item, asked)
    known: list[Scored] = []
    flagged: dict[str, npt.NDArray[np.bool_]] = {}
    seen: list[Seen] = []
    for name, found in judged.items():
        batch, live = item.batches[name], found.opinions[0]
        flagged[name] = owned(found.opinions)
        if item.digest is not None:
            for opinion in found.opinions:
                item.digest.score(opinion.scores, opinion.decisions)
        if context.replaying is not None:
            seen.append(_seen(batch, item.features[name], found.opinions))
        if batch.truth is not None:
            absences = batch.frame if name in made_types() else None
            known.append(Scored(name, batch.truth, live.scores, live.decisions, absences))
    flips = [flip for corrected in item.corrected for flip in _flips(context, corrected)]
    context.telemetry.stage("score", time.perf_counter() - begun)
    events = {name: batch for name, batch in item.batches.items() if name not in made_types()}
    alerts = tuple(alert for found in judged.values() for alert in found.alerts)
    yield RoundOut(
        item.lane,
        item.round,
        item.cut_time_us,
        item.received,
        item.duplicates,
        item.rejects,
        {name: len(batch) for name, batch in events.items()},
        alerts,
        sum(found.muted for found in judged.values()),
        sum(found.suppressed for found in judged.values()),
        np.concatenate([np.zeros(0, np.int64), *(batch.due_ns for batch in events.values())]),
        tuple(known),
        item.control,
        item.final,
        item.replayed,
        sum(len(batch) for name, batch in item.batches.items() if name not in events),
        sum(len(one.keys) for one in item.emptied),
        sum(len(corrected.rounds) for corrected in item.corrected),
        item.corrected_unchecked,
        len(flips),
        tuple(flips[:FLIPS_ROUND_MAX]),
        item.unpriced,
        item.old_rate,
        item.gaps,
        item.waiting,
        None if item.digest is None else item.digest.whole(alert.id for alert in alerts),
        tuple(seen),
        None if context.replaying is None else item.batches,
        beside=_counted(judged, taken_s),
        labels=item.labels,
        first_us=min((int(b.time_us.min()) for b in events.values() if len(b)), default=None),
        spreads=_spreads(item, judged),
        kept=_kept(context, item, judged),
    )
    if context.store is not None:
        begun = time.perf_counter()
        yield from _store_rows(context, item, flagged)
        context.telemetry.stage("store_split", time.perf_counter() - begun)


def _seen(batch: EventBatch, features: FeatureMatrix, found: tuple[Opinion, ...]) -> Seen:
    """All that is known of the rows of one event type."""
    return Seen(batch, features, found[0].scores, found[0].decisions, found)


def _kept(context: Context, item: Featured, judged: Mapping[str, _Judged]) -> KeptRound | None:
    """The rows of a round that are kept for later comparisons."""
    choice = context.row_choice
    if choice is None:
        return None
    begun = time.perf_counter()
    seen = (
        (item.batches[name], item.features[name], found.opinions) for name, found in judged.items()
    )
    kept = choice.choose(item.lane, item.round, item.cut_time_us, seen, item.heard)
    context.telemetry.stage("rows", time.perf_counter() - begun)
    return kept


def _counted(judged: Mapping[str, _Judged], taken_s: Mapping[Seat, float]) -> tuple[Beside, ...]:
    """What each bundle of the line-up made of a round, in counts."""
    beside = {
        seat.bundle: Beside(seat.bundle, seat.stage, score_ms=1e3 * seconds)
        for seat, seconds in taken_s.items()
    }
    for found in judged.values():
        for one in besides(found.opinions):
            beside[one.bundle] = one + beside[one.bundle]
    return tuple(beside.values())


def _spreads(item: Featured, judged: Mapping[str, _Judged]) -> tuple[Spread, ...]:
    """Margins of the round's events, by rule that follows live traffic."""
    spreads = []
    for event, found in judged.items():
        live = found.opinions[0]
        for name, margins in live.margins.items():
            flagged = live.decisions.flagged[:, live.decisions.anomaly_types.index(name)]
            entities = touched(event_type(event), item.batches[event].frame.filter(flagged))
            spreads.append(spread_of(name, live.seat.bundle, margins, flagged, entities))
    return tuple(spreads)


def touched(declared: EventType, frame: pl.DataFrame) -> dict[str, int]:
    """Entities of all types that some events touch, in words, and by how many of them.

    Parameters
    ----------
    frame : of events of that type, with the columns of its entities

    Returns
    -------
    such as `card c1` -> 2; an entity that an event does not name is not there
    """
    found: dict[str, int] = {}
    for kind, columns in declared.entities.items() if len(frame) else ():
        parts = [pl.col(column).cast(pl.String) for column in columns]
        names = frame.select(name=pl.concat_str(parts, separator="/"))["name"]
        counts = names.drop_nulls().value_counts()
        found |= {f"{kind} {name}": many for name, many in counts.iter_rows()}
    return found


def pass_round(item: Featured) -> RoundOut:
    """What is left of a round that a replay does not score: events and features."""
    digest = None if item.digest is None else item.digest.whole(())
    return RoundOut(
        item.lane, item.round, item.cut_time_us, item.received, item.duplicates, item.rejects,
        {}, (), 0, 0, np.zeros(0, np.int64), (), item.control, item.final, item.replayed,
        digest=digest, batches=item.batches, features=item.features, labels=item.labels,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Judged:
    """What is thought of the events of one type, by the live bundle first, and what is said."""

    opinions: tuple[Opinion, ...]
    alerts: list[Alert]
    muted: int
    suppressed: int


def _judged(
    context: Context, item: Featured, asked: Asked | None
) -> tuple[Featured, dict[str, _Judged], dict[Seat, float]]:
    """Scores, votes and alerts of a round by event type; without events that make them raise.

    Returns
    -------
    the round, in which such events are dead letters, what is thought of the others, and how many
    seconds each bundle took
    """
    scored: dict[str, tuple[ScoredBy, ...]] = dict.fromkeys(item.features, ())
    taken_s: dict[Seat, float] = {}
    for seat in context.shelf.lineup(item.control):
        begun = time.perf_counter()
        made: Mapping[str, _Said]
        if asked is not None:
            made = asked[seat]
        else:
            answers = context.ballots.scored(
                seat.scorer, item.lane, item.round, item.features, item.control.stages, seat.name
            )
            made = {name: (*answer, None) for name, answer in answers.items()}
        scored = {name: (*scored[name], (seat, *found)) for name, found in made.items()}
        taken_s[seat] = time.perf_counter() - begun
    batches, features = dict(item.batches), dict(item.features)
    judged, out = {}, []
    for name, by_bundle in scored.items():
        judge = partial(_judge, context, item, name, by_bundle)
        judged[name], found = culprits(len(batches[name]), judge)
        if found:
            faults = [(row, told("score", error)) for row, error in found]
            topic = origin_of(context.settings, name)
            out += letters(batches[name], topic, faults, item.round)
            left = np.delete(np.arange(len(batches[name])), [row for row, _ in found])
            batches[name] = batches[name].take(left)
            features[name] = take_rows(features[name], left)
    if out:
        rejects = (*item.rejects, *out)
        item = replace(item, batches=batches, features=features, rejects=rejects)
    return item, judged, taken_s


def _judge(
    context: Context,
    item: Featured,
    name: str,
    scored: tuple[ScoredBy, ...],
    rows: Int64,
) -> _Judged:
    """Votes and alerts of some rows of one event type."""
    batch, features = item.batches[name], item.features[name]
    if len(rows) < len(batch):
        batch, features = batch.take(rows), take_rows(features, rows)
    judged = _Judged(opinions(item.control, batch, scored, rows), [], 0, 0)
    for opinion in judged.opinions:
        made, muted, suppressed = _alerts(context, item, batch, features, opinion, rows)
        judged = _Judged(
            judged.opinions,
            judged.alerts + made,
            judged.muted + muted,
            judged.suppressed + suppressed,
        )
    return judged


def _alerts(
    context: Context,
    item: Featured,
    batch: EventBatch,
    features: FeatureMatrix,
    opinion: Opinion,
    rows: Int64,
) -> tuple[list[Alert], int, int]:
    """Alerts of one bundle on a batch, how many were muted, how many were beyond the maximum.

    The opinion's missing votes speak of rows of the whole round, `rows` (int64 (n,)) says which
    those here are.
    """
    scores, decisions, bundle = opinion.scores, opinion.decisions, opinion.seat.scorer.bundle
    rules = opinion.seat.scorer.voting.anomaly_types
    declared = event_type(batch.event_type)
    made: list[Alert] = []
    muted = suppressed = 0
    hits = [(int(r), int(a)) for r, a in np.argwhere(opinion.flagged)]
    if not hits:
        return made, 0, 0
    for row, kind in hits:
        values = batch.frame.row(row, named=True)
        subject, entity = _subject(declared, values)
        if _is_muted(item.control, declared.entities, values) or (
            (subject, entity) in item.control.mutes
        ):
            muted += 1
            continue
        if len(made) >= ALERTS_ROUND_MAX:
            suppressed += 1
            continue
        anomaly = decisions.anomaly_types[kind]
        rule = rules[anomaly]
        why = _why(context, bundle, features, row, values)
        told = "; ".join(reason.text for reason in why) or "unusual combination"
        votes = _votes(scores, decisions, row, kind, opinion.missed, int(rows[row]))
        made.append(
            Alert(
                id=alert_id(values["event_id"], anomaly, bundle.id),
                anomaly_type=anomaly,
                severity=rule.severity,
                event_type=batch.event_type,
                event_id=values["event_id"],
                entity_type=subject,
                entity=entity,
                time_us=values["time_us"],
                cut_time_us=item.cut_time_us,
                round=item.round,
                score=float(decisions.score[row, kind]),
                votes=votes,
                reasons=why,
                bundle_id=bundle.id,
                summary=f"{anomaly.replace('_', ' ')}: {subject} {entity}:"
                f"{_quote(declared, values)} {told}" + _without(votes),
                latency_due_ns=int(batch.due_ns[row]),
            )
        )
    return made, muted, suppressed


def _quote(declared: EventType, values: Mapping[str, Any]) -> str:
    """The words of an event that its summary quotes, cut to a length; empty where it has none."""
    text = str(values[declared.quotes]) if declared.quotes else ""
    if len(text) > QUOTED_MAX:
        text = text[: QUOTED_MAX - 3] + "..."
    return f' "{text}":' if text else ""


def _without(votes: Sequence[Vote]) -> str:
    """Whose votes are missing, for a summary; empty where none is."""
    names = [vote.detector for vote in votes if vote.missing]
    return f"; without the vote of {', '.join(names)}" if names else ""


def _subject(declared: EventType, values: dict[str, Any]) -> tuple[str, str]:
    """Entity type and name of whom an event is about."""
    if declared.subject is not None:
        kind, name = declared.subject
        return values[kind], values[name]
    columns = declared.entities[declared.primary]
    return declared.primary, "|".join(str(values[c]) for c in columns)


def _why(
    context: Context,
    bundle: Bundle,
    features: FeatureMatrix,
    row: int,
    values: dict[str, Any],
) -> tuple[Reason, ...]:
    """The reasons of an alert; that of an absence is first of all what it is."""
    found = tuple(Reason(*r) for r in reasons(context.catalog, bundle, features, row))
    if "usual_gap_s" not in values:
        return found
    gap, usual, allowed = (
        number_text(values[name], "s") for name in ("gap_s", "usual_gap_s", "allowed_s")
    )
    text = f"silent for {gap}; it usually speaks every {usual}, at this hour within {allowed}"
    silent = Reason("gap_s", text, values["gap_s"], values["usual_gap_s"], "s")
    others = (r for r in found if r.feature not in ("gap_s", "usual_gaps", "hour_gaps", "missed"))
    return (silent, *others)[:REASONS_MAX]


def _flips(context: Context, corrected: Corrected) -> Iterator[Flip]:
    """Votes on rows of earlier rounds that come out the other way with their features of now.

    Both are scored here: an alert is neither sent nor taken back.
    """
    name, ids = corrected.event_type, corrected.frame["event_id"]
    both = (opinions_again(context, corrected, f) for f in (corrected.before, corrected.after))
    for was, now in zip(*both, strict=True):
        for row, kind in np.argwhere(was.flagged != now.flagged).tolist():
            yield Flip(
                name,
                ids[row],
                was.decisions.anomaly_types[kind],
                int(corrected.rounds[row]),
                bool(was.decisions.flagged[row, kind]),
                bool(now.decisions.flagged[row, kind]),
                float(was.decisions.score[row, kind]),
                float(now.decisions.score[row, kind]),
            )


def _is_muted(
    control: Control, entities: Mapping[str, tuple[str, ...]], values: dict[str, object]
) -> bool:
    """Whether any entity of the event is muted."""
    if not control.mutes:
        return False
    return any(
        (entity, "|".join(str(values[c]) for c in columns)) in control.mutes
        for entity, columns in entities.items()
    )


def _votes(
    scores: ScoreMatrix,
    decisions: Decisions,
    row: int,
    kind: int,
    missed: Mapping[str, Missed],
    round_row: int,
) -> tuple[Vote, ...]:
    """Each detector's part in an alert; `missed` speaks of row `round_row`."""
    return tuple(
        Vote(
            name,
            None if np.isnan(scores.scores[row, i]) else float(scores.scores[row, i]),
            float(decisions.thresholds[kind, i]),
            bool(decisions.votes[row, kind, i]),
            _missing(scores, row, i, missed.get(name), round_row),
        )
        for i, name in enumerate(scores.detectors)
    )


def _missing(scores: ScoreMatrix, row: int, i: int, missed: Missed | None, round_row: int) -> str:
    """Why a detector's vote on a row is missing; empty where it is not, or was not wanted."""
    if missed is None or not np.isnan(scores.scores[row, i]):
        return ""
    return missed.of(round_row)


def _store_rows(
    context: Context, item: Featured, flagged: dict[str, npt.NDArray[np.bool_]]
) -> Iterator[StoreRows]:
    """What a lane's round tells the store of: newest rows and empty windows, by its shard."""
    shards: list[Views] = [{} for _ in range(SHARDS)]
    for name, features in item.features.items():
        views = context.store_columns.get(name, {})
        parts = split_rows(item.batches[name], features.values, views, flagged[name], SHARDS)
        for shard, part in zip(shards, parts, strict=True):
            for entity, rows in part.items():
                shard[name, entity] = rows
    for (name, entity), emptied in emptied_rows(context.catalog, item.emptied).items():
        for shard, rows in zip(shards, split_emptied(*emptied, SHARDS), strict=True):
            if len(rows):
                shard[name, entity, WINDOWS] = rows
    for s, found in enumerate(shards):
        yield StoreRows(item.lane, item.round, s, found, item.final)
