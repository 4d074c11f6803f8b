"""Bundles that come while the flow runs: checked before they score, refused without harm."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflows.addresses import address_fault, is_archive
from dataflows.compare import compare_files
from dataflows.comparison import Compared, Comparison, verdicts_of
from dataflows.control.bundles import WithBundles
from dataflows.control.records import Control, ControlFile, Fault, append_record
from dataflows.fetching import brought
from dataflows.settings import Settings
from dataflows.shelf import Seat, Shelf, owners
from dataflows.stages import target_of
from features.catalog import catalog
from features.errors import BundleError, ConfigError
from models.base import Decisions
from models.bundle import Bundle
from models.scoring import Scorer
from models.train import train
from tests.rows import training_set
from tests.streams import make_batch

DETECTORS = ("zscore", "iqr")
LIMIT_S = 120.0
"""Longest wait for a bundle. Chosen: a hundred times what it takes."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bundles of logins."""
    folder = tmp_path_factory.mktemp("bundles")
    rows = training_set(np.random.default_rng(3), "login", rows=1_000, odd=80)
    for seed, name in enumerate(("first", "second")):
        train({"login": rows}, catalog(), DETECTORS, seed).write(folder / name)
    return folder / "first", folder / "second"


class Field:
    """A shelf over the first bundle, a control file, and what is said."""

    def __init__(self, first: Path, state: Path) -> None:
        self.first, self.state, self.path = first, state, state / "control.jsonl"
        self.base = Scorer(Bundle.load(first, catalog()), DETECTORS)
        self.said: list[str] = []
        self.reader = self.open()

    def open(self) -> WithBundles:
        """A reader as a start has it."""
        self.shelf = Shelf(self.state, catalog(), self.base, self.first)
        return WithBundles(ControlFile(self.path), self.shelf, self.said.append, others=False)

    def ask(
        self, bundle: str, path: Path | str | None = None, stage: str = "shadow"
    ) -> dict[str, Any]:
        """Write a record."""
        record = {"kind": "bundle", "bundle": bundle, "stage": stage}
        record |= {} if path is None else {"path": str(path)}
        append_record(self.path, json.dumps(record))
        return record

    def until(self, done: Callable[[list[dict[str, Any]], list[Fault]], bool]) -> Any:
        """Take, round after round, until enough has come; all records and faults."""
        records: list[dict[str, Any]] = []
        faults: list[Fault] = []
        give_up = time.monotonic() + LIMIT_S
        while not done(records, faults):
            assert time.monotonic() < give_up, (records, faults)
            more, bad = self.reader.take()
            records, faults = records + more, faults + bad
        return records, faults


@pytest.fixture
def field(bundles: tuple[Path, Path], tmp_path: Path) -> Field:
    return Field(bundles[0], tmp_path)


def id_of(folder: Path) -> str:
    return str(json.loads((folder / "bundle.json").read_text())["id"])


def test_a_bundle_is_heard_once_it_can_score_and_others_pass_meanwhile(
    field: Field, bundles: tuple[Path, Path]
) -> None:
    new = id_of(bundles[1])
    field.ask(new, bundles[1])
    live = field.ask(new, stage="live")
    mute = {"kind": "mute", "entity_type": "card", "entity": "c1", "until_us": 5}
    append_record(field.path, json.dumps(mute))
    assert field.reader.take()[0] == [mute], "nobody waits for a bundle but what speaks of it"
    assert len(field.reader.position["waiting"]) == 2
    records, faults = field.until(lambda records, _: len(records) == 2)
    assert records[-1] == live and not faults
    assert isinstance(field.reader.position, int), "nothing waits"
    lineup = field.shelf.lineup(Control.of(records))
    assert [(seat.bundle, seat.stage) for seat in lineup] == [(new, "live")]
    assert lineup[0].scorer.bundle.id == new
    back = Control.of(records).apply({"kind": "rollback"}).apply({"kind": "rollback"})
    assert [seat.base for seat in field.shelf.lineup(back)] == [True]


