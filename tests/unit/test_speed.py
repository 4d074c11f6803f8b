"""How kernels are compiled: cached code follows the sources, prefetching changes nothing."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from features import speed, state
from features.speed import STAMP, prefetch


def test_cached_machine_code_is_stamped_with_all_sources() -> None:
    """numba itself would miss a change of a helper in another file."""
    stamped: list[Any] = [state.run_ring, state.run_members, state.run_baselines]
    assert {k._cache._cache_file._source_stamp for k in stamped} == {STAMP}
    assert speed._sources() == STAMP


def test_code_made_from_other_sources_is_not_taken() -> None:
    kept = state.run_rates._cache._cache_file  # type: ignore[attr-defined]
    kept._source_stamp = "other"
    try:
        assert kept._load_index() == {}
    finally:
        kept._source_stamp = STAMP


def test_prefetching_any_row_changes_nothing() -> None:
    @numba.njit
    def sum_of(array, rows):  # type: ignore[no-untyped-def]
        total = 0.0
        for i in range(len(rows)):
            if i + 2 < len(rows):
                prefetch(array, rows[i + 2])
            total += array[rows[i]].sum()
        return total

    array = np.arange(1000.0).reshape(50, 20)
    rows = np.array([3, 49, 0, 7, 7])
    assert sum_of(array, rows) == array[rows].sum()
    assert sum_of(np.zeros((50, 0)), rows) == 0.0
