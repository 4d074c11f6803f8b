"""Whether rounds, computed again, are bit for bit what they were when they were live.

The certificate has a hash of each group and each column of each round, and for a day one of each
row. They are held against those of a replay; where they differ, the first round is looked at until
it is known which group, feature and entity it was.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dataflows.alerts.jsonl import alerts_with
from dataflows.context import Context, Replaying
from dataflows.digests import SEQUENCE, record_of, versions
from dataflows.replay import as_run, base_before, replay, replay_context, segments_in
from dataflows.score import RoundOut, Seen
from dataflows.settings import SHAPING, Settings
from dataflows.state.bases import base_states
from dataflows.state.certificate import (
    Record,
    Segment,
    digests_folder,
    read_records,
    read_rows,
)
from dataflows.state.row_log import Rows, read_blocks, rows_folder
from features.digest import UInt32
from features.errors import ConfigError, StateError
from features.events import event_type
from features.keys import UInt64, group_of, hash_columns

__all__ = ["Certified", "Difference", "Stretch", "certify", "last_us", "moment", "stretch_between"]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing that a replay computed otherwise.

    Parameters
    ----------
    round, cut_time_us : the round
    what : `events`, `features`, `scores` or `alerts`
    text : in a sentence
    group : shard group, None where it is not a group's doing or not known
    event_type, feature : the column; None where no column differs
    entity_type, entity, event_id : whose row; None where the row is not known
    rows : rows that differ; None where row hashes are no longer kept
    live : the value then, from the kept rows or an alert; None where neither has it
    replayed : the value now
    """

    round: int
    cut_time_us: int
    what: str
    text: str
    group: int | None = None
    event_type: str | None = None
    feature: str | None = None
    entity_type: str | None = None
    entity: str | None = None
    event_id: str | None = None
    rows: int | None = None
    live: float | None = None
    replayed: float | None = None


@dataclass(frozen=True, slots=True)
class Certified:
    """What a certificate says.

    Parameters
    ----------
    identical : whether every hash of every round was the same
    rounds, events : looked at
    first_round, last_round, from_us, until_us : which, and their cut times
    base_round : the base state the replay began at
    workers : Bytewax workers of the replay
    seconds : the replay took, wall time
    us_per_event : stage -> its time over all events of the stretch
    difference : the first one, None where there is none
    other_versions : package -> (then, now), where they differ
    """

    identical: bool
    rounds: int
    events: int
    first_round: int
    last_round: int
    from_us: int
    until_us: int
    base_round: int
    workers: int
    seconds: float
    us_per_event: dict[str, float]
    difference: Difference | None
    other_versions: dict[str, tuple[str, str]]

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def moment(time_us: int) -> str:
    """A time for people."""
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%dT%H:%M:%S}Z"


@dataclass(slots=True)
class Stretch:
    """Rounds to replay: all of one bundle, one number of groups."""

    segment: Segment
    first: Record
    last: Record


def certify(
    state_dir: Path,
    config: str | None,
    given: dict[str, Any],
    from_us: int | None = None,
    until_us: int | None = None,
    workers: int = 1,
) -> Certified:
    """Replay a stretch and hold it against what was written while live.

    Parameters
    ----------
    state_dir : of the flow; may be live, nothing in it is touched
    config, given : see `dataflows.replay.as_run`
    from_us, until_us : cut times of the first round and of the one after the last; None: all that
        is kept

    Raises
    ------
    WaxwingError : the stretch cannot be replayed, with the cure
    """
    stretch = stretch_between(state_dir, from_us, until_us)
    settings = as_run(stretch.segment, state_dir, config, given)
    first, last = stretch.first.round, stretch.last.round
    begun = time.monotonic()
    looker, context = _compared(state_dir, settings, stretch, stretch.first, workers, True)
    base_round = context.manifest.round
    rounds, events = looker.rounds, looker.events
    stage_s = Counter(context.telemetry.stage_s)
    if looker.differing is not None:
        # What is said to differ was computed as the flow computes it, one round after the other.
        at = looker.differing[0]
        looker, context = _compared(state_dir, settings, stretch, at, workers, False)
        rounds, events = rounds + looker.rounds, events + looker.events
        stage_s.update(context.telemetry.stage_s)
    if looker.differing is None and rounds < last - first + 1:
        raise StateError(
            f"the replay ended after {rounds} of {last - first + 1} rounds; this is a bug"
        )
    difference = None
    if looker.differing is not None:
        difference = _named(state_dir, looker.segment, context, *looker.differing)
    now, then = versions(), stretch.segment.header["versions"]
    return Certified(
        difference is None,
        rounds,
        events,
        first,
        last,
        stretch.first.cut_time_us,
        stretch.last.cut_time_us,
        base_round,
        workers,
        round(time.monotonic() - begun, 3),
        {
            stage: round(seconds / max(events, 1) * 1e6, 3)
            for stage, seconds in sorted(stage_s.items())
        },
        difference,
        {name: (then.get(name, ""), now[name]) for name in now if then.get(name) != now[name]},
    )


