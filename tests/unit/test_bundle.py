"""The bundle on the disk: whole or refused, the same again, and open to an edited vote."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dataflows.state.own import mark_own
from features.catalog import Catalog, catalog, declared_features
from features.errors import BundleError, ConfigError
from models import swap
from models.base import TrainingSet
from models.bundle import Bundle, code_version, copy_bundle
from models.scoring import Scorer
from models.train import train
from models.voting import Voting
from tests.rows import training_set

DETECTORS = ("zscore", "isolation_forest", "gradient_boosting")


@pytest.fixture(scope="module")
def rows() -> TrainingSet:
    """Logins with odd ones among them."""
    return training_set(np.random.default_rng(3), "login", rows=2_000, odd=150)


@pytest.fixture(scope="module")
def folder(rows: TrainingSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle on the disk."""
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    train({"login": rows}, catalog(), DETECTORS, 1).write(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_what_is_read_back_scores_the_same(folder: Path, rows: TrainingSet) -> None:
    fresh = train({"login": rows}, catalog(), DETECTORS, 1)
    again = Bundle.load(folder, catalog())
    first, second = Scorer(fresh, DETECTORS), Scorer(again, DETECTORS)
    a, b = first.score(rows.features, {}), second.score(rows.features, {})
    assert np.array_equal(a.surprise, b.surprise, equal_nan=True)
    assert np.array_equal(first.decide(a, {}).score, second.decide(b, {}).score)
    said, read = (s.bundle.models["login"].ensemble.novelty for s in (first, second))
    assert said is not None and read is not None and said.least == read.least > 0.0
    assert np.array_equal(said.weights, read.weights)
    alone = dict(zip(fresh.models["login"].ensemble.detectors, said.weights > 0, strict=True))
    assert alone["zscore"] and not alone.get("gradient_boosting", False), alone
    assert again.metrics["detectors"].keys() == fresh.metrics["detectors"].keys()
    assert again.training["sets"]["login"]["rows"] == len(rows)


def test_a_vote_without_labels_is_read_back_as_it_was(rows: TrainingSet, tmp_path: Path) -> None:
    blind = replace(rows, label=np.full(len(rows), -1, np.int8))
    fresh = train({"login": blind}, catalog(), ("zscore", "iqr"), 1)
    fresh.write(tmp_path / "blind")
    again = Bundle.load(tmp_path / "blind", catalog())
    said, read = (b.models["login"].ensemble for b in (fresh, again))
    surprise = np.array([[3.0, 1.0], [0.5, 2.0]])
    assert said.number(surprise).tolist() == read.number(surprise).tolist() == [3.0, 2.0]


def test_the_same_training_gives_the_same_id(
    folder: Path, rows: TrainingSet, tmp_path: Path
) -> None:
    again = train({"login": rows}, catalog(), DETECTORS, 1).write(tmp_path / "again")
    other = train({"login": rows}, catalog(), DETECTORS, 2).write(tmp_path / "other")
    first = Bundle.load(folder, catalog()).id
    assert again.id == first and other.id != first


def test_what_is_read_and_written_again_is_the_same_file_by_file(
    folder: Path, tmp_path: Path
) -> None:
    first = Bundle.load(folder, catalog())
    again = first.write(tmp_path / "again")
    assert again.id == first.id
    twice = Bundle.load(tmp_path / "again", catalog()).write(tmp_path / "twice")
    assert twice.id == first.id
    names = [*json.loads((folder / "bundle.json").read_text())["files"]]
    for name in (name for name in names if name != "card.md"):  # which has thresholds unrounded
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    for name in names:
        pair = ((tmp_path / one / name).read_bytes() for one in ("again", "twice"))
        assert len({*pair}) == 1, name


def test_a_bundle_and_its_card_say_which_version_trained_it(folder: Path, tmp_path: Path) -> None:
    made = Bundle.load(folder, catalog())
    assert made.made_by == code_version() == version("waxwing")
    assert json.loads((folder / "bundle.json").read_text())["waxwing"] == made.made_by
    card = (folder / "card.md").read_text()
    assert f"Trained by waxwing {made.made_by} on features" in card
    vote = made.models["login"].ensemble
    told = [f"{n} {w:.3g}" for n, w in zip(vote.detectors, vote.weights, strict=True)]
    assert f"## Weights in the vote\n\n- login: {', '.join(told)}\n" in card
    other = replace(made, made_by="99.1").write(tmp_path / "other")
    assert Bundle.load(tmp_path / "other", catalog()).made_by == "99.1"
    unknown = replace(made, made_by="").write(tmp_path / "unknown")
    assert unknown.id == other.id, "the same models"
    assert "Trained on features" in (tmp_path / "unknown" / "card.md").read_text()


def test_writing_again_replaces_the_folder_and_leaves_nothing_beside(
    copy: Path, rows: TrainingSet
) -> None:
    (copy / "leftover").write_text("x")
    train({"login": rows}, catalog(), ("zscore",), 1).write(copy)
    assert not (copy / "leftover").exists()
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]
    assert Bundle.load(copy, catalog()).detectors == ("zscore",)


