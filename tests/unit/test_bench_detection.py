"""`waxwing bench detection`: measures against slow twins, protocols, the page from its figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score

from dataflows.bench.detection import fraud_handbook, simulator, skab
from dataflows.bench.detection.measures import (
    card_precision,
    delays,
    point_rates,
    range_average_precision,
    stretches,
)
from dataflows.bench.detection.page import page_of
from dataflows.bench.detection.sensors import _ecod
from dataflows.cli.main import main
from dataflows.settings import Settings, load
from features.errors import ConfigError
from features.simulate import ATTACKS
from models.detectors import detector_names
from models.train import train

DOCS = Path(__file__).resolve().parents[2] / "docs"


def slow_card_precision(
    rows: list[tuple[int, int, bool, float]], top: int
) -> tuple[float, list[int]]:
    """The book's rule, card by card: mean share, and hits by day."""
    gone: set[int] = set()
    hits = []
    for day in sorted({row[0] for row in rows}):
        best: dict[int, tuple[float, bool]] = {}
        for _, card, odd, score in (r for r in rows if r[0] == day and r[1] not in gone):
            s, o = best.get(card, (-np.inf, False))
            best[card] = (max(s, score), o or odd)
        order = sorted(best, key=lambda card: -best[card][0])[:top]
        found = {card for card in order if best[card][1]}
        hits.append(len(found))
        gone |= found
    return sum(hits) / len(hits) / top, hits


def test_card_precision_is_the_books_rule(rng: np.random.Generator) -> None:
    n = 4_000
    day, card = rng.integers(0, 7, n), rng.integers(0, 300, n)
    score = rng.permutation(n).astype(float)  # no ties: whose card comes first is chance
    odd = rng.random(n) < 0.03
    rows = list(zip(day.tolist(), card.tolist(), odd.tolist(), score.tolist(), strict=True))
    expected, hits = slow_card_precision(rows, 20)
    assert card_precision(day, card, odd, score, 20) == pytest.approx(expected)
    assert len(set(hits)) > 1, "days differ"


def test_a_card_that_was_found_is_gone_the_next_day_and_a_false_alarm_is_not() -> None:
    day, card = np.array([0, 0, 1, 1]), np.array([1, 2, 1, 2])
    odd = np.array([True, False, True, True])
    score = np.array([9.0, 8.0, 9.0, 8.0])
    # Day 0 inspects both and finds card 1; day 1 has only card 2 left.
    assert card_precision(day, card, odd, score, 2) == pytest.approx((0.5 + 0.5) / 2)
    # A fraud counts for its card although another payment of it scored highest.
    one, twice = np.array([3, 3]), np.array([0, 0])
    assert card_precision(twice, one, np.array([True, False]), np.array([0.0, 1.0]), 1) == 1.0


def test_cards_known_to_be_defrauded_are_not_judged() -> None:
    days = [(0, 1, True), (6, 2, True), (7, 3, True), (13, 4, True)]
    tests = [(14 + i, c, False) for i in range(7) for c in range(1, 6)]
    day, card, odd = (np.array(x) for x in zip(*(days + tests), strict=True))
    fitted, judged = fraud_handbook.split_rows(day, card, odd, 0)
    assert fitted.tolist() == [0, 1]
    left = {i: set(card[judged][day[judged] == 14 + i].tolist()) for i in range(7)}
    # Cards of the training week never; the fraud of day 7 is known on day 15, eight days later;
    # that of day 13 on no day of the test.
    assert left[0] == {3, 4, 5} and left[1] == {4, 5} and left[6] == {4, 5}


def test_windows_of_the_books_inputs_end_a_week_before_for_terminals() -> None:
    day_s = 86_400
    time_s = np.array([0, 1, 7 * day_s, 7 * day_s, 7 * day_s + 1, 8 * day_s + 1])
    key, value = np.ones(6, np.int64), np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    rows = np.arange(6)
    count, total = fraud_handbook._trailing(key, time_s, value, day_s, 0, rows)
    assert count.tolist() == [1, 2, 1, 2, 3, 1] and total.tolist() == [1, 3, 4, 12, 28, 32]
    count, total = fraud_handbook._trailing(key, time_s, value, day_s, 7 * day_s, rows)
    assert count.tolist() == [0, 0, 1, 1, 2, 0] and total.tolist() == [0, 0, 1, 1, 3, 0]