def _compared(
    state_dir: Path,
    settings: Settings,
    stretch: Stretch,
    first: Record,
    workers: int,
    together: bool,
) -> tuple[_Comparison, Context]:
    """Replay a stretch from one of its rounds on, until one differs; `together` as of `replay`."""
    header = stretch.segment.header
    base = base_before(state_dir, first.round, int(header["lanes"]))
    looker = _Comparison(state_dir, stretch.segment, first)
    wanted = Replaying(first.round, stretch.last.round)
    context = replay_context(settings, base, wanted, header)
    replay(context, looker.look, workers, together)
    return looker, context


def stretch_between(state_dir: Path, from_us: int | None, until_us: int | None) -> Stretch:
    """The rounds between two times.

    Raises
    ------
    StateError : none are kept there, or they are of several bundles
    ConfigError : the times are in the wrong order
    """
    if from_us is not None and until_us is not None and from_us >= until_us:
        raise ConfigError("--from: must be before --to")
    segments = segments_in(state_dir)
    bases = base_states(state_dir)
    if not bases:
        raise StateError(f"state_dir {state_dir}: has no base state to replay from")
    found: Stretch | None = None
    checked: Segment | None = None
    for segment, record in read_records(digests_folder(state_dir), from_us, until_us):
        if record.round <= bases[0].round:
            if from_us is not None:
                raise StateError(
                    f"--from: {moment(from_us)} is before what is kept; replays reach back to"
                    f" {moment(bases[0].cut_time_us)} (retention_h)"
                )
            continue
        if found is None:
            found = Stretch(segment, record, record)
        header, first = segment.header, found.segment.header
        for name in ("bundle", "groups", "lanes", "catalog", "voting"):
            if header[name] != first[name]:
                raise StateError(
                    f"the rounds are of several flows: {name} is another from round"
                    f" {record.round} on; certify them apart, with --to and --from"
                    f" {moment(record.cut_time_us)}"
                )
        if segment is not checked:
            checked = segment
            _same_settings(first, header, record)
        found.last = record
    if found is None:
        begins, ends = segments[0].header["cut_time_us"], last_us(state_dir, segments[-1])
        raise StateError(
            f"state_dir {state_dir}: no rounds were cut between the times given; there are rounds"
            f" from {moment(begins)} to {moment(ends)} (cut_time)"
        )
    if from_us is not None and from_us < found.first.cut_time_us:
        begins = segments[0].header["cut_time_us"]
        if from_us < begins and segments[0].round > 1:
            raise StateError(
                f"--from: {moment(from_us)} is before what is kept; rounds are kept from"
                f" {moment(begins)} on (retention_h)"
            )
    return found


def _same_settings(first: Mapping[str, Any], header: Mapping[str, Any], record: Record) -> None:
    """Raise where a segment, of which a record is the first, was computed by other settings."""
    then, now = first["settings"], header["settings"]
    for name in (*SHAPING, "detectors"):
        if name in then and name in now and then[name] != now[name]:
            raise StateError(
                f"the rounds are of several flows: the setting {name} is {now[name]!r} from round"
                f" {record.round} on, {then[name]!r} before; certify them apart, with --to and"
                f" --from {moment(record.cut_time_us)}"
            )


