"""Why an alert was sent, computed again from the journal: everything its decision was made of.

The round of the alert is replayed from the base state before it, only in the shard groups of the
event's entities and only with the rows that their state depends on (`features.narrowed`), and held
against what the alert said then. Where it does not come out the same so, all rows of these groups
pass before that is said.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from dataflows.alerts.base import Alert
from dataflows.alerts.jsonl import FILE_NAME, alerts_with
from dataflows.context import Context, Replaying
from dataflows.control.records import Control
from dataflows.digests import versions
from dataflows.opinions import Opinion
from dataflows.replay import (
    as_run,
    base_before,
    events_of,
    replay,
    replay_context,
    segments_in,
)
from dataflows.score import RoundOut, Seen
from dataflows.shelf import Seat
from features.batch import EventBatch
from features.errors import ConfigError, StateError
from features.events import event_type, made_types
from features.keys import group_of, hash_columns
from features.narrowed import Narrowed
from features.plan import plan_of
from models.bundle import Bundle
from models.decisions.reasons import every_feature
from models.recalibration import shifted
from models.voting import ENSEMBLE

__all__ = ["EVENTS_MAX", "explain", "find_alert"]

EVENTS_MAX = 20
"""Last events of the entity that are told. Chosen: what a person reads."""


def find_alert(state_dir: Path, alert_id: str) -> Alert:
    """The alert of an id, from the alert log.

    Raises
    ------
    ConfigError : the log does not have it
    """
    for alert in alerts_with(state_dir, alert_id):
        if alert.id == alert_id:
            return alert
    raise ConfigError(
        f"alert {alert_id}: is not in {state_dir / FILE_NAME}; the id is the `id` of a line there,"
        " and the flow must have had the sink jsonl (`alerts`)"
    )


@dataclass(slots=True)
class _Witness:
    """What a replay tells of one alert."""

    alert: Alert
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=EVENTS_MAX))
    seen: Seen | None = None
    row: int = -1
    control: Control | None = None
    again: Alert | None = None
    rounds: int = 0

    @property
    def same(self) -> bool:
        """Whether the alert came out as it was sent."""
        return self.again is not None and self.again.payload() == self.alert.payload()

    def look(self, round_: int, outs: list[RoundOut]) -> bool:
        """Take in a round."""
        self.rounds += 1
        self._remember(outs)
        if round_ < self.alert.round:
            return True
        for out in outs:
            for seen in out.seen:
                if seen.batch.event_type == self.alert.event_type:
                    rows = (seen.batch.frame["event_id"] == self.alert.event_id).arg_true()
                    if len(rows):
                        self.seen, self.row, self.control = seen, int(rows[0]), out.control
            self.again = next((a for a in out.alerts if a.id == self.alert.id), self.again)
        return True

    def _remember(self, outs: list[RoundOut]) -> None:
        """Keep the events of the alert's entity, the newest of them."""
        found: list[dict[str, Any]] = []
        for out in outs:
            for name, batch in (out.batches or {}).items():
                columns = event_type(name).entities.get(self.alert.entity_type)
                if columns is None or name in made_types():
                    continue
                named = batch.frame[columns[0]]
                if len(columns) > 1:
                    joined = pl.concat_str(columns, separator="|")
                    named = batch.frame.select(joined).to_series()
                is_mine = named == self.alert.entity
                if not is_mine.any():  # most of thousands of rounds
                    continue
                mine = batch.frame.filter(is_mine)
                found += [{"event_type": name, **row} for row in mine.iter_rows(named=True)]
        found.sort(key=lambda row: (row["time_us"], row["event_id"]))
        self.events.extend(row for row in found if row["time_us"] <= self.alert.time_us)


def explain(
    state_dir: Path, config: str | None, given: dict[str, Any], alert_id: str
) -> dict[str, Any]:
    """All that an alert was made of, as plain data (docs/json.md).

    Parameters
    ----------
    state_dir : of the flow; may be live, nothing in it is touched
    config, given : see `dataflows.replay.as_run`

    Raises
    ------
    WaxwingError : the alert is not known, or its round can no longer be replayed
    """
    begun = time.monotonic()
    segments = segments_in(state_dir)
    alert = find_alert(state_dir, alert_id)
    mine = [s for s in segments if s.round <= alert.round]
    if not mine:
        raise StateError(
            f"alert {alert_id}: its round {alert.round} is before what is kept (retention_h); the"
            f" oldest round is {segments[0].round}"
        )
    header = mine[-1].header
    settings = as_run(mine[-1], state_dir, config, given)
    base = base_before(state_dir, alert.round, int(header["lanes"]))
    wanted = Replaying(alert.round, alert.round, told_from=base.round + 1)
    context = replay_context(settings, base, wanted, header)
    groups, entities = _concerned(context, alert)
    context.replaying = replace(wanted, groups=groups, entities=entities)
    witness = _Witness(alert)
    replay(context, witness.look)
    if not witness.same:
        context = replay_context(settings, base, replace(wanted, groups=groups), header)
        witness = _Witness(alert)
        replay(context, witness.look)
    if witness.seen is None or witness.control is None:
        raise StateError(
            f"alert {alert_id}: round {alert.round} has no event {alert.event_id} any more; its"
            " source gives other events than it did"
        )
    return {
        "alert": alert.payload(),
        "same": witness.same,
        "event": _event(witness.seen.batch, witness.row),
        "features": _features(
            context, _opinion(witness).seat.scorer.bundle, witness.seen, witness.row
        ),
        "detectors": _detectors(witness),
        "vote": _vote(witness),
        "control": witness.control.noted(),
        "last_events": list(witness.events),
        "bundle": _bundle(context, _opinion(witness).seat),
        "catalog": context.catalog.version,
        "versions": header["versions"],
        "other_versions": {
            name: [header["versions"].get(name, ""), now]
            for name, now in versions().items()
            if header["versions"].get(name) != now
        },
        "replayed": {
            "base_round": base.round,
            "rounds": witness.rounds,
            "groups": sorted(groups) if groups is not None else list(range(settings.groups)),
            "seconds": round(time.monotonic() - begun, 3),
        },
    }


