"""The alert, and what a sink of alerts is."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, Self, runtime_checkable

from features.errors import ContractError

__all__ = [
    "Alert",
    "AlertSink",
    "PatientSink",
    "Reason",
    "Vote",
    "alert_id",
    "moment_of",
    "printable",
    "printable_lines",
]


_TEXTS = (
    "id",
    "anomaly_type",
    "severity",
    "summary",
    "event_type",
    "event_id",
    "entity_type",
    "entity",
    "bundle_id",
)
"""Fields of an alert that hold text, in the order in which they are written."""

_INTEGERS = ("time_us", "cut_time_us", "round")
"""Fields of an alert that hold whole numbers."""


def alert_id(event_id: str, anomaly_type: str, bundle_id: str) -> str:
    """The id of an alert: a function of what it is about, so that sending it again changes nothing.

    Returns
    -------
    32 hex digits (BLAKE2b, 128 bits)
    """
    text = "\x1f".join((event_id, anomaly_type, bundle_id))
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Vote:
    """One detector's part in an alert: calibrated score, its threshold, whether it voted for it.

    `missing` says why its vote is missing, empty where it is not: it raised or took too long, and
    the others voted without it.
    """

    detector: str
    score: float | None
    threshold: float
    vote: bool
    missing: str = ""

    def payload(self) -> dict[str, object]:
        """The vote as JSON-able plain data; `missing` stands there only where it is."""
        data: dict[str, object] = {
            "detector": self.detector,
            "score": self.score,
            "threshold": self.threshold,
            "vote": self.vote,
        }
        return data | ({"missing": self.missing} if self.missing else {})


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
        data = {name: getattr(self, name) for name in (*_TEXTS, *_INTEGERS, "score")}
        return data | {
            "votes": [vote.payload() for vote in self.votes],
            "reasons": [{n: getattr(r, n) for n in Reason.__slots__} for r in self.reasons],
        }

    def to_json(self) -> str:
        """The payload as a line of ASCII, safe to print; a number that is not finite is null."""
        try:
            return json.dumps(self.payload(), allow_nan=False)
        except ValueError:
            return json.dumps(_finite(self.payload()), allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """The alert that `to_json` wrote.

        Raises
        ------
        ContractError : not JSON, or not an alert
        """
        try:
            data = json.loads(line)
            fields: dict[str, Any] = {name: str(data[name]) for name in _TEXTS}
            fields |= {name: int(data[name]) for name in _INTEGERS}
            fields["score"] = _or_nan(data["score"])
            fields["votes"] = tuple(
                Vote(
                    str(v["detector"]),
                    _number(v["score"]),
                    _or_nan(v["threshold"]),
                    bool(v["vote"]),
                    str(v.get("missing", "")),
                )
                for v in data["votes"]
            )
            fields["reasons"] = tuple(
                Reason(
                    str(r["feature"]),
                    str(r["text"]),
                    _or_nan(r["value"]),
                    _number(r["baseline"]),
                    str(r["unit"]),
                )
                for r in data["reasons"]
            )
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            shown = printable(line.decode(errors="replace") if isinstance(line, bytes) else line)
            raise ContractError(
                f"expected an alert as one line of JSON, got {shown[:80]!r}:"
                f" {type(error).__name__}: {error}"
            ) from error


class AlertSink(Protocol):
    """Where alerts go. `write` returns only once the alerts are acknowledged (or durable)."""

    name: str

    def write(self, alerts: list[Alert]) -> None:
        """Deliver all of them, or raise SinkError with what failed and the cure."""
        ...

    def close(self) -> None:
        """Flush and let go of what is held."""
        ...


@runtime_checkable
class PatientSink(AlertSink, Protocol):
    """A sink whose receiver may be slow or away: it also takes alerts without waiting.

    The notify flow uses it so, and moves its place in the alert log on as alerts are done with.
    """

    def room(self) -> bool:
        """Whether more alerts may be offered."""
        ...

    def offer(self, alerts: list[Alert]) -> None:
        """Take alerts into the queue."""
        ...

    def pump(self) -> list[str]:
        """Send what can be sent now; the ids of alerts that are done with since the last call."""
        ...

    def wait_s(self) -> float:
        """Seconds until `pump` can do more."""
        ...


def moment_of(time_us: int) -> datetime | None:
    """The moment of a time in microseconds UTC, None where the calendar does not reach it."""
    try:
        seconds, us = divmod(time_us, 1_000_000)
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=us)
    except (ValueError, OverflowError, OSError):
        return None


def printable(text: str) -> str:
    """The text with everything a terminal could obey, or not show, written out as its escape.

    >>> printable("card \\x1b[2J\\u202e4")
    'card \\\\x1b[2J\\\\u202e4'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """The text as `printable` gives it, line by line: what ends a line stays.

    >>> printable_lines("one\\x1bc\\ntwo")
    'one\\\\x1bc\\ntwo'
    """
    return "\n".join(map(printable, text.split("\n")))


def _number(value: Any) -> float | None:
    """A number that may be absent."""
    return None if value is None else float(value)


def _or_nan(value: Any) -> float:
    """A number, NaN where it is absent."""
    return math.nan if value is None else float(value)


def _finite(value: Any) -> Any:
    """Plain data with None in place of NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
