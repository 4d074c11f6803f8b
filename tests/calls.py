"""Counts calls: how much work something is, on any machine, however busy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["counted_calls"]


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """Calls of Python and built-in functions in this thread while the block lasts: one number."""
    calls = [0]

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        if event in ("call", "c_call"):
            calls[0] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(before)
