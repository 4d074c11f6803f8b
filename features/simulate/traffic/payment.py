"""Genuine card payments: favourite merchants, habits, journeys, oddities of honest people."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.simulate import geography as geo
from features.simulate.chance import pick
from features.simulate.exchange import local_amount
from features.simulate.population import ADDRESSES_PER_CITY, ADDRESSES_PER_COUNTRY
from features.simulate.strings import gather
from features.simulate.world import Block, Rows, World, times_in

__all__ = ["CHANNELS", "columns", "dress", "keys", "make", "place_people", "who_and_when"]

CHANNELS = ("pos", "online", "atm", "transfer", "other")
POS, ONLINE, ATM, TRANSFER = 0, 1, 2, 3
_CHANNEL_NAMES = pl.Series(CHANNELS)

AGAIN_SHARE = 0.06
"""Share of payments made minutes after another of the same card (a walk through a shopping
street)."""

AGAIN_S_MAX = 900.0
FAVOURITE_SHARE = 0.78
SPREE_SHARE = 0.003
"""Share of payments that are honestly far above the card's level (a bicycle, a sofa)."""

OUTING_SHARE = 0.003
"""Share of payments at a till in some other city, out of habit's reach."""

DECLINED_BASE = 0.012
DECLINED_FLAKY = 0.12
NO_PLACE_SHARE = 0.08


def make(world: World, block: Block) -> Rows:
    """The genuine payments of a block."""
    return dress(world, *who_and_when(world, block))


