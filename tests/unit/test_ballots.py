"""Detectors that raise or hang, one by one, and events that make a step raise."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dataflows.ballots import NOT_KEPT, TRIES_MAX, Ballots
from dataflows.poison import POISON_ROUND_MAX, culprits
from features.batch import FeatureMatrix
from features.errors import AnswerError, StateError
from models.base import ScoreMatrix

ROWS = 1000


class Scorer:
    """Two detectors over one column: `good` says it, `bad` does what it is told to do."""

    detectors = ("good", "bad")

    def __init__(self, bad: Any, bundle: str = "a" * 16) -> None:
        self.bad = bad
        self.bundle = SimpleNamespace(id=bundle)
        self.calls = 0

    def far(self, event_type: str) -> frozenset[str]:
        """Nobody is asked elsewhere."""
        return frozenset()

    def score(self, features: FeatureMatrix, stages: Any, ask: Any) -> ScoreMatrix:
        """As `models.scoring.Scorer.score`, without calibration."""

        def count(matrix: FeatureMatrix) -> Any:
            self.calls += 1
            return self.bad(matrix)

        rows = np.arange(len(features))
        columns = [
            ask("good", lambda matrix: matrix.values[:, 0], features, rows),
            ask("bad", count, features, rows),
        ]
        scores = np.column_stack(columns)
        return ScoreMatrix(features.event_type, self.detectors, scores, scores)


def features() -> FeatureMatrix:
    """Rows that hold their number."""
    return FeatureMatrix("payment", ("n",), np.arange(float(ROWS))[:, None], None, "v")


def ballots(state: Path, said: list[str] | None = None, patience_s: float = 0.0) -> Ballots:
    """Ballots of a state folder."""
    return Ballots(state, lambda: 0, patience_s, (said if said is not None else []).append)


def bad_on(*odd: int) -> Any:
    """Raises on some rows."""

    def raw(matrix: FeatureMatrix) -> Any:
        if np.isin(matrix.values[:, 0], odd).any():
            raise ValueError("odd")
        return matrix.values[:, 0] * 2

    return raw


def test_only_the_rows_on_which_it_raises_lose_its_vote(tmp_path: Path) -> None:
    said: list[str] = []
    scorer = Scorer(bad_on(7, 8, 700))
    voting = ballots(tmp_path, said)
    scores, missed = voting.scored(scorer, 0, 5, {"payment": features()}, {})["payment"]
    expected = np.arange(ROWS) * 2.0
    expected[[7, 8, 700]] = np.nan
    np.testing.assert_array_equal(scores.scores[:, 1], expected)
    np.testing.assert_array_equal(scores.scores[:, 0], np.arange(ROWS))
    assert {row: missed["bad"].of(row) for row in (6, 7, 8, 9, 700)} == {
        6: "", 7: "ValueError: odd", 8: "ValueError: odd", 9: "", 700: "ValueError: odd"
    }  # fmt: skip
    assert voting.missed == {"bad": 3}
    assert len(said) == 1 and "3 of 1,000 payment events of round 5" in said[0]
    voting.close()
    # After a restart it is sound, and still has no vote there; other rounds it votes on.
    again = ballots(tmp_path)
    sound = Scorer(bad_on())
    scores, _ = again.scored(sound, 0, 5, {"payment": features()}, {})["payment"]
    np.testing.assert_array_equal(scores.scores[:, 1], expected)
    scores, missed = again.scored(sound, 0, 6, {"payment": features()}, {})["payment"]
    assert not missed and not np.isnan(scores.scores).any()
    again.close()


def test_one_that_always_raises_is_asked_a_bounded_number_of_times(tmp_path: Path) -> None:
    scorer = Scorer(bad_on(*range(ROWS)))
    voting = ballots(tmp_path)
    scores, missed = voting.scored(scorer, 0, 1, {"payment": features()}, {})["payment"]
    assert np.isnan(scores.scores[:, 1]).all() and missed["bad"].of(999)
    assert scorer.calls <= TRIES_MAX
    voting.close()


def test_one_that_answers_too_few_numbers_has_no_vote(tmp_path: Path) -> None:
    voting = ballots(tmp_path)
    scorer = Scorer(lambda matrix: np.zeros(0))
    _, missed = voting.scored(scorer, 0, 1, {"payment": features()}, {})["payment"]
    assert "numbers for" in missed["bad"].of(0)
    voting.close()


def test_one_that_hangs_is_left_alone_until_it_comes_back(tmp_path: Path) -> None:
    go_on, hung = threading.Event(), threading.Event()

    def hang(matrix: FeatureMatrix) -> Any:
        if not go_on.is_set():
            hung.set()
            go_on.wait()
        return matrix.values[:, 0] * 2

    scorer = Scorer(hang)
    voting = ballots(tmp_path, patience_s=0.05)
    scores, missed = voting.scored(scorer, 0, 1, {"payment": features()}, {})["payment"]
    assert hung.is_set() and missed["bad"].of(3) == "no answer within 0.05 s"
    assert not np.isnan(scores.scores[:, 0]).any(), "the other has voted"
    _, missed = voting.scored(scorer, 0, 2, {"payment": features()}, {})["payment"]
    assert missed["bad"].of(3) == "no answer since round 1" and scorer.calls == 1
    go_on.set()
    round_ = 3
    while missed:  # the thread it hung in comes back in its own time
        _, missed = voting.scored(scorer, 0, round_, {"payment": features()}, {})["payment"]
        round_ += 1
    voting.close()


def test_time_in_which_the_machine_was_held_is_not_held_against_a_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    class Held:
        """A clock of a machine that stands still for a quarter of an hour, again and again."""

        now_s = 0.0

        def monotonic(self) -> float:
            self.now_s += 1_000.0
            if self.now_s > 5_000.0:
                go_on.set()
            return self.now_s

    def slow(matrix: FeatureMatrix) -> Any:
        go_on.wait()
        return matrix.values[:, 0] * 2

    monkeypatch.setattr("dataflows.ballots.time", Held())
    voting = ballots(tmp_path, patience_s=60.0)
    scores, missed = voting.scored(Scorer(slow), 0, 1, {"payment": features()}, {})["payment"]
    assert not missed and scores.scores[:, 1].tolist() == (np.arange(ROWS) * 2.0).tolist()
    voting.close()


class Far(Scorer):
    """`bad` is asked elsewhere."""

    def far(self, event_type: str) -> frozenset[str]:
        """It alone."""
        return frozenset({"bad"})


def noise(matrix: FeatureMatrix) -> Any:
    """Another answer each time."""
    return np.random.default_rng().normal(size=len(matrix))


def silent(_matrix: FeatureMatrix) -> Any:
    """No answer."""
    raise AnswerError("time_out", "no answer in time")


def test_what_was_answered_elsewhere_is_kept_and_nobody_is_asked_again(tmp_path: Path) -> None:
    voting = ballots(tmp_path)
    scorer = Far(noise)
    first = voting.scored(scorer, 0, 5, {"payment": features()}, {})["payment"][0].scores
    voting.close()
    for replaying in (False, True):
        again = Ballots(tmp_path, lambda: 0, 0.0, lambda _: None, replaying)
        other = Far(noise)
        found, missed = again.scored(other, 0, 5, {"payment": features()}, {})["payment"]
        assert found.scores.tobytes() == first.tobytes() and not missed and not other.calls
        # Of a round in which nobody was asked, a replay has no vote; a flow asks.
        found, missed = again.scored(other, 0, 6, {"payment": features()}, {})["payment"]
        assert np.isnan(found.scores[:, 1]).all() == replaying and other.calls == (not replaying)
        if replaying:
            assert missed["bad"].of(3) == NOT_KEPT
        again.close()
        if not replaying:  # the replay shall not find the answer to round 6
            log = tmp_path / "journal/lane-00/answers"
            (log,) = log.iterdir()
            log.write_bytes(log.read_bytes()[:-100])


def test_what_the_model_of_another_bundle_answered_is_not_taken_for_its_own(tmp_path: Path) -> None:
    first = ballots(tmp_path)
    first.scored(Far(lambda m: m.values[:, 0]), 0, 5, {"payment": features()}, {})
    first.close()
    again = ballots(tmp_path)  # the setting `bundle` names another one now
    other = Far(lambda m: -m.values[:, 0], bundle="b" * 16)
    found, missed = again.scored(other, 0, 5, {"payment": features()}, {})["payment"]
    assert other.calls == 1 and not missed
    np.testing.assert_array_equal(found.scores[:, 1], -np.arange(float(ROWS)))
    again.close()


def test_no_answer_from_elsewhere_is_about_all_rows_and_is_asked_for_once(tmp_path: Path) -> None:
    said: list[str] = []
    voting = ballots(tmp_path, said)
    scorer = Far(silent)
    scores, missed = voting.scored(scorer, 0, 1, {"payment": features()}, {})["payment"]
    assert scorer.calls == 1 and np.isnan(scores.scores[:, 1]).all()
    assert missed["bad"].of(3) == "no answer in time" and voting.missed == {"bad": ROWS}
    assert "no vote on 1,000 of 1,000 payment events of round 1: no answer in time" in said[0]
    (note,) = (tmp_path / "journal/lane-00/missed.log").read_text().splitlines()
    assert json.loads(note[9:])["rows"] == [0, ROWS], "not each of them by number"
    voting.close()
    again = ballots(tmp_path)
    scores, missed = again.scored(Far(noise), 0, 1, {"payment": features()}, {})["payment"]
    assert np.isnan(scores.scores[:, 1]).all() and missed["bad"].of(3), "its silence is kept too"
    again.close()


def test_an_answer_is_kept_though_another_detector_hangs_after_it(tmp_path: Path) -> None:
    go_on = threading.Event()

    class Both(Far):
        def score(self, features: FeatureMatrix, stages: Any, ask: Any) -> ScoreMatrix:
            rows = np.arange(len(features))
            far = ask("bad", self.counted, features, rows)
            near = ask("good", lambda m: go_on.wait() and m.values[:, 0], features, rows)
            scores = np.column_stack([near, far])
            return ScoreMatrix(features.event_type, self.detectors, scores, scores)

        def counted(self, matrix: FeatureMatrix) -> Any:
            self.calls += 1
            return noise(matrix)

    voting = ballots(tmp_path, patience_s=0.05)
    scorer = Both(noise)
    first, missed = voting.scored(scorer, 0, 1, {"payment": features()}, {})["payment"]
    assert set(missed) == {"good"} and scorer.calls == 1, "it is not asked a second time"
    go_on.set()
    voting.close()
    again = ballots(tmp_path)
    found, missed = again.scored(Both(noise), 0, 1, {"payment": features()}, {})["payment"]
    assert found.scores.tobytes() == first.scores.tobytes() and set(missed) == {"good"}
    again.close()


def test_rows_that_make_an_attempt_raise_are_found_one_by_one() -> None:
    odd = {0, 17, 18, 999}

    def attempt(rows: Any) -> int:
        for row in rows.tolist():
            if row in odd:
                raise KeyError(row)
        return len(rows)

    result, found = culprits(1000, attempt)
    assert result == 996
    assert [(row, error.args[0]) for row, error in found] == [(row, row) for row in sorted(odd)]


def test_what_is_about_no_row_is_raised() -> None:
    def always(_rows: Any) -> None:
        raise KeyError("not the data")

    def fault(_rows: Any) -> None:
        raise StateError("a disk")

    with pytest.raises(KeyError):
        culprits(10, always)
    with pytest.raises(KeyError):
        culprits(10 * POISON_ROUND_MAX, always)
    with pytest.raises(StateError):
        culprits(10, fault)
