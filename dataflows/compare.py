"""A candidate bundle beside the live one on events that have been: what one reads before promoting.

The journal of a flow is replayed with the candidate as a shadow in every round, so that it sees the
very features of then; or files are run through the engine. Counted are the events that would be
alerts: those that come, those that go, and the known frauds won and lost with them.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataflows.arrivals import Arrivals
from dataflows.certify import last_us, stretch_between
from dataflows.context import Replaying
from dataflows.elsewhere import Remotes
from dataflows.evaluation import load_warm
from dataflows.history import run_history
from dataflows.replay import as_run, base_before, replay, replay_context, segments_in
from dataflows.score import RoundOut
from dataflows.settings import Settings
from dataflows.shelf import Shelf, load_scorer
from dataflows.sources.files import FileReader
from dataflows.sources.rounds import journal_folder
from dataflows.state.bases import base_states
from dataflows.state.journal import read_cuts
from dataflows.training import warm_folder
from features.batch import EventBatch, FeatureMatrix
from features.catalog import Catalog, catalog
from features.engine import warm_up
from features.errors import ConfigError, StateError
from features.events import event_type
from models.base import Decisions
from models.bundle import Bundle
from models.decisions.reasons import reasons
from models.scoring import Scorer
from models.voting import Voting

__all__ = ["Verdicts", "compare_files", "compare_journal"]

EXAMPLES_MAX = 5
"""Examples of an anomaly type and direction where nothing is said. Chosen: what a person reads."""

Flags = npt.NDArray[np.bool_]
Verdicts = Mapping[tuple[str, str], bool]
"""(event type, event id) -> whether somebody said that it is a fraud."""


@dataclass(slots=True)
class _Counts:
    """Events of one anomaly type."""

    live: int = 0
    candidate: int = 0
    both: int = 0
    new: int = 0
    gone: int = 0
    frauds: int = 0
    won: int = 0
    lost: int = 0
    missed: int = 0
    new_genuine: int = 0
    gone_genuine: int = 0


_FRAUDS = ("frauds", "won", "lost", "missed")
"""Counts of known frauds: in all by event, whichever rules flag it."""


@dataclass(slots=True)
class Comparison:
    """See the module.

    Parameters
    ----------
    catalog : what the features are
    verdicts : what labels say of events
    examples_max : of each anomaly type and direction
    """

    catalog: Catalog
    verdicts: Verdicts
    examples_max: int = EXAMPLES_MAX
    events: int = 0
    kinds: dict[str, _Counts] = field(default_factory=dict)
    _frauds: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_FRAUDS, 0))
    _examples: dict[tuple[str, str], list[tuple[float, str, int, dict[str, Any]]]] = field(
        default_factory=dict
    )
    _taken: Iterator[int] = field(default_factory=itertools.count)

    def add(
        self,
        batch: EventBatch,
        features: FeatureMatrix,
        live: tuple[Scorer, Decisions],
        candidate: tuple[Scorer, Decisions],
    ) -> None:
        """Take in what both make of a batch."""
        self.events += len(batch)
        fraud, known = self._truth(batch)
        kinds = dict.fromkeys((*live[1].anomaly_types, *candidate[1].anomaly_types))
        was, is_now = (np.asarray(made.flagged.any(axis=1)) for _, made in (live, candidate))
        for name, rows in zip(_FRAUDS, _frauds(fraud, was, is_now), strict=True):
            self._frauds[name] += int(np.count_nonzero(rows))
        for kind in kinds:
            then, now = (_column(made, kind, made.flagged) for _, made in (live, candidate))
            counts = self.kinds.setdefault(kind, _Counts())
            new, gone = now & ~then, then & ~now
            for name, rows in (
                ("live", then), ("candidate", now), ("both", then & now), ("new", new),
                ("gone", gone), ("new_genuine", new & known & ~fraud),
                ("gone_genuine", gone & known & ~fraud),
                *zip(_FRAUDS, _frauds(fraud, then, now), strict=True),
            ):  # fmt: skip
                setattr(counts, name, getattr(counts, name) + int(np.count_nonzero(rows)))
            for way, rows, (scorer, made) in (("new", new, candidate), ("gone", gone, live)):
                score = _column(made, kind, made.score)
                for row in np.flatnonzero(rows).tolist():
                    said = "fraud" if fraud[row] else "genuine" if known[row] else "unknown"
                    told = {"change": way, "anomaly_type": kind, "verdict": said}
                    self._example(told, float(score[row]), batch, features, row, scorer)

    def _truth(self, batch: EventBatch) -> tuple[Flags, Flags]:
        """bool (n,) each: known to be a fraud, and known at all."""
        n = len(batch)
        truth = np.zeros(n, np.int16) if batch.truth is None else batch.truth
        fraud, known = truth > 0, np.full(n, batch.truth is not None)
        if self.verdicts:
            for row, name in enumerate(batch.frame["event_id"].to_list()):
                said = self.verdicts.get((batch.event_type, name))
                if said is not None:
                    fraud[row], known[row] = said, True
        return fraud, known

    def _example(
        self,
        told: dict[str, Any],
        score: float,
        batch: EventBatch,
        features: FeatureMatrix,
        row: int,
        scorer: Scorer,
    ) -> None:
        """Keep a row where it is among the most certain ones; reasons are made for those alone."""
        kept = self._examples.setdefault((told["change"], told["anomaly_type"]), [])
        values = batch.frame.row(row, named=True)
        rank = (score, str(values["event_id"]))
        if len(kept) >= self.examples_max and (not kept or rank <= kept[0][:2]):
            return
        declared = event_type(batch.event_type)
        whose, columns = declared.primary, declared.entities[declared.primary]
        told |= {
            "event_type": batch.event_type,
            "event_id": values["event_id"],
            "time_us": int(values["time_us"]),
            "entity_type": whose,
            "entity": "|".join(str(values[c]) for c in columns),
            "score": score,
            "reasons": [one[1] for one in reasons(self.catalog, scorer.bundle, features, row)],
        }
        # An event may be sent again: then only the running number tells one from the other.
        heapq.heappush(kept, (*rank, next(self._taken), told))
        if len(kept) > self.examples_max:
            heapq.heappop(kept)

    def report(self) -> dict[str, Any]:
        """Counts by anomaly type and in all, and examples, the most certain first."""
        total = _Counts()
        for one in self.kinds.values():
            for name, count in asdict(one).items():
                setattr(total, name, getattr(total, name) + count)
        for name, count in self._frauds.items():
            setattr(total, name, count)
        ranked = [sorted(kept, reverse=True) for kept in self._examples.values()]
        return {
            "events": self.events,
            "total": asdict(total),
            "anomaly_types": {name: asdict(one) for name, one in sorted(self.kinds.items())},
            "examples": [told for kept in ranked for *_, told in kept],
        }


def _frauds(fraud: Flags, then: Flags, now: Flags) -> tuple[Flags, Flags, Flags, Flags]:
    """bool (n,) each, as in _FRAUDS."""
    return fraud, fraud & now & ~then, fraud & then & ~now, fraud & ~then & ~now


def _column(made: Decisions, kind: str, table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One anomaly type's column of votes or scores; zeros where a bundle has no such rule."""
    if kind not in made.anomaly_types:
        return np.zeros(len(table), table.dtype)
    return np.asarray(table[:, made.anomaly_types.index(kind)])


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
                    seen.batch,
                    seen.features,
                    (ours.seat.scorer, ours.decisions),
                    (theirs.seat.scorer, theirs.decisions),
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


