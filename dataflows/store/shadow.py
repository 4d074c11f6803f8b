"""What the online store should hold, kept beside the state: an emptied Redis is filled again.

Redis may lose what it acknowledged: a restart without its data, a failover to an older copy, a
FLUSHALL. The flow has forgotten the rows by then, and the journal would have to be replayed from
its beginning. So the newest row of each entity that was written lies here too, in files of
state_dir that the kernel pages: a table of numbers by slot, and the names in the order of their
slots. The writer's thread alone touches it, after Redis has acknowledged the rows.

A row torn by the loss of power is known by its check and left out.
"""

# mypy: disable-error-code="no-untyped-call"
# The kernels take arrays of types numba finds out.

from __future__ import annotations

import fcntl
import os
import struct
import uuid
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import redis

from dataflows.store.wire import Wire
from features.batch import Float64, Int64
from features.errors import StateError
from features.keys import hash_strings
from features.slots import SlotTable, larger

__all__ = ["MARKS_KEY", "ROWS_MAX", "Mark", "Shadow", "claim"]

MARKS_KEY = b"waxwing:written"
"""Hash of Redis that holds each writer's mark."""

ROWS_MAX = 2_000_000
"""Most entities of a view that are kept; of those met later, what Redis loses comes back with their
next event. Chosen: 700 MB of disk at 40 features, 60 bytes of memory an entity."""

CHUNK_ROWS = 2_000
"""Rows copied at a time: the flow waits for the GIL meanwhile. Chosen: under a millisecond."""

_CHECK, _TIME, _HEAD = 0, 1, 2
# Columns of a row: its check, its time, then the features.

_SEED = 0x1F83D9ABFB41BD6B
"""Check of a row of zeros; chosen: any odd number."""

_LENGTH = struct.Struct("<H")

_MARK_BYTES = 64
"""Longest mark, as it stands in its file."""


class Shadow:
    """The rows of one view.

    Parameters
    ----------
    folder : of all views; made where it is missing
    name : of the view
    features : names of its features, in order; rows of others are not taken over

    Raises
    ------
    StateError : the disk refuses the files
    """

    def __init__(self, folder: Path, name: str, features: tuple[str, ...]) -> None:
        self._width = len(features)
        self._rows_path = folder / f"{name}.rows"
        self._rows: npt.NDArray[np.int64] = np.zeros((0, self._width + _HEAD), np.int64)
        self._slots = SlotTable()
        self._keys = pl.Series([], dtype=pl.String)
        self._new: list[str] = []
        head = ("\n".join(features) + "\n\n").encode()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._names = (folder / f"{name}.names").open("a+b", buffering=0)
            self._names.seek(0)
            data = self._names.read()
            if not data.startswith(head):
                # Features of another catalogue: what they would be now nobody knows.
                self._names.truncate(0)
                self._rows_path.unlink(missing_ok=True)
                self._names.write(head)
                data = head
            self._load(data, len(head))
        except OSError as error:
            raise _refused(self._rows_path, error) from error

    def __len__(self) -> int:
        return self._slots.used

    def _load(self, data: bytes, at: int) -> None:
        """Find the names again, and their slots.

        Cut off is half a name at the end, and all from the first that the loss of power has spoilt
        (zeros, or what is no text): where the next one begins nobody knows then.
        """
        names: list[str] = []
        known = data.rstrip(b"\0")
        while at + _LENGTH.size <= len(known):
            (length,) = _LENGTH.unpack_from(known, at)
            name = known[at + _LENGTH.size : at + _LENGTH.size + length]
            if not name or len(name) < length:
                break
            try:
                names.append(name.decode())
            except UnicodeDecodeError:
                break
            at += _LENGTH.size + length
        if at < len(data):
            self._cut_rows(len(names))
            self._names.truncate(at)
        self._keys = pl.Series(names, dtype=pl.String)
        if names:
            self._intern(hash_strings(self._keys).view(np.int64))
            self._map(len(names))

    def _cut_rows(self, count: int) -> None:
        """Let go of the rows behind the first `count`: their slots get other names."""
        if self._rows_path.exists():
            size = count * (self._width + _HEAD) * 8
            os.truncate(self._rows_path, min(size, self._rows_path.stat().st_size))

    def _intern(self, ids: Int64) -> Int64:
        """Slots of entities; new ones get the next."""
        slots, _, _ = self._slots.intern(np.column_stack((ids, np.zeros(len(ids), np.int64))))
        return np.asarray(slots, np.int64)

    def _map(self, rows: int) -> None:
        """Make room for so many rows; what is new holds zeros, which are no row."""
        if rows <= len(self._rows):
            return
        shape = (max(larger(len(self._rows)), rows), self._width + _HEAD)
        with self._rows_path.open("ab") as file:
            # Room that the disk has promised: writing into a page that it has not ends a process.
            os.posix_fallocate(file.fileno(), 0, shape[0] * shape[1] * 8)
        self._rows = np.memmap(self._rows_path, np.int64, "r+", shape=shape)

    def put(self, keys: pl.Series, ids: Int64, values: Float64, time_us: Int64) -> None:
        """Keep rows, each entity at most once, that the store has taken.

        Parameters
        ----------
        keys : String (n,), names
        ids : int64 (n,), keys of the names
        values : float64 (n, F)
        time_us : int64 (n,), event times

        Raises
        ------
        StateError : the disk refuses them
        """
        known = self._slots.used
        if known + len(ids) > ROWS_MAX:  # rarely true: few of them are new
            found = self._slots.find(ids.view(np.uint64))
            keep = np.flatnonzero((found >= 0) | (np.cumsum(found < 0) <= ROWS_MAX - known))
            keys, ids = keys[keep], ids[keep]
            values, time_us = values[keep], time_us[keep]
        if not len(ids):
            return
        try:
            slots = self._intern(ids)
            new = np.flatnonzero(slots >= known)
            if len(new):
                names = keys[new].to_list()
                self._names.write(b"".join(_name(name) for name in names))
                self._new += names
                self._map(self._slots.used)
            for at in range(0, len(slots), CHUNK_ROWS):
                some = slice(at, at + CHUNK_ROWS)
                row = np.empty((len(slots[some]), self._width + _HEAD), np.int64)
                row[:, _TIME] = time_us[some]
                row[:, _HEAD:] = np.ascontiguousarray(values[some]).view(np.int64)
                row[:, _CHECK] = _check(row)
                self._rows[slots[some]] = row
        except OSError as error:
            raise _refused(self._rows_path, error) from error

    def amend(self, ids: Int64, values: Float64, time_us: Int64, columns: Int64) -> None:
        """Change some features of entities that are kept, where nothing newer is known of them.

        Parameters
        ----------
        ids : int64 (n,), keys of the names, each at most once
        values : float64 (n, C)
        time_us : int64 (n,), event times
        columns : intp (C,), places of the features
        """
        slots = np.asarray(self._slots.find(ids.view(np.uint64)), np.int64)
        known = np.flatnonzero(slots >= 0)
        for at in range(0, len(known), CHUNK_ROWS):
            some = known[at : at + CHUNK_ROWS]
            row = np.array(self._rows[slots[some]])
            # A torn row stays torn: with a check of its own it would pass for whole.
            fit = (row[:, _CHECK] == _check(row)) & (row[:, _TIME] <= time_us[some])
            some, row = some[fit], row[fit]
            row[:, _TIME] = time_us[some]
            row[:, _HEAD + columns] = np.ascontiguousarray(values[some]).view(np.int64)
            row[:, _CHECK] = _check(row)
            self._rows[slots[some]] = row

    def rows(self, begin: int, end: int) -> tuple[pl.Series, Int64, Float64, Int64]:
        """Whole rows among slots `begin` to `end`: names, keys, values, times; copied."""
        if self._new:
            self._keys = pl.concat([self._keys, pl.Series(self._new, dtype=pl.String)])
            self._new = []
        end = min(end, len(self))
        row = np.array(self._rows[begin:end])
        whole = np.flatnonzero(row[:, _CHECK] == _check(row))
        keys = self._keys[begin + whole]
        row = row[whole]
        values = np.ascontiguousarray(row[:, _HEAD:]).view(np.float64)
        return keys, hash_strings(keys).view(np.int64), values, row[:, _TIME].copy()

    def close(self) -> None:
        """Let go of the files."""
        self._names.close()
        self._rows = np.zeros((0, self._width + _HEAD), np.int64)


