"""The whole over a real broker, registry and Redis: a producer, a kill -9, and what must be equal.

One run of about a minute is shared by the tests: simulated events of all types, one in a hundred
records broken, a producer that moves to a new schema on the way, the flow killed in the middle and
started again. What came out is held against a replay of its journal and against a file run.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import polars as pl
import pytest
import redis

from dataflows.settings import Settings, load
from dataflows.sources.base import Taken
from dataflows.sources.kafka import KafkaReader
from dataflows.sources.producer import EventProducer
from dataflows.sources.rounds import journal_folder
from dataflows.state.journal import read_cuts
from dataflows.state.manifest import read_manifest
from dataflows.store.shadow import MARKS_KEY
from features.events import event_type
from features.events.avro import avro_schema
from features.simulate import Simulator
from tests.flow.harness import (
    TIMEOUT_S,
    Bench,
    alerts_of,
    call,
    counts_of,
    running,
    wait_for,
    without_clock,
)
from tests.service.servers import Kafka, Redis, Registry

TYPES = ("payment", "login", "metric", "app_log")

HOURS, SPEED = 10, 720
"""Ten simulated hours in fifty seconds: 72,000 events."""

NEWER_EVENTS = 2_000
"""Events written with the newer schema, at least."""

LANES = 2

PAST_S = round(time.time()) - 1_772_409_600 + 30 * 86_400
"""How old an event may be: the simulated days always, those that are another year older never."""

REASON_OF = {
    "truncated": "not_avro",
    "garbage": "not_avro",
    "empty": "empty",
    "nan": "not_finite",
    "infinite": "not_finite",
    "out_of_range": "out_of_range",
    "year_early": "time_past",
    "year_late": "time_future",
    "long_string": "too_long",
    "unknown_schema": "unknown_schema",
}
"""What is wrong with a broken record of the simulator -> why it has to be refused."""


@dataclass(slots=True)
class Minute:
    """What the shared run was and left."""

    bench: Bench
    settings: dict[str, str]
    state: Path
    topics: list[str]
    sent: dict[str, Any]
    newer: int
    newer_repeats: int
    report: dict[str, Any]
    broker_total: int
    killed_at: int


def _settings(bench: Bench, kafka: Kafka, registry: Registry, prefix: str) -> dict[str, str]:
    """Settings of the flow over the services."""
    return bench.settings | {
        "source": "kafka",
        "lanes": str(LANES),
        "kafka_brokers": kafka.brokers,
        "kafka_registry_url": registry.url,
        "kafka_topic_prefix": prefix,
        "alerts": "jsonl,kafka",
        "alerts_topic": f"{prefix}alerts",
        "store": "redis",
        "snapshot_rounds": "20",
        "time_past_s_max": str(PAST_S),
        # The replay from files is one place: what partitions read at their own pace is late there.
        "late_s": "0",
        "early_s": "0",
        # A run to the end has rounds more, in which more windows that ran empty are told.
        "store_emptied_max": "0",
    }


def _sets(settings: Mapping[str, str], **more: Any) -> list[str]:
    """`--set` options."""
    merged = dict(settings) | {k: str(v) for k, v in more.items()}
    return [part for name, value in merged.items() for part in ("--set", f"{name}={value}")]


def _newer_schema(name: str) -> dict[str, Any]:
    """The schema of a producer that moved on: one more field, which we do not know."""
    schema = avro_schema(name)
    note = {"name": "note", "type": ["null", "string"], "default": None, "doc": "of a newer one"}
    return schema | {"fields": [*schema["fields"][:3], note, *schema["fields"][3:]]}


def _send_newer(
    kafka: Kafka, registry: Registry, prefix: str, settings: dict[str, str]
) -> tuple[int, int]:
    """Payments and logins of the next half hour, in the newer schema; (events, repeats)."""
    simulator = Simulator(
        seed=8,
        population_seed=1,
        events_per_s=2.0,
        cards=int(settings["sim_cards"]),
        event_types=("payment", "login"),
    )
    begin = 1_772_409_600_000_000 + HOURS * 3_600_000_000
    producer = EventProducer(kafka.brokers, registry_url=registry.url, topic_prefix=prefix)
    producer.open(("payment", "login"))
    sent = repeats = 0
    for name, batch in simulator.span(begin, begin + 1_800_000_000).items():
        producer.use_schema(name, _newer_schema(name))
        sent += producer.send(batch)
        repeats += len(batch) - batch.frame["event_id"].n_unique()
    producer.close()
    return sent, repeats


@pytest.fixture(scope="module")
def minute(
    bench: Bench,
    kafka: Kafka,
    registry: Registry,
    redis_server: Redis,
    tmp_path_factory: pytest.TempPathFactory,
) -> Minute:
    """The run; see the module."""
    folder = tmp_path_factory.mktemp("minute")
    prefix = f"{folder.name}-"
    settings = _settings(bench, kafka, registry, prefix)
    settings["redis_url"] = _database(redis_server, 1)
    topics = [kafka.create_topic(prefix + event_type(name).topic) for name in TYPES]
    kafka.create_topic(settings["alerts_topic"], 4)
    state, report = folder / "state", folder / "report.json"
    command = ["run", *_sets(settings, state_dir=state), "--json", str(report)]
    with running(*command, cwd=folder) as flow, running(
        "simulate", "--to", "kafka", "--hours", str(HOURS), "--speed", str(SPEED),
        "--malformed", "0.01", "--json", str(folder / "sent.json"), *_sets(settings), cwd=folder,
    ) as producer:  # fmt: skip
        wait_for(lambda: _round(state) >= 200, "the middle", flow)
        flow.send_signal(signal.SIGKILL)
        flow.wait()
        killed_at = _round(state)
        with running(*command, cwd=folder) as flow:
            out, _ = producer.communicate(timeout=TIMEOUT_S)
            assert producer.returncode == 0, out
            newer, newer_repeats = _send_newer(kafka, registry, prefix, settings)
            sent = json.loads((folder / "sent.json").read_text())
            wait_for(lambda: _done(state) >= sent["in"] + newer, "all is through", flow)
            flow.send_signal(signal.SIGTERM)
            out, _ = flow.communicate(timeout=TIMEOUT_S)
            assert flow.returncode == 0, out
    return Minute(
        bench, settings, state, topics, sent, newer, newer_repeats,
        json.loads(report.read_text()), kafka.total(topics), killed_at,
    )  # fmt: skip


def test_every_record_of_the_broker_is_accounted_for(minute: Minute) -> None:
    report = minute.report
    assert minute.broker_total == minute.sent["in"] + minute.newer, "the producer's own count"
    repeats = minute.sent["repeats"] + minute.newer_repeats
    assert minute.newer >= NEWER_EVENTS and minute.sent["malformed"] > 500
    assert minute.sent["repeats"] > 100 and minute.newer_repeats > 0
    assert counts_of(report) == {
        "in": minute.broker_total,
        "scored": minute.broker_total - minute.sent["malformed"] - repeats,
        "duplicates": repeats,
        "dead_lettered": minute.sent["malformed"],
        "pending": 0,
    }
    assert minute.killed_at >= 200, "it was killed with rounds behind it"


def test_dead_letters_hold_the_record_as_it_came(minute: Minute) -> None:
    log = (minute.state / "dead_letters.jsonl").read_text(encoding="utf-8")
    letters = [json.loads(line) for line in log.splitlines()]
    assert len(letters) == minute.sent["malformed"]
    assert len({(x["topic"], x["partition"], x["offset"]) for x in letters}) == len(letters)
    assert minute.sent["by_fault"].keys() == REASON_OF.keys(), "everything that can be wrong was"
    expected: Counter[str] = Counter()
    for fault, count in minute.sent["by_fault"].items():
        expected[REASON_OF[fault]] += count
    assert Counter(x["reason"] for x in letters) == expected
    assert all(x["detail"] and x["topic"] in minute.topics for x in letters)
    assert all("raw" in x and "schema_id" in x for x in letters)


def test_every_event_type_has_at_least_fifty_alerts(minute: Minute) -> None:
    found = [alert["event_type"] for alert in alerts_of(minute.state)]
    assert min(found.count(name) for name in TYPES) >= 50, {n: found.count(n) for n in TYPES}


def test_the_alert_topic_holds_the_alerts_of_the_log(minute: Minute, kafka: Kafka) -> None:
    logged = {alert["id"] for alert in alerts_of(minute.state)}
    assert len(logged) == len(alerts_of(minute.state)), "the log has each once"
    sent = [key.decode() for key, _ in kafka.read(minute.settings["alerts_topic"]) if key]
    assert set(sent) == logged
    assert max(Counter(sent).values()) <= 2, "one crash: no alert more than once more"


def test_the_replay_of_the_journal_gives_the_same_alerts_and_store(
    minute: Minute, redis_server: Redis, tmp_path: Path
) -> None:
    again = tmp_path / "state"
    copytree(minute.state / "journal", again / "journal")
    url = _database(redis_server, 2)
    done = call(
        "run",
        *_sets(
            minute.settings, state_dir=again, redis_url=url, kafka_until_end="true", alerts="jsonl"
        ),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    _goes_on(alerts_of(again), alerts_of(minute.state))
    _same_store(url, minute.settings["redis_url"])


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_live_before_and_after_the_kill_is_bit_identical(
    minute: Minute, workers: int, tmp_path: Path
) -> None:
    done = call(
        "certify", "--set", f"state_dir={minute.state}", "--workers", str(workers),
        "--json", "out.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert found["identical"] and found["events"] == minute.broker_total
    assert found["last_round"] > minute.killed_at and found["workers"] == workers


def test_a_file_run_in_the_order_of_the_journal_gives_the_same_alerts_and_store(
    minute: Minute, redis_server: Redis, tmp_path: Path
) -> None:
    files = _as_files(minute, tmp_path)
    url = _database(redis_server, 3)
    done = call(
        "run",
        *_sets(
            minute.settings, state_dir=tmp_path / "state", redis_url=url, alerts="jsonl",
            source="file", file_round_column="cut",
        ),
        *[part for name, path in files.items() for part in ("--data", f"{name}={path}")],
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    came, live = alerts_of(tmp_path / "state"), alerts_of(minute.state)
    _goes_on(*(without_clock(_without_shares(alerts)) for alerts in (came, live)))
    _same_store(url, minute.settings["redis_url"])


@pytest.mark.parametrize("when", ["before the kill", "after it", "with the newer schema"])
def test_an_alert_over_the_broker_is_explained(minute: Minute, when: str, tmp_path: Path) -> None:
    """The record and its schema come from topic and journal again."""
    alerts = [a for a in alerts_of(minute.state) if a["event_type"] in ("payment", "login")]
    before = [a for a in alerts if a["round"] < minute.killed_at]
    alert = {"before the kill": before[-1], "after it": next(
        a for a in alerts if a["round"] > minute.killed_at + 1
    ), "with the newer schema": alerts[-1]}[when]  # fmt: skip
    done = _explain(minute, alert, tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert found["same"] and found["alert"] == alert
    assert found["event"]["fields"]["event_id"] == alert["event_id"]
    assert found["event"]["fields"]["time_us"] == alert["time_us"]
    assert {one["name"]: one["score"] for one in found["detectors"]} == {
        vote["detector"]: vote["score"] for vote in alert["votes"]
    }


def test_records_that_the_topic_gave_up_are_named_by_explain_and_certify(
    minute: Minute, kafka: Kafka, tmp_path: Path
) -> None:
    """Last of the file: the broker deletes what a replay of the later rounds needs."""
    topic = minute.settings["kafka_topic_prefix"] + event_type("payment").topic
    end = kafka.end_offsets([topic])[topic][0]
    alert = [a for a in alerts_of(minute.state) if a["event_type"] == "payment"][-1]
    kafka.delete_records(topic, {0: end})
    explained = _explain(minute, alert, tmp_path / "out.json")
    certified = call("certify", "--set", f"state_dir={minute.state}", cwd=tmp_path)
    for done in (explained, certified):
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        named = (
            rf"{topic}' partition 0: the journal needs offsets (\d+) to (\d+), the broker has {end}"
        )
        found = re.search(named, done.stderr)
        assert found is not None, done.stderr
        first, last = map(int, found.groups())
        assert 0 <= first <= last < end
        assert f"{last + 1 - first} records are gone" in done.stderr
    assert not (tmp_path / "out.json").exists(), "no half of an explanation"


def _explain(minute: Minute, alert: dict[str, Any], out: Path) -> subprocess.CompletedProcess[str]:
    """`waxwing explain` of it, from the folder of the state alone."""
    return call(
        "explain", alert["id"], "--set", f"state_dir={minute.state}", "--json", str(out),
        cwd=out.parent,
    )  # fmt: skip


def _without_shares(alerts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Alerts of silence without words about peers: who has told of theirs by the round depends on
    the lanes, which are others in a file.
    """
    of_peers = ("summary", "reasons")
    return [
        {k: v for k, v in alert.items() if alert["anomaly_type"] != "silence" or k not in of_peers}
        for alert in alerts
    ]


