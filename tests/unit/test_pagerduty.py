"""The PagerDuty sink against a receiver that holds it to PagerDuty's documentation."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.alerts import _pagerduty_event as event
from dataflows.alerts import pagerduty
from dataflows.alerts.base import Alert
from dataflows.settings import Settings
from features.errors import ConfigError, SinkError
from tests.alerts import ROUTING_KEY, Time, an_alert, nasty_alert
from tests.pagerduty import PagerDuty, faults_of, receiver


@pytest.fixture
def duty(monkeypatch: pytest.MonkeyPatch) -> Iterator[PagerDuty]:
    """A receiver, reached directly."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with receiver() as opened:
        yield opened


@pytest.fixture
def time() -> Time:
    """A clock of the test's own."""
    return Time()


@pytest.fixture
def settings(duty: PagerDuty, tmp_path: Path) -> Settings:
    """Settings that lead to the receiver."""
    return Settings(state_dir=tmp_path, pagerduty_url=duty.url, pagerduty_routing_key=ROUTING_KEY)


@pytest.fixture
def sink(settings: Settings, time: Time, seed: int) -> Iterator[pagerduty.Sink]:
    """The sink over the test's clock and chance."""
    opened = pagerduty.Sink(settings, time, time.sleep, random.Random(seed))
    yield opened
    opened.close()


def dead(settings: Settings) -> list[dict[str, Any]]:
    """What the dead file holds."""
    path = settings.state_dir / "notify" / pagerduty.DEAD_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_an_alert_becomes_an_incident_with_votes_and_reasons(
    duty: PagerDuty, sink: pagerduty.Sink
) -> None:
    sink.write([an_alert(1)])
    assert duty.faults == [] and duty.answers == [202]
    (incident,) = duty.incidents.values()
    (body,) = incident.events
    payload, details = body["payload"], body["payload"]["custom_details"]
    assert incident.status == "triggered"
    assert body["dedup_key"] == "waxwing:payment_fraud:card:card_000001"
    assert payload["severity"] == "error" and payload["class"] == "payment_fraud"
    assert payload["timestamp"] == "2026-03-02T09:11:43.000Z"
    assert details["votes"]["zscore"] == {"score": 0.9998, "threshold": 0.999, "vote": True}
    assert details["votes"]["transformer"]["score"] is None
    assert details["reasons"][0]["text"] == "7 payments in 1 min; usual 0.2"
    assert details["event_id"] == "pay-00000001" and details["bundle"] == "bundle-1"
    assert details["card"] == "card_000001" and details["count"] == 1


def test_the_worst_alert_is_accepted_too(
    duty: PagerDuty, sink: pagerduty.Sink, settings: Settings
) -> None:
    sink.write([nasty_alert(30_000)])
    assert duty.faults == [] and duty.answers == [202] and dead(settings) == []


@given(
    text=st.text(max_size=3000),
    severity=st.sampled_from(["critical", "high", "", "Warning", "?"]),
    number=st.floats(),
    time_us=st.integers(-(2**63), 2**63 - 1),
    count=st.integers(1, 10**9),
)
def test_every_alert_fits_what_pagerduty_documents(
    text: str, severity: str, number: float, time_us: int, count: int
) -> None:
    alert = an_alert(
        1, entity=text, summary=text, severity=severity, score=number, time_us=time_us,
        anomaly_type=text[:50],
    )  # fmt: skip
    body = event.trigger(alert, ROUTING_KEY, count, [text] * 30)
    raw = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    assert faults_of(raw)[1] == []


def test_the_receiver_refuses_what_pagerduty_refuses() -> None:
    good = event.trigger(an_alert(1), ROUTING_KEY)
    assert faults_of(json.dumps(good).encode())[1] == []
    payload = good["payload"]
    bad: list[dict[str, Any]] = [
        good | {"routing_key": "short"},
        good | {"dedup_key": "k" * 256},
        good | {"event_action": "shout"},
        good | {"more": 1},
        good | {"payload": payload | {"summary": "s" * 1025}},
        good | {"payload": payload | {"severity": "fatal"}},
        good | {"payload": payload | {"timestamp": "yesterday"}},
        good | {"payload": payload | {"custom_details": {"x": "y" * 600_000}}},
        good | {"payload": {k: v for k, v in payload.items() if k != "source"}},
    ]
    assert all(faults_of(json.dumps(body).encode())[1] for body in bad)
    assert faults_of(b'{"a": NaN}')[1] and faults_of(b"\xff")[1]