class Mark:
    """A number in Redis, one higher with each flush; a lower one, or none, says that rows are lost.

    Parameters
    ----------
    folder : where the number that Redis must have stands too, for the next start

    Raises
    ------
    StateError : the disk refuses the file
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "mark"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            said = os.pread(self._file, _MARK_BYTES, 0).decode("ascii", "replace").split()
        except OSError as error:
            raise _refused(self._path, error) from error
        whole = len(said) == 3 and said[1].isdecimal()
        self._name = said[0] if whole else uuid.uuid4().hex
        self._number = int(said[1]) if whole else 0
        self.lost = whole and said[2] == "lost"
        """Whether Redis has lost rows and does not have them all again."""

    def look(self, wire: Wire) -> None:
        """Note whether Redis has lost rows, after a connect."""
        has = wire.ask("HGET", MARKS_KEY, self._name)
        if isinstance(has, redis.ResponseError):
            raise has
        number = int(has) if isinstance(has, bytes) and has.isdigit() else 0
        self.lost |= number < self._number
        # Ahead of the file where a process was killed in between: that is no loss.
        self._number = max(self._number, number)

    def renew(self, wire: Wire) -> bool:
        """Count a flush; whether the mark was still there."""
        added = wire.ask("HSET", MARKS_KEY, self._name, self._number + 1)
        if isinstance(added, redis.ResponseError):
            raise added
        stands = self._number == 0 or added == 0
        self._number += 1
        self.lost |= not stands
        self._save()
        return stands

    def mended(self) -> None:
        """Note that Redis has all rows again."""
        self.lost = False
        self._save()

    def _save(self) -> None:
        """Write it down, in one piece."""
        text = f"{self._name} {self._number:020d} {'lost' if self.lost else 'kept'}\n"
        try:
            os.pwrite(self._file, text.encode("ascii"), 0)
        except OSError as error:
            raise _refused(self._path, error) from error

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def _check(row: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Check of each row: all its numbers folded together, each turned by its column."""
    out: npt.NDArray[np.uint64] = np.full(len(row), _SEED, np.uint64)
    for column in range(_TIME, row.shape[1]):
        out = (out << np.uint64(7)) | (out >> np.uint64(57))
        out ^= row[:, column].view(np.uint64)
    return out.view(np.int64)


def _name(name: str) -> bytes:
    """A name as it stands in the file."""
    data = name.encode()
    return _LENGTH.pack(len(data)) + data


def _refused(path: Path, error: OSError) -> StateError:
    """What to say of a disk that refuses."""
    return StateError(
        f"store: {path}: cannot be written: {error.strerror}; free space or mend the disk and start"
        ' again, or set store = "off"'
    )


def claim(folder: Path) -> int | None:
    """A handle on the folder's lock, held until it is closed; None where another writer has it.

    Raises
    ------
    StateError : the disk refuses the file
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _refused(folder, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