def _goes_on(found: list[dict[str, Any]], live: list[dict[str, Any]]) -> None:
    """AssertionError where a run to the end has other alerts than the live one, line by line, but
    for those of who is silent at its end."""
    ids = {alert["id"] for alert in live}
    assert [alert for alert in found if alert["id"] in ids] == live, "as if nothing had happened"
    assert {alert["anomaly_type"] for alert in found if alert["id"] not in ids} <= {"silence"}


def _as_files(minute: Minute, folder: Path) -> dict[str, Path]:
    """The events of the topics in the journal's order, a file for each type, `cut` its round."""
    overrides: dict[str, Any] = {k: v for k, v in minute.settings.items() if k.startswith("kafka")}
    settings = load(None, {}, lanes=LANES, time_past_s_max=PAST_S, **overrides)
    rows: dict[str, list[pl.DataFrame]] = {}
    for lane in range(LANES):
        for round_, taken in _lane_again(minute, settings, lane):
            for name, batch in taken.batches.items():
                frame = batch.frame.with_columns(
                    cut=pl.lit(round_), partition=batch.partition, offset=batch.offset
                )
                rows.setdefault(name, []).append(frame)
    paths = {}
    for name, frames in rows.items():
        paths[name] = folder / f"{name}.parquet"
        order = ["cut", "time_us", "partition", "offset"]
        pl.concat(frames).sort(order).write_parquet(paths[name])
    return paths


