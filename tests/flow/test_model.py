"""Models change while events flow: at one round on all workers, nothing lost, the same again.

A second bundle is the first with other words about its training and a looser vote: its own id, and
alerts of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dataflows.sources.simulator import time_us_of
from dataflows.state.journal import read_cuts
from dataflows.state.row_log import kept_span, read_blocks, rows_folder
from features.catalog import catalog
from models.bundle import Bundle, read_head
from models.voting import Voting
from tests.flow.harness import (
    Bench,
    Run,
    alerts_of,
    call,
    counts_of,
    running,
    simulated_counts,
    wait_for,
)
from tests.flow.test_json import undocumented

PACED: dict[str, Any] = {
    "sim_paced": "true",
    "sim_seconds": 0,
    "sim_speed": 1200.0,
    "snapshot_rounds": 20,
    "retention_h": 2_000,
}
"""Twenty minutes a second, some ten alerts, for as long as it is wanted; all of it is kept."""

PATIENT = PACED | {"rollback_score_ms": 0.0, "rollback_missed_share": 0.0}
"""A busy machine may take its time: too many alerts alone are rolled back."""


TWO_HOURS: dict[str, Any] = {"sim_seconds": 2, "sim_speed": 3600.0, "round_rows_max": 3000}


def another_bundle(bench: Bench, folder: Path, score: float, note: str = "") -> Bundle:
    """Another bundle of the same world, which alerts from this score on; `note` of its training."""
    first = Bundle.load(Path(bench.settings["bundle"]), catalog())
    rules = {
        name: replace(rule, ensemble=score, thresholds=dict.fromkeys(rule.thresholds, score))
        for name, rule in first.voting.anomaly_types.items()
    }
    training = {**first.training, "note": note or f"from {score} on"}
    return replace(first, voting=Voting(rules), training=training).write(folder)


def model(
    bench: Bench, state: Path, *arguments: str, **more: Any
) -> subprocess.CompletedProcess[str]:
    """`waxwing model ...` on a state folder."""
    return call("model", *bench.sets(state_dir=state, **more), *arguments, cwd=bench.folder)


PROVIDER = """
import json
from pathlib import Path

from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider


def make():
    flags = json.loads(Path({path!r}).read_text())
    kept = {{name: InMemoryFlag("on", {{"on": text}}) for name, text in flags.items()}}
    return InMemoryProvider(kept)
"""


def flagged(bench: Bench, state: Path, flags: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Look once at flags of a provider in a file of the user's."""
    path = state.parent / "flags.json"
    path.write_text(json.dumps(flags), encoding="utf-8")
    file = state.parent / "provider.py"
    file.write_text(PROVIDER.format(path=str(path)), encoding="utf-8")
    return model(bench, state, "follow", "--provider", f"{file}:make", "--once", "--wait", "60")


def in_force_from(done: subprocess.CompletedProcess[str]) -> int:
    """The round that a command says its change is in force from."""
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("from round ")[1].split()[0])


def change(bench: Bench, state: Path, *arguments: str) -> int:
    """Change a stage by command; the round that it says the change is in force from."""
    return in_force_from(model(bench, state, *arguments, "--wait", "60"))


def by_itself(state: Path, since: int = 0) -> int:
    """The first round since one in which the flow heard a rollback of its own; 0 before it has."""
    for cut in read_cuts(state / "journal" / "lane-00"):
        if cut.round > since and any(record.get("by") == "waxwing" for record in cut.control):
            return cut.round
    return 0


def sent_until_now(bench: Bench, state: Path) -> dict[str, int]:
    """`counts_of` a run that was stopped: what the simulator sends up to where it stood then."""
    *_, last = read_cuts(state / "journal" / "lane-00")
    begun_us = time_us_of(bench.settings["sim_start"])
    given = {name: value for name, value in bench.settings.items() if name.startswith("sim_")}
    seconds = (last.positions["t_us"] - begun_us) / 1e6
    return simulated_counts(given | {"sim_speed": 1.0, "sim_seconds": seconds})


