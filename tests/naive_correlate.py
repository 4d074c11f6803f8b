"""Slow and obvious twin of `features.correlate`: all pairs of values of each two series kept."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["Host"]

Pair = tuple[float, float]


def correlation(pairs: list[Pair], memory: float) -> float:
    """Exponentially weighted, from the first pair on; the first pairs weigh the same."""
    weights: list[float] = []
    for n in range(len(pairs)):
        share = max(1.0 / (n + 1), 1.0 / memory)
        weights = [w * (1.0 - share) for w in weights] + [share]
    mx, my = (math.fsum(w * p[k] for w, p in zip(weights, pairs, strict=True)) for k in (0, 1))
    xx, yy, xy = (
        math.fsum(w * (p[a] - m) * (p[b] - k) for w, p in zip(weights, pairs, strict=True))
        for a, b, m, k in ((0, 0, mx, mx), (1, 1, my, my), (0, 1, mx, my))
    )
    floors = [1e-3 * abs(m) + 1e-9 for m in (mx, my)]
    r = xy / math.sqrt((xx + floors[0] ** 2) * (yy + floors[1] ** 2))
    return max(-0.999, min(0.999, r))


class Host:
    """All values of the series of one host; at most eight series, none silent for an hour."""

    def __init__(self) -> None:
        self.newest: dict[Any, tuple[int, float]] = {}
        self.pairs: dict[frozenset[Any], list[dict[Any, float]]] = {}

    def take(self, name: Any, value: float, now: int, window_s: int) -> dict[str, float]:
        """A new value; gives the three operations."""
        best: tuple[float, Any] | None = None
        before_us = self.newest.get(name, (0, 0.0))[0]
        for other, (heard_us, its) in self.newest.items():
            if other == name or now - heard_us >= window_s * 1_000_000:
                continue
            kept = self.pairs.setdefault(frozenset((name, other)), [])
            if len(kept) >= 64:
                r = correlation([(p[name], p[other]) for p in kept], 512.0)
                if abs(r) >= 0.5 and (best is None or abs(r) > abs(best[0])):
                    best = (r, other)
            if now - heard_us <= (now - before_us) / 2:
                kept.append({name: value, other: its})
        self.newest[name] = (now, value)
        if best is None:
            return dict.fromkeys(("correlation", "correlation_usual", "correlation_z"), math.nan)
        usual, other = best
        kept = self.pairs[frozenset((name, other))]
        r = correlation([(p[name], p[other]) for p in kept], 32.0)
        gap = (math.atanh(r) - math.atanh(usual)) * math.sqrt(29.0)
        return {"correlation": r, "correlation_usual": usual, "correlation_z": gap}
