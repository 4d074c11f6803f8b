"""Control records: read once, whole lines only, in force by a fold that a restart repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.control import records as module
from dataflows.control.records import Control, ControlFile, parse_record
from features.errors import ConfigError, StateError

MUTE: dict[str, Any] = {"kind": "mute", "entity_type": "card", "entity": "c1", "until_us": 50}
STAGE: dict[str, Any] = {"kind": "stage", "detector": "zscore", "stage": "shadow"}
THRESHOLD: dict[str, Any] = {
    "kind": "threshold",
    "anomaly_type": "fraud",
    "detector": "iqr",
    "value": 0.9,
}


def lines(*records: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(r).encode() + b"\n" for r in records)


@pytest.mark.parametrize("record", [MUTE, STAGE, THRESHOLD, {**STAGE, "percent": 5, "why": "x"}])
def test_a_good_record_is_taken_as_it_is(record: dict[str, Any]) -> None:
    assert parse_record(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 60_000, "not JSON"),
        ("[]", "expected an object"),
        ('{"kind": "unmute"}', "unknown kind 'unmute'"),
        ('{"kind": ["mute"]}', "unknown kind"),
        (json.dumps({**MUTE, "until_us": True}), "expected `until_us` as int, got True"),
        (json.dumps({**MUTE, "until_us": 1.5}), "expected `until_us` as int, got 1.5"),
        (json.dumps({**MUTE, "until": 1}), "unknown field 'until'"),
        (json.dumps({**THRESHOLD, "value": 1.01}), "in [0, 1], got 1.01"),
        (json.dumps({**THRESHOLD, "value": float("nan")}), "in [0, 1], got nan"),
        (json.dumps({**STAGE, "stage": "on"}), "stages are off, shadow, canary, live"),
        (json.dumps({**STAGE, "percent": 101}), "in [0, 100], got 101"),
        (json.dumps({**STAGE, "percent": None}), "in [0, 100], got None"),
        (json.dumps({**STAGE, "percent": True}), "in [0, 100], got True"),
        (json.dumps({**MUTE, "percent": 5}), "unknown field 'percent'"),
    ],
)
def test_a_bad_record_is_told_what_is_wrong(line: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_record(line)
    assert fault in str(caught.value)


def test_all_faults_of_a_record_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_record('{"kind": "threshold", "value": "high", "colour": 1}')
    assert len(caught.value.faults) == 4


@st.composite
def some_records(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from("abc"))
    kind = draw(st.sampled_from(["mute", "stage", "threshold"]))
    if kind == "mute":
        return {**MUTE, "entity": name, "until_us": draw(st.integers(0, 99))}
    if kind == "stage":
        return {**STAGE, "detector": name, "stage": draw(st.sampled_from(module.STAGES))}
    return {**THRESHOLD, "detector": name, "value": draw(st.integers(0, 10)) / 10}


@given(records=st.lists(some_records(), max_size=20), stop=st.integers(0, 20))
def test_a_restart_from_the_manifest_has_the_same_in_force(
    records: list[dict[str, Any]], stop: int
) -> None:
    whole = Control.of(records)
    kept = json.loads(json.dumps(Control.of(records[:stop]).records()))
    resumed = Control.of(kept)
    for record in records[stop:]:
        resumed = resumed.apply(record)
    assert resumed == whole
    assert Control.of(whole.records()) == whole
    for record in whole.records():
        assert parse_record(json.dumps(record)) == record


def test_a_mute_ends_at_its_time_and_not_before() -> None:
    control = Control.of([MUTE])
    assert control.expire(49) is control
    assert control.expire(50).mutes == {}
    assert control.mutes == {("card", "c1"): 50}, "what was in force stays as it was"


def test_the_file_may_appear_later_and_grow_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "control.jsonl"
    control = ControlFile(path)
    assert control.take() == ([], [])
    data = lines(MUTE, STAGE, THRESHOLD)
    got = []
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        records, faults = control.take()
        assert faults == []
        got += records
        assert control.position == data[:size].rfind(b"\n") + 1
    assert got == [MUTE, STAGE, THRESHOLD]
    assert control.take() == ([], [])


@given(position=st.integers(0, 3))
def test_a_reader_goes_on_at_a_journaled_position(
    tmp_path_factory: pytest.TempPathFactory, position: int
) -> None:
    path = tmp_path_factory.mktemp("control") / "control.jsonl"
    all_records = [MUTE, STAGE, THRESHOLD]
    path.write_bytes(lines(*all_records))
    control = ControlFile(path)
    control.seek(len(lines(*all_records[:position])))
    assert control.take() == (all_records[position:], [])


def test_bad_lines_are_told_with_their_place_and_the_rest_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "control.jsonl"
    long = b"x" * (module.LINE_BYTES_MAX + 1)
    path.write_bytes(b"\xff\xfe\n\n" + lines(MUTE) + b"nonsense\r\n" + long + b"\n" + lines(STAGE))
    records, faults = ControlFile(path).take()
    assert records == [MUTE, STAGE]
    assert [at for at, *_ in faults] == [0, 4 + len(lines(MUTE)), 14 + len(lines(MUTE))]
    assert [raw for _, raw, *_ in faults] == [b"\xff\xfe", b"nonsense\r", long[:-1]]
    assert "at most 65536 bytes, got 65537" in faults[2][2]


def test_a_huge_file_is_read_a_piece_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_BYTES_MAX", 200)
    path = tmp_path / "control.jsonl"
    path.write_bytes(lines(*[MUTE] * 10) + b"y" * 500 + b"\n" + lines(STAGE))
    control = ControlFile(path)
    got, bad, rounds = [], [], 0
    while control.position < path.stat().st_size:
        records, faults = control.take()
        got += records
        bad += faults
        rounds += 1
    assert got == [MUTE] * 10 + [STAGE]
    assert b"".join(raw for _, raw, *_ in bad) == b"y" * 500
    assert rounds > 5


def test_a_file_that_was_replaced_by_a_shorter_one_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "control.jsonl"
    path.write_bytes(lines(MUTE, STAGE))
    control = ControlFile(path)
    control.take()
    path.write_bytes(lines(THRESHOLD))
    assert control.take() == ([THRESHOLD], [])


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="Is a directory; make it readable"):
        ControlFile(tmp_path).take()
