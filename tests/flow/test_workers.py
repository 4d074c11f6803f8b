"""The number of workers changes nothing in the result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from dataflows.state.manifest import read_manifest
from tests.flow.harness import WORLD, Bench, alerts_of, without_clock

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
        timeout=240,
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
