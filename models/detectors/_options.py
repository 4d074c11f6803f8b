"""What detectors share: options with all faults found at once, and arrays as kernels want them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from features.errors import ConfigError

__all__ = ["plain", "read_options"]

T = TypeVar("T", bound=np.generic)


def plain(array: npt.NDArray[Any], kind: type[T]) -> npt.NDArray[T]:
    """The array as kernels were compiled for: of one type, C-contiguous, writeable.

    An array that is read-only is another type to numba, and would have the kernel compiled again in
    the middle of the stream: a copy of a batch takes microseconds, compiling takes seconds.

    Examples
    --------
    >>> plain(np.broadcast_to(1, 3), np.float64)
    array([1., 1., 1.])
    """
    return np.require(array, kind, ["C_CONTIGUOUS", "WRITEABLE"])


def read_options(
    detector: str, given: Mapping[str, float], known: Mapping[str, tuple[float, float, float]]
) -> dict[str, float]:
    """The options of a fit: what is given, the default where nothing is.

    Parameters
    ----------
    known : option -> (default, lowest, highest)

    Raises
    ------
    ConfigError : an option that does not exist or lies outside its range; all at once

    Examples
    --------
    >>> read_options("zscore", {"kept": 3}, {"kept": (5, 1, 100), "log": (0, 0, 1)})
    {'kept': 3.0, 'log': 0.0}
    """
    faults = []
    for name, value in given.items():
        if name not in known:
            faults.append(
                f"detector {detector!r} has no option {name!r}; there are {', '.join(known)}"
            )
        elif not known[name][1] <= value <= known[name][2]:
            faults.append(
                f"detector {detector!r}: option {name!r} is {value}; expected"
                f" {known[name][1]:g} to {known[name][2]:g}"
            )
    if faults:
        raise ConfigError(faults)
    return {name: float(given.get(name, spec[0])) for name, spec in known.items()}
