"""Loads the user's own files: an event type (`EVENT`), columns (`DERIVED`), features (`FEATURES`).

A file is loaded by its path, under a module name that nothing else has, and no folder is put on
`sys.path`: a user's `models.py` or `features.py` beside it never takes the place of ours. Whatever
is wrong is said with file and line, all of it at once.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import polars as pl

from features.batch import EventBatch, sample_batch
from features.catalog import Catalog, declared_features
from features.columns import DERIVED, Columns, Derived
from features.errors import ConfigError, DeclarationError
from features.events import EventType, built_in_types, event_type, made_types
from features.events.base import NAME
from features.registry import Own, declare_own
from features.spec import Feature, place_of

__all__ = [
    "FILES_MAX",
    "declare_files",
    "load_module",
    "python_files",
    "read_source",
    "said_of",
    "syntax_tree",
    "where_in",
]

X = TypeVar("X")

_NAMES = ("EVENT", "DERIVED", "FEATURES")
"""What a file may declare; it is taken whichever setting names the file."""

FILES_MAX = 256
"""Most files of a user; chosen: far more than anybody keeps by hand, and a folder named by mistake
is found before all of it is run."""


@dataclass(slots=True)
class _File:
    """One file: what it must declare, what it did, and what is wrong."""

    path: Path
    wanted: set[str]
    source: bytes = b""
    event: EventType | None = None
    derived: tuple[Derived, ...] = ()
    features: tuple[Feature, ...] = ()
    lines: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def at(self, name: str = "") -> str:
        """File and line of one of the names, or of its beginning."""
        return place_of(f"{self.path}:{self.lines.get(name, 1)}")


def declare_files(event_paths: Sequence[Path], feature_paths: Sequence[Path]) -> list[str]:
    """Load the user's files and declare what they hold; called once, before anything is read.

    Parameters
    ----------
    event_paths, feature_paths : files, or folders of which every `*.py` that does not begin with an
        underscore is one

    Returns
    -------
    all faults, each with file and line; empty where everything holds together
    """
    named = (tuple(map(Path, event_paths)), tuple(map(Path, feature_paths)))
    files, faults = _files(*named)
    digest = hashlib.sha256()
    for file in list(files):
        source = read_source(file.path)
        if isinstance(source, str):
            faults.append(source)
            files.remove(file)
            continue
        file.source = source
        digest.update(f"{file.path}\0{sorted(file.wanted)}\0{len(file.source)}\0".encode())
        digest.update(file.source)
    key = digest.hexdigest() if files else ""
    loaded = _loaded(key, *named) if files else ()
    faults += [fault for file in loaded for fault in file.faults]
    events, clashes = _events(loaded)
    made, taken = _columns(loaded, built_in_types() | {event.name: event for event in events})
    declare_own(
        Own(
            tuple(events),
            tuple(column for _, column in made),
            tuple(f for file in loaded for f in file.features),
            key,
        )
    )
    faults += clashes + taken
    if files:
        faults += [fault for file, column in made for fault in _tried(file, column)]
        try:
            Catalog(declared_features())
        except DeclarationError as error:
            faults += error.faults
    return faults


def _files(
    event_paths: tuple[Path, ...], feature_paths: tuple[Path, ...]
) -> tuple[list[_File], list[str]]:
    """The files that two settings name, each once, in their order; what is not there."""
    found: dict[Path, _File] = {}
    faults: list[str] = []
    for setting, paths, names in (
        ("event_paths", event_paths, {"EVENT"}),
        ("feature_paths", feature_paths, {"FEATURES", "DERIVED"}),
    ):
        for path in paths:
            inside, wrong = python_files(setting, path)
            faults += wrong
            for one in inside:
                file = found.setdefault(one.resolve(), _File(one.resolve(), set()))
                # A file of a folder may be there for the other setting's sake.
                file.wanted |= set(_NAMES) if path.is_dir() else names
    if len(found) > FILES_MAX:
        faults.append(
            f"event_paths, feature_paths: {len(found)} files, at most {FILES_MAX} are loaded; name"
            " the files in place of the folder"
        )
        return [], faults
    return list(found.values()), faults


def python_files(setting: str, path: Path) -> tuple[list[Path], list[str]]:
    """The files that a setting names by a path: itself, or of a folder each `*.py` that does not
    begin with an underscore; what is wrong with the path."""
    try:
        if path.is_dir():
            inside = sorted(p for p in path.glob("*.py") if not p.name.startswith("_"))
            if not inside:
                return [], [f"{setting}: folder {str(path)!r} has no file *.py"]
            return [p for p in inside if p.is_file()], [
                f"{setting}: {str(p)!r} is no file; begin its name with an underscore, or take it"
                " out of the folder"
                for p in inside
                if not p.is_file()
            ]
        if not path.exists():
            return [], [
                f"{setting}: {str(path)!r} does not exist (looked in {Path.cwd()}); expected a"
                " Python file, or a folder of them"
            ]
        if not path.is_file():
            return [], [f"{setting}: {str(path)!r} is no file, and no folder of files"]
    except OSError as error:
        return [], [f"{setting}: {str(path)!r} cannot be read: {error.strerror}"]
    if path.suffix != ".py":
        return [], [f"{setting}: {str(path)!r} is no Python file (*.py)"]
    return [path], []


def read_source(path: Path) -> bytes | str:
    """What stands in a file, or the fault where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        return f"{place_of(f'{path}:1')}: cannot be read: {error.strerror}"


