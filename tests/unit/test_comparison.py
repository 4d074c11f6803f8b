"""Estimates from a sample of entities: their intervals hold what is true as often as they say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from dataflows.comparison import ENTITIES_MIN, Compared, Comparison, interval
from features.batch import FeatureMatrix
from features.catalog import catalog
from models.base import Decisions
from models.bundle import Bundle
from models.voting import Voting

TRIALS = 400

Counts = npt.NDArray[np.int64]


def drawn(
    counts: Counts, rows: Counts, share: float, rng: np.random.Generator
) -> tuple[float, float] | None:
    """The interval from one sample of entities with so many rows, so many of them counted."""
    kept = np.flatnonzero(rng.random(len(rows)) < share).tolist()
    counted = {(e, 1.0 / share): int(counts[e]) for e in kept if counts[e]}
    seen = {(e, 1.0 / share): int(rows[e]) for e in kept}
    return interval(counted, seen, int(rows.sum()), 1.0 / share)


def held(
    counts: Counts, rows: Counts, share: float, rng: np.random.Generator
) -> tuple[float, float]:
    """How often an interval is said, and how often it then holds the true number."""
    found = [drawn(counts, rows, share, rng) for _ in range(TRIALS)]
    said = [one for one in found if one is not None]
    right = [low <= counts.sum() <= high for low, high in said]
    return len(said) / TRIALS, float(np.mean(right)) if said else 1.0


@pytest.mark.parametrize(
    ("share", "entities", "most"), [(0.2, 40, 1), (0.05, 200, 4), (0.01, 60, 2)]
)
def test_an_interval_holds_the_true_number(
    share: float, entities: int, most: int, rng: np.random.Generator
) -> None:
    counts = np.zeros(round(100 / share), np.int64)
    counts[:entities] = rng.integers(1, most + 1, entities)
    said, right = held(counts, rng.integers(most, 2 * most + 2, len(counts)), share, rng)
    assert said >= 0.97 and right >= 0.92, "95 % of the time, as far as so many trials can tell"


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("name", ["few large ones among many small", "few, all of them large"])
def test_of_heavy_entities_a_number_is_right_or_not_said(
    name: str, share: float, rng: np.random.Generator
) -> None:
    rows = np.full(90, 500)
    if name == "few large ones among many small":
        rows = np.repeat([1, 1_000], [1_000, 20])
    said, right = held(rows, rows, share, rng)
    assert said * (1.0 - right) <= 0.06 and (right >= 0.85 or said < 0.02), (said, right)
    if share == 0.01:
        assert said == 0.0, "a dozen entities, or one, stand for all"
    if share == 0.3 and name == "few large ones among many small":
        assert said > 0.9, "enough of both kinds"


def test_a_sample_without_the_large_ones_says_nothing_of_what_they_may_hold() -> None:
    seen = {(e, 20.0): 1 for e in range(50)}
    assert interval(seen, seen, 21_000, 20.0) is None, "it makes up 1,000 of 21,000 rows"
    assert interval(seen, seen, 1_000, 20.0) is not None


def test_what_was_counted_is_the_least_there_can_be_and_the_width_falls_with_the_share() -> None:
    widths = []
    for share in (0.01, 0.1, 0.5):
        counted = {(e, 1.0 / share): 3 for e in range(10)}
        seen = {(e, 1.0 / share): 5 for e in range(100)}
        found = interval(counted, seen, round(500 / share), 1.0 / share)
        assert found is not None
        assert 30 <= found[0] < 30 / share < found[1] <= 500 / share
        widths.append((found[1] - found[0]) * share)
    assert widths == sorted(widths, reverse=True)


def test_nothing_counted_is_not_nothing_at_all() -> None:
    one = {(e, 100.0): 1 for e in range(ENTITIES_MIN)}
    many = dict.fromkeys(one, 20)
    few = interval({}, one, 100 * len(one), 100.0)
    assert few is not None and few[0] == 0.0
    assert 300.0 < few[1] < 400.0, "three entities of a hundredth may well be missed"
    more = interval({}, many, 2_000 * len(one), 100.0)
    assert more is not None and more[1] == pytest.approx(20 * few[1], rel=0.01), "with their rows"
    some = dict.fromkeys(list(one)[1:], 1)
    assert interval({}, some, 100 * len(some), 100.0) is None, "one entity too few"


def compared(entities: int, whole: int, events: int) -> Comparison:
    """One that flags all beside one that flags nothing; entities of a tenth have two rows each."""
    weight = np.repeat([10.0, 1.0], [2 * entities, whole])
    key = np.repeat(np.arange(entities + whole, dtype=np.uint64), [2] * entities + [1] * whole)
    ids, nothing = [str(i) for i in range(len(key))], np.zeros(len(key), np.int64)
    rows = Compared("login", ids, ids, nothing, np.full(len(key), -1, np.int16), weight, key, 10.0)
    cat = catalog()
    names = cat.names("login")
    features = FeatureMatrix("login", names, np.zeros((len(key), len(names))), None, cat.version)
    bundle = Bundle("b", cat.version, {}, Voting({}))
    both = [
        (
            bundle,
            Decisions(
                "login", ("odd_login",), (), np.full((len(key), 1), 0.5),
                np.full((len(key), 1), flags), np.zeros((len(key), 1, 0), np.bool_),
                np.ones((1, 0)),
            ),
        )
        for flags in (False, True)
    ]  # fmt: skip
    found = Comparison(cat, {}, examples_max=0)
    found.add(rows, features, both[0], both[1], events)
    return found


def test_counts_of_a_sample_that_says_nothing_are_none_with_the_least_beside_them() -> None:
    known = compared(40, 5, 805).report()
    one = known["anomaly_types"]["odd_login"]
    assert one["new"] == 805 and one["gone"] == 0
    low, high = one["intervals"]["new"]
    assert 85 <= low < 805 <= high <= 805, "no more than there are events"

    for entities, events in ((20, 405), (40, 20_000)):
        told = compared(entities, 5, events).report()
        for counts in (told["anomaly_types"]["odd_login"], told["total"]):
            assert counts["new"] is None and counts["candidate"] is None and counts["live"] == 0
            assert counts["intervals"]["new"] == [2 * entities + 5, None]


def test_of_all_nothing_is_known_where_of_one_anomaly_type_nothing_is() -> None:
    found = compared(40, 5, 805)
    found.none_kept(("other",), 7, 10.0)
    told = found.report()
    assert told["anomaly_types"]["odd_login"]["new"] == 805
    assert told["anomaly_types"]["other"]["new"] is None and told["total"]["new"] is None
    assert told["total"]["intervals"]["new"] == [85, None]


def test_rows_that_are_all_kept_are_counted_not_estimated() -> None:
    told = compared(0, 5, 5).report()
    assert told["total"]["new"] == 5 and told["total"]["intervals"] == {}
