"""The flow's own records on rules that follow: written, heard, in force, and never in a replay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dataflows.control.records import Control, ControlFile, append_record
from dataflows.opinions import Beside
from dataflows.recalibration import AutoRecalibration
from dataflows.score import RoundOut, touched
from dataflows.settings import Settings, load
from features.errors import StateError
from features.events import event_type
from models.recalibration import BLOCKS, spread_of

HOUR_US = 3_600_000_000
BUNDLE = "a" * 16
SHARE = 0.002
ROWS = 20_000
FOLLOW = {
    "kind": "recalibrate", "anomaly_type": "payment_fraud", "percent_a_day": 10.0, "share": SHARE,
}  # fmt: skip


class Loop:
    """Rounds of two lanes, an hour apart, with the control file in between, as in the flow."""

    def __init__(self, path: Path, drift: float = 0.25) -> None:
        self.settings: Settings = load(None, {}, control_file=path, state_dir=path.parent)
        self.file, self.control, self.said = ControlFile(path), Control(), []
        self.drift, self.round, self.bundle = drift, 0, BUNDLE
        self.rule, self.taken_over, self.of_one = "as trained", False, 0
        self.recalibration = self.begin({})
        self.shares: list[float] = []

    def begin(self, kept: dict[str, object]) -> AutoRecalibration:
        """What a process that goes on from a manifest has."""
        return AutoRecalibration(
            self.settings, self.said.append, kept, lambda _name, _control: self.rule, self.fence
        )

    def fence(self) -> None:
        """Says that another flow has the folder, once it has."""
        if self.taken_over:
            raise StateError("state_dir has been taken over")

    def hours(self, many: int, replayed: bool = False) -> None:
        """Let hours pass."""
        for _ in range(many):
            for record in self.file.take()[0]:
                self.control = self.control.apply(record)
            outs = [self.out(lane, replayed) for lane in range(2)]
            self.recalibration.look(outs[0].cut_time_us, outs)
            self.round += 1
            self.recalibration.settle()

    def out(self, lane: int, replayed: bool) -> RoundOut:
        """A lane's round; its events are a function of its number."""
        rng = np.random.default_rng((self.round, lane))
        margins = -np.log10(rng.random(ROWS // 2)) + np.log10(SHARE) + self.drift
        flagged = margins >= self.control.shift("payment_fraud", self.bundle)
        self.shares.append(float(flagged.mean()))
        entities = {"merchant m7": self.of_one // 2}
        margins[: self.of_one // 2] = 2.0
        flagged[: self.of_one // 2] = True
        spreads = (spread_of("payment_fraud", self.bundle, margins, flagged, entities),)
        return RoundOut(
            lane, self.round, self.round * HOUR_US, ROWS // 2, 0, (), {}, (), 0, 0,
            np.zeros(0, np.int64), (), self.control, False, replayed,
            beside=(Beside(self.bundle, "live"),),
            spreads=spreads if self.control.followed else (),
        )  # fmt: skip

    def shift(self) -> float:
        """In force."""
        return self.control.shift("payment_fraud", self.bundle)


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    """A stream that has drifted, and is asked to be followed."""
    append_record(tmp_path / "control.jsonl", json.dumps(FOLLOW))
    return Loop(tmp_path / "control.jsonl")


def test_a_drifted_stream_is_followed_by_records_of_the_flow(loop: Loop, tmp_path: Path) -> None:
    loop.hours(24 * 9)
    assert loop.shift() == pytest.approx(0.25, abs=0.03)
    assert np.mean(loop.shares[:48]) > 1.6 * SHARE
    assert np.mean(loop.shares[-48:]) == pytest.approx(SHARE, rel=0.15)
    lines = (tmp_path / "control.jsonl").read_text(encoding="utf-8").splitlines()
    told = [json.loads(line) for line in lines][1:]
    assert {(r["kind"], r["by"], r["bundle"]) for r in told} == {("shift", "waxwing", BUNDLE)}
    days = np.diff([0.0, *(r["value"] for r in told)])
    assert np.abs(days).max() <= np.log10(1.1) / 24 * 1.001 and not loop.said


def test_a_campaign_raises_nothing_and_is_told_once_while_it_lasts(tmp_path: Path) -> None:
    append_record(tmp_path / "control.jsonl", json.dumps(FOLLOW))
    loop = Loop(tmp_path / "control.jsonl", drift=0.0)
    loop.of_one = 50  # of the 40 that an hour is to have
    loop.hours(24 * 4)
    assert abs(loop.shift()) < 0.05
    (said,) = loop.said
    assert said.startswith("payment_fraud is not recalibrated for one alone: merchant m7 has")
    before, loop.recalibration = loop.recalibration.kept(), loop.begin(loop.recalibration.kept())
    loop.hours(2, replayed=True)
    assert len(loop.said) == 1 and before["payment_fraud"]["campaign"]


def test_alerts_count_for_every_entity_that_an_event_touches() -> None:
    frame = pl.DataFrame(
        {name: ["x", "y", "x"] for name in ("card_id", "user_id", "merchant_id", "device_id")}
        | {"ip": [None, "10.0.0.1", "10.0.0.2"]}
    )
    declared = event_type("payment")
    found = touched(declared, frame)
    assert found["card x"] == found["merchant x"] == 2 and found["card y"] == 1
    assert found["ip 10.0.0.1"] == 1 and sum(k.startswith("ip ") for k in found) == 2
    assert touched(declared, frame.clear()) == {}


def test_a_flow_that_was_taken_over_writes_no_record(loop: Loop, tmp_path: Path) -> None:
    loop.taken_over = True
    loop.hours(BLOCKS + 2)
    (line,) = (tmp_path / "control.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["kind"] == "recalibrate"
    assert loop.said and "is NOT recalibrated: state_dir has been taken over" in loop.said[0]


def test_without_a_record_nothing_is_followed(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "control.jsonl")
    loop.hours(3 * BLOCKS)
    assert not (tmp_path / "control.jsonl").exists() and loop.recalibration.kept() == {}
    assert np.mean(loop.shares) > 1.6 * SHARE


def test_a_restart_goes_on_from_the_manifest_and_replayed_rounds_write_nothing(
    loop: Loop, tmp_path: Path
) -> None:
    def written() -> int:
        return len((tmp_path / "control.jsonl").read_text(encoding="utf-8").splitlines())

    loop.hours(BLOCKS - 2)
    kept = json.loads(json.dumps(loop.recalibration.kept()))
    at, control = loop.round, loop.control
    loop.hours(2)
    assert loop.shift() == 0.0 and written() == 1, "twenty-four hours are not whole yet"
    loop.hours(4)
    told = written()
    assert told > 1
    loop.recalibration, loop.round, loop.control = loop.begin(kept), at, control
    loop.hours(6, replayed=True)
    assert written() == told
    loop.hours(2)
    assert written() > told, "what was learned before the restart counts"


@pytest.mark.parametrize(
    "change",
    [
        lambda loop: setattr(loop, "bundle", "b" * 16),
        lambda loop: setattr(loop, "rule", "edited"),
        lambda loop: append_record(
            loop.settings.control_file,
            json.dumps(
                {"kind": "threshold", "anomaly_type": "payment_fraud", "detector": "ensemble",
                 "value": 0.99}
            ),
        ),
    ],
    ids=["bundle", "voting", "threshold"],
)  # fmt: skip
def test_another_rule_is_learned_anew(loop: Loop, change: Callable[[Loop], None]) -> None:
    loop.hours(BLOCKS + 4)
    change(loop)
    loop.hours(1)  # in which the last record of before is heard
    before = loop.control.shifts["payment_fraud"]
    assert before[0] > 0.0
    loop.hours(BLOCKS - 2)
    assert loop.control.shifts["payment_fraud"] == before
    loop.hours(6)
    assert loop.control.shifts["payment_fraud"] != before


def test_a_frozen_rule_writes_nothing_until_it_is_free(loop: Loop) -> None:
    loop.hours(BLOCKS + 4)
    stop = {"kind": "freeze", "anomaly_type": "payment_fraud", "state": "on"}
    append_record(loop.settings.control_file or Path(), json.dumps(stop))
    loop.hours(2)
    stood = loop.shift()
    loop.hours(2 * BLOCKS)
    assert loop.shift() == stood > 0.0
    append_record(loop.settings.control_file or Path(), json.dumps(stop | {"state": "off"}))
    loop.hours(4)
    assert loop.shift() > stood
