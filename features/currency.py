"""Amounts in one currency: a table of rates by day, and the rate of each event's own day.

Sums, medians and thresholds of amounts mean something only where all amounts are of one currency.
The door of a lane (`dataflows.admission`) gives each row of a batch its rate, once; whoever reads
a field of money through `features.columns` reads it in the base currency. The rate is a function
of the event (its day, its currency) and of the table in force in its round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date

import numpy as np
import numpy.typing as npt
import polars as pl

from features.batch import EventBatch, Float64
from features.errors import ConfigError
from features.events import event_type
from features.keys import hash_strings

__all__ = ["RATES_SCHEMA", "Priced", "Rates"]

RATES_SCHEMA = {"day": pl.Date(), "currency": pl.String(), "rate": pl.Float64()}
"""One row a day and currency; `rate` is what one unit of it is worth in the base currency."""

DAYS_MAX = 36_525
"""Longest span of a table; chosen: a century. A day far off is a slip of the pen, and the table is
kept day by day: with 180 currencies 53 MB at the most."""

NAMED_MAX = 10
"""Currencies of a batch that are counted by name, the most frequent; chosen: a sentence."""

_DAY_US = 86_400_000_000
_EVER = np.iinfo(np.int64).max // 2
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Priced:
    """A batch with its rates, and what there is to say of them.

    Parameters
    ----------
    batch : the same events, with `rate` set where the event type holds money
    unpriced : currency -> rows of a currency the table does not know; their rate is NaN
    old : currency -> rows of a day before the first or after the last one of their currency, which
        got the rate of that day
    """

    batch: EventBatch
    unpriced: Mapping[str, int] = field(default_factory=dict)
    old: Mapping[str, int] = field(default_factory=dict)


class Rates:
    """What currencies are worth in the base currency, day by day (UTC).

    A day without a rate of its own has the last one before it: banks quote none on Sundays. Days
    after the last one have the last, days before the first one have the first: a rate of another
    week is wrong by a few per cent, an amount of yen taken for euros by a factor of 160.

    Parameters
    ----------
    base : code of the base currency; its own rate is 1
    rows : `RATES_SCHEMA`, any order, checked (`dataflows.currencies` reads and checks)

    Raises
    ------
    ConfigError : the days span more than a century

    Examples
    --------
    >>> rows = {"day": [date(2026, 3, 2)], "currency": ["JPY"], "rate": [0.0062]}
    >>> Rates("EUR", pl.DataFrame(rows, schema=RATES_SCHEMA)).days
    (datetime.date(2026, 3, 2), datetime.date(2026, 3, 2))
    """

    def __init__(self, base: str, rows: pl.DataFrame) -> None:
        self.base = base
        self.rows = rows.select(list(RATES_SCHEMA)).sort("day", "currency")
        day = (self.rows["day"].cast(pl.Int32)).to_numpy().astype(np.int64)
        self._from = int(day.min()) if len(day) else 0
        span = int(day.max()) - self._from + 1 if len(day) else 1
        if span > DAYS_MAX:
            raise ConfigError(
                f"currency_rates: days from {self.days[0]} to {self.days[1]}, a table may span"
                f" {DAYS_MAX} days at the most; correct the one that is a slip"
            )
        names = sorted({base, *self.rows["currency"].unique().to_list()})
        table = np.ones((len(names), span))
        first, last = np.full(len(names), -_EVER), np.full(len(names), _EVER)
        rate = self.rows["rate"].to_numpy()
        where = self.rows["currency"].to_numpy()
        for i, name in enumerate(names):
            mine = np.flatnonzero(where == name) if name != base else np.zeros(0, np.int64)
            if len(mine):
                at = day[mine] - self._from
                lengths = np.diff(np.append(at, span))
                lengths[0] += at[0]
                table[i] = np.repeat(rate[mine], lengths)
                first[i], last[i] = at[0], at[-1]
        keys = hash_strings(pl.Series(names))
        order = np.argsort(keys)
        self._keys, self._table = keys[order], table[order]
        self._first, self._last = first[order], last[order]

    @property
    def days(self) -> tuple[date, date]:
        """First and last day of the table; of an empty one the epoch."""
        if not self.rows.height:
            return _EPOCH, _EPOCH
        return self.rows["day"][0], self.rows["day"][-1]

    def digest(self, until: date | None = None) -> str:
        """Hash of the base and of all rates, or of those of days up to `until`.

        Two tables with the same digest up to a day give the events up to that day the same amounts.
        """
        rows = self.rows if until is None else self.rows.filter(pl.col("day") <= until)
        text = "".join(f"{day} {name} {rate!r}\n" for day, name, rate in rows.iter_rows())
        return hashlib.sha256(f"{self.base}\n{text}".encode()).hexdigest()[:16]

    def price(self, batch: EventBatch) -> Priced:
        """Give each row of a batch its rate; a type without money is left as it is."""
        if not event_type(batch.event_type).money or not len(batch):
            return Priced(batch)
        keys = hash_strings(batch.frame["currency"])
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        known = self._keys[at] == keys
        day = batch.time_us // _DAY_US - self._from
        rate: Float64 = self._table[at, np.clip(day, 0, self._table.shape[1] - 1)]
        old = known & ((day < self._first[at]) | (day > self._last[at]))
        if not known.all():
            rate[~known] = np.nan
        return Priced(replace(batch, rate=rate), _named(batch, ~known), _named(batch, old))


def _named(batch: EventBatch, rows: npt.NDArray[np.bool_]) -> dict[str, int]:
    """Currency -> rows, the most frequent by name and the rest as one."""
    if not rows.any():
        return {}
    counts = batch.frame["currency"].filter(pl.Series(rows)).value_counts().sort(
        ["count", "currency"], descending=[True, False]
    )  # fmt: skip
    found = dict(counts.head(NAMED_MAX).iter_rows())
    rest = int(counts["count"].sum()) - sum(found.values())
    return found | ({"others": rest} if rest else {})
