"""Control records: read once, whole lines only, in force by a fold that a restart repeats."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.auto_rollback import SLOW_ROUNDS, AutoRollback
from dataflows.cli.main import main
from dataflows.control import records as module
from dataflows.control.records import (
    Control,
    ControlFile,
    Fault,
    Names,
    append_record,
    parse_record,
)
from dataflows.opinions import Beside
from dataflows.score import RoundOut
from dataflows.settings import Settings
from dataflows.state.journal import Cut, LaneJournal
from features.errors import ConfigError, StateError
from models.voting import AnomalyType, Voting

PAGE = Path(__file__).resolve().parents[2] / "docs" / "control.md"

VOTING = Voting(
    {
        "payment_fraud": AnomalyType(
            "payment_fraud", "payment", thresholds={"zscore": 0.9, "transformer": 0.99}
        ),
        "fraud": AnomalyType("fraud", "payment", thresholds={"iqr": 0.9}),
    }
)
NAMES = Names.of(VOTING, ["zscore", "transformer"])
"""What a flow with these rules knows that runs two of its three detectors."""

MUTE: dict[str, Any] = {"kind": "mute", "entity_type": "card", "entity": "c1", "until_us": 50}
STAGE: dict[str, Any] = {"kind": "stage", "detector": "zscore", "stage": "shadow"}
THRESHOLD: dict[str, Any] = {
    "kind": "threshold",
    "anomaly_type": "fraud",
    "detector": "iqr",
    "value": 0.9,
}
LABEL: dict[str, Any] = {
    "kind": "label",
    "event_type": "payment",
    "event_id": "p1",
    "verdict": "fraud",
    "event_time_us": 5,
    "entities": {"card": "c1", "merchant": "m9"},
}
FOLLOW = {
    "kind": "recalibrate", "anomaly_type": "fraud", "percent_a_day": 5.0, "share": 0.002,
}  # fmt: skip
SHIFT = {"kind": "shift", "anomaly_type": "fraud", "bundle": "a" * 16, "value": 0.25}


def lines(*records: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(r).encode() + b"\n" for r in records)


def _bundle(name: str, stage: str) -> dict[str, Any]:
    return {"kind": "bundle", "bundle": name * 16, "stage": stage}


@pytest.mark.parametrize(
    "record",
    [
        MUTE,
        STAGE,
        THRESHOLD,
        {**STAGE, "percent": 5, "why": "x"},
        LABEL,
        {**LABEL, "source": "x"},
        FOLLOW,
        SHIFT,
        {**FOLLOW, "block_s": 60, "freeze_ratio": 2.5},
        {"kind": "recalibrate", "anomaly_type": "fraud", "percent_a_day": 0},
    ],
)
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
        (json.dumps({**MUTE, "why": ["because"]}), "expected `why` as text, got ['because']"),
        (json.dumps({**MUTE, "entity": ["x" * 9_000]}), "expected `entity` as str, got ['xxx"),
        (json.dumps({**LABEL, "verdict": "frod"}), "verdict 'frod' (did you mean 'fraud'?)"),
        (json.dumps({**LABEL, "event_type": "paymnt"}), "did you mean 'payment'?"),
        (json.dumps({**LABEL, "event_time_us": 0}), "in microseconds since 1970, got 0"),
        (json.dumps({**LABEL, "event_id": ""}), "`event_id` and `source` as 1 to 256 characters"),
        (
            '{"kind": "bundle", "bundle": "../x", "stage": "live"}',
            "expected `bundle` as the 16 hex",
        ),
        (json.dumps(_bundle("a", "loud")), "control record bundle: unknown stage 'loud'"),
        (json.dumps({**_bundle("a", "live"), "path": 5}), "expected `path` as text, got 5"),
        ('{"kind": "rollback", "bundle": "x"}', "control record rollback: expected `bundle` as"),
        ('{"kind": "rollback", "off": true}', "expected `off` as true, beside a `bundle`"),
        ('{"kind": "undo", "steps": []}', "unknown kind 'undo'"),
        (json.dumps({**FOLLOW, "share": 0}), "expected `share` in [1e-06, 0.5], got 0"),
        (json.dumps({**FOLLOW, "block_s": "1h"}), "expected `block_s` in [1, 604800], got '1h'"),
        (
            '{"kind": "recalibrate", "anomaly_type": "fraud", "percent_a_day": 5}',
            "expected `share`, of the events that are to alert",
        ),
        (json.dumps({**SHIFT, "value": 1.5}), "expected `value` in [-1, 1], got 1.5"),
        (json.dumps({**SHIFT, "bundle": "x"}), "control record shift: expected `bundle` as the 16"),
        ('{"kind": "freeze", "anomaly_type": "fraud", "state": "no"}', "unknown state 'no'"),
        (json.dumps({**LABEL, "event_id": "\ud800"}), "`event_id` and `source` as 1 to"),
        (json.dumps({**LABEL, "source": 5}), "`event_id` and `source` as 1 to 256 characters"),
        (json.dumps({**LABEL, "entities": {}}), "card, user, merchant, device, ip"),
        (json.dumps({**LABEL, "entities": {"host": "h1"}}), "unknown entity of payment 'host'"),
        (json.dumps({**LABEL, "entities": {"card": {"c": 1}}}), "expected the name of a card"),
        (json.dumps({**LABEL, "entities": [1]}), "expected `entities` as dict, got [1]"),
    ],
)
def test_a_bad_record_is_told_what_is_wrong(line: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_record(line)
    assert fault in str(caught.value)


def test_no_depth_of_nesting_brings_a_reader_down(tmp_path: Path) -> None:
    path = tmp_path / "control.jsonl"
    depths = [1, 400, *range(800, 1_000, 10), 5_000]
    records = [MUTE | {"entity": "@", "why": "@"}, MUTE | {"kind": "@"}, MUTE | {"@": 1, "id": "@"}]
    for depth in depths:
        nested = "[" * depth + "]" * depth
        for record in records:
            append_record(path, json.dumps(record).replace('"@"', nested, 2))
    taken, faults = ControlFile(path).take()
    assert taken == [] and len(faults) == len(depths) * len(records)
    assert max(len(f.reason) for f in faults) < 1_000


def test_all_faults_of_a_record_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_record('{"kind": "threshold", "value": "high", "colour": 1}')
    assert len(caught.value.faults) == 4


@st.composite
def some_records(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from("abc"))
    kind = draw(st.sampled_from(["mute", "stage", "threshold", "bundle", "rollback"]))
    if kind == "mute":
        return {**MUTE, "entity": name, "until_us": draw(st.integers(0, 99))}
    if kind == "stage":
        return {**STAGE, "detector": name, "stage": draw(st.sampled_from(module.STAGES))}
    if kind == "bundle":
        stage = draw(st.sampled_from(module.STAGES))
        return {"kind": "bundle", "bundle": name * 16, "stage": stage, "percent": 100.0}
    if kind == "rollback":
        named = {"bundle": name * 16}
        return {"kind": "rollback"} | draw(st.sampled_from([{}, named, named | {"off": True}]))
    return {**THRESHOLD, "detector": name, "value": draw(st.integers(0, 10)) / 10}


@given(records=st.lists(some_records(), max_size=20), stop=st.integers(0, 20))
def test_a_restart_from_the_manifest_has_the_same_in_force(
    records: list[dict[str, Any]], stop: int
) -> None:
    whole = Control.of(records)
    kept = json.loads(json.dumps(Control.of(records[:stop]).kept()))
    resumed = Control.of(kept)
    for record in records[stop:]:
        resumed = resumed.apply(record)
    assert resumed == whole
    assert Control.of(whole.kept()) == whole
    for record in whole.records():
        assert parse_record(json.dumps(record)) == record


def test_who_said_what_is_in_force_is_told_with_it_and_outlives_a_restart() -> None:
    mute = {"kind": "mute", "entity_type": "card", "entity": "c-1", "until_us": 90}
    canary = {"kind": "stage", "detector": "zscore", "stage": "canary", "percent": 10.0}
    by = {"id": "7", "by": "ann", "why": "a test drive"}
    whole = Control().apply(mute | by, 11).apply(canary | {"by": "bob"}, 12)
    whole = whole.apply(_bundle("a", "shadow") | {"why": "new"}, 13)
    told = [
        canary | {"by": "bob", "at_us": 12},
        mute | by | {"at_us": 11},
        _bundle("a", "shadow") | {"percent": 100.0, "why": "new", "at_us": 13},
    ]
    assert whole.noted() == told
    resumed = Control.of(json.loads(json.dumps(whole.kept())))
    assert resumed.noted() == told
    changed = resumed.apply(canary | {"percent": 50, "by": "eve"}, 14)
    assert changed.noted()[0] == canary | {"percent": 50.0, "by": "eve", "at_us": 14}
    back = changed.apply({"kind": "rollback"}, 15)
    assert back.noted()[0] == told[0], "not who said something else"
    assert back.apply({"kind": "rollback", "bundle": "b" * 16}, 16) is back


def test_notes_on_what_is_no_longer_in_force_are_let_go() -> None:
    control = Control()
    for i in range(10 * module.NOTES_MIN):
        control = control.apply({**THRESHOLD, "value": i / 1_000, "by": "ann"}, i)
    assert len(control.notes) <= module.NOTES_MIN + 3
    assert [r["at_us"] for r in control.noted()] == [10 * module.NOTES_MIN - 1]


def test_what_cannot_be_rolled_back_cannot_after_a_restart_either() -> None:
    promoted = [_bundle("ab"[i % 2], "live") for i in range(module.UNDO_MAX + 4)]
    whole = Control.of([*promoted, *[{"kind": "rollback"}] * module.UNDO_MAX])
    assert whole.bundles and not whole.undo
    assert Control.of(whole.kept()) == whole


def test_a_live_bundle_takes_the_place_of_the_one_before_and_a_rollback_gives_it_back() -> None:
    first = Control.of([_bundle("a", "live"), _bundle("b", "shadow")])
    second = first.apply(_bundle("b", "live"))
    assert second.bundles == {"b" * 16: ("live", 100.0)}
    assert second.apply({"kind": "rollback"}).bundles == first.bundles
    again = second.apply({"kind": "rollback"}).apply({"kind": "rollback"})
    assert again.bundles == {"a" * 16: ("live", 100.0)}, "one step each"
    assert again.apply({"kind": "rollback"}).bundles == {}
    assert Control().apply({"kind": "rollback"}) == Control(), "nothing to go back to"


def test_a_rollback_of_a_bundle_does_nothing_to_others() -> None:
    control = Control.of([_bundle("a", "canary"), {**STAGE, "detector": "z", "stage": "off"}])
    rolled = control.apply({"kind": "rollback", "bundle": "a" * 16})
    assert rolled.bundles == {} and rolled.stages == control.stages
    assert control.apply({"kind": "rollback", "bundle": "b" * 16}) is control


def test_a_bundle_that_is_rolled_back_to_be_off_is_no_canary_again() -> None:
    control = Control.of([_bundle(name, stage) for name, stage in
                          (("a", "live"), ("b", "canary"), ("b", "live"))])  # fmt: skip
    back = {"kind": "rollback", "bundle": "b" * 16}
    assert control.apply(back).bundles["b" * 16] == ("canary", 100.0), "as a person asks for it"
    assert control.apply(back | {"off": True}).bundles == {"a" * 16: ("live", 100.0)}
    alone = Control.of([_bundle("b", "canary"), _bundle("b", "live")])
    assert alone.apply(back | {"off": True}).bundles == {}, "that of the settings is live"


def test_what_the_flow_took_off_is_not_brought_back_by_a_rollback_beside_it() -> None:
    """A person and the flow roll the same bundle back in one moment, in either order."""
    off = {"kind": "rollback", "bundle": "b" * 16, "off": True}
    tried = [_bundle("b", "canary"), _bundle("b", "live")]
    assert Control.of([*tried, off, {"kind": "rollback"}]) == Control()
    assert Control.of([*tried, {"kind": "rollback"}, off]) == Control()
    first = Control.of([_bundle("a", "live")])
    after = Control.of([_bundle("a", "live"), *tried, off])
    assert (after.bundles, after.undo) == (first.bundles, first.undo)
    stage = {**STAGE, "detector": "z", "stage": "off"}
    between = Control.of([_bundle("a", "live"), tried[0], stage, tried[1], _bundle("c", "shadow")])
    for step in range(len(between.undo)):
        rolled = Control.of([*between.kept(), off, *[{"kind": "rollback"}] * step])
        assert "b" * 16 not in rolled.bundles, step
    back = between.apply(off).apply({"kind": "rollback"})
    assert back.stages == between.stages and back.bundles == first.bundles, "c goes, z stays off"
    assert back.apply({"kind": "rollback"}) == first, "no step that changes nothing"


def test_a_live_bundle_that_is_rolled_back_gives_way_to_the_one_before_it() -> None:
    promoted = [_bundle("a", "live"), _bundle("b", "live"), _bundle("c", "shadow")]
    back = {"kind": "rollback", "bundle": "b" * 16}
    rolled = Control.of(promoted).apply(back)
    assert rolled.bundles == {"c" * 16: ("shadow", 100.0), "a" * 16: ("live", 100.0)}
    settings = Control.of([promoted[0], _bundle("a", "off"), *promoted[1:]]).apply(back)
    assert settings.bundles == {"c" * 16: ("shadow", 100.0)}, "not one that was off before it"


class Watch:
    """The flow's own rollbacks, shown rounds of one lane or several."""

    def __init__(self, tmp_path: Path) -> None:
        self.said: list[str] = []
        self.settings = Settings(
            state_dir=tmp_path, control_file=tmp_path / "control.jsonl", rollback_score_ms=10.0
        )
        self.rollback = AutoRollback(self.settings, self.said.append)
        self.second = 0

    @property
    def now_us(self) -> int:
        """Cut time of the last round."""
        return self.second * 1_000_000

    def restart(self, control: Control) -> None:
        """Go on from a manifest, in which `control` is in force."""
        kept = json.loads(json.dumps([self.rollback.kept(), control.kept()]))
        self.rollback = AutoRollback(self.settings, self.said.append, kept[0], Control.of(kept[1]))

    def look(
        self,
        control: Control,
        *lanes: dict[str, float],
        rows: int = 1,
        missed: str = "",
        flagged: str = "",
    ) -> None:
        """Twenty rounds of so many rows in which each lane's scores take so long, by bundle."""
        stages = {"s": "live"} | {k[0]: stage for k, (stage, _) in control.bundles.items()}
        for _ in range(SLOW_ROUNDS):
            self.second += 1
            outs = [
                SimpleNamespace(
                    beside=[
                        Beside(
                            name * 16,
                            stages[name],
                            rows=rows,
                            flagged=rows if name in flagged else 0,
                            missed=rows if name in missed else 0,
                            score_ms=ms,
                        )
                        for name, ms in taken_ms.items()
                    ],
                    control=control,
                    replayed=False,
                )
                for taken_ms in lanes
            ]
            self.rollback.look(self.now_us, cast("list[RoundOut]", outs))

    def settle(self) -> None:
        """Wait for what is being written."""
        for thread in threading.enumerate():
            if thread.name == "waxwing-rollback":
                thread.join()

    def asked(self) -> list[dict[str, Any]]:
        """The records it has written."""
        self.settle()
        path = self.settings.control_file
        assert path is not None
        return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []


