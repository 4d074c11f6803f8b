"""The alert, and what a sink of alerts is."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Protocol

__all__ = ["Alert", "AlertSink", "Reason", "Vote", "alert_id"]


def alert_id(event_id: str, anomaly_type: str, bundle_id: str) -> str:
    """The id of an alert: a function of what it is about, so that sending it again changes nothing.

    Returns
    -------
    32 hex digits (BLAKE2b, 128 bits)
    """
    text = "\x1f".join((event_id, anomaly_type, bundle_id))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Vote:
    """One detector's part in an alert: calibrated score, its threshold, whether it voted for it."""

    detector: str
    score: float | None
    threshold: float
    vote: bool


@dataclass(frozen=True, slots=True)
class Reason:
    """One feature that made the event strange, in plain words."""

    feature: str
    text: str
    value: float
    baseline: float | None
    unit: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One event that the vote found anomalous.

    Times are int64 microseconds UTC. `latency_due_ns` is the wall clock at which the event was due:
    it measures, it is not part of what the alert says and is left out of `payload`.
    """

    id: str
    anomaly_type: str
    severity: str
    event_type: str
    event_id: str
    entity_type: str
    entity: str
    time_us: int
    cut_time_us: int
    round: int
    score: float
    votes: tuple[Vote, ...]
    reasons: tuple[Reason, ...]
    bundle_id: str
    summary: str
    latency_due_ns: int = field(default=0, compare=False)

    def payload(self) -> dict[str, object]:
        """The alert as JSON-able plain data."""
        data = asdict(self)
        data.pop("latency_due_ns")
        return data


class AlertSink(Protocol):
    """Where alerts go. `write` returns only once the alerts are acknowledged (or durable)."""

    name: str

    def write(self, alerts: list[Alert]) -> None:
        """Deliver all of them, or raise SinkError with what failed and the cure."""
        ...

    def close(self) -> None:
        """Flush and let go of what is held."""
        ...
