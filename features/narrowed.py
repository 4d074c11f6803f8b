"""Which rows bring the state of a few entities to a moment: for whoever asks about one event.

What an entity's features are follows from its own rows alone: any number of groups gives the same.
So rows of others need not pass to know them. Where silence counts, whole groups do: how many are
told of in a round is bounded, and one that others' missing rows make overdue would wait longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from features.batch import EventBatch, Int64
from features.catalog import Catalog
from features.columns import Columns
from features.events import event_type
from features.keys import group_of
from features.plan import plan_of

__all__ = ["Narrowed"]


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Entities that are asked about.

    Parameters
    ----------
    catalog : what is computed
    groups : shard groups there are
    keys : entity type -> key of the entity; None: all entities of the type
    """

    catalog: Catalog
    groups: int
    keys: Mapping[str, int | None]
    _watched: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        plans = plan_of(self.catalog).entities
        watched = frozenset(n for n in self.keys if n in plans and plans[n].silence is not None)
        object.__setattr__(self, "_watched", watched)

    def entities_in(self, group: int) -> frozenset[str]:
        """Entity types whose state a group must have."""
        return frozenset(
            name for name, key in self.keys.items() if key is None or self._group(key) == group
        )

    def _group(self, key: int) -> int:
        """The shard group of a key."""
        return int(group_of(np.array([key], np.uint64), self.groups)[0])

    def cut(
        self, batches: Mapping[str, EventBatch], bounds: Mapping[str, Int64]
    ) -> tuple[dict[str, EventBatch], dict[str, Int64]]:
        """The rows of rounds in a row that the entities' state depends on, in their order.

        Parameters
        ----------
        batches : event type -> events, round after round
        bounds : event type -> int64 (R + 1,), where the rounds begin and end in its batch

        Returns
        -------
        the same of what is left; event types without a row are left out
        """
        kept: dict[str, EventBatch] = {}
        within: dict[str, Int64] = {}
        for name, batch in batches.items():
            counts = self._counts(batch)
            rows = np.flatnonzero(counts)
            if len(rows):
                kept[name] = batch if len(rows) == len(batch) else batch.take(rows)
                within[name] = np.searchsorted(rows, bounds[name])
        return kept, within

    def _counts(self, batch: EventBatch) -> npt.NDArray[np.bool_]:
        """bool (n,), the rows of a batch that one of the entities' state depends on."""
        columns, found = Columns(batch), np.zeros(len(batch), np.bool_)
        for name in event_type(batch.event_type).entities:
            if name not in self.keys:
                continue
            keys, asked = columns.key(name), self.keys[name]
            if asked is None:
                found |= keys != 0
            elif name in self._watched:
                found |= (group_of(keys, self.groups) == self._group(asked)) & (keys != 0)
            else:
                found |= keys == np.uint64(asked)
        return found
