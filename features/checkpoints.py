"""Checkpoints of `features.late`: numbered rows whose states are packed, what is 0 left out.

Much of an entity's state is 0: windows nothing is in, operations that its events do not feed,
labels nobody gave. Words are left out by fours: measured on 40 minutes of payments (2026-11-30),
11 % of a card's, 54 % of a user's, 22 % of a merchant's, 50 % of a device's and 71 % of an
address's. Word by word it would be 5 to 11 % more, and take three times as long as a copy; by
fours it takes as long.

A packed state lies in one stretch of an array that is used round and round as rows of a shelf are:
bits that say which fours are not 0, and these. What is taken anew and has become longer goes behind
all others; its old stretch is left until the checkpoints of its time are let go.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from features.shelf import GROWTH, Shelf
from features.speed import inlined, kernel, words_at

__all__ = ["Checkpoints", "allot", "pack", "word_of"]

Arrays = dict[str, npt.NDArray[Any]]
Int64 = npt.NDArray[np.int64]

# Columns of `place`: number of the word where the state lay first, where it lies, words it may use.
ORIGIN, START, ROOM = 0, 1, 2

# Places in `book`: numbers of the oldest word in use and of the next one, words of a state in whole
# fours, and words that say which of them are there.
OLDEST, NEXT, WORDS, MARKS = 0, 1, 2, 3

PACKED_MIN = 1 << 10
"""Words there is room for at first; chosen: 8 kB, so that small groups stay small."""


@inlined
def allot(book, packed):
    """Number of a word behind which a whole state has room in one stretch, -1 where there is none.

    What it takes is up to the caller, who moves `book[NEXT]`.
    """
    size, need = len(packed), book[WORDS] + book[MARKS]
    start = book[NEXT]
    if start % size + need > size:
        start += size - start % size
    return start if start + need - book[OLDEST] <= size else np.int64(-1)


@inlined
def pack(slot, sources, at, marks, packed):
    """Write all state of a slot from place `at` on; returns the words it took.

    Parameters
    ----------
    sources : int64 (k, 2), address and words a row of each array by slot
    marks : words that say which fours are there
    packed : int64, with room for a whole state
    """
    first = at + marks
    end = first
    for k in range(len(sources)):
        row = words_at(sources[k, 0], slot + 1, sources[k, 1])[slot]
        for c in range(len(row)):
            packed[end + c] = row[c]
        end += len(row)
    while (end - first) & 3:
        packed[end] = 0
        end += 1
    # Whole first, as fast as it goes, then what is there moves up: it is in the nearest cache.
    to, mask, fours = first, np.uint64(0), (end - first) >> 2
    for g in range(fours):
        come = first + 4 * g
        a, b, c, d = packed[come], packed[come + 1], packed[come + 2], packed[come + 3]
        if a | b | c | d:
            packed[to], packed[to + 1], packed[to + 2], packed[to + 3] = a, b, c, d
            to += 4
            mask |= np.uint64(1) << np.uint64(g & 63)
        if g & 63 == 63:
            packed[at + (g >> 6)] = np.int64(mask)
            mask = np.uint64(0)
    if fours & 63:
        packed[at + (fours >> 6)] = np.int64(mask)
    return to - at


@inlined
def _ones(word):
    """Bits of a word that are set."""
    x = np.uint64(word)
    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel
def word_of(at, word, marks, packed):
    """One word of the state packed at a place."""
    four = word >> 2
    mask, bit = np.uint64(packed[at + (four >> 6)]), np.uint64(four & 63)
    if not (mask >> bit) & np.uint64(1):
        return np.int64(0)
    before = _ones(mask & ((np.uint64(1) << bit) - np.uint64(1)))
    for k in range(four >> 6):
        before += _ones(packed[at + k])
    return packed[at + marks + 4 * before + (word & 3)]


@kernel
def _unpack(places, place, marks, packed, states):
    """Fill `states`, int64 (n, words), with the states of rows of the shelf."""
    for i in range(len(places)):
        at = place[places[i], START] % len(packed)
        come = at + marks
        for k in range(0, states.shape[1], 4):
            bit = np.uint64((k >> 2) & 63)
            there = (np.uint64(packed[at + (k >> 8)]) >> bit) & np.uint64(1)
            for c in range(k, min(k + 4, states.shape[1])):
                states[i, c] = packed[come + c - k] if there else 0
            come += 4 * np.int64(there)


@inlined
def _is_there(state, k):
    """Whether one of four words, from `k` on, is not 0."""
    found = np.int64(0)
    for c in range(k, min(k + 4, len(state))):
        found |= state[c]
    return found != 0


@kernel
def _put(first, places, states, place, book, packed):
    """Pack states `first`.. of rows of the shelf; returns the one that found no room, or how many.

    Parameters
    ----------
    places : int64 (n,), where the rows stand
    states : int64 (n, words)
    """
    marks, words = book[MARKS], states.shape[1]
    for i in range(first, len(places)):
        row, state = place[places[i]], states[i]
        needed = marks
        for k in range(0, words, 4):
            needed += 4 * np.int64(_is_there(state, k))
        if needed > row[ROOM]:
            start = allot(book, packed)
            if start < 0:
                return i
            row[START], row[ROOM] = start, needed
            book[NEXT] = start + needed
        at = row[START] % len(packed)
        packed[at : at + marks] = 0
        to = at + marks
        for k in range(0, words, 4):
            if not _is_there(state, k):
                continue
            packed[at + (k >> 8)] |= np.int64(np.uint64(1) << np.uint64((k >> 2) & 63))
            for c in range(4):
                packed[to + c] = state[k + c] if k + c < words else 0
            to += 4
    return len(places)


@kernel
def _move(places, place, packed, moved):
    """Put stretches of rows one behind the other into another array; returns the words taken."""
    end = 0
    for i in range(len(places)):
        row = place[places[i]]
        at = row[START] % len(packed)
        for k in range(row[ROOM]):
            moved[end + k] = packed[at + k]
        row[ORIGIN] = row[START] = end
        end += row[ROOM]
    return end


@kernel
def _gather(slots, sources, states):
    """Fill `states`, int64 (n, words), with all state of slots; for sources see `pack`."""
    for i in range(len(slots)):
        word = 0
        for k in range(len(sources)):
            row = words_at(sources[k, 0], slots[i] + 1, sources[k, 1])[slots[i]]
            for c in range(len(row)):
                states[i, word + c] = row[c]
            word += len(row)


class Checkpoints(Shelf):
    """A shelf of checkpoints, each with a state of so many words.

    Parameters
    ----------
    words : of a state

    Attributes
    ----------
    arrays : `key` int64 (rows, 5), `chain` (rows, 3), see `features.replay`; `place` (rows, 3)
    book, packed : int64 (4,) and (words there is room for,), for kernels
    """

    def __init__(self, words: int) -> None:
        super().__init__({"key": (5, np.int64), "chain": (3, np.int64), "place": (3, np.int64)})
        self._words = words
        self.book = np.array([0, 0, -(-words // 4) * 4, -(-words // 256)], np.int64)
        self.packed = np.zeros(PACKED_MIN, np.int64)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all arrays."""
        return super().memory_bytes + self.packed.nbytes

    @property
    def _state_words(self) -> int:
        """Words that `allot` asks for."""
        return int(self.book[WORDS] + self.book[MARKS])

    def reserve(self, incoming: int) -> None:
        """Make room for so many more rows, and for one state more."""
        super().reserve(incoming)
        self._reserve_words()

    def _reserve_words(self, more: int = 0) -> None:
        """Make room for one state more, and for so many words behind it."""
        # What is left at the end of the array, shorter than a state, is not used.
        used, need = int(self.book[NEXT] - self.book[OLDEST]), 2 * self._state_words + more
        if used + need > len(self.packed):
            live = self.at(np.arange(self.first, self.top))
            words = int(self.arrays["place"][live, ROOM].sum()) + need
            self._grow(live, max(int(GROWTH * words), len(self.packed)))

    def _grow(self, live: Int64, size: int) -> None:
        """Room for so many words: stretches lie one behind the other, none is left over."""
        moved = np.zeros(size, np.int64)
        self.book[NEXT] = _move(live, self.arrays["place"], self.packed, moved)
        self.book[OLDEST] = 0
        self.packed = moved

    def states(self, numbers: Int64) -> Int64:
        """int64 (n, words), the states of rows."""
        states = np.empty((len(numbers), self._words), np.int64)
        place = self.arrays["place"]
        _unpack(self.at(numbers), place, self.book[MARKS], self.packed, states)
        return states

    def replace(self, numbers: Int64, states: Int64) -> None:
        """Give rows other states, int64 (n, words); `change` came before."""
        places = self.at(numbers)
        done = _put(0, places, states, self.arrays["place"], self.book, self.packed)
        while done < len(numbers):
            # As many words as the states so far took: thousands are put back after a restart.
            words = int(self.arrays["place"][places[:done], ROOM].sum())
            self._reserve_words((len(numbers) - done) * words // max(done, 1))
            done = _put(done, places, states, self.arrays["place"], self.book, self.packed)

    def take_anew(self, numbers: Int64, slots: Int64, sources: Int64) -> None:
        """Give rows the states that slots have now; `change` came before, sources as of `pack`."""
        states = np.empty((len(numbers), self._words), np.int64)
        _gather(slots, sources, states)
        self.replace(numbers, states)

    def take(self, numbers: Int64) -> Arrays:
        """Copies of rows, with their states as they were before they were packed."""
        at = self.at(numbers)
        found: Arrays = {name: np.take(self.arrays[name], at, axis=0) for name in ("key", "chain")}
        return found | {"state": self.states(numbers)}

    def drop(self, first: int) -> None:
        """Let go what comes before a number."""
        super().drop(first)
        self._let_go()

    def _let_go(self) -> None:
        """Let go words of rows that are gone: no row has words before where its own first lay."""
        none = self.first == self.top
        oldest = self.book[NEXT] if none else self.arrays["place"][self.at_first, ORIGIN]
        self.book[OLDEST] = oldest

    @property
    def at_first(self) -> int:
        """Where the oldest row stands."""
        return self.first % self.capacity

    def load(self, first: int, top: int, rows: Arrays) -> None:
        """Put a snapshot back, as of `Shelf.load`.

        Raises
        ------
        ValueError : its states have another width; nothing is changed then
        """
        if rows["state"].shape[1:] != (self._words,):
            raise ValueError(
                f"checkpoints of {self._words} words, got {rows['state'].shape[1:]} a row"
            )
        before = max(self.top, first)
        self._stand(first, top)
        # A row that changed while it was copied stands there twice: as it was comes first.
        numbers, which = np.unique(rows["number"], return_index=True)
        numbers, which = numbers[numbers >= first], which[numbers >= first]
        at = self.at(numbers)
        for name in ("key", "chain"):
            self.arrays[name][at] = rows[name][which]
        # Without a place yet, but behind all that have one.
        self.arrays["place"][self.at(numbers[numbers >= before])] = (
            self.book[NEXT],
            self.book[NEXT],
            0,
        )
        self._let_go()
        states = rows["state"]
        if len(which) < len(states) or not np.array_equal(which, np.arange(len(which))):
            states = states[which]
        self.replace(numbers, states)
