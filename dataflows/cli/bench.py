"""`waxwing bench NAME`: how fast this machine is at one thing; each bench is a file of its own."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from typing import Any

import dataflows.bench

__all__ = ["add_parser", "bench_names", "run"]


def bench_names() -> tuple[str, ...]:
    """Names of all benches, sorted: the modules of `dataflows/bench`."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(dataflows.bench.__path__)))


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("bench", help="measure speed", description=__doc__)
    names = parser.add_subparsers(dest="bench", required=True, metavar="NAME")
    for name in bench_names():
        importlib.import_module(f"dataflows.bench.{name}").add_parser(names)


def run(args: argparse.Namespace) -> int:
    """Run it."""
    return int(importlib.import_module(f"dataflows.bench.{args.bench}").run(args))
