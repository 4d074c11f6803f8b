"""The rules of the vote: read, written, refused; and the ensemble's own scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.errors import ConfigError
from models.voting import AnomalyType, Ensemble, Voting, default_rule

RULES = """
[payment_fraud]
event_type = "payment"
severity = "critical"
votes_needed = 2
ensemble = 0.998
[payment_fraud.thresholds]
zscore = 0.999
iqr = 0.9985
"""


def written(folder: Path, text: str) -> Path:
    """A file with the text."""
    path = folder / "voting.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_rules_are_read_as_they_stand(tmp_path: Path) -> None:
    voting = Voting.load(written(tmp_path, RULES))
    rule = voting.anomaly_types["payment_fraud"]
    assert rule.severity == "critical" and rule.votes_needed == 2
    assert rule.thresholds == {"zscore": 0.999, "iqr": 0.9985}
    assert voting.of("payment") == (rule,) and voting.of("login") == ()


def test_rules_written_are_read_again_to_three_digits_after_the_nines(tmp_path: Path) -> None:
    rule = AnomalyType(
        'odd "name"'.replace(" ", "_").replace('"', ""),
        "login",
        "error",
        1,
        0.99999712,
        {"zscore": 0.998123, "iqr": 1.0, "transformer": 0.5},
        'call "them" \\ now',
    )
    again = Voting.load(written(tmp_path, Voting({rule.name: rule}).text())).anomaly_types[
        rule.name
    ]
    assert again.action == rule.action and again.severity == rule.severity
    assert again.ensemble == pytest.approx(rule.ensemble, abs=3e-9)
    assert again.thresholds == pytest.approx(dict(rule.thresholds), abs=3e-6)


def test_weights_are_written_as_they_are_and_read_again(tmp_path: Path) -> None:
    rule = AnomalyType(
        "fraud",
        "payment",
        thresholds={"zscore": 0.9, "iqr": 0.9},
        weights={"zscore": 1.5, "iqr": 0},
    )
    text = Voting({"fraud": rule}).text()
    assert "[fraud.weights]\nzscore = 1.5\niqr = 0.0\n" in text
    assert Voting.load(written(tmp_path, text)).anomaly_types["fraud"].weights == rule.weights
    bare = Voting.load(written(tmp_path, RULES)).anomaly_types["payment_fraud"]
    assert bare.weights == {} and "weights]" not in Voting({"payment_fraud": bare}).text()


def test_weights_that_are_none_are_all_told_with_the_other_faults(tmp_path: Path) -> None:
    text = """
    [a]
    event_type = "payment"
    ensemble = 1.5
    thresholds = { zscore = 0.9, iqr = 0.9 }
    weights = { zscore = -1, iqr = true, transformer = "much", isolation_forest = inf }
    [b]
    event_type = "login"
    ensemble = 0.9
    thresholds = { zscore = 0.9, iqr = 0.9 }
    weights = { zscore = 0, iqr = 0.0 }
    [c]
    event_type = "login"
    ensemble = 0.9
    thresholds = { zscore = 0.9 }
    weights = 3
    """
    with pytest.raises(ConfigError) as caught:
        Voting.load(written(tmp_path, text))
    told = "\n".join(caught.value.faults)
    for word in ("1.5", "weights.zscore", "weights.iqr", "'much'", "got inf", "weighs anything",
                 "[c]: weights: expected a table"):  # fmt: skip
        assert word in told
    assert len(caught.value.faults) == 7


def test_only_ratios_of_edited_weights_count(rng: np.random.Generator) -> None:
    label = (rng.random(4_000) < 0.05).astype(np.int8)
    surprise = rng.exponential(0.43, (4_000, 3))
    surprise[label == 1, :2] += 2.0
    alone = np.array([False, True, True])
    fitted = Ensemble.fit(("a", "b", "c"), surprise, label, None, alone)
    known = dict(zip(fitted.detectors, fitted.weights.tolist(), strict=True))
    assert all(weight == round(weight, 4) for weight in known.values())
    assert fitted.weighed({}) is fitted and fitted.weighed(known) is fitted
    doubled = fitted.weighed({name: 2 * weight for name, weight in known.items()})
    assert np.allclose(doubled.number(surprise), fitted.number(surprise))
    without = fitted.weighed({"b": 0.0})
    assert without.novelty is not None and fitted.novelty is not None
    assert without.weights[1] == without.novelty.weights[1] == 0.0
    assert without.weights.sum() == pytest.approx(fitted.weights.sum())
    changed = surprise.copy()
    changed[:, 1] = 0.0
    assert np.array_equal(without.number(changed), without.number(surprise))


def test_rules_written_are_still_reached_by_the_rows_they_were_fitted_to(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    scores = 1.0 - 10.0 ** -rng.uniform(0.0, 12.0, 300)
    for score in scores:
        rule = AnomalyType("fraud", "payment", "error", 1, float(score), {"zscore": float(score)})
        (again,) = Voting.load(
            written(tmp_path, Voting({"fraud": rule}).text())
        ).anomaly_types.values()
        assert again.ensemble <= score and again.thresholds["zscore"] <= score
        assert 1.0 - again.ensemble == pytest.approx(1.0 - score, rel=5e-3)


def test_rules_that_are_written_again_and_again_stay_as_they_are(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = tmp_path / "voting.toml"
    scores = 1.0 - 10.0 ** -rng.uniform(0.0, 12.0, 500)
    rules = [AnomalyType(f"a{i}", "payment", ensemble=s, thresholds={"iqr": s})
             for i, s in enumerate(scores)]  # fmt: skip
    path.write_text(Voting({rule.name: rule for rule in rules}).text(), encoding="utf-8")
    once = Voting.load(path)
    assert once.text() == path.read_text(encoding="utf-8")
    assert all(once.anomaly_types[rule.name].ensemble <= rule.ensemble for rule in rules)


def test_all_faults_of_the_rules_are_told_at_once(tmp_path: Path) -> None:
    text = """
    [a]
    event_type = "paiment"
    severity = "bad"
    votes_needed = 3
    ensemble = 1.5
    colour = "red"
    [a.thresholds]
    zscore = true
    iqr = 0.9
    [b]
    event_type = "login"
    ensemble = 0.9
    """
    with pytest.raises(ConfigError) as caught:
        Voting.load(written(tmp_path, text))
    told = "\n".join(caught.value.faults)
    for word in ("'paiment'", "'bad'", "3 of 2", "1.5", "'colour'", "zscore", "[b]: thresholds"):
        assert word in told
    assert len(caught.value.faults) == 7


@pytest.mark.parametrize("text", ["", "[a", "a = 1", "\x00"])
def test_rules_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"voting\.toml"):
        Voting.load(written(tmp_path, text))


def test_a_missing_file_of_rules_says_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="copy the bundle's"):
        Voting.load(tmp_path / "none.toml")


def test_an_event_type_that_is_not_ours_has_a_rule_too() -> None:
    assert default_rule("payment").name == "payment_fraud"
    assert default_rule("parcel").name == "parcel_anomaly"


def test_a_detector_without_worth_gets_no_more_than_the_least_weight(
    rng: np.random.Generator,
) -> None:
    label = (rng.random(4_000) < 0.05).astype(np.int8)
    surprise = rng.exponential(0.43, (4_000, 2))
    surprise[label == 1, 0] += 4.0
    fitted = Ensemble.fit(("good", "noise"), surprise, label)
    assert fitted.weights[0] > 5 * fitted.weights[1] >= 0
    odd = fitted.surprise(surprise[label == 1])
    assert np.median(odd) > 2.5


def test_without_labels_all_detectors_weigh_the_same(rng: np.random.Generator) -> None:
    surprise = rng.exponential(0.43, (1_000, 3))
    fitted = Ensemble.fit(("a", "b", "c"), surprise, np.full(1_000, -1, np.int8))
    assert fitted.weights.tolist() == [1.0, 1.0, 1.0]
    share = np.mean(fitted.surprise(rng.exponential(0.43, (20_000, 3))) >= 2.0)
    assert share == pytest.approx(0.01, rel=0.6)


def test_the_vote_of_dependent_detectors_keeps_its_scale(rng: np.random.Generator) -> None:
    one = rng.exponential(0.43, 5_000)
    twice = np.column_stack((one, one))
    fitted = Ensemble.fit(("a", "b"), twice, np.zeros(5_000, np.int8))
    again = rng.exponential(0.43, 50_000)
    found = fitted.surprise(np.column_stack((again, again)))
    assert np.mean(found >= 2.0) == pytest.approx(0.01, rel=0.4)


def test_a_detector_that_did_not_score_adds_nothing(rng: np.random.Generator) -> None:
    surprise = rng.exponential(0.43, (1_000, 2))
    fitted = Ensemble.fit(("a", "b"), surprise, np.zeros(1_000, np.int8))
    silent = surprise.copy()
    silent[:, 1] = np.nan
    zero = np.where(np.isnan(silent), 0.0, silent)
    assert np.array_equal(fitted.surprise(silent), fitted.surprise(zero))


def attacks_of_two_kinds(
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Surprises of `taught` and `free` on rows of which 200 are of a kind that `taught` knows, and
    200 more of one that `free` alone sees; labels of the former, and where the latter are."""
    surprise = rng.exponential(0.43, (20_400, 2))
    known, other = np.zeros((2, 20_400), np.bool_)
    known[:200], other[200:400] = True, True
    surprise[known, 0] += 4.0
    surprise[other, 1] += 4.0
    return surprise, known.astype(np.int8), other


