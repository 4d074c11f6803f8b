"""Labels from outside: a file of payments, a control record, a restart between, and the store."""

from __future__ import annotations

import json
from pathlib import Path

from dataflows.control.records import append_record
from dataflows.sources.rounds import journal_folder
from dataflows.sources.simulator import time_us_of
from dataflows.state.journal import read_cuts
from dataflows.store.embedded import EmbeddedRedis
from dataflows.store.reader import StoreReader
from features.catalog import catalog
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
    told.until(lambda: len(rounds_of(told.state_dir)) >= 60)
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
