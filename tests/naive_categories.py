"""Slow and obvious twin of `features.categories`: Shannon's formula, word for word."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

__all__ = ["entropy"]


def entropy(values: list[Any]) -> float:
    """In bits; NaN of nothing."""
    if not values:
        return math.nan
    shares = [n / len(values) for n in Counter(values).values()]
    return math.fsum(p * math.log2(1 / p) for p in shares)
