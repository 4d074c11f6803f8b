"""Control records: what a person changes while the flow runs, and what is in force.

They come from one JSONL file or one Kafka topic, are read by lane 0 alone, stand in the journal
beside the events of their round, and are in force for every lane from that round on:
`in_force.apply(record)` is the whole of it, so a replay sees what the live run saw. A record that
is none, or names what this flow does not have, is refused where it is read and journaled as
refused: a replay repeats the verdict, it does not judge again.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dataflows.addresses import address_fault, masked
from features.errors import ConfigError, StateError
from features.events import event_types
from models.recalibration import SHIFT_MAX, Recalibration

if TYPE_CHECKING:
    from models.voting import Voting

__all__ = [
    "STAGES",
    "VERDICTS",
    "Control",
    "ControlFile",
    "ControlReader",
    "Fault",
    "Names",
    "append_record",
    "parse_record",
    "read_line",
    "shown_line",
]

STAGES = ("off", "shadow", "canary", "live")

READ_BYTES_MAX = 1_000_000
"""Most bytes of records taken in one round; chosen: thousands of records, a millisecond."""

LINE_BYTES_MAX = 65_536
"""A longer line is no control record; chosen: a record has a handful of short fields."""

_WANTED: dict[str, dict[str, tuple[type, ...]]] = {
    "threshold": {"anomaly_type": (str,), "detector": (str,), "value": (int, float)},
    "mute": {"entity_type": (str,), "entity": (str,), "until_us": (int,)},
    "stage": {"detector": (str,), "stage": (str,)},
    "bundle": {"bundle": (str,), "stage": (str,)},
    "rollback": {},
    "label": {"event_type": (str,), "event_id": (str,), "verdict": (str,)},
    "recalibrate": {"anomaly_type": (str,), "percent_a_day": (int, float)},
    "shift": {"anomaly_type": (str,), "bundle": (str,), "value": (int, float)},
    "freeze": {"anomaly_type": (str,), "state": (str,)},
}
"""Kind -> the fields it must have."""

_ENSEMBLE = "ensemble"
"""The name under which a vote as a whole has its threshold, as in `models.voting`."""

_MAY: dict[str, tuple[str, ...]] = {
    "stage": ("percent",),
    "bundle": ("percent", "path", "rules"),
    "rollback": ("bundle", "off"),
    "label": ("source", "time_us", "event_time_us", "entities"),
    "recalibrate": ("share", "freeze_ratio", "block_s"),
}
"""Kind -> fields it may have beside `_NOTES`."""

BESIDE_MAX = 3
"""Most bundles that score beside the live one; with one more the oldest goes off. Chosen: each
costs what the live one does."""

UNDO_MAX = 16
"""Most changes of stages that can be rolled back one after another. Chosen: more than a person
remembers."""

_BUNDLE_ID = re.compile("[0-9a-f]{16}")

VERDICTS = ("fraud", "genuine")
"""What a label may say of an event."""

_TEXT_MAX = 256
"""Most characters of an event id or entity in a label; more than any event type lets through."""

_NOTES = ("id", "by", "why")
"""Text that every record may have; it decides nothing."""

_NOTED: dict[str, tuple[str, ...]] = {
    "threshold": ("anomaly_type", "detector", "value"),
    "stage": ("detector", "stage"),
    "mute": ("entity_type", "entity", "until_us"),
    "bundle": ("bundle", "stage"),
    "recalibrate": ("anomaly_type", "percent_a_day"),
    "shift": ("anomaly_type", "value", "bundle"),
    "freeze": ("anomaly_type", "state"),
}
"""Kind of what is in force -> what it says: who said so is told with it."""

_AT = "at_us"
"""Cut time of the round in which a record came, beside its notes."""

NOTES_MIN = 64
"""Notes kept of what is no longer in force, before they are gone through. Chosen."""

SHOWN_MAX = 120
"""Most characters of a value in what is said about it. Chosen: a line on a screen."""


class Fault(NamedTuple):
    """A line or message that is no control record.

    Parameters
    ----------
    offset : where it stands: a byte of the file, an offset of the topic
    raw : what it held, at most LINE_BYTES_MAX bytes
    reason : what is wrong with it
    partition : of the topic; 0 for a file
    of : `label` where it stood among the labels; empty among the control records
    """

    offset: int
    raw: bytes
    reason: str
    partition: int = 0
    of: str = ""


class ControlReader(Protocol):
    """Where control records come from: lane 0 asks it in every round and journals what it gives."""

    origin: str
    """The file or topic, as dead letters name it."""

    @property
    def position(self) -> Any:
        """Where it stands, JSON-able; journaled with the round."""
        ...

    def seek(self, position: Any) -> None:
        """Stand at a journaled position, None for the beginning; asks nobody yet."""
        ...

    def open(self) -> None:
        """Be ready for `take`; called before the first new round, never for a mere replay.

        Raises
        ------
        ConfigError, SourceError : it does not exist, or cannot be reached
        """
        ...

    def take(self) -> tuple[list[dict[str, Any]], list[Fault]]:
        """New records in their order, and what was no record; never waits for more to come."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


