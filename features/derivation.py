"""Features made of other features of the same row: in which order they can be computed.

One may read another that the catalogue has further down (its entity comes later, or it is declared
below), so whoever computes them goes by this order: the engine, the SQL of `features.oracle`, and
what the store is told of emptied windows. Features that read each other in a circle have none.
"""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter

from features.operations import OPERATIONS
from features.spec import Feature

__all__ = ["circles", "in_order", "operands"]


def operands(feature: Feature) -> tuple[str, ...]:
    """Features of the same event whose values a derived one reads; none of any other."""
    op = OPERATIONS.get(feature.op)
    if op is None or op.family != "derived":
        return ()
    return tuple(str(name) for name in (feature.column, feature.other, feature.count) if name)


def in_order(features: Iterable[Feature]) -> tuple[Feature, ...]:
    """Derived features of one event type, each behind those that it reads.

    Parameters
    ----------
    features : of one event type, in any order; those that are not derived are left out

    Raises
    ------
    graphlib.CycleError : some read each other in a circle; a `Catalog` has none that do

    Examples
    --------
    >>> from features.catalog import catalog
    >>> names = [feature.name for feature in in_order(catalog().features("payment"))]
    >>> names.index("merchant_expected_5m") < names.index("merchant_surprise_5m")
    True
    """
    by_name = _derived(features)
    return tuple(by_name[name] for name in _sorter(by_name).static_order())


def circles(features: Iterable[Feature]) -> list[tuple[Feature, ...]]:
    """Derived features of one event type that read each other in a circle.

    Returns
    -------
    each circle once: every feature is read by the one before it, the first by the last
    """
    left, found = _derived(features), []
    while True:
        try:
            _sorter(left).prepare()
        except CycleError as error:
            # It names the first again at the end, and who is read before who reads.
            names = error.args[1][:0:-1]
            first = min(range(len(names)), key=lambda i: list(left).index(names[i]))
            circle = tuple(left[name] for name in names[first:] + names[:first])
            found.append(circle)
            left = {name: f for name, f in left.items() if f not in circle}
        else:
            return found


def _derived(features: Iterable[Feature]) -> dict[str, Feature]:
    """Those that are derived, by name."""
    return {f.name: f for f in features if operands(f)}


def _sorter(features: dict[str, Feature]) -> TopologicalSorter[str]:
    """Who reads whom, among them."""
    read = {name: [n for n in operands(f) if n in features] for name, f in features.items()}
    return TopologicalSorter(read)
