"""A fault in any step ends the flow with one sentence kept, no panic, and nothing written after."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.run import cli_main

from dataflows.guard import Guard, StepFault
from dataflows.observe.telemetry import Telemetry
from dataflows.quarantine import settled_context, suspect
from dataflows.settings import Settings
from features.errors import SourceError

PLACES = ("source opens", "source reads", "logic", "flat", "sink opens", "sink writes")
FAULT_AT = 4


class Numbers(StatefulSourcePartition[tuple[str, int], int]):
    """0, 1, 2 ... 9."""

    def __init__(self, place: str) -> None:
        self.place, self.next = place, 0

    def next_batch(self) -> list[tuple[str, int]]:
        if self.next == 10:
            raise StopIteration
        self.next += 1
        fail_at(self.place, "source reads", self.next)
        return [("key", self.next)]

    def snapshot(self) -> int:
        return self.next


class Source(FixedPartitionedSource[tuple[str, int], int]):
    """One partition of numbers."""

    def __init__(self, place: str) -> None:
        self.place = place

    def list_parts(self) -> list[str]:
        return ["one"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Numbers:
        fail_at(self.place, "source opens", FAULT_AT)
        return Numbers(self.place)


class Pass(StatefulBatchLogic[int, int, int]):
    """What comes in goes out."""

    def __init__(self, place: str) -> None:
        self.place = place

    def on_batch(self, values: list[int]) -> tuple[list[int], bool]:
        fail_at(self.place, "logic", values[-1])
        return values, False

    def snapshot(self) -> int:
        return 0


class Written(StatefulSinkPartition[int, int]):
    """Keeps what it is given."""

    def __init__(self, place: str, out: list[int]) -> None:
        self.place, self.out = place, out

    def write_batch(self, values: list[int]) -> None:
        fail_at(self.place, "sink writes", values[-1])
        self.out += values

    def snapshot(self) -> int:
        return 0


class Sink(FixedPartitionedSink[int, int]):
    """One partition."""

    def __init__(self, place: str, out: list[int]) -> None:
        self.place, self.out = place, out

    def list_parts(self) -> list[str]:
        return ["key"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Written:
        fail_at(self.place, "sink opens", FAULT_AT)
        return Written(self.place, self.out)


def fail_at(place: str, here: str, number: int) -> None:
    """Raise where the test wants it."""
    if place == here and number == FAULT_AT:
        raise SourceError(f"{place}: broken; mend it")


def run(place: str, guard: Guard) -> list[int]:
    """Run the flow to its end; what was written."""
    out: list[int] = []
    flow = Dataflow("guarded")
    numbers = op.input("numbers", flow, guard.source(Source(place)))
    passed = op.stateful_batch("pass", numbers, guard.logic(lambda: Pass(place)))

    def same(keyed: tuple[str, Any]) -> list[tuple[str, Any]]:
        fail_at(place, "flat", keyed[1])
        return [keyed]

    op.output("out", op.flat_map("same", passed, guard.flat(same)), guard.sink(Sink(place, out)))
    cli_main(flow, epoch_interval=timedelta(0))
    return out


@pytest.mark.parametrize("place", PLACES)
def test_a_fault_is_kept_and_nothing_is_written_after_it(
    place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    guard = Guard()
    out = run(place, guard)
    assert str(guard.fault) == f"{place}: broken; mend it"
    assert out == ([] if "opens" in place else [1, 2, 3])
    assert capfd.readouterr().err == "", "no panic, no traceback"


def test_without_a_fault_everything_passes() -> None:
    guard = Guard()
    assert run("nowhere", guard) == list(range(1, 11))
    assert guard.fault is None


def test_the_context_that_finds_an_event_lets_go_of_its_shelf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    def make_context(*_: Any) -> Any:
        return SimpleNamespace(
            lease=SimpleNamespace(give_back=lambda: closed.append("lease")),
            shelf=SimpleNamespace(close=lambda: closed.append("shelf")),
            store=None,
            restored={},
        )

    monkeypatch.setattr("dataflows.quarantine.make_context", make_context)
    monkeypatch.setattr("dataflows.quarantine._noted", lambda *_: True)
    settings = Settings(state_dir=tmp_path)
    suspect(settings, StepFault("score", 7, ValueError("odd")))
    settled_context(settings, Telemetry())
    assert sorted(closed) == ["lease", "shelf"]
