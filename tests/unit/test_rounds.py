"""Lanes: a cut is on the disk before anyone sees it, and is cut again so after any death."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflows.control.records import ControlFile, Fault
from dataflows.settings import load
from dataflows.sources.base import DeadLetter, Taken
from dataflows.sources.rounds import Lane, Part, checksum
from dataflows.sources.simulator import SimulatorReader
from dataflows.state.journal import LaneJournal, read_cuts
from features.batch import EventBatch
from features.errors import SourceError, StateError
from tests.streams import START_US, stream

SEGMENT_BYTES = 1 << 16
SIZES = [3, 0, 7, 1, 0, 5, 40]


class Arrivals:
    """A source whose events lie in a list: some arrive each time, every fifth is no event.

    `clock_us` gives the wall clock of each call, which may run backwards.
    """

    unpaced = True

    def __init__(self, batch: EventBatch, sizes: list[int], clock_us: list[int]) -> None:
        self.batch, self.sizes, self.clock_us = batch, sizes, clock_us
        self.at = self.calls = 0
        self.limit_us: int | None = None

    def seek(self, positions: dict[str, Any]) -> None:
        self.at, self.calls = positions.get("at", 0), positions.get("calls", 0)

    def _between(self, low: int, high: int, clock_us: int, calls: int) -> Taken:
        rows = np.arange(low, high)
        bad = rows[rows % 5 == 4]
        good = rows[rows % 5 != 4]
        letters = [
            DeadLetter(
                "out_of_range", f"at {clock_us}", "payment", None, "payments", 0, int(r), b""
            )
            for r in bad
        ]
        # Stirred, so that the lane has an order to make.
        batches = {"payment": self.batch.take(good[::-1])}
        positions = {"at": high, "calls": calls}
        eof = high == len(self.batch)
        return Taken(batches, letters, positions, len(rows), eof, {}, clock_us)

    def take(self, rows_max: int) -> Taken:
        if self.calls >= len(self.sizes):
            raise SourceError("source: the broker is gone")
        high = min(len(self.batch), self.at + min(rows_max, self.sizes[self.calls]))
        clock_us = self.clock_us[self.calls]
        self.calls += 1
        taken = self._between(self.at, high, clock_us, self.calls)
        self.at = high
        return taken

    def retake(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        cut_time_us: int,
        schemas: dict[str, str],
    ) -> Taken:
        self.at, self.calls = after["at"], after["calls"]
        return self._between(before.get("at", 0), self.at, cut_time_us, self.calls)

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture(scope="module")
def batch() -> EventBatch:
    return stream(5, sum(SIZES), types=("payment",))["payment"]


def clocks(step_us: int = 1_000) -> list[int]:
    return [START_US + i * step_us for i in range(len(SIZES))]


def open_lane(
    folder: Path,
    reader: Any,
    after: int = 0,
    stop: Callable[[], bool] = lambda: False,
    rows_max: int = 1_000,
    segment_bytes: int = SEGMENT_BYTES,
) -> Lane:
    lane = Lane(
        lane=0,
        reader=reader,
        journal=LaneJournal(folder / "journal", segment_bytes),
        round_ms=100,
        rows_max=rows_max,
        stop=stop,
        control=ControlFile(folder / "control.jsonl"),
    )
    try:
        lane.start(after)
    except StateError:
        lane.journal.close()
        raise
    return lane


def run(lane: Lane, rounds: int = 99) -> list[Part]:
    """Parts until the lane ends, or so many; then the process dies."""
    parts: list[Part] = []
    with closing(lane.journal):
        while len(parts) < rounds and not (parts and parts[-1].final):
            parts.append(lane.cut())
    return parts


def seen(part: Part) -> dict[str, Any]:
    """All of a part that anything later can tell apart."""
    return {
        "round": part.round,
        "cut_time_us": part.cut_time_us,
        "events": {n: b.frame.to_dicts() for n, b in part.batches.items()},
        "ids": {n: i.tolist() for n, i in part.ids.items()},
        "control": part.control,
        "received": part.received,
        "rejects": part.rejects,
    }


def say(folder: Path, *records: dict[str, Any] | str) -> None:
    """Append lines to the control file."""
    with (folder / "control.jsonl").open("a", encoding="utf-8") as file:
        file.writelines((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records)


def test_a_part_is_in_order_whatever_order_its_events_came_in(
    tmp_path: Path, batch: EventBatch
) -> None:
    parts = run(open_lane(tmp_path, Arrivals(batch, SIZES, clocks())))
    assert [p.round for p in parts] == list(range(1, len(SIZES) + 1))
    assert [p.received for p in parts] == SIZES
    for part in parts:
        for one in part.batches.values():
            assert np.all(np.diff(one.time_us) >= 0)
            assert len(one) + len(part.rejects) == part.received
        assert all(letter.round == part.round for letter in part.rejects)
    assert [p.final for p in parts] == [False] * 6 + [True]


def test_a_cut_is_in_the_journal_before_it_is_given_away(tmp_path: Path, batch: EventBatch) -> None:
    lane = open_lane(tmp_path, Arrivals(batch, SIZES, clocks()))
    with closing(lane.journal):
        for round_ in range(1, 5):
            part = lane.cut()
            newest = list(read_cuts(tmp_path / "journal"))[-1]
            assert (newest.round, newest.checksum) == (round_, checksum(part))


@pytest.mark.parametrize("died", range(1, 8))
@pytest.mark.parametrize("manifest", range(7))
def test_a_lane_killed_anywhere_cuts_the_same_rounds_again(
    tmp_path: Path, batch: EventBatch, died: int, manifest: int
) -> None:
    say(tmp_path, {"kind": "stage", "detector": "iqr", "stage": "off"}, "no record at all")
    parts = run(open_lane(tmp_path, Arrivals(batch, SIZES, clocks())), died)
    if manifest > died:
        manifest = died
    lane = open_lane(tmp_path, Arrivals(batch, SIZES, clocks()), manifest)
    assert lane.round == manifest
    again = run(lane, died - manifest)
    assert [seen(p) for p in again] == [seen(p) for p in parts[manifest:]]
    assert all(p.replayed for p in again)


def test_killed_and_undisturbed_runs_end_with_the_same_journal(
    tmp_path: Path, batch: EventBatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        say(folder, "rubbish", {"kind": "stage", "detector": "iqr", "stage": "off"})
    run(open_lane(whole, Arrivals(batch, SIZES, clocks())))
    for manifest, rounds in [(0, 2), (0, 3), (3, 2), (2, 99)]:
        run(open_lane(killed, Arrivals(batch, SIZES, clocks()), manifest), rounds)
    assert list(read_cuts(killed / "journal")) == list(read_cuts(whole / "journal"))


def test_a_round_cut_again_has_the_rates_it_was_cut_with(tmp_path: Path, batch: EventBatch) -> None:
    versions = iter((0, 1, 1, 4, 4, 4, 5))
    lane = open_lane(tmp_path, Arrivals(batch, SIZES, clocks()))
    lane.rates = lambda: next(versions)
    first = [part.rates for part in run(lane, 4)]
    lane = open_lane(tmp_path, Arrivals(batch, SIZES, clocks()))
    lane.rates = lambda: next(versions)
    assert first == [0, 1, 1, 4]
    assert [part.rates for part in run(lane)] == [0, 1, 1, 4, 4, 4, 5]


def test_the_clock_of_the_rounds_never_runs_back_and_replays_alike(
    tmp_path: Path, batch: EventBatch
) -> None:
    """An NTP step: rejects are judged by the reader's clock, rounds by one that only rises."""
    steps = [0, 50, 20, 60, 10, 70, 80]
    clock = [START_US + s for s in steps]
    parts = run(open_lane(tmp_path, Arrivals(batch, SIZES, clock)))
    assert [p.cut_time_us - START_US for p in parts] == [0, 50, 50, 60, 60, 70, 80]
    again = run(open_lane(tmp_path, Arrivals(batch, SIZES, clock)), len(SIZES))
    assert [seen(p) for p in again] == [seen(p) for p in parts]


