"""Pages of score, evaluate and compare: nothing of an event, a column or a file is markup."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from html.parser import HTMLParser
from io import StringIO
from typing import Any

import numpy as np
import polars as pl
import pytest

from dataflows.charts import Bar, Line, Plot, bars, cards, grid, page, section, table
from dataflows.compare_report import comparison_html, comparison_lines
from dataflows.evaluation_report import print_analysis
from dataflows.observe.live import final_table
from dataflows.score_summary import print_summary

MARKUP = "a[/foo][red]:x:\x1b[2J"
SHOWN = "a[/foo][red]:x:\\x1b[2J"
"""How `MARKUP` stands on a terminal."""

HOSTILE = "</td></title></text><script>alert(1)</script>\x1b[2J\"' onload=x"


class _Reader(HTMLParser):
    """Names of the elements of a page and of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


def drawn(text: str) -> str:
    """A page with a text in every place that takes one."""
    x = np.arange(3.0)
    line = Line(x, x, label=text, marks=np.array([[1.0, 1.0]]), told=[text])
    other = Line(x, x, label=text, dots=True)
    plot = Plot(text, [line, other], note=text, x_label=text, y_label=text)
    return page(text, text, [
        cards([(text, text)], bad=(text,)),
        section(text, text, table([text, text], [[text, text]], [1])),
        grid([plot.svg(), bars(text, text, [Bar(text, 1.0, 0.5, 1.5)], 2.0)]),
    ])  # fmt: skip


def compared(text: str) -> dict[str, Any]:
    """A comparison whose names are a text."""
    counts = ("live", "candidate", "new", "gone", "frauds", "won", "lost", "missed")
    one = dict.fromkeys(counts, 1) | {"intervals": {"new": [1, 9]}}
    example = {
        "change": "new", "anomaly_type": text, "entity_type": text, "entity": text,
        "event_id": text, "time_us": 1, "score": 0.5, "verdict": text, "reasons": [text],
    }  # fmt: skip
    return {
        "total": one | {"new_genuine": 1, "gone_genuine": 1}, "anomaly_types": {text: one},
        "examples": [example], "candidate": text, "live": [text], "events": 5, "seconds": 1.0,
        "rows": 2, "frauds_without_row": 1, "frauds_without_time": 3, "coverage": [
            {"from_us": 1, "until_us": 2, "sample": 0.1, "gap": False},
            {"from_us": 4, "until_us": 5, "sample": 0.2, "gap": True},
        ],
    }  # fmt: skip


@pytest.mark.parametrize("made", [drawn, lambda text: comparison_html(compared(text))])
def test_no_text_becomes_an_element_or_an_attribute(made: Callable[[str], str]) -> None:
    plain, evil = _Reader(made("plain")), _Reader(made(HOSTILE))
    assert plain.found == evil.found and len(plain.found) > 20
    assert "script" not in {tag for tag, _ in evil.found}
    assert HOSTILE not in made(HOSTILE)


def test_a_drawing_of_one_moment_is_a_minute_wide() -> None:
    at = Line(np.array([1_772_409_600e6]), np.array([206.0]), dots=True)
    drawing = Plot("c-1", [at], is_time=True).svg()
    assert ">00:00:00<" in drawing and "2025" not in drawing


def test_the_last_number_of_an_axis_is_not_cut_off() -> None:
    line = Line(np.array([-2.0, 0.0]), np.array([0.0, 1.0]))
    drawing = Plot("c", [line], x_range=(-2.0, 0.0), x_log=True).svg()
    assert 'text-anchor="end">100 %<' in drawing and 'text-anchor="middle">1 %<' in drawing


def test_no_text_of_a_comparison_is_an_escape_of_the_terminal() -> None:
    assert not any("\x1b" in line for line in comparison_lines(compared(HOSTILE)))


def test_a_comparison_says_what_is_an_estimate_and_what_was_not_looked_at() -> None:
    for said in ("\n".join(comparison_lines(compared("x"))), comparison_html(compared("x"))):
        assert "+1 (1 to 9)" in said and "10 % and 20 % of the entities" in said
        assert "no rows are kept from" in said and "1 known frauds have no kept row" in said
        assert "3 known frauds, labelled without `event_time`, have no kept row" in said


