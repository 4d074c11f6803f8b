"""`waxwing bench features`: the feature engine alone, all payment features, one thread.

Events/s on one core once state is warm (split to groups, kernels, features back home), bytes of an
entity, the cost of an event from 10,000 to 1 million live entities, and how long the flow pauses
for a snapshot. `--against flink` runs Flink SQL's exact OVER windows on the same events in the same
run. Counted is CPU of the process, so that other work on the machine disturbs little; events are
simulated before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from features.operations import DISTINCT_MAX

if TYPE_CHECKING:
    from features.batch import EventBatch
    from features.catalog import Catalog

__all__ = ["Bench", "add_parser", "run"]

EVENT = "payment"

RATE = 50_000.0
"""Payments per second of event time: what the project promises to hold."""

ROUNDS = (5_000, 20_000)
"""Rows of a round: 100 ms at RATE, and at 200,000 events/s (the most a lane takes, see the setting
`round_rows_max`). The figure that counts is the last: only a loaded flow needs the speed."""

CARDS = 100_000
"""Live cards of the figure that counts, asked for by the issue."""

GROWTH_CARDS = (2_000, 25_000, 80_000, 350_000)
"""Cards of the growth curve; with their users, devices, addresses and merchants about 10,000,
100,000, 300,000 and 1 million entities are live once it is warm (counted in what is simulated,
2026-11-30). The third is the one whose snapshots are timed."""

SNAPSHOT_OF = 2
"""Point of the growth curve whose snapshots are timed."""

WARM_S = 80.0
WARM_PER_CARD = 10
"""Event time, and events a card, before the clock starts. Nine in ten cards have paid by then, and
the log of rows that late ones would change (`late_s`, 60 s) is as long as it gets."""

EVENTS = 3_000_000
"""Events measured of the figure that counts: a minute of event time. Each entity has a checkpoint
taken once in `late_s`: a shorter stretch has all of them in it, or none."""

GROWTH_EVENTS = 400_000
"""Events measured of each point of the growth curve, all at the same age of their checkpoints."""

SNAPSHOT_ROUNDS = 100
"""Rounds of the smaller size between two snapshots, as the setting `snapshot_rounds`."""

FEW = 2_000
"""Rows that come again and again in the counter-test: their state fits into a processor's
caches."""

FLINK_EVENTS = 200_000
"""Events Flink gets, twice; chosen: about half a minute."""

WINDOWS_S = {"1m": 60, "5m": 300, "1h": 3_600}
"""What Flink is asked for, and ours beside it."""

CHECK_SLOWER = 1_000
"""By so much Flink's events are drawn out in time where its results are held against ours: four
seconds become more than an hour, so that all windows lose what leaves them. Times are then whole
milliseconds, which is all that Flink's have."""

SUM_ERROR_MAX = 1e-9
"""Largest relative difference of a sum; counts must be the same."""

GOALS: Mapping[str, tuple[str, float]] = {
    "events_per_s_per_core": ("at least", 200_000.0),
    "features": ("at least", 40.0),
    "growth_ratio": ("at most", 2.0),
    "snapshot_pause_ms_max": ("at most", 100.0),
    "ratio.flink": ("at least", 20.0),
}
"""Figure -> what is asked of it, on a machine like those it was measured on."""

FLINK = Path(".waxwing/bench/flink")
"""Environment of Flink, which pins old packages."""

FLINK_TIMEOUT_S = 900.0
"""Longest wait for Flink; a machine ten times slower than ours needs it."""

PEER = Path(__file__).resolve().parents[2] / "tests" / "bench" / "peers" / "flink.py"
"""The peer's program: part of the repository, not of the installed package."""


