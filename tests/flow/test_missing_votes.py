"""A detector that raises, or never answers: the others vote on, and the alert says who did not."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from tests.flow.harness import Bench, Run, counts_of

DAY = {"sim_seconds": 6, "sim_speed": 7200.0, "round_rows_max": 2000, "snapshot_rounds": 3}
"""Forty-three rounds."""

RAISES = "detector_raises=60"
HANGS = "detector_hangs=40"

PATIENCE_S = 3.0
"""Chosen: once in the run it is waited for so long; sound detectors answer in far less, however
busy the machine."""


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Alerts by id of the same day with every detector sound."""
    run = Run(bench, tmp_path_factory.mktemp("sound") / "state", DAY)
    run.to_end()
    return {alert["id"]: alert for alert in run.alerts()}


def missing(alerts: list[dict[str, Any]]) -> dict[str, str]:
    """Id of each alert without the vote of zscore -> why."""
    votes = {a["id"]: {v["detector"]: v for v in a["votes"]} for a in alerts}
    others = [v for by in votes.values() for name, v in by.items() if name != "zscore"]
    assert not any("missing" in v for v in others)
    asked = {i: by["zscore"] for i, by in votes.items() if "zscore" in by}  # not of an absence
    return {i: vote["missing"] for i, vote in asked.items() if "missing" in vote}


def replayed(bench: Bench, state: Path, again: Path) -> list[dict[str, Any]]:
    """Alerts of a replay of a run's journal by a process in which nothing is broken."""
    copytree(state / "journal", again / "journal")
    run = Run(bench, again, DAY)
    run.to_end()
    return run.alerts()


def test_rows_on_which_a_detector_raises_are_judged_by_the_others(
    bench: Bench, whole: dict[str, Any], tmp_path: Path
) -> None:
    run = Run(bench, tmp_path / "state", DAY, broken=RAISES)
    report = run.to_end()
    alerts = run.alerts()
    without = missing(alerts)
    assert len(without) > 5 and len(without) < len(alerts) / 5
    assert set(without.values()) == {"ArithmeticError: a row that it cannot bear"}
    for alert in alerts:
        if alert["id"] in without:
            assert "without the vote of zscore" in alert["summary"]
            assert sum(vote["vote"] for vote in alert["votes"]) > 0
        else:
            assert alert == whole[alert["id"]], "the others are as if nothing had happened"
    assert report["missed_votes"]["zscore"] > len(without)
    assert report["pending"] == 0 and report["dead_lettered"] == 0
    assert replayed(bench, tmp_path / "state", tmp_path / "again") == alerts, "noted, not tried"


def test_a_detector_that_never_answers_is_left_out_and_its_silence_is_replayed(
    bench: Bench, whole: dict[str, Any], tmp_path: Path
) -> None:
    more = DAY | {"detector_timeout_s": PATIENCE_S}
    run = Run(bench, tmp_path / "state", more, broken=HANGS)
    report = run.to_end()
    alerts = run.alerts()
    without = missing(alerts)
    assert len(alerts) > len(whole) / 2, "the others vote on"
    assert counts_of(report)["in"] == report["scored"] + report["duplicates"]
    notes = (tmp_path / "state/journal/lane-00/missed.log").read_text().splitlines()
    said = [json.loads(line[9:]) for line in notes]
    assert {note["detector"] for note in said} == {"zscore"}
    assert said[0]["why"] == f"no answer within {PATIENCE_S:g} s"
    assert {note["why"] for note in said[1:]} == {f"no answer since round {said[0]['round']}"}
    assert set(without.values()) <= {note["why"] for note in said}
    assert len({note["event_type"] for note in said}) == 1, "other event types have it still"
    assert replayed(bench, tmp_path / "state", tmp_path / "again") == alerts


def test_a_restart_does_without_the_votes_that_were_missing_before_the_kill(
    bench: Bench, tmp_path: Path
) -> None:
    broken = Run(bench, tmp_path / "state", DAY, broken=RAISES)
    notes = tmp_path / "state/journal/lane-00/missed.log"
    broken.until(lambda: notes.exists() and len(notes.read_bytes()) > 1000, hold=36)
    again = tmp_path / "again"
    copytree(tmp_path / "state", again)
    Run(bench, again, DAY).to_end()
    whole = notes.read_text().rpartition("\n")[0]  # a kill may leave half of the last line
    noted = {json.loads(line[9:])["round"] for line in whole.splitlines()}
    alerts = Run(bench, again, DAY).alerts()
    assert missing(alerts), "although its detector is sound now"
    assert {a["round"] for a in alerts if a["id"] in missing(alerts)} <= noted
