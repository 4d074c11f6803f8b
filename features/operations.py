"""The operations a feature may name: what each needs, and its formula in words a person
understands.

The catalogue checks declarations against this table, `features.plan` turns them into kernel tables
by it, and the reference page prints it. A new operation is one row here and a branch in its
kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "DISTINCT_MAX",
    "HISTORY_FROM",
    "OPERATIONS",
    "PRIOR_AGE_S",
    "PRIOR_EVENTS",
    "SEMANTICS",
    "SLOW_TWINS",
    "UNWEIGHED",
    "Operation",
]

DISTINCT_MAX = 0
"""Different others of an entity in a longest window up to which all pairs are kept where nothing
else is said (setting `distinct_exact_max`, `features.sampling`); chosen: 0, all are kept, as counts
over 1 and 5 minutes would be estimates too above any other bound."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Parameters
    ----------
    name : how features name it
    family : the kernel that computes it: ring, rate, baseline, season, anchor, week, trend, geo,
        members, risk; `stateless` is a column of the event, `derived` is computed from other
        features of the same row
    code : number of the operation within its kernel
    formula : what it gives, in words, with {column}, {other} and {where} in their places
    column : what `column` must be: `real`, `input` (real, or another feature of the same entity, or
        `log(FEATURE)`), `value` (real or flag), `feature`, or empty for none
    window : whether `window_s` is needed
    where : whether a condition may be given
    where_needed : whether a condition must be given
    other : what `other` must be: `key`, `feature`, or empty for none
    count : whether a feature must be named that counts the entity's own values
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
    count: bool = False


_RING = (
    Operation(
        "count",
        "ring",
        0,
        "number of events{where} in the window, this one included",
        window=True,
        where=True,
    ),
    Operation(
        "share",
        "ring",
        1,
        "share of the window's events that are {where}",
        window=True,
        where=True,
        where_needed=True,
    ),
    Operation("sum", "ring", 2, "sum of {column} over the window", "real", True, True),
    Operation("mean", "ring", 3, "mean of {column} over the window", "real", True, True),
    Operation(
        "std",
        "ring",
        4,
        "sample standard deviation (n - 1) of {column} over the window",
        "real",
        True,
        True,
    ),
    Operation("max", "ring", 5, "largest {column} in the window", "real", True, True),
    Operation("min", "ring", 6, "smallest {column} in the window", "real", True, True),
    Operation(
        "distinct",
        "ring",
        7,
        "number of different {other} in the window, exact unless `distinct_exact_max` is set",
        window=True,
        other="key",
    ),
    Operation(
        "distinct_share",
        "ring",
        8,
        "different {other} in the window over the window's events",
        window=True,
        other="key",
    ),
    Operation(
        "first_time",
        "ring",
        9,
        "1 where it was never seen with this {other} before (or not for 45 days), else 0;"
        " unknown for its first event",
        other="key",
    ),
    Operation(
        "since_pair",
        "ring",
        10,
        "time since it was last seen with this {other}; unknown the first time",
        other="key",
    ),
    Operation(
        "distinct_ever",
        "ring",
        11,
        "number of different {other} it was ever seen with, this one included; one not seen for 45"
        " days counts again",
        other="key",
    ),
)

_RATE = (
    Operation(
        "usual_count",
        "rate",
        0,
        "events{where} one expects in the window by its own rate of about the last week (an"
        " exponentially weighted count), this event excluded",
        window=True,
        where=True,
    ),
    Operation("since", "rate", 1, "time since its previous event{where}", where=True),
    Operation("age", "rate", 2, "time since its first event{where}", where=True),
    Operation("ever", "rate", 3, "events{where} before this one, ever", where=True),
)

_BASELINE = (
    Operation(
        "usual",
        "baseline",
        0,
        "exponentially weighted mean of the earlier values of {column}, each by its weight beside"
        " its anchor",
        "input",
    ),
    Operation(
        "usual_std",
        "baseline",
        1,
        "exponentially weighted standard deviation of the earlier values of {column}",
        "input",
    ),
    Operation(
        "z",
        "baseline",
        2,
        "({column} - its usual value) / its usual deviation, by the earlier values, in sigma of a"
        " normal law",
        "input",
    ),
    Operation(
        "recent", "baseline", 3, "mean of about the last 8 earlier values of {column}", "input"
    ),
    Operation(
        "drift",
        "baseline",
        4,
        "(mean of about the last 8 values of {column}, this one included - its usual value) / its"
        " usual deviation",
        "input",
    ),
    Operation(
        "run_length",
        "baseline",
        5,
        "how many values of {column} in a row equal this one, itself included",
        "input",
    ),
    Operation(
        "flatness",
        "baseline",
        6,
        "step of {column} from value to value, of late over that of old; 0 is a flat line",
        "input",
    ),
    Operation(
        "step", "baseline", 7, "step of {column} from the previous value, in usual steps", "input"
    ),
    Operation("last", "baseline", 8, "the previous value of {column}", "input"),
    Operation("median", "baseline", 9, "median of the last 32 earlier values of {column}", "input"),
    Operation(
        "iqr",
        "baseline",
        10,
        "distance of the quartiles of the last 32 earlier values of {column}",
        "input",
    ),
    Operation(
        "robust_z",
        "baseline",
        11,
        "({column} - median) / (interquartile range / 1.349), by the last 32 earlier values, in"
        " sigma of a normal law",
        "input",
    ),
    Operation(
        "iqr_distance",
        "baseline",
        12,
        "how far {column} is outside the quartiles of its last 32 earlier values, in interquartile"
        " ranges",
        "input",
    ),
    Operation(
        "quantile",
        "baseline",
        13,
        "share of the last 32 earlier values of {column} below this one (equal ones count half)",
        "input",
    ),
    Operation(
        "median_size",
        "baseline",
        14,
        "exp - 1 of the median of the last 32 earlier values of {column}",
        "input",
    ),
    Operation(
        "mad_z",
        "baseline",
        15,
        "({column} - median) / (1.4826 median absolute deviations), by the last 32 earlier values,"
        " in sigma of a normal law",
        "input",
    ),
)

