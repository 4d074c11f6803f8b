"""An alert as an event of PagerDuty's Events API v2, within every limit that its pages document.

https://developer.pagerduty.com/docs/events-api-v2/trigger-events/ (read 2026-11): a summary of
1,024 characters, a dedup_key of 255, four severities, 512 KB in all.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from dataflows.alerts.base import Alert, moment_of

__all__ = ["SEVERITIES", "dedup_key", "severity_of", "trigger"]

SEVERITIES = ("critical", "error", "warning", "info")
"""PagerDuty's severities, the most severe first."""

SUMMARY_CHARACTERS_MAX = 1_024
"""Origin: PagerDuty's page."""

DEDUP_KEY_CHARACTERS_MAX = 255
"""Origin: PagerDuty's page."""

TEXT_CHARACTERS_MAX = 512
"""Longest text in custom_details. Chosen: with the counts below a body stays under 150 KB, whatever
characters it holds; PagerDuty takes 512 KB."""

VOTES_MAX = 50
"""Most votes told. Chosen: ten times the shipped detectors."""

REASONS_MAX = 10
"""Most reasons told. Chosen: an alert has three."""

MERGED_EVENTS_MAX = 20
"""Most event ids told of alerts that were merged into one. Chosen: enough to look some up."""

_OTHER_SEVERITIES = {"high": "error", "medium": "warning", "low": "info"}
"""Words that a voting.toml may use in place of PagerDuty's."""

_DIGEST_BYTES = 16


def severity_of(alert: Alert) -> str:
    """PagerDuty's severity of an alert; a word nobody knows is an error, not to be overlooked."""
    word = alert.severity.lower()
    if word in SEVERITIES:
        return word
    return _OTHER_SEVERITIES.get(word, "error")


def dedup_key(alert: Alert) -> str:
    """What PagerDuty knows an incident by: anomaly type and entity.

    Neither the event nor the bundle is part of it: a second payment of the same attack, the same
    alert after a restart, and the next day's model all belong to the incident that is open.
    """
    parts = ("waxwing", alert.anomaly_type, alert.entity_type, alert.entity)
    key = ":".join(parts)
    if len(key) <= DEDUP_KEY_CHARACTERS_MAX and key.isascii() and key.isprintable():
        return key
    told = "\x1f".join(parts).encode(errors="surrogatepass")
    return "waxwing:" + hashlib.blake2b(told, digest_size=_DIGEST_BYTES).hexdigest()


def trigger(
    alert: Alert, routing_key: str, count: int = 1, other_event_ids: Sequence[str] = ()
) -> dict[str, Any]:
    """The body of a trigger.

    Parameters
    ----------
    alert : the one that speaks for all that were merged
    count : how many alerts of the same incident it stands for
    other_event_ids : events of the others
    """
    more = "" if count == 1 else f" (and {count - 1:,} more)"
    said = alert.summary.strip() or f"{alert.anomaly_type}: {alert.entity_type} {alert.entity}"
    payload: dict[str, Any] = {
        "summary": _text(said, SUMMARY_CHARACTERS_MAX - len(more)) + more,
        "source": _text(f"{alert.entity_type} {alert.entity}", TEXT_CHARACTERS_MAX),
        "severity": severity_of(alert),
        "component": _text(alert.event_type, TEXT_CHARACTERS_MAX),
        "group": _text(alert.entity_type, TEXT_CHARACTERS_MAX),
        "class": _text(alert.anomaly_type, TEXT_CHARACTERS_MAX),
        "custom_details": _details(alert, count, other_event_ids),
    }
    when = moment_of(alert.time_us)
    if when is not None:
        payload["timestamp"] = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {
        "routing_key": routing_key,
        "event_action": "trigger",
        "dedup_key": dedup_key(alert),
        "client": "waxwing",
        "payload": payload,
    }


def _details(alert: Alert, count: int, other_event_ids: Sequence[str]) -> dict[str, Any]:
    """What a person who was paged wants to know."""
    details: dict[str, Any] = {
        "alert_id": alert.id,
        "event_id": alert.event_id,
        "event_type": alert.event_type,
        "anomaly_type": alert.anomaly_type,
        alert.entity_type: alert.entity,
        "bundle": alert.bundle_id,
    }
    details = {
        _text(name, TEXT_CHARACTERS_MAX): _text(value, TEXT_CHARACTERS_MAX)
        for name, value in details.items()
    }
    details |= {
        "score": _finite(alert.score),
        "count": count,
        "votes": {
            _text(v.detector, TEXT_CHARACTERS_MAX): {
                "score": _finite(v.score),
                "threshold": _finite(v.threshold),
                "vote": v.vote,
            }
            for v in alert.votes[:VOTES_MAX]
        },
        "reasons": [
            {
                "text": _text(r.text, TEXT_CHARACTERS_MAX),
                "feature": _text(r.feature, TEXT_CHARACTERS_MAX),
                "value": _finite(r.value),
                "usual": _finite(r.baseline),
                "unit": _text(r.unit, TEXT_CHARACTERS_MAX),
            }
            for r in alert.reasons[:REASONS_MAX]
        ],
    }
    if other_event_ids:
        details["other_event_ids"] = [
            _text(event_id, TEXT_CHARACTERS_MAX) for event_id in other_event_ids[:MERGED_EVENTS_MAX]
        ]
    return details


def _text(text: str, characters_max: int) -> str:
    """The text in UTF-8 that exists, cut with dots where it is too long."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= characters_max else text[: characters_max - 3] + "..."


def _finite(value: float | None) -> float | None:
    """The number, None where JSON has no word for it."""
    return value if value is not None and math.isfinite(value) else None
