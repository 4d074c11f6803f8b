"""Labels from outside: files of payments and of verdicts, control records, restarts between, and
what is learned from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dataflows.certify import moment
from dataflows.control.records import append_record
from dataflows.from_journal import journal_rows
from dataflows.settings import Settings, load
from dataflows.sources.rounds import journal_folder
from dataflows.sources.simulator import make_simulator, time_us_of
from dataflows.state.journal import read_cuts
from dataflows.store.embedded import EmbeddedRedis
from dataflows.store.reader import StoreReader
from features.catalog import catalog
from models.bundle import Bundle
from tests.flow.harness import Bench, Run, call
from tests.streams import make_batch

START_US = time_us_of("2026-03-05T00:00:00Z")
HOUR_US = 3_600_000_000
HOURS = 400


def written(folder: Path) -> Path:
    """A payment an hour of one card at one merchant, as a file of JSON lines."""
    rows = [
        {"event_id": f"p{i}", "time_us": START_US + i * HOUR_US, "card_id": "c-1",
         "user_id": "u-1", "merchant_id": "m-1", "amount": 10.0, "currency": "EUR",
         "category": "food", "channel": "pos"}
        for i in range(HOURS)
    ]  # fmt: skip
    path = folder / "payments.jsonl"
    make_batch("payment", rows).frame.write_ndjson(path)
    return path


def stored(state_dir: Path, entity: str, name: str, *features: str) -> list[float]:
    """What the online store holds of an entity's last payment."""
    server = EmbeddedRedis(state_dir)
    server.ensure()
    try:
        reader = StoreReader(server.url, catalog())
        found = reader.read(("payment", entity), [name])
        reader.close()
    finally:
        server.close()
    assert found.found.all()
    return [float(found.values[0, found.features.index(one)]) for one in features]


def rounds_of(state_dir: Path) -> list[list[str]]:
    """Kinds of the control records of each journaled round."""
    folder = journal_folder(state_dir, 0)
    if not folder.is_dir():
        return []
    return [[record["kind"] for record in cut.control] for cut in read_cuts(folder, 0)]


