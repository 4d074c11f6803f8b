"""The table of what state takes is that of the catalogue, and holds."""

from __future__ import annotations

from pathlib import Path

from features.catalog import catalog
from features.engine import GroupEngine, split
from features.memory import memory_of, memory_table
from tests.streams import START_US, make_batch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "state.md"


def test_the_page_has_the_table_of_the_catalogue() -> None:
    table = memory_table(catalog())
    assert table in PAGE.read_text(encoding="utf-8"), f"docs/state.md: put in\n{table}"


def test_every_entity_type_of_the_catalogue_is_named_once() -> None:
    names = [one.entity for one in memory_of(catalog())]
    assert names == list(GroupEngine(catalog(), 0).entities)


def test_a_group_takes_what_the_formula_says() -> None:
    """4,000 cards with two payments each: arrays, blocks of four records, pairs of merchants."""
    engine = GroupEngine(catalog(), 0, late_s=0.0)
    empty = engine.memory["card"]
    rows = [
        {
            "event_id": f"{i}",
            "card_id": f"c{i % 4000}",
            "user_id": "u",
            "merchant_id": "m",
            "device_id": "d",
            "time_us": START_US + i,
        }
        for i in range(8_000)
    ]
    engine.process(split(catalog(), {"payment": make_batch("payment", rows)}, 1)[0])
    card = memory_of(catalog())[0]
    assert card.entity == "card"
    records = sum(4 * size for _, size, _ in card.records)
    pairs = sum(pairs for _, _, pairs in card.records)
    least = 4_000 * (card.fixed + records)
    assert least < engine.memory["card"] - empty < 1.3 * (least + 4_000 * 60) + 4_000 * 38 * pairs
