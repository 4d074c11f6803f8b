"""The faults, each a function that breaks something under a running flow and accounts for it.

A function takes a `Make` and whether to be short, and returns its row. What a promise says beyond
the counts it asserts itself.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import resource
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

import numpy as np
import polars as pl
import psutil
import redis

from dataflows.sources.kafka import IDS
from dataflows.state.journal import read_cuts
from dataflows.store.layout import layouts
from dataflows.store.reader import StoreReader
from dataflows.store.shadow import MARKS_KEY
from features.catalog import catalog
from features.decode import decode, schema_ids
from features.encode import avro_bodies, confluent_header, json_bodies
from features.events import event_type, event_types
from features.events.avro import avro_schema
from features.simulate import Simulator
from tests.flow.harness import alerts_of, command, environment
from tests.service.faults.field import (
    EVENT,
    PARTITIONS,
    WAIT_S,
    Field,
    Flow,
    Row,
    Servers,
    rss_mb,
    wait,
)
from tests.service.servers import Kafka

__all__ = ["FAULTS", "Make"]


class Make(Protocol):
    """Makes the field of a fault, with further settings."""

    servers: Servers
    seed: int

    def __call__(self, **more: object) -> Field: ...


TIMES = 3.0
"""The load of `overload`, in what the flow can take."""

LOAD_MIN = 12_000
"""Events of it at least: several rounds of both lanes. Chosen."""

HELD_MB = 250.0
"""Most by which memory may grow with a backlog, however long. Two lanes hold 32 MB in the client
and 50,000 messages of 1 kB each; the rest is for the state of new cards. Chosen."""

LATER, LATER_S = 2.0, 0.2
"""Latency while the store is broken may be so many times that without, and so many seconds more:
the median of ten is noisy on two busy cores, and who waits for the store waits a second. Not looked
at in short. Chosen."""

PER_S = 100.0
"""Events a second while something is broken. Chosen: each becomes an alert, on two busy cores."""


def kills(make: Make, short: bool) -> Row:
    """kill -9 again and again, at random moments of start, work and snapshots."""
    field = make()
    times = 2 if short else 20
    field.flow.start()
    field.live()
    field.sender.begin(PER_S)
    for _ in range(times):
        time.sleep(field.chance.uniform(0.0, 3.0))
        # Some die while they start, most at work: a few alerts more than there were.
        if field.chance.random() < 0.8:
            field.live()
            time.sleep(field.chance.uniform(0.0, 2.0))
        field.flow.kill()
        field.flow.start()
    field.sender.end()
    seconds = field.live()
    field.sender.end()
    wait(lambda: field.has(field.sender.acked), "everything is through")
    report = field.flow.stop()
    row = field.account(kills=times, duplicates=report["duplicates"])
    row.seconds_to_live = seconds
    return row


def _told(field: Field, names: Collection[str]) -> set[str]:
    """Ids of the alerts of some events."""
    return {alert["id"] for alert in alerts_of(field.state) if alert["event_id"] in names}


def kills_topic(make: Make, short: bool) -> Row:
    """kill -9 of one process of two, or of all, with journal, alerts and dead letters in topics."""
    mark = f"{os.getpid()}-{time.time_ns() % 10**9}"
    topics = {name: f"{name}-{mark}" for name in ("alerts", "letters", "journal")}
    kafka = make.servers.kafka
    field = make(
        alerts="jsonl,kafka", alerts_topic=topics["alerts"], dead_letters_topic=topics["letters"],
        journal_topic=topics["journal"],
    )  # fmt: skip
    times = 1 if short else 10
    field.flow = Flow(field, workers=2).start()
    first, heard = field.sender.send(PARTITIONS), set[str]()

    def met() -> bool:
        """A process listens until it has met the others."""
        heard.update(field.flow.listens())
        return field.has(first)

    wait(met, "it is live", every_s=0.01)
    # They meet within moments, which a look may miss: of eleven starts one is seen.
    assert heard <= {"127.0.0.1"}, "nobody from elsewhere can connect"
    field.sender.begin(PER_S)
    junk = [f"junk-{i}" for i in range(40)]
    told = {name: Counter[str]() for name in ("alerts", "letters")}
    for i in range(times):
        for name in junk[i::times]:
            field.sender._produce(name, b"{" + name.encode(), i % PARTITIONS)
        time.sleep(field.chance.uniform(0.5, 2.0))
        workers = field.flow.children()
        if i % 2:
            field.flow.kill()
            psutil.wait_procs(workers, WAIT_S)
            field.flow.start()
        else:
            field.chance.choice(workers).kill()
        first = field.sender.send(PARTITIONS)
        wait(met, "it is live again", every_s=0.01)
        # The log has them first; what was told once more stands before them in the topic.
        wait(lambda names=first: _told(field, names) <= _counts(kafka, topics["alerts"]).keys(),
             "the topic has them too")  # fmt: skip
        for name, before in told.items():
            told[name] = _counts(kafka, topics[name])
            assert _again(before, told[name]) <= 1, f"{name}: at most once more a crash"
    assert short or heard == {"127.0.0.1"}, "nobody was seen to wait for the others"
    field.sender.end()
    seconds = field.live()
    field.sender.end()
    bad = {f"{field.topic}/{p}/{o}" for name in junk for p, o in [field.sender.acked.pop(name)]}
    wait(lambda: field.has(field.sender.acked), "everything is through")
    field.flow.stop()
    logged = {alert["id"] for alert in alerts_of(field.state)}
    for name, wanted in (("alerts", logged), ("letters", bad)):
        found = _counts(kafka, topics[name])
        assert found.keys() == wanted, f"{name}: every one is there, and no other"
        assert _again(told[name], found) <= 0, f"{name}: none once more without a crash"
    row = field.account(kills=times, letters=len(bad), alerts=len(logged), listened=sorted(heard))
    row.seconds_to_live = seconds
    return row


def broker_away(make: Make, short: bool) -> Row:
    """The broker is gone for half a minute, and comes back with its data."""
    field = make()
    field.flow.start()
    field.live()
    field.sender.begin(PER_S)
    time.sleep(1.0)
    field.servers.kafka.stop(signal.SIGKILL)
    time.sleep(1.0 if short else 30.0)
    wait(lambda: "no broker answers" in field.flow.said(), "it says that it waits")
    field.servers.kafka.start()
    seconds = field.live()
    field.sender.end()
    wait(lambda: field.has(field.sender.acked), "everything is through")
    field.flow.stop()
    row = field.account()
    row.seconds_to_live = seconds
    return row


def retention(make: Make, short: bool) -> Row:
    """Offsets that were to be read are deleted while nobody runs."""
    field = make()
    field.flow.start()
    field.live()
    field.flow.stop()
    field.sender.end()
    first = 1 + max(offset for p, offset in field.sender.acked.values() if p == 1)
    field.sender.send(400)
    field.sender.end()
    end = max(offset for p, offset in field.sender.acked.values() if p == 1)
    field.servers.kafka.delete_records(field.topic, {1: end - 10})
    field.flow.start()
    seconds = field.live()
    field.sender.end()
    named = f"partition 1: offsets {first} to {end - 11} ({end - 10 - first} records)"
    wait(lambda: named in field.flow.said(), "the gap is named")
    report = field.flow.stop()
    (gap,) = report["gaps"]
    assert report["lost"] == gap["count"] == end - 10 - first > 0
    assert (gap["topic"], gap["partition"]) == (field.topic, 1)
    assert (gap["from"], gap["to"]) == (first, end - 11)
    row = field.account(report["gaps"])
    row.seconds_to_live = seconds
    return row


def topic_made_anew(make: Make, short: bool) -> Row:
    """The topic is deleted and made again under the flow: it stops, refuses to take the new one for
    the old one, and does what it says may be done."""
    field = make()
    field.flow.start()
    field.live()
    field.sender.end()
    wait(lambda: _know_the_topic(field), "all lanes have noted the topic's id")
    field.live()
    field.sender.end()
    wait(lambda: field.has(field.sender.acked), "everything is through")
    before = field.account()
    field.servers.kafka.delete_topic(field.topic)
    field.servers.kafka.create_topic(field.topic, PARTITIONS)
    assert field.flow.ended() == 2, "while it runs"
    assert field.flow.start().ended() == 2, "and at the start"
    refused = [one for one in field.flow.said().splitlines() if "deleted and made anew" in one]
    assert len(refused) == 2, field.flow.said()
    assert all("empty state_dir" in one and "event_types" in one for one in refused), "both cures"
    field.begin_anew()
    field.flow.start()
    seconds = field.live()
    field.sender.end()
    field.flow.stop()
    row = field.account()
    assert row.sent == row.scored >= PARTITIONS, "the new topic, from its beginning"
    row.seconds_to_live = seconds
    for count in ("sent", "scored", "dead_lettered", "lost", "gap", "twice"):
        setattr(row, count, getattr(row, count) + getattr(before, count))
    return row


def partitions_added(make: Make, short: bool) -> Row:
    """The topic gets more partitions under the running flow, which finds and names them."""
    field = make()
    field.flow.start()
    field.live()
    field.servers.kafka.add_partitions(field.topic, PARTITIONS + 2)
    time.sleep(3.0)  # the producer, too, has to hear of them
    names = field.sender.send(120, partitions=PARTITIONS + 2)
    field.sender.end()
    seconds = wait(lambda: field.has(names), "the new partitions are read")
    assert "new partitions" in field.flow.said()
    field.flow.stop()
    assert {p for p, _ in field.sender.acked.values()} == set(range(PARTITIONS + 2))
    row = field.account()
    row.seconds_to_live = seconds
    return row


def redis_emptied(make: Make, short: bool) -> Row:
    """Redis is emptied under the running flow: it gets back what it had, bit by bit."""
    field = make(store="redis", redis_url=_database(make, 5))
    field.flow.start()
    field.live()
    field.sender.send(600)
    field.sender.end()
    wait(lambda: field.has(field.sender.acked), "everything is through")
    url = str(field.settings["redis_url"])
    before = _settled(field, url)
    assert len(before) > 100
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        client.flushdb()
    seconds = wait(lambda: _contents(url) == before, "the store holds what it held")
    seconds = max(seconds, field.live())
    field.sender.end()
    field.flow.stop()
    row = field.account(entities=len(before))
    row.seconds_to_live = seconds
    return row


def redis_gone(make: Make, short: bool) -> Row:
    """Redis is away, and comes back empty; detection does not wait, the store is right again."""
    field = make(store="redis", redis_url=_database(make, 6))
    url = str(field.settings["redis_url"])
    field.flow.start()
    field.live()
    times = 1 if short else 10
    before = _latency(field, times)
    field.servers.redis.stop(signal.SIGKILL)
    field.sender.begin(PER_S)
    time.sleep(1.0 if short else 30.0)
    during = _latency(field, times)
    field.sender.end()
    wait(lambda: field.has(field.sender.acked), "detection goes on")
    wait(lambda: "is away" in field.flow.said(), "Redis is missed")
    field.servers.redis.start()
    seconds = wait(lambda: "is back" in field.flow.said(), "Redis is found again")
    after = _latency(field, times)
    report = field.flow.stop()
    assert short or during < LATER * max(before, after) + LATER_S, (before, during, after)
    assert report["pending"] == 0
    entities = _as_replayed(field, url, 7)
    row = field.account(
        latency_s_before=before, latency_s_during=during, latency_s_after=after, entities=entities
    )
    row.seconds_to_live = seconds
    return row


def redis_slow(make: Make, short: bool) -> Row:
    """Each answer of Redis takes a second: detection does not wait for it."""
    url, times = _database(make, 8), 1 if short else 10
    with _slow(url) as slow:
        field = make(store="redis", redis_url=slow.url)
        field.flow.start()
        field.live()
        before = _latency(field, times)
        slow.wait_s = 1.0
        field.sender.begin(PER_S)
        time.sleep(2.0 if short else 20.0)
        during = _latency(field, times)
        field.sender.end()
        wait(lambda: field.has(field.sender.acked), "detection goes on")
        slow.wait_s = 0.0
        seconds = field.live()
        after = _latency(field, times)
        field.sender.end()
        field.flow.stop()
    assert short or during < LATER * max(before, after) + LATER_S, (before, during, after)
    entities = _as_replayed(field, url, 9)
    row = field.account(
        latency_s_before=before, latency_s_during=during, latency_s_after=after, entities=entities
    )
    row.seconds_to_live = seconds
    return row


def registry_away(make: Make, short: bool) -> Row:
    """The registry hangs: known schemas go on, records of a new one wait, then are refused."""
    field = make(kafka_format="avro")
    registry = field.servers.registry
    declared = avro_schema(EVENT)
    newer = declared | {
        "fields": [*declared["fields"], {"name": "mood", "type": "long", "default": 1}]
    }
    known = registry.register(f"{field.topic}-value", declared)
    fresh = registry.register(f"{field.topic}-newer", newer)
    field.sender.encode = lambda f: avro_bodies(declared, f, confluent_header(known))
    field.flow.start()
    field.live()
    registry.freeze()
    try:
        field.sender.encode = lambda f: avro_bodies(
            newer, f.with_columns(mood=1), confluent_header(fresh)
        )
        waiting = field.sender.send(50, partitions=1)
        field.sender.end()
        time.sleep(1.0)
        field.sender.encode = lambda f: avro_bodies(declared, f, confluent_header(known))
        frame = field.sender.frame(60)
        names = frame["event_id"].to_list()
        for i, message in enumerate(field.sender.encode(frame)):
            field.sender._produce(names[i], message, 1 + i % (PARTITIONS - 1))
        field.sender.end()
        seconds = wait(lambda: field.has(names), "known schemas go on")
        assert not field.has(waiting[:1]), field.flow.said()[-3000:]
        wait(lambda: len(field.letters()) == len(waiting), "patience is at its end")
    finally:
        registry.thaw()
    assert {x["reason"] for x in field.letters()} == {"unknown_schema"}
    field.live()
    field.sender.end()
    field.flow.stop()
    row = field.account()
    assert row.dead_lettered == len(waiting)
    row.seconds_to_live = seconds
    return row


def disk_full(make: Make, short: bool) -> Row:
    """The disk is full under journal and state: one sentence; with room again, all goes on."""
    field = make()
    with _small_disk(field) as (limit, free):
        field.flow = Flow(field, limit=limit)
        field.flow.start()
        field.sender.begin(10 * PER_S)
        status = field.flow.ended()
        field.sender.end()
        said = [line for line in field.flow.said().splitlines() if line.startswith("waxwing:")]
        assert status == 2 and "free space" in said[-1], field.flow.said()[-3000:]
        assert "Traceback" not in field.flow.said() and "panicked" not in field.flow.said()
        free()
        field.flow = Flow(field).start()
        seconds = field.live()
        field.sender.end()
        wait(lambda: field.has(field.sender.acked), "everything is through")
        field.flow.stop()
        row = field.account(said=said[-1].split(": ", 2)[-1][:120])
    row.seconds_to_live = seconds
    return row


def poison(make: Make, short: bool) -> Row:
    """One event makes a step raise: it alone is a dead letter."""
    field = make()
    names = field.sender.send(100)
    field.sender.end()
    field.flow = Flow(field, broken=f"admit_raises={names[50]}").start()
    seconds = field.live()
    field.sender.end()
    wait(lambda: field.has(set(field.sender.acked) - {names[50]}), "everything is through")
    field.flow.stop()
    (letter,) = field.letters()
    assert letter["reason"] == "poison" and "Traceback" in letter["detail"]
    row = field.account()
    assert row.dead_lettered == 1
    row.seconds_to_live = seconds
    return row


def detector_hangs(make: Make, short: bool) -> Row:
    """A detector never answers again: the others vote on, and the alerts say so."""
    # One that is sound and has too little of a busy machine must not be taken for one that hangs.
    field = make(detector_timeout_s=3.0)
    field.flow = Flow(field, broken="detector_hangs=12").start()
    field.live()
    field.sender.begin(PER_S)
    said = "the others vote on"
    wait(lambda: said in field.flow.said(), "the detector hangs")
    seconds = field.live()
    field.sender.end()
    wait(lambda: field.has(field.sender.acked), "everything is through")
    report = field.flow.stop()
    assert report["missed_votes"].keys() == {"zscore"}
    row = field.account(missed_votes=report["missed_votes"]["zscore"])
    row.seconds_to_live = seconds
    return row


def overload(make: Make, short: bool) -> Row:
    """Three times what it can take: memory stays flat, the lag is told, it catches up."""
    field = make()
    field.flow.start()
    field.live()
    capacity_per_s = _capacity_per_s(field, 3_000 if short else 20_000)
    rss, lags, sent, before = [field.flow.rss_mb()], [], 0, field.done()
    if short:
        # A second is too short to tell what is too much for it: it takes nothing meanwhile.
        field.flow.hold()
    begun, look_s = time.monotonic(), 0.0
    seconds = 1.0 if short else 60.0
    while (now_s := time.monotonic() - begun) < seconds or sent < LOAD_MIN:
        done = field.done() - before
        # Where it takes more now than when it was measured, it is given three times that.
        due = round(TIMES * max(capacity_per_s * now_s, done)) - sent
        if due > 0:
            sent += len(field.sender.send(due))
        if now_s >= look_s:
            look_s = now_s + 0.5
            rss.append(field.flow.rss_mb())
            lags.append(_lag(field))
        time.sleep(0.05)
    took, done = time.monotonic() - begun, field.done() - before
    field.sender.end()
    lags.append(_lag(field))
    names = field.sender.send(PARTITIONS)
    field.sender.end()
    if short:
        field.flow.go_on()

    def through() -> bool:
        rss.append(field.flow.rss_mb())
        return field.has(names)

    caught_up = wait(through, "it has caught up", 6 * WAIT_S)
    wait(lambda: field.has(field.sender.acked), "everything is through")
    rss.append(field.flow.rss_mb())
    # Committed every few seconds, so that the group's lag falls a little after the events came.
    wait(lambda: _lag(field) == 0, "the group has no lag any more")
    field.flow.stop()
    row = field.account(
        capacity_per_s=round(capacity_per_s), load_per_s=round(sent / took),
        done_per_s=round(done / took), load_s=round(took, 1), lag_max=max(lags), lag_after=0,
        rss_mb_before=round(rss[0]), rss_mb_max=round(max(rss)),
        rss_mb_bound=round(rss[0] + HELD_MB),
    )  # fmt: skip
    assert sent >= 2 * done, (row.more, sent, done)
    # Two of three were not read then; beside what lanes had in hand.
    assert max(lags) >= sent / 3, (row.more, sent)
    assert max(rss) < rss[0] + HELD_MB, row.more
    row.seconds_to_live = caught_up
    return row


def two_instances(make: Make, short: bool) -> Row:
    """A second flow is started on the same state by mistake: it is refused, the first unhurt."""
    field = make()
    field.flow.start()
    field.live()
    field.sender.begin(PER_S)
    assert field.flow.listens() == [], "one process opens no port"
    second = Flow(field)
    second.log, second.report_path = field.folder / "second.log", field.folder / "second.json"
    assert second.start().ended() == 2
    assert "is in use by another process" in second.said()
    seconds = field.live()
    field.sender.end()
    wait(lambda: field.has(field.sender.acked), "everything is through")
    field.flow.stop()
    row = field.account()
    row.seconds_to_live = seconds
    return row


def hung_instance(make: Make, short: bool) -> Row:
    """A flow hangs, another takes its state over, the first wakes up: it writes nothing there.

    The thread by which it would hear of it at once sleeps on.
    """
    field = make()
    first = Flow(field, broken="beats_sleep=on")
    first.log, first.report_path = field.folder / "first.log", field.folder / "first.json"
    field.flow = first.start()
    try:
        field.live()
        field.sender.begin(PER_S)
        time.sleep(field.chance.uniform(0.5, 2.0))
        first.hold()
        # As it would be from another machine; for the short form the lease is given back, too.
        lease = field.state / "lease.json"
        elsewhere = {"place": "there", "host": "pod-0"} | ({"held": False} if short else {})
        lease.write_text(json.dumps(json.loads(lease.read_text()) | elsewhere))
        (field.state / "lock-0").unlink()
        field.flow = Flow(field).start()
        field.live()
        first.go_on()
        woken = time.monotonic()
        assert first.ended() == 2, first.said()
        ended = time.monotonic() - woken
        assert "has been taken over by process" in first.said().splitlines()[-1], first.said()
        seconds = field.live()
    finally:
        first.kill()
    field.sender.end()
    wait(lambda: field.has(field.sender.acked), "everything is through")
    field.flow.stop()
    for lane in sorted((field.state / "journal").iterdir()):
        rounds = [cut.round for cut in read_cuts(lane)]
        assert rounds == list(range(rounds[0], rounds[-1] + 1)) and len(rounds) > 10, lane
    row = field.account(first_ended_s=round(ended, 1))
    row.seconds_to_live = seconds
    return row


def malformed(make: Make, short: bool) -> Row:
    """A million records that are none, or nearly, through the decode path: each accounted for."""
    rng = random.Random(make.seed)
    total, events, refused, rss = 20_000 if short else 1_000_000, 0, 0, []
    names = list(event_types())
    pools = {name: _genuine(name, make.seed) for name in names}
    sent = 0
    while sent < total:
        name, encoding = rng.choice(names), rng.choice(("avro", "json"))
        values = [_spoilt(rng, rng.choice(pools[name][encoding])) for _ in range(5_000)]
        n = len(values)
        done = decode(
            name, encoding, values, np.zeros(n, np.int32), np.arange(n), np.zeros(n, np.int64),
            dict.fromkeys(schema_ids(values)) | {1: json.dumps(avro_schema(name))},
            cut_time_us=START_US, past_us_max=10**12, future_us_max=10**12,
        )  # fmt: skip
        assert sorted([*done.rows.tolist(), *(r.row for r in done.rejects)]) == list(range(n))
        sent, events, refused = sent + n, events + len(done.batch), refused + len(done.rejects)
        rss.append(rss_mb(os.getpid()))
    assert rss[-1] < rss[len(rss) // 4] + 64.0, "memory stays flat"
    return Row("malformed", sent, events, refused, lost=sent - events - refused,
               more={"rss_mb_max": round(max(rss))})  # fmt: skip


def malformed_topic(make: Make, short: bool) -> Row:
    """Records that are none, or nearly, through the real flow: each is counted in one place."""
    rows = [_malformed_topic(make, encoding, short) for encoding in ("json", "avro")]
    return Row(
        "malformed_topic", sum(r.sent for r in rows), sum(r.scored for r in rows),
        sum(r.dead_lettered for r in rows), twice=sum(r.twice for r in rows),
        seconds_to_live=max(r.seconds_to_live for r in rows),
        more={f"{k}_{e}": v for r, e in zip(rows, ("json", "avro"), strict=True)
              for k, v in r.more.items()},
    )  # fmt: skip


def _malformed_topic(make: Make, encoding: str, short: bool) -> Row:
    """The same of one encoding; those of Avro are framed for the registry."""
    # A bent id may be that of an event in another partition: one lane knows them all.
    field = make(lanes=1, kafka_format=encoding)
    if encoding == "avro":
        declared = avro_schema(EVENT)
        known = field.servers.registry.register(f"{field.topic}-value", declared)
        field.sender.encode = lambda f: avro_bodies(declared, f, confluent_header(known))
    field.flow.start()
    field.live()
    rng, total, sent, rss = field.chance, 5_000 if short else 150_000, 0, [field.flow.rss_mb()]
    while sent < total:
        pool = field.sender.encode(field.sender.frame(2_000))
        for _ in range(5_000):
            record = _spoilt(rng, rng.choice(pool))
            field.sender._produce(f"r-{sent}", record, sent % PARTITIONS)
            sent += 1
        rss.append(field.flow.rss_mb())
    field.sender.end()
    wait(lambda: _lag(field) == 0, "all of it is read", 6 * WAIT_S)
    seconds = field.live()
    rss.append(field.flow.rss_mb())
    field.sender.end()
    report = field.flow.stop()
    broker = field.servers.kafka.total([field.topic])
    went = {k: report[k] for k in ("scored", "dead_lettered", "duplicates", "pending")}
    assert report["in"] == broker == len(field.sender.acked) == sum(went.values()), (broker, went)
    assert min(went["scored"], went["dead_lettered"], went["duplicates"]) > total // 50, went
    assert len(field.letters()) == went["dead_lettered"]
    # Its state grows with new cards, and its log is not in memory.
    assert max(rss) < rss[0] + 250.0, rss
    return Row(
        field.name, broker, went["scored"], went["dead_lettered"],
        twice=sum(count > 1 for count in field.alerted().values()), seconds_to_live=seconds,
        more={"duplicates": went["duplicates"], "pending": went["pending"],
              "rss_mb_before": round(rss[0]), "rss_mb_max": round(max(rss))},
    )  # fmt: skip


FAULTS: dict[str, Callable[[Make, bool], Row]] = {
    f.__name__: f
    for f in (
        kills, kills_topic, broker_away, retention, topic_made_anew, partitions_added, redis_gone,
        redis_emptied, redis_slow, registry_away, disk_full, poison, detector_hangs, overload,
        two_instances, hung_instance, malformed, malformed_topic,
    )
}  # fmt: skip
"""Name -> fault, in the order of the table."""


START_US = 1_772_409_600_000_000
"""2026-03-02, when the genuine records are of."""


def _genuine(name: str, seed: int) -> dict[str, list[bytes]]:
    """Records of an event type by encoding."""
    simulator = Simulator(seed=seed, cards=500, events_per_s=5.0, event_types=[name])
    frame = simulator.span(START_US, START_US + 60_000_000)[name].frame
    schema = avro_schema(name)
    return {
        "avro": avro_bodies(schema, frame, confluent_header(1)), "json": json_bodies(frame)
    }  # fmt: skip


def _spoilt(rng: random.Random, record: bytes) -> bytes | None:
    """A record that somebody has cut, bent, framed wrongly, or let through as it is."""
    how = rng.randrange(7)
    if how == 0:
        return record[: rng.randrange(len(record) + 1)]
    if how == 1:
        data = bytearray(record)
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)
    if how == 2:
        return rng.randbytes(rng.randrange(120))
    if how == 3:
        return bytes([rng.randrange(3)]) + rng.randbytes(4) + record[5:]
    if how == 4:
        at = rng.randrange(len(record))
        return record[:at] + rng.randbytes(rng.randrange(1, 9)) + record[at:]
    return None if rng.randrange(20) == 0 else record


def _counts(kafka: Kafka, topic: str) -> Counter[str]:
    """How often each key stands in a topic."""
    return Counter((key or b"").decode() for key, _ in kafka.read(topic))


def _again(before: Counter[str], now: Counter[str]) -> int:
    """By how much the repeats of a key have grown at the most."""
    return max((n - max(before[key], 1) for key, n in now.items()), default=0)


def _latency(field: Field, times: int) -> float:
    """Median seconds from sending to the alert log, of single events."""
    found = []
    for _ in range(times):
        (name, *_) = field.sender.send(1)
        found.append(wait(lambda name=name: field.has([name]), "an event is through"))
    return round(sorted(found)[times // 2], 3)


def _capacity_per_s(field: Field, count: int) -> float:
    """Events a second that a flow takes with a backlog before it."""
    names = field.sender.send(count)
    return len(names) / wait(lambda: field.has(names), "a backlog is through")


def _lag(field: Field) -> int:
    """Records not read yet, by the broker's own account of the consumer group."""
    kafka = field.servers.kafka
    ends = kafka.end_offsets([field.topic])[field.topic]
    done = kafka.committed(str(field.settings["kafka_group"]), field.topic)
    return sum(max(0, end - max(done.get(p, 0), 0)) for p, end in ends.items())


