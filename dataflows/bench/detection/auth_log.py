"""A server's auth.log: raw lines of sshd, sudo and cron, without labels.

The first half of the lines is fitted on, templates are mined from it, the other half is judged: as
`app_log`, which knows service and template and no address. What is found cannot be called recall:
nobody has labelled the lines. But sshd itself says when a log-in fails, and who tries again and
again from one address is at it: such campaigns are told from the lines by a rule, and it is counted
how many of them have an alert among their own lines, how much else is flagged, in which words.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import polars as pl

from dataflows.bench.detection.fold import DETECTORS
from dataflows.score_summary import incidents
from dataflows.scored_table import score_table
from dataflows.settings import Settings
from dataflows.sources.mapping import masked
from dataflows.sources.templates import Templates, mine
from dataflows.training import moment_us, train_files
from features.errors import ConfigError

__all__ = ["MAPPING", "campaigns_of", "measure", "show"]

FIT_SHARE = 0.5
"""Lines that are fitted on, from the first. Chosen before any of them was scored."""

YEAR = 2026
"""The lines name none."""

FAILED_MIN = 5
"""Failed log-ins of one address that make a campaign. Chosen: a person who has forgotten a password
tries three times."""

PAUSE_S = 600.0
"""Longest pause inside a campaign. Chosen: that of an incident."""

SHOWN_MAX = 12
"""Campaigns and incidents that are told one by one."""

PATTERN = (
    r"(?P<when>[A-Z][a-z]{2} +\d+ \d\d:\d\d:\d\d) (?P<host>\S+)"
    r" (?P<program>[^\s\[:]+)(\[\d+\])?: ?(?P<message>.*)"
)
"""As `waxwing mapping guess` has it for a syslog."""

MAPPING = """\
event = "app_log"

[lines]
pattern = '''{pattern}'''

