"""What a flow does that Bytewax's own command starts."""

from __future__ import annotations

from datetime import timedelta
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

from dataflows.detect import build
from dataflows.entry import epoch_a_round
from features.errors import ConfigError


def command(seconds: int, recovery: Any = None, name: str = "bytewax.run") -> ModuleType:
    """A `__main__` as `python -m bytewax.run` has it while it calls `build`."""
    main = ModuleType("__main__")
    main.__spec__ = ModuleSpec(name, None)
    main.__dict__["kwargs"] = {
        "epoch_interval": timedelta(seconds=seconds),
        "recovery_config": recovery,
    }
    return main


def interval_s(main: ModuleType) -> float:
    """The epoch interval its `cli_main` would get."""
    return float(main.__dict__["kwargs"]["epoch_interval"].total_seconds())


def test_no_interval_means_an_epoch_a_round(capsys: pytest.CaptureFixture[str]) -> None:
    main = command(10)  # what bytewax.run makes of `-s 0` as well
    epoch_a_round(main)
    assert interval_s(main) == 0 and capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "recovery"), [(3, None), (10, "a recovery store")])
def test_an_interval_somebody_asked_for_stays_and_what_it_does_is_said(
    seconds: int, recovery: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    main = command(seconds, recovery)
    epoch_a_round(main)
    assert interval_s(main) == seconds
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "start with -s 0" in said and f"{seconds} s late" in said


def test_other_programs_keep_their_arguments_and_their_exceptions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = command(10, name="somebody.else")
    epoch_a_round(main)
    assert interval_s(main) == 10 and capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match="does not exist"):
        build("gone.toml")
