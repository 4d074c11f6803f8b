"""Declarations of features, one module a topic; a new feature goes into one of them or a new one.

Every module beside this one has `FEATURES`, a tuple of `features.spec.Feature`.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["WINDOWS"]

WINDOWS: Mapping[str, int] = {"1m": 60, "5m": 300, "1h": 3600}
"""The windows of the issue, label -> seconds."""
