"""Training on history: models, and the warm state that the live flow starts from.

Recorded history is run through the features once, and its later part is learned from. For simulated
history there is more to it: one world, one plain stream. The days before `sim_start` run through
the features once; on the last of them training rows are taken. Attacks are rare in plain traffic
(one campaign of each a day), so the last days run a second time from a copy of the state, the same
genuine events with many more attacks among them, and only the attack events of that second run are
learned from. The warm state is that of the plain stream, which the live flow goes on with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dataflows.admission import Admission
from dataflows.arrivals import Arrivals
from dataflows.currencies import base_of, priced_lines
from dataflows.elsewhere import Remotes
from dataflows.history import Collector, Pass, after_rows, run_history, save_warm
from dataflows.settings import Settings
from dataflows.sources.base import Blind, LaneReader
from dataflows.sources.simulator import SimulatorReader, time_us_of
from dataflows.state.declared import told_apart
from dataflows.state.manifest import read_manifest
from dataflows.warm import warm_folder
from features.catalog import Catalog, catalog
from features.currency import Rates
from features.engine import GroupEngine, OfflineEngine, warm_up
from features.errors import ConfigError, WaxwingError
from features.plan import ABSENCE
from features.simulate import ATTACKS, SILENCES
from features.simulate.mix import TYPE_SHARES
from models.base import TrainingSet
from models.bundle import Bundle, check_place, read_head
from models.costs import Costs
from models.segments import parse_cut
from models.train import Aim, join_sets, select_rows, train

__all__ = [
    "HISTORY_DAYS",
    "ROWS_WANTED",
    "Trained",
    "costs_of",
    "is_trained",
    "join_attacks",
    "later_rows",
    "learn",
    "moment_us",
    "money_of",
    "options_of",
    "run_simulated",
    "simulated",
    "train_files",
    "train_simulated",
    "warm_folder",
]

HISTORY_DAYS = 14
"""Days of history before `sim_start`. Origin: the issue that asked for it; two of every weekday."""

LEARNED_DAYS = 4
"""Last days of it that are learned from; before them too much is new. Chosen: all entities are
warm, and 0.2 % of a quarter of the rows of the rarest event type are fifty."""

RHYTHM_SHARE = 0.4
"""Share of the days before them after which absences are learned from. Chosen: four days; a job
that runs at night is known after two."""

ATTACK_SHARE = 0.02
"""Share of attack events in the second run of the last days: 80 campaigns of each attack, an hour
between two of a kind. Measured on another seed: with 0.01 recall on metrics falls by 5 points."""

SEED_APART = 1_000
"""Added to `sim_seed` for the traffic seed of history: never that of the live flow."""

ROWS_WANTED = 100_000
"""Genuine rows of an event type to keep, about. Measured: 300,000 take three times as long to learn
from and find no more; 0.18 % of the quarter that thresholds are set on are 45."""

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
    warm : folder of the warm state; None where the flow has its own
    events : events of history
    history_s, training_s : wall time of the two parts
    """

    bundle: Bundle
    warm: Path | None
    events: int
    history_s: float
    training_s: float


def train_simulated(
    settings: Settings, say: Say = lambda _: None, days: float = HISTORY_DAYS
) -> Trained:
    """Simulate history that ends at `sim_start`, learn from it, write bundle and warm state.

    Parameters
    ----------
    settings : the `sim_*` settings, `detectors`, `bundle`, `warm_state`, `groups`
    say : told what is being done, one sentence at a time
    days : of history

    Raises
    ------
    ConfigError, BundleError, StateError : with the cure
    """
    check_place(settings.bundle)
    begun = time.perf_counter()
    options_of(settings)
    cat = catalog()
    warm_up(cat)
    seed = settings.sim_seed + SEED_APART
    say(f"{days:g} simulated days of history up to {settings.sim_start} (seed {seed})")
    done, plain, attacked = run_simulated(settings, cat, seed, days)
    sets = join_attacks(plain, attacked)
    warm = warm_folder(settings)
    save_warm(warm, settings, cat, done)
    history_s = time.perf_counter() - begun
    say(f"{done.events:,} events in {history_s:.1f} s; warm state in {warm}")
    names = {code: name for name, code in (ATTACKS | SILENCES).items()}
    about = {"traffic_seed": seed, "world": _world(settings), **_money(done, say)}
    odd = done.odd_per_genuine
    return learn(settings, sets, names, done.events, history_s, say, about, warm, odd)