def test_another_table_does_not_pass_for_the_books(tmp_path: Path, settings: Settings) -> None:
    rng = np.random.default_rng(1)
    n = 4_000
    path = tmp_path / "t.parquet"
    start = np.datetime64("2018-07-25T00:00:00", "us")
    times = start + np.sort(rng.integers(0, 21 * 86_400, n)).astype("timedelta64[s]").astype(
        "timedelta64[us]"
    )
    frame = pl.DataFrame({"datetime": times, "amount": rng.uniform(1, 300, n)}).with_columns(
        pl.Series("customer_id", rng.integers(0, 500, n)),
        pl.Series("terminal_id", rng.integers(0, 500, n)),
        pl.Series("scenario", (rng.random(n) < 0.05).astype(np.int8)),
    )
    frame.write_parquet(path)
    with pytest.raises(ConfigError, match="logistic regression"):
        fraud_handbook.measure(path, settings, print)
    frame.drop("amount").write_parquet(path)
    with pytest.raises(ConfigError, match="has no amount"):
        fraud_handbook.measure(path, settings, print)


@pytest.fixture
def settings() -> Settings:
    """Plain ones."""
    return Settings()


def test_ranges_are_measured_whatever_their_length() -> None:
    odd = np.zeros(1_000, bool)
    odd[100:110] = odd[500:900] = True
    series = np.zeros(1_000, np.int64)
    first, end = stretches(odd, series)
    assert (first.tolist(), end.tolist()) == ([100, 500], [110, 900])
    cut = np.repeat([0, 1], [600, 400])
    assert stretches(odd, cut)[0].tolist() == [100, 500, 600], "none goes on in the next series"
    assert range_average_precision(odd, odd.astype(float), series) == pytest.approx(1.0)
    long = np.zeros(1_000)
    long[500:900] = 1.0
    # One of two stretches, whole: half the recall at full precision, the rest at that of all rows.
    by_range = range_average_precision(odd, long, series)
    assert by_range == pytest.approx(0.5 + 0.5 * odd.mean(), abs=0.01)
    assert by_range < average_precision_score(odd, long) - 0.1, (
        "by points the long one is nearly all"
    )


def test_rates_and_delays_are_plain_counts() -> None:
    odd = np.array([0, 1, 1, 1, 0, 0, 1, 1], bool)
    flagged = np.array([1, 0, 0, 1, 1, 0, 0, 0], bool)
    assert point_rates(odd, flagged) == pytest.approx({"f1": 2 / 8, "far": 2 / 3, "mar": 4 / 5})
    late, count = delays(odd, flagged, np.zeros(8, np.int64))
    assert late.tolist() == [2] and count == 2


