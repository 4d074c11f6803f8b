"""Where a control record goes: to the topic of the settings, else to the end of the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dataflows.control.records import append_record

if TYPE_CHECKING:
    from dataflows.settings import Settings

__all__ = ["write_record"]


def write_record(settings: Settings, record: dict[str, Any]) -> str:
    """Write a record where the flow of the settings hears it; it is on the disk, or acknowledged.

    Returns
    -------
    where it stands

    Raises
    ------
    WaxwingError : it could not be written
    """
    if settings.control_topic is not None:
        from dataflows.control.topic import send_record

        return send_record(settings, record)
    path = settings.control_file or settings.state_dir / "control.jsonl"
    append_record(path, json.dumps(record))
    return str(path)
