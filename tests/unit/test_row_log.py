"""Kept rows on disk: what was written comes back, what is torn, newer or too old does not."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from dataflows.state.row_log import (
    SEGMENT_ROUNDS,
    Block,
    RowLog,
    Rows,
    between,
    kept_span,
    read_blocks,
    read_verdicts,
)
from features.errors import StateError
from features.labels import Label

HOUR_US = 3_600_000_000
HEADER = {"bundle": "live", "catalog": "c", "sample": 0.5, "thresholds": [], "stages": {}}


def some_rows(round_: int, n: int = 3, sequences: bool = True) -> Rows:
    """Rows of one round that no other has."""
    rng = np.random.default_rng(round_)
    values = rng.normal(size=(n, 4))
    values[0, 1], values[0, 2] = np.nan, -0.0
    return Rows(
        "payment",
        np.full(n, round_, np.uint64),
        np.zeros(n, np.uint16),
        np.arange(n, dtype=np.uint32),
        np.array([1.0, 100.0, 100.0])[:n],
        rng.integers(0, 2**64, n, np.uint64),
        [f"e{round_}-{i}\n\u00fc\x00" for i in range(n)],
        ["a|b"] * n,
        np.arange(n) + round_,
        np.full(n, -1, np.int16),
        ("a", "b", "c", "d"),
        values,
        rng.integers(-9, 9, (n, 16, 12), np.int16) if sequences else None,
        ("fraud",),
        rng.random((n, 1)),
        rng.random((n, 1)) < 0.5,
    )


def opened(folder: Path, after: int = 0, keep_us: int = 24 * HOUR_US, most: int = 0) -> RowLog:
    return RowLog(folder, {"state_dir": "s"}, after, keep_us, most)


def write(log: RowLog, rounds: range, every: int = 2, cut_us: int = 1_000, at_us: int = 0) -> None:
    """A block `every` rounds, as snapshots end them; rounds `cut_us` apart."""
    for round_ in rounds:
        label = Label(0, round_, round_, round_ % 2 == 0, ())
        cut_time_us = at_us or round_ * cut_us
        log.add(round_, cut_time_us, HEADER, {"payment": 5}, [some_rows(round_)], [label])
        if round_ % every == 0:
            log.flush()
    log.sync()
    log.close()


def rounds_of(folder: Path) -> list[int]:
    return [r for block in read_blocks(folder) for r in block.rounds.tolist()]


def test_what_was_written_comes_back_bit_for_bit(tmp_path: Path) -> None:
    write(opened(tmp_path), range(1, 5))
    first, second = read_blocks(tmp_path)
    assert first.header == HEADER and first.rounds.tolist() == [1, 2]
    assert second.cut_time_us.tolist() == [3_000, 4_000]
    assert {n: e.tolist() for n, e in second.events.items()} == {"payment": [5, 5]}
    (rows,), wanted = second.rows, [some_rows(3), some_rows(4)]
    for field in fields(Rows):
        found, each = getattr(rows, field.name), [getattr(one, field.name) for one in wanted]
        if isinstance(found, np.ndarray):
            assert found.tobytes() == np.concatenate(each).tobytes(), field.name
        elif field.name in ("event_id", "entity"):
            assert found == each[0] + each[1]
        else:
            assert found == each[0]
    assert read_verdicts(tmp_path) == {r: (r % 2 == 0, r) for r in range(1, 5)}
    assert kept_span(tmp_path) == ((1_000, 4_000), {"state_dir": "s"})


def test_rounds_without_rows_are_counted(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.add(1, 7, HEADER, {"payment": 4}, [], [])
    log.add(2, 8, HEADER, {"login": 3}, [some_rows(2, sequences=False)], [])
    log.flush()
    log.close()
    (block,) = read_blocks(tmp_path)
    assert {n: e.tolist() for n, e in block.events.items()} == {"payment": [4, 0], "login": [0, 3]}
    assert block.rows[0].sequence is None and len(block.rows[0]) == 3


def test_a_flow_that_resumes_makes_what_is_newer_than_its_manifest_again(tmp_path: Path) -> None:
    write(opened(tmp_path), range(1, 8))  # 7 waits for the end of its block, as at a kill
    assert rounds_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    again = opened(tmp_path, after=4)
    assert rounds_of(tmp_path) == [1, 2, 3, 4]
    write(again, range(5, 9))
    assert rounds_of(tmp_path) == list(range(1, 9))
    assert set(read_verdicts(tmp_path)) == set(range(1, 9))
    opened(tmp_path, after=0)
    assert rounds_of(tmp_path) == [] and kept_span(tmp_path) is None


def test_a_torn_block_ends_its_segment_and_the_next_one_counts(tmp_path: Path) -> None:
    write(opened(tmp_path), range(1, 7))
    write(opened(tmp_path, after=6), range(7, 9))
    first = min(tmp_path.glob("*.rows"))
    data = bytearray(first.read_bytes())
    data[-10] ^= 1
    first.write_bytes(data)
    assert rounds_of(tmp_path) == [1, 2, 3, 4, 7, 8]


def test_a_round_that_two_flows_wrote_counts_once(tmp_path: Path) -> None:
    slow, fast = opened(tmp_path / "slow"), opened(tmp_path / "fast")
    write(slow, range(1, 7))
    write(fast, range(5, 9), every=4)
    for path in (tmp_path / "fast").iterdir():
        path.rename(tmp_path / "slow" / path.name)
    blocks = list(read_blocks(tmp_path / "slow"))
    assert [r for b in blocks for r in b.rounds.tolist()] == list(range(1, 9))
    assert [r for b in blocks for r in b.rows[0].round.tolist()] == [r for r in range(1, 9)
                                                                    for _ in range(3)]  # fmt: skip


def test_a_flow_that_was_taken_over_tears_nothing(tmp_path: Path) -> None:
    slow = opened(tmp_path)
    for round_ in range(1, 7):
        slow.add(round_, round_ * 1_000, HEADER, {"payment": 3}, [some_rows(round_)], [])
        if round_ % 3 == 0:
            slow.flush()
    write(opened(tmp_path, after=3), range(4, 9), every=4)
    slow.add(7, 7_000, HEADER, {"payment": 3}, [some_rows(7)], [])
    slow.flush()
    assert rounds_of(tmp_path) == list(range(1, 9)), "the other's rounds, none torn or left out"
    slow.close()
    late, again = opened(tmp_path, after=8), opened(tmp_path, after=8)
    write(late, range(9, 10), every=1)
    again.add(9, 9_000, HEADER, {}, [some_rows(9)], [])
    with pytest.raises(StateError, match="could not be written"):
        again.flush()
    assert rounds_of(tmp_path) == list(range(1, 10))


def test_a_tail_of_zeros_is_no_record(tmp_path: Path) -> None:
    write(opened(tmp_path), range(1, 7))
    for path in tmp_path.iterdir():
        with path.open("ab") as file:
            file.write(bytes(4_096))
    write(opened(tmp_path, after=6), range(7, 9))
    assert [r for b in read_blocks(tmp_path) for r in b.rounds.tolist()] == list(range(1, 9))


def test_only_rounds_between_two_times_are_told(tmp_path: Path) -> None:
    write(opened(tmp_path), range(1, 10), every=3)
    found = [between(b, 2_000, 8_000) for b in read_blocks(tmp_path, 2_000, 8_000)]
    assert [r for b in found for r in b.rounds.tolist()] == [2, 3, 4, 5, 6, 7]
    assert sorted({int(r) for b in found for r in b.rows[0].round}) == [2, 3, 4, 5, 6, 7]


def test_another_header_begins_a_block(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.add(1, 1, HEADER, {}, [some_rows(1)], [])
    log.add(2, 2, HEADER | {"bundle": "new"}, {}, [some_rows(2)], [])
    log.flush()
    log.close()
    found: list[Block] = list(read_blocks(tmp_path))
    assert [(b.header["bundle"], b.rounds.tolist()) for b in found] == [("live", [1]), ("new", [2])]


@pytest.mark.parametrize("bound", ["time", "bytes"])
def test_the_oldest_segments_go(tmp_path: Path, bound: str) -> None:
    write(opened(tmp_path / "one"), range(1, SEGMENT_ROUNDS + 1), cut_us=HOUR_US)
    size = sum(p.stat().st_size for p in (tmp_path / "one").iterdir())
    most = {"time": {"keep_us": SEGMENT_ROUNDS * HOUR_US}, "bytes": {"most": 2 * size + 1}}[bound]
    log = opened(tmp_path / "all", **most)
    write(log, range(1, 5 * SEGMENT_ROUNDS), cut_us=HOUR_US)
    left = rounds_of(tmp_path / "all")
    assert left[0] > 2 * SEGMENT_ROUNDS and left[-1] == 5 * SEGMENT_ROUNDS - 2
    assert left == list(range(left[0], left[-1] + 1))
    assert min(read_verdicts(tmp_path / "all")) == left[0], "and the verdicts with them"


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("dataflows.state.row_log.FORMAT", 2)
        write(opened(tmp_path), range(1, 3))
    with pytest.raises(StateError, match="format 2, this version reads 1"):
        list(read_blocks(tmp_path))


def test_a_full_disk_says_the_cure(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("in the way", encoding="utf-8")
    with pytest.raises(StateError, match="rows_share = 0"):
        opened(tmp_path / "rows")