def _database(make: Make, number: int) -> str:
    """Address of one of the databases of the Redis, emptied."""
    url = make.servers.redis.url.rsplit("/", 1)[0] + f"/{number}"
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        client.flushdb()
    return url


def _contents(url: str) -> dict[bytes, dict[bytes, bytes]]:
    """All that a store holds but the writers' marks."""
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        keys = [key for key in client.scan_iter(count=10_000) if key != MARKS_KEY]
        pipe = client.pipeline(transaction=False)
        for key in keys:
            pipe.hgetall(key)
        return dict(zip(keys, pipe.execute(), strict=True))


def _unlike(has: dict[bytes, bytes], wants: dict[bytes, bytes]) -> list[object]:
    """Fields in which two entities differ, and what each has."""
    fields = sorted(has.keys() | wants.keys())
    return [(f, has.get(f), wants.get(f)) for f in fields if has.get(f) != wants.get(f)]


def _know_the_topic(field: Field) -> bool:
    """Whether the newest round of each lane has the id of the topic that it reads."""
    lanes = [*(field.state / "journal").iterdir()]
    ends = [next(reversed([*read_cuts(lane)]), None) for lane in lanes]
    return bool(ends) and all(cut is not None and IDS in cut.positions for cut in ends)


def _settled(field: Field, url: str) -> dict[bytes, dict[bytes, bytes]]:
    """What a store holds once it has the last event of every entity, and has not changed for a
    second."""
    frame = pl.concat(field.sender.frames)
    reader = StoreReader(url, catalog())
    for entity, columns in event_type(EVENT).entities.items():
        if (EVENT, entity) not in layouts(catalog()):
            continue
        last = frame.drop_nulls(columns).group_by(columns).agg(pl.col("time_us").max())
        names = last.select(pl.concat_str(columns, separator="|")).to_series().to_list()
        asked = functools.partial(reader.read, (EVENT, entity), names)
        times = last["time_us"].to_numpy()
        wait(
            lambda asked=asked, times=times: bool((asked().time_us >= times).all()),
            f"the last row of every {entity} is in the store",
        )
    reader.close()
    before: dict[bytes, dict[bytes, bytes]] = {}
    while (now := _contents(url)) != before or not now:
        before = now
        time.sleep(1.0)
    return before


