"""State of one entity type in one group: arrays by slot, the rings' arena, the table of pairs.

Owns every array that the kernels write, lets them grow, and turns them into snapshots: `dump`
copies what some slots hold, `load` puts it back so that every later result is the same bit for
bit.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from features.anchors import ANCHOR_FLOATS, WEEK_FLOATS, accept, run_anchors, run_weeks
from features.arena import SMALLEST, TOP, USED
from features.baselines import BASE_FLOATS, HISTORY, SEASON_FLOATS, run_baselines, run_seasons
from features.categories import CATEGORIES, ENTROPY_INTS, run_categories
from features.clock import APART_US
from features.correlate import (
    PAIR_FLOATS,
    PARTNER_FLOATS,
    PARTNERS,
    PARTNERS_MAX,
    run_correlations,
)
from features.emptied import Emptied, EmptiedWheel
from features.errors import StateError
from features.events import event_code
from features.expiry import SLACK_US, SWEPT, TICK_US, clear_rings, time_to_live_us
from features.freeze import mark_frozen
from features.geo import GEO_FLOATS, run_geo
from features.labels import FRAUD, FREEZE_S, GENUINE, Label, LabelBook
from features.late import Changed, LateRows
from features.members import MEMBER_FLOATS, MEMBERS_MAX, run_members
from features.notes import NOTE_WORDS
from features.operations import DISTINCT_MAX
from features.pairs import (
    BOUND,
    COLUMNS,
    CROWDED,
    ESTIMATED,
    FILLED,
    LEVELED,
    ONE_IN,
    ROOM,
    PairTable,
)
from features.panes import (
    APPROXIMATED,
    EXACT_FROM_US,
    EXACT_MAX,
    EXCESS,
    LONGEST_US,
    PANE_BOOK,
    PANE_HEAD,
    PANE_KEPT,
    PANE_PLACES,
    clear_panes,
    copy_panes,
    count_panes,
    dissolve,
    pane_exact_us,
    pane_words,
    place_panes,
    undo_panes,
)
from features.plan import EntityPlan, Ring, Risk
from features.rates import RATE_FLOATS, read_rates, run_rates
from features.rhythms import Rhythms
from features.risk import RISK_DAYS, RISK_FLOATS, apply_labels, run_risk
from features.sampling import WORDS
from features.sequence import STEPS, WIDTH, run_sequence
from features.silence import (
    SILENCE_FLOATS,
    SILENCE_INTS,
    SILENCE_TOPS,
    Overdue,
    Wheel,
    peers_now,
    run_silence,
)
from features.slots import LATE, SlotTable
from features.snapshots import (
    copy_rings,
    count_records,
    mark_records,
    place_rings,
    restore_maxima,
    room_of_rings,
    take_pending,
)
from features.thinning import ThinLog, Thinned, count_again, put_back, thin
from features.trends import TREND_FLOATS, run_trends
from features.windows import (
    BOOK,
    BORN,
    HEAD,
    KEPT,
    LOGGED,
    NEWEST,
    NOTED,
    PLACED,
    SAVED,
    levels_at,
    longest_at,
    places_at,
    read_ring,
    room_for,
    run_ring,
    slot_layout,
)

__all__ = ["NAME_BYTES", "EntityState", "RingState"]

Arrays = dict[str, npt.NDArray[Any]]
Kernel = Callable[..., None]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Notes = npt.NDArray[np.uint32]

_WEIGHING = {
    cast(Kernel, run_anchors): "anchors",
    cast(Kernel, run_baselines): "anchors",
    cast(Kernel, run_weeks): "weeks",
    cast(Kernel, run_seasons): "weeks",
}
"""Kernels of slow twins, which say how much a row's value weighs, and of those that ask."""

NAME_BYTES = 128
"""Longest name kept of an entity whose silence is told; chosen: that of a host. Longer ones are
cut."""

ARENA_MIN = 1 << 10
MARKS_MIN = 1 << 5
"""Records and logged marks a ring starts with room for; chosen: some tens of kilobytes a group."""

ARENA_GROWTH = 8
"""An arena grows by this part of itself: large arrays grow in place, as `features.slots.larger`
says, and there are few of them, but most of the memory is theirs."""

SLICE_MIN = 1 << 6
"""Slots that are copied at once however few a part is; chosen: they take as long as the calls."""

PURGE_SLACK_US = 60_000_000
"""A pair is forgotten so much after it has stopped to matter to the oldest row that its entity may
still get; chosen: a pane counts records for up to 10 s more than its window."""


