"""The table of pairs against a dict: what is found, what is let go, what a snapshot takes."""

from __future__ import annotations

import numpy as np
import pytest

from features import pairs
from features.pairs import (
    FILLED,
    KEY,
    ROOM,
    STAMP,
    WHEN,
    WHOSE,
    PairTable,
    find_pair,
    met_at,
    owners,
    pair_key,
    stamped,
    whose,
)

NOBODY = np.zeros(0, np.int64)

MINUTE_US = 60_000_000

Meeting = tuple[int, int, int]
"""Slot, column, value."""


def meet(table: PairTable, met: Meeting, seq: int, time_us: int) -> None:
    """What the kernel does with a pair, the table growing as a ring lets it."""
    if table.numbers[FILLED] + 1 > table.numbers[ROOM]:
        table.grow(1, np.full(64, time_us), NOBODY, NOBODY)
    slot, column, value = met
    at = find_pair(pair_key(slot, column, value), table.table)
    entry = table.table[at]
    table.numbers[FILLED] += entry[KEY] == 0
    entry[KEY] = pair_key(slot, column, value)
    entry[WHOSE] = whose(slot, column, seq)
    entry[WHEN] = stamped(time_us, table.numbers[STAMP])


def said(table: PairTable, met: Meeting, head: int) -> tuple[int, int] | None:
    """Number and time of the record a pair was last met in."""
    at = find_pair(pair_key(*met), table.table)
    return met_at(table.table[at], head) if table.table[at, KEY] else None


def some(rng: np.random.Generator) -> Meeting:
    return int(rng.integers(50)), int(rng.integers(16)), int(rng.integers(1, 60))


@pytest.mark.parametrize("first", [0, 1 << 40])
def test_a_pair_is_found_with_its_last_record_however_the_table_has_grown(
    rng: np.random.Generator, first: int
) -> None:
    """Numbers of records beyond what an entry has bits for: the entity's own tells the rest."""
    table = PairTable(np.full(16, 1 << 60))
    expected: dict[Meeting, tuple[int, int]] = {}
    for i in range(30_000):
        met = some(rng)
        expected[met] = first + i, i * MINUTE_US
        meet(table, met, *expected[met])
    assert len(table) == len(expected) > 20_000
    assert 0.65 <= len(table) / len(table.table) <= pairs.FULL
    for met, last in expected.items():
        assert said(table, met, first + 30_000) == last
    assert said(table, (51, 0, 1), 0) is None


def test_a_full_table_lets_go_what_no_later_row_can_ask_for(rng: np.random.Generator) -> None:
    ttl_us = np.array([5 * MINUTE_US, 500 * MINUTE_US])
    table = PairTable(ttl_us)
    expected: dict[Meeting, int] = {}
    for i in range(20_000):
        met = int(rng.integers(3)), i % 2, int(rng.integers(1, 1 << 40))
        expected[met] = i * MINUTE_US
        meet(table, met, i, i * MINUTE_US)
    now_us = 20_000 * MINUTE_US
    alive = [met for met, us in expected.items() if now_us - us <= ttl_us[met[1]]]
    assert all(said(table, met, 20_000) is not None for met in alive)
    assert len(table.table) == pairs.PAIRS_MIN


def test_pairs_of_the_entity_that_had_the_slot_before_are_let_go() -> None:
    table = PairTable(np.full(1, 1 << 60))
    for i in range(40):
        meet(table, (i % 2, 0, i), i, i)
    born, heads = np.array([0, 21]), np.array([40, 40])
    table.grow(1, NOBODY, born, heads)
    left = owners(table.table[table.table[:, KEY] != 0])
    assert sorted((left >> 4).tolist()) == [0] * 20 + [1] * 10


@pytest.mark.parametrize("everything", [False, True])
def test_a_snapshot_takes_each_pair_as_it_was_when_it_began(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    """Pairs are met, and the table grows, while it is copied."""
    monkeypatch.setattr(pairs, "PAIRS_MIN", 8)
    table = PairTable(np.full(16, 1 << 60))
    restored: dict[Meeting, tuple[int, int]] = {}
    now: dict[Meeting, tuple[int, int]] = {}
    seq = 0
    for _ in range(60):
        before = dict(now)
        table.begin(everything)
        copied = []
        for _ in range(int(rng.integers(6))):
            rows = [some(rng) for _ in range(int(rng.integers(1, 40)))]
            for slot, column, value in rows:
                head = np.zeros((1, 24), np.int64)
                head[0, 8 + column] = value
                table.keep(np.array([slot]), head, np.arange(8, 24))
                now[slot, column, value] = seq, seq
                meet(table, (slot, column, value), seq, seq)
                seq += 1
            copied.append(table.copy(int(rng.choice([0, 1, 5, 50]))))
        copied.append(table.copy(1))
        assert table.scanned
        entries = np.concatenate(copied)
        assert len(np.unique(entries[:, KEY])) == len(entries)
        again = PairTable(np.full(16, 1 << 60))
        again.load(entries)
        found = {met: said(again, met, seq) for met in now}
        restored |= {met: last for met, last in found.items() if last is not None}
        assert restored == before
        assert len(entries) == len(before) or not everything
    assert seq > 2_000
