"""Alerts as text, sinks by name, the log and the console."""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.alerts import console, jsonl, open_sinks, sink_names
from dataflows.alerts.base import Alert, Reason, alert_id, printable
from dataflows.certify import _told_then
from dataflows.settings import Settings
from features.errors import ConfigError, ContractError, SinkError
from tests.alerts import Time, an_alert, nasty_alert


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings over a folder of the test's own."""
    return Settings(state_dir=tmp_path / "state")


@given(text=st.text(), number=st.floats(allow_nan=False, allow_infinity=False))
def test_an_alert_survives_its_line(text: str, number: float) -> None:
    reasons = (Reason(text, text, number, None, text),)
    alert = an_alert(1, entity=text, summary=text, score=number, reasons=reasons)
    line = alert.to_json()
    assert line.isascii() and line.isprintable()
    assert Alert.from_json(line) == alert


def test_numbers_that_are_not_finite_become_null() -> None:
    line = nasty_alert().to_json()
    assert "NaN" not in line and "Infinity" not in line
    assert math.isnan(Alert.from_json(line).score)


def test_fields_of_a_later_version_are_passed_over() -> None:
    data = json.loads(an_alert(1).to_json()) | {"colour": "red"}
    assert Alert.from_json(json.dumps(data)) == an_alert(1)


@pytest.mark.parametrize("line", ["", "{", "[]", "null", "7", '{"id": "x"}', b"\xff\xfe\x00"])
def test_what_is_no_alert_is_refused_with_a_reason(line: str | bytes) -> None:
    with pytest.raises(ContractError, match="expected an alert as one line of JSON"):
        Alert.from_json(line)


def test_the_id_is_about_event_type_and_bundle_alone() -> None:
    ids = {alert_id(*parts) for parts in (("e", "t", "b"), ("e2", "t", "b"), ("e", "t", "b2"))}
    assert len(ids) == 3 and all(len(i) == 32 for i in ids)
    assert alert_id("e", "t", "b") == alert_id("e", "t", "b")


def test_sinks_are_found_by_their_file_name(settings: Settings) -> None:
    assert {"console", "jsonl", "pagerduty"} <= set(sink_names())
    opened = open_sinks(["jsonl", "console"], settings)
    assert [sink.name for sink in opened] == ["jsonl", "console"]
    for sink in opened:
        sink.close()


def test_all_faults_of_all_sinks_are_told_at_once(settings: Settings) -> None:
    with pytest.raises(ConfigError) as caught:
        open_sinks(["jsonl", "jsnol", "pagerduty", "console", "console"], settings)
    told = "\n".join(caught.value.faults)
    assert "console, jsonl" in told and "'jsnol'" in told
    assert "WAXWING_PAGERDUTY_ROUTING_KEY" in told and "'console' is named twice" in told


def test_the_log_has_an_alert_a_line(settings: Settings) -> None:
    sink = jsonl.Sink(settings)
    alerts = [an_alert(n) for n in range(5)]
    sink.write(alerts[:2])
    sink.write([])
    sink.write(alerts[2:])
    assert [Alert.from_json(line) for line in sink.path.read_bytes().splitlines()] == alerts
    assert sink.position() == sink.path.stat().st_size
    sink.close()
    sink.close()


def test_a_resumed_log_holds_each_alert_once(settings: Settings) -> None:
    sink = jsonl.Sink(settings)
    sink.write([an_alert(1), an_alert(2)])
    sink.sync()
    position = sink.position()
    sink.write([an_alert(3), an_alert(4)])
    whole = sink.path.read_bytes()
    again = jsonl.Sink(settings)  # the first was killed
    again.truncate(position)
    again.write([an_alert(3), an_alert(4)])
    assert again.path.read_bytes() == whole
    again.truncate(0)
    assert again.position() == 0
    again.close()


def test_the_log_of_a_live_flow_is_read_up_to_a_line_that_is_half_there(
    settings: Settings,
) -> None:
    assert list(jsonl.alerts_with(settings.state_dir, "pay")) == []
    sink = jsonl.Sink(settings)
    unknown = Reason("distance_km", "no place known", math.nan, None, "km")
    told, other = an_alert(1), an_alert(2, reasons=(unknown,))
    sink.write([told, other])
    sink.close()
    with sink.path.open("ab") as file:
        file.write(an_alert(3).to_json().encode()[:-9])
    assert list(jsonl.alerts_with(settings.state_dir, told.id)) == [told]
    for n in (1, 2, 3):
        event_id = an_alert(n).event_id
        assert _told_then(settings.state_dir, event_id, "distance_km") == {1: 8210.0}.get(n)
    assert _told_then(settings.state_dir, told.event_id, "amount") is None


