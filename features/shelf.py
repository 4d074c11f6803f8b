"""Numbered rows that come at one end and go at the other: arrays used round and round.

Row number n stands at n modulo the capacity, so that neither taking rows in nor letting the oldest
go moves any other, and the memory of those gone serves those to come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Shelf"]

Int64 = npt.NDArray[np.int64]

SHELF_MIN = 64
"""Rows a shelf starts with room for; chosen: small groups stay small."""

SLICE_MIN = 1 << 10
"""Rows copied at once however few a part is; chosen: they take as long as the calls."""

GROWTH = 1.1
"""A full shelf becomes so many times as large: less is unused than with doubling."""


class Shelf:
    """Rows `first` up to `top`, each a row of several arrays; numbers begin at 1, 0 is none.

    Parameters
    ----------
    columns : name -> (columns, type)
    """

    def __init__(self, columns: dict[str, tuple[int, npt.DTypeLike]]) -> None:
        self.first = self.top = 1
        self._at = self._end = self._saved = 1  # of the snapshot under way; saved up to here
        self._changed: list[Int64] = []
        self._kept: list[dict[str, npt.NDArray[Any]]] = []
        self.arrays: dict[str, npt.NDArray[Any]] = {
            name: np.zeros((SHELF_MIN, width), dtype) for name, (width, dtype) in columns.items()
        }

    @property
    def capacity(self) -> int:
        """Rows there is room for."""
        return len(next(iter(self.arrays.values())))

    @property
    def memory_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self.arrays.values())

    def reserve(self, incoming: int) -> None:
        """Make room for so many more rows."""
        need = self.top - self.first + incoming
        if need <= self.capacity:
            return
        size = max(int(GROWTH * self.capacity), need)
        # Stretches that neither the old nor the new arrays cut in two: three at the most.
        moves: list[tuple[int, int, int]] = []
        for number, at, step in self._spans(self.first, self.top - self.first):
            here = min(step, size - number % size)
            moves.append((at, number % size, here))
            if here < step:
                moves.append((at + here, 0, step - here))
        for name, old in self.arrays.items():
            new = np.zeros((size, old.shape[1]), old.dtype)
            for at, to, many in moves:
                new[to : to + many] = old[at : at + many]
            self.arrays[name] = new

    def _spans(self, number: int, many: int) -> Iterator[tuple[int, int, int]]:
        """(number, place, rows) of the at most two stretches so many rows stand in."""
        while many:
            at = number % self.capacity
            step = min(many, self.capacity - at)
            yield number, at, step
            number, many = number + step, many - step

    def put(self, many: int) -> int:
        """Take in rows that are written next; `reserve` came before.

        Returns
        -------
        number of the first
        """
        self.top += many
        return self.top - many

    def at(self, numbers: Int64) -> Int64:
        """Where rows stand in the arrays."""
        return numbers % self.capacity

    def take(self, numbers: Int64) -> dict[str, npt.NDArray[Any]]:
        """Copies of rows."""
        at = self.at(numbers)
        return {name: np.take(array, at, axis=0) for name, array in self.arrays.items()}

    def drop(self, first: int) -> None:
        """Let go what comes before a number."""
        if first > self.first:
            if self._at < first:
                self._keep(np.arange(self._at, min(first, self._end)))
                self._at = min(first, self._end)
            self.first = first

    def begin(self, everything: bool) -> None:
        """Begin a snapshot of this moment: of what has changed since the last, or of all."""
        self._at = self.first if everything else max(self._saved, self.first)
        self._kept = []
        if not everything:
            changed = np.unique(np.concatenate([np.empty(0, np.int64), *self._changed]))
            self._keep(changed[(changed >= self.first) & (changed < self._at)])
        self._changed = []
        self._end = self._saved = self.top

    @property
    def copied(self) -> bool:
        """Whether nothing is left to copy."""
        return self._at == self._end

    def copy(self, parts: int) -> dict[str, npt.NDArray[Any]]:
        """One of `parts` parts of what the snapshot holds, behind what was kept before."""
        many = max(-(-(self._end - self.first) // parts), SLICE_MIN)
        end = min(self._at + many, self._end)
        self._keep(np.arange(self._at, end))
        self._at = end
        kept, self._kept = self._kept, []
        return {name: np.concatenate([k[name] for k in kept]) for name in kept[0]}

    def change(self, numbers: Int64) -> None:
        """Say which rows are about to change: a snapshot under way copies them first."""
        self._changed.append(numbers)
        if not self.copied:
            self._keep(numbers[(numbers >= self._at) & (numbers < self._end)])

    def _keep(self, numbers: Int64) -> None:
        self._kept.append({"number": numbers, **self.take(numbers)})

    def load(self, first: int, top: int, rows: dict[str, npt.NDArray[Any]]) -> None:
        """Put a snapshot back; `first` and `top` are as they were when it began.

        A row that changed while it was copied stands there twice: as it was comes first.
        """
        self._stand(first, top)
        numbers = rows["number"][::-1]
        alive = numbers >= first
        at = self.at(numbers[alive])
        for name, array in self.arrays.items():
            array[at] = rows[name][::-1][alive]

    def _stand(self, first: int, top: int) -> None:
        """Have room for the rows of a snapshot that is about to be put back."""
        self.first = max(self.first, first)
        self.top = max(self.top, self.first)
        self.reserve(top - self.top)
        self.top = self._saved = self._at = self._end = top
