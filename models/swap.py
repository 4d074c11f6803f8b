"""A folder put in the place of another, so that a process that dies leaves one of the two.

A bundle is replaced while flows may be about to load it. Linux exchanges two folders in one step;
elsewhere there are two renames, and what a death between them left aside is taken back by the next
who looks.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from pathlib import Path

__all__ = ["beside", "put", "sweep", "take_back"]

_HERE = -100
"""AT_FDCWD of fcntl.h: paths are as the process sees them."""

_EXCHANGE = 2
"""RENAME_EXCHANGE of linux/fs.h."""


def beside(path: Path, what: str) -> Path:
    """The name of a folder of this process beside another: `new` is made, `old` is to go."""
    return path.with_name(f".{path.name}.{os.getpid()}.{what}")


def put(new: Path, path: Path) -> None:
    """Put a folder in the place of another beside it, or of nothing, and remove that other.

    Raises
    ------
    OSError : the disk refused it; the other one is still there
    """
    old = beside(path, "old")
    if not path.exists():
        new.rename(path)
        return
    if _exchanged(new, path):
        old = new
    else:
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def take_back(path: Path) -> None:
    """Where a folder is gone and a process that died replacing it left it aside, put it back."""
    if path.exists():
        return
    for left in _left(path):
        if left.name.endswith(".old"):
            try:
                left.rename(path)
            except OSError:  # another was quicker, or nothing can be written here
                return
            return


def sweep(path: Path) -> None:
    """Remove what processes that died have left beside a folder."""
    for left in _left(path):
        shutil.rmtree(left, ignore_errors=True)


def _left(path: Path) -> list[Path]:
    """Folders beside another that belong to no process but this one, the newest first."""
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.(?:new|old)")
    try:
        there = list(path.parent.iterdir())
    except OSError:
        return []
    mine = [(one, name.fullmatch(one.name)) for one in there]
    left = [one for one, found in mine if found is not None and not _lives(int(found[1]))]
    return sorted(left, key=lambda one: one.lstat().st_mtime_ns, reverse=True)


def _lives(process: int) -> bool:
    """Whether another process of that number is there."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the disk cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return int(call(_HERE, paths[0], _HERE, paths[1], ctypes.c_uint(_EXCHANGE))) == 0
