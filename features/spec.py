"""What a feature is: one declaration from which everything else follows.

The stream computation, the training set, the online view, the reference page and the sentence in an
alert all come from the same `Feature`. Declarations live in `features/definitions/`, one file a
topic.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Feature"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of one event type.

    Parameters
    ----------
    name : unique within the event type, unit and window last: `amount_sum_eur_1h`
    event : event type whose rows carry it (that is scored with it)
    entity : entity type whose state it reads; empty for a function of the event alone
    op : name of the operation, see `features.catalog.OPERATIONS`
    feeds : event types whose rows enter the state; empty means `event` alone
    column : field or derived column the operation reads; None where it only counts
    where : name of a condition column (true rows enter the state), None for all rows
    window_s : length of the trailing window (t - w, t]; None for operations without one
    other : second column of the operation (the other entity of a pair, the peers of a deviation)
    unit : unit of the value: `1`, `s`, `currency`, `km`, `sigma`, ...
    group : topic of the feature, for reasons and ablation: velocity, amount, geo, cross_entity,
        baseline, context
    why : sentence for an alert with `{value}` and, where `baseline` is set, `{baseline}`
    baseline : another feature of the same event that holds the usual value, named in `why`
    count : another feature of the same event: how many values of its own the entity has
    high_is_odd : whether high (True), low (False) or either (None) end of the range is strange
    """

    name: str
    event: str
    entity: str
    op: str
    why: str
    unit: str
    group: str
    feeds: tuple[str, ...] = ()
    column: str | None = None
    where: str | None = None
    window_s: int | None = None
    other: str | None = None
    baseline: str | None = None
    count: str | None = None
    high_is_odd: bool | None = True
