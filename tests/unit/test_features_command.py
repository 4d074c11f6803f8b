"""`waxwing features list` and `show`: the catalogue as one reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflows.cli.features import about
from dataflows.cli.main import main
from dataflows.settings import load
from dataflows.verify import VARIANTS, _Found, _Sampled, verify
from features.catalog import catalog
from features.columns import DERIVED
from features.operations import OPERATIONS
from features.oracle import SQL_COLUMNS, question, why_not
from tests.flow.test_json import told

EVERYTHING = [f for event in catalog().event_types for f in catalog().features(event)]


def test_list_has_a_line_for_every_feature(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", head) == [
        "name", "event type", "entity", "operation", "window", "unit", "group"
    ]  # fmt: skip
    cells = [re.split(r"\s{2,}", line) for line in lines]
    assert [(c[1], c[0]) for c in cells] == [(f.event, f.name) for f in EVERYTHING]
    assert ["card_count_5m", "payment", "card", "count", "5 min", "1", "velocity"] in cells


def test_list_of_one_event_type_has_only_its_features(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    assert main(["features", "list", "--event-type", "login", "--json", str(out)]) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["catalog"] == catalog().version
    assert [f["name"] for f in report["features"]] == list(catalog().names("login"))
    assert {f["event_type"] for f in report["features"]} == {"login"}
    assert len(capsys.readouterr().out.splitlines()) == len(report["features"]) + 1


def test_show_tells_formula_sentence_and_feeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "show", "user_failed_logins_1h"]) == 0
    page = capsys.readouterr().out
    assert "number of events (failed ones only) in the window, this one included" in page
    assert "per user, fed by login, window 1 h" in page
    assert "{value} failed logins of this user in the hour before" in page
    assert re.search(r"condition +failed \(was not let in\)", page)


def test_show_gives_a_name_of_several_event_types_for_each_and_takes_one_of_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["features", "show", "user_home_km", "--json", "-"]) == 0
    both = json.loads(capsys.readouterr().out)["features"]
    assert [f["event_type"] for f in both] == ["payment", "login"]
    assert main(["features", "show", "login.user_home_km", "--json", "-"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["features"]
    assert one == both[1]
    assert one["feeds"] == ["payment", "login"] and one["read_by"] == ["login.user_home_z"]


def test_an_unknown_feature_is_answered_with_near_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["features", "show", "card_cuont_5m"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no feature 'card_cuont_5m'; did you mean card_count_5m" in line
    assert main(["features", "list", "--event-type", "payments"]) == 2
    assert "did you mean payment?" in capsys.readouterr().err


def test_an_unknown_variant_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["features", "verify", "--data", "payment=none", "--variant", "dence"]) == 2
    assert "variants are as_is, dense, long" in capsys.readouterr().err


def test_all_that_is_told_of_a_feature_is_documented() -> None:
    keys = {key for feature in EVERYTHING for key in about(feature, catalog())}
    assert keys - told("json.md") == set()


def test_every_derived_column_is_written_down_in_sql() -> None:
    names = {d.name for d in DERIVED if not d.name.startswith("place_") or d.kind == "flag"}
    assert set(SQL_COLUMNS) == names


def test_a_feature_has_a_query_or_a_reason_and_only_recursions_have_a_reason() -> None:
    recursive = {"baseline", "season", "members", "geo", "anchor", "week", "trend", "risk"}
    recursive |= {"correlations"}
    for feature in EVERYTHING:
        reason = why_not(feature)
        if reason is None:
            assert question(feature, ties=8).sql.startswith("SELECT i, ")
        else:
            assert OPERATIONS[feature.op].family in recursive, feature.name
    payment = [f for f in EVERYTHING if f.event == "payment" and why_not(f) is None]
    assert len(payment) >= 70


def test_data_without_a_row_is_refused(tmp_path: Path) -> None:
    from dataflows.sources.files import FileReader
    from features.errors import ConfigError

    (tmp_path / "payment.jsonl").write_text("", encoding="utf-8")
    settings = load(None, source="file", file_paths={"payment": tmp_path / "payment.jsonl"})
    said: list[Any] = []
    with pytest.raises(ConfigError, match="no event of a type that has features"):
        verify(
            settings,
            catalog(),
            lambda: FileReader(settings),
            {"as_is": VARIANTS["as_is"]},
            said.append,
        )


def test_estimates_are_held_to_the_level_of_each_entity_and_exact_ones_to_the_count() -> None:
    (feature,) = (f for f in EVERYTHING if f.name == "merchant_cards_1h")
    sampled = _Sampled(frozenset({"payment.merchant_cards_1h"}), 256, 30)
    met = np.array([1.0, 30.0, 31.0, 40.0, 400.0, 2_000.0])

    def bounded(*actual: float) -> bool:
        given = np.array(actual)
        found = _Found(np.flatnonzero(given != met), 1.0, len(met), met)
        return sampled.bounded(feature, found, given, met)

    assert bounded(1.0, 30.0, 30.0, 48.0, 480.0, 1_600.0)
    assert not bounded(*np.zeros(len(met)))
    assert not bounded(1.0, 29.0, 31.0, 40.0, 400.0, 2_000.0), "whoever is at the bound is exact"
    assert not bounded(1.0, 30.0, 31.0, 120.0, 400.0, 2_000.0), "so few others have no high level"
    assert sampled.weights(met).tolist() == [1.0, 1.0, 4.0, 4.0, 64.0, 256.0]
