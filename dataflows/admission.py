"""The door of a lane: repeats go no further, and what comes too late or too early is refused.

The stream (`dataflows.steps.Admit`) and history (`dataflows.history`) go through the same door, a
function of the rounds alone. Nothing is lost here: an event is admitted, counted as a duplicate, or
becomes a dead letter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from dataflows.arrivals import Arrivals
from dataflows.settings import Settings
from dataflows.sources.base import DeadLetter
from features.batch import EventBatch
from features.clock import IN_TIME, TOO_LATE, LaneClock
from features.currency import Priced, Rates
from features.encode import json_bodies
from features.events import event_type
from features.keys import UInt64
from features.labels import Label
from features.repeats import RepeatFilter, event_keys

__all__ = ["Admission", "Admitted", "origin_of"]


@dataclass(frozen=True, slots=True)
class Admitted:
    """What a round came to at the door.

    Parameters
    ----------
    batches : event type -> events that go on; types without are left out
    duplicates : events that had been seen before
    refused : events that came too late or too early
    clock_us : the lane's event-time clock with this round in it
    due_us : that of its place furthest behind; who is overdue by it is silent
    unpriced, old_rate : as of `features.currency.Priced`, of what goes on
    labels : what the data said of earlier events and is heard of before these
    """

    batches: dict[str, EventBatch]
    duplicates: int
    refused: tuple[DeadLetter, ...]
    clock_us: int
    due_us: int
    unpriced: Mapping[str, int] = field(default_factory=dict)
    old_rate: Mapping[str, int] = field(default_factory=dict)
    labels: tuple[Label, ...] = ()


class Admission:
    """The filter of repeats and the clock of one lane.

    Parameters
    ----------
    settings : `dedup_horizon_s`, `late_s`, `early_s`, and the names of topics and files
    by_partition : whether the partitions of the source advance each at their own pace (Kafka)
    arrivals : labels on their way, of a lane whose rounds are not cut where they arrive; None:
        nothing is heard of them here
    """

    def __init__(
        self, settings: Settings, by_partition: bool = False, arrivals: Arrivals | None = None
    ) -> None:
        self._settings = settings
        self.arrivals = arrivals
        self._repeats = RepeatFilter(settings.dedup_horizon_s * 1_000_000)
        self._clock = LaneClock(
            round(settings.late_s * 1e6), round(settings.early_s * 1e6), by_partition
        )

    def admit(
        self,
        batches: Mapping[str, EventBatch],
        ids: Mapping[str, UInt64],
        cut_time_us: int,
        round_: int = 0,
        rates: Rates | None = None,
    ) -> Admitted:
        """Let a round through.

        Parameters
        ----------
        batches : event type -> its events, in order
        ids : event type -> uint64 (n,), hashes of the event ids
        cut_time_us : the round's clock
        round_ : its number, for the dead letters
        rates : table of exchange rates in force; None converts nothing
        """
        kept: dict[str, EventBatch] = {}
        refused: list[DeadLetter] = []
        duplicates = 0
        for name, batch in batches.items():
            verdict = self._clock.judge(batch, cut_time_us)
            fresh = self._fresh(event_keys(name, ids[name]), verdict == IN_TIME, cut_time_us)
            duplicates += len(batch) - int(np.count_nonzero(fresh))
            out = np.flatnonzero(fresh & (verdict != IN_TIME))
            if len(out):
                refused += self._letters(batch.take(out), verdict[out], cut_time_us, round_)
                fresh &= verdict == IN_TIME
            goes_on = int(np.count_nonzero(fresh))
            if goes_on:
                whole = goes_on == len(batch)
                kept[name] = batch if whole else batch.take(np.flatnonzero(fresh))
        labels: tuple[Label, ...] = ()
        if self.arrivals is not None:
            labels = self.arrivals.heard(kept, self._clock.clock_us)
        clock_us = self._clock.advance(kept, cut_time_us)
        unpriced: Counter[str] = Counter()
        old_rate: Counter[str] = Counter()
        for name, batch in kept.items():
            priced = Priced(batch) if rates is None else rates.price(batch)
            kept[name] = priced.batch
            unpriced.update(priced.unpriced)
            old_rate.update(priced.old)
        due_us = self._clock.due_us
        return Admitted(
            kept, duplicates, tuple(refused), clock_us, due_us, unpriced, old_rate, labels
        )  # fmt: skip

    def _fresh(
        self, keys: UInt64, in_time: npt.NDArray[np.bool_], cut_time_us: int
    ) -> npt.NDArray[np.bool_]:
        """Events not seen before. One that is refused is not remembered: put right, or once it is
        time, it may be sent again."""
        if in_time.all():
            return self._repeats.admit(keys, cut_time_us)
        fresh = np.empty(len(keys), np.bool_)
        fresh[in_time] = self._repeats.admit(keys[in_time], cut_time_us)
        fresh[~in_time] = ~self._repeats.known(keys[~in_time], cut_time_us)
        return fresh

    def _letters(
        self, batch: EventBatch, verdict: npt.NDArray[np.int8], cut_time_us: int, round_: int
    ) -> list[DeadLetter]:
        """Dead letters of events that were refused."""
        topic = origin_of(self._settings, batch.event_type)
        late_us = self._clock.late_by_us(batch)
        letters = []
        for row, raw in enumerate(json_bodies(batch.frame)):
            behind_us = int(late_us[row])
            clock_us = int(batch.time_us[row]) + behind_us
            if verdict[row] == TOO_LATE:
                reason = "too_late"
                detail = (
                    f"time_us: {behind_us / 1e6:.3f} s before the event-time clock"
                    f" {_shown(clock_us)}, late_s is {self._settings.late_s:g}"
                )
            else:
                reason = "too_early"
                ahead_us = behind_us + max(cut_time_us - clock_us, 0)
                detail = (
                    f"time_us: {-ahead_us / 1e6:.3f} s beyond the event-time clock"
                    f" {_shown(max(clock_us, cut_time_us))}, early_s is"
                    f" {self._settings.early_s:g}"
                )
            place = int(batch.partition[row]), int(batch.offset[row])
            letters.append(
                DeadLetter(reason, detail, batch.event_type, None, topic, *place, raw, round_)
            )
        return letters

    @property
    def needed_since_us(self) -> int:
        """What `delta` gave before this cut time is needed no more."""
        return self._repeats.needed_since_us

    def full(self) -> dict[str, npt.NDArray[Any]]:
        """The whole state as arrays by name."""
        return {**self._repeats.full(), **self._clock.dump(), **self._labels()}

    def delta(self) -> dict[str, npt.NDArray[Any]]:
        """What changed since the last `full` or `delta`; clock and labels always whole."""
        return {**self._repeats.delta(), **self._clock.dump(), **self._labels()}

    def _labels(self) -> dict[str, npt.NDArray[Any]]:
        """Labels on their way."""
        return {} if self.arrivals is None else self.arrivals.dump()

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take in a base or a delta, oldest first."""
        self._repeats.load(dict(arrays))
        self._clock.load(arrays)
        if self.arrivals is not None:
            self.arrivals.load(arrays)


def origin_of(settings: Settings, name: str) -> str:
    """Where the events of a type come from: topic, path of a file, or the simulator."""
    if settings.source == "kafka":
        return settings.kafka_topic_prefix + event_type(name).topic
    if settings.source == "file" and name in settings.file_paths:
        return str(settings.file_paths[name])
    return settings.source


def _shown(time_us: int) -> str:
    """A time for people."""
    moment = datetime.fromtimestamp(time_us / 1e6, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_us // 1000 % 1000:03d}Z"
