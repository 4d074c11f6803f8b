"""The notify flow: reads the alert log and tells people, at the pace at which they can be told.

    python -m bytewax.run -s 0 "dataflows.notify:build('waxwing.toml')"

Detection never waits for a pager: it writes a log, and this flow follows the log in a process of
its own. Its place in the log is its own too (`state_dir/notify/position.json`) and moves on only
over alerts that are done with, so that a crash can repeat some and lose none.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from dataflows.alerts import open_sinks
from dataflows.alerts.base import Alert, AlertSink, PatientSink
from dataflows.alerts.jsonl import FILE_NAME
from dataflows.context import StopSwitch, stop_on_signals
from dataflows.entry import epoch_a_round, told_as_sentences
from dataflows.guard import Guard
from dataflows.settings import Settings, load
from dataflows.sources.alert_log import AlertReader, FileTail, Lines, Place, TopicTail
from dataflows.state.journal import replace_text
from features.errors import ConfigError, StateError

__all__ = ["Notifier", "Position", "build", "build_flow", "make_notifier"]

FORMAT = 1

POLL_S = 0.25
"""Time between two looks at the log. Chosen: nobody is paged faster."""

SENT_KEPT_MAX = 4_096
"""Newest ids of alerts that are done with, kept so that a repeated one is not sent again. Chosen:
more than is written between two snapshots of the detect flow; 150 KB of position.json."""

DRAIN_S_MAX = 15.0
"""Longest stay after a SIGTERM to send what waits. Chosen: `waxwing run` and Kubernetes wait for
30 s; the rest is sent after the next start."""

FAILING_S_MAX = 60.0
"""A bounded run ends when for so long nothing could be sent. Chosen."""

LAST_READ_S_MAX = 5.0
"""Longest wait, once stopped, for the rest of a log that gives nothing. Chosen: a topic may end in
offsets that hold no message."""

LOCK_S_MAX = 30.0
"""Longest wait for another notify flow on the same state to end. Chosen: twice its last drain."""

_KEY = "log"


@dataclass(slots=True)
class Position:
    """Where the notify flow stands, as it lies on the disk.

    Parameters
    ----------
    log : what it reads: the file's name, or `topic NAME`
    ends : partition -> everything before is done with
    head, places : of a file, to find again what was read; see `dataflows.sources.alert_log`
    sent : ids of alerts done with, the oldest first
    """

    log: str
    ends: dict[int, int] = field(default_factory=dict)
    head: str = ""
    places: tuple[Place, ...] = ()
    sent: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, log: str) -> Position:
        """What `write` left, or the beginning of the log.

        Raises
        ------
        StateError : the file is damaged
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT or data["log"] != log:
                return cls(log)
            return cls(
                log,
                {int(k): int(v) for k, v in data["ends"].items()},
                str(data["head"]),
                tuple(Place(int(s), int(e), str(i)) for s, e, i in data["places"]),
                [str(i) for i in data["sent"]],
            )
        except FileNotFoundError:
            return cls(log)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(
                f"{path} cannot be read ({type(error).__name__}: {error}); take it away to tell all"
                " alerts of the log again"
            ) from error

    def write(self, path: Path) -> None:
        """Replace the file, atomically and durably."""
        data = {
            "format": FORMAT,
            "log": self.log,
            "ends": self.ends,
            "head": self.head,
            "places": [[p.start, p.end, p.id] for p in self.places],
            "sent": self.sent,
        }
        try:
            replace_text(path, json.dumps(data))
        except OSError as error:
            raise StateError(
                f"{path} could not be written: {error.strerror}; free space or mend the rights and"
                " start again"
            ) from error


