"""Verdicts that made the level of the day usual, for rows that pass again around them.

A label says that what an entity does of late is genuine (`features.anchors.accept`). Where a late
row makes rows pass again (`features.late`), those that had passed before the verdict must not know
of it, and those after it must: so it stands behind the last row, by time, that was before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["Since", "Verdicts"]

Int64 = npt.NDArray[np.int64]


class Verdicts:
    """Verdicts since the oldest live checkpoint: slot -> (next row, next checkpoint) at each.

    At most one for each of an entity's labels within the bound of lateness, and only those that
    changed something: a level must be far from usual for that.
    """

    def __init__(self) -> None:
        self._known: dict[int, list[tuple[int, int]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._known.values()))

    def add(self, slots: Int64, row: int, checkpoint: int) -> None:
        """Note a verdict on slots, int64 (n,), given the numbers that come next."""
        for slot in slots.tolist():
            self._known.setdefault(slot, []).append((row, checkpoint))

    def forget(self, checkpoint: int) -> None:
        """Let go of verdicts that every checkpoint from this number on has."""
        if self._known:
            kept = {s: [v for v in found if v[1] > checkpoint] for s, found in self._known.items()}
            self._known = {slot: found for slot, found in kept.items() if found}

    def since(self, owners: Int64, chosen: Int64, numbers: Int64, starts: Int64) -> Since:
        """The verdicts that slots' checkpoints do not have, among the rows that pass again.

        Parameters
        ----------
        owners, chosen, numbers, starts : see `features.late._Past`
        """
        found: list[tuple[int, ...]] = []
        for i, slot in enumerate(owners.tolist() if self._known else ()):
            for row, checkpoint in self._known.get(slot, ()):
                if checkpoint > chosen[i, 0]:
                    begin, end = int(starts[i]), int(starts[i + 1])
                    before = np.flatnonzero(numbers[begin:end] < row)
                    place = begin + (int(before[-1]) + 1 if len(before) else 0)
                    found.append((i, slot, place, checkpoint))
        return Since(np.array(found, np.int64).reshape(-1, 4))

    def dump(self) -> Int64:
        """int64 (n, 3): slot and the two numbers of each verdict."""
        rows = [(slot, *one) for slot, found in self._known.items() for one in found]
        return np.array(rows, np.int64).reshape(-1, 3)

    def load(self, rows: Int64) -> None:
        """Put a dump back, in place of what is there."""
        self._known = {}
        for slot, row, checkpoint in rows.tolist():
            self._known.setdefault(slot, []).append((row, checkpoint))


@dataclass(slots=True)
class Since:
    """Verdicts among rows that pass again.

    Parameters
    ----------
    found : int64 (n, 4), of each: its slot's place among the owners, slot, the place before which
        it stands among the rows, the first checkpoint that has it; each slot's in their order
    """

    found: Int64
    _step: Int64 = field(init=False)

    def __post_init__(self) -> None:
        owners = self.found[:, 0]
        first = np.searchsorted(owners, owners)
        self._step = np.arange(len(owners), dtype=np.int64) - first

    @property
    def many(self) -> int:
        """Most verdicts on one slot."""
        return int(self._step.max(initial=-1)) + 1

    @property
    def last(self) -> int:
        """The last step after which there is one; -1 where there is none."""
        return int(self._step.max(initial=-1))

    def waves(self, starts: Int64) -> Int64:
        """int64 (rows,), how many verdicts on its slot stand before each row."""
        found = np.zeros(int(starts[-1]), np.int64)
        for owner, _, place, _ in self.found.tolist():
            found[place : starts[owner + 1]] += 1
        return found

    def among(self, chosen: Int64, newer: Int64, refresh: Int64) -> None:
        """Give verdicts and checkpoints one order in each slot.

        Parameters
        ----------
        chosen : int64 (owners, 2), see `features.late._Past`
        newer, refresh : int64 (k,), see `features.replay.waves`; `refresh` is changed
        """
        ends = np.cumsum(chosen[:, 1])
        for v, (owner, _, _, checkpoint) in enumerate(self.found.tolist()):
            at = np.arange(ends[owner] - chosen[owner, 1], ends[owner])
            behind = newer[at] >= checkpoint
            refresh[at[behind]] += 1
            self._step[v] += int(np.count_nonzero(~behind))

    def slots(self, step: int) -> Int64:
        """int64 (n,), on which verdicts come after a step."""
        return np.asarray(self.found[self._step == step, 1])