def add_parser(subparsers: Any) -> None:
    """Declare the bench."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser("features", help="events/s of features", description=__doc__)
    settings_arguments(parser)
    add = parser.add_argument
    add("--cards", type=int, default=CARDS, metavar="N", help=f"live cards ({CARDS})")
    add("--events", type=int, default=EVENTS, metavar="N", help=f"events measured ({EVENTS})")
    add(
        "--growth", default=",".join(map(str, GROWTH_CARDS)), metavar="N,...",
        help="cards of the growth curve; empty for none; snapshots are timed at the third"
    )  # fmt: skip
    add("--groups", type=int, default=16, metavar="N", help="shard groups (16)")
    add("--against", choices=("flink",), help="a peer to run on the same events")
    add(
        "--flink-python", type=Path, default=FLINK / "bin" / "python", metavar="P",
        help=f"python of an environment with apache-flink ({FLINK}/bin/python)"
    )  # fmt: skip
    add("--json", metavar="P", help="write the figures; - is stdout")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.cli.run import overrides_of
    from dataflows.report import check_json, write_json
    from dataflows.settings import load

    growth = _check(args)
    check_json(args.json)
    load(args.config, **overrides_of(args))  # Which features there are; nothing else matters here.
    out = sys.stderr if args.json == "-" else sys.stdout

    def say(text: str) -> None:
        print(f"waxwing: {text}", file=out, flush=True)

    report = measure(args.cards, growth, args.events, args.groups, say)
    if args.against == "flink":
        say("Flink: three windows of count and sum by card, the same events")
        flink = _flink(args.flink_python, args.cards, args.groups)
        same = same_windows(args.cards, args.events, args.groups)
        report["flink"] = flink | {"same_windows_events_per_s_per_core": same}
        report["ratio"] = {
            "flink": round(same / flink["events_per_s"], 1),
            "flink_cpu": round(same / flink["events_per_cpu_s"], 1),
            "flink_all_features": round(report["events_per_s_per_core"] / flink["events_per_s"], 1),
        }
    report["goals"] = goals(report)
    if args.json != "-":
        _print(report)
    write_json(args.json, report)
    return 0


def _check(args: argparse.Namespace) -> tuple[int, ...]:
    """Cards of the growth curve.

    Raises
    ------
    ConfigError : every fault of the arguments at once
    """
    from features.errors import ConfigError

    faults = []
    parts = [p for p in args.growth.split(",") if p.strip()]
    growth = tuple(int(p) for p in parts if p.strip().isdecimal())
    if len(growth) != len(parts) or any(n < 100 for n in growth):
        faults.append(f"--growth {args.growth!r}: expected numbers of cards, each at least 100")
    for name, least in (("cards", 100), ("events", 1), ("groups", 1)):
        if getattr(args, name) < least:
            faults.append(f"--{name} {getattr(args, name)}: expected at least {least}")
    if args.against == "flink":
        faults += _missing(args.flink_python)
    if faults:
        raise ConfigError([f"bench features: {fault}" for fault in faults])
    return growth


def _missing(python: Path) -> list[str]:
    """What the peer lacks, with the commands that bring it."""
    if not PEER.is_file():
        return [
            "--against flink: the peer's program, tests/bench/peers/flink.py, is part of the"
            " repository and not of an installed package; run from a checkout"
            " (`make install` there)"
        ]
    if not python.is_file():
        needs = PEER.with_suffix(".txt")
        return [
            f"--against flink: there is no {python}; make its environment with `uv venv --python"
            f" 3.11 {FLINK} && uv pip install -p {FLINK} -r {needs}`, or name another with"
            " --flink-python"
        ]
    return []


@dataclass(slots=True)
class Bench:
    """Warm groups and the stream that feeds them.

    Parameters
    ----------
    catalog : what is computed
    cards : of the simulated population
    groups : shard groups
    exact_max, distinct_max : see the settings `exact_events_max`, `distinct_exact_max`
    """

    catalog: Catalog
    cards: int
    groups: int
    exact_max: int = 0
    distinct_max: int = DISTINCT_MAX
    engines: list[Any] = field(init=False)
    now_us: int = 0
    round: int = 0
    spent: dict[str, float] = field(default_factory=dict)
    _simulator: Any = field(init=False)

    def __post_init__(self) -> None:
        from features.engine import GroupEngine

        self.engines = [
            GroupEngine(
                self.catalog, group, exact_max=self.exact_max, distinct_max=self.distinct_max
            )
            for group in range(self.groups)
        ]
        self._simulator = simulator_of(self.cards)

    def batches(self, events: int, rows: int) -> Iterator[EventBatch]:
        """About so many events to come, in rounds of about so many rows."""
        step_us = round(1e6 * rows / RATE)
        for _ in range(max(1, round(events / rows))):
            batch = self._simulator.span(self.now_us, self.now_us + step_us)[EVENT]
            self.now_us += step_us
            yield batch

    def pass_round(self, batch: EventBatch) -> None:
        """Let one round pass, adding CPU seconds to `spent` by stage."""
        from features.engine import assemble, merge, split

        batches = {EVENT: batch}
        at = [time.process_time()]
        parts = split(self.catalog, batches, self.groups, round_=self.round, clock_us=self.now_us)
        at.append(time.process_time())
        found = [e.process(merge([p]))[0] for e, p in zip(self.engines, parts, strict=True)]
        at.append(time.process_time())
        assemble(self.catalog, batches, found)
        at.append(time.process_time())
        self.round += 1
        for i, stage in enumerate(("split", "kernels", "assemble")):
            self.spent[stage] = self.spent.get(stage, 0.0) + at[i + 1] - at[i]

    def warm(self) -> None:
        """Fill state: every card pays some times."""
        events = max(WARM_PER_CARD * self.cards, round(WARM_S * RATE))
        for batch in self.batches(events, max(ROUNDS)):
            self.pass_round(batch)

    def us_per_event(self, batches: Iterable[EventBatch]) -> dict[str, float]:
        """CPU us an event by stage, and in all."""
        self.spent.clear()
        events = 0
        for batch in batches:
            self.pass_round(batch)
            events += len(batch)
        events = max(1, events)
        found = {stage: round(s / events * 1e6, 3) for stage, s in self.spent.items()}
        return found | {"total": round(sum(self.spent.values()) / events * 1e6, 3)}

    def few(self, batch: EventBatch, events: int, rows: int) -> list[EventBatch]:
        """Rounds whose rows are all drawn from a few of a batch: few entities, the same tables."""
        import numpy as np

        from features.batch import EventBatch

        rng = np.random.default_rng(1)
        made = []
        for _ in range(max(1, round(events / rows))):
            step_us = round(1e6 * rows / RATE)
            part = batch.take(rng.integers(0, min(FEW, len(batch)), rows))
            time_us = self.now_us + np.sort(rng.integers(0, step_us, rows))
            self.now_us += step_us
            frame = part.frame.with_columns(time_us=time_us)
            made.append(
                EventBatch(EVENT, frame, np.zeros(rows, np.int32), np.arange(rows), part.due_ns)
            )
        return made

    @property
    def entities(self) -> dict[str, int]:
        """Live entities by type."""
        found: dict[str, int] = {}
        for engine in self.engines:
            for name, n in engine.entities.items():
                found[name] = found.get(name, 0) + n
        return {name: n for name, n in found.items() if n}

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of state by entity type."""
        found: dict[str, int] = {}
        for engine in self.engines:
            for name, n in engine.memory.items():
                found[name] = found.get(name, 0) + n
        return {name: found[name] for name in self.entities}

    def snapshot(self) -> tuple[list[float], float, int]:
        """Take one over the first rounds to come, as the flow does, and let all rounds pass.

        Returns
        -------
        ms that each of those rounds was longer for it, ms of the longest wait for one group, bytes
        """
        from dataflows.steps import COPY_ROUNDS

        took, copied, longest, size = [], [], 0.0, 0
        for i, batch in enumerate(self.batches(SNAPSHOT_ROUNDS * ROUNDS[0], ROUNDS[0])):
            begun = time.perf_counter()
            self.pass_round(batch)
            took.append((time.perf_counter() - begun) * 1e3)
            if i >= COPY_ROUNDS:
                continue
            waits = [self._copy(engine, i == 0, COPY_ROUNDS) for engine in self.engines]
            copied.append(sum(waits))
            longest = max(longest, *waits)
        for engine in self.engines:
            size += sum(a.nbytes for part in engine.take() for a in part.values())
        # What a round is about to change is copied while it passes: the round is longer by that.
        usual = median(took[COPY_ROUNDS:] or took)
        return [c + max(0.0, t - usual) for c, t in zip(copied, took, strict=False)], longest, size

    @staticmethod
    def _copy(engine: Any, first: bool, parts: int) -> float:
        """Copy the next part of a group's state; ms."""
        begun = time.perf_counter()
        if first:
            engine.begin(everything=False)
        engine.proceed(parts)
        return (time.perf_counter() - begun) * 1e3


