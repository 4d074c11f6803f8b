"""Slow and obvious twin of `features.risk`: every verdict kept, every event counted by its day."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["Known"]

DAY_US = 86_400_000_000
NAN = math.nan


class Known:
    """What is known of the frauds of one entity."""

    def __init__(self) -> None:
        self.verdicts: dict[Any, tuple[bool, int]] = {}
        self.newest: bool | None = None
        self.latest_us: int | None = None

    @property
    def frauds(self) -> list[int]:
        """Times of the events known to be fraud."""
        return [t for fraud, t in self.verdicts.values() if fraud]

    def take(self, event: Any, time_us: int, fraud: bool, newest_us: int) -> None:
        """A verdict comes in."""
        before, time_us = self.verdicts.get(event, (None, time_us))
        if before == fraud:
            return
        self.verdicts[event] = (fraud, time_us)
        self.newest = fraud
        if fraud:
            self.latest_us = max(time_us, self.latest_us or 0)
        elif before and not self.frauds:
            self.latest_us = None
        elif before and self.latest_us == time_us:
            # Of the others only the days are known, and of those only the last forty.
            today = newest_us // DAY_US
            days = [t // DAY_US for t in self.frauds if t // DAY_US > today - 40]
            self.latest_us = min((max(days, default=today - 40) + 1) * DAY_US - 1, newest_us)

    def value(self, op: str, window_s: int | None, events: list[int], now: int) -> float:
        """One operation for an event of now, `events` the times of those before it."""
        today, days = now // DAY_US, (window_s or 0) // 86_400
        frauds = [t // DAY_US for t in self.frauds]
        counts = [t // DAY_US for t in events]
        if op == "risk_count":
            return float(sum(today - 7 - days <= d <= today for d in frauds))
        if op == "risk_count_ever":
            return float(len(frauds))
        if op == "last_label":
            return NAN if self.newest is None else float(self.newest)
        if op == "since_fraud":
            return NAN if self.latest_us is None else (now - self.latest_us) / 1e6
        known = {d: max(counts.count(d), frauds.count(d)) for d in {*counts, *frauds}}
        if op == "genuine_since_fraud":
            if self.latest_us is None:
                return NAN
            first = max(self.latest_us // DAY_US + 1, today - 39)
            return float(sum(n for d, n in known.items() if first <= d <= today - 8))
        if op == "fraud_run":
            if self.latest_us is None:
                return NAN
            first = self.latest_us // DAY_US
            for d in range(first - 1, today - 40, -1):
                if d not in frauds and d in counts:
                    break
                first = d if d in frauds else first
            return now / 1e6 - first * 86_400.0
        first = today - 7 - days
        found = sum(first <= d for d in frauds)
        young = sum(d >= today - 7 for d in frauds)
        total = young + sum(n for d, n in known.items() if first <= d <= today - 8)
        return (found + 0.01) / (total + 10.0)
