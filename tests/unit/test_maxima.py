"""Links between records, by which the largest value of a window is found."""

from __future__ import annotations

import numpy as np
import pytest

from features.maxima import is_candidate, link_newest, link_words, links_at

BASE, FLAGS = 3, 1


def values(rng: np.random.Generator, kind: str, n: int) -> np.ndarray:
    """Values of records that come one after another; some have none."""
    found = {
        "few": rng.integers(0, 4, n).astype(float),
        "many": rng.normal(size=n),
        "falling": -np.arange(n).astype(float),
        "one high": np.where(np.arange(n) == 1, 9.0, rng.random(n)),
        "infinite": rng.choice([-np.inf, 0.0, 1.0, np.inf, np.nan], n),
    }[kind]
    found[rng.random(n) < rng.choice([0.0, 0.2, 0.95])] = np.nan
    return found


@pytest.mark.parametrize("kind", ["few", "many", "falling", "one high", "infinite"])
@pytest.mark.parametrize(
    ("narrow", "pairs", "maxima", "own"),
    [(True, 4, 2, False), (True, 9, 2, True), (False, 4, 3, False), (False, 16, 4, True)],
)
def test_the_oldest_candidate_of_any_window_is_its_largest_value(
    rng: np.random.Generator, kind: str, narrow: bool, pairs: int, maxima: int, own: bool
) -> None:
    """Where links stand beside conditions and marks, and where they have words of their own."""
    words = 2 + link_words(narrow, FLAGS, maxima, pairs)
    assert (words > 2) == own
    n = 1_500
    arena = np.zeros((BASE + n, 1 + (-(-words // 2) if narrow else words)), np.int64)
    ints, reals = arena.view(np.uint32) if narrow else arena, arena.view(np.float64)
    links, column = links_at(FLAGS, 1, maxima, pairs, ints), reals.shape[1] - 1
    marks = (1 << (FLAGS + 2 * pairs)) - 1
    # A short window is at times without any but the smallest number.
    found, length = values(rng, kind, n), int(rng.integers(1, 8 if kind == "infinite" else n))
    front, last = [0] * maxima, [-1] * maxima
    for seq in range(n):
        oldest = max(0, seq + 1 - length)
        reals[BASE + seq, column], ints[BASE + seq, 1] = found[seq], marks
        inside = found[oldest : seq + 1]
        inside = inside[~np.isnan(inside)]
        for m, sign in enumerate([1.0, -1.0] * 2):
            if m == maxima:
                break
            if front[m] < oldest <= last[m]:
                front[m] = oldest
                while not is_candidate(BASE + front[m], m, links, ints):
                    front[m] += 1
            larger = link_newest(BASE, seq, oldest, m, column, sign, links, ints, reals)
            if not np.isnan(found[seq]):
                front[m] = seq if last[m] < oldest or front[m] > larger else front[m]
                last[m] = seq
            assert (last[m] >= oldest) == (len(inside) > 0)
            if len(inside):
                assert sign * found[front[m]] == (sign * inside).max()
    assert (ints[BASE:, 1] & marks == marks).all(), "conditions and marks stay as they are"
