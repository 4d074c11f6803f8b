"""Why an event was flagged: its strangest features in plain words, each with what is usual.

How strange a value is, is judged by where it lies among the genuine training rows, on the side that
its declaration calls odd. Of features that say the same thing only the strangest is told.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from features.batch import FeatureMatrix, Float64
from features.catalog import Catalog
from features.spec import Feature
from models.bundle import Bundle

__all__ = ["REASONS_MAX", "every_feature", "number_text", "reasons", "usual_values"]

REASONS_MAX = 3
"""Reasons an alert gives. Chosen: what a person takes in at once."""

_BODY = np.linspace(0.05, 0.95, 19)
_EDGE = np.array([1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02])
PROBABILITIES = np.concatenate(([0.0], _EDGE, _BODY, 1.0 - _EDGE[::-1], [1.0]))
"""Quantiles kept of each feature. Chosen: close at both ends, where what is told as a reason
lies."""

_MEDIAN = int(np.argmin(np.abs(PROBABILITIES - 0.5)))

ODD_SHARE_MAX = 0.1
"""A value that more than a tenth of genuine rows share is no reason. Chosen."""

SIGMA_MIN = 2.0
"""A deviation below it is no reason, however rare it was in training: nobody is convinced by 0.08
sigma. Chosen: beyond it lies one value in twenty of a normal law."""

BEYOND_DECADES = 1.0
"""What a value beyond all genuine ones gains for each e-fold of distance. Chosen: it orders them
and lets a moderately rare value of one feature never pass a far one of another."""

NEVER = 2
"""Side of a feature that is never a reason; the others are 1 high, -1 low, 0 either."""

Told = tuple[str, str, float, float | None, str]
"""Feature, sentence, value, usual value, unit."""


def usual_values(values: Float64) -> Float64:
    """Quantiles of each feature on genuine rows.

    Parameters
    ----------
    values : float64 (n, F); NaN where a value is not known

    Returns
    -------
    float64 (F, Q), ascending along Q; NaN for a feature that no row knows
    """
    out = np.full((values.shape[1], len(PROBABILITIES)), np.nan)
    for i in range(values.shape[1]):
        known = values[:, i]
        known = known[np.isfinite(known)]
        if len(known):
            out[i] = np.quantile(known, PROBABILITIES, method="inverted_cdf")
    return out


def reasons(catalog: Catalog, bundle: Bundle, features: FeatureMatrix, row: int) -> list[Told]:
    """The strongest reasons why a row is strange, the strongest first.

    Parameters
    ----------
    catalog : declarations, with the sentences
    bundle : holds what is usual
    features : of the batch
    row : which of its rows

    Returns
    -------
    at most REASONS_MAX of (feature, sentence, value, usual value or None, unit)
    """
    models = bundle.models.get(features.event_type)
    if models is None:
        return []
    plan = _plan(catalog, features.event_type)
    value = features.values[row]
    oddness = _oddness(value, models.usual, plan.side)
    # The event itself is one; that alone is not many.
    oddness[plan.counts & (value[plan.told] <= 1.0)] = 0.0
    oddness[plan.sigma & (np.abs(value) < SIGMA_MIN)] = 0.0
    told: list[Told] = []
    families: set[str] = set()
    for i in np.argsort(-oddness, kind="stable").tolist():
        if len(told) == REASONS_MAX or oddness[i] < -math.log10(ODD_SHARE_MAX):
            break
        if plan.family[i] in families:
            continue
        reason, says = _tell(plan, plan.told[i], value, models.usual)
        if says:
            families.add(plan.family[i])
            told.append(reason)
    return told


def every_feature(
    catalog: Catalog, bundle: Bundle, features: FeatureMatrix, row: int
) -> list[tuple[Told, float]]:
    """All features of a row in words, the oddest first, each with how odd it is.

    Parameters
    ----------
    catalog, bundle, features, row : see `reasons`

    Returns
    -------
    (what `reasons` tells of it, -log10 of the share of genuine rows at least as odd); a value that
    is not known is told as NaN, oddness 0
    """
    models = bundle.models.get(features.event_type)
    if models is None:
        return []
    plan = _plan(catalog, features.event_type)
    value = features.values[row]
    oddness = _oddness(value, models.usual, plan.side)
    order = np.argsort(-oddness, kind="stable").tolist()
    return [(_told_or_unknown(plan, i, value, models.usual), float(oddness[i])) for i in order]


def _told_or_unknown(plan: _Plan, i: int, value: Float64, usual: Float64) -> Told:
    """One feature in words; a value that is not known has none."""
    if math.isnan(value[i]):
        return plan.features[i].name, "not known", math.nan, None, plan.features[i].unit
    return _tell(plan, i, value, usual)[0]


class _Plan:
    """What is known of the features of an event type before any row comes."""

    def __init__(self, catalog: Catalog, event_type: str) -> None:
        self.features = catalog.features(event_type)
        names = [f.name for f in self.features]
        self.side = np.array(
            [0 if f.high_is_odd is None else 1 if f.high_is_odd else -1 for f in self.features]
        )
        self.baseline = [names.index(f.baseline) if f.baseline else -1 for f in self.features]
        # What is itself somebody's baseline, the clock, logarithms, and habits of the silent
        # explain nothing to a person.
        context = {b for b in self.baseline if b >= 0} | {
            i
            for i, f in enumerate(self.features)
            if f.unit == "h"
            or (f.op == "value" and (f.column or "").startswith("log_"))
            or (f.group == "silence" and f.high_is_odd is None)
        }
        self.side[sorted(context)] = NEVER
        # How surprising a count is, is told as the count beside the usual one.
        self.told = [
            names.index(f.column) if f.op == "surprise" and f.column in names else i
            for i, f in enumerate(self.features)
        ]
        self.family = [_family(self.features[i]) for i in self.told]
        self.sigma = np.array([f.unit == "sigma" for f in self.features])
        self.counts = np.array([self.features[i].op in ("count", "distinct") for i in self.told])


@lru_cache(maxsize=32)
def _plan(catalog: Catalog, event_type: str) -> _Plan:
    """The plan of an event type, made once."""
    return _Plan(catalog, event_type)


_SOURCES = ("device", "ip")
_MACHINES = ("service", "host", "log_stream")


def _family(feature: Feature) -> str:
    """Features of one family say the same thing: other windows, other yardsticks, other holders."""
    entity, op, other = feature.entity, feature.op, feature.other or ""
    if "duration" in feature.name:
        return "duration"
    if feature.group == "risk":
        return f"known frauds of {entity}"
    if feature.group == "geo":
        # A card and its holder are at the same place.
        return "country" if other else "place"
    if other == "template" or (entity == "log_stream" and op in ("ever", "age")):
        return "template"
    if entity in _SOURCES or other in _SOURCES:
        # A device and its address are one source: new, or used by or for many.
        new = op in ("first_time", "age", "ever", "since")
        return "new source" if new else f"source {feature.where or 'busy'}"
    if feature.where and entity in _MACHINES:
        return "errors"
    if feature.group == "silence":
        # How long, in which measure ever; whether others are silent; each habit for itself.
        if feature.name in ("gap_s", "usual_gaps", "hour_gaps", "missed"):
            return "silent for"
        return "silent peers" if feature.name.endswith("_silent_share") else feature.name
    if entity in ("pool", "host") and feature.group == "cross_entity":
        return f"peers of {entity}"
    return f"{feature.group} {entity} {feature.where or other or ''}"


def _oddness(value: Float64, usual: Float64, side: npt.NDArray[np.int64]) -> Float64:
    """float64 (F,), -log10 of the share of genuine rows at least as odd, more beyond all of
    them."""
    q = usual.shape[1]
    at_most = (usual <= value[:, None]).sum(axis=1)
    below = (usual < value[:, None]).sum(axis=1)
    share_above = 1.0 - PROBABILITIES[np.minimum(np.maximum(below - 1, 0), q - 1)]
    share_below = PROBABILITIES[np.minimum(at_most, q - 1)]
    floor = PROBABILITIES[1] / 3.0
    high = -np.log10(np.maximum(share_above, floor))
    low = -np.log10(np.maximum(share_below, floor))
    middle = usual[:, _MEDIAN]
    with np.errstate(invalid="ignore", divide="ignore"):
        high += _beyond(value - usual[:, -1], usual[:, -1] - middle)
        low += _beyond(usual[:, 0] - value, middle - usual[:, 0])
    both = np.maximum(high, low) - math.log10(2.0)
    found = np.where(side == 1, high, np.where(side == -1, low, np.where(side == 0, both, 0.0)))
    found[np.isnan(value) | np.isnan(middle)] = 0.0
    return found


def _beyond(distance: Float64, spread: Float64) -> Float64:
    """What a value beyond all genuine ones gains by its distance, 0 where it is not beyond."""
    far = np.maximum(distance, 0.0) / np.where(spread > 0.0, spread, 1.0)
    gained: Float64 = BEYOND_DECADES * np.log1p(np.minimum(far, 1e6))
    return gained


def _tell(plan: _Plan, i: int, value: Float64, usual: Float64) -> tuple[Told, bool]:
    """One reason in words, and whether it says anything: that a value reads as the usual one does
    not."""
    feature = plan.features[i]
    number, unit = float(value[i]), feature.unit
    why = feature.why
    if why.startswith("a share of {value}"):
        why, unit = why.removeprefix("a share of "), "%"
    if unit == "sigma":
        why = _with_direction(why, number < 0)
        number = abs(number)
    words = {"value": number_text(number, unit)}
    baseline: float | None = None
    if plan.baseline[i] >= 0:
        baseline = float(value[plan.baseline[i]])
        known_as = plan.features[plan.baseline[i]].unit
        words["baseline"] = "unknown" if math.isnan(baseline) else number_text(baseline, known_as)
    text = why.format(**words)
    if baseline is None and unit not in ("flag", "sigma") and not math.isnan(usual[i, _MEDIAN]):
        baseline = float(usual[i, _MEDIAN])
        text += f"; usual {number_text(baseline, unit)}"
    known = None if baseline is None or math.isnan(baseline) else baseline
    says = known is None or unit == "sigma" or number_text(known, unit) != words["value"]
    return (feature.name, text, float(value[i]), known, feature.unit), says


def _with_direction(why: str, below: bool) -> str:
    """A sentence on a deviation that says its direction in words, for a number without sign."""
    head, mark, tail = why.partition("{value}")
    if below:
        tail = tail.replace(" more than ", " less than ", 1)
    for word in (" from ", " above "):
        if word in tail:
            tail = tail.replace(word, " below " if below else " above ", 1)
            break
    return head + mark + tail


_SPANS = ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min"))


def number_text(value: float, unit: str) -> str:
    """A value as a person says it, with its unit where that helps.

    >>> number_text(7.0, "1"), number_text(0.2, "1"), number_text(11_250.0, "s")
    ('7', '0.2', '3.1 h')
    """
    if unit == "flag":
        return "yes" if value else "no"
    if unit == "%":
        return f"{_plain(100.0 * value)} %"
    if unit == "s":
        for length, name in _SPANS:
            if abs(value) >= 2 * length:
                return f"{_plain(value / length)} {name}"
    if unit == "h":
        return f"{int(value) % 24:02d}:{int(value * 60) % 60:02d}"
    if unit == "currency":
        return f"{value:,.2f}"
    # A sentence on days says the word itself.
    return _plain(value) + (f" {unit}" if unit not in ("1", "", "d") else "")


def _plain(value: float) -> str:
    """Two or three digits that matter, thousands parted, no needless zeros."""
    size = abs(value)
    if size >= 100 or value == round(value):
        return f"{value:,.0f}"
    if size >= 0.095:
        text = f"{value:.1f}" if size >= 0.95 else f"{value:.2f}"
        return text.rstrip("0").rstrip(".")
    return f"{value:.2g}" if size else "0"