def test_control_records_stand_in_the_round_that_read_them(
    tmp_path: Path, batch: EventBatch
) -> None:
    stage = {"kind": "stage", "detector": "iqr", "stage": "off"}
    mute = {"kind": "mute", "entity_type": "card", "entity": "c1", "until_us": 5}
    lane = open_lane(tmp_path, Arrivals(batch, SIZES, clocks()))
    with closing(lane.journal):
        parts = [lane.cut()]
        say(tmp_path, stage, "oops")
        parts += [lane.cut(), lane.cut()]
    assert [list(p.control) for p in parts] == [[], [stage], []]
    bad = [r for p in parts for r in p.rejects if r.event_type == "control"]
    assert [(r.reason, r.raw, r.round) for r in bad] == [("bad_control_record", b"oops", 2)]
    assert [p.received for p in parts] == SIZES[:3], "a control line is no event"
    say(tmp_path, mute)  # while the lane is stopped
    again = run(open_lane(tmp_path, Arrivals(batch, SIZES, clocks()), 1), 3)
    assert [list(p.control) for p in again] == [[stage], [], [mute]]
    assert [seen(p) for p in again[:2]] == [seen(p) for p in parts[1:]]


def test_a_clean_stop_ends_the_lane_and_the_next_start_goes_on(
    tmp_path: Path, batch: EventBatch
) -> None:
    asked: list[bool] = []
    lane = open_lane(tmp_path, Arrivals(batch, SIZES, clocks()), stop=lambda: bool(asked))
    with closing(lane.journal):
        first = [lane.cut(), lane.cut()]
        asked.append(True)
        last = lane.cut()
    assert (last.final, last.received, last.round) == (True, 0, 3)
    rest = run(open_lane(tmp_path, Arrivals(batch, SIZES, clocks()), 3))
    assert [p.round for p in rest] == [4, 5, 6, 7, 8]
    assert sum(p.received for p in [*first, *rest]) == sum(SIZES)


