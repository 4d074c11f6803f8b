"""What commands write: where it goes, and what JSON and UTF-8 cannot say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflows import evaluation_report, page, score_report
from dataflows.report import check_apart, check_json, write_json, write_text
from features.errors import ConfigError

REPORT = {"in": 5, "latency_ms": {"p50": math.nan, "p99": 2.5}, "sizes": [1, np.float64(2.0)]}


def test_report_goes_to_a_file_with_null_for_what_is_not_known(tmp_path: Path) -> None:
    write_json(str(tmp_path / "out.json"), REPORT)
    got = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert got == {"in": 5, "latency_ms": {"p50": None, "p99": 2.5}, "sizes": [1, 2.0]}


def test_dash_is_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    write_json("-", REPORT)
    assert json.loads(capsys.readouterr().out)["in"] == 5


def test_nothing_is_written_where_nobody_asked(capsys: pytest.CaptureFixture[str]) -> None:
    write_json(None, REPORT)
    assert capsys.readouterr().out == ""


def test_file_that_cannot_be_written_is_a_fault_with_its_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder that exists"):
        write_json(str(tmp_path / "none" / "out.json"), REPORT)


def test_whether_a_file_can_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}", encoding="utf-8")
    for fine in (None, "-", "/dev/null", str(tmp_path / "old.json"), str(tmp_path / "new.json")):
        check_json(fine)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"], "nothing is made"
    assert (tmp_path / "old.json").read_text(encoding="utf-8") == "{}"
    for bad in (tmp_path, tmp_path / "none" / "out.json", tmp_path / "old.json" / "out.json"):
        with pytest.raises(ConfigError, match="folder that exists"):
            check_json(str(bad))


def test_what_is_written_is_none_of_what_is_read_nor_of_what_else_is_written(
    tmp_path: Path,
) -> None:
    data, link, page = tmp_path / "data.csv", tmp_path / "link.csv", tmp_path / "page.html"
    data.write_text("x")
    link.symlink_to(data)
    (tmp_path / "hard.csv").hardlink_to(data)
    for other in (data, link, tmp_path / "hard.csv", tmp_path / "none" / ".." / "data.csv"):
        with pytest.raises(ConfigError, match=r"--out .*: would write over --data; name another"):
            check_apart({"--out": other}, {"--data": str(data), "--mapping": None})
    with pytest.raises(ConfigError) as caught:
        check_apart({"--out": page, "--html": page, "--json": data}, {"--data": data})
    assert len(caught.value.faults) == 2 and "--html" in caught.value.faults[0]
    check_apart({"--out": page, "--html": None, "--json": "-"}, {"--data": data, "--labels": "-"})
    check_apart({"--html": "/dev/null", "--json": "/dev/null"}, {})


def test_the_fault_names_the_option_whose_file_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--html .*folder that exists"):
        check_json(str(tmp_path), "--html")
    with pytest.raises(ConfigError, match=r"^--out .*folder that exists"):
        write_text(tmp_path / "none" / "out.toml", "", "--out")


def test_a_page_is_written_whatever_is_in_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of a file that is no UTF-8 comes as a lone surrogate."""
    path = tmp_path / "out.html"
    pages: list[tuple[Any, str, Any, int]] = [
        (page, "page_of", page.write_page, 1),
        (score_report, "report_html", score_report.write_report, 4),
        (evaluation_report, "evaluation_html", evaluation_report.write_report, 2),
    ]
    for module, made, write, parts in pages:
        monkeypatch.setattr(module, made, lambda *_: "caf\udce9.csv")
        write(str(path), *[{}] * parts)
        assert path.read_text(encoding="utf-8") == "caf\\udce9.csv"
        path.unlink()