@dataclass(frozen=True, slots=True)
class Names:
    """What a record may speak of in this flow.

    Parameters
    ----------
    votes : anomaly type -> detectors that vote on it, and `ensemble`; None where nobody knows
    detectors : those that run, and so have a stage
    entities : entity types of all events
    """

    votes: Mapping[str, tuple[str, ...]] | None
    detectors: tuple[str, ...]
    entities: tuple[str, ...]

    @classmethod
    def of(cls, voting: Voting | None, detectors: Iterable[str]) -> Names:
        """The names of a flow: its rules, the detectors it runs, and all event types."""
        run = tuple(dict.fromkeys(detectors))
        votes: dict[str, tuple[str, ...]] | None = None
        if voting is not None:
            votes = {
                rule.name: (*(name for name in run if name in rule.thresholds), _ENSEMBLE)
                for rule in voting.anomaly_types.values()
            }
        entities = {name for declared in event_types().values() for name in declared.entities}
        return cls(votes, run, tuple(sorted(entities)))

    def faults(self, record: Mapping[str, Any]) -> list[str]:
        """One sentence for each name that this flow does not have, with those it has."""
        kind = record["kind"]
        if kind == "mute":
            return _unknown(kind, "entity type", record["entity_type"], self.entities)
        if kind == "stage":
            return _unknown(kind, "detector", record["detector"], self.detectors)
        if kind in ("label", "bundle", "rollback"):
            return []
        if kind in ("recalibrate", "shift", "freeze"):
            anomaly = record["anomaly_type"]
            return [] if self.votes is None else _unknown(kind, "anomaly type", anomaly, self.votes)
        anomaly, detector = record["anomaly_type"], record["detector"]
        if self.votes is not None and anomaly in self.votes:
            return _unknown(kind, f"detector of {anomaly}", detector, self.votes[anomaly])
        found = _unknown(kind, "detector", detector, (*self.detectors, _ENSEMBLE))
        if self.votes is not None:
            found = _unknown(kind, "anomaly type", anomaly, self.votes) + found
        return found


def _unknown(kind: str, what: str, name: str, valid: Iterable[str]) -> list[str]:
    """A fault where a name is not among the valid ones."""
    valid = list(valid)
    if name in valid:
        return []
    name = name[:SHOWN_MAX]
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return [f"control record {kind}: unknown {what} {name!r}{hint}; there are {', '.join(valid)}"]


