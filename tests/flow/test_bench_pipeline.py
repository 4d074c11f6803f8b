"""The yardstick from outside: trains for its rate, holds a small one, says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataflows.bench.pipeline import LAG_MS_HELD
from dataflows.state.journal import read_cuts
from tests.flow.harness import call
from tests.flow.test_json import undocumented


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the benches lie, so that they train once."""
    return tmp_path_factory.mktemp("benches")


def test_a_small_rate_is_held_and_every_figure_is_there(folder: Path) -> None:
    command = ("bench", "pipeline", "--rate", "400", "--seconds", "4", "--history", "120000")
    done = call(*command, "--json", "out.json", cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    # Whether it is held is up to what else runs here; what it says of it has to be so.
    held = report["in"] >= 0.98 * 1_600 and report["lag_ms_last"] <= LAG_MS_HELD
    assert report["rate"] == 400.0 and report["held"] is held
    assert 1_600 <= report["in"] <= 2_400 and report["pending"] == 0
    assert set(report["latency_ms"]) == set(report["event_latency_ms"]) == {"p50", "p99", "p999"}
    assert 0 < report["event_latency_ms"]["p50"] <= report["event_latency_ms"]["p999"]
    assert report["cpu_s"] > 0 and report["cpu_redis_s"] > 0 and report["rss_mb_max"] > 100
    stages = {"source", "journal", "admit", "features", "assemble", "digest", "score", "deliver"}
    assert set(report["us_per_event"]) == stages | {"rows", "store_put", "store_split"}
    assert min(report["us_per_event"].values()) > 0
    assert f"400 events/s {'held' if held else 'NOT held'}" in done.stdout


@pytest.mark.parametrize("rate", ["nan", "0", "-5", "inf"])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate: str) -> None:
    done = call("bench", "pipeline", "--rate", rate, cwd=tmp_path)
    assert done.returncode == 2 and "must be above 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_flow_is_live_again_with_all_that_was_due(folder: Path) -> None:
    command = ("bench", "recovery", "--rate", "400", "--history", "120000", "--kills", "1")
    done = call(*command, "--seconds", "2", "--json", "again.json", cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((folder / "again.json").read_text(encoding="utf-8"))
    assert report["rate"] == 400.0 and report["entities"] > 1_000
    (again,) = report["restarts"]
    assert 0 < again["start_s"] <= again["replay_s"] <= again["seconds_to_live"]
    assert report["seconds_to_live"]["max"] == again["seconds_to_live"]
    parts = ("imports_cpu_s", "kernels_cpu_s", "state_cpu_s")
    assert min(again[name] for name in parts) > 0
    assert sum(again[name] for name in parts) <= again["start_cpu_s"]
    assert again["replay_cpu_s"] > 0 and again["catch_up_cpu_s"] >= 0
    assert report["held"] == (again["seconds_to_live"] <= 30.0)
    cuts = list(read_cuts(folder / ".waxwing/bench/400-1600/state/journal/lane-00"))
    begun, ended = cuts[0].positions["anchor"], cuts[-1].positions["anchor"]
    assert begun == ended, "one clock, also over the time it was away"
    assert undocumented(report) == []


def test_a_number_of_kills_that_is_none_is_refused(tmp_path: Path) -> None:
    done = call("bench", "recovery", "--kills", "0", cwd=tmp_path)
    assert done.returncode == 2 and "--kills 0: expected 1 or more" in done.stderr


def test_a_bundle_is_tried_promoted_and_rolled_back_at_a_rate_and_no_event_is_lost(
    folder: Path,
) -> None:
    command = ("bench", "promote", "--rate", "400", "--seconds", "8", "--history", "120000")
    done = call(*command, "--json", "promote.json", cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((folder / "promote.json").read_text(encoding="utf-8"))
    assert report["rate"] == 400.0 and 3_000 <= report["in"] <= 4_000
    assert report["in"] == report["scored"] + report["duplicates"]
    assert report["pending"] == report["dead_lettered"] == 0 < report["alerts"]
    changes = report["changes"]
    assert [change["change"] for change in changes] == ["shadow", "live", "rollback"]
    late = [change["seconds"] is None for change in changes]
    assert late == sorted(late), "one after the other, as they were asked for"
    assert (report["jump_ms_max"] is None) == any(c["jump_ms"] is None for c in changes)
    assert f"{report['in']:,} events in, {report['scored']:,} scored, 0 pending" in done.stdout
    assert undocumented(report) == []

    bench = folder / ".waxwing/bench/400-1600"
    lines = (bench / "state/control.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line) for line in lines]
    ids = {n: json.loads((bench / n / "bundle.json").read_text())["id"]
           for n in ("bundle", "candidate")}  # fmt: skip
    assert ids["bundle"] != ids["candidate"]
    named = [(r["kind"], r.get("bundle"), r.get("stage")) for r in asked]
    assert named == [("bundle", ids["candidate"], "shadow"), ("bundle", ids["candidate"], "live"),
                     ("rollback", None, None)]  # fmt: skip
    cuts = list(read_cuts(bench / "state/journal/lane-00"))
    heard = [r["kind"] for cut in cuts for r in cut.control]
    assert heard == ["bundle", "bundle", "rollback"][: len(heard)], "each once, in its order"
    assert len(heard) >= late.count(False) and not any(cut.faults for cut in cuts)


def test_a_run_is_replayed_and_its_alerts_explained(folder: Path) -> None:
    command = ("bench", "replay", "--rate", "400", "--seconds", "3", "--history", "120000")
    done = call(*command, "--alerts", "2", "--json", "replay.json", cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((folder / "replay.json").read_text(encoding="utf-8"))
    assert report["rate"] == 400.0 and report["identical"] is True
    assert report["events"] > 1_000 and report["ratio"]["live"] > 0
    told = report["explain"]
    assert told["alerts"] == 2 and told["same"] is True and told["rounds_max"] > 0
    assert 0 < told["seconds_p50"] <= told["seconds_p95"] <= told["seconds_max"]
    assert undocumented(report) == []
