"""What is kept beside Redis: the newest rows come back, whatever a death has torn."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dataflows.store import shadow
from dataflows.store.shadow import Shadow, claim
from features.keys import hash_strings

FEATURES = ("a", "b", "c")


def put(to: Shadow, names: list[str], value: float, time_us: int) -> None:
    """Rows whose features are the value and its double and NaN."""
    keys, n = pl.Series(names), len(names)
    values = np.column_stack((np.full(n, value), np.full(n, 2 * value), np.full(n, np.nan)))
    to.put(keys, hash_strings(keys).view(np.int64), values, np.full(n, time_us))


def rows(of: Shadow) -> dict[str, tuple[float, float, int]]:
    """Name -> first two features and time."""
    keys, ids, values, time_us = of.rows(0, len(of))
    assert np.array_equal(ids, hash_strings(keys).view(np.int64)) and np.isnan(values[:, 2]).all()
    return {
        key: (*value[:2].tolist(), int(us))
        for key, value, us in zip(keys, values, time_us, strict=True)
    }


def test_the_newest_rows_come_back_after_a_restart(tmp_path: Path) -> None:
    names = [f"né{i}" for i in range(3000)]
    one = Shadow(tmp_path, "v", FEATURES)
    put(one, names, 1.0, 5)
    put(one, names[100:200], 2.0, 6)
    expected = dict.fromkeys(names, (1.0, 2.0, 5)) | dict.fromkeys(names[100:200], (2.0, 4.0, 6))
    assert rows(one) == expected
    one.close()
    two = Shadow(tmp_path, "v", FEATURES)
    assert rows(two) == expected
    put(two, ["later", names[0]], 3.0, 7)
    assert rows(two) == expected | {"later": (3.0, 6.0, 7), names[0]: (3.0, 6.0, 7)}
    two.close()


def test_a_torn_row_and_half_a_name_are_left_out(tmp_path: Path) -> None:
    one = Shadow(tmp_path, "v", FEATURES)
    put(one, ["x", "y", "z"], 1.0, 5)
    one.close()
    path = tmp_path / "v.rows"
    data = bytearray(path.read_bytes())
    data[8 * 5 + 20] ^= 1  # of the second row
    path.write_bytes(bytes(data))
    names = tmp_path / "v.names"
    names.write_bytes(names.read_bytes()[:-1])
    two = Shadow(tmp_path, "v", FEATURES)
    assert set(rows(two)) == {"x"}
    ids = hash_strings(pl.Series(["y"])).view(np.int64)
    two.amend(ids, np.full((1, 1), 9.0), np.array([6]), np.array([1]))
    assert set(rows(two)) == {"x"}, "a change makes nothing whole of it"
    put(two, ["w", "y"], 2.0, 6)
    assert set(rows(two)) == {"x", "w", "y"}
    two.close()


@pytest.mark.parametrize(
    ("spoil", "kept"),
    [
        (lambda data: data.replace(b"yy", b"\xffy"), {"xx"}),  # no text
        (lambda data: data[:-8] + bytes(4) + data[-4:], {"xx"}),  # zeros amid
        (lambda data: data[:-1] + bytes(9), {"xx", "yy"}),  # zeros from within the last one on
    ],
)
def test_names_are_known_up_to_the_first_spoilt_one(
    tmp_path: Path, spoil: Callable[[bytes], bytes], kept: set[str]
) -> None:
    one = Shadow(tmp_path, "v", FEATURES)
    put(one, ["xx", "yy", "zz"], 1.0, 5)
    one.close()
    path = tmp_path / "v.names"
    path.write_bytes(spoil(path.read_bytes()))
    two = Shadow(tmp_path, "v", FEATURES)
    assert set(rows(two)) == kept
    two.close()
    with path.open("ab") as file:  # a name whose row did not come to be written
        file.write(b"\2\0vv")
    three = Shadow(tmp_path, "v", FEATURES)
    assert set(rows(three)) == kept, "it has not got the row of another"
    put(three, ["yy", "ww"], 2.0, 6)
    assert set(rows(three)) == kept | {"yy", "ww"}
    three.close()


def test_some_features_change_where_nothing_newer_is_known(tmp_path: Path) -> None:
    one = Shadow(tmp_path, "v", FEATURES)
    put(one, ["x", "y"], 1.0, 5)
    ids = hash_strings(pl.Series(["y", "x", "nobody"])).view(np.int64)
    one.amend(ids, np.full((3, 1), 9.0), np.array([5, 4, 5]), np.array([1]))
    assert rows(one) == {"x": (1.0, 2.0, 5), "y": (1.0, 9.0, 5)}
    one.close()


def test_rows_of_other_features_are_not_taken_over(tmp_path: Path) -> None:
    one = Shadow(tmp_path, "v", FEATURES)
    put(one, ["x"], 1.0, 5)
    one.close()
    two = Shadow(tmp_path, "v", ("a", "d", "c"))
    assert len(two) == 0
    two.close()


def test_entities_beyond_the_maximum_are_not_kept_and_known_ones_still_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "ROWS_MAX", 3)
    one = Shadow(tmp_path, "v", FEATURES)
    put(one, ["a", "b"], 1.0, 5)
    put(one, ["c", "d", "b"], 2.0, 6)
    assert rows(one) == {"a": (1.0, 2.0, 5), "b": (2.0, 4.0, 6), "c": (2.0, 4.0, 6)}
    one.close()


def test_one_writer_has_the_folder_at_a_time(tmp_path: Path) -> None:
    handle = claim(tmp_path)
    assert handle is not None and claim(tmp_path) is None
    os.close(handle)
    again = claim(tmp_path)
    assert again is not None
    os.close(again)
