"""docs/detection.md from what `bench detection --json` wrote: no figure is typed by hand."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from features.errors import ConfigError

__all__ = ["PAGE", "page_of"]

PAGE = Path("docs/detection.md")

_HEAD = """\
# What is found: on unseen simulated traffic, and in data that others made

Written by `waxwing bench detection --render docs/detection/*.json`, of the files that
`waxwing bench detection --dataset NAME --data F --json docs/detection/NAME.json` writes
([json.md](json.md)). The data are their authors' and not shipped. Models are fitted by our own
training on the part that the protocol gives for it, the rest goes through the features, models and
votes of the flow in the order of its times; no setting differs from one data set to another.
"""

_FIGURES = ("auc_roc", "average_precision", "card_precision_at_100")
_SERIES = ("average_precision", "range_average_precision", "auc_roc", "f1", "far", "mar")


def page_of(paths: Sequence[Path]) -> str:
    """The page, in the order of the data sets' names.

    Parameters
    ----------
    paths : files written by `--json`

    Raises
    ------
    ConfigError : one that is none of these
    """
    reports: dict[str, Mapping[str, Any]] = {}
    for path in sorted(paths):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            reports[report["dataset"]] = report
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--render {path}: expected what `bench detection --json` wrote: {error}"
            ) from None
    if unknown := [name for name in reports if name not in _SECTIONS]:
        raise ConfigError(f"--render: no page for {', '.join(unknown)}")
    parts = [write(reports[name]) for name, write in _SECTIONS.items() if name in reports]
    return "\n".join([_HEAD, *parts])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float | None) -> str:
    """Three digits, or a dash where nothing is known."""
    return "-" if value is None else f"{value:.3f}"


def _three(of: Mapping[str, Any]) -> list[str]:
    """The three measures of the handbook."""
    return [_number(of[name]) for name in _FIGURES]


def _handbook(report: Mapping[str, Any]) -> str:
    """Card payments."""
    published = report["published"]
    head = ["", "AUC ROC", "average precision", "card precision@100"]
    rows = []
    for title, ours, protocol in (
        ("one split", report, "one_split"),
        ("prequential, mean of four", report["prequential"], "prequential"),
        ("without labels", report["unlabelled"], "unlabelled"),
    ):
        rows.append([f"{title}: waxwing", *_three(ours)])
        rows.append([f"{title}: best published, each", *_three(published[protocol])])
    check = report["check"]
    each = [[name, *_three(of)] for name, of in report["by_detector"].items()]
    kinds = [
        [name.replace("_", " "), str(of["frauds"]), _number(of["auc_roc"]),
         _number(of["average_precision"]), _number(of["recall"])]
        for name, of in report["scenarios"].items()
    ]  # fmt: skip
    size = report["rows"]
    about = (
        "Fitted on a week, judged on the week that begins a week after it, as the book does; a"
        " fraud is heard of seven days after it and with the next full hour. One split is"
        f" {size['train']:,} rows to fit on, {size['test']:,} to judge, {size['test_frauds']:,} of"
        " them frauds. Without labels the fit sees none; frauds known of a terminal are inputs,"
        " there as in the book. Published figures are the best of any model, each measure for"
        " itself. That `level` has no say on payments was decided with the figures without labels"
        " in sight: with it they were 0.832 / 0.046 / 0.061."
    )
    checked = (
        "The check: the book's logistic regression on the book's 15 inputs, fitted here, gives"
        f" {' / '.join(_three(check))}; printed there are"
        f" {' / '.join(_three(check['published']))}."
    )
    apart = (
        "One split, detector by detector, and by kind of fraud (recall is of the alerts, at an FPR"
        f" of {report['fpr']:.3%}):"
    )
    kind = _table(["kind", "frauds", "AUC ROC", "average precision", "recall"], kinds)
    parts = (
        "## Card payments: Fraud Detection Handbook\n", _prose(about), _table(head, rows),
        _prose(checked), _prose(apart), _table(["detector", *head[1:]], each), kind,
        _footer(report),
    )  # fmt: skip
    return "\n".join(parts)


def _prose(text: str) -> str:
    """A paragraph of a plain width."""
    return textwrap.fill(text, 100, break_on_hyphens=False) + "\n"


def _series(title: str, about: str) -> Callable[[Mapping[str, Any]], str]:
    """A section on sensors."""

    def write(report: Mapping[str, Any]) -> str:
        size, alerts = report["rows"], report["alerts"]
        names = ["", *(name.replace("_", " ") for name in _SERIES), "met", "delay, rows"]
        rows = [
            [f"waxwing: {name}" if name in report["detectors"] or name == "ensemble" else name]
            + [_number(of[key]) for key in _SERIES]
            + [f"{of['stretches_met']} of {of['stretches']}", _delay(of["delay_rows_p50"])]
            for name, of in {"ensemble": report, **report["against"]}.items()
        ]
        rows += [
            [f"published: {name}", "-", "-", "-", *(_number(of[k]) for k in ("f1", "far", "mar")),
             "-", "-"]
            for name, of in report.get("published", {}).items()
        ]  # fmt: skip
        alone = " / ".join(_number(of) for of in report["strangest_cell"].values())
        told = (
            f"{about} {size['fit']:,} rows to fit on, {size['test']:,} to judge, {size['odd']:,} of"
            " them anomalous. No label is used in fits and limits, but detector `level`, its"
            " features and its weight were chosen with these figures in sight: expect less"
            " elsewhere; so was it that the ensemble and its detectors order rows by their cells"
            " together (`together` in [score.md](score.md)): by the strangest alone the ensemble's"
            f" first three figures are {alone}. f1, far (share of usual rows flagged) and mar"
            " (share of anomalous rows missed) are point-wise where the score of a cell is"
            f" {report['asked']} or more, and for peers on raw values at the 5 % of the rows they"
            " were fitted on. Nothing is adjusted by points. Met: anomalous stretches with a"
            " flagged row; delay: rows to the first, median. The alerts that the flow itself would"
            f" send (0.18 % of usual events): f1 {_number(alerts['f1'])}, far"
            f" {_number(alerts['far'])}, mar {_number(alerts['mar'])}."
        )
        return "\n".join((f"## {title}\n", _prose(told), _table(names, rows), _footer(report)))

    return write


def _delay(rows: float | None) -> str:
    """A median of whole rows."""
    return "-" if rows is None else f"{rows:g}"


def _footer(report: Mapping[str, Any]) -> str:
    """What it ran and took."""
    return f"Detectors: {', '.join(report['detectors'])}. {report['cpu_s']:,.0f} s of CPU.\n"


UNHEARD_MIN = 0.2
"""Recall that a detector alone must have beyond the vote's for it to be told. Chosen: plain."""


