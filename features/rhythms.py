"""What late rows do to rhythms: all is as had they come in time, and what was told stays told.

An entity that goes back to a checkpoint (`features.late`) has its rhythm from there, and hears its
rows again, the late ones among them. What it tells on the way of silences that are over was told,
or is not told any more. Of the silence it is in, so many absences stay told as would have been by
the time of the last one; the next is due by the rhythm it has now.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from features.plan import Silence
from features.silence import DUE, LAST, LIMIT, NOTICE, RUN_MAX, TOLD, Wheel, run_silence
from features.speed import kernel

__all__ = ["Rhythms"]

Int64 = npt.NDArray[np.int64]


@kernel
def _settle(which, slots, before, ints):
    """Let the silences that slots are in be told of as far as their rhythm now says.

    Parameters
    ----------
    which : int64 (n,), places in `slots` and `before`
    slots : int64 (k,)
    before : int64 (k, 8), their integers before they went back
    ints : int64 (slots, 8)
    """
    for i in which:
        row = ints[slots[i]]
        told, limit = before[i, TOLD], row[LIMIT]
        n = 0
        if limit > 0 and row[LAST] == before[i, LAST]:
            while n < told and (limit << n) <= (before[i, LIMIT] << (told - 1)):
                n += 1
        row[TOLD] = n
        row[DUE] = row[LAST] + (limit << n) if limit > 0 and n < RUN_MAX else 0


class Rhythms:
    """Rhythms of slots that go back and hear their rows again.

    Parameters
    ----------
    slots : int64 (k,), ascending, before they go back
    silence : what the kernel is told
    state : integers, floats and largest gaps of all slots
    wheel : who is due when
    clock_us : event-time clock
    """

    def __init__(
        self,
        slots: Int64,
        silence: Silence,
        state: tuple[Any, Any, Any],
        wheel: Wheel,
        clock_us: int,
    ) -> None:
        self._slots, self._silence, self._state = slots, silence, state
        self._wheel, self._clock_us = wheel, clock_us
        self._ints, self._floats = state[0][slots], state[1][slots]
        self._settled = np.zeros(len(slots), np.bool_)

    def hear(self, slots: Int64, head: Int64) -> None:
        """Hear rows again, or for the first time where they are newer than all heard before.

        Parameters
        ----------
        slots, head : of the rows, each slot's in order
        """
        which = np.searchsorted(self._slots, slots)
        new = head[:, 1] > self._ints[which, LAST]
        past = np.flatnonzero(~new)
        if len(past):
            self._run(slots[past], head[past], np.zeros((2 * len(past) + 1, NOTICE)))
        fresh = np.flatnonzero(new)
        if len(fresh):
            self._let_settle(np.unique(which[fresh]))
            self._wheel.reserve(len(fresh))
            self._run(slots[fresh], head[fresh], self._wheel.notices)

    def end(self) -> None:
        """Let all be told of that is due by the rhythms as they are now."""
        self._let_settle(np.arange(len(self._slots)))
        self._wheel.file(self._slots, self._state[0])

    def _run(self, slots: Int64, head: Int64, notices: npt.NDArray[np.float64]) -> None:
        """Let rows pass."""
        run = cast(Callable[..., None], run_silence)
        run(slots, head, *self._silence.tables, *self._state, notices)

    def _let_settle(self, which: Int64) -> None:
        """Settle slots that have heard their past again, and say what has changed among peers."""
        which = which[~self._settled[which]]
        if not len(which):
            return
        self._settled[which] = True
        ints, floats, _ = self._state
        _settle(which, self._slots, self._ints, ints)
        slots = self._slots[which]
        before = (self._ints[which], self._floats[which])
        self._wheel.correct(self._clock_us, before, (ints[slots], floats[slots]))
