"""The two tables that flow: events in, features out. Columns, never one object per event.

`EventBatch` is what every source gives and `FeatureMatrix` is what every model reads. Both are
frozen: a step makes a new one, none changes what it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.errors import ShapeError
from features.events import event_code, event_type

__all__ = [
    "EventBatch",
    "FeatureMatrix",
    "Float64",
    "Int32",
    "Int64",
    "concat_batches",
    "sample_batch",
    "stack",
]

Int16 = npt.NDArray[np.int16]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Int8 = npt.NDArray[np.int8]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events of one type, as columns, in the order (time, topic, partition, offset).

    Parameters
    ----------
    event_type : name of the declaration in `features.events`
    frame : (n,) the declared fields, in declared order and type, contract already checked
    partition : int32 (n,), partition of the topic; 0 for a file or the simulator
    offset : int64 (n,), offset in the partition, row of the file, running number of the simulator
    due_ns : int64 (n,), wall clock at which the event was due (sent); measures latency, decides
        nothing
    truth : int16 (n,) or None, code of the simulated attack (0 genuine); evaluation only, no
        feature or model ever reads it
    rate : float64 (n,) or None, what one unit of the row's currency is worth in the base currency
        (`features.currency`), NaN where that is not known; None where nothing is converted
    made : what `features.columns` has made of the frame, so that split, assembly and store need not
        make it again; lives as long as the batch, and is left behind on the way to another process

    Raises
    ------
    ShapeError : columns differ in length, or the frame is not the declared one
    """

    event_type: str
    frame: pl.DataFrame
    partition: Int32
    offset: Int64
    due_ns: Int64
    truth: Int16 | None = None
    rate: Float64 | None = None
    made: dict[tuple[str, str], npt.NDArray[Any]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        expected = event_type(self.event_type).schema
        if dict(self.frame.schema) != expected:
            raise ShapeError(
                f"batch of {self.event_type!r}: expected columns {expected}, got"
                f" {dict(self.frame.schema)}; build it with features.decode"
            )
        n = self.frame.height
        for name in ("partition", "offset", "due_ns", "truth", "rate"):
            column = getattr(self, name)
            if column is not None and len(column) != n:
                raise ShapeError(
                    f"batch of {self.event_type!r}: `{name}` has {len(column)} rows, the frame {n}"
                )

    def __len__(self) -> int:
        return self.frame.height

    def __getstate__(self) -> list[Any]:
        """The fields in order, as frozen dataclasses with slots give them, without what is made."""
        return [{} if f.name == "made" else getattr(self, f.name) for f in fields(self)]

    @property
    def time_us(self) -> Int64:
        """int64 (n,), event time, microseconds UTC."""
        return self.frame["time_us"].to_numpy()

    def take(self, rows: npt.NDArray[np.intp] | Int64) -> EventBatch:
        """The given rows, in the given order."""
        return self._of(self.frame[rows], rows, self.due_ns[rows])

    def rows(self, begin: int, end: int) -> EventBatch:
        """Rows `begin` to `end`, without a copy."""
        if begin == 0 and end == len(self):
            return self
        rows = slice(begin, end)
        return self._of(self.frame.slice(begin, end - begin), rows, self.due_ns[rows])

    def due_at(self, due_ns: Int64) -> EventBatch:
        """The same events, due at other times.

        Parameters
        ----------
        due_ns : int64 (n,), see the class
        """
        return self._of(self.frame, slice(None), due_ns)

    def _of(
        self, frame: pl.DataFrame, rows: slice | npt.NDArray[np.integer], due_ns: Int64
    ) -> EventBatch:
        """Some of the rows. Nothing is checked again, which would take as long as the cut."""
        made = object.__new__(EventBatch)
        of = {
            "event_type": self.event_type,
            "frame": frame,
            "partition": self.partition[rows],
            "offset": self.offset[rows],
            "due_ns": due_ns,
            "truth": None if self.truth is None else self.truth[rows],
            "rate": None if self.rate is None else self.rate[rows],
            "made": {},
        }
        for name, value in of.items():
            object.__setattr__(made, name, value)
        return made

    def in_order(self) -> EventBatch:
        """The same events sorted by (time, partition, offset)."""
        time_us = self.time_us
        if len(self) < 2 or _is_ordered(time_us, self.partition, self.offset):
            return self
        return self.take(np.lexsort((self.offset, self.partition, time_us)))


def _is_ordered(time_us: Int64, partition: Int32, offset: Int64) -> bool:
    """Whether the rows already stand in order."""
    later = np.diff(time_us)
    if np.any(later < 0):
        return False
    ties = later == 0
    if not ties.any():
        return True
    parts = np.diff(partition)[ties]
    offs = np.diff(offset)[ties]
    return not bool(np.any((parts < 0) | ((parts == 0) & (offs < 0))))


def concat_batches(batches: list[EventBatch], sort: bool = True) -> EventBatch:
    """One batch of the events of several of the same type, in order.

    Parameters
    ----------
    batches : of one event type
    sort : False leaves them one after the other

    Raises
    ------
    ShapeError : no batch, batches of several types, or only some of them with rates
    """
    if not batches or len({b.event_type for b in batches}) != 1:
        raise ShapeError(
            "expected at least one batch, all of one event type,"
            f" got {[b.event_type for b in batches]}"
        )
    if len(batches) == 1:
        return batches[0].in_order() if sort else batches[0]
    truths = [np.zeros(len(b), np.int16) if b.truth is None else b.truth for b in batches]
    known = any(b.truth is not None for b in batches)
    rates = [b.rate for b in batches if b.rate is not None]
    if rates and len(rates) < len(batches):
        raise ShapeError("expected all batches with rates to the base currency, or none")
    whole = EventBatch(
        batches[0].event_type,
        pl.concat([b.frame for b in batches]),
        np.concatenate([b.partition for b in batches]),
        np.concatenate([b.offset for b in batches]),
        np.concatenate([b.due_ns for b in batches]),
        np.concatenate(truths) if known else None,
        np.concatenate(rates) if rates else None,
    )
    return whole.in_order() if sort else whole


@dataclass(frozen=True, slots=True)
class FeatureMatrix:
    """Features of the events of one batch, row by row.

    Parameters
    ----------
    event_type : name of the event type
    names : (F,), feature names in catalogue order
    values : float64 (n, F); NaN where a value is not known (no history, entity absent)
    sequence : float32 (n, S, T) or None, the primary entity's last S events including this one,
        oldest first, T numbers each; rows of zeros where there were fewer
    catalog_version : hash of the catalogue they were computed with
    """

    event_type: str
    names: tuple[str, ...]
    values: Float64
    sequence: npt.NDArray[np.float32] | None
    catalog_version: str

    def __post_init__(self) -> None:
        event_code(self.event_type)
        if self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise ShapeError(
                f"features of {self.event_type!r}: {len(self.names)} names,"
                f" values of shape {self.values.shape}"
            )
        if self.sequence is not None and len(self.sequence) != len(self.values):
            raise ShapeError(
                f"features of {self.event_type!r}: {len(self.values)} rows,"
                f" sequence of {len(self.sequence)}"
            )

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, begin: int, end: int) -> FeatureMatrix:
        """Rows `begin` to `end`, without a copy."""
        return FeatureMatrix(
            self.event_type,
            self.names,
            self.values[begin:end],
            None if self.sequence is None else self.sequence[begin:end],
            self.catalog_version,
        )

    def column(self, name: str) -> Float64:
        """float64 (n,), the feature called `name`."""
        return self.values[:, self.names.index(name)]