def test_what_still_waits_when_a_flow_ends_is_told(
    field: Field, bundles: tuple[Path, Path]
) -> None:
    new = id_of(bundles[1])
    record = field.ask(new, bundles[1])
    field.ask(new, stage="live")
    assert field.reader.take() == ([], [])
    at = field.reader.position
    field.reader.close()
    (said,) = field.said
    assert said.startswith(f"2 control records for bundle {new} had to wait until the flow ended")
    field.reader = field.open()
    field.reader.seek(at)
    records, _ = field.until(lambda records, _: len(records) == 2)
    assert records[0] == record, "the next start hears of it"
    field.reader.close()
    assert len(field.said) == 1, "nothing waits any more"


def test_what_was_asked_for_before_a_start_is_in_force_from_its_first_round_on(
    field: Field, bundles: tuple[Path, Path]
) -> None:
    new = id_of(bundles[1])
    asked = [field.ask(new, bundles[1]), field.ask(new, stage="live")]
    mute = {"kind": "mute", "entity_type": "card", "entity": "c1", "until_us": 5}
    append_record(field.path, json.dumps(mute))

    shelf = Shelf(field.state, catalog(), field.base, field.first)
    reader = WithBundles(ControlFile(field.path), shelf, field.said.append, False, LIMIT_S)
    records, faults = reader.take()
    assert records == [mute, *asked] and not faults and isinstance(reader.position, int)
    (said,) = field.said
    assert said.startswith(f"2 control records of before this start want bundle {new}: the first")
    reader.close()


def test_a_bundle_that_does_not_come_holds_up_a_start_no_longer_than_it_may(
    field: Field, bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = id_of(bundles[1])
    field.ask(new, bundles[1])
    never: Future[None] = Future()
    shelf = Shelf(field.state, catalog(), field.base, field.first)
    monkeypatch.setattr(shelf, "fetch", lambda *_: never)
    reader = WithBundles(
        ControlFile(field.path), shelf, field.said.append, False, 1e9, stop=lambda: True
    )
    assert reader.take() == ([], []), "a flow that is to end waits for nothing"
    field.said.clear()
    reader = WithBundles(ControlFile(field.path), shelf, field.said.append, False, 0.2)
    assert reader.take() == ([], []) and len(reader.position["waiting"]) == 1
    waits, goes_on = field.said
    assert "at most 0.2 s" in waits and "did not come within 0.2 s" in goes_on
    assert reader.take() == ([], []) and len(field.said) == 2
    never.set_exception(BundleError("it is gone"))
    (fault,) = reader.take()[1]
    assert "it is gone" in fault.reason
    reader.close()


def test_what_changes_bundles_keeps_its_order_while_one_is_awaited(
    field: Field, bundles: tuple[Path, Path]
) -> None:
    new, first = id_of(bundles[1]), id_of(bundles[0])
    field.ask(first, stage="live")
    field.until(lambda records, _: bool(records))
    asked = [
        field.ask(new, bundles[1], "live"),
        field.ask(first, stage="live"),
        {"kind": "rollback"},
    ]
    append_record(field.path, json.dumps(asked[2]))
    came, _ = field.until(lambda records, _: len(records) == 3)
    assert came == asked, "one that is loaded does not overtake one that is not"


def test_a_rollback_of_what_scores_does_not_wait_for_another(
    field: Field, bundles: tuple[Path, Path]
) -> None:
    asked = field.ask(id_of(bundles[1]), bundles[1])
    back = {"kind": "rollback", "bundle": id_of(bundles[0])}
    append_record(field.path, json.dumps(back))
    assert field.reader.take()[0] == [back]
    assert field.until(lambda records, _: bool(records))[0] == [asked]


def test_what_waited_is_asked_again_after_a_restart(
    field: Field, bundles: tuple[Path, Path]
) -> None:
    asked = field.ask(id_of(bundles[1]), bundles[1])
    field.reader.take()
    position = json.loads(json.dumps(field.reader.position))
    field.reader = field.open()
    field.reader.seek(position)
    records, _ = field.until(lambda records, _: bool(records))
    assert records == [asked]


def _truncate(path: Path) -> None:
    file = path / "login" / "scales.npz"
    file.write_bytes(file.read_bytes()[:-10])


def _lose(path: Path) -> None:
    (path / "login" / "zscore.npz").unlink()


def _head(path: Path, **changed: Any) -> None:
    file = path / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def _half(path: Path) -> None:
    file = path / "bundle.json"
    file.write_text(file.read_text()[:100])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_truncate, "scales.npz is not as it was written (checksum)"),
        (_lose, "login/zscore.npz missing"),
        (_half, "cannot be read"),
        (shutil.rmtree, "there is no model bundle at"),
        (lambda path: _head(path, format=9), "format 9, expected 1"),
        (lambda path: _head(path, catalog_version="x"), "not as it was written (id)"),
        (lambda path: _head(path, id="0" * 16), "was trained again since"),
        (lambda path: _head(path, files={"../../x": "y"}), "names files outside of it"),
    ],
)
def test_a_bundle_that_cannot_be_used_is_refused_aloud_and_leaves_nothing(
    field: Field, bundles: tuple[Path, Path], tmp_path: Path, damage: Any, why: str
) -> None:
    new, copy = id_of(bundles[1]), tmp_path / "copy"
    shutil.copytree(bundles[1], copy)
    damage(copy)
    field.ask(new, copy)
    records, faults = field.until(lambda _, faults: bool(faults))
    assert not records and why in faults[0].reason and str(copy) in faults[0].reason
    assert len(field.said) == 1 and "what scores goes on" in field.said[0]
    assert not [p for p in field.shelf.folder.glob("*") if field.shelf.folder.is_dir()]
    field.ask(new, bundles[1])
    records, faults = field.until(lambda records, faults: bool(records or faults))
    assert records and not faults, "the whole one is taken"


