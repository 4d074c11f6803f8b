"""Broken records, as real producers make them: for the dead-letter path, and counted exactly.

Each starts from a genuine event of the batch, so that it looks right in all but the one thing that
is wrong with it. None of them may come out of the decoder as an event.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import polars as pl

from features.batch import EventBatch
from features.encode import confluent_header
from features.events import event_type

__all__ = ["FAULTS", "break_some"]

LONG_STRING_BYTES = 1_000_000
YEAR_US = 365 * 86_400_000_000
UNKNOWN_SCHEMA = 2_000_000_000
"""A schema id no registry has given out."""

_VALUE_FAULTS = ("nan", "infinite", "out_of_range", "year_early", "year_late", "long_string")
_BYTE_FAULTS = ("truncated", "garbage", "empty")

FAULTS: tuple[str, ...] = (*_BYTE_FAULTS, *_VALUE_FAULTS, "unknown_schema")
"""Everything that can be wrong; `unknown_schema` only where the format is Avro."""

_JSON_WORDS = {"nan": b"NaN", "infinite": b"1e999"}
"""JSON has no word for NaN and infinity; this is what producers write all the same."""

_NUMBER = {
    "payment": "amount", "login": "latitude", "metric": "value", "app_log": "duration_ms",
}  # fmt: skip
_TEXT = {"payment": "merchant_id", "login": "ip", "metric": "host", "app_log": "template"}


def _spoil(name: str, frame: pl.DataFrame, fault: str) -> pl.DataFrame:
    """One row whose value breaks the contract of its type."""
    number = _NUMBER.get(name)
    if fault == "year_early":
        return frame.with_columns(time_us=pl.col("time_us") - YEAR_US)
    if fault == "year_late":
        return frame.with_columns(time_us=pl.col("time_us") + YEAR_US)
    if fault == "long_string" or number is None:
        column = _TEXT.get(name, "event_id")
        return frame.with_columns(pl.lit("x" * LONG_STRING_BYTES).alias(column))
    minimum = event_type(name).field(number).minimum or 0.0
    value = {"nan": np.nan, "infinite": np.inf, "out_of_range": minimum * 2.0 - 1.0}[fault]
    return frame.with_columns(pl.lit(float(value)).alias(number))


def _cut(rng: np.random.Generator, body: bytes, fault: str) -> bytes:
    """Bytes that are no record."""
    if fault == "empty":
        return b""
    if fault == "garbage":
        # 0xFF begins neither UTF-8 nor Confluent's header; one line stays one line in a file.
        return b"\xff" + rng.bytes(int(rng.integers(8, 64))).replace(b"\n", b" ").replace(
            b"\r", b" "
        )
    return body[: int(rng.integers(min(5, len(body)), max(6, len(body) - 1)))]


def break_some(
    rng: np.random.Generator,
    batch: EventBatch,
    share: float,
    encode: Callable[[pl.DataFrame], list[bytes]],
    avro: bool,
    faults: tuple[str, ...] | None = None,
) -> list[tuple[str, int, bytes]]:
    """Broken records to send in addition to a batch.

    Parameters
    ----------
    rng : decides which rows are taken as a model and what is wrong with them
    share : broken records per event of the batch
    encode : rows to messages, as the events themselves are sent
    avro : whether messages are Avro with Confluent's header; else they are JSON
    faults : which of FAULTS to make, None for all that the format can have

    Returns
    -------
    fault, row of the batch it was made from, message
    """
    if faults is None:
        faults = FAULTS if avro else FAULTS[:-1]
    rows = np.flatnonzero(rng.random(len(batch)) < share)
    kinds = rng.integers(0, len(faults), len(rows))
    broken: list[tuple[str, int, bytes]] = []
    for row, kind in zip(rows.tolist(), kinds.tolist(), strict=True):
        fault = faults[kind]
        model = batch.frame[row].with_columns(event_id=pl.col("event_id") + "-broken")
        if fault in _VALUE_FAULTS:
            message = encode(_spoil(batch.event_type, model, fault))[0]
            if not avro and fault in _JSON_WORDS:
                message = _say(_NUMBER.get(batch.event_type, ""), message, _JSON_WORDS[fault])
        elif fault == "unknown_schema":
            message = confluent_header(UNKNOWN_SCHEMA) + encode(model)[0][5:]
        else:
            message = _cut(rng, encode(model)[0], fault)
        broken.append((fault, row, message))
    return broken


def _say(column: str, message: bytes, word: bytes) -> bytes:
    """The JSON message with another word as the column's value."""
    return re.sub(rb'("%s":)[^,}]+' % column.encode(), rb"\g<1>" + word, message)
