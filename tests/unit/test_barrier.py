"""Barriers and the steps between them: whatever order items come in, whenever the process dies."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflows.commit import Commit
from dataflows.context import Context
from dataflows.currencies import RateBook
from dataflows.observe.telemetry import Telemetry
from dataflows.score import RoundOut
from dataflows.settings import Settings, load
from dataflows.sources.rounds import Part
from dataflows.state.manifest import Manifest, read_manifest, write_manifest
from dataflows.steps import Admit, Barrier, Durable, Featured, Group, Home, ToGroup, ToHome
from features.batch import EventBatch
from features.catalog import catalog
from features.keys import hash_strings
from models.scoring import Scorer
from tests.streams import START_US, cut, stream

LANES, GROUPS, SNAPSHOT_ROUNDS = 2, 3, 3


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int, bool]]]:
    """Lanes, the round before the first, and (lane, round, final) in an order lanes allow."""
    lanes, after = draw(st.integers(1, 4)), draw(st.sampled_from([0, 7]))
    ends = [draw(st.integers(1, 6)) for _ in range(lanes)]
    order = draw(st.permutations([lane for lane in range(lanes) for _ in range(ends[lane])]))
    at = dict.fromkeys(range(lanes), 0)
    items = []
    for lane in order:
        at[lane] += 1
        items.append((lane, after + at[lane], at[lane] == ends[lane]))
    return lanes, after, items


@given(case=arrivals())
def test_rounds_come_out_whole_and_in_order_whatever_order_items_came_in(
    case: tuple[int, int, list[tuple[int, int, bool]]],
) -> None:
    lanes, after, items = case
    barrier: Barrier[tuple[int, int]] = Barrier(lanes, after)
    got = []
    for lane, round_, final in items:
        barrier.add(lane, round_, (lane, round_), final)
        got += list(barrier.ready())
    newest = max(r for _, r, _ in items)
    assert [r for r, _, _ in got] == list(range(after + 1, newest + 1))
    assert [last for _, _, last in got] == [False] * (len(got) - 1) + [True]
    for round_, mine, _ in got:
        wanted = sorted(lane for lane, r, _ in items if r == round_)
        assert list(mine) == wanted
        assert list(mine.values()) == [(lane, round_) for lane in wanted]
    assert list(barrier.ready()) == []


def test_a_round_waits_for_a_lane_that_has_not_ended() -> None:
    barrier: Barrier[str] = Barrier(2, 0)
    barrier.add(0, 1, "a", True)
    assert list(barrier.ready()) == []
    barrier.add(1, 1, "b", False)
    barrier.add(1, 2, "c", False)
    assert list(barrier.ready()) == [
        (1, {0: "a", 1: "b"}, False),
        (2, {1: "c"}, False),
    ]


def make_context(state_dir: Path, **more: Any) -> Context:
    """What the steps before the scores need; they use no scorer and no store."""
    options = {"groups": GROUPS, "snapshot_rounds": SNAPSHOT_ROUNDS, "deltas_max": 2, **more}
    options["retention_h"] = options["rows_share"] = 0  # a certificate and rows need a scorer
    chosen: Settings = load(None, state_dir=state_dir, store="off", alerts=["jsonl"], **options)
    manifest = read_manifest(state_dir)
    if manifest is None:
        manifest = Manifest(0, GROUPS, LANES, catalog().version)
        write_manifest(state_dir, manifest)
    scorer, rates = cast(Scorer, None), RateBook(chosen)
    return Context(chosen, catalog(), scorer, manifest, Telemetry(), None, rates)


class Flow:
    """The steps and the channels between them; items of one channel keep their order, no others.

    `pick` chooses which channel moves next, as the workers of a cluster would, each at its pace.
    """

    def __init__(self, context: Context, parts: list[list[Part]], pick: random.Random) -> None:
        self.pick = pick
        self.admits = [Admit(context) for _ in range(LANES)]
        self.groups = [Group(context, LANES) for _ in range(GROUPS)]
        self.homes = [Home(context) for _ in range(LANES)]
        self.commit = Commit(context, LANES)
        self.writing = context.writing
        self.done: dict[tuple[int, int], Featured] = {}
        self.channels: dict[tuple[str, str], deque[Any]] = {}
        start = context.manifest.round
        for lane, mine in enumerate(parts):
            for part in mine:
                if part.round > start:
                    self.send("source", f"admit{lane}", part)

    def send(self, sender: str, receiver: str, item: Any) -> None:
        self.channels.setdefault((sender, receiver), deque()).append(item)

    def step(self) -> bool:
        """Move some items of one channel; False where nothing is left."""
        full = sorted(k for k, v in self.channels.items() if v)
        if not full:
            return False
        key = self.pick.choice(full)
        queue = self.channels[key]
        items = [queue.popleft() for _ in range(self.pick.randint(1, min(3, len(queue))))]
        name, number = key[1].rstrip("0123456789"), key[1].lstrip("abcdefghijklmnopqrstuvwxyz")
        if name == "commit":
            self.commit.write_batch(items)
            return True
        steps: dict[str, list[Any]] = {
            "admit": self.admits,
            "group": self.groups,
            "home": self.homes,
        }
        out, discard = steps[name][int(number)].on_batch(items)
        assert not discard
        for item in out:
            self.route(key[1], item)
        return True

    def route(self, sender: str, item: Any) -> None:
        if isinstance(item, ToGroup):
            self.send(sender, f"group{item.group}", item)
        elif isinstance(item, ToHome):
            self.send(sender, f"home{item.lane}", item)
        elif isinstance(item, Durable):
            self.send(sender, "commit", item)
        else:
            self.done[item.round, item.lane] = item
            self.send(sender, "commit", round_out(item))

    def run(self, moves: int = 1_000_000, close: bool = True) -> None:
        while moves and self.step():
            moves -= 1
        if moves:
            self.end()
        # A process that dies takes its writing thread along; what is on its way may still land.
        self.writing.shutdown(wait=True, cancel_futures=True)
        if close:
            self.commit.close()

    def end(self) -> None:
        """The sources have ended: the steps tell what they still held, as Bytewax asks them."""
        steps = {f"admit{i}": s for i, s in enumerate(self.admits)}
        steps |= {f"group{i}": s for i, s in enumerate(self.groups)}
        for name, step in steps.items():
            out, discard = step.on_eof()
            assert not discard
            for item in out:
                self.route(name, item)
        while self.step():
            pass


def round_out(item: Featured) -> RoundOut:
    """A round on which no detector has an opinion."""
    return RoundOut(
        item.lane,
        item.round,
        item.cut_time_us,
        item.received,
        item.duplicates,
        item.rejects,
        {name: len(batch) for name, batch in item.batches.items() if name != "absence"},
        (),
        0,
        0,
        np.zeros(0, np.int64),
        (),
        item.control,
        item.final,
        item.replayed,
    )


def make_parts(ends: tuple[int, ...] = (10, 7)) -> list[list[Part]]:
    """Rounds of each lane; every event comes twice, lane 0 has control records, 1 ends early."""
    hour_us = 3_600_000_000
    lanes: list[list[Part]] = []
    for lane, end in enumerate(ends):
        edges = [START_US + (i + 1) * 3 * hour_us // end for i in range(end - 1)]
        stretches = cut(stream(11 + lane, 60), edges)
        mine = []
        for round_, batches in enumerate(stretches, 1):
            twice: dict[str, EventBatch] = {}
            for name, batch in batches.items():
                twice[name] = batch.take(np.repeat(np.arange(len(batch)), 2))
            ids = {n: hash_strings(b.frame["event_id"] + f"/{lane}") for n, b in twice.items()}
            control = ()
            if lane == 0 and round_ in (2, 5):
                until_us = START_US + round_ * hour_us // 2 + 1
                control = (
                    {"kind": "stage", "detector": f"d{round_}", "stage": "off"},
                    {"kind": "mute", "entity_type": "card", "entity": "c", "until_us": until_us},
                )
            mine.append(
                Part(
                    lane,
                    round_,
                    START_US + round_ * 3 * hour_us // end,
                    twice,
                    ids,
                    control,
                    sum(len(b) for b in twice.values()),
                    (),
                    round_ == end,
                )
            )
        lanes.append(mine)
    return lanes


@pytest.fixture(scope="module")
def parts() -> list[list[Part]]:
    return make_parts()


def values_of(item: Featured) -> dict[str, Any]:
    """All that a score may depend on, bit for bit."""
    return {
        "control": item.control,
        "cut_time_us": item.cut_time_us,
        "counts": (item.received, item.duplicates, len(item.rejects)),
        "ids": {n: b.frame["event_id"].to_list() for n, b in item.batches.items()},
        "features": {n: m.values.tobytes() for n, m in item.features.items()},
        "sequence": {
            n: None if m.sequence is None else m.sequence.tobytes()
            for n, m in item.features.items()
        },
    }


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[Part]]
) -> tuple[dict[tuple[int, int], dict[str, Any]], Manifest]:
    """Features of each lane's rounds, and the last manifest, of a run in the plainest order."""
    folder = tmp_path_factory.mktemp("undisturbed")
    flow = Flow(make_context(folder), parts, random.Random(0))
    flow.run()
    manifest = read_manifest(folder)
    assert manifest is not None
    return {k: values_of(v) for k, v in flow.done.items()}, manifest


