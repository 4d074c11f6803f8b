"""The model card: what a bundle was trained on, what it does, and what its scores do not say.

A page of Markdown beside the models, for whoever has to decide whether to let them vote.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from models.segments import SEGMENT_ROWS_MIN, Segments
from models.voting import Voting

__all__ = ["card_text"]


def card_text(
    catalog_version: str,
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    voting: Voting,
    detectors: Mapping[str, tuple[str, ...]],
    weights: Mapping[str, Mapping[str, float]],
    segments: Mapping[str, Segments | None],
    made_by: str,
) -> str:
    """The card of a bundle, in Markdown.

    Parameters
    ----------
    catalog_version : of the features
    training, metrics, voting : of the bundle
    detectors : event type -> names
    weights : event type -> detector -> weight of its surprise in the vote
    segments : event type -> its scales by segment, None where it has none
    made_by : version of waxwing that trained it; empty where it is not known
    """
    by = f" by waxwing {made_by}" if made_by else ""
    parts = [
        "# Model card\n",
        f"Trained{by} on features of catalogue {catalog_version},"
        f" seed {training.get('seed', '-')}.\n",
        "## Trained on\n",
        *_sets(training.get("sets", {}), detectors),
        "## On rows held out\n",
        *_figures(metrics.get("detectors", {})),
        "## Thresholds\n",
        *_thresholds(voting, metrics.get("asked", {})),
        "## Weights in the vote\n",
        *_weights(weights),
        "## Scales\n",
        *_scales(segments),
        "## What it does not say\n",
        "A score of 0.999 means that one genuine event in a thousand of the history above looked"
        " this strange. Traffic that has changed since has other shares (`waxwing evaluate` tells"
        " them), and attacks that no row above holds may look usual.\n",
    ]
    return "\n".join(parts)


def _sets(
    sets: Mapping[str, Mapping[str, Any]], detectors: Mapping[str, tuple[str, ...]]
) -> Iterator[str]:
    """A table of the rows of each event type."""
    yield "| events | rows | known anomalies | from | until | detectors |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, about in sets.items():
        odd = f"{about['attack_rows']:,}" if about["labelled"] else "not labelled"
        span = " | ".join(_moment(about[key]) for key in ("from_us", "until_us"))
        said = ", ".join(detectors.get(name, ()))
        yield f"| {name} | {about['rows']:,} | {odd} | {span} | {said} |"
    yield ""


def _moment(time_us: int) -> str:
    """A time to the minute."""
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")


def _figures(found: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """A table of recall, precision and false positives."""
    yield "| detector | recall | precision | false positives |"
    yield "| --- | --- | --- | --- |"
    for name, one in found.items():
        told = " | ".join(_share(one[key], n) for key, n in _PLACES.items())
        yield f"| {name} | {told} |"
    yield ""


_PLACES = {"recall": 1, "precision": 1, "fpr": 3}
"""Figure -> digits after the point, in per cent."""


def _share(value: float, places: int) -> str:
    """A share in per cent."""
    return "-" if math.isnan(value) else f"{100 * value:.{places}f} %"


def _thresholds(voting: Voting, asked: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line for each rule: as fitted, since voting.toml may have been edited."""
    for rule in voting.anomaly_types.values():
        share = asked.get(rule.event_type, {}).get("share")
        told = "" if share is None else f" (fitted to {100 * share:.3g} % of false alarms)"
        yield (
            f"- {rule.name}: the vote from {rule.ensemble:.6g} on{told}, {rule.votes_needed} of"
            f" {len(rule.thresholds)} detectors"
        )
    yield ""


def _weights(weights: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """A line for each event type: as trained, since voting.toml may have been edited."""
    for name, mine in weights.items():
        yield f"- {name}: {', '.join(f'{one} {weight:.3g}' for one, weight in mine.items())}"
    yield ""


def _scales(segments: Mapping[str, Segments | None]) -> Iterator[str]:
    """A line for each segment; those with too few rows have the scale of the whole."""
    for name, parts in segments.items():
        if parts is None:
            yield f"- {name}: one scale for all of it"
            continue
        for code, (scales, rows) in enumerate(zip(parts.scales, parts.rows, strict=True)):
            what = f"- {name}, {parts.cut.named(code)}: {rows:,} genuine rows, "
            if scales:
                yield what + f"a scale of its own for {', '.join(scales)}"
            else:
                yield what + f"the scale of the whole (fewer than {SEGMENT_ROWS_MIN:,})"
    yield ""
