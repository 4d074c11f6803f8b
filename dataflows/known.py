"""Labels of recorded events: which of them a file calls anomalies, and whether they were met.

`train`, `evaluate` and `model compare` take them beside the events. A label is of one event type
where its file says of which, else of any that has its id. Ids of another export than the events',
or of another column, match nothing, and all events would pass for genuine: so they are counted, and
what matches nothing is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from dataflows.sources.mapping import time_us
from features.errors import ConfigError
from features.events import event_types

__all__ = ["Met", "labels_of", "read_attacks"]

_VERDICTS = ("fraud", "genuine")
"""As docs/labels.md has them."""

_SCAN: dict[str, Callable[[Path], pl.LazyFrame]] = {
    ".parquet": pl.scan_parquet,
    # As text, so that an id keeps its zeros and a column of times may have both forms.
    ".csv": lambda path: pl.scan_csv(path, infer_schema=False),
    ".jsonl": lambda path: pl.scan_ndjson(path, infer_schema_length=None),
}


def labels_of(labels: pl.DataFrame, event_type: str) -> pl.DataFrame:
    """The rows that may be of events of a type: those that name it, or none."""
    if "event_type" not in labels.columns:
        return labels
    return labels.filter(pl.col("event_type").is_null() | (pl.col("event_type") == event_type))


def read_attacks(path: Path) -> pl.DataFrame:
    """Known anomalies: `event_id` and, where the file has them, `event_type` and `attack`; text.

    A file without a column `verdict` names anomalies alone. Of one with it those are taken whose
    last verdict is `fraud`, the last by `time`, or in the file where it has no times.

    Raises
    ------
    ConfigError : no such file, not readable, no column `event_id`; another word for a verdict, an
        event type that there is not; a time that is none
    """
    try:
        frame = _scan(path)
        there = frame.collect_schema().names()
        told = [name for name in ("attack", "verdict", "event_type") if name in there]
        wanted = [pl.col(name).cast(pl.String) for name in ("event_id", *told)]
        if timed := "verdict" in told and "time" in there:
            wanted.append(pl.col("time"))
        found = frame.select(wanted).collect().drop_nulls("event_id")
    except pl.exceptions.PolarsError as error:
        raise ConfigError(
            f"labels {path}: expected a column event_id: {str(error).splitlines()[0]}"
        ) from None
    if "event_type" in told:
        found = _typed(path, found)
    if "verdict" in told:
        found = _frauds(path, found, timed)
    return found.select("event_id", *(n for n in ("event_type", "attack") if n in told))


def _typed(path: Path, found: pl.DataFrame) -> pl.DataFrame:
    """The rows with event types that there are, null where a row names none."""
    found = found.with_columns(pl.col("event_type").str.strip_chars().replace("", None))
    names = found["event_type"].drop_nulls()
    other = names.filter(~names.is_in(list(event_types()))).unique().sort()
    if len(other):
        shown = ", ".join(repr(name[:40]) for name in other.head(3))
        raise ConfigError(
            f"labels {path}: event_type {shown}: there are {', '.join(event_types())}; leave the"
            " cell empty for a label of any of them"
        )
    return found


def _frauds(path: Path, found: pl.DataFrame, timed: bool) -> pl.DataFrame:
    """The rows whose verdict is the last on their event, where that is fraud."""
    words = found["verdict"].fill_null("")
    other = words.filter(~words.is_in(_VERDICTS)).unique().sort()
    if len(other):
        shown = ", ".join(repr(word[:40]) for word in other.head(3))
        raise ConfigError(
            f"labels {path}: verdict {shown}: expected {' or '.join(_VERDICTS)} in each row; leave"
            " the column out of a file that names anomalies alone"
        )
    if timed:
        made = found.select(time_us(pl.col("time"), found["time"].dtype, None)).to_series()
        if lacking := made.null_count():
            raise ConfigError(
                f"labels {path}: `time` of {lacking:,} of {len(made):,} labels is none: expected"
                " ISO 8601, or microseconds since 1970"
            )
        found = found.with_columns(made.alias("time")).sort("time", maintain_order=True)
    of = [name for name in ("event_type", "event_id") if name in found.columns]
    return found.unique(of, keep="last", maintain_order=True).filter(pl.col("verdict") == "fraud")


def _scan(path: Path) -> pl.LazyFrame:
    """A file as polars reads it, ConfigError where it cannot."""
    if path.suffix not in _SCAN:
        raise ConfigError(f"{path}: expected a name that ends in {', '.join(_SCAN)}")
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    return _SCAN[path.suffix](path)


class Met:
    """Which labels are of events that came.

    Parameters
    ----------
    labels : as of `read_attacks`
    """

    def __init__(self, labels: pl.DataFrame) -> None:
        of = [name for name in ("event_type", "event_id") if name in labels.columns]
        self._labels = labels.select(of).unique(maintain_order=True)
        self._ids: dict[str, pl.Series] = {}
        self._found: list[pl.DataFrame] = []
        self._seen: str | None = None

    def see(self, event_type: str, ids: pl.Series) -> pl.Series:
        """bool (n,): which of the ids of some events of a type are labelled."""
        if event_type not in self._ids:
            self._ids[event_type] = labels_of(self._labels, event_type)["event_id"].unique()
        labelled = ids.is_in(self._ids[event_type].implode())
        if labelled.any():
            met = ids.filter(labelled).alias("event_id").to_frame()
            self._found.append(met.with_columns(pl.lit(event_type).alias("of")).unique())
        if self._seen is None and len(ids):
            self._seen = str(ids[0])
        return labelled

    def told(self) -> str:
        """How many labels are of events that came, in a sentence, and how many of several.

        Raises
        ------
        ConfigError : there are labels, and none is
        """
        total = len(self._labels)
        met = pl.DataFrame(schema={"event_id": pl.String, "of": pl.String})
        met = pl.concat([met, *self._found]).unique()
        labels = self._labels.with_row_index("label")
        if "event_type" not in labels.columns:
            labels = labels.with_columns(event_type=pl.lit(None, pl.String))
        of = labels.join(met, "event_id").filter(
            pl.col("event_type").is_null() | (pl.col("event_type") == pl.col("of"))
        )
        counts = of.group_by("label").agg(pl.col("of").n_unique())
        found, several = len(counts), counts.filter(pl.col("of") > 1).height
        if total and not found:
            came = "no event came" if self._seen is None else f"events have {self._seen!r}"
            raise ConfigError(
                f"labels: none of {total:,} is of an event of the files (labels have"
                f" {str(self._labels['event_id'][0])!r}, {came}); give the labels of these events,"
                " with the `event_id` that they have after their mapping and, where a column"
                " `event_type` is there, their type"
            )
        told = f"{found:,} of {total:,} labels found among the events"
        if several:
            names = ", ".join(met.filter(pl.col("event_id").is_duplicated())["of"].unique().sort())
            told += (
                f"; {several:,} of them are of events of several types ({names}): say of which in a"
                " column event_type"
            )
        return told
