"""What the setting `features` chooses: the same values as of all, with what they need."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dataflows.cli.main import main
from dataflows.settings import load
from dataflows.store.layout import layouts
from features import registry
from features.catalog import Catalog, catalog, declared_features
from features.choice import choose, full_name, pattern_faults
from features.engine import GroupEngine, OfflineEngine
from features.errors import ConfigError
from features.plan import plan_of
from tests.streams import START_US, cut, stream

CUTS = (
    ("payment.card_*",),
    ("payment.*_1h", "login.user_*", "!*_creep", "!login.sequence"),
    ("merchant_surprise_5m", "log_amount", "host_correlation_z", "absence.*"),
    ("!payment.*", "!*_z", "!sequence"),
    ("*_recent_ratio", "*_shrunk_z", "*_first", "*_entropy", "*_km*", "*frauds*"),
)


def cut_of(patterns: tuple[str, ...]) -> Catalog:
    """The catalogue of patterns."""
    found = choose(declared_features(), patterns)
    return Catalog(found.features, found.without_sequence)


@pytest.fixture
def afresh() -> Iterator[None]:
    """A process that has chosen nothing yet, and is left so."""
    registry.forget_own()
    catalog.cache_clear()
    yield
    registry.forget_own()
    catalog.cache_clear()


@pytest.mark.parametrize("patterns", CUTS, ids=lambda patterns: patterns[0])
def test_what_is_chosen_has_the_values_it_has_among_all(
    patterns: tuple[str, ...], seed: int
) -> None:
    parts = cut(stream(seed, 260), [START_US + 1_800_000_000, START_US + 5_400_000_000])
    whole, part = catalog(), cut_of(patterns)
    all_, some = OfflineEngine(whole, groups=2), OfflineEngine(part, groups=2)
    seen = 0
    for batches in parts:
        expected, found = all_.process(batches), some.process(batches)
        assert set(found) == set(batches) & set(part.event_types)
        for event, matrix in found.items():
            at = [whole.names(event).index(name) for name in part.names(event)]
            np.testing.assert_array_equal(matrix.values, expected[event].values[:, at], str(seed))
            seen += matrix.values.size
    assert seen > 0


def test_what_a_chosen_feature_reads_is_computed_and_said() -> None:
    found = choose(declared_features(), ["payment.card_surprise_1m", "card_home_z", "log_amount"])
    assert {full_name(f) for f in found.features} == {
        *("payment.card_surprise_1m", "payment.card_count_1m", "payment.card_usual_1m"),
        *("payment.card_home_z", "payment.card_home_km", "payment.log_amount"),
    }
    assert found.needed["payment.card_count_1m"] == ("payment.card_surprise_1m",)
    assert "payment.card_surprise_1m" not in found.needed
    assert len(found.features) + len(found.left_out) == len(declared_features())


def test_a_column_of_the_name_of_a_feature_is_no_need() -> None:
    found = choose(declared_features(), ["merchant_amount_z"])  # Over the column log_amount.
    assert [f.name for f in found.features] == ["merchant_amount_z"]


def test_a_feature_that_is_left_out_and_needed_stays() -> None:
    found = choose(declared_features(), ["payment.card_surprise_1m", "!*_count_1m"])
    assert "payment.card_count_1m" in found.needed


def test_the_order_of_patterns_does_not_matter() -> None:
    patterns = ["payment.*", "!card_*", "login.*_1h"]
    assert choose(declared_features(), patterns) == choose(declared_features(), patterns[::-1])


def test_nothing_is_kept_of_what_is_left_out() -> None:
    part = cut_of(("payment.card_amount_sum_1h", "payment.card_amount_max_1h", "!sequence"))
    (plan,) = plan_of(part).entities.values()
    assert (plan.entity, plan.events) == ("card", ("payment",))
    assert [ring.names["others"] for ring in plan.rings] == [[]]
    kept = (
        *(plan.rates, plan.bases, plan.seasons, plan.anchors, plan.weeks, plan.trends, plan.geo),
        *(plan.members, plan.risk, plan.categories, plan.correlations, plan.sequence),
        plan.silence,
    )
    assert kept == (None,) * len(kept)
    few, many = GroupEngine(part, 0).memory_bytes, GroupEngine(catalog(), 0).memory_bytes
    assert few < many / 10


def test_a_sequence_stays_unless_it_is_left_out() -> None:
    assert plan_of(cut_of(("card_ever",))).entities["card"].sequence is not None
    without = cut_of(("card_ever", "!payment.sequence"))
    assert plan_of(without).entities["card"].sequence is None
    assert without.version != cut_of(("card_ever",)).version


@pytest.mark.parametrize(
    ("pattern", "without"),
    [("!*e", set()), ("!*_z", set()), ("!p*", set()), ("!payment.*e", set()), ("!s*", set()),
     ("!payment.*", {"payment"}), ("!payment.sequence", {"payment"}),
     ("!sequence", {"payment", "login", "metric", "app_log"}),
     ("!*.sequence", {"payment", "login", "metric", "app_log"})],
)  # fmt: skip
def test_a_sequence_is_left_out_by_its_name_or_with_all_of_its_type(
    pattern: str, without: set[str]
) -> None:
    assert choose(declared_features(), [pattern]).without_sequence == without


def test_all_chosen_is_the_catalogue_as_it_was() -> None:
    assert cut_of(("*",)).version == catalog().version == cut_of(("payment.*", "*")).version


def test_each_wrong_pattern_is_told_with_what_is_near() -> None:
    faults = pattern_faults(
        declared_features(), ["merchnt_*_1h", "paymnt.card_ever", "!crad_ever", "!", "card_*"]
    )
    assert len(faults) == 4
    assert "'merchnt_*_1h'" in faults[0] and "merchant_cards_1h" in faults[0]
    assert "payment.card_ever" in faults[1]
    assert "'!crad_ever'" in faults[2] and "card_ever" in faults[2]
    assert "names nothing" in faults[3]


def test_patterns_that_leave_nothing_or_nobody_are_refused() -> None:
    assert "leave no feature" in pattern_faults(declared_features(), ["!*"])[0]
    (fault,) = pattern_faults(declared_features(), ["payment.*", "absence.*"])
    assert "host, series, service" in fault
    assert pattern_faults(declared_features(), ["metric.*", "absence.*"]) == []


@pytest.mark.usefixtures("afresh")
def test_wrong_patterns_are_told_with_the_faults_of_other_settings() -> None:
    with pytest.raises(ConfigError) as told:
        load(None, {"WAXWING_FEATURES": "crad_*"}, round_ms=1)
    assert any("WAXWING_FEATURES: features: pattern 'crad_*'" in f for f in told.value.faults)
    assert any("round_ms" in fault for fault in told.value.faults)
    for value in ([], "card_*", [1]):
        with pytest.raises(ConfigError, match="features"):
            load(None, {}, features=value)
    assert len(catalog().names("payment")) > 100


@pytest.mark.usefixtures("afresh")
def test_a_process_serves_one_choice() -> None:
    load(None, {}, features=["login.*"])
    load(None, {}, features=["payment.card_*"])  # Nothing has read the first.
    assert catalog().event_types == ("payment",)
    load(None, {}, features=["payment.card_*"])
    with pytest.raises(ConfigError, match="start another"):
        load(None, {})


@pytest.mark.usefixtures("afresh")
def test_commands_and_store_know_what_is_chosen_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--set", "features=payment.card_surprise_*,!sequence"]
    everything = sum(feature.event == "payment" for feature in declared_features())
    assert main(["features", "list", *chosen, "--json", str(tmp_path / "out.json")]) == 0
    told = capsys.readouterr().out
    assert f"payment 9 of {everything} without sequence" in told and "login 0 of" in told
    assert "payment.card_count_1m: not named, read by payment.card_surprise_1m" in told
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert len(report["features"]) == 9 and len(report["needed"]) == 6
    assert "payment.card_ever" in report["left_out"]
    assert report["without_sequence"] == ["app_log", "login", "metric", "payment"]
    assert main(["check", *chosen]) == 0
    assert f"features: payment 9 of {everything} without sequence" in capsys.readouterr().out
    assert main(["features", "show", *chosen, "card_ever"]) == 2
    assert "payment.card_ever: left out by the setting `features`" in capsys.readouterr().err
    (layout,) = layouts(catalog()).values()
    assert layout.entity == "card" and len(layout.features) == 9


@pytest.mark.usefixtures("afresh")
def test_the_file_of_the_page_holds_together_and_keeps_forty() -> None:
    load(Path(__file__).resolve().parents[2] / "docs" / "lean-payments.toml", {})
    assert catalog().event_types == ("payment",)
    assert len(catalog().names("payment")) == 46  # As docs/fewer-features.md says.
    plans = plan_of(catalog()).entities
    assert list(plans) == ["card", "merchant", "device"]
    assert all(ring.shape[2] == 0 for plan in plans.values() for ring in plan.rings)


def test_a_state_of_all_features_goes_on_with_what_is_chosen(seed: int) -> None:
    first, second = cut(stream(seed, 260), [START_US + 3_600_000_000])[:2]
    patterns = ("payment.card_*", "login.user_*", "!sequence")
    whole, part = catalog(), cut_of(patterns)
    old, new = OfflineEngine(whole, groups=1), OfflineEngine(part, groups=1)
    old.process(first)
    restored = GroupEngine.restore(part, 0, old.engines[0].full(), [])
    assert restored.empty == ()
    new.engines[0] = restored
    expected, found = old.process(second), new.process(second)
    for event, matrix in found.items():
        at = [whole.names(event).index(name) for name in part.names(event)]
        np.testing.assert_array_equal(matrix.values, expected[event].values[:, at], str(seed))
    again = GroupEngine.restore(whole, 0, restored.full(), [])
    assert "payment.merchant_count_1h" in again.empty and "payment.card_ever" not in again.empty
