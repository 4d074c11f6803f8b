"""The setting `features` from outside: learned from, run, certified, and refused otherwise."""

from __future__ import annotations

import json
from pathlib import Path

from tests.flow.harness import WORLD, alerts_of, call

CUT = """
features = ["payment.card_*", "payment.merchant_*_1h", "payment.log_amount", "!sequence"]
detectors = ["zscore", "transformer"]
event_types = ["payment"]
state_dir = "state"
bundle = "bundle"
alerts = ["jsonl"]
store = "off"
sim_paced = false
sim_speed = 7200.0
sim_seconds = 3
"""


def test_a_cut_catalogue_is_learned_from_run_and_certified(tmp_path: Path) -> None:
    world = "".join(f"{k} = {v if k != 'sim_start' else repr(v)}\n" for k, v in WORLD.items())
    (tmp_path / "cut.toml").write_text(CUT + world, encoding="utf-8")
    done = call("train", "--config", "cut.toml", "--days", "0.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no event type here has sequences: transformer" in done.stdout
    head = json.loads((tmp_path / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    assert list(head["names"]) == ["payment"]
    assert not [name for name in head["names"]["payment"] if name.startswith(("user_", "ip_"))]

    done = call("run", "--config", "cut.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    alerts = alerts_of(tmp_path / "state")
    told = {reason["feature"] for alert in alerts for reason in alert["reasons"]}
    assert alerts and told <= set(head["names"]["payment"])
    # The certificate knows what was chosen: nothing is said here but where the state lies.
    done = call("certify", "--set", "state_dir=state", cwd=tmp_path)
    assert done.returncode == 0 and "bit-identical" in done.stdout, done.stdout + done.stderr

    done = call("run", "--config", "cut.toml", "--set", "features=*", cwd=tmp_path)
    assert done.returncode == 2
    assert "`user_home_km` is new here" in done.stderr
    assert "set features = ['payment.card_*', 'payment.merchant_*_1h'" in done.stderr
