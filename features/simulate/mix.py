"""The default mix: how much of what the simulator makes, and how strong its attacks are.

This one place decides how hard the default judgement of the detectors is. It is frozen: it was
fixed in a commit of its own before any model or threshold was fitted, and a change makes all
published recalls incomparable with new ones. Change it only with a new set of figures, and say so
in the CHANGELOG as *Breaking (figures)*.

Sizes of single campaigns stand with each attack (`EVENTS`), since they belong to its story.
"""

from __future__ import annotations

import numpy as np

__all__ = ["STRENGTH_MIN", "TYPE_SHARES", "WEAK_EVERY", "default_strength"]

TYPE_SHARES: dict[str, float] = {"payment": 0.45, "login": 0.15, "metric": 0.25, "app_log": 0.15}
"""Share of each event type in genuine traffic; chosen: payments first, as in the example of the
issue that asked for waxwing, metrics second. With a subset of the types each keeps its own rate."""

WEAK_EVERY = 23
"""One campaign in so many is weak. A fixed turn over all campaigns of all attacks instead of
chance, so that a day or two (about one campaign of each attack a day) have one weak one and not
none or four; a prime, so that the turn comes round to every attack."""

STRENGTH_MIN = 0.1
"""Weakest strength an attack is declared for."""

_WEAK = (STRENGTH_MIN, 0.4)
_PLAIN_LOW = 0.5
_PLAIN_SKEW = 4.0


def default_strength(rng: np.random.Generator, turn: int) -> float:
    """Strength of the campaign whose place in the turn over all campaigns is `turn`.

    A weak one is uniform in [0.1, 0.4]. The others are 0.5 + 0.5 * Beta(4, 1): skewed to plain
    (mean 0.9), with one in eight below 0.8.
    """
    low, high = _WEAK
    u = float(rng.random())
    if turn % WEAK_EVERY == 0:
        return low + (high - low) * u
    return float(_PLAIN_LOW + (1.0 - _PLAIN_LOW) * u ** (1.0 / _PLAIN_SKEW))
