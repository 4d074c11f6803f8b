"""The simulated world as traffic and attacks see it: population, rates, seed, blocks of time.

`Rows` is the coded form of events: columns of numbers and of indices into pools of names. Traffic
makes rows, attacks add to them or change them, and only then are they made into frames with
strings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.simulate.chance import generator, key_of, unit
from features.simulate.exchange import COUNTRY_LOCAL, LOCAL_CURRENCIES
from features.simulate.geography import CITY_WEIGHT
from features.simulate.population import DAY_US, Infrastructure, Population

__all__ = ["Block", "Rows", "World", "concat_rows", "take_rows", "times_in"]

Rows = dict[str, npt.NDArray[Any]]
"""Column name -> array (n,); always `time_us`, and `truth` and `campaign` once attacks are in."""

JOURNEY_US = 5 * DAY_US
"""A person decides about a journey every five days, on a day of the person's own."""

JOURNEY_SHARE = 0.02
"""Share of those decisions that are for going; chosen: about 1.2 % of people are away at any
time."""

BURST_REFERENCE_S = 21_600.0
"""Mean time between two payments of a card for which attacks run at their natural pace; a quarter
day, about that of the default population."""

PACE_MIN = 0.02
"""Fastest pace against the natural one, for simulations in which cards pay every few seconds."""


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of event time made at once: [start_us, end_us), aligned to absolute time."""

    number: int
    start_us: int
    end_us: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end_us - self.start_us) / 1e6


@dataclass(frozen=True, slots=True)
class World:
    """All that traffic and attacks may know.

    Parameters
    ----------
    seed : of the traffic
    population, infrastructure : who there is
    per_s : event type -> genuine events per second of event time
    local_money : whether each country pays in its own currency, in its own units
    """

    seed: int
    population: Population
    infrastructure: Infrastructure
    per_s: dict[str, float]
    devices: pl.Series = field(repr=False)
    addresses: pl.Series = field(repr=False)
    local_money: bool = False

    def currency_of(self, country: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Index into `currencies` of the currency paid with in each country."""
        table = COUNTRY_LOCAL if self.local_money else self.population.country_currency
        return np.asarray(table[country])

    @property
    def currencies(self) -> pl.Series:
        """Codes of the currencies of this world."""
        return pl.Series(LOCAL_CURRENCIES) if self.local_money else self.population.currency_names

    def rng(self, block: Block, purpose: str) -> np.random.Generator:
        """The generator of one purpose in one block."""
        return generator(self.seed, key_of(purpose), block.number)

    def count(self, event_type: str, block: Block) -> int:
        """How many genuine events of the type fall into the block: in the long run, the rate."""
        rate = self.per_s[event_type] * block.seconds
        return int(np.floor((block.number + 1) * rate) - np.floor(block.number * rate))

    @property
    def pace(self) -> float:
        """Factor on the waits of attacks on people: denser traffic, faster attacks."""
        gap_s = self.population.cards / max(self.per_s["payment"], 1e-9)
        return float(np.clip(gap_s / BURST_REFERENCE_S, PACE_MIN, 1.0))

    def city_of(
        self, user: npt.NDArray[np.integer], time_us: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Where people are: city, whether away from home, whether on the way (no till in reach).

        Returns
        -------
        int32 (n,), bool (n,), bool (n,)
        """
        turn = time_us / JOURNEY_US + self.population.user_phase[user]
        period = np.floor(turn).astype(np.int64)
        drawn = unit(self.seed ^ key_of("journey"), user, period)
        going = drawn < JOURNEY_SHARE
        within = turn - period
        city = self.population.user_city[user]
        away = going & (within > 0.3) & (within < 0.9)
        if not going.any():
            return city, away, going
        moving = going & ((np.abs(within - 0.3) < 0.06) | (np.abs(within - 0.9) < 0.06))
        goal = np.floor(drawn / JOURNEY_SHARE * len(CITY_WEIGHT)).astype(np.int32)
        goal = np.minimum(goal, len(CITY_WEIGHT) - 1)
        return np.where(away, goal, city).astype(np.int32), away & (goal != city), moving


def times_in(rng: np.random.Generator, block: Block, n: int) -> npt.NDArray[np.int64]:
    """`n` moments spread evenly by chance over the block, in order, int64 (n,)."""
    moments = block.start_us + (rng.random(n) * (block.end_us - block.start_us)).astype(np.int64)
    moments.sort()
    return moments


def concat_rows(parts: list[Rows]) -> Rows:
    """Rows of several sources, one after another; columns are those of the first."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def take_rows(rows: Rows, at: npt.NDArray[Any]) -> Rows:
    """The rows at the given places (indices or a mask)."""
    return {name: column[at] for name, column in rows.items()}
