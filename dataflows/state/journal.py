"""The journal of a lane: which events made up which round, durable before anything else sees them.

One record a round: round number, `cut_time_us`, the source's positions after the cut, how many
events came, a checksum of them, control records and schema bodies met for the first time. After a
crash the rounds are cut again exactly as they were; a replay a month later reads the same.

A segment is a file of records `marker, length (u32), crc32 (u32) of length and payload, JSON`,
named by its first round. Only the last record can be torn (each is on the disk before the next is
begun): a bad record with nothing whole behind it, at the end of the newest segment, is cut off on
opening. Damage anywhere else is an error. Segments are removed from the oldest on, once the journal
is longer than `bytes_max` and a restart can no longer need them; so the first record of a segment
repeats all schema bodies known before it.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from features.errors import StateError

__all__ = [
    "Cut",
    "CutFollower",
    "JournalView",
    "LaneJournal",
    "NewerJournal",
    "RoundJournal",
    "fsync_folder",
    "last_cut",
    "make_folder",
    "read_cuts",
    "replace_text",
    "standing",
    "unreadable",
    "write_all",
]

_MAGIC = b"WXJ1"
_MARKER = b"\xf7WXR"
"""Begins each record; its first byte is in no JSON text, so that records are found again behind
damage."""
FORMAT = 1
"""Layout of a record; a topic's records bear it, a segment's beginning says it for its own."""

_KEYS = frozenset("rtpncksfqem")
"""Names of what a record may hold. A newer version may write more, which must not be passed over:
a replay would not be what was."""

_FRAME = struct.Struct("<4sII")
_LENGTH = struct.Struct("<I")

RECORD_BYTES_MAX = 64_000_000
"""A longer record can only be damage: a round is capped in rows, and holds no event bodies.
Chosen."""


class NewerJournal(StateError):
    """A journal that a newer version wrote: not damaged, and not to be made anew."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What one lane cut in one round.

    Parameters
    ----------
    round : running number, from 1
    cut_time_us : the clock of everything after the source, microseconds UTC
    positions : where the source stood after the cut, as the source itself writes it
    received : events taken from the source, repeats and rejects included
    checksum : crc32 of what the round held, in order; a replay must meet the same
    control : control records read with this round
    schemas : schema id -> body, of schemas first met in this round (in the first record of a
        segment: of all)
    faults : lines or messages of the control lane that are no record: (offset, what it held, what
        is wrong with it, partition), and `label` behind it where it stood among the labels
    source_time_us : the reader's own clock where `cut_time_us` was held back from running
        backwards; None where they are the same
    final : the lane ended with this round
    rates : version of the table of exchange rates the round was cut with; 0 where there was none
    """

    round: int
    cut_time_us: int
    positions: dict[str, Any]
    received: int
    checksum: int = 0
    control: list[dict[str, Any]] = field(default_factory=list)
    schemas: dict[str, str] = field(default_factory=dict)
    faults: list[tuple[Any, ...]] = field(default_factory=list)
    source_time_us: int | None = None
    final: bool = False
    rates: int = 0

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
                **({"f": self.faults} if self.faults else {}),
                **({} if self.source_time_us is None else {"q": self.source_time_us}),
                **({"e": 1} if self.final else {}),
                **({"m": self.rates} if self.rates else {}),
            },
            separators=(",", ":"),
        ).encode()

    @classmethod
    def from_bytes(cls, payload: bytes) -> Cut:
        """The cut that `to_bytes` wrote.

        Raises
        ------
        ValueError : it is none
        NewerJournal : it holds what this version does not know
        """
        d = json.loads(payload)
        if not isinstance(d, dict):
            raise ValueError(f"expected an object, got {type(d).__name__}")
        if unknown := sorted(d.keys() - _KEYS):
            raise NewerJournal(
                f"journal: round {d.get('r')} holds {', '.join(map(repr, unknown))}, which this"
                " version does not know: a journal of a newer version; run the version that wrote"
                " it, or start with an empty state_dir"
            )
        faults = [(at, line, fault, *(rest or [0])) for at, line, fault, *rest in d.get("f", [])]
        return cls(
            d["r"],
            d["t"],
            d["p"],
            d["n"],
            d["c"],
            d.get("k", []),
            d.get("s", {}),
            faults,
            d.get("q"),
            "e" in d,
            d.get("m", 0),
        )


def _record(payload: bytes) -> bytes:
    """A payload as it stands in a segment."""
    crc = zlib.crc32(payload, zlib.crc32(_LENGTH.pack(len(payload))))
    return _FRAME.pack(_MARKER, len(payload), crc) + payload


def _payload_at(data: bytes, at: int) -> bytes | None:
    """The payload of the record at a byte, None where there is no whole one."""
    if at + _FRAME.size > len(data):
        return None
    marker, length, crc = _FRAME.unpack_from(data, at)
    begin = at + _FRAME.size
    if marker != _MARKER or length > RECORD_BYTES_MAX or begin + length > len(data):
        return None
    payload = data[begin : begin + length]
    return payload if zlib.crc32(payload, zlib.crc32(_LENGTH.pack(length))) == crc else None


def _whole_behind(data: bytes, at: int) -> bool:
    """Whether any whole record stands behind a bad one."""
    found = data.find(_MARKER, at + 1)
    while found >= 0:
        if _payload_at(data, found) is not None:
            return True
        found = data.find(_MARKER, found + 1)
    return False


def _segment_cuts(path: Path, newest: bool, begin: int = 0) -> Iterator[tuple[Cut, int]]:
    """Each whole record of a segment and the byte at which it ends, from the one at `begin` on.

    A torn tail ends it where the segment is the newest; else, or before whole records, it is an
    error.
    """
    try:
        with path.open("rb") as file:
            file.seek(begin)
            data = file.read()
    except OSError as error:
        raise unreadable(path, error) from error
    if not begin and data[:4] != _MAGIC:
        if newest and (_MAGIC.startswith(data) or not data.strip(b"\0")):
            return
        if data[:3] == _MAGIC[:3] and data[3:4].isdigit():
            raise NewerJournal(
                f"journal segment {path}: written in format {data[:4]!r}, this version reads"
                f" {_MAGIC!r}; run the version that wrote it, or start with an empty state_dir"
            )
        raise StateError(f"journal segment {path}: not a journal; move it away and start again")
    at = 0 if begin else len(_MAGIC)
    while at < len(data):
        payload = _payload_at(data, at)
        if payload is None:
            if newest and not _whole_behind(data, at):
                return
            raise StateError(
                f"journal segment {path}: record at byte {begin + at} is damaged, and it is not the"
                " last; restore the file from a copy, or start with an empty state_dir"
            )
        at += _FRAME.size + len(payload)
        yield Cut.from_bytes(payload), begin + at


def _segments(folder: Path) -> list[Path]:
    """Segment files, oldest first."""
    return sorted(p for p in folder.glob("*.jnl") if p.stem.isdecimal())


def read_cuts(folder: Path, after_round: int = 0) -> Iterator[Cut]:
    """Cuts of a lane with `round > after_round`, in order, without opening the journal for writing.

    Raises
    ------
    StateError : a record is damaged that is not the torn last one, or a segment may not be read
    """
    segments = _segments(folder)
    for i, path in enumerate(segments):
        if i + 1 < len(segments) and int(segments[i + 1].stem) <= after_round + 1:
            continue
        for cut, _ in _segment_cuts(path, newest=i + 1 == len(segments)):
            if cut.round > after_round:
                yield cut


class CutFollower:
    """Cuts of a lane as they come, each read once; the journal may be written meanwhile.

    Parameters
    ----------
    folder : of the lane; it may appear later
    after_round : the newest round that is not wanted
    """

    def __init__(self, folder: Path, after_round: int) -> None:
        self._folder, self._round = folder, after_round
        self._path, self._at = folder, 0

    def take(self) -> Iterator[Cut]:
        """What has come since.

        Raises
        ------
        StateError : see `read_cuts`
        """
        segments = _segments(self._folder)
        for i, path in enumerate(segments):
            if i + 1 < len(segments) and int(segments[i + 1].stem) <= self._round + 1:
                continue
            if path != self._path or path.stat().st_size < self._at:
                self._path, self._at = path, 0
            for cut, end in _segment_cuts(path, i + 1 == len(segments), self._at):
                self._at = end
                if cut.round > self._round:
                    self._round = cut.round
                    yield cut


def last_cut(folder: Path, round_: int) -> Cut | None:
    """The newest cut of a lane with `round <= round_`."""
    return standing(folder, round_)[0]


def standing(folder: Path, round_: int) -> tuple[Cut | None, dict[str, str]]:
    """The newest cut of a lane with `round <= round_`, and all schema bodies known by then.

    Reads one segment, not all of them.
    """
    segments = _segments(folder)
    for i in reversed(range(len(segments))):
        if int(segments[i].stem) > round_:
            continue
        found: Cut | None = None
        schemas: dict[str, str] = {}
        for cut, _ in _segment_cuts(segments[i], newest=i + 1 == len(segments)):
            if cut.round > round_:
                break
            found = cut
            schemas |= cut.schemas
        if found is not None:
            return found, schemas
    return None, {}


class RoundJournal(Protocol):
    """Where a lane writes the cut of a round before the round goes on."""

    @property
    def folder(self) -> Path:
        """Where its rounds can be read."""

    def append(self, cut: Cut) -> None:
        """Make a cut durable.

        Raises
        ------
        StateError : it is not
        """

    def close(self) -> None:
        """Let go of it."""


def _nothing_durable() -> int:
    """No round is known to be durable: nothing is ever removed."""
    return 0


def _no_fence() -> None:
    """Nobody else can write there."""


class LaneJournal:
    """Append-only journal of one lane, one file handle, one writer.

    Parameters
    ----------
    folder : the lane's own folder; made where it is missing
    segment_bytes : size at which a new segment is begun
    bytes_max : size of all segments above which the oldest are removed; 0 keeps all
    durable : says the round before which no restart can begin; asked when a segment is begun
    replayed : says the round before which no replay can begin: older segments are removed; 0 keeps
        them
    synced : whether `append` waits for the disk; not where the rounds are durable elsewhere
    fence : called before a cut is written; raises where another flow has the folder now

    Raises
    ------
    StateError : the folder holds something that is no journal, or one damaged before its tail, or
        one that may not be read or written
    """

    def __init__(
        self,
        folder: Path,
        segment_bytes: int,
        bytes_max: int = 0,
        durable: Callable[[], int] = _nothing_durable,
        replayed: Callable[[], int] = _nothing_durable,
        synced: bool = True,
        fence: Callable[[], None] = _no_fence,
    ) -> None:
        self.folder = folder
        self.synced = synced
        self.fence = fence
        self.segment_bytes = segment_bytes
        self.bytes_max = bytes_max
        self._durable = durable
        self._replayed = replayed
        folder.mkdir(parents=True, exist_ok=True)
        self.last: Cut | None = None
        self._file: Any = None
        self._size = 0
        self._schemas: dict[str, str] = {}
        self._recover()

    def _recover(self) -> None:
        """Cut a torn tail off and stand at the end of the newest segment."""
        for path in reversed(_segments(self.folder)):
            end = 0
            for cut, stop in _segment_cuts(path, newest=True):
                self.last, end = cut, stop
                self._schemas |= cut.schemas
            if end:
                try:
                    self._file = path.open("r+b", buffering=0)
                except OSError as error:
                    raise unreadable(path, error) from error
                self._file.truncate(end)
                self._file.seek(end)
                os.fsync(self._file.fileno())
                self._size = end
                return
            path.unlink()

    def append(self, cut: Cut) -> None:
        """Write one cut and, where it is `synced`, wait until the disk has it.

        Raises
        ------
        StateError : the disk refused it (full, gone); the record is taken back; or the fence did
        """
        self.fence()
        begins = self._file is None or self._size >= self.segment_bytes
        schemas = self._schemas | cut.schemas
        record = _record((replace(cut, schemas=schemas) if begins else cut).to_bytes())
        try:
            if begins:
                self._begin(cut.round)
            write_all(self._file, record)
            if self.synced:
                os.fdatasync(self._file.fileno())
        except OSError as error:
            self._take_back()
            raise StateError(
                f"journal {self.folder}: round {cut.round} could not be written: {error.strerror};"
                " free space or mend the disk and start again, nothing is lost"
            ) from error
        self._size += len(record)
        self._schemas = schemas
        self.last = cut

    def _take_back(self) -> None:
        """Remove what a failed write has left; where even that fails, opening cuts it off."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
                self._file.seek(self._size)

    def _begin(self, first_round: int) -> None:
        """Begin the next segment, then let go of the one before and of those no longer wanted."""
        path = self.folder / f"{first_round:020d}.jnl"
        file = path.open("wb", buffering=0)
        try:
            write_all(file, _MAGIC)
            fsync_folder(self.folder)
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        if self._file is not None:
            # Only the newest segment may end torn.
            if not self.synced:
                os.fdatasync(self._file.fileno())
            self._file.close()
        self._file, self._size = file, len(_MAGIC)
        self._forget()

    def _forget(self) -> None:
        """Remove the oldest segments beyond `bytes_max`, or before what is kept for replays, whose
        rounds no restart can need."""
        if not self.bytes_max:
            return
        segments = _segments(self.folder)
        sizes = [path.stat().st_size for path in segments]
        kept, durable, replayed = sum(sizes), self._durable(), self._replayed()
        for path, size, following in zip(segments, sizes, segments[1:], strict=False):
            # The cut of the durable round itself is needed: a restart begins at its positions.
            past = int(following.stem) <= replayed
            if int(following.stem) > durable or not (past or kept > self.bytes_max):
                return
            path.unlink()
            kept -= size

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(frozen=True, slots=True)
class JournalView:
    """A journal that is only read, as a replay does: nothing is opened, mended or written."""

    folder: Path

    def append(self, cut: Cut) -> None:
        """Refuse.

        Raises
        ------
        StateError : always: a replay has no new rounds
        """
        raise StateError(f"journal {self.folder}: has no round {cut.round}; replay fewer")

    def close(self) -> None:
        """Nothing is held."""


