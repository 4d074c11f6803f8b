"""Rounds in a row computed in one go, bit for bit as one after the other: for whoever replays them.

A round of a thousand rows costs its calls, an entity type and group each, more than its rows. What
an entity does depends on the order of its rows alone, so rounds may pass the kernels together
wherever no entity has a row that sorts before one of its rows of an earlier round. What a round
itself decides, verdicts, silence, who is forgotten, is done round by round all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from features.absences import Absences, Named, Names
from features.batch import EventBatch, Float64, Int64
from features.catalog import Catalog
from features.events import event_code, event_types
from features.labels import Label
from features.late import Changed
from features.rows import Correction, GroupFeatures
from features.silence import DUE, GAPS, KNOWN_FROM, LIMIT_S_MIN, TOLD
from features.split import split
from features.state import EntityState

__all__ = ["SpanFeatures", "SpanRows", "join_spans", "merge_spans", "pass_rounds", "split_span"]

Int16 = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class SpanRows:
    """What one lane sends to one shard group of R rounds in a row.

    Parameters
    ----------
    lane : the sender, -1 once merged
    clock_us, due_us : of each round, see `features.rows.GroupRows`; R of them
    heads, reals : as there; round after round, each in the global order
    ends : entity type -> int64 (R,), where the rows of each round end
    labels : by round, verdicts that become known before its rows
    names : as there, of all rounds
    begins : int64 (lanes, event codes, R), where each round's events begin in the batch of the
        sender's span; of other lanes 0
    """

    lane: int
    clock_us: tuple[int, ...]
    due_us: tuple[int, ...]
    heads: dict[str, Int64] = field(default_factory=dict)
    reals: dict[str, Float64] = field(default_factory=dict)
    ends: dict[str, Int64] = field(default_factory=dict)
    labels: tuple[tuple[Label, ...], ...] = ()
    names: dict[str, Named] = field(default_factory=dict)
    begins: Int64 = field(default_factory=lambda: np.zeros((0, 0, 0), np.int64))

    def pieces(self) -> Iterator[tuple[int, SpanRows]]:
        """Rounds between verdicts, and which is the first of them; the last piece has the names too
        that the others have."""
        rounds = len(self.clock_us)
        begins = [r for r in range(rounds) if r == 0 or (self.labels and self.labels[r])]
        if len(begins) == 1:
            yield 0, self
            return
        for first, end in pairwise([*begins, rounds]):
            piece = SpanRows(
                self.lane, self.clock_us[first:end], self.due_us[first:end],
                labels=self.labels[first:end], names=self.names,
                begins=self.begins[:, :, first:end],
            )  # fmt: skip
            for entity, ends in self.ends.items():
                begin, stop = int(ends[first - 1]) if first else 0, int(ends[end - 1])
                if stop > begin:
                    piece.heads[entity] = self.heads[entity][begin:stop]
                    piece.reals[entity] = self.reals[entity][begin:stop]
                    piece.ends[entity] = ends[first:end] - begin
            yield first, piece


@dataclass(frozen=True, slots=True)
class SpanFeatures:
    """What one group computed of R rounds in a row.

    Parameters
    ----------
    lanes : lane -> its rows' features, counted through all rounds
    absences : by round, lane -> what the group tells of silence
    corrections : by round, what rows of earlier rounds give now, by lane; none where nobody is told
    """

    lanes: dict[int, GroupFeatures]
    absences: list[dict[int, list[Absences]]]
    corrections: list[list[tuple[int, Correction]]] = field(default_factory=list)


def split_span(
    catalog: Catalog,
    batches: dict[str, EventBatch],
    bounds: Mapping[str, Int64],
    groups: int,
    lane: int,
    clock_us: tuple[int, ...],
    due_us: tuple[int, ...],
    names: Names,
    labels: tuple[tuple[Label, ...], ...] = (),
    only: frozenset[int] | None = None,
) -> list[SpanRows]:
    """The rows each group gets of one lane's rounds.

    Parameters
    ----------
    batches : event type -> events, round after round, each round in order
    bounds : event type -> int64 (R + 1,), where the rounds begin and end in its batch
    groups, lane, names : see `features.split.split`
    clock_us, due_us, labels : see `SpanRows`
    only : groups that get rows; None: all

    Returns
    -------
    list of `groups` SpanRows; index is the group
    """
    rounds = len(clock_us)
    of_row = {name: np.repeat(np.arange(rounds), np.diff(bounds[name])) for name in batches}
    parts = split(catalog, batches, groups, lane, names=names, rounds=of_row, only=only)
    codes = {name: event_code(name) for name in batches}
    first, begin = np.zeros(max(codes.values(), default=0) + 1, np.int64), 0
    for name, of in of_row.items():
        first[codes[name]], begin = begin, begin + len(of)
    joined = np.concatenate([np.zeros(0, np.int64), *of_row.values()])
    numbers = np.arange(rounds)
    begins = np.zeros((lane + 1, len(event_types()), rounds), np.int64)
    for name in batches:
        begins[lane, codes[name]] = bounds[name][:-1]
    found = []
    for part in parts:
        ends = {
            entity: np.searchsorted(joined[first[head[:, 2]] + head[:, 4]], numbers, side="right")
            for entity, head in part.heads.items()
        }
        found.append(
            SpanRows(
                lane, clock_us, due_us, part.heads, part.reals, ends, labels, part.names, begins
            )
        )
    return found


def merge_spans(parts: Sequence[SpanRows]) -> SpanRows:
    """The parts of several lanes as one, each round in the global order; see `rows.merge`.

    A lane that has ended has fewer rounds than the others.
    """
    if len(parts) == 1:
        return parts[0]
    rounds = max(len(part.clock_us) for part in parts)
    present = [[part for part in parts if len(part.clock_us) > r] for r in range(rounds)]
    clock_us = tuple(max(part.clock_us[r] for part in parts) for r, parts in enumerate(present))
    due_us = []
    for r, here in enumerate(present):
        told = [part.due_us[r] for part in here]
        due_us.append(min((us for us in told if us > 0), default=max(told)))
    labels = tuple(
        tuple(label for part in here if part.labels for label in part.labels[r])
        for r, here in enumerate(present)
    )
    shape = max(len(part.begins) for part in parts), parts[0].begins.shape[1], rounds
    begins = np.zeros(shape, np.int64)
    for part in parts:
        begins[: len(part.begins), :, : len(part.clock_us)] += part.begins
    merged = SpanRows(-1, clock_us, tuple(due_us), labels=labels, begins=begins)
    for entity in dict.fromkeys(e for part in parts for e in part.heads):
        mine = [part for part in parts if entity in part.heads]
        head = np.concatenate([part.heads[entity] for part in mine])
        real = np.concatenate([part.reals[entity] for part in mine])
        of = np.concatenate([_round_of(part.ends[entity]) for part in mine])
        order = np.lexsort((head[:, 3], head[:, 6], head[:, 5], head[:, 2], head[:, 1], of))
        merged.heads[entity], merged.reals[entity] = head[order], real[order]
        merged.ends[entity] = np.searchsorted(of[order], np.arange(rounds), side="right")
    for entity in dict.fromkeys(e for part in parts for e in part.names):
        named = [part.names[entity] for part in parts if entity in part.names]
        keys, texts = (np.concatenate(columns) for columns in zip(*named, strict=True))
        merged.names[entity] = keys, texts
    return merged


def _round_of(ends: Int64) -> Int64:
    """int64 (n,), the round of each row."""
    return np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))


def join_spans(found: Sequence[SpanFeatures]) -> SpanFeatures:
    """What a group computed of rounds in a row, in pieces."""
    if len(found) == 1:
        return found[0]
    lanes: dict[int, GroupFeatures] = {}
    for lane in dict.fromkeys(lane for one in found for lane in one.lanes):
        mine = [one.lanes[lane] for one in found if lane in one.lanes]
        lanes[lane] = GroupFeatures(
            lane,
            {key: _chained([one.parts[key] for one in mine if key in one.parts])
             for key in dict.fromkeys(key for one in mine for key in one.parts)},
            {name: _chained([one.sequences[name] for one in mine if name in one.sequences])
             for name in dict.fromkeys(name for one in mine for name in one.sequences)},
        )  # fmt: skip
    return SpanFeatures(
        lanes,
        [told for one in found for told in one.absences],
        [told for one in found for told in one.corrections],
    )


def _chained(parts: Sequence[tuple[Int64, npt.NDArray[Any]]]) -> tuple[Int64, npt.NDArray[Any]]:
    """Rows and what they have, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([of for _, of in parts])