class Notifier:
    """Hands alerts to the sinks and keeps the place.

    Parameters
    ----------
    sinks : in order; those that are patient get time with every call of `take`
    position : where the flow stands
    path : where the position lies
    drain_s : how long `take` may stay with the last lines
    clock, sleep : seconds, monotonic; waits so many seconds
    lock : let go of at the end
    """

    def __init__(
        self,
        sinks: Sequence[AlertSink],
        position: Position,
        path: Path,
        drain_s: float = DRAIN_S_MAX,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        lock: IO[bytes] | None = None,
    ) -> None:
        self._lock = lock
        self._prompt = [s for s in sinks if not isinstance(s, PatientSink)]
        self._patient = [s for s in sinks if isinstance(s, PatientSink)]
        self._position, self._path = position, path
        self._drain_s, self._clock, self._sleep = drain_s, clock, sleep
        self._sent = dict.fromkeys(position.sent)
        self._waiting: dict[str, tuple[int, int, int]] = {}
        self._ends = dict(position.ends)
        self.read = 0
        self.repeated = 0

    @property
    def waiting(self) -> int:
        """Alerts that are not done with."""
        return len(self._waiting)

    def take(self, lines: Lines) -> None:
        """Pass alerts on, let patient sinks work, move the place on.

        It waits only where a patient sink has no room, and with the last lines.
        """
        if lines.cut_to is not None:
            self._cut(lines.cut_to)
        fresh = self._fresh(lines)
        if fresh:
            for sink in self._prompt:
                sink.write(fresh)
            for patient in self._patient:
                self._wait_for_room(patient)
                patient.offer(fresh)
            if not self._patient:
                self._done(alert.id for alert in fresh)
        self._ends |= lines.ends
        self._pump()
        self._keep(lines)
        if lines.final:
            self._drain(lines)

    def close(self) -> None:
        """Close the sinks, and let another notify flow begin."""
        for sink in (*self._prompt, *self._patient):
            sink.close()
        if self._lock is not None:
            self._lock.close()

    def _fresh(self, lines: Lines) -> list[Alert]:
        """Alerts that were neither sent nor are waiting."""
        fresh = []
        for logged in lines.alerts:
            id_ = logged.alert.id
            if id_ in self._sent or id_ in self._waiting:
                self.repeated += 1
                continue
            self._waiting[id_] = (logged.partition, logged.start, len(self._patient))
            fresh.append(logged.alert)
        self.read += len(fresh)
        return fresh

    def _cut(self, to: int) -> None:
        """The file was cut: what waits may stand anywhere behind."""
        self._ends = {0: to}
        for id_, (partition, start, sinks) in self._waiting.items():
            self._waiting[id_] = (partition, min(start, to), sinks)

    def _pump(self) -> bool:
        """Give patient sinks their turn; whether anything was done with."""
        finished = False
        for sink in self._patient:
            done = []
            for id_ in sink.pump():
                partition, start, sinks = self._waiting[id_]
                self._waiting[id_] = (partition, start, sinks - 1)
                if sinks == 1:
                    done.append(id_)
                finished = True
            self._done(done)
        return finished

    def _done(self, ids: Iterable[str]) -> None:
        """Remember that these need not be sent again."""
        for id_ in ids:
            del self._waiting[id_]
            self._sent[id_] = None
        while len(self._sent) > SENT_KEPT_MAX:
            del self._sent[next(iter(self._sent))]

    def _wait_for_room(self, sink: PatientSink) -> None:
        """Hold the reader until the sink's queue has room: the log is the better place to wait."""
        while not sink.room():
            self._sleep(max(sink.wait_s(), POLL_S))
            self._pump()

    def _keep(self, lines: Lines) -> None:
        """Write the place down if it has moved."""
        ends = dict(self._ends)
        for partition, start, _ in self._waiting.values():
            ends[partition] = min(ends.get(partition, start), start)
        position = Position(self._position.log, ends, lines.head, lines.places, list(self._sent))
        if position != self._position:
            position.write(self._path)
            self._position = position

    def _drain(self, lines: Lines) -> None:
        """Send what still waits, within the time there is."""
        begun_s = moved_s = self._clock()
        while self._waiting:
            now_s = self._clock()
            left_s = min(begun_s + self._drain_s, moved_s + FAILING_S_MAX) - now_s
            if left_s <= 0:
                return
            self._sleep(min(left_s, max(0.01, min(s.wait_s() for s in self._patient))))
            if self._pump():
                moved_s = self._clock()
                self._keep(lines)


def make_reader(settings: Settings, position: Position) -> AlertReader:
    """The reader of the alert log the settings name, standing at a position."""
    if position.log == FILE_NAME:
        return FileTail(
            settings.state_dir / FILE_NAME,
            position.head,
            deque(position.places),
            position.ends.get(0),
        )
    return TopicTail(settings, position.ends)


