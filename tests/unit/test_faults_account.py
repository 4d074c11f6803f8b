"""The account of the fault tests can find fault: what is lost or comes twice is counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.service.faults import __main__ as program
from tests.service.faults.field import Field, Row, Sender
from tests.service.faults.scenarios import FAULTS, _again
from tests.service.test_faults import ELSEWHERE, SHORT

ROOT = Path(__file__).resolve().parents[2]


def account(folder: Path, alerts: list[str], letters: list[tuple[int, int]], **more: Any) -> Row:
    """The account of events a, b, c, d at offsets 0 to 3 of partition 1, all acknowledged."""
    field: Any = Field.__new__(Field)
    field.name, field.state, field.topic = "made", folder, "t"
    acked = {name: (1, i) for i, name in enumerate("abcd")}
    field.sender = SimpleNamespace(acked=acked, made={*"abcde"})
    lines = [json.dumps({"event_id": name}) + "\n" for name in alerts]
    (folder / "alerts.jsonl").write_text("".join(lines))
    dead = [{"topic": "t", "partition": p, "offset": o} for p, o in letters]
    (folder / "dead_letters.jsonl").write_text("".join(json.dumps(d) + "\n" for d in dead))
    row = field.account(**more)
    assert isinstance(row, Row)
    return row


def counts(row: Row) -> tuple[int, ...]:
    return row.sent, row.scored, row.dead_lettered, row.lost, row.gap, row.twice


def test_every_fault_is_broken_in_make_test() -> None:
    assert ELSEWHERE.keys() <= FAULTS.keys() == {*SHORT, *ELSEWHERE}
    for tests in ELSEWHERE.values():
        assert tests
        for path, _, name in (test.partition("::") for test in tests):
            text = (ROOT / path).read_text(encoding="utf-8")
            assert f"\ndef {name}(" in text, f"{path} has no {name}"
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    begin = page.index("| fault | tested in `make test` by |")
    rows = page[begin : page.index("\n\n", begin)].splitlines()[2:]
    told = {
        name: set(re.findall(r"`(tests/[a-z_/.]+)`", tests))
        for _, names, tests, _ in (row.split("|") for row in rows)
        for name in re.findall(r"`([a-z_]+)`", names)
    }
    assert told == {name: {t.partition("::")[0] for t in of} for name, of in ELSEWHERE.items()}


def test_each_event_is_counted_once_where_it_went(tmp_path: Path) -> None:
    gap = {"partition": 1, "from": 2, "to": 2}
    assert counts(account(tmp_path, [*"abcd"], [])) == (4, 4, 0, 0, 0, 0)
    assert counts(account(tmp_path, [*"abd"], [])) == (4, 3, 0, 1, 0, 0), "dropped"
    assert counts(account(tmp_path, [*"abcdb"], [])) == (4, 4, 0, 0, 0, 1), "doubled"
    assert counts(account(tmp_path, [*"abd"], [(1, 2)])) == (4, 3, 1, 0, 0, 0), "dead letter"
    assert counts(account(tmp_path, [*"abd"], [(0, 2)])) == (4, 3, 0, 1, 0, 0), "another's"
    assert counts(account(tmp_path, [*"abd"], [], gaps=[gap])) == (4, 3, 0, 0, 1, 0), "in a gap"
    assert counts(account(tmp_path, [*"ab"], [], gaps=[gap])) == (4, 2, 0, 1, 1, 0), "beside it"
    assert counts(account(tmp_path, [*"abd"], [(1, 2)], gaps=[gap]))[3] == 0, "in both"
    assert counts(account(tmp_path, [*"abcd"], [(1, 2)])) == (4, 4, 0, 0, 0, 1), "alert and letter"
    assert counts(account(tmp_path, [*"abd"], [(1, 2)] * 2)) == (4, 3, 1, 0, 0, 1), "two letters"
    assert counts(account(tmp_path, [*"abcde"], [])) == (4, 4, 0, 0, 0, 0), "not acknowledged yet"


def test_an_alert_of_an_event_that_nobody_sent_is_no_account(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="alerts of 1 events never sent"):
        account(tmp_path, [*"abcdf"], [])


@pytest.mark.parametrize(
    ("row", "status"),
    [
        (Row("kills", sent=5, scored=5), 0),
        (Row("kills", sent=5, scored=4, lost=1), 1),
        (Row("kills", sent=5, scored=5, twice=1), 1),
        (Row("kills"), 1),
        (Row("kills", sent=5, scored=3, dead_lettered=1), 1),
        (Row("kills", sent=5, scored=3, dead_lettered=1, more={"duplicates_json": 1}), 0),
        (AssertionError("a promise"), 1),
    ],
)
def test_a_broken_promise_is_status_1(
    row: Row | AssertionError,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def fault(*_: object) -> Row:
        if isinstance(row, Row):
            return row
        raise row

    for server in ("Kafka", "Registry", "Redis"):
        monkeypatch.setattr(program, server, nullcontext)
    monkeypatch.setattr(program, "train_bench", lambda _: None)
    monkeypatch.setattr(program, "run_fault", fault)
    report = tmp_path / "faults.json"
    given = ["faults", "--seed", "1", "--only", "kills", "--json", str(report)]
    monkeypatch.setattr("sys.argv", given)
    assert program.main() == status
    found = json.loads(report.read_text())
    assert found["broken"] == (["kills"] if isinstance(row, AssertionError) else [])


def test_a_fault_that_is_none_is_refused_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["faults", "--only", "kills,kils"])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert "no fault kils; faults are kills, kills_topic" in capsys.readouterr().err


def test_repeats_of_an_id_are_counted_since_the_crash_before() -> None:
    before = Counter({"a": 1, "b": 2})
    assert _again(before, Counter({"a": 1, "b": 2, "c": 1})) == 0
    assert _again(before, Counter({"a": 2, "b": 3, "c": 2})) == 1
    assert _again(before, Counter({"a": 1, "b": 4})) == 2
    assert _again(before, Counter({"c": 3})) == 2
    assert _again(Counter(), Counter()) == 0


def test_a_seed_repeats_the_stream() -> None:
    one, same, other = (Sender("127.0.0.1:1", "t", seed, None) for seed in (5, 5, 6))
    first = one.frame(50)
    assert first.equals(same.frame(50)) and not first.equals(other.frame(50))
    assert one.frame(50)["event_id"].is_in(first["event_id"].implode()).sum() == 0
