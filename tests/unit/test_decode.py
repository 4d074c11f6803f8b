"""Bytes to events: what holds comes out as it went in, all else is a reject, and nothing raises."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from features.batch import EventBatch
from features.decode import (
    DETAIL_CHARS_MAX,
    REASONS,
    Decoded,
    check_contract,
    decode,
    schema_ids,
    warm_up,
)
from features.encode import avro_bodies, confluent_header, json_bodies
from features.events import event_type, event_types
from features.events.avro import avro_schema
from features.simulate import Simulator
from features.simulate.malformed import FAULTS, UNKNOWN_SCHEMA, break_some
from features.wire import _gather, _walk
from tests.calls import counted_calls

START_US = 1_772_409_600_000_000
DAY_US = 86_400_000_000
ID = 7
SCHEMAS: dict[str, dict[int, str | None]] = {
    name: {ID: json.dumps(avro_schema(name)), UNKNOWN_SCHEMA: None} for name in event_types()
}


def events(name: str, seconds: int = 300) -> EventBatch:
    """Some events of the simulator."""
    simulator = Simulator(seed=1, events_per_s=20.0, cards=500)
    return simulator.span(START_US, START_US + seconds * 1_000_000)[name]


def messages(name: str, frame: pl.DataFrame, encoding: str) -> list[bytes]:
    """The rows as a producer sends them."""
    if encoding == "json":
        return json_bodies(frame)
    return avro_bodies(avro_schema(name), frame, confluent_header(ID))


def read(
    name: str,
    encoding: Any,
    values: list[bytes | None],
    schemas: dict[int, str | None] | None = None,
) -> Decoded:
    """Decode, a day on either side of the simulator's start allowed; nothing may be lost."""
    n = len(values)
    known = dict.fromkeys(schema_ids(values)) | (SCHEMAS[name] if schemas is None else schemas)
    done = decode(
        name, encoding, values, np.zeros(n, np.int32), np.arange(n), np.full(n, 5), known,
        cut_time_us=START_US, past_us_max=DAY_US, future_us_max=DAY_US,
    )  # fmt: skip
    assert sorted([*done.rows.tolist(), *(r.row for r in done.rejects)]) == list(range(n))
    assert done.rows.tolist() == sorted(done.rows.tolist()) == done.batch.offset.tolist()
    assert [r.row for r in done.rejects] == sorted(r.row for r in done.rejects)
    assert {r.reason for r in done.rejects} <= set(REASONS)
    assert all(len(r.detail) <= DETAIL_CHARS_MAX for r in done.rejects)
    return done


@pytest.mark.parametrize("name", event_types())
@pytest.mark.parametrize("encoding", ["avro", "json"])
def test_what_was_sent_comes_out_again(name: str, encoding: str) -> None:
    batch = events(name)
    done = read(name, encoding, [*messages(name, batch.frame, encoding)])
    assert done.rejects == []
    assert_frame_equal(done.batch.frame, batch.frame)


@pytest.mark.parametrize("encoding", ["avro", "json"])
def test_no_records_give_no_events(encoding: str) -> None:
    assert len(read("payment", encoding, []).batch) == 0
    assert [r.reason for r in read("payment", encoding, [None, b""]).rejects] == ["empty"] * 2


@pytest.mark.parametrize("name", event_types())
@pytest.mark.parametrize("encoding", ["avro", "json"])
def test_no_broken_record_comes_out_as_an_event_and_no_good_one_is_lost(
    name: str, encoding: str, rng: np.random.Generator
) -> None:
    batch = events(name)
    good = messages(name, batch.frame, encoding)
    broken = break_some(
        rng, batch, 0.2, lambda frame: messages(name, frame, encoding), encoding == "avro"
    )
    assert {fault for fault, _, _ in broken} == set(FAULTS[: len(FAULTS) - (encoding == "json")])
    both = [*good, *(message for _, _, message in broken)]
    order = rng.permutation(len(both))
    done = read(name, encoding, [both[i] for i in order])
    kept = order[done.rows]
    assert sorted(kept) == list(range(len(good)))
    assert_frame_equal(done.batch.frame, batch.frame[kept])
    expected = {
        "truncated": {"not_avro", "not_json", "empty"},
        "garbage": {"not_avro", "not_utf8"},
        "empty": {"empty"},
        "nan": {"not_finite"},
        "infinite": {"not_finite"},
        "out_of_range": {"out_of_range"},
        "year_early": {"time_past"},
        "year_late": {"time_future"},
        "long_string": {"too_long"},
        "unknown_schema": {"unknown_schema"},
    }
    for reject in done.rejects:
        fault = broken[order[reject.row] - len(good)][0]
        assert reject.reason in expected[fault], (fault, reject)


