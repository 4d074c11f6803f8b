"""Where the bundle of a setting or an option lies: a folder, brought here where it is not one yet.

The setting `bundle`, `waxwing serve --bundle` and the candidate of `waxwing model compare` may name
what a control record may: a folder, an archive, a URL of either, or the id of a bundle that the
flow has. What comes from elsewhere is kept below `state_dir/fetched`, by id and rules, and is asked
for again only where the place has another one by now.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from dataflows.addresses import is_archive, is_elsewhere, masked
from dataflows.fetching import brought, peeked
from features.errors import BundleError, ConfigError
from models.bundle import copy_bundle, read_head, rules_of

__all__ = ["FETCHED", "is_placed", "placed"]

FETCHED = "fetched"
"""Folder below state_dir of bundles that settings named elsewhere."""

_ID = re.compile("[0-9a-f]{16}")


def is_placed(place: str) -> bool:
    """Whether a place is a folder of this machine, so that nothing has to be brought."""
    by_id = _ID.fullmatch(place) is not None and not Path(place).exists()
    return not by_id and not is_elsewhere(place)


def placed(place: str, state_dir: Path) -> Path:
    """The folder of the bundle at a place.

    Parameters
    ----------
    place : folder, archive, URL of either, or 16 hex digits of the id of a bundle that is in
        `state_dir`

    Raises
    ------
    BundleError : there is none, it may not be asked for, or does not come whole
    ConfigError : its voting.toml does not hold together
    """
    if is_placed(place):
        return Path(place)
    kept = state_dir / FETCHED
    if _ID.fullmatch(place):
        return _by_id(place, state_dir)
    with tempfile.TemporaryDirectory(prefix="waxwing-") as temporary:
        try:
            folder = Path(temporary)
            if not is_archive(place):
                head = peeked(place, folder / "head")
                if (there := kept / _name(head)).is_dir():
                    return there
            (folder / "whole").mkdir()
            return _kept(brought(place, folder / "whole"), kept)
        except BundleError as error:
            raise BundleError(masked(str(error).replace(temporary, place))) from None
        except ConfigError as error:
            faults = [masked(fault.replace(temporary, place)) for fault in error.faults]
            raise ConfigError(faults) from None
        except OSError as error:
            raise BundleError(
                f"bundle {masked(place)} cannot be kept in {kept} ({error.strerror}); free"
                " space, or name a folder"
            ) from None


def _by_id(id_: str, state_dir: Path) -> Path:
    """The folder of a bundle that a flow has, by its id."""
    from dataflows.shelf import shelf_folder

    shelf, kept = shelf_folder(state_dir), state_dir / FETCHED
    found = [shelf / id_, *sorted(kept.glob(f"{id_}-*"))]
    there = next((folder for folder in found if (folder / "bundle.json").is_file()), None)
    if there is None:
        ids = {p.name[:16] for p in [*shelf.glob("*"), *kept.glob("*")] if _ID.match(p.name)}
        raise BundleError(
            f"there is no bundle {id_} in {state_dir} (there are"
            f" {', '.join(sorted(ids)) or 'none'}); name its folder, archive or URL"
        )
    return there


def _name(folder: Path) -> str:
    """Under which a bundle is kept: other rules are another folder."""
    return f"{read_head(folder)['id']}-{rules_of(folder).id}"


def _kept(path: Path, kept: Path) -> Path:
    """A copy of a bundle in the folder of those that were fetched, whole or not at all."""
    target = kept / _name(path)
    coming = kept / f".{target.name}.{os.getpid()}.new"
    shutil.rmtree(coming, ignore_errors=True)
    coming.mkdir(parents=True)
    try:
        copy_bundle(path, coming)
        if not target.is_dir():  # another process of the flow may have been quicker
            coming.rename(target)
    finally:
        shutil.rmtree(coming, ignore_errors=True)
    return target
