"""Every detector file crossed with every check of the protocol.

A new file in `models/detectors` is taken up by its name; the detectors that CONTRIBUTING.md and
docs/own-detectors.md show (one of River) are taken up from the pages.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import types
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import torch

from features.batch import FeatureMatrix
from features.catalog import catalog
from features.errors import BundleError, ConfigError, DeclarationError, ShapeError
from features.sequence import STEPS, WIDTH
from models.base import Arrays, Detector, TrainingSet
from models.detectors import (
    _deviation,
    detector,
    detector_names,
    gradient_boosting,
    isolation_forest,
    remote,
    transformer,
)
from models.detectors._options import read_options
from tests.contract.test_contributing import one
from tests.v2 import Script

ROOT = Path(__file__).resolve().parents[2]

SHIPPED = ("zscore", "iqr", "isolation_forest", "gradient_boosting", "transformer")

ROWS = 1200
ODD = 40
NAMES = ("card_count_1m", "card_amount_min_1h", "card_amount_z", "declined", "hour", "card_home_km")
"""Of the catalogue: high is odd, low is odd, either, a flag, either, high."""

EVENT = "payment"

ABSENCE_NAMES = ("missed", "usual_gap_s", "gap_s", "allowed_s", "known_days", "irregularity")
"""What a detector that reads absences alone is tried on."""

LEVEL_NAMES = (
    "card_amount_anchor_z", "card_gap_creep", "card_amount_creep", "merchant_rate_creep",
    "user_amount_creep", "merchant_amount_creep",
)  # fmt: skip
"""What a detector of levels alone is tried on; of the second low is odd."""

OPTIONS: dict[str, dict[str, float]] = {
    "isolation_forest": {"trees": 20, "samples": 128},
    "gradient_boosting": {"rounds": 40},
    "transformer": {"epochs": 2},
}
"""Smaller models where the shipped ones take long."""


OWN = re.findall(
    r"<!-- file: (own/\w+\.py) -->\n```python\n(.*?)```",
    (ROOT / "docs/own-detectors.md").read_text(encoding="utf-8"),
    flags=re.DOTALL,
)
EXAMPLES = {Path(name).stem: (name, text) for name, text in (one("models/detectors"), *OWN)}


@cache
def example(name: str) -> type[Detector]:
    """The detector of that name that a page shows."""
    path, text = EXAMPLES[name]
    module = types.ModuleType(name)
    exec(compile(text, path, "exec"), module.__dict__)
    return module.Model  # type: ignore[no-any-return]


@cache
def server() -> Script:
    """Where detector `remote` asks: fitted models of `zscore` by the name they got there."""

    def answer(model: str, inputs: dict[str, Any]) -> Any:
        return SERVED[model].raw(matrix(inputs["features"], inputs["sequence"]))

    return Script(answer).__enter__()  # its threads end with the process


SERVED: dict[str, Detector] = {}


class Remote(remote.Model):
    """Detector `remote` as in a flow: put in place, and asked over the wire.

    Each model that is fitted is fitted there too; what is loaded asks the first one.
    """

    @classmethod
    def fit(cls, train: TrainingSet, seed: int, options: Mapping[str, float]) -> Any:
        own = remote.Model.fit(train, seed, options)
        SERVED[f"model{len(SERVED)}"] = detector("zscore").fit(train, seed, {})
        return placed(own, f"model{len(SERVED) - 1}")

    @classmethod
    def load(cls, arrays: Arrays, header: Mapping[str, object]) -> Any:
        return placed(remote.Model.load(arrays, header), "model0")


def placed(own: remote.Model, model: str) -> Detector:
    """The model, asked at the server."""
    endpoint = remote.Endpoint(server().urls["grpc"], model=model, timeout_s=60.0)
    client = remote.Client(endpoint, lambda: 0.0)
    return remote.elsewhere(own, lambda rows: client.ask(EVENT, "remote", "", rows))


def model_of(name: str) -> type[Detector]:
    """A detector by name: a file's, or a page's."""
    if name == "remote":
        fitted("remote")  # `model0`
        return Remote
    return detector(name) if name in detector_names() else example(name)


ALL = (*detector_names(), *EXAMPLES)
every = pytest.mark.parametrize("name", ALL)
every_file = pytest.mark.parametrize("name", detector_names())
"""Without the pages' examples, which leave out what would not fit a page."""


