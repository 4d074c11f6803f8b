"""Event types and features of the user's own, from outside: the page's files and its commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.flow.harness import TIMEOUT_S, alerts_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own-features.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL))
START_US = 1_767_225_600_000_000
HOUR_US = 3_600_000_000

TRAP = 'raise RuntimeError("taken for a package of waxwing")\n'
SMALL = {"WAXWING_DETECTORS": "zscore,isolation_forest,transformer", "WAXWING_ALERTS": "jsonl"}

READ_STORE = """
import json, sys
from dataflows.settings import load
from dataflows.store.embedded import EmbeddedRedis
from dataflows.store.reader import StoreReader
from features.catalog import catalog
settings = load("shop.toml")
store = EmbeddedRedis(settings.state_dir)
store.ensure()
rows = StoreReader(store.url, catalog()).read(("order", "user"), sys.argv[1:])
store.close()
print(json.dumps({"features": rows.features, "values": rows.values.tolist()}))
"""


def commands() -> list[str]:
    """Commands of the page, without their comments."""
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    return [re.sub(r"\s+# .*", "", line).strip() for line in block.splitlines()]


def shell(command: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user types it, in a folder with traps."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WAXWING_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=kept | {"PATH": path, "PYTHONPATH": str(ROOT)}
        | SMALL | extra, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def orders(seed: int) -> pl.DataFrame:
    """A day and a half of orders of thirty users; at its end one orders far too much."""
    rng = np.random.default_rng(seed)
    n, burst = 2_500, 10
    time_us = START_US + np.sort(rng.integers(0, 36 * HOUR_US, n))
    last = time_us[-1] + 1_000_000 * np.arange(1, burst + 1)
    return pl.DataFrame(
        {
            "event_id": [f"o{i}" for i in range(n + burst)],
            "time_us": np.concatenate((time_us, last)),
            "user_id": [f"u{i}" for i in rng.integers(0, 30, n)] + ["u3"] * burst,
            "shop_id": [f"s{i}" for i in rng.integers(0, 9, n + burst)],
            "total": np.concatenate((np.exp(rng.normal(3, 0.4, n)).round(2), [9_000.0] * burst)),
        }
    )


@pytest.fixture
def shop(tmp_path: Path, seed: int) -> tuple[Path, pl.DataFrame]:
    """A folder with the page's files, orders, and files that are called as our packages."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in ("models.py", "features.py", "dataflows.py"):
        (tmp_path / name).write_text(TRAP, encoding="utf-8")
        (tmp_path / "own" / name).write_text(TRAP, encoding="utf-8")
    frame = orders(seed)
    frame.write_ndjson(tmp_path / "orders.jsonl")
    return tmp_path, frame


