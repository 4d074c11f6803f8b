"""Amounts in one currency: rates of the day against a slow twin and DuckDB, faults, versions."""

from __future__ import annotations

import pickle
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dataflows.currencies as currencies
from dataflows.admission import Admission
from dataflows.currencies import RateBook, priced_lines, rate_faults, rates_log, read_rates
from dataflows.settings import Settings
from features.batch import EventBatch, concat_batches
from features.catalog import catalog
from features.columns import Columns
from features.currency import DAYS_MAX, RATES_SCHEMA, Rates
from features.engine import OfflineEngine
from features.errors import ConfigError, StateError
from features.keys import hash_strings
from features.simulate import Simulator
from features.simulate.exchange import rate_rows
from tests.streams import make_batch

DAY_US = 86_400_000_000
MONDAY = date(2026, 3, 2)
MONDAY_US = (MONDAY - date(1970, 1, 1)).days * DAY_US


def table(*rows: tuple[date, str, float], base: str = "EUR") -> Rates:
    return Rates(base, pl.DataFrame(list(rows), schema=RATES_SCHEMA, orient="row"))


def payments(*rows: tuple[str, float, float]) -> EventBatch:
    """Payments of one card: currency, amount, days after Monday."""
    return make_batch(
        "payment",
        [
            {"event_id": f"e{i}", "time_us": MONDAY_US + round(at * DAY_US), "card_id": "c",
             "user_id": "u", "merchant_id": "m", "amount": amount, "currency": code}
            for i, (code, amount, at) in enumerate(rows)
        ],
    )  # fmt: skip


def naive_rate(rows: list[tuple[date, str, float]], base: str, code: str, day: date) -> float:
    """The last rate on or before a day, else the first one there is."""
    if code == base:
        return 1.0
    mine = sorted(row for row in rows if row[1] == code)
    if not mine:
        return float("nan")
    before = [rate for on, _, rate in mine if on <= day]
    return before[-1] if before else mine[0][2]


DAYS = st.integers(-3, 12)
RATES = st.dictionaries(
    st.tuples(DAYS, st.sampled_from(["USD", "JPY", "GBP"])), st.floats(1e-4, 1e3), min_size=1
)


