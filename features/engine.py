"""The feature engine: a shard group's state, and the same in one process for training and backfill.

A group owns its shard of every entity type. Each round it gets the rows of all lanes in the one
global order, lets them pass the kernels, and gives each lane its rows' features. Features are a
function of the order of events alone: not of how the stream is cut into rounds, nor of the number
of groups or lanes, nor of where it was stopped and resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from features.absences import Absences, Names, Peers
from features.batch import EventBatch, FeatureMatrix, sample_batch
from features.catalog import Catalog
from features.errors import StateError
from features.events import event_code, event_types
from features.keys import group_of
from features.labels import Label
from features.late import Changed
from features.layout import LAYOUT, carry_over, layout_array
from features.operations import DISTINCT_MAX
from features.pairs import warm_up as warm_up_pairs
from features.plan import ABSENCE, HEAD, EntityPlan, plan_of
from features.rows import Correction, GroupFeatures, GroupRows, amend, assemble, merge
from features.silence import DUE_MAX, Overdue
from features.silence import warm_up as warm_up_silence
from features.snapshots import join
from features.spans import SpanFeatures, SpanRows, Told, join_spans, pass_rounds
from features.split import split
from features.state import EntityState

__all__ = [
    "Correction",
    "GroupEngine",
    "GroupFeatures",
    "GroupRows",
    "OfflineEngine",
    "amend",
    "assemble",
    "merge",
    "split",
    "warm_up",
]

Arrays = dict[str, npt.NDArray[Any]]

LATE_S = 60.0
"""Bound of lateness where none is given; the default of setting `late_s`."""

EVERYONE = 1 << 40
"""No bound on the absences of a stretch of history: it may be hours long."""

_NO_ROWS, _NO_REALS = np.zeros((0, HEAD), np.int64), np.zeros((0, 0))
"""What comes of an entity type in rounds without a row of it."""

STATE_FORMAT = 7
"""Layout of snapshots; one with another number is refused."""


class GroupEngine:
    """State of one shard group.

    Parameters
    ----------
    catalog : what to compute
    group : number of the group, for messages
    late_s : rows that come at most so much after the newest are put in their place; seconds, 0 for
        none: they are taken at their entity's newest time then
    ttl_h : entity type -> hours after which idle ones are forgotten, where it is not the default
        (`features.expiry`); 0: never
    emptied_max : entities told of in a round whose windows have run empty (`features.emptied`);
        0: none is, and nothing is kept for it but room for when rings were fed (`fed_us`)
    exact_max : events of an entity in its longest window above which the older ones are merged into
        panes of 10 s (`features.panes`); 0: never
    distinct_max : different others of an entity in its longest window above which it keeps a sample
        of its pairs and its counts are estimates (`features.sampling`); 0: never
    groups : how many groups share the entities
    """

    def __init__(
        self,
        catalog: Catalog,
        group: int,
        late_s: float = LATE_S,
        ttl_h: Mapping[str, float] | None = None,
        emptied_max: int = 0,
        exact_max: int = 0,
        distinct_max: int = DISTINCT_MAX,
        groups: int = 1,
    ) -> None:
        self.catalog = catalog
        self.group, self.groups = group, groups
        self.labels = 0
        self.labels_unknown = 0
        """Entities of this group that labels named and that were not there."""
        self._emptied_max = emptied_max
        self._plan = plan_of(catalog)
        late_us = round(1e6 * late_s)
        self._states = {
            name: EntityState(plan, late_us, ttl_h, exact_max, distinct_max)
            for name, plan in self._plan.entities.items()
        }
        for state in self._states.values():
            if emptied_max > 0:
                state.emptied.start(state.table.capacity)
        self.empty: tuple[str, ...] = ()
        self.partial: tuple[str, ...] = ()
        """Features that a restored state of another catalogue did not know: those that start empty,
        and those over a new window, which begin with what the ring still had."""
        self.clock_us = self._saved_clock_us = 0
        """Event-time clock of the stream, 0 where it is not known; never goes back, whichever
        lanes have a part in a round."""

    @property
    def entities(self) -> dict[str, int]:
        """Live entities by type."""
        return {name: state.table.live for name, state in self._states.items()}

    @property
    def late(self) -> int:
        """Rows of entities that came after later ones of the same entity, ever."""
        return sum(state.table.late for state in self._states.values())

    @property
    def late_beyond(self) -> int:
        """Those of them that came too late for their place."""
        return sum(state.late.beyond for state in self._states.values())

    @property
    def late_forgotten(self) -> int:
        """Those of them whose entity had been forgotten by then, though not at their time."""
        return sum(state.table.late_forgotten for state in self._states.values())

    @property
    def expired(self) -> int:
        """Entities that were forgotten because they had been idle for so long, ever."""
        return sum(state.table.expired for state in self._states.values())

    @property
    def approximated(self) -> int:
        """Rows of entities whose longest window was too long by less than a pane, ever."""
        return sum(state.approximated for state in self._states.values())

    @property
    def excess_max(self) -> int:
        """Most events too many that such a window can have counted."""
        return max((state.excess_max for state in self._states.values()), default=0)

    @property
    def estimated(self) -> int:
        """Rows of entities whose counts of different others were estimates, ever."""
        return sum(state.estimated for state in self._states.values())

    @property
    def one_in_max(self) -> int:
        """Of so many pairs at most one was kept then; 0 where all were."""
        return max((state.one_in_max for state in self._states.values()), default=0)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of state by entity type."""
        return {name: state.memory_bytes for name, state in self._states.items()}

    @property
    def memory_parts(self) -> dict[str, dict[str, int]]:
        """Bytes of state by entity type and what it holds, see `EntityState.memory_parts`."""
        return {name: state.memory_parts for name, state in self._states.items()}

    @property
    def memory_bytes(self) -> int:
        """Bytes of state."""
        return sum(self.memory.values())

    def keep_only(self, entities: frozenset[str]) -> None:
        """Let go of the state of all other entity types, whose rows pass no more.

        For whoever looks at a few entities (`features.narrowed`); only `process_span` may be called
        after it.
        """
        self._states = {name: s for name, s in self._states.items() if name in entities}

    def process(
        self, rows: GroupRows, lanes: tuple[int, ...] = (), due_max: int = DUE_MAX
    ) -> dict[int, GroupFeatures]:
        """Features of the group's rows of one round, and who is overdue at its end.

        Parameters
        ----------
        rows : merged parts of all lanes, in the global order
        lanes : those that take part in the round; only needed where several do
        due_max : absences of an entity type that may be told of in a round, see `features.silence`

        Returns
        -------
        lane -> features of that lane's rows
        """
        self.clock_us = max(self.clock_us, rows.clock_us)
        present = lanes or ((rows.lane,) if rows.lane >= 0 else ())
        results = {lane: GroupFeatures(lane) for lane in sorted(present)}
        if rows.labels:
            self._hear(rows.labels)
        for entity, head in rows.heads.items():
            state = self._states[entity]
            out, emitted, changed = state.process(
                head, rows.reals[entity], rows.round, rows.clock_us, rows.due_us
            )
            self._home(state, rows.lane, head, out, emitted, results)
            for lane, correction in [] if changed is None else _corrections(state.plan, changed):
                result = results.setdefault(lane, GroupFeatures(lane))
                results[lane] = replace(result, corrections=(*result.corrections, correction))
        for entity, (keys, names) in rows.names.items():
            self._states[entity].name(keys, names)
        if results:
            due_us = rows.due_us if rows.due_us >= 0 else self.clock_us
            self._tell_overdue(due_us, due_max, results)
            self._tell_emptied(due_us, rows.round, results)
        for state in self._states.values():
            state.expire(self.clock_us)
        return results

    def _hear(self, labels: Sequence[Label]) -> None:
        """Let verdicts become known, and count whom they do not reach."""
        for entity, state in self._states.items():
            self.labels += state.label(labels)
            named = [key for one in labels for of, key in one.entities if of == entity]
            keys = np.array(named, np.int64).view(np.uint64)
            mine = keys[group_of(keys, self.groups) == self.group]
            self.labels_unknown += int(np.count_nonzero(state.table.find(mine) < 0))

    def process_span(
        self,
        rows: SpanRows,
        lanes: Sequence[tuple[int, ...]],
        due_max: int = DUE_MAX,
        numbers: Sequence[int] | None = None,
    ) -> SpanFeatures:
        """What `process` gives of rounds in a row, computed together where it comes out the same.

        Parameters
        ----------
        rows : merged parts of all lanes
        lanes : by round, those that take part in it
        due_max : as of `process`, in each round
        numbers : what the rounds are called where a flow goes on after them: it is told of
            corrections in their round, and after the last of windows that have run empty by then;
            None: nobody is told of either
        """
        found = []
        for first, piece in rows.pieces():
            end = first + len(piece.clock_us)
            called = None if numbers is None else numbers[first:end]
            found.append(self._process_piece(piece, lanes[first:end], due_max, called))
        whole = join_spans(found)
        if numbers is not None and whole.lanes:
            due_us = rows.due_us[-1] if rows.due_us[-1] >= 0 else self.clock_us
            self._tell_emptied(due_us, numbers[-1], whole.lanes, len(numbers))
        return whole

    def _process_piece(
        self,
        rows: SpanRows,
        lanes: Sequence[tuple[int, ...]],
        due_max: int,
        numbers: Sequence[int] | None,
    ) -> SpanFeatures:
        """See `process_span`; verdicts come before the first round alone."""
        clocks = [max(self.clock_us, us) for us in accumulate(rows.clock_us, max)]
        dues = [due if due >= 0 else clock for due, clock in zip(rows.due_us, clocks, strict=True)]
        results = {lane: GroupFeatures(lane) for here in lanes for lane in here}
        told: list[dict[int, list[Absences]]] = [{lane: [] for lane in here} for here in lanes]
        corrected: list[list[tuple[int, Correction]]] = [[] for _ in lanes]
        if rows.labels and rows.labels[0]:
            self._hear(rows.labels[0])
        for entity, state in self._states.items():

            def after(
                r: int, rounds: int, entity: str = entity, state: EntityState = state
            ) -> None:
                for lane, one in _overdue(entity, state, dues[r], due_max, tuple(told[r])):
                    told[r][lane].append(one)
                state.expire(clocks[r], rounds)

            def tell(r: int, changed: Changed, state: EntityState = state) -> None:
                corrected[r] += _corrections(state.plan, changed)

            listens = None if numbers is None else Told(numbers, rows.begins, tell)
            head = rows.heads.get(entity)
            if head is None and state.wheel is None:
                state.expire(clocks[-1], len(clocks))
                continue
            found = head if head is not None else _NO_ROWS
            out, emitted = pass_rounds(
                state,
                found,
                rows.reals.get(entity, _NO_REALS),
                rows.ends.get(entity, np.zeros(len(clocks), np.int64)),
                rows.clock_us,
                rows.due_us,
                dues,
                rows.names.get(entity),
                after,
                listens,
            )
            if head is not None:
                self._home(state, rows.lane, head, out, emitted, results)
            if state.wheel is None:
                state.expire(clocks[-1], len(clocks))
        self.clock_us = clocks[-1]
        return SpanFeatures(results, told, corrected)

    def _home(
        self,
        state: EntityState,
        lane: int,
        head: npt.NDArray[np.int64],
        out: npt.NDArray[np.float64],
        emitted: npt.NDArray[np.int16] | None,
        results: dict[int, GroupFeatures],
    ) -> None:
        """Give each lane its rows; `lane` is -1 where they are of several."""
        lanes = (lane,) if lane >= 0 else tuple(np.unique(head[:, 3]).tolist())
        for whose in lanes:
            result = results.setdefault(whose, GroupFeatures(whose))
            mine = None if len(lanes) == 1 else head[:, 3] == whose
            _parts(state, head, out, mine, result)
            if emitted is not None:
                _sequences(state, head, emitted, whose, len(lanes) == 1, result)

    def _tell_overdue(self, due_us: int, due_max: int, results: dict[int, GroupFeatures]) -> None:
        """Let the lowest lane know who is overdue, and all lanes what has changed among peers."""
        for entity, state in self._states.items():
            if state.wheel is not None:
                for lane, one in _overdue(entity, state, due_us, due_max, tuple(results)):
                    results[lane].absences.append(one)

    def _tell_emptied(
        self, due_us: int, round_: int, results: dict[int, GroupFeatures], rounds: int = 1
    ) -> None:
        """Let the lowest lane know whose windows have run empty; another entity type comes first
        in each round, so that none keeps the others waiting."""
        left, states = rounds * self._emptied_max, list(self._states.values())
        told = results[min(results)].emptied
        for i in range(len(states)):
            if left <= 0:
                return
            state = states[(i + max(round_, 0)) % len(states)]
            found = state.run_empty(due_us, left)
            told += found
            left -= max((len(one.keys) for one in found), default=0)

    @property
    def overdue(self) -> int:
        """Entities that are overdue and were beyond what a round may tell of."""
        return sum(s.wheel.waiting for s in self._states.values() if s.wheel is not None)

    def delta(self) -> Arrays:
        """What changed since the snapshot before, as arrays by name."""
        self.begin(everything=False)
        return join(self.take())

    def full(self) -> Arrays:
        """The whole state as arrays by name."""
        self.begin(everything=True)
        return join(self.take())

    def begin(self, everything: bool) -> None:
        """Begin a snapshot of this moment, of what changed since the one before or of all.

        The stream goes on meanwhile: what is about to change is copied first, the rest by
        `proceed`.

        Raises
        ------
        StateError : the one before has not been taken, and would be lost
        """
        for state in self._states.values():
            state.begin(everything)
        self._saved_clock_us = self.clock_us

    def proceed(self, parts: int) -> bool:
        """Copy one of `parts` parts of the snapshot under way; True where all is copied."""
        done = [state.proceed(parts) for state in self._states.values()]
        return all(done)

    def take(self) -> list[Arrays]:
        """All parts of the snapshot under way, for `features.snapshots.join` on any thread."""
        head: Arrays = {
            "format": np.array([STATE_FORMAT]),
            LAYOUT: layout_array(self.catalog),
            "clock_us": np.array([self._saved_clock_us], np.int64),
        }
        return [head] + [
            {f"{name}.{k}": v for k, v in part.items()}
            for name, state in self._states.items()
            for part in state.take()
        ]

    @classmethod
    def restore(
        cls,
        catalog: Catalog,
        group: int,
        base: Arrays | None,
        deltas: list[Arrays],
        late_s: float = LATE_S,
        ttl_h: Mapping[str, float] | None = None,
        emptied_max: int = 0,
        exact_max: int = 0,
        distinct_max: int = DISTINCT_MAX,
        groups: int = 1,
    ) -> GroupEngine:
        """The engine as it was after the last delta: every later feature is the same bit for bit.

        A state of a catalogue that had fewer features or more goes over (`features.layout`).

        Raises
        ------
        StateError : a snapshot of another format, or one that cannot go over to the catalogue
        """
        engine = cls(catalog, group, late_s, ttl_h, emptied_max, exact_max, distinct_max, groups)
        dumps = ([] if base is None else [base]) + deltas
        for arrays in dumps:
            found = int(arrays["format"][0])
            if found != STATE_FORMAT:
                raise StateError(
                    f"group {group}: state of format {found}, expected {STATE_FORMAT}; start from"
                    " empty state_dir or run `waxwing backfill` again"
                )
        if dumps:
            try:
                dumps, engine.empty, engine.partial = carry_over(dumps, catalog)
            except (KeyError, ValueError, IndexError, TypeError) as error:
                raise StateError(
                    f"group {group}: state cannot be read ({error}); run `waxwing backfill` again"
                ) from error
        for arrays in dumps:
            if "clock_us" in arrays:
                engine.clock_us = int(arrays["clock_us"][0])
            for name, state in engine._states.items():
                prefix = f"{name}."
                mine = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
                try:
                    state.load(mine)
                except (KeyError, ValueError, IndexError) as error:
                    raise StateError(
                        f"group {group}: state of {name!r} does not fit the catalogue"
                        f" {catalog.version} ({error}); run `waxwing backfill` again"
                    ) from error
        for state in engine._states.values():
            state.settle()
            state.table.hear(engine.clock_us)
        return engine


