"""Columns that features read: declared fields, numbers and flags made from them, keys of entities.

Everything here is a function of one event alone, computed for a whole batch at the home lane before
rows are split, so that the kernels of the groups see plain numbers. A new derived column is one row
in `DERIVED`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.batch import EventBatch, Float64
from features.events import event_type
from features.events.base import NUMBER_MAX
from features.keys import UInt64, hash_columns, hash_strings
from features.registry import own

__all__ = [
    "DERIVED",
    "PLACE",
    "Columns",
    "Derived",
    "derived_columns",
    "flag_names",
    "has_key",
    "has_real",
    "key_names",
    "made_by_user",
    "meaning_of",
    "real_names",
    "unit_of",
]

Bool = npt.NDArray[np.bool_]

_LOG = logging.getLogger(__name__)

SMALL_AMOUNT = 3.0
"""Below this a payment is small in any of the major currencies; chosen: testers of cards stay under
the sums that need a second factor or catch the holder's eye."""

ROUND_AMOUNT_STEP = 10.0
ROUND_AMOUNT_MIN = 50.0
"""Round sums from here on are counted; chosen: below, honest prices are round too often. Both are
of the base currency where there is one: of a currency worth about a hundredth of it, a multiple of
a thousand is round."""

PLACE = ("place_x", "place_y", "place_z")
"""Columns of a place, a unit vector: what distances and speeds are computed of."""

KNOWN_DAYS_MAX = 7.0
"""From here on an entity is simply known: a number that grows without end tells only how long the
flow has been running. Chosen: a week has all its rhythms."""

_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Derived:
    """A column made from the fields of one event.

    Parameters
    ----------
    event : event type it belongs to
    name : how features name it
    kind : `real` (float64, NaN where unknown) or `flag` (bool)
    make : the batch's columns (n rows) -> array (n,)
    doc : what it means, one line
    unit : of a real
    meaning : of a user's column, stands for the code that makes it; empty for ours, whose meaning
        `features.operations.SEMANTICS` numbers
    """

    event: str
    name: str
    kind: str
    make: Callable[[Columns], npt.NDArray[Any]]
    doc: str
    unit: str = "1"
    meaning: str = ""


@cache
def _word(value: str) -> np.uint64:
    """Key of one word."""
    return np.uint64(hash_strings(pl.Series([value]))[0])


def _is(name: str, *values: str) -> Callable[[Columns], Bool]:
    """Whether a string field is one of `values`: by its key, which is at hand."""

    def make(columns: Columns) -> Bool:
        keys = columns.key(name)
        found: Bool = keys == _word(values[0])
        for value in values[1:]:
            found |= keys == _word(value)
        return found

    return make


def _log(name: str) -> Callable[[Columns], Float64]:
    """sign(x) log(1 + |x|): spreads small values, tames large ones, keeps the sign."""

    def make(columns: Columns) -> Float64:
        value = columns.real(name)
        return np.asarray(np.copysign(np.log1p(np.abs(value)), value))

    return make


def _axis(axis: int) -> Callable[[Columns], Float64]:
    """One component of the place as a unit vector: means of places work across the date line."""

    def make(columns: Columns) -> Float64:
        latitude = np.radians(columns.real("latitude"))
        if axis == 2:
            return np.asarray(np.sin(latitude))
        longitude = np.radians(columns.real("longitude"))
        turned = np.cos(longitude) if axis == 0 else np.sin(longitude)
        return np.asarray(np.cos(latitude) * turned)

    return make


def _hour(columns: Columns) -> Float64:
    """Hour of the day, UTC, with its fraction."""
    return np.asarray((columns.time_us % _DAY_US) / 3.6e9)


