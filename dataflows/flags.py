"""Flags of an OpenFeature provider as stages of models: one that changes becomes a control record.

The flow asks no provider: what it answers would have to be journaled. A process of its own looks at
the flags and writes the records that a person would write (`waxwing model follow`), so the journal,
replays and `waxwing model rollback` know nothing new.

| flag | text | what it asks for |
| --- | --- | --- |
| `waxwing.bundle` | a bundle: folder, archive, URL or id | it is live |
| `waxwing.candidate` | `shadow BUNDLE`, `canary P BUNDLE`; `off` | it is tried beside the live |
| `waxwing.detector.NAME` | `off`, `shadow`, `canary P`, `live` | the stage of a detector |

A flag counts when its text changes, and at the first look where it asks for what is not in force:
what a person or the flow itself has rolled back since is not done again. An empty text, a flag that
is not there and a provider that does not answer change nothing.
"""

from __future__ import annotations

import importlib
import json
import re
import runpy
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflows import stages
from dataflows.addresses import masked
from dataflows.control.records import STAGES, Names, parse_record
from dataflows.control.writing import write_record
from features.errors import ConfigError, WaxwingError

if TYPE_CHECKING:
    from openfeature.client import OpenFeatureClient

    from dataflows.settings import Settings

__all__ = ["BY", "FlagFollower", "asked_of", "flag_client"]

BY = "openfeature"
"""Who says so, in the records of flags."""

_BUNDLE, _CANDIDATE, _DETECTOR = "waxwing.bundle", "waxwing.candidate", "waxwing.detector."

_STAGE = r"(?:canary\s+(?P<percent>\d+(?:\.\d+)?)(?:\s*%)?|(?P<stage>off|shadow|live))"
_TRIED = rf"{_STAGE}\s+(?P<place>\S.*)"


def flag_client(provider: str) -> OpenFeatureClient:
    """A client of the user's provider, once that is ready.

    Parameters
    ----------
    provider : `MODULE:NAME` or `FILE.py:NAME`; NAME is called without arguments and gives the
        provider: a class, or a function that configures one

    Raises
    ------
    ConfigError : OpenFeature is not installed, there is no such provider, or it does not start
    """
    try:
        from openfeature import api
    except ImportError:
        raise ConfigError(
            "flags need the OpenFeature SDK, which is not installed: pip install 'waxwing[flags]'"
        ) from None
    place, colon, name = provider.rpartition(":")
    if not (place and colon and name.isidentifier()):
        raise ConfigError(
            f"--provider {provider!r}: expected MODULE:NAME or FILE.py:NAME, such as"
            " openfeature.contrib.provider.flagd:FlagdProvider"
        )
    try:
        if place.endswith(".py"):
            made = runpy.run_path(str(Path(place)), run_name="waxwing_provider")[name]()
        else:
            made = getattr(importlib.import_module(place), name)()
        api.set_provider_and_wait(made)
    # What a user's code and a provider's server come up with is theirs.
    except Exception as error:
        raise ConfigError(
            f"--provider {provider!r} gives no provider: {type(error).__name__}: {error}"
        ) from error
    return api.get_client("waxwing")


def asked_of(flag: str, text: str) -> dict[str, Any]:
    """What a flag asks for: the fields of a control record, without who and why.

    Raises
    ------
    ConfigError : it says nothing that can be done
    BundleError : there is no such bundle
    """
    if flag == _BUNDLE:
        return _bundle(flag, text) | {"stage": "live"}
    if flag == _CANDIDATE:
        found = re.fullmatch(_TRIED, text)
        if found is None or found["stage"] in ("off", "live"):
            raise ConfigError(
                f"flag {flag}: expected `shadow BUNDLE`, `canary P BUNDLE` or `off`, got {text!r}"
            )
        return _bundle(flag, found["place"]) | _stage(found)
    found = re.fullmatch(_STAGE, text)
    if found is None:
        raise ConfigError(
            f"flag {flag}: expected one of {', '.join(STAGES)} (canary with its per cent:"
            f" `canary 10`), got {text!r}"
        )
    return {"kind": "stage", "detector": flag.removeprefix(_DETECTOR)} | _stage(found)


def _stage(found: re.Match[str]) -> dict[str, Any]:
    """`stage`, and `percent` of a canary."""
    if found["percent"] is None:
        return {"stage": found["stage"]}
    return {"stage": "canary", "percent": float(found["percent"])}


def _bundle(flag: str, place: str) -> dict[str, Any]:
    """`kind`, `bundle`, and the `path` where it is."""
    target = stages.target_of(place)
    if "bundle" not in target:
        raise ConfigError(f"flag {flag}: expected a bundle, got {place!r}, which is a detector")
    return {"kind": "bundle"} | target


