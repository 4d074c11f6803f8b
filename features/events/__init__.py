"""The event types: every module beside this one that declares an `EVENT`, in a fixed order.

The order is part of the global order of events (ties in time are broken by it) and of state, so the
shipped types come first, in the order below, then others by name, then those of the user's own
files (setting `event_paths`) by name: a user's type never changes the code of one that was there.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from features.errors import ConfigError
from features.events.base import EventType, Field
from features.registry import own

__all__ = [
    "EventType",
    "Field",
    "built_in_types",
    "event_code",
    "event_type",
    "event_types",
    "made_types",
]

_FIRST = ("payment", "login", "metric", "app_log")

_MADE = ("absence",)
"""Events that waxwing makes itself: no source gives them, so they have no schema and no decoder."""

_NO_EVENTS = ("avro", "base", *_MADE)
"""Modules beside this one that declare no event of a source."""


@cache
def built_in_types() -> dict[str, EventType]:
    """The event types of this package by name, in their fixed order."""
    names = [m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NO_EVENTS]
    ordered = [n for n in _FIRST if n in names] + sorted(set(names) - set(_FIRST))
    return {n: importlib.import_module(f"{__name__}.{n}").EVENT for n in ordered}


@cache
def event_types() -> dict[str, EventType]:
    """The event types that sources give, in their fixed order: of this package, then the user's."""
    mine = sorted(own().events, key=lambda event: event.name)
    return built_in_types() | {event.name: event for event in mine}


@cache
def made_types() -> dict[str, EventType]:
    """The event types that waxwing makes itself, by name: scored like the others, never read."""
    return {n: importlib.import_module(f"{__name__}.{n}").EVENT for n in _MADE}


def event_type(name: str) -> EventType:
    """The event type called `name`; ConfigError with the valid names where there is none."""
    try:
        return event_types().get(name) or made_types()[name]
    except KeyError:
        raise ConfigError(
            f"unknown event type {name!r}; event types are {', '.join(event_types())}"
        ) from None


@cache
def event_code(name: str) -> int:
    """Position of the event type in the fixed order: breaks ties in time, stands in kernels.

    Those that waxwing makes itself stand behind all others; no kernel ever sees one.
    """
    return [*event_types(), *made_types()].index(event_type(name).name)
