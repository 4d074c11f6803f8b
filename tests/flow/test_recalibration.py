"""A rule that follows its traffic, from outside: bounded, kept over kill -9, deaf to a flood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dataflows.settings import load
from dataflows.sources.simulator import make_simulator, time_us_of
from dataflows.state.journal import read_cuts
from tests.flow.harness import Bench, Run, call

HOUR_US = 3_600_000_000
ROUND_S = 600
PERCENT_A_DAY = 2_000.0
SHARE = 0.05
"""Asked for: more alerts than the bundle gives on calm traffic, far fewer than on a flood."""

FLOOD_H = (7, 10)
"""As many blocks as three quarters of those whose median a rule moves to."""


def traffic(bench: Bench, path: Path) -> Path:
    """Twelve hours of payments, three of them with attacks in every fifth payment."""
    hours = ((0, FLOOD_H[0], 0.002), (*FLOOD_H, 0.4), (FLOOD_H[1], 12, 0.002))
    given = {name: value for name, value in bench.settings.items() if name.startswith("sim_")}
    world = given | {"sim_events_per_s": 1.2, "sim_repeat_share": 0}
    frames = []
    for begin, end, share in hours:
        settings = load(None, {}, **world | {"sim_anomaly_share": share})
        start_us = time_us_of(settings.sim_start)
        batch = make_simulator(settings).span(start_us + begin * HOUR_US, start_us + end * HOUR_US)
        ids = pl.format("{}-{}", pl.lit(begin), "event_id")
        frames.append(batch["payment"].frame.with_columns(ids.alias("event_id")))
    pl.concat(frames).write_ndjson(path)
    return path


def shifts(state: Path) -> list[tuple[int, float]]:
    """Cut time and value of each shift in the journal."""
    folder = state / "journal" / "lane-00"
    cuts = read_cuts(folder) if folder.is_dir() else iter(())
    return [
        (cut.cut_time_us, float(record["value"]))
        for cut in cuts
        for record in cut.control
        if record["kind"] == "shift"
    ]


def test_a_rule_follows_within_its_bounds_over_kill_9_and_not_in_a_flood(
    bench: Bench, tmp_path: Path
) -> None:
    data = ("--data", f"payment={traffic(bench, tmp_path / 'payments.jsonl')}")
    more = {"file_round_s": ROUND_S, "snapshot_rounds": 5}
    run = Run(bench, tmp_path / "state", more, data)
    sets = ("--set", f"state_dir={run.state_dir}")
    asked = call(
        "control", *sets, "recalibrate", "payment_fraud", str(PERCENT_A_DAY), "--share", str(SHARE),
        "--block-s", str(ROUND_S - 100), "--why", "a quiet year", cwd=bench.folder,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    run.until(lambda: len(shifts(run.state_dir)) >= 4, hold=40)
    before = len(shifts(run.state_dir))
    run.to_end()

    told = call("model", *sets, "history", "--json", "-", cwd=bench.folder)
    changes: list[dict[str, Any]] = json.loads(told.stdout)["changes"]
    assert changes[0]["record"]["why"] == "a quiet year"
    assert all(c["refused"] is None for c in changes)
    heard = [(c["cut_time_us"], c["record"]["value"]) for c in changes[1:]]
    assert heard == shifts(run.state_dir) and len(heard) > before
    assert {(c["record"]["kind"], c["record"]["by"]) for c in changes[1:]} == {("shift", "waxwing")}

    start_us = time_us_of(bench.settings["sim_start"])
    hour = (np.array([us for us, _ in heard]) - start_us) / HOUR_US
    value = np.array([0.0, *(value for _, value in heard)])
    step = np.log10(1.0 + PERCENT_A_DAY / 100.0) * ROUND_S / 86_400.0
    assert hour.min() >= 24 * ROUND_S / 3_600.0, "not before there are 24 blocks"
    assert np.all(np.diff(value) <= 0.0), "towards more alerts, which were asked for, and never up"
    assert np.diff(value).min() >= -1.2 * step, "and no further at a time than a day's share of it"
    assert -1.0 < value[-1] < -10 * step
    calm = hour < FLOOD_H[0]
    assert np.diff(hour[calm]).max() < 3.0, "what was learned before the kill counts"
    flooded = (hour > FLOOD_H[0] + 0.5) & (hour < FLOOD_H[1])
    assert calm.sum() > 8 and (hour > FLOOD_H[1]).sum() > 4 and not flooded.any(), hour

    certified = call("certify", *sets, cwd=bench.folder)
    assert certified.returncode == 0, certified.stderr
    assert "bit-identical" in certified.stdout + certified.stderr