def unreadable(path: Path, error: OSError) -> StateError:
    """The fault of a file of the state that the system does not open."""
    if isinstance(error, IsADirectoryError):
        return StateError(f"{path}: expected a file, got a folder; move it away and start again")
    return StateError(
        f"{path}: cannot be opened: {error.strerror}; give this user the right to read and write"
        " it, or mend the disk, and start again"
    )


def write_all(file: Any, data: bytes) -> None:
    """Write everything: an unbuffered write on a full disk may take a part and raise nothing.

    Raises
    ------
    OSError : the disk refused it; a part may stand in the file
    """
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def fsync_folder(folder: Path) -> None:
    """Make names in a folder durable: a file's own fsync does not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where it is missing.

    Raises
    ------
    StateError : the disk refuses it
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"{folder} could not be made: {error.strerror}; free space or mend the disk and start"
            " again"
        ) from error


def replace_text(path: Path, text: str, temporary: Path | None = None) -> None:
    """Write a file whole, durably, in place of the one there was: no reader sees half of it.

    Parameters
    ----------
    temporary : where it lies until it is whole, in the same folder; None takes one name for all,
        good for one writer at a time

    Raises
    ------
    OSError : the disk refused it; the file there was still stands
    """
    temporary = path.with_suffix(".tmp") if temporary is None else temporary
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)
