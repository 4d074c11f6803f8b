"""The model bundle: a folder with everything that scoring needs, in formats that run no code.

    bundle.json                     format, id, catalogue, feature names, training data, checksums,
                                    the version of waxwing that trained it
    metrics.json                    what training found on rows it had held out
    voting.toml                     thresholds and rules; a person may edit it
    voting.kept.toml                in a flow's copy: the rules it came with, which a replay needs
    card.md                         all of it in words
    EVENT_TYPE/DETECTOR.npz, .json  what each detector saved
    EVENT_TYPE/scales.npz, .json    calibration of each detector, the ensemble, the gate, usual
    values

It is written beside its place and exchanged with what is there, and read only where every checksum
holds. Its id is the hash of its content without `voting.toml`, the metrics, the card and that
version, so that alerts of the same models have the same ids whatever their thresholds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.batch import Float64
from features.catalog import Catalog, differences_text
from features.choice import EVERYTHING
from features.errors import BundleError, DeclarationError
from features.registry import chosen_patterns
from models.base import Arrays, Detector
from models.calibration import Calibration
from models.card import card_text
from models.detectors import detector, detector_names
from models.own import own_detectors
from models.segments import Cut, Segments
from models.swap import beside, put, sweep, take_back
from models.view import View
from models.voting import ENSEMBLE, Ensemble, Novelty, Voting

__all__ = [
    "RULES_KEPT",
    "Bundle",
    "EventModels",
    "check_place",
    "code_version",
    "copy_bundle",
    "kept_rules",
    "read_head",
    "rules_of",
]

FORMAT = 1
"""Layout of a bundle; one with another number is refused."""

_DECLARED = "features.json"
"""What is declared of each feature, so that a mismatch names what has changed."""

_MADE_BY = "waxwing"
"""Key in bundle.json of the version that trained it."""

_MARK = ".waxwing-own"
"""File by which the demo claims a folder before it trains (`dataflows.state.own`): no work of
anyone."""

_UNSEALED = ("voting.toml", "metrics.json", "card.md")
"""Not part of the id: thresholds are a person's to edit, metrics and card are words about the
models."""


RULES_KEPT = "voting.kept.toml"
"""The rules of a copy as they came, beside `voting.toml`."""

_SEAL = b"# sha256 "
"""Begins the last line of them, the checksum of all before it."""

_SEGMENT = "segment"
"""What names of arrays of a segment's scale begin with, before its number."""


@dataclass(frozen=True, slots=True)
class EventModels:
    """Everything fitted for one event type.

    Parameters
    ----------
    event_type, names : what they score, and the features that come, in order
    view : what of them detectors see
    detectors : name -> fitted detector, in the order they were asked for
    calibrations : name -> tail probabilities of its raw scores
    ensemble : of all of them
    gate : surprise that any cheap detector must reach for the expensive ones to look at a row
    usual : float64 (F, Q), quantiles of each feature on genuine rows, NaN where it never has a
        value
    segments : scales by segment, where training was asked for them
    """

    event_type: str
    names: tuple[str, ...]
    view: View
    detectors: Mapping[str, Detector]
    calibrations: Mapping[str, Calibration]
    ensemble: Ensemble
    gate: float
    usual: Float64
    segments: Segments | None = None

    def scaled(self, name: str, raw: Float64, segment: npt.NDArray[np.int8] | None) -> Float64:
        """float64 (n,), surprise of what a detector, or the vote, said of rows.

        Parameters
        ----------
        name : detector, or `ensemble`
        raw : float64 (n,), the detector's raw numbers, the vote's weighted sums
        segment : int8 (n,), of the rows; None where there are no segments
        """
        whole = self.ensemble.calibration if name == ENSEMBLE else self.calibrations[name]
        if self.segments is None:
            return whole.surprise(raw)
        return self.segments.surprise(name, whole, raw, segment)

    def extrapolated(
        self, raw: Float64, segment: npt.NDArray[np.int8] | None
    ) -> npt.NDArray[np.bool_]:
        """bool (n,), whether what the vote said of rows lies beyond every genuine row; parameters
        as of `scaled`."""
        found = self.ensemble.calibration.extrapolated(raw)
        for code, scales in enumerate(() if self.segments is None else self.segments.scales):
            if segment is not None and ENSEMBLE in scales:
                at = segment == code
                found[at] = scales[ENSEMBLE].extrapolated(raw[at])
        return found


