"""The simulator as a source: event time at a stated factor of wall time, as many events as are due.

Latency counts from when an event was due, not from when it was made: an overloaded flow cannot hide
behind a source that slows down with it (open loop).
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from dataflows.settings import Settings
from dataflows.sources.base import Taken
from features.batch import EventBatch
from features.simulate import Simulator

__all__ = ["SimulatorReader", "make_simulator", "time_us_of"]


def time_us_of(text: str) -> int:
    """Microseconds UTC of an ISO 8601 text."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return round(moment.timestamp() * 1e6)


def make_simulator(settings: Settings, seed: int | None = None) -> Simulator:
    """The simulated world the settings describe, with its own or another traffic seed."""
    return Simulator(
        seed=settings.sim_seed if seed is None else seed,
        population_seed=settings.sim_population_seed,
        start_us=time_us_of(settings.sim_start),
        events_per_s=settings.sim_events_per_s,
        cards=settings.sim_cards,
        anomaly_share=settings.sim_anomaly_share,
        repeat_share=settings.sim_repeat_share,
        event_types=tuple(settings.event_types),
        attacks=settings.sim_attacks or None,
        strength=(settings.sim_strength[0], settings.sim_strength[1])
        if settings.sim_strength
        else None,
        local_money=settings.sim_local_money,
    )


class SimulatorReader:
    """The simulated events, paced by the wall clock or as fast as they are taken.

    Parameters
    ----------
    settings : the `sim_*` settings
    start_us : event time to start at where there is no position yet (the end of a backfill)
    world : the world the settings describe, where it is there already
    """

    def __init__(
        self, settings: Settings, start_us: int | None = None, world: Simulator | None = None
    ) -> None:
        self.unpaced = not settings.sim_paced
        self._simulator = make_simulator(settings) if world is None else world
        self._speed = settings.sim_speed
        self._rate = settings.sim_events_per_s
        self._at_us = time_us_of(settings.sim_start) if start_us is None else start_us
        length_us = round(settings.sim_seconds * settings.sim_speed * 1e6)
        self._end_us = self._at_us + length_us if settings.sim_seconds else None
        self._anchor: tuple[int, int] | None = None
        self._catches_up = settings.sim_catch_up
        self.begins_us = self._at_us

    def seek(self, positions: dict[str, Any]) -> None:
        """Stand at a journaled position; an empty one leaves the start where it was."""
        if positions:
            self._at_us = int(positions["t_us"])
            if self._end_us is not None and "end_us" in positions:
                self._end_us = int(positions["end_us"])
            self._anchor = self._anchor_of(positions)

    def _anchor_of(self, positions: dict[str, Any]) -> tuple[int, int] | None:
        """Wall and event time that belong together, where a restart is to catch up with them."""
        if not self._catches_up or "anchor" not in positions:
            return None
        wall_ns, event_us = positions["anchor"]
        return int(wall_ns), int(event_us)

    @property
    def finished(self) -> str:
        """Why nothing is left to take; empty where something is."""
        if self._end_us is None or self._at_us < self._end_us:
            return ""
        return "the simulated time is over, and sim_seconds counts from the first start"

    def take(self, rows_max: int) -> Taken:
        """The events that have become due since the last call, at most about `rows_max`."""
        now_ns = time.time_ns()
        if self._anchor is None:
            self._anchor = (now_ns, self._at_us)
        limit_us = self._at_us + max(1, int(rows_max / self._rate * 1e6))
        if self.unpaced:
            until_us = limit_us
        else:
            wall_us = (now_ns - self._anchor[0]) / 1000.0
            until_us = min(self._anchor[1] + int(wall_us * self._speed), limit_us)
        if self._end_us is not None:
            until_us = min(until_us, self._end_us)
        until_us = max(until_us, self._at_us)
        taken = self._span(self._at_us, until_us, now_ns)
        self._at_us = until_us
        return taken

    def retake(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        cut_time_us: int,
        schemas: dict[str, str],
    ) -> Taken:
        """The events between two journaled positions."""
        start_us = int(before["t_us"]) if before else self._at_us
        taken = self._span(start_us, int(after["t_us"]), time.time_ns())
        self._at_us = int(after["t_us"])
        if "end_us" in after:
            self._end_us = int(after["end_us"])
        self._anchor = self._anchor_of(after)
        return taken

    def _span(self, start_us: int, until_us: int, now_ns: int) -> Taken:
        """Events of a stretch of event time, each with the wall time at which it was due."""
        batches = self._simulator.span(start_us, until_us) if until_us > start_us else {}
        timed: dict[str, EventBatch] = {}
        for name, batch in batches.items():
            if self.unpaced or self._anchor is None:
                due_ns = np.full(len(batch), now_ns, np.int64)
            else:
                lead_us = batch.time_us - self._anchor[1]
                due_ns = self._anchor[0] + (lead_us * (1000.0 / self._speed)).astype(np.int64)
            timed[name] = batch.due_at(due_ns)
        positions: dict[str, Any] = {"t_us": until_us}
        if self._end_us is not None:
            positions["end_us"] = self._end_us
        if self._catches_up and self._anchor is not None:
            positions["anchor"] = list(self._anchor)
        return Taken(
            timed,
            [],
            positions,
            sum(len(b) for b in timed.values()),
            self._end_us is not None and until_us >= self._end_us,
            {},
            until_us,
        )

    def silences(self, start_us: int, end_us: int) -> pl.DataFrame:
        """Who was silenced in a span of event time, as `Simulator.silences` says it."""
        return self._simulator.silences(start_us, end_us)

    def judged(self, absences: EventBatch) -> EventBatch:
        """Absences with their truth: which of them are those of silenced entities."""
        return replace(absences, truth=self._simulator.absence_truth(absences))

    def close(self) -> None:
        """Nothing is held."""
