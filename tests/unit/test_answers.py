"""Answers of models elsewhere beside the journal: kept before use, found again, torn or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataflows.state.answers import ANSWERS_FOLDER, Answer, AnswerLog, Whose
from features.errors import StateError


def whose(round_: int, detector: str = "remote") -> Whose:
    """Of a round of payments."""
    return round_, "payment", "", detector


def answer(round_: int, rows: int = 5) -> Answer:
    """Numbers that float32 cannot hold, one of them unknown."""
    values = np.random.default_rng(round_).normal(size=rows)
    values[-1] = np.nan
    return Answer(np.arange(rows), values)


def same(found: Answer | None, expected: Answer) -> bool:
    """Bit by bit."""
    assert found is not None
    return (
        found.rows.tolist() == expected.rows.tolist()
        and found.values.tobytes() == expected.values.tobytes()
    )


def filled(folder: Path, rounds: int = 6, segment_bytes: int = 64_000_000) -> AnswerLog:
    """One with an answer a round."""
    log = AnswerLog(folder, segment_bytes=segment_bytes)
    for round_ in range(1, rounds + 1):
        log.append({whose(round_): (answer(round_), 5)})
    return log


def segments(folder: Path) -> list[Path]:
    """The files."""
    return sorted((folder / ANSWERS_FOLDER).iterdir())


def test_what_was_answered_is_found_again_bit_by_bit_and_once(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path)
    gated = Answer(np.array([1, 4]), np.array([0.1, 0.2]))
    small = Answer(np.arange(3), np.array([0.5, -0.0, 2.0]))
    log.append({whose(7): (answer(7), 5), whose(7, "transformer"): (gated, 5)})
    log.append({(8, "login", "b2", "remote"): (small, 3)})
    log.append({})
    log.close()
    again = AnswerLog(tmp_path, 6)
    assert same(again.take(whose(7)), answer(7))
    assert same(again.take(whose(7, "transformer")), gated)
    assert same(again.take((8, "login", "b2", "remote")), small)
    assert again.take((8, "login", "", "remote")) is None, "of another bundle"
    assert again.take(whose(7)) is None, "a round is scored once"
    assert AnswerLog(tmp_path, 7).take(whose(7)) is None, "of a round before the manifest"


def test_numbers_take_eight_bytes_a_row_or_four_where_that_loses_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sizes = []
    for round_, values in enumerate((rng.normal(size=10_000), rng.integers(0, 9, 10_000) / 8.0)):
        log = AnswerLog(tmp_path / str(round_))
        log.append({whose(round_): (Answer(np.arange(10_000), values), 10_000)})
        log.close()
        sizes.append(segments(tmp_path / str(round_))[0].stat().st_size)
    assert 80_000 < sizes[0] < 80_200 and 40_000 < sizes[1] < 40_200


@pytest.mark.parametrize("lost", [1, 30, 45, 130])
def test_a_torn_last_record_is_cut_off_and_the_rest_holds(tmp_path: Path, lost: int) -> None:
    filled(tmp_path).close()
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])
    log = AnswerLog(tmp_path)
    log.append({whose(9): (answer(9), 5)})
    log.close()
    again = AnswerLog(tmp_path)
    assert again.take(whose(6)) is None
    assert all(same(again.take(whose(r)), answer(r)) for r in (1, 2, 3, 4, 5, 9))


def test_numbers_that_never_reached_the_disk_are_a_torn_record(tmp_path: Path) -> None:
    filled(tmp_path).close()
    (path,) = segments(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:-40] + bytes(40))
    log = AnswerLog(tmp_path)
    assert log.take(whose(6)) is None and same(log.take(whose(5)), answer(5))


@pytest.mark.parametrize("where", ["line", "numbers"])
def test_damage_that_no_crash_leaves_is_refused(tmp_path: Path, where: str) -> None:
    filled(tmp_path).close()
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    begins = data.index(b'"round":3')
    data[begins if where == "line" else data.index(b"\n", begins) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(StateError, match=r"damaged.*restore the file"):
        AnswerLog(tmp_path).take(whose(3))


def test_segments_go_with_the_journal_of_their_rounds(tmp_path: Path) -> None:
    for first in (1, 5):
        (tmp_path / f"{first:020d}.jnl").touch()
    log = filled(tmp_path, 6, segment_bytes=1)
    assert [int(path.stem) for path in segments(tmp_path)] == [1, 2, 3, 4, 5, 6]
    (tmp_path / f"{1:020d}.jnl").unlink()
    log.append({whose(7): (answer(7), 5)})
    assert [int(path.stem) for path in segments(tmp_path)] == [5, 6, 7]
    log.close()
    again = AnswerLog(tmp_path, 5)
    assert again.take(whose(5)) is None
    assert same(again.take(whose(6)), answer(6)) and same(again.take(whose(7)), answer(7))


@pytest.mark.parametrize("lost", [1, 30, 45])
def test_a_torn_record_is_cut_off_before_the_next_segment_begins(tmp_path: Path, lost: int) -> None:
    log = AnswerLog(tmp_path, segment_bytes=1)
    log.append({whose(1): (answer(1), 5), whose(1, "iqr"): (answer(2), 5)})
    log.close()
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])  # the process ended in that append
    log = AnswerLog(tmp_path, segment_bytes=1)
    assert log.take(whose(1, "iqr")) is None
    log.append({whose(2): (answer(3), 5)})
    log.close()
    assert len(segments(tmp_path)) == 2
    again = AnswerLog(tmp_path)
    assert same(again.take(whose(1)), answer(1)) and same(again.take(whose(2)), answer(3))


def test_answers_of_rounds_after_the_last_one_wanted_are_not_looked_at(tmp_path: Path) -> None:
    filled(tmp_path, 9, segment_bytes=1).close()
    segments(tmp_path)[8].write_bytes(b"not looked at either")
    log = AnswerLog(tmp_path, 2, 5)
    found = [r for r in range(1, 10) if log.take(whose(r)) is not None]
    assert found == [3, 4, 5]


def test_an_answer_that_was_asked_for_again_after_a_restart_is_found(tmp_path: Path) -> None:
    filled(tmp_path, 6, segment_bytes=1).close()
    log = AnswerLog(tmp_path, 4, segment_bytes=1)
    other = (5, "payment", "b2", "remote")
    log.append({other: (answer(50), 5)})
    log.append({(6, *other[1:]): (answer(60), 5)})
    log.close()
    for until in (5, 6, None):
        again = AnswerLog(tmp_path, 4, until)
        assert same(again.take(other), answer(50)) and same(again.take(whose(5)), answer(5))


def test_a_disk_that_refuses_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path)
    (tmp_path / ANSWERS_FOLDER).touch()
    with pytest.raises(StateError, match="nothing is lost"):
        log.append({whose(1): (answer(1), 5)})
