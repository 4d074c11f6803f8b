"""The manifest: the one small file that says up to which round everything is durable.

It is written last: all shards have their deltas on disk, all alerts and dead letters of the round
are acknowledged, all rows are in the store, or on disk to be put there. A restart begins at its
round + 1, from the journal.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dataflows.state.journal import fsync_folder, unreadable
from dataflows.state.lease import locked, read_lease, superseded
from features.errors import StateError

__all__ = [
    "Manifest",
    "fallback",
    "go_back",
    "oldest_round",
    "owned",
    "read_manifest",
    "whole_manifests",
    "write_manifest",
]

FORMAT = 1
"""Layout of the file; one with another number is refused."""

_NAMES = ("manifest.json", "manifest.previous.json")
"""The manifest in force, and the one before, which is used where the first is damaged."""

_ALWAYS = ("round", "groups", "lanes", "catalog_version")
"""What every version has written; what came later has a default."""

_HELD = "manifest.held-*.json"
HELD = 2
"""Older manifests kept, a base of state apart: where a base is damaged, the flow goes on from the
one before it. Two are enough, since the older of them is always older than the newest base."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is durable, and for whom.

    Parameters
    ----------
    round : last round of which everything is durable; 0 before the first
    groups, lanes : the fixed numbers the state was cut by
    catalog_version : hash of the feature catalogue the state belongs to
    totals : received, scored, dead_lettered, duplicates, alerts, muted since the beginning
    control : control records in force, in the order they came
    logs : bytes of each append-only log (alerts, dead letters) that belong to `round` and before
    until_us : event time up to which a backfill has gone; None for a live run
    currency : the currency of all amounts in the state; empty where they are as they were paid
    token : of the lease its writer held; 0 where nobody else can write there
    recalibration : anomaly type -> what its rule knows of the traffic it follows
    rollback : what the flow's own rollbacks know of the live bundle and the one before it
    """

    round: int
    groups: int
    lanes: int
    catalog_version: str
    totals: dict[str, int] = field(default_factory=dict)
    control: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, int] = field(default_factory=dict)
    until_us: int | None = None
    format: int = FORMAT
    currency: str = ""
    token: int = 0
    recalibration: dict[str, Any] = field(default_factory=dict)
    rollback: dict[str, Any] = field(default_factory=dict)


def write_manifest(folder: Path, manifest: Manifest, hold_rounds: int = 0) -> None:
    """Replace the manifest, atomically and durably; the one before stays beside it.

    Parameters
    ----------
    hold_rounds : keep this one for longer where the last so kept is so many rounds old; 0 keeps
        none

    Raises
    ------
    StateError : the disk refused it, or the one there was written under a newer lease, or may not
        be read; the manifest there was is still in force
    """
    with owned(folder, manifest.token), _writing(folder) as temporary:
        current = folder / _NAMES[0]
        whole = _parse(current) is not None
        _write(temporary, manifest)
        if whole:
            # A second name for the same file, put in place in one step: at no moment is there no
            # whole manifest, and a damaged one never takes the place of a whole one.
            _link(current, folder / _NAMES[1])
        temporary.replace(current)
        if hold_rounds:
            held = _held(folder)
            if not held or manifest.round - held[-1][0] >= hold_rounds:
                _link(current, folder / _HELD.replace("*", f"{manifest.round:012d}"))
                for _, path in held[: 1 - HELD]:
                    path.unlink()
        fsync_folder(folder)


@contextlib.contextmanager
def owned(folder: Path, token: int) -> Iterator[None]:
    """Nobody else writes the lease of a state folder, or a manifest, while it lasts.

    Parameters
    ----------
    token : of the lease of whoever asks; with 0 nothing is asked and nothing locked

    Raises
    ------
    StateError : another has taken over: the lease, or the manifest in force, has a newer token
    """
    with contextlib.ExitStack() as stack:
        if token:
            try:
                stack.enter_context(locked(folder))
            except OSError as error:
                raise _refused(folder, error) from error
            was, lease = _parse(folder / _NAMES[0]), read_lease(folder)
            if max(was.token if was else 0, lease.token if lease else 0) > token:
                raise superseded(folder, token)
        yield


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """Where a manifest lies until it is whole; what the disk refuses is told and leaves nothing."""
    temporary = folder / "manifest.json.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _refused(folder, error) from error


def _refused(folder: Path, error: OSError) -> StateError:
    """The fault of a disk that does not take a manifest."""
    return StateError(
        f"manifest in {folder} could not be written: {error.strerror}; free space or mend the"
        " disk and start again"
    )


def _write(path: Path, manifest: Manifest) -> None:
    """Write a manifest with its checksum and see it to the disk."""
    body = json.dumps(asdict(manifest), indent=1, sort_keys=True)
    with path.open("w", encoding="utf-8") as file:
        file.write(f"{body}\ncrc32 {zlib.crc32(body.encode()):08x}\n")
        file.flush()
        os.fsync(file.fileno())


def _link(path: Path, name: Path) -> None:
    """Give a file another name, which takes the place of what had it."""
    second = name.with_suffix(".tmp")
    second.unlink(missing_ok=True)
    os.link(path, second)
    second.replace(name)


def _held(folder: Path) -> list[tuple[int, Path]]:
    """(round, path) of the manifests kept for longer, oldest first."""
    return sorted((int(path.stem.rpartition("-")[2]), path) for path in folder.glob(_HELD))


def _paths(folder: Path) -> list[Path]:
    """All manifests there are, the one in force first, then newest first."""
    return [*(folder / name for name in _NAMES), *(path for _, path in reversed(_held(folder)))]


def go_back(folder: Path, manifest: Manifest) -> None:
    """Put an older manifest in force: the state of newer ones cannot be used.

    Raises
    ------
    StateError : as `write_manifest`
    """
    with owned(folder, manifest.token), _writing(folder) as temporary:
        _write(temporary, manifest)
        temporary.replace(folder / _NAMES[0])
        for path in _paths(folder)[1:]:
            found = _parse(path)
            if found is not None and found.round > manifest.round:
                path.unlink()
        fsync_folder(folder)


def _parse(path: Path) -> Manifest | None:
    """The manifest in a file, or None where it is missing or its checksum is wrong.

    It may go at any moment: shards look for the oldest one while the flow's end takes one away.

    Raises
    ------
    StateError : it may not be read, or another version wrote it
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    body, _, tail = text.rpartition("\ncrc32 ")
    if not body or tail.strip() != f"{zlib.crc32(body.encode()):08x}":
        return None
    cure = "; run the version that wrote it, or start with an empty state_dir"
    data = json.loads(body)
    if not isinstance(data, dict):
        raise StateError(f"{path}: expected an object, got {type(data).__name__}{cure}")
    if data.get("format") != FORMAT:
        raise StateError(f"{path}: format {data.get('format')}, this version reads {FORMAT}{cure}")
    known = {field.name for field in fields(Manifest)}
    if unknown := sorted(data.keys() - known):
        raise StateError(
            f"{path}: holds {', '.join(map(repr, unknown))}, which this version does not know{cure}"
        )
    if lost := [name for name in _ALWAYS if name not in data]:
        raise StateError(f"{path}: holds no {', '.join(map(repr, lost))}{cure}")
    return Manifest(**data)


