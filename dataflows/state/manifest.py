"""The manifest: the one small file that says up to which round everything is durable.

It is written last: all shards have their deltas on disk, all alerts and dead letters of the round are
acknowledged, all rows are in the store. A restart begins at its round + 1, from the journal.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dataflows.state.journal import fsync_folder
from features.errors import StateError

__all__ = ["Manifest", "read_manifest", "write_manifest"]

FORMAT = 1


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
    """Replace the manifest, atomically and durably."""
    body = json.dumps(asdict(manifest), indent=1, sort_keys=True)
    text = f"{body}\ncrc32 {zlib.crc32(body.encode()):08x}\n"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "manifest.json.tmp"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        current = folder / "manifest.json"
        if current.exists():
            # The one before stays beside it: a reader falls back to it where the newest is damaged.
            os.replace(current, folder / "manifest.previous.json")
        os.replace(temporary, current)
        fsync_folder(folder)
    except OSError as error:
        raise StateError(
            f"manifest in {folder} could not be written: {error.strerror}; free space or mend the disk"
            " and start again"
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
            f"{path}: format {data.get('format')}, this version reads {FORMAT}; run the version that"
            " wrote it, or start with an empty state_dir"
        )
    return Manifest(**data)


def read_manifest(folder: Path) -> Manifest | None:
    """The newest whole manifest of a state folder, None where there never was one.

    Raises
    ------
    StateError : there are manifests, but none is whole
    """
    for name in ("manifest.json", "manifest.previous.json"):
        found = _parse(folder / name)
        if found is not None:
            return found
    if (folder / "manifest.json").exists():
        raise StateError(
            f"{folder / 'manifest.json'} is damaged and there is no earlier one; start with an empty"
            " state_dir, the journal replays everything"
        )
    return None
