"""Series of one host that usually move together: a broken bond is strange though each is usual."""

from __future__ import annotations

from features.spec import Feature

__all__ = ["FEATURES"]


def _bond(name: str, op: str, why: str, unit: str, baseline: str | None = None) -> Feature:
    """Of a series and its closest partner on the host."""
    return Feature(
        f"host_{name}",
        "metric",
        "host",
        op,
        why,
        unit,
        "cross_entity",
        column="log_value",
        other="metric",
        window_s=600,
        baseline=baseline,
        high_is_odd=None,
    )


FEATURES = (
    _bond(
        "correlation",
        "correlation",
        "correlation with its closest metric on this host is {value}; usual {baseline}",
        "1",
        "host_correlation_usual",
    ),
    _bond(
        "correlation_usual",
        "correlation_usual",
        "usual correlation with its closest metric on this host is {value}",
        "1",
    ),
    _bond(
        "correlation_z",
        "correlation_z",
        "correlation with its closest metric on this host is {value} from the usual",
        "sigma",
    ),
)
