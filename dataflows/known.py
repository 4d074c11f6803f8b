"""Labels of recorded events: which of them a file calls anomalies, and whether they were met.

`train`, `evaluate` and `model compare` take them beside the events. Ids of another export than the
events', or of another column, match nothing, and all events would pass for genuine: so they are
counted, and what matches nothing is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from dataflows.sources.mapping import time_us
from features.errors import ConfigError

__all__ = ["Met", "read_attacks", "read_labels"]

_VERDICTS = ("fraud", "genuine")
"""As docs/labels.md has them."""

_SCAN: dict[str, Callable[[Path], pl.LazyFrame]] = {
    ".parquet": pl.scan_parquet,
    # As text, so that an id keeps its zeros and a column of times may have both forms.
    ".csv": lambda path: pl.scan_csv(path, infer_schema=False),
    ".jsonl": lambda path: pl.scan_ndjson(path, infer_schema_length=None),
}


def read_labels(path: Path) -> pl.Series:
    """Event ids of known anomalies in a Parquet, CSV or JSONL file; see `read_attacks`.

    Raises
    ------
    ConfigError : as of `read_attacks`
    """
    return read_attacks(path)["event_id"]


def read_attacks(path: Path) -> pl.DataFrame:
    """Known anomalies: `event_id` and, where the file has it, `attack`, both text.

    A file without a column `verdict` names anomalies alone. Of one with it those are taken whose
    last verdict is `fraud`, the last by `time`, or in the file where it has no times.

    Raises
    ------
    ConfigError : no such file, not readable, no column `event_id`; another word for a verdict; a
        time that is none
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
    if "verdict" in told:
        found = _frauds(path, found, timed)
    return found.select("event_id", *(name for name in ("attack",) if name in told))


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
    labels : event ids, text
    """

    def __init__(self, labels: pl.Series) -> None:
        self._labels = labels.unique(maintain_order=True)
        self._found: list[pl.Series] = []
        self._seen: str | None = None

    def see(self, ids: pl.Series) -> pl.Series:
        """bool (n,): which of the ids of some events are labelled."""
        labelled = ids.is_in(self._labels.implode())
        if labelled.any():
            self._found.append(ids.filter(labelled))
        if self._seen is None and len(ids):
            self._seen = str(ids[0])
        return labelled

    def told(self) -> str:
        """How many labels are of events that came, in a sentence.

        Raises
        ------
        ConfigError : there are labels, and none is
        """
        total = len(self._labels)
        found = pl.concat(self._found).n_unique() if self._found else 0
        if total and not found:
            came = "no event came" if self._seen is None else f"events have {self._seen!r}"
            raise ConfigError(
                f"labels: none of {total:,} is of an event of the files (labels have"
                f" {str(self._labels[0])!r}, {came}); give the labels of these events, with the"
                " `event_id` that they have after their mapping"
            )
        return f"{found:,} of {total:,} labels found among the events"