@pytest.mark.parametrize("torn", [b'{"id": "ab', b"x" * 200_000])
def test_half_a_line_is_cut_off_at_the_start(settings: Settings, torn: bytes) -> None:
    sink = jsonl.Sink(settings)
    sink.write([an_alert(1)])
    whole = sink.path.read_bytes()
    sink.close()
    with sink.path.open("ab") as file:
        file.write(torn)
    again = jsonl.Sink(settings)
    assert again.path.read_bytes() == whole
    again.close()


def test_a_log_that_is_shorter_than_the_manifest_says_goes_on(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    sink = jsonl.Sink(settings)
    sink.write([an_alert(1)])
    sink.truncate(10**6)
    assert Alert.from_json(sink.path.read_bytes()) == an_alert(1)
    assert "the manifest knows of 1000000" in caplog.text
    sink.close()


def test_a_position_within_a_line_cuts_before_the_line(settings: Settings) -> None:
    sink = jsonl.Sink(settings)
    sink.write([an_alert(1)])
    first = sink.position()
    sink.write([an_alert(2)])
    sink.truncate(first + 7)
    assert sink.position() == first
    sink.close()


def test_a_folder_that_cannot_be_is_told_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match="set state_dir"):
        jsonl.Sink(Settings(state_dir=tmp_path / "file" / "state"))


def test_a_full_disk_leaves_whole_lines(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = jsonl.Sink(settings)
    sink.write([an_alert(1)])
    whole = sink.path.read_bytes()
    left = [100]
    write = os.write

    def short(handle: int, body: bytes) -> int:
        """A disk with room for 100 bytes."""
        taken = min(left[0], len(body))
        if not taken:
            raise OSError(28, "No space left on device")
        left[0] -= taken
        return write(handle, body[:taken])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", short)
        with pytest.raises(SinkError, match="No space left on device; free space"):
            sink.write([an_alert(2)])
    assert sink.path.read_bytes() == whole
    sink.close()


def test_the_console_shows_a_line_an_alert(settings: Settings) -> None:
    out = io.StringIO()
    console.Sink(settings, out, Time()).write([an_alert(1)])
    assert out.getvalue() == (
        "2026-03-02 09:11:43 error    1/2 payment fraud: card card_000001: 7 payments in 1 min;"
        " usual 0.2\n"
    )


def test_nothing_of_an_event_reaches_the_terminal_as_a_command(settings: Settings) -> None:
    out = io.StringIO()
    sink = console.Sink(settings, out, Time())
    sink.write(
        [replace(nasty_alert(1_000), time_us=0), an_alert(2, summary="[bold]not markup[/bold]")]
    )
    first, second, rest = out.getvalue().split("\n")
    assert rest == "" and first.isprintable() and len(first) < 500
    assert "\\x1b[2J\\x07\\r\\n\\u202e\\u2028\\x00" in first
    assert "[bold]not markup[/bold]" in second


def test_a_time_beyond_the_calendar_is_no_reason_to_fail(settings: Settings) -> None:
    out = io.StringIO()
    console.Sink(settings, out, Time()).write([an_alert(1, time_us=2**62)])
    assert "payment fraud" in out.getvalue()


def test_a_flood_is_shown_in_part_and_counted(settings: Settings) -> None:
    out, time = io.StringIO(), Time()
    sink = console.Sink(settings, out, time)
    for start in range(0, 1000, 50):
        sink.write([an_alert(n) for n in range(start, start + 50)])
    assert out.getvalue().count("\n") == console.LINES_S_MAX
    time.passes(1.0)
    sink.write([an_alert(1)])
    lines = out.getvalue().splitlines()
    assert lines[console.LINES_S_MAX] == "... and 980 more alerts"
    sink.write([an_alert(n) for n in range(30)])
    sink.close()
    assert out.getvalue().splitlines()[-1] == "... and 11 more alerts"


def test_a_closed_terminal_stops_nothing(settings: Settings) -> None:
    out = io.StringIO()
    sink = console.Sink(settings, out, Time())
    out.close()
    sink.write([an_alert(1)])
    sink.close()


@given(st.text())
def test_printable_text_is_printable_and_tells_what_was_there(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()
