"""The detect flow from outside: started, killed, stopped, started again, and what came out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from dataflows.settings import load
from dataflows.sources.simulator import make_simulator, time_us_of
from dataflows.state.journal import read_cuts
from dataflows.state.manifest import read_manifest
from features.simulate import SILENCES
from models.voting import Voting
from tests.flow.harness import (
    TIMEOUT_S,
    WORLD,
    Bench,
    Run,
    alerts_of,
    call,
    counts_of,
    running,
    simulated_counts,
    wait_for,
    without_clock,
)

DAY = {"sim_seconds": 6, "sim_speed": 7200.0}
"""Half a day of event time; 86,400 events."""


@pytest.fixture(scope="module")
def counts(bench: Bench) -> dict[str, int]:
    """What a run over the day has to say of its events; counted from the simulator alone."""
    found = simulated_counts(bench.settings | DAY)
    assert found["in"] > 80_000 and found["duplicates"] > 100
    return found


@pytest.fixture(scope="module")
def whole(bench: Bench, counts: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An undisturbed run of the day."""
    run = Run(bench, tmp_path_factory.mktemp("whole") / "state", DAY)
    report = run.to_end()
    assert counts_of(report) == counts
    return run


def test_every_type_has_alerts_and_each_keeps_the_rule_of_the_vote(
    bench: Bench, whole: Run
) -> None:
    rules = Voting.load(bench.folder / "bundle" / "voting.toml").anomaly_types
    alerts = whole.alerts()
    types = {"payment", "login", "metric", "app_log", "absence"}
    assert {a["event_type"] for a in alerts} == types
    assert len({a["id"] for a in alerts}) == len(alerts), "an alert id names one alert"
    assert sum(bool(a["reasons"]) for a in alerts) > 0.99 * len(alerts)
    for alert in alerts:
        assert alert["reasons"] or alert["summary"].endswith(": unusual combination")
        # Two days have too few absences to learn from: one detector judges them.
        assert len(alert["votes"]) == (1 if alert["event_type"] == "absence" else 5)
        rule, votes = rules[alert["anomaly_type"]], alert["votes"]
        assert alert["score"] >= rule.ensemble
        for vote in votes:
            reached = vote["score"] is not None and vote["score"] >= vote["threshold"]
            assert vote["vote"] == reached
        assert sum(vote["vote"] for vote in votes) >= max(rule.votes_needed, 1)


def test_who_falls_silent_is_noticed_and_is_no_event(
    bench: Bench, whole: Run, counts: dict[str, int], tmp_path: Path
) -> None:
    run = Run(bench, tmp_path / "state", DAY)
    report = run.to_end()
    assert counts_of(report) == counts
    told = [a for a in run.alerts() if a["anomaly_type"] == "silence"]
    assert len(told) == report["silence"]["alerts"] > 0
    for alert in told:
        key, due_us = alert["event_id"].split("-")[-2:]
        assert alert["event_id"] == f"absence-{alert['entity_type']}-{key}-{alert['time_us']}"
        assert due_us == str(alert["time_us"]) and alert["summary"].startswith("silence: ")
        assert (
            "silent for" in alert["reasons"][0]["text"]
            and alert["votes"][0]["detector"] == "overdue"
        )
    whole_ids = {a["id"] for a in whole.alerts() if a["anomaly_type"] == "silence"}
    assert {a["id"] for a in told} == whole_ids, "a function of the events"
    silence = report["silence"]
    assert report["absences"] == silence["absences"] > silence["genuine"] > 0
    assert set(silence["by_attack"]) == set(SILENCES)
    for attack, found in silence["by_attack"].items():
        assert found["entity_noticed"] > 0.8 and found["recall"] > 0.8, attack
    assert silence["false_alarms_a_day"] <= 2.0


def test_other_cuts_groups_and_snapshots_give_the_same_alerts(
    bench: Bench, whole: Run, counts: dict[str, int], tmp_path: Path
) -> None:
    other = Run(bench, tmp_path / "state", DAY | {"round_rows_max": 777, "snapshot_rounds": 7})
    assert counts_of(other.to_end()) == counts
    assert without_clock(other.alerts()) == without_clock(whole.alerts())


