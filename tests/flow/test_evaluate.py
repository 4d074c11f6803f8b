"""`waxwing evaluate` on simulated traffic and on files: figures, report, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.flow.harness import Bench, call
from tests.flow.test_json import undocumented

MADE = ("--out", "made", "--hours", "3", "--anomaly-share", "0.02", "--seed", "5")


@pytest.fixture(scope="module")
def files(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three simulated hours as files with labels, judged."""
    folder = tmp_path_factory.mktemp("evaluate")
    sets = [s for s in bench.sets() if s != "--set"]
    world = [part for s in sets if s.startswith("sim_") for part in ("--set", s)]
    done = call("simulate", *MADE, *world, "--to", "parquet", cwd=folder)
    assert done.returncode == 0, done.stderr
    told = ("--data", "made", "--html", "e.html", "--json", "e.json", "--fit-voting", "v.toml")
    done = call("evaluate", *bench.sets(), *told, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stdout, encoding="utf-8")
    return folder


def test_labelled_files_are_judged_with_curves_and_intervals(files: Path) -> None:
    report = json.loads((files / "e.json").read_text(encoding="utf-8"))
    groups = {one["group"] for one in report["feature_groups"]}
    assert undocumented(report) == [] and len(groups) > 3
    ranking = report["ranking"]["ensemble"]
    assert 0.4 < ranking["average_precision"] <= 1.0
    assert ranking["low"] <= ranking["average_precision"] <= ranking["high"]
    assert report["by_attack"] and {a["attack"] for a in report["recall_by_attack"]} == set(
        report["by_attack"]
    )
    assert report["by_attack"].keys() == report["delay"].keys()
    covered = report["coverage"]
    assert covered["rule"]["low"] <= covered["rule"]["got"] <= covered["rule"]["high"]
    wrong = report["detectors"]["ensemble"]["fpr"]
    assert covered["rule"]["got"] == pytest.approx(wrong, rel=1e-6)
    assert {"payment", "login"} <= set(covered["by_event_type"])
    said = (files / "said").read_text(encoding="utf-8")
    assert "false alarms by the rules: asked" in said
    assert "recall at 0.3 % false positives" in said and "In brackets 95 %" in said


def test_the_page_stands_alone_and_has_every_detector(files: Path) -> None:
    text = (files / "e.html").read_text(encoding="utf-8")
    assert "<script" not in text and "http" not in text and "url(" not in text
    for word in (
        "gradient boosting", "Precision and recall", "What each part adds", "How late",
        "Asked and got", "The vote on payment",
    ):  # fmt: skip
        assert word in text


def test_rules_fitted_to_costs_cost_less_than_those_of_training(files: Path, bench: Bench) -> None:
    before = json.loads((files / "e.json").read_text(encoding="utf-8"))
    told = ("--data", "made", "--json", "again.json")
    done = call("evaluate", *bench.sets(voting="v.toml"), *told, cwd=files)
    assert done.returncode == 0, done.stderr
    after = json.loads((files / "again.json").read_text(encoding="utf-8"))
    assert after["cost"]["as_set"] <= before["cost"]["as_set"]
    for name, one in before["voting"].items():
        judged = after["by_event_type"][name]
        # Thresholds are written rounded down: whom they were fitted to still reaches them.
        fpr, recall = one["chosen"]["fpr"], one["chosen"]["recall"]
        assert 0.999 * fpr <= judged["fpr"] <= 1.1 * fpr + 5e-4, name
        assert 0.999 * recall <= judged["recall"] <= recall + 0.02, name
    assert "rule" not in after["coverage"], "nobody asked a share of these"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hours", "0"], "--hours 0.0"),
        (
            ["--data", "made", "--hours", "2", "--cost-miss", "-1"],
            "--cost-miss -1: expected a cost",
        ),
        (["--data", "made", "--false-alarms", "0.1"], "--false-alarms goes with --fit-voting"),
        (["--data", "made", "--seed", "2"], "--seed: of simulated traffic"),
        (["--labels", "made/labels.parquet"], "--labels goes with --data"),
        (["--html", "none/e.html"], "--html none/e.html: cannot be written"),
    ],
)
def test_what_cannot_be_judged_is_said_in_a_sentence(
    files: Path, bench: Bench, arguments: list[str], said: str
) -> None:
    done = call("evaluate", *bench.sets(), *arguments, cwd=files)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert said in done.stderr


def test_files_without_labels_are_refused(files: Path, bench: Bench) -> None:
    told = ("--data", "payment=made/payment.parquet")
    done = call("evaluate", *bench.sets(), *told, cwd=files)
    assert done.returncode == 2 and "nothing is labelled" in done.stderr