def matrix(values: Any, sequence: Any) -> FeatureMatrix:
    """Rows of the event type."""
    return FeatureMatrix(EVENT, NAMES, values, sequence, catalog().version)


def rows_of(features: FeatureMatrix, rows: Any) -> FeatureMatrix:
    """Some of the rows, in the given order."""
    sequence = features.sequence
    return replace(
        features,
        values=features.values[rows],
        sequence=None if sequence is None else sequence[rows],
    )


@cache
def training(seed: int = 0) -> TrainingSet:
    """Rows with 40 plain anomalies, gaps and short histories."""
    rng = np.random.default_rng(seed)
    odd = np.zeros(ROWS, bool)
    odd[rng.permutation(ROWS)[:ODD]] = True
    count = rng.poisson(1.0, ROWS) + np.where(odd, rng.integers(5, 15, ROWS), 0) + 1.0
    values = np.stack(
        (
            count,
            rng.lognormal(3.0, 1.0, ROWS) * np.where(odd, 0.1, 1.0),
            rng.normal(0.0, 1.0, ROWS) + np.where(odd, rng.choice([-4.0, 4.0], ROWS), 0.0),
            (rng.random(ROWS) < np.where(odd, 0.7, 0.05)).astype(float),
            rng.uniform(0.0, 24.0, ROWS),
            rng.lognormal(1.0, 1.0, ROWS) * np.where(odd, 20.0, 1.0),
        ),
        axis=1,
    )
    values[:, 1:3][rng.random((ROWS, 2)) < 0.1] = np.nan
    sequence = rng.uniform(-0.3, 0.3, (ROWS, STEPS, WIDTH)).astype(np.float32)
    sequence[:, :, 0] = 1.0
    sequence[odd, -1, 5:] += 0.6
    for i, kept in enumerate(rng.integers(1, STEPS + 1, ROWS)):
        sequence[i, : STEPS - kept] = 0.0
    time_us = np.arange(ROWS, dtype=np.int64) * 60_000_000
    label = odd.astype(np.int8)
    entity = rng.integers(0, 50, ROWS).astype(np.uint64)
    return TrainingSet(matrix(values, sequence), time_us, label, entity, label.astype(np.int16))


@cache
def absences(seed: int = 0) -> TrainingSet:
    """Rows of absences, 40 of them of silences that last."""
    rng = np.random.default_rng(seed)
    train = training_of_payments(seed)
    odd = train.label == 1
    usual, allowed = rng.lognormal(3.0, 1.0, ROWS), rng.lognormal(6.0, 0.5, ROWS)
    times = np.where(odd, rng.choice([4.0, 8.0, 16.0], ROWS), rng.choice([1.0, 1.0, 2.0], ROWS))
    known = np.where(odd, 2.0, 0.5) + rng.exponential(3.0, ROWS)
    columns = (np.log2(times) + 1.0, usual, times * allowed, allowed, known, rng.random(ROWS))
    features = FeatureMatrix(
        "absence", ABSENCE_NAMES, np.stack(columns, 1), train.features.sequence, catalog().version
    )
    return replace(train, features=features)


@cache
def levels(seed: int = 0) -> TrainingSet:
    """The rows of payments under names of comparisons with levels."""
    train = training_of_payments(seed)
    return replace(train, features=replace(train.features, names=LEVEL_NAMES))


training_of_payments = training