def test_a_canary_that_was_rolled_back_and_is_promoted_is_judged_again(tmp_path: Path) -> None:
    watch, control = Watch(tmp_path), Control.of([_bundle("b", "canary")])
    watch.look(control, {"s": 1.0, "b": 50.0})
    watch.look(control, {"s": 1.0, "b": 50.0})
    (asked,) = watch.asked()
    assert asked["bundle"] == "b" * 16 and asked["off"] is True
    assert parse_record(json.dumps(asked)) == asked
    watch.look(control.apply(_bundle("b", "live")), {"b": 50.0})
    assert len(watch.asked()) == 2


@pytest.mark.parametrize("extra", [[], [_bundle("c", "shadow")], [_bundle("b", "canary")]])
def test_what_a_rollback_brings_back_is_not_newly_promoted(
    tmp_path: Path, extra: list[dict[str, Any]]
) -> None:
    watch, control = Watch(tmp_path), Control.of([_bundle("a", "live")])
    watch.look(control, {"a": 15.0})
    assert watch.asked() == [], "live when the flow began"
    before = [record for record in extra if record["stage"] == "canary"]
    for record in (*before, _bundle("b", "live"), *[r for r in extra if r not in before]):
        control = control.apply(record)
    watch.look(control, {"b": 50.0})
    (asked,) = watch.asked()
    control = control.apply(asked)
    watch.look(control, {"a": 50.0})
    assert len(watch.asked()) == 1, "the machine is slow, not the bundle"
    watch.look(control.apply(_bundle("b", "live")), {"b": 200.0})
    assert len(watch.asked()) == 2, "promoted again"


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(("usual_ms", "rows", "asked"), [(600, 10, 0), (50, 10, 1), (50, 100, 0)])
def test_a_bundle_is_slow_where_an_event_takes_it_longer_and_not_where_there_are_more_of_them(
    tmp_path: Path, restarted: bool, usual_ms: float, rows: int, asked: int
) -> None:
    for stage in ("live", "canary"):
        watch, control = Watch(tmp_path / stage), Control.of([_bundle("a", "live")])
        watch.settings.state_dir.mkdir()
        watch.look(control, {"a": usual_ms}, rows=10)
        control = control.apply(_bundle("b", stage), watch.now_us)
        if restarted:
            watch.look(control, {"a": usual_ms, "b": 1.0} if stage == "canary" else {"b": 1.0})
            watch.restart(control)
        live_ms = usual_ms * rows / 10
        taken_ms = {"b": 600.0} | ({"a": live_ms} if stage == "canary" else {})
        watch.look(control, taken_ms, rows=rows)
        assert len(watch.asked()) == asked, stage
        for record in watch.asked():
            assert record["why"].endswith("and an event 12.0 times as long as usual")