class FlagFollower:
    """What flags ask for, written as control records.

    Parameters
    ----------
    settings : of the flow
    client : of OpenFeature
    names : what a record may speak of; its detectors have a flag each
    say : hears of each record, and once of each fault
    """

    def __init__(
        self,
        settings: Settings,
        client: OpenFeatureClient,
        names: Names,
        say: Callable[[str], None],
    ) -> None:
        from openfeature.evaluation_context import EvaluationContext

        self._settings = settings
        self._client = client
        self._names = names
        self._say = say
        self._context = EvaluationContext(
            targeting_key="waxwing", attributes={"state_dir": str(settings.state_dir)}
        )
        self._seen, self._tried = _said_before(settings)
        self._faults: dict[str, str] = {}

    def look(self) -> list[dict[str, Any]]:
        """Look at all flags once.

        Returns
        -------
        records written

        Raises
        ------
        WaxwingError : a record cannot be written
        """
        detectors = (f"{_DETECTOR}{name}" for name in self._names.detectors)
        written = map(self._followed, (*detectors, _BUNDLE, _CANDIDATE))
        return [record for record in written if record is not None]

    def _followed(self, flag: str) -> dict[str, Any] | None:
        """The record that was written for a flag, if any."""
        details = self._client.get_string_details(flag, "", self._context)
        text = details.value.strip()
        if details.error_code is not None:
            if str(details.error_code.value) != "FLAG_NOT_FOUND":
                why = details.error_message or details.error_code.value
                self._fault(flag, f"flag {flag}: the provider does not tell: {why}")
            return None
        before = self._seen.get(flag, "")
        if not text or masked(text) == masked(before):
            self._faults.pop(flag, None)
            return None
        try:
            record = self._record(flag, text, before)
            if flag == _CANDIDATE and record is not None:
                self._make_room(record)
        except WaxwingError as error:
            self._fault(flag, str(error))
            return None
        self._faults.pop(flag, None)
        self._seen[flag] = text
        if record is None:
            return None
        if flag == _CANDIDATE:
            self._tried = "" if record["stage"] == "off" else record["bundle"]
        return self._written(record, _why(flag, text))

    def _written(self, record: dict[str, Any], why: str) -> dict[str, Any]:
        """Write a record, and say so."""
        record |= {"id": uuid.uuid4().hex, "by": BY, "why": why}
        where = write_record(self._settings, record)
        self._say(f"{why}: {stages.said(record)}; written to {where}")
        return record

    def _make_room(self, record: dict[str, Any]) -> None:
        """Take off the bundle that was tried until now, where another one follows it.

        Else the former would stay beside the new one, as a canary with a say on its entities.
        """
        there = self._tried
        if there in ("", record["bundle"]) or self._is_live(there):
            return
        # Without the flag's text: it is followed only once the new bundle's record is written.
        self._written(_taken_off(there), f"flag {_CANDIDATE} names another bundle")
        self._tried = ""

    def _is_live(self, bundle: str) -> bool:
        """Whether what was tried decides by now: then it is not taken off."""
        known = stages.in_force(self._settings).control.bundles
        return known.get(bundle, ("off",))[0] == "live"

    def _record(self, flag: str, text: str, before: str) -> dict[str, Any] | None:
        """The record that a flag asks for; None where it is in force before the flag was ever seen.

        Raises
        ------
        WaxwingError : it asks for what cannot be
        """
        if flag == _CANDIDATE and text == "off":
            # By the id that was written then: at its place may be another bundle by now, or none.
            if not self._tried or self._is_live(self._tried):
                return None
            record = _taken_off(self._tried)
        else:
            record = asked_of(flag, text)
        parse_record(json.dumps(record), self._names if record["kind"] == "stage" else None)
        if before:
            return record
        control = stages.in_force(self._settings).control
        if record["kind"] == "stage":
            known, name = control.stages, record["detector"]
            unchanged = ("live", 100.0)
        else:
            known, name = control.bundles, record["bundle"]
            live = stages.live_bundle(self._settings, control)
            unchanged = ("live" if name == live else "off", 100.0)
        stage, percent = known.get(name, unchanged)
        same = stage == record["stage"] and percent == record.get("percent", 100.0)
        if same and flag == _CANDIDATE:
            self._tried = record["bundle"]
        return None if same else record

    def _fault(self, flag: str, text: str) -> None:
        """Say what is wrong with a flag, once."""
        if self._faults.get(flag) != text:
            self._faults[flag] = text
            self._say(text)


def _why(flag: str, text: str) -> str:
    """What the record of a flag says about itself."""
    return f"flag {flag} = {masked(text)}"


def _taken_off(bundle: str) -> dict[str, Any]:
    """The record that takes a bundle off."""
    return {"kind": "bundle", "bundle": bundle, "stage": "off"}


def _said_before(settings: Settings) -> tuple[dict[str, str], str]:
    """Flag -> the text that was written last for it, as far as the journal reaches back; and the
    id of the bundle that the candidate's flag has tried last, empty where it was taken off."""
    seen, tried = {}, ""
    for change in stages.history(settings):
        record = change["record"]
        flag, equals, text = str(record.get("why", "")).partition(" = ")
        if record.get("by") != BY:
            continue
        if equals:
            seen[flag.removeprefix("flag ")] = text
        if flag.startswith(f"flag {_CANDIDATE}"):
            tried = "" if record.get("stage") == "off" else record.get("bundle", "")
    return seen, tried