def make_notifier(settings: Settings, drain_s: float = DRAIN_S_MAX) -> tuple[AlertReader, Notifier]:
    """The reader of the alert log and what sends, both standing where the last run left off.

    Raises
    ------
    ConfigError : nobody to tell, a sink that cannot be, or nothing to read; all faults at once
    """
    faults = []
    topic = "kafka" in settings.alerts and "jsonl" not in settings.alerts
    log = f"topic {settings.alerts_topic}" if topic else FILE_NAME
    source = "kafka" if topic else "jsonl"
    if source not in settings.alerts:
        faults.append(
            "alerts: the notify flow reads what sink jsonl or kafka writes, and neither is named;"
            ' add "jsonl"'
        )
    if not settings.notify:
        faults.append('notify: nobody to tell; name sinks, as in notify = ["pagerduty"]')
    if source in settings.notify:
        faults.append(
            f"notify: sink {source} writes the very log the notify flow reads; take it out"
        )
    sinks: list[AlertSink] = []
    if not faults:
        sinks = open_sinks(settings.notify, settings)
    else:
        try:
            for sink in open_sinks([n for n in settings.notify if n != source], settings):
                sink.close()
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)
    path = settings.state_dir / "notify" / "position.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(path.with_name("lock"))
    position = Position.read(path, log)
    return make_reader(settings, position), Notifier(sinks, position, path, drain_s, lock=lock)


def _lock(path: Path) -> IO[bytes]:
    """A file that one notify flow holds at a time: two would tell everything twice.

    Raises
    ------
    ConfigError : another one holds it for longer than it may take to end
    """
    file = path.open("ab")
    until_s = time.monotonic() + LOCK_S_MAX
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > until_s:
                file.close()
                raise ConfigError(
                    f"{path.parent}: another notify flow is at work on this state; stop it first"
                ) from None
            time.sleep(POLL_S)


class _Tail(StatefulSourcePartition[tuple[str, Lines], None]):
    """The log as Bytewax polls it. Empty lines are passed on too: they are the sinks' turn."""

    def __init__(
        self,
        reader: AlertReader,
        stop: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._stop = stop
        self._clock = clock
        self._moved_s = clock()
        self._until: dict[int, int] | None = None
        self._ended = False
        self._more = False

    def next_batch(self) -> list[tuple[str, Lines]]:
        if self._ended:
            raise StopIteration
        if self._until is None and self._stop():
            self._until = dict(self._reader.end())
        lines = self._reader.take()
        self._more = bool(lines.alerts)
        if self._more or self._until is None:
            self._moved_s = self._clock()
        if self._until is not None:
            reached = all(lines.ends.get(p, 0) >= end for p, end in self._until.items())
            self._ended = reached or self._clock() - self._moved_s > LAST_READ_S_MAX
        lines.final = self._ended
        return [(_KEY, lines)]

    def next_awake(self) -> datetime | None:
        if self._more or self._until is not None:
            return None
        return datetime.now(UTC) + timedelta(seconds=POLL_S)

    def snapshot(self) -> None:
        return None

    def close(self) -> None:
        self._reader.close()


class _Log(FixedPartitionedSource[tuple[str, Lines], None]):
    """The one log."""

    def __init__(self, reader: AlertReader, stop: Callable[[], bool]) -> None:
        self._reader, self._stop = reader, stop

    def list_parts(self) -> list[str]:
        return [_KEY]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Tail:
        return _Tail(self._reader, self._stop)


class _Sender(StatefulSinkPartition[Lines, None]):
    """The notifier as Bytewax calls it."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def write_batch(self, items: list[Lines]) -> None:
        for lines in items:
            self._notifier.take(lines)

    def snapshot(self) -> None:
        return None

    def close(self) -> None:
        self._notifier.close()


class _Told(FixedPartitionedSink[Lines, None]):
    """The one place from which is told."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def list_parts(self) -> list[str]:
        return [_KEY]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Sender:
        return _Sender(self._notifier)


def build_flow(
    reader: AlertReader, notifier: Notifier, stop: Callable[[], bool], guard: Guard | None = None
) -> Dataflow:
    """The flow: one reader, one sender. Its place is its own, Bytewax keeps none.

    Parameters
    ----------
    guard : keeps the first fault for whoever runs the flow; without one a fault panics
    """
    guard = Guard(on=False) if guard is None else guard
    flow = Dataflow("notify")
    lines = op.input("log", flow, guard.source(_Log(reader, stop)))
    op.output("tell", lines, guard.sink(_Told(notifier)))
    return flow


def build(config: str | Path | None = None) -> Dataflow:
    """The notify flow of a settings file, with SIGTERM and SIGINT stopping it cleanly.

    Raises
    ------
    ConfigError, SinkError, SourceError, StateError : before the first alert; where Bytewax's
        command is the program, a sentence each and status 2
    """
    with told_as_sentences():
        reader, notifier = make_notifier(load(config))
        epoch_a_round()
        stop = StopSwitch()
        stop_on_signals(stop)
        return build_flow(reader, notifier, stop)
