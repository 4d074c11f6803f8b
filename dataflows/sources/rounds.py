"""Rounds: each lane of a source cuts what has arrived every `round_ms` and journals the cut first.

This is the only place where order is decided and the only place where a clock is read. A lane that
is started again first cuts the rounds of its journal exactly as they were, then new ones.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from dataflows.control.records import ControlReader
from dataflows.poison import without_poison
from dataflows.sources.base import DeadLetter, Gap, LaneReader, Taken
from dataflows.state.journal import Cut, RoundJournal, read_cuts, standing
from features.batch import EventBatch
from features.errors import StateError
from features.events import event_code
from features.keys import UInt64, hash_strings

__all__ = [
    "Lane",
    "LanePartition",
    "Lanes",
    "Part",
    "RoundSource",
    "checksum",
    "journal_folder",
    "lane_name",
]


BAD_RECORD = "bad_control_record"
"""Reason of a dead letter that is no control record."""


def lane_name(lane: int) -> str:
    """Name of a lane's partition, folder and key."""
    return f"lane-{lane:02d}"


@dataclass(frozen=True, slots=True)
class Part:
    """What one lane cut in one round.

    Parameters
    ----------
    lane, round : which
    cut_time_us : the round's clock as this lane knows it
    batches : event type -> events, in order; types without events are left out
    ids : event type -> uint64 (n,), keys of the event ids
    control : control records read with this round (lane 0 only)
    received : events taken from the source, rejects included
    rejects : events that did not decode or broke their contract
    final : the lane has ended with this round
    replayed : the round came from the journal
    rates : version of the table of exchange rates in force; 0 where there is none
    gaps : records that the source no longer had
    waiting : records that have come and are not among `received` yet
    """

    lane: int
    round: int
    cut_time_us: int
    batches: dict[str, EventBatch]
    ids: dict[str, UInt64]
    control: tuple[dict[str, Any], ...] = ()
    received: int = 0
    rejects: tuple[DeadLetter, ...] = ()
    final: bool = False
    replayed: bool = False
    rates: int = 0
    gaps: tuple[Gap, ...] = ()
    waiting: int = 0


class Lanes:
    """The lanes of one process that have not ended, and how far each has come.

    The lane that reads the control records outlives the others: it cuts rounds without events until
    they have ended, so that what a person says is heard to the end. It keeps to their pace.
    """

    def __init__(self) -> None:
        self._rounds: dict[int, int] = {}

    def cut(self, lane: int, round_: int, final: bool = False) -> None:
        """Note a lane's newest round; `final` ends it."""
        self._rounds[lane] = round_
        if final:
            del self._rounds[lane]

    def others(self, lane: int) -> list[int]:
        """Newest rounds of the other lanes that have not ended."""
        return [round_ for other, round_ in list(self._rounds.items()) if other != lane]


