"""Silences of the simulator: who says nothing, what is true of absences, how they are judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from features.batch import EventBatch
from features.simulate import IN_MIX, SILENCES, Simulator
from models.absences import SilenceTally
from tests.streams import make_batch

MONDAY_US = 1_772_409_600_000_000
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
WORLD: dict[str, Any] = {"seed": 11, "cards": 500, "events_per_s": 2.0, "anomaly_share": 0.01}
TYPES = ("metric", "app_log")


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(**WORLD, event_types=TYPES)


@pytest.fixture(scope="module")
def hushed(simulator: Simulator) -> pl.DataFrame:
    """Silences that lie within the day."""
    found = simulator.silences(MONDAY_US, MONDAY_US + DAY_US)
    return found.filter(
        (pl.col("start_us") >= MONDAY_US) & (pl.col("end_us") <= MONDAY_US + DAY_US)
    )


def test_who_is_silenced_says_nothing_and_the_others_go_on(
    simulator: Simulator, hushed: pl.DataFrame
) -> None:
    day = simulator.span(MONDAY_US, MONDAY_US + DAY_US)
    assert set(hushed["attack"]) == set(SILENCES)
    frames = {
        "host": [day["metric"].frame["time_us", "host"], day["app_log"].frame["time_us", "host"]],
        "series": [day["metric"].frame.select("time_us", pl.concat_str("host", "metric",
                                                                       separator="|"))],
        "service": [day["app_log"].frame["time_us", "service"]],
    }  # fmt: skip
    for row in hushed.iter_rows(named=True):
        for frame in frames[row["entity_type"]]:
            name = frame.columns[1]
            during = frame.filter(pl.col("time_us").is_between(row["start_us"], row["end_us"] - 1))
            assert row["entity"] not in set(during[name])
            assert row["entity"] in set(frame[name])
        if row["end_us"] - row["start_us"] > 20 * 60_000_000:
            assert len(during) > 0


def test_silences_take_nothing_of_the_share_of_other_attacks(simulator: Simulator) -> None:
    plain = Simulator(**WORLD, event_types=TYPES, attacks=IN_MIX)
    same = ["time_us", "event_type", "attack", "campaign", "strength"]
    span = (MONDAY_US, MONDAY_US + DAY_US)
    without, with_them = (s.labels(*span).select(same) for s in (plain, simulator))
    # A host that is silenced has no attacks in the meantime; nothing else differs.
    assert with_them.join(without, on=same, how="anti").is_empty()
    assert len(with_them) > 0.9 * len(without)


def test_two_silences_of_a_kind_are_hours_apart(simulator: Simulator) -> None:
    found = simulator.silences(MONDAY_US, MONDAY_US + 4 * DAY_US)
    for _, rows in found.group_by("attack"):
        starts = np.unique(rows["start_us"].to_numpy())
        assert len(starts) > 8 and np.diff(starts).min() > HOUR_US


def absences(rows: list[tuple[str, str, int, int]]) -> EventBatch:
    """Absences of (entity type, name, since, due)."""
    fields = ("entity_type", "entity", "since_us", "time_us")
    given = [dict(zip(fields, row, strict=True)) for row in rows]
    return make_batch("absence", given)


def test_an_absence_is_true_where_half_of_it_was_a_silence(
    simulator: Simulator, hushed: pl.DataFrame
) -> None:
    row = hushed.filter(pl.col("attack") == "host_silence").row(0, named=True)
    begin, end, who = row["start_us"], row["end_us"], (row["entity_type"], row["entity"])
    length = end - begin
    batch = absences(
        [
            (*who, begin - length // 4, begin + length // 2),
            (*who, begin - length, begin + length // 2),
            (*who, end, end + length),
            ("host", "nobody", begin, end),
        ]
    )
    truth = dict(zip(batch.frame["since_us"], simulator.absence_truth(batch), strict=True))
    assert truth[begin - length // 4] == SILENCES["host_silence"]
    assert truth[begin - length] == truth[end] == truth[begin] == 0


def test_recall_and_delay_of_silences_are_those_counted_by_hand() -> None:
    hour = HOUR_US
    silences = pl.DataFrame(
        [
            ("host_silence", "a", 0.9, "host", "h1", 10 * hour, 12 * hour),
            ("host_silence", "a", 0.9, "series", "h1|cpu", 10 * hour, 12 * hour),
            ("host_silence", "b", 0.9, "host", "h2", 15 * hour, 16 * hour),
            ("host_silence", "c", 0.9, "host", "h3", 23 * hour, 25 * hour),
        ],
        schema=["attack", "campaign", "strength", "entity_type", "entity", "start_us", "end_us"],
        orient="row",
    )
    batch = absences(
        [
            ("host", "h1", 10 * hour, 10 * hour + hour // 2),
            ("host", "h1", 10 * hour, 11 * hour),
            ("series", "h1|cpu", 10 * hour, 11 * hour + hour // 2),
            ("host", "h9", 3 * hour, 4 * hour),
            ("host", "h8", 3 * hour, 5 * hour),
        ]
    )
    code = SILENCES["host_silence"]
    truth = np.where(batch.frame["entity"].str.starts_with("h1").to_numpy(), code, 0)
    flagged = batch.frame["time_us"].is_in([11 * hour, 5 * hour]).to_numpy()
    tally = SilenceTally()
    tally.add(batch.frame, truth.astype(np.int16), flagged)
    report = tally.report(silences, 0, 24 * hour)
    assert report["absences"] == 5 and report["alerts"] == 2
    assert (report["genuine"], report["false_alarms"], report["false_alarms_a_day"]) == (2, 1, 1.0)
    assert report["by_attack"] == {
        "host_silence": {
            "campaigns": 2,
            "recall": 0.5,
            "delay_s_p50": 3_600.0,
            "delay_s_max": 3_600.0,
            "entities": 3,
            "entity_noticed": 2 / 3,
            "entity_recall": 1 / 3,
        }
    }
