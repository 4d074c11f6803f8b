"""What one process of the detect flow shares: settings, catalogue, scorer, store, state folders.

Made once, at start, where every fault of the configuration is found before the first event.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dataflows.ballots import Ballots
from dataflows.control.records import ControlFile, ControlReader, Names
from dataflows.currencies import RateBook, base_of, rates_log, rates_of
from dataflows.poison import POISON_FILE
from dataflows.settings import Settings
from dataflows.sources.rounds import Lane, Lanes, journal_folder
from dataflows.state.deltas import ShardStore
from dataflows.state.journal import LaneJournal
from dataflows.state.lock import lock_state
from dataflows.state.logs import LogStore
from dataflows.state.manifest import (
    Manifest,
    fallback,
    go_back,
    oldest_round,
    read_manifest,
    whole_manifests,
    write_manifest,
)
from dataflows.state.notes import read_notes
from dataflows.warm import warm_start
from features.batch import EventBatch
from features.catalog import Catalog, catalog
from features.currency import Rates
from features.decode import warm_up as warm_up_decoder
from features.engine import warm_up
from features.errors import BundleError, ConfigError, StateError
from features.events import event_types
from features.repeats import warm_up as warm_up_repeats
from models.bundle import Bundle
from models.scoring import Scorer
from models.voting import Voting

if TYPE_CHECKING:
    from dataflows.observe.telemetry import Telemetry
    from dataflows.sources.base import LaneReader
    from dataflows.store.writer import StoreWriter

__all__ = ["Context", "StopSwitch", "lanes_of", "make_context", "open_lane", "stop_on_signals"]


class StopSwitch:
    """Asks all lanes of the process to end with their next round."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """Ask."""
        self._event.set()


def stop_on_signals(stop: StopSwitch) -> None:
    """Turn SIGTERM and SIGINT into a clean stop; a second one ends the process at once.

    Bytewax's own handling ends without closing anything, and Python's handlers do not run while its
    engine holds the main thread. Blocking the signals for a thread that waits for them is no way
    either: the threads that numpy, polars and torch have started before do not block them, and one
    of them would take the signal and die of it. So the interpreter's C handler, which runs in
    whichever thread the signal meets, writes its number into a pipe, and a thread of ours reads.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def wait() -> None:
        asked = False
        while number := os.read(reading, 1):
            if number[0] not in (signal.SIGTERM, signal.SIGINT):
                continue
            if asked:
                os._exit(128 + number[0])
            asked = True
            stop.set()

    threading.Thread(target=wait, name="waxwing-signals", daemon=True).start()


@dataclass(slots=True)
class Context:
    """See the module."""

    settings: Settings
    catalog: Catalog
    scorer: Scorer
    manifest: Manifest
    telemetry: Telemetry
    store: StoreWriter | None
    rates: RateBook
    """Tables of exchange rates by version."""
    stop: StopSwitch = field(default_factory=StopSwitch)
    lanes: Lanes = field(default_factory=Lanes)
    opened: list[Lane] = field(default_factory=list)
    """Lanes that this process has opened."""
    writing: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="waxwing-state")
    )
    """Writes snapshots one after another, beside the flow."""
    restored: dict[tuple[str, int], Any] = field(default_factory=dict)
    """(kind, number) -> shard restored before the first round, until its step takes it over."""
    judge: Callable[[EventBatch], EventBatch] | None = None
    """Gives absences their truth where it is known, of the simulator alone; only to judge by."""
    ballots: Ballots = field(init=False)
    """Asks the detectors, and goes on without those that fail."""
    store_columns: dict[str, dict[str, npt.NDArray[np.intp]]] = field(init=False)
    """Event type -> entity -> columns of the feature matrix that its view holds."""

    def __post_init__(self) -> None:
        self.ballots = Ballots(
            self.settings.state_dir,
            self.manifest.round,
            self.settings.detector_timeout_s,
            self.telemetry.say,
        )
        self.telemetry.missed_votes = self.ballots.missed
        self.store_columns = {}
        for (name, entity), features in self.catalog.views().items():
            names = self.catalog.names(name)
            columns = np.array([names.index(f.name) for f in features], np.intp)
            self.store_columns.setdefault(name, {})[entity] = columns

    def close(self) -> None:
        """Wait for what is being written, let go of threads, sources and journals."""
        self.writing.shutdown()
        self.ballots.close()
        for lane in self.opened:
            lane.close()

    def judged(self, absences: EventBatch) -> EventBatch:
        """Absences with their truth, where it is known."""
        return absences if self.judge is None else self.judge(absences)

    def shard(self, name: str) -> ShardStore:
        """State folder of a group."""
        return ShardStore(self.settings.state_dir / "deltas" / name, self.settings.deltas_max)

    def log(self, name: str) -> LogStore:
        """State folder of a lane's filter of repeats."""
        return LogStore(self.settings.state_dir / "deltas" / name)


