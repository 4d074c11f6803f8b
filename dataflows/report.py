"""Files that commands write: JSON in one plain style, and one way out, whatever the command.

It imports nothing of the flow, so that a light command can report without starting a heavy one.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.errors import ConfigError

__all__ = ["check_apart", "check_json", "plain", "write_json", "write_text"]


def write_json(path: str | None, report: dict[str, Any]) -> None:
    """Write a report where the user asked for it: nowhere, `-` is standard output, else a file.

    NaN, which JSON does not know, becomes null.

    Raises
    ------
    ConfigError : the file cannot be written
    """
    if path is None:
        return
    text = json.dumps(plain(report), indent=2, allow_nan=False, default=float)
    if path == "-":
        sys.stdout.write(text + "\n")
        return
    write_text(path, text + "\n", "--json")


def write_text(path: str | Path, text: str, option: str, errors: str = "strict") -> None:
    """Write a text to the file that an option names.

    Parameters
    ----------
    option : that names it, for the fault
    errors : what becomes of a lone surrogate, as of `open`

    Raises
    ------
    ConfigError : the file cannot be written
    """
    try:
        Path(path).write_text(text, encoding="utf-8", errors=errors)
    except OSError as error:
        raise _cannot(path, option, error) from None


def check_json(path: str | None, option: str = "--json") -> None:
    """Whether the file of an option can be written, asked before hours of work and not after.

    Raises
    ------
    ConfigError : the file cannot be written
    """
    if path is None or path == "-" or Path(path).is_fifo():  # opening a pipe waits for its reader
        return
    try:
        made = not Path(path).exists()
        with Path(path).open("a", encoding="utf-8"):
            pass
        if made:
            Path(path).unlink()
    except OSError as error:
        raise _cannot(path, option, error) from None


def check_apart(
    outputs: Mapping[str, str | Path | None], inputs: Mapping[str, str | Path | None]
) -> None:
    """Whether no file that is to be written is one that is read, nor another that is written.

    Parameters
    ----------
    outputs : option -> its file; None where it is not given, `-` is standard output
    inputs : what is read, as the user knows it -> its file

    Raises
    ------
    ConfigError : each that is
    """
    faults: list[str] = []
    taken = [(what, Path(path)) for what, path in inputs.items() if path is not None]
    for option, path in outputs.items():
        if path is None or path == "-":
            continue
        for what, other in taken:
            if _same(Path(path), other):
                faults.append(f"{option} {path}: would write over {what}; name another file")
        taken.append((option, Path(path)))
    if faults:
        raise ConfigError(faults)


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one file; a device or a pipe takes what several write."""
    try:
        if one.exists() and other.exists():
            return one.is_file() and one.samefile(other)
        return one.resolve() == other.resolve()
    except OSError:
        return False


def _cannot(path: str | Path, option: str, error: OSError) -> ConfigError:
    """The fault of a file that cannot be written."""
    return ConfigError(
        f"{option} {path}: cannot be written ({error.strerror}); name a file in a folder that"
        " exists"
    )


def plain(value: Any) -> Any:
    """The value with NaN as None, all the way down."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
