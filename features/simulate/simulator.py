"""The simulator: event time in fixed blocks, each made on its own, sliced to what is asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from features.batch import EventBatch
from features.errors import ConfigError
from features.events import event_types as declared_types
from features.simulate import mix
from features.simulate.attacks import attacks as all_attacks
from features.simulate.campaigns import Timetable
from features.simulate.population import infrastructure, population
from features.simulate.strings import numbered
from features.simulate.traffic import traffic
from features.simulate.world import Block, Rows, World, take_rows

__all__ = ["ATTACKS", "IN_MIX", "SILENCES", "Simulator"]

SILENCES_FROM = 1_001
"""Code of the first silence; chosen: beyond all attacks that anyone will add."""

ATTACKS: dict[str, int] = {
    name: code
    for code, name in enumerate((n for n, a in all_attacks().items() if any(a.events)), start=1)
}
"""Attack that labels events -> its code in `EventBatch.truth`; 0 is genuine."""

IN_MIX: tuple[str, ...] = tuple(name for name in ATTACKS if all_attacks()[name].by_default)
"""Those of them that happen where none are named."""

SILENCES: dict[str, int] = {
    name: code
    for code, name in enumerate((n for n in all_attacks() if n not in ATTACKS), SILENCES_FROM)
}
"""Attack that lets events stay away -> its code in the truth of an absence."""

BLOCK_EVENTS = 8_192
"""Events of a block, about. Measured on one core: blocks of 5,000 give 0.95 M events/s and hold a
paced source for 6 ms at a time, of 25,000 1.9 M and 15 ms, of 100,000 2.4 M and 47 ms (a round has
100). The blocks are part of what a seed means: another number makes other events."""

BLOCKS_KEPT = 4
LABELS_KEPT = 8_192
"""Blocks whose events (and whose labels) are kept to be sliced again."""

ROWS_PER_BLOCK_MAX = 1 << 20
"""Offsets of a block start at its number times this."""

T = TypeVar("T")

_BLOCK_MS = (
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    30_000,
    60_000,
    120_000,
    300_000,
    600_000,
    900_000,
    1_800_000,
    3_600_000,
)
"""Lengths a block may have; all divide the hour, in which habits change."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A block as it is kept: batches by type, and what `labels` gives for it."""

    batches: dict[str, EventBatch]
    labels: pl.DataFrame