def test_the_last_round_is_durable_and_every_event_accounted_for(
    undisturbed: tuple[dict[tuple[int, int], dict[str, Any]], Manifest],
    parts: list[list[Part]],
) -> None:
    done, manifest = undisturbed
    assert len(done) == 17
    assert manifest.round == 10
    received = sum(p.received for mine in parts for p in mine)
    totals = manifest.totals
    assert totals["in"] == received == totals["scored"] + totals["duplicates"]
    assert totals["duplicates"] == received // 2
    assert {r["detector"] for r in manifest.control if r["kind"] == "stage"} == {"d2", "d5"}


FEW = settings(max_examples=8, suppress_health_check=list(HealthCheck))


@FEW
@given(pick=st.integers(0, 1 << 30))
def test_any_interleaving_gives_the_same_features_and_manifest(
    tmp_path_factory: pytest.TempPathFactory,
    undisturbed: tuple[dict[tuple[int, int], dict[str, Any]], Manifest],
    parts: list[list[Part]],
    pick: int,
) -> None:
    folder = tmp_path_factory.mktemp("flow")
    flow = Flow(make_context(folder), parts, random.Random(pick))
    flow.run()
    assert {k: values_of(v) for k, v in flow.done.items()} == undisturbed[0]
    assert read_manifest(folder) == undisturbed[1]


