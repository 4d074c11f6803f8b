"""Members of a pool beyond the naive twin: more hosts than places, hosts that fall silent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from features.catalog import Catalog
from features.engine import OfflineEngine
from features.members import KNOWN_FROM, MEMBERS_MAX, SILENT_S
from features.spec import Feature
from tests.streams import START_US, make_batch
from tests.units import fitting

CATALOG = Catalog(
    Feature(op, "metric", "pool", op, "{value}", fitting(op, "metric", "value"), "baseline",
            column="value", other="host", window_s=600)
    for op in ("peer_mean", "member_z", "peers_deviating")
)  # fmt: skip


def run(samples: list[tuple[float, str, float]]) -> Any:
    """Features of samples (seconds, host, value)."""
    rows = [
        {"event_id": str(i), "time_us": START_US + int(t * 1e6), "host": host, "metric": "cpu",
         "service": "web", "value": value}
        for i, (t, host, value) in enumerate(samples)
    ]  # fmt: skip
    return OfflineEngine(CATALOG, 1).process({"metric": make_batch("metric", rows)})["metric"]


def test_a_host_beyond_the_last_place_is_compared_with_the_members_but_is_none() -> None:
    samples = [(float(i), f"h{i}", float(i)) for i in range(MEMBERS_MAX)]
    samples += [(100.0, "late", 1e6), (101.0, "later", 5.0)]
    found = run(samples)
    assert found.column("peer_mean")[-2] == np.mean(range(MEMBERS_MAX))
    assert found.column("peer_mean")[-1] == np.mean(range(MEMBERS_MAX))
    assert np.isnan(found.column("member_z")[-2:]).all()


def test_a_silent_member_gives_its_place_to_a_new_host() -> None:
    samples = [(float(i), f"h{i}", 1.0) for i in range(MEMBERS_MAX)]
    begin = SILENT_S + 40.0
    samples += [(begin + 60.0 * i, "new", float(i % 2)) for i in range(int(KNOWN_FROM) + 1)]
    found = run(samples)
    assert not np.isnan(found.column("member_z")[-1])
    assert np.isnan(found.column("peer_mean")[-1])  # nobody else was heard of for ten minutes


@pytest.mark.parametrize(("age_s", "fresh"), [(599.0, True), (600.0, False)])
def test_a_peer_counts_as_long_as_it_is_within_the_window(age_s: float, fresh: bool) -> None:
    found = run([(0.0, "a", 3.0), (age_s, "b", 9.0)])
    assert found.column("peer_mean")[1] == (3.0 if fresh else pytest.approx(np.nan, nan_ok=True))


def test_peers_that_deviate_together_are_counted_without_the_row_s_own_host() -> None:
    rng = np.random.default_rng(1)
    calm = [(60.0 * i + h, f"h{h}", float(rng.normal(50.0, 1.0))) for i in range(30)
            for h in range(4)]  # fmt: skip
    outage = [(1800.0 + h, f"h{h}", 90.0) for h in range(3)]
    share = run([*calm, *outage]).column("peers_deviating")[-3:]
    np.testing.assert_allclose(share, [0.0, 1 / 3, 2 / 3])
