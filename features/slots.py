"""Which slot of the state arrays an entity has: an open-addressing table of 64-bit keys.

Slots are given in the order in which entities are first met and never move, so everything else in a
group's state is a flat array indexed by slot. The same pass turns each row's time into the time at
which it is taken: never before the newest its entity has seen.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.speed import kernel

__all__ = ["NEVER", "SlotTable"]

Int64 = npt.NDArray[np.int64]

NEVER = -(1 << 62)
"""Newest time of an entity before its first row."""

_TABLE_MIN = 1 << 10
"""Smallest table; chosen: 16 kB, so that small groups stay small."""


@kernel
def _find(key, table_key, table_slot):
    """Position of `key` in the table, or of the free place where it would go."""
    mask = np.uint64(len(table_key) - 1)
    at = np.uint64(key) & mask
    while table_slot[at] >= 0 and table_key[at] != key:
        at = (at + np.uint64(1)) & mask
    return at


@kernel
def _intern(
    head, table_key, table_slot, keys, newest_us, dirty, used, placed, slots, taken_us, before_us
):  # fmt: skip
    """Slot, taken time and time before of each row; returns (slots in use, rows that came late)."""
    late = 0
    for i in range(len(head)):
        key = head[i, 0]
        at = _find(key, table_key, table_slot)
        slot = table_slot[at]
        time_us = head[i, 1]
        if slot < 0:
            slot = used
            used += 1
            table_key[at] = key
            table_slot[at] = slot
            keys[slot] = key
            newest_us[slot] = NEVER
        before_us[i] = newest_us[slot]
        if time_us < newest_us[slot]:
            if not placed:
                time_us = newest_us[slot]
                late += 1
        else:
            newest_us[slot] = time_us
        dirty[slot] = 1
        slots[i] = slot
        taken_us[i] = time_us
    return used, late


@kernel
def _slots_of(keys, table_key, table_slot, slots):
    """Fill in the slot of each key, -1 where it has none."""
    for i in range(len(keys)):
        slots[i] = table_slot[_find(keys[i], table_key, table_slot)]


@kernel
def _fill(keys, used, table_key, table_slot):
    """Put slots 0..used of `keys` into an empty table."""
    for slot in range(used):
        at = _find(keys[slot], table_key, table_slot)
        table_key[at] = keys[slot]
        table_slot[at] = slot


class SlotTable:
    """Keys and slots of one entity type in one group.

    Attributes
    ----------
    used : slots in use
    capacity : slots that state arrays must have room for
    late : rows that came before their entity's newest time, ever
    """

    def __init__(self) -> None:
        self.used = 0
        self.late = 0
        self.capacity = 256
        self.keys = np.zeros(self.capacity, np.int64)
        self.newest_us = np.zeros(self.capacity, np.int64)
        self.dirty = np.zeros(self.capacity, np.uint8)
        self._new_table(_TABLE_MIN)

    def _new_table(self, size: int) -> None:
        self._table_key = np.zeros(size, np.int64)
        self._table_slot = np.full(size, -1, np.int32)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the table and of the arrays by slot it keeps itself."""
        arrays = (self.keys, self.newest_us, self.dirty, self._table_key, self._table_slot)
        return sum(a.nbytes for a in arrays)

    def reserve(self, incoming: int) -> bool:
        """Make room for so many new entities; True where `capacity` has grown."""
        need = self.used + incoming
        if 2 * need > len(self._table_key):
            size = len(self._table_key)
            while 2 * need > size:
                size *= 2
            self._new_table(size)
            _fill(self.keys, self.used, self._table_key, self._table_slot)
        if need <= self.capacity:
            return False
        while self.capacity < need:
            self.capacity *= 2
        for array in (self.keys, self.newest_us, self.dirty):
            array.resize(self.capacity, refcheck=False)
        return True

    def intern(self, head: Int64, placed: bool = False) -> tuple[Int64, Int64, Int64]:
        """Slot of each row, the time it is taken at, and its entity's newest time before it.

        Parameters
        ----------
        head : int64 (n, >= 2), key and event time of each row; `reserve(n)` came before
        placed : whether rows are taken at their own time, late or not; else not before the newest

        Returns
        -------
        int64 (n,) slots, int64 (n,) microseconds, int64 (n,) microseconds, NEVER for a first row
        """
        slots = np.empty(len(head), np.int64)
        taken_us = np.empty(len(head), np.int64)
        before_us = np.empty(len(head), np.int64)
        self.used, late = _intern(
            head,
            self._table_key,
            self._table_slot,
            self.keys,
            self.newest_us,
            self.dirty,
            self.used,
            placed,
            slots,
            taken_us,
            before_us,
        )
        self.late += late
        return slots, taken_us, before_us

    def find(self, keys: npt.NDArray[np.uint64]) -> Int64:
        """int64 (n,): the slot of each key, -1 where the entity was never met."""
        slots = np.empty(len(keys), np.int64)
        wanted = np.ascontiguousarray(keys, np.uint64).view(np.int64)
        _slots_of(wanted, self._table_key, self._table_slot, slots)
        return slots

    def take_dirty(self) -> Int64:
        """Slots touched since the last call, and none after it."""
        slots = np.flatnonzero(self.dirty[: self.used])
        self.dirty[slots] = 0
        return slots.astype(np.int64)

    def load(self, slots: Int64, keys: Int64, newest_us: Int64, late: int) -> None:
        """Put saved slots back; they continue those there are."""
        used = max(self.used, int(slots.max()) + 1 if len(slots) else 0)
        self.reserve(used - self.used)
        self.keys[slots] = keys
        self.newest_us[slots] = newest_us
        fresh = np.arange(self.used, used)
        self.used = used
        self.late = late
        if len(fresh):
            self._table_slot.fill(-1)
            _fill(self.keys, self.used, self._table_key, self._table_slot)
