"""New entities: judged by their peers at first, by themselves once they are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from features.catalog import Catalog, catalog
from features.engine import OfflineEngine
from features.errors import DeclarationError
from features.spec import Feature
from tests.streams import START_US, make_batch

HOUR_US = 3_600_000_000

LEVELS = {"kiosk": 1.0, "grocer": 3.0, "jeweller": 6.5}
"""Merchants, and the logarithm of what is usual there."""


def usual(rng: np.random.Generator, merchant: str) -> float:
    """An amount as merchants of this kind see them."""
    return float(np.expm1(np.exp(np.log(LEVELS[merchant]) + rng.normal(0.0, 0.12))))


def payments(told: list[tuple[str, str, float]], start_h: float) -> dict[str, Any]:
    """(card, merchant, amount), six minutes apart."""
    rows = [
        {"event_id": f"{start_h}.{i}", "card_id": card, "user_id": f"u{card}",
         "merchant_id": merchant, "amount": amount,
         "time_us": START_US + int(start_h * HOUR_US) + i * HOUR_US // 10}
        for i, (card, merchant, amount) in enumerate(told)
    ]  # fmt: skip
    return {"payment": make_batch("payment", rows, partitions=1)}


@pytest.fixture(scope="module")
def cat() -> Catalog:
    return catalog(("payment",))


def known(cat: Catalog, rng: np.random.Generator, groups: int = 3) -> OfflineEngine:
    """An engine that knows the merchants by 600 payments of 40 cards."""
    engine = OfflineEngine(cat, groups)
    names = list(LEVELS)
    told = []
    for _ in range(600):
        merchant = names[int(rng.integers(3))]
        told.append((f"c{rng.integers(40)}", merchant, usual(rng, merchant)))
    engine.process(payments(told, 0.0))
    return engine


def test_first_payments_of_genuine_new_cards_are_known_and_not_odd(cat: Catalog, seed: int) -> None:
    rng = np.random.default_rng(seed)
    engine = known(cat, rng)
    told = [(f"new{i}", m, usual(rng, m)) for i in range(100) for m in LEVELS for _ in range(3)]
    matrix = engine.process(payments(told, 100.0))["payment"]
    z, ever = matrix.column("card_amount_shrunk_z"), matrix.column("card_ever")
    assert np.isfinite(z).all()
    first = ever == 0.0
    assert first.sum() == 100
    # As odd as a payment of any card, no more: the normal law's share beyond three deviations.
    assert (np.abs(z[first]) > 3.0).mean() <= 0.02
    assert (np.abs(z[~first]) > 3.0).mean() <= 0.05


@pytest.mark.parametrize("merchant", list(LEVELS))
def test_a_first_payment_far_from_all_others_at_its_merchant_is_odd(
    cat: Catalog, seed: int, merchant: str
) -> None:
    engine = known(cat, np.random.default_rng(seed))
    far = float(np.expm1(LEVELS[merchant] * 2.0))
    matrix = engine.process(payments([("new", merchant, far)], 100.0))["payment"]
    assert matrix.column("card_amount_shrunk_z")[0] > 5.0
    assert np.isnan(matrix.column("card_amount_z")[0])


def test_a_card_that_is_known_is_judged_by_itself(cat: Catalog, seed: int) -> None:
    rng = np.random.default_rng(seed)
    engine = known(cat, rng)
    # It buys jewels, and only jewels, from the grocer.
    told = [("rich", "grocer", usual(rng, "jeweller")) for _ in range(300)]
    matrix = engine.process(payments(told, 100.0))["payment"]
    z = matrix.column("card_amount_shrunk_z")
    assert z[0] > 5.0
    assert np.abs(z[250:]).mean() < 1.5
    own, peers, n = (matrix.column(c) for c in ("card_amount_z", "merchant_amount_z", "card_ever"))
    np.testing.assert_allclose(z[3:], ((n * own + 8 * peers) / (n + 8))[3:], rtol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_the_prior_does_not_hang_on_the_number_of_groups(
    cat: Catalog, seed: int, groups: int
) -> None:
    told = [(f"new{i}", m, 20.0) for i in range(5) for m in LEVELS]
    found, expected = (
        known(cat, np.random.default_rng(seed), g).process(payments(told, 100.0))["payment"]
        for g in (groups, 5)
    )
    np.testing.assert_array_equal(found.values, expected.values)


def test_where_one_side_is_unknown_the_other_is_taken(cat: Catalog, seed: int) -> None:
    rng = np.random.default_rng(seed)
    engine = known(cat, rng)
    told = [("c0", "grocer", usual(rng, "grocer")) for _ in range(40)]
    told += [("c0", "unheard of", 20.0), ("nobody", "nowhere", 20.0)]
    matrix = engine.process(payments(told, 100.0))["payment"]
    z = matrix.column("card_amount_shrunk_z")
    assert z[-2] == matrix.column("card_amount_z")[-2]
    assert np.isnan(z[-1])


def test_a_shrunk_deviation_without_a_count_is_refused() -> None:
    z = Feature("z", "payment", "card", "z", "{value}", "sigma", "amount", column="log_amount")
    shrunk = Feature(
        "s", "payment", "card", "shrunk_z", "{value}", "sigma", "amount", column="z", other="z"
    )
    with pytest.raises(DeclarationError, match="'shrunk_z' needs `count`"):
        Catalog([z, shrunk])
    wrong = Feature(
        "s", "payment", "card", "shrunk_z", "{value}", "sigma", "amount", column="z", other="z",
        count="n",
    )  # fmt: skip
    with pytest.raises(DeclarationError, match="count 'n' names no feature of 'payment'"):
        Catalog([z, wrong])


def events(name: str, told: list[dict[str, Any]], start_h: float, every_s: float) -> dict[str, Any]:
    """Events of a type, one every so many seconds."""
    rows = [
        {"event_id": f"{start_h}.{i}",
         "time_us": START_US + int((start_h * 3600 + i * every_s) * 1e6)} | row
        for i, row in enumerate(told)
    ]  # fmt: skip
    return {name: make_batch(name, rows, partitions=1)}


def test_a_new_merchant_is_judged_by_what_its_cards_usually_pay(cat: Catalog, seed: int) -> None:
    rng = np.random.default_rng(seed)
    engine = known(cat, rng)
    told = [(f"c{i}", f"shop{i}", float(rng.choice([5.0, 20.0, 60.0]))) for i in range(40)]
    told += [(f"c{i}", f"trap{i}", 1e9) for i in range(40)]
    z = engine.process(payments(told, 100.0))["payment"].column("merchant_amount_shrunk_z")
    assert np.isfinite(z).all()
    assert np.abs(z[:40]).max() < 3.0 and z[40:].min() > 3.5


def users_at(start_h: float, days: int, rng: np.random.Generator) -> dict[str, Any]:
    """Ten users who log in four times a day, each from an own address and device."""
    n = 40 * days
    users = rng.permutation(np.repeat(np.arange(10), n // 10))
    told = [{"user_id": f"u{u}", "ip": f"ip{u}", "device_id": f"d{u}"} for u in users]
    return events("login", told, start_h, 86_400 / 40)


def test_first_logins_at_a_new_address_are_expected_as_often_as_its_user_logs_in(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    logins = catalog(("login",))
    engine = OfflineEngine(logins, 3)
    engine.process(users_at(0.0, 20, rng))
    usual = [{"user_id": "u3", "ip": "hotel"}] * 2
    found = engine.process(events("login", usual, 500.0, 5_000.0))["login"]
    np.testing.assert_allclose(
        found.column("ip_expected_1h")[0], found.column("user_usual_1h")[0], rtol=1e-12
    )
    assert found.column("ip_expected_1h")[0] > 0.05
    assert (found.column("ip_surprise_1h") < 2.0).all()
    # All the users one after another, from one address that nobody knows.
    thief = [{"user_id": f"u{i % 10}", "ip": "thief"} for i in range(30)]
    found = engine.process(events("login", thief, 510.0, 10.0))["login"]
    assert found.column("ip_surprise_1h")[-1] > 5.0


def test_first_payments_of_a_new_device_are_expected_as_often_as_its_card_pays(
    cat: Catalog, seed: int
) -> None:
    engine = OfflineEngine(cat, 3)
    told = [{"card_id": "c", "device_id": "old"} for _ in range(240)]
    engine.process(events("payment", told, 0.0, 1_200.0))
    found = engine.process(
        events("payment", [{"card_id": "c", "device_id": "new"}] * 3, 80.2, 1_200.0)
    )["payment"]
    assert 2.0 < found.column("device_expected_1h")[0] < 3.5, "three an hour"
    assert (found.column("device_surprise_1h") < 1.0).all()
    burst = [{"card_id": f"s{i}", "device_id": "skimmer"} for i in range(20)]
    found = engine.process(events("payment", burst, 90.0, 10.0))["payment"]
    assert found.column("device_surprise_1h")[-1] > 5.0


def test_peers_that_are_new_themselves_say_nothing(cat: Catalog, seed: int) -> None:
    engine = OfflineEngine(cat, 3)
    kiosk = [{"card_id": f"k{i}", "device_id": "kiosk"} for i in range(241)]
    found = engine.process(events("payment", kiosk, 0.0, 180.0))["payment"]
    expected, usual_ = (found.column(f"device_{w}_1h") for w in ("expected", "usual"))
    np.testing.assert_array_equal(expected[1:], usual_[1:])
    assert expected[-1] > 9.0, "240 payments in twelve hours, as of a day"
    assert np.isnan(expected[0]) and np.isnan(found.column("device_surprise_1h")[0])
    # A customer who is known counts as ever.
    known_ = [{"card_id": "k0", "device_id": "kiosk"}]
    found = engine.process(events("payment", known_, 12.1, 1.0))["payment"]
    assert 0.0 < found.column("device_expected_1h")[0] < 0.5 * found.column("device_usual_1h")[0]


def test_a_new_card_that_pays_as_others_do_is_calm_and_a_burst_at_first_sight_is_not(
    cat: Catalog, seed: int
) -> None:
    """Counts of a card have no peers: one younger than a day is reckoned as one of a day."""
    rng = np.random.default_rng(seed)
    engine = known(cat, rng)
    calm = [{"card_id": f"calm{i % 50}", "amount": usual(rng, "grocer"), "merchant_id": "grocer"}
            for i in range(150)]  # fmt: skip
    # Each pays three times, 50 minutes apart.
    found = engine.process(events("payment", calm, 100.0, 60.0))["payment"]
    assert found.column("card_ever")[:50].max() == 0.0, "all are new"
    burst = [{"card_id": "burst", "merchant_id": "grocer", "amount": 20.0}] * 12
    hit = engine.process(events("payment", burst, 110.0, 10.0))["payment"]
    for window in ("1m", "5m", "1h"):
        surprise = found.column(f"card_surprise_{window}")
        assert np.isfinite(surprise).all(), "nobody passes blindly"
        assert surprise.max() < 2.5
    assert hit.column("card_surprise_5m")[0] < 2.5, "the first of them is as any"
    assert (hit.column("card_surprise_5m")[8:] > 4.5).all()
    assert (hit.column("card_surprise_1m")[5:] > 3.5).all()