@cache
def _loaded(
    key: str, event_paths: tuple[Path, ...], feature_paths: tuple[Path, ...]
) -> tuple[_File, ...]:
    """The files of `key`, loaded; a second call of the same process does not run them again."""
    loaded = []
    for file in _files(event_paths, feature_paths)[0]:
        source = read_source(file.path)
        if isinstance(source, bytes):
            file.source = source
            _load(file)
            loaded.append(file)
    return tuple(loaded)


def _load(file: _File) -> None:
    """Run a file and take what it declares."""
    tree = syntax_tree(file.path, file.source)
    if isinstance(tree, str):
        file.faults.append(tree)
        return
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and target.id in _NAMES:
                file.lines[target.id] = node.lineno
    try:
        module = load_module(file.path)
    except DeclarationError as error:
        file.faults += [f"{where_in(file.path, error)}: {fault}" for fault in error.faults]
    except (Exception, SystemExit) as error:
        file.faults.append(f"{where_in(file.path, error)}: {said_of(error)}")
    else:
        _take(file, module, _meaning(tree))


def syntax_tree(path: Path, source: bytes) -> ast.Module | str:
    """What a file says, or the fault with file and line where it does not parse."""
    try:
        tree = ast.parse(source, str(path))
        ast.unparse(tree)  # as its hash will be made: it takes fewer levels than the parser
    except (RecursionError, MemoryError):
        return f"{place_of(f'{path}:1')}: syntax error: expressions nested too deeply"
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        said = getattr(error, "msg", None) or str(error)
        return f"{place_of(f'{path}:{line}')}: syntax error: {said}"
    return tree


def load_module(path: Path) -> ModuleType:
    """The module of a file, under a name made of its path; `sys.path` is left alone.

    Whatever the file raises is raised.
    """
    name = f"waxwing_own_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses and pickle look for it; a file that failed is not left there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def where_in(path: Path, error: BaseException) -> str:
    """The innermost line of a file that an exception passed, with the file."""
    lines = [
        frame.lineno or 1
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == path
    ]
    return place_of(f"{path}:{lines[-1] if lines else 1}")


def said_of(error: BaseException) -> str:
    """An exception in one line."""
    first, *_ = f"{type(error).__name__}: {error}".splitlines()
    return first


