"""Exact sliding windows (t - w, t] over one ring of records per entity, and the pairs it was in.

An entity's events stand once in a ring in an arena; each window is a pointer to its oldest event
and running counts and sums of what lies between. What enters is added, what leaves is taken off,
in double-double arithmetic (`features.exact`). The largest and the distinct are kept the same way:
a mark on records that can still become the largest (`features.maxima`), and one on records whose
value has come again.

A record is one row of the arena: words of its time, and of its conditions and marks, and its reals
behind them. Where the longest window is short enough the words have 32 bits: the low bits of a time
say how long before the ring's newest record it was.

A ring lies in one block of the arena, in order, without a gap. Where it has come to the end of the
block, what still counts is moved to the beginning, or to a block that fits it better.

A ring's table of pairs (`features.pairs`) holds, for each value of another column met with the
entity, when it was last met: this makes the distinct count O(1), and gives first times. Of an
entity that meets very many it holds a sample (`features.sampling`).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.arena import CLASSES, FREE, SMALLEST, allocate, release
from features.exact import add, square, variance
from features.maxima import is_candidate, link_newest, links_at
from features.notes import NOTE_WORDS, UNSEEN, write_note
from features.pairs import (
    BOUND,
    CROWDED,
    FILLED,
    KEY,
    LEVELED,
    ROOM,
    STAMP,
    WHEN,
    WHOSE,
    find_pair,
    met_at,
    pair_home,
    pair_key,
    stamped,
    whose,
)
from features.panes import (
    EXACT_FROM_US,
    EXACT_MAX,
    LONGEST_US,
    PANE_KEPT,
    PANE_TAIL,
    best_of,
    drop_panes,
    first_number,
    free_panes,
    join_pane,
    pane_layout,
    recount,
    tell_excess,
)
from features.sampling import (
    WORDS,
    ceiling,
    crowded,
    level_of,
    now_of,
    sampled,
    settle_levels,
    weight_of,
)
from features.speed import AHEAD, borrowed, inlined, kernel, prefetch, word_bytes

__all__ = [
    "BOOK",
    "BORN",
    "CAPACITY",
    "CAPACITY_MIN",
    "FLAGS_MAX",
    "HEAD",
    "KEPT",
    "LIMIT",
    "LOGGED",
    "NARROW_US",
    "NEWEST",
    "NOTED",
    "BASE",
    "PAIRS_MAX",
    "PLACED",
    "SAVED",
    "SHARED",
    "age_of",
    "levels_at",
    "longest_at",
    "places_at",
    "read_ring",
    "room_for",
    "run_ring",
    "slot_layout",
]

CAPACITY_MIN = SMALLEST
"""Records a ring starts with; chosen: most cards pay a few times an hour at most."""

FLAGS_MAX, PAIRS_MAX = 30, 16
"""Conditions and columns of pairs a ring can have. A record has two bits a column of pairs, and
above them one a condition: 62 in all at most."""

NARROW_US = 1 << 32
"""Longest window whose records need only the low 32 bits of their times: 71.6 minutes."""

SPARE, SPARE_MIN = 4, 8
"""A block has room for a 4th more than what counts when a ring moves there; where less than an
8th would be free, it moves to another. Measured, see docs/state.md: with an 8th and a 16th memory
is less by 3 % of the whole, and the kernel moves records twice as often."""

NEARLY_EQUAL = 2.0**-60
"""A variance below this share of the mean square may be what is left of values that have passed:
at most 2^-104 of their squares stays in the sums, so this holds after values a million times
larger."""

NEARLY_EQUAL_MAX = 64
"""Newest records that are asked whether all values are equal; where they are, those before them
are taken to be so. Chosen: 50 ns, and only for values that differ by less than 1e-9 of their
size."""

# Places in `book`, behind the arena's own.
LOGGED, PLACED, NOTED = FREE + CLASSES, FREE + CLASSES + 1, FREE + CLASSES + 2
BOOK = NOTED + 1
"""Length of `book`: the arena's numbers, entries of the log of marks, where late rows are put in
their place (`features.late`) the number of the first row, else 0, and the column of the ring's
first note."""

# Places in a slot's row of `ints`.
BASE, CAPACITY, HEAD, SAVED, KEPT, BORN, LIMIT, NEWEST, SHARED = 0, 1, 2, 3, 4, 5, 6, 7, 8
# Records are numbered from 0 by slot; HEAD is the next one's number. A record's place in the arena
# is BASE plus its number; the block of CAPACITY records has none for LIMIT and above. NEWEST is the
# time of the newest record. Those from SAVED on are in no snapshot yet: whoever changes or takes
# back older ones lowers SAVED to the first of them. KEPT is the oldest that must not be lost: the
# longest window's, or what `features.late` may go back to. Pairs last met before BORN were another
# entity's, which had the slot (`features.expiry`).
# After SHARED: distinct-ever of each pair column, the number after the newest candidate of each
# column of maxima (0 for none), then the windows, then levels of the pair columns and their
# ceilings (`features.sampling`). A window has the number of its oldest candidate, its maximum,
# where it has the newest.


def slot_layout(
    windows: int, flags: int, reals: int, maxima: int, pairs: int, panes: bool = False
) -> tuple[int, int]:
    """Columns of `ints` and `floats` that a ring of this shape needs per slot; those of panes
    (`features.panes`) stand last."""
    stride = 2 + flags + reals + maxima + pairs
    more, more_floats = pane_layout(flags, reals, maxima, pairs) if panes else (0, 0)
    return (
        SHARED + pairs + maxima + windows * stride + WORDS * pairs + more,
        windows * reals * 4 + more_floats,
    )


def longest_at(windows: int, flags: int, reals: int, maxima: int, pairs: int) -> int:
    """Column of a slot's row of `ints` with the number of the longest window's oldest record."""
    return SHARED + pairs + maxima + (windows - 1) * (2 + flags + reals + maxima + pairs)


def levels_at(windows: int, flags: int, reals: int, maxima: int, pairs: int) -> int:
    """Column of a slot's row of `ints` with the levels of its first pair column."""
    return SHARED + pairs + maxima + windows * (2 + flags + reals + maxima + pairs)


