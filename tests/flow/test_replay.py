"""`waxwing replay --into`: what comes out is what was live; new features on the same history."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dataflows import refill
from dataflows.cli.main import main
from dataflows.store.embedded import EmbeddedRedis
from dataflows.store.reader import StoreReader
from features.catalog import catalog
from tests.flow.harness import Bench, Run, call
from tests.flow.test_certify import files
from tests.flow.test_json import undocumented
from tests.pagerduty import receiver

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ran(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    """A run of six hours of event time and its report."""
    more = {"sim_seconds": 3, "sim_speed": 7200.0, "round_rows_max": 2000, "snapshot_rounds": 5}
    run = Run(bench, tmp_path_factory.mktemp("replayed") / "state", more)
    return run, run.to_end()


def rows_of(run: Run, name: str, event: str) -> pl.DataFrame:
    """Rows of an event type of a replay, in order."""
    return pl.read_parquet(run.state_dir / "replays" / name / event / "*.parquet")


def test_rows_and_alerts_are_those_of_the_flow_and_nobody_is_told(
    bench: Bench, ran: tuple[Run, dict[str, Any]]
) -> None:
    run, report = ran
    before = files(run.state_dir)
    with receiver() as duty:
        given = {
            "state_dir": run.state_dir, "alerts": "jsonl,pagerduty", "notify": "pagerduty",
            "pagerduty_url": duty.url, "pagerduty_routing_key": "0" * 31 + "a",
        }  # fmt: skip
        sets = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
        done = call(
            "replay", "--into", "all", *sets, "--workers", "2", "--json", "-", cwd=bench.folder
        )
        assert done.returncode == 0, done.stderr
        assert not duty.answers, "a pager that is set is called by nobody"
    found = json.loads(done.stdout)
    assert undocumented(found) == [] and found["scored"]
    assert found["events"] == report["in"]
    kept = run.state_dir / "replays" / "all"
    assert {k: v for k, v in files(run.state_dir).items() if not k.startswith("replays")} == before
    lines = (kept / "alerts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == run.alerts()
    names = ("payment", "login", "metric", "app_log")
    assert sum(rows_of(run, "all", n).height for n in names) == report["scored"]
    payments = rows_of(run, "all", "payment")
    flagged = set(payments.filter("flagged_payment_fraud")["event_id"])
    assert flagged == {a["event_id"] for a in run.alerts() if a["event_type"] == "payment"}


def test_a_feature_of_ones_own_is_computed_on_history_beside_the_same_others(
    ran: tuple[Run, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = ran
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(r"definitions/currencies.py -->\n```python\n(.*?)```", text, re.S)
    assert found is not None
    own = tmp_path / "currencies.py"
    own.write_text(found.group(1), encoding="utf-8")
    arguments = ["--set", f"state_dir={run.state_dir}", "--from", "2026-03-02T03:00:00Z"]
    for name, more in (("old", []), ("new", ["--set", f"feature_paths={own}"])):
        done = call("replay", "--into", name, *arguments, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    old, new = rows_of(run, "old", "payment"), rows_of(run, "new", "payment")
    assert set(new.columns) - set(old.columns) == {"distinct_currencies_1h"}
    assert new["distinct_currencies_1h"].min() == 1.0
    both = [c for c in old.columns if c in new.columns]
    assert old.select(both).equals(new.select(both)) and len(both) > 100
    assert not any(c.startswith("score_") for c in new.columns)


def test_a_store_is_filled_apart_from_that_of_the_flow(
    ran: tuple[Run, dict[str, Any]], bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = ran
    state = f"state_dir={run.state_dir}"
    late = ("--from", "2026-03-02T05:00:00Z")
    nowhere = ("--set", "redis_url=redis://127.0.0.1:1/0")
    wrong = ["replay", "--into", "store", "--store", "--set", state, *nowhere, *late]
    assert main(wrong) == 2
    said = capsys.readouterr().err
    assert "127.0.0.1:1" in said and said.count("\n") == 1, said
    assert not list((run.state_dir / "replays").glob("*store*")), "the name is free again"
    done = call("replay", "--into", "store", "--store", "--set", state, *late, cwd=bench.folder)
    assert done.returncode == 0, done.stderr
    folder = run.state_dir / "replays" / "store" / "store"
    assert folder.is_dir() and not (run.state_dir / "store").exists()
    written = sum(p.stat().st_size for p in folder.iterdir())
    cards = rows_of(run, "store", "payment")["card_id"].n_unique()
    assert written > 200 * cards, "every card has a row of some hundred bytes"
    last = rows_of(run, "store", "payment").filter(pl.col("card_id").is_not_null()).tail(1)
    names = [n for n in catalog().names("payment") if n.startswith("card_") and n in last.columns]
    server = EmbeddedRedis(folder.parent)
    server.ensure()
    try:
        reader = StoreReader(server.url, catalog())
        has = reader.read(("payment", "card"), [last["card_id"][0]])
        reader.close()
    finally:
        server.close()
    held = {n: float(has.values[0, has.features.index(n)]) for n in names if n in has.features}
    assert has.found.all() and len(held) > 10, has.features
    assert held == {n: pytest.approx(last[n][0], rel=0, abs=0, nan_ok=True) for n in held}


def test_a_full_disk_is_a_sentence_and_leaves_no_folder(
    ran: tuple[Run, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, _ = ran

    def full(*_: object) -> None:
        raise pl.exceptions.ComputeError("No space left on device (os error 28)")

    killed = run.state_dir / "replays" / ".full.coming" / "payment"
    killed.mkdir(parents=True)
    (killed / "part-000000000001.tmp").touch()
    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    monkeypatch.setattr(refill, "PART_ROWS", 1_000)
    late = ("--from", "2026-03-02T05:00:00Z", "--features-only")
    assert main(["replay", "--into", "full", "--set", f"state_dir={run.state_dir}", *late]) == 2
    said = capsys.readouterr().err
    assert "could not be written: No space left on device" in said and said.count("\n") == 1, said
    assert not list((run.state_dir / "replays").glob("*full*"))


def test_a_name_that_is_a_path_or_is_taken_is_refused(
    ran: tuple[Run, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = ran
    state = f"state_dir={run.state_dir}"
    (run.state_dir / "replays" / "taken").mkdir(parents=True)
    for name, told in (("../up", "expected a name"), ("taken", "is there already")):
        assert main(["replay", "--into", name, "--set", state]) == 2
        said = capsys.readouterr().err
        assert told in said and said.count("\n") == 1, said
