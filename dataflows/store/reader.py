"""Reads the newest features of entities back from Redis: what `explain` and the tests look at.

For those who do not need Feast: one round trip, no registry, numbers in the catalogue's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dataflows.settings import shown
from dataflows.store.layout import ViewLayout, entity_key, layouts, time_from_bytes
from dataflows.store.wire import ANSWER_S_MAX, CONNECT_S_MAX
from features.batch import Float64, Int64
from features.catalog import Catalog
from features.errors import SourceError, StateError

__all__ = ["StoreReader", "StoredRows"]

_DOUBLE_TAG = 0x29


@dataclass(frozen=True, slots=True)
class StoredRows:
    """What the store holds of some entities.

    Parameters
    ----------
    features : names of the columns
    values : float64 (n, F); NaN where a feature has no value, or the entity is not there
    time_us : int64 (n,), event time of the row; 0 where the entity is not there
    found : bool (n,), whether the entity is there
    """

    features: tuple[str, ...]
    values: Float64
    time_us: Int64
    found: npt.NDArray[np.bool_]


class StoreReader:
    """Reads views of a store.

    Parameters
    ----------
    url : address, see `dataflows.store.store_url`
    catalog : views and their features
    """

    def __init__(self, url: str, catalog: Catalog) -> None:
        self._url = url
        self._layouts = layouts(catalog)
        self._columns = {
            view: [*layout.fields, layout.time_field] for view, layout in self._layouts.items()
        }
        self._client: Any = redis.Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_S_MAX,
            socket_timeout=ANSWER_S_MAX,
            retry=Retry(NoBackoff(), 0),
        )

    def read(self, view: tuple[str, str], keys: Sequence[str]) -> StoredRows:
        """Newest row of each entity of a view (event type, entity).

        Raises
        ------
        SourceError : Redis does not answer
        StateError : a value that is no number of ours stands in a field
        """
        layout, columns = self._layouts[view], self._columns[view]
        try:
            if len(keys) == 1:
                found = [self._client.hmget(entity_key(layout.entity, keys[0]), columns)]
            else:
                pipe = self._client.pipeline(transaction=False)
                for key in keys:
                    pipe.hmget(entity_key(layout.entity, key), columns)
                found = pipe.execute()
        except (redis.RedisError, OSError) as error:
            raise SourceError(
                f"store: cannot read {layout.name!r} at {shown('redis_url', self._url)} ({error});"
                " start it, or see where it is in STATE_DIR/store/url"
            ) from None
        times = [time_from_bytes(row[-1]) for row in found]
        return StoredRows(
            layout.features,
            _values(layout, found),
            np.array([t or 0 for t in times], np.int64),
            np.array([t is not None for t in times], np.bool_),
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _values(layout: ViewLayout, rows: Sequence[Sequence[bytes | None]]) -> Float64:
    """The numbers of some rows, NaN for Feast's null and for nothing at all."""
    width = len(layout.features)
    null = b"\x29" + np.array(np.nan).tobytes()
    parts = [part or null for row in rows for part in row[:width]]
    wrong = [i for i, part in enumerate(parts) if len(part) != 9 or part[0] != _DOUBLE_TAG]
    if wrong:
        feature = layout.features[wrong[0] % width]
        raise StateError(
            f"store: `{layout.name}:{feature}` holds {parts[wrong[0]]!r}, not a Feast double;"
            " another program writes this view: give waxwing a Redis database of its own"
        )
    raw = np.frombuffer(b"".join(parts), np.uint8).reshape(len(rows), width, 9)
    return raw[:, :, 1:].copy().view("<f8").reshape(len(rows), width).astype(np.float64)
