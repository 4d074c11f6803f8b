"""Which alerts of a stretch would have been others with the models, rules and features of now.

A certificate asks whether the same comes out; after an upgrade it should not, and the question is
what changes for those who read the alerts. The stretch is replayed with what the settings name now,
and its alerts are held against those in the log of then. That the log is whole is known from the
certificate: the ids of each round add up to the sum that was written while live.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dataflows.alerts.base import Alert
from dataflows.alerts.jsonl import FILE_NAME, alerts_with
from dataflows.certify import Stretch, stretch_between
from dataflows.context import Replaying
from dataflows.digests import alert_sum, versions
from dataflows.replay import as_run, base_before, replay, replay_context
from dataflows.score import RoundOut
from dataflows.state.certificate import digests_folder, read_records
from features.errors import StateError
from models.bundle import read_head

__all__ = ["Change", "Upgraded", "upgrade"]

_Key = tuple[str, str, int]
"""Event id, anomaly type, round: one that is sent again when nobody knows it may alert again."""


@dataclass(frozen=True, slots=True)
class Change:
    """One alert that is not what it was.

    Parameters
    ----------
    what : `gone`, `new` or `changed` (its score, its severity or a vote)
    event_type, event_id, anomaly_type, entity_type, entity : whose alert; it has one a round
        and pair of event and anomaly type
    round, cut_time_us : the round it was or would have been told in
    id_then, score_then, severity_then : None of a new one
    id_now, score_now, severity_now : None of one that is gone
    """

    what: str
    event_type: str
    event_id: str
    anomaly_type: str
    entity_type: str
    entity: str
    round: int
    cut_time_us: int
    id_then: str | None = None
    id_now: str | None = None
    score_then: float | None = None
    score_now: float | None = None
    severity_then: str | None = None
    severity_now: str | None = None


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What an upgrade would have changed.

    Parameters
    ----------
    rounds, events : replayed
    first_round, last_round, from_us, until_us : which, and their cut times
    base_round : the base state the replay began at
    workers : Bytewax workers of the replay
    seconds : the replay took, wall time
    bundle, catalog : id of the models that decided in the first round and version of the features,
        (then, now)
    alerts : `then`, `now`, `same`, `gone`, `new`, `changed`: how many
    changes : in the order of the rounds
    other_versions : package -> (then, now), where they differ
    """

    rounds: int
    events: int
    first_round: int
    last_round: int
    from_us: int
    until_us: int
    base_round: int
    workers: int
    seconds: float
    bundle: tuple[str, str]
    catalog: tuple[str, str]
    alerts: dict[str, int]
    changes: tuple[Change, ...]
    other_versions: dict[str, tuple[str, str]]

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def upgrade(
    state_dir: Path,
    config: str | None,
    given: dict[str, Any],
    from_us: int | None = None,
    until_us: int | None = None,
    workers: int = 1,
) -> Upgraded:
    """Replay a stretch with the models, rules and features of now.

    Parameters
    ----------
    state_dir, config, given, from_us, until_us, workers : see `dataflows.certify.certify`; `given`
        names what is new (bundle, voting, detectors, feature_paths, ...). Another bundle decides
        alone, in place of all that did then; else each round has the bundles of then

    Raises
    ------
    WaxwingError : the stretch cannot be replayed, or the log of its alerts is not whole
    """
    stretch = stretch_between(state_dir, from_us, until_us)
    header = stretch.segment.header
    then = _then(state_dir, stretch)
    settings = as_run(stretch.segment, state_dir, config, given)
    first, last = stretch.first.round, stretch.last.round
    base = base_before(state_dir, first, int(header["lanes"]))
    begun = time.monotonic()
    # Where no other bundle is named, those score that were in force then, round by round.
    other = "bundle" in given or read_head(settings.bundle)["id"] != header["bundle"]
    wanted = Replaying(first, last, base_alone=other)
    for together in (True, False):
        # What is said to have changed was computed as the flow does, one round after the other.
        now: dict[_Key, Alert] = {}
        done: Counter[str] = Counter()
        context = replay_context(settings, base, wanted, header, other_models=True)
        replay(context, partial(_look, now, done), workers, together)
        changes = _changes(then, now)
        if not changes:
            break
    counts = Counter(change.what for change in changes)
    is_now, was = versions(), header["versions"]
    return Upgraded(
        done["rounds"],
        done["events"],
        first,
        last,
        stretch.first.cut_time_us,
        stretch.last.cut_time_us,
        base.round,
        workers,
        round(time.monotonic() - begun, 3),
        (_live(header), context.scorer.bundle.id if other else _live(header)),
        (header["catalog"], context.catalog.version),
        {
            "then": len(then),
            "now": len(now),
            "same": len(then) - counts["gone"] - counts["changed"],
            **{what: counts[what] for what in ("gone", "new", "changed")},
        },
        tuple(changes),
        {
            name: (was.get(name, ""), is_now[name])
            for name in is_now
            if was.get(name) != is_now[name]
        },
    )


