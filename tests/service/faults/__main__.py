"""`make faults`: every fault in its full length, a table of what became of the events.

    python -m tests.service.faults [--json P] [--seed N] [--only NAME,NAME] [--short]

Status 1 where an event was lost, an alert came twice, nothing was sent, or a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path

from tests.flow.harness import Bench, train_bench
from tests.service.faults.field import Field, Row, Servers
from tests.service.faults.scenarios import FAULTS
from tests.service.servers import Kafka, NotToBeHad, Redis, Registry

COLUMNS = ("sent", "scored", "dead_lettered", "lost", "gap", "twice", "seconds_to_live")


class FieldMaker:
    """Makes the field of one fault.

    Parameters
    ----------
    name : of the fault
    seed : of the whole run
    bench : models
    servers : the real ones
    folder : of the whole run
    """

    def __init__(self, name: str, seed: int, bench: Bench, servers: Servers, folder: Path) -> None:
        self.servers = servers
        self.seed = seed + zlib.crc32(name.encode()) % 1_000_000
        self._name, self._bench, self._folder = name, bench, folder
        self.made: list[Field] = []

    def __call__(self, **more: object) -> Field:
        # The state of one field is none of the next one's.
        folder = self._folder / f"{self._name}{len(self.made) or ''}"
        self.made.append(Field(self._name, self.seed, self._bench, self.servers, folder, **more))
        return self.made[-1]

    def close(self) -> None:
        """Kill the flows that a broken promise has left running."""
        for field in self.made:
            field.sender.give_up()
            field.flow.kill()


def run_fault(
    name: str, seed: int, bench: Bench, servers: Servers, folder: Path, short: bool
) -> Row:
    """One fault and its account; AssertionError where a promise was broken."""
    make = FieldMaker(name, seed, bench, servers, folder)
    try:
        return FAULTS[name](make, short)
    finally:
        make.close()


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="P", help="write the table; - is standard output")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000)
    parser.add_argument("--only", default=",".join(FAULTS), help="names of faults")
    parser.add_argument("--short", action="store_true", help="as in `make test`")
    args = parser.parse_args()
    names = args.only.split(",")
    if strange := [name for name in names if name not in FAULTS]:
        parser.error(f"--only: no fault {', '.join(strange)}; faults are {', '.join(FAULTS)}")
    out = sys.stderr if args.json == "-" else sys.stdout
    print(f"seed: {args.seed} (--seed {args.seed} repeats these faults)", file=out, flush=True)
    rows, broken, bad = [], [], []
    with tempfile.TemporaryDirectory(prefix="waxwing-faults-") as text:
        folder = Path(text)
        (folder / "bench").mkdir()
        bench = train_bench(folder / "bench")
        try:
            kafka, registry, redis = Kafka(), Registry(), Redis()
        except NotToBeHad as missing:
            print(f"make faults: {missing}", file=sys.stderr)
            return 2
        print(f"{'fault':16}" + "".join(f"{c:>16}" for c in COLUMNS), file=out, flush=True)
        with kafka, registry, redis:
            for name in names:
                try:
                    row = run_fault(
                        name, args.seed, bench, Servers(kafka, registry, redis), folder, args.short
                    )
                except Exception:
                    broken.append(name)
                    print(f"{name:16} BROKEN\n{traceback.format_exc()}", file=sys.stderr)
                    continue
                rows.append(row.json())
                if not row.accounted():
                    bad.append(name)
                cells = [rows[-1][c] for c in COLUMNS]
                shown = [f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells]
                print(f"{name:16}" + "".join(f"{c:>16}" for c in shown), file=out, flush=True)
    bad += broken
    report = json.dumps({"seed": args.seed, "broken": broken, "faults": rows}, indent=1) + "\n"
    if args.json == "-":
        sys.stdout.write(report)
    elif args.json:
        Path(args.json).write_text(report, encoding="utf-8")
    if bad:
        print(f"make faults: promises broken in {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
