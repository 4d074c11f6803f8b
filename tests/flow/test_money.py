"""Payments in several currencies from outside: with a table of rates yen are no anomaly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dataflows.sources.rounds import journal_folder
from dataflows.sources.simulator import time_us_of
from dataflows.state.journal import read_cuts
from dataflows.state.manifest import read_manifest
from tests.flow.harness import Bench, Run, call
from tests.streams import make_batch

START_US = time_us_of("2026-03-02T00:00:00Z")
DAY_US = 86_400_000_000
CARDS, DAYS, LIVE_DAYS = 120, 12, 2
YEN = 0.0061
HOSTILE, HOSTILE_ID = "\x1bc", "../../\x1b[2Jx"


def rate_lines(days: int) -> str:
    """A table of so many days, that of the yen falling by a hundredth a day."""
    lines = ["day,currency,rate"]
    for day in range(days):
        lines += [f"2026-03-{2 + day:02d},USD,0.9", f"2026-03-{2 + day:02d},JPY,{YEN * 0.99**day}"]
    return "\n".join(lines) + "\n"


def written(folder: Path) -> tuple[Path, Path]:
    """Payments of history in euros and dollars; of the days after, when a third of the cards pay in
    yen what they always pay, and one in a currency that no table has."""
    rng = np.random.default_rng(5)
    level = rng.normal(3.0, 0.4, CARDS)
    rows: list[dict[str, Any]] = []
    for i in range(CARDS * 4 * (DAYS + LIVE_DAYS)):
        day, card = i / (CARDS * 4), int(rng.integers(CARDS))
        euros = float(np.exp(level[card] + 0.3 * rng.standard_normal()))
        home = ("EUR", 1.0) if card % 2 else ("USD", 0.9)
        abroad = ("JPY", YEN * 0.99 ** int(day)) if day >= DAYS and card % 3 == 0 else home
        code, rate = (HOSTILE, 1.0) if i == CARDS * 4 * (DAYS + 1) else abroad
        name, whose = (f"p{i}", f"c-{card}") if code != HOSTILE else (HOSTILE_ID, HOSTILE_ID)
        rows.append(
            {"event_id": name, "time_us": START_US + round(day * DAY_US),
             "card_id": whose, "user_id": f"u-{card}", "merchant_id": f"m-{card % 20}",
             "amount": round(euros / rate, 2), "currency": code, "channel": "pos"}
        )  # fmt: skip
    frame = make_batch("payment", rows).frame
    split = START_US + DAYS * DAY_US
    history, live = folder / "history.parquet", folder / "live.parquet"
    frame.filter(pl.col("time_us") < split).write_parquet(history)
    frame.filter(pl.col("time_us") >= split).write_parquet(live)
    return history, live


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of payments, a table of rates, and models trained with it and without."""
    folder = tmp_path_factory.mktemp("money")
    history, _ = written(folder)
    (folder / "rates.csv").write_text(rate_lines(DAYS + LIVE_DAYS), encoding="utf-8")
    for name, given in sets(folder).items():
        options = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
        done = call("train", "--data", f"payment={history}", *options, cwd=folder)
        assert done.returncode == 0, done.stderr + name
    return folder


def sets(folder: Path) -> dict[str, dict[str, str]]:
    """Settings with the table and without."""
    shared = {"detectors": '["zscore"]', "groups": "2", "store": "off", "alerts": '["jsonl"]'}
    made = {
        name: shared | {"bundle": str(folder / name / "bundle")} for name in ("with", "without")
    }
    made["with"] |= {"currency_rates": str(folder / "rates.csv")}
    return made


def run_of(folder: Path, name: str, state: str, **more: Any) -> Run:
    """A run over the days in which some pay in yen."""
    bench = Bench(folder, sets(folder)[name])
    more = {"file_round_s": 900.0, "snapshot_rounds": 20, **more}
    return Run(bench, folder / state, more, ("--data", f"payment={folder / 'live.parquet'}"))


def paid_in(folder: Path, run: Run) -> dict[str, int]:
    """Currency -> payments that were flagged."""
    live = pl.read_parquet(folder / "live.parquet")
    flagged = {alert["event_id"] for alert in run.alerts()}
    found = live.filter(pl.col("event_id").is_in(list(flagged)))["currency"].value_counts()
    return dict(found.iter_rows())


