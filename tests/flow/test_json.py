"""Every key of every `--json` stands in docs/json.md (those of simulate in docs/simulator.md).

The keys of `waxwing bench models` are looked at in tests/unit/test_bench_models.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataflows.settings import Settings
from features.events import event_type, event_types
from features.simulate import ATTACKS, SILENCES
from features.simulate.malformed import FAULTS
from models.detectors import detector_names
from tests.flow.harness import Bench, call, trained_detectors

ROOT = Path(__file__).resolve().parents[2]

ENTITIES = {entity for name in event_types() for entity in event_type(name).entities}
KINDS = {*detector_names(), *event_types(), "absence", *ATTACKS, *SILENCES, *FAULTS, *ENTITIES}
NAMES = KINDS | set(Settings.model_fields)
"""Keys that are names of something; the page has NAME, TYPE, ATTACK or ENTITY in their place."""


def keys(report: Any) -> Iterator[str]:
    """All keys of a report, at any depth, but names."""
    if isinstance(report, dict):
        for key, value in report.items():
            if key not in NAMES:
                yield key
            yield from keys(value)


def told(page: str) -> set[str]:
    """Words in backticks of a page, the parts of dotted ones each."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.split(r"[.\s]", code)}


def undocumented(report: Any, page: str = "json.md") -> list[str]:
    """Keys of a report that a page does not have."""
    return sorted(set(keys(report)) - told(page))


def report_of(command: str, *arguments: str, cwd: Path) -> dict[str, Any]:
    """What a command writes."""
    done = call(command, *arguments, "--json", "out.json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((cwd / "out.json").read_text(encoding="utf-8"))
    return report


@pytest.mark.parametrize("command", ["demo", "run", "evaluate", "backfill", "check", "simulate"])
def test_every_key_is_documented(command: str, bench: Bench, tmp_path: Path) -> None:
    quick = bench.sets(state_dir=tmp_path / "state", sim_seconds=1, sim_speed=7200)
    made = ("--out", "made", "--hours", "1", "--anomaly-share", "0.01")
    arguments = {
        "demo": quick,
        "run": quick,
        "evaluate": [*bench.sets(), "--hours", "2"],
        "backfill": [*bench.sets(), "--data", "made", "--out", "warm"],
        "check": [],
        "simulate": [*made, "--malformed", "0.01", "--to", "jsonl"],
    }
    if command == "backfill":
        assert call("simulate", *made, cwd=tmp_path).returncode == 0
    report = report_of(command, *arguments[command], cwd=tmp_path)
    assert undocumented(report, "simulator.md" if command == "simulate" else "json.md") == []
    if command in ("demo", "run", "evaluate"):
        assert report["detectors"]["ensemble"].keys() == {"recall", "precision", "fpr"}
        assert report["by_attack"], "attacks were sent"


def test_every_key_of_a_training_is_documented(bench: Bench) -> None:
    report = json.loads((bench.folder / "train.json").read_text(encoding="utf-8"))
    assert undocumented(report) == []
    assert report["rows"].keys() - {"absence"} == set(event_types())
    assert report["detectors"].keys() == {*trained_detectors(), "ensemble"}
    assert report["by_attack"].keys() <= set(ATTACKS) and report["by_attack"]
