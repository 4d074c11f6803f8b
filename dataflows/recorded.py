"""The settings that a flow left beside its state, as this version reads them.

State outlives the version that wrote it. What a setting was called then is known by its name of
now; one that this version does not have is left out, and that is said. It is for whoever computes
again what was live: certificates, replays, explanations, comparisons.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dataflows.alerts.base import printable_lines
from dataflows.settings import REMOVED, RENAMED, Settings, load

__all__ = ["as_named_now", "load_recorded"]


def load_recorded(
    recorded: Mapping[str, Any],
    state_dir: Path,
    config: str | None,
    given: Mapping[str, Any],
    say: Callable[[str], None] | None = None,
) -> Settings:
    """The settings a flow ran with.

    Parameters
    ----------
    recorded : as it left them, see `dataflows.settings.recorded`
    state_dir : of the flow, which may have moved
    config : settings file, for what is not recorded: secrets and broker options
    given : settings of the command line, which win over all
    say : told what was left out; on standard error where it is None

    Raises
    ------
    ConfigError : they do not hold any more, all faults at once
    """
    known, unknown = as_named_now(recorded)
    if unknown:
        (_to_stderr if say is None else say)(
            f"the flow on {state_dir} ran with settings that this version does not have:"
            f" {', '.join(unknown)}; they are left out"
        )
    values = known | dict(given) | {"state_dir": state_dir}
    unset = {name: None for name, value in values.items() if value is None}
    return load(config, **values).model_copy(update=unset)


def as_named_now(recorded: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Recorded settings by their names of now, and the names of those that are none any more.

    Examples
    --------
    >>> as_named_now({"rows_sample": 0.5, "rollback_missed_percent": 5.0, "lanes": 2, "sparkle": 1})
    ({'rows_share': 0.5, 'rollback_missed_share': 0.05, 'lanes': 2}, ['sparkle'])
    >>> as_named_now({"scores_log": None})
    ({}, [])
    """
    known: dict[str, Any] = {}
    unknown = []
    for name, value in recorded.items():
        if name in Settings.model_fields:
            known[name] = value
        elif name in RENAMED:
            now, times = RENAMED[name]
            known[now] = value if times == 1.0 or value is None else value * times
        elif name not in REMOVED or value is not None:
            unknown.append(name)
    return known, unknown


def _to_stderr(text: str) -> None:
    """A sentence for the person who runs it."""
    print(f"waxwing: {printable_lines(text)}", file=sys.stderr, flush=True)
