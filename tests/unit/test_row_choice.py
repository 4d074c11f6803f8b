"""Which rows are kept: the same ones however they come, and together they stand for all."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from dataflows.opinions import Opinion
from dataflows.row_choice import RowChoice, event_keys, sampled
from features.batch import EventBatch, FeatureMatrix
from features.catalog import catalog
from features.events import event_code
from features.keys import hash_columns, hash_strings
from features.labels import Label, label_of
from features.sequence import STEPS, WIDTH
from models.base import Decisions, ScoreMatrix
from tests.streams import START_US, make_batch

HOUR_US = 3_600_000_000
KEEP_US = 168 * HOUR_US
NAMES = catalog().names("payment")


def payments(rng: np.random.Generator, n: int, cards: int) -> EventBatch:
    """Payments in time order, each of some card."""
    return make_batch(
        "payment",
        [
            {"event_id": f"p{i}", "time_us": START_US + i, "card_id": f"c{rng.integers(cards)}"}
            for i in range(n)
        ],
    )


def judged(batch: EventBatch, flagged: np.ndarray) -> Any:
    """A batch with features that tell its rows apart, and the live bundle's votes on it."""
    n = len(batch)
    values = np.tile(batch.time_us.astype(np.float64)[:, None], (1, len(NAMES)))
    sequence = np.full((n, STEPS, WIDTH), np.float32(123) / np.float32(32767), np.float32)
    features = FeatureMatrix("payment", NAMES, values, sequence, catalog().version)
    score = np.zeros((n, 1))
    votes = Decisions("payment", ("payment_fraud",), (), score, flagged[:, None],
                      np.zeros((n, 1, 0), np.bool_), np.ones((1, 0)))  # fmt: skip
    scores = ScoreMatrix("payment", (), np.zeros((n, 0)), np.zeros((n, 0)))
    live = Opinion(cast(Any, None), scores, votes, {}, np.ones(n, np.bool_))
    return batch, features, (live,)


def choice(folder: Path, share: float = 0.1, round_: int = 0, keep_us: int = KEEP_US) -> RowChoice:
    return RowChoice(folder, share, keep_us, round_)


def kept(
    chosen: RowChoice,
    batch: EventBatch,
    flagged: np.ndarray,
    edges: list[int],
    labels: dict[int, list[Label]] | None = None,
    first_round: int = 1,
) -> list[tuple[str, float]]:
    """(event id, weight) of what is kept of a batch that comes in rounds."""
    found = []
    bounds = [0, *edges, len(batch)]
    for r, (begin, end) in enumerate(pairwise(bounds), first_round):
        rows = np.arange(begin, end)
        part = judged(batch.take(rows), flagged[rows])
        for one in chosen.choose(0, r, START_US + r, [part], (labels or {}).get(r, [])).rows:
            found += list(zip(one.event_id, one.weight.tolist(), strict=True))
    return found


def test_a_larger_share_keeps_who_was_in_the_sample() -> None:
    keys = hash_strings(make_batch("payment", [{"card_id": f"c{i}"} for i in range(20_000)])
                        .frame["card_id"])  # fmt: skip
    small, large = sampled(keys, 0.01), sampled(keys, 0.2)
    assert not (small & ~large).any()
    assert 150 < small.sum() < 260 and 3_800 < large.sum() < 4_200
    assert sampled(keys, 1.0).all() and not sampled(keys, 0.0).any()


