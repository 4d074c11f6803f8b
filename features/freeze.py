"""Entities that do not learn for a while: a label said fraud, and fraud must not become usual.

A row of a frozen entity is marked in the sign of its flags, which no condition uses. Kernels that
learn look at it, `learns`, before they let a row change what is usual; facts (the last value, the
last time, how many) go on, and so does what is of late, which is compared with the usual. Where
nothing is frozen no row is looked at.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.speed import inlined, kernel

__all__ = ["learns", "mark_frozen"]

_FLAGS = 7
"""Column of a row's head that holds its conditions as bits."""

_MARK = np.int64(-(2**63))


@inlined
def learns(head, i):
    """Whether row i may change what is usual for its entity."""
    return head[i, _FLAGS] >= 0


@kernel
def mark_frozen(slots, taken_us, frozen_until_us, head):
    """Mark the rows taken before their entity's freeze ends; returns how many.

    Parameters
    ----------
    slots, taken_us : int64 (n,)
    frozen_until_us : int64 (slots, 1)
    head : int64 (n, columns), changed
    """
    marked = 0
    for i in range(len(slots)):
        if taken_us[i] < frozen_until_us[slots[i], 0]:
            head[i, _FLAGS] |= _MARK
            marked += 1
    return marked
