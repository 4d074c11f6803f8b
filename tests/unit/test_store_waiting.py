"""Rows that wait for a store which is behind, on disk: killed in between, none of them is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dataflows.settings import Settings
from dataflows.state.deltas import read_arrays
from dataflows.state.lease import take_lease
from dataflows.store.embedded import EmbeddedRedis
from dataflows.store.layout import layouts
from dataflows.store.reader import StoreReader
from dataflows.store.rows import SHARDS, EntityRows, View, Views
from dataflows.store.waiting import load_waiting, save_waiting, waiting_path
from dataflows.store.writer import StoreWriter
from features.catalog import catalog
from features.emptied import timed_names
from features.errors import StateError
from features.keys import hash_strings

CARD: View = ("payment", "card")
FEATURES = layouts(catalog())[("payment", "card")].features
TIMED = timed_names(catalog(), "payment", "card")

WAIT_S = 120.0
"""Longest wait for what takes a second on a quiet machine."""

NAMES = [f"k{i}" for i in range(200)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis that outlives whoever writes to it."""
    outside = EmbeddedRedis(tmp_path / "outside")
    outside.ensure()
    yield outside
    outside.close()


def opened(server: EmbeddedRedis, folder: Path, flush_ms: int, said: list[str]) -> StoreWriter:
    """A writer on the server."""
    values = {"store": "redis", "redis_url": server.url, "store_flush_ms": flush_ms}
    settings = Settings(state_dir=folder, **values)  # type: ignore[arg-type]
    return StoreWriter(settings, catalog(), said.append)


def rows_of(names: list[str], value: float, time_us: int, width: int = len(FEATURES)) -> EntityRows:
    """Rows whose features all have the value."""
    keys = pl.Series(names, dtype=pl.String)
    n = len(names)
    return EntityRows(
        keys, hash_strings(keys).view(np.int64), np.full((n, width), value),
        np.full(n, time_us), np.zeros((n, 2), np.int64), np.zeros(n, np.bool_),
    )  # fmt: skip


def emptied(names: list[str], value: float, time_us: int) -> EntityRows:
    """Rows of windows that have run empty, which come without names."""
    rows = rows_of(names, value, time_us, len(TIMED))
    none = pl.repeat(None, len(names), dtype=pl.String, eager=True)
    return EntityRows(none, rows.ids, rows.values, rows.time_us, rows.place, rows.urgent)