def test_kill_9_changes_nothing(
    bench: Bench, whole: Run, counts: dict[str, int], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    run = Run(bench, state, DAY | {"round_rows_max": 2000, "snapshot_rounds": 5})

    def late_enough() -> bool:
        manifest = _manifest_round(state)
        return manifest >= 5 and _journal_round(state) > manifest + 2

    assert run.until(late_enough, hold=38) == -signal.SIGKILL
    resumed_at = _manifest_round(state)
    assert 0 < resumed_at < 43, "killed in the middle"
    report = run.to_end()
    assert counts_of(report) == counts
    assert without_clock(run.alerts()) == without_clock(whole.alerts())


def test_resumed_state_equals_the_replay_of_the_same_journal(bench: Bench, tmp_path: Path) -> None:
    killed = Run(bench, tmp_path / "killed", DAY | {"round_rows_max": 2000, "snapshot_rounds": 5})
    killed.until(lambda: _manifest_round(tmp_path / "killed") >= 10, hold=36)
    killed.to_end()
    replayed = tmp_path / "replayed"
    shutil.copytree(tmp_path / "killed" / "journal", replayed / "journal")
    again = Run(bench, replayed, killed.more)
    again.to_end()
    assert again.alerts() == killed.alerts(), "the same rounds, clocks and alerts, line by line"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_the_next_start_goes_on(
    bench: Bench, whole: Run, counts: dict[str, int], tmp_path: Path, how: int
) -> None:
    state = tmp_path / "state"
    run = Run(bench, state, DAY | {"round_rows_max": 2000, "snapshot_rounds": 1000})
    status = run.until(lambda: _journal_round(state) >= 12, how, hold=36)
    assert status == 0
    assert _manifest_round(state) == _journal_round(state), "nothing is left to replay"
    assert counts_of(run.to_end()) == counts
    assert without_clock(run.alerts()) == without_clock(whole.alerts())


@pytest.mark.parametrize("interval", [(), ("-s", "0")])
def test_bytewax_runs_the_flow_of_a_settings_file(
    bench: Bench, whole: Run, tmp_path: Path, interval: tuple[str, ...]
) -> None:
    table = bench.settings | {k: str(v) for k, v in DAY.items()}
    table["state_dir"] = str(tmp_path / "s")
    plain = {"sim_cards", "sim_events_per_s", "sim_anomaly_share", "sim_paced", *DAY}
    lines = [f"{k} = {v if k in plain else json.dumps(v)}" for k, v in table.items()]
    lines = [line.replace('"jsonl"', '["jsonl"]') for line in lines]
    (tmp_path / "waxwing.toml").write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "bytewax.run", *interval, "dataflows.detect:build('waxwing.toml')"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("WAXWING_")}
        | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert without_clock(alerts_of(tmp_path / "s")) == without_clock(whole.alerts())


