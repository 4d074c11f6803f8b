"""Judging a bundle on simulated traffic or labelled files: features, scores and votes, without
starting a flow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dataflows.admission import Admission
from dataflows.arrivals import Arrivals
from dataflows.elsewhere import Remotes
from dataflows.history import Pass, run_history
from dataflows.known import Met, labels_of
from dataflows.settings import Settings
from dataflows.sources.files import FileReader, truth_names
from dataflows.sources.simulator import time_us_of
from dataflows.state.declared import told_apart
from dataflows.state.deltas import ShardStore
from dataflows.state.logs import LogStore
from dataflows.state.manifest import read_manifest
from dataflows.training import simulated, warm_folder
from features.batch import EventBatch, FeatureMatrix
from features.catalog import Catalog, catalog
from features.engine import GroupEngine, OfflineEngine, warm_up
from features.errors import ConfigError
from features.events import event_code, event_type, made_types
from features.keys import hash_columns, hash_strings
from features.simulate import ATTACKS, SILENCES
from models.absences import SilenceTally
from models.analysis import Analysis, Judged, analyse, group_losses
from models.base import Decisions, ScoreMatrix, TrainingSet, unaided
from models.bundle import Bundle
from models.calibration import score_of
from models.costs import Costs, Held, amounts, choose, curve_report
from models.coverage import coverage_of
from models.evaluate import Tally
from models.scoring import Scorer, detectors_of, take_rows
from models.voting import ENSEMBLE, Voting

__all__ = ["Deep", "evaluate_files", "evaluate_simulated", "load_warm"]

GENUINE_MAX = 200_000
"""Most genuine events that are kept for curves and intervals, an even sample of all. Chosen: at
0.1 % of false positives two hundred rows, and 20 s of draws."""

SAMPLE_MAX = 10_000
"""Most genuine, and most anomalous, rows of an event type kept with their features. Chosen: 40 MB
with sequences, and a second to score."""

SEED = 1
"""Of all draws. Chosen: the same events give the same report."""


class Deep:
    """Keeps what curves, intervals and ablation need: every anomaly, a sample of the rest.

    Parameters
    ----------
    costs : of mistakes
    """

    def __init__(self, costs: Costs = Costs(100.0, 1.0)) -> None:  # noqa: B008, it is frozen
        self._costs = costs
        self._parts: list[Judged] = []
        self._ids: list[np.ndarray[Any, np.dtype[np.uint64]]] = []
        self._genuine, self._share = 0, 1.0
        self._samples: dict[str, list[TrainingSet]] = {}
        self._room: dict[tuple[str, bool], int] = {}
        self._scorer: Scorer | None = None
        self._names: dict[int, str] = {}

    def begin(self, scorer: Scorer, names: dict[int, str] | None) -> None:
        """Told before the first batch whose scores come; names of attacks, None for the
        simulator's."""
        self._scorer = scorer
        known = {code: name for name, code in (ATTACKS | SILENCES).items()}
        self._names = known if names is None else names

    def add(
        self, batch: EventBatch, features: FeatureMatrix, scores: ScoreMatrix, made: Decisions
    ) -> None:
        """Take in one batch whose truth is known."""
        if batch.truth is None:
            return
        declared = event_type(batch.event_type)
        n = len(batch)
        entity = hash_columns(batch.frame, declared.entities[declared.primary])
        rows = Judged(
            np.full(n, event_code(declared.name), np.int16),
            batch.truth,
            scores.surprise,
            made.score.max(axis=1, initial=0.0),
            np.asarray(made.flagged.any(axis=1)),
            entity,
            batch.time_us,
            np.ones(n),
            amounts(features),
        )
        ids = hash_strings(batch.frame["event_id"])
        self._keep(rows, ids)
        while self._genuine > GENUINE_MAX:
            self._share /= 2.0
            parts, ids_of = self._parts, self._ids
            self._parts, self._ids, self._genuine = [], [], 0
            for part, known in zip(parts, ids_of, strict=True):
                self._keep(part, known)
        self._sample(batch, features, entity)

    def _keep(self, rows: Judged, ids: np.ndarray[Any, np.dtype[np.uint64]]) -> None:
        """Keep the anomalies and the share of the rest that is kept now, by the ids' hashes."""
        odd = rows.truth > 0
        drawn = (ids >> np.uint64(11)).astype(np.float64) < self._share * 2.0**53
        at = np.flatnonzero(odd | drawn)
        self._genuine += int(np.count_nonzero(drawn & ~odd))
        weight = np.where(odd[at], 1.0, 1.0 / self._share)
        self._parts.append(rows.take(at, weight))
        self._ids.append(ids[at])

    def _sample(self, batch: EventBatch, features: FeatureMatrix, entity: Any) -> None:
        """Keep the first rows of each kind with their features."""
        truth = batch.truth if batch.truth is not None else np.zeros(len(batch), np.int16)
        kept = []
        for odd in (False, True):
            key = (batch.event_type, odd)
            room = self._room.setdefault(key, SAMPLE_MAX)
            at = np.flatnonzero((truth > 0) == odd)
            if not odd:
                at = at[:: max(1, len(at) // 1_000)]  # so that it is not all of the first hour
            kept.append(at[:room])
            self._room[key] = room - len(kept[-1])
        at = np.sort(np.concatenate(kept))
        if len(at):
            label = (truth[at] > 0).astype(np.int8)
            rows = TrainingSet(
                take_rows(features, at), batch.time_us[at], label, entity[at], truth[at]
            )
            self._samples.setdefault(batch.event_type, []).append(rows)

    def voting(self, share: float, costs: Costs | None) -> tuple[Voting, dict[str, Any]]:
        """The rules with thresholds fitted on what was kept, and what there is to say of them.

        Of an event type with several anomaly types, or none of its events, rules stay as they are:
        which of them an anomaly belongs to is not known.

        Parameters
        ----------
        share : of false alarms
        costs : of mistakes, in place of the share
        """
        scorer = self._scorer
        if not self._parts or scorer is None:
            raise ConfigError("--fit-voting: there is nothing to fit thresholds on")
        rows = Judged.join(self._parts)
        rules, told = dict(scorer.voting.anomaly_types), {}
        for event in scorer.bundle.models:
            at = np.flatnonzero(rows.event_type == event_code(event))
            mine = scorer.voting.of(event)
            if len(at) and len(mine) == 1:
                held = _held(rows.take(at, rows.weight[at]), scorer.detectors)
                choice = choose(mine[0], held, share, costs)
                rules[mine[0].name] = choice.rule
                told[event] = curve_report(choice, costs)
        return Voting(rules), told

    def analysis(self) -> Analysis:
        """Everything that can be said of what was kept."""
        scorer = self._scorer
        if not self._parts or scorer is None:
            return Analysis({}, {})
        rows = Judged.join(self._parts)
        fitted = [m.detectors for m in scorer.bundle.models.values()]
        alone = {name for mine in fitted for name, one in mine.items() if unaided(one)}
        found = analyse(rows, scorer.detectors, self._names, self._costs, SEED, alone)
        found.report["coverage"] = _coverage(rows, scorer)
        samples = {name: _one(parts) for name, parts in self._samples.items()}
        samples = {name: one for name, one in samples.items() if name in scorer.bundle.models}
        if found.curves and samples and any((one.label == 1).any() for one in samples.values()):
            found.report["feature_groups"] = group_losses(catalog(), scorer, samples, SEED)
        return found


def _held(rows: Judged, detectors: tuple[str, ...]) -> Held:
    """Judged rows of one event type, to set thresholds on."""
    odd = np.asarray(rows.truth > 0)
    often = float(rows.weight[odd].sum()) / max(float(rows.weight[~odd].sum()), 1.0)
    amount = np.full(len(rows), np.nan) if rows.amount is None else rows.amount
    return Held(detectors, score_of(rows.surprise), rows.score, odd, amount, often)


def _coverage(rows: Judged, scorer: Scorer) -> dict[str, Any]:
    """Shares of genuine events that were asked for and got; of rules in a file of their own it is
    not known what was asked."""
    asked = scorer.bundle.metrics.get("asked", {})
    if scorer.voting is not scorer.bundle.voting:
        asked = {name: {"scores": one["scores"]} for name, one in asked.items()}
    at = np.flatnonzero(rows.truth == 0)
    genuine = rows.take(at, rows.weight[at])
    with np.errstate(divide="ignore"):
        voted = -np.log10(1.0 - genuine.score)
    surprise = {name: genuine.surprise[:, i] for i, name in enumerate(scorer.detectors)}
    types = {event_code(name): name for name in scorer.bundle.models}
    return coverage_of(
        genuine.event_type, surprise | {ENSEMBLE: voted}, genuine.flagged, genuine.entity,
        genuine.time_us, genuine.weight, types, asked, SEED,
    )  # fmt: skip


def _one(parts: list[TrainingSet]) -> TrainingSet:
    """Several sets of one event type as one."""
    whole = parts[0]
    first = whole.features
    sequence = None
    if first.sequence is not None:
        found = [part.features.sequence for part in parts]
        sequence = np.concatenate([one for one in found if one is not None])
    values = np.concatenate([part.features.values for part in parts])
    return TrainingSet(
        replace(first, values=values, sequence=sequence),
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("time_us", "label", "entity", "attack")
        ),
    )


class _Judge:
    """Scores what comes and tallies it."""

    def __init__(
        self, scorer: Scorer, deep: Deep | None = None, names: dict[int, str] | None = None
    ) -> None:
        self.scorer = scorer
        self.deep = deep
        if deep is not None:
            deep.begin(scorer, names)
        self.tally = Tally(names)
        self.silence = SilenceTally()
        self.rows = 0
        self.score_s = 0.0

    def add(self, batch: EventBatch, features: FeatureMatrix) -> None:
        """Take in one batch and its features."""
        begun = time.perf_counter()
        scores = self.scorer.score(features, {})
        decisions = self.scorer.decide(scores, {})
        self.score_s += time.perf_counter() - begun
        self.rows += len(batch)
        if batch.event_type in made_types():
            self.rows -= len(batch)
            if batch.truth is not None:
                flagged = np.asarray(decisions.flagged.any(axis=1))
                self.silence.add(batch.frame, batch.truth, flagged)
        elif batch.truth is not None:
            self.tally.add(batch.event_type, batch.truth, scores, decisions)
            if self.deep is not None:
                self.deep.add(batch, features, scores, decisions)


def evaluate_simulated(
    settings: Settings,
    hours: float,
    say: Callable[[str], None] = lambda _: None,
    *,
    cold: bool = False,
    deep: Deep | None = None,
) -> dict[str, Any]:
    """The report of `waxwing evaluate`: counts and the judgement, in the keys of docs/json.md.

    Parameters
    ----------
    settings : `sim_*`, `bundle`, `detectors`, `voting`, `warm_state`
    hours : of simulated traffic from `sim_start` on
    cold : leave the warm state out
    deep : keeps what is needed for more than counts

    Raises
    ------
    ConfigError, BundleError, StateError : with the cure
    """
    cat = catalog()
    remotes = Remotes(settings, patient=True)
    scorer = _scorer(settings, cat, remotes)
    bundle = scorer.bundle
    start_us = time_us_of(settings.sim_start)
    warm = settings.warm_state or warm_folder(settings)
    begin = None if cold else load_warm(warm, settings, cat)
    if begin is not None and begin.until_us != start_us:
        raise ConfigError(
            f"warm state {warm} ends at another time than sim_start {settings.sim_start}; train"
            " again (`waxwing train`) or start cold (`--cold`)"
        )
    say(
        f"{hours:g} simulated hours, seed {settings.sim_seed}, bundle {bundle.id},"
        + (" without warm state" if begin is None else f" warm state of {warm}")
    )
    warm_up(cat)
    scorer.warm_up()
    judge = _Judge(scorer, deep)
    end_us = start_us + round(hours * 3.6e9)
    reader = simulated(settings, settings.sim_seed, start_us, end_us, settings.sim_anomaly_share)
    arrivals = Arrivals(cat, round(settings.label_delay_s * 1e6))
    try:
        done = run_history(settings, cat, reader, judge, begin=begin, arrivals=arrivals)
    finally:
        remotes.close()
    report = {
        "in": done.events + done.duplicates,
        "scored": judge.rows,
        "seed": settings.sim_seed,
        "hours": hours,
        "bundle": bundle.id,
        "us_per_event": {"score": round(1e6 * judge.score_s / max(judge.rows, 1), 2)},
        **judge.tally.report(),
        "silence": judge.silence.report(reader.silences(start_us, end_us), start_us, end_us),
    }
    if bundle.training.get("traffic_seed") == settings.sim_seed:
        say("note: the bundle was trained on this very traffic; take another seed")
    return report


def _scorer(settings: Settings, cat: Catalog, remotes: Remotes) -> Scorer:
    """The models and rules of the settings."""
    bundle = remotes.placed(Bundle.load(settings.bundle, cat))
    voting = None if settings.voting is None else Voting.load(settings.voting)
    return Scorer(bundle, detectors_of(bundle, settings.detectors_asked), voting)


def evaluate_files(
    settings: Settings,
    labels: pl.DataFrame | None,
    say: Callable[[str], None] = lambda _: None,
    *,
    cold: bool = False,
    deep: Deep | None = None,
) -> dict[str, Any]:
    """The report of `waxwing evaluate --data`.

    Parameters
    ----------
    settings : `file_paths`, `file_mapping`, `bundle`, `detectors`, `voting`, `warm_state`
    labels : known anomalies (`dataflows.known`), with an `attack` (a word) where it is known; None
        where the mapping names a column of labels
    cold, deep : as of `evaluate_simulated`

    Raises
    ------
    ConfigError, BundleError, SourceError, StateError : with the cure
    """
    cat = catalog()
    remotes = Remotes(settings, patient=True)
    scorer = _scorer(settings, cat, remotes)
    names = dict(truth_names(settings.file_mapping)) if settings.file_mapping else {}
    names = {1: "labelled"} | names
    codes: dict[str, int] = {}
    if labels is not None:
        words = labels["attack"].unique().sort().to_list() if "attack" in labels.columns else []
        codes = {word: i + 1 for i, word in enumerate(words or ["labelled"])}
        names = {code: word for word, code in codes.items()}
    reader = FileReader(settings)
    warm = settings.warm_state or warm_folder(settings)
    begin = None if cold else load_warm(warm, settings, cat)
    starts_us = reader.starts_us
    if begin is not None and starts_us is not None and begin.until_us > starts_us:
        raise ConfigError(
            f"warm state {warm} ends after the files begin, and may hold them; give later files,"
            " `--set file_from=TIME`, or start cold (`--cold`)"
        )
    how = "without warm state" if begin is None else f"warm state of {warm}"
    say(f"files from {reader.span}, bundle {scorer.bundle.id}, {how}")
    warm_up(cat)
    scorer.warm_up()
    judge = _Labelled(scorer, deep, names, labels, codes)
    arrivals = None
    if labels is None:
        arrivals = Arrivals(cat, round(settings.label_delay_s * 1e6))
    elif labels.height:
        arrivals = Arrivals(cat, round(settings.label_delay_s * 1e6), labels)
    try:
        done = run_history(settings, cat, reader, judge, begin=begin, arrivals=arrivals)
    finally:
        reader.close()
        remotes.close()
    if judge.met is not None:
        say(judge.met.told())
    found = judge.tally.report()
    if not found:
        raise ConfigError(
            "nothing is labelled: give --labels, a labels.parquet in the folder, or a mapping with"
            " a [truth] column"
        )
    return {
        "in": done.events + done.duplicates + done.rejected,
        "scored": judge.rows,
        "bundle": scorer.bundle.id,
        "us_per_event": {"score": round(1e6 * judge.score_s / max(judge.rows, 1), 2)},
        **found,
    }


class _Labelled(_Judge):
    """Judges events by labels that stand apart from them."""

    def __init__(
        self,
        scorer: Scorer,
        deep: Deep | None,
        names: dict[int, str],
        labels: pl.DataFrame | None,
        codes: dict[str, int],
    ) -> None:
        super().__init__(scorer, deep, names)
        self.names = names
        self._labels = labels
        self._codes: dict[str, pl.DataFrame] = {}
        self.met: Met | None = None
        if labels is not None:
            self.met = Met(labels)
            word = pl.col("attack") if "attack" in labels.columns else pl.lit("labelled")
            code = word.replace_strict(codes, return_dtype=pl.Int16).alias("code")
            self._labels = labels.with_columns(code)

    def add(self, batch: EventBatch, features: FeatureMatrix) -> None:
        """Take in one batch and its features."""
        if self._labels is not None and batch.event_type not in made_types():
            ids = batch.frame.select("event_id")
            if self.met is not None:
                self.met.see(batch.event_type, ids["event_id"])
            known = self._known(self._labels, batch.event_type)
            code = ids.join(known, "event_id", "left", maintain_order="left")["code"]
            batch = replace(batch, truth=code.fill_null(0).to_numpy().astype(np.int16))
        super().add(batch, features)

    def _known(self, labels: pl.DataFrame, name: str) -> pl.DataFrame:
        """Labelled ids of an event type, each once, with the codes of their attacks."""
        if name not in self._codes:
            mine = labels_of(labels, name).select("event_id", "code")
            self._codes[name] = mine.unique("event_id", keep="first")
        return self._codes[name]


def load_warm(folder: Path, settings: Settings, cat: Catalog) -> Pass | None:
    """The warm state in a folder, None where there is none.

    Raises
    ------
    ConfigError : of another catalogue or cut into another number of groups
    StateError : damaged
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    faults = []
    if manifest.catalog_version != cat.version:
        faults.append(
            f"warm state {folder}: of feature catalogue {manifest.catalog_version}, expected"
            f" {cat.version}: {told_apart(folder, manifest.catalog_version, cat)}; train again"
            " (`waxwing train`) or start cold"
        )
    if manifest.groups != settings.groups:
        faults.append(
            f"warm state {folder}: cut into {manifest.groups} groups, settings say"
            f" {settings.groups}; keep {manifest.groups}, train again or start cold"
        )
    if faults:
        raise ConfigError(faults)
    engine = OfflineEngine(cat, 0)
    bounds = settings.exact_events_max, settings.distinct_exact_max
    options = (settings.late_s, settings.entity_ttl_h, 0, *bounds)
    for group in range(manifest.groups):
        store = ShardStore(folder / "deltas" / f"g{group:03d}", settings.deltas_max)
        base, deltas, _ = store.load(manifest.round)
        engine.engines.append(GroupEngine.restore(cat, group, base, deltas, *options))
    door = Admission(settings)
    arrivals = Arrivals(cat, round(settings.label_delay_s * 1e6), takes=False)
    for arrays in LogStore(folder / "deltas" / "in00").load(manifest.round):
        door.load(arrays)
        arrivals.load(arrays)
    return Pass(engine, door, manifest.until_us or 0, 0, 0, 0, arrivals=arrivals)
