"""Files as a source: every row once, in the order of time, refused ones by number and raw form."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from dataflows.settings import Settings, load
from dataflows.sources.base import DeadLetter, Taken
from dataflows.sources.files import FileReader, mapping_event_type, truth_names
from dataflows.sources.mapping import TableMapping, load_mapping
from dataflows.sources.rounds import Lane
from dataflows.sources.truth import codes_of
from dataflows.state.journal import LaneJournal
from features.batch import EventBatch, concat_batches
from features.encode import json_bodies
from features.errors import ConfigError, SourceError
from features.simulate import Simulator
from features.simulate.malformed import break_some

START_US = 1_772_409_600_000_000
MINUTE_US = 60_000_000
DAY_US = 1440 * MINUTE_US
TYPES = ("payment", "login", "metric", "app_log")


def simulated(seconds: int = 300) -> dict[str, pl.DataFrame]:
    """Some events of each type, in order."""
    simulator = Simulator(seed=2, events_per_s=20.0, cards=500)
    span = simulator.span(START_US, START_US + seconds * 1_000_000)
    return {name: batch.in_order().frame for name, batch in span.items()}


FRAMES = simulated()


def write(folder: Path, name: str, frame: pl.DataFrame, suffix: str) -> Path:
    """A frame as a file of a kind."""
    path = folder / f"{name}.{suffix}"
    if suffix == "parquet":
        frame.write_parquet(path, row_group_size=100)
    elif suffix == "csv":
        frame.write_csv(path)
    else:
        frame.write_ndjson(path)
    return path


def settings_of(paths: dict[str, Path], **more: Any) -> Settings:
    """Settings that read these files."""
    named = {name: str(path) for name, path in paths.items()}
    return load(None, source="file", file_paths=named, event_types=list(named), **more)


def all_of(reader: FileReader, rows_max: int = 97) -> tuple[dict[str, EventBatch], list[Taken]]:
    """Everything a reader gives: events by type, in order, and each take."""
    takes = []
    while True:
        takes.append(reader.take(rows_max))
        assert takes[-1].received <= rows_max
        if takes[-1].eof:
            break
    reader.close()
    batches: dict[str, list[EventBatch]] = {}
    for taken in takes:
        for name, batch in taken.batches.items():
            batches.setdefault(name, []).append(batch)
    counts = [sum(map(len, t.batches.values())) + len(t.rejects) for t in takes]
    assert counts == [t.received for t in takes]
    return {name: concat_batches(found) for name, found in batches.items()}, takes


def rejects_of(takes: list[Taken]) -> list[DeadLetter]:
    """The dead letters of all takes."""
    return [letter for taken in takes for letter in taken.rejects]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_every_row_comes_once_and_in_the_order_of_time(
    tmp_path: Path, suffix: str, shuffled: bool
) -> None:
    paths = {}
    for name, frame in FRAMES.items():
        mixed = frame.sample(fraction=1.0, shuffle=True, seed=5) if shuffled else frame
        paths[name] = write(tmp_path, name, mixed, suffix)
    batches, takes = all_of(FileReader(settings_of(paths)))
    assert rejects_of(takes) == []
    ties = ["time_us", "event_id"]
    for name, frame in FRAMES.items():
        assert_frame_equal(batches[name].frame.sort(ties), frame.sort(ties))
        if not shuffled:
            assert batches[name].offset.tolist() == list(range(len(frame)))
    reached = START_US - DAY_US
    for taken in takes:
        times = [t for b in taken.batches.values() for t in b.time_us.tolist()]
        assert min(times, default=reached) >= reached
        assert taken.cut_time_us == max(times, default=reached)
        reached = taken.cut_time_us
    assert {t.received for t in takes[:-1]} == {97}


def test_rounds_may_be_cut_by_event_time(tmp_path: Path) -> None:
    paths = {name: write(tmp_path, name, frame, "parquet") for name, frame in FRAMES.items()}
    _, takes = all_of(FileReader(settings_of(paths, file_round_s=60.0)), rows_max=100_000)
    minutes = [
        {int(t) // MINUTE_US for b in taken.batches.values() for t in b.time_us} for taken in takes
    ]
    assert all(len(found) == 1 for found in minutes)
    assert len(minutes) == len({next(iter(found)) for found in minutes}) == 5


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_what_was_taken_can_be_taken_again(tmp_path: Path, suffix: str, shuffled: bool) -> None:
    paths = {}
    for name in ("payment", "login"):
        mixed = FRAMES[name].sample(fraction=1.0, shuffle=True, seed=5)
        paths[name] = write(tmp_path, name, mixed if shuffled else FRAMES[name], suffix)
    settings = settings_of(paths)
    first = FileReader(settings)
    takes = [first.take(50) for _ in range(6)]
    again = FileReader(settings)
    again.seek(takes[1].positions)
    for before, wanted in itertools.pairwise(takes[1:4]):
        positions = json.loads(json.dumps([before.positions, wanted.positions]))
        got = again.retake(*positions, wanted.cut_time_us, {})
        same(got, wanted)
    same(again.take(50), takes[4])
    from_the_start = FileReader(settings)
    same(from_the_start.retake({}, takes[0].positions, 0, {}), takes[0])


def same(left: Taken, right: Taken) -> None:
    """Fail unless two takes hold the same, the moment of taking apart."""
    assert left.batches.keys() == right.batches.keys()
    for name, batch in right.batches.items():
        assert_frame_equal(left.batches[name].frame, batch.frame)
        np.testing.assert_array_equal(left.batches[name].offset, batch.offset)
    assert left.rejects == right.rejects
    assert (left.positions, left.received, left.eof, left.cut_time_us) == (
        right.positions, right.received, right.eof, right.cut_time_us,
    )  # fmt: skip


def lane_over(settings: Settings, folder: Path) -> Lane:
    """A lane that reads the files and keeps its journal in the folder."""
    journal = LaneJournal(folder, 1_000_000)
    return Lane(0, FileReader(settings), journal, 100, 50, lambda: False)


def test_a_lane_that_died_cuts_the_same_rounds_again(tmp_path: Path) -> None:
    paths = {n: write(tmp_path, n, f, "jsonl") for n, f in FRAMES.items()}
    with paths["payment"].open("ab") as file:
        file.write(b"{\n\xff\n")
    settings = settings_of(paths)
    first = lane_over(settings, tmp_path / "journal")
    first.start(0)
    parts = [first.cut() for _ in range(8)]
    first.journal.close()
    again = lane_over(settings, tmp_path / "journal")
    again.start(3)
    repeated = [again.cut() for _ in range(5)]
    for one, other in zip(repeated, parts[3:], strict=True):
        assert one.replayed and not other.replayed
        assert (one.round, one.cut_time_us, one.received) == (
            other.round, other.cut_time_us, other.received,
        )  # fmt: skip
        assert one.rejects == other.rejects
        assert [b.offset.tolist() for b in one.batches.values()] == [
            b.offset.tolist() for b in other.batches.values()
        ]
    while not (part := again.cut()).final:
        repeated.append(part)
    rest = [*repeated, part]
    total = sum(p.received for p in [*parts[:3], *rest])
    assert total == sum(map(len, FRAMES.values())) + 2
    assert [r.reason for p in rest for r in p.rejects] == ["not_json", "not_utf8"]
    again.journal.close()


def test_history_and_what_follows_share_no_row_and_lose_none(tmp_path: Path) -> None:
    paths = {name: write(tmp_path, name, frame, "jsonl") for name, frame in FRAMES.items()}
    until_us = int(FRAMES["payment"]["time_us"][40])
    until = "2026-03-02T00:00:00+00:00"[:11]
    until += f"00:{(until_us - START_US) // MINUTE_US:02d}:{until_us % MINUTE_US / 1e6:09.6f}Z"
    before, _ = all_of(FileReader(settings_of(paths, file_until=until)))
    after, _ = all_of(FileReader(settings_of(paths), from_us=until_us))
    also, _ = all_of(FileReader(settings_of(paths, file_from=until)))
    for name, frame in FRAMES.items():
        assert before[name].time_us.max() < until_us <= after[name].time_us.min()
        assert_frame_equal(pl.concat([before[name].frame, after[name].frame]), frame)
        assert_frame_equal(also[name].frame, after[name].frame)


def test_broken_lines_become_dead_letters_with_their_bytes(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    frame = FRAMES["payment"]
    zeros = np.zeros(len(frame), np.int64)
    batch = EventBatch("payment", frame, zeros.astype(np.int32), zeros, zeros)
    broken = break_some(rng, batch, 0.1, json_bodies, False)
    lines: list[tuple[bool, bytes]] = []
    after: dict[int, list[bytes]] = {}
    for _, row, message in broken:
        after.setdefault(row, []).append(message)
    for row, body in enumerate(json_bodies(frame)):
        lines.append((True, body))
        lines += [(False, message) for message in after.get(row, []) if message.strip()]
    path = tmp_path / "payment.jsonl"
    path.write_bytes(b"".join(line + b"\n" for _, line in lines))
    batches, takes = all_of(FileReader(settings_of({"payment": path})), rows_max=31)
    assert_frame_equal(batches["payment"].frame, frame)
    letters = {letter.offset: letter for letter in rejects_of(takes)}
    assert sorted(letters) == [i for i, (good, _) in enumerate(lines) if not good]
    assert len(letters) > 20
    for number, letter in letters.items():
        assert letter.raw == lines[number][1]
        assert (letter.topic, letter.partition, letter.schema_id) == (str(path), 0, None)
    assert {"time_past", "time_future", "not_finite", "too_long"} <= {
        letter.reason for letter in letters.values()
    }


def test_rows_of_columns_that_are_no_events_become_dead_letters(tmp_path: Path) -> None:
    rows = FRAMES["metric"].cast({"value": pl.String, "time_us": pl.String}).to_dicts()[:60]
    rows[3]["value"] = "much"
    rows[5]["value"] = "NaN"
    rows[7]["host"] = None
    rows[9]["time_us"] = "yesterday"
    rows[11]["time_us"] = str(int(rows[11]["time_us"]) - 365 * DAY_US)
    rows[13]["value"] = "1e300"
    path = tmp_path / "metric.csv"
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        for i, row in enumerate(rows):
            if i == 20:
                writer.writerow(["too", "few"])
            if i == 22:
                row["host"] = "h\udcff"
            writer.writerow(row.values())
    batches, takes = all_of(FileReader(settings_of({"metric": path})), rows_max=7)
    assert {(letter.offset, letter.reason) for letter in rejects_of(takes)} == {
        (3, "wrong_type"), (5, "not_finite"), (7, "missing_field"), (9, "wrong_type"),
        (11, "time_past"), (13, "out_of_range"), (20, "not_a_row"), (23, "not_utf8"),
    }  # fmt: skip
    raw = {letter.offset: letter.raw for letter in rejects_of(takes)}
    assert json.loads(raw[3])["value"] == "much"
    assert raw[20] == b"too,few"
    assert b"h\xff" in raw[23]
    assert len(batches["metric"]) == 61 - 8


def test_a_pause_of_weeks_is_no_wrong_clock(tmp_path: Path) -> None:
    frame = FRAMES["payment"][:60].with_columns(
        pl.col("time_us") + pl.int_range(pl.len()) // 17 * 30 * DAY_US
    )
    path = write(tmp_path, "payment", frame, "parquet")
    batches, takes = all_of(FileReader(settings_of({"payment": path})))
    assert rejects_of(takes) == []
    assert_frame_equal(batches["payment"].frame, frame)
    monthly = frame[:20].with_columns(
        time_us=pl.lit(START_US) + pl.int_range(pl.len()) * 30 * DAY_US
    )
    path = write(tmp_path, "payment", monthly, "parquet")
    batches, _ = all_of(FileReader(settings_of({"payment": path})))
    assert_frame_equal(batches["payment"].frame, monthly)


def test_the_shipped_mapping_reads_the_handbook(data_file: Callable[[str], Path]) -> None:
    path = data_file("fraud-handbook/transactions.parquet")
    settings = settings_of(
        {"payment": path}, file_mapping="fraud-handbook", file_until="2018-04-03T00:00:00Z"
    )
    batches, takes = all_of(FileReader(settings), rows_max=5_000)
    assert rejects_of(takes) == []
    theirs = pl.scan_parquet(path).filter(pl.col("datetime") < pl.datetime(2018, 4, 3)).collect()
    batch = batches["payment"]
    assert batch.truth is not None
    assert batch.truth.tolist() == theirs["scenario"].to_list()
    assert batch.frame["amount"].equals(theirs["amount"])
    assert batch.frame["time_us"].equals(theirs["datetime"].dt.epoch("us").alias("time_us"))
    assert batch.frame["card_id"][0] == f"customer-{theirs['customer_id'][0]}"
    assert mapping_event_type("fraud-handbook") == "payment"
    assert truth_names("fraud-handbook")[2] == "compromised_terminal"


MAPPING = """
event = "payment"
[fields]
event_id = { template = "{shop}/{no}" }
time_us = { column = "at", unit = "s" }
card_id = "card"
user_id = "card"
merchant_id = "shop"
amount = "sum"
currency = { constant = "CHF" }
declined = "refused"
[truth]
column = "bad"
"""


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_foreign_columns_are_read_through_a_mapping(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame(
        {
            "no": [1, 2, 3], "shop": ["a", "b", "é"], "at": [1.5e9, 1.5e9 + 0.25, 1.5e9 + 1],
            "card": ["007", "008", "9"], "sum": [1.5, 2.0, -1.0], "refused": [False, True, None],
            "bad": [0, 2, 0],
        }
    )  # fmt: skip
    (tmp_path / "mine.toml").write_text(MAPPING, encoding="utf-8")
    path = write(tmp_path, "orders", frame, suffix)
    settings = settings_of({"payment": path}, file_mapping=str(tmp_path / "mine.toml"))
    batches, takes = all_of(FileReader(settings))
    batch = batches["payment"]
    assert batch.frame.select(
        "event_id", "time_us", "card_id", "amount", "currency", "channel", "declined"
    ).rows() == [
        ("a/1", 1_500_000_000_000_000, "007", 1.5, "CHF", "other", False),
        ("b/2", 1_500_000_000_250_000, "008", 2.0, "CHF", "other", True),
    ]
    assert batch.truth is not None and batch.truth.tolist() == [0, 2]
    (letter,) = rejects_of(takes)
    assert letter.reason == "out_of_range" and b"-1.0" in letter.raw


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_label_that_nobody_explained_is_refused_with_its_row_until_the_mapping_explains_it(
    tmp_path: Path, suffix: str
) -> None:
    verdicts = ["ok", "Fraud", "", "Chargeback ", "no"]
    frame = pl.DataFrame(
        {
            "no": range(5), "shop": ["a"] * 5, "at": [1.5e9 + i for i in range(5)],
            "card": ["7"] * 5, "sum": [1.0] * 5, "refused": [False] * 5, "bad": verdicts,
        }
    )  # fmt: skip
    mapping = tmp_path / "mine.toml"
    mapping.write_text(MAPPING, encoding="utf-8")
    path = write(tmp_path, "orders", frame, suffix)
    settings = settings_of({"payment": path}, file_mapping=str(mapping))
    with pytest.raises(ConfigError) as caught:
        FileReader(settings)
    (fault,) = caught.value.faults
    for piece in (
        "orders", "column 'bad'", "in 2 rows", "row 0: 'ok'", "'Chargeback '", "fraudulent",
        "genuine", "[truth] words = {",
    ):  # fmt: skip
        assert piece in fault, (piece, fault)

    mapping.write_text(f"{MAPPING}words = {{ OK = 0, chargeback = 3 }}\n", encoding="utf-8")
    batches, takes = all_of(FileReader(settings))
    truth = batches["payment"].truth
    assert rejects_of(takes) == [] and truth is not None
    assert truth.tolist() == [0, 1, 0, 3, 0]


@pytest.mark.parametrize(
    ("labels", "words", "codes", "unknown"),
    [
        ([True, False, None], {}, [1, 0, 0], []),
        ([0.0, 1.0, float("nan"), 0.5], {}, [0, 1, 0, 0], [3]),
        ([1, -1, 70_000], {}, [1, 0, 0], [1, 2]),
        ([1, -1, 2], {"1": 0, "-1": 1}, [0, 1, 2], []),
        ([1.0, -1.0, None], {"1": 0, "-1": 1}, [0, 1, 0], []),
        (["1", "-1", "2.0", "x"], {"1": 0, "-1": 1}, [0, 1, 2, 0], [3]),
        (["normal", "Outlier"], {"normal": 4}, [4, 1], []),
        ([None, None], {}, [0, 0], []),
    ],
)  # fmt: skip
def test_a_label_is_a_known_word_or_a_code_and_nothing_else(
    labels: list[object], words: dict[str, int], codes: list[int], unknown: list[int]
) -> None:
    found, strange = codes_of(pl.Series(labels), TableMapping("payment", {}, truth_words=words))
    assert found.tolist() == codes
    assert [i for i, odd in enumerate(strange) if odd] == unknown


@pytest.mark.parametrize(
    ("text", "time_us"),
    [
        ("2018-04-01T00:00:31Z", 1_522_540_831_000_000),
        ("2018-04-01 00:00:31.5", 1_522_540_831_500_000),
        ("2018-04-01T02:00:31+02:00", 1_522_540_831_000_000),
        ("2018-04-01", 1_522_540_800_000_000),
        ("1522540831000000", 1_522_540_831_000_000),
    ],
)
def test_times_are_read_in_their_usual_forms(tmp_path: Path, text: str, time_us: int) -> None:
    frame = FRAMES["login"][:1].with_columns(time_us=pl.lit(text))
    path = write(tmp_path, "login", frame, "csv")
    batches, _ = all_of(FileReader(settings_of({"login": path})))
    assert batches["login"].time_us.tolist() == [time_us]


def test_times_with_a_zone_are_read_as_utc(tmp_path: Path) -> None:
    moment = pl.lit(START_US).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone("Asia/Tokyo")
    path = write(tmp_path, "login", FRAMES["login"][:3].with_columns(time_us=moment), "parquet")
    batches, _ = all_of(FileReader(settings_of({"login": path})))
    assert batches["login"].time_us.tolist() == [START_US] * 3


def test_all_that_is_wrong_with_files_is_said_at_once(tmp_path: Path) -> None:
    frame = FRAMES["payment"].rename({"card_id": "card_i"}).drop("amount")
    broken = tmp_path / "login.parquet"
    broken.write_bytes(b"PAR1 and no more")
    paths = {
        "payment": write(tmp_path, "payment", frame, "parquet"), "login": broken,
        "metric": tmp_path / "away.parquet", "app_log": tmp_path / "app_log.xlsx",
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        FileReader(settings_of(paths, file_mapping="fraud-hanbook"))
    said = "\n".join(caught.value.faults)
    for piece in (
        "did you mean 'fraud-handbook'", "no column 'card_id'", "did you mean 'card_i'",
        "no column 'amount'", "needs file_mapping", "is no .parquet file", "there is no such file",
        ".jsonl",
    ):  # fmt: skip
        assert piece in said, (piece, said)


def test_all_that_is_wrong_with_a_mapping_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(
        """
        event = "payment"
        fold = 1
        [fields]
        time_us = { constant = 5 }
        ammount = "x"
        amount = { template = "{a}" }
        card_id = { column = "c", constant = 1 }
        user_id = { colum = "c" }
        [truth]
        names = { zero = "x" }
        """,
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        load_mapping(str(path))
    said = "\n".join(caught.value.faults)
    for piece in (
        "'fold'", "a time must come from a column", "did you mean 'amount'",
        "a template gives text", "expected one of column", "did you mean 'column'",
        "'merchant_id' of payment is missing",
        "code 'zero'",
    ):  # fmt: skip
        assert piece in said, (piece, said)
    path.write_text("event = 'transfer'", encoding="utf-8")
    with pytest.raises(ConfigError, match="there are payment, login"):
        load_mapping(str(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("event = 'payment'\nfields = 3\ntruth = 'x'", ["fields: expected a table, got 3",
         "truth: expected a table, got 'x'"]),
        ("event = ['payment']\nfields = []", ["['payment'] is no event type", "fields: expected"]),
        ("event = 'payment'\n[fields]\ntime_us = { column = 't', unit = ['s'] }\namount = 3",
         ["time_us.unit: expected a text, got ['s']", "amount: expected a table, got 3"]),
        ("event = 'payment'\n[fields]\namount = { constant = 'x' }\ncard_id = { template = 1 }",
         ["amount.constant: expected float64", "card_id.template: expected a text"]),
        ("event = 'payment'\n[truth]\ncolumn = 3\nnames = 3",
         ["truth.column: expected the name", "truth, names: expected a table, got 3"]),
        ("event = 'payment'\n[truth]\nnames = { 1 = 2 }", ["names.1: expected a text, got 2"]),
        ("event = 'payment'\n[truth]\nwords = { a = -1, b = true, c = 0 }",
         ["words.a: expected 0 (genuine) or a code", "words.b: expected 0"]),
    ],
)  # fmt: skip
def test_a_mapping_of_another_shape_is_told_whole(
    tmp_path: Path, text: str, said: list[str]
) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_mapping(str(path))
    for piece in said:
        assert any(piece in fault for fault in caught.value.faults), (piece, caught.value.faults)


@pytest.mark.parametrize(("unit", "factor"), [("s", 1e-6), ("ms", 1e-3)])
def test_times_in_another_unit_than_said_are_refused_with_the_right_one(
    tmp_path: Path, unit: str, factor: float
) -> None:
    frame = FRAMES["login"].with_columns(ts=(pl.col("time_us") * factor).cast(pl.Int64))
    path = write(tmp_path, "login", frame.drop("time_us"), "csv")
    fields = "\n".join(
        f'{name} = "{name}"' for name in frame.columns if name[:2] not in ("ti", "ts")
    )
    mapping = tmp_path / "m.toml"
    mapping.write_text(f'event = "login"\n[fields]\ntime_us = "ts"\n{fields}', encoding="utf-8")
    settings = settings_of({"login": path}, file_mapping=str(mapping))
    with pytest.raises(ConfigError, match=f'in the year 19[67].*unit = "{unit}"'):
        FileReader(settings)
    text = mapping.read_text(encoding="utf-8")
    text = text.replace('"ts"', f'{{ column = "ts", unit = "{unit}" }}')
    mapping.write_text(text, encoding="utf-8")
    batches, _ = all_of(FileReader(settings))
    assert len(batches["login"]) == len(frame)


def test_a_mapping_of_keys_that_no_line_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "payment.jsonl"
    path.write_text('not json\n{"transaction_id": 1, "date_time": "2018-04-01"}\n')
    with pytest.raises(ConfigError, match=r"no column 'datetime'.*did you mean 'date_time'"):
        FileReader(settings_of({"payment": path}, file_mapping="fraud-handbook"))


def test_a_mapping_for_an_event_type_without_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "login", FRAMES["login"], "parquet")
    with pytest.raises(ConfigError, match="is for payment events"):
        FileReader(settings_of({"login": path}, file_mapping="fraud-handbook"))


def test_a_file_that_has_become_shorter_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, "login", FRAMES["login"], "jsonl")
    positions = FileReader(settings_of({"login": path})).take(200).positions
    write(tmp_path, "login", FRAMES["login"][:100], "jsonl")
    with pytest.raises(SourceError, match="put the file back"):
        FileReader(settings_of({"login": path})).retake({}, positions, 0, {})


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_file_without_rows_is_at_its_end(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, "login", FRAMES["login"][:0], suffix)
    batches, takes = all_of(FileReader(settings_of({"login": path})))
    assert batches == {} and len(takes) == 1


def test_a_file_of_nothing_but_rubbish_is_refused_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "login.jsonl"
    path.write_bytes(b"\n".join([b"\xff\xfe", b"[]", b"{}", b"{", b"x" * 1_000_000]) + b"\n")
    batches, takes = all_of(FileReader(settings_of({"login": path})))
    assert batches == {}
    assert [(r.offset, r.reason) for r in rejects_of(takes)] == [
        (0, "not_utf8"), (1, "not_json"), (2, "missing_field"), (3, "not_json"), (4, "not_json"),
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_column_of_rounds_cuts_as_a_former_run_did(tmp_path: Path, suffix: str) -> None:
    paths, numbered = {}, {}
    for name, frame in FRAMES.items():
        # Late rows: every seventh came three rounds after those of its time.
        place = np.arange(len(frame))
        rounds = place * 20 // len(frame) + 1 + 3 * (place % 7 == 0)
        numbered[name] = frame.with_columns(pl.Series("cut", rounds)).sort(
            "cut", maintain_order=True
        )
        paths[name] = write(tmp_path, name, numbered[name], suffix)
    reader = FileReader(settings_of(paths, file_round_column="cut"))
    clock = 0
    for cut in range(1, 24):
        taken = reader.take(3)
        for name, frame in numbered.items():
            wanted = frame.filter(pl.col("cut") == cut).drop("cut")
            got = taken.batches[name].frame if name in taken.batches else wanted.clear()
            assert_frame_equal(got.sort("event_id"), wanted.sort("event_id"))
        assert taken.cut_time_us >= clock, "late rows never turn the clock back"
        clock = taken.cut_time_us
        assert taken.eof == (cut == 23)


def test_a_row_from_tomorrow_does_not_move_the_clock_of_a_file_with_rounds(tmp_path: Path) -> None:
    frame = FRAMES["login"].sort("time_us")
    times = frame["time_us"].to_list()
    ahead = len(frame) // 2
    wrong = [t + 86_400_000_000 * (i == ahead) for i, t in enumerate(times)]
    rounds = [i // 4 for i in range(len(frame))]
    numbered = frame.with_columns(pl.Series("time_us", wrong), pl.Series("cut", rounds))
    path = write(tmp_path, "login", numbered, "parquet")
    reader = FileReader(settings_of({"login": path}, file_round_column="cut"))
    taken = [reader.take(1) for _ in range(max(rounds) + 1)]
    for i, one in enumerate(taken):
        credible = [t for t, w in zip(times[: 4 * i + 4], wrong, strict=False) if t == w]
        assert one.cut_time_us == max(credible)
    assert taken[-1].eof and sum(t.received for t in taken) == len(frame)


def test_a_column_of_rounds_that_is_none_is_refused(tmp_path: Path) -> None:
    paths = {n: write(tmp_path, n, f, "parquet") for n, f in FRAMES.items() if n != "metric"}
    with pytest.raises(ConfigError) as caught:
        FileReader(settings_of(paths, file_round_column="cut"))
    assert len(caught.value.faults) == 3 and "no such column" in caught.value.faults[0]
    with pytest.raises(ConfigError, match="row 0 has none"):
        FileReader(settings_of(paths, file_round_column="event_id"))