@dataclass(frozen=True, slots=True)
class Told:
    """Who is told of rows of earlier rounds that give something else now.

    Parameters
    ----------
    numbers : what the rounds are called
    begins : see `SpanRows`
    tell : called with a round's place among them and what it has changed
    """

    numbers: Sequence[int]
    begins: Int64
    tell: Callable[[int, Changed], None]

    def places(self, head: Int64, of: Int64) -> tuple[Int64, Int64]:
        """int64 (n,) each: the rounds of rows, and which row of its lane's round each is.

        Parameters
        ----------
        head : int64 (n, ...), of the rows
        of : int64 (n,), places of their rounds
        """
        rows = head[:, 4] - self.begins[head[:, 3], head[:, 2], of]
        return np.asarray(self.numbers, np.int64)[of], rows


def pass_rounds(
    state: EntityState,
    head: Int64,
    reals: Float64,
    ends: Int64,
    clock_us: Sequence[int],
    behind_us: Sequence[int],
    due_us: Sequence[int],
    names: Named | None,
    after: Callable[[int, int], None],
    told: Told | None = None,
) -> tuple[Float64, Int16 | None]:
    """Let the rows of rounds pass, as many rounds together as may.

    Parameters
    ----------
    state : whose rows
    head, reals, ends, names : of `SpanRows`
    clock_us, behind_us : `clock_us` and `due_us` of the rounds
    due_us : as these, the clock of the group where nothing is known of places
    after : where the entity type has a rhythm, called at the end of a round with how many rounds
        have passed since the last call; not of rounds in which nobody is due and none was
    told : where somebody is to be told of rows of earlier rounds that late ones change; a round
        with a late row passes alone then

    Returns
    -------
    float64 (n, width) and int16 (own rows, 16, 12) or None, see `EntityState.process`
    """
    outs: list[Float64] = []
    vectors: list[Int16] = []
    starts = [0, *ends.tolist()]
    first, rounds = 0, len(starts) - 1
    while first < rounds:
        end = _together(state, head, starts, clock_us, behind_us, first, told is not None)
        begin, stop = starts[first], starts[end]
        heard: list[tuple[Int64, Int64]] | None = None
        if stop > begin:
            heard = state.hold_back() if end > first + 1 else None
            last = max(r for r in range(first, end) if starts[r + 1] > starts[r])
            logged = state.late.top
            out, emitted, changed = state.process(
                head[begin:stop], reals[begin:stop], -1, clock_us[last], behind_us[last]
            )
            state.go_on()
            if told is not None:
                if changed is not None:
                    told.tell(first, changed)
                of = np.repeat(np.arange(first, end), np.diff(starts[first : end + 1]))
                state.late.number(logged, *told.places(head[begin:stop], of))
            outs.append(out)
            if emitted is not None:
                vectors.append(emitted)
            if names is not None:
                state.name(*names)
        if state.wheel is not None:
            if heard is not None and len(heard) > 1:
                slots, marked = (np.concatenate(part) for part in zip(*heard, strict=True))
                heard = [(slots, marked)]
            at = [start - begin for start in starts[first : end + 1]]
            clock = max(clock_us[first:end])
            _end_rounds(state, heard, at, clock, due_us[first:end], partial(_from, first, after))
        first = end
    if not outs:
        return np.zeros((0, state.plan.width)), None
    values = outs[0] if len(outs) == 1 else np.concatenate(outs)
    if not vectors:
        return values, None
    return values, vectors[0] if len(vectors) == 1 else np.concatenate(vectors)


