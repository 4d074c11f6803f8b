"""A lane's journal in a Kafka topic: what all replicas have acknowledged is durable, not a disk.

Each lane has a partition of its own. A cut goes to the topic first and is waited for (acks=all);
what then stands in the state folder is a copy, which needs no fsync, may be lost with its disk, and
is filled from the topic again at the next start. Everything that reads a journal reads the copy.

A flow that was thought dead may still write while the one after it already does. Each record bears
the token of its writer's lease: one with a lower token than a record before it is not read, and one
with a higher token takes the place of all rounds from its own on.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from dataflows.settings import Settings
from dataflows.sources.brokers import (
    CONNECT_S,
    Troubles,
    client_options,
    ensure_topic,
    make_client,
    partitions_of,
)
from dataflows.state.journal import FORMAT, Cut, LaneJournal, NewerJournal, replace_text, standing
from features.errors import ConfigError, SourceError, StateError

__all__ = ["TopicJournal"]

ACKED_S = 300.0
"""Longest wait for the acknowledgement of a cut; chosen: brokers are restarted in less. After it
the flow ends with a sentence and goes on where it was at its next start."""

READ_S = 30.0
"""Longest wait for the next records while the copy is filled. Chosen."""

HELD_MAX = 10_000
"""Most cuts held back while reading, since a record with a higher token may take their place.
Chosen: a quarter of an hour, and a flow that lost its lease ends within seconds."""

PLACE_EVERY = 600
"""Cuts after which the offset is noted, so that a start reads so many records at most. Chosen: a
minute."""

SCHEMAS_EVERY = 1_000
"""Cuts after which a record repeats all schema bodies: those before it may have been removed by the
topic's retention. Chosen."""

PLACE_FILE = "topic.json"

RECORD_BYTES_MAX = 16_000_000
"""Longest cut. Chosen: a round reads a megabyte of control records, which may grow as they are
escaped, and schema bodies."""

_PRODUCER: dict[str, str | int | bool] = {
    "acks": "all",
    "message.max.bytes": RECORD_BYTES_MAX,
    "enable.idempotence": True,
    "linger.ms": 0,
    "message.timeout.ms": int(ACKED_S * 1000),
}
_CONSUMER: dict[str, str | bool] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
    "allow.auto.create.topics": False,
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Record:
    """One of the topic: where it lies, who wrote it, what it says."""

    offset: int
    token: int
    cut: Cut