def last_us(state_dir: Path, segment: Segment) -> int:
    """Cut time of the newest round of a state folder, which is of its newest segment."""
    newest = int(segment.header["cut_time_us"])
    for _, record in read_records(digests_folder(state_dir), newest + 1):
        newest = record.cut_time_us
    return newest


class _Comparison:
    """Holds replayed rounds against records, one after the other."""

    def __init__(self, state_dir: Path, segment: Segment, first: Record) -> None:
        self._live: Iterator[tuple[Segment, Record]] = read_records(
            digests_folder(state_dir), first.cut_time_us, None
        )
        self.segment = segment
        self.rounds = self.events = 0
        self.differing: tuple[Record, Record, dict[tuple[str, int], UInt32], list[RoundOut]] | None
        self.differing = None

    def look(self, round_: int, outs: list[RoundOut]) -> bool:
        """Compare one; False where it differs."""
        segment, record = next(
            ((s, r) for s, r in self._live if r.round >= round_), (self.segment, None)
        )
        if record is None or record.round != round_:
            raise StateError(
                f"the certificate has no round {round_}, which the journal has; its file was"
                " damaged or taken away"
            )
        again, rows = record_of(round_, outs)
        if not _same(record, again):
            self.differing, self.segment = (record, again, rows, outs), segment
            return False
        self.rounds += 1
        self.events += record.received
        return True


def _same(live: Record, again: Record) -> bool:
    """Whether two records of a round are the same in everything."""
    return (
        (live.cut_time_us, live.received, live.alerts, live.alert_sum, live.counts)
        == (again.cut_time_us, again.received, again.alerts, again.alert_sum, again.counts)
        and np.array_equal(live.groups, again.groups)
        and all(np.array_equal(sums, again.columns[name]) for name, sums in live.columns.items())
    )


def _named(
    state_dir: Path,
    segment: Segment,
    context: Context,
    live: Record,
    again: Record,
    rows: dict[tuple[str, int], UInt32],
    outs: list[RoundOut],
) -> Difference:
    """The first difference of a round, as closely as what is kept allows."""
    at: dict[str, Any] = {"round": live.round, "cut_time_us": live.cut_time_us}
    if (live.received, live.counts) != (again.received, again.counts):
        return Difference(
            **at,
            what="events",
            text=f"{live.received} events and rows {live.counts} then, {again.received} and"
            f" {again.counts} now",
        )
    groups = np.flatnonzero(live.groups != again.groups).tolist()
    columns = [
        (name, segment.header["columns"][name][i])
        for name, sums in live.columns.items()
        for i in _differing(sums, again.columns[name])
    ]
    group = groups[0] if groups else None
    if not columns:
        what = "alerts" if not groups else "features"
        text = f"{live.alerts} alerts then, {again.alerts} now" if not groups else "a group differs"
        return Difference(**at, what=what, text=text, group=group)
    kept = read_rows(digests_folder(state_dir), live.round)
    places = _differing_rows(kept, rows)
    name, column = columns[0]
    what = "scores" if ":" in column else "features"
    if places is None:
        text = f"{name}.{column} differs; which row is not known, row hashes are kept no longer"
        return Difference(**at, what=what, text=text, group=group, event_type=name, feature=column)
    for of_type, feature in columns:
        for event, lane, row in places:
            if event == of_type:
                seen = _seen(outs, event, lane)
                whose, entity, number = _entity(context, seen, feature, row)
                if not groups or number in groups:
                    value = _value(seen, feature, row)
                    event_id = str(seen.batch.frame["event_id"][row])
                    then = _kept_then(state_dir, live, event_id, (event, lane, row), feature)
                    if then is None:
                        then = _told_then(state_dir, event_id, feature)
                    text = (
                        f"{event}.{feature} of {whose} {entity} (event {event_id}) is"
                        f" {value!r} now, {'not kept' if then is None else repr(then)} then"
                    )
                    return Difference(
                        **at, what=what, text=text, group=number if groups else group,
                        event_type=event, feature=feature, entity_type=whose, entity=entity,
                        event_id=event_id, rows=len(places), live=then, replayed=value,
                    )  # fmt: skip
    text = f"{name}.{column} differs"
    return Difference(
        **at, what=what, text=text, group=group, event_type=name, feature=column, rows=len(places)
    )


