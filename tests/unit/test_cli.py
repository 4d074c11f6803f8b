"""The command line: found by file name, quick to help, one line a fault, honest exit statuses."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import dataflows.cli
from dataflows.cli.main import command_names, main, parser
from features.errors import ConfigError, SourceError

COMMANDS = Path(dataflows.cli.__path__[0])

HEAVY = ("torch", "sklearn", "lightgbm", "numba", "polars", "pandas", "bytewax", "feast", "redis")
"""What no `--help` may import: each costs between 0.3 and 4 s."""


def module_of(command: str):
    return importlib.import_module(f"dataflows.cli.{command.replace('-', '_')}")


def test_every_file_of_the_folder_is_a_command_and_nothing_else_is() -> None:
    files = {p.stem for p in COMMANDS.glob("*.py") if p.stem != "main" and p.stem[0] != "_"}
    assert {name.replace("-", "_") for name in command_names()} == files


@pytest.mark.parametrize("command", command_names())
def test_command_declares_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = module_of(command)
    assert callable(module.add_parser) and callable(module.run)
    assert set(module.__all__) >= {"add_parser", "run"}
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: waxwing {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", command_names())
def test_command_has_one_line_of_help_in_the_list(command: str) -> None:
    top = parser()
    (choices,) = [a for a in top._actions if isinstance(a, argparse._SubParsersAction)]
    helps = {choice.dest: choice.help for choice in choices._choices_actions}
    assert helps[command] and len(helps[command]) <= 60


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from dataflows.cli.main import parser\n"
        "parser().format_help()\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_command_prints_help_and_is_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(name in out for name in command_names())


def test_unknown_command_lists_all_and_suggests_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["chek"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "'chek'" in err and "did you mean 'check'" in err
    assert all(name in err for name in command_names())


def test_bad_option_exits_2_and_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", "--confg", "x"])
    assert ended.value.code == 2
    assert "--confg" in capsys.readouterr().err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Let `waxwing check` raise what the test says."""

    def fail_with(error: BaseException) -> None:
        def run(args: argparse.Namespace) -> int:
            raise error

        monkeypatch.setattr(module_of("check"), "run", run)

    return fail_with


def test_each_fault_is_one_line_without_traceback(
    failing, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(ConfigError(["the first\nis long", "the \x1bc second"]))
    assert main(["check"]) == 2
    assert capsys.readouterr().err == "waxwing: the first is long\nwaxwing: the \\x1bc second\n"


def test_unreachable_world_is_a_fault_too(failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(SourceError("no broker at localhost:1; is it up?"))
    assert main(["check"]) == 2
    assert capsys.readouterr().err == "waxwing: no broker at localhost:1; is it up?\n"


def test_a_bug_keeps_its_traceback(failing) -> None:
    failing(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["check"])


def test_interrupt_exits_130_in_one_line(failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(KeyboardInterrupt())
    assert main(["check"]) == 130
    assert capsys.readouterr().err == "waxwing: interrupted\n"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    code = (
        "import sys\n"
        "from dataflows.cli.main import main\n"
        "sys.stdin.readline()\n"
        "sys.exit(main(['check']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=120) == 141


def test_installed_script_and_module_are_the_same_program() -> None:
    script = Path(sys.executable).with_name("waxwing")
    by_script = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    by_module = subprocess.run(
        [sys.executable, "-m", "dataflows.cli.main", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert by_script.stdout == by_module.stdout
    assert by_script.stdout.startswith("waxwing 0.")


@pytest.mark.parametrize(
    "words",
    ["demo", "run", "evaluate", "train", "bench pipeline", "bench models", "backfill --data x"],
)
def test_a_report_that_cannot_be_written_stops_a_command_before_its_work(
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words.split(), "--json", "none/out.json"]) == 2
    (fault,) = capsys.readouterr().err.splitlines()
    assert "--json none/out.json: cannot be written" in fault
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_a_page_that_cannot_be_written_stops_a_command_before_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page").mkdir()
    assert main(["explain", "0" * 32, "--html", "page"]) == 2
    (fault,) = capsys.readouterr().err.splitlines()
    assert "--html page: cannot be written" in fault


@pytest.mark.parametrize(
    "words",
    [
        "score --data payment=data.csv --bundle none --out data.csv",
        "score --data payment=data.csv --bundle none --out out.csv --html data.csv",
        "score --data data.csv --mapping fraud-handbook --bundle none --out o.csv --json data.csv",
        "evaluate --data payment=data.csv --html data.csv",
        "evaluate --data payment=none.csv --labels data.csv --json data.csv",
        "evaluate --data payment=data.csv --fit-voting data.csv",
        "train --data payment=data.csv --json data.csv",
        "train --data . --html labels.csv",
        "model compare none --data payment=data.csv --html data.csv",
        "mapping guess data.csv --out data.csv",
    ],
)
def test_no_command_writes_over_what_it_reads(
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data.csv", "labels.csv", "payment.csv"):
        (tmp_path / name).write_text("event_id\np-1\n")
    assert main(words.split()) == 2
    assert "would write over" in capsys.readouterr().err
    assert {path.read_text() for path in tmp_path.iterdir()} == {"event_id\np-1\n"}
