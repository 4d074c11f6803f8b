"""Which events have been seen before: exact within a horizon, in one table of 64-bit ids.

Sits before everything else in the flow: a repeat touches neither features nor votes. Exact but for
two ids of one 64-bit key: with n events in the horizon, a new one is taken for a repeat once in
2^64 / n events. Memory is 16 bytes over the table's fill (3/16 to a half): 32 to 86 bytes an
event of the horizon, so 50,000 events/s want a horizon of minutes.
"""

# mypy: disable-error-code="no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.events import event_code
from features.jit import njit
from features.keys import UInt64

__all__ = ["RepeatFilter", "event_keys", "warm_up"]

_SLOTS_MIN = 1 << 14
"""Smallest table; chosen: 256 kB, a second of a busy lane."""

_MOVED_PER_ROW = 8
"""Slots of an old table moved for each row that comes; chosen: a new table has room for an eighth
of its slots in rows at least, so that the move is done before it is full."""


def event_keys(event_type: str, ids: UInt64) -> UInt64:
    """Keys of events from keys of ids: two types may use one id for different things.

    Returns
    -------
    uint64 (n,)
    """
    salt = (event_code(event_type) + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
    keys = ids ^ np.uint64(salt)
    keys[keys == 0] = 1  # 0 marks a free slot
    return keys


@njit
def _admit(  # type: ignore[no-untyped-def]
    ids, seen_us, table_id, table_us, old_id, old_us, horizon_us, fresh
):
    """Mark rows whose id is in neither table (or too long ago); returns slots filled."""
    mask, old_mask = np.uint64(len(table_id) - 1), np.uint64(len(old_id) - 1)
    filled = 0
    for i in range(len(ids)):
        at = ids[i] & mask
        while table_id[at] != np.uint64(0) and table_id[at] != ids[i]:
            at = (at + np.uint64(1)) & mask
        if table_id[at] == ids[i]:
            fresh[i] = seen_us - table_us[at] > horizon_us
            if fresh[i]:
                table_us[at] = seen_us
            continue
        fresh[i] = True
        if len(old_id):
            was = ids[i] & old_mask
            while old_id[was] != np.uint64(0) and old_id[was] != ids[i]:
                was = (was + np.uint64(1)) & old_mask
            fresh[i] = old_id[was] != ids[i] or seen_us - old_us[was] > horizon_us
        if fresh[i]:
            table_id[at] = ids[i]
            table_us[at] = seen_us
            filled += 1
    return filled


@njit
def _insert(ids, times, table_id, table_us):  # type: ignore[no-untyped-def]
    """Put known entries into a table that has room; the later time of an id wins."""
    mask = np.uint64(len(table_id) - 1)
    filled = 0
    for i in range(len(ids)):
        at = ids[i] & mask
        while table_id[at] != np.uint64(0) and table_id[at] != ids[i]:
            at = (at + np.uint64(1)) & mask
        if table_id[at] == np.uint64(0):
            filled += 1
            table_id[at] = ids[i]
            table_us[at] = times[i]
        elif times[i] > table_us[at]:
            table_us[at] = times[i]
    return filled


@njit
def _collect(table_id, table_us, oldest_us, ids, times):  # type: ignore[no-untyped-def]
    """Copy the entries not older than a time, in the table's order; returns how many."""
    n = 0
    for at in range(len(table_id)):
        if table_id[at] != np.uint64(0) and table_us[at] >= oldest_us:
            ids[n] = table_id[at]
            times[n] = table_us[at]
            n += 1
    return n


def warm_up() -> None:
    """Compile (or load from the cache) the kernels: the first round is not to wait for it."""
    filter_ = RepeatFilter(1)
    ids = np.arange(1, _SLOTS_MIN, dtype=np.uint64)
    filter_.admit(ids, 1)
    filter_.load(filter_.full())


class RepeatFilter:
    """Exact memory of event ids over a horizon of `cut_time`.

    Parameters
    ----------
    horizon_us : an id seen again within this many microseconds of cut time is a repeat; 0 turns
        it off
    """

    def __init__(self, horizon_us: int) -> None:
        self.horizon_us = horizon_us
        self._newest_us = 0
        self._new: list[tuple[UInt64, int]] = []
        self._reset(_SLOTS_MIN)
        self._forget_old()

    def _reset(self, slots: int) -> None:
        self._id = np.zeros(slots, np.uint64)
        self._us = np.zeros(slots, np.int64)
        self._filled = 0

    def _forget_old(self) -> None:
        """No table is being moved."""
        self._old_id, self._old_us = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self._moved = self._old_filled = 0

    def __len__(self) -> int:
        return self._filled + self._old_filled

    @property
    def memory_bytes(self) -> int:
        """Bytes of the table, and of the one it takes over from."""
        return sum(a.nbytes for a in (self._id, self._us, self._old_id, self._old_us))

    def _live(self) -> tuple[UInt64, npt.NDArray[np.int64]]:
        """Entries still within the horizon."""
        self._move(len(self._old_id))
        ids, times = np.empty(self._filled, np.uint64), np.empty(self._filled, np.int64)
        oldest_us = np.int64(self._newest_us - self.horizon_us)
        n = int(_collect(self._id, self._us, oldest_us, ids, times))
        return ids[:n], times[:n]

    def _make_room(self, incoming: int) -> None:
        """Begin a new table, without what is past the horizon, before this one is over half full.

        The old one is moved bit by bit, and asked until then: 2 M ids at once would hold a round up
        for half a second.
        """
        if 2 * (self._filled + self._old_filled + incoming) <= len(self._id):
            self._move(max(_SLOTS_MIN, _MOVED_PER_ROW * incoming))
            return
        self._move(len(self._old_id))
        # What has passed the horizon needs no saving; without this a long backfill, which takes no
        # deltas, would keep every id it ever saw.
        oldest_us = self._newest_us - self.horizon_us
        self._new = [(new, seen_us) for new, seen_us in self._new if seen_us >= oldest_us]
        live = int(np.count_nonzero((self._us >= oldest_us) & (self._id != 0)))
        slots = _SLOTS_MIN
        while 3 * slots < 8 * (live + incoming):
            slots *= 2
        self._old_id, self._old_us, self._moved, self._old_filled = self._id, self._us, 0, live
        self._reset(slots)

    def _move(self, slots: int) -> None:
        """Take so many more slots of the old table over."""
        if not len(self._old_id):
            return
        part = slice(self._moved, self._moved + slots)
        keep = (self._old_id[part] != 0) & (self._newest_us - self._old_us[part] <= self.horizon_us)
        ids, times = self._old_id[part][keep], self._old_us[part][keep]
        self._filled += _insert(ids, times, self._id, self._us)
        self._moved += slots
        self._old_filled = max(0, self._old_filled - len(ids))
        if self._moved >= len(self._old_id):
            self._forget_old()

    def admit(self, ids: UInt64, cut_time_us: int) -> npt.NDArray[np.bool_]:
        """Which rows are seen for the first time within the horizon.

        Parameters
        ----------
        ids : uint64 (n,), keys of the event ids, in the order of the round
        cut_time_us : the round's clock

        Returns
        -------
        bool (n,), True where the row goes on
        """
        fresh = np.ones(len(ids), np.bool_)
        if self.horizon_us == 0 or not len(ids):
            return fresh
        self._newest_us = max(self._newest_us, cut_time_us)
        self._make_room(len(ids))
        self._filled += _admit(
            ids,
            np.int64(cut_time_us),
            self._id,
            self._us,
            self._old_id,
            self._old_us,
            np.int64(self.horizon_us),
            fresh,
        )
        self._new.append((ids[fresh], cut_time_us))
        return fresh

    def delta(self) -> dict[str, npt.NDArray[np.generic]]:
        """Entries since the last `delta` or `full`."""
        new, self._new = self._new, []
        ids = [i for i, _ in new]
        times = [np.full(len(i), t, np.int64) for i, t in new]
        return {
            "id": np.concatenate(ids) if ids else np.zeros(0, np.uint64),
            "us": np.concatenate(times) if times else np.zeros(0, np.int64),
        }

    def full(self) -> dict[str, npt.NDArray[np.generic]]:
        """All entries within the horizon."""
        self._new = []
        ids, times = self._live()
        return {"id": ids, "us": times}

    def load(self, arrays: dict[str, npt.NDArray[np.generic]]) -> None:
        """Take in a base or a delta, oldest first."""
        ids = arrays["id"].astype(np.uint64)
        times = arrays["us"].astype(np.int64)
        if len(times):
            self._newest_us = max(self._newest_us, int(times.max()))
        self._make_room(len(ids))
        self._filled += _insert(ids, times, self._id, self._us)
