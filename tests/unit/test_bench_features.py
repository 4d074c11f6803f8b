"""`waxwing bench features`: every figure is there; a peer that lacks is named with its cure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import dataflows.bench.features as bench
from dataflows.cli.main import main
from features.catalog import catalog

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
    costs = {point["us_per_event"] for point in report["growth"]}
    assert report["growth_ratio"] == pytest.approx(max(costs) / min(costs), abs=0.001)
    assert set(report["bytes_per_entity_of"]) == {"card", "user", "merchant", "device", "ip"}
    assert 0.0 < report["snapshot_pause_ms_group_max"] <= report["snapshot_pause_ms_max"]
    assert "events/s on one core" in capsys.readouterr().out
    assert told(report) == set()


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
