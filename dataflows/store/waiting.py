"""Rows that the store does not have yet, kept on disk: so that the manifest need not wait for it.

A store that is behind, or away, has none of the newest rows of some entities. Written down here, a
shard a file, they are as durable as the state, and the manifest may name their round; a restart
puts them to the writer again before it plays the rounds after the manifest. A file holds what
waited of the rounds up to its own; what a later round has put in the place of a row is not in it,
since the restart computes that anew. Between `writer`, which knows what waits, and `commit`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from dataflows.state.deltas import Arrays, read_arrays, write_arrays
from dataflows.store.rows import EntityRows, View, Views
from features.batch import Float64

__all__ = ["load_waiting", "save_waiting", "waiting_path"]

_COLUMNS = ("ids", "values", "time_us", "place", "urgent")
"""Columns of `EntityRows` that are arrays; the names are text."""


def waiting_path(state_dir: Path, shard: int) -> Path:
    """Where the rows of a shard of the store lie while they wait."""
    return state_dir / "store" / f"waiting-{shard:02d}.rows"


def save_waiting(
    path: Path, round_: int, rows: Views, features: Mapping[View, tuple[str, ...]]
) -> int:
    """Write down what waits of a shard, in place of what was there, atomically and durably.

    Parameters
    ----------
    round_ : the last round whose rows are among them
    rows : view -> rows, each entity at most once
    features : view -> names of its features, in order

    Returns
    -------
    bytes written

    Raises
    ------
    StateError : the disk refused it
    """
    arrays: Arrays = {}
    for i, part in enumerate(rows.values()):
        arrays |= {f"{i}.{name}": getattr(part, name) for name in _COLUMNS}
        text = io.BytesIO()
        part.keys.rename("names").to_frame().write_ipc(text)
        arrays[f"{i}.names"] = np.frombuffer(text.getbuffer(), np.uint8)
    views = [[list(view), list(features[view])] for view in rows]
    return write_arrays(path, arrays, {"round": round_, "views": views})


def load_waiting(path: Path, features: Mapping[View, tuple[str, ...]]) -> tuple[int, Views]:
    """The last round and the rows of a file; rows of views that there are no more are left out.

    Where a view has other features by now, those that both know are taken and the rest is NaN, as
    the store itself would have them.

    Parameters
    ----------
    features : view -> names of its features now, in order

    Raises
    ------
    StateError : missing or damaged
    """
    arrays, meta = read_arrays(path)
    rows: Views = {}
    for i, (view, names) in enumerate(meta["views"]):
        now = features.get(tuple(view))
        if now is None:
            continue
        found = {name: arrays[f"{i}.{name}"] for name in _COLUMNS}
        found["values"] = _as_now(found["values"], tuple(names), now)
        keys = pl.read_ipc(arrays[f"{i}.names"].tobytes(), use_pyarrow=False)["names"]
        rows[tuple(view)] = EntityRows(keys=keys, **found)
    return int(meta["round"]), rows


def _as_now(values: Float64, was: tuple[str, ...], now: tuple[str, ...]) -> Float64:
    """Columns of the features `was` as columns of `now`."""
    if was == now:
        return values
    out = np.full((len(values), len(now)), np.nan)
    for j, name in enumerate(now):
        if name in was:
            out[:, j] = values[:, was.index(name)]
    return out
