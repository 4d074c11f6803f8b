"""Every exception waxwing raises, as one tree, so that a caller can catch as widely as it likes.

    WaxwingError
    ├── ConfigError         a setting, a file name, a declaration: found at start, all at once
    │   └── DeclarationError    an event type, feature, detector or attack declared wrongly
    ├── ContractError       data that breaks the declaration of its event type
    ├── ShapeError          columns or matrices that do not fit each other
    ├── BundleError         a model bundle that is missing, damaged or made for another catalogue
    ├── StateError          a journal, delta or manifest that cannot be used
    ├── SourceError         a broker, file or registry that cannot be reached or read
    ├── SinkError           alerts that could not be delivered to where they should go
    └── AnswerError         a model elsewhere that gave no answer which can be used

Each message says where, what was expected, what was got, and the cure. Bad data never raises in
the flow (it goes to the dead-letter stream); bad configuration stops the program before the first
event.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AnswerError",
    "BundleError",
    "ConfigError",
    "ContractError",
    "DeclarationError",
    "ShapeError",
    "SinkError",
    "SourceError",
    "StateError",
    "WaxwingError",
]


class WaxwingError(Exception):
    """Root of all errors that waxwing raises on purpose."""


class ConfigError(WaxwingError):
    """A configuration that cannot be run; `faults` holds every fault found, not only the first."""

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))


class DeclarationError(ConfigError):
    """An event type, feature, detector or attack whose declaration does not hold together."""


class ContractError(WaxwingError):
    """Data that breaks the contract of its event type."""


class ShapeError(WaxwingError):
    """Columns or matrices whose lengths or widths do not fit."""


class BundleError(WaxwingError):
    """A model bundle that cannot be used."""


class StateError(WaxwingError):
    """A journal, delta or manifest that cannot be used."""


class SourceError(WaxwingError):
    """A source that cannot be reached or read."""


class SinkError(WaxwingError):
    """Alerts that a sink could not deliver."""


class AnswerError(WaxwingError):
    """A model that is asked elsewhere gave no answer, or none that can be used.

    Parameters
    ----------
    kind : time_out, connection, status, rubbish, shape, bundle, or open (it was not asked)
    """

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        super().__init__(text)
