"""Where warm state lies, and whether a flow that starts from nothing can start from it.

A flow without a past takes every entity for new and alerts at most of them. `waxwing train` and
`waxwing backfill` leave the state of their history beside the bundle; the flow takes it where it
fits, and says so, or says that it starts cold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dataflows.currencies import base_of
from dataflows.settings import Settings
from dataflows.state.declared import told_apart
from dataflows.state.manifest import Manifest, read_manifest
from features.catalog import Catalog

__all__ = ["COLD", "warm_folder", "warm_start"]

COLD = Path("cold")
"""Value of `warm_state` that asks for a start without any."""


def warm_folder(settings: Settings) -> Path:
    """Where warm state is written and looked for: `warm_state`, else `warm` beside the bundle."""
    if settings.warm_state is None or settings.warm_state == COLD:
        return settings.bundle.parent / "warm"
    return settings.warm_state


def warm_start(
    settings: Settings,
    training: Mapping[str, Any],
    cat: Catalog,
    say: Callable[[str], None],
) -> Path | None:
    """The warm state an empty state_dir starts from, None for a cold start.

    Parameters
    ----------
    training : what the bundle says of its training
    cat : the features
    say : told which it is where the settings leave it open
    """
    if settings.warm_state is not None:
        return None if settings.warm_state == COLD else settings.warm_state
    folder = warm_folder(settings)
    warm = read_manifest(folder)
    why = f"there is no {folder}" if warm is None else _unfit(settings, training, cat, warm)
    if warm is not None and why is None:
        until = datetime.fromtimestamp((warm.until_us or 0) / 1e6, UTC)
        say(
            f"starts from the warm state in {folder}, which holds what was before"
            f" {until:%Y-%m-%dT%H:%M:%SZ} (warm_state = {str(COLD)!r} starts without)"
        )
        return folder
    say(f"starts cold ({why}): expect many alerts until entities are known; see `waxwing backfill`")
    return None


def _unfit(
    settings: Settings, training: Mapping[str, Any], cat: Catalog, warm: Manifest
) -> str | None:
    """Why warm state is not the past of the settings' source; None if it is."""
    folder = warm_folder(settings)
    if warm.catalog_version != cat.version:
        apart = told_apart(folder, warm.catalog_version, cat)
        return f"{folder} was made with other features: {apart}"
    if warm.groups != settings.groups:
        return f"{folder} was made with another number of groups"
    if warm.currency != base_of(settings):
        return f"{folder} is of amounts in another currency"
    world = training.get("world")
    if settings.source == "simulator":
        return _unfit_world(settings, world, warm.until_us)
    if world is not None:
        return f"{folder} is of simulated history"
    if settings.source == "file" and not _rows_left(settings, warm.until_us):
        return f"{folder} holds all that is in the files"
    return None


def _unfit_world(
    settings: Settings, world: Mapping[str, Any] | None, until_us: int | None
) -> str | None:
    """Why warm state does not serve the simulator; None if it does."""
    from dataflows.sources.simulator import time_us_of

    folder = warm_folder(settings)
    if world is None:
        return f"{folder} is of recorded history"
    if any(world[name] != getattr(settings, name) for name in ("sim_population_seed", "sim_cards")):
        return f"{folder} is of another simulated population"
    if bool(world.get("sim_local_money")) != settings.sim_local_money:
        return f"{folder} is of a simulated world with other money"
    if until_us != time_us_of(settings.sim_start):
        return f"{folder} ends at another time than sim_start"
    return None


def _rows_left(settings: Settings, until_us: int | None) -> bool:
    """Whether the files have rows that history has not."""
    from dataflows.sources.files import FileReader

    reader = FileReader(settings, from_us=until_us)
    try:
        return reader.take(1).received > 0
    finally:
        reader.close()
