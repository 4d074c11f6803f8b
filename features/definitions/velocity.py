"""How often: counts of an entity's events in windows, against its own usual rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from features.definitions import WINDOWS
from features.spec import Feature

__all__ = ["FEATURES"]

_SPOKEN = {"1m": "1 min", "5m": "5 min", "1h": "1 h"}


def _counts(
    event: str,
    entity: str,
    noun: str,
    labels: tuple[str, ...],
    *,
    rate: bool = True,
    where: str | None = None,
    adjective: str = "",
    peers: Mapping[str, str] | None = None,
) -> tuple[Feature, ...]:
    """Count in each window; with `rate`, the usual count and how surprising the count is; of a new
    entity the usual count is that of its peers in windows for which `peers` names it."""
    found: list[Feature] = []
    stem = f"{entity}_{where}" if where else entity
    for label in labels:
        window, spoken = WINDOWS[label], _SPOKEN[label]
        count, usual = f"{stem}_count_{label}", f"{stem}_usual_{label}"
        what = f"{{value}} {adjective}{noun} of this {entity.replace('_', ' ')} in {spoken}"
        found.append(
            Feature(
                count,
                event,
                entity,
                "count",
                what + ("; usual {baseline}" if rate else ""),
                "1",
                "velocity",
                where=where,
                window_s=window,
                baseline=usual if rate else None,
            )
        )
        if rate:
            found.append(
                Feature(
                    usual,
                    event,
                    entity,
                    "usual_count",
                    f"{{value}} {adjective}{noun} in {spoken} would be usual",
                    "1",
                    "velocity",
                    where=where,
                    window_s=window,
                    high_is_odd=None,
                )
            )
            if label in (peers or {}):
                usual = f"{stem}_expected_{label}"
                found[-2] = replace(found[-2], baseline=usual)
                found.append(_expected(event, entity, usual, noun, spoken, (peers or {})[label]))
            found.append(
                Feature(
                    f"{stem}_surprise_{label}",
                    event,
                    entity,
                    "surprise",
                    f"{adjective}{noun} of this {entity.replace('_', ' ')} in {spoken} are"
                    " {value}"
                    " above the usual {baseline}",
                    "sigma",
                    "velocity",
                    column=count,
                    other=usual,
                    baseline=usual,
                )
            )
    return tuple(found)


def _expected(event: str, entity: str, name: str, noun: str, spoken: str, peers: str) -> Feature:
    """What an entity usually does, or its peers while it is new."""
    return Feature(
        name,
        event,
        entity,
        "shrunk_count",
        f"{{value}} {noun} in {spoken} would be usual, of its peers while it is new",
        "1",
        "velocity",
        column=name.replace("_expected_", "_usual_"),
        other=peers,
        count=f"{entity}_age_s",
        high_is_odd=None,
    )


def _since(event: str, entity: str, noun: str) -> tuple[Feature, ...]:
    """Gap to the previous event, against the usual gap."""
    spoken = entity.replace("_", " ")
    return (
        Feature(
            f"{entity}_since_s",
            event,
            entity,
            "since",
            f"{{value}} since the previous {noun} of this {spoken}",
            "s",
            "velocity",
            high_is_odd=None,
        ),
        Feature(
            f"{entity}_gap_z",
            event,
            entity,
            "z",
            f"the gap to the previous {noun} of this {spoken} is {{value}} from its usual one",
            "sigma",
            "velocity",
            column=f"log({entity}_since_s)",
            high_is_odd=False,
        ),
    )


def _pace(name: str, event: str, entity: str, column: str, why: str, odd: bool | None) -> Feature:
    """How often of late, against a level of weeks."""
    return Feature(
        name, event, entity, "creep", why, "sigma", "velocity", column=column, high_is_odd=odd
    )


FEATURES: tuple[Feature, ...] = (
    *_counts("payment", "card", "payments", ("1m", "5m", "1h")),
    *_since("payment", "card", "payment"),
    *_counts(
        "payment", "card", "payments", ("1h",), where="declined", adjective="declined ", rate=False
    ),
    Feature(
        "card_ever",
        "payment",
        "card",
        "ever",
        "{value} payments of this card before this one",
        "1",
        "velocity",
        high_is_odd=False,
    ),
    _pace(
        "card_gap_creep",
        "payment",
        "card",
        "log(card_since_s)",
        "the gaps between this card's payments are these days {value} from their level of weeks",
        False,
    ),
    *_counts("payment", "merchant", "payments", ("5m", "1h")),
    Feature(
        "merchant_ever",
        "payment",
        "merchant",
        "ever",
        "{value} payments of this merchant before this one",
        "1",
        "velocity",
        high_is_odd=None,
    ),
    _pace(
        "merchant_rate_creep",
        "payment",
        "merchant",
        "log(merchant_count_1h)",
        "payments per hour at this merchant are these days {value} from their level of weeks",
        None,
    ),
    *_counts("payment", "device", "payments", ("5m", "1h"), rate=False),
    *_counts("payment", "device", "payments", ("1h",), peers={"1h": "card_usual_1h"})[1:],
    *_counts("payment", "ip", "payments", ("5m", "1h"), rate=False),
    *_counts("login", "user", "logins", ("1m", "5m", "1h")),
    *_since("login", "user", "login"),
    *_counts(
        "login", "user", "logins", ("5m", "1h"), where="failed", adjective="failed ", rate=False
    ),
    _pace(
        "user_gap_creep",
        "login",
        "user",
        "log(user_since_s)",
        "the gaps between this user's logins are these days {value} from their level of weeks",
        False,
    ),
    *_counts("login", "ip", "logins", ("1m", "5m", "1h"), peers={"1h": "user_usual_1h"}),
    *_counts(
        "login", "ip", "logins", ("5m", "1h"), where="failed", adjective="failed ", rate=False
    ),
    _pace(
        "ip_rate_creep",
        "login",
        "ip",
        "log(ip_count_1h)",
        "logins per hour from this address are these days {value} from their level of weeks",
        None,
    ),
    *_counts("login", "device", "logins", ("5m", "1h"), rate=False),
    *_counts("app_log", "service", "lines", ("1m", "5m", "1h")),
    *_counts("app_log", "service", "lines", ("1m", "5m", "1h"), where="error", adjective="error "),
    _pace(
        "service_rate_creep",
        "app_log",
        "service",
        "log(service_count_5m)",
        "lines of this service in 5 min are these days {value} from their level of weeks",
        None,
    ),
    *_counts("app_log", "host", "lines", ("1m", "5m")),
    Feature(
        "host_usual_1h",
        "app_log",
        "host",
        "usual_count",
        "{value} lines of this host in 1 h would be usual",
        "1",
        "velocity",
        window_s=3600,
        high_is_odd=None,
    ),
    *_counts("app_log", "host", "lines", ("5m",), where="error", adjective="error "),
    _pace(
        "host_rate_creep",
        "app_log",
        "host",
        "log(host_count_5m)",
        "lines of this host in 5 min are these days {value} from their level of weeks",
        None,
    ),
    *_counts("app_log", "log_stream", "lines", ("5m", "1h")),
    _pace(
        "log_stream_rate_creep",
        "app_log",
        "log_stream",
        "log(log_stream_count_1h)",
        "lines of this message per hour are these days {value} from their level of weeks",
        None,
    ),
    Feature(
        "log_stream_ever",
        "app_log",
        "log_stream",
        "ever",
        "this message was seen {value} times before in this service",
        "1",
        "velocity",
        high_is_odd=False,
    ),
    Feature(
        "log_stream_age_s",
        "app_log",
        "log_stream",
        "age",
        "this message was first seen {value} ago in this service",
        "s",
        "velocity",
        high_is_odd=False,
    ),
    Feature(
        "series_ever",
        "metric",
        "series",
        "ever",
        "{value} samples of this series before this one",
        "1",
        "velocity",
        high_is_odd=False,
    ),
    Feature(
        "series_since_s",
        "metric",
        "series",
        "since",
        "{value} since the previous sample of this series",
        "s",
        "velocity",
        high_is_odd=None,
    ),
    Feature(
        "series_gap_z",
        "metric",
        "series",
        "z",
        "the gap to the previous sample is {value} from its usual one",
        "sigma",
        "velocity",
        column="log(series_since_s)",
        high_is_odd=None,
    ),
)