class TopicJournal:
    """The journal of one lane in `journal_topic`, with a copy in the state folder.

    Parameters
    ----------
    settings : `journal_topic`, and the `kafka_*` settings of the connection
    lane : its number, and its partition
    token : of the lease under which it writes
    copy : opens the copy; what it raises of damage makes it new, a newer version's stays
    stop : says whether the flow has been asked to end; then an outage is not waited for

    Raises
    ------
    ConfigError : the topic has too few partitions, or cannot be made
    SourceError : no broker answers
    StateError : the topic does not have what the state folder's journal has, or a flow with a newer
        lease has written to it
    """

    def __init__(
        self,
        settings: Settings,
        lane: int,
        token: int,
        copy: Callable[[], LaneJournal],
        stop: Callable[[], bool],
    ) -> None:
        self._topic, self._lane, self._token = settings.journal_topic or "", lane, token
        self._settings, self._stop = settings, stop
        self._troubles = Troubles(settings.kafka_brokers)
        self._since_place, self._place_refused = 0, False
        self._since_schemas = SCHEMAS_EVERY
        self._schemas: dict[str, str] = {}
        self._producer: Producer = make_client(
            Producer, client_options(settings, self._troubles, {}, _PRODUCER)
        )
        _ensure(settings, self._troubles)
        try:
            self._copy = copy()
        except NewerJournal:
            raise  # nothing is wrong with it, and the topic may not reach back as far
        except StateError as error:
            _log.warning("%s; the journal is read from topic %r again", error, self._topic)
            self._copy = _made_new(settings, lane, copy)
        try:
            self._fill(copy)
        except BaseException:
            self._copy.close()
            raise
        self._troubles.aloud = True

    @property
    def folder(self) -> Path:
        """Of the copy."""
        return self._copy.folder

    @property
    def last(self) -> Cut | None:
        """The newest cut."""
        return self._copy.last

    def append(self, cut: Cut) -> None:
        """Write one cut and wait until all replicas in sync have it.

        Raises
        ------
        StateError : they had it not within ACKED_S, or the flow was to end while no broker answered
        """
        self._copy.fence()
        self._schemas |= cut.schemas
        whole = self._since_schemas >= SCHEMAS_EVERY
        sent = replace(cut, schemas=dict(self._schemas)) if whole else cut
        acked: list[Message | KafkaError] = []
        try:
            self._producer.produce(
                self._topic,
                value=sent.to_bytes(),
                key=str(cut.round),
                partition=self._lane,
                headers=[
                    ("token", str(self._token).encode()),
                    ("format", str(FORMAT).encode()),
                ],
                on_delivery=lambda error, message: acked.append(error or message),
            )
        except KafkaException as error:
            raise self._not_acked(cut, str(error.args[0].str())) from None
        begun = time.monotonic()
        while not acked:
            self._producer.poll(0.5)
            if not acked and self._stop() and time.monotonic() - begun > CONNECT_S:
                raise self._not_acked(cut, self._troubles.last or "no broker answers")
        answer = acked[0]
        if isinstance(answer, KafkaError):
            raise self._not_acked(cut, str(answer.str()))
        self._troubles.answered()
        self._since_schemas = 1 if whole else self._since_schemas + 1
        self._copy.append(cut)
        self._placed(answer.offset() or 0, cut.round)

    def close(self) -> None:
        """Let go of the copy and the connection."""
        self._copy.close()
        self._producer.flush(0)

    def _not_acked(self, cut: Cut, said: str) -> StateError:
        """The fault of a cut nobody has acknowledged."""
        return StateError(
            f"journal topic {self._topic!r} partition {self._lane}: round {cut.round} was not"
            f" acknowledged ({said}); bring the brokers back and start again, nothing is lost"
        )

    def _placed(self, offset: int, round_: int) -> None:
        """Note where the topic stood, now and then; the note only saves a start some reading."""
        self._since_place += 1
        if self._since_place < PLACE_EVERY:
            return
        self._since_place = 0
        try:
            replace_text(self.folder / PLACE_FILE, f'{{"offset": {offset}, "round": {round_}}}\n')
        except OSError as error:
            if not self._place_refused:
                _log.warning(
                    "%s could not be written: %s; the next start reads more of journal topic %r",
                    self.folder / PLACE_FILE, error.strerror, self._topic,
                )  # fmt: skip
            self._place_refused = True

    # -- filling the copy -------------------------------------------------------------------------

    def _fill(self, copy: Callable[[], LaneJournal]) -> None:
        """Bring the copy to where the topic is; one that says otherwise is made new."""
        reader = make_client(
            Consumer,
            client_options(
                self._settings, self._troubles, {},
                {**_CONSUMER, "group.id": f"{self._settings.kafka_group}-journal"},
            ),
        )  # fmt: skip
        try:
            first, end = _bounds(reader, self._topic, self._lane, self._settings)
            last = self._copy.last
            if end == 0 and last is not None:
                _log.warning(
                    "journal topic %r is empty: rounds up to %d stand in %s alone",
                    self._topic, last.round, self.folder,
                )  # fmt: skip
                return
            at = _place(self.folder, last, first, end)
            if not self._taken_over(self._records(reader, at, end), last):
                _log.warning(
                    "%s says something else than journal topic %r, which has overruled it; it is"
                    " read from there again", self.folder, self._topic,
                )  # fmt: skip
                self._copy.close()
                self._copy = _made_new(self._settings, self._lane, copy)
                self._taken_over(self._records(reader, first, end), None)
        finally:
            reader.close()
        if self._copy.last is not None:
            self._schemas = standing(self.folder, self._copy.last.round)[1]

    def _records(self, reader: Consumer, at: int, end: int) -> Iterator[_Record]:
        """What the partition holds between two offsets."""
        if at >= end:
            return
        reader.assign([TopicPartition(self._topic, self._lane, at)])
        give_up = time.monotonic() + READ_S
        while at < end:
            for message in reader.consume(1_000, timeout=0.5):
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise SourceError(
                        f"journal topic {self._topic!r} partition {self._lane}: {error.str()}"
                    )
                if error is None:
                    at = (message.offset() or 0) + 1
                    yield _record(message)
                    give_up = time.monotonic() + READ_S
            if time.monotonic() > give_up:
                raise SourceError(
                    f"journal topic {self._topic!r} partition {self._lane}: nothing came within"
                    f" {READ_S:.0f} s, {end - at} records are missing"
                    f" ({self._troubles.last or 'no reason given'}); check the brokers"
                )

    def _taken_over(self, records: Iterator[_Record], last: Cut | None) -> bool:
        """Append to the copy what it lacks; False where it holds what has been overruled.

        Raises
        ------
        StateError : the topic ends before the copy does, or belongs to a newer lease
        """
        newest = 0
        overruled = [0]
        for record in _kept(records, overruled):
            if record.token > self._token:
                raise StateError(
                    f"journal topic {self._topic!r} partition {self._lane}: round"
                    f" {record.cut.round} was written under lease {record.token}, this flow has"
                    f" lease {self._token}: state_dir is not the one the topic belongs to, or was"
                    " lost; bring it back, or name a journal_topic that does not exist yet"
                )
            newest = record.cut.round
            if last is None or newest > last.round:
                self._copy.append(record.cut)
                self._placed(record.offset, newest)
            elif newest == last.round and not _same(record.cut, last):
                return False
        if last is not None and 0 < newest < last.round:
            if last.round <= max(overruled):
                return False
            raise StateError(
                f"journal topic {self._topic!r} partition {self._lane} ends at round {newest}, the"
                f" journal in {self.folder} at {last.round}: it is that of another flow, or has"
                " lost records; name the right journal_topic, or one that does not exist yet"
            )
        return True