def test_names_of_entities_are_not_broken_at_their_hyphens() -> None:
    name, why = "card c-b7374d3a-of-the-house-at-the-lake", "paid far more than it ever does " * 9
    assert f'<td class="t">{name}</td>' in table(["entity", "why"], [[name, why]])
    out = StringIO()
    print_summary(scored(), incident(name, why), out)
    assert any(
        name in line and "2026-03-02 00:00:00" in line for line in out.getvalue().split("\n")
    )


def test_no_text_of_a_scored_file_is_markup_or_an_escape_of_the_terminal() -> None:
    out = StringIO()
    ranks = {"average_precision": 0.5, "auc_roc": 0.5}
    shares = dict.fromkeys(("recall", "precision", "fpr"), 0.5)
    judged = ranks | shares | {"judged": 2, "anomalous": 1, "detectors": {MARKUP: ranks}}
    found = {"reasons": {MARKUP: 1}, "stayed_out": [MARKUP], "judgement": judged}
    print_summary(scored() | found, incident(MARKUP, MARKUP), out)
    assert out.getvalue().count(SHOWN) == 5 and "\x1b" not in out.getvalue()


def test_no_name_of_an_attack_or_a_detector_is_markup_or_an_escape_of_the_terminal() -> None:
    out = StringIO()
    one = {"events": 1, "recall": 0.5, "precision": 0.5, "fpr": 0.5}
    silent = {"campaigns": 1, "recall": 0.5, "entities": 1, "entity_recall": 0.5}
    silence = {"absences": 1, "genuine": 1, "false_alarms": 0, "by_attack": {MARKUP: silent}}
    final_table(
        {"detectors": {MARKUP: one}, "by_attack": {MARKUP: one}, "silence": silence}, out, []
    )
    # Detector in two tables, attack in two.
    assert out.getvalue().count(SHOWN) == 4 and "\x1b" not in out.getvalue()
    near = {"low": 0.5, "high": 0.5}
    ranked = near | {"average_precision": 0.5, "auc_roc": 0.5}
    ranked["recall_at"] = [None, near | {"recall": 0.5}]
    lost = near | {"without": MARKUP, "average_precision": 0.5}
    report = {"ranking": {MARKUP: ranked}, "ablation": [lost], "adds_nothing": [MARKUP]}
    out = StringIO()
    print_analysis(report | {"draws": 9}, out)
    assert out.getvalue().count(SHOWN) == 3 and "\x1b" not in out.getvalue()


def scored() -> dict[str, Any]:
    """The summary of a file of nothing."""
    counts = ("rows", "scored", "refused", "duplicates", "alerts", "fitted", "alerts_warming",
              "absences")  # fmt: skip
    return dict.fromkeys(counts, 0) | {"reasons": {}, "stayed_out": []}


def incident(entity: str, why: str) -> pl.DataFrame:
    """One incident."""
    at = datetime(2026, 3, 2)
    return pl.DataFrame(
        [{"begin": at, "end": at, "entity": entity, "rows": 12_345, "top_reason": why}]
    )


def test_nothing_has_no_sign() -> None:
    found = compared("x")
    found["total"] |= {"new": 0, "gone": 0, "intervals": {}}
    lines = "\n".join(comparison_lines(found))
    assert "no new alerts, none gone, 1 known frauds lost" in lines
    made = comparison_html(found)
    assert made.count(">0<") >= 2 and ">+0<" not in made and ">-0<" not in made
    assert bars("t", "", [Bar("x", -0.0002), Bar("y", -0.01)], 1.0).count(">0.000<") == 1


def test_what_a_sample_says_nothing_of_is_not_known_and_no_number() -> None:
    found = compared("x")
    for counts in (found["total"], found["anomaly_types"]["x"]):
        counts |= {"new": None, "frauds": None, "won": None, "candidate": None}
        counts["intervals"] = {
            "new": [12, None], "frauds": [4, None], "won": [3, None], "candidate": [13, None],
        }  # fmt: skip
    for said in ("\n".join(comparison_lines(found)), comparison_html(found)):
        assert "+not known (12 or more)" in said and "not known (3 or more)" in said
        assert "too few entities are in the sample" in said and "None" not in said
    assert "candidate, at least" in comparison_html(found)