def _lane_again(minute: Minute, settings: Settings, lane: int) -> Any:
    """(round, what it held) of a lane, read again by its journal."""
    folder = journal_folder(minute.state, lane)
    reader = KafkaReader(settings, lane)
    before: dict[str, Any] = {}
    reader.seek(before)
    for cut in read_cuts(folder):
        after = {k: v for k, v in cut.positions.items() if k != "control"}
        clock = cut.cut_time_us if cut.source_time_us is None else cut.source_time_us
        taken: Taken = reader.retake(before, after, clock, cut.schemas)
        yield cut.round, taken
        before = after
    reader.close()


def _database(server: Redis, number: int) -> str:
    """Address of one of the databases of the Redis, emptied."""
    url = server.url.rsplit("/", 1)[0] + f"/{number}"
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        client.flushdb()
    return url


def _same_store(one: str, other: str) -> None:
    """AssertionError where two stores differ in any key, field or value."""
    contents = []
    for url in (one, other):
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            found = {}
            for key in client.scan_iter(count=10_000):
                if client.type(key) == b"hash" and key != MARKS_KEY:
                    found[key] = client.hgetall(key)
            contents.append(found)
    assert len(contents[0]) > 1_000
    differing = [k for k in contents[0].keys() | contents[1].keys()
                 if contents[0].get(k) != contents[1].get(k)]  # fmt: skip
    assert not differing, f"{len(differing)} of {len(contents[0])} keys, first {differing[0]!r}"


def _round(state: Path) -> int:
    """Round of the manifest, 0 before the first."""
    found = read_manifest(state) if state.exists() else None
    return 0 if found is None else found.round


def _done(state: Path) -> int:
    """Records that the manifest has accounted for."""
    found = read_manifest(state)
    return 0 if found is None else found.totals.get("in", 0)