class Simulator:
    """Events of a simulated world with labelled attacks; any span of time, cut in any way.

    Parameters
    ----------
    seed : of the traffic and the attacks
    population_seed : of the people, merchants and hosts
    start_us : where event time starts by convention of the caller; `span` takes any time
    events_per_s : genuine events per second of event time, all four types together
    cards : cards of the population; the rest of it follows
    anomaly_share : attack events over all events
    repeat_share : share of events that stand in the stream twice (same id and content)
    event_types : types to make; each keeps its own rate and the very events it has among all types
    attacks : names to use, None for all; the share is spread over those used
    strength : bounds to draw the strength of campaigns from evenly; None for the default mix
    local_money : each country pays in its own currency (`features.simulate.exchange`), where
        otherwise there are four of like worth; the same events else

    Raises
    ------
    ConfigError : unknown type or attack, numbers out of range; all faults at once

    Examples
    --------
    >>> simulator = Simulator(seed=7, population_seed=1, start_us=0, events_per_s=2.0, cards=1000)
    >>> batches = simulator.span(0, 3_600_000_000)
    >>> sum(len(b) for b in batches.values()) > 7000
    True
    """

    attacks: dict[str, int] = ATTACKS

    def __init__(
        self,
        *,
        seed: int,
        population_seed: int = 1,
        start_us: int = 0,
        events_per_s: float = 2.0,
        cards: int = 20_000,
        anomaly_share: float = 0.001,
        repeat_share: float = 0.002,
        event_types: Sequence[str] | None = None,
        attacks: Sequence[str] | None = None,
        strength: tuple[float, float] | None = None,
        local_money: bool = False,
    ) -> None:
        _check(
            seed,
            population_seed,
            events_per_s,
            cards,
            anomaly_share,
            repeat_share,
            event_types,
            attacks,
            strength,
        )
        self.seed, self.start_us, self._repeat_share = seed, start_us, repeat_share
        wanted = set(traffic() if event_types is None else event_types)
        self.event_types = tuple(name for name in traffic() if name in wanted)
        people = population(population_seed, cards)
        park = infrastructure(population_seed, events_per_s * mix.TYPE_SHARES["metric"])
        devices, addresses = people.pools(seed)
        self.world = World(
            seed=seed,
            population=people,
            infrastructure=park,
            per_s={name: events_per_s * share for name, share in mix.TYPE_SHARES.items()},
            devices=devices,
            addresses=addresses,
            local_money=local_money,
        )
        length_ms = max(
            _BLOCK_MS[0], *(m for m in _BLOCK_MS if m * events_per_s <= 1000 * BLOCK_EVENTS), 0
        )
        self.block_us = 1000 * length_ms
        chosen = {
            n: a
            for n, a in all_attacks().items()
            if (a.by_default if attacks is None else n in attacks)
        }
        self.timetable = Timetable(
            self.world,
            chosen,
            ATTACKS | SILENCES,
            events_per_s * anomaly_share,
            strength,
            self.block_us,
        )
        self._blocks: OrderedDict[int, _Made] = OrderedDict()
        self._labels: OrderedDict[int, pl.DataFrame] = OrderedDict()

    def span(self, start_us: int, end_us: int) -> dict[str, EventBatch]:
        """Events with `start_us` <= time < `end_us`, by type, ordered by (time, partition, offset).

        A pure function of the simulator's parameters and the span: cut it anywhere, and the parts
        one after another are the whole, byte for byte.

        Returns
        -------
        dict of event type -> EventBatch with `truth`; `due_ns` is 0, a source sets it
        """
        if end_us <= start_us:
            return {name: _empty(name) for name in self.event_types}
        numbers = range(start_us // self.block_us, -(-end_us // self.block_us))
        made = [self._block(number).batches for number in numbers]
        return {
            name: _join(name, [_cut(batches[name], start_us, end_us) for batches in made])
            for name in self.event_types
        }

    def labels(self, start_us: int, end_us: int) -> pl.DataFrame:
        """The attack events of a span, once each.

        Returns
        -------
        event_id, event_type, time_us, attack, campaign (name), strength
        """
        numbers = (
            range(start_us // self.block_us, -(-end_us // self.block_us))
            if end_us > start_us
            else ()
        )
        frames = [self._labels[n] if n in self._labels else self._block(n).labels for n in numbers]
        if not frames:
            return self._label_frame({})
        time_us = pl.col("time_us")
        return pl.concat(frames).filter((time_us >= start_us) & (time_us < end_us))

    def silences(self, start_us: int, end_us: int) -> pl.DataFrame:
        """Who was silenced in a span, and when.

        Returns
        -------
        attack, campaign (name), strength, entity_type, entity, start_us, end_us
        """
        schema = {"attack": pl.String, "campaign": pl.String, "strength": pl.Float64,
                  "entity_type": pl.String, "entity": pl.String, "start_us": pl.Int64,
                  "end_us": pl.Int64}  # fmt: skip
        found = [
            (one.attack, one.name, one.strength, kind, name, silence.start_us, silence.end_us)
            for one, silence in self.timetable.silences(start_us, end_us)
            for kind, name in silence.entities
        ]
        return pl.DataFrame(found, schema=schema, orient="row")

    def absence_truth(self, absences: EventBatch) -> npt.NDArray[np.int16]:
        """Which absences are those of silenced entities, int16 (n,): code of the attack or 0.

        One is, where the entity was silenced for at least half of the time it had been silent.
        """
        truth = np.zeros(len(absences), np.int16)
        if not len(absences):
            return truth
        frame = absences.frame
        since_us, due_us = frame["since_us"].to_list(), frame["time_us"].to_list()
        known = self.silences(min(since_us), max(due_us))
        stretches: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
        for row in known.iter_rows(named=True):
            stretch = (row["start_us"], row["end_us"], SILENCES[row["attack"]])
            stretches.setdefault((row["entity_type"], row["entity"]), []).append(stretch)
        for i, key in enumerate(zip(frame["entity_type"], frame["entity"], strict=True)):
            for start_us, end_us, code in stretches.get(key, ()):
                shared_us = min(end_us, due_us[i]) - max(start_us, since_us[i])
                if 2 * shared_us >= due_us[i] - since_us[i]:
                    truth[i] = code
        return truth

    def _block(self, number: int) -> _Made:
        """The block, made now or kept from before."""
        made = self._blocks.get(number)
        if made is not None:
            self._blocks.move_to_end(number)
            return made
        block = Block(number, number * self.block_us, (number + 1) * self.block_us)
        rows = {name: traffic()[name].make(self.world, block) for name in self.event_types}
        rows = self.timetable.strike(block, rows)
        frames = {name: self._frame(name, block, part) for name, part in rows.items()}
        labels = self._label_frame(
            {name: (batch.frame["event_id"], part) for name, (batch, part) in frames.items()}
        )
        made = _Made({name: batch for name, (batch, _) in frames.items()}, labels)
        _keep(self._blocks, number, made, BLOCKS_KEPT)
        _keep(self._labels, number, labels, LABELS_KEPT)
        return made

    def _frame(self, name: str, block: Block, rows: Rows) -> tuple[EventBatch, Rows]:
        """Rows in order, numbered, repeated where the producer does, with strings."""
        partition = traffic()[name].keys(self.world, rows)
        since = rows["time_us"] - block.start_us
        order = np.argsort(since * 64 + partition, kind="stable")
        n = len(order)
        again = self.world.rng(block, f"repeat {name}").random(n) < self._repeat_share
        nth = np.arange(n)
        if again.any():
            nth = np.repeat(nth, 1 + again)
            order = order[nth]
        rows = take_rows(rows, order)
        ids = numbered(f"{name[0]}-{self.seed}-{block.number}-", n)
        columns = {
            "event_id": ids if n == len(nth) else ids.gather(nth),
            "time_us": rows["time_us"],
            **traffic()[name].columns(self.world, rows),
        }
        declared = declared_types()[name].schema
        frame = pl.DataFrame([pl.Series(c, columns[c], dtype) for c, dtype in declared.items()])
        offset = block.number * ROWS_PER_BLOCK_MAX + np.arange(len(order), dtype=np.int64)
        due_ns = np.zeros(len(order), np.int64)
        batch = EventBatch(name, frame, partition[order], offset, due_ns, rows["truth"])
        return batch, rows

    def _label_frame(self, made: dict[str, tuple[pl.Series, Rows]]) -> pl.DataFrame:
        """The labels of a block, sorted by time."""
        names = {code: name for name, code in ATTACKS.items()}
        found: list[tuple[str, str, int, str, str, float]] = []
        for event_type, (ids, rows) in made.items():
            seen: set[str] = set()
            for i in np.flatnonzero(rows["truth"]):
                event_id = ids[int(i)]
                if event_id in seen:
                    continue
                seen.add(event_id)
                attack = names[int(rows["truth"][i])]
                campaign = self.timetable.campaign(attack, int(rows["campaign"][i]))
                found.append(
                    (
                        event_id,
                        event_type,
                        int(rows["time_us"][i]),
                        attack,
                        campaign.name,
                        campaign.strength,
                    )
                )
        found.sort(key=lambda row: (row[2], row[1], row[0]))
        schema = {
            "event_id": pl.String,
            "event_type": pl.String,
            "time_us": pl.Int64,
            "attack": pl.String,
            "campaign": pl.String,
            "strength": pl.Float64,
        }
        return pl.DataFrame(found, schema=schema, orient="row")


def _keep(kept: OrderedDict[int, T], number: int, value: T, most: int) -> None:
    """Remember a value, forgetting the one used longest ago."""
    kept[number] = value
    while len(kept) > most:
        kept.popitem(last=False)


def _cut(batch: EventBatch, start_us: int, end_us: int) -> EventBatch:
    """The rows of a batch in order that lie within the span, without copying."""
    time_us = batch.time_us
    low, high = (int(i) for i in np.searchsorted(time_us, [start_us, end_us]))
    return batch.rows(low, high)


def _join(name: str, batches: list[EventBatch]) -> EventBatch:
    """Batches of one type one after another."""
    if len(batches) == 1:
        return batches[0]
    truth: list[npt.NDArray[np.int16]] = [b.truth for b in batches if b.truth is not None]
    return EventBatch(
        name,
        pl.concat([b.frame for b in batches], rechunk=True),
        np.concatenate([b.partition for b in batches]),
        np.concatenate([b.offset for b in batches]),
        np.concatenate([b.due_ns for b in batches]),
        np.concatenate(truth),
    )


def _empty(name: str) -> EventBatch:
    """A batch without events."""
    frame = pl.DataFrame(schema=declared_types()[name].schema)
    none = np.zeros(0, np.int64)
    return EventBatch(name, frame, none.astype(np.int32), none, none, none.astype(np.int16))


def _check(
    seed: int,
    population_seed: int,
    events_per_s: float,
    cards: int,
    anomaly_share: float,
    repeat_share: float,
    event_types: Sequence[str] | None,
    attacks: Sequence[str] | None,
    strength: tuple[float, float] | None,
) -> None:
    """ConfigError with every fault of the parameters."""
    faults: list[str] = []
    if seed < 0 or population_seed < 0:
        faults.append(f"simulator: seeds must not be negative, got {seed} and {population_seed}")
    if not 0.0 < events_per_s <= 5e6:
        faults.append(f"simulator: events_per_s must lie in (0, 5e6], got {events_per_s}")
    if not 100 <= cards <= 10_000_000:
        faults.append(f"simulator: cards must lie in [100, 10,000,000], got {cards}")
    for name, share in (("anomaly_share", anomaly_share), ("repeat_share", repeat_share)):
        if not 0.0 <= share <= 0.5:
            faults.append(f"simulator: {name} must lie in [0, 0.5], got {share}")
    for kind, given, valid in (
        ("event type", event_types, traffic()),
        ("attack", attacks, ATTACKS | SILENCES),
    ):
        unknown = [name for name in given or () if name not in valid]
        if unknown:
            faults.append(
                f"simulator: unknown {kind} {', '.join(map(repr, unknown))};"
                f" valid are {', '.join(valid)}"
            )
        if given is not None and not given and kind == "event type":
            faults.append(f"simulator: no event type given; valid are {', '.join(valid)}")
    if strength is not None and not mix.STRENGTH_MIN <= strength[0] <= strength[1] <= 1.0:
        faults.append(
            "simulator: strength must be two numbers, low to high, in"
            f" [{mix.STRENGTH_MIN}, 1], got {strength}"
        )
    if faults:
        raise ConfigError(faults)