def _replayed(field: Field, number: int) -> dict[bytes, dict[bytes, bytes]]:
    """What a sound Redis holds after a replay of the very rounds of the flow."""
    url = field.servers.redis.url.rsplit("/", 1)[0] + f"/{number}"
    given = {"state_dir": field.state, "store": "redis", "redis_url": url}
    sets = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    done = subprocess.run(
        command(["replay", "--into", "again", "--store", *sets]), cwd=field.folder,
        env=environment({}), capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return _contents(url)


def _as_replayed(field: Field, url: str, number: int) -> int:
    """How many entities a store holds; AssertionError where a replay fills one otherwise."""
    has, wanted = _contents(url), _replayed(field, number)
    differing = [k for k in has.keys() | wanted.keys() if has.get(k) != wanted.get(k)]
    assert not differing, f"{len(differing)} of {len(wanted)} entities, first {differing[0]!r}:" + (
        f" {_unlike(has.get(differing[0], {}), wanted.get(differing[0], {}))}"
    )
    assert len(has) > 100
    return len(has)


class _Slow:
    """A proxy in front of a Redis that holds each piece of an answer back."""

    def __init__(self, target: tuple[str, int], database: str) -> None:
        self.wait_s = 0.0
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/{database}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection(self._target)
                threading.Thread(target=self._pass, args=(ours, theirs, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(theirs, ours, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(65_536):
                if answers and self.wait_s:
                    time.sleep(self.wait_s)
                target.sendall(data)

    def close(self) -> None:
        self._listener.close()


@contextlib.contextmanager
def _slow(url: str) -> Iterator[_Slow]:
    """The proxy while the block lasts."""
    host, _, rest = url.removeprefix("redis://").partition(":")
    port, _, database = rest.partition("/")
    slow = _Slow((host, int(port)), database)
    try:
        yield slow
    finally:
        slow.close()


@contextlib.contextmanager
def _small_disk(field: Field) -> Iterator[tuple[Callable[[], None] | None, Callable[[], object]]]:
    """A small disk under the state folder: what limits the process, and what makes room.

    A file system of its own where that may be mounted; else a limit on the size of files, which
    the kernel refuses in the same place.
    """
    field.state.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(field.state)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    if not mounted:
        size = 2_000_000
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)), lambda: None
        return
    grow = ["mount", "-o", "remount,size=400m", str(field.state)]
    try:
        yield None, lambda: subprocess.run(grow, check=True)
    finally:
        subprocess.run(["umount", "-l", str(field.state)], check=True)
