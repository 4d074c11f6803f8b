"""The last 16 events of an entity as short vectors: what the sequence model reads.

Each event becomes 12 numbers in [-1, 1], kept as 16-bit fixed point (half the memory, and
the same bits everywhere); the newest step is the row itself. What the last seven numbers are is
declared here per event type.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.speed import AHEAD, borrowed, kernel, prefetch

__all__ = ["STEPS", "TOKENS", "WIDTH", "Token", "run_sequence", "widen"]

STEPS = 16
WIDTH = 12
SCALE = 32767.0
"""Fixed point: 1.0 is the largest int16."""

COMMON = 5
"""Numbers every event has: present, own type or another, gap, sine and cosine of the hour."""

GAP_LOG_MAX = float(np.log1p(30 * 86_400.0))
"""A gap of 30 days is 1."""


@dataclass(frozen=True, slots=True)
class Token:
    """One number of an event's vector.

    Parameters
    ----------
    kind : `real` (clipped x / scale), `flag` (0 or 1), `feature` (x / scale squashed by u / (1 +
        |u|)); unknown values are 0
    name : of the column, or of a feature of the same entity
    scale : what counts as large
    """

    kind: str
    name: str
    scale: float = 1.0


TOKENS: dict[str, dict[str, tuple[Token, ...]]] = {
    "card": {
        "payment": (
            Token("real", "log_amount", 10.0),
            Token("feature", "card_amount_z", 2.0),
            Token("flag", "declined"),
            Token("flag", "remote"),
            Token("feature", "card_home_km", 300.0),
            Token("feature", "card_merchant_first", 1.0),
            Token("feature", "card_device_first", 1.0),
        )
    },
    "user": {
        "login": (
            Token("flag", "failed"),
            Token("flag", "password"),
            Token("flag", "token"),
            Token("feature", "user_home_km", 300.0),
            Token("feature", "user_device_first", 1.0),
            Token("feature", "user_ip_first", 1.0),
            Token("flag", "device_unknown"),
        ),
        "payment": (
            Token("real", "log_amount", 10.0),
            Token("flag", "declined"),
            Token("flag", "remote"),
            Token("flag", "cash"),
        ),
    },
    "series": {
        "metric": (
            Token("feature", "series_value_z", 3.0),
            Token("feature", "series_robust_z", 3.0),
            Token("feature", "series_step", 3.0),
            Token("feature", "series_season_z", 3.0),
            Token("feature", "series_flatness", 1.0),
            Token("feature", "series_drift", 2.0),
            Token("feature", "series_run_length", 5.0),
        )
    },
    "service": {
        "app_log": (
            Token("flag", "error"),
            Token("flag", "warning"),
            Token("flag", "server_error"),
            Token("real", "log_duration", 15.0),
            Token("feature", "service_template_first", 1.0),
            Token("feature", "service_duration_level_z", 2.0),
            Token("flag", "untimed"),
        )
    },
}
"""Entity type -> event type -> the numbers of its vector after the common ones; at most seven."""


@kernel
def _fixed(x):
    """x in [-1, 1] as int16; NaN is 0."""
    if x != x:
        return np.int16(0)
    return np.int16(np.rint(min(max(x, -1.0), 1.0) * SCALE))


@kernel
def run_sequence(
    slots, taken_us, head, reals_in, kinds, sources, scales, own, state, places, out, emitted
):
    """Vectors of rows in order; returns how many rows of the own event type were emitted.

    Parameters
    ----------
    kinds : int64 (event types, 7): 0 none, 1 real, 2 flag, 3 feature; -1 in the first: no token
    sources : int64 (event types, 7), column, bit or place in `out`
    scales : float64 (event types, 7)
    own : event code whose rows get the sequence
    state : int16 (slots, 16 * 12), ring of vectors
    places : int64 (slots, 2), events so far and time of the last
    emitted : int16 (rows of the own type, 16, 12), oldest first, zeros where there were fewer
    """
    state, places, emitted = borrowed(state, places, emitted)
    done = 0
    flat = emitted.reshape(len(emitted), STEPS * WIDTH)
    for i in range(len(slots)):
        if i + AHEAD < len(slots):
            prefetch(state, slots[i + AHEAD])
            prefetch(places, slots[i + AHEAD])
        code, slot = head[i, 2], slots[i]
        if kinds[code, 0] < 0:
            continue
        ring, place = state[slot], places[slot]
        at = (place[0] % STEPS) * WIDTH
        ring[at] = _fixed(1.0)
        ring[at + 1] = _fixed(1.0 if code == own else -1.0)
        gap_s = (taken_us[i] - place[1]) / 1e6
        ring[at + 2] = _fixed(np.log1p(gap_s) / GAP_LOG_MAX if place[0] > 0 else -1.0)
        angle = 2.0 * np.pi * (taken_us[i] % 86_400_000_000) / 86.4e9
        ring[at + 3] = _fixed(np.sin(angle))
        ring[at + 4] = _fixed(np.cos(angle))
        for k in range(WIDTH - COMMON):
            kind, source, x = kinds[code, k], sources[code, k], 0.0
            if kind == 1:
                x = reals_in[i, source] / scales[code, k]
            elif kind == 2:
                x = float((head[i, 7] >> source) & 1)
            elif kind == 3:
                u = out[i, source] / scales[code, k]
                x = u / (1.0 + abs(u)) if abs(u) < 1e300 else np.copysign(1.0, u)
            ring[at + COMMON + k] = _fixed(x)
        place[0] += 1
        place[1] = taken_us[i]
        if code != own:
            continue
        first = place[0] % STEPS * WIDTH if place[0] > STEPS else 0
        empty = max(STEPS - place[0], 0) * WIDTH
        for k in range(empty):
            flat[done, k] = 0
        for k in range(STEPS * WIDTH - empty - first):
            flat[done, empty + k] = ring[first + k]
        for k in range(first):
            flat[done, STEPS * WIDTH - first + k] = ring[k]
        done += 1
    return done


@kernel
def widen(rows, fixed, out):
    """Put vectors i of `fixed`, int16 (n, 16, 12), into rows rows[i] of `out`, float32."""
    flat_in, flat = fixed.reshape(len(fixed), STEPS * WIDTH), out.reshape(len(out), STEPS * WIDTH)
    for i in range(len(rows)):
        to = rows[i]
        for k in range(STEPS * WIDTH):
            flat[to, k] = np.float32(flat_in[i, k]) / np.float32(SCALE)
