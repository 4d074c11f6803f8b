"""Windows that run empty while nothing comes: whose, and what they hold then, for the store.

A store that keeps the row of an entity's last event would say five payments in a minute for ever
after. So each entity's rings note when they were last fed: a window is empty its own length after
that, and at the end of a round the views that show it are told anew as of then: counts 0, means
without a value. Nothing of the state changes by it, so no feature of an event depends on it.

Who is due when follows from those times alone. The wheel looks at an entity once in the shortest of
its windows while one of them still holds something, and remembers up to where all is told.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from features.batch import Float64, Int64
from features.catalog import Catalog
from features.derivation import in_order
from features.events import event_code, event_types
from features.operations import OPERATIONS
from features.plan import EntityPlan
from features.spec import Feature
from features.speed import AHEAD, kernel, prefetch

__all__ = ["ROWS_MAX", "Emptied", "EmptiedWheel", "timed_names"]

Bool = npt.NDArray[np.bool_]

ROWS_MAX = 64
"""Rows a group tells in a round where nothing else is said; the rest comes in the next. Chosen: of
16 groups 10,000 a second, half of what the store takes."""

WINDOW_OPS = 9
"""Operations of a ring below it are statistics of a window; those above are of the event itself."""

TICK_US = 1_000_000
TICKS = 4_096
"""Length and number of the wheel's buckets. Chosen: an hour; who is due later is looked at then."""

_NOT_FILED = -2


@dataclass(frozen=True, slots=True)
class Emptied:
    """Rows of one view as of a moment at which nothing came; of one group and round.

    Parameters
    ----------
    event_type, entity : the view
    keys : int64 (n,), of the entities
    time_us : int64 (n,), as of when
    values : float64 (n, features of the view), NaN where a feature does not change by itself
    """

    event_type: str
    entity: str
    keys: Int64
    time_us: Int64
    values: Float64


@lru_cache(maxsize=64)
def timed_names(catalog: Catalog, event_type: str, entity: str) -> tuple[str, ...]:
    """Features of a view that change while nothing comes: what `Emptied` tells.

    Statistics of windows, how many events are usual in them, and what is made of these alone: an
    expected count follows the entity's own usual one, since its peers are not asked while nothing
    comes. A view without a window has none.

    >>> from features.catalog import catalog
    >>> timed_names(catalog(), "payment", "device")[0]
    'device_small_share_1h'
    """
    features = catalog.views().get((event_type, entity), ())
    found: set[str] = set()
    windows = False
    for feature in features:
        op = OPERATIONS[feature.op]
        if op.family == "ring" and op.code < WINDOW_OPS:
            found.add(feature.name)
            windows = True
        elif op.name == "usual_count":
            found.add(feature.name)
    for feature in in_order(features):
        if _read(feature) <= found:
            found.add(feature.name)
    return tuple(f.name for f in features if f.name in found) if windows else ()


def _read(feature: Feature) -> set[str]:
    """What a derived feature is made of while nothing comes."""
    read = {str(feature.column)}
    if feature.op != "shrunk_count":
        read |= {str(feature.other)} | ({feature.count} if feature.count else set())
    return read


@kernel
def _next_us(slot, key, fed_us, spans, done_us, done_key):
    """When the next window of a slot that has not been told runs empty; 0: none does."""
    found = np.int64(0)
    for k in range(len(spans)):
        fed = fed_us[slot, spans[k, 0]]
        if fed == 0:
            continue
        due = fed + spans[k, 1]
        if (due > done_us or (due == done_us and key > done_key)) and (found == 0 or due < found):
            found = due
    return found


@kernel
def _file(slot, tick, now_tick, step, heads, links):
    """Put a slot into the bucket of a tick, or of one `step` ticks on: however late it is due now,
    it may speak and be due a shortest window later."""
    bucket = min(max(tick, now_tick), now_tick + step) % TICKS
    links[slot, 0] = heads[bucket]
    heads[bucket] = slot


