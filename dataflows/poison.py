"""Events that make a step raise: found one by one, put among the dead letters, the flow goes on.

What a step raises on purpose (`WaxwingError`) is a fault of disk, settings or world and ends the
flow. Anything else is a bug that some event has brought to light. A step that is a function of its
rows is tried again with ever fewer of them until the event is found (`culprits`). A step with a
state cannot be: it has changed by then. There the flow ends, the rounds since the manifest pass
once more up to the one that raised, its event is found on copies of the state and noted beside the
journal (`dataflows.quarantine`), and the flow begins anew without it (`without_poison`): so it does
after any later restart, and in a replay.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dataflows.sources.base import DeadLetter
from features.batch import EventBatch, Int64
from features.encode import json_bodies
from features.errors import WaxwingError

if TYPE_CHECKING:
    from dataflows.sources.rounds import Part

__all__ = ["POISON", "POISON_FILE", "POISON_ROUND_MAX", "culprits", "letters", "told",
           "without_poison"]  # fmt: skip

X = TypeVar("X")

POISON = "poison"
"""Reason of such dead letters."""

POISON_FILE = "poison.log"
"""Notes of events that made a step with a state raise, in the folder of their lane's journal."""

POISON_ROUND_MAX = 100
"""Most such events of one type in a round of a lane. Chosen: more of them are no odd events but a
bug that meets them all; then the flow ends as with any bug, and nothing is lost."""

TRACE_CHARS_MAX = 4_000
"""Longest traceback kept, its end. Chosen: some thirty frames."""


def culprits(
    n: int, attempt: Callable[[Int64], X], count_max: int = POISON_ROUND_MAX
) -> tuple[X, list[tuple[int, Exception]]]:
    """What an attempt gives without the rows that make it raise, and those rows.

    Parameters
    ----------
    n : number of rows
    attempt : does the work for some rows, int64 (m,), ascending
    count_max : most rows taken out

    Returns
    -------
    the attempt's result, and (row, what it raised) in the order in which they were found

    Raises
    ------
    WaxwingError : raised by an attempt; it is about no row
    Exception : raised without any row, or after `count_max` rows were taken out

    Examples
    --------
    >>> total, found = culprits(5, lambda rows: sum(6 // (3 - int(i)) for i in rows))
    >>> total, [(row, str(error)) for row, error in found]
    (5, [(3, 'integer division or modulo by zero')])
    """
    left: Int64 = np.arange(n)
    found: list[tuple[int, Exception]] = []
    while True:
        try:
            return attempt(left), found
        except WaxwingError:
            raise
        except Exception as error:
            if not len(left) or len(found) >= count_max:
                raise
            at, fault = _first(left, attempt, error)
        found.append((int(left[at]), fault))
        left = np.delete(left, at)


def _first(
    left: Int64, attempt: Callable[[Int64], object], fault: Exception
) -> tuple[int, Exception]:
    """The first row with which an attempt raises, and what, where it raises with all of them."""
    passes, fails = 0, len(left)
    while fails - passes > 1:
        middle = (passes + fails) // 2
        try:
            attempt(left[:middle])
            passes = middle
        except WaxwingError:
            raise
        except Exception as error:
            fails, fault = middle, error
    return passes, fault


def told(step: str, error: BaseException) -> str:
    """What a step raised, with the end of the traceback."""
    trace = "".join(traceback.format_exception(error)).strip()[-TRACE_CHARS_MAX:]
    return f"step {step!r} raised {type(error).__name__}: {error}\n{trace}"


def without_poison(part: Part, notes: Sequence[Mapping[str, Any]]) -> Part:
    """A part in which the events that are noted have become dead letters.

    Parameters
    ----------
    notes : each with `event_type`, `partition`, `offset`, `topic` and `detail`
    """
    if not notes:
        return part
    batches, ids = dict(part.batches), dict(part.ids)
    rejects: list[DeadLetter] = []
    topics = {note["event_type"]: note["topic"] for note in notes}
    for name in [name for name in batches if name in topics]:
        batch = batches[name]
        drop: dict[int, str] = {}
        for note in notes:
            if note["event_type"] == name:
                here = (batch.partition == note["partition"]) & (batch.offset == note["offset"])
                drop |= dict.fromkeys(np.flatnonzero(here).tolist(), note["detail"])
        rejects += letters(batch, topics[name], sorted(drop.items()), part.round)
        left = np.delete(np.arange(len(batch)), sorted(drop))
        batches[name], ids[name] = batch.take(left), ids[name][left]
        if not len(left):
            del batches[name], ids[name]
    return replace(part, batches=batches, ids=ids, rejects=(*part.rejects, *rejects))


def letters(
    batch: EventBatch, topic: str, found: Sequence[tuple[int, str]], round_: int
) -> list[DeadLetter]:
    """Dead letters of some rows of a batch, each with what is told of it."""
    rows = np.array([row for row, _ in found], np.int64)
    return [
        DeadLetter(
            POISON, detail, batch.event_type, None, topic,
            int(batch.partition[row]), int(batch.offset[row]), raw, round_,
        )
        for (row, detail), raw in zip(found, json_bodies(batch.frame[rows]), strict=True)
    ]  # fmt: skip