def test_the_peer_ecod_sums_tails_of_the_fitted_rows(rng: np.random.Generator) -> None:
    fit, rows = rng.exponential(size=(60, 3)), rng.exponential(size=(8, 3))
    for x, said in zip(rows, _ecod(fit, rows), strict=True):
        low = [-np.log((np.sum(fit[:, j] <= x[j]) + 1) / 61) for j in range(3)]
        high = [-np.log((np.sum(fit[:, j] >= x[j]) + 1) / 61) for j in range(3)]
        assert said == pytest.approx(max(sum(low), sum(high)))  # all three lean to the right


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A bench of two small experiments, in each of which a sensor leaves its level and stays."""
    rng = np.random.default_rng(7)
    n = 560
    frames = []
    for name in ("a/0", "b/1"):
        values = rng.normal(10.0, 1.0, (n, 4))
        values[470:530, 2] += 4.0
        odd = ((np.arange(n) >= 470) & (np.arange(n) < 530)).astype(np.int64)
        times = np.datetime64("2020-03-09T10:00:00", "us") + np.arange(n).astype(
            "timedelta64[s]"
        ).astype("timedelta64[us]")
        frames.append(
            pl.DataFrame({"file": [name] * n, "datetime": times}).with_columns(
                *(pl.Series(f"sensor {i}", values[:, i]) for i in range(4)),
                pl.Series("anomaly", odd),
                pl.Series("changepoint", odd),
            )
        )
    path = tmp_path_factory.mktemp("skab") / "skab.parquet"
    pl.concat(frames).write_parquet(path)
    found: dict[str, Any] = skab.measure(path, Settings(), lambda _: None)
    return found


def test_a_sensor_off_its_level_is_found_for_as_long_as_it_is(report: dict[str, Any]) -> None:
    assert report["rows"] == {"fit": 800, "test": 320, "odd": 120}
    assert report["average_precision"] > 0.85
    assert report["stretches_met"] == report["stretches"] == 2
    assert report["delay_rows_p50"] <= 10
    assert report["mar"] < 0.5, "to its end, not at its begin alone"
    assert set(report["against"]) == {*report["detectors"], "isolation_forest_raw", "ecod"} - {
        "gradient_boosting"
    }


SMALL = {
    "sim_cards": 1_000, "sim_events_per_s": 1.0, "sim_anomaly_share": 0.02,
    "detectors": ["zscore", "gradient_boosting"],
}  # fmt: skip
"""A world of which a day is simulated in a second."""


def test_the_simulator_is_judged_by_models_that_never_saw_the_attack_or_a_label(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted: list[dict[str, Any]] = []

    def recorded(sets: dict[str, Any], *args: Any, **more: Any) -> Any:
        fitted.append(sets)
        return train(sets, *args, **more)

    monkeypatch.setattr(simulator, "train", recorded)
    settings = load(None, {}, **SMALL)
    report = simulator.measure(None, settings, lambda _: None, 1.0, 1.0, ["card_testing"])
    whole, blind, without = fitted
    code = ATTACKS["card_testing"]
    assert (whole["payment"].attack == code).sum() > 100
    assert list(without) == ["payment"] and not (without["payment"].attack == code).any()
    assert (without["payment"].attack > 0).sum() > 100, "the others are there"
    assert all((rows.label == -1).all() for rows in blind.values())
    assert 0.005 < (blind["payment"].attack > 0).mean() < 0.05, "as rare as in the stream"
    assert report["recall"] > 0.6 and report["fpr"] < 0.02
    assert set(report["by_detector"]) == {"zscore", "gradient_boosting", "ensemble"}
    assert set(report["unlabelled"]["by_detector"]) == {"zscore", "ensemble"}
    assert set(report["by_seed"]) == {str(seed) for seed in simulator.SEEDS}
    lost = report["left_out"]["card_testing"]
    assert lost["events"] == report["by_attack"]["card_testing"]["events"] > 0
    strong, weak = (
        np.nanmean([of.get(s, np.nan) for of in report["strength"].values()]) for s in ("1", "0.1")
    )
    assert strong > weak + 0.3
    assert undocumented(report) == set()


def test_what_the_simulator_is_told_is_told_to_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--days", "0", "--attacks", "card_tasting", "--data", "x"]
    assert main(["bench", "detection", "--dataset", "simulator", *more]) == 2
    said = capsys.readouterr().err
    assert "--days 0: expected" in said and "no attack 'card_tasting'" in said
    assert "--data x: the simulator makes its own" in said
    assert main(["bench", "detection", "--dataset", "skab", "--data", ".", "--hours", "3"]) == 2
    assert "--hours: of --dataset simulator alone" in capsys.readouterr().err


def test_the_page_is_that_of_the_figures_beside_it() -> None:
    files = sorted((DOCS / "detection").glob("*.json"))
    assert files, "docs/detection holds what `bench detection --json` wrote"
    assert (DOCS / "detection.md").read_text(encoding="utf-8") == page_of(files)


def test_figures_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"x\.json"):
        page_of([path])


NAMED = ("against", "published", "splits", "by_attack", "by_seed", "left_out", "strength")
"""Keys below which names stand."""


def undocumented(report: object) -> set[str]:
    """Keys of a report that docs/json.md does not tell of."""

    def keys(found: object, names: bool = False) -> set[str]:
        if not isinstance(found, dict):
            return set()
        inner = (keys(v, k in NAMED) for k, v in found.items())
        return set().union(set() if names else set(found), *inner)

    strengths = {f"{strength:g}" for strength in simulator.STRENGTHS}
    page = (DOCS / "json.md").read_text(encoding="utf-8")
    page = page.partition("## `waxwing bench detection`")[2]
    told = {w for code in re.findall(r"`([^`\n]+)`", page) for w in re.split(r"[.\s]", code)}
    return keys(report) - told - strengths - {*detector_names()}


def test_every_key_stands_on_the_page(report: dict[str, Any]) -> None:
    for path in (DOCS / "detection").glob("*.json"):
        assert undocumented(json.loads(path.read_text(encoding="utf-8"))) == set(), path.name
    assert undocumented(report) == set()
