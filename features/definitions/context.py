"""The event alone: what it says without any history."""

from __future__ import annotations

from features.spec import Feature

__all__ = ["FEATURES"]


def _value(
    event: str, name: str, why: str, unit: str = "1", high_is_odd: bool | None = True
) -> Feature:
    return Feature(
        name, event, "", "value", why, unit, "context", column=name, high_is_odd=high_is_odd
    )


FEATURES: tuple[Feature, ...] = (
    _value("payment", "log_amount", "the amount is {value} on a logarithmic scale", "1", None),
    _value("payment", "small", "the amount is tiny", "flag"),
    _value("payment", "round", "the amount is a large round sum", "flag"),
    _value("payment", "declined", "the payment was declined", "flag"),
    _value("payment", "remote", "no till was involved", "flag", None),
    _value("payment", "cash", "cash from a machine", "flag", None),
    _value("payment", "hour", "made at {value} UTC", "h", None),
    _value("login", "failed", "the login failed", "flag"),
    _value("login", "password", "a password was presented", "flag", None),
    _value("login", "token", "a session's token was presented", "flag", None),
    _value("login", "device_unknown", "no device was named", "flag"),
    _value("login", "hour", "made at {value} UTC", "h", None),
    _value("metric", "log_value", "the value is {value} on a logarithmic scale", "1", None),
    _value("metric", "hour", "sampled at {value} UTC", "h", None),
    _value("app_log", "error", "the line is an error", "flag"),
    _value("app_log", "warning", "the line is a warning or worse", "flag"),
    _value("app_log", "server_error", "the line reports a server error", "flag"),
    _value("app_log", "untimed", "the line reports no duration", "flag", None),
    _value("app_log", "log_duration", "the duration is {value} on a logarithmic scale", "1", None),
)