def _labels_of(state_dir: Path) -> dict[tuple[str, str], bool]:
    """What the labels in the journal say, of which the last counts."""
    found: dict[tuple[str, str], bool] = {}
    for cut in read_cuts(journal_folder(state_dir, 0)):
        for record in cut.control:
            if record["kind"] == "label":
                whose = record["event_type"], record["event_id"]
                found[whose] = record["verdict"] == "fraud"
    return found


@dataclass(slots=True)
class _Both:
    """Takes in events with their features and has both bundles look at them."""

    live: Scorer
    candidate: Scorer
    found: Comparison

    def add(self, batch: EventBatch, features: FeatureMatrix) -> None:
        """One batch."""
        made = []
        for scorer in (self.live, self.candidate):
            made.append((scorer, scorer.decide(scorer.score(features, {}), {})))
        self.found.add(batch, features, made[0], made[1])


def compare_files(
    settings: Settings,
    candidate: Path,
    verdicts: Mapping[str, bool],
    say: Callable[[str], None] = lambda _: None,
    examples_max: int = EXAMPLES_MAX,
) -> dict[str, Any]:
    """The candidate beside the bundle of the settings, over files; plain data (docs/json.md).

    Parameters
    ----------
    settings : `file_paths`, `file_mapping`, `bundle`, `detectors`, `voting`, `warm_state`,
        `remote_*`
    verdicts : event id -> whether it is a fraud, beside what the mapping's labels say

    Raises
    ------
    WaxwingError : with the cure
    """
    begun = time.monotonic()
    cat = catalog()
    voting = None if settings.voting is None else Voting.load(settings.voting)
    remotes = Remotes(settings, patient=True)
    bundle = remotes.placed(Bundle.load(settings.bundle, cat))
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
    named = {(event, name): v for event in cat.event_types for name, v in verdicts.items()}
    found = Comparison(cat, named, examples_max)
    arrivals = Arrivals(cat, round(settings.label_delay_s * 1e6))
    try:
        run_history(
            settings, cat, reader, _Both(live, beside, found), begin=begin, arrivals=arrivals
        )
    finally:
        reader.close()
        remotes.close()
    return {
        "candidate": beside.bundle.id,
        "live": [live.bundle.id],
        **found.report(),
        "seconds": round(time.monotonic() - begun, 3),
    }
