"""`waxwing notify` and its Bytewax flow as processes: signals, restarts, what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataflows.alerts import jsonl
from dataflows.settings import Settings
from tests.alerts import ROUTING_KEY, an_alert
from tests.flow.harness import TIMEOUT_S, Bench, Run, call
from tests.pagerduty import PagerDuty, receiver

ROOT = Path(__file__).resolve().parents[2]
PASSED_ON = ("WAXWING_PAGERDUTY_ROUTING_KEY", "NO_PROXY")


@pytest.fixture
def duty() -> Iterator[PagerDuty]:
    with receiver() as opened:
        yield opened


@pytest.fixture
def config(duty: PagerDuty, tmp_path: Path) -> Path:
    """A settings file that leads to the receiver."""
    path = tmp_path / "waxwing.toml"
    path.write_text(
        f'state_dir = "{tmp_path}"\nnotify = ["pagerduty"]\npagerduty_url = "{duty.url}"\n'
    )
    return path


def environment(**more: str) -> dict[str, str]:
    """This process's, without settings but for the key."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WAXWING_")}
    key = {"WAXWING_PAGERDUTY_ROUTING_KEY": ROUTING_KEY}
    return kept | {"NO_PROXY": "127.0.0.1"} | key | more


def command(config: Path, *more: str) -> list[str]:
    """`waxwing notify`."""
    return [sys.executable, "-m", "dataflows.cli.main", "notify", "--config", str(config), *more]


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _end_what_is_left() -> Iterator[None]:
    """A test that fails leaves no process behind."""
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start it, output kept together."""
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


def write(config: Path, begin: int, end: int) -> None:
    """Append alerts to the log."""
    sink = jsonl.Sink(Settings(state_dir=config.parent))
    sink.write([an_alert(n) for n in range(begin, end)])
    sink.close()


def test_the_bytewax_flow_tells_and_sends_the_rest_after_a_sigterm(
    duty: PagerDuty, config: Path
) -> None:
    write(config, 0, 3)
    flow = f"dataflows.notify:build({str(config)!r})"
    process = start([sys.executable, "-m", "bytewax.run", "-s", "0", flow])
    duty.wait_for(lambda: len(duty.accepted) == 3, TIMEOUT_S)
    write(config, 3, 20)  # more than a burst: some have to wait for the rate
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, out
    assert len(duty.accepted) == len(duty.incidents) == 20 and duty.faults == []
    assert ROUTING_KEY not in out


def test_a_killed_flow_goes_on_where_it_was_and_opens_no_incident_twice(
    duty: PagerDuty, config: Path
) -> None:
    write(config, 0, 14)
    process = start(command(config))
    duty.wait_for(lambda: len(duty.accepted) >= 11, TIMEOUT_S)
    process.kill()
    process.communicate()
    before = len(duty.accepted)
    write(config, 14, 16)
    done = subprocess.run(
        command(config, "--once"), cwd=ROOT, env=environment(), capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(duty.incidents) == 16
    assert all(incident.opened == 1 for incident in duty.incidents.values())
    # At most what was sent since the place was last written: one turn's burst.
    assert len(duty.accepted) - 16 <= 10 and before < 16


def test_a_signal_before_the_flow_has_begun_loses_nothing(duty: PagerDuty, config: Path) -> None:
    write(config, 0, 2)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        process = start(command(config))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, out
    assert len(duty.accepted) == 2


def test_an_orphan_sends_what_is_left_and_ends(duty: PagerDuty, config: Path) -> None:
    write(config, 0, 2)
    process = start(command(config, "--parent", str(2**22 + 1)))
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0 and len(duty.accepted) == 2, out


def test_every_incident_of_a_detect_flow_is_told_while_it_runs_or_by_the_next_notify(
    bench: Bench, duty: PagerDuty, tmp_path: Path
) -> None:
    passed = {k: v for k, v in environment().items() if k in PASSED_ON}
    more = {"notify": "pagerduty", "pagerduty_url": duty.url, "sim_seconds": 4}
    run = Run(bench, tmp_path / "state", more)
    run.to_end(**passed)
    alerts = run.alerts()
    # By hand, not by the function under test: one incident for each anomaly type and entity.
    parts = ("anomaly_type", "entity_type", "entity")
    groups = Counter(":".join(["waxwing", *(alert[p] for p in parts)]) for alert in alerts)
    assert len(groups) >= 15 and len(alerts) > len(groups), "some incidents have several alerts"
    told = told_by(duty)
    assert len(told) >= 10 and told <= groups and duty.faults == []
    sent = json.loads((run.state_dir / "notify" / "position.json").read_text())["sent"]
    assert told.total() == len(sent), "what was told is known as told"
    # PagerDuty takes two events a second: what is left is told by the next notify flow.
    rest = call("notify", "--once", *run.options(), cwd=bench.folder, **passed)
    assert rest.returncode == 0, rest.stderr
    assert told_by(duty) == groups and duty.faults == []
    assert all(incident.opened == 1 for incident in duty.incidents.values())


def told_by(duty: PagerDuty) -> Counter[str]:
    """Incident -> alerts of which PagerDuty was told, repeats counted as often as told."""
    told: Counter[str] = Counter()
    for body in duty.accepted:
        told[body["dedup_key"]] += body["payload"]["custom_details"]["count"]
    return told


def test_bad_settings_are_a_sentence_each_and_status_2(config: Path) -> None:
    done = subprocess.run(
        command(config, "--set", "pagerduty_routing_key=hunter2"),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2 and "hunter2" not in done.stderr
    assert done.stderr.startswith("waxwing: pagerduty_routing_key: expected 32 letters and digits")
