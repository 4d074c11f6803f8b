"""Whether a flow starts from the warm state beside its bundle: where it is its own past."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dataflows.cli.main import main
from dataflows.evaluation import load_warm
from dataflows.settings import Settings, load
from dataflows.sources.files import FileReader
from dataflows.sources.simulator import make_simulator, time_us_of
from dataflows.state.declared import write_declared
from dataflows.state.lock import lock_state
from dataflows.state.manifest import Manifest, read_manifest, write_manifest
from dataflows.state.own import MARKER, clear_own_state
from dataflows.warm import warm_folder, warm_start
from features.catalog import Catalog, catalog
from features.errors import ConfigError

VERSION = catalog().version
START = "2026-03-02T00:00:00Z"
WORLD = {"sim_population_seed": 1, "sim_cards": 20_000}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with warm state of sixteen groups beside the bundle, up to the simulator's start."""
    made = Manifest(0, 16, 1, VERSION, until_us=time_us_of(START))
    write_manifest(tmp_path / "warm", made)
    return load(environ={}, bundle=tmp_path / "bundle", state_dir=tmp_path / "state")


def start(
    settings: Settings, training: dict[str, Any], cat: Catalog | None = None, **changes: Any
) -> tuple[str | None, str]:
    """(name of the folder the flow starts from, what it says)."""
    said: list[str] = []
    found = warm_start(settings.model_copy(update=changes), training, cat or catalog(), said.append)
    assert len(said) <= 1
    return found and found.name, "".join(said)


def test_the_past_of_a_simulated_world_is_taken_by_its_flow(settings: Settings) -> None:
    found, said = start(settings, {"world": WORLD})
    assert found == "warm" and "2026-03-02T00:00:00Z" in said


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"groups": 8}, "another number of groups"),
        ({"sim_start": "2026-03-03T00:00:00Z"}, "another time than sim_start"),
        ({"sim_cards": 500}, "another simulated population"),
        ({"source": "kafka"}, "of simulated history"),
        ({"bundle": Path("nowhere/bundle")}, "there is no nowhere/warm"),
    ],
)
def test_a_cold_start_is_said_once_with_its_reason(
    settings: Settings, changes: dict[str, Any], why: str
) -> None:
    found, said = start(settings, {"world": WORLD}, **changes)
    assert found is None
    assert said.startswith("starts cold (") and why in said and "waxwing backfill" in said


def test_recorded_history_is_the_past_of_kafka_and_not_of_the_simulator(settings: Settings) -> None:
    assert start(settings, {}, source="kafka")[0] == "warm"
    found, said = start(settings, {})
    assert found is None and "of recorded history" in said


def test_files_that_history_holds_whole_are_run_without_it(
    settings: Settings, tmp_path: Path
) -> None:
    world = make_simulator(settings.model_copy(update={"sim_cards": 200}))
    rows = world.span(time_us_of(START), time_us_of(START) + 3_600_000_000)["payment"].frame
    for name, shift_us, taken in (("later", 0, "warm"), ("earlier", -86_400_000_000, None)):
        path = tmp_path / f"{name}.parquet"
        rows.with_columns(pl.col("time_us") + shift_us).write_parquet(path)
        found, said = start(
            settings, {}, source="file", file_paths={"payment": path}, event_types=["payment"]
        )
        assert found == taken, said


def test_the_flow_goes_on_right_behind_the_last_row_of_history(
    settings: Settings, tmp_path: Path
) -> None:
    world = make_simulator(settings.model_copy(update={"sim_cards": 200}))
    rows = world.span(time_us_of(START), time_us_of(START) + 60_000_000)["payment"].frame
    past, later = tmp_path / "past.parquet", tmp_path / "later.parquet"
    last_us = int(rows["time_us"].to_numpy().max())
    rows.write_parquet(past)
    one = rows.tail(1).with_columns(pl.lit(last_us + 1).alias("time_us"), event_id=pl.lit("new"))
    pl.concat([rows, one.select(rows.columns)]).write_parquet(later)
    folder = tmp_path / "warm"
    assert main(["backfill", "--data", f"payment={past}", "--out", str(folder)]) == 0
    made = read_manifest(folder)
    assert json.loads((folder / "declared.json").read_text("utf-8"))["version"] == VERSION
    assert made is not None and made.until_us == last_us + 1
    files = {"source": "file", "event_types": ["payment"]}
    reader = FileReader(
        settings.model_copy(update={**files, "file_paths": {"payment": later}}), made.until_us
    )
    taken = reader.take(10)
    assert taken.batches["payment"].frame["event_id"].to_list() == ["new"] and taken.eof
    # Nothing is left of the file that history holds whole, not even its last row.
    found, said = start(settings, {}, **files, file_paths={"payment": past})
    assert found is None and "holds all that is in the files" in said


def test_a_warm_state_of_other_features_names_what_is_declared_in_another_way(
    settings: Settings, tmp_path: Path
) -> None:
    features = [f for e in catalog().event_types for f in catalog().features(e)]
    half = [
        replace(f, window_s=1_800) if f.name == "card_count_1h" else f
        for f in features
        if f.name != "ip_cards_1h"
    ]
    other, folder = Catalog(half), tmp_path / "warm"
    write_manifest(folder, Manifest(0, 16, 1, other.version, until_us=time_us_of(START)))
    world = {"world": WORLD}
    _, said = start(settings, world)
    assert "it does not say what was declared of its features" in said, "an older one"
    write_declared(folder, other)
    _, said = start(settings, world)
    for part in ("payment: `ip_cards_1h` is new here",
                 "payment: `card_count_1h`: window_s 1800 -> 3600"):  # fmt: skip
        assert part in said
        with pytest.raises(ConfigError) as fault:
            load_warm(folder, settings.model_copy(update={"groups": 8}), catalog())
        assert part in str(fault.value) and "cut into 16 groups" in str(fault.value)
    # Of a state that was made since, what stood beside the one before says nothing.
    write_manifest(folder, Manifest(0, 16, 1, "0123456789abcdef", until_us=time_us_of(START)))
    assert "does not say what was declared" in start(settings, world)[1]


def test_what_the_settings_say_is_taken_without_a_word(settings: Settings) -> None:
    assert start(settings, {"world": WORLD}, warm_state=Path("other")) == ("other", "")
    assert start(settings, {"world": WORLD}, warm_state=Path("cold")) == (None, "")


def test_one_function_says_where_warm_state_lies(settings: Settings) -> None:
    beside = settings.bundle.parent / "warm"
    assert warm_folder(settings) == beside
    assert warm_folder(settings.model_copy(update={"warm_state": Path("cold")})) == beside
    assert warm_folder(settings.model_copy(update={"warm_state": Path("w")})) == Path("w")


def test_an_own_state_folder_is_emptied_but_for_lock_and_marker(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    clear_own_state(folder)
    (folder / "journal").mkdir()
    (folder / "journal" / "a").touch()
    (folder / "outside").symlink_to(tmp_path)
    clear_own_state(folder)
    assert {path.name for path in folder.iterdir()} == {"lock-0", MARKER} and tmp_path.is_dir()


def test_a_folder_with_something_else_in_it_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    with pytest.raises(ConfigError, match="name a folder that does not exist"):
        clear_own_state(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"], "not even a lock"


def test_a_folder_that_only_holds_its_lock_is_empty(tmp_path: Path) -> None:
    lock_state(tmp_path)
    clear_own_state(tmp_path)
    assert (tmp_path / MARKER).is_file()
