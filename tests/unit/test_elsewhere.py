"""Which detectors are asked elsewhere: by the settings, in training, in the flow, in a replay."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflows.compare import compare_files
from dataflows.elsewhere import Remotes
from dataflows.settings import Settings, load
from dataflows.shelf import load_scorer
from dataflows.sources.simulator import make_simulator, time_us_of
from features.catalog import catalog
from features.errors import AnswerError, BundleError, ConfigError
from models.base import TrainingSet
from models.bundle import Bundle
from models.scoring import Scorer
from models.train import train
from tests.rows import training_set
from tests.v2 import Script

DETECTORS = ("zscore", "remote")


def strangeness(_model: str, inputs: dict[str, Any]) -> Any:
    """How far the first dozen features of a row lie above the others."""
    return np.nan_to_num(inputs["features"])[:, :12].sum(axis=1)


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    """Somebody else's model."""
    with Script(strangeness) as running:
        yield running


@pytest.fixture(scope="module")
def rows() -> TrainingSet:
    """Logins with odd ones among them."""
    return training_set(np.random.default_rng(3), "login", rows=2_000, odd=150)


def settings(script: Script, **more: Any) -> Settings:
    """They name the server."""
    found = {"remote_url": script.urls["grpc"], "detectors": list(DETECTORS)} | more
    return load(None, {}, **({"detector_timeout_s": 0, "remote_timeout_s": 60} | found))


