"""Cells of a row together: the truncated product against a slow twin, in any pieces."""

from __future__ import annotations

import numpy as np

from dataflows.together import SHARE, Together
from models.calibration import SURPRISE_MAX, surprises_of


def slow(cells: list[float]) -> float:
    """The surprise of one row's cells."""
    known = [p for p in cells if p == p]
    far = [p for p in known if p <= SHARE]
    if not known:
        return float("nan")
    return float(-np.log10(np.prod(far))) if far else float(-np.log10(min(known)))


def test_rows_are_the_truncated_product_of_their_cells_however_they_come(
    rng: np.random.Generator,
) -> None:
    n, cells = 200, 6
    tail = rng.random((n, cells)) ** 3
    tail[rng.random((n, cells)) < 0.2] = np.nan
    tail[0], tail[1] = np.nan, 1.0
    expected = [slow(row) for row in tail.tolist()]
    rows, flat = np.repeat(np.arange(n), cells), tail.ravel()
    order = rng.permutation(len(flat))
    for pieces in (1, 7):
        together = Together(n)
        for part in np.array_split(order, pieces):
            together.add(rows[part], surprises_of(1.0 - flat[part]))
        np.testing.assert_allclose(together.surprise(), expected, rtol=1e-6, atol=1e-12)


def test_a_row_of_one_cell_is_as_strange_as_its_cell() -> None:
    score = np.array([0.0, 0.4, 0.95, 0.999, 1.0, np.nan])
    together = Together(len(score))
    together.add(np.arange(len(score)), surprises_of(score))
    np.testing.assert_array_equal(together.surprise(), surprises_of(score))
    assert together.surprise()[4] == SURPRISE_MAX and together.surprise()[0] == 0.0


def test_two_cells_that_are_off_come_before_one_that_is_a_little_more() -> None:
    together = Together(2)
    together.add(np.array([0, 1, 1]), surprises_of(np.array([0.998, 0.99, 0.99])))
    one, two = together.surprise()
    assert two > one
