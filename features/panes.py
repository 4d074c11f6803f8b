"""Panes: the tail of a hot entity's longest window, merged into cells of 10 s of event time.

An entity may have at most so many records (`exact_max`) in its longest window; what is more is
merged into panes, oldest first, but for what another window counts too and for the last five
minutes. A pane holds what the window counts of its records: their number, conditions, values,
sums, different others and largest values. It leaves the window as a whole, with its newest record:
until then the window is longer than it should be, by less than a pane. How often that was, and by
how many records at most, is counted.

The pane that is still open stands in the slot's row. Closed ones lie in an arena of their own, one
block an entity, and change in one thing: what a value that comes again has counted in a pane is
counted by its new record.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.arena import CLASSES, FREE, SMALLEST, allocate, release
from features.exact import add, square
from features.notes import NOTE_WORDS, read_note
from features.pairs import SEQ_BITS
from features.sampling import WORDS, weight_of
from features.speed import kernel

__all__ = [
    "APPROXIMATED",
    "EXACT_FROM_US",
    "EXACT_MAX",
    "EXCESS",
    "LONGEST_US",
    "PANE_BOOK",
    "PANE_HEAD",
    "PANE_KEPT",
    "PANE_PLACES",
    "PANE_TAIL",
    "best_of",
    "clear_panes",
    "copy_panes",
    "count_panes",
    "dissolve",
    "drop_panes",
    "first_number",
    "forget_pairs",
    "free_panes",
    "join_pane",
    "pane_exact_us",
    "pane_layout",
    "pane_words",
    "place_panes",
    "recount",
    "tell_excess",
    "undo_panes",
]

PANE_US = 10_000_000
"""Event time of a pane; asked for: at most 10 s."""

EXACT_US = 300_000_000
"""Records not older than this are never merged; asked for: windows up to 5 minutes are exact."""

APPROXIMATED, EXCESS = FREE + CLASSES, FREE + CLASSES + 1
EXACT_MAX, EXACT_FROM_US, LONGEST_US = EXCESS + 1, EXCESS + 2, EXCESS + 3
PANE_BOOK = LONGEST_US + 1
"""Length of the panes' `book`: the arena's numbers; rows whose longest window was too long, and the
most records too many that one of them can have counted; records above which some are merged, 0 for
none, the age from which they may be, and the longest window."""

# The last places in a slot's row of `ints`: oldest pane of the window and the next one's number;
# the oldest that must not be lost, as KEPT of the records; start, size and first number of the
# block. Late rows take no one back behind what is in the last PANE_PLACES of them.
PANE_TAIL, PANE_HEAD, PANE_KEPT, _START, _CAPACITY, _FIRST = -6, -5, -4, -3, -2, -1
PANE_PLACES, _NUMBERS = 4, 6

# Places in a pane, and in the open one: time of its newest record, number of its first, records.
# Then conditions, values and different others; then sums and largest values (signed).
_TIME, _NUMBER, _COUNT, _COUNTS = 0, 1, 2, 3


def pane_exact_us(windows_us: npt.NDArray[np.int64]) -> int:
    """Age in us from which a ring's records may be merged, where that is below its last window.

    Parameters
    ----------
    windows_us : int64 (windows,), ascending
    """
    return int(max([EXACT_US, *windows_us[:-1].tolist()]))


def pane_words(flags: int, reals: int, maxima: int, pairs: int) -> int:
    """8-byte words of a pane."""
    return _COUNTS + flags + reals + pairs + 4 * reals + maxima


def pane_layout(flags: int, reals: int, maxima: int, pairs: int) -> tuple[int, int]:
    """Columns of `ints` and `floats` that panes add to a slot: the open one, and what is known of
    the closed."""
    return _COUNTS + flags + reals + pairs + _NUMBERS, 4 * reals + 2 * maxima


@kernel
def _open_at(row, flags, reals, pairs):
    """Where the open pane stands in a slot's row of `ints`."""
    return len(row) - _NUMBERS - (_COUNTS + flags + reals + pairs)


