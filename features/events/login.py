"""An attempt to log in, or the use of a session, as the identity provider reports it."""

from __future__ import annotations

from features.events.base import EventType, Field

__all__ = ["EVENT"]

EVENT = EventType(
    name="login",
    doc="One attempt to authenticate: password, second factor or the token of an open session.",
    topic="logins",
    fields=(
        Field("event_id", "string", "unique id given by the producer", length_max=64),
        Field("time_us", "time_us", "when it was tried", unit="us"),
        Field("user_id", "string", "account; the same id as in payment events", length_max=64),
        Field("device_id", "string", "phone or browser", nullable=True, length_max=64),
        Field("ip", "string", "address it came from", length_max=64),
        Field("country", "string", "ISO 3166 code of the address", nullable=True, length_max=2),
        Field(
            "latitude",
            "float64",
            "place of the address",
            unit="deg",
            nullable=True,
            minimum=-90.0,
            maximum=90.0,
        ),
        Field(
            "longitude",
            "float64",
            "place of the address",
            unit="deg",
            nullable=True,
            minimum=-180.0,
            maximum=180.0,
        ),
        Field(
            "method",
            "enum",
            "what was presented",
            values=("password", "mfa", "token", "other"),
            default="password",
        ),
        Field("success", "bool", "whether it was let in"),
    ),
    entities={"user": ("user_id",), "device": ("device_id",), "ip": ("ip",)},
    primary="user",
)
