"""Numbered rows that come at one end and go at the other."""

from __future__ import annotations

import numpy as np

from features.shelf import GROWTH, Shelf


def test_rows_stay_what_they_are_while_others_come_and_go(rng: np.random.Generator) -> None:
    shelf = Shelf({"ints": (2, np.int64), "reals": (1, np.float64)})
    sizes = set()
    for _ in range(400):
        many = int(rng.integers(1, 60))
        shelf.reserve(many)
        first = shelf.put(many)
        at = shelf.at(np.arange(first, first + many))
        shelf.arrays["ints"][at, 0] = shelf.arrays["reals"][at, 0] = np.arange(first, first + many)
        shelf.drop(int(rng.integers(shelf.first, shelf.top + 1)))
        sizes.add(shelf.capacity)
        there = np.arange(shelf.first, shelf.top)
        found = shelf.take(there)
        np.testing.assert_array_equal(found["ints"][:, 0], there)
        np.testing.assert_array_equal(found["reals"][:, 0], there)
    assert len(sizes) > 3, "it has grown"


def test_a_full_shelf_grows_by_little() -> None:
    shelf = Shelf({"ints": (1, np.int64)})
    most = 0
    for _ in range(20_000):
        shelf.reserve(1)
        shelf.put(1)
        most = max(most, shelf.capacity - (shelf.top - shelf.first))
    assert most <= (GROWTH - 1.0) * 20_000