@pytest.fixture(scope="module")
def folder(script: Script, rows: TrainingSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was trained with it."""
    path = tmp_path_factory.mktemp("elsewhere") / "bundle"
    remotes = Remotes(settings(script), patient=True)
    train({"login": rows}, catalog(), DETECTORS, 1, place=remotes.in_training).write(path)
    remotes.close()
    return path


def test_a_model_of_somebody_else_is_calibrated_and_finds_what_it_finds(
    script: Script, folder: Path, rows: TrainingSet
) -> None:
    remotes = Remotes(settings(script, remote_rows_max=300))
    bundle = remotes.placed(Bundle.load(folder, catalog()))
    scorer = Scorer(bundle, DETECTORS)
    script.asked.clear()
    scorer.warm_up()
    assert script.asked == [] and scorer.far("login") == {"remote"}, "a start asks nobody"
    scores = scorer.score(rows.features, {})
    assert {model for model, _ in script.asked} == {"login.remote"}
    genuine = scores.scores[rows.label == 0, 1]
    assert 0.95 < np.quantile(genuine, 0.97) < 0.99, "0.97 of the genuine rows lie below 0.97"
    assert np.median(scores.scores[rows.label == 1, 1]) > 0.999
    report = remotes.report()
    assert report["rows"] == 2_000
    assert report["requests"] - report["retries"] == 7, "a busy machine may ask once more"
    remotes.close()


def test_without_a_server_it_has_no_vote_and_says_what_to_set(
    folder: Path, rows: TrainingSet
) -> None:
    bundle = Remotes(load(None, {})).placed(Bundle.load(folder, catalog()))
    with pytest.raises(AnswerError, match="set remote_url"):
        Scorer(bundle, DETECTORS).score(rows.features, {})


def test_detectors_of_the_bundle_are_asked_of_a_server_with_the_same_bundle(
    script: Script, folder: Path, rows: TrainingSet
) -> None:
    plain = Bundle.load(folder, catalog())
    own = plain.models["login"]
    script.answer = lambda model, inputs: own.detectors["zscore"].raw(own.view.apply(rows.features))
    script.bundle = plain.id
    remotes = Remotes(settings(script, remote_detectors=["zscore"], remote_rows_max=50_000))
    try:
        placed = remotes.placed(plain)
        assert placed.id == plain.id and Scorer(placed, DETECTORS).far("login") == set(DETECTORS)
        found = Scorer(placed, ["zscore"]).score(rows.features, {})
        expected = Scorer(plain, ["zscore"]).score(rows.features, {})
        assert found.scores.tobytes() == expected.scores.tobytes()
        assert set(script.asked[-1][1]) == {"features"}, "it reads no sequences"
        script.bundle = "another"
        with pytest.raises(AnswerError, match=f"bundle another answers, expected {plain.id}"):
            Scorer(placed, ["zscore"]).score(rows.features, {})
        assert remotes.report()["unanswered_bundle"] == 1
        beside = remotes.placed(plain, own=False)
        assert Scorer(beside, DETECTORS).far("login") == {"remote"}
        some = Remotes(
            settings(script, remote_detectors=["zscore"], remote_event_types=["payment"])
        )
        assert Scorer(some.placed(plain), ["zscore"]).far("login") == {"remote"}
    finally:
        script.answer, script.bundle = strangeness, ""
        remotes.close()


def test_a_bundle_that_cannot_ask_is_refused_and_no_row_is_blamed(
    script: Script, folder: Path, rows: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Scorer(Bundle.load(folder, catalog()), DETECTORS)
    monkeypatch.setitem(sys.modules, "grpc", None)
    remotes = Remotes(settings(script))
    with pytest.raises(BundleError, match=r"needs grpcio; install it"):
        load_scorer(folder, catalog(), base, remotes.beside)
    placed = remotes.placed(Bundle.load(folder, catalog()))
    with pytest.raises(AnswerError, match="needs grpcio") as told:
        Scorer(placed, DETECTORS).score(rows.features, {})
    assert told.value.kind == "rubbish"


def test_bundles_are_compared_over_files_by_what_the_server_answers(
    script: Script, folder: Path, tmp_path: Path
) -> None:
    start_us = time_us_of("2026-02-01T00:00:00Z")
    world = make_simulator(settings(script, sim_cards=500, sim_events_per_s=0.5), seed=3)
    frame = world.span(start_us, start_us + 3_600_000_000)["login"].frame
    frame.write_parquet(tmp_path / "login.parquet")
    found = settings(
        script, bundle=folder, warm_state="cold", source="file", groups=2,
        file_paths={"login": tmp_path / "login.parquet"},
    )  # fmt: skip
    script.asked.clear()
    before = set(threading.enumerate())
    told = compare_files(found, folder, None)
    rows = sum(inputs["features"][1][0] for _, inputs in script.asked)
    assert rows == 2 * frame["event_id"].n_unique() > 0, "live and candidate ask about each row"
    assert told["candidate"] == told["live"][0]
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("waxwing-remote"):
            thread.join(10.0)
            assert not thread.is_alive(), "connections are closed"


def test_training_ends_with_a_sentence_where_nobody_answers(rows: TrainingSet) -> None:
    with Script(strangeness) as gone:
        found = settings(gone)
    remotes = Remotes(found, patient=True)
    with pytest.raises(AnswerError, match=r"login\.remote at grpc://.*no connection"):
        train({"login": rows}, catalog(), DETECTORS, 1, place=remotes.in_training)
    remotes.close()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"detectors": ["zscore", "remote"]}, "need remote_url"),
        ({"remote_detectors": ["zscore"]}, "need remote_url"),
        ({"remote_detectors": ["zscoer"]}, "did you mean 'zscore'"),
        ({"remote_url": "ftp://x"}, "expected grpc://HOST:PORT"),
        ({"remote_url": "grpc://x:1/path"}, "expected grpc://HOST:PORT"),
        ({"remote_url": "http://me:word@x:1"}, "no user or password"),
        ({"remote_url": "http://x", "remote_timeout_s": 9}, "less than detector_timeout_s"),
        ({"remote_model": "{event}"}, "{event_type} and {detector}"),
        ({"remote_output": "raw[1"}, "NAME[K] for column K"),
        ({"remote_event_types": ["paymet"]}, "did you mean 'payment'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as told:
        load(None, {}, **given)
    assert said in str(told.value)
