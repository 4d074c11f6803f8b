"""`waxwing run`: the detect flow with the settings of a file, until its source ends or a stop."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflows.settings import Settings

__all__ = [
    "add_parser",
    "check_outputs",
    "overrides_of",
    "passed_on",
    "run",
    "settings_arguments",
    "settings_of",
    "truth_names_of",
]

NOTIFY_END_S_MAX = 45.0
"""Longest wait for the notify flow to end: its start on a busy machine, its last reading, sending.
What it has not sent by then it sends after its next start."""


def settings_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which every command that runs a flow takes settings."""
    parser.add_argument("--config", metavar="F", help="settings file (TOML); see `waxwing check`")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="one setting; may be repeated",
    )


def passed_on(args: argparse.Namespace, sets: Iterable[str] | None = None) -> list[str]:
    """The options of `settings_arguments` for a process that takes the same settings.

    Parameters
    ----------
    sets : NAME=VALUE in place of those that were given
    """
    options = [] if args.config is None else ["--config", args.config]
    for item in args.set if sets is None else sets:
        options += ["--set", item]
    return options


def overrides_of(args: argparse.Namespace) -> dict[str, Any]:
    """Settings given on the command line.

    Raises
    ------
    ConfigError : a `--set` that is not NAME=VALUE
    """
    from dataflows.settings import Settings, parse_text
    from features.errors import ConfigError

    found: dict[str, Any] = {}
    faults = []
    for item in args.set:
        name, equals, text = item.partition("=")
        if not equals:
            faults.append(f"--set {item!r}: expected NAME=VALUE")
        elif name in Settings.model_fields:
            found[name] = parse_text(name, text)
        else:
            found[name] = text
    if faults:
        raise ConfigError(faults)
    return found


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("run", help="run the detect flow", description=__doc__)
    settings_arguments(parser)
    parser.add_argument(
        "--data",
        metavar="F",
        action="append",
        default=[],
        help="[EVENT_TYPE=]file to read in place of the settings' source",
    )
    parser.add_argument(
        "--mapping", metavar="M", help="mapping of foreign columns: shipped name or file"
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="run it in N processes that meet on the loopback, and start them again if one dies;"
        " without it the flow runs in this process",
    )
    parser.add_argument(
        "--json", metavar="P", help="write counts and latency at the end; - is stdout"
    )


def file_paths(items: list[str], mapping: str | None) -> dict[str, str]:
    """Event type -> file, of `--data` options; a bare file is of the mapping's event type.

    Raises
    ------
    ConfigError : a folder without files, a bare file whose event type nobody names, two files of
        one event type, or none of the mapping's; all at once
    """
    from dataflows.sources.files import mapping_event_type
    from features.errors import ConfigError

    found: dict[str, str] = {}
    faults: list[str] = []
    mapped = None if mapping is None else mapping_event_type(mapping)
    for item in items:
        for name, path in _files_of(item, mapped, faults).items():
            if name in found:
                faults.append(
                    f"--data {item}: {name} has a file already, {found[name]}; join the two into"
                    " one, or leave one out"
                )
            else:
                found[name] = path
    if mapped is not None and mapped not in found and not faults:
        faults.append(
            f"--mapping {mapping} is for {mapped} events, and --data has {', '.join(found)};"
            f" give {mapped}=FILE, or a mapping for what there is"
        )
    if faults:
        raise ConfigError(faults)
    return found


def _files_of(item: str, mapped: str | None, faults: list[str]) -> dict[str, str]:
    """Event type -> file, of one `--data` option; faults go to the list."""
    from features.events import event_types

    name, equals, path = item.partition("=")
    if equals and name in event_types():
        return {name: path}
    folder = Path(item)
    if folder.is_dir():
        files = {
            n: [p for s in ("parquet", "jsonl", "csv") if (p := folder / f"{n}.{s}").exists()]
            for n in event_types()
        }
        for n, several in files.items():
            if len(several) > 1:
                names = ", ".join(p.name for p in several)
                faults.append(f"--data {item}: several files of {n} ({names}); name one: {n}=FILE")
        inside = {n: str(several[0]) for n, several in files.items() if several}
        if not inside:
            faults.append(
                f"--data {item}: no file named after an event type"
                f" ({', '.join(event_types())});"
                " write them with `waxwing simulate --to parquet` or give EVENT_TYPE=FILE"
            )
        return inside
    if mapped is not None:
        return {mapped: item}
    faults.append(f"--data {item}: say which event type it holds: EVENT_TYPE={item}")
    return {}


