"""Writes the newest features of each entity to Redis in Feast's layout; never holds the flow up.

`put_round` only notes rows; one thread of its own coalesces them to the newest row of each entity
and view and sends that every `store_flush_ms`, entities of flagged events first. It takes no more
than its share of the machine: where there is more to write than `store_rows_s_max` or Redis takes,
flushes come more rarely and more rows are coalesced. The same thread waits for a Redis that is
away; meanwhile rows go on being coalesced, at most `store_rows_max` of them. Where Redis is behind
as the flow makes its state durable, what waits is written to disk with it (`keep`), and put again
by the next start (`take_up`). A Redis that has lost what it acknowledged is known by a mark that is
gone from it, and is filled again beside the rows that come (`dataflows.store.shadow`).

The newest row is that of the latest event time, among equals that of the latest round, then of the
last partition and offset. It is so whatever the moments of the flushes: a row older than what the
store has is not written.

Where windows of an entity have run empty, a row of those features alone is put under a view of its
own (`WINDOWS`); it is written, behind the entity's whole rows, if the store has the entity.
"""

# mypy: disable-error-code="no-untyped-call"
# The kernel takes arrays of types numba finds out.

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import redis

from dataflows.settings import Settings, shown
from dataflows.state.lock import process_id
from dataflows.store.embedded import EmbeddedRedis
from dataflows.store.layout import ViewLayout, layouts, time_from_bytes, windows_layouts
from dataflows.store.names import EntityNames, scan_names
from dataflows.store.rows import SHARDS, WINDOWS, EntityRows, View, Views, warm_up
from dataflows.store.shadow import Mark, Shadow, claim
from dataflows.store.waiting import load_waiting, save_waiting, waiting_path
from dataflows.store.wire import Wire
from features.batch import Float64, Int64
from features.catalog import Catalog
from features.errors import ConfigError, ShapeError, SourceError, StateError
from features.jit import njit
from features.keys import group_of, hash_strings
from features.slots import SlotTable

__all__ = ["StoreStats", "StoreWriter"]

Bool = npt.NDArray[np.bool_]

CHUNK_ROWS = 250
"""Rows sent before their answers are read; measured: 100 to 1,000 are alike."""

FLUSH_ROWS_MAX = 20_000
"""Rows of one flush, or `store_rows_s_max` if that is less: at most a second's worth. The rest is
coalesced with what has come since, so that a flagged entity waits no longer than this behind a
backlog. Chosen."""

BUSY_SHARE_MAX = 0.5
"""Share of the time in which the writer may be at work. A flush that takes longer than half of
`store_flush_ms` puts the next one off, so that a slow Redis or a busy machine is asked less, not
more. Chosen."""

NICENESS = 5
"""Added to the niceness of the writer's thread where another thread wants its core: a third of the
other's share. Not more: the flow waits where the thread is held up with the GIL in its hands.
Chosen."""

KNOWN_MAX = 1_000_000
"""Entities of a view whose last written time is remembered (40 bytes each); beyond it all are
forgotten and asked of Redis again. Chosen: 40 MB."""

BACKOFF_S = (0.05, 2.0)
"""First and longest wait before a Redis that is away is tried again. Chosen: back within seconds,
and no storm."""

KEEP_AFTER_S = 1.0
"""Seconds that Redis has to take the rows of a round before those that it has not are written to
disk. Chosen: a few flushes, so that a store which is not behind writes none."""

CLOSE_S_MAX = 5.0
"""Longest wait for rows still to be written when the writer is closed. Chosen: the flow has waited
for its last rows already."""


