"""Who with whom: cards on a device, users at an address, first times, logins before a payment."""

from __future__ import annotations

from features.definitions import WINDOWS
from features.spec import Feature

__all__ = ["FEATURES"]

_BOTH = ("payment", "login")
_SPOKEN = {"1m": "1 min", "5m": "5 min", "1h": "1 h"}


def _distinct(
    event: str,
    entity: str,
    other: str,
    noun: str,
    labels: tuple[str, ...],
    feeds: tuple[str, ...] = (),
) -> tuple[Feature, ...]:
    """How many different ones an entity was with in each window."""
    return tuple(
        Feature(
            f"{entity}_{noun}_{label}",
            event,
            entity,
            "distinct",
            f"{{value}} different {noun} with this {entity} in {_SPOKEN[label]}",
            "1",
            "cross_entity",
            feeds=feeds,
            other=other,
            window_s=WINDOWS[label],
        )
        for label in labels
    )


def _first(event: str, entity: str, other: str, feeds: tuple[str, ...] = ()) -> Feature:
    """Whether the two were never seen together."""
    return Feature(
        f"{entity}_{other}_first",
        event,
        entity,
        "first_time",
        f"first time of this {entity} with this {other}",
        "flag",
        "cross_entity",
        feeds=feeds,
        other=other,
    )


def _ever(event: str, entity: str, other: str, noun: str, feeds: tuple[str, ...] = ()) -> Feature:
    """How many different ones an entity was ever with."""
    return Feature(
        f"{entity}_{noun}_ever",
        event,
        entity,
        "distinct_ever",
        f"{{value}} different {noun} ever with this {entity}",
        "1",
        "cross_entity",
        feeds=feeds,
        other=other,
    )


def _share(event: str, entity: str, where: str, adjective: str, noun: str) -> Feature:
    """Share of an entity's last hour for which a condition holds."""
    return Feature(
        f"{entity}_{where}_share_1h",
        event,
        entity,
        "share",
        f"a share of {{value}} of this {entity}'s {noun} in 1 h {adjective}",
        "1",
        "cross_entity",
        where=where,
        window_s=3600,
    )


_PAYMENT = (
    *_distinct("payment", "device", "card", "cards", ("5m", "1h")),
    _ever("payment", "device", "card", "cards"),
    *_distinct("payment", "ip", "card", "cards", ("5m", "1h")),
    *_distinct("payment", "ip", "user", "users", ("1h",), _BOTH),
    *_distinct("payment", "merchant", "card", "cards", ("5m", "1h")),
    *_distinct("payment", "card", "merchant", "merchants", ("1h",)),
    *_distinct("payment", "card", "device", "devices", ("1h",)),
    _first("payment", "card", "merchant"),
    _first("payment", "card", "device"),
    _first("payment", "card", "ip"),
    _first("payment", "user", "device", _BOTH),
    _first("payment", "user", "ip", _BOTH),
    _first("payment", "merchant", "card"),
    Feature(
        "merchant_strangers",
        "payment",
        "merchant",
        "drift",
        "cards never seen at this merchant come {value} more often than usual",
        "sigma",
        "cross_entity",
        column="merchant_card_first",
    ),
    Feature(
        "merchant_strangers_creep",
        "payment",
        "merchant",
        "creep",
        "the share of cards never seen at this merchant is these days {value} from its level of"
        " weeks",
        "sigma",
        "cross_entity",
        column="merchant_card_first",
    ),
    _share("payment", "merchant", "declined", "was declined", "payments"),
    Feature(
        "merchant_declined_count_1h",
        "payment",
        "merchant",
        "count",
        "{value} declined payments at this merchant in 1 h; usual {baseline}",
        "1",
        "cross_entity",
        where="declined",
        window_s=3600,
        baseline="merchant_declined_usual_1h",
    ),
    Feature(
        "merchant_declined_usual_1h",
        "payment",
        "merchant",
        "usual_count",
        "{value} declined payments in 1 h would be usual",
        "1",
        "cross_entity",
        where="declined",
        window_s=3600,
        high_is_odd=None,
    ),
    Feature(
        "merchant_declined_surprise_1h",
        "payment",
        "merchant",
        "surprise",
        "declined payments at this merchant in 1 h are {value} above the usual {baseline}",
        "sigma",
        "cross_entity",
        column="merchant_declined_count_1h",
        other="merchant_declined_usual_1h",
        baseline="merchant_declined_usual_1h",
    ),
    _share("payment", "device", "declined", "was declined", "payments"),
    _share("payment", "ip", "declined", "was declined", "payments"),
    Feature(
        "device_age_s",
        "payment",
        "device",
        "age",
        "this device was first seen {value} ago",
        "s",
        "cross_entity",
        high_is_odd=False,
    ),
    Feature(
        "user_failed_logins_1h",
        "payment",
        "user",
        "count",
        "{value} failed logins of this user in the hour before",
        "1",
        "cross_entity",
        feeds=("login",),
        where="failed",
        window_s=3600,
    ),
    Feature(
        "user_logins_1h",
        "payment",
        "user",
        "count",
        "{value} logins of this user in the hour before",
        "1",
        "cross_entity",
        feeds=("login",),
        window_s=3600,
    ),
    Feature(
        "user_since_login_s",
        "payment",
        "user",
        "since",
        "{value} since this user's last login",
        "s",
        "cross_entity",
        feeds=("login",),
        high_is_odd=None,
    ),
)

