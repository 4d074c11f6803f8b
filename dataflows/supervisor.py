"""Several processes of one flow, started, watched and stopped together: `waxwing run --workers N`.

They are a cluster of Bytewax on the loopback of this machine. Where one dies the others cannot go
on: they are ended, and all start again at the manifest, after a pause that grows while nothing is
gained. A fault that waxwing names (a setting, a full disk) would only come again: it ends all and
is told once. A stop is passed on; each ends with its last round.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataflows.alerts.base import printable_lines
from dataflows.poison import POISON_FILE
from dataflows.state.lease import give_back_of
from dataflows.state.manifest import read_manifest
from features.errors import ConfigError, StateError, WaxwingError

__all__ = ["Interrupted", "Supervisor", "merged"]

_COLOUR = re.compile("(\x1b\\[[0-9;]*m)")
"""What turns a colour of a terminal on or off."""

HOST = "127.0.0.1"
"""Where the processes meet. What a peer sends is unpickled, so nobody else may reach the ports."""

WORKERS_MAX = 64
"""Most processes; more have no group to work on. Chosen: as `groups` at its most useful."""

DEATHS_MAX = 5
"""Deaths in a row without a new manifest after which it is given up. Chosen: half a minute."""

BACKOFF_S = (0.5, 15.0)
"""Pause before the first start after a death, and the longest; doubled each time. Chosen."""

STOP_S_MAX = 90.0
"""Longest wait for a clean end: the last round, its snapshot, 30 s for a store that is away."""

START_STOP_S = 20.0
"""Longest wait for processes that a stop meets before they have met: what they load and restore.
Chosen; whoever waits for the others already is ended at once."""

WORDS_MAX = 200
"""Lines kept of what a process says that are no sentences of ours. Chosen: two backtraces."""

SAID_MAX = 10_000
"""Sentences remembered, so that each is passed on once. Chosen."""

HOLD_S = 2.0
"""How long such lines wait before they are shown: the peers of a dead process panic within that
time, and only its own words matter. Chosen."""

HEAR_S_MAX = 10.0
"""Longest wait for how a process ended that is over: it is known at once where we have the core.
Chosen."""

_LOOK_S = 0.1
"""How often what is due is looked for while nothing happens. Chosen."""

_OURS = "waxwing: "

_MEETING = re.compile(r"worker \d+:\terror connecting to worker \d+: .* retrying$")
"""What Bytewax prints of each try to meet a process that is not there yet."""


class Interrupted(WaxwingError):
    """A second signal ended everything at once; `status` is the program's exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended at once by a second {signal.Signals(number).name}")
        self.status = 128 + number