[fields]
event_id = {{ row = "line-" }}
time_us = {{ column = "when", format = "%b %d %H:%M:%S", year = {year} }}
service = "program"
host = "host"
level = {{ column = "message", patterns = {{ '(?i)fail|invalid|error|exceeded' = "warning" }} }}
template = {{ column = "message", mask = true, templates = [
{templates}] }}
"""

_FAILED = re.compile(
    r"sshd\[(?P<pid>\d+)\]: (?:message repeated (?P<times>\d+) times: \[ )?"
    r"(?:Failed \w+ for (?:invalid user )?(?P<user>\S*)|Invalid user (?P<invalid>\S*)) from"
    r" (?P<address>\S+)"
)
_PROCESS = re.compile(r"sshd\[(\d+)\]:")

Say = Callable[[str], None]


@dataclass(slots=True)
class Campaign:
    """Failed log-ins of one address, one soon after another.

    Parameters
    ----------
    begin_us, end_us : of the failures
    failed : how many
    users : who was tried
    rows : numbers of the lines of its connections
    """

    begin_us: int
    end_us: int
    failed: int = 0
    users: set[str] = field(default_factory=set)
    pids: set[str] = field(default_factory=set)
    rows: list[int] = field(default_factory=list)


def campaigns_of(lines: Sequence[str], time_us: Sequence[int]) -> list[Campaign]:
    """Campaigns in lines, in the order of their begin, with all lines of their connections.

    Parameters
    ----------
    lines : of the log
    time_us : of each, rising
    """
    last: dict[str, Campaign] = {}
    found: list[Campaign] = []
    for line, at in zip(lines, time_us, strict=True):
        said = _FAILED.search(line)
        if said is None:
            continue
        one = last.get(said["address"])
        if one is None or at - one.end_us > PAUSE_S * 1e6:
            one = last[said["address"]] = Campaign(at, at)
            found.append(one)
        one.end_us = at
        if said["invalid"] is None:  # it is followed by the failure
            one.failed += int(said["times"] or 1)
        one.users.add(said["user"] or said["invalid"] or "")
        one.pids.add(said["pid"])
    found = [one for one in found if one.failed >= FAILED_MIN]
    for row, (line, at) in enumerate(zip(lines, time_us, strict=True)):
        process = _PROCESS.search(line)
        for one in found if process else ():
            near = one.begin_us - PAUSE_S * 1e6 <= at <= one.end_us + PAUSE_S * 1e6
            if near and process is not None and process[1] in one.pids:
                one.rows.append(row)
    return found


def measure(path: Path, settings: Settings, say: Say) -> dict[str, Any]:
    """Everything about one auth.log.

    Parameters
    ----------
    path : the file, or the folder with `auth.log`
    settings : `detectors`; those of the file are set here

    Raises
    ------
    ConfigError : not such a file
    """
    path = path / "auth.log" if path.is_dir() else path
    lines, time_us, messages = _read(path)
    cut = round(len(lines) * FIT_SHARE)
    until = datetime.fromtimestamp(time_us[cut] / 1e6, UTC).isoformat()
    fitted = sum(at < time_us[cut] for at in time_us)
    templates = mine(messages[:fitted])
    say(f"{len(templates)} templates mined from the first {fitted:,} of {len(lines):,} lines")
    asked = "detectors" in settings.model_fields_set
    detectors = list(settings.detectors) if asked else list(DETECTORS)
    listed = "".join(f"  {_quoted(text)},\n" for text in templates)
    text = MAPPING.format(pattern=PATTERN, year=YEAR, templates=listed)
    campaigns = campaigns_of(lines[fitted:], time_us[fitted:])
    known = Templates(templates)
    words = [known.of(text) for text in messages[fitted:]]
    settings = settings.model_copy(update={"detectors": detectors})
    rows = _scored(text, path, settings, until, say).filter(pl.col("row") >= fitted)
    report = _report(rows, campaigns, words, detectors)
    kinds = {"mined": len(templates), "fit": len({known.of(m) for m in messages[:fitted]})}
    return report | {
        "rows": {"fit": fitted, "test": len(words)},
        "templates": kinds | {"test": len(set(words))},
        "campaigns": len(campaigns),
        "detectors": detectors,
    }


def _scored(
    mapping_text: str, path: Path, settings: Settings, until: str, say: Say
) -> pl.DataFrame:
    """A row for each line, scored by models of the lines before a time, as `waxwing score` does."""
    with tempfile.TemporaryDirectory(prefix="waxwing-bench-") as name:
        mapping = Path(name) / "mapping.toml"
        mapping.write_text(mapping_text, encoding="utf-8")
        changed: dict[str, Any] = {
            "source": "file", "file_paths": {"app_log": path}, "file_mapping": str(mapping),
            "event_types": ["app_log"], "bundle": Path(name) / "bundle",
            "warm_state": Path(name) / "warm", "file_from": None, "file_until": None,
        }  # fmt: skip
        settings = settings.model_copy(update=changed)
        train_files(settings.model_copy(update={"file_until": until}), say)
        return score_table(settings, say, fit_us=moment_us(until)).rows


def _quoted(text: str) -> str:
    """A TOML text."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _read(path: Path) -> tuple[list[str], list[int], list[str]]:
    """Lines of a log, their times and their messages, masked; ConfigError where it is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ConfigError(f"--data {path}: {error.strerror}") from None
    parts = pl.DataFrame({"line": lines}).select(
        pl.col("line").str.extract_groups(f"^(?:{PATTERN})$").alias("parts")
    )
    found = parts.unnest("parts")
    when = pl.format(f"{YEAR} {{}}", pl.col("when").str.replace_all(r"\s+", " "))
    times = when.str.to_datetime("%Y %b %d %H:%M:%S", time_unit="us", strict=False)
    found = found.select(times.dt.epoch("us").alias("at"), masked(pl.col("message")))
    if found["at"].null_count() or len(found) < 2:
        raise ConfigError(
            f"--data {path}: {found['at'].null_count():,} of {len(found):,} lines are no syslog"
        )
    return lines, found["at"].to_list(), found["message"].to_list()


def _report(
    rows: pl.DataFrame, campaigns: Sequence[Campaign], words: Sequence[str], detectors: list[str]
) -> dict[str, Any]:
    """The figures of the lines that are judged; their numbers begin at the first of them."""
    rows = rows.with_columns(pl.col("alert").fill_null(False))
    flagged = rows["alert"].to_numpy()
    theirs = sorted({row for one in campaigns for row in one.rows})
    inside = int(flagged[theirs].sum())
    votes = {
        name: rows[f"{name}_vote"].fill_null(False).to_numpy()
        for name in detectors
        if f"{name}_vote" in rows.columns and rows[f"{name}_vote"].null_count() < len(rows)
    }
    first = int(rows["row"][0])
    found = incidents(rows.with_columns(pl.lit(False).alias("warming")))
    return {
        "alerts": int(flagged.sum()),
        "alert_share": round(float(flagged.mean()), 5),
        "campaigns_met": sum(bool(flagged[one.rows].any()) for one in campaigns),
        "campaign_rows": len(theirs),
        "campaign_rows_flagged": inside,
        "elsewhere_flagged": int(flagged.sum()) - inside,
        "elsewhere_share": round(
            (int(flagged.sum()) - inside) / max(len(rows) - len(theirs), 1), 5
        ),
        "against": {
            name: {
                "alerts": int(said.sum()),
                "campaigns_met": sum(bool(said[one.rows].any()) for one in campaigns),
                "elsewhere_flagged": int(said.sum() - said[theirs].sum()),
            }
            for name, said in votes.items()
        },
        "largest": [
            {
                "begin": _moment(one.begin_us),
                "seconds": round((one.end_us - one.begin_us) / 1e6),
                "failed": one.failed,
                "users": len(one.users),
                "says": _says(rows, one.rows, words),
            }
            for one in sorted(campaigns, key=lambda one: -one.failed)[:SHOWN_MAX]
        ],
        "incidents": [
            {
                "begin": f"{one['begin']:%Y-%m-%d %H:%M:%S}",
                "service": one["entity"],
                "alerts": one["rows"],
                "says": f'"{words[one["row"] - first]}": {one["top_reason"]}',
            }
            for one in found.head(SHOWN_MAX).iter_rows(named=True)
        ],
    }


def _moment(time_us: int) -> str:
    """A time as a person reads it."""
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%d %H:%M:%S}"


def _says(rows: pl.DataFrame, at: Sequence[int], words: Sequence[str]) -> str:
    """The words of the strangest alert among some rows; empty where none is one."""
    alerts = rows[list(at)].with_columns(pl.Series("at", at)).filter("alert")
    if not alerts.height:
        return ""
    best = alerts.row(int(alerts["score"].arg_max() or 0), named=True)
    return f'"{words[best["at"]]}": {best["top_reason"]}'


def show(report: Mapping[str, Any], out: IO[str]) -> None:
    """The figures for a person."""
    print(
        f"{report['alert_share']:.2%} of {report['rows']['test']:,} lines are alerts;"
        f" {report['campaigns_met']} of {report['campaigns']} campaigns have one among their lines;"
        f" of the other lines {report['elsewhere_share']:.2%}",
        file=out,
    )
    for name, of in report["against"].items():
        print(f"  {name:20} alerts {of['alerts']:>6,}  campaigns {of['campaigns_met']:>4}"
              f"  elsewhere {of['elsewhere_flagged']:>6,}", file=out)  # fmt: skip
    for one in report["largest"]:
        print(f"  {one['begin']} {one['failed']:>4} failures, {one['users']} users:"
              f" {one['says'] or 'not flagged'}", file=out)  # fmt: skip
