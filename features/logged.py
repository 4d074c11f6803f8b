"""Rows that `features.late` logs: what their columns hold, and as older snapshots have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from features.notes import notes_of

__all__ = [
    "BACK",
    "CODE_BITS",
    "FLAGS",
    "FLAGS_FEW",
    "KIND",
    "META",
    "MORE_FLAGS",
    "OFFSET",
    "PARTITION",
    "ROUND",
    "ROW",
    "SLOT",
    "TIME",
    "flags_of",
    "log_of",
]

Arrays = dict[str, npt.NDArray[Any]]
Int64 = npt.NDArray[np.int64]

TIME, OFFSET = 0, 1
# Columns of `wide`.

SLOT, KIND, ROW, ROUND, PARTITION, BACK, FLAGS, MORE_FLAGS = 0, 1, 2, 3, 4, 5, 6, 7
# Columns of `meta`: KIND is the event code below the lane. BACK says how many numbers before its
# own the row of the slot before it has (behind it, where it is below 0: that row came later), 0
# where there is none. FLAGS has the first of them and, in the sign, whether the entity was frozen;
# where there are more, MORE_FLAGS has them.

META = 7
"""Columns of `meta` where no row has more than FLAGS_FEW flags."""

CODE_BITS, FLAGS_FEW = 8, 31
"""Bits of an event code, and flags that stand in FLAGS."""

_FEW, _MORE, _FROZEN = (1 << FLAGS_FEW) - 1, (1 << 32) - 1, -(1 << 63)


def flags_of(meta: npt.NDArray[np.int32]) -> Int64:
    """int64 (n,), the flags of logged rows as their heads have them."""
    low = meta[:, FLAGS].astype(np.int64)
    flags = low & _FEW
    if meta.shape[1] > META:
        flags |= (meta[:, MORE_FLAGS].astype(np.int64) & _MORE) << FLAGS_FEW
    return np.where(low < 0, flags | _FROZEN, flags)


def log_of(
    rows: Arrays,
    more_flags: bool,
    rings: Mapping[str, tuple[int, npt.NDArray[np.bool_]]],
    note_words: int,
) -> Arrays:
    """Logged rows of a snapshot of before 2026-11-30 as they are now.

    Parameters
    ----------
    rows : `wide` int64 (n, 4): time, offset, flags, number of the row before; `meta` int32 (n, 6):
        slot, code, lane, row, round, partition; `number`, `others`, `reals`, and by ring what its
        pairs said, see `notes_of`
    more_flags : whether there is a column for them
    rings : name of what a ring's pairs said -> column of its first note, event types that feed it
    note_words : of all notes of a row
    """
    wide, (slot, code, lane, row, round_, partition) = rows["wide"], rows["meta"].T.astype(np.int64)
    flags, back = wide[:, 2], np.where(wide[:, 3] > 0, rows["number"] - wide[:, 3], 0)
    few = (flags & _FEW) | np.where(flags < 0, 1 << FLAGS_FEW, 0)
    meta = [slot, code | (lane << CODE_BITS), row, round_ & _MORE, partition & _MORE, back, few]
    meta += [(flags >> FLAGS_FEW) & _MORE] if more_flags else []
    notes = np.zeros((len(wide), note_words), np.uint32)
    for name, (column, feeds) in rings.items():
        made = notes_of(rows[name])
        notes[feeds[code], column : column + made.shape[1]] = made[feeds[code]]
    return {
        "number": rows["number"],
        "wide": np.ascontiguousarray(wide[:, :2]),
        "meta": np.stack(meta, axis=1).astype(np.uint32).view(np.int32),
        "others": rows["others"],
        "reals": rows["reals"],
        "notes": notes,
    }
