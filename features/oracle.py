"""What each feature means in SQL: the text of a query that another engine can be asked.

Pure text, nothing is run here. `waxwing features verify` gives the queries to DuckDB and holds its
answers against what the kernels computed: two programs by different people, told the same sentence.

The events lie in one table, `events`: the declared fields of all event types, `event` (the type),
`i` (number of the row among those of its type), `k` and `tie`. What was said of them later lies in
a second one, `verdicts`.

SQL's `RANGE` takes in every row of the same time, ours only those that came before in the
journal's order. So the windows are not ordered by time but by `k`, which is the time in
microseconds times `ties`, plus `tie`, the row's number among those of its time: unique, and a
`RANGE` over it says exactly `(t - w, t]` up to and including the row itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from features.baselines import FLOOR, FLOOR_SHARE, HISTORY, KNOWN_FROM, MAD_SIGMA
from features.catalog import inputs_of
from features.categories import CATEGORIES
from features.columns import flag_names, made_by_user, real_names
from features.derivation import operands
from features.events import event_type
from features.geo import EARTH_KM, GAP_S_MIN
from features.operations import HISTORY_FROM, OPERATIONS, PRIOR_AGE_S, PRIOR_EVENTS
from features.oracle_risk import risk_values
from features.plan import PAIR_TTL_S
from features.rates import RATE_TAU_S, YOUNG_S
from features.risk import DAY_US
from features.spec import Feature

__all__ = ["Question", "answer_table", "made_column", "question", "why_not"]

SQL_COLUMNS: Mapping[str, str] = {
    "hour": "(time_us % 86400000000) / 3.6e9",
    "weekend": "extract(isodow FROM make_timestamp(time_us)) >= 6",
    "log_amount": "ln(1 + amount)",
    "small": "amount < 3",
    "round": "amount >= 50 AND amount % 10 = 0",
    "online": "channel = 'online'",
    "remote": "channel IN ('online', 'transfer')",
    "cash": "channel = 'atm'",
    "place_unknown": "latitude IS NULL",
    "failed": "NOT success",
    "password": "method = 'password'",
    "token": "method = 'token'",
    "device_unknown": "coalesce(device_id, '') = ''",
    "log_value": "sign(value) * ln(1 + abs(value))",
    "log_duration": "ln(1 + duration_ms)",
    "error": "level IN ('error', 'fatal')",
    "fatal": "level = 'fatal'",
    "warning": "level IN ('warning', 'error', 'fatal')",
    "server_error": "status >= 500",
    "untimed": "duration_ms IS NULL",
    "usual_gaps": "gap_s / greatest(usual_gap_s, 1)",
    "hour_gaps": "gap_s / CASE WHEN hour_gap_s < 1 THEN 1 ELSE hour_gap_s END",
    "leeway": "allowed_s / greatest(usual_gap_s, 1)",
    "known_days": "least(known_s / 86400, 7)",
    "silences_a_day": "silences / greatest(known_s / 86400, 1)",
    "of_host": "entity_type = 'host'",
    "of_service": "entity_type = 'service'",
}
"""Derived columns in SQL, written down from their `doc`, not from their code."""

EXACT = (
    "count", "share", "max", "min", "distinct", "distinct_share", "first_time", "since_pair",
    "distinct_ever", "since", "age", "ever", "since_place", "run_length", "risk_count",
    "risk_count_ever", "last_label", "since_fraud", "genuine_since_fraud",
)  # fmt: skip
"""Operations that count, choose or subtract times: every bit of the answer must be the same."""

NO_SQL: Mapping[str, str] = {
    "home_km": "the home is a running mean that takes in one place after another",
    "usual": "an exponentially weighted mean that holds outliers back, value by value",
    "season_usual": "an exponentially weighted mean by hour that holds outliers back",
    "anchor": "a level that holds values back by their own deviation, one after another",
    "week_usual": "a level by hour of the week that holds outliers back",
    "trend": "a line that holds outliers back, value by value",
    "peer_mean": "the members of an entity give way to each other, event by event",
}
"""Why an operation has no meaning in SQL; a family's first operation speaks for the family."""

_BEFORE = "PARTITION BY e ORDER BY k ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING"
_LAST = f"PARTITION BY e ORDER BY k ROWS BETWEEN {HISTORY} PRECEDING AND 1 PRECEDING"