def parse_record(line: str, names: Names | None = None) -> dict[str, Any]:
    """One control record from its JSON line.

    Parameters
    ----------
    names : what it may speak of; None lets every name pass

    Raises
    ------
    ConfigError : what is wrong with it, all faults at once
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"control record: not JSON ({error}): {_shown(line)}") from None
    if not isinstance(record, dict):
        raise ConfigError(f"control record: expected an object, got {_shown(line)}")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _WANTED:
        valid = ", ".join(_WANTED)
        raise ConfigError(f"control record: unknown kind {_shown(kind)}; kinds are {valid}")
    faults = [
        f"control record {kind}: expected `{name}` as {types[-1].__name__},"
        f" got {_shown(record.get(name))}"
        for name, types in _WANTED[kind].items()
        if not isinstance(record.get(name), types) or isinstance(record.get(name), bool)
    ]
    # Nothing nested: what is read must be journaled, whatever depth that can be done to.
    faults += [
        f"control record {kind}: expected `{name}` as text, got {_shown(record[name])}"
        for name in _NOTES
        if not isinstance(record.get(name, ""), str)
    ]
    extra = set(record) - set(_WANTED[kind]) - {"kind", *_NOTES, *_MAY.get(kind, ())}
    faults += [f"control record {kind}: unknown field {_shown(name)}" for name in sorted(extra)]
    if not faults:
        faults += _wrong_values(kind, record)
        faults += [] if names is None else names.faults(record)
    if faults:
        raise ConfigError(faults)
    return record


def _shown(value: Any) -> str:
    """A value in a message: short, and whatever it is."""
    try:
        text = masked(repr(value))
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


def _wrong_values(kind: str, record: Mapping[str, Any]) -> list[str]:
    """Faults of values whose types are right."""
    if kind == "threshold" and not 0 <= record["value"] <= 1:
        return [
            f"control record threshold: expected a value in [0, 1], got {_shown(record['value'])}"
        ]
    if kind == "label":
        return _wrong_label(record)
    if kind in ("recalibrate", "shift", "freeze"):
        return _wrong_recalibration(record)
    if kind not in ("stage", "bundle", "rollback"):
        return []
    faults = []
    if not _BUNDLE_ID.fullmatch(str(record.get("bundle", "0" * 16))):
        faults.append(
            f"control record {kind}: expected `bundle` as the 16 hex digits of its id, got"
            f" {_shown(record['bundle'])}"
        )
    if kind == "rollback":
        if "off" in record and not (record["off"] is True and "bundle" in record):
            faults.append(
                "control record rollback: expected `off` as true, beside a `bundle`, got"
                f" {_shown(record['off'])}"
            )
        return faults
    if not _BUNDLE_ID.fullmatch(str(record.get("rules", "0" * 16))):
        faults.append(
            f"control record {kind}: expected `rules` as 16 hex digits, got"
            f" {_shown(record['rules'])}"
        )
    path = record.get("path", "")
    if not isinstance(path, str):
        faults.append(f"control record {kind}: expected `path` as text, got {_shown(path)}")
    elif (fault := address_fault(path)) is not None:
        faults.append(f"control record {kind}: `path`: {fault}")
    if record["stage"] not in STAGES:
        faults.append(
            f"control record {kind}: unknown stage {_shown(record['stage'])};"
            f" stages are {', '.join(STAGES)}"
        )
    percent = record.get("percent", 100)
    number = isinstance(percent, int | float) and not isinstance(percent, bool)
    if not (number and 0 <= percent <= 100):
        faults.append(
            f"control record {kind}: expected `percent` in [0, 100], got {_shown(percent)}"
        )
    return faults


RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "recalibrate": {
        "percent_a_day": (0.0, 1e6),
        "share": (1e-6, 0.5),
        "freeze_ratio": (1.0, 1e6),
        "block_s": (1.0, 7 * 86_400.0),
    },
    "shift": {"value": (-SHIFT_MAX, SHIFT_MAX)},
}
"""Kind -> what its numbers may be. A block of a week and a share of one in a million are far beyond
any use; a hundred per cent a day is already no protection."""


def _wrong_recalibration(record: Mapping[str, Any]) -> list[str]:
    """Faults of a record on thresholds that follow the traffic."""
    kind = record["kind"]
    if kind == "freeze":
        return _unknown(kind, "state", record["state"], ("on", "off"))
    faults = []
    for name, (low, high) in RANGES[kind].items():
        value = record.get(name, low)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and low <= value <= high):
            faults.append(
                f"control record {kind}: expected `{name}` in [{low:g}, {high:g}], got"
                f" {_shown(value)}"
            )
    if kind == "recalibrate" and record["percent_a_day"] and "share" not in record:
        faults.append(
            "control record recalibrate: expected `share`, of the events that are to alert (of a"
            " good week: alerts over events scored)"
        )
    if kind == "shift" and not _BUNDLE_ID.fullmatch(record["bundle"]):
        faults.append(
            "control record shift: expected `bundle` as the 16 hex digits of its id, got"
            f" {_shown(record['bundle'])}"
        )
    return faults


def _wrong_label(record: Mapping[str, Any]) -> list[str]:
    """Faults of a label: its event type and entities are of the code, whatever flow hears it."""
    name, entities = record["event_type"], record.get("entities", {})
    faults = _unknown("label", "verdict", record["verdict"], VERDICTS)
    for field_ in ("event_time_us", "time_us"):
        at_us = record.get(field_, 1)
        if not isinstance(at_us, int) or isinstance(at_us, bool) or not 0 < at_us < 1 << 62:
            faults.append(
                f"control record label: expected `{field_}` in microseconds since 1970, got"
                f" {_shown(at_us)}"
            )
    if not isinstance(entities, dict):
        return [
            *faults,
            f"control record label: expected `entities` as dict, got {_shown(entities)}",
        ]
    if ("entities" in record) != ("event_time_us" in record):
        faults.append(
            "control record label: expected `event_time_us` and `entities`, or neither: what is"
            " known of an entity depends on when its event was"
        )
    if not _is_name(record["event_id"]) or not _is_name(record.get("source", "-")):
        faults.append(
            f"control record label: expected `event_id` and `source` as 1 to {_TEXT_MAX} characters"
        )
    if name not in event_types():
        return faults + _unknown("label", "event type", name, event_types())
    valid = event_types()[name].entities
    if "entities" in record and not entities:
        faults.append(
            f"control record label: expected `entities` of {name}: some of {', '.join(valid)}"
        )
    for entity, value in entities.items():
        faults += _unknown("label", f"entity of {name}", entity, valid)
        parts = len(valid.get(entity, ""))
        if not _is_name(value) or (parts > 1 and len(value.split("|")) != parts):
            faults.append(
                f"control record label: expected the name of a {entity[:SHOWN_MAX]}, got"
                f" {_shown(value)}"
            )
    return faults


def _is_name(value: Any) -> bool:
    """Whether a value is text that can be an id: short, not empty, and UTF-8."""
    if not isinstance(value, str) or not 0 < len(value) <= _TEXT_MAX:
        return False
    return not any("\ud800" <= c <= "\udfff" for c in value)


def read_line(
    raw: bytes, at: int, partition: int, names: Names | None
) -> dict[str, Any] | Fault | None:
    """The record in a line or message, what is wrong with it, or None where it is blank."""
    try:
        if len(raw) > LINE_BYTES_MAX:
            raise ConfigError(
                f"control record: expected at most {LINE_BYTES_MAX} bytes, got {len(raw)}"
            )
        return parse_record(raw.decode("utf-8", "replace"), names) if raw.strip() else None
    except ConfigError as error:
        return Fault(at, shown_line(raw), "; ".join(error.faults), partition)


def shown_line(raw: bytes) -> bytes:
    """A line or message as a dead letter may hold it: without secrets, at most LINE_BYTES_MAX."""
    return masked(raw.decode("latin-1")).encode("latin-1")[:LINE_BYTES_MAX]


Stages = dict[str, tuple[str, float]]
"""Name of a detector, or id of a bundle -> (stage, percent of entities for a canary)."""


@dataclass(frozen=True, slots=True)
class Control:
    """What is in force in a round: a fold of all control records up to it.

    Parameters
    ----------
    thresholds : (anomaly type, detector or `ensemble`) -> threshold
    stages : detector -> (stage, percent of entities for a canary)
    mutes : (entity type, entity) -> event time at which the mute ends
    bundles : id -> (stage, percent), of those that are not off; where none is live, the bundle of
        the settings is
    undo : (stages, bundles) before each change of them, the oldest first
    followed : anomaly type -> how its rule may follow live traffic
    shifts : anomaly type -> (by how much its thresholds have risen, for which bundle)
    frozen : anomaly types whose rule is not to follow for now
    notes : what a record said that is in force -> its `id`, `by`, `why` and cut time; decides
        nothing, and is no part of what two are compared by
    """

    thresholds: dict[tuple[str, str], float] = field(default_factory=dict)
    stages: Stages = field(default_factory=dict)
    mutes: dict[tuple[str, str], int] = field(default_factory=dict)
    bundles: Stages = field(default_factory=dict)
    undo: tuple[tuple[Stages, Stages], ...] = ()
    followed: dict[str, Recalibration] = field(default_factory=dict)
    shifts: dict[str, tuple[float, str]] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    notes: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict, compare=False)

    def shift(self, anomaly_type: str, bundle: str) -> float:
        """By how much the thresholds of a bundle's rule have risen, in log10 of the tail
        probability; 0 for any other bundle than the one that was recalibrated."""
        value, of = self.shifts.get(anomaly_type, (0.0, ""))
        return value if of == bundle else 0.0

    def apply(self, record: dict[str, Any], at_us: int | None = None) -> Control:
        """What is in force once `record` is; the same object where it changes nothing.

        Parameters
        ----------
        at_us : cut time of the round in which it came; None where the record itself says it
        """
        then = self._folded(record)
        key = _key(record)
        if then is self or key is None:
            return then
        note = {name: record[name] for name in (*_NOTES, _AT) if name in record}
        if at_us is not None:
            note[_AT] = at_us
        notes = {k: v for k, v in then.notes.items() if k != key} | {key: note}
        then = replace(then, notes=notes)
        return then._tidied() if len(notes) > NOTES_MIN + 2 * len(then.records()) else then

    def _tidied(self) -> Control:
        """Without notes on what is no longer in force."""
        now = {_key(record) for record in self.records()}
        return replace(self, notes={k: v for k, v in self.notes.items() if k in now})

    def noted(self) -> list[dict[str, Any]]:
        """`records`, each with its `id`, `by`, `why` and `at_us`, as far as they are known."""
        return [record | self.notes.get(_key(record) or (), {}) for record in self.records()]

    def _folded(self, record: dict[str, Any]) -> Control:
        """See `apply`."""
        kind = record["kind"]
        if kind == "threshold":
            key = (record["anomaly_type"], record["detector"])
            return replace(self, thresholds=self.thresholds | {key: float(record["value"])})
        if kind == "label":
            return self  # it changes what is known of entities, not what is in force
        if kind == "stage":
            stage = (record["stage"], float(record.get("percent", 100)))
            return self._changed(self.stages | {record["detector"]: stage}, self.bundles)
        if kind == "bundle":
            return self._changed(self.stages, _staged(self.bundles, record))
        if kind == "rollback":
            return self._undone(record.get("bundle"), bool(record.get("off")))
        if kind in ("recalibrate", "shift", "freeze"):
            return self._recalibrated(record)
        if kind == "undo":
            return replace(self, undo=tuple(map(_step, record["steps"])))
        mute = {(record["entity_type"], record["entity"]): int(record["until_us"])}
        return replace(self, mutes=self.mutes | mute)

    def _recalibrated(self, record: Mapping[str, Any]) -> Control:
        """With a rule that follows live traffic, or no more, or by a step."""
        name, kind = record["anomaly_type"], record["kind"]
        if kind == "shift":
            shift = (float(record["value"]), str(record["bundle"]))
            return replace(self, shifts=self.shifts | {name: shift})
        if kind == "freeze":
            stopped = {name} if record["state"] == "on" else set()
            return replace(self, frozen=(self.frozen - {name}) | stopped)
        if not record["percent_a_day"]:
            followed = {k: v for k, v in self.followed.items() if k != name}
            shifts = {k: v for k, v in self.shifts.items() if k != name}
            return replace(self, followed=followed, shifts=shifts)
        names = ("percent_a_day", *_MAY[kind])
        options = Recalibration(**{k: float(record[k]) for k in names if k in record})
        return replace(self, followed=self.followed | {name: options})

    def _changed(self, stages: Stages, bundles: Stages) -> Control:
        """With other stages, and a memory of those there were; none where nothing changes."""
        if (stages, list(bundles.items())) == (self.stages, list(self.bundles.items())):
            return self
        undo = (*self.undo, (self.stages, self.bundles))[-UNDO_MAX:]
        return replace(self, stages=stages, bundles=bundles, undo=undo)

    def _undone(self, bundle: str | None, off: bool) -> Control:
        """As before the last change of stages; of a bundle that is named, only where it scores,
        and where it is to be off then, without it."""
        if bundle is not None and bundle not in self.bundles:
            return self
        if bundle is not None and off:
            return self._forgotten(bundle)
        if not self.undo:
            return self
        stages, bundles = self.undo[-1]
        if bundle is not None and bundles.get(bundle) == self.bundles[bundle]:
            # What was changed last was another: only this one goes off.
            return self._changed(self.stages, self._without(bundle))
        return replace(self, stages=stages, bundles=bundles, undo=self.undo[:-1])

    def _without(self, bundle: str) -> Stages:
        """The bundles without one; where it is live, with the one that was live before it."""
        kept = {k: v for k, v in self.bundles.items() if k != bundle}
        if self.bundles.get(bundle, ("off",))[0] == "live":
            lives = (_live(bundles) for _, bundles in reversed(self.undo))
            before = next((name for name in lives if name != bundle), None)
            if before is not None:
                kept = _staged(kept, {"bundle": before, "stage": "live"})
        return kept

    def _forgotten(self, bundle: str) -> Control:
        """Without a bundle, in what can be rolled back to as well: whoever rolls back beside the
        flow, or after it, does not bring it back."""
        steps = [
            (stages, replace(self, bundles=bundles, undo=self.undo[:i])._without(bundle))
            for i, (stages, bundles) in enumerate(self.undo)
        ]
        now = (self.stages, self._without(bundle))
        kept = [
            step for step, after in pairwise([*steps, now])
            if (step[0], list(step[1].items())) != (after[0], list(after[1].items()))
        ]  # fmt: skip
        return replace(self, bundles=now[1], undo=tuple(kept))

    def expire(self, cut_time_us: int) -> Control:
        """The same without mutes that have ended by `cut_time_us`."""
        if all(until > cut_time_us for until in self.mutes.values()):
            return self
        mutes = {k: until for k, until in self.mutes.items() if until > cut_time_us}
        return replace(self, mutes=mutes)

    def kept(self) -> list[dict[str, Any]]:
        """What the manifest keeps: the records, and what can be rolled back."""
        # Also where nothing can be: the records alone would leave steps of their own.
        steps = [{"stages": stages, "bundles": bundles} for stages, bundles in self.undo]
        return [*self.noted(), {"kind": "undo", "steps": steps}]

    def records(self) -> list[dict[str, Any]]:
        """Records that put the same in force again."""
        found: list[dict[str, Any]] = [
            {"kind": "threshold", "anomaly_type": a, "detector": d, "value": v}
            for (a, d), v in self.thresholds.items()
        ]
        found += [
            {"kind": "stage", "detector": d, "stage": s, "percent": p}
            for d, (s, p) in self.stages.items()
        ]
        found += [
            {"kind": "mute", "entity_type": t, "entity": e, "until_us": u}
            for (t, e), u in self.mutes.items()
        ]
        found += [
            {"kind": "bundle", "bundle": b, "stage": s, "percent": p}
            for b, (s, p) in self.bundles.items()
        ]
        found += [
            {"kind": "recalibrate", "anomaly_type": a, **asdict(o)}
            for a, o in self.followed.items()
        ]
        found += [
            {"kind": "shift", "anomaly_type": a, "value": v, "bundle": b}
            for a, (v, b) in self.shifts.items()
        ]
        found += [{"kind": "freeze", "anomaly_type": a, "state": "on"} for a in sorted(self.frozen)]
        return found

    @classmethod
    def of(cls, records: list[dict[str, Any]]) -> Control:
        """The fold of `records`, also of those that `kept` gave."""
        state = cls()
        for record in records:
            state = state.apply(record)
        return state


def _key(record: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What a record puts in force; None where it is of a kind that leaves nothing by its name."""
    kind = record["kind"]
    if kind not in _NOTED:
        return None
    percent = (float(record.get("percent", 100)),) if kind in ("stage", "bundle") else ()
    return kind, *(record[name] for name in _NOTED[kind]), *percent


