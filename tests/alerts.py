"""Alerts for tests: plain ones, and the worst that an event could put into one."""

from __future__ import annotations

import math
from typing import Any

from dataflows.alerts.base import Alert, Reason, Vote, alert_id

__all__ = ["ROUTING_KEY", "Time", "an_alert", "nasty_alert"]

BASE_US = 1_772_442_702_000_000
"""2026-03-02 09:11:42 UTC."""

ROUTING_KEY = "R0123456789abcdef0123456789abcde"


def an_alert(n: int = 1, entity: str | None = None, **other: Any) -> Alert:
    """The n-th alert, of its own card unless an entity is given."""
    entity = f"card_{n:06d}" if entity is None else entity
    event_id = other.pop("event_id", f"pay-{n:08d}")
    fields: dict[str, Any] = {
        "id": alert_id(event_id, "payment_fraud", "bundle-1"),
        "anomaly_type": "payment_fraud",
        "severity": "error",
        "event_type": "payment",
        "event_id": event_id,
        "entity_type": "card",
        "entity": entity,
        "time_us": BASE_US + n * 1_000_000,
        "cut_time_us": BASE_US + n * 1_000_000 + 100_000,
        "round": n,
        "score": 0.99991,
        "votes": (Vote("zscore", 0.9998, 0.999, True), Vote("transformer", None, 0.999, False)),
        "reasons": (
            Reason("tx_count_1m", "7 payments in 1 min; usual 0.2", 7.0, 0.2, "1"),
            Reason("distance_km", "8,210 km from home", 8210.0, None, "km"),
        ),
        "bundle_id": "bundle-1",
        "summary": f"payment fraud: card {entity}: 7 payments in 1 min; usual 0.2",
        "latency_due_ns": 5,
    }
    return Alert(**(fields | other))


def nasty_alert(repeats: int = 20) -> Alert:
    """Everything not finite, not printable, not in Unicode, and as long as one likes."""
    text = '\x1b[2J\x07\r\n\u202e\u2028\x00"\\\ud800\U0001f4a5é' * repeats
    return an_alert(
        event_id=text,
        entity=text,
        anomaly_type=text,
        entity_type=text,
        event_type=text,
        severity="",
        bundle_id=text,
        summary=text,
        score=math.nan,
        time_us=-(2**62),
        votes=tuple(Vote(f"{i}{text}", math.inf, -math.inf, True) for i in range(100)),
        reasons=tuple(Reason(text, text, math.nan, math.inf, text) for _ in range(50)),
    )


class Time:
    """A clock that stands still until the test lets time pass, or what it tests sleeps."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """What the code under test calls."""
        self.slept.append(seconds)
        self.passes(seconds)

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
