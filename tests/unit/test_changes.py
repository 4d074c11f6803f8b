"""Which of the changes that a bench has asked for came into force in a round."""

from __future__ import annotations

from typing import Any

import pytest

from dataflows.control.records import Control
from dataflows.observe.changes import Change, heard

RECORDS: list[dict[str, Any]] = [
    {"kind": "bundle", "bundle": "b" * 16, "stage": "shadow", "path": "b", "id": "1"},
    {"kind": "bundle", "bundle": "b" * 16, "stage": "live", "path": "b", "id": "2"},
    {"kind": "rollback", "id": "3"},
]


def asked(*which: int) -> list[Change]:
    """Changes that wait, by their places in RECORDS."""
    return [Change(str(i), RECORDS[i], 0.0) for i in which]


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("more", range(4))
def test_all_changes_of_a_round_are_in_force_from_it_on(first: int, more: int) -> None:
    before = Control.of(RECORDS[:first])
    now = before
    for record in RECORDS[first : first + more]:
        now = now.apply(record)
    found = heard(asked(*range(first, 3)), before, now)
    assert found == len(RECORDS[first : first + more])


def test_what_nobody_asked_for_here_marks_nothing() -> None:
    before = Control.of(RECORDS[:2])
    other = before.apply({"kind": "bundle", "bundle": "c" * 16, "stage": "live", "id": "9"})
    assert heard(asked(2), before, other) == 0
