"""What models elsewhere answered to the rows of each round, kept beside its lane's journal.

An answer of the world is durable before it is used: a restart and a replay take it from here and
ask nobody. Missing answers are notes like those of any other detector (`dataflows.ballots`).

A record is a line of JSON that says whose it is, then the numbers: float64, or float32 where that
loses nothing, and before them int32 row numbers where not all rows of the round were asked about.
Records stand in segments named after their first round; a segment goes when the journal has no cut
of its rounds any more. Only the last record can be torn, and is cut off on opening.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataflows.state.journal import fsync_folder, write_all
from features.batch import Float64
from features.errors import StateError

__all__ = ["ANSWERS_FOLDER", "Answer", "AnswerLog", "Whose"]

ANSWERS_FOLDER = "answers"
"""In the folder of a lane's journal."""

SEGMENT_BYTES = 64_000_000
"""Size at which a segment ends. Origin: as the journal's own."""

_ENDING = ".ans"

_LINE_BYTES_MAX = 2_000
"""Longest line before the numbers; chosen: ten times what names take."""

Rows = npt.NDArray[np.intp]

Whose = tuple[int, str, str, str]
"""Round, event type, id of the bundle, detector."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one detector said.

    Parameters
    ----------
    rows : intp (n,), rows of the round, sorted
    values : float64 (n,)
    """

    rows: Rows
    values: Float64


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a record's numbers stand."""

    path: Path
    at: int
    round: int
    rows: int
    every: bool
    bits: int
    crc: int

    @property
    def bytes(self) -> int:
        """Of the numbers."""
        return self.rows * (self.bits // 8 + (0 if self.every else 4))


class AnswerLog:
    """The answers of one lane, one writer.

    Parameters
    ----------
    folder : of the lane's journal
    after_round : answers of later rounds are looked up
    until_round : and of no round after this one, and nothing is appended; None: of all
    segment_bytes : see SEGMENT_BYTES

    Raises
    ------
    StateError : damage before the last record
    """

    def __init__(
        self,
        folder: Path,
        after_round: int = 0,
        until_round: int | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._journal, self._folder = folder, folder / ANSWERS_FOLDER
        self._segment_bytes = segment_bytes
        self._file: Any = None
        self._size = 0
        self._places: dict[Whose, _Place] = {}
        segments = self._segments()
        for i, path in enumerate(segments):
            last = i + 1 == len(segments)
            if not last and int(segments[i + 1].stem) <= after_round:
                continue
            # One segment beyond: a flow that went back to its manifest and asked again, of another
            # bundle, wrote the answers into the last one there was.
            if until_round is not None and i and int(segments[i - 1].stem) > until_round:
                break
            found = list(_records(path, torn=last))
            if last:
                found = _whole(found)
                self._size = found[-1][1].at + found[-1][1].bytes if found else 0
            end = math.inf if until_round is None else until_round
            self._places |= {w: p for w, p in found if after_round < p.round <= end}

    def take(self, whose: Whose) -> Answer | None:
        """An answer that was given, once: a round is scored once. None where there is none.

        Raises
        ------
        StateError : its numbers are damaged
        """
        place = self._places.pop(whose, None)
        return None if place is None else _read(place)

    def append(self, answers: dict[Whose, tuple[Answer, int]]) -> None:
        """Write answers, each with the number of rows of its round, and wait for the disk.

        Raises
        ------
        StateError : the disk refused them (full, gone); none is left in the file
        """
        if not answers:
            return
        data = b"".join(_record(whose, answer, rows) for whose, (answer, rows) in answers.items())
        first = min(whose[0] for whose in answers)
        try:
            file = self._open(first)
            write_all(file, data)
            os.fdatasync(file.fileno())
        except OSError as error:
            if self._file is not None:
                with contextlib.suppress(OSError):  # opening cuts it off where even this fails
                    self._file.truncate(self._size)
            raise StateError(
                f"{self._folder}: cannot be written: {error.strerror}; free space or mend the disk"
                " and start again, nothing is lost"
            ) from error
        self._size += len(data)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _segments(self) -> list[Path]:
        """The oldest first."""
        found = self._folder.glob(f"*{_ENDING}")
        return sorted(path for path in found if path.stem.isdecimal())

    def _open(self, first_round: int) -> Any:
        """The file to write to."""
        segments = self._segments() if self._file is None or self._is_full else []
        if self._file is None and segments:
            # Also where a new one is begun: only the last may have a torn end.
            self._file = segments[-1].open("ab", buffering=0)
            self._file.truncate(self._size)
        if self._file is not None:
            if not self._is_full:
                return self._file
            os.fdatasync(self._file.fileno())
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        if segments:  # after a restart from an earlier round, too, what is written is the last
            first_round = max(first_round, int(segments[-1].stem))
        path = self._folder / f"{first_round:020d}{_ENDING}"
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size
        fsync_folder(self._folder)
        fsync_folder(self._folder.parent)
        self._forget()
        return self._file

    @property
    def _is_full(self) -> bool:
        """Whether a new segment is due."""
        return self._size >= self._segment_bytes

    def _forget(self) -> None:
        """Remove segments of rounds that the journal has no more."""
        oldest = min((int(p.stem) for p in self._journal.glob("*.jnl")), default=0)
        segments = self._segments()
        for path, after in itertools.pairwise(segments):
            if int(after.stem) <= oldest:
                path.unlink(missing_ok=True)


def _record(whose: Whose, answer: Answer, rows: int) -> bytes:
    """A record as it stands in a file."""
    every = len(answer.rows) == rows
    numbers = answer.values.tobytes()
    small = answer.values.astype(np.float32)
    exact = small.astype(np.float64).tobytes() == numbers
    if exact:
        numbers = small.tobytes()
    data = (b"" if every else answer.rows.astype(np.int32).tobytes()) + numbers
    round_, event_type, bundle, detector = whose
    head = {
        "round": round_,
        "event_type": event_type,
        "bundle": bundle,
        "detector": detector,
        "rows": len(answer.rows),
        "all": every,
        "bits": 32 if exact else 64,
        "crc": zlib.crc32(data),
    }
    line = json.dumps(head, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n%s" % (zlib.crc32(line), line, data)


def _records(path: Path, torn: bool) -> Iterator[tuple[Whose, _Place]]:
    """Each record of a segment; only lines are read.

    Raises
    ------
    StateError : damage; where the segment may be torn, only before its last record
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        at = 0
        while at < size:
            file.seek(at)
            line = file.readline(_LINE_BYTES_MAX)
            payload = line[9:-1]
            sound = line.endswith(b"\n") and line[:9] == b"%08x " % zlib.crc32(payload)
            end = size + 1
            if sound:
                head = json.loads(payload)
                numbers = (head["round"], head["rows"], head["all"], head["bits"], head["crc"])
                place = _Place(path, at + len(line), *numbers)
                end = place.at + place.bytes
            if end > size:
                # What was being written when the process ended is the end of the file.
                cut = not line.endswith(b"\n") and (at + len(line) == size or not line.strip(b"\0"))
                if torn and (sound or cut):
                    return
                raise StateError(
                    f"{path}: damaged at byte {at}; restore the file from a copy, or start with an"
                    " empty state_dir"
                )
            yield (head["round"], head["event_type"], head["bundle"], head["detector"]), place
            at = end


def _whole(found: list[tuple[Whose, _Place]]) -> list[tuple[Whose, _Place]]:
    """The records of the newest segment up to one of its last round whose numbers never came."""
    for i, (_, place) in enumerate(found):
        if place.round == found[-1][1].round and zlib.crc32(_bytes(place)) != place.crc:
            return found[:i]
    return found


def _bytes(place: _Place) -> bytes:
    """The numbers of a record as they stand in the file."""
    with place.path.open("rb") as file:
        file.seek(place.at)
        return file.read(place.bytes)


def _read(place: _Place) -> Answer:
    """The numbers of a record."""
    data = _bytes(place)
    if zlib.crc32(data) != place.crc:
        raise StateError(
            f"{place.path}: the answers of round {place.round} are damaged; restore the file from"
            " a copy, or start with an empty state_dir"
        )
    n, rows = place.rows, np.arange(place.rows)
    if not place.every:
        rows = np.frombuffer(data[: 4 * n], np.int32).astype(np.intp)
        data = data[4 * n :]
    values = np.frombuffer(data, np.float32 if place.bits == 32 else np.float64)
    return Answer(rows, values.astype(np.float64))
