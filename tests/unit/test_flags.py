"""Flags of an OpenFeature provider become control records, once each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openfeature import api
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

from dataflows.control.records import Names
from dataflows.flags import FlagFollower, asked_of, flag_client
from dataflows.settings import load
from dataflows.state.journal import Cut, LaneJournal
from features.catalog import catalog
from features.errors import BundleError, ConfigError
from models.train import train
from tests.rows import training_set

NAMES = Names({}, ("iqr", "zscore"), ())
BUNDLE = "0123456789abcdef"


class Flags:
    """A follower of flags that a test sets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        settings = load(None, state_dir=folder, bundle=folder / "none")
        self.of(api.get_client("waxwing"), settings)

    def of(self, client: Any, settings: Any) -> None:
        self.follower = FlagFollower(settings, client, NAMES, self.said.append)

    def look(self, **flags: Any) -> list[dict[str, Any]]:
        """What is written when the flags say this; dots of names are underscores."""
        named = {f"waxwing.{name.replace('_', '.')}": text for name, text in flags.items()}
        kept = {name: InMemoryFlag("on", {"on": text}) for name, text in named.items()}
        api.set_provider_and_wait(InMemoryProvider(kept))
        written = self.follower.look()
        path = self.folder / "control.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if written else []
        assert written == [json.loads(line) for line in lines[len(lines) - len(written) :]]
        return [
            {k: v for k, v in record.items() if k not in ("id", "by", "why")} for record in written
        ]


def cut(folder: Path, records: list[dict[str, Any]]) -> None:
    """A flow has heard these records, one a round, and no others."""
    shutil.rmtree(folder / "journal", ignore_errors=True)
    journal = LaneJournal(folder / "journal" / "lane-00", 1 << 20)
    for round_, record in enumerate(records, 1):
        journal.append(Cut(round_, round_, {}, 0, control=(record,)))
    journal.close()


@pytest.fixture
def flags(tmp_path: Path) -> Flags:
    return Flags(tmp_path)


def test_a_flag_writes_a_record_when_it_changes_and_only_then(flags: Flags) -> None:
    assert flags.look() == [], "flags that are not there ask for nothing"
    assert flags.look(detector_zscore="live") == [], "it is"
    shadow = {"kind": "stage", "detector": "zscore", "stage": "shadow"}
    assert flags.look(detector_zscore="shadow") == [shadow]
    assert flags.look(detector_zscore="shadow") == []
    canary = {"kind": "stage", "detector": "zscore", "stage": "canary", "percent": 2.5}
    assert flags.look(detector_zscore="canary 2.5 %") == [canary]
    assert flags.look() == [], "a flag that is taken away leaves what is in force"
    assert flags.look(detector_zscore="") == []
    said = [text.partition(";")[0] for text in flags.said]
    assert said == [
        "flag waxwing.detector.zscore = shadow: zscore is shadow",
        "flag waxwing.detector.zscore = canary 2.5 %: zscore is canary for 2.5 % of the entities",
    ]


def test_bundles_are_promoted_tried_and_taken_away(flags: Flags) -> None:
    live = {"kind": "bundle", "bundle": BUNDLE, "stage": "live"}
    assert flags.look(bundle=BUNDLE) == [live]
    other = "f" * 16
    shadow = {"kind": "bundle", "bundle": other, "stage": "shadow"}
    assert flags.look(bundle=BUNDLE, candidate=f"shadow {other}") == [shadow]
    canary = {"kind": "bundle", "bundle": other, "stage": "canary", "percent": 5.0}
    assert flags.look(bundle=BUNDLE, candidate=f"canary 5 {other}") == [canary]
    off = {"kind": "bundle", "bundle": other, "stage": "off"}
    assert flags.look(candidate="off") == [off]
    assert flags.look(candidate="off") == []


