"""Rows that come late are put in their place: all is then as had they come in time.

Per entity type and group there is a log of the rows that came within the bound, each with the row
of the same entity before it, and of each entity touched a checkpoint: its state before its first
row of a generation, which is one length of the bound of event time. Where a row comes late, its
entity goes back to the newest checkpoint before the row's place in the global order, and the logged
rows after it pass the kernels again, the late ones among them. What earlier rows give now in place
of what they gave before are corrections.

Why this and no other way. To wait for the bound would delay every score by it. To keep what each
row gave, to find what has changed, would take 240 bytes a row; the logged rows pass once without
the late one in place of it, so that only late rows cost. To take late values off running sums is
exact for sums alone: baselines, histories and homes depend on the order.

Two to three generations are kept, so that a row within the bound always finds a checkpoint before
it: a generation goes when the bound is past all that came before the next one began. What is past
goes by the place furthest behind of those heard of, not by the newest: a partition may be minutes
behind another, and rows of entities they share are in time for their own. Rows ahead of the clock,
as of a producer whose clock is wrong, keep the generations they came in until the clock has passed
them. Of both a quarter of an hour is waited for (`clock.APART_US`). An entity with many rows gets a
checkpoint each `EVERY` rows, too, so that a row that is a little late repeats few. Rings keep the
records that their oldest checkpoint counts. A row for which no checkpoint is old enough is put
behind the oldest and counted apart (`beyond`).

What labels change is no row and has a place among them: counts of frauds are told to checkpoints,
too, and a corrected row keeps what it was given of them, as of its own round; what a verdict makes
usual it makes so again behind the rows that were before it (`features.verdicts`).

Rows of the same time stand by event code, partition, offset and lane; so a row of the same time
that comes later and sorts before counts as late, or a stream would depend on how it was cut.

Memory, at most, beside 32 bytes an entity, where no place is behind another and no row ahead of the
clock; where they are, by so much time more in place of 2 late_s: a quarter of an hour each.
rows/s x 2 late_s x (44 + 8 x (other keys + reals) + 12 x pairs of a row) bytes
+ entities touched in late_s x 2 x (96 + what of their state is not 0) bytes,
and a tenth of that which lies idle. Of a payment these are 592 bytes in all its entity types where
it has a device and an address; a card's checkpoint has 1.8 kB.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from features.checkpoints import Checkpoints
from features.clock import APART_US
from features.errors import ConfigError
from features.events import event_types
from features.logged import (
    CODE_BITS,
    FLAGS_FEW,
    KIND,
    META,
    OFFSET,
    PARTITION,
    ROUND,
    ROW,
    SLOT,
    TIME,
    flags_of,
    log_of,
)
from features.panes import PANE_KEPT, PANE_PLACES, PANE_TAIL
from features.plan import HEAD, EntityPlan
from features.replay import (
    LINKS,
    MARK,
    OLDER,
    OWNER,
    admit,
    choose,
    collect,
    link,
    push_up,
    restore_rings,
    undo_pairs,
    waves,
)
from features.sequence import STEPS, WIDTH
from features.shelf import Shelf
from features.slots import LATE
from features.verdicts import Since, Verdicts
from features.windows import HEAD as HEAD_AT
from features.windows import KEPT, NOTED

if TYPE_CHECKING:
    from features.rhythms import Rhythms
    from features.state import EntityState

__all__ = ["Changed", "LateRows"]

Arrays = dict[str, npt.NDArray[Any]]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Int16 = npt.NDArray[np.int16]
Notes = npt.NDArray[np.uint32]

Change = Callable[[Int64, Int64, list[npt.NDArray[Any]]], None]

_CODE = (1 << CODE_BITS) - 1

EVERY = 128
"""Rows of an entity after which it gets another checkpoint; chosen: a tenth of a millisecond to
repeat, and a checkpoint of 1.5 kB adds 12 bytes a row."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Rows given before that give something else now.

    Parameters
    ----------
    head : int64 (n, 8 + others), as they came
    rounds : int64 (n,), the round in which each came
    values : float64 (n, width of the plan)
    vectors : int16 (n, 16, 12), or None where the entity has no sequence
    differs : bool, as `values`: those that are others than without the late rows
    """

    head: Int64
    rounds: Int64
    values: Float64
    vectors: Int16 | None
    differs: npt.NDArray[np.bool_]


@dataclass(slots=True)
class _Generation:
    """Where one begins: clock and newest event time before it, its first row and checkpoint."""

    start_us: int
    horizon_us: int
    row: int
    checkpoint: int


class LateRows:
    """Log, checkpoints and their use, of one entity type in one group.

    Parameters
    ----------
    state : whose rows
    late_us : bound: a row that comes so much after the newest is put in its place

    Attributes
    ----------
    placed : rows that came late and were put in their place, ever
    beyond : those of them that no checkpoint was old enough for
    """

    def __init__(self, state: EntityState, late_us: int) -> None:
        self.late_us = late_us
        self.placed = self.beyond = 0
        self._state = state
        self._clock_us = self._newest_us = self._due_us = 0
        self._generations: list[_Generation] = []
        plan = state.plan
        self._rows = Shelf(
            {
                "wide": (2, np.int64),
                "meta": (META + (len(plan.flags) > FLAGS_FEW), np.int32),
                "others": (len(plan.others), np.int64),
                "reals": (len(plan.reals), np.float64),
                "notes": (state.note_words, np.uint32),
            }
        )
        if len(event_types()) > _CODE:
            raise ConfigError([f"{len(event_types())} event types: expected at most {_CODE}"])
        self._parts: dict[str, tuple[int, int, npt.DTypeLike]] = {}
        word = 0
        for name, array in state.by_slot().items():
            words = array.shape[1] * array.itemsize // 8
            if 8 * words != array.shape[1] * array.itemsize:
                raise ValueError(
                    f"state {name!r} of {plan.entity!r}: a row of {array.shape[1]} x {array.dtype}"
                    " is not made of whole words of 8 bytes; make it wider"
                )
            self._parts[name] = (word, word + words, array.dtype)
            word += words
        self._checkpoints = Checkpoints(word)
        self._links = np.zeros((0, LINKS), np.int64)
        self._sources = np.zeros((0, 2), np.int64)
        self._verdicts = Verdicts()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Be a copy: its arrays lie elsewhere."""
        self.__dict__.update(state)
        self._sources = np.zeros((0, 2), np.int64)

    def grow(self, capacity: int) -> None:
        """Make room for so many slots; the arrays by slot have just been made larger."""
        self._links.resize((capacity, LINKS), refcheck=False)
        self._find_sources()

    def _find_sources(self) -> None:
        """Note where the arrays by slot lie."""
        arrays = {name: a for name, a in self._state.by_slot().items() if a.shape[1]}
        self._sources = np.array(
            [(a.ctypes.data, a.shape[1] * a.itemsize // 8) for a in arrays.values()], np.int64
        ).reshape(-1, 2)
        names = list(arrays)
        rings = []
        for i, ring in enumerate(self._state.rings):
            at, (first, end, _) = names.index(f"ring{i}.ints"), self._parts[f"ring{i}.ints"]
            rings.append((at, KEPT, first + ring.longest))
            if ring.paned:
                width = end - first
                rings.append((at, width + PANE_KEPT, end + PANE_TAIL))
        self._rings = np.array(rings, np.int64).reshape(-1, 3)

    def _saved(self, states: Int64, name: str) -> npt.NDArray[Any]:
        """One array of the states of checkpoints."""
        first, end, dtype = self._parts[name]
        return np.ascontiguousarray(states[:, first:end]).view(dtype)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all arrays."""
        return self._links.nbytes + self._rows.memory_bytes + self._checkpoints.memory_bytes

    def active(self, clock_us: int) -> bool:
        """Whether late rows are put in their place: from the first round that knows the time on."""
        return self.late_us > 0 and (clock_us > 0 or self._clock_us > 0)

    @property
    def clock_us(self) -> int:
        """The clock of the newest round with rows, 0 before the first that knows the time."""
        return self._clock_us

    @property
    def due_us(self) -> int:
        """The clock of the place furthest behind in that round."""
        return self._due_us

    def reach(self, oldest_us: Int64) -> None:
        """Lower times by slot, int64 (slots,), to that of the slot's oldest live checkpoint: no row
        is put further back."""
        checkpoints = self._checkpoints
        at = checkpoints.at(np.arange(checkpoints.first, checkpoints.top))
        owners, begun_us = checkpoints.arrays["chain"][at, OWNER], checkpoints.arrays["key"][at, 0]
        np.minimum.at(oldest_us, owners, begun_us)

    @property
    def newest_us(self) -> int:
        """Newest event time of the rows so far."""
        return self._newest_us

    @property
    def top(self) -> int:
        """Number of the next row that will be logged."""
        return self._rows.top

    def number(self, first: int, rounds: Int64, places: Int64) -> None:
        """Say in which round each of the rows came that have just passed, and which it is there.

        Parameters
        ----------
        first : the `top` of before
        rounds, places : int64 (n,), of all of them; the last are those that were logged
        """
        logged = np.arange(first, self._rows.top)
        if len(logged):
            meta, at = self._rows.arrays["meta"], self._rows.at(logged)
            meta[at, ROUND] = rounds[len(rounds) - len(logged) :]
            meta[at, ROW] = places[len(places) - len(logged) :]

    def since_us(self, clock_us: int, due_us: int) -> int:
        """Before this nothing is in time any more: the bound before the place furthest behind.

        Parameters
        ----------
        clock_us, due_us : of a round; `due_us` below 1 where nothing is known of places
        """
        return _behind(clock_us, due_us) - self.late_us

    def calm(
        self, clock_us: int, due_us: int, newest_us: int, first_us: int, since_us: int
    ) -> bool:
        """Whether a round is logged whole, and neither begins a generation nor lets one go.

        Parameters
        ----------
        clock_us, due_us, newest_us : as they are before the round
        first_us : time of its first row
        since_us : with the round in it
        """
        generations = self._generations
        if not generations or clock_us <= 0 or newest_us <= 0:
            return False
        now = min(_behind(clock_us, due_us), newest_us)
        old = len(generations) > 1 and now - self.late_us > generations[1].horizon_us
        turns = old or now - generations[-1].start_us >= self.late_us
        return not turns and (first_us >= since_us or first_us <= newest_us)

    def process(
        self, head: Int64, reals: Float64, round_: int, clock_us: int, due_us: int
    ) -> tuple[Float64, Int16 | None, Changed | None]:
        """Features of rows in order; arguments and result as of `EntityState.process`."""
        state = self._state
        old = self._out_of_reach(head, self.since_us(clock_us, due_us))
        if old == 0:
            return self._logged(head, reals, round_, clock_us, due_us)
        slots, taken_us, _ = state.intern(head[:old])
        state.keep_all(slots, head[:old])
        marked = state.marked(slots, taken_us, head[:old])
        out, emitted = state.run(slots, taken_us, marked, reals[:old], state.notes(0), 0)
        state.listen(slots, head[:old])
        self._newest_us = int(head[old - 1, 1])
        self._clock_us = max(self._clock_us, self._newest_us)
        self._due_us = self._newest_us
        self._generations.clear()
        if old == len(head):
            self._clock_us, self._due_us = max(self._clock_us, clock_us), due_us
            return out, emitted, None
        more, more_emitted, _ = self._logged(head[old:], reals[old:], round_, clock_us, due_us)
        out = np.concatenate([out, more])
        if emitted is not None and more_emitted is not None:
            emitted = np.concatenate([emitted, more_emitted])
        return out, emitted, None

    def _out_of_reach(self, head: Int64, since_us: int) -> int:
        """Rows that need no log: all is in order and the next round's late rows come after them."""
        if head[0, 1] >= since_us or head[0, 1] <= self._newest_us:
            return 0
        return int(np.searchsorted(head[:, 1], since_us))

    def _turn(self, clock_us: int, due_us: int) -> None:
        """Begin a generation, let go what no late row can need; the time is of the round before.

        What came before a generation has times up to its horizon. A row from farther ahead than
        that does not make the others wait. The clock goes on in silence, which makes nothing
        late: the newest row bounds it.
        """
        clock_before_us = self._clock_us or clock_us
        now = min(_behind(clock_before_us, self._due_us), self._newest_us or clock_us)
        generations = self._generations
        if not generations or now - generations[-1].start_us >= self.late_us:
            horizon_us = min(self._newest_us, clock_before_us + max(self.late_us, APART_US))
            generations.append(_Generation(now, horizon_us, self._rows.top, self._checkpoints.top))
        while len(generations) > 1 and now - self.late_us > generations[1].horizon_us:
            generations.pop(0)
        self._rows.drop(generations[0].row)
        self._checkpoints.drop(generations[0].checkpoint)
        self._verdicts.forget(self._checkpoints.first)
        for ring in self._state.rings:
            ring.thinned.forget(self._checkpoints.first)
        self._clock_us, self._due_us = max(self._clock_us, clock_us), due_us

    def _logged(
        self, head: Int64, reals: Float64, round_: int, clock_us: int, due_us: int
    ) -> tuple[Float64, Int16 | None, Changed | None]:
        """Features of rows that are logged."""
        state, rows, checkpoints = self._state, self._rows, self._checkpoints
        if not len(self._sources):
            self._find_sources()
        self._turn(clock_us, due_us)
        self._newest_us = max(self._newest_us, int(head[-1, 1]))
        slots, taken_us, before_us = state.intern(head, placed=True)
        state.keep_all(slots, head)
        head = state.marked(slots, taken_us, head)
        n = len(head)
        rows.reserve(n)
        late, done, came_late = np.zeros(n, np.uint8), 0, 0
        first, began = rows.top, self._generations[-1].checkpoint
        while True:
            numbers = (rows.first, first, checkpoints.first, began, checkpoints.top, EVERY, round_)
            done, made, late_now = admit(
                done,
                head,
                reals,
                slots,
                before_us,
                np.array(numbers, np.int64),
                rows.arrays["wide"],
                rows.arrays["meta"],
                rows.arrays["others"],
                rows.arrays["reals"],
                self._links,
                late,
                checkpoints.arrays["chain"],
                checkpoints.arrays["key"],
                checkpoints.arrays["place"],
                checkpoints.packed,
                checkpoints.book,
                self._sources,
                self._rings,
            )
            came_late += late_now
            checkpoints.put(made)
            if done == n:
                break
            checkpoints.reserve(1)  # it grows by a part of what it is, few rows may need one
        rows.put(n)
        for ring in state.rings:
            ring.thinned.checkpoint = checkpoints.top
        if came_late:
            return self._place(head, reals, slots, late, first)
        given = state.run(slots, taken_us, head, reals, rows.arrays["notes"], first)
        state.listen(slots, head)
        return *given, None

    def _place(
        self, head: Int64, reals: Float64, slots: Int64, late: npt.NDArray[np.uint8], first: int
    ) -> tuple[Float64, Int16 | None, Changed | None]:
        """Features of logged rows, some of them late; `first` is the number of the first."""
        state = self._state
        owners = np.unique(slots[late != 0])
        again = np.isin(slots, owners)
        given = _Given(state.plan, head)
        at = np.flatnonzero(~again)
        if len(at):
            notes = state.notes(len(at))
            found = state.run(slots[at], head[at, 1], head[at], reals[at], notes, len(at))
            given.put(at, found)
            self._note(first + at, notes)
            state.listen(slots[at], head[at])
        at = np.flatnonzero(again)
        past = self._past(owners, slots[at], head[at], first + at)
        came = int(np.count_nonzero(late))
        self.placed += came
        state.table.numbers[LATE] += came
        old = np.flatnonzero(past.numbers < first)
        before = _Given(state.plan, past.head[old])
        rhythms = state.rhythms(owners, self._clock_us)
        verdicts = self._verdicts.since(owners, past.chosen, past.numbers, past.starts)
        self._go_back(past, old)
        if len(old):
            wave = verdicts.waves(past.starts)[old]
            for k in range(verdicts.many + 1):
                at = np.flatnonzero(wave == k)
                if len(at):
                    before.put(at, self._run(past, old[at])[0])
                state.accept_again(verdicts.slots(k))
            self._go_back(past, old)
        now = self._go_on(past, rhythms, verdicts)
        new = np.flatnonzero(past.numbers >= first)
        given.copy(past.numbers[new] - first, now, new)
        return given.values, given.emitted(), _changed(past, before, now, old)

    def _past(self, owners: Int64, slots: Int64, head: Int64, numbers: Int64) -> _Past:
        """The logged rows since each late slot's checkpoint, those of this round among them.

        Parameters
        ----------
        owners : the late slots, ascending
        slots, head, numbers : of this round's rows of theirs
        """
        rows, checkpoints = self._rows, self._checkpoints
        wide, meta = rows.arrays["wide"], rows.arrays["meta"]
        chain, keys = checkpoints.arrays["chain"], checkpoints.arrays["key"]
        _, at = np.unique(slots, return_index=True)
        chosen = np.empty((len(owners), 2), np.int64)
        asked = np.ascontiguousarray(head[at][:, [1, 2, 5, 6, 3]])
        choose(owners, asked, self._links, checkpoints.first, chain, keys, chosen)
        self.beyond += push_up(slots, numbers, owners, chosen, keys, wide, meta)
        found, starts = np.empty(4 * len(slots), np.int64), np.empty(len(owners) + 1, np.int64)
        while True:
            many = collect(owners, chosen, self._links, rows.first, meta, chain, found, starts)
            if many <= len(found):
                break
            found = np.empty(many, np.int64)
        found = found[:many]
        at = rows.at(found)
        which = np.repeat(np.arange(len(owners)), np.diff(starts))
        order = np.lexsort(
            (
                meta[at, KIND] >> CODE_BITS,
                wide[at, OFFSET],
                meta[at, PARTITION],
                meta[at, KIND] & _CODE,
                wide[at, TIME],
                which,
            )
        )
        found = found[order]
        rows.change(found)
        link(owners, chosen, found, starts, chain, meta, self._links)
        return self._read(owners, chosen, found, starts)

    def _read(self, owners: Int64, chosen: Int64, numbers: Int64, starts: Int64) -> _Past:
        """Logged rows as the kernels want them."""
        found = self._rows.take(numbers)
        wide, meta = found["wide"], found["meta"]
        slots = meta[:, SLOT].astype(np.int64)
        head = np.empty((len(numbers), HEAD + found["others"].shape[1]), np.int64)
        head[:, 0] = self._state.table.keys[slots]
        head[:, 1], head[:, 2] = wide[:, TIME], meta[:, KIND] & _CODE
        head[:, 3], head[:, 4] = meta[:, KIND] >> CODE_BITS, meta[:, ROW]
        head[:, 5], head[:, 6] = meta[:, PARTITION], wide[:, OFFSET]
        head[:, 7], head[:, HEAD:] = flags_of(meta), found["others"]
        rounds, reals, notes = meta[:, ROUND].astype(np.int64), found["reals"], found["notes"]
        return _Past(owners, chosen, numbers, starts, slots, head, reals, rounds, notes)

    def _go_back(self, past: _Past, applied: Int64) -> None:
        """Let late slots be as in their checkpoints; `applied` are the rows they have had since."""
        state, checkpoints = self._state, self._checkpoints
        slots, head = past.slots[applied], past.head[applied]
        state.keep_all(slots, head)
        states = checkpoints.states(past.chosen[:, 0])
        for name, array in state.by_slot().items():
            if not name.startswith("ring"):
                array[past.owners] = self._saved(states, name)
        for i, ring in enumerate(state.rings):
            plan = ring.ring
            saved = self._saved(states, f"ring{i}.ints")
            heads = saved[:, HEAD_AT]
            thinned = ring.thinned.take(past.owners, heads)
            since = dict(zip(past.owners.tolist(), heads.tolist(), strict=True)) if thinned else {}
            if len(plan.others):
                ring.put_back(thinned, since, first=True)
                undo_pairs(
                    slots,
                    head,
                    past.notes[applied],
                    int(ring.book[NOTED]),
                    plan.feeds,
                    plan.others,
                    ring.ints,
                    ring.arena_ints,
                    ring.pairs.table,
                    ring.pairs.numbers,
                )
                ring.put_back(thinned, since, first=False)
            restore_rings(
                past.owners,
                saved,
                self._saved(states, f"ring{i}.floats"),
                np.array(plan.shape, np.int64),
                PANE_PLACES if ring.paned else 0,
                plan.max_columns,
                plan.signs,
                ring.ints,
                ring.floats,
                ring.arena_ints,
                ring.arena_reals,
            )
            ring.undo_panes(slots, head, past.notes[applied])
            ring.count_panes_again(thinned)

    def _run(self, past: _Past, at: Int64) -> tuple[tuple[Float64, Int16 | None], Notes]:
        """Let some of the rows pass; what they give, and what their pairs said before."""
        notes = self._state.notes(len(at))
        slots, head, reals = past.slots[at], past.head[at], past.reals[at]
        found = self._state.run(slots, head[:, 1].copy(), head, reals, notes, len(at))
        return found, notes

    def _go_on(self, past: _Past, rhythms: Rhythms | None, verdicts: Since) -> _Given:
        """Let all rows pass from the checkpoints on; take the checkpoints on the way anew."""
        rows, checkpoints, state = self._rows, self._checkpoints, self._state
        chain = checkpoints.arrays["chain"]
        wave = np.zeros(len(past.numbers), np.int64)
        newer = np.empty(int(past.chosen[:, 1].sum()), np.int64)
        refresh = np.empty(len(newer), np.int64)
        waves(
            past.owners,
            past.chosen,
            self._links,
            chain,
            checkpoints.arrays["key"],
            past.numbers,
            past.starts,
            rows.arrays["wide"],
            rows.arrays["meta"],
            wave,
            newer,
            refresh,
        )
        checkpoints.change(newer)
        given = _Given(state.plan, past.head)
        wave += verdicts.waves(past.starts)
        verdicts.among(past.chosen, newer, refresh)
        last = max(int(wave.max(initial=0)), int(refresh.max(initial=0)), verdicts.last)
        for k in range(last + 1):
            at = np.flatnonzero(wave == k)
            if len(at):
                found, notes = self._run(past, at)
                given.put(at, found)
                self._note(past.numbers[at], notes)
                if rhythms is not None:
                    rhythms.hear(past.slots[at], past.head[at])
            due = newer[refresh == k]
            owners = chain[checkpoints.at(due), OWNER]
            checkpoints.take_anew(due, owners, self._sources)
            state.accept_again(verdicts.slots(k))
        if rhythms is not None:
            rhythms.end()
        return given

    def _note(self, numbers: Int64, notes: Notes) -> None:
        """Log what pairs said before rows."""
        self._rows.arrays["notes"][self._rows.at(numbers)] = notes

    def accepted(self, slots: Int64) -> None:
        """Note slots in which a verdict has changed what is usual: rows that pass again and were
        before it shall not know of it."""
        alive = slots[self._links[slots, MARK] >= self._checkpoints.first]
        self._verdicts.add(alive, self._rows.top, self._checkpoints.top)

    def apply(self, slots: Int64, names: Sequence[str], change: Change) -> None:
        """Change checkpoints of slots as the slots themselves: going back does not forget it.

        Parameters
        ----------
        slots : int64 (n,), in the order in which they are changed
        names : of the arrays by slot that are changed
        change : is given places in `slots` int64 (k,), rows int64 (k,) and the arrays to change
        """
        checkpoints = self._checkpoints
        found: list[tuple[int, int]] = []
        for i, slot in enumerate(slots.tolist()):
            number = int(self._links[slot, MARK])
            while number >= checkpoints.first:
                found.append((number, i))
                number = int(checkpoints.arrays["chain"][number % checkpoints.capacity, OLDER])
        if not found:
            return
        numbers, which = np.array(found, np.int64).T
        unique, rows = np.unique(numbers, return_inverse=True)
        checkpoints.change(unique)
        states = checkpoints.states(unique)
        changed = [self._saved(states, name) for name in names]
        change(which, rows.astype(np.int64), changed)
        for name, part in zip(names, changed, strict=True):
            first, end, _ = self._parts[name]
            states[:, first:end] = part.view(np.int64)
        checkpoints.replace(unique, states)

    def begin(self, slots: Int64, everything: bool) -> Arrays:
        """Begin a snapshot of this moment; returns what is copied at once.

        Parameters
        ----------
        slots : int64 (n,), those that rows have changed since the last snapshot, or all
        everything : whether rows and checkpoints of earlier snapshots count too
        """
        rows, checkpoints = self._rows, self._checkpoints
        counts = (self._clock_us, self._newest_us, self.placed, self.beyond)
        bounds = (rows.first, rows.top, checkpoints.first, checkpoints.top, self._due_us)
        generations = [(g.start_us, g.horizon_us, g.row, g.checkpoint) for g in self._generations]
        for shelf in (rows, checkpoints):
            shelf.begin(everything)
        return {
            "counts": np.array([*counts, *bounds], np.int64),
            "generations": np.array(generations, np.int64).reshape(-1, 4),
            "links": self._links[slots],
            "verdicts": self._verdicts.dump(),
        }

    @property
    def copied(self) -> bool:
        """Whether nothing of the snapshot under way is left to copy."""
        return self._rows.copied and self._checkpoints.copied

    def copy(self, parts: int) -> Arrays:
        """One of `parts` parts of the snapshot under way, and what was about to change before."""
        found: Arrays = {}
        for name, shelf in (("row", self._rows), ("checkpoint", self._checkpoints)):
            found |= {f"{name}.{k}": v for k, v in shelf.copy(parts).items()}
        return found

    def load(self, slots: Int64, arrays: Arrays) -> None:
        """Put a snapshot back, oldest first."""
        counts = [int(n) for n in arrays["counts"]]
        self._clock_us, self._newest_us, self.placed, self.beyond = counts[:4]
        self._due_us = counts[8] if len(counts) > 8 else 0  # not in a snapshot of before
        self._generations = [_Generation(*map(int, g)) for g in arrays["generations"]]
        self._links[slots] = arrays["links"]
        if "verdicts" in arrays:  # not in a snapshot of before they were kept
            self._verdicts.load(arrays["verdicts"])
        for name, shelf, (first, top) in (
            ("row", self._rows, counts[4:6]),
            ("checkpoint", self._checkpoints, counts[6:8]),
        ):
            prefix = f"{name}."
            found = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
            if "wide" in found and "notes" not in found:
                found = self._log_of(found)
            shelf.load(first, top, found)

    def _log_of(self, rows: Arrays) -> Arrays:
        """Rows of a snapshot of before as they are now, see `log_of`."""
        rings = {
            f"pairs{i}": (int(ring.book[NOTED]), ring.ring.feeds)
            for i, ring in enumerate(self._state.rings)
        }
        more_flags = len(self._state.plan.flags) > FLAGS_FEW
        return log_of(rows, more_flags, rings, self._state.note_words)


def _behind(clock_us: int, due_us: int) -> int:
    """The time by the place furthest behind; by none that is further behind than is waited for."""
    return clock_us if due_us <= 0 else max(min(clock_us, due_us), clock_us - APART_US)


@dataclass(frozen=True, slots=True)
class _Past:
    """Rows that pass again, in the global order slot by slot.

    Parameters
    ----------
    owners : int64 (k,), the slots, ascending
    chosen : int64 (k, 2), see `choose`
    numbers : int64 (n,), in the log
    starts : int64 (k + 1,), where each slot's rows begin
    slots, head, reals, rounds, notes : of the rows
    """

    owners: Int64
    chosen: Int64
    numbers: Int64
    starts: Int64
    slots: Int64
    head: Int64
    reals: Float64
    rounds: Int64
    notes: Notes


class _Given:
    """What rows give: values, and vectors of those that have them.

    Parameters
    ----------
    plan : of the entity type
    head : int64 (n, ...), of the rows
    """

    def __init__(self, plan: EntityPlan, head: Int64) -> None:
        self.values = np.full((len(head), plan.width), np.nan)
        self.own: npt.NDArray[np.bool_] | None = None
        if plan.sequence is not None:
            self.own = head[:, 2] == plan.sequence.own
            self.vectors = np.zeros((len(head), STEPS, WIDTH), np.int16)

    def put(self, at: Int64, found: tuple[Float64, Int16 | None]) -> None:
        """Take in what `EntityState.run` gave for some rows."""
        self.values[at] = found[0]
        if self.own is not None and found[1] is not None:
            self.vectors[at[self.own[at]]] = found[1]

    def copy(self, at: Int64, other: _Given, rows: Int64) -> None:
        """Take rows of another one."""
        self.values[at] = other.values[rows]
        if self.own is not None:
            self.vectors[at] = other.vectors[rows]

    def emitted(self) -> Int16 | None:
        """int16 (own rows, 16, 12), or None."""
        return None if self.own is None else self.vectors[self.own]


def _changed(past: _Past, before: _Given, now: _Given, old: Int64) -> Changed | None:
    """The old rows that give something else now; `before` holds these alone, `now` all."""
    a, b = before.values, now.values[old]
    each = (a != b) & ~(np.isnan(a) & np.isnan(b))
    differs = np.any(each, axis=1)
    if before.own is not None:
        differs |= np.any(before.vectors != now.vectors[old], axis=(1, 2))
    at = old[differs]
    if not len(at):
        return None
    vectors = None if now.own is None else now.vectors[at]
    return Changed(past.head[at], past.rounds[at], now.values[at], vectors, each[differs])
