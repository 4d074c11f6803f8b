"""The committed Avro schemas are those of the declarations, and follow the ones before them."""

from __future__ import annotations

import copy
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pytest
from fastavro.schema import SchemaParseException

from dataflows.cli.main import main
from dataflows.cli.schemas import schema_text
from features.event_reference import event_page
from features.events import event_types
from features.events.avro import avro_schema, incompatibilities

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "schemas"

Change = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize("name", event_types())
def test_the_committed_schema_is_the_one_of_the_declaration(name: str) -> None:
    path = FOLDER / f"{name}.avsc"
    assert path.exists(), f"write {path.relative_to(ROOT)} with: waxwing schemas"
    assert path.read_text(encoding="utf-8") == schema_text(name), "write it: waxwing schemas"


def test_no_schema_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.avsc")} == set(event_types())


def released(name: str) -> list[dict[str, Any]]:
    """Every version of a schema that was ever committed; the one on disk where there is no git."""
    path = f"deploy/schemas/{name}.avsc"

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout if done.returncode == 0 else ""

    commits = git("log", "--format=%H", "--", path).split()
    texts = [text for commit in commits if (text := git("show", f"{commit}:{path}"))]
    return [json.loads(t) for t in texts or [(ROOT / path).read_text(encoding="utf-8")]]


@pytest.mark.parametrize("name", event_types())
def test_records_of_every_released_schema_can_still_be_read(name: str) -> None:
    for before in released(name):
        assert incompatibilities(avro_schema(name), before) == []


@pytest.mark.parametrize("name", event_types())
def test_the_reference_accepts_the_schema(name: str) -> None:
    fastavro.parse_schema(avro_schema(name))


def _field(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """A field of a schema."""
    (found,) = [f for f in schema["fields"] if f["name"] == name]
    return found


def _set(which: str, **changes: Any) -> Change:
    """A change of one field."""
    return lambda schema: _field(schema, which).update(changes)


def _add(**field: Any) -> Change:
    """A further field."""
    return lambda schema: schema["fields"].append(field)


def _drop(name: str) -> Change:
    """A field less."""
    return lambda schema: schema["fields"].remove(_field(schema, name))


def _words(*symbols: str) -> Change:
    """Other words of the channel."""
    return lambda schema: _field(schema, "channel")["type"].update(symbols=list(symbols))


CHANNELS = ("pos", "online", "atm", "transfer", "other")

COMPATIBLE: dict[str, Change] = {
    "nothing": lambda schema: None,
    "a new field with default": _add(name="x", type="string", default=""),
    "a new field that may be null": _add(name="x", type=["null", "long"], default=None),
    "a field taken away": _drop("category"),
    "a field made nullable": _set("card_id", type=["null", "string"], default=None),
    "another order": lambda schema: schema["fields"].reverse(),
    "a new word": _words(*CHANNELS, "crypto"),
    "text as bytes": _set("card_id", type="bytes"),
    "a long as double": _set("time_us", type="double"),
}

INCOMPATIBLE: dict[str, tuple[Change, str]] = {
    "a new field without default": (_add(name="x", type="string"), "field 'x': new"),
    "a field renamed": (_set("amount", name="sum"), "field 'sum': new"),
    "a number as text": (_set("amount", type="string"), "double, which cannot be read as string"),
    "a double as long": (_set("amount", type="long"), "double, which cannot be read as long"),
    "text as a word": (
        _set("currency", type={"type": "enum", "name": "c", "symbols": ["EUR"]}),
        "string, which cannot be read as enum",
    ),
    "null no more": (_set("device_id", type="string"), "null, which cannot be read as string"),
    "a word less": (_words("pos", "online", "atm", "other"), "transfer; keep these words"),
    "a flag as number": (_set("declined", type="long"), "boolean, which cannot be read as long"),
}


def changed(change: Change) -> dict[str, Any]:
    """The payment schema after a change."""
    schema = copy.deepcopy(avro_schema("payment"))
    change(schema)
    return schema


PAYMENT: dict[str, Any] = {
    "event_id": "e", "time_us": 5, "card_id": "c", "user_id": "u", "merchant_id": "m",
    "device_id": None, "ip": None, "amount": 1.5, "currency": "CHF", "category": "x",
    "channel": "transfer", "country": None, "latitude": None, "longitude": None, "declined": True,
}  # fmt: skip


def read_by_reference(reader: dict[str, Any]) -> Any:
    """What fastavro makes of a payment of today's schema when it is read with another."""
    today = fastavro.parse_schema(avro_schema("payment"))
    out = io.BytesIO()
    fastavro.schemaless_writer(out, today, PAYMENT)
    out.seek(0)
    return fastavro.schemaless_reader(out, today, fastavro.parse_schema(reader))


@pytest.mark.parametrize("what", COMPATIBLE)
def test_a_compatible_change_is_allowed_and_the_reference_reads_on(what: str) -> None:
    schema = changed(COMPATIBLE[what])
    assert incompatibilities(schema, avro_schema("payment")) == []
    read = read_by_reference(schema)
    assert set(read) == {f["name"] for f in schema["fields"]}


@pytest.mark.parametrize("what", INCOMPATIBLE)
def test_an_incompatible_change_is_refused_and_the_reference_cannot_read(what: str) -> None:
    change, said = INCOMPATIBLE[what]
    schema = changed(change)
    (fault,) = incompatibilities(schema, avro_schema("payment"))
    assert said in fault
    with pytest.raises((fastavro.read.SchemaResolutionError, SchemaParseException, ValueError)):
        read_by_reference(schema)


def test_the_command_refuses_what_older_records_cannot_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schemas", "--out", str(tmp_path)]) == 0
    path = tmp_path / "payment.avsc"
    path.write_text(json.dumps(changed(_set("amount", type="string"))), encoding="utf-8")
    assert main(["schemas", "--out", str(tmp_path)]) == 2
    assert "'amount': older records hold string" in capsys.readouterr().err
    assert main(["schemas", "--out", str(tmp_path), "--force"]) == 0
    assert path.read_text(encoding="utf-8") == schema_text("payment")
    path.write_text("{", encoding="utf-8")
    assert main(["schemas", "--out", str(tmp_path)]) == 2
    assert "use --force" in capsys.readouterr().err


def test_the_reference_page_is_fresh() -> None:
    page = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    assert page == event_page(), (
        "write it again: python -m features.event_reference > docs/events.md"
    )
