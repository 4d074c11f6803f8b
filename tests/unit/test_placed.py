"""The setting `bundle`, `serve --bundle` and the candidate of `compare` name a bundle alike."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflows.cli.main import main
from dataflows.cli.serve import models_of
from dataflows.fetching import brought
from dataflows.placed import placed
from dataflows.settings import load
from features.catalog import catalog
from features.errors import BundleError, ConfigError
from models.bundle import Bundle, copy_bundle
from models.train import train
from tests.rows import training_set


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of logins."""
    rows = training_set(np.random.default_rng(3), "login", rows=1_000, odd=80)
    folder = tmp_path_factory.mktemp("place") / "login"
    train({"login": rows}, catalog(), ("zscore", "iqr"), 1).write(folder)
    return folder


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of the folder above it on a server, and the paths that were asked for there."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: Any) -> None:
            asked.append(self.path)

        def log_error(self, *_: Any) -> None:
            """Nothing."""

    handler = partial(Handler, directory=str(bundle.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def id_of(folder: Path) -> str:
    return str(json.loads((folder / "bundle.json").read_text())["id"])


@pytest.fixture(params=["folder", "file", "http", "archive", "http archive", "id"])
def place(
    request: pytest.FixtureRequest, bundle: Path, served: tuple[str, list[str]], tmp_path: Path
) -> str:
    """The bundle, named in one way."""
    if request.param == "id":
        copy_to = tmp_path / "state" / "bundles" / id_of(bundle)
        copy_to.mkdir(parents=True)
        copy_bundle(bundle, copy_to)
        return id_of(bundle)
    shutil.make_archive(str(bundle.parent / "packed"), "gztar", bundle.parent, "login")
    return {
        "folder": str(bundle),
        "file": f"file://{bundle}",
        "http": f"{served[0]}/login",
        "archive": str(bundle.parent / "packed.tar.gz"),
        "http archive": f"{served[0]}/packed.tar.gz",
    }[request.param]


def test_a_setting_and_an_option_take_a_bundle_from_wherever_it_is(
    place: str, bundle: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    settings = load(None, {}, bundle=place, state_dir=str(state))
    assert Bundle.load(settings.bundle, catalog()).id == id_of(bundle)
    again = load(None, {"WAXWING_BUNDLE": place}, state_dir=str(state))
    assert again.bundle == settings.bundle
    models = models_of(None, (("bundle", place), ("state_dir", str(state))))
    assert {"login", "login.zscore", "login.iqr"} == set(models)
    assert placed(place, state) == settings.bundle
    assert not [p.name for p in state.rglob("*.new")]


def test_what_was_brought_is_asked_for_again_only_where_it_is_another_one(
    bundle: Path, served: tuple[str, list[str]], tmp_path: Path
) -> None:
    base, asked = served
    shutil.rmtree(bundle.parent / "moving", ignore_errors=True)
    moving = Path(shutil.copytree(bundle, bundle.parent / "moving"))
    first = placed(f"{base}/moving", tmp_path)
    asked.clear()
    assert placed(f"{base}/moving", tmp_path) == first
    assert {*asked} == {"/moving/bundle.json", "/moving/voting.toml"}
    rules = moving / "voting.toml"
    rules.write_text(re.sub(r"ensemble = \S+", "ensemble = 0.5", rules.read_text()))
    edited = placed(f"{base}/moving", tmp_path)
    assert edited != first and id_of(edited) == id_of(first)
    rule = next(iter(Bundle.load(edited, catalog()).voting.anomaly_types.values()))
    assert rule.ensemble == 0.5, "the rules that are there now"
    rows = training_set(np.random.default_rng(4), "login", rows=1_000, odd=80)
    train({"login": rows}, catalog(), ("zscore",), 2).write(moving)
    assert id_of(placed(f"{base}/moving", tmp_path)) == id_of(moving) != id_of(first)
    assert placed(id_of(moving), tmp_path).name.startswith(id_of(moving)), "by its id from now on"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("0123456789abcdef", "there is no bundle 0123456789abcdef in"),
        ("ftp://host/bundle", "expected one of file://, http://"),
        ("http://127.0.0.1:9/bundle", "cannot be fetched"),
        ("none.tar.gz", "cannot be read"),
    ],
)
def test_a_place_without_a_bundle_is_a_fault_of_the_setting_beside_others(
    place: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as told:
        load(None, {}, bundle=place, state_dir=str(tmp_path), round_ms=-1)
    ours = [fault for fault in told.value.faults if "bundle" in fault]
    assert len(ours) == 1 and said in ours[0] and str(tmp_path / "waxwing-") not in ours[0]
    assert any("round_ms" in fault for fault in told.value.faults)
    with pytest.raises(BundleError):
        placed(place, tmp_path)


def test_a_damaged_bundle_is_refused_and_nothing_of_it_is_kept(
    bundle: Path, served: tuple[str, list[str]], tmp_path: Path
) -> None:
    shutil.rmtree(bundle.parent / "damaged", ignore_errors=True)
    damaged = Path(shutil.copytree(bundle, bundle.parent / "damaged"))
    (damaged / "login" / "iqr.npz").unlink()
    with pytest.raises(BundleError, match=f"{served[0]}/damaged"):
        placed(f"{served[0]}/damaged", tmp_path / "state")
    assert not [*(tmp_path / "state").rglob("*.json")]
    with pytest.raises(BundleError):
        brought(f"{served[0]}/damaged", tmp_path)


def test_training_writes_no_bundle_that_was_brought(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = (f"bundle=file://{bundle}", f"state_dir={tmp_path}")
    assert main(["train", *(part for one in sets for part in ("--set", one))]) == 2
    assert "training writes a folder of" in capsys.readouterr().err
