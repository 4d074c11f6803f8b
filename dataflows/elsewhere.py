"""The detectors of this process that are asked elsewhere: which, where, and how patiently.

The settings say it, and `models.detectors.remote` asks. A bundle says nothing of servers: where a
model runs may change from one start to the next, what it is may not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dataflows.settings import Settings
from features.batch import FeatureMatrix, Float64
from features.errors import AnswerError, ConfigError
from models.base import Detector
from models.bundle import Bundle

if TYPE_CHECKING:
    from models.detectors.remote import Client

__all__ = ["ALONE", "Remotes"]

PATIENCE_S = 60.0
"""Longest wait for an answer in training. Chosen: a quarter of 100,000 rows is one question."""

FAULTS_PATIENT = 1_000_000
"""Faults in a row that training would bear. Chosen: the first ends it."""

ALONE = "remote"
"""The detector that is somebody else's model, asked elsewhere wherever it stands."""


class Remotes:
    """See the module; connections are made with the first question.

    Parameters
    ----------
    settings : `remote_*`
    say : takes a sentence when a server is left alone, and when it answers again
    patient : nothing flows meanwhile: an answer may take PATIENCE_S, and nobody is left alone
    """

    def __init__(
        self,
        settings: Settings,
        say: Callable[[str], None] = lambda _: None,
        patient: bool = False,
    ) -> None:
        self._settings, self._say, self._patient = settings, say, patient
        self._client: Client | None = None
        self._once = threading.Lock()
        self._needed = False

    def placed(self, bundle: Bundle, own: bool = True) -> Bundle:
        """The bundle, in which the detectors of the settings are asked elsewhere.

        Parameters
        ----------
        own : whether it is that of the settings, of which `remote_detectors` are asked; of another
            only detector `remote` is
        """
        if self._settings.remote_url is None:
            return bundle
        wanted = {ALONE, *(self._settings.remote_detectors if own else ())}
        models = {
            event: replace(m, detectors=self._some(event, m.detectors, wanted, bundle.id))
            for event, m in bundle.models.items()
        }
        return replace(bundle, models=models)

    def beside(self, bundle: Bundle) -> Bundle:
        """A bundle beside that of the settings, in which detector `remote` is asked elsewhere.

        Raises
        ------
        ConfigError : it cannot be asked, see `begin`
        """
        found = self.placed(bundle, own=False)
        self.begin()
        return found

    def in_training(
        self, event_type: str, detectors: Mapping[str, Detector]
    ) -> dict[str, Detector]:
        """Detectors that were just fitted; somebody else's model is asked, or left out where the
        settings have no rows of this type sent."""
        if self._settings.remote_url is None:
            return dict(detectors)
        if not self._sends(event_type):
            return {name: one for name, one in detectors.items() if name != ALONE}
        return self._some(event_type, detectors, {ALONE}, "")

    def begin(self) -> None:
        """Find out at the start what would be missing later; nobody is asked.

        Raises
        ------
        ConfigError : gRPC without its library
        """
        if self._needed:
            self._open()

    def report(self) -> dict[str, int]:
        """What was asked, in counts; nothing where nobody is to be asked."""
        if self._client is None:
            return {}
        told: dict[str, Any] = asdict(self._client.counts())
        unanswered = told.pop("unanswered")
        return told | {f"unanswered_{kind}": count for kind, count in unanswered.items()}

    def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            self._client.close()

    def _sends(self, event_type: str) -> bool:
        """Whether rows of an event type are sent."""
        wanted = self._settings.remote_event_types
        return not wanted or event_type in wanted

    def _some(
        self, event_type: str, detectors: Mapping[str, Detector], wanted: set[str], bundle: str
    ) -> dict[str, Detector]:
        """The detectors, those that are wanted asked elsewhere."""
        from models.detectors.remote import elsewhere

        found = dict(detectors)
        if not self._sends(event_type):
            return found
        for name in wanted & found.keys():
            meant = self._settings.remote_bundle or (bundle if name != ALONE else "")
            if meant == "any":
                meant = ""
            # A server of ours takes sequences where they are read; what others take is a setting.
            reads = name == ALONE or getattr(found[name], "sequential", False)
            ask = partial(self._ask, event_type, name, meant, reads)
            found[name] = elsewhere(found[name], ask)
            self._needed = True
        return found

    def _ask(
        self, event_type: str, detector: str, bundle: str, reads: bool, features: FeatureMatrix
    ) -> Float64:
        """float64 (n,), see `models.detectors.remote.Client.ask`."""
        if not reads:
            features = replace(features, sequence=None)
        try:
            client = self._open()
        except ConfigError as error:  # whoever has not called `begin` hears of it here
            raise AnswerError("rubbish", str(error)) from None
        return client.ask(event_type, detector, bundle, features)

    def _open(self) -> Client:
        """The client of this process."""
        from models.detectors.remote import Client, Endpoint

        s = self._settings
        with self._once:
            if self._client is not None:
                return self._client
            endpoint = Endpoint(
                url=s.remote_url or "",
                model=s.remote_model,
                features=s.remote_features,
                sequence=s.remote_sequence,
                output=s.remote_output,
                datatype=s.remote_datatype,
                timeout_s=PATIENCE_S if self._patient else s.remote_timeout_s,
                retries=s.remote_retries_max,
                batch_rows=s.remote_rows_max,
                concurrency=s.remote_requests_max,
                breaker_faults=FAULTS_PATIENT if self._patient else s.remote_faults_max,
                breaker_s=s.remote_rest_s,
            )
            self._client = Client(endpoint, time.monotonic, self._say)
            return self._client