def test_what_is_no_bundle_is_never_written_over(tmp_path: Path, rows: TrainingSet) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("ten years")
    fresh = train({"login": rows}, catalog(), ("zscore",), 1)
    with pytest.raises(BundleError, match=r"no bundle and holds 'thesis.txt'.*another folder"):
        fresh.write(precious)
    with pytest.raises(BundleError, match=r"there is a file of that name"):
        fresh.write(precious / "thesis.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    assert (precious / "thesis.txt").read_text() == "ten years"
    empty, claimed = tmp_path / "empty", tmp_path / "claimed"
    empty.mkdir()
    mark_own(claimed)
    for folder in (empty, claimed):
        fresh.write(folder)
        assert Bundle.load(folder, catalog()).detectors == ("zscore",)


def test_a_link_to_a_bundle_stays_a_link(copy: Path, rows: TrainingSet, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(copy)
    train({"login": rows}, catalog(), ("zscore",), 1).write(link)
    assert link.is_symlink()
    assert Bundle.load(copy, catalog()).detectors == ("zscore",)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "current"]


class _Killed(BaseException):
    """Where the process dies."""


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_process_that_dies_while_it_replaces_a_bundle_leaves_one_of_the_two(
    copy: Path, rows: TrainingSet, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    fresh = train({"login": rows}, catalog(), ("zscore",), 1)
    if not exchanges:
        monkeypatch.setattr(swap, "_exchanged", lambda *_: False)
    rename, remove = Path.rename, shutil.rmtree
    for step in range(10):
        left = [step]

        def die(left: list[int] = left) -> None:
            if not left[0]:
                raise _Killed
            left[0] -= 1

        def renames(one: Path, other: Path, die: Callable[[], None] = die) -> Path:
            die()
            return rename(one, other)

        def removes(*args: Any, die: Callable[[], None] = die, **options: Any) -> None:
            die()
            remove(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", renames)
            patched.setattr(shutil, "rmtree", removes)
            try:
                fresh.write(copy)
                break
            except _Killed:
                pass
        found = Bundle.load(copy, catalog()).detectors
        assert found in (DETECTORS, ("zscore",)), f"died at step {step}"
    assert step >= 1, "it died at no step"
    assert [p.name for p in copy.parent.iterdir()] == ["copy"], "all that was left aside is gone"
    assert Bundle.load(copy, catalog()).detectors == ("zscore",)


def test_what_a_living_process_has_beside_a_bundle_is_left_to_it(copy: Path) -> None:
    living = copy.with_name(f".{copy.name}.{os.getppid()}.old")
    copy.rename(living)
    with pytest.raises(BundleError, match="no model bundle"):
        Bundle.load(copy, catalog())
    living.rename(copy.with_name(f".{copy.name}.{os.getpid()}.old"))
    assert Bundle.load(copy, catalog()).detectors == DETECTORS


def test_no_file_of_a_bundle_is_a_pickle(folder: Path) -> None:
    kinds = {p.suffix for p in folder.rglob("*") if p.is_file()}
    assert kinds == {".npz", ".json", ".toml", ".md"}
    for path in folder.rglob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            assert all(file[name].dtype != object for name in file.files)


def _remove(path: Path) -> None:
    (path / "login" / "zscore.npz").unlink()


def _truncate(path: Path) -> None:
    file = path / "login" / "scales.npz"
    file.write_bytes(file.read_bytes()[:-10])


def _flip(path: Path) -> None:
    file = path / "login" / "gradient_boosting.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def _head(path: Path) -> None:
    file = path / "bundle.json"
    file.write_text(file.read_text().replace('"seed": 1', '"seed": 2'))


def _half_head(path: Path) -> None:
    file = path / "bundle.json"
    file.write_text(file.read_text()[:200])


def _old_format(path: Path) -> None:
    file = path / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 0}))