@dataclass(slots=True)
class Lane:
    """All that a lane needs to cut rounds: its reader, journal, control lane and place to start."""

    lane: int
    reader: LaneReader
    journal: RoundJournal
    round_ms: int
    rows_max: int
    stop: Callable[[], bool]
    control: ControlReader | None = None
    lanes: Lanes = field(default_factory=Lanes)
    stage: Callable[[str, float], None] = lambda _name, _seconds: None
    """Told how long reading (`source`) and the journal (`journal`) took; decides nothing."""
    withheld: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Round -> notes on its events that made a step raise (`dataflows.poison`)."""
    hear: Callable[[int], None] = lambda _clock_us: None
    """Told, before the control lane is asked, how far the stream had come before the round."""
    labels_origin: str = ""
    """File or topic of labels, as dead letters name it."""
    rates: Callable[[], int] = lambda: 0
    """The version of the table of exchange rates that a new round is cut with."""
    round: int = 0
    cut_time_us: int = 0
    positions: dict[str, Any] = field(default_factory=dict)
    replay: Iterator[Cut] = field(default_factory=lambda: iter(()))
    pending: Cut | None = None
    ended: bool = False
    waits: bool = False
    closed: bool = False

    def start(self, manifest_round: int) -> None:
        """Stand after round `manifest_round`, with the rounds after it waiting to be cut again.

        Raises
        ------
        StateError : the journal does not reach the manifest's round
        """
        before, schemas = standing(self.journal.folder, manifest_round)
        if (
            manifest_round
            and (before is None or before.round < manifest_round)
            and not (before is not None and before.final)
        ):
            raise StateError(
                f"{lane_name(self.lane)}: round {manifest_round} is said to be durable, but the"
                f" journal ends at {0 if before is None else before.round}; restore"
                f" {self.journal.folder} from a copy, or start with an empty state_dir"
            )
        self.round = manifest_round
        self.ended = before is not None and before.final
        if before is not None:
            self.cut_time_us = before.cut_time_us
            self.positions = before.positions
            if self.control is not None:
                self.control.seek(before.positions.get("control"))
        # A reader that asks the world (a registry) is told what the journal knows of its answers.
        recall: Callable[[dict[str, str], int], None] | None = getattr(self.reader, "recall", None)
        if recall is not None:
            recall(schemas, self.cut_time_us)
        self.reader.seek({k: v for k, v in self.positions.items() if k != "control"})
        self.replay = read_cuts(self.journal.folder, manifest_round)
        self.pending = next(self.replay, None)
        if self.control is not None and self.pending is None:
            self.control.open()

    def cut(self) -> Part:
        """The next round's part: the journaled one where there is one, else a new cut."""
        self.round += 1
        part = self._cut_new() if self.pending is None else self._cut_again(self.pending)
        self.lanes.cut(self.lane, self.round, part.final)
        return part

    def close(self) -> None:
        """Let go of source, control records and journal; a second time nothing happens."""
        if self.closed:
            return
        self.closed = True
        self.reader.close()
        if self.control is not None:
            self.control.close()
        self.journal.close()

    @property
    def behind(self) -> bool:
        """Whether its source has ended and other lanes, for which it stays, are further."""
        return self.waits and any(round_ > self.round for round_ in self.lanes.others(self.lane))

    def _cut_again(self, cut: Cut) -> Part:
        """Read exactly what the journal says the round held."""
        if cut.round > self.round:
            if not self.ended:
                raise StateError(
                    f"{lane_name(self.lane)}: the journal has no round {self.round}, its next one"
                    f" is {cut.round}; restore {self.journal.folder} from a copy, or start with an"
                    " empty state_dir"
                )
            # The lane had ended before this round while others went on, and was started again
            # later. It had no say in the round's clock then, so it has none now: 0.
            return Part(self.lane, self.round, 0, {}, {}, replayed=True)
        before = {k: v for k, v in self.positions.items() if k != "control"}
        after = {k: v for k, v in cut.positions.items() if k != "control"}
        clock_us = cut.cut_time_us if cut.source_time_us is None else cut.source_time_us
        taken = self.reader.retake(before, after, clock_us, cut.schemas)
        received = taken.received
        taken.rejects.extend(self._bad_lines(cut.faults))
        part = self._part(
            taken, cut.cut_time_us, tuple(cut.control), replayed=True, rates=cut.rates
        )
        if checksum(part) != cut.checksum or received != cut.received:
            raise StateError(
                f"{lane_name(self.lane)}: round {cut.round} of the journal had {cut.received}"
                f" events, the source now gives {received} others for the same positions;"
                " start with the settings and the data it was written with, or with an empty"
                " state_dir"
            )
        self.cut_time_us, self.positions, self.ended = cut.cut_time_us, cut.positions, cut.final
        if self.control is not None:
            self.control.seek(cut.positions.get("control"))
        self.pending = next(self.replay, None)
        # What made a step raise was journaled before it did.
        return without_poison(part, self.withheld.get(cut.round, ()))

    def _cut_new(self) -> Part:
        """Cut what has arrived and make the cut durable before anyone sees it."""
        final = self.stop()
        if final:
            taken = Taken({}, [], dict(self.positions), 0, False, {}, self.cut_time_us)
        else:
            begun = time.perf_counter()
            taken = self.reader.take(self.rows_max)
            self.stage("source", time.perf_counter() - begun)
        records: list[dict[str, Any]] = []
        faults: list[tuple[Any, ...]] = []
        if self.control is not None and not final:
            self.hear(self._come_us(taken))
            records, bad = self.control.take()
            faults = [
                (
                    f.offset,
                    f.raw.decode("latin-1"),
                    f.reason,
                    f.partition,
                    *([f.of] if f.of else []),
                )
                for f in bad
            ]
            taken.rejects.extend(self._bad_lines(faults))
        cut_time_us = max(self.cut_time_us, taken.cut_time_us)
        self.waits = taken.eof and self.control is not None and bool(self.lanes.others(self.lane))
        final = final or (taken.eof and not self.waits)
        part = self._part(taken, cut_time_us, tuple(records), final=final, rates=self.rates())
        positions = {k: v for k, v in taken.positions.items() if k != "control"}
        if self.control is not None:
            positions["control"] = self.control.position
        begun = time.perf_counter()
        self.journal.append(
            Cut(
                self.round,
                cut_time_us,
                positions,
                taken.received,
                checksum(part),
                records,
                dict(taken.schemas),
                faults,
                None if taken.cut_time_us == cut_time_us else taken.cut_time_us,
                final,
                part.rates,
            )
        )
        self.stage("journal", time.perf_counter() - begun)
        self.cut_time_us, self.positions, self.ended = cut_time_us, positions, final
        return part

    def _come_us(self, taken: Taken) -> int:
        """Event time the stream had come to before what was taken."""
        if taken.come_us is not None:
            return taken.come_us
        firsts = [int(batch.time_us.min()) for batch in taken.batches.values() if len(batch)]
        return max(self.cut_time_us, min(firsts, default=0))

    def _bad_lines(self, faults: Sequence[tuple[Any, ...]]) -> list[DeadLetter]:
        """Dead letters of what the control lane held that is no record."""
        origin = "" if self.control is None else self.control.origin
        letters = []
        for at, line, fault, partition, *of in faults:
            reason, where = ("bad_label", self.labels_origin) if of else (BAD_RECORD, origin)
            raw = line.encode("latin-1")
            letters.append(DeadLetter(reason, fault, "control", None, where, partition, at, raw))
        return letters

    def _part(
        self,
        taken: Taken,
        cut_time_us: int,
        control: tuple[dict[str, Any], ...],
        final: bool = False,
        replayed: bool = False,
        rates: int = 0,
    ) -> Part:
        """A part of what was taken, each batch in order."""
        batches = {name: batch.in_order() for name, batch in taken.batches.items() if len(batch)}
        batches = {name: batches[name] for name in sorted(batches, key=event_code)}
        ids = {name: hash_strings(batch.frame["event_id"]) for name, batch in batches.items()}
        rejects = tuple(
            replace(letter, round=self.round) for letter in sorted(taken.rejects, key=_place)
        )
        return Part(
            self.lane,
            self.round,
            cut_time_us,
            batches,
            ids,
            control,
            taken.received,
            rejects,
            final,
            replayed,
            rates,
            taken.gaps,
            taken.waiting,
        )