_SEASON = (
    Operation("season_usual", "season", 0, "usual {column} at this hour of the day (UTC)", "input"),
    Operation(
        "season_z",
        "season",
        1,
        "({column} - its usual value at this hour of the day) / its usual deviation at this hour,"
        " in sigma of a normal law",
        "input",
    ),
)

_ANCHOR = (
    Operation(
        "anchor",
        "anchor",
        0,
        "level of the earlier values of {column} that cannot be moved slowly (memory of four weeks"
        " and 128 events at least, Huber's weights)",
        "input",
    ),
    Operation(
        "anchor_z",
        "anchor",
        1,
        "({column} - its anchor) / the anchor's deviation, in sigma of a normal law",
        "input",
    ),
    Operation(
        "creep",
        "anchor",
        2,
        "(mean of {column} over about the last day, at least 8 values, this one included - its"
        " anchor) / the anchor's deviation",
        "input",
    ),
)

_WEEK = (
    Operation(
        "week_usual",
        "week",
        0,
        "usual {column} at this hour of working days, or of weekends (UTC)",
        "input",
    ),
    Operation(
        "week_z",
        "week",
        1,
        "({column} - its usual value at this hour of working days, or of weekends) / its usual"
        " deviation at this hour, in sigma of a normal law",
        "input",
    ),
)

_TREND = (
    Operation(
        "trend",
        "trend",
        0,
        "slope per hour of the line through the values of {column} of about the last hour, this"
        " one included, in usual deviations from that line",
        "input",
    ),
)

_GEO = (
    Operation(
        "home_km",
        "geo",
        0,
        "distance from its home (mean of some 64 places, each by its weight)",
    ),
    Operation("moved_km", "geo", 1, "distance from its previous place"),
    Operation(
        "speed_kmh",
        "geo",
        2,
        "speed needed to get here from the previous place (at least one minute is assumed)",
    ),
    Operation("since_place", "geo", 3, "time since its previous event with a place"),
)

_MEMBERS = (
    Operation(
        "peer_mean",
        "members",
        0,
        "mean of the latest {column} of each other {other} heard of within the window",
        "real",
        True,
        other="key",
    ),
    Operation(
        "peer_z",
        "members",
        1,
        "({column} - mean of the latest ones of each other {other}) / their standard deviation",
        "real",
        True,
        other="key",
    ),
    Operation(
        "peer_gap_z",
        "members",
        2,
        "deviation of ({column} - mean of each other {other}) from what it usually is for this"
        " {other}, in sigma",
        "real",
        True,
        other="key",
    ),
    Operation(
        "peers_level_z",
        "members",
        3,
        "mean, over each other {other} heard of within the window, of the deviation of its latest"
        " {column} from its own usual one, in sigma",
        "real",
        True,
        other="key",
    ),
    Operation(
        "peers_deviating",
        "members",
        4,
        "share of each other {other} heard of within the window whose latest {column} is more than"
        " 3 sigma from its own usual one",
        "real",
        True,
        other="key",
    ),
    Operation(
        "member_z",
        "members",
        5,
        "deviation of {column} from what is usual for this {other}, in sigma",
        "real",
        True,
        other="key",
    ),
    Operation(
        "member_rel_z",
        "members",
        6,
        "deviation of {column} from what is usual for this {other}, less the mean deviation of each"
        " other {other}",
        "real",
        True,
        other="key",
    ),
    Operation(
        "peers_abs_z",
        "members",
        7,
        "mean, over each other {other} heard of within the window, of the absolute deviation of its"
        " latest {column}, in sigma",
        "real",
        True,
        other="key",
    ),
)

