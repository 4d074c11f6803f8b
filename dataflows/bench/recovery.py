"""`waxwing bench recovery`: how long after `kill -9` the flow is live again, at a stated rate.

The whole flow runs in a process of its own, is killed at a moment that no snapshot chooses, and is
started again. Events go on meanwhile: the simulator catches up with what was due, as a topic would
hold it. Live is the moment at which a round that no journal knew has been delivered less than a
second after its events were due, so the time holds imports, models, the state read and checked, the
rounds of the journal played again, and the backlog.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflows.bench.pipeline import LAG_MS_HELD, add_arguments, prepare, settings_of

if TYPE_CHECKING:
    from dataflows.context import Context
    from dataflows.settings import Settings

__all__ = ["add_parser", "run"]

LOOK_S = 0.1
"""How often the running flow says how far it is. Chosen."""

LIVE_S_MAX = 600.0
"""Longest wait for a flow to be live; a slower one cannot hold the rate at all. Chosen."""

LIVE_S_PROMISED = 30.0
"""What is promised of a restart at 50,000 events/s and 300,000 entities."""


def add_parser(subparsers: Any) -> None:
    """Declare the bench."""
    parser = subparsers.add_parser("recovery", help="kill -9 to live", description=__doc__)
    add_arguments(parser)
    parser.set_defaults(seconds=20.0)
    parser.add_argument("--kills", type=int, default=3, metavar="K", help="how often (3)")
    parser.add_argument("--seed", type=int, default=7, metavar="S", help="of the moments (7)")
    parser.add_argument("--watched", metavar="F", help=argparse.SUPPRESS)
    parser.add_argument("--fresh", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run it; `--watched` is the flow that is to be killed, which writes how far it is there."""
    from dataflows.report import write_json
    from features.errors import ConfigError

    if args.kills < 1:
        raise ConfigError(f"bench recovery: --kills {args.kills}: expected 1 or more")
    given = list(args.set)
    args.set = [*given, "sim_seconds=0", "sim_catch_up=true"]
    settings = settings_of(args)
    if args.watched:
        return _watched(args, settings)
    prepare(settings, args)
    rng = random.Random(args.seed)
    found = [_Flow(_command(args, given, settings.state_dir, fresh=True))]
    for left in reversed(range(args.kills)):
        found[-1].live_for(args.seconds + rng.uniform(0.0, 10.0))
        found[-1].end(signal.SIGKILL)
        found.append(_Flow(_command(args, given, settings.state_dir, fresh=False)))
        print(f"waxwing: live again, {left} kills to come", file=sys.stderr, flush=True)
    found[-1].end(signal.SIGTERM)
    report = _report(args, settings, [flow.figures for flow in found[1:]])
    if args.json != "-":
        _print(report)
    write_json(args.json, report)
    return 0


def _command(args: argparse.Namespace, given: list[str], state_dir: Path, fresh: bool) -> list[str]:
    """The command of the flow that is to be killed, and behind it its file."""
    from dataflows.cli.run import passed_on

    command = [sys.executable, "-m", "dataflows.cli.main", "bench", "recovery"]
    command += ["--rate", repr(args.rate), "--seconds", repr(args.seconds)]
    if args.cards:
        command += ["--cards", str(args.cards)]
    command += passed_on(args, given)
    if fresh:
        command.append("--fresh")
    return [*command, "--watched", str(state_dir.with_name("recovery.jsonl"))]


_STARTS = ("imports_cpu_s", "kernels_cpu_s", "state_cpu_s")
"""Parts of a start's CPU; what they leave of it is the store, the lanes, the flow put together."""


def _since(found: dict[str, float], line: dict[str, float]) -> float:
    """CPU since what is found already."""
    return round(line["cpu_s"] - found["start_cpu_s"] - found.get("replay_cpu_s", 0.0), 3)