def _overdue(
    entity: str, state: EntityState, due_us: int, due_max: int, lanes: tuple[int, ...]
) -> Iterator[tuple[int, Absences]]:
    """What each lane of a round is told of silence."""
    told, keys, names = state.overdue(due_us, due_max)
    if not len(keys) and not len(told.changes):
        return
    first = min(lanes)
    for lane in lanes:
        if lane == first and len(keys):
            yield lane, Absences(entity, told, keys, names)
        elif len(told.changes):
            none = Overdue(told.found[:0], told.known[:0], told.changes)
            yield lane, Absences(entity, none, keys[:0], names[:0])


def _parts(
    state: EntityState,
    head: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    mine: npt.NDArray[np.bool_] | None,
    result: GroupFeatures,
) -> None:
    """Cut the rows of one lane (`mine`, None for all) by event type; copies only where it must."""
    plan = state.plan
    codes = head[:, 2]
    for event, features in plan.features.items():
        if not features:
            continue
        own = mine
        if len(plan.events) > 1:
            fits = codes == event_code(event)
            own = fits if mine is None else fits & mine
        rows, part = head[:, 4], values
        if own is not None and not own.all():
            at = np.flatnonzero(own)
            rows, part = rows[at], values.take(at, axis=0)
        if len(rows):
            result.parts[event, plan.entity] = (np.ascontiguousarray(rows), part)


