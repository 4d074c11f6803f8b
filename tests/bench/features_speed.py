"""Time of the feature engine alone: split, kernels and assembly per event, and the cost of a round.

    python -m tests.bench.features_speed --types payment --rows 5000 --cards 100000

Prints one JSON object. Events are simulated before the clock starts; rounds are as in the stream.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from statistics import median
from typing import Any

from features.batch import EventBatch
from features.catalog import Catalog, catalog
from features.engine import GroupEngine, assemble, merge, split, warm_up
from features.simulate import Simulator

RATE = 50_000.0
"""Events per second of event time."""

TINY_US = 2_000
"""Length of a round with hardly any rows: what is left is the cost of the calls."""


def one_round(
    cat: Catalog, engines: list[GroupEngine], batches: dict[str, EventBatch], spent: Any
) -> None:
    """Let a round pass, adding seconds by stage."""
    at = [time.perf_counter()]
    parts = split(cat, batches, len(engines))
    at.append(time.perf_counter())
    found = [e.process(merge([part]))[0] for e, part in zip(engines, parts, strict=True)]
    at.append(time.perf_counter())
    assemble(cat, batches, found)
    at.append(time.perf_counter())
    for i, stage in enumerate(("split", "kernels", "assemble")):
        spent[stage] += at[i + 1] - at[i]


def measure(types: list[str], rows: int, cards: int, groups: int, rounds: int) -> dict[str, Any]:
    """Microseconds per event by stage after 20 s of event time, and per group of a tiny round."""
    cat = catalog()
    warm_up(cat)
    simulator = Simulator(seed=1, events_per_s=RATE, cards=cards, event_types=types)
    engines = [GroupEngine(cat, group) for group in range(groups)]
    now = 0
    sample = simulator.span(now, 1_000_000)
    step = int(1e6 * rows / max(1, sum(map(len, sample.values()))))
    for now in range(0, 20_000_000, 1_000_000):
        one_round(cat, engines, simulator.span(now, now + 1_000_000), defaultdict(float))
    now = 20_000_000
    spent: dict[str, float] = defaultdict(float)
    events = 0
    for _ in range(rounds):
        batches = simulator.span(now, now + step)
        now += step
        events += sum(map(len, batches.values()))
        one_round(cat, engines, batches, spent)
    tiny = []
    for _ in range(rounds):
        batches = simulator.span(now, now + TINY_US)
        now += TINY_US
        calls: dict[str, float] = defaultdict(float)
        one_round(cat, engines, batches, calls)
        tiny.append(calls["kernels"] / groups * 1e6)
    return {
        "features": {name: len(cat.names(name)) for name in types},
        "events": events,
        "us_per_event": {k: round(v / events * 1e6, 3) for k, v in spent.items()},
        "us_per_event_total": round(sum(spent.values()) / events * 1e6, 3),
        "us_per_group_of_a_tiny_round": round(median(tiny), 1),
        "entities": sum(sum(e.entities.values()) for e in engines),
        "state_mb": round(sum(e.memory_bytes for e in engines) / 1e6),
    }


def main() -> None:
    """Read the arguments and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", default="payment,login,metric,app_log")
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--cards", type=int, default=100_000)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=60)
    a = parser.parse_args()
    print(json.dumps(measure(a.types.split(","), a.rows, a.cards, a.groups, a.rounds), indent=1))


if __name__ == "__main__":
    main()
