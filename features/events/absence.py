"""An entity that should have spoken and did not: made by the groups, never read from a source."""

from __future__ import annotations

from features.events.base import EventType, Field

__all__ = ["EVENT"]

EVENT = EventType(
    name="absence",
    doc="An entity is overdue against its own rhythm; made when event time has passed it by.",
    topic="absences",
    fields=(
        Field("event_id", "string", "made of entity type, key and due time", length_max=96),
        Field("time_us", "time_us", "when it was due, not when that was noticed", unit="us"),
        Field("entity_type", "string", "what is silent: host, series, service"),
        Field("entity", "string", "its name; `#` and its key where the name is not known"),
        Field("since_us", "time_us", "when it was last heard of", unit="us"),
        Field("gap_s", "float64", "how long it has been silent", unit="s"),
        Field("usual_gap_s", "float64", "geometric mean of its gaps", unit="s"),
        Field("hour_gap_s", "float64", "that of gaps begun at this hour of the day", unit="s",
              nullable=True),
        Field("allowed_s", "float64", "the gap it was allowed at this hour of the day", unit="s"),
        Field("irregularity", "float64", "standard deviation of the logarithm of its gaps"),
        Field("missed", "int64", "how many times it has been noticed in this silence, 1 at first"),
        Field("known_s", "float64", "how long it had been heard of before", unit="s"),
        Field("silences", "int64", "silences it has had before this one"),
        Field("holder_silent_share", "float64",
              "share of the others of its holder (series of the host, hosts of the service) that"
              " are silent too", nullable=True),
        Field("pool_silent_share", "float64",
              "share of its peers elsewhere (the same series of the service's other hosts) that are"
              " silent too", nullable=True),
    ),
    entities={"absent": ("entity_type", "entity")},
    primary="absent",
    subject=("entity_type", "entity"),
)  # fmt: skip
