"""The certificate: what each round computed, as hashes, written while live and kept for later.

Segments in `state_dir/digests`: `ROUND.rounds` holds a record a round (sums of groups, columns and
alerts), `ROUND.rows` the 32-bit hashes of its rows, which are dropped sooner. A segment is
`magic, header, records`, each `length, crc32, payload`; its header names the columns, the bundle
and the settings in force. A flow that resumes cuts off what is newer than its manifest and writes
it again; a torn tail ends a segment where nothing whole can stand behind it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from dataflows.state.frames import (
    cut_off,
    frame,
    frames,
    new_segment,
    said_with_cure,
    segment_files,
)
from dataflows.state.journal import fsync_folder, write_all
from features.digest import UInt32
from features.errors import StateError
from features.keys import UInt64

__all__ = [
    "Certificate",
    "Record",
    "Segment",
    "digests_folder",
    "read_records",
    "read_rows",
    "segments_of",
]

FORMAT = 1
"""Layout of a segment; one with another number is refused."""

SEGMENT_S = 3_600.0
"""Cut time a segment covers at the most; chosen: what is dropped too late is a 24th of a day."""

SEGMENT_ROUNDS = 600
"""Rounds a segment covers at the least: where time runs fast, a minute of rounds, not a file a
round. Chosen."""

_MAGIC = b"WXD1"
_HEAD = struct.Struct("<QqQIQH")
_TYPE = struct.Struct("<HI")
_ROWS = struct.Struct("<QH")
_LANE = struct.Struct("<HHI")

_ROUNDS, _ROW_HASHES = ".rounds", ".rows"


@dataclass(frozen=True, slots=True)
class Record:
    """What a round computed, all lanes together.

    Parameters
    ----------
    round, cut_time_us : which, and its clock
    received : events taken from the source
    alerts : how many were written
    alert_sum : sum over the hashes of their ids
    groups : uint64 (groups,)
    columns : event type -> uint64 (columns,), in the order of the header
    counts : event type -> rows
    """

    round: int
    cut_time_us: int
    received: int
    alerts: int
    alert_sum: int
    groups: UInt64
    columns: dict[str, UInt64]
    counts: dict[str, int]

    def to_bytes(self, types: list[str]) -> bytes:
        """The payload, event types by their place in `types`."""
        parts = [
            _HEAD.pack(
                self.round, self.cut_time_us, self.received, self.alerts, self.alert_sum,
                len(self.columns),
            ),
            self.groups.tobytes(),
        ]  # fmt: skip
        for name, sums in self.columns.items():
            parts += [_TYPE.pack(types.index(name), self.counts[name]), sums.tobytes()]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, payload: bytes, header: Mapping[str, Any]) -> Record:
        """The record that `to_bytes` wrote."""
        types = list(header["columns"])
        round_, cut_us, received, alerts, alert_sum, count = _HEAD.unpack_from(payload)
        at = _HEAD.size
        groups = np.frombuffer(payload, np.uint64, header["groups"], at)
        at += groups.nbytes
        columns, counts = {}, {}
        for _ in range(count):
            place, rows = _TYPE.unpack_from(payload, at)
            at += _TYPE.size
            name = types[place]
            columns[name] = np.frombuffer(payload, np.uint64, len(header["columns"][name]), at)
            counts[name] = rows
            at += columns[name].nbytes
        return cls(round_, cut_us, received, alerts, alert_sum, groups, columns, counts)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of records: its first round, its file and its header.

    The header has `columns` (event type -> names), `bundle` and `voting` (of the settings),
    `bundles` (those that score, the live one first, and their stages), `catalog`, `groups`,
    `lanes`, `settings`, `versions`, and `cut_time_us` of the first round.
    """

    round: int
    path: Path
    header: dict[str, Any]


def digests_folder(state_dir: Path) -> Path:
    """Where the certificate lies."""
    return state_dir / "digests"


def _frames(path: Path) -> Iterator[tuple[bytes, int]]:
    """Each whole payload of a file, the header first, and the byte at which it ends."""
    return frames(path, _MAGIC)


def segments_of(folder: Path) -> list[Segment]:
    """The segments of records, oldest first; one without a whole header is left out.

    Raises
    ------
    StateError : one was written in another format
    """
    found = []
    for path in segment_files(folder, _ROUNDS):
        first = next(_frames(path), None)
        if first is None:
            continue
        header = json.loads(first[0])
        if header.get("format") != FORMAT:
            raise StateError(
                f"certificate {path}: format {header.get('format')}, this version reads {FORMAT};"
                " certify with the version that wrote it"
            )
        found.append(Segment(int(path.stem), path, header))
    return found


def read_records(
    folder: Path, from_us: int | None = None, until_us: int | None = None
) -> Iterator[tuple[Segment, Record]]:
    """Records with their segment, in the order of rounds; a handful in memory at a time.

    Parameters
    ----------
    from_us, until_us : only rounds cut at or after the one and before the other
    """
    segments = segments_of(folder)
    for segment, following in zip_longest(segments, segments[1:]):
        ends_us = None if following is None else int(following.header["cut_time_us"])
        if from_us is not None and ends_us is not None and ends_us < from_us:
            continue
        for record in _records(segment):
            if until_us is not None and record.cut_time_us >= until_us:
                return
            if from_us is None or record.cut_time_us >= from_us:
                yield segment, record


def _records(segment: Segment) -> Iterator[Record]:
    """Records of a segment."""
    frames = _frames(segment.path)
    next(frames, None)
    for payload, _ in frames:
        yield Record.from_bytes(payload, segment.header)


