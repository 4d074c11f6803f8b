"""Asks the detectors of a round, and goes on without those that raise or take too long.

A detector is code of others: it may raise on one event in a million, or hang. Then the rows it
failed on have no vote of it, the others vote on, the alert says whose vote is missing and why, and
the verdict is noted beside the lane's journal before it is used: a restart and a replay do without
the same votes, whatever the detector would answer by then.

One that is asked elsewhere (`models.detectors.remote`) is asked once: what it answered is kept
beside the journal too, before it is used, and a restart and a replay take it from there.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataflows.alerts.base import printable
from dataflows.sources.rounds import journal_folder
from dataflows.state.answers import Answer, AnswerLog, Whose
from dataflows.state.notes import RoundNotes, read_notes
from features.batch import FeatureMatrix, Float64
from features.errors import AnswerError, ShapeError
from models.base import ScoreMatrix
from models.scoring import Raw, Scorer, Stages, take_rows

__all__ = ["MISSED_FILE", "Ballots", "Missed"]

MISSED_FILE = "missed.log"
"""Notes of missing votes, in the folder of a lane's journal."""

SCORING_THREADS = 2
"""Event types scored at once. Chosen: payments are half of the work, the other types the rest."""

TRIES_MAX = 128
"""Most calls by which the rows are found on which a detector raises; what is still unknown then has
no vote. Chosen: four such rows among 5,000 are found, and a detector that always raises costs
milliseconds."""

LOOK_S, LOOKS_MIN = 0.1, 10
"""Longest look at whether a detector has answered, and how many of them a wait has at least.
Chosen: an answer wakes who waits, so that a look costs something only where one is slow."""

SAID_MAX = 20
"""Most sentences about failing detectors; all votes that are missing are counted. Chosen."""

NOT_KEPT = "its answer was not kept"
"""Why a vote is missing in a replay of a round in which nobody was asked elsewhere."""

REASON_CHARS_MAX = 200
"""Longest reason; chosen: a line."""

Rows = npt.NDArray[np.intp]

_Round = tuple[int, str, str]
"""Round, event type, bundle. Notes have an empty one for that of the settings, answers its id."""


def _named(detector: str, bundle: str) -> str:
    """A detector as it is called here: of another bundle than that of the settings, with its id."""
    return f"{detector}@{bundle}" if bundle else detector


@dataclass(frozen=True, slots=True)
class Missed:
    """Votes of one detector that are missing in a lane's round.

    Parameters
    ----------
    rows : intp (m,), rows of the batch, sorted; None for all that it was asked about
    why : a few words
    noted : whether it stands beside the journal already
    """

    rows: Rows | None
    why: str
    noted: bool = False

    def of(self, row: int) -> str:
        """Why the vote on a row is missing; empty where it is not."""
        if self.rows is None:
            return self.why
        at = int(np.searchsorted(self.rows, row))
        return self.why if at < len(self.rows) and self.rows[at] == row else ""


@dataclass(slots=True)
class _Task:
    """One event type of a round, being scored by a thread."""

    event_type: str
    known: dict[str, Missed]
    hung: Callable[[str], str]
    bundle: str = ""
    far: frozenset[str] = frozenset()
    """Detectors that are asked elsewhere."""
    kept: Callable[[str], Answer | None] = lambda _: None
    """What such a one answered when the round was scored before."""
    asks_far: bool = True
    """Whether they are asked where nothing is kept: not in a replay."""
    answers: dict[str, Answer] = field(default_factory=dict)
    """What they have answered now."""
    missed: dict[str, Missed] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    at: tuple[str, float] | None = None
    abandoned: bool = False

    def ask(self, name: str, raw: Raw, features: FeatureMatrix, rows: Rows) -> Float64:
        """Raw numbers of a detector, NaN where its vote is missing; see `models.scoring.Ask`."""
        if self.abandoned:
            raise _Abandoned
        self.asked.add(name)
        out = np.full(len(features), np.nan)
        known = self.known.get(name)
        if name in self.far and known is None:
            kept = self.kept(name)
            if kept is not None and np.array_equal(kept.rows, rows):
                return kept.values
            if not self.asks_far:
                self.missed[name] = Missed(None, NOT_KEPT)
                return out
        why = "" if known is not None else self.hung(name)
        if why:
            self.missed[name] = Missed(None, why)
        if why or (known is not None and known.rows is None):
            return out
        left = np.arange(len(features))
        if known is not None and known.rows is not None:
            left = np.flatnonzero(~np.isin(rows, known.rows))
        whole = len(left) == len(features)
        self.at = name, time.monotonic()
        failed, why = _tried(raw, features if whole else take_rows(features, left), left, out)
        self.at = None
        if self.abandoned:
            raise _Abandoned
        if len(failed):
            failed = rows[failed]
            if known is not None and known.rows is not None:
                failed = np.union1d(failed, known.rows)
            self.missed[name] = Missed(failed, why)
        elif name in self.far and known is None:
            self.answers[name] = Answer(rows, out)
        return out


