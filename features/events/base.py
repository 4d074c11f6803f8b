"""What an event type is: its fields with types, units and ranges, and the entities it touches.

One declaration (a module beside this one with a constant `EVENT`) is the source of the Avro schema,
the decoder, the contract check, the simulator's columns and the reference page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from features.errors import DeclarationError

__all__ = ["EventType", "Field", "FieldKind"]

FieldKind = Literal["string", "float64", "int64", "bool", "time_us", "enum"]

STRING_LENGTH_MAX = 256
"""Longest string accepted where a field names no length of its own; chosen: ids and names are far
shorter."""

_POLARS: dict[str, pl.DataType] = {
    "string": pl.String(),
    "enum": pl.String(),
    "float64": pl.Float64(),
    "int64": pl.Int64(),
    "bool": pl.Boolean(),
    "time_us": pl.Int64(),
}


_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
"""Names of event types, fields and entities: they become names of files, columns and Avro records.
"""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an event.

    Parameters
    ----------
    name : the column's name
    kind : `string`, `float64`, `int64`, `bool`, `time_us` (int64 microseconds UTC) or `enum`
    doc : what it means, one line
    unit : SI or ISO 4217 name; empty where it has none
    nullable : whether a producer may leave it out (Avro: union with null, default null)
    minimum, maximum : inclusive bounds of a number; NaN and infinities are always refused
    values : the words an `enum` may take
    length_max : longest string, in bytes
    default : what readers assume where an older producer does not send the field yet; needed on
        every field added after the first release, so that schemas stay backward compatible
    """

    name: str
    kind: FieldKind
    doc: str
    unit: str = ""
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    values: tuple[str, ...] = ()
    length_max: int = STRING_LENGTH_MAX
    default: str | float | int | bool | None = None

    @property
    def dtype(self) -> pl.DataType:
        """The polars type of the column."""
        return _POLARS[self.kind]


@dataclass(frozen=True, slots=True)
class EventType:
    """One kind of event: fields in order, the entities it touches and the topic it arrives on.

    Parameters
    ----------
    name : singular noun, also the name of its module
    doc : one sentence
    topic : Kafka topic
    fields : in the order of the Avro record; `event_id` and `time_us` are always among them
    entities : entity type -> the columns whose values together name one entity
    primary : the entity type that a person would call the subject of the event (alerts name it,
        the sequence model follows it)
    silence : entity type whose silence means something -> its holder and its pool of peers, as far
        as it has them (entities or string fields of the event): `features.silence`
    subject : fields that hold entity type and name, where the event tells of any entity; None where
        it tells of its primary one
    quotes : field whose words a summary of an alert quotes; empty where ids and numbers are all
    """

    name: str
    doc: str
    topic: str
    fields: tuple[Field, ...]
    entities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    primary: str = ""
    silence: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    subject: tuple[str, str] | None = None
    quotes: str = ""

    def __post_init__(self) -> None:
        names = [f.name for f in self.fields]
        faults = [
            f"event type {self.name!r}: field {name!r} is declared twice"
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        said = (self.name, *dict.fromkeys(names), *self.entities)
        faults += [
            f"event type {self.name!r}: name {name!r} may hold small letters, digits and"
            " underscores and begins with a letter"
            for name in said
            if not _NAME.fullmatch(name)
        ]
        faults += [
            f"event type {self.name!r}: {fault}" for f in self.fields for fault in _field_faults(f)
        ]
        if not self.topic:
            faults.append(f"event type {self.name!r}: has no topic")
        faults += [
            f"event type {self.name!r}: field {name!r} is missing; every event has an id and a time"
            for name in ("event_id", "time_us")
            if name not in names
        ]
        faults += [
            f"event type {self.name!r}: entity {entity!r} is made of {column!r}, which is no field;"
            f" fields are {', '.join(names)}"
            for entity, columns in self.entities.items()
            for column in columns
            if column not in names
        ]
        if self.primary not in self.entities:
            faults.append(
                f"event type {self.name!r}: primary entity {self.primary!r} is not one of"
                f" {', '.join(self.entities)}"
            )
        if self.quotes and self.quotes not in names:
            faults.append(f"event type {self.name!r}: quotes {self.quotes!r}, which is no field")
        faults += self._silence_faults(names)
        if faults:
            raise DeclarationError(faults)

    def _silence_faults(self, names: list[str]) -> list[str]:
        """What is wrong with the entities whose silence is watched."""
        valid = (*self.entities, *names)
        faults = [
            f"event type {self.name!r}: silence of {entity!r}, which is not one of"
            f" {', '.join(self.entities)}"
            for entity in self.silence
            if entity not in self.entities
        ]
        faults += [
            f"event type {self.name!r}: silence of {entity!r} beside {peer!r}, which is neither an"
            f" entity nor a field; there are {', '.join(valid)}"
            for entity, peers in self.silence.items()
            for peer in peers
            if peer not in valid
        ]
        return faults + [
            f"event type {self.name!r}: silence of {entity!r} beside {len(peers)} others; a holder"
            " and a pool are the most"
            for entity, peers in self.silence.items()
            if len(peers) > 2
        ]

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """Column name -> polars type, in declared order."""
        return {f.name: f.dtype for f in self.fields}

    @property
    def money(self) -> tuple[str, ...]:
        """Fields that hold money of the currency in the event's field `currency`."""
        if self.schema.get("currency") != pl.String():
            return ()
        return tuple(f.name for f in self.fields if f.kind == "float64" and f.unit == "currency")

    def field(self, name: str) -> Field:
        """The field called `name`; DeclarationError with the valid names where there is none."""
        for candidate in self.fields:
            if candidate.name == name:
                return candidate
        raise DeclarationError(
            f"event type {self.name!r} has no field {name!r}; fields are"
            f" {', '.join(f.name for f in self.fields)}"
        )


def _field_faults(field: Field) -> list[str]:
    """What is wrong with one field."""
    faults = []
    needed = {"event_id": "string", "time_us": "time_us"}.get(field.name, field.kind)
    if field.kind not in _POLARS:
        faults.append(
            f"field {field.name!r}: unknown kind {field.kind!r}; kinds are {', '.join(_POLARS)}"
        )
    elif field.kind != needed or (field.nullable and field.name in ("event_id", "time_us")):
        faults.append(f"field {field.name!r}: must be of kind {needed!r} and not nullable")
    if (field.kind == "enum") != bool(field.values):
        faults.append(
            f"field {field.name!r}: `values` are the words of an enum, and of nothing else"
        )
    bounds = (field.minimum, field.maximum)
    if None not in bounds and not bounds[0] <= bounds[1]:  # type: ignore[operator]
        faults.append(f"field {field.name!r}: minimum {bounds[0]} is above maximum {bounds[1]}")
    return faults
