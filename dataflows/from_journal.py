"""Training rows from the journal of a flow: what it computed, and what is known of it by now.

The journal is replayed from a base state, so that each row has the very features it was scored
with: a label is in none of them before the round in which it came. What labels said by a moment
(`--as-of`) is what is learned from. Where the certificate has the rounds, each is held against it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from dataflows.arrivals import due_us
from dataflows.certify import moment
from dataflows.context import Context, Replaying, lanes_of
from dataflows.digests import record_of
from dataflows.history import Collector
from dataflows.replay import as_run, base_before, replay, replay_context, segments_in
from dataflows.score import RoundOut
from dataflows.settings import Settings
from dataflows.sources.files import truth_names
from dataflows.sources.rounds import journal_folder
from dataflows.state.bases import BaseState, base_states
from dataflows.state.certificate import Record, Segment, digests_folder, read_records
from dataflows.state.journal import read_cuts
from dataflows.training import ROWS_WANTED, Trained, later_rows, learn, money_of
from features.batch import EventBatch
from features.catalog import Catalog
from features.errors import ConfigError, StateError
from features.simulate import ATTACKS, SILENCES
from models.base import TrainingSet
from models.bundle import check_place
from models.scoring import take_rows

__all__ = ["JournalRows", "journal_rows", "train_journal"]

Say = Callable[[str], None]
Verdicts = Mapping[str, Mapping[str, bool]]

_DAY_US = 86_400_000_000


@dataclass(slots=True)
class JournalRows:
    """Training rows of a journal.

    Parameters
    ----------
    sets : event type -> rows in time order
    settings : those the flow ran with, and what was given
    attacks : code in the sets -> what it means
    about : what the bundle says of where it comes from, JSON-able
    events : in the rounds that were replayed
    odd_per_genuine : event type -> known frauds on each event known to be genuine, of the time
        that is settled
    """

    sets: dict[str, TrainingSet]
    settings: Settings
    attacks: dict[int, str]
    about: dict[str, Any]
    events: int
    odd_per_genuine: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Targets:
    """What is known of events by a moment.

    Parameters
    ----------
    verdicts : event type -> event id -> whether it is a fraud, of labels that had come by then
    as_of_us : the moment
    delay_us : from an event to what its own data say of it
    settled_us : so long after it an event that nobody has called a fraud is taken for genuine
    labelled : code of a fraud of which only a label knows
    from_us : event time from which rows are learned from
    settled : event type -> genuine events and frauds of the time that is settled
    """

    verdicts: Verdicts
    as_of_us: int
    delay_us: int
    settled_us: int
    labelled: int
    from_us: int = 0
    settled: dict[str, tuple[int, int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def of(self, batch: EventBatch) -> tuple[EventBatch, np.ndarray[Any, np.dtype[np.intp]]]:
        """The rows of which something is known, truth in them, and which they are.

        Where nobody says anything of an event type all rows are taken, without truth.
        """
        name, times = batch.event_type, batch.time_us
        said = self._said(batch)
        if batch.truth is None and said is None:
            return batch, np.arange(len(batch))
        truth = np.full(len(batch), -1, np.int16)
        truth[times <= self.as_of_us - self.settled_us] = 0
        if batch.truth is not None:
            odd = batch.truth > 0
            due = np.array([due_us(t, self.delay_us) for t in times[odd].tolist()], np.int64)
            # What is not told yet is not known to be genuine either.
            truth[odd] = np.where(due <= self.as_of_us, batch.truth[odd], -1)
        if said is not None:
            truth[said == 0] = 0
            unnamed = (said == 1) & (truth <= 0)
            truth[unnamed] = self.labelled
        # Of younger events frauds alone are known: they would seem more frequent than they are.
        old = truth[(times >= self.from_us) & (times <= self.as_of_us - self.settled_us)]
        genuine, frauds = self.settled.get(name, (0, 0))
        genuine += int(np.count_nonzero(old == 0))
        self.settled[name] = genuine, frauds + int(np.count_nonzero(old > 0))
        rows = np.flatnonzero(truth >= 0)
        self.counts["fraud"] += int(np.count_nonzero(truth > 0))
        self.counts["genuine"] += int(np.count_nonzero(truth == 0))
        self.counts["unsettled"] += len(batch) - len(rows)
        self.counts[name] += len(rows)
        return replace(batch.take(rows), truth=truth[rows]), rows

    def odd_per_genuine(self) -> dict[str, float]:
        """Frauds on each genuine event, by event type; nothing of one of which none is settled."""
        return {name: odd / n for name, (n, odd) in self.settled.items() if n}

    def _said(self, batch: EventBatch) -> np.ndarray[Any, np.dtype[np.int8]] | None:
        """int8 (n,): 1 fraud, 0 genuine, -1 nothing; None where labels do not speak of the type."""
        verdicts = self.verdicts.get(batch.event_type)
        if verdicts is None:
            return None
        codes = {None: -1, True: 1, False: 0}
        ids = batch.frame["event_id"].to_list()
        return np.array([codes[verdicts.get(one)] for one in ids], np.int8)


@dataclass(slots=True)
class _Span:
    """Rounds to replay, and what their certificate says of them."""

    first: int
    last: int
    base: BaseState
    segment: Segment
    from_us: int
    as_of_us: int
    catalogs: list[str]


def journal_rows(
    state_dir: Path,
    config: str | None,
    given: dict[str, Any],
    say: Say = lambda _: None,
    *,
    from_us: int | None = None,
    as_of_us: int | None = None,
    settled_s: float | None = None,
    workers: int = 1,
) -> JournalRows:
    """Replay a flow's rounds for the features they had; nothing of the flow is touched.

    Parameters
    ----------
    state_dir : of the flow, which may be live
    config, given : see `dataflows.replay.as_run`
    from_us : event time from which rows are learned from; None: all, but for the first third where
        the flow began without a past
    as_of_us : cut time after which neither rounds nor labels are looked at; None: the newest
    settled_s : see `Targets.settled_us`; None: `label_delay_s` of the flow
    workers : see `dataflows.replay.replay`

    Raises
    ------
    WaxwingError : the rounds cannot be replayed, with the cure
    """
    span = _span(state_dir, from_us, as_of_us)
    settings = as_run(span.segment, state_dir, config, given)
    wanted = Replaying(span.first, span.last, scored=False, hashed=True)
    context = replay_context(settings, span.base, wanted, span.segment.header)
    _tell_catalog(span, context, say)
    attacks, labelled = _names(settings)
    delay_us = round(settings.label_delay_s * 1e6)
    settled_us = delay_us if settled_s is None else round(settled_s * 1e6)
    verdicts = _verdicts(state_dir, span.as_of_us)
    targets = Targets(verdicts, span.as_of_us, delay_us, settled_us, labelled, from_us or 0)
    looker = _Looker(context, span, targets, from_us or 0)
    say(
        f"rounds {span.first:,} to {span.last:,} of the journal, cut from {moment(span.from_us)} to"
        f" {moment(span.as_of_us)}; {sum(map(len, verdicts.values())):,} labels; replayed from"
        f" round {span.base.round}"
    )
    replay(context, looker.look, workers)
    if looker.rounds < span.last - span.first + 1:
        raise StateError(
            f"the replay ended after {looker.rounds} of {span.last - span.first + 1} rounds; this"
            " is a bug"
        )
    sets = looker.collector.sets()
    if from_us is None and span.base.round == 0 and not context.manifest.until_us:
        sets = {name: later_rows(one) for name, one in sets.items()}
    _check_settled(sets, targets, settled_us)
    looker.tell(say)
    about = {
        "first_round": span.first,
        "last_round": span.last,
        "from_us": span.from_us,
        "as_of_us": span.as_of_us,
        "base_round": span.base.round,
        "catalogs": span.catalogs,
        "labels": {name: targets.counts[name] for name in ("fraud", "genuine", "unsettled")},
        **looker.report(),
    }
    money = money_of(context.rates.of(looker.rates))
    odd = looker.collector.odd_per_genuine() | targets.odd_per_genuine()
    return JournalRows(sets, settings, attacks, {"journal": about} | money, looker.events, odd)


def train_journal(
    state_dir: Path,
    config: str | None,
    given: dict[str, Any],
    say: Say = lambda _: None,
    **how: Any,
) -> Trained:
    """Learn from a flow's journal and write a bundle.

    Parameters
    ----------
    state_dir, config, given, how : see `journal_rows`; `given` names the `bundle` to write

    Raises
    ------
    ConfigError : the bundle to write is the one the flow runs with
    BundleError : something that is no bundle stands in its place
    WaxwingError : the rounds cannot be replayed, or there is too little to learn from
    """
    begun = time.perf_counter()
    live = Path(segments_in(state_dir)[-1].header["settings"]["bundle"]).resolve()
    if "bundle" not in given or Path(given["bundle"]).resolve() == live:
        raise ConfigError(
            f"--from-journal: {live} is what the flow runs with; name a folder for the new models"
            " (`--set bundle=FOLDER`), then try them: `waxwing model stage FOLDER shadow`"
        )
    check_place(Path(given["bundle"]))
    rows = journal_rows(state_dir, config, given, say, **how)
    history_s = time.perf_counter() - begun
    odd = rows.odd_per_genuine
    told = (say, rows.about, None, odd)
    return learn(rows.settings, rows.sets, rows.attacks, rows.events, history_s, *told)


def _span(state_dir: Path, from_us: int | None, as_of_us: int | None) -> _Span:
    """The rounds that are wanted, and the base state to begin at.

    Raises
    ------
    StateError : none are kept there, or the flow had other groups or lanes meanwhile
    ConfigError : the times are in the wrong order
    """
    if from_us is not None and as_of_us is not None and from_us >= as_of_us:
        raise ConfigError("--from: must be before --as-of")
    segments = segments_in(state_dir)
    bases = base_states(state_dir)
    if not bases:
        raise StateError(f"state_dir {state_dir}: has no base state to replay from (retention_h)")
    first: Record | None = None
    last: tuple[Segment, Record] | None = None
    headers: dict[int, dict[str, Any]] = {}
    until_us = None if as_of_us is None else as_of_us + 1
    for segment, record in read_records(digests_folder(state_dir), from_us, until_us):
        if record.round > bases[0].round:
            first = record if first is None else first
            last = segment, record
            headers[segment.round] = segment.header
    if first is None or last is None:
        raise StateError(
            f"state_dir {state_dir}: no rounds are kept between the times given; there are rounds"
            f" from {moment(segments[0].header['cut_time_us'])} on (cut_time)"
        )
    shapes = {(h["groups"], h["lanes"]) for h in headers.values()}
    if len(shapes) > 1:
        raise StateError(
            "the flow had other groups or lanes in some of the rounds; learn from those after"
            " the change alone, with --from"
        )
    base = base_before(state_dir, first.round, int(last[0].header["lanes"]))
    catalogs = [name for name, _ in groupby(h["catalog"] for h in headers.values())]
    segment, newest = last
    as_of = newest.cut_time_us if as_of_us is None else as_of_us
    return _Span(first.round, newest.round, base, segment, first.cut_time_us, as_of, catalogs)


def _verdicts(state_dir: Path, as_of_us: int) -> dict[str, dict[str, bool]]:
    """What labels that had come by a moment say, of which the last counts."""
    found: dict[str, dict[str, bool]] = {}
    for cut in read_cuts(journal_folder(state_dir, 0)):
        if cut.cut_time_us > as_of_us:
            break
        for record in cut.control:
            if record["kind"] == "label":
                mine = found.setdefault(record["event_type"], {})
                mine[record["event_id"]] = record["verdict"] == "fraud"
    return found


def _names(settings: Settings) -> tuple[dict[int, str], int]:
    """Code -> what it means, and the code of a fraud of which only a label knows."""
    names: dict[int, str] = {}
    if settings.source == "simulator":
        names = {code: name for name, code in (ATTACKS | SILENCES).items()}
    elif settings.file_mapping:
        names = dict(truth_names(settings.file_mapping))
    labelled = max(names, default=0) + 1
    return {1: "labelled"} | names | {labelled: "labelled"}, labelled


def _tell_catalog(span: _Span, context: Context, say: Say) -> None:
    """Say where the rounds had other features than are learned from."""
    now = context.catalog.version
    others = [name for name in dict.fromkeys(span.catalogs) if name != now]
    if others:
        say(
            f"the feature catalogue is {now}, rounds were computed with {', '.join(others)}: all"
            " are computed again with the features of now; those that the base state did not have"
            " start empty there"
        )


def _check_settled(sets: Mapping[str, TrainingSet], targets: Targets, settled_us: int) -> None:
    """ConfigError where labels speak of an event type of which nothing is settled yet."""
    faults = [
        f"{name}: nothing is known to be genuine {settled_us / _DAY_US:g} days before --as-of; say"
        " how soon frauds are told with --settled DAYS, or send labels that say genuine"
        for name in sorted(targets.verdicts)
        if name in sets and not (sets[name].label == 0).any()
    ]
    if faults:
        raise ConfigError(faults)


class _Looker:
    """Takes rows of replayed rounds, and holds their features against the certificate."""

    def __init__(self, context: Context, span: _Span, targets: Targets, from_us: int) -> None:
        folder = context.settings.state_dir
        received = self.rates = 0
        for lane in range(lanes_of(context.settings)):
            for cut in read_cuts(journal_folder(folder, lane)):
                if span.first <= cut.round <= span.last:
                    received += cut.received
                    self.rates = max(self.rates, cut.rates)
        share = min(1.0, len(context.settings.event_types) * ROWS_WANTED / max(received, 1))
        self.collector = Collector(context.catalog, from_us, share)
        self.rounds = self.events = self.identical = 0
        self.differing: int | None = None
        self._targets, self._span = targets, span
        self._live = read_records(digests_folder(folder), span.from_us)
        self._catalog: Catalog = context.catalog

    def look(self, round_: int, outs: list[RoundOut]) -> bool:
        """Take in one."""
        self.rounds += 1
        for out in outs:
            self.events += out.received
            for name, matrix in (out.features or {}).items():
                batch, rows = self._targets.of((out.batches or {})[name])
                if len(rows):
                    self.collector.add(batch, take_rows(matrix, rows))
        self._compare(round_, outs)
        return True

    def _compare(self, round_: int, outs: list[RoundOut]) -> None:
        """Hold the groups' features against those of then; of another catalogue they are others."""
        segment, record = next(((s, r) for s, r in self._live if r.round >= round_), (None, None))
        if record is None or segment is None or record.round != round_:
            return
        if segment.header["catalog"] != self._catalog.version:
            return
        again, _ = record_of(round_, outs)
        if np.array_equal(record.groups, again.groups) and record.counts == again.counts:
            self.identical += 1
        elif self.differing is None:
            self.differing = round_

    def tell(self, say: Say) -> None:
        """Say what was found, for people."""
        counts = self._targets.counts
        say(
            f"{self.events:,} events: {counts['fraud']:,} known frauds, {counts['genuine']:,}"
            f" genuine, {counts['unsettled']:,} left out because nobody may have said yet"
        )
        if self.differing is not None:
            say(
                f"features differ from those of then from round {self.differing} on; `waxwing"
                " certify` says which"
            )
        elif self.identical:
            say(f"the features of {self.identical:,} rounds are bit-identical with those of then")

    def report(self) -> dict[str, Any]:
        """For the bundle."""
        return {
            "events": self.events,
            "rounds_identical": self.identical,
            "first_round_differing": self.differing,
        }