def _unheard(left_out: Mapping[str, Any], alone: Sequence[str]) -> list[str]:
    """A paragraph on attacks that one detector finds and the vote does not; none where it is
    heard."""
    told = []
    for attack, of in left_out.items():
        best = max(alone, key=lambda name: of.get(name, 0.0))
        if of.get(best, 0.0) - of["ensemble"] >= UNHEARD_MIN:
            told.append(f"{attack} ({best} {of[best]:.1%})")
    if not told:
        return []
    return [
        _prose(
            "The vote is weighed by what detectors were worth on labelled attacks, and those that"
            " need no labels count by themselves only where they are far out. So of attacks that"
            " are like none of the labelled ones it may lose what one detector alone finds:"
            f" {', '.join(told)}."
        )
    ]


def _auth_log(report: Mapping[str, Any]) -> str:
    """Lines of a server's log."""
    size, kinds, count = report["rows"], report["templates"], report["campaigns"]
    about = (
        f"{size['fit'] + size['test']:,} lines of sshd, sudo and cron, without labels; the first"
        f" {size['fit']:,} are fitted on, {size['test']:,} are judged. {kinds['mined']} templates"
        f" are mined from the first part: its lines have {kinds['fit']:,} different ones, the"
        f" others {kinds['test']:,}. A campaign is told by a rule from what sshd says, and no model"
        " sees it: five failed log-ins or more from one address, with pauses of at most ten"
        " minutes. Break-in attempts go on all the time here, in the part that is fitted on too, so"
        " that a small one is nothing unusual."
    )
    votes = {f"votes of {name}": of for name, of in report["against"].items()}
    rows = [
        [name, f"{of['alerts']:,}", f"{of['alerts'] / size['test']:.2%}",
         f"{of['campaigns_met']} of {count}", f"{of['elsewhere_flagged']:,}"]
        for name, of in ({"alerts of the flow": report} | votes).items()
    ]  # fmt: skip
    largest = [
        [one["begin"], f"{one['failed']:,}", f"{one['users']:,}", f"{one['seconds']:,}",
         _cell(one["says"]) if one["says"] else "not flagged"]
        for one in report["largest"]
    ]  # fmt: skip
    told = [
        [one["begin"], one["service"], f"{one['alerts']:,}", _cell(one["says"])]
        for one in report["incidents"]
    ]
    parts = (
        "## Application logs: a server's auth.log\n", _prose(about),
        _table(["", "lines", "share", "campaigns met", "lines of no campaign"], rows),
        _prose("The largest campaigns, with the words of the strangest alert among their lines:"),
        _table(["begin", "failures", "users", "seconds", "in the words of the alert"], largest),
        _prose("Incidents (alerts of one service with no longer pause than ten minutes), the"
               " strangest first:"),
        _table(["begin", "service", "alerts", "in the words of the strangest"], told),
        _footer(report),
    )  # fmt: skip
    return "\n".join(parts)