@FEW
@given(pick=st.integers(0, 1 << 30), deaths=st.lists(st.integers(1, 250), max_size=3))
def test_a_flow_killed_anywhere_gives_the_same_features_and_counts(
    tmp_path_factory: pytest.TempPathFactory,
    undisturbed: tuple[dict[tuple[int, int], dict[str, Any]], Manifest],
    parts: list[list[Part]],
    pick: int,
    deaths: list[int],
) -> None:
    folder = tmp_path_factory.mktemp("flow")
    done: dict[tuple[int, int], dict[str, Any]] = {}
    for moves in [*deaths, 1_000_000]:
        flow = Flow(make_context(folder), parts, random.Random(pick))
        flow.run(moves)
        for key, item in flow.done.items():
            assert values_of(item) == undisturbed[0][key], key
            done[key] = values_of(item)
    assert done == undisturbed[0]
    assert read_manifest(folder) == undisturbed[1], "totals are exact, replayed rounds count once"


def test_no_manifest_names_a_round_that_a_shard_has_not_written(
    tmp_path: Path, parts: list[list[Part]]
) -> None:
    """The slowest shard decides, and a shard nobody knows does not stand in for it."""
    flow = Flow(make_context(tmp_path), parts, random.Random(3))
    held: list[Durable] = []
    write = flow.commit.write_batch

    def hold(items: list[Any]) -> None:
        held.extend(i for i in items if isinstance(i, Durable) and i.shard == "g001")
        others = [i for i in items if not (isinstance(i, Durable) and i.shard == "g001")]
        write([*others, Durable("g999", 3, False)])

    flow.commit.write_batch = hold  # type: ignore[method-assign]
    flow.run(close=False)
    found = read_manifest(tmp_path)
    assert found is not None
    assert found.round == 0
    assert [d.round for d in held] == [3, 6, 9, 10]
    for durable in held:
        write([durable])
        found = read_manifest(tmp_path)
        assert found is not None
        assert found.round == durable.round
    flow.commit.close()
