"""Notes on rounds survive any death, torn at any byte, and old ones go where there are too many."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from pathlib import Path

import pytest

from dataflows.state.journal import replace_text
from dataflows.state.notes import RoundNotes, read_notes
from features.errors import StateError


def notes(path: Path) -> list[int]:
    """Rounds that are noted."""
    return [note["round"] for note in read_notes(path)]


def test_a_tail_torn_at_any_byte_leaves_the_whole_notes_before_it(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    log = RoundNotes(path)
    log.append([{"round": 1, "why": "a\nb"}, {"round": 2}])
    log.append([{"round": 3}])
    log.close()
    whole = path.read_bytes()
    ends = [0, *(i + 1 for i, byte in enumerate(whole) if byte == 10)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = [1, 2, 3][: sum(end <= size for end in ends) - 1]
        assert notes(path) == kept
        log = RoundNotes(path)
        log.append([{"round": 9}])
        log.close()
        assert notes(path) == [*kept, 9], "what was torn is cut off before more is written"


def test_damage_before_the_last_note_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    log = RoundNotes(path)
    log.append([{"round": 1}, {"round": 2}])
    log.close()
    data = bytearray(path.read_bytes())
    data[12] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StateError, match="line 1 is damaged"):
        RoundNotes(path)


def test_notes_on_rounds_that_the_journal_no_longer_has_go_first(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    (tmp_path / "00000000000000000050.jnl").touch()
    log = RoundNotes(path, bytes_max=2000)
    for round_ in range(100):
        log.append([{"round": round_}])
    log.close()
    found = notes(path)
    assert found[-50:] == list(range(50, 100)) and len(found) < 100


def test_notes_that_all_must_stay_are_not_written_anew_with_each_append(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, first = tmp_path / "x.log", tmp_path / "00000000000000000001.jnl"
    first.touch()
    rewrites: list[Path] = []

    def counted(path: Path, text: str) -> None:
        rewrites.append(path)
        replace_text(path, text)

    monkeypatch.setattr("dataflows.state.notes.replace_text", counted)
    with closing(RoundNotes(path, bytes_max=2000)) as log:
        for round_ in range(1, 1000):
            log.append([{"round": round_}])
        assert notes(path) == list(range(1, 1000)) and 1 <= len(rewrites) <= 10
        first.rename(tmp_path / "00000000000000000990.jnl")
        for round_ in range(1000, 1500):
            log.append([{"round": round_}])
    found = notes(path)
    assert found == list(range(found[0], 1500)) and found[0] >= 990, "those that need not stay go"
    assert len(rewrites) <= 20


def test_a_disk_that_refuses_is_said_with_the_cure_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.log"
    log = RoundNotes(path)
    log.append([{"round": 1}])

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(StateError, match="No space left on device; free space or mend"):
            log.append([{"round": 2}])
    assert notes(path) == [1]
    log.append([{"round": 3}])
    log.close()
    assert notes(path) == [1, 3]
