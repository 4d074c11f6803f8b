"""docs/score.md is true: its commands and mappings are run; scores are those of the live flow."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.flow.harness import alerts_of, call
from tests.flow.test_json import undocumented
from tests.tables import ODD, write_log, write_payments, write_sensors, write_series

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/score.md").read_text(encoding="utf-8")

CHEAP = {"WAXWING_DETECTORS": '["zscore", "iqr", "isolation_forest", "gradient_boosting"]'}
"""All but the transformer, which takes half a minute to fit."""

UNTIL = "2026-03-02T06:00:00Z"


def mapping(name: str, folder: Path) -> str:
    """A mapping of the page as a file."""
    (text,) = re.findall(rf"<!-- file: {name} -->\n```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    (folder / name).write_text(text, encoding="utf-8")
    return name


def commands(name: str) -> list[list[str]]:
    """The arguments of a block of commands."""
    (text,) = re.findall(rf"<!-- run: {name} -->\n```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [shlex.split(re.sub(r"\s+# .*", "", line)) for line in text.splitlines()]
    assert all(line[0] == "waxwing" for line in lines)
    return [line[1:] for line in lines]


def score(folder: Path, *arguments: str) -> tuple[pl.DataFrame, dict[str, Any], str]:
    """Rows, summary and what was said of `waxwing score`."""
    told = ("--out", "s.parquet", "--json", "s.json")
    done = call("score", *arguments, *told, cwd=folder, **CHEAP)
    assert done.returncode == 0, done.stdout + done.stderr
    summary: dict[str, Any] = json.loads((folder / "s.json").read_text(encoding="utf-8"))
    return pl.read_parquet(folder / "s.parquet"), summary, done.stdout


@pytest.fixture(scope="module")
def sensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's first commands, run; the models they fitted are kept."""
    folder = tmp_path_factory.mktemp("sensors")
    write_sensors(folder / "sensors.csv", np.random.default_rng(11))
    guess, scoring = commands("sensors")
    done = call(*guess, cwd=folder)
    assert done.returncode == 0, done.stderr
    done = call(*scoring, "--keep", "kept", cwd=folder, **CHEAP)
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stdout, encoding="utf-8")
    return folder


def test_each_row_of_the_file_comes_back_once_and_the_odd_ones_are_found(sensors: Path) -> None:
    table = pl.read_csv(sensors / "sensors.csv", try_parse_dates=True)
    rows = pl.read_parquet(sensors / "scores.parquet")
    assert rows["row"].to_list() == list(range(table.height))
    assert rows["time"].dt.replace_time_zone(None).to_list() == table["time"].to_list()
    assert (rows["status"] == "scored").all() and (rows["events"] == 3).all()
    assert rows["fitted"].sum() == table.filter(pl.col("time") < pl.datetime(2026, 3, 2, 6)).height
    shaking = table.with_row_index("row").filter(pl.col("machine") == "b")["row"][ODD]
    found = rows.filter("alert")["row"].is_in(shaking.implode())
    assert found.any(), "the shaking is an alert"
    assert rows.filter(~pl.col("warming"))["alert"].sum() < 0.03 * table.height
    assert rows.filter("warming")["fitted"].all()
    assert 0 < rows["warming"].sum() <= 0.4 * rows["fitted"].sum()
    first = rows.filter(pl.col("row") == shaking[0])
    assert first["entity"].item() == "b|vibration" and first["alert"].item()
    assert first["top_reason"].item()
    # Of three cells together a row is no less strange than its strangest.
    alone = -np.log10(np.maximum(1.0 - rows["score"].to_numpy(), 1e-12))
    together = rows["together"].to_numpy()
    assert (together >= alone - 1e-9).all() and (together > alone + 1.0).any()


def test_the_summary_names_who_stayed_out_and_every_key_is_documented(sensors: Path) -> None:
    summary = json.loads((sensors / "scores.json").read_text(encoding="utf-8"))
    summary.pop("top_entities")
    assert undocumented(summary) == []
    assert summary["rows"] == summary["scored"] == 6_000 and summary["events"] == 18_000
    assert summary["stayed_out"] == ["gradient_boosting"]
    said = (sensors / "said").read_text(encoding="utf-8")
    assert "Stayed out, with nothing to say here: gradient_boosting" in said
    assert "6,000 rows: 6,000 scored, 0 refused, 0 repeated" in said


class _Page(HTMLParser):
    """What a report loads from elsewhere, and its marks."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.marks = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at one tag."""
        self.loads += [f"{tag} {k}={v}" for k, v in attrs if k in ("src", "href")]
        self.loads += [tag] if tag in ("script", "link", "iframe", "img") else []
        self.marks += tag == "circle"


