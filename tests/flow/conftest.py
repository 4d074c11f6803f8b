"""Models and warm state for the flow tests: trained once, by the command a user runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flow.harness import Bench, call

__all__: list[str] = []

WORLD = {
    "sim_cards": "1500",
    "sim_events_per_s": "2.0",
    "sim_anomaly_share": "0.01",
    "sim_start": "2026-03-02T00:00:00Z",
}
"""A small world with ten times the usual attacks: an hour has alerts of every event type."""


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bundle trained on two simulated days, and the state they leave."""
    folder: Path = tmp_path_factory.mktemp("bench")
    made = Bench(
        folder,
        WORLD
        | {
            "bundle": str(folder / "bundle"),
            "warm_state": str(folder / "warm"),
            "alerts": "jsonl",
            "store": "off",
            "sim_paced": "false",
        },
    )
    sets = [part for name, value in WORLD.items() for part in ("--set", f"{name}={value}")]
    done = call(
        "train", "--days", "2", *sets, "--set", f"bundle={folder / 'bundle'}", cwd=folder
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return made