def test_the_page_is_true_from_check_to_alerts_and_store(shop: tuple[Path, pl.DataFrame]) -> None:
    folder, frame = shop
    told = []
    for command in commands():
        done = shell(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        told.append(done.stdout + done.stderr)
    checked, listed, shown, _, _, trained, ran = told
    assert "event_paths = [own/order.py]  [shop.toml]" in checked
    assert re.search(r"^user_total_1h +order +user +sum +1 h +EUR +amount$", listed, re.MULTILINE)
    assert "per user" in shown and "sigma" in shown
    assert "| `user_total_z` | sigma |" in (folder / "features.md").read_text(encoding="utf-8")
    schema = json.loads((folder / "schemas/order.avsc").read_text(encoding="utf-8"))
    assert [f["name"] for f in schema["fields"]][2:] == ["user_id", "shop_id", "total", "express"]
    assert "left out, since no event type here has sequences: transformer" in trained
    assert f"{len(frame):,} events in, {len(frame):,} scored, 0 dead-lettered" in ran
    alerts = [a for a in alerts_of(folder / ".waxwing/state") if a["entity"] == "u3"]
    last = alerts[-1]
    assert (last["event_type"], last["entity_type"]) == ("order", "user")
    assert last["anomaly_type"] == "order_anomaly"
    reasons = {r["feature"]: r["value"] for r in last["reasons"]}
    assert reasons.get("user_total_1h", 0.0) >= 80_000.0, last
    assert stored(folder, "u3", "u7") == [expected(frame, "u3"), expected(frame, "u7")]


def stored_rows(folder: Path, *users: str) -> list[dict[str, float]]:
    """What the online store holds of users, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", READ_STORE, *users], cwd=folder, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, timeout=TIMEOUT_S, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return [dict(zip(found["features"], row, strict=True)) for row in found["values"]]


def stored(folder: Path, *users: str) -> list[dict[str, float]]:
    """Count and sum of the last hour of users."""
    return [
        {"user_orders_1h": row["user_orders_1h"], "sum": round(row["user_total_1h"], 6)}
        for row in stored_rows(folder, *users)
    ]


def expected(frame: pl.DataFrame, user: str) -> dict[str, float]:
    """The same from the file, by one who knows nothing of the flow."""
    mine = frame.filter(pl.col("user_id") == user)
    within = mine.filter(pl.col("time_us") > mine["time_us"].max() - HOUR_US)
    return {"user_orders_1h": float(len(within)), "sum": round(float(within["total"].sum()), 6)}


def test_bytewax_and_feast_take_the_same_declarations(shop: tuple[Path, pl.DataFrame]) -> None:
    folder, _ = shop
    with (folder / "shop.toml").open("a", encoding="utf-8") as file:
        file.write('source = "file"\nfile_paths = { order = "orders.jsonl" }\nstore = "off"\n')
    train, run = commands()[-2:]
    assert shell(train, folder).returncode == 0
    assert shell(run, folder).returncode == 0
    first = [alert["id"] for alert in alerts_of(folder / ".waxwing/state")]
    # Bytewax itself puts the working folder on the path, where a user's models.py is theirs.
    for name in ("models.py", "features.py", "dataflows.py"):
        (folder / name).unlink()
    build = "dataflows.detect:build('shop.toml')"
    more = {"WAXWING_STATE_DIR": "again", "WAXWING_WARM_STATE": "cold"}
    done = shell(f'python -m bytewax.run -s 0 "{build}"', folder, **more)
    assert done.returncode == 0, done.stderr
    assert first and [alert["id"] for alert in alerts_of(folder / "again")] == first
    paths = "WAXWING_EVENT_PATHS=own/order.py WAXWING_FEATURE_PATHS=own/paid.py"
    listed = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import feature_definitions as d\n"
        "view = d.views['order', 'user']\n"
        "print(view.name, *(f.name for f in view.schema if f.name != 'user'))"
    )
    done = shell(f'{paths} python -P -c "{listed}" {ROOT}/feature_repo', folder)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == [
        "order_user_v1", "user_orders_1h", "user_total_1h", "user_total_z"
    ]  # fmt: skip


def test_all_faults_of_the_files_stop_the_start_with_status_two(
    shop: tuple[Path, pl.DataFrame],
) -> None:
    folder, _ = shop
    paid = (folder / "own/paid.py").read_text(encoding="utf-8")
    wrong = paid.replace("window_s=3600", "window_s=0").replace('"user"', '"usr"')
    (folder / "own/paid.py").write_text(wrong.replace('unit="1"', 'unit="EUR"'), encoding="utf-8")
    (folder / "own/torn.py").write_text("FEATURES = (\n", encoding="utf-8")
    paths = "feature_paths=own/paid.py,own/torn.py"
    for command in ("check", "run --data order=orders.jsonl", "features list", "schemas"):
        done = shell(f"waxwing {command} --config shop.toml --set {paths}", folder)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.splitlines() == [
            "waxwing: own/torn.py:1: syntax error: '(' was never closed",
            "waxwing: own/paid.py:6: payment.user_orders_before_1h: 'payment' has no entity 'usr';"
            " entities are card, user, merchant, device, ip",
            "waxwing: own/paid.py:6: payment.user_orders_before_1h: 'order' has no entity 'usr';"
            " entities are user, shop",
            "waxwing: own/paid.py:6: payment.user_orders_before_1h: window_s is 0; it must be in"
            " 1..2678400",
            "waxwing: own/paid.py:6: payment.user_orders_before_1h: unit 'EUR' does not fit;"
            " operation 'count' gives '1'",
        ], done.stderr  # fmt: skip
    assert not (folder / ".waxwing").exists()


GROWN = """

FEATURES = (
    *FEATURES,
    Feature(
        name="user_shops_1h",
        event="order",
        entity="user",
        op="distinct",
        other="shop",
        window_s=3600,
        unit="1",
        group="velocity",
        why="{value} shops at which this user ordered in 1 h",
    ),
)
"""


def test_a_file_that_grows_between_two_runs_goes_on_with_the_old_state(
    shop: tuple[Path, pl.DataFrame],
) -> None:
    folder, frame = shop
    half, half_us = "2026-01-02T11:30:00Z", START_US + round(35.5 * HOUR_US)
    options = "--data order=orders.jsonl --config shop.toml --set detectors=zscore"
    train, flow = f"waxwing train {options}", f"waxwing run {options} --set warm_state=cold"
    assert shell(train, folder).returncode == 0
    done = shell(f"{flow} --set file_until={half}", folder)
    assert done.returncode == 0, done.stderr
    file = folder / "own/order.py"
    file.write_text(file.read_text(encoding="utf-8") + GROWN, encoding="utf-8")
    done = shell(flow, folder)
    assert done.returncode == 2
    assert "order: `user_shops_1h` is new here; train again" in done.stderr, done.stderr
    assert shell(train, folder).returncode == 0
    done = shell(f"{flow} --json out.json", folder)
    assert done.returncode == 0, done.stderr
    said = "waxwing: the state is of another feature catalogue: order.user_shops_1h starts empty;"
    assert done.stderr.count(said) == 1, done.stderr
    report = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert report["starts_empty"] == ["order.user_shops_1h"]
    after = frame.filter(pl.col("time_us") >= half_us)
    assert (report["scored"], report["duplicates"]) == (len(frame), 0)
    users = after["user_id"].unique(maintain_order=True).to_list()[:8]
    assert stored(folder, *users) == [expected(frame, user) for user in users]
    assert any(expected(frame, user) != expected(after, user) for user in users)
    shops = [after.filter(pl.col("user_id") == user)["shop_id"].n_unique() for user in users]
    assert [row["user_shops_1h"] for row in stored_rows(folder, *users)] == shops


VERIFIED = """
import numpy as np
from features.columns import Derived
from features.spec import Feature

def total(columns):
    return np.where(columns.flag("express"), np.nan, np.sqrt(columns.real("total")))

def paid(columns):
    return np.sqrt(columns.real("amount"))

def large(columns):
    return columns.real("total") > 20.0

def small(columns):
    return columns.real("total") < 20.0

DERIVED = (
    Derived("order", "root", "real", total, "root of the sum"),
    Derived("payment", "root", "real", paid, "root of the amount"),
    Derived("order", "large", "flag", large, "above 20"),
    Derived("order", "small", "flag", small, "below 20"),
)

def one(name, op, unit="1", **more):
    event, entity = more.pop("event", "order"), more.pop("entity", "user")
    return Feature(name, event, entity, op, "{value}", unit, "amount", **more)

FEATURES = (
    one("root_sum", "sum", column="root", window_s=3600),
    one("root_median", "median", column="root"),
    one("larges", "count", where="large", window_s=3600),
    one("smalls", "share", where="small", window_s=3600),
    one("is_large", "value", "flag", column="large", entity=""),
    one("roots_of_both", "mean", event="payment", feeds=("order", "payment"), column="root",
        window_s=3600),
    one("roots_less", "difference", column="root_sum", other="root_median"),
)
"""


def test_verify_asks_duckdb_for_features_of_columns_that_a_user_made(
    shop: tuple[Path, pl.DataFrame],
) -> None:
    folder, frame = shop
    (folder / "own/made.py").write_text(VERIFIED, encoding="utf-8")
    express = pl.int_range(pl.len()) % 7 == 0
    frame.with_columns(express=express).write_parquet(folder / "order.parquet")
    rows = frame.select(
        pl.format("p{}", "event_id").alias("event_id"), pl.col("time_us") + 500_000, "user_id",
        card_id="user_id", merchant_id="shop_id", amount="total",
    )  # fmt: skip
    rows.write_parquet(folder / "payment.parquet")
    done = shell(
        "waxwing features verify --config shop.toml --set event_types=order,payment"
        " --set feature_paths=own/paid.py,own/made.py --variant as_is --json out.json"
        " --data order=order.parquet --data payment=payment.parquet",
        folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    compared = set(report["variants"]["as_is"]["compared"])
    made = {"root_sum", "root_median", "larges", "smalls", "is_large", "roots_less"}
    assert compared >= {f"order.{name}" for name in made} | {"payment.roots_of_both"}
    assert set(report["not_compared"]) >= {"order.user_total_z"}, "found value by value"