@given(said=RATES, asked=st.lists(st.tuples(st.sampled_from(["EUR", "USD", "JPY", "XYZ"]), DAYS)))
def test_the_rate_of_an_event_is_that_of_its_day_or_of_the_last_one_known(
    said: dict[tuple[int, str], float], asked: list[tuple[str, int]]
) -> None:
    rows = [(MONDAY + timedelta(days=day), code, rate) for (day, code), rate in said.items()]
    batch = payments(*((code, 1.0, day + 0.5) for code, day in asked))
    got = table(*rows).price(batch)
    codes, times = batch.frame["currency"].to_list(), batch.time_us.tolist()
    days = [MONDAY + timedelta(days=(t - MONDAY_US) // DAY_US) for t in times]
    wanted = [naive_rate(rows, "EUR", c, d) for c, d in zip(codes, days, strict=True)]
    if batch.frame.height:
        assert got.batch.rate is not None
        assert np.array_equal(got.batch.rate, wanted, equal_nan=True)
    old: dict[str, int] = {}
    for code, day in zip(codes, days, strict=True):
        mine = [on for on, name, _ in rows if name == code]
        if mine and not min(mine) <= day <= max(mine):
            old[code] = old.get(code, 0) + 1
    unknown = [c for c, rate in zip(codes, wanted, strict=True) if rate != rate]
    assert got.old == old
    assert got.unpriced == {name: unknown.count(name) for name in set(unknown)}


def test_a_day_of_local_money_is_worth_what_duckdb_says_it_is() -> None:
    end_us = MONDAY_US + 3 * DAY_US
    made: Any = {"seed": 3, "cards": 500, "events_per_s": 0.2, "event_types": ["payment"]}
    local = Simulator(**made, local_money=True).span(MONDAY_US, end_us)["payment"]
    rows = [r for r in rate_rows(MONDAY_US, end_us) if (r[0], r[1]) != (MONDAY, "USD")][:-30]
    rates = pl.DataFrame(rows, schema=RATES_SCHEMA, orient="row")
    priced = Rates("EUR", rates).price(local).batch
    with duckdb.connect() as db:
        db.register("paid", local.frame.with_row_index("row").to_arrow())
        db.register("rates", rates.to_arrow())
        answer = db.execute(
            "WITH p AS (SELECT *, CAST(epoch_ms(time_us // 1000) AS DATE) AS d FROM paid),"
            " first AS (SELECT currency, min(day) AS day FROM rates GROUP BY 1),"
            " f AS (SELECT rates.* FROM rates JOIN first USING (currency, day))"
            " SELECT amount * CASE WHEN p.currency = 'EUR' THEN 1.0"
            " ELSE coalesce(r.rate, f.rate) END AS worth FROM p"
            " ASOF LEFT JOIN rates r ON p.currency = r.currency AND p.d >= r.day"
            " LEFT JOIN f ON p.currency = f.currency ORDER BY row"
        ).fetchnumpy()["worth"]
    assert len(local.frame["currency"].unique()) > 15
    assert np.array_equal(Columns(priced).real("amount"), answer)


def test_local_money_is_the_same_world_in_other_coins() -> None:
    made: Any = {"seed": 3, "cards": 500, "events_per_s": 1.0, "event_types": ["payment"]}
    plain, local = (
        Simulator(**made, local_money=told).span(MONDAY_US, MONDAY_US + DAY_US)["payment"]
        for told in (False, True)
    )
    money = ["amount", "currency"]
    assert plain.frame.drop(money).equals(local.frame.drop(money))
    rows = pl.DataFrame(rate_rows(MONDAY_US, MONDAY_US + DAY_US), schema=RATES_SCHEMA, orient="row")
    back = Columns(Rates("EUR", rows).price(local).batch).real("amount")
    assert np.abs(back - plain.frame["amount"].to_numpy()).max() < 0.02
    most, most_plain = (float(one.frame["amount"].to_numpy().max()) for one in (local, plain))
    assert most > 100 * most_plain


def test_without_rates_amounts_are_bit_for_bit_what_was_paid() -> None:
    batch = payments(("JPY", 0.1 + 0.2, 0.0), ("EUR", 60.0, 0.1))
    columns = Columns(batch)
    assert columns.real("amount").tolist() == [0.1 + 0.2, 60.0]
    assert columns.flag("round").tolist() == [False, True]
    euros = table((MONDAY, "JPY", 0.5)).price(payments(("EUR", 0.1 + 0.2, 0.0))).batch
    assert Columns(euros).real("amount").tolist() == [0.1 + 0.2]


def test_round_sums_are_round_in_the_currency_they_were_paid_in() -> None:
    rates = table((MONDAY, "JPY", 0.0061), (MONDAY, "USD", 0.9), (MONDAY, "KWD", 2.9))
    batch = payments(
        ("JPY", 10_000.0, 0.1), ("JPY", 12_340.0, 0.2), ("JPY", 3_000.0, 0.3),
        ("USD", 60.0, 0.4), ("USD", 65.0, 0.5), ("EUR", 50.0, 0.6), ("KWD", 20.0, 0.7),
        ("XYZ", 50.0, 0.8),
    )  # fmt: skip
    found = Columns(rates.price(batch).batch).flag("round")
    assert found.tolist() == [True, False, False, True, False, True, True, False]


def test_rates_stay_with_their_rows() -> None:
    rates = table((MONDAY, "JPY", 0.5), (MONDAY, "USD", 2.0))
    batch = rates.price(payments(("JPY", 1.0, 0.1), ("USD", 1.0, 0.2), ("EUR", 1.0, 0.3))).batch
    assert Columns(batch.take(np.array([2, 0]))).real("amount").tolist() == [1.0, 0.5]
    assert Columns(pickle.loads(pickle.dumps(batch))).real("amount").tolist() == [0.5, 2.0, 1.0]
    both = concat_batches([batch.take(np.array([1, 2])), batch.take(np.array([0]))])
    assert Columns(both).real("amount").tolist() == [0.5, 2.0, 1.0]


def test_a_payment_in_an_unknown_currency_counts_but_enters_no_sum() -> None:
    rates = table((MONDAY, "USD", 0.5))
    rows = (("USD", 8.0, 0.1), ("XYZ", 1e6, 0.101), ("EUR", 3.0, 0.102))
    known = tuple(row for row in rows if row[0] != "XYZ")
    one, other = (
        OfflineEngine(catalog(), 2).process({"payment": rates.price(payments(*some)).batch})
        for some in (rows, known)
    )
    got, plain = one["payment"], other["payment"]
    assert np.isnan(got.column("log_amount")[1])
    assert got.column("card_count_1h").tolist() == [1.0, 2.0, 3.0]
    for name in ("card_amount_sum_1h", "card_amount_max_1h", "card_amount_mean_1h",
                 "card_amount_median", "merchant_amount_std_1h"):  # fmt: skip
        assert np.array_equal(got.column(name)[[0, 2]], plain.column(name), equal_nan=True), name


def test_the_door_gives_what_goes_on_its_rates_and_counts_it(tmp_path: Path) -> None:
    door = Admission(Settings(state_dir=tmp_path))
    batch = payments(("USD", 1.0, 0.5), ("XYZ", 1.0, 0.5), ("USD", 1.0, 2.5))
    ids = {"payment": hash_strings(batch.frame["event_id"])}
    cut = MONDAY_US + 3 * DAY_US
    done = door.admit({"payment": batch}, ids, cut, 1, table((MONDAY, "USD", 0.5)))
    rate = done.batches["payment"].rate
    assert rate is not None and np.array_equal(rate, [0.5, np.nan, 0.5], equal_nan=True)
    assert (done.unpriced, done.old_rate) == ({"XYZ": 1}, {"USD": 1})
    again = door.admit({"payment": batch}, ids, cut, 2, table((MONDAY, "USD", 0.5)))
    assert (again.duplicates, again.unpriced, again.old_rate) == (3, {}, {})


def test_a_currency_is_told_so_that_no_terminal_obeys_it() -> None:
    for text in priced_lines({"\x1bc": 2, "XYZ": 1}, {"\x1b[2J": 1}):
        assert text.isprintable() and "\\x1b" in text


# -- the file -------------------------------------------------------------------------------------


def test_all_faults_of_a_table_are_told_at_once_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(
        "currency,day,rate\nUSD,2026-03-02,0.9\n\nUSX,2026-03-02,0.9\nUSD,2026-03-02,0.8\n"
        "USD,02.03.2026,0.9\nJPY,2026-03-02,-1\nGBP,2026-03-02,nan\nEUR,2026-03-02,1.1\n"
        "CHF,2026-03-02\nSEK,soon,0\n",
        encoding="utf-8",
    )
    settings = Settings(currency_rates=path)
    faults = rate_faults(settings)
    assert [fault.replace(f"currency_rates: {tmp_path}/", "") for fault in faults] == [
        "rates.csv:4: currency 'USX': no code of ISO 4217, such as USD",
        f"rates.csv:5: USD on 2026-03-02 is said twice, first at {path}:2; keep one",
        "rates.csv:6: day '02.03.2026': expected a date such as 2026-03-02",
        "rates.csv:7: rate '-1': expected a number above 0, the worth of one unit in EUR",
        "rates.csv:8: rate 'nan': expected a number above 0, the worth of one unit in EUR",
        "rates.csv:9: rate '1.1' of EUR: the base currency is worth 1 of itself",
        "rates.csv:10: expected 3 cells (day, currency, rate), got 2",
        "rates.csv:11: day 'soon': expected a date such as 2026-03-02; rate '0': expected a number"
        " above 0, the worth of one unit in EUR",
    ]


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("rates.csv", "day,currency\n", "rates.csv:1: has no column rate; expected day, currency"),
        ("rates.csv", "", "has no column day, currency, rate"),
        ("rates.csv", "day,currency,rate\n", "has no rows"),
        ("rates.tsv", "", "expected a name that ends in .csv or .parquet"),
        ("rates.parquet", "no parquet", "cannot be read"),
        ("rates.csv", "day,currency,rate\n1026-03-02,USD,1\n2026-03-02,USD,1\n", "may span 36525"),
        ("rates.csv", "day,currency,rate\n" + "2026-03-02,QQQ,1\n" * 60, "and 10 more faults"),
    ],
)
def test_a_file_that_is_no_table_is_refused(
    tmp_path: Path, name: str, text: str, fault: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert any(fault in one for one in rate_faults(Settings(currency_rates=tmp_path / name)))


def test_a_missing_file_is_told_like_the_other_faults(tmp_path: Path) -> None:
    (fault,) = rate_faults(Settings(currency_rates=tmp_path / "none.csv"))
    assert "none.csv' does not exist" in fault
    assert DAYS_MAX > 36_000 and rate_faults(Settings()) == []


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    rows = pl.DataFrame(
        rate_rows(MONDAY_US, MONDAY_US + 9 * DAY_US), schema=RATES_SCHEMA, orient="row"
    )
    rows.write_csv(tmp_path / "a.csv")
    rows.write_parquet(tmp_path / "a.parquet")
    rows.with_columns(pl.col("day").cast(pl.Datetime)).write_parquet(tmp_path / "b.parquet")
    names = ("a.csv", "a.parquet", "b.parquet")
    assert len({read_rates(tmp_path / name, "EUR").digest() for name in names}) == 1
    assert read_rates(tmp_path / "a.csv", "EUR").rows.equals(rows.sort("day", "currency"))


# -- versions -------------------------------------------------------------------------------------


class Shelf:
    """A file of rates, a state folder and what was said."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(currencies, "LOOK_S", 0.0)
        self.path, self.said = folder / "rates.csv", list[str]()
        self.settings = Settings(currency_rates=self.path, state_dir=folder / "state")

    def write(self, *rows: str) -> None:
        text = "day,currency,rate\n" + "\n".join(rows) + "\n"
        self.path.write_text(text, encoding="utf-8")

    def open(self, **more: Any) -> RateBook:
        return RateBook(self.settings.model_copy(update=more), self.said.append)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    return Shelf(tmp_path, monkeypatch)


def usd(book: RateBook, version: int, day: float = 0.0) -> float:
    """What a dollar is worth in a version."""
    rates = book.of(version)
    assert rates is not None
    rate = rates.price(payments(("USD", 1.0, day))).batch.rate
    assert rate is not None
    return float(rate[0])


def test_a_table_that_grows_makes_a_version_and_the_older_ones_stay(shelf: Shelf) -> None:
    shelf.write("2026-03-02,USD,0.9")
    book = shelf.open()
    assert (book.current(), usd(book, 1, 1.5)) == (1, 0.9)
    shelf.write("2026-03-02,USD,0.9", "2026-03-03,USD,0.8")
    assert book.current() == book.current() == 2
    assert (usd(book, 1, 1.5), usd(book, 2, 1.5)) == (0.9, 0.8)
    other = shelf.open()
    assert (other.current(), usd(other, 1, 1.5), usd(other, 2, 1.5)) == (2, 0.9, 0.8)
    shelf.write("2026-03-03,USD,0.8")
    assert other.current() == 2 and usd(other, 2) == 0.9, "a day left out keeps its rate"
    assert shelf.said == []
    assert other.of(0) is None


def test_a_changed_past_is_told_and_holds_from_now_on_alone(shelf: Shelf) -> None:
    shelf.write(*(f"2026-03-{day:02d},USD,0.9" for day in range(2, 10)))
    shelf.open()
    shelf.write(*(f"2026-03-{day:02d},USD,0.7" for day in range(2, 10)))
    book = shelf.open()
    assert (book.current(), usd(book, 1), usd(book, 2)) == (2, 0.9, 0.7)
    (said,) = shelf.said
    assert "USD on 2026-03-02 0.9 -> 0.7" in said and "and 3 more" in said


def test_a_file_that_breaks_while_it_runs_leaves_the_rates_as_they_were(shelf: Shelf) -> None:
    shelf.write("2026-03-02,USD,0.9")
    book = shelf.open()
    shelf.write("2026-03-02,USD,0.9", "2026-03-03,USD,0")
    assert book.current() == book.current() == 1
    shelf.path.unlink()
    assert book.current() == 1 and usd(book, 1) == 0.9
    assert len(shelf.said) == 2 and "rates.csv:3: rate '0'" in shelf.said[0]
    shelf.write("2026-03-02,USD,0.9", "2026-03-03,USD,0.8")
    assert book.current() == 2


def test_damaged_versions_and_another_base_are_refused(shelf: Shelf) -> None:
    shelf.write("2026-03-02,JPY,0.9")
    book = shelf.open()
    with pytest.raises(StateError, match="has no version 7"):
        book.of(7)
    with pytest.raises(StateError, match="rates to EUR, currency_base is USD"):
        shelf.open(currency_base="USD")
    log = rates_log(shelf.settings.state_dir)
    log.write_bytes(log.read_bytes().replace(b"0.9", b"0.8"))
    with pytest.raises(StateError, match="damaged"):
        shelf.open()
    lock = log.with_suffix(".lock")
    lock.unlink()
    lock.mkdir()
    with pytest.raises(StateError, match="could not be written: Is a directory; free space"):
        shelf.open()


def test_a_table_too_long_is_refused(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(currencies, "ROWS_MAX", 2)
    shelf.write(*(f"2026-03-{day:02d},USD,0.9" for day in range(2, 5)))
    with pytest.raises(ConfigError, match="more than 2 rows"):
        read_rates(shelf.path, "EUR")
    assert not rates_log(shelf.settings.state_dir).exists()