@pytest.fixture(autouse=True)
def rows_it_reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that reads one event type alone, or features of one kind, is tried on those."""
    name = getattr(getattr(request.node, "callspec", None), "params", {}).get("name")
    if name == "level":
        here = sys.modules[__name__]
        monkeypatch.setattr(here, "NAMES", LEVEL_NAMES)
        monkeypatch.setattr(here, "training", levels)
    if name in detector_names() and getattr(detector(name), "reads", EVENT) == "absence":
        here = sys.modules[__name__]
        monkeypatch.setattr(here, "EVENT", "absence")
        monkeypatch.setattr(here, "NAMES", ABSENCE_NAMES)
        monkeypatch.setattr(here, "training", absences)


@cache
def fitted(name: str) -> Detector:
    """One model of each detector, fitted once."""
    return fit(name, training())


def fit(name: str, train: TrainingSet, seed: int = 1) -> Detector:
    """A model."""
    kind = Remote if name == "remote" else model_of(name)
    return kind.fit(train, seed, OPTIONS.get(name, {}))


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal bit by bit; NaN equals NaN."""
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def saved(model: Detector) -> tuple[Arrays, dict[str, object]]:
    """What `save` gives, through JSON and plain arrays as in a bundle."""
    arrays, header = model.save()
    assert all(isinstance(a, np.ndarray) and not a.dtype.hasobject for a in arrays.values())
    return arrays, json.loads(json.dumps(header, allow_nan=False))


def test_the_shipped_detectors_are_there() -> None:
    assert set(SHIPPED) <= set(detector_names())


@every
def test_a_detector_keeps_the_protocol_and_its_name(name: str) -> None:
    assert isinstance(fitted(name), Detector)
    assert fitted(name).name == name
    assert isinstance(fitted(name).expensive, bool)


@every
def test_raw_is_one_float_a_row_finite_or_nan(name: str) -> None:
    raw = fitted(name).raw(training().features)
    assert raw.shape == (ROWS,) and raw.dtype == np.float64
    assert np.isfinite(raw).all(), "rows like those of training can be scored"


@every
def test_plain_anomalies_of_another_seed_are_higher_than_the_rest(name: str) -> None:
    other = training(1)
    raw = fitted(name).raw(other.features)
    odd, usual = raw[other.label == 1], raw[other.label == 0]
    better = (odd[:, None] > usual).mean() + 0.5 * (odd[:, None] == usual).mean()
    assert better > 0.9, f"area under the curve {better:.3f}"


@every
def test_a_batch_of_one_is_a_batch_of_many(name: str) -> None:
    features = rows_of(training(1).features, np.arange(300))
    whole = fitted(name).raw(features)
    singly = [fitted(name).raw(rows_of(features, [i])) for i in range(300)]
    assert same(np.concatenate(singly), whole)
    for size in (7, 64, 65, 128):
        cut = [
            fitted(name).raw(rows_of(features, np.arange(i, min(i + size, 300))))
            for i in range(0, 300, size)
        ]
        assert same(np.concatenate(cut), whole), f"cut into {size}"


@every
def test_the_order_of_rows_changes_only_the_order_of_scores(
    name: str, rng: np.random.Generator
) -> None:
    features = training(1).features
    order = rng.permutation(ROWS)
    assert same(fitted(name).raw(rows_of(features, order)), fitted(name).raw(features)[order])


@every
def test_equal_rows_have_equal_scores(name: str) -> None:
    raw = fitted(name).raw(rows_of(training().features, [5] * 200))
    assert same(raw, np.full(200, raw[0]))


@every
def test_an_empty_batch_gives_no_scores(name: str) -> None:
    raw = fitted(name).raw(rows_of(training().features, np.arange(0)))
    assert raw.shape == (0,) and raw.dtype == np.float64


@every
def test_columns_in_another_memory_order_give_the_same_scores(name: str) -> None:
    features = training().features
    assert features.sequence is not None
    other = replace(
        features,
        values=np.asfortranarray(features.values),
        sequence=np.asfortranarray(features.sequence),
    )
    # Equal as numbers: numpy sums the example's mean along memory.
    np.testing.assert_allclose(fitted(name).raw(other), fitted(name).raw(features), rtol=1e-12)


@every
def test_frozen_columns_are_enough_and_stay_as_they_are(name: str) -> None:
    features = rows_of(training().features, np.arange(100))
    assert features.sequence is not None
    values, sequence = features.values.copy(), features.sequence.copy()
    features.values.flags.writeable = features.sequence.flags.writeable = False
    raw = fitted(name).raw(features)
    assert same(features.values, values) and same(features.sequence, sequence)
    assert same(raw, fitted(name).raw(replace(features, values=values, sequence=sequence)))


