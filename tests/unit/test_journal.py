"""The journal of a lane: what is written comes back, whatever moment the process died at."""

from __future__ import annotations

import errno
import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from dataflows import stages
from dataflows.control.records import Control
from dataflows.settings import Settings, load
from dataflows.sources.rounds import journal_folder
from dataflows.state.journal import (
    Cut,
    CutFollower,
    LaneJournal,
    NewerJournal,
    _record,
    last_cut,
    make_folder,
    read_cuts,
)
from dataflows.state.journal_topic import TopicJournal
from features.errors import StateError

SEGMENT_BYTES = 1 << 20


def make_cut(round_: int, **more: Any) -> Cut:
    values = {"positions": {"0": round_ * 10}, "received": 10, "checksum": round_ * 7, **more}
    return Cut(round_, 1_000_000 * round_, **values)


def written(folder: Path, rounds: int, segment_bytes: int = SEGMENT_BYTES) -> list[Cut]:
    journal = LaneJournal(folder, segment_bytes)
    cuts = [make_cut(r) for r in range(1, rounds + 1)]
    for cut in cuts:
        journal.append(cut)
    journal.close()
    return cuts


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jnl"))


def test_every_field_of_a_cut_comes_back(tmp_path: Path) -> None:
    cut = Cut(
        1,
        2,
        {"payment/3": 4, "control": 5},
        6,
        7,
        [{"kind": "mute", "entity": "caf\u00e9 \ud800"}],
        {"8": '{"type":"record"}'},
        [(9, "\xff\x00 not a record", "control record: not JSON", 0)],
        10,
        True,
    )
    journal = LaneJournal(tmp_path, SEGMENT_BYTES)
    journal.append(cut)
    journal.close()
    assert list(read_cuts(tmp_path)) == [cut]


@pytest.mark.parametrize("segment_bytes", [1, 300, SEGMENT_BYTES])
def test_what_follows_a_journal_gets_each_cut_once(tmp_path: Path, segment_bytes: int) -> None:
    follower = CutFollower(tmp_path / "lane", 2)
    assert list(follower.take()) == [], "the journal appears later"
    with closing(LaneJournal(tmp_path / "lane", segment_bytes)) as journal:
        for first, last in ((1, 4), (5, 5), (6, 12)):
            for r in range(first, last + 1):
                journal.append(make_cut(r))
            found = list(follower.take())
            assert found == [make_cut(r) for r in range(max(first, 3), last + 1)]
            assert list(follower.take()) == []


def test_who_waits_for_a_record_reads_no_cut_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "journal" / "lane-00", 20)
    read, parse = [], Cut.from_bytes

    def count(payload: bytes) -> Cut:
        read.append(payload)
        return parse(payload)

    monkeypatch.setattr(Cut, "from_bytes", count)
    before = stages.Standing(Control(), 0, {})
    assert stages.heard(Settings(state_dir=tmp_path), "never", before, 0.2) is None
    assert len(read) == 20


def test_a_tail_torn_at_any_byte_leaves_the_whole_records_before_it(tmp_path: Path) -> None:
    cuts = written(tmp_path / "all", 3)
    data = segments(tmp_path / "all")[0].read_bytes()
    ends = [4]
    for size in range(5, len(data) + 1):
        folder = tmp_path / f"torn{size}"
        folder.mkdir()
        (folder / segments(tmp_path / "all")[0].name).write_bytes(data[:size])
        got = list(read_cuts(folder))
        assert got == cuts[: len(got)]
        if len(got) == len(ends):
            ends.append(size)
        journal = LaneJournal(folder, SEGMENT_BYTES)
        assert journal.last == (got[-1] if got else None)
        more = make_cut(len(got) + 1, received=99)
        journal.append(more)
        journal.close()
        assert list(read_cuts(folder)) == [*got, more]
    assert len(ends) == 4
    assert ends[-1] == len(data)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4])
