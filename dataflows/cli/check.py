"""`waxwing check`: every setting with its value, source and meaning; or all faults at once.

It starts nothing: a settings file can be checked on a machine that has neither broker nor bundle.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from dataflows.settings import Settings

__all__ = ["add_parser", "markdown", "missing_files", "run", "sections"]

_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    from dataflows.cli.run import settings_arguments

    parser = subparsers.add_parser(
        "check", help="print every setting, or all faults at once", description=__doc__
    )
    settings_arguments(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", metavar="P", help="write the settings as JSON; - is stdout")
    how.add_argument(
        "--markdown", action="store_true", help="print the reference page docs/settings.md"
    )


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.cli.run import overrides_of
    from dataflows.settings import load, sources_of
    from features.errors import ConfigError

    if args.markdown:
        sys.stdout.write(markdown())
        return 0
    overrides = overrides_of(args)
    settings = load(args.config, **overrides)
    faults = missing_files(settings)
    if faults:
        raise ConfigError(faults)
    sources = sources_of(args.config, **overrides)
    if args.json is not None:
        from dataflows.report import write_json

        write_json(args.json, _as_json(settings, sources))
    else:
        sys.stdout.write(_as_text(settings, sources, sys.stdout.isatty()))
    return 0


def missing_files(settings: Settings) -> list[str]:
    """A fault for each file that the settings name and that is not there; of rates, all faults."""
    from dataflows.currencies import rate_faults

    named: dict[str, Path] = {f"file_paths.{k}": path for k, path in settings.file_paths.items()}
    if settings.voting is not None:
        named["voting"] = settings.voting
    if settings.source != "file":
        named = {name: path for name, path in named.items() if not name.startswith("file_paths")}
    return rate_faults(settings) + [
        f"{name}: file {str(path)!r} does not exist (looked in {Path.cwd()})"
        for name, path in named.items()
        if not path.exists()
    ]


def sections() -> dict[str, list[str]]:
    """Heading -> names of its settings, from the table's own source, so that it is written once."""
    from dataflows.settings import Settings

    found: dict[str, list[str]] = {}
    heading = ""
    for line in inspect.getsource(Settings).splitlines():
        text = line.strip()
        if text.startswith("# -- "):
            heading = text.strip("# -")
        name = text.partition(":")[0]
        if line.startswith("    ") and name in Settings.model_fields:
            found.setdefault(heading, []).append(name)
    return found


def _as_text(settings: Settings, sources: dict[str, str], colour: bool) -> str:
    """Two lines a setting: name, value and source; what it means. What is chosen of features."""
    from dataflows.settings import Settings, shown
    from features.catalog import chosen

    bold, dim, plain = (_BOLD, _DIM, _PLAIN) if colour else ("", "", "")
    lines = []
    for heading, names in sections().items():
        lines += ["", f"# {heading}"]
        for name in names:
            value = shown(name, getattr(settings, name))
            lines.append(f"{bold}{name}{plain} = {value}  {dim}[{sources[name]}]{plain}")
            lines.append(f"    {Settings.model_fields[name].description}")
    set_by = sum(source != "default" for source in sources.values())
    if (taken := chosen()) is not None:
        lines += ["", f"features: {taken.counts()}; `waxwing features list` names them"]
    lines += ["", f"{len(sources)} settings, {set_by} set, the rest default; no faults"]
    return "\n".join(lines[1:]) + "\n"


def _as_json(settings: Settings, sources: dict[str, str]) -> dict[str, Any]:
    """The same as data; secrets are masked here too."""
    from dataflows.settings import Settings, shown

    return {
        "settings": {
            name: {
                "value": shown(name, getattr(settings, name)),
                "source": source,
                "help": Settings.model_fields[name].description,
            }
            for name, source in sources.items()
        }
    }


def _type_words(annotation: Any) -> str:
    """A setting's type as a reader of TOML would say it."""
    if annotation is None or annotation is type(None):
        return "none"
    words = {"int": "integer", "float": "number", "str": "text", "bool": "true or false"}
    words |= {"Path": "path", "SecretStr": "secret text"}
    origin, parts = getattr(annotation, "__origin__", None), get_args(annotation)
    if origin is list:
        return f"list of {_type_words(parts[0])}"
    if origin is dict:
        return f"table of {_type_words(parts[1])}"
    if parts and all(isinstance(part, str) for part in parts):
        return ", ".join(f"`{part}`" for part in parts)
    if parts:
        return " or ".join(_type_words(part) for part in parts)
    return words.get(annotation.__name__, str(annotation.__name__))


def _limits(name: str) -> str:
    """The range of a setting in words, empty where it has none."""
    from dataflows.settings import Settings

    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    metadata = Settings.model_fields[name].metadata
    found = ((sign, getattr(m, attribute, None)) for m in metadata for attribute, sign in signs)
    said = [f"{sign} {limit}" for sign, limit in found if limit is not None]
    return f" ({', '.join(said)})" if said else ""


def markdown() -> str:
    """The reference page of all settings, docs/settings.md."""
    from dataflows.settings import NOT_SETTINGS, PREFIX, Settings, shown

    lines = [
        "# Settings",
        "",
        "<!-- Written by `waxwing check --markdown > docs/settings.md`; a test keeps it fresh. -->",
        "",
        "Each setting is a key of the TOML file given with `--config`, a variable with the prefix",
        f"`{PREFIX}` (`round_ms` is `{PREFIX}ROUND_MS`), or `--set NAME=VALUE`. The command line",
        "wins over the variable, the variable over the file, the file over the default. Lists and",
        "tables are written as in TOML, words with commas will do: `WAXWING_ALERTS=jsonl,kafka`.",
        "A variable with `_FILE` at its end names a file that holds the value, as for secrets:",
        f"`{PREFIX}REDIS_URL_FILE=/run/secrets/redis`; the variable without it wins over the file.",
        "`waxwing check --config FILE` prints all of them with where each value comes from.",
    ]
    for heading, names in sections().items():
        lines += ["", f"## {heading[0].upper()}{heading[1:]}", ""]
        lines += ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
        for name in names:
            field = Settings.model_fields[name]
            default = shown(name, field.default).replace("|", "\\|") or "empty"
            lines.append(
                f"| `{name}` | {_type_words(field.annotation)}{_limits(name)} | `{default}`"
                f" | {field.description} |"
            )
    lines += [
        "",
        "## Variables that are no settings",
        "",
        *(f"- `{name}`" for name in sorted(NOT_SETTINGS)),
        "",
        "They speak to the tests: the first makes a skipped service test fail, the second names",
        "the folder of the data sets that are not ours to copy.",
    ]
    return "\n".join(lines) + "\n"
