"""Labels held against alerts: what is counted, what is remembered, over restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflows import outcomes as module
from dataflows.alerts.base import Alert
from dataflows.cli.main import main
from dataflows.cli.run import _outcomes
from dataflows.outcomes import Outcomes
from dataflows.state.deltas import read_arrays, write_arrays
from features.events import event_code
from features.labels import Label, label_of
from tests.alerts import an_alert

HOUR_US = 3_600_000_000


def alert(event_id: str, time_us: int, kind: str = "payment_fraud") -> Alert:
    return an_alert(event_id=event_id, time_us=time_us, anomaly_type=kind)


def label(event_id: str, verdict: str, time_us: int = 0) -> Label:
    said = {"event_type": "payment", "event_id": event_id, "verdict": verdict}
    touched = {"event_time_us": time_us, "entities": {"card": "c1"}} if time_us else {}
    found = label_of(said | touched)
    assert found.code == event_code("payment")
    return found


def counts(found: Outcomes) -> dict[str, int]:
    report = found.report()
    return {n: report[n] for n in ("confirmed", "refuted", "missed", "passed", "unknown", "open")}


def test_labels_confirm_refute_and_find_what_was_missed(tmp_path: Path) -> None:
    found = Outcomes(tmp_path, 0)
    found.take([alert("a", 10), alert("b", 20), alert("c", 30)], [], 40, first_us=5)
    said = [label("a", "fraud", 10), label("b", "genuine"), label("d", "fraud", 12)]
    found.take([], [*said, label("e", "genuine", 13), label("f", "fraud", 4)], HOUR_US)
    wanted = {"confirmed": 1, "refuted": 1, "missed": 1, "passed": 1, "unknown": 1, "open": 1}
    assert counts(found) == wanted
    report = found.report()
    assert (report["precision"], report["recall"]) == (0.5, 0.5)
    assert report["delay_s"]["max"] == pytest.approx(3_600.0)
    assert report["anomaly_types"][0]["precision"] == 0.5
    found.take([], said, 2 * HOUR_US)
    assert counts(found) == wanted, "the same again counts once"
    found.take([], [label("a", "genuine", 10)], 2 * HOUR_US)
    assert counts(found) | {"confirmed": 1, "refuted": 1} == wanted
    assert (found.report()["confirmed"], found.report()["refuted"]) == (0, 2)


def test_labels_that_no_entity_hears_of_are_counted_over_restarts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "outcomes"
    found = Outcomes(folder, 0, since_us=1)
    said = [label("a", "fraud"), label("b", "fraud", 20), label("a", "fraud")]
    found.take([], [*said, label("c", "genuine")], 30)
    assert found.report()["without_entities"] == 2, "a repeat counts once"
    found.save(5)
    again = Outcomes(folder, 5)
    again.take([], [label("d", "fraud")], 40)
    again.save(6)
    assert main(["labels", "--set", f"state_dir={tmp_path}"]) == 0
    assert "3 labels name no entities: no risk feature knows" in capsys.readouterr().out


def test_an_alert_in_the_round_of_its_label_or_after_it_is_found(tmp_path: Path) -> None:
    found = Outcomes(tmp_path, 0, since_us=1)
    found.take([alert("a", 10)], [label("a", "fraud", 10), label("b", "fraud", 11)], 20)
    assert counts(found)["confirmed"] == counts(found)["missed"] == 1
    found.take([alert("b", 11)], [], 30)
    assert counts(found)["confirmed"] == 2 and counts(found)["missed"] == 0


def test_an_event_with_alerts_of_two_types_counts_once_and_for_both(tmp_path: Path) -> None:
    found = Outcomes(tmp_path, 0)
    found.take([alert("a", 10), alert("a", 10, "bot_login")], [], 40, first_us=5)
    found.take([alert("b", 20)], [label("a", "fraud", 10), label("b", "genuine", 20)], 50)
    found.take([alert("b", 20, "bot_login")], [], 60)
    assert (counts(found)["confirmed"], counts(found)["refuted"], counts(found)["open"]) == (
        1,
        1,
        0,
    )
    assert [(k["anomaly_type"], k["confirmed"], k["refuted"]) for k in types(found)] == [
        ("payment_fraud", 1, 1),
        ("bot_login", 1, 1),
    ]
    found.save(20)
    again = Outcomes(tmp_path, 20)
    again.take([], [label("a", "genuine", 10)], 70)
    assert counts(again)["confirmed"] == 0 and counts(again)["refuted"] == 2
    assert [(k["confirmed"], k["refuted"]) for k in types(again)] == [(0, 2), (0, 2)]


def types(found: Outcomes) -> list[dict[str, Any]]:
    return list(found.report()["anomaly_types"])


def test_a_verdict_on_an_alert_counts_once_however_many_others_came_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAID_MAX", 2)
    found = Outcomes(tmp_path, 0)
    found.take([alert("a", 10)], [label("a", "fraud", 10)], 40, first_us=5)
    found.take([], [label(name, "fraud", 11) for name in "bcd"], 50)
    found.take([], [label("a", "fraud", 10)], 60)
    assert (counts(found)["confirmed"], counts(found)["missed"]) == (1, 3)
    found.take([], [label("a", "genuine", 10)], 70)
    assert (counts(found)["confirmed"], counts(found)["refuted"]) == (0, 1), "a correction"


def test_a_file_of_before_is_taken_over(tmp_path: Path) -> None:
    found = Outcomes(tmp_path, 0)
    found.take([alert("a", 10), alert("b", 20)], [label("c", "fraud", 6)], 40, first_us=5)
    found.take([], [label("a", "fraud", 10)], 50)
    found.save(20)
    path = tmp_path / f"{20:012d}.outcomes"
    arrays, meta = read_arrays(path)
    alerts, verdicts = arrays.pop("alerts"), arrays.pop("verdicts")
    assert alerts[:, 2].tolist() == [1, 1] and verdicts[0, 3] == 0
    alerts[:, 2], alerts[:, 3], verdicts[0, 3] = 0, [1, 0], -1  # a number, not a bit; judged
    said = np.concatenate([[[alerts[0, 0], 1, 0, 0]], verdicts])
    write_arrays(path, arrays | {"alerted": alerts, "said": said}, meta)
    again = Outcomes(tmp_path, 20)
    assert again.report() == found.report()
    for one in (found, again):
        one.take([], [label("a", "genuine", 10), label("b", "fraud", 20)], 60)
    assert again.report() == found.report()


def test_what_was_counted_is_known_after_a_restart_as_of_the_manifest(tmp_path: Path) -> None:
    found = Outcomes(tmp_path, 0)
    found.take([alert("a", 10), alert("b", 20, "bot_login")], [], 40, first_us=5)
    found.save(20)
    found.take([], [label("a", "fraud", 10)], HOUR_US)
    found.save(40)
    before = found.report()
    found.take([], [label("b", "genuine", 20)], HOUR_US)
    found.save(60)
    assert counts(Outcomes(tmp_path, None))["refuted"] == 1, "who only reads removes nothing"
    again = Outcomes(tmp_path, 40)
    assert again.report() == before
    again.take([], [label("b", "genuine", 20), label("c", "fraud", 30)], HOUR_US)
    again.save(60)
    assert counts(again)["refuted"] == counts(again)["missed"] == 1
    again.forget_before(50)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{r:012d}.outcomes" for r in (40, 60)]
    (tmp_path / f"{60:012d}.outcomes").write_bytes(b"damaged")
    assert Outcomes(tmp_path, 60).report() == before, "an older one serves"


def test_what_is_older_than_is_remembered_is_not_taken_for_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ALERTED_MAX", 2)
    found = Outcomes(tmp_path, 0)
    found.take([alert(name, 10 * i) for i, name in enumerate("abc", 1)], [], 40, first_us=5)
    found.take([], [label("a", "fraud", 10), label("c", "fraud", 30)], 50)
    assert counts(found)["unknown"] == counts(found)["confirmed"] == 1


def test_what_warm_state_says_is_known_after_the_first_restart(tmp_path: Path) -> None:
    found = Outcomes(tmp_path, 0, since_us=50)
    found.take([], [], 60, first_us=55)
    found.save(20)
    again = Outcomes(tmp_path, 20)
    again.save(40)
    assert [p.name for p in tmp_path.iterdir()] == [f"{20:012d}.outcomes"], "nothing was new"
    again.take([], [label("a", "fraud", 52), label("b", "fraud", 40)], 90, first_us=80)
    assert counts(again)["missed"] == counts(again)["unknown"] == 1


def test_open_alerts_are_those_remembered_that_nobody_has_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ALERTED_MAX", 3)
    found = Outcomes(tmp_path, 0)
    found.take([alert(name, i) for i, name in enumerate("abc", 1)], [], 40, first_us=0)
    said = [label("a", "fraud"), label("b", "genuine"), label("b", "fraud")]
    found.take([], said, 50)
    assert counts(found)["open"] == 1
    found.take([alert(name, 60) for name in "defg"], [], 70)
    assert counts(found)["open"] == 3, "of e, f and g; those judged are forgotten"
    found.take([], [label("f", "genuine")], 80)
    found.save(20)
    again = Outcomes(tmp_path, 20)
    for one in (found, again):
        one.take([alert("h", 90)], [], 95)
        assert counts(one)["open"] == 2


def test_a_recall_is_a_bound_while_labels_speak_of_events_nobody_may_have_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Outcomes(tmp_path / "outcomes", 0)
    found.take([alert("a", 10)], [label("a", "fraud", 10)], 40, first_us=5)

    def told() -> str:
        found.save(20)
        assert main(["labels", "--set", f"state_dir={tmp_path}"]) == 0
        return capsys.readouterr().out

    assert "recall 100.0%" in told()
    found.take([], [label("b", "fraud")], 50)
    assert "recall at most 100.0%" in told()
    assert "recall at most 100.0%" in _outcomes(found.report())
