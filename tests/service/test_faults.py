"""The faults of `make faults`, each in its short form: nothing lost, nothing twice.

Every fault is broken here or where `ELSEWHERE` says; a fault of a new name is broken here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flow.harness import Bench
from tests.service.faults.__main__ import run_fault
from tests.service.faults.field import Servers
from tests.service.faults.scenarios import FAULTS
from tests.service.servers import Kafka, Redis, Registry

ELSEWHERE = {
    "partitions_added": (
        "tests/service/test_kafka_source.py::test_added_partitions_are_read_from_their_beginning",
        "tests/service/test_kafka_source.py::test_partitions_added_while_we_read_are_read_too",
    ),
    "redis_slow": (
        "tests/unit/test_store_writer.py::test_a_redis_that_hangs_holds_nothing_up",
    ),
    "registry_away": (
        "tests/service/test_kafka_source.py"
        "::test_while_the_registry_hangs_known_schemas_go_on_and_new_ones_wait",
        "tests/service/test_kafka_source.py"
        "::test_what_waits_for_a_schema_is_bounded_and_refused_when_patience_is_at_its_end",
    ),
}  # fmt: skip
"""Faults whose promise is a wait of half a minute or more, or a latency: what breaks the same over
the same real servers, with shorter waits, in place of a short form here."""

SHORT = tuple(name for name in FAULTS if name not in ELSEWHERE)
"""The others: each of them a flow of its own, some ten seconds."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_and_nothing_comes_twice(
    name: str,
    bench: Bench,
    kafka: Kafka,
    registry: Registry,
    redis_server: Redis,
    tmp_path: Path,
    seed: int,
) -> None:
    servers = Servers(kafka, registry, redis_server)
    row = run_fault(name, seed % 1_000_000, bench, servers, tmp_path, short=True)
    assert row.accounted(), row
