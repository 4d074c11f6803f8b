"""The demo keeps to its own folders, whatever a settings file of a real flow says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dataflows.settings import load
from dataflows.state.own import MARKER
from dataflows.training import is_trained
from tests.flow.harness import WORLD, Bench, alerts_of, call, running, wait_for

REAL = """
source = "kafka"
kafka_brokers = "127.0.0.1:9"
state_dir = "real/state"
bundle = "real/bundle"
warm_state = "real/warm"
alerts = ["kafka"]
notify = ["pagerduty"]
dead_letters_topic = "letters"
control_topic = "control"
labels_topic = "labels"
store = "redis"
redis_url = "redis://127.0.0.1:9/0"
"""
"""A real flow, whose broker and store nobody answers for: to touch them is a fault."""

SIM = {f"WAXWING_{name.upper()}": value for name, value in WORLD.items()}

SMALL = ("sim_cards=300", "sim_events_per_s=0.1", "sim_anomaly_share=0.01", "detectors=zscore,iqr")
"""A world of which fourteen days are learned from in seconds."""


def sets(*items: str) -> list[str]:
    """`--set` options."""
    return [part for item in items for part in ("--set", item)]


@pytest.fixture
def home(bench: Bench, tmp_path: Path) -> Path:
    """A folder with the settings, state and models of a real flow, and a trained demo."""
    (tmp_path / "waxwing.toml").write_text(REAL, encoding="utf-8")
    for name in ("state", "bundle", "warm"):
        (tmp_path / "real" / name).mkdir(parents=True)
        (tmp_path / "real" / name / "kept").write_text(name, encoding="utf-8")
    for name in ("bundle", "warm"):
        shutil.copytree(bench.folder / name, tmp_path / ".waxwing/demo" / name)
    return tmp_path


def untouched(home: Path) -> bool:
    """Whether the real flow has what it had, and nothing else."""
    found = {p.relative_to(home / "real").as_posix() for p in (home / "real").rglob("*")}
    return found == {f"{a}{b}" for a in ("state", "bundle", "warm") for b in ("", "/kept")}


def test_settings_of_a_real_flow_do_not_move_the_demo(home: Path) -> None:
    told = {"WAXWING_STATE_DIR": "real/state", "WAXWING_BUNDLE": "real/bundle"}
    demo = ("demo", "--config", "waxwing.toml", "--seconds", "2", "--json", "out.json")
    done = call(*demo, cwd=home, **SIM, **told)
    assert done.returncode == 0, done.stderr
    assert untouched(home)
    report = json.loads((home / "out.json").read_text(encoding="utf-8"))
    assert report["alerts"] == len(alerts_of(home / ".waxwing/demo/state")) > 0


@pytest.mark.parametrize("name", ["state_dir", "bundle", "warm_state"])
def test_a_folder_that_is_not_the_demos_is_refused(home: Path, name: str) -> None:
    folder = {"state_dir": "real/state", "bundle": "real/bundle", "warm_state": "real/warm"}[name]
    own = {"bundle": "new/bundle", "warm_state": "new/warm"} | {name: folder}
    done = call("demo", *sets(*(f"{k}={v}" for k, v in own.items()), *SMALL), cwd=home)
    assert done.returncode == 2 and untouched(home)
    (fault,) = [line for line in done.stderr.splitlines() if line.startswith("waxwing: ")]
    assert folder in fault and MARKER in fault and "name a folder" in fault


def test_the_demo_trains_where_it_looks_and_may_write_over_its_own(tmp_path: Path) -> None:
    own = ("bundle=models/new", "warm_state=past/warm", "state_dir=state", *SMALL)
    demo = ("demo", "--seconds", "1", *sets(*own))
    first = call(*demo, cwd=tmp_path)
    assert first.returncode == 0 and "history" in first.stdout, first.stderr
    values = dict(item.split("=") for item in own) | {"detectors": ["zscore", "iqr"]}
    values |= {name: tmp_path / values[name] for name in ("bundle", "warm_state", "state_dir")}
    assert is_trained(load(environ={}, **values)) is None
    assert not (tmp_path / "models/warm").exists() and not (tmp_path / ".waxwing").exists()
    again = call(*demo, "--train", cwd=tmp_path)
    assert again.returncode == 0 and "history" in again.stdout, again.stderr


def test_a_second_demo_leaves_the_first_alone(home: Path) -> None:
    state = home / ".waxwing/demo/state"
    with running("demo", "--seconds", "60", cwd=home, **SIM) as first:
        wait_for(lambda: alerts_of(state), "its first alert", first)
        kept = (state / "alerts.jsonl").stat().st_ino
        second = call("demo", "--train", cwd=home, **SIM)
        assert second.returncode == 2 and "in use by another process" in second.stderr
        assert first.poll() is None and (state / "alerts.jsonl").stat().st_ino == kept
