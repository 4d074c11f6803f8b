"""What was declared of the features of a warm state, so that a mismatch names what has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dataflows.state.journal import replace_text
from features.catalog import Catalog, differences_text

__all__ = ["told_apart", "write_declared"]

_FILE = "declared.json"


def write_declared(folder: Path, catalog: Catalog) -> None:
    """Write what the features of a catalogue are beside the state that was made with them."""
    text = json.dumps({"version": catalog.version, "features": catalog.declarations()})
    replace_text(folder / _FILE, text)


def told_apart(folder: Path, version: str, catalog: Catalog) -> str:
    """What tells the features of a state from those of a catalogue, as a part of a sentence.

    Parameters
    ----------
    version : of the catalogue that the state was made with
    """
    try:
        found: dict[str, Any] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    if found.get("version") != version:
        return "it does not say what was declared of its features"
    declared = found["features"]
    return differences_text(catalog.differences({e: list(declared[e]) for e in declared}, declared))
