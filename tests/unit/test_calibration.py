"""Raw numbers to tail probabilities: against counting, at the edges, beyond what was seen."""

from __future__ import annotations

import numpy as np
import pytest

from features.errors import ShapeError
from models.calibration import SURPRISE_MAX, Calibration, score_of, surprise_of


def test_a_score_is_the_conformal_share_of_genuine_rows_below(rng: np.random.Generator) -> None:
    genuine = rng.normal(size=500)
    found = Calibration.fit(genuine).surprise(genuine)
    counted = [(1 + int((genuine >= x).sum())) / 501 for x in genuine]
    assert np.allclose(10.0**-found, counted)


def test_a_thinned_table_never_makes_a_row_stranger_than_counting(rng: np.random.Generator) -> None:
    genuine = rng.normal(size=60_000)
    calibration = Calibration.fit(genuine)
    assert len(calibration.knots) < 5_000
    asked = np.sort(rng.normal(size=2_000))
    found = 10.0 ** -calibration.surprise(asked)
    above = len(genuine) - np.searchsorted(np.sort(genuine), asked, side="left")
    exact = (1 + above) / (len(genuine) + 1)
    beyond = calibration.extrapolated(asked)
    assert np.all(found[~beyond] >= exact[~beyond] - 1e-15)
    assert np.allclose(found[exact > 0.01], exact[exact > 0.01], atol=1.1e-3)


def test_genuine_rows_reach_a_score_as_often_as_it_says(rng: np.random.Generator) -> None:
    calibration = Calibration.fit(rng.exponential(size=50_000))
    score = score_of(calibration.surprise(rng.exponential(size=50_000)))
    for share in (0.1, 0.01, 0.002):
        assert np.mean(score >= 1 - share) == pytest.approx(share, rel=0.4)


@pytest.mark.parametrize("shape", [0.0, 0.3])
def test_the_tail_goes_on_where_the_rows_end(rng: np.random.Generator, shape: float) -> None:
    uniform = rng.random(20_000)
    genuine = -np.log(uniform) if shape == 0.0 else (uniform**-shape - 1) / shape
    calibration = Calibration.fit(genuine)
    tail = 1e-6
    far = -np.log(tail) if shape == 0.0 else (tail**-shape - 1) / shape
    assert calibration.extrapolated(np.array([far])).all()
    assert calibration.surprise(np.array([far]))[0] == pytest.approx(6.0, abs=1.5)


def test_more_is_never_less_strange(rng: np.random.Generator) -> None:
    calibration = Calibration.fit(rng.standard_t(3, size=5_000))
    asked = np.sort(np.concatenate((rng.standard_t(3, size=3_000) * 5, [-1e300, 1e300])))
    found = calibration.surprise(asked)
    assert np.all(np.diff(found) >= 0)
    assert found.min() >= 0 and found.max() <= SURPRISE_MAX


def test_what_was_not_scored_stays_unknown() -> None:
    calibration = Calibration.fit(np.arange(100.0))
    assert np.isnan(calibration.surprise(np.array([np.nan]))[0])
    assert np.isnan(score_of(np.array([np.nan]))[0])


def test_rows_that_were_not_looked_at_count_as_less_strange_than_any() -> None:
    genuine = np.concatenate((np.full(900, -np.inf), np.arange(100.0)))
    assert 10.0 ** -Calibration.fit(genuine).surprise(np.array([0.0]))[0] == pytest.approx(
        101 / 1001
    )


def test_equal_values_have_one_probability() -> None:
    genuine = np.repeat([0.0, 1.0], [99, 1])
    found = Calibration.fit(genuine).surprise(np.array([-1.0, 0.0, 0.5, 1.0, 2.0]))
    assert np.allclose(10.0**-found, [1.0, 1.0, 1.0, 2 / 101, 2 / 101])


def test_a_calibration_read_back_says_the_same(rng: np.random.Generator) -> None:
    calibration = Calibration.fit(rng.exponential(size=5_000))
    asked = rng.exponential(size=1_000) * 3
    again = Calibration.load(calibration.save())
    assert np.array_equal(again.surprise(asked), calibration.surprise(asked))


def test_no_genuine_value_is_refused() -> None:
    with pytest.raises(ShapeError, match="got none"):
        Calibration.fit(np.array([np.nan, -np.inf]))


def test_score_and_surprise_are_one_scale() -> None:
    assert surprise_of(1.0) == SURPRISE_MAX
    assert score_of(np.array([surprise_of(0.998)]))[0] == pytest.approx(0.998)


@pytest.mark.parametrize("shape", [0.0, 0.4])
def test_the_value_of_a_surprise_is_the_first_that_has_it(
    rng: np.random.Generator, shape: float
) -> None:
    genuine = rng.pareto(1 / shape, 20_000) if shape else rng.exponential(size=20_000)
    calibration = Calibration.fit(genuine)
    for surprise in (0.5, 2.0, 3.5, 4.5, 6.0):
        value = calibration.value_at(surprise)
        below, at = calibration.surprise(np.array([np.nextafter(value, -1), value * (1 + 1e-9)]))
        assert below <= surprise <= at + 1e-9, surprise
    few = Calibration.fit(np.arange(10.0))
    assert few.value_at(6.0) == 9.0, "no tail: the strangest there was"
