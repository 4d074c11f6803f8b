"""What a flow does that `python -m bytewax.run` starts: faults as sentences, an epoch a round.

Bytewax's own command prints a traceback for whatever `build` raises, and knows no epochs shorter
than a second: its `-s 0` counts as not given and means ten. Here is the one place that knows so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from types import ModuleType
from typing import NoReturn, TextIO

from features.errors import ConfigError, WaxwingError

__all__ = [
    "EXIT_FAULT",
    "end_with",
    "epoch_a_round",
    "faults_of",
    "started_by_bytewax",
    "tell_warnings",
    "told_as_sentences",
]

EXIT_FAULT = 2
"""Bad configuration, input or surroundings; the same status argparse gives for bad options."""


def faults_of(error: WaxwingError) -> tuple[str, ...]:
    """Each fault of an error as one line, which a terminal can show and not obey."""
    from dataflows.alerts.base import printable  # `waxwing --help` stays quick

    texts = error.faults if isinstance(error, ConfigError) else (str(error),)
    return tuple(printable(" ".join(text.split())) or type(error).__name__ for text in texts)


def started_by_bytewax(main: ModuleType | None) -> bool:
    """Whether the program is `python -m bytewax.run`, and not one that imported us."""
    spec = getattr(main, "__spec__", None)
    return getattr(spec, "name", None) in ("bytewax.run", "bytewax.testing")


class _ToStderr(logging.StreamHandler[TextIO]):
    """Warnings as sentences on whatever stderr is at the moment."""

    @property
    def stream(self) -> TextIO:
        """Where they go."""
        return sys.stderr

    @stream.setter
    def stream(self, _stream: TextIO) -> None:
        """Never kept: a test or a live view may put another in its place."""


def tell_warnings() -> None:
    """Let warnings of our modules begin with `waxwing: ` like everything we say; once a process."""
    logger = logging.getLogger("dataflows")
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        handler = _ToStderr()
        handler.setLevel(logging.WARNING)
        handler.setFormatter(logging.Formatter("waxwing: %(message)s"))
        logger.addHandler(handler)


@contextlib.contextmanager
def told_as_sentences() -> Iterator[None]:
    """End a program that is Bytewax's command with a sentence a fault; elsewhere let them pass."""
    if started_by_bytewax(sys.modules.get("__main__")):
        tell_warnings()
    try:
        yield
    except WaxwingError as error:
        if not started_by_bytewax(sys.modules.get("__main__")):
            raise
        _print_faults(error)
        raise SystemExit(EXIT_FAULT) from None


def _print_faults(error: WaxwingError) -> None:
    """A sentence each."""
    for fault in faults_of(error):
        print(f"waxwing: {fault}", file=sys.stderr, flush=True)


def end_with(error: WaxwingError) -> NoReturn:
    """End the process at once with a fault that a step met: Bytewax would make a panic of it.

    Nothing is closed, as after a crash; the other processes of a cluster end with this one.
    """
    _print_faults(error)
    os._exit(EXIT_FAULT)


def epoch_a_round(main: ModuleType | None = None) -> None:
    """Let Bytewax's command close an epoch with each round, where nothing else was asked for.

    `bytewax.run` 0.21.1 keeps the arguments of its `cli_main` in a global `kwargs` while it calls
    `build`. An interval of whole seconds that somebody asked for stays, and what it does is said.
    """
    main = sys.modules.get("__main__") if main is None else main
    given = getattr(main, "kwargs", None)
    if not started_by_bytewax(main) or not isinstance(given, dict):
        return
    interval = given.get("epoch_interval")
    if not isinstance(interval, timedelta) or not interval:
        return
    recovers = given.get("recovery_config") is not None
    if not recovers and interval == timedelta(seconds=10):  # `-s 0`, or no -s
        given["epoch_interval"] = timedelta(0)
        return
    print(
        f"waxwing: start with -s 0 (an epoch is a round): with {interval.total_seconds():g} s,"
        f" alerts come up to {interval.total_seconds():g} s late where lanes or processes wait for"
        " each other",
        file=sys.stderr,
    )
