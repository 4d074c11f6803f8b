"""Blocks of the arena against a plain list of who has which records."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.arena import FREE, SMALLEST, TOP, allocate, release, room
from features.windows import BOOK


def fresh(records: int) -> tuple[np.ndarray, np.ndarray]:
    """A book and an arena that nobody uses."""
    book = np.full(BOOK, -1, np.int64)
    book[TOP] = 0
    return book, np.zeros((records, 2), np.int64)


def scribble(arena: np.ndarray, start: int, size: int) -> None:
    """What a ring may leave in its block: any times, bits that are never below 0."""
    arena[start : start + size, 0] = -1 << 40
    arena[start : start + size, 1] = (1 << 62) + 3


@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 1000)), max_size=120)
)
def test_blocks_never_overlap_and_all_come_back(steps: list[tuple[bool, int, int]]) -> None:
    book, arena = fresh(4096)
    owned: dict[int, int] = {}
    taken = np.zeros(4096, bool)
    for take, size_class, which in steps:
        size = SMALLEST << size_class
        if take:
            start = allocate(size, book, arena)
            if start < 0:
                free = np.flatnonzero(~taken.reshape(-1, size).any(axis=1))
                assert not len(free)
                continue
            assert start % size == 0 and start + size <= book[TOP] <= 4096
            assert not taken[start : start + size].any()
            taken[start : start + size] = True
            owned[start] = size
            scribble(arena, start, size)
        elif owned:
            start = list(owned)[which % len(owned)]
            release(start, owned[start], book, arena)
            taken[start : start + owned.pop(start)] = False
    for start, size in owned.items():
        release(start, size, book, arena)
    assert book[TOP] == 0 and (book[FREE : FREE + 48] == -1).all()


def test_what_growing_rings_leave_behind_is_used_again() -> None:
    """A thousand rings that double together from 4 to 256 records need little more than that."""
    book, arena = fresh(1 << 20)
    starts = [allocate(SMALLEST, book, arena) for _ in range(1000)]
    size = SMALLEST
    while size < 256:
        for i, start in enumerate(starts):
            starts[i] = allocate(2 * size, book, arena)
            scribble(arena, starts[i], 2 * size)
            release(start, size, book, arena)
        size *= 2
    assert book[TOP] <= 1.3 * 1000 * 256


@given(classes=st.lists(st.integers(0, 8), min_size=1, max_size=60), before=st.integers(0, 40))
def test_the_room_that_is_made_is_enough(classes: list[int], before: int) -> None:
    sizes = [SMALLEST << c for c in classes]
    book, arena = fresh(SMALLEST * before + room(sum(sizes), max(sizes)))
    for _ in range(before):
        allocate(SMALLEST, book, arena)
    assert all(allocate(size, book, arena) >= 0 for size in sizes)


def test_an_empty_arena_gives_nothing() -> None:
    book, arena = fresh(0)
    assert allocate(SMALLEST, book, arena) == -1
    assert book[TOP] == 0 and (book[FREE:] == -1).all()
