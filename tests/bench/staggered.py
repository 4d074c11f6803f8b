"""Whether processes that start apart hold each other up: `python -m tests.bench.staggered`.

Payments and logins are sent to a real broker at a stated rate; two lanes or more read them, each
polled by some process of a cluster. Process number k goes on `delay` seconds later than k - 1, once
all have met: it is there that Bytewax begins the epochs of a source. An event's latency counts from
its message's timestamp to the acknowledged alert, and from five seconds after the start on.
`--epoch` gives epochs of another length than a round, which is what the flow would be without
`-s 0`. Delays are tried in turns, so that the machine's other work falls on each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.flow.harness import Bench, environment, train_bench
from tests.service.servers import Kafka

TYPES = ("payment", "login")
WARM_S = 5.0
"""Left out at the beginning: the first rounds are those of a consumer that joins. Chosen."""
READY_S = 120.0


def child(argv: Sequence[str]) -> int:
    """One process of the cluster; its report goes to a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-i", type=int)
    parser.add_argument("-a")
    parser.add_argument("--delay", type=float)
    parser.add_argument("--epoch", type=float)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args(argv)

    from dataflows import runner
    from dataflows.observe.telemetry import LatencyHistogram, Telemetry
    from dataflows.settings import load
    from dataflows.sources.rounds import RoundSource

    build = RoundSource.build_part
    begun: list[float] = []

    def late(self: Any, step_id: str, for_part: str, resume_state: Any) -> Any:
        if not begun:
            time.sleep(args.delay * args.i)
            begun.append(time.time())
        return build(self, step_id, for_part, resume_state)

    RoundSource.build_part = late  # type: ignore[method-assign]
    plain = runner.cli_main
    runner.cli_main = lambda flow, **how: plain(  # type: ignore[attr-defined]
        flow, **{**how, "epoch_interval": timedelta(seconds=args.epoch)}
    )

    class Late(LatencyHistogram):
        """Takes nothing in until the start is over."""

        def add(self, latency_ns: Any) -> None:
            if begun and time.time() > begun[0] + WARM_S:
                super().add(latency_ns)

    telemetry = Telemetry()
    telemetry.event_latency = Late()
    settings = load(None, {}, **json.loads((args.folder / "settings.json").read_text()))
    ready = args.folder / f"ready-{args.i}"
    peers = runner.Peers(args.i, args.a.split(";"), ready.touch, lambda fault: os._exit(2))
    runner.run_flow(settings, telemetry, peers=peers)
    report = telemetry.report() | {"begun_s": begun[0] if begun else None}
    (args.folder / f"report-{args.i}.json").write_text(json.dumps(report, default=float))
    return 0


def measure(
    kafka: Kafka, bench: Bench, folder: Path, workers: int, delay: float, args: argparse.Namespace
) -> dict[str, float]:
    """Latency of one run."""
    folder.mkdir(parents=True)
    prefix = f"{folder.name}."
    for topic in ("payments", "logins"):
        kafka.create_topic(f"{prefix}{topic}", 8)
    given: dict[str, Any] = {
        "source": "kafka", "kafka_brokers": kafka.brokers, "kafka_format": "json",
        "kafka_topic_prefix": prefix, "kafka_group": f"{prefix}group", "event_types": list(TYPES),
        "lanes": max(args.lanes, workers), "state_dir": str(folder / "state"), "store": "off",
        "bundle": bench.settings["bundle"], "warm_state": "cold", "alerts": ["jsonl"],
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(given))
    flow = _start_flow(folder, workers, delay, args.epoch)
    _wait(lambda: all((folder / f"ready-{i}").exists() for i in range(workers)), flow)
    time.sleep(2.0 + delay * workers)
    send = subprocess.run(
        [
            sys.executable, "-m", "dataflows.cli.main", "simulate", "--to", "kafka", "--start",
            "now", "--speed", "1", "--seconds", str(args.seconds + WARM_S), "--events-per-s",
            str(args.rate), "--event-types", ",".join(TYPES), "--cards", "2000",
            *(f"--set={n}={v}" for n, v in given.items() if n.startswith("kafka")),
        ],
        env=environment({}), check=False, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    for one in flow:
        one.terminate()
    ended = [one.wait() for one in flow]
    if send.returncode or any(ended):
        raise SystemExit(f"simulate ended with {send.returncode}, the flow with {ended}")
    reports = [json.loads((folder / f"report-{i}.json").read_text()) for i in range(workers)]
    report = max(reports, key=lambda one: one["rounds"])
    return {"in": report["in"], "rounds": report["rounds"], **report["event_latency_ms"]}


def _start_flow(
    folder: Path, workers: int, delay: float, epoch: float
) -> list[subprocess.Popen[bytes]]:
    """The processes of a cluster."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(workers)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        addresses = ";".join(f"127.0.0.1:{one.getsockname()[1]}" for one in sockets)
    command = [sys.executable, "-m", "tests.bench.staggered", "child", "-a", addresses]
    command += ["--delay", str(delay), "--epoch", str(epoch), "--folder", str(folder)]
    return [
        subprocess.Popen([*command, "-i", str(i)], env=environment({}), stdout=subprocess.DEVNULL)
        for i in range(workers)
    ]


def _wait(holds: Any, flow: list[subprocess.Popen[bytes]]) -> None:
    """Wait until something holds."""
    give_up = time.monotonic() + READY_S
    while not holds():
        if time.monotonic() > give_up or any(one.poll() is not None for one in flow):
            for one in flow:
                one.kill()
            raise SystemExit("the processes did not meet")
        time.sleep(0.1)


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--workers", default="2,4", help="numbers of processes (2,4)")
    add("--delays", default="0,0.4", help="seconds between two starts (0,0.4)")
    add("--epoch", type=float, default=0.0, help="length of an epoch, s; 0 is a round (0)")
    add("--rate", type=float, default=500.0, help="events/s (500)")
    add("--seconds", type=float, default=20.0, help="of each run (20)")
    add("--lanes", type=int, default=2, help="at least; a lane a process (2)")
    add("--turns", type=int, default=2, help="how often each (2)")
    add("--bench", type=Path, help="folder with a trained bundle; else one is trained")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="waxwing-staggered-") as text, Kafka() as kafka:
        if args.bench is None:
            (Path(text) / "bench").mkdir()
            bench = train_bench(Path(text) / "bench")
        else:
            bench = Bench(args.bench, {"bundle": str(args.bench / "bundle")})
        for turn in range(args.turns):
            for workers in (int(n) for n in args.workers.split(",")):
                for delay in (float(s) for s in args.delays.split(",")):
                    folder = Path(text) / f"w{workers}-d{delay:g}-t{turn}"
                    found = measure(kafka, bench, folder, workers, delay, args)
                    row = {"workers": workers, "delay_s": delay, "epoch_s": args.epoch, **found}
                    print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(child(sys.argv[2:]) if sys.argv[1:2] == ["child"] else main())
