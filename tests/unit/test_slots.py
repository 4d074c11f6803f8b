"""Slots of entities against a dict."""

from __future__ import annotations

import numpy as np

from features.slots import SlotTable


def rows(keys: list[int], times: list[int]) -> np.ndarray:
    return np.array([keys, times], np.int64).T.copy()


def test_slots_are_given_in_the_order_of_first_meeting(rng: np.random.Generator) -> None:
    """More keys than any first size, negative ones and many that share their low bits."""
    keys = rng.integers(-(1 << 62), 1 << 62, 30_000) << rng.integers(0, 40, 30_000)
    keys[keys == 0] = 1
    stream = keys[rng.integers(0, len(keys), 90_000)]
    expected: dict[int, int] = {}
    table = SlotTable()
    for part in np.array_split(stream, 37):
        slots, _, _ = table.intern(rows(part.tolist(), [0] * len(part)))
        wanted = [expected.setdefault(k, len(expected)) for k in part.tolist()]
        assert slots.tolist() == wanted
    assert table.used == len(expected)
    assert table.keys[: table.used].tolist() == list(expected)


def test_a_row_is_never_taken_before_its_entity_s_newest_time() -> None:
    table = SlotTable()
    _, taken, _ = table.intern(rows([7, 7, 8, 7, 8, 7], [10, 5, 3, 10, 4, 11]))
    assert taken.tolist() == [10, 10, 3, 10, 4, 11]
    assert table.late == 1


def test_slots_continue_after_a_load() -> None:
    table = SlotTable()
    table.intern(rows([5, 6, 5], [1, 2, 3]))
    slots = table.take_dirty()
    assert slots.tolist() == [0, 1] and table.take_dirty().tolist() == []
    loaded = SlotTable()
    loaded.load(slots, table.keys[slots], table.newest_us[slots], table.first_us[slots])
    found, taken, _ = loaded.intern(rows([6, 9, 5], [1, 1, 9]))
    assert found.tolist() == [1, 2, 0] and taken.tolist() == [2, 1, 9]
    assert loaded.late == 1


def test_idle_entities_leave_and_their_slots_are_given_to_others(
    rng: np.random.Generator,
) -> None:
    """Against a dict, with keys that share their low bits, so that removing moves others."""
    ttl_us = 50
    table = SlotTable(ttl_us)
    newest: dict[int, int] = {}
    slot_of: dict[int, int] = {}
    now = forgotten = 0
    for _ in range(300):
        keys = ((rng.integers(1, 120, 9) << 40) | rng.integers(1, 5, 9)).tolist()
        times = sorted(rng.integers(now, now + 20, 9).tolist())
        now += int(rng.choice([5, 30, 80]))
        slots, _, _ = table.intern(rows(keys, times))
        left = table.take_left()
        gone = []
        for key, time, slot in zip(keys, times, slots.tolist(), strict=True):
            if key in newest and time - newest[key] > ttl_us:
                gone.append(slot_of.pop(key))
                del newest[key]
            assert slot_of.setdefault(key, slot) == slot
            newest[key] = max(time, newest.get(key, time))
        assert left.tolist() == gone
        assert len(set(slot_of.values()) | set(gone)) == len(slot_of) + len(gone)
        before_us = now - ttl_us - 40
        table.sweep(before_us, 7)
        swept = table.take_left().tolist()
        for key in [k for k, s in slot_of.items() if s in swept]:
            assert newest.pop(key) < before_us
            del slot_of[key]
        table.release(np.array(gone + swept, np.int64))
        forgotten += len(gone) + len(swept)
        known = np.array(list(slot_of), np.uint64)
        assert table.find(known).tolist() == list(slot_of.values())
        assert table.live == len(slot_of) and table.expired == forgotten
    assert 2 * table.used < forgotten
    table.hear(now + 10_000)
    assert table.find(known).tolist() == [-1] * len(known)


def test_room_is_made_for_new_entities_and_not_for_rows() -> None:
    """Rounds of many rows of known entities, then of new ones: a fifth of the slots is idle."""
    table = SlotTable()
    known = rows(list(range(1, 201)) * 100, [0] * 20_000)
    table.intern(known)
    assert table.used == 200 and table.capacity == 256
    for first in range(0, 50_000, 20_000):
        table.intern(rows(list(range(1 + first, 20_001 + first)), [0] * 20_000))
        assert table.used <= table.capacity <= 1.25 * table.used + 256
        places = len(table._table_key)
        assert 0.6 * places <= table.capacity <= 0.82 * places or places == 1_024
    assert table.used == 60_000
    found = table.find(np.arange(1, 60_001, dtype=np.uint64))
    assert np.array_equal(np.sort(found), np.arange(60_000))


def test_a_slot_that_is_left_says_whose_it_was_until_it_is_cleared() -> None:
    """Also in a table that is loaded in between, where the key has its new slot already."""
    table, loaded = SlotTable(50), SlotTable(50)
    table.intern(rows([7, 8], [0, 0]))
    slots, _, _ = table.intern(rows([7, 9], [100, 100]))
    assert slots.tolist() == [2, 3]
    some = table.take_dirty()
    loaded.load(some, table.keys[some], table.newest_us[some], table.first_us[some])
    for one in (table, loaded):
        assert one.find(np.array([7, 8, 9], np.uint64)).tolist() == [2, 1, 3]
        left = one.take_left()
        assert left.tolist() == [0] and one.whose(left).tolist() == [7]
        assert one.over(left, np.array([50])).tolist() == [False]
        assert one.over(left, np.array([51])).tolist() == [True]
        one.put_back(left)
        one.sweep(60, 10)
        left = one.take_left()
        assert left.tolist() == [0, 1] and one.whose(left).tolist() == [7, 8]
        one.release(left)
        assert one.live == 2 and one.whose(left).tolist() == [0, 0]
    table.intern(rows([5], [120]))
    some = table.take_dirty()
    loaded.load(some, table.keys[some], table.newest_us[some], table.first_us[some])
    assert loaded.take_left().tolist() == [] and loaded.live == table.live == 3