def _record(message: Message) -> _Record:
    """A message of the topic.

    Raises
    ------
    StateError : it is no cut, or one of a newer version
    """
    headers = dict(message.headers() or [])
    written = headers.get("format") or str(FORMAT).encode()
    if written != str(FORMAT).encode():
        raise StateError(
            f"journal topic {message.topic()!r} partition {message.partition()} offset"
            f" {message.offset()}: written in format {written!r}, this version reads {FORMAT}; run"
            " the version that wrote it, or name another journal_topic and start with an empty"
            " state_dir"
        )
    try:
        token = int(headers["token"] or b"")
        return _Record(message.offset() or 0, token, Cut.from_bytes(message.value() or b""))
    except (KeyError, ValueError, TypeError) as error:
        raise StateError(
            f"journal topic {message.topic()!r} partition {message.partition()} offset"
            f" {message.offset()}: is no cut of a round ({error}); nobody else may write there,"
            " name another journal_topic and start with an empty state_dir"
        ) from None


def _kept(records: Iterator[_Record], overruled: list[int]) -> Iterator[_Record]:
    """Records in the order of rounds, without those that a newer holder of the lease has overruled.

    Parameters
    ----------
    overruled : rounds of those, added here

    Raises
    ------
    StateError : a record overrules more than HELD_MAX before it
    """
    held: deque[_Record] = deque()
    token = passed = 0
    for record in records:
        if record.token < token:
            overruled.append(record.cut.round)
            continue
        token = record.token
        while held and held[-1].cut.round >= record.cut.round:
            overruled.append(held.pop().cut.round)
        if record.cut.round <= passed:
            raise StateError(
                f"the journal's topic has round {record.cut.round} again at offset {record.offset},"
                f" more than {HELD_MAX} rounds later; two flows write to it, give each its own"
            )
        held.append(record)
        if len(held) > HELD_MAX:
            first = held.popleft()
            passed = first.cut.round
            yield first
    yield from held


def _same(one: Cut, other: Cut) -> bool:
    """Whether two records say the same of a round; bodies of schemas are repeated now and then."""
    return replace(one, schemas={}).to_bytes() == replace(other, schemas={}).to_bytes()


def _place(folder: Path, last: Cut | None, first: int, end: int) -> int:
    """The offset to read from: that of the last note, if the copy has the round it speaks of."""
    try:
        noted = json.loads((folder / PLACE_FILE).read_text(encoding="utf-8"))
        offset, round_ = int(noted["offset"]), int(noted["round"])
    except (OSError, ValueError, KeyError, TypeError):
        return first
    usable = last is not None and round_ <= last.round and first <= offset < end
    return offset if usable else first


def _made_new(settings: Settings, lane: int, copy: Callable[[], LaneJournal]) -> LaneJournal:
    """An empty copy in place of one that is damaged or says something else."""
    from dataflows.sources.rounds import journal_folder

    folder = journal_folder(settings.state_dir, lane)
    for path in (*folder.glob("*.jnl"), folder / PLACE_FILE):
        path.unlink(missing_ok=True)
    return copy()


def _bounds(reader: Consumer, topic: str, lane: int, settings: Settings) -> tuple[int, int]:
    """First offset and end of a lane's partition."""
    give_up = time.monotonic() + CONNECT_S
    said = f"no answer within {CONNECT_S:.0f} s"
    while time.monotonic() < give_up:
        try:
            got = reader.get_watermark_offsets(
                TopicPartition(topic, lane), timeout=CONNECT_S, cached=False
            )
        except KafkaException as error:
            # A topic made a moment ago leads its partitions soon.
            said = str(error.args[0].str())
            time.sleep(0.1)
            continue
        if got is not None:
            return int(got[0]), int(got[1])
    raise SourceError(
        f"Kafka {settings.kafka_brokers}: journal topic {topic!r} partition {lane}: {said}"
    )


def _ensure(settings: Settings, troubles: Troubles) -> None:
    """Make the topic with a partition a lane where it does not exist.

    Raises
    ------
    ConfigError : it has too few partitions, or cannot be made
    SourceError : no broker answers
    """
    topic = settings.journal_topic or ""
    client = make_client(AdminClient, client_options(settings, troubles, {}, {}))
    # Kept for as long as replays reach, and never compacted.
    keep_ms = -1 if not settings.retention_h else int(settings.retention_h * 3_600_000)
    config = {
        "cleanup.policy": "delete",
        "retention.ms": str(keep_ms),
        "max.message.bytes": str(RECORD_BYTES_MAX),
    }
    try:
        count = partitions_of(client, [topic], settings, troubles)[topic]
    except ConfigError:
        ensure_topic(client, topic, settings, troubles, settings.lanes, config)
        return
    if count < settings.lanes:
        raise ConfigError(
            f"journal_topic {topic!r} has {count} partitions, lanes = {settings.lanes} need as"
            " many; add partitions, or name a topic that does not exist yet"
        )