def simulator_of(cards: int) -> Any:
    """Payments alone at RATE, with their everyday attacks."""
    from features.simulate import Simulator
    from features.simulate.mix import TYPE_SHARES

    rate = RATE / TYPE_SHARES[EVENT]
    return Simulator(seed=1, events_per_s=rate, cards=cards, event_types=[EVENT])


def measure(
    cards: int, growth: tuple[int, ...], events: int, groups: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """The figures, in the keys of docs/json.md.

    Parameters
    ----------
    cards : live cards of the figure that counts
    growth : cards of the growth curve
    events : events measured, of each figure
    groups : shard groups
    say : told what is measured now
    """
    from features.catalog import catalog
    from features.engine import warm_up

    cat = catalog()
    warm_up(cat)
    say(f"{cards:,} cards")
    bench = Bench(cat, cards, groups)
    bench.warm()
    by_rows = {f"rows_{rows}": bench.us_per_event(bench.batches(events, rows)) for rows in ROUNDS}
    best = by_rows[f"rows_{ROUNDS[-1]}"]
    report: dict[str, Any] = {
        "events_per_s_per_core": round(1e6 / best["total"]),
        "features": len(cat.names(EVENT)),
        "cards": cards,
        "groups": groups,
        "us_per_event": by_rows,
        **_size(bench),
    }
    del bench
    points = []
    for i, n in enumerate(growth):
        say(f"{n:,} cards")
        bench = Bench(cat, n, groups)
        bench.warm()
        points.append(_point(bench, min(events, GROWTH_EVENTS)))
        if i == min(SNAPSHOT_OF, len(growth) - 1):
            report |= _snapshots(bench)
        del bench
    report["growth"] = points
    if points:
        totals = [p["us_per_event"] for p in points]
        report["growth_ratio"] = round(max(totals) / min(totals), 3)
    return report


def goals(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What is asked of a report's figures, of those that it has: `value`, `limit`, `met`."""
    found = {}
    for name, (side, limit) in GOALS.items():
        head, _, tail = name.partition(".")
        value = report.get(head, {}).get(tail) if tail else report.get(head)
        if value is not None:
            met = value >= limit if side == "at least" else value <= limit
            found[name] = {"value": value, "limit": limit, "met": bool(met)}
    return found


def _size(bench: Bench) -> dict[str, Any]:
    """Entities and their bytes."""
    entities, memory = bench.entities, bench.memory
    return {
        "entities": sum(entities.values()),
        "bytes_per_entity": round(sum(memory.values()) / max(1, sum(entities.values()))),
        "bytes_per_entity_of": {name: round(memory[name] / n) for name, n in entities.items()},
    }


def _point(bench: Bench, events: int) -> dict[str, Any]:
    """One point of the growth curve.

    The counter-test leaves state as it is and lets the same few entities come again and again: what
    is then saved was spent on waiting for memory, not on larger tables.
    """
    rows = ROUNDS[-1]
    batches = list(bench.batches(events, rows))
    total = bench.us_per_event(batches)["total"]
    few = bench.few(batches[0], 2 * events, rows)
    bench.us_per_event(few[: len(few) // 2])
    return {
        "cards": bench.cards,
        "entities": sum(bench.entities.values()),
        "us_per_event": total,
        "us_per_event_few": bench.us_per_event(few[len(few) // 2 :])["total"],
        "state_mb": round(sum(bench.memory.values()) / 1e6),
    }


def _snapshots(bench: Bench) -> dict[str, Any]:
    """How long the flow waits for the copies of a snapshot; the first is thrown away."""
    _, *found = [bench.snapshot() for _ in range(3)]
    return {
        "snapshot_entities": sum(bench.entities.values()),
        "snapshot_pause_ms_max": round(max(max(f[0]) for f in found), 1),
        "snapshot_pause_ms_group_max": round(max(f[1] for f in found), 1),
        "snapshot_mb": round(max(f[2] for f in found) / 1e6, 1),
    }


def _same_catalog() -> Catalog:
    """What Flink is asked: count and sum by card, in three windows."""
    from features.catalog import Catalog, declared_features

    declared = {f.name: f for f in declared_features() if f.event == EVENT}
    made = []
    for suffix, window_s in WINDOWS_S.items():
        for stem in ("card_count", "card_amount_sum"):
            one = declared[f"{stem}_1h"]
            name = f"{stem}_{suffix}"
            made.append(replace(one, name=name, window_s=window_s, why="{value}", baseline=None))
    return Catalog(made)


def same_windows(cards: int, events: int, groups: int) -> int:
    """Events/s on one core of nothing but what Flink is asked: count and sum by card, 3 windows."""
    from features.engine import warm_up

    cat = _same_catalog()
    warm_up(cat)
    bench = Bench(cat, cards, groups)
    bench.warm()
    return round(1e6 / bench.us_per_event(bench.batches(events, ROUNDS[-1]))["total"])


def _flink(python: Path, cards: int, groups: int) -> dict[str, Any]:
    """Events/s of Flink on the stream's first events: it starts with empty windows, in its favour.

    Its results over the same events, drawn out in time, are held against ours.

    Raises
    ------
    ConfigError : it failed, or its results are not ours
    """
    import polars as pl

    from features.errors import ConfigError

    span_us = round(1e6 * FLINK_EVENTS / RATE)
    batch = simulator_of(cards).span(0, span_us)[EVENT]
    sample = _drawn_out(batch)
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="waxwing-flink-") as folder:
        path, check = Path(folder) / "events.csv", Path(folder) / "check.csv"
        for frame, to in ((batch.frame, path), (sample.frame, check)):
            columns = frame.select("card_id", pl.col("amount"), "time_us")
            columns.write_csv(to, include_header=False)
        command = [str(python), str(PEER), str(path), "--check", str(check)]
        command += ["--parallelism", str(cores)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=FLINK_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"bench features: Flink did not end within {FLINK_TIMEOUT_S:.0f} s"
            ) from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        # Of Java's traces the lines of places are indented.
        said = [line for line in lines if not line[0].isspace()] or ["it said nothing"]
        last = said[-1].strip()
        raise ConfigError(f"bench features: Flink failed: {last}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    _hold(found["totals"], _totals(sample, groups))
    return {
        "version": found["version"],
        "events": len(batch),
        "windows": found["windows"],
        "parallelism": cores,
        "checked_rows": len(sample),
        "seconds": round(found["seconds"], 3),
        "cpu_s": round(found["cpu_s"], 3),
        "events_per_s": round(len(batch) / found["seconds"]),
        "events_per_cpu_s": round(len(batch) / max(found["cpu_s"], 1e-3)),
    }


def _drawn_out(batch: EventBatch) -> EventBatch:
    """The events `CHECK_SLOWER` times as far apart, of each card and moment one: of rows at the
    same moment SQL gives each the last one's window."""
    import numpy as np
    import polars as pl

    first = batch.frame.select(pl.struct("card_id", "time_us").is_first_distinct()).to_series()
    sample = batch.take(np.flatnonzero(first.to_numpy()))
    return replace(sample, frame=sample.frame.with_columns(pl.col("time_us") * CHECK_SLOWER))


def _totals(batch: EventBatch, groups: int) -> dict[str, Any]:
    """What the peer says of its results, of ours: rows, and each result's sum and largest."""
    from features.engine import OfflineEngine

    matrix = OfflineEngine(_same_catalog(), groups).process({EVENT: batch})[EVENT]
    found: dict[str, Any] = {"rows": len(batch)}
    for suffix, window_s in WINDOWS_S.items():
        for ours, theirs in (("card_count", "count"), ("card_amount_sum", "sum")):
            column = matrix.column(f"{ours}_{suffix}")
            found[f"{theirs}_{window_s}"] = {"sum": float(column.sum()), "max": float(column.max())}
    return found


def _hold(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """ConfigError where the peer's results are not ours: its speed is then that of other work."""
    from features.errors import ConfigError

    faults = []
    for name, mine in ours.items():
        other = theirs.get(name)
        error_max = SUM_ERROR_MAX if name.startswith("sum") else 0.0
        if name == "rows":
            same = other == mine
        else:
            same = other is not None and all(
                abs(other[key] - value) <= error_max * abs(value) for key, value in mine.items()
            )
        if not same:
            faults.append(f"bench features: {name}: Flink finds {other}, expected {mine}")
    if faults:
        raise ConfigError(faults)


def _print(report: dict[str, Any]) -> None:
    """The figures for a person."""
    print(
        f"{report['events_per_s_per_core']:,} events/s on one core: {report['features']} features"
        f" of a payment, {report['cards']:,} cards, {report['entities']:,} live entities of"
        f" {report['bytes_per_entity']:,} bytes"
    )
    for name, stages in report["us_per_event"].items():
        cells = ", ".join(f"{stage} {us:.2f}" for stage, us in stages.items())
        print(f"  rounds of {int(name.removeprefix('rows_')):,} rows: us an event: {cells}")
    for one in report["growth"]:
        print(
            f"  {one['entities']:>9,} entities: {one['us_per_event']:.2f} us an event,"
            f" {one['us_per_event_few']:.2f} where the same few come again; {one['state_mb']:,} MB"
        )
    if "snapshot_pause_ms_max" in report:
        print(
            f"  snapshot of {report['snapshot_entities']:,} entities: pause"
            f" {report['snapshot_pause_ms_max']:.0f} ms, of one group at most"
            f" {report['snapshot_pause_ms_group_max']:.0f} ms; {report['snapshot_mb']:.0f} MB"
        )
    for name, goal in report["goals"].items():
        if not goal["met"]:
            print(f"  not met: {name} {GOALS[name][0]} {goal['limit']:,g}, is {goal['value']:,g}")
    if "flink" in report:
        flink = report["flink"]
        print(
            f"Flink {flink['version']}, {flink['windows']} windows of count and sum, on"
            f" {flink['parallelism']} cores: {flink['events_per_s']:,} events/s; the same windows"
            f" on one core here are {report['ratio']['flink']:.1f} times as fast"
            f" ({report['ratio']['flink_cpu']:.1f} by CPU), all {report['features']} features"
            f" {report['ratio']['flink_all_features']:.1f} times"
        )
