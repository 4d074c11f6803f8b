"""What a running flow tells about itself: counts, latencies, time by stage, known truth tallied.

It measures and decides nothing: no later step reads it. The live view, the demo's table and the
bench are all readings of this one object.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from dataflows.alerts.base import printable_lines
from dataflows.currencies import priced_lines
from features.events import made_types
from models.absences import SilenceTally
from models.evaluate import Tally

if TYPE_CHECKING:
    from dataflows.alerts.base import Alert
    from dataflows.opinions import Beside
    from dataflows.score import Flip, RoundOut
    from dataflows.sources.base import Gap

__all__ = ["LatencyHistogram", "Telemetry"]

_BINS_DECADE = 200
"""Bins a decade: a quantile is exact to 1.2 %. Chosen."""
_DECADES = 8
"""From 1 microsecond to 100 seconds. Chosen."""

ALERTS_KEPT_MAX = 200
"""Newest alerts kept for the live view. Chosen: more than a screen shows."""


GAPS_KEPT_MAX = 1_000
"""Newest gaps of the source kept for the report; all their records are counted. Chosen: more
partitions than a topic has."""

FLIPS_KEPT_MAX = 100
"""Newest flipped votes kept for the report. Chosen: more than a person reads."""


NAMES_SHOWN_MAX = 10
"""New features named in the sentence at the start; all stand in the report. Chosen: a sentence."""


class LatencyHistogram:
    """Latencies on a logarithmic scale; constant memory, any number of values."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS_DECADE * _DECADES + 1, np.int64)

    def add(self, latency_ns: npt.NDArray[np.int64]) -> None:
        """Take in latencies, int64 (n,), ns."""
        if len(latency_ns):
            us = np.maximum(latency_ns, 1000) / 1000.0
            bins = np.minimum((np.log10(us) * _BINS_DECADE).astype(np.int64), len(self._counts) - 1)
            self._counts += np.bincount(bins, minlength=len(self._counts))

    def __len__(self) -> int:
        return int(self._counts.sum())

    def quantile_ms(self, q: float) -> float:
        """The q-quantile in ms (upper edge of its bin), NaN where nothing was added."""
        total = self._counts.sum()
        if not total:
            return float("nan")
        at = int(np.searchsorted(np.cumsum(self._counts), q * total))
        return float(10 ** ((at + 1) / _BINS_DECADE) / 1000.0)

    def summary(self) -> dict[str, float]:
        """p50, p99 and p999 in ms."""
        return {
            name: round(self.quantile_ms(q), 3)
            for name, q in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
        }


