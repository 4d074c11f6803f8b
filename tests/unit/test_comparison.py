"""Estimates from a sample of entities: their intervals hold what is true as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from dataflows.comparison import interval

TRIALS = 400


@pytest.mark.parametrize(
    ("share", "entities", "most"), [(0.2, 40, 1), (0.05, 200, 4), (0.01, 60, 2)]
)
def test_an_interval_holds_the_true_number(
    share: float, entities: int, most: int, rng: np.random.Generator
) -> None:
    counts = rng.integers(1, most + 1, entities)
    held = 0
    for _ in range(TRIALS):
        kept = np.flatnonzero(rng.random(entities) < share).tolist()
        low, high = interval({(e, 1.0 / share): int(counts[e]) for e in kept}, 1.0 / share)
        held += low <= counts.sum() <= high
    assert held / TRIALS >= 0.92, "95 % of the time, as far as so many trials can tell"


def test_what_was_counted_is_the_least_there_can_be_and_the_width_falls_with_the_share() -> None:
    widths = []
    for share in (0.01, 0.1, 0.5):
        low, high = interval({(e, 1.0 / share): 3 for e in range(10)}, 1.0 / share)
        assert 30 <= low < 30 / share < high
        widths.append((high - low) * share)
    assert widths == sorted(widths, reverse=True)


def test_nothing_in_the_sample_is_not_nothing_at_all() -> None:
    low, high = interval({}, 100.0)
    assert low == 0.0 and 300.0 < high < 400.0, "three entities of a hundredth may well be missed"
