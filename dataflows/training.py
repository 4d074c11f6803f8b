"""Training on simulated history: models and the warm state that the live flow starts from.

One world, one plain stream. The days before `sim_start` run through the features once; on the last of
them training rows are taken. Attacks are rare in plain traffic (one campaign of each a day), so the
last days run a second time from a copy of the state, the same genuine events with many more attacks
among them, and only the attack events of that second run are learned from. The warm state is that of
the plain stream, which the live flow goes on with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataflows.history import Collector, Pass, run_history, save_warm
from dataflows.settings import Settings
from dataflows.sources.simulator import SimulatorReader, time_us_of
from features.catalog import Catalog, catalog
from features.engine import GroupEngine, OfflineEngine, warm_up
from features.repeats import RepeatFilter
from features.simulate import ATTACKS
from models.base import TrainingSet
from models.bundle import Bundle
from models.train import join_sets, select_rows, train

__all__ = ["HISTORY_DAYS", "Trained", "train_simulated", "warm_folder"]

HISTORY_DAYS = 14
"""Days of history before `sim_start`. Origin: the issue that asked for it; two of every weekday."""

LEARNED_DAYS = 4
"""Last days of it that are learned from; before them too much is new. Chosen: all entities are warm,
and 0.2 % of a quarter of the rows of the rarest event type are fifty."""

ATTACK_SHARE = 0.02
"""Share of attack events in the second run of the last days. Chosen: 3,500 attack events an event
type, 80 campaigns of each attack, and still an hour between two of a kind."""

SEED_APART = 1_000
"""Added to `sim_seed` for the traffic seed of history: never that of the live flow."""

ROWS_WANTED = 300_000
"""Genuine rows of the commonest event type to keep at most; chosen: 400 MB with their sequences."""

TRAINING_SEED = 1
"""Seed of the fits. Chosen: the same traffic gives the same bundle."""

Say = Callable[[str], None]

_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Trained:
    """What training left on the disk.

    Parameters
    ----------
    bundle : as written to the settings' `bundle`
    warm : folder of the warm state, None where there is none
    events : events of history
    history_s, training_s : wall time of the two parts
    """

    bundle: Bundle
    warm: Path | None
    events: int
    history_s: float
    training_s: float


def warm_folder(settings: Settings) -> Path:
    """Where training leaves warm state: beside the bundle."""
    return settings.bundle.parent / "warm"


def train_simulated(
    settings: Settings, say: Say = lambda _: None, days: int = HISTORY_DAYS
) -> Trained:
    """Simulate history that ends at `sim_start`, learn from it, write bundle and warm state.

    Parameters
    ----------
    settings : the `sim_*` settings, `detectors`, `bundle`, `groups`
    say : told what is being done, one sentence at a time
    days : of history

    Raises
    ------
    ConfigError, BundleError, StateError : with the cure
    """
    begun = time.perf_counter()
    cat = catalog()
    warm_up(cat)
    seed = settings.sim_seed + SEED_APART
    say(f"{days} simulated days of history up to {settings.sim_start} (seed {seed})")
    done, sets = _history(settings, cat, seed, days)
    warm = warm_folder(settings)
    save_warm(warm, settings, cat, done)
    history_s = time.perf_counter() - begun
    say(f"{done.events:,} events in {history_s:.1f} s; warm state in {warm}")
    begun = time.perf_counter()
    names = {code: name for name, code in ATTACKS.items()}
    bundle = train(sets, cat, settings.detectors, TRAINING_SEED, attacks=names, say=say)
    bundle = bundle.write(settings.bundle)
    training_s = time.perf_counter() - begun
    say(f"trained in {training_s:.1f} s; bundle {bundle.id} in {settings.bundle}")
    return Trained(bundle, warm, done.events, history_s, training_s)


def _history(
    settings: Settings, cat: Catalog, seed: int, days: int
) -> tuple[Pass, dict[str, TrainingSet]]:
    """The pass over all of history, and the rows of its last days with attacks from the second run."""
    end_us = time_us_of(settings.sim_start)
    start_us = end_us - days * _DAY_US
    split_us = end_us - min(LEARNED_DAYS, max(1, days // 2)) * _DAY_US
    plain = settings.sim_anomaly_share
    expected = settings.sim_events_per_s * (end_us - split_us) / 1e6
    share = min(1.0, ROWS_WANTED / expected)
    first = run_history(settings, cat, _reader(settings, seed, start_us, split_us, plain))
    again = _copy(settings, cat, first)
    collector = Collector(cat, split_us, share)
    reader = _reader(settings, seed, split_us, end_us, plain)
    done = run_history(settings, cat, reader, collector, begin=first)
    attacked = Collector(cat, split_us, 0.0)
    dense = max(ATTACK_SHARE, plain) if plain else 0.0
    if dense:
        reader = _reader(settings, seed, split_us, end_us, dense)
        run_history(settings, cat, reader, attacked, begin=again)
    return done, _joined(collector.sets(), attacked.sets())


def _joined(
    plain: dict[str, TrainingSet], attacked: dict[str, TrainingSet]
) -> dict[str, TrainingSet]:
    """The plain rows, with the attack rows of the second run."""
    found = {}
    for name, rows in plain.items():
        if name in attacked:
            extra = attacked[name]
            rows = join_sets(rows, select_rows(extra, np.flatnonzero(extra.label == 1)))
        found[name] = rows
    return found


def _reader(
    settings: Settings, seed: int, start_us: int, end_us: int, share: float
) -> SimulatorReader:
    """The simulated events of a stretch, as fast as they are taken."""
    changed: dict[str, Any] = {
        "sim_seed": seed,
        "sim_anomaly_share": share,
        "sim_paced": False,
        "sim_speed": 1.0,
        "sim_seconds": (end_us - start_us) / 1e6,
    }
    return SimulatorReader(settings.model_copy(update=changed), start_us)


def _copy(settings: Settings, cat: Catalog, done: Pass) -> Pass:
    """A pass whose state is its own."""
    engine = OfflineEngine(cat, 0)
    engine.engines = [
        GroupEngine.restore(cat, group, one.full(), [])
        for group, one in enumerate(done.engine.engines)
    ]
    repeats = RepeatFilter(settings.dedup_horizon_s * 1_000_000)
    repeats.load(done.repeats.full())
    return replace(done, engine=engine, repeats=repeats)
