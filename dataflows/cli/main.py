"""The command line: `waxwing COMMAND`, each command a file of `dataflows/cli` found by its name.

A command is a module with `add_parser(subparsers)` and `run(args) -> int`. It does its heavy
imports in `run`, so that `waxwing --help` answers at once. What waxwing raises on purpose is one
sentence a fault on stderr and exit status 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import dataflows.cli
from dataflows.entry import EXIT_FAULT, faults_of, tell_warnings
from dataflows.report import check_json
from features.errors import ConfigError, WaxwingError

__all__ = ["command_names", "main", "parser"]

EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells report it: 128 + SIGINT."""

EXIT_CLOSED_PIPE = 141
"""The reader of our output went away, as shells report it: 128 + SIGPIPE."""


def command_names() -> tuple[str, ...]:
    """Names of all commands, sorted: the modules of this package that declare a parser."""
    return tuple(
        sorted(
            m.name.replace("_", "-")
            for m in pkgutil.iter_modules(dataflows.cli.__path__)
            if m.name != "main" and not m.name.startswith("_")
        )
    )


def _module(command: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"dataflows.cli.{command.replace('-', '_')}")


def _version() -> str:
    """The installed version, or a word for a tree that is not installed."""
    try:
        return version("waxwing")
    except PackageNotFoundError:
        return "not installed"


def parser(commands: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of `commands`, of all where none are named."""
    top = argparse.ArgumentParser(
        prog="waxwing",
        description="Real-time anomaly detection on event streams.",
        epilog="`waxwing COMMAND --help` says more; `waxwing check` prints every setting.",
    )
    top.add_argument("--version", action="version", version=f"waxwing {_version()}")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in command_names() if commands is None else commands:
        _module(name).add_parser(subparsers)
    return top


def _unknown_command(name: str) -> str:
    """The fault for a command that does not exist, with the nearest and all that do."""
    near = difflib.get_close_matches(name, command_names(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown command {name!r}{hint} (commands: {', '.join(command_names())})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; 2 for a fault, one line each on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    tell_warnings()
    try:
        if command and not command.startswith("-"):
            if command not in command_names():
                raise ConfigError(_unknown_command(command))
            args = parser([command]).parse_args(arguments)
        else:
            top = parser()
            args = top.parse_args(arguments)
            if args.command is None:
                top.print_help()
                return EXIT_FAULT
        check_json(getattr(args, "json", None))
        status = _module(args.command).run(args)
        sys.stdout.flush()
        return int(status)
    except WaxwingError as error:
        for fault in faults_of(error):
            print(f"waxwing: {fault}", file=sys.stderr)
        return EXIT_FAULT
    except KeyboardInterrupt:
        print("waxwing: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Without this the interpreter complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE


if __name__ == "__main__":
    sys.exit(main())