def _sequences(
    state: EntityState,
    head: npt.NDArray[np.int64],
    emitted: npt.NDArray[np.int16],
    lane: int,
    alone: bool,
    result: GroupFeatures,
) -> None:
    """Give a lane the vectors of its rows."""
    sequence = state.plan.sequence
    if sequence is None or not len(emitted):
        return
    own = head if len(emitted) == len(head) else head[head[:, 2] == sequence.own]
    event = list(event_types())[sequence.own]
    if not alone:
        at = np.flatnonzero(own[:, 3] == lane)
        own, emitted = own[at], emitted[at]
    result.sequences[event] = (np.ascontiguousarray(own[:, 4]), emitted)


def _corrections(plan: EntityPlan, changed: Changed) -> Iterator[tuple[int, Correction]]:
    """Rows that give something else now, by lane and event type."""
    head = changed.head
    for lane in np.unique(head[:, 3]).tolist():
        for event, features in plan.features.items():
            code = event_code(event)
            at = np.flatnonzero((head[:, 3] == lane) & (head[:, 2] == code))
            if not len(at):
                continue
            own = plan.sequence is not None and plan.sequence.own == code
            vectors = changed.vectors[at] if own and changed.vectors is not None else None
            values = np.ascontiguousarray(changed.values[at, : len(features)])
            differs = changed.differs[at, : len(features)]
            rounds, rows = changed.rounds[at], np.ascontiguousarray(head[at, 4])
            yield lane, Correction(event, plan.entity, rounds, rows, values, vectors, differs)


