"""`waxwing features verify`: the kernels equal DuckDB, and a kernel that is wrong is found."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dataflows import verify as module
from dataflows.cli.main import main
from dataflows.settings import load
from dataflows.sources.files import FileReader
from dataflows.verify import VARIANTS, oracle_in, verify
from features.catalog import Catalog, catalog
from features.errors import ConfigError
from features.events import event_type, event_types
from features.spec import Feature
from tests.flow.harness import TIMEOUT_S, call, running, wait_for
from tests.flow.test_json import told

ROOT = Path(__file__).resolve().parents[2]

START_US = 1_772_409_600_000_000

STEP_US = 30_000_000
"""Times stand on half minutes: many are exactly a window apart, and many are the same."""

KINDS = ("as_is", "dense", "long", "hot")

HOT_ROWS = 3_000


def made_of(name: str, rows: int, rng: np.random.Generator) -> pl.DataFrame:
    """Events of few entities on a grid of times, in order."""
    places = [None, 47.4, 47.5, -33.9]
    few = {
        "card_id": [f"c{k}" for k in range(6)],
        "user_id": [f"u{k}" for k in range(4)],
        "merchant_id": [f"m{k}" for k in range(3)],
        "device_id": [None, "", "d1", "d2"],
        "ip": [None, "i1", "i2"] if name == "payment" else ["i1", "i2"],
        "country": [None, "CH", "ZA"],
        "latitude": places,
        "longitude": [8.5, 8.6, 18.4],
        "amount": [0.5, 1.0, 2.99, 3.0, 50.0, 55.5, 60.0, 1999.99],
    }
    columns: dict[str, Any] = {}
    for field in event_type(name).fields:
        if field.name == "time_us":
            values = START_US + np.sort(rng.integers(0, 400, rows)) * STEP_US
            columns[field.name] = pl.Series(values)
            continue
        choices: list[Any] = few.get(field.name, list(field.values) or [field.default])
        if field.kind == "bool":
            choices = [True, False]
        picked = rng.integers(0, len(choices), rows).tolist()
        columns[field.name] = pl.Series([choices[k] for k in picked], dtype=field.dtype)
    frame = pl.DataFrame(columns)
    return frame.with_columns(event_id=pl.format("{}-{}", pl.lit(name), pl.int_range(pl.len())))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of payments and logins on the grid."""
    folder = tmp_path_factory.mktemp("grid")
    rng = np.random.default_rng(5)
    for name, rows in (("payment", 1_200), ("login", 600)):
        made_of(name, rows, rng).write_parquet(folder / f"{name}.parquet")
    return folder


def verified(*arguments: str, out: Path) -> dict[str, Any]:
    """What `waxwing features verify` reports; its status says whether all is equal."""
    status = main(["features", "verify", *arguments, "--json", str(out)])
    report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert status == (1 if report["mismatches"] or report["failed"] else 0)
    return report


def keys(report: Any) -> set[str]:
    """All keys of a report, but names of features, entity types and variants."""
    if isinstance(report, list):
        return set().union(*(keys(item) for item in report))
    if not isinstance(report, dict):
        return set()
    found = {k for k in report if k not in KINDS and "." not in k}
    return found.union(*(keys(v) for k, v in report.items() if k != "hottest_per_h"))


def test_windows_end_where_sql_says_at_ties_and_at_the_very_edge(
    grid: Path, tmp_path: Path
) -> None:
    hot = ("--hot-rows", str(HOT_ROWS))
    report = verified("--data", str(grid), *hot, out=tmp_path / "out.json")
    assert report["mismatches"] == 0, [v["mismatched"] for v in report["variants"].values()]
    assert tuple(report["variants"]) == KINDS
    rows = {name: one["rows"] for name, one in report["variants"].items()}
    assert rows["as_is"] == rows["dense"] == rows["long"] == 1_800
    assert HOT_ROWS / 2 < rows["hot"] < 2 * HOT_ROWS
    assert report["rows"] == sum(rows.values())
    assert report["max_rel_error"] <= 1e-9 and report["left"] == report["failed"] == []
    assert_declared(report)
    assert keys(report) - told("json.md") == set()


