"""What is served of a bundle: the operator's numbers, and a sentence for what is no question."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from kserve import InferRequest

from dataflows.cli.serve import models_of
from features.batch import FeatureMatrix
from features.catalog import catalog
from features.errors import ConfigError, ShapeError
from features.sequence import STEPS, WIDTH
from models.bundle import Bundle
from models.scoring import Scorer
from models.serve import THREADS, _Asked
from models.served import ROWS_MAX, Served, served_models
from models.train import train
from models.voting import Voting
from tests.rows import training_set

DETECTORS = ("zscore", "isolation_forest", "transformer")
OPTIONS = {"isolation_forest": {"trees": 20.0, "samples": 128.0}, "transformer": {"epochs": 1.0}}
ROWS = 300


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Three detectors of logins, one of them behind the gate and with sequences."""
    rows = training_set(np.random.default_rng(3), "login", rows=1_200, odd=100)
    made = train({"login": rows}, catalog(), DETECTORS, 1, options=OPTIONS)
    return replace(made, id="0123456789abcdef")


@pytest.fixture(scope="module")
def models(bundle: Bundle) -> dict[str, Served]:
    """What is served of it."""
    return served_models(bundle)


@pytest.fixture(scope="module")
def features() -> FeatureMatrix:
    """Rows to ask about, some of them odd."""
    return training_set(np.random.default_rng(4), "login", rows=ROWS, odd=30).features


def tensors(features: FeatureMatrix) -> dict[str, np.ndarray]:
    """The inputs of a request."""
    assert features.sequence is not None
    return {"features": features.values, "sequence": features.sequence}


def test_rules_that_pass_over_what_is_served_are_told(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    assert served_models(bundle) and not caplog.messages
    served_models(bundle, Voting({}))
    (told,) = caplog.messages
    assert "no voting rule looks for anything in login events" in told and bundle.id in told


def test_the_whole_bundle_answers_what_the_operator_scores(
    bundle: Bundle, models: dict[str, Served], features: FeatureMatrix
) -> None:
    scorer = Scorer(bundle, DETECTORS)
    raw = np.empty((ROWS, len(DETECTORS)))
    scores = scorer.score(features, {}, raw)
    decisions = scorer.decide(scores, {})
    found = models["login"].answer(tensors(features))
    assert np.isnan(found["raw"][:, 2]).any(), "the gate holds here too"
    assert decisions.flagged.any() and not decisions.flagged.all()
    expected = (raw, scores.scores, scores.surprise, decisions.score, decisions.flagged)
    for tensor, array in zip(models["login"].outputs, expected, strict=True):
        assert found[tensor.name].tobytes() == array.tobytes(), tensor.name
        assert found[tensor.name].shape[1:] == tensor.shape[1:]
    assert models["login"].parameters["detectors"] == ",".join(DETECTORS)
    assert models["login"].parameters["bundle_id"] == bundle.id


def test_questions_are_answered_by_a_bounded_number_of_threads() -> None:
    threads: list[str] = []

    class Noting:
        name, inputs, outputs, parameters = "noting", (), (), MappingProxyType({})

        def check(self, given: object) -> None: ...

        check_meant = check

        def answer(self, inputs: object) -> dict[str, np.ndarray]:
            threads.append(threading.current_thread().name)
            return {}

    async def asked() -> None:
        one = _Asked(Noting(), None)  # type: ignore[arg-type]
        request = InferRequest("noting", [])
        await asyncio.gather(*(one.predict(request) for _ in range(8 * THREADS)))

    asyncio.run(asked())
    assert len(threads) == 8 * THREADS and len(set(threads)) <= THREADS
    assert all(name.startswith("waxwing-served") for name in threads), "not those of the loop"


def test_detectors_that_the_settings_leave_out_have_no_say_in_the_whole_bundle(
    bundle: Bundle, features: FeatureMatrix, tmp_path: Path
) -> None:
    bundle.write(tmp_path / "bundle")
    place = ("bundle", str(tmp_path / "bundle"))
    some = ("transformer", "zscore")
    found = models_of(None, (place, ("detectors", list(some))))
    assert found["login"].parameters["detectors"] == ",".join(some)
    loaded = Bundle.load(tmp_path / "bundle", catalog())
    expected = Scorer(loaded, some).score(features, {}).scores
    assert found["login"].answer(tensors(features))["scores"].tobytes() == expected.tobytes()
    assert set(found) == {"login", *(f"login.{name}" for name in DETECTORS)}, "asked by themselves"
    assert models_of(None, (place,))["login"].parameters["detectors"] == ",".join(DETECTORS)
    with pytest.raises(ConfigError, match="'iqr' is not in the bundle"):
        models_of(None, (place, ("detectors", ["zscore", "iqr"])))


def test_each_detector_answers_its_raw_number_of_the_rows_as_detectors_see_them(
    bundle: Bundle, models: dict[str, Served], features: FeatureMatrix
) -> None:
    kinds = bundle.models["login"]
    seen = kinds.view.apply(features)
    for name in DETECTORS:
        one = models[f"login.{name}"]
        inputs = {t.name: tensors(seen)[t.name] for t in one.inputs}
        assert one.names == seen.names and len(inputs) == 1 + (name == "transformer")
        assert one.answer(inputs)["raw"].tobytes() == kinds.detectors[name].raw(seen).tobytes()
    assert set(models) == {"login", *(f"login.{name}" for name in DETECTORS)}


def test_what_does_not_fit_is_told_in_one_sentence_with_all_of_it(
    models: dict[str, Served],
) -> None:
    width = len(catalog().names("login"))
    good = {"features": ("FP64", (5, width)), "sequence": ("FP32", (5, STEPS, WIDTH))}
    models["login"].check(good)
    wrong = {
        "sequence": ("FP64", (5, STEPS, WIDTH)),
        "features": ("FP64", (5, width - 1)),
        "more": ("FP64", (5, 1)),
    }
    with pytest.raises(ShapeError) as told:
        models["login"].check(wrong)
    for part in (
        "there is no input 'more'",
        f"expected shape [rows, {width}], got [5, {width - 1}]",
        "expected datatype FP32, got FP64",
        "bundle 0123456789abcdef",
    ):
        assert part in str(told.value)
    for given, why in (
        ({"features": good["features"]}, "'sequence' is missing"),
        (good | {"sequence": ("FP32", (4, STEPS, WIDTH))}, "differ in their number of rows"),
        ({n: (t, (ROWS_MAX + 1, *s[1:])) for n, (t, s) in good.items()}, "more than the"),
        (good | {"features": ("FP64", (-5, width))}, "expected shape"),
        (good | {"features": ("FP64", ())}, "expected shape"),
    ):
        with pytest.raises(ShapeError, match=why):
            models["login"].check(given)


def test_another_bundle_or_catalogue_than_is_meant_is_refused(
    bundle: Bundle, models: dict[str, Served]
) -> None:
    meant = {"bundle_id": bundle.id, "catalog_version": catalog().version, "other": 1}
    models["login"].check_meant(meant)
    models["login"].check_meant({})
    for name in ("bundle_id", "catalog_version"):
        with pytest.raises(ShapeError, match=f"{name} another is asked for"):
            models["login.zscore"].check_meant(meant | {name: "another"})


def test_no_rows_are_answered_with_no_rows(models: dict[str, Served]) -> None:
    width = len(catalog().names("login"))
    empty = {"features": np.empty((0, width)), "sequence": np.empty((0, STEPS, WIDTH), np.float32)}
    found = models["login"].answer(empty)
    assert {name: array.shape[0] for name, array in found.items()} == dict.fromkeys(found, 0)
