"""The slow and obvious twin of `features.silence`: rows one by one, every due time looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Absence", "NaiveSilence"]


@dataclass(frozen=True, order=True)
class Absence:
    """One absence, by due time, then key."""

    due_us: int
    key: int
    since_us: int
    missed: int
    silences: int
    allowed_s: float = field(compare=False)
    usual_gap_s: float = field(compare=False)


class _Entity:
    """All that one entity has ever said, reduced by the book."""

    def __init__(self, now_us: int) -> None:
        self.first_us = self.last_us = now_us
        self.gaps: list[tuple[float, int, int]] = []  # seconds, begin, end
        self.mean = self.variance = 0.0
        self.kept: dict[int, list[tuple[float, float]]] = {h: [] for h in range(24)}
        self.silences = self.told = 0
        self.allowed_us: int | None = None

    def due_us(self) -> int | None:
        """When it is due next; None where it has no rhythm yet or was given up."""
        if self.allowed_us is None or self.told == 6:
            return None
        return self.last_us + self.allowed_us * 2**self.told

    def absence(self, key: int) -> Absence:
        due_us = self.due_us()
        assert due_us is not None and self.allowed_us is not None
        self.told += 1
        usual_s = math.exp(self.mean)
        return Absence(
            due_us, key, self.last_us, self.told, self.silences, self.allowed_us / 1e6, usual_s
        )

    def speak(self, now_us: int) -> None:
        if self.told:
            self.silences += 1
            self.told = 0
            self.allowed_us = None
        gap_s = (now_us - self.last_us) / 1e6
        begun_us, self.last_us = self.last_us, now_us
        if gap_s < 1.0 and self.allowed_us is not None:
            return
        if gap_s >= 1.0:
            self._learn(gap_s, begun_us, now_us)
        if len(self.gaps) >= 8:
            self.allowed_us = int(self._allowed_s(now_us) * 1e3) * 1_000

    def _learn(self, gap_s: float, begun_us: int, now_us: int) -> None:
        n, x = len(self.gaps), math.log(gap_s)
        self.gaps.append((gap_s, begun_us, now_us))
        if n == 0:
            self.mean = x
        else:
            d = x - self.mean
            if n >= 16:
                limit = 3.0 * math.sqrt(self.variance) + 0.1
                d = min(max(d, -limit), limit)
            a = max(1.0 / (n + 1.0), 1.0 / 200.0)
            self.mean += a * d
            self.variance = (1.0 - a) * (self.variance + a * d * d)
        days = now_us / 86_400e6
        kept = self.kept[begun_us // 3_600_000_000 % 24]
        kept.append((float(np.float32(gap_s)), float(np.float32(days))))
        fresh = [(g, d) for g, d in kept if days - d <= 28.0]
        kept[:] = sorted(fresh, key=lambda one: -one[0])[:2]

    def _allowed_s(self, now_us: int) -> float:
        hour, days = now_us // 3_600_000_000 % 24, now_us / 86_400e6
        near = [
            g for h in (hour - 1, hour, hour + 1) for g, d in self.kept[h % 24] if days - d <= 28.0
        ]
        second = sorted(near, reverse=True)[1] if len(near) > 1 else 0.0
        return max(60.0, 1.25 * second, math.exp(self.mean + 2.0 * math.sqrt(self.variance)))


class NaiveSilence:
    """Who is overdue, by looking at everybody all the time."""

    def __init__(self) -> None:
        self._entities: dict[int, _Entity] = {}

    def process(self, rows: list[tuple[int, int]], clock_us: int) -> list[Absence]:
        """Absences of rows (key, time) in order, and at the clock after them."""
        found: list[Absence] = []
        for key, now_us in rows:
            entity = self._entities.get(key)
            if entity is None:
                self._entities[key] = _Entity(now_us)
                continue
            if now_us > entity.last_us:
                found += self._due(key, entity, now_us)
                entity.speak(now_us)
        for key, entity in self._entities.items():
            found += self._due(key, entity, clock_us)
        return sorted(found)

    @staticmethod
    def _due(key: int, entity: _Entity, until_us: int) -> list[Absence]:
        found = []
        while (due_us := entity.due_us()) is not None and due_us < until_us:
            found.append(entity.absence(key))
        return found

    @property
    def entities(self) -> dict[str, Any]:
        """How many there are, for messages."""
        return {"entities": len(self._entities)}
