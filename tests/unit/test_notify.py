"""The notify flow: the log is followed through cuts and restarts, and nobody is told twice."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from bytewax.run import cli_main
from confluent_kafka import Producer

from dataflows.alerts import jsonl, open_sinks, pagerduty
from dataflows.alerts.base import Alert, AlertSink
from dataflows.notify import (
    SENT_KEPT_MAX,
    Notifier,
    Position,
    build_flow,
    make_notifier,
    make_reader,
)
from dataflows.settings import Settings
from dataflows.sources.alert_log import PLACE_EVERY, PLACES_KEPT_MAX, FileTail
from features.errors import ConfigError, StateError
from tests.alerts import ROUTING_KEY, Time, an_alert
from tests.pagerduty import PagerDuty, receiver


@pytest.fixture
def duty(monkeypatch: pytest.MonkeyPatch) -> Iterator[PagerDuty]:
    """A receiver, reached directly."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with receiver() as opened:
        yield opened


@pytest.fixture
def settings(duty: PagerDuty, tmp_path: Path) -> Settings:
    """Settings that lead to the receiver."""
    return Settings(
        state_dir=tmp_path,
        notify=["pagerduty"],
        pagerduty_url=duty.url,
        pagerduty_routing_key=ROUTING_KEY,
    )


class Listener:
    """A prompt sink that remembers what it was told."""

    name = "listener"

    def __init__(self) -> None:
        self.ids: list[str] = []

    def write(self, alerts: list[Alert]) -> None:
        """Remember them."""
        self.ids += [alert.id for alert in alerts]

    def close(self) -> None:
        """Nothing."""


class Flow:
    """The notify flow without Bytewax around it, on a clock of the test's own."""

    opened: ClassVar[list[AlertSink]] = []

    def __init__(
        self, settings: Settings, sinks: list[AlertSink] | None = None, duty: bool = False
    ) -> None:
        self.time = Time()
        self.path = settings.state_dir / "notify" / "position.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        position = Position.read(self.path, jsonl.FILE_NAME)
        self.reader = make_reader(settings, position)
        sinks = [] if sinks is None else sinks
        if not sinks or duty:
            sinks.append(pagerduty.Sink(settings, self.time, self.time.sleep, random.Random(1)))
        Flow.opened += sinks
        self.notifier = Notifier(sinks, position, self.path, clock=self.time, sleep=self.time.sleep)

    def step(self, times: int = 1) -> None:
        """Look at the log and give the sinks their turn, once a second."""
        for _ in range(times):
            self.notifier.take(self.reader.take())
            self.time.passes(1.0)

    def end(self) -> None:
        """The last lines, as after a SIGTERM."""
        lines = self.reader.take()
        lines.final = True
        self.notifier.take(lines)


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    """A flow that was killed in a test leaves its connection to the test."""
    yield
    while Flow.opened:
        Flow.opened.pop().close()


def ids(start: int, stop: int) -> list[str]:
    """Ids of the alerts with these numbers."""
    return [an_alert(n).id for n in range(start, stop)]


def write(settings: Settings, start: int, stop: int, **other: str) -> int:
    """Append alerts as the detect flow does; the length of the log."""
    sink = jsonl.Sink(settings)
    sink.write([an_alert(n, **other) for n in range(start, stop)])
    sink.close()
    return sink.path.stat().st_size


def cut(settings: Settings, position: int) -> None:
    """Cut the log back as a resumed detect flow does."""
    sink = jsonl.Sink(settings)
    sink.truncate(position)
    sink.close()


def run_flow(settings: Settings, stop: Callable[[], bool] = lambda: True) -> Notifier:
    """The real flow, in Bytewax, to its end."""
    reader, notifier = make_notifier(settings)
    cli_main(build_flow(reader, notifier, stop), epoch_interval=timedelta(0))
    return notifier


def test_the_flow_tells_pagerduty_everything_once(duty: PagerDuty, settings: Settings) -> None:
    write(settings, 0, 8)
    assert run_flow(settings).waiting == 0
    assert duty.faults == [] and len(duty.accepted) == 8
    write(settings, 8, 10)
    again = run_flow(settings)
    assert again.read == 2 and len(duty.accepted) == len(duty.incidents) == 10


