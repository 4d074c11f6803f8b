"""What a run tells of itself: latency is that of events that were sent."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from dataflows import supervisor
from dataflows.control.records import Control
from dataflows.observe.telemetry import Telemetry
from dataflows.score import RoundOut
from dataflows.supervisor import merged
from tests.alerts import an_alert


def test_latency_is_that_of_events_that_were_sent_not_of_absences() -> None:
    telemetry = Telemetry()
    acked_ns = 10**18
    sent = an_alert(1, latency_due_ns=acked_ns - 50_000_000)
    absent = an_alert(2, event_type="absence", latency_due_ns=5)
    due_ns = np.array([acked_ns - 50_000_000])
    out = RoundOut(
        0, 1, 0, 1, 0, (), {"payment": 1}, (sent, absent), 0, 0, due_ns, (), Control(), False, False
    )
    telemetry.round(1, [out], [sent, absent], acked_ns, {"in": 1, "scored": 1, "alerts": 2})
    assert len(telemetry.alert_latency) == 1
    assert 40.0 < telemetry.alert_latency.summary()["p999"] < 70.0
    assert len(telemetry.alerts) == 2


def test_what_each_process_counts_of_its_own_lanes_is_added() -> None:
    reports = []
    for rounds, missed, unpriced in ((0, {"zscore": 2, "iqr": 1}, {"XAU": 3}), (9, {"iqr": 4}, {})):
        telemetry = Telemetry()
        telemetry.missed_votes, telemetry.unpriced = missed, unpriced
        reports.append(telemetry.report() | {"rounds": rounds})
    found = merged(reports)
    assert found["rounds"] == 9
    assert found["missed_votes"] == {"zscore": 2, "iqr": 5}
    assert found["currencies"] == {"unpriced": {"XAU": 3}, "old_rate": {}}


def test_what_an_event_holds_is_no_command_to_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "\x1b]0;mine\x07 one\n\x1b[31mtwo\x1b[0m\u202e"
    Telemetry().say(said)
    shown = "\\x1b]0;mine\\x07 one\n\\x1b[31mtwo\\x1b[0m\\u202e\n"
    assert capsys.readouterr().err == f"waxwing: {shown}", "its lines stay"
    supervisor._print(said)
    assert capsys.readouterr().err == shown
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    supervisor._print(said)
    assert capsys.readouterr().err == "\\x1b]0;mine\\x07 one\n\x1b[31mtwo\x1b[0m\\u202e\n"