def _meaning(tree: ast.Module) -> str:
    """Stands for the code of a file but for what it declares: comments and layout do not count.

    Of columns that are declared, what makes each counts: a lambda, or the name of a function.
    """
    kept = []
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        names = {t.id for t in targets if isinstance(t, ast.Name)} & set(_NAMES)
        if isinstance(node, ast.Assign) and "DERIVED" in names:
            kept += _made_by(node.value)
        elif not names and not isinstance(node, ast.Expr):
            kept.append(ast.unparse(node))
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def _made_by(value: ast.expr) -> list[str]:
    """The code that makes each column of a tuple of `Derived(...)`; of anything else, all of it."""
    found = []
    for item in value.elts if isinstance(value, ast.Tuple | ast.List) else [value]:
        keywords = {k.arg: k.value for k in item.keywords} if isinstance(item, ast.Call) else {}
        named = isinstance(item, ast.Call) and isinstance(item.func, ast.Name)
        if named and item.func.id == "Derived":  # type: ignore[attr-defined]
            places = item.args[3:4]  # type: ignore[attr-defined]
            made = places[0] if places else keywords.get("make", item)
            found.append(ast.unparse(made))
        else:
            found.append(ast.unparse(item))
    return found


def _take(file: _File, module: ModuleType, meaning: str) -> None:
    """What a module declares, checked for its type alone."""
    has = {name: getattr(module, name) for name in _NAMES if hasattr(module, name)}
    if not file.wanted & set(has):
        wanted = " or ".join(name for name in _NAMES if name in file.wanted)
        file.faults.append(
            f"{file.at()}: declares no {wanted}; see docs/own-features.md, and begin the name of a"
            " file of a folder that declares nothing with an underscore"
        )
    if "EVENT" in has:
        if isinstance(has["EVENT"], EventType):
            file.event = has["EVENT"]
        else:
            file.faults.append(
                f"{file.at('EVENT')}: EVENT: expected an EventType, got"
                f" {type(has['EVENT']).__name__}"
            )
    file.derived = tuple(
        replace(d, meaning=meaning) for d in _tuple(file, "DERIVED", has.get("DERIVED"), Derived)
    )
    file.features = tuple(_tuple(file, "FEATURES", has.get("FEATURES"), Feature))


def _tuple(file: _File, name: str, value: Any, kind: type[X]) -> Iterable[X]:
    """The items of a declared tuple that are of the kind; a fault for each other one."""
    if value is None:
        return []
    if not isinstance(value, tuple | list):
        file.faults.append(
            f"{file.at(name)}: {name}: expected a tuple of {kind.__name__}, got"
            f" {type(value).__name__}"
        )
        return []
    file.faults += [
        f"{file.at(name)}: {name}[{i}]: expected a {kind.__name__}, got {type(item).__name__}"
        for i, item in enumerate(value)
        if not isinstance(item, kind)
    ]
    return [item for item in value if isinstance(item, kind)]


def _events(files: Sequence[_File]) -> tuple[list[EventType], list[str]]:
    """The event types that stand, and a fault for each whose name or topic is taken."""
    ours = built_in_types() | made_types()
    places = dict.fromkeys(ours, "waxwing itself")
    topics = {event.topic: "waxwing itself" for event in ours.values()}
    found: list[EventType] = []
    faults: list[str] = []
    for file in files:
        event = file.event
        if event is None:
            continue
        at = file.at("EVENT")
        if event.name in places:
            faults.append(
                f"{at}: event type {event.name!r} is declared already, by {places[event.name]}"
            )
            continue
        if event.topic in topics:
            faults.append(
                f"{at}: event type {event.name!r}: topic {event.topic!r} is that of another, by"
                f" {topics[event.topic]}"
            )
        places[event.name] = topics[event.topic] = at
        found.append(event)
    return found, faults