@dataclass(slots=True)
class StoreStats:
    """What a writer has done.

    Parameters
    ----------
    put : rows that came, of each entity one a round and lane
    written : rows that went to Redis
    coalesced : rows that a newer one of the same entity took the place of before they were written
    stale : rows not written since the store had a later event time
    dropped : rows given up because more than `store_rows_max` waited
    refused : rows that Redis refuses for good, its key being of another type
    restored : rows written again to a Redis that had lost them
    unknown : rows of empty windows of entities that the store does not have
    emptied : rows of empty windows that went to Redis, among `written`
    kept : rows written to disk since Redis was behind, over and over while it is
    waiting : rows not in Redis yet; at most `store_rows_max`, and as many in the thread's hands
    flushes : flushes that went through
    stretched : flushes after which the next was put off beyond `store_flush_ms`
    interval_s : seconds from the last flush's beginning to the next one's
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
    restored: int = 0
    unknown: int = 0
    emptied: int = 0
    kept: int = 0
    waiting: int = 0
    flushes: int = 0
    stretched: int = 0
    interval_s: float = 0.0
    round: int = 0
    away_s: float = 0.0
    away: bool = False


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one view; `ticket` is the put of each, `since` the first put its entity waits for."""

    keys: pl.Series
    ids: Int64
    values: Float64
    time_us: Int64
    place: Int64
    ticket: Int64
    since: Int64
    urgent: Bool

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, at: npt.NDArray[Any]) -> _Rows:
        """Some of the rows, copied; `take` of numpy and polars hold no GIL."""
        if at.dtype == np.bool_:
            at = np.flatnonzero(at)
        return _Rows(
            self.keys[at], self.ids.take(at), self.values.take(at, axis=0),
            self.time_us.take(at), self.place.take(at, axis=0), self.ticket.take(at),
            self.since.take(at), self.urgent.take(at),
        )  # fmt: skip

    def plain(self) -> EntityRows:
        """The rows without the puts they came with."""
        return EntityRows(self.keys, self.ids, self.values, self.time_us, self.place, self.urgent)

    def part(self, begin: int, end: int) -> _Rows:
        """Rows `begin` to `end`; nothing is copied."""
        return _Rows(
            self.keys.slice(begin, end - begin),
            *(getattr(self, f.name)[begin:end] for f in fields(self)[1:]),
        )


@njit
def _newest(  # type: ignore[no-untyped-def]
    ids, time_us, place, ticket, since, urgent, table, newest, of, rows, firsts, marks
):
    """The newest row of each id, in row order, the first put waited for, any flag; their number.

    `table` is full of -1 and a power of two long.
    """
    mask = np.uint64(len(table) - 1)
    used = 0
    for i in range(len(ids)):
        at = np.uint64(ids[i]) & mask
        while table[at] >= 0 and ids[newest[table[at]]] != ids[i]:
            at = (at + np.uint64(1)) & mask
        slot = table[at]
        of[i] = slot if slot >= 0 else used
        if slot < 0:
            table[at] = used
            newest[used], firsts[used], marks[used] = i, since[i], urgent[i]
            used += 1
            continue
        j = newest[slot]
        later = time_us[i] - time_us[j]
        if later == 0:
            later = ticket[i] - ticket[j]
        if later == 0:
            later = place[i, 0] - place[j, 0]
        if later == 0:
            later = place[i, 1] - place[j, 1]
        if later >= 0:
            newest[slot] = i
        firsts[slot] = min(firsts[slot], since[i])
        marks[slot] |= urgent[i]
    kept = 0
    for i in range(len(ids)):
        if newest[of[i]] == i:
            rows[kept] = i
            kept += 1
    return kept


