"""Control records on a topic of a real broker: in force, kept over kill -9, replayed without it."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from confluent_kafka import Producer

from dataflows.control.labels_topic import LabelTopic
from dataflows.control.records import append_record
from dataflows.control.topic import ControlTopic, send_record
from dataflows.from_journal import journal_rows
from dataflows.settings import Settings, load
from dataflows.state.journal import Cut, read_cuts
from dataflows.state.manifest import read_manifest
from features.encode import json_bodies
from features.errors import ConfigError
from features.events import event_type
from features.keys import hash_columns
from features.simulate import Simulator
from tests.flow.harness import (
    Bench,
    Run,
    alerts_of,
    call,
    running,
    trained_detectors,
    wait_for,
)
from tests.service.servers import Kafka, free_port
from tests.streams import make_batch

WAIT_S = 300.0
"""Longest wait for what is bound to come; chosen for two busy cores."""

DAY = {"sim_seconds": 160, "sim_speed": 360.0, "snapshot_rounds": 10}
"""Sixteen hours of event time; 115,000 events."""

STAGE: dict[str, Any] = {"kind": "stage", "detector": "zscore", "stage": "shadow"}


@pytest.fixture
def topic(kafka: Kafka, topic_prefix: str) -> str:
    """A control topic of this test's own."""
    return kafka.create_topic(topic_prefix + "control", 1)


@pytest.fixture
def settings(kafka: Kafka, topic: str, tmp_path: Path) -> Settings:
    """Settings of a flow that reads it."""
    return load(
        None, {}, kafka_brokers=kafka.brokers, control_topic=topic, state_dir=tmp_path / "state"
    )


@pytest.fixture
def reader(settings: Settings) -> Iterator[ControlTopic]:
    """A reader of it, closed at the end."""
    made = ControlTopic(settings)
    yield made
    made.close()


def until(reader: ControlTopic, count: int) -> list[dict[str, Any]]:
    """Records, until so many have come."""
    records: list[dict[str, Any]] = []
    give_up = time.monotonic() + WAIT_S
    while len(records) < count:
        assert time.monotonic() < give_up, records
        records += reader.take()[0]
    return records


