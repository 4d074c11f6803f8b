"""The demo as a user meets it: trains, shows, judges; and the figures that were promised."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dataflows.evaluation import load_warm
from dataflows.history import run_history
from dataflows.settings import load
from dataflows.sources.simulator import time_us_of
from dataflows.state.manifest import read_manifest
from dataflows.training import simulated
from features.batch import EventBatch, FeatureMatrix, Float64
from features.catalog import catalog
from features.events import made_types
from features.simulate import ATTACKS, IN_MIX
from models.bundle import Bundle
from models.evaluate import threshold_at
from models.scoring import Scorer
from tests.flow.harness import call, counts_of, simulated_counts

DETECTORS = ("zscore", "iqr", "isolation_forest", "gradient_boosting", "transformer")

FIRST_ALERT_S_MAX = 30.0
WHOLE_S_MAX = 90.0
"""From the start of a trained demo to its first alert and to its end; the goals for waxwing. They
are of a machine that does nothing else, and are held against the work, which is the same on one
that is busy."""

TOO_EASY = 0.7
"""An attack of which more is found at its weakest is too easy a test; the goal set for waxwing."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo has run once with seed 7: its models, its report, its output."""
    folder = tmp_path_factory.mktemp("demo")
    done = call("demo", "--seed", "7", "--json", "out.json", cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    (folder / "said.txt").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=[23, 25])
def day(home: Path, request: pytest.FixtureRequest) -> Kept:
    """A day of traffic that nothing was trained on."""
    return a_day(home, request.param)


