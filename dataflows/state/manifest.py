"""The manifest: the one small file that says up to which round everything is durable.

It is written last: all shards have their deltas on disk, all alerts and dead letters of the round
are acknowledged, all rows are in the store. A restart begins at its round + 1, from the journal.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dataflows.state.journal import fsync_folder
from features.errors import StateError

__all__ = ["Manifest", "fallback", "oldest_round", "read_manifest", "write_manifest"]

FORMAT = 1
"""Layout of the file; one with another number is refused."""

_NAMES = ("manifest.json", "manifest.previous.json")
"""The manifest in force, and the one before, which is used where the first is damaged."""


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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest, atomically and durably; the one before stays beside it.

    Raises
    ------
    StateError : the disk refused it; the manifest there was is still in force
    """
    body = json.dumps(asdict(manifest), indent=1, sort_keys=True)
    text = f"{body}\ncrc32 {zlib.crc32(body.encode()):08x}\n"
    temporary, current = folder / "manifest.json.tmp", folder / _NAMES[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if _parse(current) is not None:
            # A second name for the same file, put in place in one step: at no moment is there no
            # whole manifest, and a damaged one never takes the place of a whole one.
            second = folder / "manifest.previous.tmp"
            second.unlink(missing_ok=True)
            os.link(current, second)
            second.replace(folder / _NAMES[1])
        temporary.replace(current)
        fsync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StateError(
            f"manifest in {folder} could not be written: {error.strerror}; free space or mend the"
            " disk and start again"
        ) from error


def _parse(path: Path) -> Manifest | None:
    """The manifest in a file, or None where it is missing or its checksum is wrong."""
    if not path.exists():
        return None
    body, _, tail = path.read_text(encoding="utf-8", errors="replace").rpartition("\ncrc32 ")
    if not body or tail.strip() != f"{zlib.crc32(body.encode()):08x}":
        return None
    data = json.loads(body)
    if data.get("format") != FORMAT:
        raise StateError(
            f"{path}: format {data.get('format')}, this version reads {FORMAT}; run the version"
            " that wrote it, or start with an empty state_dir"
        )
    return Manifest(**data)


def read_manifest(folder: Path) -> Manifest | None:
    """The newest whole manifest of a state folder, None where there never was one.

    Raises
    ------
    StateError : there are manifests, but none is whole
    """
    for name in _NAMES:
        found = _parse(folder / name)
        if found is not None:
            return found
    damaged = [str(folder / name) for name in _NAMES if (folder / name).exists()]
    if damaged:
        raise StateError(
            f"{' and '.join(damaged)}: damaged, and there is no other manifest; restore one from a"
            " copy, or start with an empty state_dir"
        )
    return None


def fallback(folder: Path) -> str | None:
    """What there is to say where the manifest in force is lost and the one before serves."""
    current, previous = folder / _NAMES[0], folder / _NAMES[1]
    if _parse(current) is not None or (found := _parse(previous)) is None:
        return None
    what = "damaged" if current.exists() else "gone"
    return (
        f"{current} is {what}; going on from {previous.name}, which knows of round {found.round}:"
        " later rounds are cut again from the journal"
    )


def oldest_round(folder: Path) -> int:
    """The round before which no restart begins: that of the older of the manifests kept.

    What is needed to go on from there (deltas, journal) must stay; 0 before the first manifest.
    """
    found = [_parse(folder / name) for name in _NAMES]
    return min((manifest.round for manifest in found if manifest is not None), default=0)
