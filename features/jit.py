"""The one way kernels are compiled: cached, without the GIL, no fast-math (bit-equal results)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["njit"]

F = TypeVar("F", bound=Callable[..., Any])


def njit(function: F) -> F:
    """Compile `function` in nopython mode, keeping its Python signature for the type checker."""
    compiled: F = numba.njit(cache=True, nogil=True, fastmath=False, error_model="numpy")(function)
    return compiled