def _from(first: int, after: Callable[[int, int], None], r: int, rounds: int) -> None:
    """Call `after` with rounds counted from another one."""
    after(first + r, rounds)


def _end_rounds(
    state: EntityState,
    heard: Sequence[tuple[Int64, Int64]] | None,
    starts: Sequence[int],
    clock_us: int,
    due_us: Sequence[int],
    after: Callable[[int, int], None],
) -> None:
    """Let rhythms hear of rows that were held back, round by round, and speak after each.

    Parameters
    ----------
    heard : slots and rows of all rounds; None where they have been heard of
    starts : (R + 1,), where the rows of each round begin
    clock_us : the newest of all rounds
    due_us, after : of R rounds, see `pass_rounds`
    """
    rounds = len(due_us)
    for r in range(rounds):
        _hear(state, heard, starts[r], starts[r + 1])
        after(r, 1)
        if r or rounds == 1 or state.forgets(clock_us):
            continue
        if _quiet(state, heard, starts[1], max(due_us)):
            _hear(state, heard, starts[1], starts[-1])
            after(rounds - 1, rounds - 1)
            return


def _hear(
    state: EntityState, heard: Sequence[tuple[Int64, Int64]] | None, begin: int, end: int
) -> None:
    """Let rhythms hear of rows of those that were held back."""
    for slots, head in heard or ():
        if end > begin:
            state.listen(slots[begin:end], head[begin:end])