def test_a_label_is_known_from_its_round_on_and_after_a_restart(
    bench: Bench, tmp_path: Path
) -> None:
    data = ("--data", f"payment={written(tmp_path)}")
    more = {
        "file_round_s": HOUR_US / 1e6,
        "snapshot_rounds": 20,
        "store": "embedded",
    }
    plain = Run(bench, tmp_path / "plain", more, data)
    assert plain.to_end()["scored"] == HOURS
    asked = ("merchant_frauds_30d", "merchant_last_label")
    before = stored(plain.state_dir, "merchant", "m-1", *asked)
    assert before[0] == 0.0 and before[1] != before[1], "nobody has said anything"

    told = Run(bench, tmp_path / "told", more, data)
    told.until(lambda: len(rounds_of(told.state_dir)) >= 60, hold=200)
    reached = len(rounds_of(told.state_dir))
    assert reached < HOURS
    done = call(
        "control", "--set", f"state_dir={told.state_dir}", "label", "payment", "p3", "fraud",
        "2026-03-05T03:00:00Z", "merchant=m-1", "card=c-1", "--source", "chargeback",
        cwd=bench.folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    append_record(told.state_dir / "control.jsonl", '{"kind": "label", "event_type": "payment"}')
    report = told.to_end()
    assert report["scored"] == HOURS
    kinds = rounds_of(told.state_dir)
    assert kinds.index(["label"]) >= reached and sum(map(len, kinds)) == 1
    assert stored(told.state_dir, "merchant", "m-1", *asked) == [1.0, 1.0]
    hours = HOURS - 1 - 3
    since = stored(told.state_dir, "card", "c-1", "card_frauds_30d", "card_since_fraud_s")
    assert since == [1.0, hours * 3_600.0]
    letters = (told.state_dir / "dead_letters.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["reason"] for line in letters] == ["bad_control_record"]


MAPPING = """
event = "payment"

[fields]
event_id = "id"
time_us = { column = "at", unit = "us" }
card_id = "card"
user_id = "card"
merchant_id = "shop"
amount = "total"

[truth]
column = "stolen"
"""


def labelled(folder: Path) -> tuple[str, ...]:
    """A payment an hour, the fourth a fraud, as options of `waxwing run`."""
    rows = [f"p{i},{START_US + i * HOUR_US},c-1,m-1,10.0,{int(i == 3)}\n" for i in range(HOURS)]
    (folder / "payments.csv").write_text("id,at,card,shop,total,stolen\n" + "".join(rows))
    (folder / "mapping.toml").write_text(MAPPING)
    return (
        "--data", f"payment={folder / 'payments.csv'}", "--mapping", str(folder / "mapping.toml"),
    )  # fmt: skip


def test_what_a_file_says_of_its_events_is_heard_of_a_week_later_and_after_a_restart(
    bench: Bench, tmp_path: Path
) -> None:
    data = labelled(tmp_path)
    more = {"snapshot_rounds": 20, "store": "embedded", "retention_h": 2 * HOURS}
    run = Run(bench, tmp_path / "state", more, data)
    run.until(lambda: len(rounds_of(run.state_dir)) >= 40, hold=100)
    assert len(rounds_of(run.state_dir)) < 170, "the label is under way"
    assert run.to_end()["scored"] == HOURS
    asked = ("merchant_frauds_30d", "merchant_last_label", "merchant_since_fraud_s")
    hours = HOURS - 1 - 3
    assert stored(run.state_dir, "merchant", "m-1", *asked) == [1.0, 1.0, hours * 3_600.0]
    sets = ("--set", f"state_dir={run.state_dir}")
    certified = call("certify", *sets, cwd=bench.folder)
    assert certified.returncode == 0, certified.stdout + certified.stderr
    rows = journal_rows(run.state_dir, None, {}, settled_s=0.0).sets["payment"]
    known = rows.features.column("merchant_frauds_30d")
    assert known.tolist() == [float(hour >= 3 + 7 * 24) for hour in range(HOURS)][-len(known) :]
    assert {0.0, 1.0} == set(known.tolist())
    assert rows.label.tolist() == [int(hour == 3) for hour in range(HOURS)][-len(known) :]

    # What history left under way is heard of by the flow that goes on from it.
    until = ("--until", "2026-03-09T00:00:00Z", "--out", str(tmp_path / "warm"))
    done = call("backfill", *bench.sets(), *data, *until, cwd=bench.folder)
    assert done.returncode == 0, done.stderr
    warm = Run(bench, tmp_path / "on", {**more, "warm_state": tmp_path / "warm"}, data)
    assert warm.to_end()["scored"] == HOURS - 96
    assert stored(warm.state_dir, "merchant", "m-1", *asked) == [1.0, 1.0, hours * 3_600.0]


def test_models_are_learned_from_the_journal_as_of_any_time(bench: Bench, tmp_path: Path) -> None:
    state = tmp_path / "state"
    labels = tmp_path / "labels.csv"
    flow = {
        "detectors": '["zscore", "iqr"]', "sim_seconds": 120, "sim_speed": 60,
        "snapshot_rounds": 20, "round_rows_max": 200, "labels_file": labels,
    }  # fmt: skip
    world = load_settings(bench, flow)
    start_us, half_us = time_us_of(world.sim_start), 3_600_000_000
    batch = make_simulator(world).span(start_us, start_us + 2 * half_us)["payment"]
    frame = batch.frame.with_columns(pl.Series("odd", np.asarray(batch.truth) > 0))
    early = frame.filter(pl.col("time_us") < start_us + half_us // 2).unique("event_id")
    said = early.sort("odd", "time_us", descending=[True, False]).head(30)
    told_us = start_us + half_us
    head = "event_id,verdict,time,event_type,event_time,card,merchant"
    whose = said.select("event_id", "time_us", "card_id", "merchant_id").rows()
    lines = [
        f"{name},fraud,{told_us + i},payment,{us},{card},{merchant}"
        for i, (name, us, card, merchant) in enumerate(whose)
    ]
    labels.write_text("\n".join([head, *lines, "p,perhaps,0,payment,,,"]) + "\n")
    state.mkdir()
    for name, value in (("ensemble", 0.0), ("zscore", 0.95), ("iqr", 0.95)):
        # So that some of the labelled ones are alerts.
        loose = {"kind": "threshold", "anomaly_type": "payment_fraud", "detector": name}
        append_record(state / "control.jsonl", json.dumps({**loose, "value": value}))
    run = Run(bench, state, flow)
    report = run.to_end()
    found = report["outcomes"]
    assert sum(found[n] for n in ("confirmed", "missed", "unknown")) == 30
    alerted = {a["event_id"] for a in run.alerts()}
    assert found["confirmed"] == len(alerted & set(said["event_id"])) > 0
    told = call("labels", "--set", f"state_dir={state}", "--json", "-", cwd=bench.folder)
    kept = json.loads(told.stdout)
    assert told.returncode == 0 and 0 < kept.pop("round") <= report["rounds"] and kept == found
    assert f"{found['confirmed']} confirmed" in told.stderr
    letters = (state / "dead_letters.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["reason"] for line in letters].count("bad_label") == 1

    train = ("train", "--from-journal", "--set", f"state_dir={state}", "--settled", "0")
    bundle = tmp_path / "again" / "bundle"
    done = call(*train, "--set", f"bundle={bundle}", "--json", "-", cwd=bench.folder)
    assert done.returncode == 0, done.stderr
    journal = json.loads(done.stdout[done.stdout.index("{") :])["journal"]
    assert journal["labels"]["fraud"] == 30
    assert journal["rounds_identical"] == journal["last_round"] == report["rounds"]
    assert "are bit-identical with those of then" in done.stderr
    made = Bundle.load(bundle, catalog())
    assert set(made.models["payment"].detectors) == {"zscore", "iqr"}

    own = tmp_path / "own.py"
    own.write_text(OWN_FEATURE)
    other = ("--set", f"feature_paths={own}", "--set", f"bundle={tmp_path / 'own' / 'bundle'}")
    early_us = ("--as-of", moment(told_us - 1_000_000))
    done = call(*train, *early_us, *other, "--json", "-", cwd=bench.folder)
    assert done.returncode == 0, done.stderr
    journal = json.loads(done.stdout[done.stdout.index("{") :])["journal"]
    assert journal["labels"]["fraud"] == journal["rounds_identical"] == 0
    assert "all are computed again with the features of now" in done.stderr

    before = journal_rows(state, None, {}, settled_s=0.0, as_of_us=told_us - 1)
    after = journal_rows(state, None, {}, settled_s=0.0)
    assert (before.sets["payment"].label == 1).sum() == 0
    rows = after.sets["payment"]
    assert (rows.label == 1).sum() == 30
    known = rows.features.column("merchant_frauds_30d")
    assert not known[rows.time_us <= told_us].any() and known[rows.time_us > told_us].any()
    refused = call(*train, "--set", f"bundle={bench.settings['bundle']}", cwd=bench.folder)
    assert refused.returncode == 2 and "what the flow runs with" in refused.stderr


OWN_FEATURE = """
from features.spec import Feature

FEATURES = (
    Feature(
        name="distinct_currencies_1h", event="payment", entity="card", op="distinct",
        other="currency", window_s=3600, unit="1", group="geo",
        why="paid in {value} currencies within 1 h",
    ),
)
"""


def load_settings(bench: Bench, flow: dict[str, Any]) -> Settings:
    """The settings of a run in the bench's world."""
    given = {k: v for k, v in (bench.settings | flow).items() if k.startswith("sim_")}
    return load(None, {}, **given)
