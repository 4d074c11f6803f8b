"""Sums that neither drift nor cancel: double-double arithmetic for kernels.

A running sum that adds what enters a window and takes off what leaves it must not remember what
has left. Two doubles (high, low) carry about 106 bits, so that after any number of steps the error
is far below the last bit of the result.

Source: Dekker (1971), A floating-point technique for extending the available precision; Hida, Li,
Bailey (2001), Library for double-double and quad-double arithmetic.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from features.speed import kernel

__all__ = ["add", "square", "two_product", "two_sum", "variance"]

_SPLIT = 134217729.0
"""2^27 + 1, Dekker's constant for halves of a 53-bit significand."""


@kernel
def two_sum(a, b):
    """a + b as (rounded sum, its error), exact (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@kernel
def two_product(a, b):
    """a * b as (rounded product, its error), exact below 1e300 (Dekker)."""
    p = a * b
    t = _SPLIT * a
    a_high = t - (t - a)
    a_low = a - a_high
    t = _SPLIT * b
    b_high = t - (t - b)
    b_low = b - b_high
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


@kernel
def add(high, low, a, b):
    """(high, low) + (a, b)."""
    s, e = two_sum(high, a)
    t, f = two_sum(low, b)
    e += t
    h = s + e
    e = e - (h - s)
    e += f
    s = h + e
    return s, e - (s - h)


@kernel
def square(a):
    """a squared as (high, low)."""
    return two_product(a, a)


@kernel
def variance(n, sum_high, sum_low, square_high, square_low):
    """Sample variance from count, sum and sum of squares: (n Q - S^2) / (n (n - 1)); n >= 2."""
    q, q_low = two_product(float(n), square_high)
    q_low += float(n) * square_low
    s, s_low = two_product(sum_high, sum_high)
    s_low += 2.0 * sum_high * sum_low
    high, low = add(q, q_low, -s, -s_low)
    return max(high + low, 0.0) / (float(n) * (float(n) - 1.0))
