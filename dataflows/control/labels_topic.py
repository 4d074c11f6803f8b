"""Labels of a Kafka topic: for those whose verdicts are events themselves."""

from __future__ import annotations

from typing import Any

from dataflows.control.labels import read_label
from dataflows.control.records import Fault
from dataflows.control.topic import ControlTopic
from dataflows.settings import Settings

__all__ = ["LabelTopic"]


class LabelTopic(ControlTopic):
    """Labels of a Kafka topic, JSON objects, heard as they come.

    Parameters
    ----------
    settings : `labels_topic`, `event_types`, and the `kafka_*` settings of the connection
    """

    setting = "labels_topic"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.model_copy(update={"control_topic": settings.labels_topic}))
        self._types = settings.event_types

    def _read_message(self, raw: bytes, at: int, partition: int) -> dict[str, Any] | Fault | None:
        """As of the control topic."""
        return read_label(raw, at, partition, self._types)