@kernel
def first_number(row, longest, shape, arena):
    """Number of the oldest record that the longest window counts; at `longest` stands that of the
    oldest one that has not been merged."""
    flags, reals, _, pairs = shape
    if row[PANE_TAIL] < row[PANE_HEAD]:
        return arena[row[_START] + row[PANE_TAIL] - row[_FIRST], _NUMBER]
    at = _open_at(row, flags, reals, pairs)
    return row[at + _NUMBER] if row[at + _COUNT] > 0 else row[longest]


@kernel
def _take_off(row, sums, w_int, w_float, counts, values, flags, reals, maxima, pairs):
    """Take a pane off the window's counts and sums; `counts` from _COUNT on, `values` its sums."""
    row[w_int + 1] -= counts[0]
    for f in range(flags):
        row[w_int + 2 + f] -= counts[1 + f]
    at = w_int + 2 + flags
    for v in range(reals):
        n = counts[1 + flags + v]
        if n == 0:
            continue
        row[at + v] -= n
        s, q = w_float + 4 * v, 4 * v
        if row[at + v] == 0:
            sums[s] = sums[s + 1] = sums[s + 2] = sums[s + 3] = 0.0
        else:
            sums[s], sums[s + 1] = add(sums[s], sums[s + 1], -values[q], -values[q + 1])
            high, low = add(sums[s + 2], sums[s + 3], -values[q + 2], -values[q + 3])
            sums[s + 2], sums[s + 3] = high, low
    at += reals + maxima
    for p in range(pairs):
        row[at + p] -= counts[1 + flags + reals + p]


@kernel
def _find_best(row, sums, flags, reals, maxima, pairs, arena_reals):
    """Find the largest values of the window's closed panes anew."""
    first = _COUNTS + flags + reals + pairs + 4 * reals
    for m in range(maxima):
        best = np.nan
        for number in range(row[PANE_TAIL], row[PANE_HEAD]):
            x = arena_reals[row[_START] + number - row[_FIRST], first + m]
            if not best >= x and x == x:
                best = x
        sums[len(sums) - maxima + m] = best


@kernel
def drop_panes(row, sums, since_us, w_int, w_float, shape, arena, arena_reals):
    """Let panes leave whose newest record is of `since_us` or before; changes row and sums alone.

    Parameters
    ----------
    row, sums : of the slot
    since_us : when the longest window begins
    w_int, w_float : places of that window in `row` and `sums`
    shape : flags, reals, maxima, pairs
    arena, arena_reals : int64 and float64 (panes, words) of the panes: the same memory
    """
    flags, reals, maxima, pairs = shape
    words = _COUNTS + flags + reals + pairs
    dropped = False
    while row[PANE_TAIL] < row[PANE_HEAD]:
        place = row[_START] + row[PANE_TAIL] - row[_FIRST]
        if arena[place, _TIME] > since_us:
            break
        values = arena_reals[place, words:]
        _take_off(row, sums, w_int, w_float, arena[place, _COUNT:], values, flags, reals, maxima,
                  pairs)  # fmt: skip
        row[PANE_TAIL] += 1
        dropped = True
    if dropped:
        _find_best(row, sums, flags, reals, maxima, pairs, arena_reals)
    at, s_at = _open_at(row, flags, reals, pairs), len(sums) - 4 * reals - 2 * maxima
    if row[PANE_TAIL] == row[PANE_HEAD] and row[at + _COUNT] > 0 and row[at + _TIME] <= since_us:
        _take_off(row, sums, w_int, w_float, row[at + _COUNT :], sums[s_at:], flags, reals, maxima,
                  pairs)  # fmt: skip
        row[at + _COUNT] = 0


