"""Slow and obvious twins of the baselines: each from its formula, value by value, no arrays."""

from __future__ import annotations

import math
import statistics

__all__ = ["as_sigma", "mad_z"]


def as_sigma(t: float, n: float) -> float:
    """Wallace's normal deviate of Student's t on n values."""
    f = min(max(n - 1.0, 1.0), 200.0)
    size = (8 * f + 1) / (8 * f + 3) * math.sqrt(f * math.log1p(t * t / f))
    return math.copysign(size, t)


def mad_z(kept: list[float], x: float) -> float:
    """x against the median of the values, in median absolute deviations of a normal law."""
    median = statistics.median(kept)
    mad = statistics.median(abs(v - median) for v in kept)
    return as_sigma((x - median) / (1.4826 * mad + 1e-3 * abs(median) + 1e-9), len(kept))