def assert_declared(report: dict[str, Any]) -> None:
    """What is declared is compared, or it is said why not."""
    for one in report["variants"].values():
        names = {*one["compared"], *one["constant"], *one["not_compared"]}
        assert one["declared"] == len(names) >= one["features"] == len(one["compared"])
    shipped = {f"{e}.{n}" for e in ("payment", "login") for n in catalog().names(e)}
    compared = {name for one in report["variants"].values() for name in one["compared"]}
    assert report["declared"] == len(shipped) < report["features"], "`long` has more windows"
    assert report["declared_compared"] == len(shipped & compared)
    rest = {*report["not_compared"], *report["constant"]}
    assert report["declared_compared"] + len(rest & shipped) == len(shipped)


def test_a_hot_variant_in_which_nobody_is_hot_fails(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "HOT_ROWS_HELD", HOT_ROWS)
    hot = ("--data", str(grid), "--variant", "hot", "--hot-rows", str(HOT_ROWS))
    report = verified(*hot, out=tmp_path / "out.json")
    (why,) = report["failed"]
    most = max(report["variants"]["hot"]["hottest_per_h"].values())
    assert 0 < most < 1_000 and f"the hottest has {most:,}" in why
    assert report["mismatches"] == 0 and why in capsys.readouterr().out
    monkeypatch.setattr(module, "HOT_PER_H_MIN", most)
    assert verified(*hot, out=tmp_path / "out.json")["failed"] == []


