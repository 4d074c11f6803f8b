"""How well silences are found where it is known who was silenced: recall, delay, false alarms.

An absence only exists once somebody is overdue, so the share of flagged absences says little. What
counts is the silence: whether any alert told of it, and how long after it had begun, in event time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

__all__ = ["SilenceTally"]

DAY_US = 86_400_000_000


class SilenceTally:
    """Absences counted as they come, by who was silent."""

    def __init__(self) -> None:
        self._absences = self._alerts = self._genuine = self._wrong = 0
        self._noticed: dict[tuple[str, str], list[int]] = {}
        self._told: dict[tuple[str, str], list[int]] = {}

    def add(
        self, frame: pl.DataFrame, truth: npt.NDArray[np.int16], flagged: npt.NDArray[np.bool_]
    ) -> None:
        """Take in absences.

        Parameters
        ----------
        frame : (n,) the declared fields
        truth : int16 (n,), code of the attack that silenced the entity, 0 for none
        flagged : bool (n,), those that became alerts
        """
        self._absences += len(frame)
        self._alerts += int(flagged.sum())
        self._genuine += int(np.count_nonzero(truth == 0))
        self._wrong += int(np.count_nonzero(flagged & (truth == 0)))
        odd = np.flatnonzero(truth > 0)
        keys = list(zip(frame["entity_type"], frame["entity"], strict=True))
        due_us = frame["time_us"].to_list()
        for i in odd.tolist():
            self._noticed.setdefault(keys[i], []).append(due_us[i])
            if flagged[i]:
                self._told.setdefault(keys[i], []).append(due_us[i])

    def report(self, silences: pl.DataFrame, from_us: int, until_us: int) -> dict[str, Any]:
        """The section `silence` of a report.

        Parameters
        ----------
        silences : attack, campaign, entity_type, entity, start_us, end_us: who was silenced
        from_us, until_us : event time looked at; silences that begin before or are not over count
            only where they were found
        """
        days = max(until_us - from_us, 1) / DAY_US
        found: dict[str, Any] = {
            "absences": self._absences,
            "alerts": self._alerts,
            "genuine": self._genuine,
            "false_alarms": self._wrong,
            "false_alarms_a_day": self._wrong / days,
            "by_attack": {},
        }
        rows = [
            row
            | {"noticed_s": self._first(self._noticed, row), "told_s": self._first(self._told, row)}
            for row in silences.iter_rows(named=True)
        ]
        for attack in dict.fromkeys(row["attack"] for row in rows):
            mine = [
                row
                for row in rows
                if row["attack"] == attack
                and (
                    (from_us <= row["start_us"] and row["end_us"] <= until_us)
                    or row["told_s"] is not None
                )
            ]
            if mine:
                found["by_attack"][attack] = _of_attack(mine)
        return found

    @staticmethod
    def _first(times: dict[tuple[str, str], list[int]], row: dict[str, Any]) -> float | None:
        """Time from the beginning of a silence to the first of some absences in it, s."""
        due_us = times.get((row["entity_type"], row["entity"]), ())
        # What was due shortly after the end belongs to it: the entity had not spoken yet.
        slack_us = (row["end_us"] - row["start_us"]) // 2
        inside = [t for t in due_us if row["start_us"] <= t < row["end_us"] + slack_us]
        return (min(inside) - row["start_us"]) / 1e6 if inside else None


def _of_attack(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Recall and delay over the campaigns of an attack and over the entities it silenced."""
    campaigns: dict[str, float | None] = {}
    for row in rows:
        delays = [d for d in (campaigns.get(row["campaign"]), row["told_s"]) if d is not None]
        campaigns[row["campaign"]] = min(delays, default=None)
    delays = [delay for delay in campaigns.values() if delay is not None]
    return {
        "campaigns": len(campaigns),
        "recall": len(delays) / len(campaigns),
        "delay_s_p50": float(np.median(delays)) if delays else None,
        "delay_s_max": max(delays, default=None),
        "entities": len(rows),
        "entity_noticed": sum(row["noticed_s"] is not None for row in rows) / len(rows),
        "entity_recall": sum(row["told_s"] is not None for row in rows) / len(rows),
    }