def whole_manifests(folder: Path) -> list[Manifest]:
    """The manifests of a state folder that are whole, the one in force first, of each round one."""
    found: dict[int, Manifest] = {}
    for path in _paths(folder):
        manifest = _parse(path)
        if manifest is not None:
            found.setdefault(manifest.round, manifest)
    return list(found.values())


def read_manifest(folder: Path) -> Manifest | None:
    """The newest whole manifest of a state folder, None where there never was one.

    Raises
    ------
    StateError : there are manifests, but none is whole, or one may not be read
    """
    for path in _paths(folder):
        found = _parse(path)
        if found is not None:
            return found
    damaged = [str(path) for path in _paths(folder) if path.exists()]
    if damaged:
        raise StateError(
            f"{' and '.join(damaged)}: damaged, and there is no other manifest; restore one from a"
            " copy, or start with an empty state_dir"
        )
    return None


def fallback(folder: Path) -> str | None:
    """What there is to say where the manifest in force is lost and an older one serves."""
    current = folder / _NAMES[0]
    if _parse(current) is not None:
        return None
    for path in _paths(folder)[1:]:
        found = _parse(path)
        if found is not None:
            what = "damaged" if current.exists() else "gone"
            return (
                f"{current} is {what}; going on from {path.name}, which knows of round"
                f" {found.round}: later rounds are cut again from the journal"
            )
    return None


def oldest_round(folder: Path) -> int:
    """The round before which no restart begins: that of the oldest of the manifests kept.

    What is needed to go on from there (deltas, journal) must stay; 0 before the first manifest.
    """
    return min((manifest.round for manifest in whole_manifests(folder)), default=0)