def test_the_topic_is_read_where_the_log_is_a_topic(duty: PagerDuty, settings: Settings) -> None:
    holder = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
    found = holder.list_topics(timeout=60).brokers.values()
    holder.list_topics(settings.alerts_topic, timeout=60)
    brokers = ",".join(f"{b.host}:{b.port}" for b in found)
    topic = settings.model_copy(update={"alerts": ["kafka"], "kafka_brokers": brokers})
    (sink,) = open_sinks(["kafka"], topic)
    sink.write([an_alert(n) for n in range(5)])
    assert run_flow(topic).read == 5
    sink.write([an_alert(n) for n in range(3, 7)])  # a resumed detect flow sends some again
    again = run_flow(topic)
    assert (again.read, again.repeated) == (2, 2)
    assert len(duty.accepted) == len(duty.incidents) == 7
    assert run_flow(topic).read == 0
    sink.close()


def test_a_missing_log_is_waited_for(duty: PagerDuty, settings: Settings) -> None:
    assert run_flow(settings).read == 0
    write(settings, 0, 1)
    assert run_flow(settings).read == 1


def test_alerts_written_while_it_runs_are_told(duty: PagerDuty, settings: Settings) -> None:
    written = iter([(0, 3), (3, 5)])

    def stop() -> bool:
        """Called before each look at the log: writes some more, then says stop."""
        stretch = next(written, None)
        if stretch is not None:
            write(settings, *stretch)
        return stretch is None

    assert run_flow(settings, stop).read == 5
    assert len(duty.accepted) == 5


def test_half_a_line_is_left_until_it_is_whole(settings: Settings) -> None:
    listener = Listener()
    flow = Flow(settings, [listener])
    write(settings, 0, 1)
    path = settings.state_dir / jsonl.FILE_NAME
    line = an_alert(1).to_json().encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        file.write(line[:40])
        flow.step(2)
        assert listener.ids == ids(0, 1)
        file.write(line[40:])
        flow.step(2)
    assert listener.ids == ids(0, 2)