def _look(now: dict[_Key, Alert], done: Counter[str], _round: int, outs: list[RoundOut]) -> bool:
    """Take in what a round tells."""
    done["rounds"] += 1
    for out in outs:
        done["events"] += out.received
        now.update({_key(alert): alert for alert in out.alerts})
    return True


def _live(header: dict[str, Any]) -> str:
    """Id of the bundle that decided: the one of the settings, or what was promoted since."""
    return str(header["bundles"][0][0])


def _key(alert: Alert) -> _Key:
    """By which an alert of then and one of now are the same."""
    return alert.event_id, alert.anomaly_type, alert.round


def _then(state_dir: Path, stretch: Stretch) -> dict[_Key, Alert]:
    """Alerts as they were told.

    Raises
    ------
    StateError : the log lacks an alert that the certificate counted, or has others
    """
    first, last = stretch.first.round, stretch.last.round
    # After a crash an alert may stand there twice, the same.
    found = {
        (alert.id, alert.round): alert
        for alert in alerts_with(state_dir, "")
        if first <= alert.round <= last
    }
    rounds: dict[int, list[str]] = {}
    for alert in found.values():
        rounds.setdefault(alert.round, []).append(alert.id)
    for _, record in read_records(digests_folder(state_dir), stretch.first.cut_time_us, None):
        ids = rounds.get(record.round, [])
        if first <= record.round <= last and (
            (len(ids), alert_sum(ids)) != (record.alerts, record.alert_sum)
        ):
            raise StateError(
                f"{state_dir / FILE_NAME}: has {len(ids)} alerts of round {record.round}, the"
                f" certificate counted {record.alerts}: the sink `jsonl` was off then, or the log"
                " is not whole; choose other times, or put the log back"
            )
    return {_key(alert): alert for alert in found.values()}


def _changes(then: dict[_Key, Alert], now: dict[_Key, Alert]) -> list[Change]:
    """What differs, in the order of the rounds."""
    found = []
    for key in dict.fromkeys((*then, *now)):
        was, is_now = then.get(key), now.get(key)
        one = was or is_now
        if one is None or (was is not None and is_now is not None and _same(was, is_now)):
            continue
        what = "gone" if is_now is None else "new" if was is None else "changed"
        found.append(
            Change(
                what, one.event_type, one.event_id, one.anomaly_type, one.entity_type, one.entity,
                one.round, one.cut_time_us,
                None if was is None else was.id, None if is_now is None else is_now.id,
                None if was is None else was.score, None if is_now is None else is_now.score,
                None if was is None else was.severity,
                None if is_now is None else is_now.severity,
            )
        )  # fmt: skip
    return sorted(found, key=lambda change: (change.round, change.event_type, change.event_id))


def _same(was: Alert, is_now: Alert) -> bool:
    """Whether an alert says the same, but for thresholds and the id of its bundle."""
    return _says(was) == _says(is_now)


def _says(alert: Alert) -> list[Any]:
    """What of an alert can change."""
    votes = [(vote.detector, vote.score, vote.vote, vote.missing) for vote in alert.votes]
    return [alert.score, alert.severity, votes]