def certified_rounds(bench: Bench, state: Path) -> int:
    """Rounds that `waxwing certify` found bit-identical."""
    done = call("certify", *bench.sets(state_dir=state), "--json", "-", cwd=bench.folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return int(json.loads(done.stdout)["rounds"])


def test_a_bundle_is_tried_promoted_and_rolled_back_on_two_workers_and_nothing_is_lost(
    bench: Bench, tmp_path: Path
) -> None:
    """The last one, which would flood, by the flow itself."""
    state, folder, flood = tmp_path / "state", tmp_path / "second", tmp_path / "flood"
    new, flooding = (another_bundle(bench, *of).id for of in ((folder, 0.99), (flood, 0.2)))
    old = Bundle.load(Path(bench.settings["bundle"]), catalog()).id
    run = Run(bench, state, PATIENT, ("--workers", "2", "--json", str(tmp_path / "r.json")))

    def at_least(count: int) -> None:
        wait_for(lambda: len(alerts_of(state)) >= count, f"{count} alerts", process, 120)

    with running("run", *run.options(), cwd=bench.folder) as process:
        at_least(5)
        flags = {"waxwing.candidate": f"canary 50 {folder}", "waxwing.detector.zscore": "live"}
        canary = in_force_from(flagged(bench, state, flags))
        at_least(len(alerts_of(state)) + 20)
        live = change(bench, state, "promote", "--why", "better")
        at_least(len(alerts_of(state)) + 20)
        half = change(bench, state, "rollback")
        again = flagged(bench, state, flags)
        assert again.stdout == "nothing changed\n", "what was rolled back is not done again"
        end = change(bench, state, "rollback", "--why", "page flood")
        at_least(len(alerts_of(state)) + 5)
        worst = change(bench, state, "promote", str(flood))
        wait_for(lambda: by_itself(state), "the flow to roll it back", process, 120)
        at_least(len(alerts_of(state)) + 1)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert counts_of(report) == sent_until_now(bench, state)

    seen: dict[str, Counter[str]] = {part: Counter() for part in "abcBdfA"}
    for alert in alerts_of(state):
        at = alert["round"]
        passed = sum(at >= round_ for round_ in (canary, live, half, end, worst, by_itself(state)))
        seen[list(seen)[passed]][alert["bundle_id"]] += 1
    assert set(seen["a"]) == {old} == set(seen["d"]), seen
    assert set(seen["f"]) == {flooding} and set(seen["A"]) <= {old}, seen
    assert set(seen["b"]) == {old, new}, seen
    assert set(seen["c"]) == {new}, "from its round on, and on both workers"

    # What it has decided is computed again by the rules it came with.
    shutil.copyfile(flood / "voting.toml", state / "bundles" / new / "voting.toml")
    assert certified_rounds(bench, state) > end
    mine = next(a for a in alerts_of(state) if canary <= a["round"] and a["bundle_id"] == new)
    told = call("explain", mine["id"], *bench.sets(state_dir=state), "--json", "-",
                cwd=bench.folder)  # fmt: skip
    assert told.returncode == 0, told.stderr
    explained = json.loads(told.stdout)
    assert explained["same"] and explained["bundle"]["id"] == new

    listed = json.loads(model(bench, state, "list", "--json", "-").stdout)
    assert listed["live"] == old
    changes = json.loads(model(bench, state, "history", "--json", "-").stdout)["changes"]
    kinds = [(c["record"]["kind"], c["record"].get("stage"), c["refused"]) for c in changes]
    assert kinds == [
        ("bundle", "canary", None),
        ("bundle", "live", None),
        ("rollback", None, None),
        ("rollback", None, None),
        ("bundle", "live", None),
        ("rollback", None, None),
    ]
    assert changes[0]["record"]["by"] == "openfeature"
    assert changes[0]["record"]["why"] == f"flag waxwing.candidate = canary 50 {folder}"
    assert changes[3]["record"]["why"] == "page flood" and changes[3]["record"]["by"]
    assert changes[-1]["record"]["by"] == "waxwing", "the flow itself"
    assert "are usual (rollback_alerts_ratio_max = 10)" in changes[-1]["record"]["why"]


def test_a_bundle_that_loses_votes_or_takes_too_long_is_rolled_back_by_the_flow(
    bench: Bench, tmp_path: Path
) -> None:
    state, old = tmp_path / "state", Bundle.load(Path(bench.settings["bundle"]), catalog()).id
    folders = {note: tmp_path / note for note in ("raises", "sleeps")}
    ids = {note: another_bundle(bench, f, 0.99, note).id for note, f in folders.items()}
    limits = {"rollback_score_ms": 20.0, "rollback_missed_share": 0.001}
    # Six minutes a second, for as long as it takes: cut time is that of the events. Rounds stay
    # small where they take long, so that an event takes long on a busy machine, too.
    more = PACED | {"sim_speed": 360.0, "round_rows_max": 150, "rollback_watch_s": 86_400} | limits
    run = Run(bench, state, more, ("--json", str(tmp_path / "r.json")), broken="bundle_fails=400")
    said = {
        "raises": r"[\d,]+ votes missing on [\d,]+ events \(rollback_missed_share = 0\.001\)",
        "sleeps": r"its scores take [\d,]+ ms a round \(rollback_score_ms = 20\), and an event"
        r" [\d,.]+ times as long as usual",
    }
    with running(*run.command(), cwd=bench.folder) as process:
        wait_for(lambda: alerts_of(state), "an alert", process)
        for note, folder in folders.items():
            begun = change(bench, state, "promote", str(folder))
            wait_for(lambda b=begun: by_itself(state, b), f"{note}: a rollback", process)
            listed = json.loads(model(bench, state, "list", "--json", "-").stdout)
            assert listed["live"] == old
            told, round_ = len(alerts_of(state)), by_itself(state, begun)
            wait_for(lambda n=told: len(alerts_of(state)) > n, "another alert", process)
            after = {a["bundle_id"] for a in alerts_of(state)[told:] if a["round"] >= round_}
            assert after <= {old}
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert counts_of(report) == sent_until_now(bench, state)
    changes = json.loads(model(bench, state, "history", "--json", "-").stdout)["changes"]
    own = [change["record"] for change in changes if change["record"]["by"] == "waxwing"]
    assert [(r["kind"], r["bundle"], r["off"]) for r in own] == [
        ("rollback", ids[note], True) for note in folders
    ]
    for note, record in zip(folders, own, strict=True):
        assert re.fullmatch(said[note], record["why"]), record["why"]
        assert f"bundle {ids[note]} (live) is rolled back: {record['why']}" in out


def test_a_candidate_is_compared_with_the_live_bundle_before_it_is_promoted(
    bench: Bench, tmp_path: Path
) -> None:
    state, folder = tmp_path / "state", tmp_path / "looser"
    another_bundle(bench, folder, 0.99)
    Run(bench, state, TWO_HOURS | {"rows_share": 1.0}).to_end()
    page, out = tmp_path / "page.html", tmp_path / "out.json"
    options = ("--html", str(page), "--json", str(out), "--days", "1")
    done = model(bench, state, "compare", str(folder), *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    exact = compared(bench, state, folder, "--exact", "--days", "1")
    assert {**found, "seconds": 0} == {**found, **exact, "seconds": 0}, "all rows are kept"
    assert "kept rows" in page.read_text(encoding="utf-8")
    named = found["anomaly_types"]
    assert undocumented(found | {"anomaly_types": list(named.values())}) == []
    total = found["total"]
    live, new = (total[name] for name in ("live", "new"))
    assert live == len(alerts_of(state)) > 0, "what was live is what was alerted"
    assert total["gone"] == 0 == total["lost"], "whatever the stricter vote flags, the looser does"
    assert new > 0 and total["candidate"] == live + new
    assert total["frauds"] >= total["won"] + total["missed"] > 0, "the simulator knows its attacks"
    assert new == total["won"] + total["new_genuine"]
    said = f"+{new:,} alerts, none gone, 0 known frauds lost, {total['won']:,} won"
    assert said in done.stdout
    assert f"+{new:,}" in page.read_text(encoding="utf-8")
    best = max((e for e in found["examples"]), key=lambda e: e["score"])
    assert best["change"] == "new" and best["reasons"] and best["entity"] in done.stdout

    # Asked for before the start: the first round waits for it, though two hours pass in seconds.
    other, new = tmp_path / "other", read_head(folder)["id"]
    other.mkdir()
    asked = {"kind": "bundle", "bundle": new, "stage": "live", "path": str(folder)}
    (other / "control.jsonl").write_text(json.dumps(asked) + "\n", encoding="utf-8")
    Run(bench, other, TWO_HOURS).to_end()
    assert {alert["bundle_id"] for alert in alerts_of(other)} == {new}

    swapped = call(
        "model", *bench.sets(bundle=folder, state_dir=state), "compare", bench.settings["bundle"],
        "--exact", cwd=bench.folder,
    )  # fmt: skip
    assert swapped.returncode == 2 and "the rounds were scored with" in swapped.stderr


def compared(bench: Bench, state: Path, candidate: Path, *options: str) -> dict[str, Any]:
    """What `waxwing model compare` finds."""
    done = model(bench, state, "compare", str(candidate), "--json", "-", *options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rows_in(state: Path) -> dict[str, tuple[float, list[float]]]:
    """Event id -> weight and features of each kept row; AssertionError where one is there twice."""
    found: dict[str, tuple[float, list[float]]] = {}
    for block in read_blocks(rows_folder(state)):
        for rows in block.rows:
            values = np.nan_to_num(rows.values, nan=-1.0).tolist()
            for name, *row in zip(rows.event_id, rows.weight.tolist(), values, strict=True):
                assert name not in found
                found[name] = row[0], row[1]
    return found


def test_a_sample_of_the_rows_says_about_the_same_and_outlives_a_kill(
    bench: Bench, tmp_path: Path
) -> None:
    folder, whole, state = tmp_path / "looser", tmp_path / "whole", tmp_path / "state"
    another_bundle(bench, folder, 0.99)
    kept = TWO_HOURS | {"rows_share": 0.2, "snapshot_rounds": 2, "round_rows_max": 500}
    Run(bench, whole, kept).to_end()
    killed = Run(bench, state, kept, ("--workers", "2"))
    killed.until(lambda: kept_span(rows_folder(state)) is not None)
    killed.to_end()
    assert rows_in(state) == rows_in(whole), "on two workers, killed and resumed"

    estimate, exact = (compared(bench, whole, folder, *how) for how in ((), ("--exact",)))
    named = list(estimate["anomaly_types"].values())
    assert undocumented(estimate | {"anomaly_types": named}) == []
    assert 0.2 < estimate["rows"] / exact["events"] < 0.6
    assert estimate["events"] == exact["events"] and estimate["rounds"] == exact["rounds"]
    told = [(estimate["total"], exact["total"])]
    told += [(estimate["anomaly_types"][n], one) for n, one in exact["anomaly_types"].items()]
    held = []
    for found, true in told:
        for name, count in true.items():
            if name in found["intervals"]:
                low, high = found["intervals"][name]
                assert (found[name] is None) == (high is None)
                held.append(low <= count <= (count if high is None else high))
            elif name != "intervals":
                assert found[name] == count, name
    assert len(held) > 20 and np.mean(held) >= 0.8, "of 95 % intervals, as far as these few tell"

    none = model(bench, tmp_path / "none", "compare", str(folder))
    assert none.returncode == 2 and "does not exist" in none.stderr
