"""One event makes a step raise: it alone is a dead letter, all else is as if it had not come."""

from __future__ import annotations

import base64
import json
import signal
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from tests.flow.harness import Bench, Run, call, counts_of

DAY = {"sim_seconds": 6, "sim_speed": 7200.0, "round_rows_max": 2000, "snapshot_rounds": 4}
"""Forty-three rounds."""


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, int]]:
    """The day with nothing broken, and where its events went."""
    run = Run(bench, tmp_path_factory.mktemp("sound") / "state", DAY)
    return run, counts_of(run.to_end())


def victim(run: Run) -> dict[str, Any]:
    """A payment in the middle of the day that is in an alert."""
    alerts = [alert for alert in run.alerts() if alert["event_type"] == "payment"]
    return next(alert for alert in alerts if alert["round"] % 4 == 3 and alert["round"] > 20)


def letters(state: Path) -> list[dict[str, Any]]:
    """The dead letters."""
    text = (state / "dead_letters.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def is_dead(letter: dict[str, Any], event: dict[str, Any], step: str) -> None:
    """That a letter holds the event, whole, with what the step raised and where."""
    assert letter["reason"] == "poison" and letter["event_type"] == "payment"
    assert json.loads(base64.b64decode(letter["raw"]))["event_id"] == event["event_id"]
    assert letter["round"] == event["round"]
    assert letter["detail"].startswith(f"step '{step}' raised ")
    assert "nobody thought of" in letter["detail"] and "Traceback" in letter["detail"]


def without_one(counts: dict[str, int]) -> dict[str, int]:
    """Counts with one event among the dead letters in place of the scored."""
    return counts | {"scored": counts["scored"] - 1, "dead_lettered": counts["dead_lettered"] + 1}


def test_an_event_that_no_alert_can_be_made_of_is_a_dead_letter(
    bench: Bench, whole: tuple[Run, dict[str, int]], tmp_path: Path
) -> None:
    sound, counts = whole
    event = victim(sound)
    run = Run(bench, tmp_path / "state", DAY, broken=f"alert_raises={event['event_id']}")
    assert counts_of(run.to_end()) == without_one(counts)
    (letter,) = letters(run.state_dir)
    is_dead(letter, event, "score")
    assert run.alerts() == [a for a in sound.alerts() if a["event_id"] != event["event_id"]]


def test_events_that_no_votes_can_be_cast_on_are_dead_letters_in_a_replay_too(
    bench: Bench, whole: tuple[Run, dict[str, int]], tmp_path: Path
) -> None:
    broken = "decide_raises=4001"
    run = Run(bench, tmp_path / "state", DAY, broken=broken)
    counts, (_, sound) = counts_of(run.to_end()), whole
    dead = len(letters(run.state_dir))
    assert dead > 1 and counts["dead_lettered"] == sound["dead_lettered"] + dead
    done = call(broken, "certify", "--set", f"state_dir={run.state_dir}", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-identical" in done.stdout


def left_out(run: Run, report: dict[str, Any], sound: Run, counts: dict[str, int]) -> None:
    """That a run lacks one event and nothing else."""
    event = victim(sound)
    assert counts_of(report) == without_one(counts)
    alerts = run.alerts()
    before = [a for a in sound.alerts() if a["round"] < event["round"]]
    assert alerts[: len(before)] == before, "all before it as if nothing had happened"
    assert event["event_id"] not in {a["event_id"] for a in alerts}
    assert len(alerts) > len(before) + 10, "and the flow went on"


def test_an_event_that_spoils_the_door_is_found_and_left_out(
    bench: Bench, whole: tuple[Run, dict[str, int]], tmp_path: Path
) -> None:
    sound, counts = whole
    event = victim(sound)
    run = Run(bench, tmp_path / "state", DAY, broken=f"admit_raises={event['event_id']}")
    left_out(run, run.to_end(), sound, counts)
    (letter,) = letters(run.state_dir)
    is_dead(letter, event, "admit")


def test_an_event_that_spoils_a_groups_state_is_left_out_for_good_also_over_a_kill(
    bench: Bench, whole: tuple[Run, dict[str, int]], tmp_path: Path
) -> None:
    sound, counts = whole
    event = victim(sound)
    what = f"group_raises={event['entity']}@{event['time_us']}"
    run = Run(bench, tmp_path / "state", DAY, broken=what)
    note = run.state_dir / "journal" / "lane-00" / "poison.log"
    assert run.until(note.exists, hold=event["round"]) == -signal.SIGKILL
    report = run.to_end()
    left_out(run, report, sound, counts)
    (letter,) = letters(run.state_dir)
    is_dead(letter, event, "groups")
    again = Run(bench, tmp_path / "again", DAY)
    copytree(run.state_dir / "journal", again.state_dir / "journal")
    assert counts_of(again.to_end()) == counts_of(report)
    assert again.alerts() == run.alerts(), "a replay leaves it out too, where nothing is broken"
    assert letters(again.state_dir) == [letter]
    certified(run)


def certified(run: Run) -> None:
    """That a replay computes the same."""
    done = call("certify", "--set", f"state_dir={run.state_dir}", cwd=run.state_dir.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-identical" in done.stdout


def test_several_processes_find_the_event_at_their_next_start(
    bench: Bench, whole: tuple[Run, dict[str, int]], tmp_path: Path
) -> None:
    sound, counts = whole
    event = victim(sound)
    broken = f"group_raises={event['entity']}@{event['time_us']}"
    run = Run(bench, tmp_path / "state", DAY, ("--workers", "2"), broken)
    done = call(*run.command(), "--json", str(tmp_path / "report.json"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ended = "ended with status 2; its last words: step 'groups' raised KeyError: "
    found = f"waxwing: step 'groups' raised KeyError on 1 payment of round {event['round']}: now"
    assert done.stderr.count(ended) == 1 and done.stderr.count(found) == 1, done.stderr
    assert "panicked" not in done.stderr and not (run.state_dir / "suspect.json").exists()
    left_out(run, json.loads((tmp_path / "report.json").read_text()), sound, counts)
    (letter,) = letters(run.state_dir)
    is_dead(letter, event, "groups")
    certified(run)