def test_an_entity_is_kept_whole_from_its_first_flagged_row_on(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    batch, n = payments(rng, 3_000, 1_000), 3_000
    flagged = rng.random(n) < 0.01
    found = dict(kept(choice(tmp_path), batch, flagged, [500, 1_700]))
    keys = hash_columns(batch.frame, ("card_id",))
    sample, whole = sampled(keys, 0.1), set()
    for row, (name, key) in enumerate(
        zip(batch.frame["event_id"].to_list(), keys.tolist(), strict=True)
    ):
        if flagged[row]:
            whole.add(key)
        expected = 1.0 if key in whole else 10.0 if sample[row] else None
        assert found.get(name) == (None if expected is None else pytest.approx(expected)), row
    assert abs(sum(found.values()) / n - 1.0) < 0.3, "what is kept stands for all"


def test_rounds_and_restarts_change_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    batch = payments(rng, 2_000, 150)
    flagged = rng.random(2_000) < 0.01
    whole = kept(choice(tmp_path / "a"), batch, flagged, [])
    cuts = sorted(rng.integers(0, 2_000, 20).tolist())
    assert kept(choice(tmp_path / "b"), batch, flagged, cuts) == whole
    first = choice(tmp_path / "c")
    follower = choice(tmp_path / "c")  # as the commit step, told by the lanes
    begin = batch.take(np.arange(1_000))
    made = first.choose(0, 1, START_US + 1, [judged(begin, flagged[:1_000])], [])
    follower.take(0, made.whole, START_US + 1)
    follower.save(1)
    follower.take(0, [(event_code("payment"), 5)], START_US + 2)
    follower.save(2)
    again = choice(tmp_path / "c", round_=1)
    rest = batch.take(np.arange(1_000, 2_000))
    ids = set(rest.frame["event_id"].to_list())
    resumed = kept(again, rest, flagged[1_000:], [], first_round=2)
    assert resumed == [one for one in whole if one[0] in ids]
    again.forget(after=1, before=1)
    assert [p.name for p in (tmp_path / "c").iterdir()] == [f"{1:020d}.whole"]


def test_a_called_fraud_makes_its_entity_whole(tmp_path: Path, rng: np.random.Generator) -> None:
    batch, none = payments(rng, 1_000, 100), np.zeros(1_000, np.bool_)
    sample = sampled(hash_columns(batch.frame, ("card_id",)), 0.1)
    cards = batch.frame["card_id"].to_list()
    fraud, genuine = [c for c, in_it in zip(cards, sample, strict=True) if not in_it][:2]
    said = {"event_type": "payment", "event_id": "long ago"}
    labels = [
        label_of(said | {"verdict": verdict, "entities": {"card": card}})
        for verdict, card in (("fraud", fraud), ("genuine", genuine))
    ]
    found = Counter(
        cards[int(name[1:])] for name, _ in kept(choice(tmp_path), batch, none, [400], {2: labels})
    )
    assert found[fraud] == cards[400:].count(fraud) > 0, "from the round of the label on"
    assert found[genuine] == 0


def test_an_entity_is_sampled_again_after_its_time(tmp_path: Path) -> None:
    rows = [{"event_id": f"p{i}", "time_us": START_US, "card_id": "c1"} for i in range(3)]
    batch = make_batch("payment", rows)
    assert not sampled(hash_columns(batch.frame, ("card_id",)), 0.1).any(), "or it says nothing"
    chosen = choice(tmp_path, keep_us=HOUR_US)
    flags = np.array([True, False, False])
    for flagged, at_us, expected in ((flags, 0, 3), (~flags & flags, HOUR_US, 3),
                                     (~flags & flags, HOUR_US + 1, 0)):  # fmt: skip
        made = chosen.choose(0, 1, START_US + at_us, [judged(batch, flagged)], [])
        assert sum(map(len, made.rows)) == expected
        assert made.events == {"payment": 3}


def test_what_is_kept_of_a_row_is_all_that_a_model_reads(tmp_path: Path) -> None:
    batch = make_batch("payment", [{"event_id": f"p{i}", "time_us": START_US + i, "card_id": "é"}
                                   for i in range(4)])  # fmt: skip
    part = judged(batch, np.array([False, False, True, False]))
    (rows,) = choice(tmp_path, share=0.0001).choose(3, 9, START_US, [part], []).rows
    assert rows.event_id == ["p2", "p3"] and rows.entity == ["é", "é"]
    assert rows.row.tolist() == [2, 3] and set(rows.lane) == {3} and set(rows.round) == {9}
    assert rows.values.tolist() == part[1].values[2:].tolist()
    assert rows.sequence is not None
    assert (rows.sequence.astype(np.float32) / np.float32(32767) == part[1].sequence[2:]).all()
    assert rows.flagged.tolist() == [[True], [False]] and rows.truth.tolist() == [-1, -1]


def test_an_event_without_an_entity_stands_alone(tmp_path: Path) -> None:
    batch = make_batch("payment", [{"event_id": f"p{i}", "time_us": START_US + i, "card_id": ""}
                                   for i in range(2_000)])  # fmt: skip
    (rows,) = (
        choice(tmp_path).choose(0, 1, START_US, [judged(batch, np.zeros(2_000, bool))], []).rows
    )
    assert 130 < len(rows) < 270 and set(rows.weight) == {10.0}
    said = label_of({"event_type": "payment", "event_id": "p7", "verdict": "fraud"}).event
    assert said == event_keys("payment", batch.frame["event_id"]).view(np.int64)[7]
