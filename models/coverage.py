"""Whether scores keep their word: is the share of genuine events that was asked for the one got?

A score of 0.997 says that 0.3 % of the genuine events look so strange, and a threshold is fitted to
a share of false alarms. Both are counted again here, on events that nothing was fitted on. Events
of an entity are alike and days differ, so the interval comes from drawing both anew; the rows that
a scale or a threshold was made from were a draw too, and what they could not tell is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.batch import Float64, Int64
from features.keys import UInt64

__all__ = ["DRAWS", "INTERVAL", "SHARES", "block_weights", "coverage_of", "reached", "share_error"]

SHARES = (0.001, 0.003, 0.01)
"""Shares of genuine events at which scores are held to their word. Chosen: 0.3 % is the project's
goal, a third and three times of it are beside it."""

DRAWS = 200
"""Bootstrap draws. Chosen: the ends of a 95 % interval are its fifth and 195th."""

INTERVAL = (0.025, 0.975)
"""Ends of the intervals."""

ROUNDING = 1e-9
"""Surprise that going from score to surprise and back may lose; far less than a row."""

DAY_US = 86_400_000_000

Bools = npt.NDArray[np.bool_]


def block_weights(
    entity: UInt64, time_us: Int64, rng: np.random.Generator, draws: int = DRAWS
) -> Iterator[Float64]:
    """How often each row counts, for each draw: float64 (n,).

    Parameters
    ----------
    entity : uint64 (n,)
    time_us : int64 (n,)
    rng : of the draws

    Source: the pigeonhole bootstrap, Owen, Annals of Applied Statistics 1 (2007): rows and columns
    of a table (here entities and days) are drawn apart, and a row counts by both its draws. It
    tends to intervals that are too wide, never too narrow; a single day is not drawn.
    """
    groups = np.unique(entity, return_inverse=True)[1]
    day = np.unique(time_us // DAY_US, return_inverse=True)[1]
    for _ in range(draws):
        weight = _counts(rng, groups)
        yield weight * _counts(rng, day) if day.max(initial=0) > 0 else weight


def _counts(rng: np.random.Generator, member: npt.NDArray[np.intp]) -> Float64:
    """float64 (n,), how often each row's group is drawn when as many are drawn as there are."""
    groups = int(member.max(initial=-1)) + 1
    drawn = np.bincount(rng.integers(0, max(groups, 1), groups), minlength=groups)
    counts: Float64 = drawn[member].astype(np.float64)
    return counts


def reached(surprise: Float64) -> Bools:
    """bool (n, len(SHARES)), which surprises say that no more than each share is so strange."""
    limits = -np.log10(np.array(SHARES)) - ROUNDING
    with np.errstate(invalid="ignore"):
        found: Bools = surprise[:, None] >= limits[None, :]
    return found


def share_error(
    hits: Bools, entity: UInt64, time_us: Int64, rng: np.random.Generator
) -> list[float]:
    """How far shares may be off that were counted on some genuine rows: standard errors, (K,).

    Parameters
    ----------
    hits : bool (n, K), the rows that each share counts
    entity, time_us : (n,)
    """
    if not len(hits):
        return [0.0] * hits.shape[1]
    return [float(x) for x in _drawn(hits, np.ones(len(hits)), entity, time_us, rng).std(axis=0)]


def _drawn(
    hits: Bools, weight: Float64, entity: UInt64, time_us: Int64, rng: np.random.Generator
) -> Float64:
    """float64 (DRAWS, K), the shares in each draw."""
    some = np.flatnonzero(hits.any(axis=1))
    few = hits[some].astype(np.float64)
    found = np.zeros((DRAWS, hits.shape[1]))
    for draw, counts in enumerate(block_weights(entity, time_us, rng)):
        times = weight * counts
        found[draw] = times[some] @ few / max(float(times.sum()), 1e-300)
    return found


