"""What one process of the detect flow shares: settings, catalogue, scorer, store, state folders.

Made once, at start, where every fault of the configuration is found before the first event.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dataflows.arrivals import LABEL_STEP_US
from dataflows.ballots import Ballots
from dataflows.control.bundles import START_S, WithBundles
from dataflows.control.labels import WithLabels, open_labels
from dataflows.control.records import Control, ControlFile, ControlReader, Names
from dataflows.currencies import RateBook, base_of, rates_log, rates_of
from dataflows.elsewhere import Remotes
from dataflows.fetching import FETCH_S
from dataflows.poison import POISON_FILE
from dataflows.restore import Damaged, Restored, check, restore
from dataflows.row_choice import RowChoice
from dataflows.settings import SHAPING, Settings, recorded
from dataflows.shelf import Shelf, with_own_detectors
from dataflows.sources.catch_up import Pace
from dataflows.sources.rounds import Lane, Lanes, journal_folder
from dataflows.state.bases import base_states, drop_bases_after, held_rounds, keep_base
from dataflows.state.certificate import digests_folder, segments_of
from dataflows.state.deltas import ShardStore
from dataflows.state.journal import LaneJournal, RoundJournal, last_cut
from dataflows.state.lease import Lease, take_lease
from dataflows.state.lock import in_cluster, lock_state, this_process
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
from dataflows.state.row_log import rows_folder
from dataflows.warm import warm_start
from features.batch import EventBatch
from features.catalog import Catalog, catalog
from features.currency import Rates
from features.decode import warm_up as warm_up_decoder
from features.digest import warm_up as warm_up_digest
from features.engine import warm_up
from features.errors import BundleError, ConfigError, StateError
from features.events import event_types
from features.narrowed import Narrowed
from features.repeats import warm_up as warm_up_repeats
from models.bundle import Bundle
from models.scoring import Scorer
from models.voting import Voting

if TYPE_CHECKING:
    from dataflows.observe.telemetry import Telemetry
    from dataflows.sources.base import LaneReader
    from dataflows.store.writer import StoreWriter
    from features.simulate import Simulator

__all__ = [
    "Context",
    "Replaying",
    "StopSwitch",
    "ended_before",
    "lanes_of",
    "let_go",
    "make_context",
    "open_lane",
    "open_reader",
    "stop_on_signals",
    "stop_switch",
    "withheld_of",
]


class StopSwitch:
    """Asks all lanes of the process to end with their next round.

    Parameters
    ----------
    shared : file whose being there asks, so that all processes of a cluster hear of it; None alone
    """

    def __init__(self, shared: Path | None = None) -> None:
        self._event = threading.Event()
        self._shared = shared

    def __call__(self) -> bool:
        return self._event.is_set() or (self._shared is not None and self._shared.exists())

    @property
    def asked_here(self) -> bool:
        """Whether this process was asked; what another one has left in the file does not count."""
        return self._event.is_set()

    def wait(self, seconds: float) -> None:
        """Wait until somebody asks in this process, at most so long."""
        self._event.wait(seconds)

    def set(self) -> None:
        """Ask."""
        self._event.set()
        if self._shared is not None:
            with contextlib.suppress(OSError):  # a full disk; whoever stops one stops the others
                self._shared.touch()


def stop_switch(settings: Settings) -> StopSwitch:
    """The switch of a flow, made before its context: a start can be asked to stop, too."""
    return StopSwitch(_stop_file(settings) if in_cluster() else None)


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


@dataclass(frozen=True, slots=True)
class Replaying:
    """What a replay looks at.

    Parameters
    ----------
    first, last : rounds whose results are wanted; those before `first` only bring the state there
    groups : shard groups that compute; None means all. Rows of the others have no features
    entities : only rows that these entities' state depends on pass before `first`; None: all do
    told_from : whoever looks is told of rounds from here on; None: from `first` on
    scored : False computes features alone: no models are needed
    hashed : features are hashed where nothing is scored, too
    base_alone : nothing but the bundle of the settings scores
    """

    first: int
    last: int
    groups: frozenset[int] | None = None
    entities: Narrowed | None = None
    told_from: int | None = None
    scored: bool = True
    base_alone: bool = False
    hashed: bool = False


@dataclass(slots=True)
class Context:
    """See the module."""

    settings: Settings
    catalog: Catalog
    scorer: Scorer
    begins: Manifest | None
    """What to go on from; None where another process of the cluster settles it, see `manifest`."""
    telemetry: Telemetry
    store: StoreWriter | None
    book: RateBook | None
    """Tables of exchange rates by version; None as above."""
    lease: Lease | None = None
    """That of the state folder, which the first process of a cluster holds for all."""
    stop: StopSwitch = field(default_factory=StopSwitch)
    lanes: Lanes = field(default_factory=Lanes)
    pace: Pace = field(default_factory=Pace)
    opened: list[Lane] = field(default_factory=list)
    """Lanes that this process has opened."""
    writing: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="waxwing-state")
    )
    """Writes snapshots one after another, beside the flow."""
    restored: Restored = field(default_factory=dict)
    """What was restored before the first round, until its step takes it over."""
    ballots: Ballots = field(init=False)
    """Asks the detectors, and goes on without those that fail."""
    again_until: int = 0
    """The last round of those that a restart plays again together, see `dataflows.restart`; 0 where
    there are none, and in a cluster, whose processes know their own lanes alone."""
    replaying: Replaying | None = None
    """Set in a replay: nothing is saved, sent or told, only computed."""
    shelf: Shelf = field(init=False)
    """The bundles that control records name, and which of them scores when."""
    remotes: Remotes | None = None
    """Who is asked elsewhere; in a replay nobody is."""
    _watched: Lease | None = None
    """The lease that the first process holds, as another process of the cluster looks at it."""
    _row_choice: RowChoice | None = None
    _world: Simulator | None = None
    _once: threading.RLock = field(default_factory=threading.RLock)
    store_columns: dict[str, dict[str, npt.NDArray[np.intp]]] = field(init=False)
    """Event type -> entity -> columns of the feature matrix that its view holds."""

    def __post_init__(self) -> None:
        replaying = self.replaying
        self.shelf = Shelf(
            self.settings.state_dir,
            self.catalog,
            self.scorer,
            self.settings.bundle,
            fixed=replaying is not None and replaying.base_alone,
            placed=None if self.remotes is None else self.remotes.beside,
        )
        self.ballots = Ballots(
            self.settings.state_dir,
            lambda: self.manifest.round,
            self.settings.detector_timeout_s,
            self.telemetry.say,
            replaying=self.replaying is not None,
            fence=self.fence,
            until_round=None if replaying is None else replaying.last,
        )
        self.telemetry.missed_votes = self.ballots.missed
        if self.remotes is not None:
            self.telemetry.asked_elsewhere = self.remotes.report
        self.store_columns = {}
        for (name, entity), features in self.catalog.views().items():
            names = self.catalog.names(name)
            columns = np.array([names.index(f.name) for f in features], np.intp)
            self.store_columns.setdefault(name, {})[entity] = columns

    def close(self) -> None:
        """Wait for what is being written, let go of threads, sources and journals."""
        self.writing.shutdown()
        self.ballots.close()
        self.shelf.close()
        if self.remotes is not None:
            self.remotes.close()
        for lane in self.opened:
            lane.close()

    def fence(self) -> None:
        """To be called before anything is written in the state folder between two manifests.

        Raises
        ------
        StateError : another flow has taken the folder over
        """
        lease = self.lease or self._watched
        if lease is None and self.replaying is None and self.manifest.token:
            lease = self._watched = Lease(self.settings.state_dir, self.manifest.token, held=False)
        if lease is not None:
            lease.check()

    def told_of_growth(self) -> None:
        """Tell what the restored state of another catalogue did not know."""
        for (kind, _), found in self.restored.items():
            if kind == "g":
                self.telemetry.grown(found.empty, found.partial)

    def is_due(self, round_: int, last: bool) -> bool:
        """Whether the state after a round is to be made durable.

        Of rounds that are played again together, only after the last of them: what another crash
        would play again is no more by then than what this one did.
        """
        every, again = self.settings.snapshot_rounds, self.again_until
        if round_ < again:
            return last
        if round_ == again:
            return last or round_ // every > self.manifest.round // every
        return last or round_ % every == 0

    def new_row_choice(self) -> RowChoice | None:
        """What chooses the rows to be kept, standing after the manifest's round; None where none
        are."""
        settings = self.settings
        if self.replaying is not None or not settings.rows_share:
            return None
        return RowChoice(
            rows_folder(settings.state_dir),
            settings.rows_share,
            round(settings.rows_h * 3.6e9),
            self.manifest.round,
        )

    @property
    def row_choice(self) -> RowChoice | None:
        """That of the lanes of this process."""
        with self._once:
            if self._row_choice is None:
                self._row_choice = self.new_row_choice()
            return self._row_choice

    @property
    def digests(self) -> bool:
        """Whether what the rounds compute is hashed."""
        return self.replaying is not None or self.settings.retention_h > 0

    @property
    def decided_after(self) -> int:
        """The round before the first whose decisions are wanted."""
        replaying = self.replaying
        return self.manifest.round if replaying is None else replaying.first - 1

    @property
    def groups(self) -> tuple[int, ...]:
        """The shard groups that compute."""
        wanted = None if self.replaying is None else self.replaying.groups
        return tuple(g for g in range(self.settings.groups) if wanted is None or g in wanted)

    @property
    def manifest(self) -> Manifest:
        """What the flow goes on from.

        The first process of a cluster puts the state in order before it meets the others. They read
        what it has left, for the first time when a step is built: then all have met.

        Raises
        ------
        StateError : there is none, or it is damaged
        """
        with self._once:
            if self.begins is None:
                self.begins = read_manifest(self.settings.state_dir)
            if self.begins is None:
                raise StateError(
                    f"state_dir {self.settings.state_dir}: process 0 of the cluster has left no"
                    " manifest there; all processes need the same folder"
                )
            return self.begins

    @property
    def rates(self) -> RateBook:
        """Tables of exchange rates by version, which begin with those of the warm state."""
        with self._once:
            if self.book is None:
                self.book = RateBook(self.settings, self.telemetry.say)
            return self.book

    def world(self) -> Simulator:
        """The simulated world of the settings, made once a process."""
        from dataflows.sources.simulator import make_simulator

        with self._once:
            if self._world is None:
                self._world = make_simulator(self.settings)
            return self._world

    @property
    def begun_us(self) -> int:
        """Event time at which the simulated traffic begins; 0 of another source."""
        from dataflows.sources.simulator import time_us_of

        if self.settings.source != "simulator":
            return 0
        until_us = self.manifest.until_us
        return time_us_of(self.settings.sim_start) if until_us is None else until_us

    def judged(self, absences: EventBatch) -> EventBatch:
        """Absences with their truth where it is known, of the simulator alone; to judge by only."""
        if self.settings.source != "simulator":
            return absences
        return replace(absences, truth=self.world().absence_truth(absences))

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
    cat: Catalog,
    start: Callable[[], Path | None],
    say: Callable[[str], None],
) -> tuple[Manifest, Lease, Restored]:
    """Claim the state folder; the manifest to go on from, and its state where this process has all
    of it. A fault leaves no folder behind."""
    version = cat.version
    was = read_manifest(settings.state_dir)
    if was is None:
        _starting_point(settings, version, start)
    lock_state(settings.state_dir)
    lease = take_lease(settings.state_dir, 0 if was is None else was.token, say=say)
    with _held(lease):
        _stop_file(settings).unlink(missing_ok=True)
        found, restored = _in_order(settings, cat, start, say, lease.token)
    return found, lease, restored


@contextlib.contextmanager
def _held(lease: Lease | None) -> Iterator[None]:
    """Beat from now on: to restore a state may take longer than another machine watches. What fails
    gives the lease back."""
    if lease is not None:
        lease.keep()
    try:
        yield
    except BaseException:
        if lease is not None:
            lease.give_back()
        raise


def _in_order(
    settings: Settings,
    cat: Catalog,
    start: Callable[[], Path | None],
    say: Callable[[str], None],
    token: int,
) -> tuple[Manifest, Restored]:
    """Put the state folder in order; the manifest to go on from, and its state."""
    found, folder = _starting_point(settings, cat.version, start)
    found = replace(found, token=token)
    if folder is not None:
        _copy_warm(folder / "deltas", settings.state_dir / "deltas", lanes_of(settings))
        if rates_log(folder).is_file():
            shutil.copy(rates_log(folder), rates_log(settings.state_dir))
        write_manifest(settings.state_dir, found)
        return found, _state_of(settings, cat, found)
    usable, restored = _usable(settings, cat, found, say)
    usable = replace(usable, token=token)
    if usable.round != found.round:
        go_back(settings.state_dir, usable)
    else:
        write_manifest(settings.state_dir, usable)
    # Not before the manifest is ours: whoever has been taken over drops none of another's.
    drop_bases_after(settings.state_dir, usable.round)
    return usable, restored


def _stop_file(settings: Settings) -> Path:
    """What tells all processes of a cluster that one of them was asked to stop."""
    return settings.state_dir / "stop"


def _usable(
    settings: Settings, cat: Catalog, found: Manifest, say: Callable[[str], None]
) -> tuple[Manifest, Restored]:
    """The newest manifest whose state is whole on the disk, and that state; says what was wrong
    with newer ones.

    Raises
    ------
    StateError : the state of no manifest is whole
    """
    faults: list[str] = []
    older = [m for m in whole_manifests(settings.state_dir) if m.round < found.round]
    for manifest in (found, *sorted(older, key=lambda m: -m.round)):
        try:
            restored = _state_of(settings, cat, manifest)
        except Damaged as fault:
            faults.append(str(fault))
            continue
        if faults:
            say(
                f"{faults[0]}; going on from round {manifest.round} in its place: later rounds"
                " are cut again from the journal"
            )
        return manifest, restored
    raise StateError(faults[0])


def _state_of(settings: Settings, cat: Catalog, manifest: Manifest) -> Restored:
    """The state of a manifest, every checksum looked at; of a cluster it is only looked at.

    Raises
    ------
    Damaged : it is not whole
    """
    if in_cluster():
        check(settings, manifest)
        return {}
    emptied_max = 0 if settings.store == "off" else settings.store_emptied_max
    return restore(settings, cat, manifest, range(settings.groups), emptied_max)


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
    remotes = Remotes(settings, telemetry.say)
    scorer: Scorer | None = None
    no_bundle: BundleError | None = None
    try:
        bundle = remotes.placed(Bundle.load(settings.bundle, cat))
        remotes.begin()
        settings = with_own_detectors(settings, bundle)
        voting = None if settings.voting is None else Voting.load(settings.voting)
        scorer = Scorer(bundle, settings.detectors, voting)
    except ConfigError as error:
        faults += error.faults
    except BundleError as error:
        no_bundle = error
    try:
        rates = rates_of(settings)
        if scorer is not None:
            faults += _rates_unlike(settings, rates, scorer.bundle.training, telemetry.say)
    except ConfigError as error:
        faults += error.faults
    if no_bundle is not None:
        raise ConfigError([str(no_bundle), *faults]) if faults else no_bundle
    if faults or scorer is None:
        raise ConfigError(faults)
    for sentence in scorer.unheard():
        telemetry.say(sentence)
    own_s, all_s = time.thread_time(), time.process_time()
    with ThreadPoolExecutor(1, thread_name_prefix="waxwing-begin") as pool:
        # State is read mostly outside of the interpreter's lock: kernels load meanwhile.
        beginning = pool.submit(_begin, settings, scorer.bundle.training, cat, telemetry.say)
        try:
            _warm_up(settings, cat, scorer)
        except BaseException as error:
            with _held(beginning.result()[1]):
                raise error
        begun = beginning.result()
    own_s, all_s = time.thread_time() - own_s, time.process_time() - all_s
    telemetry.start_cpu_s = {"kernels": own_s, "state": all_s - own_s}
    with _held(begun[1]):
        return _opened(settings, cat, scorer, remotes, begun, telemetry)


def _opened(
    settings: Settings,
    cat: Catalog,
    scorer: Scorer,
    remotes: Remotes,
    begun: tuple[Manifest | None, Lease | None, Restored],
    telemetry: Telemetry,
) -> Context:
    """What is left of `make_context` once the state folder is in order: the store, the kernels."""
    manifest, lease, restored = begun
    store: StoreWriter | None = None
    if settings.store != "off":
        from dataflows.store.writer import StoreWriter

        store = StoreWriter(settings, cat, telemetry.say)
    book = None if manifest is None else RateBook(settings, telemetry.say)
    context = Context(
        settings, cat, scorer, manifest, telemetry, store, book, lease, stop_switch(settings),
        restored=restored, remotes=remotes,
    )  # fmt: skip
    if store is not None:
        store.fence = context.fence
    context.told_of_growth()
    if manifest is not None:
        # What is in force loads before the first round; bundles that come later, beside the flow.
        context.shelf.lineup(Control.of(manifest.control))
    if in_cluster():
        context.shelf.look_out()
    if settings.source == "simulator":
        telemetry.silences = lambda since_us, until_us: context.world().silences(since_us, until_us)
    return context


def _warm_up(settings: Settings, cat: Catalog, scorer: Scorer) -> None:
    """Load all kernels, or compile them, and ask the models once, before the first round."""
    warm_up(cat, settings.exact_events_max)
    warm_up_repeats()
    if settings.retention_h:
        warm_up_digest()
    if settings.source == "kafka":
        warm_up_decoder(settings.event_types)
    scorer.warm_up()


def _begin(
    settings: Settings, training: Mapping[str, Any], cat: Catalog, say: Callable[[str], None]
) -> tuple[Manifest | None, Lease | None, Restored]:
    """Claim the state folder and put it in order; the manifest to go on from, the lease, the state.

    In a cluster that is for the first process alone, None in the others: two that copy warm state,
    or write a manifest, would get into each other's way, and each would read all of the state.
    """
    if this_process() != "0":
        lock_state(settings.state_dir)
        return None, None, {}
    start = cache(partial(warm_start, settings, training, cat, say))
    lost = fallback(settings.state_dir)
    if lost is not None:
        say(lost)
    found, lease, restored = _load_manifest(settings, cat, start, say)
    with _held(lease):
        _base_of_start(settings, cat, found)
    return found, lease, restored


def let_go(context: Context) -> None:
    """Close all of a flow, the lease last: closing writes, and the folder is ours until then."""
    try:
        if context.store is not None:
            context.store.close()
        context.close()
    finally:
        if context.lease is not None:
            context.lease.give_back()


def ended_before(state_dir: Path) -> str:
    """What to say of a flow that was asked to stop before its first round."""
    with contextlib.suppress(StateError):
        manifest = read_manifest(state_dir)
        if manifest is not None and manifest.round:
            return f"stopped before it went on; the next start goes on from round {manifest.round}"
    return "stopped before the first round"


def open_reader(context: Context, lane: int) -> LaneReader:
    """The reader of a lane's source; in a replay one that asks nobody and commits nothing."""
    settings = context.settings
    reader: LaneReader
    if settings.source == "simulator":
        from dataflows.sources.simulator import SimulatorReader

        reader = SimulatorReader(settings, context.manifest.until_us, context.world())
    elif settings.source == "file":
        from dataflows.sources.files import FileReader

        reader = FileReader(settings, context.manifest.until_us, LABEL_STEP_US)
    else:
        from dataflows.sources.kafka import KafkaReader

        reader = KafkaReader(
            settings,
            lane,
            from_us=context.manifest.until_us,
            replay=context.replaying is not None,
            pace=context.pace,
        )
    return reader


