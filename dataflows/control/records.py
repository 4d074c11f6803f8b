"""Control records: what a person changes while the flow runs, and what is in force.

They come from one JSONL file (or topic), are read by lane 0 alone, stand in the journal beside the
events of their round, and are in force for every lane from that round on: `in_force.apply(record)`
is the whole of it, so a replay sees what the live run saw.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.errors import ConfigError, StateError

__all__ = ["STAGES", "Control", "ControlFile", "parse_record"]

STAGES = ("off", "shadow", "canary", "live")

READ_BYTES_MAX = 1_000_000
"""Most of the file read in one round; chosen: thousands of records, a millisecond."""

LINE_BYTES_MAX = 65_536
"""A longer line is no control record; chosen: a record has a handful of short fields."""


def parse_record(line: str) -> dict[str, Any]:
    """One control record from its JSON line.

    Raises
    ------
    ConfigError : what is wrong with it, all faults at once
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"control record: not JSON ({error}): {line[:120]!r}") from None
    if not isinstance(record, dict):
        raise ConfigError(f"control record: expected an object, got {line[:120]!r}")
    kind = record.get("kind")
    wanted: dict[str, dict[str, tuple[type, ...]]] = {
        "threshold": {"anomaly_type": (str,), "detector": (str,), "value": (int, float)},
        "mute": {"entity_type": (str,), "entity": (str,), "until_us": (int,)},
        "stage": {"detector": (str,), "stage": (str,)},
    }
    if not isinstance(kind, str) or kind not in wanted:
        valid = ", ".join(wanted)
        raise ConfigError(f"control record: unknown kind {kind!r}; kinds are {valid}")
    faults = [
        f"control record {kind}: expected `{name}` as {types[-1].__name__},"
        f" got {record.get(name)!r}"
        for name, types in wanted[kind].items()
        if not isinstance(record.get(name), types) or isinstance(record.get(name), bool)
    ]
    extra = set(record) - set(wanted[kind]) - {"kind", "id", "by", "why", "percent"}
    faults += [f"control record {kind}: unknown field {name!r}" for name in sorted(extra)]
    if not faults and kind == "threshold" and not 0 <= record["value"] <= 1:
        faults.append(
            f"control record threshold: expected a value in [0, 1], got {record['value']}"
        )
    if not faults and kind == "stage" and record["stage"] not in STAGES:
        faults.append(
            f"control record stage: unknown stage {record['stage']!r};"
            f" stages are {', '.join(STAGES)}"
        )
    percent = record.get("percent", 100)
    if kind == "stage" and not (isinstance(percent, int | float) and 0 <= percent <= 100):
        faults.append(f"control record stage: expected `percent` in [0, 100], got {percent!r}")
    if faults:
        raise ConfigError(faults)
    return record


@dataclass(frozen=True, slots=True)
class Control:
    """What is in force in a round: a fold of all control records up to it.

    Parameters
    ----------
    thresholds : (anomaly type, detector or `ensemble`) -> threshold
    stages : detector -> (stage, percent of entities for a canary)
    mutes : (entity type, entity) -> event time at which the mute ends
    """

    thresholds: dict[tuple[str, str], float] = field(default_factory=dict)
    stages: dict[str, tuple[str, float]] = field(default_factory=dict)
    mutes: dict[tuple[str, str], int] = field(default_factory=dict)

    def apply(self, record: dict[str, Any]) -> Control:
        """What is in force once `record` is."""
        if record["kind"] == "threshold":
            key = (record["anomaly_type"], record["detector"])
            return Control(self.thresholds | {key: float(record["value"])}, self.stages, self.mutes)
        if record["kind"] == "stage":
            stage = (record["stage"], float(record.get("percent", 100)))
            return Control(self.thresholds, self.stages | {record["detector"]: stage}, self.mutes)
        mute = {(record["entity_type"], record["entity"]): int(record["until_us"])}
        return Control(self.thresholds, self.stages, self.mutes | mute)

    def expire(self, cut_time_us: int) -> Control:
        """The same without mutes that have ended by `cut_time_us`."""
        if all(until > cut_time_us for until in self.mutes.values()):
            return self
        mutes = {k: until for k, until in self.mutes.items() if until > cut_time_us}
        return Control(self.thresholds, self.stages, mutes)

    def records(self) -> list[dict[str, Any]]:
        """Records that lead to this state again: what the manifest keeps."""
        return (
            [
                {"kind": "threshold", "anomaly_type": a, "detector": d, "value": v}
                for (a, d), v in self.thresholds.items()
            ]
            + [
                {"kind": "stage", "detector": d, "stage": s, "percent": p}
                for d, (s, p) in self.stages.items()
            ]
            + [
                {"kind": "mute", "entity_type": t, "entity": e, "until_us": u}
                for (t, e), u in self.mutes.items()
            ]
        )

    @classmethod
    def of(cls, records: list[dict[str, Any]]) -> Control:
        """The fold of `records`."""
        state = cls()
        for record in records:
            state = state.apply(record)
        return state


class ControlFile:
    """Tail of a JSONL file of control records; whole lines only.

    Parameters
    ----------
    path : the file; it may appear later
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0

    def take(self) -> tuple[list[dict[str, Any]], list[tuple[int, bytes, str]]]:
        """New records, and (byte offset, raw line, fault) of lines that are none.

        A file that has become shorter is another file, and is read from its beginning.
        """
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < self.position:
                    self.position = 0
                file.seek(self.position)
                data = file.read(READ_BYTES_MAX)
        except FileNotFoundError:
            return [], []
        except OSError as error:
            raise StateError(
                f"control file {self.path} cannot be read: {error.strerror}; make it readable, or"
                " set control_file to another"
            ) from error
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and len(data) == READ_BYTES_MAX:
            whole = data
        records: list[dict[str, Any]] = []
        faults: list[tuple[int, bytes, str]] = []
        at = self.position
        for line in whole.split(b"\n"):
            try:
                if len(line) > LINE_BYTES_MAX:
                    raise ConfigError(
                        f"control record: expected at most {LINE_BYTES_MAX} bytes, got {len(line)}"
                    )
                if line.strip():
                    records.append(parse_record(line.decode("utf-8", "replace")))
            except ConfigError as error:
                faults.append((at, line[:LINE_BYTES_MAX], "; ".join(error.faults)))
            at += len(line) + 1
        self.position += len(whole)
        return records, faults