def places_at(windows: int, flags: int, reals: int, maxima: int, pairs: int) -> list[int]:
    """Columns of a slot's row of `ints` that say where its records lie, and which are maxima."""
    first = SHARED + pairs + maxima + 2 + flags + reals
    stride = 2 + flags + reals + maxima + pairs
    ends = range(SHARED + pairs, SHARED + pairs + maxima)
    fronts = (first + w * stride + m for w in range(windows) for m in range(maxima))
    return [BASE, CAPACITY, LIMIT, *ends, *fronts]


@inlined
def age_of(newest_us, place, arena):
    """How long before a ring's newest record the one at `place` was, in us."""
    if word_bytes(arena) == 4:
        return np.int64(np.uint32(np.uint32(newest_us) - arena[place, 0]))
    return np.int64(newest_us - arena[place, 0])


@kernel
def room_for(records):
    """Records of the block that fits a ring of so many, the next ones included."""
    return max(records + max(records // SPARE, 2), CAPACITY_MIN)


@kernel
def make_room(row, reals, book, arena, arena_reals):
    """Move what counts of a ring whose block is at its end; False where the arena is full."""
    oldest, capacity = row[KEPT], row[CAPACITY]
    records = row[HEAD] - oldest
    start = before = row[BASE] + row[LIMIT] - capacity
    wanted = room_for(records)
    moved = capacity < max(records + max(records // SPARE_MIN, 1), CAPACITY_MIN)
    moved |= capacity > 2 * wanted
    if moved:
        start, capacity = allocate(wanted, book, arena)
        if start < 0:
            return False
    a, first = row[BASE] + oldest, arena_reals.shape[1] - reals
    words = arena.shape[1] - reals * (8 // word_bytes(arena))
    for k in range(records):
        for c in range(words):
            arena[start + k, c] = arena[a + k, c]
        for v in range(first, first + reals):
            arena_reals[start + k, v] = arena_reals[a + k, v]
    if moved and row[CAPACITY] > 0:
        release(before, row[CAPACITY], book, arena)
    row[BASE], row[CAPACITY], row[LIMIT] = start - oldest, capacity, oldest + capacity
    return True


@inlined
def _leave(
    row, sums, w_int, w_float, levels, place, flags, reals, pairs, maxima, arena_ints, arena_reals
):
    """Take the window's oldest record, at `place` of the arena, off its counts and sums.

    `levels` is the place of the row's, 0 where it has none.
    """
    bits, number = np.int64(arena_ints[place, 1]), row[w_int]
    row[w_int] += 1
    row[w_int + 1] -= 1
    for f in range(flags):
        row[w_int + 2 + f] -= (bits >> (2 * pairs + f)) & 1
    at = w_int + 2 + flags
    first = arena_reals.shape[1] - reals
    for v in range(reals):
        x = arena_reals[place, first + v]
        if x == x:
            row[at + v] -= 1
            s = w_float + 4 * v
            if row[at + v] == 0:
                sums[s] = sums[s + 1] = sums[s + 2] = sums[s + 3] = 0.0
            else:
                sums[s], sums[s + 1] = add(sums[s], sums[s + 1], -x, 0.0)
                q, q_low = square(x)
                sums[s + 2], sums[s + 3] = add(sums[s + 2], sums[s + 3], -q, -q_low)
    at += reals + maxima
    for p in range(pairs):
        if not (bits >> (2 * p)) & 1 and (bits >> (2 * p + 1)) & 1:
            row[at + p] -= weight_of(row[levels + p], number) if levels > 0 else 1


@inlined
def _empty(row, sums, w_int, w_float, flags, reals, maxima, pairs):
    """Take all records off a window's counts and sums."""
    row[w_int] = row[HEAD]
    stride = 2 + flags + reals + maxima + pairs
    for k in range(1, 2 + flags + reals):
        row[w_int + k] = 0
    for k in range(stride - pairs, stride):
        row[w_int + k] = 0
    for k in range(4 * reals):
        sums[w_float + k] = 0.0


@inlined
def _advance(
    row, sums, time_us, windows_us, levels, flags, reals, pairs, maxima, links, arena_ints,
    arena_reals
):  # fmt: skip
    """Let every window end at `time_us`: drop records of exactly its length ago and older."""
    stride = 2 + flags + reals + maxima + pairs
    newest = row[NEWEST]
    for w in range(len(windows_us)):
        w_int = SHARED + pairs + maxima + w * stride
        # How long before the newest record one must be to have left.
        left = windows_us[w] - (time_us - newest)
        if left <= 0 and row[w_int + 1] > 0:
            _empty(row, sums, w_int, w * reals * 4, flags, reals, maxima, pairs)
        while row[w_int] < row[HEAD]:
            place = row[BASE] + row[w_int]
            if age_of(newest, place, arena_ints) < left:
                break
            _leave(
                row,
                sums,
                w_int,
                w * reals * 4,
                levels,
                place,
                flags,
                reals,
                pairs,
                maxima,
                arena_ints,
                arena_reals,
            )
        for m in range(maxima):
            at = w_int + 2 + flags + reals + m
            if row[at] < row[w_int] < row[SHARED + pairs + m]:
                row[at] = row[w_int]
                while not is_candidate(row[BASE] + row[at], m, links, arena_ints):
                    row[at] += 1


@inlined
def _enter(
    row,
    sums,
    windows,
    bits,
    place,
    since,
    levels,
    flags,
    reals,
    pairs,
    maxima,
    met,
    pairs_book,
    arena_reals,
):
    """Add the newest record, at `place` of the arena, to every window's counts and sums.

    `since` is the number of the oldest record that the longest window counts; for `levels` see
    `_leave`.
    """
    bound = pairs_book[BOUND] if pairs_book[BOUND] > 0 else np.int64(1) << 62
    stride = 2 + flags + reals + maxima + pairs
    for w in range(windows):
        w_int = SHARED + pairs + maxima + w * stride
        row[w_int + 1] += 1
        for f in range(flags):
            row[w_int + 2 + f] += (bits >> (2 * pairs + f)) & 1
        at = w_int + 2 + flags
        for v in range(reals):
            x = arena_reals[place, arena_reals.shape[1] - reals + v]
            if x == x:
                row[at + v] += 1
                s = w * reals * 4 + 4 * v
                sums[s], sums[s + 1] = add(sums[s], sums[s + 1], x, 0.0)
                q, q_low = square(x)
                sums[s + 2], sums[s + 3] = add(sums[s + 2], sums[s + 3], q, q_low)
        at += reals + maxima
        for p in range(pairs):
            if met[p, 2] < 0:
                continue
            # A value last met within the window is counted already, by the level it had then.
            if met[p, 4] < (since if w == windows - 1 else row[w_int]):
                row[at + p] += np.int64(1) << now_of(row[levels + p]) if levels > 0 else 1
                if row[at + p] > bound:
                    pairs_book[LEVELED] = 1
            elif levels > 0:
                row[at + p] += np.int64(1) << now_of(row[levels + p])
                row[at + p] -= weight_of(row[levels + p], met[p, 4])


@inlined
def _link(
    row, windows, longest, m, column, sign, seq, flags, reals, pairs, maxima, links, arena_ints,
    arena_reals
):  # fmt: skip
    """Let the newest record be a candidate for a maximum: smaller ones before it are none."""
    value = arena_reals.shape[1] - reals + column
    found = link_newest(row[BASE], seq, row[longest], m, value, sign, links, arena_ints,
                        arena_reals)  # fmt: skip
    x = arena_reals[row[BASE] + seq, value]
    if x == x:
        last, stride = row[SHARED + pairs + m] - 1, 2 + flags + reals + maxima + pairs
        for w in range(windows):
            w_int = SHARED + pairs + maxima + w * stride
            at = w_int + 2 + flags + reals + m
            if last < row[w_int] or row[at] > found:
                row[at] = seq
        row[SHARED + pairs + m] = seq + 1


@inlined
def _look(i, row, slot, time_us, head, others, ttl_us, levels, pairs_table, met):
    """Find row i's pairs: fills met[p] = (place, key, known, last time, last number, new).

    known is -1 where the row names no other or one whose pair is not kept, 1 where the pair was met
    within its time, else 0; new is how many pairs a new one stands for, 0 where it may be old.
    """
    for p in range(len(others)):
        value = head[i, others[p]]
        met[p, 2], met[p, 5] = -1, 1
        if value == 0:
            continue
        if levels > 0:
            if not sampled(value, now_of(row[levels + p])):
                continue
            high = ceiling(row[levels + len(others) + p])
            met[p, 5] = np.int64(1) << high if sampled(value, high) else 0
        key = pair_key(slot, p, value)
        at = find_pair(key, pairs_table)
        met[p, 0], met[p, 1], met[p, 2], met[p, 4] = at, key, 0, -1
        if pairs_table[at, KEY] != 0:
            seq, last_us = met_at(pairs_table[at], row[HEAD])
            if seq >= row[BORN]:
                met[p, 3], met[p, 4] = last_us, seq
                met[p, 2] = time_us - last_us <= ttl_us[p]


@inlined
def _note(row, at, column, levels, pairs, met, before):
    """Write down what the table said of a row's pairs, to be undone by `features.late`."""
    for p in range(pairs):
        seq, level = np.int64(UNSEEN), np.int64(0)
        if met[p, 2] >= 0:
            seq = met[p, 4]
            if levels > 0:
                level = level_of(row[levels + p], seq)
        write_note(before, at, column + NOTE_WORDS * p, seq, level, met[p, 3])


@inlined
def _meet(
    row, slot, time_us, seq, oldest, pairs, met, pairs_table, pairs_book, marked, book, arena_ints,
    levels, exact_max, shape, panes
):  # fmt: skip
    """Note the newest record's pairs; returns its marks.

    A record carries for each pair column whether it has a value, and whether the value came again.
    What comes to a record that is in a snapshot already goes to the log of marks, too.
    """
    marks = np.int64(0)
    for p in range(pairs):
        if met[p, 2] < 0:
            continue
        marks |= np.int64(1) << (2 * p + 1)
        at = met[p, 0]
        if pairs_table[at, KEY] != 0 and pairs_table[at, KEY] != met[p, 1]:
            # The free place that was found has gone to another pair of this very row.
            at = find_pair(met[p, 1], pairs_table)
        if pairs_table[at, KEY] == 0:
            pairs_table[at, KEY] = met[p, 1]
            pairs_book[FILLED] += 1
        elif met[p, 4] >= oldest:
            place = row[BASE] + met[p, 4]
            arena_ints[place, 1] |= np.int64(1) << (2 * p)
            if met[p, 4] < row[SAVED]:
                marked[book[LOGGED], 0] = slot
                marked[book[LOGGED], 1] = met[p, 4] * 16 + p
                book[LOGGED] += 1
        elif exact_max > 0 and met[p, 4] >= 0:
            weight = weight_of(row[levels + p], met[p, 4]) if levels > 0 else np.int64(1)
            recount(row, met[p, 4], p, -weight, shape, panes)
        pairs_table[at, WHOSE] = whose(slot, p, seq)
        pairs_table[at, WHEN] = stamped(time_us, pairs_book[STAMP])
        if met[p, 2] == 0:
            row[SHARED + p] += met[p, 5]
    return marks


@kernel
def _deviation(row, sums, s, n, oldest, column, arena_reals):
    """Sample standard deviation of a window's n values; of equal ones it is 0, not a residue.

    Where the sums say that the values are nearly equal, the newest records are asked themselves.
    """
    found = variance(n, sums[s], sums[s + 1], sums[s + 2], sums[s + 3])
    if found == 0.0 or found * (n - 1.0) >= NEARLY_EQUAL * sums[s + 2]:
        return np.sqrt(found)
    seen, first, total, squares = 0, 0.0, 0.0, 0.0
    for seq in range(row[HEAD] - 1, max(oldest, row[HEAD] - NEARLY_EQUAL_MAX) - 1, -1):
        x = arena_reals[row[BASE] + seq, column]
        if x == x:
            if seen == 0:
                first = x
            seen += 1
            total += x - first
            squares += (x - first) * (x - first)
    if seen == n:
        found = max(squares - total * total / n, 0.0) / (n - 1.0)
    elif seen > 1 and squares == 0.0:
        found = 0.0
    return np.sqrt(found)


@inlined
def _emit(
    row,
    sums,
    i,
    e0,
    e1,
    plan,
    flags,
    reals,
    maxima,
    pairs,
    max_columns,
    met,
    fresh,
    time_us,
    windows,
    arena_ints,
    arena_reals,
    exact_max,
    pane_shape,
    out,
):
    """Write the features that row i's event type reads."""
    stride = 2 + flags + reals + maxima + pairs
    first = arena_reals.shape[1] - reals
    for k in range(e0, e1):
        op, w, c, to = plan[k, 0], plan[k, 1], plan[k, 2], plan[k, 3]
        w_int = SHARED + pairs + maxima + w * stride
        count = row[w_int + 1]
        if op == 0:
            out[i, to] = count if c < 0 else row[w_int + 2 + c]
        elif op == 1:
            out[i, to] = row[w_int + 2 + c] / count if count > 0 else np.nan
        elif op <= 4:
            n = row[w_int + 2 + flags + c]
            s = (w * reals + c) * 4
            if op == 2:
                out[i, to] = sums[s]
            elif op == 3:
                out[i, to] = sums[s] / n if n > 0 else np.nan
            elif n > 1:
                out[i, to] = _deviation(row, sums, s, n, row[w_int], first + c, arena_reals)
        elif op <= 6:
            if row[w_int] < row[SHARED + pairs + c]:
                place = row[BASE] + row[w_int + 2 + flags + reals + c]
                out[i, to] = arena_reals[place, first + max_columns[c]]
            if exact_max > 0 and w_int + stride == SHARED + pairs + maxima + windows * stride:
                sign = 1.0 if op == 5 else -1.0
                x = best_of(row, sums, c, pane_shape)
                if x == x and not sign * out[i, to] >= x:
                    out[i, to] = sign * x
        elif op == 7:
            out[i, to] = row[w_int + 2 + flags + reals + maxima + c]
        elif op == 8:
            # An estimate may be more than there are events.
            distinct = min(row[w_int + 2 + flags + reals + maxima + c], count)
            out[i, to] = distinct / count if count > 0 else np.nan
        elif op == 9:
            if met[c, 2] == 1 or (met[c, 2] == 0 and met[c, 5] > 0 and not fresh):
                out[i, to] = 1.0 - met[c, 2]
        elif op == 10:
            if met[c, 2] == 1:
                out[i, to] = (time_us - met[c, 3]) / 1e6
        else:
            out[i, to] = row[SHARED + c]


@inlined
def _leveled(row, levels, pairs):
    """Whether any column of pairs has a level, or had one."""
    found = np.int64(0)
    for k in range(WORDS * pairs):
        found |= row[levels + k]
    return found != 0


@inlined
def _ask(
    i,
    slots,
    head,
    others,
    ints,
    floats,
    arena_ints,
    pairs_table,
    first,
    stride,
    windows,
):
    """Ask for memory of rows to come: far ahead what says where, nearer what is there."""
    far, near = i + 2 * AHEAD, i + AHEAD
    if far < len(slots):
        prefetch(ints, slots[far])
        prefetch(floats, slots[far])
        for p in range(len(others)):
            key = pair_key(slots[far], p, head[far, others[p]])
            prefetch(pairs_table, pair_home(key, len(pairs_table)))
    if near < len(slots):
        row = ints[slots[near]]
        if row[CAPACITY] > 0:
            prefetch(arena_ints, row[BASE] + row[HEAD])
            for w in range(windows):
                prefetch(arena_ints, row[BASE] + row[first + w * stride])


@inlined
def _let_go(row, longest, book, arena_ints):
    """Keep no records that no window counts, unless a late row may; nor a block for none."""
    if not book[PLACED]:
        row[KEPT] = row[longest]
    if row[CAPACITY] > CAPACITY_MIN and row[KEPT] == row[HEAD]:
        start = row[BASE] + row[LIMIT] - row[CAPACITY]
        release(start, row[CAPACITY], book, arena_ints)
        row[BASE] = row[CAPACITY] = row[LIMIT] = 0


@inlined
def _shape(config):
    """Windows, flags, reals, maxima, pairs; width of a window's columns; place of the first."""
    windows, flags, reals, maxima, pairs = config[0], config[1], config[2], config[3], config[4]
    stride = 2 + flags + reals + maxima + pairs
    return windows, flags, reals, maxima, pairs, stride, SHARED + pairs + maxima


@inlined
def _parts(config, windows, flags, reals, maxima, pairs):
    """The lists in a ring's config, in the order in which `Ring.config` puts them."""
    a = 5 + windows
    b = a + flags
    c = b + reals
    d = c + 2 * maxima
    e = d + pairs
    return (
        config[5:a],  # windows in us
        config[a:b],  # bits of the conditions
        config[b:c],  # columns of the reals
        config[c : c + maxima],  # columns of the maxima
        config[c + maxima : d],  # their signs
        config[d:e],  # columns of the other keys
        config[e : e + pairs],  # how long a pair is known
        config[e + pairs :],  # event types that enter
    )


@inlined
def _record(
    row, i, time_us, bits, pairs, flag_bits, columns, head, reals_in, arena_ints, arena_reals
):
    """Write row i as the ring's newest record; returns its place and its bits."""
    place = row[BASE] + row[HEAD]
    for f in range(len(flag_bits)):
        bits |= ((head[i, 7] >> flag_bits[f]) & 1) << (2 * pairs + f)
    arena_ints[place, 0] = time_us
    arena_ints[place, 1] = bits
    first = arena_reals.shape[1] - len(columns)
    for v in range(len(columns)):
        arena_reals[place, first + v] = reals_in[i, columns[v]]
    row[HEAD] += 1
    row[NEWEST] = time_us
    return place, bits


@inlined
def _take_in(
    row, sums, i, slot, time_us, head, reals_in, windows, longest, levels, shape, flag_bits,
    columns, max_columns, signs, met, pairs_table, pairs_book, marked, book, links, arena_ints,
    arena_reals, exact_max, panes
):  # fmt: skip
    """Let row i enter: its pairs are met, and it is the newest record of every window."""
    flags, reals, maxima, pairs = shape
    seq = row[HEAD]
    bits = _meet(row, slot, time_us, seq, row[longest], pairs, met, pairs_table, pairs_book, marked,
                 book, arena_ints, levels, exact_max, shape, panes)  # fmt: skip
    place, bits = _record(row, i, time_us, bits, pairs, flag_bits, columns, head, reals_in,
                          arena_ints, arena_reals)  # fmt: skip
    since = row[longest] if exact_max == 0 else first_number(row, longest, shape, panes)
    _enter(row, sums, windows, bits, place, since, levels, flags, reals, pairs, maxima, met,
           pairs_book, arena_reals)  # fmt: skip
    for m in range(maxima):
        _link(row, windows, longest, m, max_columns[m], signs[m], seq, flags, reals, pairs, maxima,
              links, arena_ints, arena_reals)  # fmt: skip


@inlined
def _exact_max(panes, panes_book):
    """Records above which some are merged; 0, for the compiler to see, where there are no panes."""
    return panes_book[EXACT_MAX] if word_bytes(panes) == 8 else 0


@kernel
def _thin(
    row, sums, time_us, windows, longest, placed, max_columns, signs, shape, arena_ints,
    arena_reals, panes, panes_reals, panes_book
):  # fmt: skip
    """Let panes leave the longest window, and merge records it has too many of.

    Called before `_advance`. Returns False where there is no room for a pane.
    """
    w_float = 4 * (windows - 1) * shape[1]
    window_us, exact_us = panes_book[LONGEST_US], panes_book[EXACT_FROM_US]
    drop_panes(row, sums, time_us - window_us, longest, w_float, shape, panes, panes_reals)
    if not placed:
        row[PANE_KEPT] = row[PANE_TAIL]
    free_panes(row, panes_book, panes)
    while row[HEAD] - row[longest] > panes_book[EXACT_MAX]:
        place = row[BASE] + row[longest]
        record_us = row[NEWEST] - age_of(row[NEWEST], place, arena_ints)
        # What is older than the window, where there are no panes, leaves it in `_advance`.
        if not exact_us <= time_us - record_us < window_us:
            break
        if not join_pane(row, sums, record_us, row[longest], np.int64(arena_ints[place, 1]), place,
                         max_columns, signs, shape, panes_book, panes, panes_reals,
                         arena_reals):  # fmt: skip
            return False
        row[longest] += 1
    return True


@kernel
def run_ring(
    first, slots, taken_us, head, reals_in, config, plan, plan_at, ints, floats, arena_ints,
    arena_reals, pairs_table, pairs_book, marked, book, before, panes, panes_reals, panes_book, out
):  # fmt: skip
    """Windows and pairs of rows `first`.. in order; returns the row that found no room, or n.

    Room is asked of the arena (`room_for`), the pairs and the log of marks: `pairs` entries a row.
    A row is returned, too, whose slot has more pairs than the bound (`features.thinning`): CROWDED
    stands in `pairs_book` then.

    Parameters
    ----------
    slots, taken_us : int64 (n,)
    head : int64 (n, 8 + others), see `features.rows`
    reals_in : float64 (n, columns of the entity)
    config : int64, see `features.plan.Ring.config`
    arena_ints, arena_reals : uint32 or int64, and float64, of the arena's records: the same memory
    plan, plan_at : int64 (features, 4): operation, window, column, place in `out`; by event type
    pairs_table, pairs_book : of `features.pairs.PairTable`
    panes, panes_reals, panes_book : of the arena of panes, see `features.panes`; int32 for none
    before : uint32 (m, columns), filled where late rows are put in their place, row i at
        `book[PLACED]` + i modulo m, from column `book[NOTED]` on: notes of the last record with
        each of the row's pairs (`features.notes`)
    """
    head, reals_in, config, plan, ints, floats, arena_ints, arena_reals = borrowed(
        head, reals_in, config, plan, ints, floats, arena_ints, arena_reals
    )
    pairs_table, pairs_book, marked, book, before, panes, panes_reals, out = borrowed(
        pairs_table, pairs_book, marked, book, before, panes, panes_reals, out
    )
    windows, flags, reals, maxima, pairs, stride, newest = _shape(config)
    windows_us, flag_bits, columns, max_columns, signs, others, ttl_us, feeds = _parts(
        config, windows, flags, reals, maxima, pairs
    )
    longest, behind = newest + (windows - 1) * stride, newest + windows * stride
    shape, exact_max = (flags, reals, maxima, pairs), _exact_max(panes, panes_book)
    links = links_at(flags, reals, maxima, pairs, arena_ints)
    met = np.empty((pairs, 6), np.int64)
    noted = book[PLACED] % max(len(before), 1)
    for i in range(first, len(slots)):
        if book[LOGGED] + pairs > len(marked) or pairs_book[FILLED] + pairs > pairs_book[ROOM]:
            return i
        _ask(i, slots, head, others, ints, floats, arena_ints, pairs_table, newest, stride,
             windows)  # fmt: skip
        slot, time_us, code = slots[i], taken_us[i], head[i, 2]
        row, sums = ints[slot], floats[slot]
        levels = 0
        if pairs_book[LEVELED]:
            levels = behind if _leveled(row, behind, pairs) else 0
        if exact_max > 0 and not _thin(row, sums, time_us, windows, longest, book[PLACED],
                                       max_columns, signs, shape, arena_ints, arena_reals, panes,
                                       panes_reals, panes_book):  # fmt: skip
            return i
        _advance(row, sums, time_us, windows_us, levels, flags, reals, pairs, maxima, links,
                 arena_ints, arena_reals)  # fmt: skip
        # Asked once what is too old has left: it makes nobody crowded.
        if pairs_book[LEVELED] and feeds[code] and crowded(row, behind - pairs, behind, pairs,
                                                           pairs_book) >= 0:  # fmt: skip
            pairs_book[LEVELED] = CROWDED
            return i
        _let_go(row, longest, book, arena_ints)
        full = feeds[code] and row[HEAD] >= row[LIMIT]
        if full and not make_room(row, reals, book, arena_ints, arena_reals):
            return i
        if exact_max > 0:
            tell_excess(row, time_us - panes_book[LONGEST_US], shape, panes_book, panes)
        seq = row[HEAD]
        if levels > 0:
            since = row[longest] if exact_max == 0 else first_number(row, longest, shape, panes)
            settle_levels(row, levels - pairs, levels, pairs, since, seq, time_us, ttl_us,
                          feeds[code], pairs_book)  # fmt: skip
        _look(i, row, slot, time_us, head, others, ttl_us, levels, pairs_table, met)
        if feeds[code]:
            if book[PLACED]:
                _note(row, noted + i if noted + i < len(before) else noted + i - len(before),
                      book[NOTED], levels, pairs, met, before)  # fmt: skip
            _take_in(row, sums, i, slot, time_us, head, reals_in, windows, longest, levels, shape,
                     flag_bits, columns, max_columns, signs, met, pairs_table, pairs_book, marked,
                     book, links, arena_ints, arena_reals, exact_max, panes)  # fmt: skip
        _emit(row, sums, i, plan_at[code], plan_at[code + 1], plan, flags, reals, maxima, pairs,
              max_columns, met, seq == row[BORN], time_us, windows, arena_ints, arena_reals,
              exact_max, shape, out)  # fmt: skip
    return len(slots)


@kernel
def read_ring(
    slots, at_us, code, config, plan, plan_at, ints, floats, arena_ints, arena_reals, panes,
    panes_reals, panes_book, out
):  # fmt: skip
    """Statistics of windows as of times no earlier than the slots' newest rows; changes no state.

    Parameters
    ----------
    slots, at_us : int64 (n,)
    code : event type whose features are read; those of a pair are of no event, so without a value
    config, plan, plan_at, ints, floats, arena_ints, arena_reals : see `run_ring`
    panes, panes_reals, panes_book, out : see `run_ring`
    """
    ints, floats, config = borrowed(ints, floats, config)
    windows, flags, reals, maxima, pairs, stride, newest = _shape(config)
    shape, exact_max = (flags, reals, maxima, pairs), _exact_max(panes, panes_book)
    links = links_at(flags, reals, maxima, pairs, arena_ints)
    longest, w_float = newest + (windows - 1) * stride, 4 * (windows - 1) * reals
    windows_us, _, _, max_columns, _, _, _, _ = _parts(config, windows, flags, reals, maxima, pairs)
    met = np.full((pairs, 6), -1, np.int64)
    for i in range(len(slots)):
        row, sums = ints[slots[i]].copy(), floats[slots[i]].copy()
        if exact_max > 0:
            since_us = at_us[i] - panes_book[LONGEST_US]
            drop_panes(row, sums, since_us, longest, w_float, shape, panes, panes_reals)
        levels = newest + windows * stride
        levels = levels if _leveled(row, levels, pairs) else 0
        _advance(row, sums, at_us[i], windows_us, levels, flags, reals, pairs, maxima, links,
                 arena_ints, arena_reals)  # fmt: skip
        _emit(row, sums, i, plan_at[code], plan_at[code + 1], plan, flags, reals, maxima, pairs,
              max_columns, met, False, at_us[i], windows, arena_ints, arena_reals, exact_max,
              shape, out)  # fmt: skip
