"""Events to bytes: byte for byte what the reference writes, and broken records that are broken."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.encode import avro_bodies, confluent_header, json_bodies
from features.errors import ContractError, DeclarationError
from features.events import event_type, event_types
from features.events.avro import avro_schema
from features.simulate import Simulator
from features.simulate.malformed import FAULTS, LONG_STRING_BYTES, break_some

START_US = 1_772_409_600_000_000

SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "thing",
    "fields": [
        {"name": "text", "type": "string"},
        {"name": "maybe", "type": ["null", "string"], "default": None},
        {"name": "last", "type": ["double", "null"]},
        {"name": "count", "type": "long"},
        {"name": "few", "type": ["null", "int"]},
        {"name": "yes", "type": "boolean"},
        {"name": "kind", "type": {"type": "enum", "name": "k", "symbols": ["a", "b", "c"]}},
        {"name": "kin", "type": ["null", {"type": "enum", "name": "l", "symbols": ["x", "y"]}]},
    ],
}
INT64 = st.integers(-(2**63), 2**63 - 1)
ROW = st.fixed_dictionaries(
    {
        "text": st.text(max_size=300),
        "maybe": st.none() | st.text(max_size=5),
        "last": st.none() | st.floats(),
        "count": INT64,
        "few": st.none() | st.integers(-(2**31), 2**31 - 1),
        "yes": st.booleans(),
        "kind": st.sampled_from("abc"),
        "kin": st.none() | st.sampled_from("xy"),
    }
)
POLARS: dict[str, Any] = {
    "text": pl.String, "maybe": pl.String, "last": pl.Float64, "count": pl.Int64, "few": pl.Int64,
    "yes": pl.Boolean, "kind": pl.String, "kin": pl.String,
}  # fmt: skip


def reference(schema: dict[str, Any], rows: list[dict[str, Any]]) -> list[bytes]:
    """The bodies as fastavro writes them, one by one."""
    parsed = fastavro.parse_schema(schema)
    bodies = []
    for row in rows:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, row)
        bodies.append(out.getvalue())
    return bodies


@given(rows=st.lists(ROW, max_size=8))
def test_bodies_are_those_of_the_reference(rows: list[dict[str, Any]]) -> None:
    frame = pl.DataFrame(rows, schema=POLARS, orient="row")
    assert avro_bodies(SCHEMA, frame) == reference(SCHEMA, rows)


@pytest.mark.parametrize("name", event_types())
def test_events_are_written_as_the_reference_writes_them(name: str) -> None:
    batch = Simulator(seed=1, cards=500).span(START_US, START_US + 600_000_000)[name]
    schema = avro_schema(name)
    header = confluent_header(77)
    bodies = avro_bodies(schema, batch.frame, header)
    assert [body[:5] for body in bodies] == [header] * len(batch)
    assert [body[5:] for body in bodies] == reference(schema, batch.frame.to_dicts())


def test_no_rows_give_no_bodies() -> None:
    assert avro_bodies(SCHEMA, pl.DataFrame(schema=POLARS)) == []
    assert json_bodies(pl.DataFrame(schema=POLARS)) == []


def test_a_slice_of_a_frame_is_written_as_itself() -> None:
    frame = Simulator(seed=1, cards=500).span(START_US, START_US + 600_000_000)["login"].frame
    schema = avro_schema("login")
    assert avro_bodies(schema, frame.slice(20, 10)) == avro_bodies(schema, frame)[20:30]


def test_what_the_schema_cannot_hold_is_refused() -> None:
    row = {"text": "t", "count": 1, "yes": True, "kind": "a"}
    good = pl.DataFrame([row], schema=POLARS, orient="row")
    assert len(avro_bodies(SCHEMA, good)) == 1
    with pytest.raises(ContractError, match="'text' is null"):
        avro_bodies(SCHEMA, good.with_columns(pl.lit(None, pl.String).alias("text")))
    with pytest.raises(ContractError, match="thing"):
        avro_bodies(SCHEMA, good.with_columns(pl.lit("z").alias("kind")))
    for kind in (["null", "string", "long"], {"type": "map", "values": "long"}):
        with pytest.raises(DeclarationError):
            avro_bodies({"name": "n", "fields": [{"name": "text", "type": kind}]}, good)


def test_json_bodies_read_back() -> None:
    frame = Simulator(seed=1, cards=500).span(START_US, START_US + 60_000_000)["payment"].frame
    assert [json.loads(body) for body in json_bodies(frame)] == frame.to_dicts()


@pytest.mark.parametrize("name", event_types())
@pytest.mark.parametrize("avro", [True, False])
def test_broken_records_are_broken_in_the_way_they_say(
    name: str, avro: bool, rng: np.random.Generator
) -> None:
    batch = Simulator(seed=1, events_per_s=20.0, cards=500).span(START_US, START_US + 300_000_000)[
        name
    ]
    schema = avro_schema(name)
    parsed = fastavro.parse_schema(schema)

    def encode(frame: pl.DataFrame) -> list[bytes]:
        return avro_bodies(schema, frame, confluent_header(3)) if avro else json_bodies(frame)

    broken = break_some(rng, batch, 0.2, encode, avro)
    assert len(broken) == pytest.approx(0.2 * len(batch), rel=0.3)
    assert {fault for fault, _, _ in broken} == set(FAULTS if avro else FAULTS[:-1])
    for fault, row, message in broken:
        if fault == "garbage":
            assert message[:1] == b"\xff"  # neither Confluent's zero nor UTF-8
            continue
        if fault in ("truncated", "empty"):
            with pytest.raises((EOFError, IndexError, ValueError)):
                if avro:
                    fastavro.schemaless_reader(io.BytesIO(message[5:]), parsed, None)
                else:
                    json.loads(message)
            continue
        if fault == "unknown_schema":
            assert message[:1] == b"\0" and message[:5] != confluent_header(3)
            continue
        if avro:
            read = fastavro.schemaless_reader(io.BytesIO(message[5:]), parsed, None)
        else:
            read = json.loads(message)
        assert breaks_contract(name, read, int(batch.time_us[row])), (fault, read)


def breaks_contract(name: str, event: dict[str, Any], time_us: int) -> bool:
    """Whether a field is outside its declaration, or the time far from the model's."""
    for field in event_type(name).fields:
        value = event[field.name]
        if field.kind == "string" and value is not None and len(value) >= LONG_STRING_BYTES:
            return True
        if field.kind == "float64" and value is not None:
            low = -np.inf if field.minimum is None else field.minimum
            high = np.inf if field.maximum is None else field.maximum
            if not np.isfinite(value) or not low <= value <= high:
                return True
    at = event["time_us"]
    at_us = at if isinstance(at, int) else round(at.timestamp() * 1e6)
    return bool(abs(at_us - time_us) > 300 * 86_400_000_000)
