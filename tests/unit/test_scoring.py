"""Scores and votes: a function of the row alone, the gate, the stages, the rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dataflows.scored_table import _Taker
from features.batch import FeatureMatrix
from features.catalog import catalog
from features.errors import ConfigError, ShapeError
from models.base import TrainingSet
from models.bundle import Bundle
from models.calibration import Calibration, score_of
from models.scoring import Scorer, take_rows
from models.segments import Cut, Segments
from models.train import train
from models.voting import AnomalyType, Voting
from tests.rows import training_set
from tests.streams import START_US, make_batch

DETECTORS = ("zscore", "iqr", "transformer")


@pytest.fixture(scope="module")
def rows() -> TrainingSet:
    """Payments with odd ones among them."""
    return training_set(np.random.default_rng(5), rows=3_000, odd=200)


@pytest.fixture(scope="module")
def bundle(rows: TrainingSet) -> Bundle:
    """Two cheap detectors and an expensive one."""
    options = {"transformer": {"epochs": 1.0}}
    return train({"payment": rows}, catalog(), DETECTORS, 1, options=options)


def test_a_batch_cut_anywhere_gives_the_same_scores(bundle: Bundle, rows: TrainingSet) -> None:
    scorer = Scorer(bundle, DETECTORS)
    whole = scorer.score(rows.features, {}).surprise
    for size in (1, 7, 512):
        some = np.arange(min(len(rows), size * 40))
        parts = [
            scorer.score(take_rows(rows.features, some[at : at + size]), {}).surprise
            for at in range(0, len(some), size)
        ]
        assert np.array_equal(np.concatenate(parts), whole[some], equal_nan=True)


def test_the_expensive_detector_sees_what_the_gate_lets_through(
    bundle: Bundle, rows: TrainingSet
) -> None:
    scorer = Scorer(bundle, DETECTORS)
    scores = scorer.score(rows.features, {})
    seen = ~np.isnan(scores.scores[:, 2])
    strongest = np.nanmax(scores.surprise[:, :2], axis=1)
    assert np.array_equal(seen, strongest >= bundle.models["payment"].gate)
    genuine = rows.label == 0
    assert 0.03 < seen[genuine].mean() < 0.2
    count = scorer.gates["payment"]
    assert (count.rows, count.opened) == (len(rows), int(seen.sum()))


def test_without_cheap_detectors_every_row_passes_the_gate(
    bundle: Bundle, rows: TrainingSet
) -> None:
    scores = Scorer(bundle, ["transformer"]).score(take_rows(rows.features, np.arange(50)), {})
    assert not np.isnan(scores.scores).any()


def test_an_event_is_flagged_by_the_ensemble_and_a_vote(bundle: Bundle, rows: TrainingSet) -> None:
    scorer = Scorer(bundle, DETECTORS)
    scores = scorer.score(rows.features, {})
    decisions = scorer.decide(scores, {})
    rule = bundle.voting.anomaly_types["payment_fraud"]
    limits = [rule.thresholds[d] for d in DETECTORS]
    votes = scores.scores >= limits
    assert decisions.anomaly_types == ("payment_fraud",)
    assert np.array_equal(decisions.votes[:, 0], votes)
    expected = votes.any(axis=1) & (decisions.score[:, 0] >= rule.ensemble)
    assert np.array_equal(decisions.flagged[:, 0], expected)
    assert decisions.flagged[rows.label == 1, 0].mean() > 0.5
    assert decisions.flagged[rows.label == 0, 0].mean() < 0.01


def test_a_threshold_of_the_control_lane_overrules_the_file(
    bundle: Bundle, rows: TrainingSet
) -> None:
    scorer = Scorer(bundle, DETECTORS)
    scores = scorer.score(rows.features, {})
    before = scorer.decide(scores, {})
    shut = {("payment_fraud", "ensemble"): 1.0, ("payment_fraud", "iqr"): 0.25}
    after = scorer.decide(scores, shut)
    assert before.flagged.any() and not after.flagged.any()
    assert (
        after.thresholds[0, 1] == 0.25 and after.votes[:, 0, 1].sum() > before.votes[:, 0, 1].sum()
    )


def test_a_shift_moves_all_thresholds_of_its_rule_alike(bundle: Bundle, rows: TrainingSet) -> None:
    scorer = Scorer(bundle, DETECTORS)
    scores = scorer.score(rows.features, {})
    margins = {"payment_fraud": np.zeros(0), "silence": np.zeros(0)}
    before = scorer.decide(scores, {}, margins=margins)
    assert len(margins["silence"]) == 0, "a rule on other events"
    for shift in (-0.4, 0.4):
        after = scorer.decide(scores, {}, shifts={"payment_fraud": shift})
        assert after.thresholds == pytest.approx(1 - (1 - before.thresholds) * 10.0**-shift)
        sure = np.abs(margins["payment_fraud"] - shift) > 1e-6
        flagged = margins["payment_fraud"] >= shift
        assert np.array_equal(after.flagged[sure, 0], flagged[sure])
        assert (after.flagged.sum() < before.flagged.sum()) == (shift > 0)
    other = scorer.decide(scores, {}, shifts={"silence": 0.4})
    assert np.array_equal(other.flagged, before.flagged)


def test_a_detector_that_is_off_is_not_run(bundle: Bundle, rows: TrainingSet) -> None:
    scorer = Scorer(bundle, DETECTORS)
    scores = scorer.score(rows.features, {"zscore": ("off", 100.0)})
    assert np.isnan(scores.scores[:, 0]).all() and not np.isnan(scores.scores[:, 1]).any()


def test_a_shadow_scores_and_never_votes(bundle: Bundle, rows: TrainingSet) -> None:
    scorer = Scorer(bundle, DETECTORS)
    stages = dict.fromkeys(DETECTORS, ("shadow", 100.0))
    scores = scorer.score(rows.features, stages)
    assert not np.isnan(scores.scores[:, :2]).any()
    decisions = scorer.decide(scores, {}, stages)
    assert not decisions.votes.any() and not decisions.flagged.any()


def test_a_canary_votes_for_its_share_of_entities_only(bundle: Bundle, rows: TrainingSet) -> None:
    scorer = Scorer(bundle, DETECTORS)
    stages = {"zscore": ("canary", 30.0)}
    scores = scorer.score(rows.features, stages)
    everyone = scorer.decide(scores, {("payment_fraud", "zscore"): 0.0})
    some = scorer.decide(scores, {("payment_fraud", "zscore"): 0.0}, stages, rows.entity)
    chosen = some.votes[:, 0, 0]
    assert everyone.votes[:, 0, 0].all()
    by_entity = {k: set(chosen[rows.entity == k].tolist()) for k in np.unique(rows.entity).tolist()}
    assert all(len(votes) == 1 for votes in by_entity.values())
    assert 0.2 < np.mean([True in votes for votes in by_entity.values()]) < 0.4
    more = scorer.decide(
        scores, {("payment_fraud", "zscore"): 0.0}, {"zscore": ("canary", 60.0)}, rows.entity
    ).votes[:, 0, 0]
    assert more[chosen].all() and more.sum() > chosen.sum()
    with pytest.raises(ShapeError, match="entities"):
        scorer.decide(scores, {}, stages)


def test_votes_needed_makes_the_rule_stricter(bundle: Bundle, rows: TrainingSet) -> None:
    rule = bundle.voting.anomaly_types["payment_fraud"]
    scores = Scorer(bundle, DETECTORS).score(rows.features, {})
    flagged = Scorer(bundle, DETECTORS).decide(scores, {}).flagged[:, 0]
    # A detector that votes for every second of the rows that are flagged.
    half = float(np.median(scores.scores[flagged, DETECTORS.index("iqr")]))
    rule = replace(rule, thresholds={**rule.thresholds, "iqr": half})
    strict = Voting({rule.name: replace(rule, votes_needed=2)})
    one = Scorer(bundle, DETECTORS, Voting({rule.name: rule})).decide(scores, {})
    two = Scorer(bundle, DETECTORS, strict).decide(scores, {})
    assert np.array_equal(two.flagged, one.flagged & (one.votes.sum(axis=2) >= 2))
    assert 0 < two.flagged.sum() < one.flagged.sum()


def test_an_anomaly_type_hears_only_the_detectors_it_names(
    bundle: Bundle, rows: TrainingSet
) -> None:
    both = Voting(
        {
            "by_iqr": AnomalyType("by_iqr", "payment", ensemble=0.0, thresholds={"iqr": 0.99}),
            "by_z": AnomalyType("by_z", "payment", ensemble=0.0, thresholds={"zscore": 0.99}),
        }
    )
    scorer = Scorer(bundle, DETECTORS, both)
    scores = scorer.score(rows.features, {})
    decisions = scorer.decide(scores, {})
    assert decisions.anomaly_types == ("by_iqr", "by_z")
    assert np.array_equal(decisions.flagged[:, 0], scores.scores[:, 1] >= 0.99)
    assert np.array_equal(decisions.flagged[:, 1], scores.scores[:, 0] >= 0.99)


def test_an_event_type_without_models_is_passed_through(bundle: Bundle) -> None:
    logins = training_set(np.random.default_rng(1), "login", rows=20, odd=2).features
    scorer = Scorer(bundle, DETECTORS)
    scores = scorer.score(logins, {})
    decisions = scorer.decide(scores, {})
    assert np.isnan(scores.scores).all() and decisions.flagged.shape == (20, 0)


def test_no_rows_give_no_scores(bundle: Bundle, rows: TrainingSet) -> None:
    scorer = Scorer(bundle, DETECTORS)
    scores = scorer.score(take_rows(rows.features, np.zeros(0, np.intp)), {})
    assert scorer.decide(scores, {}).flagged.shape == (0, 1)


def test_detectors_the_bundle_lacks_are_all_named_with_the_cure(bundle: Bundle) -> None:
    rules = Voting({"x": AnomalyType("x", "payment", thresholds={"oracle": 0.9})})
    with pytest.raises(ConfigError) as caught:
        Scorer(bundle, ["zscore", "gradient_boosting"], rules)
    assert len(caught.value.faults) == 2
    assert "gradient_boosting" in caught.value.faults[0] and "train" in caught.value.faults[0]
    assert "oracle" in caught.value.faults[1]


def test_fewer_detectors_than_a_rule_has_votes_are_refused_and_others_told_of(
    bundle: Bundle,
) -> None:
    (rule,) = bundle.voting.of("payment")
    assert Scorer(bundle, DETECTORS).unheard() == []
    (told,) = Scorer(bundle, ["zscore"]).unheard()
    assert told.startswith(f"{rule.name} counts on iqr, ") and "zscore with 1 of 1 votes" in told
    three = Voting({rule.name: replace(rule, votes_needed=3)})
    assert Scorer(bundle, DETECTORS, three).unheard() == []
    with pytest.raises(ConfigError) as caught:
        Scorer(bundle, ["zscore", "iqr"], three)
    (fault,) = caught.value.faults
    assert fault.startswith(
        f"[{rule.name}] of the voting rules needs 3 votes, and of its detectors zscore, iqr can"
        " vote (not transformer): it would never alert"
    )


def test_features_in_another_order_are_refused(bundle: Bundle, rows: TrainingSet) -> None:
    f = rows.features
    turned = FeatureMatrix("payment", f.names[::-1], f.values, f.sequence, f.catalog_version)
    with pytest.raises(ShapeError, match="train again"):
        Scorer(bundle, DETECTORS).score(turned, {})


def test_warming_up_runs_every_detector(bundle: Bundle) -> None:
    scorer = Scorer(bundle, DETECTORS)
    scorer.warm_up()
    assert scorer.gates["payment"].rows == 0


def test_a_scored_table_marks_what_no_genuine_row_came_near(
    bundle: Bundle, rows: TrainingSet
) -> None:
    scorer, some = Scorer(bundle, ("zscore", "iqr")), np.arange(400)
    features = take_rows(rows.features, some)
    features.values[7, :12] = 1e9
    batch = make_batch("payment", [{"event_id": f"p{i}", "time_us": START_US + i} for i in some])
    taker = _Taker(catalog(), scorer, "payment", len(some) + 1, False)
    taker.add(batch, features)
    table = taker.table(None).rows
    beyond = table["extrapolated"].to_numpy()
    assert beyond[7] and not beyond[400], "the last row was not scored"
    usual = rows.label[some] == 0
    usual[7] = False
    assert beyond[:400][usual].mean() < 0.02, "a genuine row is usual"
    least = bundle.models["payment"].ensemble.calibration.surprise_at[-1]
    assert (table["score"].to_numpy()[:400][beyond[:400]] >= score_of(least)).all()


def test_each_segment_has_its_own_end_of_what_was_seen(bundle: Bundle, rows: TrainingSet) -> None:
    models = bundle.models["payment"]
    wide = Calibration.fit(np.linspace(0.0, 1e3, 500))
    parts = Segments(Cut("amount_log", (0.0,)), ({}, {"ensemble": wide}), (0, 500))
    cut = replace(models, segments=parts)
    far = float(models.ensemble.calibration.knots[-1]) + 1.0
    raw, segment = np.array([far, far, 0.0, 2e3]), np.array([0, 1, 0, 1], np.int8)
    assert cut.extrapolated(raw, segment).tolist() == [True, False, False, True]
    assert models.extrapolated(raw, None).tolist() == [True, True, False, True]