def test_a_rollback_that_cannot_be_written_is_tried_again_after_a_while(tmp_path: Path) -> None:
    watch, control = Watch(tmp_path), Control.of([_bundle("b", "canary")])
    path = watch.settings.control_file
    assert path is not None
    path.mkdir()
    watch.look(control, {"s": 1.0, "b": 50.0})
    watch.settle()
    watch.look(control, {"s": 1.0, "b": 50.0})
    watch.settle()
    told = [one for one in watch.said if "NOT rolled back" in one]
    assert len(told) == 1 and "tried again after 30 s" in told[0], watch.said
    path.rmdir()
    watch.look(control, {"s": 1.0, "b": 50.0})
    assert [record["bundle"] for record in watch.asked()] == ["b" * 16]
    watch.look(control, {"s": 1.0, "b": 50.0})
    watch.look(control, {"s": 1.0, "b": 50.0})
    assert len(watch.asked()) == 1, "once it is written"


def test_a_flow_that_was_superseded_rolls_nothing_back(tmp_path: Path) -> None:
    watch, control = Watch(tmp_path), Control.of([_bundle("b", "canary")])

    def fence() -> None:
        raise StateError("another has taken over")

    watch.rollback = AutoRollback(watch.settings, watch.said.append, fence=fence)
    watch.look(control, {"s": 1.0, "b": 50.0})
    assert watch.asked() == [] and "NOT rolled back: another has taken over" in watch.said[-1]