def test_entities_and_types_make_the_incident_and_nothing_else_does() -> None:
    first = an_alert(1, entity="card_1")
    same = an_alert(2, entity="card_1", bundle_id="next", severity="critical")
    others = [
        an_alert(1, entity="card_2"),
        an_alert(1, entity="card_1", anomaly_type="takeover"),
        an_alert(1, entity="card_1", entity_type="user"),
        an_alert(1, entity="c" * 300),
        an_alert(1, entity="c" * 301),
        an_alert(1, entity="é"),
    ]
    keys = [event.dedup_key(alert) for alert in [first, *others]]
    assert event.dedup_key(same) == keys[0]
    assert len(set(keys)) == len(keys) and max(map(len, keys)) <= 255


def test_a_refused_event_is_not_sent_again_and_is_kept_without_the_key(
    duty: PagerDuty, sink: pagerduty.Sink, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    duty.script.extend([400, 404, 202])
    sink.write([an_alert(n) for n in (1, 2, 3)])
    assert duty.answers == [400, 404, 202]
    assert [record["status"] for record in dead(settings)] == [400, 404]
    assert dead(settings)[0]["alert_ids"] == [an_alert(1).id]
    assert dead(settings)[0]["event"]["payload"]["summary"] == an_alert(1).summary
    assert "Event object is invalid" in dead(settings)[0]["answer"]
    written = (settings.state_dir / "notify" / pagerduty.DEAD_FILE).read_text()
    assert ROUTING_KEY not in written + caplog.text + repr(sink.__dict__["_url"])


@pytest.mark.parametrize("failure", [429, 500, 503, 408, "drop"])
def test_what_may_pass_is_tried_again_with_growing_waits(
    failure: int | str, duty: PagerDuty, sink: pagerduty.Sink, time: Time, settings: Settings
) -> None:
    duty.script.extend([failure] * 4)
    sink.write([an_alert(1)])
    assert duty.answers == [failure] * 4 + [202]
    assert len(duty.accepted) == 1 and dead(settings) == []
    first_s = 30.0 if failure == 429 else 1.0
    assert len(time.slept) == 4
    for n, slept_s in enumerate(time.slept):
        whole_s = min(pagerduty.BACK_OFF_S_MAX, first_s * 2**n)
        assert whole_s / 2 <= slept_s <= whole_s


def test_a_receiver_that_does_not_answer_is_left_and_tried_again(
    duty: PagerDuty, settings: Settings, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagerduty, "TIMEOUT_S", 0.2)
    sink = pagerduty.Sink(settings, time, time.sleep, random.Random(1))
    duty.script.extend(["hang"])
    sink.write([an_alert(1)])
    assert duty.answers == ["hang", 202]
    sink.close()


def test_an_answer_that_gets_lost_leaves_one_incident(
    duty: PagerDuty, sink: pagerduty.Sink
) -> None:
    duty.script.extend(["lose"])
    sink.write([an_alert(1)])
    assert duty.answers == ["lose", 202] and len(duty.accepted) == 2
    (incident,) = duty.incidents.values()
    assert incident.opened == 1 and len(incident.events) == 2


def test_nobody_there_ends_a_write_with_the_cure(
    duty: PagerDuty, sink: pagerduty.Sink, time: Time
) -> None:
    duty.script.extend([503] * 100)
    with pytest.raises(SinkError, match="1 alerts were not accepted") as caught:
        sink.write([an_alert(1)])
    assert ROUTING_KEY not in str(caught.value)
    assert time.now_s < 1_000 + pagerduty.WRITE_S_MAX + pagerduty.BACK_OFF_S_MAX + 1


def test_a_flood_is_merged_and_stays_below_pagerdutys_rate(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with receiver(calls_max=120, clock=time) as duty:
        settings = Settings(
            state_dir=tmp_path, pagerduty_url=duty.url, pagerduty_routing_key=ROUTING_KEY
        )
        sink = pagerduty.Sink(settings, time, time.sleep, random.Random(1))
        flood = [an_alert(n, entity=f"card_{n % 300}") for n in range(12_000)]
        done: list[str] = []
        for start in range(0, 12_000, 100):
            sink.offer(flood[start : start + 100])
            done += sink.pump()
            time.passes(1.0)
        while len(done) < len(flood):
            time.passes(sink.wait_s())
            done += sink.pump()
        sink.close()
    assert duty.faults == [] and set(duty.answers) == {202}, "not one 429"
    assert sorted(done) == sorted(alert.id for alert in flood)
    assert len(duty.incidents) == 300
    counted = sum(b["payload"]["custom_details"]["count"] for b in duty.accepted)
    assert counted == 12_000, "each alert is counted once"
    assert len(duty.accepted) < 600


def test_the_most_severe_go_first_and_speak_for_the_others(
    duty: PagerDuty, sink: pagerduty.Sink
) -> None:
    sink.offer(
        [
            an_alert(1, severity="info"),
            an_alert(2, severity="warning"),
            an_alert(3, entity="hot", severity="warning"),
            an_alert(4, entity="hot", severity="critical", summary="the worst"),
            an_alert(5, entity="hot", severity="warning", summary="later, and milder"),
            an_alert(6, severity="error"),
        ]
    )
    sink.pump()
    said = [(b["payload"]["severity"], b["payload"]["summary"]) for b in duty.accepted]
    assert [severity for severity, _ in said] == ["critical", "error", "warning", "info"]
    assert said[0][1] == "the worst (and 2 more)"
    details = duty.accepted[0]["payload"]["custom_details"]
    assert details["count"] == 3
    assert details["other_event_ids"] == ["pay-00000003", "pay-00000005"]


def test_an_event_that_alone_is_to_blame_holds_nothing_up(
    duty: PagerDuty, sink: pagerduty.Sink, time: Time, settings: Settings
) -> None:
    poison = an_alert(0, entity="poison", severity="critical")
    duty.refuse = lambda body: 500 if body["dedup_key"].endswith("poison") else None
    done: list[str] = []
    sink.offer([poison])
    for n in range(1, 400):
        sink.offer([an_alert(n)])
        done += sink.pump()
        time.passes(1.0)
        if poison.id in done:
            break
    assert poison.id in done and len(duty.accepted) >= pagerduty.OWN_FAILURES_MAX
    assert [record["alert_ids"] for record in dead(settings)] == [[poison.id]]


def test_an_outage_of_hours_loses_nothing(
    duty: PagerDuty, sink: pagerduty.Sink, time: Time, settings: Settings
) -> None:
    alerts = [an_alert(n) for n in range(50)]
    duty.refuse = lambda body: 503
    begun_s = time.now_s
    sink.offer(alerts)
    while time.now_s < begun_s + 4 * 3600:
        assert sink.pump() == []
        time.passes(max(1.0, sink.wait_s()))
    tries = len(duty.answers)
    assert tries < 4 * 3600 / (pagerduty.BACK_OFF_S_MAX / 2) + 10, "it backed off"
    duty.refuse = lambda body: None
    done: list[str] = []
    while len(done) < len(alerts):
        time.passes(max(0.1, sink.wait_s()))
        done += sink.pump()
    assert sorted(done) == sorted(a.id for a in alerts) and dead(settings) == []


def test_what_waited_a_day_is_put_aside(
    duty: PagerDuty, sink: pagerduty.Sink, time: Time, settings: Settings
) -> None:
    duty.refuse = lambda body: 503
    sink.offer([an_alert(1)])
    sink.pump()
    time.passes(pagerduty.WAIT_S_MAX + 1)
    assert sink.pump() == [an_alert(1).id]
    assert dead(settings)[0]["status"] == 503


def test_there_is_no_room_beyond_the_maximum(sink: pagerduty.Sink) -> None:
    same = an_alert(1, entity="one")
    sink.offer([same] * (pagerduty.QUEUE_ALERTS_MAX - 1))
    assert sink.room()
    sink.offer([same])
    assert not sink.room()
    assert len(sink.pump()) == pagerduty.QUEUE_ALERTS_MAX and sink.room()


def test_wrong_settings_are_told_all_at_once_and_without_the_key(tmp_path: Path) -> None:
    settings = Settings(
        state_dir=tmp_path, pagerduty_url="events.example", pagerduty_routing_key="hunter2"
    )
    with pytest.raises(ConfigError) as caught:
        pagerduty.Sink(settings)
    assert len(caught.value.faults) == 2 and "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="WAXWING_PAGERDUTY_ROUTING_KEY"):
        pagerduty.Sink(Settings(state_dir=tmp_path))


def test_the_key_is_in_no_log_of_any_level(
    duty: PagerDuty, settings: Settings, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    duty.script.extend([500, "drop", 429, 400])
    sink = pagerduty.Sink(settings, time, time.sleep, random.Random(1))
    sink.write([an_alert(1), an_alert(2)])
    sink.close()
    assert "pagerduty" in caplog.text and ROUTING_KEY not in caplog.text
    assert ROUTING_KEY not in repr(settings)


def test_each_of_a_hundred_back_offs_stays_within_its_bounds(
    duty: PagerDuty, sink: pagerduty.Sink, time: Time
) -> None:
    duty.refuse = lambda body: 500
    sink.offer([an_alert(1)])
    moments = []
    for _ in range(100):
        sink.pump()
        moments.append(time.now_s)
        time.passes(sink.wait_s())
    gaps = [b - a for a, b in pairwise(moments)]
    assert max(gaps) <= pagerduty.BACK_OFF_S_MAX
    assert len({round(gap, 3) for gap in gaps[-50:]}) > 40, "jitter: no two alike"


def test_a_severity_that_nobody_knows_is_an_error() -> None:
    def severity(word: str) -> str:
        alert: Alert = an_alert(1, severity=word)
        return event.severity_of(alert)

    assert severity("CRITICAL") == "critical" and severity("medium") == "warning"
    assert severity("catastrophe") == "error"
