"""The live view of a running flow in the terminal, and the table that closes a demo.

Where there is no terminal the same is told in plain lines every few seconds. It only shows what it
is given: `Stats` a few times a second, alerts as they come. No step of the flow reads it.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dataflows.alerts.base import Alert, printable

__all__ = [
    "LiveView",
    "Stats",
    "approximated_text",
    "beyond_text",
    "estimated_text",
    "console_for",
    "final_table",
    "judgement_table",
    "shown_text",
    "stats_of",
]

REFRESH_S_MIN = 0.2
"""Shortest time between two frames; chosen: smooth to the eye. A frame costs about 10 ms."""

PLAIN_EVERY_S = 5.0
"""Time between two plain lines; chosen: a demo of a minute fits one screen."""

PLAIN_ALERTS_MAX = 3
"""Alerts shown with a plain line, the newest; the rest is counted. Chosen."""

ALERTS_KEPT_MAX = 100
"""Newest alerts kept for the screen. Chosen: more than a terminal is high."""

RATES_KEPT_MAX = 60
"""Samples of events/s in the spark line. Chosen: one a second of a demo."""

WIDE_COLUMNS = 120
"""From here on alerts and recall stand side by side. Chosen: both can be read."""

ALERT_LINES_MAX = 20
"""Most alerts on a tall screen. Chosen: what a person reads before they move on."""

RECALL_COLUMNS = 48
"""Width of the recall panel beside the alerts. Chosen: the longest attack name and a bar."""

ATTACK_COLUMNS_MAX = 24
"""Widest name of an attack before it is cut. Chosen: leaves room for the bar."""

NARROW_COLUMNS = 100
"""Below this the closing table shortens the names of detectors. Measured: six of them need 92."""

PLAIN_COLUMNS = 110
"""Width of the closing tables where there is no terminal. Chosen: six detectors fit."""

_SPARKS = "▁▂▃▄▅▆▇█"

_SEVERITY_STYLE = {
    "critical": "bold white on red",
    "error": "red",
    "warning": "yellow",
    "info": "cyan",
}


@dataclass(frozen=True, slots=True)
class Stats:
    """What the flow has done so far.

    Parameters
    ----------
    elapsed_s : wall time since the first round
    events_per_s : over the last moments, not since the start
    latency_ms_p50, latency_ms_p99 : from an event's due time to its alert's acknowledgement; NaN
        before the first alert
    recall : attack -> (events found, events sent), of the ensemble; empty where no truth is known
    event_time_us : how far the stream has come, microseconds UTC; 0 where it has not begun
    """

    elapsed_s: float
    events_in: int = 0
    scored: int = 0
    dead_lettered: int = 0
    duplicates: int = 0
    alerts: int = 0
    events_per_s: float = 0.0
    latency_ms_p50: float = math.nan
    latency_ms_p99: float = math.nan
    recall: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    event_time_us: int = 0


def stats_of(report: Mapping[str, Any], elapsed_s: float, events_per_s: float) -> Stats:
    """Stats from a report in the keys that every `--json` of waxwing uses."""
    latency = report.get("latency_ms", {})
    recall = {}
    for attack, row in report.get("by_attack", {}).items():
        events = int(row.get("events", 0))
        share = _number(row.get("ensemble", {}).get("recall"))
        if events and not math.isnan(share):
            recall[attack] = (round(share * events), events)
    return Stats(
        elapsed_s=elapsed_s,
        events_in=int(report.get("in", 0)),
        scored=int(report.get("scored", 0)),
        dead_lettered=int(report.get("dead_lettered", 0)),
        duplicates=int(report.get("duplicates", 0)),
        alerts=int(report.get("alerts", 0)),
        events_per_s=events_per_s,
        latency_ms_p50=_number(latency.get("p50")),
        latency_ms_p99=_number(latency.get("p99")),
        recall=recall,
        event_time_us=int(report.get("event_time_us", 0)),
    )


class LiveView:
    """A view that is told what happens and shows it; safe to be told from any thread.

    Parameters
    ----------
    total_seconds : how long the run will take; 0 where nobody knows
    out : where to; a terminal gets the live view, anything else plain lines
    clock : seconds, monotonic; injected by tests
    """

    def __init__(
        self,
        total_seconds: float,
        out: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_s = total_seconds
        self._out = sys.stdout if out is None else out
        self._clock = clock
        self._console = Console(file=self._out, highlight=False)
        self._lock = threading.Lock()
        self._alerts: deque[Alert] = deque(maxlen=ALERTS_KEPT_MAX)
        self._alerts_seen = 0
        self._alerts_told = 0
        self._rates: deque[float] = deque(maxlen=RATES_KEPT_MAX)
        self._stats = Stats(0.0)
        self._shown_at = -math.inf
        self._live: Live | None = None
        self._closed = False
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            # Its own refresh thread would draw while the flow is busy; we draw when we are told.
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                redirect_stdout=self._out is sys.stdout,
                redirect_stderr=True,
                vertical_overflow="crop",
            )
            self._live.start()

    def alert(self, alert: Alert) -> None:
        """Take in an alert; it is shown with the next frame."""
        with self._lock:
            self._alerts.append(alert)
            self._alerts_seen += 1

    def update(self, stats: Stats) -> None:
        """Take in the newest counts and draw, if the last frame is old enough."""
        with self._lock:
            now = self._clock()
            self._stats = stats
            every = REFRESH_S_MIN if self._live is not None else PLAIN_EVERY_S
            if self._closed or now - self._shown_at < every:
                return
            self._shown_at = now
            self._rates.append(stats.events_per_s)
            self._show()

    def close(self) -> None:
        """Draw the last state and leave the terminal as it was; a second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._show()
            if self._live is not None:
                self._live.stop()

    def __enter__(self) -> LiveView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self) -> None:
        """One frame, or one plain line with the newest alerts."""
        if self._live is not None:
            self._live.update(self.frame(self._console.width, self._console.height), refresh=True)
            return
        fresh = min(self._alerts_seen - self._alerts_told, len(self._alerts))
        for alert in list(self._alerts)[-min(fresh, PLAIN_ALERTS_MAX) :] if fresh else []:
            print(_alert_line(alert), file=self._out)
        hidden = self._alerts_seen - self._alerts_told - PLAIN_ALERTS_MAX
        if hidden > 0:
            print(f"  ... and {hidden:,} more alerts", file=self._out)
        self._alerts_told = self._alerts_seen
        print(_plain_line(self._stats, self._total_s), file=self._out, flush=True)

    def frame(self, width: int, height: int) -> RenderableType:
        """The whole screen of `width` columns and less than `height` lines, of 12 at the least."""
        head = _head(self._stats, self._total_s, self._rates, width)
        # 5 lines of head, and the cursor's own line below the frame.
        room = max(height - 6, 6)
        recall = self._stats.recall
        if not recall:
            return Group(head, _alerts_panel(self._alerts, self._alerts_seen, width, room - 2))
        if width >= WIDE_COLUMNS:
            lines = min(room - 2, max(len(recall), ALERT_LINES_MAX))
            body = Table.grid(expand=True)
            body.add_column(ratio=1)
            body.add_column(width=RECALL_COLUMNS)
            left = width - RECALL_COLUMNS
            body.add_row(
                _alerts_panel(self._alerts, self._alerts_seen, left, lines),
                _recall_panel(recall, lines, columns=1),
            )
            return Group(head, body)
        lines = min((len(recall) + 1) // 2, max(room - 7, 1))
        return Group(
            head,
            _alerts_panel(self._alerts, self._alerts_seen, width, max(room - lines - 4, 1)),
            _recall_panel(recall, lines, columns=2),
        )


def _number(value: Any) -> float:
    """A number of a report; NaN for the null that JSON has in its place."""
    return math.nan if value is None else float(value)


def _clock_text(seconds: float) -> str:
    """Seconds as mm:ss."""
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


def _ms(value: float) -> str:
    """A latency as a person says it."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"


def _event_time(time_us: int, form: str) -> str:
    """Event time, UTC; empty where the stream has not begun."""
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):{form}}" if time_us else ""


def _spark(rates: Sequence[float], width: int) -> str:
    """The newest rates as a line of blocks, against their highest."""
    newest = list(rates)[-width:]
    top = max(newest, default=0.0)
    if top <= 0:
        return ""
    return "".join(_SPARKS[round((len(_SPARKS) - 1) * max(r, 0.0) / top)] for r in newest)


def _share_style(share: float) -> str:
    """Green, yellow or red: a share of 0.9, of a half, below."""
    if math.isnan(share):
        return "dim"
    return "green" if share >= 0.9 else "yellow" if share >= 0.5 else "red"


def _head(stats: Stats, total_s: float, rates: Sequence[float], width: int) -> Panel:
    """Time, speed, latency and where every event went."""
    clock = Text(_clock_text(stats.elapsed_s), style="bold")
    if total_s:
        clock.append(f" of {_clock_text(total_s)}", style="dim")
    when = Text(_event_time(stats.event_time_us, "%a %d %b %Y %H:%M") or "starting", style="cyan")
    first = Table.grid(expand=True, padding=(0, 2))
    first.add_column(width=len(clock))
    first.add_column(ratio=1)
    first.add_column(width=len(when))
    done = min(stats.elapsed_s, total_s) if total_s else 0.0
    first.add_row(
        clock, ProgressBar(total=total_s or 1.0, completed=done, complete_style="green"), when
    )
    speed = Text.assemble(
        (f"{stats.events_per_s:>7,.0f}", "bold"), " events/s ",
        (_spark(rates, max(width - 64, 8)), "green"),
        "   p50 ", (_ms(stats.latency_ms_p50), "bold"),
        "   p99 ", (_ms(stats.latency_ms_p99), "bold"),
        "   ", (f"{stats.alerts:,}", "bold"), " alerts",
        no_wrap=True, overflow="ellipsis",
    )  # fmt: skip
    pending = stats.events_in - stats.scored - stats.duplicates - stats.dead_lettered
    counts = Text.assemble(
        (f"{stats.events_in:>7,}", "bold"), f" in = {stats.scored:,} scored",
        f" + {stats.duplicates:,} duplicates",
        (f" + {stats.dead_lettered:,} dead-lettered", "red" if stats.dead_lettered else ""),
        f" + {pending:,} pending",
        no_wrap=True, overflow="ellipsis",
    )  # fmt: skip
    return Panel(
        Group(first, speed, counts),
        title="[bold]waxwing[/bold]",
        title_align="left",
        border_style="blue",
        box=box.ROUNDED,
    )


def _alerts_panel(alerts: Sequence[Alert], seen: int, width: int, lines: int) -> Panel:
    """The newest alerts, the newest last, one line each."""
    table = Table.grid(padding=(0, 1))
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", width=max(width - 19, 10))
    for alert in list(alerts)[-lines:]:
        style = _SEVERITY_STYLE.get(alert.severity, "yellow")
        said = shown_text(alert.summary)
        said.stylize("bold", 0, max(said.plain.find(":"), 0))
        when = _event_time(alert.time_us, "%H:%M:%S")
        votes = f"{sum(v.vote for v in alert.votes)}/{len(alert.votes)}"
        table.add_row(Text(when, "dim"), Text("\u25cf", style), Text(votes, "dim"), said)
    for _ in range(lines - min(len(alerts), lines)):
        table.add_row("", "", "", "")
    title = f"alerts ({seen:,})  [dim]event time, severity, votes, what and why[/dim]"
    return Panel(table, title=title, title_align="left", border_style="blue", box=box.ROUNDED)


def _recall_panel(recall: Mapping[str, tuple[int, int]], lines: int, columns: int) -> Panel:
    """Attack events found so far, a bar for each attack."""
    table = Table.grid(padding=(0, 1), expand=True)
    names = max((len(printable(attack)) for attack in recall), default=0)
    for _ in range(columns):
        table.add_column(no_wrap=True, overflow="ellipsis", width=min(names, ATTACK_COLUMNS_MAX))
        table.add_column(ratio=1, min_width=4)
        table.add_column(justify="right", no_wrap=True, min_width=8)
    rows = list(recall.items())[: lines * columns]
    for i in range(min(lines, len(rows))):
        cells: list[RenderableType] = []
        for attack, (found, total) in rows[i::lines]:
            share = found / total if total else math.nan
            style = _share_style(share)
            bar = ProgressBar(
                total=max(total, 1), completed=found, complete_style=style, finished_style=style
            )
            name = shown_text(attack.replace("_", " "))
            cells += [name, bar, Text(f"{found:,}/{total:,}", style)]
        table.add_row(*cells)
    found_all = sum(found for found, _ in recall.values())
    total_all = sum(total for _, total in recall.values())
    hidden = len(recall) - len(rows)
    more = f", {hidden} attacks below" if hidden > 0 else ""
    title = f"found so far  [dim]{found_all:,} of {total_all:,} attack events{more}[/dim]"
    return Panel(table, title=title, title_align="left", border_style="blue", box=box.ROUNDED)


def _plain_line(stats: Stats, total_s: float) -> str:
    """One line that says it all."""
    of = f" of {total_s:.0f}" if total_s else ""
    parts = [
        f"[{stats.elapsed_s:.0f}{of} s] {stats.events_per_s:,.0f} events/s",
        f"p50 {_ms(stats.latency_ms_p50)}",
        f"p99 {_ms(stats.latency_ms_p99)}",
        f"{stats.events_in:,} in",
        f"{stats.alerts:,} alerts",
    ]
    if stats.dead_lettered:
        parts.append(f"{stats.dead_lettered:,} dead-lettered")
    if stats.recall:
        found = sum(found for found, _ in stats.recall.values())
        total = sum(total for _, total in stats.recall.values())
        parts.append(f"found {found:,} of {total:,} attack events")
    return ", ".join(parts)


def _alert_line(alert: Alert) -> str:
    """One alert as a plain line."""
    when = _event_time(alert.time_us, "%H:%M:%S")
    votes = f"{sum(v.vote for v in alert.votes)}/{len(alert.votes)} votes"
    return f"  {when} {printable(alert.severity)} {printable(alert.summary)} ({votes})"


NEXT_STEPS: tuple[tuple[str, str], ...] = (
    ("waxwing demo --seed 11 --json out.json", "other traffic, figures as JSON"),
    ("waxwing run --config waxwing.toml", "your own events, Kafka or files"),
    ("waxwing check", "every setting and its source"),
    ("waxwing bench pipeline --rate 50000", "what this machine carries"),
)
"""What the demo proposes at its end where it is not given better."""


def console_for(stream: IO[str], width: int = PLAIN_COLUMNS) -> Console:
    """What prints tables to a stream: as wide as the terminal, `width` where it is none."""
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        # A file or a pipe has no width: tables are as wide as they need to be.
        console = Console(file=stream, highlight=False, width=width)
    return console


def shown_text(text: str, style: str = "") -> Text:
    """Text of an event, a file or a model as it stands: no markup, and no escape of the terminal.

    >>> shown_text("[red]card \\x1b[2J").plain
    '[red]card \\\\x1b[2J'
    """
    return Text(printable(text), style)


def final_table(
    report: Mapping[str, Any],
    out: IO[str] | None = None,
    next_steps: Sequence[tuple[str, str]] = NEXT_STEPS,
) -> None:
    """Print what came of a run: counts, latency, each detector, each attack, what to try next.

    Parameters
    ----------
    report : the structure of `waxwing demo --json`
    next_steps : (command, what it shows)
    """
    console = console_for(sys.stdout if out is None else out)
    console.print()
    console.print(_counts_text(report))
    console.print(_latency_text(report))
    if report.get("corrected") or report.get("corrected_unchecked"):
        console.print(_corrected_text(report))
    if report.get("late_beyond") or report.get("late_forgotten"):
        console.print(Text(beyond_text(report), "yellow"))
    if report.get("approximated"):
        console.print(approximated_text(report))
    if report.get("estimated"):
        console.print(estimated_text(report))
    _print_judgement(console, report)
    if next_steps:
        steps = Table.grid(padding=(0, 2))
        for wrap in (True, True, False):
            steps.add_column(no_wrap=wrap)
        for command, what in next_steps:
            steps.add_row("", Text(command, "cyan"), what)
        console.print()
        console.print("[bold]What to try next[/bold]")
        console.print(steps)


def judgement_table(report: Mapping[str, Any], out: IO[str] | None = None) -> None:
    """Print how well each detector and the ensemble did, and what they found of each attack.

    Parameters
    ----------
    report : `detectors` and `by_attack` of `waxwing evaluate --json`
    """
    _print_judgement(console_for(sys.stdout if out is None else out), report)


def _print_judgement(console: Console, report: Mapping[str, Any]) -> None:
    """The two tables of a report where the truth is known."""
    names = _detector_order(report)
    if names:
        console.print()
        console.print(_detectors_table(report["detectors"], names))
    if report.get("by_attack"):
        console.print()
        console.print(_attacks_table(report["by_attack"], names, console.width < NARROW_COLUMNS))
    silence = report.get("silence", {})
    if silence.get("by_attack"):
        console.print()
        console.print(_silence_table(silence["by_attack"]))
        console.print(
            f"{silence['absences']:,} absences, {silence['genuine']:,} of them genuine;"
            f" {silence['false_alarms']:,} of these became alerts"
        )


def _detector_order(report: Mapping[str, Any]) -> list[str]:
    """The detectors as they were set, the ensemble last."""
    names = [name for name in report.get("detectors", {}) if name != "ensemble"]
    return [*names, "ensemble"] if "ensemble" in report.get("detectors", {}) else names


def _counts_text(report: Mapping[str, Any]) -> Text:
    """Where every event went."""
    return Text.assemble(
        (f"{report.get('in', 0):,}", "bold"), " in = ",
        (f"{report.get('scored', 0):,}", "bold"), " scored + ",
        f"{report.get('dead_lettered', 0):,} dead-lettered + ",
        f"{report.get('duplicates', 0):,} duplicates + ",
        f"{report.get('pending', 0):,} pending",
    )  # fmt: skip


def _corrected_text(report: Mapping[str, Any]) -> Text:
    """What late events have changed of rows scored before."""
    return Text.assemble(
        f"late events changed {report.get('corrected', 0):,} scored rows, and ",
        (f"{report.get('flipped', 0):,}", "bold"), " votes among them; ",
        f"{report.get('corrected_unchecked', 0):,} more could not be checked",
    )  # fmt: skip


def beyond_text(report: Mapping[str, Any]) -> str:
    """How many rows are counted where they do not belong, or have lost what was known."""
    said = []
    if report.get("late_beyond"):
        said.append(
            f"{report['late_beyond']:,} rows of entities came so far behind others that windows"
            " count them at another time than their own (late_beyond)"
        )
    if report.get("late_forgotten"):
        said.append(
            f"{report['late_forgotten']:,} late rows came after their entity had been forgotten,"
            " which it was not at their time (late_forgotten)"
        )
    return "; ".join(said)


def approximated_text(report: Mapping[str, Any]) -> str:
    """How many windows panes have made too long, and by how much."""
    return (
        f"{report['approximated']:,} windows of hot entities were too long by less than 10 s, of at"
        f" most {report['approximated_excess_max']:,} events (exact_events_max)"
    )


def estimated_text(report: Mapping[str, Any]) -> str:
    """How many counts of different others are estimates, and from how small a sample."""
    return (
        f"{report['estimated']:,} rows of entities that meet very many others have estimates of how"
        f" many, from at least one pair in {report['estimated_one_in_max']:,} (distinct_exact_max)"
    )


def _latency_text(report: Mapping[str, Any]) -> Text:
    """How many alerts, and how long they took, wall time."""
    latency = report.get("latency_ms", {})
    return Text.assemble(
        (f"{report.get('alerts', 0):,}", "bold"), " alerts; from event to acknowledged alert p50 ",
        (_ms(_number(latency.get("p50"))), "bold"),
        ", p99 ", (_ms(_number(latency.get("p99"))), "bold"),
        ", p99.9 ", (_ms(_number(latency.get("p999"))), "bold"),
    )  # fmt: skip


def _share(value: Any, places: int, good: bool | None = None) -> Text:
    """A share as per cent, coloured by `_share_style` or as told."""
    share = _number(value)
    if math.isnan(share):
        return Text("-", "dim")
    style = _share_style(share) if good is None else "green" if good else "red"
    return Text(f"{share * 100:.{places}f} %", style)


FPR_GOAL = 0.003
"""False positive rate the ensemble keeps within. Origin: the project's goal, 0.3 % of events."""


def _detectors_table(detectors: Mapping[str, Any], names: Sequence[str]) -> Table:
    """Recall, precision and false positive rate of each detector."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("detector")
    for title in ("recall", "precision", "false positives"):
        table.add_column(title, justify="right")
    for name in names:
        row = detectors[name]
        fpr = _number(row.get("fpr"))
        last = name == names[-1]
        table.add_row(
            shown_text(name.replace("_", " "), "bold" if last and name == "ensemble" else ""),
            _share(row.get("recall"), 1),
            _share(row.get("precision"), 1),
            _share(row.get("fpr"), 3, good=fpr <= FPR_GOAL),
        )
    return table


def _attacks_table(by_attack: Mapping[str, Any], names: Sequence[str], narrow: bool) -> Table:
    """Recall of each detector on each attack, per cent."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("recall by attack, %", no_wrap=True)
    table.add_column("sent", justify="right")
    for name in names:
        words = printable(name).split("_")
        title = Text(words[-1] if narrow else "\n".join(words))
        table.add_column(title, justify="right")
    for attack, row in by_attack.items():
        cells = [_per_cent(row.get(name, {}).get("recall")) for name in names]
        table.add_row(shown_text(attack.replace("_", " ")), f"{row.get('events', 0):,}", *cells)
    return table


def _silence_table(by_attack: Mapping[str, Any]) -> Table:
    """Silences found, and how long it took, event time."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("silences", no_wrap=True)
    for title in ("sent", "found", "entities", "found", "first alert after"):
        table.add_column(title, justify="right")
    for attack, row in by_attack.items():
        delay_s = row.get("delay_s_p50")
        table.add_row(
            shown_text(attack.replace("_", " ")),
            f"{row['campaigns']:,}",
            _share(row["recall"], 0),
            f"{row['entities']:,}",
            _share(row["entity_recall"], 0),
            "-" if delay_s is None else f"{delay_s / 60.0:.1f} min",
        )
    return table


def _per_cent(value: Any) -> Text:
    """A share in a column of per cents."""
    share = _number(value)
    return Text("-" if math.isnan(share) else f"{share * 100:.0f}", _share_style(share))
