"""The clock of a lane, written down as its docstring says it: lists, one place and one number at a
time."""

from __future__ import annotations

__all__ = ["NaiveClock"]

SECOND = 1_000_000


class NaiveClock:
    """Takes rounds of (place, time) in any order; times in microseconds."""

    def __init__(self, late_us: int, early_us: int) -> None:
        self.late_us, self.early_us = late_us, early_us
        self.last: dict[int, list[int]] = {}
        self.count: dict[int, int] = {}
        self.clocks: dict[int, int] = {}
        self.clock_us = 0
        self.cuts: list[int] = []

    def judge(self, place: int, time_us: int, cut_us: int) -> str:
        """`late`, `early` or `ok`."""
        clock_us = self.clocks.get(place)
        if clock_us is None:
            return "ok"
        if self.late_us and clock_us - time_us > self.late_us:
            return "late"
        ahead_us = min(time_us - clock_us, time_us - cut_us)
        return "early" if self.early_us and ahead_us > self.early_us else "ok"

    def advance(self, events: list[tuple[int, int]], cut_us: int) -> int:
        """Take in what was admitted of a round; the lane's clock."""
        for place in {p for p, _ in events}:
            times = sorted(t for p, t in events if p == place)
            n = len(times)
            spread = times if n <= 64 else [times[i * (n - 1) // 63] for i in range(64)]
            turned = sorted((i * 2654435769 % 2**32, t) for i, t in enumerate(spread))
            spread = [t for _, t in turned]
            self.last[place] = (self.last.get(place, []) + spread)[-64:]
            self.count[place] = self.count.get(place, 0) + n
            if self.count[place] < 16:
                continue
            kept = sorted(self.last[place])
            half, quarter = kept[(len(kept) - 1) // 2], kept[(len(kept) - 1) // 4]
            limit = min(half + 4 * (half - quarter) + SECOND, cut_us)
            credible = [t for t in kept + times if t <= limit]
            if credible and max(credible) > self.clocks.get(place, 0):
                self.clocks[place] = max(credible)
        newest = max(self.clocks.values(), default=0)
        if newest > self.clock_us:
            self.clock_us = newest
        elif self.clock_us and len(self.cuts) >= 2:
            peaks = [max(self.cuts[: i + 1]) for i in range(len(self.cuts))]
            step = max(0, cut_us - peaks[-1])
            before = max(0, self.cuts[-1] - (peaks[-2]))
            self.clock_us = max(self.clock_us, min(self.clock_us + min(step, before), cut_us))
        self.cuts.append(cut_us)
        return self.clock_us