def test_a_broker_that_goes_away_holds_up_no_round(
    kafka: Kafka, settings: Settings, reader: ControlTopic, caplog: pytest.LogCaptureFixture
) -> None:
    send_record(settings, STAGE)
    assert reader.take() == ([STAGE], []), "there at the first take"
    kafka.stop(signal.SIGTERM)
    try:
        took: list[float] = []
        give_up = time.monotonic() + WAIT_S
        while "no broker answers" not in caplog.text and time.monotonic() < give_up:
            begun = time.monotonic()
            assert reader.take() == ([], [])
            took.append(time.monotonic() - begun)
            time.sleep(0.05)
        # On a busy machine one of them may come late; none may wait for the client's own minute.
        assert sorted(took)[len(took) // 2] < 0.5 and max(took) < 45.0
    finally:
        kafka.start()
    send_record(settings, {**STAGE, "stage": "live"})
    assert until(reader, 1) == [{**STAGE, "stage": "live"}]
    assert "answers again" in caplog.text


def test_deleted_offsets_and_a_topic_made_anew_are_named(
    kafka: Kafka, settings: Settings, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = [{**STAGE, "why": str(i)} for i in range(6)]
    for record in said[:4]:
        send_record(settings, record)
    kafka.delete_records(topic, {0: 3})
    late = ControlTopic(settings)
    late.seek({"topic": topic, "at": {"0": 1}})
    assert until(late, 1) == said[3:4]
    late.close()
    assert "offsets 1 to 2 were deleted before they were read" in caplog.text
    kafka.delete_topic(topic)
    kafka.create_topic(topic, 1)
    send_record(settings, said[5])
    anew = ControlTopic(settings)
    anew.seek({"topic": topic, "at": {"0": 4}})
    assert until(anew, 1) == said[5:]
    anew.close()
    assert "ends at 1, 4 were read: it was made anew" in caplog.text


def test_a_missing_topic_is_one_sentence_with_the_cure(
    kafka: Kafka, settings: Settings, topic_prefix: str, bench: Bench, tmp_path: Path
) -> None:
    gone = topic_prefix + "gone"
    with pytest.raises(ConfigError, match=f"--create --topic {gone} --partitions 1"):
        ControlTopic(settings.model_copy(update={"control_topic": gone})).open()
    other = settings.model_copy(update={"control_topic": None, "labels_topic": gone})
    with pytest.raises(ConfigError, match=f"labels_topic '{gone}' .*cleanup.policy=delete"):
        LabelTopic(other).open()
    sets = bench.sets(state_dir=tmp_path, kafka_brokers=kafka.brokers, control_topic=gone)
    for words in (["run", *sets], ["control", *sets, "stage", "zscore", "off"]):
        done = call(*words, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert (
            len(done.stderr.splitlines()) == 1 and f"topic {gone!r} does not exist" in done.stderr
        )


def test_a_broker_that_is_not_there_is_one_sentence_of_the_command(
    bench: Bench, tmp_path: Path
) -> None:
    sets = bench.sets(kafka_brokers=f"127.0.0.1:{free_port()}", control_topic="c")
    done = call("control", *sets, "stage", "zscore", "off", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "check kafka_brokers" in done.stderr


def cuts_of(state: Path) -> list[Cut]:
    """The journal of lane 0."""
    folder = state / "journal" / "lane-00"
    return list(read_cuts(folder)) if folder.exists() else []


def control(bench: Bench, *words: str, **sets: Any) -> None:
    """`waxwing control ...`, acknowledged."""
    done = call("control", *bench.sets(**sets), *words, cwd=bench.folder)
    assert done.returncode == 0 and "partition 0 offset" in done.stdout, done.stderr + done.stdout


def test_records_of_the_topic_are_in_force_kept_and_replayed(
    kafka: Kafka, topic: str, settings: Settings, bench: Bench, tmp_path: Path
) -> None:
    plain = Run(bench, tmp_path / "plain", DAY)
    plain.to_end()
    loudest = Counter((a["entity_type"], a["entity"]) for a in plain.alerts()
                      if a["anomaly_type"] != "account_attack").most_common(1)  # fmt: skip
    (muted, heard) = loudest[0]
    assert heard > 3
    where = {"kafka_brokers": kafka.brokers, "control_topic": topic}
    control(bench, "mute", *muted, "2100-01-01T00:00:00Z", **where)
    control(bench, "threshold", "account_attack", "ensemble", "1", **where)
    bad = {"kind": "stage", "detector": "zsore", "stage": "off"}
    send_record(settings, bad)
    state = tmp_path / "state"
    run = Run(bench, state, DAY | where)
    # As long as it takes until the records are there and durable; then as fast as it can.
    paced = Run(bench, state, run.more | {"sim_paced": "true"})
    with running("run", *paced.options(), cwd=bench.folder) as process:
        # Before the canary somebody is heard of who will not be in it, after it somebody who is.
        deaf = lambda: any(not _in_canary(a) for a in _boosted(alerts_of(state)))  # noqa: E731
        wait_for(deaf, "an alert", process)
        control(bench, "stage", "gradient_boosting", "canary", "--percent", "50", **where)
        wait_for(lambda: any(_is(c, "canary") for c in cuts_of(state)), "the canary", process)
        since = next(c.round for c in cuts_of(state) if _is(c, "canary"))
        heard_of = lambda: any(  # noqa: E731
            a["round"] >= since and _in_canary(a) for a in _boosted(alerts_of(state))
        )
        wait_for(heard_of, "an alert of the canary", process)
        for _ in range(2):  # a manifest that has it, and rounds after that to replay
            at = cuts_of(state)[-1].round
            wait_for(lambda at=at: _durable(state) > at, "a snapshot", process)
        process.kill()
    manifest = read_manifest(state)
    assert manifest is not None
    assert sum(r["kind"] != "undo" for r in manifest.control) == 3, "kept in the manifest"
    for name in trained_detectors():
        send_record(settings, {"kind": "stage", "detector": name, "stage": "off"})
    run.to_end()
    _check(run, muted, bad, topic)
    kafka.stop(signal.SIGTERM)
    try:
        again = tmp_path / "again"
        shutil.copytree(state / "journal", again / "journal")
        Run(bench, again, run.more).to_end()
        assert alerts_of(again) == alerts_of(state), "a replay knows the records from the journal"
        letters = [(p / "dead_letters.jsonl").read_text() for p in (again, state)]
        assert letters[0] == letters[1], "and the verdicts"
    finally:
        kafka.start()


def send(kafka: Kafka, topic: str, bodies: Sequence[bytes]) -> None:
    """Messages on a topic, acknowledged."""
    producer = Producer(
        {"bootstrap.servers": kafka.brokers, "log_level": 0, "enable.idempotence": True}
    )
    for body in bodies:
        producer.produce(topic, body)
    assert producer.flush(WAIT_S) == 0


def payments(begin: int, end: int, start_us: int) -> list[bytes]:
    """A payment every two seconds of one card at one merchant."""
    rows = [
        {"event_id": f"p{i}", "time_us": start_us + i * 2_000_000, "card_id": "c-1",
         "user_id": "u-1", "merchant_id": "m-1", "amount": 10.0 + i % 7, "currency": "EUR",
         "category": "food", "channel": "pos"}
        for i in range(begin, end)
    ]  # fmt: skip
    return json_bodies(make_batch("payment", rows).frame)


def test_verdicts_on_a_topic_judge_alerts_and_reach_the_risk_of_later_events(
    kafka: Kafka, topic_prefix: str, bench: Bench, tmp_path: Path
) -> None:
    events, labels = (topic_prefix + name for name in ("payments", "labels"))
    for name in (events, labels):
        kafka.create_topic(name, 1)
    start_us = time.time_ns() // 1000 - 600_000_000
    more = {
        "source": "kafka", "event_types": "payment", "lanes": 1, "round_rows_max": 20,
        "kafka_brokers": kafka.brokers, "kafka_topic_prefix": topic_prefix, "kafka_format": "json",
        "kafka_until_end": "true", "labels_topic": labels,
    }  # fmt: skip
    run = Run(bench, tmp_path / "state", more)
    run.state_dir.mkdir()
    for name in ("ensemble", *sorted(trained_detectors())):
        loud = {"kind": "threshold", "anomaly_type": "payment_fraud", "detector": name, "value": 0}
        append_record(run.state_dir / "control.jsonl", json.dumps(loud))
    send(kafka, events, payments(0, 60, start_us))
    assert run.to_end()["outcomes"]["open"] > 5
    first, second = [alert["event_id"] for alert in run.alerts()][:2]
    when_us = start_us + int(first[1:]) * 2_000_000
    touched = {"event_time": when_us, "entities": {"card": "c-1", "merchant": "m-1"}}
    told = [
        {"event_id": first, "verdict": "fraud", **touched},
        {"event_id": second, "verdict": "genuine"},
        {"event_id": "nobody's", "verdict": "perhaps"},
    ]
    # As of the last event: a verdict waits for the stream to come as far as its time.
    said_us = start_us + 59 * 2_000_000
    send(kafka, labels, [json.dumps({"time": said_us, **one}).encode() for one in told])
    send(kafka, events, payments(60, 100, start_us))
    report = run.to_end()
    found = report["outcomes"]
    assert (found["confirmed"], found["refuted"], found["without_entities"]) == (1, 1, 1)
    assert found["precision"] == 0.5 and found["recall"] == 1.0
    assert 400.0 < found["delay_s"]["p50"] < 86_400.0, "not that of verdicts on the history"
    letters = (run.state_dir / "dead_letters.jsonl").read_text(encoding="utf-8").splitlines()
    mine = [one for one in map(json.loads, letters) if one["topic"] == labels]
    assert [one["reason"] for one in mine] == ["bad_label"]

    sets = ("--set", f"state_dir={run.state_dir}")
    certified = call("certify", *sets, cwd=bench.folder)
    assert certified.returncode == 0, certified.stdout + certified.stderr
    rows = journal_rows(run.state_dir, None, {}, settled_s=0.0).sets["payment"]
    known = rows.features.column("merchant_frauds_30d")[np.argsort(rows.time_us)]
    assert known.tolist() == [0.0] * 60 + [1.0] * 40


def test_control_is_read_until_the_last_lane_of_a_bounded_run_has_ended(
    kafka: Kafka, topic: str, topic_prefix: str, settings: Settings, bench: Bench, tmp_path: Path
) -> None:
    kafka.create_topic(topic_prefix + "payments", 4)
    start_us = time.time_ns() // 1000 - 660_000_000
    simulator = Simulator(seed=5, cards=1_500, events_per_s=20.0, event_types=["payment"])
    bodies = json_bodies(simulator.span(start_us, start_us + 600_000_000)["payment"].frame)
    producer = Producer(
        {"bootstrap.servers": kafka.brokers, "log_level": 0, "enable.idempotence": True}
    )
    for i, body in enumerate(bodies):
        producer.produce(topic_prefix + "payments", body, partition=1 + 2 * (i % 2))
    assert producer.flush(WAIT_S) == 0
    send_record(settings, STAGE)
    more = {
        "source": "kafka", "event_types": "payment", "lanes": 2, "round_rows_max": 100,
        "kafka_brokers": kafka.brokers, "kafka_topic_prefix": topic_prefix, "kafka_format": "json",
        "kafka_until_end": "true", "control_topic": topic,
    }  # fmt: skip
    run = Run(bench, tmp_path / "state", more)
    report = run.to_end()
    assert report["in"] == len(bodies) == report["scored"] + report["duplicates"]
    lanes = [list(read_cuts(tmp_path / "state" / "journal" / f"lane-0{i}")) for i in range(2)]
    assert [sum(c.received for c in cuts) for cuts in lanes] == [0, len(bodies)]
    assert [cuts[-1].final for cuts in lanes] == [True, True]
    assert lanes[0][-1].round > 20, "without an event to read, lane 0 stays for the records"
    manifest = read_manifest(tmp_path / "state")
    assert manifest is not None
    assert [r["stage"] for r in manifest.control if r["kind"] == "stage"] == ["shadow"]


def _check(run: Run, muted: tuple[str, str], bad: dict[str, Any], topic: str) -> None:
    """What the records have done to the alerts, and where they stand."""
    cuts = cuts_of(run.state_dir)
    assert [r["kind"] for r in cuts[0].control] == ["mute", "threshold"], "from the first round on"
    alerts = run.alerts()
    assert not [a for a in alerts if (a["entity_type"], a["entity"]) == muted]
    assert not [a for a in alerts if a["anomaly_type"] == "account_attack" and a["score"] < 1]
    canary = next(c.round for c in cuts if _is(c, "canary"))
    voted = [(a["round"] >= canary, _in_canary(a)) for a in _boosted(alerts)]
    assert (False, False) in voted and (True, True) in voted
    assert (True, False) not in voted, "half of the entities hear it, always the same"
    off = [c.round for c in cuts if _is(c, "off")]
    last = max(a["round"] for a in alerts)
    assert canary < last <= max(off) < cuts[-1].round, "no detector, no alert"
    manifest = read_manifest(run.state_dir)
    assert manifest is not None
    stages = {r["detector"]: r["stage"] for r in manifest.control if r["kind"] == "stage"}
    assert stages == dict.fromkeys(trained_detectors(), "off")
    (line,) = (run.state_dir / "dead_letters.jsonl").read_text().splitlines()
    letter = json.loads(line)
    assert letter["reason"] == "bad_control_record" and letter["topic"] == topic
    assert (letter["partition"], letter["offset"]) == (0, 2)
    assert "unknown detector 'zsore' (did you mean 'zscore'?)" in letter["detail"]


def _is(cut: Cut, stage: str) -> bool:
    """Whether a round has a record of a stage."""
    return any(r.get("stage") == stage for r in cut.control)


def _boosted(alerts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those for which gradient boosting voted."""
    ours = "gradient_boosting"
    return [a for a in alerts if any(v["vote"] for v in a["votes"] if v["detector"] == ours)]


def _in_canary(alert: dict[str, Any]) -> bool:
    """Whether an alert is about one of the half of all entities that hear the canary."""
    columns = event_type(alert["event_type"]).entities[alert["entity_type"]]
    parts = alert["entity"].split("|")
    frame = pl.DataFrame({name: [part] for name, part in zip(columns, parts, strict=True)})
    return int(hash_columns(frame, columns)[0]) % 100_000 < 50_000


def _durable(state: Path) -> int:
    """Round of the manifest, 0 before the first."""
    found = read_manifest(state)
    return 0 if found is None else found.round
