"""A stream on its way through all groups, cut, sharded, late, stopped and begun again at will.

`Flow` is what the steps of the real flow do to a stream, without a process around them: lanes send
rows to groups, groups give features and absences, rows given before are amended, a restart reads a
snapshot and plays the rounds since again. Tests compare what comes out of two of them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from features.absences import Names, Peers
from features.batch import EventBatch
from features.catalog import Catalog
from features.clock import LaneClock
from features.columns import Columns
from features.engine import GroupEngine, amend, assemble, merge, split
from features.events import event_code, event_type
from features.labels import Label
from features.operations import DISTINCT_MAX
from features.plan import ABSENCE
from features.repeats import RepeatFilter, event_keys
from features.snapshots import join
from tests.streams import START_US, cut

__all__ = [
    "HOUR_US",
    "Batches",
    "Flow",
    "Round",
    "arrivals",
    "assert_same_absences",
    "assert_same_rows",
    "assert_same_states",
    "labels_of",
    "rounds",
    "segments",
]

Arrays = dict[str, Any]
Batches = dict[str, EventBatch]
Arrival = tuple[str, int]
"""Event type and row of its batch."""

Timed = tuple[str, int, int]
"""That, and the moment at which it comes."""

HOUR_US = 3_600_000_000
ROUND_US = 100_000
HORIZON_US = HOUR_US
"""Length of a round by the clock of the source, and how long repeats are known."""

SHARES = ("holder_silent_share", "pool_silent_share")
"""Of an absence: what depends on how far the groups have told of silence by the round."""

FIRST = 17
"""Events of a stream that come in time where some are ahead of it: one more than a clock needs."""

ROWS = 64
"""Rows of a segment with a verdict each, at most."""


@dataclass(frozen=True, slots=True)
class Round:
    """What a round brings: events, verdicts, and the event-time clock with them; `due_us` is that
    of the place furthest behind, -1 where nothing is known of places."""

    batches: Batches
    labels: tuple[Label, ...]
    clock_us: int
    due_us: int = -1


class Flow:
    """Groups and lanes, fed round by round.

    Parameters
    ----------
    cat : what to compute
    groups, lanes : how many
    late_s, ttl_h : as of `GroupEngine`
    due_max : absences of an entity type a group may tell of in a round
    distinct_max, exact_max, emptied_max : as of `GroupEngine`
    lane_clock : tells the time of rounds whose moment is given; None: it is that of the newest
        event
    """

    def __init__(
        self,
        cat: Catalog,
        groups: int = 1,
        lanes: int = 1,
        late_s: float = 0.0,
        ttl_h: Mapping[str, float] | None = None,
        due_max: int = 1 << 40,
        distinct_max: int = DISTINCT_MAX,
        exact_max: int = 0,
        lane_clock: LaneClock | None = None,
        emptied_max: int = 0,
    ) -> None:
        self.lane_clock = lane_clock
        self._seen: dict[str, set[int]] = {}
        self.cat, self.groups, self.lanes = cat, groups, lanes
        self.late_s, self.ttl_h, self.due_max = late_s, ttl_h, due_max
        self.kept = {
            "exact_max": exact_max, "distinct_max": distinct_max, "emptied_max": emptied_max,
        }  # fmt: skip
        self.rounds: list[Round] = []
        self.values: dict[Arrival, np.ndarray[Any, Any]] = {}
        self.sequences: dict[Arrival, np.ndarray[Any, Any]] = {}
        self.absences: dict[str, tuple[Any, ...]] = {}
        self.due_us: dict[str, int] = {}
        self.corrected = self.duplicates = self.restarts = 0
        self.clock_us = 0
        self._given: dict[tuple[int, int, str], Any] = {}
        self._chain: list[list[Arrays]] = []
        self._filters: list[list[Arrays]] = [[] for _ in range(lanes)]
        self._begun = self._saved = 0
        self.copying = False
        self._start([GroupEngine(cat, g, late_s, ttl_h, **self.kept) for g in range(groups)])

    def _start(self, engines: list[GroupEngine]) -> None:
        """Be a process that has just begun, with groups as they are."""
        self.engines = engines
        self._names = [Names() for _ in range(self.lanes)]
        self._peers = Peers()
        self._doors = [RepeatFilter(HORIZON_US) for _ in range(self.lanes)]

    def feed(
        self, batches: Batches, labels: tuple[Label, ...] = (), clock_us: int = 0, cut_us: int = 0
    ) -> None:
        """Let a round through.

        Parameters
        ----------
        clock_us : the clock where it is beyond the events'
        cut_us : moment at which the round is cut, for `lane_clock`, which refuses nothing
        """
        due_us = -1
        if self.lane_clock is not None and cut_us:
            new = {name: batch.take(self._new(batch)) for name, batch in batches.items()}
            for batch in new.values():
                assert not self.lane_clock.judge(batch, cut_us).any()
            newest = self.lane_clock.advance(new, cut_us)
            due_us = self.lane_clock.due_us
        else:
            newest = max((int(b.time_us[-1]) for b in batches.values() if len(b)), default=0)
        self.clock_us = max(self.clock_us, clock_us, newest)
        self.rounds.append(Round(batches, labels, self.clock_us, due_us))
        self._pass(len(self.rounds) - 1)

    def _new(self, batch: EventBatch) -> np.ndarray[Any, Any]:
        """Rows of a batch that come for the first time: no clock hears of a repeat."""
        seen = self._seen.setdefault(batch.event_type, set())
        found = [i for i, offset in enumerate(batch.offset.tolist()) if offset not in seen]
        seen.update(batch.offset.tolist())
        return np.array(found, np.int64)

    def finish(self, clock_us: int) -> None:
        """Let time pass until nobody is left to be told of."""
        self.feed({}, clock_us=clock_us)
        while any(engine.overdue for engine in self.engines):
            self.feed({})

    def _pass(self, number: int) -> None:
        """Let round `number` through, for the first time or again."""
        round_ = self.rounds[number]
        mine = [self._admitted(round_.batches, lane, number) for lane in range(self.lanes)]
        sent = []
        for lane, batches in enumerate(mine):
            parts = split(
                self.cat, batches, self.groups, lane, number, round_.clock_us, self._names[lane],
                round_.due_us,
            )  # fmt: skip
            # The control lane is the first; what it says goes to all groups.
            sent.append([replace(part, labels=() if lane else round_.labels) for part in parts])
        results = [
            engine.process(merge([parts[g] for parts in sent]), tuple(range(self.lanes)),
                           self.due_max)
            for g, engine in enumerate(self.engines)
        ]  # fmt: skip
        for lane, batches in enumerate(mine):
            home = [result[lane] for result in results if lane in result]
            for name, matrix in assemble(self.cat, batches, home).items():
                self._given[number, lane, name] = batches[name].offset, matrix
                self._keep(number, lane, name)
            self._amend(lane, [c for result in home for c in result.corrections])
        told = self._peers.take(one for result in results for one in result[0].absences)
        if told is not None:
            self._hear(told)

    def _admitted(self, batches: Batches, lane: int, number: int) -> Batches:
        """A lane's events of a round, without those it has seen."""
        cut_us = START_US + number * ROUND_US
        kept: Batches = {}
        for name, batch in batches.items():
            own = batch.take(np.flatnonzero(batch.partition % self.lanes == lane))
            ids = own.offset.astype(np.uint64) + np.uint64(1)
            fresh = self._doors[lane].admit(event_keys(name, ids), cut_us)
            self.duplicates += len(own) - int(fresh.sum())
            if fresh.any():
                kept[name] = own.take(np.flatnonzero(fresh))
        return kept

    def _keep(self, number: int, lane: int, name: str) -> None:
        """Write down what rows of a round give."""
        offsets, matrix = self._given[number, lane, name]
        for i, offset in enumerate(offsets.tolist()):
            self.values[name, offset] = matrix.values[i]
            self.sequences[name, offset] = matrix.sequence[i]

    def _amend(self, lane: int, corrections: list[Any]) -> None:
        """Correct what rows of earlier rounds have given."""
        self.corrected += sum(len(c.rows) for c in corrections)
        touched = {(int(r), c.event_type) for c in corrections for r in c.rounds}
        for number, name in sorted(touched):
            offsets, matrix = self._given[number, lane, name]
            matrix = amend(self.cat, matrix, number, corrections)
            self._given[number, lane, name] = offsets, matrix
            self._keep(number, lane, name)

    def _hear(self, told: EventBatch) -> None:
        """Write down absences; one told again after a restart is the same."""
        matrix = assemble(self.cat, {ABSENCE: told}, [])[ABSENCE]
        features = [n for n in matrix.names if "silent_share" not in n]
        for i, row in enumerate(told.frame.drop(SHARES).iter_rows(named=True)):
            values = [float(matrix.column(n)[i]) for n in features]
            found = repr((*row.values(), *values))
            known = self.absences.setdefault(row["event_id"], found)
            self.due_us[row["event_id"]] = int(row["time_us"])
            assert known == found

    def begin(self, everything: bool) -> None:
        """Begin a snapshot of this moment."""
        everything = everything or not self._chain
        for engine in self.engines:
            engine.begin(everything)
        if everything:
            self._filters_begun = [[door.full()] for door in self._doors]
        else:
            self._filters_begun = [
                [*known, door.delta()]
                for known, door in zip(self._filters, self._doors, strict=True)
            ]
        self._everything, self._begun, self.copying = everything, len(self.rounds), True

    def proceed(self, parts: int) -> None:
        """Copy one of `parts` parts of the snapshot under way."""
        for engine in self.engines:
            engine.proceed(parts)

    def take(self) -> None:
        """End the snapshot under way."""
        taken = [join(engine.take()) for engine in self.engines]
        before = [[] for _ in taken] if self._everything else self._chain
        self._chain = [[*c, part] for c, part in zip(before, taken, strict=True)]
        self._filters, self._saved = self._filters_begun, self._begun
        self.copying = False

    def saved(self) -> list[GroupEngine]:
        """The groups as the newest whole snapshot has them, through bytes."""
        chains = pickle.loads(pickle.dumps(self._chain)) or [[] for _ in range(self.groups)]
        return [
            GroupEngine.restore(
                self.cat,
                g,
                chain[0] if chain else None,
                chain[1:],
                self.late_s,
                self.ttl_h,
                **self.kept,
            )
            for g, chain in enumerate(chains)
        ]

    def restart(self) -> None:
        """Be killed: a snapshot under way is lost, the rounds since the last whole one come again.

        The next snapshot is a whole one: what the lost one had taken is in no other.
        """
        self._start(self.saved())
        for door, chain in zip(self._doors, self._filters, strict=True):
            for arrays in chain:
                door.load(arrays)
        self.copying, self.restarts = False, self.restarts + 1
        for number in range(self._saved, len(self.rounds)):
            self._pass(number)