def stack(matrices: Sequence[FeatureMatrix]) -> FeatureMatrix:
    """The rows of matrices of one event type and catalogue, one after the other.

    Parameters
    ----------
    matrices : at least one
    """
    first = matrices[0]
    sequences = [m.sequence for m in matrices if m.sequence is not None]
    return FeatureMatrix(
        first.event_type,
        first.names,
        np.concatenate([m.values for m in matrices]),
        np.concatenate(sequences) if sequences else None,
        first.catalog_version,
    )


def sample_batch(event_type_name: str, rows: int, time_us: int = 1_000_000) -> EventBatch:
    """Events that keep the contract of their type and say nothing: to compile and to try with.

    Examples
    --------
    >>> len(sample_batch("payment", 2))
    2
    """
    declared = event_type(event_type_name)
    values: dict[str, list[Any]] = {}
    for column in declared.fields:
        word = column.values[0] if column.values else "a"
        one = {"string": "a", "enum": word, "bool": False, "float64": 1.0, "int64": 1}
        values[column.name] = [one.get(column.kind, time_us)] * rows
    frame = pl.DataFrame(values, schema=declared.schema)
    zeros = np.zeros(rows, np.int64)
    return EventBatch(event_type_name, frame, zeros.astype(np.int32), np.arange(rows), zeros)
