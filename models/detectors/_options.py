"""Options of detectors: numbers with defaults, all faults found at once."""

from __future__ import annotations

from collections.abc import Mapping

from features.errors import ConfigError

__all__ = ["read_options"]


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
