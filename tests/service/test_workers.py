"""Several processes over a real broker: killed, stopped, another number, and the same as one."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from dataflows.sources.rounds import journal_folder
from dataflows.state.journal import read_cuts
from dataflows.state.manifest import read_manifest
from features.events import event_type
from tests.flow.harness import Bench, alerts_of, call, running, wait_for
from tests.flow.test_supervisor import manifest_round, workers_of
from tests.service.servers import Kafka, Registry
from tests.service.test_pipeline import PAST_S, TYPES

HOURS = "3"
"""Three simulated hours: 21,600 events, as fast as the broker takes them."""


@pytest.mark.timeout(600)
def test_processes_that_die_and_change_in_number_are_one_flow(
    bench: Bench, kafka: Kafka, registry: Registry, topic_prefix: str, tmp_path: Path
) -> None:
    """Two processes, one killed; stopped; then three. One process replays the journal the same."""
    given: dict[str, Any] = {
        "source": "kafka", "lanes": "2", "kafka_brokers": kafka.brokers,
        "kafka_registry_url": registry.url, "kafka_topic_prefix": topic_prefix,
        "snapshot_rounds": "5", "round_rows_max": "300", "time_past_s_max": str(PAST_S),
        "late_s": "0", "early_s": "0",
    }  # fmt: skip
    for name in TYPES:
        kafka.create_topic(f"{topic_prefix}{event_type(name).topic}")
    sent = call("simulate", "--to", "kafka", "--hours", HOURS, *bench.sets(**given), cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    state = tmp_path / "state"
    command = ("run", *bench.sets(state_dir=state, **given), "--workers")
    with running(*command, "2", cwd=bench.folder) as flow:
        wait_for(lambda: manifest_round(state) >= 5, "a manifest", flow, 180)
        workers_of(flow.pid)[1].kill()
        before = manifest_round(state)
        wait_for(lambda: manifest_round(state) >= before + 10, "more manifests", flow, 180)
        flow.send_signal(signal.SIGTERM)
        out, _ = flow.communicate(timeout=90)
    assert flow.returncode == 0 and "was killed by SIGKILL" in out, out
    stopped = read_manifest(state)
    assert stopped is not None
    rest = call(*command, "3", "--set", "kafka_until_end=true", "--json", "r.json", cwd=tmp_path)
    assert rest.returncode == 0, rest.stderr
    total = kafka.total([f"{topic_prefix}{event_type(name).topic}" for name in TYPES])
    done = read_manifest(state)
    assert done is not None and done.round > stopped.round
    assert done.totals["in"] == total > 20_000
    assert done.totals["scored"] + done.totals["duplicates"] == total
    again = tmp_path / "again"
    copytree(state / "journal", again / "journal")
    replay = call(
        "run", *bench.sets(state_dir=again, kafka_until_end="true", **given), "--json", "-",
        cwd=tmp_path,
    )  # fmt: skip
    assert replay.returncode == 0, replay.stderr
    through = last_of_all_lanes(state)
    assert through > stopped.round, "the three processes had a part in it"
    live, came = ([a for a in alerts_of(s) if a["round"] <= through] for s in (state, again))
    assert len(live) > 50
    assert came == live, "line by line"
    live_all, came_all = ({a["id"]: a for a in alerts_of(s)} for s in (state, again))
    others = [{**live_all, **came_all}[i] for i in live_all.keys() ^ came_all.keys()]
    assert {alert["anomaly_type"] for alert in others} <= {"silence"}
    same = call("certify", "--set", f"state_dir={state}", "--json", "c.json", cwd=tmp_path)
    assert same.returncode == 0, same.stdout + same.stderr
    found = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert found["identical"] and found["last_round"] == done.round, "through the last round"


def last_of_all_lanes(state: Path) -> int:
    """The last round of which the journal has each lane's cut: a lane that reaches the end of its
    partitions first cuts no more, and a run that goes on from the journal cuts these anew."""
    lanes = [list(read_cuts(journal_folder(state, lane))) for lane in range(2)]
    return min(cuts[-1].round for cuts in lanes)
