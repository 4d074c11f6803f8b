"""Windows that run empty while nothing comes: who is told, as of when, and what is said."""

from __future__ import annotations

import numpy as np
import pytest

from features.batch import EventBatch
from features.catalog import Catalog, catalog
from features.emptied import EmptiedWheel, timed_names
from features.engine import GroupEngine, split
from features.rows import emptied_rows
from tests.naive_emptied import Quiet
from tests.streams import START_US, make_batch

CARDS = Catalog(
    tuple(f for f in catalog().features("payment") if f.entity == "card" and f.op != "shrunk_z")
)
VIEW = ("payment", "card")
SECOND_US = 1_000_000
WINDOWS_US = [60 * SECOND_US, 300 * SECOND_US, 3_600 * SECOND_US]
EVERYONE = 1 << 30

Told = dict[int, tuple[int, dict[str, float]]]


def told_by(engine: GroupEngine, batch: EventBatch | None, clock_us: int, round_: int) -> Told:
    """Let a round pass; card -> (as of when, what is said)."""
    batches = {} if batch is None else {"payment": batch}
    part = split(CARDS, batches, 1, 0, round_, clock_us)[0]
    result = engine.process(part, (0,))[0]
    made = emptied_rows(CARDS, result.emptied)
    if not made:
        return {}
    keys, times, values = made[VIEW]
    names = timed_names(CARDS, *VIEW)
    assert len(set(keys.tolist())) == len(keys), "each once a round"
    return {
        key: (time_us, dict(zip(names, row, strict=True)))
        for key, time_us, row in zip(keys.tolist(), times.tolist(), values.tolist(), strict=True)
    }


def payments(times: list[int], cards: list[str], amounts: list[float]) -> EventBatch:
    """Payments at times, one id each."""
    rows = [
        {
            "event_id": f"{card}-{us}-{i}",
            "card_id": card,
            "user_id": "u",
            "merchant_id": f"m{us % 3}",
            "amount": amount,
            "time_us": us,
        }
        for i, (us, card, amount) in enumerate(zip(times, cards, amounts, strict=True))
    ]
    return make_batch("payment", rows, partitions=1)


Round = tuple[EventBatch | None, int]


def rounds(rng: np.random.Generator, many: int = 60) -> list[Round]:
    """Rounds of payments of a few cards after waits short and long, and the clock after each."""
    found: list[Round] = []
    now = START_US
    for _ in range(many):
        wait_us = int(rng.choice([1, 20, 90, 700, 4_000])) * SECOND_US
        n = int(rng.integers(0, 12))
        times = np.sort(rng.integers(now + 1, now + wait_us, n)).tolist()
        cards = [f"card{i}" for i in rng.integers(0, 9, n)]
        batch = payments(times, cards, rng.uniform(1.0, 99.0, n).tolist()) if n else None
        found.append((batch, now + wait_us))
        now += wait_us
    return found


def keys_of(batch: EventBatch) -> list[int]:
    """Key of each row's card."""
    head = split(CARDS, {"payment": batch}, 1)[0].heads["card"]
    return [int(key) for key in head[:, 0]]


@pytest.mark.parametrize("late_s", [0.0, 60.0])
def test_who_is_told_and_what_is_said_are_those_of_the_naive_twin(
    rng: np.random.Generator, late_s: float
) -> None:
    engine, twin = GroupEngine(CARDS, 0, late_s, emptied_max=EVERYONE), Quiet(WINDOWS_US)
    amounts: dict[int, list[tuple[int, float]]] = {}
    told = 0
    for number, (batch, clock_us) in enumerate(rounds(rng)):
        if batch is not None:
            rows = zip(keys_of(batch), batch.time_us.tolist(), batch.frame["amount"], strict=True)
            for key, time_us, amount in rows:
                twin.hear(key, time_us)
                amounts.setdefault(key, []).append((time_us, amount))
        expected = twin.speak(clock_us)
        found = told_by(engine, batch, clock_us, number)
        assert set(found) == set(expected)
        for key, (at_us, counts) in expected.items():
            time_us, said = found[key]
            assert time_us == at_us
            assert [said[f"card_count_{w}"] for w in ("1m", "5m", "1h")] == counts
            inside = [x for t, x in amounts[key] if at_us - WINDOWS_US[-1] < t <= at_us]
            assert said["card_amount_sum_1h"] == pytest.approx(sum(inside), abs=1e-9)
            if inside:
                assert said["card_amount_max_1h"] == max(inside)
                assert said["card_amount_mean_1h"] == pytest.approx(np.mean(inside))
            else:
                assert np.isnan(said["card_amount_max_1h"])
                assert np.isnan(said["card_amount_mean_1h"])
            surprise = np.sqrt(counts[0]) + np.sqrt(counts[0] + 1.0)
            surprise -= np.sqrt(4.0 * said["card_usual_1m"] + 1.0)
            assert said["card_surprise_1m"] == pytest.approx(surprise)
        told += len(found)
    assert told > 50