@dataclass(frozen=True, slots=True)
class Question:
    """One feature as a query.

    Parameters
    ----------
    feature : its declaration
    sql : text of a SELECT that gives `i` (number of the row among its event type's), `v` (the
        feature, NULL where unknown) and `size`, the number against which a difference is relative:
        `v` itself, or the larger term where `v` is the difference of two others
    exact : whether the answers must be the same to the last bit
    """

    feature: Feature
    sql: str
    exact: bool


def answer_table(event: str, name: str) -> str:
    """Table in which the answer to a feature lies for the derived features that read it."""
    return f'"answer {event} {name}"'


def made_column(name: str, kind: str) -> str:
    """Column of `events` that holds what a user's function makes of each row, NULL where it is not
    known: nobody writes such a column down in SQL, so both sides have it from the function."""
    return f"made {kind} {name}"


def why_not(feature: Feature) -> str | None:
    """Why a feature has no meaning in SQL; None where it has one."""
    op = OPERATIONS[feature.op]
    own = feature.feeds in ((), (feature.event,))
    if op.name in NO_SQL:
        return NO_SQL[op.name]
    if op.family == "baseline" and op.code < HISTORY_FROM and op.name not in ("last", "run_length"):
        return NO_SQL["usual"]
    firsts = {"season": "season_usual", "anchor": "anchor", "week": "week_usual"}
    firsts |= {"trend": "trend", "members": "peer_mean"}
    if op.family in firsts:
        return NO_SQL[firsts[op.family]]
    name = inputs_of(feature.column or "")[0]
    if op.family == "baseline" and not (own and name in real_names(feature.event)):
        return "its values are another feature's, or of several event types"
    if op.family == "correlations":
        return "the correlation of two series is kept pair by pair, with a fading memory"
    if op.family == "categories" and not (own or feature.event in feature.feeds):
        return "its values are another event's"
    if op.family == "geo" and not (own or feature.event in feature.feeds):
        return "its place is another event's"
    if op.family == "derived":
        return None
    unsaid = [c for c in (name, feature.where) if c and _column(feature, c) is None]
    return f"the column `{unsaid[0]}` is not written down in SQL" if unsaid else None


def question(feature: Feature, ties: int) -> Question:
    """The query of a feature for which `why_not` gives None.

    Parameters
    ----------
    ties : what `k` multiplies the time by, more than the most rows of one time
    """
    op = OPERATIONS[feature.op]
    exact = op.name in EXACT or feature.column in flag_names(feature.event)
    if op.family == "derived":
        return Question(feature, _derived(feature), False)
    if op.family == "stateless":
        value = f"({_column(feature, str(feature.column))})"
        if feature.column in flag_names(feature.event):
            value = f"coalesce({value}, false)"
        sql = f"SELECT i, {value}::DOUBLE AS v, v AS size FROM events"
        return Question(feature, f"{sql} WHERE event = '{feature.event}'", exact)
    families = {
        "ring": _ring,
        "rate": _rate,
        "geo": _place,
        "baseline": _history,
        "categories": _entropy,
        "risk": _risk,
    }
    return Question(feature, families[op.family](feature, ties), exact)


def _column(feature: Feature, name: str) -> str | None:
    """A column as SQL; None where nobody wrote it down. Each row has that of its event type."""
    written = _written(feature, name)
    events = dict.fromkeys((feature.event, *feature.feeds))
    made = {event: made_by_user(event)[name] for event in events if name in made_by_user(event)}
    if not made:
        return written
    column = f'"{made_column(name, next(iter(made.values())).kind)}"'
    if written is None or len(made) == len(events):
        return column
    theirs = ", ".join(f"'{event}'" for event in made)
    return f"CASE WHEN event IN ({theirs}) THEN {column} ELSE {written} END"


def _written(feature: Feature, name: str) -> str | None:
    """A field, or one of our own derived columns, as SQL; None where nobody wrote it down."""
    fields = [f.name for f in event_type(feature.event).fields]
    for event in feature.feeds:
        fields += [f.name for f in event_type(event).fields]
    return SQL_COLUMNS.get(name) or (name if name in fields else None)


