"""How strange the cells of a wide table's row are together, where one alone says little.

A row of sensors is many events, each with a score of its own. The strangest of them tells what to
look at; which of two rows is the stranger, several that are off together tell better.
"""

from __future__ import annotations

import numpy as np

from features.batch import Float64, Int64

__all__ = ["SHARE", "Together"]

SHARE = 0.05
"""Only cells that no more than this share of usual ones reach are counted. Origin: the paper's own
choice of tau; never tried at another value here but for 0.01."""


class Together:
    """The truncated product of the tail probabilities of a row's cells, as a surprise.

    That is the sum of the surprises of cells beyond `SHARE`; where no cell is, the largest one, so
    that a row of one cell is as strange as its cell. Cells depend on each other: it orders rows,
    and is no probability.

    Parameters
    ----------
    n : rows

    Source: Zaykin et al., Truncated product method for combining P-values, Genetic Epidemiology 22
    (2002).
    """

    def __init__(self, n: int) -> None:
        self._far = np.zeros(n)
        self._largest = np.full(n, np.nan)

    def add(self, rows: Int64, surprise: Float64) -> None:
        """Take in cells.

        Parameters
        ----------
        rows : int64 (k,), which row each is of; a row may come again
        surprise : float64 (k,), -log10 of the tail probability; NaN where it is not known
        """
        counted = surprise >= -np.log10(SHARE)
        np.add.at(self._far, rows[counted], surprise[counted])
        np.fmax.at(self._largest, rows, surprise)

    def surprise(self) -> Float64:
        """float64 (n,); NaN of rows without a cell that is known."""
        found: Float64 = np.where(self._far > 0.0, self._far, self._largest)
        return found
