"""Detectors of the user's own: files outside the package, loaded as `features.own` loads features.

A file `ecod.py` that the setting `detector_paths` names is the detector `ecod`: its class `Model`
has the protocol of `models.base`. What it needs is said with file and line, all of it at once, and
what only shows in a fit (a raw number too few, a model that is another one once it is loaded) ends
the training. A bundle keeps a hash of the code, so that it is never scored with another.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from features.batch import FeatureMatrix
from features.errors import ConfigError
from features.own import (
    FILES_MAX,
    load_module,
    python_files,
    read_source,
    said_of,
    syntax_tree,
    where_in,
)
from features.spec import place_of
from models.base import Detector

__all__ = ["OwnDetector", "declare_detectors", "guarded", "misfits", "own_detectors"]

X = TypeVar("X")

SETTING = "detector_paths"

RESERVED = ("ensemble", "scales")
"""Names of a bundle's own: the weighted sum of all detectors, and the file of all scales."""

ROWS_TRIED = 8
"""Rows that a fitted model is tried on one by one. Chosen: more than one, and nothing of a fit."""


@dataclass(frozen=True, slots=True)
class OwnDetector:
    """A detector of the user.

    Parameters
    ----------
    path : its file
    code : 16 hex digits, hash of what the file says but for comments, layout and docstrings
    model : its class
    """

    path: Path
    code: str
    model: type[Detector]


_DECLARED: dict[str, OwnDetector] = {}


def own_detectors() -> Mapping[str, OwnDetector]:
    """Name -> detector of the user, as declared last."""
    return _DECLARED


def declare_detectors(paths: Sequence[Path], taken: Iterable[str]) -> list[str]:
    """Load the user's files and take them for the detectors of this process, in place of others.

    Parameters
    ----------
    paths : files, or folders of which every `*.py` that does not begin with an underscore is one
    taken : names of the package's own detectors

    Returns
    -------
    all faults, each with file and line; empty where everything holds together
    """
    _DECLARED.clear()
    files: list[Path] = []
    faults: list[str] = []
    for path in paths:
        inside, wrong = python_files(SETTING, Path(path))
        files += [one.resolve() for one in inside]
        faults += wrong
    files = list(dict.fromkeys(files))
    if len(files) > FILES_MAX:
        return [*faults, f"{SETTING}: {len(files)} files, at most {FILES_MAX} are loaded; name the"
                " files in place of the folder"]  # fmt: skip
    ours = set(taken)
    for file in files:
        name, at = file.stem, place_of(f"{file}:1")
        if not re.fullmatch("[a-z][a-z0-9_]*", name):
            faults.append(
                f"{at}: the name of the file is the name of the detector: small letters, digits and"
                f" underscores, got {name!r}"
            )
        elif name in RESERVED:
            faults.append(
                f"{at}: no detector can be called {name!r}, a bundle keeps something else by that"
                " name; name the file and Model.name otherwise"
            )
        elif name in ours:
            faults.append(f"{at}: detector {name!r} is there already, in waxwing itself")
        elif name in _DECLARED:
            first = place_of(f"{_DECLARED[name].path}:1")
            faults.append(f"{at}: detector {name!r} is there already, in {first}")
        else:
            source = read_source(file)
            if isinstance(source, str):
                faults.append(source)
                continue
            found, more = _loaded(file, source)
            faults += more
            if found is not None:
                _DECLARED[name] = found
    return faults


@cache
def _loaded(path: Path, source: bytes) -> tuple[OwnDetector | None, tuple[str, ...]]:
    """The detector of a file, or what is wrong; the same content is not run again."""
    tree = syntax_tree(path, source)
    if isinstance(tree, str):
        return None, (tree,)
    try:
        module = load_module(path)
    except ConfigError as error:
        return None, tuple(f"{where_in(path, error)}: {fault}" for fault in error.faults)
    except (Exception, SystemExit) as error:
        return None, (f"{where_in(path, error)}: {said_of(error)}",)
    line = next((n.lineno for n in tree.body if getattr(n, "name", "") == "Model"), 1)
    at = place_of(f"{path}:{line}")
    model = getattr(module, "Model", None)
    if not isinstance(model, type):
        return None, (f"{at}: declares no class Model; see docs/own-detectors.md",)
    faults = [
        f"{at}: Model has no method {name!r}"
        for name in ("fit", "raw", "save", "load")
        if not callable(getattr(model, name, None))
    ]
    if getattr(model, "name", None) != path.stem:
        faults.append(
            f"{at}: Model.name is {getattr(model, 'name', None)!r}; the file makes it {path.stem!r}"
        )
    if not isinstance(getattr(model, "expensive", None), bool):
        faults.append(
            f"{at}: Model.expensive: expected True (sees only rows that others find strange) or"
            f" False, got {getattr(model, 'expensive', None)!r}"
        )
    if faults:
        return None, tuple(faults)
    return OwnDetector(path, _code(tree), model), ()