def _key(feature: Feature, name: str) -> str:
    """An entity or a string field as SQL, NULL where it is absent."""
    events = dict.fromkeys((feature.event, *feature.feeds))
    by_event = {e: _parts(event_type(e).entities.get(name, (name,))) for e in events}
    if len(set(by_event.values())) == 1:
        return by_event[feature.event]
    cases = " ".join(f"WHEN '{event}' THEN {key}" for event, key in by_event.items())
    return f"CASE event {cases} END"


def _parts(parts: tuple[str, ...]) -> str:
    """The parts of a key as one, NULL where any is absent."""
    if len(parts) == 1:
        return f"nullif({parts[0]}, '')"
    absent = " OR ".join(f"coalesce({p}, '') = ''" for p in parts)
    return f"CASE WHEN NOT ({absent}) THEN concat_ws(chr(31), {', '.join(parts)}) END"


def _rows(feature: Feature, *columns: str) -> str:
    """The rows of an entity: those that feed the feature (`fed`) and those that read it."""
    feeds = feature.feeds or (feature.event,)
    names = ", ".join(f"'{name}'" for name in dict.fromkeys((feature.event, *feeds)))
    fed = ", ".join(f"'{name}'" for name in feeds)
    picked = "".join(f", {c}" for c in columns)
    return (
        f"(SELECT *, {_key(feature, feature.entity)} AS e, event IN ({fed}) AS fed{picked}"
        f" FROM events WHERE event IN ({names}) AND e IS NOT NULL)"
    )


def _select(feature: Feature, value: str, rows: str, size: str = "v") -> str:
    """Values of the rows of the feature's own event type."""
    inner = f"SELECT i, event, ({value})::DOUBLE AS v FROM {rows}"
    return f"SELECT i, v, {size} AS size FROM ({inner}) WHERE event = '{feature.event}'"


def _enters(feature: Feature, value: str) -> str:
    """`value` where a row enters the state, else NULL."""
    where = "" if feature.where is None else f" AND ({_column(feature, feature.where)})"
    return f"CASE WHEN fed{where} THEN {value} END"


def _ring(feature: Feature, ties: int) -> str:
    """Windows of time, and pairs."""
    if feature.window_s is None:
        return _pair(feature, ties)
    # The first instant inside the window is one microsecond after t - w: so much before row's `k`.
    before = f"{(feature.window_s * 1_000_000 - 1) * ties} + tie"
    window = f"PARTITION BY e ORDER BY k RANGE BETWEEN {before} PRECEDING AND CURRENT ROW"
    entered = f"count({_enters(feature, '1')}) OVER ({window})"
    events = f"count(CASE WHEN fed THEN 1 END) OVER ({window})"
    column = _enters(feature, f"({_column(feature, feature.column or '')})")
    other = _key(feature, feature.other or feature.entity)
    distinct = f"count(DISTINCT CASE WHEN fed THEN {other} END) OVER ({window})"
    value = {
        "count": entered,
        "share": f"{entered} / nullif({events}, 0)",
        "sum": f"coalesce(sum({column}) OVER ({window}), 0)",
        "mean": f"avg({column}) OVER ({window})",
        "std": f"stddev_samp({column}) OVER ({window})",
        "max": f"max({column}) OVER ({window})",
        "min": f"min({column}) OVER ({window})",
        "distinct": distinct,
        "distinct_share": f"{distinct} / nullif({events}, 0)",
    }[feature.op]
    return _select(feature, value, _rows(feature))


def _pair(feature: Feature, ties: int) -> str:
    """An entity and another: when they met before, within the time a pair is known."""
    ttl_us = PAIR_TTL_S * 1_000_000
    rows = _rows(feature, f"{_key(feature, str(feature.other))} AS o")
    window = (
        "PARTITION BY e, o ORDER BY k"
        f" RANGE BETWEEN {ttl_us * ties} + tie PRECEDING AND 1 PRECEDING"
    )
    met = (
        f"(SELECT *, max(CASE WHEN fed THEN time_us END) OVER ({window}) AS met_us,"
        f" count(CASE WHEN fed THEN 1 END) OVER ({_BEFORE}) AS n FROM {rows})"
    )
    new = "fed AND o IS NOT NULL AND met_us IS NULL"
    value = {
        "first_time": "CASE WHEN o IS NULL THEN NULL WHEN met_us IS NOT NULL THEN 0"
        " WHEN n > 0 THEN 1 END",
        "since_pair": "CASE WHEN o IS NOT NULL THEN (time_us - met_us) / 1e6 END",
        "distinct_ever": f"count(CASE WHEN {new} THEN 1 END) OVER (PARTITION BY e ORDER BY k"
        " ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)",
    }[feature.op]
    return _select(feature, value, met)


