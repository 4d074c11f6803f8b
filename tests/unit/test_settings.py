"""Settings: precedence, all faults at once, secrets never shown, nothing undocumented."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from dataflows.cli.check import markdown, missing_files, sections
from dataflows.cli.main import main
from dataflows.recorded import load_recorded
from dataflows.settings import PREFIX, REMOVED, RENAMED, Settings, load, recorded, shown, sources_of
from features.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(config: Path | None = None, environ: dict[str, str] | None = None, **set_: object):
    with pytest.raises(ConfigError) as caught:
        load(config, environ or {}, **set_)
    return caught.value.faults


def test_command_line_beats_variable_beats_file_beats_default(tmp_path: Path) -> None:
    config = write(tmp_path / "w.toml", "round_ms = 200\ngroups = 8\nlanes = 4\n")
    environ = {"WAXWING_ROUND_MS": "300", "WAXWING_GROUPS": "32"}
    settings = load(config, environ, round_ms=400)
    assert (settings.round_ms, settings.groups, settings.lanes) == (400, 32, 4)
    assert settings.deltas_max == Settings.model_fields["deltas_max"].default
    sources = sources_of(config, environ, round_ms=400)
    assert sources["round_ms"] == "command line"
    assert sources["groups"] == "WAXWING_GROUPS"
    assert sources["lanes"] == str(config)
    assert sources["deltas_max"] == "default"


def test_all_faults_are_found_at_once(tmp_path: Path) -> None:
    config = write(tmp_path / "w.toml", 'rond_ms = 5\ngroups = 0\nsim_start = "2026-03-02"\n')
    faults = faults_of(
        config,
        {"WAXWING_LANES": "many", "WAXWING_REDIS_ULR": "x"},
        event_types=["paymnt"],
        detectors=["isolation_forrest"],
        alerts=["pigeon"],
        kafka_from="yesterday",
    )
    expected = (
        ("w.toml", "unknown setting 'rond_ms'", "did you mean 'round_ms'"),
        ("WAXWING_REDIS_ULR", "did you mean 'redis_url'"),
        ("w.toml", "groups", "greater than or equal to 1", "got 0"),
        ("WAXWING_LANES", "lanes", "integer", "got many"),
        ("w.toml", "sim_start", "offset", "2026-03-02T00:00:00Z"),
        ("command line", "'paymnt'", "did you mean 'payment'", "login, metric, payment"),
        ("command line", "'isolation_forrest'", "did you mean 'isolation_forest'", "zscore"),
        ("command line", "'pigeon'", "console, jsonl, kafka"),
        ("command line", "kafka_from", "earliest, latest"),
    )
    for words in expected:
        assert any(all(word in fault for word in words) for fault in faults), (words, faults)
    assert sum("the settings are" in fault for fault in faults) == 1
    assert len(faults) == len(expected) + 1


def test_names_in_faults_are_the_valid_settings() -> None:
    assert all(name in faults_of(nonsense=1)[-1] for name in Settings.model_fields)


def test_a_setting_that_got_another_name_is_told_by_it_and_read_from_older_state(
    tmp_path: Path,
) -> None:
    assert all(old not in Settings.model_fields for old in RENAMED)
    fault, _ = faults_of(rollback_missed_percent=5)
    assert fault.endswith("it is called 'rollback_missed_share' now, 0.01 times the number")
    older = dict.fromkeys(RENAMED, 0.5) | {"notify": None, "lanes": 3, "groups": 8, "sparkle": 1}
    said: list[str] = []
    found = load_recorded(older, tmp_path, None, {"groups": 4}, said.append)
    for now, times in RENAMED.values():
        assert getattr(found, now) == 0.5 * times
    assert (found.lanes, found.groups, found.state_dir) == (3, 4, tmp_path)
    (sentence,) = said
    assert "does not have: sparkle; they are left out" in sentence


def test_missing_file_says_the_cure(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path / "none.toml")
    assert "does not exist" in fault and "waxwing check" in fault


def test_file_that_is_not_toml_says_where_it_breaks(tmp_path: Path) -> None:
    (fault,) = faults_of(write(tmp_path / "w.toml", "round_ms = = 5"))
    assert "not TOML" in fault and "line 1" in fault


def test_a_folder_in_place_of_the_file_is_one_sentence(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path)
    assert "cannot be read: Is a directory" in fault and str(tmp_path) in fault
    for reads in (load, sources_of):
        with pytest.raises(ConfigError, match="cannot be read"):
            reads(tmp_path, {})
        with pytest.raises(ConfigError, match="does not exist"):
            reads(tmp_path / "none.toml", {})


def test_events_may_be_ahead_no_further_than_late_ones_find_their_place() -> None:
    text = r"early_s 1000: expected at most 900, or late_s as large"
    with pytest.raises(ConfigError, match=text):
        load(None, {}, late_s=60, early_s=1_000)
    for late_s, early_s in ((60, 900), (5, 60), (1_000, 1_000), (0, 1_000), (60, 0)):
        assert load(None, {}, late_s=late_s, early_s=early_s).early_s == early_s


def test_file_source_without_files_is_refused() -> None:
    (fault,) = faults_of(source="file")
    assert "file_paths" in fault and "--data" in fault


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("jsonl", ["jsonl"]),
        ("jsonl, kafka", ["jsonl", "kafka"]),
        ('["jsonl", "console"]', ["jsonl", "console"]),
    ],
)
def test_list_variable_is_toml_or_words_with_commas(text: str, value: list[str]) -> None:
    assert load(None, {"WAXWING_ALERTS": text}).alerts == value


def test_table_variable_is_toml() -> None:
    got = load(None, {"WAXWING_KAFKA_OPTIONS": '{"fetch.wait.max.ms" = "20"}'})
    assert got.kafka_options == {"fetch.wait.max.ms": "20"}


@pytest.mark.parametrize("text", ["{card = 24, ip = 1.5}", '{"card": 24, "ip": 1.5}'])
def test_a_table_of_the_command_line_is_toml_or_json(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(None, {"WAXWING_ENTITY_TTL_H": text}).entity_ttl_h == {"card": 24.0, "ip": 1.5}
    assert main(["check", "--set", f"entity_ttl_h={text}"]) == 0
    capsys.readouterr()
    for wrong in ("card=24", "{card: 24}", "24", '{"card": "x'):
        assert main(["check", "--set", f"entity_ttl_h={wrong}"]) == 2
        (told,) = (line for line in capsys.readouterr().err.splitlines() if "entity_ttl_h" in line)
        assert "; write a table, {NAME = VALUE} of TOML or" in told
        assert "[entity_ttl_h] with a line for each in a settings file" in told


READ_FIRST = {"event_paths", "feature_paths", "detector_paths"}
"""Settings that `dataflows.settings` itself reads, before it makes any."""


def test_every_setting_is_read_somewhere() -> None:
    read = set(READ_FIRST)
    for folder in ("features", "models", "dataflows"):
        for path in (ROOT / folder).rglob("*.py"):
            if path != ROOT / "dataflows" / "settings.py":
                tree = ast.parse(path.read_text(encoding="utf-8"))
                read |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert set(Settings.model_fields) - read == set()


def test_a_setting_that_is_no_more_is_told_and_older_state_is_read(tmp_path: Path) -> None:
    assert all(old not in Settings.model_fields for old in REMOVED)
    (fault,) = faults_of(scores_log="x")
    assert fault.endswith(
        "setting 'scores_log' is no more: it did nothing; `waxwing score` writes the scores of a"
        " file"
    )
    said: list[str] = []
    found = load_recorded({"scores_log": None, "groups": 8}, tmp_path, None, {}, said.append)
    assert found.groups == 8 and said == []
    load_recorded({"scores_log": "x", "groups": 8}, tmp_path, None, {}, said.append)
    assert len(said) == 1 and "does not have: scores_log; they are left out" in said[0]


def test_variables_for_the_tests_are_no_settings() -> None:
    load(None, {"WAXWING_REQUIRE_SERVICES": "1", "WAXWING_SHARED_DATA": "x"})


SECRETS = {
    "pagerduty_routing_key": "hunter2hunter2hunter2hunter2hunt",
    "redis_url": "redis://me:hunter2@cache:6379/0",
    "kafka_registry_url": "http://me:hunter2@registry:8081",
    "kafka_options": {
        "sasl.password": "hunter2", "ssl.key.pem": "hunter2", "acks": "all",
        "sasl.oauthbearer.config": "principal=me hunter2", "https.proxy": "http://hunter2@proxy",
    },
}  # fmt: skip

ADDRESSES = {
    "redis://cache/0?password=hunter2": "redis://cache/0?password=********",
    "rediss://me@cache?db=1&ssl_password=hunter2&db=2":
        "rediss://********@cache?db=1&ssl_password=********&db=2",
    "redis://cache?p%61ssword=hun&ter2": "redis://cache?p%61ssword=********",
    "unix:///s?password=hunter2": "unix:///s?password=********",
    "redis://me:hunter2/ter2@cache:6379/0": "redis://me:********@cache:6379/0",
    "redis://me:hunter2@ter2@cache:6379/0": "redis://me:********@cache:6379/0",
    "redis://me:hun?ter2#hunter2@cache": "redis://me:********@cache",
    "https://hunter2@cache:8081": "https://********@cache:8081",
    "https://hunter2:@cache:8081": "https://********@cache:8081",
    "me:hunter2@cache:6379": "me:********@cache:6379",
    "rediss://cache:6379/0?ssl_cert_reqs=none": "rediss://cache:6379/0?ssl_cert_reqs=none",
}  # fmt: skip
"""Address -> what is shown of it."""


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("name", ["redis_url", "kafka_registry_url"])
def test_no_secret_of_an_address_is_shown_or_recorded(name: str, address: str) -> None:
    settings = load(None, {}, **{name: address})
    expected = ADDRESSES[address]
    assert shown(name, address) == expected
    assert f"{name}={expected}" in repr(settings).replace("'", "")
    assert recorded(settings).get(name) == (address if address == expected else None)
    assert not re.search("hun|ter2", json.dumps(recorded(settings)))


def test_a_command_shows_no_secret_of_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    for address, expected in ADDRESSES.items():
        for arguments in ([], ["--json", "-"]):
            assert main(["check", "--set", f"redis_url={address}", *arguments]) == 0
            said = "".join(capsys.readouterr())
            assert expected in said and not re.search("hun|ter2", said)
        if address != expected:
            for fault in faults_of(remote_url=address, redis_url=[address]):
                assert not re.search("hun|ter2", fault)


def test_secrets_are_masked_in_repr_check_and_faults(capsys: pytest.CaptureFixture[str]) -> None:
    settings = load(None, {}, **SECRETS)
    assert "hunter2" not in repr(settings) and "hunter2" not in str(settings)
    assert "acks = all" in shown("kafka_options", settings.kafka_options)
    assert settings.redis_url == SECRETS["redis_url"]
    for fault in faults_of(
        pagerduty_routing_key=["hunter2"],
        redis_url=["redis://:hunter2@h"],
        kafka_options={"sasl.password": ["hunter2"]},
    ):
        assert "hunter2" not in fault
    arguments = ["--set", "redis_url=redis://me:hunter2@cache:6379/0"]
    assert main(["check", *arguments]) == 0
    assert main(["check", "--json", "-", *arguments]) == 0
    out = capsys.readouterr().out
    assert "hunter2" not in out and "cache:6379" in out


MALFORMED = (
    "{sasl.password: hunter2}",
    '{"sasl.password"="hunter2"',
    "basic.auth.user.info=a:hunter2",
    "acks=all,sasl.password=hunter2",
    "hunter2",
    '["hunter2"]',
    "",
)
"""Tables that are none."""


@pytest.mark.parametrize("name", ["kafka_options", "kafka_registry_options"])
@pytest.mark.parametrize("way", ["variable", "file of a variable", "--set", "settings file"])
def test_of_a_table_with_passwords_that_is_none_nothing_is_shown(
    name: str,
    way: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "given"
    for text in MALFORMED:
        arguments = ["check"]
        if way == "variable":
            monkeypatch.setenv(f"WAXWING_{name.upper()}", text)
        elif way == "file of a variable":
            path.write_text(text, encoding="utf-8")
            monkeypatch.setenv(f"WAXWING_{name.upper()}_FILE", str(path))
        elif way == "--set":
            arguments += ["--set", f"{name}={text}"]
        else:
            path.write_text(f"{name} = {json.dumps(text)}\n", encoding="utf-8")
            arguments += ["--config", str(path)]
        assert main(arguments) == 2, text
        said = "".join(capsys.readouterr())
        assert f"{name}: Input should be a valid dictionary; got " in said, said
        assert "of length" in said and "hunter2" not in said, said
    with pytest.raises(ConfigError, match=rf"{name}: .*; got int, not shown"):
        load(None, {}, **{name: 7})


@pytest.mark.parametrize("asked", ["X-Amz-Signature", "X-Amz-Credential", "sv=1&sig", "Signature"])
def test_what_signs_an_address_is_neither_shown_nor_recorded(
    asked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"https://h/x?{asked}=hunter2"
    assert main(["check", "--set", f"remote_url={address}"]) == 0
    said = "".join(capsys.readouterr())
    assert f"{asked}=********" in said and "hunter2" not in said
    assert "remote_url" not in recorded(load(None, {}, remote_url=address))
    # Kept by versions that took the address of a bundle as it was.
    assert "hunter2" not in shown("bundle", Path(f"s3://b/x?{asked}=hunter2"))


def test_what_may_hold_a_secret_is_not_recorded_not_even_masked() -> None:
    settings = load(None, {}, **SECRETS)
    found = recorded(settings)
    assert found.keys().isdisjoint(SECRETS) and "***" not in json.dumps(found)
    addresses = ["redis://me:hunter2@cache", "plain"]
    assert "alerts" not in recorded(settings.model_copy(update={"alerts": addresses}))
    plain = recorded(load(None, {}))
    assert Settings.model_fields.keys() - plain.keys() == {
        "kafka_options",
        "kafka_registry_options",
    }
    assert plain["alerts"] == load(None, {}).alerts and plain["pagerduty_routing_key"] is None


def test_a_variable_names_a_file_that_holds_the_value(tmp_path: Path) -> None:
    url, options = tmp_path / "url", tmp_path / "options"
    url.write_text("redis://me:hunter2@cache:6379/0\n", encoding="utf-8")
    options.write_text('{"sasl.password" = "hunter2"}\n', encoding="utf-8")
    environ = {
        "WAXWING_REDIS_URL_FILE": str(url),
        "WAXWING_KAFKA_OPTIONS_FILE": str(options),
        "WAXWING_KAFKA_BROKERS_FILE": str(tmp_path / "not there"),
        "WAXWING_KAFKA_BROKERS": "named:9092",
    }
    settings = load(None, environ)
    assert settings.redis_url == "redis://me:hunter2@cache:6379/0"
    assert settings.kafka_options == {"sasl.password": "hunter2"}
    assert settings.kafka_brokers == "named:9092", "the variable itself wins"
    assert load(None, {"WAXWING_kafka_brokers": "h:9092"}).kafka_brokers == "h:9092"
    where = sources_of(None, environ)
    assert where["redis_url"] == "WAXWING_REDIS_URL_FILE"
    assert where["kafka_brokers"] == "WAXWING_KAFKA_BROKERS"
    with pytest.raises(ConfigError) as caught:
        load(None, {"WAXWING_REDIS_URL_FILE": str(tmp_path), "WAXWING_LANES_FILE": "\0",
                    "WAXWING_NOTHING_FILE": "x"})  # fmt: skip
    assert [fault.partition(":")[0] for fault in caught.value.faults[:3]] == [
        "WAXWING_REDIS_URL_FILE", "WAXWING_LANES_FILE", "WAXWING_NOTHING_FILE",
    ]  # fmt: skip


def test_every_setting_says_what_it_means() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description and len(field.description) >= 10, f"{name} has no help"


def test_every_setting_has_a_heading() -> None:
    found = sections()
    listed = [name for names in found.values() for name in names]
    assert listed == list(Settings.model_fields)
    assert all(found), "a setting stands before the first heading"


def test_every_setting_is_documented_and_the_page_is_fresh() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    undocumented = [name for name in Settings.model_fields if f"| `{name}` |" not in page]
    assert not undocumented, f"not in docs/settings.md: {undocumented}"
    assert page == markdown(), "run: waxwing check --markdown > docs/settings.md"


def test_units_stand_last_in_names() -> None:
    """A number says its unit in its name, or counts something."""
    units = ("_ms", "_s", "_h", "_max", "_bytes", "_seed", "_speed", "_seconds", "_share", "_cards")
    counts = {"groups", "lanes", "snapshot_rounds"}
    numbers = [n for n, f in Settings.model_fields.items() if f.annotation in (int, float)]
    assert [n for n in numbers if not n.endswith(units) and n not in counts] == []


def test_check_prints_every_setting_with_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path / "w.toml", "round_ms = 200\n")
    monkeypatch.setenv(f"{PREFIX}GROUPS", "8")
    assert main(["check", "--config", str(config), "--set", "lanes=4"]) == 0
    out = capsys.readouterr().out
    assert f"round_ms = 200  [{config}]" in out
    assert "groups = 8  [WAXWING_GROUPS]" in out
    assert "lanes = 4  [command line]" in out
    for name, field in Settings.model_fields.items():
        assert f"\n{name} = " in f"\n{out}" and str(field.description) in out


def test_check_as_json_holds_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", "-", "--set", "round_ms=50"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert list(settings) == list(Settings.model_fields)
    assert settings["round_ms"]["value"] == "50"
    assert settings["round_ms"]["source"] == "command line"


def test_check_prints_all_faults_one_a_line_and_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path / "w.toml", "rond_ms = 5\ngroups = 0\n")
    assert main(["check", "--config", str(config), "--set", "lanes=0"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 4 and all(line.startswith("waxwing: ") for line in lines)


def test_check_names_files_that_are_not_there(tmp_path: Path) -> None:
    settings = load(
        None, {}, source="file", file_paths={"payment": tmp_path / "p.parquet"}, voting="v.toml"
    )
    faults = missing_files(settings)
    assert len(faults) == 2 and all("does not exist" in fault for fault in faults)
