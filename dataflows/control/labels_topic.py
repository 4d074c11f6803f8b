"""Labels of a Kafka topic: for those whose verdicts are events themselves."""

from __future__ import annotations

import heapq
import logging
import time
from collections import deque
from itertools import islice
from typing import Any, NamedTuple

from confluent_kafka import Consumer, Message, TopicPartition

from dataflows.control import topic as control_topic
from dataflows.control.labels import (
    BEHIND_MAX,
    LABELS,
    read_label,
    shown_time,
    told_late,
    too_late,
)
from dataflows.control.records import READ_BYTES_MAX, Fault, shown_line
from dataflows.control.topic import FIRST_S, ControlTopic
from dataflows.settings import Settings

__all__ = ["LabelTopic"]

POLL_S = 0.05
"""Longest wait for messages between two looks at what has come. Chosen: half a round."""

_log = logging.getLogger(__name__)


class _Held(NamedTuple):
    """A message that was read and not yet taken: its offset, value, and what it is."""

    offset: int
    raw: bytes
    found: dict[str, Any] | Fault | None


def _time_us(one: _Held) -> int:
    """The time of a label; 0 of what is none, which waits for nothing."""
    return int(one.found["time_us"]) if isinstance(one.found, dict) else 0


class LabelTopic(ControlTopic):
    """Labels of a Kafka topic, JSON objects.

    A label waits for the stream to come as far as its time, and those behind it in its partition
    wait too: each partition stands in the order of time. The position is that of what was taken, so
    what waits is read again after a restart. At most twice `RECORDS_MAX` messages of a partition
    are held.

    Parameters
    ----------
    settings : `labels_topic`, `event_types`, and the `kafka_*` settings of the connection
    """

    setting = "labels_topic"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.model_copy(update={"control_topic": settings.labels_topic}))
        self._types = settings.event_types
        self._clock_us = 0
        self._held: dict[int, deque[_Held]] = {}
        self._paused: set[int] = set()

    def hear(self, clock_us: int) -> None:
        """Say how far the stream has come."""
        self._clock_us = clock_us

    def take(self) -> tuple[list[dict[str, Any]], list[Fault]]:
        """New labels whose time has come, in its order, and messages that are none.

        It waits, FIRST_S at most, until it has what the topic held of them when it began: a
        backlog of events is read as fast as it can be, and what was said in its time is heard in
        its time.
        """
        if self._consumer is None:
            self.open()
        if self._consumer is None:  # `open` has set it or raised
            return [], []
        self._fetch(self._consumer, 0.0)
        give_up = time.monotonic() + FIRST_S
        while self._lacks():
            if self._troubles.down or time.monotonic() > give_up:
                self._behind = set()
                break
            self._fetch(self._consumer, POLL_S)
        records, faults = self._due()
        self._release(self._consumer)
        return records, faults

    def close(self) -> None:
        """Say what was not heard of, and let go of the connection."""
        waits = [queue[0] for queue in self._held.values() if queue]
        times = [_time_us(one) for one in waits if self._waits(one)]
        if times:
            _log.warning(
                "%s %r: labels from offsets %s on wait for %s, the stream has come to %s",
                self.setting, self.origin, {p: q[0].offset for p, q in self._held.items() if q},
                shown_time(min(times)), shown_time(self._clock_us),
            )  # fmt: skip
        self._held = {}
        super().close()

    def _lacks(self) -> bool:
        """Whether labels of before the start may be due that are not here yet."""
        return any(not self._waits(self._last(p)) for p in self._behind - self._paused)

    def _last(self, partition: int) -> _Held | None:
        """The newest message held of a partition."""
        queue = self._held.get(partition)
        return queue[-1] if queue else None

    def _waits(self, one: _Held | None) -> bool:
        """Whether it is a label whose time has not come."""
        return one is not None and _time_us(one) > self._clock_us

    def _fetch(self, consumer: Consumer, timeout_s: float) -> None:
        """Hold what has arrived; errors are dealt with."""
        got = consumer.consume(control_topic.RECORDS_MAX, timeout=timeout_s)
        for message in got:
            if message.error() is None:
                self._hold(message)
                self._troubles.answered()
        for message in got:
            if message.error() is not None:
                self._mend(consumer, message)
        full = {
            p
            for p, queue in self._held.items()
            if len(queue) >= control_topic.RECORDS_MAX and p not in self._paused
        }
        if full:
            consumer.pause([TopicPartition(self.origin, p) for p in full])
            self._paused |= full

    def _hold(self, message: Message) -> None:
        """Hold a message, each offset once."""
        p, offset = message.partition() or 0, message.offset() or 0
        last = self._last(p)
        if offset < (self._at[p] if last is None else last.offset + 1):
            return
        raw = message.value() or b""
        self._held.setdefault(p, deque()).append(
            _Held(offset, raw, read_label(raw, offset, p, self._types))
        )

    def _due(self) -> tuple[list[dict[str, Any]], list[Fault]]:
        """Labels whose time has come, in its order, and messages that are none; as many as a round
        takes."""
        records: list[dict[str, Any]] = []
        faults: list[Fault] = []
        heads = [(_time_us(queue[0]), p) for p, queue in self._held.items() if queue]
        heapq.heapify(heads)
        many = taken = 0
        while heads and many < control_topic.RECORDS_MAX:
            p = heapq.heappop(heads)[1]
            queue = self._held[p]
            one, found = queue[0], queue[0].found
            if self._waits(one):
                told = self._never(queue)
                if told is None:
                    continue
                found = Fault(one.offset, shown_line(one.raw), told, p, LABELS)
            many, taken = many + 1, taken + len(one.raw)
            if many > 1 and taken > READ_BYTES_MAX:
                break
            queue.popleft()
            self._at[p] = one.offset + 1
            if isinstance(found, Fault):
                faults.append(found)
            elif found is not None:
                records.append(found)
            if queue:
                heapq.heappush(heads, (_time_us(queue[0]), p))
        return records, faults

    def _never(self, queue: deque[_Held]) -> str | None:
        """What is wrong with the time of a label that waits before others; None of most."""
        behind = (other.found for other in islice(queue, 1, 1 + BEHIND_MAX))
        time_us = _time_us(queue[0])
        return told_late(time_us) if too_late(time_us, self._clock_us, behind) else None

    def _release(self, consumer: Consumer) -> None:
        """Fetch again where little is held."""
        free = {p for p in self._paused if len(self._held[p]) < control_topic.RECORDS_MAX // 2}
        if free:
            consumer.resume([TopicPartition(self.origin, p) for p in free])
            self._paused -= free

    def _assign(self, consumer: Consumer) -> None:
        """Fetch from where we stand; what was held is read again."""
        self._held = {}
        self._paused = set()
        super()._assign(consumer)