def open_lane(context: Context, lane: int) -> Lane:
    """A lane's reader and journal, standing where the manifest says."""
    settings = context.settings
    reader = open_reader(context, lane)
    control = _open_control(context) if lane == 0 else None
    opened = Lane(
        lane=lane,
        reader=reader,
        journal=open_journal(context, lane),
        round_ms=settings.round_ms,
        rows_max=settings.round_rows_max,
        stop=context.stop,
        control=control,
        hear=(lambda _clock_us: None) if control is None else control.hear,
        labels_origin="" if control is None else control.labels_origin,
        stage=context.telemetry.stage,
        lanes=context.lanes,
        rates=context.rates.current,
        withheld=withheld_of(settings, lane, context.manifest.round),
    )
    context.opened.append(opened)
    opened.start(context.manifest.round)
    if context.replaying is None and not context.manifest.round:
        context.telemetry.left_out(
            getattr(reader, "in_history", {}), context.manifest.until_us or 0
        )
    if lane == 0 and context.replaying is None and getattr(reader, "spread", False):
        context.telemetry.say(
            f"repeats are found within a lane, of which there are {settings.lanes} (partition p is"
            f" in lane p % {settings.lanes}): an event sent again without its key, to a partition"
            " of another, is a new event. Give messages a key, or begin with lanes = 1"
        )
    finished = getattr(reader, "finished", "") if opened.pending is None else ""
    if context.manifest.round and finished:
        context.telemetry.say(f"already finished: {finished}; give another state_dir to begin anew")
    context.lanes.cut(lane, opened.round)
    return opened


