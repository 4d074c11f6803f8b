"""Blocks of the arena against a plain list of who has which records."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.arena import FREE, SMALLEST, TOP, USED, allocate, bits_max, release
from features.windows import BOOK, room_for


def fresh(records: int, dtype: type = np.uint32) -> tuple[np.ndarray, np.ndarray]:
    """A book and an arena that nobody uses."""
    book = np.full(BOOK, -1, np.int64)
    book[TOP] = book[USED] = 0
    return book, np.zeros((records, 2), dtype)


def scribble(arena: np.ndarray, start: int, size: int) -> None:
    """What a ring may leave in its block: any times, all bits that a record may use."""
    arena[start : start + size, 0] = 3
    arena[start : start + size, 1] = (1 << bits_max(arena.dtype == np.uint32)) - 1


@pytest.mark.parametrize("dtype", [np.uint32, np.int64])
@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(4, 300), st.integers(0, 1000)), max_size=90)
)
def test_blocks_never_overlap_and_all_come_back(
    dtype: type, steps: list[tuple[bool, int, int]]
) -> None:
    book, arena = fresh(4096, dtype)
    owned: dict[int, int] = {}
    taken = np.zeros(4096, bool)
    for take, wanted, which in steps:
        if take:
            start, size = allocate(wanted, book, arena)
            if start < 0:
                assert book[TOP] + wanted > len(arena)
                continue
            assert wanted <= size < wanted + SMALLEST and start + size <= book[TOP] <= 4096
            assert not taken[start : start + size].any()
            taken[start : start + size] = True
            owned[start] = size
            scribble(arena, start, size)
        elif owned:
            start = list(owned)[which % len(owned)]
            release(start, owned[start], book, arena)
            taken[start : start + owned.pop(start)] = False
        assert book[USED] == taken.sum()
    for start, size in owned.items():
        release(start, size, book, arena)
    assert book[TOP] == book[USED] == 0 and (book[FREE : FREE + 160] == -1).all()


def test_what_growing_rings_leave_behind_is_used_again(rng: np.random.Generator) -> None:
    """A thousand rings that grow together to 300 records, each at a pace of its own."""
    book, arena = fresh(1 << 20)
    blocks = [allocate(SMALLEST, book, arena) for _ in range(1000)]
    records = np.zeros(1000)
    pace = rng.uniform(0.5, 1.0, 1000)
    while records.max() < 300:
        records += pace
        for i in np.flatnonzero(records > [size for _, size in blocks]):
            start, size = blocks[i]
            blocks[i] = allocate(room_for(int(records[i])), book, arena)
            scribble(arena, *blocks[i])
            release(start, size, book, arena)
    assert book[USED] <= 1.2 * records.sum()
    assert book[TOP] <= 1.15 * book[USED], "what lies free between the blocks"


@given(
    sizes=st.lists(st.integers(SMALLEST, 900), min_size=1, max_size=60), before=st.integers(0, 40)
)
def test_room_for_all_of_them_is_enough(sizes: list[int], before: int) -> None:
    book, arena = fresh(SMALLEST * before + sum(sizes))
    for _ in range(before):
        allocate(SMALLEST, book, arena)
    assert all(allocate(size, book, arena)[0] >= 0 for size in sizes)
    assert allocate(SMALLEST, book, arena)[0] == -1, "and not more than enough"


def test_an_empty_arena_gives_nothing() -> None:
    book, arena = fresh(0)
    assert allocate(SMALLEST, book, arena)[0] == -1
    assert book[TOP] == 0 and (book[FREE:] == -1).all()
