"""Replay into: what rounds computed, or would compute with new features, filled in somewhere else.

Rows go into Parquet parts, one folder an event type, alerts into a log that nobody reads from, and
on demand rows into an online store of their own. Nothing of it touches the flow or can page anyone.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from dataflows.certify import Stretch, stretch_between
from dataflows.context import Context, Replaying
from dataflows.replay import as_run, base_before, replay, replay_context
from dataflows.score import RoundOut, Seen
from dataflows.state.journal import replace_text
from features.batch import EventBatch, FeatureMatrix
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


@dataclass(slots=True)
class _Parts:
    """Rows on their way to Parquet parts.

    Parameters
    ----------
    folder : one below it for each event type
    """

    folder: Path
    waiting: dict[str, list[pl.DataFrame]] = field(default_factory=dict)
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
                self._add(_scored(out, seen), seen.batch.event_type)
            for name, features in () if out.seen else (out.features or {}).items():
                self._add(_plain(out, (out.batches or {})[name], features), name)
            if out.alerts:
                text = "".join(alert.to_json() + "\n" for alert in out.alerts)
                with self._made().joinpath("alerts.jsonl").open("a", encoding="utf-8") as file:
                    file.write(text)
        return True

    def _made(self) -> Path:
        """The folder, made where it is missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder

    def _add(self, frame: pl.DataFrame, name: str) -> None:
        """Keep rows, and write a part once there are enough."""
        self.waiting.setdefault(name, []).append(frame)
        self.rows[name] += frame.height
        if sum(f.height for f in self.waiting[name]) >= PART_ROWS:
            self._write(name)

    def _write(self, name: str) -> None:
        """Write what waits of an event type as its next part, whole or not at all."""
        frame = pl.concat(self.waiting.pop(name))
        folder = self._made() / name
        folder.mkdir(exist_ok=True)
        self.files += 1
        path = folder / f"part-{frame['round'][0]:012d}.parquet"
        frame.write_parquet(path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def end(self) -> None:
        """Write what is left."""
        for name in list(self.waiting):
            self._write(name)


def _plain(out: RoundOut, batch: EventBatch, features: FeatureMatrix) -> pl.DataFrame:
    """Rows of one event type: round, event, features; the truth where it is known."""
    known = [] if batch.truth is None else [pl.Series("truth", batch.truth)]
    taken = {"round", "cut_time_us", "truth", *batch.frame.columns}
    return pl.DataFrame(
        [
            pl.Series("round", [out.round] * len(batch), pl.Int64),
            pl.Series("cut_time_us", [out.cut_time_us] * len(batch), pl.Int64),
            *batch.frame,
            *known,
            *(
                # A feature may be called as a field is, or as one of ours.
                pl.Series(f"feature_{name}" if name in taken else name, features.values[:, i])
                for i, name in enumerate(features.names)
            ),
        ]
    )


def _scored(out: RoundOut, seen: Seen) -> pl.DataFrame:
    """Rows of one event type, with scores and votes."""
    scores, decisions = seen.scores, seen.decisions
    columns = [pl.Series(f"score_{n}", scores.scores[:, i]) for i, n in enumerate(scores.detectors)]
    for a, name in enumerate(decisions.anomaly_types):
        columns.append(pl.Series(f"ensemble_{name}", decisions.score[:, a]))
        columns.append(pl.Series(f"flagged_{name}", decisions.flagged[:, a]))
    return _plain(out, seen.batch, seen.features).with_columns(columns)


def refill(
    state_dir: Path,
    config: str | None,
    given: dict[str, Any],
    name: str,
    from_us: int | None = None,
    until_us: int | None = None,
    store: bool = False,
    workers: int = 1,
) -> dict[str, Any]:
    """Replay a stretch into a folder; what there is to report.

    Parameters
    ----------
    state_dir, config, given, from_us, until_us, workers : see `dataflows.certify.certify`
    name : see `folder_of`
    store : fill an online store too: that of `given`, else one of its own in the folder

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
    scored = catalog().version == header["catalog"]
    if store and not scored:
        raise ConfigError("--store: the online store is filled with the features of the flow alone")
    begun = time.monotonic()
    wanted = Replaying(first, last, scored=scored, base_alone="bundle" in given)
    context = replay_context(settings, base, wanted, header, other_models="bundle" in given)
    parts = _Parts(folder)
    if store:
        _open_store(context, folder, given)
    try:
        replay(context, parts.look, workers)
        if context.store is not None and not context.store.flush(60.0):
            raise StateError(
                "--store: Redis did not take the last rows within 60 s; bring it up, and begin"
                " again under another name"
            )
    finally:
        if context.store is not None:
            context.store.close()
    parts.end()
    report = _report(parts, stretch, context, base.round, time.monotonic() - begun)
    parts.folder.mkdir(parents=True, exist_ok=True)
    replace_text(parts.folder / "replay.json", json.dumps(report, indent=1) + "\n")
    return report


def _open_store(context: Context, folder: Path, given: dict[str, Any]) -> None:
    """Give the replay an online store of its own, never that of the flow by mistake."""
    from dataflows.store.writer import StoreWriter

    if given.get("store") == "redis" and "redis_url" not in given:
        raise ConfigError("--store: name the Redis to fill (--set redis_url=...)")
    kind = "redis" if "redis_url" in given else "embedded"
    folder.mkdir(parents=True)
    own = context.settings.model_copy(update={"store": kind, "state_dir": folder})
    context.store = StoreWriter(own, context.catalog)


def _report(
    parts: _Parts, stretch: Stretch, context: Context, base_round: int, seconds: float
) -> dict[str, Any]:
    """What there is to say of it."""
    return {
        "folder": str(parts.folder),
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
