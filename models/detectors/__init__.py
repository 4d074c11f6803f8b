"""Detectors: one file each, the file name is the name; the user's own are known by `models.own`."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from typing import cast

from features.errors import DeclarationError
from models.base import Detector
from models.own import own_detectors

__all__ = ["detector", "detector_names"]


def detector_names() -> tuple[str, ...]:
    """Names of all detectors, sorted: files beside this one, and the user's own."""
    found = {m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")}
    return tuple(sorted(found | set(own_detectors())))


def detector(name: str) -> type[Detector]:
    """The detector called `name`.

    Raises
    ------
    DeclarationError : there is no such file, or it holds no class `Model`
    """
    if name not in detector_names():
        near = get_close_matches(name, detector_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DeclarationError(
            f"unknown detector {name!r}{hint} (there are {', '.join(detector_names())})"
        )
    if name in own_detectors():
        return own_detectors()[name].model
    module = importlib.import_module(f"models.detectors.{name}")
    model = getattr(module, "Model", None)
    if model is None:
        raise DeclarationError(f"models/detectors/{name}.py holds no class `Model`")
    return cast(type[Detector], model)