def with_data(args: argparse.Namespace) -> dict[str, Any]:
    """Settings that `--data` and `--mapping` stand for.

    Raises
    ------
    ConfigError : see `file_paths`; with what is wrong with the user's own event types
    """
    from dataflows.settings import declaration_faults
    from features.errors import ConfigError

    found: dict[str, Any] = {}
    if args.mapping is not None:
        found["file_mapping"] = args.mapping
    if args.data:
        found["source"] = "file"
        # The names of event types must be known by now; `load` tells these faults where it is
        # reached.
        faults = declaration_faults(args.config, **overrides_of(args))
        try:
            found["file_paths"] = file_paths(args.data, args.mapping)
        except ConfigError as error:
            raise ConfigError([*faults, *error.faults]) from None
        found["event_types"] = list(found["file_paths"])
    return found


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that the options of the command stand for.

    Raises
    ------
    ConfigError : every fault at once
    """
    from dataflows.settings import load

    return load(args.config, **(with_data(args) | overrides_of(args)))


def check_outputs(args: argparse.Namespace, settings: Settings, *options: str) -> None:
    """Whether the files that options name are none of those that the command reads.

    Parameters
    ----------
    options : such as `--html`

    Raises
    ------
    ConfigError : each that is, and each that two options name
    """
    from dataflows.report import check_apart

    def given(option: str) -> str | None:
        value: str | None = getattr(args, option.removeprefix("--").replace("-", "_"), None)
        return value

    read: dict[str, Any] = {f"--data ({n})": path for n, path in settings.file_paths.items()}
    read |= {"--mapping": settings.file_mapping, "--labels": given("--labels")}
    read |= {"--config": args.config, "labels_file": settings.labels_file}
    read |= {f"the labels {path}": path for path in _labels_beside(args)}
    check_apart({option: given(option) for option in options}, read)


def _labels_beside(args: argparse.Namespace) -> Iterator[Path]:
    """Files of labels in the folders that `--data` names."""
    for item in args.data:
        for suffix in ("parquet", "csv", "jsonl"):
            yield Path(item) / f"labels.{suffix}"


def run(args: argparse.Namespace) -> int:
    """Run it."""
    from dataflows.report import write_json
    from dataflows.supervisor import Interrupted

    settings = settings_of(args)
    _check_workers(args.workers)
    notify = _start_notify(args, settings)
    try:
        report = _run_here(settings) if args.workers is None else _run_workers(args, settings)
    except Interrupted as second:
        _say(str(second))
        return second.status
    finally:
        if notify is not None:
            _end_notify(notify)
    if report:
        _tell(report, settings, args.json)
        write_json(args.json, report)
    return 0


def _run_here(settings: Settings) -> dict[str, Any]:
    """Run the flow in this process; its report."""
    from dataflows.observe.telemetry import Telemetry
    from dataflows.runner import run_flow, usage

    telemetry = Telemetry(truth_names=truth_names_of(settings))
    run_flow(settings, telemetry)
    return telemetry.report() | usage()


def _check_workers(workers: int | None) -> None:
    """ConfigError where it is no number of processes."""
    from dataflows.supervisor import WORKERS_MAX
    from features.errors import ConfigError

    if workers is not None and not 1 <= workers <= WORKERS_MAX:
        raise ConfigError(f"--workers {workers}: expected 1 to {WORKERS_MAX}")


def _run_workers(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Run the flow in processes of its own; their report, empty where they never met."""
    from dataflows.context import ended_before
    from dataflows.supervisor import Supervisor

    options = passed_on(args)
    for item in args.data:
        options += ["--data", item]
    if args.mapping is not None:
        options += ["--mapping", args.mapping]
    found = Supervisor(options, args.workers, settings.state_dir, _say).run()
    if not found:
        _say(ended_before(settings.state_dir))
    return found