def test_yen_are_anomalies_without_a_table_and_none_with_it(folder: Path) -> None:
    live = pl.read_parquet(folder / "live.parquet")
    yen = live.filter(pl.col("currency") == "JPY").height
    without = run_of(folder, "without", "without-state")
    assert without.to_end()["scored"] == live.height
    assert paid_in(folder, without).get("JPY", 0) > 0.2 * yen
    converted = run_of(folder, "with", "with-state", alerts='["jsonl", "console"]')
    before = set(folder.parent.rglob("*"))
    done = call(*converted.command(), "--json", "-", cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "\x1b" not in done.stdout + done.stderr and "(\\x1bc 1)" in done.stderr
    report = json.loads(done.stdout[done.stdout.index("{") :])
    new = set(folder.parent.rglob("*")) - before
    assert all(path.is_relative_to(converted.state_dir) for path in new), "an id is no path"
    assert all(path.name.isprintable() for path in new)
    assert report["scored"] == live.height, "nothing is lost, not even what has no rate"
    assert paid_in(folder, converted).get("JPY", 0) < 0.02 * yen
    assert (report["unpriced"], report["old_rate"]) == (1, 0)
    assert report["currencies"]["unpriced"] == {HOSTILE: 1}


def test_rates_that_come_later_do_not_change_what_was(folder: Path) -> None:
    table = folder / "growing.csv"
    table.write_text(rate_lines(DAYS), encoding="utf-8")
    # Without warm state, which would bring the table that history was read with.
    more = {"currency_rates": table, "warm_state": "cold"}
    run = run_of(folder, "with", "growing-state", **more)
    whole = run_of(folder, "with", "whole-state", **more)
    assert whole.to_end()["old_rate"] > 0, "the last known rate is taken"

    def cuts() -> list[int]:
        lane = journal_folder(run.state_dir, 0)
        return [cut.rates for cut in read_cuts(lane, 0)] if lane.is_dir() else []

    run.until(lambda: len(cuts()) >= 50, hold=100)
    reached = len(cuts())
    # A day that was lacking, and one that was wrong: both hold from the next round on alone.
    text = rate_lines(DAYS + 1).replace(f"2026-03-02,JPY,{YEN}", "2026-03-02,JPY,0.007")
    table.write_text(text, encoding="utf-8")
    done = call("run", *run.options(), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "JPY on 2026-03-02 0.0061 -> 0.007; rounds cut before keep theirs" in done.stderr
    assert set(cuts()[:reached]) == {1} and set(cuts()[reached:]) == {2}
    until = min(alert["round"] for alert in run.alerts() if alert["round"] > reached)
    before = [json.dumps(a) for a in run.alerts() if a["round"] <= reached]
    assert until > reached
    assert before == [json.dumps(a) for a in whole.alerts() if a["round"] <= reached]


def test_a_state_or_models_of_other_amounts_are_refused(folder: Path) -> None:
    run = run_of(folder, "with", "with-state")
    manifest = read_manifest(run.state_dir)
    assert manifest is not None and manifest.currency == "EUR"
    wrong = {"bundle": folder / "without" / "bundle", "currency_base": "USD"}
    (folder / "bad.csv").write_text("day,currency,rate\n2026-03-02,USD,0\n", encoding="utf-8")
    for change, said in (
        ({"bundle": wrong["bundle"]}, "trained on amounts as they were paid (no currency_rates)"),
        ({"currency_rates": folder / "bad.csv"}, "bad.csv:2: rate '0': expected a number above 0"),
    ):
        options = run_of(folder, "with", "with-state", **change).options()
        done = call("run", *options, cwd=folder)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    plain = run_of(folder, "without", "with-state", warm_state="cold")
    done = call("run", *plain.options(), cwd=folder)
    assert done.returncode == 2 and "state was made of amounts in EUR" in done.stderr, done.stderr
    checked = call("check", "--set", f"currency_rates={folder / 'bad.csv'}", cwd=folder)
    assert checked.returncode == 2 and "bad.csv:2" in checked.stderr
