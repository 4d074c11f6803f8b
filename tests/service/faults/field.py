"""What a fault test stands on: a producer that knows what was acknowledged, a flow, an account.

The count is not ours. `sent` are the event ids that the brokers have acknowledged to the producer;
the rules of the vote are such that every event becomes an alert, so what was scored is what stands
in the alert log, event id by event id; dead letters are found by topic, partition and offset. What
is in none of them, nor in a named gap, is lost; an id that stands in the log twice was twice.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import psutil
from confluent_kafka import Message, Producer

from features.encode import json_bodies
from features.events import event_type
from features.simulate import Simulator
from tests.flow.harness import Bench, command, environment
from tests.service.servers import Kafka, Redis, Registry

__all__ = ["Field", "Flow", "Row", "Sender", "Servers", "rss_mb", "wait"]

EVENT = "payment"

PARTITIONS = 4

EVENTS_PER_S = 50.0
"""Of the simulated stream, whose time is not the sender's."""

BEGINS_US = 1_772_409_600_000_000
"""2026-03-02, when the stream begins whatever the day: a seed gives the same events again."""

WAIT_S = 400.0
"""Longest wait for what takes seconds on a quiet machine. Chosen for two busy cores."""

VOTING = """[any_payment]
event_type = "payment"
severity = "info"
action = "none: every event is an alert, so that each can be counted"
votes_needed = 1
ensemble = 0.0

[any_payment.thresholds]
zscore = 0.0
iqr = 0.0
isolation_forest = 0.0
"""


@dataclass(slots=True)
class Row:
    """What became of the events of one fault.

    Parameters
    ----------
    name : of the fault
    sent : events that the brokers acknowledged to the producer
    scored : of them, in the alert log
    dead_lettered : of them, in the dead-letter log
    lost : of them, nowhere
    gap : of them, in a gap that the flow has named
    twice : ids that stand in the alert log more than once
    seconds_to_live : from the end of the fault until an event sent after it was in the alert log
    more : what else was measured
    """

    name: str
    sent: int = 0
    scored: int = 0
    dead_lettered: int = 0
    lost: int = 0
    gap: int = 0
    twice: int = 0
    seconds_to_live: float = 0.0
    more: dict[str, Any] = field(default_factory=dict)

    def accounted(self) -> bool:
        """Whether something was sent, and each event of it is in one place; `duplicates_*` of
        `more` are events that were sent twice."""
        repeats = sum(n for name, n in self.more.items() if name.startswith("duplicates_"))
        found = self.scored + self.dead_lettered + self.gap + repeats
        return self.sent == found > 0 and not self.lost and not self.twice

    def json(self) -> dict[str, Any]:
        """As plain data, `more` among the rest."""
        found = asdict(self)
        return found | found.pop("more")


@dataclass(slots=True)
class Servers:
    """The real servers; each fault works under names of its own."""

    kafka: Kafka
    registry: Registry
    redis: Redis


