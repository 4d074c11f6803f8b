"""Reasons of an alert: the strangest features, each thing said once, in words a person reads."""

from __future__ import annotations

import numpy as np
import pytest

from features.batch import FeatureMatrix
from features.catalog import catalog
from models.bundle import Bundle
from models.decisions.reasons import REASONS_MAX, every_feature, number_text, reasons
from models.train import train
from tests.rows import training_set


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Models of payments and metrics whose features are all exponential with mean 1."""
    rng = np.random.default_rng(2)
    sets = {name: training_set(rng, name, rows=2_000, odd=40) for name in ("payment", "metric")}
    return train(sets, catalog(), ("zscore",), 1)


def told(bundle: Bundle, event_type: str = "payment", **values: float) -> list[tuple[str, str]]:
    """(feature, sentence) of a row that is usual but for the given values."""
    names = catalog().names(event_type)
    row = np.full((1, len(names)), 0.7)
    for name, value in values.items():
        row[0, names.index(name)] = value
    features = FeatureMatrix(event_type, names, row, None, catalog().version)
    return [(name, text) for name, text, *_ in reasons(catalog(), bundle, features, 0)]


def test_a_usual_row_has_no_reasons(bundle: Bundle) -> None:
    assert told(bundle) == []


def test_a_count_is_told_beside_the_usual_one(bundle: Bundle) -> None:
    found = told(bundle, card_surprise_1m=40.0, card_count_1m=7.0, card_usual_1m=0.2)
    assert found == [("card_count_1m", "7 payments of this card in 1 min; usual 0.2")]


def test_the_strangest_comes_first_and_no_more_than_three(bundle: Bundle) -> None:
    found = told(
        bundle,
        card_home_km=30.0,
        card_amount_sum_1h=1_000.0,
        merchant_declined_share_1h=60.0,
        device_cards_5m=20.0,
        user_failed_logins_1h=10.0,
    )
    assert len(found) == REASONS_MAX
    assert [name for name, _ in found] == [
        "card_amount_sum_1h",
        "merchant_declined_share_1h",
        "card_home_km",
    ]


def test_the_same_thing_is_said_once(bundle: Bundle) -> None:
    found = told(
        bundle, card_home_km=900.0, user_home_km=90.0, card_home_z=80.0, card_speed_kmh=70.0
    )
    assert [name for name, _ in found] == ["card_home_km"]


def test_only_the_odd_side_is_a_reason(bundle: Bundle) -> None:
    assert told(bundle, card_amount_min_1h=1e6, device_age_s=1e9) == []
    assert [n for n, _ in told(bundle, card_amount_min_1h=-5.0)] == ["card_amount_min_1h"]


def test_directions_are_said_in_words(bundle: Bundle) -> None:
    up = told(bundle, "metric", series_season_z=30.0)[0][1]
    down = told(bundle, "metric", series_season_z=-30.0)[0][1]
    assert up == "the value is 30 sigma above what is usual at this hour"
    assert down == "the value is 30 sigma below what is usual at this hour"


def test_shares_are_per_cent_and_flags_have_no_baseline(bundle: Bundle) -> None:
    share = told(bundle, merchant_round_share_1h=20.0)[0][1]
    assert share.startswith(
        "2,000 % of this merchant's payments in 1 h are large round sums; usual"
    )
    flag = told(bundle, card_country_first=30.0)[0][1]
    assert flag == "first time of this card in this country"


def test_unknown_values_are_no_reason(bundle: Bundle) -> None:
    assert told(bundle, card_home_km=np.nan, device_cards_5m=np.nan) == []
    text = told(bundle, card_count_1h=30.0, card_usual_1h=np.nan)[0][1]
    assert text == "30 payments of this card in 1 h; usual unknown"


def test_reasons_carry_value_baseline_and_unit(bundle: Bundle) -> None:
    names = catalog().names("payment")
    row = np.full((1, len(names)), 0.7)
    row[0, names.index("card_home_km")] = 500.0
    features = FeatureMatrix("payment", names, row, None, catalog().version)
    ((name, _, value, baseline, unit),) = reasons(catalog(), bundle, features, 0)
    assert (name, value, unit) == ("card_home_km", 500.0, "km")
    assert baseline == pytest.approx(np.log(2), abs=0.1)


def test_every_feature_is_told_also_one_that_no_genuine_row_knows(bundle: Bundle) -> None:
    names = catalog().names("payment")
    usual = bundle.models["payment"].usual
    unknown = names.index("card_amount_sum_1h")
    before = usual[unknown].copy()
    usual[unknown] = np.nan
    row = np.full((1, len(names)), 0.7)
    row[0, names.index("card_home_km")] = np.nan
    features = FeatureMatrix("payment", names, row, None, catalog().version)
    found = {t[0]: (t, odd) for t, odd in every_feature(catalog(), bundle, features, 0)}
    usual[unknown] = before
    assert set(found) == set(names)
    (_, text, value, baseline, _), odd = found["card_amount_sum_1h"]
    assert (value, baseline, odd) == (0.7, None, 0.0) and "usual" not in text
    assert found["card_home_km"][0][1] == "not known" and found["card_home_km"][1] == 0.0


def test_a_small_deviation_is_no_reason_however_rare(bundle: Bundle) -> None:
    """Of training rows none is below 0: a hundredth below is rare, and convinces nobody."""
    assert told(bundle, card_amount_z=-0.1) == []
    assert told(bundle, card_amount_z=-1.9) == []
    assert [name for name, _ in told(bundle, card_amount_z=-9.0)] == ["card_amount_z"]


def test_what_reads_as_the_usual_value_is_no_reason() -> None:
    names = catalog().names("metric")
    values = training_set(np.random.default_rng(2), "metric", rows=2_000, odd=0)
    values.features.values[:, names.index("series_since_s")] = 180.0
    made = train({"metric": values}, catalog(), ("zscore",), 1)
    late = [told(made, "metric", series_since_s=s) for s in (180.4, 900.0)]
    assert "series_since_s" not in dict(late[0]) and "series_since_s" in dict(late[1])


def test_habits_of_the_silent_are_no_reason_for_their_silence() -> None:
    """How long it is known, how often it speaks and what it is allowed: it was so before."""
    rows = training_set(np.random.default_rng(2), "absence", rows=2_000, odd=40)
    made = train({"absence": rows}, catalog(), ("zscore",), 1)
    assert told(made, "absence", known_days=90.0, usual_gap_s=90.0, allowed_s=90.0) == []
    assert [name for name, _ in told(made, "absence", usual_gaps=90.0)] == ["usual_gaps"]


def test_an_event_type_without_models_has_no_reasons(bundle: Bundle) -> None:
    assert told(bundle, "login", user_home_km=1e9) == []


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (7.0, "1", "7"),
        (0.2, "1", "0.2"),
        (0.0096, "1", "0.0096"),
        (12_345.6, "km", "12,346 km"),
        (45.0, "s", "45 s"),
        (600.0, "s", "10 min"),
        (977_000.0, "s", "11.3 days"),
        (1_107.314, "currency", "1,107.31"),
        (13.5, "h", "13:30"),
        (2.0, "d", "2"),
        (0.25, "%", "25 %"),
        (1.0, "flag", "yes"),
        (-3.04, "sigma", "-3 sigma"),
    ],
)
def test_numbers_are_told_as_a_person_says_them(value: float, unit: str, text: str) -> None:
    assert number_text(value, unit) == text