def test_rounds_that_others_cut_while_the_lane_had_ended_are_empty(
    tmp_path: Path, batch: EventBatch
) -> None:
    """It ended with round 2, others went on to 5, all started again; then from an old manifest."""
    stop = iter([False, True])
    run(open_lane(tmp_path, Arrivals(batch, SIZES, clocks()), stop=lambda: next(stop)), 2)
    later = run(open_lane(tmp_path, Arrivals(batch, SIZES, clocks()), 5), 2)
    assert [p.round for p in later] == [6, 7]
    again = run(open_lane(tmp_path, Arrivals(batch, SIZES, clocks()), 1), 6)
    assert [p.round for p in again] == [2, 3, 4, 5, 6, 7]
    assert [p.received for p in again[:4]] == [0, 0, 0, 0]
    assert [p.cut_time_us for p in again[1:4]] == [0, 0, 0], "no say in the clock of those rounds"
    assert [seen(p) for p in again[4:]] == [seen(p) for p in later]


def test_a_journal_that_lacks_rounds_is_refused(tmp_path: Path, batch: EventBatch) -> None:
    reader = Arrivals(batch, SIZES, clocks())
    run(open_lane(tmp_path, reader), 3)
    with pytest.raises(StateError, match=r"round 9 is said to be durable.*ends at 3"):
        open_lane(tmp_path, reader, 9)
    cuts = list(read_cuts(tmp_path / "journal"))
    holed = tmp_path / "holed"
    with closing(LaneJournal(holed / "journal", SEGMENT_BYTES)) as journal:
        journal.append(cuts[0])
        journal.append(cuts[2])
    with pytest.raises(StateError, match="no round 2, its next one is 3"):
        run(open_lane(holed, Arrivals(batch, SIZES, clocks())), 3)
    with pytest.raises(StateError, match="ends at 0"):
        open_lane(tmp_path / "gone", reader, 3)
    assert list(read_cuts(tmp_path / "journal")) == cuts