def _coalesce(parts: list[_Rows]) -> _Rows:
    """The newest row of each entity, among equal places that of the later part."""
    if len(parts) == 1 and len(parts[0]) < 2:
        return parts[0]
    flat = {
        name: np.concatenate([getattr(p, name) for p in parts])
        for name in ("ids", "time_us", "place", "ticket", "since", "urgent")
    }
    n = len(flat["ids"])
    size = 64
    while size < 2 * n:
        size *= 2
    of, rows, firsts = np.empty(n, np.int32), np.empty(n, np.int64), np.empty(n, np.int64)
    marks = np.empty(n, np.bool_)
    kept = _newest(
        flat["ids"], flat["time_us"], flat["place"], flat["ticket"], flat["since"], flat["urgent"],
        np.full(size, -1, np.int32), np.empty(n, np.int64), of, rows, firsts, marks,
    )  # fmt: skip
    if kept == n and len(parts) == 1:
        return parts[0]
    rows = rows[:kept]
    slots = of.take(rows)
    begins = np.cumsum([0, *map(len, parts)])
    bounds = np.searchsorted(rows, begins)
    values = np.empty((kept, parts[0].values.shape[1]))
    for p, part in enumerate(parts):
        begin, end = bounds[p], bounds[p + 1]
        np.take(part.values, rows[begin:end] - begins[p], 0, values[begin:end], mode="clip")
    return _Rows(
        pl.concat([p.keys for p in parts])[rows], flat["ids"].take(rows), values,
        flat["time_us"].take(rows), flat["place"].take(rows, axis=0), flat["ticket"].take(rows),
        firsts.take(slots), marks.take(slots),
    )  # fmt: skip


@dataclass(slots=True)
class _Waiting:
    """Rows that came and are not written, by view, the oldest parts first."""

    parts: dict[View, list[_Rows]] = field(default_factory=dict)
    rows: int = 0

    def put(self, views: Views, ticket: int) -> int:
        """Rows of one lane's round, newer than all there are; how many."""
        came = 0
        for view, rows in views.items():
            if len(rows):
                tickets = np.full(len(rows), ticket, np.int64)
                self.add(view, _Rows(
                    rows.keys, rows.ids, rows.values, rows.time_us, rows.place, tickets, tickets,
                    rows.urgent,
                ))  # fmt: skip
                came += len(rows)
        return came

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
        """The newest row of each entity, whole rows first; nothing waits any more."""
        views = sorted(self.parts, key=len)
        whole = {view: _coalesce(self.parts[view]) for view in views}
        self.parts, self.rows = {}, 0
        return whole


