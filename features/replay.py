"""Kernels of `features.late`: what came late, where an entity goes back to, what passes again."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

import numpy as np

from features.checkpoints import MARKS, NEXT, ORIGIN, ROOM, START, allot, pack, word_of
from features.logged import (
    BACK,
    CODE_BITS,
    FLAGS,
    FLAGS_FEW,
    KIND,
    META,
    MORE_FLAGS,
    OFFSET,
    PARTITION,
    ROUND,
    ROW,
    SLOT,
    TIME,
)
from features.notes import NOTE_WORDS, UNSEEN, read_note
from features.pairs import KEY, STAMP, WHEN, WHOSE, find_pair, pair_key, stamped, whose
from features.slots import NEVER
from features.snapshots import restore_links
from features.speed import AHEAD, borrowed, inlined, kernel, prefetch, words_at
from features.windows import (
    BASE,
    CAPACITY,
    HEAD,
    KEPT,
    NEWEST,
    SAVED,
    SHARED,
)

__all__ = [
    "LINKS",
    "MARK",
    "OLDER",
    "OWNER",
    "admit",
    "choose",
    "collect",
    "link",
    "push_up",
    "restore_rings",
    "undo_pairs",
    "waves",
]

_CODE, _FEW = (1 << CODE_BITS) - 1, (1 << FLAGS_FEW) - 1

# Columns of a checkpoint's `chain`: slot, the slot's older checkpoint, the last row in it.
OWNER, OLDER, CHECKPOINT_ROW = 0, 1, 2

# Columns of `links`, by slot: last row, newest checkpoint, rows since it; a fourth fills the line.
TAIL, MARK, SINCE = 0, 1, 2
LINKS = 4


@inlined
def _row_key(wide, meta, at, key):
    """Write a logged row's place in the global order into `key`."""
    key[0] = wide[at, TIME]
    key[1] = meta[at, KIND] & _CODE
    key[2] = meta[at, PARTITION]
    key[3] = wide[at, OFFSET]
    key[4] = meta[at, KIND] >> CODE_BITS


@kernel
def _less(a, b):
    """Whether place a in the global order is before place b, int64 (5,) each."""
    for k in range(5):
        if a[k] != b[k]:
            return a[k] < b[k]
    return False


@inlined
def _log(i, at, slot, head, reals, round_, wide, meta, others, reals_log):
    """Write row i into the log."""
    wide[at, TIME], wide[at, OFFSET] = head[i, 1], head[i, 6]
    meta[at, SLOT], meta[at, KIND] = slot, head[i, 2] | (head[i, 3] << CODE_BITS)
    meta[at, ROW], meta[at, ROUND], meta[at, PARTITION] = head[i, 4], round_, head[i, 5]
    meta[at, FLAGS] = (head[i, 7] & _FEW) | (np.int64(head[i, 7] < 0) << FLAGS_FEW)
    if meta.shape[1] > META:
        meta[at, MORE_FLAGS] = head[i, 7] >> FLAGS_FEW
    for k in range(others.shape[1]):
        others[at, k] = head[i, 8 + k]
    for k in range(reals_log.shape[1]):
        reals_log[at, k] = reals[i, k]


@inlined
def _ask(i, slots, links, generation, every, sources):
    """Ask for memory of rows to come: links far ahead, nearer what a checkpoint will copy."""
    far, near = i + 2 * AHEAD, i + AHEAD
    if far < len(slots):
        prefetch(links, slots[far])
    if near < len(slots):
        slot = slots[near]
        if links[slot, MARK] < generation or links[slot, SINCE] >= every:
            for k in range(len(sources)):
                prefetch(words_at(sources[k, 0], slot + 1, sources[k, 1]), slot)


@inlined
def _check(
    slot, number, start, tail, key, oldest, links, chain, keys, place, packed, book, sources, rings
):  # fmt: skip
    """Take a checkpoint; let rings keep what the oldest live one of their slot counts."""
    at = number % len(chain)
    for k in range(5):
        keys[at, k] = key[k]
    chain[at, OWNER], chain[at, OLDER], chain[at, CHECKPOINT_ROW] = slot, links[slot, MARK], tail
    words = pack(slot, sources, start % len(packed), book[MARKS], packed)
    place[at, ORIGIN], place[at, START], place[at, ROOM] = start, start, words
    book[NEXT] = start + words
    links[slot, MARK], links[slot, SINCE] = number, 0
    while chain[at, OLDER] >= oldest:
        at = chain[at, OLDER] % len(chain)
    begins = place[at, START] % len(packed)
    for r in range(len(rings)):
        k = rings[r, 0]
        row = words_at(sources[k, 0], slot + 1, sources[k, 1])[slot]
        row[rings[r, 1]] = word_of(begins, rings[r, 2], book[MARKS], packed)