def open_journal(context: Context, lane: int) -> RoundJournal:
    """A lane's journal: in the state folder, or in `journal_topic` with a copy there."""
    settings = context.settings

    def on_disk() -> LaneJournal:
        return LaneJournal(
            journal_folder(settings.state_dir, lane),
            settings.journal_segment_bytes,
            settings.journal_bytes_max,
            lambda: oldest_round(settings.state_dir),
            lambda: _replayed_from(settings),
            synced=settings.journal_topic is None,
            fence=context.fence,
        )

    if settings.journal_topic is None:
        return on_disk()
    from dataflows.state.journal_topic import TopicJournal

    return TopicJournal(settings, lane, context.manifest.token, on_disk, context.stop)


def withheld_of(settings: Settings, lane: int, after_round: int) -> dict[int, list[dict[str, Any]]]:
    """Round -> notes on the lane's events that made a step raise."""
    found: dict[int, list[dict[str, Any]]] = {}
    for note in read_notes(journal_folder(settings.state_dir, lane) / POISON_FILE, after_round):
        found.setdefault(note["round"], []).append(note)
    return found


def _base_of_start(settings: Settings, cat: Catalog, manifest: Manifest) -> None:
    """Keep what the flow starts from, so that its first rounds can be replayed too: where nothing
    is kept, and where the rounds before were computed otherwise, by other settings or features."""
    state_dir = settings.state_dir
    if not settings.retention_h:
        return
    if base_states(state_dir):
        before = [s for s in segments_of(digests_folder(state_dir)) if s.round <= manifest.round]
        if not before:
            return
        then, now = before[-1].header, recorded(settings)
        if then["catalog"] == cat.version and all(
            then["settings"].get(name, now[name]) == now[name] for name in SHAPING
        ):
            return
    cut = last_cut(journal_folder(state_dir, 0), manifest.round)
    at_us = (manifest.until_us or 0) if cut is None else cut.cut_time_us
    keep_base(state_dir, manifest, at_us, 0.0, settings.retention_h)


def _replayed_from(settings: Settings) -> int:
    """The round after which the oldest replay begins; 0 where nothing is kept for replays, so that
    the journal is as long as journal_bytes_max."""
    held = held_rounds(settings.state_dir) if settings.retention_h else []
    return min(held, default=0)


def _open_control(context: Context) -> WithLabels:
    """Where control records and labels come from."""
    settings = context.settings
    names = Names.of(context.scorer.voting, (*context.scorer.detectors, *context.scorer.fallbacks))
    reader: ControlReader
    if settings.control_topic is not None:
        from dataflows.control.topic import ControlTopic

        reader = ControlTopic(settings, names)
    else:
        path = settings.control_file or settings.state_dir / "control.jsonl"
        reader = ControlFile(path, names)
    # Where nothing is live nobody waits for the first round, and the run may be over soon.
    start_s = START_S if settings.source == "kafka" else FETCH_S
    records = WithBundles(
        reader, context.shelf, context.telemetry.say, in_cluster(), start_s, lambda: context.stop()
    )
    return WithLabels(records, open_labels(settings))
