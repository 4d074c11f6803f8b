"""Judging a bundle on simulated traffic: features, scores and votes, without starting a flow."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dataflows.admission import Admission
from dataflows.arrivals import Arrivals
from dataflows.history import Pass, run_history
from dataflows.settings import Settings
from dataflows.sources.simulator import time_us_of
from dataflows.state.deltas import ShardStore
from dataflows.state.logs import LogStore
from dataflows.state.manifest import read_manifest
from dataflows.training import simulated, warm_folder
from features.batch import EventBatch, FeatureMatrix
from features.catalog import Catalog, catalog
from features.engine import GroupEngine, OfflineEngine, warm_up
from features.errors import ConfigError
from features.events import made_types
from models.absences import SilenceTally
from models.bundle import Bundle
from models.evaluate import Tally
from models.scoring import Scorer
from models.voting import Voting

__all__ = ["evaluate_simulated", "load_warm"]


class _Judge:
    """Scores what comes and tallies it."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.tally = Tally()
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


def evaluate_simulated(
    settings: Settings,
    hours: float,
    say: Callable[[str], None] = lambda _: None,
    *,
    cold: bool = False,
) -> dict[str, Any]:
    """The report of `waxwing evaluate`: counts and the judgement, in the keys of docs/json.md.

    Parameters
    ----------
    settings : `sim_*`, `bundle`, `detectors`, `voting`, `warm_state`
    hours : of simulated traffic from `sim_start` on
    cold : leave the warm state out

    Raises
    ------
    ConfigError, BundleError, StateError : with the cure
    """
    cat = catalog()
    bundle = Bundle.load(settings.bundle, cat)
    voting = None if settings.voting is None else Voting.load(settings.voting)
    scorer = Scorer(bundle, settings.detectors, voting)
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
    judge = _Judge(scorer)
    end_us = start_us + round(hours * 3.6e9)
    reader = simulated(settings, settings.sim_seed, start_us, end_us, settings.sim_anomaly_share)
    arrivals = Arrivals(cat, round(settings.label_delay_s * 1e6))
    done = run_history(settings, cat, reader, judge, begin=begin, arrivals=arrivals)
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
    if manifest.catalog_version != cat.version or manifest.groups != settings.groups:
        raise ConfigError(
            f"warm state {folder}: of catalogue {manifest.catalog_version} in {manifest.groups}"
            f" groups, expected {cat.version} in {settings.groups}; train again (`waxwing train`)"
            " or start cold"
        )
    engine = OfflineEngine(cat, 0)
    options = (settings.late_s, settings.entity_ttl_h, 0, settings.exact_events_max)
    for group in range(manifest.groups):
        store = ShardStore(folder / "deltas" / f"g{group:03d}", settings.deltas_max)
        base, deltas, _ = store.load(manifest.round)
        engine.engines.append(GroupEngine.restore(cat, group, base, deltas, *options))
    door = Admission(settings)
    for arrays in LogStore(folder / "deltas" / "in00").load(manifest.round):
        door.load(arrays)
    return Pass(engine, door, manifest.until_us or 0, 0, 0, 0)
