"""Runs waxwing as a user does, as a process of its own, and reads what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataflows.settings import load
from dataflows.sources.simulator import make_simulator, time_us_of
from models.detectors import detector, detector_names

__all__ = [
    "TIMEOUT_S",
    "Bench",
    "Run",
    "alerts_of",
    "call",
    "command",
    "counts_of",
    "environment",
    "running",
    "simulated_counts",
    "start",
    "train_bench",
    "trained_detectors",
    "without_clock",
]

TIMEOUT_S = 600.0
"""Longest run of a command, and longest wait for what a flow is bound to do. Chosen: it ends what
hangs, and nothing else: many times what the slowest takes on two busy cores."""


WORLD = {
    "sim_cards": "1500",
    "sim_events_per_s": "2.0",
    "sim_anomaly_share": "0.01",
    "sim_start": "2026-03-02T00:00:00Z",
}
"""A small world with ten times the usual attacks: an hour has alerts of every event type."""


def environment(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment without settings, with `extra`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WAXWING_")}
    return kept | {"PYTHONUNBUFFERED": "1"} | extra


def command(arguments: Sequence[str]) -> list[str]:
    """`waxwing ...`; with a part of it broken where the first argument is PART=WHAT."""
    if "=" in arguments[0]:
        return [sys.executable, str(Path(__file__).with_name("broken.py")), *arguments]
    return [sys.executable, "-m", "dataflows.cli.main", *arguments]


def call(*arguments: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `waxwing ...` to its end."""
    return subprocess.run(
        command(arguments),
        cwd=cwd,
        env=environment(extra),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def start(*arguments: str, cwd: Path, **extra: str) -> subprocess.Popen[str]:
    """Start `waxwing ...` and come back at once."""
    return subprocess.Popen(
        command(arguments),
        cwd=cwd,
        env=environment(extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextlib.contextmanager
def running(*arguments: str, cwd: Path, **extra: str) -> Iterator[subprocess.Popen[str]]:
    """`waxwing ...` while the block lasts; killed at its end where it still runs."""
    process = start(*arguments, cwd=cwd, **extra)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def alerts_of(state_dir: Path) -> list[dict[str, Any]]:
    """The alert log, line by line; without a last one that is being written."""
    path = state_dir / "alerts.jsonl"
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines]


def without_clock(alerts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Alerts by id, without what says when and in which round they were found."""
    told = ("cut_time_us", "round")
    kept = [{k: v for k, v in alert.items() if k not in told} for alert in alerts]
    return sorted(kept, key=lambda alert: str(alert["id"]))


def counts_of(report: dict[str, Any]) -> dict[str, int]:
    """Where every event of a run went."""
    names = ("in", "scored", "duplicates", "dead_lettered", "pending")
    return {name: report[name] for name in names}


def simulated_counts(given: Mapping[str, Any]) -> dict[str, int]:
    """`counts_of` a run over the simulator with these `sim_*` settings: the ids it sends, counted.

    Nothing of the flow has a part in it.
    """
    settings = load(None, {}, **{k: v for k, v in given.items() if k.startswith("sim_")})
    start_us = time_us_of(settings.sim_start)
    end_us = start_us + round(settings.sim_seconds * settings.sim_speed * 1e6)
    batches = make_simulator(settings).span(start_us, end_us).values()
    sent = sum(len(batch) for batch in batches)
    different = sum(batch.frame["event_id"].n_unique() for batch in batches)
    repeats = {"duplicates": sent - different, "dead_lettered": 0, "pending": 0}
    return {"in": sent, "scored": different, **repeats}


def wait_for(
    condition: Any, what: str, process: subprocess.Popen[str], limit_s: float = TIMEOUT_S
) -> None:
    """Wait until `condition()`; AssertionError where the process ends or the time is over."""
    give_up = time.monotonic() + limit_s
    while not condition():
        if process.poll() is not None:
            if condition():  # it has come to pass since it was asked for, and before the end
                return
            out = process.stdout.read() if process.stdout else ""
            raise AssertionError(f"ended with {process.returncode} before {what}: {out}")
        if time.monotonic() > give_up:
            process.kill()
            raise AssertionError(f"{limit_s:.0f} s passed before {what}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)


@dataclass(slots=True)
class Bench:
    """Models and warm state trained once for all flow tests, and the settings they go with."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)

    def sets(self, **more: Any) -> list[str]:
        """`--set` options of the shared settings and `more`."""
        merged = self.settings | {k: str(v) for k, v in more.items()}
        return [part for name, value in merged.items() for part in ("--set", f"{name}={value}")]


def train_bench(folder: Path) -> Bench:
    """A bundle trained on two simulated days by the command a user runs, and what goes with it."""
    made = Bench(
        folder,
        WORLD
        | {
            "bundle": str(folder / "bundle"),
            "warm_state": str(folder / "warm"),
            "alerts": "jsonl",
            "store": "off",
            "sim_paced": "false",
            # However busy the machine: no vote is missing but where a test is about that.
            "detector_timeout_s": "0",
        },
    )
    sets = [part for name, value in WORLD.items() for part in ("--set", f"{name}={value}")]
    done = call(
        "train", "--days", "2", *sets, "--set", f"bundle={folder / 'bundle'}",
        "--json", "train.json", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return made


def trained_detectors() -> set[str]:
    """Names of the detectors in the bundle of `train_bench`: those of the settings, and those that
    stand in where there is too little to learn from."""
    stand_in = {n for n in detector_names() if getattr(detector(n), "fallback", False)}
    return {*load(None, {}).detectors} | stand_in


@dataclass(slots=True)
class Run:
    """One run of `waxwing run` in a state folder of its own."""

    bench: Bench
    state_dir: Path
    more: dict[str, Any] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    broken: str = ""
    """PART=WHAT of `tests.flow.broken`; empty: nothing is broken."""

    def command(self, *broken: str) -> list[str]:
        """The command and its options, with further parts broken."""
        parts = [part for part in (self.broken, *broken) if part]
        return [*([",".join(parts)] if parts else []), "run", *self.options()]

    def options(self) -> list[str]:
        """What stands behind `waxwing run`."""
        return [*self.bench.sets(state_dir=self.state_dir, **self.more), *self.arguments]

    def to_end(self, **extra: str) -> dict[str, Any]:
        """Run until the source ends; the report."""
        done = call(*self.command(), "--json", "-", cwd=self.bench.folder, **extra)
        assert done.returncode == 0, done.stderr + done.stdout
        report: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        return report

    def until(self, condition: Any, how: int = signal.SIGKILL, hold: int = 0) -> int:
        """Start, wait for `condition()`, end it by a signal; the exit status.

        Where a round to `hold` is given, the source has nothing after it: as much is left to do as
        the test needs, however late the signal comes.
        """
        held = [f"source_holds={hold}"] if hold else []
        with running(*self.command(*held), cwd=self.bench.folder) as process:
            wait_for(condition, "the moment to stop it", process)
            process.send_signal(how)
            out, _ = process.communicate(timeout=TIMEOUT_S)
        assert how == signal.SIGKILL or process.returncode == 0, out
        return int(process.returncode)

    def alerts(self) -> list[dict[str, Any]]:
        """Its alert log."""
        return alerts_of(self.state_dir)
