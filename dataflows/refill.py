"""Replay into: what rounds computed, or would compute with new features, filled in somewhere else.

Rows go into Parquet parts, one folder an event type, alerts into a log that nobody reads from, and
on demand rows into an online store of their own. Nothing of it touches the flow or can page anyone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dataflows.certify import Stretch, stretch_between
from dataflows.context import Context, Replaying
from dataflows.replay import as_run, base_before, replay, replay_context
from dataflows.score import RoundOut, Seen
from dataflows.state.journal import fsync_folder, replace_text
from features.batch import EventBatch, FeatureMatrix, concat_batches, stack
from features.catalog import catalog
from features.errors import ConfigError, StateError

__all__ = ["PART_ROWS", "folder_of", "refill"]

PART_ROWS = 200_000
"""Rows of a part before it is written; chosen: 200 MB of payments in memory."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def folder_of(state_dir: Path, name: str) -> Path:
    """Where a replay is filled in: `replays/NAME` of the state folder.

    Raises
    ------
    ConfigError : a name that could be a path, or one that is taken
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--into {name}: expected a name of letters, digits, '.', '_' and '-', at most 64;"
            " it becomes a folder below replays of state_dir"
        )
    folder = state_dir / "replays" / name
    if folder.exists():
        raise ConfigError(f"--into {name}: {folder} is there already; remove it or take a new name")
    return folder


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one event type of a lane's round, on their way to a Parquet part; `seen` where they
    were scored."""

    round: int
    cut_time_us: int
    batch: EventBatch
    features: FeatureMatrix
    seen: Seen | None = None

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def columns(self) -> tuple[tuple[str, ...], ...]:
        """Names of its scores and votes."""
        seen = self.seen
        return () if seen is None else (seen.scores.detectors, seen.decisions.anomaly_types)