def test_what_a_run_has_found_is_on_the_disk_before_it_ends(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out(*_: object) -> None:
        raise ConfigError("the simulator has nothing")

    monkeypatch.setattr(module, "hot_reader", run_out)
    monkeypatch.setattr(module, "PROGRESS_S", 0.0)
    out = tmp_path / "out.json"
    variants = ("--variant", "as_is", "--variant", "hot")
    assert main(["features", "verify", "--data", str(grid), *variants, "--json", str(out)]) == 2
    report = json.loads(out.read_text(encoding="utf-8"))
    assert tuple(report["variants"]) == ("as_is",) and report["left"] == ["hot"]
    assert report["features"] == len(report["variants"]["as_is"]["compared"]) > 100
    assert report["rows"] == 1_800 and report["mismatches"] == 0
    said = capsys.readouterr().err
    assert "as_is: 1,800 rows through the kernels, " in said
    assert " features of 1,200 payment rows asked of DuckDB, " in said


def without_mismatch(folder: Path, payments: pl.DataFrame, **more: int) -> dict[str, Any]:
    """What a verification of payments as they are says, in which nothing is wrong."""
    one = as_they_are(folder, payments, **more)
    assert one["mismatches"] == 0, one["mismatched"]
    return one


def as_they_are(folder: Path, payments: pl.DataFrame, **more: int) -> dict[str, Any]:
    """What a verification of payments as they are says."""
    path = folder / "payment.parquet"
    payments.write_parquet(path)
    settings = load(None, source="file", file_paths={"payment": path}, groups=2, **more)
    report = verify(
        settings, catalog(), lambda: FileReader(settings), {"as_is": VARIANTS["as_is"]}, print
    )
    one: dict[str, Any] = report["variants"]["as_is"]
    return one


def payments_of_three_hours(seed: int, **columns: pl.Series) -> pl.DataFrame:
    """3,000 payments, columns of which may be given."""
    rng = np.random.default_rng(seed)
    times = START_US + np.sort(rng.integers(0, 3 * 3_600_000_000, 3_000))
    frame = made_of("payment", 3_000, rng).with_columns(time_us=pl.Series(times))
    return frame.with_columns(**columns)


def spoilt(monkeypatch: pytest.MonkeyPatch, spoil: dict[str, Callable[[Any], Any]]) -> None:
    """Have the kernels give other values of some features of payments."""
    given, names = module._Rows.column, catalog().names("payment")

    def column(rows: Any, event: str, at: int) -> Any:
        values = given(rows, event, at)
        return spoil.get(names[at], lambda same: same)(values)

    monkeypatch.setattr(module._Rows, "column", column)


def test_what_panes_make_inexact_is_told_apart_with_its_bound(tmp_path: Path) -> None:
    one = without_mismatch(tmp_path, payments_of_three_hours(6), exact_events_max=100)
    told_apart = {entry["feature"] for entry in one["approximated"]}
    assert {"payment.merchant_count_1h", "payment.card_amount_sum_1h"} <= told_apart
    assert all("1h" in name for name in told_apart if name.endswith(("m", "h"))), told_apart
    assert 0 < one["approximated_excess_max"] < 30
    (count,) = (e for e in one["approximated"] if e["feature"] == "payment.merchant_count_1h")
    for example in count["examples"]:
        assert 0 < example["value"] - example["expected"] <= one["approximated_excess_max"]
    assert "payment.merchant_count_5m" in one["compared"]


def test_more_than_panes_explain_is_a_mismatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil: dict[str, Callable[[Any], Any]] = {
        "card_amount_sum_1h": lambda v: v * 2,
        "card_amount_mean_1h": lambda v: v * 1.5,
        "card_amount_max_1h": lambda v: v - 1,
        "card_amount_min_1h": lambda v: v + 1,
        "merchant_amount_std_1h": lambda v: v * 3,
        "merchant_small_share_1h": lambda v: 1 - v,
        "card_merchants_1h": lambda v: v + 1,
        "merchant_count_1h": lambda v: v - 1,
        "merchant_declined_surprise_1h": lambda v: v + 1e-6,
    }
    spoilt(monkeypatch, spoil)
    one = as_they_are(tmp_path, payments_of_three_hours(6), exact_events_max=100)
    wrong = {entry["feature"].removeprefix("payment.") for entry in one["mismatched"]}
    assert wrong >= set(spoil), set(spoil) - wrong


SAMPLED = {
    "card_id": pl.Series([f"c{i}" for i in np.random.default_rng(7).integers(0, 2_000, 3_000)])
}


def test_what_samples_make_inexact_is_told_apart_within_its_error(tmp_path: Path) -> None:
    frame = payments_of_three_hours(7, **SAMPLED)
    one = without_mismatch(tmp_path, frame, distinct_exact_max=30)
    told_apart = {entry["feature"] for entry in one["estimated"]}
    assert {"payment.merchant_cards_1h", "payment.merchant_card_first"} <= told_apart
    assert one["estimated_one_in_max"] >= 2
    assert "payment.merchant_count_1h" in one["compared"]
    assert "payment.merchant_count_1h" not in told_apart


def test_more_than_samples_explain_is_a_mismatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil: dict[str, Callable[[Any], Any]] = {
        "merchant_cards_1h": lambda v: v * 3,
        "merchant_card_first": lambda v: np.where(np.isnan(v), 0.0, v),
        "device_cards_ever": lambda v: v + 1,
    }
    spoilt(monkeypatch, spoil)
    one = as_they_are(tmp_path, payments_of_three_hours(7, **SAMPLED), distinct_exact_max=30)
    wrong = {entry["feature"].removeprefix("payment.") for entry in one["mismatched"]}
    assert wrong >= set(spoil), set(spoil) - wrong


def test_what_has_one_value_in_all_rows_is_named_and_counts_for_nothing(tmp_path: Path) -> None:
    declined = pl.Series([False] * 3_000)
    one = without_mismatch(tmp_path, payments_of_three_hours(6, declined=declined))
    assert one["constant"]["payment.merchant_declined_count_1h"] == 0.0
    assert "payment.card_count_5m" in one["compared"]
    assert not set(one["constant"]) & {*one["compared"], *one["not_compared"]}
    assert one["features"] == len(one["compared"])


def test_a_run_that_is_told_to_end_leaves_nothing_behind(grid: Path, tmp_path: Path) -> None:
    arguments = ("features", "verify", "--data", f"payment={grid}", "--variant", "hot")
    own = tmp_path / "own"
    own.mkdir()
    with running(*arguments, cwd=tmp_path, TMPDIR=str(own)) as process:
        wait_for(lambda: list(own.glob("waxwing-verify-*/*.features")), "rows", process)
        process.terminate()
        assert process.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    assert not list(own.glob("waxwing-verify-*"))


def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "none" / "out.json"
    assert main(["features", "verify", "--data", str(grid), "--json", str(out)]) == 2
    said = capsys.readouterr()
    assert "cannot be written" in said.err and "as_is" not in said.out


def test_duckdb_draws_no_bar_into_the_report(tmp_path: Path) -> None:
    with oracle_in(tmp_path) as oracle:
        asked = "SELECT current_setting('enable_progress_bar')"
        assert oracle.execute(asked).fetchall() == [(False,)]


def test_a_deviation_shrunk_to_that_of_peers_is_what_sql_finds(grid: Path) -> None:
    def one(name: str, entity: str, op: str, **more: Any) -> Feature:
        unit = "1" if op == "ever" else "sigma"
        return Feature(name, "payment", entity, op, "{value}", unit, "amount", **more)

    settings = load(None, source="file", file_paths={"payment": grid / "payment.parquet"})
    cat = Catalog(
        [
            one("late", "card", "difference", column="back", other="shrunk"),
            one("own", "card", "mad_z", column="log_amount"),
            one("peers", "merchant", "robust_z", column="log_amount"),
            one("n", "card", "ever"),
            one("shrunk", "card", "shrunk_z", column="own", other="peers", count="n"),
            one("back", "merchant", "shrunk_z", column="peers", other="own", count="n"),
        ]
    )
    report = verify(
        settings, cat, lambda: FileReader(settings), {"as_is": VARIANTS["as_is"]}, print
    )
    assert report["mismatches"] == 0, report["variants"]["as_is"]["mismatched"]
    assert report["features"] == 6 and report["max_rel_error"] <= 1e-9, "`late` reads `back`"


def test_simulated_traffic_of_all_types_and_its_absences_have_what_sql_finds(
    tmp_path: Path,
) -> None:
    made = call(
        "simulate", "--out", "made", "--hours", "5", "--events-per-s", "2", "--cards", "200",
        "--attacks", "card_testing,credential_stuffing,series_silence,host_silence",
        "--anomaly-share", "0.02", cwd=tmp_path,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    data = ("--data", str(tmp_path / "made"), "--variant", "as_is")
    report = verified(*data, out=tmp_path / "out.json")
    assert report["mismatches"] == 0, report["variants"]["as_is"]["mismatched"]
    assert report["variants"]["as_is"]["event_types"] == [*event_types(), "absence"]
    absent = {f"absence.{name}" for name in catalog().names("absence")}
    one = report["variants"]["as_is"]
    assert absent <= {*one["compared"], *one["constant"]} and "absence.gap_s" in one["compared"]
    payment = [n for n in report["not_compared"] if n.startswith("payment.")]
    assert len(catalog().names("payment")) - len(payment) >= 70
    assert all(report["not_compared"].values()), "each says why"


def test_a_week_of_the_handbook_has_the_features_that_sql_finds(
    data_file: Callable[[str], Path],
) -> None:
    settings = load(
        None,
        source="file",
        file_paths={"payment": data_file("fraud-handbook/transactions.parquet")},
        file_mapping="fraud-handbook",
        file_until="2018-04-08T00:00:00Z",
    )
    report = verify(
        settings, catalog(), lambda: FileReader(settings), {"dense": VARIANTS["dense"]}, print
    )
    assert report["mismatches"] == 0, report["variants"]["dense"]["mismatched"]
    assert report["rows"] > 60_000
    assert report["features"] >= 40


PROGRAM = "import sys; from dataflows.cli.main import main; sys.exit(main(sys.argv[1:]))"

FAULTS = (
    (
        "features/windows.py",
        "if age_of(newest, place, arena_ints) < left:",
        "if age_of(newest, place, arena_ints) <= left:",
        "payment.card_count_5m",
    ),
    ("features/rates.py", "out[i, to] = n\n", "out[i, to] = n + 1.0\n", "payment.card_ever"),
)
"""File, what stands there, a fault in its place (the window's edge is in it; the event itself is
among those before it), a feature that only this fault spoils."""


def test_a_wrong_kernel_is_found(grid: Path, tmp_path: Path) -> None:
    for package in ("features", "models", "dataflows"):
        shutil.copytree(ROOT / package, tmp_path / package)
    for name, right, wrong, _ in FAULTS:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text.count(right) == 1, "the kernel has changed; say anew where its edge stands"
        (tmp_path / name).write_text(text.replace(right, wrong), encoding="utf-8")
    arguments = ["--data", str(grid), "--variant", "as_is", "--json", "out.json"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, "features", "verify", *arguments],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    found = [one["feature"] for one in report["variants"]["as_is"]["mismatched"]]
    for *_, feature in FAULTS:
        assert feature in found
        assert f"{feature} differs" in done.stdout
    assert "payment.card_since_s" not in found, "what is right is not accused"
