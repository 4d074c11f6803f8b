"""`waxwing certify` from outside: flows that ran, were killed, are live, or gave a wrong bit."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dataflows.cli.main import main
from dataflows.settings import load, recorded
from dataflows.state.bases import base_states, held_rounds
from dataflows.state.frames import frame, frames
from dataflows.state.manifest import read_manifest
from features.keys import group_of, hash_strings
from tests.flow.harness import TIMEOUT_S, Bench, Run, call, environment, running, wait_for
from tests.flow.test_json import undocumented
from tests.flow.test_model import another_bundle

ROOT = Path(__file__).resolve().parents[2]

HALF_DAY = {
    "sim_seconds": 6,
    "sim_speed": 7200.0,
    "round_rows_max": 2000,
    "snapshot_rounds": 5,
}
"""86,400 events in 44 rounds."""

FLIP = """
import sys
import numpy as np
from dataflows.cli.main import main
from features.engine import GroupEngine

process, done = GroupEngine.process, []

def flipped(self, rows, *more, **named):
    results = process(self, rows, *more, **named)
    if rows.round >= 23 and self.group == 5 and not done and 0 in results:
        part = results[0].parts.get(("payment", "card"))
        if part is not None:
            done.append(part[1][:1, 1:2].view(np.uint64).__ixor__(np.uint64(1)))
            print("flipped in round", rows.round, file=sys.stderr)
    return results

GroupEngine.process = flipped
sys.exit(main(sys.argv[1:]))
"""
"""`waxwing` with kernels that give one wrong bit: card_amount_max_1h of group 5, after round 22."""


FLIP_TOLD = """
import sys
from dataclasses import replace
import numpy as np
import dataflows.steps as steps
from dataflows.cli.main import main

event_id, feature = sys.argv.pop(1), sys.argv.pop(1)
assemble = steps.assemble

def flipped(catalog, batches, results):
    found = assemble(catalog, batches, results)
    for name, batch in batches.items():
        for row in np.flatnonzero((batch.frame["event_id"] == event_id).to_numpy())[:1]:
            values = found[name].values.copy()
            column = found[name].names.index(feature)
            values[row:row + 1, column].view(np.uint64).__ixor__(np.uint64(1))
            found[name] = replace(found[name], values=values)
    return found

steps.assemble = flipped
sys.exit(main(sys.argv[1:]))
"""
"""`waxwing` that gives the lowest bit of one feature of one event wrongly, and tells it so."""


SPANS_LIE = """
import sys
from dataclasses import replace
import dataflows.spans as spans
from dataflows.cli.main import main

score_rounds = spans.score_rounds

def lying(*given):
    for out in score_rounds(*given):
        yield replace(out, received=out.received + 1, alerts=())

