"""What became of alerts: confirmed or refuted by labels, and the frauds that nobody was told of.

The commit step, which sees all lanes' rounds in order, holds each label against the alerts there
were. A label comes days after its event, so alerts are remembered, across restarts: a file a
snapshot in `state_dir/outcomes`, written before the manifest that needs it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dataflows.alerts.base import Alert
from dataflows.state.deltas import read_arrays, write_arrays
from dataflows.state.journal import make_folder
from features.errors import StateError
from features.keys import hash_strings
from features.labels import Label

__all__ = ["Outcomes"]

ALERTED_MAX = 50_000
"""Events with alerts that are remembered; of older ones a label finds nothing. Chosen: 20 alerts an
hour for three months, 2 MB a snapshot."""

SAID_MAX = 50_000
"""Events without an alert whose verdict is remembered, so that a repeat counts once; those with one
are remembered with it. Chosen: as many."""

KINDS_MAX = 62
"""Anomaly types that verdicts are counted by, the first ones: bits of an int64."""

DELAYS_MAX = 1_000
"""Newest delays of labels that the median is of. Chosen."""

UNJUDGED, GENUINE, FRAUD = -1, 0, 1

CONFIRMED, REFUTED, MISSED, PASSED, UNKNOWN = range(5)
"""What a verdict makes of an event: an alert that was right, or was not; a fraud without an alert;
a genuine event without one; one of which the flow does not know whether it saw it."""

_NAMES = ("confirmed", "refuted", "missed", "passed", "unknown")


class Outcomes:
    """Counts of verdicts on alerted and other events.

    Parameters
    ----------
    folder : where it is kept
    round_ : the manifest's; what was kept of later rounds is removed. None: only to be read, as of
        the newest
    since_us : event time from which the flow has seen events; None: from the first round on

    Attributes
    ----------
    round : as of which it was kept; 0 where it was not
    """

    def __init__(self, folder: Path, round_: int | None, since_us: int | None = None) -> None:
        self._folder = folder
        self._since_us = since_us
        self._alerted: dict[int, tuple[int, int, int]] = {}  # time_us, anomaly types, verdict
        self._open = 0
        self._kinds: list[str] = []
        self._said: dict[int, tuple[int, int, int]] = {}  # verdict, outcome, anomaly types
        self._counts = np.zeros(len(_NAMES), np.int64)
        self._bare = 0
        self._by_kind = np.zeros((0, 2), np.int64)  # (anomaly types, confirmed and refuted)
        self._delays_s: deque[float] = deque(maxlen=DELAYS_MAX)
        # What only the warm state knew is not known again after the first manifest.
        self._changed = since_us is not None
        self.round = self._load(round_)

    def take(
        self,
        alerts: Iterable[Alert],
        labels: Iterable[Label],
        cut_time_us: int,
        first_us: int | None = None,
    ) -> None:
        """Take in a round: its labels were known before its alerts.

        Parameters
        ----------
        cut_time_us : of the round
        first_us : event time of its first event, None where there was none
        """
        if self._since_us is None and first_us is not None:
            self._since_us = first_us
            self._changed = True
        for label in labels:
            self._hear(label, cut_time_us)
        told = list(alerts)
        if not told:
            return
        names = pl.Series([f"{one.event_type} {one.event_id}" for one in told])
        for key, one in zip(hash_strings(names).view(np.int64).tolist(), told, strict=True):
            self._alert(key, one)

    def _alert(self, key: int, alert: Alert) -> None:
        """Remember an alert; a label that was there before it finds it."""
        bit = self._bit(alert.anomaly_type)
        if key in self._alerted:
            time_us, kinds, verdict = self._alerted[key]
            if bit & ~kinds:  # another type of the same event
                self._changed = True
                self._alerted[key] = time_us, kinds | bit, verdict
                if verdict != UNJUDGED:
                    self._count_kinds(_of_alerted(verdict), bit, 1)
            return
        self._changed = True
        self._alerted[key] = alert.time_us, bit, UNJUDGED
        self._open += 1
        if key in self._said:
            verdict, outcome, kinds = self._said.pop(key)
            self._count(outcome, kinds, -1)
            self._settle(key, verdict, alert.time_us)
        while len(self._alerted) > ALERTED_MAX:
            oldest = next(iter(self._alerted))
            time_us, kinds, verdict = self._alerted.pop(oldest)
            if verdict == UNJUDGED:
                self._open -= 1
            else:
                self._remember(oldest, verdict, _of_alerted(verdict), kinds)
            self._since_us = max(self._since_us or 0, time_us + 1)

    def _bit(self, anomaly_type: str) -> int:
        """The bit of an anomaly type; 0 of those that are too many."""
        if anomaly_type not in self._kinds:
            if len(self._kinds) == KINDS_MAX:
                return 0
            self._kinds.append(anomaly_type)
            self._by_kind = np.concatenate([self._by_kind, np.zeros((1, 2), np.int64)])
        return 1 << self._kinds.index(anomaly_type)

    def _hear(self, label: Label, cut_time_us: int) -> None:
        """Hold a label against what was told."""
        key, verdict = label.event, FRAUD if label.fraud else GENUINE
        if key in self._alerted:
            time_us, kinds, before = self._alerted[key]
            outcome = _of_alerted(before)
        else:
            time_us = label.time_us
            before, outcome, kinds = self._said.pop(key, (UNJUDGED, UNKNOWN, 0))
        if before == verdict:
            if key not in self._alerted:
                self._remember(key, verdict, outcome, kinds)
            return
        if before != UNJUDGED:
            self._count(outcome, kinds, -1)
        self._changed = True
        self._bare += not label.entities
        self._settle(key, verdict, label.time_us)
        # Of an event of before the flow, as of its warm state, nothing was told.
        told = key in self._alerted or (self._since_us is not None and time_us >= self._since_us)
        if told and time_us and cut_time_us >= time_us:
            self._delays_s.append((cut_time_us - time_us) / 1e6)

    def _settle(self, key: int, verdict: int, time_us: int) -> None:
        """Count what a verdict makes of an event."""
        if key in self._alerted:
            alerted_us, kinds, before = self._alerted[key]
            self._alerted[key] = alerted_us, kinds, verdict
            self._open -= before == UNJUDGED
            self._count(_of_alerted(verdict), kinds, 1)
            return
        if self._since_us is None or time_us < self._since_us:
            outcome = UNKNOWN
        else:
            outcome = MISSED if verdict == FRAUD else PASSED
        self._remember(key, verdict, outcome, 0)
        self._count(outcome, 0, 1)

    def _remember(self, key: int, verdict: int, outcome: int, kinds: int) -> None:
        """Keep the verdict on an event whose alert is not remembered; the oldest one goes."""
        self._said[key] = verdict, outcome, kinds
        while len(self._said) > SAID_MAX:
            del self._said[next(iter(self._said))]

    def _count(self, outcome: int, kinds: int, by: int) -> None:
        """Add to the counts: an event once, and to each of its anomaly types."""
        self._counts[outcome] += by
        self._count_kinds(outcome, kinds, by)

    def _count_kinds(self, outcome: int, kinds: int, by: int) -> None:
        """Add to the counts of some anomaly types."""
        for i in range(len(self._kinds)):
            if kinds >> i & 1:
                self._by_kind[i, outcome] += by

    def report(self) -> dict[str, Any]:
        """Counts so far, for `--json`; precision and recall None where nothing is known of them."""
        counts = dict(zip(_NAMES, self._counts.tolist(), strict=True))
        delays = np.array(self._delays_s)
        return {
            **counts,
            "open": self._open,
            "without_entities": self._bare,
            "precision": _share(counts["confirmed"], counts["refuted"]),
            "recall": _share(counts["confirmed"], counts["missed"]),
            "delay_s": {
                "p50": float(np.median(delays)) if len(delays) else None,
                "max": float(delays.max()) if len(delays) else None,
            },
            "anomaly_types": [
                {
                    "anomaly_type": kind,
                    "confirmed": int(right),
                    "refuted": int(wrong),
                    "precision": _share(int(right), int(wrong)),
                }
                for kind, (right, wrong) in zip(self._kinds, self._by_kind, strict=True)
            ],
        }

    def save(self, round_: int) -> None:
        """Write what there is after a round, where it has changed since it was last written.

        Raises
        ------
        StateError : the disk refuses it
        """
        if not self._changed:
            return
        self._changed = False
        make_folder(self._folder)
        alerted = [(key, *one) for key, one in self._alerted.items()]
        said = [(key, *one) for key, one in self._said.items()]
        arrays = {
            "alerts": np.array(alerted, np.int64).reshape(-1, 4),
            "verdicts": np.array(said, np.int64).reshape(-1, 4),
            "counts": self._counts,
            "by_kind": self._by_kind,
            "delays_s": np.array(self._delays_s, np.float64),
        }
        meta = {"since_us": self._since_us, "kinds": self._kinds, "bare": self._bare}
        write_arrays(self._path(round_), arrays, meta)

    def forget_before(self, round_: int) -> None:
        """Remove what no restart from `round_` on needs."""
        needed = max((r for r, _ in self._files() if r <= round_), default=0)
        for r, path in self._files():
            if r < needed:
                path.unlink()

    def _path(self, round_: int) -> Path:
        return self._folder / f"{round_:012d}.outcomes"

    def _files(self) -> list[tuple[int, Path]]:
        """(round, path) of each file, oldest first."""
        found = self._folder.glob("*.outcomes")
        return sorted((int(path.stem), path) for path in found if path.stem.isdecimal())

    def _load(self, round_: int | None) -> int:
        """Take what was kept up to a round, and remove what came after; a damaged file is as none:
        it decides nothing, and must not end a flow. Gives the round it is of."""
        files = self._files()
        if round_ is not None:
            for _, path in (file for file in files if file[0] > round_):
                path.unlink()
            files = [file for file in files if file[0] <= round_]
        for r, path in reversed(files):
            try:
                arrays, meta = read_arrays(path)
            except StateError:
                continue
            self._take_back(arrays, meta)
            self._changed = False
            return r
        return 0

    def _take_back(self, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Be as in a file."""
        self._since_us, self._kinds = meta["since_us"], list(meta["kinds"])
        self._bare = int(meta.get("bare", 0))
        if "alerts" in arrays:
            self._said = {key: (v, o, kinds) for key, v, o, kinds in arrays["verdicts"].tolist()}
            self._alerted = {key: (us, kinds, v) for key, us, kinds, v in arrays["alerts"].tolist()}
        else:
            self._take_old(arrays["alerted"].tolist(), arrays["said"].tolist())
        self._open = sum(verdict == UNJUDGED for _, _, verdict in self._alerted.values())
        self._counts = arrays["counts"].astype(np.int64)
        self._by_kind = arrays["by_kind"].astype(np.int64).reshape(-1, 2)
        self._delays_s = deque(arrays["delays_s"].tolist(), maxlen=DELAYS_MAX)

    def _take_old(self, alerted: list[list[int]], said: list[list[int]]) -> None:
        """Be as in a file of before: one anomaly type an event, verdicts apart from alerts."""
        verdicts = {key: (v, outcome, kind) for key, v, outcome, kind in said}
        for key, us, kind, *_ in alerted:
            verdict = verdicts.pop(key, (UNJUDGED, UNKNOWN, -1))[0]
            self._alerted[key] = us, 1 << kind, verdict
        self._said = {
            key: (v, outcome, 1 << kind if kind >= 0 else 0)
            for key, (v, outcome, kind) in verdicts.items()
        }


def _of_alerted(verdict: int) -> int:
    """What a verdict makes of an event with an alert."""
    return CONFIRMED if verdict == FRAUD else REFUTED


def _share(right: int, wrong: int) -> float | None:
    """right / (right + wrong), None of nothing."""
    return right / (right + wrong) if right + wrong else None
