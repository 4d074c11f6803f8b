"""Latency of a flow whose two processes start at different moments, over a real broker.

    python -m tests.bench.workers_apart --rate 1000 --seconds 20 --set bundle=.waxwing/bundle

Events at an even pace into topics of 32 partitions, two lanes. In turn: one process, two started
together, two started 400 ms apart, each `--turns` times. Bytewax closes epochs in each process by a
timer of its own, and a process does not read on while an epoch is open anywhere: what such timers
cost when they do not agree would be seen here, were an epoch not a round.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from dataflows.state.manifest import read_manifest
from dataflows.supervisor import Supervisor
from features.events import event_type
from tests.service.servers import Kafka, Registry

TYPES = ("payment", "login", "metric", "app_log")

FORMS = (("one process", 1, 0.0), ("two, together", 2, 0.0), ("two, 400 ms apart", 2, 0.4))


def measured(
    kafka: Kafka, registry: Registry, args: argparse.Namespace, form: tuple[str, int, float]
) -> dict[str, Any]:
    """One run of a form; latency of all events, and how many came."""
    name, workers, apart_s = form
    prefix = f"apart-{time.time_ns()}-"
    for event in TYPES:
        kafka.create_topic(prefix + event_type(event).topic)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        given = {
            "source": "kafka", "lanes": 2, "kafka_brokers": kafka.brokers, "alerts": "jsonl",
            "kafka_registry_url": registry.url, "kafka_topic_prefix": prefix, "store": "off",
            "state_dir": state, "warm_state": "cold", "snapshot_rounds": 50,
        }  # fmt: skip
        sets = [p for k, v in given.items() for p in ("--set", f"{k}={v}")]
        sets += [p for item in args.set for p in ("--set", item)]
        sender = threading.Thread(target=send, args=(args, sets, state), daemon=True)
        sender.start()
        found = Supervisor(sets, workers, state, print, apart_s=apart_s).run()
        sender.join()
    return {"form": name, "in": found["in"]} | found["event_latency_ms"]


def send(args: argparse.Namespace, sets: list[str], state: Path) -> None:
    """Send events once the flow has written a manifest of its own, then stop it."""
    while (manifest := read_manifest(state) if state.exists() else None) is None or (
        manifest.round == 0
    ):
        time.sleep(0.1)
    command = [sys.executable, "-m", "dataflows.cli.main", "simulate", "--to", "kafka"]
    command += ["--start", "now", "--seconds", str(args.seconds), "--speed", "1"]
    command += ["--events-per-s", str(args.rate), *sets]
    subprocess.run(command, check=True, stdout=sys.stderr)
    time.sleep(3.0)  # what was sent last comes through
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    with Kafka() as kafka, Registry() as registry:
        for _ in range(args.turns):
            for form in FORMS:
                print(json.dumps(measured(kafka, registry, args, form)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