def segments(batches: Batches, marks_us: Sequence[int]) -> list[Batches]:
    """A stream in stretches of event time that no late row crosses."""
    return cut(batches, sorted(set(marks_us)))


def arrivals(
    batches: Batches, rng: np.random.Generator, late_s: float, repeats: float, early_s: float = 0.0
) -> list[Timed]:
    """Events of a stretch in the order they come, and when.

    Some come late within the bound, some twice; of a fifth the clock was fast by up to `early_s`.
    The first come in time, until a lane's clock knows the time by them.
    """
    rows = [(name, int(t), i) for name, b in batches.items() for i, t in enumerate(b.time_us)]
    times = np.array([t for _, t, _ in rows], np.int64)
    share = rng.choice([0.0, 0.1, 1.0], len(rows))
    late_us = (rng.random(len(rows)) * share * max(1e6 * late_s - 1.0, 0.0)).astype(np.int64)
    if early_s:
        fast = rng.random(len(rows)) < 0.2
        late_us[fast] = -(rng.random(int(fast.sum())) * 1e6 * early_s).astype(np.int64)
    moments = times + late_us
    if early_s:
        known_us = np.sort(times)[min(FIRST, len(times)) - 1]
        moments = np.where(times <= known_us, times, np.maximum(moments, known_us))
    codes = np.array([event_code(name) for name, _, _ in rows], np.int64)
    order = np.lexsort((codes, times, moments))
    found = [(rows[at][0], rows[at][2], int(moments[at])) for at in order]
    for at in np.flatnonzero(rng.random(len(found)) < repeats)[::-1].tolist():
        to = int(rng.integers(at + 1, len(found) + 1))
        found.insert(to, (*found[at][:2], found[to - 1][2]))
    return found


