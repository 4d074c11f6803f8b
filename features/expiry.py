"""Entities that fall silent for good are forgotten, and their slots are used again.

An entity idle for longer than its time to live starts anew at its next event, as if it had never
been met. That is said by its own events alone; when its slot is given to another is of no
consequence, and is spread over rounds: each looks at a few slots.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from collections.abc import Mapping

from features.arena import release
from features.plan import EntityPlan
from features.speed import kernel
from features.windows import BASE, BORN, CAPACITY, HEAD, KEPT, LIMIT, SAVED, SHARED

__all__ = [
    "DAYS",
    "DAYS_OTHER",
    "SLACK_US",
    "SWEPT",
    "TICK_US",
    "clear_rings",
    "time_to_live_us",
]

DAYS = {"card": 45.0, "user": 45.0, "merchant": 45.0, "device": 45.0, "ip": 7.0}
"""Days without an event after which an entity of a type is forgotten; chosen: 45 days are as long
as a pair is known (`features.plan.PAIR_TTL_S`), addresses change hands within a week."""

DAYS_OTHER = 14.0
"""For all other types; chosen: a host that was off over a holiday is still known."""

SLACK_US = 25 * 3_600_000_000
"""A silent entity's slot is taken this much after its time; chosen: beyond the longest lateness
that can be set (`late_s`, a day), so that when it is taken never shows in a feature."""

SWEPT = 256
"""Slots of an entity type that a round looks at; chosen: 100,000 slots in 40 s, and forgetting all
of them takes a tenth of a millisecond a type."""

TICK_US = 3_600_000_000
"""Of types whose silence is told: all slots are looked at when the clock passes such a multiple,
so that the round in which others hear of one that is forgotten is a matter of clocks alone, not of
slots, which are others after a restart. Chosen: an hour; hosts and services are few."""


def time_to_live_us(plan: EntityPlan, ttl_h: Mapping[str, float]) -> int:
    """Microseconds without an event after which an entity is forgotten; 0: never.

    Parameters
    ----------
    plan : of the entity type; nothing is forgotten that one of its windows still counts
    ttl_h : entity type -> hours, for types whose default is not wanted
    """
    hours = ttl_h.get(plan.entity, 24.0 * DAYS.get(plan.entity, DAYS_OTHER))
    if hours <= 0.0:
        return 0
    longest_us = max((int(ring.windows_us.max()) for ring in plan.rings), default=0)
    return max(round(hours * 3.6e9), longest_us)


@kernel
def clear_rings(slots, ints, floats, shape, book, arena_ints):
    """Empty the rings of slots that go to other entities; records are numbered on from HEAD.

    `shape` is (windows, flags, reals, maxima, pairs). BORN says from which record on the slot's
    pairs are its own.
    """
    windows, flags, reals, maxima, pairs = shape
    stride = 2 + flags + reals + maxima + pairs
    for i in range(len(slots)):
        row, sums = ints[slots[i]], floats[slots[i]]
        if row[CAPACITY] > 0:
            start = row[BASE] + row[LIMIT] - row[CAPACITY]
            release(start, row[CAPACITY], book, arena_ints)
        head = row[HEAD]
        for k in range(len(row)):
            row[k] = 0
        for k in range(len(sums)):
            sums[k] = 0.0
        row[HEAD] = row[SAVED] = row[KEPT] = row[BORN] = head
        for w in range(windows):
            row[SHARED + pairs + maxima + w * stride] = head
