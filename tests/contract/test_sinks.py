"""Every alert sink, crossed with every promise of `dataflows.alerts.base`.

A new file in `dataflows/alerts` is tried here without being named: what it delivers is looked for
in the files it writes below state_dir and on standard error.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from dataflows.alerts import open_sinks, sink_names
from dataflows.alerts.base import AlertSink, PatientSink
from dataflows.settings import Settings
from tests.alerts import ROUTING_KEY, an_alert, nasty_alert
from tests.pagerduty import receiver

TOPIC = "waxwing.alerts"


class Case:
    """One sink with its surroundings."""

    def __init__(self, name: str, settings: Settings, delivered: Callable[[], str]) -> None:
        self.name, self.settings, self.delivered = name, settings, delivered
        self.opened: list[AlertSink] = []

    def open(self) -> AlertSink:
        """The sink, closed at the end of the test."""
        self.opened += open_sinks([self.name], self.settings)
        return self.opened[-1]


def messages(brokers: str) -> str:
    """All messages of the topic."""
    consumer = Consumer({
        "bootstrap.servers": brokers, "group.id": "reader", "enable.partition.eof": True,
        "auto.offset.reset": "earliest", "log_level": 0,
    })  # fmt: skip
    partitions = consumer.list_topics(TOPIC, timeout=60).topics[TOPIC].partitions
    consumer.assign([TopicPartition(TOPIC, p, 0) for p in partitions])
    found: list[bytes] = []
    ended = 0
    while ended < len(partitions):
        for message in consumer.consume(1000, timeout=0.1):
            if message.error() is not None:
                ended += 1
            else:
                found.append(message.value() or b"")
    consumer.close()
    return "\n".join(value.decode() for value in found)


@pytest.fixture(params=sink_names())
def case(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Case]:
    """Each sink, led to a receiver of its own where it needs one."""
    name = request.param
    if name == "kafka":
        holder = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
        found = holder.list_topics(timeout=60).brokers.values()
        brokers = ",".join(f"{b.host}:{b.port}" for b in found)
        holder.list_topics(TOPIC, timeout=60)
        settings = Settings(state_dir=tmp_path, kafka_brokers=brokers, alerts_topic=TOPIC)
        made = Case(name, settings, lambda: messages(brokers))
        yield made
    elif name == "pagerduty":
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with receiver() as duty:
            settings = Settings(
                state_dir=tmp_path, pagerduty_url=duty.url, pagerduty_routing_key=ROUTING_KEY
            )
            made = Case(name, settings, lambda: json.dumps([b["payload"] for b in duty.accepted]))
            yield made
            assert duty.faults == []
    else:
        made = Case(
            name,
            Settings(state_dir=tmp_path),
            lambda: "".join(
                [p.read_text() for p in sorted(tmp_path.rglob("*")) if p.is_file()]
                + [capfd.readouterr().err]
            ),
        )
        yield made
    for sink in made.opened:
        sink.close()


def test_the_name_of_a_sink_is_the_name_of_its_file(case: Case) -> None:
    assert case.open().name == case.name


def test_a_write_has_delivered_every_alert_when_it_returns(case: Case) -> None:
    alerts = [an_alert(n) for n in range(8)]
    sink = case.open()
    sink.write(alerts[:5])
    sink.write(alerts[5:])
    text = case.delivered()
    places = [text.find(alert.entity) for alert in alerts]
    assert -1 not in places
    if case.name != "kafka":  # the partitions of a topic have no order among them
        assert places == sorted(places)
    assert "7 payments in 1 min; usual 0.2" in text


def test_a_write_of_nothing_delivers_nothing(case: Case) -> None:
    case.open().write([])
    assert case.delivered() in ("", "[]")


def test_the_worst_alert_is_delivered_and_the_next_one_too(case: Case) -> None:
    sink = case.open()
    sink.write([nasty_alert()])
    sink.write([an_alert(1)])
    text = case.delivered()
    assert an_alert(1).entity in text
    assert "\x1b" not in text and "\x07" not in text, "nothing a terminal would obey"


def test_the_same_alerts_may_come_again_after_a_restart(case: Case) -> None:
    case.open().write([an_alert(1), an_alert(2)])
    case.opened.pop().close()
    case.open().write([an_alert(2), an_alert(3)])
    text = case.delivered()
    assert all(an_alert(n).entity in text for n in (1, 2, 3))


def test_a_sink_may_be_closed_twice(case: Case) -> None:
    sink = case.open()
    sink.write([an_alert(1)])
    sink.close()
    sink.close()


def test_a_sink_can_be_cut_back_as_a_whole_or_not_at_all(case: Case) -> None:
    sink = case.open()
    has = [hasattr(sink, name) for name in ("position", "truncate", "sync")]
    assert all(has) or not any(has), "position, truncate and sync belong together"
    if not all(has):
        return
    sink.write([an_alert(1)])
    position = sink.position()  # type: ignore[attr-defined]
    before = case.delivered()
    sink.write([an_alert(2)])
    sink.sync()  # type: ignore[attr-defined]
    sink.truncate(position)  # type: ignore[attr-defined]
    assert case.delivered() == before and sink.position() == position  # type: ignore[attr-defined]


def test_a_patient_sink_takes_alerts_at_once_and_names_those_it_is_done_with(case: Case) -> None:
    sink = case.open()
    patient = [hasattr(sink, name) for name in ("room", "offer", "pump", "wait_s")]
    assert all(patient) or not any(patient), "room, offer, pump and wait_s belong together"
    assert isinstance(sink, PatientSink) == all(patient)
    if not isinstance(sink, PatientSink):
        return
    alerts = [an_alert(n) for n in range(4)]
    sink.offer(alerts)
    assert case.delivered() == "[]" and sink.room()
    assert sorted(sink.pump()) == sorted(alert.id for alert in alerts)
    assert sink.pump() == []


def test_no_sink_tells_a_secret(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    case.open().write([an_alert(1)])
    assert ROUTING_KEY not in case.delivered() + caplog.text + repr(case.opened)
