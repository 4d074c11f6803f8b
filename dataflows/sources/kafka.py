"""Kafka as a source: a lane takes a fixed set of partitions of every topic, by offsets of its own.

No consumer group balances anything: partition p belongs to lane p % lanes, and where a lane stands
is in its journal. Offsets are committed to `kafka_group` for lag tools only. Nothing is skipped in
silence: offsets that retention took away are named and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from dataflows.settings import Settings
from dataflows.sources.base import ALL_COME, DeadLetter, Gap, Taken
from dataflows.sources.brokers import (
    CONNECT_S,
    Troubles,
    client_options,
    make_client,
    partitions_of,
)
from dataflows.sources.catch_up import CatchUp, Pace, Place, slack_of
from dataflows.sources.registry import PATIENCE_S, SchemaBodies, SealedBodies
from dataflows.sources.simulator import time_us_of
from features.batch import EventBatch, Int32, Int64
from features.decode import HEADER_BYTES, decode, schema_ids
from features.errors import SourceError
from features.events import event_type

__all__ = ["KafkaReader"]

COMMIT_S = 5.0
"""Offsets are committed this often; chosen: lag tools look every 15 to 60 s."""

PARTITIONS_S = 60.0
"""New partitions are looked for this often. Chosen."""

IDS_S = 2.0
"""The topics' ids are asked for again this often, beside the reading: a topic made anew must not be
taken for the old one. Chosen: an answer costs a hundredth of it or less.
"""

RETAKE_S = 30.0
"""Longest wait without a message while journaled offsets are read again; a broker restart."""

ANSWER_S = 5.0
"""Longest wait for a broker that has answered before."""

RETRY_S = 0.1
"""Pause before a broker is asked again for partitions that had no leader yet. Chosen."""

HELD_MAX = 100_000
"""Most messages that wait for their schemas before the lane reads in small bites only; partitions
with such messages are not fetched. Chosen: 100 MB, beside what the client holds."""

BITES = 100
"""A bite is this part of HELD_MAX, which one for each other partition may exceed. Chosen."""

AHEAD_MAX = 50_000
"""Most messages kept that were read past a journaled round, or ahead of partitions that are behind;
a message is about 1 kB. Chosen."""

AHEAD_MIN = 100
"""Messages of a partition that are kept in any case. Chosen: a fetch is worth while."""

END = np.iinfo(np.int64).max
"""Where a partition without an end ends."""

FROM, IDS, SCHEMAS, CLOCK = "@from", "@ids", "@schemas", "@clock"
"""Keys of positions that are no topic (a topic's name cannot hold an @): where partitions began
that did not go on from the position before; the topics' ids, new where a topic is made anew; schema
ids known; the clock, which must not run back over a restart."""

_OWN: dict[str, str | int | bool] = {
    # A round is 100 ms: data may be 20 ms old, and the broker need not answer each message alone.
    "fetch.wait.max.ms": 20,
    "fetch.min.bytes": 4_096,
    # What a lane may hold beyond a round; refilled at once, the default waits up to a second.
    "queued.max.messages.kbytes": 32_768,
    "fetch.queue.backoff.ms": 10,
    "fetch.error.backoff.ms": 100,
    "isolation.level": "read_committed",
    "allow.auto.create.topics": False,
}

_FIXED: dict[str, str | bool] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    # A wanted offset that is gone must be noticed, not silently replaced.
    "auto.offset.reset": "error",
}

_GONE = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
}
"""Errors of a partition that waiting does not mend."""

_PASSING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
}
"""Errors of a topic made, or a broker started, a moment ago."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Topic:
    """A topic's event type and where the lane stands in its partitions.

    Parameters
    ----------
    event_type : what it holds
    mine : partitions of this lane
    at : int64 (partitions,), next offset to take; END where the partition is another lane's
    ends : int64 (partitions,), offset at which a bounded run stops; END where there is none
    id : the broker's id of the topic, empty where it gives none
    in_doubt : whether it was gone when it was asked for: no record is taken before it is known
        again, for what comes may be another topic's
    """

    event_type: str
    mine: list[int]
    at: Int64
    ends: Int64
    id: str = ""
    in_doubt: bool = False


@dataclass(slots=True)
class _Records:
    """Messages of one topic as columns."""

    messages: list[Message]
    values: list[bytes | None]
    partition: Int32
    offset: Int64

    def only(self, keep: npt.NDArray[np.bool_]) -> _Records:
        """Those to keep."""
        if keep.all():
            return self
        rows = np.flatnonzero(keep).tolist()
        return _Records(
            [self.messages[i] for i in rows],
            [self.values[i] for i in rows],
            self.partition[rows],
            self.offset[rows],
        )


class KafkaReader:
    """One lane of Kafka.

    Parameters
    ----------
    settings : the `kafka_*` settings
    lane : which of `settings.lanes`
    from_us : event time to start at where there is no position yet (the end of a backfill); it wins
        over kafka_from. The broker finds it by message timestamps.
    replay : only journaled offsets are read, by a group that commits nothing, and schemas come from
        the journal alone
    pace : how far the lanes of the process are, where they are behind; None: it is alone
    held_max : messages that may wait for their schemas, but for a bite of each other partition
    patience_s : how long they wait for a registry that is away

    Raises
    ------
    ConfigError : topics that do not exist, properties or addresses that are none
    SourceError : no broker or no registry answers
    """

    def __init__(
        self,
        settings: Settings,
        lane: int,
        from_us: int | None = None,
        replay: bool = False,
        pace: Pace | None = None,
        held_max: int = HELD_MAX,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.unpaced = False
        self._held_max = held_max
        self._replay = replay
        self._settings = settings
        self._lane = lane
        self._from_us = from_us
        self._troubles = Troubles(settings.kafka_brokers)
        self._past_us = settings.time_past_s_max * 1_000_000
        self._future_us = settings.time_future_s_max * 1_000_000
        self._cut_us = 0
        self._topics: dict[str, _Topic] = {}
        self._began: dict[Place, int] = {}
        self._gaps: list[Gap] = []
        self._back: dict[Place, deque[Message]] = {}
        self._held: dict[Place, int] = {}
        self._paused: set[Place] = set()
        self._resumed: set[Place] = set()
        self._marks: dict[Place, int] = {}
        self._stuck: set[Place] = set()
        self._fresh: dict[str, str] = {}
        self._catch_up = CatchUp(lane, pace or Pace(), slack_of(settings.late_s))
        self._standing = self._aimed = False
        self._commit_at = self._look_at = self._ids_at = 0.0
        self._asking: AdminClient | None = None
        self._ids: dict[str, Any] = {}
        group = f"{settings.kafka_group}-replay" if replay else settings.kafka_group
        fixed = {**_FIXED, "group.id": group,
                 "enable.partition.eof": settings.kafka_until_end}  # fmt: skip
        self._consumer: Consumer = make_client(
            Consumer, client_options(settings, self._troubles, _OWN, fixed)
        )
        self._bodies: SchemaBodies | SealedBodies | None = None
        try:
            self._open()
            if settings.kafka_format == "avro" and replay:
                self._bodies = SealedBodies()
            elif settings.kafka_format == "avro":
                self._bodies = SchemaBodies(
                    settings.kafka_registry_url,
                    settings.state_dir / "schemas",
                    patience_s,
                    options=settings.kafka_registry_options,
                )
            self._troubles.aloud = True
            # Where no late row is put in its place and no verdict waits for its time, the order of
            # partitions is of no account.
            labelled = (settings.labels_file or settings.labels_topic) is not None
            self._by_time = (settings.late_s > 0 or labelled) and not replay
            if self._by_time:
                self._catch_up.begin(time.monotonic())
        except BaseException:
            self._consumer.close()
            raise

    @property
    def spread(self) -> bool:
        """Whether a topic has partitions in several lanes."""
        return self._settings.lanes > 1 and any(len(t.at) > 1 for t in self._topics.values())

    # -- what a lane asks for ---------------------------------------------------------------------

    def seek(self, positions: dict[str, Any]) -> None:
        """Stand at journaled positions; an empty one starts where the settings say.

        Raises
        ------
        SourceError : a topic was made anew since, or no broker answers
        """
        self._cut_us = max(self._cut_us, int(positions.get(CLOCK, 0)))
        if self._replay:
            self._seek_journaled(positions)
            return
        if self._bodies is not None:
            self._bodies.restore(positions.get(SCHEMAS, ()))
            if not positions:
                self._bodies.check()
        self._check_ids(positions.get(IDS, {}))
        self._began = {}
        new: list[Place] = []
        for name, topic in self._topics.items():
            journaled = positions.get(name, {})
            for p in topic.mine:
                if str(p) in journaled:
                    topic.at[p] = int(journaled[str(p)])
                else:
                    new.append((name, p))
        # A partition that was added to a topic while nobody ran is read from its beginning.
        added = [place for place in new if place[0] in positions]
        first = [place for place in new if place[0] not in positions]
        found = self._offsets(added, "earliest") | self._first(first)
        for (name, p), offset in found.items():
            self._topics[name].at[p] = offset
        self._began = dict(found)
        if self._settings.kafka_until_end:
            places = [(name, p) for name, topic in self._topics.items() for p in topic.mine]
            for (name, p), offset in self._offsets(places, "latest").items():
                self._topics[name].ends[p] = offset
        self._stand()
        self._aimed = False

    def recall(self, schemas: Mapping[str, str], cut_time_us: int) -> None:
        """Know the schemas of the journal; a live reader keeps its own beside it."""
        if isinstance(self._bodies, SealedBodies):
            self._bodies.learn(schemas)

    def _seek_journaled(self, positions: dict[str, Any]) -> None:
        """Stand at journaled positions; where there are none, `retake` is told where it began."""
        self._check_ids(positions.get(IDS, {}))
        for name, topic in self._topics.items():
            for p in topic.mine:
                topic.at[p] = int(positions.get(name, {}).get(str(p), 0))

    def take(self, rows_max: int) -> Taken:
        """What has arrived, at most about `rows_max` records; does not wait.

        Raises
        ------
        SourceError : a topic is gone or was made anew, or may not be read any more
        """
        if not self._standing:
            self.seek({})
        if self._by_time and not self._aimed:
            self._aim_at_ends()
        held = sum(len(self._back[place]) for place in self._held)
        rows_max = min(rows_max, max(self._held_max - held, self._held_max // BITES, 1))
        together = self._catch_up.active(time.monotonic())
        together |= any(p not in self._held for p in self._back)
        messages, errors = self._oldest(rows_max) if together else self._arrived(rows_max)
        come_us = self._catch_up.come_us(time.monotonic()) if self._by_time else ALL_COME
        if messages:
            self._be_sure({message.topic() or "" for message in messages})
        full = len(messages) >= rows_max
        self.unpaced = full or (together and bool(messages))
        self._cut_us = max(self._cut_us, time.time_ns() // 1000)
        taken = self._taken(messages, self._cut_us)
        for message in errors:
            self._mend(message)
        for place in [p for p in self._marks if not self._back.get(p)]:
            self._end(place, self._marks.pop(place))
        if self._stuck:
            self._pass_gaps({(m.topic() or "", m.partition() or 0) for m in messages})
        self._release()
        if full and self._by_time:
            self._aim(self._places())
        taken.positions = self._positions()
        taken.come_us = come_us
        taken.gaps, self._gaps = tuple(self._gaps), []
        taken.waiting = sum(len(self._back[place]) for place in self._held)
        taken.eof = self._settings.kafka_until_end and self._ended()
        self._began = {}
        self._now_and_then()
        return taken

    def retake(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        cut_time_us: int,
        schemas: dict[str, str],
    ) -> Taken:
        """Exactly the offsets between two journaled positions, decoded with journaled schemas.

        Raises
        ------
        SourceError : offsets that are gone, a topic that was made anew, a broker that stays away
        """
        if self._bodies is not None:
            if self._bodies.ids != before.get(SCHEMAS, []):
                self._bodies.restore(before.get(SCHEMAS, []))
            self._bodies.learn(schemas)
        self._check_ids(after.get(IDS, {}))
        moved = not self._standing
        targets: dict[Place, int] = {}
        for name, topic in self._topics.items():
            begins, began = before.get(name, {}), after.get(FROM, {}).get(name, {})
            for p in topic.mine:
                text = str(p)
                until = after.get(name, {}).get(text)
                if until is None:
                    continue
                begin = max(int(begins.get(text, -1)), int(began.get(text, -1)))
                if begin >= 0 and begin != topic.at[p]:
                    topic.at[p] = begin
                    moved = True
                if until > topic.at[p]:
                    targets[name, p] = int(until)
        if moved:
            self._stand()
        messages = self._until(targets)
        self._cut_us = max(self._cut_us, cut_time_us)
        taken = self._taken(messages, cut_time_us, replay=True)
        for (name, p), until in targets.items():
            self._topics[name].at[p] = until
        taken.positions = after
        taken.gaps = tuple(_gaps(before, after))
        self._began = {}
        return taken

    def close(self) -> None:
        """Commit and let go of the connections."""
        self._catch_up.stop()
        if self._standing and not self._replay:
            self._commit()
        # It waits for the commit, a minute where the broker hangs: not at the end of a process.
        closing = threading.Thread(target=self._consumer.close, daemon=True)
        closing.start()
        closing.join(ANSWER_S)
        if self._bodies is not None:
            self._bodies.close()

    # -- start ------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Find the topics, their partitions and ids."""
        settings = self._settings
        types = {settings.kafka_topic_prefix + event_type(n).topic: n for n in settings.event_types}
        found = partitions_of(self._consumer, types, settings, self._troubles)
        for name, count in found.items():
            mine = [p for p in range(count) if p % settings.lanes == self._lane]
            full = np.full(count, END, np.int64)
            self._topics[name] = _Topic(types[name], mine, full, full.copy())
        # Brokers before 2.8 have no ids, and not everyone may ask for them: nobody waits for the
        # answer unless the journal knows of ids.
        self._ask_ids()

    def _ask_ids(self) -> None:
        """Ask for the ids of all topics; `_collect_ids` takes the answers."""
        if self._asking is None:
            # One for good: a connection each time costs more, and answers die with their client.
            # Its troubles are its own: the consumer says when brokers are away.
            options = client_options(self._settings, Troubles(self._settings.kafka_brokers), {}, {})
            self._asking = make_client(AdminClient, options)
        self._asking.poll(0)
        names = TopicCollection(list(self._topics))
        # A copy: the client itself looks answers up in the dict it gave.
        self._ids = dict(self._asking.describe_topics(names, request_timeout=ANSWER_S))
        self._ids_at = time.monotonic() + IDS_S

    def _collect_ids(self, wait_s: float) -> None:
        """Note the topics' ids, as far as the broker has told them.

        Raises
        ------
        SourceError : another id than the known one: the topic was made anew
        """
        for name in [n for n, answer in self._ids.items() if wait_s or answer.done()]:
            answer, topic = self._ids.pop(name), self._topics[name]
            try:
                topic_id = answer.result(wait_s).topic_id
            except (KafkaException, TimeoutError) as error:
                topic.in_doubt = _is_unknown(error)
                _log.debug("Kafka topic %r: no id (%s)", name, error)
                continue
            topic.in_doubt = False
            # Brokers before 2.8 have no ids: all of theirs are zero.
            told = str(topic_id) if topic_id.get_most_significant_bits() else ""
            if told and topic.id not in ("", told):
                raise _made_anew(name, topic.id, told)
            topic.id = told or topic.id

    def _be_sure(self, names: Collection[str]) -> None:
        """Before records are taken of a topic that may be another one by now: ask, and wait.

        A broker that does not answer in time is believed: it gave the records.
        """
        if any(self._topics[name].in_doubt for name in names):
            self._ask_ids()
            self._collect_ids(ANSWER_S)

    def _admin(self) -> AdminClient:
        """A client for questions about topics."""
        return make_client(AdminClient, client_options(self._settings, self._troubles, {}, {}))

    def _check_ids(self, journaled: Mapping[str, str]) -> None:
        """SourceError where a topic is another one than the journal speaks of."""
        if journaled:
            self._collect_ids(ANSWER_S)
            if any(not t.id for t in self._topics.values()):  # a topic made a moment ago
                self._ask_ids()
                self._collect_ids(ANSWER_S)
        for name, topic_id in journaled.items():
            topic = self._topics.get(name)
            if topic is None:
                continue
            if topic.id not in ("", topic_id):
                raise _made_anew(name, topic_id, topic.id)
            topic.id = topic_id  # where the broker has not told it yet, it is held against this

    def _first(self, places: list[Place]) -> dict[Place, int]:
        """Where the settings let partitions begin that have no position."""
        start = self._settings.kafka_from
        if self._from_us is None and start in ("earliest", "latest"):
            return self._offsets(places, start)
        from_us = time_us_of(start) if self._from_us is None else self._from_us
        if not places:
            return {}
        # Timestamps are milliseconds, cut down: rather a few events twice, which are found, than
        # one not at all.
        wanted = [TopicPartition(t, p, from_us // 1000) for t, p in places]
        # Ends first: what a producer adds between the two questions is neither before the time
        # nor skipped.
        ends = self._offsets(places, "latest")
        try:
            answers = self._consumer.offsets_for_times(wanted, timeout=CONNECT_S)
        except KafkaException as error:
            raise self._no_answer("offsets by time", error) from None
        faulty = [tp for tp in answers if tp.error is not None]
        if faulty:
            raise self._no_answer("offsets by time", KafkaException(faulty[0].error))
        found = {(tp.topic, tp.partition): tp.offset for tp in answers}
        return {place: at if at >= 0 else ends[place] for place, at in found.items()}

    def _offsets(self, places: list[Place], which: str) -> dict[Place, int]:
        """First offsets, or end offsets, of partitions."""
        if not places:
            return {}
        made = OffsetSpec.earliest if which == "earliest" else OffsetSpec.latest
        spec = made()  # type: ignore[no-untyped-call]
        admin = self._admin()
        give_up = time.monotonic() + CONNECT_S
        while True:
            try:
                answers = admin.list_offsets(
                    {TopicPartition(t, p): spec for t, p in places},
                    isolation_level=IsolationLevel.READ_COMMITTED,
                    request_timeout=CONNECT_S,
                )
                return {
                    (tp.topic, tp.partition): int(answer.result(CONNECT_S + 1.0).offset)
                    for tp, answer in answers.items()
                }
            except (KafkaException, TimeoutError) as error:
                # A topic made a moment ago has no leaders yet.
                if not _passes(error) or time.monotonic() > give_up:
                    raise self._no_answer(f"{which} offsets", error) from None
                time.sleep(RETRY_S)

    def _no_answer(self, what: str, error: Exception) -> SourceError:
        """A broker that does not say what it was asked."""
        heard = error.args[0].str() if isinstance(error, KafkaException) else "no answer in time"
        return SourceError(
            f"Kafka {self._settings.kafka_brokers}: asked for {what}: {heard}; is the broker up,"
            f" and may {self._settings.kafka_group!r} read the topics?"
        )

    def _stand(self) -> None:
        """Fetch from where we stand; whatever was read ahead is dropped."""
        self._back.clear()
        self._held.clear()
        self._paused.clear()
        self._resumed.clear()
        self._marks.clear()
        self._stuck.clear()
        self._catch_up.clear()
        self._assign()

    def _assign(self) -> None:
        """Assign all partitions at the offset after the last message we hold of them."""
        wanted = []
        for name, topic in self._topics.items():
            for p in topic.mine:
                back = self._back.get((name, p))
                offset = (back[-1].offset() or 0) + 1 if back else int(topic.at[p])
                wanted.append(TopicPartition(name, p, offset))
        self._consumer.assign(wanted)
        if self._paused:
            self._consumer.pause([TopicPartition(t, p) for t, p in self._paused])
        self._standing = True

    # -- reading ----------------------------------------------------------------------------------

    def _free(self) -> None:
        """Let go on what has waited for a schema that has come."""
        for place, schema_id in list(self._held.items()):
            if self._bodies is None or self._bodies.ready(schema_id):
                del self._held[place]

    def _arrived(self, rows_max: int) -> tuple[list[Message], list[Message]]:
        """Messages put back that may go on now, then those that have arrived; errors apart."""
        messages: list[Message] = []
        self._free()
        for place, back in self._back.items():
            if place in self._held:
                continue
            while back and len(messages) < rows_max:
                messages.append(back.popleft())
        if len(messages) >= rows_max:
            return messages, []
        return self._consume(messages, rows_max - len(messages), 0.0)

    def _oldest(self, rows_max: int) -> tuple[list[Message], list[Message]]:
        """While partitions are behind: of what is read the oldest by event time; errors apart."""
        now_s = time.monotonic()
        self._free()
        room = AHEAD_MAX - sum(map(len, self._back.values()))
        if self._catch_up.waits_for(set(self._places()) - self._back.keys() - self._paused):
            # Whom all wait for is read however much is kept of others: these are paused, or keep
            # less than their share.
            room = max(room, self._share())
        errors: list[Message] = []
        if room > 0:
            got, errors = self._consume([], min(rows_max, room), 0.0)
            self._put_by(got)
        self._learn(now_s)
        chosen = self._catch_up.choose(
            {place: len(back) for place, back in self._back.items()},
            lambda place: int(self._topics[place[0]].at[place[1]]),
            set(self._held),
            rows_max,
            now_s,
        )
        messages = [self._back[p].popleft() for p, many in chosen.items() for _ in range(many)]
        if any(not back for back in self._back.values()):
            self._back = {place: back for place, back in self._back.items() if back}
        many = self._share()
        self._pause([place for place, back in self._back.items() if len(back) > many])
        return messages, errors

    def _put_by(self, messages: list[Message]) -> None:
        """Keep messages by partition, each offset once and none behind a bounded run's end."""
        for message in messages:
            name, p, offset = message.topic() or "", message.partition() or 0, message.offset() or 0
            topic, back = self._topics[name], self._back.get((name, p))
            known = (back[-1].offset() or 0) + 1 if back else int(topic.at[p])
            if not known <= offset < topic.ends[p]:
                continue
            if back is None:
                back = self._back[name, p] = deque()
            back.append(message)
            if self._by_time and (name, p) in self._resumed:
                # What came in while it was paused is known now.
                self._resumed.discard((name, p))
                self._aim([(name, p)])

    def _learn(self, now_s: float) -> None:
        """Find the event times of messages that are kept."""
        for name, topic in self._topics.items():
            groups: dict[int, list[Message]] = {}
            for p in topic.mine:
                back = self._back.get((name, p))
                many = self._catch_up.unknown((name, p), back) if back else 0
                if back and many:
                    groups[p] = [back[i] for i in range(len(back) - many, len(back))]
            if not groups:
                continue
            records = _columns([m for group in groups.values() for m in group])
            times = self._event_times(topic, records)
            done = 0
            for p, group in groups.items():
                mine = slice(done, done + len(group))
                self._catch_up.learn((name, p), records.offset[mine], times[mine], now_s)
                done += len(group)

    def _event_times(self, topic: _Topic, records: _Records) -> Int64:
        """Event time of each record; of one that is no event, when it was produced."""
        due_ns = _due_ns(records.messages, self._cut_us)
        answers: dict[int, str | None] = {}
        if self._bodies is not None:
            known, fresh, waiting = self._bodies.look_up(schema_ids(records.values))
            answers = dict.fromkeys(waiting) | known
            self._fresh |= fresh
        found = decode(
            topic.event_type, self._settings.kafka_format, records.values, records.partition,
            records.offset, due_ns, answers, cut_time_us=time.time_ns() // 1000,
            past_us_max=self._past_us, future_us_max=self._future_us,
        )  # fmt: skip
        times = due_ns // 1000
        times[found.rows] = found.batch.time_us
        return times

    def _places(self) -> list[Place]:
        """The lane's partitions."""
        return [(name, p) for name, topic in self._topics.items() for p in topic.mine]

    def _share(self) -> int:
        """Messages kept of one partition."""
        return max(AHEAD_MIN, AHEAD_MAX // max(1, len(self._places())))

    def _aim(self, places: list[Place]) -> None:
        """Be behind where the broker has said that there is more."""
        ends = {}
        for place in places:
            marks = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            if marks is not None and marks[1] > self._topics[place[0]].at[place[1]]:
                ends[place] = min(int(marks[1]), int(self._topics[place[0]].ends[place[1]]))
        self._catch_up.aim(ends, time.monotonic())

    def _aim_at_ends(self) -> None:
        """Be behind until all is read that is there now; a broker that is away is asked once."""
        self._aimed = True
        try:
            found = self._offsets(self._places(), "latest")
        except SourceError:
            self._catch_up.stop()
            return
        ends = {
            (name, p): min(end, int(self._topics[name].ends[p]))
            for (name, p), end in found.items()
            if end > self._topics[name].at[p]
        }
        self._catch_up.aim(ends, time.monotonic())
        if not self._catch_up.behind:
            self._catch_up.stop()

    def _end(self, place: Place, offset: int) -> None:
        """A partition's end, where a bounded run is to stop."""
        topic = self._topics[place[0]]
        # The last offsets of a partition may be marks of transactions, which nobody gets.
        if offset >= topic.ends[place[1]]:
            topic.at[place[1]] = max(topic.at[place[1]], topic.ends[place[1]])

    def _consume(
        self, messages: list[Message], wanted: int, timeout_s: float
    ) -> tuple[list[Message], list[Message]]:
        """Append what has arrived to `messages`; errors apart."""
        got = self._consumer.consume(min(wanted, 1_000_000), timeout=timeout_s)
        if not any(map(Message.error, got)):
            messages.extend(got)
            errors = []
        else:
            messages.extend(m for m in got if m.error() is None)
            errors = [m for m in got if m.error() is not None]
        if messages:
            self._troubles.answered()
        return messages, errors

    def _until(self, targets: dict[Place, int]) -> list[Message]:
        """All messages before the offsets of `targets`; later ones are kept for the next call."""
        messages: list[Message] = []
        left: dict[Place, int] = {}
        for place, until in targets.items():
            if self._drain(place, until, messages):
                continue
            left[place] = until
        give_up = time.monotonic() + RETAKE_S
        while left:
            wanted = sum(until - int(self._topics[t].at[p]) for (t, p), until in left.items())
            got, errors = self._consume([], max(wanted, 1_000), 0.05)
            for message in got:
                place = (message.topic() or "", message.partition() or 0)
                self._back.setdefault(place, deque()).append(message)
            for place in {(m.topic() or "", m.partition() or 0) for m in got} & set(left):
                if self._drain(place, left[place], messages):
                    del left[place]
            for message in errors:
                self._refuse(message, left)
            if sum(map(len, self._back.values())) > AHEAD_MAX:
                self._pause([p for p in self._back if p not in left])
            if got:
                give_up = time.monotonic() + RETAKE_S
            elif time.monotonic() > give_up:
                (name, p), until = next(iter(left.items()))
                raise SourceError(
                    f"Kafka topic {name!r} partition {p}: journaled offsets up to {until} could not"
                    f" be read again within {RETAKE_S:.0f} s"
                    f" ({self._troubles.last or 'nothing came'}); is the broker up?"
                )
        return messages

    def _drain(self, place: Place, until: int, messages: list[Message]) -> bool:
        """Move kept messages before an offset to `messages`; whether the offset is reached."""
        back = self._back.get(place)
        last = -1
        while back and (offset := back[0].offset() or 0) < until:
            messages.append(back.popleft())
            last = offset
        # A later message proves that nothing before it is missing but what compaction took.
        return last == until - 1 or bool(back)

    def _refuse(self, message: Message, left: dict[Place, int]) -> None:
        """SourceError where an error means that journaled offsets cannot be had."""
        error = message.error()
        place = (message.topic() or "", message.partition() or 0)
        if error is None or place not in left:
            return
        name, p = place
        if error.code() == KafkaError._PARTITION_EOF:
            if (message.offset() or 0) >= left[place] and not self._back.get(place):
                del left[place]  # what stood last there was no record but a transaction's mark
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            low, high = self._watermarks(place)
            first, last = int(self._topics[name].at[p]), left[place] - 1
            raise SourceError(
                f"Kafka topic {name!r} partition {p}: the journal needs offsets {first} to {last},"
                f" the broker has {low} to {high - 1}; {min(low, last + 1) - first} records are"
                " gone, and rounds with them cannot be computed again: a flow has to start with an"
                " empty state_dir, and retention.ms must be longer"
            )
        else:
            self._raise_if_gone(message)

    # -- from messages to events ------------------------------------------------------------------

    def _taken(self, messages: list[Message], cut_us: int, replay: bool = False) -> Taken:
        """Events and rejects of messages; positions move past them."""
        batches: dict[str, EventBatch] = {}
        rejects: list[DeadLetter] = []
        schemas: dict[str, str] = {}
        received = 0
        groups: dict[str, list[Message]] = {name: [] for name in self._topics}
        for message in messages:
            groups[message.topic() or ""].append(message)
        for name, group in groups.items():
            if not group:
                continue
            topic = self._topics[name]
            records = self._wanted(topic, _columns(group), replay)
            answers: dict[int, str | None] = {}
            if self._bodies is not None:
                ids = schema_ids(records.values)
                if replay:
                    answers = self._bodies.known(ids)
                else:
                    answers, fresh, waiting = self._bodies.look_up(ids)
                    schemas |= fresh
                    if waiting:
                        records = self._hold(name, records, waiting)
            if not records.messages:
                continue
            received += len(records.messages)
            decoded = decode(
                topic.event_type,
                self._settings.kafka_format,
                records.values,
                records.partition,
                records.offset,
                _due_ns(records.messages, cut_us),
                answers,
                cut_time_us=cut_us,
                past_us_max=self._past_us,
                future_us_max=self._future_us,
            )
            if len(decoded.batch):
                batches[topic.event_type] = decoded.batch
            for r in decoded.rejects:
                rejects.append(
                    DeadLetter(r.reason, r.detail, topic.event_type, r.schema_id, name,
                               int(records.partition[r.row]), int(records.offset[r.row]),
                               records.values[r.row] or b"")
                )  # fmt: skip
            np.maximum.at(topic.at, records.partition, records.offset + 1)
        if not replay:
            schemas |= self._fresh
            self._fresh = {}
        return Taken(batches, rejects, {}, received, False, schemas, cut_us)

    def _wanted(self, topic: _Topic, records: _Records, replay: bool) -> _Records:
        """Each offset once, and none behind the end of a bounded run."""
        keep = records.offset >= topic.at[records.partition]
        if self._settings.kafka_until_end and not replay:
            keep &= records.offset < topic.ends[records.partition]
        return records.only(keep)

    def _hold(self, name: str, records: _Records, waiting: set[int]) -> _Records:
        """Put back, in each partition, the first record whose schema is waited for and the rest."""
        held: dict[int, deque[Message]] = {}
        keep = np.ones(len(records.messages), np.bool_)
        for i, p in enumerate(records.partition.tolist()):
            if p not in held:
                value = records.values[i]
                if not value or value[0] != 0 or len(value) < HEADER_BYTES:
                    continue
                schema_id = int.from_bytes(value[1:HEADER_BYTES], "big")
                if schema_id not in waiting:
                    continue
                self._held[name, p] = schema_id
                held[p] = deque()
            held[p].append(records.messages[i])
            keep[i] = False
        for p, back in held.items():
            back.extend(self._back.pop((name, p), ()))  # kept already: they came after these
            self._back[name, p] = back
        self._pause([(name, p) for p in held])
        return records.only(keep)

    def _pause(self, places: list[Place]) -> None:
        """Fetch no more of some partitions for now; bounds what is kept in memory."""
        new = [place for place in places if place not in self._paused]
        if new:
            self._consumer.pause([TopicPartition(t, p) for t, p in new])
            self._paused.update(new)

    def _release(self) -> None:
        """Fetch again where little is kept any more, and nothing that waits for a schema."""
        many = self._share() // 2
        free = [
            place
            for place in self._paused
            if not (back := self._back.get(place)) or (place not in self._held and len(back) < many)
        ]
        if free:
            self._resumed.update(free)
            self._consumer.resume([TopicPartition(t, p) for t, p in free])
            self._paused.difference_update(free)

    # -- positions and troubles -------------------------------------------------------------------

    def _positions(self) -> dict[str, Any]:
        """Where we stand, for the journal."""
        found: dict[str, Any] = {
            name: {str(p): int(topic.at[p]) for p in topic.mine}
            for name, topic in self._topics.items()
        }
        if self._ids:
            self._collect_ids(0.0)
        ids = {name: topic.id for name, topic in self._topics.items() if topic.id}
        if ids:
            found[IDS] = ids
        if self._bodies is not None:
            found[SCHEMAS] = self._bodies.ids
        found[CLOCK] = self._cut_us
        if self._began:
            began: dict[str, dict[str, int]] = {}
            for (name, p), offset in self._began.items():
                began.setdefault(name, {})[str(p)] = offset
            found[FROM] = began
        return found

    def _ended(self) -> bool:
        """Whether every partition has reached the end seen at start."""
        return all(bool(np.all(t.at[t.mine] >= t.ends[t.mine])) for t in self._topics.values())

    def _watermarks(self, place: Place) -> tuple[int, int]:
        """First offset and end offset of a partition, as the broker has them now."""
        try:
            low, high = self._consumer.get_watermark_offsets(
                TopicPartition(*place), timeout=ANSWER_S, cached=False
            )
        except KafkaException as error:
            raise self._no_answer("watermarks", error) from None
        return int(low), int(high)

    def _mend(self, message: Message) -> None:
        """Deal with an error of a partition: an end, a gap, a topic that is gone."""
        error = message.error()
        if error is None:
            return
        place = (message.topic() or "", message.partition() or 0)
        if error.code() == KafkaError._PARTITION_EOF:
            if self._back.get(place):
                self._marks[place] = message.offset() or 0
            else:
                self._end(place, message.offset() or 0)
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            self._topics[place[0]].in_doubt = True
            self._be_sure([place[0]])
            self._stuck.add(place)
        else:
            self._raise_if_gone(message)
            self._ids_at = 0.0
            self._troubles.last = str(error.str())

    def _raise_if_gone(self, message: Message) -> None:
        """SourceError where waiting does not help."""
        error = message.error()
        if error is not None and error.code() in _GONE:
            raise SourceError(
                f"Kafka topic {message.topic()!r} partition {message.partition()}: {error.str()};"
                " was it deleted, or the right to read it taken away? Restore it, or take its event"
                " type out of event_types"
            )

    def _pass_gaps(self, taken: set[Place]) -> None:
        """Go on after offsets that are gone, where nothing is kept of before them.

        Not in a round that takes records of before: it could not be taken again, for its positions
        say that it began after the gap. Until then nobody fetches of such a partition.
        """
        free = [p for p in self._stuck if p not in taken and not self._back.get(p)]
        for place in free:
            self._stuck.discard(place)
            self._skip(place)

    def _skip(self, place: Place) -> None:
        """Go on after offsets that are gone, and say which."""
        name, p = place
        topic = self._topics[name]
        wanted = int(topic.at[p])
        low, high = self._watermarks(place)
        if wanted > high:
            raise SourceError(
                f"Kafka topic {name!r} partition {p} ends at {high}, the journal has read to"
                f" {wanted}: the topic was made anew or lost records; start with an empty"
                " state_dir, or take its event type out of event_types to go on with the others"
            )
        if wanted < low:
            _log.warning(
                "Kafka topic %r partition %d: offsets %d to %d (%d records) were deleted before"
                " they were read; going on at %d; lengthen retention.ms, or make no long breaks",
                name, p, wanted, low - 1, low - wanted, low,
            )  # fmt: skip
            self._gaps.append(Gap(name, p, wanted, low - 1))
            topic.at[p] = low
            self._began[place] = low
        self._assign()

    def _now_and_then(self) -> None:
        """What is done every few seconds: commit offsets, ask for ids and new partitions."""
        now = time.monotonic()
        if now >= self._commit_at:
            self._commit_at = now + COMMIT_S
            self._commit()
        if now >= self._look_at:
            if self._look_at and not self._troubles.down:
                self._look_for_partitions()
            self._look_at = now + PARTITIONS_S
        if now >= self._ids_at and not self._ids:
            self._ask_ids()

    def _commit(self) -> None:
        """Commit where we stand, for lag tools; nobody depends on it."""
        offsets = [
            TopicPartition(name, p, int(topic.at[p]))
            for name, topic in self._topics.items()
            for p in topic.mine
        ]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._troubles.last = str(error.args[0].str())

    def _look_for_partitions(self) -> None:
        """Read partitions that were added to a topic, from their beginning."""
        new: list[Place] = []
        for name, topic in self._topics.items():
            try:
                found = self._consumer.list_topics(name, timeout=1.0).topics[name]
            except KafkaException:
                return
            have, count = len(topic.at), len(found.partitions)
            if count > have:
                more = np.full(count - have, END, np.int64)
                topic.at = np.concatenate([topic.at, more])
                topic.ends = np.concatenate([topic.ends, more])
                new += [(name, p) for p in range(have, count)
                        if p % self._settings.lanes == self._lane]  # fmt: skip
        for name, p in new:
            self._topics[name].at[p] = 0
            self._topics[name].mine.append(p)
            self._began[name, p] = 0
        if new:
            _log.warning("Kafka: new partitions %s are read from their beginning", new)
            self._assign()


def _gaps(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Gap]:
    """Offsets between two journaled positions that were gone when they were to be read."""
    for name, began in after.get(FROM, {}).items():
        for p, offset in began.items():
            wanted = before.get(name, {}).get(p)
            if wanted is not None and int(wanted) < offset:
                yield Gap(name, int(p), int(wanted), offset - 1)


def _made_anew(name: str, was: str, now: str) -> SourceError:
    """The fault of a topic that is another one than what was read of it."""
    return SourceError(
        f"Kafka topic {name!r} was deleted and made anew since the journal was written (its id was"
        f" {was}, is {now}); start with an empty state_dir, or go on with the others: take its"
        " event type out of event_types"
    )


def _is_unknown(error: Exception) -> bool:
    """Whether a broker says that there is no such topic."""
    said = error.args[0] if error.args else None
    return isinstance(said, KafkaError) and said.code() == KafkaError.UNKNOWN_TOPIC_OR_PART


def _passes(error: Exception) -> bool:
    """Whether an error goes away by itself."""
    said = error.args[0] if error.args else None
    return isinstance(said, KafkaError) and said.code() in _PASSING


def _columns(messages: list[Message]) -> _Records:
    """Messages of one topic as columns."""
    n = len(messages)
    return _Records(
        messages,
        list(map(Message.value, messages)),
        np.fromiter(map(Message.partition, messages), np.int32, n),
        np.fromiter(map(Message.offset, messages), np.int64, n),
    )


def _due_ns(messages: list[Message], cut_us: int) -> Int64:
    """int64 (n,), when each message was produced, by its timestamp; now where it has none."""
    times = map(itemgetter(1), map(Message.timestamp, messages))
    due_ns = np.fromiter(times, np.int64, len(messages)) * 1_000_000
    due_ns[due_ns < 0] = cut_us * 1000
    return due_ns
