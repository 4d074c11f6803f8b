"""The live view: plain lines without a terminal, a frame that fits with one, a table at the end."""

from __future__ import annotations

import io
import math
import re
import threading
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from dataflows.alerts.base import Alert, Vote
from dataflows.observe.live import LiveView, Stats, console_for, final_table, stats_of

ATTACKS = (
    "card_testing", "account_takeover", "slow_bleed", "merchant_compromise", "credential_stuffing",
    "password_spraying", "session_hijack", "level_shift", "slow_leak", "flat_line",
    "correlated_outage", "error_burst", "new_template", "slow_down",
)  # fmt: skip

DETECTORS = ("zscore", "iqr", "isolation_forest", "gradient_boosting", "transformer", "ensemble")


class Terminal(io.StringIO):
    """A text file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def an_alert(number: int) -> Alert:
    votes = tuple(Vote(d, 0.99, 0.9, d != "iqr") for d in DETECTORS[:-1])
    return Alert(
        id=f"{number:032x}",
        anomaly_type="payment_fraud",
        severity="critical",
        event_type="payment",
        event_id=f"e{number}",
        entity_type="card",
        entity=f"card_{number}",
        time_us=1_772_409_600_000_000 + number * 1_000_000,
        cut_time_us=0,
        round=1,
        score=0.99,
        votes=votes,
        reasons=(),
        bundle_id="b",
        summary=f"payment fraud: card card_{number}: 7 payments in 1 min; usual 0.2",
    )


def some_stats(elapsed_s: float = 10.0, attacks: int = 14) -> Stats:
    return Stats(
        elapsed_s=elapsed_s,
        events_in=20_000,
        scored=19_900,
        dead_lettered=5,
        duplicates=40,
        alerts=30,
        events_per_s=1998.0,
        latency_ms_p50=42.0,
        latency_ms_p99=88.0,
        recall={attack: (30 + i, 60) for i, attack in enumerate(ATTACKS[:attacks])},
        event_time_us=1_772_409_600_000_000,
    )


@pytest.fixture
def clock():
    """Seconds that pass when the test says so."""

    class Clock:
        now = 100.0

        def __call__(self) -> float:
            return self.now

    return Clock()


def test_without_a_terminal_there_is_a_plain_line_every_few_seconds(clock) -> None:
    out = io.StringIO()
    view = LiveView(60, out, clock)
    for _ in range(81):
        view.update(some_stats(clock.now - 100))
        clock.now += 0.125
    lines = out.getvalue().splitlines()
    assert [line.split("]")[0] for line in lines] == ["[0 of 60 s", "[5 of 60 s", "[10 of 60 s"]
    assert "1,998 events/s" in lines[0] and "p50 42 ms" in lines[0] and "p99 88 ms" in lines[0]
    assert "5 dead-lettered" in lines[0] and "30 alerts" in lines[0]
    assert f"found {sum(range(30, 44))} of {14 * 60} attack events" in lines[0]
    assert "\x1b" not in out.getvalue()


def test_plain_alerts_are_the_newest_and_the_rest_is_counted(clock) -> None:
    out = io.StringIO()
    view = LiveView(60, out, clock)
    for number in range(10):
        view.alert(an_alert(number))
    view.update(some_stats())
    clock.now += 10
    view.update(some_stats())
    text = out.getvalue()
    assert text.count("card_9:") == 1 and "card_7:" in text and "card_6:" not in text
    assert "and 7 more alerts" in text
    assert "critical payment fraud: card card_9: 7 payments in 1 min; usual 0.2 (4/5 votes)" in text


def test_close_says_the_last_state_once(clock) -> None:
    out = io.StringIO()
    with LiveView(60, out, clock) as view:
        view.update(some_stats(1))
        view.update(some_stats(59))
    view.close()
    view.update(some_stats(60))
    lines = out.getvalue().splitlines()
    assert [line.split(" of")[0] for line in lines] == ["[1", "[59"]


@pytest.mark.parametrize("width", [60, 80, 119, 120, 200])
@pytest.mark.parametrize("height", [12, 24, 50])
@pytest.mark.parametrize("attacks", [0, 1, 14])
def test_a_frame_fits_the_terminal(width: int, height: int, attacks: int) -> None:
    view = LiveView(60, io.StringIO())
    for number in range(200):
        view.alert(an_alert(number))
    view._stats = some_stats(attacks=attacks)
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, no_color=True)
    console.print(view.frame(width, height))
    text = re.sub("\x1b\\[[0-9;]*m", "", out.getvalue())
    assert "\x1b" not in text, "colours and nothing else were taken out"
    lines = text.splitlines()
    assert len(lines) < height, "one line is left for the cursor"
    assert max(cell_len(line) for line in lines) <= width
    assert "card_199" in text, "the newest alert is on the screen"


def test_no_text_of_an_alert_is_an_escape_of_the_terminal(
    clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    evil, shown = "x\x1b]0;pwned\x07\x1b[2J", "x\\x1b]0;pwned\\x07\\x1b[2J"
    alert = replace(an_alert(1), severity=evil, summary=f"log anomaly: {evil}")
    for out in (io.StringIO(), Terminal()):
        with LiveView(60, out, clock) as view:
            view.alert(alert)
            view.update(some_stats())
        text = out.getvalue()
        assert f"log anomaly: {shown}" in re.sub("\x1b\\[[0-9;]*m", "", text)
        assert not any(code in text for code in ("\x1b]", "\x07", "\x1b[2J"))
    view = LiveView(60, out := io.StringIO(), clock)
    view.alert(alert)
    view.close()
    assert f" {shown} log anomaly" in out.getvalue(), "plain lines say the severity"


def test_no_name_of_an_attack_is_markup_or_an_escape_of_the_terminal() -> None:
    view = LiveView(60, io.StringIO())
    view._stats = replace(some_stats(), recall={"[/x]\x1b[2J": (1, 2)})
    console = Console(file=io.StringIO(), width=150, height=40)
    with console.capture() as caught:
        console.print(view.frame(150, 40))
    assert "[/x]\\x1b[2J" in caught.get() and "\x1b" not in caught.get()


def test_the_usual_terminal_shows_all_attacks() -> None:
    view = LiveView(60, io.StringIO())
    view.alert(an_alert(1))
    view._stats = some_stats()
    for width, height in ((80, 24), (150, 40)):
        console = Console(file=io.StringIO(), width=width, height=height)
        with console.capture() as caught:
            console.print(view.frame(width, height))
        for attack in ATTACKS:
            assert attack.replace("_", " ") in caught.get()
        assert "20,000 in = 19,900 scored" in caught.get()
        assert "55 pending" in caught.get()


def test_a_terminal_gets_frames_and_is_left_as_it_was(
    clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with LiveView(60, out, clock) as view:
        for _ in range(10):
            view.alert(an_alert(1))
            view.update(some_stats())
            clock.now += 0.05
    text = out.getvalue()
    assert "found so far" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is shown again"
    assert 3 <= text.count("events/s") <= 5, "10 updates in half a second are at most 4 frames"


def test_a_dumb_terminal_gets_plain_lines(clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    with LiveView(60, out, clock) as view:
        view.update(some_stats())
    assert out.getvalue().startswith("[10 of 60 s]") and "\x1b[?25l" not in out.getvalue()


def test_alerts_may_come_from_many_threads() -> None:
    view = LiveView(0, io.StringIO())

    def tell() -> None:
        for number in range(500):
            view.alert(an_alert(number))
            view.update(some_stats())

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert view._alerts_seen == 2000


def a_report() -> dict:
    return {
        "in": 120_000,
        "scored": 119_700,
        "dead_lettered": 0,
        "duplicates": 240,
        "pending": 60,
        "alerts": 512,
        "latency_ms": {"p50": 42.123, "p99": 88.0, "p999": None},
        "detectors": {
            "ensemble": {"recall": 0.93, "precision": 0.5, "fpr": 0.002},
            **{d: {"recall": 0.5, "precision": 0.25, "fpr": 0.004} for d in DETECTORS[:-1]},
        },
        "by_attack": {
            attack: {
                "events": 60,
                **{d: {"recall": None if d == "transformer" else 0.75} for d in DETECTORS},
            }
            for attack in ATTACKS
        },
    }


def test_final_table_tells_what_late_events_have_changed_where_they_have() -> None:
    out = io.StringIO()
    final_table(a_report(), out)
    assert "late events" not in out.getvalue()
    final_table(a_report() | {"corrected": 1_234, "flipped": 5, "corrected_unchecked": 6}, out)
    said = "late events changed 1,234 scored rows, and 5 votes among them; 6 more could not"
    assert said in " ".join(out.getvalue().split())


def test_final_table_tells_of_rows_that_are_out_of_their_place_where_there_are_any() -> None:
    out = io.StringIO()
    final_table(a_report() | {"late_beyond": 0}, out)
    assert "late_beyond" not in out.getvalue()
    final_table(a_report() | {"late_beyond": 1_234}, out)
    said = "1,234 rows of entities came so far behind others that windows count them at another"
    assert said in " ".join(out.getvalue().split())
    final_table(a_report() | {"late_forgotten": 56}, out)
    said = "56 late rows came after their entity had been forgotten, which it was not at their time"
    assert said in " ".join(out.getvalue().split())


def test_final_table_tells_of_windows_that_are_too_long_where_they_are() -> None:
    out = io.StringIO()
    final_table(a_report() | {"approximated": 0, "approximated_excess_max": 0}, out)
    assert "too long" not in out.getvalue()
    final_table(a_report() | {"approximated": 1_234, "approximated_excess_max": 56}, out)
    said = "1,234 windows of hot entities were too long by less than 10 s, of at most 56 events"
    assert said in " ".join(out.getvalue().split())


def test_final_table_tells_of_estimates_where_there_are_any() -> None:
    out = io.StringIO()
    final_table(a_report() | {"estimated": 0, "estimated_one_in_max": 0}, out)
    assert "estimates" not in out.getvalue()
    final_table(a_report() | {"estimated": 1_234, "estimated_one_in_max": 16}, out)
    said = "1,234 rows of entities that meet very many others have estimates of how many, from at"
    assert f"{said} least one pair in 16" in " ".join(out.getvalue().split())


@pytest.mark.parametrize("columns", ["80", "150"])
def test_final_table_says_everything_of_the_report(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    final_table(a_report(), out, [("waxwing check", "every setting")])
    text = re.sub("\x1b\\[[0-9;]*m", "", out.getvalue())
    for words in ("120,000 in = 119,700 scored", "240 duplicates", "60 pending", "512 alerts"):
        assert words in text
    for words in ("p50 42 ms", "93.0 %", "50.0 %", "0.200 %", "waxwing check", "every setting"):
        assert words in text
    for attack in ATTACKS:
        assert attack.replace("_", " ") in text
    assert "…" not in text, "nothing is cut"


def test_final_table_without_a_terminal_is_plain_text_with_the_ensemble_last() -> None:
    out = io.StringIO()
    final_table(a_report(), out)
    text = out.getvalue()
    assert "\x1b" not in text and "…" not in text
    lines = [line.split()[0] for line in text.splitlines() if line.split()]
    order = [line for line in lines if line in ("zscore", "iqr", "transformer", "ensemble")]
    assert order == ["zscore", "iqr", "transformer", "ensemble"]


def test_tables_have_the_width_of_the_terminal_or_the_one_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    assert console_for(io.StringIO(), 93).width == 93
    assert console_for(Terminal(), 93).width == 80


def test_final_table_of_a_run_without_truth_has_counts_alone() -> None:
    out = io.StringIO()
    final_table({"in": 5, "scored": 5}, out, [])
    assert "5 in = 5 scored" in out.getvalue()
    assert "recall" not in out.getvalue()


def test_stats_come_from_the_report_of_any_command() -> None:
    got = stats_of(a_report(), elapsed_s=12.0, events_per_s=2000.0)
    assert (got.events_in, got.scored, got.duplicates, got.alerts) == (120_000, 119_700, 240, 512)
    assert got.recall["slow_leak"] == (45, 60)
    assert got.latency_ms_p50 == 42.123
    assert math.isnan(stats_of({}, 0.0, 0.0).latency_ms_p99)