def lanes_of(settings: Settings) -> int:
    """How many lanes the source has: a file and the simulator are one lane each."""
    return settings.lanes if settings.source == "kafka" else 1


def _starting_point(
    settings: Settings, version: str, start: Callable[[], Path | None]
) -> tuple[Manifest, Path | None]:
    """The manifest to go on from, and the warm state to copy first; nothing is written.

    Raises
    ------
    ConfigError : there is no warm state, or the state was cut by other numbers; all faults at once
    """
    lanes = lanes_of(settings)
    found, folder = read_manifest(settings.state_dir), None
    if found is None:
        folder = start()
        warm = None if folder is None else read_manifest(folder)
        if folder is None:
            found = Manifest(0, settings.groups, lanes, version, currency=base_of(settings))
        elif warm is None:
            raise ConfigError(
                f"warm_state {str(folder)!r} holds no state; run `waxwing backfill`"
                ' first, or start without (`warm_state = "cold"`)'
            )
        else:
            found = Manifest(
                0,
                warm.groups,
                lanes,
                warm.catalog_version,
                until_us=warm.until_us,
                currency=warm.currency,
            )
    where = settings.state_dir if folder is None else folder
    faults = [
        f"{where}: state was written with {name} = {was}, settings say {now};"
        f" keep {was} or start with an empty state_dir"
        for name, was, now in (
            ("groups", found.groups, settings.groups),
            ("lanes", found.lanes, lanes),
        )
        if was != now
    ]
    if found.currency != base_of(settings):
        faults.append(
            f"{where}: state was made of amounts {_amounts_in(found.currency)}, settings say"
            f" {_amounts_in(base_of(settings))}; set currency_rates and currency_base as they were,"
            " or train again and start with an empty state_dir"
        )
    if faults:
        raise ConfigError(faults)
    # A state of another catalogue goes over where it can; `features.layout` says where it cannot.
    return replace(found, catalog_version=version), folder


def _amounts_in(base: str) -> str:
    """What amounts are in, in words."""
    return f"in {base}" if base else "as they were paid (no currency_rates)"


def _rates_unlike(
    settings: Settings,
    rates: Rates | None,
    training: Mapping[str, Any],
    say: Callable[[str], None],
) -> list[str]:
    """What is wrong with the amounts that the models were trained on; a changed table is told."""
    made = training.get("currency") or {}
    base = made.get("base", "")
    if base != base_of(settings):
        return [
            f"bundle {settings.bundle}: trained on amounts {_amounts_in(base)}, settings say"
            f" {_amounts_in(base_of(settings))}; set currency_rates and currency_base as they were,"
            " or train again (`waxwing train`)"
        ]
    if rates is not None:
        until = date.fromisoformat(made["until"])
        if rates.digest(until) != made["digest"]:
            say(
                f"currency_rates: rates of days up to {until} are others than those the models were"
                " trained with (changed, added or left out); train again if they are wrong there"
            )
    return []


def _load_manifest(
    settings: Settings,
    version: str,
    start: Callable[[], Path | None],
    say: Callable[[str], None],
) -> Manifest:
    """Claim the state folder, and the manifest to go on from; a fault leaves no folder behind."""
    if read_manifest(settings.state_dir) is None:
        _starting_point(settings, version, start)
    lock_state(settings.state_dir)
    found, folder = _starting_point(settings, version, start)
    if folder is not None:
        _copy_warm(folder / "deltas", settings.state_dir / "deltas", lanes_of(settings))
        if rates_log(folder).is_file():
            shutil.copy(rates_log(folder), rates_log(settings.state_dir))
        write_manifest(settings.state_dir, found)
        return found
    usable = _usable(settings, found, say)
    if usable.round != found.round:
        go_back(settings.state_dir, usable)
    else:
        write_manifest(settings.state_dir, usable)
    return usable


def _usable(settings: Settings, found: Manifest, say: Callable[[str], None]) -> Manifest:
    """The newest manifest whose state is whole on the disk; says what was wrong with newer ones.

    Raises
    ------
    StateError : the state of no manifest is whole
    """
    faults: list[str] = []
    older = [m for m in whole_manifests(settings.state_dir) if m.round < found.round]
    for manifest in (found, *sorted(older, key=lambda m: -m.round)):
        fault = _damage(settings, manifest)
        if fault is None:
            if faults:
                say(
                    f"{faults[0]}; going on from round {manifest.round} in its place: later rounds"
                    " are cut again from the journal"
                )
            return manifest
        faults.append(fault)
    raise StateError(faults[0])


def _damage(settings: Settings, manifest: Manifest) -> str | None:
    """What keeps the state of a manifest from being used, None where every checksum is right."""
    folder = settings.state_dir / "deltas"
    try:
        for group in range(manifest.groups):
            ShardStore(folder / f"g{group:03d}", settings.deltas_max).load(manifest.round)
        for lane in range(manifest.lanes):
            LogStore(folder / f"in{lane:02d}").load(manifest.round)
    except StateError as error:
        return str(error)
    return None


