"""Records on bundles wait beside the control lane until their bundle can score.

A bundle is copied, checked and loaded while rounds go on; its record is passed to the lane once it
can be in force at once, or as refused where it cannot. Later records on bundles, and rollbacks that
could mean one that waits, keep their order behind it; all others pass. What waits is part of the
position, so that a restart asks again. Only at the start of a flow the rounds wait too, for a
bounded time: what was asked for before it is in force from its first round on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

from dataflows.addresses import masked
from dataflows.control.records import ControlReader, Fault
from dataflows.shelf import Shelf
from features.errors import WaxwingError

__all__ = ["START_S", "WithBundles"]

WAITING_MAX = 64
"""Most records that wait for bundles; more are refused. Chosen: each is one that a person asked
for."""

OTHERS_S = 1.0
"""How long the other processes of a cluster have for what this one has just loaded, beside as long
as it took here. Chosen: they look four times a second; one that is later loads when it must score,
and its round waits."""


START_S = 10.0
"""How long the first round of a live source waits for bundles that were asked for before. Chosen:
one on this machine comes in a second or two, and events must not wait long for one that does not;
`dataflows.fetching.FETCH_S` holds where nothing is live."""

_LOOK_S = 0.05
"""Between two looks at them. Chosen: little beside a round."""


class WithBundles:
    """A control reader whose records on bundles come when they can be in force.

    Parameters
    ----------
    reader : gives the records
    shelf : fetches bundles
    say : takes a sentence about one that is refused
    others : whether other processes score too
    start_s : how long the first `take` waits for bundles
    stop : whether the flow is to end, so that it waits no longer
    """

    def __init__(
        self,
        reader: ControlReader,
        shelf: Shelf,
        say: Callable[[str], None],
        others: bool,
        start_s: float = 0.0,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.origin = reader.origin
        self._reader, self._shelf, self._say = reader, shelf, say
        self._others = others
        self._start_s, self._stop = start_s, stop
        self._waiting: list[dict[str, Any]] = []
        self._coming: dict[str, tuple[Future[None], float]] = {}
        self._ready: dict[str, float] = {}

    @property
    def position(self) -> Any:
        """That of the reader, and what waits."""
        at = self._reader.position
        return {"reader": at, "waiting": list(self._waiting)} if self._waiting else at

    def seek(self, position: Any) -> None:
        """Stand at a journaled position."""
        self._waiting, self._coming, self._ready = [], {}, {}
        if isinstance(position, dict) and "waiting" in position:
            self._waiting = list(position["waiting"])
            position = position["reader"]
        self._reader.seek(position)

    def open(self) -> None:
        """Open the reader."""
        self._reader.open()

    def close(self) -> None:
        """Close the reader, and say what still waits; the shelf is its owner's to close."""
        for bundle in dict.fromkeys(record.get("bundle") for record in self._waiting):
            count = sum(record.get("bundle") == bundle for record in self._waiting)
            what = "for a rollback" if bundle is None else f"for bundle {bundle}"
            self._say(
                f"{count} control record{'s'[: count != 1]} {what} had to wait until the flow ended"
                " and came into force in no round; the next start that cuts rounds hears of it"
            )
        self._reader.close()

    def take(self) -> tuple[list[dict[str, Any]], list[Fault]]:
        """Records that can be in force now, and what is refused."""
        records, faults = self._reader.take()
        passed: list[dict[str, Any]] = []
        for record in records:
            if not self._waits(record):
                self._pass(record, passed, faults)
            elif len(self._waiting) < WAITING_MAX:
                self._waiting.append(record)
            else:
                faults.append(self._refused(record, f"{WAITING_MAX} records wait for bundles"))
        if self._waiting:
            self._settle(passed, faults)
        start_s, self._start_s = self._start_s, 0.0
        if self._waiting and start_s:
            self._await(start_s, passed, faults)
        return passed, faults

    def _await(self, start_s: float, passed: list[dict[str, Any]], faults: list[Fault]) -> None:
        """Hold up the first round for what was asked for before it, and say so."""
        of = dict.fromkeys(r["bundle"] for r in self._waiting if r.get("bundle"))
        names = f"bundle{'s'[: len(of) != 1]} {', '.join(of)}"
        self._say(
            f"{len(self._waiting)} control record{'s'[: len(self._waiting) != 1]} of before this"
            f" start want {names}: the first round waits until it can score, at most {start_s:g} s"
        )
        give_up = time.monotonic() + start_s
        while self._waiting and time.monotonic() < give_up and not self._stop():
            coming = [future for future, _ in self._coming.values() if not future.done()]
            if coming:
                wait(coming, _LOOK_S)
            else:  # it is loaded, and other processes have a moment to load it too
                time.sleep(_LOOK_S)
            self._settle(passed, faults)
        if self._waiting and not self._stop():
            self._say(
                f"{names} did not come within {start_s:g} s: the flow goes on without, and hears of"
                " it when it can score"
            )

    def _waits(self, record: Mapping[str, Any]) -> bool:
        """Whether a record waits for a bundle, or behind one that does: their order counts."""
        if record["kind"] not in ("bundle", "rollback"):
            return False
        if record["kind"] == "bundle":
            return bool(self._waiting) or not self._shelf.knows(record["bundle"])
        # A bundle that scores is rolled back at once, whatever other comes meanwhile.
        bundle = record.get("bundle")
        return any(bundle in (None, waiting.get("bundle")) for waiting in self._waiting)

    def _settle(self, passed: list[dict[str, Any]], faults: list[Fault]) -> None:
        """Pass on or refuse, one after another, what has waited and is settled now."""
        for record in self._waiting:
            if record["kind"] == "bundle" and record["bundle"] not in self._coming:
                bundle = record["bundle"]
                if not self._shelf.knows(bundle):
                    future = self._shelf.fetch(bundle, record.get("path"))
                    self._coming[bundle] = future, time.monotonic()
        while self._waiting:
            bundle = self._waiting[0].get("bundle")
            if bundle in self._coming:
                future, begun = self._coming[bundle]
                if not future.done():
                    break
                error = future.exception()
                if error is not None:
                    self._refuse_all(bundle, error, faults)
                    continue
                now = time.monotonic()
                wait_s = OTHERS_S + (now - begun) if self._others else 0.0
                if now < self._ready.setdefault(bundle, now + wait_s):
                    break
                del self._coming[bundle], self._ready[bundle]
            self._pass(self._waiting.pop(0), passed, faults)

    def _pass(
        self, record: dict[str, Any], passed: list[dict[str, Any]], faults: list[Fault]
    ) -> None:
        """Pass a record on, or refuse it where other rules are meant than its bundle votes by."""
        why = None
        if "path" in record:  # the shelf has what it names; an address may hold a signature
            record = record | {"path": masked(record["path"])}
        if record["kind"] == "bundle" and "rules" in record:
            why = self._shelf.rules_fault(record["bundle"], record["rules"], record.get("path"))
        if why is None:
            passed.append(record)
        else:
            faults.append(self._refused(record, why))

    def _refuse_all(self, bundle: str, error: BaseException, faults: list[Fault]) -> None:
        """Refuse every record on a bundle, whatever it has raised.

        Raised here, it would end every start that asks again.
        """
        why = str(error)
        if not isinstance(error, WaxwingError):
            why = f"bundle {bundle} cannot be used ({type(error).__name__}: {error})"
        mine = [record for record in self._waiting if record.get("bundle") == bundle]
        faults += [self._refused(record, why) for record in mine]
        self._waiting = [record for record in self._waiting if record.get("bundle") != bundle]
        del self._coming[bundle]

    def _refused(self, record: dict[str, Any], why: str) -> Fault:
        """A record that cannot be in force, said aloud."""
        why = masked(why)
        self._say(f"control record {record['kind']} refused: {why}; what scores goes on")
        return Fault(
            0, masked(json.dumps(record)).encode(), f"control record {record['kind']}: {why}"
        )
