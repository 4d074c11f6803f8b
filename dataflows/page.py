"""An explanation as one HTML page: no script, no other file, and nothing of an event is markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from dataflows.report import write_text

__all__ = ["page_of", "write_page"]

ODDNESS_MAX = 6.0
"""Oddness at which a bar is full: one genuine row in a million. Chosen."""

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #c2410c; --soft: #8882; --dim: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p.facts { color: var(--dim); margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td:last-child { overflow-wrap: anywhere; }
th { font-weight: 600; color: var(--dim); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { background: var(--soft); border-radius: 3px; width: 6rem; height: .7rem;
  margin-top: .35rem; }
.bar div { background: var(--bar); border-radius: 3px; height: 100%; }
.ok { color: #15803d; } .bad { color: #b91c1c; font-weight: 600; }
.wide { overflow-x: auto; }
code { font-size: .9em; overflow-wrap: anywhere; }
"""


def write_page(path: str, found: dict[str, Any]) -> None:
    """Write the page of an explanation.

    Raises
    ------
    ConfigError : the file cannot be written
    """
    write_text(path, page_of(found), "--html", errors="backslashreplace")


def page_of(found: dict[str, Any]) -> str:
    """The page.

    Parameters
    ----------
    found : of `dataflows.explain.explain`
    """
    alert, vote = found["alert"], found["vote"]
    same = found["same"]
    facts = (
        f"{alert['anomaly_type']}, {alert['severity']}; event {alert['event_id']} at"
        f" {_moment(alert['time_us'])}; alert {alert['id']}"
    )
    verdict = "the same, bit for bit" if same else "not the same: see waxwing certify"
    parts = [
        f"<h1>{_text(alert['summary'])}</h1>",
        f"<p class=facts>{_text(facts)}</p>",
        f"<p class=facts>Replayed: <span class={'ok' if same else 'bad'}>{verdict}</span></p>",
        "<h2>Vote</h2>",
        f"<p>Score {_number(vote['score'])}, needs {_number(vote['threshold'])} and"
        f" {vote['votes_needed']} of the detectors."
        + (f" What to do: {_text(vote['action'])}." if vote["action"] else "")
        + "</p>",
        _table(
            ("detector", "score", "threshold", "votes", "share of the score", ""),
            (
                (
                    d["name"] if d["stage"] == "live" else f"{d['name']} ({d['stage']})",
                    d["score"], d["threshold"], "yes" if d["vote"] else "no", d["share"],
                    _Bar(d["share"] or 0.0),
                )
                for d in found["detectors"]
            ),
        ),
        "<h2>Features, the oddest first</h2>",
        _table(
            ("feature", "of", "value", "usual", "", "in words"),
            (
                (
                    f["name"], f["entity_type"] or "event", f["value"], f["baseline"],
                    _Bar(f["oddness"] / ODDNESS_MAX), f["text"],
                )
                for f in found["features"]
            ),
        ),
        *_surroundings(found),
    ]  # fmt: skip
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta http-equiv=Content-Security-Policy"
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{_text(alert['summary'])}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _surroundings(found: dict[str, Any]) -> list[str]:
    """The event, its entity's past, what was in force and what it was made with."""
    alert, replayed = found["alert"], found["replayed"]
    return [
        "<h2>The event</h2>",
        _table(("field", "value"), found["event"]["fields"].items()),
        f"<h2>Last events of {_text(alert['entity_type'])} {_text(alert['entity'])}</h2>",
        _table(
            ("time", "type", "fields"),
            (
                (
                    _moment(e["time_us"]), e["event_type"],
                    ", ".join(
                        f"{k} = {v}"
                        for k, v in e.items()
                        if v is not None and k not in ("time_us", "event_type")
                    ),
                )
                for e in reversed(found["last_events"])
            ),
        ),
        "<h2>Control records in force</h2>",
        _table(("record",), ((str(r),) for r in found["control"])) if found["control"]
        else "<p>None.</p>",
        "<h2>Made with</h2>",
        _table(
            ("what", "then", "now, where it is another"),
            (
                ("bundle", found["bundle"]["id"], ""),
                ("catalogue", found["catalog"], ""),
                *(
                    (name, version, found["other_versions"].get(name, ["", ""])[1])
                    for name, version in found["versions"].items()
                ),
            ),
        ),
        f"<p class=facts>Round {alert['round']}, replayed after round {replayed['base_round']} in"
        f" {len(replayed['groups'])} shard groups.</p>",
    ]  # fmt: skip


class _Bar(float):
    """A share in [0, 1] that is drawn."""


def _text(value: Any) -> str:
    """A value as text that is no markup."""
    return escape(str(value), quote=True)


def _moment(time_us: int) -> str:
    """A time for people."""
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _number(value: float | None) -> str:
    """A number for people; a dash where there is none."""
    return "–" if value is None else f"{value:,.6g}"  # noqa: RUF001


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers stand right, bars are drawn, all else is text."""
    filled = [list(row) for row in rows]
    numeric = [all(map(_is_number, column)) for column in zip(*filled, strict=True)]
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in filled)
    head = "".join(
        f"<th{' class=n' if right else ''}>{_text(name)}</th>"
        for name, right in zip(heads, numeric or [False] * len(heads), strict=True)
    )
    return f"<div class=wide><table><tr>{head}</tr>\n{body}</table></div>"


def _is_number(value: Any) -> bool:
    """Whether a cell stands right."""
    return value is None or (isinstance(value, float) and not isinstance(value, _Bar))


def _cell(value: Any) -> str:
    """A cell."""
    if isinstance(value, _Bar):
        percent = round(100 * min(max(float(value), 0.0), 1.0))
        return f'<td><div class=bar><div style="width:{percent}%"></div></div></td>'
    if _is_number(value):
        return f"<td class=n>{_number(value)}</td>"
    return f"<td>{_text(value)}</td>"
