"""The additions CONTRIBUTING.md shows are tried: each file is put in place in a copy, and used."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from features.catalog import catalog
from tests.flow.harness import Bench

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("features", "models", "dataflows")


@cache
def examples() -> dict[str, str]:
    """Path -> content of the files that CONTRIBUTING.md shows."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", page, flags=re.DOTALL))


def one(folder: str) -> tuple[str, str]:
    """The only example of a folder: path and content."""
    (found,) = [(p, text) for p, text in examples().items() if str(Path(p).parent) == folder]
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the three packages; kernels compiled before stay compiled."""
    folder = tmp_path_factory.mktemp("contributing")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package)
    return folder


def use(copy: Path, folder: str, program: str, *words: str) -> str:
    """Put a folder's example in place, run a program over the copy, take the example out again."""
    name, text = one(folder)
    assert not (copy / name).exists(), "the example must be an addition"
    (copy / name).write_text(text, encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, *words],
            cwd=copy,
            env={"PATH": "", "PYTHONPATH": str(copy), "HOME": str(copy)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    finally:
        (copy / name).unlink()
    assert done.returncode == 0, done.stderr
    return done.stdout


EVENT = """
import io, json, sys
from pathlib import Path

import fastavro
import numpy as np

from dataflows.cli.main import main
from features.decode import decode
from features.event_reference import event_page
from features.events.avro import avro_schema

sets = [part for name, value in json.loads(sys.argv[1]).items()
        for part in ("--set", f"{name}={value}")]
good = [{"event_id": f"p{i}", "time_us": 1_772_409_600_000_000 + i, "parcel_id": "x",
         "depot_id": "d", "weight_kg": 0.5 + i} for i in range(3)]
bad = good[0] | {"event_id": "p9", "weight_kg": -1.0}

assert main(["schemas"]) == 0
written = json.loads(Path("deploy/schemas/parcel.avsc").read_text())
assert written == avro_schema("parcel")
schema = fastavro.parse_schema(written)
bodies = []
for row in [*good, bad]:
    out = io.BytesIO(b"\\0\\0\\0\\0\\7")
    out.seek(5)
    fastavro.schemaless_writer(out, schema, row)
    bodies.append(out.getvalue())
n = len(bodies)
rest = (np.zeros(n, np.int32), np.arange(n), np.zeros(n, np.int64))
limits = {"cut_time_us": good[0]["time_us"], "past_us_max": 10**9, "future_us_max": 10**9}
texts = [json.dumps(row).encode() for row in [*good, bad]]
for encoding, values in (("avro", bodies), ("json", texts)):
    found = decode("parcel", encoding, values, *rest, {7: json.dumps(written)}, **limits)
    assert found.batch.frame.to_dicts() == good, encoding
    assert [(r.row, "weight_kg" in r.detail) for r in found.rejects] == [(3, True)], encoding
assert "## parcel" in event_page()

Path("parcels.jsonl").write_bytes(b"\\n".join(texts))
assert main(["run", "--data", "parcel=parcels.jsonl", "--json", "out.json", *sets]) == 0
report = json.loads(Path("out.json").read_text())
print(*(report[name] for name in ("in", "scored", "dead_lettered", "pending")))
"""


def test_an_event_type_is_one_file(copy: Path, bench: Bench) -> None:
    shutil.copytree(ROOT / "deploy", copy / "deploy")
    trained = {"bundle": bench.settings["bundle"], "state_dir": str(copy / "state")}
    sets = json.dumps(trained | {"alerts": "jsonl", "store": "off"})
    said = use(copy, "features/events", EVENT, sets).splitlines()
    assert said[-1] == "4 3 1 0", "models that know nothing of it go on as they are"


FEATURE = """
import numpy as np
import polars as pl

from features.batch import EventBatch
from features.catalog import catalog
from features.engine import OfflineEngine
from features.events import event_type

minutes = [0, 10, 20, 61, 200]
codes = ["EUR", "USD", "EUR", "CHF", "CHF"]
rows = {
    "event_id": [f"e{i}" for i in range(5)],
    "time_us": [1_772_409_600_000_000 + m * 60_000_000 for m in minutes],
    "card_id": ["c"] * 5, "user_id": ["u"] * 5, "merchant_id": ["m"] * 5,
    "amount": [1.0] * 5, "currency": codes,
}
empty = {f.name: [f.default] * 5 for f in event_type("payment").fields if f.name not in rows}
frame = pl.DataFrame(rows | empty, schema=event_type("payment").schema)
n = len(frame)
batch = EventBatch("payment", frame, np.zeros(n, np.int32), np.arange(n), np.zeros(n, np.int64))
name = "distinct_currencies_1h"
found = OfflineEngine(catalog(), groups=4).process({"payment": batch})["payment"]
column = catalog().names("payment").index(name)
assert found.names[column] == name
assert name in [f.name for f in catalog().views()["payment", "card"]], "a column of the store"
assert catalog().feature("payment", name).why.format(value=3) == "paid in 3 currencies within 1 h"
print(catalog().version, *found.values[:, column].astype(int))
"""


def test_a_feature_is_one_file(copy: Path) -> None:
    version, *values = use(copy, "features/definitions", FEATURE).split()
    assert values == ["1", "2", "2", "3", "1"], "0 to 20 min; the first is out at 61; all at 200"
    assert version != catalog().version, "models must be trained again"


def test_every_example_passes_the_linter(tmp_path: Path) -> None:
    paths = []
    for name, text in examples().items():
        paths.append(tmp_path / Path(name).name)
        paths[-1].write_text(text, encoding="utf-8")
    ruff = Path(sys.executable).with_name("ruff")
    config = ROOT / "pyproject.toml"
    done = subprocess.run(
        [ruff, "check", "--config", config, *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


ATTACK = """
from features.simulate import ATTACKS, Simulator

assert max(ATTACKS, key=ATTACKS.get) == "structuring", "the shipped attacks keep their codes"
start = 1_772_409_600_000_000
day = 86_400_000_000
simulator = Simulator(
    seed=1, population_seed=1, start_us=start, events_per_s=1.0, cards=500,
    anomaly_share=0.02, attacks=["structuring"], strength=(0.9, 1.0),
)
labels = simulator.labels(start, start + day)
assert labels["attack"].unique().to_list() == ["structuring"]
payments = simulator.span(start, start + day)["payment"].frame
theirs = payments.filter(payments["event_id"].is_in(labels["event_id"].implode()))
print(len(theirs), theirs["amount"].is_between(980, 999).mean())
"""


def test_an_attack_is_one_file(copy: Path) -> None:
    count, share = use(copy, "features/simulate/attacks", ATTACK).split()
    assert int(count) > 50 and float(share) > 0.9


SINK = """
from pathlib import Path

from dataflows.alerts import open_sinks
from dataflows.alerts.base import Alert
from dataflows.settings import load

settings = load(None, {}, alerts=["jsonl", "tsv"], state_dir=Path("state"))
alert = Alert(
    id="a1", anomaly_type="payment_fraud", severity="error", event_type="payment", event_id="e1",
    entity_type="card", entity="card_1", time_us=1, cut_time_us=2, round=3, score=0.999, votes=(),
    reasons=(), bundle_id="b1", summary="7 payments\\tin 1 min",
)
sinks = open_sinks(settings.alerts, settings)
for sink in sinks:
    sink.write([alert])
    sink.close()
assert [sink.name for sink in sinks] == ["jsonl", "tsv"]
print(Path("state/alerts.tsv").read_text(), end="")
"""


def test_an_alert_sink_is_one_file(copy: Path) -> None:
    assert use(copy, "dataflows/alerts", SINK) == "a1\tpayment_fraud\tcard_1\t7 payments in 1 min\n"


DETECTOR = """
import json
import numpy as np
from features.batch import FeatureMatrix
from features.catalog import catalog
from models.base import Detector, TrainingSet
from models.detectors import detector, detector_names

assert "extremes" in detector_names()
model = detector("extremes")
names = catalog().names("payment")
rng = np.random.default_rng(1)
values = rng.normal(size=(5_000, len(names)))
features = FeatureMatrix("payment", names, values, None, catalog().version)
rows = np.arange(5_000)
label = np.zeros(5_000, np.int8)
fitted = model.fit(
    TrainingSet(features, rows, label, rows.astype(np.uint64), label.astype(np.int16)), 1, {}
)
assert isinstance(fitted, Detector)
arrays, header = fitted.save()
loaded = model.load(arrays, json.loads(json.dumps(header)))
odd = FeatureMatrix("payment", names, values[:2] + np.array([[0.0], [9.0]]), None, "")
usual, strange = loaded.raw(odd)
print(usual, strange)
"""


def test_a_detector_is_one_file(copy: Path) -> None:
    usual, strange = use(copy, "models/detectors", DETECTOR).split()
    assert float(usual) < 0.1 and float(strange) > 0.9