def test_what_no_label_was_like_is_heard_from_who_needs_none(rng: np.random.Generator) -> None:
    surprise, label, other = attacks_of_two_kinds(rng)
    names, alone = ("taught", "free"), np.array([False, True])
    seen = ~other
    deaf = Ensemble.fit(names, surprise[seen], label[seen])
    fitted = Ensemble.fit(names, surprise[seen], label[seen], unaided=alone)
    assert np.mean(deaf.surprise(surprise[other]) >= 2.7) < 0.2
    assert np.mean(fitted.surprise(surprise[other]) >= 2.7) > 0.8
    assert np.mean(fitted.surprise(surprise[label == 1]) >= 2.7) > 0.9, "nothing known is lost"
    again = rng.exponential(0.43, (200_000, 2))
    assert np.mean(fitted.surprise(again) >= 2.0) == pytest.approx(0.01, rel=0.4), "one scale"
    alarms = fitted.parts(again[fitted.surprise(again) >= 2.7])
    assert 0.05 < np.mean(alarms[:, 0] == 0.0) < 0.6, "a share of the alarms is theirs"
    assert np.allclose(fitted.parts(surprise).sum(axis=1), fitted.number(surprise), rtol=1e-12)


def test_a_vote_that_nobody_taught_has_one_sum(rng: np.random.Generator) -> None:
    surprise, label, _ = attacks_of_two_kinds(rng)
    alone = np.array([False, True])
    assert Ensemble.fit(("a", "b"), surprise, np.zeros_like(label), unaided=alone).novelty is None
    none = np.zeros(2, np.bool_)
    assert Ensemble.fit(("a", "b"), surprise, label, unaided=none).novelty is None
    mute = surprise.copy()
    mute[:, 1] = np.nan
    assert Ensemble.fit(("a", "b"), mute, label, unaided=alone).novelty is None


