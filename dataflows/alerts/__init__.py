"""Where alerts go: each sink a file of this folder, found by its name.

`alerts = ["jsonl", "tsv"]` opens `dataflows.alerts.jsonl.Sink` and `dataflows.alerts.tsv.Sink`;
what a sink promises stands in `dataflows.alerts.base`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dataflows.alerts.base import AlertSink
from features.errors import ConfigError

if TYPE_CHECKING:
    from dataflows.settings import Settings

__all__ = ["open_sinks", "sink_names"]


def sink_names() -> tuple[str, ...]:
    """Names of all sinks, sorted."""
    return tuple(
        sorted(
            m.name
            for m in pkgutil.iter_modules(__path__)
            if m.name != "base" and not m.name.startswith("_")
        )
    )


def open_sinks(names: Sequence[str], settings: Settings) -> list[AlertSink]:
    """The sinks of these names, in this order, opened.

    Raises
    ------
    ConfigError : every fault of every sink at once; those already opened are closed again
    """
    opened: list[AlertSink] = []
    faults: list[str] = []
    valid = sink_names()
    faults += [
        f"alert sink {name!r} is named twice; take one out"
        for name in dict.fromkeys(names)
        if list(names).count(name) > 1
    ]
    for name in dict.fromkeys(names):
        if name not in valid:
            faults.append(f"unknown alert sink {name!r}; there are {', '.join(valid)}")
            continue
        try:
            opened.append(importlib.import_module(f"{__name__}.{name}").Sink(settings))
        except ConfigError as error:
            faults += error.faults
        except BaseException:
            _close(opened)
            raise
    if faults:
        _close(opened)
        raise ConfigError(faults)
    return opened


def _close(sinks: Sequence[AlertSink]) -> None:
    """Close what was opened in vain."""
    for sink in sinks:
        sink.close()
