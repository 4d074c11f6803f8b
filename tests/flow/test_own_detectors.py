"""A detector of the user's own, from outside: the page's files, its commands and its promises."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
from river.anomaly import HalfSpaceTrees

from tests.flow.harness import TIMEOUT_S, environment

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/own-detectors.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL))
OWN = FILES["own/half_space.py"]

TRAP = 'raise RuntimeError("taken for a package of waxwing")\n'

ALL = """
import json, sys
from dataflows.cli.main import main
for arguments in json.loads(sys.argv[1]):
    print("##", arguments[0], flush=True)
    status = main(arguments)
    if status:
        sys.exit(f"{arguments}: {status}")
"""
"""Commands one after another in one process, which loads the kernels once."""


def commands() -> list[list[str]]:
    """The arguments of the page's commands."""
    (text,) = re.findall(r"<!-- run: own -->\n```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    assert all(line[0] == "waxwing" for line in lines)
    return [line[1:] for line in lines]


def in_order(folder: Path, wanted: list[list[str]]) -> subprocess.CompletedProcess[str]:
    """Run commands in a folder."""
    return subprocess.run(
        [sys.executable, "-P", "-c", ALL, json.dumps(wanted)], cwd=folder, timeout=TIMEOUT_S,
        env=environment({"PYTHONPATH": str(ROOT), "WAXWING_ALERTS": "jsonl"}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def write(folder: Path, name: str, text: str) -> None:
    """A file below a folder."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def test_a_detector_of_river_goes_through_every_command_of_the_page(tmp_path: Path) -> None:
    for name, text in FILES.items():
        write(tmp_path, name, text)
    for name in ("models.py", "own/models.py", "own/river.py"):
        write(tmp_path, name, TRAP)
    done = in_order(tmp_path, commands())
    assert done.returncode == 0, done.stdout + done.stderr
    told = dict(part.split("\n", 1) for part in done.stdout.split("## ")[1:])
    assert "detectors = [zscore, half_space]" in told["check"]
    assert "login: 2 detectors" in told["train"]
    assert "bit-identical" in told["certify"]
    judged = json.loads((tmp_path / "judged.json").read_text(encoding="utf-8"))
    assert "half_space" in judged["detectors"]
    head = json.loads((tmp_path / ".waxwing/bundle/bundle.json").read_text(encoding="utf-8"))
    assert head["detectors"] == {"login": ["zscore", "half_space"]}
    rows = pl.read_parquet(tmp_path / "scores.parquet").filter(pl.col("status") == "scored")
    said = rows["half_space_raw"].to_numpy()
    assert np.isfinite(said).all() and len(np.unique(said)) > 50
    alerts = (tmp_path / ".waxwing/state/alerts.jsonl").read_text(encoding="utf-8").splitlines()
    votes = [vote for line in alerts for vote in json.loads(line)["votes"]]
    assert any(vote["detector"] == "half_space" and vote["vote"] for vote in votes)


def test_the_page_s_arrays_say_what_river_says(rng: np.random.Generator) -> None:
    module: dict[str, object] = {"__name__": "page"}
    exec(compile(OWN, "half_space.py", "exec"), module)
    values = rng.uniform(0.0, 1.0, (400, 3))
    forest = HalfSpaceTrees(n_trees=25, height=8, window_size=400, seed=3)
    for row in values:
        forest.learn_one(dict(enumerate(row)))
    plain = {"fill": np.zeros(3), "low": np.zeros(3), "span": np.ones(3)}
    arrays = plain | module["_heaps"](forest)  # type: ignore[operator]
    model = module["Model"](arrays, {"window": 400})  # type: ignore[operator]
    asked = rng.uniform(-0.2, 1.2, (300, 3))

    class Rows:
        values = asked

    expected = [forest.score_one(dict(enumerate(row))) for row in asked]
    np.testing.assert_allclose(model.raw(Rows), expected, rtol=1e-12)
    assert len(np.unique(expected)) > 50