spans.score_rounds = lying
sys.exit(main(sys.argv[1:]))
"""
"""`waxwing` in which rounds computed in one go lose their alerts and count an event more."""


def certify(bench: Bench, state: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """Status, report and what was said."""
    report = state.parent / "certified.json"
    report.unlink(missing_ok=True)
    done = call(
        "certify", "--set", f"state_dir={state}", "--json", str(report), *more, cwd=bench.folder
    )
    found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    return done.returncode, found, done.stdout + done.stderr


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file below a folder."""
    return {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    """A run of half a day and its report."""
    run = Run(bench, tmp_path_factory.mktemp("certified") / "state", HALF_DAY)
    return run, run.to_end()


def test_a_run_is_bit_identical_and_the_state_is_only_read(
    bench: Bench, whole: tuple[Run, dict[str, Any]]
) -> None:
    run, report = whole
    before = files(run.state_dir)
    status, found, said = certify(bench, run.state_dir)
    assert status == 0, said
    assert f"bit-identical, {report['in']:,} events" in said
    assert found["identical"] and found["events"] == report["in"]
    assert undocumented(found) == []
    assert found["rounds"] == report["rounds"] and found["difference"] is None
    assert files(run.state_dir) == before


def test_a_stretch_begins_at_the_base_state_before_it_and_workers_change_nothing(
    bench: Bench, whole: tuple[Run, dict[str, Any]]
) -> None:
    run, _ = whole
    assert len(held_rounds(run.state_dir)) > 3
    times = ("--from", "2026-03-02T06:00:00Z", "--to", "2026-03-02T09:00:00Z")
    status, found, said = certify(bench, run.state_dir, *times, "--workers", "2")
    assert status == 0, said
    assert 0 < found["base_round"] < found["first_round"] < found["last_round"]
    assert found["workers"] == 2 and 15_000 < found["events"] < 30_000


def test_settings_that_are_called_otherwise_now_or_gone_do_not_stand_in_the_way(
    bench: Bench, whole: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    shutil.copytree(whole[0].state_dir, state)
    for path in (state / "digests").glob("*.rounds"):
        data, (head, end) = path.read_bytes(), next(frames(path, b"WXD1"))
        header = json.loads(head)
        share = header["settings"].pop("rows_share")
        header["settings"] |= {"rows_sample": share, "rollback_missed_percent": 5, "sparkle": "on"}
        path.write_bytes(b"WXD1" + frame(json.dumps(header).encode()) + data[end:])
    until = ("--to", "2026-03-02T01:00:00Z")
    status, found, said = certify(bench, state, *until)
    assert status == 0 and found["events"] > 1_000, said
    assert "this version does not have: sparkle; they are left out" in said
    assert "rows_sample" not in said and "rollback" not in said


def test_after_kill_9_what_was_computed_before_and_after_is_bit_identical(
    bench: Bench, whole: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run = Run(bench, tmp_path / "state", HALF_DAY)

    def late_enough() -> bool:
        manifest = read_manifest(run.state_dir)
        return manifest is not None and manifest.round >= 15

    run.until(late_enough, hold=36)
    status, found, said = certify(bench, run.state_dir)
    assert status == 0 and found["rounds"] >= 15, said
    run.to_end()
    status, found, said = certify(bench, run.state_dir)
    assert status == 0, said
    assert found["events"] == whole[1]["in"]


def test_rounds_of_other_settings_are_certified_apart(bench: Bench, tmp_path: Path) -> None:
    """It stops, and goes on with another bound of lateness: the names, and each part for itself."""
    run = Run(bench, tmp_path / "state", HALF_DAY)

    def late_enough() -> bool:
        manifest = read_manifest(run.state_dir)
        return manifest is not None and manifest.round >= 12

    run.until(late_enough, hold=36)
    stopped = read_manifest(run.state_dir)
    assert stopped is not None
    Run(bench, run.state_dir, run.more | {"late_s": 7.0}).to_end()
    status, _, said = certify(bench, run.state_dir)
    assert status == 2 and "the setting late_s is 7.0 from round" in said, said
    since = said.split("--from ")[1].split()[0]
    status, before, said = certify(bench, run.state_dir, "--to", since)
    assert status == 0 and before["last_round"] == stopped.round, said
    status, after, said = certify(bench, run.state_dir, "--from", since)
    assert status == 0 and after["first_round"] == stopped.round + 1, said
    assert after["base_round"] == stopped.round, "what it went on from"
    alert = next(a for a in run.alerts() if a["round"] > stopped.round)
    told = call("explain", alert["id"], *bench.sets(state_dir=run.state_dir), "--json", "-",
                cwd=bench.folder)  # fmt: skip
    assert told.returncode == 0 and json.loads(told.stdout)["same"], told.stderr


def test_a_flow_that_is_live_is_certified_and_not_disturbed(bench: Bench, tmp_path: Path) -> None:
    more = HALF_DAY | {"sim_paced": "true", "sim_speed": 720.0, "sim_seconds": 0}
    run = Run(bench, tmp_path / "state", more)
    with running("run", *run.options(), cwd=bench.folder) as process:

        def two_manifests() -> bool:
            manifest = read_manifest(run.state_dir)
            return manifest is not None and manifest.round >= 10

        wait_for(two_manifests, "a second manifest", process)
        status, found, said = certify(bench, run.state_dir)
        assert status == 0 and found["rounds"] >= 10, said
        assert process.poll() is None
        process.terminate()
        out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, out
    assert certify(bench, run.state_dir)[0] == 0


def test_one_flipped_bit_names_round_group_entity_feature_and_both_values(
    bench: Bench, tmp_path: Path
) -> None:
    run = Run(bench, tmp_path / "state", HALF_DAY | {"rows_share": 1.0})
    script = tmp_path / "flip.py"
    script.write_text(FLIP, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), "run", *run.options()],
        cwd=bench.folder,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    round_ = int(done.stderr.split("flipped in round ")[1].split()[0])
    status, found, said = certify(bench, run.state_dir)
    assert status == 1, said
    difference = found["difference"]
    assert undocumented(found) == []
    assert (difference["round"], difference["group"]) == (round_, 5)
    assert difference["event_type"] == "payment"
    assert difference["feature"] == "card_amount_max_1h"
    assert difference["entity_type"] == "card" and difference["rows"] == 1
    key = hash_strings(pl.Series([difference["entity"]]))
    assert group_of(key, 16).tolist() == [5]
    then, now = difference["live"], difference["replayed"]
    assert abs(then - now) == math.ulp(min(then, now)), "one bit"
    assert f"round {round_}" in said and f"is {now!r} now, {then!r} then" in said
    shutil.rmtree(run.state_dir / "rows")
    status, found, said = certify(bench, run.state_dir)
    assert status == 1 and "not kept then" in said
    assert found["difference"] == difference | {"live": None, "text": found["difference"]["text"]}
    for path in (run.state_dir / "digests").glob("*.rows"):
        path.unlink()
    status, found, said = certify(bench, run.state_dir)
    difference = found["difference"]
    assert status == 1 and difference["entity"] is None and difference["rows"] is None
    assert (difference["group"], difference["feature"]) == (5, "card_amount_max_1h")


def test_where_an_alert_told_the_value_both_are_named(
    bench: Bench, whole: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    """The lowest bit of a feature that is a reason of an alert: what was told, and what is true."""
    run, _ = whole
    # The first rounds of a shorter run are those of the longer one.
    alert, reason = next(
        (alert, reason)
        for alert in run.alerts()
        for reason in alert["reasons"]
        if 5 < alert["round"] < 12 and alert["event_type"] == "payment" and reason["value"] > 0.0
    )
    script, state = tmp_path / "flip.py", tmp_path / "state"
    script.write_text(FLIP_TOLD, encoding="utf-8")
    short = Run(bench, state, HALF_DAY | {"sim_seconds": 2})
    done = subprocess.run(
        [sys.executable, str(script), alert["event_id"], reason["feature"], "run",
         *short.options()],
        cwd=bench.folder, env=environment({}), capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = next(a for a in short.alerts() if a["event_id"] == alert["event_id"])
    live = next(r["value"] for r in told["reasons"] if r["feature"] == reason["feature"])
    assert abs(live - reason["value"]) == math.ulp(min(live, reason["value"])), "one bit"
    status, found, said = certify(bench, state)
    assert status == 1, said
    difference = found["difference"]
    assert (difference["round"], difference["event_id"]) == (alert["round"], alert["event_id"])
    assert (difference["event_type"], difference["feature"]) == ("payment", reason["feature"])
    assert (difference["live"], difference["replayed"]) == (live, reason["value"])
    assert f"is {reason['value']!r} now, {live!r} then" in said
    assert difference["rows"] == 1


def test_an_upgrade_tells_which_alerts_would_have_changed(
    bench: Bench, whole: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run, _ = whole
    voting = tomllib.loads((Path(bench.settings["bundle"]) / "voting.toml").read_text())
    voting["payment_fraud"]["ensemble"] = 0.9999
    voting["account_attack"]["severity"] = "info"
    log = voting["log_anomaly"]
    log["ensemble"], log["thresholds"] = 0.98, dict.fromkeys(log["thresholds"], 0.98)
    rules = tmp_path / "voting.toml"
    rules.write_text("\n".join(toml_of(voting)), encoding="utf-8")
    other = Run(bench, tmp_path / "state", HALF_DAY | {"voting": rules})
    other.to_end()
    was, is_now = told_by(run), told_by(other)
    expected = changes_between(run, other)
    assert set(expected.values()) == {"gone", "new", "changed"}
    status, found, said = certify(bench, run.state_dir, "--upgrade", "--set", f"voting={rules}")
    assert status == 1 and undocumented(found) == [], said
    assert {(c["event_id"], c["anomaly_type"]): c["what"] for c in found["changes"]} == expected
    counts = {what: list(expected.values()).count(what) for what in ("gone", "new", "changed")}
    kept = {"same": len(was) - counts["gone"] - counts["changed"]}
    assert found["alerts"] == {"then": len(was), "now": len(is_now)} | counts | kept
    gone = next(c for c in found["changes"] if c["what"] == "gone")
    assert gone["id_then"] in said and gone["score_now"] is None
    stretch = ("--from", "2026-03-02T06:00:00Z", "--to", "2026-03-02T07:00:00Z")
    status, found, said = certify(bench, run.state_dir, "--upgrade", *stretch)
    assert status == 0 and found["changes"] == [] and found["alerts"]["same"] > 0, said
    log_file = other.state_dir / "alerts.jsonl"
    log_file.write_text("".join(log_file.read_text().splitlines(keepends=True)[1:]))
    status, _, said = certify(bench, other.state_dir, "--upgrade")
    assert status == 2 and "the log is not whole" in said and said.count("\n") == 1


@pytest.mark.parametrize("more", [(), ("--upgrade",)])
def test_what_differs_where_rounds_are_computed_in_one_go_is_computed_one_by_one(
    bench: Bench, whole: tuple[Run, dict[str, Any]], tmp_path: Path, more: tuple[str, ...]
) -> None:
    run, _ = whole
    script, report = tmp_path / "lie.py", tmp_path / "report.json"
    script.write_text(SPANS_LIE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), "certify", *more, "--set", f"state_dir={run.state_dir}",
         "--json", str(report)],
        cwd=bench.folder, env=environment({}), capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["changes"] == [] if more else found["identical"]
    if not more:  # detectors are asked apart in the first pass alone, and its time counts too
        assert {"ask", "score"} <= found["us_per_event"].keys()


def changes_between(was: Run, is_now: Run) -> dict[tuple[str, str], str]:
    """(event id, anomaly type) -> what an upgrade from one run to the other changes."""
    then, now = told_by(was), told_by(is_now)
    return {
        key: ("gone" if key not in now else "new" if key not in then else "changed")
        for key in then.keys() | now.keys()
        if then.get(key) != now.get(key)
    }


def test_an_upgrade_of_models_or_features_tells_what_a_flow_with_them_tells(
    bench: Bench, whole: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    """Another bundle; and another catalogue, whose bundle is trained on a feature more."""
    run, _ = whole
    other = another_bundle(bench, tmp_path / "other", 0.995)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(r"definitions/currencies.py -->\n```python\n(.*?)```", text, re.S)
    assert found is not None
    own = tmp_path / "currencies.py"
    own.write_text(found.group(1), encoding="utf-8")
    wider = {"bundle": tmp_path / "wider", "feature_paths": own, "detectors": "zscore,iqr"}
    trained = call("train", "--days", "1", *bench.sets(**wider, warm_state=tmp_path / "no"),
                   cwd=bench.folder)  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    for name, more in (("other", {"bundle": tmp_path / "other"}), ("wider", wider)):
        live = Run(bench, tmp_path / f"state-{name}", HALF_DAY | more)
        live.to_end()
        expected = changes_between(run, live)
        assert {"gone", "new", "changed"} & set(expected.values()), name
        given = [part for k, v in more.items() for part in ("--set", f"{k}={v}")]
        status, told, said = certify(bench, run.state_dir, "--upgrade", *given)
        assert status == 1 and undocumented(told) == [], said
        assert {(c["event_id"], c["anomaly_type"]): c["what"] for c in told["changes"]} == expected
        assert told["alerts"]["now"] == len(told_by(live))
        assert told["bundle"][0] != told["bundle"][1]
        assert (told["catalog"][0] != told["catalog"][1]) == (name == "wider")
        assert name == "wider" or told["bundle"][1] == other.id


def test_an_upgrade_that_names_no_bundle_has_those_that_were_promoted_then(
    bench: Bench, tmp_path: Path
) -> None:
    other = another_bundle(bench, tmp_path / "other", 0.995)
    run = Run(bench, tmp_path / "state", HALF_DAY)
    asked = ("model", *bench.sets(state_dir=run.state_dir), "promote", str(tmp_path / "other"))
    said = call(*asked, "--wait", "0", cwd=bench.folder)
    assert said.returncode == 0, said.stderr
    run.to_end()
    ids = [alert["bundle_id"] for alert in run.alerts()]
    assert ids.count(other.id) > 20 and set(ids[-20:]) == {other.id}
    status, found, said_then = certify(bench, run.state_dir, "--upgrade")
    assert status == 0 and found["changes"] == [], said_then
    assert found["alerts"]["same"] == found["alerts"]["now"] == len(told_by(run))
    first = ("--set", f"bundle={bench.settings['bundle']}")
    status, found, said_then = certify(bench, run.state_dir, "--upgrade", *first)
    assert status == 1 and found["alerts"]["gone"] > 20, "without the promotion"


def toml_of(voting: dict[str, Any]) -> list[str]:
    """Lines of voting.toml."""
    lines = []
    for name, rule in voting.items():
        tables = {k: v for k, v in rule.items() if isinstance(v, dict)}
        lines += [f"[{name}]", *(f"{k} = {json.dumps(rule[k])}" for k in rule if k not in tables)]
        for table, mine in tables.items():
            lines += [f"[{name}.{table}]", *(f"{k} = {v}" for k, v in mine.items())]
    return lines


def told_by(run: Run) -> dict[tuple[str, str], list[Any]]:
    """(event id, anomaly type) -> score, severity and votes of each alert."""
    votes = ("detector", "score", "vote")
    return {
        (a["event_id"], a["anomaly_type"]): [
            a["score"], a["severity"], [[vote[k] for k in votes] for vote in a["votes"]]
        ]
        for a in run.alerts()
    }  # fmt: skip


def test_a_file_is_certified_and_one_that_has_changed_is_found(
    bench: Bench, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    sets = bench.sets(sim_seconds=3, sim_speed=7200.0)
    done = call("simulate", "--to", "parquet", "--out", str(data), *sets, cwd=bench.folder)
    assert done.returncode == 0, done.stderr
    run = Run(bench, tmp_path / "state", {"round_rows_max": 5000, "snapshot_rounds": 3},
              ["--data", str(data)])  # fmt: skip
    report = run.to_end()
    status, found, said = certify(bench, run.state_dir)
    assert status == 0 and found["events"] == report["in"], said
    shutil.copy(data / "login.parquet", data / "payment.parquet")
    status, _, said = certify(bench, run.state_dir)
    assert status == 2, said


def test_what_cannot_be_replayed_is_said_in_a_sentence(
    whole: tuple[Run, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = whole
    state, later = run.state_dir, tmp_path / "later"
    shutil.copytree(state, later)
    for base in base_states(later)[:3]:
        shutil.rmtree(base.folder)
    for more, told in (
        ([], "does not exist"),
        (["--set", f"state_dir={tmp_path}"], "has no certificate"),
        (["--set", f"state_dir={later}", "--from", "2026-03-02T01:00:00Z"], "before what is kept"),
        (["--set", f"state_dir={state}", "--from", "2026-03-04T00:00:00Z"], "no rounds were cut"),
        (["--set", f"state_dir={state}", "--to", "yesterday"], "expected an ISO 8601 time"),
        (["--set", f"state_dir={state}", "--workers", "0"], "--workers"),
        (["--set", f"state_dir={state}", "--set", f"bundle={tmp_path / 'gone'}"], "of then"),
    ):
        given = more or ["--set", f"state_dir={tmp_path / 'none'}"]
        assert main(["certify", *given]) == 2, given
        said = capsys.readouterr().err
        assert told in said and said.count("\n") == 1, said


def test_what_is_recorded_of_the_settings_holds_no_secret() -> None:
    secret = "hunter2hunter2hunter2hunter2hunt"
    settings = load(
        None,
        {},
        redis_url=f"redis://me:{secret}@cache:6379/0",
        pagerduty_routing_key=secret,
        kafka_registry_url=f"https://me:{secret}@registry",
        kafka_options={"sasl.password": secret},
        bundle="here",
    )
    found = recorded(settings)
    assert secret not in json.dumps(found)
    assert found["bundle"] == str(Path("here").resolve())
    assert found["round_ms"] == 100 and "kafka_options" not in found