def read_rows(folder: Path, round_: int) -> dict[tuple[str, int], UInt32] | None:
    """(event type, lane) -> row hashes of a round; None where they are not kept."""
    for path in reversed(segment_files(folder, _ROW_HASHES)):
        if int(path.stem) > round_:
            continue
        frames = _frames(path)
        first = next(frames, None)
        if first is None:
            return None
        types = json.loads(first[0])["types"]
        for payload, _ in frames:
            if _ROWS.unpack_from(payload)[0] == round_:
                return _rows_of(payload, types)
        return None
    return None


def _rows_of(payload: bytes, types: list[str]) -> dict[tuple[str, int], UInt32]:
    """The row hashes of a payload."""
    found: dict[tuple[str, int], UInt32] = {}
    _, count = _ROWS.unpack_from(payload)
    at = _ROWS.size
    for _ in range(count):
        place, lane, rows = _LANE.unpack_from(payload, at)
        at += _LANE.size
        found[types[place], lane] = np.frombuffer(payload, np.uint32, rows, at)
        at += 4 * rows
    return found


def _round_of(payload: bytes) -> int:
    """The round of a record, of either kind."""
    return int(struct.unpack_from("<Q", payload)[0])


@dataclass(slots=True)
class Certificate:
    """Writes the certificate of a flow; one writer.

    Parameters
    ----------
    folder : made where it is missing
    header : what stands in each segment's header, `columns` and `groups` among it
    after_round : newer records are cut off: they are made again
    retention_us : cut time for which records are kept
    rows_us : cut time for which row hashes are kept; 0 keeps none

    Raises
    ------
    StateError : the disk refuses it
    """

    folder: Path
    header: dict[str, Any]
    after_round: int
    retention_us: int
    rows_us: int
    _open: dict[str, Any] = field(default_factory=dict)
    _first_us: int = 0
    _first_round: int = 0
    _times: dict[Path, int] = field(default_factory=dict)
    _changed: bool = False

    def __post_init__(self) -> None:
        self._guarded(self._begin_at)

    def _guarded(self, act: Callable[[], None]) -> None:
        """Do something with the disk; a fault says the cure."""
        with said_with_cure("certificate", self.folder, "retention_h"):
            act()

    def _begin_at(self) -> None:
        """Cut off what is newer than the manifest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for suffix in (_ROUNDS, _ROW_HASHES):
            cut_off(self.folder, suffix, _MAGIC, self.after_round, _round_of)
        for segment in segments_of(self.folder):
            self._times[segment.path] = int(segment.header["cut_time_us"])

    def change(self, header: dict[str, Any]) -> None:
        """Another header from the next record on: a segment begins there."""
        self.header, self._changed = header, True

    def write(self, record: Record, rows: Mapping[tuple[str, int], UInt32]) -> None:
        """Append a round; it outlives the process, `sync` the machine.

        Parameters
        ----------
        rows : (event type, lane) -> hash of each row
        """
        self._guarded(lambda: self._write(record, rows))

    def _write(self, record: Record, rows: Mapping[tuple[str, int], UInt32]) -> None:
        """See `write`."""
        rounds = record.round - self._first_round
        past = record.cut_time_us - self._first_us >= SEGMENT_S * 1e6
        if not self._open or self._changed or (past and rounds >= SEGMENT_ROUNDS):
            self._begin(record)
        types = list(self.header["columns"])
        write_all(self._open[_ROUNDS], frame(record.to_bytes(types)))
        if _ROW_HASHES in self._open:
            parts = [_ROWS.pack(record.round, len(rows))]
            for (name, lane), hashes in rows.items():
                parts += [_LANE.pack(types.index(name), lane, len(hashes)), hashes.tobytes()]
            write_all(self._open[_ROW_HASHES], frame(b"".join(parts)))

    def _begin(self, record: Record) -> None:
        """Begin a segment and let go of what is kept no longer."""
        self.sync()
        self.close()
        self._changed = False
        self._first_us, self._first_round = record.cut_time_us, record.round
        heads: dict[str, dict[str, Any]] = {
            _ROUNDS: {**self.header, "format": FORMAT, "cut_time_us": record.cut_time_us}
        }
        if self.rows_us:
            heads[_ROW_HASHES] = {"format": FORMAT, "types": list(self.header["columns"])}
        for suffix, head in heads.items():
            path = self.folder / f"{record.round:020d}{suffix}"
            self._open[suffix] = new_segment(path)
            write_all(self._open[suffix], _MAGIC + frame(json.dumps(head).encode()))
        self._times[self.folder / f"{record.round:020d}{_ROUNDS}"] = record.cut_time_us
        fsync_folder(self.folder)
        self._forget(_ROUNDS, record.cut_time_us - self.retention_us)
        self._forget(_ROW_HASHES, record.cut_time_us - self.rows_us)

    def _forget(self, suffix: str, since_us: int) -> None:
        """Remove files of which all rounds were cut before a time."""
        files = segment_files(self.folder, suffix)
        for path, following in pairwise(files):
            ends_us = self._times.get(following.with_suffix(_ROUNDS))
            if ends_us is not None and ends_us <= since_us:
                path.unlink()

    def sync(self) -> None:
        """Return once everything written is on the disk."""

        def act() -> None:
            for file in self._open.values():
                os.fdatasync(file.fileno())

        self._guarded(act)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._open.values():
            file.close()
        self._open = {}