def test_another_candidate_takes_the_place_of_the_one_before(flags: Flags) -> None:
    other = "f" * 16
    flags.look(candidate=f"canary 10 {BUNDLE}")
    control = flags.folder / "control.jsonl"
    new = {"kind": "bundle", "bundle": other, "stage": "canary", "percent": 10.0}
    assert flags.look(candidate=f"canary 10 {other}") == [new]
    lines = [json.loads(line) for line in control.read_text(encoding="utf-8").splitlines()]
    assert [(line["bundle"], line["stage"]) for line in lines] == [
        (BUNDLE, "canary"), (BUNDLE, "off"), (other, "canary")
    ]  # fmt: skip
    assert flags.look(candidate=f"shadow {other}") == [
        {"kind": "bundle", "bundle": other, "stage": "shadow"}
    ]
    assert len(control.read_text(encoding="utf-8").splitlines()) == 4, "it is the same bundle"


def test_off_means_the_bundle_that_was_tried_whatever_lies_at_its_place_now(
    flags: Flags, tmp_path: Path
) -> None:
    place = tmp_path / "candidate"
    rows = training_set(np.random.default_rng(3), "login", rows=400, odd=20)
    train({"login": rows}, catalog(), ("zscore",), 1).write(place)
    (tried,) = flags.look(candidate=f"shadow {place}")
    assert tried["path"] == str(place)
    shutil.rmtree(place)
    off = {"kind": "bundle", "bundle": tried["bundle"], "stage": "off"}
    assert flags.look(candidate="off") == [off] and flags.said[-1].startswith("flag")


def test_a_follower_that_starts_again_knows_what_was_tried(flags: Flags) -> None:
    other = "f" * 16
    flags.look(candidate=f"canary 10 {BUNDLE}")
    flags.look(candidate=f"canary 10 {other}")
    text = (flags.folder / "control.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    cut(flags.folder, records[:2])  # it ended before the new bundle's record was written
    again = Flags(flags.folder)
    assert [r["bundle"] for r in again.look(candidate=f"canary 10 {other}")] == [other]
    live = {"id": "p", "by": "a person", "kind": "bundle", "bundle": other, "stage": "live"}
    cut(flags.folder, [*records, live])
    assert Flags(flags.folder).look(candidate="off") == [], "it decides by now"
    cut(flags.folder, records)
    off = {"kind": "bundle", "bundle": other, "stage": "off"}
    assert Flags(flags.folder).look(candidate="off") == [off]
    by_hand = [live | {"stage": "shadow"}]
    cut(flags.folder, by_hand)
    again = Flags(flags.folder)
    assert again.look(candidate=f"shadow {other}") == [], "a person has done it"
    assert again.look(candidate="off") == [off]


def test_what_no_record_can_say_is_told_once_and_writes_nothing(flags: Flags) -> None:
    for _ in range(2):
        assert flags.look(detector_zscore="loud", candidate="canary", bundle="zscore") == []
    assert len(flags.said) == 3
    assert "expected one of off, shadow, canary, live" in flags.said[0]
    assert "which is a detector" in flags.said[1]
    assert "expected `shadow BUNDLE`" in flags.said[2]
    flags.said.clear()
    assert flags.look(detector_zscore=3) == [], "a number is no stage"
    assert len(flags.said) == 1 and "does not tell" in flags.said[0]


def test_a_place_may_have_spaces() -> None:
    with pytest.raises(BundleError, match="no such place"):
        asked_of("waxwing.candidate", "shadow /no such place")


def test_a_provider_that_is_none_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def make():\n    raise OSError('the server is away')\n", encoding="utf-8")
    for given, why in (
        ("nonsense", "expected MODULE:NAME or FILE.py:NAME"),
        ("nowhere.at.all:Provider", "ModuleNotFoundError"),
        (f"{tmp_path / 'none.py'}:make", "FileNotFoundError"),
        (f"{broken}:other", "KeyError"),
        (f"{broken}:make", "the server is away"),
    ):
        with pytest.raises(ConfigError, match=why):
            flag_client(given)