class OfflineEngine:
    """All groups in one process: the very code of the stream, for training, backfill and tests.

    Parameters
    ----------
    catalog : what to compute
    groups : number of shard groups; the features do not depend on it, a snapshot does
    late_s, ttl_h, exact_max, distinct_max : as of `GroupEngine`
    """

    def __init__(
        self,
        catalog: Catalog,
        groups: int,
        late_s: float = LATE_S,
        ttl_h: Mapping[str, float] | None = None,
        exact_max: int = 0,
        distinct_max: int = DISTINCT_MAX,
    ) -> None:
        self.catalog = catalog
        self.engines = [
            GroupEngine(catalog, group, late_s, ttl_h, 0, exact_max, distinct_max, groups)
            for group in range(groups)
        ]
        self._round = 0
        self._names, self._peers = Names(), Peers()
        self._absent: list[tuple[EventBatch, FeatureMatrix]] = []

    def process(
        self,
        batches: dict[str, EventBatch],
        clock_us: int = 0,
        labels: tuple[Label, ...] = (),
    ) -> dict[str, FeatureMatrix]:
        """Features of the events of one stretch of the stream, each type in the batch's order.

        Each call is a round. Groups without events in it hear the clock too.

        Parameters
        ----------
        clock_us : event-time clock with this stretch in it, as in `GroupRows`
        labels : verdicts that become known before these events

        Examples
        --------
        >>> from features.catalog import catalog
        >>> OfflineEngine(catalog(), groups=4).process({})
        {}
        """
        groups = len(self.engines)
        parts = split(self.catalog, batches, groups, 0, self._round, clock_us, self._names)
        if labels:
            parts = [replace(part, labels=labels) for part in parts]
        self._round += 1
        found = [
            engine.process(part, due_max=EVERYONE)[0]
            for engine, part in zip(self.engines, parts, strict=True)
        ]
        absent = self._peers.take(one for result in found for one in result.absences)
        if absent is not None:
            self._absent.append((absent, assemble(self.catalog, {ABSENCE: absent}, [])[ABSENCE]))
        return assemble(self.catalog, batches, found)

    def take_absences(self) -> list[tuple[EventBatch, FeatureMatrix]]:
        """Absences found since the last call, a batch a round, with their features.

        An absence may come after events later than it: it stands at the time it was due.
        """
        found, self._absent = self._absent, []
        return found


