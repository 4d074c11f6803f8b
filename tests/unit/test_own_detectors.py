"""Files of detectors: what is wrong with them is said with file and line, all of it at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dataflows.cli.main import main
from dataflows.settings import load
from features.batch import FeatureMatrix
from features.catalog import catalog
from features.errors import BundleError, ConfigError, DeclarationError
from models import own
from models.base import TrainingSet
from models.bundle import Bundle
from models.detectors import detector, detector_names
from models.train import train

ROOT = Path(__file__).resolve().parents[2]

MEAN = '''
"""The mean of a row."""
import numpy as np

class Model:
    name = "mean"
    expensive = False

    @classmethod
    def fit(cls, train, seed, options):
        return cls()

    def raw(self, features):
        return np.nan_to_num(features.values).mean(axis=1)

    def save(self):
        return {}, {}

    @classmethod
    def load(cls, arrays, header):
        return cls()
'''

Declare = Callable[..., list[str]]


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Declare]:
    """Declares files (name -> text) by the setting; all faults."""
    monkeypatch.chdir(tmp_path)

    def faults(files: dict[str, str], paths: list[str] | None = None, **more: object) -> list[str]:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        try:
            load(None, {}, detector_paths=list(files) if paths is None else paths, **more)
        except ConfigError as error:
            return list(error.faults)
        return []

    yield faults
    load(None, {})


def test_a_file_is_a_detector_by_its_name_until_it_is_named_no_more(declare: Declare) -> None:
    before, path = detector_names(), list(sys.path)
    assert declare({"own/mean.py": MEAN}, ["own"], detectors=["zscore", "mean"]) == []
    assert set(detector_names()) - set(before) == {"mean"} and sys.path == path
    assert detector("mean").name == "mean"
    load(None, {})
    assert detector_names() == before
    with pytest.raises(DeclarationError, match="unknown detector 'mean'"):
        detector("mean")


def test_every_fault_is_told_at_once_with_file_and_line(
    declare: Declare, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "own/torn.py": "class Model:\n    def\n",
        "own/raises.py": "x = 1\nraise ValueError('not here')\n",
        "own/nothing.py": "x = 1\n",
        "own/bare.py": '"""Bare."""\n\nclass Model:\n    name = "mean"\n',
        "own/zscore.py": MEAN,
        "own/mean.py": MEAN,
        "other/mean.py": MEAN,
        "own/My.py": MEAN,
        "own/ensemble.py": MEAN.replace('"mean"', '"ensemble"'),
        "own/scales.py": MEAN.replace('"mean"', '"scales"'),
    }
    told = declare(files, [*files, "own/gone.py"], detectors=["zscore", "maen"], groups=0)
    expected = [
        "detector_paths: 'own/gone.py' does not exist",
        "own/torn.py:2: syntax error",
        "own/raises.py:2: ValueError: not here",
        "own/nothing.py:1: declares no class Model",
        "own/bare.py:3: Model has no method 'fit'",
        "own/bare.py:3: Model has no method 'load'",
        "own/bare.py:3: Model.name is 'mean'; the file makes it 'bare'",
        "own/bare.py:3: Model.expensive: expected True",
        "own/zscore.py:1: detector 'zscore' is there already, in waxwing itself",
        "other/mean.py:1: detector 'mean' is there already, in own/mean.py:1",
        "own/My.py:1: the name of the file is the name of the detector",
        "own/ensemble.py:1: no detector can be called 'ensemble'",
        "own/scales.py:1: no detector can be called 'scales'",
        "unknown detector 'maen' (did you mean 'mean'?)",
        "groups: ",
    ]
    for words in expected:
        assert any(words in fault for fault in told), (words, told)
    assert main(["check", "--set", "detector_paths=own/torn.py,own/nothing.py"]) == 2
    said = capsys.readouterr().err
    assert "own/torn.py:2: syntax error" in said and "own/nothing.py:1:" in said


@pytest.mark.parametrize("setting", ["detector_paths", "feature_paths"])
def test_what_is_no_file_or_cannot_be_read_is_a_fault_beside_the_others(
    setting: str, tmp_path: Path
) -> None:
    own_folder = tmp_path / "own"
    (own_folder / "folder.py").mkdir(parents=True)
    (own_folder / "gone.py").symlink_to("nowhere")
    os.mkfifo(own_folder / "pipe.py")
    (own_folder / "deep.py").write_text("x = " + "-" * 100_000 + "1\n")
    (own_folder / "deeper.py").write_text("x = " + "-" * 700 + "1\n")
    (own_folder / "whole.py").write_text("x = 1\n")
    # A file that is there and gives nothing, whoever asks.
    (own_folder / "ill.py").symlink_to("/proc/self/mem")
    command = [sys.executable, "-m", "dataflows.cli.main", "check", "--set"]
    done = subprocess.run(
        [*command, f"{setting}=own,own/pipe.py"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    for words in (
        f"{setting}: 'own/folder.py' is no file",
        f"{setting}: 'own/gone.py' is no file",
        f"{setting}: 'own/pipe.py' is no file; begin",
        f"{setting}: 'own/pipe.py' is no file, and no folder",
        "own/deep.py:1: syntax error: ",
        "own/deeper.py:1: syntax error: ",
        "cannot be read: Input/output error",
        "own/whole.py:1: declares no",
    ):
        assert words in done.stderr, (words, done.stderr)


def rows() -> TrainingSet:
    """Rows of absences, which have no sequence and few features."""
    rng, n = np.random.default_rng(5), 800
    names = catalog().names("login")
    values = rng.normal(0.0, 1.0, (n, len(names)))
    features = FeatureMatrix("login", names, values, None, catalog().version)
    time_us, none = np.arange(n) * 60_000_000, np.zeros(n, np.int16)
    return TrainingSet(features, time_us, np.full(n, -1, np.int8), np.arange(n, dtype=np.uint64),
                       none)  # fmt: skip


FIT, RAW = (
    "        return cls()\n\n    def raw",
    "        return np.nan_to_num(features.values).mean(axis=1)",
)
SAVE = "        return {}, {}"

BROKEN = {
    "fit": (FIT, "        return 1 / 0\n\n    def raw", "mean.py:11: mean.fit: ZeroDivisionError"),
    "raises": (RAW, "        return features.none", "mean.py:14: mean.raw: AttributeError"),
    "shape": (RAW, "        return features.values[:, 0].astype(int)", "expected float64 of one"),
    "batch": (RAW, f"{RAW} - features.values.mean()", "a row alone has another number"),
    "infinite": (RAW, "        return np.full(len(features), np.inf)", "mean.raw: infinite"),
    "pickle": (SAVE, "        return {'a': np.array([self])}, {}", "would be pickles"),
    "header": (SAVE, "        return {}, {'a': self}", "a header for JSON"),
    "load": (RAW, f"{RAW} + id(self) % 1_000_003", "other numbers than the one that was saved"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_promise_ends_the_training_with_file_and_line(what: str, declare: Declare) -> None:
    old, new, words = BROKEN[what]
    assert old in MEAN
    assert declare({"own/mean.py": MEAN.replace(old, new)}) == []
    with pytest.raises(ConfigError) as raised:
        train({"login": rows()}, catalog(), ["zscore", "mean"], 1)
    (fault,) = raised.value.faults
    assert fault.startswith("own/mean.py:") and words in fault


def test_one_that_keeps_them_is_trained_and_changed_code_is_refused(
    declare: Declare, tmp_path: Path
) -> None:
    assert declare({"own/mean.py": MEAN}) == []
    folder = tmp_path / "bundle"
    made = train({"login": rows()}, catalog(), ["zscore", "mean"], 1).write(folder)
    code = made.training["own_detectors"]["mean"]
    assert own.own_detectors()["mean"].code == code and len(code) == 16
    again = MEAN.replace('"""The mean of a row."""', "# The mean.").replace("axis=1", "axis = 1")
    assert declare({"own/mean.py": again}) == []
    loaded = Bundle.load(folder, catalog())
    raw = loaded.models["login"].detectors["mean"].raw(rows().features)
    np.testing.assert_array_equal(raw, rows().features.values.mean(axis=1))
    assert declare({"own/mean.py": MEAN.replace("axis=1", "axis=-1")}) == []
    other = own.own_detectors()["mean"].code
    with pytest.raises(BundleError, match=f"{code}.*mean.py is now .{other}.; put back") as told:
        Bundle.load(folder, catalog())
    assert "detector 'mean' was trained with other code" in str(told.value)
    assert declare({}) == []
    with pytest.raises(BundleError, match=r"unknown detector mean .*`detector_paths`"):
        Bundle.load(folder, catalog())