def _columns(
    files: Sequence[_File], types: Mapping[str, EventType]
) -> tuple[list[tuple[_File, Derived]], list[str]]:
    """The user's columns that stand, and a fault for each that cannot."""
    taken = {(d.event, d.name): "waxwing itself" for d in DERIVED}
    found: list[tuple[_File, Derived]] = []
    faults: list[str] = []
    for file in files:
        at = file.at("DERIVED")
        for column in file.derived:
            place = f"{at}: column {column.event}.{column.name}"
            event = types.get(column.event)
            if event is None:
                faults.append(
                    f"{place}: unknown event type {column.event!r}; event types are"
                    f" {', '.join(types)}"
                )
            elif column.name in event.schema or column.name in event.entities:
                faults.append(f"{place}: is a field or an entity of the event type already")
            elif (column.event, column.name) in taken:
                first = taken[column.event, column.name]
                faults.append(f"{place}: is declared already, by {first}")
            elif not NAME.fullmatch(column.name):
                faults.append(
                    f"{place}: the name may hold small letters, digits and underscores, at most 63,"
                    " and begins with a letter"
                )
            elif column.kind not in ("real", "flag"):
                faults.append(f"{place}: kind is {column.kind!r}; it must be real or flag")
            else:
                taken[column.event, column.name] = at
                found.append((file, column))
    return found, faults


_TRIED = (2, 1, 3)
"""What rows hold on which a column is tried, by row. Chosen: whatever a column takes from the rows
before or after, a mean, a difference or an extreme so far, differs where a row stands alone."""


def _rows_to_try(event: str) -> EventBatch:
    """Events of a type, (3,), each another in whatever its fields may differ."""
    sample = sample_batch(event, len(_TRIED))
    made = []
    for one in event_type(event).fields:
        low, high = one.bounds
        if one.kind == "float64" and None not in (one.minimum, one.maximum):
            values: list[object] = [low + (high - low) * i / 4.0 for i in _TRIED]
        elif one.kind in ("float64", "int64"):
            kind = float if one.kind == "float64" else int
            values = [kind(min(max(i, low), high)) for i in _TRIED]
        elif one.kind == "string":
            values = ["abc"[i - 1] for i in _TRIED]
        elif one.kind == "enum":
            values = [one.values[i % len(one.values)] for i in _TRIED]
        elif one.kind == "bool":
            values = [i == 1 for i in _TRIED]
        else:
            values = [i * 3_600_000_000 for i in _TRIED]
        made.append(pl.Series(one.name, values, dtype=one.dtype))
    return replace(sample, frame=pl.DataFrame(made))


def _tried(file: _File, column: Derived) -> list[str]:
    """What is wrong with a column when it is made of some rows, together and each alone."""
    name = f"column {column.event}.{column.name}"
    wanted, rows = (np.bool_ if column.kind == "flag" else np.float64), len(_TRIED)
    make: Callable[[Columns], Any] = column.make
    batch = _rows_to_try(column.event)
    try:
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            made = make(Columns(batch))
            alone = [make(Columns(batch.take(np.array([i])))) for i in range(rows)]
    except (Exception, SystemExit) as error:
        if isinstance(error, ConfigError):
            return [f"{where_in(file.path, error)}: {name}: {fault}" for fault in error.faults]
        return [f"{where_in(file.path, error)}: {name}: {said_of(error)}"]
    for got, n in ((made, rows), *((one, 1) for one in alone)):
        if not isinstance(got, np.ndarray) or got.shape != (n,) or got.dtype != wanted:
            is_ = f"{got.dtype} {got.shape}" if isinstance(got, np.ndarray) else type(got).__name__
            return [
                f"{file.at('DERIVED')}: {name}: a {column.kind} is an array {np.dtype(wanted)} of"
                f" one value a row, {(n,)}; got {is_}"
            ]
    if not np.allclose(made, np.concatenate(alone), rtol=1e-9, atol=0.0, equal_nan=True):
        return [
            f"{file.at('DERIVED')}: {name}: is another where a row stands alone: a column is made"
            " of its own row, since how rows are cut into batches hangs on when they arrive"
        ]
    return []