class RingState:
    """One ring of records per slot, in an arena, and the pairs met.

    Parameters
    ----------
    ring : what it keeps
    exact_max : records above which the longest window's tail is merged (`features.panes`), 0: never
    distinct_max : different others in the longest window above which an entity's pairs are thinned
        (`features.sampling`), 0: never

    Attributes
    ----------
    thinned : pairs that late rows may want back
    """

    def __init__(self, ring: Ring, exact_max: int = 0, distinct_max: int = DISTINCT_MAX) -> None:
        self.ring = ring
        exact_us = pane_exact_us(ring.windows_us)
        longest_us = int(ring.windows_us.max())
        self.paned = exact_max > 0 and exact_us < longest_us
        self.panes_book = np.full(PANE_BOOK, -1, np.int64)
        self.panes_book[[TOP, USED, APPROXIMATED, EXCESS]] = 0
        self.panes_book[EXACT_MAX] = exact_max if self.paned else 0
        self.panes_book[[EXACT_FROM_US, LONGEST_US]] = exact_us, longest_us
        words = pane_words(*ring.shape[1:])
        # Of another type where there are none: the kernels are compiled without them then.
        self._panes: npt.NDArray[Any] = np.zeros((0, 2 * words), np.int32)
        if self.paned:
            self._panes = np.zeros((0, words), np.int64)
        self._shape = tuple(ring.shape[1:])
        self._config = ring.config
        self._int_columns, self._float_columns = slot_layout(*ring.shape, self.paned)
        self.longest = longest_at(*ring.shape)
        self._places = np.array(places_at(*ring.shape), np.int64)
        self.ints = np.zeros((0, self._int_columns), np.int64)
        self.floats = np.zeros((0, self._float_columns))
        self._arena = np.zeros((ARENA_MIN, ring.record_words), np.int64)
        self._view()
        self.marked = np.zeros((MARKS_MIN, 2), np.int64)
        self.pairs = PairTable(ring.ttl_us, distinct_max)
        self.thinned = ThinLog()
        self.book = np.full(BOOK, -1, np.int64)
        self.book[[TOP, USED, LOGGED, PLACED]] = 0

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of: all but the views, which would be arrays of their own in it."""
        views = ("arena_ints", "arena_reals")
        return {name: value for name, value in self.__dict__.items() if name not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Be a copy: its views are of its own arena."""
        self.__dict__.update(state)
        self._view()

    def _view(self) -> None:
        """See the arena's records as words and as reals."""
        self.arena_ints = self._arena.view(np.uint32) if self.ring.narrow else self._arena
        self.arena_reals = self._arena.view(np.float64)

    def memory_parts(self, used: int) -> dict[str, int]:
        """Bytes of all arrays by what they hold, see `EntityState.memory_parts`.

        Parameters
        ----------
        used : slots that have an entity
        """
        live = int((self.ints[:used, HEAD] - self.ints[:used, self.longest]).sum())
        records = live * 8 * self.ring.record_words
        return {
            "records": records,
            "idle": self._arena.nbytes - records,
            "pairs": self.pairs.memory_bytes + self.marked.nbytes + self.thinned.memory_bytes,
            "slots": self.ints.nbytes + self.floats.nbytes,
            "panes": self._panes.nbytes,
        }

    def grow(self, capacity: int) -> None:
        """Make room for so many slots."""
        self.ints.resize((capacity, self._int_columns), refcheck=False)
        self.floats.resize((capacity, self._float_columns), refcheck=False)

    def _reserve_records(self, incoming: int) -> None:
        """Make room for so many more records at the top of the arena."""
        need = int(self.book[TOP]) + incoming
        if need > len(self._arena):
            size = len(self._arena)
            size = max(size + max(size // ARENA_GROWTH, ARENA_MIN), need)
            self._arena.resize((size, self._arena.shape[1]), refcheck=False)
            self._view()

    def _grow_pairs(self, reach: Callable[[Int64], None]) -> None:
        """Make room for a row's pairs, forgetting those that no row can ask for."""
        born = self.ints[:, BORN].copy()
        if not born.any():
            born = born[:0]
        heads = self.ints[: len(born), HEAD].copy()
        # An entity's rows are taken no earlier than its newest, but for late ones.
        newest_us = self.ints[:, NEWEST].copy()
        reach(newest_us)
        newest_us -= PURGE_SLACK_US
        self.pairs.grow(len(self.ring.others), newest_us, born, heads)

    def run(
        self,
        slots: Int64,
        taken_us: Int64,
        head: Int64,
        reals: Float64,
        before: Notes,
        out: Float64,
        reach: Callable[[Int64], None],
    ) -> None:
        """Let the rows pass; fills their columns of `out`, and of `before` as `run_ring` says.

        Parameters
        ----------
        reach : lowers times by slot to that of the oldest row that may still be put in its place
        """
        ring, pairs = self.ring, len(self.ring.others)
        done = 0
        while True:
            done = run_ring(
                done,
                slots,
                taken_us,
                head,
                reals,
                self._config,
                ring.plan,
                ring.plan_at,
                self.ints,
                self.floats,
                self.arena_ints,
                self.arena_reals,
                self.pairs.table,
                self.pairs.numbers,
                self.marked,
                self.book,
                before,
                self._panes,
                self._panes.view(np.float64),
                self.panes_book,
                out,
            )
            if done == len(slots):
                return
            if self.book[LOGGED] + pairs > len(self.marked):
                self.marked.resize((2 * len(self.marked), 2), refcheck=False)
                continue
            if self.pairs.numbers[FILLED] + pairs > self.pairs.numbers[ROOM]:
                self._grow_pairs(reach)
                continue
            if self.pairs.numbers[LEVELED] == CROWDED:
                self.pairs.numbers[LEVELED] = 1
                self._thin(int(slots[done]))
                continue
            row = self.ints[slots[done]]
            self._reserve_records(room_for(int(row[HEAD] - row[KEPT])))
            if self.paned:
                self._reserve_panes(2 * int(row[PANE_HEAD] - row[PANE_KEPT]) + ARENA_MIN)

    def _thin(self, slot: int) -> None:
        """Thin a slot's pairs where it has too many of a column."""
        pairs, shape = self.pairs, np.array(self.ring.shape, np.int64)
        pairs.settle()
        # Of so many few are written, and memory that is not written is not taken.
        gone = np.empty((len(pairs), COLUMNS), np.int64)
        state = (self.ints, self.arena_ints, pairs.table, pairs.numbers)
        column, many = thin(slot, shape, *state, gone)
        if column < 0:
            return
        self._count_again(slot, column, True)
        if self.book[PLACED]:
            self.thinned.add(slot, column, int(self.ints[slot, HEAD]), gone[:many].copy())

    def _count_again(self, slot: int, column: int, windows_too: bool) -> None:
        """See `features.thinning.count_again`."""
        shape = np.array(self.ring.shape, np.int64)
        panes = (self.paned, self._panes)
        count_again(slot, column, shape, self.ints, self.pairs.table, *panes, windows_too)

    def put_back(self, items: Sequence[Thinned], heads: Mapping[int, int], first: bool) -> None:
        """Put pairs back that went since slots had records up to `heads`, see `put_back`.

        Parameters
        ----------
        first : whether the rows since are still to be undone
        """
        pairs, many = self.pairs, sum(len(one.entries) for one in items)
        if first and items:
            pairs.settle()
            if pairs.numbers[FILLED] + many > pairs.numbers[ROOM]:
                nobody = np.zeros(0, np.int64)
                pairs.grow(many, nobody, nobody, nobody)
        for one in items:
            state = (self.ints, self.arena_ints, pairs.table, pairs.numbers)
            put_back(one.slot, one.column, one.entries, heads[one.slot], first, *state)

    def count_panes_again(self, items: Sequence[Thinned]) -> None:
        """Let panes count the pairs of columns as they are now."""
        if self.paned:
            for slot, column in dict.fromkeys((one.slot, one.column) for one in items):
                self._count_again(slot, column, False)

    def warm_up(self) -> None:
        """Compile (or load from the cache) what only runs where pairs are thinned."""
        if len(self.ring.others) and len(self.ints):
            self._thin(0)
            self._count_again(0, 0, False)
            nothing = Thinned(0, 0, 0, 0, np.zeros((0, COLUMNS), np.int64))
            self.put_back([nothing], {0: 0}, True)

    def _reserve_panes(self, incoming: int) -> None:
        """Make room for so many more panes at the top of their arena."""
        need, size = int(self.panes_book[TOP]) + incoming, len(self._panes)
        if need > size:
            size = max(size + size // ARENA_GROWTH, need)
            self._panes.resize((size, self._panes.shape[1]), refcheck=False)

    def read(self, slots: Int64, at_us: Int64, code: int, out: Float64) -> None:
        """Fill in the windows' columns of `out` as of some times, see `read_ring`."""
        ring = self.ring
        arena = (self.arena_ints, self.arena_reals)
        table = (self._config, ring.plan, ring.plan_at)
        panes = (self._panes, self._panes.view(np.float64), self.panes_book)
        read_ring(slots, at_us, code, *table, self.ints, self.floats, *arena, *panes, out)

    def clear(self, slots: Int64) -> None:
        """Empty the rings of slots that go to other entities."""
        shape = np.array(self.ring.shape, np.int64)
        if self.paned:
            clear_panes(slots, self.ints, self.panes_book, self._panes)
        clear_rings(slots, self.ints, self.floats, shape, self.book, self.arena_ints)

    def undo_panes(self, slots: Int64, head: Int64, before: Notes) -> None:
        """Let panes be as before rows, as `features.replay.undo_pairs` does for records."""
        if self.paned:
            ring = self.ring
            feeds = (ring.feeds, ring.others)
            undo_panes(
                slots,
                head,
                before,
                int(self.book[NOTED]),
                *feeds,
                self.ints,
                self._shape,
                self._panes,
            )

    def begin(self, everything: bool) -> Arrays:
        """Begin a snapshot of this moment; returns the marks no snapshot has."""
        self.pairs.begin(everything)
        marked = self.marked[: 0 if everything else int(self.book[LOGGED])].copy()
        self.book[LOGGED] = 0
        return {"marked": marked, **self.thinned.dump()}

    def copy(self, slots: Int64, everything: bool, parts: int) -> Arrays:
        """State of some slots as far as no snapshot has it (or all), and a part of the pairs."""
        live = count_records(slots, self.ints, KEPT, everything)
        rows = np.empty((len(slots), self._int_columns), np.int64)
        live_ints = np.empty((live, 2), np.int64)
        live_reals = np.empty((live, len(self.ring.columns)))
        kept = len(self.ring.flag_bits) + 2 * len(self.ring.others)
        arena = (self.arena_ints, self.arena_reals)
        copy_rings(slots, self.ints, self._places, kept, *arena, rows, live_ints, live_reals)
        panes = {}
        if self.paned:
            shape = (count_panes(slots, self.ints), self._panes.shape[1])
            panes["panes"] = np.empty(shape, np.int64)
            copy_panes(slots, self.ints, self._panes, rows, panes["panes"])
        return {
            "ints": rows,
            "floats": np.take(self.floats, slots, axis=0),
            "live_ints": live_ints,
            "live_reals": live_reals,
            "pairs": self.pairs.copy(parts),
            **panes,
        }

    def load(self, slots: Int64, arrays: Arrays) -> None:
        """Put saved slots back; `settle` is called after the last.

        Raises
        ------
        ValueError : records are missing between what is there and the snapshot
        """
        rows, floats = self._fitting(arrays)
        places = self.ints[slots, -PANE_PLACES:]
        # Blocks given back may not fit the new ones; room for all of them anew is always enough.
        self._reserve_records(room_of_rings(rows, KEPT))
        wrong = place_rings(
            slots,
            rows,
            arrays["live_ints"],
            arrays["live_reals"],
            self.ints,
            KEPT,
            self.book,
            self.arena_ints,
            self.arena_reals,
        )
        if wrong >= 0:
            raise ValueError(f"slot {slots[wrong]} does not continue the snapshot before")
        first = np.full(len(self.ints), np.iinfo(np.int64).max)
        first[slots] = rows[:, SAVED]
        mark_records(arrays["marked"], first, self.ints, KEPT, self.arena_ints)
        self.floats[slots] = floats
        if self.paned and "panes" in arrays:
            panes = arrays["panes"]
            self._reserve_panes(len(panes) + SMALLEST * len(slots))
            place_panes(slots, panes, self.ints, places, self.panes_book, self._panes)
        self.pairs.load(arrays["pairs"])
        self.thinned.load(arrays)

    def _fitting(self, arrays: Arrays) -> tuple[Int64, Float64]:
        """Saved rows and sums as this ring has them: with panes, or without.

        A ring that has none goes on with the records that were not merged.
        """
        rows, floats = arrays["ints"], arrays["floats"]
        if self.paned and "panes" not in arrays:
            more = self._int_columns - rows.shape[1], self._float_columns - floats.shape[1]
            rows = np.pad(rows, ((0, 0), (0, more[0])))
            floats = np.pad(floats, ((0, 0), (0, more[1])))
        elif "panes" in arrays and not self.paned:
            rows, floats, panes = rows.copy(), floats.copy(), arrays["panes"]
            at = 4 * (len(self.ring.windows_us) - 1) * len(self.ring.columns)
            window = (self.longest, at, self._shape)
            dissolve(rows, floats, panes, panes.view(np.float64), *window)
            rows = np.ascontiguousarray(rows[:, : self._int_columns])
            floats = floats[:, : self._float_columns]
        return rows, floats

    def settle(self, used: int) -> None:
        """Find again, after the last `load`, what is in no snapshot."""
        at, pairs = levels_at(*self.ring.shape), len(self.ring.others)
        counts = self.ints[:used, at - pairs : at]
        levels = self.ints[:used, at : at + WORDS * pairs]
        bound = self.pairs.numbers[BOUND]
        if levels.any() or (bound and (counts > bound).any()):
            self.pairs.numbers[LEVELED] = 1
        restore_maxima(
            used,
            self.ints,
            np.array(self.ring.shape, np.int64),
            self.ring.max_columns,
            self.ring.signs,
            self.arena_ints,
            self.arena_reals,
        )


def _kernels(
    plan: EntityPlan,
) -> Iterator[tuple[Kernel, tuple[Any, ...], list[tuple[str, int, type]]]]:
    """Kernel, its tables and its state (name, columns per slot, type), in the order they run."""
    if plan.rates is not None:
        width = len(plan.rates.flag_bits) * RATE_FLOATS
        yield run_rates, plan.rates.tables, [("rates", width, np.float64)]
    if plan.geo is not None:
        width = len(plan.geo.feeds) * GEO_FLOATS
        yield run_geo, (plan.places, *plan.geo.tables), [("geo", width, np.float64)]
    if plan.members is not None:
        many = len(plan.members.others) * MEMBERS_MAX
        yield (
            run_members,
            plan.members.tables,
            [
                ("member_names", many, np.int64),
                ("members", many * MEMBER_FLOATS, np.float64),
            ],
        )
    if plan.anchors is not None:
        width = len(plan.anchors.logs) * ANCHOR_FLOATS
        tables = (*plan.anchors.tables, plan.anchors.flags)
        yield run_anchors, tables, [("anchors", width, np.float64)]
    if plan.bases is not None:
        histories = int(plan.bases.histories.max()) + 1
        yield (
            run_baselines,
            (*plan.bases.tables, plan.bases.flags, plan.bases.slow),
            [
                ("bases", len(plan.bases.logs) * BASE_FLOATS, np.float64),
                ("history", histories * HISTORY, np.float64),
                ("order", histories * HISTORY, np.uint8),
            ],
        )
    if plan.weeks is not None:
        many = len(plan.weeks.logs)
        yield (
            run_weeks,
            plan.weeks.tables,
            [("weeks", many * WEEK_FLOATS, np.float32), ("week_us", many, np.int64)],
        )
    if plan.seasons is not None:
        width = len(plan.seasons.logs) * SEASON_FLOATS
        yield (
            run_seasons,
            (*plan.seasons.tables, plan.seasons.slow),
            [("seasons", width, np.float64)],
        )
    if plan.trends is not None:
        width = len(plan.trends.logs) * TREND_FLOATS
        yield run_trends, plan.trends.tables, [("trends", width, np.float64)]
    yield from _further_kernels(plan)


def _further_kernels(
    plan: EntityPlan,
) -> Iterator[tuple[Kernel, tuple[Any, ...], list[tuple[str, int, type]]]]:
    """The same, those that came later."""
    if plan.risk is not None:
        instances, counting = len(plan.risk.counted), int((plan.risk.counted >= 0).sum())
        yield (
            run_risk,
            plan.risk.tables,
            [
                ("risk", instances * RISK_FLOATS, np.float64),
                ("risk_frauds", instances * RISK_DAYS, np.uint16),
                ("risk_events", counting * RISK_DAYS, np.uint32),
            ],
        )
    if plan.correlations is not None:
        instances = len(plan.correlations.others)
        yield (
            run_correlations,
            plan.correlations.tables,
            [
                ("partner_names", instances * PARTNERS_MAX, np.int64),
                ("partners", instances * PARTNERS_MAX * PARTNER_FLOATS, np.float64),
                ("bonds", instances * PARTNERS * PAIR_FLOATS, np.float64),
            ],
        )
    if plan.categories is not None:
        instances = len(plan.categories.others)
        yield (
            run_categories,
            plan.categories.tables,
            [
                ("categories", instances * CATEGORIES, np.uint32),
                ("entropies", instances * ENTROPY_INTS, np.int64),
            ],
        )


def _note_columns(rings: Sequence[Ring]) -> list[int]:
    """Column of each ring's first note: rings that no event type feeds both share theirs."""
    columns: list[int] = []
    for ring in rings:
        ends = [
            column + NOTE_WORDS * len(other.others)
            for column, other in zip(columns, rings, strict=False)
            if (ring.feeds & other.feeds).any()
        ]
        columns.append(max(ends, default=0))
    return columns


def _of_known(head: Int64, slots: Int64) -> tuple[Int64, Int64]:
    """Rows and slots but those of entities whose newest event is older than their time to live:
    they are of no one again."""
    if (slots < 0).any():
        return head[slots >= 0], slots[slots >= 0]
    return head, slots


class EntityState:
    """All state of one entity type in one group.

    Parameters
    ----------
    plan : what the kernels are told
    late_us : rows that come so much late are put in their place (`features.late`), 0 for none
    ttl_h : hours after which idle entities are forgotten, see `features.expiry.time_to_live_us`
    exact_max : of an entity's events in a window of an hour, those that are kept one by one (see
        `features.panes`), 0 for all
    distinct_max : different others of an entity in its longest window above which its pairs are
        thinned (`features.sampling`), 0: never
    """

    def __init__(
        self,
        plan: EntityPlan,
        late_us: int = 0,
        ttl_h: Mapping[str, float] | None = None,
        exact_max: int = 0,
        distinct_max: int = DISTINCT_MAX,
    ) -> None:
        self.plan = plan
        self.table = SlotTable(time_to_live_us(plan, ttl_h or {}))
        self.rings = [RingState(ring, exact_max, distinct_max) for ring in plan.rings]
        for ring, column in zip(self.rings, _note_columns(plan.rings), strict=True):
            ring.book[NOTED] = column
        self.labels = LabelBook()
        self._fixed: dict[str, npt.NDArray[Any]] = {"frozen_until_us": np.zeros((0, 1), np.int64)}
        self._frozen_until_us = 0  # the latest of all slots: before it rows are looked at
        self._kernels: list[tuple[Kernel, tuple[Any, ...], list[npt.NDArray[Any]]]] = []
        for kernel, tables, columns in _kernels(plan):
            made: dict[str, npt.NDArray[Any]] = {
                name: np.zeros((0, width), dtype) for name, width, dtype in columns
            }
            self._fixed |= made
            self._kernels.append((kernel, tables, list(made.values())))
        if plan.sequence is not None:
            self._fixed["vectors"] = np.zeros((0, STEPS * WIDTH), np.int16)
            self._fixed["places"] = np.zeros((0, 2), np.int64)
        self.wheel: Wheel | None = None
        self._swept_tick = -1
        if plan.silence is not None:
            self.wheel = Wheel()
            self._fixed |= {
                "silence_ints": np.zeros((0, SILENCE_INTS), np.int64),
                "silence_floats": np.zeros((0, SILENCE_FLOATS)),
                "silence_tops": np.zeros((0, SILENCE_TOPS), np.float32),
                "silence_names": np.zeros((0, NAME_BYTES), np.uint8),
            }
        self.emptied = EmptiedWheel(plan)
        self._fixed["fed_us"] = np.zeros((0, len(plan.rings)), np.int64)
        self.late = LateRows(self, late_us)
        self._pending = np.zeros(0, np.uint8)
        self._slots = np.zeros(0, np.int64)
        self._copied: list[Arrays] = []
        self._copying = self._everything = False
        self._at = 0
        self._held: list[tuple[Int64, Int64]] | None = None
        self._grow()

    @classmethod
    def of_arrays(
        cls, plan: EntityPlan, arrays: Mapping[str, tuple[np.dtype[Any], int]]
    ) -> EntityState:
        """A state that keeps snapshots of these arrays (name -> type and columns by slot) and of
        the plan's rings, whatever kernels they are of; it is not for rows."""
        state = cls(plan)
        made = {name: np.zeros((0, width), dtype) for name, (dtype, width) in arrays.items()}
        state._fixed = made
        state._grow()
        return state

    def _grow(self) -> None:
        """Give every array by slot the table's capacity."""
        for array in self._fixed.values():
            array.resize((self.table.capacity, array.shape[1]), refcheck=False)
        self._pending.resize(self.table.capacity, refcheck=False)
        for ring in self.rings:
            ring.grow(self.table.capacity)
        self.late.grow(self.table.capacity)
        if self.wheel is not None:
            self.wheel.grow(self.table.capacity)
        self.emptied.grow(self.table.capacity)

    def by_slot(self) -> Arrays:
        """All state of slots that late rows change: name -> array by slot, the very arrays.

        How long one is frozen and what it is called are said by others; when rings were fed last
        is the newest of their times, whatever the order.
        """
        apart = ("frozen_until_us", "silence_names", "fed_us")
        found = {name: a for name, a in self._fixed.items() if not name.startswith(apart)}
        for i, ring in enumerate(self.rings):
            found |= {f"ring{i}.ints": ring.ints, f"ring{i}.floats": ring.floats}
        return found

    @property
    def arrays(self) -> Arrays:
        """State by slot but that of rings: name -> array by slot, the very arrays."""
        return dict(self._fixed)

    @property
    def slot_bytes(self) -> int:
        """Bytes a slot takes in all arrays, whatever its entity does."""
        table = (self.table.keys, self.table.newest_us, self.table.first_us, self.table.dirty)
        rings = (array for ring in self.rings for array in (ring.ints, ring.floats))
        return sum(a.nbytes // len(a) for a in (*self._fixed.values(), *rings, *table))

    @property
    def approximated(self) -> int:
        """Rows whose longest window was too long by less than a pane, counted by ring."""
        return sum(int(ring.panes_book[APPROXIMATED]) for ring in self.rings)

    @property
    def excess_max(self) -> int:
        """Most events too many that such a window can have counted."""
        return max((int(ring.panes_book[EXCESS]) for ring in self.rings), default=0)

    @property
    def estimated(self) -> int:
        """Rows whose counts of different others were estimates, counted by ring."""
        return sum(int(ring.pairs.numbers[ESTIMATED]) for ring in self.rings)

    @property
    def one_in_max(self) -> int:
        """Of so many pairs at most one was kept then; 0 where all were."""
        return max((int(ring.pairs.numbers[ONE_IN]) for ring in self.rings), default=0)

    @property
    def memory_parts(self) -> dict[str, int]:
        """Bytes of all arrays by what they hold.

        Returns
        -------
        `records` that a window counts; what is `idle` of the arenas they lie in (or kept for late
        rows alone); `panes`, with what is idle there; `pairs`; all else by entity, in `slots`; and
        `late`, the log and the checkpoints
        """
        fixed = sum(a.nbytes for a in self._fixed.values())
        fixed += self._pending.nbytes + self.table.memory_bytes + self.emptied.memory_bytes
        if self.wheel is not None:
            fixed += self.wheel.memory_bytes
        found = {"slots": fixed, "late": self.late.memory_bytes}
        for ring in self.rings:
            for part, size in ring.memory_parts(self.table.used).items():
                found[part] = found.get(part, 0) + size
        return found

    @property
    def memory_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(self.memory_parts.values())

    def process(
        self,
        head: Int64,
        reals: Float64,
        round_: int = -1,
        clock_us: int = 0,
        due_us: int = -1,
    ) -> tuple[Float64, npt.NDArray[np.int16] | None, Changed | None]:
        """Features of rows in order.

        Parameters
        ----------
        round_, clock_us, due_us : of `GroupRows`

        Returns
        -------
        float64 (n, width) by the plan of each row's event type; int16 (own rows, 16, 12); and what
        rows of earlier rounds give now, where late ones have come
        """
        if self.late.active(clock_us):
            given = self.late.process(head, reals, round_, clock_us, due_us)
        else:
            slots, taken_us, _ = self.intern(head)
            self.keep_all(slots, head)
            marked = self.marked(slots, taken_us, head)
            given = *self.run(slots, taken_us, marked, reals, self.notes(0), 0), None
            self.listen(slots, head)
        if self.emptied.active:
            slots = self.table.met
            if len(slots) != len(head):
                slots = self.table.find(head[:, 0].view(np.uint64))
            elif self.wheel is not None:
                slots = self.table.known(slots)
            head, slots = _of_known(head, slots)
            if len(slots):
                self.emptied.hear(slots, head, self._fixed["fed_us"])
        return given

    def intern(self, head: Int64, placed: bool = False) -> tuple[Int64, Int64, Int64]:
        """As of `SlotTable.intern`; all arrays by slot grow with the table."""
        before = self.table.capacity
        found = self.table.intern(head, placed)
        if self.table.capacity != before:
            self._grow()
        return found

    def listen(self, slots: Int64, head: Int64) -> None:
        """Let rhythms hear of rows that have passed (a snapshot under way has their slots)."""
        wheel, silence = self.wheel, self.plan.silence
        if wheel is None or silence is None:
            return
        if self._held is not None:
            self._held.append((slots, head))
            return
        head, slots = _of_known(head, self.table.known(slots))
        names = ("silence_ints", "silence_floats", "silence_tops")
        wheel.reserve(len(head))
        kernel = cast(Kernel, run_silence)
        kernel(slots, head, *silence.tables, *(self._fixed[n] for n in names), wheel.notices)
        wheel.file(slots, self._fixed["silence_ints"])

    def hold_back(self) -> list[tuple[Int64, Int64]]:
        """Keep from rhythms what they would hear until `go_on`; the list takes it (slots, rows)."""
        self._held = []
        return self._held

    def go_on(self) -> None:
        """Let rhythms hear of rows again."""
        self._held = None

    def rhythms(self, slots: Int64, clock_us: int) -> Rhythms | None:
        """Rhythms of slots that are about to go back; None where the entity type has none."""
        if self.wheel is None or self.plan.silence is None:
            return None
        fixed = self._fixed
        state = (fixed["silence_ints"], fixed["silence_floats"], fixed["silence_tops"])
        return Rhythms(slots, self.plan.silence, state, self.wheel, clock_us)

    def keep_all(self, slots: Int64, head: Int64) -> None:
        """Copy what a snapshot under way needs of rows about to pass: their slots, their pairs."""
        if self._copying:
            self._copy(slots, parts=0)
            for ring in self.rings:
                ring.pairs.keep(slots, head, ring.ring.others)

    def notes(self, rows: int) -> Notes:
        """Room for what the rings' pairs said before rows."""
        return np.zeros((rows, self.note_words), np.uint32)

    @property
    def note_words(self) -> int:
        """Words of what the rings' pairs say before a row, see `_note_columns`."""
        return max((int(r.book[NOTED]) + NOTE_WORDS * len(r.ring.others) for r in self.rings),
                   default=0)  # fmt: skip

    def run(
        self,
        slots: Int64,
        taken_us: Int64,
        head: Int64,
        reals: Float64,
        notes: Notes,
        first: int,
    ) -> tuple[Float64, npt.NDArray[np.int16] | None]:
        """Let rows pass the kernels, each entity's in order.

        Parameters
        ----------
        notes, first : what the rings' pairs said before a row is noted at `first` + its place,
            modulo the length; 0 for not at all
        """
        out = np.full((len(head), self.plan.width), np.nan)
        for ring in self.rings:
            ring.book[PLACED] = first
            ring.run(slots, taken_us, head, reals, notes, out, self.late.reach)
        slow = {"anchors": self.plan.anchors, "weeks": self.plan.weeks}
        weights = {
            name: np.empty((len(head), 0 if its is None else len(its.logs)))
            for name, its in slow.items()
        }
        for kernel, tables, arrays in self._kernels:
            its = (weights[_WEIGHING[kernel]],) if kernel in _WEIGHING else ()
            kernel(slots, taken_us, head, reals, *tables, *arrays, *its, out)
        sequence = self.plan.sequence
        if sequence is None:
            return out, None
        own = int(np.count_nonzero(head[:, 2] == sequence.own))
        emitted = np.empty((own, STEPS, WIDTH), np.int16)
        vectors, places = self._fixed["vectors"], self._fixed["places"]
        kernel = cast(Kernel, run_sequence)
        kernel(slots, taken_us, head, reals, *sequence.tables, vectors, places, out, emitted)
        return out, emitted

    def name(self, keys: Int64, names: npt.NDArray[np.uint8]) -> None:
        """Remember what entities are called, uint8 (n, 128) in UTF-8; strangers are passed over."""
        slots = self.table.find(keys.view(np.uint64))
        known = np.flatnonzero(slots >= 0)
        self.keep(slots[known])
        self._fixed["silence_names"][slots[known]] = names[known]
        self.table.dirty[slots[known]] = 1

    def overdue(self, clock_us: int, most: int) -> tuple[Overdue, Int64, npt.NDArray[np.uint8]]:
        """What is to be told of silence at the end of a round, with keys and names of its rows.

        Parameters
        ----------
        clock_us : event-time clock, 0 where it is not known: nothing is due
        most : absences of entities that have not spoken again
        """
        if self.wheel is None:
            raise StateError(f"{self.plan.entity!r} has no rhythm; this is a bug")
        table, fixed = self.table, self._fixed
        state = (fixed["silence_ints"], fixed["silence_floats"])
        told, changed = self.wheel.speak(clock_us, table, state, most, self.keep)
        table.dirty[changed] = 1
        slots = told.found[:, 0]
        return told, table.whose(slots), fixed["silence_names"][slots]

    def run_empty(self, clock_us: int, most: int) -> list[Emptied]:
        """Views of entities whose windows have run empty, as of then; see `features.emptied`.

        Parameters
        ----------
        clock_us : event-time clock, 0 where it is not known: nothing is told
        most : entities at the most
        """
        table, fixed = self.table, self._fixed
        if not self.emptied.active or clock_us <= 0 or not self.emptied.waits(clock_us):
            return []
        slots, times, views = self.emptied.speak(
            clock_us, most, table.keys, table.newest_us, fixed["fed_us"]
        )
        found: list[Emptied] = []
        for v, event in enumerate(self.emptied.views):
            at = np.flatnonzero(views[:, v])
            if len(at):
                values = self._as_of(event, slots[at], times[at])
                keys = table.keys[slots[at]]
                found.append(Emptied(event, self.plan.entity, keys, times[at], values))
        return found

    def _as_of(self, event: str, slots: Int64, times: Int64) -> Float64:
        """What windows and usual counts of a view would say at some times if nothing came."""
        values = np.full((len(slots), self.plan.width), np.nan)
        code = event_code(event)
        for ring in self.rings:
            ring.read(slots, times, code, values)
        if self.plan.rates is not None:
            rates = self.plan.rates
            read_rates(slots, times, code, rates.plan, rates.plan_at, self._fixed["rates"], values)
        return values[:, : len(self.plan.features[event])]

    def label(self, labels: Sequence[Label]) -> int:
        """Let verdicts become known of the entities there are; gives how many were news.

        An entity never seen, or forgotten, has no state and gets none. An event later than the
        newest its entity has seen is taken at that time. What is usual of the entity that a fraud
        is of (its event type's primary one) stands still for a while, unless the verdict is
        overturned; what it does of late is usual where the verdict is genuine.
        """
        named = [
            (key, label)
            for label in labels
            for entity, key in label.entities
            if entity == self.plan.entity
        ]
        found = self.table.find(np.array([key for key, _ in named], np.int64).view(np.uint64))
        rows: list[tuple[int, ...]] = []
        for slot, (key, label) in zip(found.tolist(), named, strict=True):
            if slot < 0:
                continue
            verdict, newest_us = FRAUD if label.fraud else GENUINE, int(self.table.newest_us[slot])
            time_us = min(label.time_us, newest_us)
            # One who was forgotten and is back is another: what was said before was of no one.
            who = key ^ int(self.table.first_us[slot])
            primary = label.primary == self.plan.entity
            until_us = newest_us + FREEZE_S * 1_000_000 if primary and label.fraud else 0
            frozen_us = self.labels.frozen_until_us(who)
            before, time_us = self.labels.take(label.event ^ who, time_us, verdict, who, until_us)
            if verdict == before:
                continue
            rows.append((slot, label.code, time_us, verdict, before))
            if primary:
                one = np.array([key]).view(np.uint64)
                if label.fraud:
                    self.freeze(one, until_us)
                else:
                    self._thaw(slot, frozen_us, self.labels.frozen_until_us(who))
                    self.accept(one)
        if rows and self.plan.risk is not None:
            self._apply(np.array(rows, np.int64).T.copy(), self.plan.risk)
        return len(rows)

    def _apply(self, columns: Int64, risk: Risk) -> None:
        """Let verdicts be known, int64 (5, n): slots and the arguments of `apply_labels` after."""
        slots = columns[0]
        kernel = cast(Kernel, apply_labels)
        names = ("risk", "risk_frauds", "risk_events")
        newest_us = self.table.newest_us

        def change(which: Int64, rows: Int64, states: list[npt.NDArray[Any]]) -> None:
            newest = np.zeros(len(states[0]), np.int64)
            newest[rows] = newest_us[slots[which]]
            known = np.ascontiguousarray(columns[1:, which])
            kernel(rows, *known, newest, risk.feeds, risk.counted, *states)

        self.keep(slots)
        state = [self._fixed[name] for name in names]
        kernel(*columns, newest_us, risk.feeds, risk.counted, *state)
        self.late.apply(slots, names, change)
        self.table.dirty[slots] = 1

    def marked(self, slots: Int64, taken_us: Int64, head: Int64) -> Int64:
        """The rows' heads, those of frozen entities marked; `head` itself where none is."""
        if self._frozen_until_us == 0 or int(taken_us.min()) >= self._frozen_until_us:
            return head
        marked = head.copy()
        mark_frozen(slots, taken_us, self._fixed["frozen_until_us"], marked)
        return marked

    def freeze(self, keys: npt.NDArray[np.uint64], until_us: int) -> int:
        """Let what is usual of some entities stand still: their rows are scored and not learned.

        Never shortens a freeze; an entity that was never met has nothing to protect. In force from
        the next `process` on, so from the round in which the label came.

        Parameters
        ----------
        keys : uint64 (n,), of the entities
        until_us : event time from which they learn again

        Returns
        -------
        int, how many of them are known
        """
        slots = self.table.find(keys)
        slots = slots[slots >= 0]
        if len(slots):
            self.keep(slots)
            frozen = self._fixed["frozen_until_us"]
            frozen[slots, 0] = np.maximum(frozen[slots, 0], until_us)
            self.table.dirty[slots] = 1
            self._frozen_until_us = max(self._frozen_until_us, until_us)
        return len(slots)

    def _thaw(self, slot: int, before_us: int, until_us: int) -> None:
        """A fraud is overturned: its entity stands still as the frauds that stand want it to."""
        frozen = self._fixed["frozen_until_us"]
        if until_us < before_us and frozen[slot, 0] == before_us:
            self.keep(np.array([slot]))
            frozen[slot, 0] = until_us
            self.table.dirty[slot] = 1

    def expire(self, clock_us: int, rounds: int = 1) -> None:
        """Forget, after a round, entities that have left their slots, and a few of the silent.

        Parameters
        ----------
        clock_us : event-time clock; 0, not known: none is found silent
        rounds : how many have passed since the last call
        """
        self.table.hear(clock_us)
        self.table.settle_ended(clock_us - self.late.late_us - APART_US)
        if self.table.ttl_us and clock_us:
            self._sweep(clock_us, rounds)
        slots = self.table.take_left()
        if self.wheel is not None and len(slots):
            waits = self.wheel.waits(slots, self._fixed["silence_ints"], self.table)
            self.table.put_back(slots[waits])
            slots = slots[~waits]
        if len(slots):
            self.keep(slots)
            if self.wheel is not None:
                ints, floats = self._fixed["silence_ints"], self._fixed["silence_floats"]
                self.wheel.forget(clock_us, ints[slots], floats[slots])
            for array in self._fixed.values():
                array[slots] = 0
            for ring in self.rings:
                ring.clear(slots)
            self.table.release(slots)

    def _sweep(self, clock_us: int, rounds: int) -> None:
        """Let silent entities leave: see `features.expiry` for which are looked at."""
        since_us = clock_us - self.table.ttl_us - SLACK_US
        if self.wheel is None:
            self.table.sweep(since_us, rounds * SWEPT)
        elif clock_us // TICK_US != self._swept_tick:
            self._swept_tick = clock_us // TICK_US
            self.table.sweep_all(since_us - clock_us % TICK_US)

    def forgets(self, clock_us: int) -> bool:
        """Whether peers are to be told of one that is forgotten: now, or by a later clock."""
        wheel, table = self.wheel, self.table
        if wheel is None:
            return False
        if wheel.behind or not table.ttl_us:
            return wheel.behind
        since_us = max(clock_us - table.ttl_us, table.known_from_us) - SLACK_US
        old = np.flatnonzero(table.newest_us[: table.used] < since_us)
        ints, floats = self._fixed["silence_ints"][old], self._fixed["silence_floats"][old]
        return len(peers_now(ints, floats, len(old))) > 0

    def accept(self, keys: npt.NDArray[np.uint64]) -> int:
        """Take what some entities do of late for usual at once: a label said that it is genuine.

        Only what is far from usual is news, see `features.anchors.accept`.

        Parameters
        ----------
        keys : uint64 (n,), of the entities

        Returns
        -------
        int, how many of them are known
        """
        slots = self.table.find(keys)
        slots = np.unique(slots[slots >= 0])
        if "anchors" in self._fixed and len(slots):
            self.keep(slots)
            self.late.accepted(self.accept_again(slots))
            self.table.dirty[slots] = 1
        return len(slots)

    def accept_again(self, slots: Int64) -> Int64:
        """Let the level of the day be usual in slots, int64 (n,); gives those it is news to."""
        if not len(slots):
            return slots
        rows = self._fixed["anchors"][slots]
        before = rows.copy()
        accept(rows)
        self._fixed["anchors"][slots] = rows
        return np.asarray(slots[(rows != before).any(axis=1)])

    def begin(self, everything: bool) -> None:
        """Begin a snapshot of this moment: of what has changed since the last, or of all.

        Raises
        ------
        StateError : the one before has not been taken, and would be lost
        """
        if self._copied:
            raise StateError(
                f"{self.plan.entity}: a snapshot is under way; take it before the next begins"
            )
        slots = self.table.take_dirty()
        if everything:
            slots = np.arange(self.table.used, dtype=np.int64)
        self._pending[slots] = 1
        self._everything, self._slots, self._at = everything, slots, 0
        first: Arrays = {
            "slots": slots,
            "keys": self.table.keys[slots],
            "newest_us": self.table.newest_us[slots],
            "first_us": self.table.first_us[slots],
            "counts": np.array([self.table.late, self.table.expired, self.table.late_forgotten]),
            "ended": self.table.dump_ended(),
        }
        if self.wheel is not None:
            first["left"] = self.wheel.left
        first["labels"] = self.labels.dump(everything)
        first["emptied"] = self.emptied.done.copy()
        for i, ring in enumerate(self.rings):
            first |= {f"ring{i}.{k}": v for k, v in ring.begin(everything).items()}
        first |= {f"late.{k}": v for k, v in self.late.begin(slots, everything).items()}
        self._copied = [first]
        self._copying = True

    def keep(self, slots: Int64) -> None:
        """Copy what a snapshot under way needs of slots that are about to change.

        Rows that pass are looked after by `process`; whoever changes other slots calls this first.
        """
        if self._copying:
            self._copy(slots, parts=0)

    def proceed(self, parts: int) -> bool:
        """Copy one of `parts` parts of the snapshot under way; True where all is copied."""
        if self._copying:
            end = self._at + max(-(-len(self._slots) // parts), SLICE_MIN)
            self._copy(self._slots[self._at : end], parts)
            self._at = end
            scanned = all(ring.pairs.scanned for ring in self.rings)
            self._copying = end < len(self._slots) or not scanned or not self.late.copied
        return not self._copying

    def take(self) -> list[Arrays]:
        """All parts of the snapshot under way, for `features.snapshots.join`."""
        self.proceed(1)
        copied, self._copied = self._copied, []
        return copied

    def _copy(self, slots: Int64, parts: int) -> None:
        """Copy those of some slots that are still to be copied, and a part of the pairs."""
        taken = np.empty(len(slots), np.int64)
        taken = taken[: take_pending(slots, self._pending, taken)]
        arrays = {"copied": taken}
        arrays |= {name: np.take(array, taken, axis=0) for name, array in self._fixed.items()}
        for i, ring in enumerate(self.rings):
            found = ring.copy(taken, self._everything, parts)
            arrays |= {f"ring{i}.{k}": v for k, v in found.items()}
        if parts:
            arrays |= {f"late.{k}": v for k, v in self.late.copy(parts).items()}
        self._copied.append(arrays)

    def load(self, arrays: Arrays) -> None:
        """Put a dump back, oldest first; `settle` is called after the last."""
        slots = arrays["slots"]
        before = self.table.capacity
        self.table.load(slots, arrays["keys"], arrays["newest_us"], arrays["first_us"])
        late, self.table.expired, *forgotten = arrays["counts"].tolist()
        self.table.numbers[LATE] = late
        if forgotten:  # not in a snapshot of before they were counted
            (self.table.late_forgotten,) = forgotten
            self.table.load_ended(arrays["ended"])
        if self.table.capacity != before:
            self._grow()
        copied = arrays["copied"]
        for name, array in self._fixed.items():
            array[copied] = arrays[name]
        self._frozen_until_us = int(self._fixed["frozen_until_us"].max(initial=0))
        if self.wheel is not None and "left" in arrays:  # nor that
            self.wheel.left = arrays["left"]
        self.labels.load(arrays.get("labels", np.zeros((0, 5), np.int64)))
        if "emptied" in arrays:  # not in a snapshot of before there was any
            self.emptied.done[:] = arrays["emptied"]
        for i, ring in enumerate(self.rings):
            prefix = f"ring{i}."
            ring.load(
                copied, {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
            )
        late = {k[5:]: v for k, v in arrays.items() if k.startswith("late.")}
        if any((f"ring{i}.panes" in arrays) != r.paned for i, r in enumerate(self.rings)):
            # Checkpoints of a state with panes are no good for one without: the log begins anew.
            self.late = LateRows(self, self.late.late_us)
            self.late.grow(self.table.capacity)
            for ring in self.rings:
                ring.thinned.clear()
        elif late:  # not in a snapshot that came over from another layout
            self.late.load(slots, late)

    def settle(self) -> None:
        """Find again, after the last `load`, what is in no snapshot."""
        for ring in self.rings:
            ring.settle(self.table.used)
        if self.wheel is not None:
            every = np.arange(self.table.used, dtype=np.int64)
            self.wheel.file(every, self._fixed["silence_ints"])
        self.emptied.settle(self.table.used, self.table.keys, self._fixed["fed_us"])
