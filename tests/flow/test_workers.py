"""The number of workers changes nothing in the result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from dataflows.state.manifest import read_manifest
from tests.flow.harness import TIMEOUT_S, WORLD, Bench, Run, alerts_of, without_clock

ROOT = Path(__file__).resolve().parents[2]
DAY = {"sim_paced": False, "sim_seconds": 4, "sim_speed": 7200, "round_rows_max": 3000}
"""Eight hours in some twenty rounds."""


def run(bench: Bench, folder: Path, workers: int) -> Path:
    """Run the flow as Bytewax does; its state folder."""
    state = folder / f"state-{workers}"
    table: dict[str, Any] = {
        "bundle": bench.settings["bundle"],
        "warm_state": bench.settings["warm_state"],
        "state_dir": str(state),
        "alerts": ["jsonl"],
        "store": "embedded",
        "snapshot_rounds": 5,
    } | DAY  # fmt: skip
    world = {k: v if k == "sim_start" else float(v) for k, v in WORLD.items()}
    world["sim_cards"] = int(WORLD["sim_cards"])
    lines = [f"{name} = {json.dumps(value)}" for name, value in (table | world).items()]
    config = folder / f"workers-{workers}.toml"
    config.write_text("\n".join(lines), encoding="utf-8")
    flow = f"dataflows.detect:build('{config.name}')"
    done = subprocess.run(
        [sys.executable, "-m", "bytewax.run", "-s", "0", "-w", str(workers), flow],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("WAXWING_")}
        | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return state


def test_one_worker_and_three_give_the_same_alerts_and_counts(bench: Bench, tmp_path: Path) -> None:
    one, three = run(bench, tmp_path, 1), run(bench, tmp_path, 3)
    alerts = alerts_of(one)
    assert len(alerts) > 100
    assert without_clock(alerts_of(three)) == without_clock(alerts)
    first, second = read_manifest(one), read_manifest(three)
    assert first is not None and second is not None
    assert first.totals == second.totals and first.totals["in"] > 50_000


def test_what_bounds_on_memory_make_inexact_is_counted_alike_by_one_process_and_two(
    bench: Bench, tmp_path: Path
) -> None:
    bounds = {"exact_events_max": 30, "distinct_exact_max": 15}
    told: list[dict[str, Any]] = []
    alerts = []
    for workers in ("1", "2"):
        state = tmp_path / workers
        told.append(Run(bench, state, DAY | bounds, ("--workers", workers)).to_end())
        alerts.append(without_clock(alerts_of(state)))
    names = (
        "approximated", "approximated_excess_max", "estimated", "estimated_one_in_max",
    )  # fmt: skip
    one, two = ({name: report[name] for name in names} for report in told)
    assert one == two
    assert all(one[name] > 0 for name in names), one
    assert one["estimated_one_in_max"] >= 2 and one["approximated"] < told[0]["in"]
    assert alerts[0] == alerts[1] and len(alerts[0]) > 0
