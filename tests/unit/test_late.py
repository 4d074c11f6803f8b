"""Rows that come late are put in their place, and the rows after them are corrected."""

from __future__ import annotations

import numpy as np
import pytest

from features.catalog import Catalog, catalog
from features.engine import Correction, GroupEngine, amend, assemble, split
from features.events import event_type
from tests.streams import START_US, cut, stream


@pytest.fixture(scope="module")
def cat() -> Catalog:
    return catalog()


def test_amended_rows_have_the_corrected_views_and_what_is_derived_of_them(
    cat: Catalog, seed: int
) -> None:
    before, batches = cut(stream(seed, 100), [START_US + 3_600_000_000])
    fresh, known = GroupEngine(cat, 0), GroupEngine(cat, 0)
    known.process(split(cat, before, 1)[0])
    rows = split(cat, batches, 1)[0]
    given, right = fresh.process(rows)[0], known.process(rows)[0]
    corrections = [
        Correction(
            event,
            entity,
            np.full(len(at), 7),
            at,
            values,
            right.sequences[event][1] if entity == event_type(event).primary else None,
        )
        for (event, entity), (at, values) in right.parts.items()
    ]
    expected = assemble(cat, batches, [right])
    for name, matrix in assemble(cat, batches, [given]).items():
        assert not np.array_equal(matrix.values, expected[name].values, equal_nan=True)
        same = amend(cat, matrix, 8, corrections)
        np.testing.assert_array_equal(same.values, matrix.values)
        found = amend(cat, matrix, 7, corrections)
        np.testing.assert_array_equal(found.values, expected[name].values)
        np.testing.assert_array_equal(found.sequence, expected[name].sequence)
