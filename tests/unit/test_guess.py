"""A proposed mapping works as it stands, on files of every shape and on real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dataflows.settings import load
from dataflows.sources.files import FileReader
from dataflows.sources.guess import Guess, guess_mapping
from dataflows.sources.mapping import load_mapping
from features.errors import ConfigError
from tests.tables import write_log, write_payments, write_sensors, write_series


def events(found: Guess, path: Path, folder: Path, rows: int = 1_000) -> tuple[int, int]:
    """Events and rejects of the first rows through the proposed mapping."""
    mapping = folder / "guessed.toml"
    mapping.write_text(found.toml(), encoding="utf-8")
    assert load_mapping(str(mapping)).event == found.event_type
    told = {found.event_type: str(path)}
    reader = FileReader(
        load(None, {}, source="file", file_paths=told, event_types=[found.event_type],
             file_mapping=str(mapping))
    )  # fmt: skip
    taken = reader.take(rows)
    reader.close()
    return sum(map(len, taken.batches.values())), len(taken.rejects)


def source(found: Guess, field: str) -> str:
    """What stands behind a field; empty where it is left out."""
    return next((line.source for line in found.lines if line.field == field), "")


@pytest.mark.parametrize(
    ("name", "event", "fields"),
    [
        (
            "skab/skab.parquet",
            "metric",
            {"time_us": '"datetime"', "host": '"file"', "truth": '"anomaly"'},
        ),
        (
            "server-machine/machine-1-6_test.parquet",
            "metric",
            {"time_us": '{ row = "2026-01-01T00:00:00Z", step_s = 60 }', "truth": '"label"'},
        ),
        (
            "fraud-handbook/transactions.parquet",
            "payment",
            {"time_us": '"datetime"', "card_id": '"customer_id"', "merchant_id": '"terminal_id"',
             "amount": '"amount"', "truth": '"scenario"', "event_id": '"transaction_id"'},
        ),
        ("auth-log/auth.log", "app_log", {"service": '"service"', "host": '"host"'}),
    ],
)  # fmt: skip
def test_real_files_are_read_through_what_is_proposed(
    data_file: Callable[[str], Path], tmp_path: Path, name: str, event: str, fields: dict[str, str]
) -> None:
    path = data_file(name)
    found = guess_mapping(path)
    assert found.event_type == event
    assert {field: source(found, field) for field in fields} == fields
    taken, refused = events(found, path, tmp_path)
    assert taken > 900 and refused == 0
    assert found.events > 900 and found.refused == 0


def test_series_are_columns_of_numbers_and_neither_labels_nor_ids(
    data_file: Callable[[str], Path],
) -> None:
    found = guess_mapping(data_file("skab/skab.parquet"))
    wide = source(found, "wide")
    assert wide.count('"') == 2 * 8 and '"Volume Flow RateRMS"' in wide
    assert "changepoint" not in wide and "anomaly" not in wide
    assert any("changepoint" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "write", "event", "fields"),
    [
        ("a.csv", write_sensors, "metric", {"host": '"machine"', "time_us": '"time"'}),
        (
            "b.csv",
            write_series,
            "metric",
            {"metric": '"sensor"', "value": '"value"',
             "time_us": '{ column = "ts", unit = "s" }'},
        ),
        (
            "c.csv",
            write_payments,
            "payment",
            {"amount": '"total"', "card_id": '"card"', "user_id": '"customer"',
             "merchant_id": '"shop"', "truth": '"fraud"',
             "time_us": '{ column = "when", format = "%d.%m.%Y %H:%M:%S" }'},
        ),
        ("d.log", write_log, "app_log", {"template": '{ column = "message", mask = true }'}),
    ],
)  # fmt: skip
def test_made_files_of_every_shape_are_known(
    tmp_path: Path,
    name: str,
    write: Callable[[Path, np.random.Generator], object],
    event: str,
    fields: dict[str, str],
    rng: np.random.Generator,
) -> None:
    write(tmp_path / name, rng)
    found = guess_mapping(tmp_path / name)
    assert found.event_type == event
    assert {field: source(found, field) for field in fields} == fields
    taken, refused = events(found, tmp_path / name, tmp_path, 300)
    assert taken == 300 and refused == 0


@pytest.mark.parametrize(
    ("genuine", "odd"), [("no", "yes"), ("Genuine", "Fraud"), ("false", "true"), ("0", "1")]
)
def test_payments_with_an_id_and_labels_in_words_are_read_as_they_are(
    tmp_path: Path, genuine: str, odd: str
) -> None:
    lines = [f"p-{i:x},2026-03-02T00:{i // 60:02}:{i % 60:02}Z,c-{i % 7},u-{i % 5},m-1,{i}.5,"
             f"{odd if i % 20 == 0 else genuine}" for i in range(400)]  # fmt: skip
    header = "event_id,time,card_id,user_id,merchant_id,amount,is_fraud"
    (tmp_path / "pay.csv").write_text("\n".join([header, *lines]) + "\n")
    found = guess_mapping(tmp_path / "pay.csv")
    assert source(found, "event_id") == '"event_id"' and source(found, "truth") == '"is_fraud"'
    assert found.unused == [] and found.refused == 0
    (tmp_path / "m.toml").write_text(found.toml())
    settings = load(
        None, {}, source="file", file_paths={"payment": str(tmp_path / "pay.csv")},
        event_types=["payment"], file_mapping=str(tmp_path / "m.toml"),
    )  # fmt: skip
    reader = FileReader(settings)
    batch = reader.take(1_000).batches["payment"]
    reader.close()
    assert batch.truth is not None
    assert batch.truth.tolist() == [int(i % 20 == 0) for i in range(400)]
    assert batch.frame["event_id"][255] == "p-ff"


def test_labels_of_which_nobody_says_which_is_genuine_are_asked_about(tmp_path: Path) -> None:
    lines = [f"2026-03-02T00:00:{i:02}Z,{i % 7}.5,{'AB'[i % 2]}" for i in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["time,value,label", *lines]) + "\n")
    found = guess_mapping(tmp_path / "a.csv")
    assert not [line for line in found.lines if line.field == "truth"]
    assert any("label: labels, by its name?" in note and "'A' and 'B'" in note
               for note in found.notes)  # fmt: skip


def test_json_lines_and_names_that_toml_must_quote_are_no_trouble(tmp_path: Path) -> None:
    rows = 200
    frame = pl.DataFrame(
        {
            "timestamp": [f"2026-03-02T00:{i // 60:02d}:{i % 60:02d}Z" for i in range(rows)],
            'the "hot" end\\°C': np.linspace(1.0, 2.0, rows),
        }
    )
    path = tmp_path / "x.jsonl"
    frame.write_ndjson(path)
    found = guess_mapping(path)
    assert events(found, path, tmp_path) == (rows, 0)


def test_a_name_with_a_line_break_stays_within_its_comment(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    names = ["time", "temp\nerature", "host", "of\r\nwords = 1"]
    pl.DataFrame(
        {
            names[0]: [f"2026-03-02T00:00:{i:02d}Z" for i in range(40)],
            names[1]: np.linspace(1.0, 2.0, 40),
            names[2]: ["a"] * 40,
            names[3]: [f"w{i}" for i in range(40)],
        }
    ).write_csv(path)
    found = guess_mapping(path)
    assert events(found, path, tmp_path) == (40, 0)
    assert "# temp erature: " in found.toml() and "# Not used: of words = 1" in found.toml()


def test_a_column_without_values_pays_nothing(tmp_path: Path) -> None:
    lines = [f"2026-03-02T00:00:{i:02d}Z,{i / 7}," for i in range(40)]
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["time,amount,customer", *lines]), encoding="utf-8")
    found = guess_mapping(path)
    assert found.event_type == "metric" and '"amount"' in source(found, "wide")
    assert events(found, path, tmp_path) == (40, 0)


def test_times_with_and_without_a_zone_are_pointed_out(tmp_path: Path) -> None:
    lines = [f"2026-03-02T00:00:{i:02d}{'Z' if i % 2 else ''},{i / 7}" for i in range(40)]
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["time,level", *lines]), encoding="utf-8")
    assert any("20 of 40 times name a zone" in note for note in guess_mapping(path).notes)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "a,b\n", "has no rows"),
        ("x.csv", "name,colour\nann,red\nbob,blue\n", "nothing here is an event"),
        ("x.log", "what\never\n", "of no form that is known"),
        ("x.csv", "", "is no .csv file"),
    ],
)
def test_what_is_no_table_of_events_is_said(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        guess_mapping(tmp_path / name)


def test_faults_of_a_mapping_name_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(
        'event = "metric"\n\n[fields]\nhots = "x"\ntime_us = { column = "t", year = 3 }\n'
        'event_id = { row = "a-" }\nvalue = "v"\n\n[wide]\ncolumns = []\nnmae = "metric"\n\n'
        "[lines]\npattern = '(?P<a'\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        load_mapping(str(path))
    said = "\n".join(caught.value.faults)
    for piece in (
        "line 4, fields: unknown name 'hots'; did you mean 'host'", "line 5, fields.time_us.year",
        "wide.columns: expected a list", "line 11, wide: unknown name 'nmae'",
        "line 14, lines.pattern", "'host' of metric is missing",
    ):  # fmt: skip
        assert piece in said, (piece, said)
