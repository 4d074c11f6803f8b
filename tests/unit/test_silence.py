"""Silence: who is overdue against its own rhythm, against a naive twin, cut, sharded, restored."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from features.absences import Names, Peers, absence_id
from features.batch import EventBatch, FeatureMatrix
from features.catalog import Catalog, catalog
from features.clock import LaneClock
from features.engine import GroupEngine, OfflineEngine, merge, split
from features.errors import DeclarationError
from features.events import event_type, event_types
from features.events.base import EventType, Field
from features.keys import hash_columns
from features.silence import DUE_MAX
from features.spec import Feature
from tests.naive_silence import NaiveSilence
from tests.streams import START_US, cut, make_batch, stream

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US


def samples(times_us: dict[str, list[int]], service: str = "web") -> EventBatch:
    """One sample of cpu of each host at each of its times."""
    rows = [
        {"host": host, "metric": "cpu", "service": service, "value": 1.0, "time_us": int(time_us)}
        | {"event_id": f"{host}-{i}"}
        for host, times in times_us.items()
        for i, time_us in enumerate(times)
    ]
    return make_batch("metric", rows)


def told(
    engine: OfflineEngine, parts: list[dict[str, EventBatch]], clocks_us: list[int]
) -> pl.DataFrame:
    """Absences of rounds that end at the given clocks, by due time."""
    for part, clock_us in zip(parts, clocks_us, strict=True):
        engine.process(part, clock_us)
    found = [batch.frame for batch, _ in engine.take_absences()]
    empty = pl.DataFrame(schema=event_type("absence").schema)
    return pl.concat([empty, *found]).sort("time_us", "event_id")


def of(frame: pl.DataFrame, kind: str, entity: str | None = None) -> pl.DataFrame:
    """Absences of one entity type (and one entity)."""
    found = frame.filter(pl.col("entity_type") == kind)
    return found if entity is None else found.filter(pl.col("entity") == entity)


def keys_of(batch: EventBatch) -> Any:
    """Keys of the series of a batch's rows."""
    return hash_columns(batch.frame, ("host", "metric")).view(np.int64)


def every(step_us: int, begin_us: int, end_us: int) -> list[int]:
    return list(range(begin_us, end_us, step_us))


_OFTEN = (2.0, 2.0, 6.0, 8.0, 1.5, 1.0)
"""How often gaps of each kind come, about."""


def irregular(rng: np.random.Generator, n: int) -> EventBatch:
    """Hosts with all kinds of gaps: bursts, regular ones, some hours long, within two days."""
    times: dict[str, list[int]] = {}
    for h in range(5):
        gaps = rng.choice([0.2, 1.0, 20.0, 60.0, 300.0, 9_000.0], n, p=rng.dirichlet(_OFTEN))
        gaps *= rng.uniform(0.5, 1.5, n)
        times[f"h{h}"] = [START_US + int(s * 1e6) for s in np.cumsum(gaps) if s < 2 * 86_400]
    return samples(times)


@pytest.mark.parametrize("number", range(4))
def test_absences_equal_those_of_the_naive_twin(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed + number)
    batch = irregular(rng, 220)
    edges = sorted(int(e) for e in rng.integers(START_US, START_US + 2 * DAY_US, 7))
    parts = cut({"metric": batch}, edges)
    engine, naive = OfflineEngine(catalog(), 3), NaiveSilence()
    expected = []
    clock_us = 0
    for part in parts:
        mine = part["metric"] if part else batch.take(np.zeros(0, np.int64))
        clock_us = max([clock_us, *mine.time_us.tolist()])
        engine.process(part, clock_us)
        rows = keys_of(mine), mine.time_us
        expected += naive.process(list(zip(*(r.tolist() for r in rows), strict=True)), clock_us)
    found = of(pl.concat([b.frame for b, _ in engine.take_absences()]), "series")
    key_of = dict(zip(batch.frame["host"], keys_of(batch).tolist(), strict=True))
    got = sorted(
        (row["time_us"], key_of[row["entity"].split("|")[0]], row["since_us"], row["missed"],
         row["silences"], row["allowed_s"], row["usual_gap_s"])
        for row in found.iter_rows(named=True)
    )  # fmt: skip
    wanted = sorted(
        (a.due_us, a.key, a.since_us, a.missed, a.silences, a.allowed_s, a.usual_gap_s)
        for a in expected
    )
    assert len(wanted) > 20
    assert [g[:5] for g in got] == [w[:5] for w in wanted]
    np.testing.assert_allclose([g[5:] for g in got], [w[5:] for w in wanted], rtol=2e-7)


