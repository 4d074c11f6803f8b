"""A candidate bundle beside the live one on events that have been: what one reads before promoting.

The journal of a flow is replayed with the candidate as a shadow in every round, so that it sees the
very features of then; or files are run through the engine. Counted are the events that would be
alerts: those that come, those that go, and the known frauds won and lost with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from dataflows.arrivals import Arrivals
from dataflows.certify import last_us, stretch_between
from dataflows.comparison import EXAMPLES_MAX, Compared, Comparison, verdicts_of
from dataflows.context import Replaying
from dataflows.elsewhere import Remotes
from dataflows.evaluation import load_warm
from dataflows.history import run_history
from dataflows.known import Met, labels_of
from dataflows.replay import as_run, base_before, replay, replay_context, segments_in
from dataflows.score import RoundOut
from dataflows.settings import Settings
from dataflows.shelf import Shelf, load_scorer, with_own_detectors
from dataflows.sources.files import FileReader
from dataflows.sources.rounds import journal_folder
from dataflows.state.bases import base_states
from dataflows.state.journal import read_cuts
from dataflows.training import warm_folder
from features.batch import EventBatch, FeatureMatrix
from features.catalog import catalog
from features.engine import warm_up
from features.errors import ConfigError, StateError
from features.labels import label_of
from models.bundle import Bundle
from models.scoring import Scorer
from models.voting import Voting

__all__ = ["compare_files", "compare_journal"]


def compare_journal(
    state_dir: Path,
    config: str | None,
    given: dict[str, Any],
    candidate: Path,
    days: float | None = None,
    from_us: int | None = None,
    until_us: int | None = None,
    workers: int = 1,
    examples_max: int = EXAMPLES_MAX,
) -> dict[str, Any]:
    """The candidate beside what was live, over rounds of a flow; plain data (docs/json.md).

    Parameters
    ----------
    state_dir : of the flow; may be live, nothing in it is touched
    config, given : see `dataflows.replay.as_run`
    candidate : folder of the bundle
    days : the last so many, of cut time, as far as they are kept; in place of the two
    from_us, until_us : cut times of the first round and of the one after the last

    Raises
    ------
    WaxwingError : the rounds cannot be replayed, or the bundle not be used, with the cure
    """
    begun = time.monotonic()
    if days is not None:
        from_us = _since(state_dir, days)
    stretch = stretch_between(state_dir, from_us, until_us)
    header, first, last = stretch.segment.header, stretch.first.round, stretch.last.round
    settings = as_run(stretch.segment, state_dir, config, given)
    base = base_before(state_dir, first, int(header["lanes"]))
    context = replay_context(settings, base, Replaying(first, last), header)
    beside = load_scorer(candidate, context.catalog, context.scorer)
    context.shelf = Shelf(
        state_dir, context.catalog, context.scorer, settings.bundle, beside=beside
    )
    found = Comparison(context.catalog, _labels_of(state_dir), examples_max)
    rounds, live = 0, dict[str, None]()

    def look(_round: int, outs: list[RoundOut]) -> bool:
        nonlocal rounds
        rounds += 1
        for out in outs:
            for seen in out.seen:
                ours, theirs = seen.opinions
                live.setdefault(ours.seat.bundle)
                found.add(
                    Compared.of(seen.batch),
                    seen.features,
                    (ours.seat.scorer.bundle, ours.decisions),
                    (theirs.seat.scorer.bundle, theirs.decisions),
                )
        return True

    replay(context, look, workers)
    if rounds < last - first + 1:
        raise StateError(f"the replay ended after {rounds} of {last - first + 1} rounds: a bug")
    return {
        "candidate": beside.bundle.id,
        "live": list(live),
        "from_us": stretch.first.cut_time_us,
        "until_us": stretch.last.cut_time_us,
        "rounds": rounds,
        **found.report(),
        "seconds": round(time.monotonic() - begun, 3),
    }


def _since(state_dir: Path, days: float) -> int | None:
    """Cut time from which the last days are; None where less is kept: then all of it."""
    segments, bases = segments_in(state_dir), base_states(state_dir)
    since_us = last_us(state_dir, segments[-1]) - round(days * 86_400e6)
    reaches = bool(bases) and bases[0].cut_time_us < since_us
    return since_us if reaches and segments[0].header["cut_time_us"] <= since_us else None


def _labels_of(state_dir: Path) -> dict[int, bool]:
    """What the labels in the journal say, of which the last counts."""
    found: dict[int, bool] = {}
    for cut in read_cuts(journal_folder(state_dir, 0)):
        for record in cut.control:
            if record["kind"] == "label":
                label = label_of(record)
                found[label.event] = label.fraud
    return found


@dataclass(slots=True)
class _Both:
    """Takes in events with their features and has both bundles look at them."""

    live: Scorer
    candidate: Scorer
    found: Comparison
    met: Met | None = None

    def add(self, batch: EventBatch, features: FeatureMatrix) -> None:
        """One batch."""
        if self.met is not None:
            self.met.see(batch.event_type, batch.frame["event_id"])
        made = []
        for scorer in (self.live, self.candidate):
            decisions = scorer.decide(scorer.score(features, {}), {})
            made.append((scorer.bundle, decisions))
        self.found.add(Compared.of(batch), features, made[0], made[1])


def compare_files(
    settings: Settings,
    candidate: Path,
    frauds: pl.DataFrame | None,
    say: Callable[[str], None] = lambda _: None,
    examples_max: int = EXAMPLES_MAX,
) -> dict[str, Any]:
    """The candidate beside the bundle of the settings, over files; plain data (docs/json.md).

    Parameters
    ----------
    settings : `file_paths`, `file_mapping`, `bundle`, `detectors`, `voting`, `warm_state`,
        `remote_*`
    frauds : known ones (`dataflows.known`), beside what the mapping's labels say

    Raises
    ------
    WaxwingError : with the cure
    """
    begun = time.monotonic()
    cat = catalog()
    voting = None if settings.voting is None else Voting.load(settings.voting)
    remotes = Remotes(settings, patient=True)
    bundle = remotes.placed(Bundle.load(settings.bundle, cat))
    settings = with_own_detectors(settings, bundle)
    live = Scorer(bundle, settings.detectors, voting)
    beside = load_scorer(candidate, cat, live, remotes.beside)
    live.warm_up()
    warm_up(cat)
    warm = settings.warm_state or warm_folder(settings)
    begin = load_warm(warm, settings, cat)
    reader = FileReader(settings)
    starts_us = reader.starts_us
    if begin is not None and starts_us is not None and begin.until_us > starts_us:
        reader.close()
        raise ConfigError(
            f"warm state {warm} ends after the files begin, and may hold them; give later files,"
            " `--set file_from=TIME`, or start cold (`--set warm_state=cold`)"
        )
    say(f"files from {reader.span}, {'cold' if begin is None else f'warm state of {warm}'}")
    named: dict[int, bool] = {}
    if frauds is not None:
        for event in cat.event_types:
            mine = labels_of(frauds, event)["event_id"].to_list()
            named |= verdicts_of(event, dict.fromkeys(mine, True))
    found = Comparison(cat, named, examples_max)
    arrivals = Arrivals(cat, round(settings.label_delay_s * 1e6))
    met = None if frauds is None or frauds.is_empty() else Met(frauds)
    both = _Both(live, beside, found, met)
    try:
        run_history(settings, cat, reader, both, begin=begin, arrivals=arrivals)
    finally:
        reader.close()
        remotes.close()
    if met is not None:
        say(met.told())
    return {
        "candidate": beside.bundle.id,
        "live": [live.bundle.id],
        **found.report(),
        "seconds": round(time.monotonic() - begun, 3),
    }