@pytest.mark.parametrize("name", event_types())
def test_an_avro_record_cut_at_any_byte_spoils_only_itself(name: str) -> None:
    whole = messages(name, events(name, 60).frame[:3], "avro")
    for at in range(len(whole[1])):
        done = read(name, "avro", [whole[0], whole[1][:at], whole[2]])
        assert done.rows.tolist() == [0, 2]
        assert done.rejects[0].reason == ("not_avro" if at else "empty")
    assert read(name, "avro", [whole[0] + b"\0"]).rejects[0].detail.endswith("left over after it")


@pytest.mark.parametrize("name", event_types())
def test_a_json_record_cut_at_any_byte_spoils_only_itself(name: str) -> None:
    whole = messages(name, events(name, 60).frame[:3], "json")
    for at in range(len(whole[1])):
        done = read(name, "json", [whole[0], whole[1][:at], whole[2]])
        assert done.rows.tolist() == [0, 2]


def test_warming_up_leaves_nothing_to_compile() -> None:
    warm_up(list(event_types()))
    assert _walk.nopython_signatures and _gather.nopython_signatures
    before = len(_walk.nopython_signatures), len(_gather.nopython_signatures)
    for name in event_types():
        read(name, "avro", [*messages(name, _FEW[name], "avro")])
    assert before == (len(_walk.nopython_signatures), len(_gather.nopython_signatures))


@settings(max_examples=200)
@given(
    name=st.sampled_from(list(event_types())),
    encoding=st.sampled_from(["avro", "json"]),
    rubbish=st.lists(st.none() | st.binary(max_size=80), max_size=8),
    framed=st.booleans(),
)
def test_random_bytes_never_raise(
    name: str, encoding: str, rubbish: list[bytes | None], framed: bool
) -> None:
    head = confluent_header(ID) if framed and encoding == "avro" else b""
    read(name, encoding, [None if value is None else head + value for value in rubbish])