_RISK = (
    Operation(
        "risk_count",
        "risk",
        0,
        "events known to be fraud of the window's days (UTC, by their own time) that end a week"
        " ago, and of the days since",
        window=True,
    ),
    Operation("risk_count_ever", "risk", 1, "events known to be fraud, ever"),
    Operation(
        "last_label", "risk", 2, "the newest verdict that came in: 1 fraud, 0 genuine; else unknown"
    ),
    Operation(
        "since_fraud",
        "risk",
        3,
        "time since its latest event that is known to be fraud; unknown where none is",
    ),
    Operation(
        "risk_rate",
        "risk",
        4,
        "share of frauds among its events whose verdict is known: all of the window's full days"
        " (UTC) that end a week ago (genuine unless called a fraud), and the frauds known of the"
        " days since; as if 10 more events were known, and a hundredth of one event were fraud",
        window=True,
    ),
    Operation(
        "genuine_since_fraud",
        "risk",
        5,
        "events known to be genuine on the full days (UTC) after its latest known fraud, up to a"
        " week ago, of the last 40 days; unknown where no fraud is known",
    ),
    Operation(
        "fraud_run",
        "risk",
        6,
        "time since the first day (UTC) of its latest run of days with a known fraud: back from the"
        " latest one, over days without events, to a day whose events are not known to be fraud, of"
        " the last 40 days; unknown where no fraud is known",
    ),
)

_CORRELATIONS = (
    Operation(
        "correlation",
        "correlations",
        0,
        "correlation of {column} with that {other} of the same entity which usually goes with it"
        " the most (at least 0.5 either way), over about the last 32 pairs of values",
        "real",
        True,
        other="key",
    ),
    Operation(
        "correlation_usual",
        "correlations",
        1,
        "the same over about the last 512 pairs before this one; a partner heard of within the"
        " window counts, and one with 64 pairs",
        "real",
        True,
        other="key",
    ),
    Operation(
        "correlation_z",
        "correlations",
        2,
        "how far the correlation of now is from the usual one, in sigma (Fisher's z)",
        "real",
        True,
        other="key",
    ),
)

_CATEGORIES = (
    Operation(
        "entropy",
        "categories",
        0,
        "entropy in bits of {other} over its last 32 events with one, this one included: 0 where"
        " all are the same, 5 where all differ",
        other="key",
    ),
)

PRIOR_EVENTS = 8.0
"""Values of its own from which an entity is believed more than its peers; chosen: of 8 values a
mean is good to a third of a deviation, and the deviation itself to a quarter."""

PRIOR_AGE_S = 86_400.0
"""Age from which an entity's own usual count is believed more than that of its peers; chosen: a
rate is measured over a day at least (`features.rates.YOUNG_S`)."""

_HOME = (
    Operation("value", "stateless", 0, "{column} of the event itself", "value"),
    Operation("ratio", "derived", 0, "{column} over {other}", "feature", other="feature"),
    Operation("difference", "derived", 1, "{column} less {other}", "feature", other="feature"),
    Operation(
        "surprise",
        "derived",
        2,
        "how far {column} is above {other}, in sigma (Freeman-Tukey deviate of a Poisson count)",
        "feature",
        other="feature",
    ),
    Operation(
        "shrunk_z",
        "derived",
        3,
        "(n {column} + 8 {other}) / (n + 8): the entity's own deviation after n values of its own"
        " ({count}), that of its peers while it is new, whichever is known while the other is not",
        "feature",
        other="feature",
        count=True,
    ),
    Operation(
        "shrunk_count",
        "derived",
        4,
        "(t {column} + d {other}) / (t + d): the entity's own usual count once it was first seen t"
        " ago ({count}), that of its peers while t is below a day (d), whichever is known while the"
        " other is not; peers that are new themselves (0) are not known",
        "feature",
        other="feature",
        count=True,
    ),
)

OPERATIONS: dict[str, Operation] = {
    op.name: op
    for family in (
        _RING,
        _RATE,
        _BASELINE,
        _SEASON,
        _ANCHOR,
        _WEEK,
        _TREND,
        _GEO,
        _MEMBERS,
        _RISK,
        _CATEGORIES,
        _CORRELATIONS,
        _HOME,
    )
    for op in family
}
"""Operation by name."""

SEMANTICS = 5
"""Part of the catalogue's version; raised when an operation, a derived column or a constant of a
kernel comes to mean something else, so that old bundles and state are not taken for new ones."""

SLOW_TWINS = {"baseline": "anchor", "season": "week"}
"""Family of a baseline -> that of its slow twin: an instance of the same column, which says how
much a value weighs. It is kept whether a feature reads it or not."""

UNWEIGHED = frozenset(
    ("recent", "run_length", "last", "median", "iqr", "robust_z", "iqr_distance", "quantile",
     "median_size", "mad_z")
)  # fmt: skip
"""Operations of these families that take values as they come: they say what is of late, or are of
the last 32 values, which SQL counts too. They need no twin of their own; where a level could be
moved below them, `creep` of the same column is the feature that sees it."""

HISTORY_FROM = 9
"""Codes of baseline operations from here on need the last 32 values, not only running means."""
