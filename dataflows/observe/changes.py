"""Latencies around changes of who has a say, for `waxwing bench promote`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dataflows.observe.telemetry import Telemetry

if TYPE_CHECKING:
    from dataflows.alerts.base import Alert
    from dataflows.score import RoundOut

__all__ = ["Change", "ChangesWatched"]


@dataclass(slots=True)
class Change:
    """A change, when it was asked for and when it was in force, on the monotonic clock."""

    what: str
    asked_s: float
    in_force_s: float | None = None


class ChangesWatched(Telemetry):
    """Keeps the latencies of all events by the moment of their round, and when stages changed."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[tuple[float, npt.NDArray[np.int64]]] = []
        self.changes: list[Change] = []
        self._bundles: dict[str, tuple[str, float]] = {}

    def round(
        self,
        round_: int,
        outs: Sequence[RoundOut],
        alerts: Sequence[Alert],
        acked_ns: int,
        totals: dict[str, int],
    ) -> None:
        """See `Telemetry.round`."""
        super().round(round_, outs, alerts, acked_ns, totals)
        now_s = time.monotonic()
        self.rounds.append((now_s, np.concatenate([acked_ns - out.due_ns for out in outs])))
        if outs[0].control.bundles != self._bundles:
            self._bundles = outs[0].control.bundles
            for change in self.changes:
                if change.in_force_s is None:
                    change.in_force_s = now_s
                    break

    def asked(self, what: str) -> None:
        """A change is asked for now."""
        self.changes.append(Change(what, time.monotonic()))

    def p99_ms(self, from_s: float, until_s: float) -> float | None:
        """Of the events of rounds that were done in a span; None where there were none."""
        found = [waited for at_s, waited in self.rounds if from_s <= at_s < until_s]
        waited = np.concatenate(found) if found else np.zeros(0, np.int64)
        return float(np.quantile(waited, 0.99)) / 1e6 if len(waited) else None
