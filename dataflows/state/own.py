"""Folders that a command may empty or write over: those it made itself, known by a marker in them.

The demo and the bench start from nothing each time. A folder somebody names to them by mistake, the
state or the models of a real flow, has no marker and is left alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from dataflows.state.lock import lock_state
from features.errors import ConfigError, StateError

__all__ = ["MARKER", "clear_own_state", "mark_own", "refuse_foreign"]

MARKER = ".waxwing-own"
"""File that says that a command of waxwing made the folder for itself."""


def refuse_foreign(folder: Path, name: str) -> None:
    """Refuse a folder with something in it that no command of waxwing made for itself.

    Raises
    ------
    ConfigError : such a folder; `name` is the setting that names it
    """
    if not folder.is_dir() or (folder / MARKER).is_file():
        return
    # A process that has just begun the folder may hold its lock before the marker is written.
    if any(not path.name.startswith("lock-") for path in folder.iterdir()):
        raise ConfigError(
            f"{name} {folder}: would be emptied or written over, but was not made by the demo or a"
            " bench (it has no file"
            f" {MARKER}); name a folder that does not exist yet, or remove this one yourself"
        )


def mark_own(folder: Path) -> None:
    """Make the folder where it is missing and mark it as a command's own.

    Raises
    ------
    StateError : the disk refused it
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text("emptied and written over without asking\n", encoding="utf-8")
    except OSError as error:
        raise StateError(
            f"{folder} cannot be used: {error.strerror}; choose a folder that can be written"
        ) from error


def clear_own_state(folder: Path) -> None:
    """Claim a state folder for this process and empty it, but for its lock and its marker.

    Raises
    ------
    ConfigError : it was not made by a command for itself
    StateError : another process has it
    """
    refuse_foreign(folder, "state_dir")
    lock_state(folder)
    mark_own(folder)
    for path in folder.iterdir():
        if path.name == MARKER or path.name.startswith("lock-"):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
