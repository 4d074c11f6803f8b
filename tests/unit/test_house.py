"""What the Makefile, the install script and CI claim, with stand-ins for the heavy programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def call(
    *command: str | Path, cwd: Path = ROOT, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a command; the variables of an outer make or CI run do not leak into it."""
    kept: Mapping[str, str] = {
        k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "WAXWING_"))
    }
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, **environ},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def targets() -> dict[str, str]:
    """Target -> its line of help."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z]+):.*## (.+)$", text, flags=re.MULTILINE))


def test_make_alone_lists_every_target() -> None:
    done = call("make")
    assert done.returncode == 0
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(targets())
    assert set(targets()) >= {"install", "demo", "test", "lint", "format", "clean", "bench"}


def test_every_target_stands_in_contributing_or_readme() -> None:
    pages = "".join(
        (ROOT / n).read_text(encoding="utf-8") for n in ("README.md", "CONTRIBUTING.md")
    )
    assert [target for target in targets() if f"make {target}" not in pages] == []


def test_demo_and_test_install_first(tmp_path: Path) -> None:
    for target in ("demo", "test", "lint", "bench"):
        done = call("make", "--dry-run", target, f"VENV={tmp_path / 'none'}")
        assert done.returncode == 0, done.stderr
        assert ".ci/install" in done.stdout.splitlines()[0]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A copy of the make files with an environment whose programs say that they were called."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for name in ("pyproject.toml", "constraints.txt", "Makefile"):
        shutil.copy2(ROOT / name, tmp_path / name)
    for name in ("ruff", "mypy", "lint-imports", "waxwing"):
        script(tmp_path / f".venv/bin/{name}", f'echo "called {name} $*"')
    script(
        tmp_path / ".venv/bin/python",
        'echo "called python $* required=$WAXWING_REQUIRE_SERVICES"\nexit "${PYTEST_STATUS:-0}"',
    )
    stamp = tmp_path / ".venv/.installed"
    stamp.write_text(f"{tmp_path}\n", encoding="utf-8")
    newest = max(p.stat().st_mtime for p in tmp_path.rglob("*"))
    os.utime(stamp, (newest + 1, newest + 1))
    return tmp_path


def test_second_install_does_nothing(installed: Path) -> None:
    done = call("make", "install", cwd=installed)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout


def test_install_is_done_again_when_the_requirements_change(installed: Path) -> None:
    stamp = (installed / ".venv/.installed").stat().st_mtime
    for name in ("pyproject.toml", "constraints.txt"):
        before = (installed / name).stat().st_mtime
        os.utime(installed / name, (stamp + 1, stamp + 1))
        assert ".ci/install" in call("make", "--dry-run", "install", cwd=installed).stdout
        os.utime(installed / name, (before, before))


def test_install_is_done_again_where_the_project_was_moved(installed: Path) -> None:
    (installed / ".venv/.installed").write_text("/somewhere/else\n", encoding="utf-8")
    assert ".ci/install" in call("make", "--dry-run", "install", cwd=installed).stdout


def test_make_test_runs_all_four_checks_and_ends_with_pytest(installed: Path) -> None:
    done = call("make", "test", cwd=installed)
    assert done.returncode == 0, done.stderr
    called = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("called")]
    assert called == ["ruff", "mypy", "lint-imports", "python"]


def test_make_test_goes_on_after_a_fault_and_still_fails(installed: Path) -> None:
    script(installed / ".venv/bin/mypy", "echo called mypy; exit 1")
    done = call("make", "test", cwd=installed)
    assert done.returncode != 0
    assert "called python" in done.stdout, "pytest runs although mypy failed"
    assert "failed: types" in done.stderr


@pytest.mark.parametrize("status", [0, 1])
def test_ci_requires_services_and_ends_as_make_test_does(installed: Path, status: int) -> None:
    done = call("bash", ".ci/run", cwd=installed, PYTEST_STATUS=str(status))
    assert (done.returncode == 0) == (status == 0)
    assert "required=1" in done.stdout
    assert ("passed" in done.stdout.splitlines()[-1]) == (status == 0)


def test_demo_takes_a_seed(installed: Path) -> None:
    assert "called waxwing demo --seed 11" in call("make", "demo", "SEED=11", cwd=installed).stdout


UNSUITABLE = {
    "old": ('[[ "$*" == *version_info* ]] && echo 3.9', "is Python 3.9"),
    "new": ('[[ "$*" == *version_info* ]] && echo 3.14', "is Python 3.14"),
    "bare": (
        'case "$*" in *version_info*) echo 3.11;; *) exit 1;; esac',
        "is Python 3.11 but lacks venv",
    ),
    "broken": ("exit 127", "does not run"),
}


@pytest.mark.parametrize("kind", UNSUITABLE)
def test_unsuitable_python_is_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    text, why = UNSUITABLE[kind]
    python = script(tmp_path / "python", text)
    done = call("bash", ".ci/install", PYTHON=str(python), VENV=str(tmp_path / "venv"))
    assert done.returncode == 1
    assert (
        f"{python} {why}" in done.stderr and "apt-get install python3 python3-venv" in done.stderr
    )
    assert not (tmp_path / "venv").exists()


def test_missing_python_is_refused_in_a_sentence(tmp_path: Path) -> None:
    done = call("bash", ".ci/install", PYTHON="python3.none", VENV=str(tmp_path / "venv"))
    assert done.returncode == 1 and "python3.none is not there" in done.stderr


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_constraints_satisfy_every_requirement_of_the_project() -> None:
    pinned: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        if requirement.marker is None or any(
            requirement.marker.evaluate({"python_version": v, "python_full_version": f"{v}.0"})
            for v in ("3.11", "3.12")
        ):
            pinned.setdefault(requirement.name.lower(), []).append(pin.version)
    extras = project()["optional-dependencies"].values()
    for text in (*project()["dependencies"], *(text for extra in extras for text in extra)):
        requirement = Requirement(text)
        if requirement.name == "waxwing":
            continue
        versions = pinned.get(requirement.name.lower(), [])
        assert versions, f"{text} is not in constraints.txt; run: make constraints"
        assert all(requirement.specifier.contains(v) for v in versions), (text, versions)


def test_package_is_private_and_for_two_pythons() -> None:
    assert "Private :: Do Not Upload" in project()["classifiers"]
    assert project()["requires-python"] == ">=3.11,<3.13"
    assert project()["scripts"] == {"waxwing": "dataflows.cli.main:main"}
    assert sys.version_info[:2] in {(3, 11), (3, 12)}


def test_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


SKIPPING = {
    "call": "import pytest\ndef test_a_skip():\n    pytest.skip('no broker; get: COMMAND')\n",
    "module": "import pytest\npytest.skip('no broker; get: COMMAND', allow_module_level=True)\n",
    "mark": "import pytest\n@pytest.mark.skip('no broker; get: COMMAND')\ndef test_a_skip(): ...\n",
}


def run_pytest(folder: Path, kind: str, test: str, **environ: str):
    """Run our conftest over one test file in a project of its own."""
    home = folder / "tests" / kind
    home.mkdir(parents=True)
    shutil.copy2(ROOT / "tests" / "conftest.py", folder / "tests" / "conftest.py")
    (home / "test_it.py").write_text(test, encoding="utf-8")
    return call(sys.executable, "-m", "pytest", "-q", "tests", cwd=folder, **environ)


@pytest.mark.parametrize("how", SKIPPING)
def test_skipped_service_test_fails_where_services_are_required(tmp_path: Path, how: str) -> None:
    done = run_pytest(tmp_path, "service", SKIPPING[how], WAXWING_REQUIRE_SERVICES="1")
    assert done.returncode in (1, 2), done.stdout
    assert "no broker; get: COMMAND" in done.stdout


@pytest.mark.parametrize("how", SKIPPING)
def test_skip_is_said_aloud_with_its_cure(tmp_path: Path, how: str) -> None:
    done = run_pytest(tmp_path, "service", SKIPPING[how])
    assert done.returncode in (0, 5), done.stdout
    assert "NOT TESTED" in done.stdout
    assert "1 skipped: no broker; get: COMMAND" in done.stdout


def test_skipped_unit_test_does_not_fail_where_services_are_required(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "unit", SKIPPING["call"], WAXWING_REQUIRE_SERVICES="1")
    assert done.returncode == 0 and "NOT TESTED" in done.stdout


def test_failure_shows_the_seed(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "unit", "def test_a_fault(seed):\n    assert seed < 0\n")
    assert done.returncode == 1
    assert re.search(r"seed: \d+ \(--seed N for another\)|--seed \d+", done.stdout)