def rounds(
    batches: Batches, come: Sequence[Timed], sizes: Iterator[int]
) -> Iterator[tuple[Batches, int]]:
    """Those events in rounds of so many, each in the order of the stream as a lane sorts it, and
    the moment at which each round is cut."""
    done = 0
    while done < len(come):
        taken: dict[str, list[int]] = {}
        size = next(sizes)
        part = come[done : done + size]
        for name, row, _ in part:
            taken.setdefault(name, []).append(row)
        done += size
        yield (
            {n: batches[n].take(np.array(sorted(taken[n]))) for n in batches if n in taken},
            part[-1][2],
        )


def labels_of(batches: Batches, rng: np.random.Generator, many: int) -> tuple[Label, ...]:
    """Verdicts on some events, some of them said twice or overturned."""
    found = []
    for name in sorted(batches):
        batch, declared = batches[name], event_type(name)
        columns = Columns(batch)
        keys = {e: columns.key(e).view(np.int64) for e in declared.entities}
        for row in rng.integers(0, len(batch), many).tolist() if len(batch) else []:
            entities = tuple((e, int(k[row])) for e, k in keys.items() if k[row] != 0)
            event = int(batch.offset[row]) + (event_code(name) << 32)
            found.append(
                Label(
                    event_code(name), event, int(batch.time_us[row]), bool(rng.integers(2)),
                    entities, declared.primary,
                )
            )  # fmt: skip
    return tuple(found)


