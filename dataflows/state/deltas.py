"""State of a group on disk: a base and the deltas since, each a checksummed file of plain arrays.

A file is `magic, length and crc32 of the header, header (JSON: name, dtype, shape, crc32), the
arrays`. It is written beside its place, flushed, renamed: a reader meets a whole file or none.
Which files count is said by the manifest alone; files newer than it are left-overs of a crash and
are removed. Each file names the one before it, so that a hole in the chain is found.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataflows.state.journal import fsync_folder
from features.errors import StateError

__all__ = ["Arrays", "NewerState", "ShardStore", "read_arrays", "within", "write_arrays"]

Arrays = dict[str, npt.NDArray[Any]]

_MAGIC = b"WXA1"
_LATER = re.compile(rb"WXA[2-9]")
"""How files of later versions begin."""

_HEAD = struct.Struct("<II")
_AFTER = "_after"
"""Key of the meta that names the round of the file before."""


class NewerState(StateError):
    """A file that a newer version wrote: not damaged, and no reason to go back to an older one."""


def write_arrays(path: Path, arrays: Arrays, meta: dict[str, Any]) -> int:
    """Write arrays and a JSON-able `meta` to one file, atomically and durably.

    Returns
    -------
    bytes written

    Raises
    ------
    StateError : the disk refused it; no half file is left under the name
    """
    blobs = [np.ascontiguousarray(a) for a in arrays.values()]
    header = json.dumps(
        {
            "meta": meta,
            "arrays": [
                [name, a.dtype.str, a.shape, zlib.crc32(a.data.cast("B") if a.size else b"")]
                for name, a in zip(arrays, blobs, strict=True)
            ],
        }
    ).encode()
    temporary = path.with_suffix(path.suffix + ".tmp")
    size = 0
    try:
        with temporary.open("wb") as file:
            size += file.write(_MAGIC + _HEAD.pack(len(header), zlib.crc32(header)) + header)
            for a in blobs:
                size += file.write(a.data.cast("B") if a.size else b"")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StateError(
            f"state file {path} could not be written: {error.strerror}; free space or mend the disk"
            " and start again, the journal fills the rest"
        ) from error
    return size


def read_arrays(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and `meta` of a file.

    Raises
    ------
    StateError : missing, truncated, or any checksum wrong
    NewerState : a newer version wrote it
    """
    fault = StateError(
        f"state file {path} is damaged (checksum); restore it from a copy, or start from an empty"
        " state_dir"
    )
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise StateError(f"state file {path} is missing; start from an empty state_dir") from None
    with file:
        begin = file.read(len(_MAGIC) + _HEAD.size)
        if _LATER.match(begin):
            raise NewerState(
                f"state file {path} is of another format ({begin[: len(_MAGIC)].decode()}, this"
                f" version reads {_MAGIC.decode()}): one of a newer version; run the version that"
                " wrote it, or start with an empty state_dir"
            )
        if not begin.startswith(_MAGIC) or len(begin) < len(_MAGIC) + _HEAD.size:
            raise fault
        length, crc = _HEAD.unpack_from(begin, len(_MAGIC))
        header = file.read(length)
        if len(header) != length or zlib.crc32(header) != crc:
            raise fault
        head = json.loads(header)
        arrays: Arrays = {}
        for name, dtype, shape, array_crc in head["arrays"]:
            # Read to where it stays: a copy would be made of gigabytes, as aligned as this is.
            array = np.empty(shape, np.dtype(dtype))
            data = array.data.cast("B") if array.size else memoryview(bytearray())
            if file.readinto(data) != len(data) or zlib.crc32(data) != array_crc:
                raise fault
            arrays[name] = array
    return arrays, head["meta"]


