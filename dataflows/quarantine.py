"""Finds the event that made a step with a state raise, and notes it beside its lane's journal.

The flow has ended by then, as by a crash. The rounds since the manifest pass once more, in one
process and without a sink, up to the one that raised; from there the step is tried on copies of its
state with ever fewer events (`dataflows.poison.culprits`). What is found is durable before the flow
begins anew without it, so that every later restart and a replay leave it out too.

A flow of one process does so at once (`quarantine`). Of several, the one whose step raised leaves
word in the state folder (`suspect`) and ends, and with it all; the first process of the next start
finds the event before it meets the others (`settled_context`).
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dataflows.admission import origin_of
from dataflows.context import Context, lanes_of, make_context, open_lane
from dataflows.guard import StepFault
from dataflows.observe.telemetry import Telemetry
from dataflows.poison import POISON_FILE, POISON_ROUND_MAX, culprits, told
from dataflows.settings import Settings
from dataflows.sources.rounds import Lane, Lanes, Part
from dataflows.state.journal import replace_text
from dataflows.state.manifest import read_manifest
from dataflows.state.notes import RoundNotes
from dataflows.steps import Admit, Group, Home, ToGroup, ToHome
from features.batch import Int64
from features.errors import StateError, WaxwingError

__all__ = ["quarantine", "settled_context", "suspect"]

SUSPECT_FILE = "suspect.json"
"""Word, in the state folder, of a step that raised in one process of several."""


class _Silent(Telemetry):
    """Takes what the trial tells about itself, which nobody wants to hear."""

    def say(self, text: str) -> None:
        """Nothing is said twice."""


def quarantine(context: Context, fault: StepFault) -> None:
    """Find and note the events that a step has raised about.

    Parameters
    ----------
    context : of the flow that has ended, its lanes closed
    fault : what it ended with

    Raises
    ------
    Exception : the bug itself, where no event is to blame
    StateError, SourceError : the rounds cannot be read once more
    """
    if not _noted(context, fault):
        raise fault.bug


def suspect(settings: Settings, fault: StepFault) -> None:
    """Leave word of what a step has raised, for the first process of the next start.

    Where the disk does not take it, the next start meets the event again.
    """
    text = json.dumps({"step": fault.step, "round": fault.round, "detail": str(fault)})
    path = settings.state_dir / SUSPECT_FILE
    with contextlib.suppress(OSError):
        replace_text(path, text + "\n", path.with_suffix(f".{os.getpid()}.tmp"))


def settled_context(settings: Settings, telemetry: Telemetry) -> Context:
    """The context of a flow; the event that ended the last run of its processes is found before.

    Raises
    ------
    Exception : see `dataflows.context.make_context` and `quarantine`
    """
    path = settings.state_dir / SUSPECT_FILE
    context = make_context(settings, telemetry)
    if context.lease is None or not path.exists():
        return context
    context.restored.clear()  # the rounds since pass on a state of their own
    word = _word(path)
    fault = StepFault(word["step"], word["round"], RuntimeError(word["detail"]))
    try:
        if not _noted(context, fault):
            telemetry.say(f"{word['detail']}; it does not when tried again, going on")
    except WaxwingError:
        raise  # the disk, the broker: the word is still there for the start after
    except Exception:
        path.unlink()
        raise
    finally:
        try:
            context.shelf.close()
            if context.store is not None:
                context.store.close()
        finally:
            context.lease.give_back()  # last: whoever has it next finds nobody writing
    path.unlink()
    return make_context(settings, telemetry)


def _word(path: Path) -> dict[str, Any]:
    """What `suspect` has left.

    Raises
    ------
    StateError : the file is damaged
    """
    try:
        word: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise StateError(f"{path}: damaged; remove it and start again") from None
    return word


def _noted(context: Context, fault: StepFault) -> bool:
    """Whether events are to blame, which are noted then; see `quarantine`."""
    manifest = read_manifest(context.settings.state_dir) or context.manifest
    trial = _Trial(replace(context, begins=manifest, telemetry=_Silent(), store=None,
                           restored={}, lanes=Lanes()), fault)  # fmt: skip
    try:
        found = trial.run()
    finally:
        trial.close()
    if not found:
        return False
    for lane, notes in found.items():
        log = RoundNotes(trial.lanes[lane].journal.folder / POISON_FILE)
        context.fence()
        log.append(notes)
        log.close()
    noted = [note for notes in found.values() for note in notes]
    kinds = Counter(note["event_type"] for note in noted)
    raised = noted[0]["detail"].partition(":")[0]
    context.telemetry.say(
        f"{raised} on {', '.join(f'{n} {name}' for name, n in sorted(kinds.items()))} of round"
        f" {noted[0]['round']}: now among the dead letters ({noted[0]['event_type']} at partition"
        f" {noted[0]['partition']} offset {noted[0]['offset']}); going on without"
    )
    return True


class _Trial:
    """The steps over the journal, one round after another, nothing written."""

    def __init__(self, context: Context, fault: StepFault) -> None:
        settings = context.settings
        # No snapshot is begun: they are a thing of the flow.
        self.context = replace(
            context, settings=settings.model_copy(update={"snapshot_rounds": 1 << 60})
        )
        self.fault = fault
        count = lanes_of(settings)
        self.lanes: list[Lane] = []
        for lane in range(count):
            self.lanes.append(open_lane(self.context, lane))
        self.admits = [Admit(self.context) for _ in range(count)]
        self.groups = [Group(self.context, count) for _ in range(settings.groups)]
        self.homes = [Home(self.context) for _ in range(count)]

    def close(self) -> None:
        """Let go of sources and journals."""
        self.context.close()

    def run(self) -> dict[int, list[dict[str, Any]]]:
        """Notes on the events to blame, by lane; none where there is no such event."""
        for parts in self._rounds():
            if parts[0].round <= self.fault.round:
                self._pass(parts)
                continue
            rows = [
                (part.lane, name, row)
                for part in parts
                for name, batch in part.batches.items()
                for row in range(len(batch))
            ]
            lanes = {part.lane: part for part in parts}

            def attempt(chosen: Int64, parts: list[Part] = parts, rows: Any = rows) -> None:
                kept: dict[tuple[int, str], list[int]] = {}
                for i in chosen.tolist():
                    lane, name, row = rows[i]
                    kept.setdefault((lane, name), []).append(row)
                self._pass([_only(part, kept) for part in parts], on_copies=True)

            _, found = culprits(len(rows), attempt, POISON_ROUND_MAX)
            if not found:
                self._pass(parts)
                continue
            notes: dict[int, list[dict[str, Any]]] = {}
            for i, error in sorted(found, key=lambda one: one[0]):
                lane, name, row = rows[i]
                batch = lanes[lane].batches[name]
                notes.setdefault(lane, []).append(
                    {
                        "round": parts[0].round,
                        "event_type": name,
                        "partition": int(batch.partition[row]),
                        "offset": int(batch.offset[row]),
                        "topic": origin_of(self.context.settings, name),
                        "detail": told(self.fault.step, error),
                    }
                )
            return notes
        return {}

    def _rounds(self) -> Iterator[list[Part]]:
        """The parts of each round that the journals hold, in order."""
        while waiting := [lane for lane in self.lanes if lane.pending is not None]:
            round_ = min(lane.round for lane in waiting)
            cut = [lane.cut() for lane in waiting if lane.round == round_]
            # The last snapshot is a thing of the flow too.
            yield [replace(part, final=False) for part in cut]

    def _pass(self, parts: list[Part], on_copies: bool = False) -> None:
        """Let a round through the steps, or through copies of them that are thrown away."""
        homes: dict[int, list[ToHome]] = {}
        groups: dict[int, list[ToGroup]] = {}
        for part in parts:
            admit = self.admits[part.lane]
            for item in (self._copy(admit) if on_copies else admit).on_batch([part])[0]:
                if isinstance(item, ToGroup):
                    groups.setdefault(item.group, []).append(item)
                elif isinstance(item, ToHome):
                    homes.setdefault(item.lane, []).append(item)
        for number, items in sorted(groups.items()):
            # One copy at a time: a group's state is large.
            group = self.groups[number]
            for back in (self._copy(group) if on_copies else group).on_batch(items)[0]:
                if isinstance(back, ToHome):
                    homes.setdefault(back.lane, []).append(back)
        for lane, mine in sorted(homes.items()):
            home = self.homes[lane]
            (self._copy(home) if on_copies else home).on_batch(mine)

    def _copy(self, step: Any) -> Any:
        """A step with a state of its own; what is never changed is shared."""
        shared = {id(self.context): self.context, id(self.context.catalog): self.context.catalog}
        shard = getattr(step, "_shard", None)
        if shard is not None:
            shared[id(shard)] = shard
        return copy.deepcopy(step, shared)


def _only(part: Part, kept: dict[tuple[int, str], list[int]]) -> Part:
    """Some rows of a part."""
    batches, ids = {}, {}
    for name, batch in part.batches.items():
        rows = np.array(kept.get((part.lane, name), []), np.int64)
        if len(rows):
            batches[name], ids[name] = batch.take(rows), part.ids[name][rows]
    return replace(part, batches=batches, ids=ids)