def assert_same_rows(found: Flow, expected: Flow) -> None:
    """Bit for bit, every row, sequences too."""
    assert found.values.keys() == expected.values.keys()
    for key, values in expected.values.items():
        np.testing.assert_array_equal(found.values[key], values, err_msg=str(key))
        np.testing.assert_array_equal(found.sequences[key], expected.sequences[key], str(key))


def assert_same_absences(found: Flow, expected: Flow, since_us: int = 0) -> None:
    """Who, when, and all that is known of it but shares of silent peers, due from a time on."""
    told, wanted = (
        {k: v for k, v in flow.absences.items() if flow.due_us[k] >= since_us}
        for flow in (found, expected)
    )
    assert told == wanted


def _by_key(flow: Flow) -> dict[tuple[str, int], dict[str, bytes]]:
    """State of each entity that lives, by array but for rings and the log."""
    apart = {"slots", "copied", "keys", "newest_us", "first_us", "labels", "emptied", "counts",
             "left"}  # fmt: skip
    apart |= {"ended"} if flow.kept["emptied_max"] else {"ended", "fed_us"}
    found = {}
    for engine in flow.engines:
        dump = engine.full()
        for entity in engine.entities:
            slots, keys = dump[f"{entity}.slots"], dump[f"{entity}.keys"]
            copied = dump[f"{entity}.copied"]
            newest_us = dump[f"{entity}.newest_us"]
            arrays = {
                n.removeprefix(f"{entity}."): a
                for n, a in dump.items()
                if n.startswith(f"{entity}.") and n.count(".") == 1
            }
            assert np.array_equal(np.sort(copied), slots)
            place = np.empty(len(slots), np.int64)
            place[copied] = np.arange(len(slots))
            ttl_us = HOUR_US if flow.ttl_h else 1 << 60
            for slot in np.flatnonzero((keys != 0) & (newest_us >= flow.clock_us - ttl_us)):
                state = {n: a[place[slot]].tobytes() for n, a in arrays.items() if n not in apart}
                found[entity, int(keys[slot])] = state | {"newest_us": newest_us[slot].tobytes()}
    return found


def assert_same_states(found: Flow, expected: Flow) -> None:
    """Bit for bit, all arrays by entity; what rings hold shows in the rows that come after."""
    a, b = _by_key(found), _by_key(expected)
    assert a.keys() == b.keys()
    differing = [
        (entity, name)
        for (entity, key), state in b.items()
        for name, saved in state.items()
        if a[entity, key][name] != saved
    ]
    assert differing == []