@pytest.mark.parametrize("passed_s", [10, 590, 700])
def test_a_bundle_is_watched_after_a_restart_as_long_as_it_would_have_been_without(
    tmp_path: Path, passed_s: int
) -> None:
    watch, control = Watch(tmp_path), Control.of([_bundle("a", "live")])
    watch.look(control, {"a": 1.0}, rows=100)
    control = control.apply(_bundle("b", "live"), watch.now_us)
    watch.look(control, {"b": 1.0}, rows=100)
    watch.second += passed_s - 40
    watch.restart(control)
    watch.look(control, {"b": 1.0}, rows=100, missed="b")
    assert len(watch.asked()) == (passed_s < 600)


def test_a_bundle_that_was_promoted_before_anything_was_kept_is_watched(tmp_path: Path) -> None:
    for passed_s, asked in ((700, 0), (10, 1)):
        watch = Watch(tmp_path)
        watch.second = passed_s
        control = Control().apply(_bundle("b", "live"), 1)
        watch.look(control, {"b": 1.0}, rows=100, missed="b")
        assert len(watch.asked()) == asked


def test_what_a_rollback_brought_back_is_not_newly_promoted_after_a_restart(
    tmp_path: Path,
) -> None:
    watch = Watch(tmp_path)
    control = Control().apply(_bundle("a", "live"), 1)
    watch.look(control, {"a": 1.0}, rows=100)
    before = control = control.apply(_bundle("b", "live"), watch.now_us)
    watch.look(control, {"b": 1.0}, rows=100, missed="b")
    (asked,) = watch.asked()
    control = control.apply(asked, watch.now_us)
    for manifest_of in (before, control):
        watch.restart(manifest_of)
        watch.look(control, {"a": 1.0}, rows=100, missed="a")
        assert len(watch.asked()) == 1, "all of a detector is missing, not of the bundle"