def put_and_kept(to: StoreWriter, round_: int, views: Views) -> None:
    """Put a round and wait until nothing of it can be lost."""
    ticket = to.put_round(round_, [views])
    for shard in range(SHARDS):
        to.keep(shard, round_, ticket)
    deadline = time.monotonic() + WAIT_S
    while any(to.safe_ticket(shard) < ticket for shard in range(SHARDS)):
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def killed_behind(server: EmbeddedRedis, folder: Path) -> None:
    """A process that is killed with rows of two rounds on disk that the store does not have."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from dataflows.store.rows import WINDOWS\n"
        "from tests.unit import test_store_waiting as t\n"
        "to = t.opened(type('S', (), {'url': sys.argv[1]}), Path(sys.argv[2]), 60_000, [])\n"
        "t.put_and_kept(to, 6, {t.CARD: t.rows_of(t.NAMES, 1.0, 5)})\n"
        "t.put_and_kept(to, 7, {t.CARD: t.rows_of(t.NAMES[:9], 2.0, 6)})\n"
        "t.put_and_kept(to, 8, {(*t.CARD, WINDOWS): t.emptied(t.NAMES[5:7], 0.0, 7)})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, server.url, str(folder)], check=False,
        timeout=4 * WAIT_S, cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def stored(server: EmbeddedRedis, names: list[str]) -> dict[str, tuple[float, float, int]]:
    """A feature that changes by itself, one that does not, and the time, of who is there."""
    reader = StoreReader(server.url, catalog())
    rows = reader.read(("payment", "card"), names)
    reader.close()
    timed = rows.features.index(TIMED[0])
    other = next(i for i, name in enumerate(rows.features) if name not in TIMED)
    return {
        name: (float(rows.values[i, timed]), float(rows.values[i, other]), int(rows.time_us[i]))
        for i, name in enumerate(names)
        if rows.found[i]
    }


def test_rows_on_disk_are_in_the_store_after_a_kill_and_a_restart(
    server: EmbeddedRedis, tmp_path: Path
) -> None:
    killed_behind(server, tmp_path)
    assert stored(server, NAMES) == {}, "the store has none of them"
    to = opened(server, tmp_path, 10, [])
    for shard in range(SHARDS):
        to.take_up(shard, 8)
    # Of the same time as what waits, but of a later round: it goes over it.
    to.put_round(9, [{CARD: rows_of(["k0"], 3.0, 6)}])
    assert to.flush(WAIT_S)
    assert not any(waiting_path(tmp_path, shard).exists() for shard in range(SHARDS))
    to.close()
    assert stored(server, NAMES) == {
        **dict.fromkeys(NAMES[9:], (1.0, 1.0, 5)),
        **dict.fromkeys(NAMES[1:9], (2.0, 2.0, 6)),
        **dict.fromkeys(NAMES[5:7], (0.0, 2.0, 7)),
        "k0": (3.0, 3.0, 6),
    }


def test_rows_of_a_round_before_the_manifest_are_not_put_again(
    server: EmbeddedRedis, tmp_path: Path
) -> None:
    killed_behind(server, tmp_path)
    to = opened(server, tmp_path, 10, [])
    for shard in range(SHARDS):
        to.take_up(shard, 9)
    assert to.flush(WAIT_S) and to.stats().put == 0
    assert not any(waiting_path(tmp_path, shard).exists() for shard in range(SHARDS))
    to.close()
    assert stored(server, NAMES) == {}


def test_a_damaged_file_is_said_and_the_flow_goes_on(server: EmbeddedRedis, tmp_path: Path) -> None:
    killed_behind(server, tmp_path)
    lost = waiting_path(tmp_path, 1)
    lost.write_bytes(lost.read_bytes()[:-1])
    said: list[str] = []
    to = opened(server, tmp_path, 10, said)
    for shard in range(SHARDS):
        to.take_up(shard, 8)
    assert to.flush(WAIT_S)
    to.close()
    (line,) = said
    assert "waiting-01.rows is damaged" in line and "until the next event of each entity" in line
    assert 100 < len(stored(server, NAMES)) < 200


def test_a_store_that_is_not_behind_has_no_rows_written_to_disk(
    server: EmbeddedRedis, tmp_path: Path
) -> None:
    to = opened(server, tmp_path, 10, [])
    ticket = to.put_round(1, [{CARD: rows_of(NAMES, 1.0, 5)}])
    assert to.flush(WAIT_S)
    for shard in range(SHARDS):
        to.keep(shard, 1, ticket)
        assert to.safe_ticket(shard) >= ticket
    to.close()
    assert to.stats().kept == 0
    assert not any(waiting_path(tmp_path, shard).exists() for shard in range(SHARDS))


def test_a_flow_that_was_taken_over_leaves_the_rows_on_disk_alone(
    server: EmbeddedRedis, tmp_path: Path
) -> None:
    lease = take_lease(tmp_path / "lease")
    to = opened(server, tmp_path, 60_000, [])
    to.fence = lease.check
    put_and_kept(to, 1, {CARD: rows_of(NAMES, 1.0, 5)})
    before = read_arrays(waiting_path(tmp_path, 0))[1]
    lease.give_back()
    take_lease(tmp_path / "lease")
    with pytest.raises(StateError, match="taken over"):
        put_and_kept(to, 2, {CARD: rows_of(NAMES, 2.0, 6)})
    to.close()
    assert read_arrays(waiting_path(tmp_path, 0))[1] == before


def test_features_that_both_catalogues_know_are_taken_over(tmp_path: Path) -> None:
    path = waiting_path(tmp_path, 0)
    path.parent.mkdir()
    rows = rows_of(["a", "b"], 0.0, 5, 3)
    rows.values[:] = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    save_waiting(path, 7, {CARD: rows, ("login", "gone"): rows}, {
        CARD: ("x", "y", "z"), ("login", "gone"): ("x", "y", "z")
    })  # fmt: skip
    round_, found = load_waiting(path, {CARD: ("z", "new", "x")})
    assert (round_, list(found)) == (7, [CARD])
    np.testing.assert_array_equal(found[CARD].values, [[3.0, np.nan, 1.0], [6.0, np.nan, 4.0]])
    assert found[CARD].keys.to_list() == ["a", "b"]
    same: Any = load_waiting(path, {CARD: ("x", "y", "z")})[1][CARD]
    for name in ("ids", "values", "time_us", "place", "urgent"):
        np.testing.assert_array_equal(getattr(same, name), getattr(rows, name))