def _quiet(
    state: EntityState, heard: Sequence[tuple[Int64, Int64]] | None, begin: int, until_us: int
) -> bool:
    """Whether there is nothing to tell of silence in rounds to come, as their rows are heard of.

    Nobody is due, nor found overdue by a row of its own, which may be newer than what counts for
    being due; nobody's rhythm can be such that it is again before the end; nobody who was told of
    speaks again, nobody gets a rhythm.
    """
    arrays = state.arrays
    ints, floats = arrays["silence_ints"], arrays["silence_floats"]
    slots = np.concatenate([np.zeros(0, np.int64), *(slots[begin:] for slots, _ in heard or ())])
    times = np.concatenate([np.zeros(0, np.int64), *(head[begin:, 1] for _, head in heard or ())])
    until_us = max(until_us, int(times.max(initial=0)))
    due_us = ints[: state.table.used, DUE]
    if np.any((due_us > 0) & (due_us < until_us)):
        return False
    gaps = floats[slots, GAPS]
    speak_us = times[gaps >= KNOWN_FROM]
    if len(speak_us) and until_us - int(speak_us.min()) > LIMIT_S_MIN * 1e6:
        return False
    nears = (gaps < KNOWN_FROM) & (gaps + np.bincount(slots)[slots] >= KNOWN_FROM)
    return not (np.any(ints[slots, TOLD] > 0) or np.any(nears))


def _together(
    state: EntityState,
    head: Int64,
    starts: Sequence[int],
    clock_us: Sequence[int],
    behind_us: Sequence[int],
    first: int,
    told: bool,
) -> int:
    """The round before which those from `first` on may pass together; at least one does.

    Not where the log of late rows begins a generation, or a row needs no log; not where time goes
    back, as a lane ends or one is heard of again that is far behind; not where an entity may have a
    row before one of its earlier rounds. Where silence counts, or somebody is `told` of what late
    rows change, none may be late at all; where silence counts, the log may not begin among the rows
    either: its checkpoints would not know what is held back.
    """
    late, rounds = state.late, len(starts) - 1
    stop = _spoken(state, head, starts, first) if told or state.wheel is not None else rounds
    if late.late_us == 0:
        return max(stop, first + 1)
    times = head[:, 1]
    clock, due, newest = late.clock_us, late.due_us, late.newest_us
    begin_us = before_us = top = reach_us = told_us = 0
    old = False
    for r in range(first, rounds):
        begin, end = starts[r], starts[r + 1]
        if end == begin:
            continue
        if r > first and r >= stop:
            return r
        first_us, last_us = int(times[begin]), int(times[end - 1])
        since_us = late.since_us(clock_us[r], behind_us[r])
        far = newest < first_us < since_us  # so far back in order that no log is needed
        if far and state.wheel is not None and max(top, last_us) >= since_us:
            return max(r, first + 1)
        if not begin_us:
            begin_us, before_us, old = first_us, newest, far
        elif (
            clock_us[r] < told_us
            or (old and since_us < reach_us)
            or last_us < newest
            or far != old
            or not (old or begin_us >= since_us or begin_us <= before_us)
            or (first_us <= top and _meets(head, starts[first], begin, end, top))
        ):
            return r
        if not old and not late.calm(clock, due, newest, first_us, since_us):
            return max(r, first + 1)
        top, newest, clock = max(top, last_us), max(newest, last_us), max(clock, clock_us[r])
        told_us, due, reach_us = clock_us[r], behind_us[r], since_us
    return rounds


def _meets(head: Int64, first: int, begin: int, end: int, top: int) -> bool:
    """Whether a row of a round is of an entity that has one as late or later in rounds before it.

    Parameters
    ----------
    first, begin, end : where the rounds before begin, where this one begins and ends
    top : newest time of the rounds before
    """
    overlap = begin + int(np.searchsorted(head[begin:end, 1], top, side="right"))
    before = head[first:begin]
    before = before[before[:, 1] >= head[begin, 1]]
    return bool(np.isin(head[begin:overlap, 0], before[:, 0]).any())


def _spoken(state: EntityState, head: Int64, starts: Sequence[int], first: int) -> int:
    """The first round with a row that is no newer than what its entity has had (where that
    matters), or that may be of one forgotten meanwhile; their number where there is none."""
    rows, table = head[starts[first] :], state.table
    known_us = table.newest_of(rows[:, 0].view(np.uint64))
    late = rows[:, 1] <= (known_us if state.late.late_us else -1)
    if table.ttl_us and len(rows):
        late |= (known_us >= 0) & (rows[:, 1] - known_us > table.ttl_us)
        late |= rows[:, 1] - rows[:, 1].min() > table.ttl_us
    if not late.any():
        return len(starts) - 1
    return int(np.searchsorted(starts, starts[first] + late.argmax(), side="right")) - 1
