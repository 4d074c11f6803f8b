"""Avro schemas of the event types, and the rule by which a new schema may follow an old one.

The schema is written from the declaration, never by hand; `deploy/schemas/*.avsc` are its committed
copies, so that a change is seen in review and an incompatible one is refused before it is deployed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from features.events import event_type
from features.events.base import EventType, Field

__all__ = ["avro_schema", "incompatibilities"]

NAMESPACE = "waxwing"

_KINDS: dict[str, Any] = {
    "string": "string",
    "float64": "double",
    "int64": "long",
    "bool": "boolean",
    "time_us": {"type": "long", "logicalType": "timestamp-micros"},
}

_PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}
"""Writer's type -> reader's types it may be read as. Avro 1.11, section Schema Resolution."""


def avro_schema(event_type_name: str) -> dict[str, Any]:
    """The Avro record of an event type.

    Examples
    --------
    >>> avro_schema("payment")["fields"][1]["type"]
    {'type': 'long', 'logicalType': 'timestamp-micros'}

    Raises
    ------
    ConfigError : unknown event type
    """
    event = event_type(event_type_name)
    return {
        "type": "record",
        "name": event.name,
        "namespace": NAMESPACE,
        "doc": event.doc,
        "fields": [_field(event, f) for f in event.fields],
    }


def _field(event: EventType, field: Field) -> dict[str, Any]:
    """One field of the record; what may be left out is a union with null."""
    kind: Any = _KINDS.get(field.kind)
    if field.kind == "enum":
        kind = {"type": "enum", "name": f"{event.name}_{field.name}", "symbols": list(field.values)}
    elif isinstance(kind, dict):
        kind = dict(kind)
    if field.nullable:
        # Avro: the default belongs to the first branch of a union.
        kind = ["null", kind] if field.default is None else [kind, "null"]
    doc = field.doc + (f", {field.unit}" if field.unit else "")
    written = {"name": field.name, "type": kind, "doc": doc}
    if field.nullable or field.default is not None:
        written["default"] = field.default
    return written


def incompatibilities(reader: Mapping[str, Any], writer: Mapping[str, Any]) -> list[str]:
    """Why records of `writer` cannot be read with `reader`; empty where the change is compatible.

    Parameters
    ----------
    reader : the newer record schema
    writer : the older one, whose records still lie in the topic

    Examples
    --------
    >>> incompatibilities(avro_schema("login"), avro_schema("login"))
    []

    Source: Apache Avro 1.11, section Schema Resolution; records are compared field by field and not
    by name, as Confluent's registry does for the value of a topic.
    """
    theirs = {f["name"]: f for f in writer["fields"]}
    faults = []
    for field in reader["fields"]:
        name = field["name"]
        if name in theirs:
            faults += _mismatches(field["type"], theirs[name]["type"], f"field {name!r}")
        elif "default" not in field:
            faults.append(
                f"field {name!r}: new and without a default, so older records cannot be read;"
                " give it a default or make it nullable"
            )
    return faults


def _mismatches(reader: Any, writer: Any, where: str) -> list[str]:
    """Faults of reading a field of type `writer` as `reader`."""
    if isinstance(writer, list):
        return [fault for branch in writer for fault in _mismatches(reader, branch, where)]
    if isinstance(reader, list):
        tried = [_mismatches(branch, writer, where) for branch in reader]
        if any(not faults for faults in tried):
            return []
        # The branch of the same type says more than that none fits.
        same = [f for b, f in zip(reader, tried, strict=True) if _name(b) == _name(writer)]
        return same[0] if same else [_cannot(writer, reader, where)]
    if _name(reader) != _name(writer):
        fits = _name(reader) in _PROMOTIONS.get(_name(writer), ())
        return [] if fits else [_cannot(writer, reader, where)]
    if _name(reader) == "enum":
        gone = [s for s in writer["symbols"] if s not in reader["symbols"]]
        if gone and "default" not in reader:
            return [f"{where}: older records may say {', '.join(gone)}; keep these words"]
        return []
    if _name(reader) in ("array", "map"):
        inner = "items" if _name(reader) == "array" else "values"
        return _mismatches(reader[inner], writer[inner], f"{where}, its {inner}")
    if _name(reader) == "record":
        return [f"{where}: {fault}" for fault in incompatibilities(reader, writer)]
    if _name(reader) == "fixed" and reader["size"] != writer["size"]:
        return [f"{where}: {writer['size']} bytes cannot be read as {reader['size']}"]
    return []


def _name(kind: Any) -> str:
    """Name of an Avro type, logical types taken off."""
    return _name(kind["type"]) if isinstance(kind, Mapping) else str(kind)


def _cannot(writer: Any, reader: Any, where: str) -> str:
    """The fault of two types that do not fit."""
    wanted = " or ".join(_name(b) for b in reader) if isinstance(reader, list) else _name(reader)
    return f"{where}: older records hold {_name(writer)}, which cannot be read as {wanted}"