def test_the_report_stands_alone_and_shows_the_series_with_its_alerts(sensors: Path) -> None:
    text = (sensors / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.loads == [] and "url(" not in text and "http" not in text
    assert page.marks > 10, "alerts are marked on their series"
    assert "b · vibration" in text and "shaded" in text


def test_the_live_flow_flags_the_same_events_with_the_same_scores(
    sensors: Path, tmp_path: Path
) -> None:
    told = ("--data", "metric=sensors.csv", "--mapping", "sensors.toml")
    cold = ("--set", "warm_state=cold")
    done = call(
        "score", *told, *cold, "--bundle", "kept", "--out", "again.jsonl", cwd=sensors, **CHEAP
    )
    assert done.returncode == 0, done.stderr
    rows = pl.read_ndjson(sensors / "again.jsonl", infer_schema_length=None)
    state = ("--set", f"state_dir={tmp_path}", "--set", "bundle=kept", "--set", "store=off")
    done = call("run", *told, *cold, *state, cwd=sensors, **CHEAP)
    assert done.returncode == 0, done.stderr
    live = {a["event_id"]: a["score"] for a in alerts_of(tmp_path) if a["event_type"] == "metric"}
    assert rows["alerts"].sum() == len(live) > 10
    shown = dict(rows.filter("alert").select("event_id", "score").iter_rows())
    assert shown.items() <= live.items(), "a row shows its strangest event, as the flow scored it"


@pytest.mark.parametrize(
    ("name", "write", "events"),
    [("long.toml", write_series, 3_000), ("syslog.toml", write_log, 2_500)],
)
def test_the_mappings_of_the_page_work_as_they_stand(
    tmp_path: Path, name: str, write: Any, events: int
) -> None:
    file = "data.log" if name == "syslog.toml" else "data.csv"
    write(tmp_path / file, np.random.default_rng(5))
    until = "2026-03-02T16:00:00Z" if name == "syslog.toml" else "2026-03-02T02:30:00Z"
    told = ("--data", file, "--mapping", mapping(name, tmp_path), "--fit-until", until)
    rows, summary, _ = score(tmp_path, *told)
    assert summary["scored"] == rows.height == events and summary["refused"] == 0
    late = rows.filter(~pl.col("fitted"))
    assert late["alert"].any()
    if name == "syslog.toml":
        guessing = late.filter(pl.col("row").is_between(2_200, 2_279))
        assert guessing["alert"].any(), "somebody tries passwords"


def test_foreign_transactions_are_judged_by_their_labels(tmp_path: Path) -> None:
    write_payments(tmp_path / "shop.csv", np.random.default_rng(3))
    told = ("--data", "shop.csv", "--mapping", mapping("shop.toml", tmp_path))
    rows, summary, said = score(tmp_path, *told, "--fit-until", "2026-03-04T00:00:00Z")
    assert rows["event_id"][0] == "order-1000" and rows["label"].sum() == 40
    judged = summary["judgement"]
    assert judged["anomalous"] == 40 and judged["average_precision"] > 0.8
    assert 0.0 <= judged["fpr"] < 0.15 and "average precision" in said
    assert undocumented({k: v for k, v in summary.items() if k != "top_entities"}) == []


def test_what_is_refused_or_repeated_comes_back_with_its_reason(
    sensors: Path, tmp_path: Path
) -> None:
    wide = mapping("wide.toml", sensors)
    text = (sensors / wide).read_text(encoding="utf-8")
    (sensors / wide).write_text(text.replace('{ row = "press-" }', '"id"'), encoding="utf-8")
    lines = [
        "id,time,machine,temperature,pressure,vibration",
        "1,2026-03-02 10:00:00,a,60,2,1",
        "2,yesterday,a,60,2,1",
        "3,2026-03-02 10:00:20,a,warm,2,1",
        "1,2026-03-02 10:00:30,a,60,2,1",
        "5,2026-03-02 10:00:40,a,,,",
        "6,2026-03-02 10:00:50+02:00,a,60,,1",
        "7,2026-03-02 10:01:00,a,60,2,1,9",
    ]
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    told = ("--data", str(path), "--mapping", wide, "--bundle", "kept", "--html", "bad.html")
    rows, summary, said = score(sensors, *told)
    assert rows["status"].to_list() == [
        "scored", "refused", "scored", "duplicate", "refused", "scored", "refused",
    ]  # fmt: skip
    assert rows["events"].to_list() == [3, 0, 2, 0, 0, 2, 0]
    why = rows["reason"].to_list()
    assert why[1].startswith("wrong_type: time_us: expected time_us, got 'yesterday'")
    assert why[2].startswith(
        "wrong_type: value: expected float64, got 'warm' in column temperature"
    )
    assert why[4].startswith("no_value: ") and why[6].startswith("not_a_row: ")
    assert rows["time"][5].hour == 8, "a time with a zone is put into UTC"
    assert summary["refused"] == 3 and summary["duplicates"] == 1
    assert summary["reasons"] == {"wrong_type": 1, "no_value": 1, "not_a_row": 1}
    assert "refused, no_value: 1" in said
    assert "yesterday" in (sensors / "bad.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "none.csv", "--mapping", "m.toml", "--fit-until", UNTIL], "none.csv"),
        (["--data", "sensors.csv", "--mapping", "m.toml", "--fit-until", "noon"], "'noon'"),
        (
            ["--data", "sensors.csv", "--mapping", "m.toml", "--fit-until", "2020-01-01T00:00:00Z"],
            "has no row of metric before it; its times are 2026-03-02T00:00:00Z",
        ),
        (["--data", "sensors.csv", "--fit-until", UNTIL], "say which event type it holds"),
        (["--data", "metric=sensors.csv", "--bundle", "none"], "no column 'value'"),
        (["--data", "sensors.csv", "--mapping", "m.toml", "--bundle", "none"], "none"),
        (["--data", "empty.csv", "--mapping", "m.toml", "--bundle", "kept"], "has no rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_said_in_a_sentence(
    sensors: Path, arguments: list[str], said: str
) -> None:
    (sensors / "m.toml").write_text((sensors / "sensors.toml").read_text(), encoding="utf-8")
    header = (sensors / "sensors.csv").read_text(encoding="utf-8").splitlines()[0]
    (sensors / "empty.csv").write_text(header + "\n", encoding="utf-8")
    done = call("score", *arguments, "--out", "never.parquet", cwd=sensors, **CHEAP)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert said in done.stderr
    assert not (sensors / "never.parquet").exists()
