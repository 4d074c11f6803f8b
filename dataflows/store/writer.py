"""Writes the newest features of each entity to Redis in Feast's layout; never holds the flow up.

`put` only notes rows; one thread of its own coalesces them to the newest row of each entity and
view and sends that every `store_flush_ms`, entities of flagged events first. The same thread waits
for a Redis that is away; meanwhile rows go on being coalesced, at most `store_rows_max` of them.

The newest row is that of the latest event time, among equals the one put last. It is so whatever
the moments of the flushes: a row older than what the store has is not written.
"""

# mypy: disable-error-code="no-untyped-call"
# The kernel takes arrays of types numba finds out.

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import redis

from dataflows.settings import Settings
from dataflows.store.embedded import EmbeddedRedis
from dataflows.store.layout import ViewLayout, entity_key, layouts, time_from_bytes
from dataflows.store.wire import Wire, masked
from features.batch import Float64, Int64
from features.catalog import Catalog
from features.errors import ConfigError, ShapeError, SourceError, StateError
from features.jit import njit
from features.keys import hash_strings
from features.slots import SlotTable

__all__ = ["StoreStats", "StoreWriter"]

Bool = npt.NDArray[np.bool_]
View = tuple[str, str]

CHUNK_ROWS = 250
"""Rows sent before their answers are read; measured: 100 to 1,000 are alike."""

FLUSH_ROWS_MAX = 20_000
"""Rows of one flush; a third of a second of one Redis. The rest is coalesced with what has come
since, so that a flagged entity waits no longer than this behind a backlog. Chosen."""

KNOWN_MAX = 1_000_000
"""Entities of a view whose last written time is remembered (40 bytes each); beyond it all are
forgotten and asked of Redis again. Chosen: 40 MB."""

BACKOFF_S = (0.05, 2.0)
"""First and longest wait before a Redis that is away is tried again. Chosen: back within seconds,
and no storm."""

CLOSE_S_MAX = 5.0
"""Longest wait for rows still to be written when the writer is closed. Chosen: the flow has waited
for its last rows already."""


