"""The end of the flow: what a round decided is delivered; the manifest says when all is durable.

Rounds come here in order, whole. Alerts and dead letters are written and acknowledged round by
round; at a snapshot round the manifest follows once every shard's state is on disk, and what the
store does not have yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from dataflows.alerts import open_sinks
from dataflows.alerts.base import AlertSink
from dataflows.auto_rollback import AutoRollback
from dataflows.context import Context
from dataflows.control.records import Control
from dataflows.currencies import base_of
from dataflows.digests import header_of, open_certificate, record_of
from dataflows.kept_rows import KeptRows
from dataflows.outcomes import Outcomes
from dataflows.recalibration import AutoRecalibration
from dataflows.score import RoundOut, StoreRows
from dataflows.sources.dead_letters import DeadLetterWriter, open_dead_letters
from dataflows.state.bases import keep_base
from dataflows.state.manifest import Manifest, oldest_round, write_manifest
from dataflows.steps import Barrier, Durable
from dataflows.store.rows import SHARDS
from features.errors import StateError
from features.events import made_types

if TYPE_CHECKING:
    from dataflows.store.writer import StoreWriter

__all__ = ["COMMIT_KEY", "Commit", "CommitSink", "Store", "StoreAck"]

COMMIT_KEY = "commit"

_COUNTED = (
    "in", "scored", "dead_lettered", "duplicates", "alerts", "muted", "suppressed", "absences",
    "emptied", "corrected", "corrected_unchecked", "flipped", "unpriced", "old_rate", "lost",
)  # fmt: skip

STORE_FLUSH_S_MAX = 30.0
"""Longest wait for the store at the end of a run; chosen: a Redis restart. After it the manifest
stays at the last round the store has, and the next start writes the rest again."""


@dataclass(frozen=True, slots=True)
class StoreAck:
    """Every row of a shard up to a round is in the store, or on disk to be put there."""

    shard: int
    round: int


class Store(StatefulBatchLogic[StoreRows, StoreAck, int]):
    """Per shard of the store: hand the rows to the writer in order, say what it has safe."""

    def __init__(self, context: Context, lanes: int) -> None:
        self._context = context
        self._barrier: Barrier[StoreRows] = Barrier(lanes, context.decided_after)
        self._round = context.manifest.round
        self._waiting: list[tuple[int, int]] = []
        self._shard: int | None = None

    def on_batch(self, values: list[StoreRows]) -> tuple[list[StoreAck], bool]:
        writer = self._context.store
        if writer is None:
            raise StateError("step 'store': the store is off, yet rows came; this is a bug")
        begun = time.perf_counter()
        shard = values[0].shard
        if self._shard is None:
            self._shard = shard
            writer.take_up(shard, self._round)
        for item in values:
            self._barrier.add(item.lane, item.round, item, item.final)
        for round_, items, last in self._barrier.ready():
            ticket = writer.put_round(round_, [item.views for item in items.values()])
            self._waiting.append((round_, ticket))
            self._round = round_
            # The next start puts what is on disk with the first round that it plays: there is none
            # after the last.
            if self._context.is_due(round_, last) and not last:
                writer.keep(shard, round_, ticket)
        if self._round >= self._context.again_until:
            writer.go_on()
        self._context.telemetry.stage("store_put", time.perf_counter() - begun)
        return self._acks(writer, shard), False

    def on_eof(self) -> tuple[list[StoreAck], bool]:
        """The lanes have ended, the last alerts are out: wait for the store's last rows."""
        writer = self._context.store
        if writer is None or self._shard is None or not self._waiting:
            return [], False
        if not writer.flush(STORE_FLUSH_S_MAX):
            self._context.telemetry.say(
                f"the store did not take its last rows within {STORE_FLUSH_S_MAX:.0f} s;"
                " the next start writes them again"
            )
        return self._acks(writer, self._shard), False

    def _acks(self, writer: StoreWriter, shard: int) -> list[StoreAck]:
        """What has become safe since the last time."""
        done = writer.safe_ticket(shard)
        acked = [r for r, ticket in self._waiting if ticket <= done]
        if not acked:
            return []
        self._waiting = self._waiting[len(acked) :]
        return [StoreAck(shard, acked[-1])]

    def snapshot(self) -> int:
        return self._round


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What the manifest of a round will say, waiting for the shards and the store."""

    totals: dict[str, int]
    control: list[dict[str, Any]]
    logs: dict[str, int]
    last: bool
    cut_time_us: int
    recalibration: dict[str, Any]
    rollback: dict[str, Any]


class Commit(StatefulSinkPartition[Any, int]):
    """Delivers rounds in order and writes manifests."""

    def __init__(self, context: Context, lanes: int) -> None:
        self._context = context
        self._lanes = lanes
        manifest = context.manifest
        self._round = manifest.round
        self._barrier: Barrier[RoundOut] = Barrier(lanes, manifest.round)
        self._totals = {name: manifest.totals.get(name, 0) for name in _COUNTED}
        self._totals |= {k: v for k, v in manifest.totals.items() if ":" in k}
        settings = context.settings
        self._token = manifest.token
        context.telemetry.begun_us = context.begun_us
        self._letters: DeadLetterWriter = open_dead_letters(settings)
        self._letters.truncate(manifest.logs.get("dead_letters", 0))
        self._sinks: list[AlertSink] = open_sinks(settings.alerts, settings)
        for sink in self._sinks:
            truncate: Callable[[int], None] | None = getattr(sink, "truncate", None)
            if truncate is not None:
                truncate(manifest.logs.get(sink.name, 0))
        self._certificate = open_certificate(context) if settings.retention_h else None
        self._kept = KeptRows.opened(context)
        control = Control.of(manifest.control)
        self._bundles = control.bundles
        say = context.telemetry.say
        self._rollback = AutoRollback(settings, say, manifest.rollback, control, context.fence)
        self._recalibration = AutoRecalibration(
            settings, say, manifest.recalibration, self._rule_of, context.fence
        )
        # Where the flow began: with the events after its warm state, or with its first one.
        since_us = manifest.until_us if manifest.round == 0 else None
        self._outcomes = Outcomes(settings.state_dir / "outcomes", manifest.round, since_us)
        self._snapshots: dict[int, _Snapshot] = {}
        self._durable: dict[int, set[str]] = {}
        self._ended_shards: set[str] = set()
        self._store_round = dict.fromkeys(range(SHARDS), manifest.round)

    def write_batch(self, items: list[Any]) -> None:
        for item in items:
            if isinstance(item, RoundOut):
                self._barrier.add(item.lane, item.round, item, item.final)
            elif isinstance(item, Durable):
                self._durable.setdefault(item.round, set()).add(item.shard)
                if item.last:
                    self._ended_shards.add(item.shard)
                self._context.telemetry.snapshot(item.bytes, item.pause_ms)
            elif isinstance(item, StoreAck):
                self._store_round[item.shard] = max(self._store_round[item.shard], item.round)
        for round_, outs, last in self._barrier.ready():
            self._deliver(round_, list(outs.values()), last)
        self._commit()

    def _deliver(self, round_: int, outs: list[RoundOut], last: bool) -> None:
        """Write what a whole round decided, then count it."""
        begun = time.perf_counter()
        self._context.fence()
        letters = [letter for out in outs for letter in out.rejects]
        if letters:
            self._letters.write(letters)
        alerts = [alert for out in outs for alert in out.alerts]
        if alerts:
            for sink in self._sinks:
                sink.write(alerts)
        acked_ns = time.time_ns()
        no_events = {"control", *made_types()}
        for out in outs:
            self._totals["in"] += out.received
            self._totals["scored"] += sum(out.scored.values())
            self._totals["dead_lettered"] += sum(r.event_type not in no_events for r in out.rejects)
            self._totals["duplicates"] += out.duplicates
            self._totals["absences"] += out.absences
            self._totals["emptied"] += out.emptied
            self._totals["alerts"] += len(out.alerts)
            self._totals["muted"] += out.muted
            self._totals["suppressed"] += out.suppressed
            self._totals["corrected"] += out.corrected
            self._totals["corrected_unchecked"] += out.corrected_unchecked
            self._totals["flipped"] += out.flipped
            self._totals["unpriced"] += out.unpriced
            self._totals["old_rate"] += out.old_rate
            self._totals["lost"] += sum(map(len, out.gaps))
        self._round = round_
        self._count_bundles(outs)
        self._rollback.look(outs[0].cut_time_us, outs)
        self._recalibration.look(outs[0].cut_time_us, outs)
        if self._certificate is not None:
            self._certificate.write(*record_of(round_, outs))
        if self._kept is not None:
            self._kept.add(round_, outs)
        labels = [label for out in outs for label in out.labels]
        firsts = [out.first_us for out in outs if out.first_us is not None]
        self._outcomes.take(alerts, labels, outs[0].cut_time_us, min(firsts, default=None))
        telemetry = self._context.telemetry
        if labels:
            telemetry.outcomes = self._outcomes.report()
        telemetry.stage("deliver", time.perf_counter() - begun)
        telemetry.round(round_, outs, alerts, acked_ns, self._totals)
        if self._context.is_due(round_, last):
            self._outcomes.save(round_)
            if self._kept is not None:
                self._kept.save(round_)
            telemetry.outcomes = self._outcomes.report()
            # A sink that is switched off for a while keeps its place: its log is not to be lost.
            logs = dict(self._context.manifest.logs)
            logs["dead_letters"] = self._letters.position()
            for sink in self._sinks:
                position: Callable[[], int] | None = getattr(sink, "position", None)
                if position is not None:
                    logs[sink.name] = position()
            self._snapshots[round_] = _Snapshot(
                dict(self._totals), outs[0].control.kept(), logs, last, outs[0].cut_time_us,
                self._recalibration.kept(), self._rollback.kept(),
            )  # fmt: skip

    def _rule_of(self, name: str, control: Control) -> str:
        """A rule of the live bundle, whose `voting.toml` may have been edited since a restart."""
        voting = self._context.shelf.lineup(control)[0].scorer.voting
        return repr(voting.anomaly_types.get(name))

    def _count_bundles(self, outs: list[RoundOut]) -> None:
        """Count what bundles beside each other said; where others score now, begin anew."""
        control = outs[0].control
        if control.bundles != self._bundles:
            self._bundles = control.bundles
            self._totals = {k: v for k, v in self._totals.items() if ":" not in k}
            self._context.shelf.forget(control)
            if self._certificate is not None:
                self._certificate.change(header_of(self._context, control))
        for out in outs:
            for one in out.beside if len(out.beside) > 1 else ():
                for name, count in one.counts().items():
                    key = f"{one.bundle}:{name}"
                    self._totals[key] = self._totals.get(key, 0) + count

    def _commit(self) -> None:
        """Write the manifest of the newest snapshot round that is durable everywhere."""
        context = self._context
        wanted = {f"g{g:03d}" for g in range(context.settings.groups)}
        wanted |= {f"in{lane:02d}" for lane in range(self._lanes)}
        for round_ in sorted(self._snapshots):
            if not wanted <= self._durable.get(round_, set()) | self._ended_shards:
                return
            if context.store is not None and min(self._store_round.values()) < round_:
                return
            snapshot = self._snapshots.pop(round_)
            self._durable = {r: s for r, s in self._durable.items() if r > round_}
            self._letters.sync()
            for sink in self._sinks:
                sync: Callable[[], None] | None = getattr(sink, "sync", None)
                if sync is not None:
                    sync()
            if self._certificate is not None:
                self._certificate.sync()
            if self._kept is not None:
                self._kept.sync()
            settings = context.settings
            manifest = Manifest(
                round_,
                settings.groups,
                self._lanes,
                context.catalog.version,
                snapshot.totals,
                snapshot.control,
                snapshot.logs,
                currency=base_of(settings),
                token=self._token,
                recalibration=snapshot.recalibration,
                rollback=snapshot.rollback,
            )
            # As far apart as two bases of state.
            hold_rounds = (settings.deltas_max + 1) * settings.snapshot_rounds
            write_manifest(settings.state_dir, manifest, hold_rounds)
            keep_base(
                settings.state_dir,
                manifest,
                snapshot.cut_time_us,
                settings.replay_base_s,
                settings.retention_h,
            )
            oldest = oldest_round(settings.state_dir)
            self._outcomes.forget_before(oldest)
            if self._kept is not None:
                self._kept.forget_before(oldest)
            context.telemetry.committed(round_)

    def snapshot(self) -> int:
        return self._round

    def close(self) -> None:
        self._recalibration.settle()
        for sink in self._sinks:
            sink.close()
        self._letters.close()
        if self._certificate is not None:
            self._certificate.close()
        if self._kept is not None:
            self._kept.close()


class CommitSink(FixedPartitionedSink[Any, int]):
    """The one partition of `Commit`."""

    def __init__(self, context: Context, lanes: int) -> None:
        self._context = context
        self._lanes = lanes

    def list_parts(self) -> list[str]:
        return [COMMIT_KEY]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Commit:
        return Commit(self._context, self._lanes)


def log_path(state_dir: Path, name: str) -> Path:
    """Where an append-only log of the flow lies."""
    return state_dir / f"{name}.jsonl"
