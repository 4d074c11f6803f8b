"""Runs `waxwing ...` with one part of it broken, as a process of its own.

    python tests/flow/broken.py PART=WHAT,PART=WHAT run --set ...

The parts are the functions below. They break what the code of others may break: a detector, a step
that meets an event nobody thought of.
"""

from __future__ import annotations

import functools
import sys
import threading
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

Function = Callable[..., Any]


def _every(rows: np.ndarray[Any, Any], share: int) -> bool:
    """Whether some row is one in `share`; a function of the rows alone."""
    return any(zlib.crc32(row.tobytes()) % share == 0 for row in rows)


def detector_raises(share: str) -> None:
    """Detector zscore raises on one row in `share`."""
    from models.detectors.zscore import Model

    raw: Function = Model.raw

    @functools.wraps(raw)
    def broken(self: Any, features: Any) -> Any:
        if features.values.any() and _every(features.values, int(share)):
            raise ArithmeticError("a row that it cannot bear")
        return raw(self, features)

    Model.raw = broken  # type: ignore[method-assign]


def detector_hangs(calls: str) -> None:
    """Detector zscore never comes back from its call number `calls`."""
    from models.detectors.zscore import Model

    raw, count = Model.raw, [0]

    def broken(self: Any, features: Any) -> Any:
        count[0] += 1
        if count[0] == int(calls):
            threading.Event().wait()
        return raw(self, features)

    Model.raw = broken  # type: ignore[method-assign]


def bundle_fails(ms: str) -> None:
    """Detector zscore of a bundle of whose training it is noted `raises` does on one row in 200,
    and where it is noted `sleeps`, it takes so many ms more for every batch."""
    from models.bundle import Bundle
    from models.detectors.zscore import Model

    load, raw = Bundle.load, Model.raw
    notes: dict[int, tuple[Any, str]] = {}

    def loaded(path: Any, catalog: Any) -> Any:
        bundle = load(path, catalog)
        for models in bundle.models.values():
            if (model := models.detectors.get("zscore")) is not None:
                notes[id(model)] = model, str(bundle.training.get("note", ""))
        return bundle

    def broken(self: Any, features: Any) -> Any:
        note = notes.get(id(self), (None, ""))[1]
        if note == "raises" and features.values.any() and _every(features.values, 200):
            raise ArithmeticError("a row that it cannot bear")
        if note == "sleeps":
            threading.Event().wait(float(ms) / 1e3)
        return raw(self, features)

    Bundle.load = staticmethod(loaded)  # type: ignore[assignment,method-assign]
    Model.raw = broken  # type: ignore[method-assign]


def alert_raises(event_id: str) -> None:
    """To find whom an alert about one event is about raises."""
    from dataflows import score

    subject = score._subject

    def broken(declared: Any, values: Any) -> Any:
        if values["event_id"] == event_id:
            raise ZeroDivisionError(f"nobody thought of {event_id}")
        return subject(declared, values)

    score._subject = broken


def decide_raises(share: str) -> None:
    """Votes on one row of scores in `share` raise."""
    from models.scoring import Scorer

    decide: Function = Scorer.decide

    @functools.wraps(decide)
    def broken(self: Any, scores: Any, *args: Any, **kwargs: Any) -> Any:
        if _every(scores.surprise, int(share)):
            raise ZeroDivisionError("nobody thought of this score")
        return decide(self, scores, *args, **kwargs)

    Scorer.decide = broken  # type: ignore[method-assign]


def _step(owner: Any, name: str, has: Callable[..., bool]) -> None:
    """A method of a step that raises once it has begun its work."""
    method: Function = getattr(owner, name)

    @functools.wraps(method)
    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = method(self, *args, **kwargs)
        if has(*args):
            raise KeyError("nobody thought of this event")
        return done

    setattr(owner, name, broken)


def group_raises(event: str) -> None:
    """The kernels of a card's group raise on its event CARD@TIME_US, their state changed by it."""
    from features.engine import GroupEngine
    from features.keys import hash_strings

    card, _, time_us = event.partition("@")
    key = hash_strings(pl.Series([card])).view(np.int64)[0]

    def has(rows: Any, *_: Any) -> bool:
        head = rows.heads.get("card", np.zeros((0, 2), np.int64))
        return bool(((head[:, 0] == key) & (head[:, 1] == int(time_us))).any())

    _step(GroupEngine, "process", has)


def admit_raises(event_id: str) -> None:
    """The door raises on an event, the filter of repeats already changed."""
    from dataflows.admission import Admission

    _step(
        Admission,
        "admit",
        lambda batches, *_: any(event_id in b.frame["event_id"] for b in batches.values()),
    )


def beats_sleep(_: str) -> None:
    """The thread that says that a flow lives sleeps for good: who writes has to ask by itself."""
    from dataflows.state.lease import Lease

    def broken(self: Any, lost: Any = None, *_: Any) -> None:
        self._lost = lost

    Lease.keep = broken  # type: ignore[method-assign]


def source_holds(where: str) -> None:
    """Nothing comes after round ROUND until FILE of ROUND@FILE is there, or the flow is to end.

    Who stops a flow in its middle has all the time it takes; what there is of it to do is not over
    before.
    """
    from dataflows.sources.rounds import LanePartition

    round_, _, file = where.partition("@")
    next_batch: Function = LanePartition.next_batch
    next_awake: Function = LanePartition.next_awake

    def holds(self: Any) -> bool:
        lane = self._lane
        return lane.round >= int(round_) and not (lane.stop() or (file and Path(file).exists()))

    def batch(self: Any) -> Any:
        return [] if holds(self) else next_batch(self)

    def awake(self: Any) -> Any:
        return datetime.now(UTC) + timedelta(seconds=0.05) if holds(self) else next_awake(self)

    LanePartition.next_batch = batch  # type: ignore[method-assign]
    LanePartition.next_awake = awake  # type: ignore[method-assign]


PARTS: dict[str, Function] = {
    f.__name__: f
    for f in (
        detector_raises, detector_hangs, bundle_fails, alert_raises, decide_raises, group_raises,
        admit_raises, beats_sleep, source_holds,
    )
}  # fmt: skip

if __name__ == "__main__":
    broken_parts = sys.argv.pop(1)
    for one in broken_parts.split(","):
        part, _, what = one.partition("=")
        PARTS[part](what)
    if sys.argv[1:3] == ["-m", "dataflows.worker"]:
        del sys.argv[1:3]
        from dataflows.worker import main as worker

        sys.exit(worker())
    from dataflows import supervisor
    from dataflows.cli.main import main

    # What it starts is broken too.
    supervisor.python_options = lambda: [__file__, broken_parts]

    sys.exit(main())
