"""Which slot of the state arrays an entity has: an open-addressing table of 64-bit keys.

Slots are given in the order in which entities are first met and never move, so everything else in a
group's state is a flat array indexed by slot. The same pass turns each row's time into the time at
which it is taken: never before the newest its entity has seen. Where there is no room for a new
entity it stops, the arrays grow by an eighth, and it goes on: most rows are of entities that are
known, so room is not made for a slot a row.

An entity that was idle beyond its time to live is another one from its next event on: it gets a new
slot, and its old one is left to be cleared and given away (`features.expiry`). A slot that is left
has no key any more, but says whose it was until it is cleared: silence may have to be told yet.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.speed import inlined, kernel

__all__ = ["NEVER", "SlotTable", "find_key", "larger"]

Int64 = npt.NDArray[np.int64]

USED, LATE, SPARE = 0, 1, 2
# Places in `SlotTable.numbers`.

NEVER = -(1 << 62)
"""Newest time of an entity before its first row."""

_TABLE_MIN = 1 << 10
"""Smallest table; chosen: 12 kB, so that small groups stay small."""

_FULL, _FILLED = 13 / 16, 0.65
"""Share of places taken in a table that grows, and after it has grown; see `features.pairs`."""

_SPREAD = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: keys that differ in few bits get homes far apart."""