class Telemetry:
    """See the module.

    Parameters
    ----------
    on_alert : called with each delivered alert, from the flow's thread; must be quick
    truth_names : code in the truth -> name of the attack; the simulator's by default
    """

    def __init__(
        self,
        on_alert: Callable[[Alert], None] | None = None,
        truth_names: Mapping[int, str] | None = None,
    ) -> None:
        self.begun = time.monotonic()
        self.first_alert_s: float | None = None
        self.alert_latency = LatencyHistogram()
        self.event_latency = LatencyHistogram()
        self.totals: dict[str, int] = {}
        self.stage_s: dict[str, float] = {}
        self.start_cpu_s: dict[str, float] = {}
        """CPU of a start before the flow runs: `kernels` and models, and beside them `state`."""
        self.snapshots = 0
        self.snapshot_bytes = 0
        self.snapshot_pause_ms_max = 0.0
        self.expired = 0
        self.late_beyond = self.late_forgotten = 0
        self.labels_unknown = 0
        self.approximated = 0
        self.approximated_excess_max = 0
        self.estimated = 0
        self.estimated_one_in_max = 0
        self.starts_empty: tuple[str, ...] = ()
        self.in_history: dict[str, int] = {}
        self.unpriced: Counter[str] = Counter()
        self.old_rate: Counter[str] = Counter()
        self.labels_passed_over = 0
        self.outcomes: dict[str, Any] = {}
        """What became of alerts, as `dataflows.outcomes.Outcomes.report` says."""
        self.committed_round = 0
        self.round_done = 0
        self.replayed_rounds = 0
        self.cut_time_us = 0
        self.lag_ms_max = 0.0
        self.lag_ms_last = 0.0
        self.alerts: deque[Alert] = deque(maxlen=ALERTS_KEPT_MAX)
        self.tally = Tally(truth_names)
        self.silence = SilenceTally()
        self.silences: Callable[[int, int], pl.DataFrame] | None = None
        """Who was silenced in a span of event time, where that is known."""
        self.begun_us = 0
        self.reasons: Counter[str] = Counter()
        self.gaps: deque[Gap] = deque(maxlen=GAPS_KEPT_MAX)
        self._waiting: dict[int, int] = {}
        self.beside: dict[str, Beside] = {}
        """Bundle -> its counts while several scored, with the stage it has now."""
        self.missed_votes: dict[str, int] = {}
        """Detector -> votes that were missing since it raised or took too long."""
        self.asked_elsewhere: Callable[[], dict[str, int]] = dict
        """What was asked of models elsewhere, in counts."""
        self.flips: deque[Flip] = deque(maxlen=FLIPS_KEPT_MAX)
        self._on_alert = on_alert
        self._lock = threading.Lock()

    def stage(self, name: str, seconds: float) -> None:
        """Add time spent in a stage."""
        with self._lock:
            self.stage_s[name] = self.stage_s.get(name, 0.0) + seconds

    def snapshot(self, size: int, pause_ms: float) -> None:
        """A shard wrote its state."""
        self.snapshots += 1
        self.snapshot_bytes += size
        self.snapshot_pause_ms_max = max(self.snapshot_pause_ms_max, pause_ms)

    def forgot(self, entities: int) -> None:
        """Idle entities were forgotten."""
        with self._lock:
            self.expired += entities

    def out_of_place(self, rows: int, forgotten: int) -> None:
        """Rows were so far behind others of their entity that they could not be put in place; late
        ones found it forgotten that it was known at their time."""
        with self._lock:
            self.late_beyond += rows
            self.late_forgotten += forgotten

    def nobody(self, entities: int) -> None:
        """Labels named so many entities that were not there; said once."""
        if entities and not self.labels_unknown:
            self.say(
                "labels name entities that have no state (never seen, or forgotten): they count for"
                " alerts and training, and reach no feature; labels_unknown counts them"
            )
        with self._lock:
            self.labels_unknown += entities

    def merged(self, rows: int, excess_max: int) -> None:
        """Rows had a longest window that was too long, by so many events at most."""
        with self._lock:
            self.approximated += rows
            self.approximated_excess_max = max(self.approximated_excess_max, excess_max)

    def sampled(self, rows: int, one_in_max: int) -> None:
        """Rows had counts of different others that are estimates, from one pair in so many."""
        with self._lock:
            self.estimated += rows
            self.estimated_one_in_max = max(self.estimated_one_in_max, one_in_max)

    def priced(self, unpriced: Mapping[str, int], old: Mapping[str, int]) -> None:
        """Events that have no rate, or not one of their day; said once a currency."""
        new_unpriced = {name: n for name, n in unpriced.items() if name not in self.unpriced}
        new_old = {name: n for name, n in old.items() if name not in self.old_rate}
        with self._lock:
            self.unpriced.update(unpriced)
            self.old_rate.update(old)
        for text in priced_lines(new_unpriced, new_old):
            self.say(f"so far {text}")

    def unheard(self, passed_over: int) -> None:
        """Labels of the data found too many others under way, so many in all; said once."""
        if passed_over and not self.labels_passed_over:
            self.say(
                "more labels of the data are under way than are kept: those of the newest events"
                " are passed over"
            )
        self.labels_passed_over = passed_over

    def stood(self, round_: int, totals: Mapping[str, int]) -> None:
        """A flow ended before its first round: what there is to report is that of its manifest."""
        with self._lock:
            self.round_done, self.totals = round_, dict(totals)

    def committed(self, round_: int) -> None:
        """A manifest was written."""
        self.committed_round = round_

    def round(
        self,
        round_: int,
        outs: Sequence[RoundOut],
        alerts: Sequence[Alert],
        acked_ns: int,
        totals: dict[str, int],
    ) -> None:
        """A round was delivered; `acked_ns` is when its alerts were acknowledged by their sinks."""
        with self._lock:
            self.totals = dict(totals)
            if round_ <= self.round_done:  # begun anew from the manifest, in the same process
                return
            self.round_done = round_
            for out in outs:
                self.cut_time_us = max(self.cut_time_us, out.cut_time_us)
                self.reasons.update(r.reason for r in out.rejects if r.event_type != "control")
                self.flips.extend(out.flips)
                self.gaps.extend(out.gaps)
                self._waiting[out.lane] = out.waiting
                for one in out.beside if len(out.beside) > 1 else ():
                    was = self.beside.get(one.bundle)
                    self.beside[one.bundle] = one if was is None else one + was
                for s in out.known:
                    if s.absences is None:
                        self.tally.add(s.event_type, s.truth, s.scores, s.decisions)
                    else:
                        flagged = np.asarray(s.decisions.flagged.any(axis=1))
                        self.silence.add(s.absences, s.truth, flagged)
                if out.replayed:
                    self.replayed_rounds += 1
                    continue
                waited = acked_ns - out.due_ns
                self.event_latency.add(waited)
                if len(waited):
                    self.lag_ms_last = float(waited.max()) / 1e6
                    self.lag_ms_max = max(self.lag_ms_max, self.lag_ms_last)
                # An absence is no event that was sent: it has no moment to count from.
                sent = [a for a in out.alerts if a.event_type not in made_types()]
                self.alert_latency.add(
                    np.array([acked_ns - a.latency_due_ns for a in sent], np.int64)
                )
        for alert in alerts:
            if self.first_alert_s is None:
                self.first_alert_s = time.monotonic() - self.begun
            self.alerts.append(alert)
            if self._on_alert is not None:
                self._on_alert(alert)

    def report(self) -> dict[str, Any]:
        """Counts, latency and the tally, in the keys that every `--json` of waxwing uses."""
        with self._lock:
            got = self.totals
            done = sum(got.get(k, 0) for k in ("scored", "dead_lettered", "duplicates"))
            pending = sum(self._waiting.values())
            return {
                "in": got.get("in", 0) + pending,
                "scored": got.get("scored", 0),
                "dead_lettered": got.get("dead_lettered", 0),
                "duplicates": got.get("duplicates", 0),
                "pending": got.get("in", 0) + pending - done,
                "lost": got.get("lost", 0),
                "gaps": [
                    {
                        "topic": gap.topic,
                        "partition": gap.partition,
                        "from": gap.first,
                        "to": gap.last,
                        "count": len(gap),
                    }
                    for gap in self.gaps
                ],
                "alerts": got.get("alerts", 0),
                "muted": got.get("muted", 0),
                "suppressed": got.get("suppressed", 0),
                "absences": got.get("absences", 0),
                "emptied": got.get("emptied", 0),
                "corrected": got.get("corrected", 0),
                "corrected_unchecked": got.get("corrected_unchecked", 0),
                "flipped": got.get("flipped", 0),
                "flips": [asdict(flip) for flip in self.flips],
                "outcomes": dict(self.outcomes),
                "unpriced": got.get("unpriced", 0),
                "old_rate": got.get("old_rate", 0),
                "currencies": {"unpriced": self.unpriced, "old_rate": self.old_rate},
                "reasons": dict(self.reasons),
                "missed_votes": dict(self.missed_votes),
                "asked_elsewhere": self.asked_elsewhere(),
                "bundles": [
                    {"bundle": one.bundle, "stage": one.stage, **one.counts()}
                    for one in self.beside.values()
                ],
                "late_beyond": self.late_beyond,
                "late_forgotten": self.late_forgotten,
                "labels_unknown": self.labels_unknown,
                "approximated": self.approximated,
                "approximated_excess_max": self.approximated_excess_max,
                "estimated": self.estimated,
                "estimated_one_in_max": self.estimated_one_in_max,
                "expired": self.expired,
                "starts_empty": list(self.starts_empty),
                "in_history": dict(self.in_history),
                "rounds": self.round_done,
                "latency_ms": self.alert_latency.summary(),
                "event_latency_ms": self.event_latency.summary(),
                **self.tally.report(),
                **self._silence_report(),
            }

    def grown(self, empty: tuple[str, ...], partial: tuple[str, ...]) -> None:
        """Say once what a restored state of another catalogue did not know; all groups tell it."""
        with self._lock:
            if self.starts_empty or not (empty or partial):
                return
            self.starts_empty = (*empty, *partial)
        said = [_named("starts empty", "start empty", empty)] if empty else []
        if partial:
            one = "begins with what is kept of its window"
            said.append(_named(one, "begin with what is kept of their windows or levels", partial))
        self.say(f"the state is of another feature catalogue: {'; '.join(said)}; the rest goes on")

    def left_out(self, rows: Mapping[str, int], until_us: int) -> None:
        """Rows of the source, by event type, are not after the history that the flow starts from;
        said once, also where the flow begins anew."""
        if not rows or self.in_history:
            return
        self.in_history = dict(rows)
        last = datetime.fromtimestamp((until_us - 1) / 1e6, UTC)
        self.say(
            f"{', '.join(f'{n:,} {name}' for name, n in rows.items())} rows are not later than"
            f" {last:%Y-%m-%dT%H:%M:%S.%fZ}, when the history of the warm state ends, and are left"
            " out (warm_state = 'cold' starts without history)"
        )

    def _silence_report(self) -> dict[str, Any]:
        """What is known of silences, where the truth is."""
        if self.silences is None:
            return {}
        until_us = max(self.cut_time_us, self.begun_us)
        known = self.silences(self.begun_us, until_us)
        return {"silence": self.silence.report(known, self.begun_us, until_us)}

    def say(self, text: str) -> None:
        """A sentence for the person who runs it."""
        print(f"waxwing: {printable_lines(text)}", file=sys.stderr, flush=True)


def _named(one: str, many: str, names: tuple[str, ...]) -> str:
    """Some names and what they do; the first of them where there are many."""
    shown = ", ".join(names[:NAMES_SHOWN_MAX])
    more = len(names) - NAMES_SHOWN_MAX
    rest = f" and {more} more" if more > 0 else ""
    return f"{shown}{rest} {one if len(names) == 1 else many}"
