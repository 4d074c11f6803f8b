"""The certificate on disk: what was written comes back, what is torn or too old does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataflows.alerts.jsonl import FILE_NAME
from dataflows.certify import Certified, Difference, Stretch
from dataflows.cli.certify import told
from dataflows.digests import alert_sum
from dataflows.state.certificate import (
    SEGMENT_ROUNDS,
    Certificate,
    Record,
    Segment,
    digests_folder,
    read_records,
    read_rows,
    segments_of,
)
from dataflows.state.frames import frames
from dataflows.upgrade import _live, _then
from features.errors import StateError
from tests.alerts import an_alert

HEADER = {"columns": {"payment": ["a", "b"], "login": ["c"]}, "groups": 3, "bundle": "x"}
HOUR_US = 3_600_000_000


def record(round_: int, cut_time_us: int = 0) -> Record:
    """A round that is told from others by its number."""
    columns = {"payment": np.array([round_, 2], np.uint64), "login": np.array([3], np.uint64)}
    groups = np.array([round_, 0, 2**64 - 1], np.uint64)
    counts = {"payment": 2, "login": 1}
    return Record(round_, cut_time_us or round_, 5, 1, 2**63, groups, columns, counts)


def rows(round_: int) -> dict[tuple[str, int], np.ndarray]:
    """Row hashes of a round, of two lanes."""
    return {
        ("payment", 0): np.array([round_, 7], np.uint32),
        ("login", 1): np.array([9], np.uint32),
    }


def opened(folder: Path, after: int = 0, keep_h: float = 24, rows_h: float = 24) -> Certificate:
    return Certificate(folder, HEADER, after, round(keep_h * HOUR_US), round(rows_h * HOUR_US))


def fill(folder: Path, rounds: range, after: int = 0) -> None:
    certificate = opened(folder, after)
    for round_ in rounds:
        certificate.write(record(round_), rows(round_))
    certificate.sync()
    certificate.close()


def kept(folder: Path) -> list[int]:
    return [r.round for _, r in read_records(folder)]


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 5))
    found = [r for _, r in read_records(tmp_path)]
    assert [r.round for r in found] == [1, 2, 3, 4]
    again, wanted = found[2], record(3)
    assert (again.counts, again.alert_sum, again.received) == (wanted.counts, 2**63, 5)
    assert again.groups.tolist() == wanted.groups.tolist()
    assert {n: c.tolist() for n, c in again.columns.items()} == {"payment": [3, 2], "login": [3]}
    held = read_rows(tmp_path, 3)
    assert held is not None
    assert {k: v.tolist() for k, v in held.items()} == {("payment", 0): [3, 7], ("login", 1): [9]}
    assert read_rows(tmp_path, 5) is None


def test_only_rounds_cut_between_the_times_are_read(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 10))
    assert [r.round for _, r in read_records(tmp_path, 3, 6)] == [3, 4, 5]


def test_a_resumed_flow_writes_what_is_newer_than_its_manifest_again(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 8))
    fill(tmp_path, range(5, 7), after=4)
    assert kept(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert len(segments_of(tmp_path)) == 2
    fill(tmp_path, range(1, 3), after=0)
    assert kept(tmp_path) == [1, 2]


def test_a_resumed_flow_reads_no_file_that_can_hold_nothing_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, range(1, 5))
    fill(tmp_path, range(5, 9), after=4)
    fill(tmp_path, range(9, 11), after=8)
    read: Counter[str] = Counter()

    def counted(path: Path, magic: bytes) -> Iterator[tuple[bytes, int]]:
        for found in frames(path, magic):
            read[f"{int(path.stem)}{path.suffix}"] += 1
            yield found

    for module in ("certificate", "frames"):
        monkeypatch.setattr(f"dataflows.state.{module}.frames", counted)
    opened(tmp_path, after=6).close()
    monkeypatch.undo()
    # Of the oldest only the header, for its time; of the second up to the first that is newer.
    assert read == {"1.rounds": 1, "5.rounds": 4 + 1, "5.rows": 4, "9.rounds": 2, "9.rows": 2}
    assert kept(tmp_path) == [1, 2, 3, 4, 5, 6] and read_rows(tmp_path, 4) is not None


def test_a_tail_torn_at_any_byte_costs_the_last_round_and_no_other(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 4))
    (path,) = tmp_path.glob("*.rounds")
    whole = path.read_bytes()
    fill(tmp_path / "two", range(1, 3))
    (shorter,) = (tmp_path / "two").glob("*.rounds")
    for size in range(shorter.stat().st_size, len(whole)):
        path.write_bytes(whole[:size])
        assert kept(tmp_path) == [1, 2]
    damaged = bytearray(whole)
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    assert kept(tmp_path) == [1, 2]


def test_segments_past_their_time_are_dropped_rows_sooner(tmp_path: Path) -> None:
    certificate = opened(tmp_path, keep_h=10, rows_h=3)
    step_us = 2 * HOUR_US // SEGMENT_ROUNDS
    for round_ in range(1, 16 * SEGMENT_ROUNDS):
        certificate.write(record(round_, round_ * step_us), rows(round_))
    certificate.close()
    newest_us = 16 * 2 * HOUR_US
    times = [r.cut_time_us for _, r in read_records(tmp_path)]
    assert newest_us - 14 * HOUR_US <= times[0] <= newest_us - 10 * HOUR_US
    held = min(int(path.stem) for path in tmp_path.glob("*.rows"))
    assert newest_us - 7 * HOUR_US <= held * step_us <= newest_us - 3 * HOUR_US


def test_a_segment_is_on_the_disk_before_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        "dataflows.state.certificate.os.fdatasync",
        lambda file: synced.append(Path(f"/proc/self/fd/{file}").resolve().name),
    )
    certificate = opened(tmp_path)
    certificate.write(record(1), rows(1))
    assert synced == []
    certificate.write(record(1 + SEGMENT_ROUNDS, 2 * HOUR_US), rows(1 + SEGMENT_ROUNDS))
    certificate.close()
    assert sorted(synced) == [f"{1:020d}.rounds", f"{1:020d}.rows"]


def test_no_rows_are_kept_where_none_are_wanted(tmp_path: Path) -> None:
    certificate = opened(tmp_path, rows_h=0)
    certificate.write(record(1), rows(1))
    certificate.close()
    assert list(tmp_path.glob("*.rows")) == [] and kept(tmp_path) == [1]


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflows.state.certificate.FORMAT", 2)
    fill(tmp_path, range(1, 2))
    monkeypatch.undo()
    with pytest.raises(StateError, match="format 2, this version reads 1"):
        segments_of(tmp_path)


def test_an_event_that_alerted_in_two_rounds_has_both_in_a_whole_log(tmp_path: Path) -> None:
    told = [an_alert(1, round=1), an_alert(1, round=3)]
    lines = [alert.to_json() + "\n" for alert in (*told, told[1])]
    (tmp_path / FILE_NAME).write_text("".join(lines))
    certificate = opened(digests_folder(tmp_path))
    for n in (1, 2, 3):
        ids = [alert.id for alert in told if alert.round == n]
        made = replace(record(n), alerts=len(ids), alert_sum=alert_sum(ids))
        certificate.write(made, rows(n))
    certificate.sync()
    certificate.close()
    stretch = Stretch(Segment(1, tmp_path, HEADER), record(1), record(3))
    assert list(_then(tmp_path, stretch).values()) == told
    with pytest.raises(StateError, match="the log"):
        (tmp_path / FILE_NAME).write_text(lines[0])
        _then(tmp_path, stretch)


def test_a_difference_is_told_so_that_no_terminal_obeys_its_entity() -> None:
    text = "card \x1b]0;mine\x07 of event ../../x\x1bc: amount 1 then, 2 now"
    found = Certified(
        False, 7, 30, 1, 9, 0, 0, 0, 1, 0.5, {}, Difference(8, 0, "features", text, 2), {}
    )
    lines = told(found).split("\n")
    assert len(lines) == 2 and all(line.isprintable() for line in lines)
    assert "group 2: card \\x1b]0;mine\\x07 of event ../../x\\x1bc: amount" in lines[0]


def test_the_bundle_of_then_is_the_one_that_decided() -> None:
    bundles = [["promoted", "live"], ["x", "shadow"]]
    assert _live({**HEADER, "bundles": bundles}) == "promoted"
