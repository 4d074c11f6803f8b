"""The reference page of all event types, written from their declarations.

`python -m features.event_reference > docs/events.md` writes it; a test keeps it fresh.
"""

from __future__ import annotations

import sys

from features.clock import REFUSALS
from features.decode import REASONS
from features.events import EventType, Field, event_types

__all__ = ["event_page"]

_TYPES = {
    "string": "text",
    "float64": "number",
    "int64": "integer",
    "bool": "true or false",
    "time_us": "integer",
    "enum": "word",
}


def event_page() -> str:
    """The page, Markdown."""
    lines = [
        "# Events",
        "",
        "<!-- Written by `python -m features.event_reference > docs/events.md`; a test keeps it",
        "fresh. -->",
        "",
        "Each event type is declared once, in a file of `features/events/`; the decoder, the",
        "check of every row, the Avro schemas in `deploy/schemas/`, the simulator's columns and",
        "this page come from it. On Kafka an event is Avro in Confluent framing, or a JSON object;",
        "in a file it is a row or a line. Fields that are not named here are ignored. A field that",
        "is *optional* may be absent or null; one with a *default* may be absent.",
    ]
    for event in event_types().values():
        lines += ["", f"## {event.name}", "", f"{event.doc} Topic `{event.topic}`.", ""]
        lines += ["| field | type | holds | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(f) for f in event.fields]
        lines += ["", _entities(event)]
    lines += [
        "",
        "## What is refused",
        "",
        "A record that is no event, or breaks the contract of its type, becomes a dead letter and",
        "the flow goes on. Times are held against the clock of the round, those of a file against",
        "the rows around them.",
        "",
        "| reason | meaning |",
        "| --- | --- |",
        *(f"| `{reason}` | {meaning} |" for reason, meaning in (REASONS | REFUSALS).items()),
        "| `not_a_row` | a line of CSV that has not the cells its header names |",
    ]
    return "\n".join(lines) + "\n"


def _row(field: Field) -> str:
    """A field as a row of the table."""
    return f"| `{field.name}` | {_TYPES[field.kind]} | {_holds(field)} | {_meaning(field)} |"


def _holds(field: Field) -> str:
    """What values a field may have."""
    said = []
    if field.kind == "string":
        said.append(f"at most {field.length_max} bytes")
    elif field.kind == "enum":
        said.append(", ".join(f"`{word}`" for word in field.values))
    elif field.kind == "time_us":
        said.append("microseconds UTC since 1970")
    elif field.minimum is not None and field.maximum is not None:
        said.append(f"{field.minimum:g} to {field.maximum:g}")
    if field.nullable:
        said.append("*optional*")
    if field.default is not None:
        value = str(field.default).lower() if isinstance(field.default, bool) else field.default
        said.append(f"*default* `{value}`")
    return "; ".join(said)


def _meaning(field: Field) -> str:
    """What a field means, with its unit."""
    said = not field.unit or field.kind == "time_us" or field.unit in field.doc
    return field.doc if said else f"{field.doc} ({field.unit})"


def _entities(event: EventType) -> str:
    """Which entities an event touches."""
    said = []
    for entity, columns in event.entities.items():
        by = " and ".join(f"`{column}`" for column in columns)
        said.append(f"{entity} ({by})")
    return f"Entities: {', '.join(said)}. Alerts name the {event.primary}."


if __name__ == "__main__":
    sys.stdout.write(event_page())