@pytest.mark.parametrize("kind", ["gztar", "zip", "file", "archive by URL"])
def test_a_bundle_comes_from_an_archive_or_a_url(
    field: Field, bundles: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    place = f"file://{bundles[1]}"
    if kind != "file":
        how = "gztar" if kind == "archive by URL" else kind
        place = shutil.make_archive(str(tmp_path / "packed"), how, bundles[1].parent, "second")
        place = f"file://{place}" if kind == "archive by URL" else place
    new = id_of(bundles[1])
    append_record(
        field.path,
        json.dumps({"kind": "bundle", "bundle": new, "path": place, "stage": "shadow"}),
    )
    records, faults = field.until(lambda records, faults: bool(records or faults))
    assert records and not faults, faults
    assert [p.name for p in field.shelf.folder.iterdir()] == [new]
    assert field.shelf.scorer(new).bundle.id == new


def test_an_archive_that_is_none_or_reaches_outside_is_refused(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "gztar", bundles[1]))
    half = tmp_path / "half.tar.gz"
    half.write_bytes(packed.read_bytes()[:2_000])
    outside = tmp_path / "outside.tar"
    with tarfile.open(outside, "w") as archive:
        archive.add(bundles[1] / "bundle.json", "../../stolen/bundle.json")
    empty = tmp_path / "empty.zip"
    zipfile.ZipFile(empty, "w").close()
    torn, tearing = tmp_path / "torn.zip", tmp_path / "tearing.zip"
    for path, how in ((torn, zipfile.ZIP_DEFLATED), (tearing, zipfile.ZIP_LZMA)):
        with zipfile.ZipFile(path, "w", how) as zipped:
            zipped.write(bundles[1] / "bundle.json", "bundle.json")
        spoilt = bytearray(path.read_bytes())
        spoilt[60:160] = b"\xff" * 100
        path.write_bytes(spoilt)
    secret = tmp_path / "secret.zip"
    with zipfile.ZipFile(secret, "w") as zipped:
        zipped.writestr("bundle.json", "{}")
    for sign, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag that it is encrypted
        made = bytearray(secret.read_bytes())
        made[made.index(sign) + at] |= 1
        secret.write_bytes(made)
    nowhere = f"file://{tmp_path / 'nowhere'}"
    for place, why in (
        (half, "the archive cannot be read"),
        (outside, "the archive cannot be read (OutsideDestinationError"),
        (torn, "the archive cannot be read (error"),
        (tearing, "the archive cannot be read (LZMAError"),
        (secret, "the archive cannot be read (RuntimeError"),
        (empty, "holds no bundle.json"),
        (nowhere, "cannot be fetched (FileNotFoundError"),
        ("nosuch://bucket/bundle", "expected one of file://, http://, https://, s3://"),
    ):
        into = tmp_path / "into" / "deep"
        into.mkdir(parents=True)
        with pytest.raises(BundleError) as caught:
            brought(str(place), into)
        assert why in str(caught.value) and str(place) in str(caught.value)
        shutil.rmtree(tmp_path / "into")
    assert not list(tmp_path.rglob("stolen"))


