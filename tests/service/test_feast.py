"""Feast on what the flow writes: `feast apply` on a fresh clone, then the values read back.

Once with rows given to the writer, and once with the flow run over recorded events, where Feast has
to find what the features of the last event of every entity are by another way.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import redis

from dataflows.settings import Settings
from dataflows.store import store_url
from dataflows.store.layout import layouts, service_name
from dataflows.store.rows import WINDOWS, split_emptied
from dataflows.store.writer import StoreWriter
from features.batch import EventBatch, FeatureMatrix
from features.catalog import catalog
from features.emptied import timed_names
from features.engine import OfflineEngine
from features.events import event_type
from features.keys import hash_strings
from tests.flow.harness import Bench, Run, call
from tests.service.servers import Redis

ROOT = Path(__file__).resolve().parents[2]
STORED = tuple(dict.fromkeys(event for event, _ in layouts(catalog())))
"""Event types with features of an entity: an absence has none of its own."""

WAIT_S = 300.0
APPLY_S_MAX = 600.0
"""Longest `feast apply`; it takes 5 s of imports and some of work, on a busy machine a multiple."""


@pytest.fixture(scope="module")
def feature_repo(tmp_path_factory: pytest.TempPathFactory, redis_server: Redis) -> Iterator[Path]:
    """A copy of feature_repo, applied as a user would."""
    folder = tmp_path_factory.mktemp("clone") / "feature_repo"
    shutil.copytree(ROOT / "feature_repo", folder, ignore=shutil.ignore_patterns("__pycache__"))
    feast = Path(sys.executable).with_name("feast")
    done = subprocess.run(
        [str(feast), "apply"],
        cwd=folder,
        env={**os.environ, "WAXWING_REDIS_URL": redis_server.url},
        capture_output=True,
        text=True,
        timeout=APPLY_S_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "payment_card_v1" in done.stdout and "WARNING" not in done.stderr
    yield folder


@pytest.fixture(scope="module")
def feast_store(feature_repo: Path, redis_server: Redis) -> Any:
    """Feast's store over that registry."""
    from feast import FeatureStore

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAXWING_REDIS_URL", redis_server.url)
        return FeatureStore(repo_path=str(feature_repo))


def online(store: Any, features: Any, rows: list[dict[str, str]]) -> dict[str, list[Any]]:
    """What Feast finds, by name of feature or entity."""
    found: dict[str, list[Any]]
    found = store.get_online_features(features=features, entity_rows=rows).to_dict()
    return found


def test_every_view_of_the_catalogue_is_registered_with_its_features(feast_store: Any) -> None:
    views = {view.name: view for view in feast_store.list_feature_views()}
    for layout in layouts(catalog()).values():
        assert [f.name for f in views[layout.name].features] == list(layout.features)
        assert views[layout.name].join_keys == [layout.entity]
    assert len(views) == len(layouts(catalog()))
    services = {service.name for service in feast_store.list_feature_services()}
    assert services == {service_name(event) for event in STORED}


@pytest.mark.parametrize("event", STORED)
def test_feast_reads_exactly_what_the_writer_was_given(
    event: str, feast_store: Any, redis_server: Redis, tmp_path: Path, rng: np.random.Generator
) -> None:
    settings = Settings(state_dir=tmp_path, store="redis", redis_url=redis_server.url)
    writer = StoreWriter(settings, catalog())
    entities = list(event_type(event).entities)
    names = [f"{event}|{i}" for i in range(7)]
    expected: dict[str, list[float | None]] = {}
    for entity in entities:
        layout = layouts(catalog())[event, entity]
        # A row that is replaced before it is flushed, and then the one that must be found.
        for time_us in (1_000_000, 2_000_001):
            rows = rng.normal(size=(len(names), len(layout.features)))
            rows[rng.random(rows.shape) < 0.3] = np.nan
            times = np.full(len(names), time_us)
            flags = np.arange(len(names)) % 2 == 0
            writer.put((event, entity), pl.Series(names), rows, times, 1, flags)
        for j, feature in enumerate(layout.features):
            expected[feature] = [None if np.isnan(v) else v for v in rows[:, j].tolist()]
    assert writer.flush(WAIT_S)
    writer.close()
    asked = [dict.fromkeys(entities, name) for name in [*names, "nobody"]]
    found = online(feast_store, feast_store.get_feature_service(service_name(event)), asked)
    for feature, values in expected.items():
        assert found[feature] == [*values, None], feature
    assert set(found) == {*expected, *entities}