@dataclass(slots=True, eq=False)
class _Worker:
    """One process and what is known of it."""

    number: int
    process: subprocess.Popen[str]
    ready: bool = False
    again: bool = False
    """It ended so that the next start finds the event that made a step raise."""
    report: dict[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    words: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=WORDS_MAX))
    last: str = ""
    ended: float | None = None
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether it has ended in another way than it should."""
        return self.ended is not None and self.process.returncode != 0


class Supervisor:
    """Starts the processes of one flow and answers for them.

    Parameters
    ----------
    options : of `waxwing run`, as each process is to take them
    workers : how many processes
    state_dir : where their manifest lies, which tells whether a start has gained anything
    say : told the sentences
    pause_s : multiplies the pauses after deaths
    """

    def __init__(
        self,
        options: Sequence[str],
        workers: int,
        state_dir: Path,
        say: Callable[[str], None],
        pause_s: float = 1.0,
    ) -> None:
        self._options, self._count = list(options), workers
        self._state_dir, self._say, self._scale = state_dir, say, pause_s
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._asked: list[int] = []
        self._said: dict[str, int] = {}

    def run(self) -> dict[str, Any]:
        """Run until the source ends or a signal; the report of all processes together.

        Empty where a stop came before the processes had met.

        Raises
        ------
        ConfigError : the faults that a process named
        StateError : they die again and again, or one died while it stopped
        Interrupted : a second signal
        """
        with self._signals():
            deaths = 0
            while True:
                before = self._gained()
                workers = self._start()
                try:
                    died = self._watch(workers)
                finally:
                    self._end(workers)
                if died is None:
                    # Those that a stop met before they had met may have none.
                    reports = [worker.report for worker in workers if worker.report]
                    return merged(reports) if reports else {}
                deaths = 1 if self._gained() > before else deaths + 1
                pause_s = self._why(workers, died, deaths)
                if self._rest(pause_s):
                    return {}

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Hear SIGTERM and SIGINT as events while it lasts."""

        def heard(number: int, _frame: Any) -> None:
            self._events.put(("signal", number))

        before = {n: signal.signal(n, heard) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _round(self) -> int:
        """The round up to which all is durable, 0 where nobody knows."""
        with contextlib.suppress(StateError):
            manifest = read_manifest(self._state_dir)
            return 0 if manifest is None else manifest.round
        return 0

    def _gained(self) -> tuple[int, int]:
        """How far the flow has come: the durable round, bytes of notes on events left out."""
        notes = self._state_dir.glob(f"journal/*/{POISON_FILE}")
        return self._round(), sum(path.stat().st_size for path in notes)

    def _start(self) -> list[_Worker]:
        """Start all processes."""
        self._said = {}
        addresses = ";".join(f"{HOST}:{port}" for port in _free_ports(self._count))
        return [self._start_one(number, addresses) for number in range(self._count)]

    def _start_one(self, number: int, addresses: str) -> _Worker:
        """Start one process, and the threads that hear it."""
        reading, writing = os.pipe()
        command = [
            sys.executable, *python_options(), "-m", "dataflows.worker", "-i", str(number),
            "-a", addresses, "--status", str(writing), "--", *self._options,
        ]  # fmt: skip
        # In a session of its own, so that Ctrl-C reaches it only by us, once.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(writing,),
            start_new_session=True,
            env=_environment(os.environ, number),
            text=True,
            errors="replace",
        )
        os.close(writing)
        worker = _Worker(number, process)
        hears = (lambda: _pass_on(worker), lambda: _keep(worker))
        for target in (*hears, lambda: self._hear_status(worker, reading)):
            worker.threads.append(threading.Thread(target=target, daemon=True))
        for thread in worker.threads:
            thread.start()
        threading.Thread(target=self._await, args=(worker,), daemon=True).start()
        return worker

    def _hear_status(self, worker: _Worker, reading: int) -> None:
        """Take what a process tells of itself, and pass on what it says: sentences only once."""
        with os.fdopen(reading, encoding="utf-8") as file:
            for line in file:
                told = json.loads(line)
                worker.faults = tuple(told.get("faults", worker.faults))
                worker.report = told.get("report", worker.report)
                worker.ready = told.get("ready", worker.ready)
                worker.again = told.get("again", worker.again)
                for text in told.get("said", ()):
                    worker.last = text.strip() or worker.last
                    if not text.startswith(_OURS) or self._new(text, worker):
                        _print(text)

    def _new(self, text: str, worker: _Worker) -> bool:
        """Whether no other process has said this since the start."""
        if len(self._said) >= SAID_MAX:
            self._said.clear()
        return self._said.setdefault(text, worker.number) == worker.number

    def _await(self, worker: _Worker) -> None:
        """Say when a process has ended, and all it had to say has been heard."""
        worker.process.wait()
        ended = time.monotonic()
        for thread in worker.threads:
            thread.join(1.0)
        worker.ended = ended
        self._events.put(("ended", worker))

    def _watch(self, workers: list[_Worker]) -> _Worker | None:
        """Wait for the end; the process that died, None where all have ended as they should.

        Raises
        ------
        ConfigError, StateError, Interrupted : see `run`
        """
        give_up = None
        while True:
            with contextlib.suppress(queue.Empty):
                kind, what = self._events.get(timeout=_LOOK_S)
                if kind == "signal" and self._ask(workers, what):
                    return None
                if kind == "ended" and what in workers and what.failed:
                    _hear_of_the_dead(workers)
                    return _cause(workers)
            if all(worker.ended is not None for worker in workers):
                return _cause(workers) if any(worker.failed for worker in workers) else None
            if self._asked and give_up is None:
                give_up = time.monotonic() + STOP_S_MAX
            if give_up is not None and time.monotonic() > give_up:
                raise StateError(
                    f"run: the processes did not end within {STOP_S_MAX:.0f} s of the stop and were"
                    " killed; the next start goes on from the last manifest"
                )
            self._show(workers, time.monotonic() - HOLD_S)

    def _ask(self, workers: list[_Worker], number: int) -> bool:
        """Pass a stop on; whether all is over, since they have not met yet and cut no round.

        Raises
        ------
        Interrupted : it was the second
        """
        self._asked.append(number)
        if len(self._asked) > 1:
            raise Interrupted(number)
        met = all(worker.ready for worker in workers)
        for worker in workers:
            worker.process.send_signal(signal.SIGTERM)
        if not met:
            self._let_start(workers)
        return not met

    def _let_start(self, workers: list[_Worker]) -> None:
        """Give those who have not met yet the time to give back what they have claimed.

        Raises
        ------
        Interrupted : a second signal
        """
        until = time.monotonic() + START_STOP_S
        while time.monotonic() < until:
            if all(worker.ended is not None or worker.ready for worker in workers):
                return
            with contextlib.suppress(queue.Empty):
                kind, what = self._events.get(timeout=_LOOK_S)
                if kind == "signal":
                    raise Interrupted(what)

    def _show(self, workers: list[_Worker], until: float) -> None:
        """Pass on what has waited since `until`: a warning of a library, of one that lives on."""
        for worker in workers:
            while worker.words and worker.words[0][0] <= until:
                _print(f"[process {worker.number}] {worker.words.popleft()[1]}")

    def _end(self, workers: list[_Worker]) -> None:
        """Leave no process behind."""
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.kill()
        for worker in workers:
            worker.process.wait()
            for thread in worker.threads:
                thread.join(1.0)
            for pipe in (worker.process.stdin, worker.process.stdout, worker.process.stderr):
                if pipe is not None:
                    pipe.close()
        give_back_of(self._state_dir, [worker.process.pid for worker in workers])

    def _why(self, workers: list[_Worker], died: _Worker, deaths: int) -> float:
        """Say why one died; the pause before all start again.

        Raises
        ------
        ConfigError : it named its faults, which would only come again
        StateError : they died too often, or while they stopped
        """
        if died.faults:
            raise ConfigError(died.faults)
        self._show([died], time.monotonic())
        how = _how(died)
        if self._asked:
            raise StateError(
                f"run: {how} while it stopped; the next start goes on from the last manifest"
            )
        if deaths > DEATHS_MAX:
            raise StateError(
                f"run: {how}; given up, since {deaths} starts in a row ended so without a new"
                f" manifest, the last at round {self._round()}; mend what it says and start again"
            )
        pause_s: float = min(BACKOFF_S[0] * 2 ** (deaths - 1), BACKOFF_S[1]) * self._scale
        again = "all start again" if len(workers) > 1 else "it starts again"
        self._say(f"{how}; {again} in {pause_s:g} s")
        return pause_s

    def _rest(self, pause_s: float) -> bool:
        """Wait; whether a stop was asked for meanwhile."""
        until = time.monotonic() + pause_s
        while (left_s := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                if self._events.get(timeout=left_s)[0] == "signal":
                    return True
        return False


def _hear_of_the_dead(workers: list[_Worker]) -> None:
    """Wait until it is known how each one ended that has: who died first may be heard of last."""
    until = time.monotonic() + HEAR_S_MAX
    while time.monotonic() < until:
        if all(worker.ended is not None or not _has_ended(worker.process) for worker in workers):
            return
        time.sleep(0.01)


def _has_ended(process: subprocess.Popen[str]) -> bool:
    """Whether a process of ours is over, whether or not that was heard of."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # its end has been heard of
        return True


def _cause(workers: list[_Worker]) -> _Worker:
    """The process that died first; one that was killed, named its faults or left word of an event
    before those that only lost it and died at nearly the same time."""
    failed = [worker for worker in workers if worker.failed]
    first = min(worker.ended or 0.0 for worker in failed)
    near = [worker for worker in failed if (worker.ended or 0.0) - first < HOLD_S]
    return min(
        near,
        key=lambda w: (
            not w.faults,
            not w.again,
            (w.process.returncode or 0) > 0,
            w.ended,
            w.number,
        ),
    )


def _how(died: _Worker) -> str:
    """How a process ended, with the last thing it said."""
    code = died.process.returncode or 0
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += " (by hand, or memory ran out)"
    else:
        how = f"ended with status {code}"
    last = f"; its last words: {died.last.removeprefix(_OURS)}" if died.last else ""
    return f"process {died.number} (id {died.process.pid}) {how}{last}"


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def _environment(environ: Mapping[str, str], number: int) -> dict[str, str]:
    """The environment of one process: nothing that names another cluster, a web port of its own."""
    named = ("BYTEWAX_PROCESS_ID", "BYTEWAX_ADDRESSES", "BYTEWAX_HOSTFILE_PATH", "BYTEWAX_POD_NAME")
    kept = {name: value for name, value in environ.items() if name not in named}
    if "BYTEWAX_DATAFLOW_API_ENABLED" in kept:
        port = int(kept.get("BYTEWAX_DATAFLOW_API_PORT", "3030"))
        kept["BYTEWAX_DATAFLOW_API_PORT"] = str(port + number)
    if sys.stderr.isatty() and "NO_COLOR" not in kept:
        kept["FORCE_COLOR"] = "1"
    return kept | {"PYTHONUNBUFFERED": "1"}


def python_options() -> list[str]:
    """The option that keeps `python -m` from looking for our packages in the working folder first,
    where a user's `models.py` may lie; none where the working folder is where ours are."""
    return [] if Path.cwd() == Path(__file__).resolve().parents[1] else ["-P"]


def _keep(worker: _Worker) -> None:
    """Keep what comes past Python: panics of the engine, warnings of libraries."""
    if worker.process.stderr is not None:
        for line in worker.process.stderr:
            text = line.rstrip("\n")
            worker.last = text.strip() or worker.last
            worker.words.append((time.monotonic(), text))


def _pass_on(worker: _Worker) -> None:
    """Let through what a process prints, but for noise of Bytewax."""
    if worker.process.stdout is not None:
        for line in worker.process.stdout:
            if not _MEETING.match(line):
                sys.stdout.write(line)
                sys.stdout.flush()


def _print(text: str) -> None:
    """A line as a process has written it; a terminal has its colours, and nothing else to obey."""
    parts = _COLOUR.split(text) if sys.stderr.isatty() else [text]
    shown = (part if i % 2 else printable_lines(part) for i, part in enumerate(parts))
    print("".join(shown), file=sys.stderr, flush=True)


_SUMS = (
    *("cpu_s", "rss_mb_max", "expired", "late_beyond", "late_forgotten", "labels_unknown"),
    *("approximated", "estimated"),
)
_LARGEST = ("approximated_excess_max", "estimated_one_in_max")
"""What each process counts for itself."""


def merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report of those of the processes: who delivers the rounds has counts and latency.

    >>> merged([{"rounds": 0, "cpu_s": 1.0}, {"rounds": 9, "cpu_s": 2.0, "in": 5}])
    {'rounds': 9, 'cpu_s': 3.0, 'in': 5}
    """
    delivers = max(range(len(reports)), key=lambda i: int(reports[i].get("rounds", 0)))
    found = dict(reports[delivers])
    for name in _SUMS:
        if name in found:
            found[name] = round(sum(report.get(name, 0) for report in reports), 3)
    for name in _LARGEST:
        if name in found:
            found[name] = max(report.get(name, 0) for report in reports)
    if "starts_empty" in found:
        names = (name for report in reports for name in report.get("starts_empty", ()))
        found["starts_empty"] = list(dict.fromkeys(names))
    if "currencies" in found:
        found["currencies"] = {
            what: _added(report["currencies"][what] for report in reports)
            for what in found["currencies"]
        }
    for name in ("missed_votes", "asked_elsewhere", "in_history"):
        if name in found:
            found[name] = _added(report.get(name, {}) for report in reports)
    return found


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts by name, of all processes."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