def who_and_when(
    world: World, block: Block
) -> tuple[np.random.Generator, npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Times and cards of the block's payments, and their generator as it stands after them.

    Logins ask too: many come just before a payment, and must be the same where no payments are
    made.
    """
    rng = world.rng(block, "payment")
    n = world.count("payment", block)
    time_us = times_in(rng, block, n)
    card = world.population.active_cards(rng, n, block.start_us)
    _walk_on(world, rng, card)
    return rng, time_us, card


def _walk_on(world: World, rng: np.random.Generator, card: npt.NDArray[np.int32]) -> None:
    """Give some rows the card of a row a little earlier, in place."""
    n = len(card)
    if n < 3:
        return
    rows_max = max(2, min(n // 2, int(AGAIN_S_MAX * world.per_s["payment"])))
    later = np.flatnonzero(rng.random(n) < AGAIN_SHARE)
    earlier = later - rng.integers(1, rows_max, len(later))
    ok = earlier >= 0
    card[later[ok]] = card[earlier[ok]]


def dress(
    world: World,
    rng: np.random.Generator,
    time_us: npt.NDArray[np.int64],
    card: npt.NDArray[np.integer],
    online: bool | None = None,
) -> Rows:
    """Genuine-looking payments of the given cards at the given times.

    Parameters
    ----------
    online : force all online (True) or to a till (False); None leaves it to the cards' habits
    """
    people, n = world.population, len(time_us)
    user = people.card_user[card]
    city, away, moving = world.city_of(user, time_us)
    drawn = rng.random(n)
    share = people.card_online[card]
    channel = np.where(drawn < share, ONLINE, POS).astype(np.int32)
    channel[drawn > 0.95 + 0.05 * share] = ATM
    channel[drawn < 0.08 * share] = TRANSFER
    if online is not None:
        channel[:] = ONLINE if online else POS
    else:
        channel[moving & (channel != TRANSFER)] = ONLINE
    remote = (channel == ONLINE) | (channel == TRANSFER)
    merchant = _merchants(world, rng, card, city, away, channel, remote)
    till = ~remote
    rows: Rows = {
        "time_us": time_us,
        "card": card.astype(np.int32),
        "merchant": merchant,
        "channel": channel,
        "amount": _amounts(world, rng, card, merchant),
    }
    place_people(world, rng, rows, user, city, away)
    rows["latitude"][till] = people.merchant_latitude[merchant[till]]
    rows["longitude"][till] = people.merchant_longitude[merchant[till]]
    rows["country"][till] = people.merchant_country[merchant[till]]
    rows["device"][till] = -1
    rows["address"][till] = -1
    rows["currency"] = world.currency_of(
        np.where(till, people.merchant_country[merchant], people.user_country[user])
    )
    usual = np.exp(people.card_level[card] + 1.0)
    refuse = (
        DECLINED_BASE
        + DECLINED_FLAKY * people.card_flaky[card]
        + 0.04 * (rows["amount"] > 4 * usual)
    )
    rows["declined"] = rng.random(n) < refuse
    return rows


def _merchants(
    world: World,
    rng: np.random.Generator,
    card: npt.NDArray[np.integer],
    city: npt.NDArray[np.int32],
    away: npt.NDArray[np.bool_],
    channel: npt.NDArray[np.int32],
    remote: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int32]:
    """Who is paid: a favourite, someone else in the city the person is in, or a shop online."""
    people, n = world.population, len(card)
    skewed = rng.random(n)
    skewed *= skewed
    place = np.where(remote, 5 + (3 * skewed).astype(np.int64), (5 * skewed).astype(np.int64))
    merchant = people.favourites[card.astype(np.int64) * 8 + place]
    other = rng.random(n) > FAVOURITE_SHARE
    outing = rng.random(n) < OUTING_SHARE
    city = np.where(outing, rng.integers(0, len(geo.CITY_WEIGHT), n), city)
    at = np.flatnonzero((other | away | outing) & (channel == POS))
    merchant[at] = pick(
        rng, people.till_table, people.till_start[city[at]], people.till_size[city[at]], len(at)
    )
    at = np.flatnonzero(channel == ATM)
    merchant[at] = pick(
        rng,
        people.machine_table,
        people.machine_start[city[at]],
        people.machine_size[city[at]],
        len(at),
    )
    at = np.flatnonzero(other & remote)
    merchant[at] = pick(rng, people.shop_table, 0, len(people.shop_table), len(at))
    return merchant


def _amounts(
    world: World,
    rng: np.random.Generator,
    card: npt.NDArray[np.integer],
    merchant: npt.NDArray[np.int32],
) -> npt.NDArray[np.float64]:
    """Log-normal about the card's level and the merchant's trade, in cents, float64 (n,)."""
    people, n = world.population, len(card)
    trade = people.merchant_category[merchant]
    spread = people.card_spread[card] + people.category_spread[trade]
    level = (
        people.card_level[card] + people.category_offset[trade] + spread * rng.standard_normal(n)
    )
    spree = rng.random(n) < SPREE_SHARE
    level[spree] += rng.uniform(1.2, 2.8, int(spree.sum()))
    amount = np.exp(level)
    cash = trade == len(people.category_offset) - 1
    amount[cash] = np.maximum(10.0, np.round(amount[cash] / 10.0) * 10.0)
    return np.asarray(np.clip(np.round(amount, 2), 0.2, 50_000.0))


def place_people(
    world: World,
    rng: np.random.Generator,
    rows: Rows,
    user: npt.NDArray[np.integer],
    city: npt.NDArray[np.int32],
    away: npt.NDArray[np.bool_],
) -> None:
    """Fill in place, country, device and address of people at their phones, in place."""
    people, n = world.population, len(user)
    latitude = np.where(away, geo.CITY_LATITUDE[city], people.user_latitude[user])
    longitude = np.where(away, geo.CITY_LONGITUDE[city], people.user_longitude[user])
    latitude = np.round(latitude + 0.02 * rng.standard_normal(n), 4)
    nowhere = rng.random(n) < NO_PLACE_SHARE
    latitude[nowhere] = np.nan
    rows["latitude"] = latitude
    longitude = np.round(longitude + 0.02 * rng.standard_normal(n), 4)
    longitude[nowhere] = np.nan
    rows["longitude"] = longitude
    rows["country"] = geo.CITY_COUNTRY[city]
    rows["device"] = people.device_at(user, rng.random(n) < 0.3, rows["time_us"])
    drawn = rng.random(n)
    mobile = drawn < people.user_mobile[user]
    carrier = people.address_carrier + rows["country"] * ADDRESSES_PER_COUNTRY
    public = people.address_public + city * ADDRESSES_PER_CITY
    shared = (rng.random(n) * ADDRESSES_PER_CITY).astype(np.int64)
    address = np.where(mobile, carrier + 2 * shared, user)
    rows["address"] = np.where(away & ~mobile, public + shared, address).astype(np.int64)


def keys(world: World, rows: Rows) -> npt.NDArray[np.int32]:
    """Partition of each row: that of its card."""
    partition: npt.NDArray[np.int32] = world.population.card_partition[rows["card"]]
    return partition


def columns(world: World, rows: Rows) -> dict[str, Any]:
    """The declared fields, id and time excepted."""
    people, amount = world.population, rows["amount"]
    if world.local_money:
        amount = local_amount(amount, rows["currency"], rows["time_us"])
    return {
        "card_id": gather(people.card_names, rows["card"]),
        "user_id": gather(people.user_names, people.card_user[rows["card"]]),
        "merchant_id": gather(people.merchant_names, rows["merchant"]),
        "device_id": gather(world.devices, rows["device"]),
        "ip": gather(world.addresses, rows["address"]),
        "amount": amount,
        "currency": gather(world.currencies, rows["currency"]),
        "category": gather(people.category_names, people.merchant_category[rows["merchant"]]),
        "channel": gather(_CHANNEL_NAMES, rows["channel"]),
        "country": gather(people.country_names, rows["country"]),
        "latitude": pl.Series(rows["latitude"], nan_to_null=True),
        "longitude": pl.Series(rows["longitude"], nan_to_null=True),
        "declined": rows["declined"],
    }