def _say(text: str) -> None:
    """A sentence for the person who runs it."""
    print(f"waxwing: {text}", file=sys.stderr, flush=True)


def _tell(report: dict[str, Any], settings: Settings, json: str | None) -> None:
    """Counts in a sentence, and the judgement where the truth is known."""
    from dataflows.currencies import priced_lines
    from dataflows.observe.live import (
        approximated_text,
        beyond_text,
        estimated_text,
        judgement_table,
    )

    priced = priced_lines(report["currencies"]["unpriced"], report["currencies"]["old_rate"])
    _say(
        f"{report['in']:,} events in, {report['scored']:,} scored,"
        f" {report['dead_lettered']:,} dead-lettered,"
        f" {report['duplicates']:,} duplicates, {report['alerts']:,} alerts"
        + _corrected(report)
        + _outcomes(report["outcomes"])
        + (f"; {said}" if (said := beyond_text(report)) else "")
        + (f"; {approximated_text(report)}" if report["approximated"] else "")
        + (f"; {estimated_text(report)}" if report["estimated"] else "")
        + "".join(f"; {line}" for line in priced)
        + _dead_letters(settings, report["reasons"])
    )
    if report.get("detectors"):
        judgement_table(report, sys.stderr if json == "-" else sys.stdout)


def _corrected(report: dict[str, Any]) -> str:
    """How many rows late events have changed; nothing where there were none."""
    changed = report["corrected"] + report["corrected_unchecked"]
    if not changed:
        return ""
    return f"; late events changed {changed:,} scored rows, {report['flipped']:,} votes among them"


def _outcomes(found: dict[str, Any]) -> str:
    """What labels have said of alerts; nothing where they said nothing."""
    if not found or not found["confirmed"] + found["refuted"] + found["missed"]:
        return ""
    from dataflows.cli.labels import at_most

    marks = {"precision": "", "recall": at_most(found)}
    shares = ", ".join(
        f"{name} {mark}{found[name]:.1%}" for name, mark in marks.items() if found[name] is not None
    )
    return (
        f"; labels confirm {found['confirmed']:,} alerts and refute {found['refuted']:,},"
        f" {found['missed']:,} frauds had none ({shares})"
    )


def _dead_letters(settings: Settings, reasons: dict[str, int]) -> str:
    """Where this run's dead letters are and what is wrong with most of them; nothing without."""
    if not reasons:
        return ""
    reason, count = max(reasons.items(), key=lambda item: item[1])
    where = (
        str(settings.state_dir / "dead_letters.jsonl")
        if settings.dead_letters_topic is None
        else f"topic {settings.dead_letters_topic}"
    )
    return f"; dead letters are in {where}, most often {reason} ({count:,})"


def truth_names_of(settings: Settings) -> dict[int, str] | None:
    """Names of the codes in the labels of the mapping's files; None means the simulator's."""
    from dataflows.sources.files import truth_names

    if settings.source != "file" or settings.file_mapping is None:
        return None
    return truth_names(settings.file_mapping)


def _start_notify(args: argparse.Namespace, settings: Settings) -> subprocess.Popen[bytes] | None:
    """The notify flow in a process of its own: detection never waits for a pager."""
    if not settings.notify:
        return None
    from dataflows.supervisor import python_options

    command = [sys.executable, *python_options(), "-m", "dataflows.cli.main", "notify"]
    command += [*passed_on(args), "--parent", str(os.getpid())]
    # In a session of its own, so that Ctrl-C reaches it only by us, after the last alerts; and with
    # SIGTERM blocked, which it inherits, so that a short run does not end it before it has begun.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return subprocess.Popen(command, start_new_session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_notify(notify: subprocess.Popen[bytes]) -> None:
    """Let the notify flow send what is left, within the time it allows itself."""
    notify.terminate()
    try:
        notify.wait(timeout=NOTIFY_END_S_MAX)
    except subprocess.TimeoutExpired:
        notify.kill()
        notify.wait()
