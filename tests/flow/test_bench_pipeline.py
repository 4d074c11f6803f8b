"""The yardstick from outside: trains for its rate, holds a small one, says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.flow.harness import call


def test_a_small_rate_is_held_and_every_figure_is_there(tmp_path: Path) -> None:
    command = ("bench", "pipeline", "--rate", "400", "--seconds", "4", "--history", "120000")
    done = call(*command, "--json", "out.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert report["rate"] == 400.0 and report["held"] is True
    assert 1_600 <= report["in"] <= 2_400 and report["pending"] == 0
    assert set(report["latency_ms"]) == set(report["event_latency_ms"]) == {"p50", "p99", "p999"}
    assert 0 < report["event_latency_ms"]["p50"] <= report["event_latency_ms"]["p999"]
    assert report["cpu_s"] > 0 and report["cpu_redis_s"] > 0 and report["rss_mb_max"] > 100
    stages = {"source", "journal", "admit", "features", "assemble", "score", "deliver"}
    assert set(report["us_per_event"]) == stages | {"store_put", "store_split"}
    assert min(report["us_per_event"].values()) > 0
    assert "400 events/s held" in done.stdout


@pytest.mark.parametrize("rate", ["nan", "0", "-5", "inf"])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate: str) -> None:
    done = call("bench", "pipeline", "--rate", rate, cwd=tmp_path)
    assert done.returncode == 2 and "must be above 0" in done.stderr
    assert "Traceback" not in done.stderr
