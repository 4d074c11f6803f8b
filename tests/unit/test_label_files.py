"""Labels of a file: what is one, what is refused with its reason, when each is heard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dataflows.control.labels import LabelFile, WithLabels, label_record, open_labels
from dataflows.control.records import ControlFile
from dataflows.settings import load
from dataflows.sources.base import ALL_COME
from dataflows.sources.simulator import time_us_of
from features.errors import ConfigError

T = "2026-03-09T08:00:00Z"
T_US = time_us_of(T)
SAID = {"event_id": "p1", "verdict": "fraud", "time": T}


def opened(path: Path) -> LabelFile:
    """A file of labels in a flow that is not behind."""
    found = LabelFile(path, ["payment"])
    found.hear(ALL_COME)
    return found


WHOSE = {"event_time": "2026-03-02T00:00:00Z", "entities": {"card": "c1"}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"verdict": "maybe"}, "label: unknown verdict 'maybe'; there are fraud, genuine"),
        ({"event_id": ""}, "label: expected `event_id`"),
        ({"time": "yesterday"}, "label: expected `time` as ISO 8601 with its offset"),
        ({"time": "2026-03-09T08:00:00"}, "label: expected `time` as ISO 8601 with its offset"),
        ({"entities": {"card": "c1"}}, "label: expected `event_time_us` and `entities`, or neit"),
        ({**WHOSE, "entities": {"house": "h"}}, "label: unknown entity of payment 'house'"),
        ({**WHOSE, "entities": ["c1"]}, "label: expected `entities` as dict"),
        ({"event_type": "parcel"}, "label: unknown event type 'parcel'"),
        ({"colour": "red"}, "label: unknown field 'colour'"),
    ],
)
def test_what_is_no_label_is_told(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        label_record(SAID | change, ["payment"])
    assert caught.value.faults[0].startswith(told), caught.value.faults
    with pytest.raises(ConfigError, match="expected `event_type`, one of payment, login"):
        label_record(SAID, ["payment", "login"])


def test_json_and_csv_say_the_same(tmp_path: Path) -> None:
    lines = [SAID | WHOSE | {"source": "chargeback"}, SAID | {"event_id": "p,2", "time": T_US}]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (tmp_path / "labels.csv").write_text(
        "event_id,verdict,time,source,event_time,card,merchant\r\n"
        f"p1,fraud,{T},chargeback,2026-03-02T00:00:00Z,c1,\r\n"
        f'"p,2",fraud,{T_US},,,,\r\n'
    )
    found = [opened(tmp_path / f"labels.{s}").take() for s in ("jsonl", "csv")]
    assert found[0] == found[1] and found[0][1] == []
    records = found[0][0]
    assert [r["event_id"] for r in records] == ["p1", "p,2"]
    assert records[0]["entities"] == {"card": "c1"} and records[0]["source"] == "chargeback"
    assert "entities" not in records[1] and {r["time_us"] for r in records} == {T_US}


def test_a_bad_line_is_refused_where_it_stands_and_the_rest_go_on(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(
        f"event_id,verdict,time\np1,fraud,{T}\np2,fraud\np3,perhaps,{T}\np4,genuine,{T}\n"
    )
    records, faults = opened(path).take()
    assert [r["event_id"] for r in records] == ["p1", "p4"]
    lines = path.read_bytes().split(b"\n")
    assert [(f.raw, f.of) for f in faults] == [(lines[2], "label"), (lines[3], "label")]
    assert [path.read_bytes()[f.offset :][: len(f.raw)] for f in faults] == [lines[2], lines[3]]
    assert "expected 3 cells, got 2" in faults[0].reason
    path.write_text("who,what\np1,fraud\n")
    _, faults = opened(path).take()
    assert "the file has no column event_id, verdict, time" in faults[0].reason


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_label_waits_for_its_time_and_a_restart_goes_on_behind_the_last(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"labels.{suffix}"
    rows = [{"event_id": f"p{i}", "verdict": "fraud", "time": T_US + i} for i in range(4)]
    text = "".join(f"{r['event_id']},fraud,{r['time']}\n" for r in rows)
    path.write_text(
        "event_id,verdict,time\n" + text
        if suffix == "csv"
        else "".join(json.dumps(r) + "\n" for r in rows)
    )
    control = ControlFile(tmp_path / "control.jsonl")
    heard: list[tuple[int, str]] = []
    position: Any = None
    for clock in (T_US - 1, T_US, T_US + 2, T_US + 2, T_US + 9):
        made = WithLabels(control, LabelFile(path, ["payment"]))
        made.seek(position)
        made.hear(clock)
        records, faults = made.take()
        assert faults == []
        heard += [(clock - T_US, r["event_id"]) for r in records]
        position = json.loads(json.dumps(made.position))
    assert heard == [(0, "p0"), (2, "p1"), (2, "p2"), (9, "p3")]


def test_where_labels_are_added_control_records_go_on_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "control.jsonl"
    path.write_text('{"kind": "stage", "detector": "iqr", "stage": "off"}\n')
    alone = WithLabels(ControlFile(path), None)
    assert len(alone.take()[0]) == 1
    labels = tmp_path / "labels.jsonl"
    labels.write_text(json.dumps(SAID) + "\n")
    both = WithLabels(ControlFile(path), opened(labels))
    both.seek(alone.position)
    assert [r["kind"] for r in both.take()[0]] == ["label"]
    again = WithLabels(ControlFile(path), None)
    again.seek(both.position)
    assert again.take() == ([], [])


def test_labels_of_another_file_are_read_from_its_beginning(tmp_path: Path) -> None:
    def both(name: str) -> WithLabels:
        control = ControlFile(tmp_path / "control.jsonl")
        return WithLabels(control, opened(tmp_path / name))

    def ids(found: WithLabels) -> list[str]:
        return [r["event_id"] for r in found.take()[0]]

    for name, many in (("march.csv", 3), ("april.csv", 9)):
        lines = "".join(f"{name}{i},fraud,{T_US + i}\n" for i in range(many))
        (tmp_path / name).write_text("event_id,verdict,time\n" + lines)
    march = both("march.csv")
    assert ids(march) == [f"march.csv{i}" for i in range(3)]
    at = json.loads(json.dumps(march.position))
    april = both("april.csv")
    april.seek(at)
    assert ids(april) == [f"april.csv{i}" for i in range(9)]
    same = both("../" + tmp_path.name + "/march.csv")
    same.seek(at)
    assert ids(same) == [], "another way to the same file"
    del at["of"]
    april.seek(at)
    assert len(ids(april)) < 9, "a journal of before does not say of which file it speaks"


def test_a_label_with_a_wrong_year_does_not_stop_those_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    times = ["2026-03-09T08:00:00Z", "2062-03-09T08:00:00Z", T_US * 1_000]
    lines = [f"p{i},fraud,{time}\n" for i, time in enumerate(times)]
    path.write_text("event_id,verdict,time\n" + "".join(lines))
    found = LabelFile(path, ["payment"])
    found.hear(T_US)
    records, faults = found.take()
    assert [r["event_id"] for r in records] == ["p0"] and faults == [], "what is behind may be so"
    at = found.position
    assert found.take() == ([], []) and found.position == at
    with path.open("a") as file:
        file.write(f"p3,fraud,{T_US}\np4,fraud,{T_US + 1}\np5,fraud,0\n")
    records, faults = found.take()
    assert [r["event_id"] for r in records] == ["p3"], "the next waits, though one is of 1970"
    assert [f.raw.decode() + "\n" for f in faults] == lines[1:] and faults[0].offset == at
    assert "2062-03-09T08:00:00Z, is more than a year after the stream" in faults[0].reason
    assert f"{T_US * 1_000} us, is more than" in faults[1].reason


def test_labels_that_still_wait_are_told_of_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "labels.jsonl"
    first, second = (json.dumps(SAID | {"time": T_US + i}) + "\n" for i in (0, 60_000_000))
    path.write_text(first + second)
    both = WithLabels(ControlFile(tmp_path / "c.jsonl"), LabelFile(path, ["payment"]))
    both.hear(T_US)
    assert len(both.take()[0]) == 1
    both.close()
    told = f"from byte {len(first)} on they wait for 2026-03-09T08:01:00Z, the stream has come to"
    assert told in caplog.text and "2026-03-09T08:00:00Z" in caplog.text
    caplog.clear()
    both.hear(T_US + 60_000_000)
    assert len(both.take()[0]) == 1
    both.close()
    assert not caplog.text


def test_settings_name_one_place(tmp_path: Path) -> None:
    assert open_labels(load(None, {})) is None
    found = open_labels(load(None, {}, labels_file=tmp_path / "labels.csv"))
    assert isinstance(found, LabelFile) and found.origin == str(tmp_path / "labels.csv")
    with pytest.raises(ConfigError, match="either labels_topic or labels_file"):
        load(None, {}, labels_file="labels.csv", labels_topic="labels")