def is_trained(settings: Settings) -> str | None:
    """Why the settings' bundle and warm state do not serve the settings' simulated world; None if
    they do.

    Only looks at what the folders say of themselves; a damaged file is found when it is loaded.
    """
    cat = catalog()
    if not (settings.bundle / "bundle.json").is_file():
        return "there are no models yet"
    try:
        head = read_head(settings.bundle)
        warm = read_manifest(warm_folder(settings))
    except WaxwingError as error:
        return str(error)
    if head["catalog_version"] != cat.version:
        return "the models were trained on other features"
    trained = {name for names in head["detectors"].values() for name in names}
    lacking = [name for name in settings.detectors if name not in trained]
    # One without a feature, chosen or declared, is never learned from.
    wanted = [name for name in settings.event_types if name in cat.event_types]
    lacking += [name for name in wanted if name not in head["names"]]
    if lacking:
        return f"the models lack {', '.join(lacking)}"
    if head["training"].get("world") != _world(settings):
        return "the models were trained on another simulated world"
    if (head["training"].get("currency") or {}).get("base", "") != base_of(settings):
        return "the models were trained on amounts in another currency"
    if warm is None:
        return "there is no warm state"
    if warm.catalog_version != cat.version:
        apart = told_apart(warm_folder(settings), warm.catalog_version, cat)
        return f"the warm state was made with other features: {apart}"
    if warm.groups != settings.groups:
        return "the warm state was made with another number of groups"
    if warm.currency != base_of(settings):
        return "the warm state is of amounts in another currency"
    if warm.until_us != time_us_of(settings.sim_start):
        return "the warm state ends at another time than sim_start"
    return None


def _world(settings: Settings) -> dict[str, Any]:
    """The settings that make a simulated world what it is, but for the seed of its traffic."""
    names = ("sim_population_seed", "sim_events_per_s", "sim_cards", "sim_start")
    local = {"sim_local_money": True} if settings.sim_local_money else {}
    return {name: getattr(settings, name) for name in names} | local