def test_history_and_live_flow_equal_one_run_without_the_break(
    bench: Bench, tmp_path: Path
) -> None:
    world = bench.sets(sim_start="2026-03-05T00:00:00Z")
    for name, hours in (("whole", "12"), ("past", "6")):
        out = str(tmp_path / name)
        done = call("simulate", "--out", out, "--hours", hours, *world, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    # A cold flow alerts at much that is new: rounds that no flood of alerts can overflow.
    cold = {k: v for k, v in bench.settings.items() if k != "warm_state"}
    cold["round_rows_max"] = "1500"
    one = Run(Bench(bench.folder, cold), tmp_path / "one", {}, ("--data", str(tmp_path / "whole")))
    one.to_end()
    done = call(
        "backfill", "--data", str(tmp_path / "past"), "--until", "2026-03-05T06:00:00Z",
        "--out", str(tmp_path / "warm"), *Bench(bench.folder, cold).sets(), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = Run(
        Bench(bench.folder, cold | {"warm_state": str(tmp_path / "warm")}),
        tmp_path / "two",
        {},
        ("--data", str(tmp_path / "whole")),
    )
    two.to_end()
    border_us = 1_772_690_400_000_000
    after = [a for a in one.alerts() if a["time_us"] >= border_us]
    assert len(after) > 10
    assert without_clock(two.alerts()) == without_clock(after)


def test_rows_of_the_last_moment_of_history_are_left_out_and_named(
    bench: Bench, tmp_path: Path
) -> None:
    """A later file that begins in the very microsecond in which history ends."""
    world = make_simulator(load(None, {}, **WORLD))
    start_us = time_us_of(WORLD["sim_start"])
    rows = world.span(start_us, start_us + 300_000_000)["payment"].frame.sort("time_us")
    rows = rows.unique("event_id", keep="first", maintain_order=True)
    border_us = rows["time_us"][99]
    past, later = rows[:100], rows[100:]
    at_once = rows[:3].with_columns(time_us=border_us, event_id=pl.lit("e-") + pl.col("event_id"))
    later = pl.concat([at_once, later.filter(pl.col("time_us") > border_us)])
    for name, frame in (("past", past), ("later", later)):
        frame.write_parquet(tmp_path / f"{name}.parquet")
    warm = ("--out", str(tmp_path / "warm"), *bench.sets())
    done = call("backfill", "--data", "payment=past.parquet", *warm, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sets = bench.sets(state_dir=tmp_path / "state", warm_state=tmp_path / "warm")
    done = call("run", "--data", "payment=later.parquet", *sets, "--json", "out.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert report["in_history"] == {"payment": 3} and report["in"] == len(later) - 3
    last = f"{datetime.fromtimestamp(border_us / 1e6, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    assert f"3 payment rows are not later than {last}" in done.stderr
    again = call(
        "run", "--data", "payment=later.parquet", *sets, "--json", "out.json", cwd=tmp_path
    )
    assert again.returncode == 0 and "not later than" not in again.stderr, "once"


def test_control_records_are_in_force_from_their_round_on_and_replayed(
    bench: Bench, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    # For as long as it is wanted: nobody knows how long a command takes to start.
    run = Run(bench, state, DAY | {"sim_paced": "true", "sim_seconds": 0, "sim_speed": 3600.0})
    with running("run", *run.options(), cwd=bench.folder) as process:
        wait_for(lambda: len(alerts_of(state)) >= 5, "five alerts", process)
        stage = ("control", *bench.sets(state_dir=state), "stage")
        done = call(*stage, "zscore", "off", cwd=bench.folder)
        assert done.returncode == 0, done.stderr
        rest = ("iqr", "isolation_forest", "gradient_boosting", "transformer", "overdue")
        with (state / "control.jsonl").open("a", encoding="utf-8") as file:
            for name in rest:
                record = {"kind": "stage", "detector": name, "stage": "off"}
                file.write(json.dumps(record) + "\n")

        def heard() -> list[int]:
            cuts = read_cuts(state / "journal" / "lane-00")
            return [cut.round for cut in cuts for _ in cut.control]

        wait_for(lambda: len(heard()) == 1 + len(rest), "the records", process)
        # Five seconds and hours of events in which there were some alerts a second.
        quiet = lambda: _journal_round(state) >= heard()[-1] + 50  # noqa: E731
        wait_for(quiet, "rounds after them", process)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, out
    manifest = read_manifest(state)
    assert manifest is not None
    assert [r["kind"] for r in manifest.control].count("stage") == 1 + len(rest)
    last = max(a["round"] for a in alerts_of(state))
    assert last <= heard()[-1], "no detector, no alert"
    again = tmp_path / "again"
    shutil.copytree(state / "journal", again / "journal")
    # To the end of the journal, which is behind that of its simulated time.
    bound = {"control_file": tmp_path / "none.jsonl", "sim_seconds": 1}
    Run(bench, again, run.more | bound).to_end()
    assert alerts_of(again) == alerts_of(state), "a replay knows the records from the journal"


def _manifest_round(state: Path) -> int:
    """Round of the manifest, 0 before the first."""
    found = read_manifest(state) if state.exists() else None
    return 0 if found is None else found.round


def _journal_round(state: Path) -> int:
    """Newest round of the journal, 0 before the first."""
    folder = state / "journal" / "lane-00"
    return max((cut.round for cut in read_cuts(folder)), default=0) if folder.exists() else 0