@pytest.mark.parametrize("rounds", [1, 40, 700])
def test_rounds_and_groups_do_not_change_the_absences(
    rng: np.random.Generator, rounds: int
) -> None:
    batch = irregular(rng, 150)
    end_us = START_US + 2 * DAY_US
    whole = told(OfflineEngine(catalog(), 1), [{"metric": batch}], [end_us])
    edges = [START_US + k * 2 * DAY_US // rounds for k in range(1, rounds)]
    parts = cut({"metric": batch}, edges)
    found = told(OfflineEngine(catalog(), 5), parts, [*edges, end_us])
    assert len(whole) > 20
    assert found.equals(whole)


def test_a_snapshot_in_the_midst_of_silence_changes_nothing(rng: np.random.Generator) -> None:
    batch = irregular(rng, 120)
    edges = [START_US + k * 3 * HOUR_US for k in range(1, 16)]
    parts, clocks = cut({"metric": batch}, edges), [*edges, START_US + 2 * DAY_US]
    whole = told(OfflineEngine(catalog(), 2), parts, clocks)
    first = OfflineEngine(catalog(), 2)
    begun = told(first, parts[:5], clocks[:5])
    bases = [engine.full() for engine in first.engines]
    begun = pl.concat([begun, told(first, parts[5:9], clocks[5:9])])
    deltas = [engine.delta() for engine in first.engines]
    second = OfflineEngine(catalog(), 0)
    second.engines = [
        GroupEngine.restore(catalog(), g, base, [delta])
        for g, (base, delta) in enumerate(zip(bases, deltas, strict=True))
    ]
    rest = told(second, parts[9:], clocks[9:])
    assert len(rest) and len(begun)
    assert pl.concat([begun, rest]).sort("time_us", "event_id").equals(whole)


def test_peers_hear_in_the_same_round_of_the_forgotten_after_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slots are others after it, and who is looked at when must not depend on them."""
    monkeypatch.setattr("features.state.SWEPT", 7)
    monkeypatch.setattr("features.state.SLACK_US", 0)
    ttl_h = {"host": 1.0, "series": 1.0}
    times = {
        f"{k:02d}": every(5 * MINUTE_US, START_US + k * 13 * MINUTE_US, START_US + 3 * HOUR_US
                          + k * 13 * MINUTE_US)
        for k in range(60)
    }  # fmt: skip
    step, names = 20 * MINUTE_US, Names()
    edges = [START_US + k * step for k in range(1, 60)]
    rounds = [
        split(catalog(), part, 1, 0, clock_us=clock_us, names=names)[0]
        for part, clock_us in zip(cut({"metric": samples(times)}, edges[:-1]), edges, strict=True)
    ]

    def heard(engine: GroupEngine, some: list[Any]) -> list[list[Any]]:
        found = (engine.process(rows, (0,))[0].absences for rows in some)
        return [[sorted(one.told.changes.tolist()) for one in kinds] for kinds in found]

    live = GroupEngine(catalog(), 0, ttl_h=ttl_h)
    heard(live, rounds[:20])
    base = live.full()
    heard(live, rounds[20:40])
    assert live.expired > 10, "slots are free, and were given again"
    again = GroupEngine.restore(catalog(), 0, base, [live.delta()], ttl_h=ttl_h)
    expected = heard(live, rounds[40:])
    found = heard(again, rounds[40:])
    assert found[1:] == expected[1:], "the first round after a restart tells of all there are"
    assert sum(len(changes) for kinds in expected[1:] for changes in kinds) > 10


@pytest.mark.parametrize("behind_us", [0, 10 * MINUTE_US])
def test_shares_of_silent_peers_are_the_same_wherever_it_was_begun_again(
    monkeypatch: pytest.MonkeyPatch, behind_us: int
) -> None:
    """What is forgotten at the end of a round is told in the next one, by whoever cuts that."""
    monkeypatch.setattr("features.state.SLACK_US", 0)
    ttl_h = {"host": 1.0, "series": 1.0}
    times = {
        f"{k:02d}": every(5 * MINUTE_US, START_US + k * 3 * MINUTE_US, START_US + 2 * HOUR_US
                          + k * 3 * MINUTE_US)
        for k in range(40)
    }  # fmt: skip
    names, edges = Names(), [START_US + k * 7 * MINUTE_US for k in range(1, 60)]
    live, peers, told, base = GroupEngine(catalog(), 0, ttl_h=ttl_h), Peers(), 0, None
    for part, clock_us in zip(cut({"metric": samples(times)}, edges[:-1]), edges, strict=True):
        due_us = max(clock_us - behind_us, 1)
        rows = split(catalog(), part, 1, 0, clock_us=clock_us, names=names, due_us=due_us)[0]
        expected = peers.take(live.process(rows, (0,))[0].absences)
        if base is not None:
            again = GroupEngine.restore(catalog(), 0, base, [], ttl_h=ttl_h)
            found = Peers().take(again.process(rows, (0,))[0].absences)
            assert (found is None) == (expected is None)
            if found is not None and expected is not None:
                assert found.frame.equals(expected.frame)
                told += len(found)
        base = live.full()
    assert told > 10 and live.expired > 10


def test_one_host_that_stops_among_many_is_told_by_name_with_its_series() -> None:
    end_us = START_US + HOUR_US
    times = {f"h{h}": every(10 * SECOND_US, START_US + h, end_us) for h in range(40)}
    times["h7"] = [t for t in times["h7"] if t < START_US + 30 * MINUTE_US]
    edges = every(5 * SECOND_US, START_US + 5 * SECOND_US, end_us)
    found = told(
        OfflineEngine(catalog(), 4), cut({"metric": samples(times)}, edges), [*edges, end_us]
    )
    assert set(found["entity"]) == {"h7", "h7|cpu"}
    host = of(found, "host")
    last_us = START_US + 30 * MINUTE_US - 10 * SECOND_US + 7
    assert host["time_us"].to_list() == [last_us + MINUTE_US * 2**k for k in range(5)]
    assert host["missed"].to_list() == [1, 2, 3, 4, 5]
    assert set(host["since_us"]) == {last_us}
    assert host["usual_gap_s"].to_list() == pytest.approx([10.0] * 5)
    assert set(host["holder_silent_share"]) == {0.0}
    key = int(hash_columns(pl.DataFrame({"h": ["h7"]}), ("h",)).view(np.int64)[0])
    assert host["event_id"][0] == absence_id("host", key, last_us + MINUTE_US)


def test_a_rack_that_stops_says_that_all_beside_it_are_silent_too() -> None:
    end_us = START_US + HOUR_US
    stop_us = START_US + 30 * MINUTE_US
    rack = samples({f"a{h}": every(10 * SECOND_US, START_US + h, stop_us) for h in range(5)}, "a")
    other = samples({f"b{h}": every(10 * SECOND_US, START_US + h, end_us) for h in range(5)}, "b")
    frame = pl.concat([rack.frame, other.frame])
    both = EventBatch(
        "metric", frame, np.zeros(len(frame), np.int32), np.arange(len(frame)),
        np.zeros(len(frame), np.int64),
    ).in_order()  # fmt: skip
    found = told(OfflineEngine(catalog(), 4), [{"metric": both}], [end_us])
    host = of(found, "host")
    assert set(host["entity"]) == {f"a{h}" for h in range(5)}
    assert host.sort("time_us")["holder_silent_share"].to_list() == [
        0.0, 0.25, 0.5, 0.75, 1.0, *[1.0] * 20
    ]  # fmt: skip
    pool = of(found, "series").sort("time_us")["pool_silent_share"].to_list()
    assert pool[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_nightly_job_is_told_of_at_first_and_not_after_some_nights() -> None:
    nights = [
        START_US // DAY_US * DAY_US + day * DAY_US + 2 * HOUR_US + k * 5 * SECOND_US
        for day in range(1, 11)
        for k in range(240)
    ]
    end_us = nights[-1] + HOUR_US
    found = told(OfflineEngine(catalog(), 1), [{"metric": samples({"job": nights})}], [end_us])
    days = of(found, "host")["since_us"].to_numpy() // DAY_US - nights[0] // DAY_US
    assert set(days.tolist()) == {0, 1}


def test_a_host_that_rests_at_night_is_missed_by_day() -> None:
    day_us = START_US // DAY_US * DAY_US
    times = [
        day_us + day * DAY_US + 8 * HOUR_US + k * MINUTE_US
        for day in range(1, 9)
        for k in range(600)
        if not (day == 7 and k >= 300)
    ]
    found = told(OfflineEngine(catalog(), 1), [{"metric": samples({"office": times})}],
                 [times[-1] + 30 * SECOND_US])  # fmt: skip
    host = of(found, "host").filter(pl.col("time_us") > day_us + 4 * DAY_US)
    # Two minutes after noon, not in the evening: it never rested at noon before.
    assert host["time_us"][0] - host["since_us"][0] < 3 * MINUTE_US
    assert host["since_us"][0] == day_us + 7 * DAY_US + 13 * HOUR_US - MINUTE_US
    assert host["since_us"].n_unique() == 1


def test_when_all_fall_silent_a_round_tells_of_no_more_than_its_bound_and_all_in_the_end() -> None:
    stop_us = START_US + 10 * MINUTE_US
    times = {f"h{h}": every(10 * SECOND_US, START_US + h, stop_us) for h in range(500)}
    batch = {"metric": samples(times)}
    end_us = stop_us + 5 * HOUR_US
    whole = told(OfflineEngine(catalog(), 1), [batch], [end_us])
    engine, peers = GroupEngine(catalog(), 0), Peers()
    names = Names()
    found, waiting = [], []
    for k in range(1_000):
        part = split(catalog(), batch if k == 0 else {}, 1, 0, k, end_us, names)
        got = engine.process(merge(part))[0].absences
        assert all(len(one.keys) <= DUE_MAX for one in got)
        batch_ = peers.take(got)
        if batch_ is not None:
            found.append(batch_.frame)
        elif k:
            break
        waiting.append(engine.overdue)
    same = ["event_id", "time_us", "entity", "since_us", "missed", "allowed_s"]
    assert waiting[0] == 1_000 and waiting[-1] == 0
    given = pl.concat(found).sort("time_us", "event_id")
    assert len(given) == 500 * 2 * 6
    assert given.select(same).equals(whole.select(same))


def test_nothing_is_due_while_the_clock_is_not_known() -> None:
    times = {"h": every(10 * SECOND_US, START_US, START_US + HOUR_US)}
    engine = OfflineEngine(catalog(), 1)
    assert told(engine, [{"metric": samples(times)}, {}], [0, 0]).is_empty()
    assert not told(engine, [{}], [START_US + 2 * HOUR_US]).is_empty()


def test_features_of_events_do_not_depend_on_who_is_overdue(seed: int) -> None:
    batches = stream(seed, 200)
    parts = cut(batches, [START_US + k * 10 * MINUTE_US for k in range(1, 18)])

    def features(clock: bool) -> list[dict[str, FeatureMatrix]]:
        engine = OfflineEngine(catalog(), 2)
        end_us = [max((int(b.time_us.max()) for b in p.values()), default=1) for p in parts]
        found = [engine.process(p, e if clock else 0) for p, e in zip(parts, end_us, strict=True)]
        assert not clock or engine.take_absences()
        return found

    for one, other in zip(features(True), features(False), strict=True):
        for name, matrix in one.items():
            np.testing.assert_array_equal(matrix.values, other[name].values)


def test_names_are_sent_once_and_again_after_an_hour_away() -> None:
    names = Names()

    def sent(*times_us: int) -> list[str]:
        batch = samples({"h": list(times_us)})
        part = split(catalog(), {"metric": batch}, 1, names=names)[0]
        texts = part.names["host"][1] if "host" in part.names else []
        return [bytes(text).rstrip(b"\0").decode() for text in texts]

    assert sent(START_US, START_US + 1) == ["h"]
    assert sent(START_US + MINUTE_US) == []
    assert sent(START_US + 3 * HOUR_US) == ["h"]


def test_an_absence_of_a_nameless_entity_goes_by_its_key() -> None:
    times = {"h": every(10 * SECOND_US, START_US, START_US + HOUR_US)}
    part = split(catalog(), {"metric": samples(times)}, 1, clock_us=START_US + 2 * HOUR_US)
    engine = GroupEngine(catalog(), 0)
    batch = Peers().take(engine.process(part[0])[0].absences)
    assert batch is not None
    key = int(hash_columns(pl.DataFrame({"h": ["h"]}), ("h",))[0])
    assert set(of(batch.frame, "host")["entity"]) == {f"#{key:016x}"}


def test_absences_go_to_the_lowest_lane_and_changes_among_peers_to_all() -> None:
    times = {"h": every(10 * SECOND_US, START_US, START_US + HOUR_US)}
    parts = split(catalog(), {"metric": samples(times)}, 1, 2, 0, START_US + 2 * HOUR_US, Names())
    got = GroupEngine(catalog(), 0).process(parts[0], (4, 2))
    assert sum(len(one.keys) for one in got[2].absences) > 0
    assert sum(len(one.keys) for one in got[4].absences) == 0
    assert [one.told.changes.tolist() for one in got[4].absences] == [
        one.told.changes.tolist() for one in got[2].absences
    ]


def test_no_source_gives_absences_and_no_operation_keeps_state_of_them() -> None:
    assert "absence" not in event_types()
    assert event_type("absence").subject == ("entity_type", "entity")
    wrong = [
        Feature("a", "absence", "absent", "count", "{value}", "1", "silence", window_s=60),
        Feature("b", "metric", "host", "count", "{value}", "1", "velocity", window_s=60,
                feeds=("absence",)),
    ]  # fmt: skip
    with pytest.raises(DeclarationError) as caught:
        Catalog(wrong)
    assert "no 'absence' enters" in str(caught.value)
    assert "fed by unknown event type 'absence'" in str(caught.value)


def test_a_silence_of_nobody_or_beside_nobody_is_refused_with_all_faults() -> None:
    fields = (Field("event_id", "string", "id"), Field("time_us", "time_us", "when"))
    given: dict[str, Any] = {"entities": {"a": ("event_id",)}, "primary": "a"}
    with pytest.raises(DeclarationError) as caught:
        EventType("x", "d", "t", fields, **given, silence={"b": (), "a": ("c", "a", "event_id")})
    text = str(caught.value)
    assert "silence of 'b'" in text and "beside 'c'" in text and "a holder and a pool" in text


def test_hosts_whose_partition_is_hours_behind_are_not_silent() -> None:
    """After a break one partition is at the present, another still reads what waited in it."""
    cat = catalog()
    clock = LaneClock(MINUTE_US, MINUTE_US, by_partition=True)
    engine, names, peers = GroupEngine(cat, 0), Names(), Peers()
    now_us, told = START_US + 6 * HOUR_US, 0
    for round_ in range(60):
        here = samples({f"a{h}": [now_us + round_ * SECOND_US // 10 + h] for h in range(40)})
        begin = START_US + round_ * 30 * SECOND_US
        steps = range(0, 30 * SECOND_US, 10 * SECOND_US)
        behind = samples({f"b{h}": [begin + h + k for k in steps] for h in range(20)})
        batch = EventBatch(
            "metric",
            pl.concat([here.frame, behind.frame]),
            np.repeat(np.array([0, 1], np.int32), [len(here), len(behind)]),
            np.arange(len(here) + len(behind)),
            np.zeros(len(here) + len(behind), np.int64),
        ).in_order()
        at_us = clock.advance({"metric": batch}, now_us + round_ * SECOND_US // 10 + SECOND_US)
        parts = split(cat, {"metric": batch}, 1, 0, round_, at_us, names, clock.due_us)
        got = peers.take(engine.process(merge(parts))[0].absences)
        told += 0 if got is None else len(got)
    assert at_us > now_us and clock.due_us < START_US + HOUR_US
    assert told == 0
