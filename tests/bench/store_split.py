"""What the online store costs inside the flow, in CPU: its thread an event, the rest a row.

    python -m tests.bench.store_split --seconds 5 --rate 50000

Rounds of simulated events of all types with their real features, one a tenth of a second, go the
way they go in the flow: split into the newest row of each entity, put, written by the writer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import redis

from dataflows.settings import Settings
from dataflows.store import store_url
from dataflows.store.rows import Views, split_rows
from dataflows.store.writer import StoreWriter
from features.batch import EventBatch, FeatureMatrix
from features.catalog import Catalog, catalog
from features.engine import OfflineEngine
from features.simulate.simulator import Simulator
from tests.bench.store_speed import server_cpu_s

START_US = 1_772_409_600_000_000
ROUND_US = 100_000
SHARDS = 4

Round = tuple[dict[str, EventBatch], dict[str, FeatureMatrix]]


def made(cat: Catalog, seconds: float, rate: float, cards: int) -> list[Round]:
    """Rounds with their features."""
    world = Simulator(seed=7, start_us=START_US, events_per_s=rate, cards=cards)
    engine = OfflineEngine(cat, 16)
    rounds = []
    for i in range(int(seconds * 1_000_000 / ROUND_US)):
        span = world.span(START_US + i * ROUND_US, START_US + (i + 1) * ROUND_US)
        batches = {name: batch for name, batch in span.items() if len(batch)}
        rounds.append((batches, engine.process(batches)))
    return rounds


def queued_s() -> float:
    """Seconds this thread was ready and had no core, ever (Linux)."""
    words = Path("/proc/thread-self/schedstat").read_text(encoding="utf-8").split()
    return int(words[1]) / 1e9


def measured(cat: Catalog, rounds: list[Round], settings: Settings) -> dict[str, Any]:
    """Let the rounds through and say what it took."""
    columns: dict[str, dict[str, Any]] = {name: {} for name in cat.event_types}
    for (name, entity), features in cat.views().items():
        names = cat.names(name)
        columns[name][entity] = np.array([names.index(f.name) for f in features])
    rng = np.random.default_rng(1)
    writer = StoreWriter(settings, cat)
    client: Any = redis.Redis.from_url(store_url(settings))
    split_s = put_s = 0.0
    blocked_ms = []
    server_begun, own_begun, begun = server_cpu_s(client), time.process_time(), time.perf_counter()
    for i, (batches, features) in enumerate(rounds):
        time.sleep(max(0.0, begun + i * ROUND_US / 1e6 - time.perf_counter()))
        flagged = {name: rng.random(len(batch)) < 0.001 for name, batch in batches.items()}
        queued, clock, first = queued_s(), time.perf_counter(), time.thread_time()
        shards: list[Views] = [{} for _ in range(SHARDS)]
        for name, batch in batches.items():
            parts = split_rows(batch, features[name].values, columns[name], flagged[name], SHARDS)
            for shard, part in zip(shards, parts, strict=True):
                shard.update({(name, entity): rows for entity, rows in part.items()})
        then = time.thread_time()
        for shard in shards:
            writer.put_round(i + 1, [shard])
        last = time.thread_time()
        split_s, put_s = split_s + then - first, put_s + last - then
        # Neither at work nor in wait of a core: in wait of the GIL or the writer's lock.
        off_s = time.perf_counter() - clock - (last - first) - (queued_s() - queued)
        blocked_ms.append(max(0.0, off_s * 1e3))
    paced, wall_s = writer.stats(), time.perf_counter() - begun
    writer.flush(120.0)
    own_s = time.process_time() - own_begun - split_s - put_s
    server_s, stats = server_cpu_s(client) - server_begun, writer.stats()
    client.close()
    writer.close()
    events = sum(len(batch) for batches, _ in rounds for batch in batches.values())
    entities = sum(
        len(batches[name]) * len(columns[name]) for batches, _ in rounds for name in batches
    )
    return {
        "events": events,
        "split_us_per_event": round(split_s / events * 1e6, 2),
        "put_us_per_event": round(put_s / events * 1e6, 2),
        "blocked_ms_a_round_p50": round(float(np.quantile(blocked_ms, 0.5)), 2),
        "blocked_ms_a_round_p99": round(float(np.quantile(blocked_ms, 0.99)), 2),
        "entity_rows": entities,
        "rows_put": stats.put,
        "rows_written_per_s": round(paced.written / wall_s),
        "flushes_put_off": f"{paced.stretched} of {paced.flushes}",
        "writer_cpu_us_per_row_written": round(own_s / stats.written * 1e6, 2),
        "redis_cpu_us_per_row_written": round(server_s / stats.written * 1e6, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=50_000.0, help="events a second")
    parser.add_argument("--cards", type=int, default=100_000)
    args = parser.parse_args()
    cat = catalog()
    rounds = made(cat, args.seconds, args.rate, args.cards)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(cat, rounds, Settings(state_dir=Path(folder))), indent=1))


if __name__ == "__main__":
    main()
