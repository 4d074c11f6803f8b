"""What `waxwing bench replay` makes of the explanations it has measured."""

from __future__ import annotations

import numpy as np
import pytest

from dataflows.bench.replay import far_off


def test_an_explanation_far_from_its_base_is_reckoned_from_those_near_it() -> None:
    rng = np.random.default_rng(1)
    rounds = rng.integers(10, 600, 20).tolist()
    seconds = [2.0 + 0.006 * n + 0.01 * float(rng.normal()) for n in rounds]
    found = far_off(rounds, seconds, 9_000.0)
    assert found["ms_per_round"] == pytest.approx(6.0, rel=0.02)
    assert found["start_s"] == pytest.approx(2.0, rel=0.02)
    assert found["seconds_p95_far"] == pytest.approx(2.0 + 0.006 * 8_550, rel=0.02)


@pytest.mark.parametrize(
    ("rounds", "seconds"),
    [([500], [3.0]), ([500, 500], [2.0, 4.0]), ([10, 1_000], [5.05, 1.01])],
    ids=["one", "too alike", "faster the farther"],
)
def test_where_no_line_goes_through_them_the_start_counts_as_rounds(
    rounds: list[int], seconds: list[float]
) -> None:
    found = far_off(rounds, seconds, 1_000.0)
    assert found["start_s"] == 0.0
    assert found["ms_per_round"] == pytest.approx(6.0)
    assert found["seconds_p95_far"] == pytest.approx(5.7)
