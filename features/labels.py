"""Verdicts on events: fraud or genuine, said days after the event, by people or issuers.

A label names an event and the entities it touched, so that what is known of each of them changes
without looking the event up. Labels come by the control lane and are known before the rows of their
round pass. The same verdict twice counts once, another verdict on the same event takes the place
of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    """The label in a checked control record of kind `label`; `time_us` 0 where it names no entity.

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
        int(record.get("event_time_us", 0)),
        record["verdict"] == "fraud",
        tuple((e, _key(name, e, text)) for e, text in record.get("entities", {}).items()),
        event_type(name).primary,
    )


def _key(name: str, entity: str, text: str) -> int:
    """Key of an entity by its name; one of several columns is written `a|b`, as in alerts."""
    columns = event_type(name).entities[entity]
    values = text.split("|") if len(columns) > 1 else [text]
    frame = pl.DataFrame(dict(zip(columns, ([value] for value in values), strict=True)))
    return int(hash_columns(frame, columns).view(np.int64)[0])


class _Known(NamedTuple):
    """A verdict, the time it was taken at, of whom it is and until when it makes that one stand
    still; the latter two 0 where it does not."""

    verdict: int
    time_us: int
    entity: int = 0
    until_us: int = 0


class LabelBook:
    """The newest verdict on each labelled event of one entity type in one group.

    At most `KNOWN_MAX` are kept.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._new: dict[int, None] = {}
        self._frauds: dict[int, dict[int, int]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def take(
        self, key: int, time_us: int, verdict: int, entity: int = 0, until_us: int = 0
    ) -> tuple[int, int]:
        """Write a verdict down; gives (what was known before, the time it was taken at).

        Parameters
        ----------
        entity, until_us : who learns nothing from the verdict's events until when, 0 for nobody;
            the same verdict again leaves that as it was
        """
        before = self._drop(key)
        if before is None:
            before = _Known(0, time_us)
        now = _Known(verdict, before.time_us, entity, until_us)
        self._put(key, before if verdict == before.verdict else now)
        self._new.pop(key, None)
        self._new[key] = None
        return before.verdict, before.time_us

    def frozen_until_us(self, entity: int) -> int:
        """The latest time until which a fraud that stands makes an entity learn nothing, or 0."""
        return max(self._frauds.get(entity, {}).values(), default=0)

    def _drop(self, key: int) -> _Known | None:
        """Take a verdict out."""
        known = self._known.pop(key, None)
        if known is not None and known.until_us:
            mine = self._frauds[known.entity]
            del mine[key]
            if not mine:
                del self._frauds[known.entity]
        return known

    def _put(self, key: int, known: _Known) -> None:
        """Put a verdict in as the newest; the oldest beyond the bound go."""
        self._known[key] = known
        if known.until_us:
            self._frauds.setdefault(known.entity, {})[key] = known.until_us
        while len(self._known) > KNOWN_MAX:
            oldest = next(iter(self._known))
            self._drop(oldest)
            self._new.pop(oldest, None)

    def dump(self, everything: bool) -> npt.NDArray[np.int64]:
        """int64 (n, 5) of key and `_Known`: those since the last dump, or all, oldest first."""
        keys: Iterable[int] = self._known if everything else self._new
        rows = [(key, *self._known[key]) for key in keys]
        self._new = {}
        return np.array(rows, np.int64).reshape(-1, 5)

    def load(self, rows: npt.NDArray[np.int64]) -> None:
        """Put a dump back, oldest first; one of 3 columns does not know whom a verdict freezes."""
        for key, *known in rows.tolist():
            self._drop(key)
            self._put(key, _Known(*known))