@dataclass(frozen=True, slots=True)
class Bundle:
    """See the module.

    Parameters
    ----------
    id : 16 hex digits, hash of the content
    catalog_version : of the features it was trained on
    models : event type -> its models
    voting : the rules beside the models
    training : what it was trained on: rows, spans, fingerprint
    metrics : what training found on held-out rows
    declared : event type -> feature -> what was declared of it (`Catalog.declarations`); empty in
        bundles of before 2026-12
    made_by : version of waxwing that trained it; empty in bundles of before 2026-12
    edited : whether the rules are others than training wrote beside the models
    """

    id: str
    catalog_version: str
    models: Mapping[str, EventModels]
    voting: Voting
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    declared: Mapping[str, Any] = field(default_factory=dict)
    made_by: str = ""
    edited: bool = False

    @property
    def detectors(self) -> tuple[str, ...]:
        """Names of all detectors in it."""
        return tuple(dict.fromkeys(d for m in self.models.values() for d in m.detectors))

    def write(self, path: Path) -> Bundle:
        """Write it as the folder `path`, in place of the bundle that stood there; returns it with
        its id.

        Raises
        ------
        BundleError : something else stands there, which stays; the disk refused it
        """
        check_place(path)
        place = path.resolve()  # of a link the folder it leads to
        temporary = beside(place, "new")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            take_back(place)
            sweep(place)
            temporary.mkdir()
            id_ = _write(self, temporary)
            put(temporary, place)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise BundleError(
                f"bundle {path} could not be written ({error.strerror}); free space, or name"
                " another folder with the setting `bundle`"
            ) from error
        return replace(self, id=id_, edited=False)

    @classmethod
    def load(cls, path: Path, catalog: Catalog) -> Bundle:
        """The bundle in a folder.

        Raises
        ------
        BundleError : missing, damaged, of another catalogue, or with a detector nobody knows
        ConfigError : its voting.toml was edited into something that does not hold together
        """
        head = read_head(path)
        _check_files(path, head)
        _check_fit(path, head, catalog)
        models = {
            event: _load_event(path / event, event, tuple(names), head["detectors"][event])
            for event, names in head["names"].items()
        }
        voting = rules_of(path)
        metrics = _json(path / "metrics.json")
        return cls(
            head["id"], head["catalog_version"], models, voting, head["training"], metrics,
            _declared(path, head), str(head.get(_MADE_BY, "")), _edited(path, head),
        )  # fmt: skip


def check_place(path: Path) -> None:
    """Whether a bundle may be written as the folder `path`, asked before hours of work.

    Raises
    ------
    BundleError : a file stands there, or a folder that is neither a bundle nor empty
    """
    cure = "name another folder, or one that is not there yet"
    if path.exists() and not path.is_dir():
        raise BundleError(f"bundle {path}: there is a file of that name; {cure}")
    try:
        there = (p for p in path.iterdir() if p.name != _MARK)
        first = next(there, None) if path.is_dir() else None
    except OSError as error:
        raise BundleError(f"bundle {path}: cannot be looked into ({error.strerror})") from None
    if first is not None and not (path / "bundle.json").is_file():
        raise BundleError(
            f"bundle {path}: the folder is no bundle and holds {first.name!r}, which writing one"
            f" there would remove; {cure}"
        )


def code_version() -> str:
    """The version of this program, or a word for a tree that is not installed."""
    try:
        return version("waxwing")
    except PackageNotFoundError:
        return "not installed"


def rules_of(path: Path) -> Voting:
    """The rules in force in a bundle's folder.

    Raises
    ------
    ConfigError : missing, or they do not hold together
    BundleError : those that a flow keeps are not as they were kept; others than training wrote,
        with none for events that it made models for
    """
    kept = path / RULES_KEPT
    if kept.is_file():
        _check_kept(path)
        return Voting.load(kept)
    voting, head = Voting.load(path / "voting.toml"), read_head(path)
    bare = [event for event in head["names"] if not voting.of(event)]
    # Half a file is TOML as well, and who has no rule never alerts.
    if bare and _edited(path, head):
        raise BundleError(
            f"bundle {path}: voting.toml is not as training wrote it and has no rule for"
            f" {', '.join(bare)}, which it has models for: nothing would alert on them. Put the"
            " file back; where this is meant, keep rules of your own in another file and name it"
            " with the setting `voting`"
        )
    return voting