def test_a_source_that_gives_other_events_is_found_out(tmp_path: Path, batch: EventBatch) -> None:
    run(open_lane(tmp_path, Arrivals(batch, SIZES, clocks())), 3)
    other = stream(6, sum(SIZES), types=("payment",))["payment"]
    with pytest.raises(StateError, match=r"round 1 of the journal had 3 events"):
        run(open_lane(tmp_path, Arrivals(other, SIZES, clocks())), 3)


def test_a_replay_with_other_rejects_is_found_out(tmp_path: Path, batch: EventBatch) -> None:
    lane = open_lane(tmp_path, Arrivals(batch, SIZES, clocks()))
    part = run(lane, 3)[2]
    assert part.rejects
    assert checksum(part) != checksum(replace(part, rejects=part.rejects[1:]))


class Registered(Arrivals):
    """Meets a new schema with each call that brings events, as a registry would tell them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.known: dict[str, str] = {}
        self.recalled_us = -1

    def recall(self, schemas: dict[str, str], cut_time_us: int) -> None:
        self.known, self.recalled_us = dict(schemas), cut_time_us

    def take(self, rows_max: int) -> Taken:
        taken = super().take(rows_max)
        taken.schemas = {str(self.calls): f"body {self.calls}"} if taken.received else {}
        return taken

    def retake(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        cut_time_us: int,
        schemas: dict[str, str],
    ) -> Taken:
        self.known |= schemas
        return super().retake(before, after, cut_time_us, schemas)


@pytest.mark.parametrize("segment_bytes", [1, 300, SEGMENT_BYTES])
def test_a_replay_knows_every_schema_and_asks_nobody(
    tmp_path: Path, batch: EventBatch, segment_bytes: int
) -> None:
    """Also where the segment in which a schema was met is gone."""
    lane = open_lane(tmp_path, Registered(batch, SIZES, clocks()), segment_bytes=segment_bytes)
    parts = run(lane)
    met = [str(i) for i, size in enumerate(SIZES, 1) if size]
    for manifest in range(1, len(SIZES)):
        for path in sorted((tmp_path / "journal").glob("*.jnl"))[:-1]:
            if int(path.stem) < manifest:
                newer = [p for p in path.parent.glob("*.jnl") if int(p.stem) > int(path.stem)]
                if min(int(p.stem) for p in newer) <= manifest:
                    path.unlink()
        reader = Registered(batch, SIZES, clocks())
        lane = open_lane(tmp_path, reader, manifest, segment_bytes=segment_bytes)
        assert sorted(reader.known) == [i for i in met if int(i) <= manifest]
        assert reader.recalled_us == parts[manifest - 1].cut_time_us
        again = run(lane, len(SIZES) - manifest)
        assert [seen(p) for p in again] == [seen(p) for p in parts[manifest:]]
        assert reader.known == {i: f"body {i}" for i in met}


def test_a_reader_that_fails_leaves_a_journal_one_can_go_on_from(
    tmp_path: Path, batch: EventBatch
) -> None:
    lane = open_lane(tmp_path, Arrivals(batch, SIZES[:2], clocks()))
    with closing(lane.journal):
        lane.cut()
        lane.cut()
        with pytest.raises(SourceError, match="broker is gone"):
            lane.cut()
    assert [c.round for c in read_cuts(tmp_path / "journal")] == [1, 2]
    rest = run(open_lane(tmp_path, Arrivals(batch, SIZES, clocks()), 2))
    assert [p.received for p in rest] == SIZES[2:]


def test_a_round_takes_no_more_than_its_maximum(tmp_path: Path, batch: EventBatch) -> None:
    parts = run(open_lane(tmp_path, Arrivals(batch, [99] * 20, [START_US] * 20), rows_max=8))
    assert [p.received for p in parts] == [8] * 7
    assert [c.received for c in read_cuts(tmp_path / "journal")] == [8] * 7


@pytest.mark.parametrize("died", [1, 4])
def test_the_simulator_is_cut_again_to_the_event(tmp_path: Path, died: int) -> None:
    settings = load(
        None,
        sim_paced=False,
        sim_seconds=2.0,
        sim_speed=3600.0,
        sim_cards=100,
        sim_events_per_s=0.5,
        round_rows_max=500,
    )
    whole = run(open_lane(tmp_path / "whole", SimulatorReader(settings), rows_max=500))
    killed = tmp_path / "killed"
    first = run(open_lane(killed, SimulatorReader(settings), rows_max=500), died)
    rest = run(open_lane(killed, SimulatorReader(settings), 0, rows_max=500))
    assert [seen(p) for p in first] == [seen(p) for p in whole[:died]]
    assert [seen(p) for p in rest] == [seen(p) for p in whole]
    assert sum(p.received for p in whole) > 1_000
    assert whole[-1].cut_time_us - whole[0].cut_time_us > 3600 * 1_000_000


def test_the_lane_that_reads_control_records_outlives_the_others(
    tmp_path: Path, batch: EventBatch
) -> None:
    stage = {"kind": "stage", "detector": "iqr", "stage": "off"}
    sizes = [*SIZES, 0, 0, 0, 0, 0]
    times = [START_US + i for i in range(len(sizes))]
    lane = open_lane(tmp_path, Arrivals(batch, sizes, times))
    lane.lanes.cut(1, 8)
    with closing(lane.journal):
        parts = [lane.cut() for _ in range(len(SIZES))]
        assert lane.behind, "it does not make the other lane wait"
        parts += [lane.cut(), lane.cut()]
        assert not lane.behind, "nor does it run ahead"
        assert not any(p.final for p in parts), "its source has ended, another lane has not"
        say(tmp_path, stage)
        parts.append(lane.cut())
        lane.lanes.cut(1, 9, final=True)
        parts.append(lane.cut())
    assert [list(p.control) for p in parts[-3:]] == [[], [stage], []]
    assert [p.received for p in parts[len(SIZES) :]] == [0] * 4
    assert parts[-1].final
    again = run(open_lane(tmp_path, Arrivals(batch, sizes, times)))
    assert [seen(p) for p in again[:-1]] == [seen(p) for p in parts]
    assert again[-1].final and not again[-1].replayed


def test_a_refused_message_keeps_its_place_in_the_journal(
    tmp_path: Path, batch: EventBatch
) -> None:
    class Refused(ControlFile):
        """A topic's reader as the lane sees it: one bad message in partition 3."""

        def take(self) -> tuple[list[dict[str, Any]], list[Fault]]:
            return [], [Fault(17, b"\xff\x00", "no record", 3)] if self.position == 0 else []

    lane = open_lane(tmp_path, Arrivals(batch, SIZES, clocks()))
    lane.control = Refused(tmp_path / "topic")
    with closing(lane.journal):
        first = lane.cut()
    letters = [r for r in first.rejects if r.event_type == "control"]
    assert [(r.topic, r.partition, r.offset, r.raw) for r in letters] == [
        (str(tmp_path / "topic"), 3, 17, b"\xff\x00")
    ]
    again = open_lane(tmp_path, Arrivals(batch, SIZES, clocks()))
    with closing(again.journal):
        place = [(r.partition, r.offset, r.raw, r.detail) for r in again.cut().rejects]
    assert place[-1] == (3, 17, b"\xff\x00", "no record")