def _vanish(path: Path) -> None:
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_remove, r"login/zscore\.npz is missing"),
        (_truncate, r"login/scales\.npz is not as it was written"),
        (_flip, r"login/gradient_boosting\.npz is not as it was written"),
        (_head, r"bundle\.json is not as it was written"),
        (_half_head, r"bundle\.json cannot be read"),
        (_old_format, "format 0, expected 1"),
        (_vanish, "there is no model bundle"),
    ],
)
def test_a_damaged_bundle_is_refused_with_the_cure(
    copy: Path, damage: Callable[[Path], None], told: str
) -> None:
    damage(copy)
    with pytest.raises(BundleError, match=told) as caught:
        Bundle.load(copy, catalog())
    assert "waxwing train" in str(caught.value)


def test_another_catalogue_is_refused_with_the_differences(copy: Path) -> None:
    fewer = [f for f in declared_features() if f.name != "user_failed_count_1h"]
    with pytest.raises(BundleError, match="`user_failed_count_1h` is missing here") as caught:
        Bundle.load(copy, Catalog(fewer))
    assert "train again" in str(caught.value) and "payment" not in str(caught.value)


def test_a_feature_computed_in_another_way_is_named_with_what_changed(copy: Path) -> None:
    other = [
        replace(f, window_s=1800) if f.name == "user_failed_count_1h" else f
        for f in declared_features()
    ]
    told = r"`user_failed_count_1h`: window_s 3600 -> 1800; train again"
    with pytest.raises(BundleError, match=told) as caught:
        Bundle.load(copy, Catalog(other))
    assert "payment" not in str(caught.value), "an event type it was not trained on"


def test_a_bundle_of_before_says_that_something_changed(folder: Path, tmp_path: Path) -> None:
    old = replace(Bundle.load(folder, catalog()), declared={}).write(tmp_path / "old")
    other = [
        replace(f, window_s=1800) if f.name == "user_failed_count_1h" else f
        for f in declared_features()
    ]
    assert old.id and not (tmp_path / "old" / "features.json").exists()
    with pytest.raises(BundleError, match="computed in another way"):
        Bundle.load(tmp_path / "old", Catalog(other))


def test_a_detector_nobody_knows_is_refused_with_those_there_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.bundle.detector_names", lambda: ("zscore", "iqr"))
    with pytest.raises(BundleError, match=r"gradient_boosting.*there are zscore, iqr"):
        Bundle.load(folder, catalog())


def test_an_edited_vote_is_taken_and_changes_no_id(copy: Path) -> None:
    before = Bundle.load(copy, catalog())
    file = copy / "voting.toml"
    file.write_text(file.read_text().replace('severity = "error"', 'severity = "info"'))
    after = Bundle.load(copy, catalog())
    assert after.voting.anomaly_types["account_attack"].severity == "info"
    assert after.id == before.id