@pytest.mark.parametrize("chain", ["simplecache::file://", "reference::file://", "memory://"])
def test_an_address_of_another_kind_or_a_chain_is_not_asked(
    bundles: tuple[Path, Path], tmp_path: Path, chain: str
) -> None:
    with pytest.raises(BundleError, match=r"no chain \(`::`\)"):
        brought(f"{chain}{bundles[1]}", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["https://me:secret@host/b.tgz", "s3://key@bucket/b"])
def test_an_address_with_a_user_is_not_asked(tmp_path: Path, place: str) -> None:
    with pytest.raises(BundleError, match=r"\*\*\*@.*user or password") as caught:
        brought(place, tmp_path)
    assert "secret" not in str(caught.value) and "key" not in str(caught.value)
    assert address_fault("abfss://container@account.dfs.core.windows.net/b") is None


class _Files(SimpleHTTPRequestHandler):
    """Files of a folder, whatever is asked behind the `?`; says nothing."""

    def log_message(self, *_: Any) -> None:
        """See the class."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of a folder's files, while the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_signature_is_in_no_record_that_is_journaled_and_in_no_message(
    field: Field, bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.make_archive(str(tmp_path / "b"), "zip", bundles[1])
    with served(tmp_path) as url:
        signed = f"{url}/b.zip?X-Amz-Signature=hunter2&x=a/b:c"
        record = {"kind": "bundle", **target_of(signed), "stage": "shadow"}
        assert record["path"] == signed, "the flow is to fetch it"
        append_record(field.path, json.dumps(record))
        records, faults = field.until(lambda records, faults: bool(records or faults))
        assert records == [record | {"path": f"{url}/b.zip?***"}] and not faults
        assert "hunter2" not in json.dumps(field.reader.position)

        gone = signed.replace("b.zip", "gone.zip")
        with pytest.raises(BundleError, match=r"gone\.zip\?\*\*\*") as caught:
            target_of(gone)
        field.ask("ab" * 8, gone)
        _, faults = field.until(lambda _, faults: bool(faults))
    told = [str(caught.value), *field.said, *(f"{f.raw!r} {f.reason}" for f in faults)]
    assert all("gone.zip?***" in text and "hunter2" not in text for text in told), told


def test_an_archive_is_known_by_the_path_of_its_url() -> None:
    assert is_archive("https://host/b.tgz?sig=x.y") and is_archive("/b.TAR.gz")
    assert not is_archive("https://host/b?as=x.tgz") and not is_archive("https://host/b")


@pytest.mark.parametrize("limit", ["BYTES_MAX", "FILES_MAX"])
@pytest.mark.parametrize("kind", ["", "gztar", "zip"])
def test_no_more_comes_of_a_bundle_than_may_all_files_together(
    bundles: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    kind: str,
) -> None:
    sizes = [p.stat().st_size for p in bundles[1].rglob("*") if p.is_file()]
    bytes_max = max(sizes) + 1  # Each file alone may come.
    assert bytes_max < sum(sizes) and len(sizes) > 2
    place = f"file://{bundles[1]}"
    if kind:
        place = shutil.make_archive(str(tmp_path / "packed"), kind, bundles[1])
    monkeypatch.setattr(f"dataflows.fetching.{limit}", bytes_max if limit == "BYTES_MAX" else 2)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(BundleError, match=r"more than|at most"):
        brought(place, into)
    came = [p.stat().st_size for p in into.rglob("*") if p.is_file()]
    assert sum(came) <= bytes_max if limit == "BYTES_MAX" else len(came) <= 2


def test_a_url_of_unknown_or_false_size_is_copied_until_the_limit_alone(
    bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.size", lambda *_: None)
    monkeypatch.setattr("dataflows.fetching.BYTES_MAX", 10)
    with pytest.raises(BundleError, match="more than"):
        brought(f"file://{bundles[1]}", tmp_path)
    assert not (tmp_path / "fetched" / "bundle.json").stat().st_size


def test_an_archive_is_read_no_further_than_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, many, listed = (tmp_path / name for name in ("long.tar.gz", "many.tar.gz", "listed.zip"))
    with tarfile.open(long, "w:gz", pax_headers={"comment": "x" * 1_000_000}) as archive:
        archive.addfile(tarfile.TarInfo("bundle.json"))
    with gzip.open(many, "wb") as packed:
        for name in "abcd":
            packed.write(tarfile.TarInfo(name).tobuf())
        packed.write(b"what would be said of, were it read" * 1_000)
    with zipfile.ZipFile(listed, "w") as zipped:
        for n in range(1_000):
            zipped.writestr(f"{n:05}", "")
    monkeypatch.setattr("dataflows.fetching.FILES_MAX", 3)
    monkeypatch.setattr("dataflows.fetching.HEADERS_BYTES_MAX", 50_000)
    for place, why in (
        (long, "headers of more than 50,000 bytes"),
        (many, "more than 3 files"),
        (listed, "a list of files of more than 50,000 bytes"),
    ):
        into = tmp_path / place.stem
        into.mkdir()
        with pytest.raises(BundleError, match=why):
            brought(str(place), into)


def test_a_place_that_does_not_answer_holds_up_neither_others_nor_the_end(
    field: Field, bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()

    def hang(place: str, into: Path) -> Path:
        assert answer.wait(LIMIT_S) and "hanging" not in place
        return brought(place, into)

    monkeypatch.setattr("dataflows.shelf.brought", hang)
    monkeypatch.setattr("dataflows.shelf.FETCH_S", 0.1)
    field.ask("ab" * 8, tmp_path / "hanging")
    records, faults = field.until(lambda _, faults: bool(faults))
    assert not records and "was not there within 0.1 s" in faults[0].reason
    mine = [t for t in threading.enumerate() if t.name.startswith("waxwing-bundle")]
    assert mine and all(thread.daemon for thread in mine)
    monkeypatch.setattr("dataflows.shelf.FETCH_S", LIMIT_S)
    monkeypatch.setattr("dataflows.shelf.brought", brought)
    asked = field.ask(id_of(bundles[1]), bundles[1])
    assert field.until(lambda records, _: bool(records))[0] == [asked]
    answer.set()


def test_what_comes_too_slowly_is_given_up(
    bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataflows.fetching.FETCH_S", -1.0)
    with pytest.raises(BundleError, match="did not come within"):
        brought(f"file://{bundles[1]}", tmp_path)


def test_whatever_a_bundle_raises_is_refused_and_not_asked_again(
    field: Field, bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warm_up(self: Scorer) -> None:
        raise IndexError("no such leaf")

    monkeypatch.setattr(Scorer, "warm_up", warm_up)
    field.ask(id_of(bundles[1]), bundles[1])
    records, faults = field.until(lambda _, faults: bool(faults))
    assert not records and "IndexError: no such leaf" in faults[0].reason
    assert isinstance(field.reader.position, int), "nothing waits"


def test_a_bundle_nobody_has_is_refused_with_those_there_are(field: Field) -> None:
    field.ask("ab" * 8)
    _, faults = field.until(lambda _, faults: bool(faults))
    assert "is not known here" in faults[0].reason
    assert field.base.bundle.id in faults[0].reason


def test_a_bundle_in_force_that_is_gone_from_the_shelf_is_told(field: Field) -> None:
    control = Control.of([{"kind": "bundle", "bundle": "ab" * 8, "stage": "live"}])
    with pytest.raises(BundleError, match="is in force and gone from"):
        field.shelf.lineup(control)


def test_the_bundle_of_the_settings_stays_where_a_record_names_it_and_the_settings_change(
    field: Field, bundles: tuple[Path, Path]
) -> None:
    first = id_of(bundles[0])
    record = field.ask(first, stage="live")
    assert field.until(lambda records, _: bool(records))[0] == [record]
    again = Scorer(Bundle.load(bundles[1], catalog()), DETECTORS)
    shelf = Shelf(field.state, catalog(), again, bundles[1])
    assert [seat.bundle for seat in shelf.lineup(Control.of([record]))] == [first]


def edit(folder: Path) -> Path:
    """Have a bundle ask for more."""
    path = folder / "voting.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"ensemble = \S+", "ensemble = 0.99999", text), encoding="utf-8")
    return path


@pytest.fixture
def candidate(bundles: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the second bundle, to be edited."""
    return Path(shutil.copytree(bundles[1], tmp_path / "candidate"))


