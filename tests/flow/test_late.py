"""Late, early and wrong times from outside: files whose rows come late, a topic with an idle lane.

A file read in the order of its times has nothing late; a column that numbers its rounds
(`file_round_column`) makes rows come when they came.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from confluent_kafka import Producer

from dataflows.evaluation import load_warm
from dataflows.settings import load
from dataflows.sources.simulator import make_simulator, time_us_of
from dataflows.state.journal import read_cuts
from features.batch import EventBatch
from features.catalog import catalog
from features.encode import json_bodies
from features.events import event_type, event_types
from tests.flow.harness import Bench, Run, call, counts_of, without_clock

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
BOUND = MINUTE
ROUND = 15 * SECOND
"""Event time of a round: a row that is late by more comes after rows that are newer."""


class World:
    """An hour of simulated events; the files that hold them, in order or not."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.folder = folder
        given = {k: v for k, v in bench.settings.items() if k.startswith("sim_")}
        self.settings = load(None, {}, **given)
        self.start_us = time_us_of(self.settings.sim_start)
        self.middle_us = self.start_us + 40 * MINUTE
        self.end_us = self.start_us + HOUR
        self.simulator = make_simulator(self.settings)
        self.events = self.simulator.span(self.start_us, self.end_us)

    def frames(self) -> dict[str, pl.DataFrame]:
        """Events of each type with the moment each comes: its own time."""
        return {
            name: batch.frame.with_columns(came=pl.col("time_us"))
            for name, batch in self.events.items()
        }

    def shuffled(self, rng: np.random.Generator) -> dict[str, pl.DataFrame]:
        """The events of the first 40 minutes come up to a minute after their time.

        Those of one time and type come together: ties go by their order in the file.
        """
        made = {}
        for name, frame in self.frames().items():
            times = frame["time_us"].to_numpy()
            different, which = np.unique(times, return_inverse=True)
            delay = rng.integers(0, BOUND, len(different))[which] * (times < self.middle_us)
            made[name] = frame.with_columns(came=pl.Series(times + delay))
        return made

    def files(self, name: str, frames: dict[str, pl.DataFrame]) -> Path:
        """A folder with the events as they came."""
        folder = self.folder / name
        folder.mkdir()
        for event, frame in frames.items():
            cut = (pl.col("came") - self.start_us) // ROUND
            rows = frame.sort("came", maintain_order=True).with_columns(cut=cut).drop("came")
            rows.write_parquet(folder / f"{event}.parquet")
        return folder


def reading(bench: Bench, folder: Path, state: Path, **more: Any) -> Run:
    """A flow that reads the files of a folder in their rounds, and flags one event in fifty."""
    rules = (bench.folder / "bundle" / "voting.toml").read_text(encoding="utf-8")
    rules = re.sub(r"\[\w+\.weights\]\n(\w+ = .*\n)*", "", rules)  # those of training stay
    voting = folder / "voting.toml"
    voting.write_text(re.sub(r"= 0\.9\d+", "= 0.98", rules), encoding="utf-8")
    settings = {"file_round_column": "cut", "voting": voting, **more}
    return Run(bench, state, settings, ("--data", str(folder)))


