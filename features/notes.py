"""What a table of pairs said before a row met its pairs, for `features.late` to take it back.

A note is three words of 32 bits: of the last record with the pair the lower bits of its number, the
level at which it counted then, and its time.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Kernels take arrays of types numba finds out; signatures stand in their docstrings.

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from features.pairs import LONG_AGO, SEQ_BITS
from features.speed import inlined

__all__ = ["NOTE_WORDS", "UNSEEN", "notes_of", "read_note", "write_note"]

NOTE_WORDS = 3
"""Words of a note."""

UNSEEN = -2
"""Number of a pair that is not looked after: it has no value, or is not kept."""

_SEQ = (1 << SEQ_BITS) - 1
_LOW = (1 << 32) - 1

_NO_LEVEL = 63
"""Stands for the level where there is no record; `features.sampling.LEVEL_MAX` is lower. The first
word is 1 then where the pair is not looked after, 0 where it was never met."""

# The middle word: two upper bits of the number, six of the level, 24 upper bits of the time, which
# with 56 bits reaches a thousand years both ways.
_LEVEL_AT, _TIME_AT, _TIME_BITS = 2, 8, 56


@inlined
def write_note(notes, at, column, seq, level, last_us):
    """Write a note; `seq` -1 for a pair that was never met, UNSEEN for one that is not kept."""
    if seq < 0:
        notes[at, column] = np.uint32(seq == UNSEEN)
        notes[at, column + 1] = np.uint32(_NO_LEVEL << _LEVEL_AT)
        notes[at, column + 2] = np.uint32(0)
    else:
        notes[at, column] = np.uint32(seq & _LOW)
        high = ((seq >> 32) & 3) | (level << _LEVEL_AT) | (((last_us >> 32) & 0xFFFFFF) << _TIME_AT)
        notes[at, column + 1] = np.uint32(high)
        notes[at, column + 2] = np.uint32(last_us & _LOW)


@inlined
def read_note(notes, at, column, newest):
    """(number, level, time) of a note; the number is `newest` at the most, and not far behind it.

    -1 or UNSEEN, and LONG_AGO, where there is no record.
    """
    high = np.int64(notes[at, column + 1])
    level = (high >> _LEVEL_AT) & 63
    seq, last_us = np.int64(-1), np.int64(LONG_AGO)
    if level == _NO_LEVEL:
        level = np.int64(0)
        if notes[at, column] == 1:
            seq = np.int64(UNSEEN)
    else:
        low = ((high & 3) << 32) | np.int64(notes[at, column])
        seq = newest - ((newest - low) & _SEQ)
        last_us = ((high >> _TIME_AT) << 32) | np.int64(notes[at, column + 2])
        last_us = (last_us << (64 - _TIME_BITS)) >> (64 - _TIME_BITS)
    return seq, level, last_us


def notes_of(before: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Notes as snapshots of before 2026-11-30 have them, two words of 64 bits, as they are now.

    Parameters
    ----------
    before : int64 (n, 2 x pairs): number above six bits of level, or -1 or UNSEEN; time

    Returns
    -------
    uint32 (n, 3 x pairs)
    """
    number, last_us = before[:, ::2], before[:, 1::2]
    seq, level, none = number >> 6, number & 63, number < 0
    high = ((seq >> 32) & 3) | (level << _LEVEL_AT) | (((last_us >> 32) & 0xFFFFFF) << _TIME_AT)
    words: list[npt.NDArray[Any]] = [
        np.where(none, number == UNSEEN, seq & _LOW),
        np.where(none, _NO_LEVEL << _LEVEL_AT, high),
        np.where(none, 0, last_us & _LOW),
    ]
    return np.stack(words, axis=2).reshape(len(before), 3 * number.shape[1]).astype(np.uint32)
