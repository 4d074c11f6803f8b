"""How evenly an entity spreads over the values of a string: entropy over its last 32 events.

A card that always buys food has none; an address from which one account after another is tried has
as much as 32 values can have, five bits. The sum is kept in whole numbers, so that it does not
drift however long it runs.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.speed import AHEAD, borrowed, kernel, prefetch

__all__ = ["CATEGORIES", "ENTROPY_INTS", "run_categories"]

CATEGORIES = 32
"""Events looked back on; chosen: five bits tell one value from many, and 128 bytes an entity."""

ENTROPY_INTS = 2
"""Per instance: events with a value so far, and the sum over values of c log2(c), c how often one
is among the last 32, in units of 2^-40."""

_UNIT = float(1 << 40)
"""Chosen: the sum is at most 160, so it is good to 1e-10 and far from the end of an int64."""

_WEIGHTS = np.rint(
    np.arange(CATEGORIES + 1) * np.log2(np.maximum(np.arange(CATEGORIES + 1), 1)) * _UNIT
).astype(np.int64)
"""c log2(c) for c = 0..32."""


@kernel
def _times(kept, at, n, value):
    """How often a value is among the first n places."""
    found = 0
    for place in range(at, at + n):
        found += kept[place] == value
    return found


@kernel
def run_categories(
    slots, taken_us, head, reals_in, feeds, others, plan, plan_at, kept, sums, out
):  # fmt: skip
    """Entropies of rows in order.

    Parameters
    ----------
    taken_us, reals_in : not used; all families are called alike
    feeds : bool (instances, event types)
    others : int64 (instances,), where in `head` a row's value stands, as a key
    plan : int64 (features, 4): operation, instance, -, where to
    plan_at : int64 (event types * instances + 1,), by event type, then instance
    kept : uint32 (slots, instances * 32), upper halves of the last keys. Two of 32 different
        values share theirs with a chance of 1e-7
    sums : int64 (slots, instances * 2)
    """
    kept, sums = borrowed(kept, sums)
    instances = len(others)
    for i in range(len(slots)):
        if i + AHEAD < len(slots):
            prefetch(kept, slots[i + AHEAD])
            prefetch(sums, slots[i + AHEAD])
        code = head[i, 2]
        values, row = kept[slots[i]], sums[slots[i]]
        for b in range(instances):
            e0, e1 = plan_at[code * instances + b], plan_at[code * instances + b + 1]
            key = head[i, others[b]]
            if key == 0 or (e0 == e1 and not feeds[b, code]):
                continue
            at, sum_at = b * CATEGORIES, b * ENTROPY_INTS
            if feeds[b, code]:
                value = np.uint32((key >> 32) & 0xFFFFFFFF)
                place = at + row[sum_at] % CATEGORIES
                n = min(row[sum_at], CATEGORIES)
                if n == CATEGORIES:
                    c = _times(values, at, n, values[place])
                    row[sum_at + 1] += _WEIGHTS[c - 1] - _WEIGHTS[c]
                    c = _times(values, at, n, value) - (values[place] == value)
                else:
                    c = _times(values, at, n, value)
                row[sum_at + 1] += _WEIGHTS[c + 1] - _WEIGHTS[c]
                values[place] = value
                row[sum_at] += 1
            n = min(row[sum_at], CATEGORIES)
            if n > 0:
                same = row[sum_at + 1] == _WEIGHTS[n]  # then it is 0 to the last bit
                for k in range(e0, e1):
                    bits = np.log2(n) - row[sum_at + 1] / (n * _UNIT)
                    out[i, plan[k, 3]] = 0.0 if same else bits
