"""Templates of log lines: mined once, then a function of the line; a made auth.log through all."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dataflows.bench.detection import auth_log
from dataflows.score import QUOTED_MAX, _quote
from dataflows.settings import Settings
from dataflows.sources.guess import guess_mapping
from dataflows.sources.mapping import load_mapping
from dataflows.sources.templates import WILD, Templates, mine
from features.errors import ConfigError, DeclarationError
from features.events import event_type
from tests.tables import BEGIN

USERS = ("bob", "eve", "mallory", "trent", "peggy", "walter", "sybil", "oscar")
TRIED = range(1_400, 1_480)
"""Lines in which somebody tries passwords, a second apart."""


def write_auth_log(path: Path, rng: np.random.Generator) -> None:
    """A quiet server with a few wrong passwords; near the end somebody tries eighty."""
    lines, moment = [], BEGIN
    for i in range(1_800):
        moment += timedelta(seconds=1 if i in TRIED else 60)
        pid, user = int(rng.integers(1_000, 60_000)), USERS[int(rng.integers(len(USERS)))]
        said = f"sshd[{pid}]: Accepted publickey for {user} from 10.0.0.{pid % 250} port {pid} ssh2"
        if i % 3 == 0:
            said = f"CRON[{pid}]: pam_unix(cron:session): session opened for user {user} by (uid=0)"
        elif i % 50 == 1:
            said = f"sshd[{pid}]: Failed password for {user} from 10.0.0.{pid % 250} port 7 ssh2"
        if i in TRIED:
            said = (
                f"sshd[{pid}]: Failed password for invalid user x{i} from 203.0.113.9 port 9 ssh2"
            )
        lines.append(f"{moment:%b} {moment.day:2d} {moment:%H:%M:%S} web-1 {said}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_words_that_vary_are_taken_out_and_those_that_tell_are_not() -> None:
    lines = [f"Failed password for {user} from <*> port <*> ssh2" for user in USERS]
    lines += [f"Accepted password for {user} from <*> port <*> ssh2" for user in USERS]
    lines += ["session opened for user root", "session closed for user root", "Server started"]
    assert mine(lines) == [
        "Accepted password for <*> from <*> port <*> ssh2",
        "Failed password for <*> from <*> port <*> ssh2",
    ]
    known = Templates(mine(lines))
    assert known.of("Failed  password for zoe from <*> port <*> ssh2") == mine(lines)[1]
    for other in ("Server started", "Failed password for zoe", "session closed for user root"):
        assert known.of(other) == other


def test_the_template_with_most_words_of_its_own_is_taken() -> None:
    known = Templates(["a <*> <*>", "a b <*>", "<*> b c"])
    assert [known.of(text) for text in ("a b c", "a x c", "z b c", "z b d")] == [
        "a b <*>", "a <*> <*>", "<*> b c", "z b d",
    ]  # fmt: skip


def test_whatever_a_message_begins_with_all_templates_are_looked_at(
    rng: np.random.Generator,
) -> None:
    def some(many: int) -> list[str]:
        return [
            " ".join(rng.choice(["a", "b", "c", WILD], int(rng.integers(0, 4))))
            for _ in range(many)
        ]

    templates = some(60)
    known = Templates(templates)
    for text in some(200):
        words = text.split()
        fits = [
            one for one in templates
            if len(one.split()) == len(words)
            and all(a in (b, WILD) for a, b in zip(one.split(), words, strict=True))
        ]  # fmt: skip
        fewest = min(fits, key=lambda one: one.split().count(WILD), default=text)
        assert known.of(text) == fewest


MAPPING = """
event = "app_log"
[lines]
pattern = '(?P<at>\\S+) (?P<text>.*)'
[fields]
event_id = { row = "line-" }
time_us = "at"
service = { constant = "s" }
host = { constant = "h" }
level = { column = "text", patterns = { "(?i)error" = "error", "(?i)fail|warn" = "warning" } }
template = { column = "text", mask = true, templates = ["user <*> failed <*> times"] }
"""


def test_a_mapping_looks_templates_up_and_tells_the_level_by_what_is_found(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(MAPPING, encoding="utf-8")
    table = load_mapping(str(tmp_path / "m.toml"))
    texts = ["user bob  failed 7 times", "ERROR: failed", "all well", None]
    frame = pl.DataFrame({"at": ["1"] * 4, "text": texts}, {"at": pl.String, "text": pl.String})
    frame = frame.with_row_index("number of the row")
    made = frame.select(table.events(frame.schema))
    assert made["template"].to_list() == [
        "user <*> failed <*> times", "ERROR: failed", "all well", None,
    ]  # fmt: skip
    assert made["level"].to_list() == ["warning", "error", "info", "info"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("(?i)error", "(error", "is no regular expression"),
        ('= "warning"', '= "warm"', "'warm' is no level (there are debug, info"),
        ("mask = true, ", "", "templates means nothing here"),
        ('["user <*> failed <*> times"]', "[7]", "templates: expected a list of texts"),
        ('{ "(?i)error" = "error", "(?i)fail|warn" = "warning" }', "[]", "a table of words"),
    ],
)
def test_what_is_wrong_with_templates_and_patterns_is_told_with_its_line(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in MAPPING
    (tmp_path / "m.toml").write_text(MAPPING.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_mapping(str(tmp_path / "m.toml"))
    (fault,) = raised.value.faults
    assert words in fault and "line 1" in fault


def test_a_guess_mines_the_templates_of_a_log(tmp_path: Path, rng: np.random.Generator) -> None:
    write_auth_log(tmp_path / "auth.log", rng)
    found = guess_mapping(tmp_path / "auth.log")
    (tmp_path / "m.toml").write_text(found.toml(), encoding="utf-8")
    texts = load_mapping(str(tmp_path / "m.toml")).fields["template"].templates
    assert set(texts) == {
        "Accepted publickey for <*> from <*> port <*> ssh2",
        "Failed password for <*> from <*> port <*> ssh2",
        "Failed password for invalid user <*> from <*> port <*> ssh2",
        "pam_unix(cron:session): session opened for user <*> by (uid=<*>)",
    }


@pytest.fixture
def report(tmp_path: Path, rng: np.random.Generator) -> dict[str, Any]:
    """The bench on a made log."""
    write_auth_log(tmp_path / "auth.log", rng)
    settings = Settings(detectors=["zscore", "iqr", "isolation_forest"])
    return auth_log.measure(tmp_path, settings, lambda _: None)


def test_somebody_who_tries_passwords_is_found_and_told_in_words(report: dict[str, Any]) -> None:
    assert report["rows"] == {"fit": 900, "test": 900}
    assert (report["campaigns"], report["campaigns_met"]) == (1, 1)
    assert report["campaign_rows"] == len(TRIED)
    assert report["campaign_rows_flagged"] > 10 and report["elsewhere_share"] < 0.15
    (one,) = report["largest"]
    assert one["failed"] == one["users"] == len(TRIED)
    # No line of its kind was there to be mined: each is told as it came.
    assert one["says"].startswith('"Failed password for invalid user x14')
    assert set(report["against"]) == {"zscore", "iqr", "isolation_forest"}


def test_a_campaign_is_failures_of_one_address_without_a_long_pause() -> None:
    def line(pid: int, address: str) -> str:
        return f"h sshd[{pid}]: Failed password for invalid user a from {address} port 1 ssh2"

    lines = [line(i, "10.0.0.1") for i in range(5)] + [line(9, "10.0.0.2")] * 4
    lines += ["h sshd[3]: Connection closed by 10.0.0.1 port 1 [preauth]", "h sshd[44]: other"]
    lines += [f"h sshd[7]: message repeated 5 times: [ {line(7, '10.0.0.3')[11:]}]"]
    times = [i * 1_000_000 for i in range(len(lines))]
    one, other = auth_log.campaigns_of(lines, times)
    assert (one.failed, one.rows) == (5, [0, 1, 2, 3, 4, 9])
    assert (other.failed, other.rows) == (5, [11])
    slow = [i * 700_000_000 for i in range(5)]
    assert auth_log.campaigns_of(lines[:5], slow) == []


def test_a_summary_quotes_the_line_and_cuts_a_long_one() -> None:
    values = {"template": "Invalid user <*> from <*>", "service": "sshd"}
    assert _quote(event_type("app_log"), values) == ' "Invalid user <*> from <*>":'
    cut = _quote(event_type("app_log"), {"template": "x" * 500})
    assert len(cut) == QUOTED_MAX + 4 and cut.endswith('...":')
    assert _quote(event_type("payment"), values) == ""
    with pytest.raises(DeclarationError, match="quotes 'words', which is no field"):
        replace(event_type("app_log"), quotes="words")
