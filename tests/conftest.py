"""What all tests share: the seed, the data sets that are not ours to copy, skips that cannot hide.

A skip is a thing that was not tested. The closing summary lists each with its reason, which names
the command that would help; under WAXWING_REQUIRE_SERVICES=1 (`.ci/run`) a skipped service test
fails.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

__all__: list[str] = []

ROOT = Path(__file__).resolve().parent.parent

SEED = 20261124
"""Seed where --seed gives none; chosen: the day of the first test."""

SERVICE_FOLDER = ROOT / "tests" / "service"

hypothesis.settings.register_profile(
    "waxwing",
    # Two shared cores: a slow example is no fault, and a run must be the same for everyone.
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("waxwing")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--seed`."""
    parser.addoption(
        "--seed", type=int, default=SEED, help=f"seed of all seeded tests (default {SEED})"
    )
    parser.addoption(
        "--examples", type=int, metavar="N", help="examples of each property (default: few)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have `--seed` and `--examples` hold for properties too."""
    seed, examples = config.getoption("--seed"), config.getoption("--examples")
    for item in items:
        test: Any = getattr(item, "function", None)
        if test is None or not hypothesis.is_hypothesis_test(test):
            continue
        if seed != SEED:
            hypothesis.seed(seed + zlib.crc32(test.__qualname__.encode()))(test)
        if examples is not None:
            now = getattr(test, "_hypothesis_internal_use_settings", hypothesis.settings.default)
            more = hypothesis.settings(now, max_examples=examples)
            test._hypothesis_internal_use_settings = more


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say the seed before anything runs."""
    required = "required" if _services_required() else "skipped aloud where they cannot run"
    return [f"seed: {config.getoption('--seed')} (--seed N for another); service tests: {required}"]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test: the run's seed and the test's name."""
    return int(request.config.getoption("--seed")) + zlib.crc32(request.node.nodeid.encode())


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A random generator of this test's own."""
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], Path]:
    """Path of a file of the shared data sets, or a skip that says where to get it.

    They are looked for in `../shared/data` beside the project, or where WAXWING_SHARED_DATA says.
    """
    folder = Path(os.environ.get("WAXWING_SHARED_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(
                f"needs the data set {name}, which is not ours to copy: put it below"
                f" ../shared/data or point WAXWING_SHARED_DATA at the folder that holds it"
            )
        return path

    return find


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle trained on two simulated days by the command a user runs, and the state they leave.

    `train.json` in its folder is what the training reported.
    A `tests.flow.harness.Bench`, shared by the tests of flows and services.
    """
    from tests.flow.harness import train_bench

    return train_bench(tmp_path_factory.mktemp("bench"))


def _services_required() -> bool:
    """Whether a skipped service test is a failure."""
    return os.environ.get("WAXWING_REQUIRE_SERVICES", "") not in ("", "0")


def _is_service(path: Path | None) -> bool:
    """Whether a test file needs a service."""
    return path is not None and SERVICE_FOLDER in path.parents


def _reason(report: Any) -> str:
    """Why a test was skipped, in its own words."""
    longrepr = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ")


def _refuse_skip(report: Any, path: Path | None) -> None:
    """Turn the skip of a service test into a failure where services are required."""
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and _services_required()
        and _is_service(path)
    ):
        reason = _reason(report)
        report.outcome = "failed"
        report.longrepr = f"skipped, yet WAXWING_REQUIRE_SERVICES=1 asks for services: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show the seed with a failure; refuse the skip of a service test."""
    report = yield
    _refuse_skip(report, item.path)
    if report.failed:
        report.sections.append(("seed", f"--seed {item.config.getoption('--seed')}"))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Refuse the skip of a whole service module."""
    report = yield
    _refuse_skip(report, getattr(collector, "path", None))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List what was not tested and how to get it tested, one line a reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    by_reason: dict[str, list[str]] = {}
    for report in skipped:
        by_reason.setdefault(_reason(report), []).append(report.nodeid)
    terminalreporter.section("NOT TESTED", sep="!", yellow=True, bold=True)
    for reason, nodes in sorted(by_reason.items()):
        terminalreporter.write_line(f"{len(nodes)} skipped: {reason}")
        for node in nodes:
            terminalreporter.write_line(f"    {node}")
