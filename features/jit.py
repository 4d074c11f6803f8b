"""The one way kernels are compiled: cached, without the GIL, no fast-math (bit-equal results)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["njit"]

F = TypeVar("F", bound=Callable[..., Any])


def njit(function: F) -> F:
    """Compile `function` in nopython mode, keeping its Python signature for the type checker."""
    options: dict[str, Any] = {"cache": True, "nogil": True, "fastmath": False}
    return cast(F, numba.njit(error_model="numpy", **options)(function))