def test_what_was_usual_before_a_promotion_is_known_after_a_restart(tmp_path: Path) -> None:
    watch, control = Watch(tmp_path), Control.of([_bundle("a", "live")])
    watch.look(control, {"a": 1.0}, rows=1000)
    control = control.apply(_bundle("b", "live"), watch.now_us)
    watch.look(control, {"b": 1.0}, rows=1000)
    watch.restart(control)
    watch.look(control, {"b": 1.0}, rows=1000, flagged="b")
    (asked,) = watch.asked()
    assert "are usual (rollback_alerts_ratio_max = 10)" in asked["why"]


def test_lanes_beside_each_other_take_no_longer_than_the_longest(tmp_path: Path) -> None:
    watch, control = Watch(tmp_path), Control.of([_bundle("b", "canary")])
    watch.look(control, *[{"s": 1.0, "b": 4.0}] * 4)
    assert watch.asked() == []
    watch.look(control, {"s": 1.0, "b": 4.0}, {"s": 1.0, "b": 11.0})
    assert len(watch.asked()) == 1


def test_no_more_bundles_score_beside_the_live_one_than_may() -> None:
    control = Control.of([_bundle(name, "shadow") for name in "abcdef"])
    assert list(control.bundles) == [name * 16 for name in "def"]


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


