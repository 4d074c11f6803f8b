"""State that only grows at one end and is forgotten at the other: what a filter has seen, on disk.

A file a snapshot, each checksummed (`dataflows.state.deltas`). Unlike a base, nothing old is ever
written again: at 50,000 events/s an hour's ids are 1.4 GB. Each file names the one before it and
the oldest that is still needed, so that a hole is found.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataflows.state.deltas import Arrays, read_arrays, within, write_arrays
from dataflows.state.journal import fsync_folder
from features.errors import StateError

__all__ = ["LogStore"]

_SUFFIX = ".log"
_AFTER, _NEEDS, _TIME, _LAST = "_after", "_needs", "_us", "last"
"""Keys of a file's meta: the round of the file before, that of the oldest one needed, the newest
cut time of what it holds, and whether it is the run's last."""


class LogStore:
    """Files of one append-only shard.

    Parameters
    ----------
    folder : the shard's own folder
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metas: dict[int, dict[str, Any]] = {}
        self._spans: dict[int, tuple[int, int]] = {}

    def _files(self) -> list[tuple[int, Path]]:
        """(round, path) of each file, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [(int(p.stem), p) for p in self.folder.iterdir() if p.suffix == _SUFFIX]
        return sorted(found)

    def write(self, round_: int, arrays: Arrays, us: int, since_us: int, last: bool = False) -> int:
        """Write what came since the file before; returns bytes written.

        Parameters
        ----------
        us : newest cut time of what the file holds, microseconds
        since_us : what files before this cut time hold is needed no more
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        before = [r for r, _ in self._files() if r < round_]
        needed = round_
        for r in reversed(before):  # from the newest: files that are only held are not looked at
            if self._meta(r)[_TIME] < since_us:
                break
            needed = r
        meta = {
            _AFTER: before[-1] if before else -1,
            _NEEDS: needed,
            _TIME: us,
            _LAST: last,
        }
        self._metas[round_] = meta
        return write_arrays(self._path(round_), arrays, meta)

    def _path(self, round_: int) -> Path:
        return self.folder / f"{round_:012d}{_SUFFIX}"

    def _meta(self, round_: int) -> dict[str, Any]:
        """Meta of the file of a round, read once."""
        if round_ not in self._metas:
            self._metas[round_] = read_arrays(self._path(round_))[1]
        return self._metas[round_]

    def _span(self, held: int, rounds: Sequence[int]) -> tuple[int, int]:
        """First and last round of the files that a held round is made of."""
        if held not in self._spans:
            at = bisect_right(rounds, held) - 1
            first = held if at < 0 else int(self._meta(rounds[at])[_NEEDS])
            self._spans[held] = first, held
        return self._spans[held]

    def load(self, round_: int) -> list[Arrays]:
        """What files up to `round_` hold that is still needed, oldest first.

        Raises
        ------
        StateError : a file is damaged, or one that is needed is missing
        """
        files = [f for f in self._files() if f[0] <= round_]
        if not files:
            if round_ > 0:
                raise StateError(
                    f"state {self.folder}: round {round_} is said to be durable, but there is"
                    " nothing up to it; restore the folder from a copy, or start from an empty"
                    " state_dir"
                )
            return []
        newest, path = files[-1]
        arrays, meta = read_arrays(path)
        if newest != round_ and not meta[_LAST]:
            raise StateError(
                f"state {self.folder}: round {round_} is said to be durable, but the newest file is"
                f" of round {newest}; restore the folder from a copy, or start from an empty"
                " state_dir"
            )
        self._metas[newest] = meta
        found, at, needs = [arrays], newest, int(meta[_NEEDS])
        while at > needs:
            at = int(meta[_AFTER])
            arrays, meta = read_arrays(self._path(at))
            self._metas[at] = meta
            found.append(arrays)
        return found[::-1]

    def forget_after(self, round_: int) -> None:
        """Remove what a crash left behind: files newer than the manifest, and half-written ones."""
        if not self.folder.is_dir():
            return
        for path in self.folder.glob("*.tmp"):
            path.unlink()
        for r, path in reversed(self._files()):
            if r > round_:
                path.unlink()
                self._metas.pop(r, None)
        fsync_folder(self.folder)

    def forget_before(self, round_: int, held: Sequence[int] = ()) -> None:
        """Remove what no restart from `round_` on can need, and no replay from a `held` one."""
        files = self._files()
        upto = [r for r, _ in files if r <= round_]
        if not upto:
            return
        needs = int(self._meta(upto[-1])[_NEEDS])
        keeps = within(upto, [self._span(h, upto) for h in held])
        for r, path in files:
            if r < needs and r not in keeps:
                path.unlink()
                self._metas.pop(r, None)
