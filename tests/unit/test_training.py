"""`waxwing train` and `waxwing evaluate`, small: history, warm state, bundle, judgement."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from dataflows import training
from dataflows.cli.main import main
from dataflows.evaluation import evaluate_simulated, load_warm
from dataflows.known import Met, read_attacks
from dataflows.settings import Settings, load
from dataflows.sources.simulator import make_simulator, time_us_of
from dataflows.training import (
    is_trained,
    train_files,
    train_simulated,
    warm_folder,
)
from features.catalog import catalog
from features.errors import ConfigError
from models.bundle import Bundle
from tests.flow.harness import call

SMALL = {
    "detectors": ["zscore", "iqr"],
    "sim_events_per_s": 0.5,
    "sim_cards": 500,
    "sim_anomaly_share": 0.01,
    "groups": 2,
}
"""Two days are 86,000 events."""


DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a small world, trained on two days."""
    folder = tmp_path_factory.mktemp("training")
    made = load(environ={}, **SMALL, bundle=folder / "bundle", state_dir=folder / "state")
    said: list[str] = []
    trained = train_simulated(made, said.append, days=2)
    assert trained.events > 80_000
    assert any("warm state" in text for text in said) and "trained in" in said[-1]
    return made


def test_history_ends_where_the_live_flow_starts(settings: Settings) -> None:
    warm = load_warm(warm_folder(settings), settings, catalog())
    assert warm is not None and warm.until_us == time_us_of(settings.sim_start)
    training = Bundle.load(settings.bundle, catalog()).training
    assert training["traffic_seed"] != settings.sim_seed
    for rows in training["sets"].values():
        assert rows["until_us"] < warm.until_us
        assert rows["attack_rows"] > 30


def test_a_demo_knows_whether_it_is_trained(settings: Settings) -> None:
    def why(**changes: object) -> str | None:
        return is_trained(settings.model_copy(update=changes))

    assert is_trained(settings) is None and why(sim_seed=11) is None
    assert "lack transformer" in str(why(detectors=["zscore", "transformer"]))
    assert "another simulated world" in str(why(sim_cards=600))
    assert "another number of groups" in str(why(groups=3))
    assert "no warm state" in str(why(warm_state=settings.bundle / "none"))
    assert "no models yet" in str(why(bundle=settings.bundle / "none"))


def test_an_evaluation_finds_attacks_of_another_seed(settings: Settings) -> None:
    report = evaluate_simulated(settings, 6.0)
    assert report["scored"] > 10_000 and report["in"] >= report["scored"]
    ensemble = report["detectors"]["ensemble"]
    assert ensemble["recall"] > 0.4 and ensemble["fpr"] < 0.03
    again = evaluate_simulated(settings, 6.0)
    assert again["detectors"] == report["detectors"]


def test_labels_under_way_at_the_end_of_history_are_in_its_warm_state(settings: Settings) -> None:
    begin = load_warm(warm_folder(settings), settings, catalog())
    assert begin is not None and begin.arrivals is not None
    assert len(begin.arrivals) > 10, "attacks of a history shorter than label_delay_s"


def test_warm_state_of_another_start_is_refused(settings: Settings) -> None:
    moved = settings.model_copy(update={"sim_start": "2026-03-03T00:00:00Z"})
    with pytest.raises(ConfigError, match="train again"):
        evaluate_simulated(moved, 1.0)
    other = settings.model_copy(update={"groups": 3})
    with pytest.raises(ConfigError, match="cut into 2 groups, settings say 3"):
        evaluate_simulated(other, 1.0)


