"""Double-double arithmetic against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.exact import add, square, two_product, two_sum, variance

NUMBERS = st.floats(-1e15, 1e15).filter(lambda x: x == 0.0 or abs(x) > 1e-100)


@given(NUMBERS, NUMBERS)
def test_sum_and_its_error_are_the_exact_sum(a: float, b: float) -> None:
    high, low = two_sum(a, b)
    assert Fraction(high) + Fraction(low) == Fraction(a) + Fraction(b)


@given(NUMBERS, NUMBERS)
def test_product_and_its_error_are_the_exact_product(a: float, b: float) -> None:
    high, low = two_product(a, b)
    assert Fraction(high) + Fraction(low) == Fraction(a) * Fraction(b)


def test_a_running_sum_forgets_what_has_left_it(rng: np.random.Generator) -> None:
    """A hundred thousand of the largest amounts pass; what is left is as if they never came."""
    values = rng.normal(0.0, 1e7, 2_000).tolist()
    high = low = q_high = q_low = 0.0
    kept = [0.1, 0.2, 0.7]
    for x in kept:
        high, low = add(high, low, x, 0.0)
        q_high, q_low = add(q_high, q_low, *square(x))
    for _ in range(50):
        for x in values:
            high, low = add(high, low, x, 0.0)
            q_high, q_low = add(q_high, q_low, *square(x))
        for x in values:
            high, low = add(high, low, -x, 0.0)
            s, e = square(x)
            q_high, q_low = add(q_high, q_low, -s, -e)
    assert abs(high - 1.0) < 1e-15
    mean = Fraction(sum(map(Fraction, kept)), 3)
    exact = sum((Fraction(x) - mean) ** 2 for x in kept) / 2
    # Their squares added up to 1e17: of the 16 digits of one double none would be left.
    assert abs(variance(3, high, low, q_high, q_low) - float(exact)) < 1e-11


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=30), st.sampled_from([0.0, 1e6, 1e9]))
def test_variance_does_not_cancel_far_from_zero(values: list[float], offset: float) -> None:
    high = low = q_high = q_low = 0.0
    shifted = [x + offset for x in values]
    for x in shifted:
        high, low = add(high, low, x, 0.0)
        q_high, q_low = add(q_high, q_low, *square(x))
    n = len(shifted)
    mean = sum(map(Fraction, shifted)) / n
    exact = float(sum((Fraction(x) - mean) ** 2 for x in shifted) / (n - 1))
    found = variance(n, high, low, q_high, q_low)
    assert abs(found - exact) <= 1e-12 * exact + 1e-13
