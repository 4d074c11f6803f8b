"""Latencies around changes of who has a say, for `waxwing bench promote`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dataflows.control.records import Control
from dataflows.observe.telemetry import Telemetry

if TYPE_CHECKING:
    from dataflows.alerts.base import Alert
    from dataflows.score import RoundOut

__all__ = ["Change", "ChangesWatched", "heard"]


@dataclass(slots=True)
class Change:
    """A change, its record (with an `id`), when it was asked for and when it was in force, on the
    monotonic clock."""

    what: str
    record: dict[str, Any]
    asked_s: float
    in_force_s: float | None = None


class ChangesWatched(Telemetry):
    """Keeps the latencies of all events by the moment of their round, and when stages changed."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[tuple[float, npt.NDArray[np.int64]]] = []
        self.changes: list[Change] = []
        self._control = Control()

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
        control = outs[0].control
        if control is not self._control:
            waiting = [change for change in self.changes if change.in_force_s is None]
            for change in waiting[: heard(waiting, self._control, control)]:
                change.in_force_s = now_s
            self._control = control

    def asked(self, what: str, record: dict[str, Any]) -> None:
        """A change is asked for now."""
        self.changes.append(Change(what, record, time.monotonic()))

    def p99_ms(self, from_s: float, until_s: float) -> float | None:
        """Of the events of rounds that were done in a span; None where there were none."""
        found = [waited for at_s, waited in self.rounds if from_s <= at_s < until_s]
        waited = np.concatenate(found) if found else np.zeros(0, np.int64)
        return float(np.quantile(waited, 0.99)) / 1e6 if len(waited) else None


def heard(waiting: Sequence[Change], before: Control, now: Control) -> int:
    """How many of the changes that wait, in their order, came into force between two rounds.

    Parameters
    ----------
    waiting : asked for, the oldest first
    before, now : what was in force, and what is
    """
    ids = {note.get("id") for note in now.notes.values()}
    count, then = 0, before
    for n, change in enumerate(waiting, 1):
        then = then.apply(change.record)
        # Tried, promoted and rolled back in one round is the same as tried: the notes tell.
        named = [one.record["kind"] == "bundle" for one in waiting]
        said = [one.record["id"] in ids for one, of in zip(waiting, named, strict=True) if of]
        whole = said == [i < n for i, of in enumerate(named) if of]
        if whole and (then.bundles, then.undo) == (now.bundles, now.undo):
            count = n
    return count