def _cell(text: str) -> str:
    """A text that may stand in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _percent(value: float | None) -> str:
    """A share as a person reads it, a dash where it is not known."""
    return "-" if value is None else f"{value:.1%}"


def _simulator(report: Mapping[str, Any]) -> str:
    """The simulator: all detectors with and without labels, attack by attack, strength by
    strength."""
    size, gain, blind = report["rows"], report["gain"], report["unlabelled"]
    names = list(report["by_detector"])
    alone = [name for name in names if name != "ensemble"]
    about = (
        f"Fitted on {report['history_days']:g} days of history, judged on"
        f" {report['hours']:g} hours of each of the traffic seeds"
        f" {', '.join(map(str, report['seeds']))}, which go on from its state: {size['test']:,}"
        f" events, {size['odd']:,} of them of attacks of the default mix. Seeds, strengths and"
        " shares were written down before the first fit. Thresholds are those of training, the"
        " same share of held-out genuine events for each detector and for the vote; the last"
        " column moves each to 0.3 % of the judged ones."
    )
    rows = [
        [title + name, f"{of['recall']:.2%}", f"{of['fpr']:.3%}", f"{of['recall_at_fpr']:.2%}"]
        for title, part in (("", report), ("without labels: ", blind))
        for name, of in part["by_detector"].items()
    ]
    seeds = ", ".join(f"{of['recall']:.2%} at {of['fpr']:.3%}" for of in report["by_seed"].values())
    said = f"The ensemble seed by seed: {seeds}."
    if gain:
        said += (
            f" It finds {gain['recall']['relative']:+.1%} against {gain['recall']['over']} at the"
            f" thresholds, {gain['recall_at_fpr']['relative']:+.1%} against"
            f" {gain['recall_at_fpr']['over']} at 0.3 %, relative to the better of zscore and iqr."
        )
    strengths = list(dict.fromkeys(s for of in report["strength"].values() for s in of))
    strengths.sort(key=float)
    curve = [
        [name, _percent(report["by_attack"].get(name, {}).get("ensemble")),
         _percent(blind["by_attack"].get(name, {}).get("ensemble")),
         *(_percent(of.get(s)) for s in strengths)]
        for name, of in report["strength"].items()
    ]  # fmt: skip
    lost = [
        [name, f"{of['events']:,}", _percent(of["seen"]), *(_percent(of.get(n)) for n in names),
         f"{of['fpr']:.2%}"]
        for name, of in report["left_out"].items()
    ]  # fmt: skip
    parts = (
        "## The simulator: seeds, strengths and attacks not seen before\n", _prose(about),
        _table(["", "recall", "false positives", "recall at 0.3 %"], rows), _prose(said),
        _prose("Recall of the ensemble by attack on days with many of them (thresholds as above):"
               " the default mix, the same without labels, and single strengths."),
        _table(["attack", "mix", "without labels", *strengths], curve),
        _prose("Leave one attack out: recall on the default mix by models that were fitted without"
               " any row of the attack, beside the ensemble that saw it; false positives of the"
               " ensemble on the plain events of its types."),
        _table(["attack never seen", "events", "seen", *names, "false positives"], lost),
        *_unheard(report["left_out"], alone),
        f"Detectors: {', '.join(alone)}. {report['cpu_s']:,.0f} s of CPU.\n",
    )  # fmt: skip
    return "\n".join(parts)


_SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "simulator": _simulator,
    "fraud-handbook": _handbook,
    "skab": _series(
        "Machine metrics: Skoltech Anomaly Benchmark",
        "Eight sensors of a water loop, 34 experiments, each a host; the first 400 rows of each are"
        " fitted on.",
    ),
    "server-machine": _series(
        "Server machines: SMD",
        "38 metrics of four machines (not all 28: not comparable with the means of papers).",
    ),
    "auth-log": _auth_log,
}