def test_feast_reads_features_by_name_and_says_when_they_were(
    feast_store: Any, redis_server: Redis, tmp_path: Path
) -> None:
    layout = layouts(catalog())["payment", "card"]
    settings = Settings(state_dir=tmp_path, store="redis", redis_url=redis_server.url)
    writer = StoreWriter(settings, catalog())
    rows = np.arange(1.0 * len(layout.features))[None, :]
    time_us = np.array([1_772_409_600_123_456])
    writer.put(("payment", "card"), pl.Series(["when"]), rows, time_us, 1, np.ones(1, np.bool_))
    assert writer.flush(WAIT_S)
    writer.close()
    wanted = [f"{layout.name}:{layout.features[2]}"]
    asked = [{"card": "when"}, {"card": "nobody"}]
    response = feast_store.get_online_features(features=wanted, entity_rows=asked)
    assert response.to_dict() == {"card": ["when", "nobody"], layout.features[2]: [2.0, None]}
    # The time is what tells an entity that is not there from one whose feature has no value.
    stamps = response.proto.results[-1].event_timestamps
    assert [s.seconds * 1_000_000 + s.nanos // 1_000 for s in stamps] == [time_us[0], 0]


def test_feast_reads_windows_that_have_run_empty(
    feast_store: Any, redis_server: Redis, tmp_path: Path
) -> None:
    view = ("payment", "device")
    names, timed = layouts(catalog())[view].features, timed_names(catalog(), *view)
    settings = Settings(state_dir=tmp_path, store="redis", redis_url=redis_server.url)
    keys, time_us = pl.Series(["quiet", "quieter"]), np.array([1_000_000, 1_000_000])
    first = StoreWriter(settings, catalog())
    first.put(view, keys, np.full((2, len(names)), 5.0), time_us, 1, np.zeros(2, np.bool_))
    assert first.flush(WAIT_S)
    first.close()
    # The one that has the news knows no names: it is another process.
    writer = StoreWriter(settings, catalog())
    ids = hash_strings(pl.Series(["quiet", "never seen"])).view(np.int64)
    values = np.zeros((2, len(timed)))
    values[:, 0] = np.nan
    told = split_emptied(ids, time_us + 300_000_000, values, 1)[0]
    writer.put_round(2, [{(*view, WINDOWS): told}])
    assert writer.flush(WAIT_S)
    stats = writer.stats()
    writer.close()
    assert (stats.written, stats.emptied, stats.unknown) == (1, 1, 1)
    response = feast_store.get_online_features(
        features=[f"payment_device_v1:{name}" for name in names],
        entity_rows=[{"device": name} for name in ("quiet", "quieter", "never seen")],
    )
    found = response.to_dict()
    for name in names:
        now = None if name == timed[0] else 0.0 if name in timed else 5.0
        assert found[name] == [now, 5.0, None], name
    stamps = response.proto.results[-1].event_timestamps
    assert [s.seconds for s in stamps] == [301, 1, 0]


def in_files(folder: Path, event: str) -> pl.DataFrame:
    """The events of a type, each id once, in their order."""
    frame = pl.read_parquet(folder / f"{event}.parquet")
    return frame.unique("event_id", keep="first", maintain_order=True)


def last_rows(
    folder: Path, event: str, entity: str, features: FeatureMatrix
) -> dict[str, tuple[int, list[float]]]:
    """Entity -> (time in us, features of its view) of its last event."""
    columns = [features.names.index(name) for name in layouts(catalog())[event, entity].features]
    frame = in_files(folder, event)
    parts = [frame[column].to_list() for column in event_type(event).entities[entity]]
    found = {}
    for row, (time_us, *key) in enumerate(zip(frame["time_us"].to_list(), *parts, strict=True)):
        if all(key):
            found["|".join(key)] = (time_us, features.values[row, columns].tolist())
    return found


@pytest.fixture(scope="module")
def recorded(bench: Bench, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hours of events in files, after `waxwing run` has read them and written the store."""
    folder = tmp_path_factory.mktemp("recorded")
    world = bench.sets(sim_repeat_share=0.02)
    made = call("simulate", "--out", "files", "--hours", "2", *world, cwd=folder)
    assert made.returncode == 0, made.stderr
    cold = {k: v for k, v in bench.settings.items() if k != "warm_state"}
    # Of each entity what its last event was scored with: no window runs empty after it.
    store = {"store": "redis", "redis_url": redis_server.url, "round_rows_max": 500}
    store["store_emptied_max"] = 0
    run = Run(Bench(folder, cold), folder / "state", store, ("--data", str(folder / "files")))
    report = run.to_end()
    assert report["in"] > 14_000 and report["dead_lettered"] == 0
    return folder / "files"


@pytest.fixture(scope="module")
def computed(recorded: Path) -> dict[str, FeatureMatrix]:
    """Features of the recorded events, from one process, one group and in one piece."""
    batches = {}
    for event in STORED:
        frame = in_files(recorded, event)
        zeros, rows = np.zeros(frame.height, np.int64), np.arange(frame.height)
        batches[event] = EventBatch(event, frame, zeros.astype(np.int32), rows, zeros)
    return OfflineEngine(catalog(), 1).process(batches)


@pytest.mark.parametrize(("event", "entity"), list(layouts(catalog())))
def test_feast_reads_the_values_that_the_flow_scored_last(
    event: str,
    entity: str,
    feast_store: Any,
    recorded: Path,
    computed: dict[str, FeatureMatrix],
    rng: np.random.Generator,
) -> None:
    layout = layouts(catalog())[event, entity]
    expected = last_rows(recorded, event, entity, computed[event])
    names = sorted(expected)
    names = [names[i] for i in rng.permutation(len(names))[:100]]
    assert len(names) >= (3 if entity == "service" else 15)
    response = feast_store.get_online_features(
        features=[f"{layout.name}:{feature}" for feature in layout.features],
        entity_rows=[{entity: name} for name in [*names, "nobody"]],
    )
    found = response.to_dict()
    for j, feature in enumerate(layout.features):
        values = [expected[name][1][j] for name in names]
        assert found[feature] == [*(None if np.isnan(v) else v for v in values), None], feature
    stamps = response.proto.results[-1].event_timestamps
    times = [s.seconds * 1_000_000 + s.nanos // 1_000 for s in stamps]
    assert times == [*(expected[name][0] for name in names), 0]


OWNER = """
import signal, sys, time
from pathlib import Path
from dataflows.store.embedded import EmbeddedRedis
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
server = EmbeddedRedis(Path(sys.argv[1]))
server.ensure()
print("up", flush=True)
time.sleep(600)
"""


def test_a_killed_flow_leaves_no_embedded_redis_behind_and_no_data_lost(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None and owner.stdout.readline() == b"up\n"
    client = redis.Redis.from_url(store_url(settings))
    client.set("kept", "so")
    server = int(client.info("server")["process_id"])  # type: ignore[index,arg-type]
    client.close()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + WAIT_S
    while Path(f"/proc/{server}").exists():
        assert time.monotonic() < deadline, "the server outlives the flow"
        time.sleep(0.02)
    writer = StoreWriter(settings, catalog())
    client = redis.Redis.from_url(store_url(settings))
    assert client.get("kept") == b"so"
    client.close()
    writer.close()
