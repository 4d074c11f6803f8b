"""Genuine traffic: one module per event type, named after it.

Each has `make(world, block) -> Rows` (the block's genuine events in coded form), `keys(world,
rows)` (partition of each row) and `columns(world, rows)` (the declared fields but id and time).
`dress` of the types with people in them turns who and when into a genuine-looking event; attacks
start from it and change what shows, so that a weak attack looks genuine in all that it does not
change.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

from features.events import event_types

__all__ = ["traffic"]


@cache
def traffic() -> dict[str, ModuleType]:
    """Event type -> its traffic module, in the fixed order of event types, where there is one."""
    found: dict[str, ModuleType] = {}
    for name in event_types():
        try:
            found[name] = importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    return found