def test_a_bundle_with_edited_rules_comes_with_them_and_no_others_later(
    field: Field, candidate: Path
) -> None:
    edit(candidate)
    first = {"kind": "bundle", **target_of(str(candidate)), "stage": "shadow"}
    append_record(field.path, json.dumps(first))
    assert field.until(lambda records, faults: bool(records or faults)) == ([first], [])
    seat = field.shelf.lineup(Control.of([first]))[1]
    assert {rule.ensemble for rule in seat.scorer.voting.anomaly_types.values()} == {0.99999}

    path = candidate / "voting.toml"
    path.write_text("# mine\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    same = {"kind": "bundle", **target_of(str(candidate)), "stage": "canary"}
    path.write_text(path.read_text().replace("0.99999", "0.9"), encoding="utf-8")
    other = {"kind": "bundle", **target_of(str(candidate)), "stage": "live"}
    for record in (same, other):
        append_record(field.path, json.dumps(record))
    records, faults = field.until(lambda _, faults: bool(faults))
    assert records == [same], "a comment is no rule"
    assert f"voting.toml of {candidate} is not what bundle" in faults[0].reason
    assert "waxwing control threshold" in faults[0].reason and "set `bundle`" in field.said[0]


def test_rules_of_the_settings_bundle_are_read_at_the_start_alone(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundles[0], tmp_path / "first"))
    for started in (False, True):
        edit(folder)
        field = Field(folder if started else bundles[0], tmp_path / str(started))
        field.path.parent.mkdir(exist_ok=True)
        record = {"kind": "bundle", **target_of(str(folder)), "stage": "live"}
        append_record(field.path, json.dumps(record))
        records, faults = field.until(lambda records, faults: bool(records or faults))
        assert (len(records), len(faults)) == (int(started), int(not started))
        assert started or "start the flow again, which reads voting.toml" in faults[0].reason