def _copy_warm(source: Path, target: Path, lanes: int) -> None:
    """Take warm state over; every lane starts from the one filter of repeats that it keeps."""
    for folder in sorted(source.iterdir()):
        names = (
            [f"in{i:02d}" for i in range(lanes)] if folder.name.startswith("in") else [folder.name]
        )
        for name in names:
            shutil.copytree(folder, target / name, dirs_exist_ok=True)


def make_context(settings: Settings, telemetry: Telemetry) -> Context:
    """Open everything a process needs; all faults of the configuration at once.

    Raises
    ------
    ConfigError, BundleError, StateError : with the cure
    """
    faults: list[str] = []
    unknown = sorted(set(settings.event_types) - set(event_types()))
    faults += [
        f"event_types: unknown event type {name!r}; event types are {', '.join(event_types())}"
        for name in unknown
    ]
    cat = catalog()
    scorer: Scorer | None = None
    try:
        bundle = Bundle.load(settings.bundle, cat)
        voting = None if settings.voting is None else Voting.load(settings.voting)
        scorer = Scorer(bundle, settings.detectors, voting)
    except ConfigError as error:
        faults += error.faults
    except BundleError as error:
        if not faults:
            raise
        faults.append(str(error))
    try:
        rates = rates_of(settings)
        if scorer is not None:
            faults += _rates_unlike(settings, rates, scorer.bundle.training, telemetry.say)
    except ConfigError as error:
        faults += error.faults
    if faults or scorer is None:
        raise ConfigError(faults)
    training = scorer.bundle.training
    start = cache(partial(warm_start, settings, training, cat.version, telemetry.say))
    lost = fallback(settings.state_dir)
    if lost is not None:
        telemetry.say(lost)
    manifest = _load_manifest(settings, cat.version, start, telemetry.say)
    store: StoreWriter | None = None
    if settings.store != "off":
        from dataflows.store.writer import StoreWriter

        store = StoreWriter(settings, cat, telemetry.say)
    warm_up(cat)
    warm_up_repeats()
    if settings.source == "kafka":
        warm_up_decoder(settings.event_types)
    scorer.warm_up()
    book = RateBook(settings, telemetry.say)
    return Context(settings, cat, scorer, manifest, telemetry, store, book)


def open_lane(context: Context, lane: int) -> Lane:
    """A lane's reader and journal, standing where the manifest says."""
    settings = context.settings
    reader: LaneReader
    if settings.source == "simulator":
        from dataflows.sources.simulator import SimulatorReader

        simulated = SimulatorReader(settings, context.manifest.until_us)
        context.judge = simulated.judged
        context.telemetry.silences = simulated.silences
        context.telemetry.begun_us = simulated.begins_us
        reader = simulated
    elif settings.source == "file":
        from dataflows.sources.files import FileReader

        reader = FileReader(settings, from_us=context.manifest.until_us)
    else:
        from dataflows.sources.kafka import KafkaReader

        reader = KafkaReader(settings, lane, from_us=context.manifest.until_us)
    opened = Lane(
        lane=lane,
        reader=reader,
        journal=LaneJournal(
            journal_folder(settings.state_dir, lane),
            settings.journal_segment_bytes,
            settings.journal_bytes_max,
            lambda: oldest_round(settings.state_dir),
        ),
        round_ms=settings.round_ms,
        rows_max=settings.round_rows_max,
        stop=context.stop,
        control=_open_control(context) if lane == 0 else None,
        stage=context.telemetry.stage,
        lanes=context.lanes,
        rates=context.rates.current,
        withheld=_withheld(settings, lane, context.manifest.round),
    )
    context.opened.append(opened)
    opened.start(context.manifest.round)
    finished = getattr(reader, "finished", "") if opened.pending is None else ""
    if context.manifest.round and finished:
        context.telemetry.say(f"already finished: {finished}; give another state_dir to begin anew")
    context.lanes.cut(lane, opened.round)
    return opened


def _withheld(settings: Settings, lane: int, after_round: int) -> dict[int, list[dict[str, Any]]]:
    """Round -> notes on the lane's events that made a step raise."""
    found: dict[int, list[dict[str, Any]]] = {}
    for note in read_notes(journal_folder(settings.state_dir, lane) / POISON_FILE, after_round):
        found.setdefault(note["round"], []).append(note)
    return found


def _open_control(context: Context) -> ControlReader:
    """Where the control records come from."""
    settings = context.settings
    names = Names.of(context.scorer.voting, context.scorer.detectors)
    if settings.control_topic is not None:
        from dataflows.control.topic import ControlTopic

        return ControlTopic(settings, names)
    return ControlFile(settings.control_file or settings.state_dir / "control.jsonl", names)
