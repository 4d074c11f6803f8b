"""Lets rules follow live traffic where a control record asks for it, by control records.

The commit step shows it every round, whole. What it decides is a record `shift` like a person's:
written where those are, journaled by the lane that reads them, in force on all workers from that
round on. A replay finds it there and decides nothing. What it remembers is in the manifest.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dataflows.control.records import Control
from dataflows.control.writing import write_record
from features.errors import StateError, WaxwingError
from models.recalibration import Follower, Spread

if TYPE_CHECKING:
    from dataflows.score import RoundOut
    from dataflows.settings import Settings

__all__ = ["AutoRecalibration"]


WRITTEN_S = 60.0
"""Longest wait for a record that is being written. Chosen: above a broker's 15 s."""


class AutoRecalibration:
    """See the module.

    Parameters
    ----------
    settings : where control records are written
    say : takes a sentence
    kept : of the manifest that the flow goes on from, as `kept` gave it
    rule_of : anomaly type, control records in force -> its rule, as the live bundle votes by it
    fence : called before a record is written; raises where another flow has the folder now
    """

    def __init__(
        self,
        settings: Settings,
        say: Callable[[str], None],
        kept: Mapping[str, Any],
        rule_of: Callable[[str, Control], str],
        fence: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._say, self._rule_of = settings, say, rule_of
        self._fence = fence
        self._kept = dict(kept)
        self._followers: dict[str, tuple[str, Follower]] = {}
        self._writer: threading.Thread | None = None

    def look(self, cut_time_us: int, outs: Sequence[RoundOut]) -> None:
        """Take in a round of all lanes, and ask for a shift where one is due."""
        control = outs[0].control
        self._followers = {k: v for k, v in self._followers.items() if k in control.followed}
        if not control.followed:
            return
        spreads = _merged(spread for out in outs for spread in out.spreads)
        bundle = next((one.bundle for one in outs[0].beside), "")
        for name in control.followed:
            follower = self._follower(name, bundle, control)
            shift = control.shift(name, bundle)
            frozen = name in control.frozen
            before = follower.campaign
            found = follower.take(cut_time_us, spreads.get(name), shift, frozen)
            replayed = any(out.replayed for out in outs)
            if follower.campaign and not before and not replayed:
                self._say(f"{name} is not recalibrated for one alone: {follower.campaign}")
            if found is not None and not replayed:
                self._write(name, bundle, shift, found)

    def kept(self) -> dict[str, Any]:
        """What the manifest holds."""
        return {
            name: {"of": of, **follower.kept()} for name, (of, follower) in self._followers.items()
        }

    def settle(self) -> None:
        """Wait until what was asked for is written."""
        if self._writer is not None:
            self._writer.join(WRITTEN_S)

    def _follower(self, name: str, bundle: str, control: Control) -> Follower:
        """The follower of a rule; a new one where what it has learned is of another rule."""
        options = control.followed[name]
        told = [
            bundle, name, repr(options), self._rule_of(name, control),
            sorted((d, v) for (a, d), v in control.thresholds.items() if a == name),
            sorted(control.stages.items()),
        ]  # fmt: skip
        of = json.dumps(told)
        if name not in self._followers or self._followers[name][0] != of:
            kept = self._kept.pop(name, {})
            made = Follower.of(options, kept) if kept.get("of") == of else Follower(options)
            self._followers[name] = of, made
        return self._followers[name][1]

    def _write(self, name: str, bundle: str, shift: float, value: float) -> None:
        """Have a record written; a broker may let one wait. One after the other."""
        record = {
            "kind": "shift",
            "anomaly_type": name,
            "bundle": bundle,
            "value": value,
            "id": uuid.uuid4().hex,
            "by": "waxwing",
            "why": f"recalibrated: {shift:+.4f} before",
        }
        args = (record, self._writer)
        self._writer = threading.Thread(target=self._ask, args=args, name="waxwing-recalibration")
        self._writer.start()

    def _ask(self, record: dict[str, Any], before: threading.Thread | None) -> None:
        """Write a record once the one before it is."""
        try:
            if before is not None:
                before.join(WRITTEN_S)
                if before.is_alive():
                    raise StateError(f"the record before it was not written in {WRITTEN_S:g} s")
            self._fence()
            write_record(self._settings, record)
        except WaxwingError as error:
            self._say(f"{record['anomaly_type']} is NOT recalibrated: {error}")


def _merged(spreads: Any) -> dict[str, Spread]:
    """The spreads of all lanes, by anomaly type."""
    found: dict[str, Spread] = {}
    for one in spreads:
        had = found.get(one.anomaly_type)
        found[one.anomaly_type] = one if had is None else had + one
    return found