@kernel
def _hear(slots, head, feeds, shortest_us, now_tick, step, done_us, fed_us, heads, links, again):
    """Note when rings are fed, and let the wheel know of those it does not; returns how many of
    `again` are filled: slots whose window is empty already when its event comes.

    Parameters
    ----------
    slots : int64 (n,)
    head : int64 (n, >= 3)
    feeds : bool (rings, event types)
    shortest_us : int64 (rings,), shortest window a view shows of each, 0 where none is shown
    step : see `_file`
    fed_us : int64 (slots, rings)
    heads, links : int32 (TICKS,) and (slots, 1), chains of slots
    """
    found = 0
    for i in range(len(slots)):
        if i + AHEAD < len(slots):
            prefetch(fed_us, slots[i + AHEAD])
            prefetch(links, slots[i + AHEAD])
        slot, time_us, code = slots[i], head[i, 1], head[i, 2]
        near_us = np.int64(0)
        for r in range(len(feeds)):
            if not feeds[r, code] or shortest_us[r] == 0:
                continue
            fed_us[slot, r] = max(fed_us[slot, r], time_us)
            due_us = time_us + shortest_us[r]
            if near_us == 0 or due_us < near_us:
                near_us = due_us
        if near_us == 0:
            continue
        if near_us <= done_us:
            again[found] = slot
            found += 1
        if links[slot, 0] == _NOT_FILED:
            _file(slot, near_us // TICK_US, now_tick, step, heads, links)
    return found


@kernel
def _refile(used, now_tick, step, keys, fed_us, spans, done, heads, links):
    """File all slots anew by when they are due."""
    for slot in range(used):
        due_us = _next_us(slot, keys[slot], fed_us, spans, done[0], done[1])
        if keys[slot] != 0 and due_us > 0:
            _file(slot, due_us // TICK_US, now_tick, step, heads, links)


@kernel
def _turn(tick, until, step, keys, fed_us, spans, done, heads, links, found, times):
    """Empty buckets from a tick on until somebody is due or the clock is reached.

    Parameters
    ----------
    until : tick of the clock: whoever is due before it is
    step : see `_file`

    Returns
    -------
    the tick to go on with, and how many slots and due times `found` and `times` (int64) got: all
    that are due in the tick before
    """
    n = 0
    while tick < until and n == 0:
        slot = heads[tick % TICKS]
        heads[tick % TICKS] = -1
        while slot >= 0:
            after = links[slot, 0]
            links[slot, 0] = _NOT_FILED
            due_us = np.int64(0)
            if keys[slot] != 0:
                due_us = _next_us(slot, keys[slot], fed_us, spans, done[0], done[1])
            if due_us > 0:
                due_tick = due_us // TICK_US
                if due_tick <= tick:
                    found[n], times[n] = slot, due_us
                    n += 1
                else:
                    _file(slot, due_tick, tick + 1, step - 1, heads, links)
            slot = after
        tick += 1
    return tick, n


@kernel
def _show(i, slot, key, newest_us, fed_us, spans, shown, until_us, done_us, done_key, times, views):
    """As of when a slot is told, and which of its views: those a window of which ran empty."""
    at_us = newest_us
    for k in range(len(spans)):
        fed = fed_us[slot, spans[k, 0]]
        if fed > 0 and fed + spans[k, 1] < until_us:
            at_us = max(at_us, fed + spans[k, 1])
    times[i] = at_us
    for k in range(len(spans)):
        fed = fed_us[slot, spans[k, 0]]
        due = fed + spans[k, 1]
        untold = due > done_us or (due == done_us and key > done_key)
        for v in range(shown.shape[1]):
            views[i, v] |= fed > 0 and due <= at_us and untold and shown[k, v]


@kernel
def _show_all(slots, keys, newest_us, fed_us, spans, shown, until_us, times, views):
    """As of when slots are told, and all views that have an empty window."""
    for i in range(len(slots)):
        slot = slots[i]
        _show(i, slot, keys[slot], newest_us[slot], fed_us, spans, shown, until_us, 0, 0, times,
              views)  # fmt: skip


@kernel
def _give(
    slots, tick, until_us, step, keys, newest_us, fed_us, spans, shown, done, heads, links, given,
    times, views
):  # fmt: skip
    """Tell slots that are due in the tick before `tick`, in their order; returns how many still
    are.

    Parameters
    ----------
    slots : int64 (n,)
    until_us : whatever runs empty before it is told together
    newest_us : int64 (slots,): state has passed it, so nothing is told as of before
    shown : bool (spans, views), which views show a window
    done : int64 (2,), moved on
    given, times, views : int64 (n,), int64 (n,), bool (n, views), filled
    """
    n = 0
    for slot in slots:
        key = keys[slot]
        if key == 0:
            continue
        due_us = _next_us(slot, key, fed_us, spans, done[0], done[1])
        if due_us > 0 and due_us // TICK_US < tick:
            given[n] = slot
            _show(n, slot, key, newest_us[slot], fed_us, spans, shown, until_us, done[0], done[1],
                  times, views)  # fmt: skip
            n += 1
            done[0], done[1] = due_us, key
            due_us = _next_us(slot, key, fed_us, spans, done[0], done[1])
        if due_us > 0 and links[slot, 0] == _NOT_FILED:
            _file(slot, due_us // TICK_US, tick, step, heads, links)
    return n


class EmptiedWheel:
    """Whose windows run empty when, for one entity type in one group.

    Of it only `done` is saved, up to where all is told; all else is filed anew after a restart.

    Parameters
    ----------
    plan : of the entity type

    Attributes
    ----------
    on : whether anything is heard and told
    done : int64 (2,): all that ran empty up to this time is told, at this time up to this key
    views : event types whose views show a window of the entity
    told : rows told, ever
    """

    def __init__(self, plan: EntityPlan) -> None:
        self.on = False
        self.told = 0
        self.done = np.zeros(2, np.int64)
        self.views = tuple(plan.features)
        spans: dict[tuple[int, int], set[int]] = {}
        for r, ring in enumerate(plan.rings):
            for v, event in enumerate(self.views):
                code = event_code(event)
                for op, window, *_ in ring.plan[ring.plan_at[code] : ring.plan_at[code + 1]]:
                    if op < WINDOW_OPS:
                        spans.setdefault((r, int(ring.windows_us[window])), set()).add(v)
        self._spans = np.array(sorted(spans), np.int64).reshape(-1, 2)
        self._shown = np.zeros((len(spans), len(self.views)), np.bool_)
        for k, key in enumerate(sorted(spans)):
            self._shown[k, sorted(spans[key])] = True
        kinds = len(event_types())
        self._feeds = np.array([r.feeds for r in plan.rings], np.bool_).reshape(-1, kinds)
        self._shortest_us = np.array(
            [min((w for r, w in spans if r == i), default=0) for i in range(len(plan.rings))],
            np.int64,
        )
        shortest_us = min((w for _, w in spans), default=0)
        self._step = min(max(shortest_us // TICK_US, 1), TICKS - 1)
        self._heads = np.full(TICKS, -1, np.int32)
        self._links = np.zeros((0, 1), np.int32)
        self._tick = -1
        self._ready = _NONE
        self._again: list[Int64] = []

    @property
    def active(self) -> bool:
        """Whether there is anything to hear."""
        return self.on and len(self._spans) > 0

    @property
    def memory_bytes(self) -> int:
        """Bytes of all arrays."""
        return self._heads.nbytes + self._links.nbytes

    def start(self, capacity: int) -> None:
        """Hear and tell from now on, with room for so many slots."""
        self.on = True
        self.grow(capacity)

    def grow(self, capacity: int) -> None:
        """Make room for so many slots, where there is anything to hear."""
        if self.active:
            before = len(self._links)
            self._links.resize((capacity, 1), refcheck=False)
            self._links[before:] = _NOT_FILED

    def hear(self, slots: Int64, head: Int64, fed_us: Int64) -> None:
        """Hear of rows that have passed; changes `fed_us` of their slots."""
        if self._tick < 0:
            self._tick = int(head[0, 1]) // TICK_US
        again = np.empty(len(slots), np.int64)
        done_us = int(self.done[0])
        found = _hear(slots, head, self._feeds, self._shortest_us, self._tick, self._step,
                      done_us, fed_us, self._heads, self._links, again)  # fmt: skip
        if found:
            self._again.append(again[:found])

    def settle(self, used: int, keys: Int64, fed_us: Int64) -> None:
        """File all slots after a restart."""
        if not self.active:
            return
        self._heads.fill(-1)
        self._links.fill(_NOT_FILED)
        self._ready = _NONE
        # Where nothing has been told, the first that is due: what fed it came a window before.
        self._tick = int(self.done[0]) // TICK_US
        if not self.done[0]:
            fed = fed_us[:used][fed_us[:used] > 0]
            self._tick = int(fed.min()) // TICK_US if len(fed) else -1
        if self._tick >= 0:
            _refile(used, self._tick, self._step, keys, fed_us, self._spans, self.done,
                    self._heads, self._links)  # fmt: skip

    def waits(self, clock_us: int) -> bool:
        """Whether `speak` may find anybody, or has a bucket to turn, by an event-time clock."""
        return bool(self._again or len(self._ready) or 0 <= self._tick < clock_us // TICK_US)

    def speak(
        self, clock_us: int, most: int, keys: Int64, newest_us: Int64, fed_us: Int64
    ) -> tuple[Int64, Int64, Bool]:
        """Whose windows have run empty, the longest ago first.

        Parameters
        ----------
        clock_us : event-time clock; what runs empty within its second is told after it
        most : entities told at the most
        keys, newest_us, fed_us : by slot

        Returns
        -------
        int64 (n,) slots, int64 (n,) as of when, bool (n, views) which views are told
        """
        until = clock_us // TICK_US
        told: list[tuple[Int64, Int64, Bool]] = []
        again, self._again = np.unique(np.concatenate([_NONE, *self._again])), []
        again = again[keys[again] != 0]
        if len(again):
            found = self._room(len(again))
            _show_all(again, keys, newest_us, fed_us, self._spans, self._shown, until * TICK_US,
                      *found[1:])  # fmt: skip
            told.append((again, *found[1:]))
        left = most
        while left > 0:
            if not len(self._ready) and not self._advance(until, keys, fed_us):
                break
            slots, self._ready = self._ready[:left], self._ready[left:]
            found = self._room(len(slots))
            n = _give(slots, self._tick, until * TICK_US, self._step, keys, newest_us, fed_us,
                      self._spans, self._shown, self.done, self._heads, self._links,
                      *found)  # fmt: skip
            told.append((found[0][:n], found[1][:n], found[2][:n]))
            left -= n
        return self._once(told)

    def _room(self, n: int) -> tuple[Int64, Int64, Bool]:
        """Room for n slots that are told: they, as of when, which views."""
        views = np.zeros((n, len(self.views)), np.bool_)
        return np.empty(n, np.int64), np.empty(n, np.int64), views

    def _once(self, told: list[tuple[Int64, Int64, Bool]]) -> tuple[Int64, Int64, Bool]:
        """Each slot once, in order: several of its windows may have run empty since the round
        before."""
        if not told:
            return self._room(0)
        slots, times, views = (np.concatenate(part) for part in zip(*told, strict=True))
        kept, first, which = np.unique(slots, return_index=True, return_inverse=True)
        merged = np.zeros((len(kept), views.shape[1]), np.bool_)
        np.logical_or.at(merged, which.ravel(), views)
        return kept, times[first], merged

    def _advance(self, until: int, keys: Int64, fed_us: Int64) -> bool:
        """Get ready who is due next, by time and key; False where nobody is due by the clock."""
        if self._tick < 0 or self._tick >= until:
            return False
        found, due_us = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
        self._tick, n = _turn(self._tick, until, self._step, keys, fed_us, self._spans, self.done,
                              self._heads, self._links, found, due_us)  # fmt: skip
        if not n:
            self.done[:] = self._tick * TICK_US - 1, np.iinfo(np.int64).max
            return False
        slots = found[:n].copy()
        self._ready = slots[np.lexsort((keys[slots], due_us[:n]))]
        return True


_NONE = np.zeros(0, np.int64)
