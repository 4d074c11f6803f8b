"""A flow that asks the real kserve server: its votes are those of the operator, and it goes on
where the server is gone."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflows.state.answers import ANSWERS_FOLDER
from features.catalog import catalog
from features.errors import AnswerError
from models.bundle import Bundle
from models.detectors.remote import Client, Endpoint
from tests.flow.harness import Bench, Run, call, running, wait_for
from tests.rows import training_set
from tests.service.serving import Serving

HOURS = {"sim_seconds": 2, "sim_speed": 7200.0, "round_rows_max": 2000, "snapshot_rounds": 3}
"""Fourteen rounds."""

FAR = ("isolation_forest", "transformer")
"""Asked elsewhere: one that sees every row, one behind the gate that reads sequences."""

LIMIT_S = 300.0
"""Longest wait for what takes seconds on two cores at rest."""


@pytest.fixture(scope="module")
def serving(bench: Bench) -> Iterator[Serving]:
    """The bundle of the flow behind KServe."""
    with Serving(Path(bench.settings["bundle"])) as server:
        yield server


def asking(url: str, **more: Any) -> dict[str, Any]:
    """Settings of a flow that asks there."""
    return {"remote_url": url, "remote_detectors": ",".join(FAR)} | more


def test_votes_from_elsewhere_are_those_of_the_operator_bit_by_bit(
    bench: Bench, serving: Serving, tmp_path: Path
) -> None:
    near = Run(bench, tmp_path / "near", HOURS)
    scored = near.to_end()["scored"]
    alerts = near.alerts()
    assert len(alerts) > 5
    patient = {"detector_timeout_s": 0, "remote_timeout_s": 60}
    far = Run(bench, tmp_path / "far", HOURS | asking(serving.url, **patient))
    report = far.to_end()
    assert far.alerts() == alerts
    assert report["missed_votes"] == {} and report["asked_elsewhere"]["retries"] == 0
    assert report["asked_elsewhere"]["rows"] > scored, "every row once, some twice"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_each_detector_answers_a_client_what_it_says_in_the_operator(
    bench: Bench, serving: Serving, protocol: str
) -> None:
    bundle = Bundle.load(Path(bench.settings["bundle"]), catalog())
    rows = training_set(np.random.default_rng(4), "payment", rows=150, odd=20).features
    url = serving.url if protocol == "http" else f"grpc://{serving.grpc}"
    client = Client(Endpoint(url, timeout_s=60.0, batch_rows=64), time.monotonic)
    models = bundle.models["payment"]
    for name, one in models.detectors.items():
        seen = models.view.apply(rows)
        asked = seen if name == "transformer" else replace(seen, sequence=None)
        found = client.ask("payment", name, bundle.id, asked)
        assert found.tobytes() == one.raw(seen).tobytes(), name
    with pytest.raises(AnswerError, match=f"bundle {bundle.id} answers, expected another"):
        client.ask("payment", "zscore", "another", replace(seen, sequence=None))
    client.close()


def answered(state: Path) -> int:
    """The last round of which an answer is kept."""
    found = -1
    for path in (state / "journal/lane-00" / ANSWERS_FOLDER).glob("*.ans"):
        for part in path.read_bytes().split(b'{"round":')[1:]:
            number, whole, _ = part.partition(b",")
            found = max(found, int(number) if whole else -1)
    return found


def missed(state: Path) -> list[dict[str, Any]]:
    """Notes of missing votes."""
    path = state / "journal/lane-00/missed.log"
    lines = path.read_text(encoding="ascii").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line[9:]) for line in lines if line.endswith("\n")]


def test_a_flow_goes_on_without_a_server_that_dies_and_takes_it_back(
    bench: Bench, serving: Serving, tmp_path: Path
) -> None:
    """Last of the file: the server is gone at its end."""
    state, report = tmp_path / "state", tmp_path / "report.json"
    settings = {"sim_paced": True, "sim_speed": 1440.0, "sim_seconds": 0, "snapshot_rounds": 20}
    settings |= {"remote_faults_max": 3, "remote_rest_s": 0.5, "remote_timeout_s": 2.0}
    more = settings | asking(f"grpc://{serving.grpc}")
    run = Run(bench, state, more, arguments=("--json", str(report)))
    with running(*run.command(), cwd=bench.folder) as process:
        wait_for(lambda: answered(state) >= 5, "answers", process, LIMIT_S)
        serving.kill()
        wait_for(lambda: len(missed(state)) > 20, "missing votes", process, LIMIT_S)
        gone = answered(state)
        serving.start()
        wait_for(lambda: answered(state) > gone + 5, "answers again", process, LIMIT_S)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=LIMIT_S)
    serving.kill()
    assert process.returncode == 0, out
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["in"] == found["scored"] + found["duplicates"] and found["pending"] == 0
    assert set(found["missed_votes"]) <= set(FAR) and found["missed_votes"]["isolation_forest"] > 0
    told = found["asked_elsewhere"]
    assert told["unanswered_open"] > 0 and told["unanswered_connection"] >= 3
    assert "is left alone for 0.5 s after 3 faults in a row" in out and "answers again" in out
    assert "detector 'isolation_forest' has no vote on" in out
    why = {note["why"] for note in missed(state)}
    assert all(".isolation_forest at grpc://" in w or ".transformer at grpc://" in w for w in why)
    # The server is gone, and nothing asks for it: what it said then is what counts.
    done = call("certify", "--set", f"state_dir={state}", cwd=bench.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"bit-identical, {found['in']:,} events" in done.stdout