def wait(
    holds: Callable[[], bool], what: str, limit_s: float = WAIT_S, every_s: float = 0.1
) -> float:
    """Wait until something holds; the seconds it took. AssertionError where it does not."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < limit_s, f"{limit_s:.0f} s passed before {what}"
        time.sleep(every_s)
    return time.monotonic() - begun


def rss_mb(process: int) -> float:
    """Memory of a process now."""
    status = Path(f"/proc/{process}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


class Sender:
    """Sends payments, each id once, and keeps what the brokers have acknowledged.

    Parameters
    ----------
    brokers, topic : where to
    seed : of the payments
    encode : frame -> messages; JSON where it is None
    """

    def __init__(
        self, brokers: str, topic: str, seed: int, encode: Callable[[Any], list[bytes]] | None
    ) -> None:
        self.topic = topic
        self.encode = encode or json_bodies
        self.acked: dict[str, tuple[int, int]] = {}
        self.failed = 0
        self._simulator = Simulator(
            seed=seed, cards=2_000, events_per_s=EVENTS_PER_S, event_types=[EVENT]
        )
        self._time_us = BEGINS_US
        self.made: set[str] = set()
        self.frames: list[pl.DataFrame] = []
        """What `send` has sent."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": brokers,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.timeout.ms": 300_000,
                "topic.metadata.refresh.interval.ms": 1_000,
                "log_level": 0,
                "queue.buffering.max.messages": 1_000_000,
            }
        )

    def frame(self, count: int) -> Any:
        """The next payments, at least so many, each id new."""
        frames, got = [], 0
        while got < count:
            until_us = self._time_us + max(int(1e6 * count / EVENTS_PER_S), 2_000_000)
            batch = self._simulator.span(self._time_us, until_us)[EVENT]
            self._time_us = until_us
            ids = batch.frame["event_id"].to_list()
            fresh = []
            for row, name in enumerate(ids):
                if name not in self.made:
                    self.made.add(name)
                    fresh.append(row)
            frames.append(batch.frame[np.array(fresh, np.int64)])
            got += len(fresh)
        return pl.concat(frames)

    def send(self, count: int, partitions: int = PARTITIONS) -> list[str]:
        """Send some payments; returns their ids. What is acknowledged is known later."""
        frame = self.frame(count)
        self.frames.append(frame)
        names = frame["event_id"].to_list()
        for i, (name, message) in enumerate(zip(names, self.encode(frame), strict=True)):
            self._produce(name, message, i % partitions)
        self._producer.poll(0)
        return names

    def _produce(self, name: str, message: bytes | None, partition: int) -> None:
        """Hand one message to the client."""

        def told(error: Any, got: Message) -> None:
            if error is not None:
                self.failed += 1
            else:
                with self._lock:
                    self.acked[name] = got.partition() or 0, got.offset() or 0

        while True:
            try:
                self._producer.produce(
                    self.topic, value=message, partition=partition, on_delivery=told
                )
                return
            except BufferError:
                self._producer.poll(0.1)

    def begin(self, per_s: float) -> None:
        """Send at a pace, from a thread, until `end`."""
        self._stop.clear()

        def work() -> None:
            while not self._stop.wait(0.1):
                self.send(max(1, round(per_s / 10)))

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop the thread; wait for every acknowledgement."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
        left = self._producer.flush(WAIT_S)
        assert left == 0 and self.failed == 0, f"{left} unacknowledged, {self.failed} refused"

    def give_up(self) -> None:
        """Stop the thread where it runs; what is not acknowledged is let go."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._producer.purge()


class Flow:
    """One `waxwing run`, started, killed and started again.

    Parameters
    ----------
    field : where it runs
    broken : PART=WHAT of `tests.flow.broken`; empty: nothing is broken
    limit : called in the process before it begins
    workers : of `--workers`; 0: without it
    """

    def __init__(
        self,
        field: Field,
        broken: str = "",
        limit: Callable[[], None] | None = None,
        workers: int = 0,
    ) -> None:
        self._field, self._broken, self._limit = field, broken, limit
        self._more = ["--workers", str(workers)] if workers else []
        self.process: subprocess.Popen[bytes] | None = None
        self.log = field.folder / "flow.log"
        self.report_path = field.folder / "report.json"

    def start(self) -> Self:
        """Start it and come back at once."""
        run = ["run", *self._field.sets(), "--json", str(self.report_path), *self._more]
        self.report_path.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command([self._broken, *run] if self._broken else run),
                cwd=self._field.folder,
                env=environment({}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=self._limit,
            )
        return self

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def hold(self) -> None:
        """Stop the process where it stands; each of its threads does once this comes back."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self.process.pid}/task")
        # What stands behind the name, which is in brackets, begins with the state.
        wait(
            lambda: all(
                path.read_text().rpartition(")")[2].split()[0] == "T"
                for path in threads.glob("*/stat")
            ),
            "it stands still",
            every_s=0.01,
        )

    def go_on(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> dict[str, Any]:
        """SIGTERM; the report. AssertionError where the end is not clean."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(WAIT_S)
        self.process = None
        assert status == 0, self.said()
        report: dict[str, Any] = json.loads(self.report_path.read_text())
        return report

    def ended(self) -> int:
        """Wait until it ends by itself; its status."""
        assert self.process is not None
        status = self.process.wait(WAIT_S)
        self.process = None
        return status

    def said(self) -> str:
        """All that it has printed."""
        return self.log.read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """The processes it has started."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def listens(self) -> list[str]:
        """Addresses at which it, or what it has started, waits for connections."""
        assert self.process is not None
        ours = {self.process.pid, *(child.pid for child in self.children())}
        return [
            str(socket.laddr.ip)
            for socket in psutil.net_connections("inet")
            if socket.pid in ours and socket.status == psutil.CONN_LISTEN
        ]

    def rss_mb(self) -> float:
        """Memory of the process now."""
        assert self.process is not None
        return rss_mb(self.process.pid)


class Field:
    """Topics, state and settings of one fault.

    Parameters
    ----------
    name : of the fault
    seed : of its events and of its random moments
    bench : models
    servers : the real ones
    folder : of its own
    more : further settings
    """

    def __init__(
        self, name: str, seed: int, bench: Bench, servers: Servers, folder: Path, **more: Any
    ) -> None:
        self.name, self.bench, self.servers, self.folder = name, bench, servers, folder
        self.chance = random.Random(seed)
        folder.mkdir(parents=True, exist_ok=True)
        voting = folder / "voting.toml"
        voting.write_text(VOTING)
        self.prefix = f"{name}-{os.getpid()}-{time.time_ns() % 10**9}-"
        self.state = folder / "state"
        self.settings: dict[str, Any] = bench.settings | {
            "source": "kafka",
            "kafka_brokers": servers.kafka.brokers,
            "kafka_registry_url": servers.registry.url,
            "kafka_topic_prefix": self.prefix,
            "kafka_group": f"{self.prefix}group",
            "kafka_format": "json",
            "event_types": EVENT,
            "detectors": "zscore,iqr,isolation_forest",
            "voting": voting,
            "warm_state": "cold",
            "snapshot_rounds": 20,
            # Beyond 2,000 a round and lane alerts are suppressed, and events could not be counted.
            "round_rows_max": 1500,
            # The simulated stream is faster than the clock: nothing of it is late.
            "late_s": 0,
            "early_s": 0,
            "time_past_s_max": 10 * 365 * 86_400,
            "state_dir": self.state,
        }
        self.settings |= more
        self.topic = self.prefix + event_type(EVENT).topic
        servers.kafka.create_topic(self.topic, PARTITIONS)
        self.sender = Sender(servers.kafka.brokers, self.topic, seed, None)
        self.flow = Flow(self)
        self._read, self._last, self._known = 0, b"", set[str]()

    def begin_anew(self) -> None:
        """Go on with an empty state, and an account of what is sent from now on."""
        self.state = self.state.with_name(f"{self.state.name}-anew")
        self.settings["state_dir"] = self.state
        self.sender.acked.clear()
        self._read, self._last, self._known = 0, b"", set()

    def sets(self) -> list[str]:
        """`--set` options."""
        return [part for k, v in self.settings.items() for part in ("--set", f"{k}={v}")]

    def alerted(self) -> Counter[str]:
        """Event ids in the alert log, and how often."""
        path = self.state / "alerts.jsonl"
        if not path.exists():
            return Counter()
        with path.open(encoding="utf-8") as lines:
            return Counter(json.loads(line)["event_id"] for line in lines)

    def letters(self) -> list[dict[str, Any]]:
        """The dead letters."""
        path = self.state / "dead_letters.jsonl"
        if not path.exists():
            return []
        whole = path.read_bytes().rpartition(b"\n")[0]  # a live flow may have half written a line
        return [json.loads(line) for line in whole.splitlines()]

    def has(self, names: Iterable[str]) -> bool:
        """Whether the alert log has events; reads what is new of it.

        AssertionError where the flow has ended by itself.
        """
        process = self.flow.process
        assert process is None or process.poll() is None, self.flow.said()[-3000:]
        path = self.state / "alerts.jsonl"
        if path.exists():
            self._hear(path)
        return set(names) <= self._known

    def done(self) -> int:
        """How many events the alert log has."""
        self.has(())
        return len(self._known)

    def _hear(self, path: Path) -> None:
        """Read what is new of the alert log; all of it where a restart has cut it back.

        It may have grown again meanwhile, with other bytes: the last line that was read says so.
        """
        with path.open("rb") as file:
            file.seek(max(self._read - len(self._last), 0))
            if file.read(len(self._last)) != self._last:
                self._read, self._last, self._known = 0, b"", set()
                file.seek(0)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        if data:
            lines = data.splitlines(keepends=True)
            self._read += len(data)
            self._last = lines[-1]
            self._known |= {json.loads(line)["event_id"] for line in lines}

    def live(self, limit_s: float = WAIT_S) -> float:
        """Send some events and wait until they are alerts; seconds."""
        names = self.sender.send(PARTITIONS)
        return wait(lambda: self.has(names), f"{self.name}: new events are through", limit_s)

    def account(self, gaps: Iterable[dict[str, Any]] = (), **more: Any) -> Row:
        """Where every event went; the flow must have ended."""
        sent = self.sender.acked
        alerted = self.alerted()
        if strange := [name for name in alerted if name not in self.sender.made]:
            raise AssertionError(f"alerts of {len(strange)} events never sent: {strange[:3]}")
        letters = [(x["partition"], x["offset"]) for x in self.letters()
                   if x["topic"] == self.topic]  # fmt: skip
        dead = set(letters)
        both = [name for name in sent if name in alerted and sent[name] in dead]
        missing = [name for name in sent if name not in alerted]
        in_dead = [name for name in missing if sent[name] in dead]
        named = [
            name
            for name in missing
            if any(g["partition"] == sent[name][0] and g["from"] <= sent[name][1] <= g["to"]
                   for g in gaps)
        ]  # fmt: skip
        return Row(
            self.name,
            sent=len(sent),
            scored=len(sent) - len(missing),
            dead_lettered=len(in_dead),
            lost=len(missing) - len(set(in_dead) | set(named)),
            gap=len(named),
            twice=sum(count > 1 for count in alerted.values())
            + len(both)
            + len(letters)
            - len(dead),
            more=more,
        )
