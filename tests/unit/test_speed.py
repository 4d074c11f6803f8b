"""How kernels are compiled: cached code follows the sources, prefetching changes nothing."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np

from features import state
from features.baselines import run_baselines
from features.speed import borrowed, prefetch, stamp
from features.windows import run_ring

ROOT = Path(__file__).parents[2]


def test_cached_machine_code_is_stamped_with_its_source_and_all_that_it_imports(
    tmp_path: Path,
) -> None:
    """numba itself would miss a change of a helper in another file."""
    folder = tmp_path / "features"
    shutil.copytree(ROOT / "features", folder, ignore=shutil.ignore_patterns("__pycache__"))
    stamped: dict[str, Any] = {"windows": run_ring, "baselines": run_baselines}
    before = {name: stamp(folder / f"{name}.py") for name in stamped}
    for name, kernel in stamped.items():
        assert kernel._cache._cache_file._source_stamp == before[name]
    with (folder / "exact.py").open("a") as file:
        file.write("# changed\n")
    assert stamp(folder / "windows.py") != before["windows"]
    assert stamp(folder / "baselines.py") == before["baselines"]


def test_code_made_from_other_sources_is_not_taken() -> None:
    kept = state.run_rates._cache._cache_file  # type: ignore[attr-defined]
    own, kept._source_stamp = kept._source_stamp, "other"
    try:
        assert kept._load_index() == {}
    finally:
        kept._source_stamp = own


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


def test_borrowed_arrays_are_the_very_arrays_and_outlive_the_kernel() -> None:
    @numba.njit
    def fill(array, other):  # type: ignore[no-untyped-def]
        array, other = borrowed(array, other)
        alone = borrowed(other)
        for i in range(len(array)):
            row = array[i]
            row[0] = alone[i]
        return array[1]

    array, held = np.zeros((50, 20)), np.arange(50.0)
    references = sys.getrefcount(array), sys.getrefcount(held)
    fill(array, held)
    assert np.array_equal(array[:, 0], held)
    assert not array[:, 1:].any()
    assert (sys.getrefcount(array), sys.getrefcount(held)) == references
