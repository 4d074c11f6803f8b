"""A circuit breaker: who has failed several times in a row is left alone for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Breaker"]


class Breaker:
    """Closed while all is well; open after so many faults in a row; after a while one call is let
    through, which closes it or opens it anew. Any thread may ask.

    Parameters
    ----------
    faults_max : faults in a row that open it
    open_s : time it stays open
    clock : seconds that only grow
    told : takes `open` or `closed` when it becomes so

    Examples
    --------
    >>> now = [0.0]
    >>> breaker = Breaker(2, 5.0, lambda: now[0])
    >>> breaker.fault(), breaker.fault(), breaker.may_ask()
    (None, None, False)
    >>> now[0] = 6.0
    >>> breaker.may_ask(), breaker.may_ask()
    (True, False)
    >>> breaker.success(), breaker.may_ask()
    (None, True)
    """

    def __init__(
        self,
        faults_max: int,
        open_s: float,
        clock: Callable[[], float],
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._faults_max, self._open_s = faults_max, open_s
        self._clock, self._told = clock, told
        self._lock = threading.Lock()
        self._faults = 0
        self._until: float | None = None
        self._trying = False

    def may_ask(self) -> bool:
        """Whether a call may be made now; who is told so says `success`, `fault` or `unasked`
        after it."""
        with self._lock:
            if self._until is None:
                return True
            if self._trying or self._clock() < self._until:
                return False
            self._trying = True
            return True

    def success(self) -> None:
        """A call was answered."""
        with self._lock:
            was, self._until, self._faults, self._trying = self._until, None, 0, False
        if was is not None:
            self._told("closed")

    def unasked(self) -> None:
        """The call was not made after all: that says nothing of who was to be asked."""
        with self._lock:
            self._trying = False

    def fault(self) -> None:
        """A call was not, or wrongly."""
        with self._lock:
            self._faults += 1
            was = self._until
            if self._faults >= self._faults_max or was is not None:
                self._until = self._clock() + self._open_s
            self._trying = False
            opened = was is None and self._until is not None
        if opened:
            self._told("open")
