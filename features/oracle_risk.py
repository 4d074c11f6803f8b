"""What features of late verdicts mean in SQL: `features.oracle` has the other families.

Verdicts lie in a table of their own, `verdicts`: the columns of the events they are of, `heard_us`
(when the verdict became known) and `fraud`. A row knows the verdicts on its entity that were heard
by its own time, and counts them by the day (UTC) of their events.
"""

from __future__ import annotations

from features.risk import DAY_US, DELAY_DAYS, PRIOR_EVENTS, PRIOR_SHARE, RISK_DAYS
from features.spec import Feature

__all__ = ["risk_values"]

_FULL = DELAY_DAYS + 1
"""Days from a row's own back to the newest of which nobody will call an event a fraud any more."""


def risk_values(feature: Feature, rows: str, verdicts: str) -> str:
    """A query of `i`, `event` and `v`, the value of a risk feature.

    Parameters
    ----------
    rows : the rows of the entity as a FROM clause, with `e`, `k`, `fed` and `day`
    verdicts : what was said of its events that feed the feature, with `e`, `day`, `time_us`,
        `heard_us` and `fraud`
    """
    days = (feature.window_s or 0) * 1_000_000 // DAY_US
    if feature.op == "fraud_run":
        return _run(rows, verdicts)
    if feature.op == "genuine_since_fraud":
        return _since(rows, verdicts)
    # Days that are over: all their events came before the row.
    ended = (
        "count(CASE WHEN fed THEN 1 END) OVER (PARTITION BY e ORDER BY day RANGE BETWEEN"
        f" {_FULL + days - 1} PRECEDING AND {_FULL} PRECEDING)"
    )
    frauds = "count(CASE WHEN fraud{} THEN 1 END)"
    found = frauds.format(f" AND s.day > r.day - {_FULL + days}")
    young = frauds.format(f" AND s.day > r.day - {_FULL}")
    prior = f"{PRIOR_EVENTS} * {PRIOR_SHARE}"
    value = {
        "risk_count": frauds.format(f" AND s.day >= r.day - {DELAY_DAYS + days}"),
        "risk_count_ever": frauds.format(""),
        "last_label": "last(fraud::DOUBLE ORDER BY heard_us, s.time_us)",
        "since_fraud": "(any_value(r.time_us) - max(CASE WHEN fraud THEN s.time_us END)) / 1e6",
        "risk_rate": f"({found} + {prior}) / (any_value(ended) + {young} + {PRIOR_EVENTS})",
    }[feature.op]
    counted = f"(SELECT i, event, e, time_us, day, {ended} AS ended FROM {rows})"
    return (
        f"SELECT r.i, r.event, {value} AS v FROM {counted} r LEFT JOIN {verdicts} s"
        " ON s.e = r.e AND s.heard_us <= r.time_us GROUP BY r.i, r.event"
    )


def _newest(rows: str, verdicts: str) -> str:
    """Rows whose entity has a known fraud, with the time of the latest."""
    return (
        "(SELECT r.i, r.event, r.e, r.time_us, r.day, max(s.time_us) AS latest_us,"
        f" max(s.time_us) // {DAY_US} AS latest FROM {rows} r JOIN {verdicts} s"
        " ON s.e = r.e AND s.heard_us <= r.time_us AND s.fraud"
        " GROUP BY r.i, r.event, r.e, r.time_us, r.day)"
    )


def _daily(rows: str) -> str:
    """Events of each entity and day, and of all days up to it."""
    counted = f"SELECT e, day, count(*) AS n FROM {rows} WHERE fed GROUP BY e, day"
    return f"(SELECT *, sum(n) OVER (PARTITION BY e ORDER BY day) AS upto FROM ({counted}))"


def _since(rows: str, verdicts: str) -> str:
    """Events of whole days, of those kept, since that of the latest known fraud."""
    begin = f"greatest(latest, day - {RISK_DAYS})"
    daily = _daily(rows)
    at = f"(SELECT *, {begin} AS before, day - {_FULL} AS until FROM {_newest(rows, verdicts)})"
    return (
        "SELECT r.i, r.event, greatest(coalesce(b.upto, 0) - coalesce(a.upto, 0), 0) AS v"
        f" FROM {at} r ASOF LEFT JOIN {daily} a ON a.e = r.e AND a.day <= r.before"
        f" ASOF LEFT JOIN {daily} b ON b.e = r.e AND b.day <= r.until"
    )


def _run(rows: str, verdicts: str) -> str:
    """Since the first of the days with frauds that no day without one parts from the latest."""
    newest = _newest(rows, verdicts)
    # The days kept before the latest, with whether a fraud of them is known to the row.
    days = (
        "(SELECT r.i, r.event, r.time_us, r.latest, d.day,"
        " bool_or(coalesce(s.heard_us <= r.time_us, false)) AS known"
        f" FROM {newest} r LEFT JOIN {_daily(rows)} d"
        f" ON d.e = r.e AND d.day < r.latest AND d.day > r.day - {RISK_DAYS}"
        f" LEFT JOIN (SELECT * FROM {verdicts} WHERE fraud) s ON s.e = r.e AND s.day = d.day"
        " GROUP BY r.i, r.event, r.time_us, r.latest, d.day)"
    )
    parted = (
        "(SELECT *, max(CASE WHEN NOT known THEN day END) OVER (PARTITION BY event, i) AS parts"
        f" FROM {days})"
    )
    first = (
        "least(min(CASE WHEN known AND day > coalesce(parts, -1) THEN day END), any_value(latest))"
    )
    return (
        f"SELECT i, event, any_value(time_us) / 1e6 - {first} * 86400.0 AS v FROM {parted}"
        " GROUP BY i, event"
    )