def test_the_evaluate_command_writes_what_it_shows(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {**SMALL, "detectors": "zscore,iqr", "bundle": settings.bundle}
    options = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    out = tmp_path / "out.json"
    assert main(["evaluate", "--hours", "2", "--seed", "5", *options, "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["seed"] == 5 and set(report["detectors"]) == {"zscore", "iqr", "ensemble"}
    assert "recall by attack" in capsys.readouterr().out
    assert main(["evaluate", "--hours", "-1", *options]) == 2


def test_a_bundle_of_few_detectors_is_judged_and_scores_as_it_is(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {name: value for name, value in SMALL.items() if name != "detectors"}
    sets |= {"bundle": settings.bundle}
    options = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    out = tmp_path / "out.json"
    assert main(["evaluate", "--hours", "0.2", *options, "--json", str(out)]) == 0
    assert set(json.loads(out.read_text())["detectors"]) == {"zscore", "iqr", "ensemble"}
    options += ["--set", "detectors=zscore,transformer"]
    assert main(["evaluate", "--hours", "0.2", *options]) == 2
    assert "'transformer' is not in the bundle" in capsys.readouterr().err
    start = time_us_of("2026-02-01T12:00:00Z")
    made = make_simulator(settings, seed=3).span(start, start + 1_200_000_000)
    made["login"].frame.write_parquet(tmp_path / "login.parquet")
    table = ["score", "--data", f"login={tmp_path / 'login.parquet'}", "--set", "groups=2"]
    table += ["--bundle", str(settings.bundle), "--out", str(tmp_path / "scores.parquet")]
    assert main(table) == 0
    columns = pl.read_parquet(tmp_path / "scores.parquet").columns
    assert {name for name in columns if name.endswith("_vote")} == {"zscore_vote", "iqr_vote"}

    # The flow, its replay and what is beside it take the bundle's own as well.
    flow = ["--data", f"login={tmp_path / 'login.parquet'}", "--set", "groups=2"]
    flow += ["--set", f"bundle={settings.bundle}", "--set", "warm_state=cold"]
    flow += ["--set", f"state_dir={tmp_path / 'state'}"]
    ran = call("run", *flow, "--json", "-", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout[ran.stdout.index("{") :])["scored"] > 0
    assert main(["control", *flow[2:], "stage", "transformer", "off"]) == 2
    assert "there are zscore, iqr" in capsys.readouterr().err
    assert main(["model", "compare", str(settings.bundle), *flow]) == 0
    assert "no new alerts, none gone" in capsys.readouterr().out


def test_files_with_labels_train_a_bundle(settings: Settings, tmp_path: Path) -> None:
    simulator = make_simulator(settings, seed=3)
    start = time_us_of("2026-02-01T00:00:00Z")
    end = start + 2 * 86_400_000_000
    history = tmp_path / "history"
    history.mkdir()
    simulator.span(start, end)["login"].frame.write_parquet(history / "login.parquet")
    labels = simulator.labels(start, end)
    labels.select("event_id", "attack").write_csv(history / "labels.csv")
    out = tmp_path / "out.json"
    options = ["--set", f"bundle={tmp_path / 'bundle'}", "--set", "detectors=zscore,iqr"]
    options += ["--set", "groups=2", "--json", str(out)]
    options += ["--set", 'detector_options={"zscore.kept" = 3}']
    assert main(["train", "--data", str(history), *options]) == 0
    report = json.loads(out.read_text())
    assert report["rows"]["login"] > 5_000
    assert report["detectors"]["ensemble"]["recall"] > 0.2
    assert set(report["by_attack"]) == {"labelled"}
    assert (tmp_path / "warm" / "manifest.json").exists()
    made = Bundle.load(tmp_path / "bundle", catalog())
    assert made.training["options"] == {"zscore": {"kept": 3.0}}
    assert made.models["login"].detectors["zscore"].save()[1]["kept"] == 3


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ('{"zscore" = 3}', "expected DETECTOR.OPTION, got zscore"),
        ('{"level.kept" = 3}', "level is not among the detectors"),
    ],
)
def test_options_of_no_detector_are_refused_before_history_is_read(
    options: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("--set", f"bundle={tmp_path}", "--set", "detectors=zscore,iqr")
    assert main(["train", *sets, "--set", f"detector_options={options}"]) == 2
    said = capsys.readouterr()
    assert fault in said.out + said.err and "history" not in said.out


def test_a_stretch_of_a_file_is_learned_from_whole_where_it_is_short(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time_us_of("2026-02-01T00:00:00Z")
    frame = make_simulator(settings, seed=3).span(start, start + 2 * DAY_US)["login"].frame
    frame.write_parquet(tmp_path / "login.parquet")
    until = "2026-02-01T12:00:00Z"
    part = int((frame["time_us"] < time_us_of(until)).sum())
    monkeypatch.setattr(training, "ROWS_WANTED", part)
    found: list[int] = []
    monkeypatch.setattr(
        training, "learn", lambda _, sets, *rest: found.append(len(sets["login"].time_us))
    )
    changes = {"file_paths": {"login": tmp_path / "login.parquet"}, "file_until": until}
    changes |= {"source": "file", "bundle": tmp_path / "bundle"}
    train_files(settings.model_copy(update=changes), learn_from="2026-02-01T00:00:00Z")
    repeats = part - frame.filter(pl.col("time_us") < time_us_of(until))["event_id"].n_unique()
    assert found == [part - repeats] and part < len(frame) / 3


def test_a_folder_that_is_no_bundle_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("ten years")
    data = tmp_path / "payment.csv"
    data.write_text("event_id\n1\n")  # never come to: it would be refused for its columns
    train = ["train", "--set", f"bundle={precious}"]
    table = ["score", "--data", f"payment={data}", "--fit-until", "2026-03-02T00:00:00Z"]
    table += ["--keep", str(precious), "--out", str(tmp_path / "out.csv")]
    for command in (train, [*train, "--data", f"payment={data}"], table):
        assert main(command) == 2
        assert "no bundle and holds 'thesis.txt'" in capsys.readouterr().err
    assert (precious / "thesis.txt").read_text() == "ten years"
    assert not (tmp_path / "warm").exists() and not (tmp_path / "out.csv").exists()


@pytest.fixture
def history(settings: Settings, tmp_path: Path) -> Path:
    """A folder with an hour of logins."""
    start = time_us_of("2026-02-01T12:00:00Z")
    made = make_simulator(settings, seed=3).span(start, start + 3_600_000_000)
    folder = tmp_path / "history"
    folder.mkdir()
    made["login"].frame.write_parquet(folder / "login.parquet")
    return folder


def test_labels_that_match_no_event_are_refused_and_others_counted(
    settings: Settings, history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {**SMALL, "detectors": "zscore,iqr"}
    options = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    ids = pl.read_parquet(history / "login.parquet")["event_id"].unique(maintain_order=True)
    (tmp_path / "foreign.csv").write_text("event_id\nTX-1\nTX-2\n")
    (tmp_path / "some.csv").write_text(f"event_id\nTX-1\n{ids[0]}\n{ids[1]}\n{ids[1]}\n")
    told = ["--data", str(history), *options]
    train = ["train", *told, "--set", f"bundle={tmp_path / 'new' / 'bundle'}"]
    judge = ["evaluate", *told, "--cold", "--set", f"bundle={settings.bundle}"]
    compare = ["model", "compare", str(settings.bundle), *told, "--set", "warm_state=none"]
    compare += ["--set", f"bundle={settings.bundle}"]
    for command in (train, judge, compare):
        assert main([*command, "--labels", str(tmp_path / "foreign.csv")]) == 2
        fault = capsys.readouterr().err
        assert "none of 2 is of an event" in fault and "'TX-1'" in fault, command
        assert f"{ids[0]!r}" in fault, command
    assert not (tmp_path / "new").exists()
    assert main([*judge, "--labels", str(tmp_path / "some.csv")]) == 0
    assert "2 of 3 labels found" in capsys.readouterr().out
    typed = f"event_id,event_type\n{ids[0]},payment\n{ids[1]},payment\n"
    (tmp_path / "typed.csv").write_text(typed)
    for command in (judge, compare, train):
        assert main([*command, "--labels", str(tmp_path / "typed.csv")]) == 2
        assert "none of 2 is of an event" in capsys.readouterr().err, command
    (tmp_path / "typed.csv").write_text(f"{typed}{ids[1]},login\n")
    assert main([*judge, "--labels", str(tmp_path / "typed.csv")]) == 0
    assert "1 of 3 labels found" in capsys.readouterr().out
    assert main([*train, "--labels", str(tmp_path / "some.csv")]) == 2  # too few rows
    assert "2 of 3 labels found" in capsys.readouterr().out


def test_labels_are_counted_once_however_often_they_and_their_events_come() -> None:
    met = Met(pl.DataFrame({"event_id": ["a", "b", "b", "z"]}))
    assert met.see("login", pl.Series(["a", "c"])).to_list() == [True, False]
    met.see("login", pl.Series(["a", "b"]))
    assert met.told() == "2 of 3 labels found among the events"
    assert Met(pl.DataFrame({"event_id": []}, {"event_id": pl.String})).told().startswith("0 of 0")
    with pytest.raises(ConfigError, match="labels have 'a', no event came"):
        Met(pl.DataFrame({"event_id": ["a"]})).told()


def test_a_label_of_one_event_type_is_none_of_another_with_that_id(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("event_id,event_type\na,login\nb,payment\nc,\nd,\n")
    met = Met(read_attacks(path))
    ids = pl.Series(["a", "b", "c"])
    assert met.see("login", ids).to_list() == [True, False, True]
    assert met.see("payment", ids).to_list() == [False, True, True]
    assert met.told() == (
        "3 of 4 labels found among the events; 1 of them are of events of several types (login,"
        " payment): say of which in a column event_type"
    )
    path.write_text("event_id,event_type\na,logins\n")
    with pytest.raises(ConfigError, match="event_type 'logins': there are payment, login"):
        read_attacks(path)


VERDICTS = """event_id,verdict,time,source
p-1,fraud,2026-03-09T08:00:00Z,issuer
p-2,genuine,2026-03-09T08:00:00Z,analyst
p-3,genuine,2026-03-11T08:00:00+02:00,analyst
p-3,fraud,2026-03-11T07:00:00+00:00,issuer
p-4,genuine,1773302400000000,analyst
p-4,fraud,2026-03-11T08:00:00Z,issuer
007,fraud,2026-03-11T08:00:00Z,issuer
"""


def test_of_verdicts_those_count_that_call_a_fraud_last(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(VERDICTS)
    assert sorted(read_attacks(tmp_path / "labels.csv")["event_id"]) == ["007", "p-1", "p-3"]
    rows = [line.split(",") for line in VERDICTS.splitlines()]
    said = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    said[0] |= {"entities": {"card": "c-1"}, "event_type": "payment"}
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(one) + "\n" for one in said))
    assert sorted(read_attacks(tmp_path / "labels.jsonl")["event_id"]) == ["007", "p-1", "p-3"]
    (tmp_path / "untimed.csv").write_text("event_id,verdict\na,fraud\nb,fraud\na,genuine\n")
    assert read_attacks(tmp_path / "untimed.csv")["event_id"].to_list() == ["b"]
    (tmp_path / "named.csv").write_text("event_id,attack,verdict\na,theft,fraud\nb,,genuine\n")
    assert read_attacks(tmp_path / "named.csv").rows() == [("a", "theft")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("event_id,verdict\n1,fraud\n2,maybe\n", "verdict 'maybe': expected fraud or genuine"),
        ("event_id,verdict\n1,\n", "verdict '': expected fraud or genuine"),
        ("event_id,verdict,time\n1,fraud,soon\n2,fraud,0\n", "`time` of 1 of 2 labels is none"),
    ],
)
def test_a_verdict_nobody_can_read_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_attacks(tmp_path / "labels.csv")


def test_labels_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_attacks(tmp_path / "none.csv")
    (tmp_path / "labels.csv").write_text("id\n1\n")
    with pytest.raises(ConfigError, match="event_id"):
        read_attacks(tmp_path / "labels.csv")
    pl.DataFrame({"event_id": [1, 2]}).write_parquet(tmp_path / "labels.parquet")
    assert read_attacks(tmp_path / "labels.parquet")["event_id"].to_list() == ["1", "2"]