def _code(tree: ast.Module) -> str:
    """Hash of what a file says; a comment, a docstring or a line break is no other code."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            told = (
                body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
            )
            node.body = (body[1:] or [ast.Pass()]) if told else body
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def guarded(name: str, doing: str, work: Callable[[], X]) -> X:
    """What `work` gives; an exception of a user's detector becomes a fault with file and line.

    Raises
    ------
    ConfigError : of a user's detector; what one of the package raises passes as it is
    """
    own = _DECLARED.get(name)
    if own is None:
        return work()
    try:
        return work()
    except ConfigError as error:
        at = where_in(own.path, error)
        raise ConfigError([f"{at}: {name}.{doing}: {fault}" for fault in error.faults]) from error
    except Exception as error:
        at = where_in(own.path, error)
        raise ConfigError(f"{at}: {name}.{doing}: {said_of(error)}") from error


def misfits(name: str, model: Detector, features: FeatureMatrix) -> list[str]:
    """What a fitted model of the user does that no detector may; empty for the package's own.

    Parameters
    ----------
    features : a few rows as it will see them
    """
    own = _DECLARED.get(name)
    if own is None:
        return []
    at = f"{place_of(f'{own.path}:1')}: {name}"
    said = guarded(name, "raw", lambda: model.raw(features))
    n = len(features)
    if not isinstance(said, np.ndarray) or said.dtype != np.float64 or said.shape != (n,):
        got = f"{said.dtype} {said.shape}" if isinstance(said, np.ndarray) else type(said).__name__
        return [f"{at}.raw: expected float64 of one number a row, {(n,)}; got {got}"]
    faults = []
    if np.isinf(said).any():
        faults.append(f"{at}.raw: infinite; a row that cannot be scored is NaN")
    alone = [guarded(name, "raw", lambda i=i: model.raw(_row(features, i)))  # type: ignore[misc]
             for i in range(min(n, ROWS_TRIED))]  # fmt: skip
    if not np.array_equal(np.concatenate(alone), said[: len(alone)], equal_nan=True):
        faults.append(
            f"{at}.raw: a row alone has another number than among others; a row's number may depend"
            " on the row and the fit, and on nothing else"
        )
    again = _saved(name, at, model, faults)
    if again is not None:
        later = guarded(name, "raw", lambda: again.raw(features))
        if not np.array_equal(later, said, equal_nan=True):
            faults.append(f"{at}.load: the model gives other numbers than the one that was saved")
    return faults


def _row(features: FeatureMatrix, at: int) -> FeatureMatrix:
    """One row of a matrix."""
    sequence = None if features.sequence is None else features.sequence[at : at + 1]
    values = features.values[at : at + 1]
    event, names, version = features.event_type, features.names, features.catalog_version
    return FeatureMatrix(event, names, values, sequence, version)


def _saved(name: str, at: str, model: Detector, faults: list[str]) -> Detector | None:
    """The model saved and loaded again; None and faults where it cannot be."""
    saved: Any = guarded(name, "save", model.save)
    try:
        arrays, header = saved
        arrays = {str(key): np.asarray(value) for key, value in arrays.items()}
        header = json.loads(json.dumps(header))
    except (AttributeError, TypeError, ValueError) as error:
        faults.append(
            f"{at}.save: expected arrays by name, and a header for JSON: {said_of(error)}"
        )
        return None
    if objects := [key for key, value in arrays.items() if value.dtype.hasobject]:
        faults.append(f"{at}.save: {', '.join(objects)}: arrays of objects would be pickles; save"
                      " numbers or texts")  # fmt: skip
        return None
    return guarded(name, "load", lambda: type(model).load(arrays, header))
