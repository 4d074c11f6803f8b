"""One line of an application's log, already split into template and fields."""

from __future__ import annotations

from features.events.base import EventType, Field

__all__ = ["EVENT"]

EVENT = EventType(
    name="app_log",
    doc="One log line of a service: level, message template, duration of what it reports.",
    topic="app_logs",
    fields=(
        Field("event_id", "string", "unique id given by the producer", length_max=96),
        Field("time_us", "time_us", "when it was written", unit="us"),
        Field("service", "string", "application that wrote it", length_max=128),
        Field("host", "string", "machine or pod it ran on", length_max=128),
        Field(
            "level",
            "enum",
            "severity",
            values=("debug", "info", "warning", "error", "fatal"),
            default="info",
        ),
        Field(
            "template", "string", "the message with its variable parts taken out", length_max=512
        ),
        Field(
            "duration_ms",
            "float64",
            "how long the reported request took",
            unit="ms",
            nullable=True,
            minimum=0.0,
            maximum=1e9,
        ),
        Field(
            "status",
            "int64",
            "status code of the reported request",
            nullable=True,
            minimum=0,
            maximum=9999,
        ),
    ),
    entities={
        "service": ("service",),
        "host": ("host",),
        "log_stream": ("service", "template"),
    },
    primary="service",
    silence={"service": (), "host": ("service",)},
    quotes="template",
)
