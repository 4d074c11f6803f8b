"""What a feature is: one declaration from which everything else follows.

The stream computation, the training set, the online view, the reference page and the sentence in an
alert all come from the same `Feature`. Declarations live in `features/definitions/`, one file a
topic, and in files of the user's own (settings `feature_paths`, `event_paths`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from types import FrameType

__all__ = ["Feature", "inputs_of", "place_of"]

_FRAMES_MAX = 64
"""Callers looked at for the place of a declaration; chosen: helpers of helpers are a handful."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of one event type.

    Parameters
    ----------
    name : unique within the event type, unit and window last: `amount_sum_eur_1h`
    event : event type whose rows carry it (that is scored with it)
    entity : entity type whose state it reads; empty for a function of the event alone
    op : name of the operation, see `features.catalog.OPERATIONS`
    feeds : event types whose rows enter the state; empty means `event` alone
    column : field or derived column the operation reads; None where it only counts
    where : name of a condition column (true rows enter the state), None for all rows
    window_s : length of the trailing window (t - w, t]; None for operations without one
    other : second column of the operation (the other entity of a pair, the peers of a deviation)
    unit : unit of the value: `1`, `s`, `currency`, `km`, `sigma`, ...
    group : topic of the feature, for reasons and ablation: velocity, amount, geo, cross_entity,
        baseline, silence, context
    why : sentence for an alert with `{value}` and, where `baseline` is set, `{baseline}`
    baseline : another feature of the same event that holds the usual value, named in `why`
    count : another feature of the same event: how many values of its own the entity has
    high_is_odd : whether high (True), low (False) or either (None) end of the range is strange
    declared_at : file and line of the declaration, found by itself; no part of what it is
    """

    name: str
    event: str
    entity: str
    op: str
    why: str
    unit: str
    group: str
    feeds: tuple[str, ...] = ()
    column: str | None = None
    where: str | None = None
    window_s: int | None = None
    other: str | None = None
    baseline: str | None = None
    count: str | None = None
    high_is_odd: bool | None = True
    declared_at: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.feeds, list):
            object.__setattr__(self, "feeds", tuple(self.feeds))
        if not self.declared_at:
            # Over this method and the generated __init__.
            object.__setattr__(self, "declared_at", _place(sys._getframe(2)))


def _place(caller: FrameType) -> str:
    """`file:line` of the statement of a module from which a feature was made.

    Where a module is being imported, its own line counts (that in a comprehension of its own, if
    there is one), not that of the helper in which the call stands; elsewhere the outermost line of
    the file that made it.
    """
    frames = [caller]
    while len(frames) < _FRAMES_MAX and frames[-1].f_code.co_name != "<module>":
        above = frames[-1].f_back
        if above is None:
            break
        frames.append(above)
    importer = frames[-1].f_back
    if importer is None or "importlib" not in importer.f_code.co_filename:
        own = takewhile(lambda f: f.f_code.co_filename == caller.f_code.co_filename, frames)
        frames = list(own)
    at = len(frames) - 1
    while at > 0 and frames[at - 1].f_code.co_name in ("<genexpr>", "<listcomp>"):
        at -= 1
    return f"{frames[at].f_code.co_filename}:{frames[at].f_lineno}"


def place_of(declared_at: str) -> str:
    """A place as a person reads it: from the working folder where the file lies in it."""
    name, _, line = declared_at.rpartition(":")
    path = Path(name)
    if path.is_relative_to(Path.cwd()):
        name = str(path.relative_to(Path.cwd()))
    return f"{name}:{line}" if name else ""


def inputs_of(column: str) -> tuple[str, bool]:
    """`log(NAME)` -> (NAME, True); anything else -> (itself, False)."""
    if column.startswith("log(") and column.endswith(")"):
        return column[4:-1], True
    return column, False
