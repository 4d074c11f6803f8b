"""Features of late verdicts and of runs against DuckDB: equal, and a wrong one is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dataflows.settings import load
from dataflows.sources.files import FileReader
from dataflows.verify import VARIANTS, verify
from features import state
from features.baselines import run_baselines
from features.catalog import Catalog, catalog
from features.risk import apply_labels, run_risk
from features.spec import Feature

DAY_US = 86_400_000_000

START_US = 1_772_409_600_000_000

MAPPING = """
event = "payment"

[fields]
event_id = "id"
time_us = { column = "at", unit = "us" }
card_id = "card"
user_id = "user"
merchant_id = "shop"
device_id = "device"
ip = "ip"
amount = "total"

[truth]
column = "stolen"
"""

RISK = [
    f
    for f in catalog(("payment",)).features("payment")
    if f.op in ("last_label", "since_fraud", "fraud_run", "genuine_since_fraud")
    or f.op.startswith("risk")
]


def written(folder: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """Four months of payments, most of whose frauds come in spells of days; and the mapping.

    Times stand on half minutes, many are the same.
    """
    n = 5_000
    at = START_US + np.sort(rng.integers(0, 120 * 2_880, n)) * 30_000_000
    shop = rng.integers(0, 12, n)
    # A shop falls silent now and then, so that days without events stand in its runs.
    spell = (at // DAY_US + 3 * shop) % 23 < 6
    silent = (at // DAY_US + shop) % 9 < 2
    frame = pl.DataFrame(
        {
            "id": [f"p{i}" for i in range(n)],
            "at": at,
            "card": [f"c{i}" for i in rng.integers(0, 40, n)],
            "user": [f"u{i}" for i in rng.integers(0, 30, n)],
            "shop": [f"m{i}" for i in shop],
            "device": [["", "d1", "d2", "d3"][i] for i in rng.integers(0, 4, n)],
            "ip": [f"i{i}" for i in rng.integers(0, 9, n)],
            "total": rng.choice([3.0, 5.0, 5.0, 5.0, 8.5], n),
            "stolen": (rng.random(n) < np.where(spell, 0.4, 0.004)).astype(int),
        }
    ).filter(~silent)
    frame.write_csv(folder / "payments.csv")
    (folder / "mapping.toml").write_text(MAPPING)
    return folder / "payments.csv", folder / "mapping.toml"


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Verifies the payments."""
    path, mapping = written(tmp_path_factory.mktemp("risk"), np.random.default_rng(11))
    settings = load(
        None,
        source="file",
        file_paths={"payment": path},
        file_mapping=str(mapping),
        groups=2,
    )
    runs = [
        Feature(f"{e}_run", "payment", e, "run_length", "{value}", "1", "amount", column="amount")
        for e in ("card", "merchant")
    ]
    cat = Catalog([*RISK, *runs])

    def run() -> dict[str, Any]:
        report = verify(
            settings, cat, lambda: FileReader(settings), {"as_is": VARIANTS["as_is"]}, print
        )
        found: dict[str, Any] = report["variants"]["as_is"]
        return found

    return run


def test_what_verdicts_and_runs_say_is_what_sql_finds(
    reported: Callable[..., dict[str, Any]],
) -> None:
    found = reported()
    assert found["mismatches"] == 0, found["mismatched"]
    assert len(RISK) >= 13
    names = {f"payment.{f.name}" for f in RISK} | {"payment.card_run", "payment.merchant_run"}
    assert found["compared"].keys() == names and not found["not_compared"], "each varies"


def test_wrong_kernels_are_found(
    reported: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_day_on(slots: Any, taken_us: Any, *rest: Any) -> None:
        run_risk(slots, taken_us + DAY_US, *rest)

    def near_enough(slots: Any, taken_us: Any, head: Any, reals: Any, *rest: Any) -> None:
        run_baselines(slots, taken_us, head, np.where(reals == 8.5, 5.0, reals), *rest)

    monkeypatch.setattr(state, "run_risk", a_day_on)
    monkeypatch.setattr(state, "run_baselines", near_enough)
    monkeypatch.setitem(state._WEIGHING, near_enough, "anchors")
    found = {entry["feature"].removeprefix("payment.") for entry in reported()["mismatched"]}
    by_day = {f.name for f in RISK if f.op != "last_label"}
    assert found == {*by_day, "card_run", "merchant_run"}, "who reads no day is not accused"


def test_verdicts_that_are_taken_for_others_are_found(
    reported: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_frauds(slots: Any, codes: Any, times: Any, verdicts: Any, *rest: Any) -> None:
        apply_labels(slots, codes, times, np.full_like(verdicts, 2), *rest)

    monkeypatch.setattr(state, "apply_labels", all_frauds)
    found = {entry["feature"].removeprefix("payment.") for entry in reported()["mismatched"]}
    assert found == {f.name for f in RISK}, "the runs of values are right"
