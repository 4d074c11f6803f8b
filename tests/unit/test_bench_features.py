"""`waxwing bench features`: every figure is there; a peer that lacks is named with its cure."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import dataflows.bench.features as bench
from dataflows.cli.main import main
from features.catalog import catalog
from features.errors import ConfigError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "json.md"

SMALL = ("--cards", "300", "--events", "5000", "--growth", "200,400", "--groups", "2")


def test_a_small_bench_has_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "SNAPSHOT_ROUNDS", 1)
    monkeypatch.setattr(bench, "WARM_S", 0.1)
    out = tmp_path / "out.json"
    assert main(["bench", "features", *SMALL, "--json", str(out)]) == 0
    report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert report["features"] == len(catalog().names("payment"))
    assert set(report["us_per_event"]) == {f"rows_{rows}" for rows in bench.ROUNDS}
    for by_stage in report["us_per_event"].values():
        assert all(us > 0.0 for us in by_stage.values())
    # Within an order of what such a machine gives: microseconds, and events a second.
    assert 1_000 < report["events_per_s_per_core"] < 5_000_000
    fewer, more = report["growth"]
    assert (fewer["cards"], more["cards"]) == (200, 400)
    assert 200 < fewer["entities"] < more["entities"]
    assert set(report["goals"]) == set(bench.GOALS) - {"ratio.flink"}
    assert report["goals"]["features"] == {
        "value": report["features"], "limit": 40.0, "met": True
    }  # fmt: skip
    assert set(report["bytes_per_entity_of"]) == {"card", "user", "merchant", "device", "ip"}
    assert 0.0 < report["snapshot_pause_ms_group_max"] <= report["snapshot_pause_ms_max"]
    assert "events/s on one core" in capsys.readouterr().out
    assert told(report) == set()


def test_the_curve_is_its_dearest_event_over_its_cheapest_and_held_to_its_goal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = iter([2.0, 1.6, 4.0])
    monkeypatch.setattr(bench, "WARM_S", 0.1)
    monkeypatch.setattr(bench, "_snapshots", lambda _: {"snapshot_pause_ms_max": 100.0})
    monkeypatch.setattr(bench, "_point", lambda *_: {"us_per_event": next(costs)})
    report = bench.measure(100, (100, 200, 300), 1_000, 1, print)
    assert report["growth_ratio"] == 2.5
    found = bench.goals({**report, "ratio": {"flink": 19.9}})
    assert found["growth_ratio"] == {"value": 2.5, "limit": 2.0, "met": False}
    assert found["snapshot_pause_ms_max"] == {"value": 100.0, "limit": 100.0, "met": True}
    assert found["ratio.flink"] == {"value": 19.9, "limit": 20.0, "met": False}


STAND_IN = r"""
import csv, re, sys
from pathlib import Path
sys.path.insert(0, FOLDER)
import flink

