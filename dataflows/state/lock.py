"""One process at a time on a state folder: a second start by mistake is refused, the first unhurt.

The lock is the kernel's, on an open file, and goes with the process however it ends; the file that
stays behind means nothing. It is a record lock (`lockf`): one process may open its own state again,
and a process that it starts does not inherit it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from features.errors import StateError

__all__ = ["in_cluster", "lock_state", "process_id", "this_process"]

_HELD: dict[tuple[int, Path], int] = {}
"""Handle of each lock, by process id (a fork holds none) and path: closing any handle of a file
would let its lock go."""


def process_id(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """Number of this process in a Bytewax cluster, found as `bytewax.run` finds it; "0" alone.

    >>> process_id(["-m", "-i", "2", "-a", "a:1;b:1;c:1"], {})
    '2'
    """
    for i, arg in enumerate(argv):
        name, equals, value = arg.partition("=")
        if name in ("-i", "--process-id"):
            return value if equals else "".join(argv[i + 1 : i + 2])
        if arg.startswith("-i") and arg[2:].isdecimal():
            return arg[2:]
    pod, group = environ.get("BYTEWAX_POD_NAME"), environ.get("BYTEWAX_STATEFULSET_NAME")
    if "BYTEWAX_PROCESS_ID" not in environ and pod and group:
        return pod.replace(f"{group}-", "")
    return environ.get("BYTEWAX_PROCESS_ID", "0")


def this_process() -> str:
    """Number of this very process; see `process_id`."""
    return process_id(sys.argv[1:], os.environ)


def in_cluster() -> bool:
    """Whether this process was told where others are, as `bytewax.run` is told."""
    told = any(arg.startswith(("-a", "--addresses")) for arg in sys.argv[1:])
    return told or bool({"BYTEWAX_ADDRESSES", "BYTEWAX_HOSTFILE_PATH"} & os.environ.keys())


def lock_state(folder: Path) -> None:
    """Claim a state folder for this process, until the process ends.

    The processes of one cluster share the folder, so each has a lock by its number.

    Raises
    ------
    StateError : another process has it, or it cannot be locked
    """
    path = (folder / f"lock-{this_process()}").resolve()
    if (os.getpid(), path) in _HELD:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StateError(
            f"state_dir {folder} cannot be used: {error.strerror}; choose a folder that can be"
            " written"
        ) from error
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(handle, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # no locks left, or none on this disk
            raise StateError(
                f"state_dir {folder} cannot be locked: {error.strerror}; choose a folder on a disk"
                " that knows locks"
            ) from error
        raise StateError(
            f"state_dir {folder} is in use by another process (id {owner}); stop it first, or give"
            " this one a state_dir of its own"
        ) from None
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(handle)
        raise StateError(
            f"state_dir {folder} cannot be used: {error.strerror}; free space or mend the disk and"
            " start again"
        ) from error
    _HELD[os.getpid(), path] = handle
