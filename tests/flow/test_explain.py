"""`waxwing explain` from outside: what an alert was made of, as text, JSON and a page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dataflows.cli.explain import lines_of
from dataflows.cli.main import main
from dataflows.explain import explain
from dataflows.page import page_of
from features.catalog import catalog
from features.narrowed import Narrowed
from tests.flow.harness import Bench, Run, call
from tests.flow.test_json import undocumented

HOSTILE = "</td><script>alert(1)</script>\x1b[2J\"' onload=x"
"""What an event may hold: markup, quotes, an escape for terminals."""


@pytest.fixture(scope="module")
def ran(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of some hours, with a threshold that was changed on the way."""
    state = tmp_path_factory.mktemp("explained") / "state"
    state.mkdir()
    record = {"kind": "threshold", "anomaly_type": "log_anomaly", "detector": "ensemble"}
    line = json.dumps(record | {"value": 0.9999})
    (state / "control.jsonl").write_text(line + "\n", encoding="utf-8")
    more = {"sim_seconds": 3, "sim_speed": 7200.0, "round_rows_max": 1000, "snapshot_rounds": 5}
    run = Run(bench, state, more)
    run.to_end()
    return run


@pytest.fixture(scope="module")
def explained(bench: Bench, ran: Run) -> tuple[dict[str, Any], dict[str, Any], Path, str]:
    """An alert about a payment in the middle, its explanation, the page and what was said."""
    alerts = [a for a in ran.alerts() if a["event_type"] == "payment"]
    alert = alerts[2 * len(alerts) // 3]
    folder = ran.state_dir.parent
    done = call(
        "explain", alert["id"], "--set", f"state_dir={ran.state_dir}",
        "--json", str(folder / "out.json"), "--html", str(folder / "out.html"), cwd=bench.folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    return alert, found, folder / "out.html", done.stdout


def test_the_alert_comes_out_again_to_the_bit(
    explained: tuple[dict[str, Any], dict[str, Any], Path, str],
) -> None:
    alert, found, _, _ = explained
    assert found["same"] and found["alert"] == alert
    named = {"event": found["event"] | {"fields": {}}, "last_events": []}
    assert undocumented(found | named | {"versions": {}, "other_versions": {}}) == []
    votes = {v["detector"]: v for v in alert["votes"]}
    for detector in found["detectors"]:
        vote = votes[detector["name"]]
        assert (detector["score"], detector["vote"]) == (vote["score"], vote["vote"])
    shares = [d["share"] for d in found["detectors"]]
    assert sum(shares) == pytest.approx(1.0) and min(shares) >= 0.0
    assert found["vote"]["score"] == alert["score"] >= found["vote"]["threshold"]


def test_every_feature_stands_there_and_those_of_the_alert_first(
    explained: tuple[dict[str, Any], dict[str, Any], Path, str],
) -> None:
    alert, found, _, _ = explained
    features = {f["name"]: f for f in found["features"]}
    assert set(features) == set(catalog().names("payment"))
    oddness = [f["oddness"] for f in found["features"]]
    assert oddness == sorted(oddness, reverse=True)
    for reason in alert["reasons"]:
        told = features[reason["feature"]]
        assert (told["value"], told["baseline"]) == (reason["value"], reason["baseline"])
        assert told["text"] == reason["text"]


def test_the_event_its_past_and_the_control_records_are_those_of_then(
    explained: tuple[dict[str, Any], dict[str, Any], Path, str],
) -> None:
    alert, found, _, said = explained
    event, last = found["event"]["fields"], found["last_events"]
    assert (event["event_id"], event["time_us"]) == (alert["event_id"], alert["time_us"])
    assert last[-1]["event_id"] == alert["event_id"]
    assert all(row["card_id"] == alert["entity"] for row in last if row["event_type"] == "payment")
    assert [row["time_us"] for row in last] == sorted(row["time_us"] for row in last)
    assert [(r["kind"], r["value"]) for r in found["control"]] == [("threshold", 0.9999)]
    assert found["bundle"]["id"] == alert["bundle_id"]
    assert len(found["replayed"]["groups"]) <= 5 and found["replayed"]["rounds"] <= 20
    assert alert["summary"] in said and "the same, bit for bit" in said


def test_all_rows_of_the_groups_say_what_those_of_the_entities_say(
    bench: Bench,
    ran: Run,
    explained: tuple[dict[str, Any], dict[str, Any], Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alert, found, _, _ = explained
    passed: list[int] = []

    def nothing(narrowed: Narrowed, batches: Any, bounds: Any) -> tuple[Any, Any]:
        passed.append(sum(map(len, batches.values())))
        return {}, {}

    # Without the rows before it the alert does not come out, so that all of them are asked.
    monkeypatch.setattr(Narrowed, "cut", nothing)
    monkeypatch.chdir(bench.folder)
    whole = json.loads(json.dumps(explain(ran.state_dir, None, {}, alert["id"]), default=str))
    assert sum(passed) > 100
    whole["replayed"]["seconds"] = found["replayed"]["seconds"]
    assert whole == found


class _Reader(HTMLParser):
    """Names of the elements of a page, and of what they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_the_page_needs_nothing_and_nothing_of_an_event_is_markup(
    explained: tuple[dict[str, Any], dict[str, Any], Path, str],
) -> None:
    _, found, path, _ = explained
    plain = _Reader()
    plain.feed(path.read_text(encoding="utf-8"))
    assert "script" not in plain.elements and "link" not in plain.elements
    assert not plain.attributes & {"src", "href", "onload", "onerror", "onclick"}
    evil = json.loads(json.dumps(found))
    evil["alert"] |= {"summary": HOSTILE, "entity": HOSTILE, "event_id": HOSTILE}
    evil["event"]["fields"] |= {"merchant_id": HOSTILE, HOSTILE: "x"}
    evil["last_events"][0]["card_id"] = HOSTILE
    evil["features"][0]["text"] = evil["vote"]["action"] = HOSTILE
    evil["control"] = [{"why": HOSTILE}]
    page = page_of(evil)
    reader = _Reader()
    reader.feed(page)
    assert (reader.elements, reader.attributes) == (plain.elements, plain.attributes)
    assert not re.search(r"<script|<td[^>]*onload", page)
    assert not any("\x1b" in line for line in lines_of(evil))


def test_what_cannot_be_explained_is_said_in_a_sentence(
    ran: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = f"state_dir={ran.state_dir}"
    known = ran.alerts()[0]["id"]
    for given, told in (
        (["0" * 32, "--set", state], "is not in"),
        ([known, "--set", f"state_dir={tmp_path / 'none'}"], "does not exist"),
        ([known, "--set", state, "--html", str(tmp_path / "no" / "x.html")], "cannot be written"),
    ):
        assert main(["explain", *given]) == 2
        said = capsys.readouterr().err
        assert told in said and said.count("\n") == 1, said
