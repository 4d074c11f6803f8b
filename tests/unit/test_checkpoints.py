"""Packed states of checkpoints against plain copies of what was packed."""

from __future__ import annotations

import numpy as np
import pytest

from features.checkpoints import MARKS, NEXT, Checkpoints, allot, pack, word_of

SLOTS = 6


class Twin:
    """Checkpoints of two arrays by slot, and a list of what each should hold."""

    def __init__(self, rng: np.random.Generator, words: int) -> None:
        self.rng, self.shelf = rng, Checkpoints(words)
        wide = rng.integers(-(1 << 63), (1 << 63) - 1, (SLOTS, words // 2))
        wide[rng.random(wide.shape) < 0.5] = 0
        self.arrays = (wide, rng.integers(-1, 2, (SLOTS, words - words // 2)))
        self.sources = np.array([(a.ctypes.data, a.shape[1]) for a in self.arrays], np.int64)
        self.expected: dict[int, np.ndarray] = {}

    def state(self, slot: int) -> np.ndarray:
        """All words of a slot."""
        return np.concatenate([a[slot] for a in self.arrays])

    def change(self) -> None:
        """Some words are others, some 0."""
        for array in self.arrays:
            array *= self.rng.integers(0, 2, array.shape)
            array += self.rng.integers(0, 2, array.shape)

    def take(self) -> None:
        """A checkpoint of some slot."""
        slot, shelf = int(self.rng.integers(SLOTS)), self.shelf
        shelf.reserve(1)
        start = int(allot(shelf.book, shelf.packed))
        at = start % len(shelf.packed)
        words = pack(slot, self.sources, at, int(shelf.book[MARKS]), shelf.packed)
        shelf.arrays["place"][shelf.top % shelf.capacity] = (start, start, words)
        shelf.book[NEXT] = start + words
        self.expected[shelf.put(1)] = self.state(slot)

    def take_anew(self, many: int) -> None:
        """Some checkpoints are of other slots."""
        numbers = np.arange(self.shelf.first, self.shelf.top)
        some = np.sort(self.rng.choice(numbers, min(many, len(numbers)), replace=False))
        slots = self.rng.integers(0, SLOTS, len(some))
        self.shelf.change(some)
        self.shelf.take_anew(some, slots, self.sources)
        for number, slot in zip(some.tolist(), slots.tolist(), strict=True):
            self.expected[number] = self.state(slot)

    def check(self) -> None:
        """All that are there are as they should be."""
        numbers = np.arange(self.shelf.first, self.shelf.top)
        expected = np.array([self.expected[n] for n in numbers.tolist()])
        np.testing.assert_array_equal(self.shelf.states(numbers), expected)


@pytest.mark.parametrize("words", [5, 64, 256, 301])
def test_a_packed_state_is_the_one_that_was_packed(rng: np.random.Generator, words: int) -> None:
    """Also where it is taken anew, is longer than it was, and as older ones are let go."""
    twin = Twin(rng, words)
    for turn in range(300):
        twin.take()
        twin.change()
        if turn > 50:
            twin.shelf.drop(twin.shelf.top - 40)
        if turn % 9 == 0:
            twin.take_anew(4)
        twin.check()
    last, shelf = twin.shelf.top - 1, twin.shelf
    at = int(shelf.arrays["place"][last % shelf.capacity, 1]) % len(shelf.packed)
    one = [word_of(at, k, int(shelf.book[MARKS]), shelf.packed) for k in range(words)]
    assert one == twin.expected[last].tolist()
    assert 8 * len(shelf.packed) < 2 * 41 * 8 * (words + 5) + 8 * 2048, "what is gone is used again"


def test_states_without_much_in_them_take_few_words(rng: np.random.Generator) -> None:
    twin = Twin(rng, 250)
    for array in twin.arrays:
        array[:, 1:] = 0
    for _ in range(100):
        twin.take()
    twin.check()
    assert twin.shelf.book[NEXT] <= 100 * (1 + 2 * 4)


def test_snapshots_bring_packed_states_back(rng: np.random.Generator) -> None:
    """A whole one, and what has changed since while it was copied and after."""
    twin, other = Twin(rng, 100), Checkpoints(100)
    for everything in (True, False, False):
        for _ in range(60):
            twin.take()
            twin.change()
        twin.shelf.drop(max(1, twin.shelf.top - 80))
        twin.take_anew(5)
        bounds = twin.shelf.first, twin.shelf.top
        expected = twin.shelf.states(np.arange(*bounds))
        twin.shelf.begin(everything)
        twin.take_anew(5)
        rows = {name: [part] for name, part in twin.shelf.copy(2).items()}
        twin.take()
        while not twin.shelf.copied:
            for name, part in twin.shelf.copy(2).items():
                rows[name].append(part)
        other.load(*bounds, {name: np.concatenate(parts) for name, parts in rows.items()})
        np.testing.assert_array_equal(other.states(np.arange(*bounds)), expected)


@pytest.mark.parametrize("words", [99, 101])
def test_a_snapshot_of_another_width_is_refused_and_changes_nothing(
    rng: np.random.Generator, words: int
) -> None:
    twin, other = Twin(rng, 100), Checkpoints(words)
    for _ in range(20):
        twin.take()
    twin.shelf.begin(True)
    rows = twin.shelf.copy(1)
    before = other.first, other.top
    with pytest.raises(ValueError, match=rf"checkpoints of {words} words, got \(100,\) a row"):
        other.load(twin.shelf.first, twin.shelf.top, rows)
    assert (other.first, other.top) == before
