"""Bundles beside the one that the settings name: fetched, checked and kept, and who scores when.

A bundle that a control record names is copied to `state_dir/bundles/ID` and loaded there by a
thread, so that no round waits for it and a replay finds it whatever becomes of its place. What of
them scores in a round follows from the control records in force alone (`Shelf.lineup`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dataflows.control.records import Control, Stages
from dataflows.fetching import FETCH_S, brought
from dataflows.settings import Settings
from features.catalog import Catalog
from features.errors import BundleError, ConfigError
from features.keys import UInt64
from models.bundle import Bundle, copy_bundle, kept_rules, read_head
from models.scoring import Scorer, in_canary
from models.scoring import detectors_of as asked_of

__all__ = [
    "Seat",
    "Shelf",
    "detectors_of",
    "load_scorer",
    "owners",
    "shelf_folder",
    "with_own_detectors",
]

KEPT_MAX = 16
"""Most bundles on the shelf; beyond it those that came or were asked for first are removed, but not
those in force. Chosen: months of promotions, and a replay of them."""

LOOK_S = 0.25
"""How often the processes of a cluster look for bundles that another has fetched. Chosen: well
below the second that a change may take."""

STALE_S = 3_600.0
"""Age of a half copied bundle that nobody copies any more. Chosen: the slowest takes minutes."""

HANGING_MAX = 8
"""Most threads that wait for places that do not answer; beyond it nothing is fetched until one
ends. Chosen: somebody is to look at them."""

_COMING = ".new"

_log = logging.getLogger(__name__)

_ID_CHARS = 16
"""Length of an id; what else lies on the shelf is on its way there."""


def shelf_folder(state_dir: Path) -> Path:
    """Where the copies lie."""
    return state_dir / "bundles"


@dataclass(frozen=True, slots=True)
class Seat:
    """A bundle that scores in a round.

    Parameters
    ----------
    bundle : its id
    scorer : with its models and rules
    stage : `live`, `canary` or `shadow`
    percent : of the entities, for a canary
    base : whether it is the bundle that the settings name
    """

    bundle: str
    scorer: Scorer
    stage: str
    percent: float
    base: bool

    @property
    def name(self) -> str:
        """By which notes on missing votes know it: nothing for the bundle of the settings."""
        return "" if self.base else self.bundle


def owners(lineup: tuple[Seat, ...], entity: UInt64 | None) -> npt.NDArray[np.int8] | None:
    """int8 (n,), place in the line-up of the bundle that decides on each row; None: always the
    live one.

    Parameters
    ----------
    entity : uint64 (n,), keys of the primary entities; None where there is no canary
    """
    if entity is None:
        return None
    found, taken = np.zeros(len(entity), np.int8), 0.0
    for place, seat in enumerate(lineup):
        if seat.stage == "canary":
            # Entities of its own: among those of another canary it would decide on nobody.
            found[in_canary(entity, seat.percent, taken)] = place
            taken += seat.percent
    return found


def detectors_of(bundle: Bundle, base: Scorer) -> tuple[str, ...]:
    """Detectors of a bundle that run: not those that the settings leave out of their own one."""
    left_out = set(base.bundle.detectors) - set(base.detectors)
    stand_in = {
        name
        for models in bundle.models.values()
        for name, model in models.detectors.items()
        if getattr(model, "fallback", False)
    }
    return tuple(name for name in bundle.detectors if name not in left_out | stand_in)


def with_own_detectors(settings: Settings, bundle: Bundle) -> Settings:
    """The settings with the detectors that run: those somebody has asked for, else all that the
    bundle has, in the order of the default."""
    if settings.detectors_asked is not None:
        return settings
    own, usual = asked_of(bundle, None), settings.detectors
    names = [name for name in usual if name in own] + [name for name in own if name not in usual]
    return settings.model_copy(update={"detectors": names})


def load_scorer(
    path: Path,
    cat: Catalog,
    base: Scorer,
    placed: Callable[[Bundle], Bundle] | None = None,
) -> Scorer:
    """A warm scorer with a bundle from a folder, beside the one of the settings.

    Parameters
    ----------
    placed : the bundle with the detectors that are asked elsewhere; None asks nobody

    Raises
    ------
    BundleError : it is damaged, of another catalogue or currency, or with a detector nobody knows
    """
    bundle = Bundle.load(path, cat)
    _note_edit(path)
    try:
        bundle = bundle if placed is None else placed(bundle)
    except ConfigError as error:
        raise BundleError(f"bundle {path}: {'; '.join(error.faults)}") from None
    made, wanted = (
        (b.training.get("currency") or {}).get("base", "") for b in (bundle, base.bundle)
    )
    if made != wanted:
        raise BundleError(
            f"bundle {path}: trained on amounts in {made or 'the currency they were paid in'},"
            f" the flow has them in {wanted or 'the currency they were paid in'}; train again"
            " (`waxwing train`) with currency_rates and currency_base as the flow has them"
        )
    try:
        scorer = Scorer(bundle, detectors_of(bundle, base))
    except ConfigError as error:
        raise BundleError(f"bundle {path}: {'; '.join(error.faults)}") from None
    for sentence in scorer.unheard():
        _log.warning("bundle %s: %s", path, sentence)
    scorer.warm_up()
    return scorer


def _note_edit(path: Path) -> None:
    """Say so where `voting.toml` of a copy is not what is in force."""
    kept, edited = kept_rules(path), path / "voting.toml"
    if kept is not None and kept != edited.read_bytes():
        _log.warning(
            "%s was edited and is not taken: a replay needs the rules the bundle came with, which"
            " stay in force. Change thresholds with `waxwing control threshold`; for other rules"
            " name a folder of the bundle with the setting `bundle`",
            edited,
        )


class Shelf:
    """The bundles of one process.

    Parameters
    ----------
    state_dir : holds the copies
    catalog : that they must be trained on
    base : scores with the bundle of the settings
    base_path : where that is; it is copied too where a record names it: the settings may change
    beside : one more bundle to score as a shadow in every round, for a comparison; no other is
        beside the live one then
    fixed : score with `base` alone, whatever control records say
    placed : as of `load_scorer`
    """

    def __init__(
        self,
        state_dir: Path,
        catalog: Catalog,
        base: Scorer,
        base_path: Path,
        beside: Scorer | None = None,
        fixed: bool = False,
        placed: Callable[[Bundle], Bundle] | None = None,
    ) -> None:
        self.folder = shelf_folder(state_dir)
        self._base_path = base_path
        self._catalog, self._base = catalog, base
        self._beside, self._fixed = beside, fixed
        self._placed = placed
        self._scorers: dict[str, Scorer] = {}
        self._lock = threading.RLock()
        self._asked: queue.SimpleQueue[tuple[Future[None], str, str | None] | None] | None = None
        self._count = itertools.count()
        self._closed = threading.Event()
        self._last: tuple[Stages, tuple[Seat, ...]] | None = None

    # -- who scores -------------------------------------------------------------------------------

    def lineup(self, control: Control) -> tuple[Seat, ...]:
        """The bundles that score while `control` is in force, the live one first.

        One that is not loaded yet is loaded now.

        Raises
        ------
        BundleError : one is gone from the shelf
        """
        last = self._last
        if last is not None and last[0] is control.bundles:
            return last[1]
        bundles = {} if self._fixed else control.bundles
        live = next((k for k, (stage, _) in bundles.items() if stage == "live"), None)
        seats = [self._seat(live or self._base.bundle.id, "live", 100.0)]
        if self._beside is not None:
            seats.append(Seat(self._beside.bundle.id, self._beside, "shadow", 100.0, False))
        else:
            seats += [
                self._seat(name, stage, percent)
                for name, (stage, percent) in bundles.items()
                if name != seats[0].bundle
            ]
        self._last = control.bundles, tuple(seats)
        return tuple(seats)

    def _seat(self, bundle: str, stage: str, percent: float) -> Seat:
        """A bundle in its place."""
        base = bundle == self._base.bundle.id
        return Seat(bundle, self._base if base else self.scorer(bundle), stage, percent, base)

    # -- what is there ----------------------------------------------------------------------------

    def knows(self, bundle: str) -> bool:
        """Whether a bundle can score at once, and after a restart with other settings.

        One that is asked for is the last to be removed: its record is not in force yet.
        """
        with contextlib.suppress(OSError):
            os.utime(self.folder / bundle)
        return bundle in self._scorers or (
            bundle == self._base.bundle.id and (self.folder / bundle).is_dir()
        )

    def rules_fault(self, bundle: str, rules: str, path: str | None) -> str | None:
        """Why a bundle that can score is not the one that is meant; None where it is.

        Parameters
        ----------
        rules : id of the rules it is to vote by
        path : where they were read
        """
        base = bundle == self._base.bundle.id
        found = self._base.bundle if base else self.scorer(bundle).bundle
        if found.voting.id == rules:
            return None
        cure = "start the flow again" if base else "set `bundle` to it and start the flow again"
        return (
            f"voting.toml of {path or bundle} is not what bundle {bundle} votes by here: the rules"
            " it came with stay in force, so that a replay finds them; change thresholds with"
            f" `waxwing control threshold`, or {cure}, which reads voting.toml then"
        )

    def names(self) -> list[str]:
        """Ids of all bundles there are, that of the settings first."""
        return [self._base.bundle.id, *sorted(p.name for _, p in self._copies())]

    def scorer(self, bundle: str) -> Scorer:
        """A scorer with a bundle of the shelf, loaded where it is not yet.

        Raises
        ------
        BundleError : it is not on the shelf, or damaged
        """
        found = self._scorers.get(bundle)
        if found is not None:  # without the lock: another may be loaded meanwhile
            return found
        with self._lock:
            if bundle not in self._scorers:
                if not (self.folder / bundle).is_dir():
                    raise BundleError(
                        f"bundle {bundle} is in force and gone from {self.folder}; copy it there"
                        " again (`waxwing model stage FOLDER shadow` does while the flow runs)"
                    )
                self._scorers[bundle] = load_scorer(
                    self.folder / bundle, self._catalog, self._base, self._placed
                )
            return self._scorers[bundle]

    def _copies(self) -> list[tuple[int, Path]]:
        """Folders of the bundles on the shelf and their times in ns, the oldest first."""
        found = []
        for path in self.folder.glob("*"):
            # Another process may remove one at any moment.
            with contextlib.suppress(FileNotFoundError):
                if len(path.name) == _ID_CHARS and path.is_dir():
                    found.append((path.stat().st_mtime_ns, path))
        return sorted(found)

    # -- what comes -------------------------------------------------------------------------------

    def fetch(self, bundle: str, path: str | None) -> Future[None]:
        """Have a thread copy, check and load a bundle; its result comes once it can score.

        One after another; one that takes longer than FETCH_S is given up. The threads are daemons:
        a place that does not answer holds up neither the next bundle nor the end of the process.

        Parameters
        ----------
        bundle : id that it must have
        path : where it is: folder, archive or URL; None: on the shelf

        Raises
        ------
        (the future) WaxwingError : it cannot be used, with the cure
        """
        future: Future[None] = Future()
        with self._lock:
            if self._asked is None:
                self._asked = queue.SimpleQueue()
                _daemon(self._work)
        self._asked.put((future, bundle, path))
        return future

    def _work(self) -> None:
        """Fetch what is asked for, until there is nothing more."""
        asked, hanging = self._asked, list[threading.Thread]()
        while asked is not None and (job := asked.get()) is not None:
            future, bundle, path = job
            if self._closed.is_set():
                future.cancel()
                continue
            hanging = [thread for thread in hanging if thread.is_alive()]
            if len(hanging) >= HANGING_MAX:
                future.set_exception(
                    BundleError(f"bundle {bundle}: {HANGING_MAX} others hang; start the flow again")
                )
                continue
            made: Future[None] = Future()
            thread = _daemon(partial(_settle, made, partial(self._fetch, bundle, path)))
            wait([made], FETCH_S)
            if not made.done():
                hanging.append(thread)
                made = Future()
                made.set_exception(
                    BundleError(
                        f"bundle {bundle} was not there within {FETCH_S:g} s (from"
                        f" {path or self.folder}); see that its place answers, and ask again"
                    )
                )
            _settle(future, made.result)

    def _fetch(self, bundle: str, path: str | None) -> None:
        """See `fetch`."""
        if self.knows(bundle):
            return
        place = self.folder / bundle
        if not place.is_dir():
            if path is None and bundle == self._base.bundle.id:
                path = str(self._base_path)
            if path is None:
                raise BundleError(
                    f"bundle {bundle} is not known here (known are {', '.join(self.names())});"
                    " name its folder"
                )
            self._copy(bundle, path, place)
        scorer = load_scorer(place, self._catalog, self._base, self._placed)
        with self._lock:
            self._scorers[bundle] = scorer

    def _copy(self, bundle: str, place: str, target: Path) -> None:
        """Copy a bundle to the shelf where it is whole and the one that is meant."""
        # A flow that begins again in its process may still be copying for the one before, and what
        # was given up be copying still.
        temporary = (
            self.folder / f".{bundle}.{os.getpid()}.{id(self):x}.{next(self._count)}{_COMING}"
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            (temporary / "from").mkdir(parents=True)
            path = brought(place, temporary / "from")
            found = read_head(path)["id"]
            if found != bundle:
                raise BundleError(
                    f"bundle {path} is {found}, {bundle} was asked for: it was trained again since;"
                    " ask once more"
                )
            copy_bundle(path, temporary / bundle)
            # Loaded from the copy, so that nothing that changes in between can pass.
            load_scorer(temporary / bundle, self._catalog, self._base)
            try:
                (temporary / bundle).rename(target)
            except OSError:
                if not target.is_dir():  # else another was first, with the same bundle
                    raise
        except BundleError as error:
            said = str(error).replace(str(temporary / bundle), place)
            raise BundleError(said.replace(str(temporary / "from"), place)) from None
        except OSError as error:
            raise BundleError(
                f"bundle {place} could not be copied to {self.folder}: {error.strerror}; free space"
                " or mend the disk, and ask again"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what a process that was killed has left half copied."""
        for path in self.folder.glob(f".*{_COMING}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE_S:
                    shutil.rmtree(path, ignore_errors=True)

    def forget(self, control: Control) -> None:
        """Remove the bundles that came or were asked for first where there are too many, but none
        that is in force or can be rolled back to."""
        kept = {*control.bundles, *(name for _, bundles in control.undo for name in bundles)}
        copies = [p for p in self._copies() if p[1].name not in kept]
        for time_ns, path in copies[: max(0, len(copies) - KEPT_MAX)]:
            with self._lock:
                self._scorers.pop(path.name, None)
            gone = self.folder / f".{path.name}.{os.getpid()}.{id(self):x}.gone{_COMING}"
            # Half a folder would be taken for the bundle: it has another name before it shrinks.
            with contextlib.suppress(OSError):
                if path.stat().st_mtime_ns == time_ns:  # else asked for just now
                    path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def look_out(self) -> None:
        """Load what other processes of the cluster fetch, before it is in force here."""
        known = {path.name for _, path in self._copies()}

        def look() -> None:
            while not self._closed.wait(LOOK_S):
                for _, path in self._copies():
                    if path.name not in known:
                        known.add(path.name)
                        # Whoever fetched it says what is wrong with it.
                        with contextlib.suppress(Exception):
                            self.scorer(path.name)

        threading.Thread(target=look, name="waxwing-shelf", daemon=True).start()

    def close(self) -> None:
        """Let go of the threads."""
        self._closed.set()
        if self._asked is not None:
            self._asked.put(None)


def _daemon(run: Callable[[], None]) -> threading.Thread:
    """A thread that does not hold up the end of the process."""
    thread = threading.Thread(target=run, name="waxwing-bundle", daemon=True)
    thread.start()
    return thread


def _settle(future: Future[None], run: Callable[[], None]) -> None:
    """Run and have a future say what came of it."""
    try:
        run()
    except BaseException as error:  # whoever asked for it is told
        future.set_exception(error)
    else:
        future.set_result(None)