def test_without_labels_who_sees_an_anomaly_is_not_outvoted(rng: np.random.Generator) -> None:
    surprise = rng.exponential(0.43, (20_200, 3))
    odd = np.zeros(20_200, np.bool_)
    odd[:200] = True
    surprise[odd, 0] += 3.0
    names, label = ("a", "b", "c"), np.zeros(20_200, np.int8)
    alike = Ensemble.fit(names, surprise, label)
    heard = Ensemble.fit(names, surprise, label, question=np.array([0, 0, 0]))
    fresh = rng.exponential(0.43, (100_000, 3))
    found = [
        np.mean(vote.number(surprise[odd]) > np.quantile(vote.number(fresh), 0.997))
        for vote in (alike, heard)
    ]
    assert found[1] > found[0] + 0.05
    assert np.mean(heard.surprise(fresh) >= 2.0) < 0.012, "calibrated as a whole"
    parts = heard.parts(surprise)
    assert np.array_equal(parts.sum(axis=1), heard.number(surprise))
    assert (np.count_nonzero(parts, axis=1) == 1).all(), "one speaks for all who ask the same"
    two = Ensemble.fit(names, surprise, label, question=np.array([0, 0, 2]))
    assert two.number(np.array([[1.0, 2.0, 4.0], [np.nan, 2.0, np.nan]])).tolist() == [6.0, 2.0]
    other = two.ordered(("c", "new", "b"))
    assert other.number(np.array([[4.0, 9.0, 2.0]])).tolist() == [6.0]


def test_labels_take_the_place_of_questions(rng: np.random.Generator) -> None:
    surprise, label, _ = attacks_of_two_kinds(rng)
    asked = Ensemble.fit(("a", "b"), surprise, label, question=np.array([0, 0]))
    assert asked.question is None
    plain = Ensemble.fit(("a", "b"), surprise, label)
    assert np.array_equal(asked.number(surprise), plain.number(surprise))


def test_a_vote_over_other_columns_says_the_same(rng: np.random.Generator) -> None:
    surprise, label, _ = attacks_of_two_kinds(rng)
    vote = Ensemble.fit(("a", "b"), surprise, label, unaided=np.array([False, True]))
    other = vote.ordered(("new", "b", "a"))
    columns = np.column_stack((surprise[:, 0], surprise[:, 1], surprise[:, 0]))
    assert np.array_equal(other.number(columns), vote.number(surprise))
    assert not other.parts(columns)[:, 0].any()