def _edited(path: Path, head: Mapping[str, Any]) -> bool:
    """Whether the rules in force are not, byte by byte, those that training wrote."""
    rules = kept_rules(path)
    if rules is None:
        rules = (path / "voting.toml").read_bytes()
    return bool(hashlib.sha256(rules).hexdigest() != head["files"].get("voting.toml"))


def _declared(path: Path, head: Mapping[str, Any]) -> dict[str, Any]:
    """What was declared of the features of a bundle; empty where it does not say."""
    return dict(_json(path / _DECLARED)) if _DECLARED in head["files"] else {}


def _save_arrays(path: Path, arrays: Arrays) -> None:
    """Arrays as .npz that holds no pickle; the same arrays give the same bytes, in any order."""
    with path.open("wb") as file:
        named = {name: np.asarray(arrays[name]) for name in sorted(arrays)}
        np.savez(file, **named)  # type: ignore[arg-type]


def _load_arrays(path: Path) -> Arrays:
    """The arrays of an .npz; one with a pickle in it is refused by numpy."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _save_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _json(path: Path) -> Any:
    """The content of a JSON file of the bundle."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"bundle file {path} cannot be read ({error}); train again with `waxwing train`"
        ) from None


def _write(bundle: Bundle, folder: Path) -> str:
    """All files of a bundle into an empty folder; returns its id."""
    for event, models in bundle.models.items():
        (folder / event).mkdir()
        for name, model in models.detectors.items():
            arrays, told = model.save()
            _save_arrays(folder / event / f"{name}.npz", arrays)
            _save_json(folder / event / f"{name}.json", {key: told[key] for key in sorted(told)})
        scales: Arrays = {
            "usual": models.usual,
            "weights": models.ensemble.weights,
            **models.view.save(),
        }
        if models.ensemble.novelty is not None:
            scales["novelty"] = models.ensemble.novelty.weights
        if models.ensemble.question is not None:
            scales["question"] = models.ensemble.question.astype(np.int64)
        calibrations = {**models.calibrations, ENSEMBLE: models.ensemble.calibration}
        header: dict[str, object] = {"gate": models.gate}
        if models.ensemble.novelty is not None:
            header["novelty_least"] = models.ensemble.novelty.least
        if models.segments is not None:
            parts = models.segments
            calibrations |= {
                f"{_SEGMENT}{code}.{name}": one
                for code, scales in enumerate(parts.scales)
                for name, one in scales.items()
            }
            header["segments"] = {**asdict(parts.cut), "rows": parts.rows}
        for name, calibration in calibrations.items():
            scales |= {f"{name}.{k}": v for k, v in calibration.save().items()}
        _save_arrays(folder / event / "scales.npz", scales)
        _save_json(folder / event / "scales.json", header)
    (folder / "voting.toml").write_text(bundle.voting.text(), encoding="utf-8")
    _save_json(folder / "metrics.json", bundle.metrics)
    (folder / "card.md").write_text(_card(bundle), encoding="utf-8")
    if bundle.declared:
        _save_json(folder / _DECLARED, bundle.declared)
    sums = {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    head: dict[str, Any] = {
        "format": FORMAT,
        "catalog_version": bundle.catalog_version,
        _MADE_BY: bundle.made_by,
        "names": {event: list(m.names) for event, m in bundle.models.items()},
        "detectors": {event: list(m.detectors) for event, m in bundle.models.items()},
        "training": dict(bundle.training),
        "files": sums,
    }
    head["id"] = _id_of(head)
    _save_json(folder / "bundle.json", head)
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
    return str(head["id"])


def _card(bundle: Bundle) -> str:
    """The card of a bundle."""
    models = bundle.models
    return card_text(
        bundle.catalog_version,
        bundle.training,
        bundle.metrics,
        bundle.voting,
        {event: tuple(m.detectors) for event, m in models.items()},
        {
            event: dict(zip(m.ensemble.detectors, m.ensemble.weights.tolist(), strict=True))
            for event, m in models.items()
        },
        {event: m.segments for event, m in models.items()},
        bundle.made_by,
    )


def _id_of(head: Mapping[str, Any]) -> str:
    """The id that follows from what bundle.json says."""
    sealed = {name: value for name, value in head["files"].items() if name not in _UNSEALED}
    about = [head[k] for k in ("format", "catalog_version", "names", "detectors", "training")]
    text = json.dumps([sealed, *about], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sync(path: Path) -> None:
    """Have a file's content, or a folder's list of names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_head(path: Path) -> dict[str, Any]:
    """What bundle.json says: id, catalogue, names, detectors, training; no other file is looked at.

    Raises
    ------
    BundleError : missing, damaged, of another format
    """
    take_back(path.resolve())
    if not (path / "bundle.json").is_file():
        raise BundleError(
            f"there is no model bundle at {str(path)!r}; train one with `waxwing train`, or name"
            " the folder of one with the setting `bundle`"
        )
    head = _json(path / "bundle.json")
    found = head.get("format") if isinstance(head, dict) else None
    if found != FORMAT:
        raise BundleError(
            f"bundle {path}: format {found}, expected {FORMAT}; train again with `waxwing train`"
        )
    wanted = {"id": str, "catalog_version": str, "names": dict, "detectors": dict, "files": dict,
              "training": dict}  # fmt: skip
    wrong = [key for key, kind in wanted.items() if not isinstance(head.get(key), kind)]
    if wrong:
        raise BundleError(
            f"bundle {path}: bundle.json lacks {', '.join(wrong)}; train again with `waxwing train`"
        )
    return dict(head)


def copy_bundle(path: Path, target: Path) -> None:
    """Copy the files that bundle.json names, and no others, into a new folder, and to the disk.

    The rules are kept once more there, as they are now: an edit of `voting.toml` of the copy
    changes nothing.

    Raises
    ------
    BundleError : bundle.json is damaged, or names files outside the bundle; see `rules_of`
    ConfigError : the rules do not hold together
    OSError : a file is missing or cannot be copied
    """
    names = [*read_head(path)["files"], "bundle.json"]
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise BundleError(
            f"bundle {path}: bundle.json names files outside of it ({', '.join(outside)}); train"
            " again with `waxwing train`"
        )
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise BundleError(
            f"bundle {path} is damaged: {', '.join(missing)} missing; copy it again or train again"
            " with `waxwing train`"
        )
    rules_of(path)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / name, target / name)
        _sync(target / name)
    rules = (target / "voting.toml").read_bytes()
    (target / RULES_KEPT).write_bytes(rules + _seal_of(rules))
    _sync(target / RULES_KEPT)


def kept_rules(path: Path) -> bytes | None:
    """What `voting.toml` of a flow's copy held when it was copied; None where it is no copy."""
    kept = path / RULES_KEPT
    if not kept.is_file():
        return None
    rules, seal, _ = kept.read_bytes().rpartition(_SEAL)
    return rules if seal else kept.read_bytes()


def _seal_of(rules: bytes) -> bytes:
    """What stands below rules that are kept."""
    return _SEAL + hashlib.sha256(rules).hexdigest().encode() + b"\n"


def _check_kept(path: Path) -> None:
    """BundleError where the rules that a flow keeps are not as they were kept."""
    rules, found = kept_rules(path), (path / RULES_KEPT).read_bytes()
    whole = rules is not None and found == rules + _seal_of(rules)
    # A copy of before there were checksums: nobody has edited it.
    if not whole and found != (path / "voting.toml").read_bytes():
        raise BundleError(
            f"bundle {path} is damaged: {RULES_KEPT} is not as it was written (checksum); put it"
            " back from a backup, or remove the folder and name the bundle's own place again"
        )


def _check_files(path: Path, head: dict[str, Any]) -> None:
    """BundleError that names every file that is missing or not as it was written."""
    faults = [] if _id_of(head) == head["id"] else ["bundle.json is not as it was written (id)"]
    for name, expected in head["files"].items():
        file = path / name
        if not file.is_file():
            faults.append(f"{name} is missing")
        elif name != "voting.toml" and hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            faults.append(f"{name} is not as it was written (checksum)")
    if faults:
        raise BundleError(
            f"bundle {path} is damaged: {'; '.join(faults)}; copy it again or train again with"
            " `waxwing train`"
        )


def _check_fit(path: Path, head: dict[str, Any], catalog: Catalog) -> None:
    """BundleError where the bundle was made for other features or names an unknown detector."""
    if head["catalog_version"] != catalog.version:
        lines = catalog.differences(
            # An event type that was not trained on is no difference.
            {event: catalog.names(event) for event in catalog.event_types} | head["names"],
            {k: v for k, v in _declared(path, head).items() if k in head["names"]},
        )
        what = differences_text(lines)
        then, now = (
            tuple(head["training"].get("features", EVERYTHING)),
            chosen_patterns() or EVERYTHING,
        )
        cure = "train again with `waxwing train`"
        if then != now:
            cure = f"set features = {list(then)}, as it was then (here {list(now)}), or {cure}"
        raise BundleError(
            f"bundle {path} was trained on feature catalogue {head['catalog_version']}, this is"
            f" {catalog.version}: {what}; {cure}"
        )
    asked = {name for names in head["detectors"].values() for name in names}
    unknown = sorted(asked - set(detector_names()))
    if unknown:
        raise BundleError(
            f"bundle {path} has unknown detector {', '.join(unknown)} (there are"
            f" {', '.join(detector_names())}); name its file with `detector_paths` or train again"
            " with `waxwing train`"
        )
    _check_code(path, head, asked)


def _check_code(path: Path, head: dict[str, Any], asked: set[str]) -> None:
    """BundleError where a detector of the user is not the code that the bundle was trained with."""
    then, now = head["training"].get("own_detectors", {}), own_detectors()
    faults = []
    for name in sorted(asked & (set(then) | set(now))):
        if name not in now:
            faults.append(f"detector {name!r} was trained with a file of yours, and is ours now")
        elif then.get(name) != now[name].code:
            faults.append(
                f"detector {name!r} was trained with other code ({then.get(name, 'of waxwing')})"
                f" than {now[name].path} is now ({now[name].code})"
            )
    if faults:
        raise BundleError(
            f"bundle {path}: {'; '.join(faults)}; put back the file of then, or train again with"
            " `waxwing train`"
        )


def _segments(
    told: Mapping[str, Any] | None,
    keys: set[str],
    names: tuple[str, ...],
    calibration: Callable[[str], Calibration],
) -> Segments | None:
    """Scales by segment from what `scales.json` says of them and the keys of the arrays."""
    if told is None:
        return None
    cut = Cut(told["column"], tuple(told["edges"]))
    places = [[(f"{_SEGMENT}{code}.{n}", n) for n in names] for code in range(len(told["rows"]))]
    scales = tuple(
        {name: calibration(place) for place, name in mine if f"{place}.knots" in keys}
        for mine in places
    )
    return Segments(cut, scales, tuple(told["rows"]))


def _load_event(
    folder: Path, event: str, names: tuple[str, ...], detectors: list[str]
) -> EventModels:
    """The models of one event type, from files whose checksums hold."""
    try:
        models = {
            name: detector(name).load(
                _load_arrays(folder / f"{name}.npz"), _json(folder / f"{name}.json")
            )
            for name in detectors
        }
        scales = _load_arrays(folder / "scales.npz")

        def calibration(name: str) -> Calibration:
            prefix = f"{name}."
            return Calibration.load(
                {k[len(prefix) :]: v for k, v in scales.items() if k.startswith(prefix)}
            )

        header = _json(folder / "scales.json")
        novelty = None
        if "novelty" in scales:
            novelty = Novelty(
                np.asarray(scales["novelty"], np.float64), float(header["novelty_least"])
            )
        ensemble = Ensemble(
            tuple(detectors),
            np.asarray(scales["weights"], np.float64),
            calibration(ENSEMBLE),
            novelty,
            scales["question"].astype(np.intp) if "question" in scales else None,
        )
        return EventModels(
            event,
            names,
            View.load(scales, names),
            models,
            {name: calibration(name) for name in detectors},
            ensemble,
            float(header["gate"]),
            np.asarray(scales["usual"], np.float64),
            _segments(header.get("segments"), set(scales), (*detectors, ENSEMBLE), calibration),
        )
    except (OSError, KeyError, ValueError, TypeError, IndexError, DeclarationError) as error:
        raise BundleError(
            f"bundle {folder}: cannot be read by this version ({type(error).__name__}: {error});"
            " train again with `waxwing train`"
        ) from error
