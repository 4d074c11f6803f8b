"""A comparison of two bundles for people: a screen of text, and a page to look at."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from dataflows.alerts.base import printable
from dataflows.charts import Bar, bars, cards, grid, page, section, table, time_text
from dataflows.report import write_text

__all__ = ["comparison_html", "comparison_lines", "write_comparison"]

_COLUMNS = ("live", "candidate", "new", "gone", "frauds", "won", "lost", "missed")

_SAID = {
    "live": "live", "candidate": "candidate", "new": "new", "gone": "gone", "frauds": "frauds",
    "won": "won", "lost": "lost", "missed": "missed by both",
}  # fmt: skip


def _sentence(found: Mapping[str, Any]) -> str:
    """The whole in one sentence."""
    total = found["total"]
    new, gone = _come(total), _gone(total)
    said = f"{'no new' if new == '0' else new} alerts, {'none gone' if gone == '0' else gone}"
    if total["frauds"] != 0:
        won = _estimate(total, "won")
        said += f", {total['lost']:,} known frauds lost, {won} won"
    else:
        said += "; no event is known to be a fraud"
    if _least(total, "new_genuine") + total["gone_genuine"]:
        said += (
            f"; known to be genuine: {_estimate(total, 'new_genuine')} of the new,"
            f" {total['gone_genuine']:,} of the gone"
        )
    return said


def _come(counts: Mapping[str, Any]) -> str:
    """Alerts that come; nothing has no sign."""
    said = _estimate(counts, "new")
    return said if said == "0" else f"+{said}"


def _gone(counts: Mapping[str, Any]) -> str:
    """Alerts that go; nothing has no sign."""
    return f"-{counts['gone']:,}" if counts["gone"] else "0"


def _estimate(counts: Mapping[str, Any], name: str) -> str:
    """A count, and between what it lies where it is estimated from a sample."""
    if counts[name] is None:
        return f"not known ({_least(counts, name):,} or more)"
    said = f"{counts[name]:,}"
    if name in counts["intervals"]:
        low, high = counts["intervals"][name]
        said += f" ({low:,} to {high:,})"
    return said


def _least(counts: Mapping[str, Any], name: str) -> int:
    """A count, or the least it can be where it is not known."""
    return int(counts["intervals"][name][0] if counts[name] is None else counts[name])


def _sampled(found: Mapping[str, Any]) -> list[str]:
    """What a comparison of kept rows stands on; nothing of one of all events."""
    stretches = found.get("coverage")
    if not stretches:
        return []
    shares = sorted({one["sample"] for one in stretches})
    said = [f"{found['rows']:,} kept rows"]
    if shares[0] < 1.0:
        share = " and ".join(f"{100.0 * one:g} %" for one in shares)
        said = [
            f"{said[0]}: {share} of the entities, those with alerts or known frauds whole; counts"
            " with what stands in brackets are estimates with their 95 % interval"
        ]
        if found["total"]["new"] is None:
            said.append(
                "what is not known: too few entities are in the sample, or not those with the most"
                " events; `--exact`, or a larger `rows_share`, tells"
            )
    said += [
        f"no rows are kept from {time_text(one['until_us'])} to {time_text(other['from_us'])} UTC"
        for one, other in pairwise(stretches)
        if other["gap"]
    ]
    if found["frauds_without_row"]:
        said.append(
            f"{found['frauds_without_row']:,} known frauds have no kept row; --exact counts them"
        )
    if found["frauds_without_time"]:
        said.append(
            f"{found['frauds_without_time']:,} known frauds, labelled without `event_time`, have no"
            " kept row and may be of another time"
        )
    return said


def _about(found: Mapping[str, Any]) -> str:
    """What was compared."""
    live = ", then ".join(found["live"]) or "no bundle"
    about = f"candidate {found['candidate']} beside {live}: {found['events']:,} events"
    if "rounds" in found:
        about += (
            f" of {found['rounds']:,} rounds, cut from {time_text(found['from_us'])} to"
            f" {time_text(found['until_us'])} UTC"
        )
    return f"{about}; took {found['seconds']:.1f} s"


def comparison_lines(found: Mapping[str, Any]) -> list[str]:
    """The comparison for a terminal, nothing in it that one could obey."""
    lines = [_about(found), *_sampled(found), _sentence(found), ""]
    rows = [
        ["alerts of", *(_SAID[c] for c in _COLUMNS)],
        *([name, *(_estimate(one, c) for c in _COLUMNS)]
          for name, one in found["anomaly_types"].items()),
    ]  # fmt: skip
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    for name, *counts in rows:
        said = (f"{c:>{max(width, 15)}}" for c, width in zip(counts, widths[1:], strict=True))
        lines.append(f"{name:<24}" + "".join(said))
    for way, title in (("new", "new, the most certain first"), ("gone", "gone")):
        mine = [e for e in found["examples"] if e["change"] == way]
        if mine:
            lines += ["", title]
        for e in mine:
            lines.append(
                f"  {e['anomaly_type']} {e['entity_type']} {e['entity']}, event {e['event_id']}"
                f" at {time_text(e['time_us'])}, score {e['score']:.6f}, {e['verdict']}:"
                f" {'; '.join(e['reasons']) or 'unusual combination'}"
            )
    return [printable(line) for line in lines]


def comparison_html(found: Mapping[str, Any]) -> str:
    """The comparison as a page that needs no other file."""
    total = found["total"]
    shown = [(_come(total), "alerts new"), (_gone(total), "alerts gone")]
    if total["frauds"] != 0:
        shown.append((_estimate(total, "won"), "known frauds won"))
        shown.append((f"{total['lost']:,}", "frauds lost"))
    counts = [
        [name, *(_estimate(one, c) for c in _COLUMNS)]
        for name, one in found["anomaly_types"].items()
    ]
    ours = {name: _least(one, "candidate") for name, one in found["anomaly_types"].items()}
    most = max((max(o["live"], ours[n]) for n, o in found["anomaly_types"].items()), default=1)
    drawn = [
        bars(
            name.replace("_", " "),
            "alerts",
            [
                Bar("live", one["live"]),
                Bar(
                    "candidate, at least" if one["candidate"] is None else "candidate",
                    ours[name],
                    strong=True,
                ),
            ],
            float(most),
        )
        for name, one in found["anomaly_types"].items()
    ]
    examples = [
        [
            e["change"], e["anomaly_type"], f"{e['entity_type']} {e['entity']}",
            str(e["event_id"]), time_text(e["time_us"]), f"{e['score']:.6f}", e["verdict"],
            "; ".join(e["reasons"]) or "unusual combination",
        ]
        for e in found["examples"]
    ]  # fmt: skip
    heads = ["", "anomaly type", "whose", "event", "time", "score", "known", "why"]
    parts = [
        cards(shown, bad=("frauds lost",) if total["lost"] else ()),
        section(
            "By anomaly type",
            "Events that would be alerts; known frauds are those that labels or the data name.",
            table(["", *(_SAID[c] for c in _COLUMNS)], counts, range(1, len(_COLUMNS) + 1)),
        ),
        section("Side by side", "", grid(drawn)),
    ]
    if examples:
        note = "The most certain of each kind: new ones by the candidate's score, gone ones by the"
        parts.append(section("Examples", f"{note} live one's.", table(heads, examples, [5])))
    about = ". ".join([_about(found), *_sampled(found)])
    return page("Candidate beside live", about, parts)


def write_comparison(path: str, found: Mapping[str, Any]) -> None:
    """Write the page.

    Raises
    ------
    ConfigError : the file cannot be written
    """
    write_text(path, comparison_html(found), "--html", errors="backslashreplace")
