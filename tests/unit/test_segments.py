"""Scales by segment: each has its own share of false alarms, and too small a one that of all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.catalog import catalog
from features.errors import ConfigError
from models.base import TrainingSet
from models.bundle import Bundle
from models.scoring import Scorer
from models.segments import Cut, parse_cut
from models.train import Aim, train
from tests.rows import training_set

CHEAP = ("zscore", "iqr")
CUT = Cut("card_ever", (30.0,))
AIM = Aim(0.01)


def parted(rng: np.random.Generator, rows: int, young: float) -> TrainingSet:
    """Rows of which a share is of young cards, whose first dozen features are twice as wide."""
    made = training_set(rng, rows=rows, odd=rows // 40, entities=5_000)
    values = made.features.values.copy()
    is_young = rng.random(rows) < young
    values[:, made.features.names.index("card_ever")] = np.where(is_young, 5.0, 500.0)
    values[is_young, :12] *= 2.0
    return replace(made, features=replace(made.features, values=values))


def false_alarms(bundle: Bundle, rows: TrainingSet) -> tuple[float, float]:
    """Shares of the genuine rows of young and of old cards that are flagged."""
    scorer = Scorer(bundle, CHEAP)
    flagged = scorer.decide(scorer.score(rows.features, {}), {}).flagged[:, 0]
    young = CUT.of(rows.features) == 0
    genuine = rows.label == 0
    return float(flagged[genuine & young].mean()), float(flagged[genuine & ~young].mean())


@pytest.fixture(scope="module")
def rows() -> TrainingSet:
    """Enough of both for scales of their own."""
    return parted(np.random.default_rng(5), 24_000, 0.4)


@pytest.fixture(scope="module")
def bundle(rows: TrainingSet) -> Bundle:
    """With scales by segment."""
    return train({"payment": rows}, catalog(), CHEAP, 1, aim=AIM, segments={"payment": CUT})


def test_each_segment_has_the_share_of_false_alarms_that_was_asked_for(
    bundle: Bundle, rows: TrainingSet
) -> None:
    fresh = parted(np.random.default_rng(6), 20_000, 0.4)
    young, old = false_alarms(bundle, fresh)
    assert young == pytest.approx(0.01, rel=0.4) and old == pytest.approx(0.01, rel=0.4)
    whole = train({"payment": rows}, catalog(), CHEAP, 1, aim=AIM)
    young, old = false_alarms(whole, fresh)
    assert young > 3.0 * old, "on one scale the young ones have nearly all false alarms"


def test_a_bundle_that_is_read_back_has_its_segments(
    bundle: Bundle, rows: TrainingSet, tmp_path: Path
) -> None:
    bundle.write(tmp_path / "bundle")
    again = Bundle.load(tmp_path / "bundle", catalog())
    a, b = (Scorer(one, CHEAP) for one in (bundle, again))
    first, second = a.score(rows.features, {}), b.score(rows.features, {})
    assert np.array_equal(first.surprise, second.surprise, equal_nan=True)
    assert np.array_equal(a.decide(first, {}).score, b.decide(second, {}).score)
    at = np.arange(7, 900, 31)
    assert np.array_equal(a.decide(first.take(at), {}).score, a.decide(first, {}).score[at])
    card = (tmp_path / "bundle" / "card.md").read_text(encoding="utf-8")
    assert "- payment, card_ever below 30: " in card and "a scale of its own for zscore" in card
    assert "| payment | 24,000 | 600 | 2026-03-02 00:00 |" in card


def test_a_segment_with_too_few_rows_has_the_scale_of_all_and_the_card_says_so(
    tmp_path: Path,
) -> None:
    rows = parted(np.random.default_rng(5), 12_000, 0.05)
    few = train({"payment": rows}, catalog(), CHEAP, 1, segments={"payment": CUT})
    segments = few.models["payment"].segments
    assert segments is not None and segments.scales[0] == {} and segments.scales[1].keys() == {
        *CHEAP, "ensemble"
    }  # fmt: skip
    young = np.flatnonzero(CUT.of(rows.features) == 0)
    said = Scorer(few, CHEAP).score(rows.features, {}).surprise[young]
    alone = replace(few, models={"payment": replace(few.models["payment"], segments=None)})
    plain = Scorer(alone, CHEAP).score(rows.features, {}).surprise[young]
    assert np.array_equal(said, plain, equal_nan=True)
    few.write(tmp_path / "bundle")
    card = (tmp_path / "bundle" / "card.md").read_text(encoding="utf-8")
    assert "the scale of the whole (fewer than 2,000)" in card


def test_a_row_without_a_value_is_of_the_first_segment() -> None:
    rows = parted(np.random.default_rng(5), 100, 0.5)
    values = rows.features.values.copy()
    values[:, rows.features.names.index("card_ever")] = np.nan
    assert (CUT.of(replace(rows.features, values=values)) == 0).all()


@pytest.mark.parametrize(
    "text", ["card_ever", "card_ever:", ":3", "a:3,2", "a:x", "a:nan", "a:1,1"]
)
def test_what_is_no_cut_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected FEATURE:EDGE"):
        parse_cut(text)


def test_a_cut_by_a_feature_that_is_not_there_is_refused(rows: TrainingSet) -> None:
    with pytest.raises(ConfigError, match="there is no feature 'card_age'"):
        cuts = {"payment": Cut("card_age", (1.0,))}
        train({"payment": rows}, catalog(), CHEAP, 1, segments=cuts)