@kernel
def admit(
    begin, head, reals, slots, before_us, numbers, wide, meta, others, reals_log, links, late,
    chain, keys, place, packed, book, sources, rings
):  # fmt: skip
    """Log rows from `begin` on, each linked to the one before; take checkpoints, find what is late.

    Parameters
    ----------
    head, reals : of the rows, see `features.rows`
    slots, before_us : int64 (n,), of the rows; newest time of the slot before each
    numbers : int64 (7,), of the oldest logged row and of the first new one; of the oldest live
        checkpoint, this generation's first and the next one; rows of a slot after which it needs
        another; the round
    wide, meta, others, reals_log, chain, keys, place, packed, book : of the log and of checkpoints
    links : int64 (slots, 4): last row, newest checkpoint, rows since it
    late : uint8 (n,), set for a row that sorts before the last of its slot
    sources : int64 (k, 2), address and words a row of each array by slot
    rings : int64 (r, 3): a ring's place in `sources`, the column of what it must keep, and the word
        of a state with its longest window's oldest record (or pane)

    Returns
    -------
    (the row whose checkpoint found no room, or n; checkpoints taken; late rows)
    """
    links, chain, keys, place, packed = borrowed(links, chain, keys, place, packed)
    oldest, first, live, generation, checkpoint, every, round_ = numbers
    made = came_late = 0
    capacity, room = len(wide), len(chain) - (checkpoint - live)
    begins = first % capacity
    key, mine = np.empty(5, np.int64), np.empty(5, np.int64)
    for i in range(begin, len(slots)):
        _ask(i, slots, links, generation, every, sources)
        slot, before = slots[i], before_us[i]
        at = begins + i if begins + i < capacity else begins + i - capacity
        fresh = before == NEVER
        tail = 0 if fresh else links[slot, TAIL]
        needed = tail < first and (
            fresh or links[slot, MARK] < generation or links[slot, SINCE] >= every
        )
        start = allot(book, packed) if needed else np.int64(0)
        if needed and (made == room or start < 0):
            return i, made, came_late
        _log(i, at, slot, head, reals, round_, wide, meta, others, reals_log)
        if fresh:
            links[slot, TAIL] = links[slot, MARK] = links[slot, SINCE] = 0
        if tail < first:
            if tail < oldest:
                tail = 0
            is_late = head[i, 1] < before
            if needed or head[i, 1] == before:
                key[0], key[1] = before, -1
                key[2] = key[3] = key[4] = 0
                if tail > 0:
                    _row_key(wide, meta, tail % capacity, key)
                _row_key(wide, meta, at, mine)
                is_late = _less(mine, key)
            if is_late:
                late[i] = 1
                came_late += 1
            if needed:
                _check(slot, checkpoint + made, start, tail, key, live, links, chain, keys, place,
                       packed, book, sources, rings)  # fmt: skip
                made += 1
        elif head[i, 1] < before:
            late[i] = 1
            came_late += 1
        meta[at, BACK] = first + i - tail if tail > 0 else 0
        links[slot, TAIL] = first + i
        links[slot, SINCE] += 1
    return len(slots), made, came_late


@kernel
def choose(owners, asked, links, first, chain, keys, chosen):
    """The newest checkpoint of each slot before the place asked, or its oldest; how many are older.

    Parameters
    ----------
    owners : int64 (n,), slots
    asked : int64 (n, 5), places in the global order
    first : number of the oldest live checkpoint
    chosen : int64 (n, 2), filled: number of the checkpoint, and how many of the slot are newer
    """
    capacity = len(chain)
    for i in range(len(owners)):
        at, newer = links[owners[i], MARK], 0
        while not _less(keys[at % capacity], asked[i]):
            older = chain[at % capacity, OLDER]
            if older < first:
                break
            at = older
            newer += 1
        chosen[i, 0], chosen[i, 1] = at, newer


@kernel
def push_up(slots, rows, owners, chosen, keys, wide, meta):
    """Take rows that are before their slot's chosen checkpoint at its time; returns how many.

    Parameters
    ----------
    slots, rows : int64 (n,), of late slots' rows, and their numbers
    """
    found = 0
    mine = np.empty(5, np.int64)
    for i in range(len(slots)):
        at = rows[i] % len(wide)
        key = keys[chosen[np.searchsorted(owners, slots[i]), 0] % len(keys)]
        _row_key(wide, meta, at, mine)
        if _less(mine, key):
            wide[at, TIME] = max(wide[at, TIME], key[0])
            found += 1
    return found