def larger(size: int) -> int:
    """Size of an array that has become too small: a ninth of it at most lies idle.

    Large arrays grow in place, pages are mapped behind them; so small steps cost little.
    """
    return size + max(size // 8, 256)


@inlined
def _home(key, size):
    """Place where a search for the key begins, in a table of so many (below 2^32)."""
    spread = np.uint64(key) * np.uint64(_SPREAD)
    return np.int64(((spread >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32))


@kernel
def find_key(key, table_key, table_slot):
    """Position of `key` in the table, or of the free place where it would go.

    A place is free while `table_slot` (or what else stands beside the key) is negative there.
    """
    at = _home(key, len(table_key))
    while table_slot[at] >= 0 and table_key[at] != key:
        at += 1
        if at == len(table_key):
            at = 0
    return at


@kernel
def _intern(
    first, head, table_key, table_slot, keys, newest_us, first_us, dirty, numbers, ttl_us, placed,
    free, left, slots, taken_us, before_us
):  # fmt: skip
    """Slot, taken time and time before of rows `first`.. in order.

    Returns
    -------
    (row that found no room, or their number; slots `left` got: those that entities have left)
    """
    used, late, spare, leaving = numbers[USED], numbers[LATE], numbers[SPARE], 0
    done = len(head)
    for i in range(first, len(head)):
        key = head[i, 0]
        at = find_key(key, table_key, table_slot)
        slot = table_slot[at]
        time_us = head[i, 1]
        if (slot < 0 or time_us - newest_us[slot] > ttl_us) and spare == 0 and used == len(keys):
            done = i
            break
        if slot >= 0 and time_us - newest_us[slot] > ttl_us:
            first_us[slot], keys[slot], dirty[slot] = keys[slot], 0, 1
            left[leaving] = slot
            leaving += 1
            slot = -1
        if slot < 0:
            if spare > 0:
                spare -= 1
                slot = free[spare]
            else:
                slot = used
                used += 1
            table_key[at] = key
            table_slot[at] = slot
            keys[slot] = key
            newest_us[slot] = NEVER
            first_us[slot] = time_us
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
    numbers[USED], numbers[LATE], numbers[SPARE] = used, late, spare
    return done, leaving


@kernel
def _remove(key, table_key, table_slot):
    """Take a key out of the table: those behind it that would not be found move up."""
    size = len(table_key)
    hole = find_key(key, table_key, table_slot)
    at = (hole + 1) % size
    while table_slot[at] >= 0:
        home = _home(table_key[at], size)
        if (at - home + size) % size >= (at - hole + size) % size:
            table_key[hole], table_slot[hole] = table_key[at], table_slot[at]
            hole = at
        at = (at + 1) % size
    table_slot[hole] = -1


@kernel
def _sweep(first, end, before_us, keys, newest_us, table_key, table_slot, left):
    """Take slots first..end that have been idle since `before_us` out; returns how many."""
    leaving = 0
    for slot in range(first, end):
        if keys[slot] != 0 and newest_us[slot] < before_us:
            _remove(keys[slot], table_key, table_slot)
            left[leaving] = slot
            leaving += 1
    return leaving


@kernel
def _slots_of(keys, table_key, table_slot, slots):
    """Fill in the slot of each key, -1 where it has none."""
    for i in range(len(keys)):
        slots[i] = table_slot[find_key(keys[i], table_key, table_slot)]


@kernel
def _fill(keys, used, table_key, table_slot):
    """Put slots 0..used of `keys` into an empty table."""
    for slot in range(used):
        if keys[slot] != 0:
            at = find_key(keys[slot], table_key, table_slot)
            table_key[at] = keys[slot]
            table_slot[at] = slot


class SlotTable:
    """Keys and slots of one entity type in one group.

    Parameters
    ----------
    ttl_us : an entity idle for longer starts anew; 0: never

    Attributes
    ----------
    numbers : int64, slots ever in use, rows that came late, slots that are free again
    capacity : slots that state arrays must have room for
    expired : entities that were forgotten, ever
    first_us, newest_us : by slot, times of an entity's first row and of its newest; where the
        entity has left the slot, `first_us` is its key until the slot is cleared
    met : int64 (n,), slots of the rows of the last call of `intern`
    late_forgotten : late rows that entities had been forgotten before, though the row came while
        they were known, ever
    """

    def __init__(self, ttl_us: int = 0) -> None:
        self.ttl_us = ttl_us
        self.expired = 0
        self._known_us = NEVER
        self.capacity = 256
        self.numbers = np.zeros(3, np.int64)
        self.keys = np.zeros(self.capacity, np.int64)
        self.newest_us = np.zeros(self.capacity, np.int64)
        self.first_us = np.zeros(self.capacity, np.int64)
        self.dirty = np.zeros(self.capacity, np.uint8)
        self._free = np.zeros(self.capacity, np.int32)
        self._swept = 0
        self.met = np.zeros(0, np.int64)
        self._left: list[Int64] = []
        self.late_forgotten = 0
        self._ended: dict[int, tuple[int, int]] = {}
        self._new_table(_TABLE_MIN)

    def _new_table(self, size: int) -> None:
        self._table_key = np.zeros(size, np.int64)
        self._table_slot = np.full(size, -1, np.int32)

    @property
    def used(self) -> int:
        """Slots ever in use: those of entities, and those that are free again."""
        return int(self.numbers[USED])

    @property
    def live(self) -> int:
        """Entities."""
        return int(self.numbers[USED] - self.numbers[SPARE])

    @property
    def late(self) -> int:
        """Rows that came before their entity's newest time, ever."""
        return int(self.numbers[LATE])

    @property
    def memory_bytes(self) -> int:
        """Bytes of the table and of the arrays by slot it keeps itself."""
        arrays = (
            self.keys,
            self.newest_us,
            self.first_us,
            self.dirty,
            self._free,
            self._table_key,
            self._table_slot,
        )
        return sum(a.nbytes for a in arrays)

    def _grow(self, slots: int) -> None:
        """Make room for so many slots at least, and for as many keys in the table."""
        if slots > self.capacity:
            self.capacity = max(slots, larger(self.capacity))
            for array in (self.keys, self.newest_us, self.first_us, self.dirty, self._free):
                array.resize(self.capacity, refcheck=False)
        if self.capacity > _FULL * len(self._table_key):
            self._refill(int(self.capacity / _FILLED))

    def _refill(self, size: int) -> None:
        """A table of so many places with all keys."""
        self._new_table(size)
        _fill(self.keys, self.used, self._table_key, self._table_slot)

    def intern(self, head: Int64, placed: bool = False) -> tuple[Int64, Int64, Int64]:
        """Slot of each row, the time it is taken at, and its entity's newest time before it.

        Slots that entities leave behind are for `take_left`. `capacity` may be larger after it.

        Parameters
        ----------
        head : int64 (n, >= 2), key and event time of each row
        placed : whether rows are taken at their own time, late or not; else not before the newest

        Returns
        -------
        int64 (n,) slots, int64 (n,) microseconds, int64 (n,) microseconds, NEVER for a first row
        """
        slots = np.empty(len(head), np.int64)
        taken_us = np.empty(len(head), np.int64)
        before_us = np.empty(len(head), np.int64)
        left = np.empty(len(head), np.int64)
        done, leavers = 0, []
        while True:
            done, leaving = _intern(
                done,
                head,
                self._table_key,
                self._table_slot,
                self.keys,
                self.newest_us,
                self.first_us,
                self.dirty,
                self.numbers,
                self.ttl_us or -NEVER,
                placed,
                self._free,
                left,
                slots,
                taken_us,
                before_us,
            )
            if leaving:
                leavers.append(left[:leaving].copy())
            if done == len(head):
                if placed and self._ended:
                    self._count_forgotten(head, before_us)
                if leavers:
                    self._left += leavers
                    if placed:
                        self._note_ended(np.concatenate(leavers), head, slots)
                self.met = slots
                return slots, taken_us, before_us
            self._grow(self.capacity + 1)

    def _note_ended(self, left: Int64, head: Int64, slots: Int64) -> None:
        """Keep until when entities were met that have just been forgotten, and since when again."""
        keys = self.first_us[left]
        at = np.flatnonzero(np.isin(head[:, 0], keys))
        again_us = dict(zip(head[at, 0].tolist(), self.first_us[slots[at]].tolist(), strict=True))
        for key, newest_us in zip(keys.tolist(), self.newest_us[left].tolist(), strict=True):
            self._ended[key] = newest_us, again_us[key]

    def _count_forgotten(self, head: Int64, before_us: Int64) -> None:
        """Count late rows that came while an entity was known that has been forgotten since."""
        for key, time_us in head[head[:, 1] < before_us, :2].tolist():
            newest_us, again_us = self._ended.get(key, (NEVER, NEVER))
            self.late_forgotten += time_us < again_us and time_us - newest_us <= self.ttl_us

    def settle_ended(self, before_us: int) -> None:
        """No row as old as that is in time any more."""
        if self._ended:
            kept = {key: ended for key, ended in self._ended.items() if ended[1] >= before_us}
            self._ended = kept

    def dump_ended(self) -> Int64:
        """int64 (n, 3): key, newest time when it was forgotten, time at which it was met again."""
        rows = [(key, *ended) for key, ended in self._ended.items()]
        return np.array(rows, np.int64).reshape(-1, 3)

    def load_ended(self, rows: Int64) -> None:
        """Put back what `dump_ended` gave."""
        self._ended = {key: (newest_us, again_us) for key, newest_us, again_us in rows.tolist()}

    def take_left(self) -> Int64:
        """Slots that entities have left behind since the last call: no row will ask for them.

        They are the caller's, to be cleared and given to `release`.
        """
        if not self._left:  # a call an entity type, group and round
            return np.zeros(0, np.int64)
        left, self._left = self._left, []
        return np.concatenate([np.zeros(0, np.int64), *left])

    def sweep(self, before_us: int, many: int) -> None:
        """Look at some slots; those idle since `before_us` leave, for `take_left`."""
        if self._swept >= self.used:
            self._swept = 0
        first, end = self._swept, min(self._swept + many, self.used)
        self._swept = end
        self._leave(first, end, before_us)

    def sweep_all(self, before_us: int) -> None:
        """Look at all slots, as `sweep` does."""
        self._leave(0, self.used, before_us)

    def _leave(self, first: int, end: int, before_us: int) -> None:
        """Let those of some slots leave that are idle since `before_us`."""
        left = np.empty(end - first, np.int64)
        leaving = _sweep(
            first,
            end,
            before_us,
            self.keys,
            self.newest_us,
            self._table_key,
            self._table_slot,
            left,
        )
        if not leaving:
            return
        gone = left[:leaving].copy()
        self.first_us[gone], self.keys[gone], self.dirty[gone] = self.keys[gone], 0, 1
        self._left.append(gone)

    def put_back(self, slots: Int64) -> None:
        """Hand slots of `take_left` out again at its next call."""
        self._left.append(slots)

    def whose(self, slots: Int64) -> Int64:
        """Keys of slots, also of those that entities have left and that are not cleared."""
        keys = self.keys[slots]
        return np.where(keys == 0, self.first_us[slots], keys)

    def over(self, slots: Int64, time_us: Int64) -> npt.NDArray[np.bool_]:
        """Whether slots' entities were forgotten before some times, by all they have done."""
        ends_us = self.newest_us[slots] + (self.ttl_us or -NEVER)
        return np.asarray(time_us > ends_us, np.bool_)

    def release(self, slots: Int64) -> None:
        """Let other entities have slots that entities have left and that are cleared."""
        self.keys[slots] = self.newest_us[slots] = self.first_us[slots] = 0
        self.dirty[slots] = 1
        spare = int(self.numbers[SPARE])
        self._free[spare : spare + len(slots)] = slots
        self.numbers[SPARE] += len(slots)
        self.expired += len(slots)

    def hear(self, clock_us: int) -> None:
        """Take in the event-time clock, 0 where it is not known."""
        if self.ttl_us and clock_us:
            self._known_us = clock_us - self.ttl_us

    def find(self, keys: npt.NDArray[np.uint64]) -> Int64:
        """int64 (n,), the slot of each key, -1 where it was never met or has been idle too long."""
        slots = np.empty(len(keys), np.int64)
        wanted = np.ascontiguousarray(keys, np.uint64).view(np.int64)
        _slots_of(wanted, self._table_key, self._table_slot, slots)
        return self.known(slots)

    def newest_of(self, keys: npt.NDArray[np.uint64]) -> Int64:
        """int64 (n,), newest time of each key's entity, however long ago; -1 of one never met."""
        slots = np.empty(len(keys), np.int64)
        wanted = np.ascontiguousarray(keys, np.uint64).view(np.int64)
        _slots_of(wanted, self._table_key, self._table_slot, slots)
        return np.where(slots >= 0, self.newest_us[slots], -1)

    @property
    def known_from_us(self) -> int:
        """Entities whose newest row is older have been idle too long, by the clock heard last."""
        return self._known_us

    def known(self, slots: Int64) -> Int64:
        """The slots, -1 for those whose entities have been idle too long."""
        return np.where(self.newest_us[slots] < self._known_us, -1, slots)

    def take_dirty(self) -> Int64:
        """Slots touched since the last call, and none after it."""
        slots = np.flatnonzero(self.dirty[: self.used])
        self.dirty[slots] = 0
        return slots.astype(np.int64)

    def load(self, slots: Int64, keys: Int64, newest_us: Int64, first_us: Int64) -> None:
        """Put saved slots back; they continue those there are, or take their place."""
        used = max(self.used, int(slots.max()) + 1 if len(slots) else 0)
        self._grow(used)
        left = (keys == 0) & (self.first_us[slots] != first_us)
        changed = bool((self.keys[slots] != keys).any() or left.any()) or used > self.used
        self.keys[slots] = keys
        self.newest_us[slots] = newest_us
        self.first_us[slots] = first_us
        self.numbers[USED] = used
        if changed:
            empty = self.keys[:used] == 0
            left = self.first_us[:used] != 0
            self._left = [np.flatnonzero(empty & left)]
            free = np.flatnonzero(empty & ~left)[::-1]
            self.numbers[SPARE] = len(free)
            self._free[: len(free)] = free
            self._refill(len(self._table_key))