class Kept:
    """Keeps, of each event type, what the detectors and the vote made of every event."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._rows: dict[str, list[tuple[Float64, npt.NDArray[Any], npt.NDArray[Any]]]] = {}

    def add(self, batch: EventBatch, features: FeatureMatrix) -> None:
        """Score a batch as the flow does; absences are told of by campaign, not by row."""
        assert batch.truth is not None
        if batch.event_type in made_types():
            return
        scores = self._scorer.score(features, {})
        flagged = np.asarray(self._scorer.decide(scores, {}).flagged.any(axis=1))
        self._rows.setdefault(batch.event_type, []).append(
            (scores.surprise, flagged, batch.truth > 0)
        )

    def of(self, name: str) -> tuple[Float64, npt.NDArray[Any], npt.NDArray[Any], Any]:
        """(a detector's surprise, whether the vote flagged it, whether it is odd, event type)."""
        at = self._scorer.detectors.index(name)
        rows = [(event, *row) for event, made in self._rows.items() for row in made]
        return (
            np.concatenate([surprise[:, at] for _, surprise, _, _ in rows]),
            np.concatenate([flagged for _, _, flagged, _ in rows]),
            np.concatenate([odd for _, _, _, odd in rows]),
            np.concatenate([np.repeat(event, len(odd)) for event, _, _, odd in rows]),
        )


def a_day(home: Path, seed: int) -> Kept:
    """A simulated day of another seed through the demo's models, from its warm state on."""
    demo = home / ".waxwing/demo"
    settings = load(None, {}, bundle=demo / "bundle", warm_state=demo / "warm", sim_seed=seed)
    cat, start_us = catalog(), time_us_of(settings.sim_start)
    bundle = Bundle.load(settings.bundle, cat)
    assert bundle.training["traffic_seed"] != seed
    kept = Kept(Scorer(bundle, settings.detectors))
    reader = simulated(
        settings, seed, start_us, start_us + 86_400_000_000, settings.sim_anomaly_share
    )
    run_history(settings, cat, reader, kept, begin=load_warm(demo / "warm", settings, cat))
    return kept


def refitted(surprise: Float64, flagged: npt.NDArray[Any], odd: npt.NDArray[Any]) -> Any:
    """The votes of one detector alone with as many false positives as the vote has."""
    false = np.count_nonzero(flagged & ~odd)
    return surprise >= threshold_at(surprise[~odd], (false + 0.5) / np.count_nonzero(~odd))


def children_cpu_s() -> float:
    """CPU seconds of all commands that have been run here."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report_of(folder: Path) -> dict[str, Any]:
    """What `--json` wrote."""
    found: dict[str, Any] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.timeout(400)
def test_the_demo_says_that_it_trains_and_what_to_try_next(home: Path) -> None:
    said = (home / "said.txt").read_text(encoding="utf-8")
    assert "14 simulated days of history" in said and "What to try next" in said
    assert (home / ".waxwing/demo/bundle").is_dir() and (home / ".waxwing/demo/warm").is_dir()


def test_what_the_demo_computed_is_bit_identical_when_it_is_computed_again(home: Path) -> None:
    state = home / ".waxwing/demo/state"
    done = call("certify", "--set", f"state_dir={state}", "--json", "certified.json", cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((home / "certified.json").read_text(encoding="utf-8"))
    manifest = read_manifest(state)
    assert manifest is not None and found["identical"]
    assert found["events"] == manifest.totals["in"] > 100_000
    assert f"bit-identical, {found['events']:,} events" in done.stdout


def test_the_demo_accounts_for_every_event(home: Path) -> None:
    report = report_of(home)
    expected = simulated_counts({"sim_seed": 7})
    assert expected["in"] > 150_000 and expected["duplicates"] > 200
    assert counts_of(report) == expected
    assert set(report["latency_ms"]) == {"p50", "p99", "p999"}
    assert set(report["detectors"]) == {*DETECTORS, "ensemble"}
    for judged in report["detectors"].values():
        assert set(judged) >= {"recall", "precision", "fpr"}
    for attack, rows in report["by_attack"].items():
        assert attack in ATTACKS
        assert all(0.0 <= rows[d]["recall"] <= 1.0 for d in (*DETECTORS, "ensemble"))


def test_the_ensemble_keeps_its_promise_and_beats_the_yardsticks(home: Path) -> None:
    judged = report_of(home)["detectors"]
    assert judged["ensemble"]["recall"] >= 0.90
    assert judged["ensemble"]["fpr"] <= 0.003
    for name in ("zscore", "iqr"):
        assert judged[name]["fpr"] <= 0.003, "thresholds fitted alike, on the same rows"
        assert judged["ensemble"]["recall"] > judged[name]["recall"]


@pytest.mark.parametrize("name", ["zscore", "iqr"])
def test_the_ensemble_beats_the_yardsticks_at_the_same_false_positives(
    day: Kept, name: str
) -> None:
    surprise, flagged, odd, event = day.of(name)
    recall, fpr = flagged[odd].mean(), flagged[~odd].mean()
    assert np.count_nonzero(odd) > 100 and recall >= 0.90 and 0.0 < fpr <= 0.003
    # Fitted on the very rows they are judged on, they are given the best thresholds there are.
    by_type = np.zeros(len(odd), np.bool_)
    for one in set(event.tolist()):
        rows = event == one
        by_type[rows] = refitted(surprise[rows], flagged[rows], odd[rows])
    for found in (refitted(surprise, flagged, odd), by_type):
        assert found[~odd].mean() == pytest.approx(fpr, rel=0.1), "the same false positives"
        assert found[odd].mean() < recall


def test_a_second_start_trains_nothing_and_another_seed_is_judged(home: Path) -> None:
    begun_s = children_cpu_s()
    done = call("demo", "--seed", "11", "--seconds", "5", "--json", "-", cwd=home)
    cpu_s = children_cpu_s() - begun_s
    assert done.returncode == 0, done.stderr
    assert "history" not in done.stderr
    report = json.loads(done.stdout)
    # Where nothing else runs, one waits for the work, of which that for the first alert is a part.
    assert cpu_s <= FIRST_ALERT_S_MAX and report["first_alert_s"] > 0
    assert cpu_s <= WHOLE_S_MAX - 60, "what a demo takes beside its minute"
    assert report["seed"] == 11 and report["in"] > 10_000
    assert report["detectors"]["ensemble"]["fpr"] <= 0.01, "a short run is a small sample"


def test_no_attack_is_easy_at_its_weakest(home: Path) -> None:
    done = call(
        "evaluate", "--seed", "41", "--hours", "24", "--json", "-",
        "--set", "bundle=.waxwing/demo/bundle", "--set", "warm_state=.waxwing/demo/warm",
        "--set", "sim_strength=0.1,0.1", "--set", "sim_anomaly_share=0.01", cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["by_attack"]
    assert set(found) == set(IN_MIX)
    recall = {attack: rows["ensemble"]["recall"] for attack, rows in found.items()}
    assert all(rows["events"] >= 50 for rows in found.values())
    assert max(recall.values()) <= TOO_EASY, recall