@dataclass(slots=True)
class StoreStats:
    """What a writer has done.

    Parameters
    ----------
    put : rows that came
    written : rows that went to Redis
    coalesced : rows that a newer one of the same entity took the place of before they were written
    stale : rows not written since the store had a later event time
    dropped : rows given up because more than `store_rows_max` waited
    refused : rows that Redis refuses for good, its key being of another type
    waiting : rows not in Redis yet
    flushes : flushes that went through
    round : newest round of which rows came
    away_s : seconds without Redis, ever
    away : whether Redis is away now
    """

    put: int = 0
    written: int = 0
    coalesced: int = 0
    stale: int = 0
    dropped: int = 0
    refused: int = 0
    waiting: int = 0
    flushes: int = 0
    round: int = 0
    away_s: float = 0.0
    away: bool = False


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one view in the order they came; `since` is the first put an entity waits for."""

    keys: pl.Series
    ids: Int64
    values: Float64
    time_us: Int64
    since: Int64
    urgent: Bool

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, at: npt.NDArray[Any]) -> _Rows:
        """Some of the rows."""
        if at.dtype == np.bool_:
            at = np.flatnonzero(at)
        return _Rows(
            self.keys.gather(at), self.ids[at], self.values[at], self.time_us[at], self.since[at],
            self.urgent[at],
        )  # fmt: skip


@njit
def _newest(slots, time_us, since, urgent, winner, first, flagged):  # type: ignore[no-untyped-def]
    """Per slot: the newest row (the later of equals), the first put waited for, any flag."""
    for i in range(len(slots)):
        slot = slots[i]
        if winner[slot] < 0 or time_us[i] >= time_us[winner[slot]]:
            winner[slot] = i
        first[slot] = min(first[slot], since[i])
        flagged[slot] |= urgent[i]


def _coalesce(parts: list[_Rows]) -> _Rows:
    """The newest row of each entity, the parts being in the order they came."""
    whole = parts[0]
    if len(parts) > 1:
        whole = _Rows(
            pl.concat([p.keys for p in parts]),
            np.concatenate([p.ids for p in parts]),
            np.concatenate([p.values for p in parts]),
            np.concatenate([p.time_us for p in parts]),
            np.concatenate([p.since for p in parts]),
            np.concatenate([p.urgent for p in parts]),
        )
    table = SlotTable()
    table.reserve(len(whole))
    slots, _ = table.intern(np.column_stack((whole.ids, whole.time_us)))
    if table.used == len(whole):
        return whole
    winner = np.full(table.used, -1, np.int64)
    first = np.full(table.used, np.iinfo(np.int64).max)
    flagged = np.zeros(table.used, np.bool_)
    _newest(slots, whole.time_us, whole.since, whole.urgent, winner, first, flagged)
    return replace(whole.take(winner), since=first, urgent=flagged)


@dataclass(slots=True)
class _Waiting:
    """Rows that came and are not written, by view; the parts of a view in the order they came."""

    parts: dict[View, list[_Rows]] = field(default_factory=dict)
    rows: int = 0

    def add(self, view: View, part: _Rows) -> None:
        """Rows newer than all there are."""
        self.parts.setdefault(view, []).append(part)
        self.rows += len(part)

    def put_back(self, whole: dict[View, _Rows]) -> None:
        """Rows older than all there are."""
        for view, part in whole.items():
            self.parts.setdefault(view, []).insert(0, part)
            self.rows += len(part)

    def coalesced(self) -> dict[View, _Rows]:
        """The newest row of each entity; nothing waits any more."""
        whole = {view: _coalesce(parts) for view, parts in self.parts.items()}
        self.parts, self.rows = {}, 0
        return whole


def _oldest(whole: dict[View, _Rows], keep: int, order: Callable[[_Rows], Float64]) -> Iterator[
    tuple[View, Bool]
]:
    """Which rows of each view are among the `keep` that stand first in `order` (small first)."""
    values = {view: order(rows) for view, rows in whole.items()}
    ranks = np.concatenate(list(values.values()))
    kept = np.zeros(len(ranks), np.bool_)
    kept[np.argsort(ranks, kind="stable")[:keep]] = True
    at = 0
    for view, value in values.items():
        yield view, kept[at : at + len(value)]
        at += len(value)


class StoreWriter:
    """The one ordered writer of a process.

    Parameters
    ----------
    settings : `store`, `redis_url`, `state_dir`, `store_flush_ms`, `store_rows_max`
    catalog : views and their features
    say : takes a sentence for the person who runs it: Redis is away, Redis is back

    Raises
    ------
    ConfigError : no embedded server can be started, or redis_url is no address
    SourceError : the Redis of redis_url cannot be reached
    """

    def __init__(
        self, settings: Settings, catalog: Catalog, say: Callable[[str], None] | None = None
    ) -> None:
        self._layouts = layouts(catalog)
        self._flush_s = settings.store_flush_ms / 1000.0
        self._rows_max = settings.store_rows_max
        self._say = say or _say
        self._embedded = EmbeddedRedis(settings.state_dir) if settings.store == "embedded" else None
        self._url = settings.redis_url if self._embedded is None else self._embedded.url
        self._changed = threading.Condition()
        self._waiting = _Waiting()
        self._stats = StoreStats()
        self._ticket = self._flushed = self._sending = 0
        self._hurry = self._stop = False
        self._fault: BaseException | None = None
        self._known: dict[View, SlotTable] = {}
        self._wire: Wire | None = None
        self._name = f"waxwing-{uuid.uuid4().hex}"
        self._client_id: int | None = None
        self._away_since: float | None = None
        _warm_up(self._layouts)
        try:
            self._connect()
        except (redis.RedisError, OSError) as error:
            if self._embedded is not None:
                self._embedded.close()
            raise SourceError(
                f"store: no Redis at {masked(self._url)} ({_reason(error)}); start it, set"
                ' redis_url (or WAXWING_REDIS_URL), or set store = "embedded" or "off"'
            ) from None
        self._thread = threading.Thread(target=self._run, name="waxwing-store", daemon=True)
        self._thread.start()

    # -- called by the flow -----------------------------------------------------------------------
    def put(
        self,
        view: View,
        keys: pl.Series,
        rows: Float64,
        time_us: Int64,
        round: int,
        urgent: Bool,
    ) -> None:
        """Note rows to be written; returns at once, whatever Redis does. The arrays are kept.

        Parameters
        ----------
        view : (event type, entity)
        keys : String (n,), entities; rows of a null or empty one are left out
        rows : float64 (n, F), NaN where a feature has no value
        time_us : int64 (n,), event times
        round : the round they belong to
        urgent : bool (n,), rows of flagged events

        Raises
        ------
        ShapeError : the columns do not fit each other or the view
        StateError : the writer's thread has died, of a bug
        """
        layout = self._layouts[view]
        n = len(keys)
        if rows.shape != (n, len(layout.features)) or len(time_us) != n or len(urgent) != n:
            raise ShapeError(
                f"store: view {layout.name!r}: expected {n} rows of {len(layout.features)}"
                f" features, got {rows.shape}, {len(time_us)} times and {len(urgent)} flags"
            )
        part = _Rows(
            keys, hash_strings(keys).view(np.int64), rows, time_us, np.zeros(n, np.int64),
            np.asarray(urgent, np.bool_),
        )  # fmt: skip
        if not part.ids.all():
            part = part.take(part.ids != 0)
        with self._changed:
            self._raise_fault()
            self._ticket += 1
            self._stats.round = max(self._stats.round, round)
            self._stats.put += len(part)
            if len(part):
                part.since[:] = self._ticket
                self._waiting.add(view, part)
                self._bound()

    def ticket(self) -> int:
        """A number for all that was put so far; see `flushed_ticket`."""
        with self._changed:
            return self._ticket

    @property
    def flushed_ticket(self) -> int:
        """All that was put up to this ticket is in Redis, or something newer of the same entity."""
        with self._changed:
            self._raise_fault()
            return self._flushed

    def flush(self, timeout_s: float) -> bool:
        """Write now; whether all that was put before is in Redis within the time."""
        with self._changed:
            wanted = self._ticket
            self._hurry = True
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: self._flushed >= wanted or self._fault is not None, timeout_s
            )
            self._raise_fault()
            return done

    def stats(self) -> StoreStats:
        """A copy of what was done so far."""
        with self._changed:
            away = 0.0 if self._away_since is None else time.monotonic() - self._away_since
            return replace(
                self._stats,
                waiting=self._waiting.rows + self._sending,
                away=self._away_since is not None,
                away_s=self._stats.away_s + away,
            )

    def close(self) -> None:
        """Write what waits, as far as Redis takes it at once; end the thread and our own server."""
        if self._fault is None and not self._stop and self._away_since is None:
            self.flush(CLOSE_S_MAX)
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self._thread.join()
        self._disconnect()
        if self._embedded is not None:
            self._embedded.close()

    def _raise_fault(self) -> None:
        """Say on the flow's own thread that the writer's has died."""
        if self._fault is not None:
            raise StateError(
                f"store: the writer ended with {type(self._fault).__name__}: {self._fault}; this is"
                ' a bug: report it, and set store = "off" to go on'
            ) from self._fault

    def _bound(self) -> None:
        """Keep at most `store_rows_max` rows: coalesce, then give up the entities longest silent.

        Flagged ones are given up last. A quarter is made free, so that this is rare.
        """
        if self._waiting.rows <= self._rows_max:
            return
        came = self._waiting.rows
        whole = self._waiting.coalesced()
        left = sum(len(rows) for rows in whole.values())
        self._stats.coalesced += came - left
        keep = self._rows_max * 3 // 4
        if left > keep:
            for view, kept in _oldest(whole, keep, lambda r: _rank(r, -r.time_us)):
                whole[view] = whole[view].take(kept)
            if not self._stats.dropped:
                self._say(
                    f"the online store is behind by more than store_rows_max = {self._rows_max:,}"
                    " entity rows; the longest silent entities are given up until they come again"
                )
            self._stats.dropped += left - keep
        self._waiting.put_back({view: rows for view, rows in whole.items() if len(rows)})

    # -- the writer's own thread ------------------------------------------------------------------
    def _run(self) -> None:
        """Flush in time, for ever; a fault ends it and is raised to the flow."""
        try:
            wait_s, backoff_s = self._flush_s, BACKOFF_S[0]
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._hurry or self._stop, wait_s)
                    self._hurry = False
                    if self._stop:
                        return
                begun = time.monotonic()
                try:
                    more = self._flush_once()
                except (redis.RedisError, OSError, ConfigError) as error:
                    self._went_away(error)
                    wait_s, backoff_s = backoff_s, min(2 * backoff_s, BACKOFF_S[1])
                    continue
                backoff_s = BACKOFF_S[0]
                wait_s = 0.0 if more else max(0.0, begun + self._flush_s - time.monotonic())
        except BaseException as error:
            with self._changed:
                self._fault = error
                self._changed.notify_all()

    def _flush_once(self) -> bool:
        """Write the newest row of each entity that waits; True where some were left for later."""
        if self._wire is None:
            self._connect()
        with self._changed:
            taken, self._waiting = self._waiting, _Waiting()
            ticket = self._ticket
        came = taken.rows
        whole = taken.coalesced()
        left = sum(len(rows) for rows in whole.values())
        batch, later = _slice(whole)
        with self._changed:
            self._stats.coalesced += came - left
            self._waiting.put_back(later)
            self._sending = sum(len(rows) for rows in batch.values())
        try:
            counts = self._send(batch)
        except BaseException:
            with self._changed:
                self._sending = 0
                self._waiting.put_back(batch)
                self._bound()
            raise
        with self._changed:
            if later:
                ticket = min(int(rows.since.min()) for rows in later.values()) - 1
            self._sending = 0
            self._flushed = max(self._flushed, ticket)
            self._stats.written += counts[0]
            self._stats.stale += counts[1]
            self._stats.refused += counts[2]
            self._stats.flushes += 1
            self._changed.notify_all()
        if self._away_since is not None:
            self._came_back()
        return bool(later)

    def _send(self, batch: dict[View, _Rows]) -> tuple[int, int, int]:
        """Write rows, those of flagged events first; returns how many went, were stale, refused."""
        wire = self._wire
        if wire is None:
            raise StateError("store: no connection to send on; this is a bug")
        written = stale = refused = 0
        for urgent in (True, False):
            fresh: dict[View, _Rows] = {}
            for view, whole in batch.items():
                rows = whole.take(whole.urgent == urgent)
                fresh[view] = rows.take(self._fresh(wire, view, rows))
                stale += len(rows) - len(fresh[view])
            on_the_way = 0
            for view, part in _chunks(fresh):
                data = self._layouts[view].encode(part.keys, part.values, part.time_us)
                # Redis works on the chunk before while this one was made.
                refused += _refused(wire.answers(on_the_way))
                wire.send(data)
                on_the_way = len(part)
                written += len(part)
            refused += _refused(wire.answers(on_the_way))
        return written - refused, stale, refused

    def _fresh(self, wire: Wire, view: View, rows: _Rows) -> Bool:
        """Which rows are not older than what the store has; Redis is asked once an entity."""
        known = self._known.get(view)
        if known is None or known.used > KNOWN_MAX:
            known = self._known[view] = SlotTable()
        known.reserve(len(rows))
        used = known.used
        slots, taken_us = known.intern(np.column_stack((rows.ids, rows.time_us)))
        fresh = taken_us == rows.time_us
        unmet = np.flatnonzero(slots >= used)
        layout = self._layouts[view]
        for at in range(0, len(unmet), CHUNK_ROWS):
            some = unmet[at : at + CHUNK_ROWS]
            keys = (entity_key(layout.entity, key) for key in rows.keys.gather(some))
            answers = wire.ask_all([("HGET", key, layout.time_field) for key in keys])
            # A key of another type is refused when it is written, and counted there.
            _refused(answers)
            for row, answer in zip(some, answers, strict=True):
                has_us = None if isinstance(answer, Exception) else time_from_bytes(answer)
                if has_us is not None and has_us > rows.time_us[row]:
                    fresh[row] = False
                    known.newest_us[slots[row]] = has_us
        return np.asarray(fresh, np.bool_)

    def _connect(self) -> None:
        """Open the connection; nothing is known of what the store has."""
        if self._embedded is not None:
            self._embedded.ensure()
        wire = Wire(self._url)
        answer = wire.ask("CLIENT", "ID")
        wire.ask("CLIENT", "SETNAME", self._name)
        if self._client_id is not None:
            # What the old connection still had on its way must not come after what this one sends.
            # The name tells it from a stranger's: a Redis started anew gives numbers out again.
            old = wire.ask("CLIENT", "LIST", "ID", self._client_id)
            if isinstance(old, bytes) and f"name={self._name}".encode() in old.split():
                wire.ask("CLIENT", "KILL", "ID", self._client_id)
        self._client_id = answer if isinstance(answer, int) else None
        self._known = {}
        self._wire = wire

    def _disconnect(self) -> None:
        """Close the connection if there is one."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def _went_away(self, error: BaseException) -> None:
        """Note, and say once, that Redis does not take rows."""
        self._disconnect()
        if self._away_since is None:
            with self._changed:
                self._away_since = time.monotonic()
            self._say(
                f"the online store at {masked(self._url)} is away ({_reason(error)}); the flow goes"
                " on, the newest row of each entity waits for it"
            )

    def _came_back(self) -> None:
        """Note, and say, that Redis takes rows again."""
        with self._changed:
            away_s = time.monotonic() - (self._away_since or time.monotonic())
            self._stats.away_s += away_s
            self._away_since = None
        self._say(f"the online store is back after {away_s:.1f} s")


