"""Bad configuration from outside: one sentence a fault with its cure, status 2, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from confluent_kafka import Producer

from dataflows.state.journal import read_cuts
from features.events import event_type, event_types
from models.bundle import _id_of
from models.detectors import detector_names
from tests.flow.harness import TIMEOUT_S, Bench, Run, call

DAY = {"sim_seconds": 6, "sim_speed": 7200.0, "round_rows_max": 2000, "snapshot_rounds": 5}
"""Half a day of event time in some forty rounds."""


def refused(*arguments: str, cwd: Path, **extra: str) -> list[str]:
    """The faults `waxwing ...` names on stderr, after which it must have ended with status 2."""
    done = call(*arguments, cwd=cwd, **extra)
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert lines and all(line.startswith("waxwing: ") for line in lines), done.stderr
    for bug in ("Traceback", "panicked", "Error:", "Error("):
        assert bug not in done.stderr
    return [line.removeprefix("waxwing: ") for line in lines]


def one(faults: list[str]) -> str:
    """The only fault."""
    assert len(faults) == 1, faults
    return faults[0]


def test_unknown_names_are_told_all_at_once_with_the_valid_ones(tmp_path: Path) -> None:
    text = (
        'detectors = ["zscor", "iqr", "oracle"]\n'
        'event_types = ["payment", "lgin"]\n'
        'alerts = ["jsonl", "carrier_pigeon"]\n'
        "round_mss = 50\n"
        'groups = "many"\n'
    )
    (tmp_path / "waxwing.toml").write_text(text, encoding="utf-8")
    for command in ("run", "check", "train"):
        faults = "\n".join(refused(command, "--config", "waxwing.toml", cwd=tmp_path))
        for said in ("round_mss", "zscor", "oracle", "lgin", "carrier_pigeon", "groups"):
            assert said in faults, (command, said)
        for valid in (*detector_names(), *event_types(), "round_ms", "pagerduty"):
            assert valid in faults, (command, valid)
    assert not (tmp_path / ".waxwing").exists(), "nothing was begun"


def test_an_unknown_column_is_told_with_those_there_are(bench: Bench, tmp_path: Path) -> None:
    mapping = (
        'event = "payment"\n[fields]\nevent_id = "no"\ntime_us = "whn"\namount = "total"\n'
        'colour = "x"\ncard_id = "crd"\nuser_id = "card"\nmerchant_id = "card"\n'
    )
    (tmp_path / "shop.toml").write_text(mapping, encoding="utf-8")
    frame = pl.DataFrame({"no": ["1"], "when": ["2026-03-02T00:00:00Z"], "card": ["c"], "total": 1})
    frame.write_csv(tmp_path / "shop.csv")
    data = ("--data", "shop.csv", "--mapping", "shop.toml")
    run = ("run", *bench.sets(state_dir=tmp_path / "s"), *data)
    fault = one(refused(*run, cwd=tmp_path))
    assert "colour" in fault and "merchant_id" in fault
    (tmp_path / "shop.toml").write_text(mapping.replace('colour = "x"\n', ""), encoding="utf-8")
    faults = "\n".join(refused(*run, cwd=tmp_path))
    assert "'whn'" in faults and "did you mean 'when'" in faults and "'crd'" in faults
    assert "no, when, card, total" in faults


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--data", "payment=gone.parquet"), ("gone.parquet", "no such file")),
        (("run", "--data", "gone.parquet"), ("gone.parquet", "EVENT_TYPE=")),
        (("run", "--data", "x.csv", "--mapping", "fraud-hndbook"), ("fraud-handbook",)),
        (("run", "--config", "gone.toml"), ("gone.toml",)),
        (("run", "--config", "."), ("'.'", "Is a directory")),
        (("check", "--config", "."), ("'.'", "Is a directory")),
        (("run", "--data", "payment=a.csv", "--data", "payment=b.csv"),
         ("payment has a file already, a.csv",)),
        (("run", "--data", "login=x.csv", "--mapping", "fraud-handbook"),
         ("fraud-handbook is for payment events", "--data has login")),
        (("train", "--data", "payment=gone.csv"), ("gone.csv", "no such file")),
        (("backfill", "--data", "payment=gone.csv", "--until", "2026-03-02T00:00:00Z"),
         ("gone.csv", "no such file")),
        (("rnu",), ("'run'", "commands:")),
    ],
)  # fmt: skip
def test_a_missing_file_or_command_is_one_sentence(
    bench: Bench, tmp_path: Path, arguments: tuple[str, ...], said: tuple[str, ...]
) -> None:
    command, *rest = arguments
    sets = () if command == "rnu" else tuple(bench.sets(state_dir=tmp_path / "s"))
    fault = one(refused(command, *rest, *sets, cwd=tmp_path))
    assert all(word in fault for word in said), fault


def damaged(bench: Bench, folder: Path, how: str) -> Path:
    """A bundle that is missing, truncated, or made for another catalogue."""
    if how == "missing":
        return folder / "none"
    path = Path(shutil.copytree(bench.folder / "bundle", folder / how))
    if how == "truncated":
        model = path / "payment" / "gradient_boosting.npz"
        model.write_bytes(model.read_bytes()[:-100])
    else:
        head = json.loads((path / "bundle.json").read_text(encoding="utf-8"))
        head["catalog_version"] = "0123456789abcdef"
        head["id"] = _id_of(head)
        (path / "bundle.json").write_text(json.dumps(head), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "there is no model bundle"),
        ("truncated", "gradient_boosting.npz"),
        ("of another catalogue", "0123456789abcdef"),
    ],
)
def test_a_bundle_that_does_not_serve_is_refused(
    bench: Bench, tmp_path: Path, how: str, said: str
) -> None:
    path = damaged(bench, tmp_path, how)
    state = tmp_path / "state"
    sets = bench.sets(state_dir=state, bundle=path, sim_seconds=1)
    fault = one(refused("run", *sets, cwd=tmp_path))
    assert said in fault and "waxwing train" in fault, fault
    assert not state.exists(), "nothing was begun"


def test_a_wrong_warm_state_leaves_no_state_behind(bench: Bench, tmp_path: Path) -> None:
    state = tmp_path / "state"
    for more, said in (
        ({"warm_state": tmp_path / "none"}, "holds no state"), ({"groups": 8}, "groups = 16"),
    ):  # fmt: skip
        sets = bench.sets(state_dir=state, sim_seconds=1, **more)
        assert said in one(refused("run", *sets, cwd=tmp_path))
        assert not state.exists(), "nothing was begun"


@pytest.fixture
def broker() -> Iterator[str]:
    """Librdkafka's own broker in this process, without any topic; it creates none on request."""
    options = {"test.mock.num.brokers": 1, "log_level": 0, "allow.auto.create.topics": False}
    holder = Producer({"bootstrap.servers": "none", **options})
    found = holder.list_topics(timeout=60).brokers.values()
    yield ",".join(f"{b.host}:{b.port}" for b in found)
    holder.close()


