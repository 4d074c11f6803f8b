"""Reports of commands as JSON: one plain style, one way out, whatever the command.

It imports nothing of the flow, so that a light command can report without starting a heavy one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["write_json"]


def write_json(path: str | None, report: dict[str, Any]) -> None:
    """Write a report where the user asked for it: nowhere, `-` is standard output, else a file."""
    if path is None:
        return
    text = json.dumps(report, indent=2, allow_nan=False, default=float)
    if path == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(path).write_text(text + "\n", encoding="utf-8")
