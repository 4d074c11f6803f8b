"""`waxwing bench memory`: the state of a share of the whole, by entity type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dataflows.cli.main import main


def test_a_small_share_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert main(["bench", "memory", "--share", "0.0005", "--minutes", "8", "--json", str(out)]) == 0
    report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert report["payments_per_s"] == 25.0
    assert report["payments"] == pytest.approx(8 * 60 * 25, rel=0.1)
    assert set(report["entities"]) == set(report["state_bytes"])
    assert 300 < report["entities"]["card"] <= 500
    assert report["state_gib"] * 2**30 == pytest.approx(
        sum(report["state_bytes"].values()), rel=0.1
    )
    assert sum(report["parts_bytes"].values()) == sum(report["state_bytes"].values())
    assert report["parts_bytes"].pop("panes") == 0 == report["approximated"]
    assert report["estimated"] == report["estimated_one_in_max"] == 0
    assert all(size > 0 for size in report["parts_bytes"].values())
    assert report["whole_gib"] == pytest.approx(report["state_gib"] / 0.0005, rel=0.1)
    assert report["process_gib"] > report["state_gib"]
    page = (Path(__file__).resolve().parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
    page = page.partition("## `waxwing bench memory`")[2].partition("\n## ")[0]
    assert [key for key in report if f"`{key}" not in page] == []
    assert "payments in 8 min of event time" in capsys.readouterr().out


def test_numbers_that_are_none_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            ["bench", "memory", "--share", "2", "--minutes", "0", "--groups", "0", "--exact", "-1"]
        )
        == 2
    )
    told = capsys.readouterr().err
    assert "--share 2" in told and "--minutes 0" in told and "--groups 0" in told
    assert "--exact -1" in told