@dataclass(slots=True)
class _Parts:
    """Rows on their way to Parquet parts, and alerts to their log.

    Parameters
    ----------
    folder : one below it for each event type
    """

    folder: Path
    waiting: dict[str, list[_Rows]] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    events: int = 0
    rounds: int = 0
    alerts: int = 0
    files: int = 0

    def look(self, round_: int, outs: list[RoundOut]) -> bool:
        """Take in a round."""
        self.rounds += 1
        for out in outs:
            self.events += out.received
            self.alerts += len(out.alerts)
            for seen in out.seen:
                self._add(_Rows(round_, out.cut_time_us, seen.batch, _slim(seen.features), seen))
            for name, features in () if out.seen else (out.features or {}).items():
                batch = (out.batches or {})[name]
                self._add(_Rows(round_, out.cut_time_us, batch, _slim(features)))
            if out.alerts:
                text = "".join(alert.to_json() + "\n" for alert in out.alerts)
                path = self.folder / "alerts.jsonl"
                with _said(self.folder), path.open("a", encoding="utf-8") as file:
                    file.write(text)
        return True

    def _add(self, rows: _Rows) -> None:
        """Keep rows, and write a part once there are enough."""
        name = rows.batch.event_type
        before = self.rows[name] // PART_ROWS
        waiting = self.waiting.get(name)
        if waiting and waiting[-1].columns != rows.columns:  # another bundle has taken over
            self._write(name)
        self.waiting.setdefault(name, []).append(rows)
        self.rows[name] += len(rows)
        if self.rows[name] // PART_ROWS > before:
            self._write(name)

    def _write(self, name: str) -> None:
        """Write what waits of an event type as its next part, whole or not at all."""
        found = self.waiting.pop(name)
        folder = self.folder / name
        path = folder / f"part-{found[0].round:012d}.parquet"
        frame = _frame(found)
        with _said(self.folder):
            folder.mkdir(exist_ok=True)
            frame.write_parquet(path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
        self.files += 1

    def end(self) -> None:
        """Write what is left."""
        for name in list(self.waiting):
            self._write(name)


@contextlib.contextmanager
def _said(folder: Path) -> Iterator[None]:
    """What the disk refuses is a sentence with its cure."""
    try:
        yield
    except (OSError, pl.exceptions.ComputeError) as error:
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise StateError(
            f"--into: {folder} could not be written: {why}; free space or mend the disk and begin"
            " again"
        ) from error


@contextlib.contextmanager
def _coming(folder: Path) -> Iterator[Path]:
    """A folder that gets its name once it is whole; what was broken off is swept away.

    Raises
    ------
    ConfigError : another process is filling one of this name
    StateError : the disk refuses it
    """
    coming = folder.with_name(f".{folder.name}.coming")
    with _said(coming):
        coming.mkdir(parents=True, exist_ok=True)
        handle = os.open(coming, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--into {folder.name}: another replay is filling it; take another name"
            ) from None
        try:
            with _said(coming):
                for old in coming.iterdir():  # of a replay that was killed
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            yield coming
            with _said(folder):
                coming.rename(folder)
                fsync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(coming, ignore_errors=True)
            raise
    finally:
        os.close(handle)


def _slim(features: FeatureMatrix) -> FeatureMatrix:
    """Features without their sequences, which no part has and which take most of the memory."""
    return replace(features, sequence=None)


def _frame(found: Sequence[_Rows]) -> pl.DataFrame:
    """Rows of one event type: round, event, truth where it is known, features, scores and votes."""
    sizes = [len(rows) for rows in found]
    batch = concat_batches([rows.batch for rows in found], sort=False)
    features = stack([rows.features for rows in found])
    known = [] if batch.truth is None else [pl.Series("truth", batch.truth)]
    taken = {"round", "cut_time_us", "truth", *batch.frame.columns}
    return pl.DataFrame(
        [
            pl.Series("round", np.repeat([rows.round for rows in found], sizes)),
            pl.Series("cut_time_us", np.repeat([rows.cut_time_us for rows in found], sizes)),
            *batch.frame,
            *known,
            *(
                # A feature may be called as a field is, or as one of ours.
                pl.Series(f"feature_{name}" if name in taken else name, features.values[:, i])
                for i, name in enumerate(features.names)
            ),
            *_scored([rows.seen for rows in found if rows.seen is not None]),
        ]
    )


def _scored(found: Sequence[Seen]) -> Iterator[pl.Series]:
    """Columns of scores and votes, none where there are none."""
    if not found:
        return
    scores = np.concatenate([seen.scores.scores for seen in found])
    for i, name in enumerate(found[0].scores.detectors):
        yield pl.Series(f"score_{name}", scores[:, i])
    score = np.concatenate([seen.decisions.score for seen in found])
    flagged = np.concatenate([seen.decisions.flagged for seen in found])
    for a, name in enumerate(found[0].decisions.anomaly_types):
        yield pl.Series(f"ensemble_{name}", score[:, a])
        yield pl.Series(f"flagged_{name}", flagged[:, a])


def refill(
    state_dir: Path,
    config: str | None,
    given: dict[str, Any],
    name: str,
    from_us: int | None = None,
    until_us: int | None = None,
    store: bool = False,
    workers: int = 1,
    features_only: bool = False,
) -> dict[str, Any]:
    """Replay a stretch into a folder; what there is to report.

    Parameters
    ----------
    state_dir, config, given, from_us, until_us, workers : see `dataflows.certify.certify`
    name : see `folder_of`
    store : fill an online store too: that of `given`, else one of its own in the folder
    features_only : score nothing

    Raises
    ------
    WaxwingError : the stretch cannot be replayed, with the cure
    """
    folder = folder_of(state_dir, name)
    stretch = stretch_between(state_dir, from_us, until_us)
    header = stretch.segment.header
    settings = as_run(stretch.segment, state_dir, config, given)
    first, last = stretch.first.round, stretch.last.round
    base = base_before(state_dir, first, int(header["lanes"]))
    # Models fit the features they were trained on: with others only features are computed.
    scored = catalog().version == header["catalog"] and not features_only
    if store and not scored:
        raise ConfigError(
            "--store: the online store is filled with the features and scores of the flow alone"
        )
    begun = time.monotonic()
    wanted = Replaying(first, last, scored=scored, base_alone="bundle" in given)
    context = replay_context(settings, base, wanted, header, other_models="bundle" in given)
    with _coming(folder) as coming:
        parts = _Parts(coming)
        if store:
            _open_store(context, coming, given)
        try:
            replay(context, parts.look, workers)
            if context.store is not None and not context.store.flush(60.0):
                raise StateError(
                    "--store: Redis did not take the last rows within 60 s; bring it up, and begin"
                    " again"
                )
        finally:
            if context.store is not None:
                context.store.close()
        parts.end()
        took_s = time.monotonic() - begun
        report = {"folder": str(folder)} | _report(parts, stretch, context, base.round, took_s)
        with _said(coming):
            replace_text(coming / "replay.json", json.dumps(report, indent=1) + "\n")
            # The server's address is a path that ends with the replay.
            (coming / "store" / "url").unlink(missing_ok=True)
    return report


def _open_store(context: Context, folder: Path, given: dict[str, Any]) -> None:
    """Give the replay an online store of its own, never that of the flow by mistake."""
    from dataflows.store.writer import StoreWriter

    if given.get("store") == "redis" and "redis_url" not in given:
        raise ConfigError("--store: name the Redis to fill (--set redis_url=...)")
    kind = "redis" if "redis_url" in given else "embedded"
    own = context.settings.model_copy(update={"store": kind, "state_dir": folder})
    context.store = StoreWriter(own, context.catalog)


def _report(
    parts: _Parts, stretch: Stretch, context: Context, base_round: int, seconds: float
) -> dict[str, Any]:
    """What there is to say of it."""
    return {
        "first_round": stretch.first.round,
        "last_round": stretch.last.round,
        "from_us": stretch.first.cut_time_us,
        "until_us": stretch.last.cut_time_us,
        "base_round": base_round,
        "rounds": parts.rounds,
        "events": parts.events,
        "rows": dict(parts.rows),
        "files": parts.files,
        "alerts": parts.alerts,
        "scored": context.replaying is not None and context.replaying.scored,
        "catalog": context.catalog.version,
        "seconds": round(seconds, 3),
        "events_per_s": round(parts.events / seconds, 1),
    }