def test_a_broker_that_cannot_be_reached_is_one_sentence(bench: Bench, tmp_path: Path) -> None:
    for name, value in (("source", "kafka"), ("alerts", "kafka")):
        more = {"state_dir": tmp_path / name, "kafka_brokers": "127.0.0.1:9", name: value}
        fault = one(refused("run", *bench.sets(**more), cwd=tmp_path))
        assert "127.0.0.1:9" in fault and "check kafka_brokers" in fault, fault


def test_topics_that_do_not_exist_are_one_sentence_each(
    bench: Bench, tmp_path: Path, broker: str
) -> None:
    world = {"source": "kafka", "kafka_brokers": broker, "kafka_topic_prefix": "nowhere-"}
    faults = refused("run", *bench.sets(state_dir=tmp_path / "s", **world), cwd=tmp_path)
    topics = [f"nowhere-{event_type(name).topic}" for name in event_types()]
    assert [topic for topic in topics if not any(topic in fault for fault in faults)] == []


def test_a_full_disk_stops_the_flow_with_one_sentence(bench: Bench, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "alerts.jsonl").symlink_to("/dev/full")
    fault = one(refused("run", *bench.sets(state_dir=state, **DAY), cwd=tmp_path))
    assert "alerts.jsonl" in fault and "free space" in fault, fault