_LATER_US = (7_200_000_000, 12_000_000_000_000)
"""Clocks at which windows have run empty, and (after 139 days) entities are forgotten. A wheel
turns tick by tick: three years in place of these took 0.7 s of each start."""


def warm_up(catalog: Catalog, exact_max: int = 0) -> None:
    """Compile (or load from the cache) every kernel, on rows that are thrown away.

    Called before the first round: compiling was the only cause of slow first seconds.

    Parameters
    ----------
    exact_max : as of `GroupEngine`: kernels that keep panes are others
    """
    batches = {name: sample_batch(name, 2, 2_000_000) for name in catalog.event_types}
    late = {name: sample_batch(name, 2, 1_000_000) for name in catalog.event_types}
    OfflineEngine(catalog, 1, exact_max=exact_max).process(batches)
    group = GroupEngine(catalog, 0, emptied_max=1_000, exact_max=exact_max)
    parts = split(catalog, batches, 1, clock_us=2_000_000)
    group.process(merge(parts))
    keys = tuple((name, int(head[0, 0])) for name, head in parts[0].heads.items())
    label = Label(0, 1, 1_000_000, True, keys)
    group.begin(everything=True)
    group.process(replace(merge(parts * 2), labels=(label,)))
    group.process(split(catalog, late, 1, clock_us=2_000_000)[0])
    base = join(group.take())
    GroupEngine.restore(catalog, 0, base, [group.delta()], exact_max=exact_max)
    for clock_us in _LATER_US:
        group.process(GroupRows(0, clock_us=clock_us))
        group.process(split(catalog, late, 1, clock_us=clock_us)[0])  # what was told is told again
    for state in group._states.values():
        for ring in state.rings:
            ring.warm_up()
    warm_up_silence()
    warm_up_pairs()