@settings(max_examples=200)
@given(
    name=st.sampled_from(list(event_types())),
    encoding=st.sampled_from(["avro", "json"]),
    flips=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10_000)), min_size=1, max_size=4),
)
def test_flipped_bits_never_raise_and_never_reach_the_neighbours(
    name: str, encoding: str, flips: list[tuple[int, int]]
) -> None:
    frame = _FEW[name]
    values = [bytearray(value) for value in messages(name, frame, encoding)]
    for which, bit in flips:
        value = values[which]
        value[bit // 8 % len(value)] ^= 1 << bit % 8
    done = read(name, encoding, [bytes(value) for value in values])
    untouched = sorted(set(range(len(frame))) - {which for which, _ in flips})
    assert set(untouched) <= set(done.rows.tolist())
    mine = [done.rows.tolist().index(row) for row in untouched]
    assert_frame_equal(done.batch.frame[mine], frame[untouched])
    hold, _ = check_contract(
        name, done.batch.frame, cut_time_us=START_US, past_us_max=DAY_US, future_us_max=DAY_US
    )
    assert hold.all()
    if encoding == "avro":
        for row, event in zip(done.rows.tolist(), done.batch.frame.to_dicts(), strict=True):
            assert event == by_reference(name, bytes(values[row][5:]))


def by_reference(name: str, body: bytes) -> Any:
    """What fastavro reads from a body, all of which it must need."""
    schema = avro_schema(name)
    for field in schema["fields"]:
        if field["name"] == "time_us":
            field["type"] = "long"
    stream = io.BytesIO(body)
    read = fastavro.schemaless_reader(stream, fastavro.parse_schema(schema), None)
    assert stream.tell() == len(body)
    return read


_FEW = {name: events(name, 60).frame[:5] for name in event_types()}


def one(**changes: Any) -> bytes:
    """One payment as JSON, with some fields changed; `...` leaves a field out."""
    event = _FEW["payment"].row(0, named=True) | changes
    return json.dumps({k: v for k, v in event.items() if v is not ...}).encode()


@pytest.mark.parametrize(
    ("value", "reason", "said"),
    [
        (one(amount="12.5"), "wrong_type", "amount"),
        (one(amount=True), "wrong_type", "amount"),
        (one(declined=1), "wrong_type", "declined"),
        (one(card_id=5), "wrong_type", "card_id"),
        (one(card_id=["c"]), "wrong_type", "card_id"),
        (one(time_us=1.5), "wrong_type", "time_us"),
        (one(card_id=...), "missing_field", "card_id"),
        (one(card_id=None), "missing_field", "card_id"),
        (one(event_id=""), "empty_id", "event_id"),
        (one(time_us=10**30), "out_of_range", "time_us"),
        (one(time_us=START_US + 2 * DAY_US), "time_future", "time_us"),
        (one(time_us=START_US - 2 * DAY_US), "time_past", "time_us"),
        (one(amount=-0.01), "out_of_range", "amount"),
        (one(amount=10**400), "not_finite", "amount"),
        (one(amount=float("nan")), "not_finite", "amount"),
        (one(amount=float("-inf")), "not_finite", "amount"),
        (one(latitude=90.001), "out_of_range", "latitude"),
        (one(channel="fax"), "not_a_word", "channel"),
        (one(currency="EURO"), "too_long", "currency"),
        (one(currency="€€"), "too_long", "6 bytes"),
        (one(merchant_id="x" * 1_000_000), "too_long", "1000000 bytes"),
        (b"[]", "not_json", "object"),
        (b"null", "not_json", "object"),
        (b"{" * 100_000, "not_json", ""),
        (b'{"event_id": "\xff"}', "not_utf8", "byte 14"),
        (b'{"event_id": "\\ud800"}', "not_json", ""),
        (one() + one(), "not_json", ""),
        (one() + b"\n" + one(), "not_json", ""),
    ],
)
def test_a_json_record_that_is_no_event_says_why(value: bytes, reason: str, said: str) -> None:
    (reject,) = read("payment", "json", [value]).rejects
    assert reject.reason == reason
    assert said in reject.detail


def test_json_leaves_room_for_what_is_harmless() -> None:
    spare = [
        one(more={"deep": [1, 2, {}]}),
        one(currency=..., device_id=..., latitude=None),
        one(amount=3),
        b" \n" + one() + b"\n",
        one(merchant_id="\x1b[31mred\x07\x00"),
        one()[:-1] + b', "amount": 4.5}',
    ]
    done = read("payment", "json", [*spare])
    assert done.rejects == []
    frame = done.batch.frame
    assert frame["currency"][1] == "EUR"
    assert frame["device_id"][1] is None
    assert frame["amount"].to_list()[2] == 3.0
    assert frame["merchant_id"][4] == "\x1b[31mred\x07\x00"
    assert frame["amount"][5] == 4.5, "of a key that stands twice the last is taken"


def test_control_characters_are_escaped_where_they_are_shown() -> None:
    (reject,) = read("payment", "json", [one(channel="\x1b[2J")]).rejects
    assert reject.reason == "not_a_word"
    assert reject.detail.isprintable()


def newer(name: str, *fields: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The schema of an event type with further fields and without some."""
    schema = avro_schema(name)
    kept = [f for f in schema["fields"] if f["name"] not in without]
    return schema | {"fields": [*fields, *kept]}


FURTHER: dict[str, dict[str, Any]] = {
    "flat": {"name": "loyalty", "type": ["null", "string"], "default": None},
    "list": {"name": "tags", "type": {"type": "array", "items": "string"}},
    "union": {"name": "either", "type": ["null", "string", "long"]},
}


@pytest.mark.parametrize("further", FURTHER)
def test_a_producer_may_move_to_a_newer_schema_while_others_stay(further: str) -> None:
    frame = _FEW["payment"].with_columns(currency=pl.lit("EUR"))
    schema = newer("payment", FURTHER[further], without=("currency", "device_id"))
    parsed = fastavro.parse_schema(schema)
    extra = {"flat": "gold", "list": ["a", "b"], "union": 5}[further]
    moved = []
    for row in frame.to_dicts():
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, row | {FURTHER[further]["name"]: extra})
        moved.append(confluent_header(9) + out.getvalue())
    pairs = zip(messages("payment", frame, "avro"), moved, strict=True)
    values = [value for pair in pairs for value in pair]
    schemas: dict[int, str | None] = {ID: json.dumps(avro_schema("payment")), 9: json.dumps(schema)}
    done = read("payment", "avro", [*values, moved[0][:-1], moved[0] + b"\0"], schemas)
    assert [(r.row, r.reason, r.schema_id) for r in done.rejects] == [
        (len(values), "not_avro", 9),
        (len(values) + 1, "not_avro", 9),
    ]
    assert_frame_equal(done.batch.frame[::2], frame)
    assert_frame_equal(
        done.batch.frame[1::2], frame.with_columns(device_id=pl.lit(None, pl.String))
    )


def test_other_number_types_and_milliseconds_are_read() -> None:
    frame = _FEW["app_log"].with_columns(status=pl.lit(200, pl.Int64), duration_ms=pl.lit(1.5))
    schema = avro_schema("app_log")
    for field in schema["fields"]:
        if field["name"] == "status":
            field["type"] = ["null", "int"]
        if field["name"] == "time_us":
            field["type"] = {"type": "long", "logicalType": "timestamp-millis"}
        if field["name"] == "level":
            field["type"] = "string"
    sent = frame.with_columns(pl.col("time_us") // 1000)
    values = avro_bodies(schema, sent, confluent_header(1))
    done = read("app_log", "avro", [*values], {1: json.dumps(schema)})
    assert done.rejects == []
    expected = frame.with_columns(pl.col("time_us") // 1000 * 1000)
    assert_frame_equal(done.batch.frame, expected)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "not an Avro schema"),
        ('"string"', "expected a record"),
        ('{"type": "record", "name": "x"}', "not an Avro schema"),
        (json.dumps(newer("login", without=("success", "ip"))), "lacks ip, success"),
        (
            json.dumps(newer("login", {"name": "ip", "type": "long"}, without=("ip",))),
            "field ip is 'long', expected string",
        ),
        (
            json.dumps(newer("login", {"name": "x", "type": {"type": "array", "items": "null"}})),
            "no bytes",
        ),
        (
            json.dumps(newer("login", {"name": "x", "type": ["null", "waxwing.login"]})),
            "holds itself",
        ),
        (
            json.dumps(newer("login", {"name": "x", "type": {"type": "fixed", "name": "f"}})),
            "not an Avro schema",
        ),
        ("[" * 100_000, "not an Avro schema"),
        ('{"type": "record", "name": "x", "fields": [5]}', "not an Avro schema"),
    ],
)
def test_a_schema_that_cannot_be_read_as_the_event_type_refuses_its_records(
    schema: str, said: str
) -> None:
    values = messages("login", _FEW["login"], "avro")
    done = read("login", "avro", [*values, b"\0\0\0\0\x09xx"], {ID: schema, 9: None})
    assert {r.reason for r in done.rejects[:-1]} == {"schema_mismatch"}
    assert said in done.rejects[0].detail
    assert done.rejects[0].schema_id == ID
    assert done.rejects[-1].reason == "unknown_schema"


def test_avro_strings_that_are_not_utf8_spoil_only_their_record() -> None:
    frame = _FEW["payment"].with_columns(card_id=pl.lit("Grüße"))
    values = messages("payment", frame, "avro")
    values[2] = values[2].replace("ü".encode(), b"\xc3\x28")
    done = read("payment", "avro", [*values])
    assert [(r.row, r.reason) for r in done.rejects] == [(2, "not_utf8")]
    assert_frame_equal(done.batch.frame, frame[[0, 1, 3, 4]])


def test_a_schema_id_that_was_not_looked_up_is_the_callers_fault() -> None:
    values = messages("payment", _FEW["payment"], "avro")
    assert schema_ids(values) == [ID]
    with pytest.raises(KeyError, match="7"):
        decode(
            "payment", "avro", values, np.zeros(5, np.int32), np.arange(5), np.arange(5), {},
            cut_time_us=START_US, past_us_max=DAY_US, future_us_max=DAY_US,
        )  # fmt: skip


def test_each_field_of_the_contract_is_checked() -> None:
    for name, event in event_types().items():
        frame = _FEW[name][:1]
        for field in event.fields:
            for bad in _outside(name, field.name):
                spoilt = frame.with_columns(pl.lit(bad, dtype=field.dtype).alias(field.name))
                hold, faults = check_contract(
                    name, spoilt, cut_time_us=START_US, past_us_max=DAY_US, future_us_max=DAY_US
                )
                assert not hold[0], (name, field.name, bad)
                assert field.name in faults[0][2], faults


def _outside(name: str, field_name: str) -> list[Any]:
    """Values that a field must not have."""
    field = event_type(name).field(field_name)
    bad: list[Any] = [] if field.nullable else [None]
    if field.kind == "string":
        bad.append("x" * (field.length_max + 1))
    if field.kind == "enum":
        bad += ["", "nonsense"]
    if field.kind == "float64":
        bad += [float("nan"), float("inf"), float("-inf")]
    if field.minimum is not None:
        bad.append(int(field.minimum) - 1)
    if field.maximum is not None:
        bad.append(int(field.maximum) + 1)
    if field.kind == "time_us":
        bad += [START_US - DAY_US - 1, START_US + DAY_US + 1, 2**63 - 1, -(2**63)]
    return bad


@pytest.mark.parametrize("encoding", ["avro", "json"])
def test_a_batch_of_nothing_but_rubbish_takes_bounded_work(
    encoding: str, rng: np.random.Generator
) -> None:
    """Calls are counted, not seconds: 30 a record measured, however many there are."""
    batch = events("payment")
    made = break_some(
        rng, batch, 1.0, lambda frame: messages("payment", frame, encoding), encoding == "avro",
        tuple(fault for fault in FAULTS[:-1] if fault != "long_string"),
    )  # fmt: skip
    values: list[bytes | None] = [message for _, _, message in made]
    values += [bytes([0]) + rng.bytes(20) for _ in range(len(values))]  # an unknown schema each
    assert len(values) > 1000
    for part in (values[::4], values):
        with counted_calls() as calls:
            done = read("payment", encoding, part)
        assert len(done.rejects) == len(part)
        assert calls[0] / len(part) < 60.0