def _live(bundles: Stages) -> str | None:
    """The live bundle; None where that of the settings is."""
    return next((name for name, (stage, _) in bundles.items() if stage == "live"), None)


def _staged(bundles: Stages, record: Mapping[str, Any]) -> Stages:
    """Bundles with another stage of one: a live one takes the place of the live one there was."""
    name, stage = record["bundle"], record["stage"]
    if stage == "canary" and bundles.get(name, ("off",))[0] == stage:
        # It keeps its place: canaries have their entities in this order.
        return bundles | {name: (stage, float(record.get("percent", 100)))}
    kept = {k: v for k, v in bundles.items() if k != name and not (stage == v[0] == "live")}
    if stage == "off":
        return kept
    kept[name] = (stage, float(record.get("percent", 100)))
    beside = [k for k, v in kept.items() if v[0] != "live"]
    for oldest in beside[: max(0, len(beside) - BESIDE_MAX)]:
        del kept[oldest]
    return kept


def _step(told: Mapping[str, Any]) -> tuple[Stages, Stages]:
    """Stages and bundles of a step back, from JSON."""
    stages, bundles = (
        {name: (stage, float(percent)) for name, (stage, percent) in told[which].items()}
        for which in ("stages", "bundles")
    )
    return stages, bundles


class ControlFile:
    """Tail of a JSONL file of control records; whole lines only.

    Parameters
    ----------
    path : the file; it may appear later
    names : what a record may speak of; None lets every name pass
    """

    def __init__(self, path: Path, names: Names | None = None) -> None:
        self.origin = str(path)
        self._path = path
        self._names = names
        self._at = 0

    @property
    def position(self) -> int:
        """The byte after the last line taken."""
        return self._at

    def seek(self, position: Any) -> None:
        """Stand at a byte; a position of another kind (a topic's) is the beginning."""
        self._at = position if isinstance(position, int) else 0

    def open(self) -> None:
        """Nothing to do: the file may appear later."""

    def take(self) -> tuple[list[dict[str, Any]], list[Fault]]:
        """New records, and lines that are none.

        A file that has become shorter is another file, and is read from its beginning.

        Raises
        ------
        StateError : it is there and cannot be read
        """
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < self._at:
                    self._at = 0
                file.seek(self._at)
                data = file.read(READ_BYTES_MAX)
        except FileNotFoundError:
            return [], []
        except OSError as error:
            raise StateError(
                f"control file {self._path} cannot be read: {error.strerror}; make it readable, or"
                " set control_file to another"
            ) from error
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and len(data) == READ_BYTES_MAX:
            whole = data
        records: list[dict[str, Any]] = []
        faults: list[Fault] = []
        at = self._at
        lines = whole.split(b"\n")
        for i, line in enumerate(lines):
            found = self._read_line(line, at)
            held = self._holds(found, at, lines, i) if isinstance(found, dict) else False
            if isinstance(held, Fault):
                found = held
            elif held:
                self._at = at
                return records, faults
            if isinstance(found, Fault):
                faults.append(found)
            elif found is not None:
                records.append(found)
            at += len(line) + 1
        self._at += len(whole)
        return records, faults

    def _read_line(self, line: bytes, at: int) -> dict[str, Any] | Fault | None:
        """As of `read_line`."""
        return read_line(line, at, 0, self._names)

    def _holds(
        self, _record: dict[str, Any], _at: int, _lines: Sequence[bytes], _i: int
    ) -> bool | Fault:
        """Whether a record, of the i-th of these lines, is not to be taken yet, nor what is behind
        it; or why it never is."""
        return False

    def close(self) -> None:
        """Nothing is held."""


def append_record(path: Path, line: str) -> None:
    """Write a record at the end of a control file, and wait until the disk has it.

    A line that someone else has left unfinished is ended first, so that it is refused for itself.

    Raises
    ------
    StateError : it cannot be written
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = "\n" + line
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StateError(
            f"control file {path} cannot be written: {error.strerror}; make it writable, or set"
            " control_file to another"
        ) from error
