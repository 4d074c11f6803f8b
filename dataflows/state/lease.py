"""Who may write the manifest of a state folder: one flow at a time, by a number that only grows.

A flow takes the lease when it starts; each new holder has a token above all before it, and the
manifest bears its writer's. So a flow that was thought dead and wakes up (a machine that hung, a
network that came back) cannot write over what the flow after it has made durable: its token is
older than the manifest's. What is written between manifests (journal, logs, state files) is asked
for with `Lease.check`: a holder that has not beaten for a while beats first, and hears then that
another has taken over. What it was writing at the very moment at which it hung is not held back.

A holder on this machine is alive or it is not, so a dead one's lease is taken at once. Of another
machine one knows only that it no longer beats: its lease is taken when it has been watched for
`LEASE_S` without a beat. No clock of two machines is compared. Everything happens under a lock of
the kernel (`lock-lease`), which a shared folder must hand on between machines, as NFS 4 does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from dataflows.state.journal import replace_text
from features.errors import StateError

__all__ = [
    "BEAT_S",
    "CHECK_S",
    "LEASE_S",
    "Lease",
    "Record",
    "give_back_of",
    "locked",
    "read_lease",
    "superseded",
    "take_lease",
]

LEASE_S = 10.0
"""A holder on another machine without a beat for so long is taken for dead. Chosen: a third of the
30 s a restart may take."""

BEAT_S = 2.0
"""How often a holder says that it lives. Chosen: five beats may be lost."""

CHECK_S = 2.5 * BEAT_S
"""Age of the last good beat from which on nothing is written before the next. Chosen: half of
`LEASE_S`, before which nobody on another machine takes over."""

LOOK_S = 0.5
"""Age of the last look of a process that is no holder and does not beat. A look takes 60 us of CPU
on a local disk, measured 2026-11-30; chosen: about a thousandth of the time even where it takes ten
times as long."""

_NAME = "lease.json"


@dataclass(frozen=True, slots=True)
class Record:
    """What the file says.

    Parameters
    ----------
    token : of the newest holder; grows with each
    place : machine, boot and process namespace of the holder: within one, a process id says enough
    host : name of the machine, for people
    pid, begun_s : the process, and when it began, since ids are given out again
    beat : grows while the holder lives
    held : False once it has been given back
    """

    token: int
    place: str
    host: str
    pid: int
    begun_s: float
    beat: int = 0
    held: bool = True


def _place() -> str:
    """Machine, boot and process namespace of this process."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(boot.read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _me(token: int) -> Record:
    """The record of this process."""
    pid = os.getpid()
    return Record(token, _place(), socket.gethostname(), pid, psutil.Process(pid).create_time())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else reads and writes the lease, or writes a manifest, while it lasts."""
    with (folder / "lock-lease").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_lease(folder: Path) -> Record | None:
    """What the file of a state folder says; None where there is none, or a power cut tore it."""
    try:
        return Record(**json.loads((folder / _NAME).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write(folder: Path, record: Record) -> None:
    """Put a record in place of the one there was, on the disk."""
    try:
        replace_text(folder / _NAME, json.dumps(asdict(record)) + "\n")
    except OSError as error:
        raise StateError(
            f"lease in {folder} could not be written: {error.strerror}; free space or mend the disk"
            " and start again"
        ) from error


def _alive(record: Record) -> bool | None:
    """Whether the holder lives; None where it is on another machine and nobody here can know."""
    if record.place != _place():
        return None
    try:
        process = psutil.Process(record.pid)
        begun_s, status = process.create_time(), process.status()
    except psutil.Error:
        return False
    # Killed, and whoever started it has not asked what became of it yet: it writes no more.
    if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return False
    return abs(begun_s - record.begun_s) < 1.0


def _now_s() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """The lease of this process; `beat` says that it lives, `give_back` that it is done.

    Parameters
    ----------
    folder : the state folder
    token : the number that goes with it
    held : False where another process of the cluster holds it for this one, which only looks
    """

    def __init__(self, folder: Path, token: int, held: bool = True) -> None:
        self.folder, self.token, self._held = folder, token, held
        self._ended = threading.Event()
        self._good_s = _now_s()
        self._lost: Callable[[StateError], None] = lambda _: None
        self._beating: threading.Thread | None = None

    def beat(self) -> bool:
        """Say that the holder lives; False where another has taken over."""
        begun_s = _now_s()
        with locked(self.folder):
            record = read_lease(self.folder) or _me(self.token)
            if record.token != self.token:
                return False
            if self._held and not self._ended.is_set():
                _write(self.folder, replace(record, beat=record.beat + 1))
        self._good_s = begun_s
        return True

    def check(self) -> None:
        """Before anything is written: beat where the last good beat is older than `CHECK_S`.

        A process that is no holder looks, where its last look is older than `LOOK_S`.

        Raises
        ------
        StateError : another has taken over, or the disk does not give or take the beat
        """
        age_s = CHECK_S if self._held else LOOK_S
        try:
            fresh = not self._ended.is_set() and _now_s() - self._good_s <= age_s
            if fresh or self.beat():
                return
            fault = superseded(self.folder, self.token)
        except OSError as error:
            raise StateError(
                f"lease in {self.folder} could not be read: {error.strerror}; mend the disk and"
                " start again"
            ) from error
        self._lost(fault)
        raise fault

    def keep(
        self, lost: Callable[[StateError], None] | None = None, every_s: float | None = None
    ) -> None:
        """Beat from a thread of its own, until the lease is given back.

        Parameters
        ----------
        lost : called once another has taken over; without, whoever calls again with one hears it
        every_s : between two beats, `BEAT_S` by itself
        """
        self._lost = self._lost if lost is None else lost
        if self._beating is None or not self._beating.is_alive():
            pause_s = BEAT_S if every_s is None else every_s
            self._beating = threading.Thread(
                target=self._beats, args=(pause_s,), name="waxwing-lease", daemon=True
            )
            self._beating.start()

    def _beats(self, pause_s: float) -> None:
        """Beat until the end, or until another has taken over."""
        while not self._ended.wait(pause_s):
            with contextlib.suppress(StateError, OSError):  # a full disk is met by others, too
                if not self.beat():
                    self._lost(superseded(self.folder, self.token))
                    return

    def give_back(self) -> None:
        """Let the next one have it without a wait; what is written after it is asked for first."""
        self._ended.set()
        with contextlib.suppress(StateError, OSError), locked(self.folder):
            record = read_lease(self.folder)
            if record is not None and record.token == self.token:
                _write(self.folder, replace(record, held=False))


def give_back_of(folder: Path, pids: Collection[int]) -> None:
    """Give back the lease that one of these processes, dead by now, has left held: whoever comes
    next on another machine need not watch it."""
    with contextlib.suppress(StateError, OSError):
        if read_lease(folder) is None:
            return
        with locked(folder):
            record = read_lease(folder)
            if record is None or not record.held or record.pid not in pids:
                return
            if _alive(record) is False:
                _write(folder, replace(record, held=False))


def superseded(folder: Path, token: int) -> StateError:
    """The fault of a flow whose lease another has taken."""
    record = read_lease(folder)
    who = "" if record is None else f" by process {record.pid} on {record.host}"
    newer = "" if record is None else f" (lease {record.token}, ours was {token})"
    return StateError(
        f"state_dir {folder} has been taken over{who}{newer}; this flow ends without writing"
        " anything there; let one flow alone use the folder"
    )


def take_lease(
    folder: Path,
    token_min: int = 0,
    lease_s: float = LEASE_S,
    rest: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = lambda _: None,
) -> Lease:
    """Take the lease of a state folder.

    Parameters
    ----------
    token_min : the token is above it, whatever the file says: that of the manifest
    lease_s : how long a holder on another machine is watched
    rest : waits so many seconds
    say : told why it takes so long

    Raises
    ------
    StateError : its holder lives
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            record = read_lease(folder)
            alive = False if record is None or not record.held else _alive(record)
            if record is not None and alive is False:
                return _taken(folder, max(record.token, token_min) + 1)
            if record is None:
                return _taken(folder, token_min + 1)
    except OSError as error:
        raise StateError(
            f"state_dir {folder} cannot be used: {error.strerror}; choose a folder that can be"
            " written"
        ) from error
    if alive:
        if record.pid == os.getpid():
            return Lease(folder, record.token)
        raise _in_use(folder, record)
    return _watched(folder, record, token_min, lease_s, rest, say)


def _watched(
    folder: Path,
    record: Record,
    token_min: int,
    lease_s: float,
    rest: Callable[[float], None],
    say: Callable[[str], None],
) -> Lease:
    """Take the lease of another machine's process, unless it beats while it is watched."""
    say(
        f"state_dir {folder} was last used by process {record.pid} on {record.host}, which has not"
        f" given it back; watched for {lease_s:g} s whether it is alive"
    )
    rest(lease_s)
    with locked(folder):
        now = read_lease(folder)
        if now is not None and now != record and now.held:
            raise _in_use(folder, now)
        token = max(record.token, token_min, 0 if now is None else now.token)
        return _taken(folder, token + 1)


def _taken(folder: Path, token: int) -> Lease:
    """Write ourselves down; the lock is held."""
    _write(folder, _me(token))
    return Lease(folder, token)


def _in_use(folder: Path, record: Record) -> StateError:
    """The fault of a second start by mistake."""
    return StateError(
        f"state_dir {folder} is in use by another process (id {record.pid} on {record.host}); stop"
        " it first, or give this one a state_dir of its own"
    )
