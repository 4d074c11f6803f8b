"""A card payment, as the authorisation system reports it."""

from __future__ import annotations

from features.events.base import EventType, Field

__all__ = ["EVENT"]

EVENT = EventType(
    name="payment",
    doc="One authorisation of a card payment, approved or declined.",
    topic="payments",
    fields=(
        Field("event_id", "string", "unique id given by the producer", length_max=64),
        Field("time_us", "time_us", "when the payment was made", unit="us"),
        Field("card_id", "string", "card (or its token)", length_max=64),
        Field(
            "user_id", "string", "holder of the card; the same id as in login events", length_max=64
        ),
        Field("merchant_id", "string", "who is paid", length_max=64),
        Field("device_id", "string", "phone, browser or terminal", nullable=True, length_max=64),
        Field("ip", "string", "address the order came from", nullable=True, length_max=64),
        Field(
            "amount", "float64", "amount in `currency`", unit="currency", minimum=0.0, maximum=1e10
        ),
        Field("currency", "string", "ISO 4217 code", length_max=3, default="EUR"),
        Field("category", "string", "merchant category", length_max=32, default="other"),
        Field(
            "channel",
            "enum",
            "how it was made",
            values=("pos", "online", "atm", "transfer", "other"),
            default="other",
        ),
        Field("country", "string", "ISO 3166 code of the place", nullable=True, length_max=2),
        Field(
            "latitude", "float64", "place", unit="deg", nullable=True, minimum=-90.0, maximum=90.0
        ),
        Field(
            "longitude",
            "float64",
            "place",
            unit="deg",
            nullable=True,
            minimum=-180.0,
            maximum=180.0,
        ),
        Field("declined", "bool", "whether the issuer declined it", default=False),
    ),
    entities={
        "card": ("card_id",),
        "user": ("user_id",),
        "merchant": ("merchant_id",),
        "device": ("device_id",),
        "ip": ("ip",),
    },
    primary="card",
)
