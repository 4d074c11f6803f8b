"""Which bundles and detectors have a say in a flow, and who changed it: read from its state folder.

The manifest has what was in force at its round, the journal of lane 0 every record since, and the
records before as far as it reaches back. A flow that is live on the folder is not disturbed.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflows.addresses import masked
from dataflows.control.records import Control
from dataflows.settings import Settings
from dataflows.state.journal import Cut, CutFollower, read_cuts
from dataflows.state.manifest import read_manifest
from features.errors import BundleError, ConfigError

__all__ = [
    "KINDS",
    "Heard",
    "Standing",
    "heard",
    "history",
    "in_force",
    "is_cutting",
    "live_bundle",
    "said",
    "standing",
    "target_of",
]

_LOOK_S = 0.05
"""How often the journal is looked at for a record. Chosen: half a round."""

KINDS = ("stage", "bundle", "rollback", "recalibrate", "shift", "freeze")
"""Control records that change who has a say, or how much is asked of them."""

CUTTING_S = 5.0
"""A journal that was written within this time belongs to a flow that runs. Chosen: fifty rounds."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is in force.

    Parameters
    ----------
    control : the fold of all records
    round : newest round of the journal
    counts : bundle -> counts of the rounds in which several scored, up to the last manifest
    """

    control: Control
    round: int
    counts: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of a record: the round in which it was heard, why it was refused, and whether
    it changed what is in force."""

    round: int
    refused: str | None
    changed: bool


def in_force(settings: Settings) -> Standing:
    """What is in force in a state folder; nothing is where no flow has run.

    Raises
    ------
    StateError : the folder is damaged
    """
    manifest = read_manifest(settings.state_dir)
    control = Control() if manifest is None else Control.of(manifest.control)
    round_ = 0 if manifest is None else manifest.round
    for cut in _cuts(settings, round_):
        round_ = cut.round
        for record in cut.control:
            control = control.apply(record, cut.cut_time_us)
    totals = {} if manifest is None else manifest.totals
    counts: dict[str, dict[str, int]] = {}
    for key, value in totals.items():
        bundle, colon, name = key.partition(":")
        if colon:
            counts.setdefault(bundle, {})[name] = value
    return Standing(control, round_, counts)


def standing(settings: Settings) -> dict[str, Any]:
    """What is in force, as plain data (docs/json.md)."""
    # Not above: a change is to be heard within a second, and needs none of the models' libraries.
    from dataflows.shelf import shelf_folder

    found = in_force(settings)
    bundles = dict(found.control.bundles)
    base, live = _base_of(settings), live_bundle(settings, found.control)
    if base is not None and live == base:
        bundles = {base: ("live", 100.0)} | bundles
    on_shelf = sorted(p.name for p in shelf_folder(settings.state_dir).glob("[0-9a-f]*"))
    known = [*bundles, *([base] if base else []), *on_shelf]
    return {
        "round": found.round,
        "live": live,
        "bundles": [
            {
                "bundle": name,
                "stage": bundles.get(name, ("off", 0.0))[0],
                "percent": bundles.get(name, ("off", 0.0))[1],
                **_told_of(settings, name, base),
                "counts": found.counts.get(name),
            }
            for name in dict.fromkeys(known)
        ],
        "detectors": [
            {"detector": name, "stage": stage, "percent": percent}
            for name, (stage, percent) in found.control.stages.items()
        ],
        "rollbacks": len(found.control.undo),
    }


def live_bundle(settings: Settings, control: Control) -> str | None:
    """The bundle that decides; None where it is that of the settings, and none is there."""
    lives = (name for name, (stage, _) in control.bundles.items() if stage == "live")
    return next(lives, None) or _base_of(settings)


def _base_of(settings: Settings) -> str | None:
    """The id of the bundle of the settings; None where there is none."""
    from models.bundle import read_head

    with contextlib.suppress(BundleError):
        return str(read_head(settings.bundle)["id"])
    return None


def target_of(name: str) -> dict[str, Any]:
    """What a model's name means: `detector`, or `bundle`, the `path` where it is, and the id of
    its `rules`.

    Parameters
    ----------
    name : folder, archive, URL or id of a bundle; or a detector

    Raises
    ------
    BundleError : there is no such bundle
    ConfigError : its voting.toml does not hold together
    """
    import tempfile

    from dataflows.fetching import brought
    from models.bundle import read_head, rules_of
    from models.detectors import detector_names

    if name in detector_names() and not Path(name).exists():
        return {"detector": name}
    if re.fullmatch("[0-9a-f]{16}", name) and not Path(name).exists():
        return {"bundle": name}
    place = name if "://" in name else str(Path(name).resolve())
    with tempfile.TemporaryDirectory(prefix="waxwing-") as folder:
        try:
            path = brought(place, Path(folder))
            id_ = str(read_head(path)["id"])
            return {"bundle": id_, "path": place, "rules": rules_of(path).id}
        except BundleError as error:
            raise BundleError(masked(str(error).replace(folder, place))) from None
        except ConfigError as error:
            faults = [masked(fault.replace(folder, place)) for fault in error.faults]
            raise ConfigError(faults) from None