_LOGIN = (
    *_distinct("login", "ip", "user", "users", ("1m", "5m", "1h")),
    *_distinct("login", "device", "user", "users", ("5m", "1h")),
    _ever("login", "device", "user", "users"),
    *_distinct("login", "user", "ip", "ips", ("1h",)),
    *_distinct("login", "user", "device", "devices", ("1h",)),
    *_distinct("login", "user", "country", "countries", ("1h",)),
    _first("login", "user", "device", _BOTH),
    _first("login", "user", "ip", _BOTH),
    _first("login", "ip", "user"),
    _share("login", "ip", "failed", "failed", "logins"),
    _share("login", "device", "failed", "failed", "logins"),
    _share("login", "user", "failed", "failed", "logins"),
    _share("login", "ip", "device_unknown", "came without a device", "logins"),
    Feature(
        "ip_age_s",
        "login",
        "ip",
        "age",
        "this address was first seen {value} ago",
        "s",
        "cross_entity",
        high_is_odd=False,
    ),
    Feature(
        "device_age_s",
        "login",
        "device",
        "age",
        "this device was first seen {value} ago",
        "s",
        "cross_entity",
        high_is_odd=False,
    ),
    Feature(
        "ip_failed_usual_1h",
        "login",
        "ip",
        "usual_count",
        "{value} failed logins in 1 h would be usual",
        "1",
        "cross_entity",
        where="failed",
        window_s=3600,
        high_is_odd=None,
    ),
    Feature(
        "ip_failed_surprise_1h",
        "login",
        "ip",
        "surprise",
        "failed logins from this address in 1 h are {value} above the usual {baseline}",
        "sigma",
        "cross_entity",
        column="ip_failed_count_1h",
        other="ip_failed_usual_1h",
        baseline="ip_failed_usual_1h",
    ),
)


def _peers(entity: str, other: str, noun: str, member: str) -> tuple[Feature, ...]:
    """A member of a pool or host against the others of the last ten minutes."""

    def one(name: str, op: str, why: str, unit: str, odd: bool | None) -> Feature:
        return Feature(
            f"{entity}_{name}",
            "metric",
            entity,
            op,
            why,
            unit,
            "cross_entity",
            column="log_value",
            other=other,
            window_s=600,
            high_is_odd=odd,
        )

    return (
        one(
            "level_z",
            "peers_level_z",
            f"the other {noun} are together {{value}} from their usual levels",
            "sigma",
            None,
        ),
        one(
            "abs_z",
            "peers_abs_z",
            f"the other {noun} are on average {{value}} from their usual levels, up or down",
            "sigma",
            True,
        ),
        one(
            "deviating",
            "peers_deviating",
            f"a share of {{value}} of the other {noun} deviates too",
            "1",
            True,
        ),
        one(
            "rel_z",
            "member_rel_z",
            f"this {member} deviates {{value}} more than the other {noun}",
            "sigma",
            None,
        ),
    )


_METRIC = (
    *_peers("pool", "host", "hosts", "host"),
    Feature(
        "pool_peer_z",
        "metric",
        "pool",
        "peer_z",
        "the value is {value} from the other hosts of the service",
        "sigma",
        "cross_entity",
        column="log_value",
        other="host",
        window_s=600,
        high_is_odd=None,
    ),
    Feature(
        "pool_gap_z",
        "metric",
        "pool",
        "peer_gap_z",
        "the gap to the other hosts of the service is {value} from its usual size",
        "sigma",
        "cross_entity",
        column="log_value",
        other="host",
        window_s=600,
        high_is_odd=None,
    ),
    *_peers("host", "metric", "metrics of the host", "metric"),
)

_APP_LOG = (
    _first("app_log", "service", "template"),
    _first("app_log", "host", "template"),
    *_distinct("app_log", "service", "template", "templates", ("5m", "1h")),
    _ever("app_log", "service", "template", "templates"),
    *_distinct("app_log", "host", "template", "templates", ("1h",)),
    _share("app_log", "service", "error", "are errors", "lines"),
    _share("app_log", "host", "error", "are errors", "lines"),
    _share("app_log", "service", "warning", "are warnings or worse", "lines"),
    _share("app_log", "service", "server_error", "report a server error", "lines"),
    Feature(
        "host_error_excess_1h",
        "app_log",
        "host",
        "difference",
        "the host's share of errors is {value} above the service's {baseline}",
        "1",
        "cross_entity",
        column="host_error_share_1h",
        other="service_error_share_1h",
        baseline="service_error_share_1h",
    ),
    Feature(
        "service_duration_level_z",
        "app_log",
        "service",
        "peers_level_z",
        "other messages of the service report durations {value} from their usual ones",
        "sigma",
        "cross_entity",
        column="log_duration",
        other="template",
        window_s=600,
    ),
    Feature(
        "service_duration_deviating",
        "app_log",
        "service",
        "peers_deviating",
        "a share of {value} of the service's other messages report unusual durations",
        "1",
        "cross_entity",
        column="log_duration",
        other="template",
        window_s=600,
    ),
    Feature(
        "service_duration_z",
        "app_log",
        "service",
        "member_z",
        "the duration is {value} from what this message usually reports",
        "sigma",
        "cross_entity",
        column="log_duration",
        other="template",
        window_s=600,
    ),
)

FEATURES: tuple[Feature, ...] = (*_PAYMENT, *_LOGIN, *_METRIC, *_APP_LOG)