def _weekend(columns: Columns) -> Bool:
    """Saturday or Sunday, UTC; 1970-01-01 was a Thursday."""
    return np.asarray((columns.time_us // _DAY_US + 3) % 7 >= 5)


def _small(columns: Columns) -> Bool:
    return np.asarray(columns.real("amount") < SMALL_AMOUNT)


def _round(columns: Columns) -> Bool:
    amount, paid, step = columns.real("amount"), columns.paid("amount"), ROUND_AMOUNT_STEP
    if columns.rate is None:
        return np.asarray((amount >= ROUND_AMOUNT_MIN) & (paid % step == 0.0))
    # What is round is so in the currency it was paid in: tens of euros, thousands of yen.
    with np.errstate(invalid="ignore"):
        steps = step * 10.0 ** np.round(-np.log10(columns.rate))
        return np.asarray((amount >= ROUND_AMOUNT_MIN) & (paid % steps == 0.0))


def _failed(columns: Columns) -> Bool:
    return np.asarray(~columns.flag("success"))


def _server_error(columns: Columns) -> Bool:
    return np.asarray(columns.real("status") >= 500.0)


def _no_place(columns: Columns) -> Bool:
    return np.isnan(columns.real("latitude"))


def _no_device(columns: Columns) -> Bool:
    return np.asarray(columns.key("device_id") == 0)


def _no_duration(columns: Columns) -> Bool:
    return np.isnan(columns.real("duration_ms"))


def _place(event: str) -> tuple[Derived, ...]:
    """The three components of an event's place."""
    return tuple(
        Derived(event, name, "real", _axis(i), f"{name[-1]} component of the place as unit vector")
        for i, name in enumerate(PLACE)
    )


def _clock(event: str) -> tuple[Derived, ...]:
    """Time of the day and week."""
    return (
        Derived(event, "hour", "real", _hour, "hour of the day, UTC", "h"),
        Derived(event, "weekend", "flag", _weekend, "Saturday or Sunday, UTC"),
    )


def _gaps(usual: str) -> Callable[[Columns], Float64]:
    """The silence in gaps of a usual length; NaN where that is not known."""

    def make(columns: Columns) -> Float64:
        return np.asarray(columns.real("gap_s") / np.maximum(columns.real(usual), 1.0))

    return make


def _leeway(columns: Columns) -> Float64:
    return np.asarray(columns.real("allowed_s") / np.maximum(columns.real("usual_gap_s"), 1.0))


def _known_days(columns: Columns) -> Float64:
    return np.minimum(columns.real("known_s") / 86_400.0, KNOWN_DAYS_MAX)


def _silences_a_day(columns: Columns) -> Float64:
    return np.asarray(
        columns.real("silences") / np.maximum(columns.real("known_s") / 86_400.0, 1.0)
    )


DERIVED: tuple[Derived, ...] = (
    *_clock("payment"),
    *_place("payment"),
    Derived("payment", "log_amount", "real", _log("amount"), "log(1 + amount)"),
    Derived("payment", "small", "flag", _small, f"amount below {SMALL_AMOUNT:g}"),
    Derived(
        "payment",
        "round",
        "flag",
        _round,
        f"multiple of {ROUND_AMOUNT_STEP:g}, at least {ROUND_AMOUNT_MIN:g}",
    ),
    Derived("payment", "online", "flag", _is("channel", "online"), "made online"),
    Derived("payment", "remote", "flag", _is("channel", "online", "transfer"), "no till involved"),
    Derived("payment", "cash", "flag", _is("channel", "atm"), "cash from a machine"),
    Derived("payment", "place_unknown", "flag", _no_place, "carries no place"),
    *_clock("login"),
    *_place("login"),
    Derived("login", "failed", "flag", _failed, "was not let in"),
    Derived("login", "password", "flag", _is("method", "password"), "a password was presented"),
    Derived("login", "token", "flag", _is("method", "token"), "an open session's token was used"),
    Derived("login", "device_unknown", "flag", _no_device, "carries no device"),
    *_clock("metric"),
    Derived("metric", "log_value", "real", _log("value"), "sign(value) log(1 + |value|)"),
    *_clock("app_log"),
    Derived("app_log", "log_duration", "real", _log("duration_ms"), "log(1 + duration in ms)"),
    Derived("app_log", "error", "flag", _is("level", "error", "fatal"), "level error or fatal"),
    Derived("app_log", "fatal", "flag", _is("level", "fatal"), "level fatal"),
    Derived(
        "app_log",
        "warning",
        "flag",
        _is("level", "warning", "error", "fatal"),
        "level warning or worse",
    ),
    Derived("app_log", "server_error", "flag", _server_error, "status 500 or above"),
    Derived("app_log", "untimed", "flag", _no_duration, "reports no duration"),
    Derived("absence", "usual_gaps", "real", _gaps("usual_gap_s"), "silence over its usual gap"),
    Derived(
        "absence",
        "hour_gaps",
        "real",
        _gaps("hour_gap_s"),
        "silence over its usual gap at this hour",
    ),
    Derived("absence", "leeway", "real", _leeway, "gap allowed over its usual gap"),
    Derived(
        "absence",
        "known_days",
        "real",
        _known_days,
        f"how long it has been known, at most {KNOWN_DAYS_MAX:g} days",
        "d",
    ),
    Derived(
        "absence", "silences_a_day", "real", _silences_a_day, "silences it has had, a day known"
    ),
    Derived("absence", "of_host", "flag", _is("entity_type", "host"), "tells of a host"),
    Derived("absence", "of_service", "flag", _is("entity_type", "service"), "tells of a service"),
)


def derived_columns() -> tuple[Derived, ...]:
    """All derived columns: ours, then the user's."""
    return (*DERIVED, *own().derived)


@cache
def _derived(event: str) -> dict[str, Derived]:
    """Derived columns of an event type by name."""
    return {d.name: d for d in derived_columns() if d.event == event}


@cache
def made_by_user(event: str) -> dict[str, Derived]:
    """Derived columns of an event type that a user declared, by name."""
    return {d.name: d for d in own().derived if d.event == event}


@cache
def real_names(event: str) -> tuple[str, ...]:
    """Columns of an event type that hold numbers."""
    fields = [f.name for f in event_type(event).fields if f.kind in ("float64", "int64")]
    return (*fields, *(d.name for d in _derived(event).values() if d.kind == "real"))


@cache
def flag_names(event: str) -> tuple[str, ...]:
    """Columns of an event type that are true or false."""
    fields = [f.name for f in event_type(event).fields if f.kind == "bool"]
    return (*fields, *(d.name for d in _derived(event).values() if d.kind == "flag"))


@cache
def unit_of(event: str, name: str) -> str:
    """Unit of a number of an event type; `1` where it has none, `flag` of a condition."""
    if name in flag_names(event):
        return "flag"
    derived = _derived(event).get(name)
    return (event_type(event).field(name).unit if derived is None else derived.unit) or "1"


@cache
def meaning_of(name: str) -> str:
    """What stands for the code of a user's columns called `name`; empty where there is none."""
    found = [d.meaning for d in own().derived if d.name == name]
    return " ".join(sorted(found))


@cache
def key_names(event: str) -> tuple[str, ...]:
    """Entities and string fields of an event type: what can be one side of a pair."""
    declared = event_type(event)
    fields = [f.name for f in declared.fields if f.kind in ("string", "enum")]
    return tuple(dict.fromkeys((*declared.entities, *fields)))


@cache
def has_real(event: str, name: str) -> bool:
    """Whether an event type has the number (and the condition it carries, see `Columns`)."""
    column, _, condition = name.partition("|")
    return column in real_names(event) and (not condition or condition in flag_names(event))


@cache
def has_key(event: str, name: str) -> bool:
    """Whether an event type has the entity or string field."""
    return name in key_names(event)


_TOLD: set[tuple[str, str]] = set()
"""Columns of users of which it was told that they gave what is no number."""


def _known(derived: Derived, columns: Columns) -> Float64:
    """A user's column; NaN where it is infinite or beyond all bounds: one such value would stay in
    the sums and means of its entity for good."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        value: Float64 = derived.make(columns)
    beyond = np.abs(value) > NUMBER_MAX
    if not beyond.any():
        return value
    if (derived.event, derived.name) not in _TOLD:
        _TOLD.add((derived.event, derived.name))
        _LOG.warning(
            "column %s.%s gave %g, beyond %g either way: taken for not known, as all such values of"
            " it from now on",
            derived.event, derived.name, value[beyond][0], NUMBER_MAX,
        )  # fmt: skip
    return np.where(beyond, np.nan, value)


class Columns:
    """Columns of one batch, each made once: the batch keeps them.

    Money is in the base currency where the batch has rates, NaN where the rate is not known.
    A real may carry a condition, `amount|declined`: NaN where the flag is false, so that it enters
    no sum.
    """

    def __init__(self, batch: EventBatch) -> None:
        self._event = batch.event_type
        self._frame = batch.frame
        self.time_us = batch.time_us
        self.rate = batch.rate
        """float64 (n,), to the base currency; None where nothing is converted."""
        self._made = batch.made

    def real(self, name: str) -> Float64:
        """float64 (n,), NaN where unknown."""
        at = ("real", name)
        if at not in self._made:
            self._made[at] = self._make_real(name)
        return self._made[at]

    def _make_real(self, name: str) -> Float64:
        column, _, condition = name.partition("|")
        if condition:
            return np.where(self.flag(condition), self.real(column), np.nan)
        derived = _derived(self._event).get(name)
        if derived is not None:
            return _known(derived, self) if derived.meaning else derived.make(self)
        value = self.paid(name)
        if self.rate is not None and name in event_type(self._event).money:
            return np.asarray(value * self.rate)
        return value

    def paid(self, name: str) -> Float64:
        """float64 (n,), a field as the event has it: money in the currency it was paid in."""
        return self._frame[name].to_numpy().astype(np.float64)

    def flag(self, name: str) -> Bool:
        """bool (n,), False where unknown."""
        at = ("flag", name)
        if at not in self._made:
            derived = _derived(self._event).get(name)
            if derived is not None:
                made = derived.make(self)
            else:
                column = self._frame[name]
                made = (column.fill_null(False) if column.null_count() else column).to_numpy()
            self._made[at] = made
        return self._made[at]

    def key(self, name: str) -> UInt64:
        """uint64 (n,), key of an entity or of a string field; 0 where absent."""
        parts = event_type(self._event).entities.get(name, (name,))
        at = ("key", "|".join(parts))
        if at not in self._made:
            if len(parts) == 1:
                self._made[at] = hash_strings(self._frame[parts[0]])
            else:
                self._made[at] = hash_columns(self._frame, parts)
        return self._made[at]