class ShardStore:
    """Base and deltas of one shard, a group of entities.

    Parameters
    ----------
    folder : the shard's own folder
    deltas_max : deltas after which the next snapshot is a base
    """

    def __init__(self, folder: Path, deltas_max: int) -> None:
        self.folder = folder
        self.deltas_max = deltas_max
        folder.mkdir(parents=True, exist_ok=True)

    def _files(self) -> list[tuple[int, str, Path]]:
        """(round, kind, path) of each file, oldest first."""
        found = [
            (int(p.stem), p.suffix[1:], p)
            for p in self.folder.iterdir()
            if p.suffix in (".base", ".delta") and p.stem.isdecimal()
        ]
        return sorted(found)

    def wants_base(self, durable: int) -> bool:
        """Whether the next snapshot should be whole.

        Parameters
        ----------
        durable : round of the manifest; while it has not come as far as the newest base, another
            base would free nothing, and a store that is down for hours would fill the disk
        """
        files = self._files()
        bases = [r for r, kind, _ in files if kind == "base"]
        if not bases:
            return True
        since = sum(r > bases[-1] for r, kind, _ in files if kind == "delta")
        return since >= self.deltas_max and bases[-1] <= durable

    def write(self, round_: int, kind: str, arrays: Arrays, meta: dict[str, Any]) -> int:
        """Write a `base` or `delta` of the state after `round_`; returns bytes written."""
        before = max((r for r, _, _ in self._files() if r < round_), default=-1)
        path = self.folder / f"{round_:012d}.{kind}"
        return write_arrays(path, arrays, {**meta, _AFTER: before})

    def load(self, round_: int) -> tuple[Arrays | None, list[Arrays], list[dict[str, Any]]]:
        """The newest base up to `round_`, the deltas after it up to `round_`, and the meta of each.

        Raises
        ------
        StateError : a file is damaged, or one that the state of `round_` is made of is missing
        """
        files = [f for f in self._files() if f[0] <= round_]
        bases = [f for f in files if f[1] == "base"]
        if not bases:
            if files or round_ > 0:
                raise StateError(
                    f"state {self.folder}: round {round_} is said to be durable, but there is no"
                    " base up to it; restore the folder from a copy, or start from an empty"
                    " state_dir"
                )
            return None, [], []
        newest, _, base_path = bases[-1]
        base, meta = read_arrays(base_path)
        deltas, metas = [], [meta]
        for r, kind, path in files:
            if kind == "delta" and r > bases[-1][0]:
                arrays, meta = read_arrays(path)
                if meta.get(_AFTER) != newest:
                    raise StateError(
                        f"state {self.folder}: {path.name} follows round {meta.get(_AFTER)}, but"
                        f" the file before it is of round {newest}; restore the missing one from a"
                        " copy, or start from an empty state_dir"
                    )
                deltas.append(arrays)
                metas.append(meta)
                newest = r
        if newest != round_ and not metas[-1].get("last"):
            raise StateError(
                f"state {self.folder}: round {round_} is said to be durable, but the newest state"
                f" is of round {newest}; restore the folder from a copy, or start from an empty"
                " state_dir"
            )
        return base, deltas, metas

    def forget_after(self, round_: int) -> None:
        """Remove what a crash left behind: files newer than the manifest, and half-written ones."""
        for path in self.folder.glob("*.tmp"):
            path.unlink()
        # Newest first: wherever this is cut short, what is left has no hole.
        for r, _, path in reversed(self._files()):
            if r > round_:
                path.unlink()
        fsync_folder(self.folder)

    def forget_before(self, round_: int, held: Sequence[int] = ()) -> None:
        """Remove what the newest base up to `round_` has made useless.

        Parameters
        ----------
        round_ : no restart begins before it (`dataflows.state.manifest.oldest_round`)
        held : rounds from which a replay may begin (`dataflows.state.bases.held_rounds`)
        """
        files = self._files()
        bases = [r for r, kind, _ in files if kind == "base"]
        begins = [r for r in bases if r <= round_]
        # What a held round is made of: its newest base, and what came from there up to it.
        spans = [(max((r for r in bases if r <= h), default=h), h) for h in held]
        keeps = within([r for r, _, _ in files], spans)
        for r, _, path in files if begins else ():
            if r < begins[-1] and r not in keeps:
                path.unlink()


def within(rounds: Sequence[int], spans: Iterable[tuple[int, int]]) -> set[int]:
    """Those of the rounds, which stand in order, that lie in any of the spans, ends included.

    >>> sorted(within([1, 4, 6, 9], [(2, 6)]))
    [4, 6]
    """
    found: set[int] = set()
    for first, last in spans:
        found.update(rounds[bisect_left(rounds, first) : bisect_right(rounds, last)])
    return found
