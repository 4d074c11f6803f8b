"""The faults of `make faults`, each in its short form: nothing lost, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flow.harness import Bench
from tests.service.faults.__main__ import run_fault
from tests.service.faults.field import Servers
from tests.service.servers import Kafka, Redis, Registry

SHORT = ("kills", "broker_away", "retention", "topic_made_anew", "redis_emptied", "disk_full",
         "overload", "two_instances", "hung_instance", "malformed")  # fmt: skip
"""What the other tests do not break: each of them a flow of its own, some ten seconds."""


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
    assert row.sent > 0 and row.lost == 0 and row.twice == 0, row
    assert row.sent == row.scored + row.dead_lettered + row.gap, row