class _Flow:
    """A flow in a process of its own, live when this returns.

    Attributes
    ----------
    figures : seconds from its start until it ran, had played the journal again, and was live, and
        the CPU of each; how many rounds it played again
    """

    def __init__(self, command: list[str]) -> None:
        self._file = Path(command[-1])
        self._file.unlink(missing_ok=True)
        self._begun = time.time()
        # The flow ends with us: it reads from a pipe whose end says that we are gone.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr)
        try:
            self.figures = self._until_live()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def _until_live(self) -> dict[str, float]:
        """Wait for it.

        Raises
        ------
        ConfigError : it ended, or was not live in `LIVE_S_MAX`
        """
        from features.errors import ConfigError

        found: dict[str, float] = {}
        for line in self._lines(LIVE_S_MAX):
            after_s = round(line["wall_s"] - self._begun, 3)
            found.setdefault("start_s", after_s)
            found.setdefault("start_cpu_s", line["cpu_s"])
            for name in _STARTS:
                found.setdefault(name, line[name])
            found["replayed_rounds"] = line["replayed"]
            if line["lag_ms"] > 0.0:
                found.setdefault("replay_s", after_s)
                found.setdefault("replay_cpu_s", _since(found, line))
                if line["lag_ms"] <= LAG_MS_HELD:
                    found["seconds_to_live"] = after_s
                    found["catch_up_cpu_s"] = _since(found, line)
                    return found
        raise ConfigError(
            f"bench recovery: the flow was not live within {LIVE_S_MAX:.0f} s; this machine cannot"
            " hold the rate, give a lower --rate"
        )

    def _lines(self, limit_s: float) -> Iterator[dict[str, float]]:
        """What the flow says of itself, as it comes, for so long."""
        from features.errors import ConfigError

        read, until = 0, time.monotonic() + limit_s
        while time.monotonic() < until:
            text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
            for line in text[read : text.rfind("\n") + 1].splitlines():
                yield json.loads(line)
            read = text.rfind("\n") + 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(LOOK_S)
                raise ConfigError(f"bench recovery: the flow ended with status {status}; see above")

    def live_for(self, seconds: float) -> None:
        """Let it run."""
        for _ in self._lines(seconds):
            pass

    def end(self, how: int) -> None:
        """End it by a signal."""
        self._process.send_signal(how)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def _watched(args: argparse.Namespace, settings: Settings) -> int:
    """The flow itself, which says how far it is."""
    from dataflows.observe.telemetry import Telemetry
    from dataflows.runner import run_flow, usage
    from dataflows.state.own import clear_own_state
    from dataflows.worker import end_with_parent

    threading.Thread(target=end_with_parent, name="waxwing-parent", daemon=True).start()
    imports_cpu_s = usage()["cpu_s"]
    if args.fresh:
        clear_own_state(settings.state_dir)
    with Path(args.watched).open("w", encoding="utf-8") as file:

        def watch(context: Context) -> None:
            told = context.telemetry
            line = {
                "wall_s": time.time(),
                "replayed": told.replayed_rounds,
                "lag_ms": told.lag_ms_last,
                "cpu_s": usage()["cpu_s"],
                "imports_cpu_s": imports_cpu_s,
                **{f"{name}_cpu_s": round(s, 3) for name, s in told.start_cpu_s.items()},
            }
            file.write(json.dumps(line) + "\n")
            file.flush()

        run_flow(settings, Telemetry(), watch, LOOK_S)
    return 0


def _report(
    args: argparse.Namespace, settings: Settings, restarts: list[dict[str, float]]
) -> dict[str, Any]:
    """The figures, in the keys of docs/json.md."""
    live_s = [restart["seconds_to_live"] for restart in restarts]
    return {
        "rate": args.rate,
        "entities": _entities(settings),
        "restarts": restarts,
        "seconds_to_live": {"median": statistics.median(live_s), "max": max(live_s)},
        "held": bool(max(live_s) <= LIVE_S_PROMISED),
    }


def _entities(settings: Settings) -> int:
    """Live entities of the state that the last flow left."""
    from dataflows.state.deltas import ShardStore
    from dataflows.state.manifest import read_manifest
    from features.catalog import catalog
    from features.engine import GroupEngine

    manifest, total = read_manifest(settings.state_dir), 0
    for group in range(settings.groups):
        store = ShardStore(settings.state_dir / "deltas" / f"g{group:03d}", settings.deltas_max)
        base, deltas, _ = store.load(0 if manifest is None else manifest.round)
        if base is not None:
            late_s, ttl_h = settings.late_s, settings.entity_ttl_h
            engine = GroupEngine.restore(catalog(), group, base, deltas, late_s, ttl_h)
            total += sum(engine.entities.values())
    return total


def _print(report: dict[str, Any]) -> None:
    """The figures for a person."""
    live = report["seconds_to_live"]
    held = "kept" if report["held"] else "NOT kept"
    print(
        f"kill -9 at {report['rate']:,.0f} events/s and {report['entities']:,} entities: live after"
        f" {live['median']:.1f} s (median), {live['max']:.1f} s (longest); {LIVE_S_PROMISED:.0f} s"
        f" {held}"
    )
    for restart in report["restarts"]:
        again, cpu_s = restart["replayed_rounds"], restart["start_cpu_s"]
        parts = ", ".join(f"{name.split('_')[0]} {restart[name]:.1f}" for name in _STARTS)
        print(
            f"  ran after {restart['start_s']:.1f} s ({cpu_s:.1f} of CPU: {parts}), first new round"
            f" after {restart['replay_s']:.1f} s ({again:.0f} of the journal before it,"
            f" {restart['replay_cpu_s']:.1f} of CPU), live after {restart['seconds_to_live']:.1f} s"
            f" ({restart['catch_up_cpu_s']:.1f} of CPU)"
        )
