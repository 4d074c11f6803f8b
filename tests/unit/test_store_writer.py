"""The writer of the store against a real Redis: what is newest, what goes first, outages."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import redis

from dataflows.settings import Settings
from dataflows.state.lease import take_lease
from dataflows.store import store_url, wire, writer
from dataflows.store.embedded import STOP_S_MAX, EmbeddedRedis
from dataflows.store.layout import entity_key, layouts
from dataflows.store.reader import StoreReader
from dataflows.store.shadow import MARKS_KEY, Shadow
from dataflows.store.writer import StoreWriter
from features.catalog import catalog
from features.errors import ConfigError, ShapeError, SourceError, StateError

CARD = ("payment", "card")
USER = ("login", "user")
WIDTH = {view: len(layout.features) for view, layout in layouts(catalog()).items()}

WAIT_S = 120.0
"""Longest wait for what takes milliseconds on a quiet machine."""

NAMES = ("u0", "u1", *(f"c{i}" for i in range(8)))

Open = Callable[..., StoreWriter]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis outside, in the sense of `store = "redis"`: the writer does not start or stop it."""
    outside = EmbeddedRedis(tmp_path / "outside")
    outside.ensure()
    yield outside
    outside.close()


@pytest.fixture
def said() -> list[str]:
    """What writers say aloud."""
    return []


@pytest.fixture
def open_writer(server: EmbeddedRedis, tmp_path: Path, said: list[str]) -> Iterator[Open]:
    """Opens writers on the server and closes them in the end."""
    opened: list[StoreWriter] = []

    def open_one(**options: Any) -> StoreWriter:
        values = {"store": "redis", "redis_url": server.url, "store_flush_ms": 10, **options}
        opened.append(StoreWriter(Settings(state_dir=tmp_path, **values), catalog(), said.append))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def put(
    to: StoreWriter,
    keys: list[str],
    values: list[float],
    time_us: list[int] | int,
    view: tuple[str, str] = CARD,
    urgent: bool = False,
) -> None:
    """Put rows whose features all have the row's value."""
    n = len(keys)
    rows = np.repeat(np.array(values, np.float64)[:, None], WIDTH[view], axis=1)
    times = np.broadcast_to(np.asarray(time_us, np.int64), n).copy()
    to.put(view, pl.Series(keys, dtype=pl.String), rows, times, 1, np.full(n, urgent))


def stored(url: str, keys: list[str], view: tuple[str, str] = CARD) -> dict[str, tuple[float, int]]:
    """First feature and time of the entities that are there."""
    reader = StoreReader(url, catalog())
    rows = reader.read(view, keys)
    reader.close()
    return {
        key: (float(rows.values[i, 0]), int(rows.time_us[i]))
        for i, key in enumerate(keys)
        if rows.found[i]
    }


def process_id(url: str) -> int:
    """Process of the server."""
    client = redis.Redis.from_url(url)
    found: dict[str, Any] = client.info("server")  # type: ignore[assignment]
    client.close()
    return int(found["process_id"])


def gone(process: int) -> None:
    """Wait for a killed process to be gone (its parent is the guard, which collects it)."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
    raise AssertionError(f"process {process} is still there")


def test_values_come_back_as_they_were_put(open_writer: Open, server: EmbeddedRedis) -> None:
    to = open_writer()
    rows = np.arange(2.0 * WIDTH[CARD]).reshape(2, -1)
    rows[1, 3] = np.nan
    to.put(CARD, pl.Series(["a", "b"]), rows, np.array([5, 6]), 1, np.zeros(2, np.bool_))
    assert to.flush(WAIT_S)
    reader = StoreReader(server.url, catalog())
    found = reader.read(CARD, ["b", "nobody", "a"])
    reader.close()
    np.testing.assert_array_equal(found.values[[2, 0]], rows)
    assert found.features == catalog_names()
    assert found.time_us.tolist() == [6, 0, 5]
    assert found.found.tolist() == [True, False, True]
    assert np.isnan(found.values[1]).all()


def catalog_names() -> tuple[str, ...]:
    """Features of a card, in the catalogue's order."""
    return tuple(f.name for f in catalog().views()[CARD])