@dataclass(slots=True)
class _Recalled:
    """What was answered elsewhere about one event type of a round: kept before, or just now.

    Parameters
    ----------
    log : of the lane
    whose : round, event type, bundle; always by its id: that of the settings may be another one
        after a restart
    fresh : detector -> what it answered now, which is not kept yet
    """

    log: AnswerLog
    whose: _Round
    fresh: dict[str, Answer] = field(default_factory=dict)
    kept: dict[str, Answer | None] = field(default_factory=dict)

    def __call__(self, detector: str) -> Answer | None:
        """A detector's answer; None where there is none yet."""
        if detector in self.fresh:
            return self.fresh[detector]
        if detector not in self.kept:
            self.kept[detector] = self.log.take((*self.whose, detector))
        return self.kept[detector]


class _Abandoned(Exception):
    """Ends a thread whose result nobody waits for any more."""


class Ballots:
    """The detectors of one process, each asked under guard.

    Parameters
    ----------
    state_dir : holds the journals, beside which missing votes are noted
    after_round : gives the manifest's round, once there is one; what was noted of later rounds
        holds again
    patience_s : longest wait for a detector's answer; 0 waits for ever
    say : takes a sentence when a detector begins to fail
    replaying : a replay does without the votes that were missing then, and notes nothing
    fence : called before a note is written; raises where another flow has the folder now
    until_round : the last round that is scored; None: there is no end
    """

    def __init__(
        self,
        state_dir: Path,
        after_round: Callable[[], int],
        patience_s: float,
        say: Callable[[str], None],
        replaying: bool = False,
        fence: Callable[[], None] = lambda: None,
        until_round: int | None = None,
    ) -> None:
        self._until_round = until_round
        self._replaying, self._fence = replaying, fence
        self._state_dir, self._after_round = state_dir, after_round
        self._patience_s, self._say = 0.0 if replaying else patience_s, say
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = 0
        self._notes: dict[int, RoundNotes] = {}
        self._known: dict[int, dict[_Round, dict[str, Missed]]] = {}
        self._answers: dict[int, AnswerLog] = {}
        self._stuck: dict[tuple[str, str], tuple[_Task, int]] = {}
        self._failing: set[tuple[str, str]] = set()
        self._said = 0
        self.missed: dict[str, int] = {}
        """Detector -> votes that were missing."""

    def scored(
        self,
        scorer: Scorer,
        lane: int,
        round_: int,
        features: Mapping[str, FeatureMatrix],
        stages: Stages,
        bundle: str = "",
    ) -> dict[str, tuple[ScoreMatrix, dict[str, Missed]]]:
        """Scores of a lane's round by event type, and whose votes are missing.

        The kernels hold no lock: event types are scored side by side, and taken in their order.

        Parameters
        ----------
        bundle : whose models the scorer has; empty for those of the settings

        Raises
        ------
        StateError : a missing vote could not be noted
        """
        known = self._open(lane)
        answers: dict[Whose, tuple[Answer, int]] = {}
        begun: dict[str, tuple[_Task, Future[ScoreMatrix]]] = {}
        recalled = {
            name: _Recalled(self._answers[lane], (round_, name, scorer.bundle.id))
            for name in features
        }
        for name, matrix in features.items():
            noted = known.pop((round_, name, bundle), {})
            kept = recalled[name]
            begun[name] = self._begin(scorer, name, matrix, stages, noted, bundle, kept)
        found = {}
        for name, (task, future) in begun.items():
            kept, scores = recalled[name], None
            while scores is None:
                scores = self._waited(task, future)
                kept.fresh |= task.answers
                if scores is None:
                    given_up = self._give_up(task, round_)
                    task, future = self._begin(
                        scorer, name, features[name], stages, given_up, bundle, kept
                    )
            self._note(lane, round_, task, len(features[name]))
            for detector, answer in kept.fresh.items():
                whose = round_, name, scorer.bundle.id, detector
                answers[whose] = answer, len(features[name])
            found[name] = scores, task.known | task.missed
        if answers:
            self._fence()
            self._answers[lane].append(answers)
        return found

    def noted(self, lane: int) -> frozenset[int]:
        """Rounds of a lane, still to be scored, of which missing votes are noted."""
        return frozenset(round_ for round_, _, _ in self._open(lane))

    def plainly(
        self, scorer: Scorer, features: FeatureMatrix, stages: Stages, bundle: str = ""
    ) -> ScoreMatrix:
        """Scores of rows that are only compared; what a detector raises on has none of it."""
        event = features.event_type
        far = scorer.far(event)
        # Nobody is asked elsewhere about rows that are only compared: a replay could not.
        hung = lambda name: self._hung(event, _named(name, bundle))  # noqa: E731
        task = _Task(event, {}, hung, bundle, far, asks_far=False)
        return scorer.score(features, stages, ask=task.ask)

    def close(self) -> None:
        """Send the threads home; one that hangs is left behind."""
        for _ in range(self._threads):
            self._tasks.put(None)
        self._threads = 0
        for notes in self._notes.values():
            notes.close()
        for log in self._answers.values():
            log.close()

    # -- threads ----------------------------------------------------------------------------------

    def _begin(
        self,
        scorer: Scorer,
        name: str,
        features: FeatureMatrix,
        stages: Stages,
        known: dict[str, Missed],
        bundle: str,
        kept: Callable[[str], Answer | None],
    ) -> tuple[_Task, Future[ScoreMatrix]]:
        """Have an event type scored by a thread."""
        hung = lambda detector: self._hung(name, _named(detector, bundle))  # noqa: E731
        task = _Task(name, known, hung, bundle, scorer.far(name), kept, not self._replaying)
        future: Future[ScoreMatrix] = Future()

        def work() -> None:
            try:
                future.set_result(scorer.score(features, stages, ask=task.ask))
            except BaseException as error:
                future.set_exception(error)

        while self._threads < SCORING_THREADS:
            self._threads += 1
            # Of our own: those of an executor are waited for at the end, also one that hangs.
            threading.Thread(target=self._work, name="waxwing-score", daemon=True).start()
        self._tasks.put(work)
        return task, future

    def _work(self) -> None:
        """What a thread does until it is sent home."""
        while (task := self._tasks.get()) is not None:
            task()

    def _waited(self, task: _Task, future: Future[ScoreMatrix]) -> ScoreMatrix | None:
        """The scores, once they are there; None where a detector has taken too long.

        Waited is in short looks, of which each counts for no more than twice its length: time in
        which this process did not run, its machine being held or overcome with work, is not held
        against a detector.
        """
        look_s = min(LOOK_S, self._patience_s / LOOKS_MIN)
        at, waited_s, before = task.at, 0.0, time.monotonic()
        while self._patience_s:
            try:
                return future.result(look_s)
            except TimeoutError:
                if future.done():
                    return future.result()
            now = time.monotonic()
            if task.at is None or task.at is not at:
                at, waited_s = task.at, 0.0
            else:
                waited_s += min(now - before, 2.0 * look_s)
            if waited_s >= self._patience_s and not future.done():
                return None
            before = now
        return future.result()

    def _give_up(self, task: _Task, round_: int) -> dict[str, Missed]:
        """Let go of a thread that hangs in a detector; whose votes the next one does without."""
        at, task.abandoned = task.at, True
        self._threads -= 1  # another takes its place; should it come back, there is one more
        if at is None:  # it came back at this very moment
            return task.known
        self._stuck[task.event_type, _named(at[0], task.bundle)] = task, round_
        why = f"no answer within {self._patience_s:g} s"
        return task.known | task.missed | {at[0]: Missed(None, why)}

    def _hung(self, event_type: str, detector: str) -> str:
        """Why a detector is not asked now; empty where it is."""
        stuck = self._stuck.get((event_type, detector))
        if stuck is None:
            return ""
        task, round_ = stuck
        if task.at is None:
            del self._stuck[event_type, detector]
            return ""
        return f"no answer since round {round_}"

    # -- notes ------------------------------------------------------------------------------------

    def _open(self, lane: int) -> dict[_Round, dict[str, Missed]]:
        """What is noted of a lane's rounds since the manifest, read once."""
        if lane not in self._known:
            folder = journal_folder(self._state_dir, lane)
            self._answers[lane] = AnswerLog(folder, self._after_round(), self._until_round)
            path = folder / MISSED_FILE
            self._notes[lane] = RoundNotes(path)
            known: dict[_Round, dict[str, Missed]] = {}
            for note in read_notes(path, self._after_round()):
                rows = None if note["rows"] is None else np.array(note["rows"], np.intp)
                if rows is not None and note.get("span"):
                    rows = np.arange(rows[0], rows[1])
                whose = note["round"], note["event_type"], note.get("bundle", "")
                votes = known.setdefault(whose, {})
                votes[note["detector"]] = Missed(rows, note["why"], noted=True)
            self._known[lane] = known
        return self._known[lane]

    def _note(self, lane: int, round_: int, task: _Task, rows: int) -> None:
        """Make new missing votes durable, count them, say where a detector begins to fail."""
        known = task.known | task.missed
        fresh = {name: missed for name, missed in known.items() if not missed.noted}
        if fresh and not self._replaying:
            whose = {"bundle": task.bundle} if task.bundle else {}
            self._fence()
            self._notes[lane].append([
                {"round": round_, "event_type": task.event_type, "detector": name,
                 "why": missed.why, **_rows_noted(missed.rows), **whose}
                for name, missed in sorted(fresh.items())
            ])  # fmt: skip
        named = {_named(name, task.bundle): missed for name, missed in known.items()}
        for name, missed in named.items():
            count = rows if missed.rows is None else len(missed.rows)
            self.missed[name] = self.missed.get(name, 0) + count
            new = (task.event_type, name) not in self._failing and not self._replaying
            if new and self._said < SAID_MAX:
                self._said += 1
                self._say(
                    f"detector {name!r} has no vote on {count:,} of {rows:,} {task.event_type}"
                    f" events of round {round_}: {missed.why}; the others vote on"
                )
        ours = {_named(name, task.bundle) for name in task.asked}
        self._failing -= {(task.event_type, name) for name in ours}
        self._failing |= {(task.event_type, name) for name in named}


