"""Verdicts on events: fraud or genuine, said days after the event, by people or issuers.

A label names an event and the entities it touched, so that what is known of each of them changes
without looking the event up. Labels come by the control lane and are known before the rows of their
round pass. The same verdict twice counts once, another verdict on the same event takes the place
of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.events import event_code, event_type
from features.keys import hash_columns, hash_strings

__all__ = ["FRAUD", "FREEZE_S", "GENUINE", "KNOWN_MAX", "Label", "LabelBook", "label_of"]

GENUINE, FRAUD = 1, 2
"""How kernels write a verdict; 0 is none."""

KNOWN_MAX = 16_384
"""Verdicts remembered per entity type and group, so that a repeat counts once; the oldest goes
first, and is new again when it comes again. Chosen: a quarter of a million labels an entity type
with 16 groups, 2 MB a group and entity type at the most."""

FREEZE_S = 7 * 86_400
"""So long after a fraud becomes known, by its entities' event time, nothing that they do is taken
for usual. Chosen: a card is stopped and a terminal cleaned up within days; a week after, what
they do is theirs again."""


@dataclass(frozen=True, slots=True)
class Label:
    """A verdict on one event.

    Parameters
    ----------
    code : of its event type
    event : key of its event type and id
    time_us : its event time
    fraud : the verdict
    entities : (entity type, key) of those it touched
    primary : the entity type whose behaviour the event is
    """

    code: int
    event: int
    time_us: int
    fraud: bool
    entities: tuple[tuple[str, int], ...]
    primary: str = ""


def label_of(record: Mapping[str, Any]) -> Label:
    """The label in a checked control record of kind `label`.

    Examples
    --------
    >>> said = {"event_type": "payment", "event_id": "p1", "verdict": "fraud"}
    >>> label_of(said | {"event_time_us": 5, "entities": {"card": "c1"}}).fraud
    True
    """
    name = record["event_type"]
    return Label(
        event_code(name),
        int(hash_strings(pl.Series([f"{name} {record['event_id']}"])).view(np.int64)[0]),
        int(record["event_time_us"]),
        record["verdict"] == "fraud",
        tuple((entity, _key(name, entity, text)) for entity, text in record["entities"].items()),
        event_type(name).primary,
    )


def _key(name: str, entity: str, text: str) -> int:
    """Key of an entity by its name; one of several columns is written `a|b`, as in alerts."""
    columns = event_type(name).entities[entity]
    values = text.split("|") if len(columns) > 1 else [text]
    frame = pl.DataFrame(dict(zip(columns, ([value] for value in values), strict=True)))
    return int(hash_columns(frame, columns).view(np.int64)[0])


class LabelBook:
    """The newest verdict on each labelled event of one entity type in one group.

    At most `KNOWN_MAX` are kept.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] = {}
        self._new: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._known)

    def take(self, key: int, time_us: int, verdict: int) -> tuple[int, int]:
        """Write a verdict down; gives (what was known before, the time it was taken at)."""
        before, at = self._known.pop(key, (0, time_us))
        self._known[key] = (verdict, at)
        self._new.pop(key, None)
        self._new[key] = None
        while len(self._known) > KNOWN_MAX:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._new.pop(oldest, None)
        return before, at

    def dump(self, everything: bool) -> npt.NDArray[np.int64]:
        """int64 (n, 3) of key, verdict, time: those since the last dump, or all, oldest first."""
        keys: Iterable[int] = self._known if everything else self._new
        rows = [(key, *self._known[key]) for key in keys]
        self._new = {}
        return np.array(rows, np.int64).reshape(-1, 3)

    def load(self, rows: npt.NDArray[np.int64]) -> None:
        """Put a dump back, oldest first."""
        for key, verdict, time_us in rows.tolist():
            self._known.pop(key, None)
            self._known[key] = (verdict, time_us)
        while len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]
