"""Training: parts that share no entity, the same bundle twice, thresholds at the asked share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.batch import FeatureMatrix
from features.catalog import catalog
from features.errors import ConfigError, DeclarationError
from models import train as train_module
from models.bundle import Bundle
from models.costs import Costs
from models.detectors import detector
from models.leaks import separating
from models.scoring import Scorer
from models.train import Aim, join_sets, parts_of, select_rows, train
from models.view import DAY_SEEN_US, WEEK_SEEN_US, View
from tests.rows import training_set

CHEAP = ("zscore", "iqr")


def test_no_entity_stands_in_two_parts(rng: np.random.Generator) -> None:
    rows = training_set(rng, rows=4_000, entities=600)
    parts = parts_of(rows)
    for entity in np.unique(rows.entity):
        assert len(np.unique(parts[rows.entity == entity])) == 1
    assert np.allclose(np.bincount(parts) / len(rows), (0.5, 0.25, 0.25), atol=0.06)


def test_few_entities_are_split_by_stretches_of_time(rng: np.random.Generator) -> None:
    rows = training_set(rng, "app_log", rows=4_000, entities=3)
    parts = parts_of(rows)
    changes = np.count_nonzero(np.diff(parts))
    assert 8 <= changes <= 31
    assert np.allclose(np.bincount(parts) / len(rows), (0.5, 0.25, 0.25), atol=0.12)


def test_thresholds_are_reached_by_the_asked_share_of_genuine_rows(
    rng: np.random.Generator,
) -> None:
    rows = training_set(rng, rows=24_000, odd=600, entities=5_000)
    bundle = train({"payment": rows}, catalog(), CHEAP, 1, aim=Aim(0.01))
    fresh = training_set(rng, rows=20_000, odd=400, entities=5_000)
    scorer = Scorer(bundle, CHEAP)
    scores = scorer.score(fresh.features, {})
    decisions = scorer.decide(scores, {})
    genuine = fresh.label == 0
    assert decisions.flagged[genuine, 0].mean() == pytest.approx(0.01, rel=0.4)
    for i in range(len(CHEAP)):
        assert decisions.votes[genuine, 0, i].mean() == pytest.approx(0.01, rel=0.4)
    metrics = bundle.metrics["detectors"]
    assert metrics["ensemble"]["fpr"] <= 0.01
    assert metrics["ensemble"]["recall"] > 0.7


def test_thresholds_follow_from_what_mistakes_cost_and_how_often_anomalies_come(
    rng: np.random.Generator,
) -> None:
    rows = training_set(rng, rows=8_000, odd=400, entities=2_000)

    def chosen(miss: float, often: float) -> dict[str, float]:
        aim = Aim(0.0018, Costs(miss, 1.0), {"payment": often})
        metrics = train({"payment": rows}, catalog(), ("zscore",), 1, aim=aim).metrics
        point: dict[str, float] = metrics["voting"]["payment"]["chosen"]
        assert metrics["asked"]["payment"]["share"] == point["share"]
        return point

    dear, cheap, rare = chosen(300.0, 0.05), chosen(3.0, 0.05), chosen(300.0, 1e-4)
    assert dear["share"] > cheap["share"] and dear["recall"] > cheap["recall"]
    assert rare["share"] < dear["share"]


def test_rows_without_labels_train_thresholds_and_no_recall(rng: np.random.Generator) -> None:
    rows = training_set(rng, rows=4_000, odd=40, labelled=False)
    bundle = train({"payment": rows}, catalog(), CHEAP, 1)
    assert bundle.models["payment"].ensemble.weights.tolist() == [1.0, 1.0]
    assert np.isnan(bundle.metrics["detectors"]["ensemble"]["recall"])
    assert bundle.training["sets"]["payment"]["labelled"] is False
    scorer = Scorer(bundle, CHEAP)
    flagged = scorer.decide(scorer.score(rows.features, {}), {}).flagged[:, 0]
    assert 0 < flagged.mean() < 0.02


def test_too_few_rows_are_refused_for_all_event_types_at_once(rng: np.random.Generator) -> None:
    sets = {name: training_set(rng, name, rows=100, odd=5) for name in ("payment", "login")}
    with pytest.raises(ConfigError) as caught:
        train(sets, catalog(), CHEAP, 1)
    assert len(caught.value.faults) == 2 and "more history" in caught.value.faults[0]
    with pytest.raises(ConfigError, match="no rows at all"):
        train({}, catalog(), CHEAP, 1)


def test_rows_that_are_all_anomalies_are_refused_with_the_cure(rng: np.random.Generator) -> None:
    rows = training_set(rng, rows=3_000, odd=3_000)
    with pytest.raises(ConfigError) as caught:
        train({"payment": rows}, catalog(), CHEAP, 1)
    (fault,) = caught.value.faults
    assert "payment: all 3,000 rows are labelled anomalies" in fault
    assert "give history with genuine events" in fault
    nearly = training_set(rng, rows=3_000, odd=1_000)
    train({"payment": nearly}, catalog(), CHEAP, 1)


@pytest.mark.parametrize(
    "how", ["above", "below", "within", "around", "category", "absent", "present"]
)
def test_a_feature_that_gives_the_label_away_is_named(rng: np.random.Generator, how: str) -> None:
    rows = training_set(rng, rows=1_000, odd=60)
    odd, values = rows.label == 1, rows.features.values.copy()
    clean: list[str] = []
    train({"payment": rows}, catalog(), ("zscore",), 1, say=clean.append)
    assert not [text for text in clean if "every known attack" in text]
    name, column = rows.features.names[20], values[:, 20]
    column[:] = np.abs(np.nan_to_num(column, nan=1.0))
    if how in ("above", "below"):
        column[odd] += {"above": 1.0, "below": -1.0}[how] * (1.0 + column.max())
    elif how in ("within", "around"):  # anomalies between two clouds of others, or about one
        middle = odd if how == "within" else ~odd
        column[:] = rng.choice((-1.0, 1.0), len(column)) * (2.0 + column)
        column[middle] = rng.uniform(-1.0, 1.0, middle.sum())
    elif how == "category":  # codes of a status, those of anomalies among the others
        column[:] = np.where(
            odd, rng.choice((3.0, 7.0), len(odd)), rng.choice((1.0, 5.0, 9.0), len(odd))
        )
    else:
        column[odd if how == "absent" else ~odd] = np.nan
    leaking = replace(rows, features=replace(rows.features, values=values))
    said: list[str] = []
    train({"payment": leaking}, catalog(), ("zscore",), 1, say=said.append)
    (told,) = [text for text in said if "every known attack" in text]
    assert told.startswith(f"payment: {name} alone")
    column[np.flatnonzero(odd)[0]] = column[~odd][0]
    assert separating(leaking) == (), "one row is enough to be in doubt"
    few = select_rows(leaking, np.flatnonzero(~odd | (np.cumsum(odd) <= 10)))
    assert separating(few) == (), "ten may be chance"


def test_an_unknown_detector_is_refused_with_the_nearest(rng: np.random.Generator) -> None:
    with pytest.raises(DeclarationError, match="did you mean 'zscore'"):
        train({"payment": training_set(rng)}, catalog(), ("zscor",), 1)


def test_the_fingerprint_tells_other_rows(rng: np.random.Generator) -> None:
    rows = training_set(rng, rows=1_000)
    other = select_rows(rows, np.arange(999))
    prints = [
        train({"payment": one}, catalog(), ("zscore",), 1).training["sets"]["payment"][
            "fingerprint"
        ]
        for one in (rows, rows, other)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_joined_sets_stand_in_time_order(rng: np.random.Generator) -> None:
    first, second = training_set(rng, rows=300, odd=9), training_set(rng, rows=200, odd=7)
    both = join_sets(first, second)
    assert len(both) == 500 and (both.label == 1).sum() == 16
    assert np.all(np.diff(both.time_us) >= 0)
    assert both.features.sequence is not None and len(both.features.sequence) == 500


@pytest.mark.parametrize("event", ["payment", "login", "metric", "app_log"])
def test_a_history_shorter_than_a_day_says_nothing_of_the_hour(
    event: str, rng: np.random.Generator
) -> None:
    rows = training_set(rng, event, rows=500, odd=5)
    usual = rows.features.values[rows.label == 0]
    day, minutes = (
        View.fit(catalog(), event, usual, span) for span in (DAY_SEEN_US, DAY_SEEN_US - 1)
    )
    hidden = set(day.names) - set(minutes.names)
    assert hidden == {n for n in day.names if n == "hour" or n.endswith("_season_z")}
    week = View.fit(catalog(), event, usual, WEEK_SEEN_US)
    slow = {n for n in week.names if n.endswith(("_creep", "_week_z"))}
    assert set(week.names) - set(day.names) == slow and slow
    assert hidden and set(minutes.names) < set(day.names)
    assert int(np.ptp(rows.time_us)) < DAY_SEEN_US
    bundle = train({event: rows}, catalog(), ("zscore",), 1)
    assert bundle.models[event].view.names == minutes.names


def test_where_labels_are_few_trees_learn_from_all_of_them(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = training_set(rng, rows=1_500, odd=120)
    names = ("zscore", "gradient_boosting")
    few = train({"payment": rows}, catalog(), names, 1)
    monkeypatch.setattr(train_module, "FULL_BELOW", 1)
    many = train({"payment": rows}, catalog(), names, 1)
    a, b = few.models["payment"], many.models["payment"]
    same = (
        {n: a.detectors[n].save()[0] for n in names},
        {n: b.detectors[n].save()[0] for n in names},
    )
    assert all(np.array_equal(x, same[1]["zscore"][k]) for k, x in same[0]["zscore"].items())
    assert not np.array_equal(same[0]["gradient_boosting"]["model"],
                              same[1]["gradient_boosting"]["model"])  # fmt: skip
    assert few.metrics == many.metrics, "told is what rows say that nothing was fitted on"
    assert few.voting == many.voting
    whole = detector("gradient_boosting").fit(
        replace(rows, features=a.view.apply(rows.features)), 1, {}
    )
    assert np.array_equal(whole.save()[0]["model"], same[0]["gradient_boosting"]["model"])


def test_without_labels_the_most_surprised_speaks_beside_what_lasts(
    rng: np.random.Generator,
) -> None:
    rows = training_set(rng, "metric", rows=1_500, labelled=False)
    rows = replace(rows, time_us=rows.time_us * 8 - rows.time_us[0] * 7)  # more than a week
    bundle = train({"metric": rows}, catalog(), ("zscore", "iqr", "level"), 1)
    ensemble = bundle.models["metric"].ensemble
    assert ensemble.detectors == ("zscore", "iqr", "level")
    assert ensemble.number(np.array([[3.0, 1.0, 2.0], [0.5, np.nan, 0.0]])).tolist() == [5.0, 0.5]


def test_what_lasts_has_a_say_on_metrics_alone(rng: np.random.Generator) -> None:
    rows = {name: training_set(rng, name, rows=1_500) for name in ("payment", "metric")}
    told: list[str] = []
    bundle = train(rows, catalog(), ("zscore", "level"), 1, say=told.append)
    assert list(bundle.models["payment"].detectors) == ["zscore"]
    assert bundle.voting.anomaly_types["payment_fraud"].thresholds.keys() == {"zscore"}
    assert detector("level").serves("parcel"), "a user's own"  # type: ignore[attr-defined]
    alone = train({"payment": rows["payment"]}, catalog(), ("zscore", "level"), 1, say=told.append)
    assert "left out, since they serve none of the event types here: level" in told
    assert alone.training["left_out"] == ["level"]
    with pytest.raises(ConfigError, match="none of the detectors asked for"):
        train({"payment": rows["payment"]}, catalog(), ("level",), 1)


def test_detectors_do_not_see_what_only_grows_with_time(rng: np.random.Generator) -> None:
    rows = training_set(rng, rows=1_000)
    view = View.fit(catalog(), "payment", rows.features.values[rows.label == 0], 2 * DAY_SEEN_US)
    seen = view.apply(rows.features)
    assert "card_usual_1h" not in seen.names and "card_count_1h" in seen.names
    age = rows.features.column("device_age_s")
    held = seen.column("device_age_s")
    known = ~np.isnan(age)
    assert np.array_equal(np.isnan(held), ~known)
    assert held[known].max() == pytest.approx(np.nanmedian(age[rows.label == 0]))
    assert np.array_equal(
        seen.column("card_count_1h"), rows.features.column("card_count_1h"), equal_nan=True
    )


@pytest.mark.parametrize("few", [0, 30])
def test_absences_too_few_to_learn_from_are_judged_by_how_long_they_are_overdue(
    rng: np.random.Generator, few: int, tmp_path: Path
) -> None:
    sets = {"metric": training_set(rng, "metric", rows=2_000)}
    if few:
        sets["absence"] = training_set(rng, "absence", rows=few, odd=3)
    said: list[str] = []
    made = train(sets, catalog(), CHEAP, 1, say=said.append)
    made.write(tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle", catalog())
    assert list(bundle.models["absence"].detectors) == ["overdue"]
    assert any("only 30 rows of 1000 needed" in line for line in said) == bool(few)
    names = catalog().names("absence")
    values = np.zeros((5, len(names)))
    columns = [names.index(name) for name in ("gap_s", "allowed_s", "known_days")]
    values[:, columns] = [(100, 100, 3), (200, 100, 3), (400, 100, 3), (900, 100, 3), (900, 100, 1)]
    rows = FeatureMatrix("absence", names, values, None, catalog().version)
    scorer = Scorer(bundle, CHEAP)
    scores = scorer.score(rows, {})
    decisions = scorer.decide(scores, {})
    assert scores.detectors == ("overdue",) and decisions.anomaly_types == ("silence",)
    assert decisions.flagged[:, 0].tolist() == [False, False, True, True, False]
    assert (scores.scores[2:4] > 0.997).all()
    metrics = scorer.score(sets["metric"].features, {})
    assert metrics.detectors == CHEAP, "it has no part in what others judge"


def test_a_world_that_watches_nobody_has_no_word_on_absences(rng: np.random.Generator) -> None:
    made = train({"payment": training_set(rng, rows=2_000)}, catalog(), CHEAP, 1)
    assert "absence" not in made.models and "silence" not in made.voting.anomaly_types