def test_what_is_told_changes_no_feature_of_an_event(rng: np.random.Generator) -> None:
    telling, silent = GroupEngine(CARDS, 0, emptied_max=EVERYONE), GroupEngine(CARDS, 0)
    for number, (batch, clock_us) in enumerate(rounds(rng)):
        batches = {} if batch is None else {"payment": batch}
        part = split(CARDS, batches, 1, 0, number, clock_us)[0]
        a, b = (engine.process(part, (0,))[0].parts.get(VIEW) for engine in (telling, silent))
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            np.testing.assert_array_equal(a[1], b[1])
    other = silent.full()
    differ = {
        name for name, array in telling.full().items()
        if array.tobytes() != other[name].tobytes()
    }  # fmt: skip
    assert differ == {"card.fed_us", "card.emptied"}


def test_a_restart_anywhere_tells_the_same_in_the_same_rounds(rng: np.random.Generator) -> None:
    for most in (EVERYONE, 2):
        stream = rounds(rng)
        whole, cut = (GroupEngine(CARDS, 0, emptied_max=most) for _ in range(2))
        base, deltas = cut.full(), []
        for number, (batch, clock_us) in enumerate(stream):
            expected = told_by(whole, batch, clock_us, number)
            # As text: what is not known equals itself.
            assert repr(told_by(cut, batch, clock_us, number)) == repr(expected)
            if rng.random() < 0.3:
                deltas.append(cut.delta())
                cut = GroupEngine.restore(CARDS, 0, base, deltas, emptied_max=most)


def test_no_more_are_told_in_a_round_than_may_be_and_the_longest_empty_come_first() -> None:
    engine = GroupEngine(CARDS, 0, emptied_max=3)
    times = [START_US + i * SECOND_US for i in range(10)]
    batch = payments(times, [f"card{i}" for i in range(10)], [1.0] * 10)
    assert told_by(engine, batch, times[-1], 0) == {}
    order = keys_of(batch)
    clock_us = times[-1] + 100 * SECOND_US
    found = [list(told_by(engine, None, clock_us, r)) for r in range(1, 6)]
    assert [sorted(f) for f in found] == [
        sorted(order[:3]), sorted(order[3:6]), sorted(order[6:9]), order[9:], []
    ]  # fmt: skip


def test_one_who_speaks_again_before_its_window_is_empty_is_not_told() -> None:
    engine = GroupEngine(CARDS, 0, emptied_max=EVERYONE)
    for i in range(20):
        now = START_US + i * 50 * SECOND_US
        assert told_by(engine, payments([now], ["a"], [1.0]), now, i) == {}
    last = START_US + 19 * 50 * SECOND_US
    found = told_by(engine, None, last + 70 * SECOND_US, 20)
    assert [at for at, _ in found.values()] == [last + WINDOWS_US[0]]
    assert told_by(engine, None, last + 80 * SECOND_US, 21) == {}, "once"


def test_a_late_event_is_counted_where_its_windows_run_empty() -> None:
    engine = GroupEngine(CARDS, 0, late_s=600.0, emptied_max=EVERYONE)
    told_by(engine, payments([START_US], ["a"], [1.0]), START_US, 0)
    told_by(engine, None, START_US + 90 * SECOND_US, 1)
    late = START_US + 10 * SECOND_US
    clock_us = START_US + 95 * SECOND_US
    (at_us, said), *_ = told_by(engine, payments([late], ["a"], [2.0]), clock_us, 2).values()
    assert at_us == late + WINDOWS_US[0] and said["card_count_1m"] == 0.0
    assert said["card_count_5m"] == 2.0 and said["card_amount_sum_1h"] == 3.0


