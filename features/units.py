"""Which unit an operation gives: a feature that says another is refused.

A count is a plain number, a time is in seconds, a deviation in sigma; sums and means have the unit
of what they are made of. The unit stands in alerts, in the online view and on the reference page,
and a wrong one misleads whoever reads them.
"""

from __future__ import annotations

from collections.abc import Mapping

from features.columns import flag_names, real_names, unit_of
from features.operations import OPERATIONS
from features.spec import Feature, inputs_of

__all__ = ["UNITS", "unit_fault", "units_of"]

UNITS: Mapping[str, str] = {
    **dict.fromkeys(
        ("count", "share", "distinct", "distinct_share", "distinct_ever", "usual_count", "ever"),
        "1",
    ),
    **dict.fromkeys(
        ("run_length", "flatness", "step", "iqr_distance", "quantile", "peers_deviating"), "1"
    ),
    **dict.fromkeys(
        ("risk_count", "risk_count_ever", "risk_rate", "genuine_since_fraud", "last_label"), "1"
    ),
    "entropy": "bit",
    **dict.fromkeys(("correlation", "correlation_usual"), "1"),
    "correlation_z": "sigma",
    "first_time": "flag",
    **dict.fromkeys(("since", "age", "since_pair", "since_place", "since_fraud", "fraud_run"), "s"),
    **dict.fromkeys(
        ("z", "drift", "robust_z", "mad_z", "season_z", "peer_z", "peer_gap_z", "peers_level_z"),
        "sigma",
    ),
    **dict.fromkeys(("member_z", "member_rel_z", "peers_abs_z", "surprise"), "sigma"),
    **dict.fromkeys(("anchor_z", "creep", "week_z", "trend", "shrunk_z"), "sigma"),
    "shrunk_count": "1",
    **dict.fromkeys(("home_km", "moved_km"), "km"),
    "speed_kmh": "km/h",
    **dict.fromkeys(("sum", "mean", "std", "max", "min", "value", "peer_mean"), "column"),
    **dict.fromkeys(
        ("usual", "usual_std", "recent", "last", "median", "iqr", "season_usual"), "column"
    ),
    **dict.fromkeys(("anchor", "week_usual", "difference"), "column"),
    "median_size": "undone",
    "ratio": "ratio",
}
"""Operation -> the unit it gives; `column`: that of its column, `undone`: that of the number whose
logarithm the column is, `ratio`: one over the other, `1` where both have the same. An operation
that does not stand here leaves the unit to whoever uses it."""


def units_of(feature: Feature, known: Mapping[tuple[str, str], Feature]) -> tuple[str, ...]:
    """Units that fit a feature; empty where that cannot be said (its operands are at fault).

    Parameters
    ----------
    known : (event type, name) -> every declared feature
    """
    rule = UNITS.get(feature.op, "")
    if rule not in ("column", "undone", "ratio"):
        return (rule,) if rule else ()
    own = _unit(feature, feature.column, known)
    if own is None:
        return ()
    if rule == "undone":
        numbers = (unit_of(feature.event, name) for name in real_names(feature.event))
        return tuple(dict.fromkeys(("1", *numbers)))
    if rule == "column":
        return (own,)
    other = _unit(feature, feature.other, known)
    if other is None:
        return ()
    return ("1",) if own == other else (own,) if other == "1" else (f"{own}/{other}",)


def _unit(
    feature: Feature, column: str | None, known: Mapping[tuple[str, str], Feature]
) -> str | None:
    """Unit of an operand: a column of the event types that feed it, or another feature."""
    name, log = inputs_of(column or "")
    source = known.get((feature.event, name))
    kind = OPERATIONS[feature.op].column
    if log:
        return "1"
    for event in feature.feeds or (feature.event,):
        if kind != "feature" and name in (*real_names(event), *flag_names(event)):
            return unit_of(event, name)
    return None if source is None else source.unit


def unit_fault(feature: Feature, known: Mapping[tuple[str, str], Feature]) -> str | None:
    """What is wrong with the unit of a feature whose operation and event types exist."""
    fitting = units_of(feature, known)
    if not fitting or feature.unit in fitting:
        return None
    return (
        f"unit {feature.unit!r} does not fit; operation {feature.op!r}"
        f"{f' of {feature.column}' if feature.column else ''} gives"
        f" {' or '.join(repr(unit) for unit in fitting)}"
    )
