"""Speed of the online store: rows written and what they cost here and in Redis, and reads.

    python -m tests.bench.store_speed --rows 400000 --entities 50000

Wall time on a shared machine says little; CPU time a row is what to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import redis

from dataflows.settings import Settings
from dataflows.store import store_url
from dataflows.store.feast_redis import feast_address
from dataflows.store.layout import PROJECT, layouts, service_name
from dataflows.store.reader import StoreReader
from dataflows.store.writer import StoreWriter
from features.catalog import catalog

VIEW = ("payment", "merchant")
PUT_ROWS = 2_000
START_US = 1_772_409_600_000_000
ROOT = Path(__file__).resolve().parents[2]


def server_cpu_s(client: Any) -> float:
    """CPU seconds of the Redis server."""
    found = client.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


def quantiles_ms(call: Any, times: int) -> dict[str, float]:
    """p50 and p99 of a call."""
    took = []
    for i in range(times):
        begun = time.perf_counter()
        call(i)
        took.append((time.perf_counter() - begun) * 1e3)
    return {"p50": round(float(np.quantile(took, 0.5)), 3),
            "p99": round(float(np.quantile(took, 0.99)), 3)}  # fmt: skip


def written(
    settings: Settings, rows: int, entities: int, per_s: int, start_us: int
) -> dict[str, Any]:
    """Put rows of one view, `per_s` a second (0: at once), until all is in Redis."""
    rng = np.random.default_rng(1)
    width = len(layouts(catalog())[VIEW].features)
    names = pl.Series([f"merchant_{i:06d}" for i in range(entities)])
    puts = [
        (
            names.gather(rng.integers(0, entities, PUT_ROWS)),
            rng.normal(size=(PUT_ROWS, width)),
            np.full(PUT_ROWS, start_us + i * 100_000),
            rng.random(PUT_ROWS) < 0.001,
        )
        for i in range(rows // PUT_ROWS)
    ]
    writer = StoreWriter(settings, catalog())
    client: Any = redis.Redis.from_url(store_url(settings))
    server_begun, own_begun, begun = server_cpu_s(client), time.process_time(), time.perf_counter()
    put_s = 0.0
    for i, (keys, values, time_us, urgent) in enumerate(puts):
        if per_s:
            time.sleep(max(0.0, begun + i * PUT_ROWS / per_s - time.perf_counter()))
        at = time.perf_counter()
        writer.put(VIEW, keys, values, time_us, i, urgent)
        put_s += time.perf_counter() - at
    writer.flush(120.0)
    wall_s, own_s = time.perf_counter() - begun, time.process_time() - own_begun
    stats = writer.stats()
    server_s = server_cpu_s(client) - server_begun
    memory = client.info("memory")["used_memory"]
    client.close()
    writer.close()
    return {
        "rows": stats.put,
        "features": width,
        "written": stats.written,
        "flushes": stats.flushes,
        "rows_written_per_s": round(stats.written / wall_s),
        "put_us_per_row": round(put_s / stats.put * 1e6, 3),
        "own_cpu_us_per_row_put": round(own_s / stats.put * 1e6, 2),
        "own_cpu_us_per_row_written": round(own_s / stats.written * 1e6, 2),
        "redis_cpu_us_per_row_written": round(server_s / stats.written * 1e6, 2),
        "redis_bytes_per_entity": round(memory / entities),
    }


def read(settings: Settings, times: int) -> dict[str, Any]:
    """Reads of one entity, by our reader and by Feast."""
    from feast import FeatureStore, RepoConfig

    url = store_url(settings)
    writer = StoreWriter(settings, catalog())
    reader = StoreReader(url, catalog())
    found = {"reader_ms": quantiles_ms(lambda i: reader.read(VIEW, [f"merchant_{i:06d}"]), times)}
    reader.close()
    sys.path.insert(0, str(ROOT / "feature_repo"))
    from feature_definitions import entities, project, services, views

    store = FeatureStore(
        config=RepoConfig(
            project=PROJECT,
            provider="local",
            registry=str(settings.state_dir / "registry.db"),
            online_store={"type": "redis", "connection_string": feast_address(url)},
            entity_key_serialization_version=3,
        )
    )
    store.apply([project, *entities.values(), *views.values(), *services.values()])
    service = store.get_feature_service(service_name("metric"))
    view = [f"{layouts(catalog())[VIEW].name}:{f}" for f in layouts(catalog())[VIEW].features]
    found["feast_view_ms"] = quantiles_ms(
        lambda i: store.get_online_features(view, [{"merchant": f"merchant_{i:06d}"}]), times
    )
    row = {"series": "h|cpu", "host": "h", "pool": "p|cpu"}
    found["feast_service_of_3_views_ms"] = quantiles_ms(
        lambda i: store.get_online_features(service, [row]), times
    )
    writer.close()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--entities", type=int, default=50_000)
    parser.add_argument("--rate", type=int, default=50_000, help="rows a second of the paced run")
    parser.add_argument("--reads", type=int, default=2_000)
    parser.add_argument("--redis-url", help="a Redis in place of the embedded one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"state_dir": Path(folder)}
        if args.redis_url:
            options |= {"store": "redis", "redis_url": args.redis_url}
        settings = Settings(**options)
        result: dict[str, Any] = {"cpus": os.cpu_count()}
        result["at_once"] = written(settings, args.rows, args.entities, 0, START_US)
        result["paced"] = written(settings, args.rows, args.entities, args.rate, START_US + 10**12)
        result |= read(settings, args.reads)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