def test_lines_that_are_no_alerts_are_passed_over_and_told(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener()
    write(settings, 0, 1)
    with (settings.state_dir / jsonl.FILE_NAME).open("ab") as file:
        file.write(b"\n\xff\xfe\x00\n{}\n" + b"x" * 3_000_000 + b"\n")
    write(settings, 1, 2)
    Flow(settings, [listener]).step(8)
    assert listener.ids == ids(0, 2)
    assert "passed over" in caplog.text


def test_a_log_that_is_cut_and_written_again_is_told_once(settings: Settings) -> None:
    listener = Listener()
    flow = Flow(settings, [listener])
    position = write(settings, 0, 100)
    write(settings, 100, 150)
    flow.step(2)
    cut(settings, position)
    flow.step()
    write(settings, 100, 160)
    flow.step(2)
    assert listener.ids == ids(0, 160)
    assert flow.notifier.repeated >= 50


@pytest.mark.parametrize("kept", [0, 1, 7, 90, 100])
def test_a_log_whose_end_became_another_is_told_from_there(settings: Settings, kept: int) -> None:
    """A new bundle gives the cut rounds other alerts, and between two looks the log grew again."""
    listener = Listener()
    position = write(settings, 0, kept) if kept else 0
    write(settings, kept, 100)
    Flow(settings, [listener]).step(2)
    cut(settings, position)
    write(settings, 1000, 1200)
    Flow(settings, [listener]).step(2)  # it was away meanwhile
    assert listener.ids == ids(0, 100) + ids(1000, 1200)


def test_a_cut_beyond_all_known_places_tells_no_old_alert_again(settings: Settings) -> None:
    listener = Listener()
    reach = PLACE_EVERY * PLACES_KEPT_MAX
    position = write(settings, 0, 1000)
    write(settings, 1000, 1000 + reach + 5000)
    flow = Flow(settings, [listener])
    flow.step(60)
    assert len(listener.ids) == 6000 + reach
    cut(settings, position)
    flow.step(60)
    write(settings, 50_000, 50_010)
    flow.step(2)
    assert listener.ids[6000 + reach :] == ids(50_000, 50_010)


def test_a_log_taken_away_and_begun_anew_is_told_from_its_beginning(settings: Settings) -> None:
    listener = Listener()
    write(settings, 0, 40)
    flow = Flow(settings, [listener])
    flow.step(2)
    (settings.state_dir / jsonl.FILE_NAME).unlink()
    flow.step()
    write(settings, 100, 103)
    flow.step(2)
    assert listener.ids == ids(0, 40) + ids(100, 103)


def test_a_restart_tells_nobody_twice(duty: PagerDuty, settings: Settings) -> None:
    write(settings, 0, 60)
    for _ in range(60):
        flow = Flow(settings)  # the one before was killed between two steps
        flow.step()
        if not flow.notifier.waiting:
            break
    assert len(duty.accepted) == len(duty.incidents) == 60


def test_a_kill_before_the_place_is_written_repeats_a_trigger_and_no_incident(
    duty: PagerDuty, settings: Settings
) -> None:
    write(settings, 0, 3)
    flow = Flow(settings)
    before = flow.path.read_bytes() if flow.path.exists() else b""
    flow.step()
    assert len(duty.accepted) == 3
    flow.path.write_bytes(before) if before else flow.path.unlink()
    Flow(settings).step()
    assert len(duty.accepted) == 6
    assert len(duty.incidents) == 3
    assert all(incident.opened == 1 for incident in duty.incidents.values())


def test_a_restart_goes_on_behind_what_was_sent_out_of_turn(
    duty: PagerDuty, settings: Settings
) -> None:
    write(settings, 0, 12, severity="info")
    write(settings, 12, 24, severity="critical")
    flow = Flow(settings)
    flow.step()
    severities = [b["payload"]["severity"] for b in duty.accepted]
    assert severities == ["critical"] * 10, "a burst of the most severe, the log's last"
    assert json.loads(flow.path.read_text())["ends"]["0"] == 0
    flow = Flow(settings)
    flow.step(30)
    flow.end()
    assert len(duty.accepted) == 24 and flow.notifier.repeated >= 10
    assert json.loads(flow.path.read_text())["ends"]["0"] == write(settings, 0, 0)


def test_what_cannot_be_sent_in_time_is_left_for_the_next_start(
    duty: PagerDuty, settings: Settings
) -> None:
    duty.refuse = lambda body: 503
    write(settings, 0, 3)
    flow = Flow(settings)
    flow.step()
    begun_s = flow.time.now_s
    flow.end()
    assert 10 < flow.time.now_s - begun_s < 20 and flow.notifier.waiting == 3
    duty.refuse = lambda body: None
    flow = Flow(settings)
    flow.end()
    assert flow.notifier.waiting == 0 and len(duty.incidents) == 3


def test_a_full_queue_leaves_the_rest_in_the_log(
    duty: PagerDuty, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagerduty, "QUEUE_ALERTS_MAX", 20)
    duty.script.extend([503] * 5)
    flow = Flow(settings)
    for start in range(0, 100, 10):
        write(settings, start, start + 10)
        flow.step()
        assert flow.notifier.waiting <= 30
    while flow.notifier.waiting:
        flow.step()
    assert len(duty.incidents) == len(duty.accepted) == 100


def test_a_prompt_sink_beside_pagerduty_hears_everything_at_once(
    duty: PagerDuty, settings: Settings
) -> None:
    listener = Listener()
    both = Flow(settings, [listener], duty=True)
    write(settings, 0, 30)
    both.step()
    assert listener.ids == ids(0, 30) and len(duty.accepted) < 30
    both.end()
    assert len(duty.accepted) == 30


def test_the_memory_of_sent_alerts_is_bounded(settings: Settings) -> None:
    listener = Listener()
    flow = Flow(settings, [listener])
    write(settings, 0, SENT_KEPT_MAX + 500)
    flow.step(20)
    kept = Position.read(flow.path, jsonl.FILE_NAME)
    assert len(listener.ids) == SENT_KEPT_MAX + 500 and len(kept.sent) == SENT_KEPT_MAX
    assert len(kept.places) <= PLACES_KEPT_MAX + 1
    assert flow.path.stat().st_size < 300_000


def test_a_position_of_another_log_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "position.json"
    Position("topic a", {3: 7}, sent=["x"]).write(path)
    assert Position.read(path, "topic a").ends == {3: 7}
    assert Position.read(path, jsonl.FILE_NAME) == Position(jsonl.FILE_NAME)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "log": "L"}'])
def test_a_damaged_position_is_told_with_the_cure(tmp_path: Path, text: str) -> None:
    path = tmp_path / "position.json"
    path.write_text(text)
    with pytest.raises(StateError, match="take it away"):
        Position.read(path, "L")


def test_an_empty_log_is_read_without_an_offset(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    tail = FileTail(tmp_path / "log")
    assert tail.take().alerts == [] and tail.end() == {0: 0}


def test_all_faults_of_the_settings_are_told_at_once(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, alerts=["console"], notify=["jsonl", "pagerduty"])
    with pytest.raises(ConfigError) as caught:
        make_notifier(settings)
    told = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 3
    assert 'add "jsonl"' in told and "the very log" in told and "ROUTING_KEY" in told
    with pytest.raises(ConfigError, match="nobody to tell"):
        make_notifier(Settings(state_dir=tmp_path))
