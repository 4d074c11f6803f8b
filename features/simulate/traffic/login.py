"""Genuine logins: often just before an online payment, sometimes with a forgotten password."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.simulate.strings import gather
from features.simulate.traffic import payment
from features.simulate.world import Block, Rows, World, times_in

__all__ = ["METHODS", "columns", "dress", "keys", "make"]

METHODS = ("password", "mfa", "token", "other")
PASSWORD, MFA, TOKEN, OTHER = 0, 1, 2, 3
_METHOD_NAMES = pl.Series(METHODS)

BEFORE_PAYMENT_SHARE = 0.5
"""Share of logins that come just before an online payment of the same user."""

BEFORE_PAYMENT_S = (5.0, 180.0)
FORGOTTEN_SHARE = 0.008
"""Share of logins with two or three failures of the same user just before."""

NO_DEVICE_SHARE = 0.03


def make(world: World, block: Block) -> Rows:
    """The genuine logins of a block."""
    n = world.count("login", block)
    who_pays = _online_payers(world, block)
    rng = world.rng(block, "login")
    after = min(int(BEFORE_PAYMENT_SHARE * n), len(who_pays[0]))
    chosen = rng.permutation(len(who_pays[0]))[:after]
    wait = rng.uniform(*BEFORE_PAYMENT_S, after) * 1e6
    # A wait that would reach back beyond the block is cut to a part of the way: blocks stand alone.
    since = who_pays[1][chosen] - block.start_us
    early = since - np.where(wait < since, wait, rng.random(after) * since)
    time_us = np.concatenate(
        [block.start_us + early.astype(np.int64), times_in(rng, block, n - after)]
    )
    card = world.population.active_cards(rng, n - after, block.start_us)
    user = np.concatenate([who_pays[0][chosen], world.population.card_user[card]])
    forgot = _forget(world, rng, block, user, time_us, after)
    rows = dress(world, rng, time_us, user)
    rows["success"] &= ~forgot
    rows["method"][forgot] = PASSWORD
    return rows


def _online_payers(
    world: World, block: Block
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Users and times of the block's payments that look like online ones."""
    rng, time_us, card = payment.who_and_when(world, block)
    online = rng.random(len(card)) < world.population.card_online[card]
    return world.population.card_user[card[online]], time_us[online]


def _forget(
    world: World,
    rng: np.random.Generator,
    block: Block,
    user: npt.NDArray[np.int32],
    time_us: npt.NDArray[np.int64],
    after: int,
) -> npt.NDArray[np.bool_]:
    """Turn some rows into failures just before another login of the same user, in place."""
    n = len(user)
    failed = np.zeros(n, np.bool_)
    leaders = np.flatnonzero(rng.random(n) < FORGOTTEN_SHARE)
    spare = rng.permutation(np.arange(after, n))
    tries = rng.integers(2, 4, len(leaders))
    leader = np.repeat(leaders, tries)
    nth = np.concatenate([np.arange(1, t + 1) for t in tries]) if len(tries) else np.zeros(0)
    spare = spare[~np.isin(spare, leaders)][: len(leader)]
    leader, nth = leader[: len(spare)], nth[: len(spare)]
    wait = (nth * rng.uniform(6.0, 25.0, len(spare)) * 1e6 * world.pace).astype(np.int64)
    user[spare] = user[leader]
    time_us[spare] = np.maximum(block.start_us, time_us[leader] - wait)
    failed[spare] = True
    return failed


def dress(
    world: World,
    rng: np.random.Generator,
    time_us: npt.NDArray[np.int64],
    user: npt.NDArray[np.integer],
) -> Rows:
    """Genuine-looking logins of the given users at the given times."""
    people, n = world.population, len(time_us)
    city, away, _ = world.city_of(user, time_us)
    rows: Rows = {"time_us": time_us, "user": user.astype(np.int32)}
    payment.place_people(world, rng, rows, user, city, away)
    rows["device"][rng.random(n) < NO_DEVICE_SHARE] = -1
    drawn = rng.random(n)
    method = np.full(n, TOKEN, np.int32)
    method[drawn < people.user_method[user, 1]] = MFA
    method[drawn < people.user_method[user, 0]] = PASSWORD
    rows["method"] = method
    slip = np.where(method == PASSWORD, people.user_forgetful[user], 0.005)
    rows["success"] = rng.random(n) >= slip
    return rows


def keys(world: World, rows: Rows) -> npt.NDArray[np.int32]:
    """Partition of each row: that of its user."""
    partition: npt.NDArray[np.int32] = world.population.user_partition[rows["user"]]
    return partition


def columns(world: World, rows: Rows) -> dict[str, Any]:
    """The declared fields, id and time excepted."""
    people = world.population
    return {
        "user_id": gather(people.user_names, rows["user"]),
        "device_id": gather(world.devices, rows["device"]),
        "ip": gather(world.addresses, rows["address"]),
        "country": gather(people.country_names, rows["country"]),
        "latitude": pl.Series(rows["latitude"], nan_to_null=True),
        "longitude": pl.Series(rows["longitude"], nan_to_null=True),
        "method": gather(_METHOD_NAMES, rows["method"]),
        "success": rows["success"],
    }