def _rows_noted(rows: Rows | None) -> dict[str, Any]:
    """Rows as a note has them: where they follow each other, as most do of a model that gives no
    answer at all, the first and the one after the last."""
    if rows is None or len(rows) < 3 or rows[-1] - rows[0] + 1 != len(rows):
        return {"rows": None if rows is None else rows.tolist()}
    return {"rows": [int(rows[0]), int(rows[-1]) + 1], "span": True}


def _tried(raw: Raw, features: FeatureMatrix, at: Rows, out: Float64) -> tuple[Rows, str]:
    """Ask about rows, and about ever fewer of them where it raises.

    Parameters
    ----------
    features : (n,) rows
    at : intp (n,), their places in `out`
    out : float64, takes the answers

    Returns
    -------
    intp (m,), places without an answer, sorted; and why
    """
    failed: list[Rows] = []
    why, tries = "", 0
    parts = [np.arange(len(features))]
    while parts:
        part = parts.pop()
        if tries >= TRIES_MAX:
            failed.append(part)
            continue
        tries += 1
        try:
            whole = len(part) == len(features)
            answer = np.asarray(raw(features if whole else take_rows(features, part)), np.float64)
            if answer.shape != part.shape:
                raise ShapeError(f"{answer.shape} numbers for {len(part)} rows")
            out[at[part]] = answer
        except AnswerError as error:
            # About no row: asking for fewer would only ask more often.
            why = why or str(error)
            failed.append(part)
        except Exception as error:  # whatever a detector may raise
            why = why or f"{type(error).__name__}: {error}"
            if len(part) > 1:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
            else:
                failed.append(part)
    if not failed:
        return np.zeros(0, np.intp), ""
    return np.sort(at[np.concatenate(failed)]), printable(" ".join(why.split()))[:REASON_CHARS_MAX]
