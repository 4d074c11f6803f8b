"""Windows that run empty, slow and obvious: every event of every entity is kept and counted."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Quiet"]


class Quiet:
    """Who has said something when, and what is to be told of it.

    Parameters
    ----------
    windows_us : lengths of the windows
    """

    def __init__(self, windows_us: Iterable[int]) -> None:
        self._windows_us = sorted(windows_us)
        self._times: dict[int, list[int]] = {}
        self._told: set[tuple[int, int]] = set()

    def hear(self, key: int, time_us: int) -> None:
        """An event of an entity."""
        self._times.setdefault(key, []).append(time_us)

    def speak(self, clock_us: int) -> dict[int, tuple[int, list[int]]]:
        """Entities a window of which has run empty since the last time -> as of when, and how many
        events each window holds then."""
        until_us = clock_us // 1_000_000 * 1_000_000
        found = {}
        for key, times in self._times.items():
            last = max(times)
            due = [last + w for w in self._windows_us if last + w < until_us]
            if not [us for us in due if (key, us) not in self._told]:
                continue
            self._told |= {(key, us) for us in due}
            at_us = max(due)
            counts = [sum(at_us - w < t <= at_us for t in times) for w in self._windows_us]
            found[key] = at_us, counts
        return found
