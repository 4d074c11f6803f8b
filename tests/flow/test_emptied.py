"""What the store says of an entity that has gone quiet: windows run empty, restarts or not.

The flow runs over recorded events with its own Redis. What must be found there is worked out from
the events alone, by going through them one after another.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dataflows.settings import Settings
from dataflows.state.manifest import read_manifest
from dataflows.store import store_url
from dataflows.store.embedded import EmbeddedRedis
from dataflows.store.reader import StoredRows, StoreReader
from dataflows.store.rows import SHARDS
from dataflows.store.waiting import waiting_path
from features.batch import EventBatch, FeatureMatrix
from features.catalog import catalog
from features.emptied import timed_names
from features.engine import OfflineEngine
from features.events import event_type
from tests.flow.harness import Bench, Run, call

WINDOWS_US = {"1m": 60_000_000, "5m": 300_000_000, "1h": 3_600_000_000}

VIEWS = {
    ("payment", "card"): "card_count",
    ("payment", "merchant"): "merchant_count",
    ("app_log", "service"): "service_count",
}
"""Views, and the counts of all events of the entity in their windows."""

SLACK_US = 120_000_000
"""The clock is at most so far behind the newest event: its files, and the second it looks at."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Three hours of events in files, and the features of each event."""

    folder: Path
    frames: dict[str, pl.DataFrame]
    features: dict[str, FeatureMatrix]
    end_us: int


