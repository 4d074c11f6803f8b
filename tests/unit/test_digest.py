"""Hashes of columns, groups and rows: any changed bit shows, and only where it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from dataflows.digests import RoundDigest, versions
from features.batch import EventBatch
from features.catalog import catalog
from features.digest import add_columns, row_hashes, total_of, words_of
from features.engine import OfflineEngine
from features.plan import plan_of
from features.rows import GroupFeatures
from tests.streams import START_US, make_batch

MASK = 2**64 - 1


def payments(n: int) -> EventBatch:
    """Payments, a second apart."""
    rows = [{"event_id": f"p{i}", "time_us": START_US + i * 1_000_000} for i in range(n)]
    return make_batch("payment", rows)


def naive_mix(word: int) -> int:
    """SplitMix64's finaliser, in whole numbers."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
    return word ^ (word >> 31)


def naive_column(values: np.ndarray, seed: int) -> int:
    """The sum of one column, cell by cell."""
    total = 0
    for i, value in enumerate(values):
        word = int(np.float64(np.nan if np.isnan(value) else value).view(np.uint64))
        total += (word ^ (word >> 32)) * (naive_mix(seed + i) | 1)
    return total & MASK


def hashes(values: np.ndarray, seed: int = 77) -> tuple[np.ndarray, np.ndarray]:
    """Sums of columns, hashes of rows."""
    columns = np.zeros(values.shape[1], np.uint64)
    rows = np.zeros(len(values), np.uint64)
    add_columns(values, 0, seed, columns, rows)
    return columns, row_hashes(rows)


@pytest.fixture
def values(rng: np.random.Generator) -> np.ndarray:
    table = rng.normal(size=(50, 7))
    table[rng.random(table.shape) < 0.2] = np.nan
    table[3, 2] = 0.0
    return table


def test_columns_are_what_the_formula_says(values: np.ndarray) -> None:
    columns, _ = hashes(values)
    assert columns.tolist() == [naive_column(values[:, f], 77) for f in range(7)]


@pytest.mark.parametrize("column", [0, 1, 4_095])
def test_a_row_weighs_its_columns_as_the_formula_says(column: int) -> None:
    rows = np.zeros(1, np.uint64)
    add_columns(np.ones((1, 1)), column, 77, np.zeros(1, np.uint64), rows)
    word = int(np.float64(1.0).view(np.uint64))
    weight = naive_mix((1 + (column + 1) * 0x9E3779B97F4A7C15) & MASK) | 1
    assert int(rows[0]) == (word ^ (word >> 32)) * weight & MASK


def test_every_changed_bit_shows_in_its_column_and_its_row_alone(values: np.ndarray) -> None:
    columns, rows = hashes(values)
    for bit in range(64):
        other = values.copy()
        other[3, 2:3].view(np.uint64)[:] ^= np.uint64(1 << bit)
        again, rows_again = hashes(other)
        assert np.flatnonzero(columns != again).tolist() == [2], bit
        assert np.flatnonzero(rows != rows_again).tolist() == [3], bit


def test_two_signs_turned_round_do_not_cancel(values: np.ndarray) -> None:
    other = values.copy()
    rows = np.flatnonzero(~np.isnan(values[:, 1]))[:2]
    other[rows, 1] *= -1.0
    assert hashes(values)[0][1] != hashes(other)[0][1]


def test_rows_that_change_places_show(values: np.ndarray) -> None:
    assert not np.array_equal(hashes(values)[0], hashes(values[::-1].copy())[0])


def test_what_a_group_gives_of_types_that_the_lane_lacks_counts_for_nothing() -> None:
    matrix = OfflineEngine(catalog(), 1).process({"payment": payments(3)})["payment"]
    empty = (np.zeros(0, np.int64), np.zeros((0, 16, 12), np.int16))
    width = len(plan_of(catalog()).entities["user"].features["login"])
    view = {("login", "user"): (np.zeros(0, np.int64), np.zeros((0, width)))}
    bare, more = (
        RoundDigest.of(catalog(), 1, 0, {"payment": matrix}, [(0, part)])
        for part in (
            GroupFeatures(0),
            GroupFeatures(0, parts=view, sequences={"login": empty}),
        )
    )
    assert bare.groups.tolist() == more.groups.tolist() == [0]
    assert list(more.columns) == ["payment"]


def test_all_nan_are_one(values: np.ndarray) -> None:
    other = values.copy()
    other.view(np.uint64)[np.isnan(values)] = np.uint64(0xFFF8000000000123)
    assert np.array_equal(hashes(values)[0], hashes(other)[0])
    assert np.array_equal(hashes(values)[1], hashes(other)[1])


def test_a_group_counts_its_own_columns_and_no_more(values: np.ndarray) -> None:
    places = np.arange(len(values))[::-1].copy()
    total = total_of(words_of(values), 5, True, places, 9)
    other = values.copy()
    other[:, 5:] = 1.0
    assert total_of(words_of(other), 5, True, places, 9) == total
    other[0, 4] = 123.0
    assert total_of(words_of(other), 5, True, places, 9) != total
    order = np.argsort(places)
    assert total_of(words_of(values[order]), 5, True, places[order], 9) == total


def test_words_that_are_no_floats_are_taken_as_they_are() -> None:
    words = np.full((1, 2), 0x7FF8000000000001, np.uint64)
    other = np.full((1, 2), 0x7FF8000000000002, np.uint64)
    place = np.zeros(1, np.int64)
    assert total_of(words, 2, False, place, 1) != total_of(other, 2, False, place, 1)


def test_the_processor_that_numbers_were_computed_for_is_among_the_versions() -> None:
    here = versions()["processor"]
    assert re.fullmatch(r"\S+ [0-9a-f]{8}", here)
    told = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "-fma,-avx,-avx2"}
    ask = "from dataflows.digests import processor; print(processor())"
    there = subprocess.run(
        [sys.executable, "-c", ask], env=os.environ | told, capture_output=True, text=True,
        check=True,
    ).stdout.strip()  # fmt: skip
    assert there.startswith("generic ") and there.split()[1] != here.split()[1]
