"""Declarations of features: checked at once, ordered, versioned, and enough of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features import definitions
from features.catalog import Catalog, catalog, declared_features
from features.columns import DERIVED, Columns, flag_names
from features.engine import OfflineEngine
from features.errors import ConfigError, DeclarationError
from features.events import event_type, event_types
from features.operations import OPERATIONS
from features.plan import plan_of
from features.reference import formula, reference
from features.sequence import COMMON, TOKENS, WIDTH
from features.spec import Feature
from tests.streams import make_batch, stream

ROOT = Path(__file__).resolve().parents[2]

GOOD = Feature("n_1m", "payment", "card", "count", "{value} payments", "1", "velocity", window_s=60)


def faults(*features: Feature) -> str:
    with pytest.raises(DeclarationError) as caught:
        Catalog(features)
    return str(caught.value)


def test_there_are_enough_features_of_every_event_type() -> None:
    counts = {name: len(catalog().names(name)) for name in event_types()}
    assert counts["payment"] >= 50
    assert min(counts.values()) >= 20


def test_every_window_the_issue_asks_for_is_there() -> None:
    windows = {f.window_s for f in catalog().features("payment")}
    assert {60, 300, 3600} <= windows


def test_all_faults_are_told_at_once() -> None:
    text = faults(
        GOOD,
        GOOD,
        replace(GOOD, name="a", op="cuont"),
        replace(GOOD, name="b", window_s=0),
        replace(GOOD, name="c", window_s=None),
        replace(GOOD, name="d", entity="shop"),
        replace(GOOD, name="e", where="refused"),
        replace(GOOD, name="f", event="paymnet"),
        replace(GOOD, name="g", op="sum", column="amuont"),
        replace(GOOD, name="h", baseline="usual", why="{value}, usual {baseline}"),
        replace(GOOD, name="i", op="distinct", other="shop"),
        replace(GOOD, name="j", op="ratio", column="n_1m", other="m_1m", window_s=None),
        replace(GOOD, name="k", why="many payments"),
        replace(GOOD, name="l", unit="", group="speed"),
        replace(GOOD, name="m", feeds=("logins",)),
    )
    for expected in (
        "payment.n_1m: declared twice",
        "payment.a: unknown operation 'cuont'; operations are count,",
        "payment.b: window_s is 0; it must be in 1..",
        "payment.c: operation 'count' needs `window_s`",
        "payment.d: 'payment' has no entity 'shop'; entities are card,",
        "payment.e: 'payment' has no condition 'refused'; conditions are declined,",
        "feature 'f': unknown event type 'paymnet'; event types are payment,",
        "payment.g: 'payment' has no number 'amuont'; there are amount,",
        "payment.h: baseline 'usual' names no feature of 'payment'",
        "payment.i: 'payment' has no entity or string column 'shop'",
        "payment.j: other 'm_1m' names no feature of 'payment'",
        "payment.k: why 'many payments' does not name {value}",
        "payment.l: has no unit",
        "payment.l: unknown group 'speed'; groups are velocity,",
        "payment.m: fed by unknown event type 'logins'",
    ):
        assert expected in text


def test_what_is_wrong_beside_an_unknown_operation_or_a_wrong_type_is_told_too() -> None:
    text = faults(
        GOOD,
        replace(GOOD, name="a", op="cuont", column="amuont", where="refused", window_s=0),
        replace(GOOD, name="b", op="cuont", other="shop", count="m", why="{value} of {many}"),
        replace(GOOD, name="c", window_s="60", why="{value} of {many}"),  # type: ignore[arg-type]
        replace(GOOD, name="d", op="sum", column="amuont", window_s=1.5),  # type: ignore[arg-type]
        replace(GOOD, name="e", why=3, entity="shop", group="speed"),  # type: ignore[arg-type]
        replace(GOOD, name="f", op="difference", column="c", other="d", window_s=None, unit="s"),
        replace(GOOD, name="g", op=7, column="amuont"),  # type: ignore[arg-type]
    )
    for expected in (
        "payment.a: unknown operation 'cuont'",
        "payment.a: 'payment' has no number 'amuont'; there are amount,",
        "payment.a: 'payment' has no condition 'refused'; conditions are declined,",
        "payment.a: window_s is 0; it must be in 1..",
        "payment.b: unknown operation 'cuont'",
        "payment.b: 'payment' has no entity, string column or feature 'shop'; entities and",
        "payment.b: count 'm' names no feature of 'payment'",
        "payment.b: why '{value} of {many}' may hold {value} and {baseline}",
        "feature 'c': window_s: expected a whole number of seconds or None, got '60'",
        "payment.c: why '{value} of {many}' may hold {value} and {baseline}",
        "feature 'd': window_s: expected a whole number of seconds or None, got 1.5",
        "payment.d: 'payment' has no number 'amuont'; there are amount,",
        "payment.e: 'payment' has no entity 'shop'; entities are card,",
        "payment.e: unknown group 'speed'",
        "feature 'e': why: expected a text, got 3",
        "feature 'g': op: expected a text, got 7",
        "payment.g: 'payment' has no number 'amuont'; there are amount,",
    ):
        assert text.count(expected) == 1, (expected, text)
    assert "names no feature" not in text.replace("count 'm' names", ""), "`f` reads two there are"
    assert "\\x00" not in text


def test_a_baseline_reads_only_what_is_computed_before_it_for_its_own_entity() -> None:
    other = replace(GOOD, name="m_1m", entity="merchant")
    base = Feature("z", "payment", "card", "z", "{value}", "sigma", "baseline", column="m_1m")
    assert "belongs to entity 'merchant', not to 'card'" in faults(other, base)
    chained = replace(base, name="zz", column="z")
    assert "is of operation 'z'" in faults(GOOD, replace(base, column="n_1m"), chained)
    fed = replace(base, column="log(n_1m)", feeds=("payment", "login"), entity="user")
    user = replace(GOOD, entity="user")
    assert "fed by its own event type alone" in faults(user, fed)


def test_the_version_follows_every_part_of_a_declaration() -> None:
    versions = {
        Catalog([GOOD]).version,
        Catalog([replace(GOOD, window_s=61)]).version,
        Catalog([replace(GOOD, why="{value} of them")]).version,
        Catalog([replace(GOOD, feeds=("payment", "login"), entity="user")]).version,
        Catalog([GOOD, replace(GOOD, name="m", entity="merchant")]).version,
    }
    assert len(versions) == 5
    assert Catalog([GOOD]).version == Catalog([GOOD]).version


def test_a_new_module_of_definitions_is_all_that_a_new_feature_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loyalty.py").write_text(
        "from features.spec import Feature\n"
        "FEATURES = (Feature('card_mean_5m', 'payment', 'card', 'mean', '{value} on average',\n"
        "                    'currency', 'amount', column='amount', window_s=300),)\n"
    )
    monkeypatch.setattr(definitions, "__path__", [*definitions.__path__, str(tmp_path)])
    found = Catalog(declared_features.__wrapped__())
    assert set(found.names("payment")) - set(catalog().names("payment")) == {"card_mean_5m"}
    assert found.version != catalog().version
    batch = stream(1, 50, types=("payment",))
    matrix = OfflineEngine(found, 2).process(batch)["payment"]
    assert np.isfinite(matrix.column("card_mean_5m")).all()


def test_differences_between_catalogues_are_named() -> None:
    one = Catalog([GOOD])
    assert one.differences({"payment": ["n_1m"]}) == []
    assert one.differences({"payment": ["n_5m"], "login": ["x"]}) == [
        "login: `x` is missing here",
        "payment: `n_5m` is missing here",
        "payment: `n_1m` is new here",
    ]


def test_features_of_a_view_stand_together_and_views_are_entities_of_the_event() -> None:
    cat = catalog()
    for (event, entity), features in cat.views().items():
        assert entity in event_type(event).entities
        at = [cat.names(event).index(f.name) for f in features]
        assert at == list(range(at[0], at[0] + len(at)))
    in_views = sum(len(fs) for fs in cat.views().values())
    alone = sum(not f.entity for e in cat.event_types for f in cat.features(e))
    assert in_views + alone == sum(len(cat.names(e)) for e in cat.event_types)


def test_a_catalogue_of_some_event_types_has_only_theirs() -> None:
    some = catalog(("payment",))
    assert some.event_types == ("payment",)
    assert some.names("payment") == catalog().names("payment")
    assert some.names("login") == ()
    with pytest.raises(ConfigError, match="unknown event type 'order'"):
        catalog(("order",))


def test_an_unknown_feature_is_answered_with_near_ones() -> None:
    with pytest.raises(DeclarationError, match=r"did you mean.*card_count_1m"):
        catalog().feature("payment", "card_cuont_1m")


def test_numbers_of_a_sequence_name_columns_and_features_that_exist() -> None:
    for entity, events in TOKENS.items():
        for event, tokens in events.items():
            assert len(tokens) <= WIDTH - COMMON
            plan = plan_of(catalog()).entities[entity]
            features = [f.name for f in plan.features.get(event, ())]
            for token in tokens:
                known = {"flag": flag_names(event), "feature": features}.get(token.kind)
                assert known is None or token.name in known, (entity, event, token)


def test_every_primary_entity_has_a_sequence() -> None:
    for name, declared in event_types().items():
        sequence = plan_of(catalog()).entities[declared.primary].sequence
        assert sequence is not None and list(event_types())[sequence.own] == name


def test_every_derived_column_can_be_made(seed: int) -> None:
    absences = [{"event_id": str(i), "entity_type": "host"} for i in range(30)]
    batches = stream(seed, 30) | {"absence": make_batch("absence", absences)}
    for derived in DERIVED:
        columns = Columns(batches[derived.event])
        made = columns.flag(derived.name) if derived.kind == "flag" else columns.real(derived.name)
        assert made.dtype == (bool if derived.kind == "flag" else float) and len(made) == 30


def test_every_operation_has_a_feature_or_a_test_of_its_own() -> None:
    """An operation that nothing uses is one that nothing checks."""
    used = {f.op for f in declared_features()}
    tested_apart = {
        "usual",
        "usual_std",
        "recent",
        "median",
        "iqr",
        "season_usual",
        "anchor",
        "week_usual",
        "since_place",
        "ratio",
        "since_pair",
        "distinct_share",
        "peer_mean",
        "ever",
        "risk_count_ever",
    }
    assert set(OPERATIONS) == used | tested_apart


def test_formulas_say_entity_window_and_condition() -> None:
    cat = catalog()
    assert formula(cat.feature("payment", "merchant_small_share_1h")) == (
        "share of the window's events that are small; per merchant, window 1 h"
    )
    failed = formula(cat.feature("payment", "user_failed_logins_1h"))
    assert "fed by login" in failed and "(failed ones only)" in failed


def test_the_reference_page_is_fresh() -> None:
    page = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    assert page == reference(catalog()), (
        "write it again: python -m features.reference > docs/features.md"
    )