def train_files(
    settings: Settings,
    say: Say = lambda _: None,
    labels: pl.DataFrame | None = None,
    learn_from: str | None = None,
    *,
    blind: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Learn from files of history, write bundle and warm state.

    Parameters
    ----------
    settings : `file_paths`, `file_mapping`, `detectors`, `bundle`, `warm_state`, `groups`
    labels : known anomalies (`dataflows.known`); without them, and without a label in the files,
        thresholds are set by the share of events they flag
    learn_from : event time, ISO 8601, before which rows only warm up; None leaves out the first
        third
    blind : whether labels in the files are left unread
    progress : as of `run_history`

    Raises
    ------
    ConfigError, SourceError, BundleError, StateError : with the cure
    """
    from dataflows.sources.files import FileReader, truth_names

    check_place(settings.bundle)
    begun = time.perf_counter()
    options_of(settings)  # what is wrong is said before the history is read
    cat = catalog()
    warm_up(cat)
    from_us = 0 if learn_from is None else moment_us(learn_from)
    files = FileReader(settings)
    reader: LaneReader = Blind(files) if blind else files
    rows = max(files.events_max.values(), default=0)
    say(f"history of {', '.join(settings.file_paths)}: up to {rows:,} events a type")
    collector = Collector(cat, from_us, min(1.0, ROWS_WANTED / max(rows, 1)), labels)
    try:
        arrivals = Arrivals(cat, round(settings.label_delay_s * 1e6), labels)
        run = run_history(settings, cat, reader, collector, progress, arrivals=arrivals)
        done = after_rows(run)
    finally:
        reader.close()
    if collector.met is not None:
        say(collector.met.told())
    warm = warm_folder(settings)
    save_warm(warm, settings, cat, done)
    history_s = time.perf_counter() - begun
    say(
        f"{done.events:,} events in {history_s:.1f} s ({done.rejected:,} rejected,"
        f" {done.duplicates:,} repeats); warm state in {warm}"
    )
    sets = collector.sets()
    if learn_from is None:
        sets = {name: later_rows(one) for name, one in sets.items()}
    if not collector.known:
        say("no labels: detectors weigh the same, thresholds follow from the share they flag")
    names = truth_names(settings.file_mapping) if settings.file_mapping else {}
    names = {1: "labelled"} | names
    odd = collector.odd_per_genuine()
    about = _money(done, say)
    return learn(settings, sets, names, done.events, history_s, say, about, warm, odd)


def learn(
    settings: Settings,
    sets: dict[str, TrainingSet],
    attacks: dict[int, str],
    events: int,
    history_s: float,
    say: Say,
    about: dict[str, Any],
    warm: Path | None = None,
    odd_per_genuine: Mapping[str, float] | None = None,
) -> Trained:
    """Train on rows and write the bundle, with what else is known of its history.

    Parameters
    ----------
    settings : `detectors`, `bundle`
    attacks : code in the sets -> what it means
    events, history_s, warm : as of `Trained`
    about : further entries of the bundle's `training`
    odd_per_genuine : event type -> known anomalies on each other event, where that was counted

    Raises
    ------
    ConfigError, BundleError : too few rows, or the bundle cannot be written
    """
    begun = time.perf_counter()
    aim = Aim(settings.false_alarm_share, costs_of(settings), odd_per_genuine or {})
    remotes = Remotes(settings, say, patient=True)
    cuts = {name: parse_cut(text) for name, text in settings.calibration_segments.items()}
    try:
        bundle = train(
            sets, catalog(), settings.detectors, TRAINING_SEED,
            options=options_of(settings), attacks=attacks, aim=aim, segments=cuts, say=say,
            place=remotes.in_training,
        )  # fmt: skip
    finally:
        remotes.close()
    bundle = replace(bundle, training={**bundle.training, **about}).write(settings.bundle)
    training_s = time.perf_counter() - begun
    say(f"trained in {training_s:.1f} s; bundle {bundle.id} in {settings.bundle}")
    return Trained(bundle, warm, events, history_s, training_s)


def options_of(settings: Settings) -> dict[str, dict[str, float]]:
    """Detector -> its options, by the settings; what they may be a fit knows.

    Raises
    ------
    ConfigError : options of a detector that is not trained
    """
    found: dict[str, dict[str, float]] = {}
    for name, value in settings.detector_options.items():
        detector, _, option = name.partition(".")
        found.setdefault(detector, {})[option] = value
    if astray := [name for name in found if name not in settings.detectors]:
        raise ConfigError(
            f"detector_options: {', '.join(astray)} is not among the detectors"
            f" ({', '.join(settings.detectors)})"
        )
    return found


def costs_of(settings: Settings) -> Costs | None:
    """What mistakes cost by the settings; None where they do not say."""
    miss, alarm = settings.cost_miss, settings.cost_alarm
    if miss is None or alarm is None:
        return None
    return Costs(miss, alarm, settings.cost_by_amount)


def money_of(rates: Rates | None) -> dict[str, Any]:
    """What a bundle says of the amounts it was trained on; nothing where none was converted."""
    if rates is None:
        return {}
    until = rates.days[1]
    made = {"base": rates.base, "until": str(until), "digest": rates.digest(until)}
    return {"currency": made}


def _money(done: Pass, say: Say) -> dict[str, Any]:
    """The same of a pass over history; what had no rate is told."""
    for text in priced_lines(done.unpriced, done.old_rate) if done.rates is not None else ():
        say(text)
    return money_of(done.rates)


def moment_us(text: str) -> int:
    """Microseconds of an ISO 8601 text with its offset; ConfigError where it is none."""
    try:
        return time_us_of(text)
    except ValueError:
        raise ConfigError(
            f"{text!r}: expected an ISO 8601 time such as 2026-03-02T00:00:00Z"
        ) from None


def later_rows(rows: TrainingSet) -> TrainingSet:
    """The rows of the last two thirds of their time: before that everything is new to the
    features."""
    first, last = int(rows.time_us.min()), int(rows.time_us.max())
    return select_rows(rows, np.flatnonzero(rows.time_us >= first + (last - first) // 3))


def run_simulated(
    settings: Settings, cat: Catalog, seed: int, days: float
) -> tuple[Pass, dict[str, TrainingSet], dict[str, TrainingSet]]:
    """The pass over all of history, and the rows of its last days: those of the plain stream, and
    the anomalous ones of the second run.

    Parameters
    ----------
    seed : of the traffic
    days : of history, up to `sim_start`
    """
    end_us = time_us_of(settings.sim_start)
    start_us = end_us - round(days * _DAY_US)
    split_us = end_us - round(min(LEARNED_DAYS, days / 2) * _DAY_US)
    plain = settings.sim_anomaly_share
    expected = settings.sim_events_per_s * (end_us - split_us) / 1e6
    share = {name: min(1.0, ROWS_WANTED / (expected * part)) for name, part in TYPE_SHARES.items()}
    # Absences are few: those of the days before are learned from too, once rhythms are known.
    rare_from_us = start_us + round((split_us - start_us) * RHYTHM_SHARE)
    rare = Collector(cat, rare_from_us, dict.fromkeys(TYPE_SHARES, 0.0))
    arrivals = Arrivals(cat, round(settings.label_delay_s * 1e6))
    reader = simulated(settings, seed, start_us, split_us, plain)
    first = run_history(settings, cat, reader, rare, arrivals=arrivals)
    again = _copy(settings, cat, first)
    collector = Collector(cat, split_us, share)
    reader = simulated(settings, seed, split_us, end_us, plain)
    done = run_history(settings, cat, reader, collector, begin=first)
    attacked = Collector(cat, split_us, 0.0)  # attacks are always kept
    dense = max(ATTACK_SHARE, plain) if plain else 0.0
    if dense:
        reader = simulated(settings, seed, split_us, end_us, dense)
        run_history(settings, cat, reader, attacked, begin=again)
    sets = collector.sets()
    early = rare.sets().get(ABSENCE)
    if early is not None:
        sets[ABSENCE] = join_sets(early, sets[ABSENCE]) if ABSENCE in sets else early
    done = replace(done, odd_per_genuine=collector.odd_per_genuine())
    return done, sets, attacked.sets()


def join_attacks(
    plain: dict[str, TrainingSet], attacked: dict[str, TrainingSet]
) -> dict[str, TrainingSet]:
    """The plain rows, with the anomalous ones of the second run."""
    found = {}
    for name, rows in plain.items():
        if name in attacked:
            extra = attacked[name]
            rows = join_sets(rows, select_rows(extra, np.flatnonzero(extra.label == 1)))
        found[name] = rows
    return found


def simulated(
    settings: Settings, seed: int, start_us: int, end_us: int, share: float
) -> SimulatorReader:
    """The simulated events of a stretch, as fast as they are taken.

    Parameters
    ----------
    seed : of the traffic
    share : of attack events
    """
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
    bounds = settings.exact_events_max, settings.distinct_exact_max
    options = (settings.late_s, settings.entity_ttl_h, 0, *bounds)
    engine.engines = [
        GroupEngine.restore(cat, group, one.full(), [], *options)
        for group, one in enumerate(done.engine.engines)
    ]
    door = Admission(settings)
    door.load(done.door.full())
    arrivals = None if done.arrivals is None else done.arrivals.copy()
    return replace(done, engine=engine, door=door, arrivals=arrivals)
