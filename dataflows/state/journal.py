"""The journal of a lane: which events made up which round, durable before anything else sees them.

One record a round: round number, `cut_time_us`, the source's positions after the cut, how many events
came, a checksum of them, control records and schema bodies met for the first time. After a crash the
rounds are cut again exactly as they were; a replay a month later reads the same.

A segment is a file of records `length (u32), crc32 (u32), JSON`, named by its first round. A torn tail
(the machine died while writing) is cut off on opening; damage anywhere else is an error.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.errors import StateError

__all__ = ["Cut", "LaneJournal", "read_cuts"]

_MAGIC = b"WXJ1"
_FRAME = struct.Struct("<II")

RECORD_BYTES_MAX = 64_000_000
"""A longer record can only be damage: a round is capped in rows, and holds no event bodies. Chosen."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What one lane cut in one round.

    Parameters
    ----------
    round : running number, from 1
    cut_time_us : the clock of everything after the source, microseconds UTC
    positions : where the source stood after the cut, as the source itself writes it
    received : events taken from the source, repeats and rejects included
    checksum : crc32 of the events' ids and times, in order; a replay must meet the same
    control : control records read with this round
    schemas : schema id -> body, of schemas first met in this round
    """

    round: int
    cut_time_us: int
    positions: dict[str, Any]
    received: int
    checksum: int = 0
    control: list[dict[str, Any]] = field(default_factory=list)
    schemas: dict[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The record's payload."""
        return json.dumps(
            {
                "r": self.round,
                "t": self.cut_time_us,
                "p": self.positions,
                "n": self.received,
                "c": self.checksum,
                **({"k": self.control} if self.control else {}),
                **({"s": self.schemas} if self.schemas else {}),
            },
            separators=(",", ":"),
        ).encode()

    @classmethod
    def from_bytes(cls, payload: bytes) -> Cut:
        """The cut that `to_bytes` wrote."""
        d = json.loads(payload)
        return cls(d["r"], d["t"], d["p"], d["n"], d["c"], d.get("k", []), d.get("s", {}))


def _segment_cuts(path: Path) -> Iterator[tuple[Cut, int]]:
    """Each whole record of a segment and the byte at which it ends; stops at a torn tail."""
    data = path.read_bytes()
    if not data:
        return
    if data[:4] != _MAGIC:
        if data[:3] == _MAGIC[:3]:
            raise StateError(
                f"journal segment {path}: written in format {data[:4]!r}, this version reads"
                f" {_MAGIC!r}; run the version that wrote it, or start with an empty state_dir"
            )
        if _MAGIC.startswith(data):
            return
        raise StateError(f"journal segment {path}: not a journal; move it away and start again")
    at = 4
    while at + _FRAME.size <= len(data):
        length, crc = _FRAME.unpack_from(data, at)
        end = at + _FRAME.size + length
        if length > RECORD_BYTES_MAX or end > len(data):
            return
        payload = data[at + _FRAME.size : end]
        if zlib.crc32(payload) != crc:
            if end == len(data):
                return
            raise StateError(
                f"journal segment {path}: record at byte {at} is damaged in the middle of the file;"
                " restore the file, or start from the newest base with an empty journal"
            )
        yield Cut.from_bytes(payload), end
        at = end


def _segments(folder: Path) -> list[Path]:
    """Segment files, oldest first."""
    return sorted(folder.glob("*.jnl"))


def read_cuts(folder: Path, after_round: int = 0) -> Iterator[Cut]:
    """Cuts of a lane with `round > after_round`, in order, without opening the journal for writing."""
    segments = _segments(folder)
    for i, path in enumerate(segments):
        if i + 1 < len(segments) and int(segments[i + 1].stem) <= after_round + 1:
            continue
        for cut, _ in _segment_cuts(path):
            if cut.round > after_round:
                yield cut


class LaneJournal:
    """Append-only journal of one lane, one file handle, one writer.

    Parameters
    ----------
    folder : the lane's own folder; made where it is missing
    segment_bytes : size at which a new segment is begun

    Raises
    ------
    StateError : the folder holds something that is no journal, or one damaged before its tail
    """

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        self.folder = folder
        self.segment_bytes = segment_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self.last: Cut | None = None
        self._file: Any = None
        self._size = 0
        self._recover()

    def _recover(self) -> None:
        """Cut a torn tail off and stand at the end of the newest segment."""
        segments = _segments(self.folder)
        for path in reversed(segments):
            end = 0
            for cut, stop in _segment_cuts(path):
                self.last, end = cut, stop
            if end:
                if self._file is None:
                    self._file = path.open("r+b", buffering=0)
                    self._file.truncate(end)
                    self._file.seek(end)
                    self._size = end
                return
            path.unlink()

    def append(self, cut: Cut) -> None:
        """Write one cut and wait until the disk has it.

        Raises
        ------
        StateError : the disk refused it (full, gone); the record is taken back
        """
        payload = cut.to_bytes()
        record = _FRAME.pack(len(payload), zlib.crc32(payload)) + payload
        try:
            if self._file is None or self._size >= self.segment_bytes:
                self._begin(cut.round)
            self._file.write(record)
            os.fdatasync(self._file.fileno())
        except OSError as error:
            if self._file is not None:
                self._file.truncate(self._size)
                self._file.seek(self._size)
            raise StateError(
                f"journal {self.folder}: round {cut.round} could not be written: {error.strerror};"
                " free space or mend the disk and start again, nothing is lost"
            ) from error
        self._size += len(record)
        self.last = cut

    def _begin(self, first_round: int) -> None:
        """Close the segment and begin the next one."""
        if self._file is not None:
            self._file.close()
        path = self.folder / f"{first_round:020d}.jnl"
        self._file = path.open("wb", buffering=0)
        self._file.write(_MAGIC)
        self._size = len(_MAGIC)
        fsync_folder(self.folder)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def fsync_folder(folder: Path) -> None:
    """Make names in a folder durable: a file's own fsync does not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
