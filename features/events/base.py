"""What an event type is: its fields with types, units and ranges, and the entities it touches.

One declaration (a module beside this one with a constant `EVENT`) is the source of the Avro schema,
the decoder, the contract check, the simulator's columns and the reference page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from features.errors import DeclarationError

__all__ = ["NAME", "NUMBER_MAX", "EventType", "Field", "FieldKind"]

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


NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
"""Names of event types, fields, entities and features: they become names of files, columns and Avro
records."""

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
"""Names of topics, as Kafka allows them."""

_TEXT = ("string", "enum")

NUMBER_MAX = 1e15
"""Bound, either way, of a float64 that declares none, and of a column that a user makes. Chosen: no
measure is larger, and squares of it, a million times added up, are still numbers."""


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
    minimum, maximum : inclusive bounds of a number, of a float64 -1e15 and 1e15 where nothing is
        said; NaN and infinities are always refused
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
    def bounds(self) -> tuple[float, float]:
        """Least and largest number that is taken."""
        widest = NUMBER_MAX if self.kind == "float64" else math.inf
        return (
            -widest if self.minimum is None else self.minimum,
            widest if self.maximum is None else self.maximum,
        )

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
            if not NAME.fullmatch(name)
        ]
        faults += [
            f"event type {self.name!r}: {fault}" for f in self.fields for fault in _field_faults(f)
        ]
        if not _TOPIC.fullmatch(self.topic) or self.topic in (".", ".."):
            faults.append(
                f"event type {self.name!r}: topic {self.topic!r} may hold letters, digits, dots,"
                " underscores and dashes, 1 to 249 of them"
            )
        faults += [
            f"event type {self.name!r}: field {name!r} is missing; every event has an id and a time"
            for name in ("event_id", "time_us")
            if name not in names
        ]
        if self.primary not in self.entities:
            faults.append(
                f"event type {self.name!r}: primary entity {self.primary!r} is not one of"
                f" {', '.join(self.entities)}"
            )
        if self.quotes and self.quotes not in names:
            faults.append(f"event type {self.name!r}: quotes {self.quotes!r}, which is no field")
        faults += self._entity_faults(names)
        faults += self._silence_faults(names)
        if faults:
            raise DeclarationError(faults)

    def _entity_faults(self, names: list[str]) -> list[str]:
        """What is wrong with the entities and the subject."""
        start = f"event type {self.name!r}: "
        texts = [f.name for f in self.fields if f.kind in _TEXT]
        made = [(entity, column) for entity, columns in self.entities.items() for column in columns]
        faults = [
            f"{start}entity {entity!r} is made of {column!r}, which is no field; fields are"
            f" {', '.join(names)}"
            for entity, column in made
            if column not in names
        ]
        faults += [
            f"{start}entity {entity!r} is made of {column!r}, which holds no text; fields that do"
            f" are {', '.join(texts)}"
            for entity, column in made
            if column in names and column not in texts
        ]
        faults += [
            f"{start}entity {entity!r} has the name of a field; it must be made of that field"
            " alone, or be called otherwise"
            for entity, columns in self.entities.items()
            if entity in names and tuple(columns) != (entity,)
        ]
        faults += [
            f"{start}entity {entity!r} is made of no field"
            for entity, columns in self.entities.items()
            if not columns
        ]
        return faults + [
            f"{start}subject {column!r} is no field that holds text; those are {', '.join(texts)}"
            for column in self.subject or ()
            if column not in texts
        ]

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
    if field.default is not None and (wanted := _default_wanted(field)):
        faults.append(f"field {field.name!r}: default {field.default!r} is not {wanted}")
    return faults


def _default_wanted(field: Field) -> str:
    """What the default of a field should have been; empty where it is."""
    value = field.default
    number = isinstance(value, int | float) and not isinstance(value, bool)
    low, high = field.bounds
    within = number and math.isfinite(float(value or 0)) and low <= float(value or 0) <= high
    fits, wanted = {
        "string": (
            isinstance(value, str) and len(value.encode()) <= field.length_max,
            f"a text of at most {field.length_max} bytes",
        ),
        "enum": (value in field.values, f"one of {', '.join(field.values)}"),
        "float64": (within, "a number within the bounds"),
        "int64": (within and isinstance(value, int), "a whole number within the bounds"),
        "bool": (isinstance(value, bool), "True or False"),
        "time_us": (within and isinstance(value, int), "a whole number of microseconds"),
    }.get(field.kind, (True, ""))
    return "" if fits else wanted
