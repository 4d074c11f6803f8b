"""The unit that a test's feature must say: of its operation, or of the column it is made of."""

from __future__ import annotations

from features.columns import unit_of
from features.units import UNITS

__all__ = ["fitting"]


def fitting(op: str, event: str = "payment", column: str | None = None) -> str:
    """Unit that fits an operation over a column of an event type."""
    rule = UNITS.get(op, "1")
    return unit_of(event, str(column)) if rule == "column" else rule
