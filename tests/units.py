"""The unit that a test's feature must say, and features that are made of operations alone."""

from __future__ import annotations

from collections.abc import Iterable

from features.catalog import Catalog
from features.columns import unit_of
from features.spec import Feature
from features.units import UNITS

__all__ = ["fitting", "series_catalog"]


def fitting(op: str, event: str = "payment", column: str | None = None) -> str:
    """Unit that fits an operation over a column of an event type."""
    rule = UNITS.get(op, "1")
    return unit_of(event, str(column)) if rule == "column" else rule


def series_catalog(ops: Iterable[str]) -> Catalog:
    """Baseline operations on the value of a series, each named as it is."""
    return Catalog(
        Feature(
            op,
            "metric",
            "series",
            op,
            "{value}",
            fitting(op, "metric", "value"),
            "baseline",
            column="value",
        )
        for op in ops
    )