def _rate(feature: Feature, ties: int) -> str:
    """What came before, ever. The decayed count is one sum of exponentials, not a recursion."""
    first_us = f"min({_enters(feature, 'time_us')}) OVER ({_BEFORE})"
    last_us = f"max({_enters(feature, 'time_us')}) OVER ({_BEFORE})"
    tau_us, young_us = RATE_TAU_S * 1e6, YOUNG_S * 1e6
    start = "(SELECT min(time_us) FROM events)"
    grown = _enters(feature, f"exp((time_us - {start}) / {tau_us})")
    decayed = f"sum({grown}) OVER ({_BEFORE}) * exp(({start} - time_us) / {tau_us})"
    age_us = f"greatest(time_us - {first_us}, {young_us})"
    window_us = (feature.window_s or 0) * 1e6
    value = {
        "usual_count": f"coalesce({decayed} / ({tau_us} * (1 - exp(-{age_us} / {tau_us})))"
        f" * {window_us}, 0)",
        "since": f"(time_us - {last_us}) / 1e6",
        "age": f"coalesce((time_us - {first_us}) / 1e6, 0)",
        "ever": f"count({_enters(feature, '1')}) OVER ({_BEFORE})",
    }[feature.op]
    return _select(feature, value, _rows(feature))


def _place(feature: Feature, ties: int) -> str:
    """From the previous place, by the haversine formula (the kernel measures chords)."""
    rows = _rows(feature, "radians(latitude) AS y", "radians(longitude) AS x")
    window = "OVER (PARTITION BY e ORDER BY k)"
    pairs = (
        f"(SELECT *, lag(y) {window} AS y0, lag(x) {window} AS x0, lag(time_us) {window} AS t0"
        f" FROM {rows} WHERE y IS NOT NULL AND x IS NOT NULL)"
    )
    half = "sin((y - y0) / 2) ** 2 + cos(y) * cos(y0) * sin((x - x0) / 2) ** 2"
    # Of a NULL and 1 the least is 1 in DuckDB.
    km = f"CASE WHEN y0 IS NOT NULL THEN {2 * EARTH_KM} * asin(least(sqrt({half}), 1)) END"
    gap_s = "(time_us - t0) / 1e6"
    value = {
        "moved_km": km,
        "speed_kmh": f"{km} * 3600 / greatest({gap_s}, {GAP_S_MIN})",
        "since_place": gap_s,
    }[feature.op]
    return _select(feature, value, pairs)


def _history(feature: Feature, ties: int) -> str:
    """The last values, in order."""
    name, log = inputs_of(str(feature.column))
    column = f"({_column(feature, name)})"
    x = f"sign{column} * ln(1 + abs{column})" if log else column
    rows = _rows(feature, f"{x} AS x")
    # The quartiles of the last values, and how many they are; a row without a value is no value.
    if feature.op == "run_length":
        return _select(feature, *_run_length(rows))
    known = (
        f"(SELECT *, count(x) OVER ({_LAST}) AS n, list(x) OVER ({_LAST}) AS l, lag(x) OVER"
        f" (PARTITION BY e ORDER BY k) AS x0, quantile_cont(x, [0.25, 0.5, 0.75]) OVER ({_LAST})"
        f" AS q, mad(x) OVER ({_LAST}) AS m FROM {rows} WHERE x IS NOT NULL)"
    )
    floor = f"{FLOOR_SHARE} * abs(q[2]) + {FLOOR}"
    spread = f"(q[3] - q[1] + {floor})"
    # Wallace (1959), see `features.baselines.as_sigma`; ln(1 + y) = 2 atanh(y / (2 + y)).
    robust = f"({MAD_SIGMA} * m + {floor})" if feature.op == "mad_z" else f"({spread} / 1.349)"
    t = f"((x - q[2]) / {robust})"
    log1p = f"2 * atanh({t} ** 2 / (n - 1) / (2 + {t} ** 2 / (n - 1)))"
    size = f"(8 * (n - 1) + 1) / (8 * (n - 1) + 3) * sqrt((n - 1) * {log1p})"
    value = {
        "last": "x0",
        "median": "q[2]",
        "median_size": "sign(q[2]) * (exp(abs(q[2])) - 1)",
        "iqr": "q[3] - q[1]",
        "robust_z": f"sign({t}) * {size}",
        "mad_z": f"sign({t}) * {size}",
        "iqr_distance": f"greatest(q[1] - x, x - q[3], 0) / {spread}",
        "quantile": "(len(list_filter(l, lambda y: y < x)) +"
        " 0.5 * len(list_filter(l, lambda y: y = x))) / n",
    }[feature.op]
    if feature.op != "last":
        value = f"CASE WHEN n >= {KNOWN_FROM:g} THEN {value} END"
    return _select(feature, value, known)


