"""The state that a manifest names, read from disk: engines of groups, doors of lanes.

Every checksum is looked at while it is read, so that a flow of one process reads its state once:
where a file is damaged it is known before anything is written, and an older manifest serves. Groups
are read beside each other; what takes time (reading, checksums, kernels) leaves the interpreter's
lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from dataflows.admission import Admission
from dataflows.arrivals import Arrivals
from dataflows.settings import Settings
from dataflows.state.deltas import Arrays, NewerState, ShardStore
from dataflows.state.logs import LogStore
from dataflows.state.manifest import Manifest
from features.catalog import Catalog
from features.engine import GroupEngine
from features.errors import StateError

__all__ = ["Damaged", "Restored", "check", "restore", "restore_door", "restore_group"]

X = TypeVar("X")
Y = TypeVar("Y")

Restored = dict[tuple[str, int], Any]
"""("g", group) -> `GroupEngine`, ("in", lane) -> `Admission`."""

THREADS = min(4, os.cpu_count() or 1)
"""Shards read at a time; each is in memory twice meanwhile. Chosen: more than a disk serves."""


class Damaged(StateError):
    """A state file is damaged, or missing: an older manifest may serve."""


def restore(
    settings: Settings,
    catalog: Catalog,
    manifest: Manifest,
    groups: Iterable[int],
    emptied_max: int,
) -> Restored:
    """All shards of one process.

    Parameters
    ----------
    groups : shard groups that compute
    emptied_max : as of `GroupEngine`

    Raises
    ------
    Damaged : a checksum is wrong or a file is missing
    StateError : it is the state of a catalogue from which there is no way to this one, or a newer
        version wrote it
    """

    def one(name: tuple[str, int]) -> GroupEngine | Admission:
        kind, number = name
        if kind == "g":
            return restore_group(settings, catalog, manifest, number, emptied_max)
        return restore_door(settings, catalog, manifest, number)

    names = [("in", lane) for lane in range(manifest.lanes)] + [("g", group) for group in groups]
    return dict(zip(names, _each(one, names), strict=True))


def check(settings: Settings, manifest: Manifest) -> None:
    """Read all state and keep nothing: for a cluster's first process, which will have a part.

    Raises
    ------
    Damaged : a checksum is wrong or a file is missing
    """
    _each(lambda group: bool(_group_arrays(settings, manifest, group)), range(manifest.groups))
    _each(lambda lane: bool(_door_arrays(settings, manifest, lane)), range(manifest.lanes))


def restore_door(settings: Settings, catalog: Catalog, manifest: Manifest, lane: int) -> Admission:
    """A lane's filter of repeats and clock; in lane 0 with labels on their way."""
    # Every lane starts from the one door that warm state has, a label is to be heard of once.
    arrivals = Arrivals(catalog, round(settings.label_delay_s * 1e6)) if lane == 0 else None
    door = Admission(settings, by_partition=settings.source == "kafka", arrivals=arrivals)
    for arrays in _door_arrays(settings, manifest, lane):
        door.load(arrays)
    return door


def restore_group(
    settings: Settings, catalog: Catalog, manifest: Manifest, group: int, emptied_max: int
) -> GroupEngine:
    """A group's engine."""
    base, deltas = _group_arrays(settings, manifest, group)
    bounds = settings.exact_events_max, settings.distinct_exact_max
    how = (settings.late_s, settings.entity_ttl_h, emptied_max, *bounds, settings.groups)
    if base is None:
        return GroupEngine(catalog, group, *how)
    return GroupEngine.restore(catalog, group, base, deltas, *how)


def _group_arrays(
    settings: Settings, manifest: Manifest, group: int
) -> tuple[Arrays | None, list[Arrays]]:
    """Base and deltas of a group."""
    folder = settings.state_dir / "deltas" / f"g{group:03d}"
    try:
        base, deltas, _ = ShardStore(folder, settings.deltas_max).load(manifest.round)
    except NewerState:
        raise
    except StateError as error:
        raise Damaged(str(error)) from None
    return base, deltas


def _door_arrays(settings: Settings, manifest: Manifest, lane: int) -> list[Arrays]:
    """What the filter of a lane is made of."""
    try:
        return LogStore(settings.state_dir / "deltas" / f"in{lane:02d}").load(manifest.round)
    except NewerState:
        raise
    except StateError as error:
        raise Damaged(str(error)) from None


def _each(work: Callable[[X], Y], items: Iterable[X]) -> list[Y]:
    """The work on each item, some at a time, in their order; the first fault ends it."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="waxwing-restore") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)