@pytest.mark.parametrize("slashes", ["://", ":\\/\\/"])
@pytest.mark.parametrize("end", ["}", ""])
def test_no_password_of_an_address_is_told_or_kept(tmp_path: Path, slashes: str, end: str) -> None:
    path = tmp_path / "control.jsonl"
    line = json.dumps(_bundle("a", "live") | {"path": "https://me:secret@host/b.tgz"})
    path.write_text(line.replace("://", slashes).removesuffix("}") + end + "\n")
    records, faults = ControlFile(path).take()
    assert not records and len(faults) == 1
    assert "secret" not in repr(faults) and b"***@host" in faults[0].raw
    assert ("user or password in it" in faults[0].reason) == bool(end)


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


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({**THRESHOLD, "anomaly_type": "frauds"}, "unknown anomaly type 'frauds' (did you mean"),
        (THRESHOLD, "unknown detector of fraud 'iqr'; there are ensemble"),
        ({**STAGE, "detector": "iqr"}, "unknown detector 'iqr'; there are zscore, transformer"),
        ({**STAGE, "detector": "ensemble"}, "unknown detector 'ensemble'"),
        ({**MUTE, "entity_type": "cart"}, "unknown entity type 'cart' (did you mean 'card'?)"),
        ({**FOLLOW, "anomaly_type": "frauds"}, "unknown anomaly type 'frauds' (did you mean"),
    ],
)
def test_a_record_about_what_the_flow_does_not_have_is_refused(
    record: dict[str, Any], fault: str
) -> None:
    assert parse_record(json.dumps(record)) == record, "well formed"
    with pytest.raises(ConfigError) as caught:
        parse_record(json.dumps(record), NAMES)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [
        MUTE,
        STAGE,
        {**THRESHOLD, "detector": "ensemble"},
        {**THRESHOLD, "anomaly_type": "payment_fraud", "detector": "transformer"},
    ],
)
def test_a_record_about_what_the_flow_has_is_taken(record: dict[str, Any]) -> None:
    assert parse_record(json.dumps(record), NAMES) == record


def test_a_reader_refuses_by_the_names_of_its_flow(tmp_path: Path) -> None:
    path = tmp_path / "control.jsonl"
    path.write_bytes(lines(STAGE, {**STAGE, "detector": "iqr"}, MUTE))
    records, faults = ControlFile(path, NAMES).take()
    assert records == [STAGE, MUTE]
    assert [(type(f), f.offset, f.partition) for f in faults] == [(Fault, len(lines(STAGE)), 0)]


def test_a_position_of_a_topic_is_the_beginning_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "control.jsonl"
    path.write_bytes(lines(MUTE))
    control = ControlFile(path)
    control.seek({"topic": "control", "at": {"0": 9}})
    assert control.take() == ([MUTE], [])


