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
