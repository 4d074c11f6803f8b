"""The manifest: at every moment there is a whole one, and a damaged one is never believed."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest

from dataflows.cli.main import main
from dataflows.state.lock import lock_state, process_id
from dataflows.state.manifest import (
    Manifest,
    fallback,
    go_back,
    oldest_round,
    read_manifest,
    whole_manifests,
    write_manifest,
)
from features.errors import StateError

ROOT = Path(__file__).resolve().parents[2]


def make_manifest(round_: int) -> Manifest:
    control = [{"kind": "mute", "entity_type": "card", "entity": "c1", "until_us": 9}]
    return Manifest(round_, 16, 2, "abc", {"in": round_ * 5}, control, {"jsonl": 77}, 12)


def test_the_newest_manifest_comes_back_whole(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "nowhere") is None
    for round_ in (0, 100, 200):
        write_manifest(tmp_path, make_manifest(round_))
        assert read_manifest(tmp_path) == make_manifest(round_)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "manifest.json",
        "manifest.previous.json",
    ]


def test_a_manifest_cut_short_at_any_byte_gives_way_to_the_one_before(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest(100))
    write_manifest(tmp_path, make_manifest(200))
    path = tmp_path / "manifest.json"
    data = path.read_bytes()
    for size in range(len(data) - 1):
        path.write_bytes(data[:size])
        assert read_manifest(tmp_path) == make_manifest(100), size
    for at in range(len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        assert read_manifest(tmp_path) == make_manifest(100), at


def test_a_manifest_that_is_lost_is_said_and_what_serves_in_its_place(tmp_path: Path) -> None:
    assert fallback(tmp_path) is None
    for round_ in (100, 200):
        write_manifest(tmp_path, make_manifest(round_))
        assert fallback(tmp_path) is None
    path = tmp_path / "manifest.json"
    path.write_bytes(b"x")
    assert "damaged; going on from manifest.previous.json" in str(fallback(tmp_path))
    path.unlink()
    assert "gone; going on from" in str(fallback(tmp_path))
    assert "round 100" in str(fallback(tmp_path))


def test_a_death_between_any_two_steps_leaves_a_whole_manifest(tmp_path: Path) -> None:
    """Every system call that changes the folder is the last one once."""
    steps = ("os.rename", "os.link", "os.remove", "open")
    for last in range(12):
        folder = tmp_path / str(last)
        write_manifest(folder, make_manifest(100))
        write_manifest(folder, make_manifest(200))
        code = (
            "import sys, os, pathlib\n"
            "from dataflows.state.manifest import Manifest, write_manifest\n"
            f"left, folder = {last}, {str(folder)!r}\n"
            "def hook(event, args):\n"
            "    global left\n"
            f"    if event in {steps!r} and folder in str(args[0]):\n"
            "        left -= 1\n"
            "        if left < 0:\n"
            "            os._exit(9)\n"
            "sys.addaudithook(hook)\n"
            "write_manifest(pathlib.Path(folder), Manifest(300, 16, 2, 'abc'))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=240, check=False)
        found = read_manifest(folder)
        assert found is not None
        if done.returncode == 0:
            assert found.round == 300
            assert last > 4, "fewer steps than the write has"
            return
        assert found.round in (200, 300)
        assert oldest_round(folder) in (100, 200)
        write_manifest(folder, make_manifest(400))
        assert read_manifest(folder) == make_manifest(400)
    pytest.fail("the write never came to its end")


def test_a_damaged_manifest_never_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest(100))
    write_manifest(tmp_path, make_manifest(200))
    (tmp_path / "manifest.json").write_bytes(b"rubbish")
    write_manifest(tmp_path, make_manifest(100))
    (tmp_path / "manifest.json").unlink()
    assert read_manifest(tmp_path) == make_manifest(100)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.previous.json"])
def test_a_folder_whose_only_manifest_is_damaged_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(StateError, match="damaged"):
        read_manifest(tmp_path)


def test_a_folder_in_the_place_of_a_manifest_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(tmp_path, make_manifest(100))
    path = tmp_path / "manifest.json"
    path.unlink()
    path.mkdir()
    told = f"{path}: expected a file, got a folder; move it away and start again"
    for act in (read_manifest, oldest_round, lambda f: write_manifest(f, make_manifest(200))):
        with pytest.raises(StateError, match=f"^{re.escape(told)}$"):
            act(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"], "nothing is left behind"
    assert main(["model", "list", "--set", f"state_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"waxwing: {told}\n"


def test_a_manifest_that_does_not_open_is_a_sentence_and_none_takes_its_place(
    tmp_path: Path,
) -> None:
    write_manifest(tmp_path, make_manifest(100))
    write_manifest(tmp_path, make_manifest(200))
    path = tmp_path / "manifest.json"
    path.unlink()
    path.symlink_to(path)
    told = "cannot be opened: .*; give this user the right to read and write it, or mend the disk"
    with pytest.raises(StateError, match=told):
        read_manifest(tmp_path)


def test_restarts_may_begin_at_either_manifest(tmp_path: Path) -> None:
    assert oldest_round(tmp_path) == 0
    seen = []
    for round_ in (0, 100, 200):
        write_manifest(tmp_path, make_manifest(round_))
        seen.append(oldest_round(tmp_path))
    assert seen == [0, 0, 100]


def test_a_disk_that_refuses_the_manifest_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(tmp_path, make_manifest(100))

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left"):
        write_manifest(tmp_path, make_manifest(200))
    assert read_manifest(tmp_path) == make_manifest(100)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_a_manifest_of_another_format_says_so(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(1, 16, 2, "abc", format=9))
    with pytest.raises(StateError, match="format 9"):
        read_manifest(tmp_path)


def rewritten(path: Path, body: str) -> None:
    """A manifest of other text, with the checksum that goes with it."""
    path.write_text(f"{body}\ncrc32 {zlib.crc32(body.encode()):08x}\n", encoding="utf-8")


def test_a_manifest_with_a_key_too_many_or_too_few_says_so(tmp_path: Path) -> None:
    write_manifest(tmp_path, make_manifest(100))
    path = tmp_path / "manifest.json"
    whole = json.loads(path.read_text(encoding="utf-8").rpartition("\ncrc32 ")[0])
    cure = "run the version that wrote it, or start with an empty state_dir"
    rewritten(path, json.dumps(whole | {"shape": 3, "hue": 1}))
    with pytest.raises(StateError, match=rf"holds 'hue', 'shape', which this version .*; {cure}"):
        read_manifest(tmp_path)
    rewritten(path, json.dumps({k: v for k, v in whole.items() if k not in ("lanes", "token")}))
    with pytest.raises(StateError, match=f"manifest.json: holds no 'lanes'; {cure}"):
        whole_manifests(tmp_path)
    rewritten(path, json.dumps([whole]))
    with pytest.raises(StateError, match=f"expected an object, got list; {cure}"):
        fallback(tmp_path)
    rewritten(path, json.dumps({k: v for k, v in whole.items() if k != "recalibration"}))
    assert read_manifest(tmp_path) == make_manifest(100), "of a version before that field"


def test_a_second_process_on_the_same_state_is_refused(tmp_path: Path) -> None:
    lock_state(tmp_path)
    lock_state(tmp_path)
    code = (
        "import pathlib\nfrom dataflows.state.lock import lock_state\n"
        f"lock_state(pathlib.Path({str(tmp_path)!r}))\n"
    )
    second = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert second.returncode == 1
    assert f"is in use by another process (id {os.getpid()})" in second.stderr
    third = [sys.executable, "-c", code, "-i", "1"]
    assert subprocess.run(third, cwd=ROOT, timeout=240, check=False).returncode == 0
    assert (tmp_path / "lock-0").read_text(encoding="utf-8") == f"{os.getpid()}\n"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO, errno.EACCES, errno.EAGAIN])
def test_a_folder_that_cannot_be_locked_is_not_said_to_be_in_use(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("dataflows.state.lock.fcntl.lockf", refused)
    used = number in (errno.EACCES, errno.EAGAIN)
    told = "is in use by another" if used else f"cannot be locked: {os.strerror(number)}; choose"
    with pytest.raises(StateError, match=re.escape(told)):
        lock_state(tmp_path)


def test_a_full_disk_under_the_lock_is_a_sentence_and_the_lock_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(StateError, match="cannot be used: No space left on device; free space"):
            lock_state(tmp_path)
    lock_state(tmp_path)
    assert (tmp_path / "lock-0").read_text(encoding="utf-8") == f"{os.getpid()}\n"


def test_the_lock_goes_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal\nfrom dataflows.state.lock import lock_state\n"
        f"lock_state(pathlib.Path({str(tmp_path)!r}))\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=240, check=False)
    assert done.returncode == -9
    lock_state(tmp_path)


@pytest.mark.parametrize(
    ("argv", "environ", "number"),
    [
        ([], {}, "0"),
        (["flow:build()", "-i", "3"], {}, "3"),
        (["-i3"], {}, "3"),
        (["--process-id=4"], {}, "4"),
        (["--process-id", "5"], {"BYTEWAX_PROCESS_ID": "1"}, "5"),
        ([], {"BYTEWAX_PROCESS_ID": "1"}, "1"),
        ([], {"BYTEWAX_POD_NAME": "wax-2", "BYTEWAX_STATEFULSET_NAME": "wax"}, "2"),
    ],
)
def test_each_process_of_a_cluster_has_its_own_lock(
    argv: list[str], environ: dict[str, str], number: str
) -> None:
    assert process_id(argv, environ) == number


def test_manifests_are_held_a_base_apart_and_serve_where_newer_ones_are_damaged(
    tmp_path: Path,
) -> None:
    for round_ in range(0, 1000, 10):
        write_manifest(tmp_path, make_manifest(round_), 130)
        kept = [manifest.round for manifest in whole_manifests(tmp_path)]
        assert kept[0] == round_ and min(kept) == oldest_round(tmp_path)
        if round_ >= 260:
            assert 130 <= round_ - oldest_round(tmp_path) < 260
    assert len(list(tmp_path.iterdir())) == 4, "two in turn, two held"
    for name in ("manifest.json", "manifest.previous.json"):
        (tmp_path / name).write_bytes(b"x")
    assert read_manifest(tmp_path) == make_manifest(910)
    assert "manifest.held-000000000910.json, which knows of round 910" in str(fallback(tmp_path))


def test_going_back_leaves_no_newer_manifest(tmp_path: Path) -> None:
    for round_ in range(0, 300, 10):
        write_manifest(tmp_path, make_manifest(round_), 130)
    older = whole_manifests(tmp_path)[-1]
    assert older.round == 130
    go_back(tmp_path, older)
    assert [manifest.round for manifest in whole_manifests(tmp_path)] == [130]
    assert read_manifest(tmp_path) == older
    write_manifest(tmp_path, make_manifest(140), 130)
    assert sorted(m.round for m in whole_manifests(tmp_path)) == [130, 140]


def test_a_disk_that_refuses_to_go_back_is_a_sentence_and_leaves_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for round_ in (100, 200):
        write_manifest(tmp_path, make_manifest(round_))

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match=r"could not be written: No space left .*; free space"):
        go_back(tmp_path, make_manifest(100))
    assert [manifest.round for manifest in whole_manifests(tmp_path)] == [200, 100]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_manifest_may_be_taken_away_while_others_look_for_it(tmp_path: Path) -> None:
    """The flow's end removes held ones while the thread that writes state asks for the oldest."""
    done = threading.Event()
    faults: list[BaseException] = []

    def look() -> None:
        try:
            while not done.is_set():
                oldest_round(tmp_path)
        except BaseException as error:
            faults.append(error)

    write_manifest(tmp_path, make_manifest(0), 1)
    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    held = tmp_path / "manifest.held-000000000007.json"
    for _ in range(4_000):
        os.link(tmp_path / "manifest.json", held)
        held.unlink()
    done.set()
    for reader in readers:
        reader.join()
    assert faults == []