def test_a_line_that_was_left_unfinished_spoils_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "control.jsonl"
    append_record(path, json.dumps(MUTE))
    with path.open("ab") as file:
        file.write(b'{"kind": "mu')
    append_record(path, json.dumps(STAGE))
    records, faults = ControlFile(path).take()
    assert records == [MUTE, STAGE]
    assert [f.raw for f in faults] == [b'{"kind": "mu']


def blocks(language: str) -> list[str]:
    """Lines of the page's code blocks of a language."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    return [line for block in found for line in block.splitlines()]


def test_commands_of_the_page_write_the_records_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "voting.toml").write_text(VOTING.text(), encoding="utf-8")
    sets = [f"state_dir={tmp_path}", f"bundle={tmp_path}"]
    for line in blocks("sh"):
        program, *words = shlex.split(line)
        if program == "waxwing":
            at = words.index("control") + 1
            options = [part for one in sets for part in ("--set", one)]
            assert main([*words[:at], *options, *words[at:]]) == 0, line
    written = [json.loads(t) for t in (tmp_path / "control.jsonl").read_text().splitlines()]
    told = [{k: v for k, v in r.items() if k not in ("id", "why")} for r in written]
    assert told == [json.loads(line) for line in blocks("json")]
    assert ControlFile(tmp_path / "control.jsonl", NAMES).take() == (written, [])
    assert Control.of(written).expire(1).mutes == {}, "what was muted is heard again"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["stage", "zscore", "live", "--percent", "10"], "share of a canary, got stage 'live'"),
        (["stage", "zscore", "canary", "--percent", "101"], "in [0, 100], got 101"),
        (["stage", "zsore", "off"], "did you mean 'zscore'"),
        (["threshold", "frod", "ensemble", "0.9"], "did you mean 'fraud'"),
        (["threshold", "fraud", "zscore", "0.9"], "unknown detector of fraud 'zscore'"),
        (["mute", "cart", "c1", "now"], "unknown entity type 'cart'"),
        (["mute", "card", "c1", "tomorrow"], "expected an ISO 8601 time"),
        (["mute", "card", "c1", "2026-03-05T00:00:00"], "with its offset"),
    ],
)
def test_a_command_that_would_do_nothing_writes_nothing(
    words: list[str], fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "voting.toml").write_text(VOTING.text(), encoding="utf-8")
    sets = ["--set", f"state_dir={tmp_path}", "--set", f"bundle={tmp_path}"]
    assert main(["control", *sets, *words]) == 2
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "control.jsonl").exists()


def test_without_the_rules_at_hand_a_command_knows_the_detectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--set", f"state_dir={tmp_path}", "--set", f"bundle={tmp_path / 'none'}"]
    assert main(["control", *sets, "threshold", "anything", "iqr", "0.9"]) == 0
    assert main(["control", *sets, "threshold", "anything", "iqrr", "0.9"]) == 2
    assert "did you mean 'iqr'" in capsys.readouterr().err


def test_a_folder_that_no_flow_has_used_is_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tpyo"
    words = ["--set", f"state_dir={folder}", "stage", "zscore", "off"]
    assert main(["control", *words]) == 0
    out, err = capsys.readouterr()
    assert "written to" in out and "no flow has run with state_dir" in err and "tpyo" in err
    (folder / "journal").mkdir()
    assert main(["control", *words]) == 0
    assert capsys.readouterr().err == ""


def test_a_rollback_with_nothing_to_undo_says_that_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = LaneJournal(tmp_path / "journal" / "lane-00", 1 << 20)
    rounds = itertools.count(1)

    def hear(_settings: Settings, record: dict[str, Any]) -> str:
        number = next(rounds)
        journal.append(Cut(number, number, {}, 0, control=(record,)))
        return "the journal"

    monkeypatch.setattr("dataflows.control.writing.write_record", hear)
    monkeypatch.setattr("dataflows.stages.is_cutting", lambda _: True)
    hear(Settings(), _bundle("a", "live"))
    told = []
    for named in ([], [], ["a" * 16]):
        assert main(["model", "--set", f"state_dir={tmp_path}", "rollback", *named]) == 0
        told.append(capsys.readouterr().out.strip())
    journal.close()
    assert told == [
        "in force from round 2 on: rolled back",
        "heard in round 3: nothing changed, there is none to undo",
        f"heard in round 4: nothing changed, bundle {'a' * 16} has no say",
    ]
