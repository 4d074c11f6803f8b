"""The operations a feature may name: what each needs, and its formula in words a person understands.

The catalogue checks declarations against this table, `features.plan` turns them into kernel tables by
it, and the reference page prints it. A new operation is one row here and a branch in its kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OPERATIONS", "Operation"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Parameters
    ----------
    name : how features name it
    family : the kernel that computes it: ring, rate, baseline, season, geo, members; `stateless` is
        a column of the event, `derived` is computed from other features of the same row
    code : number of the operation within its kernel
    formula : what it gives, in words
    column : what `column` must be: `real`, `input` (real, or another feature of the same entity, or
        `log(FEATURE)`), `value` (real or flag), `feature`, or empty for none
    window : whether `window_s` is needed
    where : whether a condition may be given
    where_needed : whether a condition must be given
    other : what `other` must be: `key`, `feature`, or empty for none
    """

    name: str
    family: str
    code: int
    formula: str
    column: str = ""
    window: bool = False
    where: bool = False
    where_needed: bool = False
    other: str = ""


_RING = (
    Operation("count", "ring", 0, "number of events in the window, this one included",
              window=True, where=True),
    Operation("share", "ring", 1, "share of the window's events for which the condition holds",
              window=True, where=True, where_needed=True),
    Operation("sum", "ring", 2, "sum of the column over the window", "real", True, True),
    Operation("mean", "ring", 3, "mean of the column over the window", "real", True, True),
    Operation("std", "ring", 4, "sample standard deviation of the column over the window (n - 1)",
              "real", True, True),
    Operation("max", "ring", 5, "largest value of the column in the window", "real", True, True),
    Operation("min", "ring", 6, "smallest value of the column in the window", "real", True, True),
    Operation("distinct", "ring", 7, "number of different values of `other` in the window, exact",
              window=True, other="key"),
    Operation("distinct_share", "ring", 8,
              "different values of `other` in the window over the window's events",
              window=True, other="key"),
    Operation("first_time", "ring", 9,
              "1 where the entity was never seen with this `other` before, 0 where it was;"
              " unknown for an entity's first event", other="key"),
    Operation("since_pair", "ring", 10,
              "time since the entity was last seen with this `other`; unknown the first time",
              other="key"),
    Operation("distinct_ever", "ring", 11,
              "number of different values of `other` the entity was ever seen with, this one included",
              other="key"),
)

_RATE = (
    Operation("usual_count", "rate", 0,
              "events one expects in a window of this length from the entity's own rate, an"
              " exponentially weighted mean over about a week, this event excluded",
              window=True, where=True),
    Operation("since", "rate", 1, "time since the entity's previous event", where=True),
    Operation("age", "rate", 2, "time since the entity was first seen", where=True),
    Operation("ever", "rate", 3, "events of the entity before this one, ever", where=True),
)

_BASELINE = (
    Operation("usual", "baseline", 0, "exponentially weighted mean of the earlier values", "input"),
    Operation("usual_std", "baseline", 1,
              "exponentially weighted standard deviation of the earlier values", "input"),
    Operation("z", "baseline", 2, "(value - usual) / usual deviation, of the earlier values", "input"),
    Operation("recent", "baseline", 3, "mean of about the last 8 earlier values", "input"),
    Operation("drift", "baseline", 4,
              "(mean of about the last 8 values, this one included - usual) / usual deviation",
              "input"),
    Operation("run_length", "baseline", 5, "how many values in a row equal this one", "input"),
    Operation("flatness", "baseline", 6,
              "usual step from value to value of late over that of old; 0 is a flat line", "input"),
    Operation("step", "baseline", 7, "step from the previous value, in usual steps", "input"),
    Operation("last", "baseline", 8, "the previous value", "input"),
    Operation("median", "baseline", 9, "median of the last 32 earlier values", "input"),
    Operation("iqr", "baseline", 10, "distance of the quartiles of the last 32 earlier values",
              "input"),
    Operation("robust_z", "baseline", 11,
              "(value - median) / (interquartile range / 1.349), of the last 32 earlier values",
              "input"),
    Operation("iqr_distance", "baseline", 12,
              "how far outside the quartiles of the last 32 earlier values, in interquartile ranges",
              "input"),
    Operation("quantile", "baseline", 13,
              "share of the last 32 earlier values below this one (equal ones count half)", "input"),
    Operation("median_size", "baseline", 14,
              "median of the last 32 earlier values of a logarithm, turned back into a size", "input"),
)

_SEASON = (
    Operation("season_usual", "season", 0, "usual value at this hour of the day", "input"),
    Operation("season_z", "season", 1,
              "(value - usual value at this hour) / usual deviation at this hour", "input"),
)

_GEO = (
    Operation("home_km", "geo", 0, "distance from the entity's home (slow mean of its places)"),
    Operation("moved_km", "geo", 1, "distance from the entity's previous place"),
    Operation("speed_kmh", "geo", 2,
              "speed needed to get here from the previous place (at least one minute is assumed)"),
    Operation("since_place", "geo", 3, "time since the entity's previous event with a place"),
)

_MEMBERS = (
    Operation("peer_mean", "members", 0,
              "mean of the latest values of the other members heard of within the window",
              "real", True, other="key"),
    Operation("peer_z", "members", 1,
              "(value - mean of the other members' latest values) / their standard deviation",
              "real", True, other="key"),
    Operation("peer_gap_z", "members", 2,
              "deviation of (value - peers' mean) from what it usually is for this member, in sigma",
              "real", True, other="key"),
    Operation("peers_level_z", "members", 3,
              "mean, over the other members, of the deviation of their latest value from their own"
              " usual one, in sigma", "real", True, other="key"),
    Operation("peers_deviating", "members", 4,
              "share of the other members whose latest value is more than 3 sigma from their own"
              " usual one", "real", True, other="key"),
    Operation("member_z", "members", 5, "deviation of this member from its own usual value, in sigma",
              "real", True, other="key"),
    Operation("member_rel_z", "members", 6,
              "deviation of this member from its own usual value, less the other members' mean"
              " deviation", "real", True, other="key"),
    Operation("peers_abs_z", "members", 7,
              "mean, over the other members, of the absolute deviation of their latest value, in"
              " sigma", "real", True, other="key"),
)

_HOME = (
    Operation("value", "stateless", 0, "the event's own value", "value"),
    Operation("ratio", "derived", 0, "one feature over another", "feature", other="feature"),
    Operation("difference", "derived", 1, "one feature less another", "feature", other="feature"),
    Operation("surprise", "derived", 2,
              "how far a count is above its usual value, in sigma (Freeman-Tukey deviate of a"
              " Poisson count)", "feature", other="feature"),
)

OPERATIONS: dict[str, Operation] = {
    op.name: op for op in (*_RING, *_RATE, *_BASELINE, *_SEASON, *_GEO, *_MEMBERS, *_HOME)
}
"""Operation by name."""

HISTORY_FROM = 9
"""Codes of baseline operations from here on need the last 32 values, not only running means."""
