"""Asked and got: shares of genuine events, and intervals that know of entities and days."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from features.batch import Float64
from models.calibration import Calibration
from models.coverage import SHARES, coverage_of, reached, share_error

HOUR_US = 3_600_000_000
WORLDS = 24
"""Worlds tried; with 95 % intervals one of them lies outside by chance."""


def world(rng: np.random.Generator, entities: int = 300, each: int = 40) -> tuple[Any, ...]:
    """Raw numbers of genuine events of two days; each entity has a level of its own."""
    entity = np.repeat(rng.integers(1, 1 << 60, entities), each).astype(np.uint64)
    time_us = np.tile(np.linspace(0, 47 * HOUR_US, each).astype(np.int64), entities)
    level = np.repeat(rng.normal(0.0, 1.0, entities), each)
    raw = level + rng.normal(0.0, 1.0, len(entity))
    return raw, entity, time_us


def judged(rng: np.random.Generator, drift: float = 0.0, errors: bool = True) -> dict[str, Any]:
    """A scale made in one world and held to its word in another, which is `drift` stranger."""
    raw, entity, time_us = world(rng)
    scale = Calibration.fit(raw)
    hits = reached(scale.surprise(raw))
    told = share_error(hits, entity, time_us, rng) if errors else [0.0] * len(SHARES)
    other, entity, time_us = world(rng)
    surprise: Float64 = scale.surprise(other + drift)
    limit = -np.log10(SHARES[1])
    asked = {"payment": {"share": SHARES[1], "error": told[1], "scores": {"ensemble": told}}}
    n = len(other)
    return coverage_of(
        np.zeros(n, np.int16), {"ensemble": surprise}, surprise >= limit, entity, time_us,
        np.ones(n), {0: "payment"}, asked if errors else {}, 7,
    )  # fmt: skip


def test_what_is_asked_lies_within_the_interval_of_what_is_got(rng: np.random.Generator) -> None:
    held = [judged(rng)["rule"]["holds"] for _ in range(WORLDS)]
    assert np.mean(held) >= 0.85


def test_a_scale_of_another_world_does_not_keep_its_word(rng: np.random.Generator) -> None:
    held = [judged(rng, drift=1.0)["rule"]["holds"] for _ in range(WORLDS // 4)]
    assert not any(held)
    line = judged(rng, drift=1.0)["scores"]["ensemble"][1]
    assert line["got"] > 2.0 * line["asked"] and line["low"] > line["asked"]


def test_an_interval_knows_of_entities_and_of_the_rows_that_were_fitted_on(
    rng: np.random.Generator,
) -> None:
    n = 12_000
    alone = np.sqrt(SHARES[1] * (1 - SHARES[1]) / n)
    raw, entity, time_us = world(rng)
    hits = reached(Calibration.fit(raw).surprise(raw))
    together = share_error(hits, entity, time_us, rng)[1]
    apart = share_error(hits, np.arange(n, dtype=np.uint64), np.zeros(n, np.int64), rng)[1]
    assert together > 1.3 * alone and apart == pytest.approx(alone, rel=0.25)

    surprise = -np.log10(rng.random(n))

    def width(error: float) -> float:
        asked = {"payment": {"scores": {"ensemble": [error] * len(SHARES)}}}
        found = coverage_of(
            np.zeros(n, np.int16), {"ensemble": surprise}, surprise > 9.0, entity, time_us,
            np.ones(n), {0: "payment"}, asked, 7,
        )  # fmt: skip
        line = found["scores"]["ensemble"][1]
        return float(line["high"] - line["low"])

    assert width(0.001) > 1.3 * width(0.0)


def test_event_types_are_told_apart_and_together(rng: np.random.Generator) -> None:
    n = 20_000
    surprise = -np.log10(rng.random(n))
    kinds = np.repeat([0, 1], n // 2).astype(np.int16)
    surprise[kinds == 1] += 1.0  # ten times as strange as it says
    asked = {
        name: {"share": 0.003, "error": 0.0, "scores": {"ensemble": [0.0] * 3}}
        for name in ("payment", "login")
    }
    found = coverage_of(
        kinds, {"ensemble": surprise, "off": np.full(n, np.nan)}, surprise >= -np.log10(0.003),
        np.arange(n, dtype=np.uint64), np.zeros(n, np.int64), np.ones(n),
        {0: "payment", 1: "login", 2: "metric"}, asked, 7,
    )  # fmt: skip
    assert found["by_event_type"].keys() == {"payment", "login"}
    assert found["by_event_type"]["payment"]["rule"]["holds"]
    assert found["by_event_type"]["login"]["rule"]["got"] == pytest.approx(0.03, rel=0.3)
    assert not found["by_event_type"]["login"]["rule"]["holds"] and not found["rule"]["holds"]
    assert found["rule"]["asked"] == pytest.approx(0.003)
    assert found["scores"]["off"][2]["got"] == 0.0, "a detector that never looked reaches nothing"
    assert found["entities"] == n and found["days"] == 1


def test_rules_of_a_person_were_asked_for_nothing(rng: np.random.Generator) -> None:
    found = judged(rng, errors=False)
    assert "rule" not in found and found["scores"]["ensemble"][1]["asked"] == SHARES[1]
