"""Against its own past: values of metric series and durations of log messages."""

from __future__ import annotations

from features.spec import Feature

__all__ = ["FEATURES"]


def _series(
    name: str,
    op: str,
    why: str,
    unit: str,
    *,
    column: str = "log_value",
    window_s: int | None = None,
    baseline: str | None = None,
    high_is_odd: bool | None = None,
) -> Feature:
    return Feature(
        f"series_{name}",
        "metric",
        "series",
        op,
        why,
        unit,
        "baseline",
        column=column,
        window_s=window_s,
        baseline=baseline,
        high_is_odd=high_is_odd,
    )


def _stream(name: str, op: str, why: str, unit: str, high_is_odd: bool | None = True) -> Feature:
    return Feature(
        f"log_stream_{name}",
        "app_log",
        "log_stream",
        op,
        why,
        unit,
        "baseline",
        column="log_duration",
        high_is_odd=high_is_odd,
    )


_METRIC = (
    _series(
        "mean_1h",
        "mean",
        "{value} is the mean of the last hour",
        "1",
        column="value",
        window_s=3600,
    ),
    _series(
        "std_1h",
        "std",
        "the values of the last hour differ by {value}",
        "1",
        column="value",
        window_s=3600,
    ),
    _series(
        "max_1h",
        "max",
        "{value} is the largest of the last hour",
        "1",
        column="value",
        window_s=3600,
    ),
    _series(
        "min_1h",
        "min",
        "{value} is the smallest of the last hour",
        "1",
        column="value",
        window_s=3600,
    ),
    _series("median", "median_size", "{value} is the median of the last 32 values", "1"),
    _series("last", "last", "{value} was the previous value", "1", column="value"),
    _series(
        "value_z",
        "z",
        "the value is {value} from the usual one (median {baseline})",
        "sigma",
        baseline="series_median",
    ),
    _series(
        "robust_z",
        "robust_z",
        "the value is {value} (by quartiles) from the median {baseline}",
        "sigma",
        baseline="series_median",
    ),
    _series(
        "mad_z",
        "mad_z",
        "the value is {value} (by median deviations) from the median {baseline}",
        "sigma",
        baseline="series_median",
    ),
    _series(
        "iqr_distance",
        "iqr_distance",
        "the value is {value} interquartile ranges outside the quartiles (median {baseline})",
        "1",
        baseline="series_median",
        high_is_odd=True,
    ),
    _series("quantile", "quantile", "a share of {value} of the last values were smaller", "1"),
    _series("drift", "drift", "the last values together are {value} from the usual one", "sigma"),
    _series(
        "step",
        "step",
        "the step from the previous value {baseline} is {value} usual steps",
        "1",
        baseline="series_last",
    ),
    _series(
        "flatness",
        "flatness",
        "the series moves {value} as much as it used to",
        "1",
        high_is_odd=False,
    ),
    _series(
        "run_length", "run_length", "the same value {value} times in a row", "1", high_is_odd=True
    ),
    _series(
        "creep",
        "creep",
        "the values of the last day are {value} from their level of weeks",
        "sigma",
    ),
    _series("anchor_z", "anchor_z", "the value is {value} from its level of weeks", "sigma"),
    _series(
        "anchor_recent_z",
        "recent",
        "the last values were on average {value} from their level of weeks",
        "sigma",
        column="series_anchor_z",
    ),
    _series(
        "trend",
        "trend",
        "the series moves by {value} an hour",
        "sigma",
    ),
    _series(
        "week_z",
        "week_z",
        "the value is {value} from what is usual at this hour of such a day of the week",
        "sigma",
    ),
    Feature(
        "series_shrunk_z",
        "metric",
        "series",
        "shrunk_z",
        "the value is {value} from the usual one, or from the other hosts of the service while the"
        " series is new",
        "sigma",
        "baseline",
        column="series_value_z",
        other="pool_peer_z",
        count="series_ever",
        high_is_odd=None,
    ),
    Feature(
        "series_season_z",
        "metric",
        "series",
        "season_z",
        "the value is {value} from what is usual at this hour",
        "sigma",
        "baseline",
        column="log_value",
        high_is_odd=None,
    ),
)

_APP_LOG = (
    _stream(
        "duration_z", "z", "the duration is {value} from what this message usually reports", "sigma"
    ),
    _stream(
        "duration_robust_z",
        "robust_z",
        "the duration is {value} (by quartiles) from this message's median",
        "sigma",
    ),
    _stream(
        "duration_iqr_distance",
        "iqr_distance",
        "the duration is {value} interquartile ranges outside this message's quartiles",
        "1",
    ),
    _stream(
        "duration_drift",
        "drift",
        "the last durations of this message are {value} above its usual ones",
        "sigma",
    ),
    _stream(
        "duration_creep",
        "creep",
        "the durations of the last day of this message are {value} from their level of weeks",
        "sigma",
    ),
    Feature(
        "service_week_z",
        "app_log",
        "service",
        "week_z",
        "the number of lines in 5 min is {value} from what is usual at this hour of such a day of"
        " the week",
        "sigma",
        "baseline",
        column="service_count_5m",
        high_is_odd=None,
    ),
    Feature(
        "service_season_z",
        "app_log",
        "service",
        "season_z",
        "the number of lines in 5 min is {value} from what is usual at this hour",
        "sigma",
        "baseline",
        column="service_count_5m",
        high_is_odd=None,
    ),
    Feature(
        "service_error_share_z",
        "app_log",
        "service",
        "z",
        "the share of errors in 1 h is {value} from what is usual for this service",
        "sigma",
        "baseline",
        column="service_error_share_1h",
    ),
)

FEATURES: tuple[Feature, ...] = (*_METRIC, *_APP_LOG)
