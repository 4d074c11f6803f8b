"""What the state of each entity type takes, by the catalogue: the table in docs/state.md.

Bytes are those of the arrays themselves, read off an empty state; how full arrays and blocks are is
said beside the table.
"""

from __future__ import annotations

from dataclasses import dataclass

from features.catalog import Catalog
from features.plan import plan_of
from features.state import EntityState

__all__ = ["Memory", "memory_of", "memory_table"]


@dataclass(frozen=True, slots=True)
class Memory:
    """What one entity type takes.

    Parameters
    ----------
    entity : its name
    fixed : bytes an entity, whatever it does
    records : of each ring: longest window in s, bytes of an event in it, pairs it looks after
    """

    entity: str
    fixed: int
    records: tuple[tuple[int, int, int], ...]


def memory_of(catalog: Catalog) -> list[Memory]:
    """What each entity type of a catalogue takes, in the plan's order."""
    found = []
    for name, plan in plan_of(catalog).entities.items():
        state = EntityState(plan)
        records = tuple(
            (
                int(ring.ring.windows_us.max()) // 1_000_000,
                8 * ring.ring.record_words,
                len(ring.ring.others),
            )
            for ring in state.rings
        )
        found.append(Memory(name, state.slot_bytes, records))
    return found


def memory_table(catalog: Catalog) -> str:
    """The table of docs/state.md, Markdown.

    Examples
    --------
    >>> from features.catalog import catalog
    >>> memory_table(catalog()).splitlines()[0]
    '| entity | bytes an entity | bytes an event within a window | tables of pairs |'
    """
    lines = [
        "| entity | bytes an entity | bytes an event within a window | tables of pairs |",
        "| --- | --- | --- | --- |",
    ]
    for one in memory_of(catalog):
        records = ", ".join(f"{size} for {_length(window)}" for window, size, _ in one.records)
        pairs = sum(pairs for _, _, pairs in one.records)
        lines.append(f"| `{one.entity}` | {one.fixed:,} | {records or '-'} | {pairs} |")
    return "\n".join(lines) + "\n"


def _length(window_s: int) -> str:
    """A window's length for a reader."""
    return f"{window_s // 3600} h" if window_s % 3600 == 0 else f"{window_s // 60} min"