def said(record: dict[str, Any]) -> str:
    """A record of a stage in words."""
    if record["kind"] == "rollback":
        return "rolled back" + (f" {record['bundle']}" if "bundle" in record else "")
    if record["kind"] in ("recalibrate", "shift", "freeze"):
        return _followed(record)
    name = record.get("detector") or f"bundle {record['bundle']}"
    share = f" for {record.get('percent', 100):g} % of the entities"
    return f"{name} is {record['stage']}" + (share if record["stage"] == "canary" else "")


def _followed(record: dict[str, Any]) -> str:
    """A record on thresholds that follow the traffic, in words."""
    name, kind = record["anomaly_type"], record["kind"]
    if kind == "freeze":
        return f"{name} {'does not follow' if record['state'] == 'on' else 'may follow again'}"
    if kind == "shift":
        return (
            f"{name} asks {10.0 ** record['value']:.3g} times as much (bundle {record['bundle']})"
        )
    if not record["percent_a_day"]:
        return f"{name} is as training fitted it"
    return (
        f"{name} follows by at most {record['percent_a_day']:g} % a day, to"
        f" {100 * record['share']:.3g} % of the events"
    )


def _told_of(settings: Settings, bundle: str, base: str | None) -> dict[str, Any]:
    """What a bundle says of itself."""
    from dataflows.shelf import shelf_folder
    from models.bundle import read_head

    folder = settings.bundle if bundle == base else shelf_folder(settings.state_dir) / bundle
    told: dict[str, Any] = {"folder": str(folder), "of_settings": bundle == base, "detectors": []}
    try:
        head = read_head(folder)
    except BundleError:
        return told | {"folder": None}
    return told | {"detectors": sorted({n for names in head["detectors"].values() for n in names})}


def history(settings: Settings) -> list[dict[str, Any]]:
    """Every change of stages that the journal still has, the oldest first, and what was refused.

    Returns
    -------
    `round`, `cut_time_us`, `record`, and `refused` (why, None where it was taken)
    """
    found: list[dict[str, Any]] = []
    for cut in _cuts(settings, 0):
        told = [(record, None) for record in cut.control]
        for record, refused in [*told, *_refused(cut)]:
            if record.get("kind") in KINDS:
                found.append(
                    {
                        "round": cut.round,
                        "cut_time_us": cut.cut_time_us,
                        "record": record,
                        "refused": refused,
                    }
                )
    return found


def heard(settings: Settings, id_: str, before: Standing, wait_s: float) -> Heard | None:
    """What became of a record, once the flow has heard it; None where it has not in time.

    Parameters
    ----------
    id_ : the record's
    before : what was in force before it was written
    """
    give_up = time.monotonic() + wait_s
    cuts = CutFollower(_journal(settings), before.round)
    control = before.control
    while True:
        for cut in cuts.take():
            for record in cut.control:
                was, control = control, control.apply(record)
                if record.get("id") == id_:
                    return Heard(cut.round, None, control is not was)
            for record, why in _refused(cut):
                if record.get("id") == id_:
                    return Heard(cut.round, why, False)
        if time.monotonic() >= give_up:
            return None
        time.sleep(_LOOK_S)


def is_cutting(settings: Settings) -> bool:
    """Whether a flow cuts rounds in the state folder."""
    times = [p.stat().st_mtime for p in _journal(settings).glob("*.jnl")]
    return bool(times) and time.time() - max(times) < CUTTING_S


def _cuts(settings: Settings, after_round: int) -> Iterator[Cut]:
    """Cuts of the lane that reads the control records."""
    folder = _journal(settings)
    return read_cuts(folder, after_round) if folder.is_dir() else iter(())


def _journal(settings: Settings) -> Path:
    """The journal of the lane that reads the control records."""
    return settings.state_dir / "journal" / "lane-00"


def _refused(cut: Cut) -> Iterator[tuple[dict[str, Any], str]]:
    """Records that a round refused, as far as they could be read, and why."""
    for _, line, why, _ in cut.faults:
        try:
            record = json.loads(line.encode("latin-1"))
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record, why