def test_a_segment_that_died_at_birth_is_begun_again(tmp_path: Path, size: int) -> None:
    cuts = written(tmp_path, 2)
    (tmp_path / f"{3:020d}.jnl").write_bytes(b"WXJ1"[:size])
    assert list(read_cuts(tmp_path)) == cuts
    assert last_cut(tmp_path, 9) == cuts[-1]
    journal = LaneJournal(tmp_path, SEGMENT_BYTES)
    assert journal.last == cuts[-1]
    journal.append(make_cut(3))
    journal.close()
    assert [c.round for c in read_cuts(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("keep", [0, 4, 40])
def test_zeros_that_a_power_cut_leaves_are_a_torn_tail(tmp_path: Path, keep: int) -> None:
    cuts = written(tmp_path, 1)
    path = segments(tmp_path)[0]
    whole = path.read_bytes()
    with closing(LaneJournal(tmp_path, SEGMENT_BYTES)) as journal:
        journal.append(make_cut(2))
    record = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + record[:keep] + bytes(len(record) - keep))
    assert list(read_cuts(tmp_path)) == cuts
    path.write_bytes(whole)
    (tmp_path / f"{2:020d}.jnl").write_bytes(bytes(100))
    assert list(read_cuts(tmp_path)) == cuts
    with closing(LaneJournal(tmp_path, SEGMENT_BYTES)) as journal:
        assert journal.last == cuts[0]


def test_damage_at_any_byte_before_the_last_record_is_an_error(tmp_path: Path) -> None:
    written(tmp_path, 3)
    path = segments(tmp_path)[0]
    data = path.read_bytes()
    last = data.rfind(b"\xf7WXR")
    for at in range(last):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        with pytest.raises(StateError, match=r"damaged|not a journal|format"):
            list(read_cuts(tmp_path))
        with pytest.raises(StateError):
            LaneJournal(tmp_path, SEGMENT_BYTES)
    assert len(path.read_bytes()) == len(data), "a damaged journal is never shortened"


def test_a_torn_tail_of_an_older_segment_is_an_error(tmp_path: Path) -> None:
    written(tmp_path, 6, segment_bytes=150)
    first = segments(tmp_path)[0]
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(StateError, match="not the last"):
        list(read_cuts(tmp_path))


def test_segments_rotate_and_reading_may_begin_anywhere(tmp_path: Path) -> None:
    cuts = written(tmp_path, 20, segment_bytes=150)
    assert len(segments(tmp_path)) > 5
    for after in range(22):
        assert list(read_cuts(tmp_path, after)) == cuts[after:]
        assert last_cut(tmp_path, after) == ([None, *cuts][min(after, 20)])


def test_a_start_reads_no_segment_older_than_its_round(tmp_path: Path) -> None:
    cuts = written(tmp_path, 20, segment_bytes=150)
    for old in segments(tmp_path)[:-2]:
        old.write_bytes(b"unreadable")
    assert last_cut(tmp_path, 20) == cuts[-1]
    assert list(read_cuts(tmp_path, 20)) == []
    with closing(LaneJournal(tmp_path, 150)) as journal:
        assert journal.last == cuts[-1]


def test_rounds_may_be_missing_where_a_lane_had_ended(tmp_path: Path) -> None:
    journal = LaneJournal(tmp_path, SEGMENT_BYTES)
    for round_ in (1, 2, 7):
        journal.append(make_cut(round_))
    journal.close()
    found = [last_cut(tmp_path, r) for r in range(9)]
    assert [None if c is None else c.round for c in found] == [None, 1, 2, 2, 2, 2, 2, 7, 7]


def test_only_segments_beyond_the_maximum_and_no_longer_needed_go(tmp_path: Path) -> None:
    durable = 0
    journal = LaneJournal(tmp_path, 150, bytes_max=600, durable=lambda: durable)
    for round_ in range(1, 31):
        journal.append(make_cut(round_))
    assert next(read_cuts(tmp_path)).round == 1, "no restart could do without them"
    durable = 25
    for round_ in range(31, 41):
        journal.append(make_cut(round_))
    journal.close()
    kept = [c.round for c in read_cuts(tmp_path)]
    assert kept == list(range(kept[0], 41))
    assert 1 < kept[0] <= 25
    assert last_cut(tmp_path, 25) == make_cut(25), "the restart begins at its positions"
    assert sum(p.stat().st_size for p in segments(tmp_path)[1:]) > 600
    durable = 40
    journal = LaneJournal(tmp_path, 150, bytes_max=600, durable=lambda: durable)
    for round_ in range(41, 51):
        journal.append(make_cut(round_))
        size = sum(p.stat().st_size for p in segments(tmp_path))
        assert round_ < 43 or size <= 600 + 300
    journal.close()


class FullDisk:
    """A file on a disk that takes so many more bytes, a part of a write if need be, and no more."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self.room = file, room

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self._file.write(data[: self.room])
        self.room -= taken
        return int(taken)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", range(0, 60, 7))
def test_a_full_disk_is_a_sentence_and_leaves_whole_records(tmp_path: Path, room: int) -> None:
    cuts = written(tmp_path, 2)
    journal = LaneJournal(tmp_path, SEGMENT_BYTES)
    journal._file = FullDisk(journal._file, room)
    with pytest.raises(StateError, match=r"round 3 could not be written: No space left"):
        journal.append(make_cut(3))
    assert journal.last == cuts[-1]
    assert list(read_cuts(tmp_path)) == cuts
    journal._file.room = 10_000
    journal.append(make_cut(3))
    journal.close()
    assert [c.round for c in read_cuts(tmp_path)] == [1, 2, 3]


def test_a_segment_that_cannot_be_begun_leaves_the_one_before(tmp_path: Path) -> None:
    cuts = written(tmp_path, 2)
    journal = LaneJournal(tmp_path, 1)
    (tmp_path / f"{3:020d}.jnl").mkdir()
    with pytest.raises(StateError, match="round 3 could not be written"):
        journal.append(make_cut(3))
    (tmp_path / f"{3:020d}.jnl").rmdir()
    assert list(read_cuts(tmp_path)) == cuts
    journal.append(make_cut(3))
    journal.close()
    assert len(segments(tmp_path)) == 2


def test_a_folder_that_the_disk_refuses_is_a_sentence(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="file/b could not be made: Not a directory; free space"):
        make_folder(tmp_path / "file" / "b")


def test_a_folder_in_the_place_of_a_segment_is_a_sentence(tmp_path: Path) -> None:
    written(tmp_path, 2)
    path = tmp_path / f"{3:020d}.jnl"
    path.mkdir()
    with pytest.raises(StateError, match=r"3\.jnl: expected a file, got a folder; move it away"):
        LaneJournal(tmp_path, SEGMENT_BYTES)
    with pytest.raises(StateError, match=r"3\.jnl: expected a file, got a folder; move it away"):
        list(read_cuts(tmp_path))


def test_a_journal_of_another_format_says_which_version_reads_it(tmp_path: Path) -> None:
    (tmp_path / f"{1:020d}.jnl").write_bytes(b"WXJ9" + b"x" * 50)
    with pytest.raises(NewerJournal, match="WXJ9"):
        LaneJournal(tmp_path, SEGMENT_BYTES)


def test_a_record_that_holds_more_than_this_version_knows_is_refused(tmp_path: Path) -> None:
    with closing(LaneJournal(tmp_path, SEGMENT_BYTES)) as journal:
        journal.append(make_cut(1))
        later = json.loads(make_cut(2).to_bytes()) | {"z": 1}
        journal._file.write(_record(json.dumps(later).encode()))
    with pytest.raises(
        NewerJournal, match=r"round 2 holds 'z'.* a journal of a newer version; run"
    ):
        list(read_cuts(tmp_path))
    with pytest.raises(StateError, match="of a newer version"):
        LaneJournal(tmp_path, SEGMENT_BYTES)


def test_a_newer_versions_copy_of_a_journal_in_a_topic_stays_where_it_is(tmp_path: Path) -> None:
    """The topic may not reach back as far as the copy, which is whole."""
    holder = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
    holder.list_topics("journal", timeout=60)
    found = holder.list_topics(timeout=60).brokers.values()
    brokers = ",".join(f"{b.host}:{b.port}" for b in found)
    settings = load(
        None, {}, kafka_brokers=brokers, journal_topic="journal", lanes=1, state_dir=tmp_path
    )
    folder = journal_folder(tmp_path, 0)
    with closing(LaneJournal(folder, SEGMENT_BYTES)) as journal:
        journal.append(make_cut(1))
        later = json.loads(make_cut(2).to_bytes()) | {"z": 1}
        journal._file.write(_record(json.dumps(later).encode()))
    (segment,) = segments(folder)
    there = segment.read_bytes()
    for data in (there, b"WXJ9" + there[4:]):
        segment.write_bytes(data)
        with pytest.raises(NewerJournal, match="run the version"):
            TopicJournal(settings, 0, 1, lambda: LaneJournal(folder, SEGMENT_BYTES), lambda: False)
        assert segment.read_bytes() == data
    holder.close()


@pytest.mark.parametrize("payload", [b"[]", b"1", b'"r"', b"null", b"{", b""])
def test_what_is_no_cut_is_said_to_be_none(payload: bytes) -> None:
    with pytest.raises(ValueError):
        Cut.from_bytes(payload)


@given(
    texts=st.lists(st.text(max_size=20), max_size=6),
    segment_bytes=st.integers(4, 400),
    stop=st.integers(0, 6),
)
def test_closing_and_opening_anywhere_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], segment_bytes: int, stop: int
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    cuts = [make_cut(i, control=[{"why": text}]) for i, text in enumerate(texts, 1)]
    journal = LaneJournal(folder, segment_bytes)
    for i, cut in enumerate(cuts):
        if i == stop:
            journal.close()
            journal = LaneJournal(folder, segment_bytes)
        journal.append(cut)
    journal.close()
    assert list(read_cuts(folder)) == cuts
