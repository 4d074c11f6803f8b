"""What an attack is: a story that adds events to the traffic or changes some, and labels them.

An attack starts from genuine-looking rows (`traffic.*.dress`) and overrides what shows, each sign
with a chance or a size that grows with the campaign's strength: at 1 it is plain, at 0.1 nearly
genuine. Only events that are themselves part of the attack are labelled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from features.simulate import geography as geo
from features.simulate.chance import generator, key_of
from features.simulate.population import ATTACKER_NAMES
from features.simulate.world import Rows, World

__all__ = [
    "Attack",
    "Campaign",
    "Change",
    "Plan",
    "Silence",
    "attacker_address",
    "attacker_device",
    "far_city",
    "moments",
    "move",
    "shows",
]


@dataclass(frozen=True, slots=True)
class Campaign:
    """One run of an attack.

    Parameters
    ----------
    attack : name of the attack
    number : running number of the attack's campaigns in absolute time
    start_us : first moment at which it may act
    strength : in [0.1, 1]
    size : about how many events it labels
    seed : of the traffic
    """

    attack: str
    number: int
    start_us: int
    strength: float
    size: int
    seed: int

    @property
    def name(self) -> str:
        """Unique name, as in the labels."""
        return f"{self.attack}-{self.seed}-{self.number}"

    def rng(self) -> np.random.Generator:
        """The campaign's own generator, always from its beginning."""
        return generator(self.seed, key_of(self.attack), self.number, 1)


@dataclass(frozen=True, slots=True)
class Change:
    """A stretch of time in which rows of the genuine traffic are made odd.

    Parameters
    ----------
    event_type : whose rows
    start_us, end_us : the stretch, end excluded
    apply : gets world, rows (to change in place) and the indices of the rows in the stretch;
        returns the indices of those that are now part of the attack. It may depend on nothing else,
        since a stretch can be cut by a block's edge.
    """

    event_type: str
    start_us: int
    end_us: int
    apply: Callable[[World, Rows, npt.NDArray[np.intp]], npt.NDArray[np.intp]]


@dataclass(frozen=True, slots=True)
class Silence:
    """A stretch of time in which some of the traffic does not come, attacks in it included.

    Parameters
    ----------
    start_us, end_us : the stretch, end excluded
    hushes : event type -> gets world, rows and the indices of those in the stretch; says which of
        them do not come, bool. As `apply` it may depend on nothing else
    entities : entity type and name of those that say nothing at all in the stretch
    """

    start_us: int
    end_us: int
    hushes: Mapping[str, Callable[[World, Rows, npt.NDArray[np.intp]], npt.NDArray[np.bool_]]]
    entities: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a campaign does: rows it adds, by event type, changes it makes, whom it silences."""

    rows: dict[str, Rows] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    silences: tuple[Silence, ...] = ()


@dataclass(frozen=True, slots=True)
class Attack:
    """A kind of attack.

    Parameters
    ----------
    name : the name of its module
    doc : one sentence
    event_type : the type most of its events have
    events : fewest and most events a campaign labels, about; none where it silences
    lasts_s_max : longest time from a campaign's start to its last event, given the world
    plan : what a campaign does
    by_default : whether it happens where no attacks are named
    """

    name: str
    doc: str
    event_type: str
    events: tuple[int, int]
    lasts_s_max: Callable[[World], float]
    plan: Callable[[World, Campaign], Plan]
    by_default: bool = True


def shows(rng: np.random.Generator, strength: float, n: int) -> npt.NDArray[np.bool_]:
    """Which of `n` rows carry a sign of the attack, bool (n,).

    The chance is (1.25 strength - 0.05)^1.3, at most 1: 3 % at 0.1, 49 % at 0.5, all from 0.84.
    Chosen so that with four signs half of a campaign's events carry one at 0.25 and nearly all at
    0.5.
    """
    chance = min(1.0, max(0.0, 1.25 * strength - 0.05)) ** 1.3
    drawn: npt.NDArray[np.bool_] = rng.random(n) < chance
    return drawn


def moments(
    rng: np.random.Generator, start_us: int, n: int, wait_s: tuple[float, float], last_s: float
) -> npt.NDArray[np.int64]:
    """`n` moments from `start_us` on, `wait_s` apart, the last within `last_s`, int64 (n,)."""
    after = np.cumsum(rng.uniform(*wait_s, n))
    after *= min(1.0, 0.999 * last_s / after[-1])
    return start_us + (after * 1e6).astype(np.int64)


def attacker_device(world: World, campaign: Campaign, nth: int = 0) -> int:
    """Index of a device that only attackers have."""
    number = key_of(campaign.attack) + 8 * campaign.number + nth
    return world.population.devices + number % ATTACKER_NAMES


def attacker_address(world: World, campaign: Campaign, nth: int = 0) -> int:
    """Index of an address that only attackers have."""
    number = key_of(campaign.attack) + 8 * campaign.number + nth
    return world.population.addresses + number % ATTACKER_NAMES


def far_city(rng: np.random.Generator, country: int) -> int:
    """A city outside the given country, any as likely."""
    others = np.flatnonzero(country != geo.CITY_COUNTRY)
    return int(others[rng.integers(len(others))])


def move(
    rng: np.random.Generator, rows: Rows, at: npt.NDArray[np.bool_], city: npt.NDArray[np.integer]
) -> None:
    """Put the marked rows of people into the given cities (n,), in place."""
    n = int(at.sum())
    city = city[at]
    rows["latitude"][at] = np.round(geo.CITY_LATITUDE[city] + rng.normal(0, 0.05, n), 4)
    rows["longitude"][at] = np.round(geo.CITY_LONGITUDE[city] + rng.normal(0, 0.05, n), 4)
    rows["country"][at] = geo.CITY_COUNTRY[city]
