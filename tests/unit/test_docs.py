"""The pages say what is there: links lead somewhere, named files and commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dataflows.cli.main import command_names

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.fixture(params=PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_links_of_the_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    inside = [link for link in links if not link.startswith(("http:", "https:"))]
    assert [link for link in inside if not (page.parent / link).exists()] == []


def test_commands_of_the_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = set(re.findall(r"(?:^|bin/|`)waxwing ([a-z][a-z-]*)", text, flags=re.MULTILINE))
    assert sorted(commands - set(command_names())) == []


def test_modules_of_the_page_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    text = re.sub(r"<!-- file: .* -->", "", text)
    named = re.findall(r"`((?:features|models|dataflows|tests|deploy|docs)/[a-z_/.]+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