def test_a_file_of_random_bytes_is_one_short_printable_sentence(
    bench: Bench, tmp_path: Path, rng: np.random.Generator
) -> None:
    (tmp_path / "x.csv").write_bytes(rng.bytes(100_000))
    run = ("run", *bench.sets(state_dir=tmp_path / "s"), "--data", "login=x.csv")
    fault = one(refused(*run, cwd=tmp_path))
    assert "x.csv" in fault and "header line" in fault
    assert fault.isprintable() and len(fault) < 400


def test_a_run_that_has_nothing_left_to_do_says_so(bench: Bench, tmp_path: Path) -> None:
    state = tmp_path / "state"
    Run(bench, state, DAY | {"sim_seconds": 1}).to_end()
    (state / "alerts.jsonl").write_bytes(b"")
    (state / "manifest.json").write_bytes(b"{")
    done = call("run", *bench.sets(state_dir=state, **DAY), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("waxwing: ") for line in lines), done.stderr
    for said in ("manifest.json is damaged; going on from", "alerts.jsonl has 0 bytes"):
        assert sum(said in line for line in lines) == 1, (said, done.stderr)
    done = call("run", *bench.sets(state_dir=state, **DAY), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sum("already finished: the simulated" in line for line in done.stderr.splitlines()) == 1


def test_other_events_behind_a_journal_stop_the_flow_with_one_sentence(
    bench: Bench, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    folder = state / "journal" / "lane-00"
    run = Run(bench, state, DAY)
    run.until(lambda: folder.exists() and sum(1 for _ in read_cuts(folder)) > 12, hold=36)
    before = len(run.alerts())
    sets = bench.sets(state_dir=state, **DAY, sim_seed=99)
    fault = one(refused("run", *sets, cwd=tmp_path))
    assert "lane-00: round" in fault and "start with the settings" in fault, fault
    assert len(run.alerts()) <= before, "nothing was delivered from other events"


def test_state_of_other_settings_is_refused(bench: Bench, tmp_path: Path) -> None:
    state = tmp_path / "state"
    Run(bench, state, DAY | {"sim_seconds": 1}).to_end()
    sets = bench.sets(state_dir=state, groups=8)
    faults = refused("run", *sets, cwd=tmp_path)
    assert any("groups = 16" in fault and "empty state_dir" in fault for fault in faults), faults


def test_a_secret_is_in_no_message(bench: Bench, tmp_path: Path) -> None:
    secret = "hunter2hunter2hunter2"
    sets = bench.sets(state_dir=tmp_path / "s", alerts="pagerduty", pagerduty_url="nonsense")
    done = call(
        "run", *sets, "--set", "sim_seconds=1", cwd=tmp_path, WAXWING_PAGERDUTY_ROUTING_KEY=secret
    )
    assert done.returncode == 2
    assert secret not in done.stderr + done.stdout


@pytest.mark.parametrize("flow", ["dataflows.detect", "dataflows.notify"])
def test_bytewax_tells_bad_settings_as_waxwing_does(tmp_path: Path, flow: str) -> None:
    (tmp_path / "waxwing.toml").write_text('round_mss = 50\ngroups = "many"\n', encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "bytewax.run", f"{flow}:build('waxwing.toml')"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("WAXWING_")}
        | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and all(line.startswith("waxwing: ") for line in lines), done.stderr
    assert "round_mss" in lines[0] and "groups" in lines[1] and "settings are" in lines[2]


def test_a_run_that_refuses_everything_says_where_it_went_and_why(
    bench: Bench, tmp_path: Path
) -> None:
    good = '{"event_id": "a%d", "time_us": 1772409600000000, "amount": -1}\n'
    text = "".join(good % i for i in range(3)) + "no JSON\n"
    (tmp_path / "payments.jsonl").write_text(text, encoding="utf-8")
    state = tmp_path / "state"
    sets = bench.sets(state_dir=state)
    done = call("run", *sets, "--data", "payment=payments.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    letters = (state / "dead_letters.jsonl").read_text(encoding="utf-8").splitlines()
    reasons = [json.loads(letter)["reason"] for letter in letters]
    commonest = max(set(reasons), key=reasons.count)
    (last,) = [line for line in done.stderr.splitlines() if "events in" in line]
    assert "4 dead-lettered" in last and str(state / "dead_letters.jsonl") in last
    assert f"most often {commonest} ({reasons.count(commonest)})" in last
