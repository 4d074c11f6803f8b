"""What was found out while a round was worked on, noted beside its lane's journal before its use.

The cut of a round says which events it held. That a detector gave no answer, or that an event made
a step raise, is known only later, yet a restart and a replay must do the same: so each such verdict
is a line here, durable before anything follows from it, and looked up before anything is tried.

A line is `crc32 JSON`; only the last can be torn, and is cut off on opening.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataflows.state.journal import fsync_folder, replace_text, write_all
from features.errors import StateError

__all__ = ["BYTES_MAX", "RoundNotes", "read_notes"]

BYTES_MAX = 16_000_000
"""Size above which notes on rounds that the journal no longer has are dropped. Chosen: 100,000
notes; a detector that fails all day makes 10 a second and event type. Where all must stay it is
asked again when they have doubled: a rewrite is as long as the file."""


class RoundNotes:
    """Append-only notes on rounds, one writer.

    Parameters
    ----------
    path : beside the segments of a lane's journal; made with the first note

    Raises
    ------
    StateError : damage before the last line
    """

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX) -> None:
        self._path, self._bytes_max = path, bytes_max
        self._drop_above = bytes_max
        self._file: Any = None
        self._size = sum(len(line) for line, _ in _lines(path))

    def append(self, notes: list[dict[str, Any]]) -> None:
        """Write notes, each with its `round`, and wait until the disk has them.

        Raises
        ------
        StateError : the disk refused them (full, gone); none is left in the file
        """
        data = b"".join(_line(note) for note in notes)
        try:
            if self._size + len(data) > self._drop_above:
                self._drop_old()
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)
                self._file.truncate(self._size)
                fsync_folder(self._path.parent)
            write_all(self._file, data)
            os.fdatasync(self._file.fileno())
        except OSError as error:
            if self._file is not None:
                with contextlib.suppress(OSError):  # opening cuts it off where even this fails
                    self._file.truncate(self._size)
            raise StateError(
                f"{self._path}: cannot be written: {error.strerror}; free space or mend the disk"
                " and start again, nothing is lost"
            ) from error
        self._size += len(data)

    def _drop_old(self) -> None:
        """Keep only notes on rounds of which the journal still has the cut."""
        self.close()
        oldest = min((int(p.stem) for p in self._path.parent.glob("*.jnl")), default=0)
        kept = [line for line, note in _lines(self._path) if note["round"] >= oldest]
        replace_text(self._path, b"".join(kept).decode("ascii"))
        self._size = sum(map(len, kept))
        self._drop_above = max(self._bytes_max, 2 * self._size)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_notes(path: Path, after_round: int = 0) -> Iterator[dict[str, Any]]:
    """Notes on rounds after `after_round`, in the order in which they were written.

    Raises
    ------
    StateError : damage before the last line
    """
    for _, note in _lines(path):
        if note["round"] > after_round:
            yield note


def _line(note: dict[str, Any]) -> bytes:
    """A note as it stands in the file."""
    payload = json.dumps(note, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each whole line and what it says; a torn last one ends it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    lines = data.splitlines(keepends=True)
    for i, line in enumerate(lines):
        payload = line[9:-1]
        if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(payload):
            if i + 1 == len(lines):
                return
            raise StateError(
                f"{path}: line {i + 1} is damaged, and it is not the last; restore the file from a"
                " copy, or start with an empty state_dir"
            )
        yield line, json.loads(payload)
