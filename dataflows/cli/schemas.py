"""`waxwing schemas`: write the Avro schemas of the event types, from their declarations.

A schema by which older records could not be read any more is refused: they still lie in the topics.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run", "schema_text"]


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "schemas", help="write the Avro schemas of the event types", description=__doc__
    )
    settings_arguments(parser)
    parser.add_argument(
        "--out", metavar="DIR", default="deploy/schemas", help="folder (default: deploy/schemas)"
    )
    parser.add_argument(
        "--force", action="store_true", help="write schemas that cannot read older records, too"
    )


def schema_text(event_type_name: str) -> str:
    """The file of an event type's schema."""
    from features.events.avro import avro_schema

    return json.dumps(avro_schema(event_type_name), indent=2, ensure_ascii=False) + "\n"


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.cli.run import overrides_of
    from dataflows.settings import load
    from features.errors import ConfigError
    from features.events import event_types
    from features.events.avro import avro_schema, incompatibilities

    load(args.config, **overrides_of(args))
    folder = Path(args.out)
    paths = {name: folder / f"{name}.avsc" for name in event_types()}
    faults: list[str] = []
    for name, path in paths.items():
        if not path.exists() or args.force:
            continue
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            faults += [f"{path}: {f}" for f in incompatibilities(avro_schema(name), before)]
        except (ValueError, KeyError, TypeError, AttributeError):
            faults.append(f"{path}: is no Avro record schema; take it away, or use --force")
    if faults:
        raise ConfigError(faults)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in paths.items():
            path.write_text(schema_text(name), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written: {error.strerror}") from None
    print(f"waxwing: {len(paths)} schemas in {folder}")
    return 0