def _concerned(context: Context, alert: Alert) -> tuple[frozenset[int] | None, Narrowed]:
    """Shard groups (None: all) and entities that the alert's event depends on."""
    catalog, groups = context.catalog, context.settings.groups
    if alert.event_type in made_types():
        # Who else is silent is a part of what is told of one.
        watched = [name for name, p in plan_of(catalog).entities.items() if p.silence is not None]
        return None, Narrowed(catalog, groups, dict.fromkeys(watched))
    batch = events_of(context, alert.round).get(alert.event_type)
    rows = [] if batch is None else (batch.frame["event_id"] == alert.event_id).arg_true().to_list()
    if batch is None or not rows:
        raise StateError(
            f"alert {alert.id}: round {alert.round} has no event {alert.event_id}; the source gives"
            " other events than it did"
        )
    frame = batch.frame[rows[0] : rows[0] + 1]
    declared = event_type(alert.event_type).entities
    keys = {name: hash_columns(frame, columns) for name, columns in declared.items()}
    found = frozenset(int(group_of(key, groups)[0]) for key in keys.values() if key[0])
    return found, Narrowed(catalog, groups, {n: int(key[0]) for n, key in keys.items() if key[0]})


def _opinion(witness: _Witness) -> Opinion:
    """What the bundle of the alert makes of its round now; that of the live one where it has no
    say any more."""
    found = () if witness.seen is None else witness.seen.opinions
    mine = [o for o in found if o.seat.bundle == witness.alert.bundle_id]
    return (mine or list(found))[0]


def _bundle(context: Context, seat: Seat) -> dict[str, str]:
    """Which bundle decided, and where it lies."""
    settings = context.settings
    folder = settings.bundle if seat.base else context.shelf.folder / seat.bundle
    return {"id": seat.bundle, "folder": str(folder)}


def _event(batch: EventBatch, row: int) -> dict[str, Any]:
    """The event as it was."""
    return {
        "event_type": batch.event_type,
        "partition": int(batch.partition[row]),
        "offset": int(batch.offset[row]),
        "fields": batch.frame.row(row, named=True),
    }


def _features(context: Context, bundle: Bundle, seen: Seen, row: int) -> list[dict[str, Any]]:
    """Each feature, the oddest first."""
    catalog = context.catalog
    declared = {f.name: f for f in catalog.features(seen.batch.event_type)}
    scored = every_feature(catalog, bundle, seen.features, row)
    return [
        {
            "name": name,
            "entity_type": declared[name].entity or None,
            "value": None if math.isnan(value) else value,
            "baseline": baseline,
            "unit": unit,
            "oddness": oddness,
            "text": text,
        }
        for (name, text, value, baseline, unit), oddness in scored
    ]


def _detectors(witness: _Witness) -> list[dict[str, Any]]:
    """Each detector's score, threshold, vote and share of the ensemble."""
    seen, row, control = witness.seen, witness.row, witness.control
    if seen is None or control is None:
        return []
    declared = event_type(witness.alert.event_type)
    entity = hash_columns(seen.batch.frame, declared.entities[declared.primary])
    mine = _opinion(witness)
    scores, decisions = mine.scores, mine.decisions
    kind = decisions.anomaly_types.index(witness.alert.anomaly_type)
    shares = mine.seat.scorer.shares(scores, witness.alert.anomaly_type, control.stages, entity)
    return [
        {
            "name": name,
            "score": _known(scores.scores[row, i]),
            "threshold": float(decisions.thresholds[kind, i]),
            "vote": bool(decisions.votes[row, kind, i]),
            "share": _known(shares[row, i]),
            "stage": control.stages.get(name, ("live", 100.0))[0],
        }
        for i, name in enumerate(scores.detectors)
    ]


def _vote(witness: _Witness) -> dict[str, Any]:
    """The rule, and what came of it."""
    control, name = witness.control, witness.alert.anomaly_type
    mine = _opinion(witness)
    rule = mine.seat.scorer.voting.anomaly_types[name]
    changed: Mapping[tuple[str, str], float] = {} if control is None else control.thresholds
    shift = 0.0 if control is None else control.shift(name, mine.seat.bundle)
    place = mine.decisions.anomaly_types.index(name)
    score = float(mine.decisions.score[witness.row, place])
    return {
        "anomaly_type": name,
        "score": score,
        "threshold": shifted(changed.get((name, ENSEMBLE), rule.ensemble), shift),
        "votes_needed": rule.votes_needed,
        "severity": rule.severity,
        "action": rule.action,
    }


def _known(value: float) -> float | None:
    """A number, None where it is NaN."""
    return None if math.isnan(value) else float(value)