def test_the_newest_row_of_an_entity_is_there_however_flushes_fall(
    open_writer: Open, server: EmbeddedRedis, rng: np.random.Generator
) -> None:
    to = open_writer(store_flush_ms=60_000)
    newest: dict[str, tuple[float, int]] = {}
    value = 0.0
    for _ in range(60):
        n = int(rng.integers(1, 40))
        keys = [f"card_{i}" for i in rng.integers(0, 50, n)]
        times = rng.integers(0, 300, n).tolist()
        values = [value := value + 1.0 for _ in range(n)]
        put(to, keys, values, times)
        for key, one, time_us in zip(keys, values, times, strict=True):
            if key not in newest or time_us >= newest[key][1]:
                newest[key] = (one, time_us)
        if rng.random() < 0.3:
            assert to.flush(WAIT_S)
    assert to.flush(WAIT_S)
    assert stored(server.url, [f"card_{i}" for i in range(50)]) == newest
    stats = to.stats()
    assert stats.put == stats.written + stats.coalesced + stats.stale
    assert stats.stale > 0 and stats.coalesced > 0 and stats.waiting == 0


def test_an_older_row_does_not_go_over_a_newer_one_after_a_restart(
    open_writer: Open, server: EmbeddedRedis
) -> None:
    first = open_writer()
    put(first, ["a", "b"], [1.0, 1.0], [10, 10])
    assert first.flush(WAIT_S)
    first.close()
    second = open_writer()
    put(second, ["a", "b", "c"], [2.0, 2.0, 2.0], [9, 10, 9])
    assert second.flush(WAIT_S)
    assert stored(server.url, ["a", "b", "c"]) == {"a": (1.0, 10), "b": (2.0, 10), "c": (2.0, 9)}
    assert second.stats().stale == 1


def test_views_of_one_entity_do_not_touch_each_other(
    open_writer: Open, server: EmbeddedRedis
) -> None:
    to = open_writer()
    put(to, ["u"], [1.0], 10, view=("payment", "user"))
    put(to, ["u"], [2.0], 5, view=USER)
    assert to.flush(WAIT_S)
    assert stored(server.url, ["u"], ("payment", "user")) == {"u": (1.0, 10)}
    assert stored(server.url, ["u"], USER) == {"u": (2.0, 5)}