def test_an_edit_on_the_shelf_changes_nothing_and_is_told(
    field: Field, bundles: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    record = field.ask(id_of(bundles[1]), bundles[1])
    field.until(lambda records, _: bool(records))
    seat = field.shelf.lineup(Control.of([record]))[1]
    path = edit(field.shelf.folder / seat.bundle)
    for text in (path.read_text(encoding="utf-8"), "no rules at all"):
        path.write_text(text, encoding="utf-8")
        caplog.clear()
        field.reader = field.open()
        again = field.shelf.lineup(Control.of([record]))[1]
        assert again.scorer.voting == seat.scorer.voting
        assert f"{path} was edited and is not taken" in caplog.text


@pytest.mark.parametrize("how", ["edited", "cut", "emptied"])
def test_kept_rules_that_are_not_as_they_were_kept_are_refused(
    field: Field, bundles: tuple[Path, Path], how: str
) -> None:
    record = field.ask(id_of(bundles[1]), bundles[1])
    field.until(lambda records, _: bool(records))
    folder = field.shelf.folder / id_of(bundles[1])
    path = folder / "voting.kept.toml"
    kept = path.read_bytes()
    damaged = {"edited": kept.replace(b"0.99", b"0.95"), "cut": kept[:-100], "emptied": b""}[how]
    path.write_bytes(damaged)
    field.reader = field.open()
    with pytest.raises(BundleError, match=r"voting\.kept\.toml is not as it was written"):
        field.shelf.lineup(Control.of([record]))
    path.write_bytes((folder / "voting.toml").read_bytes())  # of before there were checksums
    field.reader = field.open()
    assert len(field.shelf.lineup(Control.of([record]))) == 2


def test_a_place_with_broken_rules_is_refused_by_its_own_name(candidate: Path) -> None:
    (candidate / "voting.toml").write_text("[payment_fraud]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"voting\.toml"):
        target_of(str(candidate))


def test_no_bundle_is_removed_that_can_be_rolled_back_to(
    field: Field, bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = id_of(bundles[1])
    record = field.ask(new, bundles[1], stage="live")
    field.until(lambda records, _: bool(records))
    monkeypatch.setattr("dataflows.shelf.KEPT_MAX", 0)
    control = Control.of([record]).apply({"kind": "bundle", "bundle": new, "stage": "off"})
    field.shelf.forget(control)
    assert field.shelf.names() == [field.base.bundle.id, new]
    field.shelf.forget(Control())
    assert field.shelf.names() == [field.base.bundle.id]


def test_a_bundle_whose_removal_is_cut_short_is_copied_again(
    field: Field, bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = id_of(bundles[1])
    field.ask(new, bundles[1])
    field.until(lambda records, _: bool(records))
    monkeypatch.setattr("dataflows.shelf.KEPT_MAX", 0)
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda path, **_: (path / "bundle.json").unlink())
        field.shelf.forget(Control())
    field.ask(new, bundles[1])
    records, faults = field.until(lambda records, faults: bool(records or faults))
    assert records and not faults, faults


def test_a_bundle_that_is_asked_for_is_not_removed_before_it_is_in_force(
    field: Field, bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, new = map(id_of, bundles)
    for name, place in ((new, bundles[1]), (first, bundles[0])):
        field.ask(name, place)
        field.until(lambda records, _: bool(records))
    os.utime(field.shelf.folder / new, (1, 1))
    os.utime(field.shelf.folder / first, (2, 2))
    monkeypatch.setattr("dataflows.shelf.KEPT_MAX", 1)
    field.ask(new, stage="live")
    field.until(lambda records, _: bool(records))
    field.shelf.forget(Control())
    assert [p.name for p in field.shelf.folder.iterdir()] == [new]


def test_a_canary_decides_for_its_entities_alone_and_more_percent_keep_them(
    field: Field, bundles: tuple[Path, Path], rng: np.random.Generator
) -> None:
    new = id_of(bundles[1])
    field.ask(new, bundles[1])
    field.until(lambda records, _: bool(records))
    keys = rng.integers(0, 2**63, 20_000).astype(np.uint64)
    before = np.zeros(len(keys), np.bool_)
    for percent in (0.0, 5.0, 40.0, 100.0):
        record = {"kind": "bundle", "bundle": new, "stage": "canary", "percent": percent}
        mine = np.asarray(owners(field.shelf.lineup(Control.of([record])), keys) == 1)
        assert abs(100.0 * mine.mean() - percent) < 1.5
        assert not (before & ~mine).any()
        before = mine


def test_two_canaries_decide_for_entities_of_their_own(
    field: Field, bundles: tuple[Path, Path], rng: np.random.Generator
) -> None:
    scorer, keys = field.base, rng.integers(0, 2**63, 20_000).astype(np.uint64)
    seats = [Seat("a", scorer, "live", 100.0, True), Seat("s", scorer, "shadow", 100.0, False)]
    seats += [Seat(name, scorer, "canary", 5.0, False) for name in "bc"]
    seats += [Seat("d", scorer, "canary", 95.0, False)]
    found = owners(tuple(seats), keys)
    assert found is not None
    shares = 100.0 * np.bincount(found, minlength=5) / len(keys)
    assert np.allclose(shares, [0, 0, 5, 5, 90], atol=1.0)


def test_a_canary_with_more_percent_keeps_its_place_among_canaries() -> None:
    first, second = (
        {"kind": "bundle", "bundle": name * 16, "stage": "canary", "percent": 5.0} for name in "bc"
    )
    control = Control.of([first, second, first | {"percent": 40.0}])
    assert list(control.bundles.items()) == [
        ("b" * 16, ("canary", 40.0)),
        ("c" * 16, ("canary", 5.0)),
    ]


def compared(
    scorer: Scorer, frauds: dict[str, bool], live: list[list[int]], candidate: list[list[int]]
) -> dict[str, Any]:
    """Logins, by id whether they are frauds, that each of two rules flags (rows) or not."""
    names = [name.strip("+") for name in frauds]
    batch = make_batch("login", [{"event_id": n, "user_id": "u"} for n in names], partitions=1)
    truth = verdicts_of("login", dict(zip(names, frauds.values(), strict=True)))
    rows = training_set(np.random.default_rng(1), "login", rows=len(batch), odd=0)
    found = Comparison(catalog(), truth)
    decisions = [
        (
            scorer.bundle,
            Decisions(
                "login",
                ("one", "other"),
                (),
                np.full((len(batch), 2), 0.5),
                np.array(flags, np.bool_),
                np.zeros((len(batch), 2, 0), np.bool_),
                np.zeros((2, 0)),
            ),
        )
        for flags in (live, candidate)
    ]
    found.add(Compared.of(batch), rows.features, decisions[0], decisions[1])
    return found.report()


def test_an_event_that_is_sent_again_is_compared_twice(field: Field) -> None:
    events = {"a": True, "a+": True, "a++": True}
    found = compared(field.base, events, [[0, 0]] * 3, [[1, 0]] * 3)
    assert [one["event_id"] for one in found["examples"]] == ["a"] * 3


def test_a_fraud_counts_once_in_all_whichever_rule_flags_it(field: Field) -> None:
    events = {"moved": True, "won": True, "lost": True, "missed": True, "fine": False}
    live = [[1, 0], [0, 0], [1, 1], [0, 0], [1, 0]]
    candidate = [[0, 1], [1, 1], [0, 0], [0, 0], [0, 1]]
    found = compared(field.base, events, live, candidate)
    total, one = found["total"], found["anomaly_types"]["one"]
    names = ("frauds", "won", "lost", "missed")
    assert [total[name] for name in names] == [4, 1, 1, 1]
    assert [one[name] for name in names] == [4, 1, 2, 1]
    assert (total["live"], total["candidate"], total["new_genuine"]) == (4, 4, 1), "alerts"


def test_a_candidate_in_another_currency_is_refused_as_the_flow_would(
    bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Bundle.load(bundles[1], catalog())
    replace(made, training={**made.training, "currency": {"base": "EUR"}}).write(tmp_path / "eur")
    settings = Settings(bundle=bundles[0], detectors=list(DETECTORS), warm_state="cold")
    with pytest.raises(BundleError, match="trained on amounts in EUR"):
        compare_files(settings, tmp_path / "eur", None)

    def refuse(*_: object) -> Scorer:
        raise ConfigError("nobody knows this detector")

    monkeypatch.setattr("dataflows.shelf.Scorer", refuse)
    with pytest.raises(BundleError, match="nobody knows this detector"):
        compare_files(settings, bundles[1], None)