def _run_length(rows: str) -> tuple[str, str]:
    """Gaps and islands: a value that differs from the one before begins a run."""
    order = "PARTITION BY e ORDER BY k"
    begins = (
        f"(SELECT *, x IS DISTINCT FROM lag(x) OVER ({order}) AS b FROM {rows} WHERE x IS NOT NULL)"
    )
    runs = f"(SELECT *, sum(b::INT) OVER ({order}) AS run FROM {begins})"
    return "row_number() OVER (PARTITION BY e, run ORDER BY k)", runs


def _risk(feature: Feature, ties: int) -> str:
    """What late verdicts say of the entity, see `features.oracle_risk`."""
    fed = ", ".join(f"'{name}'" for name in feature.feeds or (feature.event,))
    day = f"time_us // {DAY_US} AS day"
    said = (
        f"(SELECT {_key(feature, feature.entity)} AS e, {day}, time_us, heard_us, fraud"
        f" FROM verdicts WHERE event IN ({fed}) AND e IS NOT NULL)"
    )
    inner = risk_values(feature, _rows(feature, day), said)
    return f"SELECT i, v::DOUBLE AS v, v AS size FROM ({inner}) WHERE event = '{feature.event}'"


def _entropy(feature: Feature, ties: int) -> str:
    """Of the last events that have the value."""
    window = f"PARTITION BY e ORDER BY k ROWS BETWEEN {CATEGORIES - 1} PRECEDING AND CURRENT ROW"
    rows = f"(SELECT * FROM {_rows(feature, f'{_key(feature, str(feature.other))} AS o')})"
    return _select(feature, f"entropy(o) OVER ({window})", f"{rows} WHERE o IS NOT NULL")


def _derived(feature: Feature) -> str:
    """Of the answers to two other features of the same row."""
    left, right, *counts = (answer_table(feature.event, name) for name in operands(feature))
    counted = feature.op == "shrunk_count"
    prior = PRIOR_AGE_S if counted else PRIOR_EVENTS
    gone = "WHEN c.v IS NULL THEN NULL" if counted else ""
    peers = "nullif(r.v, 0)" if counted else "r.v"  # A peer that is itself new is none.
    shrunk = (
        f"CASE {gone} WHEN l.v IS NULL OR coalesce(c.v, 0) = 0 THEN {peers}"
        f" WHEN {peers} IS NULL THEN l.v"
        f" ELSE (c.v * l.v + {prior} * r.v) / (c.v + {prior}) END",
        "greatest(abs(l.v), abs(r.v))",
    )
    value, size = {
        "ratio": ("l.v / nullif(r.v, 0)", "l.v / nullif(r.v, 0)"),
        "difference": ("l.v - r.v", "greatest(abs(l.v), abs(r.v))"),
        "surprise": (
            "sqrt(l.v) + sqrt(l.v + 1) - sqrt(4 * r.v + 1)",
            "sqrt(l.v) + sqrt(l.v + 1)",
        ),
        "shrunk_z": shrunk,
        "shrunk_count": shrunk,
    }[feature.op]
    joined = "".join(f" JOIN {count} c USING (i)" for count in counts)
    return f"SELECT i, {value} AS v, {size} AS size FROM {left} l JOIN {right} r USING (i){joined}"