def _rank(rows: _Rows, then: Int64) -> Float64:
    """Flagged rows first, then by `then`."""
    return np.where(rows.urgent, -np.inf, then.astype(np.float64))


def _slice(whole: dict[View, _Rows]) -> tuple[dict[View, _Rows], dict[View, _Rows]]:
    """What one flush takes (flagged first, then who has waited longest) and what stays."""
    if sum(len(rows) for rows in whole.values()) <= FLUSH_ROWS_MAX:
        return whole, {}
    batch, later = {}, {}
    for view, kept in _oldest(whole, FLUSH_ROWS_MAX, lambda r: _rank(r, r.since)):
        batch[view] = whole[view].take(kept)
        if not kept.all():
            later[view] = whole[view].take(~kept)
    return batch, later


def _chunks(whole: dict[View, _Rows]) -> Iterator[tuple[View, _Rows]]:
    """Rows in chunks of CHUNK_ROWS."""
    for view, rows in whole.items():
        for at in range(0, len(rows), CHUNK_ROWS):
            yield view, rows.take(np.arange(at, min(at + CHUNK_ROWS, len(rows))))


def _refused(answers: list[Any]) -> int:
    """How many rows Redis refuses for good; any other error is raised: it may pass."""
    refused = 0
    for answer in answers:
        if isinstance(answer, redis.ResponseError):
            if not str(answer).startswith("WRONGTYPE"):
                raise answer
            refused += 1
    return refused


def _warm_up(layouts: dict[View, ViewLayout]) -> None:
    """Compile the kernels, so that the first rounds do not wait for it."""
    layout = next(iter(layouts.values()))
    values = np.zeros((2, len(layout.features)))
    zero = np.zeros(2, np.int64)
    rows = _Rows(pl.Series(["a", "a"]), zero, values, zero, zero, zero.astype(np.bool_))
    one = _coalesce([rows])
    layout.encode(one.keys, one.values, one.time_us)


def _reason(error: BaseException) -> str:
    """What the error says, on one line and without its own full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _say(text: str) -> None:
    """A sentence on stderr."""
    print(f"waxwing: {text}", file=sys.stderr, flush=True)