def _place(letter: DeadLetter) -> tuple[str, int, int]:
    """The order of rejects in a part: partitions arrive in another order every time."""
    return letter.event_type, letter.partition, letter.offset


def checksum(part: Part) -> int:
    """crc32 of a part's events (type, id, time, place, in order) and of where its rejects stood.

    It finds another file, a moved offset, another limit of a contract. That the other columns of an
    event have stayed what they were is the source's word: a log and a file are not written over.
    """
    crc = 0
    for name, ids in part.ids.items():
        batch = part.batches[name]
        crc = zlib.crc32(name.encode(), crc)
        for column in (ids, batch.time_us, batch.partition, batch.offset):
            crc = zlib.crc32(np.ascontiguousarray(column).data.cast("B"), crc)
    for letter in part.rejects:
        # Not the topic, which may be the path of a file: a state folder may be moved.
        place = f"{letter.reason} {letter.event_type} {letter.partition} {letter.offset}\n"
        crc = zlib.crc32(place.encode(), crc)
    return crc


class LanePartition(StatefulSourcePartition[Part, int]):
    """A lane as Bytewax polls it: one part a poll, a poll a round."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._ended = False
        self._due = time.monotonic()

    def next_batch(self) -> list[Part]:
        if self._ended:
            raise StopIteration
        part = self._lane.cut()
        self._ended = part.final
        step_s = self._lane.round_ms / 1000.0
        now = time.monotonic()
        self._due = now if part.replayed else max(self._due + step_s, now)
        return [part]

    def next_awake(self) -> datetime | None:
        lane = self._lane
        if lane.pending is not None or lane.reader.unpaced or lane.behind or self._ended:
            return None
        wait_s = max(0.0, self._due - time.monotonic())
        return datetime.now(UTC) + timedelta(seconds=wait_s)

    def snapshot(self) -> int:
        return self._lane.round

    def close(self) -> None:
        self._lane.close()


class RoundSource(FixedPartitionedSource[Part, int]):
    """The lanes of a source as Bytewax's input.

    Parameters
    ----------
    lanes : how many; fixed for good by the journal
    make_lane : opens one lane, standing where its journal and the manifest say. What Bytewax itself
        remembers of a position is not used: the manifest is the only truth.
    """

    def __init__(self, lanes: int, make_lane: Callable[[int], Lane]) -> None:
        self._lanes = lanes
        self._make_lane = make_lane

    def list_parts(self) -> list[str]:
        return [lane_name(i) for i in range(self._lanes)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> LanePartition:
        return LanePartition(self._make_lane(int(for_part.removeprefix("lane-"))))


def journal_folder(state_dir: Path, lane: int) -> Path:
    """Where a lane's journal lies."""
    return state_dir / "journal" / lane_name(lane)