class Tables:
    '''Runs what the peer asks, the slow and obvious way, in place of Flink.'''

    paths = dict()

    def execute_sql(self, sql):
        made = re.search(r"CREATE TABLE (\w+) .*'path' = '([^']+)'", sql, re.DOTALL)
        if made:
            self.paths[made[1]] = Path(made[2])
        if sql.startswith("INSERT INTO checked"):
            told = re.findall(r"INTERVAL '(\d+):(\d+):([.\d]+)'", sql)
            ms = [round(1e3 * (3_600 * int(h) + 60 * int(m) + float(s))) for h, m, s in told]
            starts = sorted(set(ms))
            assert len(starts) == 3
            self.write(starts)
        return self

    def wait(self):
        pass

    def write(self, starts):
        with self.paths["sample"].open() as file:
            rows = [(c, float(a), int(t) // 1000) for c, a, t in csv.reader(file)]
        part = self.paths["checked"] / "part-0"
        with part.open("w", newline="") as file:
            for card, _, ms in rows:
                cells = []
                for before in starts:
                    held = [a for c, a, t in rows if c == card and ms - before EDGE t <= ms]
                    cells += [len(held), sum(held)]
                csv.writer(file).writerow([card, *cells])

flink.environment = lambda parallelism: Tables()
flink.version = lambda name: "0"
flink.children_s = lambda: 0.0
flink.main()
"""
"""The peer as it is, with another engine: one that can be had in every environment."""


def peer(monkeypatch: pytest.MonkeyPatch, folder: Path, edge: str) -> None:
    """Put the stand-in in the place of the peer; payments of few cards, on a grid of times."""
    program = folder / "peer.py"
    program.write_text(
        STAND_IN.replace("EDGE", edge).replace("FOLDER", repr(str(bench.PEER.parent))), "utf-8"
    )
    monkeypatch.setattr(bench, "PEER", program)
    monkeypatch.setattr(bench, "FLINK_EVENTS", 2_000)
    # 40 ms of events become an hour and more; many of a card are a window apart.
    monkeypatch.setattr(bench, "CHECK_SLOWER", 100_000)
    made = bench.simulator_of(100).span(0, 40_000)["payment"]
    grid = made.frame.with_columns(time_us=pl.col("time_us") // 300 * 300)
    batch = replace(made, frame=grid)

    class Grid:
        def span(self, *_: int) -> dict[str, Any]:
            return {"payment": batch}

    monkeypatch.setattr(bench, "simulator_of", lambda _: Grid())


def test_the_windows_of_the_peer_are_held_against_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    peer(monkeypatch, tmp_path, "<=")
    found = bench._flink(Path(sys.executable), 100, 2)
    assert found["windows"] == 3 and found["events"] > 1_000
    assert 500 < found["checked_rows"] < found["events"]
    assert found["events_per_s"] > 0 and found["version"] == "0"


def test_a_peer_whose_windows_begin_later_is_no_peer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    peer(monkeypatch, tmp_path, "+ 30_000 <=")
    with pytest.raises(ConfigError) as fault:
        bench._flink(Path(sys.executable), 100, 2)
    assert "count_60: Flink finds" in str(fault.value) and "sum_3600" in str(fault.value)


def test_a_peer_that_fails_is_told_with_its_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    # This environment has no Flink.
    monkeypatch.setattr(bench, "FLINK_EVENTS", 100)
    with pytest.raises(ConfigError, match=r"Flink failed: ModuleNotFoundError.*pyflink"):
        bench._flink(Path(sys.executable), 100, 2)


def told(report: dict[str, Any]) -> set[str]:
    """Keys of a report that the page does not explain."""
    page = PAGE.read_text(encoding="utf-8").partition("## `waxwing bench features`")[2]
    page = page.partition("\n## ")[0]
    words = {w for code in re.findall(r"`([^`\n]+)`", page) for w in re.split(r"[.\s]", code)}

    def keys(found: object) -> set[str]:
        if isinstance(found, list):
            return set().union(*map(keys, found))
        if not isinstance(found, dict):
            return set()
        own = {k for k in found if not k.startswith("rows_")}
        return own.union(*map(keys, found.values()))

    return keys(report) - words - {"card", "user", "merchant", "device", "ip"}


def test_what_flink_is_asked_is_asked_of_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WARM_S", 0.1)
    seen: list[tuple[str, ...]] = []
    passed = bench.Bench.pass_round

    def noted(self: bench.Bench, batch: Any) -> None:
        seen.append(self.catalog.names("payment"))
        passed(self, batch)

    monkeypatch.setattr(bench.Bench, "pass_round", noted)
    assert bench.same_windows(300, 5_000, 2) > 0
    (names,) = set(seen)
    stems = ("card_count", "card_amount_sum")
    assert set(names) == {f"{stem}_{w}" for stem in stems for w in ("1m", "5m", "1h")}


def test_numbers_that_are_none_and_a_peer_without_environment_are_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ("--cards", "3", "--growth", "400,many", "--against", "flink")
    assert main(["bench", "features", *wrong, "--flink-python", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert "--cards 3" in said and "--growth '400,many'" in said
    assert "uv pip install -p .waxwing/bench/flink -r" in said
    assert (bench.PEER.with_suffix(".txt")).is_file() and bench.PEER.is_file()


def test_an_installed_package_says_that_the_peer_is_in_the_repository(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "PEER", tmp_path / "peers" / "flink.py")
    assert main(["bench", "features", "--against", "flink"]) == 2
    assert "run from a checkout" in capsys.readouterr().err
