"""The alert log: one alert a line in `alerts.jsonl` of state_dir, which the notify flow reads.

It is append-only but for one case: a detect flow that resumes cuts it back to where the manifest
says and writes the replayed rounds again, so that each alert stands in it once.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from dataflows.alerts.base import Alert
from dataflows.settings import Settings
from features.errors import ContractError, SinkError

__all__ = ["FILE_NAME", "Sink", "alerts_with"]

FILE_NAME = "alerts.jsonl"
"""Name of the log below state_dir; other readers look for it under this name."""

_TAIL_BYTES = 65_536
"""Step in which the last line end is looked for. Chosen: some twenty alerts."""

_log = logging.getLogger(__name__)


def alerts_with(state_dir: Path, text: str) -> Iterator[Alert]:
    """Alerts whose lines have a text in them, oldest first; none where there is no log.

    The flow may be live: its last line may be half there, and is left out.
    """
    path = state_dir / FILE_NAME
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if text in line:
                with contextlib.suppress(ContractError):
                    yield Alert.from_json(line)


class Sink:
    """Appends to the log. `write` outlives the process, `sync` the machine."""

    name: ClassVar[str] = "jsonl"

    def __init__(self, settings: Settings) -> None:
        self.path = settings.state_dir / FILE_NAME
        try:
            settings.state_dir.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o644)
        except OSError as error:
            raise SinkError(_fault(self.path, "be opened", error)) from error
        # A process that was killed while it wrote leaves half a line.
        self._cut(self.position())

    def write(self, alerts: list[Alert]) -> None:
        """Append the alerts, all or none of them.

        Raises
        ------
        SinkError : the disk does not take them
        """
        if not alerts:
            return
        body = memoryview("".join(alert.to_json() + "\n" for alert in alerts).encode())
        before = self.position()
        try:
            while body:
                body = body[os.write(self._file, body) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # a disk that is gone cannot be cut back either
                os.ftruncate(self._file, before)
            raise SinkError(_fault(self.path, "be written", error)) from error

    def sync(self) -> None:
        """Return once everything written is on the disk."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise SinkError(_fault(self.path, "be synced", error)) from error

    def position(self) -> int:
        """Length of the log in bytes."""
        return os.fstat(self._file).st_size

    def truncate(self, position: int) -> None:
        """Cut the log back to a length that `position` gave earlier."""
        size = self.position()
        if size < position:
            # Somebody took the log away. Refusing to detect would be worse than a shorter log.
            _log.warning(
                "%s has %d bytes, the manifest knows of %d; going on at its end",
                self.path,
                size,
                position,
            )
            return
        self._cut(position)

    def close(self) -> None:
        """Sync and close the file."""
        if self._file >= 0:
            self.sync()
            os.close(self._file)
            self._file = -1

    def _cut(self, position: int) -> None:
        """Cut behind the last whole line before a position."""
        end = position
        while end > 0:
            begin = max(0, end - _TAIL_BYTES)
            found = os.pread(self._file, end - begin, begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
        if end != self.position():
            os.ftruncate(self._file, end)


def _fault(path: Path, what: str, error: OSError) -> str:
    """What failed, and the cure."""
    return (
        f"sink 'jsonl': {path} could not {what}: {error.strerror}; free space, mend the rights,"
        " or set state_dir to another folder"
    )