@pytest.fixture(scope="module")
def world(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(bench, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def in_order(bench: Bench, world: World) -> Run:
    """A run over the events in the order of their times."""
    folder = world.files("in-order", world.frames())
    run = reading(bench, folder, world.folder / "in-order-state")
    report = run.to_end()
    assert counts_of(report)["dead_lettered"] == 0 and report["corrected"] == 0
    return run


@pytest.fixture(scope="module")
def shuffled(bench: Bench, world: World) -> tuple[Run, dict[str, Any]]:
    """A run over the same events, those of the first 40 minutes up to a minute late; its report."""
    folder = world.files("shuffled", world.shuffled(np.random.default_rng(4)))
    run = reading(bench, folder, world.folder / "shuffled-state")
    return run, run.to_end()


def flagged(alerts: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """(event id, anomaly type) of alerts."""
    return {(a["event_id"], a["anomaly_type"]) for a in alerts}


def test_nothing_within_the_bound_is_lost(
    shuffled: tuple[Run, dict[str, Any]], world: World
) -> None:
    _, report = shuffled
    sent = sum(len(batch) for batch in world.events.values())
    different = sum(batch.frame["event_id"].n_unique() for batch in world.events.values())
    assert counts_of(report) == {
        "in": sent, "scored": different, "duplicates": sent - different, "dead_lettered": 0,
        "pending": 0,
    }  # fmt: skip
    assert report["late_beyond"] == report["late_forgotten"] == 0


def test_rows_after_the_bound_are_scored_as_if_all_had_come_in_time(
    in_order: Run, shuffled: tuple[Run, dict[str, Any]], world: World
) -> None:
    after_us = world.middle_us + BOUND
    one, other = (
        [a for a in without_clock(run.alerts()) if a["time_us"] >= after_us]
        for run in (in_order, shuffled[0])
    )
    assert len(one) > 50 and one == other


def test_the_state_is_that_of_the_sorted_file(
    in_order: Run, shuffled: tuple[Run, dict[str, Any]], world: World
) -> None:
    cat, engines = catalog(), []
    for run in (in_order, shuffled[0]):
        loaded = load_warm(run.state_dir, world.settings, cat)
        assert loaded is not None
        engines.append(loaded.engine)
    probes = world.simulator.span(world.end_us, world.end_us + 6 * HOUR)
    one, other = (engine.process(probes) for engine in engines)
    assert sum(map(len, one.values())) > 20_000
    for name, matrix in one.items():
        np.testing.assert_array_equal(matrix.values, other[name].values)
        np.testing.assert_array_equal(matrix.sequence, other[name].sequence)


def test_scored_rows_are_corrected_and_the_flips_lead_to_the_alerts_of_the_sorted_file(
    in_order: Run, shuffled: tuple[Run, dict[str, Any]]
) -> None:
    run, report = shuffled
    assert report["corrected"] > 100 and report["corrected_unchecked"] == 0
    assert report["flipped"] == len(report["flips"]) > 0
    found = flagged(run.alerts())
    for flip in report["flips"]:
        which = flip["event_id"], flip["anomaly_type"]
        assert (which in found) == flip["was"] != flip["would_be"]
        found ^= {which}
    assert len(found) > 300 and found == flagged(in_order.alerts())


def test_kill_9_changes_no_alert_and_no_count_of_events(
    bench: Bench, shuffled: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    whole, told = shuffled
    state = tmp_path / "state"
    # No snapshot before the kill: all rounds are played again, many at a time.
    run = Run(bench, state, whole.more | {"snapshot_rounds": 1_000}, whole.arguments)
    journal = state / "journal" / "lane-00"
    run.until(lambda: journal.exists() and sum(1 for _ in read_cuts(journal)) > 100, hold=200)
    report = run.to_end()
    assert counts_of(report) == counts_of(told)
    assert run.alerts() == whole.alerts(), "the same rounds, line by line"
    changed = ("corrected", "corrected_unchecked")
    assert sum(report[k] for k in changed) == sum(told[k] for k in changed)


def strange(frame: pl.DataFrame, moved: list[tuple[int, int]]) -> pl.DataFrame:
    """Rows `row` of a frame once more under other ids, `by_us` from their time, at their moment."""
    rows = [
        frame[row].with_columns(
            event_id=pl.col("event_id") + f"-strange-{i}", time_us=pl.col("time_us") + by_us
        )
        for i, (row, by_us) in enumerate(moved)
    ]
    return pl.concat(rows)


def letters_of(run: Run) -> list[dict[str, Any]]:
    """The dead letters of a run."""
    text = (run.state_dir / "dead_letters.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


MOVED = [
    (500, -61 * SECOND, "too_late"),
    (700, -HOUR, "too_late"),
    (900, -5 * 86_400 * SECOND, "too_late"),
    (1000, -365 * 86_400 * SECOND, "time_past"),
    (1100, 2 * HOUR, "too_early"),
    (1300, 6 * 86_400 * SECOND, "too_early"),
    (1500, 365 * 86_400 * SECOND, "time_future"),
]
"""(row of the payments, by how much its time is wrong, why it is refused)."""


@pytest.fixture(scope="module")
def wrong(world: World) -> Path:
    """The events in order, and copies of some payments with wrong times."""
    frames = world.frames()
    extra = strange(frames["payment"], [(row, by) for row, by, _ in MOVED])
    # Two rounds after the rows they are copies of, so that the clock has passed these.
    extra = extra.with_columns(came=pl.col("came") + 2 * ROUND)
    frames["payment"] = pl.concat([frames["payment"], extra])
    return world.files("wrong", frames)


def test_wrong_times_are_dead_letters_and_change_nothing_for_others_killed_or_not(
    bench: Bench, world: World, in_order: Run, wrong: Path, tmp_path: Path
) -> None:
    run = reading(bench, wrong, tmp_path / "state", snapshot_rounds=30)
    journal = run.state_dir / "journal" / "lane-00"
    run.until(lambda: journal.exists() and sum(1 for _ in read_cuts(journal)) > 150, hold=200)
    report = run.to_end()
    payments = world.events["payment"].frame["event_id"]
    assert report["in"] == sum(map(len, world.events.values())) + len(MOVED)
    assert report["pending"] == 0 and report["dead_lettered"] == len(MOVED)
    path = str(wrong / "payment.parquet")
    written = pl.read_parquet(path)["event_id"].to_list()
    reasons = {}
    for letter in letters_of(run):
        event = json.loads(base64.b64decode(letter["raw"]))
        assert (letter["topic"], letter["partition"]) == (path, 0)
        assert written[letter["offset"]] == event["event_id"]
        reasons[event["event_id"]] = letter["reason"]
    assert reasons == {f"{payments[row]}-strange-{i}": why for i, (row, _, why) in enumerate(MOVED)}
    assert without_clock(run.alerts()) == without_clock(in_order.alerts())


def test_history_counts_what_the_stream_refuses(world: World, wrong: Path) -> None:
    out = world.folder / "history"
    done = call(
        "backfill", "--data", str(wrong), "--out", str(out), "--json", "-",
        "--set", "file_round_column=cut", "--set", "warm_state=cold", cwd=world.folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout[done.stdout.index("{") :])
    expected: dict[str, int] = {}
    for _, _, why in MOVED:
        expected[why] = expected.get(why, 0) + 1
    assert report["reasons"] == expected
    assert report["in"] == report["events"] + report["rejected"] + report["duplicates"]


@pytest.fixture
def producer() -> Iterator[Producer]:
    """librdkafka's own broker in this process, with topics of four partitions."""
    holder = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
    for name in event_types():
        holder.list_topics(event_type(name).topic, timeout=60)
    yield holder
    holder.close()


def from_topic(bench: Bench, producer: Producer, state: Path, **more: Any) -> Run:
    """A flow that reads the payments of the topic in two lanes, to their end."""
    brokers = producer.list_topics(timeout=60).brokers.values()
    settings = {
        "source": "kafka", "kafka_brokers": ",".join(f"{b.host}:{b.port}" for b in brokers),
        "kafka_format": "json", "kafka_until_end": "true", "event_types": '["payment"]',
        "lanes": 2, "warm_state": "cold", "round_rows_max": 200, **more,
    }  # fmt: skip
    return Run(bench, state, settings)


@pytest.mark.parametrize("future_s", [60, 10 * 366 * 86_400])
def test_an_event_from_next_year_and_an_idle_lane_change_nothing_for_others(
    bench: Bench, producer: Producer, world: World, tmp_path: Path, future_s: int
) -> None:
    now_us = time.time_ns() // 1000
    batch: EventBatch = world.events["payment"]
    moved = now_us - 60 * SECOND - int(batch.time_us.max())
    good = batch.frame.with_columns(time_us=pl.col("time_us") + moved)[:1500]
    wrong = strange(good.with_columns(came=pl.col("time_us")), [(700, 370 * 86_400 * SECOND)])
    found = []
    for name, frame in (("plain", good), ("wrong", pl.concat([
        good[:700], wrong.drop("came"), good[700:]]))):  # fmt: skip
        prefix = f"{name}-{future_s}-"
        producer.list_topics(prefix + "payments", timeout=60)
        for value in json_bodies(frame):
            producer.produce(prefix + "payments", value, partition=0)  # lane 1 has nothing to read
        assert producer.flush(60) == 0
        run = from_topic(
            bench, producer, tmp_path / name, kafka_topic_prefix=prefix, time_future_s_max=future_s
        )
        report = run.to_end()
        assert report["in"] == len(frame) and report["pending"] == 0
        found.append((run, report))
    (plain, before), (with_it, report) = found
    assert report["scored"] == before["scored"] > 1400 and before["dead_lettered"] == 0
    (letter,) = letters_of(with_it)
    assert letter["reason"] == ("time_future" if future_s == 60 else "too_early")
    assert (letter["partition"], letter["offset"]) == (0, 700)
    one, other = (without_clock(run.alerts()) for run in (plain, with_it))
    assert len(one) > 10 and one == other
