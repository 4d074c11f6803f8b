"""Who does not speak: how long against its own rhythm, and whether its peers are silent as well."""

from __future__ import annotations

from features.spec import Feature

__all__ = ["FEATURES"]


def _of(
    name: str,
    why: str,
    unit: str = "1",
    *,
    baseline: str | None = None,
    high_is_odd: bool | None = True,
) -> Feature:
    """A number that the absence carries."""
    return Feature(
        name,
        "absence",
        "",
        "value",
        why,
        unit,
        "silence",
        column=name,
        baseline=baseline,
        high_is_odd=high_is_odd,
    )


FEATURES: tuple[Feature, ...] = (
    _of("gap_s", "silent for {value}; it usually speaks every {baseline}", "s",
        baseline="usual_gap_s"),
    _of("usual_gap_s", "it usually speaks every {value}", "s", high_is_odd=None),
    _of("allowed_s", "at this hour it was allowed to be silent for {value}", "s",
        high_is_odd=None),
    _of("usual_gaps", "silent for {value} of its usual gaps of {baseline}",
        baseline="usual_gap_s"),
    _of("hour_gaps", "silent for {value} of its usual gaps at this hour"),
    _of("missed", "overdue for the {value}. time in this silence"),
    _of("leeway", "it is usually silent for up to {value} of its usual gaps", high_is_odd=False),
    _of("irregularity", "its gaps differ by a factor of e to the {value}", high_is_odd=False),
    _of("silences_a_day", "it has fallen silent {value} times a day so far", high_is_odd=False),
    _of("known_days", "known for {value} days", "d", high_is_odd=None),
    _of("holder_silent_share", "a share of {value} of those beside it are silent too"),
    _of("pool_silent_share", "a share of {value} of its peers elsewhere are silent too"),
    _of("of_host", "it is a host", "flag", high_is_odd=None),
    _of("of_service", "it is a service", "flag", high_is_odd=None),
)  # fmt: skip
