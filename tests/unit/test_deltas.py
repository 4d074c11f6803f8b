"""State on disk: whole files or none, chains without holes, nothing needed is ever removed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.restore import check
from dataflows.settings import load
from dataflows.state.deltas import Arrays, NewerState, ShardStore, read_arrays, write_arrays
from dataflows.state.manifest import Manifest
from features.errors import StateError


def some_arrays(value: int) -> Arrays:
    return {
        "keys": np.array([value, value + 1], np.uint64),
        "matrix": np.full((2, 3), value / 7),
        "flags": np.array([True, False]),
        "small": np.array([-value], np.int16),
        "nothing": np.zeros((0, 4)),
    }


def same(left: Arrays, right: Arrays) -> bool:
    return list(left) == list(right) and all(
        left[k].dtype == right[k].dtype
        and left[k].shape == right[k].shape
        and left[k].tobytes() == right[k].tobytes()
        for k in left
    )


def names(store: ShardStore) -> list[str]:
    return sorted(p.name for p in store.folder.iterdir())


def test_arrays_come_back_bit_for_bit_and_writable(tmp_path: Path) -> None:
    arrays = some_arrays(5)
    arrays["turned"] = np.arange(6.0).reshape(2, 3).T
    arrays["odd"] = np.array([np.nan, -0.0, np.inf])
    size = write_arrays(tmp_path / "a.base", arrays, {"last": True})
    assert size == (tmp_path / "a.base").stat().st_size
    got, meta = read_arrays(tmp_path / "a.base")
    assert same(got, arrays)
    assert meta == {"last": True}
    got["keys"][0] = 1


def test_a_file_cut_short_or_changed_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.base"
    write_arrays(path, some_arrays(5), {})
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(StateError, match="damaged"):
            read_arrays(path)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
        with pytest.raises(StateError, match="damaged"):
            read_arrays(path)


def test_a_file_of_a_newer_version_is_not_said_to_be_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "deltas" / "g000"
    ShardStore(folder, 4).write(5, "base", some_arrays(5), {})
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes().replace(b"WXA1", b"WXA2", 1))
    told = r"WXA2.* newer version; run the version that wrote it"
    with pytest.raises(NewerState, match=told):
        read_arrays(path)
    # Nor does an older manifest serve, whose flow would remove it.
    with pytest.raises(NewerState, match=told):
        check(load(None, {}, state_dir=tmp_path), Manifest(5, 1, 1, "abc"))


def test_a_missing_file_says_which(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"a\.base is missing"):
        read_arrays(tmp_path / "a.base")


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_full_disk_is_a_sentence_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = ShardStore(tmp_path / "g000", 3)
    store.write(10, "base", some_arrays(1), {})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "open", full)))
    with pytest.raises(StateError, match="No space left"):
        store.write(20, "delta", some_arrays(2), {})
    assert names(store) == ["000000000010.base"]


def test_state_is_the_newest_base_and_the_deltas_after_it(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, 2)
    assert store.load(0) == (None, [], [])
    plan = [(10, "base"), (20, "delta"), (30, "delta"), (40, "base"), (50, "delta")]
    for round_, kind in plan:
        store.write(round_, kind, some_arrays(round_), {"round": round_})
    for round_, base, deltas in [(20, 10, [20]), (30, 10, [20, 30]), (40, 40, []), (50, 40, [50])]:
        got, more, metas = store.load(round_)
        assert got is not None
        assert same(got, some_arrays(base))
        assert [int(d["keys"][0]) for d in more] == deltas
        assert [m["round"] for m in metas] == [base, *deltas]


@pytest.mark.parametrize("lost", [10, 20, 30, 40])
def test_a_lost_file_is_found_and_not_passed_over(tmp_path: Path, lost: int) -> None:
    store = ShardStore(tmp_path, 9)
    for round_ in (10, 20, 30, 40):
        store.write(round_, "base" if round_ == 10 else "delta", some_arrays(round_), {})
    next(store.folder.glob(f"{lost:012d}.*")).unlink()
    with pytest.raises(StateError, match=r"no base|follows round|newest state is of round"):
        store.load(40)


def test_a_lost_folder_is_not_taken_for_a_cold_start(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="round 100 is said to be durable"):
        ShardStore(tmp_path, 3).load(100)


def test_a_shard_whose_lane_has_ended_counts_for_later_rounds(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, 3)
    store.write(10, "base", some_arrays(1), {"last": False})
    store.write(17, "delta", some_arrays(2), {"last": True})
    _, deltas, _ = store.load(40)
    assert len(deltas) == 1
    store.write(50, "delta", some_arrays(3), {"last": False})
    assert len(store.load(50)[1]) == 2


def test_a_crash_leaves_nothing_newer_than_the_manifest(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, 3)
    for round_ in (10, 20, 30):
        store.write(round_, "base" if round_ == 10 else "delta", some_arrays(round_), {})
    (tmp_path / "000000000040.delta.tmp").write_bytes(b"half")
    store.forget_after(20)
    assert names(store) == ["000000000010.base", "000000000020.delta"]
    store.write(30, "delta", some_arrays(31), {})
    assert int(store.load(30)[1][-1]["keys"][0]) == 31


def test_foreign_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, 3)
    (tmp_path / "notes.base").write_text("mine", encoding="utf-8")
    store.write(10, "base", some_arrays(1), {})
    store.forget_after(0)
    assert names(store) == ["notes.base"]


def test_no_base_follows_a_base_that_the_manifest_has_not_reached(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, 2)
    assert store.wants_base(0)
    for round_, kind in [(10, "base"), (20, "delta"), (30, "delta")]:
        store.write(round_, kind, some_arrays(round_), {})
    assert not store.wants_base(0)
    assert store.wants_base(10)


@given(
    deltas_max=st.integers(1, 4),
    lags=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    dies=st.integers(1, 12),
)
def test_either_manifest_finds_its_state_after_any_crash(
    tmp_path_factory: pytest.TempPathFactory, deltas_max: int, lags: list[int], dies: int
) -> None:
    """A shard writes every round; the manifest follows with a lag; then all starts again."""
    store = ShardStore(tmp_path_factory.mktemp("shard"), deltas_max)
    manifests = [0, 0]  # the one before, the newest
    for round_, lag in enumerate(lags[:dies], 1):
        base = store.wants_base(manifests[1])
        store.write(round_, "base" if base else "delta", {"v": np.array([round_])}, {})
        if base:
            store.forget_before(min(manifests))
        if round_ - lag > manifests[1]:
            manifests = [manifests[1], round_ - lag]
    for durable in reversed(manifests):
        store.forget_after(durable)
        base_arrays, deltas, _ = store.load(durable)
        chain = [] if base_arrays is None else [base_arrays, *deltas]
        got = [int(a["v"][0]) for a in chain]
        assert got == list(range(durable - len(got) + 1, durable + 1))
        assert bool(got) == bool(durable)
    assert len(names(store)) <= 2 * (deltas_max + 3) + 3