def _oldest(
    whole: dict[View, _Rows], keep: int, order: Callable[[View, _Rows], Float64]
) -> Iterator[tuple[View, Bool]]:
    """Which rows of each view are among the `keep` that stand first in `order` (small first)."""
    values = {view: order(view, rows) for view, rows in whole.items()}
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
    settings : `store`, `redis_url`, `state_dir`, `store_flush_ms`, `store_rows_max`,
        `store_rows_s_max`
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
        self._layouts: dict[View, ViewLayout] = {}
        self._layouts |= {tuple(view): one for view, one in layouts(catalog).items()}
        self._layouts |= {(*view, WINDOWS): one for view, one in windows_layouts(catalog).items()}
        # Where the features of each view of empty windows stand among those of the whole view.
        self._columns: dict[View, Int64] = {
            view: np.array([self._layouts[view[:2]].features.index(n) for n in one.features])
            for view, one in self._layouts.items()
            if view[2:]
        }
        self._flush_s = settings.store_flush_ms / 1000.0
        self._features = {view: one.features for view, one in self._layouts.items()}
        self._folder = settings.state_dir
        self._rows_max = settings.store_rows_max
        self._rows_s_max = settings.store_rows_s_max
        self._say = say or _say
        self.fence: Callable[[], None] = lambda: None
        """Asked before rows are sent; raises StateError where another flow has taken over."""
        self._embedded = EmbeddedRedis(settings.state_dir) if settings.store == "embedded" else None
        self._url = settings.redis_url if self._embedded is None else self._embedded.url
        self._shown = shown("redis_url", self._url)
        self._changed = threading.Condition()
        self._waiting = _Waiting()
        self._stats = StoreStats()
        self._ticket = self._flushed = self._wanted = self._sending = self._compact = 0
        self._hurry = self._stop = self._held = False
        self._keeps: dict[int, tuple[int, int]] = {}
        """Shard -> round and ticket up to which its rows are to be on disk from `_keep_s` on."""
        self._keep_s = math.inf
        self._kept: dict[int, int] = {}
        self._files: dict[int, int] = {}
        """Shard -> last ticket of the rows in its file."""
        self._fault: BaseException | None = None
        self._known: dict[View, SlotTable] = {}
        folder = settings.state_dir / "store" / f"rows-{process_id(sys.argv[1:], os.environ)}"
        # Whoever comes second to a state_dir, against all rules, writes without.
        self._claim = claim(folder)
        self._shadows: dict[View, Shadow] = {}
        self._mark: Mark | None = None
        if self._claim is not None:
            self._mark = Mark(folder)
            for view, layout in layouts(catalog).items():
                self._shadows[view] = Shadow(folder, layout.name, layout.features)
        self._again: deque[tuple[View, int]] = deque()
        self._restored_since = 0
        self._names: defaultdict[str, EntityNames] = defaultdict(EntityNames)
        self._scanned = False
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
            self._close_shadows()
            raise SourceError(
                f"store: no Redis at {self._shown} ({_reason(error)}); start it, set"
                ' redis_url (or WAXWING_REDIS_URL), or set store = "embedded" or "off"'
            ) from None
        except BaseException:
            self._close_shadows()
            raise
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
        """Note rows of one view, one after another; `put_round` is what a flow uses.

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
        n = len(keys)
        if not len(time_us) == len(urgent) == len(rows) == n:
            raise ShapeError(
                f"store: view {self._layouts[view].name!r}: expected as many rows as keys, got"
                f" {n} keys, {len(rows)} rows, {len(time_us)} times and {len(urgent)} flags"
            )
        ids = hash_strings(keys).view(np.int64)
        there = np.flatnonzero(ids)
        part = EntityRows(
            keys[there], ids[there], np.asarray(rows, np.float64)[there], time_us[there],
            np.zeros((len(there), 2), np.int64), np.asarray(urgent, np.bool_)[there],
        )  # fmt: skip
        self.put_round(round, [{view: part}])

    def put_round(self, round: int, lanes: Sequence[Views]) -> int:
        """Note the rows of all lanes of a round, of one shard, as one; returns their ticket.

        Returns at once, whatever Redis does. The arrays are kept. No flush falls between the lanes:
        which of them has the newest row of an entity is found when they are coalesced.

        Raises
        ------
        ShapeError : the columns do not fit the view
        StateError : the writer's thread has died, of a bug
        """
        for views in lanes:
            for view, rows in views.items():
                layout = self._layouts[view]
                if rows.values.shape != (len(rows), len(layout.features)):
                    raise ShapeError(
                        f"store: view {layout.name!r}: expected {len(rows)} rows of"
                        f" {len(layout.features)} features, got {rows.values.shape}"
                    )
        with self._changed:
            self._raise_fault()
            self._ticket += 1
            self._stats.round = max(self._stats.round, round)
            self._stats.put += sum(self._waiting.put(views, self._ticket) for views in lanes)
            if self._crowded():
                self._changed.notify_all()
            self._bound()
            return self._ticket

    def keep(self, shard: int, round: int, ticket: int) -> None:
        """Have what was put of a shard up to a round and its ticket on disk before long.

        What Redis has by then is not written. Nothing is where another process has claimed the
        folder of this one.
        """
        with self._changed:
            if self._claim is not None and ticket > self._flushed:
                self._keeps[shard] = round, ticket
                self._keep_s = min(self._keep_s, time.monotonic() + KEEP_AFTER_S)
                self._changed.notify_all()

    def take_up(self, shard: int, after_round: int) -> None:
        """Put what a shard left on disk, where the state that goes on from a round needs it.

        A file of an earlier round than the manifest's is one that the manifest did not wait for:
        Redis has its rows, or newer ones.

        Raises
        ------
        StateError : another flow has taken over, or the disk does not let go of what is of no use
        """
        path = waiting_path(self._folder, shard)
        try:
            round_, rows = load_waiting(path, self._features) if path.exists() else (-1, {})
        except StateError as error:
            self._say(
                f"{error.args[0].partition(';')[0]}; what the online store is behind by stays so"
                " until the next event of each entity"
            )
            round_, rows = -1, {}
        if not after_round or round_ < after_round:
            self._forget(shard)
            return
        with self._changed:
            self._ticket += 1
            self._files[shard] = self._ticket
            self._stats.put += self._waiting.put(rows, self._ticket)

    def _forget(self, shard: int) -> None:
        """Remove what a shard has left on disk, if there is something."""
        path = waiting_path(self._folder, shard)
        with self._changed:
            self._files.pop(shard, None)
        if path.exists():
            self.fence()
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StateError(
                    f"store: {path}: cannot be removed: {error.strerror}; mend the disk and start"
                    " again"
                ) from error

    def hold(self) -> None:
        """Write nothing until `go_on`, or until more waits than may: only coalesce what comes."""
        with self._changed:
            self._held = True

    def go_on(self) -> None:
        """Write what waits, and go on writing."""
        with self._changed:
            if self._held:
                self._held = False
                self._changed.notify_all()

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

    def safe_ticket(self, shard: int) -> int:
        """As `flushed_ticket`, or on disk: the ticket up to which no row of a shard can be lost."""
        with self._changed:
            self._raise_fault()
            return max(self._flushed, self._kept.get(shard, 0))

    def flush(self, timeout_s: float) -> bool:
        """Write now; whether all that was put before is in Redis within the time."""
        with self._changed:
            wanted = self._ticket
            self._wanted = max(self._wanted, wanted)
            self._hurry = True
            self._held = False
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
        self._close_shadows()
        if self._embedded is not None:
            self._embedded.close()

    def _close_shadows(self) -> None:
        """Let go of what is kept beside Redis."""
        for shadow in self._shadows.values():
            shadow.close()
        self._shadows = {}
        if self._mark is not None:
            self._mark.close()
        if self._claim is not None:
            os.close(self._claim)
        self._mark = self._claim = None

    def _raise_fault(self) -> None:
        """Say on the flow's own thread that the writer's has died."""
        if isinstance(self._fault, StateError):
            raise self._fault
        if self._fault is not None:
            raise StateError(
                f"store: the writer ended with {type(self._fault).__name__}: {self._fault}; this is"
                ' a bug: report it, and set store = "off" to go on'
            ) from self._fault

    def _crowded(self) -> bool:
        """Whether so much waits that the writer's thread should coalesce it, flush or no flush."""
        return self._waiting.rows > max(self._rows_max // 2, 2 * self._compact)

    def _bound(self) -> None:
        """Keep at most `store_rows_max` rows: coalesce, then give up the entities longest silent.

        Rows of empty windows are given up first, flagged ones last. A quarter is made free, so that
        this is rare; it falls to the flow only where the writer's thread, which coalesces from half
        of it on, hangs.
        """
        if self._waiting.rows <= self._rows_max:
            return
        came = self._waiting.rows
        whole = self._waiting.coalesced()
        left = sum(len(rows) for rows in whole.values())
        self._stats.coalesced += came - left
        keep = self._rows_max * 3 // 4
        if left > keep:
            for view, kept in _oldest(whole, keep, _silent_last):
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
            _step_back()
            pause_s, backoff_s = self._flush_s, BACKOFF_S[0]
            while self._rest(pause_s):
                begun = time.monotonic()
                try:
                    sent = self._flush_once()
                except (redis.RedisError, OSError, ConfigError) as error:
                    self._went_away(error)
                    pause_s, backoff_s = backoff_s, min(2 * backoff_s, BACKOFF_S[1])
                    continue
                backoff_s = BACKOFF_S[0]
                pause_s = self._pause_s(sent, time.monotonic() - begun)
        except BaseException as error:
            with self._changed:
                self._fault = error
                self._changed.notify_all()

    def _rest(self, pause_s: float) -> bool:
        """Wait, less where someone is in a hurry, coalescing what piles up; False at the end."""
        until = time.monotonic() + pause_s
        while True:
            with self._changed:
                while not (self._hurry or self._stop or self._crowded()):
                    due_s = min(self._keep_s, math.inf if self._held else until)
                    left_s = due_s - time.monotonic()
                    if left_s <= 0.0:
                        break
                    self._changed.wait(None if left_s == math.inf else left_s)
                keep = time.monotonic() >= self._keep_s and not self._stop
                due = time.monotonic() >= until and not self._held
                if not keep and (self._stop or self._hurry or due):
                    self._hurry = False
                    return not self._stop
            if keep:
                self._keep()
            else:
                self._put_back(self._take()[0])

    def _keep(self) -> None:
        """Write down what waits of the shards of which that is wanted."""
        with self._changed:
            wanted, self._keeps, self._keep_s = self._keeps, {}, math.inf
            wanted = {s: one for s, one in wanted.items() if one[1] > self._flushed}
        if not wanted:
            return
        self.fence()
        whole = self._take()[0]
        try:
            shards = {view: group_of(r.ids.view(np.uint64), SHARDS) for view, r in whole.items()}
            for shard, (round_, ticket) in wanted.items():
                rows = {
                    view: part.take((shards[view] == shard) & (part.ticket <= ticket)).plain()
                    for view, part in whole.items()
                }
                path = waiting_path(self._folder, shard)
                save_waiting(path, round_, rows, self._features)
                with self._changed:
                    self._files[shard] = ticket
                    self._kept[shard] = ticket
                    self._stats.kept += sum(map(len, rows.values()))
        finally:
            self._put_back(whole)

    def _pause_s(self, sent: int, took_s: float) -> float:
        """How long to leave Redis and the processor to others after a flush."""
        with self._changed:
            if self._flushed < self._wanted:
                return 0.0
            due_s = max(self._flush_s, sent / self._rows_s_max, took_s / BUSY_SHARE_MAX)
            self._stats.stretched += due_s > self._flush_s
            self._stats.interval_s = due_s
            return due_s - took_s

    def _take(self) -> tuple[dict[View, _Rows], int]:
        """The newest row of each entity that waits, taken out, and the ticket they go up to."""
        with self._changed:
            taken, self._waiting = self._waiting, _Waiting()
            ticket = self._ticket
            self._sending = came = taken.rows
        whole = taken.coalesced()
        with self._changed:
            self._sending = sum(len(rows) for rows in whole.values())
            self._stats.coalesced += came - self._sending
        return whole, ticket

    def _put_back(self, whole: dict[View, _Rows]) -> None:
        """Rows that go on waiting."""
        with self._changed:
            self._sending = 0
            self._waiting.put_back(whole)
            self._compact = sum(len(rows) for rows in whole.values())
            if self._compact > self._rows_max // 2:
                self._held = False  # or rows would be given up that Redis could have taken
            self._bound()

    def _flush_once(self) -> int:
        """Write the newest row of each entity that waits, as many as a flush takes; how many."""
        if self._wire is None:
            self._connect()
        whole, ticket = self._take()
        batch, later = _slice(whole, min(FLUSH_ROWS_MAX, self._rows_s_max))
        try:
            self.fence()
            counts = self._send(batch, keep=True)
        except BaseException:
            self._put_back(whole)
            raise
        if later:
            ticket = min(int(rows.since.min()) for rows in later.values()) - 1
        # Before the flow hears of it: a later manifest needs none of it.
        with self._changed:
            done = [shard for shard, last in self._files.items() if last <= ticket]
        for shard in done:
            self._forget(shard)
        with self._changed:
            self._put_back(later)
            self._flushed = max(self._flushed, ticket)
            for name, count in counts.items():
                setattr(self._stats, name, getattr(self._stats, name) + count)
            self._stats.flushes += 1
            self._changed.notify_all()
        if self._away_since is not None:
            self._came_back()
        return counts["written"] + self._restore(FLUSH_ROWS_MAX - counts["written"])

    def _send(self, batch: dict[View, _Rows], keep: bool) -> dict[str, int]:
        """Write rows, those of flagged events first; what became of them, as `StoreStats` says.

        With `keep` they are kept beside Redis too.
        """
        wire = self._wire
        if wire is None:
            raise StateError("store: no connection to send on; this is a bug")
        written = stale = refused = unknown = emptied = 0
        if self._mark is not None and not self._mark.renew(wire):
            self._begin_restore()
        for urgent in (True, False):
            fresh: dict[View, _Rows] = {}
            for view, whole in batch.items():
                rows = whole.take(whole.urgent == urgent)
                if view[2:]:
                    came = len(rows)
                    rows = self._named(wire, view, rows)
                    unknown += came - len(rows)
                new = self._fresh(wire, view, rows)
                fresh[view] = rows if new.all() else rows.take(new)
                stale += len(rows) - len(fresh[view])
                emptied += len(fresh[view]) if view[2:] else 0
            on_the_way = 0
            for view, part in _chunks(fresh):
                data = self._layouts[view].encode(part.keys, part.values, part.time_us)
                # Redis works on the chunk before while this one was made.
                refused += _refused(wire.numbers(on_the_way))
                wire.send(data)
                on_the_way = len(part)
                written += len(part)
            refused += _refused(wire.numbers(on_the_way))
            for view, rows in fresh.items() if keep and self._shadows else ():
                if not view[2:]:
                    self._shadows[view].put(rows.keys, rows.ids, rows.values, rows.time_us)
        for view, rows in batch.items() if keep and self._shadows else ():
            if view[2:]:  # also where Redis has lost the entity and does not have it again yet
                columns = self._columns[view]
                self._shadows[view[:2]].amend(rows.ids, rows.values, rows.time_us, columns)
        return {
            "written": written - refused,
            "stale": stale,
            "refused": refused,
            "unknown": unknown,
            "emptied": emptied,
        }

    def _named(self, wire: Wire, view: View, rows: _Rows) -> _Rows:
        """Those of rows that came by key whose entities the store has in the view, with names."""
        names = self._names[view[1]].of(rows.ids)
        if names.null_count() and not self._scanned:
            for entity, ids, found in scan_names(wire):
                self._names[entity].add(ids, found)
            self._scanned = True
            names = self._names[view[1]].of(rows.ids)
        there = names.is_not_null().to_numpy()
        known = self._known.get(view[:2])
        slots = np.full(len(rows), -1) if known is None else known.find(rows.ids.view(np.uint64))
        layout = self._layouts[view]
        unmet = np.flatnonzero(there & (slots < 0))
        for at in range(0, len(unmet), CHUNK_ROWS):
            some = unmet[at : at + CHUNK_ROWS]
            wire.send(layout.ask_times(names[some]))
            answers = wire.answers(len(some))
            _refused(answers)
            there[some] = [isinstance(answer, bytes) for answer in answers]
        return replace(rows, keys=names).take(there)

    def _begin_restore(self) -> None:
        """Redis has lost what it had: nothing is known of it, all rows are to be written again."""
        self._known = {}
        self._again = deque((view, 0) for view, shadow in self._shadows.items() if len(shadow))
        self._restored_since = self._stats.restored
        if not self._again and self._mark is not None:
            self._mark.mended()
        if self._again:
            self._say(
                f"the online store at {self._shown} has lost rows that it had; all"
                f" {sum(map(len, self._shadows.values())):,} are written again"
            )

    def _restore(self, rows_max: int) -> int:
        """Write some of the rows again that Redis has lost; how many."""
        sent = 0
        while self._again and sent < rows_max:
            view, begin = self._again[0]
            end = min(begin + rows_max - sent, len(self._shadows[view]))
            keys, ids, values, time_us = self._shadows[view].rows(begin, end)
            zero = np.zeros(len(ids), np.int64)
            place = np.zeros((len(ids), 2), np.int64)
            rows = _Rows(keys, ids, values, time_us, place, zero, zero, zero.astype(np.bool_))
            self.fence()
            counts = self._send({view: rows}, keep=False)
            if not self._again or self._again[0] != (view, begin):
                continue  # lost once more meanwhile
            sent += end - begin
            with self._changed:
                self._stats.restored += counts["written"]
                self._stats.refused += counts["refused"]
            self._again.popleft()
            if end < len(self._shadows[view]):
                self._again.appendleft((view, end))
            elif not self._again and self._mark is not None:
                self._mark.mended()
                count = self._stats.restored - self._restored_since
                self._say(f"the online store has its {count:,} lost rows again")
        return sent

    def _fresh(self, wire: Wire, view: View, rows: _Rows) -> Bool:
        """Which rows are not older than what the store has; Redis is asked once an entity."""
        known = self._known.get(view[:2])
        if known is None or known.used > KNOWN_MAX:
            known = self._known[view[:2]] = SlotTable()
        used = known.used
        slots, taken_us, _ = known.intern(np.column_stack((rows.ids, rows.time_us)))
        fresh = taken_us == rows.time_us
        unmet = np.flatnonzero(slots >= used)
        if len(unmet) and not view[2:]:
            self._names[view[1]].add(rows.ids[unmet], rows.keys[unmet])
        layout = self._layouts[view]
        for at in range(0, len(unmet), CHUNK_ROWS):
            some = unmet[at : at + CHUNK_ROWS]
            wire.send(layout.ask_times(rows.keys[some]))
            answers = wire.answers(len(some))
            # A key of another type is refused when it is written, and counted there.
            _refused(answers)
            for row, answer in zip(some, answers, strict=True):
                if answer is None:
                    continue
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
        if self._mark is not None:
            self._mark.look(wire)
            if self._mark.lost:
                self._begin_restore()
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
                f"the online store at {self._shown} is away ({_reason(error)}); the flow goes"
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


def _silent_last(view: View, rows: _Rows) -> Float64:
    """Flagged rows first, then the newest; those of empty windows last of all."""
    return np.full(len(rows), np.inf) if view[2:] else _rank(rows, -rows.time_us)


def _slice(whole: dict[View, _Rows], rows_max: int) -> tuple[dict[View, _Rows], dict[View, _Rows]]:
    """What one flush takes (flagged first, then who has waited longest) and what stays."""
    if sum(len(rows) for rows in whole.values()) <= rows_max:
        return whole, {}
    batch, later = {}, {}
    for view, kept in _oldest(whole, rows_max, lambda _, rows: _rank(rows, rows.since)):
        batch[view] = whole[view].take(kept)
        if not kept.all():
            later[view] = whole[view].take(~kept)
    return batch, later


def _chunks(whole: dict[View, _Rows]) -> Iterator[tuple[View, _Rows]]:
    """Rows in chunks of CHUNK_ROWS."""
    for view, rows in whole.items():
        for at in range(0, len(rows), CHUNK_ROWS):
            yield view, rows.part(at, at + CHUNK_ROWS)


def _step_back() -> None:
    """Give other threads the core first; Linux alone knows the niceness of a thread."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # A sandbox may not know the call; the store then competes as an equal.
        with contextlib.suppress(OSError):
            own = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, own + NICENESS)


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
    # The threads of polars are born here: born of the writer's thread they had its niceness.
    pl.thread_pool_size()
    if not layouts:  # Of features of the event alone nothing is stored.
        return
    layout = next(iter(layouts.values()))
    values = np.zeros((2, len(layout.features)))
    zero, no = np.zeros(2, np.int64), np.zeros(2, np.bool_)
    place = np.zeros((2, 2), np.int64)
    rows = _Rows(pl.Series(["a", "a"]), zero, values, zero, place, zero, zero, no)
    one = _coalesce([rows])
    layout.encode(one.keys, one.values, one.time_us)
    layout.ask_times(one.keys)
    warm_up()


def _reason(error: BaseException) -> str:
    """What the error says, on one line and without its own full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _say(text: str) -> None:
    """A sentence on stderr."""
    print(f"waxwing: {text}", file=sys.stderr, flush=True)
