"""Alerts for the eye: one line each on standard error, and never more than one can read.

Standard error, because standard output is where `--json -` writes. What stands in an event was
written by somebody else, so nothing of it reaches the terminal that the terminal would obey.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import IO, ClassVar

from rich.console import Console
from rich.text import Text

from dataflows.alerts.base import Alert, moment_of, printable
from dataflows.settings import Settings

__all__ = ["LINES_S_MAX", "Sink"]

LINES_S_MAX = 20
"""Most alerts shown in a second; the rest is counted. Chosen: more than anybody reads."""

LINE_CHARACTERS_MAX = 400
"""Longer lines are cut. Chosen: a handful of rows in a terminal."""

_STYLES = {"critical": "bold white on red", "error": "red", "warning": "yellow", "info": "cyan"}


class Sink:
    """Writes lines; coloured where the output is a terminal.

    Parameters
    ----------
    out : where to; standard error by default
    clock : seconds, monotonic
    """

    name: ClassVar[str] = "console"

    def __init__(
        self,
        settings: Settings,
        out: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = Console(
            file=sys.stderr if out is None else out, highlight=False, markup=False, emoji=False
        )
        self._clock = clock
        self._second = -1
        self._shown = 0
        self._hidden = 0
        self._gone = False

    def write(self, alerts: list[Alert]) -> None:
        """Show what there is room for in this second, count the rest."""
        second = int(self._clock())
        if second != self._second:
            self._tell_hidden()
            self._second, self._shown = second, 0
        room = max(0, LINES_S_MAX - self._shown)
        for alert in alerts[:room]:
            self._line(line_of(alert))
        self._shown += min(room, len(alerts))
        self._hidden += max(0, len(alerts) - room)

    def close(self) -> None:
        """Tell how many more there were."""
        self._tell_hidden()

    def _tell_hidden(self) -> None:
        """Say how many alerts were not shown, if any."""
        if self._hidden:
            self._line(Text(f"... and {self._hidden:,} more alerts", style="dim"))
            self._hidden = 0

    def _line(self, text: Text) -> None:
        """Print, as long as there is somebody to print for."""
        if self._gone:
            return
        try:
            self._console.print(text, soft_wrap=True)
        except (OSError, ValueError):
            # The terminal was closed: no reason to stop detecting.
            self._gone = True


def line_of(alert: Alert) -> Text:
    """One alert as one line: event time, severity, votes, what and why."""
    when = moment_of(alert.time_us)
    votes = sum(vote.vote for vote in alert.votes)
    said = printable(alert.summary)
    if len(said) > LINE_CHARACTERS_MAX:
        said = said[: LINE_CHARACTERS_MAX - 3] + "..."
    severity = printable(alert.severity)
    return Text.assemble(
        f"{when:%Y-%m-%d %H:%M:%S} " if when else f"{alert.time_us} us ",
        (f"{severity:<8}", _STYLES.get(alert.severity, "")),
        f" {votes}/{len(alert.votes)} {said}",
    )