@pytest.fixture(scope="module")
def recorded(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Events as `waxwing simulate` writes them."""
    folder = tmp_path_factory.mktemp("recorded")
    made = call("simulate", "--out", "files", "--hours", "3", *bench.sets(), cwd=folder)
    assert made.returncode == 0, made.stderr
    frames, batches = {}, {}
    for name in catalog().event_types:
        path = folder / "files" / f"{name}.parquet"
        if not path.exists():
            continue
        frame = pl.read_parquet(path).unique("event_id", keep="first", maintain_order=True)
        zeros, rows = np.zeros(frame.height, np.int64), np.arange(frame.height)
        frames[name] = frame
        batches[name] = EventBatch(name, frame, zeros.astype(np.int32), rows, zeros)
    end_us = min(int(frame["time_us"].max()) for frame in frames.values())  # type: ignore[arg-type]
    features = OfflineEngine(catalog(), 1).process(batches)
    return Recorded(folder / "files", frames, features, end_us)


def run_over(bench: Bench, recorded: Recorded, state: Path, **more: Any) -> Run:
    """`waxwing run` over the files with a store of its own."""
    cold = {k: v for k, v in bench.settings.items() if k != "warm_state"}
    options = {"store": "embedded", "round_rows_max": 200, "store_emptied_max": 10_000, **more}
    return Run(Bench(recorded.folder, cold), state, options, ("--data", str(recorded.folder)))


def stored(state: Path, view: tuple[str, str], names: list[str]) -> StoredRows:
    """What the store holds after the flow has ended."""
    server = EmbeddedRedis(state)
    server.ensure()
    reader = StoreReader(store_url(Settings(state_dir=state)), catalog())
    try:
        return reader.read(view, names)
    finally:
        reader.close()
        server.close()


def times_of(recorded: Recorded, view: tuple[str, str]) -> dict[str, list[int]]:
    """Entity -> times of its events, in order, its last row in the file behind them."""
    name, entity = view
    frame = recorded.frames[name].with_row_index("row").sort("time_us", maintain_order=True)
    column = event_type(name).entities[entity][0]
    found: dict[str, list[int]] = {}
    for key, time_us in frame.select(column, "time_us").iter_rows():
        if key:
            found.setdefault(key, []).append(time_us)
    return found


def assert_emptied(recorded: Recorded, state: Path) -> None:
    """Each entity's row says what its windows hold at its time, and that time is late enough."""
    for view, count in VIEWS.items():
        times = times_of(recorded, view)
        names = sorted(times)
        rows = stored(state, view, names)
        assert rows.found.all() and len(names) >= 3
        spans = {w: us for w, us in WINDOWS_US.items() if f"{count}_{w}" in rows.features}
        for i, name in enumerate(names):
            at_us, last_us = int(rows.time_us[i]), times[name][-1]
            said = dict(zip(rows.features, rows.values[i].tolist(), strict=True))
            due = [last_us + us for us in spans.values()]
            passed = [us for us in due if us < recorded.end_us - SLACK_US]
            assert at_us in (last_us, *due) and at_us >= max(passed, default=last_us)
            for window, us in spans.items():
                inside = [t for t in times[name] if at_us - us < t <= at_us]
                assert said[f"{count}_{window}"] == len(inside), (view, name, window)
        assert (rows.time_us > [times[name][-1] for name in names]).mean() > 0.3 or len(names) < 20


def test_a_window_of_an_entity_that_has_gone_quiet_runs_empty_in_the_store(
    bench: Bench, recorded: Recorded, tmp_path: Path
) -> None:
    report = run_over(bench, recorded, tmp_path / "state").to_end()
    assert report["emptied"] > 1_000
    assert_emptied(recorded, tmp_path / "state")
    # All that does not change by itself is as at the last event.
    view = ("payment", "card")
    frame, matrix = recorded.frames["payment"], recorded.features["payment"]
    last = (
        frame.with_row_index("row").group_by("card_id").agg(pl.col("row").sort_by("time_us").last())
    )
    rows = stored(tmp_path / "state", view, last["card_id"].to_list())
    kept = [n for n in rows.features if n not in timed_names(catalog(), *view)]
    columns = [matrix.names.index(n) for n in kept]
    at = [rows.features.index(n) for n in kept]
    expected = matrix.values[last["row"].to_numpy()][:, columns]
    np.testing.assert_array_equal(rows.values[:, at], expected)
    hour = rows.features.index("card_count_1h")
    quiet = rows.values[:, hour] == 0.0
    mean, total = (rows.features.index(f"card_amount_{n}_1h") for n in ("mean", "sum"))
    assert quiet.sum() > 100 and np.isnan(rows.values[quiet, mean]).all()
    assert (rows.values[quiet, total] == 0.0).all()


def test_windows_run_empty_in_the_store_whatever_falls_between(
    bench: Bench, recorded: Recorded, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    run = run_over(bench, recorded, state, snapshot_rounds=2)

    def begun() -> bool:
        manifest = read_manifest(state)
        return manifest is not None and manifest.round >= 10

    assert run.until(begun, hold=60) == -signal.SIGKILL
    killed_at = read_manifest(state)
    assert killed_at is not None

    def store_behind() -> bool:
        manifest = read_manifest(state)
        return manifest is not None and manifest.round > killed_at.round

    # A store that takes nothing meanwhile: the manifest goes on, and rows wait on the disk.
    behind = run_over(bench, recorded, state, snapshot_rounds=2, store_flush_ms=60_000)
    assert behind.until(store_behind, hold=90) == -signal.SIGKILL
    killed_again = read_manifest(state)
    assert killed_again is not None
    assert any(waiting_path(state, shard).exists() for shard in range(SHARDS))
    report = run.to_end()
    assert killed_again.round < report["rounds"], "killed in the middle"
    assert not any(waiting_path(state, shard).exists() for shard in range(SHARDS))
    assert_emptied(recorded, state)


def test_what_waits_for_its_round_is_told_in_a_later_one(
    bench: Bench, recorded: Recorded, tmp_path: Path
) -> None:
    few = run_over(bench, recorded, tmp_path / "few", store_emptied_max=3).to_end()
    assert 0 < few["emptied"] <= 3 * 16 * 14 * few["rounds"]
    large = {"round_rows_max": 2_000}
    every = run_over(bench, recorded, tmp_path / "every", **large).to_end()
    held = run_over(bench, recorded, tmp_path / "held", store_emptied_max=1, **large).to_end()
    assert 0 < held["emptied"] < every["emptied"], "the bound holds some back"
    names = sorted(last := {k: v[-1] for k, v in times_of(recorded, ("payment", "card")).items()})
    told = stored(tmp_path / "held", ("payment", "card"), names)
    assert (told.time_us > [last[name] for name in names]).any(), "and others have been told"
    report = run_over(bench, recorded, tmp_path / "off", store_emptied_max=0).to_end()
    assert report["emptied"] == 0
    times = times_of(recorded, ("payment", "card"))
    rows = stored(tmp_path / "off", ("payment", "card"), list(times))
    assert rows.time_us.tolist() == [seen[-1] for seen in times.values()]