def coverage_of(
    event_type: npt.NDArray[np.int16],
    surprise: Mapping[str, Float64],
    flagged: Bools,
    entity: UInt64,
    time_us: Int64,
    weight: Float64,
    types: Mapping[int, str],
    asked: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Asked and got of genuine events, in the keys of docs/json.md; empty without any.

    Parameters
    ----------
    event_type : int16 (n,), its code, of genuine events that nothing was fitted on
    surprise : detector, or the ensemble -> float64 (n,); NaN where it did not look
    flagged : bool (n,), by the rules
    entity, time_us : (n,)
    weight : float64 (n,), how many events each stands for
    types : code -> name of the event type
    asked : what training left of each event type: `share` its thresholds were fitted to, `error`
        of that share on the rows they were fitted on, `scores`: name -> errors at SHARES; an event
        type that is not there has scores without errors, and no share
    seed : of the draws
    """
    if not len(event_type):
        return {}
    rng = np.random.default_rng(seed)
    names = list(surprise)
    hits = np.column_stack([flagged, *(reached(surprise[name]) for name in names)])
    parts = {name: np.flatnonzero(event_type == code) for code, name in types.items()}
    parts = {name: at for name, at in parts.items() if len(at)}
    told = {
        name: _told(hits[at], weight[at], entity[at], time_us[at], names, asked.get(name, {}), rng)
        for name, at in parts.items()
    }
    of = {name: float(weight[at].sum()) for name, at in parts.items()}
    whole = _told(hits, weight, entity, time_us, names, _mixed(asked, of), rng)
    return {
        "entities": len(np.unique(entity)),
        "days": len(np.unique(time_us // DAY_US)),
        "draws": DRAWS,
        **whole,
        "by_event_type": told,
    }


def _mixed(asked: Mapping[str, Any], of: Mapping[str, float]) -> dict[str, Any]:
    """What was asked of a mixture of event types; errors of different ones are independent."""
    total = sum(of.values())
    part = {name: events / total for name, events in of.items()}
    mixed: dict[str, Any] = {"scores": {}}
    if all("share" in asked.get(name, {}) for name in of):
        mixed["share"] = sum(asked[name]["share"] * part[name] for name in of)
        mixed["error"] = float(np.hypot.reduce([asked[n]["error"] * part[n] for n in of]))
    scores = [asked.get(name, {}).get("scores", {}) for name in of]
    for score in dict.fromkeys(name for one in scores for name in one):
        errors = [
            np.multiply(one.get(score, np.zeros(len(SHARES))), part[name])
            for name, one in zip(of, scores, strict=True)
        ]
        mixed["scores"][score] = np.hypot.reduce(errors, axis=0).tolist()
    return mixed


def _told(
    hits: Bools,
    weight: Float64,
    entity: UInt64,
    time_us: Int64,
    names: Sequence[str],
    asked: Mapping[str, Any],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """`rule` and `scores` of some genuine events."""
    got = weight @ hits / weight.sum()
    drawn = _drawn(hits, weight, entity, time_us, rng)
    found: dict[str, Any] = {}
    if "share" in asked:
        found["rule"] = _line(asked["share"], got[0], drawn[:, 0], asked["error"], rng)
    errors = asked.get("scores", {})
    found["scores"] = {
        name: [
            _line(
                share,
                got[1 + i * len(SHARES) + k],
                drawn[:, 1 + i * len(SHARES) + k],
                errors.get(name, (0.0,) * len(SHARES))[k],
                rng,
            )
            for k, share in enumerate(SHARES)
        ]
        for i, name in enumerate(names)
    }
    return found


def _line(
    asked: float, got: float, drawn: Float64, error: float, rng: np.random.Generator
) -> dict[str, Any]:
    """Asked, got, its interval, and whether what was asked lies in it."""
    spread = drawn + error * rng.standard_normal(len(drawn))
    low, high = np.maximum(np.quantile(spread, INTERVAL), 0.0)
    return {
        "asked": float(asked),
        "got": float(got),
        "low": float(low),
        "high": float(high),
        "holds": bool(low <= asked <= high),
    }
