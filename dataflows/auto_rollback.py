"""Rolls a bundle back by itself where it alerts too much, loses votes or takes too long.

The commit step shows it every round. What it decides is a control record like a person's: written
where those are, journaled by the lane that reads them, and in force from that round on. A replay
finds it there and decides nothing. What it has to know after a restart is in the manifest.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dataflows.control.records import Control
from dataflows.control.writing import write_record
from dataflows.opinions import Beside
from features.errors import WaxwingError

if TYPE_CHECKING:
    from dataflows.score import RoundOut
    from dataflows.settings import Settings

__all__ = ["AutoRollback"]

ALERTS_MIN = 20
"""Fewest alerts by which a bundle is judged. Chosen: ten times the usual of less is chance."""

ROWS_MIN = 1_000
"""Fewest rows by which missing votes are judged. Chosen: a second of a small flow."""

SLOW_ROUNDS = 20
"""Rounds over which the time of scoring is averaged. Chosen: two seconds, longer than a pause."""

SLOW_TIMES = 3.0
"""How much longer than usual the scores of an event take where a bundle is to blame. Chosen: rounds
of a backlog, or a busy machine, make all bundles take long; what runs beside it may double it."""

ROUNDS_KEPT_MAX = 36_000
"""Most rounds of which the usual is remembered; chosen: an hour."""

AGAIN_S = 30.0
"""Wait (cut time) before a record that could not be written is tried again. Chosen: a broker that
does not answer is asked once in a while, and a bad bundle is live no longer than that once it does.
"""


@dataclass(slots=True)
class _Watched:
    """What a bundle did since it has its stage."""

    stage: str
    since_us: int
    flagged: int = 0
    rows: int = 0
    missed: int = 0
    live_flagged: int = 0
    rounds: deque[tuple[Beside, Beside]] = field(default_factory=lambda: deque(maxlen=SLOW_ROUNDS))
    """What it made of the last ones, and what the live bundle did."""


@dataclass(slots=True)
class _Asked:
    """A rollback that was asked for, at a cut time."""

    at_us: int
    failed: bool = False

    def holds(self, now_us: int) -> bool:
        """Whether nothing more is to be asked."""
        return not self.failed or now_us < self.at_us + AGAIN_S * 1e6


class AutoRollback:
    """See the module.

    Parameters
    ----------
    settings : the limits, and where control records are written
    say : takes a sentence
    kept : of the manifest that the flow goes on from, as `kept` gave it
    control : what was in force then
    fence : called before a record is written; raises where another flow has the folder now
    """

    def __init__(
        self,
        settings: Settings,
        say: Callable[[str], None],
        kept: Mapping[str, Any] | None = None,
        control: Control | None = None,
        fence: Callable[[], None] = lambda: None,
    ) -> None:
        kept = kept or {}
        self._settings, self._say, self._fence = settings, say, fence
        self._watched: dict[str, _Watched] = {}
        self._usual: deque[tuple[int, Beside]] = deque(maxlen=ROUNDS_KEPT_MAX)
        self._usual_rate: float | None = kept.get("usual_rate")
        self._usual_ms: float | None = kept.get("usual_ms")
        """Alerts, and milliseconds of scoring, an event, before the live bundle was."""
        self._live: str | None = kept.get("live")
        self._settled: str | None = kept.get("settled")
        """Live by a rollback, or since nobody knows when: it is not newly promoted."""
        self._control = control
        self._asked: dict[str, _Asked] = {}

    def look(self, cut_time_us: int, outs: Sequence[RoundOut]) -> None:
        """Take in a round of all lanes, and ask for a rollback where one is due."""
        bundles: dict[str, Beside] = {}
        for out in outs:
            for one in out.beside:
                bundles[one.bundle] = bundles[one.bundle] + one if one.bundle in bundles else one
        if not bundles:
            return
        live = next(one for one in bundles.values() if one.stage == "live")
        control, before = outs[0].control, self._control
        self._control = control
        if live.bundle != self._live:
            rolled_back = before is not None and _is_rollback(before, control)
            self._changed(live.bundle, rolled_back, _promoted_us(control, live.bundle))
        self._asked = {k: v for k, v in self._asked.items() if k in bundles}
        self._watched = {k: v for k, v in self._watched.items() if k in bundles}
        for name, one in bundles.items():
            watched = self._watched.get(name)
            if watched is None or watched.stage != one.stage:
                promoted_us = _promoted_us(control, name) if one.stage == "live" else None
                watched = _Watched(one.stage, cut_time_us if promoted_us is None else promoted_us)
                self._watched[name] = watched
                self._asked.pop(name, None)
            watched.flagged += one.flagged
            watched.rows += one.rows
            watched.missed += one.missed
            watched.live_flagged += live.flagged
            watched.rounds.append((one, live))
            if name in control.bundles and not any(out.replayed for out in outs):
                self._judge(name, watched, cut_time_us)
        watch_us = round(self._settings.rollback_watch_s * 1e6)
        self._usual.append((cut_time_us, live))
        while self._usual[0][0] < cut_time_us - watch_us:
            self._usual.popleft()

    def kept(self) -> dict[str, Any]:
        """What the manifest holds."""
        return {
            "live": self._live,
            "settled": self._settled,
            "usual_rate": self._usual_rate,
            "usual_ms": self._usual_ms,
        }

    def _changed(self, live: str, rolled_back: bool, promoted_us: int | None) -> None:
        """Another bundle is live: what the one before did is the usual."""
        rows = sum(one.rows for _, one in self._usual)
        if self._live is not None and rows:
            self._usual_rate = (sum(one.flagged for _, one in self._usual) + 1) / rows
            self._usual_ms = _ms_a_row(one for _, one in self._usual)
        unknown = self._live is None and promoted_us is None
        self._settled = live if unknown or rolled_back else None
        self._live = live
        self._usual.clear()

    def _judge(self, name: str, watched: _Watched, now_us: int) -> None:
        """Ask for a rollback of a bundle where a limit is passed, until it is written."""
        passed_us = now_us - watched.since_us
        settled = name == self._settled or passed_us > self._settings.rollback_watch_s * 1e6
        before = self._asked.get(name)
        if (watched.stage == "live" and settled) or (before and before.holds(now_us)):
            return
        why = self._too_many(watched) or self._too_silent(watched) or self._too_slow(watched)
        if not why:
            return
        asked = self._asked[name] = _Asked(now_us)
        record = {
            "kind": "rollback",
            "bundle": name,
            "off": True,
            "id": uuid.uuid4().hex,
            "by": "waxwing",
            "why": why,
        }
        self._say(f"bundle {name} ({watched.stage}) is rolled back: {why}")
        threading.Thread(target=self._ask, args=(record, asked), name="waxwing-rollback").start()

    def _ask(self, record: dict[str, Any], asked: _Asked) -> None:
        """Write the record; a broker may let one wait."""
        try:
            self._fence()
            write_record(self._settings, record)
        except WaxwingError as error:
            self._say(
                f"bundle {record['bundle']} is NOT rolled back: {error}; it is tried again after"
                f" {AGAIN_S:g} s, or do it with `waxwing model rollback`"
            )
            asked.failed = True

    def _too_many(self, watched: _Watched) -> str:
        """What is said of its alerts; empty where there are no more than may be."""
        times, usual = self._settings.rollback_alerts_ratio_max, self._usual_alerts(watched)
        if not times or usual is None or watched.flagged < max(ALERTS_MIN, times * usual):
            return ""
        return (
            f"{watched.flagged:,} alerts on {watched.rows:,} events, where {usual:,.1f} are usual"
            f" (rollback_alerts_ratio_max = {times:g})"
        )

    def _too_silent(self, watched: _Watched) -> str:
        """What is said of its missing votes; a shadow's are nobody's loss."""
        limit = self._settings.rollback_missed_share
        if not limit or watched.stage == "shadow" or watched.rows < ROWS_MIN:
            return ""
        if watched.missed <= limit * watched.rows:
            return ""
        return (
            f"{watched.missed:,} votes missing on {watched.rows:,} events"
            f" (rollback_missed_share = {limit:g})"
        )

    def _too_slow(self, watched: _Watched) -> str:
        """What is said of the time it takes."""
        limit, rounds = self._settings.rollback_score_ms, len(watched.rounds)
        taken_ms = sum(one.score_ms for one, _ in watched.rounds) / rounds
        if not limit or rounds < SLOW_ROUNDS or taken_ms <= limit:
            return ""
        mine = _ms_a_row(one for one, _ in watched.rounds)
        usual = self._usual_ms
        if watched.stage != "live":
            usual = _ms_a_row(live for _, live in watched.rounds)
        if not mine or not usual or mine <= SLOW_TIMES * usual:
            return ""
        return (
            f"its scores take {taken_ms:,.0f} ms a round (rollback_score_ms = {limit:g}), and an"
            f" event {mine / usual:,.1f} times as long as usual"
        )

    def _usual_alerts(self, watched: _Watched) -> float | None:
        """Alerts that as many rows usually have; None where that is not known or not asked."""
        if watched.stage == "canary":
            # On all rows: those that it does not decide on are scored all the same.
            return float(watched.live_flagged + 1)
        if watched.stage == "live" and self._usual_rate is not None:
            return self._usual_rate * watched.rows
        return None


def _ms_a_row(rounds: Iterable[Beside]) -> float | None:
    """Milliseconds of scoring an event; None where there was none."""
    told = [(one.score_ms, one.rows) for one in rounds]
    rows = sum(n for _, n in told)
    return sum(ms for ms, _ in told) / rows if rows else None


def _promoted_us(control: Control, bundle: str) -> int | None:
    """Cut time of the round in which a bundle got its stage; None where that is not known."""
    told = (r for r in control.noted() if r["kind"] == "bundle" and r["bundle"] == bundle)
    return next((r.get("at_us") for r in told), None)


def _is_rollback(before: Control, now: Control) -> bool:
    """Whether a rollback made of the one what is in force now."""
    asks: list[dict[str, Any]] = [{}]
    asks += [{"bundle": name} | off for name in before.bundles for off in ({}, {"off": True})]
    found = (before.apply({"kind": "rollback"} | ask) for ask in asks)
    return len(now.undo) < len(before.undo) or any(
        (rolled.bundles, rolled.undo) == (now.bundles, now.undo) for rolled in found
    )
