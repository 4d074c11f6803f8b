"""One sample of one metric of one host."""

from __future__ import annotations

from features.events.base import EventType, Field

__all__ = ["EVENT"]

EVENT = EventType(
    name="metric",
    doc="One sample of one metric (cpu, memory, latency, ...) of one host.",
    topic="metrics",
    fields=(
        Field("event_id", "string", "unique id given by the producer", length_max=96),
        Field("time_us", "time_us", "when it was sampled", unit="us"),
        Field("host", "string", "machine, pod or sensor", length_max=128),
        Field("metric", "string", "name of the metric", length_max=128),
        Field(
            "service",
            "string",
            "what the host runs; hosts of one service are peers",
            length_max=128,
            default="default",
        ),
        Field(
            "value",
            "float64",
            "the sample, in the metric's own unit",
            minimum=-1e15,
            maximum=1e15,
        ),
    ),
    entities={
        "series": ("host", "metric"),
        "host": ("host",),
        "pool": ("service", "metric"),
    },
    primary="series",
    silence={"series": ("host", "pool"), "host": ("service",)},
)