def test_training_writes_the_weights_and_an_edited_one_changes_what_is_flagged(
    copy: Path, rows: TrainingSet
) -> None:
    file = copy / "voting.toml"
    trained = Bundle.load(copy, catalog())
    (rule,) = trained.voting.of("login")
    ensemble = trained.models["login"].ensemble
    assert rule.weights == dict(zip(ensemble.detectors, ensemble.weights.tolist(), strict=True))

    def flagged(text: str) -> npt.NDArray[np.bool_]:
        file.write_text(text)
        bundle = Bundle.load(copy, catalog())
        assert bundle.id == trained.id
        scorer = Scorer(bundle, bundle.detectors)
        return scorer.decide(scorer.score(rows.features, {}), {}).flagged[:, 0]

    # So high that the vote as a whole decides, not the detectors one by one.
    lines = [
        "ensemble = 0.9999" if line.startswith("ensemble = ") else line
        for line in file.read_text().splitlines(keepends=False)
    ]
    text = "\n".join(lines) + "\n"
    kept = flagged(text)
    head, _, rest = text.partition(f"[{rule.name}.weights]\n")
    of_before = head + rest[rest.index(f"[{rule.name}.thresholds]") :]
    assert "weights]" not in of_before and np.array_equal(flagged(of_before), kept)
    heaviest = max(rule.weights, key=lambda name: rule.weights[name])
    line = f"{heaviest} = {rule.weights[heaviest]!r}\n"
    assert text.count(line) == 1
    other = flagged(text.replace(line, f"{heaviest} = 0\n"))
    assert kept.any() and other.any() and not np.array_equal(other, kept)
    file.write_text(text.replace(line, "oracle = 1.0\n"))
    with pytest.raises(ConfigError, match="oracle"):
        Scorer(Bundle.load(copy, catalog()), trained.detectors)


def test_a_vote_edited_into_nonsense_tells_its_faults(copy: Path) -> None:
    file = copy / "voting.toml"
    file.write_text(file.read_text().replace("votes_needed = 1", "votes_needed = 9"))
    with pytest.raises(ConfigError, match="can never be reached"):
        Bundle.load(copy, catalog())


@pytest.fixture(scope="module")
def both(rows: TrainingSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two event types."""
    path = tmp_path_factory.mktemp("both") / "bundle"
    payments = training_set(np.random.default_rng(4), "payment", rows=1_000, odd=80)
    train({"login": rows, "payment": payments}, catalog(), ("zscore", "iqr"), 1).write(path)
    return path


def test_wherever_rules_are_cut_off_it_is_refused_or_told(both: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(both, tmp_path / "copy"))
    whole = Bundle.load(copy, catalog())
    assert not whole.edited and Scorer(whole, whole.detectors).unheard() == []
    file = copy / "voting.toml"
    text = file.read_text().rstrip()
    lines = text.splitlines()
    said = []
    for length in range(len(lines)):
        file.write_text("\n".join(lines[:length]) + "\n")
        try:
            bundle = Bundle.load(copy, catalog())
        except (BundleError, ConfigError) as error:
            said.append(str(error))
            with pytest.raises((BundleError, ConfigError)):
                copy_bundle(copy, tmp_path / f"taken{length}")
            continue
        assert bundle.edited
        said += Scorer(bundle, bundle.detectors).unheard() or [""]
    assert len(said) == len(lines) and all(said)
    assert said[-1] == (
        "voting.toml was edited: payment_fraud has no threshold for iqr, without a vote therefore"
    )
    begun = lines.index("[payment_fraud]")
    assert "has no rule for payment, which it has models for" in said[begun]
    assert "holds no anomaly type" in said[0]


def test_event_types_that_rules_of_ones_own_leave_out_are_told(both: Path) -> None:
    bundle = Bundle.load(both, catalog())
    mine = Voting({rule.name: rule for rule in bundle.voting.of("login")})
    (told,) = Scorer(bundle, bundle.detectors, mine).unheard()
    assert told.startswith("no voting rule looks for anything in payment events")


def test_a_disk_that_refuses_leaves_the_old_bundle(
    copy: Path, rows: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = train({"login": rows}, catalog(), ("zscore",), 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.bundle.os.fsync", full)
    with pytest.raises(BundleError, match=r"No space left.*free space"):
        fresh.write(copy)
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]
    assert Bundle.load(copy, catalog()).detectors == DETECTORS