@kernel
def free_panes(row, book, arena):
    """Give the block back of a slot that keeps no pane."""
    if row[_CAPACITY] > 0 and row[PANE_KEPT] == row[PANE_HEAD]:
        release(row[_START], row[_CAPACITY], book, arena)
        row[_CAPACITY] = row[_START] = row[_FIRST] = 0


@kernel
def tell_excess(row, since_us, shape, book, arena):
    """Count a row whose longest window, which begins at `since_us`, may hold older records."""
    flags, reals, _, pairs = shape
    at = _open_at(row, flags, reals, pairs)
    if row[PANE_TAIL] < row[PANE_HEAD]:
        place = row[_START] + row[PANE_TAIL] - row[_FIRST]
        time_us, count = arena[place, _TIME], arena[place, _COUNT]
    else:
        time_us, count = row[at + _TIME], row[at + _COUNT]
    # All but its newest record may be older than the window.
    if count > 1 and time_us // PANE_US * PANE_US <= since_us:
        book[APPROXIMATED] += 1
        book[EXCESS] = max(book[EXCESS], count - 1)


@kernel
def close_pane(row, sums, shape, book, arena, arena_reals):
    """Put the open pane behind the closed ones; False where their arena is full."""
    flags, reals, maxima, pairs = shape
    if row[PANE_HEAD] - row[_FIRST] >= row[_CAPACITY]:
        kept = row[PANE_HEAD] - row[PANE_KEPT]
        start, capacity = row[_START], row[_CAPACITY]
        if capacity - kept < max(kept // 8, 1) or capacity > 4 * max(kept, SMALLEST):
            start, capacity = allocate(kept + max(kept // 2, SMALLEST), book, arena)
            if start < 0:
                return False
        a = row[_START] + row[PANE_KEPT] - row[_FIRST]
        for k in range(kept):
            for c in range(arena.shape[1]):
                arena[start + k, c] = arena[a + k, c]
        if start != row[_START] and row[_CAPACITY] > 0:
            release(row[_START], row[_CAPACITY], book, arena)
        row[_START], row[_CAPACITY], row[_FIRST] = start, capacity, row[PANE_KEPT]
    place = row[_START] + row[PANE_HEAD] - row[_FIRST]
    words, at = _COUNTS + flags + reals + pairs, _open_at(row, flags, reals, pairs)
    for k in range(words):
        arena[place, k] = row[at + k]
    s_at = len(sums) - 4 * reals - 2 * maxima
    for k in range(4 * reals + maxima):
        arena_reals[place, words + k] = sums[s_at + k]
    for m in range(maxima):
        x, best = sums[s_at + 4 * reals + m], len(sums) - maxima + m
        if row[PANE_TAIL] == row[PANE_HEAD] or (not sums[best] >= x and x == x):
            sums[best] = x
    row[PANE_HEAD] += 1
    row[at + _COUNT] = 0
    return True


@kernel
def join_pane(
    row, sums, time_us, number, bits, place, max_columns, signs, shape, book, arena, arena_reals,
    records
):  # fmt: skip
    """Merge the oldest record into the open pane, or into a new one; False where there is no room.

    Parameters
    ----------
    time_us, number, bits, place : of the record
    records : float64 (records, words), of the ring's records, reals last
    """
    flags, reals, maxima, pairs = shape
    at, s_at = _open_at(row, flags, reals, pairs), len(sums) - 4 * reals - 2 * maxima
    other = row[at + _TIME] // PANE_US != time_us // PANE_US
    if row[at + _COUNT] > 0 and other and not close_pane(row, sums, shape, book, arena,
                                                         arena_reals):  # fmt: skip
        return False
    if row[at + _COUNT] == 0:
        row[at + _NUMBER] = number
        for k in range(_COUNTS, _COUNTS + flags + reals + pairs):
            row[at + k] = 0
        for k in range(4 * reals):
            sums[s_at + k] = 0.0
        for k in range(4 * reals, 4 * reals + maxima):
            sums[s_at + k] = np.nan
    row[at + _TIME] = time_us
    row[at + _COUNT] += 1
    to = at + _COUNTS
    for f in range(flags):
        row[to + f] += (bits >> (2 * pairs + f)) & 1
    first = records.shape[1] - reals
    for v in range(reals):
        x, s = records[place, first + v], s_at + 4 * v
        if x == x:
            row[to + flags + v] += 1
            sums[s], sums[s + 1] = add(sums[s], sums[s + 1], x, 0.0)
            q, q_low = square(x)
            sums[s + 2], sums[s + 3] = add(sums[s + 2], sums[s + 3], q, q_low)
    for m in range(maxima):
        x, s = signs[m] * records[place, first + max_columns[m]], s_at + 4 * reals + m
        if not sums[s] >= x and x == x:
            sums[s] = x
    for p in range(pairs):
        if not (bits >> (2 * p)) & 1 and (bits >> (2 * p + 1)) & 1:
            row[to + flags + reals + p] += weight_of(row[at - WORDS * pairs + p], number)
    return True


@kernel
def best_of(row, sums, m, shape):
    """Largest signed value that panes of the window have, NaN for none."""
    flags, reals, maxima, pairs = shape
    found = np.nan
    if row[PANE_TAIL] < row[PANE_HEAD]:
        found = sums[len(sums) - maxima + m]
    if row[_open_at(row, flags, reals, pairs) + _COUNT] > 0:
        x = sums[len(sums) - 2 * maxima + m]
        if not found >= x and x == x:
            found = x
    return found


@kernel
def _pane_of(row, number, arena):
    """Place of the closed pane that a record is in, -1 for none that is there."""
    low, high = row[PANE_KEPT], row[PANE_HEAD]
    offset = row[_START] - row[_FIRST]
    if low == high or number < arena[offset + low, _NUMBER]:
        return np.int64(-1)
    while high - low > 1:
        middle = (low + high) >> 1
        if arena[offset + middle, _NUMBER] <= number:
            low = middle
        else:
            high = middle
    place = offset + low
    return place if number < arena[place, _NUMBER] + arena[place, _COUNT] else np.int64(-1)


@kernel
def recount(row, number, p, by, shape, arena):
    """Change what the pane that a record is in, if there is one, counts of different others.

    A value whose last record has been merged came again: its pane counts it no longer.
    """
    flags, reals, _, pairs = shape
    at = _open_at(row, flags, reals, pairs)
    if 0 <= number - row[at + _NUMBER] < row[at + _COUNT]:
        row[at + _COUNTS + flags + reals + p] += by
        return
    place = _pane_of(row, number, arena)
    if place >= 0:
        arena[place, _COUNTS + flags + reals + p] += by


@kernel
def forget_pairs(row, p, shape, arena):
    """Let no pane of a slot's longest window count different others of a column.

    Those that have left it are kept for late rows, as they were when they left.
    """
    flags, reals, _, pairs = shape
    row[_open_at(row, flags, reals, pairs) + _COUNTS + flags + reals + p] = 0
    for number in range(row[PANE_TAIL], row[PANE_HEAD]):
        place = row[_START] + number - row[_FIRST]
        arena[place, _COUNTS + flags + reals + p] = 0


@kernel
def undo_panes(slots, head, before, column, feeds, others, ints, shape, arena):
    """Let closed panes count what rows have uncounted.

    A pane that was open, or not there, when such a row came goes with the checkpoint.

    Parameters
    ----------
    slots, head : of the rows, in order
    before, column : notes, and where the ring's begin, see `features.windows.run_ring`
    feeds : bool (event types,)
    ints : of the rings, as in the checkpoints
    shape : flags, reals, maxima, pairs
    """
    flags, reals, _, _ = shape
    for i in range(len(slots)):
        if not feeds[head[i, 2]]:
            continue
        row = ints[slots[i]]
        if row[PANE_KEPT] == row[PANE_HEAD]:
            continue
        # A record that was noted may be newer than those of panes.
        place = row[_START] + row[PANE_HEAD] - 1 - row[_FIRST]
        newest = arena[place, _NUMBER] + (np.int64(1) << (SEQ_BITS - 1))
        for p in range(len(others)):
            if head[i, others[p]] == 0:
                continue
            seq, level, _ = read_note(before, i, column + NOTE_WORDS * p, newest)
            if seq < 0:
                continue
            place = _pane_of(row, seq, arena)
            if place >= 0:
                # The level it had when it was uncounted: that of the checkpoint may be another one.
                arena[place, _COUNTS + flags + reals + p] += np.int64(1) << level


@kernel
def clear_panes(slots, ints, book, arena):
    """Give back the panes of slots that go to other entities; before their rows are cleared."""
    for i in range(len(slots)):
        row = ints[slots[i]]
        if row[_CAPACITY] > 0:
            release(row[_START], row[_CAPACITY], book, arena)


@kernel
def count_panes(slots, ints):
    """Closed panes of slots."""
    found = np.int64(0)
    for i in range(len(slots)):
        found += ints[slots[i], PANE_HEAD] - ints[slots[i], PANE_KEPT]
    return found


@kernel
def copy_panes(slots, ints, arena, rows, panes):
    """Copy the closed panes of slots, one slot after another; their places in `rows` are 0."""
    taken = 0
    for i in range(len(slots)):
        row = ints[slots[i]]
        place = row[_START] + row[PANE_KEPT] - row[_FIRST]
        for k in range(row[PANE_HEAD] - row[PANE_KEPT]):
            for c in range(arena.shape[1]):
                panes[taken, c] = arena[place + k, c]
            taken += 1
        rows[i, _START] = rows[i, _CAPACITY] = rows[i, _FIRST] = 0


@kernel
def place_panes(slots, panes, ints, before, book, arena):
    """Put saved panes back in place of those that are there; the rows are back already.

    The arena has room for all of them anew.

    Parameters
    ----------
    before : int64 (n, PANE_PLACES), the last columns of the rows as they were
    """
    taken = 0
    for i in range(len(slots)):
        row = ints[slots[i]]
        if before[i, _CAPACITY] > 0:
            release(before[i, _START], before[i, _CAPACITY], book, arena)
        row[_START] = row[_CAPACITY] = row[_FIRST] = 0
        kept = row[PANE_HEAD] - row[PANE_KEPT]
        if kept > 0:
            row[_START], row[_CAPACITY] = allocate(max(kept, SMALLEST), book, arena)
            row[_FIRST] = row[PANE_KEPT]
        for k in range(kept):
            for c in range(arena.shape[1]):
                arena[row[_START] + k, c] = panes[taken, c]
            taken += 1


@kernel
def dissolve(rows, floats, panes, panes_reals, w_int, w_float, shape):
    """Let saved rows count only records that have not been merged; returns how many had panes.

    Parameters
    ----------
    rows, floats : of a snapshot with panes, changed
    panes, panes_reals : int64 and float64 (n, words) of its panes, slot by slot: the same memory
    """
    flags, reals, maxima, pairs = shape
    words = _COUNTS + flags + reals + pairs
    taken, changed = 0, 0
    for i in range(len(rows)):
        row, sums = rows[i], floats[i]
        had = False
        for number in range(row[PANE_KEPT], row[PANE_HEAD]):
            if number >= row[PANE_TAIL]:
                _take_off(row, sums, w_int, w_float, panes[taken, _COUNT:],
                          panes_reals[taken, words:], flags, reals, maxima, pairs)  # fmt: skip
                had = True
            taken += 1
        at, s_at = _open_at(row, flags, reals, pairs), len(sums) - 4 * reals - 2 * maxima
        if row[at + _COUNT] > 0:
            _take_off(row, sums, w_int, w_float, row[at + _COUNT :], sums[s_at:], flags, reals,
                      maxima, pairs)  # fmt: skip
            had = True
        changed += had
    return changed
