"""One process of a flow of several: what `waxwing run --workers N` starts N times.

It speaks to the one who watches it (`dataflows/supervisor.py`) through a pipe, a line of JSON each:
what it says, that it is ready to meet the others, the faults that ended it, its report. Only what
comes past Python (a panic of the engine) goes to its standard error. It ends with that one: its
standard input is a pipe that nobody writes to, and whose end means that the other is gone.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

from dataflows.entry import EXIT_FAULT, faults_of, tell_warnings
from dataflows.guard import StepFault
from dataflows.report import plain
from features.errors import WaxwingError

__all__ = ["end_with_parent", "main"]

EXIT_ORPHAN = 143
"""The one who watched us is gone; as shells report a SIGTERM."""


class _Status:
    """The pipe to whoever watches us."""

    def __init__(self, handle: int) -> None:
        self._file = os.fdopen(handle, "w", encoding="utf-8")
        self._lock = threading.Lock()

    def tell(self, **what: Any) -> None:
        """Send a line."""
        line = json.dumps(plain(what), allow_nan=False, default=float) + "\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()

    def end_with(self, error: WaxwingError) -> None:
        """Tell a fault that a step met, and end: the others would wait for us for ever.

        What some event has brought to light is no fault that would only come again: the next start
        finds the event (`dataflows.quarantine`).
        """
        if isinstance(error, StepFault):
            self.tell(said=[f"waxwing: {text}" for text in faults_of(error)], again=True)
        else:
            self.tell(faults=faults_of(error))
        os._exit(EXIT_FAULT)


class _Stderr(io.TextIOBase):
    """What Python's standard error is here: whole lines, told."""

    def __init__(self, status: _Status) -> None:
        self._status = status
        self._line = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        if lines:
            self._status.tell(said=lines)
        return len(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one process of the flow; 2 for a fault, which is told and not printed."""
    parser = argparse.ArgumentParser(prog="python -m dataflows.worker", description=__doc__)
    # The names of Bytewax's own command: `dataflows.state.lock.process_id` looks for them.
    parser.add_argument("-i", "--process-id", type=int, required=True)
    parser.add_argument("-a", "--addresses", required=True, help="host:port;host:port;...")
    parser.add_argument("--status", type=int, required=True, help="handle of the pipe")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="-- and the options of waxwing run")
    args = parser.parse_args(argv)
    status = _Status(args.status)
    threading.Thread(target=end_with_parent, name="waxwing-parent", daemon=True).start()
    sys.stderr = _Stderr(status)
    tell_warnings()
    try:
        report = _run(args, status)
    except WaxwingError as error:
        status.tell(faults=faults_of(error))
        return EXIT_FAULT
    except BaseException:
        # A bug, or another process that went away: whoever watches knows which.
        traceback.print_exc(file=sys.__stderr__)
        return 1
    status.tell(report=report)
    return 0


def _run(args: argparse.Namespace, status: _Status) -> dict[str, Any]:
    """Run the flow to its end; what this process has to report."""
    from dataflows.cli.main import parser
    from dataflows.cli.run import settings_of, truth_names_of
    from dataflows.observe.telemetry import Telemetry
    from dataflows.runner import Peers, run_flow, usage

    settings = settings_of(parser(["run"]).parse_args(["run", *args.rest[1:]]))
    telemetry = Telemetry(truth_names=truth_names_of(settings))
    peers = Peers(
        args.process_id,
        args.addresses.split(";"),
        lambda: status.tell(ready=True),
        status.end_with,
    )
    run_flow(settings, telemetry, peers=peers)
    return telemetry.report() | usage()


def end_with_parent() -> None:
    """End at once when nobody watches any more, as a crash would: the next start goes on."""
    while os.read(0, 1):
        pass
    os._exit(EXIT_ORPHAN)


if __name__ == "__main__":
    sys.exit(main())
