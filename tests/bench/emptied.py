"""What telling of windows that have run empty costs the engine: the same rounds with and without.

    python -m tests.bench.emptied --cards 120000 --rate 50000 --seconds 80

Two sets of groups get the same rounds of a tenth of a second one after the other, in turns first;
counted is CPU of the thread, told are rows for the store. The rounds after the first minute are
those in which windows run empty.
"""

from __future__ import annotations

import argparse
import json
import time

from features.absences import Names
from features.catalog import catalog
from features.engine import GroupEngine, split, warm_up
from features.simulate.simulator import Simulator

START_US = 1_772_409_600_000_000
ROUND_US = 100_000
GROUPS = 16
WARM_S = 62.0


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, default=120_000)
    parser.add_argument("--rate", type=float, default=50_000.0)
    parser.add_argument("--seconds", type=float, default=80.0)
    parser.add_argument("--max", type=int, default=64)
    args = parser.parse_args()
    cat = catalog()
    warm_up(cat)
    world = Simulator(seed=7, start_us=START_US, events_per_s=args.rate, cards=args.cards)
    engines = {most: [GroupEngine(cat, g, emptied_max=most) for g in range(GROUPS)]
               for most in (0, args.max)}  # fmt: skip
    names = Names()
    used = {(most, warm): 0.0 for most in engines for warm in (True, False)}
    events = {True: 0, False: 0}
    told = 0
    for i in range(int(args.seconds * 1e6 / ROUND_US)):
        end_us = START_US + (i + 1) * ROUND_US
        span = world.span(end_us - ROUND_US, end_us)
        batches = {name: batch for name, batch in span.items() if len(batch)}
        parts = split(cat, batches, GROUPS, 0, i, end_us, names)
        warm = i * ROUND_US >= WARM_S * 1e6
        events[warm] += sum(map(len, batches.values()))
        for most in sorted(engines, reverse=bool(i % 2)):
            begun = time.thread_time()
            for engine, part in zip(engines[most], parts, strict=True):
                found = engine.process(part, (0,))[0]
                told += sum(len(one.keys) for one in found.emptied)
            used[most, warm] += time.thread_time() - begun
    off, on = 0, args.max
    report = {
        "entities": sum(sum(e.entities.values()) for e in engines[on]),
        "rows_told": told,
        "memory_mb": {str(m): sum(e.memory_bytes for e in es) / 1e6 for m, es in engines.items()},
        "us_per_event": {
            f"{'told' if warm else 'heard'}_{name}": 1e6 * used[most, warm] / max(events[warm], 1)
            for warm in (False, True)
            for name, most in (("off", off), ("on", on))
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
