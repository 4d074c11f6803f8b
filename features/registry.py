"""What users declare of their own: filled once at start, before anything reads it.

Event types and the catalogue are the same for the whole life of a process: codes of event types
stand in rows and tables of the kernels, names of features in models. So what the files of
`event_paths` and `feature_paths` declare is put here by `dataflows.settings.load`, and the first
reader seals it. The same of the setting `features`, which says what of all that is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from features.errors import ConfigError

if TYPE_CHECKING:
    from features.columns import Derived
    from features.events.base import EventType
    from features.spec import Feature

__all__ = ["Own", "chosen_patterns", "declare_choice", "declare_own", "forget_own", "own"]


@dataclass(frozen=True, slots=True)
class Own:
    """Declarations of a user, of all their files.

    Parameters
    ----------
    events : event types, any order
    derived : columns made from fields
    features : in the order of the files, then as declared
    key : names the files and their content; the same key is the same declarations
    """

    events: tuple[EventType, ...] = ()
    derived: tuple[Derived, ...] = ()
    features: tuple[Feature, ...] = ()
    key: str = ""


class _Registry:
    """The one `Own` of the process, what is chosen, and whether each was read."""

    def __init__(self) -> None:
        self.own = Own()
        self.sealed = False
        self.choice: tuple[str, ...] = ()
        self.choice_sealed = False


_REGISTRY = _Registry()


def own() -> Own:
    """What was declared; from now on it stays so."""
    _REGISTRY.sealed = True
    return _REGISTRY.own


def declare_own(declared: Own) -> None:
    """Set what users declare; the same again is no change.

    Raises
    ------
    ConfigError : event types or features were read already, and these are others
    """
    if declared.key == _REGISTRY.own.key:
        return
    if _REGISTRY.sealed:
        raise ConfigError(
            "event_paths, feature_paths: event types and features were read already by this"
            " process, with other files or before a file was changed; a process serves one set:"
            " start another, and let no file read the catalogue while it is loaded"
        )
    _REGISTRY.own = declared


def chosen_patterns() -> tuple[str, ...]:
    """Patterns of the features that are computed, none for all; from now on they stay so."""
    _REGISTRY.choice_sealed = True
    return _REGISTRY.choice


def declare_choice(patterns: tuple[str, ...]) -> None:
    """Set which features are computed, none for all; the same again is no change.

    Raises
    ------
    ConfigError : the catalogue was made already, of others
    """
    if patterns == _REGISTRY.choice:
        return
    if _REGISTRY.choice_sealed:
        raise ConfigError(
            "features: this process has made its catalogue already, of"
            f" {', '.join(_REGISTRY.choice) or 'all features'}; a process serves one: start another"
        )
    _REGISTRY.choice = patterns


def forget_own() -> None:
    """Open the registry again, empty. Whoever calls it also clears what was made from it."""
    _REGISTRY.own, _REGISTRY.sealed = Own(), False
    _REGISTRY.choice, _REGISTRY.choice_sealed = (), False