def test_flagged_entities_are_written_first(
    open_writer: Open, server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FLUSH_ROWS_MAX", 4)
    to = open_writer(store_flush_ms=60_000)
    put(to, [f"c{i}" for i in range(8)], [0.0] * 8, 1)
    put(to, ["u0", "u1"], [0.0] * 2, 1, view=USER, urgent=True)
    # Flagged once, an entity stays so until it is written, also by a newer row that is not.
    put(to, ["c7"], [1.0], 2, urgent=True)
    put(to, ["c7"], [2.0], 3)
    client = redis.Redis.from_url(server.url)
    with client.monitor() as monitor:
        assert to.flush(WAIT_S)
        order = []
        for command in monitor.listen():
            words = command["command"].split()
            if words[0] == "HSET" and MARKS_KEY.decode() not in words[1]:
                order.append(next(k for k in NAMES if k in words[1]))
            if len(order) == 10:
                break
    client.close()
    assert set(order[:3]) == {"c7", "u0", "u1"}
    assert order[3:] == [f"c{i}" for i in range(7)], "those who wait longest come next"
    assert stored(server.url, ["c7"]) == {"c7": (2.0, 3)}


def test_a_writer_with_much_to_do_puts_the_next_flush_off(open_writer: Open) -> None:
    to = open_writer(store_rows_s_max=1000, store_flush_ms=100)
    assert to._pause_s(sent=100, took_s=0.02) == pytest.approx(0.08)
    assert to.stats().stretched == 0
    assert to._pause_s(sent=700, took_s=0.2) == pytest.approx(0.5), "rows a second"
    assert to._pause_s(sent=0, took_s=0.3) == pytest.approx(0.3), "half of the time at most"
    assert (to.stats().stretched, to.stats().interval_s) == (2, 0.6)


def test_a_flush_that_is_waited_for_is_not_put_off(
    open_writer: Open, server: EmbeddedRedis
) -> None:
    to = open_writer(store_rows_s_max=100, store_flush_ms=60_000)
    names = [f"c{i}" for i in range(14_000)]
    put(to, names, [1.0] * len(names), 1)
    assert to.flush(WAIT_S), "14,000 rows at 100 a second take longer"
    assert len(stored(server.url, names)) == to.stats().written == 14_000


@pytest.mark.skipif(sys.platform != "linux", reason="niceness of a thread is known to Linux alone")
def test_the_writer_and_its_redis_give_way_to_the_flow(tmp_path: Path) -> None:
    to = StoreWriter(Settings(state_dir=tmp_path), catalog())
    assert to.flush(WAIT_S)
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert to._thread.native_id is not None
    threads = os.getpriority(os.PRIO_PROCESS, to._thread.native_id)
    servers = os.getpriority(os.PRIO_PROCESS, process_id(store_url(Settings(state_dir=tmp_path))))
    to.close()
    assert threads == min(19, own + writer.NICENESS)
    assert servers == min(19, own + 10)


def test_what_piles_up_between_flushes_is_coalesced_before_the_bound(open_writer: Open) -> None:
    to = open_writer(store_rows_max=1000, store_flush_ms=60_000)
    deadline = time.monotonic() + WAIT_S
    for part in range(6):
        put(to, [f"k{i}" for i in range(100)], [float(part)] * 100, part)
    while to.stats().coalesced < 500 and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    stats = to.stats()
    assert (stats.coalesced, stats.waiting, stats.flushes) == (500, 100, 0)


def test_a_redis_that_died_holds_nothing_up_and_gets_the_newest_rows_afterwards(
    open_writer: Open, server: EmbeddedRedis, said: list[str]
) -> None:
    to = open_writer()
    put(to, ["a", "b"], [1.0, 1.0], 1)
    assert to.flush(WAIT_S)
    before = to.flushed_ticket
    died = process_id(server.url)
    os.kill(died, signal.SIGKILL)
    gone(died)
    begun = time.monotonic()
    for i in range(200):
        put(to, ["a", "c"], [float(i), float(i)], i)
    assert time.monotonic() - begun < WAIT_S, "put waited for Redis"
    assert not to.flush(0.05)
    assert to.flushed_ticket == before < to.ticket()
    assert to.stats().away
    server.close()
    server.ensure()
    assert to.flush(WAIT_S)
    assert to.flushed_ticket == to.ticket()
    assert stored(server.url, ["a", "b", "c"]) == {
        "a": (199.0, 199), "b": (1.0, 1), "c": (199.0, 199)
    }  # fmt: skip
    assert [("away" in line, "back" in line) for line in said] == [(True, False), (False, True)]
    assert not to.stats().away and to.stats().away_s > 0


def test_a_redis_that_hangs_holds_nothing_up(
    open_writer: Open, server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "ANSWER_S_MAX", 0.2)
    to = open_writer()
    put(to, ["a"], [0.0], 0)
    assert to.flush(WAIT_S)
    hung = process_id(server.url)
    os.kill(hung, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        for i in range(100):
            put(to, ["a"], [float(i)], i)
        assert time.monotonic() - begun < 100 * wire.ANSWER_S_MAX, "put waited for Redis"
        assert not to.flush(0.5)
    finally:
        os.kill(hung, signal.SIGCONT)
    assert to.flush(WAIT_S)
    assert stored(server.url, ["a"]) == {"a": (99.0, 99)}


def restored(to: StoreWriter, count: int) -> None:
    """Wait until so many lost rows have been written again."""
    deadline = time.monotonic() + WAIT_S
    while to.stats().restored < count:
        assert time.monotonic() < deadline, to.stats()
        threading.Event().wait(0.01)


def told(said: list[str], count: int) -> None:
    """Wait until so many sentences have been said."""
    deadline = time.monotonic() + WAIT_S
    while len(said) < count:
        assert time.monotonic() < deadline, said
        threading.Event().wait(0.01)


def emptied(server: EmbeddedRedis) -> None:
    """Empty Redis behind the writer's back."""
    client = redis.Redis.from_url(server.url)
    client.flushall()
    client.close()


def test_an_emptied_redis_gets_the_rows_it_had_again(
    open_writer: Open, server: EmbeddedRedis, said: list[str]
) -> None:
    to = open_writer()
    names = [f"k{i}" for i in range(5000)]
    put(to, names, [float(i) for i in range(5000)], 1)
    put(to, ["u"], [7.0], 3, view=USER)
    assert to.flush(WAIT_S)
    before = contents(server)
    assert len(before) > 5000
    emptied(server)
    put(to, ["k1", "new"], [2.0, 3.0], 2)
    assert to.flush(WAIT_S)
    restored(to, 5001)
    told(said, 2)  # a row that came meanwhile may be written twice
    after = contents(server)
    assert stored(server.url, ["k0", "k1", "new"]) == {
        "k0": (0.0, 1), "k1": (2.0, 2), "new": (3.0, 2)
    }  # fmt: skip
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed == {entity_key("card", "k1"), entity_key("card", "new")}, "all else bit for bit"
    assert ["has lost rows" in line for line in said] == [True, False]
    assert "its 5,0" in said[1], "the mark was gone once, and is there again"


def test_what_redis_lost_while_nobody_ran_is_written_again_at_the_start(
    open_writer: Open, server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_writer()
    put(first, ["a", "b"], [1.0, 2.0], 5)
    assert first.flush(WAIT_S)
    first.close()
    emptied(server)
    kept: list[object] = []
    monkeypatch.setattr(Shadow, "put", lambda *given: kept.append(given))
    second = open_writer()
    restored(second, 2)
    assert not kept, "what comes from there is not put there again"
    assert stored(server.url, ["a", "b"]) == {"a": (1.0, 5), "b": (2.0, 5)}


def test_a_redis_with_an_older_copy_gets_what_is_newer(
    open_writer: Open, server: EmbeddedRedis
) -> None:
    to = open_writer()
    put(to, ["a", "b"], [1.0, 1.0], 1)
    assert to.flush(WAIT_S)
    older = contents(server, marks=True)
    put(to, ["a", "c"], [2.0, 2.0], 2)
    assert to.flush(WAIT_S)
    to.close()
    emptied(server)
    client = redis.Redis.from_url(server.url)
    for key, fields in older.items():
        client.hset(key, mapping=fields)
    client.close()
    again = open_writer()
    restored(again, 3)
    assert stored(server.url, ["a", "b", "c"]) == {"a": (2.0, 2), "b": (1.0, 1), "c": (2.0, 2)}


def test_a_restore_that_was_cut_short_goes_on_at_the_next_start(
    open_writer: Open, server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = open_writer()
    names = [f"k{i}" for i in range(3000)]
    put(to, names, [1.0] * 3000, 1)
    assert to.flush(WAIT_S)
    emptied(server)
    monkeypatch.setattr(writer, "FLUSH_ROWS_MAX", 1000)
    monkeypatch.setattr(StoreWriter, "_pause_s", lambda *_: 60.0)
    put(to, ["k0"], [2.0], 2)
    assert to.flush(WAIT_S)
    to.close()
    assert len(contents(server)) < 3000
    monkeypatch.undo()
    open_writer()
    deadline = time.monotonic() + WAIT_S
    while len(contents(server)) < 3000 and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    found = stored(server.url, names)
    assert found == dict.fromkeys(names, (1.0, 1)) | {"k0": (2.0, 2)}


def contents(server: EmbeddedRedis, marks: bool = False) -> dict[bytes, dict[bytes, bytes]]:
    """All hashes of the server; the writers' marks only if asked for."""
    client = redis.Redis.from_url(server.url)
    keys = [key for key in client.scan_iter(count=10_000) if marks or key != MARKS_KEY]
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.hgetall(key)
    found = dict(zip(keys, pipe.execute(), strict=True))
    client.close()
    return found


def test_rows_beyond_the_bound_are_given_up_oldest_first_and_counted(
    open_writer: Open, server: EmbeddedRedis, said: list[str]
) -> None:
    to = open_writer(store_rows_max=1000, store_flush_ms=60_000)
    put(to, ["flagged"], [1.0], 0, urgent=True)
    for part in range(30):
        ids = range(part * 100, part * 100 + 100)
        put(to, [f"k{i}" for i in ids], [float(i) for i in ids], [i + 1 for i in ids])
        put(to, ["k0"], [7.0], 10_000 + part)
        # As many again may be in the hands of the thread, which coalesces or sends them.
        assert to.stats().waiting <= 2000
    assert to.flush(WAIT_S)
    stats = to.stats()
    found = stored(server.url, ["flagged", *(f"k{i}" for i in range(3000))])
    assert "flagged" in found and found["k0"] == (7.0, 10_029)
    kept = [int(key[1:]) for key in found if key[0] == "k" and key != "k0"]
    assert kept == list(range(min(kept), 3000)), "newer ones were given up before older ones"
    assert stats.dropped == 3001 - len(found) and 700 <= len(found) <= 1000
    assert stats.put == stats.written + stats.coalesced + stats.dropped
    assert len(said) == 1 and "store_rows_max = 1,000" in said[0]


def test_a_key_of_another_type_is_refused_and_the_rest_is_written(
    open_writer: Open, server: EmbeddedRedis
) -> None:
    client = redis.Redis.from_url(server.url)
    client.set(entity_key("card", "b"), "a string")
    client.close()
    to = open_writer()
    put(to, ["a", "b", "c"], [1.0, 2.0, 3.0], 1)
    assert to.flush(WAIT_S)
    assert stored(server.url, ["a", "c"]) == {"a": (1.0, 1), "c": (3.0, 1)}
    assert (to.stats().written, to.stats().refused) == (2, 1)


def test_a_redis_that_takes_no_writes_for_now_counts_as_away(
    open_writer: Open, server: EmbeddedRedis, said: list[str]
) -> None:
    client = redis.Redis.from_url(server.url)
    client.config_set("min-replicas-to-write", 1)
    to = open_writer()
    put(to, ["a"], [1.0], 1)
    assert not to.flush(0.2)
    assert len(said) == 1 and "replicas" in said[0]
    client.config_set("min-replicas-to-write", 0)
    client.close()
    assert to.flush(WAIT_S)
    assert stored(server.url, ["a"]) == {"a": (1.0, 1)}


def test_absent_entities_and_empty_puts_are_left_out(
    open_writer: Open, server: EmbeddedRedis
) -> None:
    to = open_writer()
    rows = np.zeros((3, WIDTH[CARD]))
    to.put(CARD, pl.Series([None, "", "a"]), rows, np.ones(3, np.int64), 4, np.zeros(3, np.bool_))
    put(to, [], [], [])
    ticket = to.ticket()
    assert ticket == 2
    assert to.flush(WAIT_S) and to.flushed_ticket == ticket
    assert (to.stats().put, to.stats().written, to.stats().round) == (1, 1, 4)
    client = redis.Redis.from_url(server.url)
    assert client.dbsize() == 2, "one entity and the mark"
    client.close()


def test_rows_of_another_width_are_refused_at_once(open_writer: Open) -> None:
    to = open_writer()
    narrow, zero = np.zeros((1, 1)), np.zeros(1, np.int64)
    with pytest.raises(ShapeError, match="payment_card_v1"):
        to.put(CARD, pl.Series(["a"]), narrow, zero, 1, zero.astype(np.bool_))


def test_a_redis_that_is_not_there_is_said_in_one_sentence_without_its_password(
    tmp_path: Path,
) -> None:
    url = f"unix://:hunter2@{tmp_path}/nobody.sock"
    with pytest.raises(SourceError) as caught:
        StoreWriter(Settings(state_dir=tmp_path, store="redis", redis_url=url), catalog())
    text = str(caught.value)
    assert "hunter2" not in text and "\n" not in text
    assert "no Redis at unix://:********@" in text and "redis_url" in text
    with pytest.raises(ConfigError, match="no address of a Redis"):
        StoreWriter(Settings(state_dir=tmp_path, store="redis", redis_url="here"), catalog())
    url = "redis://me:hun/ter2@cache:6379/0"
    with pytest.raises(ConfigError, match=r"'redis://me:\*+@cache:6379/0' .* / %2F") as named:
        StoreWriter(Settings(state_dir=tmp_path, store="redis", redis_url=url), catalog())
    assert "hun" not in str(named.value)


def test_a_flow_that_was_taken_over_sends_no_more_rows(
    open_writer: Open, server: EmbeddedRedis, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    lease = take_lease(folder)
    to = open_writer(store_flush_ms=60_000)
    to.fence = lease.check
    put(to, ["a"], [1.0], 1)
    assert to.flush(30)
    lease.give_back()
    take_lease(folder)
    put(to, ["a"], [2.0], 2)
    with pytest.raises(StateError, match=r"taken over .*lease 2, ours was 1"):
        to.flush(30)
    assert stored(server.url, ["a"]) == {"a": (1.0, 1)}


def test_a_flow_that_was_taken_over_does_not_fill_an_emptied_redis(
    open_writer: Open, server: EmbeddedRedis, tmp_path: Path
) -> None:
    lease = take_lease(tmp_path / "state")
    to = open_writer(store_flush_ms=60_000)
    to.fence = lease.check
    put(to, ["a"], [1.0], 1)
    assert to.flush(30)
    emptied(server)
    lease.give_back()
    take_lease(tmp_path / "state")
    to.flush(30)
    deadline = time.monotonic() + WAIT_S
    with pytest.raises(StateError, match="taken over"):
        while time.monotonic() < deadline:
            assert to.flushed_ticket >= 0  # raises what has ended the writer's thread
            threading.Event().wait(0.01)
    assert contents(server, marks=True) == {}


def test_a_user_of_the_acl_needs_two_commands_and_its_password(
    open_writer: Open, server: EmbeddedRedis
) -> None:
    client = redis.Redis.from_url(server.url)
    client.execute_command("ACL", "SETUSER", "writer", "on", ">p,w", "~*", "+hset", "+hget")
    client.close()
    url = server.url.replace("unix://", "unix://writer:p%2Cw@")
    to = open_writer(redis_url=url)
    put(to, ["a"], [1.0], 1)
    assert to.flush(WAIT_S)
    assert stored(server.url, ["a"]) == {"a": (1.0, 1)}
    with pytest.raises(SourceError, match=r"writer:\*+@.*(WRONGPASS|invalid username)"):
        open_writer(redis_url=url.replace("p%2Cw", "other"))


def test_the_embedded_store_keeps_its_data_and_comes_back_by_itself(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, store_flush_ms=10)
    said: list[str] = []
    first = StoreWriter(settings, catalog(), said.append)
    url = store_url(settings)
    assert (tmp_path / "store" / "url").read_text().strip() == url
    put(first, ["a"], [1.0], 1)
    assert first.flush(WAIT_S)
    process = process_id(url)
    os.kill(process, signal.SIGKILL)
    gone(process)
    put(first, ["b"], [2.0], 2)
    assert first.flush(WAIT_S), "nobody else would start it again"
    assert stored(url, ["a", "b"]) == {"a": (1.0, 1), "b": (2.0, 2)}
    process = process_id(url)
    first.close()
    gone(process)
    second = StoreWriter(settings, catalog(), said.append)
    assert stored(url, ["a", "b"]) == {"a": (1.0, 1), "b": (2.0, 2)}
    second.close()


def test_two_processes_on_one_state_dir_share_the_embedded_store(tmp_path: Path) -> None:
    owner, guest = EmbeddedRedis(tmp_path), EmbeddedRedis(tmp_path)
    owner.ensure()
    guest.ensure()
    process = process_id(owner.url)
    assert guest.url == owner.url
    guest.close()
    assert process_id(owner.url) == process, "a guest does not stop what it did not start"
    owner.close()
    gone(process)
    guest.ensure()
    assert process_id(guest.url) != process
    guest.close()


def test_the_embedded_store_stops_at_once_where_signals_are_blocked(tmp_path: Path) -> None:
    wanted = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    try:
        server = EmbeddedRedis(tmp_path)
        server.ensure()
        process = process_id(server.url)
        begun = time.monotonic()
        server.close()
        gone(process)
        assert time.monotonic() - begun < STOP_S_MAX, "it was stopped by the last resort"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_long_state_dir_gets_a_socket_in_a_folder_of_its_user(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    server = EmbeddedRedis(deep)
    server.ensure()
    client = redis.Redis.from_url(server.url)
    assert client.ping()
    client.close()
    server.close()
    assert (deep / "store" / "appendonly.aof").exists()


@pytest.mark.parametrize("name", ["lock", "url"])
def test_an_embedded_store_that_cannot_write_beside_its_data_says_why(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "store" / name).mkdir(parents=True)
    server = EmbeddedRedis(tmp_path)
    with pytest.raises(ConfigError, match="could not be written: Is a directory; free space"):
        server.ensure()
    server.close()


def test_an_embedded_store_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "appendonly.aof").write_bytes(b"rubbish, not a log\r\n")
    with pytest.raises(ConfigError, match=r"ended at once.*(format|Bad file).*move that folder"):
        EmbeddedRedis(tmp_path).ensure()