def _differing(sums: UInt64, again: UInt64) -> list[int]:
    """Places of the columns that differ; the first score where there are not as many now."""
    if len(sums) != len(again):
        return [min(len(sums), len(again)) - 1]
    return [int(place) for place in np.flatnonzero(sums != again)]


def _differing_rows(
    kept: dict[tuple[str, int], UInt32] | None, rows: dict[tuple[str, int], UInt32]
) -> list[tuple[str, int, int]] | None:
    """(event type, lane, row) of rows whose hashes differ; None where none are kept."""
    if kept is None:
        return None
    return [
        (name, lane, row)
        for (name, lane), hashes in rows.items()
        for row in np.flatnonzero(hashes != kept[name, lane]).tolist()
    ]


def _seen(outs: list[RoundOut], event: str, lane: int) -> Seen:
    """What the replay has seen of an event type of a lane."""
    return next(
        seen
        for out in outs
        if out.lane == lane
        for seen in out.seen
        if seen.batch.event_type == event
    )


def _entity(context: Context, seen: Seen, feature: str, row: int) -> tuple[str, str, int]:
    """Entity type, entity and shard group that a value is about."""
    event = seen.batch.event_type
    declared = event_type(event)
    kind = declared.primary
    if feature != SEQUENCE and ":" not in feature:
        kind = context.catalog.features(event)[seen.features.names.index(feature)].entity
    if kind not in declared.entities:
        kind = declared.primary  # of a function of the event alone
    columns = declared.entities[kind]
    frame = seen.batch.frame[row : row + 1]
    name = "|".join(str(frame[column][0]) for column in columns)
    return kind, name, int(group_of(hash_columns(frame, columns), context.settings.groups)[0])


def _value(seen: Seen, feature: str, row: int) -> float | None:
    """The replayed value; None of a sequence, which is many."""
    kind, colon, name = feature.partition(":")
    if not colon:
        return None if feature == SEQUENCE else float(seen.features.column(feature)[row])
    name, _, bundle = name.partition("@")
    mine = next(o for o in seen.opinions if bundle in ("", o.seat.bundle))
    scores, decisions = mine.scores, mine.decisions
    if kind == "score":
        return float(scores.scores[row, scores.detectors.index(name)])
    place = decisions.anomaly_types.index(name)
    table = decisions.score if kind == "ensemble" else decisions.flagged
    return float(table[row, place])


def _kept_then(
    state_dir: Path, live: Record, event_id: str, place: tuple[str, int, int], feature: str
) -> float | None:
    """The value while live, where the row at (event type, lane, row) is among the kept ones."""
    at_us = live.cut_time_us
    with contextlib.suppress(StateError):  # another version wrote them: as if there were none
        for block in read_blocks(rows_folder(state_dir), at_us, at_us + 1):
            for rows in block.rows:
                if rows.event_type != place[0]:
                    continue
                here = (rows.round == live.round) & (rows.lane == place[1]) & (rows.row == place[2])
                for i in np.flatnonzero(here).tolist():
                    if rows.event_id[i] == event_id:
                        return _of_row(rows, i, feature, block.header["bundle"])
    return None


def _of_row(rows: Rows, i: int, feature: str, bundle: str) -> float | None:
    """A feature of a kept row, or a vote of the bundle that was live; None of what is not kept."""
    if feature in rows.names:
        return float(rows.values[i, rows.names.index(feature)])
    kind, _, name = feature.partition(":")
    name, _, whose = name.partition("@")
    tables = {"ensemble": rows.score, "flagged": rows.flagged}
    if kind in tables and whose in ("", bundle) and name in rows.anomaly_types:
        return float(tables[kind][i, rows.anomaly_types.index(name)])
    return None


def _told_then(state_dir: Path, event_id: str, feature: str) -> float | None:
    """The value while live, where an alert about the event told it."""
    for alert in alerts_with(state_dir, event_id):
        if alert.event_id == event_id:
            for reason in alert.reasons:
                if reason.feature == feature:
                    return None if math.isnan(reason.value) else reason.value
    return None
