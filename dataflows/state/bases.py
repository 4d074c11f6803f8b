"""Base states: manifests kept for longer, one each `replay_base_s`, from which a replay can begin.

A base state is a manifest of its own (`state_dir/bases/ROUND-CUT_TIME_US`) and a hold on the files
of state it speaks of: groups and lanes forget nothing that a base state is made of. Nothing is
copied, so that one costs what the deltas since the base of its groups take.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from dataflows.state.manifest import Manifest, owned, read_manifest, write_manifest
from features.errors import StateError

__all__ = ["BaseState", "base_states", "drop_bases_after", "held_rounds", "keep_base"]


@dataclass(frozen=True, slots=True)
class BaseState:
    """A base state: the round after which a replay begins, the cut time of it, where it lies."""

    round: int
    cut_time_us: int
    folder: Path

    def manifest(self) -> Manifest:
        """Its manifest.

        Raises
        ------
        StateError : it is damaged or was dropped a moment ago
        """
        found = read_manifest(self.folder)
        if found is None:
            raise StateError(f"base state {self.folder} is gone: its retention (retention_h) ended")
        return found


def _folder(state_dir: Path) -> Path:
    """Where base states lie."""
    return state_dir / "bases"


def base_states(state_dir: Path) -> list[BaseState]:
    """The base states of a state folder, oldest first."""
    found = []
    for path in _folder(state_dir).glob("*-*"):
        first, _, second = path.name.partition("-")
        if first.isdecimal() and second.isdecimal():
            found.append(BaseState(int(first), int(second), path))
    return sorted(found, key=lambda base: base.round)


def held_rounds(state_dir: Path) -> list[int]:
    """Rounds whose state must stay, oldest first."""
    return [base.round for base in base_states(state_dir)]


def keep_base(
    state_dir: Path, manifest: Manifest, cut_time_us: int, every_s: float, retention_h: float
) -> None:
    """Keep a manifest as a base state where the last one is old enough; drop those past their time.

    The newest one before the retention stays, so that the whole of it can be replayed.

    Parameters
    ----------
    cut_time_us : of the manifest's round
    every_s : cut time between two base states
    retention_h : cut time for which they are kept; 0 keeps none

    Raises
    ------
    StateError : the disk refused it, or another flow has taken the folder over
    """
    with owned(state_dir, manifest.token):
        known = base_states(state_dir)
        if retention_h and (not known or cut_time_us - known[-1].cut_time_us >= every_s * 1e6):
            name = f"{manifest.round:012d}-{cut_time_us:020d}"
            folder = _folder(state_dir) / name
            # Without the writer's token: this is nobody's to take over.
            write_manifest(folder, replace(manifest, token=0))
            known.append(BaseState(manifest.round, cut_time_us, folder))
        since_us = cut_time_us - round(retention_h * 3.6e9)
        for base, following in pairwise(known):
            if following.cut_time_us <= since_us:
                shutil.rmtree(base.folder, ignore_errors=True)
        if not retention_h:
            shutil.rmtree(_folder(state_dir), ignore_errors=True)


def drop_bases_after(state_dir: Path, round_: int) -> None:
    """Drop base states of rounds that are to be computed anew."""
    for base in base_states(state_dir):
        if base.round > round_:
            shutil.rmtree(base.folder, ignore_errors=True)