def test_an_entity_that_was_forgotten_is_not_told() -> None:
    engine = GroupEngine(CARDS, 0, ttl_h={"card": 1.0}, emptied_max=EVERYONE)
    told_by(engine, payments([START_US], ["a"], [1.0]), START_US, 0)
    days_us = START_US + 5 * 86_400 * SECOND_US
    engine.process(split(CARDS, {}, 1, 0, 1, 0)[0], (0,))
    for state in engine._states.values():
        state.expire(days_us)
    assert engine.entities["card"] == 0
    assert told_by(engine, None, days_us, 2) == {}


def test_a_wheel_with_nothing_to_turn_waits_for_nobody() -> None:
    engine = GroupEngine(CARDS, 0, emptied_max=1)
    wheel, clock_us = engine._states["card"].emptied, START_US + 90 * SECOND_US
    assert not wheel.waits(clock_us), "nobody has come"
    told_by(engine, payments([START_US] * 2, ["a", "b"], [1.0] * 2), START_US, 0)
    assert not wheel.waits(START_US) and wheel.waits(clock_us)
    assert len(told_by(engine, None, clock_us, 1)) == 1
    assert wheel.waits(clock_us), "one is left"
    assert len(told_by(engine, None, clock_us, 2)) == 1
    told_by(engine, None, clock_us, 3)
    assert not wheel.waits(clock_us)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(EmptiedWheel, "speak")
        assert told_by(engine, None, clock_us, 4) == {}, "it is not asked"


def test_off_means_that_nothing_is_kept() -> None:
    engine = GroupEngine(CARDS, 0)
    told_by(engine, payments([START_US], ["a"], [1.0]), START_US, 0)
    assert told_by(engine, None, START_US + 7_200 * SECOND_US, 1) == {}
    assert not engine.full()["card.fed_us"].any()


def test_room_is_made_for_all_who_are_told_and_where_none_is_for_nobody() -> None:
    many = payments([START_US] * 900, [f"card{i}" for i in range(900)], [1.0] * 900)
    sizes = {}
    for most in (0, EVERYONE):
        engine = GroupEngine(CARDS, 0, emptied_max=most)
        before = engine._states["card"].emptied.memory_bytes
        told_by(engine, many, START_US, 0)
        told = told_by(engine, None, START_US + 90 * SECOND_US, 1)
        assert len(told) == (900 if most else 0)
        sizes[most] = engine._states["card"].emptied.memory_bytes - before
    assert sizes[0] == 0 and sizes[EVERYONE] >= 4 * (900 - 256)


def usual(times: list[int], at_us: int, window_us: int) -> float:
    """Events one expects in a window by those that have been, each fading over a week."""
    tau_us = 7 * 86_400 * SECOND_US
    age_us = max(at_us - times[0], 86_400 * SECOND_US)
    decayed = sum(np.exp((t - at_us) / tau_us) for t in times)
    return float(decayed / (tau_us * (1.0 - np.exp(-age_us / tau_us))) * window_us)


def test_an_address_that_falls_silent_is_told_its_own_usual_count_and_surprise() -> None:
    logins, view = catalog(("login",)), ("login", "ip")
    engine = GroupEngine(logins, 0, emptied_max=EVERYONE)
    times = [START_US + i * 10 * SECOND_US for i in range(30)]
    rows = [
        {"event_id": f"l{us}", "user_id": f"u{i % 3}", "ip": "i", "time_us": us}
        for i, us in enumerate(times)
    ]
    batch = {"login": make_batch("login", rows, partitions=1)}
    engine.process(split(logins, batch, 1, 0, 0, times[-1])[0], (0,))
    names = timed_names(logins, *view)
    clock_us = times[-1] + WINDOWS_US[-1] + 2 * SECOND_US
    told = engine.process(split(logins, {}, 1, 0, 1, clock_us)[0], (0,))[0].emptied
    _, (at_us,), (row,) = emptied_rows(logins, told)[view]
    said = dict(zip(names, row.tolist(), strict=True))
    assert at_us == times[-1] + WINDOWS_US[-1] and said["ip_count_1h"] == 0.0
    expected = usual(times, int(at_us), WINDOWS_US[-1])
    assert expected > 1.0
    assert said["ip_usual_1h"] == pytest.approx(expected)
    assert said["ip_expected_1h"] == pytest.approx(expected)
    assert said["ip_surprise_1h"] == pytest.approx(1.0 - np.sqrt(4.0 * expected + 1.0))


def test_every_surprise_of_a_window_is_told_with_it() -> None:
    missing = [
        feature.name
        for view, features in catalog().views().items()
        for feature in features
        if feature.op == "surprise" and feature.name not in timed_names(catalog(), *view)
    ]
    assert missing == []
