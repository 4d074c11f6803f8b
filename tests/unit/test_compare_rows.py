"""What a comparison of kept rows looked at is named: stretches, holes, rows it cannot score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflows.compare_rows import _Covered, _without_row, compare_rows
from dataflows.comparison import Comparison
from dataflows.state.row_log import Block
from features.catalog import catalog
from features.errors import StateError


def block(rounds: range, share: float = 0.01, version: str | None = None) -> Block:
    """Rounds without rows, a microsecond apart."""
    header: dict[str, Any] = {
        "bundle": "live", "catalog": version or catalog().version, "sample": share,
    }  # fmt: skip
    numbers = np.array(rounds, np.uint64)
    return Block(header, numbers, numbers.astype(np.int64), {}, ())


def test_stretches_end_at_holes_and_other_shares() -> None:
    covered = _Covered()
    blocks = [
        block(range(1, 4)),
        block(range(4, 6)),
        block(range(9, 11)),
        block(range(11, 13), share=0.5),
        block(range(13, 15), version="other"),
    ]
    assert len(list(covered.seen(catalog(), blocks))) == 4
    told = [(s["from_us"], s["until_us"], s["sample"], s["gap"]) for s in covered.told()]
    assert told == [(1, 5, 0.01, False), (9, 10, 0.01, True), (11, 12, 0.5, False)]
    assert (covered.from_us, covered.until_us, covered.rounds) == (1, 12, 9)
    covered.check(Path("s"), catalog(), (1, 14))
    found = Comparison(catalog(), {})
    found.met.add(7)
    verdicts = {7: (True, 3), 8: (True, 4), 9: (False, 4), 10: (True, 13)}
    untimed = {11: (True, 0), 12: (False, 0), 13: (True, 0)}
    found.met.add(13)
    without = _without_row(covered, found, verdicts | untimed)
    assert without["frauds_without_row"] == 1, "one fraud of that time was not met"
    assert without["frauds_without_time"] == 1, "nobody said when it was, and it was not met"


def test_rows_of_another_catalogue_alone_are_refused_with_the_cure() -> None:
    covered = _Covered()
    assert list(covered.seen(catalog(), [block(range(1, 4), version="other")])) == []
    with pytest.raises(StateError, match=r"of catalogue other.*`--exact`"):
        covered.check(Path("s"), catalog(), (1, 3))
    with pytest.raises(StateError, match="no rows are kept of rounds cut between the times"):
        _Covered().check(Path("s"), catalog(), (1, 3))


def test_a_flow_that_kept_no_rows_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"no kept rows.*rows_share = 0.*`--exact`"):
        compare_rows(tmp_path, None, {}, tmp_path / "bundle")