KERNELS = {
    "zscore": _deviation._deviations,
    "iqr": _deviation._deviations,
    "isolation_forest": isolation_forest._walk,
    "gradient_boosting": gradient_boosting._walk,
    "transformer": transformer._score,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_one_warm_up_compiles_the_kernel_for_whatever_comes(name: str) -> None:
    """Read-only, sliced, column-major, loaded: no batch of the stream waits for the compiler."""
    kernel: Any = KERNELS[name]
    features = training().features
    assert features.sequence is not None
    fitted(name).raw(rows_of(features, np.arange(2)))
    compiled = len(kernel.signatures)
    arrays, header = saved(fitted(name))
    arrays = {k: a.copy() for k, a in arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False
    loaded = model_of(name).load(arrays, header)
    for model in (fitted(name), loaded):
        for values in (features.values[::2], np.asfortranarray(features.values)[::2]):
            sequence = features.sequence[::2].view()
            values, sequence = values.view(), sequence.view()
            values.flags.writeable = sequence.flags.writeable = False
            model.raw(replace(features, values=values, sequence=sequence))
    assert len(kernel.signatures) == compiled


@every
def test_unknown_values_are_scored_and_not_strange(name: str) -> None:
    """A row of nothing but NaN is a newcomer: below the strangest genuine rows."""
    features = training().features
    gaps = replace(features, values=np.full((ROWS, len(NAMES)), np.nan))
    raw = fitted(name).raw(gaps)
    assert np.isfinite(raw).all()
    if name != "transformer":  # it reads the sequence alone
        usual = fitted(name).raw(rows_of(features, training().label == 0))
        assert raw.max() <= np.quantile(usual, 0.99)


@every
def test_infinite_and_huge_values_give_no_infinite_scores(name: str) -> None:
    features = rows_of(training().features, np.arange(4))
    values = features.values.copy()
    values[0], values[1], values[2], values[3] = np.inf, -np.inf, 1e300, -1e300
    raw = fitted(name).raw(replace(features, values=values))
    assert not np.isinf(raw).any()


@every
def test_saved_and_loaded_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    arrays, header = saved(fitted(name))
    np.savez(tmp_path / "model.npz", **arrays)  # type: ignore[arg-type]
    with np.load(tmp_path / "model.npz", allow_pickle=False) as file:
        loaded = model_of(name).load({k: file[k] for k in file.files}, header)
    assert same(loaded.raw(training(1).features), fitted(name).raw(training(1).features))
    again, header_again = saved(loaded)
    assert header_again == header and again.keys() == arrays.keys()
    assert all(same(again[k], arrays[k]) for k in arrays)


@every
def test_the_same_rows_and_seed_give_the_same_model(name: str) -> None:
    np.random.seed(4)  # noqa: NPY002 - a model must not follow the global generator
    arrays, header = saved(fit(name, training()))
    first, first_header = saved(fitted(name))
    assert header == first_header
    assert all(same(arrays[k], first[k]) for k in first)


@every
def test_a_second_fit_leaves_the_first_model_alone(name: str) -> None:
    first = fit(name, training())
    before = first.raw(training().features)
    fit(name, training(2), seed=9)
    assert same(first.raw(training().features), before)


@every
def test_what_was_saved_is_not_shared_with_the_rows_of_training(name: str) -> None:
    train = training()
    assert train.features.sequence is not None
    values, sequence = train.features.values.copy(), train.features.sequence.copy()
    own = replace(train, features=replace(train.features, values=values, sequence=sequence))
    model = fit(name, own)
    before = model.raw(train.features)
    values[:], sequence[:] = 7.0, 0.5
    assert same(model.raw(train.features), before)


def relabelled(label: Any) -> TrainingSet:
    """The training rows with other labels."""
    return replace(training(), label=np.broadcast_to(np.int8(label), ROWS).copy())


@every_file
@pytest.mark.parametrize("label", [-1, 0, 1], ids=["unknown", "genuine", "anomalous"])
def test_rows_of_one_label_make_a_model_or_one_that_says_it_stays_out(
    name: str, label: int
) -> None:
    model = fit(name, relabelled(label))
    raw = model.raw(training().features)
    assert np.isfinite(raw).all() or np.isnan(raw).all()
    _, header = saved(model)
    if np.isnan(raw).all():
        assert header["no_labels"] is True
    assert np.isnan(raw).all() == (name == "gradient_boosting")


@every
def test_constant_and_unknown_columns_do_no_harm(name: str) -> None:
    train = training()
    values = train.features.values.copy()
    values[:, 0], values[:, 1] = 3.0, np.nan
    features = replace(train.features, values=values)
    raw = fit(name, replace(train, features=features)).raw(features)
    assert np.isfinite(raw).all()


@every
def test_columns_that_are_all_constant_or_unknown_say_nothing(name: str) -> None:
    train = training()
    values = np.full((ROWS, len(NAMES)), np.nan)
    values[:, 0] = 1.0
    sequence = np.zeros((ROWS, STEPS, WIDTH), np.float32)
    features = matrix(values, sequence)
    raw = fit(name, replace(train, features=features)).raw(features)
    assert np.isfinite(raw).all() and np.ptp(raw) == 0.0
    strange = fit(name, replace(train, features=features)).raw(train.features)
    assert not np.isinf(strange).any()


@every
def test_few_rows_are_enough(name: str) -> None:
    odd = np.flatnonzero(training().label)[:1]
    for rows in (np.array([0, 1, 2]), np.concatenate((odd, [0, 1]))):
        rows = np.sort(rows)
        train = training()
        few = TrainingSet(
            rows_of(train.features, rows),
            train.time_us[rows],
            train.label[rows],
            train.entity[rows],
            train.attack[rows],
        )
        raw = fit(name, few).raw(train.features)
        assert not np.isinf(raw).any()


@every_file
def test_rows_of_another_width_are_refused_with_the_cure(name: str) -> None:
    features = training().features
    assert features.sequence is not None
    narrow = FeatureMatrix(
        EVENT, NAMES[:3], features.values[:, :3], features.sequence[:, :3], "other"
    )
    with pytest.raises(ShapeError, match="train again"):
        fitted(name).raw(narrow)


@every_file
def test_an_unknown_option_is_refused_with_the_names(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*no option 'colour'; there are"):
        model_of(name).fit(training(), 1, {"colour": 3})


def test_all_faults_of_options_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        read_options("x", {"a": 9.0, "b": 1.0, "c": 2.0}, {"a": (1, 0, 2), "c": (1, 0, 2)})
    assert len(raised.value.faults) == 2


def test_an_unknown_detector_is_refused_with_the_names() -> None:
    with pytest.raises(DeclarationError, match=r"did you mean 'zscore'.*transformer"):
        detector("zscores")


def without(*modules: str) -> str:
    """Opening of a program in which some libraries cannot be imported."""
    return f"import sys\nfor name in {modules!r}: sys.modules[name] = None\n"


LOAD = """
import json
import numpy as np
from features.batch import FeatureMatrix
from models.detectors import detector

for name in sys.argv[2:]:
    with np.load(f"{sys.argv[1]}/{name}.npz", allow_pickle=False) as file:
        arrays = {k: file[k] for k in file.files}
    with open(f"{sys.argv[1]}/{name}.json") as file:
        header = json.load(file)
    rows = np.load(f"{sys.argv[1]}/rows.npz")
    features = FeatureMatrix("payment", tuple(rows["names"]), rows["values"], rows["sequence"], "")
    raw = detector(name).load(arrays, header).raw(features)
    assert raw.tobytes() == rows[name].tobytes(), name
"""


def test_scoring_needs_none_of_the_libraries_of_training(tmp_path: Path) -> None:
    features = rows_of(training().features, np.arange(50))
    assert features.sequence is not None
    expected = {name: fitted(name).raw(features) for name in SHIPPED}
    np.savez(
        tmp_path / "rows.npz",
        names=np.array(NAMES),
        values=features.values,
        sequence=features.sequence,
        **expected,  # type: ignore[arg-type]
    )
    for name in SHIPPED:
        arrays, header = saved(fitted(name))
        np.savez(tmp_path / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        (tmp_path / f"{name}.json").write_text(json.dumps(header), encoding="utf-8")
    program = without("sklearn", "torch", "lightgbm", "pandas") + LOAD
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path), *SHIPPED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_only_the_transformer_is_expensive() -> None:
    assert [name for name in SHIPPED if detector(name).expensive] == ["transformer"]


# -- zscore and iqr --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zscore", "iqr"])
def test_deviations_count_on_the_odd_side_alone(name: str) -> None:
    features = rows_of(training().features, np.arange(2))
    usual = np.nanmedian(training().features.values, axis=0)
    pairs = {0: (False, True), 1: (True, False), 2: (True, True), 5: (False, True)}
    for column, odd in pairs.items():
        values = np.stack((usual, usual))
        values[:, column] += (-1e4, 1e4)
        raw = fitted(name).raw(replace(features, values=values))
        calm = fitted(name).raw(replace(features, values=np.stack((usual, usual))))
        assert tuple(raw > calm + 1.0) == odd, NAMES[column]


@pytest.mark.parametrize("kept", [1, 3, 5, 10, 0])
def test_zscore_is_the_sum_of_the_largest_plain_z_scores(kept: int) -> None:
    """Against numpy, sorted row by row."""
    train = relabelled(-1)
    model = detector("zscore").fit(train, 1, {"kept": kept, "squash": 0})
    values = train.features.values
    z = (values - np.nanmean(values, axis=0)) / np.nanstd(values, axis=0)
    z[:, [0, 3, 5]] = np.maximum(z[:, [0, 3, 5]], 0.0)
    z[:, 1] = np.maximum(-z[:, 1], 0.0)
    largest = np.sort(np.nan_to_num(np.abs(z)), axis=1)[:, ::-1][:, : kept or None]
    np.testing.assert_allclose(model.raw(train.features), largest.sum(axis=1), rtol=1e-9)


def test_iqr_is_the_distance_from_the_quartiles_in_ranges() -> None:
    train = relabelled(-1)
    model = detector("iqr").fit(train, 1, {"kept": 1, "squash": 0})
    values = np.tile(np.nanmedian(train.features.values, axis=0), (3, 1))
    low, high = np.nanquantile(train.features.values[:, 2], (0.25, 0.75))
    values[:, 2] = (low - 2.0 * (high - low), high + 3.0 * (high - low), high)
    hours = rows_of(train.features, np.arange(3))
    np.testing.assert_allclose(model.raw(replace(hours, values=values)), (2, 3, 0), atol=1e-9)


def deviations(d: _deviation.Deviation, values: Any) -> Any:
    """What the kernel is meant to do, value by value; the logarithms of libm, as in kernels."""
    out = []
    for row in values:
        found = []
        for j, x in enumerate(row):
            if d.logs:
                x = math.copysign(math.log1p(abs(x)), x)
            far = 0.0
            if x > d.high[j] and d.side[j] >= 0:
                far = (x - d.high[j]) / d.scale[j]
            elif x < d.low[j] and d.side[j] <= 0:
                far = (d.low[j] - x) / d.scale[j]
            far = min(far, 1e12) if far > 0.0 else 0.0
            found.append(math.log1p(far) ** 2 if d.squash else far)
        out.append(sum(found if d.kept == 0 else sorted(found, reverse=True)[: d.kept]))
    return np.array(out)


@pytest.mark.parametrize("logs", [0, 1], ids=["plain", "logs"])
@pytest.mark.parametrize("kept", [0, 3])
@pytest.mark.parametrize("name", ["zscore", "iqr"])
def test_values_at_the_edge_of_their_range_are_measured_as_all_are(
    name: str, kept: int, logs: int, rng: np.random.Generator
) -> None:
    options = {"kept": float(kept), "log": float(logs), "squash": 1.0}
    model: Any = detector(name).fit(relabelled(-1), 1, options)
    d = model._deviation
    edges = np.where(rng.random((500, len(NAMES))) < 0.5, d.low, d.high)
    if logs:
        edges = np.copysign(np.expm1(np.abs(edges)), edges)
    edges *= 1.0 + rng.choice([0.0, 1e-16, -1e-16, 3e-16, 1e-12, 1e-8, -1e-8], edges.shape)
    edges[0], edges[1], edges[2], edges[3] = np.inf, -np.inf, 0.0, -0.0
    edges[4, ::2] = np.nan
    raw = model.raw(replace(rows_of(training().features, np.arange(500)), values=edges))
    np.testing.assert_allclose(raw, deviations(d, edges), rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("name", ["zscore", "iqr"])
def test_without_labels_several_features_that_are_off_outweigh_one_far_outlier(name: str) -> None:
    train = relabelled(-1)
    scale = np.nanstd(train.features.values, axis=0)
    usual = np.nanmedian(train.features.values, axis=0)
    one, several = usual.copy(), usual.copy()
    one[5] += 400.0 * scale[5]
    several[[0, 2, 5]] += 60.0 * scale[[0, 2, 5]]
    rows = replace(rows_of(train.features, np.arange(2)), values=np.stack((one, several)))
    first, second = detector(name).fit(train, 1, {}).raw(rows)
    assert second > first
    first, second = detector(name).fit(train, 1, {"squash": 0}).raw(rows)
    assert second < first, "what plain sums do"


# -- isolation forest ------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [2, 100, 256, 1000])
def test_isolation_forest_equals_the_library(samples: int) -> None:
    train = relabelled(-1)
    options = {"trees": 30.0, "samples": float(samples), "rows": float(ROWS)}
    model = isolation_forest.Model.fit(train, 3, options)
    arrays, _ = model.save()
    bounds: Any = (arrays["fill"], arrays["low"], arrays["high"])
    rng = np.random.default_rng(3)
    rows = np.sort(rng.permutation(ROWS)[:ROWS])
    values = isolation_forest.prepare(train.features.values[rows], *bounds)
    forest = isolation_forest.grow(values, 30, samples, int(rng.integers(1 << 32)))
    other = training(1).features
    expected = -forest.score_samples(isolation_forest.prepare(other.values, *bounds))
    np.testing.assert_allclose(model.raw(other), expected, rtol=0.0, atol=1e-9)


# -- gradient boosting -----------------------------------------------------------------------------


def test_gradient_boosting_equals_the_library() -> None:
    arrays, header = fitted("gradient_boosting").save()
    assert header["no_labels"] is False and arrays["model"].dtype == np.uint8
    booster = lightgbm.Booster(model_str=arrays["model"].tobytes().decode())
    values = training(1).features.values.copy()
    values[::7] = np.nan
    values[1::7] = 0.0
    rows = replace(training(1).features, values=values)
    expected = booster.predict(values, raw_score=True, num_threads=1)
    np.testing.assert_allclose(
        fitted("gradient_boosting").raw(rows), expected, rtol=1e-12, atol=1e-12
    )


def test_gradient_boosting_equals_the_library_at_its_own_thresholds(
    rng: np.random.Generator,
) -> None:
    """Values at a split, a hair beside it, infinite, and not known, in blocks of any length."""
    model: Any = fitted("gradient_boosting")
    text = model.save()[0]["model"].tobytes().decode()
    source, _, _, column, limit, *_ = model._trees.arrays
    values = training(1).features.values[:997].copy()
    for row in values:
        for k in rng.integers(0, len(limit), 3):
            x = limit[k] if limit[k] < 1e300 else np.nan
            row[source[column[k]]] = rng.choice((x, np.nextafter(x, -np.inf), x * (1 + 1e-15)))
    values[rng.random(values.shape) < 0.05] = np.inf
    values[rng.random(values.shape) < 0.05] = -np.inf
    booster = lightgbm.Booster(model_str=text)
    expected = booster.predict(values, raw_score=True, num_threads=1)
    raw = model.raw(replace(rows_of(training().features, np.arange(997)), values=values))
    np.testing.assert_allclose(raw, expected, rtol=1e-12, atol=1e-12)


def test_gradient_boosting_takes_trees_of_all_sizes_and_refuses_larger_ones() -> None:
    train = training()
    for leaves in (2, 3, gradient_boosting.LEAVES_MAX):
        options = {"rounds": 10.0, "leaves": float(leaves)}
        model = gradient_boosting.Model.fit(train, 1, options)
        text = model.save()[0]["model"].tobytes().decode()
        expected = lightgbm.Booster(model_str=text).predict(train.features.values, raw_score=True)
        np.testing.assert_allclose(model.raw(train.features), expected, rtol=1e-12, atol=1e-12)
    large = {"num_leaves": 60, "min_data_in_leaf": 1, "verbosity": -1, "num_threads": 1}
    data = lightgbm.Dataset(np.nan_to_num(train.features.values), train.features.values[:, 4])
    text = lightgbm.train(large, data, 1).model_to_string()
    with pytest.raises(BundleError, match="60 leaves, expected at most 32"):
        gradient_boosting.Model(text, len(NAMES))


def test_gradient_boosting_learns_from_known_labels_alone() -> None:
    """Rows of unknown label are neither side: without them the model is the same."""
    train = training()
    label = train.label.copy()
    unknown = np.flatnonzero(label == 0)[::2]
    label[unknown] = -1
    left = np.setdiff1d(np.arange(ROWS), unknown)
    fewer = TrainingSet(
        rows_of(train.features, left),
        train.time_us[left],
        train.label[left],
        train.entity[left],
        train.attack[left],
    )
    found = fit("gradient_boosting", replace(train, label=label)).raw(train.features)
    assert same(found, fit("gradient_boosting", fewer).raw(train.features))
    assert OPTIONS["gradient_boosting"]["rounds"] < gradient_boosting.ROUNDS_MIN, "no early stop"


@pytest.mark.parametrize("monotone", [0.0, 1.0])
def test_monotone_trees_rise_with_what_is_odd_when_high_and_fall_when_low(monotone: float) -> None:
    """Labels that go the other way are followed without it, and cannot be with it."""
    train = training()
    high, low = train.features.values[:, 0], train.features.values[:, 1]
    label = ((high <= np.median(high)) & (np.nan_to_num(low) > 30.0)).astype(np.int8)
    options = {**OPTIONS["gradient_boosting"], "monotone": monotone}
    model = gradient_boosting.Model.fit(replace(train, label=label), 1, options)
    falls = []
    for column, sign in ((0, 1.0), (1, -1.0)):
        values = np.repeat(np.nan_to_num(train.features.values[:200]), 20, axis=0)
        values[:, column] = np.tile(np.geomspace(0.5, 200.0, 20), 200)
        rows = replace(rows_of(train.features, np.zeros(len(values), int)), values=values)
        steps = sign * np.diff(model.raw(rows).reshape(200, 20), axis=1)
        falls.append(bool((steps < -1e-9).any()))
    assert falls == [not monotone] * 2


# -- transformer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [None, -1], ids=["labels", "no labels"])
def test_transformer_equals_torch(label: int | None) -> None:
    train = training() if label is None else relabelled(label)
    arrays, header = fit("transformer", train).save()
    features = training(1).features
    parameters = {k: torch.from_numpy(v) for k, v in arrays.items()}
    with torch.no_grad():
        surprise, verdict = transformer.forward(parameters, torch.from_numpy(features.sequence))
    usual, spread = header["surprise_usual"], header["surprise_spread"]
    expected = (surprise.numpy().astype(float) - usual) / spread
    if label is None:
        expected = verdict.numpy() + transformer.SURPRISE_WEIGHT * expected
    raw = fit("transformer", train).raw(features)
    np.testing.assert_allclose(raw, expected, rtol=1e-5, atol=1e-5)


def test_transformer_guesses_the_newest_event_without_seeing_it() -> None:
    """The newest event changes the surprise about it, not the guess: one valley around it."""
    train = relabelled(-1)
    model = fit("transformer", train)
    features = rows_of(train.features, [0] * 9)
    assert features.sequence is not None
    sequence = features.sequence.copy()
    sequence[:, -1, 6] = np.linspace(-1.0, 1.0, 9)
    raw = model.raw(replace(features, sequence=sequence))
    turns = np.diff(np.sign(np.diff(raw)))
    assert np.count_nonzero(turns) == 1 and raw.argmin() not in (0, 8), "one valley"


def test_transformer_stays_out_without_a_sequence() -> None:
    bare = replace(training().features, sequence=None)
    assert np.isnan(fitted("transformer").raw(bare)).all()
    blind = fit("transformer", replace(training(), features=bare))
    assert np.isnan(blind.raw(training().features)).all()
    _, header = blind.save()
    assert header["no_sequence"] is True


def test_training_leaves_the_threads_and_the_seed_of_torch_alone() -> None:
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    try:
        torch.set_num_threads(2)
        fit("transformer", training())
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.random.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