@kernel
def collect(owners, chosen, links, first, meta, chain, numbers, starts):
    """Numbers of the rows after the chosen checkpoints, newest first, slot by slot.

    Parameters
    ----------
    numbers : int64, filled as far as it goes
    starts : int64 (n + 1,), filled: where each slot's rows begin

    Returns
    -------
    rows there are
    """
    found = 0
    for i in range(len(owners)):
        starts[i] = found
        stop = chain[chosen[i, 0] % len(chain), CHECKPOINT_ROW]
        at = links[owners[i], TAIL]
        while at >= first and at != stop:
            if found < len(numbers):
                numbers[found] = at
            found += 1
            back = meta[at % len(meta), BACK]
            at = at - back if back != 0 else 0
    starts[len(owners)] = found
    return found


@kernel
def waves(owners, chosen, links, chain, keys, numbers, starts, wide, meta, wave, newer, refresh):
    """Cut each slot's rows at the checkpoints that come after the chosen one.

    Parameters
    ----------
    numbers : int64 (m,), rows in the global order, slot by slot
    wave : int64 (m,), filled: how many checkpoints of the slot a row comes after
    newer, refresh : int64 (k,), filled: the checkpoints after the chosen ones, and the wave of rows
        that comes before each
    """
    mine = np.empty(5, np.int64)
    done = 0
    for i in range(len(owners)):
        many = chosen[i, 1]
        at = links[owners[i], MARK]
        for back in range(many):
            newer[done + many - 1 - back] = at
            refresh[done + many - 1 - back] = many - 1 - back
            at = chain[at % len(chain), OLDER]
        passed = 0
        for j in range(starts[i], starts[i + 1]):
            _row_key(wide, meta, numbers[j] % len(wide), mine)
            while passed < many and _less(keys[newer[done + passed] % len(keys)], mine):
                passed += 1
            wave[j] = passed
        done += many


@kernel
def link(owners, chosen, numbers, starts, chain, meta, links):
    """Chain each slot's rows in their order, behind the chosen checkpoint's last row."""
    for i in range(len(owners)):
        before = chain[chosen[i, 0] % len(chain), CHECKPOINT_ROW]
        for j in range(starts[i], starts[i + 1]):
            meta[numbers[j] % len(meta), BACK] = numbers[j] - before if before > 0 else 0
            before = numbers[j]
        links[owners[i], TAIL] = before


@kernel
def undo_pairs(
    slots, head, before, column, feeds, others, ints, arena_ints, pairs_table, pairs_book
):  # fmt: skip
    """Let the pairs of rows be as before them, and take their marks off older records.

    Parameters
    ----------
    slots, head : of the rows, in order
    before, column : notes, and where the ring's begin, see `run_ring`
    feeds : bool (event types,)
    pairs_table, pairs_book : see `run_ring`; the rows' pairs are there, they have been met
    """
    for i in range(len(slots) - 1, -1, -1):
        if not feeds[head[i, 2]]:
            continue
        slot = slots[i]
        row = ints[slot]
        for p in range(len(others)):
            value = head[i, others[p]]
            if value == 0:
                continue
            at = find_pair(pair_key(slot, p, value), pairs_table)
            if pairs_table[at, KEY] == 0:
                continue
            seq, _, last_us = read_note(before, i, column + NOTE_WORDS * p, row[HEAD])
            if seq == UNSEEN:
                continue
            pairs_table[at, WHOSE] = whose(slot, p, seq)
            pairs_table[at, WHEN] = stamped(last_us, pairs_book[STAMP])
            if seq >= row[KEPT] and row[CAPACITY] > 0:
                arena_ints[row[BASE] + seq, 1] &= ~(np.int64(1) << (2 * p))
                row[SAVED] = min(row[SAVED], seq)


@kernel
def restore_rings(
    slots, saved_ints, saved_floats, shape, places, max_columns, signs, ints, floats, arena_ints,
    arena_reals
):  # fmt: skip
    """Let rings be as in their checkpoints; where a ring lies stays as it is.

    Parameters
    ----------
    slots : int64 (n,)
    saved_ints, saved_floats : (n, columns), of their checkpoints
    shape : windows, flags, reals, maxima, pairs
    places : last columns of `ints` that stay, too
    """
    for i in range(len(slots)):
        row, saved = ints[slots[i]], saved_ints[i]
        row[SAVED] = min(row[SAVED], saved[HEAD])
        row[HEAD], row[NEWEST] = saved[HEAD], saved[NEWEST]
        for k in range(SHARED, len(row) - places):
            row[k] = saved[k]
        for k in range(floats.shape[1]):
            floats[slots[i], k] = saved_floats[i, k]
        for m in range(shape[3]):
            restore_links(row, shape, m, max_columns, signs, arena_ints, arena_reals)
